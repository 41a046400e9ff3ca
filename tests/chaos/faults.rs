//! The faults and their times, drawn from the seed; several overlap.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use rand::RngExt;
use rand::seq::SliceRandom;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::chain::MAX_DEPTH;
use crate::client::{Disturbance, Wait};
use crate::webhook::Repeat;
use crate::world::{Reckoning, World};

/// Maximum wait of a client for its next event: the longest outages of both nodes and of the proxy in sequence, one of them a restart, plus
/// the proxy's own time limits. The bound detects hangs; the actual waits are printed.
pub const HANG: Duration = Duration::from_secs(45);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    NodeKilled,
    NodeStopped,
    NodeBehind,
    ProxyKilled,
    ProxyRestarted,
    ProxyStopped,
    ClientAway,
    ClientStalled,
    ReceiverKilled,
    ReceiverStopped,
    Reorg,
}

impl Kind {
    /// The kinds that are drawn; reorgs are steps of the chain.
    const DRAWN: [Self; 10] = [
        Self::NodeKilled,
        Self::NodeStopped,
        Self::NodeBehind,
        Self::ProxyKilled,
        Self::ProxyRestarted,
        Self::ProxyStopped,
        Self::ClientAway,
        Self::ClientStalled,
        Self::ReceiverKilled,
        Self::ReceiverStopped,
    ];

    /// Returns the range of a fault's duration in milliseconds.
    fn lasts(self) -> std::ops::Range<u64> {
        match self {
            Self::NodeKilled => 100..4_000,
            Self::NodeStopped => 300..6_000,
            Self::NodeBehind => 500..6_000,
            Self::ProxyKilled | Self::ProxyRestarted => 50..2_000,
            Self::ProxyStopped => 200..3_000,
            Self::ClientAway => 100..15_000,
            Self::ClientStalled => 500..9_000,
            Self::ReceiverKilled => 100..4_000,
            Self::ReceiverStopped => 300..8_000,
            Self::Reorg => 0..1,
        }
    }

    fn may_cost_an_answer(self) -> bool {
        matches!(
            self,
            Self::ProxyKilled
                | Self::ProxyRestarted
                | Self::ProxyStopped
                | Self::ReceiverKilled
                | Self::ReceiverStopped
        )
    }

    fn words(self) -> &'static str {
        match self {
            Self::NodeKilled => "node kills",
            Self::NodeStopped => "node stops",
            Self::NodeBehind => "nodes behind",
            Self::ProxyKilled => "proxy kills",
            Self::ProxyRestarted => "proxy restarts",
            Self::ProxyStopped => "proxy stops",
            Self::ClientAway => "clients away",
            Self::ClientStalled => "clients stalled",
            Self::ReceiverKilled => "receiver kills",
            Self::ReceiverStopped => "receiver stops",
            Self::Reorg => "reorgs",
        }
    }
}

/// Time in which a process that goes on reads the requests that came while it was stopped; who sent them may have given
/// them up before.
const READING: Duration = Duration::from_secs(1);

/// One fault that has happened.
#[derive(Debug)]
struct Fault {
    kind: Kind,
    began: Instant,
    ended: Instant,
}

