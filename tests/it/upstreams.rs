//! Nodes over every transport, and nodes that fail.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, join_all, select};
use headwater::config::typed;
use headwater::devnet::{Block, Config, Control, Devnet};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Client, Proxy, Rig, adopted, dropped, eventually, node, reorged, take_away};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, FORWARDED, FORWARDED_ANSWER};

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
                // A whole block has all members of a head, and more.
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
        // A poller's filter reports only transactions that come after its creation.
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
            config.node.poll_interval = Duration::from_millis(20);
            config.calls.head_wait_timeout = Duration::from_millis(50);
        })
        .await;
        let control = node.handle();
        proxy.settled(&control).await;
        let mut client = proxy.watcher().await;
        for _ in 0..2 {
            take_away(&control);
            proxy.unready().await;
            let refused: Value = serde_json::from_str(&client.ask(FORWARDED).await).unwrap();
            assert_eq!(client.ask(CHAIN_ID).await, CHAIN_ID_ANSWER, "known without a node");
            assert_eq!(
                refused["error"],
                json!({"code": -32603, "message": "upstream unavailable"})
            );
            let blocks = control.mine_many(3);
            control.set_faults(|faults| faults.refuse_connections = false);
            client.expect(adopted(&blocks)).await;
            proxy.ready().await;
            assert_eq!(client.ask(FORWARDED).await, FORWARDED_ANSWER);
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
    assert_eq!(client.ask(FORWARDED).await, timed_out);
    assert_eq!(rig.post(FORWARDED).await, timed_out);
    rig.control.set_faults(|faults| faults.delay = None);
    assert_eq!(client.ask(FORWARDED).await, FORWARDED_ANSWER);
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
        client.ask(FORWARDED).await == FORWARDED_ANSWER
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
    // The newest block is not known yet, so the answer waits for the first one.
    client
        .send(r#"{"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}"#)
        .await;
    let mut others = proxy.client().await;
    others.subscribe(json!(["syncing"])).await;
    let pending = proxy.client().await.subscribe(json!(["newPendingTransactions"])).await;
    assert!(!pending.is_empty());
    control.set_faults(|faults| faults.refuse_connections = false);
    let answer: Value = serde_json::from_str(&client.next().await).unwrap();
    let heads = answer["result"].as_str().unwrap();
    let blocks = control.mine_many(3);
    let mut hashes = Vec::new();
    while hashes.last() != Some(&json!(blocks[2].hash())) {
        let event = client.event().await;
        assert_eq!(event.subscription, heads);
        let head = event.json();
        assert!(hashes.last().is_none_or(|last| *last == head["parentHash"]));
        hashes.push(head["hash"].clone());
    }
    assert_eq!(hashes.len(), 3);
    assert_eq!(others.event().await.payload, "false");
}

#[tokio::test]
async fn the_stream_goes_on_from_the_second_node_without_a_seam() {
    let (first, second) = (node().await, node().await);
    let proxy = Proxy::start(&[first.ws_url(), second.ws_url()], |_| {}).await;
    proxy.connected().await;
    // The node that connected first is in use.
    let upstreams = proxy.upstreams().await;
    let (active, standby) = if upstreams[0]["active"] == true {
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
    assert_eq!(client.ask(FORWARDED).await, FORWARDED_ANSWER);
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

/// The second node is on another branch: that is only a reorg.
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
        second.handle().stats().connections > 0
    })
    .await;
    drop(first);
    client.expect(reorged(&reorg)).await;
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
    client.ask(FORWARDED).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// Silence timeout; half of it is the time limit for lag and forks. Long enough for a busy machine.
const SILENCE: Duration = Duration::from_secs(4);

/// An app with several nodes of one chain; the first is in use.
struct Several {
    nodes: Vec<Devnet>,
    /// Handles to `nodes`, in the same order.
    controls: Vec<Control>,
    proxy: Proxy,
    /// Directory of the Unix sockets.
    _folder: TempDir,
}

impl Several {
    async fn start(count: usize, transport: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut nodes = Vec::new();
        for i in 0..count {
            let ipc = Some(folder.path().join(format!("{i}.ipc")));
            nodes.push(
                Devnet::start(Config {
                    ipc,
                    ..Config::manual()
                })
                .await
                .unwrap(),
            );
        }
        // Only the first node may have another transport than WebSocket.
        let mut addresses: Vec<String> = nodes.iter().map(Devnet::ws_url).collect();
        match transport {
            "ipc" => addresses[0] = nodes[0].ipc_path().unwrap().display().to_string(),
            "http" => addresses[0] = nodes[0].http_url(),
            _ => {}
        }
        Self::before(nodes, &addresses, folder).await
    }

    async fn before(nodes: Vec<Devnet>, addresses: &[String], folder: TempDir) -> Self {
        let controls: Vec<Control> = nodes.iter().map(Devnet::handle).collect();
        let others = |refuse| {
            for control in &controls[1..] {
                control.set_faults(|faults| faults.refuse_connections = refuse);
            }
        };
        others(true);
        let edit = |typed: &mut typed::Config| {
            typed.node.silence_timeout = SILENCE;
            typed.node.failback_after = Duration::from_millis(500);
            typed.node.poll_interval = Duration::from_millis(20);
        };
        let proxy = Proxy::start(addresses, edit).await;
        proxy.settled(&controls[0]).await;
        others(false);
        Self {
            nodes,
            controls,
            proxy,
            _folder: folder,
        }
    }

    async fn stand(&self) {
        self.proxy.connected().await;
        assert_eq!(self.upstreams().await[0]["active"], true);
    }

    /// Returns the upstreams as the admin port shows them.
    async fn upstreams(&self) -> Vec<Value> {
        self.proxy.upstreams().await
    }

    async fn in_use(&self, id: usize) {
        eventually("another is in use", async || {
            self.upstreams().await[id]["active"] == true
        })
        .await;
    }

    async fn failovers(&self, reason: &str) -> f64 {
        let sample = format!("headwater_failovers_total{{reason=\"{reason}\"}}");
        self.proxy.metric(&sample).await
    }

    /// Mines the same block at all nodes.
    fn mine(&self) -> Arc<Block> {
        let blocks: Vec<_> = self.controls.iter().map(Control::mine).collect();
        assert!(blocks.iter().all(|block| block.hash() == blocks[0].hash()));
        blocks[0].clone()
    }
}

/// Stalls the node in use like a stopped process, whose sockets stay open unanswered; checks failover and failback.
async fn a_stalled_node_is_left_within_the_timeout_and_taken_back(transport: &str) {
    let several = Several::start(2, transport).await;
    several.stand().await;
    let mut client = several.proxy.watcher().await;
    client.expect(adopted(&[several.mine()])).await;
    several.controls[0].stall(None);
    let stalled = Instant::now();
    // The other node announces these first, so clients do not wait until the first is left.
    for _ in 0..3 {
        client.expect(adopted(&[several.mine()])).await;
    }
    assert!(stalled.elapsed() < SILENCE / 2, "{:?}", stalled.elapsed());
    several.in_use(1).await;
    assert!(
        stalled.elapsed() < SILENCE + Duration::from_secs(1),
        "{:?}",
        stalled.elapsed()
    );
    client.expect(adopted(&[several.mine()])).await;
    let reorgs: Vec<_> = several.controls.iter().map(|one| one.reorg(2, 3).unwrap()).collect();
    client.expect(reorged(&reorgs[1])).await;
    several.controls[0].resume();
    several.in_use(0).await;
    for _ in 0..3 {
        client.expect(adopted(&[several.mine()])).await;
    }
    assert_eq!(
        several.failovers("lagging").await + several.failovers("lost").await,
        1.0
    );
    assert_eq!(several.failovers("failback").await, 1.0);
    assert_eq!(several.proxy.metric("headwater_failover_seconds_count").await, 1.0);
}

#[tokio::test]
async fn a_stalled_node_is_left_and_taken_back_over_websocket() {
    a_stalled_node_is_left_within_the_timeout_and_taken_back("ws").await;
}

#[tokio::test]
async fn a_stalled_node_is_left_and_taken_back_over_ipc() {
    a_stalled_node_is_left_within_the_timeout_and_taken_back("ipc").await;
}

#[tokio::test]
async fn a_stalled_node_is_left_and_taken_back_over_http() {
    a_stalled_node_is_left_within_the_timeout_and_taken_back("http").await;
}

/// The remedy for a node without another one is a fresh connection.
#[tokio::test]
async fn a_stalled_node_without_another_is_connected_anew_and_nothing_is_missed() {
    for transport in ["ws", "ipc", "http"] {
        let several = Several::start(1, transport).await;
        several.stand().await;
        let mut client = several.proxy.watcher().await;
        client.expect(adopted(&[several.mine()])).await;
        several.controls[0].stall(None);
        let stalled = Instant::now();
        eventually("it is noticed", async || {
            several.upstreams().await[0]["connected"] == false
        })
        .await;
        assert!(
            stalled.elapsed() < SILENCE + Duration::from_secs(1),
            "{:?}",
            stalled.elapsed()
        );
        let missed: Vec<_> = (0..3).map(|_| several.mine()).collect();
        several.controls[0].resume();
        client.expect(adopted(&missed)).await;
        assert_eq!(several.upstreams().await[0]["connects"], 2);
    }
}

/// No block is mined, so no node lags: only silence shows the stall.
#[tokio::test]
async fn a_stalled_node_is_noticed_while_the_chain_rests() {
    for transport in ["ws", "http"] {
        let several = Several::start(2, transport).await;
        several.stand().await;
        several.controls[0].stall(None);
        let stalled = Instant::now();
        several.in_use(1).await;
        assert!(
            stalled.elapsed() < SILENCE + Duration::from_secs(1),
            "{:?}",
            stalled.elapsed()
        );
        assert_eq!(several.failovers("lost").await, 1.0);
    }
}

#[tokio::test]
async fn a_lost_node_is_left_at_once_and_taken_back_when_it_has_stood_for_a_while() {
    let several = Several::start(2, "ws").await;
    several.stand().await;
    let mut client = several.proxy.watcher().await;
    for round in 1..=3 {
        take_away(&several.controls[0]);
        for _ in 0..3 {
            client.expect(adopted(&[several.mine()])).await;
        }
        several.in_use(1).await;
        client.expect(adopted(&[several.mine()])).await;
        several.controls[0].set_faults(|faults| faults.refuse_connections = false);
        several.in_use(0).await;
        client.expect(adopted(&[several.mine()])).await;
        assert_eq!(several.failovers("lost").await, f64::from(round));
        assert_eq!(several.failovers("failback").await, f64::from(round));
    }
}

#[tokio::test]
async fn a_node_that_falls_behind_is_left_and_what_clients_ask_follows_what_they_were_shown() {
    let several = Several::start(2, "ws").await;
    several.stand().await;
    let mut client = several.proxy.watcher().await;
    let ahead = several.controls[1].mine_many(3);
    client.expect(adopted(&ahead)).await;
    for block in &ahead {
        let answer = client
            .call("eth_getBlockByNumber", json!([format!("{:#x}", block.number()), false]))
            .await;
        assert_eq!(answer["result"]["hash"], json!(block.hash()));
    }
    eventually("lag is shown", async || {
        several.upstreams().await[0]["lagSeconds"].as_f64().unwrap() > 0.0
    })
    .await;
    several.in_use(1).await;
    assert_eq!(several.failovers("lagging").await, 1.0);
    assert_eq!(several.controls[0].mine_many(3).last().unwrap().hash(), ahead[2].hash());
    several.in_use(0).await;
    client.expect(adopted(&[several.mine()])).await;
    let upstreams = several.upstreams().await;
    assert_eq!(upstreams[0]["head"], upstreams[1]["head"]);
    assert_eq!(several.proxy.metric("headwater_reorgs_total").await, 0.0);
}

#[tokio::test]
async fn a_node_alone_on_its_branch_is_left() {
    let several = Several::start(3, "ws").await;
    several.stand().await;
    let mut client = several.proxy.watcher().await;
    let blocks: Vec<_> = (0..3).map(|_| several.mine()).collect();
    client.expect(adopted(&blocks)).await;
    let alone = several.controls[0].mine();
    client.expect(adopted(std::slice::from_ref(&alone))).await;
    let reorg = several.controls[1].reorg(2, 3).unwrap();
    several.controls[2].reorg(2, 3).unwrap();
    // No node lags: all have the same height.
    assert_eq!(reorg.adopted[2].number(), alone.number());
    let all = [vec![alone], reorg.dropped.clone()].concat();
    client.expect([dropped(&all), adopted(&reorg.adopted)].concat()).await;
    assert_eq!(several.failovers("forked").await, 1.0);
}

/// The node in use is believed when two disagree, and the stream does not flap.
#[tokio::test]
async fn two_that_disagree_do_not_make_the_stream_flap() {
    let several = Several::start(2, "ws").await;
    several.stand().await;
    let mut client = several.proxy.watcher().await;
    let mut ours = vec![several.mine()];
    client.expect(adopted(&ours)).await;
    let mut theirs = several.controls[1].reorg(1, 1).unwrap().adopted;
    let until = Instant::now() + SILENCE;
    while Instant::now() < until {
        ours.insert(0, several.controls[0].mine());
        client.expect(adopted(&ours[..1])).await;
        theirs.push(several.controls[1].mine());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(several.upstreams().await[0]["active"], true);
    assert_eq!(several.proxy.metric("headwater_reorgs_total").await, 0.0);
    // A lost node is no longer believed; blocks that the other node announced before count from now on.
    take_away(&several.controls[0]);
    let lost = Instant::now();
    client.expect([dropped(&ours), adopted(&theirs)].concat()).await;
    assert!(lost.elapsed() < SILENCE / 4, "{:?}", lost.elapsed());
}

#[tokio::test]
async fn what_one_node_does_not_serve_is_asked_of_another() {
    let several = Several::start(2, "ws").await;
    several.stand().await;
    let mut client = several.proxy.watcher().await;
    several.controls[0].set_faults(|faults| faults.empty_log_answers = u32::MAX);
    client.expect(adopted(&[several.mine()])).await;
    several.controls[0].set_faults(|faults| {
        faults.empty_log_answers = 0;
        faults.failing_methods = vec!["eth_getLogs".into(), "eth_getBlockByHash".into()];
    });
    for control in &several.controls {
        control.set_faults(|faults| faults.skip_heads = 2);
    }
    let blocks: Vec<_> = (0..3).map(|_| several.mine()).collect();
    client.expect(adopted(&blocks)).await;
    several.controls[0].set_faults(|faults| {
        faults.failing_methods.clear();
        faults.delay = Some(Duration::from_secs(60));
    });
    // The node has announced the block and does not answer: a quarter of the timeout is spent on it.
    let asked = Instant::now();
    client.expect(adopted(&[several.mine()])).await;
    assert!(asked.elapsed() < SILENCE, "{:?}", asked.elapsed());
    several.controls[0].set_faults(|faults| faults.delay = None);
}

#[tokio::test]
async fn the_chain_that_is_set_is_served_whoever_is_reached_first() {
    let stranger = Config {
        chain_id: 5,
        ..Config::manual()
    };
    let stranger = Devnet::start(stranger).await.unwrap();
    let right = node().await;
    right.handle().set_faults(|faults| faults.refuse_connections = true);
    let addresses = [stranger.ws_url(), right.ws_url()];
    let proxy = Proxy::start(&addresses, |config| config.node.chain_id = 1337).await;
    let refused = r#"is on chain "0x5", and node.chain_id is "0x539": check upstreams"#;
    eventually("the stranger is refused", async || {
        let upstreams = proxy.upstreams().await;
        upstreams[0]["refused"]
            .as_str()
            .is_some_and(|why| why.ends_with(refused))
    })
    .await;
    right.handle().set_faults(|faults| faults.refuse_connections = false);
    proxy.settled(&right.handle()).await;
}

#[tokio::test]
async fn a_node_of_another_chain_is_refused_by_name() {
    let manual = Config::manual;
    let strangers = [
        (
            Config {
                chain_id: 5,
                ..manual()
            },
            r#"is on chain "0x5", but the others are on "0x539": check upstreams"#,
        ),
        (
            Config {
                genesis_timestamp: 1_700_000_001,
                ..manual()
            },
            "is on another chain than the others: its genesis is 0x",
        ),
    ];
    for (config, words) in strangers {
        for transport in ["ws", "http"] {
            let stranger = Devnet::start(config.clone()).await.unwrap();
            let name = match transport {
                "ws" => stranger.ws_url(),
                _ => stranger.http_url(),
            };
            let first = node().await;
            let addresses = [first.ws_url(), name.clone()];
            let several = Several::before(vec![first, stranger], &addresses, tempfile::tempdir().unwrap()).await;
            eventually("it is refused", async || {
                let stranger = &several.upstreams().await[1];
                let why = format!("{name} {words}");
                stranger["connected"] == false
                    && stranger["refused"]
                        .as_str()
                        .is_some_and(|received| received.starts_with(&why))
            })
            .await;
            let mut client = several.proxy.watcher().await;
            several.controls[1].mine_many(3);
            let blocks = several.controls[0].mine_many(3);
            client.expect(adopted(&blocks)).await;
            // The stranger is not used either when no other node is left.
            take_away(&several.controls[0]);
            several.proxy.unready().await;
            several.controls[0].set_faults(|faults| faults.refuse_connections = false);
            client.expect(adopted(&several.controls[0].mine_many(1))).await;
            drop(several.nodes);
        }
    }
}

/// Makes random nodes fail in random ways; checks that the heads still walk the tree, and that the logs add up.
async fn whatever_fails_nothing_is_lost_and_nothing_told_twice(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let several = Several::start(3, ["ws", "ipc", "http"][seed as usize % 3]).await;
    several.stand().await;
    let mut client = several.proxy.watcher().await;
    let (first, mut events) = (several.mine(), VecDeque::new());
    for _ in 0..60 {
        let control = &several.controls[rng.random_range(0..3)];
        let soon = Duration::from_millis(rng.random_range(50..1500));
        match rng.random_range(0..8) {
            0 => control.stall(Some(soon)),
            1 => control.disconnect(),
            2 => control.set_faults(|faults| faults.skip_heads = 2),
            3 => control.set_faults(|faults| faults.empty_log_answers = 2),
            4 => control.set_faults(|faults| faults.duplicate_heads ^= true),
            5 => control.set_faults(|faults| faults.late_heads = 2),
            6 => {
                take_away(control);
                let control = control.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(soon).await;
                    control.set_faults(|faults| faults.refuse_connections = false);
                });
            }
            _ => control.set_faults(|faults| faults.announce_tip_only_after_reorg ^= true),
        }
        if rng.random_bool(0.2) {
            // Not below the first block of the client's events.
            let above = several.controls[0].head().number() - first.number();
            let depth = rng.random_range(0..=above.min(3));
            for control in &several.controls {
                control.reorg(depth, depth + 1).unwrap();
            }
        } else {
            several.mine();
        }
        let pause = tokio::time::sleep(Duration::from_millis(rng.random_range(0..100)));
        let mut pause = std::pin::pin!(pause);
        while let Either::Left((event, _)) = select(std::pin::pin!(client.event()), &mut pause).await {
            events.push_back(event);
        }
    }
    let canonical: Vec<_> = several.controls[0].with_chain(|chain| {
        let numbers = first.number()..=chain.head().number();
        numbers.map(|number| chain.block_at(number).unwrap().clone()).collect()
    });
    let expected: BTreeSet<String> = adopted(&canonical)
        .into_iter()
        .filter(|line| line.starts_with("log"))
        .collect();
    let newest = json!(canonical.last().unwrap().hash());
    let (mut heads, mut live) = (Vec::new(), BTreeSet::new());
    while live != expected || heads.last() != Some(&newest) {
        let event = match events.pop_front() {
            Some(event) => event,
            None => client.event().await,
        };
        let json = event.json();
        match (json["hash"].as_str(), json["removed"].as_bool()) {
            (Some(_), _) => {
                let parent = heads.iter().rposition(|hash| *hash == json["parentHash"]);
                assert!(
                    parent.is_some() || heads.is_empty(),
                    "seed {seed}: {json} has no parent here"
                );
                heads.truncate(parent.map_or(0, |parent| parent + 1));
                heads.push(json["hash"].clone());
            }
            (None, removed) => {
                let hash = &json["blockHash"].as_str().unwrap()[..10];
                let (number, index) = (
                    json["blockNumber"].as_str().unwrap(),
                    json["logIndex"].as_str().unwrap(),
                );
                let log = format!("log {number} {hash} {index}");
                if removed == Some(true) {
                    assert!(
                        live.remove(&log),
                        "seed {seed}: {log} was never received, or is gone already"
                    );
                } else {
                    assert!(live.insert(log.clone()), "seed {seed}: {log} is received twice");
                }
            }
        }
    }
    assert_eq!(several.proxy.metric("headwater_continuity_lost_total").await, 0.0);
}

