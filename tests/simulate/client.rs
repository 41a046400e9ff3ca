//! A client that records all events, reconnects after a lost connection, and resumes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, U64, keccak256};
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::fleet::Progress;
use crate::history::{Delivered, Log, Record, Start};
use crate::plan::{Kind, Plan, Selection};

/// Pause of a client before it reconnects.
const PAUSE: Duration = Duration::from_millis(200);

/// Small, so that a client that stops reading soon blocks the proxy's writes. With less than the size of loopback's
/// packets, TCP would wait for real timers.
const RECEIVE_BUFFER: u32 = 128 << 10;

/// A command to a client.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    Break,
    Hang(Duration),
}

/// Handle of a running client.
pub struct Client {
    pub name: String,
    pub kind: Kind,
    commands: mpsc::UnboundedSender<Command>,
    diary: Arc<Mutex<Diary>>,
}

/// Everything that a client recorded.
#[derive(Clone, Debug, Default)]
pub struct Diary {
    /// Completed records, each with the number of the first block that it must cover.
    pub ended: Vec<(Record, u64)>,
    /// The current record with its first block; `subscribed` is `true` while a connection serves it.
    pub current: Option<(Record, u64)>,
    pub subscribed: bool,
    /// Number of blocks made before the current connection began.
    pub since: u64,
    pub events: u64,
    pub last_head: Option<B256>,
    /// Close codes in order.
    pub closed: Vec<u16>,
    /// Number of connections with a requested start.
    pub resumed: usize,
    /// Number of blocks requested after their heads, and received.
    pub asked: u64,
    /// Descriptions of events that no client may see.
    pub complaints: Vec<String>,
    /// `true` if the client ever stopped reading, the only permitted reason for being closed as too slow.
    hung: bool,
    /// Number of events before the current connection.
    before: u64,
}

impl Diary {
    /// Returns `true` if the current connection delivered no event.
    fn told_nothing(&self) -> bool {
        self.events == self.before
    }
}

impl Client {
    pub fn start(
        client: usize,
        server: SocketAddr,
        contracts: &[Address],
        progress: Arc<Progress>,
        plan: &Plan,
    ) -> Self {
        let kind = plan.clients[client];
        let name = format!("client {client} {kind:?}");
        let (commands, orders) = mpsc::unbounded_channel();
        let diary = Arc::new(Mutex::new(Diary::default()));
        let task = Task {
            name: name.clone(),
            kind,
            filter: filter(kind, contracts),
            server,
            progress,
            orders,
            diary: diary.clone(),
            place: Place::default(),
            bulky: plan.is_bulky(),
            behind: plan.behind[client],
            resumes: plan.resumes,
            holes: plan.features.holes.is_some(),
        };
        tokio::spawn(task.run());
        Self {
            name,
            kind,
            commands,
            diary,
        }
    }

    pub fn command(&self, command: Command) {
        // A closed client has no receiver any more.
        let _ = self.commands.send(command);
    }

    /// Returns a copy of the records so far.
    pub fn diary(&self) -> Diary {
        self.diary.lock().clone()
    }

    pub fn look<T>(&self, look: impl FnOnce(&Diary) -> T) -> T {
        look(&self.diary.lock())
    }
}

/// Checks if a filter matches a log, by the model of the simulation.
pub fn selects(kind: Kind, contracts: &[Address], log: &Log) -> bool {
    match kind {
        Kind::Heads => false,
        Kind::Logs(selection) | Kind::Both(selection) => match selection {
            Selection::All => true,
            Selection::Contracts(count) => contracts[..count].contains(&log.address),
            Selection::Transfers => log.topics[0] == transfer(),
        },
    }
}

pub fn transfer() -> B256 {
    static TOPIC: LazyLock<B256> = LazyLock::new(|| keccak256("Transfer(address,address,uint256)"));
    *TOPIC
}

/// Returns a log in the form of the checker. Keccak over all data would dominate the time of a simulation.
pub fn log(index: u64, address: Address, topics: &[B256], data: &[u8]) -> Log {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    Log {
        index,
        address,
        topics: topics.to_vec(),
        data: B256::left_padding_from(&hasher.finish().to_be_bytes()),
    }
}

/// Returns the same filter in the server's form; `None` if the client does not subscribe to logs.
pub fn filter(kind: Kind, contracts: &[Address]) -> Option<Value> {
    match kind {
        Kind::Heads => None,
        Kind::Logs(selection) | Kind::Both(selection) => Some(match selection {
            Selection::All => json!({}),
            Selection::Contracts(count) => json!({"address": &contracts[..count]}),
            Selection::Transfers => json!({"topics": [[transfer()]]}),
        }),
    }
}

