//! Keys and tokens: authentication, and the rights that each grants.

use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use headwater::config::typed;
use headwater::door::{ApiKey, CredentialSource, unix_now};
use serde_json::{Value, json};

use crate::door::{post, upgrade};
use crate::harness::{Proxy, Rig, eventually, node};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, TEXT, UPGRADE, Wire, http};

/// Adds a key to the configuration; `more` is the text of its section besides the hash.
pub fn allow(config: &mut typed::Config, name: &str, key: &ApiKey, more: &str) {
    let section = format!("hash = \"{}\"\n{more}", key.digest());
    config.keys.insert(name.into(), toml::from_str(&section).unwrap());
}

fn bearer(key: &str) -> String {
    format!("\r\nAuthorization: Bearer {key}")
}

async fn ask(wire: &mut Wire, method: &str, params: Value) -> Value {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    wire.send(TEXT, request.to_string()).await;
    serde_json::from_str(&wire.text().await).unwrap()
}

#[tokio::test]
async fn a_key_opens_from_each_place_that_is_switched_on() {
    let key = ApiKey::random();
    let other = ApiKey::random();
    for ways in [
        vec![
            CredentialSource::Bearer,
            CredentialSource::Header,
            CredentialSource::Path,
            CredentialSource::Query,
        ],
        vec![CredentialSource::Bearer],
        vec![CredentialSource::Header],
        vec![CredentialSource::Path],
        vec![CredentialSource::Query],
    ] {
        // The rig's own client has no key, so none is required here.
        let rig = Rig::with(|config| {
            allow(config, "alice", &key, "");
            config.auth.accept.clone_from(&ways);
        })
        .await;
        for shown in [&key, &other] {
            let text = shown.reveal();
            for (way, target, headers) in [
                (CredentialSource::Bearer, "/".to_owned(), bearer(text)),
                (
                    CredentialSource::Header,
                    "/".to_owned(),
                    format!("\r\nX-API-Key: {text}"),
                ),
                (CredentialSource::Path, format!("/v1/{text}"), String::new()),
                (CredentialSource::Query, format!("/?key={text}"), String::new()),
            ] {
                // A source that is switched off is not read: the client then shows no key, which is allowed here.
                let valid = !ways.contains(&way) || shown.reveal() == key.reveal();
                let head = UPGRADE.replace("GET / ", &format!("GET {target} ")) + &headers;
                let reply = Wire::connect(rig.address).await.handshake(&head, b"").await;
                assert_eq!(reply.status, if valid { 101 } else { 401 }, "{way:?} {ways:?}");
                let head = format!("POST {target} HTTP/1.1\r\ncontent-type: application/json{headers}");
                let reply = http(rig.address, &head, CHAIN_ID).await;
                assert_eq!(reply.status, if valid { 200 } else { 401 }, "{way:?} {ways:?}");
                if !valid {
                    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
                    assert!(!reply.body.contains(text));
                }
            }
        }
    }
}

