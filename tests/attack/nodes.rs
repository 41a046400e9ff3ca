//! Attacks by a second node, which lies while the first is sound.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alloy_primitives::B256;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::interval;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, connect_async};

use crate::arena::Arena;
use crate::node::quantity;

/// Heads that a lying node sends in place of the sound node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Heads a million blocks higher, of unknown parents.
    Height,
    /// Heads with the highest numbers that fit the type.
    Last,
    /// Long heads of unknown parents without end; a request for a parent is answered with another such head.
    Orphans,
}

/// Rate of the flood, in heads per second.
const FLOOD: u64 = 500;
/// Length of `extraData` in an invented head, in bytes.
const EXTRA: usize = 16 << 10;
/// Most parents whose numbers are remembered.
const MAX_PROMISED: usize = 100_000;

/// Relay that repeats another node's messages until it is to lie. Dropping it ends the task that accepts connections.
pub struct Liar {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Liar {
    pub async fn start(node: String, lie: Lie, lying: Arc<AtomicBool>) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|why| why.to_string())?;
        let address = listener.local_addr().map_err(|why| why.to_string())?;
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(relay(stream, node.clone(), lie, lying.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, task })
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// State of the lies on one connection.
struct Mouth {
    lie: Lie,
    /// Newest true notification of a head.
    last: Option<Value>,
    /// Numbers of the parents that invented heads name.
    promised: HashMap<String, u64>,
}

async fn relay(stream: TcpStream, node: String, lie: Lie, lying: Arc<AtomicBool>) {
    let Ok(client) = accept_async(stream).await else { return };
    let Ok((node, _)) = connect_async(node).await else {
        return;
    };
    let ((mut to_client, mut from_client), (mut to_node, mut from_node)) = (client.split(), node.split());
    let mut ticks = interval(Duration::from_micros(1_000_000 / FLOOD));
    let mut mouth = Mouth {
        lie,
        last: None,
        promised: HashMap::new(),
    };
    loop {
        let lies = lying.load(Ordering::Relaxed);
        let flood = lies && lie == Lie::Orphans && mouth.last.is_some();
        let done = tokio::select! {
            message = from_client.next() => {
                let Some(Ok(message)) = message else { return };
                match message.to_text().ok().and_then(|text| mouth.answer(text)) {
                    Some(answer) => to_client.send(answer).await,
                    None => to_node.send(message).await,
                }
            }
            message = from_node.next() => {
                let Some(Ok(message)) = message else { return };
                let message = mouth.hear(message, lies);
                to_client.send(message).await
            }
            _ = ticks.tick(), if flood => match mouth.orphan() {
                Some(orphan) => to_client.send(orphan).await,
                None => Ok(()),
            },
        };
        if done.is_err() {
            return;
        }
    }
}

impl Mouth {
    /// Passes a message of the node on, edited where it is a head.
    fn hear(&mut self, message: Message, lies: bool) -> Message {
        let Ok(text) = message.to_text() else { return message };
        if !text.contains(r#""method":"eth_subscription""#) || !text.contains(r#""parentHash""#) {
            return message;
        }
        let Ok(mut notification) = serde_json::from_str::<Value>(text) else {
            return message;
        };
        self.last = Some(notification.clone());
        if !lies {
            return message;
        }
        let head = &mut notification["params"]["result"];
        let number = quantity(&head["number"]).unwrap_or_default();
        let lie = match self.lie {
            Lie::Height => number + 1_000_000,
            Lie::Last => u64::MAX,
            Lie::Orphans => return message,
        };
        head["number"] = json!(format!("{lie:#x}"));
        head["parentHash"] = json!(drawn());
        head["hash"] = json!(drawn());
        Message::text(notification.to_string())
    }

    /// Returns another invented head, a little above the last true one.
    fn orphan(&mut self) -> Option<Message> {
        let mut notification = self.last.clone()?;
        let number = quantity(&notification["params"]["result"]["number"])?;
        let hash = drawn();
        notification["params"]["result"] = self.made_up(&hash, number + 1 + u64::from(rand::random::<u8>() % 8))?;
        Some(Message::text(notification.to_string()))
    }

    /// Returns the answer to a request for a parent that an invented head named.
    fn answer(&mut self, request: &str) -> Option<Message> {
        if !request.contains("ByHash") {
            return None;
        }
        let request: Value = serde_json::from_str(request).ok()?;
        let hash = request["params"][0].as_str()?;
        let number = self.promised.get(hash).copied()?;
        let mut block = self.made_up(hash, number)?;
        block["transactions"] = json!([]);
        block["uncles"] = json!([]);
        block["size"] = json!("0x400");
        Some(Message::text(
            json!({"jsonrpc": "2.0", "id": request["id"], "result": block}).to_string(),
        ))
    }

    fn made_up(&mut self, hash: &str, number: u64) -> Option<Value> {
        let mut head = self.last.as_ref()?["params"]["result"].clone();
        let parent = drawn();
        if self.promised.len() >= MAX_PROMISED {
            self.promised.clear();
        }
        self.promised.insert(parent.clone(), number.saturating_sub(1));
        head["number"] = json!(format!("{number:#x}"));
        head["hash"] = json!(hash);
        head["parentHash"] = json!(parent);
        head["extraData"] = json!(format!("0x{}", "5a".repeat(EXTRA)));
        Some(head)
    }
}

fn drawn() -> String {
    B256::from(rand::random::<[u8; 32]>()).to_string()
}

/// Chain of the second node that runs ahead by many blocks of its own.
pub async fn ahead(arena: Arena) {
    let (sound, rival) = (arena.node().clone(), arena.second().clone());
    let blocks = arena.size(500, 5_000);
    let clock = arena.clone();
    let mining = tokio::task::spawn_blocking(move || {
        rival.follow(&sound, 0).ok()?;
        let mined = (0..blocks).take_while(|_| clock.goes_on() && rival.mine().number() > 0);
        Some(mined.count())
    });
    match mining.await {
        Ok(Some(mined)) => arena.count_by("blocks invented", mined as u64),
        _ => arena.broken("the second node has the first one's chain"),
    }
    arena.end().await;
}

/// Lies of the second node during the attack.
pub async fn lie(arena: Arena) {
    arena.lie();
    arena.end().await;
}
