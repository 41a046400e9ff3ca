//! Calls: answers without a node, one node call for many clients, no stale answers.

use futures_util::future::join_all;
use headwater::door::Unknown;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::harness::{Client, Rig, adopted, node_with_logs_of, reorged};

fn request(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

impl Rig {
    /// Returns the number of calls of a method that the node has counted.
    fn asked(&self, method: &str) -> u64 {
        self.control.stats().calls.get(method).copied().unwrap_or(0)
    }

    /// Returns how many calls of a method reach the node while `doing` runs.
    async fn cost<T>(&self, method: &str, doing: impl Future<Output = T>) -> u64 {
        let before = self.asked(method);
        doing.await;
        self.asked(method) - before
    }

    /// Mines a block, waits until the client has got its events, and returns its number.
    async fn head(&self, watcher: &mut Client) -> u64 {
        let block = self.control.mine();
        watcher.expect(adopted(std::slice::from_ref(&block))).await;
        block.number()
    }
}

#[tokio::test]
async fn the_newest_number_is_what_clients_were_shown_and_costs_no_call() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    let cost = rig.cost("eth_blockNumber", async {
        for _ in 0..5 {
            let number = rig.head(&mut client).await;
            let expected = json!({"jsonrpc": "2.0", "id": 1, "result": format!("{number:#x}")});
            for params in [json!([]), Value::Null] {
                let answer = client.ask(request("eth_blockNumber", &params).to_string()).await;
                assert_eq!(serde_json::from_str::<Value>(&answer).unwrap(), expected);
            }
        }
    });
    assert_eq!(cost.await, 0);
    // Parameters that the method does not take are left to the node.
    let odd = request("eth_blockNumber", &json!([1]));
    assert_eq!(client.ask(odd.to_string()).await, rig.ask_node(&odd).await);
}

/// After a rewind the node alone knows the height.
#[tokio::test]
async fn the_newest_number_goes_back_with_the_nodes() {
    let rig = Rig::with(|config| config.node.silence_timeout = std::time::Duration::from_millis(300)).await;
    let mut client = rig.watcher().await;
    rig.head(&mut client).await;
    rig.head(&mut client).await;
    rig.control.rewind(2).unwrap();
    let number = request("eth_blockNumber", &json!([]));
    crate::harness::eventually("the number goes back", async || {
        client.ask(number.to_string()).await == rig.ask_node(&number).await
    })
    .await;
}

