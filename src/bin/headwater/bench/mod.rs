//! `headwater bench`: many clients on one endpoint, each of which checks its own notifications.
//!
//! One thread, one small task per client, one buffer for all reads. Late, duplicate and lost events are found by
//! comparison with the other clients, so any endpoint can be measured, whatever produces its events.

mod client;
mod frames;
mod report;
mod run;
mod stream;
mod usage;

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{HumanCount, ProgressBar, ProgressFinish};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::MissedTickBehavior;

use self::client::{Shared, Target};
use self::report::{Connecting, Report, Server, Times};
use self::run::{Counts, Run};
use self::stream::Kind;
use self::usage::{CpuTime, resident_memory};

/// Simultaneous handshakes; below the listen backlog of most servers.
const CONNECTING_AT_ONCE: usize = 64;

/// Pause after connecting, before memory is read and the measurement window begins.
const SETTLE: Duration = Duration::from_secs(1);

/// Time limit for outstanding events after the end of the run; an event still missing then is lost.
const GRACE: Duration = Duration::from_secs(5);

/// Open files besides the clients' sockets: standard streams, the runtime's own.
const OTHER_FILES: u64 = 64;

const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Endpoint to load: headwater, a node, another proxy.
    #[arg(default_value = "ws://127.0.0.1:9546")]
    url: String,
    /// Number of clients.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    clients: usize,
    /// Subscriptions of each client: newHeads, logs, or both.
    #[arg(
        long = "kind",
        value_name = "KIND",
        value_delimiter = ',',
        default_value = "newHeads"
    )]
    kinds: Vec<Kind>,
    /// Filter of the logs; several filters are distributed among the clients in turn.
    #[arg(long = "filter", value_name = "JSON", value_parser = parse_filter)]
    filters: Vec<Value>,
    /// Length of the measurement, once all clients are connected.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// New clients per second.
    #[arg(long, value_name = "N", default_value_t = 400.0)]
    connect_rate: f64,
    /// Offer permessage-deflate; an endpoint that declines it fails the run.
    #[arg(long)]
    compress: bool,
    /// Process id of the server on this machine; its CPU time and memory are then reported too (start the server
    /// afresh: memory that earlier clients freed is reused).
    #[arg(long)]
    pid: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn parse_filter(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(filter @ Value::Object(_)) => Ok(filter),
        Ok(_) => Err("a filter is an object such as {\"address\": \"0x…\"}".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs for the given duration or until SIGINT.
///
/// # Errors
/// Returns an error if an argument is not valid, if a client cannot connect and subscribe, if an event was lost,
/// doubled or out of order, if a connection was closed, or if no event arrived.
pub fn bench(mut args: BenchArgs) -> Result<()> {
    ensure!(args.clients > 0, "--clients must be at least 1");
    ensure!(
        args.connect_rate.is_finite() && args.connect_rate > 0.0,
        "--connect-rate must be above 0"
    );
    args.kinds.sort_by_key(|kind| *kind as u8);
    args.kinds.dedup();
    if args.filters.is_empty() {
        args.filters.push(Value::Object(serde_json::Map::new()));
    } else {
        ensure!(
            args.kinds.contains(&Kind::Logs),
            "--filter applies to logs only; add --kind logs"
        );
        ensure!(
            args.filters.len() <= args.clients,
            "there are more filters than clients; raise --clients"
        );
    }
    let allowed = rlimit::increase_nofile_limit(u64::MAX).context("cannot read the limit of open files")?;
    let needed = args.clients as u64 + OTHER_FILES;
    ensure!(
        needed <= allowed,
        "{} clients need {needed} open files and {allowed} are allowed; raise ulimit -n or use fewer --clients",
        args.clients
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = LocalSet::new().block_on(&runtime, measure(&args))?;
    let text = if args.json {
        serde_json::to_string(&report)? + "\n"
    } else {
        report.to_string()
    };
    // A closed pipe does not change the verdict.
    drop(std::io::stdout().write_all(text.as_bytes()));
    let Report {
        lost,
        doubled,
        disordered,
        closed,
        ..
    } = report;
    ensure!(
        (lost, doubled, disordered, closed) == (0, 0, 0, 0),
        "the endpoint failed the check: {lost} lost, {doubled} doubled, {disordered} out of order, {closed} closed"
    );
    ensure!(
        report.deliveries > 0,
        "no event arrived in {:.1} s, so nothing was checked; use a longer --duration",
        report.seconds
    );
    Ok(())
}

async fn measure(args: &BenchArgs) -> Result<Report> {
    let mut server = args.pid.map(Watched::begin).transpose()?;
    let run = Run::new(args.clients, &args.kinds, &args.filters, args.compress);
    let mut fleet = Fleet::new(Target::of(&args.url, args.compress).await?, run, args);

    let mut connecting = Duration::ZERO;
    for up_to in [args.clients / 2, args.clients] {
        let started = Instant::now();
        fleet.connect(up_to).await?;
        connecting += started.elapsed();
        fleet.pass(SETTLE).await?;
        if let Some(server) = &mut server {
            server.look()?;
        }
    }

    let window = fleet.shared.run.borrow().mark();
    fleet.shared.run.borrow_mut().counting = true;
    let started = Instant::now();
    tokio::select! {
        passed = fleet.pass(args.duration) => passed?,
        // SIGINT ends the window early; the figures so far are reported.
        _ = tokio::signal::ctrl_c() => {}
    }
    let seconds = started.elapsed().as_secs_f64();
    fleet.shared.run.borrow_mut().counting = false;
    let deliveries = fleet.shared.run.borrow().counts.deliveries;
    let server = server.map(|server| server.end(deliveries, args.clients)).transpose()?;
    let end = fleet.shared.run.borrow().mark();
    fleet.complete(&end).await?;

    let run = fleet.shared.run.borrow();
    let Counts {
        bytes, spread, last, ..
    } = &run.counts;
    let mut faults = run.faults(&window, &end, &fleet.gone);
    let closed = run.closed.iter();
    faults
        .first
        .extend(closed.map(|(why, clients)| format!("{clients} closed: {why}")));
    Ok(Report {
        url: args.url.clone(),
        clients: args.clients,
        subscriptions: run.subscriptions(),
        connecting: Connecting {
            seconds: connecting.as_secs_f64(),
            per_second: args.clients as f64 / connecting.as_secs_f64(),
            handshake: Times::of(&fleet.handshakes.borrow()),
        },
        seconds,
        events: window.iter().zip(&end).map(|(window, end)| (end - window) as u64).sum(),
        deliveries,
        deliveries_per_second: deliveries as f64 / seconds,
        bytes: *bytes,
        spread: Times::of(spread),
        last_client: Times::of(last),
        server,
        lost: faults.lost,
        doubled: faults.doubled,
        disordered: faults.disordered,
        closed: fleet.gone.len(),
        faults: faults.first,
    })
}

/// Resource usage of the server's process.
struct Watched {
    pid: u32,
    /// Bytes: with no client, with half of the clients, and with all.
    resident: Vec<u64>,
    /// CPU time at the last `look`.
    cpu: CpuTime,
}

impl Watched {
    fn begin(pid: u32) -> Result<Self> {
        Ok(Self {
            pid,
            resident: vec![resident_memory(pid)?],
            cpu: CpuTime::of(pid)?,
        })
    }

    fn look(&mut self) -> Result<()> {
        self.resident.push(resident_memory(self.pid)?);
        self.cpu = CpuTime::of(self.pid)?;
        Ok(())
    }

    /// Reports the usage since the last `look`.
    fn end(self, deliveries: u64, clients: usize) -> Result<Server> {
        let cpu = CpuTime::of(self.pid)?.since(&self.cpu);
        let second_half = (clients - clients / 2) as f64;
        Ok(Server {
            cpu_us_per_delivery: cpu.as_secs_f64() * 1e6 / deliveries.max(1) as f64,
            resident_bytes_per_client: self
                .resident
                .last_chunk()
                .map_or(0.0, |[half, all]| (*all as f64 - *half as f64) / second_half),
            resident_bytes: self.resident,
        })
    }
}

/// The clients' tasks.
struct Fleet {
    shared: Rc<Shared>,
    /// One task per client, which ends with the connection.
    clients: JoinSet<Ended>,
    started: usize,
    wanted: usize,
    pace: Duration,
    handshakes: Rc<RefCell<Histogram<u64>>>,
    /// Clients whose connection ended.
    gone: HashSet<usize>,
    line: ProgressBar,
}

struct Ended {
    client: usize,
    was_subscribed: bool,
    why: anyhow::Error,
}

impl Fleet {
    fn new(target: Target, run: Run, args: &BenchArgs) -> Self {
        Self {
            shared: Rc::new(Shared::new(target, run)),
            clients: JoinSet::new(),
            started: 0,
            wanted: args.clients,
            pace: Duration::from_secs_f64(1.0 / args.connect_rate),
            handshakes: Rc::new(RefCell::new(run::histogram())),
            gone: HashSet::new(),
            // Hidden if standard error is not a terminal, and cleared before anything else is printed.
            line: ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear),
        }
    }

    /// Connects clients until `up_to` are connected; the first failure ends the run.
    async fn connect(&mut self, up_to: usize) -> Result<()> {
        let slots = Arc::new(Semaphore::new(CONNECTING_AT_ONCE));
        let mut pace = tokio::time::interval(self.pace.max(Duration::from_nanos(1)));
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut look = tokio::time::interval(LOOK);
        loop {
            let free = slots.clone();
            let next = async {
                pace.tick().await;
                free.acquire_owned().await
            };
            // Failures first: a refused client has released its slot too.
            tokio::select! {
                biased;
                Some(ended) = self.clients.join_next() => self.ended(ended?)?,
                _ = look.tick() => self.tell(),
                slot = next, if self.started < up_to => {
                    let number = self.started;
                    self.started += 1;
                    let (shared, handshakes) = (self.shared.clone(), self.handshakes.clone());
                    self.clients.spawn_local(async move {
                        let began = Instant::now();
                        let socket = match client::connect(&shared, number).await {
                            Ok(socket) => socket,
                            Err(why) => return Ended { client: number, was_subscribed: false, why },
                        };
                        handshakes.borrow_mut().saturating_record(began.elapsed().as_nanos() as u64);
                        shared.run.borrow_mut().subscribed += 1;
                        drop(slot);
                        let why = client::listen(shared, number, socket).await;
                        Ended { client: number, was_subscribed: true, why }
                    });
                }
                // All slots are free again: no client is connecting any more.
                _all = slots.acquire_many(CONNECTING_AT_ONCE as u32), if self.started == up_to => return Ok(()),
            }
        }
    }

    fn ended(&mut self, ended: Ended) -> Result<()> {
        let Ended {
            client,
            was_subscribed,
            why,
        } = ended;
        let mut run = self.shared.run.borrow_mut();
        if !was_subscribed {
            let nobody_else = run.subscribed == 0;
            return Err(if nobody_else {
                why
            } else {
                why.context(format!("client {client}"))
            });
        }
        self.gone.insert(client);
        *run.closed.entry(format!("{why:#}")).or_default() += 1;
        Ok(())
    }

    /// Waits for `time` while the clients run.
    async fn pass(&mut self, time: Duration) -> Result<()> {
        let mut look = tokio::time::interval(LOOK);
        let end = tokio::time::sleep(time);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                Some(ended) = self.clients.join_next() => self.ended(ended?)?,
                _ = look.tick() => self.tell(),
            }
        }
    }

    /// Waits for events in flight, at most `GRACE`.
    async fn complete(&mut self, end: &[usize]) -> Result<()> {
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && !self.shared.run.borrow().complete(end, &self.gone) {
            self.pass(LOOK).await?;
        }
        Ok(())
    }

    fn tell(&self) {
        let run = self.shared.run.borrow();
        let clients = HumanCount(run.subscribed as u64);
        self.line.set_message(if run.counting {
            let deliveries = HumanCount(run.counts.deliveries);
            format!("{clients} clients, {deliveries} deliveries, {} closed", self.gone.len())
        } else {
            format!("{clients} of {} clients", HumanCount(self.wanted as u64))
        });
        self.line.tick();
    }
}
