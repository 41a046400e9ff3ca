//! A client with a session: after each cut it connects with the same token and repeats its subscriptions, and nothing
//! else. What its connections brought together has no hole, and what was dropped is taken back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy_primitives::{Address, B256};
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

use crate::applied::{Of, State, Wants};
use crate::blocks::{BlockShape, Received};
use crate::client::{self, HeadShape, LogShape, Notification, Params};
use crate::consumer::{Consumer, Counts};
use crate::fleet::Progress;
use crate::history::{self, Canonical, Delivered, Log, Record, Start};
use crate::plan::Plan;
use crate::trailing::Level;

/// Pause before the client reconnects.
const PAUSE: Duration = Duration::from_millis(200);

/// Most cuts by the client, so that it catches up in the end.
const MAX_CUTS: usize = 60;

/// Age of the token: one from before the app's start is never taken for a new one after a restart.
const AGE: u64 = 2;

/// Effect of the last event, which a library may drop with its buffer.
#[derive(Debug)]
enum Last {
    Head(B256),
    Block(B256, Option<(Received, bool)>),
}

#[derive(Debug, Default)]
struct Diary {
    state: State,
    /// Events of each connection: heads, and logs.
    connections: Vec<(Vec<Delivered>, Vec<Delivered>)>,
    counts: Counts,
    complaints: Vec<String>,
    subscribed: bool,
    /// `true` once a session was opened: a token that is older than the app is refused once.
    established: bool,
}

/// Handle of a running client.
#[derive(Debug)]
pub struct SessionClient {
    wants: Wants,
    contracts: Vec<Address>,
    diary: Arc<Mutex<Diary>>,
    over: watch::Sender<bool>,
}

impl SessionClient {
    /// Starts a client; its subscriptions and its cuts follow from the plan's seed.
    pub fn start(plan: &Plan, at: u64, server: SocketAddr, contracts: &[Address], progress: Arc<Progress>) -> Self {
        let mut rng = StdRng::seed_from_u64(plan.seed.rotate_left(28) ^ (0x5e55 + at));
        let wants = Wants::draw(at, plan.history as u64, &mut rng);
        let diary = Arc::new(Mutex::new(Diary::default()));
        let (over, ends) = watch::channel(false);
        let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - AGE;
        let subscriptions = wants.subscriptions(contracts);
        let task = Task {
            url: format!("ws://{server}/?session={made}-{:016x}", rng.random::<u64>()),
            subscriptions,
            batch: rng.random_ratio(1, 2),
            server,
            progress,
            diary: diary.clone(),
            ends,
            rng,
            cuts: 0,
            // A reorg may reach below a level of finality.
            may_lose: plan.may_lose_continuity() || wants.level() != Level::Head,
            bulky: plan.is_bulky(),
        };
        tokio::spawn(task.run());
        Self {
            wants,
            contracts: contracts.to_vec(),
            diary,
            over,
        }
    }
}

impl Consumer for SessionClient {
    fn name(&self) -> String {
        format!("session {:?}", self.wants)
    }

    fn counts(&self) -> Counts {
        self.diary.lock().counts
    }

    fn has_arrived(&self, canonical: &Canonical) -> bool {
        let diary = self.diary.lock();
        diary.subscribed
            && diary
                .state
                .differences(self.wants, &self.contracts, canonical)
                .is_empty()
    }

    fn judge(&self, canonical: &Canonical) -> Vec<String> {
        let _ = self.over.send(true);
        let diary = self.diary.lock();
        let mut faults = diary.complaints.clone();
        faults.extend(diary.state.differences(self.wants, &self.contracts, canonical));
        let selects = |log: &Log| client::selects(self.wants.kind(), &self.contracts, log);
        // Within one connection everything comes once and in order.
        for (at, (heads, logs)) in diary.connections.iter().enumerate() {
            let from = heads.iter().find_map(|delivered| match delivered {
                Delivered::Head { number, .. } => Some(*number),
                _ => None,
            });
            for (what, delivered, from) in [("heads", heads, from.unwrap_or(0)), ("logs", logs, u64::MAX)] {
                let mut record = Record {
                    name: format!("{what} of connection {at}"),
                    delivered: vec![Delivered::Subscribed {
                        heads: what == "heads",
                        logs: what == "logs",
                        from: Start::After(B256::ZERO, None),
                    }],
                };
                record.delivered.extend(delivered.iter().cloned());
                let verdict = history::check_cut(&record, canonical, selects, from);
                if !verdict.is_clean() {
                    faults.push(verdict.to_string());
                }
            }
        }
        let name = self.name();
        faults.into_iter().map(|words| format!("{name}: {words}")).collect()
    }
}