#[tokio::test]
async fn whatever_fails_nothing_is_lost() {
    let runs = (1..=3).map(whatever_fails_nothing_is_lost_and_nothing_told_twice);
    join_all(runs).await;
}

/// The new chain is lower than the old one: the node was taken for one that catches up, and no client was closed.
#[tokio::test]
async fn a_development_chain_that_was_started_anew_closes_clients_and_serves_new_ones() {
    for transport in ["ws", "http"] {
        let node = node().await;
        let (control, listen) = (node.handle(), node.address());
        let address = match transport {
            "ws" => node.ws_url(),
            _ => node.http_url(),
        };
        let proxy = Proxy::start(&[address], |typed| {
            typed.history.blocks = 8;
            typed.node.poll_interval = Duration::from_millis(20);
        })
        .await;
        proxy.settled(&control).await;
        let mut client = proxy.watcher().await;
        for _ in 0..10 {
            client.expect(adopted(&control.mine_many(4))).await;
        }
        drop((node, control));
        proxy.unready().await;
        let anew = Config {
            listen,
            genesis_timestamp: 1_800_000_000,
            ..Config::manual()
        };
        let node = Devnet::start(anew).await.unwrap();
        let (_, code, _) = client.closed().await;
        assert_eq!(code, 1012, "{transport}");
        proxy.settled(&node.handle()).await;
        let mut client = proxy.watcher().await;
        client.expect(adopted(&node.handle().mine_many(3))).await;
        assert_eq!(
            proxy
                .metric("headwater_continuity_lost_total{reason=\"replaced\"}")
                .await,
            1.0
        );
    }
}
