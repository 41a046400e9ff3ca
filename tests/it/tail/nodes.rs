//! Nodes with manners of their own.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use headwater::devnet::{self, Devnet};
use serde_json::{Value, json};

use super::process::{Tail, received};
use super::{At, Stage};
use crate::harness::{Proxy, adopted, eventually};
use crate::scripted::{Answer, Scripted};
use crate::wire::http;

/// Announcements that are not the block's header, come twice, late or never.
#[tokio::test]
async fn announcements_only_wake_it() {
    let stage = Stage::before(At::Node).await;
    let mut tail = stage.tail().await;
    stage.control().set_faults(|faults| faults.announce_other_hash = true);
    tail.expect(&adopted(&stage.control().mine_many(3))).await;
    stage.control().set_faults(|faults| {
        faults.announce_other_hash = false;
        faults.duplicate_heads = true;
        faults.skip_heads = 1;
        faults.late_heads = 1;
    });
    tail.expect(&adopted(&stage.control().mine_many(4))).await;
    stage.control().set_faults(|faults| {
        faults.announce_tip_only_after_reorg = true;
        faults.send_removed_logs = false;
    });
    let reorg = stage.control().reorg(2, 4).unwrap();
    tail.expect(&super::reorged(At::Node, &reorg)).await;
}

#[tokio::test]
async fn numbers_without_a_block_are_passed_over() {
    let node = Devnet::start(devnet::Config {
        holes: 2,
        ..devnet::Config::manual()
    })
    .await
    .unwrap();
    let control = node.handle();
    let first = control.mine();
    // There may be no block of the number before.
    let mut tail = Tail::start(&node.ws_url(), &format!("heads logs --json --from {}", first.number()));
    tail.expect(&adopted(&[first])).await;
    for _ in 0..4 {
        tail.expect(&adopted(&control.mine_many(3))).await;
        let reorg = control.reorg(2, 3).unwrap();
        tail.expect(&super::reorged(At::Node, &reorg)).await;
    }
}

/// A range of blocks is read at once where only logs are wanted, and in parts where the provider refuses, also if the
/// connection breaks in between.
#[tokio::test]
async fn old_logs_are_read_by_ranges() {
    let scripted = Scripted::start().await;
    scripted.mine_many(900, 1);
    scripted.answer("eth_getLogs", |ask| {
        let number = |name: &str| {
            let text = ask.params[0][name].as_str().unwrap_or_default();
            u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
        };
        match (number("fromBlock"), number("toBlock")) {
            (Some(_), Some(_)) if ask.count == 9 => Answer::Close,
            (Some(from), Some(to)) if to - from >= 100 => Answer::error(-32000, "query exceeds max block range 100"),
            _ => ask.usual(),
        }
    });
    let mut tail = Tail::start(&scripted.ws_url(), "logs --json --from 1");
    for number in 1..=900 {
        let log = tail.json().await;
        assert_eq!(log["blockNumber"], number);
    }
    let ranges = scripted
        .params("eth_getLogs")
        .iter()
        .filter(|params| params[0]["fromBlock"].is_string())
        .count();
    assert!((8..60).contains(&ranges), "{ranges} ranges");
    scripted.mine_many(1, 1);
    assert_eq!(tail.json().await["blockNumber"], 901);
}

