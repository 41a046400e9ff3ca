//! Logs, transactions and receipts of nodes that report them oddly, or by one method alone (issue 11, kinds 2, 3 and
//! 5). Clients get them, and a bystander that subscribes to heads alone is not affected.

use std::time::Duration;

use headwater::chain::Verify;
use serde_json::{Value, json};

use crate::bystander::Bystander;
use crate::harness::eventually;
use crate::scripted::{Answer, Made, Mine, Scripted, address, word};

const NO_BLOOM: [u8; 256] = [0; 256];

fn hex(bytes: &[u8]) -> Value {
    json!(alloy_primitives::Bytes::copy_from_slice(bytes))
}

fn error(code: i64, message: &'static str) -> impl Fn(&Scripted) {
    move |node| node.answer("eth_getLogs", move |_| Answer::error(code, message))
}

/// Makes the node serve single receipts, which a scripted node does not do by itself.
fn serves_each_receipt(node: &Scripted) {
    node.answer("eth_getTransactionReceipt", |ask| {
        let made = ask.node.canonical();
        let mut receipts = made.iter().flat_map(Made::receipts);
        let found = receipts.find(|receipt| receipt["transactionHash"] == ask.params[0]);
        json!(found).into()
    });
}

/// A row: its name, the node's oddity, the block's oddity.
type Row = (&'static str, Box<dyn Fn(&Scripted)>, fn(Mine) -> Mine);

fn row(name: &'static str, node: impl Fn(&Scripted) + 'static, block: fn(Mine) -> Mine) -> Row {
    (name, Box::new(node), block)
}

fn rows() -> Vec<Row> {
    let plain: fn(Mine) -> Mine = |mine| mine;
    let ordinary = |_: &Scripted| {};
    let edited = |edit: fn(&mut Vec<Value>)| {
        move |node: &Scripted| {
            node.answer("eth_getLogs", move |ask| {
                ask.edited(|logs| edit(logs.as_array_mut().unwrap()))
            });
        }
    };
    vec![
        row(
            "not served: -32601",
            error(-32601, "the method eth_getLogs does not exist/is not available"),
            plain,
        ),
        row(
            "not served: -32004",
            error(-32004, "Method eth_getLogs is not supported"),
            plain,
        ),
        row("not served: ganache", error(-32700, "parse error"), plain),
        row("not whitelisted", error(-32000, "method is not whitelisted"), plain),
        row("a rate limit for ever", error(-32005, "limit exceeded"), plain),
        row("an error for ever", error(-32603, "internal error"), plain),
        row(
            "null for ever",
            |node| node.answer("eth_getLogs", |_| Value::Null.into()),
            plain,
        ),
        row(
            "no answer ever",
            |node| node.answer("eth_getLogs", |_| Answer::Never),
            plain,
        ),
        row(
            "it hangs up",
            |node| node.answer("eth_getLogs", |_| Answer::Close),
            plain,
        ),
        row(
            "by number alone",
            |node| {
                node.answer("eth_getBlockReceipts", |_| Answer::error(-32601, ""));
                node.answer("eth_getLogs", |ask| match ask.params[0].get("blockHash") {
                    Some(_) => Answer::error(-32602, "unknown field `blockHash`"),
                    None => ask.usual(),
                });
            },
            plain,
        ),
        row(
            "receipts by number alone",
            |node| {
                node.answer("eth_getLogs", |_| Answer::error(-32601, ""));
                node.answer("eth_getBlockReceipts", |ask| {
                    match ask.params[0].as_str().unwrap().len() {
                        66 => Answer::error(-32602, "invalid argument 0: cannot unmarshal hex number > 64 bits"),
                        _ => ask.usual(),
                    }
                });
            },
            plain,
        ),
        row(
            "one receipt after the other",
            |node| {
                node.answer("eth_getLogs", |_| Answer::error(-32601, ""));
                node.answer("eth_getBlockReceipts", |_| Answer::error(-32601, ""));
                serves_each_receipt(node);
            },
            plain,
        ),
        row(
            "another block's",
            edited(|logs| {
                logs.iter_mut()
                    .for_each(|log| log["blockHash"] = json!(word("another")))
            }),
            plain,
        ),
        row(
            "marked removed, one way",
            move |node| {
                node.answer("eth_getBlockReceipts", |_| Answer::error(-32601, ""));
                node.answer("eth_getLogs", |ask| {
                    ask.edited(|logs| {
                        let logs = logs.as_array_mut().unwrap();
                        logs.iter_mut().for_each(|log| log["removed"] = json!(true));
                    })
                });
            },
            plain,
        ),
        row(
            "each twice",
            edited(|logs| *logs = logs.iter().flat_map(|log| [log.clone(), log.clone()]).collect()),
            plain,
        ),
        row("descending", edited(|logs| logs.reverse()), plain),
        row("topics null", ordinary, |mine| {
            mine.edit_logs(|index, log| {
                if index == 1 {
                    log["topics"] = Value::Null;
                }
            })
        }),
        row("indices anew in each transaction", ordinary, |mine| {
            mine.edit_logs(|index, log| log["logIndex"] = json!(format!("{:#x}", index % 2)))
        }),
        row("removed absent", ordinary, |mine| {
            mine.edit_logs(|_, log| _ = log.as_object_mut().unwrap().remove("removed"))
        }),
        row("a bloom that is empty", ordinary, |mine| {
            mine.with("logsBloom", hex(&NO_BLOOM))
        }),
        row("no bloom", ordinary, |mine| mine.without("logsBloom")),
        row("a bloom full of ones", ordinary, |mine| {
            mine.with("logsBloom", hex(&[255; 256]))
        }),
        row(
            "a bloom full of ones, one way",
            |node| node.answer("eth_getBlockReceipts", |_| Answer::error(-32601, "")),
            |mine| mine.with("logsBloom", hex(&[255; 256])),
        ),
        row("a bloom of other logs", ordinary, |mine| {
            let mut bloom = [0; 256];
            bloom[7] = 1;
            mine.with("logsBloom", hex(&bloom))
        }),
        row("roots of nothing", ordinary, |mine| {
            let root = json!("0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421");
            mine.with("transactionsRoot", root.clone()).with("receiptsRoot", root)
        }),
    ]
}

#[tokio::test]
async fn logs_reach_clients_however_the_node_tells_them() {
    for (name, odd, edit) in rows() {
        for verify in [Verify::Bloom, Verify::None, Verify::Receipts] {
            let node = Scripted::start().await;
            node.grow(3);
            let proxy = node
                .proxy(|config| {
                    config.history.verify = verify;
                    config.node.silence_timeout = Duration::from_secs(4);
                })
                .await;
            let bystander = Bystander::join(&proxy).await;
            let mut watcher = proxy.watcher().await;
            odd(&node);
            let mut blocks = Vec::new();
            for logs in [4, 0, 1, 3] {
                let made = node.mine(edit(Mine::logs(logs)));
                eprintln!("{name}, {verify:?}: block of {logs}");
                watcher.expect(made.adopted()).await;
                blocks.push(made);
            }
            bystander.saw_only(&blocks).await;
        }
    }
}

/// A node announces a block before its receipts are written: until then its logs are `[]` and its receipts `null`.
#[tokio::test]
async fn nothing_is_not_believed_of_a_node_that_is_behind() {
    let node = Scripted::start().await;
    node.grow(3);
    let proxy = node.proxy(|_| {}).await;
    let mut watcher = proxy.watcher().await;
    for round in 0..3 {
        let asked = (node.calls("eth_getLogs"), node.calls("eth_getBlockReceipts"));
        node.answer("eth_getLogs", move |ask| match ask.count - asked.0 {
            0..=6 => json!([]).into(),
            _ => ask.usual(),
        });
        node.answer("eth_getBlockReceipts", move |ask| match (ask.count - asked.1, round) {
            (0..=6, 0) => Value::Null.into(),
            (0..=6, 1) => json!([]).into(),
            (0..=6, _) => Answer::error(-32000, "receipts not found"),
            _ => ask.usual(),
        });
        watcher.expect(node.mine(Mine::logs(2)).adopted()).await;
    }
    assert_eq!(
        proxy
            .metric(r#"headwater_wrong_blooms_total{reason="overstated"}"#)
            .await,
        0.0
    );
}

/// The same where no bloom indicates logs: receipts are late, or are listed without their logs.
#[tokio::test]
async fn nothing_is_not_believed_early_where_no_bloom_shows_logs() {
    let unknown: fn(Mine) -> Mine = |mine| mine.without("logsBloom");
    let empty: fn(Mine) -> Mine = |mine| mine.with("logsBloom", hex(&NO_BLOOM));
    for (name, edit) in [("none", unknown), ("empty", empty)] {
        let node = Scripted::start().await;
        node.grow(3);
        let proxy = node.proxy(|_| {}).await;
        let bystander = Bystander::join(&proxy).await;
        let mut watcher = proxy.watcher().await;
        // The first block shows that the bloom of this chain indicates nothing.
        let mut blocks = vec![node.mine(edit(Mine::logs(1)))];
        watcher.expect(blocks[0].adopted()).await;
        for listed in [false, true] {
            let asked = (node.calls("eth_getLogs"), node.calls("eth_getBlockReceipts"));
            node.answer("eth_getLogs", move |ask| match ask.count - asked.0 {
                1..=2 => json!([]).into(),
                _ => ask.usual(),
            });
            node.answer("eth_getBlockReceipts", move |ask| match (ask.count - asked.1, listed) {
                (1, false) => json!([]).into(),
                (1, true) => ask.edited(|receipts| {
                    let receipts = receipts.as_array_mut().unwrap();
                    receipts.iter_mut().for_each(|receipt| receipt["logs"] = json!([]));
                }),
                _ => ask.usual(),
            });
            let made = node.mine(edit(Mine::logs(2)));
            watcher.expect(made.adopted()).await;
            blocks.push(made);
        }
        // Logs that are there cost one call; receipts of earlier blocks may still be fetched.
        let asked = node.calls("eth_getLogs");
        blocks.push(node.mine(edit(Mine::logs(2).tag("last"))));
        watcher.expect(blocks[3].adopted()).await;
        assert_eq!(node.calls("eth_getLogs"), asked + 1, "{name}");
        bystander.saw_only(&blocks).await;
    }
}

/// A gateway that truncates returns the same part by hash and by number (issue 11); the receipts have all logs.
#[tokio::test]
async fn a_part_of_the_logs_is_not_believed() {
    let node = Scripted::start().await;
    node.grow(3);
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut watcher = proxy.watcher().await;
    node.answer("eth_getLogs", |ask| {
        ask.edited(|logs| logs.as_array_mut().unwrap().truncate(1))
    });
    let blocks: Vec<Made> = [3, 2, 3].map(|logs| node.mine(Mine::logs(logs))).into();
    for made in &blocks {
        watcher.expect(made.adopted()).await;
    }
    bystander.saw_only(&blocks).await;
}

/// Logs, receipts and transactions without a `blockHash`, or with one of zero (bnb-chain/bsc#443, viction#431).
#[tokio::test]
async fn what_does_not_name_its_block_is_its_own() {
    fn unname(value: &mut Value, hash: &Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| unname(item, hash)),
            Value::Object(members) => {
                if let Some(own) = members.get_mut("blockHash") {
                    *own = hash.clone();
                }
                members.values_mut().for_each(|member| unname(member, hash));
            }
            _ => {}
        }
    }
    for hash in [Value::Null, json!(word(""))] {
        let node = Scripted::start().await;
        node.grow(3);
        let proxy = node.proxy(|_| {}).await;
        let bystander = Bystander::join(&proxy).await;
        let mut clients = Vec::new();
        for params in [
            json!(["logs", {}]),
            json!(["transactionReceipts"]),
            json!(["alchemy_minedTransactions", {"hashesOnly": true}]),
        ] {
            let mut client = proxy.client().await;
            client.subscribe(params).await;
            clients.push(client);
        }
        for method in ["eth_getLogs", "eth_getBlockReceipts", "eth_getBlockByHash"] {
            let hash = hash.clone();
            node.answer(method, move |ask| ask.edited(|answer| unname(answer, &hash)));
        }
        let made = node.mine(Mine::logs(2));
        for index in 0..2 {
            assert_eq!(
                clients[0].event().await.json()["logIndex"],
                made.logs[index]["logIndex"]
            );
        }
        assert_eq!(clients[1].event().await.json().as_array().unwrap().len(), 2);
        for transaction in made.transactions() {
            let event = clients[2].event().await.json();
            assert_eq!(event["transaction"]["hash"], json!(transaction));
        }
        bystander.saw_only(&[made]).await;
    }
}

