//! Many clients cost the node as much as one.

use headwater::devnet::Stats;
use serde_json::json;

use crate::harness::{Rig, eventually};

fn count(stats: &Stats, kind: &str) -> usize {
    stats.subscriptions.get(kind).copied().unwrap_or_default()
}

fn calls(stats: &Stats, method: &str) -> u64 {
    stats.calls.get(method).copied().unwrap_or_default()
}

#[tokio::test]
async fn fifty_clients_are_one_to_the_node() {
    const BLOCKS: u64 = 5;
    let rig = Rig::start().await;
    let mut watcher = rig.watcher().await;
    rig.nothing_else(&mut watcher).await;
    let addresses: Vec<_> = rig.control.head().logs().map(|log| log.address).collect();
    let mut clients = Vec::new();
    for i in 0..50 {
        let mut client = rig.client().await;
        let heads = client.subscribe(json!(["newHeads"])).await;
        match i % 5 {
            0 => client.subscribe(json!(["logs", {}])).await,
            1 => client.subscribe(json!(["logs", {"address": addresses[i % 6]}])).await,
            2 => client.subscribe(json!(["logs", {"topics": [null, null, null]}])).await,
            3 => client.subscribe(json!(["newPendingTransactions"])).await,
            _ => client.subscribe(json!(["newPendingTransactions", true])).await,
        };
        clients.push((client, heads));
    }
    eventually("pending transactions are asked for", async || {
        count(&rig.control.stats(), "newPendingTransactions") == 2
    })
    .await;
    let before = rig.control.stats();
    let blocks = rig.control.mine_many(BLOCKS);
    for (client, heads) in &mut clients {
        let mut seen = Vec::new();
        while seen.len() < blocks.len() {
            let event = client.event().await;
            if event.subscription == *heads {
                seen.push(event.json()["hash"].clone());
            }
        }
        assert_eq!(seen, blocks.iter().map(|block| json!(block.hash())).collect::<Vec<_>>());
    }
    rig.nothing_else(&mut {
        let mut late = rig.watcher().await;
        watcher.events(5 * 7).await;
        rig.nothing_else(&mut late).await;
        late
    })
    .await;
    let after = rig.control.stats();
    // The stream's connection, and the one for calls.
    assert_eq!((after.connections, after.connections_opened), (2, 2));
    assert_eq!((count(&after, "newHeads"), count(&after, "logs")), (1, 0));
    assert_eq!(count(&after, "newPendingTransactions"), 2);
    let asked = calls(&after, "eth_getLogs") - calls(&before, "eth_getLogs");
    assert!(
        asked <= BLOCKS + 2,
        "{asked} calls of eth_getLogs for {} blocks",
        BLOCKS + 2
    );
}

#[tokio::test]
async fn pending_transactions_are_asked_for_while_somebody_wants_them() {
    let rig = Rig::start().await;
    let pending = || count(&rig.control.stats(), "newPendingTransactions");
    assert_eq!(pending(), 0);
    let (mut one, mut two, mut three) = (rig.client().await, rig.client().await, rig.client().await);
    let hashes = one.subscribe(json!(["newPendingTransactions"])).await;
    eventually("hashes", async || pending() == 1).await;
    two.subscribe(json!(["newPendingTransactions"])).await;
    three.subscribe(json!(["newPendingTransactions", true])).await;
    eventually("both forms", async || pending() == 2).await;
    assert_eq!(one.unsubscribe(&hashes).await["result"], true);
    drop(three);
    eventually("the whole ones are not wanted any more", async || pending() == 1).await;
    drop(two);
    eventually("none are", async || pending() == 0).await;
    one.subscribe(json!(["newPendingTransactions"])).await;
    eventually("hashes again", async || pending() == 1).await;
    // Also after the connection to the node was lost.
    rig.control.disconnect();
    eventually("and again", async || {
        rig.control.stats().connections_opened > 2 && pending() == 1
    })
    .await;
    rig.control.add_pending();
    one.event().await;
}
