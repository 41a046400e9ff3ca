//! CPU cost of one delivered message to the server: the bare `writev` loop, stock jsonrpsee, and headwater; and before a real
//! node that node itself, HAProxy and nginx where they are installed.
//!
//! ```text
//!              commands                      events
//!   benchmark ----------> loop --------------------------------> load (all clients)
//!       |  \------------> node ---------> headwater | stock ---/   |
//!       \<------------------- "all clients have event k" ---------/
//! ```
//!
//! Every box is a process of its own, and only the server's CPU time counts: CPU time of its threads over a window of
//! events, kernel time included. The servers take turns for several rounds and are restarted each time; the tables
//! show medians. The clients check every byte: a lost, doubled, reordered or altered message fails the benchmark.
//!
//! `--report` also measures idle memory, a stalled client and matching, and writes everything to `RESULTS.md` with
//! its plots.
//!
//! ```text
//! cargo bench --bench fanout -- --clients 1000 --rounds 5 --only loop,headwater
//! cargo bench --bench fanout -- --clients 100,1000,9000 --report benches
//! ```

#![expect(
    clippy::print_stdout,
    reason = "the tables, and the lines between the processes, are this program's output"
)]

mod arrivals;
mod before_geth;
mod chain;
mod event_stream;
mod feed;
#[path = "../../src/bin/headwater/bench/frames.rs"]
mod frames;
#[path = "../shared/http.rs"]
mod http;
#[path = "../shared/limits.rs"]
mod limits;
mod load;
mod loop_server;
mod matching;
mod node;
mod notification;
#[path = "../shared/peer.rs"]
mod peer;
mod pending;
#[path = "../shared/process.rs"]
mod process;
#[path = "../shared/proxy.rs"]
mod proxy;
#[path = "../shared/node.rs"]
mod real_node;
mod report;
#[path = "../shared/results.rs"]
mod results;
mod roles;
mod run;
mod script;
mod stalled;
mod stock_server;
#[path = "../shared/svg.rs"]
mod svg;
mod table;
#[path = "../../src/bin/headwater/bench/usage.rs"]
mod usage;
#[path = "../shared/websocket.rs"]
mod websocket;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::{
    before_geth::BeforeGeth,
    chain::Scenario,
    peer::PeerPaths,
    report::Extras,
    roles::Role,
    run::{Plan, Server, measure},
    table::Results,
};

/// Most rounds before geth, each of which takes two minutes.
const GETH_ROUNDS: usize = 2;

