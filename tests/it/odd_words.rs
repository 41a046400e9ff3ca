//! Odd encodings: numbers, ids, headers and frames as nodes really write them (issue 11). A bystander that subscribes
//! to heads alone watches each case.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::bystander::Bystander;
use crate::harness::{Proxy, eventually};
use crate::scripted::{Answer, Made, Mine, Scripted, word};

/// Mines five blocks, described by `mine`; checks that each reaches a watcher of heads and logs and a bystander,
/// whole and once.
async fn all_arrive(node: &Scripted, proxy: &Proxy, mine: impl Fn(usize) -> Mine) {
    let bystander = Bystander::join(proxy).await;
    let mut watcher = proxy.watcher().await;
    let mut blocks = Vec::new();
    for i in 0..5 {
        let made = node.mine(mine(i));
        watcher.expect(made.adopted()).await;
        blocks.push(made);
    }
    bystander.saw_only(&blocks).await;
}

async fn announcements(proxy: &Proxy) -> Value {
    proxy.upstreams().await[0]["announcements"].clone()
}

/// Odd values in header members without which a block is still a head.
#[tokio::test]
async fn a_header_with_odd_members_is_a_head() {
    for over_http in [false, true] {
        let node = Scripted::start().await;
        node.grow(3);
        let proxy = match over_http {
            true => node.polling_proxy(|_| {}).await,
            false => node.proxy(|_| {}).await,
        };
        for (name, value) in [
            ("logsBloom", json!(null)),
            ("logsBloom", json!("0x")),
            ("logsBloom", json!("0x123")),
            ("timestamp", json!(null)),
            ("timestamp", json!(1_700_000_000)),
            ("timestamp", json!("0x17979cfe362a0000")),
            ("timestamp", json!("0x10000000000000000")),
        ] {
            all_arrive(&node, &proxy, |_| Mine::logs(2).with(name, value.clone())).await;
        }
        for name in ["logsBloom", "timestamp"] {
            all_arrive(&node, &proxy, |_| Mine::logs(2).without(name)).await;
        }
    }
}

/// An announcement that cannot be a head is refused, and the stream goes on.
#[tokio::test]
async fn nothing_is_learned_from_a_head_that_is_refused() {
    let node = Scripted::start().await;
    node.grow(3);
    let proxy = node.proxy(|_| {}).await;
    all_arrive(&node, &proxy, |_| Mine::logs(2)).await;
    let good = node.head().block(false);
    for number in ["0xffffffffffffffff", "0x8000000000000000", "latest"] {
        let mut odd = good.clone();
        (odd["number"], odd["hash"]) = (json!(number), json!(word(number)));
        node.announce(&odd, "newHeads");
        all_arrive(&node, &proxy, |_| Mine::logs(2)).await;
        let head = proxy.upstreams().await[0]["head"].as_u64();
        assert_eq!(head, Some(node.head().number()), "{number}");
    }
}

type Lie = fn(&mut Map<String, Value>);

/// Announcements that differ from their blocks' headers only signal a new head.
#[tokio::test]
async fn an_announcement_is_a_bell_where_its_block_says_otherwise() {
    let lies: [(&str, Lie); 6] = [
        ("hash", |header| {
            header["hash"] = json!(word(&header["hash"].to_string()))
        }),
        ("bloom", |header| _ = header.remove("logsBloom")),
        ("null bloom", |header| header["logsBloom"] = json!(null)),
        ("zero bloom", |header| {
            header["logsBloom"] = json!(format!("0x{}", "0".repeat(512)))
        }),
        ("zero root", |header| {
            header["receiptsRoot"] = json!(format!("0x{}", "0".repeat(64)))
        }),
        ("parent", |header| _ = header.remove("parentHash")),
    ];
    for (name, lie) in lies {
        let node = Scripted::start().await;
        node.grow(3);
        let proxy = node.proxy(|_| {}).await;
        all_arrive(&node, &proxy, |_| Mine::logs(2).announced(lie)).await;
        assert_eq!(announcements(&proxy).await, "ring", "{name}");
        // The same on the next connection.
        node.disconnect();
        eventually("another connection", async || {
            proxy.upstreams().await[0]["connects"] == 2
        })
        .await;
        all_arrive(&node, &proxy, |_| Mine::logs(2).announced(lie)).await;
        // A node whose announcements have become correct is trusted on the next connection.
        node.disconnect();
        eventually("another connection", async || {
            proxy.upstreams().await[0]["connects"] == 3
        })
        .await;
        all_arrive(&node, &proxy, |_| Mine::logs(2)).await;
        assert_eq!(announcements(&proxy).await, "header", "{name}");
    }
}

