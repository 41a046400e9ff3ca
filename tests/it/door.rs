//! Admission and quotas of a client: each limit reached, and exceeded by one.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use headwater::config::typed;
use headwater::door::ForwardedHeader;
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::harness::{Client, Proxy, Rig, adopted, eventually, node, node_with_logs_of, within};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, Reply, TEXT, UPGRADE, Wire, http};

/// Sends an upgrade with more headers; returns the connection and the answer.
pub async fn upgrade(address: SocketAddr, headers: &str) -> (Wire, Reply) {
    let mut wire = Wire::connect(address).await;
    let reply = wire.handshake(&format!("{UPGRADE}{headers}"), b"").await;
    (wire, reply)
}

/// Makes a call over HTTP with more headers.
pub async fn post(address: SocketAddr, headers: &str, body: &str) -> Reply {
    let head = format!("POST / HTTP/1.1\r\ncontent-type: application/json{headers}");
    http(address, &head, body).await
}

/// Formats the header by which a proxy reports the client's address.
fn from(address: &str) -> String {
    format!("\r\nX-Forwarded-For: {address}")
}

/// Makes all addresses of this machine trusted proxies.
fn behind_proxies(config: &mut typed::Config) {
    config.server.trusted_proxies = vec!["127.0.0.0/8".into()];
}

fn call(method: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": []}).to_string()
}

fn code(answer: &str) -> Value {
    serde_json::from_str::<Value>(answer).unwrap()["error"]["code"].clone()
}

/// Sends a request on the raw client; returns the answer.
async fn ask(wire: &mut Wire, request: &str) -> String {
    wire.send(TEXT, request).await;
    wire.text().await
}

// ---- requests

#[tokio::test]
async fn calls_cost_what_they_weigh() {
    let rig = Rig::with(|config| {
        behind_proxies(config);
        config.limits.request_burst = 20;
        config.limits.requests_per_second = 1;
        config.limits.max_batch = 20;
        config.methods.weights = [
            ("eth_getLogs".into(), 10),
            ("web3_*".into(), 0),
            ("eth_call".into(), 100),
        ]
        .into();
    })
    .await;
    let batch = |methods: &[&str]| format!("[{}]", methods.iter().map(|m| call(m)).collect::<Vec<_>>().join(","));
    let two = batch(&["eth_getLogs", "eth_getLogs"]);
    let and_one = batch(&["eth_getLogs", "eth_getLogs", "eth_chainId"]);
    for (client, body, status) in [
        ("10.0.0.1", &two, 200),
        ("10.0.0.1", &call("eth_chainId"), 429),
        // A call of weight zero always passes.
        ("10.0.0.1", &call("web3_clientVersion"), 200),
        ("10.0.0.2", &and_one, 429),
        ("10.0.0.2", &two, 200),
        // A call above the whole burst takes all of it.
        ("10.0.0.3", &call("eth_call"), 200),
        ("10.0.0.3", &call("eth_chainId"), 429),
    ] {
        let reply = post(rig.address, &from(client), body).await;
        assert_eq!(reply.status, status, "{client} {body} {}", reply.body);
        // A batch above the whole burst can never pass, so the answer has no hint.
        let hinted = status == 429 && *body != and_one;
        assert_eq!(reply.header("retry-after").is_some(), hinted, "{client} {body}");
        if status == 429 {
            assert!(reply.body.contains("-32005") && reply.body.contains("retryAfterMs") == hinted);
        }
    }
    for (client, body, refused) in [("10.0.0.4", two, false), ("10.0.0.5", and_one, true)] {
        let (mut wire, _) = upgrade(rig.address, &from(client)).await;
        assert_eq!(ask(&mut wire, &body).await.contains("-32005"), refused);
    }
}

