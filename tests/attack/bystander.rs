//! Bystander: a client of another address that does what clients do and must not notice the attack. It follows heads
//! and logs, makes ten calls a second, and sends a transaction and resumes once a second.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alloy_consensus::crypto::secp256k1::sign_message;
use alloy_consensus::{SignableTransaction, TxEip1559};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, TxKind, U256, hex};
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::node::quantity;
use crate::peer::{connect, request};

/// Last byte of its address, 127.0.0.9; no attacker has it.
const ADDRESS: u8 = 9;
const CALLS: Duration = Duration::from_millis(100);
const TRANSACTIONS: Duration = Duration::from_secs(1);
const RESUMES: Duration = Duration::from_secs(1);
/// Timeout of its admission and its first head.
const START: Duration = Duration::from_secs(30);

/// Ids of the subscribe requests; those of calls follow.
const HEADS: u64 = 1;
const LOGS: u64 = 2;
const FIRST_CALL: u64 = 10;

/// Part of the row in which something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Before,
    During,
    /// No more calls are made; outstanding answers and events still arrive, up to the head of this number.
    After(u64),
}

/// A head that was received.
#[derive(Clone, Debug)]
pub struct Head {
    pub number: u64,
    pub hash: B256,
    pub at: Instant,
    pub during: bool,
}

/// Record of all that the bystander saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub heads: Vec<Head>,
    /// Logs by the hash of their block.
    pub logs: HashMap<B256, usize>,
    /// Times of calls and transactions, before the attack and during it.
    pub calls: [Vec<Duration>; 2],
    /// Times of resumes, until their first event.
    pub resumes: [Vec<Duration>; 2],
    /// Calls, transactions and resumes that failed, with what was said.
    pub failures: Vec<String>,
    /// Connections that ended.
    pub closed: Vec<String>,
}

pub struct Bystander {
    seen: Arc<Mutex<Seen>>,
    phase: watch::Sender<Phase>,
    running: JoinHandle<()>,
    patience: Duration,
}

type Socket = WebSocketStream<TcpStream>;

impl Bystander {
    /// Connects and subscribes. `transactions`: the node accepts those of an account without money. An answer that
    /// takes longer than `patience` counts as failed.
    pub async fn join(address: SocketAddr, transactions: bool, patience: Duration) -> Result<Self, String> {
        let mut events = open(address).await?;
        for (id, kind) in [(LOGS, json!(["logs", {}])), (HEADS, json!(["newHeads"]))] {
            say(&mut events, request(id as usize, "eth_subscribe", &kind)).await?;
        }
        let resumes = open(address).await?;
        let (phase, phases) = watch::channel(Phase::Before);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watcher = Watcher {
            socket: events,
            phases: phases.clone(),
            seen: seen.clone(),
            asked: HashMap::new(),
            next_id: FIRST_CALL,
            sender: transactions.then(Sender::new),
            kinds: HashMap::new(),
            patience,
        };
        let resumer = resume_again_and_again(resumes, phases, seen.clone(), patience);
        let running = tokio::spawn(async move {
            tokio::join!(watcher.run(), resumer);
        });
        let bystander = Self {
            seen,
            phase,
            running,
            patience,
        };
        // The first head shows that it is subscribed.
        let first = async {
            while bystander.seen.lock().heads.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(START, first).await.map_err(|_| "the bystander gets no head")?;
        Ok(bystander)
    }

    pub fn attack_begins(&self) {
        self.phase.send_replace(Phase::During);
    }

    /// Returns its record, once the head of this number and its logs have arrived or are overdue.
    pub async fn leave(self, last: u64) -> Seen {
        self.phase.send_replace(Phase::After(last));
        let Self {
            seen,
            running,
            patience,
            ..
        } = self;
        if let Ok(Err(error)) = timeout(patience * 2, running).await {
            seen.lock().failures.push(format!("the bystander panicked: {error}"));
        }
        let seen = seen.lock();
        seen.clone()
    }
}

async fn open(address: SocketAddr) -> Result<Socket, String> {
    let opening = async {
        let stream = connect(address, ADDRESS, None).await.map_err(|why| why.to_string())?;
        let upgraded = client_async(format!("ws://{address}"), stream).await;
        upgraded.map(|(socket, _)| socket).map_err(|why| why.to_string())
    };
    timeout(START, opening).await.map_err(|_| "no upgrade in time")?
}

async fn say(socket: &mut Socket, message: Value) -> Result<(), String> {
    let sent = socket.send(Message::text(message.to_string())).await;
    sent.map_err(|why| why.to_string())
}

/// Reads the next JSON; an error where the connection ended.
async fn hear(socket: &mut Socket) -> Result<Value, String> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).map_err(|why| why.to_string()),
            Some(Ok(Message::Close(close))) => return Err(format!("closed: {close:?}")),
            Some(Ok(_)) => {}
            Some(Err(why)) => return Err(why.to_string()),
            None => return Err("ended".to_owned()),
        }
    }
}

