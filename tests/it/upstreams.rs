//! Nodes of every kind, and nodes that fail.

use std::time::Duration;

use headwater::devnet::{Config, Devnet};
use serde_json::{Value, json};

use crate::harness::{Client, Proxy, Rig, adopted, eventually, node, reorged};
use crate::wire::CHAIN_ID;

#[tokio::test]
async fn heads_and_logs_come_the_same_over_every_transport() {
    let folder = tempfile::tempdir().unwrap();
    let ipc = folder.path().join("node.ipc");
    for transport in ["ws", "ipc", "http"] {
        let node = Devnet::start(Config {
            ipc: Some(ipc.clone()),
            ..Config::manual()
        })
        .await
        .unwrap();
        let address = match transport {
            "ws" => node.ws_url(),
            "ipc" => ipc.display().to_string(),
            _ => node.http_url(),
        };
        let proxy = Proxy::start(&[address], |config| {
            config.node.poll_interval = Duration::from_millis(20)
        })
        .await;
        let control = node.handle();
        proxy.settled(&control).await;
        let (mut client, mut witness) = (proxy.watcher().await, Client::connect(&node.ws_url()).await);
        witness.subscribe(json!(["newHeads"])).await;
        witness.subscribe(json!(["logs", {}])).await;
        let blocks = control.mine_many(5);
        for _ in 0..blocks.len() * 7 {
            let (mine, theirs) = (client.event().await, witness.event().await);
            if transport == "http" && theirs.json()["hash"].is_string() {
                // A whole block is more than a head, and never less.
                let (mine, theirs) = (mine.json(), theirs.json());
                for (name, value) in theirs.as_object().unwrap().iter().filter(|(_, value)| !value.is_null()) {
                    assert_eq!(mine[name], *value, "{name}");
                }
                assert!(
                    mine.get("transactions").is_none() && mine.get("size").is_none(),
                    "{mine}"
                );
            } else {
                assert_eq!(mine.payload, theirs.payload, "{transport}");
            }
        }
        for depth in 1..=5 {
            client.expect(reorged(&control.reorg(depth, depth + 1).unwrap())).await;
        }
        client.subscribe(json!(["newPendingTransactions"])).await;
        // A poller's filter sees what comes after it was made.
        let mut sent = Vec::new();
        let first = loop {
            sent.push(json!(control.add_pending().unwrap().hash()).to_string());
            let soon = tokio::time::timeout(Duration::from_millis(100), client.event()).await;
            if let Ok(event) = soon {
                break event;
            }
        };
        assert!(sent.contains(&first.payload), "{transport}");
        let mut syncing = proxy.client().await;
        syncing.subscribe(json!(["syncing"])).await;
        assert_eq!(syncing.event().await.payload, "false");
        assert!(syncing.ask(CHAIN_ID).await.contains("0x539"));
    }
}

#[tokio::test]
async fn a_node_that_returns_is_used_again_over_every_transport() {
    let folder = tempfile::tempdir().unwrap();
    for transport in ["ws", "ipc", "http"] {
        let path = folder.path().join("again.ipc");
        let node = Devnet::start(Config {
            ipc: Some(path.clone()),
            ..Config::manual()
        })
        .await
        .unwrap();
        let address = match transport {
            "ws" => node.ws_url(),
            "ipc" => path.display().to_string(),
            _ => node.http_url(),
        };
        let proxy = Proxy::start(&[address], |config| {
            config.node.poll_interval = Duration::from_millis(20)
        })
        .await;
        let control = node.handle();
        proxy.settled(&control).await;
        let mut client = proxy.watcher().await;
        for _ in 0..2 {
            control.set_faults(|faults| faults.refuse_connections = true);
            control.disconnect();
            eventually("the node is lost", async || proxy.admin("/ready").await.status == 503).await;
            let refused: Value = serde_json::from_str(&client.ask(CHAIN_ID).await).unwrap();
            assert_eq!(
                refused["error"],
                json!({"code": -32603, "message": "upstream unavailable"})
            );
            let blocks = control.mine_many(3);
            control.set_faults(|faults| faults.refuse_connections = false);
            client.expect(adopted(&blocks)).await;
            proxy.ready().await;
            assert!(client.ask(CHAIN_ID).await.contains("0x539"));
        }
    }
}

