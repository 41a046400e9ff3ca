//! The measurements: one call with a fixed number in flight, directly and through headwater in turns; and the crowd.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    call::Call,
    crowd,
    http::fetch,
    line::Transport,
    load::{self, Measured},
    modules::Modules,
    node::{Kind, Node},
    peers::Peers,
    process::Process,
    proxy::Headwater,
    relay::Counts,
    results::median,
    usage::{CpuTime, resident_memory},
};

/// Time limit of each step.
pub const STEP: Duration = Duration::from_secs(60);

/// Pause before each block that the crowd requests.
const PACE: Duration = Duration::from_millis(50);

/// The durations of a run.
pub struct Plan {
    pub headwater: PathBuf,
    pub warmup: Duration,
    pub counted: Duration,
}

/// All measurements with one node.
pub struct Results {
    /// Name and version of the node.
    pub node: String,
    pub kind: Kind,
    pub rounds: usize,
    pub cells: Vec<Cell>,
    /// Resident memory of headwater after all rows, in bytes.
    pub memory: u64,
    pub peers: Peers,
    /// Price of an embedder's module; measured before one of the nodes.
    pub modules: Option<Modules>,
    pub crowds: Crowds,
}

/// One row of the table.
pub struct Cell {
    pub call: Call,
    pub transport: Transport,
    pub in_flight: usize,
    pairs: Vec<Pair>,
}

/// Two neighbouring turns, one directly and one through headwater.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    direct: Measured,
    through: Measured,
    /// CPU time per call in microseconds: of the node when called directly, and of headwater.
    cpu_us: (f64, f64),
    /// Share of the calls that headwater forwarded to the node.
    forwarded: f64,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direct, through, .. } = self;
        write!(
            f,
            "p50 {:.0} and {:.0} µs, {:.0} and {:.0} calls/s",
            direct.p50, through.p50, direct.per_second, through.per_second
        )
    }
}

impl Cell {
    pub fn new(call: Call, transport: Transport, in_flight: usize) -> Self {
        Self {
            call,
            transport,
            in_flight,
            pairs: Vec::new(),
        }
    }

    pub fn name(&self) -> String {
        format!(
            "{} over {}, {} in flight",
            self.call.title(),
            self.transport.name(),
            self.in_flight
        )
    }

    pub fn direct(&self) -> Measured {
        self.medians(|pair| pair.direct)
    }

    pub fn through(&self) -> Measured {
        self.medians(|pair| pair.through)
    }

    /// Returns the added p50 latency in milliseconds.
    pub fn added_ms(&self) -> f64 {
        self.median(|pair| (pair.through.p50 - pair.direct.p50) / 1e3)
    }

    /// Returns the calls per second through headwater, relative to those directly.
    pub fn multiple(&self) -> f64 {
        self.median(|pair| pair.through.per_second / pair.direct.per_second)
    }

    /// Returns CPU time per call in microseconds: of the node when called directly, and of headwater.
    pub fn cpu_us(&self) -> (f64, f64) {
        (self.median(|pair| pair.cpu_us.0), self.median(|pair| pair.cpu_us.1))
    }

    pub fn checked(&self) -> u64 {
        self.direct().calls + self.through().calls
    }

    fn medians(&self, side: fn(&Pair) -> Measured) -> Measured {
        Measured {
            calls: self.pairs.iter().map(|pair| side(pair).calls).sum(),
            per_second: self.median(|pair| side(pair).per_second),
            p50: self.median(|pair| side(pair).p50),
            p90: self.median(|pair| side(pair).p90),
            p99: self.median(|pair| side(pair).p99),
        }
    }

    fn median(&self, of: impl Fn(&Pair) -> f64) -> f64 {
        median(&mut self.pairs.iter().map(of).collect::<Vec<_>>())
    }
}

/// A node with headwater in front.
pub struct Stage<'a> {
    node: &'a Node,
    plan: &'a Plan,
    headwater: Headwater,
    /// Number of turns so far.
    turns: u64,
}

impl<'a> Stage<'a> {
    pub fn set(node: &'a Node, plan: &'a Plan) -> Result<Self> {
        Ok(Self {
            node,
            plan,
            headwater: before(node, node.address, plan)?,
            turns: 0,
        })
    }

    /// Runs direct, through, through, direct, so that other load on the machine and drift over time affect both
    /// alike.
    pub fn round(&mut self, cell: &mut Cell) -> Result<Pair> {
        let earlier = self.turn(cell, self.node.address, self.node.pid())?;
        let first = self.through(cell, earlier)?;
        let second = self.through(cell, earlier)?;
        let (direct, cpu_us) = self.turn(cell, self.node.address, self.node.pid())?;
        let second = Pair {
            direct,
            cpu_us: (cpu_us, second.cpu_us.1),
            ..second
        };
        cell.pairs.extend([first, second]);
        Ok(first)
    }

    /// Returns the resident memory of headwater, in bytes.
    pub fn memory(&self) -> Result<u64> {
        resident_memory(self.headwater.process.pid())
    }

