//! Attacks on a headwater process with default settings, each beside a bystander that must not notice: none of its
//! calls fails, its connections are never closed, no head and no log is missing, and the memory of the process stays
//! below a bound.
//!
//! Short form: `cargo test --test attack` plays every row and asserts counts and bounds. Full form: `make attack` plays
//! every row against the release build, and asserts the gaps between heads, too. Words on the command line choose rows
//! by name. A test program of its own rather than libtest's, for its table; the last line is libtest's, by which
//! `scripts/test` counts.

// In a test a panic is the report, and the table is what this is for.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod arena;
mod bystander;
mod calls;
#[path = "../shared/client_frame.rs"]
mod client_frame;
mod clients;
mod node;
mod nodes;
mod peer;
mod proxy;
mod report;
mod rows;
mod streams;
mod subscriptions;
mod verdict;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arena::{Arena, Ground};
use bystander::Bystander;
use node::Node;
use proxy::Proxy;
use report::Wishes;
use rows::{Kind, Row, Second};
use tokio::runtime::{Builder, Runtime};
use verdict::Verdict;

/// Interval between two samples of the process's memory.
const SAMPLES: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let Some(wishes) = Wishes::from_arguments() else {
        return ExitCode::SUCCESS;
    };
    let began = Instant::now();
    let is_played = |row: &Row| wishes.want(row.name) && (wishes.form.is_full() || !row.is_heavy);
    let rows: Vec<Row> = rows::all().into_iter().filter(is_played).collect();
    if wishes.list {
        rows.iter().for_each(|row| println!("{}: test", row.name));
        return ExitCode::SUCCESS;
    }
    if rows.is_empty() {
        return report::close(&wishes, &[], &[], began.elapsed());
    }
    // Thousands of connections, here and in the program.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    // Attackers, the node and the bystander must not keep each other waiting.
    let (attackers, nodes, bystanders) = (runtime("attackers", 2), runtime("node", 2), runtime("bystander", 1));
    let node = match &wishes.geth {
        Some(binary) => nodes.block_on(Node::geth(binary.clone())),
        None => nodes.block_on(Node::devnet(wishes.form)),
    };
    let node = match node {
        Ok(node) => node,
        Err(why) => return report::close(&wishes, &[Verdict::broken("the node", why)], &[], began.elapsed()),
    };
    let (mut verdicts, mut skipped) = (Vec::new(), Vec::new());
    println!("{}", report::TITLE);
    for row in &rows {
        if row.needs_devnet() && node.control().is_none() {
            skipped.push(format!("{}: needs the simulated node", row.name));
            continue;
        }
        let stage = Stage {
            row,
            node: &node,
            nodes: &nodes,
            bystanders: &bystanders,
            wishes: &wishes,
        };
        let played = attackers.block_on(stage.play());
        let verdict = played.unwrap_or_else(|why| Verdict::broken(row.name, why));
        println!("{}", report::line(&verdict));
        verdicts.push(verdict);
    }
    let code = report::close(&wishes, &verdicts, &skipped, began.elapsed());
    // Tasks that still wait for something are dropped.
    drop(node);
    for runtime in [attackers, nodes, bystanders] {
        runtime.shutdown_background();
    }
    code
}

fn runtime(name: &str, threads: usize) -> Runtime {
    let runtime = Builder::new_multi_thread()
        .thread_name(name)
        .worker_threads(threads)
        .enable_all()
        .build();
    runtime.expect("threads and a poller are to be had")
}

/// Everything around one row.
struct Stage<'a> {
    row: &'a Row,
    node: &'a Node,
    nodes: &'a Runtime,
    bystanders: &'a Runtime,
    wishes: &'a Wishes,
}

impl Stage<'_> {
    async fn play(&self) -> Result<Verdict, String> {
        let (row, form) = (self.row, self.wishes.form);
        let lying = Arc::new(AtomicBool::new(false));
        let starting = Second::start(row.second, self.node.url(), form, lying.clone());
        let second = self.nodes.spawn(starting).await.map_err(|why| why.to_string())??;
        let directory = tempfile::tempdir().map_err(|why| why.to_string())?;
        let mut upstreams = format!("\"{}\"", self.node.url());
        if row.second == Kind::Rival {
            // Of two nodes that disagree neither is known to be sound; of three, two agree.
            upstreams += &format!(", \"{}\"", self.node.url().replace("127.0.0.1", "localhost"));
        }
        if let Some(url) = second.url() {
            upstreams += &format!(", {{ address = \"{url}\", calls = \"none\" }}");
        }
        let mut proxy = Proxy::start(directory.path(), &upstreams, row.settings).await?;
        let memory = Memory::watch(proxy.id(), self.bystanders);
        let (address, control) = (proxy.address, self.node.control());
        let transactions = control.is_some();
        let joining = self
            .bystanders
            .spawn(async move { Bystander::join(address, transactions, form.patience()).await });
        let bystander = joining.await.map_err(|why| why.to_string())??;
        tokio::time::sleep(form.calm()).await;
        let rss_before = memory.max();
        bystander.attack_begins();
        let ground = Ground {
            address,
            admin: proxy.admin,
            node: control,
            second: second.control(),
            lying,
        };
        let arena = Arena::open(ground, form);
        let limit = form.window() + form.patience();
        if tokio::time::timeout(limit, (row.attack)(arena.clone())).await.is_err() {
            arena.broken("the attack did not end, so not all was asserted");
        }
        tokio::time::sleep(form.aftermath()).await;
        let last = self.node.height().await;
        let seen = bystander.leave(last).await;
        let rss_max = memory.max();
        let first = seen.heads.first().map_or(last, |head| head.number);
        let truth = self.node.truth(first..=last).await;
        let (got, broken) = arena.outcome();
        let mut verdict = Verdict {
            name: row.name.to_owned(),
            rss_before,
            rss_max,
            got,
            reasons: broken,
            ..Verdict::default()
        };
        verdict.reasons.extend(proxy.ended());
        verdict.judge(&seen, &truth, last, form, self.node.block_time(form));
        Ok(verdict)
    }
}

/// Peak memory of the process, in bytes.
struct Memory(Arc<AtomicU64>);

impl Memory {
    fn watch(process: u32, runtime: &Runtime) -> Self {
        let max = Arc::new(AtomicU64::new(0));
        let watched = Arc::downgrade(&max);
        runtime.spawn(async move {
            while let (Some(max), Some(now)) = (watched.upgrade(), proxy::resident(process)) {
                max.fetch_max(now, Ordering::Relaxed);
                drop(max);
                tokio::time::sleep(SAMPLES).await;
            }
        });
        Self(max)
    }

    fn max(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
