//! Headwaters behind headwaters: edges that have roots as their nodes.

use headwater::config::typed;
use headwater::devnet::{Block, Control, Devnet};
use headwater::door::ApiKey;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{Proxy, adopted, eventually, node, reorged};
use crate::keys::allow;

/// Starts a root in front of the node, and returns the address at which an edge with the key reaches it.
async fn root(node: &Devnet, key: &ApiKey, more: &str, edit: impl FnOnce(&mut typed::Config)) -> (Proxy, String) {
    let root = Proxy::start(&[node.ws_url()], |config| {
        allow(config, "edges", key, more);
        edit(config);
    })
    .await;
    root.connected().await;
    let address = format!("ws://{}/{}", root.address, key.reveal());
    (root, address)
}

async fn edge(roots: &[&String]) -> Proxy {
    let roots: Vec<String> = roots.iter().copied().cloned().collect();
    let edge = Proxy::start(&roots, |_| {}).await;
    edge.connected().await;
    edge
}

fn after(block: &Block) -> Value {
    json!({"after": {"blockHash": block.hash()}})
}

/// One client of an edge calls more than a client of the root may. With `edge = true` all calls are answered, and nobody
/// behind the edge notices; without, the edge is refused like any client.
#[tokio::test]
async fn an_edge_is_not_one_client() {
    for (more, is_edge) in [("edge = true", true), ("", false)] {
        let (node, key) = (node().await, ApiKey::random());
        let control = node.handle();
        let (root, address) = root(&node, &key, more, |config| {
            (config.limits.requests_per_second, config.limits.request_burst) = (20, 40);
            config.limits.max_batch = 40;
        })
        .await;
        let edge = edge(&[&address]).await;
        let (mut below, mut beside) = (edge.client().await, root.client().await);
        below.subscribe(json!(["newHeads"])).await;
        beside.subscribe(json!(["newHeads"])).await;
        let mut caller = edge.client().await;
        let mut refused = 0;
        for number in 0..300 {
            let params = json!([format!("{number:#042x}"), "latest"]);
            let answer = caller.call("eth_getBalance", params).await;
            refused += usize::from(answer.get("error").is_some());
        }
        assert_eq!(refused == 0, is_edge, "{refused} refused, {more}");
        if is_edge {
            let blocks = control.mine_many(3);
            let heads: Vec<String> = adopted(&blocks)
                .into_iter()
                .filter(|line| line.starts_with("head"))
                .collect();
            below.expect(heads.clone()).await;
            beside.expect(heads).await;
            assert_eq!(root.metric("headwater_refused_total{reason=\"requests\"}").await, 0.0);
        }
    }
}

/// The longest message that an edge takes from a client is a little longer on its way to the root.
#[tokio::test]
async fn the_longest_message_of_an_edges_client_reaches_the_node() {
    let (node, key) = (node().await, ApiKey::random());
    let (_root, address) = root(&node, &key, "edge = true", |_| {}).await;
    let edge = edge(&[&address]).await;
    let mut client = edge.client().await;
    client.subscribe(json!(["newHeads"])).await;
    let max = typed::Config::default().limits.max_message_bytes.as_u64() as usize;
    let around = json!({"jsonrpc": "2.0", "id": 7, "method": "eth_call", "params": [{"data": "0x"}, "latest"]});
    let room = (max - around.to_string().len()) & !1;
    let params = json!([{"data": format!("0x{}", "0".repeat(room))}, "latest"]);
    let answer = client.call("eth_call", params).await;
    // The node's own limit, if it has one, is the node's to say.
    assert!(
        answer.get("result").is_some() || answer["error"]["code"] != -32603,
        "{answer}"
    );
    let block = node.handle().mine();
    let head = adopted(&[block]).into_iter().find(|line| line.starts_with("head"));
    client.expect(head.into_iter().collect()).await;
    assert_eq!(
        edge.metric("headwater_upstream_reconnects_total{upstream=\"0\"}").await,
        0.0
    );
}

