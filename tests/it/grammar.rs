//! PROTOCOL 1.5 to 1.7: the parameters of subscriptions, and geth's error messages.

use serde_json::{Value, json};

use crate::harness::{Client, Rig};

fn request(method: &str, params: &str) -> String {
    let params = if params.is_empty() {
        String::new()
    } else {
        format!(r#","params":{params}"#)
    };
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"{params}}}"#)
}

async fn refused(client: &mut Client, method: &str, params: &str, code: i32, message: &str) {
    let answer: Value = serde_json::from_str(&client.ask(request(method, params)).await).unwrap();
    assert_eq!(
        answer,
        json!({"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": message}}),
        "{method} {params}"
    );
}

async fn accepted(client: &mut Client, params: &str) {
    let answer: Value = serde_json::from_str(&client.ask(request("eth_subscribe", params)).await).unwrap();
    let id = answer["result"]
        .as_str()
        .unwrap_or_else(|| panic!("{params}: {answer}"));
    let digits = id.strip_prefix("0x").unwrap();
    assert!(
        (1..=32).contains(&digits.len()) && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')),
        "{id}"
    );
    assert!(digits == "0" || !digits.starts_with('0'), "{id}");
    assert_eq!(client.unsubscribe(id).await["result"], true);
}

const A: &str = "0xaAaAaAaaAaAaAaaAaAAAAAAAAaaaAaAaAaaAaaAa";
const T: &str = "0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

