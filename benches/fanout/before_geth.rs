//! Fan-out of a real node: by geth itself, through proxies of others, and through headwater.
//!
//! The clients are `headwater bench`, which compares what they receive and fails if an event is lost, doubled or out of
//! order. Events are blocks that geth mines for transactions of ours.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use alloy_primitives::{B256, U256};
use anyhow::{Context, Result, anyhow, bail};
use indicatif::HumanCount;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    peer::{Peer, PeerKind},
    proxy::Headwater,
    real_node::{Kind, Node},
    results::median,
    svg::{Bars, shown},
};

/// Init code that emits [`LOGS`] logs of 32 bytes, whose only topics count down to 1: a loop of LOG1.
const BURST: &str = "0x60645b8060206000a1600190038060025700";
const LOGS: u64 = 100;

const GETH: &str = "geth";
const HEADWATER: &str = "headwater";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    Heads,
    /// The hundred logs of each block to every client.
    Bursts,
    /// One log of each block to every client, by filters of which two clients each have the same.
    Filters,
}

impl Scenario {
    const ALL: [Self; 3] = [Self::Heads, Self::Bursts, Self::Filters];

    fn title(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Bursts => "bursts of 100 logs",
            Self::Filters => "a log each, by 500 filters",
        }
    }

    /// Returns fewer clients for bursts, of which geth itself writes one after the other.
    fn clients(self) -> usize {
        match self {
            Self::Heads | Self::Filters => 1000,
            Self::Bursts => 200,
        }
    }

    /// Returns the time between blocks: enough for geth to serve all clients itself.
    fn pace(self) -> Duration {
        Duration::from_millis(match self {
            Self::Heads => 300,
            Self::Bursts => 1200,
            Self::Filters => 600,
        })
    }

    fn duration(self) -> &'static str {
        match self {
            Self::Heads => "5s",
            Self::Bursts | Self::Filters => "7s",
        }
    }

    fn subscribe_args(self) -> Vec<String> {
        let kind = if self == Self::Heads { "newHeads" } else { "logs" };
        let mut args = vec![format!("--kind={kind}")];
        if self == Self::Filters {
            let topic = |number: u64| B256::from(U256::from(number));
            let filter = |number: u64| json!({"topics": [[topic(1 + number % LOGS), topic(1_000 + number)]]});
            args.extend((0..500).map(|number| format!("--filter={}", filter(number))));
        }
        args
    }
}

/// The members of the report of `headwater bench` that are shown.
#[derive(Debug, Deserialize)]
struct Report {
    deliveries: u64,
    last_client: Times,
    server: Server,
}

#[derive(Debug, Deserialize)]
struct Times {
    p50_us: f64,
}

#[derive(Debug, Deserialize)]
struct Server {
    cpu_us_per_delivery: f64,
}

/// All reports of one server and scenario, one per round.
struct Row {
    scenario: Scenario,
    server: &'static str,
    reports: Vec<Report>,
}

impl Row {
    fn median(&self, of: fn(&Report) -> f64) -> f64 {
        median(&mut self.reports.iter().map(of).collect::<Vec<_>>())
    }

    fn cpu_us(&self) -> f64 {
        self.median(|report| report.server.cpu_us_per_delivery)
    }
}

/// The measurements before one geth.
pub struct BeforeGeth {
    version: String,
    rows: Vec<Row>,
}

/// A server that clients are connected to.
enum Front {
    Node,
    Peer(Peer),
    Headwater(Headwater),
}

impl BeforeGeth {
    pub fn measure(geth: &Path, headwater: &Path, peers: &[(PeerKind, &Path)], rounds: usize) -> Result<Self> {
        let node = Node::start(Kind::Geth, geth).context("starting geth")?;
        let names = peers.iter().map(|(kind, _)| kind.name());
        let servers: Vec<&'static str> = [GETH].into_iter().chain(names).chain([HEADWATER]).collect();
        let mut rows: Vec<Row> = Scenario::ALL
            .iter()
            .flat_map(|scenario| servers.iter().map(|server| (*scenario, *server)))
            .map(|(scenario, server)| Row {
                scenario,
                server,
                reports: Vec::new(),
            })
            .collect();
        for round in 1..=rounds {
            for row in &mut rows {
                let what = format!(
                    "before geth: {} {}, round {round} of {rounds}",
                    row.server,
                    row.scenario.title()
                );
                let peer = peers.iter().find(|(kind, _)| kind.name() == row.server);
                let front = match peer {
                    Some((kind, binary)) => Front::Peer(Peer::start(*kind, binary, node.address)?),
                    None if row.server == GETH => Front::Node,
                    None => Front::Headwater(Headwater::start(headwater, node.address, &[], &[])?),
                };
                let (address, pid) = match &front {
                    Front::Node => (node.address, node.pid()),
                    Front::Peer(peer) => (peer.address, peer.pid()),
                    Front::Headwater(headwater) => (headwater.address, headwater.process.pid()),
                };
                let report = load(&node, headwater, row.scenario, address, pid).with_context(|| what.clone())?;
                eprintln!("{what}: {:.2} µs CPU a delivery", report.server.cpu_us_per_delivery);
                row.reports.push(report);
            }
        }
        Ok(Self {
            version: node.version()?,
            rows,
        })
    }

