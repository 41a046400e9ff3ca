//! Many clients cost the node as much as one.

use std::collections::BTreeSet;

use headwater::devnet::Stats;
use serde_json::json;

use crate::harness::{Client, Event, Rig, adopted, eventually, reorged};

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

/// Clients that get the same events are written to in groups, in one piece of bytes with the ids replaced; among them one
/// that has the same twice, and a bystander with a subscription that nobody shares.
#[tokio::test]
async fn clients_of_one_filter_get_the_same_bytes_but_for_their_own_ids() {
    const CLIENTS: usize = 150;
    const BLOCKS: u64 = 3;
    let rig = Rig::with(|config| config.limits.max_connections_per_client = CLIENTS + 8).await;
    let mut witness = rig.witness().await;
    let mut bystander = rig.client().await;
    let address = rig.control.head().logs().next().unwrap().address;
    let apart = bystander.subscribe(json!(["logs", {"address": address}])).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = rig.client().await;
        let mut heads = vec![client.subscribe(json!(["newHeads"])).await];
        if number % 50 == 7 {
            heads.push(client.subscribe(json!(["newHeads"])).await);
        }
        let logs = client.subscribe(json!(["logs"])).await;
        clients.push((client, heads, logs));
    }
    let ids = clients.iter().flat_map(|(_, heads, logs)| heads.iter().chain([logs]));
    let distinct: BTreeSet<_> = ids.clone().chain([&apart]).collect();
    assert_eq!(distinct.len(), ids.count() + 1);
    let is_head = |event: &Event| event.payload.contains("parentHash");
    let hex = format!("{address:#x}");
    for reorgs in [false, true] {
        let story = match reorgs {
            false => adopted(&rig.control.mine_many(BLOCKS)),
            true => reorged(&rig.control.reorg(2, 2).unwrap()),
        };
        let expect = witness.events(story.len()).await;
        for (client, heads, logs) in &mut clients {
            for event in &expect {
                let own = match is_head(event) {
                    true => heads.clone(),
                    false => vec![logs.clone()],
                };
                let got = client.events(own.len()).await;
                got.iter().for_each(|got| assert_eq!(got.payload, event.payload));
                let to: BTreeSet<_> = got.into_iter().map(|got| got.subscription).collect();
                assert_eq!(to, own.into_iter().collect());
            }
        }
        for event in expect
            .iter()
            .filter(|event| !is_head(event) && event.payload.contains(&hex))
        {
            let got = bystander.event().await;
            assert_eq!((got.payload, got.subscription), (event.payload.clone(), apart.clone()));
        }
    }
}

/// Libraries end the subscriptions of their former connection once they are back (web3.js 1), with others of the same
/// filter connected all the time.
#[tokio::test]
async fn an_id_of_a_former_connection_ends_nothing_and_no_id_comes_twice() {
    let rig = Rig::start().await;
    let mut other = rig.client().await;
    let theirs = other.subscribe(json!(["newHeads"])).await;
    let mut ids = vec![theirs.clone()];
    let subscribe = async |client: &mut Client, ids: &mut Vec<String>| {
        let id = client.subscribe(json!(["newHeads"])).await;
        assert!(!ids.contains(&id), "{id}");
        ids.push(id.clone());
        id
    };
    let mut former = rig.client().await;
    let old = subscribe(&mut former, &mut ids).await;
    rig.control.mine();
    assert_eq!(former.event().await.subscription, old);
    drop(former);
    let mut client = rig.client().await;
    let mut own = subscribe(&mut client, &mut ids).await;
    for foreign in [&old, &theirs] {
        assert_eq!(
            client.unsubscribe(foreign).await["error"]["message"],
            "subscription not found"
        );
    }
    for _ in 0..3 {
        rig.control.mine();
        assert_eq!(client.event().await.subscription, own);
        assert_eq!(client.unsubscribe(&own).await["result"], true);
        own = subscribe(&mut client, &mut ids).await;
    }
    // The first block is that of the former connection.
    for event in other.events(4).await {
        assert_eq!(event.subscription, theirs);
    }
}
