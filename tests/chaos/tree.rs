//! Two roots before a node, three edges behind both roots, and clients that take another edge for each connection.
//!
//! ```text
//! Devnet > Link > root, root > Link > edge, edge, edge > Client, Client, ... > history::check
//! ```
//!
//! The node is a simulated one in this process, whose chain the test knows; what fails are the processes and the links,
//! up to two at a time.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::keccak256;
use headwater::devnet::{self, Block, Control, Devnet};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::chain::MAX_DEPTH;
use crate::client::{Client, Disturbance, Wish};
use crate::faults::{HANG, longest_wait};
use crate::gaps::{Gaps, Outage};
use crate::history::{CanonBlock, Canonical, Log, Verdict};
use crate::link::Link;
use crate::processes::Processes;
use crate::proxy::Proxy;
use crate::view::Kinds;
use crate::world::Reckoning;
use crate::{TURN, say, setting};

/// Number of the last block before the clients start; no reorg goes below it.
const FIRST: u64 = 10;

/// Time limit for the last blocks to reach all clients.
const ARRIVE: Duration = Duration::from_secs(60);

/// Most faults at a time, besides those of clients.
const AT_ONCE: usize = 2;

/// Longest time between two blocks.
pub const BLOCK_TIME: Duration = Duration::from_millis(500);

/// Time after which no earlier fault is felt.
const CALM: Duration = Duration::from_secs(3);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    RootKilled,
    RootStopped,
    RootEnded,
    EdgeKilled,
    EdgeStopped,
    EdgeEnded,
    LinkSwallowed,
    NodeLinkSwallowed,
    /// Both roots lose the node at once, most times for longer than the silence timeout.
    NodeSwallowed,
    ClientMoved,
    ClientStalled,
}

impl Kind {
    const DRAWN: [Self; 13] = [
        Self::RootKilled,
        Self::RootStopped,
        Self::RootEnded,
        Self::EdgeKilled,
        Self::EdgeStopped,
        Self::EdgeEnded,
        Self::LinkSwallowed,
        Self::LinkSwallowed,
        Self::NodeLinkSwallowed,
        Self::NodeSwallowed,
        Self::ClientMoved,
        Self::ClientMoved,
        Self::ClientStalled,
    ];

    /// Returns the range of a fault's duration in milliseconds.
    fn lasts(self) -> std::ops::Range<u64> {
        match self {
            Self::RootKilled | Self::EdgeKilled => 100..3_000,
            Self::RootStopped => 300..5_000,
            Self::EdgeStopped => 200..3_000,
            Self::RootEnded | Self::EdgeEnded => 50..1_500,
            Self::LinkSwallowed | Self::NodeLinkSwallowed => 300..6_000,
            Self::NodeSwallowed => 1_000..7_000,
            Self::ClientMoved => 1..3_000,
            Self::ClientStalled => 500..6_000,
        }
    }

    fn is_of_client(self) -> bool {
        matches!(self, Self::ClientMoved | Self::ClientStalled)
    }
}

/// One fault that has happened.
#[derive(Debug)]
struct Fault {
    kind: Kind,
    outage: Outage,
}

struct Tree {
    seed: u64,
    rng: StdRng,
    control: Control,
    _node: Devnet,
    blocks: Vec<CanonBlock>,
    orphans: Vec<CanonBlock>,
    node_links: Vec<Arc<Link>>,
    roots: Vec<Arc<Proxy>>,
    links: Vec<Arc<Link>>,
    edges: Vec<Arc<Proxy>>,
    clients: Vec<Client>,
    reorgs: u64,
    directory: TempDir,
}

fn seen(block: &Block) -> CanonBlock {
    let logs = (0_u64..).zip(block.logs()).map(|(index, log)| Log {
        index,
        address: log.address,
        topics: log.data.topics().to_vec(),
        data: keccak256(&log.data.data),
    });
    CanonBlock {
        number: block.number(),
        hash: block.hash(),
        parent: block.parent_hash(),
        logs: logs.collect(),
    }
}

