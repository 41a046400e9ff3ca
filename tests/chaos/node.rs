//! anvil: follows the chain's steps, is killed, stopped and delayed, and restarts from its state on disk.
//!
//! The test saves anvil's state now and then (`anvil_dumpState`: accounts, and the blocks with their hashes and
//! logs). A kill loses all later steps, as with any node that has not written them; the node repeats those steps,
//! which gives the same blocks. anvil 1.7.1 also writes states of older blocks (`--preserve-historical-states`), but
//! without contract code, so a reorg cannot go below the loaded block; therefore only a sufficiently old state is
//! loaded.

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

/// Time limit for the start of a node, which takes seconds even with a large state.
const START: Duration = Duration::from_secs(30);

/// Maximum size in bytes of a state, enough for the longest run.
const MAX_STATE: u32 = 256 << 20;

/// Number of states kept: if the newest is too recent to start from, an older one is not.
const KEPT_STATES: usize = 4;

/// Base fee of every block: anvil would derive it from the newest block, even after a reorg.
const BASE_FEE: &str = "0x3b9aca00";

/// Returns the path of anvil; `None`, with a printed line, if there is none.
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

/// One anvil node.
pub struct Node {
    name: &'static str,
    chain: Arc<Chain>,
    directory: PathBuf,
    port: u16,
    client: HttpClient,
    /// Locked by a fault until the process runs again.
    process: Mutex<Process>,
    /// Number of starts.
    starts: AtomicU64,
    /// Number of steps done.
    done: AtomicUsize,
    /// `true` while the node must not execute steps.
    held: AtomicBool,
    /// Numbers of steps whose state was saved.
    states: parking_lot::Mutex<Vec<usize>>,
}

/// Error of a call to a node.
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

    /// Returns the number of the chain's steps done.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    /// Kills the process with `kill -9` and restarts it after `down`.
    pub async fn kill(&self, down: Duration) {
        let mut process = self.process.lock().await;
        self.starts.fetch_add(1, Ordering::SeqCst);
        process.kill();
        sleep(down).await;
        self.start_again(&mut process).await;
    }

    /// Stops the process with SIGSTOP, and continues it with SIGCONT after `duration`.
    pub async fn freeze(&self, duration: Duration) {
        let process = self.process.lock().await;
        process.freeze();
        sleep(duration).await;
        process.thaw();
    }

    /// Makes the node fall behind for `duration`; it answers as usual.
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

    /// Returns the path of the state after `done` steps.
    fn state(&self, done: usize) -> PathBuf {
        self.directory.join(format!("{done}.json"))
    }

    /// Saves the state; rarely, because it contains the whole chain.
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
        // A state on a dropped branch is useless and goes first; then the oldest.
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

    /// Returns the number of steps that lead to the node's head; rolls back an unfinished step.
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
        // anvil's own clock sets the times of a reorg's blocks: it starts at the common ancestor's time and advances
        // in seconds. The times are part of the hashes, so a reorg during which the clock advanced is repeated.
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

    /// Returns the node's current chain from block 0 on.
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

/// Starts anvil; `None` if it exits at once.
async fn spawn(directory: &Path, port: u16, genesis: u64, state: Option<&Path>) -> Option<Process> {
    let mut command = Command::new(binary()?);
    command
        // Keeps more states than the deepest reorg needs.
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

/// Executes the chain's steps as long as the node exists.
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
            // The node may have lost its blocks while it was idle.
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
                // Most likely the node was killed. Its position is determined again after the restart.
                started = 0;
                tries += 1;
                assert!(tries < 600, "anvil {}: {why}", node.name);
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
