//! Access to the API, and its bounds.

use headwater::operator::OperatorClient;
use jsonrpsee::core::client::ClientT as _;
use jsonrpsee::rpc_params;
use jsonrpsee::ws_client::{HeaderMap, HeaderValue, WsClientBuilder};
use serde_json::{Value, json};

use super::{operator, secret};
use crate::harness::{Proxy, Rig, eventually, within};
use crate::wire::{PING, Reply, TEXT, Wire, http};

const TOKEN: &str = "0123456789abcdef-operator";

pub(super) async fn with_token() -> (Rig, tempfile::TempDir) {
    let (folder, path) = secret(TOKEN);
    let rig = Rig::with(|config| config.admin_token_file = path.display().to_string()).await;
    (rig, folder)
}

/// Posts `operator_audit` to the API.
async fn post(proxy: &Proxy, headers: &str) -> Reply {
    let head = format!("POST /api HTTP/1.1\r\ncontent-type: application/json{headers}");
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"operator_audit"}"#;
    http(proxy.admin, &head, call).await
}

/// Upgrades to the API, with this Host and these headers; returns the connection and the status.
async fn upgrade(proxy: &Proxy, host: &str, headers: &str) -> (Wire, u16) {
    let mut wire = Wire::connect(proxy.admin).await;
    let head = format!(
        "GET /api HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=={headers}"
    );
    let status = wire.handshake(&head, b"").await.status;
    (wire, status)
}

/// Returns the next text; the server pings at the start, sooner or later.
async fn answer(wire: &mut Wire) -> String {
    loop {
        let (first, payload) = wire.frame().await;
        if first != PING {
            assert_eq!(first, TEXT);
            return String::from_utf8(payload).unwrap();
        }
    }
}

#[tokio::test]
async fn without_a_token_only_this_machine_is_served_and_no_page_of_others() {
    let rig = Rig::start().await;
    assert_eq!(post(&rig, "").await.status, 200);
    for (host, headers, status) in [
        ("localhost", "", 101),
        ("127.0.0.1:9547", "", 101),
        ("localhost", "\r\nOrigin: http://localhost", 101),
        ("localhost", "\r\nOrigin: http://evil.example", 403),
        ("localhost", "\r\nOrigin: null", 403),
        // A name that resolves to this address.
        ("evil.example", "", 403),
        ("evil.example", "\r\nOrigin: http://evil.example", 403),
        // Behind a proxy of this machine.
        ("localhost", "\r\nX-Forwarded-For: 203.0.113.7", 401),
        ("localhost", "\r\nForwarded: for=203.0.113.7", 401),
    ] {
        assert_eq!(upgrade(&rig, host, headers).await.1, status, "{host} {headers}");
    }
    assert_eq!(post(&rig, "\r\nOrigin: http://evil.example").await.status, 403);
    let form = "POST /api HTTP/1.1\r\ncontent-type: text/plain";
    assert_eq!(
        http(rig.admin, form, "{}").await.status,
        415,
        "a form needs no preflight"
    );
    // There is nothing to log in with.
    let login = http(rig.admin, "POST /login HTTP/1.1", "token=").await;
    assert_eq!(login.status, 401);

    // On all addresses the port is not local.
    let open = Rig::with(|config| config.admin = "0.0.0.0:0".into()).await;
    assert_eq!(post(&open, "").await.status, 401);
    for page in ["/health", "/ready", "/metrics", "/status"] {
        assert_eq!(open.admin(page).await.status, 200, "{page}");
    }
}

