//! A client of server-sent events, which sends its last id again whenever its connection ends.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::chain::{header, log};
use crate::client::Wish;
use crate::event_response::{Response, field};
use crate::history::{Canonical, Delivered, Record, Start, Verdict, check, check_cut};

/// Time limit for the head of the response.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Diary {
    /// Each record is complete from the client's first block on; the last one extends to the end.
    records: Vec<Record>,
    id: Option<String>,
    last: Option<(B256, u64)>,
    events: u64,
    connections: u64,
    faults: Vec<String>,
}

/// A running client of heads or of all logs.
#[derive(Debug)]
pub struct EventSource {
    kind: &'static str,
    from: u64,
    diary: Arc<Mutex<Diary>>,
    running: JoinHandle<()>,
}

impl EventSource {
    /// Starts a client of this kind, `heads` or `logs`, from block `from` on.
    pub fn start(kind: &'static str, from: u64, port: u16) -> Self {
        let diary = Arc::new(Mutex::new(Diary::default()));
        let delivered = diary.clone();
        let running = tokio::spawn(async move {
            loop {
                let cut = Duration::from_millis(rand::random_range(100..6_000));
                let _ = timeout(cut, connection(kind, from, port, &delivered)).await;
                sleep(Duration::from_millis(rand::random_range(20..400))).await;
            }
        });
        Self {
            kind,
            from,
            diary,
            running,
        }
    }

    pub fn has_arrived(&self, canonical: &Canonical) -> bool {
        let last = match self.kind {
            "heads" => canonical.blocks.last().map(|block| (block.hash, 0)),
            _ => canonical
                .blocks
                .iter()
                .rev()
                .find_map(|block| Some((block.hash, block.logs.last()?.index))),
        };
        self.diary.lock().last == last
    }

    /// Stops the client; returns the verdict and a description.
    pub fn stop(self, canonical: &Canonical) -> (Verdict, String) {
        self.running.abort();
        let diary = self.diary.lock();
        let mut verdict = Verdict::default();
        if let Some((last, cut)) = diary.records.split_last() {
            for record in cut {
                verdict.merge(check_cut(record, canonical, |log| Wish::All.wants(log), self.from));
            }
            verdict.merge(check(last, canonical, |log| Wish::All.wants(log), self.from));
        }
        verdict.contradictory += diary.faults.len() as u64;
        verdict.examples.extend(diary.faults.iter().take(4).cloned());
        let words = format!(
            "event stream of {}: {} events, {} connections, begun anew {} times: {verdict}",
            self.kind,
            diary.events,
            diary.connections,
            diary.records.len().saturating_sub(1),
        );
        (verdict, words)
    }
}

/// Follows one connection until it ends.
async fn connection(kind: &'static str, from: u64, port: u16, diary: &Mutex<Diary>) {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let id = diary.lock().id.clone();
    let query = id.as_ref().map_or(format!("&fromBlock={from:#x}"), |_| String::new());
    let last = id
        .as_ref()
        .map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
    let request = format!("GET /events?kind={kind}{query} HTTP/1.1\r\nhost: localhost\r\n{last}\r\n");
    if socket.write_all(request.as_bytes()).await.is_err() {
        return;
    }
    let mut response = Response::new(socket);
    match timeout(ANSWER, response.status()).await {
        Ok(Some(200)) => {}
        Ok(Some(410)) => {
            // Begins anew, from the first block.
            diary.lock().id = None;
            return;
        }
        Ok(Some(429 | 503) | None) | Err(_) => return,
        Ok(Some(status)) => {
            let words = format!("event stream of {kind}: status {status}: {}", response.text);
            return diary.lock().faults.push(words);
        }
    }
    {
        let mut diary = diary.lock();
        diary.connections += 1;
        if id.is_none() {
            diary.last = None;
            diary.records.push(Record {
                name: format!("event stream of {kind}"),
                delivered: Vec::new(),
            });
        }
        let subscribed = Delivered::Subscribed {
            heads: kind == "heads",
            logs: kind == "logs",
            from: id.map_or(Start::FromBlock(from), |_| Start::After(B256::ZERO, None)),
        };
        diary.note(subscribed);
    }
    while let Some(block) = response.block().await {
        let mut diary = diary.lock();
        if let (Some(name), Some(data)) = (field(&block, "event"), field(&block, "data"))
            && name == kind
        {
            diary.take(kind, &serde_json::from_str(data).expect("JSON"));
        }
        if let Some(id) = field(&block, "id") {
            diary.id = Some(id.to_owned());
        }
    }
}

impl Diary {
    fn note(&mut self, delivered: Delivered) {
        let record = self.records.last_mut().expect("a connection has begun");
        record.delivered.push(delivered);
    }

    fn take(&mut self, kind: &str, event: &Value) {
        self.events += 1;
        if kind == "heads" {
            let (number, hash, parent) = header(event);
            self.last = Some((hash, 0));
            self.note(Delivered::Head { number, hash, parent });
        } else {
            let (block, log) = log(event);
            let removed = event["removed"] == true;
            if !removed {
                self.last = Some((block.1, log.index));
            }
            self.note(Delivered::Log { block, log, removed });
        }
    }
}
