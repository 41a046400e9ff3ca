//! Former faults, each with its story.

use std::time::Duration;

use headwater::devnet;
use serde_json::{Value, json};

use crate::harness::{Proxy, Rig, adopted, dropped, eventually, node, take_away};
use crate::wire::{CLOSE, TEXT, Wire, close, http};

/// The id is echoed in front of the answer. Only the part behind it was cut into fragments, which panicked, and the
/// session's resources were never released.
#[tokio::test]
async fn an_id_of_a_megabyte_is_echoed_and_costs_nothing_afterwards() {
    let rig = Rig::start().await;
    for (method, params) in [("eth_chainId", json!([])), ("eth_subscribe", json!(["newHeads", 1]))] {
        let mut client = rig.client().await;
        let id = "A".repeat(1_100_000);
        client.subscribe(json!(["newHeads"])).await;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let answer: Value = serde_json::from_str(&client.ask(request.to_string()).await).unwrap();
        assert_eq!(answer["id"], id);
    }
    eventually("nobody is left", async || {
        rig.metric("headwater_clients").await == 0.0
            && rig.metric("headwater_subscriptions{kind=\"newHeads\"}").await == 0.0
    })
    .await;
}

/// The second reason to close was ignored, so that the same bytes were refused for ever, at the cost of a whole core.
#[tokio::test]
async fn a_broken_frame_behind_a_close_frame_ends_the_connection() {
    let rig = Rig::start().await;
    let mut wire = Wire::open(rig.address).await;
    let broken = [crate::wire::frame(CLOSE, close(1000, "")), vec![0xff, 0xff, 0xff, 0xff]].concat();
    wire.write(broken).await;
    assert_eq!(wire.closed().await, (0, Some(1000)));
    wire.ends().await;
    eventually("nobody is left", async || rig.metric("headwater_clients").await == 0.0).await;
}

/// Seven million items were read and kept before the batch was found too large.
#[tokio::test]
async fn a_batch_is_read_no_further_than_its_limit() {
    let rig = Rig::start().await;
    let mut wire = Wire::open(rig.address).await;
    let batch = format!("[{}0]", "0,".repeat(2_000_000));
    wire.send(TEXT, batch).await;
    let answer = wire.text().await;
    assert!(
        answer.contains("batch too large") && answer.starts_with("[{"),
        "{answer}"
    );
    wire.works().await;
}

/// Messages were charged after they were parsed; malformed ones were free.
#[tokio::test]
async fn long_nonsense_uses_up_the_quota() {
    let rig = Rig::with(|typed| {
        typed.limits.requests_per_second = 1;
        typed.limits.request_burst = 40;
        typed.limits.max_batch = 10;
    })
    .await;
    let mut wire = Wire::open(rig.address).await;
    let nonsense = "x".repeat(1 << 20);
    let mut refused = 0;
    for _ in 0..4 {
        wire.send(TEXT, &nonsense).await;
        let answer = wire.text().await;
        assert!(answer.contains("-32700") || answer.contains("-32005"), "{answer}");
        refused += usize::from(answer.contains("-32005"));
    }
    assert!(refused >= 1, "64 requests' worth of bytes against a quota of 40");
}

/// A malformed filter became `null`, and `null` matches every log.
#[tokio::test]
async fn a_filter_that_cannot_be_read_is_refused() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    for unreadable in ["1e999", "\"\\ud800\"", &("[".repeat(200) + &"]".repeat(200))] {
        let request =
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{{"x":{unreadable}}}]}}"#);
        let answer: Value = serde_json::from_str(&client.ask(request).await).unwrap();
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
    }
}

/// A subscription in a batch with a slow call stopped the events of all other subscriptions until the node answered.
#[tokio::test]
async fn a_batch_that_waits_for_the_node_holds_nobody_up() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let before = client.subscribe(json!(["newHeads"])).await;
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_millis(1500)));
    let batch = json!([
        {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_gasPrice"},
    ]);
    client.send(batch.to_string()).await;
    let block = rig.control.mine();
    let head = client.event().await;
    assert_eq!(json!(head.subscription), before, "no answer came in between");
    assert_eq!(head.json()["hash"], json!(block.hash()));
    let answer: Value = serde_json::from_str(&client.next().await).unwrap();
    let (new, block) = (&answer[0]["result"], rig.control.mine());
    let heads = [client.event().await, client.event().await];
    assert!(heads.iter().all(|head| head.json()["hash"] == json!(block.hash())));
    assert!(
        heads.iter().any(|head| json!(head.subscription) == *new),
        "and from its answer on it has its own"
    );
}

/// A page of another site could post to a node on its visitor's machine.
#[tokio::test]
async fn a_strange_page_cannot_post() {
    let rig = Rig::start().await;
    let head = |origin: &str| format!("POST / HTTP/1.1\r\ncontent-type: application/json\r\norigin: {origin}");
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#;
    assert_eq!(http(rig.address, &head("http://evil.example"), call).await.status, 403);
    assert_eq!(
        http(rig.address, &head("http://localhost:3000"), call).await.status,
        200
    );
}

/// An IPC socket serves methods that are for the node's operator alone.
#[tokio::test]
async fn the_operators_methods_are_not_forwarded() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    for method in [
        "admin_peers",
        "debug_setHead",
        "personal_listAccounts",
        "miner_start",
        "engine_newPayloadV4",
    ] {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": []});
        let answer: Value = serde_json::from_str(&client.ask(request.to_string()).await).unwrap();
        let words = format!("the method {method} does not exist/is not available");
        assert_eq!(answer["error"], json!({"code": -32601, "message": words}));
    }
    let calls = rig.control.stats().calls;
    assert!(
        !calls
            .keys()
            .any(|name| name.starts_with("debug_") || name.starts_with("admin_")),
        "{calls:?}"
    );
}

