//! Ends of a tail: bounds, exit codes, and what a pipe and a terminal get.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use futures_util::{SinkExt, StreamExt};
use headwater::door::ApiKey;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::process::{Tail, received};
use super::relay::Relay;
use super::{BOTH, Stage};
use crate::cli::headwater;
use crate::harness::{Proxy, adopted, eventually, node, within};
use crate::keys::allow;
use crate::scripted::{Answer, Mine, Scripted};

#[tokio::test]
async fn a_number_of_lines_and_a_last_block_end_it() {
    for at in BOTH {
        let stage = Stage::before(at).await;
        let blocks = stage.control().mine_many(5);
        stage.rig.settled(stage.control()).await;
        let (first, last) = (blocks[1].number(), blocks[3].number());
        let range = format!("--json --from {first} --until-block {last:#x}");
        let story = |word: &str, output: &[String]| {
            let received: Vec<String> = output
                .iter()
                .map(|line| received(&serde_json::from_str(line).unwrap()))
                .collect();
            let all = adopted(&blocks[1..4]);
            let expected: Vec<String> = all.into_iter().filter(|line| line.starts_with(word)).collect();
            assert_eq!(received, expected);
        };
        for (kinds, word) in [("heads logs", ""), ("heads", "head"), ("logs", "log")] {
            let (output, errors, code) = Tail::start(&stage.relay.url(), &format!("{kinds} {range}"))
                .ended()
                .await;
            assert_eq!((code, errors.as_slice()), (0, &[][..]), "{kinds}");
            story(word, &output);
        }
        // The newest block is complete without a next one.
        let head = stage.control().head().number();
        let until_head = format!("logs --json --from {head} --until-block {head}");
        let (output, _, code) = Tail::start(&stage.relay.url(), &until_head).ended().await;
        assert_eq!((code, output.len()), (0, 6));
        let counted = format!("heads logs {range} --count 9");
        let (output, _, code) = Tail::start(&stage.relay.url(), &counted).ended().await;
        assert_eq!((code, output.len()), (0, 9));
        // A block that was there before the tail.
        let (output, errors, code) = Tail::start(&stage.relay.url(), "heads --until-block 2").ended().await;
        assert_eq!((code, output.len()), (0, 0));
        assert!(
            errors[0].contains("block 2 is past") && errors[0].contains("--from"),
            "{errors:?}"
        );
    }
}