#[tokio::test]
async fn with_a_token_nobody_is_served_without_it() {
    let (rig, _folder) = with_token().await;
    let refused = post(&rig, "").await;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, Some("Bearer"))
    );
    assert!(!refused.body.contains(TOKEN));
    assert_eq!(upgrade(&rig, "localhost", "").await.1, 401);
    for wrong in ["Bearer 0123456789abcdef", "Bearer", "Basic MDEyMzQ1Njc4OWFiY2RlZg=="] {
        let reply = post(&rig, &format!("\r\nAuthorization: {wrong}")).await;
        assert_eq!(reply.status, 401, "{wrong}");
    }
    let own = format!("\r\nAuthorization: Bearer {TOKEN}");
    assert_eq!(post(&rig, &own).await.status, 200);
    for page in ["/health", "/ready", "/metrics", "/status"] {
        assert_eq!(rig.admin(page).await.status, 200, "{page}");
    }
    let headers = HeaderMap::from_iter([(
        axum::http::header::AUTHORIZATION,
        HeaderValue::from_str(&format!("Bearer {TOKEN}")).unwrap(),
    )]);
    let url = format!("ws://{}/api", rig.admin);
    let connecting = WsClientBuilder::default().set_headers(headers).build(&url);
    let api = within("connect", connecting).await.unwrap();
    api.drain(None).await.unwrap();
    api.undrain().await.unwrap();
    assert_eq!(api.audit(None).await.unwrap()[0].by, "token");
    assert!(WsClientBuilder::default().build(&url).await.is_err());

    // Guesses end soon, and the answer to them is the same for the token.
    let guess = "\r\nAuthorization: Bearer guess-guess-guess";
    let mut guesses = 0;
    while post(&rig, guess).await.status == 401 {
        guesses += 1;
        assert!(guesses <= 10);
    }
    let refused = post(&rig, &own).await;
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after").is_some());
    // A connection that is open stays.
    api.status().await.unwrap();
}