/// Fan-out cost per delivered message: bare writev loop, stock jsonrpsee, headwater.
#[derive(Debug, Parser)]
#[command(subcommand_negates_reqs = true, disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// Number of clients; several numbers are run one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    clients: Vec<usize>,
    /// Counted events of the heads scenario and of both with pending transactions; fewer for more than 1,000 clients.
    #[arg(long, default_value_t = 200)]
    events: usize,
    /// Counted events of the bursts scenario, a hundred logs each; fewer for more than 1,000 clients.
    #[arg(long, default_value_t = 30)]
    bursts: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One round, with a quarter of the events: a minute for 1,000 clients.
    #[arg(long)]
    quick: bool,
    /// Maximum events per second; the next event also waits until the last client has received the one before.
    #[arg(long, default_value_t = 40.0)]
    rate: f64,
    /// Run these servers only.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Server>,
    /// Run these scenarios only.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// Path of the headwater binary; defaults to the one built along with this benchmark.
    #[arg(long, env = "PROXY_BIN", default_value = env!("CARGO_BIN_EXE_headwater"))]
    headwater: PathBuf,
    /// One more argument for `headwater run`; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    headwater_arg: Vec<String>,
    /// Also measure stalled clients, idle memory and matching, and write RESULTS.md with its plots into this folder.
    #[arg(long, value_name = "FOLDER")]
    report: Option<PathBuf>,
    /// Path of geth; adds a table of fan-out before it.
    #[arg(long, env = "GETH")]
    geth: Option<PathBuf>,
    #[command(flatten)]
    peers: PeerPaths,
    /// Measure only before geth.
    #[arg(long, requires = "geth")]
    before_geth: bool,
    /// Measure only matching, in this process.
    #[arg(long)]
    matching: bool,
    /// Print JSON instead of the tables.
    #[arg(long)]
    json: bool,
    /// Measure. `cargo bench` passes it.
    #[arg(long)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    let outcome = match options.role.take() {
        Some(role) => role.play(),
        None => options.compare(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fanout: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn compare(&self) -> Result<()> {
        if !self.bench {
            eprintln!("fanout: nothing measured: `cargo bench` passes --bench, `cargo test` does not");
            return Ok(());
        }
        if self.matching {
            let table = report::matching_table(&matching::measure()?);
            println!("{table}{}", report::shared_table(&matching::measure_shared()?));
            return Ok(());
        }
        if self.before_geth {
            let before_geth = self.before_geth()?.context("--before-geth needs --geth")?;
            println!("{}", before_geth.table());
            return Ok(());
        }
        ensure!(
            !self.clients.is_empty()
                && self.clients.iter().all(|clients| *clients > 1)
                && self.events > 0
                && self.bursts > 0
                && self.rounds > 0,
            "every count is at least 1, and that of clients 2"
        );
        ensure!(self.rate.is_finite() && self.rate > 0.0, "--rate must be above 0");
        let most = self.clients.iter().max().copied().unwrap_or(0);
        process::allow_open_files(most)?;

        let rounds = self.rounds();
        let servers = if self.only.is_empty() {
            &Server::ALL[..]
        } else {
            &self.only
        };
        let scenarios = if self.scenario.is_empty() {
            &Scenario::ALL[..]
        } else {
            &self.scenario
        };
        let mut results: Vec<Results> = scenarios
            .iter()
            .flat_map(|scenario| self.clients.iter().map(|clients| (*scenario, *clients)))
            .map(|(scenario, clients)| {
                let servers: Vec<Server> = servers
                    .iter()
                    .copied()
                    .filter(|server| self.only.contains(server) || server.is_run(scenario, clients))
                    .collect();
                Results::new(scenario, self.plan(scenario, clients), &servers)
            })
            .collect();
        let started = Instant::now();
        for round in 1..=rounds {
            for results in &mut results {
                for server in results.servers() {
                    let what = format!(
                        "{} {} {}, round {round} of {}",
                        server.name(),
                        results.plan.clients,
                        results.scenario.name(),
                        rounds
                    );
                    let sample = measure(server, results.scenario, &results.plan).with_context(|| what.clone())?;
                    eprintln!(
                        "{what}: {:.3} µs CPU per message, {} messages checked, {} s since the start",
                        sample.cpu_ns_per_message / 1e3,
                        sample.checked,
                        started.elapsed().as_secs()
                    );
                    results.add(server, sample);
                }
            }
        }
        if let Some(folder) = &self.report {
            // With 100, 1,000 and 9,000 clients, the stalled client is one among 1,000.
            let mut clients = self.clients.clone();
            clients.sort_unstable();
            let usual = self.plan(Scenario::Bursts, clients[clients.len() / 2]);
            let before_geth = self.before_geth()?;
            let extras = Extras::measure(&self.plan(Scenario::Heads, most), &usual, rounds, before_geth)?;
            report::write(folder, &results, &extras, "make bench")?;
        }
        eprintln!("fanout: {} s in all", started.elapsed().as_secs());
        if self.json {
            let results: Vec<_> = results.iter().map(Results::to_json).collect();
            println!("{:#}", serde_json::Value::from(results));
        } else {
            for results in &results {
                println!("\n{}", results.to_text());
            }
        }
        Ok(())
    }

    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }

    /// Measures before geth, if there is one.
    fn before_geth(&self) -> Result<Option<BeforeGeth>> {
        let Some(geth) = &self.geth else {
            return Ok(None);
        };
        ensure!(geth.is_file(), "no geth at {}: set GETH to its path", geth.display());
        let rounds = self.rounds().min(GETH_ROUNDS);
        let measured = BeforeGeth::measure(geth, &self.headwater, &self.peers.installed(), rounds);
        measured.map(Some)
    }

    fn plan(&self, scenario: Scenario, clients: usize) -> Plan {
        let asked = match scenario {
            Scenario::Heads | Scenario::PendingAlone | Scenario::PendingGrouped => self.events,
            Scenario::Bursts | Scenario::Blocks => self.bursts,
        };
        let asked = if self.quick { asked.div_ceil(4) } else { asked };
        // A run of many clients has as many messages as a run of 1,000, as long as there are enough events for a
        // median.
        let counted = (asked * 1000 / clients.max(1000)).max(asked.div_ceil(4));
        Plan {
            clients,
            // Enough for buffers and congestion windows to reach their final size.
            warmup: (counted / 5).max(5),
            counted,
            pace: Duration::from_secs_f64(1.0 / self.rate),
            headwater: self.headwater.clone(),
            headwater_args: self.headwater_arg.clone(),
        }
    }
}