#[tokio::test]
async fn receipts_and_pending_transactions() {
    for at in BOTH {
        let stage = Stage::before(at).await;
        let blocks = stage.control().mine_many(3);
        stage.rig.settled(stage.control()).await;
        let first = blocks[0].number();
        let range = format!("receipts --json --from {first} --until-block {}", first + 2);
        let (output, _, code) = Tail::start(&stage.relay.url(), &range).ended().await;
        let receipts: Vec<Value> = output.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((code, receipts.len()), (0, 9));
        let sender = receipts[0]["from"].as_str().unwrap();
        let (output, _, _) = Tail::start(&stage.relay.url(), &format!("{range} --address {sender}"))
            .ended()
            .await;
        let own = receipts
            .iter()
            .filter(|receipt| receipt["from"] == sender || receipt["to"] == sender)
            .count();
        assert!(output.len() == own && own > 0, "{output:?}");
        let tail = Tail::start(&stage.relay.url(), "pending --json --count 2");
        let adding = async {
            loop {
                stage.control().add_pending();
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let (output, _, code) = tokio::select! {
            end = tail.ended() => end,
            () = adding => unreachable!("it has no end"),
        };
        assert_eq!((code, output.len()), (0, 2));
        let pending: Value = serde_json::from_str(&output[0]).unwrap();
        assert!(
            pending["kind"] == "pending" && pending["hash"].as_str().unwrap().len() == 66,
            "{pending}"
        );
    }
}

#[tokio::test]
async fn logs_are_filtered_and_decoded() {
    const SIGNATURE: &str = "Transfer(address indexed from, address indexed to, uint256 value)";
    for at in BOTH {
        let stage = Stage::before(at).await;
        let block = stage.control().mine();
        stage.rig.settled(stage.control()).await;
        let (url, number) = (stage.relay.url(), block.number().to_string());
        let range = ["--from", &number, "--until-block", &number];
        let run = async |options: &[&str]| {
            let (output, errors, code) = Tail::with(&[&["tail", &url, "logs"], &range[..], options].concat(), &[])
                .ended()
                .await;
            assert_eq!((code, errors.as_slice()), (0, &[][..]));
            output
        };
        let all = run(&["--json"]).await;
        let transfers = run(&["--json", "--event", SIGNATURE]).await;
        assert!(
            !transfers.is_empty() && transfers.len() < all.len(),
            "{} of {}",
            transfers.len(),
            all.len()
        );
        let log: Value = serde_json::from_str(&transfers[0]).unwrap();
        assert_eq!(log["event"], "Transfer(address,address,uint256)");
        let padded = |name: &str| {
            format!(
                "0x{:0>64}",
                log["args"][name].as_str().unwrap().trim_start_matches("0x")
            )
        };
        assert_eq!(
            (&log["topics"][1], &log["topics"][2]),
            (&json!(padded("from")), &json!(padded("to")))
        );
        let data = log["data"].as_str().unwrap();
        let value = u128::from_str_radix(&data[data.len().min(66) - 32..data.len().min(66)], 16).unwrap();
        assert_eq!(log["args"]["value"], value.to_string());
        // By contract, and by an address in the position after the event.
        let (contract, from) = (log["address"].as_str().unwrap(), log["args"]["from"].as_str().unwrap());
        let own = |line: &String| {
            let log: Value = serde_json::from_str(line).unwrap();
            (log["address"] == contract) && (log["args"]["from"] == from)
        };
        let few = run(&["--json", "--event", SIGNATURE, "--address", contract, "--topic", from]).await;
        assert_eq!(
            few,
            transfers.iter().filter(|line| own(line)).cloned().collect::<Vec<_>>()
        );
        let text = run(&["--event", SIGNATURE]).await;
        assert!(text[0].contains(&format!("Transfer(from={from}, to=")), "{}", text[0]);
        let mut abi = tempfile::NamedTempFile::new().unwrap();
        let content = json!({"abi": [{"type": "event", "name": "Transfer", "anonymous": false, "inputs": [
            {"name": "from", "type": "address", "indexed": true}, {"name": "to", "type": "address", "indexed": true},
            {"name": "value", "type": "uint256", "indexed": false}]}]});
        std::io::Write::write_all(&mut abi, content.to_string().as_bytes()).unwrap();
        let abi = abi.path().to_str().unwrap();
        assert_eq!(run(&["--abi", abi, "--event", "Transfer"]).await, text);
        // Without the name, nothing is filtered, and what the file has is decoded.
        let decoded = run(&["--abi", abi, "--json"]).await;
        assert_eq!(
            decoded
                .iter()
                .filter(|line| line.contains("\"event\":\"Transfer"))
                .count(),
            transfers.len()
        );
        assert_eq!(decoded.len(), all.len());
    }
}

#[tokio::test]
async fn troubles_have_exit_codes_and_one_line() {
    let check = async |tail: Tail, code: i32, words: &[&str]| {
        let (exit, line) = tail.fails().await;
        assert_eq!(exit, code, "{line}");
        for word in words {
            assert!(
                line.starts_with("headwater: ") && line.contains(word),
                "{line:?} lacks {word:?}"
            );
        }
    };
    // Nobody listens.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("ws://{}", taken.local_addr().unwrap());
    drop(taken);
    check(
        Tail::start(&nobody, "heads"),
        69,
        &["cannot connect to", "is headwater or a node running there?"],
    )
    .await;
    for (options, words) in [
        ("--topic 0x12", &["--topic", "64 hex digits"][..]),
        ("hedas", &["hedas", "heads, logs, pending, receipts"]),
        ("heads --event A()", &["--event", "add the kind logs"]),
        ("logs --abi /does/not/exist", &["/does/not/exist"]),
    ] {
        check(Tail::start(&nobody, options), 64, words).await;
    }
    // A key is asked for; the URL in the message has none.
    let devnet = node().await;
    let key = ApiKey::random();
    let closed = Proxy::start(&[devnet.ws_url()], |config| {
        allow(config, "alice", &key, "");
        config.auth.required = true;
    })
    .await;
    let with_key = format!("ws://{}/secret", closed.address);
    let (code, line) = Tail::start(&with_key, "heads").fails().await;
    assert_eq!(code, 77, "{line}");
    assert!(line.contains("401") && !line.contains("secret"), "{line}");
    closed.ready().await;
    let header = format!("Authorization: Bearer {}", key.reveal());
    let url = format!("ws://{}", closed.address);
    let with_header = [
        "tail", &url, "heads", "--from", "1", "--count", "1", "--header", &header,
    ];
    let (output, errors, code) = Tail::with(&with_header, &[]).ended().await;
    assert_eq!((code, output.len()), (0, 1), "{errors:?}");
    // Kinds that the node does not serve, and blocks that it does not have.
    let scripted = Scripted::start().await;
    scripted.mine_many(3, 1);
    scripted.answer("eth_getBlockReceipts", |_| {
        Answer::error(
            -32601,
            "the method eth_getBlockReceipts does not exist/is not available",
        )
    });
    check(
        Tail::start(&scripted.ws_url(), "receipts --from 1"),
        77,
        &["eth_getBlockReceipts", "-32601"],
    )
    .await;
    scripted.answer("eth_getBlockByNumber", |ask| match ask.params[0].as_str() {
        Some("0x0" | "0x1") => Value::Null.into(),
        _ => ask.usual(),
    });
    check(
        Tail::start(&scripted.ws_url(), "heads --from 2"),
        77,
        &["no block 1", "archive"],
    )
    .await;
    scripted.answer_as_usual("eth_getBlockByNumber");
    // A disconnect that is not waited out.
    let relay = Relay::start(scripted.ws_url().trim_start_matches("ws://").parse().unwrap()).await;
    let mut once = Tail::start(&relay.url(), "heads --no-retry --from 3");
    once.line().await;
    relay.cut();
    check(once, 75, &["connection"]).await;
    // Another chain behind the same address.
    let mut moved = Tail::start(&relay.url(), "heads --from 3");
    moved.line().await;
    scripted.answer("eth_chainId", |_| json!("0x5").into());
    relay.cut();
    check(moved, 65, &["was chain 1337 and is chain 5 now"]).await;
}

#[tokio::test]
async fn words_of_an_endpoint_reach_the_terminal_as_escapes() {
    const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{9b}2J\r\n\u{202e}";
    let clean = |text: &str| !text.contains(|c: char| c.is_control() || matches!(c, '\u{202e}'));
    let scripted = Scripted::start().await;
    scripted.answer("eth_chainId", |_| Answer::error(-32000, HOSTILE));
    let (output, errors, code) = Tail::start(&scripted.ws_url(), "heads").ended().await;
    assert_eq!((code, output.len(), errors.len()), (77, 0, 1));
    assert!(clean(&errors[0]) && errors[0].contains("owned"), "{errors:?}");
    scripted.answer("eth_chainId", |_| json!(HOSTILE).into());
    let (_, errors, code) = Tail::start(&scripted.ws_url(), "heads").ended().await;
    assert_eq!((code, errors.len()), (76, 1));
    assert!(clean(&errors[0]), "{errors:?}");
    scripted.answer_as_usual("eth_chainId");
    // A string in a log, which anyone can put there.
    let bytes: String = HOSTILE.bytes().map(|byte| format!("{byte:02x}")).collect();
    let data = format!("0x{:064x}{:064x}{bytes:0<64}", 32, HOSTILE.len());
    let topic = alloy_primitives::keccak256("Note(string)");
    scripted.mine(Mine::logs(1).edit_logs(move |_, log| {
        log["topics"] = json!([topic]);
        log["data"] = json!(data);
    }));
    for json in ["", "--json"] {
        let options = format!("logs --event Note(string) --from 1 --count 1 {json}");
        let (output, _, code) = Tail::start(&scripted.ws_url(), &options).ended().await;
        assert_eq!((code, output.len()), (0, 1));
        assert!(clean(&output[0]) && output[0].contains("owned"), "{output:?}");
    }
    // A reason for closing, and what is no JSON-RPC at all.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let server = async {
        for text in [HOSTILE, "[1,2", "{\"jsonrpc\":"] {
            let mut socket = tokio_tungstenite::accept_async(listener.accept().await.unwrap().0)
                .await
                .unwrap();
            socket.next().await.unwrap().unwrap();
            socket.send(text.into()).await.unwrap();
            let _ = socket.next().await;
        }
    };
    let tails = async {
        for _ in 0..3 {
            let (output, errors, code) = Tail::start(&url, "heads").ended().await;
            assert_eq!((code, output.len(), errors.len()), (76, 0, 1));
            assert!(
                clean(&errors[0]) && errors[0].contains("is this an Ethereum node"),
                "{errors:?}"
            );
        }
    };
    within("three answers", async { tokio::join!(server, tails) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_whose_reader_leaves_ends_it() {
    for at in BOTH {
        let stage = Stage::before(at).await;
        let url = stage.relay.url();
        let mut child = headwater(&["tail", &url, "logs", "--from", "1"], &[])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.starts_with("log"), "{line}");
        // No event follows whose line could not be written.
        drop(output);
        eventually("the end", async || child.try_wait().unwrap().is_some()).await;
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[tokio::test]
async fn an_output_that_takes_nothing_is_said() {
    let scripted = Scripted::start().await;
    scripted.mine_many(1, 1);
    let arguments = ["tail", &scripted.ws_url(), "heads", "--from", "1"];
    let mut command = headwater(&arguments, &[]);
    command.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let line = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{line}");
    assert_eq!(
        line,
        "headwater: cannot write to standard output: No space left on device (os error 28)\n"
    );
}

#[tokio::test]
async fn colours_are_for_terminals_and_for_those_who_ask() {
    let scripted = Scripted::start().await;
    scripted.mine_many(1, 1);
    let url = scripted.ws_url();
    let arguments = ["tail", &url, "heads", "logs", "--from", "1", "--until-block", "1"];
    for (variables, is_coloured) in [
        (&[][..], false),
        (&[("CLICOLOR_FORCE", "1")], true),
        (&[("NO_COLOR", "1")], false),
    ] {
        let (output, _, code) = Tail::with(&arguments, variables).ended().await;
        assert_eq!((code, output.len()), (0, 2));
        assert!(
            output.iter().all(|line| line.contains('\u{1b}') == is_coloured),
            "{variables:?} {output:?}"
        );
    }
}
