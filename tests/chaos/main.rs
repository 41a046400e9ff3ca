//! Real processes fail: anvil and headwater are killed, stopped and delayed, chains reorganise, clients stall and
//! leave. At the end every client's record is checked against the node's own chain.
//!
//! ```text
//! Chain (steps) > Node, Node > Proxy > Client, Client, ... > history::check
//!                   ^            ^        ^
//!                   +--------- Faults ----+
//! ```
//!
//! A receiver of webhooks is a process too ([`webhook`]).
//!
//! [`tree`] does the same to two roots and three edges, between which clients move; [`quotas`] counts what one address is
//! admitted at two edges.
//!
//! `cargo test --test chaos` runs for seconds, `make chaos` for minutes. The seed decides what happens, but not to the
//! millisecond: these are real processes.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

mod chain;
mod client;
#[path = "../shared/event_response.rs"]
mod event_response;
mod event_source;
mod faults;
mod gaps;
#[path = "../history/mod.rs"]
mod history;
mod link;
mod node;
mod process;
mod processes;
mod proxy;
mod quotas;
mod session;
mod tree;
mod view;
mod webhook;
#[path = "../shared/webhook_request.rs"]
mod webhook_request;
mod world;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::Disturbance;
use faults::{Faults, HANG, longest_wait};
use node::Node;
use proxy::SILENCE;
use tokio::time::sleep;
use world::World;

/// Prints progress even if the test passes, where the harness shows no output.
fn say(line: &str) {
    #[expect(clippy::explicit_write, reason = "the harness keeps what eprintln! prints")]
    writeln!(std::io::stderr(), "{line}").unwrap();
}

/// Lock for tests: a test that measures time runs alone, because there are few processors.
static TURN: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name}={value}"))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_costs_no_client_an_event() {
    let _turn = TURN.read().await;
    let (seconds, seed) = (setting("CHAOS_SECONDS", 10), setting("CHAOS_SEED", 1));
    let Some(mut world) = World::start(seed, 2, 12).await else {
        return;
    };
    world.add_sessions_and_event_sources();
    say(&format!("chaos: seed {seed}, {seconds} s"));
    let faults = Faults::run(&mut world, Duration::from_secs(seconds)).await;
    let mut reckoning = world.reckon().await;
    reckoning.repeats.retain(|repeat| !faults.explain(repeat));
    let waits = faults.waits(&reckoning);
    say(&format!(
        "chaos: {} connections, {} times back to an older block, {} to the first; ended: {}",
        reckoning.total(|ended| ended.diary.connections),
        reckoning.total(|ended| ended.diary.went_back),
        reckoning.total(|ended| ended.diary.began_anew),
        reckoning.ends(),
    ));
    say(&format!(
        "chaos: the longest wait for a head amid each kind: {waits:.1?}; {}",
        longest_wait(&reckoning)
    ));
    if std::env::var_os("CHAOS_KEEP").is_some() {
        say(&format!("chaos: log and diaries in {}", reckoning.keep().display()));
    }
    for words in &reckoning.others {
        say(&format!("chaos: {words}"));
    }
    say(&format!(
        "chaos: {seconds} s, {} faults ({}), {} clients, {} events: {}",
        faults.len(),
        faults.words(),
        reckoning.clients.len(),
        reckoning.events,
        reckoning.verdict,
    ));
    reckoning.assert_clean();
    assert!(
        waits.values().all(|wait| *wait < HANG),
        "somebody hung (seed {seed}): {waits:.1?}"
    );
}

/// Mines `count` blocks, one every quarter of a second.
async fn blocks(world: &mut World, count: u64) {
    for _ in 0..count {
        world.mine();
        sleep(Duration::from_millis(250)).await;
    }
}