/// The connection of events and calls.
struct Watcher {
    socket: Socket,
    phases: watch::Receiver<Phase>,
    seen: Arc<Mutex<Seen>>,
    asked: HashMap<u64, Asked>,
    next_id: u64,
    sender: Option<Sender>,
    /// Request ids by the ids of the subscriptions that they made.
    kinds: HashMap<String, u64>,
    patience: Duration,
}

/// A call that waits for its answer.
struct Asked {
    since: Instant,
    during: bool,
    /// The nonce, where it sends a transaction.
    nonce: Option<u64>,
}

impl Asked {
    fn name(&self) -> &'static str {
        match self.nonce {
            Some(_) => "a transaction",
            None => "a call",
        }
    }
}

impl Watcher {
    async fn run(mut self) {
        let mut calls = interval(CALLS);
        let mut transactions = interval(TRANSACTIONS);
        // Calls that are late are not made up for.
        calls.set_missed_tick_behavior(MissedTickBehavior::Skip);
        transactions.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut leaving = None;
        loop {
            let phase = *self.phases.borrow_and_update();
            if let Phase::After(last) = phase {
                let since = *leaving.get_or_insert_with(Instant::now);
                if self.is_satisfied(last) || since.elapsed() > self.patience {
                    return self.give_up();
                }
            }
            let asks = !matches!(phase, Phase::After(_));
            let done = tokio::select! {
                message = hear(&mut self.socket) => message.map(|message| self.take(&message)),
                _ = calls.tick() => match asks {
                    true => self.call(phase == Phase::During).await,
                    false => Ok(()),
                },
                _ = transactions.tick(), if asks => self.transact(phase == Phase::During).await,
                _ = self.phases.changed() => Ok(()),
            };
            if let Err(why) = done {
                self.seen.lock().closed.push(format!("events and calls: {why}"));
                return;
            }
        }
    }

    /// Checks if all calls are answered and all events up to this head have arrived. A head's logs come before the next
    /// head.
    fn is_satisfied(&self, last: u64) -> bool {
        let newest = self.seen.lock().heads.last().map_or(0, |head| head.number);
        self.asked.is_empty() && newest > last
    }

    fn give_up(&mut self) {
        for (_, asked) in self.asked.drain() {
            self.seen
                .lock()
                .failures
                .push(format!("{}: no answer in time", asked.name()));
        }
    }

    async fn call(&mut self, during: bool) -> Result<(), String> {
        // No balance of this account is in any cache.
        let account = Address::left_padding_from(&(0xb0_0000_0000 + self.next_id).to_be_bytes());
        self.ask("eth_getBalance", &json!([account, "latest"]), during, None)
            .await
    }

    async fn transact(&mut self, during: bool) -> Result<(), String> {
        let Some(sender) = &mut self.sender else { return Ok(()) };
        let (raw, nonce) = (sender.sign(), sender.nonce);
        self.ask("eth_sendRawTransaction", &json!([raw]), during, Some(nonce))
            .await
    }

    async fn ask(&mut self, method: &str, params: &Value, during: bool, nonce: Option<u64>) -> Result<(), String> {
        let id = self.next_id;
        self.next_id += 1;
        let since = Instant::now();
        self.asked.insert(id, Asked { since, during, nonce });
        say(&mut self.socket, request(id as usize, method, params)).await
    }

