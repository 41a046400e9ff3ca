//! Tests of the simulated node over its real sockets.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use headwater::devnet::{Config, Control, Devnet};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

/// Time limit, longer than any expected event takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// Silence after which no event is expected.
const SILENCE: Duration = Duration::from_millis(150);

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn connect(devnet: &Devnet) -> Self {
        Self(connect_async(devnet.ws_url()).await.unwrap().0)
    }

    async fn send(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn next(&mut self) -> Value {
        loop {
            let message = timeout(PATIENCE, self.0.next())
                .await
                .expect("a message comes")
                .unwrap()
                .unwrap();
            if let Message::Text(text) = message {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.send(json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}))
            .await;
        let answer = self.next().await;
        assert_eq!(answer["id"], 7, "{answer}");
        answer
    }

    async fn subscribe(&mut self, params: Value) -> String {
        self.call("eth_subscribe", params).await["result"]
            .as_str()
            .expect("an id")
            .to_owned()
    }

    /// Returns the subscription id and the payload of the next notification.
    async fn event(&mut self) -> (String, Value) {
        let mut message = self.next().await;
        assert_eq!(message["method"], "eth_subscription", "{message}");
        let params = message["params"].take();
        (
            params["subscription"].as_str().unwrap().to_owned(),
            params["result"].clone(),
        )
    }

    async fn assert_silent(&mut self) {
        assert!(timeout(SILENCE, self.0.next()).await.is_err(), "nothing must come");
    }
}

async fn manual() -> (Devnet, Control) {
    let devnet = Devnet::start(Config::manual()).await.unwrap();
    let control = devnet.handle();
    (devnet, control)
}

async fn post(devnet: &Devnet, body: impl ToString) -> Value {
    // reqwest is built without a TLS provider, but its client requires one even for plain HTTP.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let response = reqwest::Client::new()
        .post(devnet.http_url())
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

async fn call(devnet: &Devnet, method: &str, params: Value) -> Value {
    post(
        devnet,
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}),
    )
    .await
}

fn hex(number: u64) -> Value {
    json!(format!("{number:#x}"))
}

#[tokio::test]
async fn logs_of_a_block_follow_its_head() {
    let (devnet, control) = manual().await;
    let mut client = Client::connect(&devnet).await;
    let heads = client.subscribe(json!(["newHeads"])).await;
    let logs = client.subscribe(json!(["logs", {}])).await;
    for block in control.mine_many(2) {
        let (id, head) = client.event().await;
        assert_eq!((id.as_str(), &head["hash"]), (heads.as_str(), &json!(block.hash())));
        for index in 0..6 {
            let (id, log) = client.event().await;
            assert_eq!((id.as_str(), &log["logIndex"]), (logs.as_str(), &hex(index)));
            assert_eq!(log["blockHash"], json!(block.hash()));
            assert_eq!(log["removed"], false);
        }
    }
    assert_eq!(control.stats().logs_sent, 12);
}

#[tokio::test]
async fn reorg_removes_the_oldest_first_and_then_tells_every_new_block() {
    let (devnet, control) = manual().await;
    let mut client = Client::connect(&devnet).await;
    client.subscribe(json!(["newHeads"])).await;
    client.subscribe(json!(["logs", {}])).await;
    let reorg = control.reorg(2, 3).unwrap();
    for block in reorg.dropped.iter().rev() {
        for index in 0..6 {
            let (_, log) = client.event().await;
            assert_eq!(
                (&log["removed"], &log["blockHash"]),
                (&json!(true), &json!(block.hash()))
            );
            assert_eq!(log["logIndex"], hex(index));
        }
    }
    for block in &reorg.adopted {
        assert_eq!(client.event().await.1["hash"], json!(block.hash()));
        for _ in 0..6 {
            let (_, log) = client.event().await;
            assert_eq!(
                (&log["removed"], &log["blockHash"]),
                (&json!(false), &json!(block.hash()))
            );
        }
    }
    client.assert_silent().await;
}