/// A burst of wrong announcements, faster than they can be compared.
#[tokio::test]
async fn no_head_is_lost_while_announcements_are_compared() {
    for lies in [false, true] {
        let node = Scripted::start().await;
        node.grow(3);
        let proxy = node.proxy(|_| {}).await;
        let bystander = Bystander::join(&proxy).await;
        let mut watcher = proxy.watcher().await;
        node.hold("eth_getBlockByHash");
        let mine = || match lies {
            true => Mine::logs(1).announced(|header| header["hash"] = json!(word(&header["hash"].to_string()))),
            false => Mine::logs(1),
        };
        let mut blocks: Vec<Made> = (0..10).map(|_| node.mine(mine())).collect();
        node.release("eth_getBlockByHash");
        blocks.extend((0..10).map(|_| node.mine(mine())));
        watcher.expect(blocks.iter().flat_map(Made::adopted).collect()).await;
        bystander.saw_only(&blocks).await;
    }
}

/// A node whose block 0 is another one, with all other blocks unchanged, as anvil from a dumped state; a node that
/// returns the newest block for block 0; and a node that spells its chain id otherwise.
#[tokio::test]
async fn a_node_is_on_our_chain_whatever_it_says_of_block_0() {
    for over_http in [false, true] {
        let node = Scripted::start().await;
        node.grow(3);
        let proxy = match over_http {
            true => node.polling_proxy(|_| {}).await,
            false => node.proxy(|_| {}).await,
        };
        let bystander = Bystander::join(&proxy).await;
        let mut watcher = proxy.watcher().await;
        let mut blocks = Vec::new();
        let is_block_0 = |params: &Value| params[0] == "0x0";
        for round in 0..5 {
            let made = node.mine(Mine::logs(1));
            watcher.expect(made.adopted()).await;
            blocks.push(made);
            node.answer("eth_getBlockByNumber", move |ask| {
                match (is_block_0(ask.params), round) {
                    (true, 0 | 1) => ask.edited(|block| block["hash"] = json!(word(&round.to_string()))),
                    (true, 2) => ask.node.head().block(false).into(),
                    _ => ask.usual(),
                }
            });
            node.answer("eth_chainId", move |_| match round {
                2 => json!("0x0539").into(),
                3 => json!(1337).into(),
                _ => json!("0X539").into(),
            });
            // Over HTTP two failed polls in a row count as a lost connection.
            let connects = proxy.upstreams().await[0]["connects"].as_u64().unwrap();
            if over_http {
                node.answer("eth_getBlockByNumber", |_| Answer::error(-32000, "starting"));
                eventually("lost", async || proxy.upstreams().await[0]["connected"] == false).await;
                node.answer("eth_getBlockByNumber", move |ask| {
                    match (is_block_0(ask.params), round) {
                        (true, 0 | 1) => ask.edited(|block| block["hash"] = json!(word(&round.to_string()))),
                        (true, 2) => ask.node.head().block(false).into(),
                        _ => ask.usual(),
                    }
                });
            } else {
                node.disconnect();
            }
            eventually("another connection", async || {
                let upstream = &proxy.upstreams().await[0];
                upstream["connects"].as_u64() > Some(connects) && upstream["connected"] == true
            })
            .await;
        }
        let made = node.mine(Mine::logs(1));
        watcher.expect(made.adopted()).await;
        blocks.push(made);
        bystander.saw_only(&blocks).await;
        let answer = proxy.client().await.call("eth_chainId", json!([])).await;
        assert_eq!(answer["result"], "0x539");
    }
}