/// A node far behind was taken for lost continuity: all clients were closed and had to start again at an older head.
#[tokio::test]
async fn a_failover_to_a_node_that_is_far_behind_closes_nobody() {
    let (ahead, behind) = (node().await, node().await);
    ahead.handle().mine_many(40);
    behind.handle().set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[ahead.ws_url(), behind.ws_url()], |typed| typed.history.blocks = 8).await;
    proxy.ready().await;
    behind.handle().set_faults(|faults| faults.refuse_connections = false);
    eventually("both stand", async || {
        proxy
            .metric(&format!("headwater_upstream_up{{upstream=\"{}\"}}", behind.ws_url()))
            .await
            == 1.0
            && proxy
                .metric(&format!("headwater_upstream_up{{upstream=\"{}\"}}", ahead.ws_url()))
                .await
                == 1.0
    })
    .await;
    let mut client = proxy.client().await;
    client.subscribe(json!(["newHeads"])).await;
    take_away(&ahead.handle());
    behind.handle().mine();
    // Calls go to the node that remains, and no head goes back to older blocks.
    eventually("the other one answers", async || {
        client.call("eth_chainId", json!([])).await["result"] == "0x539"
    })
    .await;
    behind.handle().mine();
    let newest = behind.handle().mine_many(45).pop().unwrap();
    loop {
        let head = client.event().await;
        let number = u64::from_str_radix(head.json()["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
        assert!(number > 40, "head {number} lies behind what was received");
        if head.json()["hash"] == json!(newest.hash()) {
            break;
        }
    }
}

/// Heads that a node does not announce were not asked for.
#[tokio::test]
async fn a_node_that_announces_nothing_is_asked_and_then_left() {
    let node = node().await;
    let rig = Rig::before(node, |typed| typed.node.silence_timeout = Duration::from_secs(2)).await;
    let mut client = rig.client().await;
    client.subscribe(json!(["newHeads"])).await;
    rig.control.set_faults(|faults| faults.skip_heads = 2);
    for block in rig.control.mine_many(2) {
        let head = client.event().await;
        assert_eq!(head.json()["hash"], json!(block.hash()), "found by asking");
    }
}

/// A reconnection to the same head left a flag set by which a node that is behind is tolerated.
#[tokio::test]
async fn a_rewind_after_a_reconnection_is_told() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    let blocks = rig.control.mine_many(3);
    client.expect(adopted(&blocks)).await;
    rig.control.disconnect();
    eventually("it is back", async || {
        rig.control.stats().subscriptions.contains_key("newHeads") && rig.control.stats().connections_opened > 2
    })
    .await;
    // The first request for the newest block is done when later calls are answered.
    rig.settled(&rig.control).await;
    let change = rig.control.rewind(1).unwrap();
    let replaced = rig.control.mine();
    client.expect(dropped(&change.dropped)).await;
    client.expect(adopted(&[replaced])).await;
}

/// Answers that the client had not read yet closed the connection as a slow consumer, with all its subscriptions.
#[tokio::test]
async fn long_answers_to_parallel_calls_do_not_close_a_client_that_reads() {
    let node = devnet::Config {
        log_data_bytes: 16 << 10,
        initial_blocks: 24,
        ..devnet::Config::manual()
    };
    let rig = Rig::before(devnet::Devnet::start(node).await.unwrap(), |_| {}).await;
    let mut client = rig.client().await;
    let logs = json!({"jsonrpc": "2.0", "id": "x", "method": "eth_getLogs", "params": [{"fromBlock": "0x1", "toBlock": "0x18"}]});
    for _ in 0..8 {
        client.send(logs.to_string()).await;
    }
    // The client reads nothing until the node has answered all.
    eventually("all answers", async || {
        rig.metric("headwater_requests_total{outcome=\"result\"}").await
            + rig.metric("headwater_requests_total{outcome=\"error\"}").await
            >= 8.0
    })
    .await;
    let mut whole = 0;
    for _ in 0..8 {
        let answer = client.next().await;
        whole += usize::from(answer.len() > 4 << 20);
        assert!(
            answer.len() > 4 << 20 || answer.contains(r#""id":"x","error":{"code":-32003"#),
            "{answer}"
        );
    }
    assert!(whole >= 3, "as many as delivery.max_queue_bytes holds");
    client.call("eth_chainId", json!([])).await;
}

/// Only the head of a request had a deadline.
#[tokio::test]
async fn a_body_that_never_comes_does_not_hold_its_place_for_ever() {
    let rig = Rig::with(|config| config.server.header_timeout = Duration::from_millis(100)).await;
    let mut wire = Wire::connect(rig.address).await;
    let head = "POST / HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\ncontent-length: 100";
    let reply = wire.handshake(head, b"").await;
    assert_eq!(reply.status, 408);
}

/// Input after a violation is not read, so the client's close frame was not seen either.
#[tokio::test]
async fn after_a_violation_the_connection_ends_when_the_close_frame_is_answered() {
    let rig = Rig::start().await;
    let mut wire = Wire::open(rig.address).await;
    wire.send(0x83, "").await;
    assert_eq!(wire.closed().await, (0, Some(1002)));
    wire.send(CLOSE, close(1002, "")).await;
    wire.ends().await;
}

/// J11: geth's `isResponse` counts `"result":null`, the answer of a call without a result.
#[tokio::test]
async fn a_response_whose_result_is_null_is_ignored() {
    let rig = Rig::start().await;
    assert_eq!(rig.post(r#"{"jsonrpc":"2.0","id":1,"result":null}"#).await, "");
}
