//! One run: a fresh server, its clients, a warm-up, and a counted window.

use std::{
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::{
    arrivals::Arrivals,
    chain::Scenario,
    load::{Totals, monotonic_now},
    process::{Process, Silence},
    proxy::Headwater,
    results::median,
    roles::{LoadArgs, ServeArgs},
    usage::{CpuTime, resident_memory},
};

/// Time limit of each step other than the delivery of an event.
pub const STEP: Duration = Duration::from_secs(60);

/// Time limit for the delivery of one event to all clients.
const DELIVERY: Duration = Duration::from_secs(15);

/// Pause between the phases of a run, for the machine to become idle.
pub const SETTLE: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Server {
    /// The bare `writev` loop.
    Loop,
    /// The bare loop, with one id and so one piece of bytes for all clients.
    Shared,
    /// Stock jsonrpsee with headwater as its module.
    Stock,
    Headwater,
    /// headwater with clients that use compression.
    Compressed,
    /// headwater with clients of server-sent events.
    EventStream,
}

impl Server {
    pub const ALL: [Self; 6] = [
        Self::Loop,
        Self::Shared,
        Self::Stock,
        Self::Headwater,
        Self::Compressed,
        Self::EventStream,
    ];

    /// Checks if the server is worth a run unless it is named. jsonrpsee's delivery of a hundred logs to 9,000 clients takes longer
    /// than everything else together, and is compared in the kinds of every node; a shared block is the limit of bursts alone, and
    /// the hash of a transaction is too short to be compressed.
    pub fn is_run(self, scenario: Scenario, clients: usize) -> bool {
        match self {
            Self::Loop | Self::Headwater => true,
            Self::Shared => scenario == Scenario::Bursts,
            Self::Stock => clients <= 1_000 && scenario != Scenario::Blocks,
            Self::Compressed | Self::EventStream => !scenario.is_pending(),
        }
    }

    /// Checks if the server produces the events itself.
    fn is_loop(self) -> bool {
        matches!(self, Self::Loop | Self::Shared)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Loop => "writev loop",
            Self::Shared => "shared loop",
            Self::Stock => "jsonrpsee",
            Self::Headwater => "headwater",
            Self::Compressed => "compressed",
            Self::EventStream => "event stream",
        }
    }
}

/// The size and pace of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub clients: usize,
    pub warmup: usize,
    pub counted: usize,
    /// Minimum time between two events. An event also waits until the last client has received the one before.
    pub pace: Duration,
    pub headwater: PathBuf,
    pub headwater_args: Vec<String>,
}

/// Times in microseconds from the command to produce an event until the first, half, 99 % and the last of the clients
/// have it; medians over the events.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub first: f64,
    pub p50: f64,
    pub p99: f64,
    pub last: f64,
}

impl Latency {
    pub fn in_millis(self) -> String {
        self.join(1e3)
    }

    /// Formats multiples of another server's times.
    pub fn as_ratios(self) -> String {
        self.join(1.0)
    }

    fn join(self, unit: f64) -> String {
        [self.first, self.p50, self.p99, self.last]
            .map(|value| format!("{:.2}", value / unit))
            .join(" / ")
    }

    pub fn to_json(self) -> Value {
        let Self { first, p50, p99, last } = self;
        json!({"first": first, "p50": p50, "p99": p99, "last": last})
    }

    fn of(events: &[Arrivals]) -> Self {
        let of = |field: fn(&Arrivals) -> Duration| {
            let micros = events.iter().map(|event| field(event).as_nanos() as f64 / 1e3);
            median(&mut micros.collect::<Vec<_>>())
        };
        Self {
            first: of(|event| event.first),
            p50: of(|event| event.p50),
            p99: of(|event| event.p99),
            last: of(|event| event.last),
        }
    }
}

/// The measurements of one run.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub cpu_ns_per_message: f64,
    /// Times from the command to produce an event until clients have it.
    pub latency: Latency,
    pub connects_per_second: f64,
    /// Bytes on the wire, with the frame header.
    pub bytes_per_message: f64,
    /// Number of messages that the clients have checked, warm-up included.
    pub checked: u64,
    /// Messages among `checked` whose bytes differ from the node's, although the JSON is equal.
    pub rewritten: u64,
}

impl Plan {
    pub fn work(&self, scenario: Scenario) -> Result<ServeArgs> {
        Ok(ServeArgs {
            scenario,
            events: self.warmup + self.counted,
            epoch: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .context("a clock before 1970")?
                .as_secs(),
        })
    }
}