impl Tree {
    async fn start(seed: u64, clients: usize) -> Self {
        let directory = tempfile::Builder::new().prefix("chaos-tree-").tempdir().unwrap();
        let node = Devnet::start(devnet::Config::manual()).await.unwrap();
        let control = node.handle();
        control.mine_many(FIRST - control.head().number());
        let blocks = control.with_chain(|chain| {
            let all = (0..=FIRST).map(|number| seen(chain.block_at(number).expect("it is kept")));
            all.collect()
        });
        let edges = ["edge-1", "edge-2", "edge-3"];
        let Processes {
            node_links,
            roots,
            links,
            edges,
        } = Processes::start(directory.path(), node.address().port(), &edges, "").await;
        let token = control.with_chain(|chain| chain.tokens()[0]);
        let kinds = |heads, logs| Kinds { heads, logs };
        let wishes = [
            ("heads", kinds(true, false), Wish::All),
            ("heads and all logs", kinds(true, true), Wish::All),
            ("heads and a token", kinds(true, true), Wish::Of(token)),
            ("all logs", kinds(false, true), Wish::All),
        ];
        let clients = wishes
            .iter()
            .cycle()
            .zip(1..)
            .take(clients)
            .map(|((name, kinds, wish), number)| {
                let mut ports: Vec<u16> = edges.iter().map(|edge| edge.port).collect();
                ports.rotate_left(number % 3);
                Client::start(format!("{number} ({name})"), *kinds, *wish, FIRST + 1, ports)
            });
        Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            clients: clients.collect(),
            control,
            _node: node,
            blocks,
            orphans: Vec::new(),
            node_links,
            roots,
            links,
            edges,
            reorgs: 0,
            directory,
        }
    }

    fn mine(&mut self) {
        self.blocks.push(seen(&self.control.mine()));
    }

    fn reorg(&mut self, depth: u64) {
        let depth = depth.min(self.control.head().number() - FIRST);
        if depth == 0 {
            return;
        }
        self.reorgs += 1;
        let reorg = self.control.reorg(depth, depth + self.rng.random_range(0..2)).unwrap();
        let kept = self.blocks.len() - reorg.dropped.len();
        self.orphans.extend(self.blocks.drain(kept..));
        self.blocks.extend(reorg.adopted.iter().map(|block| seen(block)));
    }

    fn one<T: Clone>(&mut self, of: impl Fn(&Self) -> &[T]) -> T {
        let count = of(self).len();
        let at = self.rng.random_range(0..count);
        of(self)[at].clone()
    }

    /// Starts a fault, possibly after another fault of the same target is over.
    fn fault(&mut self, kind: Kind, running: &mut JoinSet<Fault>) {
        let lasts = Duration::from_millis(self.rng.random_range(kind.lasts()));
        let (root, edge) = (self.one(|tree| &tree.roots[..]), self.one(|tree| &tree.edges[..]));
        let (at, node_link) = (
            self.rng.random_range(0..self.links.len()),
            self.one(|tree| &tree.node_links[..]),
        );
        let (link, node_links) = (self.links[at].clone(), self.node_links.clone());
        let of_edge = match kind {
            Kind::EdgeKilled | Kind::EdgeStopped | Kind::EdgeEnded => Some(edge.port),
            Kind::LinkSwallowed => Some(self.edges[at / self.roots.len()].port),
            _ => None,
        };
        let client = self.rng.random_range(0..self.clients.len());
        let disturbances = self.clients[client].disturbances();
        running.spawn(async move {
            let began = Instant::now();
            match kind {
                Kind::RootKilled => root.kill(lasts).await,
                Kind::RootStopped => root.freeze(lasts).await,
                Kind::RootEnded => root.restart(lasts).await,
                Kind::EdgeKilled => edge.kill(lasts).await,
                Kind::EdgeStopped => edge.freeze(lasts).await,
                Kind::EdgeEnded => edge.restart(lasts).await,
                Kind::LinkSwallowed => link.swallow(lasts).await,
                Kind::NodeLinkSwallowed => node_link.swallow(lasts).await,
                Kind::NodeSwallowed => {
                    let all = node_links.iter().map(|link| link.swallow(lasts));
                    futures_util::future::join_all(all).await;
                }
                Kind::ClientMoved | Kind::ClientStalled => {
                    let disturbance = match kind {
                        Kind::ClientMoved => Disturbance::Away(lasts),
                        _ => Disturbance::Stall(lasts),
                    };
                    disturbances.send(disturbance).await.expect("the client lives");
                    sleep(lasts).await;
                }
            }
            let outage = Outage {
                began,
                ended: Instant::now(),
                edge: of_edge,
                is_root_killed: kind == Kind::RootKilled,
            };
            Fault { kind, outage }
        });
    }

    /// Mines blocks and causes faults for `duration`.
    async fn run(&mut self, duration: Duration) -> Vec<Fault> {
        let begin = tokio::time::Instant::now();
        let (mut running, mut moving, mut done) = (JoinSet::new(), JoinSet::new(), Vec::new());
        let mut next_fault = begin + Duration::from_secs(1);
        let (mut next_line, mut next_block) = (begin + Duration::from_secs(10), begin);
        let mut deck = Vec::new();
        // Blocks are mined until the last fault is over: without one, every client would wait.
        while begin.elapsed() < duration || !running.is_empty() || !moving.is_empty() {
            next_block += Duration::from_millis(self.rng.random_range(200..BLOCK_TIME.as_millis() as u64));
            sleep_until(next_block).await;
            if self.rng.random_bool(0.08) {
                let depth = self.rng.random_range(1..=MAX_DEPTH);
                self.reorg(depth);
            } else {
                self.mine();
            }
            while let Some(fault) = running.try_join_next() {
                done.push(fault.unwrap());
            }
            while let Some(fault) = moving.try_join_next() {
                done.push(fault.unwrap());
            }
            let now = tokio::time::Instant::now();
            if now >= next_fault && begin.elapsed() < duration {
                next_fault = now + Duration::from_millis(self.rng.random_range(200..1_800));
                if deck.is_empty() {
                    deck.extend(Kind::DRAWN);
                    deck.shuffle(&mut self.rng);
                }
                let next = deck
                    .iter()
                    .rposition(|kind: &Kind| kind.is_of_client() || running.len() < AT_ONCE);
                if let Some(next) = next {
                    let kind = deck.remove(next);
                    self.fault(kind, if kind.is_of_client() { &mut moving } else { &mut running });
                }
            }
            if now >= next_line {
                next_line += Duration::from_secs(10);
                self.roots
                    .iter()
                    .chain(&self.edges)
                    .for_each(|proxy| proxy.lives_unless_busy());
                let (seconds, faults) = (begin.elapsed().as_secs(), done.len() + running.len() + moving.len());
                say(&format!(
                    "tree: {seconds} s, {faults} faults, block {}",
                    self.control.head().number()
                ));
            }
        }
        done
    }

    /// Kills one root after the other while nothing else fails.
    async fn lose_roots(&mut self, times: usize) -> Vec<Fault> {
        let mut done = Vec::new();
        for at in 0..times {
            self.mine_for(CALM).await;
            let root = self.roots[at % self.roots.len()].clone();
            let began = Instant::now();
            let killed = tokio::spawn(async move { root.kill(Duration::from_secs(1)).await });
            while !killed.is_finished() {
                self.mine_for(BLOCK_TIME).await;
            }
            killed.await.unwrap();
            let outage = Outage {
                began,
                ended: Instant::now(),
                edge: None,
                is_root_killed: true,
            };
            let kind = Kind::RootKilled;
            done.push(Fault { kind, outage });
        }
        self.mine_for(CALM).await;
        done
    }

    async fn mine_for(&mut self, span: Duration) {
        let end = tokio::time::Instant::now() + span;
        while tokio::time::Instant::now() < end {
            self.mine();
            let pause = self.rng.random_range(200..BLOCK_TIME.as_millis() as u64);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Mines last blocks, then checks all records against the chain.
    async fn reckon(mut self) -> Reckoning {
        for _ in 0..3 {
            self.mine();
        }
        for proxy in self.roots.iter().chain(&self.edges) {
            proxy.lives().await;
        }
        let canonical = Canonical {
            blocks: self.blocks,
            orphans: self.orphans,
            rewound: HashSet::new(),
        };
        let end = Instant::now() + ARRIVE;
        for client in &self.clients {
            if !client
                .arrives(&canonical, end.saturating_duration_since(Instant::now()))
                .await
            {
                say(&format!("{} did not get the last block within {ARRIVE:?}", client.name));
            }
        }
        // Long enough for unexpected events to arrive.
        sleep(Duration::from_millis(500)).await;
        let logs = self.roots.iter().chain(&self.edges).map(|proxy| proxy.log.clone());
        let mut reckoning = Reckoning {
            verdict: Verdict::default(),
            clients: Vec::new(),
            others: Vec::new(),
            repeats: Vec::new(),
            events: 0,
            logs: logs.collect(),
            _directory: self.directory,
            seed: self.seed,
        };
        for client in self.clients {
            let name = client.name.clone();
            let ended = client.stop().await;
            reckoning.events += ended.diary.events;
            reckoning.verdict.merge(ended.check(&canonical));
            reckoning.clients.push((name, ended));
        }
        reckoning
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_in_a_tree_costs_no_client_an_event() {
    let _turn = TURN.read().await;
    let (seconds, seed) = (setting("CHAOS_SECONDS", 10), setting("CHAOS_SEED", 1));
    let mut tree = Tree::start(seed, 12).await;
    say(&format!("tree: seed {seed}, {seconds} s"));
    let mut faults = tree.run(Duration::from_secs(seconds)).await;
    let kills = if seconds < 60 { 2 } else { 8 };
    faults.extend(tree.lose_roots(kills).await);
    let reorgs = tree.reorgs;
    let reckoning = tree.reckon().await;
    let outages = faults.iter().filter(|fault| !fault.kind.is_of_client());
    let gaps = Gaps::of(&reckoning, &Vec::from_iter(outages.map(|fault| fault.outage)));
    let mut counts: BTreeMap<Kind, u64> = BTreeMap::new();
    for fault in &faults {
        *counts.entry(fault.kind).or_default() += 1;
    }
    say(&format!(
        "tree: {} connections, {} times back to an older block, {} to the first; ended: {}",
        reckoning.total(|ended| ended.diary.connections),
        reckoning.total(|ended| ended.diary.went_back),
        reckoning.total(|ended| ended.diary.began_anew),
        reckoning.ends(),
    ));
    say(&format!("tree: {gaps}; {}", longest_wait(&reckoning)));
    if std::env::var_os("CHAOS_KEEP").is_some() {
        say(&format!("tree: logs and diaries in {}", reckoning.keep().display()));
    }
    say(&format!(
        "tree: {seconds} s, {} faults ({counts:?}), {reorgs} reorgs, {} clients, {} events: {}",
        faults.len(),
        reckoning.clients.len(),
        reckoning.events,
        reckoning.verdict,
    ));
    reckoning.assert_clean();
    assert!(gaps.beyond < HANG, "somebody hung (seed {seed}): {gaps}");
    // Only where nothing else uses the processors.
    if std::env::var_os("CHAOS_GAPS").is_some_and(|value| !value.is_empty()) {
        assert!(gaps.too_long.is_empty(), "seed {seed}: {gaps}");
    }
}
