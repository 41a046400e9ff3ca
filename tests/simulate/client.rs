//! A client that writes down what it is told, comes back when its connection is gone, and goes on where it was.

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
use crate::history::{Log, Record, Start, Told};
use crate::plan::{Kind, Plan, Selection};

/// How long a client waits before it comes back.
const PAUSE: Duration = Duration::from_millis(200);

/// A client's socket takes little, so that one that does not read is soon felt. Not less: below the size of loopback's
/// packets TCP waits for real timers.
const RECEIVE_BUFFER: u32 = 128 << 10;

/// What a client is told to do.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    Break,
    Hang(Duration),
}

/// A client from outside.
pub struct Client {
    pub name: String,
    pub kind: Kind,
    commands: mpsc::UnboundedSender<Command>,
    diary: Arc<Mutex<Diary>>,
}

/// What a client wrote down.
#[derive(Clone, Debug, Default)]
pub struct Diary {
    /// Records that ended, and the first block that each must cover.
    pub ended: Vec<(Record, u64)>,
    /// The one that goes on, and whether a connection serves it now.
    pub current: Option<(Record, u64)>,
    pub subscribed: bool,
    /// How many blocks there were when the present connection began.
    pub since: u64,
    pub events: u64,
    pub last_head: Option<B256>,
    /// Close codes in order.
    pub closed: Vec<u16>,
    /// How often it went on where it was.
    pub resumed: usize,
    /// Blocks that it asked for behind their heads, and got.
    pub asked: u64,
    /// What no client should ever see.
    pub complaints: Vec<String>,
    /// Whether it ever stopped reading, which is the one reason to be closed as too slow.
    hung: bool,
    /// Events before the connection that there is now.
    before: u64,
}

impl Diary {
    /// Whether the present connection brought no event.
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
        // One that is being closed for a complaint is gone.
        let _ = self.commands.send(command);
    }

    /// What it wrote down so far.
    pub fn diary(&self) -> Diary {
        self.diary.lock().clone()
    }

    pub fn look<T>(&self, look: impl FnOnce(&Diary) -> T) -> T {
        look(&self.diary.lock())
    }
}

/// What a filter selects, as the model understands it.
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

fn transfer() -> B256 {
    static TOPIC: LazyLock<B256> = LazyLock::new(|| keccak256("Transfer(address,address,uint256)"));
    *TOPIC
}

/// A log as the checker compares it. Keccak over all data would be most of the time of a simulation.
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

/// The same for the server; `None` where logs are not wanted.
fn filter(kind: Kind, contracts: &[Address]) -> Option<Value> {
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
    /// A deep reorg alone may be more than the queue holds.
    bulky: bool,
    /// How many blocks before the newest it starts; live without.
    behind: Option<u64>,
    /// Whether it goes on where it was; else every connection is a record of its own.
    resumes: bool,
    /// Whether a number may have no block, which is then answered with the one before or none.
    holes: bool,
}

/// Where a client stands: what it needs to go on from there.
#[derive(Default)]
struct Place {
    head: Option<B256>,
    /// The logs that stand.
    logs: Vec<((u64, B256), Log)>,
    /// The lowest block that it was told anything of.
    lowest: Option<u64>,
    /// Removals were told last, and what stands from here on is about to be undone as well: the oldest comes first.
    undoing: Option<usize>,
}

/// Why a connection ended.
enum End {
    Broken,
    Closed(u16),
    /// The server does not go on from where the client stands.
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
                // The server found out later that it cannot go on from there.
                End::Closed(1012) if self.diary.lock().told_nothing() => self.start_afresh(),
                End::Broken | End::Closed(_) => {
                    self.forget_undone();
                    // With heads and no log there is no place that means the same for both: after the last head might
                    // skip its logs, and from a number might skip what a reorg below it brings.
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

    /// After a removal everything that stood above it is gone too, told or not.
    fn forget_undone(&mut self) {
        if let Some(at) = self.place.undoing.take() {
            let undone = self.place.logs.drain(at..).map(|(block, log)| Told::Log {
                block,
                log,
                removed: true,
            });
            if let Some((record, _)) = &mut self.diary.lock().current {
                record.told.extend(undone);
            }
        }
    }

    async fn connect(&self) -> Result<Socket, Box<dyn std::error::Error + Send + Sync>> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        let stream = socket.connect(self.server).await?;
        Ok(client_async(format!("ws://{}", self.server), stream).await?.0)
    }

    /// The subscriptions in one message, and where they start.
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
                                None => self.told(&text, ids).map(|number| (number, 0)),
                            };
                            // One that stops reading may not be written to for a while.
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
                        // It may not have read the close frame: what it did not read in time is gone.
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
            told: Vec::new(),
        };
        let (record, _) = diary.current.get_or_insert_with(|| (record(), next));
        record.told.push(Told::Subscribed {
            heads: self.wants_heads(),
            logs: self.filter.is_some(),
            from: start,
        });
    }

    /// Whoever is told of a head asks for its block, as viem does; what comes may not contradict itself. Which block to ask
    /// for once more: between the two halves of an answer the chain may have changed.
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

    /// The number of the head, where it was one.
    fn told(&mut self, text: &str, [heads, logs]: &[Option<String>; 2]) -> Option<u64> {
        let notification = match serde_json::from_str::<Notification<'_>>(text) {
            Ok(notification) => notification.params,
            Err(error) => {
                self.complain(format!("no notification ({error}): {text}"));
                return None;
            }
        };
        let told = if Some(notification.subscription) == heads.as_deref() {
            serde_json::from_str(notification.result.get()).map(|head: HeadShape| {
                self.place.head = Some(head.hash);
                self.place.undoing = None;
                Told::Head {
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
        match told {
            Ok(told) => {
                let number = match &told {
                    Told::Head { number, .. } => Some(*number),
                    _ => None,
                };
                let mut diary = self.diary.lock();
                diary.events += 1;
                diary.last_head = self.place.head;
                if let Some((record, _)) = &mut diary.current {
                    record.told.push(told);
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

/// The block of this number, and the newest number.
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
    /// There is no such block, although the newest is not below it; or it is another one.
    contradicts_itself: bool,
}

/// `None` where it is none. Where there is no node, an answer may be an error: that says nothing.
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
    fn log(&mut self, shape: LogShape) -> Told {
        let block = (shape.block_number.to(), shape.block_hash);
        let log = log(shape.log_index.to(), shape.address, &shape.topics, &shape.data);
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
        Told::Log {
            block,
            log,
            removed: shape.removed,
        }
    }
}

/// The ids by kind; `None` where this is no answer, the error where one is refused.
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
struct Notification<'a> {
    #[serde(borrow)]
    params: Params<'a>,
}

#[derive(Deserialize)]
struct Params<'a> {
    subscription: &'a str,
    #[serde(borrow)]
    result: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadShape {
    number: U64,
    hash: B256,
    parent_hash: B256,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogShape {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
    block_number: U64,
    block_hash: B256,
    log_index: U64,
    removed: bool,
}
