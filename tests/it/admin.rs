//! The admin port.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::harness::{Proxy, Rig, eventually, node, within};
use crate::wire::{FORWARDED, TEXT, Wire, http};

#[tokio::test]
async fn ready_says_no_until_a_node_is_there_and_alive_all_the_time() {
    let node = node().await;
    let control = node.handle();
    control.set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[node.ws_url()], |_| {}).await;
    let reply = proxy.admin("/ready").await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (503, "not ready: no upstream is connected\n")
    );
    let reply = proxy.admin("/health").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "alive\n"));
    control.set_faults(|faults| faults.refuse_connections = false);
    proxy.ready().await;
    assert_eq!(proxy.admin("/ready").await.body, "ready: head 4\n");
    assert_eq!(proxy.admin("/nothing").await.status, 404);
}

#[tokio::test]
async fn an_old_head_is_not_ready() {
    let rig = Rig::with(|config| config.ready.max_head_age = std::time::Duration::from_secs(1)).await;
    rig.unready().await;
    assert!(rig.admin("/ready").await.body.contains("ready.max_head_age"));
    let mut client = rig.watcher().await;
    rig.nothing_else(&mut client).await;
    assert_eq!(rig.admin("/ready").await.status, 200);
}

#[tokio::test]
async fn every_metric_has_words_and_the_counters_move() {
    let rig = Rig::start().await;
    let forwarded = r#"headwater_forwarded_calls_total{outcome="result"}"#;
    let before = [
        rig.metric("headwater_connections_total").await,
        rig.metric(forwarded).await,
    ];
    let mut client = rig.watcher().await;
    rig.nothing_else(&mut client).await;
    rig.control.reorg(1, 1).unwrap();
    client.events(13).await;
    client.ask(FORWARDED).await;
    client.call("eth_nothing", json!([])).await;
    let mut wire = Wire::open(rig.address).await;
    wire.send(TEXT & 0x83, "").await;
    wire.send(0x83, "").await;
    wire.closed().await;
    drop(wire);
    eventually("the close is counted", async || {
        rig.metric(r#"headwater_closes_total{reason="protocol"}"#).await == 1.0
    })
    .await;

    let reply = rig.admin("/metrics").await;
    assert!(
        reply
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    assert!(reply.body.ends_with("# EOF\n"));
    let words = |kind: &str| -> BTreeSet<&str> {
        let lines = reply.body.lines().filter_map(|line| line.strip_prefix(kind));
        lines.map(|line| line.split(' ').nth(1).unwrap()).collect()
    };
    let (help, types) = (words("# HELP"), words("# TYPE"));
    assert_eq!(help, types);
    assert!(help.len() > 20);
    for sample in reply.body.lines().filter(|line| !line.starts_with('#')) {
        let name = sample.split(['{', ' ']).next().unwrap();
        let family = ["_total", "_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix).filter(|name| help.contains(name)))
            .unwrap_or(name);
        assert!(help.contains(family) && family.starts_with("headwater_"), "{sample}");
    }
    for (sample, value) in [
        ("headwater_clients", 1.0),
        ("headwater_connections_total", 2.0 + before[0]),
        (r#"headwater_subscriptions{kind="newHeads"}"#, 1.0),
        (r#"headwater_subscriptions{kind="logs"}"#, 1.0),
        ("headwater_log_filters", 1.0),
        (r#"headwater_deliveries_total{kind="newHeads"}"#, 2.0),
        (r#"headwater_deliveries_total{kind="logs"}"#, 18.0),
        (r#"headwater_closes_total{reason="protocol"}"#, 1.0),
        ("headwater_head_number", 5.0),
        ("headwater_reorgs_total", 1.0),
        ("headwater_reorged_blocks_total", 1.0),
        ("headwater_queue_bytes", 0.0),
        (forwarded, 1.0 + before[1]),
        (r#"headwater_forwarded_calls_total{outcome="node_error"}"#, 1.0),
    ] {
        assert_eq!(rig.metric(sample).await, value, "{sample}");
    }
    for sample in [
        "headwater_sent_bytes_total",
        "headwater_received_bytes_total",
        "headwater_delivery_latency_seconds_count",
    ] {
        assert!(rig.metric(sample).await > 0.0, "{sample}");
    }
}

#[tokio::test]
async fn status_tells_nodes_head_and_clients() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    rig.nothing_else(&mut client).await;
    let status: Value = serde_json::from_str(&rig.admin("/status").await.body).unwrap();
    let head = rig.control.head();
    assert_eq!(status["ready"], true);
    assert_eq!(status["clients"], 1);
    assert_eq!(status["head"]["hash"], json!(head.hash()));
    let upstream = &status["upstreams"][0];
    assert_eq!(
        (&upstream["connected"], &upstream["active"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(
        (&upstream["chainId"], &upstream["connects"]),
        (&json!("0x539"), &json!(1))
    );
}

#[tokio::test]
async fn secrets_in_a_nodes_address_are_shown_nowhere() {
    let node = node().await;
    let address = format!("ws://user:hunter2@{}/v3/hunter2?key=hunter2", node.address());
    let proxy = Proxy::start(&[address], |_| {}).await;
    proxy.ready().await;
    for page in ["/status", "/metrics", "/ready"] {
        let body = proxy.admin(page).await.body;
        assert!(!body.contains("hunter2"), "{body}");
    }
}

/// Host checks of the admin port: requests for a host name that is not listed are refused; probes may use any name.
#[tokio::test]
async fn the_operators_pages_are_for_names_that_are_listed() {
    let rig = Rig::with(|config| config.admin_hosts = vec!["metrics.internal".into()]).await;
    for (page, status) in [
        ("/status", 200),
        ("http://localhost/status", 200),
        ("http://127.0.0.1:9547/metrics", 200),
        ("http://[::1]/metrics", 200),
        ("http://metrics.internal:9547/metrics", 200),
        ("http://evil.example/metrics", 403),
        ("http://evil.example/status", 403),
        ("http://evil.example/nothing", 403),
        ("http://evil.example/health", 200),
        ("http://evil.example/ready", 200),
    ] {
        let reply = rig.admin(page).await;
        assert_eq!(reply.status, status, "{page}: {}", reply.body);
    }
    for (origin, status) in [("http://localhost", 200), ("http://localhost:3000", 403), ("null", 403)] {
        let reply = http(rig.admin, &format!("GET /status HTTP/1.1\r\norigin: {origin}"), "").await;
        assert_eq!(reply.status, status, "{origin}");
    }
}

#[tokio::test]
async fn silent_connections_keep_no_probe_out() {
    let rig = Rig::start().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(rig.admin).await.unwrap());
        if silent.len() % 50 == 0 {
            assert_eq!(rig.admin("/health").await.status, 200);
        }
    }
    assert_eq!(rig.admin("/metrics").await.status, 200);
    let mut oldest = silent.swap_remove(0);
    let mut byte = [0];
    let read = within("the oldest is let go", oldest.read(&mut byte)).await;
    assert!(!matches!(read, Ok(1)), "{read:?}");
}