#[tokio::test]
async fn faults_change_what_a_reorg_tells() {
    let (devnet, control) = manual().await;
    control.set_faults(|faults| {
        faults.announce_tip_only_after_reorg = true;
        faults.send_removed_logs = false;
        faults.duplicate_heads = true;
    });
    let mut client = Client::connect(&devnet).await;
    client.subscribe(json!(["newHeads"])).await;
    let tip = control.reorg(2, 3).unwrap().adopted[2].hash();
    assert_eq!(client.event().await.1["hash"], json!(tip));
    assert_eq!(client.event().await.1["hash"], json!(tip));
    client.assert_silent().await;
}

#[tokio::test]
async fn counted_faults_pass() {
    let (devnet, control) = manual().await;
    control.set_faults(|faults| {
        faults.skip_heads = 1;
        faults.empty_log_answers = 1;
        faults.failing_methods = vec!["eth_gasPrice".to_owned()];
    });
    let mut client = Client::connect(&devnet).await;
    client.subscribe(json!(["newHeads"])).await;
    let blocks = control.mine_many(2);
    assert_eq!(client.event().await.1["hash"], json!(blocks[1].hash()));
    control.set_faults(|faults| faults.late_heads = 1);
    let late = control.mine_many(2);
    assert_eq!(client.event().await.1["hash"], json!(late[1].hash()));
    assert_eq!(client.event().await.1["hash"], json!(late[0].hash()));
    let filter = json!([{"blockHash": blocks[0].hash()}]);
    assert_eq!(client.call("eth_getLogs", filter.clone()).await["result"], json!([]));
    assert_eq!(
        client.call("eth_getLogs", filter).await["result"]
            .as_array()
            .unwrap()
            .len(),
        6
    );
    assert_eq!(
        client.call("eth_gasPrice", json!([])).await["error"]["message"],
        "simulated failure"
    );
    control.set_faults(|faults| faults.failing_calls = 1);
    for outcome in ["error", "result"] {
        assert!(client.call("eth_chainId", json!([])).await.get(outcome).is_some());
    }
    control.set_faults(|faults| faults.refuse_connections = true);
    assert!(connect_async(devnet.ws_url()).await.is_err());
}

#[tokio::test]
async fn pending_transactions_come_as_hashes_or_whole() {
    let (devnet, control) = manual().await;
    let mut client = Client::connect(&devnet).await;
    let hashes = client.subscribe(json!(["newPendingTransactions"])).await;
    let full = client.subscribe(json!(["newPendingTransactions", true])).await;
    let hash = json!(control.add_pending().unwrap().hash());
    assert_eq!(client.event().await, (hashes, hash.clone()));
    let (id, transaction) = client.event().await;
    assert_eq!((id, &transaction["hash"]), (full, &hash));
    assert_eq!(transaction["blockHash"], Value::Null);
    assert_eq!(
        client.call("eth_getTransactionByHash", json!([hash])).await["result"],
        transaction
    );
}

#[tokio::test]
async fn unsubscribing_ends_the_stream_once() {
    let (devnet, control) = manual().await;
    let mut client = Client::connect(&devnet).await;
    let id = client.subscribe(json!(["newHeads"])).await;
    assert_eq!(client.call("eth_unsubscribe", json!([id])).await["result"], true);
    control.mine();
    client.assert_silent().await;
    let error = client.call("eth_unsubscribe", json!([id])).await;
    assert_eq!(
        error["error"],
        json!({"code": -32000, "message": "subscription not found"})
    );
}