struct Task {
    name: String,
    kind: Kind,
    filter: Option<Value>,
    server: SocketAddr,
    progress: Arc<Progress>,
    orders: mpsc::UnboundedReceiver<Command>,
    diary: Arc<Mutex<Diary>>,
    place: Place,
    /// `true` if a single deep reorg may exceed the queue limit.
    bulky: bool,
    /// Number of blocks before the newest at which the client starts; `None` starts live.
    behind: Option<u64>,
    /// `true` if the client resumes after a lost connection; otherwise every connection is a record of its own.
    resumes: bool,
    /// `true` if numbers may have no block; a node then answers with the block before, or none.
    holes: bool,
}

/// The client's position for resuming.
#[derive(Default)]
struct Place {
    head: Option<B256>,
    /// Current logs: delivered and not removed.
    logs: Vec<((u64, B256), Log)>,
    /// Lowest block number of any delivered log.
    lowest: Option<u64>,
    /// Set after removals: the logs from this index on are about to be removed too, because the oldest is removed
    /// first.
    undoing: Option<usize>,
}

/// Reason for the end of a connection.
enum End {
    Broken,
    Closed(u16),
    /// The server cannot resume from the client's position.
    Refused,
    /// The simulation is over.
    Over,
}

type Socket = WebSocketStream<TcpStream>;

impl Task {
    async fn run(mut self) {
        loop {
            let end = match self.connect().await {
                Ok(socket) => self.serve(socket).await,
                Err(error) => {
                    if !self.progress.down.load(Ordering::Relaxed) {
                        self.complain(format!("cannot connect: {error}"));
                    }
                    End::Broken
                }
            };
            self.diary.lock().subscribed = false;
            match end {
                End::Over => return,
                End::Refused => self.start_afresh(),
                _ if !self.resumes => self.start_afresh(),
                // The server found out later that it cannot resume from that position.
                End::Closed(1012) if self.diary.lock().told_nothing() => self.start_afresh(),
                End::Broken | End::Closed(_) => {
                    self.forget_undone();
                    // With heads and no log, no position means the same for both: resuming after the last head might
                    // skip its logs, and resuming from a number might skip the events of a reorg below it.
                    if matches!(self.kind, Kind::Both(_)) && self.place.logs.is_empty() {
                        self.start_afresh();
                    }
                }
            }
            if let End::Closed(code) = end {
                let mut diary = self.diary.lock();
                diary.closed.push(code);
                let expected = code == 1012 || code == 1013 && (diary.hung || self.bulky);
                drop(diary);
                if !expected {
                    self.complain(format!("closed with {code}"));
                }
            }
            sleep(PAUSE).await;
        }
    }

    fn complain(&self, words: String) {
        self.diary.lock().complaints.push(format!("{}: {words}", self.name));
    }

    fn start_afresh(&mut self) {
        let mut diary = self.diary.lock();
        let ended = diary.current.take();
        diary.ended.extend(ended);
        self.place = Place::default();
    }

    /// Completes the removals: after a removal, all later logs are dropped too, even if their removals were not
    /// delivered.
    fn forget_undone(&mut self) {
        if let Some(at) = self.place.undoing.take() {
            let undone = self.place.logs.drain(at..).map(|(block, log)| Delivered::Log {
                block,
                log,
                removed: true,
            });
            if let Some((record, _)) = &mut self.diary.lock().current {
                record.delivered.extend(undone);
            }
        }
    }

