//! Nodes as processes, and their outages.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{net::TcpStream, time::sleep};

use crate::{
    LIMIT,
    gate::{Gate, Route},
    process::Process,
};

/// Time that a node may take to end after its address is closed.
const SAVED: Duration = Duration::from_millis(500);

/// Interval at which a starting node is asked for its first answer.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Clone, Debug)]
pub enum Program {
    /// `headwater devnet`, with the path of headwater.
    Devnet(PathBuf),
    /// anvil, with its path.
    Anvil(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    Http,
    Ipc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Nobody listens at the node's address, and its connections are closed.
    Closed,
    /// The process is ended (SIGINT), and another one continues from its state.
    Restarted,
    /// The process is stopped (SIGSTOP) for longer than headwater waits: its address accepts connections.
    Frozen,
}

impl Program {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Devnet(_) => "devnet",
            Self::Anvil(_) => "anvil",
        }
    }

    pub fn has_logs(&self) -> bool {
        matches!(self, Self::Devnet(_))
    }

    pub fn outages(&self) -> &'static [Outage] {
        match self {
            // Its chain ends with its process.
            Self::Devnet(_) => &[Outage::Closed, Outage::Frozen],
            Self::Anvil(_) => &[Outage::Restarted, Outage::Frozen],
        }
    }
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::WebSocket, Self::Http, Self::Ipc];

    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "WebSocket",
            Self::Http => "HTTP",
            Self::Ipc => "IPC",
        }
    }
}

impl Outage {
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "address closed",
            Self::Restarted => "ended and restarted",
            Self::Frozen => "frozen and continued",
        }
    }

    /// Returns the length of an outage; those of several rounds end at all stages of headwater's waits.
    pub fn length(self, round: u32) -> Duration {
        let round = round % 10;
        match self {
            Self::Closed | Self::Restarted => Duration::from_millis(700 + 1_130 * u64::from(round)),
            // `node.silence_timeout` is 10 s.
            Self::Frozen => Duration::from_millis(11_000 + 1_730 * u64::from(round)),
        }
    }
}

/// A running node.
pub struct Node {
    program: Program,
    transport: Transport,
    process: Option<Process>,
    /// Address for WebSocket and HTTP.
    port: SocketAddr,
    gate_port: SocketAddr,
    gate: Gate,
    folder: tempfile::TempDir,
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Node {
    pub async fn start(program: &Program, transport: Transport) -> Result<Self> {
        let (port, gate_port) = (free_port()?, free_port()?);
        let folder = tempfile::tempdir()?;
        let socket = |name: &str| folder.path().join(name);
        let route = match transport {
            Transport::Ipc => Route::Unix {
                gate: socket("gate.ipc"),
                node: socket("node.ipc"),
            },
            _ => Route::Tcp {
                gate: gate_port,
                node: port,
            },
        };
        let mut node = Self {
            program: program.clone(),
            transport,
            process: None,
            port,
            gate_port,
            gate: Gate::new(route),
            folder,
        };
        node.gate.open()?;
        node.run().await?;
        Ok(node)
    }

    /// Returns the upstream's address for headwater. A gate would answer in place of a process that is ended or frozen:
    /// only an address that is closed is a gate's.
    pub fn address(&self) -> String {
        let gated = matches!(self.program, Program::Devnet(_));
        let port = if gated { self.gate_port } else { self.port };
        match self.transport {
            Transport::WebSocket => format!("ws://{port}"),
            Transport::Http => format!("http://{port}"),
            Transport::Ipc => {
                let name = if gated { "gate.ipc" } else { "node.ipc" };
                self.folder.path().join(name).display().to_string()
            }
        }
    }

    async fn run(&mut self) -> Result<Instant> {
        let (port, ipc) = (self.port.port(), self.folder.path().join("node.ipc"));
        let state = self.folder.path().join("state.json");
        let (ipc, state) = (ipc.display(), state.display());
        let (name, binary, args) = match &self.program {
            Program::Devnet(headwater) => (
                "devnet",
                headwater,
                format!("devnet --listen 127.0.0.1:{port} --ipc {ipc} --block-time 200ms --pending-rate 0"),
            ),
            Program::Anvil(anvil) => (
                "anvil",
                anvil,
                format!("--silent --port {port} --ipc {ipc} --block-time 0.2 --state {state}"),
            ),
        };
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        self.process = Some(Process::start_program(name, binary, &args, &[])?);
        first_answer(self.port).await
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().context("the node runs")?;
        let pid = i32::try_from(process.pid())
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id")?;
        kill_process(pid, signal).context("signalling the node")
    }

    pub async fn take_away(&mut self, outage: Outage) -> Result<()> {
        match outage {
            Outage::Closed => self.gate.close(),
            Outage::Restarted => {
                self.signal(Signal::INT)?;
                // The state is saved before the end, and the end closes the address.
                let begun = Instant::now();
                while TcpStream::connect(self.port).await.is_ok() {
                    ensure!(begun.elapsed() < LIMIT, "the node does not end");
                    sleep(LOOK).await;
                }
                sleep(SAVED).await;
                self.process = None;
            }
            Outage::Frozen => self.signal(Signal::STOP)?,
        }
        Ok(())
    }

    /// Ends the outage and returns the time at which the node is back.
    pub async fn bring_back(&mut self, outage: Outage) -> Result<Instant> {
        match outage {
            Outage::Closed => {
                self.gate.open()?;
                Ok(Instant::now())
            }
            Outage::Restarted => self.run().await,
            Outage::Frozen => {
                self.signal(Signal::CONT)?;
                Ok(Instant::now())
            }
        }
    }
}

/// Waits until the node answers a call.
async fn first_answer(port: SocketAddr) -> Result<Instant> {
    let url = format!("http://{port}");
    let client = reqwest::Client::builder().no_proxy().build()?;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber","params":[]}"#;
    let begun = Instant::now();
    loop {
        ensure!(begun.elapsed() < LIMIT, "the node does not start");
        let request = client.post(&url).header("content-type", "application/json").body(body);
        if request.send().await.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(Instant::now());
        }
        sleep(LOOK).await;
    }
}
