//! The access log: a line for each request, call and connection, without secrets, that delays nobody; and the ids of
//! requests.

use std::path::Path;

use headwater::config::typed;
use headwater::door::ApiKey;
use serde_json::{Value, json};

use crate::harness::{Client, Rig, eventually};
use crate::keys::allow;
use crate::server_sent_events::source::Source;
use crate::wire::{CHAIN_ID, FORWARDED, FORWARDED_ANSWER, UPGRADE, Wire, http};

const POST: &str = "POST / HTTP/1.1\r\ncontent-type: application/json";

/// Switches the log on, to a file in this folder.
pub fn into(dir: &Path) -> impl Fn(&mut typed::Config) {
    let file = dir.join("access.log").display().to_string();
    move |config| config.log.access.clone_from(&file)
}

/// Returns all lines so far, of which the last may be half written.
fn text(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("access.log")).unwrap_or_default()
}

fn lines(dir: &Path) -> Vec<Value> {
    let text = text(dir);
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until this many lines have these members, and returns them.
pub async fn with(dir: &Path, count: usize, members: &Value) -> Vec<Value> {
    let fits = |line: &Value| {
        members
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, value)| &line[key] == value)
    };
    let found = || lines(dir).into_iter().filter(fits).collect::<Vec<_>>();
    eventually(&format!("{count} of {members}"), async || found().len() >= count).await;
    let found = found();
    assert_eq!(found.len(), count, "{members}: {found:#?}");
    found
}

#[tokio::test]
async fn each_request_call_and_connection_has_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let key = ApiKey::random();
    let rig = Rig::with(|config| {
        into(dir.path())(config);
        allow(config, "alice", &key, "");
    })
    .await;
    let of_alice = |more: Value| {
        let mut members = json!({"account": "key alice"});
        members
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        members
    };
    let head = format!("POST /{} HTTP/1.1\r\ncontent-type: application/json", key.reveal());

    // HTTP: one line for the request, and one for each call in it.
    let reply = http(rig.address, &head, FORWARDED).await;
    assert_eq!(reply.body, FORWARDED_ANSWER);
    let call = &with(dir.path(), 1, &of_alice(json!({"method": "eth_syncing"}))).await[0];
    let id = reply.header("x-request-id").unwrap();
    for (member, expect) in [
        ("event", json!("call")),
        ("transport", json!("http")),
        ("outcome", json!("result")),
        ("by", json!("node")),
        ("upstream", json!(rig.node.ws_url())),
        ("request_id", json!(id)),
        ("bytes_in", json!(0)),
        ("bytes_out", json!(FORWARDED_ANSWER.len())),
    ] {
        assert_eq!(call[member], expect, "{member}: {call}");
    }
    let request = &with(dir.path(), 1, &json!({"event": "http", "request_id": id})).await[0];
    for (member, expect) in [
        ("method", json!("POST")),
        ("code", json!(200)),
        ("outcome", json!("answered")),
        ("account", json!("key alice")),
        ("bytes_in", json!(FORWARDED.len())),
        ("bytes_out", json!(FORWARDED_ANSWER.len())),
    ] {
        assert_eq!(request[member], expect, "{member}: {request}");
    }

    // WebSocket: the connection's begin and end, and its calls, numbered by message.
    let url = format!("ws://{}/{}", rig.address, key.reveal());
    let mut client = Client::connect(&url).await;
    client.subscribe(json!(["newHeads"])).await;
    let secret = "0x5ec3e70000000000000000000000000000000000";
    client.call("eth_getBalance", json!([secret, "latest"])).await;
    let batch = json!([
        {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"},
        {"jsonrpc": "2.0", "id": 2, "method": "personal_sign"},
        {"jsonrpc": "2.0", "method": "net_version"},
    ]);
    client
        .send(tokio_tungstenite::tungstenite::Message::text(batch.to_string()))
        .await;
    client.next().await;
    drop(client);
    let close = &with(dir.path(), 1, &of_alice(json!({"event": "close"}))).await[0];
    assert_eq!(close["outcome"], "gone", "{close}");
    assert!(
        close["bytes_in"].as_u64() > Some(100) && close["bytes_out"].as_u64() > Some(100),
        "{close}"
    );
    let connection = &close["request_id"];
    let open = &with(dir.path(), 1, &json!({"event": "open", "request_id": connection})).await[0];
    assert_eq!(
        (&open["code"], &open["outcome"]),
        (&json!(101), &json!("accepted")),
        "{open}"
    );
    let calls = with(dir.path(), 5, &json!({"event": "call", "request_id": connection})).await;
    let mut seen: Vec<String> = calls
        .iter()
        .map(|call| {
            let word = |member: &str| call[member].to_string().replace('"', "");
            format!(
                "{} {} {} {} {}",
                word("message"),
                word("method"),
                word("outcome"),
                word("code"),
                word("by")
            )
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            "1 eth_subscribe result null headwater",
            "2 eth_getBalance result null node",
            "3 eth_chainId result null memory",
            "3 net_version no_answer null node",
            "3 personal_sign error -32601 headwater",
        ]
    );

    // A refusal has a line, too, and no line has a secret.
    let reply = http(
        rig.address,
        &format!("{POST}\r\nx-api-key: {}", ApiKey::random().reveal()),
        CHAIN_ID,
    )
    .await;
    assert_eq!(reply.status, 401);
    let refused = &with(dir.path(), 1, &json!({"code": 401})).await[0];
    assert_eq!(refused["outcome"], "unauthorized", "{refused}");
    assert_eq!(refused["request_id"], reply.header("x-request-id").unwrap());
    let text = text(dir.path());
    assert!(!text.contains(key.reveal()) && !text.contains(secret), "{text}");
    assert_eq!(
        rig.metric("headwater_access_log_dropped_total{reason=\"full\"}").await,
        0.0
    );
}

