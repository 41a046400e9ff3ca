//! The node behind the program: a simulated one with everything in it that attacks need, or a real geth.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alloy_primitives::B256;
use headwater::devnet::{self, Control, Devnet};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::arena::Form;
use crate::peer::{attacker, request};

/// Text of a call on which the simulated node closes the connection.
pub const POISON: &str = "0xdeadbeef";
/// Method whose calls take [`SLOW`] on the simulated node.
pub const SLOW_METHOD: &str = "eth_estimateGas";
pub const SLOW: Duration = Duration::from_secs(3);
/// Characters of an answer to `eth_getCode` on the simulated node, in the two forms. Both are above what the row of answers
/// that are too long sets.
const LONG: [usize; 2] = [5 << 20, 20 << 20];

/// Time between two blocks of geth, which knows whole seconds.
const GETH_PERIOD: Duration = Duration::from_secs(1);
const START: Duration = Duration::from_secs(30);

pub enum Node {
    Devnet(Devnet),
    Geth {
        process: Child,
        port: u16,
        #[expect(dead_code, reason = "it ends with this value")]
        directory: TempDir,
    },
}

/// Content of a block, which clients must have received.
pub struct Truth {
    pub hash: B256,
    /// Number of its logs, where the node has any.
    pub logs: Option<usize>,
}

impl Node {
    pub async fn devnet(form: Form) -> Result<Self, String> {
        let node = Devnet::start(settings(form, 0)).await;
        node.map(Self::Devnet).map_err(|why| why.to_string())
    }

    pub async fn geth(binary: PathBuf) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|why| why.to_string())?;
        let log = directory.path().join("log");
        let process = Command::new(&binary)
            .args(["--dev", "--dev.period", &GETH_PERIOD.as_secs().to_string()])
            .args(["--ws", "--ws.port", "0", "--http", "--http.port", "0"])
            .args(["--nodiscover", "--port", "0", "--datadir"])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).map_err(|why| why.to_string())?)
            .spawn()
            .map_err(|why| format!("{}: {why}", binary.display()))?;
        let mut node = Self::Geth {
            process,
            port: 0,
            directory,
        };
        let patience = Instant::now() + START;
        while Instant::now() < patience {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let said = text.split_once("url=ws://127.0.0.1:").map(|(_, rest)| rest);
            let said = said.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
            if let (Some(said), Self::Geth { port, .. }) = (said, &mut node) {
                *port = said;
                if node.ask("eth_chainId", json!([])).await.is_some() {
                    return Ok(node);
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(format!("{} does not start", binary.display()))
    }

    /// Starts a second node of the same genesis, which then builds its own branch.
    pub async fn rival(form: Form) -> Result<Devnet, String> {
        let config = devnet::Config {
            block_time: None,
            ..settings(form, 1)
        };
        Devnet::start(config).await.map_err(|why| why.to_string())
    }

    pub fn url(&self) -> String {
        match self {
            Self::Devnet(node) => node.ws_url(),
            Self::Geth { port, .. } => format!("ws://127.0.0.1:{port}"),
        }
    }

    pub fn control(&self) -> Option<Control> {
        match self {
            Self::Devnet(node) => Some(node.handle()),
            Self::Geth { .. } => None,
        }
    }

    pub fn block_time(&self, form: Form) -> Duration {
        match self {
            Self::Devnet(_) => block_time(form),
            Self::Geth { .. } => GETH_PERIOD,
        }
    }

    pub async fn height(&self) -> u64 {
        match self {
            Self::Devnet(node) => node.handle().head().number(),
            Self::Geth { .. } => {
                let answer = self.ask("eth_blockNumber", json!([])).await.unwrap_or_default();
                quantity(&answer).unwrap_or_default()
            }
        }
    }

    /// Returns the blocks of these numbers.
    pub async fn truth(&self, numbers: std::ops::RangeInclusive<u64>) -> HashMap<u64, Truth> {
        let mut all = HashMap::new();
        for number in numbers {
            let block = match self {
                Self::Devnet(node) => node.handle().with_chain(|chain| {
                    chain.block_at(number).map(|block| Truth {
                        hash: block.hash(),
                        logs: Some(block.logs().count()),
                    })
                }),
                Self::Geth { .. } => {
                    let params = json!([format!("{number:#x}"), false]);
                    let block = self.ask("eth_getBlockByNumber", params).await.unwrap_or_default();
                    let hash = block["hash"].as_str().and_then(|hash| hash.parse().ok());
                    hash.map(|hash| Truth { hash, logs: None })
                }
            };
            all.extend(block.map(|block| (number, block)));
        }
        all
    }

    /// Asks the node itself.
    async fn ask(&self, method: &str, params: Value) -> Option<Value> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = self.url().strip_prefix("ws://")?.parse().ok()?;
        let body = request(1, method, &params).to_string();
        let mut stream = crate::peer::connect(address, attacker(0), None).await.ok()?;
        let head = format!("{}\r\nconnection: close\r\n\r\n", crate::peer::post_head(body.len()));
        stream.write_all((head + &body).as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let mut body: Value = serde_json::from_str(body.get(body.find('{')?..=body.rfind('}')?)?).ok()?;
        Some(body["result"].take())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Self::Geth { process, .. } = self {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn block_time(form: Form) -> Duration {
    Duration::from_millis(if form.is_full() { 1_000 } else { 250 })
}

/// Settings of a simulated node: blocks for a resume that is longer than the process's memory, what makes such a resume
/// long, and a version for which no setting for development nodes applies.
fn settings(form: Form, fork_seed: u64) -> devnet::Config {
    devnet::Config {
        client_version: "Geth/v1.17.8-stable/linux-amd64/go1.25".to_owned(),
        fork_seed,
        initial_blocks: 300,
        block_time: Some(block_time(form)),
        pending_rate: 0.0,
        transactions_per_block: 2,
        logs_per_transaction: 5,
        log_data_bytes: 1 << 10,
        keep_blocks: 20_000,
        faults: devnet::Faults {
            close_on: Some(POISON.to_owned()),
            delay: Some(SLOW),
            delay_on: vec![SLOW_METHOD.to_owned()],
            code_bytes: LONG[usize::from(form.is_full())] / 2,
            ..devnet::Faults::default()
        },
        ..devnet::Config::default()
    }
}

/// Parses a quantity of JSON-RPC.
pub fn quantity(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}
