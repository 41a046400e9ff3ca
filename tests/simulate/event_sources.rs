//! A client of server-sent events, as a browser is one: after each cut it sends the last id again, and nothing else.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::blocks::{BlockShape, Blocks};
use crate::client::{self, HeadShape, LogShape};
use crate::consumer::{Consumer, Counts};
use crate::event_response::{self, Response};
use crate::fleet::Progress;
use crate::history::{self, Canonical, Log, Record, Start, Told};
use crate::plan::{Kind, Plan, Selection};
use crate::trailing::Level;

/// Pause before the client reconnects.
const PAUSE: Duration = Duration::from_millis(200);

/// Most cuts by the client, so that it catches up in the end.
const MAX_CUTS: usize = 60;

/// Stream of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Heads,
    Logs(Selection),
    /// `blockLogs`, at the head or at a level of finality.
    Blocks(Level),
}

impl Of {
    fn draw(at: u64, blocks_in_memory: u64, rng: &mut StdRng) -> Self {
        match at {
            0 => Self::Heads,
            1 => Self::Logs(Selection::draw(rng)),
            2 => Self::Blocks(Level::Head),
            _ => {
                let depth = rng.random_range(1..=blocks_in_memory.min(24));
                Self::Blocks([Level::Safe, Level::Confirmations(depth)][rng.random_range(0..2)])
            }
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Heads => Kind::Heads,
            Self::Logs(selection) => Kind::Logs(selection),
            Self::Blocks(_) => Kind::Logs(Selection::All),
        }
    }

    fn level(self) -> Level {
        match self {
            Self::Blocks(level) => level,
            Self::Heads | Self::Logs(_) => Level::Head,
        }
    }

    fn query(self, contracts: &[Address]) -> String {
        match self {
            Self::Heads => "kind=heads".to_owned(),
            Self::Logs(Selection::All) => "kind=logs".to_owned(),
            Self::Logs(Selection::Contracts(count)) => {
                let all: Vec<String> = contracts[..count].iter().map(Address::to_string).collect();
                format!("kind=logs&address={}", all.join(","))
            }
            Self::Logs(Selection::Transfers) => format!("kind=logs&topic0={}", client::transfer()),
            Self::Blocks(level) => {
                let options = level.options();
                let options = options.as_object().into_iter().flatten();
                let options = options.map(|(name, value)| match value {
                    Value::String(text) => format!("&{name}={text}"),
                    other => format!("&{name}={other}"),
                });
                format!("kind=blockLogs{}", options.collect::<String>())
            }
        }
    }
}

/// What the client has since it began anew last.
#[derive(Debug, Default)]
struct Story {
    /// Last id; `None` before the first.
    id: Option<String>,
    /// Heads or logs; with the number of the first block that they must cover.
    record: Option<(Record, u64)>,
    /// Logs that are applied.
    logs: HashSet<(B256, u64)>,
    head: Option<B256>,
    blocks: Blocks,
}

#[derive(Debug, Default)]
struct Diary {
    story: Story,
    /// Records whose position could not be served any more.
    ended: Vec<(Record, u64)>,
    counts: Counts,
    complaints: Vec<String>,
    subscribed: bool,
}

/// Handle of a running client.
#[derive(Debug)]
pub struct EventSource {
    of: Of,
    contracts: Vec<Address>,
    diary: Arc<Mutex<Diary>>,
    over: watch::Sender<bool>,
}

impl EventSource {
    /// Starts a client; its stream and its cuts follow from the plan's seed.
    pub fn start(plan: &Plan, at: u64, server: SocketAddr, contracts: &[Address], progress: Arc<Progress>) -> Self {
        let mut rng = StdRng::seed_from_u64(plan.seed.rotate_left(36) ^ (0x55e + at));
        let of = Of::draw(at, plan.history as u64, &mut rng);
        let diary = Arc::new(Mutex::new(Diary::default()));
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
        let contracts = contracts.to_vec();
        Self {
            of,
            contracts,
            diary,
            over,
        }
    }