#[tokio::test]
async fn an_id_is_taken_from_whom_it_can_be_and_made_for_all_others() {
    let key = ApiKey::random();
    let of_key = format!("\r\nx-api-key: {}", key.reveal());
    let sent = "\r\nx-request-id: Req_1.2-3";
    for trusts_proxy in [false, true] {
        let rig = Rig::with(|config| {
            allow(config, "alice", &key, "");
            if trusts_proxy {
                config.server.trusted_proxies = vec!["127.0.0.0/8".into()];
            }
        })
        .await;
        for (headers, is_kept) in [
            (sent.to_owned(), trusts_proxy),
            (format!("{sent}{of_key}"), true),
            (format!("\r\nx-request-id: a b{of_key}"), false),
            (format!("\r\nx-request-id: {}{of_key}", "a".repeat(65)), false),
            (format!("{sent}{sent}{of_key}"), false),
            (String::new(), false),
        ] {
            let posted = http(rig.address, &format!("{POST}{headers}"), CHAIN_ID).await;
            let upgraded = Wire::connect(rig.address)
                .await
                .handshake(&format!("{UPGRADE}{headers}"), b"")
                .await;
            assert_eq!((posted.status, upgraded.status), (200, 101), "{headers}");
            for reply in [posted, upgraded] {
                let id = reply.header("x-request-id").unwrap();
                match is_kept {
                    true => assert_eq!(id, "Req_1.2-3"),
                    false => assert!(
                        id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
                        "{id}"
                    ),
                }
            }
        }
        // Responses that are not an answer have one, too.
        for head in [
            "GET / HTTP/1.1",
            "PUT / HTTP/1.1",
            "GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket",
        ] {
            let reply = http(rig.address, head, "").await;
            assert!(reply.header("x-request-id").is_some(), "{head}: {}", reply.head);
        }
    }
}