    fn through(&mut self, cell: &Cell, (direct, cpu_of_node): (Measured, f64)) -> Result<Pair> {
        let asked = self.forwarded()?;
        let (address, pid) = (self.headwater.address, self.headwater.process.pid());
        let (through, cpu_us) = self.turn(cell, address, pid)?;
        let pair = Pair {
            direct,
            through,
            cpu_us: (cpu_of_node, cpu_us),
            forwarded: (self.forwarded()? - asked) / through.calls as f64,
        };
        let as_meant = if cell.call.is_kept() {
            pair.forwarded < 0.05
        } else {
            (0.999..1.001).contains(&pair.forwarded)
        };
        ensure!(
            as_meant,
            "headwater asked the node for {:.1} % of them",
            pair.forwarded * 100.0
        );
        Ok(pair)
    }

    /// Runs the load once; returns its measurements and the CPU microseconds per call of the process `pid`.
    fn turn(&mut self, cell: &Cell, server: SocketAddr, pid: u32) -> Result<(Measured, f64)> {
        self.turns += 1;
        let args = load::Args {
            server,
            node: self.node.address,
            call: cell.call,
            transport: cell.transport,
            in_flight: cell.in_flight,
            sockets: load::ONE_PROGRAM,
            first: self.turns << 32,
            warmup_ms: self.plan.warmup.as_millis() as u64,
            counted_ms: self.plan.counted.as_millis() as u64,
        };
        turn(&args, pid)
    }

    /// Returns the number of calls that headwater has forwarded, by headwater's own metric.
    fn forwarded(&self) -> Result<f64> {
        let (_, page) = fetch(self.headwater.admin, "GET", "/metrics", "").context("its metrics")?;
        let counts = page
            .lines()
            .filter(|line| line.starts_with("headwater_forwarded_calls_total{"))
            .filter_map(|line| line.rsplit(' ').next())
            .map(str::parse::<f64>);
        Ok(counts.sum::<Result<f64, _>>()?)
    }
}

/// Runs the load once; returns its measurements and the CPU microseconds per call of the process `pid`.
pub fn turn(args: &load::Args, pid: u32) -> Result<(Measured, f64)> {
    let mut load = Process::start_role("load", &args.to_args())?;
    load.wait_for("ready", STEP)?;
    let cpu = CpuTime::of(pid)?;
    load.send("go")?;
    let measured: Measured = load.wait_for("measured ", STEP)?.parse()?;
    let cpu = CpuTime::of(pid)?.since(&cpu);
    Ok((measured, cpu.as_nanos() as f64 / 1e3 / measured.calls as f64))
}

/// Starts a headwater that reaches the node at `address`, and waits until it knows the node's head.
pub fn before(node: &Node, address: SocketAddr, plan: &Plan) -> Result<Headwater> {
    let headwater = Headwater::start(&plan.headwater, address, &[], &[])?;
    let level = format!("ready: head {}\n", node.head()?);
    let until = Instant::now() + STEP;
    while fetch(headwater.admin, "GET", "/ready", "")?.1 != level {
        ensure!(Instant::now() < until, "headwater does not follow its node");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(headwater)
}

/// Clients that request each new block: directly, and through headwater.
pub struct Crowds {
    pub clients: usize,
    pub blocks: u64,
    /// Median time from the first announcement until the last client has a block, in milliseconds.
    pub direct_ms: f64,
    pub through_ms: f64,
    /// Calls that reached the node through headwater, without those of the startup.
    pub asked: Counts,
}

impl Crowds {
    pub fn measure(node: &Node, plan: &Plan, clients: usize, blocks: u64) -> Result<Self> {
        let mut relay = Process::start_role("relay", &[format!("--node={}", node.address)])?;
        let address = relay.wait_for("listening ", STEP)?.parse()?;
        let headwater = before(node, address, plan)?;
        let mut count = || -> Result<Counts> {
            relay.send("count")?;
            Ok(serde_json::from_str(&relay.wait_for("counted ", STEP)?)?)
        };
        let direct_ms = crowd(node, node.address, clients, blocks).context("directly")?;
        // headwater has followed the blocks of the direct run too; its own requests for them must not count as the
        // crowd's.
        thread::sleep(4 * PACE);
        let earlier = count()?;
        let through_ms = crowd(node, headwater.address, clients, blocks).context("through headwater")?;
        let mut asked = count()?;
        for (method, count) in &mut asked {
            *count -= earlier.get(method).unwrap_or(&0);
        }
        asked.retain(|_, count| *count > 0);
        Ok(Self {
            clients,
            blocks,
            direct_ms,
            through_ms,
            asked,
        })
    }

    /// Returns the number of `eth_getBlockByNumber` calls that the node received, per block.
    pub fn asked_per_block(&self) -> f64 {
        *self.asked.get("eth_getBlockByNumber").unwrap_or(&0) as f64 / self.blocks as f64
    }
}

/// Returns the milliseconds until the last client has a block, as the median over all blocks.
fn crowd(node: &Node, server: SocketAddr, clients: usize, blocks: u64) -> Result<f64> {
    let mut crowd = Process::start_role("crowd", &crowd::Args { server, clients }.to_args())?;
    crowd.wait_for("ready", STEP)?;
    let mut times = Vec::new();
    for _ in 0..blocks {
        thread::sleep(PACE);
        node.mine()?;
        let micros: f64 = crowd.wait_for(&format!("done {} ", node.head()?), STEP)?.parse()?;
        times.push(micros / 1e3);
    }
    Ok(median(&mut times))
}
