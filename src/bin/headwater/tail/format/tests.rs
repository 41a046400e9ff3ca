//! One line of each kind, as text, as JSON and in colour.

use expect_test::{Expect, expect};
use serde_json::json;

use super::*;
use crate::tail::json;

const HASH: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";
const FROM: &str = "0x2222222222222222222222222222222222222222";
const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

fn header(edit: serde_json::Value) -> Event {
    let mut head = json!({"number": "0x12d687", "hash": HASH, "parentHash": HASH, "timestamp": "0x6553f100",
        "gasUsed": "0x1c9c38", "gasLimit": "0x1c9c380", "baseFeePerGas": "0x560de0700"});
    for (name, value) in edit.as_object().unwrap() {
        head[name] = value.clone();
    }
    Event::Head(serde_json::from_str(&head.to_string()).unwrap())
}

fn transfer(text: &str) -> (Event, Events) {
    let word = |number: u8| format!("{number:064x}");
    let string: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let data = format!("0x{}{}{string:0<64}", word(32), word(text.len() as u8));
    let topic = alloy_primitives::keccak256("Note(bytes32,string)");
    let log = json!({"blockNumber": "0x5", "blockHash": HASH, "transactionHash": HASH, "transactionIndex": "0x0",
        "logIndex": "0xc", "address": FROM, "topics": [topic, HASH], "data": data, "removed": false});
    let flag = "Note(bytes32 indexed tag, string text)".to_owned();
    let (events, _) = Events::new(&[], &[flag]).unwrap();
    (Event::Log(serde_json::from_str(&log.to_string()).unwrap()), events)
}

/// Checks the line without colours.
#[track_caller]
fn check(event: &Event, removed: bool, events: &Events, expect: Expect) {
    let line = line(event, removed, events);
    expect.assert_eq(&anstream::adapter::strip_str(&line).to_string());
}