#[tokio::test]
async fn syncing_says_no_after_its_answer() {
    let (devnet, _) = manual().await;
    let mut client = Client::connect(&devnet).await;
    client
        .send(json!([{"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["syncing"]}]))
        .await;
    let answer = client.next().await;
    assert_eq!(
        client.event().await,
        (answer[0]["result"].as_str().unwrap().to_owned(), json!(false))
    );
}

#[tokio::test]
async fn requests_come_in_binary_frames_too_and_ids_are_echoed_as_written() {
    let (devnet, _) = manual().await;
    let mut client = Client::connect(&devnet).await;
    let request = r#"{"jsonrpc":"2.0","method":"net_version","id":1.50}"#;
    client.0.send(Message::binary(request.as_bytes())).await.unwrap();
    let answer = client.0.next().await.unwrap().unwrap();
    assert_eq!(
        answer.to_text().unwrap(),
        r#"{"jsonrpc":"2.0","id":1.50,"result":"1337"}"#
    );
}

#[tokio::test]
async fn disconnect_cuts_sockets_and_leaves_the_chain() {
    let (devnet, control) = manual().await;
    let mut client = Client::connect(&devnet).await;
    client.subscribe(json!(["newHeads"])).await;
    control.disconnect();
    let end = timeout(PATIENCE, client.0.next()).await.unwrap();
    assert!(matches!(end, Some(Err(_))), "a cut is no close handshake: {end:?}");
    let mut client = Client::connect(&devnet).await;
    assert_eq!(client.call("eth_blockNumber", json!([])).await["result"], "0x4");
    assert_eq!(control.stats().connections, 1);
}

#[tokio::test]
async fn stall_is_silent_and_ends_with_what_was_missed() {
    let (devnet, control) = manual().await;
    let mut client = Client::connect(&devnet).await;
    client.subscribe(json!(["newHeads"])).await;
    assert_eq!(call(&devnet, "devnet_stall", json!([null])).await["result"], true);
    let block = control.mine();
    client.0.send(Message::Ping("anyone?".into())).await.unwrap();
    client.assert_silent().await;
    assert_eq!(call(&devnet, "devnet_stall", json!([0])).await["result"], true);
    assert_eq!(client.event().await.1["hash"], json!(block.hash()));
}

#[tokio::test]
async fn slow_readers_are_dropped() {
    // Mining does not yield to the session, so a block of six logs exceeds the queue of four messages.
    let config = Config {
        queue_messages: 4,
        ..Config::manual()
    };
    let devnet = Devnet::start(config).await.unwrap();
    let control = devnet.handle();
    let mut client = Client::connect(&devnet).await;
    client.subscribe(json!(["logs", {}])).await;
    control.mine();
    let ended = async { while let Some(Ok(_)) = client.0.next().await {} };
    timeout(PATIENCE, ended).await.expect("the connection ends");
    assert_eq!(
        (control.stats().slow_clients_dropped, control.stats().connections),
        (1, 0)
    );
}

#[tokio::test]
async fn delayed_answers_are_late_and_events_are_not() {
    let (devnet, control) = manual().await;
    let mut client = Client::connect(&devnet).await;
    client.subscribe(json!(["newHeads"])).await;
    control.set_faults(|faults| faults.delay = Some(Duration::from_millis(200)));
    client
        .send(json!({"jsonrpc": "2.0", "id": 9, "method": "eth_chainId"}))
        .await;
    control.mine();
    assert_eq!(client.event().await.1["number"], "0x5");
    assert_eq!(client.next().await["id"], 9);
}

#[tokio::test]
async fn http_answers_singles_batches_and_refuses_subscriptions() {
    let (devnet, control) = manual().await;
    assert_eq!(
        call(&devnet, "eth_chainId", json!([])).await,
        json!({"jsonrpc": "2.0", "id": 1, "result": "0x539"})
    );
    let batch = post(
        &devnet,
        json!([
            {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber"},
            {"jsonrpc": "2.0", "method": "eth_blockNumber"},
            {"jsonrpc": "2.0", "id": "x", "method": "eth_nothing", "params": []},
            3,
        ]),
    )
    .await;
    assert_eq!(batch[0]["result"], "0x4");
    let unknown = json!({"code": -32601, "message": "the method eth_nothing does not exist/is not available"});
    assert_eq!((&batch[1]["id"], &batch[1]["error"]), (&json!("x"), &unknown));
    assert_eq!(batch[2]["error"]["code"], -32600);
    assert_eq!(batch.as_array().unwrap().len(), 3);
    let refused = call(&devnet, "eth_subscribe", json!(["newHeads"])).await;
    assert_eq!(refused["error"]["message"], "notifications not supported");
    assert_eq!(post(&devnet, "{").await["error"]["code"], -32700);
    assert_eq!(control.stats().calls["unknown"], 2);
}

#[tokio::test]
async fn blocks_receipts_and_logs_agree() {
    let (devnet, control) = manual().await;
    let block = control.mine();
    let (hash, number) = (json!(block.hash()), hex(block.number()));
    let by_hash = call(&devnet, "eth_getBlockByHash", json!([hash, true])).await["result"].clone();
    assert_eq!(
        by_hash,
        call(&devnet, "eth_getBlockByNumber", json!([number, true])).await["result"]
    );
    let receipts = call(&devnet, "eth_getBlockReceipts", json!([hash])).await["result"].clone();
    let logs = call(&devnet, "eth_getLogs", json!([{"blockHash": hash}])).await["result"].clone();
    let of_receipts: Vec<_> = receipts
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|r| r["logs"].as_array().unwrap())
        .collect();
    assert_eq!(of_receipts, logs.as_array().unwrap().iter().collect::<Vec<_>>());
    for transaction in by_hash["transactions"].as_array().unwrap() {
        let found = call(&devnet, "eth_getTransactionByHash", json!([transaction["hash"]])).await;
        assert_eq!(&found["result"], transaction);
    }
    let range = call(
        &devnet,
        "eth_getLogs",
        json!([{"fromBlock": "0x0", "toBlock": "latest"}]),
    )
    .await;
    assert_eq!(range["result"].as_array().unwrap().len(), 5 * 6);
    let unknown = call(
        &devnet,
        "eth_getLogs",
        json!([{"blockHash": format!("0x{}", "9".repeat(64))}]),
    )
    .await;
    assert_eq!(unknown["error"], json!({"code": -32000, "message": "unknown block"}));
    assert_eq!(
        call(&devnet, "eth_getBlockByNumber", json!(["0x99", false])).await["result"],
        Value::Null
    );
}

#[tokio::test]
async fn contracts_answer_calls_and_revert_with_data() {
    let (devnet, control) = manual().await;
    let token = control.with_chain(|chain| chain.tokens()[0]);
    let decimals = call(
        &devnet,
        "eth_call",
        json!([{"to": token, "data": "0x313ce567"}, "latest"]),
    )
    .await;
    assert_eq!(decimals["result"], json!(format!("0x{:064x}", 18)));
    let reverted = call(
        &devnet,
        "eth_call",
        json!([{"to": token, "input": "0x23b872dd"}, "latest"]),
    )
    .await;
    assert_eq!(reverted["error"]["code"], 3);
    assert!(reverted["error"]["data"].as_str().unwrap().starts_with("0x08c379a0"));
    assert_ne!(
        call(&devnet, "eth_getCode", json!([token, "latest"])).await["result"],
        "0x"
    );
}

#[tokio::test]
async fn sent_transactions_are_mined_next() {
    let (devnet, control) = manual().await;
    // Another node with the same seed signs a transaction that this node does not have yet.
    let twin = Devnet::start(Config::manual()).await.unwrap();
    let transaction = twin.handle().add_pending().unwrap();
    let raw = {
        use alloy_eips::eip2718::Encodable2718;
        alloy_primitives::hex::encode_prefixed(transaction.envelope().encoded_2718())
    };
    let mut client = Client::connect(&devnet).await;
    client.subscribe(json!(["newPendingTransactions"])).await;
    let hash = json!(transaction.hash());
    assert_eq!(
        call(&devnet, "eth_sendRawTransaction", json!([raw])).await["result"],
        hash
    );
    assert_eq!(client.event().await.1, hash);
    assert_eq!(
        call(&devnet, "eth_getTransactionReceipt", json!([hash])).await["result"],
        Value::Null
    );
    let block = control.mine();
    let receipt = call(&devnet, "eth_getTransactionReceipt", json!([hash])).await["result"].clone();
    assert_eq!(
        (&receipt["blockHash"], &receipt["status"]),
        (&json!(block.hash()), &json!("0x1"))
    );
    let again = call(&devnet, "eth_sendRawTransaction", json!([raw])).await;
    assert!(
        again["error"]["message"].as_str().unwrap().starts_with("nonce too low"),
        "{again}"
    );
}

#[tokio::test]
async fn polled_filters_collect_between_polls() {
    let (devnet, control) = manual().await;
    let blocks = call(&devnet, "eth_newBlockFilter", json!([])).await["result"].clone();
    let logs = call(&devnet, "eth_newFilter", json!([{}])).await["result"].clone();
    let block = control.mine();
    let changes = |id: Value| {
        let devnet = &devnet;
        async move { call(devnet, "eth_getFilterChanges", json!([id])).await["result"].clone() }
    };
    assert_eq!(changes(blocks.clone()).await, json!([block.hash()]));
    assert_eq!(changes(blocks.clone()).await, json!([]));
    assert_eq!(changes(logs).await.as_array().unwrap().len(), 6);
    assert_eq!(
        call(&devnet, "eth_uninstallFilter", json!([blocks])).await["result"],
        true
    );
    let gone = call(&devnet, "eth_getFilterChanges", json!([blocks])).await;
    assert_eq!(gone["error"], json!({"code": -32000, "message": "filter not found"}));
}

#[tokio::test]
async fn control_methods_do_what_the_handle_does() {
    let (devnet, control) = manual().await;
    let mined = call(&devnet, "devnet_mine", json!([2])).await;
    assert_eq!(mined["result"][1], json!(control.head().hash()));
    let reorg = call(&devnet, "devnet_reorg", json!([2])).await["result"].clone();
    assert_eq!(reorg["dropped"][0], mined["result"][1]);
    assert_eq!(reorg["adopted"].as_array().unwrap().len(), 3);
    call(&devnet, "devnet_switchBack", json!([])).await;
    assert_eq!(mined["result"][1], json!(control.head().hash()));
    let faults = call(&devnet, "devnet_setFaults", json!([{"delay": "5ms"}])).await;
    assert_eq!(faults["result"]["delay"], "5ms");
    assert_eq!(control.faults().delay, Some(Duration::from_millis(5)));
    let unknown = call(&devnet, "devnet_setFaults", json!([{"dealy": "5ms"}])).await;
    assert!(
        unknown["error"]["message"].as_str().unwrap().contains("dealy"),
        "{unknown}"
    );
    call(&devnet, "devnet_setBlockTime", json!([10])).await;
    let before = control.head().number();
    while control.head().number() < before + 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        call(&devnet, "devnet_stats", json!([])).await["result"]["calls"]["devnet_mine"],
        1
    );
}

#[tokio::test]
async fn ipc_speaks_lines_of_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.ipc");
    let config = Config {
        ipc: Some(path.clone()),
        ..Config::manual()
    };
    let devnet = Devnet::start(config).await.unwrap();
    let (reader, mut writer) = UnixStream::connect(devnet.ipc_path().unwrap())
        .await
        .unwrap()
        .into_split();
    let mut lines = BufReader::new(reader).lines();
    let two = concat!(
        r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#,
        r#"[{"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}]"#,
    );
    writer.write_all(two.as_bytes()).await.unwrap();
    assert_eq!(
        lines.next_line().await.unwrap().unwrap(),
        r#"{"jsonrpc":"2.0","id":1,"result":"0x539"}"#
    );
    assert!(
        lines
            .next_line()
            .await
            .unwrap()
            .unwrap()
            .starts_with(r#"[{"jsonrpc":"2.0","id":2,"result":"0x"#)
    );
    devnet.handle().mine();
    assert!(lines.next_line().await.unwrap().unwrap().contains(r#""number":"0x5""#));
    drop(devnet);
    assert_eq!(timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap(), None);
    assert!(!path.exists());
}

#[tokio::test]
async fn blocks_and_transactions_come_by_themselves() {
    let config = Config {
        block_time: Some(Duration::from_millis(20)),
        pending_rate: 2_000.0,
        ..Config::manual()
    };
    let devnet = Devnet::start(config).await.unwrap();
    let mut client = Client::connect(&devnet).await;
    client.subscribe(json!(["newHeads"])).await;
    let mut previous = client.event().await.1;
    for _ in 0..5 {
        let head = client.event().await.1;
        assert_eq!(head["parentHash"], previous["hash"]);
        previous = head;
    }
    let mined = devnet.handle().head().transactions().len();
    assert!(mined > 3, "more than the fill: {mined}");
}
