//! Hostile and unlucky clients with resumed subscriptions do not affect other clients.

use std::time::Duration;

use headwater::devnet::{Config, Devnet};
use serde_json::{Value, json};

use crate::harness::{Proxy, Rig, adopted, eventually, node, take_away, without_logs};

/// An address that emits no logs.
const NOBODY: &str = "0x000000000000000000000000000000000000dEaD";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_the_filter_excludes_is_a_place_like_any_other() {
    let rig = Rig::with(|config| config.history.blocks = 4).await;
    let mut first = rig.watcher().await;
    let blocks = rig.control.mine_many(60);
    // Otherwise events in flight would reach the clients that subscribe below.
    first.expect(adopted(&blocks)).await;
    drop(first);
    let start = json!({"after": {"blockHash": blocks[2].hash(), "logIndex": "0x0"}});
    // More than there are workers: an endless loop would stop everything.
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = rig.client().await;
        client.subscribe(json!(["logs", {"address": NOBODY}, start])).await;
        clients.push(client);
    }
    eventually("they are live", async || {
        rig.metric("headwater_log_filters").await == 1.0
    })
    .await;
    let mut other = rig.watcher().await;
    rig.nothing_else(&mut other).await;
}

#[tokio::test]
async fn one_task_replays_for_a_client_however_often_it_changes_its_mind() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let params = json!(["newHeads", {"fromBlock": "0xffffffff"}]);
    let mut id = client.subscribe(params.clone()).await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    for _ in 0..200 {
        let batch = json!([
            {"jsonrpc": "2.0", "id": 1, "method": "eth_unsubscribe", "params": [id]},
            {"jsonrpc": "2.0", "id": 2, "method": "eth_subscribe", "params": params},
        ]);
        let answer: Value = serde_json::from_str(&client.ask(batch.to_string()).await).unwrap();
        id = answer[1]["result"].as_str().unwrap().to_owned();
    }
    eventually("one is left", async || alive() < before + 10).await;
    assert_eq!(rig.metric("headwater_subscriptions{kind=\"newHeads\"}").await, 1.0);
    // The next subscription is served once the task of the last one has ended.
    client.unsubscribe(&id).await;
    let tip = rig.control.head().number();
    client
        .subscribe(json!(["newHeads", {"fromBlock": format!("{:#x}", tip + 1)}]))
        .await;
    let story = adopted(&[rig.control.mine()]);
    assert_eq!(client.line().await, story[0]);
}

#[tokio::test]
async fn a_gap_longer_than_memory_is_made_up_for_also_when_logs_are_slow() {
    let rig = Rig::with(|config| config.history.blocks = 64).await;
    let mut client = rig.watcher().await;
    client.expect(adopted(&rig.control.mine_many(1))).await;
    rig.control.set_faults(|faults| {
        faults.failing_methods = without_logs();
        faults.refuse_connections = true;
    });
    rig.control.disconnect();
    let missed = rig.control.mine_many(200);
    rig.control.set_faults(|faults| faults.refuse_connections = false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    rig.control.set_faults(|faults| faults.failing_methods.clear());
    client.expect(adopted(&missed)).await;
    assert_eq!(
        rig.metric("headwater_continuity_lost_total{reason=\"backlog\"}").await,
        0.0
    );
}

#[tokio::test]
async fn an_outage_says_nothing_about_a_block() {
    let rig = Rig::with(|config| config.history.blocks = 4).await;
    let blocks = rig.control.mine_many(12);
    rig.settled(&rig.control).await;
    take_away(&rig.control);
    rig.unready().await;
    let mut client = rig.client().await;
    let start = json!({"after": {"blockHash": blocks[1].hash()}});
    let answer = client.call("eth_subscribe", json!(["logs", {}, start])).await;
    assert_eq!(
        answer["error"],
        json!({"code": -32603, "message": "upstream unavailable"}),
        "not that it is unknown"
    );
    rig.control.set_faults(|faults| faults.refuse_connections = false);
    rig.ready().await;
    client.subscribe(json!(["newHeads", start])).await;
    assert_eq!(client.line().await, adopted(&blocks[2..3])[0]);
}

#[tokio::test]
async fn who_left_while_a_block_was_looked_for_leaves_no_socket() {
    let rig = Rig::start().await;
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_secs(20)));
    let before = open();
    for _ in 0..50 {
        let mut client = rig.client().await;
        let start = json!({"after": {"blockHash": format!("0x{}", "ab".repeat(32))}});
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["logs", {}, start]});
        client.send(request.to_string()).await;
        client.unsubscribe("0x1").await;
    }
    // Other tests of this process open some descriptors, too, but not for long.
    eventually("their sockets are closed", async || open() < before + 25).await;
}

#[tokio::test]
async fn a_chain_that_is_lower_after_an_outage_is_believed_after_a_while() {
    let node = node().await;
    let (control, listen) = (node.handle(), node.address());
    let proxy = Proxy::start(&[node.ws_url()], |config| {
        config.history.blocks = 8;
        config.node.silence_timeout = Duration::from_secs(1);
    })
    .await;
    proxy.settled(&control).await;
    let mut client = proxy.watcher().await;
    client.expect(adopted(&control.mine_many(40))).await;
    drop((node, control));
    proxy.unready().await;
    let config = Config {
        listen,
        fork_seed: 9,
        ..Config::manual()
    };
    let node = Devnet::start(config).await.unwrap();
    let (_, code, _) = client.closed().await;
    assert_eq!(code, 1012);
    let mut fresh = proxy.watcher().await;
    let story = adopted(&[node.handle().mine()]);
    fresh
        .expect_after_optional(&story[0].clone(), story[1..].to_vec())
        .await;
}