#[test]
fn heads() {
    let none = Events::default();
    check(
        &header(json!({})),
        false,
        &none,
        expect![
            "head      1234567  0x1111111111111111111111111111111111111111111111111111111111111111  2023-11-14T22:13:20Z  gas  6%  base fee 23.1 gwei"
        ],
    );
    check(
        &header(json!({})),
        true,
        &none,
        expect![
            "head      1234567  0x1111111111111111111111111111111111111111111111111111111111111111  2023-11-14T22:13:20Z  gas  6%  base fee 23.1 gwei  removed"
        ],
    );
    let odd = json!({"timestamp": "0xffffffffffffffff", "gasLimit": "0x0", "baseFeePerGas": null});
    check(
        &header(odd),
        false,
        &none,
        expect!["head      1234567  0x1111111111111111111111111111111111111111111111111111111111111111"],
    );
    expect![[r#"{"kind":"head","removed":false,"number":1234567,"hash":"0x1111111111111111111111111111111111111111111111111111111111111111","parentHash":"0x1111111111111111111111111111111111111111111111111111111111111111","timestamp":1700000000,"gasUsed":1875000,"gasLimit":30000000,"baseFeePerGas":"23100000000"}"#]].assert_eq(&json::line(&header(json!({})), false, &none));
}

#[test]
fn logs() {
    let (log, events) = transfer("hello");
    check(
        &log,
        false,
        &events,
        expect![[
            r#"log             5  #12  0x2222222222222222222222222222222222222222  Note(tag=0x1111111111111111111111111111111111111111111111111111111111111111, text="hello")  tx 0x1111111111111111111111111111111111111111111111111111111111111111"#
        ]],
    );
    check(
        &log,
        true,
        &events,
        expect![[
            r#"log             5  #12  0x2222222222222222222222222222222222222222  Note(tag=0x1111111111111111111111111111111111111111111111111111111111111111, text="hello")  tx 0x1111111111111111111111111111111111111111111111111111111111111111  removed"#
        ]],
    );
    check(
        &log,
        false,
        &Events::default(),
        expect![
            "log             5  #12  0x2222222222222222222222222222222222222222  0x65b360985453687445a7c456f6bbedbff9af3294dcd65b0fc5cc5140d337266d 0x1111111111111111111111111111111111111111111111111111111111111111 data 0x00000000000000000000000000000000000000000000000000000000000000200000000000000000000000000000000000000000000000000000000000000005…(96 bytes)  tx 0x1111111111111111111111111111111111111111111111111111111111111111"
        ],
    );
    expect![[r#"{"kind":"log","removed":true,"blockNumber":5,"blockHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionIndex":0,"logIndex":12,"address":"0x2222222222222222222222222222222222222222","topics":["0x65b360985453687445a7c456f6bbedbff9af3294dcd65b0fc5cc5140d337266d","0x1111111111111111111111111111111111111111111111111111111111111111"],"data":"0x0000000000000000000000000000000000000000000000000000000000000020000000000000000000000000000000000000000000000000000000000000000568656c6c6f000000000000000000000000000000000000000000000000000000","event":"Note(bytes32,string)","args":{"tag":"0x1111111111111111111111111111111111111111111111111111111111111111","text":"hello"}}"#]].assert_eq(&json::line(&log, true, &events));
    expect![[r#"{"kind":"log","removed":false,"blockNumber":5,"blockHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionIndex":0,"logIndex":12,"address":"0x2222222222222222222222222222222222222222","topics":["0x65b360985453687445a7c456f6bbedbff9af3294dcd65b0fc5cc5140d337266d","0x1111111111111111111111111111111111111111111111111111111111111111"],"data":"0x0000000000000000000000000000000000000000000000000000000000000020000000000000000000000000000000000000000000000000000000000000000568656c6c6f000000000000000000000000000000000000000000000000000000","event":null,"args":null}"#]].assert_eq(&json::line(&log, false, &Events::default()));
}

/// Text that anyone can put into a log: a terminal must not see its control characters.
#[test]
fn hostile_text_is_escaped() {
    let (log, events) = transfer("\u{1b}]0;own\u{7}\u{202e}\u{9b}2J\r\n");
    for line in [line(&log, false, &events), json::line(&log, false, &events)] {
        let stripped = anstream::adapter::strip_str(&line).to_string();
        assert!(
            !stripped.contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{stripped:?}"
        );
    }
    check(
        &log,
        false,
        &events,
        expect![[
            r#"log             5  #12  0x2222222222222222222222222222222222222222  Note(tag=0x1111111111111111111111111111111111111111111111111111111111111111, text="\u{1b}]0;own\u{7}\u{202e}\u{9b}2J\u{d}\n")  tx 0x1111111111111111111111111111111111111111111111111111111111111111"#
        ]],
    );
    expect![[r#"{"kind":"log","removed":false,"blockNumber":5,"blockHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionIndex":0,"logIndex":12,"address":"0x2222222222222222222222222222222222222222","topics":["0x65b360985453687445a7c456f6bbedbff9af3294dcd65b0fc5cc5140d337266d","0x1111111111111111111111111111111111111111111111111111111111111111"],"data":"0x000000000000000000000000000000000000000000000000000000000000002000000000000000000000000000000000000000000000000000000000000000111b5d303b6f776e07e280aec29b324a0d0a000000000000000000000000000000","event":"Note(bytes32,string)","args":{"tag":"0x1111111111111111111111111111111111111111111111111111111111111111","text":"\u001b]0;own\u0007\u202e\u009b2J\r\n"}}"#]].assert_eq(&json::line(&log, false, &events));
}

#[test]
fn receipts_and_pending_transactions() {
    let none = Events::default();
    for (edit, expect, as_json) in [
        (
            json!({}),
            expect![
                "receipt         5  0x1111111111111111111111111111111111111111111111111111111111111111  ok      0x2222222222222222222222222222222222222222 > 0x2222222222222222222222222222222222222222  gas 21000  2 logs"
            ],
            expect![[
                r#"{"kind":"receipt","removed":false,"blockNumber":5,"blockHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionIndex":1,"status":true,"from":"0x2222222222222222222222222222222222222222","to":"0x2222222222222222222222222222222222222222","contractAddress":null,"gasUsed":21000,"effectiveGasPrice":"1000000000","logs":2}"#
            ]],
        ),
        (
            json!({"status": "0x0"}),
            expect![
                "receipt         5  0x1111111111111111111111111111111111111111111111111111111111111111  failed  0x2222222222222222222222222222222222222222 > 0x2222222222222222222222222222222222222222  gas 21000  2 logs"
            ],
            expect![[
                r#"{"kind":"receipt","removed":false,"blockNumber":5,"blockHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionIndex":1,"status":false,"from":"0x2222222222222222222222222222222222222222","to":"0x2222222222222222222222222222222222222222","contractAddress":null,"gasUsed":21000,"effectiveGasPrice":"1000000000","logs":2}"#
            ]],
        ),
        (
            json!({"status": null, "to": null, "contractAddress": FROM}),
            expect![
                "receipt         5  0x1111111111111111111111111111111111111111111111111111111111111111  -       0x2222222222222222222222222222222222222222 creates 0x2222222222222222222222222222222222222222  gas 21000  2 logs"
            ],
            expect![[
                r#"{"kind":"receipt","removed":false,"blockNumber":5,"blockHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionHash":"0x1111111111111111111111111111111111111111111111111111111111111111","transactionIndex":1,"status":null,"from":"0x2222222222222222222222222222222222222222","to":null,"contractAddress":"0x2222222222222222222222222222222222222222","gasUsed":21000,"effectiveGasPrice":"1000000000","logs":2}"#
            ]],
        ),
    ] {
        let mut receipt = json!({"blockNumber": "0x5", "blockHash": HASH, "transactionHash": HASH,
            "transactionIndex": "0x1", "status": "0x1", "from": FROM, "to": FROM, "contractAddress": null,
            "gasUsed": "0x5208", "effectiveGasPrice": "0x3b9aca00", "logs": [{}, {}]});
        for (name, value) in edit.as_object().unwrap() {
            receipt[name] = value.clone();
        }
        let receipt = Event::Receipt(serde_json::from_str(&receipt.to_string()).unwrap());
        check(&receipt, false, &none, expect);
        as_json.assert_eq(&json::line(&receipt, false, &none));
    }
    let pending = Event::Pending(HASH.parse().unwrap());
    check(
        &pending,
        false,
        &none,
        expect!["pending            0x1111111111111111111111111111111111111111111111111111111111111111"],
    );
    expect![[r#"{"kind":"pending","hash":"0x1111111111111111111111111111111111111111111111111111111111111111"}"#]]
        .assert_eq(&json::line(&pending, false, &none));
}

#[test]
fn removed_lines_are_struck_out() {
    let (log, events) = transfer("hello");
    let (kept, removed) = (line(&log, false, &events), line(&log, true, &events));
    let strikes = |line: &str| line.matches("\u{1b}[9m").count();
    assert_eq!(strikes(&kept), 0);
    assert!(strikes(&removed) > 3 && removed.contains("removed"), "{removed:?}");
}

#[test]
fn wei_are_shown_as_gwei() {
    for (wei, expect) in [
        (0_u64, "0"),
        (1, "0"),
        (1_000_000, "0.001"),
        (23_100_000_000, "23.1"),
        (7_000_000_000, "7"),
    ] {
        assert_eq!(gwei(U256::from(wei)), expect);
    }
}

#[test]
fn what_is_not_an_event_is_refused() {
    let log = json!({"blockNumber": "0x5", "blockHash": HASH, "transactionHash": HASH, "transactionIndex": "0x0",
        "logIndex": "0xc", "address": FROM, "topics": [TRANSFER], "data": "0x"});
    for (name, wrong) in [
        ("blockHash", json!(null)),
        ("blockHash", json!("0x12")),
        ("blockNumber", json!("0xffffffffffffffff")),
        ("address", json!("\u{1b}[2J")),
        ("topics", json!("none")),
        ("data", json!("0x1")),
    ] {
        let mut log = log.clone();
        log[name] = wrong;
        assert!(serde_json::from_str::<Log>(&log.to_string()).is_err(), "{log}");
    }
    assert!(serde_json::from_str::<Log>(&log.to_string()).is_ok());
}
