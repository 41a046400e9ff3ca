//! PROTOCOL 1.1 and 1.15: the upgrade, and HTTP on the same port.

use std::time::Duration;

use crate::harness::{Rig, eventually};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, TEXT, UPGRADE, Wire, frame, http};

/// Returns `UPGRADE` with one header line replaced, added or, for `None`, removed.
fn with(name: &str, line: Option<&str>) -> String {
    let name = format!("{name}:");
    let mut lines: Vec<&str> = UPGRADE.split("\r\n").filter(|own| !own.starts_with(&name)).collect();
    lines.extend(line);
    lines.join("\r\n")
}

#[tokio::test]
async fn upgrades_are_recognised_and_answered_with_nothing_that_was_not_asked_for() {
    let rig = Rig::with(|config| config.server.origins = vec!["https://app.example".into()]).await;
    for head in [
        UPGRADE.to_owned(),
        with("Connection", Some("Connection: keep-alive, Upgrade")),
        with("Connection", Some("connection: UPGRADE")),
        with("Upgrade", Some("Upgrade: WebSocket")),
        UPGRADE.replace("GET / ", "GET /v3/some-key?network=main "),
        with("Origin", Some("Origin: https://app.example")),
        with("Origin", Some("Origin: https://APP.example:8443")),
        with("Authorization", Some("Authorization: Basic dXNlcjpwYXNz")),
        with("Sec-WebSocket-Protocol", Some("Sec-WebSocket-Protocol: eth, json")),
        with(
            "Sec-WebSocket-Extensions",
            Some("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
        ),
    ] {
        let mut wire = Wire::connect(rig.address).await;
        let reply = wire.handshake(&head, b"").await;
        assert_eq!(reply.status, 101, "{head}\n{}", reply.head);
        let expected = [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            // RFC 6455's own example.
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ];
        for (name, value) in expected {
            assert!(
                reply
                    .header(name)
                    .is_some_and(|given| given.eq_ignore_ascii_case(value)),
                "{}",
                reply.head
            );
        }
        for line in reply.head.lines().skip(1) {
            let name = line.split(':').next().unwrap().to_ascii_lowercase();
            assert!(
                ["date", "x-request-id"].contains(&&*name) || expected.iter().any(|(known, _)| *known == name),
                "{line}"
            );
        }
        wire.works().await;
    }
}

#[tokio::test]
async fn what_may_not_upgrade_is_told_why() {
    let rig = Rig::start().await;
    for (head, status, body) in [
        (with("Origin", Some("Origin: https://evil.example")), 403, "Forbidden\n"),
        (with("Origin", Some("Origin: null")), 403, "Forbidden\n"),
        (
            with("Origin", Some("Origin: http://localhost.evil.example")),
            403,
            "Forbidden\n",
        ),
        (
            with("Sec-WebSocket-Version", Some("Sec-WebSocket-Version: 8")),
            400,
            "Bad Request\n",
        ),
        (with("Sec-WebSocket-Version", None), 400, "Bad Request\n"),
        (with("Sec-WebSocket-Key", None), 400, "Bad Request\n"),
        (
            with("Sec-WebSocket-Key", Some("Sec-WebSocket-Key: c2hvcnQ=")),
            400,
            "Bad Request\n",
        ),
        (
            with("Sec-WebSocket-Key", Some("Sec-WebSocket-Key: ****")),
            400,
            "Bad Request\n",
        ),
        (UPGRADE.replace("GET / ", "POST / "), 400, "Bad Request\n"),
    ] {
        let head = head
            .replace("\r\nHost: localhost", "")
            .replace("Connection: Upgrade", "X: y");
        // Adds the header in front of the helper's own `connection: close`.
        let reply = upgrade_once(rig.address, &head).await;
        assert_eq!((reply.status, reply.body.as_str()), (status, body), "{head}");
        if status == 400 {
            assert_eq!(reply.header("sec-websocket-version"), Some("13"), "{head}");
        }
    }
    // By default pages of this machine are allowed.
    let mut wire = Wire::connect(rig.address).await;
    let head = with("Origin", Some("Origin: http://localhost:3000"));
    assert_eq!(wire.handshake(&head, b"").await.status, 101);
}

async fn upgrade_once(address: std::net::SocketAddr, head: &str) -> crate::wire::Reply {
    http(address, &format!("{head}\r\nconnection: Upgrade"), "").await
}

#[tokio::test]
async fn the_first_frames_may_come_in_the_same_write_as_the_handshake() {
    let rig = Rig::start().await;
    let behind = [frame(TEXT, CHAIN_ID), frame(TEXT, CHAIN_ID)].concat();
    let mut wire = Wire::open_with(rig.address, &behind, None).await;
    for _ in 0..2 {
        assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
    }
    // Also with half of a frame.
    let (first, rest) = behind.split_at(9);
    let mut wire = Wire::open_with(rig.address, first, None).await;
    wire.write(rest).await;
    for _ in 0..2 {
        assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
    }
}

#[tokio::test]
async fn one_connection_above_the_limit_is_told_to_come_again() {
    let rig = Rig::with(|config| config.limits.max_connections = 2).await;
    let (mut one, two) = (Wire::open(rig.address).await, Wire::open(rig.address).await);
    for _ in 0..3 {
        let mut third = Wire::connect(rig.address).await;
        let reply = third.handshake(UPGRADE, b"").await;
        assert_eq!(reply.status, 429);
        assert!(reply.header("retry-after").is_some());
    }
    let reply = http(
        rig.address,
        "POST / HTTP/1.1\r\ncontent-type: application/json",
        CHAIN_ID,
    )
    .await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (429, "Too many connections. Please try again later.\n")
    );
    one.works().await;
    two.cut();
    eventually("the place is free again", async || {
        Wire::connect(rig.address).await.handshake(UPGRADE, b"").await.status == 101
    })
    .await;
    assert!(rig.metric(r#"headwater_refused_total{reason="connections"}"#).await >= 4.0);
}

#[tokio::test]
async fn http_is_served_as_geth_serves_it() {
    let rig = Rig::with(|config| config.limits.max_body_bytes = bytesize::ByteSize::kib(1)).await;
    let json = "content-type: application/json";
    let (exact, above) = (" ".repeat(1024 - CHAIN_ID.len()), " ".repeat(1025 - CHAIN_ID.len()));
    for (head, body, status, answer) in [
        (
            format!("POST / HTTP/1.1\r\n{json}"),
            CHAIN_ID.to_owned(),
            200,
            CHAIN_ID_ANSWER,
        ),
        (
            format!("POST /any/path?x=1 HTTP/1.1\r\n{json}; charset=utf-8"),
            CHAIN_ID.to_owned(),
            200,
            CHAIN_ID_ANSWER,
        ),
        (
            "POST / HTTP/1.1\r\ncontent-type: application/json-rpc".into(),
            CHAIN_ID.to_owned(),
            200,
            CHAIN_ID_ANSWER,
        ),
        (
            format!("POST / HTTP/1.1\r\n{json}"),
            format!("{CHAIN_ID}{exact}"),
            200,
            CHAIN_ID_ANSWER,
        ),
        (
            format!("POST / HTTP/1.1\r\n{json}"),
            format!("{CHAIN_ID}{above}"),
            413,
            "content length too large\n",
        ),
        (format!("POST / HTTP/1.1\r\n{json}"), String::new(), 200, ""),
        (
            "POST / HTTP/1.1".into(),
            CHAIN_ID.to_owned(),
            415,
            "invalid content type, only application/json is supported\n",
        ),
        (
            "POST / HTTP/1.1\r\ncontent-type: text/plain".into(),
            CHAIN_ID.to_owned(),
            415,
            "invalid content type, only application/json is supported\n",
        ),
        ("GET / HTTP/1.1".into(), String::new(), 200, ""),
        ("GET /anything HTTP/1.1".into(), String::new(), 200, ""),
        ("OPTIONS / HTTP/1.1".into(), String::new(), 200, ""),
        ("HEAD / HTTP/1.1".into(), String::new(), 200, ""),
        (
            format!("PUT / HTTP/1.1\r\n{json}"),
            CHAIN_ID.to_owned(),
            405,
            "method not allowed\n",
        ),
        ("DELETE / HTTP/1.1".into(), String::new(), 405, "method not allowed\n"),
        (
            format!("PATCH / HTTP/1.1\r\n{json}"),
            CHAIN_ID.to_owned(),
            405,
            "method not allowed\n",
        ),
    ] {
        let reply = http(rig.address, &head, &body).await;
        assert_eq!((reply.status, reply.body.as_str()), (status, answer), "{head}");
        if answer == CHAIN_ID_ANSWER {
            assert_eq!(reply.header("content-type"), Some("application/json"));
        }
    }
    // A chunked body, which declares no length, is bounded, too.
    let mut wire = Wire::connect(rig.address).await;
    let chunk = format!("400\r\n{}\r\n", " ".repeat(1024));
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\n{json}\r\ntransfer-encoding: chunked");
    let reply = wire
        .handshake(
            &head,
            [chunk.as_bytes(), chunk.as_bytes(), b"0\r\n\r\n"].concat().as_slice(),
        )
        .await;
    assert_eq!(reply.status, 413);
}

#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let rig = Rig::with(|config| config.server.header_timeout = Duration::from_millis(100)).await;
    let mut wire = Wire::connect(rig.address).await;
    wire.write("GET / HTTP/1.1\r\nHost:").await;
    wire.until_the_end().await;
    let mut wire = Wire::connect(rig.address).await;
    let endless = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(20 << 10));
    let reply = wire.handshake(&endless, b"").await;
    assert_eq!(reply.status, 431);
}
