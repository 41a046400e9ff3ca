//! A real node that mines on command.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    http::{ask, quantity},
    process::Process,
};

const START: Duration = Duration::from_secs(60);

/// Number of blocks mined before a measurement, so that the chain is not empty.
const BLOCKS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    #[allow(dead_code, reason = "the fan-out is measured before geth alone")]
    Anvil,
    Geth,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Anvil => "anvil",
            Self::Geth => "geth",
        }
    }
}

/// A running node, stopped when dropped.
pub struct Node {
    kind: Kind,
    process: Process,
    /// Address for both WebSocket and HTTP.
    pub address: SocketAddr,
}

impl Node {
    pub fn start(kind: Kind, binary: &Path) -> Result<Self> {
        // The port is chosen here: a node that logs its listen address also logs each request, which costs time.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let port = address.port();
        let args = match kind {
            Kind::Anvil => format!("--silent --no-mining --host 127.0.0.1 --port {port}"),
            Kind::Geth => format!(
                "--dev --verbosity 1 --nodiscover --maxpeers 0 --ipcdisable --authrpc.port 0 --http --http.addr 127.0.0.1 \
                 --http.port {port} --ws --ws.addr 127.0.0.1 --ws.port {port}"
            ),
        };
        let args: Vec<String> = args
            .split(' ')
            .filter(|arg| !arg.is_empty())
            .map(str::to_owned)
            .collect();
        let node = Self {
            kind,
            process: Process::start_program(kind.name(), binary, &args, &[])?,
            address,
        };
        let until = Instant::now() + START;
        while node.version().is_err() {
            ensure!(Instant::now() < until, "it does not answer on {address}");
            thread::sleep(Duration::from_millis(50));
        }
        for _ in 0..BLOCKS {
            node.mine()?;
        }
        Ok(node)
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the node's name and version, without the build platform.
    pub fn version(&self) -> Result<String> {
        let version: String = serde_json::from_str(ask(self.address, "web3_clientVersion", "[]")?.get())?;
        Ok(version.split(['-', '+']).next().unwrap_or_default().to_owned())
    }

    /// Returns the block number of the node's head.
    pub fn head(&self) -> Result<u64> {
        let number: String = serde_json::from_str(ask(self.address, "eth_blockNumber", "[]")?.get())?;
        quantity(&number)
    }

    /// Mines one block and waits until it is the head.
    pub fn mine(&self) -> Result<()> {
        let before = self.head()?;
        match self.kind {
            Kind::Anvil => drop(ask(self.address, "evm_mine", "[]")?),
            // A development chain of geth mines one block per transaction.
            Kind::Geth => return self.send(&json!({"value": "0x1"})),
        }
        self.until_above(before)
    }

    /// Sends a transaction of the developer's account, for which a development chain of geth mines a block, and waits until
    /// that is the head. The members decide about the rest; it goes to the account itself unless it has data.
    pub fn send(&self, members: &Value) -> Result<()> {
        let before = self.head()?;
        let accounts: Vec<String> = serde_json::from_str(ask(self.address, "eth_accounts", "[]")?.get())?;
        let own = accounts.first().context("a geth without its developer's account")?;
        let mut transaction = members.clone();
        transaction["from"] = own.as_str().into();
        if transaction.get("data").is_none() {
            transaction["to"] = own.as_str().into();
        }
        drop(ask(
            self.address,
            "eth_sendTransaction",
            &json!([transaction]).to_string(),
        )?);
        self.until_above(before)
    }

    fn until_above(&self, before: u64) -> Result<()> {
        let until = Instant::now() + START;
        while self.head()? == before {
            ensure!(Instant::now() < until, "no block was mined");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
