//! Requests that reach no node: nested too deep, with odd names, of denied methods, for others' filters.

use headwater::door::{ApiKey, Development, Unknown};
use serde_json::{Value, json};

use crate::bystander::Bystander;
use crate::harness::{Client, Proxy, eventually};
use crate::keys::allow;
use crate::scripted::Scripted;
use crate::wire::http;

fn request(id: &Value, method: &str, params: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":{},"params":{params}}}"#,
        json!(method)
    )
}

/// Sends a request over WebSocket and over HTTP; returns the answer, which must be the same.
async fn both(proxy: &Proxy, client: &mut Client, body: &str) -> Value {
    let over_web_socket: Value = serde_json::from_str(&client.ask(body).await).unwrap();
    let over_http: Value = serde_json::from_str(&proxy.post(body).await).unwrap();
    assert_eq!(over_web_socket, over_http, "{body:.200}");
    over_http
}

fn refused(id: &Value, method: &str) -> Value {
    let message = format!("the method {method} does not exist/is not available");
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": message}})
}

/// geth reads the 10,001st level as a syntax error and closes the connection, which all clients share.
#[tokio::test]
async fn what_is_too_deep_is_answered_here_item_by_item() {
    let node = Scripted::start().await;
    let proxy = node.proxy(|config| config.methods.unknown = Unknown::Serve).await;
    let bystander = Bystander::join(&proxy).await;
    let mut client = proxy.client().await;
    let deep = |id: u32, levels: usize| {
        let params = "[".repeat(levels) + &"]".repeat(levels);
        (request(&json!(id), "deep_call", &params), json!(id))
    };
    let too_deep = |id: &Value| json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": "nested too deep: more than 64 levels"}});
    for levels in [64, 65, 1_000, 10_001, 100_000] {
        let (body, id) = deep(5, levels);
        assert_eq!(both(&proxy, &mut client, &body).await, too_deep(&id), "{levels}");
    }
    assert_eq!(node.calls("deep_call"), 0);
    let (good, good_id) = deep(1, 63);
    let (bad, bad_id) = deep(2, 10_001);
    let silent = bad.replace(r#""id":2,"#, "");
    let batch = format!("[{good},{bad},{silent},{good}]");
    let good_answer = refused(&good_id, "deep_call");
    assert_eq!(
        both(&proxy, &mut client, &batch).await,
        json!([good_answer, too_deep(&bad_id), good_answer])
    );
    assert_eq!(node.calls("deep_call"), 4, "the good ones, over both transports");
    // The depth of a subscription's parameters is bounded, too.
    let filter = "[".repeat(10_000) + &"]".repeat(10_000);
    for method in [
        "eth_subscribe",
        "eth_unsubscribe",
        "eth_getFilterChanges",
        "eth_chainId",
    ] {
        let body = request(&json!(9), method, &format!(r#"["logs",{filter}]"#));
        assert_eq!(both(&proxy, &mut client, &body).await, too_deep(&json!(9)), "{method}");
    }
    // Input that is not a request is answered as such.
    let (open, close) = ("[".repeat(10_001), "]".repeat(10_001));
    let invalid = json!([{"jsonrpc": "2.0", "id": null, "error": {"code": -32600, "message": "invalid request"}}]);
    assert_eq!(both(&proxy, &mut client, &format!("{open}{close}")).await, invalid);
    assert_eq!(both(&proxy, &mut client, &open).await["error"]["code"], -32700);
    let heads = node.mine_many(2, 0);
    bystander.saw_only(&heads).await;
}

#[tokio::test]
async fn odd_names_reach_no_node_by_any_way() {
    let node = Scripted::start().await;
    let key = ApiKey::random();
    let proxy = node
        .proxy(|config| {
            config.methods.allowed = vec!["*".into()];
            config.methods.unknown = Unknown::Serve;
            allow(config, "ops", &key, r#"methods = ["*", "eth_sendTransaction"]"#);
        })
        .await;
    let mut client = proxy.client().await;
    let odd = [
        " eth_sendTransaction",
        "eth_sendTransaction\n",
        "eth_send\u{200b}Transaction",
        "eth_blockNumber ",
        " ",
        "eth-call",
    ];
    for name in odd {
        let body = request(&json!("a"), name, "[]");
        assert_eq!(both(&proxy, &mut client, &body).await, refused(&json!("a"), name));
        let silent = body.replace(r#""id":"a","#, "");
        let batch = format!("[{body},{silent},{body}]");
        let answer = refused(&json!("a"), name);
        assert_eq!(both(&proxy, &mut client, &batch).await, json!([answer, answer]));
        let head = format!("POST /{} HTTP/1.1\r\ncontent-type: application/json", key.reveal());
        let reply = http(proxy.address, &head, &body).await;
        assert_eq!(serde_json::from_str::<Value>(&reply.body).unwrap(), answer);
        assert_eq!(node.calls(name), 0, "{name:?}");
    }
    // Known names in other letters: a node that ignores case would take them for the known ones.
    for name in [
        "eth_getfilterchanges",
        "ETH_CALL",
        "eth_SendRawTransaction",
        "Eth_getLogs",
    ] {
        assert_eq!(
            both(&proxy, &mut client, &request(&json!(1), name, "[]")).await,
            refused(&json!(1), name)
        );
        assert_eq!(node.calls(name), 0, "{name:?}");
    }
}

/// Odd names and refused methods cost as much as any request.
#[tokio::test]
async fn what_is_refused_by_its_form_is_charged() {
    let node = Scripted::start().await;
    let deep = "[".repeat(100) + &"]".repeat(100);
    for body in [
        request(&json!(1), " odd", "[]"),
        request(&json!(1), "admin_peers", "[]"),
        request(&json!(1), "m", &deep),
        request(&json!(1), "eth_getFilterChanges", "[1]"),
    ] {
        let proxy = node
            .proxy(|config| {
                (config.limits.requests_per_second, config.limits.request_burst) = (1, 20);
                config.limits.max_batch = 20;
            })
            .await;
        let mut limited = 0;
        for _ in 0..60 {
            let reply = http(
                proxy.address,
                "POST / HTTP/1.1\r\ncontent-type: application/json",
                &body,
            )
            .await;
            limited += u32::from(reply.status == 429);
        }
        assert!(limited >= 20, "{limited} of {body:.100}");
    }
}

/// Over IPC a node serves every namespace, and would execute all of these.
#[tokio::test]
async fn by_default_nothing_is_signed_written_or_administered() {
    let node = Scripted::start().await;
    let acting = [
        "eth_sendTransaction",
        "eth_sign",
        "eth_signTypedData_v4",
        "eth_resend",
        "testing_commitBlockV1",
        "dev_addWithdrawal",
        "admin_addPeer",
        "debug_setHead",
        "debug_writeMemProfile",
        "personal_sendTransaction",
        "engine_forkchoiceUpdatedV3",
        "evm_mine",
        "anvil_setBalance",
        "wallet_sendTransaction",
        "eth_SENDTRANSACTION",
    ];
    for method in acting.into_iter().chain(["unheard_of", "unheard", "debug_traceCall"]) {
        node.answer(method, |_| json!("done").into());
    }
    let (eth, all, named) = (ApiKey::random(), ApiKey::random(), ApiKey::random());
    let proxy = node
        .proxy(|config| {
            allow(config, "eth", &eth, r#"methods = ["eth_*", "debug_subscribe"]"#);
            allow(config, "all", &all, r#"methods = ["*"]"#);
            allow(config, "named", &named, r#"methods = ["eth_sendTransaction"]"#);
        })
        .await;
    let mut client = proxy.client().await;
    let asked = async |key: &ApiKey, method: &str| -> Value {
        let head = format!("POST /{} HTTP/1.1\r\ncontent-type: application/json", key.reveal());
        let reply = http(proxy.address, &head, request(&json!(1), method, "[]")).await;
        serde_json::from_str(&reply.body).unwrap()
    };
    for method in acting {
        let body = request(&json!(1), method, "[]");
        assert_eq!(both(&proxy, &mut client, &body).await, refused(&json!(1), method));
        for key in [&eth, &all] {
            assert_eq!(asked(key, method).await, refused(&json!(1), method));
        }
        assert_eq!(node.calls(method), 0, "{method}");
    }
    for method in ["unheard_of", "unheard", "debug_traceCall"] {
        let body = request(&json!(1), method, "[]");
        assert_eq!(both(&proxy, &mut client, &body).await, refused(&json!(1), method));
        assert_eq!(asked(&all, method).await["result"], "done", "{method}");
    }
    assert_eq!(asked(&named, "eth_sendTransaction").await["result"], "done");
    assert_eq!(asked(&named, "eth_sign").await["error"]["code"], -32601);
    let named = node
        .proxy(|config| config.methods.allowed.push("eth_sign".to_owned()))
        .await;
    let mut client = named.client().await;
    assert_eq!(client.call("eth_sign", json!([])).await["result"], "done");
    assert_eq!(
        client.call("eth_signTransaction", json!([])).await["error"]["code"],
        -32601
    );
}

const COMMANDS: [&str; 4] = [
    "evm_mine",
    "hardhat_reset",
    "eth_sendTransaction",
    "eth_signTypedData_v4",
];

async fn development_node(version: &str) -> Scripted {
    let node = Scripted::start().await;
    let version = json!(version);
    node.answer("web3_clientVersion", move |_| version.clone().into());
    for method in COMMANDS {
        node.answer(method, |_| json!("done").into());
    }
    node
}

/// Sends each command over both transports, alone and in a batch; returns `true` if all were executed, else `false`.
async fn are_done(proxy: &Proxy) -> bool {
    let mut client = proxy.client().await;
    let mut done = Vec::new();
    for method in COMMANDS {
        let one = request(&json!(1), method, "[]");
        let answer = both(proxy, &mut client, &one).await;
        done.push(answer["result"] == "done");
        assert!(
            answer["result"] == "done" || answer == refused(&json!(1), method),
            "{answer}"
        );
        let batch = both(proxy, &mut client, &format!("[{one},{one}]")).await;
        assert_eq!(batch, json!([answer, answer]));
    }
    assert!(done.iter().all(|one| *one == done[0]), "{done:?}");
    done[0]
}

#[tokio::test]
async fn a_development_node_just_works() {
    for version in [
        "anvil/v1.7.1",
        "HardhatNetwork/2.26.0/@ethereumjs/vm/8.0.0",
        "Ganache/v7.9.2/EthereumJS TestRPC/v7.9.2/ethereum-js",
    ] {
        let node = development_node(version).await;
        let proxy = node.proxy(|_| {}).await;
        let before = node.calls("web3_clientVersion");
        assert!(are_done(&proxy).await, "{version}");
        assert_eq!(
            node.calls("web3_clientVersion") - before,
            1,
            "asked once for a connection"
        );
        let mut client = proxy.client().await;
        for method in ["admin_peers", "personal_sign", "debug_setHead"] {
            assert_eq!(
                client.call(method, json!([])).await["error"]["code"],
                -32601,
                "{method}"
            );
        }
        // A notification is executed, too.
        let mined = node.calls("evm_mine");
        client
            .send(r#"{"jsonrpc":"2.0","method":"evm_mine","params":[]}"#)
            .await;
        eventually("it is done", async || node.calls("evm_mine") == mined + 1).await;
    }
}

#[tokio::test]
async fn nothing_is_for_development_elsewhere() {
    type Edit = fn(&mut headwater::config::typed::Config);
    let rows: [(&str, &str, Edit); 6] = [
        ("another node", "Geth/v1.17.8-stable/linux-amd64/go1.25", |_| {}),
        ("a name in the middle", "Geth/anvil/v1.7.1", |_| {}),
        ("off", "anvil/v1.7.1", |config| {
            config.methods.development = Development::Off
        }),
        ("everywhere", "anvil/v1.7.1", |config| {
            config.listen = "0.0.0.0:0".into()
        }),
        ("a trusted proxy", "anvil/v1.7.1", |config| {
            config.server.trusted_proxies = vec!["127.0.0.2".into()];
        }),
        ("denied", "anvil/v1.7.1", |config| {
            config.methods.denied = vec!["evm_*".into(), "hardhat_*".into(), "eth_S*".into()];
        }),
    ];
    for (what, version, edit) in rows {
        let node = development_node(version).await;
        let proxy = node.proxy(edit).await;
        assert!(!are_done(&proxy).await, "{what}");
        for method in COMMANDS {
            assert_eq!(node.calls(method), 0, "{what}: {method}");
        }
    }
}

#[tokio::test]
async fn every_upstream_has_to_be_for_development_on_its_present_connection() {
    let (anvil, other) = (
        development_node("anvil/v1.7.1").await,
        development_node("reth/v1.9.0").await,
    );
    let proxy = Proxy::start(&[anvil.ws_url(), other.ws_url()], |_| {}).await;
    proxy.connected().await;
    assert!(!are_done(&proxy).await);
    // Another node behind the same address.
    other.answer("web3_clientVersion", |_| json!("anvil/v1.7.1").into());
    assert!(!are_done(&proxy).await, "it was asked on this connection");
    let reconnected = async |node: &Scripted, number: usize| {
        let before = proxy.upstreams().await[number]["connects"].as_u64().unwrap();
        node.disconnect();
        eventually("it is back", async || {
            let now = &proxy.upstreams().await[number];
            now["connects"].as_u64().unwrap() > before && now["connected"] == true
        })
        .await;
    };
    reconnected(&other, 1).await;
    assert!(are_done(&proxy).await);
    anvil.answer("web3_clientVersion", |_| json!("Geth/v1.17.8").into());
    assert!(are_done(&proxy).await, "the connection is the same");
    reconnected(&anvil, 0).await;
    assert!(!are_done(&proxy).await);
    // An upstream that is not connected is not for development.
    anvil.answer("web3_clientVersion", |_| json!("anvil/v1.7.1").into());
    reconnected(&anvil, 0).await;
    assert!(are_done(&proxy).await);
    other.stop();
    eventually("it is lost", async || proxy.upstreams().await[1]["connected"] == false).await;
    assert!(!are_done(&proxy).await);
}

/// Filter ids of other accounts: nodes count their filters, and some accept a number as an id, so `[1]` would read
/// another client's events.
#[tokio::test]
async fn a_filter_is_its_accounts_and_no_other_id_reaches_the_node() {
    let node = Scripted::start().await;
    for method in ["eth_newFilter", "eth_newBlockFilter", "eth_newPendingTransactionFilter"] {
        node.answer(method, |_| json!("0x1").into());
    }
    for method in ["eth_getFilterChanges", "eth_getFilterLogs"] {
        node.answer(method, |_| json!(["news"]).into());
    }
    node.answer("eth_uninstallFilter", |_| json!(true).into());
    let (alice, mallory) = (ApiKey::random(), ApiKey::random());
    let proxy = node
        .proxy(|config| {
            allow(config, "alice", &alice, "");
            allow(config, "mallory", &mallory, "");
        })
        .await;
    let ask = async |key: &ApiKey, method: &str, params: &str| -> Value {
        let head = format!("POST /{} HTTP/1.1\r\ncontent-type: application/json", key.reveal());
        let reply = http(proxy.address, &head, request(&json!(1), method, params)).await;
        serde_json::from_str(&reply.body).unwrap()
    };
    let own = ask(&alice, "eth_newBlockFilter", "[]").await["result"].clone();
    let own = own.as_str().unwrap();
    let missing = "missing value for required argument 0";
    let cannot = |kind: &str| format!("invalid argument 0: json: cannot unmarshal {kind} into Go value of type rpc.ID");
    let many = "too many arguments, want at most 1";
    let rows = [
        ("[1]", cannot("number")),
        ("[5.0]", cannot("number")),
        ("[-1]", cannot("number")),
        ("[true]", cannot("bool")),
        ("[{}]", cannot("object")),
        (r#"[{"id":"0x1"}]"#, cannot("object")),
        (r#"[["0x1"]]"#, cannot("array")),
        ("[[1]]", cannot("array")),
        ("[]", missing.to_owned()),
        ("[null]", missing.to_owned()),
        (r#"[null,"0x1"]"#, missing.to_owned()),
        ("null", missing.to_owned()),
        (r#"["0x1",null]"#, many.to_owned()),
        (r#"["0x5","0x1"]"#, many.to_owned()),
        ("{}", "non-array args".to_owned()),
        (r#"{"0":"0x1"}"#, "non-array args".to_owned()),
        (r#""0x1""#, "non-array args".to_owned()),
        ("1", "non-array args".to_owned()),
        (r#"["0x1"]"#, "filter not found".to_owned()),
        (r#"["0X01"]"#, "filter not found".to_owned()),
        (r#"["1"]"#, "filter not found".to_owned()),
        (r#"[" 0x1 "]"#, "filter not found".to_owned()),
        (r#"[""]"#, "filter not found".to_owned()),
        (r#"["\u0030x1"]"#, "filter not found".to_owned()),
        (r#"["\ud800"]"#, "filter not found".to_owned()),
        (
            r#"["0xffffffffffffffffffffffffffffffffffffffffff"]"#,
            "filter not found".to_owned(),
        ),
    ];
    let methods = ["eth_getFilterChanges", "eth_getFilterLogs", "eth_uninstallFilter"];
    for method in methods {
        for (params, words) in &rows {
            let answer = ask(&mallory, method, params).await;
            match (method, &**words) {
                ("eth_uninstallFilter", "filter not found") => assert_eq!(answer["result"], false, "{params}"),
                _ => assert_eq!(answer["error"]["message"], **words, "{method} {params}"),
            }
        }
        // Alice's filter id from another account, and from Alice with one more argument.
        for params in [
            format!("[{own:?}]"),
            format!("[{:?}]", own.to_uppercase().replace("0X", "0x")),
        ] {
            let answer = ask(&mallory, method, &params).await;
            match method {
                "eth_uninstallFilter" => assert_eq!(answer["result"], false),
                _ => assert_eq!(answer["error"], json!({"code": -32000, "message": "filter not found"})),
            }
        }
        assert_eq!(
            ask(&alice, method, &format!("[{own:?},null]")).await["error"]["message"],
            many
        );
        assert_eq!(node.calls(method), 0, "{method}");
    }
    // The filter still works for Alice, in either spelling.
    for spelt in [own.to_owned(), own.to_uppercase().replace("0X", "0x")] {
        assert_eq!(
            ask(&alice, methods[0], &format!("[{spelt:?}]")).await["result"],
            json!(["news"])
        );
    }
    assert_eq!(node.params(methods[0]), [json!(["0x1"]), json!(["0x1"])]);
    assert_eq!(ask(&alice, methods[2], &format!("[{own:?}]")).await["result"], true);
    assert_eq!(ask(&alice, methods[2], &format!("[{own:?}]")).await["result"], false);
    assert_eq!(node.calls(methods[2]), 1);
}