/// The bloom of one block indicates logs that the block does not have (zksync-era 4580); the metrics count it.
#[tokio::test]
async fn one_odd_bloom_is_counted_and_the_next_block_is_held_against_its_own() {
    let node = Scripted::start().await;
    node.grow(3);
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut watcher = proxy.watcher().await;
    let mut bloom = NO_BLOOM;
    bloom[255] = 8;
    let odd = node.mine(Mine::default().with("logsBloom", hex(&bloom)));
    watcher.expect(odd.adopted()).await;
    let overstated = async || {
        proxy
            .metric(r#"headwater_wrong_blooms_total{reason="overstated"}"#)
            .await
    };
    eventually("it is counted", async || overstated().await == 1.0).await;
    // The first answer lacks a log.
    let asked = node.calls("eth_getLogs");
    node.answer("eth_getLogs", move |ask| match ask.count - asked {
        1 => ask.edited(|logs| _ = logs.as_array_mut().unwrap().pop()),
        _ => ask.usual(),
    });
    let next = node.mine(Mine::logs(3));
    watcher.expect(next.adopted()).await;
    bystander.saw_only(&[odd, next]).await;
    assert_eq!(
        proxy
            .metric(r#"headwater_wrong_blooms_total{reason="overstated"}"#)
            .await,
        1.0
    );
}

/// Logs of system transactions are in no bloom: a resuming client gets them as a connected client did.
#[tokio::test]
async fn a_resuming_client_gets_logs_that_no_bloom_shows() {
    let node = Scripted::start().await;
    node.grow(3);
    let proxy = node.proxy(|_| {}).await;
    let mut watcher = proxy.watcher().await;
    let mut bloom = NO_BLOOM;
    bloom[9] = 1;
    let made = node.mine(Mine::logs(2).with("logsBloom", hex(&bloom)));
    watcher.expect(made.adopted()).await;
    let mut client = proxy.client().await;
    let filter = json!({"address": address("token")});
    client.subscribe(json!(["logs", filter, {"fromBlock": "0x4"}])).await;
    for log in &made.logs {
        assert_eq!(client.event().await.json(), *log);
    }
}

#[tokio::test]
async fn receipts_and_transactions_come_by_whichever_way_is_served() {
    let one_by_one = |node: &Scripted| {
        node.answer("eth_getBlockReceipts", |_| Answer::error(-32004, "not supported"));
        serves_each_receipt(node);
    };
    let by_number = |node: &Scripted| {
        for method in ["eth_getBlockReceipts", "eth_getBlockByHash"] {
            node.answer(method, |ask| match ask.params[0].as_str().unwrap().len() {
                66 => Answer::error(-32602, "invalid params"),
                _ => ask.usual(),
            });
        }
    };
    let holes = |node: &Scripted| {
        for method in ["eth_getBlockReceipts", "eth_getBlockByHash"] {
            node.answer(method, |ask| {
                ask.edited(|answer| {
                    let items = match answer {
                        Value::Object(block) => block.get_mut("transactions"),
                        receipts => Some(receipts),
                    };
                    for (place, item) in items.and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
                        if item.is_object() {
                            item["transactionIndex"] = json!(2 * place + 1);
                        }
                    }
                })
            });
        }
    };
    type Edit<'a> = &'a dyn Fn(&Scripted);
    let rows: [(&str, Edit<'_>); 3] = [("each", &one_by_one), ("number", &by_number), ("holes", &holes)];
    for (name, odd) in rows {
        let node = Scripted::start().await;
        node.grow(3);
        let proxy = node.proxy(|_| {}).await;
        let bystander = Bystander::join(&proxy).await;
        let mut client = proxy.client().await;
        client.subscribe(json!(["transactionReceipts"])).await;
        let mut mined = proxy.client().await;
        mined
            .subscribe(json!(["alchemy_minedTransactions", {"hashesOnly": true}]))
            .await;
        odd(&node);
        let blocks: Vec<Made> = [2, 0, 1]
            .map(|logs| node.mine(Mine::logs(logs).with("gasUsed", json!("0x0"))))
            .into();
        for made in blocks.iter().filter(|made| !made.logs.is_empty()) {
            let receipts = client.event().await.json();
            let hashes: Vec<&Value> = receipts
                .as_array()
                .unwrap()
                .iter()
                .map(|own| &own["transactionHash"])
                .collect();
            assert_eq!(json!(hashes), json!(made.transactions()), "{name}");
            for hash in made.transactions() {
                assert_eq!(mined.event().await.json()["transaction"]["hash"], json!(hash), "{name}");
            }
        }
        bystander.saw_only(&blocks).await;
    }
}

/// Late logs show in `/ready` and in a metric while a client waits for them, and no longer.
#[tokio::test]
async fn contents_that_are_late_show_in_ready_and_in_a_metric() {
    let node = Scripted::start().await;
    node.grow(3);
    let proxy = node
        .proxy(|config| config.node.silence_timeout = Duration::from_secs(4))
        .await;
    proxy.ready().await;
    let bystander = Bystander::join(&proxy).await;
    let mut watcher = proxy.client().await;
    watcher.subscribe(json!(["logs", {}])).await;
    for method in ["eth_getLogs", "eth_getBlockReceipts", "eth_getTransactionReceipt"] {
        node.answer(method, |_| Answer::Never);
    }
    let mut blocks = vec![node.mine(Mine::logs(1))];
    proxy.unready().await;
    let page = proxy.admin("/ready").await.body;
    assert!(page.contains("logs of a block are missing"), "{page}");
    assert!(proxy.metric("headwater_contents_awaited_seconds{kind=\"logs\"}").await > 0.0);
    // A node that announces blocks withholds their logs: in the end the client that waited is closed, and no client waits
    // any more.
    blocks.push(node.mine(Mine::logs(1)));
    let (_, code, _) = watcher.closed().await;
    assert_eq!(code, 1012);
    proxy.ready().await;
    blocks.push(node.mine(Mine::logs(1)));
    bystander.saw_only(&blocks).await;
}