    fn selects(&self, log: &Log) -> bool {
        client::selects(self.of.kind(), &self.contracts, log)
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
        let story = &diary.story;
        let Some(newest) = canonical.blocks.last().filter(|_| diary.subscribed) else {
            return false;
        };
        match (self.of, &story.record) {
            (Of::Heads, Some((_, from))) => story.head == Some(newest.hash) || newest.number < *from,
            (Of::Logs(_), Some((_, from))) => {
                let due = canonical.blocks.iter().filter(|block| block.number >= *from);
                due.into_iter().all(|block| {
                    let own = block.logs.iter().filter(|log| self.selects(log));
                    own.into_iter().all(|log| story.logs.contains(&(block.hash, log.index)))
                })
            }
            (Of::Blocks(level), Some((_, from))) => {
                let top = newest.number.saturating_sub(level.depth());
                let last = canonical.blocks.iter().rev().find(|block| block.number <= top);
                let is_before_its_first = story.blocks.list.is_empty() && top < *from;
                is_before_its_first || story.blocks.last() == last.map(|block| block.hash)
            }
            (_, None) => false,
        }
    }

    fn judge(&self, canonical: &Canonical) -> Vec<String> {
        let _ = self.over.send(true);
        let diary = self.diary.lock();
        let mut faults = diary.complaints.clone();
        let selects = |log: &Log| self.selects(log);
        if let Of::Blocks(_) = self.of {
            faults.extend(diary.story.blocks.faults(canonical));
        } else {
            let ended = diary.ended.iter();
            let ended = ended.map(|(record, from)| history::check_cut(record, canonical, selects, *from));
            let current = diary.story.record.iter();
            let current = current.map(|(record, from)| history::check(record, canonical, selects, *from));
            let bad = ended.chain(current).filter(|verdict| !verdict.is_clean());
            faults.extend(bad.map(|verdict| verdict.to_string()));
        }
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
        let last = self.diary.lock().story.id.clone();
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
                let ended = std::mem::take(&mut diary.story);
                diary.ended.extend(ended.record);
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
            let ended = std::mem::take(&mut diary.story);
            diary.ended.extend(ended.record);
        }
        let next = self.progress.highest.load(Ordering::Relaxed) + 1;
        let record = Record {
            name: String::new(),
            told: Vec::new(),
        };
        let (record, _) = diary.story.record.get_or_insert((record, next));
        record.told.push(Told::Subscribed {
            heads: self.of == Of::Heads,
            logs: matches!(self.of, Of::Logs(_)),
            from: if resumes {
                Start::After(B256::ZERO, None)
            } else {
                Start::Live
            },
        });
        diary.story.blocks.begin(resumes);
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
                let fault = diary.story.take(kind, data, self.of.level()).err();
                diary.complaints.extend(fault);
                false
            }
            _ => false,
        };
        if let Some(id) = field("id") {
            diary.story.id = Some(id.to_owned());
        }
        over
    }
}

impl Story {
    /// Takes an event.
    ///
    /// # Errors
    /// The contradiction.
    fn take(&mut self, kind: &str, data: &str, level: Level) -> Result<(), String> {
        let unreadable = |error| format!("an event that cannot be read ({error}): {data}");
        let told = match kind {
            "heads" => {
                let head: HeadShape = serde_json::from_str(data).map_err(unreadable)?;
                self.head = Some(head.hash);
                Told::Head {
                    number: head.number.to(),
                    hash: head.hash,
                    parent: head.parent_hash,
                }
            }
            "logs" => {
                let shape: LogShape = serde_json::from_str(data).map_err(unreadable)?;
                let (block, log, removed) = (shape.block(), shape.log(), shape.removed);
                if removed {
                    self.logs.remove(&(block.1, log.index));
                } else {
                    self.logs.insert((block.1, log.index));
                }
                Told::Log { block, log, removed }
            }
            "blockLogs" => {
                let shape: BlockShape = serde_json::from_str(data).map_err(unreadable)?;
                if shape.removed && level != Level::Head {
                    return Err(format!("a final block was taken back: {data}"));
                }
                return self.blocks.whole(&shape);
            }
            _ => return Err(format!("event {kind} of no subscription: {data}")),
        };
        if let Some((record, _)) = &mut self.record {
            record.told.push(told);
        }
        Ok(())
    }
}
