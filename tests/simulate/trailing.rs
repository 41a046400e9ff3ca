//! A client of whole blocks: heads and logs at a level of finality, or `blockLogs`, recorded block by block. It cuts its
//! connection now and then, and resumes behind the last block that it has whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::blocks::{BlockShape, Blocks, Received};
use crate::client::{HeadShape, LogShape, Notification, Params};
use crate::consumer::{Consumer, Counts};
use crate::fleet::Progress;
use crate::history::Canonical;

/// Pause before the client reconnects.
const PAUSE: Duration = Duration::from_millis(200);

/// Depth of the simulated nodes' `safe` and `finalized` blocks.
const SAFE: u64 = 32;
const FINALIZED: u64 = 64;

/// Level of the client, and the depth of the newest block that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Finalized,
    Safe,
    Confirmations(u64),
    /// None: `blockLogs` of the head, with blocks that are taken back.
    Head,
}

impl Level {
    pub fn options(self) -> Value {
        match self {
            Self::Head => json!({}),
            Self::Finalized => json!({"finality": "finalized"}),
            Self::Safe => json!({"finality": "safe"}),
            Self::Confirmations(depth) => json!({ "confirmations": depth }),
        }
    }

    pub fn depth(self) -> u64 {
        match self {
            Self::Finalized => FINALIZED,
            Self::Safe => SAFE,
            Self::Confirmations(depth) => depth - 1,
            Self::Head => 0,
        }
    }
}

#[derive(Debug, Default)]
struct Diary {
    blocks: Blocks,
    events: u64,
    /// Events before the last fresh start; `None` before the first one.
    anew_at: Option<u64>,
    resumed: usize,
    complaints: Vec<String>,
    subscribed: bool,
}

/// Handle of a running client.
#[derive(Debug)]
pub struct Trailing {
    level: Level,
    diary: Arc<Mutex<Diary>>,
    over: watch::Sender<bool>,
}

impl Trailing {
    /// Starts a client; its level and its cuts follow from the seed.
    pub fn start(seed: u64, at: u64, server: SocketAddr, blocks_in_memory: u64, progress: Arc<Progress>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed.rotate_left(24) ^ (0xf17a + at));
        let level = match at {
            0 => Level::Finalized,
            1 => Level::Safe,
            2 => Level::Head,
            _ => Level::Confirmations(rng.random_range(1..=blocks_in_memory.min(24))),
        };
        let diary = Arc::new(Mutex::new(Diary::default()));
        let (over, ends) = watch::channel(false);
        let task = Task {
            level,
            server,
            progress,
            diary: diary.clone(),
            ends,
            rng,
        };
        tokio::spawn(task.run());
        Self { level, diary, over }
    }
}

impl Consumer for Trailing {
    fn name(&self) -> String {
        format!("trailing client {:?}", self.level)
    }

    fn counts(&self) -> Counts {
        let diary = self.diary.lock();
        Counts {
            events: diary.events,
            resumed: diary.resumed,
            ..Counts::default()
        }
    }

    fn has_arrived(&self, canonical: &Canonical) -> bool {
        let top = canonical.blocks.last().map_or(0, |block| block.number);
        let top = top.saturating_sub(self.level.depth());
        let last = canonical.blocks.iter().rev().find(|block| block.number <= top);
        let diary = self.diary.lock();
        // A client that began anew, live, may have done so after the last block got its level.
        let is_before_its_first = diary.blocks.list.is_empty() && diary.anew_at == Some(diary.events);
        diary.subscribed && (is_before_its_first || diary.blocks.last() == last.map(|block| block.hash))
    }

    fn judge(&self, canonical: &Canonical) -> Vec<String> {
        let _ = self.over.send(true);
        let name = self.name();
        let diary = self.diary.lock();
        let mut faults = diary.complaints.clone();
        faults.extend(diary.blocks.faults(canonical));
        faults.into_iter().map(|words| format!("{name}: {words}")).collect()
    }
}

struct Task {
    level: Level,
    server: SocketAddr,
    progress: Arc<Progress>,
    diary: Arc<Mutex<Diary>>,
    ends: watch::Receiver<bool>,
    rng: StdRng,
}

/// Reason for the end of a connection.
enum End {
    /// Cut, or an error after which the client tries again.
    Broken,
    /// The place is lost: the client begins anew.
    Afresh,
}

impl Task {
    async fn run(mut self) {
        while !*self.ends.borrow() {
            if let Ok(stream) = TcpStream::connect(self.server).await {
                let complete = self.diary.lock().blocks.list.len();
                let end = self.serve(stream).await;
                self.ended(end, complete);
            }
            sleep(PAUSE).await;
        }
    }

    /// Notes the end of a connection, before which there were this many complete blocks.
    fn ended(&self, end: End, complete: usize) {
        let mut diary = self.diary.lock();
        diary.subscribed = false;
        match end {
            End::Broken if matches!(self.level, Level::Head) => {}
            // The last block may lack logs, if it came now.
            End::Broken if diary.blocks.list.len() > complete => drop(diary.blocks.list.pop()),
            End::Broken => {}
            End::Afresh => {
                diary.blocks.list.clear();
                diary.anew_at = Some(diary.events);
            }
        }
    }