#[tokio::test]
async fn the_nodes_answers_and_errors_pass_through_verbatim() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let token = rig.control.with_chain(|chain| chain.tokens()[0]);
    let revert = json!([{"to": token, "input": "0x23b872dd"}, "latest"]);
    let mut rows = vec![
        ("eth_call", revert.clone()),
        ("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "latest"}])),
        ("eth_getBlockByNumber", json!(["latest", true])),
        ("eth_getBlockByNumber", json!(["0x99", false])),
        ("eth_nothing", json!([])),
        ("eth_getBalance", json!(["nonsense"])),
        ("eth_sendRawTransaction", json!(["0x00"])),
        ("web3_clientVersion", json!([])),
    ];
    rows.push(("eth_estimateGas", revert));
    for (method, params) in rows {
        let request = json!({"jsonrpc": "2.0", "id": "x", "method": method, "params": params});
        let expected = rig.ask_node(&request).await;
        assert_eq!(client.ask(request.to_string()).await, expected);
        assert_eq!(rig.post(request.to_string()).await, expected);
        if method == "eth_call" {
            let error: Value = serde_json::from_str(&expected).unwrap();
            assert_eq!(error["error"]["code"], 3);
            assert!(error["error"]["data"].is_string());
        }
    }
}

#[tokio::test]
async fn a_call_that_takes_too_long_times_out_and_the_connection_goes_on() {
    let rig = Rig::with(|config| config.node.request_timeout = Duration::from_millis(200)).await;
    let mut client = rig.client().await;
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_secs(60)));
    let timed_out = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32002,"message":"request timed out"}}"#;
    assert_eq!(client.ask(CHAIN_ID).await, timed_out);
    assert_eq!(rig.post(CHAIN_ID).await, timed_out);
    rig.control.set_faults(|faults| faults.delay = None);
    assert!(client.ask(CHAIN_ID).await.contains("0x539"));
}

#[tokio::test]
async fn a_call_whose_node_is_lost_fails_and_is_not_sent_twice() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_secs(60)));
    client
        .send(r#"{"jsonrpc":"2.0","id":1,"method":"eth_sendRawTransaction","params":["0x00"]}"#)
        .await;
    // The first cut may come before the call was sent.
    let answer = loop {
        rig.control.disconnect();
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), client.next()).await {
            break answer;
        }
    };
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (&answer["id"], &answer["error"]["code"]),
        (&json!(1), &json!(-32603)),
        "{answer}"
    );
    rig.control.set_faults(|faults| faults.delay = None);
    eventually("the node is back", async || {
        client.ask(CHAIN_ID).await.contains("0x539")
    })
    .await;
    assert_eq!(rig.control.stats().calls.get("eth_sendRawTransaction"), None);
}

#[tokio::test]
async fn who_subscribes_before_there_is_a_node_is_served_when_there_is_one() {
    let node = node().await;
    let control = node.handle();
    control.set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[node.ws_url()], |_| {}).await;
    let mut client = proxy.client().await;
    let unavailable = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"upstream unavailable"}}"#;
    assert_eq!(client.ask(CHAIN_ID).await, unavailable);
    assert_eq!(proxy.post(CHAIN_ID).await, unavailable);
    let heads = client.subscribe(json!(["newHeads"])).await;
    let mut others = proxy.client().await;
    others.subscribe(json!(["syncing"])).await;
    let pending = proxy.client().await.subscribe(json!(["newPendingTransactions"])).await;
    assert!(!pending.is_empty());
    control.set_faults(|faults| faults.refuse_connections = false);
    proxy.ready().await;
    let blocks = control.mine_many(3);
    let mut hashes = Vec::new();
    while hashes.last() != Some(&json!(blocks[2].hash())) {
        let event = client.event().await;
        assert_eq!(event.subscription, heads);
        let head = event.json();
        assert!(hashes.last().is_none_or(|last| *last == head["parentHash"]));
        hashes.push(head["hash"].clone());
    }
    assert!(hashes.len() >= 3);
    assert_eq!(others.event().await.payload, "false");
}

