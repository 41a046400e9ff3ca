//! The nodes: start, calls, and commands for blocks, reorgs and faults.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use alloy_primitives::{U256, hex};
use headwater::devnet::{self, Devnet};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::peer::{post, until};

/// Time limit for the start of a node, which takes seconds.
const START: Duration = Duration::from_secs(30);

/// Wait before another transaction wakes geth, which usually mines within milliseconds.
const AWAKE: Duration = Duration::from_secs(2);

/// Logs of each block on every node: two transfers and a note after them, or three logs of devnet.
pub const LOGS: usize = 3;

const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

/// A node of this suite, stopped when dropped.
pub struct Node {
    kind: Kind,
    address: SocketAddr,
    contract: String,
    account: String,
}

enum Kind {
    Devnet(Devnet),
    Anvil(#[expect(dead_code, reason = "ends with this value")] Process),
    #[expect(dead_code, reason = "both end with this value")]
    Geth(Process, TempDir),
}

/// A mined block.
#[derive(Clone, Debug)]
pub struct Block {
    pub hash: String,
    pub number: String,
    pub logs: usize,
}

impl Node {
    /// Starts devnet: blocks only on command, each with one transaction of three logs from one contract.
    pub async fn devnet() -> Result<Self, String> {
        let config = devnet::Config {
            transactions_per_block: 1,
            logs_per_transaction: LOGS,
            tokens: 1,
            ..devnet::Config::manual()
        };
        let node = Devnet::start(config).await.map_err(|why| why.to_string())?;
        let (contract, account) = node.handle().with_chain(|chain| {
            let account = chain.senders().next().map(|account| account.to_string());
            (chain.tokens()[0].to_string(), account.unwrap_or_default())
        });
        Ok(Self {
            address: node.address(),
            contract: contract.to_lowercase(),
            account: account.to_lowercase(),
            kind: Kind::Devnet(node),
        })
    }

    /// Starts anvil. The inner error is the reason why there is none.
    pub async fn anvil() -> Result<Result<Self, &'static str>, String> {
        let Some(binary) = std::env::var_os("ANVIL") else {
            return Ok(Err(
                "set ANVIL to the path of anvil, or run `make test`, which installs it",
            ));
        };
        let mut command = Command::new(binary);
        command.args(["--host", "127.0.0.1", "--no-mining", "--port", "0"]);
        let (process, port) = Process::start(command, Output::Stdout, "Listening on 127.0.0.1:").await?;
        let port: u16 = port.parse().map_err(|_| "anvil says its port")?;
        Self::with_contract(Kind::Anvil(process), port).await.map(Ok)
    }