/// A client could send 91,000 of these a second at no cost.
#[tokio::test]
async fn what_holds_no_call_is_charged_to_its_address() {
    let rig = Rig::with(|config| {
        behind_proxies(config);
        (config.limits.request_burst, config.limits.requests_per_second) = (20, 1);
        config.limits.max_batch = 20;
        config.limits.max_body_bytes = ByteSize::kib(1);
    })
    .await;
    let json = "POST / HTTP/1.1\r\ncontent-type: application/json";
    let preflight = "OPTIONS / HTTP/1.1\r\norigin: http://localhost\r\naccess-control-request-method: POST";
    let long = " ".repeat(2048);
    let rows = [
        ("POST / HTTP/1.1\r\ncontent-type: text/plain", CHAIN_ID, 415),
        ("POST / HTTP/1.1", CHAIN_ID, 415),
        (json, "", 200),
        (json, " \n", 200),
        (json, "{", 200),
        (json, "[]", 200),
        (json, &*long, 413),
        ("GET / HTTP/1.1", "", 200),
        ("HEAD / HTTP/1.1", "", 200),
        ("OPTIONS / HTTP/1.1", "", 200),
        ("PUT / HTTP/1.1", "", 405),
        (preflight, "", 204),
        ("GET / HTTP/1.1\r\norigin: http://evil.example", "", 403),
        ("POST / HTTP/1.1\r\norigin: http://evil.example", CHAIN_ID, 403),
    ];
    for (i, (head, body, status)) in rows.into_iter().enumerate() {
        let head = format!("{head}{}", from(&format!("10.1.0.{i}")));
        assert_eq!(http(rig.address, &head, body).await.status, status, "{head}");
        let mut limited = 0;
        for _ in 0..60 {
            let reply = http(rig.address, &head, body).await;
            assert!(
                reply.status == status || reply.status == 429,
                "{head}: {}",
                reply.status
            );
            if reply.status == 429 {
                assert!(reply.header("retry-after").is_some(), "{head}");
                limited += 1;
            }
        }
        assert!(limited > 0, "{head}");
        let other = format!("{json}{}", from(&format!("10.2.0.{i}")));
        assert_eq!(http(rig.address, &other, CHAIN_ID).await.body, CHAIN_ID_ANSWER);
    }
}

#[tokio::test]
async fn who_is_refused_and_goes_on_all_the_same_is_shown_out() {
    let node = node().await;
    let rig = Proxy::start(&[node.ws_url()], |config| {
        behind_proxies(config);
        config.limits.request_burst = 1;
        config.limits.max_batch = 1;
        config.limits.requests_per_second = 1;
        config.limits.max_refusals = 3;
        config.limits.refusal_window = Duration::from_secs(60);
    })
    .await;
    rig.ready().await;
    let (mut patient, _) = upgrade(rig.address, &from("10.0.0.1")).await;
    let (mut abuser, _) = upgrade(rig.address, &from("10.0.0.2")).await;
    // At most three requests of the patient client are refused, as many as `max_refusals` tolerates.
    for _ in 0..3 {
        ask(&mut patient, CHAIN_ID).await;
    }
    for _ in 0..20 {
        abuser.send(TEXT, CHAIN_ID).await;
    }
    let (answers, code) = abuser.closed().await;
    assert_eq!(code, Some(1008));
    assert!(answers >= 4, "{answers}");
    assert!(!ask(&mut patient, CHAIN_ID).await.is_empty(), "others stay");
    drop(abuser);
    eventually("it is counted", async || {
        rig.metric(r#"headwater_closes_total{reason="abuse"}"#).await == 1.0
    })
    .await;
    // Over HTTP the connection is closed after the answer.
    let mut wire = Wire::connect(rig.address).await;
    let mut replies = Vec::new();
    while replies
        .last()
        .is_none_or(|reply: &Reply| reply.header("connection") != Some("close"))
    {
        let head = format!(
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}{}",
            CHAIN_ID.len(),
            from("10.0.0.3")
        );
        let reply = wire.handshake(&head, CHAIN_ID.as_bytes()).await;
        let length: usize = reply.header("content-length").unwrap().parse().unwrap();
        wire.read(length).await;
        replies.push(reply);
        assert!(replies.len() < 20);
    }
    assert_eq!(replies.iter().filter(|reply| reply.status == 429).count(), 4);
    wire.ends().await;
}

// ---- connections