    fn take(&mut self, message: &Value) {
        let now = Instant::now();
        let mut seen = self.seen.lock();
        let Some(id) = message["id"].as_u64() else {
            let result = &message["params"]["result"];
            match self
                .kinds
                .get(message["params"]["subscription"].as_str().unwrap_or_default())
            {
                Some(&HEADS) => seen.heads.push(Head {
                    number: quantity(&result["number"]).unwrap_or_default(),
                    hash: hash(&result["hash"]),
                    at: now,
                    during: *self.phases.borrow() != Phase::Before,
                }),
                Some(_) => *seen.logs.entry(hash(&result["blockHash"])).or_default() += 1,
                None => seen.failures.push(format!("a notification of nobody's: {message}")),
            }
            return;
        };
        if id < FIRST_CALL {
            match message["result"].as_str() {
                Some(subscription) => drop(self.kinds.insert(subscription.to_owned(), id)),
                None => seen.failures.push(format!("a subscription: {}", message["error"])),
            }
            return;
        }
        let Some(asked) = self.asked.remove(&id) else {
            return seen.failures.push(format!("an answer to nothing: {message}"));
        };
        let (took, name) = (now - asked.since, asked.name());
        seen.calls[usize::from(asked.during)].push(took);
        // The node already has the transaction, whose answer was lost.
        let known = ["already known", "nonce too low"];
        let is_known = |words: &str| known.iter().any(|known| words.contains(known));
        let is_known = asked.nonce.is_some() && message["error"]["message"].as_str().is_some_and(is_known);
        if let (Some(nonce), Some(sender)) = (asked.nonce, &mut self.sender)
            && (is_known || !message["result"].is_null())
        {
            sender.nonce = sender.nonce.max(nonce + 1);
        }
        if message["result"].is_null() && !is_known {
            seen.failures.push(format!("{name}: {}", message["error"]));
        } else if took > self.patience {
            seen.failures.push(format!("{name}: answered after {took:?}"));
        }
    }
}

/// Resumes from the head before the last, so that there is an event to replay, and disconnects again.
async fn resume_again_and_again(
    mut socket: Socket,
    mut phases: watch::Receiver<Phase>,
    seen: Arc<Mutex<Seen>>,
    patience: Duration,
) {
    let mut ticks = interval(RESUMES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for id in 1_usize.. {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = phases.wait_for(|phase| matches!(phase, Phase::After(_))) => return,
        }
        let phase = *phases.borrow();
        if matches!(phase, Phase::After(_)) {
            return;
        }
        let from = seen.lock().heads.iter().rev().nth(1).map(|head| head.hash);
        let Some(from) = from else { continue };
        let began = Instant::now();
        match timeout(patience, resume(&mut socket, id, from)).await {
            Ok(Ok(())) => seen.lock().resumes[usize::from(phase == Phase::During)].push(began.elapsed()),
            Ok(Err(Failed::Refused(why))) => seen.lock().failures.push(format!("a resume: {why}")),
            Ok(Err(Failed::Closed(why))) => return seen.lock().closed.push(format!("resumes: {why}")),
            Err(_) => return seen.lock().failures.push("a resume: no event in time".to_owned()),
        }
    }
}

enum Failed {
    Refused(Value),
    Closed(String),
}

async fn resume(socket: &mut Socket, id: usize, from: B256) -> Result<(), Failed> {
    let params = json!(["newHeads", {"after": {"blockHash": from}}]);
    say(socket, request(id, "eth_subscribe", &params))
        .await
        .map_err(Failed::Closed)?;
    let mut subscription = Value::Null;
    loop {
        let message = hear(socket).await.map_err(Failed::Closed)?;
        if message["id"] == id {
            if message["result"].is_null() {
                return Err(Failed::Refused(message["error"].clone()));
            }
            subscription = message["result"].clone();
        } else if message["params"]["subscription"] == subscription {
            break;
        }
    }
    say(socket, request(0, "eth_unsubscribe", &json!([subscription])))
        .await
        .map_err(Failed::Closed)
}

/// An account that no other client uses; its transactions move no value.
struct Sender {
    key: B256,
    /// Nonce of the next transaction: one above the last that the node accepted.
    nonce: u64,
}

impl Sender {
    fn new() -> Self {
        // The highest byte keeps it below the group's order.
        let mut key = B256::from(rand::random::<[u8; 32]>());
        key[0] = 1;
        Self { key, nonce: 0 }
    }

    fn sign(&mut self) -> String {
        let transaction = TxEip1559 {
            chain_id: 1337,
            nonce: self.nonce,
            gas_limit: 21_000,
            max_fee_per_gas: 1_000_000_000_000,
            max_priority_fee_per_gas: 1,
            to: TxKind::Call(Address::repeat_byte(0x5a)),
            value: U256::ZERO,
            ..TxEip1559::default()
        };
        let signature = sign_message(self.key, transaction.signature_hash()).expect("the key is one");
        hex::encode_prefixed(transaction.into_signed(signature).encoded_2718())
    }
}

fn hash(value: &Value) -> B256 {
    value.as_str().and_then(|hash| hash.parse().ok()).unwrap_or_default()
}