struct Task {
    url: String,
    subscriptions: Vec<(Of, Value)>,
    /// `true` if all subscriptions are made with one batch.
    batch: bool,
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
                let last = self.serve(stream).await;
                self.ended(last);
            }
            sleep(PAUSE).await;
        }
    }

    /// Drops the last event now and then, as a library does that has received it and hands it out no more: what a
    /// session sends again includes one block that it certainly received.
    fn ended(&mut self, last: Option<Last>) {
        let drops = self.rng.random_ratio(1, 3);
        let mut diary = self.diary.lock();
        diary.subscribed = false;
        match last.filter(|_| drops) {
            Some(Last::Head(hash)) => drop(diary.state.heads.remove(&hash)),
            Some(Last::Block(hash, Some(before))) => drop(diary.state.blocks.insert(hash, before)),
            Some(Last::Block(hash, None)) => drop(diary.state.blocks.remove(&hash)),
            None => {}
        }
    }

    fn complain(&self, words: String) {
        self.diary.lock().complaints.push(words);
    }

    /// Serves one connection; returns the effect of the last event, if it can be dropped alone.
    async fn serve(&mut self, stream: TcpStream) -> Option<Last> {
        let Ok((mut socket, _)) = client_async(&self.url, stream).await else {
            return None;
        };
        let request = |(id, (_, params)): (usize, &(Of, Value))| json!({"jsonrpc": "2.0", "id": id, "method": "eth_subscribe", "params": params});
        let requests: Vec<Value> = self.subscriptions.iter().enumerate().map(request).collect();
        let messages = if self.batch {
            vec![Value::Array(requests)]
        } else {
            requests
        };
        for message in messages {
            if socket.send(Message::text(message.to_string())).await.is_err() {
                // The reason may have come before.
                break;
            }
        }
        {
            let mut diary = self.diary.lock();
            diary.state.from.resize(self.subscriptions.len(), None);
            diary.connections.push(Default::default());
        }
        let mut ids: Vec<Option<String>> = vec![None; self.subscriptions.len()];
        let cut_after = if self.cuts < MAX_CUTS {
            self.rng.random_range(1..200)
        } else {
            usize::MAX
        };
        let mut messages = 0;
        let mut last = None;
        let mut ends = self.ends.clone();
        loop {
            let message = tokio::select! {
                message = socket.next() => message,
                _ = ends.changed() => return None,
            };
            messages += 1;
            match message {
                Some(Ok(Message::Text(text))) => match serde_json::from_str::<Notification<'_>>(&text) {
                    Ok(notification) => last = self.receive(&notification.params, &ids),
                    Err(_) if self.answered(&text, &mut ids) => {}
                    Err(_) => return None,
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(Some(frame)))) => {
                    self.closed(frame.code.into(), &frame.reason);
                    // The answer leaves with the next call; a program may end before.
                    if self.rng.random_ratio(3, 4) {
                        while let Some(Ok(_)) = socket.next().await {}
                    }
                    return None;
                }
                _ => return None,
            }
            if messages >= cut_after {
                // A mark that was just received is not confirmed: its pong leaves with the next call.
                self.cuts += 1;
                return last;
            }
        }
    }

    /// Takes an answer, or a batch of them; returns `false` if a subscription was refused.
    fn answered(&self, text: &str, ids: &mut [Option<String>]) -> bool {
        let Ok(answer) = serde_json::from_str::<Value>(text) else {
            self.complain(format!("no answer: {text}"));
            return false;
        };
        let answers = answer.as_array().cloned().unwrap_or_else(|| vec![answer]);
        let next = self.progress.highest.load(Ordering::Relaxed) + 1;
        for answer in answers {
            let at = answer["id"].as_u64().unwrap_or(u64::MAX) as usize;
            let (Some(slot), Some(id)) = (ids.get_mut(at), answer["result"].as_str()) else {
                let words = answer["error"]["message"].as_str().unwrap_or_default();
                if is_lost(words) {
                    self.lost(words);
                }
                return false;
            };
            *slot = Some(id.to_owned());
            let mut diary = self.diary.lock();
            diary.counts.resumed += usize::from(diary.state.from[at].is_some());
            diary.state.from[at].get_or_insert(next);
        }
        if ids.iter().all(Option::is_some) {
            let mut diary = self.diary.lock();
            diary.subscribed = true;
            diary.established = true;
        }
        true
    }

    /// Begins anew: what came before has a hole behind it.
    fn lost(&self, words: &str) {
        let mut diary = self.diary.lock();
        let is_new = !diary.established;
        if !is_new && !self.may_lose {
            diary
                .complaints
                .push(format!("closed with {words:?}, and history reaches far enough"));
        }
        diary.counts.lost += usize::from(!is_new);
        diary.state = State::default();
    }

    fn closed(&self, code: u16, reason: &str) {
        if is_lost(reason) {
            return self.lost(reason);
        }
        let is_expected = code == 1012 && !reason.contains("another connection")
            || code == 1013 && self.bulky
            || self.progress.down.load(Ordering::Relaxed);
        if !is_expected {
            self.complain(format!("closed with {code} {reason}"));
        }
    }

    /// Applies a notification; returns its effect, if a library can drop it alone.
    fn receive(&self, params: &Params<'_>, ids: &[Option<String>]) -> Option<Last> {
        let at = ids.iter().position(|id| id.as_deref() == Some(params.subscription));
        let Some((of, _)) = at.and_then(|at| self.subscriptions.get(at)) else {
            self.complain(format!("an event of no subscription: {}", params.result));
            return None;
        };
        let mut diary = self.diary.lock();
        let diary = &mut *diary;
        diary.counts.events += 1;
        let (heads, logs) = diary.connections.last_mut().expect("a connection");
        let state = &mut diary.state;
        let text = params.result.get();
        let mut repeated = false;
        let last = match of {
            Of::Heads => serde_json::from_str::<HeadShape>(text).map(|head| {
                repeated = state.heads.insert(head.hash, head.number.to()).is_some();
                heads.push(Delivered::Head {
                    number: head.number.to(),
                    hash: head.hash,
                    parent: head.parent_hash,
                });
                (!repeated && self.subscriptions.len() == 1).then_some(Last::Head(head.hash))
            }),
            Of::Logs => serde_json::from_str::<LogShape>(text).map(|shape| {
                let (block, log, removed) = (shape.block(), shape.log(), shape.removed);
                let own = (block.0, log.clone(), !removed);
                let before = state.logs.insert((block.1, log.index), own);
                repeated = before.is_some_and(|(_, _, applied)| applied != removed);
                logs.push(Delivered::Log { block, log, removed });
                None
            }),
            Of::Blocks => serde_json::from_str::<BlockShape>(text).map(|shape| {
                let own = shape.received();
                let hash = own.hash;
                let before = state.blocks.insert(hash, (own, !shape.removed));
                repeated = before.as_ref().is_some_and(|(_, applied)| *applied != shape.removed);
                (!shape.removed).then_some(Last::Block(hash, before))
            }),
        };
        diary.counts.repeated += u64::from(repeated);
        match last {
            Ok(last) => last,
            Err(error) => {
                diary
                    .complaints
                    .push(format!("an event that cannot be read ({error}): {text}"));
                None
            }
        }
    }
}

/// Checks if a reason says that events may be missing from now on.
fn is_lost(reason: &str) -> bool {
    [
        "position of this session is lost",
        "delivered as final",
        "lost upstream",
    ]
    .iter()
    .any(|words| reason.contains(words))
}