#[tokio::test]
async fn handshakes_of_a_client_up_to_the_limit_and_not_one_more() {
    let rig = Rig::with(|config| {
        behind_proxies(config);
        config.limits.handshakes_per_minute = 3;
    })
    .await;
    for client in ["10.0.0.1", "2001:db8::1"] {
        for status in [101, 101, 101, 429, 429] {
            let (_, reply) = upgrade(rig.address, &from(client)).await;
            assert_eq!(reply.status, status, "{client}");
            if status == 429 {
                let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
                assert!((1..=20).contains(&after), "{after}");
            }
        }
    }
    let (_, reply) = upgrade(rig.address, &from("2001:db8::2")).await;
    assert_eq!(reply.status, 429, "a /64 is one client");
    for other in ["10.0.0.2", "2001:db8:0:1::1"] {
        assert_eq!(upgrade(rig.address, &from(other)).await.1.status, 101, "{other}");
    }
    // Calls over HTTP are not handshakes.
    assert_eq!(
        post(rig.address, &from("10.0.0.1"), CHAIN_ID).await.body,
        CHAIN_ID_ANSWER
    );
    assert!(rig.metric(r#"headwater_refused_total{reason="handshakes"}"#).await >= 5.0);
}

#[tokio::test]
async fn connections_of_a_client_up_to_the_limit_and_not_one_more() {
    let rig = Rig::with(|config| {
        behind_proxies(config);
        config.limits.max_connections_per_client = 2;
    })
    .await;
    let (mut one, _) = upgrade(rig.address, &from("10.0.0.1")).await;
    let (two, _) = upgrade(rig.address, &from("10.0.0.1")).await;
    let (_, third) = upgrade(rig.address, &from("10.0.0.1")).await;
    assert_eq!((third.status, third.header("retry-after")), (429, Some("10")));
    let reply = post(rig.address, &from("10.0.0.1"), CHAIN_ID).await;
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (429, Some("10")),
        "HTTP shares them"
    );
    assert_eq!(post(rig.address, &from("10.0.0.2"), CHAIN_ID).await.status, 200);
    one.works().await;
    two.cut();
    eventually("the place is free again", async || {
        post(rig.address, &from("10.0.0.1"), CHAIN_ID).await.status == 200
    })
    .await;
}

/// A connection beyond its client's limit does not stay open: otherwise their number would have no bound.
#[tokio::test]
async fn who_has_no_place_is_answered_and_hung_up_on() {
    let rig = Rig::with(|config| {
        behind_proxies(config);
        config.limits.max_connections_per_client = 1;
    })
    .await;
    let (mut one, _) = upgrade(rig.address, &from("10.0.0.1")).await;
    for request in [
        format!("GET / HTTP/1.1\r\nHost: localhost{}", from("10.0.0.1")),
        format!("OPTIONS / HTTP/1.1\r\nHost: localhost{}", from("10.0.0.1")),
        format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0{}",
            from("10.0.0.1")
        ),
        format!("{UPGRADE}{}", from("10.0.0.1")),
    ] {
        let mut wire = Wire::connect(rig.address).await;
        let reply = wire.handshake(&request, b"").await;
        assert_eq!(reply.header("connection"), Some("close"), "{request}{}", reply.head);
    }
    one.works().await;
}

#[tokio::test]
async fn a_header_that_nobody_vouches_for_dodges_no_limit() {
    // No proxy is trusted: the header is only the client's claim.
    let rig = Rig::with(|config| config.limits.handshakes_per_minute = 3).await;
    // The rig's own client made the first handshake.
    for (client, status) in [
        ("10.0.0.1", 101),
        ("10.0.0.2", 101),
        ("10.0.0.3", 429),
        ("10.0.0.4", 429),
    ] {
        assert_eq!(upgrade(rig.address, &from(client)).await.1.status, status, "{client}");
    }
    // A trusted proxy appends to the header; entries left of its own are the client's claims.
    let rig = Rig::with(|config| {
        behind_proxies(config);
        config.limits.request_burst = 20;
        config.limits.max_batch = 20;
        config.limits.requests_per_second = 1;
    })
    .await;
    let mut statuses = Vec::new();
    for i in 0..30 {
        let forwarded = format!(
            "\r\nX-Forwarded-For: 10.1.0.{i}\r\nForwarded: for=10.2.0.{i}{}",
            from("10.0.0.9")
        );
        statuses.push(post(rig.address, &forwarded, CHAIN_ID).await.status);
    }
    assert!(
        statuses[..20].iter().all(|status| *status == 200) && statuses[29] == 429,
        "{statuses:?}"
    );
}