    async fn connect(&self) -> Result<Socket, Box<dyn std::error::Error + Send + Sync>> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        let stream = socket.connect(self.server).await?;
        Ok(client_async(format!("ws://{}", self.server), stream).await?.0)
    }

    /// Builds the batch of subscriptions; returns it with the requested start.
    fn request(&self) -> (Value, Start) {
        let from = self.diary.lock().current.as_ref().map(|(_, from)| *from);
        let first = self
            .behind
            .map(|blocks| self.progress.highest.load(Ordering::Relaxed).saturating_sub(blocks));
        let from = from
            .or(first)
            .map(|from| self.place.lowest.map_or(from, |lowest| lowest.min(from)));
        let after_head = |from| match self.place.head {
            Some(hash) => (json!({"after": {"blockHash": hash}}), Start::After(hash, None)),
            None => (json!({"fromBlock": format!("{from:#x}")}), Start::FromBlock(from)),
        };
        let after_log = |from| match self.place.logs.last() {
            Some(((_, hash), log)) => {
                let after = json!({"after": {"blockHash": hash, "logIndex": format!("{:#x}", log.index)}});
                (after, Start::After(*hash, Some(log.index)))
            }
            None => (json!({"fromBlock": format!("{from:#x}")}), Start::FromBlock(from)),
        };
        let mut start = Start::Live;
        let mut subscriptions = Vec::new();
        if self.wants_heads() {
            let mut params = vec![json!("newHeads")];
            if let Some((options, at)) = from.map(after_head) {
                (start, _) = (at, params.push(options));
            }
            subscriptions.push(json!({"jsonrpc": "2.0", "id": 0, "method": "eth_subscribe", "params": params}));
        }
        if let Some(filter) = &self.filter {
            let mut params = vec![json!("logs"), filter.clone()];
            if let Some((options, at)) = from.map(after_log) {
                (start, _) = (at, params.push(options));
            }
            subscriptions.push(json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": params}));
        }
        (Value::Array(subscriptions), start)
    }

    fn wants_heads(&self) -> bool {
        !matches!(self.kind, Kind::Logs(_))
    }

    async fn serve(&mut self, mut socket: Socket) -> End {
        let (request, start) = self.request();
        if socket.send(Message::text(request.to_string())).await.is_err() {
            return End::Broken;
        }
        let mut ids: Option<[Option<String>; 2]> = None;
        let mut deaf_until = Instant::now();
        loop {
            let deaf = deaf_until > Instant::now();
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Command::Break) => return End::Broken,
                    Some(Command::Hang(span)) => {
                        self.diary.lock().hung = true;
                        deaf_until = Instant::now() + span;
                    }
                    None => return End::Over,
                },
                () = sleep_until(deaf_until), if deaf => {}
                message = socket.next(), if !deaf => match message {
                    Some(Ok(Message::Text(text))) => match &ids {
                        None => match answers(&text) {
                            Ok(Some(answered)) => {
                                ids = Some(answered);
                                self.subscribed(start);
                            }
                            Ok(None) => self.complain(format!("no answer to a subscription: {text}")),
                            Err(error) => {
                                if start == Start::Live && !self.progress.down.load(Ordering::Relaxed) {
                                    self.complain(format!("a live subscription was refused: {error}"));
                                }
                                return End::Refused;
                            }
                        },
                        Some(ids) => {
                            let asks = match asked(&text, self.holes) {
                                Some(answer) => self.answered(&answer),
                                None => self.delivered(&text, ids).map(|number| (number, 0)),
                            };
                            // The server may not accept writes for a while if this client stops reading.
                            if let Some((number, again)) = asks
                                && socket.send(Message::text(question(number, again))).await.is_err()
                            {
                                return End::Broken;
                            }
                        }
                    },
                    Some(Ok(Message::Close(Some(frame)))) => return End::Closed(frame.code.into()),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => {
                        // The client may not have read the close frame: data not read in time is lost.
                        if !self.diary.lock().hung && !self.progress.down.load(Ordering::Relaxed) {
                            self.complain(format!("the connection ended without a reason: {other:?}"));
                        }
                        return End::Broken;
                    }
                },
            }
        }
    }

    fn subscribed(&mut self, start: Start) {
        let mut diary = self.diary.lock();
        diary.subscribed = true;
        diary.before = diary.events;
        diary.resumed += usize::from(start != Start::Live);
        diary.since = self.progress.blocks.load(Ordering::Relaxed);
        let next = match start {
            Start::FromBlock(number) => number,
            _ => self.progress.highest.load(Ordering::Relaxed) + 1,
        };
        let number = diary.ended.len();
        let record = || Record {
            name: format!("{} ({number})", self.name),
            delivered: Vec::new(),
        };
        let (record, _) = diary.current.get_or_insert_with(|| (record(), next));
        record.delivered.push(Delivered::Subscribed {
            heads: self.wants_heads(),
            logs: self.filter.is_some(),
            from: start,
        });
    }

    /// Checks the answer to a request for the block of a head, as viem sends it, for contradictions. Returns number
    /// and attempt for another request: the chain may change between the two halves of an answer.
    fn answered(&mut self, answer: &Asked) -> Option<(u64, u64)> {
        let (number, again) = (answer.number, answer.again);
        self.diary.lock().asked += u64::from(answer.got);
        if !answer.contradicts_itself {
            return None;
        }
        if again < 3 {
            return Some((number, again + 1));
        }
        self.complain(format!("block {number} is not there, and the newest is higher"));
        None
    }

    /// Records a notification; returns the block number if it is a head.
    fn delivered(&mut self, text: &str, [heads, logs]: &[Option<String>; 2]) -> Option<u64> {
        let notification = match serde_json::from_str::<Notification<'_>>(text) {
            Ok(notification) => notification.params,
            Err(error) => {
                self.complain(format!("no notification ({error}): {text}"));
                return None;
            }
        };
        let delivered = if Some(notification.subscription) == heads.as_deref() {
            serde_json::from_str(notification.result.get()).map(|head: HeadShape| {
                self.place.head = Some(head.hash);
                self.place.undoing = None;
                Delivered::Head {
                    number: head.number.to(),
                    hash: head.hash,
                    parent: head.parent_hash,
                }
            })
        } else if Some(notification.subscription) == logs.as_deref() {
            serde_json::from_str(notification.result.get()).map(|log: LogShape| self.place.log(log))
        } else {
            self.complain(format!("an event of no subscription: {text}"));
            return None;
        };
        match delivered {
            Ok(delivered) => {
                let number = match &delivered {
                    Delivered::Head { number, .. } => Some(*number),
                    _ => None,
                };
                let mut diary = self.diary.lock();
                diary.events += 1;
                diary.last_head = self.place.head;
                if let Some((record, _)) = &mut diary.current {
                    record.delivered.push(delivered);
                }
                number
            }
            Err(error) => {
                self.complain(format!("an event that cannot be read ({error}): {text}"));
                None
            }
        }
    }
}