/// Two roots, three edges, reorgs, one root that ends, and a client that moves from edge to edge with `after`.
#[tokio::test]
async fn a_client_that_moves_between_edges_misses_nothing_while_a_root_ends() {
    let (node, key) = (node().await, ApiKey::random());
    let control = node.handle();
    control.mine_many(5);
    let (first, one) = root(&node, &key, "edge = true", |_| {}).await;
    let (_second, two) = root(&node, &key, "edge = true", |_| {}).await;
    let mut edges = Vec::new();
    for _ in 0..3 {
        edges.push(edge(&[&one, &two]).await);
    }
    let mut stayer = edges[0].client().await;
    stayer.subscribe(json!(["newHeads"])).await;
    stayer.subscribe(json!(["logs", {}])).await;
    let mut last = control.mine();
    stayer.expect(adopted(std::slice::from_ref(&last))).await;
    let mut first = Some(first);
    for turn in 0..6 {
        let mut mover = edges[turn % 3].client().await;
        let mut expected: Vec<Arc<Block>> = Vec::new();
        if turn > 0 {
            // A block that the client does not have yet, and that its next edge may not have either.
            let block = control.mine();
            stayer.expect(adopted(std::slice::from_ref(&block))).await;
            expected.push(block);
        }
        let heads = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads", after(&last)]});
        let logs = json!({"jsonrpc": "2.0", "id": 2, "method": "eth_subscribe", "params": ["logs", {}, after(&last)]});
        let answer = mover.ask(json!([heads, logs]).to_string()).await;
        assert!(!answer.contains("error"), "{answer}");
        mover.expect(adopted(&expected)).await;
        if turn == 2 {
            // The root in use ends; the edges go on with the other.
            first.take().expect("once").stop();
        }
        let block = control.mine();
        stayer.expect(adopted(std::slice::from_ref(&block))).await;
        mover.expect(adopted(std::slice::from_ref(&block))).await;
        let reorg = control.reorg(2, 3).unwrap();
        stayer.expect(reorged(&reorg)).await;
        mover.expect(reorged(&reorg)).await;
        last = control.head();
    }
}

/// Makes a gateway of the node that reaches nothing but heads.
fn cut_off(control: &Control, is_cut: bool) {
    let contents = ["eth_getLogs", "eth_getBlockReceipts", "eth_getTransactionReceipt"];
    control.set_faults(|faults| {
        faults.failing_methods = contents.into_iter().filter(|_| is_cut).map(String::from).collect();
        faults.failure = (-32603, "upstream unavailable".into());
    });
}

/// A gateway reaches no node for several times `node.silence_timeout`, and no block comes. The logs are late, and nobody is
/// closed.
#[tokio::test]
async fn logs_of_a_block_wait_for_a_gateway_that_is_cut_off_from_the_chain() {
    let node = node().await;
    let control = node.handle();
    let proxy = Proxy::start(&[node.ws_url()], |config| {
        config.node.silence_timeout = Duration::from_millis(300);
    })
    .await;
    proxy.connected().await;
    let mut client = proxy.client().await;
    client.subscribe(json!(["newHeads"])).await;
    client.subscribe(json!(["logs", {}])).await;
    cut_off(&control, true);
    let block = control.mine();
    eventually("it was asked for long", async || {
        // With the waits between them, 40 questions in three ways take several seconds.
        proxy
            .metric("headwater_log_retries_total{reason=\"call_failed\"}")
            .await
            >= 40.0
    })
    .await;
    cut_off(&control, false);
    client.expect(adopted(&[block])).await;
    assert_eq!(
        proxy
            .metric("headwater_continuity_lost_total{reason=\"no_logs\"}")
            .await,
        0.0
    );
}

/// The same gateway announces blocks, and reaches no node for their logs: that is a loss, and clients learn of it. When it
/// reaches one again, subscriptions are accepted at the next block, not after a minute.
#[tokio::test]
async fn after_a_gateway_that_withheld_logs_subscriptions_are_accepted_at_once() {
    let node = node().await;
    let control = node.handle();
    let proxy = Proxy::start(&[node.ws_url()], |config| {
        config.node.silence_timeout = Duration::from_millis(300);
    })
    .await;
    proxy.connected().await;
    let mut heads = proxy.client().await;
    heads.subscribe(json!(["newHeads"])).await;
    for _ in 0..2 {
        let mut client = proxy.client().await;
        eventually("a subscription", async || {
            control.mine();
            client.call("eth_subscribe", json!(["logs", {}])).await["result"].is_string()
        })
        .await;
        cut_off(&control, true);
        let closing = client.closed();
        let mining = async {
            loop {
                control.mine();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (_, code, _) = tokio::select! { closed = closing => closed, () = mining => unreachable!("it has no end") };
        assert_eq!(code, 1012);
        let refused = proxy.client().await.call("eth_subscribe", json!(["logs", {}])).await;
        assert_eq!(refused["error"]["code"], -32000, "{refused}");
        cut_off(&control, false);
    }
    let losses = proxy
        .metric("headwater_continuity_lost_total{reason=\"no_logs\"}")
        .await;
    assert_eq!(losses, 2.0);
}
