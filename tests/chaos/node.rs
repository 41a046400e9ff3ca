//! anvil, which follows the chain's steps, is killed, stopped and held back, and comes back with what it had on disk.
//!
//! It is asked for its state now and then (`anvil_dumpState`: accounts, and the blocks with their hashes and logs). What
//! came after that is lost with a kill, as with any node that did not write it; it does those steps anew, which gives
//! the same blocks. anvil 1.7.1 also writes states of older blocks (`--preserve-historical-states`), but without the
//! code of contracts, so that a reorg cannot go below what was loaded; what is loaded is therefore old enough.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use alloy_primitives::B256;
use flate2::read::GzDecoder;
use jsonrpsee::core::client::{ClientT, Error};
use jsonrpsee::http_client::HttpClient;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::chain::{Chain, Step, deployment, header, log};
use crate::history::CanonBlock;
use crate::process::{Process, port};

/// A node starts within seconds, also when it reads a large state.
const START: Duration = Duration::from_secs(30);

/// A state of the longest run.
const MAX_STATE: u32 = 256 << 20;

/// Where the newest is too new to start from, the one before is not.
const KEPT_STATES: usize = 4;

/// What every block begins with: anvil would go on from the newest block, also after a reorg.
const BASE_FEE: &str = "0x3b9aca00";

/// Where anvil is, or a line that says that there is none.
pub fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("ANVIL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/node_modules/.bin/anvil"),
        PathBuf::from,
    );
    if path.is_file() {
        return Some(path);
    }
    crate::say(&format!(
        "SKIPPED: anvil not found at {}: `make test` installs it, or set ANVIL to its path",
        path.display()
    ));
    None
}

/// One anvil.
pub struct Node {
    name: &'static str,
    chain: Arc<Chain>,
    directory: PathBuf,
    port: u16,
    client: HttpClient,
    /// Held by who kills it until it is back.
    process: Mutex<Process>,
    /// How often it was started.
    starts: AtomicU64,
    /// Steps done.
    done: AtomicUsize,
    /// It is to do no step for now.
    held: AtomicBool,
    /// After how many steps its state was kept.
    states: parking_lot::Mutex<Vec<usize>>,
}

/// The node does not answer, or not to the purpose.
#[derive(Debug)]
struct Trouble(String);