/// Builds a batch that requests the block of this number, and the newest block number.
fn question(number: u64, again: u64) -> String {
    let id = |half: u64| 100 + 8 * number + 2 * again + half;
    json!([
        {"jsonrpc": "2.0", "id": id(0), "method": "eth_getBlockByNumber", "params": [format!("{number:#x}"), false]},
        {"jsonrpc": "2.0", "id": id(1), "method": "eth_blockNumber"},
    ])
    .to_string()
}

/// An answer to [`question`].
struct Asked {
    number: u64,
    again: u64,
    got: bool,
    /// `true` if there is no such block although the newest number is not lower, or if the block has another number.
    contradicts_itself: bool,
}

/// Parses the answer; `None` if `text` is not one. Errors are no contradiction, since there may be no node.
fn asked(text: &str, holes: bool) -> Option<Asked> {
    #[derive(Deserialize)]
    struct Answer<T> {
        id: u64,
        #[serde(default = "Option::default")]
        result: Option<T>,
        error: Option<Value>,
    }
    #[derive(Deserialize)]
    struct Block {
        number: U64,
    }
    let (block, newest): (Answer<Block>, Answer<U64>) = serde_json::from_str(text).ok()?;
    let (number, again) = ((block.id - 100) / 8, (block.id - 100) % 8 / 2);
    let got = block.result.map(|block| block.number.to::<u64>());
    let newest = newest.result.map(|newest| newest.to::<u64>());
    let contradicts_itself = match (got, &block.error, newest) {
        (Some(got), _, _) if holes => got > number,
        (None, ..) if holes => false,
        (Some(got), _, _) => got != number,
        (None, None, Some(newest)) => newest >= number,
        _ => false,
    };
    Some(Asked {
        number,
        again,
        got: got == Some(number),
        contradicts_itself,
    })
}

impl Place {
    fn log(&mut self, shape: LogShape) -> Delivered {
        let (block, log) = (shape.block(), shape.log());
        self.lowest = Some(self.lowest.map_or(block.0, |lowest| lowest.min(block.0)));
        if shape.removed {
            let at = self
                .logs
                .iter()
                .rposition(|(other, known)| *other == block && known.index == log.index);
            if let Some(at) = at {
                self.logs.remove(at);
                self.undoing = Some(at);
            }
        } else {
            self.undoing = None;
            self.logs.push((block, log.clone()));
        }
        Delivered::Log {
            block,
            log,
            removed: shape.removed,
        }
    }
}

/// Returns the subscription ids by kind; `None` if this is not an answer, and the error if a subscription was
/// refused.
fn answers(text: &str) -> Result<Option<[Option<String>; 2]>, String> {
    #[derive(Deserialize)]
    struct Answer {
        id: usize,
        result: Option<String>,
        error: Option<Value>,
    }
    let Ok(answers) = serde_json::from_str::<Vec<Answer>>(text) else {
        return Ok(None);
    };
    let mut ids = [None, None];
    for answer in answers {
        if let Some(error) = answer.error {
            return Err(error.to_string());
        }
        ids[answer.id] = answer.result;
    }
    Ok(Some(ids))
}

#[derive(Deserialize)]
pub struct Notification<'a> {
    #[serde(borrow)]
    pub params: Params<'a>,
}

#[derive(Deserialize)]
pub struct Params<'a> {
    pub subscription: &'a str,
    #[serde(borrow)]
    pub result: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeadShape {
    pub number: U64,
    pub hash: B256,
    pub parent_hash: B256,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogShape {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
    block_number: U64,
    block_hash: B256,
    log_index: U64,
    pub removed: bool,
}

impl LogShape {
    /// Returns number and hash of the log's block.
    pub fn block(&self) -> (u64, B256) {
        (self.block_number.to(), self.block_hash)
    }

    /// Returns the log in the form of the checker.
    pub fn log(&self) -> Log {
        log(self.log_index.to(), self.address, &self.topics, &self.data)
    }
}