/// Frames with several values, and subscription ids spelled otherwise than when granted.
#[tokio::test]
async fn an_announcement_is_read_however_it_is_sent() {
    let node = Scripted::start().await;
    node.grow(3);
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut watcher = proxy.watcher().await;
    let mut blocks = Vec::new();
    let digits = |id: &str| id.trim_start_matches("0x").to_owned();
    let spellings: [fn(&str) -> String; 5] = [
        |digits| format!("\"0x{digits}\""),
        |digits| format!("\"0X00{}\"", digits.to_ascii_uppercase()),
        |digits| u64::from_str_radix(digits, 16).unwrap().to_string(),
        |digits| format!("\"{}\"", u64::from_str_radix(digits, 16).unwrap()),
        |digits| format!("{}.0", u64::from_str_radix(digits, 16).unwrap()),
    ];
    for spelling in spellings {
        for between in ["", "\n", " \r\n", "[]"] {
            let pair = [node.mine(Mine::logs(1).silent()), node.mine(Mine::logs(1).silent())];
            node.notify("newHeads", |id| {
                let event = |made: &Made| {
                    let (id, header) = (spelling(&digits(id)), made.block(false));
                    format!(r#"{{"method":"eth_subscription","params":{{"subscription":{id},"result":{header}}},"more":[]}}"#)
                };
                format!("{}{between}[{}]", event(&pair[0]), event(&pair[1]))
            });
            watcher.expect(pair.iter().flat_map(Made::adopted).collect()).await;
            blocks.extend(pair);
        }
    }
    bystander.saw_only(&blocks).await;
}

/// Answers over HTTP whose id is not the request's.
#[tokio::test]
async fn an_answer_over_http_is_taken_whatever_its_id() {
    for id in ["", r#""id":null,"#, r#""id":"1","#, r#""id":1.0,"#, r#""id":77,"#] {
        let node = Scripted::start().await;
        node.grow(3);
        for method in [
            "eth_chainId",
            "eth_getBlockByNumber",
            "eth_getBlockByHash",
            "eth_getLogs",
            "eth_call",
        ] {
            node.answer(method, move |ask| match ask.usual() {
                Answer::Result(result) => Answer::Raw(format!(r#"{{{id}"result":{result}}}"#)),
                _ => Answer::Raw(format!(
                    r#"{{{id}"error":{{"code":3,"message":"execution reverted: no", "data":"0x08c379a0"}}}}"#
                )),
            });
        }
        let proxy = node.polling_proxy(|_| {}).await;
        all_arrive(&node, &proxy, |_| Mine::logs(2)).await;
        let request = r#"{"jsonrpc":"2.0","id":5,"method":"eth_call","params":[{},"latest"]}"#;
        assert_eq!(
            proxy.post(request).await,
            r#"{"jsonrpc":"2.0","id":5,"error":{"code":3,"message":"execution reverted: no", "data":"0x08c379a0"}}"#
        );
    }
}

/// Starts the app with this node, over HTTP or WebSocket.
async fn proxy_over(node: &Scripted, over_http: bool) -> Proxy {
    match over_http {
        true => node.polling_proxy(|_| {}).await,
        false => node.proxy(|_| {}).await,
    }
}

/// Gateways that repeat the request in its answer.
#[tokio::test]
async fn an_answer_is_read_also_where_it_repeats_the_question() {
    for over_http in [false, true] {
        let node = Scripted::start().await;
        node.grow(3);
        for method in [
            "eth_chainId",
            "eth_subscribe",
            "eth_getBlockByNumber",
            "eth_getBlockByHash",
            "eth_getLogs",
        ] {
            node.answer(method, move |ask| match ask.usual() {
                Answer::Result(result) => Answer::Raw(
                    json!({"jsonrpc": "2.0", "id": ask.id, "method": ask.method, "params": ask.params, "result": result})
                        .to_string(),
                ),
                other => other,
            });
        }
        let proxy = proxy_over(&node, over_http).await;
        all_arrive(&node, &proxy, |_| Mine::logs(2)).await;
    }
}

/// Blocks above 0 that do not name their parent.
#[tokio::test]
async fn a_block_without_a_parents_hash_is_a_head() {
    for over_http in [false, true] {
        let node = Scripted::start().await;
        node.mine(Mine::default().without("parentHash"));
        let proxy = proxy_over(&node, over_http).await;
        for value in [json!(null), json!("0x"), json!("")] {
            all_arrive(&node, &proxy, |_| Mine::logs(2).with("parentHash", value.clone())).await;
        }
        all_arrive(&node, &proxy, |_| Mine::logs(2).without("parentHash")).await;
    }
}

/// Nodes from before EIP-695, and gateways that answer `null`.
#[tokio::test]
async fn a_node_without_eth_chain_id_is_asked_for_its_network() {
    for over_http in [false, true] {
        for is_null in [false, true] {
            let node = Scripted::start().await;
            node.grow(3);
            node.answer("eth_chainId", move |_| match is_null {
                true => json!(null).into(),
                false => Answer::error(-32601, "the method eth_chainId does not exist/is not available"),
            });
            let proxy = proxy_over(&node, over_http).await;
            all_arrive(&node, &proxy, |_| Mine::logs(2)).await;
            assert_eq!(proxy.upstreams().await[0]["connects"], 1);
        }
    }
}

/// Every third answer over HTTP is a gateway's page.
#[tokio::test]
async fn a_page_in_place_of_every_third_answer_ends_no_node() {
    let node = Scripted::start().await;
    node.grow(3);
    let asked = Arc::new(AtomicUsize::new(0));
    for method in ["eth_chainId", "eth_getBlockByNumber"] {
        let asked = asked.clone();
        node.answer(method, move |ask| {
            let is_poll = ask.params[0].is_null() || ask.params[0] == "latest" || ask.params[0] == "0x0";
            match is_poll && asked.fetch_add(1, Ordering::Relaxed) % 3 == 2 {
                true => Answer::Raw("<html>502 Bad Gateway</html>".to_owned()),
                false => ask.usual(),
            }
        });
    }
    let proxy = node.polling_proxy(|_| {}).await;
    for _ in 0..3 {
        all_arrive(&node, &proxy, |_| Mine::logs(2)).await;
    }
    assert_eq!(proxy.upstreams().await[0]["connects"], 1);
}

/// A WebSocket node without `newHeads`: its head is polled over the same connection, and all else is served.
#[tokio::test]
async fn a_node_without_new_heads_is_polled_over_its_socket() {
    let takes: [fn() -> Answer; 7] = [
        || Answer::error(-32601, "Unsupported JSON-RPC method"),
        || Answer::error(429, "slow down"),
        || Answer::Never,
        || json!(false).into(),
        || json!(true).into(),
        || json!(null).into(),
        || json!("").into(),
    ];
    for take in takes {
        let node = Scripted::start().await;
        node.grow(3);
        node.answer("eth_subscribe", move |ask| match ask.params[0] == "newHeads" {
            true => take(),
            false => ask.usual(),
        });
        let proxy = node
            .proxy(|config| {
                config.node.poll_interval = Duration::from_millis(20);
                config.node.silence_timeout = Duration::from_secs(2);
            })
            .await;
        all_arrive(&node, &proxy, |_| Mine::logs(2)).await;
        let mut pending = proxy.client().await;
        pending.subscribe(json!(["newPendingTransactions"])).await;
        eventually("a subscription", async || {
            node.subscribed("newPendingTransactions") == 1
        })
        .await;
        node.announce(&json!(word("pending")), "newPendingTransactions");
        assert_eq!(pending.event().await.json(), json!(word("pending")));
        let upstream = &proxy.upstreams().await[0];
        assert_eq!(
            (&upstream["announcements"], &upstream["connects"]),
            (&json!("poll"), &json!(1))
        );
    }
}

/// A node that grants `newHeads` and announces nothing is polled over the same connection, until it announces a head.
#[tokio::test]
async fn a_node_that_announces_nothing_is_polled_over_its_socket() {
    let node = Scripted::start().await;
    node.grow(3);
    let proxy = node
        .proxy(|config| {
            config.node.poll_interval = Duration::from_millis(20);
            config.node.silence_timeout = Duration::from_secs(2);
        })
        .await;
    all_arrive(&node, &proxy, |_| Mine::logs(2).silent()).await;
    assert_eq!(announcements(&proxy).await, "poll");
    all_arrive(&node, &proxy, |_| Mine::logs(2)).await;
    eventually("announcements are believed", async || {
        announcements(&proxy).await == "header"
    })
    .await;
    assert_eq!(proxy.upstreams().await[0]["connects"], 1);
}

/// User and password in a node's URL.
#[tokio::test]
async fn user_and_password_are_decoded_over_both_transports() {
    let node = Scripted::start().await;
    node.grow(3);
    for url in [node.ws_url(), node.http_url()] {
        let url = url.replace("://", "://us%40er:p%40ss%3A%2F%25@") + "/v1?key=a%20b";
        let proxy = Proxy::start(std::slice::from_ref(&url), |_| {}).await;
        proxy.ready().await;
        let request = node.requests().pop().unwrap().to_ascii_lowercase();
        // us@er:p@ss:/%
        assert!(request.contains("basic dxnazxi6cebzczovjq=="), "{url} {request}");
    }
}