    /// Starts geth. The inner error is the reason why there is none.
    pub async fn geth() -> Result<Result<Self, &'static str>, String> {
        let Some(binary) = std::env::var_os("GETH").or_else(installed_geth) else {
            return Ok(Err("run `make geth`, which needs Go, or set GETH to the path of geth"));
        };
        let directory = tempfile::tempdir().map_err(|why| why.to_string())?;
        let mut command = Command::new(binary);
        command
            // One port for both WebSocket and HTTP, as headwater expects.
            .args(["--dev", "--ws", "--ws.port", "0", "--http", "--http.port", "0"])
            .args(["--nodiscover", "--port", "0", "--datadir"])
            .arg(directory.path());
        let (process, port) = Process::start(command, Output::Stderr, "url=ws://127.0.0.1:").await?;
        let port: u16 = port.trim().parse().map_err(|_| "geth says its port")?;
        Self::with_contract(Kind::Geth(process, directory), port).await.map(Ok)
    }

    async fn with_contract(kind: Kind, port: u16) -> Result<Self, String> {
        let mut node = Self {
            kind,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            contract: String::new(),
            account: String::new(),
        };
        // geth opens the port only after logging it.
        until("the node answers", async || node.ask("eth_chainId", "[]").await.is_ok()).await?;
        let accounts = node.value("eth_accounts", json!([])).await?;
        node.account = accounts[0].as_str().ok_or("an account")?.to_owned();
        let mut artefact: Value =
            serde_json::from_str(include_str!("../interop/contract/Emitter.json")).map_err(|why| why.to_string())?;
        let deployment = json!({"from": node.account, "data": artefact["bytecode"].take()});
        let receipt = node.transact(deployment).await?;
        node.contract = receipt["contractAddress"].as_str().ok_or("a contract")?.to_owned();
        Ok(node)
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the names that the tables may use for values of this node.
    pub async fn names(&self) -> Result<Vec<(&'static str, String)>, String> {
        let chain = self.value("eth_chainId", json!([])).await?;
        Ok(vec![
            ("contract", self.contract.clone()),
            ("account", self.account.clone()),
            ("transfer", TRANSFER.into()),
            ("chain", chain.as_str().ok_or("a chain id")?.to_owned()),
        ])
    }

    /// Returns the node's result or error, as raw JSON of its answer.
    pub async fn ask(&self, method: &str, params: &str) -> Result<String, String> {
        let request = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"{method}","params":{params}}}"#);
        let answer = post(self.address, &request).await?;
        let bare = answer.trim().strip_suffix('}').unwrap_or_default();
        let outcome = ["\"result\":", "\"error\":"].map(|member| bare.split_once(member).map(|(_, outcome)| outcome));
        let outcome = outcome.into_iter().flatten().max_by_key(|outcome| outcome.len());
        outcome
            .map(str::to_owned)
            .ok_or_else(|| format!("the node says {answer}"))
    }

    async fn value(&self, method: &str, params: Value) -> Result<Value, String> {
        let text = self.ask(method, &params.to_string()).await?;
        serde_json::from_str(&text).map_err(|why| format!("{method}: {why}"))
    }

    /// Sends a transaction, has it mined, and returns its receipt.
    async fn transact(&self, transaction: Value) -> Result<Value, String> {
        let hash = self.value("eth_sendTransaction", json!([transaction])).await?;
        if let Kind::Anvil(_) = self.kind {
            self.value("anvil_mine", json!(["0x1"])).await?;
        }
        let mut receipt = Value::Null;
        let mut asked_since = Instant::now();
        until("the receipt", async || {
            // geth mines when a transaction arrives, but occasionally misses one; another transaction then wakes it.
            if matches!(self.kind, Kind::Geth(..)) && asked_since.elapsed() > AWAKE {
                asked_since = Instant::now();
                let _ = self.pending().await;
            }
            let asked = self.value("eth_getTransactionReceipt", json!([hash])).await;
            // geth returns an error for a moment while it indexes, which is an object too.
            receipt = asked.unwrap_or_default();
            receipt.get("blockHash").is_some()
        })
        .await?;
        Ok(receipt)
    }

    fn emission(&self) -> Value {
        let words = [U256::ZERO, U256::from(2)]
            .map(|word| word.to_be_bytes::<32>())
            .concat();
        let data = hex::encode_prefixed([&hex!("3d23178e")[..], &words].concat());
        json!({"from": self.account, "to": self.contract, "gas": "0x100000", "data": data})
    }

    /// Mines one block with its logs.
    pub async fn mine(&self) -> Result<Block, String> {
        if let Kind::Devnet(node) = &self.kind {
            return Ok(Block::of(&node.handle().mine()));
        }
        let receipt = self.transact(self.emission()).await?;
        let text = |name: &str| receipt[name].as_str().unwrap_or_default().to_owned();
        Ok(Block {
            hash: text("blockHash"),
            number: text("blockNumber"),
            logs: receipt["logs"].as_array().map_or(0, Vec::len),
        })
    }

    /// Replaces the newest `depth` blocks by as many others and returns the new ones, oldest first.
    pub async fn reorg(&self, depth: u64) -> Result<Vec<Block>, String> {
        match &self.kind {
            Kind::Devnet(node) => {
                let reorg = node.handle().reorg(depth, depth).map_err(|why| why.to_string())?;
                Ok(reorg.adopted.iter().map(|block| Block::of(block)).collect())
            }
            Kind::Anvil(_) => {
                let newest = self.value("eth_blockNumber", json!([])).await?;
                let newest: U256 = serde_json::from_value(newest).map_err(|why| why.to_string())?;
                let transactions: Vec<Value> = (0..depth).map(|at| json!([self.emission(), at])).collect();
                self.value("anvil_reorg", json!([depth, transactions])).await?;
                let mut blocks = Vec::new();
                for back in (0..depth).rev() {
                    let block = self
                        .value("eth_getBlockByNumber", json!([newest - U256::from(back), false]))
                        .await?;
                    let logs = self.value("eth_getLogs", json!([{"blockHash": block["hash"]}])).await?;
                    let text = |name: &str| block[name].as_str().unwrap_or_default().to_owned();
                    blocks.push(Block {
                        hash: text("hash"),
                        number: text("number"),
                        logs: logs.as_array().map_or(0, Vec::len),
                    });
                }
                Ok(blocks)
            }
            Kind::Geth(..) => Err("geth does not change its mind on command".into()),
        }
    }

    /// Adds a transaction to the mempool, which geth also mines at once, and returns its hash.
    pub async fn pending(&self) -> Result<String, String> {
        if let Kind::Devnet(node) = &self.kind {
            let pending = node.handle().add_pending().ok_or("the pool is full")?;
            return Ok(pending.hash().to_string());
        }
        let transfer = json!({"from": self.account, "to": self.account, "value": "0x1"});
        let hash = self.value("eth_sendTransaction", json!([transfer])).await?;
        Ok(hash.as_str().ok_or("a hash")?.to_owned())
    }

    /// Causes or ends a fault, which only devnet can do on command.
    pub fn trouble(&self, words: &[&str]) -> Result<(), String> {
        let Kind::Devnet(node) = &self.kind else {
            return Err("this happens on devnet only".into());
        };
        let control = node.handle();
        match words {
            ["away"] => {
                control.set_faults(|faults| faults.refuse_connections = true);
                control.disconnect();
            }
            ["back"] => control.set_faults(|faults| faults.refuse_connections = false),
            ["slow"] => control.set_faults(|faults| faults.delay = Some(Duration::from_secs(3600))),
            ["fails", method] => control.set_faults(|faults| faults.failing_methods = vec![(*method).to_owned()]),
            ["skips", "heads"] => control.set_faults(|faults| faults.skip_heads = 2),
            ["repeats", "heads"] => control.set_faults(|faults| faults.duplicate_heads = true),
            ["tip", "only"] => control.set_faults(|faults| faults.announce_tip_only_after_reorg = true),
            ["keeps", "removals"] => control.set_faults(|faults| faults.send_removed_logs = false),
            ["switches", "back"] => drop(control.switch_back().map_err(|why| why.to_string())?),
            _ => return Err(format!("what is {words:?}?")),
        }
        Ok(())
    }
}

