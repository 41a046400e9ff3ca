//! The same tests in front of geth, if installed: geth's notifications must pass through byte for byte.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use alloy_primitives::{Address, B256};
use alloy_provider::{DynProvider, Provider};
use alloy_rpc_types_eth::Header;
use headwater::chain::Verify;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::node::{Emitter, NOTE, Output, Process, TRANSFER};
use super::proxy::{Events, Proxy, connect, until, within};

/// Number of transactions; geth mines at least as many blocks.
const BLOCKS: u64 = 8;

/// geth with a private development chain, which mines one block per transaction.
struct Geth {
    _process: Process,
    ws: String,
    provider: DynProvider,
    account: Address,
}

impl Geth {
    /// Starts geth; returns `None` and prints a line if `GETH` is not set.
    async fn start(directory: &Path) -> Option<Self> {
        let Some(binary) = std::env::var_os("GETH") else {
            #[expect(
                clippy::explicit_write,
                reason = "the harness keeps what a test that passes prints with eprintln!"
            )]
            writeln!(std::io::stderr(), "SKIPPED: geth not found: set GETH=/path/to/geth").unwrap();
            return None;
        };
        let mut command = Command::new(binary);
        command
            .args(["--dev", "--ws", "--ws.port", "0", "--nodiscover", "--port", "0"])
            .arg("--datadir")
            .arg(directory);
        let (process, ws) = Process::start(&mut command, Output::Stderr, "WebSocket enabled");
        let ws = ws.split_once("url=").expect("geth says its address").1.to_owned();
        let provider = connect(&ws).await;
        let account = provider.get_accounts().await.unwrap()[0];
        Some(Self {
            _process: process,
            ws,
            provider,
            account,
        })
    }

    /// Sends a transaction and waits for its block; returns the receipt.
    async fn send(&self, transaction: Value) -> Value {
        let hash: B256 = self.ask("eth_sendTransaction", json!([transaction])).await;
        let mut receipt = Value::Null;
        until("the receipt", async || {
            let asked = self
                .provider
                .raw_request("eth_getTransactionReceipt".into(), json!([hash]));
            // geth returns an error for a moment while it indexes.
            receipt = asked.await.unwrap_or_default();
            !receipt.is_null()
        })
        .await;
        receipt
    }

    async fn ask<T>(&self, method: &'static str, params: Value) -> T
    where
        T: serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + Unpin + 'static,
    {
        within(method, self.provider.raw_request(method.into(), params))
            .await
            .unwrap()
    }
}

/// Raw notifications of one subscription, through the proxy and directly from geth.
struct Pair {
    params: Value,
    through: Events<Box<RawValue>>,
    direct: Events<Box<RawValue>>,
}

impl Pair {
    async fn of(params: Value, through: &DynProvider, direct: &DynProvider) -> Self {
        Self {
            through: Events::of("through the proxy", through.subscribe(params.clone())).await,
            direct: Events::of("from geth", direct.subscribe(params.clone())).await,
            params,
        }
    }

    /// Discards all notifications so far; returns `true` if the last one from geth came through the proxy too.
    async fn drain(&mut self) -> bool {
        let (through, direct) = (self.through.drain().await, self.direct.drain().await);
        let last = |events: &[Box<RawValue>]| events.last().map(|event| event.get().to_owned());
        !through.is_empty() && last(&through) == last(&direct)
    }

    /// Compares the heads above `number`; block `number` itself may be announced to either subscription. The number
    /// of blocks that geth makes of the transactions may vary, and a block is empty now and then.
    async fn compare_heads_after(&mut self, number: u64) {
        let received = async |events: &mut Events<Box<RawValue>>| -> Vec<String> {
            let received = events.drain().await.into_iter().map(|head| head.get().to_owned());
            received
                .filter(|head| serde_json::from_str::<Header>(head).unwrap().number > number)
                .collect()
        };
        let (through, direct) = (received(&mut self.through).await, received(&mut self.direct).await);
        assert!(direct.len() as u64 >= BLOCKS, "{direct:#?}");
        assert_eq!(through, direct);
    }

    async fn compare(&mut self, count: usize) {
        let (through, direct) = (self.through.exactly(count).await, self.direct.exactly(count).await);
        for (through, direct) in through.iter().zip(&direct) {
            assert_eq!(through.get(), direct.get(), "{}", self.params);
        }
    }
}