/// A published block is not denied before its removal is published: a call for it returns the block or an error, and
/// `null` only once the newest number is below it.
#[tokio::test]
async fn a_block_that_was_shown_is_not_denied_while_it_stands() {
    let rig = Rig::with(|config| config.node.silence_timeout = std::time::Duration::from_secs(1)).await;
    let mut client = rig.watcher().await;
    rig.head(&mut client).await;
    let shown = format!("{:#x}", rig.head(&mut client).await);
    // A node that reconnects with a lower head is believed only after a while: it may have to catch up.
    rig.control.rewind(2).unwrap();
    rig.control.disconnect();
    let block = request("eth_getBlockByNumber", &json!([shown, false]));
    let refused = client.ask(block.to_string()).await;
    assert!(
        refused.contains("-32603") && refused.contains("no upstream has reached block"),
        "{refused}"
    );
    let number = request("eth_blockNumber", &json!([]));
    assert!(client.ask(number.to_string()).await.contains(&shown), "it stands still");
    crate::harness::eventually("it was taken back", async || {
        !client.ask(number.to_string()).await.contains(&shown)
    })
    .await;
    assert!(client.ask(block.to_string()).await.contains(r#""result":null"#));
}

#[tokio::test]
async fn a_hundred_clients_that_ask_for_each_new_head_cost_the_node_one_call_a_block() {
    let rig = Rig::start().await;
    let mut clients = join_all((0..100).map(|_| rig.client())).await;
    join_all(clients.iter_mut().map(|client| client.subscribe(json!(["newHeads"])))).await;
    for _ in 0..3 {
        let block = rig.control.mine();
        let cost = rig.cost("eth_getBlockByNumber", async {
            let ask = |client| ask_for_head(client, block.number());
            let answers: Vec<String> = join_all(clients.iter_mut().map(ask)).await;
            let mut node = request("eth_getBlockByHash", &json!([block.hash(), false]));
            node["id"] = json!(1);
            let expected = rig.ask_node(&node).await;
            assert!(answers.iter().all(|answer| *answer == expected));
        });
        assert_eq!(cost.await, 1);
    }
    async fn ask_for_head(client: &mut Client, number: u64) -> String {
        let head = client.event().await.json();
        assert_eq!(head["number"], format!("{number:#x}"));
        let params = json!([head["number"], false]);
        client.ask(request("eth_getBlockByNumber", &params).to_string()).await
    }
}

#[tokio::test]
async fn an_answer_holds_as_long_as_what_it_stands_on() {
    let rig = Rig::with(|config| config.methods.unknown = Unknown::Serve).await;
    let (mut client, mut watcher) = (rig.client().await, rig.watcher().await);
    let number = rig.head(&mut watcher).await;
    let block = json!([format!("{number:#x}"), false]);
    let hash = json!([rig.control.head().hash(), false]);
    let account = rig.control.with_chain(|chain| chain.tokens()[0]);
    let balance = json!([account, "latest"]);
    // Method, parameters, and the node calls for two equal requests: at first, after a head, after a reorg.
    let rows = [
        ("eth_chainId", json!([]), [0, 0, 0]),
        ("net_version", json!([]), [1, 0, 0]),
        ("web3_clientVersion", json!([]), [1, 0, 0]),
        ("eth_getBlockByNumber", json!(["0x0", true]), [1, 0, 0]),
        ("eth_getBlockByHash", hash, [1, 0, 0]),
        ("eth_getBlockByNumber", block.clone(), [1, 0, 1]),
        ("eth_getBlockReceipts", json!([block[0]]), [1, 0, 1]),
        ("eth_gasPrice", json!([]), [1, 1, 1]),
        ("eth_getBlockByNumber", json!(["latest", false]), [1, 1, 1]),
        // State is cached from the second time on, and at once where that came lately.
        ("eth_getBalance", balance, [2, 1, 1]),
        ("eth_call", json!([{"to": account, "input": "0x18160ddd"}]), [2, 1, 1]),
        ("eth_getTransactionCount", json!([account, "pending"]), [2, 2, 2]),
        ("eth_getBlockByNumber", json!(["0xffff", false]), [2, 2, 2]),
        ("eth_syncing", json!([]), [2, 2, 2]),
        ("unknown", json!([]), [2, 2, 2]),
    ];
    for phase in 0..3 {
        match phase {
            1 => drop(rig.head(&mut watcher).await),
            2 => watcher.expect(reorged(&rig.control.reorg(2, 3).unwrap())).await,
            _ => {}
        }
        for (method, params, costs) in &rows {
            let cost = rig.cost(method, async {
                let request = request(method, params);
                let first = client.ask(request.to_string()).await;
                // The same request in another spelling.
                let again = serde_json::to_string_pretty(&request).unwrap();
                assert_eq!(rig.post(again).await, first, "{method}");
            });
            assert_eq!(cost.await, costs[phase], "{method} {params} in phase {phase}");
            let request = request(method, params);
            assert_eq!(
                client.ask(request.to_string()).await,
                rig.ask_node(&request).await,
                "{method}"
            );
        }
    }
    assert!(
        rig.metric(r#"headwater_answered_calls_total{method="eth_gasPrice",by="memory"}"#)
            .await
            >= 3.0
    );
    assert!(rig.metric("headwater_cache_entries").await >= 8.0);
    assert!(rig.metric("headwater_cache_bytes").await > 1000.0);
}

/// Answers from final blocks are kept for good; other answers by number are fetched again after a reorg.
#[tokio::test]
async fn final_blocks_are_kept_across_reorgs() {
    let rig = Rig::start().await;
    let mut watcher = rig.watcher().await;
    let blocks = rig.control.mine_many(200);
    watcher.expect(adopted(&blocks)).await;
    let old = request("eth_getBlockByNumber", &json!(["0x10", true]));
    let transaction = json!([blocks[10].transactions()[0].hash()]);
    let receipt = request("eth_getTransactionReceipt", &transaction);
    let mut client = rig.client().await;
    // The first call makes the app fetch the finalized block.
    client.ask(old.to_string()).await;
    crate::harness::eventually("both are kept for good", async || {
        // By now the block is known as final, or in the next round.
        client.ask(old.to_string()).await;
        client.ask(receipt.to_string()).await;
        watcher.expect(reorged(&rig.control.reorg(1, 2).unwrap())).await;
        let before = (
            rig.asked("eth_getBlockByNumber"),
            rig.asked("eth_getTransactionReceipt"),
        );
        client.ask(old.to_string()).await;
        client.ask(receipt.to_string()).await;
        before
            == (
                rig.asked("eth_getBlockByNumber"),
                rig.asked("eth_getTransactionReceipt"),
            )
    })
    .await;
    assert_eq!(client.ask(receipt.to_string()).await, rig.ask_node(&receipt).await);
}

#[tokio::test]
async fn what_is_not_there_yet_and_what_failed_is_not_kept() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let pending = rig.control.add_pending().unwrap();
    let receipt = request("eth_getTransactionReceipt", &json!([pending.hash()]));
    let transaction = request("eth_getTransactionByHash", &json!([pending.hash()]));
    for _ in 0..2 {
        assert!(client.ask(receipt.to_string()).await.contains(r#""result":null"#));
        assert!(
            client
                .ask(transaction.to_string())
                .await
                .contains(r#""blockHash":null"#)
        );
    }
    assert_eq!(rig.asked("eth_getTransactionReceipt"), 2);
    assert_eq!(rig.asked("eth_getTransactionByHash"), 2);
    rig.control
        .set_faults(|faults| faults.failing_methods = vec!["eth_gasPrice".into()]);
    let price = request("eth_gasPrice", &json!([]));
    assert!(client.ask(price.to_string()).await.contains("simulated failure"));
    rig.control.set_faults(|faults| faults.failing_methods.clear());
    assert!(client.ask(price.to_string()).await.contains("result"));
}

/// The answer from blocks in memory equals the node's answer, byte for byte, for any filter.
#[tokio::test]
async fn logs_of_held_blocks_are_the_nodes_own() {
    let rig = Rig::with(|config| config.limits.request_burst = 10_000).await;
    let (mut client, mut watcher) = (rig.client().await, rig.watcher().await);
    let blocks = rig.control.mine_many(12);
    watcher.expect(adopted(&blocks)).await;
    watcher.expect(reorged(&rig.control.reorg(3, 4).unwrap())).await;
    let (address, topics) = rig.control.with_chain(|chain| {
        let block = chain.block_at(chain.head().number() - 1).unwrap();
        let log = block.logs().next().unwrap();
        (log.address, log.topics().to_vec())
    });
    let tip = rig.control.head().number();
    let number = proptest::prop_oneof![
        (tip - 14..=tip).prop_map(|number| json!(format!("{number:#x}"))),
        proptest::strategy::Just(json!("latest")),
        proptest::strategy::Just(Value::Null),
    ]
    .boxed();
    let topic = topics[0];
    let filter = (number.clone(), number, 0..3_u8, 0..4_u8).prop_map(move |(from, to, by_address, by_topic)| {
        let mut filter = json!({"fromBlock": from, "toBlock": to});
        match by_address {
            1 => filter["address"] = json!(address),
            2 => filter["address"] = json!([address, alloy_primitives::Address::ZERO]),
            _ => {}
        }
        match by_topic {
            1 => filter["topics"] = json!([topic]),
            2 => filter["topics"] = json!([null, [topic]]),
            3 => filter["topics"] = json!([[topic, alloy_primitives::B256::ZERO], null]),
            _ => {}
        }
        json!([filter])
    });
    let mut runner = TestRunner::deterministic();
    let (mut logs, mut local) = (0, 0);
    for _ in 0..200 {
        let params = filter.new_tree(&mut runner).unwrap().current();
        let request = request("eth_getLogs", &params);
        let expected = rig.ask_node(&request).await;
        let mut answer = String::new();
        local += 1 - rig
            .cost("eth_getLogs", async { answer = client.ask(request.to_string()).await })
            .await
            .min(1);
        assert_eq!(answer, expected, "{params}");
        logs += answer.matches("logIndex").count();
    }
    assert!(
        logs > 300 && local > 100,
        "{logs} logs, {local} of 200 without the node"
    );
    // By hash, too; logs of a dropped block are left to the node.
    for hash in [rig.control.head().hash(), blocks[11].hash(), blocks[3].hash()] {
        let request = request("eth_getLogs", &json!([{"blockHash": hash}]));
        assert_eq!(client.ask(request.to_string()).await, rig.ask_node(&request).await);
    }
    // Invalid filters are refused in the node's own words.
    for filter in [
        json!({"fromBlock": "0x5", "toBlock": "0x1"}),
        json!({"fromBlock": "0x1", "toBlock": "0xffffffffffffffff"}),
        json!({"address": "0x12"}),
        json!({"topics": "0x"}),
        json!({"fromBlock": 5}),
        json!({"blockHash": "0x12"}),
        json!([]),
    ] {
        let request = request("eth_getLogs", &json!([filter]));
        assert_eq!(
            client.ask(request.to_string()).await,
            rig.ask_node(&request).await,
            "{filter}"
        );
    }
}

/// Once a node has reported a block, cached answers from before that block are not served.
#[tokio::test]
async fn nobody_who_was_told_of_a_block_is_told_later_that_there_is_none() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let number = request("eth_blockNumber", &json!([]));
    let price = request("eth_gasPrice", &json!([]));
    client.ask(price.to_string()).await;
    // The block is mined, but its announcement is lost.
    rig.control.set_faults(|faults| faults.skip_heads = 1);
    let block = rig.control.mine();
    let receipt = json!([block.transactions()[0].hash()]);
    let receipt = client
        .ask(request("eth_getTransactionReceipt", &receipt).to_string())
        .await;
    assert!(receipt.contains(&format!("{}", block.hash())), "{receipt}");
    assert_eq!(client.ask(number.to_string()).await, rig.ask_node(&number).await);
    assert_eq!(client.ask(price.to_string()).await, rig.ask_node(&price).await);
    let logs = request("eth_getLogs", &json!([{}]));
    assert_eq!(client.ask(logs.to_string()).await, rig.ask_node(&logs).await);
}

/// Logs and receipts, too, report the block that they are from.
#[tokio::test]
async fn who_was_told_of_a_block_by_its_logs_is_answered_from_there() {
    for method in [
        "eth_getFilterChanges",
        "eth_getFilterLogs",
        "eth_getLogs",
        "eth_getBlockReceipts",
    ] {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let filter = client.call("eth_newFilter", json!([{}])).await["result"].clone();
        // The block is mined, but its announcement is lost.
        rig.control.set_faults(|faults| faults.skip_heads = 1);
        let block = rig.control.mine();
        let params = match method {
            "eth_getLogs" => json!([{"blockHash": block.hash()}]),
            "eth_getBlockReceipts" => json!([block.hash()]),
            _ => json!([filter]),
        };
        let received = client.call(method, params).await;
        assert!(
            received.to_string().contains(&block.hash().to_string()),
            "{method}: {received}"
        );
        let number = client.call("eth_blockNumber", json!([])).await;
        assert_eq!(number["result"], format!("{:#x}", block.number()), "{method}");
    }
}

/// reth reads tags in any case: a name unknown to headwater may be the pending block, which is above every head.
#[tokio::test]
async fn a_block_that_is_asked_for_in_an_odd_way_says_nothing_of_the_head() {
    // The front calls the node by HTTP with the process's rustls provider; only the first installation takes effect.
    drop(rustls::crypto::ring::default_provider().install_default());
    let node = crate::harness::node().await;
    let (target, client) = (node.http_url(), reqwest::Client::new());
    let front = axum::Router::new().fallback(move |body: String| {
        let request = client.post(&target).header("content-type", "application/json");
        async move {
            if body.contains("PENDING") {
                let request: Value = serde_json::from_str(&body).unwrap();
                return json!({"jsonrpc": "2.0", "id": request["id"], "result": {"number": "0xffff"}}).to_string();
            }
            request.body(body).send().await.unwrap().text().await.unwrap()
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, front).await });
    let proxy = crate::harness::Proxy::start(&[address], |_| {}).await;
    proxy.settled(&node.handle()).await;
    let mut client = proxy.client().await;
    let odd = client.call("eth_getBlockByNumber", json!(["PENDING", false])).await;
    assert!(odd.to_string().contains("0xffff"), "{odd}");
    for _ in 0..2 {
        client.call("eth_gasPrice", json!([])).await;
    }
    assert_eq!(node.handle().stats().calls["eth_gasPrice"], 1, "kept");
}

#[tokio::test]
async fn items_of_a_batch_are_answered_in_order_whoever_answers_them() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    rig.control
        .set_faults(|faults| faults.delay = Some(std::time::Duration::from_millis(50)));
    let item =
        |id: u32, method: &str, params: Value| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    let batch = json!([
        item(1, "eth_getBalance", json!([alloy_primitives::Address::ZERO, "latest"])),
        item(2, "eth_chainId", json!([])),
        item(3, "eth_subscribe", json!(["newHeads"])),
        item(4, "eth_blockNumber", json!([])),
        item(5, "eth_getLogs", json!([{}])),
        item(6, "eth_nothing", json!([])),
        item(7, "eth_syncing", json!([])),
    ]);
    let answers: Value = serde_json::from_str(&client.ask(batch.to_string()).await).unwrap();
    let ids: Vec<u64> = answers
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7]);
    let id = answers[2]["result"].as_str().unwrap();
    rig.control.set_faults(|faults| faults.delay = None);
    let block = rig.control.mine();
    let event = client.event().await;
    assert_eq!(
        (event.subscription.as_str(), event.json()["hash"].as_str()),
        (id, Some(&*block.hash().to_string()))
    );
    // Over HTTP the answers are the same, but for the subscription.
    let answers: Value = serde_json::from_str(&rig.post(batch.to_string()).await).unwrap();
    assert_eq!(answers[2]["error"]["message"], "notifications not supported");
    assert_eq!(answers[6]["result"], false);
}

/// A command to a development node invalidates cached answers.
#[tokio::test]
async fn who_commands_a_development_chain_sees_what_it_did() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let price = request("eth_gasPrice", &json!([]));
    let cost = rig.cost("eth_gasPrice", async {
        client.ask(price.to_string()).await;
        client.ask(price.to_string()).await;
        // A command that the node refuses changes nothing.
        client.ask(request("evm_mine", &json!([])).to_string()).await;
        client.ask(price.to_string()).await;
    });
    assert_eq!(cost.await, 1);
    let (number, block) = (
        request("eth_blockNumber", &json!([])),
        request("eth_getBlockByNumber", &json!(["latest", false])),
    );
    for _ in 0..20 {
        client.ask(block.to_string()).await;
        client.ask(request("devnet_mine", &json!([])).to_string()).await;
        assert_eq!(client.ask(number.to_string()).await, rig.ask_node(&number).await);
        assert_eq!(client.ask(block.to_string()).await, rig.ask_node(&block).await);
    }
}

