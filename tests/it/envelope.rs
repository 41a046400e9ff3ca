//! PROTOCOL 1.3 and 1.4, row by row, over WebSocket and HTTP.

use headwater::devnet;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, Rig, adopted};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER};

const NOTHING: &str = "";
const PARSE_ERROR: &str = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error"}}"#;

fn invalid(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32600,"message":"invalid request"}}}}"#)
}

fn call(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"eth_chainId"}}"#)
}

fn result(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"0x539"}}"#)
}

/// Returns the rows: a message and its answer, `NOTHING` for none.
fn rows() -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let mut row = |sent: &str, answer: &str| rows.push((sent.to_owned(), answer.to_owned()));
    // J1, J2: whitespace around the request, any bytes after it.
    row(&format!(" \r\n\t{CHAIN_ID}\n "), CHAIN_ID_ANSWER);
    row(&format!("{CHAIN_ID}x"), CHAIN_ID_ANSWER);
    row(&format!("{CHAIN_ID}{CHAIN_ID}"), CHAIN_ID_ANSWER);
    // J3, J4: not JSON, or truncated JSON.
    for sent in [
        "hello",
        "{\"jsonrpc\":\"2.0\",\"id\":1",
        "[",
        "[1",
        "{]",
        "\u{feff}{}",
        "nul",
    ] {
        row(sent, PARSE_ERROR);
    }
    // J5: JSON, but not a request.
    for sent in ["null", "5", "-1.5e3", "\"x\"", "true", "{}"] {
        row(sent, &invalid("null"));
    }
    // J6: version missing or wrong, method missing or not a non-empty string.
    for members in [
        r#""method":"eth_chainId""#,
        r#""jsonrpc":"1.0","method":"eth_chainId""#,
        r#""jsonrpc":2.0,"method":"eth_chainId""#,
        r#""jsonrpc":"2.0""#,
        r#""jsonrpc":"2.0","method":5"#,
        r#""jsonrpc":"2.0","method":null"#,
        r#""jsonrpc":"2.0","method":["eth_chainId"]"#,
        r#""jsonrpc":"2.0","method":"""#,
    ] {
        row(&format!(r#"{{"id":7,{members}}}"#), &invalid("7"));
    }
    // J7: a notification is executed and not answered; one that subscribes is ignored.
    row(r#"{"jsonrpc":"2.0","method":"eth_chainId"}"#, NOTHING);
    row(r#"{"jsonrpc":"2.0","method":"eth_nothing","params":{}}"#, NOTHING);
    row(
        r#"{"jsonrpc":"2.0","method":"eth_subscribe","params":["newHeads"]}"#,
        NOTHING,
    );
    // J8, J9: any scalar id is echoed as it was written.
    for id in [
        "null",
        "0",
        "\"\"",
        "-1",
        "1.50",
        "1e3",
        "123456789012345678901234567890",
        "true",
        r#""a\u0041\"""#,
        "\"é\"",
    ] {
        row(&call(id), &result(id));
    }
    // J10: an object or array is not a valid id.
    for id in ["{}", "[]", "[1]", r#"{"a":1}"#] {
        row(&call(id), &invalid("null"));
    }
    // J11: a response is ignored.
    row(r#"{"jsonrpc":"2.0","id":1,"result":5}"#, NOTHING);
    row(r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}"#, NOTHING);
    // J12, J13, J14: the last of equal keys counts, keys in any case, unknown members are ignored.
    row(
        r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"eth_x","method":"eth_chainId"}"#,
        &result("2"),
    );
    row(r#"{"JSONRPC":"2.0","Id":3,"METHOD":"eth_chainId"}"#, &result("3"));
    row(
        r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId","more":{"id":9},"also":[1]}"#,
        CHAIN_ID_ANSWER,
    );
    row(
        r#"{"jsonrpc":"2.0","id":1,"method":"eth_\u0063hainId"}"#,
        CHAIN_ID_ANSWER,
    );
    // J15, J16: params may be absent, null or empty, but not an object.
    for params in ["null", "[]", " [ ] "] {
        row(
            &format!(r#"{{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":{params}}}"#),
            CHAIN_ID_ANSWER,
        );
    }
    row(
        r#"{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber","params":{"a":1}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"non-array args"}}"#,
    );
    // J17, J18: unknown and overlong methods.
    row(
        r#"{"jsonrpc":"2.0","id":1,"method":"eth_nothing","params":[]}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method eth_nothing does not exist/is not available"}}"#,
    );
    row(
        &format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{}"}}"#, "m".repeat(2049)),
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"method name too long: 2049 \u003e 2048"}}"#,
    );
    // B1, B2: empty batch, too large batch.
    row(
        "[]",
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"empty batch"}}"#,
    );
    let many = vec![CHAIN_ID; 1001].join(",");
    row(
        &format!(r#"[{{"jsonrpc":"2.0","method":"n"}},{many}]"#),
        r#"[{"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"batch too large"}}]"#,
    );
    // B3, B4, B6: answers in request order; notifications have no entry, invalid items have one in their place.
    row(
        &format!(
            r#"[{},{{"jsonrpc":"2.0","method":"eth_chainId"}},5,{},{},{{"jsonrpc":"2.0","id":[]}},[]]"#,
            call("\"b\""),
            call("1"),
            call("1")
        ),
        &format!(
            "[{},{},{},{},{},{}]",
            result("\"b\""),
            invalid("null"),
            result("1"),
            result("1"),
            invalid("null"),
            invalid("null")
        ),
    );
    row(r#"[{"jsonrpc":"2.0","method":"eth_chainId"}]"#, NOTHING);
    // B8: only responses.
    row(r#"[{"jsonrpc":"2.0","id":1,"result":5}]"#, NOTHING);
    rows
}

/// No row ends the connection or affects another client.
#[tokio::test]
async fn every_row_over_websocket_as_text_and_as_binary() {
    let rig = Rig::with(|config| config.limits.request_burst = 1_000_000).await;
    let mut bystander = rig.watcher().await;
    let mut client = rig.client().await;
    for (sent, answer) in rows() {
        for message in [Message::text(sent.clone()), Message::binary(sent.clone().into_bytes())] {
            client.send(message).await;
            if answer != NOTHING {
                assert_eq!(client.next().await, answer, "{sent}");
            }
            client.send(call("\"alive\"")).await;
            assert_eq!(client.next().await, result("\"alive\""), "after {sent}");
        }
        let block = rig.control.mine();
        bystander.expect(adopted(&[block])).await;
    }
    for empty in [
        Message::text(""),
        Message::binary(""),
        Message::text(" \n"),
        Message::binary(b"\xff\xfe".to_vec()),
    ] {
        client.send(empty).await;
        assert_eq!(client.next().await, PARSE_ERROR);
    }
    rig.nothing_else(&mut bystander).await;
}

#[tokio::test]
async fn every_row_over_http() {
    let rig = Rig::with(|config| config.limits.request_burst = 1_000_000).await;
    for (sent, answer) in rows() {
        assert_eq!(rig.post(&sent).await, answer, "{sent}");
    }
    assert_eq!(rig.post(b"\xff\xfe").await, PARSE_ERROR);
    for empty in ["", " \n"] {
        assert_eq!(rig.post(empty).await, NOTHING);
    }
}

#[tokio::test]
async fn a_batch_is_answered_in_its_order_and_before_what_it_subscribed_to() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let batch = json!([
        {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["syncing"]},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_chainId"},
        {"jsonrpc": "2.0", "id": 3, "method": "eth_subscribe", "params": ["newHeads", 1]},
        {"jsonrpc": "2.0", "id": 4, "method": "eth_subscribe", "params": ["newHeads"]},
        {"jsonrpc": "2.0", "method": "eth_subscribe", "params": ["newHeads"]},
        {"jsonrpc": "2.0", "id": 5, "method": "eth_unsubscribe", "params": ["0x1"]},
    ]);
    client.send(batch.to_string()).await;
    let text = client.next().await;
    let answer: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|_| panic!("the array comes first: {text}"));
    let ids: Vec<_> = answer.iter().map(|one| one["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    assert_eq!(answer[1]["result"], "0x539");
    assert_eq!(answer[2]["error"]["code"], -32602);
    assert_eq!(answer[4]["error"]["message"], "subscription not found");
    let syncing = client.event().await;
    assert_eq!(
        (json!(syncing.subscription), syncing.payload.as_str()),
        (answer[0]["result"].clone(), "false")
    );
    for block in rig.control.mine_many(2) {
        let head = client.event().await;
        assert_eq!(
            json!(head.subscription),
            answer[3]["result"],
            "and no head for the one without an id"
        );
        assert_eq!(head.json()["hash"], json!(block.hash()));
    }
}

/// An item whose answer is too long gets an error, and takes no room from the others.
#[tokio::test]
async fn a_long_item_of_a_batch_leaves_room_for_the_others() {
    let node = devnet::Config {
        log_data_bytes: 16 << 10,
        initial_blocks: 12,
        ..devnet::Config::manual()
    };
    let rig = Rig::before(devnet::Devnet::start(node).await.unwrap(), |config| {
        config.calls.max_batch_response_bytes = bytesize::ByteSize::kib(64);
        // Items reach the node one at a time.
        config.limits.max_in_flight = 1;
    })
    .await;
    let logs = |from: &str| json!({"jsonrpc": "2.0", "id": from, "method": "eth_getLogs", "params": [{"fromBlock": from, "toBlock": "0xc"}]});
    let block = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": ["0x3", false]});
    let batch = json!([logs("0x1"), logs("0x2"), block, block]).to_string();
    let answers: Vec<Value> = serde_json::from_str(&rig.client().await.ask(batch).await).unwrap();
    let too_long: Vec<bool> = answers.iter().map(|one| one["error"]["code"] == -32003).collect();
    assert_eq!(too_long, [true, true, false, false], "{answers:?}");
}

/// B5: geth's bound on the answer to a batch.
#[tokio::test]
async fn a_batch_of_large_answers_ends_in_errors() {
    let node = devnet::Config {
        log_data_bytes: 16 << 10,
        initial_blocks: 12,
        ..devnet::Config::manual()
    };
    let rig = Rig::before(devnet::Devnet::start(node).await.unwrap(), |_| {}).await;
    let logs = json!({"jsonrpc": "2.0", "id": "x", "method": "eth_getLogs", "params": [{"fromBlock": "0x1", "toBlock": "0xc"}]});
    let one = rig.post(logs.to_string()).await.len();
    let fit = 25_000_000 / one;
    let batch = json!(vec![logs; fit + 3]).to_string();
    let mut client = rig.client().await;
    for answer in [rig.post(&batch).await, client.ask(batch.clone()).await] {
        let answers: Vec<Value> = serde_json::from_str(&answer).unwrap();
        assert_eq!(answers.len(), fit + 3);
        for (i, answer) in answers.iter().enumerate() {
            assert_eq!(answer["id"], "x");
            assert_eq!(answer["result"].is_array(), i < fit, "{i}");
            if i >= fit {
                assert_eq!(
                    answer["error"],
                    json!({"code": -32003, "message": "response too large"})
                );
            }
        }
    }
    chain_id_still_works(&mut client).await;
}

async fn chain_id_still_works(client: &mut Client) {
    assert_eq!(client.ask(CHAIN_ID).await, CHAIN_ID_ANSWER);
}