/// Nodes keep the genesis block, and say in many ways that they have no others so old, or do not say it.
#[tokio::test]
async fn a_start_below_what_the_node_keeps_is_refused() {
    const KEPT: u64 = 180;
    let scripted = Scripted::start().await;
    scripted.mine_many(360, 1);
    let proxy = scripted
        .proxy(|config| {
            config.history.blocks = 4;
            config.history.max_replay = 6;
        })
        .await;
    scripted.settled(&proxy).await;
    let number = |name: &Value| u64::from_str_radix(name.as_str()?.strip_prefix("0x")?, 16).ok();
    let errors = [
        Some((4444, "pruned history unavailable")),
        Some((-32000, "old data not available due to Pruning")),
        Some((-32603, "height 1 is not available, lowest height is 180")),
        Some((-32000, "block not found")),
        None,
    ];
    for error in errors {
        let answer = move || error.map_or_else(|| Value::Null.into(), |(code, text)| Answer::error(code, text));
        scripted.answer("eth_getBlockByNumber", move |ask| match number(&ask.params[0]) {
            Some(1..KEPT) => answer(),
            _ => ask.usual(),
        });
        scripted.answer("eth_getLogs", move |ask| match number(&ask.params[0]["fromBlock"]) {
            Some(0..KEPT) if error.is_some() => answer(),
            _ => ask.usual(),
        });
        for url in [scripted.ws_url(), format!("ws://{}", proxy.address)] {
            for (from, lines) in [(0, 1), (1, 0), (2, 0)] {
                let heads = Tail::start(&url, &format!("heads --from {from}"));
                let (output, errors, code) = heads.ended().await;
                assert_eq!((code, output.len()), (77, lines), "{error:?} {url} {from} {errors:?}");
                assert!(errors[0].contains("archive node"), "{errors:?}");
            }
        }
        // Just above, all is there.
        let kept = Tail::start(&scripted.ws_url(), &format!("heads --from {} --count 2", KEPT + 1));
        assert_eq!(kept.ended().await.2, 0);
        if error.is_some() {
            let (code, line) = Tail::start(&scripted.ws_url(), "logs --from 1").fails().await;
            assert_eq!(code, 77, "{line}");
        }
    }
    // Blocks are kept, and their contents are not.
    scripted.answer_as_usual("eth_getBlockByNumber");
    scripted.answer("eth_getBlockReceipts", |_| {
        Answer::error(4444, "pruned history unavailable")
    });
    let (code, line) = Tail::start(&scripted.ws_url(), "receipts --from 1").fails().await;
    assert!(code == 77 && line.contains("archive node"), "{code} {line}");
}

/// Below what a headwater can resume, blocks are read by calls; above it, the subscription takes over.
#[tokio::test]
async fn a_start_below_what_can_be_resumed_is_read_by_calls() {
    let node = Devnet::start(devnet::Config::manual()).await.unwrap();
    let control = node.handle();
    let blocks = control.mine_many(40);
    let proxy = Proxy::start(&[node.ws_url()], |config| {
        config.history.blocks = 4;
        config.history.max_replay = 6;
    })
    .await;
    proxy.settled(&control).await;
    let url = format!("ws://{}", proxy.address);
    for options in ["heads logs", "logs"] {
        let mut tail = Tail::start(&url, &format!("{options} --json --from {}", blocks[0].number()));
        let story = |blocks: &[_]| -> Vec<String> {
            let all = adopted(blocks);
            all.into_iter()
                .filter(|line| options.contains("heads") || line.starts_with("log"))
                .collect()
        };
        tail.expect(&story(&blocks)).await;
        tail.expect(&story(&control.with_chain(|chain| {
            let next = blocks[39].number() + 1;
            (next..=chain.head().number())
                .filter_map(|number| chain.block_at(number).cloned())
                .collect::<Vec<_>>()
        })))
        .await;
        tail.expect(&story(&[control.mine()])).await;
    }
}

/// A node whose log answers lag behind its heads, or that stops in between.
#[tokio::test]
async fn a_block_is_told_when_its_contents_are_there() {
    let scripted = Scripted::start().await;
    scripted.mine_many(2, 2);
    let mut tail = Tail::start(&scripted.ws_url(), "heads logs --json --from 1");
    for line in [scripted.block(1).unwrap(), scripted.block(2).unwrap()]
        .iter()
        .flat_map(|block| block.adopted())
    {
        assert_eq!(received(&tail.json().await), line);
    }
    scripted.answer("eth_getLogs", |ask| match ask.count % 3 {
        0 => Answer::error(-32000, "unknown block"),
        1 => Answer::Close,
        _ => ask.usual(),
    });
    for block in scripted.mine_many(4, 2) {
        for line in block.adopted() {
            assert_eq!(received(&tail.json().await), line);
        }
    }
}