#[tokio::test]
async fn a_client_that_a_proxy_hides_is_its_connection() {
    let rig = Rig::with(|config| {
        behind_proxies(config);
        config.server.forwarded_header = ForwardedHeader::Forwarded;
        config.limits.request_burst = 20;
        config.limits.max_batch = 20;
        config.limits.requests_per_second = 1;
    })
    .await;
    let batch = format!("[{}]", vec![CHAIN_ID; 20].join(","));
    let hidden = "\r\nForwarded: for=_hidden\r\nX-Forwarded-For: 10.0.0.1";
    for _ in 0..3 {
        assert_eq!(post(rig.address, hidden, &batch).await.status, 200);
        let (mut wire, _) = upgrade(rig.address, hidden).await;
        assert!(ask(&mut wire, &batch).await.contains("0x539"));
        assert!(ask(&mut wire, CHAIN_ID).await.contains("-32005"));
    }
    // A header that cannot be parsed counts as the proxy's own.
    let nonsense = "\r\nForwarded: nonsense";
    let statuses = [
        post(rig.address, nonsense, &batch).await.status,
        post(rig.address, nonsense, &batch).await.status,
    ];
    assert_eq!(statuses[1], 429, "{statuses:?}");
}

#[tokio::test]
async fn without_a_proxy_it_is_the_peers_address() {
    let rig = Rig::with(|config| config.limits.max_connections_per_client = 1).await;
    let mut statuses = Vec::new();
    let mut held = Vec::new();
    for local in ["127.0.0.7:0", "127.0.0.7:0", "127.0.0.8:0"] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(local.parse().unwrap()).unwrap();
        let mut wire = Wire::over(within("connect", socket.connect(rig.address)).await.unwrap());
        statuses.push(wire.handshake(UPGRADE, b"").await.status);
        held.push(wire);
    }
    assert_eq!(statuses, [101, 429, 101]);
}