impl Node {
    pub async fn start(name: &'static str, directory: &Path, chain: &Arc<Chain>) -> Arc<Self> {
        let directory = directory.join(name);
        std::fs::create_dir(&directory).unwrap();
        let port = port();
        let node = Arc::new(Self {
            name,
            chain: chain.clone(),
            port,
            client: HttpClient::builder()
                .max_response_size(MAX_STATE)
                .build(format!("http://127.0.0.1:{port}"))
                .unwrap(),
            process: Mutex::new(
                spawn(&directory, port, chain.genesis, None)
                    .await
                    .expect("anvil starts"),
            ),
            directory,
            starts: AtomicU64::new(1),
            done: AtomicUsize::new(0),
            held: AtomicBool::new(false),
            states: parking_lot::Mutex::default(),
        });
        tokio::spawn(follow(Arc::downgrade(&node)));
        node
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many of the chain's steps it has done.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    /// `kill -9`; it comes back after `down`.
    pub async fn kill(&self, down: Duration) {
        let mut process = self.process.lock().await;
        self.starts.fetch_add(1, Ordering::SeqCst);
        process.kill();
        sleep(down).await;
        self.start_again(&mut process).await;
    }

    /// SIGSTOP, and SIGCONT after so long.
    pub async fn freeze(&self, duration: Duration) {
        let process = self.process.lock().await;
        process.freeze();
        sleep(duration).await;
        process.thaw();
    }

    /// It falls behind: everything else about it is as ever.
    pub async fn lag(&self, duration: Duration) {
        let _process = self.process.lock().await;
        self.held.store(true, Ordering::SeqCst);
        sleep(duration).await;
        self.held.store(false, Ordering::SeqCst);
    }

    async fn start_again(&self, process: &mut Process) {
        let state = {
            let kept = self.states.lock();
            kept.iter().filter(|done| self.chain.is_final(**done)).max().copied()
        };
        let state = state.map(|done| self.state(done));
        for _ in 0..3 {
            if let Some(started) = spawn(&self.directory, self.port, self.chain.genesis, state.as_deref()).await {
                *process = started;
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
        panic!("anvil {} does not start again on port {}", self.name, self.port);
    }

    /// Where its state after so many steps is.
    fn state(&self, done: usize) -> PathBuf {
        self.directory.join(format!("{done}.json"))
    }

    /// Keeps its state: seldom, for it holds the whole chain.
    async fn write(&self, done: usize) -> Result<(), Trouble> {
        let last = self.states.lock().iter().copied().max().unwrap_or(0);
        if done < last + 20 + done / 25 {
            return Ok(());
        }
        let dump = self.ask("anvil_dumpState", json!([])).await?;
        let dump = alloy_primitives::hex::decode(dump.as_str().expect("hex")).unwrap();
        let mut state = String::new();
        GzDecoder::new(&dump[..]).read_to_string(&mut state).unwrap();
        std::fs::write(self.state(done), state).unwrap();
        let mut kept = self.states.lock();
        kept.push(done);
        // One from which it cannot start any more is of no use; of the others the last few are.
        kept.sort_by_key(|done| (self.chain.stands(*done), *done));
        if kept.len() > KEPT_STATES {
            std::fs::remove_file(self.state(kept.remove(0))).unwrap();
        }
        Ok(())
    }

    async fn ask(&self, method: &str, params: Value) -> Result<Value, Trouble> {
        let params = params.as_array().expect("positional").clone();
        let answer = self.client.request(method, params).await;
        answer.map_err(|error: Error| Trouble(format!("{method}: {error}")))
    }

    /// How many steps lead to what it has; a step that it is in the middle of is taken back.
    async fn locate(&self) -> Result<usize, Trouble> {
        self.ask("anvil_dropAllTransactions", json!([])).await?;
        loop {
            let (number, tip, _) = header(&self.block("latest").await?);
            match self.chain.place(tip) {
                Some(place) => return Ok(place),
                None if number == 0 => {
                    self.chain.agree(0, tip);
                    return Ok(0);
                }
                None => self.ask("anvil_rollback", json!([1])).await?,
            };
        }
    }

    async fn take(&self, step: &Step, done: usize) -> Result<(), Trouble> {
        // The clock of a reorg's blocks is anvil's own, begins with the common ancestor's and goes on in seconds. These
        // are in the hash, so that a reorg during which it went on is done anew.
        for _ in 0..10 {
            self.ask("anvil_setNextBlockBaseFeePerGas", json!([BASE_FEE])).await?;
            let made = match step {
                Step::Deploy { timestamp } => self.mine(&[deployment()], *timestamp).await?,
                Step::Mine { timestamp, emissions } => {
                    let transactions: Vec<Value> = emissions.iter().map(|emission| emission.transaction()).collect();
                    self.mine(&transactions, *timestamp).await?
                }
                Step::Reorg { blocks } => {
                    let transactions: Vec<Value> = (0_u64..)
                        .zip(blocks)
                        .flat_map(|(at, block)| block.iter().map(move |emission| json!([emission.transaction(), at])))
                        .collect();
                    self.ask("anvil_reorg", json!([blocks.len(), transactions])).await?;
                    blocks.len() as u64
                }
            };
            let latest = self.block("latest").await?;
            let (number, tip, _) = header(&latest);
            let mut blocks = Vec::new();
            for number in number + 1 - made..=number {
                blocks.push(self.look_at(&format!("{number:#x}")).await?);
            }
            if matches!(step, Step::Reorg { .. }) {
                let ancestor = self.block(&format!("{:#x}", number - made)).await?;
                if ancestor["timestamp"] != latest["timestamp"] {
                    self.chain.rewinds(blocks);
                    continue;
                }
            }
            assert!(self.chain.agree(done, tip), "the nodes do not agree on {step:?}");
            return Ok(());
        }
        Err(Trouble("a reorg takes too long".into()))
    }

    async fn mine(&self, transactions: &[Value], timestamp: u64) -> Result<u64, Trouble> {
        for transaction in transactions {
            self.ask("eth_sendTransaction", json!([transaction])).await?;
        }
        self.ask("evm_setNextBlockTimestamp", json!([timestamp])).await?;
        self.ask("evm_mine", json!([])).await?;
        Ok(1)
    }

    async fn block(&self, number: &str) -> Result<Value, Trouble> {
        self.ask("eth_getBlockByNumber", json!([number, false])).await
    }

    async fn look_at(&self, number: &str) -> Result<B256, Trouble> {
        let (number, hash, parent) = header(&self.block(number).await?);
        if !self.chain.has_seen(hash) {
            let logs = self.ask("eth_getLogs", json!([{"blockHash": hash}])).await?;
            let logs = logs.as_array().expect("a list").iter().map(|own| log(own).1).collect();
            self.chain.saw(CanonBlock {
                number,
                hash,
                parent,
                logs,
            });
        }
        Ok(hash)
    }

    /// Its chain from block 0 on, as it tells it when it is asked now.
    pub async fn canonical(&self) -> Vec<CanonBlock> {
        let (newest, ..) = header(&self.block("latest").await.unwrap());
        let mut blocks = Vec::new();
        for number in 0..=newest {
            let (number, hash, parent) = header(&self.block(&format!("{number:#x}")).await.unwrap());
            let logs = self.ask("eth_getLogs", json!([{"blockHash": hash}])).await.unwrap();
            blocks.push(CanonBlock {
                number,
                hash,
                parent,
                logs: logs.as_array().unwrap().iter().map(|own| log(own).1).collect(),
            });
        }
        blocks
    }
}

/// `None` where it ended at once.
async fn spawn(directory: &Path, port: u16, genesis: u64, state: Option<&Path>) -> Option<Process> {
    let mut command = Command::new(binary()?);
    command
        // More states than the deepest reorg goes back.
        .args(["--host", "127.0.0.1", "--no-mining", "--prune-history", "40"])
        .args(["--port", &port.to_string(), "--timestamp", &genesis.to_string()])
        .arg("--cache-path")
        .arg(directory)
        .stdout(Stdio::piped());
    if let Some(state) = state {
        command.arg("--load-state").arg(state);
    }
    let mut process = Process::start(&mut command);
    let started = timeout(START, process.says("Listening on 127.0.0.1:")).await;
    started.expect("anvil starts in time").then_some(process)
}

/// Does the chain's steps as long as the node is there.
async fn follow(node: std::sync::Weak<Node>) {
    let mut started = 0;
    let mut tries = 0;
    loop {
        let Some(node) = node.upgrade() else { return };
        let starts = node.starts.load(Ordering::SeqCst);
        let trouble = async {
            if starts != started {
                node.done.store(node.locate().await?, Ordering::SeqCst);
                started = starts;
            }
            let done = node.done();
            let Ok(step) = timeout(Duration::from_millis(200), node.chain.step(done)).await else {
                return Ok(());
            };
            while node.held.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(20)).await;
            }
            // While there was nothing to do it may have lost what it had.
            if starts != node.starts.load(Ordering::SeqCst) {
                return Ok(());
            }
            node.take(&step, done + 1).await?;
            node.done.store(done + 1, Ordering::SeqCst);
            node.write(done + 1).await
        };
        match trouble.await {
            Ok(()) => tries = 0,
            Err(Trouble(why)) => {
                // Most likely it was killed. Where it stands is found out when it is back.
                started = 0;
                tries += 1;
                assert!(tries < 600, "anvil {}: {why}", node.name);
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