/// All faults of a run.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Mines blocks and causes faults for `duration`.
    pub async fn run(world: &mut World, duration: Duration) -> Self {
        let begin = tokio::time::Instant::now();
        let mut done = Self::default();
        let mut running = JoinSet::new();
        let mut next_fault = begin + Duration::from_secs(1);
        let mut next_line = begin + Duration::from_secs(10);
        let mut next_block = begin;
        let mut deck = Vec::new();
        while begin.elapsed() < duration {
            next_block += Duration::from_millis(world.rng.random_range(200..500));
            sleep_until(next_block).await;
            if world.rng.random_bool(0.08) {
                let depth = world.rng.random_range(1..=MAX_DEPTH);
                world.reorg(depth);
                let now = Instant::now();
                done.0.push(Fault {
                    kind: Kind::Reorg,
                    began: now,
                    ended: now,
                });
            } else {
                world.mine();
            }
            while let Some(fault) = running.try_join_next() {
                done.0.push(fault.unwrap());
            }
            let now = tokio::time::Instant::now();
            if now >= next_fault {
                next_fault = now + Duration::from_millis(world.rng.random_range(200..1_800));
                // Drawn like cards from a deck, so that a short run has one of each kind.
                if deck.is_empty() {
                    deck.extend(Kind::DRAWN);
                    deck.shuffle(&mut world.rng);
                }
                start(deck.pop().expect("it was filled"), world, &mut running);
            }
            if now >= next_line {
                next_line += Duration::from_secs(10);
                world.proxy.lives_unless_busy();
                crate::say(&format!(
                    "chaos: {} s, {} faults, {} steps, the nodes have done {:?}",
                    begin.elapsed().as_secs(),
                    done.0.len() + running.len(),
                    world.chain.len(),
                    world.nodes.iter().map(|node| node.done()).collect::<Vec<_>>(),
                ));
            }
        }
        while let Some(fault) = running.join_next().await {
            done.0.push(fault.unwrap());
        }
        done
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Checks if a fault of the proxy or of the receiver, whose answer it may have cost, explains that a batch came again.
    pub fn explain(&self, repeat: &Repeat) -> bool {
        self.0.iter().any(|fault| {
            let at = |instant: Instant| SystemTime::now() - instant.elapsed();
            let ended = at(fault.ended) + READING;
            fault.kind.may_cost_an_answer() && at(fault.began) <= repeat.again && repeat.taken <= ended
        })
    }

    /// Counts the faults of each kind.
    pub fn words(&self) -> String {
        let mut counts = BTreeMap::new();
        for fault in &self.0 {
            *counts.entry(fault.kind).or_insert(0) += 1;
        }
        let words = counts.iter().map(|(kind, count)| format!("{} {count}", kind.words()));
        words.collect::<Vec<_>>().join(", ")
    }

    /// Returns, by kind of fault, the longest wait of a client for its next head that overlaps such a fault. Faults
    /// overlap each other, so another fault may be the cause.
    pub fn waits(&self, reckoning: &Reckoning) -> BTreeMap<&'static str, Duration> {
        let mut longest = BTreeMap::new();
        let waits = reckoning.clients.iter().flat_map(|(_, ended)| &ended.diary.waits);
        for Wait { from, to, .. } in waits {
            for fault in &self.0 {
                if fault.began <= *to && *from <= fault.ended {
                    let wait = longest.entry(fault.kind.words()).or_insert(Duration::ZERO);
                    *wait = (*wait).max(*to - *from);
                }
            }
        }
        longest
    }
}

/// Describes the longest wait for a head: the client, the duration and the start.
pub fn longest_wait(reckoning: &Reckoning) -> String {
    let waits = reckoning.clients.iter();
    let waits = waits.flat_map(|(name, ended)| ended.diary.waits.iter().map(move |wait| (name, wait)));
    let Some((name, Wait { from, to, .. })) = waits.max_by_key(|(_, wait)| wait.to - wait.from) else {
        return "nobody waited".into();
    };
    let since = humantime::format_rfc3339_millis(SystemTime::now() - from.elapsed());
    format!("{name} waited for {:.1?} from {since} on", *to - *from)
}

/// Starts a fault, possibly after waiting until another fault of the same target is over.
fn start(kind: Kind, world: &mut World, running: &mut JoinSet<Fault>) {
    let lasts = Duration::from_millis(world.rng.random_range(kind.lasts()));
    let node = world.nodes[world.rng.random_range(0..world.nodes.len())].clone();
    let client = world.rng.random_range(0..world.clients.len());
    let disturbances = world.clients[client].disturbances();
    let (proxy, receiver) = (world.proxy.clone(), world.receiver.clone());
    running.spawn(async move {
        let began = Instant::now();
        match kind {
            Kind::NodeKilled => node.kill(lasts).await,
            Kind::NodeStopped => node.freeze(lasts).await,
            Kind::NodeBehind => node.lag(lasts).await,
            Kind::ProxyKilled => proxy.kill(lasts).await,
            Kind::ProxyRestarted => proxy.restart(lasts).await,
            Kind::ProxyStopped => proxy.freeze(lasts).await,
            Kind::ReceiverKilled => receiver.kill(lasts).await,
            Kind::ReceiverStopped => receiver.freeze(lasts).await,
            Kind::ClientAway | Kind::ClientStalled => {
                let disturbance = if kind == Kind::ClientAway {
                    Disturbance::Away(lasts)
                } else {
                    Disturbance::Stall(lasts)
                };
                disturbances.send(disturbance).await.expect("the client lives");
                sleep(lasts).await;
            }
            Kind::Reorg => unreachable!("a step of the chain"),
        }
        Fault {
            kind,
            began,
            ended: Instant::now(),
        }
    });
}
