//! A client of server-sent events, as a browser is one: after each cut it sends the last id again, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alloy_primitives::Address;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::consumer::{Consumer, Counts};
use crate::event_response::{self, Response};
use crate::fleet::Progress;
use crate::history::Canonical;
use crate::plan::Plan;
use crate::stream::{Of, Story};
use crate::trailing::Level;

/// Pause before the client reconnects.
const PAUSE: Duration = Duration::from_millis(200);

/// Most cuts by the client, so that it catches up in the end.
const MAX_CUTS: usize = 60;

#[derive(Debug)]
struct Diary {
    story: Story,
    /// Last id; `None` before the first.
    id: Option<String>,
    counts: Counts,
    complaints: Vec<String>,
    subscribed: bool,
}

/// Handle of a running client.
#[derive(Debug)]
pub struct EventSource {
    of: Of,
    diary: Arc<Mutex<Diary>>,
    over: watch::Sender<bool>,
}

impl EventSource {
    /// Starts a client; its stream and its cuts follow from the plan's seed.
    pub fn start(plan: &Plan, at: u64, server: SocketAddr, contracts: &[Address], progress: Arc<Progress>) -> Self {
        let mut rng = StdRng::seed_from_u64(plan.seed.rotate_left(36) ^ (0x55e + at));
        let of = Of::draw(at, plan.history as u64, &mut rng);
        let diary = Arc::new(Mutex::new(Diary {
            story: Story::new(of, contracts),
            id: None,
            counts: Counts::default(),
            complaints: Vec::new(),
            subscribed: false,
        }));
        let (over, ends) = watch::channel(false);
        let task = Task {
            of,
            query: of.query(contracts),
            server,
            progress,
            diary: diary.clone(),
            ends,
            rng,
            cuts: 0,
            may_lose: plan.may_lose_continuity(),
            bulky: plan.is_bulky(),
        };
        tokio::spawn(task.run());
        Self { of, diary, over }
    }
}

impl Consumer for EventSource {
    fn name(&self) -> String {
        format!("event stream {:?}", self.of)
    }

    fn counts(&self) -> Counts {
        self.diary.lock().counts
    }

    fn has_arrived(&self, canonical: &Canonical) -> bool {
        let diary = self.diary.lock();
        diary.subscribed && diary.story.has_arrived(canonical)
    }

    fn judge(&self, canonical: &Canonical) -> Vec<String> {
        let _ = self.over.send(true);
        let diary = self.diary.lock();
        let mut faults = diary.complaints.clone();
        faults.extend(diary.story.faults(canonical));
        let name = self.name();
        faults.into_iter().map(|words| format!("{name}: {words}")).collect()
    }
}

struct Task {
    of: Of,
    query: String,
    server: SocketAddr,
    progress: Arc<Progress>,
    diary: Arc<Mutex<Diary>>,
    ends: watch::Receiver<bool>,
    rng: StdRng,
    cuts: usize,
    may_lose: bool,
    bulky: bool,
}

impl Task {
    async fn run(mut self) {
        while !*self.ends.borrow() {
            if let Ok(stream) = TcpStream::connect(self.server).await {
                let mut ends = self.ends.clone();
                tokio::select! {
                    () = self.serve(stream) => {}
                    _ = ends.changed() => {}
                }
            }
            self.diary.lock().subscribed = false;
            sleep(PAUSE).await;
        }
    }

    fn complain(&self, words: String) {
        self.diary.lock().complaints.push(words);
    }

    async fn serve(&mut self, mut socket: TcpStream) {
        let last = self.diary.lock().id.clone();
        let header = last.as_ref().map(|id| format!("last-event-id: {id}\r\n"));
        let (query, header) = (&self.query, header.unwrap_or_default());
        let request = format!("GET /events?{query} HTTP/1.1\r\nhost: localhost\r\n{header}\r\n");
        if socket.write_all(request.as_bytes()).await.is_err() {
            return;
        }
        let mut response = Response::new(socket);
        let Some(status) = response.status().await else { return };
        if status != 200 {
            return self.refused(status, &response, last.is_some());
        }
        self.begin(last.is_some());
        let cut_after = if self.cuts < MAX_CUTS {
            self.rng.random_range(1..150)
        } else {
            usize::MAX
        };
        for _ in 0..cut_after {
            let Some(block) = response.block().await else {
                // A drain may end a stream without a reason only if the connection was lost.
                return;
            };
            if self.receive(&block) {
                return;
            }
        }
        self.cuts += 1;
    }

    fn refused(&self, status: u16, response: &Response, resumes: bool) {
        match status {
            410 => {
                let mut diary = self.diary.lock();
                // A reorg may reach below a level of finality.
                let is_final = self.of.level() != Level::Head && response.text.contains("dropped by a reorg");
                if !self.may_lose && !is_final {
                    diary.complaints.push(format!(
                        "cannot resume, and history reaches far enough: {}",
                        response.text
                    ));
                }
                diary.counts.lost += 1;
                diary.story.end();
                diary.id = None;
            }
            429 | 503 => {}
            _ => self.complain(format!("status {status} (resumes: {resumes}): {}", response.text)),
        }
    }

    fn begin(&self, resumes: bool) {
        let mut diary = self.diary.lock();
        let diary = &mut *diary;
        diary.subscribed = true;
        diary.counts.resumed += usize::from(resumes);
        if !resumes {
            // Without an id nothing came but the head of the response.
            diary.story.end();
        }
        let next = self.progress.highest.load(Ordering::Relaxed) + 1;
        diary.story.begin(resumes, next);
    }

    /// Takes a block of lines; returns `true` if the stream ends with it.
    fn receive(&self, block: &str) -> bool {
        let field = |name| event_response::field(block, name);
        let mut diary = self.diary.lock();
        let diary = &mut *diary;
        let over = match (field("event"), field("data")) {
            (Some("close"), Some(data)) => {
                let reason: Value = serde_json::from_str(data).unwrap_or_default();
                let is_expected = reason["code"] == 1012
                    || reason["code"] == 1013 && self.bulky
                    || self.progress.down.load(Ordering::Relaxed);
                if !is_expected {
                    diary.complaints.push(format!("closed with {data}"));
                }
                true
            }
            (Some(kind), Some(data)) => {
                diary.counts.events += 1;
                let fault = diary.story.take(kind, data).err();
                diary.complaints.extend(fault);
                false
            }
            _ => false,
        };
        if let Some(id) = field("id") {
            diary.id = Some(id.to_owned());
        }
        over
    }
}
