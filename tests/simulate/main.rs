//! The real app in front of simulated nodes, in virtual time, with faults drawn from a seed: whatever happens, no
//! client loses an event, receives one twice or out of order, or stops receiving events.
//!
//! `cargo test --test simulate` runs the seeds that failed once (`seeds.txt`) and some more, the same each time, so that a
//! run fails for what has changed. `make simulate SEEDS=500` runs that many new ones; `make simulate SEED=7` repeats one
//! and prints a report. A seed fixes everything that is planned. The order of two branches that are ready at the same
//! moment (tokio's `select!` chooses at random) and the kernel's delivery times are not fixed, so nearly all, but not
//! all, runs of a seed take the same course: `make simulate SEED=7 TIMES=20` prints a fingerprint of each run.
//!
//! Three features are each active in a third of the seeds: holes in the block numbers, incorrect blooms, and
//! announcements that differ from the block's header. `FEATURES=holes` (or `blooms,lies`, `all`, `none`) selects
//! features instead; a seed of `seeds.txt` has the features after it there (`7+holes+lies`), or none.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

mod applied;
mod blocks;
mod client;
mod clock;
mod consumer;
#[path = "../shared/event_response.rs"]
mod event_response;
mod event_sources;
mod features;
mod fleet;
#[path = "../history/mod.rs"]
mod history;
mod plan;
mod run;
mod sessions;
mod stream;
mod trailing;
#[path = "../shared/webhook_request.rs"]
mod webhook_request;
mod webhooks;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use features::Features;
use history::Delivered;
use plan::Plan;
use run::Outcome;

/// Seeds of a plain run besides those that failed once.
const PLAIN: std::ops::Range<u64> = 1_000..1_008;

/// Number of panics in tasks, which end only their task.
static PANICS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn no_event_is_lost_doubled_or_out_of_order_whatever_happens() {
    if let Ok(filter) = std::env::var("RUST_LOG") {
        headwater::telemetry::init_log(headwater::telemetry::LogFormat::Text, &filter).unwrap();
    }
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(panic);
    }));
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let chosen = std::env::var("FEATURES").ok();
    let past: BTreeMap<u64, String> = include_str!("seeds.txt").lines().filter_map(recorded).collect();
    let fresh = |count: u64| {
        let first = rand::random::<u32>().into();
        eprintln!("new seeds from {first} on");
        first..first + count
    };
    let seeds: Vec<u64> = match (number("SEED"), number("SEEDS")) {
        (Some(seed), None) => vec![seed; number("TIMES").unwrap_or(1) as usize],
        (Some(first), Some(count)) => (first..first + count).collect(),
        (None, Some(count)) => fresh(count).collect(),
        (None, None) => past.keys().copied().chain(PLAIN).collect(),
    };
    let mut total = Outcome::default();
    let (mut done, mut failed) = (0, Vec::new());
    for seed in &seeds {
        let named = chosen.as_ref().or_else(|| past.get(seed)).map(String::as_str);
        let plan = Plan::draw(*seed, Features::draw(*seed, named));
        let mut outcome = run::run(&plan);
        let panics = PANICS.swap(0, Ordering::Relaxed);
        if panics > 0 {
            outcome.complaints.push(format!("{panics} tasks panicked"));
        }
        if !outcome.is_clean() {
            failed.push(*seed);
            eprintln!("{}", report(&plan, &outcome));
        }
        if number("SEED").is_some() && seeds.len() <= 20 {
            eprintln!(
                "seed {seed}: {} events, went the way {:016x}",
                outcome.events, outcome.fingerprint
            );
        }
        total.clients += outcome.clients;
        total.records += outcome.records;
        total.resumed += outcome.resumed;
        total.events += outcome.events;
        total.asked += outcome.asked;
        total.repeated += outcome.repeated;
        total.lost_positions += outcome.lost_positions;
        total.verdict.merge(outcome.verdict);
        done += 1;
        if done % 20 == 0 {
            eprintln!("{done} seeds, {} failed", failed.len());
        }
    }
    total.verdict.examples.clear();
    eprintln!(
        "{} seeds, {} clients, {} records, {} resumptions, {} blocks asked for, {} events, {} that came again, {} \
         positions lost with notice: {}",
        done,
        total.clients,
        total.records,
        total.resumed,
        total.asked,
        total.events,
        total.repeated,
        total.lost_positions,
        total.verdict
    );
    assert!(
        failed.is_empty(),
        "failed: {failed:?}; run one again with make simulate SEED={}{}",
        failed[0],
        chosen.map_or_else(String::new, |named| format!(" FEATURES={named}"))
    );
}

/// Parses a line of the seeds file into seed and features: "7+holes+lies  why it is there".
fn recorded(line: &str) -> Option<(u64, String)> {
    let mut words = line.split_whitespace().next()?.splitn(2, '+');
    let seed = words.next()?.parse().ok()?;
    Some((
        seed,
        words.next().map_or("none".to_owned(), |names| names.replace('+', ",")),
    ))
}

fn report(plan: &Plan, outcome: &Outcome) -> String {
    let mut text = format!("FAILED {plan}{}\n", outcome.verdict);
    for complaint in outcome.complaints.iter().take(12) {
        writeln!(text, "  {complaint}").unwrap();
    }
    if let (Some(record), true) = (&outcome.evidence, std::env::var_os("SEED").is_some()) {
        writeln!(text, "what {} was delivered:", record.name).unwrap();
        for delivered in &record.delivered {
            match delivered {
                Delivered::Head { number, hash, parent } => {
                    writeln!(text, "  head {number} {} < {}", short(hash), short(parent))
                }
                Delivered::Log { block, log, removed } => {
                    let word = if *removed { "undo" } else { "log" };
                    writeln!(text, "  {word} {} {} {}", block.0, short(&block.1), log.index)
                }
                Delivered::Subscribed { from, .. } => writeln!(text, "  subscribed {from:?}"),
            }
            .unwrap();
        }
    }
    text
}

fn short(hash: &alloy_primitives::B256) -> String {
    hash.to_string()[..10].to_owned()
}
