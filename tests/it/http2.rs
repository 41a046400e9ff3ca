//! HTTP/2 to clients: requests, streams of events and WebSockets on streams of one connection, and floods of frames.

mod peer;
mod real;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use h2::client::Builder;
use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use self::peer::{Peer, post, request, rest, whole};
use crate::harness::{PATIENCE, Rig, eventually, node_with_logs_of, within};
use crate::tls::Authority;
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, FORWARDED, FORWARDED_ANSWER};

/// Head of a connection, and a frame of settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn call(id: usize) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": "eth_chainId"}).to_string()
}

/// Checks that a client over HTTP/1.1 and one over WebSocket are served beside.
async fn serves_others(rig: &Rig) {
    assert_eq!(rig.post(FORWARDED).await, FORWARDED_ANSWER);
    let mut client = rig.watcher().await;
    rig.nothing_else(&mut client).await;
}

#[tokio::test]
async fn many_requests_at_once_on_one_connection() {
    let rig = Rig::start().await;
    let mut peer = Peer::connect(rig.address).await;
    // As many at a time as a client may have that does not know the server's settings yet.
    for round in 0..3 {
        let mut waiting = Vec::new();
        for id in (0..100).map(|id| 100 * round + id) {
            let response = peer.send(post(), call(id)).await;
            waiting.push((id, tokio::spawn(whole(response))));
        }
        for (id, answer) in waiting {
            let answer = answer.await.unwrap();
            let json: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(
                (answer.status, &json),
                (200, &json!({"jsonrpc": "2.0", "id": id, "result": "0x539"}))
            );
            assert_eq!(answer.header("content-length"), answer.body.len().to_string());
            assert_eq!(answer.header("x-request-id").len(), 32);
            assert!(!answer.headers.contains_key("connection"));
        }
    }
    let batch = format!("[{CHAIN_ID},{FORWARDED}]");
    assert_eq!(
        peer.post(&batch).await,
        format!("[{CHAIN_ID_ANSWER},{FORWARDED_ANSWER}]")
    );
    serves_others(&rig).await;
}

#[tokio::test]
async fn requests_are_answered_as_over_http_1() {
    let rig = Rig::start().await;
    let mut peer = Peer::connect(rig.address).await;
    let json = ("content-type", "application/json");
    let page = ("origin", "http://localhost:3000");
    for (request, body, status) in [
        (request(Method::GET, "/", &[]), "", 200),
        (request(Method::HEAD, "/", &[]), "", 200),
        (request(Method::PUT, "/", &[]), "", 405),
        (request(Method::CONNECT, "/", &[]), "", 405),
        (request(Method::POST, "/", &[]), CHAIN_ID, 415),
        (
            request(Method::POST, "/", &[json, ("content-length", "99999999")]),
            "",
            413,
        ),
        (
            request(Method::POST, "/", &[json, ("origin", "http://evil.example")]),
            CHAIN_ID,
            403,
        ),
        (request(Method::POST, "/", &[json, page]), CHAIN_ID, 200),
        (request(Method::GET, "/events?kind=nothing", &[]), "", 400),
    ] {
        let what = format!("{request:?}");
        // A refusal on a connection without a place ends it, as over HTTP/1.1.
        let answer = match (request.method().clone(), status) {
            (Method::CONNECT, _) => {
                let mut request = request;
                let uri = "localhost:80".parse().unwrap();
                *request.uri_mut() = uri;
                peer.ask(request, body).await
            }
            (Method::POST, 413) => {
                let (response, _stream) = peer.requests.send_request(request, false).unwrap();
                whole(response).await
            }
            _ => peer.ask(request, body).await,
        };
        assert_eq!(answer.status, status, "{what}");
        if status == 403 {
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
        }
    }
    let preflight = request(Method::OPTIONS, "/", &[page, ("access-control-request-method", "POST")]);
    let answer = peer.ask(preflight, "").await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (204, page.1)
    );
    let id = request(Method::POST, "/", &[json, ("accept-encoding", "gzip")]);
    let long = format!("[{}]", vec![CHAIN_ID; 50].join(","));
    let answer = peer.ask(id, long).await;
    assert_eq!((answer.status, answer.header("content-encoding")), (200, "gzip"));
}

#[tokio::test]
async fn a_refused_stranger_is_sent_away() {
    let rig = Rig::start().await;
    let mut peer = Peer::connect(rig.address).await;
    let stranger = request(Method::POST, "/", &[("origin", "http://evil.example")]);
    assert_eq!(peer.ask(stranger, "").await.status, 403);
    assert_eq!(peer.ended().await, None, "GOAWAY without an error");
}