    fn complain(&self, words: String) {
        self.diary.lock().complaints.push(words);
    }

    async fn serve(&mut self, stream: TcpStream) -> End {
        let Ok((mut socket, _)) = client_async(format!("ws://{}", self.server), stream).await else {
            return End::Broken;
        };
        let mut options = self.level.options();
        {
            let mut diary = self.diary.lock();
            if let Some(last) = diary.blocks.last() {
                options["after"] = json!({ "blockHash": last });
            }
            diary.blocks.begin(options.get("after").is_some());
        }
        let resumes = options.get("after").is_some();
        let complete = self.diary.lock().blocks.list.len();
        let options = [options].into_iter().filter(|options| *options != json!({}));
        let ask = |id: u64, kind: &[Value]| {
            let params: Vec<Value> = kind.iter().cloned().chain(options.clone()).collect();
            json!({"jsonrpc": "2.0", "id": id, "method": "eth_subscribe", "params": params})
        };
        let batch = match self.level {
            Level::Head => json!([ask(0, &[json!("blockLogs"), json!({})])]),
            _ => json!([ask(0, &[json!("newHeads")]), ask(1, &[json!("logs"), json!({})])]),
        };
        if socket.send(Message::text(batch.to_string())).await.is_err() {
            return End::Broken;
        }
        let mut ids: Option<Vec<String>> = None;
        let cut_after = self.rng.random_range(20..400);
        let mut events = 0;
        let mut ends = self.ends.clone();
        loop {
            let message = tokio::select! {
                message = socket.next() => message,
                _ = ends.changed() => return End::Broken,
            };
            let text = match message {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(Some(frame)))) => return self.closed(frame.code.into(), &frame.reason),
                _ => return End::Broken,
            };
            match &ids {
                None => match answered(&text) {
                    Ok(all) => {
                        let mut diary = self.diary.lock();
                        diary.subscribed = true;
                        diary.resumed += usize::from(resumes);
                        ids = Some(all);
                    }
                    // Dropped, too old or unknown.
                    Err(-32001) => return End::Afresh,
                    Err(_) => return End::Broken,
                },
                Some(ids) => {
                    self.receive(&text, ids);
                    events += 1;
                    // Not before a block is complete: one with more events than that would come again for ever.
                    if events >= cut_after
                        && (self.level == Level::Head || self.diary.lock().blocks.list.len() > complete + 1)
                    {
                        return End::Broken;
                    }
                }
            }
        }
    }

    fn closed(&self, code: u16, reason: &str) -> End {
        if reason.contains("delivered as final") {
            return End::Afresh;
        }
        let is_expected = code == 1012 || self.progress.down.load(Ordering::Relaxed);
        if !is_expected {
            self.complain(format!("closed with {code} {reason}"));
        }
        // A loss of continuity: the place may be unknown from now on.
        if reason.contains("lost upstream") {
            End::Afresh
        } else {
            End::Broken
        }
    }

    fn receive(&self, text: &str, ids: &[String]) {
        let Ok(notification) = serde_json::from_str::<Notification<'_>>(text) else {
            return self.complain(format!("no notification: {text}"));
        };
        let Params { subscription, result } = notification.params;
        let mut diary = self.diary.lock();
        diary.events += 1;
        let at = ids.iter().position(|id| id == subscription);
        if matches!(self.level, Level::Head) {
            match serde_json::from_str::<BlockShape>(result.get()) {
                Ok(message) => {
                    let fault = diary.blocks.whole(&message).err();
                    diary.complaints.extend(fault);
                }
                Err(_) => diary.complaints.push(format!("no block: {text}")),
            }
        } else if at == Some(0) {
            let Ok(head) = serde_json::from_str::<HeadShape>(result.get()) else {
                return diary.complaints.push(format!("no head: {text}"));
            };
            diary.blocks.list.push(Received {
                number: head.number.to(),
                hash: head.hash,
                parent: head.parent_hash,
                logs: Vec::new(),
            });
        } else if at == Some(1) {
            let Ok(log) = serde_json::from_str::<LogShape>(result.get()) else {
                return diary.complaints.push(format!("no log: {text}"));
            };
            if log.removed {
                diary.complaints.push(format!("a log was taken back: {text}"));
            }
            match diary.blocks.list.last_mut() {
                Some(block) if block.hash == log.block().1 => block.logs.push(log.log().index),
                _ => diary.complaints.push(format!("a log not behind its head: {text}")),
            }
        }
    }
}

/// Returns the ids of all subscriptions.
///
/// # Errors
/// The code of an error.
fn answered(text: &str) -> Result<Vec<String>, i64> {
    let answers: Vec<Value> = serde_json::from_str(text).map_err(|_| 0)?;
    let id = |answer: &Value| match answer["result"].as_str() {
        Some(id) => Ok(id.to_owned()),
        None => Err(answer["error"]["code"].as_i64().unwrap_or(0)),
    };
    answers.iter().map(id).collect()
}
