//! Attacks by subscriptions and resumes.

use std::time::Duration;

use alloy_primitives::{Address, B256, b256};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::arena::Arena;
use crate::client_frame::frame;
use crate::peer::{Peer, TEXT, attacker, request};

/// `Transfer(address,address,uint256)`.
const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// Subscriptions of one connection, below the default limit.
const PER_CONNECTION: usize = 1_000;
/// Receive buffer in bytes: small, so that a client that does not read is noticed soon.
const RECEIVE_BUFFER: u32 = 4 << 10;

/// Filters of one key that differ in their first block, which is far off: each log is matched and nothing is delivered.
pub async fn filters_of_one_key(arena: Arena) {
    many_filters(arena, |token, number| {
        json!({"address": token, "topics": [TRANSFER], "fromBlock": format!("{:#x}", 100_000_000 + number)})
    })
    .await;
}

/// Filters of one address and one event that differ in one more topic, which no log has.
pub async fn filters_of_one_topic(arena: Arena) {
    many_filters(arena, |token, number| {
        json!({"address": token, "topics": [TRANSFER, null, B256::left_padding_from(&number.to_be_bytes())]})
    })
    .await;
}

/// Subscribes to many filters within the default limits of connections and addresses; all clients disconnect at once.
async fn many_filters(arena: Arena, filter: fn(Address, usize) -> Value) {
    // The token with most logs.
    let token = arena.node().with_chain(|chain| chain.tokens()[0]);
    let connections = arena.size(2, 20);
    arena
        .all(connections, move |arena: Arena, connection| async move {
            let Some(mut peer) = Peer::open(&arena, attacker(connection)).await else {
                return;
            };
            for start in (0..PER_CONNECTION).step_by(250) {
                let subscribe = |number: usize| {
                    let filter = filter(token, connection * PER_CONNECTION + start + number);
                    request(number, "eth_subscribe", &json!(["logs", filter]))
                };
                let batch = Value::from((0..250).map(subscribe).collect::<Vec<_>>());
                if peer.ask(batch.to_string()).await.is_none() {
                    return;
                }
            }
            arena.end().await;
            peer.cut();
        })
        .await;
}

/// Resumes after unknown blocks, 480 a second, from one address.
pub async fn resumes_after_nothing(arena: Arena) {
    const A_SECOND: u64 = 480;
    const TICK: Duration = Duration::from_millis(25);
    let Some(peer) = Peer::open(&arena, attacker(0)).await else {
        return;
    };
    let mut writer = peer.into_writer();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while arena.goes_on() {
        ticks.tick().await;
        for _ in 0..A_SECOND * TICK.as_millis() as u64 / 1_000 {
            let after = B256::from(rand::random::<[u8; 32]>());
            let params = json!(["newHeads", {"after": {"blockHash": after}}]);
            let message = frame(TEXT, request(1, "eth_subscribe", &params).to_string());
            if writer.write_all(&message).await.is_err() {
                return;
            }
        }
    }
}

/// Resumes of all logs from further back than memory holds, whose answers are not read.
pub async fn unread_resumes(arena: Arena) {
    let connections = arena.size(60, 300);
    arena
        .all(connections, async |arena: Arena, number| {
            let Some(mut peer) = Peer::open_with(&arena, attacker(number), Some(RECEIVE_BUFFER)).await else {
                return;
            };
            let params = json!(["logs", {}, {"fromBlock": "0x2"}]);
            peer.send(request(1, "eth_subscribe", &params).to_string()).await;
            arena.end().await;
        })
        .await;
}

/// Clients with many subscriptions that read ten bytes a second.
pub async fn slow_readers(arena: Arena) {
    let connections = arena.size(40, 200);
    arena
        .all(connections, async |arena: Arena, number| {
            let Some(mut peer) = Peer::open_with(&arena, attacker(number), Some(RECEIVE_BUFFER)).await else {
                return;
            };
            for id in 0..10 {
                let subscribe = request(id, "eth_subscribe", &json!(["logs", {}]));
                peer.send(subscribe.to_string()).await;
            }
            while arena.goes_on() && peer.byte().await.is_some() {
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
}