#[tokio::test]
async fn what_cannot_be_subscribed_to_is_refused_in_geths_words() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let too_many_1 = "too many arguments, want at most 1";
    for (params, code, message) in [
        ("", -32602, "non-array args"),
        ("null", -32602, "non-array args"),
        ("{}", -32602, "non-array args"),
        (r#""newHeads""#, -32602, "non-array args"),
        ("[]", -32602, "expected subscription name as first argument"),
        ("[1]", -32602, "expected subscription name as first argument"),
        ("[null]", -32602, "expected subscription name as first argument"),
        (r#"["foo"]"#, -32601, r#"no "foo" subscription in eth namespace"#),
        (
            r#"["NewHeads"]"#,
            -32601,
            r#"no "NewHeads" subscription in eth namespace"#,
        ),
        (r#"[""]"#, -32601, r#"no "" subscription in eth namespace"#),
        (r#"["newHeads",{}]"#, -32602, too_many_1),
        (r#"["newHeads",true]"#, -32602, too_many_1),
        (r#"["newHeads",null]"#, -32602, too_many_1),
        (r#"["syncing",{}]"#, -32602, too_many_1),
        (
            r#"["newPendingTransactions","true"]"#,
            -32602,
            "invalid argument 1: json: cannot unmarshal string into Go value of type bool",
        ),
        (
            r#"["newPendingTransactions",{}]"#,
            -32602,
            "invalid argument 1: json: cannot unmarshal object into Go value of type bool",
        ),
        (
            r#"["newPendingTransactions",1]"#,
            -32602,
            "invalid argument 1: json: cannot unmarshal number into Go value of type bool",
        ),
        (
            r#"["newPendingTransactions",true,1]"#,
            -32602,
            "too many arguments, want at most 2",
        ),
        (
            r#"["newPendingTransactions",1,1]"#,
            -32602,
            "invalid argument 1: json: cannot unmarshal number into Go value of type bool",
        ),
        (
            r#"["logs",true,1]"#,
            -32602,
            "invalid argument 1: json: cannot unmarshal bool into Go value of type filters.input",
        ),
    ] {
        refused(&mut client, "eth_subscribe", params, code, message).await;
    }
    for (method, message) in [
        ("admin_subscribe", r#"no "peerEvents" subscription in admin namespace"#),
        ("foo_subscribe", r#"no "peerEvents" subscription in foo namespace"#),
        ("foo_bar_subscribe", r#"no "peerEvents" subscription in foo namespace"#),
    ] {
        refused(&mut client, method, r#"["peerEvents"]"#, -32601, message).await;
    }
    for params in [
        r#"["newHeads"]"#,
        r#"["syncing"]"#,
        r#"["newPendingTransactions"]"#,
        r#"["newPendingTransactions",false]"#,
        r#"["newPendingTransactions",null]"#,
        r#"["newPendingTransactions",true]"#,
    ] {
        accepted(&mut client, params).await;
    }
}

#[tokio::test]
async fn log_filters_are_read_as_geth_reads_them() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let argument = |filter: String, message: &str| (filter, -32602, format!("invalid argument 1: {message}"));
    let bad_address = |text: &str, why: &str| {
        argument(
            format!(r#"{{"address":{text}}}"#),
            &format!(
                "invalid address{}{why}",
                if text.starts_with('[') { " at index 1: " } else { ": " }
            ),
        )
    };
    let many = |one: &str, count: usize| format!("[{}]", vec![format!("\"{one}\""); count].join(","));
    let mut rows = vec![
        argument(
            "true".into(),
            "json: cannot unmarshal bool into Go value of type filters.input",
        ),
        argument(
            "[]".into(),
            "json: cannot unmarshal array into Go value of type filters.input",
        ),
        argument(
            "\"x\"".into(),
            "json: cannot unmarshal string into Go value of type filters.input",
        ),
        argument(r#"{"address":[null]}"#.into(), "non-string address at index 0"),
        argument(format!(r#"{{"address":["{A}",5]}}"#), "non-string address at index 1"),
        argument(r#"{"address":5}"#.into(), "invalid addresses in query"),
        argument(r#"{"address":{}}"#.into(), "invalid addresses in query"),
        bad_address("\"\"", "empty hex string"),
        bad_address(
            "\"0x\"",
            "hex has invalid length 0 after decoding; expected 20 for address",
        ),
        bad_address("\"0x123\"", "hex string of odd length"),
        bad_address("\"zz\"", "hex string without 0x prefix"),
        bad_address("\"0xzz\"", "invalid hex string"),
        bad_address(
            "\"0xaabb\"",
            "hex has invalid length 2 after decoding; expected 20 for address",
        ),
        bad_address(
            &format!(r#"["{A}","0xaabb"]"#),
            "hex has invalid length 2 after decoding; expected 20 for address",
        ),
        argument(r#"{"topics":[5]}"#.into(), "invalid topic(s)"),
        argument(r#"{"topics":[{}]}"#.into(), "invalid topic(s)"),
        argument(format!(r#"{{"topics":[["{T}",["{T}"]]]}}"#), "invalid topic(s)"),
        argument(
            r#"{"topics":["0xaa"]}"#.into(),
            "hex has invalid length 1 after decoding; expected 32 for topic",
        ),
        argument(
            format!(r#"{{"topics":"{T}"}}"#),
            "json: cannot unmarshal string into Go struct field input.topics of type []interface {}",
        ),
        argument(r#"{"topics":[null,null,null,null,null]}"#.into(), "exceed max topics"),
        argument(format!(r#"{{"topics":[{}]}}"#, many(T, 1001)), "exceed max topics"),
        (
            format!(r#"{{"address":{}}}"#, many(A, 1001)),
            -32000,
            "exceed max addresses or topics per search position".into(),
        ),
        argument(r#"{"fromBlock":256}"#.into(), "hex string without 0x prefix"),
        argument(r#"{"fromBlock":"256"}"#.into(), "hex string without 0x prefix"),
        argument(r#"{"fromBlock":""}"#.into(), "empty hex string"),
        argument(r#"{"fromBlock":"0x"}"#.into(), "hex string \"0x\""),
        argument(r#"{"toBlock":"0x0100"}"#.into(), "hex number with leading zero digits"),
        argument(
            r#"{"blockHash":"0xaa"}"#.into(),
            "hex string has length 2, want 64 for common.Hash",
        ),
    ];
    for other in ["fromBlock", "toBlock"] {
        rows.push(argument(
            format!(r#"{{"blockHash":"{T}","{other}":"0x1"}}"#),
            "cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other",
        ));
    }
    for range in [
        r#"{"fromBlock":"0x2","toBlock":"0x1"}"#,
        r#"{"toBlock":"0x5"}"#,
        r#"{"fromBlock":"latest","toBlock":"0x5"}"#,
        r#"{"fromBlock":"safe"}"#,
        r#"{"toBlock":"finalized"}"#,
        r#"{"toBlock":"earliest"}"#,
    ] {
        rows.push((range.into(), -32602, "invalid block range params".into()));
    }
    for range in [r#"{"fromBlock":"pending"}"#, r#"{"toBlock":"pending"}"#] {
        rows.push((range.into(), -32602, "pending logs are not supported".into()));
    }
    for (filter, code, message) in rows {
        refused(
            &mut client,
            "eth_subscribe",
            &format!(r#"["logs",{filter}]"#),
            code,
            &message,
        )
        .await;
    }
    refused(
        &mut client,
        "eth_subscribe",
        r#"["logs",{},{},{}]"#,
        -32602,
        "too many arguments, want at most 2",
    )
    .await;

    accepted(&mut client, r#"["logs"]"#).await;
    for filter in [
        "null".into(),
        "{}".into(),
        r#"{"unknown":1}"#.into(),
        r#"{"address":null,"topics":null}"#.into(),
        r#"{"address":[],"topics":[]}"#.into(),
        format!(r#"{{"address":"{A}"}}"#),
        format!(r#"{{"address":"0X{}"}}"#, &A[2..]),
        format!(r#"{{"address":{}}}"#, many(A, 1000)),
        format!(r#"{{"topics":["{T}",null,[],["{T}","{T}"]]}}"#),
        format!(r#"{{"topics":[["{T}",null,"bad"]]}}"#),
        r#"{"topics":[null,null,null,null]}"#.into(),
        r#"{"fromBlock":"latest","toBlock":null}"#.into(),
        r#"{"fromBlock":"0x0","toBlock":"latest"}"#.into(),
        r#"{"fromBlock":"0x1","toBlock":"0x1"}"#.into(),
        r#"{"fromBlock":"earliest"}"#.into(),
        format!(r#"{{"blockHash":"{T}"}}"#),
        format!(r#"{{"blockHash":"{T}","fromBlock":null}}"#),
    ] as [String; 17]
    {
        accepted(&mut client, &format!(r#"["logs",{filter}]"#)).await;
    }
}

/// Case, order and repetitions in a filter make no difference either.
#[tokio::test]
async fn a_filter_selects_live_what_it_selects_in_eth_get_logs() {
    let rig = Rig::start().await;
    let mut watcher = rig.watcher().await;
    rig.nothing_else(&mut watcher).await;
    let logs: Vec<_> = rig.control.head().logs().cloned().collect();
    let (first, last) = (&logs[0], &logs[logs.len() - 1]);
    let topics = |log: &alloy_primitives::Log, n: usize| json!(log.topics()[n]);
    let filters = [
        json!({}),
        json!({"address": first.address}),
        json!({"address": [last.address, first.address, last.address]}),
        json!({"address": first.address.to_string().to_lowercase()}),
        json!({"topics": [topics(first, 0)]}),
        json!({"topics": [null, topics(first, 1)]}),
        json!({"topics": [[], [topics(last, 1), topics(first, 1)], null]}),
        json!({"topics": [topics(first, 0), null, topics(last, 2)]}),
        json!({"topics": [null, null, null]}),
        json!({"topics": [null, null, null, null]}),
        json!({"topics": [topics(first, 1)]}),
        json!({"address": "0x000000000000000000000000000000000000dEaD"}),
        json!({"fromBlock": "0x0", "toBlock": "latest", "address": first.address}),
        json!({"fromBlock": "0x6", "toBlock": "0x7"}),
    ];
    // One connection for each filter, so that their events do not mix.
    let mut clients = Vec::new();
    for filter in &filters {
        let mut client = rig.client().await;
        client.subscribe(json!(["logs", filter])).await;
        let marker = client.subscribe(json!(["newHeads"])).await;
        clients.push((client, marker));
    }
    let blocks = rig.control.mine_many(4);
    for ((client, marker), filter) in clients.iter_mut().zip(&filters) {
        for block in &blocks {
            let head = client.event().await;
            assert_eq!(
                (&head.subscription, head.json()["hash"].clone()),
                (&*marker, json!(block.hash()))
            );
            let mut asked = filter.clone();
            let outside = filter.get("toBlock") == Some(&json!("0x7")) && !(6..=7).contains(&block.number());
            asked
                .as_object_mut()
                .unwrap()
                .retain(|name, _| !name.ends_with("Block"));
            asked["blockHash"] = json!(block.hash());
            let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getLogs", "params": [asked]});
            let answer: Value = serde_json::from_str(&rig.ask_node(&request).await).unwrap();
            for log in answer["result"].as_array().unwrap().iter().filter(|_| !outside) {
                assert_eq!(client.event().await.json(), *log, "{filter}");
            }
        }
    }
    let block = rig.control.mine();
    for (client, marker) in &mut clients {
        let head = client.event().await;
        assert_eq!(
            (&head.subscription, head.json()["hash"].clone()),
            (&*marker, json!(block.hash()))
        );
    }
}

#[tokio::test]
async fn unsubscribing_is_answered_in_geths_words() {
    let rig = Rig::start().await;
    let (mut client, mut other) = (rig.client().await, rig.client().await);
    let mine = client.subscribe(json!(["newHeads"])).await;
    let theirs = other.subscribe(json!(["newHeads"])).await;
    let not_found = "subscription not found";
    let type_error =
        |kind: &str| format!("invalid argument 0: json: cannot unmarshal {kind} into Go value of type rpc.ID");
    for (params, code, message) in [
        ("", -32602, "missing value for required argument 0".into()),
        ("[]", -32602, "missing value for required argument 0".into()),
        ("{}", -32602, "non-array args".into()),
        ("[null]", -32602, "missing value for required argument 0".into()),
        ("[1,2]", -32602, type_error("number")),
        ("[1]", -32602, type_error("number")),
        ("[true]", -32602, type_error("bool")),
        ("[{}]", -32602, type_error("object")),
        ("[[]]", -32602, type_error("array")),
        (r#"["0x1"]"#, -32000, not_found.to_owned()),
        (r#"["nonsense"]"#, -32000, not_found.to_owned()),
        (&format!(r#"["{theirs}"]"#), -32000, not_found.to_owned()),
        (
            &format!(r#"["{mine}",1]"#),
            -32602,
            "too many arguments, want at most 1".to_owned(),
        ),
    ] {
        refused(&mut client, "eth_unsubscribe", params, code, &message).await;
    }
    assert_eq!(client.unsubscribe(&mine).await["result"], true);
    refused(
        &mut client,
        "eth_unsubscribe",
        &format!(r#"["{mine}"]"#),
        -32000,
        not_found,
    )
    .await;
    // geth unsubscribes by any method name with this suffix.
    let again = client.subscribe(json!(["newHeads"])).await;
    assert_eq!(client.call("foo_unsubscribe", json!([again])).await["result"], true);
    assert_eq!(other.unsubscribe(&theirs).await["result"], true);
}

#[tokio::test]
async fn http_has_no_notifications() {
    let rig = Rig::start().await;
    let error = |code: i32, message: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{code},"message":"{message}"}}}}"#)
    };
    for (method, params) in [
        ("eth_subscribe", r#"["newHeads"]"#),
        ("eth_subscribe", "{}"),
        ("foo_subscribe", ""),
    ] {
        assert_eq!(
            rig.post(request(method, params)).await,
            error(-32601, "notifications not supported")
        );
    }
    assert_eq!(
        rig.post(request("eth_unsubscribe", r#"["0x1"]"#)).await,
        error(-32000, "subscription not found")
    );
}
