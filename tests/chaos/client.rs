//! A client that resumes whenever its connection is lost (E9), and records all notifications.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use alloy_primitives::{Address, B256};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::chain::{CONTRACT, header, log};
use crate::history::{Canonical, Delivered, Log, Record, Start, Verdict, check, check_cut};
use crate::view::{Kinds, View};

/// Small, so that a client that stops reading soon blocks the proxy's writes.
const RECEIVE_BUFFER: u32 = 4096;
/// Time limit for the answer; the proxy itself waits up to ten seconds for a first block.
const ANSWER: Duration = Duration::from_secs(30);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Shortest and longest wait between two connections.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Minimum wait between two events that is recorded; blocks are mined more often than that.
pub const WAIT: Duration = Duration::from_millis(600);

/// `Transfer(address,address,uint256)`.
const TRANSFER: B256 = alloy_primitives::b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// `Note(bytes32,string)`.
const NOTE: B256 = alloy_primitives::b256!("65b360985453687445a7c456f6bbedbff9af3294dcd65b0fc5cc5140d337266d");

/// The logs that a client subscribes to.
#[derive(Clone, Copy, Debug)]
pub enum Wish {
    All,
    /// Transfers of the contract to receiver 1.
    Transfers,
    /// Notes of the contract.
    Notes,
    /// All logs of one address.
    Of(Address),
}

impl Wish {
    pub fn filter(self) -> Value {
        match self {
            Self::All => json!({}),
            Self::Transfers => {
                json!({"address": CONTRACT, "topics": [TRANSFER, null, B256::with_last_byte(1)]})
            }
            Self::Notes => json!({"address": CONTRACT, "topics": [NOTE]}),
            Self::Of(address) => json!({"address": address}),
        }
    }

    pub fn wants(self, log: &Log) -> bool {
        match self {
            Self::All => true,
            Self::Transfers => {
                log.address == CONTRACT
                    && log.topics.first() == Some(&TRANSFER)
                    && log.topics.get(2) == Some(&B256::with_last_byte(1))
            }
            Self::Notes => log.address == CONTRACT && log.topics.first() == Some(&NOTE),
            Self::Of(address) => log.address == address,
        }
    }
}

/// A disturbance of a client.
#[derive(Clone, Copy, Debug)]
pub enum Disturbance {
    /// Closes the connection and reconnects later.
    Away(Duration),
    /// Reads nothing for this long.
    Stall(Duration),
}

/// A client's last head and last log (block hash and log index), once received.
type Arrived = (Option<B256>, Option<(B256, u64)>);

/// A running client.
pub struct Client {
    pub name: String,
    kinds: Kinds,
    wish: Wish,
    from: u64,
    disturbances: mpsc::Sender<Disturbance>,
    arrived: watch::Receiver<Arrived>,
    running: JoinHandle<Diary>,
}

/// Long wait of a client for its next event.
#[derive(Clone, Debug)]
pub struct Wait {
    pub from: Instant,
    pub to: Instant,
    /// Ports to which the client was connected, or tried to connect.
    pub ports: Vec<u16>,
}

/// Everything that a client recorded.
#[derive(Debug, Default)]
pub struct Diary {
    /// The last record extends to the end. A client that resumes before its last block begins a new record with the
    /// events that it keeps.
    records: Vec<Record>,
    /// Number of received heads and logs.
    pub events: u64,
    /// Number of connections with a subscription.
    pub connections: u64,
    /// Number of refused resumptions, each retried from an older block; `began_anew` counts restarts from the
    /// client's first block.
    pub went_back: u64,
    pub began_anew: u64,
    /// Number of ended connections by reason.
    pub ends: BTreeMap<String, u64>,
    /// Long waits for the next event.
    pub waits: Vec<Wait>,
    /// Notifications of unknown subscriptions.
    pub strays: Vec<String>,
    /// Log of connections: time, position as record and event index, and the request or the reason for the end.
    pub story: Vec<(SystemTime, (usize, usize), String)>,
}