/// Long answers, from blocks in memory or from the node, alone or in a batch.
#[tokio::test]
async fn answers_of_many_megabytes_come_whole_up_to_the_limit_and_not_beyond() {
    let rig = Rig::before(node_with_logs_of(1_000_000).await, |_| {}).await;
    let rows = [
        request("eth_getLogs", &json!([{"fromBlock": "0x1", "toBlock": "latest"}])),
        request("eth_getBlockReceipts", &json!(["0x2"])),
    ];
    let mut lengths = Vec::new();
    let mut expected = Vec::new();
    for row in &rows {
        let answer = rig.ask_node(row).await;
        lengths.push(answer.len() - r#"{"jsonrpc":"2.0","id":1,"result":}"#.len());
        expected.push(answer);
    }
    assert!(lengths[0] > 20_000_000 && lengths[1] > 5_000_000, "{lengths:?}");
    let mut client = rig.client().await;
    for (row, expected) in rows.iter().zip(&expected) {
        assert!(client.ask(row.to_string()).await == *expected);
        assert!(rig.post(row.to_string()).await == *expected);
    }
    // A batch has a bound of its own: items beyond it are refused one by one.
    let too_large = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32003,"message":"response too large"}}"#;
    let batch = json!([rows[1], rows[1], rows[0], request("eth_chainId", &json!([]))]).to_string();
    let last = r#"{"jsonrpc":"2.0","id":1,"result":"0x539"}"#;
    let answers = format!("[{},{},{too_large},{last}]", expected[1], expected[1]);
    assert!(client.ask(batch.clone()).await == answers);
    assert!(rig.post(batch).await == answers);
    // A single answer has a bound, too, on both transports.
    for (row, length) in rows.iter().zip(lengths) {
        for (limit, allowed) in [(length, true), (length - 1, false)] {
            let limited = crate::harness::Proxy::start(&[rig.node.ws_url()], |config| {
                config.calls.max_response_bytes = bytesize::ByteSize(limit as u64);
            })
            .await;
            limited.settled(&rig.control).await;
            let answer = limited.client().await.ask(row.to_string()).await;
            assert_eq!(answer != too_large, allowed, "{limit} bytes");
        }
    }
}