    pub fn checked(&self) -> u64 {
        self.rows
            .iter()
            .flat_map(|row| &row.reports)
            .map(|report| report.deliveries)
            .sum()
    }

    pub fn table(&self) -> String {
        let mut out = format!(
            "\n## Before a real node\n\n![before geth](before-geth.svg)\n\n{} mines a block for each transaction of ours; clients ask geth \
             itself, a proxy before it that is installed here, or headwater. HAProxy and nginx open a connection to geth for each \
             client, so geth's own CPU is spent with them too. CPU of the server that the clients are connected to; for geth that \
             includes its blocks.\n\n\
             | events | clients | server | µs CPU a delivery | × headwater | last after the first client (p50) |\n|---|---|---|---|---|---|\n",
            self.version
        );
        for row in &self.rows {
            let ours = self.find(row.scenario, HEADWATER).map_or(f64::NAN, Row::cpu_us);
            let _infallible = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {:.2} ms |",
                row.scenario.title(),
                HumanCount(row.scenario.clients() as u64),
                row.server,
                shown(row.cpu_us()),
                shown(row.cpu_us() / ours),
                row.median(|report| report.last_client.p50_us) / 1e3,
            );
        }
        out
    }

    pub fn plot(&self) -> String {
        let mut servers: Vec<&str> = self.rows.iter().map(|row| row.server).collect();
        servers.sort_unstable();
        servers.dedup();
        // headwater in the first colour, as in the other plots.
        servers.sort_by_key(|server| *server != HEADWATER);
        let groups = Scenario::ALL.iter().map(|scenario| {
            let cpu = |server: &&str| self.find(*scenario, server).map(Row::cpu_us);
            (scenario.title().to_owned(), servers.iter().map(cpu).collect())
        });
        let bars = Bars {
            title: "µs of CPU for each delivery before geth (logarithmic, from 0.1)",
            floor: 0.1,
            series: &servers,
            groups: groups.collect(),
        };
        bars.draw()
    }

    fn find(&self, scenario: Scenario, server: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.scenario == scenario && row.server == server)
    }
}

/// Runs `headwater bench` against the server while geth mines.
fn load(node: &Node, headwater: &Path, scenario: Scenario, server: SocketAddr, pid: u32) -> Result<Report> {
    let mut command = Command::new(std::env::current_exe().context("the path of the benchmark")?);
    command
        .arg("exec")
        .arg(headwater)
        .args(["bench", "--json", "--connect-rate=1500"])
        .arg(format!("--clients={}", scenario.clients()))
        .arg(format!("--duration={}", scenario.duration()))
        .arg(format!("--pid={pid}"))
        .args(scenario.subscribe_args())
        .arg(format!("ws://{server}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let load = command.spawn().context("cannot start `headwater bench`")?;
    // The load's output is read while it runs: a report with hundreds of filters is longer than a pipe.
    let reading = thread::spawn(move || load.wait_with_output());
    while !reading.is_finished() {
        mine(node, scenario)?;
        thread::sleep(scenario.pace());
    }
    let output = reading
        .join()
        .map_err(|_| anyhow!("the thread that reads its output panicked"))??;
    if !output.status.success() {
        let [faults, why] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        bail!("headwater bench: {}\n{faults}", why.trim());
    }
    serde_json::from_slice(&output.stdout).context("the report of `headwater bench`")
}

fn mine(node: &Node, scenario: Scenario) -> Result<()> {
    match scenario {
        Scenario::Heads => node.mine(),
        Scenario::Bursts | Scenario::Filters => node.send(&creation()),
    }
}

/// Members of the transaction that emits the logs.
fn creation() -> Value {
    json!({"gas": "0x7a120", "data": BURST})
}
