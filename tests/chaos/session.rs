//! A client with a session, which repeats its subscriptions whenever its connection ends, and nothing else. When it is
//! closed because its position is lost, it begins anew, as its documentation says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alloy_primitives::B256;
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::chain::{header, log};
use crate::client::Wish;
use crate::history::{Canonical, Log, Verdict};

/// Time limit for a handshake and for each answer.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Diary {
    /// Heads and logs since the position was lost last; a log with whether it is applied or was taken back.
    heads: HashMap<B256, u64>,
    logs: HashMap<(B256, u64), (u64, Log, bool)>,
    /// Number of the first block that must be there; `None` before both subscriptions were answered once.
    from: Option<u64>,
    is_subscribed: bool,
    events: u64,
    repeated: u64,
    connections: u64,
    lost: u64,
    /// Losses since both subscriptions were answered last.
    in_a_row: u64,
    faults: Vec<String>,
}

/// A running client of heads and logs.
#[derive(Debug)]
pub struct SessionClient {
    wish: Wish,
    diary: Arc<Mutex<Diary>>,
    running: JoinHandle<()>,
}

impl SessionClient {
    pub fn start(wish: Wish, port: u16) -> Self {
        let diary = Arc::new(Mutex::new(Diary::default()));
        let delivered = diary.clone();
        let made = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let url = format!(
            "ws://127.0.0.1:{port}/?session={}-{:016x}",
            made.as_secs(),
            rand::random::<u64>()
        );
        let running = tokio::spawn(async move {
            loop {
                let cut = Duration::from_millis(rand::random_range(100..6_000));
                let _ = timeout(cut, connection(&url, wish, port, &delivered)).await;
                delivered.lock().is_subscribed = false;
                sleep(Duration::from_millis(rand::random_range(20..400))).await;
            }
        });
        Self { wish, diary, running }
    }

    pub fn has_arrived(&self, canonical: &Canonical) -> bool {
        let diary = self.diary.lock();
        diary.is_subscribed && diary.differences(self.wish, canonical).is_empty()
    }

    /// Stops the client; returns the verdict and a description.
    pub fn stop(self, canonical: &Canonical) -> (Verdict, String) {
        self.running.abort();
        let diary = self.diary.lock();
        let differences = diary.differences(self.wish, canonical);
        let verdict = Verdict {
            lost: differences.len() as u64,
            contradictory: diary.faults.len() as u64,
            examples: differences.iter().chain(&diary.faults).take(6).cloned().collect(),
            ..Verdict::default()
        };
        let words = format!(
            "session of {:?}: {} events, {} repeated, {} connections, {} times closed for a lost position: {verdict}",
            self.wish, diary.events, diary.repeated, diary.connections, diary.lost
        );
        (verdict, words)
    }
}

/// Follows one connection until it ends.
async fn connection(url: &str, wish: Wish, port: u16, diary: &Mutex<Diary>) {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let Ok(Ok((mut socket, _))) = timeout(ANSWER, client_async(url, stream)).await else {
        return;
    };
    diary.lock().connections += 1;
    let request = |id, method, params| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    for message in [
        request(0, "eth_subscribe", json!(["newHeads"])),
        request(1, "eth_subscribe", json!(["logs", wish.filter()])),
    ] {
        let _ = socket.send(Message::text(message.to_string())).await;
    }
    let mut ids = [None::<String>, None];
    while let Some(Ok(message)) = socket.next().await {
        let text = match message {
            Message::Text(text) => text,
            Message::Close(frame) => {
                let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
                diary.lock().closed(&reason);
                // The answer leaves with the next call.
                continue;
            }
            _ => continue,
        };
        let message: Value = serde_json::from_str(&text).expect("JSON");
        if message.get("method").is_some() {
            diary.lock().receive(&message["params"], &ids);
            continue;
        }
        match (message["id"].as_u64(), message["result"].as_str()) {
            (Some(at @ 0..2), Some(id)) => ids[at as usize] = Some(id.to_owned()),
            // Blocks above this one are published behind both answers.
            (Some(2), Some(number)) => {
                let number = u64::from_str_radix(number.trim_start_matches("0x"), 16).unwrap();
                diary.lock().subscribed(number + 1);
            }
            _ => {
                let reason = message["error"]["message"].as_str().unwrap_or_default().to_owned();
                diary.lock().closed(&reason);
                return;
            }
        }
        let is_answer = message["id"] == 0 || message["id"] == 1;
        if is_answer && ids.iter().all(Option::is_some) {
            let newest = request(2, "eth_blockNumber", json!([]));
            let _ = socket.send(Message::text(newest.to_string())).await;
        }
    }
}

impl Diary {
    fn subscribed(&mut self, next: u64) {
        self.is_subscribed = true;
        self.in_a_row = 0;
        self.from.get_or_insert(next);
    }

    /// Begins anew if the reason says that events may be missing.
    fn closed(&mut self, reason: &str) {
        let says_so = ["position of this session is lost", "lost upstream"];
        if !says_so.iter().any(|words| reason.contains(words)) {
            return;
        }
        (self.heads, self.logs, self.from) = Default::default();
        self.lost += 1;
        self.in_a_row += 1;
        // An error to a subscription and the close frame each say so, for either of both, and again after a kill.
        if self.in_a_row == 12 {
            self.faults.push(format!("closed again and again: {reason}"));
        }
    }

    fn receive(&mut self, params: &Value, ids: &[Option<String>; 2]) {
        self.events += 1;
        let at = ids
            .iter()
            .position(|id| id.as_deref() == params["subscription"].as_str());
        let result = &params["result"];
        let repeated = match at {
            Some(0) => {
                let (number, hash, _) = header(result);
                self.heads.insert(hash, number).is_some()
            }
            Some(_) => {
                let (block, log) = log(result);
                let applied = result["removed"] != true;
                let before = self.logs.insert((block.1, log.index), (block.0, log, applied));
                before.is_some_and(|(_, _, before)| before == applied)
            }
            None => return self.faults.push(format!("an event of no subscription: {params}")),
        };
        self.repeated += u64::from(repeated);
    }

    /// Returns everything in which this differs from the chain.
    fn differences(&self, wish: Wish, canonical: &Canonical) -> Vec<String> {
        let mut faults = Vec::new();
        let from = self.from.unwrap_or(u64::MAX);
        for block in canonical.blocks.iter().filter(|block| block.number >= from) {
            if !self.heads.contains_key(&block.hash) {
                faults.push(format!("head {} is missing", block.number));
            }
            for log in block.logs.iter().filter(|log| wish.wants(log)) {
                let is_there = self.logs.get(&(block.hash, log.index));
                if !is_there.is_some_and(|(_, own, applied)| *applied && own == log) {
                    faults.push(format!("log {} of block {} is missing", log.index, block.number));
                }
            }
        }
        let is_canonical = |hash: &B256| canonical.blocks.iter().any(|block| block.hash == *hash);
        for ((hash, index), (number, _, applied)) in &self.logs {
            if *applied && !is_canonical(hash) {
                faults.push(format!("log {index} of block {number} was not taken back"));
            }
        }
        faults
    }
}