#[tokio::test]
async fn a_page_logs_in_once() {
    let (rig, _folder) = with_token().await;
    let log_in = async |body: &str| {
        let head = "POST /login HTTP/1.1\r\ncontent-type: application/x-www-form-urlencoded";
        http(rig.admin, head, body).await
    };
    assert_eq!(rig.admin("/session").await.status, 401);
    assert_eq!(log_in("token=guess").await.status, 401);
    assert_eq!(log_in("").await.status, 401);
    assert_eq!(log_in(&"x".repeat(5000)).await.status, 413);
    let other = http(
        rig.admin,
        "POST /login HTTP/1.1\r\norigin: http://evil.example",
        format!("token={TOKEN}"),
    );
    assert_eq!(other.await.status, 403, "another page cannot log in");
    let reply = log_in(&format!("a=b&token={TOKEN}")).await;
    assert_eq!((reply.status, reply.header("location")), (303, Some("/")));
    let set = reply.header("set-cookie").unwrap();
    assert!(set.contains("; HttpOnly; SameSite=Strict; Max-Age=43200"), "{set}");
    let head = "POST /login HTTP/1.1\r\nx-forwarded-proto: https";
    let proxied = http(rig.admin, head, format!("token={TOKEN}")).await;
    assert!(proxied.header("set-cookie").unwrap().ends_with("; Secure"));
    let cookie = format!("\r\nCookie: {}", set.split(';').next().unwrap());
    let page = |path: &str| format!("GET {path} HTTP/1.1{cookie}");
    let session = http(rig.admin, &page("/session"), "").await;
    let said: Value = serde_json::from_str(&session.body).unwrap();
    assert_eq!((session.status, &said["credential"]), (200, &json!("session")));
    assert_eq!(said["clientUrl"], format!("ws://localhost:{}", rig.address.port()));

    // The session acts only for the page of this origin.
    let own = format!("{cookie}\r\nOrigin: http://localhost");
    for (headers, status) in [
        (&own, 101),
        (&cookie, 403),
        (&format!("{cookie}\r\nOrigin: http://evil.example"), 403),
        (&"\r\nOrigin: http://localhost".to_owned(), 401),
        (&own.replace("session=", "session=x"), 401),
    ] {
        assert_eq!(upgrade(&rig, "localhost", headers).await.1, status, "{headers}");
    }
    assert_eq!(post(&rig, &cookie).await.status, 403);
    let (mut wire, _) = upgrade(&rig, "localhost", &own).await;
    wire.send(TEXT, r#"{"jsonrpc":"2.0","id":1,"method":"operator_undrain"}"#)
        .await;
    assert_eq!(answer(&mut wire).await, r#"{"jsonrpc":"2.0","id":1,"result":false}"#);
    let audit: Value = serde_json::from_str(&post(&rig, &own).await.body).unwrap();
    assert_eq!(audit["result"][0]["by"], "session");

    // Its connections end with it, also one that has a subscription.
    wire.send(TEXT, r#"{"jsonrpc":"2.0","id":2,"method":"operator_subscribeStatus"}"#)
        .await;
    // A ping may come first.
    while wire.frame().await.0 != TEXT {}
    let ended = http(rig.admin, &format!("POST /logout HTTP/1.1{own}"), "").await;
    assert!(ended.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(http(rig.admin, &page("/session"), "").await.status, 401);
    wire.until_the_end().await;
}

#[tokio::test]
async fn connections_and_subscriptions_are_bounded() {
    let rig = Rig::start().await;
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(operator(&rig).await);
    }
    assert_eq!(upgrade(&rig, "localhost", "").await.1, 429);
    for page in ["/health", "/metrics"] {
        assert_eq!(rig.admin(page).await.status, 200, "{page}");
    }
    drop(open.pop());
    eventually("a place is free", async || post(&rig, "").await.status == 200).await;
    let api = &open[0];
    let mut subscriptions = Vec::new();
    for _ in 0..16 {
        subscriptions.push(api.subscribe_events(None).await.unwrap());
    }
    let refused = api.subscribe_events(None).await.unwrap_err().to_string();
    assert!(refused.contains("subscriptions"), "{refused}");
    // Requests are still answered; a long one is not read.
    let long = "x".repeat(65 << 10);
    let refused: Result<Value, _> = api.request("operator_client", rpc_params![long]).await;
    assert!(refused.is_err());
    open[1].status().await.unwrap();
}

#[tokio::test]
async fn nonsense_is_refused_and_ends_nothing_else() {
    let rig = Rig::start().await;
    let api = operator(&rig).await;
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"operator_reorgs"}"#;
    for (message, code) in [
        ("{".to_owned(), "-32700"),
        ("null".to_owned(), "-32700"),
        ("[]".to_owned(), "-32600"),
        (format!("[{}]", vec![call; 33].join(",")), "-32010"),
        ("[".repeat(60_000), "-32700"),
        ("x".repeat(65 << 10), "-32007"),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber"}"#.to_owned(),
            "-32601",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"operator_client","params":[-1]}"#.to_owned(),
            "-32602",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"operator_clients","params":[{"limit":1,"x":2}]}"#.to_owned(),
            "-32602",
        ),
    ] {
        let (mut wire, _) = upgrade(&rig, "localhost", "").await;
        wire.send(TEXT, &message).await;
        let refused = answer(&mut wire).await;
        let shown: String = message.chars().take(80).collect();
        assert!(refused.contains(&format!(r#""code":{code},"#)), "{shown}: {refused}");
        wire.send(TEXT, call).await;
        assert_eq!(
            answer(&mut wire).await,
            r#"{"jsonrpc":"2.0","id":1,"result":[]}"#,
            "{shown}"
        );
    }
    api.status().await.unwrap();
}

#[tokio::test]
async fn an_operator_that_does_not_read_disturbs_nobody() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    let (mut silent, status) = upgrade(&rig, "localhost", "").await;
    assert_eq!(status, 101);
    for id in 0..16 {
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "operator_subscribeStatus"});
        silent.send(TEXT, call.to_string()).await;
    }
    // Answers that nobody reads fill the socket; further requests wait.
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"operator_status"}"#;
    let batch = format!("[{}]", vec![call; 32].join(","));
    let mut sent = 0;
    let full = async {
        loop {
            silent.send(TEXT, &batch).await;
            sent += 1;
        }
    };
    drop(tokio::time::timeout(std::time::Duration::from_secs(1), full).await);
    assert!(sent > 0);
    let api = operator(&rig).await;
    api.status().await.unwrap();
    for _ in 0..5 {
        rig.nothing_else(&mut client).await;
    }
}