#[tokio::test]
async fn the_stream_goes_on_from_the_second_node_without_a_seam() {
    let (first, second) = (node().await, node().await);
    let proxy = Proxy::start(&[first.ws_url(), second.ws_url()], |_| {}).await;
    eventually("both are connected", async || {
        let status: Value = serde_json::from_str(&proxy.admin("/status").await.body).unwrap();
        status["upstreams"]
            .as_array()
            .unwrap()
            .iter()
            .all(|one| one["connected"] == true)
    })
    .await;
    // Whichever came first is in use.
    let status: Value = serde_json::from_str(&proxy.admin("/status").await.body).unwrap();
    let (active, standby) = if status["upstreams"][0]["active"] == true {
        (first, second)
    } else {
        (second, first)
    };
    proxy.settled(&active.handle()).await;
    let mut client = proxy.watcher().await;
    let mut pending = proxy.client().await;
    pending.subscribe(json!(["newPendingTransactions"])).await;
    // The same seed and the same commands make the same chain.
    let blocks = active.handle().mine_many(4);
    standby.handle().mine_many(4);
    client.expect(adopted(&blocks)).await;
    drop(active);
    let more = standby.handle().mine_many(4);
    client.expect(adopted(&more)).await;
    client.expect(reorged(&standby.handle().reorg(3, 4).unwrap())).await;
    assert!(client.ask(CHAIN_ID).await.contains("0x539"));
    eventually("pending transactions are asked of the second", async || {
        standby
            .handle()
            .stats()
            .subscriptions
            .contains_key("newPendingTransactions")
    })
    .await;
    let hash = standby.handle().add_pending().unwrap().hash();
    assert_eq!(pending.event().await.payload, json!(hash).to_string());
}

/// The second node is on another branch: that is a reorg, no more.
#[tokio::test]
async fn a_failover_to_another_branch_is_told_as_a_reorg() {
    let (first, second) = (node().await, node().await);
    second.handle().set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[first.ws_url(), second.ws_url()], |_| {}).await;
    proxy.settled(&first.handle()).await;
    let mut client = proxy.watcher().await;
    let blocks = first.handle().mine_many(3);
    client.expect(adopted(&blocks)).await;
    second.handle().mine_many(3);
    let reorg = second.handle().reorg(2, 3).unwrap();
    second.handle().set_faults(|faults| faults.refuse_connections = false);
    eventually("the second is connected", async || {
        second.handle().stats().connections == 1
    })
    .await;
    drop(first);
    client.expect(reorged(&reorg)).await;
}

#[tokio::test]
async fn a_node_of_another_chain_is_not_used() {
    let first = node().await;
    let other = Devnet::start(Config {
        chain_id: 5,
        ..Config::manual()
    })
    .await
    .unwrap();
    other.handle().set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[first.ws_url(), other.ws_url()], |_| {}).await;
    proxy.ready().await;
    other.handle().set_faults(|faults| faults.refuse_connections = false);
    eventually("it is refused", async || {
        let status: Value = serde_json::from_str(&proxy.admin("/status").await.body).unwrap();
        let other = &status["upstreams"][1];
        other["connected"] == false && other["lastError"].as_str().is_some_and(|why| why.contains("chain"))
    })
    .await;
}

#[tokio::test]
async fn calls_to_an_http_node_do_not_wait_for_the_poll() {
    let node = node().await;
    let proxy = Proxy::start(&[node.http_url()], |config| {
        config.node.poll_interval = Duration::from_millis(20);
    })
    .await;
    proxy.ready().await;
    let mut client = proxy.client().await;
    client.subscribe(json!(["newPendingTransactions", true])).await;
    eventually("the filter is made", async || {
        node.handle().stats().calls.contains_key("eth_getFilterChanges")
    })
    .await;
    node.handle()
        .set_faults(|faults| faults.delay = Some(Duration::from_millis(200)));
    for _ in 0..20 {
        node.handle().add_pending();
    }
    // A poll is under way, with a call for each of the twenty.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = std::time::Instant::now();
    client.ask(CHAIN_ID).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