#[tokio::test]
async fn where_a_key_is_needed_nobody_comes_in_without() {
    let key = ApiKey::random();
    let node = node().await;
    let rig = Proxy::start(&[node.ws_url()], |config| {
        allow(config, "alice", &key, "");
        config.auth.required = true;
    })
    .await;
    rig.ready().await;
    for headers in [
        String::new(),
        bearer("hw_guessed"),
        bearer("a.b.c"),
        bearer(""),
        "\r\nAuthorization: Basic dXNlcjpwYXNz".into(),
        format!("\r\nX-API-Key: {}x", key.reveal()),
    ] {
        assert_eq!(upgrade(rig.address, &headers).await.1.status, 401, "{headers}");
        assert_eq!(post(rig.address, &headers, CHAIN_ID).await.status, 401, "{headers}");
    }
    let (mut wire, reply) = upgrade(rig.address, &bearer(key.reveal())).await;
    assert_eq!(reply.status, 101);
    wire.works().await;
    assert_eq!(
        post(rig.address, &bearer(key.reveal()), CHAIN_ID).await.body,
        CHAIN_ID_ANSWER
    );
    // Load balancers check without a key if the app is up.
    assert_eq!(http(rig.address, "GET / HTTP/1.1", "").await.status, 200);
    assert!(rig.metric(r#"headwater_refused_total{reason="unauthorized"}"#).await >= 12.0);
}

#[tokio::test]
async fn guessing_is_as_slow_as_connecting() {
    let key = ApiKey::random();
    let rig = Rig::with(|config| {
        allow(config, "alice", &key, "");
        // The rig's own client takes one of these.
        config.limits.handshakes_per_minute = 4;
    })
    .await;
    let mut statuses = Vec::new();
    for i in 0..5 {
        let headers = bearer(&format!("hw_{i}"));
        let reply = if i % 2 == 0 {
            post(rig.address, &headers, CHAIN_ID).await
        } else {
            upgrade(rig.address, &headers).await.1
        };
        statuses.push(reply.status);
    }
    assert_eq!(statuses, [401, 401, 401, 429, 429]);
    // A client with a key is not affected by clients without one.
    assert_eq!(upgrade(rig.address, &bearer(key.reveal())).await.1.status, 101);
}

#[tokio::test]
async fn a_key_opens_what_it_is_for() {
    let (key, ops) = (ApiKey::random(), ApiKey::random());
    let rig = Rig::with(|config| {
        let more = r#"
            methods = ["eth_chainId", "eth_subscribe"]
            subscriptions = ["newHeads"]
            origins = ["https://app.example"]
            addresses = ["127.0.0.0/30"]
        "#;
        allow(config, "alice", &key, more);
        allow(
            config,
            "ops",
            &ops,
            "methods = [\"debug_*\", \"eth_*\"]\naddresses = [\"10.0.0.0/8\"]",
        );
        config.server.trusted_proxies = vec!["127.0.0.0/8".into()];
    })
    .await;
    let (mut wire, _) = upgrade(rig.address, &bearer(key.reveal())).await;
    wire.works().await;
    let words = |answer: &Value| {
        (
            answer["error"]["code"].clone(),
            answer["error"]["message"].as_str().unwrap().to_owned(),
        )
    };
    let refused = ask(&mut wire, "eth_blockNumber", json!([])).await;
    let message = "the method eth_blockNumber does not exist/is not available";
    assert_eq!(words(&refused), (json!(-32601), message.to_owned()));
    assert!(ask(&mut wire, "eth_subscribe", json!(["newHeads"])).await["result"].is_string());
    let refused = ask(&mut wire, "eth_subscribe", json!(["logs", {}])).await;
    assert_eq!(
        words(&refused),
        (json!(-32601), "no \"logs\" subscription in eth namespace".into())
    );
    let block = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber"}).to_string();
    assert!(
        post(rig.address, &bearer(key.reveal()), &block)
            .await
            .body
            .contains("-32601")
    );
    // Origins and addresses.
    for (headers, status) in [
        ("\r\nOrigin: https://app.example", 101),
        ("\r\nOrigin: http://localhost", 403),
        ("\r\nX-Forwarded-For: 127.0.0.3", 101),
        ("\r\nX-Forwarded-For: 10.0.0.1", 403),
    ] {
        let headers = format!("{}{headers}", bearer(key.reveal()));
        assert_eq!(upgrade(rig.address, &headers).await.1.status, status, "{headers}");
        let status = if status == 101 { 200 } else { 403 };
        assert_eq!(post(rig.address, &headers, CHAIN_ID).await.status, status, "{headers}");
    }
    let preflight = "OPTIONS / HTTP/1.1\r\nOrigin: https://app.example\r\nAccess-Control-Request-Method: POST";
    assert_eq!(
        http(rig.address, preflight, "").await.status,
        204,
        "it comes without the key"
    );
    // A list of a key replaces the one for all clients.
    let headers = format!("{}\r\nX-Forwarded-For: 10.0.0.1", bearer(ops.reveal()));
    let debug = json!({"jsonrpc": "2.0", "id": 1, "method": "debug_nothing"}).to_string();
    post(rig.address, &headers, &debug).await;
    assert_eq!(
        rig.metric(r#"headwater_requests_total{outcome="node_error"}"#).await,
        1.0
    );
}

#[tokio::test]
async fn a_key_is_a_client_of_its_own_on_its_own_plan() {
    let (key, other) = (ApiKey::random(), ApiKey::random());
    let rig = Rig::with(|config| {
        let small = "request_burst = 3\nrequests_per_second = 1\nmax_batch = 2\nmax_connections_per_client = 1";
        config.plans.insert("small".into(), toml::from_str(small).unwrap());
        allow(config, "alice", &key, "plan = \"small\"");
        allow(config, "bob", &other, "plan = \"small\"");
        config.server.trusted_proxies = vec!["127.0.0.0/8".into()];
    })
    .await;
    for key in [&key, &other] {
        let mut statuses = Vec::new();
        for i in 0..5 {
            // The address does not matter, nor the number of addresses.
            let headers = format!("{}\r\nX-Forwarded-For: 10.0.0.{i}", bearer(key.reveal()));
            statuses.push(post(rig.address, &headers, CHAIN_ID).await.status);
        }
        assert_eq!(statuses[..3], [200; 3]);
        assert_eq!(statuses[4], 429);
    }
    let (one, reply) = upgrade(rig.address, &bearer(key.reveal())).await;
    assert_eq!(reply.status, 101);
    assert_eq!(upgrade(rig.address, &bearer(key.reveal())).await.1.status, 429);
    let mut nobody = rig.client().await;
    assert_eq!(
        nobody
            .ask(format!("[{CHAIN_ID},{CHAIN_ID},{CHAIN_ID}]"))
            .await
            .matches("0x539")
            .count(),
        3
    );
    drop(one);
}

/// Searches all output that could contain a key: the log at its loudest, all pages of the admin port, and the
/// requests to the node.
#[tokio::test]
async fn keys_are_shown_to_nobody() {
    let key = ApiKey::random();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "[keys.alice]\nhash = \"{}\"\n[log]\nfilter = \"trace\"",
        key.digest()
    )
    .unwrap();
    let node = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", node.local_addr().unwrap());
    let path = file.path().display().to_string();
    let args = [
        "--config",
        &path,
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--upstream",
        &upstream,
    ];
    let mut running = crate::cli::headwater(&args, &[])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (seen, mut heard) = (std::sync::Arc::new(std::sync::Mutex::new(String::new())), Vec::new());
    let mut log = std::io::BufReader::new(running.stderr.take().unwrap());
    let address = crate::cli::address_after("serving on ws://", &mut log).parse().unwrap();
    let admin = crate::cli::address_after("admin on http://", &mut log).parse().unwrap();
    let written = seen.clone();
    std::thread::spawn(move || {
        for line in std::io::BufRead::lines(log).map_while(Result::ok) {
            written.lock().unwrap().push_str(&line);
        }
    });
    for text in [key.reveal().to_owned(), format!("{}x", key.reveal())] {
        for (target, headers) in [
            ("/".to_owned(), bearer(&text)),
            ("/".to_owned(), format!("\r\nX-API-Key: {text}")),
            (format!("/v1/{text}"), String::new()),
            (format!("/?key={text}"), String::new()),
        ] {
            let head = UPGRADE.replace("GET / ", &format!("GET {target} ")) + &headers;
            Wire::connect(address).await.handshake(&head, b"").await;
            let head = format!("POST {target} HTTP/1.1\r\ncontent-type: application/json{headers}");
            let call = tokio::spawn(async move { http(address, &head, CHAIN_ID).await });
            // The node reads and does not answer.
            if !text.ends_with('x') {
                use tokio::io::AsyncReadExt as _;
                let (mut socket, _) = node.accept().await.unwrap();
                let mut bytes = vec![0; 4096];
                let read = tokio::time::timeout(Duration::from_millis(200), socket.read(&mut bytes)).await;
                heard.extend_from_slice(&bytes[..read.map_or(0, |read| read.unwrap_or(0))]);
            }
            call.abort();
        }
    }
    let mut pages = String::new();
    for page in ["/metrics", "/status", "/ready"] {
        pages += &http(admin, &format!("GET {page} HTTP/1.1"), "").await.body;
    }
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    running.wait().unwrap();
    let log = seen.lock().unwrap().clone();
    assert!(log.len() > 500 && !heard.is_empty() && pages.len() > 500);
    for shown in [log, pages, String::from_utf8_lossy(&heard).into_owned()] {
        assert!(!shown.contains(&key.reveal()[..20]));
        assert!(!shown.contains(&key.digest().to_string()[7..27]));
    }
}

// ---- tokens

const SECRET: &[u8] = b"a secret of at least thirty-two bytes, for tests";

fn token(claims: &Value) -> String {
    token_by(SECRET, claims)
}

fn token_by(secret: &[u8], claims: &Value) -> String {
    let body = format!(
        "{}.{}",
        BASE64.encode(json!({"alg": "HS256", "typ": "JWT"}).to_string()),
        BASE64.encode(claims.to_string())
    );
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), body.as_bytes());
    format!("{body}.{}", BASE64.encode(tag))
}

