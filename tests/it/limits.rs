//! PROTOCOL 1.12: limits of clients, and slow consumers.

use std::time::Duration;

use bytesize::ByteSize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::{Event, Proxy, Rig, adopted, eventually, node, node_with_logs_of};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, FORWARDED, FORWARDED_ANSWER, PING, TEXT, UPGRADE, Wire, http};

fn errors(answer: &str) -> (usize, Option<u64>) {
    let answer: Value = serde_json::from_str(answer).unwrap();
    let all = answer.as_array().cloned().unwrap_or_else(|| vec![answer]);
    let mut hint = None;
    let failed = all.iter().filter(|one| match one.get("error") {
        None => false,
        Some(error) => {
            assert_eq!(
                (&error["code"], &error["message"]),
                (&json!(-32005), &json!("limit exceeded"))
            );
            hint = error["data"]["retryAfterMs"].as_u64();
            true
        }
    });
    (failed.count(), hint)
}

#[tokio::test]
async fn requests_above_the_quota_are_told_when_to_come_again() {
    let node = node().await;
    let rig = Proxy::start(&[node.ws_url()], |config| {
        config.limits.request_burst = 10;
        config.limits.requests_per_second = 2;
        config.limits.max_batch = 8;
    })
    .await;
    rig.ready().await;
    let mut client = rig.client().await;
    // Each item of a batch counts, also one without an answer.
    let mut batch = vec![CHAIN_ID; 7];
    batch.push(r#"{"jsonrpc":"2.0","method":"eth_chainId"}"#);
    assert_eq!(errors(&client.ask(format!("[{}]", batch.join(","))).await).0, 0);
    assert_eq!(errors(&client.ask(format!("[{CHAIN_ID},{CHAIN_ID}]")).await).0, 0);
    let (failed, hint) = errors(&client.ask(CHAIN_ID).await);
    assert_eq!(failed, 1);
    assert!((1..=501).contains(&hint.unwrap()), "{hint:?}");
    let (failed, hint) = errors(&client.ask(format!("[{CHAIN_ID},{CHAIN_ID}]")).await);
    assert_eq!(failed, 2, "all of a batch or nothing");
    assert!((500..=1001).contains(&hint.unwrap()), "{hint:?}");
    // The quota is for the address: its other connections, and HTTP, share it.
    assert_eq!(errors(&rig.client().await.ask(CHAIN_ID).await).0, 1);
    for (body, items) in [(CHAIN_ID.to_owned(), 1), (format!("[{CHAIN_ID},{CHAIN_ID}]"), 2)] {
        let reply = rig.post_for(429, body).await;
        assert_eq!(errors(&reply.body).0, items);
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    assert!(rig.metric(r#"headwater_refused_total{reason="requests"}"#).await >= 7.0);
    // A client that waits for the announced time is served.
    eventually("the quota fills up", async || {
        errors(&client.ask(CHAIN_ID).await).0 == 0
    })
    .await;
}

/// A body is charged before it is read, also where its length is not declared.
#[tokio::test]
async fn a_body_beyond_the_quota_is_not_read() {
    const UNIT: usize = 64 << 10;
    let node = node().await;
    let rig = Proxy::start(&[node.ws_url()], |config| {
        config.limits.request_burst = 60;
        config.limits.requests_per_second = 1;
        config.limits.max_batch = 10;
    })
    .await;
    rig.ready().await;
    let post = |length: &str| format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{length}");
    let announce = async |length: usize| {
        let mut wire = Wire::connect(rig.address).await;
        wire.handshake(&post(&format!("content-length: {length}")), b"").await
    };
    // No byte of the body was sent.
    assert_eq!(announce(61 * UNIT).await.status, 429);
    // A body within the quota is read; one more unit is charged because the body has no request.
    let spaces = " ".repeat(59 * UNIT);
    let head = "POST / HTTP/1.1\r\ncontent-type: application/json";
    assert_eq!(http(rig.address, head, &spaces).await.status, 200);
    let reply = announce(50 * UNIT).await;
    assert_eq!((reply.status, reply.header("retry-after").is_some()), (429, true));
    // The requests are faster than the quota refills.
    let chunks = format!("transfer-encoding: chunked\r\n\r\n{UNIT:x}\r\n{}\r\n0", &spaces[..UNIT]);
    eventually("of a body without a length a piece is too much", async || {
        let mut wire = Wire::connect(rig.address).await;
        wire.try_handshake(&post(&chunks)).await == Some(429)
    })
    .await;
    assert!(rig.metric(r#"headwater_refused_total{reason="requests"}"#).await >= 3.0);
    // A short body is read, so that the answer has the request's id.
    let reply = rig.post_for(429, format!("[{}]", [CHAIN_ID; 10].join(","))).await;
    assert_eq!(errors(&reply.body).0, 10);
}

/// Garbage is answered, so it is charged; otherwise it would be free.
#[tokio::test]
async fn what_holds_no_request_counts_as_one() {
    let node = node().await;
    let rig = Proxy::start(&[node.ws_url()], |config| {
        config.limits.request_burst = 8;
        config.limits.requests_per_second = 1;
        config.limits.max_batch = 2;
    })
    .await;
    rig.ready().await;
    let mut client = rig.client().await;
    for garbage in ["{", "[]", "[1,2,3]"] {
        // The requests are faster than the quota refills.
        eventually(garbage, async || client.ask(garbage).await.contains("-32005")).await;
        eventually(garbage, async || {
            let head = "POST / HTTP/1.1\r\ncontent-type: application/json";
            http(rig.address, head, garbage).await.status == 429
        })
        .await;
    }
    assert!(rig.metric(r#"headwater_refused_total{reason="requests"}"#).await >= 6.0);
}

#[tokio::test]
async fn subscriptions_up_to_the_limit_and_not_one_more() {
    let rig = Rig::with(|config| config.limits.max_subscriptions = 3).await;
    let mut client = rig.client().await;
    let first = client.subscribe(json!(["newHeads"])).await;
    client.subscribe(json!(["logs"])).await;
    client.subscribe(json!(["newHeads"])).await;
    for _ in 0..2 {
        let refused = client.call("eth_subscribe", json!(["newHeads"])).await;
        assert_eq!(refused["error"]["code"], -32005);
        assert!(
            refused["error"]["message"]
                .as_str()
                .unwrap()
                .starts_with("limit exceeded")
        );
    }
    rig.client().await.subscribe(json!(["newHeads"])).await;
    assert_eq!(client.unsubscribe(&first).await["result"], true);
    client.subscribe(json!(["newHeads"])).await;
}

#[tokio::test]
async fn calls_in_flight_up_to_the_limit_and_not_one_more() {
    let rig = Rig::with(|config| config.limits.max_in_flight = 3).await;
    let mut client = rig.client().await;
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_millis(300)));
    let call = |id: u32| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"eth_syncing"}}"#);
    client.send(call(0)).await;
    // A batch needs one place, though more of its items could use one.
    client.send(format!("[{},{}]", call(1), call(2))).await;
    client.send(call(3)).await;
    client.send(call(4)).await;
    client.send(format!("[{},{}]", call(5), call(6))).await;
    for ids in [vec![4], vec![5, 6]] {
        let answer: Value = serde_json::from_str(&client.next().await).unwrap();
        let all = answer.as_array().cloned().unwrap_or_else(|| vec![answer]);
        assert_eq!(
            all.iter().map(|one| one["id"].as_u64().unwrap()).collect::<Vec<_>>(),
            ids
        );
        assert!(all.iter().all(|one| one["error"]["code"] == -32005));
    }
    // Requests that need no node are not counted.
    client.subscribe(json!(["newHeads"])).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(client.next().await);
    }
    assert!(answers.iter().all(|answer| answer.contains("false")), "{answers:?}");
    assert_eq!(
        client.ask(FORWARDED).await,
        FORWARDED_ANSWER,
        "the places are free again"
    );
}

/// A batch takes half of eight places, and leaves the others to later requests.
#[tokio::test]
async fn items_of_a_batch_take_places_of_their_own_and_wait_for_them() {
    let rig = Rig::with(|config| config.limits.max_in_flight = 8).await;
    let in_flight = async |count: u64| {
        eventually("so many wait for the node", async || {
            let now = rig.upstreams().await[0]["callsInFlight"].as_u64().unwrap();
            assert!(now <= count, "{now} of {count}");
            now == count
        })
        .await;
    };
    let call = |of: u64, id: u64| {
        let account = alloy_primitives::Address::left_padding_from(&(1000 * of + id).to_be_bytes());
        json!({"jsonrpc": "2.0", "id": id, "method": "eth_getBalance", "params": [account, "latest"]})
    };
    let batch = |of| Value::from((0..20).map(|id| call(of, id)).collect::<Vec<_>>()).to_string();
    let (mut client, mut other) = (rig.client().await, rig.client().await);
    client.become_known().await;
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_secs(60)));
    client.send(batch(1)).await;
    in_flight(4).await;
    client.send(batch(2)).await;
    in_flight(5).await;
    for id in 20..23 {
        client.send(call(1, id).to_string()).await;
    }
    in_flight(8).await;
    for refused in [call(1, 23).to_string(), batch(3)] {
        assert!(client.ask(refused).await.contains("-32005"));
    }
    // No other client is affected.
    for id in 0..8 {
        other.send(call(4, id).to_string()).await;
    }
    in_flight(16).await;
    let posted = rig.post(batch(5));
    let all = async {
        in_flight(24).await;
        rig.control.set_faults(|faults| faults.delay = None);
        rig.control.disconnect();
    };
    let (posted, ()) = futures_util::join!(posted, all);
    let whole = |answer: &str| {
        let answer: Value = serde_json::from_str(answer).unwrap();
        let all = answer.as_array().unwrap();
        all.iter().map(|one| one["id"].as_u64().unwrap()).eq(0..20) && all.iter().all(|one| one["result"].is_string())
    };
    assert!(whole(&posted), "{posted}");
    let mut batches = 0;
    for _ in 0..5 {
        let answer = client.next().await;
        batches += usize::from(answer.starts_with('[') && whole(&answer));
    }
    assert_eq!(batches, 2);
    // All places are free again. The batch comes last: alone it would take half of them.
    for id in 20..27 {
        client.send(call(6, id).to_string()).await;
    }
    client.send(batch(6)).await;
    for _ in 0..8 {
        let answer = client.next().await;
        assert!(answer.contains("result") && !answer.contains("-32005"), "{answer}");
    }
}

/// Items that no client waits for are not sent.
#[tokio::test]
async fn a_batch_whose_client_left_goes_no_further() {
    let rig = Rig::with(|config| config.limits.max_in_flight = 2).await;
    let calls = |rig: &Rig| rig.control.stats().calls.get("eth_getBalance").copied().unwrap_or(0);
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_millis(20)));
    let call = |id: u64| {
        let account = alloy_primitives::Address::left_padding_from(&id.to_be_bytes());
        json!({"jsonrpc": "2.0", "id": id, "method": "eth_getBalance", "params": [account, "latest"]})
    };
    let mut client = rig.client().await;
    let batch = Value::from((0..50).map(call).collect::<Vec<_>>()).to_string();
    client.send(batch).await;
    eventually("it is under way", async || calls(&rig) >= 1).await;
    let gone = async || rig.metric(r#"headwater_closes_total{reason="gone"}"#).await;
    let before = gone().await;
    drop(client);
    eventually("it has left", async || gone().await > before).await;
    let mut other = rig.client().await;
    let before = calls(&rig);
    for id in 100..120 {
        other.ask(call(id).to_string()).await;
    }
    // The two items that were in flight may have been sent meanwhile.
    assert!(calls(&rig) - before <= 20 + 2, "{}", calls(&rig) - before);
}