#[tokio::test]
async fn connections_that_say_nothing_shut_nobody_out() {
    let rig = Rig::with(|config| {
        config.server.max_handshakes = 8;
        config.server.header_timeout = Duration::from_secs(2);
    })
    .await;
    // One network may take a quarter of the places.
    let mut silent = vec![Wire::connect(rig.address).await, Wire::connect(rig.address).await];
    silent[0].write("GET / HTTP/1.1\r\nX").await;
    eventually("its share is taken", async || {
        let (_, reply) = upgrade(rig.address, "").await;
        assert!(reply.status == 101 || reply.header("retry-after") == Some("10"));
        reply.status == 503
    })
    .await;
    let elsewhere = TcpSocket::new_v4().unwrap();
    elsewhere.bind("127.0.0.7:0".parse().unwrap()).unwrap();
    let mut wire = Wire::over(within("connect", elsewhere.connect(rig.address)).await.unwrap());
    assert_eq!(wire.handshake(UPGRADE, b"").await.status, 101);
    wire.works().await;
    // The silent connections time out.
    for wire in &mut silent {
        wire.until_the_end().await;
    }
    eventually("the share is free again", async || {
        upgrade(rig.address, "").await.1.status == 101
    })
    .await;
    assert!(rig.metric(r#"headwater_refused_total{reason="busy"}"#).await >= 1.0);
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let rig = Rig::with(|config| config.server.header_timeout = Duration::from_millis(100)).await;
    let mut wire = Wire::connect(rig.address).await;
    let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100";
    assert_eq!(wire.handshake(head, b"{").await.status, 408);
}

// ---- subscriptions

#[tokio::test]
async fn subscriptions_of_a_client_are_counted_over_its_connections() {
    let rig = Rig::with(|config| {
        behind_proxies(config);
        config.limits.max_subscriptions_per_client = 3;
    })
    .await;
    let subscribe = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}"#;
    let (mut one, _) = upgrade(rig.address, &from("10.0.0.1")).await;
    let (mut two, _) = upgrade(rig.address, &from("10.0.0.1")).await;
    let (mut other, _) = upgrade(rig.address, &from("10.0.0.2")).await;
    let id = ask(&mut one, subscribe).await;
    for wire in [&mut one, &mut two, &mut other] {
        assert!(ask(wire, subscribe).await.contains("result"));
    }
    for wire in [&mut one, &mut two] {
        let refused = ask(wire, subscribe).await;
        assert!(
            refused.contains("limit exceeded: 3 subscriptions of this client"),
            "{refused}"
        );
        assert_eq!(code(&refused), -32005);
    }
    let id: Value = serde_json::from_str(&id).unwrap();
    let unsubscribe = json!({"jsonrpc": "2.0", "id": 2, "method": "eth_unsubscribe", "params": [id["result"]]});
    assert!(ask(&mut one, &unsubscribe.to_string()).await.contains("true"));
    assert!(ask(&mut two, subscribe).await.contains("result"));
    // Subscriptions of a closed connection are given back.
    two.cut();
    eventually("they are given back", async || {
        ask(&mut one, subscribe).await.contains("result")
    })
    .await;
}

#[tokio::test]
async fn filters_of_a_client_are_counted_by_addresses_times_topics() {
    let rig = Rig::with(|config| config.limits.max_index_entries = 12).await;
    let words = |count: usize, bytes: usize| -> Vec<String> {
        (0..count)
            .map(|i| format!("0x{:0width$x}", i + 1, width = 2 * bytes))
            .collect()
    };
    let filter = |addresses: usize, topics: usize| json!(["logs", {"address": words(addresses, 20), "topics": [words(topics, 32)]}]);
    let mut client = rig.client().await;
    let large = client.subscribe(filter(3, 4)).await;
    let refused = client.call("eth_subscribe", json!(["logs", {}])).await;
    assert_eq!(refused["error"]["code"], -32005, "{refused}");
    client.subscribe(json!(["newHeads"])).await;
    client.unsubscribe(&large).await;
    client.subscribe(filter(11, 0)).await;
    client.subscribe(json!(["logs"])).await;
    let refused = client.call("eth_subscribe", filter(0, 1)).await;
    assert_eq!(refused["error"]["code"], -32005, "{refused}");
}

// ---- egress budget

#[tokio::test]
async fn a_burst_above_the_budget_is_delayed_and_complete() {
    let rig = Rig::before(node_with_logs_of(8 << 10).await, |config| {
        config.limits.egress_bytes_per_second = ByteSize::kib(120);
        config.limits.requests_per_second = 1_000_000;
    })
    .await;
    let mut watcher = rig.watcher().await;
    let began = std::time::Instant::now();
    let mut story = Vec::new();
    for _ in 0..5 {
        story.extend(adopted(&[rig.control.mine()]));
    }
    // About 250 kB: the budget of one second at once, the rest as the budget refills.
    watcher.expect(story).await;
    assert!(began.elapsed() > Duration::from_millis(600), "{:?}", began.elapsed());
    assert_eq!(
        watcher.call("eth_chainId", json!([])).await["result"],
        "0x539",
        "answers are not counted"
    );
    rig.nothing_else(&mut watcher).await;
}

#[tokio::test]
async fn who_wants_more_than_the_budget_for_good_is_told_so() {
    let rig = Rig::before(node_with_logs_of(64 << 10).await, |config| {
        behind_proxies(config);
        config.limits.egress_bytes_per_second = ByteSize::kib(10);
        config.delivery.max_queue_bytes = ByteSize::mib(1);
    })
    .await;
    let subscribe = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs"]}"#;
    let (mut greedy, _) = upgrade(rig.address, &from("10.0.0.1")).await;
    assert!(ask(&mut greedy, subscribe).await.contains("result"));
    let reading = tokio::spawn(async move { greedy.until_the_end().await });
    let heads = subscribe.replace("logs", "newHeads");
    let (mut modest, _) = upgrade(rig.address, &from("10.0.0.2")).await;
    assert!(ask(&mut modest, &heads).await.contains("result"));
    for _ in 0..6 {
        rig.control.mine();
        assert!(modest.text().await.contains("eth_subscription"));
    }
    let (_, code) = within("the close frame", reading).await.unwrap();
    assert_eq!(code, Some(1008));
    eventually("it is counted", async || {
        rig.metric(r#"headwater_closes_total{reason="over_budget"}"#).await == 1.0
    })
    .await;
    modest.works().await;
}

#[tokio::test]
async fn what_waits_for_the_budget_for_too_long_ends_the_connection() {
    let rig = Rig::before(node_with_logs_of(16 << 10).await, |config| {
        config.limits.egress_bytes_per_second = ByteSize::kib(10);
        config.delivery.max_queue_age = Duration::from_secs(1);
    })
    .await;
    let mut watcher = rig.watcher().await;
    rig.control.mine();
    rig.control.mine();
    let (_, code, text) = watcher.closed().await;
    assert_eq!(code, 1008);
    assert!(text.contains("egress limit exceeded"), "{text}");
}

// ---- origins, hosts and methods

#[tokio::test]
async fn a_page_is_told_what_it_may() {
    let rig = Rig::with(|config| config.server.origins = vec!["https://app.example".into()]).await;
    let preflight = |origin: &str| {
        format!(
            "OPTIONS / HTTP/1.1\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type"
        )
    };
    let reply = http(rig.address, &preflight("https://app.example"), "").await;
    assert_eq!(reply.status, 204);
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-methods", "POST, GET"),
        (
            "access-control-allow-headers",
            "content-type, authorization, x-api-key, last-event-id, x-request-id, traceparent",
        ),
        ("access-control-max-age", "600"),
        ("vary", "Origin"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{}", reply.head);
    }
    let reply = http(rig.address, &preflight("https://evil.example"), "").await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (403, None));
    let reply = post(rig.address, "\r\nOrigin: https://app.example", CHAIN_ID).await;
    assert_eq!(reply.body, CHAIN_ID_ANSWER);
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://app.example"));
    let reply = post(rig.address, "\r\nOrigin: https://evil.example", CHAIN_ID).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (403, None));
    let reply = post(rig.address, "", CHAIN_ID).await;
    assert_eq!(reply.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn names_that_are_not_ours_are_refused() {
    let rig = Rig::with(|config| config.server.hosts = vec!["rpc.example".into()]).await;
    for (host, allowed) in [
        ("rpc.example", true),
        ("RPC.example:9546", true),
        ("127.0.0.1:9546", true),
        ("[::1]", true),
        ("evil.example", false),
        ("rpc.example.evil.example", false),
    ] {
        let head = UPGRADE.replace("Host: localhost", &format!("Host: {host}"));
        let mut wire = Wire::connect(rig.address).await;
        let status = wire.handshake(&head, b"").await.status;
        assert_eq!(status, if allowed { 101 } else { 403 }, "{host}");
        for request in ["POST / HTTP/1.1\r\ncontent-length: 0", "GET / HTTP/1.1"] {
            let head = format!("{request}\r\nHost: {host}\r\ncontent-type: application/json");
            let status = Wire::connect(rig.address).await.handshake(&head, b"").await.status;
            assert_eq!(status, if allowed { 200 } else { 403 }, "{host}");
        }
    }
    // By default any host name is accepted: next to a node the app is reached by names of containers and services.
    let rig = Rig::start().await;
    let head = UPGRADE.replace("Host: localhost", "Host: headwater.rpc.svc.cluster.local");
    assert_eq!(Wire::connect(rig.address).await.handshake(&head, b"").await.status, 101);
}

#[tokio::test]
async fn of_the_offered_subprotocols_a_listed_one_is_echoed() {
    let rig = Rig::with(|config| config.server.subprotocols = vec!["eth".into(), "json".into()]).await;
    for (offer, echo) in [("graphql-ws, json, eth", Some("json")), ("graphql-ws", None)] {
        let (mut wire, reply) = upgrade(rig.address, &format!("\r\nSec-WebSocket-Protocol: {offer}")).await;
        assert_eq!((reply.status, reply.header("sec-websocket-protocol")), (101, echo));
        wire.works().await;
    }
    assert_eq!(upgrade(rig.address, "").await.1.header("sec-websocket-protocol"), None);
}

#[tokio::test]
async fn methods_that_are_not_offered_do_not_exist() {
    let refused = |method: &str| {
        let message = format!("the method {method} does not exist/is not available");
        json!({"jsonrpc": "2.0", "id": 7, "error": {"code": -32601, "message": message}})
    };
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    for method in [
        "eth_sendTransaction",
        "eth_sign",
        "eth_signTypedData_v4",
        "debug_traceCall",
        "admin_peers",
    ] {
        assert_eq!(client.call(method, json!([])).await, refused(method));
        assert_eq!(
            serde_json::from_str::<Value>(&rig.post(call(method)).await).unwrap(),
            refused(method)
        );
        assert!(!rig.control.stats().calls.contains_key(method));
    }
    // web3.js 4 calls this when it connects.
    assert!(client.call("eth_accounts", json!([])).await.get("result").is_some());
    let rig = Rig::with(|config| config.methods.allowed = vec!["eth_chain*".into(), "eth_subscribe".into()]).await;
    let mut client: Client = rig.client().await;
    assert_eq!(client.call("eth_chainId", json!([])).await["result"], "0x539");
    assert_eq!(
        client.call("eth_blockNumber", json!([])).await,
        refused("eth_blockNumber")
    );
    let id = client.subscribe(json!(["newHeads"])).await;
    assert_eq!(
        client.unsubscribe(&id).await["result"],
        true,
        "the way out is never barred"
    );
    let batch = format!("[{},{}]", call("eth_chainId"), call("eth_gasPrice"));
    let answer: Value = serde_json::from_str(&rig.post(batch).await).unwrap();
    assert_eq!(
        (&answer[0]["result"], &answer[1]),
        (&json!("0x539"), &refused("eth_gasPrice"))
    );
}

/// geth subscribes by any method name with this suffix, so the other names are denied, too.
#[tokio::test]
async fn subscribing_is_denied_by_whatever_name() {
    let rig = Rig::with(|config| config.methods.denied.push("eth_subscribe".into())).await;
    let mut client: Client = rig.client().await;
    let refused = json!({"code": -32601, "message": r#"no "newHeads" subscription in eth namespace"#});
    for method in ["eth_subscribe", "eth_x_subscribe"] {
        let answer = client.call(method, json!(["newHeads"])).await;
        assert_eq!(answer["error"], refused, "{method}");
    }
}

#[tokio::test]
async fn the_table_of_accounts_is_counted() {
    let rig = Rig::with(behind_proxies).await;
    for i in 0..20 {
        post(rig.address, &from(&format!("10.0.0.{i}")), CHAIN_ID).await;
    }
    assert_eq!(rig.metric("headwater_accounts").await, 21.0);
}

/// A flood from one address, bounded in count and time, does not noticeably affect other clients.
#[tokio::test]
async fn a_flood_from_one_address_stays_its_own_problem() {
    async fn connect(address: SocketAddr) -> Option<Wire> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.66:0".parse().unwrap()).unwrap();
        Some(Wire::over(socket.connect(address).await.ok()?))
    }
    let rig = Rig::with(|config| {
        config.server.max_handshakes = 200;
        config.limits.max_connections_per_client = 100;
        config.limits.handshakes_per_minute = 200;
        config.limits.request_burst = 500;
        config.limits.requests_per_second = 100;
        config.limits.max_batch = 100;
        config.limits.max_refusals = 50;
    })
    .await;
    let address = rig.address;
    let mut watcher = rig.watcher().await;
    let flood = tokio::spawn(async move {
        let half_open = async {
            let mut held = Vec::new();
            for _ in 0..600 {
                if let Some(mut wire) = connect(address).await {
                    wire.try_write("GET / HTTP/1.1\r\nX").await;
                    held.push(wire);
                }
            }
            held
        };
        let upgrades = async {
            let mut statuses = Vec::new();
            for _ in 0..600 {
                if let Some(mut wire) = connect(address).await {
                    statuses.extend(wire.try_handshake(UPGRADE).await);
                }
            }
            statuses
        };
        let requests = async {
            let mut sent = 0;
            while sent < 5_000 {
                let Some(mut wire) = connect(address).await else {
                    continue;
                };
                if wire.try_handshake(UPGRADE).await != Some(101) {
                    sent += 50;
                    continue;
                }
                for _ in 0..1_000 {
                    sent += 1;
                    if !wire.try_write(crate::wire::frame(TEXT, CHAIN_ID)).await {
                        break;
                    }
                }
            }
        };
        let churn = async {
            let subscribe = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs"]}"#;
            for _ in 0..50 {
                let Some(mut wire) = connect(address).await else {
                    continue;
                };
                if wire.try_handshake(UPGRADE).await == Some(101) {
                    for _ in 0..20 {
                        wire.try_write(crate::wire::frame(TEXT, subscribe)).await;
                    }
                }
            }
        };
        // The upgrades come first: once silent connections fill the address's share, every answer is 503.
        let connections = async { (upgrades.await, half_open.await) };
        let ((statuses, _held), (), ()) = tokio::join!(connections, requests, churn);
        statuses
    });
    let mut rounds = 0;
    while !flood.is_finished() || rounds < 20 {
        rig.nothing_else(&mut watcher).await;
        assert_eq!(watcher.call("eth_chainId", json!([])).await["result"], "0x539");
        if rounds % 5 == 0 {
            rig.client().await.subscribe(json!(["newHeads"])).await;
        }
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let statuses = flood.await.unwrap();
    assert!(statuses.contains(&429), "{statuses:?}");
    eventually("nothing of it is left", async || {
        rig.metric("headwater_clients").await <= 1.0
            && rig.metric("headwater_subscriptions{kind=\"logs\"}").await == 1.0
    })
    .await;
    assert!(rig.metric("headwater_accounts").await <= 2.0);
    rig.nothing_else(&mut watcher).await;
}
