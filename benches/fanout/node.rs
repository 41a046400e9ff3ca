//! The scripted node: enough of an Ethereum node for headwater to follow its head.
//!
//! The node runs in a process of its own, so that its CPU time counts for no server. On each command the next block
//! becomes the head and is announced; every block up to the head can be requested.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use alloy_primitives::B256;
use anyhow::Result;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::broadcast,
};
use tokio_tungstenite::{accept_async, tungstenite::Message};

use crate::{
    chain::{Chain, START},
    notification, pending,
    roles::{ServeArgs, on_each_event},
};

/// Maximum block range of an `eth_getLogs` call; hosted nodes have such a limit too.
const MAX_LOG_RANGE: u64 = 1024;

pub fn serve(args: &ServeArgs) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(args))
}

async fn run(args: &ServeArgs) -> Result<()> {
    let node = Arc::new(Node {
        chain: args.chain(),
        head: AtomicU64::new(START),
        following: Following::default(),
    });
    let (events, _) = broadcast::channel(1024);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening {}", listener.local_addr()?);

    let (announcer, head_of) = (events.clone(), Arc::clone(&node));
    on_each_event(move |event| {
        if !head_of.chain.is_pending() {
            let number = Chain::block_of_event(event);
            head_of.head.store(number, Ordering::Release);
        }
        let _nobody_subscribed = announcer.send(event);
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (node, events) = (Arc::clone(&node), events.subscribe());
        tokio::spawn(async move {
            if let Err(error) = connection(&node, stream, events).await {
                eprintln!("node: a connection ended: {error:#}");
            }
        });
    }
}

async fn connection(node: &Node, stream: TcpStream, mut events: broadcast::Receiver<usize>) -> Result<()> {
    let mut socket = accept_async(stream).await?;
    let mut subscriptions = Subscriptions::default();
    loop {
        tokio::select! {
            message = socket.next() => {
                let Some(message) = message else { return Ok(()) };
                let answer = match message? {
                    Message::Text(text) => node.answer(text.as_str(), &mut subscriptions)?,
                    Message::Binary(bytes) => node.answer(std::str::from_utf8(&bytes)?, &mut subscriptions)?,
                    _ => continue,
                };
                socket.send(Message::text(answer)).await?;
            }
            event = events.recv() => {
                let event = event?;
                let (ids, results) = if node.chain.is_pending() {
                    (&subscriptions.pending, node.chain.results(event))
                } else {
                    (&subscriptions.heads, vec![node.chain.header(Chain::block_of_event(event))])
                };
                for id in ids {
                    for result in &results {
                        let message = notification::prefix(id) + result + notification::END;
                        socket.send(Message::text(message)).await?;
                    }
                }
            }
        }
    }
}

/// Ids of a connection's subscriptions.
#[derive(Default)]
struct Subscriptions {
    heads: Vec<String>,
    pending: Vec<String>,
}

struct Node {
    chain: Chain,
    head: AtomicU64,
    following: Following,
}

/// The requests by which headwater follows the head. headwater is in sync once it has subscribed and requested the
/// newest block; a client that joins earlier might receive that block, which is not an event of the run.
#[derive(Default)]
struct Following {
    subscribed: AtomicBool,
    asked: AtomicBool,
}

impl Following {
    fn note(&self, what: &AtomicBool) {
        if !what.swap(true, Ordering::AcqRel)
            && self.subscribed.load(Ordering::Acquire)
            && self.asked.load(Ordering::Acquire)
        {
            println!("followed");
        }
    }
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: String,
    #[serde(default)]
    params: Vec<serde_json::Value>,
}

/// The members of an `eth_getLogs` filter that the node reads.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Range {
    block_hash: Option<B256>,
    from_block: Option<String>,
    to_block: Option<String>,
}