impl Client {
    /// Starts a client that takes these ports in turn, one for each connection.
    pub fn start(name: String, kinds: Kinds, wish: Wish, from: u64, ports: Vec<u16>) -> Self {
        let (disturbances, orders) = mpsc::channel(4);
        let (arrive, arrived) = watch::channel((None, None));
        let life = Life {
            name: name.clone(),
            kinds,
            wish,
            ports,
            view: View::new(kinds, from),
            back: 0,
            diary: Diary {
                records: vec![Record {
                    name: name.clone(),
                    delivered: Vec::new(),
                }],
                ..Diary::default()
            },
            arrive,
            heard: None,
            tried: Vec::new(),
            excused: Arc::default(),
        };
        Self {
            name,
            kinds,
            wish,
            from,
            disturbances,
            arrived,
            running: tokio::spawn(life.run(orders)),
        }
    }

    /// Returns the sender for disturbances.
    pub fn disturbances(&self) -> mpsc::Sender<Disturbance> {
        self.disturbances.clone()
    }

    /// Waits up to `patience` until the client has the last head and log of `canonical` that it subscribes to.
    pub async fn arrives(&self, canonical: &Canonical, patience: Duration) -> bool {
        let newest = canonical.blocks.last().map(|block| block.hash);
        let last = canonical.blocks.iter().rev().find_map(|block| {
            let log = block.logs.iter().rev().find(|log| self.wish.wants(log))?;
            Some((block.hash, log.index))
        });
        let mut arrived = self.arrived.clone();
        let there = arrived
            .wait_for(|(head, log)| (!self.kinds.heads || *head == newest) && (!self.kinds.logs || *log == last));
        timeout(patience, there).await.is_ok()
    }

    /// Stops the client and returns its diary.
    pub async fn stop(self) -> Ended {
        drop(self.disturbances);
        Ended {
            diary: self.running.await.expect("the client has not panicked"),
            wish: self.wish,
            from: self.from,
        }
    }
}

/// A stopped client.
pub struct Ended {
    pub diary: Diary,
    wish: Wish,
    from: u64,
}

impl Ended {
    pub fn check(&self, canonical: &Canonical) -> Verdict {
        let (last, cut) = self.diary.records.split_last().expect("there is one");
        let mut verdict = Verdict::default();
        for record in cut {
            verdict.merge(check_cut(record, canonical, |log| self.wish.wants(log), self.from));
        }
        verdict.merge(check(last, canonical, |log| self.wish.wants(log), self.from));
        verdict
    }
}

impl Diary {
    /// Writes the diary as text, one event per line.
    pub fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let mut story = self.story.iter().peekable();
        for (record, Record { delivered, .. }) in self.records.iter().enumerate() {
            for at in 0..=delivered.len() {
                while let Some((when, _, words)) = story.next_if(|(_, place, _)| *place <= (record, at)) {
                    writeln!(to, "{} {words}", humantime::format_rfc3339_millis(*when))?;
                }
                match delivered.get(at) {
                    Some(Delivered::Head { number, hash, parent }) => writeln!(to, "head {number} {hash} on {parent}")?,
                    Some(Delivered::Log { block, log, removed }) => {
                        let word = if *removed { "undo" } else { "log" };
                        writeln!(to, "{word} {} {} {}", block.0, block.1, log.index)?;
                    }
                    Some(Delivered::Subscribed { .. }) => writeln!(to, "subscribed in record {record}")?,
                    None => {}
                }
            }
        }
        Ok(())
    }
}

struct Life {
    name: String,
    kinds: Kinds,
    wish: Wish,
    ports: Vec<u16>,
    view: View,
    /// Number of blocks before the last one at which the next subscription resumes.
    back: usize,
    diary: Diary,
    arrive: watch::Sender<Arrived>,
    /// Time of the last event.
    heard: Option<Instant>,
    /// Ports since the last event: the one from which it came, and those of later connections.
    tried: Vec<u16>,
    /// `true` if the client itself causes the current wait.
    excused: Arc<AtomicBool>,
}

