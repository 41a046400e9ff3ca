//! Time from the return of a node to the first event at a client, over many outages of several kinds.
//!
//! ```text
//! node (devnet, anvil) ---- gate ---- headwater ---- a client of heads, a client of logs
//! ```
//!
//! Each row has its own node and headwater, with the default settings, and all rows run at the same time. An outage ends
//! when the node answers again: the gate opens, the process continues, or a new process answers its first call. The node
//! has a new block every 0.2 s, so an event is due at once. Every head must follow one that was delivered before it, and
//! every log the log before it: a lost or doubled one fails the benchmark.
//!
//! ```text
//! cargo bench --bench recovery
//! cargo bench --bench recovery -- --rounds 20 --report benches
//! ```

#![expect(clippy::print_stdout, reason = "the table is this program's output")]

mod client;
mod gate;
mod node;
#[path = "../shared/process.rs"]
#[allow(dead_code, reason = "this benchmark has no roles of its own")]
mod process;
mod report;
#[path = "../shared/results.rs"]
#[allow(dead_code, reason = "no median is taken here")]
mod results;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    client::Client,
    node::{Node, Outage, Program, Transport},
    process::Process,
    report::Row,
};

/// Time limit of the start of a process, and of everything that is expected to come.
const LIMIT: Duration = Duration::from_secs(60);

/// Time before each outage: too short for a connection to count as one that lasted, so that the waits of several outages
/// add up as they may.
const BETWEEN: Duration = Duration::from_secs(3);

/// Time from the return of a node to the first event.
#[derive(Debug, Parser)]
#[command(subcommand_negates_reqs = true, disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// Outages of each row.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Path of anvil; defaults to the anvil of the interop tests. Its rows are left out where there is none.
    #[arg(long, env = "ANVIL", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/node_modules/.bin/anvil"))]
    anvil: PathBuf,
    /// Path of the headwater binary; defaults to the one built along with this benchmark.
    #[arg(long, env = "PROXY_BIN", default_value = env!("CARGO_BIN_EXE_headwater"))]
    headwater: PathBuf,
    /// Write this part of RESULTS.md into this folder.
    #[arg(long, value_name = "FOLDER")]
    report: Option<PathBuf>,
    /// Measure. `cargo bench` passes it.
    #[arg(long)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Another program that must end with the benchmark.
    Exec {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.role {
        Some(Role::Exec { command }) => process::end_with_parent().and_then(|()| process::become_program(command)),
        None => options.measure(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("recovery: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn measure(&self) -> Result<()> {
        if !self.bench {
            eprintln!("recovery: nothing measured: `cargo bench` passes --bench, `cargo test` does not");
            return Ok(());
        }
        ensure!(self.rounds > 0, "every count is at least 1");
        let mut programs = vec![Program::Devnet(self.headwater.clone())];
        if self.anvil.is_file() {
            programs.push(Program::Anvil(self.anvil.clone()));
        } else {
            eprintln!("recovery: no anvil at {}: its rows are left out", self.anvil.display());
        }
        // The client that waits for a node's first call needs one, although it uses no TLS.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Runtime::new().context("the runtime")?;
        let rows = runtime.block_on(async {
            let mut rows = JoinSet::new();
            for (at, (program, transport, outage)) in cases(&programs).enumerate() {
                let (headwater, rounds) = (self.headwater.clone(), self.rounds);
                rows.spawn(async move {
                    let name = format!("{} over {}, {}", program.name(), transport.name(), outage.name());
                    let row = row(&headwater, &program, transport, outage, rounds).await;
                    row.map(|row| {
                        (
                            at,
                            Row {
                                name: name.clone(),
                                ..row
                            },
                        )
                    })
                    .context(name)
                });
            }
            rows.join_all().await
        });
        let (done, failed): (Vec<_>, Vec<_>) = rows.into_iter().partition(Result::is_ok);
        let mut done: Vec<(usize, Row)> = done.into_iter().flatten().collect();
        done.sort_by_key(|(at, _)| *at);
        let rows: Vec<Row> = done.into_iter().map(|(_, row)| row).collect();
        let text = report::text(&rows);
        println!("{text}");
        for error in failed.iter().filter_map(|row| row.as_ref().err()) {
            eprintln!("recovery: {error:#}");
        }
        ensure!(failed.is_empty(), "{} rows failed", failed.len());
        if let Some(folder) = &self.report {
            results::write(folder, "recovery", &text)?;
        }
        Ok(())
    }
}

/// Returns each program over each transport with each kind of outage that it knows.
fn cases(programs: &[Program]) -> impl Iterator<Item = (Program, Transport, Outage)> {
    programs.iter().flat_map(|program| {
        Transport::ALL.into_iter().flat_map(move |transport| {
            let outages = program.outages().iter();
            outages.map(move |outage| (program.clone(), transport, *outage))
        })
    })
}

async fn row(headwater: &Path, program: &Program, transport: Transport, outage: Outage, rounds: u32) -> Result<Row> {
    let mut node = Node::start(program, transport).await?;
    let args = [
        "run",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--upstream",
        &node.address(),
    ]
    .map(str::to_owned);
    let mut proxy = Process::start_program("headwater", headwater, &args, &[])?;
    let address = proxy.wait_for("serving on ws://", LIMIT)?;
    let url = format!("ws://{}", address.split_whitespace().next().unwrap_or_default());
    let mut heads = Client::subscribe(&url, r#"["newHeads"]"#).await?;
    let mut logs = match program.has_logs() {
        true => Some(Client::subscribe(&url, r#"["logs",{}]"#).await?),
        false => None,
    };
    heads.first_since(Instant::now()).await?;
    let mut row = Row::default();
    for round in 0..rounds {
        sleep(BETWEEN).await;
        node.take_away(outage).await?;
        sleep(outage.length(round)).await;
        let back = node.bring_back(outage).await?;
        row.heads.push(
            heads
                .first_since(back)
                .await
                .with_context(|| format!("the head after outage {round}"))?,
        );
        if let Some(logs) = &mut logs {
            row.logs.push(
                logs.first_since(back)
                    .await
                    .with_context(|| format!("the log after outage {round}"))?,
            );
        }
    }
    Ok(row)
}