impl Node {
    fn answer(&self, message: &str, subscriptions: &mut Subscriptions) -> Result<String> {
        if !message.trim_start().starts_with('[') {
            return Ok(self.answer_one(&serde_json::from_str(message)?, subscriptions));
        }
        let batch: Vec<Request<'_>> = serde_json::from_str(message)?;
        let answers: Vec<String> = batch
            .iter()
            .map(|request| self.answer_one(request, subscriptions))
            .collect();
        Ok(format!("[{}]", answers.join(",")))
    }

    fn answer_one(&self, request: &Request<'_>, subscriptions: &mut Subscriptions) -> String {
        let id = request.id.map_or("null", RawValue::get);
        let result = match request.method.as_str() {
            "eth_subscribe" => self.subscribe(&request.params, subscriptions),
            "eth_unsubscribe" => {
                let mut ended = false;
                for ids in [&mut subscriptions.heads, &mut subscriptions.pending] {
                    let before = ids.len();
                    ids.retain(|id| request.params.first().is_none_or(|param| param != id.as_str()));
                    ended |= before != ids.len();
                }
                Some(ended.to_string())
            }
            method => self.call(method, &request.params),
        };
        match result {
            Some(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
            None => format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"the method {} does not exist/is not available"}}}}"#,
                request.method
            ),
        }
    }

    /// Refuses every kind but `newHeads` and pending transactions, so that headwater fetches logs by block hash.
    fn subscribe(&self, params: &[serde_json::Value], subscriptions: &mut Subscriptions) -> Option<String> {
        let known = subscriptions.heads.len() + subscriptions.pending.len();
        let id = notification::subscription_id(known as u64);
        let result = format!(r#""{id}""#);
        match params.first()?.as_str()? {
            "newHeads" => {
                subscriptions.heads.push(id);
                self.following.note(&self.following.subscribed);
            }
            pending::KIND if self.chain.is_pending() && params.len() == 1 => subscriptions.pending.push(id),
            _ => return None,
        }
        Some(result)
    }

    fn call(&self, method: &str, params: &[serde_json::Value]) -> Option<String> {
        let head = self.head.load(Ordering::Acquire);
        let null = || "null".to_owned();
        Some(match method {
            "eth_chainId" => r#""0x1""#.to_owned(),
            "net_version" => r#""1""#.to_owned(),
            "eth_syncing" => "false".to_owned(),
            "web3_clientVersion" => r#""scripted-node/1""#.to_owned(),
            "eth_blockNumber" => format!(r#""{head:#x}""#),
            "eth_getBlockByNumber" => {
                if params.first()?.as_str()? == "latest" {
                    self.following.note(&self.following.asked);
                }
                let number = self.number(params.first()?.as_str()?)?;
                if number > head {
                    null()
                } else {
                    self.chain.block(number)
                }
            }
            "eth_getBlockByHash" => {
                let hash = params.first()?.as_str()?.parse().ok()?;
                match Chain::number_of(hash) {
                    Some(number) if number <= head => self.chain.block(number),
                    _ => null(),
                }
            }
            "eth_getLogs" => {
                let range: Range = serde_json::from_value(params.first()?.clone()).ok()?;
                let (from, to) = match range.block_hash {
                    Some(hash) => Chain::number_of(hash).map(|number| (number, number))?,
                    None => {
                        let number = |tag: Option<String>| self.number(tag.as_deref().unwrap_or("latest"));
                        (number(range.from_block)?, number(range.to_block)?)
                    }
                };
                if to.min(head).saturating_sub(from) > MAX_LOG_RANGE {
                    return None;
                }
                let logs: Vec<String> = (from..=to.min(head))
                    .flat_map(|number| self.chain.logs(number))
                    .collect();
                format!("[{}]", logs.join(","))
            }
            _ => return None,
        })
    }

    fn number(&self, tag: &str) -> Option<u64> {
        match tag {
            "latest" | "pending" => Some(self.head.load(Ordering::Acquire)),
            "safe" => Some(START - 32),
            "finalized" => Some(START - 64),
            "earliest" => Some(0),
            number => u64::from_str_radix(number.strip_prefix("0x")?, 16).ok(),
        }
    }
}