#[tokio::test]
async fn the_share_decides_and_none_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::with(|config| {
        into(dir.path())(config);
        config.log.access_sample = 0.0;
    })
    .await;
    rig.post(FORWARDED).await;
    drop(rig.client().await);
    // The lines are written by the end of the app.
    let Rig { proxy, node: _node, .. } = rig;
    proxy.stop();
    proxy.ended().await.unwrap();
    assert_eq!(text(dir.path()), "");
}

#[tokio::test]
async fn what_waits_is_written_before_the_app_ends() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::with(into(dir.path())).await;
    let batch = format!("[{}]", vec![CHAIN_ID; 500].join(","));
    rig.post(batch).await;
    let Rig { proxy, node: _node, .. } = rig;
    proxy.stop();
    proxy.ended().await.unwrap();
    let calls = lines(dir.path())
        .into_iter()
        .filter(|line| line["method"] == "eth_chainId");
    assert_eq!(calls.count(), 500);
}

/// A hostile method name is one string of limited length, whatever it contains.
#[tokio::test]
async fn a_name_from_a_client_is_cut_and_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::with(into(dir.path())).await;
    let name = format!("a\"}}\n{{\"event\":\"open\u{1f4a5}{}", "x".repeat(100_000));
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": name});
    rig.post(call.to_string()).await;
    let line = &with(dir.path(), 1, &json!({"event": "call", "outcome": "error"})).await[0];
    let written = line["method"].as_str().unwrap();
    assert!(
        name.starts_with(written) && (60..=64).contains(&written.len()),
        "{written:?}"
    );
}

#[tokio::test]
async fn a_disk_that_is_full_costs_lines_and_nothing_else() {
    let rig = Rig::with(|config| config.log.access = "/dev/full".into()).await;
    assert_eq!(rig.post(FORWARDED).await, FORWARDED_ANSWER);
    eventually("lines are dropped", async || {
        rig.metric("headwater_access_log_dropped_total{reason=\"write\"}").await >= 2.0
    })
    .await;
    assert_eq!(rig.post(FORWARDED).await, FORWARDED_ANSWER);
}

/// A pipe whose reader reads nothing blocks the thread that writes, and nobody else.
#[tokio::test]
async fn a_reader_that_reads_nothing_costs_lines_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("access.log");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let path = pipe.clone();
    let reader = std::thread::spawn(move || std::fs::File::open(path).unwrap());
    let rig = Rig::with(|config| {
        into(dir.path())(config);
        (config.limits.requests_per_second, config.limits.request_burst) = (1_000_000, 1_000_000);
    })
    .await;
    let _reader = reader.join().unwrap();
    let mut bystander = rig.watcher().await;
    let batch = format!("[{}]", vec![CHAIN_ID; 1000].join(","));
    for _ in 0..12 {
        assert!(rig.post(&batch).await.starts_with("[{"));
    }
    assert!(rig.metric("headwater_access_log_dropped_total{reason=\"full\"}").await > 1000.0);
    rig.nothing_else(&mut bystander).await;
    assert_eq!(rig.post(FORWARDED).await, FORWARDED_ANSWER);
}

/// The session of a stream that is the first request of its connection writes the head of the response itself.
#[tokio::test]
async fn a_stream_of_events_has_an_id_and_a_line_as_any_request_has() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::with(into(dir.path())).await;
    let id = |head: &str| {
        let mut lines = head.lines().filter_map(|line| line.strip_prefix("x-request-id: "));
        lines.next().expect("an id").to_owned()
    };
    let stream = Source::open(rig.address, "kind=heads").await;
    let taken =
        json!({"event": "http", "request_id": id(&stream.head), "method": "GET", "code": 200, "outcome": "answered"});
    with(dir.path(), 1, &taken).await;
    // One that the session refuses, before there is a head.
    let refused = http(rig.address, "GET /events?kind=logs&address=0x1 HTTP/1.1", "").await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let members =
        json!({"event": "http", "request_id": id(&refused.head), "code": 400, "bytes_out": refused.body.len()});
    with(dir.path(), 1, &members).await;
}
