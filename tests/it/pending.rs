//! Pending transactions that a node announces together, beside blocks and a client that does not read.

use alloy_primitives::Address;
use serde_json::{Value, json};

use crate::bystander::Bystander;
use crate::harness::{Client, eventually};
use crate::scripted::{Made, Scripted, word};

const PENDING: &str = "newPendingTransactions";

fn hash(number: usize) -> Value {
    json!(word(&format!("pending {number}")))
}

/// Makes a whole transaction with input of this many bytes; its sender is 0 or 1, as its number is even or odd.
fn transaction(number: usize, input: usize) -> Value {
    let from = Address::repeat_byte((number % 2) as u8);
    json!({"hash": hash(number), "from": from, "to": null, "input": format!("0x{}", "00".repeat(input))})
}

/// Reads `count` transactions of the client's only subscription.
async fn received(client: &mut Client, count: usize) -> Vec<Value> {
    let events = client.events(count).await;
    events.iter().map(|event| event.json()).collect()
}

#[tokio::test]
async fn each_client_gets_all_in_order_whatever_arrives_together() {
    let node = Scripted::start().await;
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut clients = Vec::new();
    for params in [
        json!([PENDING]),
        json!([PENDING, true]),
        json!([PENDING, {"fromAddress": Address::repeat_byte(1)}]),
        json!(["alchemy_pendingTransactions", {"fromAddress": Address::ZERO}]),
    ] {
        let mut client = proxy.client().await;
        client.subscribe(params).await;
        clients.push(client);
    }
    // Blocks and transactions on one connection.
    let mut mixed = proxy.client().await;
    mixed.subscribe(json!(["newHeads"])).await;
    let id = mixed.subscribe(json!([PENDING])).await;

    let (mut blocks, mut sent) = (Vec::new(), 0);
    for together in [1, 2, 70, 1, 150, 3, 64, 65] {
        for _ in 0..together {
            // The node announces it to the subscriptions to hashes and to whole ones.
            node.announce(&transaction(sent, 300), PENDING);
            sent += 1;
        }
        blocks.extend(node.mine_many(2, 1));
    }
    let all: Vec<Value> = (0..sent).map(hash).collect();
    let whole: Vec<Value> = (0..sent).map(|number| transaction(number, 300)).collect();
    let every_second = |from: &[Value], first| from.iter().skip(first).step_by(2).cloned().collect();
    let wanted: [Vec<Value>; 4] = [
        all.clone(),
        whole.clone(),
        every_second(&all, 1),
        every_second(&whole, 0),
    ];
    for (client, wanted) in clients.iter_mut().zip(wanted) {
        assert_eq!(received(client, wanted.len()).await, wanted);
    }
    let (pending, heads): (Vec<_>, Vec<_>) = mixed
        .events(sent + blocks.len())
        .await
        .into_iter()
        .partition(|event| event.subscription == id);
    assert_eq!(pending.iter().map(|event| event.json()).collect::<Vec<_>>(), all);
    let heads: Vec<String> = heads.iter().map(|event| event.line()).collect();
    assert_eq!(heads, blocks.iter().map(Made::head_line).collect::<Vec<_>>());
    bystander.saw_only(&blocks).await;
}

/// Transactions that arrive together are dropped together for a client that does not read, and each is counted.
#[tokio::test]
async fn a_client_that_does_not_read_loses_transactions_and_nobody_else_does() {
    const TOGETHER: usize = 10;
    const INPUT: usize = 5_000;
    let node = Scripted::start().await;
    let proxy = node
        .proxy(|config| {
            config.delivery.max_queue_bytes = bytesize::ByteSize::kib(256);
            // Machines that are busy take long.
            config.delivery.write_deadline = std::time::Duration::from_secs(600);
            config.delivery.max_queue_age = std::time::Duration::from_secs(600);
        })
        .await;
    let bystander = Bystander::join(&proxy).await;
    let (mut reads, mut stalled) = (proxy.client().await, proxy.client().await);
    reads.subscribe(json!([PENDING, true])).await;
    stalled.subscribe(json!(["newHeads"])).await;
    let id = stalled.subscribe(json!([PENDING, true])).await;

    // More than the buffers of two sockets hold.
    let count = 2_000;
    for first in (0..count).step_by(TOGETHER) {
        let all: Vec<Value> = (first..first + TOGETHER)
            .map(|number| transaction(number, INPUT))
            .collect();
        all.iter().for_each(|transaction| node.announce(transaction, PENDING));
        assert_eq!(received(&mut reads, TOGETHER).await, all);
    }
    let blocks = node.mine_many(1, 0);
    let mut got = Vec::new();
    loop {
        let event = stalled.event().await;
        if event.subscription != id {
            // Blocks are never dropped.
            assert_eq!(event.line(), blocks[0].head_line());
            break;
        }
        got.push(event.json()["hash"].clone());
    }
    assert!(got.len() < count, "none was dropped");
    let mut all = (0..count).map(hash);
    assert!(
        got.iter().all(|hash| all.any(|next| next == *hash)),
        "in order and once"
    );
    drop(stalled);
    let dropped = (count - got.len()) as f64;
    eventually("each is counted", async || {
        let slow = proxy
            .metric(r#"headwater_pending_dropped_total{reason="slow_client"}"#)
            .await;
        slow == dropped
    })
    .await;
    bystander.saw_only(&blocks).await;
}