pub fn measure(server: Server, scenario: Scenario, plan: &Plan) -> Result<Sample> {
    let work = plan.work(scenario)?;
    let mut stage = Stage::set(server, &work, plan, &[])?;
    let mut load = Process::start_role("load", &stage.load_args(&work, plan.clients).to_args())?;
    let connecting = load.wait_for("ready ", STEP)?;
    let connecting = Duration::from_nanos(connecting.parse().context("an odd line from the load generator")?);
    thread::sleep(SETTLE);

    for event in 0..plan.warmup {
        stage.deliver(event, &mut load, plan.pace)?;
    }
    thread::sleep(SETTLE);
    let cpu_before = CpuTime::of(stage.server_pid)?;
    let mut latencies = Vec::with_capacity(plan.counted);
    for event in plan.warmup..plan.warmup + plan.counted {
        latencies.push(stage.deliver(event, &mut load, plan.pace)?);
    }
    // Work that a server defers until after the delivery counts too, and a surplus message is still detected.
    thread::sleep(SETTLE);
    let cpu = CpuTime::of(stage.server_pid)?.since(&cpu_before);

    load.send("finish")?;
    let totals = load.wait_for("finished ", STEP)?.parse::<Totals>()?;
    let messages = plan.clients * plan.counted * scenario.messages_per_event();
    Ok(Sample {
        cpu_ns_per_message: cpu.as_nanos() as f64 / messages as f64,
        latency: Latency::of(&latencies),
        connects_per_second: plan.clients as f64 / connecting.as_secs_f64(),
        bytes_per_message: totals.bytes as f64 / totals.checked as f64,
        checked: totals.checked,
        rewritten: totals.rewritten,
    })
}

/// Measures user-space memory in bytes per additional idle client with one subscription: the slope between half the
/// clients and all of them, which excludes the server's fixed memory.
pub fn idle_memory(server: Server, plan: &Plan) -> Result<f64> {
    let work = plan.work(Scenario::Heads)?;
    let stage = Stage::set(server, &work, plan, &[])?;
    let mut resident = Vec::new();
    let mut loads = Vec::new();
    for _half in 0..2 {
        let mut load = Process::start_role("load", &stage.load_args(&work, plan.clients / 2).to_args())?;
        load.wait_for("ready", STEP)?;
        loads.push(load);
        thread::sleep(SETTLE);
        resident.push(resident_memory(stage.server_pid)? as f64);
    }
    Ok((resident[1] - resident[0]) / (plan.clients / 2) as f64)
}

/// The server under test and the process that produces its events.
pub struct Stage {
    /// The server itself, or the node behind it.
    producer: Process,
    _front: Option<Front>,
    pub server_pid: u32,
    pub address: SocketAddr,
    /// `true` if the clients offer compression.
    compress: bool,
    /// `true` if the clients read server-sent events.
    event_stream: bool,
}

/// A server before the scripted node.
enum Front {
    Headwater(Headwater),
    Stock(Process),
}

impl Front {
    fn pid(&self) -> u32 {
        match self {
            Self::Headwater(headwater) => headwater.process.pid(),
            Self::Stock(process) => process.pid(),
        }
    }
}

impl Stage {
    /// Starts the server; `settings` are environment variables for headwater.
    pub fn set(server: Server, work: &ServeArgs, plan: &Plan, settings: &[(&str, &str)]) -> Result<Self> {
        let role = if server.is_loop() { "loop" } else { "node" };
        let mut args = work.to_args();
        args.extend((server == Server::Shared).then(|| "--shared".to_owned()));
        let mut producer = Process::start_role(role, &args)?;
        let node = address_of(&mut producer)?;
        let compress = server == Server::Compressed;
        let (front, address) = match server {
            Server::Loop | Server::Shared => (None, node),
            Server::Stock => {
                let mut stock = Process::start_role("stock", &[format!("--upstream={node}")])?;
                let address = address_of(&mut stock)?;
                (Some(Front::Stock(stock)), address)
            }
            Server::Headwater | Server::Compressed | Server::EventStream => {
                let compression = [("HEADWATER_DELIVERY_COMPRESSION", if compress { "on" } else { "off" })];
                let settings = [&compression, settings].concat();
                let headwater = Headwater::start(&plan.headwater, node, &plan.headwater_args, &settings)?;
                let address = headwater.address;
                (Some(Front::Headwater(headwater)), address)
            }
        };
        if front.is_some() {
            producer
                .wait_for("followed", STEP)
                .context("the server did not follow its node's head")?;
            thread::sleep(SETTLE);
        }
        Ok(Self {
            server_pid: front.as_ref().map_or(producer.pid(), Front::pid),
            producer,
            _front: front,
            address,
            compress,
            event_stream: server == Server::EventStream,
        })
    }

    pub fn load_args(&self, work: &ServeArgs, clients: usize) -> LoadArgs {
        LoadArgs {
            work: work.clone(),
            server: self.address,
            clients,
            compress: self.compress,
            event_stream: self.event_stream,
        }
    }

    /// Has one event produced, waits until all clients have it, and returns the times from the command.
    pub fn deliver(&mut self, event: usize, load: &mut Process, pace: Duration) -> Result<Arrivals> {
        let started = Instant::now();
        let commanded = monotonic_now();
        self.producer.send(&event.to_string())?;
        let arrivals: Arrivals = match load.wait_for(&format!("done {event} "), DELIVERY) {
            Ok(arrivals) => arrivals.parse()?,
            // A message is missing: the load generator reports which.
            Err(silence) if silence.is::<Silence>() => {
                load.send("finish")?;
                load.wait_for("finished ", STEP)?;
                return Err(silence);
            }
            Err(fault) => return Err(fault),
        };
        thread::sleep(pace.saturating_sub(started.elapsed()));
        Ok(arrivals.since(commanded))
    }
}

/// Reads the address on which a role listens.
fn address_of(role: &mut Process) -> Result<SocketAddr> {
    role.wait_for("listening ", STEP)?
        .parse()
        .context("the address of a role")
}