/// Reason for the end of a connection.
enum End {
    /// The proxy answered `cannot resume`.
    Refused,
    Lost(String),
}

impl Life {
    async fn run(mut self, mut orders: mpsc::Receiver<Disturbance>) -> Diary {
        loop {
            let excused = self.excused.clone();
            let away = {
                let mut life = std::pin::pin!(self.live());
                loop {
                    let order = tokio::select! {
                        biased;
                        order = orders.recv() => order,
                        () = &mut life => unreachable!("it goes on until it is delivered otherwise"),
                    };
                    excused.store(true, Ordering::SeqCst);
                    match order {
                        // The connection stays open, but is not read.
                        Some(Disturbance::Stall(duration)) => sleep(duration).await,
                        Some(Disturbance::Away(duration)) => break Some(duration),
                        None => break None,
                    }
                }
            };
            let Some(away) = away else { return self.diary };
            self.lost("it went away");
            sleep(away).await;
        }
    }

    async fn live(&mut self) {
        let mut wait = BACKOFF.0;
        loop {
            let before = self.diary.events;
            match self.connection().await {
                End::Refused => {
                    self.story(format!("refused, {} back", self.back));
                    self.diary.went_back += 1;
                    self.back = (2 * self.back).max(1);
                }
                End::Lost(why) => self.lost(&why),
            }
            wait = if self.diary.events > before {
                BACKOFF.0
            } else {
                (wait * 2).min(BACKOFF.1)
            };
            sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }

    fn lost(&mut self, why: &str) {
        *self.diary.ends.entry(why.to_owned()).or_default() += 1;
        self.story(format!("lost: {why}"));
        let (rest, heads) = self.view.take_back();
        self.note(rest);
        if heads {
            self.begin_record();
        }
    }

    /// Begins a record with the events that the client keeps.
    fn begin_record(&mut self) {
        self.diary.records.push(Record {
            name: self.name.clone(),
            delivered: Vec::new(),
        });
        let Kinds { heads, logs } = self.kinds;
        let from = Start::Live;
        self.note([Delivered::Subscribed { heads, logs, from }]);
        self.note(self.view.record());
    }

    fn story(&mut self, words: String) {
        let records = &self.diary.records;
        let place = (records.len() - 1, records[records.len() - 1].delivered.len());
        self.diary.story.push((SystemTime::now(), place, words));
    }

    fn note(&mut self, delivered: impl IntoIterator<Item = Delivered>) {
        let record = self.diary.records.last_mut().expect("there is always one");
        record.delivered.extend(delivered);
    }

    /// Runs one connection until it ends.
    async fn connection(&mut self) -> End {
        self.ports.rotate_left(1);
        self.tried.push(self.ports[0]);
        let mut socket = match timeout(HANDSHAKE, connect(self.ports[0])).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(())) => return End::Lost("refused".into()),
            Err(_) => return End::Lost("no handshake".into()),
        };
        let subscribed = match timeout(ANSWER, self.subscribe(&mut socket)).await {
            Ok(Ok(subscribed)) => subscribed,
            Ok(Err(end)) => return end,
            Err(_) => return End::Lost("no answer".into()),
        };
        loop {
            match read(&mut socket).await {
                Ok(message) => self.event(&message, &subscribed),
                Err(why) => return End::Lost(why),
            }
        }
    }

    /// Sends all subscriptions in one batch and returns their ids.
    async fn subscribe(&mut self, socket: &mut WebSocketStream<TcpStream>) -> Result<Vec<String>, End> {
        let place = self.view.place(self.back);
        let mut batch = Vec::new();
        let mut from = place.logs;
        if self.kinds.heads {
            batch.push(json!(["newHeads", options(place.heads)]));
            from = place.heads;
        }
        if self.kinds.logs {
            batch.push(json!(["logs", self.wish.filter(), options(place.logs)]));
        }
        let batch: Vec<Value> = (1..)
            .zip(batch)
            .map(|(id, params)| json!({"jsonrpc": "2.0", "id": id, "method": "eth_subscribe", "params": params}))
            .collect();
        let text = Value::from(batch).to_string();
        let sent = socket.send(Message::text(text)).await;
        sent.map_err(|_| End::Lost("reset".into()))?;
        let answers = loop {
            match read(socket).await.map_err(End::Lost)? {
                Value::Array(answers) => break answers,
                other => self.diary.strays.push(format!("before the answer: {other}")),
            }
        };
        if let Some(error) = answers.iter().find_map(|answer| answer.get("error")) {
            let refused = error["code"] == -32001 && error["message"].as_str().unwrap().starts_with("cannot resume");
            return Err(match refused {
                true => End::Refused,
                false => End::Lost(format!("error {error}")),
            });
        }
        if let Some(number) = place.keep {
            self.diary.began_anew += u64::from(matches!(place.heads, Start::FromBlock(_)));
            self.view.keep(number);
            self.begin_record();
        }
        self.story(format!("subscribed, {} back: {place:?}", self.back));
        self.back = 0;
        self.diary.connections += 1;
        let Kinds { heads, logs } = self.kinds;
        self.note([Delivered::Subscribed { heads, logs, from }]);
        let id = |answer: &Value| answer["result"].as_str().expect("an id").to_owned();
        Ok(answers.iter().map(id).collect())
    }

    fn event(&mut self, message: &Value, subscribed: &[String]) {
        let params = &message["params"];
        let ours = params["subscription"]
            .as_str()
            .is_some_and(|id| subscribed.iter().any(|own| own == id));
        if !ours {
            return self.diary.strays.push(message.to_string());
        }
        self.diary.events += 1;
        let now = Instant::now();
        let before = self.heard.replace(now);
        let excused = self.excused.swap(false, Ordering::SeqCst);
        if let Some(before) = before.filter(|before| self.kinds.heads && !excused && now - *before > WAIT) {
            self.diary.waits.push(Wait {
                from: before,
                to: now,
                ports: self.tried.clone(),
            });
        }
        self.tried.clear();
        self.tried.push(self.ports[0]);
        let result = &params["result"];
        let delivered = if result.get("parentHash").is_some() {
            let (number, hash, parent) = header(result);
            Delivered::Head { number, hash, parent }
        } else {
            let (block, log) = log(result);
            let removed = result["removed"] == true;
            Delivered::Log { block, log, removed }
        };
        match &delivered {
            Delivered::Log {
                block,
                log,
                removed: true,
            } => self.view.removed(*block, log),
            delivered => self.view.delivered(delivered),
        }
        self.note([delivered]);
        let head = self.view.last_head().map(|(_, hash)| hash);
        self.arrive.send_replace((head, self.view.last_log()));
    }
}

fn options(start: Start) -> Value {
    match start {
        Start::Live => Value::Null,
        Start::After(block, None) => json!({"after": {"blockHash": block}}),
        Start::After(block, Some(index)) => json!({"after": {"blockHash": block, "logIndex": format!("{index:#x}")}}),
        Start::FromBlock(number) => json!({"fromBlock": format!("{number:#x}")}),
    }
}

async fn connect(port: u16) -> Result<WebSocketStream<TcpStream>, ()> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
    let stream = socket.connect(([127, 0, 0, 1], port).into()).await.map_err(drop)?;
    let (socket, _) = client_async(format!("ws://127.0.0.1:{port}/"), stream)
        .await
        .map_err(drop)?;
    Ok(socket)
}

async fn read(socket: &mut WebSocketStream<TcpStream>) -> Result<Value, String> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("JSON")),
            Some(Ok(Message::Close(Some(frame)))) => return Err(format!("{} {}", u16::from(frame.code), frame.reason)),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err("reset".into()),
        }
    }
}
