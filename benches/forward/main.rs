//! Cost and gain of headwater for a caller: the same calls to a node directly, and through headwater.
//!
//! ```text
//! load -------------------------------> node (anvil; geth too where there is one)
//!   \---------------> headwater ------/
//!    \--> relay | HAProxy | nginx ---/
//!
//! 1,000 clients ----> headwater --> relay, which counts --> node
//! ```
//!
//! Every box is a process of its own. The load keeps a number of calls in flight, sends each call when the answer to
//! the one before has arrived, and checks every answer: a wrong, missing or doubled answer fails the benchmark. Node
//! and headwater take turns within a round (direct, through, through, direct), half a second each, so that other load
//! on the machine affects both; differences and ratios are taken within such a pair, and the tables show their
//! median.
//!
//! ```text
//! cargo bench --bench forward
//! cargo bench --bench forward -- --quick
//! GETH=/usr/bin/geth cargo bench --bench forward -- --report benches
//! ```

#![expect(
    clippy::print_stdout,
    reason = "the tables, and the lines between the processes, are this program's output"
)]

mod bare_relay;
mod call;
mod crowd;
#[path = "../../src/bin/headwater/bench/frames.rs"]
mod frames;
#[path = "../shared/http.rs"]
mod http;
#[path = "../shared/limits.rs"]
mod limits;
mod line;
mod load;
mod modules;
#[path = "../shared/node.rs"]
mod node;
#[path = "../shared/peer.rs"]
mod peer;
mod peers;
#[path = "../shared/process.rs"]
mod process;
#[path = "../shared/proxy.rs"]
mod proxy;
mod relay;
mod report;
#[path = "../shared/results.rs"]
mod results;
mod roles;
mod run;
#[path = "../shared/svg.rs"]
mod svg;
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
    call::Call,
    line::Transport,
    modules::Modules,
    node::{Kind, Node},
    peer::PeerPaths,
    peers::Peers,
    roles::Role,
    run::{Cell, Crowds, Plan, Results, Stage},
};

/// Calls to a node directly, through headwater and through other proxies: latency and throughput.
#[derive(Debug, Parser)]
#[command(subcommand_negates_reqs = true, disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// Calls in flight; several numbers are run one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,32,256")]
    in_flight: Vec<usize>,
    /// Make only these calls.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Call>,
    /// Use only these transports.
    #[arg(long, value_delimiter = ',')]
    transport: Vec<Transport>,
    /// Number of rounds; each is two turns of either side.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Counted time of one turn, in milliseconds.
    #[arg(long, default_value_t = 400)]
    millis: u64,
    /// Number of clients that request each new block.
    #[arg(long, default_value_t = 1000)]
    clients: usize,
    /// Number of blocks that these clients request.
    #[arg(long, default_value_t = 20)]
    blocks: u64,
    /// One round of short turns: less than a minute.
    #[arg(long)]
    quick: bool,
    /// Path of anvil; defaults to the anvil of the interop tests.
    #[arg(long, env = "ANVIL", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/node_modules/.bin/anvil"))]
    anvil: PathBuf,
    /// Path of geth; adds a second table.
    #[arg(long, env = "GETH")]
    geth: Option<PathBuf>,
    /// Path of the headwater binary; defaults to the one built along with this benchmark.
    #[arg(long, env = "PROXY_BIN", default_value = env!("CARGO_BIN_EXE_headwater"))]
    headwater: PathBuf,
    #[command(flatten)]
    peers: PeerPaths,
    /// Write this part of RESULTS.md with its plot into this folder.
    #[arg(long, value_name = "FOLDER")]
    report: Option<PathBuf>,
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
            eprintln!("forward: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn compare(&self) -> Result<()> {
        if !self.bench {
            eprintln!("forward: nothing measured: `cargo bench` passes --bench, `cargo test` does not");
            return Ok(());
        }
        ensure!(
            self.rounds > 0 && self.millis > 0 && self.clients > 0 && self.blocks > 0 && !self.in_flight.contains(&0),
            "every count is at least 1"
        );
        ensure!(
            self.anvil.is_file(),
            "no anvil at {}: `make bench` installs it, or set ANVIL to its path",
            self.anvil.display()
        );
        if let Some(geth) = &self.geth {
            ensure!(geth.is_file(), "no geth at {}: set GETH to its path", geth.display());
        }
        process::allow_open_files(self.clients)?;

        let mut tables = vec![self.table(Kind::Anvil, &self.anvil)?];
        if let Some(geth) = &self.geth {
            tables.push(self.table(Kind::Geth, geth)?);
        }
        println!("{}", report::text(&tables));
        if let Some(folder) = &self.report {
            report::write(folder, &tables)?;
        }
        Ok(())
    }

    fn table(&self, kind: Kind, binary: &std::path::Path) -> Result<Results> {
        let (rounds, millis) = if self.quick {
            (1, self.millis.min(150))
        } else {
            (self.rounds, self.millis)
        };
        let plan = Plan {
            headwater: self.headwater.clone(),
            counted: Duration::from_millis(millis),
            // Enough to warm up the connections and fill the caches.
            warmup: Duration::from_millis(millis.div_ceil(4)),
        };
        let started = Instant::now();
        let node = Node::start(kind, binary).with_context(|| format!("starting {}", kind.name()))?;
        let mut cells = Vec::new();
        for call in Call::ALL.iter().filter(|call| chosen(&self.only, call)) {
            for transport in Transport::ALL
                .iter()
                .filter(|transport| chosen(&self.transport, transport))
            {
                cells.extend(
                    self.in_flight
                        .iter()
                        .map(|in_flight| Cell::new(*call, *transport, *in_flight)),
                );
            }
        }
        let mut stage = Stage::set(&node, &plan)?;
        for round in 1..=rounds {
            for cell in &mut cells {
                let what = format!("{} {}, round {round} of {rounds}", kind.name(), cell.name());
                let pair = stage.round(cell).with_context(|| what.clone())?;
                eprintln!("{what}: {pair}");
            }
        }
        let memory = stage.memory()?;
        drop(stage);
        // With one in flight the latency counts, which the table above has.
        let busy: Vec<usize> = self.in_flight.iter().copied().filter(|count| *count > 1).collect();
        let peers = Peers::measure(&node, &plan, &self.peers.installed(), &busy, rounds)?;
        // The price of a module does not depend on the node.
        let modules = (kind == Kind::Anvil)
            .then(|| Modules::measure(&node, &plan, rounds).context("modules"))
            .transpose()?;
        eprintln!(
            "{}: {} clients ask for each of {} blocks",
            kind.name(),
            self.clients,
            self.blocks
        );
        let crowds = Crowds::measure(&node, &plan, self.clients, self.blocks)?;
        eprintln!("{}: {} s", kind.name(), started.elapsed().as_secs());
        Ok(Results {
            node: node.version()?,
            kind,
            rounds,
            cells,
            memory,
            peers,
            modules,
            crowds,
        })
    }
}

/// Checks if `one` is selected; an empty selection means all.
fn chosen<T: PartialEq>(only: &[T], one: &T) -> bool {
    only.is_empty() || only.contains(one)
}