/// Notifications in one array, as balancers send them, and messages of a node's own while a call is open.
#[tokio::test]
async fn every_member_of_an_array_is_told_and_other_messages_answer_nothing() {
    let scripted = Scripted::start().await;
    scripted.mine_many(1, 0);
    let mut tail = Tail::start(&scripted.ws_url(), "pending heads --json --from 1");
    assert_eq!(tail.json().await["number"], 1);
    let hashes: Vec<String> = (1..=3).map(|byte| format!("0x{byte:064x}")).collect();
    scripted.notify("newPendingTransactions", |id| {
        let member = |hash| json!({"jsonrpc": "2.0", "method": "eth_subscription", "params": {"subscription": id, "result": hash}});
        Value::from_iter(hashes.iter().map(member)).to_string()
    });
    for hash in &hashes {
        assert_eq!(tail.json().await["hash"], **hash);
    }
    scripted.hold("eth_getBlockByNumber");
    let calls = scripted.calls("eth_getBlockByNumber");
    scripted.mine_many(1, 0);
    eventually("a call", async || scripted.calls("eth_getBlockByNumber") > calls).await;
    scripted.send_all(r#"{"jsonrpc":"2.0","method":"hello"}"#);
    scripted.send_all(r#"[{"jsonrpc":"2.0","method":"hello","params":["world"]},{}]"#);
    scripted.release("eth_getBlockByNumber");
    assert_eq!(tail.json().await["number"], 2);
}

/// A headwater is recognised by what it offers, and not by its words, which others may use.
#[tokio::test]
async fn a_node_whose_errors_read_like_headwaters_is_a_node() {
    let scripted = Scripted::start().await;
    let blocks = scripted.mine_many(2, 1);
    let story: Vec<String> = blocks.iter().flat_map(|block| block.adopted()).collect();
    let refusals = [
        (-32602, "invalid argument 1: missing field `blockHash`", Value::Null),
        (-32001, "cannot resume: block 0x0 is not known", Value::Null),
        (-32001, "resource not found", json!({"block": "0x1"})),
    ];
    for (code, message, data) in refusals {
        scripted.answer("eth_subscribe", move |ask| match ask.params[1] {
            Value::Null => ask.usual(),
            _ => Answer::Error(code, message.to_owned(), data.clone()),
        });
        for limits in [
            Answer::error(-32601, "no such method"),
            json!({}).into(),
            Value::Null.into(),
        ] {
            let limits = parking_lot::Mutex::new(Some(limits));
            scripted.answer("headwater_accountLimits", move |_| {
                limits.lock().take().expect("one connection")
            });
            let mut tail = Tail::start(&scripted.ws_url(), "heads logs --json --from 1 --until-block 2");
            tail.expect(&story).await;
            assert_eq!(tail.ended().await.2, 0);
        }
    }
}

#[tokio::test]
async fn a_headwater_that_denies_its_own_methods_is_recognised() {
    let node = Devnet::start(devnet::Config::manual()).await.unwrap();
    let control = node.handle();
    let proxy = Proxy::start(&[node.ws_url()], |config| {
        config.methods.denied.push("headwater_*".to_owned());
    })
    .await;
    let blocks = control.mine_many(4);
    proxy.settled(&control).await;
    let url = format!("ws://{}", proxy.address);
    let mut tail = Tail::start(&url, &format!("heads logs --json --from {}", blocks[0].number()));
    tail.expect(&adopted(&blocks)).await;
    let reorg = control.reorg(2, 3).unwrap();
    tail.expect(&super::reorged(At::Headwater, &reorg)).await;
}

/// Anvil, which is no simulation.
struct Anvil {
    process: Child,
    address: std::net::SocketAddr,
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Anvil {
    /// Starts anvil; `None`, with a printed line, if there is none.
    fn start() -> Option<Self> {
        let path = std::env::var_os("ANVIL").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/node_modules/.bin/anvil"),
            PathBuf::from,
        );
        if !path.is_file() {
            eprintln!(
                "SKIPPED: anvil not found at {}: `make test` installs it, or set ANVIL to its path",
                path.display()
            );
            return None;
        }
        let mut process = Command::new(path)
            .args(["--host", "127.0.0.1", "--no-mining", "--port", "0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let address = crate::cli::address_after("Listening on ", &mut output).parse().unwrap();
        // It must not wait for a reader.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Some(Self { process, address })
    }

    async fn call(&self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let head = "POST / HTTP/1.1\r\ncontent-type: application/json";
        let body = http(self.address, head, request.to_string()).await.body;
        let mut answer: Value = serde_json::from_str(&body).unwrap();
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }

    /// Mines a block with one transaction, to the contract.
    async fn send(&self, from: &Value, contract: &Value, data: &str) {
        self.call(
            "eth_sendTransaction",
            json!([{"from": from, "to": contract, "data": data}]),
        )
        .await;
        self.call("anvil_mine", json!(["0x1"])).await;
    }
}

#[tokio::test]
async fn at_anvil_with_a_reorg_and_a_disconnect() {
    let Some(anvil) = Anvil::start() else {
        return;
    };
    let from = anvil.call("eth_accounts", json!([])).await[0].clone();
    let artefact = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/contract/Emitter.json");
    let bytecode =
        serde_json::from_str::<Value>(&std::fs::read_to_string(artefact).unwrap()).unwrap()["bytecode"].take();
    let hash = anvil
        .call("eth_sendTransaction", json!([{"from": from, "data": bytecode}]))
        .await;
    anvil.call("anvil_mine", json!(["0x1"])).await;
    let contract = anvil.call("eth_getTransactionReceipt", json!([hash])).await["contractAddress"].clone();
    let relay = super::Relay::start(anvil.address).await;
    let url = relay.url();
    let mut tail = Tail::with(
        &[
            "tail", &url, "heads", "logs", "receipts", "--json", "--abi", artefact, "--from", "1",
        ],
        &[],
    );
    let first = tail.json().await;
    assert_eq!((&first["kind"], &first["number"]), (&json!("head"), &json!(1)));
    let receipt = tail.json().await;
    assert_eq!(
        (&receipt["kind"], &receipt["contractAddress"]),
        (&json!("receipt"), &contract)
    );
    let word = |number: u8| format!("{number:064x}");
    let selector = &alloy_primitives::keccak256("emitMany(uint256,uint256)").to_string()[..10];
    // One transfer, of an even number, which no note follows.
    let emit = &format!("{selector}{}{}", word(2), word(1));
    for number in 2..=3 {
        anvil.send(&from, &contract, emit).await;
        let [head, log, receipt] = [tail.json().await, tail.json().await, tail.json().await];
        assert_eq!(
            (&head["number"], &log["blockNumber"], &receipt["blockNumber"]),
            (&json!(number), &json!(number), &json!(number))
        );
        assert!(log["event"].is_string() && log["args"].is_object(), "{log}");
    }
    relay.close();
    anvil.call("anvil_reorg", json!([2, []])).await;
    relay.open();
    let mut gone = Vec::new();
    for _ in 0..8 {
        let line = tail.json().await;
        let number = if line["kind"] == "head" {
            &line["number"]
        } else {
            &line["blockNumber"]
        };
        gone.push(format!(
            "{} {number} {}",
            line["kind"].as_str().unwrap(),
            line["removed"]
        ));
    }
    assert_eq!(
        gone,
        [
            "head 2 true",
            "log 2 true",
            "receipt 2 true",
            "head 3 true",
            "log 3 true",
            "receipt 3 true",
            "head 2 false",
            "head 3 false"
        ]
    );
}
