//! anvil with direct access, a contract on it that emits events, and a record of the chain since a test began.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, U256, address, b256, hex};
use alloy_provider::{DynProvider, Provider};
use alloy_rpc_types_eth::{Filter, Header, Log};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::proxy::{connect, within};

/// Time limit for the start of a node, which takes seconds.
const START: Duration = Duration::from_secs(20);

pub const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
pub const NOTE: B256 = b256!("65b360985453687445a7c456f6bbedbff9af3294dcd65b0fc5cc5140d337266d");
/// First of anvil's accounts, which sends all transactions.
pub const ACCOUNT: Address = address!("f39fd6e51aad88f6f4ce6ab8827279cfffb92266");

/// The calls of the contract.
#[derive(Clone, Copy)]
pub enum Emitter {
    /// `emitMany(first, n)`: `n` transfers with the values `first..first + n`, and a note after each odd value.
    EmitMany(u64, u64),
    /// `double(x)`.
    Double(u64),
    /// `refuse(code)`: reverts with a custom error.
    Refuse(u64),
    /// `refusePlainly()`: reverts with a string.
    RefusePlainly,
}

impl Emitter {
    /// Returns the deployment bytecode as a hex string.
    pub fn bytecode() -> Value {
        let mut artefact: Value = serde_json::from_str(include_str!("../interop/contract/Emitter.json")).unwrap();
        artefact["bytecode"].take()
    }

    pub fn data(self) -> Bytes {
        let (selector, words): (_, &[u64]) = match &self {
            Self::EmitMany(first, n) => (hex!("3d23178e"), &[*first, *n]),
            Self::Double(x) => (hex!("eee97206"), &[*x]),
            Self::Refuse(code) => (hex!("a60a07b2"), &[*code]),
            Self::RefusePlainly => (hex!("64e1c79d"), &[]),
        };
        let words = words.iter().flat_map(|word| U256::from(*word).to_be_bytes::<32>());
        selector.into_iter().chain(words).collect()
    }
}

/// A running anvil that mines only on command, killed when dropped.
pub struct Node {
    process: Process,
    port: u16,
    provider: DynProvider,
    pub contract: Address,
    emitted: AtomicU64,
}

/// A child process, killed when dropped.
pub struct Process(Child);

impl Process {
    /// Starts the process, waits for `marker` in its output, and returns the rest of that line.
    pub fn start(command: &mut Command, output: Output, marker: &'static str) -> (Self, String) {
        command.stdin(Stdio::null());
        match output {
            Output::Stdout => command.stdout(Stdio::piped()),
            Output::Stderr => command.stderr(Stdio::piped()),
        };
        let mut process = Self(command.spawn().unwrap());
        let output: Box<dyn Read + Send> = match output {
            Output::Stdout => Box::new(process.0.stdout.take().unwrap()),
            Output::Stderr => Box::new(process.0.stderr.take().unwrap()),
        };
        let (found, rest) = mpsc::channel();
        // Reads to the end, because a process blocks when its pipe is full.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once(marker) {
                    // Only the first match is needed; later sends fail.
                    let _ = found.send(rest.to_owned());
                }
            }
        });
        let rest = rest.recv_timeout(START);
        (
            process,
            rest.unwrap_or_else(|_| panic!("{command:?} did not say {marker:?}")),
        )
    }
}

/// The stream that carries the start message.
#[derive(Clone, Copy)]
pub enum Output {
    Stdout,
    Stderr,
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn binary() -> PathBuf {
    let path = std::env::var_os("ANVIL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/node_modules/.bin/anvil"),
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "no anvil at {}: run `make test`, which installs it, or set ANVIL to its path",
        path.display()
    );
    path
}

/// Starts anvil and returns the port that it listens on.
fn spawn(port: u16, arguments: &[&str]) -> (Process, u16) {
    let mut command = Command::new(binary());
    command
        .args(["--host", "127.0.0.1", "--no-mining", "--port", &port.to_string()])
        .args(arguments);
    let (process, port) = Process::start(&mut command, Output::Stdout, "Listening on 127.0.0.1:");
    (process, port.parse().unwrap())
}