impl Block {
    fn of(block: &devnet::Block) -> Self {
        Self {
            hash: block.hash().to_string(),
            number: format!("{:#x}", block.number()),
            logs: block.logs().count(),
        }
    }
}

/// Returns the newest geth that `make geth` has installed.
fn installed_geth() -> Option<OsString> {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join(".local");
    let installed = std::fs::read_dir(local).ok()?.flatten().map(|entry| entry.path());
    let mut installed: Vec<PathBuf> = installed
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("geth-"))
        })
        .map(|path| path.join("bin/geth"))
        .filter(|path| path.is_file())
        .collect();
    installed.sort();
    installed.pop().map(PathBuf::into_os_string)
}

/// A child process, killed when dropped.
struct Process(Child);

/// The stream that carries the start message.
#[derive(Clone, Copy)]
enum Output {
    Stdout,
    Stderr,
}

impl Process {
    /// Starts the process, waits for `marker` in its output, and returns the rest of that line.
    async fn start(command: Command, output: Output, marker: &'static str) -> Result<(Self, String), String> {
        let starting = tokio::task::spawn_blocking(move || Self::start_now(command, output, marker));
        starting.await.map_err(|why| why.to_string())?
    }

    fn start_now(mut command: Command, output: Output, marker: &'static str) -> Result<(Self, String), String> {
        command.stdin(Stdio::null());
        match output {
            Output::Stdout => command.stdout(Stdio::piped()).stderr(Stdio::null()),
            Output::Stderr => command.stderr(Stdio::piped()).stdout(Stdio::null()),
        };
        let mut process = Self(command.spawn().map_err(|why| format!("{command:?}: {why}"))?);
        let pipe: Option<Box<dyn Read + Send>> = match output {
            Output::Stdout => process.0.stdout.take().map(|pipe| Box::new(pipe) as _),
            Output::Stderr => process.0.stderr.take().map(|pipe| Box::new(pipe) as _),
        };
        let pipe = pipe.ok_or("no pipe")?;
        let (found, rest) = mpsc::channel();
        // Reads to the end, because a process blocks when its pipe is full.
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once(marker) {
                    // Only the first match is needed; later sends fail.
                    let _ = found.send(rest.to_owned());
                }
            }
        });
        let rest = rest.recv_timeout(START);
        Ok((
            process,
            rest.map_err(|_| format!("{command:?} did not say {marker:?}"))?,
        ))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