#[tokio::test]
async fn a_stream_of_events_resumes_where_the_last_one_ended() {
    let rig = Rig::start().await;
    let mut peer = Peer::connect(rig.address).await;
    let mut heads = peer.events("kind=heads", "").await;
    assert_eq!(heads.headers["content-type"], "text/event-stream");
    assert_eq!(heads.headers["x-request-id"].len(), 32);
    // The position behind which it begins.
    heads.next("id").await.unwrap();
    let blocks = rig.control.mine_many(3);
    let number = |head: Value| head["number"].as_str().unwrap().to_owned();
    assert_eq!(number(heads.json().await), format!("{:#x}", blocks[0].number()));
    let id = heads.next("id").await.unwrap();
    // The stream is reset; the connection stays.
    drop(heads);
    let mut heads = peer.events("kind=heads", &id).await;
    for block in &blocks[1..] {
        assert_eq!(number(heads.json().await), format!("{:#x}", block.number()));
    }
    eventually("one client is left", async || {
        rig.metric("headwater_clients").await == 1.0
    })
    .await;
    assert_eq!(peer.post(CHAIN_ID).await, CHAIN_ID_ANSWER);
}

async fn text<S>(socket: &mut WebSocketStream<S>) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match within("a message", socket.next()).await.unwrap().unwrap() {
            Message::Text(text) => return text.to_string(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => return format!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn web_sockets_share_a_connection_with_requests() {
    let rig = Rig::with(|config| {
        config.delivery.compression = headwater::config::typed::Compression::On;
        config.server.subprotocols = vec!["eth".into()];
    })
    .await;
    let mut peer = Peer::connect(rig.address).await;
    let offers = [
        ("sec-websocket-protocol", "json, eth"),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
    ];
    let (_deflated, headers) = peer.web_socket(&offers).await.unwrap();
    assert_eq!(headers["sec-websocket-protocol"], "eth");
    assert!(
        headers["sec-websocket-extensions"]
            .to_str()
            .unwrap()
            .starts_with("permessage-deflate")
    );
    assert!(!headers.contains_key("sec-websocket-accept"));
    let (mut one, _) = peer.web_socket(&[]).await.unwrap();
    let (mut other, _) = peer.web_socket(&[]).await.unwrap();
    for socket in [&mut one, &mut other] {
        socket.send(FORWARDED.into()).await.unwrap();
        assert_eq!(text(socket).await, FORWARDED_ANSWER);
        let subscribe = r#"{"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}"#;
        socket.send(subscribe.into()).await.unwrap();
        assert!(text(socket).await.contains(r#""id":2"#));
    }
    let block = rig.control.mine();
    for socket in [&mut one, &mut other] {
        let head: Value = serde_json::from_str(&text(socket).await).unwrap();
        assert_eq!(head["params"]["result"]["number"], format!("{:#x}", block.number()));
    }
    // A close of one leaves the other, and the connection.
    one.close(None).await.unwrap();
    eventually("one is closed", async || rig.metric("headwater_clients").await == 2.0).await;
    other.send(FORWARDED.into()).await.unwrap();
    assert_eq!(text(&mut other).await, FORWARDED_ANSWER);
    assert_eq!(peer.post(CHAIN_ID).await, CHAIN_ID_ANSWER);
    // Long messages both ways: longer than windows and buffers.
    let long = format!("[{}]", vec![CHAIN_ID; 90].join(&format!(",{}", " ".repeat(4_000))));
    assert!(long.len() > 300_000);
    other.send(long.into()).await.unwrap();
    assert_eq!(
        text(&mut other).await,
        format!("[{}]", vec![CHAIN_ID_ANSWER; 90].join(","))
    );
}

#[tokio::test]
async fn over_tls_a_client_chooses_it_by_alpn() {
    let authority = Authority::new();
    let rig = authority.rig(|_| {}).await;
    let mut config = (*authority.client(None)).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = crate::tls::handshake(&rig.proxy, Arc::new(config)).await.unwrap();
    assert_eq!(socket.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let mut peer = Peer::over(socket, &Builder::new()).await;
    assert_eq!(peer.post(CHAIN_ID).await, CHAIN_ID_ANSWER);
    let (mut socket, _) = peer.web_socket(&[]).await.unwrap();
    socket.send(FORWARDED.into()).await.unwrap();
    assert_eq!(text(&mut socket).await, FORWARDED_ANSWER);
}

#[tokio::test]
async fn handshakes_that_are_not_well_formed_are_refused() {
    let rig = Rig::start().await;
    let mut peer = Peer::connect(rig.address).await;
    // With a place, the connection survives refusals.
    assert_eq!(peer.post(CHAIN_ID).await, CHAIN_ID_ANSWER);
    let refused = async |peer: &mut Peer, headers: &[(&str, &str)]| peer.web_socket(headers).await.err();
    assert_eq!(
        refused(&mut peer, &[("origin", "http://evil.example")]).await,
        Some(403)
    );
    let mut old = request(Method::CONNECT, "/", &[("sec-websocket-version", "8")]);
    old.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    assert_eq!(peer.ask(old, "").await.status, 400);
    let mut other = request(Method::CONNECT, "/", &[]);
    other
        .extensions_mut()
        .insert(h2::ext::Protocol::from_static("connect-udp"));
    assert_eq!(peer.ask(other, "").await.status, 405);
    assert!(peer.web_socket(&[]).await.is_ok());
}

#[tokio::test]
async fn each_stream_has_its_line_in_the_access_log() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::with(crate::access_log::into(dir.path())).await;
    let mut peer = Peer::connect(rig.address).await;
    let answer = peer.ask(post(), CHAIN_ID).await;
    let id = |headers: &http::HeaderMap| headers["x-request-id"].to_str().unwrap().to_owned();
    let events = peer.events("kind=heads", "").await;
    let (mut socket, headers) = peer.web_socket(&[]).await.unwrap();
    socket.close(None).await.unwrap();
    for line in [
        json!({"event": "http", "transport": "http", "request_id": id(&answer.headers), "method": "POST", "code": 200}),
        json!({"event": "call", "request_id": id(&answer.headers), "method": "eth_chainId", "outcome": "result"}),
        json!({"event": "http", "transport": "http", "request_id": id(&events.headers), "method": "GET", "code": 200}),
        json!({"event": "open", "transport": "ws", "request_id": id(&headers), "code": 200}),
        json!({"event": "close", "transport": "ws", "request_id": id(&headers)}),
    ] {
        crate::access_log::with(dir.path(), 1, &line).await;
    }
}

#[tokio::test]
async fn each_session_counts_as_a_connection_of_its_client() {
    let rig = Rig::with(|config| config.limits.max_connections_per_client = 3).await;
    let mut peer = Peer::connect(rig.address).await;
    // The connection itself, for its requests.
    assert_eq!(peer.post(CHAIN_ID).await, CHAIN_ID_ANSWER);
    let (_one, _) = peer.web_socket(&[]).await.unwrap();
    let events = peer.events("kind=heads", "").await;
    assert_eq!(peer.web_socket(&[]).await.err(), Some(429));
    assert_eq!(peer.post(CHAIN_ID).await, CHAIN_ID_ANSWER);
    drop(events);
    eventually("a place is free", async || peer.web_socket(&[]).await.is_ok()).await;
}

#[tokio::test]
async fn the_calls_of_all_streams_share_the_places_of_a_connection() {
    let rig = Rig::with(|config| config.limits.max_in_flight = 2).await;
    let mut peer = Peer::connect(rig.address).await;
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_secs(2)));
    let call = |id: usize| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"eth_gasPrice"}}"#);
    let mut waiting = Vec::new();
    for id in 0..3 {
        waiting.push(peer.send(post(), call(id)).await);
    }
    let last = whole(waiting.pop().unwrap()).await;
    assert_eq!((last.status, last.header("retry-after")), (503, "1"), "{last:?}");
    assert!(last.text().contains("-32005"), "{last:?}");
    // A stream that is reset gives its place back once the call is done.
    drop(waiting);
    rig.control.set_faults(|faults| faults.delay = None);
    eventually("a place is free", async || {
        peer.ask(post(), call(9)).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn a_client_with_closed_windows_loses_its_streams_and_no_one_else() {
    let rig = Rig::before(node_with_logs_of(40_000).await, |config| {
        config.delivery.write_deadline = Duration::from_millis(300);
    })
    .await;
    let block = rig.control.mine();
    rig.proxy.settled(&rig.control).await;
    let mut closed = Builder::new();
    closed.initial_window_size(0);
    let mut peer = Peer::with(rig.address, &closed).await;
    let logs = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getLogs",
        "params": [{"blockHash": format!("{:#x}", block.hash())}]});
    let mut streams = Vec::new();
    for _ in 0..20 {
        let response = within("a head", peer.send(post(), logs.to_string()).await)
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        streams.push(response.into_body());
    }
    let mut events = peer.events("kind=logs", "").await;
    serves_others(&rig).await;
    for mut stream in streams {
        let ended = within("the stream is reset", stream.data()).await.unwrap().unwrap_err();
        assert_eq!(ended.reason(), Some(h2::Reason::CANCEL));
    }
    // The connection itself is served: an answer without a body needs no window.
    assert_eq!(peer.ask(request(Method::HEAD, "/", &[]), "").await.status, 200);
    let ended = within("the events end", events.body.data()).await.unwrap().unwrap_err();
    assert_eq!(ended.reason(), Some(h2::Reason::CANCEL));
    eventually("nothing is kept", async || {
        rig.metric(r#"headwater_memory_bytes{budget="answers"}"#).await == 0.0
            && rig.metric("headwater_clients").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_storm_of_resets_ends_the_connection() {
    let rig = Rig::start().await;
    let mut socket = TcpStream::connect(rig.address).await.unwrap();
    let mut storm = PREFACE.to_vec();
    // HPACK: POST, http, /, authority left out.
    for id in (1..20_001_u32).step_by(2) {
        storm.extend([0, 0, 3, 1, 4]);
        storm.extend(id.to_be_bytes());
        storm.extend([0x83, 0x86, 0x84]);
        storm.extend([0, 0, 4, 3, 0]);
        storm.extend(id.to_be_bytes());
        storm.extend(8_u32.to_be_bytes());
    }
    // The server may have ended it already.
    drop(socket.write_all(&storm).await);
    rest(&mut socket, PATIENCE).await;
    serves_others(&rig).await;
}

#[tokio::test]
async fn floods_of_frames_end_the_connection() {
    let rig = Rig::start().await;
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
    let settings = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    let window = vec![0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let unknown = vec![0, 0, 0, 99, 0, 0, 0, 0, 0];
    // Headers without an end, each continued by one byte.
    let mut endless = vec![0, 0, 3, 1, 0, 0, 0, 0, 1, 0x83, 0x86, 0x84];
    endless.extend([0, 0, 1, 9, 0, 0, 0, 0, 1, 0x84].repeat(20_000));
    for (what, flood) in [
        ("pings", ping.repeat(5_000)),
        ("settings", settings.repeat(5_000)),
        ("window updates", window.repeat(5_000)),
        ("unknown frames", unknown.repeat(5_000)),
        ("continuations", endless),
    ] {
        let mut socket = TcpStream::connect(rig.address).await.unwrap();
        socket.write_all(PREFACE).await.unwrap();
        let (mut read, mut write) = socket.split();
        let reading = async {
            let mut piece = vec![0; 64 << 10];
            while matches!(tokio::io::AsyncReadExt::read(&mut read, &mut piece).await, Ok(1..)) {}
        };
        let flooding = async { drop(write.write_all(&flood).await) };
        within(what, async { tokio::join!(reading, flooding) }).await;
    }
    serves_others(&rig).await;
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let rig = Rig::start().await;
    let mut peer = Peer::connect(rig.address).await;
    let long = "x".repeat(20 << 10);
    let request = request(Method::POST, "/", &[("x-long", &long)]);
    assert_eq!(peer.ask(request, "").await.status, 431);
    assert_eq!(peer.post(CHAIN_ID).await, CHAIN_ID_ANSWER);
}

#[tokio::test]
async fn what_says_nothing_or_not_all_is_ended() {
    let rig = Rig::with(|config| config.server.header_timeout = Duration::from_secs(1)).await;
    // Nothing; a part of the preface; a method that begins like it; the preface alone.
    let begun = ["", "PR", "PRI ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"].map(async |begin: &str| {
        let mut socket = TcpStream::connect(rig.address).await.unwrap();
        socket.write_all(begin.as_bytes()).await.unwrap();
        rest(&mut socket, PATIENCE).await;
    });
    futures_util::future::join_all(begun).await;
    // Settings, and no request.
    let peer = Peer::connect(rig.address).await;
    assert_eq!(peer.ended().await, None);
    // No more requests.
    let mut peer = Peer::connect(rig.address).await;
    assert_eq!(peer.post(CHAIN_ID).await, CHAIN_ID_ANSWER);
    assert_eq!(peer.ended().await, None);
    serves_others(&rig).await;
}

#[tokio::test]
async fn a_drain_ends_streams_with_their_reasons_and_then_the_connection() {
    let rig = Rig::start().await;
    let mut peer = Peer::connect(rig.address).await;
    let mut events = peer.events("kind=heads", "").await;
    let (mut socket, _) = peer.web_socket(&[]).await.unwrap();
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_millis(200)));
    let waiting = peer.send(post(), FORWARDED).await;
    eventually("the call is under way", async || {
        rig.upstreams().await[0]["callsInFlight"] == 1
    })
    .await;
    rig.stop();
    let closed = async {
        loop {
            if events.next("event").await? == "close" {
                return events.next("data").await;
            }
        }
    };
    assert!(closed.await.unwrap().contains("1012"));
    assert!(text(&mut socket).await.contains("Restart"));
    assert_eq!(whole(waiting).await.text(), FORWARDED_ANSWER);
    drop((events, socket));
    assert_eq!(peer.ended().await, None);
    rig.proxy.ended().await.unwrap();
}

#[tokio::test]
async fn it_may_be_switched_off() {
    let rig = Rig::with(|config| config.server.http2 = headwater::server::Http2::Tls).await;
    let mut socket = TcpStream::connect(rig.address).await.unwrap();
    socket.write_all(PREFACE).await.unwrap();
    let answer = rest(&mut socket, PATIENCE).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    serves_others(&rig).await;
}