/// Waits until the first node is active; it has priority, so only its loss changes that.
async fn first_in_use(world: &mut World) -> Arc<Node> {
    let waiting = Instant::now();
    while !Arc::ptr_eq(&world.active().await, &world.nodes[0]) {
        assert!(waiting.elapsed() < Duration::from_secs(30), "it is not taken back");
        blocks(world, 1).await;
    }
    world.nodes[0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_away_for_fifty_blocks_and_a_reorg_ends_with_the_canonical_logs() {
    let _turn = TURN.read().await;
    let Some(mut world) = World::start(2, 1, 6).await else {
        return;
    };
    blocks(&mut world, 6).await;
    world.follow().await;
    for client in &world.clients {
        client
            .disturbances()
            .send(Disturbance::Away(Duration::from_secs(4)))
            .await
            .unwrap();
    }
    sleep(Duration::from_millis(200)).await;
    // The first reorg drops the last blocks that the clients have; anvil discards dropped blocks at once.
    world.reorg(4);
    for at in 0..50 {
        world.mine();
        if at == 25 {
            world.reorg(7);
        }
    }
    world.follow().await;
    let reckoning = world.reckon().await;
    say(&format!("away: {} events: {}", reckoning.events, reckoning.verdict));
    reckoning.assert_clean();
    assert_eq!(
        reckoning.total(|ended| ended.diary.connections),
        12,
        "{}",
        reckoning.ends()
    );
    assert_eq!(reckoning.total(|ended| ended.diary.went_back), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_the_active_upstream_costs_no_event_and_little_time() {
    let _turn = TURN.write().await;
    let Some(mut world) = World::start(4, 2, 6).await else {
        return;
    };
    for (count, stopped) in [(1.0, false), (2.0, true)] {
        let node = first_in_use(&mut world).await;
        blocks(&mut world, 4).await;
        let fault = tokio::spawn(async move {
            match stopped {
                true => node.freeze(Duration::from_secs(4)).await,
                false => node.kill(Duration::from_secs(2)).await,
            }
        });
        blocks(&mut world, 14).await;
        let measured = world.proxy.metrics("headwater_failover_seconds_count").await;
        assert!(measured.values().all(|failovers| *failovers == count), "{measured:?}");
        fault.await.unwrap();
    }
    let seconds = world.proxy.metrics("headwater_failover_seconds_sum").await;
    let failovers = world.proxy.metrics("headwater_failovers_total").await;
    let reckoning = world.reckon().await;
    let waits = reckoning.clients.iter().flat_map(|(_, ended)| &ended.diary.waits);
    let longest = waits.map(|wait| wait.to - wait.from).max().unwrap_or_default();
    say(&format!(
        "failover: {} events: {}; the longest wait for a head {longest:.1?}; {failovers:?}, {seconds:?}",
        reckoning.events, reckoning.verdict
    ));
    reckoning.assert_clean();
    assert!(longest < SILENCE + Duration::from_secs(1), "{longest:?}");
    assert_eq!(
        reckoning.total(|ended| ended.diary.connections),
        6,
        "{}",
        reckoning.ends()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_behind_on_a_branch_that_was_left_costs_nobody_a_connection() {
    let _turn = TURN.read().await;
    let Some(mut world) = World::start(5, 2, 6).await else {
        return;
    };
    blocks(&mut world, 2).await;
    let first = first_in_use(&mut world).await;
    world.follow().await;
    let second = world.nodes[1].clone();
    let behind = tokio::spawn(async move { second.lag(Duration::from_secs(4)).await });
    // The proxy keeps 24 blocks: the oldest has the number of the third old-branch block that the second node will
    // announce.
    for _ in 0..6 {
        world.mine();
    }
    world.reorg(6);
    for _ in 0..20 {
        world.mine();
    }
    while first.done() < world.chain.len() {
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(500)).await;
    let killed = tokio::spawn(async move { first.kill(Duration::from_secs(5)).await });
    behind.await.unwrap();
    killed.await.unwrap();
    let reckoning = world.reckon().await;
    say(&format!("behind: {} events: {}", reckoning.events, reckoning.verdict));
    reckoning.assert_clean();
    assert_eq!(reckoning.ends(), "");
}