/// The answer says that the whole batch failed, so no subscription of the batch may stay.
#[tokio::test]
async fn a_refused_batch_leaves_no_subscription_behind() {
    let rig = Rig::with(|config| config.limits.max_in_flight = 1).await;
    let mut client = rig.client().await;
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_millis(300)));
    client.send(FORWARDED).await;
    let subscribe = json!({"jsonrpc": "2.0", "id": 2, "method": "eth_subscribe", "params": ["newHeads"]});
    client.send(format!("[{subscribe},{FORWARDED}]")).await;
    let refused: Value = serde_json::from_str(&client.next().await).unwrap();
    assert!(
        refused
            .as_array()
            .unwrap()
            .iter()
            .all(|one| one["error"]["code"] == -32005),
        "{refused}"
    );
    assert_eq!(client.next().await, FORWARDED_ANSWER);
    rig.control.set_faults(|faults| faults.delay = None);
    assert_eq!(rig.metric(r#"headwater_subscriptions{kind="newHeads"}"#).await, 0.0);
}

#[tokio::test]
async fn a_batch_up_to_the_limit_and_not_one_more() {
    let rig = Rig::with(|config| config.limits.max_batch = 3).await;
    let mut client = rig.client().await;
    let batch = |count: usize| format!("[{}]", vec![CHAIN_ID; count].join(","));
    let refused = r#"[{"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"batch too large"}}]"#;
    let three = format!("[{}]", [CHAIN_ID_ANSWER; 3].join(","));
    for (sent, answer) in [(batch(3), three.as_str()), (batch(4), refused)] {
        assert_eq!(client.ask(sent.clone()).await, answer);
        assert_eq!(rig.post(sent).await, answer);
    }
    let nameless = r#"[{"jsonrpc":"2.0","method":"m"},1,2,3]"#;
    assert_eq!(rig.post(nameless).await, refused.replace(r#""id":1"#, r#""id":null"#));
}

/// The bound is for one client; the others are not affected.
#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_the_others_get_everything() {
    let rig = Rig::before(node_with_logs_of(64 << 10).await, |config| {
        config.delivery.max_queue_bytes = ByteSize::mib(1);
    })
    .await;
    let subscribe = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs"]}"#;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut wire = Wire::open_with(rig.address, b"", Some(16 << 10)).await;
        wire.send(TEXT, subscribe).await;
        assert!(wire.text().await.contains("result"));
        stalled.push(wire);
    }
    let (mut one, mut two) = (rig.watcher().await, rig.watcher().await);
    // About 400 kB a block.
    for _ in 0..8 {
        let block = rig.control.mine();
        let story = adopted(&[block]);
        one.expect(story.clone()).await;
        two.expect(story).await;
    }
    // The client that reads after all learns why; all messages before the close frame are whole.
    let (bytes, code) = stalled.swap_remove(0).until_the_end().await;
    assert_eq!(code, Some(1013), "{bytes} bytes before it");
    for _ in 0..4 {
        rig.nothing_else(&mut one).await;
    }
    // The other client is cut off, since it does not even take the close frame.
    eventually("it is gone", async || rig.metric("headwater_clients").await == 2.0).await;
    assert_eq!(
        rig.metric(r#"headwater_closes_total{reason="slow_consumer"}"#).await,
        2.0
    );
    let (bytes, _) = stalled.swap_remove(0).until_the_end().await;
    assert!(bytes < 8 * 6 * (64 << 10));
    rig.nothing_else(&mut one).await;
}

/// Each queue is far below its own bound.
#[tokio::test]
async fn when_all_queues_together_are_too_long_the_longest_is_closed_and_the_others_are_whole() {
    const TOTAL: u64 = 4 << 20;
    let rig = Rig::before(node_with_logs_of(64 << 10).await, |config| {
        config.delivery.max_total_queue_bytes = ByteSize::b(TOTAL);
    })
    .await;
    let mut stalled = Vec::new();
    // About 400 kB a block for each subscription.
    for subscriptions in [1, 2, 1] {
        let mut wire = Wire::open_with(rig.address, b"", Some(16 << 10)).await;
        for id in 0..subscriptions {
            let subscribe = json!({"jsonrpc": "2.0", "id": id, "method": "eth_subscribe", "params": ["logs"]});
            wire.send(TEXT, subscribe.to_string()).await;
            assert!(wire.text().await.contains("result"));
        }
        stalled.push(wire);
    }
    let mut watcher = rig.watcher().await;
    let (mut story, mut before) = (Vec::new(), 0.0);
    loop {
        let block = rig.control.mine();
        story.extend(adopted(std::slice::from_ref(&block)).split_off(1));
        watcher.expect(adopted(&[block])).await;
        let mut queued = f64::MAX;
        eventually("no more waits than may", async || {
            queued = rig.metric("headwater_queue_bytes").await;
            queued <= TOTAL as f64
        })
        .await;
        if queued < before {
            break;
        }
        before = queued;
    }
    let block = 4.0 * 6.0 * f64::from(66 << 10);
    assert!(before + block > TOTAL as f64, "not before it had to be: {before}");
    let (_, code) = stalled.remove(1).until_the_end().await;
    assert_eq!(code, Some(1013));
    eventually("it is gone", async || rig.metric("headwater_clients").await == 3.0).await;
    let closed = rig.metric(r#"headwater_closes_total{reason="longest_queue"}"#).await;
    assert_eq!(closed, 1.0);
    for wire in &mut stalled {
        for line in &story {
            assert_eq!(Event::parse(&wire.text().await).line(), *line);
        }
    }
    rig.nothing_else(&mut watcher).await;
}

#[tokio::test]
async fn a_client_that_takes_no_bytes_is_cut_at_the_write_deadline() {
    let rig = Rig::before(node_with_logs_of(64 << 10).await, |config| {
        config.delivery.write_deadline = Duration::from_secs(1);
    })
    .await;
    let mut watcher = rig.watcher().await;
    let mut wire = Wire::open_with(rig.address, b"", Some(16 << 10)).await;
    wire.subscribe_logs().await;
    for _ in 0..15 {
        rig.nothing_else(&mut watcher).await;
    }
    eventually("it is cut", async || {
        rig.metric(r#"headwater_closes_total{reason="write_deadline"}"#).await == 1.0
    })
    .await;
    rig.nothing_else(&mut watcher).await;
}

#[tokio::test]
async fn events_that_wait_too_long_close_the_connection() {
    let rig = Rig::before(node_with_logs_of(64 << 10).await, |config| {
        config.delivery.max_queue_age = Duration::from_secs(1);
    })
    .await;
    let mut watcher = rig.watcher().await;
    let mut wire = Wire::open_with(rig.address, b"", Some(16 << 10)).await;
    wire.subscribe_logs().await;
    for _ in 0..15 {
        rig.nothing_else(&mut watcher).await;
    }
    eventually("it is gone", async || {
        rig.metric(r#"headwater_closes_total{reason="slow_consumer"}"#).await == 1.0
    })
    .await;
    rig.nothing_else(&mut watcher).await;
}

#[tokio::test]
async fn clients_are_pinged_and_one_that_never_answers_is_cut() {
    let rig = Rig::with(|config| {
        config.keepalive.ping_interval = Duration::from_secs(1);
        config.keepalive.silence_timeout = Duration::from_secs(3);
    })
    .await;
    let mut silent = Wire::open(rig.address).await;
    // This client's library answers pings while it reads.
    let mut alive = rig.watcher().await;
    let reading = tokio::spawn(async move {
        alive.event().await;
        alive
    });
    assert_eq!(silent.frame().await.0, PING);
    silent.until_the_end().await;
    eventually("it is gone", async || {
        rig.metric(r#"headwater_closes_total{reason="silent"}"#).await == 1.0
    })
    .await;
    rig.control.mine();
    reading.await.unwrap();
}

/// Builds a PROXY protocol header, version 2, for a TCP connection from this IPv4 address (haproxy's
/// proxy-protocol.txt, section 2.2).
fn proxied(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend_from_slice(&client);
    header.extend_from_slice(&[127, 0, 0, 1, 0x13, 0x88, 0x25, 0x4a]);
    header
}

#[tokio::test]
async fn behind_a_balancer_the_client_is_who_the_balancer_says() {
    let node = node().await;
    let rig = Proxy::start(&[node.ws_url()], |config| {
        config.server.proxy_protocol = true;
        config.limits.request_burst = 1_000;
        config.limits.requests_per_second = 1;
    })
    .await;
    rig.ready().await;
    let batch = format!("[{}]", vec![CHAIN_ID; 1_000].join(","));
    for client in [[203, 0, 113, 7], [203, 0, 113, 8]] {
        for (fresh, served) in [(true, true), (false, false)] {
            let mut wire = Wire::connect(rig.address).await;
            wire.write(proxied(client)).await;
            assert_eq!(wire.handshake(UPGRADE, b"").await.status, 101);
            let call = if fresh { batch.as_str() } else { CHAIN_ID };
            wire.send(TEXT, call).await;
            assert_eq!(errors(&wire.text().await).0 == 0, served, "{client:?}");
        }
    }
    // A connection without the header is refused.
    let mut wire = Wire::connect(rig.address).await;
    wire.write(format!("{UPGRADE}\r\n\r\n")).await;
    wire.ends().await;
    eventually("it is counted", async || {
        rig.metric("headwater_refused_total{reason=\"proxy_protocol\"}").await == 1.0
    })
    .await;
}

/// Over HTTP, too, a client that does not read must not use up the memory of others.
#[tokio::test]
async fn long_answers_over_http_have_room_together_and_no_more() {
    let rig = Rig::before(node_with_logs_of(1_000_000).await, |config| {
        config.memory.answers = ByteSize::kib(64);
    })
    .await;
    let receipts = r#"{"jsonrpc":"2.0","id":1,"method":"eth_getBlockReceipts","params":["0x2"]}"#;
    let mut idle = TcpStream::connect(rig.address).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        receipts.len()
    );
    idle.write_all((head + receipts).as_bytes()).await.unwrap();
    let full = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"limit exceeded: too many bytes of answers at once, try again later","data":{"retryAfterMs":1000}}}"#;
    let post = async || {
        http(
            rig.address,
            "POST / HTTP/1.1\r\ncontent-type: application/json",
            receipts,
        )
        .await
    };
    eventually("the room is taken", async || post().await.status == 503).await;
    let reply = post().await;
    assert_eq!((reply.body.as_str(), reply.header("retry-after")), (full, Some("1")));
    let batch = rig.post(format!("[{CHAIN_ID},{receipts}]")).await;
    assert_eq!(batch, format!("[{CHAIN_ID_ANSWER},{full}]"));
    assert_eq!(rig.post(CHAIN_ID).await, CHAIN_ID_ANSWER, "short ones need none");
    drop(idle);
    eventually("the room is free", async || post().await.body.len() > 5_000_000).await;
}
