//! One run: a fresh server, its clients, a warm-up, and a counted window.

use std::{
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{
    chain::Scenario,
    load::{Totals, monotonic_now},
    process::{Process, Silence},
    proxy::Headwater,
    results::median,
    roles::{LoadArgs, ServeArgs},
    usage::{CpuTime, resident_memory},
};

/// A bound for each step that is not the delivery of an event.
pub const STEP: Duration = Duration::from_secs(60);

/// A bound for the delivery of one event to all clients.
const DELIVERY: Duration = Duration::from_secs(15);

/// Lets the machine come to rest between the phases of a run.
pub const SETTLE: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Server {
    /// The bare `writev` loop.
    Loop,
    /// Stock jsonrpsee.
    Stock,
    Headwater,
    /// headwater before clients that it compresses for.
    Compressed,
}

impl Server {
    pub const ALL: [Self; 4] = [Self::Loop, Self::Stock, Self::Headwater, Self::Compressed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Loop => "writev loop",
            Self::Stock => "jsonrpsee",
            Self::Headwater => "headwater",
            Self::Compressed => "compressed",
        }
    }
}

/// How much is run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub clients: usize,
    pub warmup: usize,
    pub counted: usize,
    /// The shortest time from one event to the next. An event waits for the last client of the one before in any case.
    pub pace: Duration,
    pub headwater: PathBuf,
    pub headwater_args: Vec<String>,
}

/// What one run has shown.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub cpu_ns_per_message: f64,
    /// From the command to produce an event until the last client has it; the median over the counted events.
    pub last_client_us: f64,
    pub connects_per_second: f64,
    /// On the wire, with its header.
    pub bytes_per_message: f64,
    /// Messages that the clients have checked, warm-up included.
    pub checked: u64,
    /// Those among them whose bytes differ from the node's although they say the same.
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
        latencies.push(stage.deliver(event, &mut load, plan.pace)?.as_nanos() as f64 / 1e3);
    }
    // Work that a server puts off until after the delivery counts too, and so would a message too many.
    thread::sleep(SETTLE);
    let cpu = CpuTime::of(stage.server_pid)?.since(&cpu_before);

    load.send("finish")?;
    let totals = load.wait_for("finished ", STEP)?.parse::<Totals>()?;
    let messages = plan.clients * plan.counted * scenario.messages_per_event();
    Ok(Sample {
        cpu_ns_per_message: cpu.as_nanos() as f64 / messages as f64,
        last_client_us: median(&mut latencies),
        connects_per_second: plan.clients as f64 / connecting.as_secs_f64(),
        bytes_per_message: totals.bytes as f64 / totals.checked as f64,
        checked: totals.checked,
        rewritten: totals.rewritten,
    })
}

/// User-space memory for each more client with one subscription that nothing comes from: the slope between half the
/// clients and all, so that what the server needs in any case does not count.
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

/// The server under test, with the process that produces its events.
pub struct Stage {
    /// The server itself, or the node behind it.
    producer: Process,
    _headwater: Option<Headwater>,
    pub server_pid: u32,
    pub address: SocketAddr,
    /// Whether the clients offer compression.
    compress: bool,
}

impl Stage {
    /// `settings` are headwater's, as variables.
    pub fn set(server: Server, work: &ServeArgs, plan: &Plan, settings: &[(&str, &str)]) -> Result<Self> {
        let role = match server {
            Server::Loop => "loop",
            Server::Stock => "stock",
            Server::Headwater | Server::Compressed => "node",
        };
        let mut producer = Process::start_role(role, &work.to_args())?;
        let address = producer
            .wait_for("listening ", STEP)?
            .parse()
            .context("the address of a role")?;
        if matches!(server, Server::Loop | Server::Stock) {
            return Ok(Self {
                server_pid: producer.pid(),
                producer,
                _headwater: None,
                address,
                compress: false,
            });
        }

        let compress = server == Server::Compressed;
        let compression = [("HEADWATER_DELIVERY_COMPRESSION", if compress { "on" } else { "off" })];
        let settings = [&compression, settings].concat();
        let headwater = Headwater::start(&plan.headwater, address, &plan.headwater_args, &settings)?;
        producer
            .wait_for("followed", STEP)
            .context("headwater did not follow its node's head")?;
        thread::sleep(SETTLE);
        Ok(Self {
            server_pid: headwater.process.pid(),
            producer,
            address: headwater.address,
            _headwater: Some(headwater),
            compress,
        })
    }

    pub fn load_args(&self, work: &ServeArgs, clients: usize) -> LoadArgs {
        LoadArgs {
            work: work.clone(),
            server: self.address,
            clients,
            compress: self.compress,
        }
    }

    /// Has one event produced, waits until all clients have it, and gives the time that took.
    pub fn deliver(&mut self, event: usize, load: &mut Process, pace: Duration) -> Result<Duration> {
        let started = Instant::now();
        let commanded = monotonic_now();
        self.producer.send(&event.to_string())?;
        let done = match load.wait_for(&format!("done {event} "), DELIVERY) {
            Ok(at) => Duration::from_nanos(at.parse().context("an odd line from the load generator")?),
            // Something is missing: let the load generator say what.
            Err(silence) if silence.is::<Silence>() => {
                load.send("finish")?;
                load.wait_for("finished ", STEP)?;
                return Err(silence);
            }
            Err(fault) => return Err(fault),
        };
        thread::sleep(pace.saturating_sub(started.elapsed()));
        Ok(done.saturating_sub(commanded))
    }
}