impl Node {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts anvil with extra arguments and deploys the contract.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let (process, port) = spawn(0, arguments);
        let mut node = Self {
            process,
            port,
            provider: connect(&format!("ws://127.0.0.1:{port}")).await,
            contract: Address::ZERO,
            emitted: AtomicU64::new(0),
        };
        node.deploy().await;
        node
    }

    async fn deploy(&mut self) {
        let deployment = json!([{"from": ACCOUNT, "data": Emitter::bytecode()}]);
        let hash: B256 = self.ask("eth_sendTransaction", deployment).await;
        self.mine().await;
        let receipt: Value = self.ask("eth_getTransactionReceipt", json!([hash])).await;
        self.contract = serde_json::from_value(receipt["contractAddress"].clone()).unwrap();
    }

    /// Stops anvil with SIGINT, as Ctrl-C does, so that anvil saves its state.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.process.0.wait().unwrap();
    }

    /// Kills anvil.
    pub fn kill(&mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }

    /// Starts anvil again on the same port.
    pub async fn start_again(&mut self, arguments: &[&str]) {
        self.process = spawn(self.port, arguments).0;
        self.provider = connect(&self.ws()).await;
    }

    /// Starts anvil as [`Self::start_again`] does, with a new chain, and deploys the contract.
    pub async fn start_anew(&mut self) {
        self.start_again(&[]).await;
        self.deploy().await;
    }

    pub fn ws(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the URL of a relay to this node that delays each request by `distance`.
    pub async fn behind(&self, distance: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, port) = (listener.local_addr().unwrap(), self.port);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (mut from, mut back) = near.into_split();
                let (mut answers, mut to) = far.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut buffer).await {
                        tokio::time::sleep(distance).await;
                        if to.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        format!("ws://{address}")
    }

    /// Returns the provider that is connected to anvil directly, without the proxy.
    pub fn provider(&self) -> &DynProvider {
        &self.provider
    }

    pub async fn ask<T>(&self, method: &'static str, params: Value) -> T
    where
        T: DeserializeOwned + std::fmt::Debug + Send + Sync + Unpin + 'static,
    {
        within(method, self.provider.raw_request(method.into(), params))
            .await
            .unwrap()
    }

    pub async fn mine(&self) {
        let () = self.ask("anvil_mine", json!(["0x1"])).await;
    }

    pub async fn number(&self) -> u64 {
        self.provider.get_block_number().await.unwrap()
    }

    /// Returns the hash of the newest block.
    pub async fn head(&self) -> B256 {
        self.header(self.number().await).await.hash
    }

    async fn header(&self, number: u64) -> Header {
        let block = self.provider.get_block_by_number(number.into()).await.unwrap();
        block.expect("the block is there").header
    }

    fn emission(&self, count: u64) -> Value {
        let first = self.emitted.fetch_add(count, Ordering::Relaxed);
        let data = Emitter::EmitMany(first, count).data();
        json!({"from": ACCOUNT, "to": self.contract, "gas": "0x100000", "data": data})
    }

    /// Sends a transaction with `count` transfers to the mempool and returns its hash.
    pub async fn emit(&self, count: u64) -> B256 {
        self.ask("eth_sendTransaction", json!([self.emission(count)])).await
    }
}

/// The changes of the chain since the story began, as the node reports them; a subscriber must receive the same.
pub struct Story<'a> {
    node: &'a Node,
    filters: Vec<Filter>,
    base: u64,
    /// Logs of each block that is still canonical, by block and filter.
    blocks: Vec<Vec<Vec<Log>>>,
    pub heads: Vec<Header>,
    /// Expected log notifications by filter, including those with `removed: true` after a reorg.
    pub logs: Vec<Vec<Log>>,
}

impl<'a> Story<'a> {
    pub async fn begin(node: &'a Node, filters: &[Filter]) -> Self {
        Self {
            node,
            filters: filters.to_vec(),
            base: node.number().await,
            blocks: Vec::new(),
            heads: Vec::new(),
            logs: vec![Vec::new(); filters.len()],
        }
    }

    /// Mines one block, with one transaction for each of `counts`, with that many transfers.
    pub async fn mine(&mut self, counts: &[u64]) {
        for count in counts {
            self.node.emit(*count).await;
        }
        self.burst(1).await;
    }

    /// Mines `count` blocks at once.
    pub async fn burst(&mut self, count: u64) {
        let () = self.node.ask("anvil_mine", json!([U256::from(count)])).await;
        self.adopt().await;
    }

    /// Replaces the newest blocks by as many new ones; `blocks` has the transfer counts of each new block.
    pub async fn reorg(&mut self, blocks: &[&[u64]]) {
        for dropped in self.blocks.split_off(self.blocks.len() - blocks.len()) {
            for (received, logs) in self.logs.iter_mut().zip(dropped) {
                received.extend(logs.into_iter().map(|log| Log { removed: true, ..log }));
            }
        }
        let transactions: Vec<Value> = (0_u64..)
            .zip(blocks)
            .flat_map(|(at, counts)| counts.iter().map(move |count| (at, *count)))
            .map(|(at, count)| json!([self.node.emission(count), at]))
            .collect();
        let () = self.node.ask("anvil_reorg", json!([blocks.len(), transactions])).await;
        self.adopt().await;
    }

    async fn adopt(&mut self) {
        let latest = self.node.number().await;
        for number in self.base + self.blocks.len() as u64 + 1..=latest {
            let header = self.node.header(number).await;
            let mut block = Vec::new();
            for (filter, received) in self.filters.iter().zip(&mut self.logs) {
                let filter = filter.clone().at_block_hash(header.hash);
                let logs = self.node.provider.get_logs(&filter).await.unwrap();
                received.extend(logs.iter().cloned());
                block.push(logs);
            }
            self.blocks.push(block);
            self.heads.push(header);
        }
    }

    /// Returns, for each filter, the result of `eth_getLogs` over the blocks of the story.
    pub async fn remaining(&self) -> Vec<Vec<Log>> {
        let mut remaining = Vec::new();
        for filter in &self.filters {
            let filter = filter.clone().from_block(self.base + 1);
            remaining.push(self.node.provider.get_logs(&filter).await.unwrap());
        }
        remaining
    }
}