fn secret() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(SECRET).unwrap();
    file
}

#[tokio::test]
async fn a_token_opens_until_it_expires() {
    let secret = secret();
    let rig = Rig::with(|config| {
        config.auth.jwt_secret_file = secret.path().display().to_string();
        let small = "max_subscriptions_per_client = 1";
        config.plans.insert("small".into(), toml::from_str(small).unwrap());
    })
    .await;
    // Clocks may differ by five seconds, of which this token has two left.
    let short = token(&json!({"sub": "alice", "exp": unix_now() - 3}));
    let long = token(&json!({"sub": "alice", "exp": unix_now() + 600, "plan": "small"}));
    let (mut brief, reply) = upgrade(rig.address, &bearer(&short)).await;
    assert_eq!(reply.status, 101);
    let (mut lasting, reply) = upgrade(rig.address, &bearer(&long)).await;
    assert_eq!(reply.status, 101);
    brief.works().await;
    assert_eq!(post(rig.address, &bearer(&long), CHAIN_ID).await.body, CHAIN_ID_ANSWER);
    // Browsers cannot set headers.
    let head = UPGRADE.replace("GET / ", &format!("GET /?key={long} "));
    assert_eq!(Wire::connect(rig.address).await.handshake(&head, b"").await.status, 101);
    assert!(ask(&mut lasting, "eth_subscribe", json!(["newHeads"])).await["result"].is_string());
    assert_eq!(
        ask(&mut lasting, "eth_subscribe", json!(["newHeads"])).await["error"]["code"],
        -32005
    );
    let (_, code) = brief.closed().await;
    assert_eq!(code, Some(1008));
    lasting.works().await;
    for bad in [
        short,
        token(&json!({"sub": "alice", "exp": unix_now() - 60})),
        token(&json!({"sub": "alice", "exp": unix_now() + 60, "plan": "no such plan"})),
        token(&json!({"exp": unix_now() + 60})),
        format!("{long}x"),
    ] {
        assert_eq!(upgrade(rig.address, &bearer(&bad)).await.1.status, 401, "{bad}");
        assert_eq!(post(rig.address, &bearer(&bad), CHAIN_ID).await.status, 401, "{bad}");
    }
    drop(brief);
    eventually("it is counted", async || {
        rig.metric(r#"headwater_closes_total{reason="expired"}"#).await == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_secret_that_is_replaced_closes_those_who_came_in_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let (config, secret) = (dir.path().join("headwater.toml"), dir.path().join("secret"));
    std::fs::write(&secret, SECRET).unwrap();
    let text = format!("[auth]\njwt_secret_file = {:?}\n", secret.display().to_string());
    std::fs::write(&config, text).unwrap();
    let node = node().await;
    let proxy = Proxy::from_file(&config, &[node.ws_url()]).await;
    proxy.settled(&node.handle()).await;
    let claims = json!({"sub": "alice", "exp": unix_now() + 600});
    let (old, fresh) = (
        token(&claims),
        token_by(b"another secret of at least thirty-two bytes", &claims),
    );
    let mut nobody = proxy.client().await;
    let (mut hers, reply) = upgrade(proxy.address, &bearer(&old)).await;
    assert_eq!(reply.status, 101);
    hers.works().await;
    assert_eq!(post(proxy.address, &bearer(&fresh), CHAIN_ID).await.status, 401);
    let replaced = dir.path().join("new");
    std::fs::write(&replaced, "another secret of at least thirty-two bytes").unwrap();
    std::fs::rename(replaced, &secret).unwrap();
    let (_, code) = hers.closed().await;
    assert_eq!(code, Some(1008));
    assert_eq!(upgrade(proxy.address, &bearer(&old)).await.1.status, 401);
    assert_eq!(post(proxy.address, &bearer(&old), CHAIN_ID).await.status, 401);
    let (mut again, reply) = upgrade(proxy.address, &bearer(&fresh)).await;
    assert_eq!(reply.status, 101);
    again.works().await;
    assert_eq!(nobody.call("eth_chainId", json!([])).await["result"], "0x539");
}

/// Verification of a token costs more than all other steps of admission.
#[tokio::test]
async fn a_token_is_charged_before_it_is_verified_and_once() {
    let secret = secret();
    let rig = Rig::with(|config| {
        config.auth.jwt_secret_file = secret.path().display().to_string();
        // The rig's own client takes one of these.
        config.limits.handshakes_per_minute = 4;
    })
    .await;
    let good = |subject: &str| bearer(&token(&json!({"sub": subject, "exp": unix_now() + 600})));
    let (alice, bob) = (good("alice"), good("bob"));
    let mut statuses = Vec::new();
    for headers in [
        &alice,
        &bearer("a.b.c"),
        &bearer("a.b.d"),
        &bearer("a.b.e"),
        &bob,
        &alice,
        &alice,
    ] {
        statuses.push(post(rig.address, headers, CHAIN_ID).await.status);
    }
    assert_eq!(statuses, [200, 401, 401, 429, 429, 200, 200]);
}

/// The example of docs/streams.md, `debug_traceChain`, with a namespace that the node has: a key grants one kind of a
/// namespace that is otherwise denied.
#[tokio::test]
async fn a_key_has_one_kind_of_a_namespace_that_stays_denied() {
    let key = ApiKey::random();
    let rig = Rig::with(|config| {
        config.subscriptions.passthrough = vec!["eth_*".to_owned(), "chain_blockNumbers".to_owned()];
        config.methods.denied.push("chain_*".to_owned());
        allow(config, "tracer", &key, r#"methods = ["eth_*", "chain_subscribe"]"#);
    })
    .await;
    let tracer = UPGRADE.to_owned() + &bearer(key.reveal());
    for (head, may) in [(UPGRADE, false), (&*tracer, true)] {
        let mut wire = Wire::connect(rig.address).await;
        assert_eq!(wire.handshake(head, b"").await.status, 101);
        for method in ["chain_call", "debug_traceBlockByNumber"] {
            assert_eq!(ask(&mut wire, method, json!([])).await["error"]["code"], -32601);
        }
        let other = ask(&mut wire, "chain_subscribe", json!(["others"])).await;
        assert_eq!(other["error"]["code"], -32601, "{other}");
        let answer = ask(&mut wire, "chain_subscribe", json!(["blockNumbers"])).await;
        assert_eq!(answer["result"].is_string(), may, "{answer}");
    }
}