async fn compare(geth: &Geth, upstream: &str, verify: Verify) {
    let contract = geth
        .send(json!({"from": geth.account, "data": Emitter::bytecode()}))
        .await["contractAddress"]
        .take();
    let proxy = Proxy::verifying(upstream, verify).await;
    let client = proxy.connect().await;
    let pair = async |params| Pair::of(params, &client, &geth.provider).await;
    let mut pending = pair(json!(["newPendingTransactions"])).await;
    let mut full = pair(json!(["newPendingTransactions", true])).await;
    until("pending transactions flow", async || {
        geth.send(json!({"from": geth.account, "to": geth.account})).await;
        let received = (pending.drain().await, full.drain().await);
        received.0 && received.1
    })
    .await;
    let mut heads = pair(json!(["newHeads"])).await;
    let mut all = pair(json!(["logs", {}])).await;
    let topics = json!([[TRANSFER, NOTE], null, B256::with_last_byte(2)]);
    let mut some = pair(json!(["logs", {"address": contract, "topics": topics}])).await;
    let begin = geth.provider.get_block_number().await.unwrap();
    let mut logs = Vec::new();
    let mut last = Value::Null;
    for n in 0..BLOCKS {
        let data = Emitter::EmitMany(3 * n, n % 4).data();
        let receipt = geth
            .send(json!({"from": geth.account, "to": contract, "gas": "0x100000", "data": data}))
            .await;
        logs.extend(receipt["logs"].as_array().unwrap().clone());
        last = receipt["transactionHash"].clone();
    }
    let second = json!(B256::with_last_byte(2));
    heads.compare_heads_after(begin).await;
    all.compare(logs.len()).await;
    some.compare(logs.iter().filter(|log| log["topics"][2] == second).count())
        .await;
    pending.compare(BLOCKS as usize).await;
    full.compare(BLOCKS as usize).await;

    for (method, params) in [
        ("eth_getBlockByNumber", json!(["latest", true])),
        ("eth_getTransactionReceipt", json!([last])),
        ("eth_getBalance", json!([geth.account, "latest"])),
        ("eth_feeHistory", json!(["0x4", "latest", [10, 50]])),
    ] {
        let through: Box<RawValue> = within(method, client.raw_request(method.into(), params.clone()))
            .await
            .unwrap();
        assert_eq!(through.get(), geth.ask::<Box<RawValue>>(method, params).await.get());
    }
    let refused = json!([{"to": contract, "data": Emitter::Refuse(5).data()}, "latest"]);
    let refusal = async |of: &DynProvider| {
        let answer: Result<Value, _> = within("eth_call", of.raw_request("eth_call".into(), refused.clone())).await;
        let error = answer.unwrap_err().as_error_resp().expect("geth's error").clone();
        (error.code, error.message, error.data.expect("data").get().to_owned())
    };
    assert_eq!(refusal(&client).await, refusal(&geth.provider).await);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_geth_says_comes_byte_for_byte() {
    let directory = tempfile::tempdir().unwrap();
    if let Some(geth) = Geth::start(directory.path()).await {
        compare(&geth, &geth.ws, Verify::Bloom).await;
        compare(&geth, &geth.ws, Verify::Receipts).await;
        let ipc = directory.path().join("geth.ipc");
        compare(&geth, ipc.to_str().unwrap(), Verify::Bloom).await;
    }
}

/// Reads the rows of docs/methods.md: pairs of a method and `true` if it is served by default.
fn documented() -> Vec<(&'static str, bool)> {
    let text = include_str!("../../docs/methods.md");
    let (_, table) = text.split_once("## Every method of geth").unwrap();
    let row = |line: &'static str| {
        let (method, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        Some((method, rest.starts_with("served")))
    };
    table.lines().filter_map(row).collect()
}

/// Returns the error code of geth's answer over IPC, or 0. The call has more parameters than any method takes, so
/// that geth executes nothing.
async fn code_over_ipc(socket: &mut BufReader<UnixStream>, method: &str) -> i64 {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": too_many()});
    socket.write_all(format!("{request}\n").as_bytes()).await.unwrap();
    let mut line = String::new();
    within(method, socket.read_line(&mut line)).await.unwrap();
    let answer: Value = serde_json::from_str(&line).unwrap();
    answer["error"]["code"].as_i64().unwrap_or_default()
}

fn too_many() -> Value {
    vec![Value::Null; 20].into()
}

/// Checks docs/methods.md against geth's IPC, which serves every namespace: the table has all of them, and headwater
/// serves or refuses each method as documented.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_over_ipc_is_served_or_refused_as_documented() {
    const UNKNOWN: i64 = -32601;
    const LIMITED: i64 = -32005;
    let directory = tempfile::tempdir().unwrap();
    let Some(_geth) = Geth::start(directory.path()).await else {
        return;
    };
    let path = directory.path().join("geth.ipc");
    let mut socket = BufReader::new(UnixStream::connect(&path).await.unwrap());
    let modules = json!({"jsonrpc": "2.0", "id": 1, "method": "rpc_modules", "params": []});
    socket.write_all(format!("{modules}\n").as_bytes()).await.unwrap();
    let mut line = String::new();
    within("rpc_modules", socket.read_line(&mut line)).await.unwrap();
    let modules: Value = serde_json::from_str(&line).unwrap();
    let rows = documented();
    for module in modules["result"].as_object().unwrap().keys() {
        let prefix = format!("{module}_");
        assert!(rows.iter().any(|(method, _)| method.starts_with(&prefix)), "{module}");
    }
    let proxy = Proxy::start(path.to_str().unwrap()).await;
    let client = proxy.connect().await;
    for (method, is_served) in rows {
        // geth serves most of `engine` only with a consensus client.
        let is_there = method.starts_with("engine_") || code_over_ipc(&mut socket, method).await != UNKNOWN;
        assert!(is_there, "geth has no {method}");
        // The proxy refuses subscriptions by their kind, so `params` must name one.
        let params = if method.ends_with("_subscribe") {
            json!(["newHeads"])
        } else {
            too_many()
        };
        let mut code = LIMITED;
        while code == LIMITED {
            let answer: Result<Value, _> = within(method, client.raw_request(method.into(), params.clone())).await;
            code = answer.map_or_else(|error| error.as_error_resp().expect("an error object").code, |_| 0);
            if code == LIMITED {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        }
        assert_eq!(code != UNKNOWN, is_served, "{method}: {code}");
    }
    proxy.stop().await;
}
