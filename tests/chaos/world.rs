//! Nodes, proxy and clients together; the plan of the chain, and the final check.

use std::fmt::Write as _;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::chain::{Chain, Emission, Step};
use crate::client::{Client, Ended, Wish};
use crate::event_source::EventSource;
use crate::history::Verdict;
use crate::node::{self, Node};
use crate::proxy::Proxy;
use crate::session::SessionClient;
use crate::view::Kinds;
use crate::webhook::{Repeat, WebhookReceiver};

/// Number of the last block before the clients start; no reorg goes below it.
const FIRST: u64 = 10;
/// Time limit for the last blocks to reach all clients.
const ARRIVE: Duration = Duration::from_secs(60);

pub struct World {
    pub seed: u64,
    pub rng: StdRng,
    pub chain: Arc<Chain>,
    pub nodes: Vec<Arc<Node>>,
    pub proxy: Arc<Proxy>,
    pub clients: Vec<Client>,
    sessions: Vec<SessionClient>,
    sources: Vec<EventSource>,
    pub receiver: Arc<WebhookReceiver>,
    timestamp: u64,
    pub reorgs: u64,
    directory: TempDir,
}

/// The result of a run.
pub struct Reckoning {
    pub verdict: Verdict,
    pub clients: Vec<(String, Ended)>,
    /// Descriptions of the clients with sessions, of event streams, and of webhooks.
    pub others: Vec<String>,
    /// Batches of webhooks that came more than once.
    pub repeats: Vec<Repeat>,
    pub events: u64,
    pub logs: Vec<PathBuf>,
    pub seed: u64,
    pub _directory: TempDir,
}

const HEADS: Kinds = Kinds {
    heads: true,
    logs: false,
};
const LOGS: Kinds = Kinds {
    heads: false,
    logs: true,
};
const BOTH: Kinds = Kinds {
    heads: true,
    logs: true,
};

/// Subscriptions of the clients, assigned in turn: name, kinds and logs.
const WISHES: [(&str, Kinds, Wish); 6] = [
    ("heads", HEADS, Wish::All),
    ("all logs", LOGS, Wish::All),
    ("heads and all logs", BOTH, Wish::All),
    ("transfers", LOGS, Wish::Transfers),
    ("heads and notes", BOTH, Wish::Notes),
    ("notes", LOGS, Wish::Notes),
];

impl World {
    /// Starts nodes, proxy and clients; `None` if there is no anvil.
    pub async fn start(seed: u64, nodes: usize, clients: usize) -> Option<Self> {
        node::binary()?;
        let directory = tempfile::Builder::new().prefix("chaos-").tempdir().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        // The chain's clock begins in the past, because some blocks are mined faster than one a second.
        let genesis = now.as_secs() - 100_000;
        let chain = Arc::new(Chain::new(genesis));
        let mut all = Vec::new();
        for name in ["one", "two", "three"].into_iter().take(nodes) {
            all.push(Node::start(name, directory.path(), &chain).await);
        }
        let receiver = WebhookReceiver::start(directory.path(), FIRST + 1);
        let mut world = Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            chain,
            proxy: Arc::new(start_proxy(directory.path(), &all, seed, &receiver.config).await),
            nodes: all,
            clients: Vec::new(),
            sessions: Vec::new(),
            sources: Vec::new(),
            receiver: Arc::new(receiver),
            timestamp: genesis + 1,
            reorgs: 0,
            directory,
        };
        world.chain.push(Step::Deploy {
            timestamp: world.timestamp,
        });
        while world.chain.height() < FIRST {
            world.mine();
        }
        world.follow().await;
        let turns = WISHES.iter().cycle().zip(1..);
        for ((name, kinds, wish), number) in turns.take(clients) {
            let name = format!("{number} ({name})");
            let client = Client::start(name, *kinds, *wish, FIRST + 1, vec![world.proxy.port]);
            world.clients.push(client);
        }
        Some(world)
    }

    /// Starts clients with sessions, and of server-sent events, whose connections also end by themselves.
    pub fn add_sessions_and_event_sources(&mut self) {
        let port = self.proxy.port;
        self.sessions = vec![
            SessionClient::start(Wish::All, port),
            SessionClient::start(Wish::Transfers, port),
        ];
        self.sources = vec![
            EventSource::start("heads", FIRST + 1, port),
            EventSource::start("logs", FIRST + 1, port),
        ];
    }

    fn emissions(&mut self) -> Vec<Emission> {
        let count = self.rng.random_range(0..4);
        let mut emissions = Vec::new();
        for _ in 0..count {
            emissions.push(Emission {
                first: self.rng.random_range(0..1_000_000),
                count: self.rng.random_range(0..6),
            });
        }
        emissions
    }

    /// Plans a block.
    pub fn mine(&mut self) {
        let emissions = self.emissions();
        self.mine_with(emissions);
    }

    fn mine_with(&mut self, emissions: Vec<Emission>) {
        self.timestamp += 1;
        self.chain.push(Step::Mine {
            timestamp: self.timestamp,
            emissions,
        });
    }

    /// Plans a reorg of this depth, but not below block `FIRST`.
    pub fn reorg(&mut self, depth: u64) {
        let depth = depth.min(self.chain.height() - FIRST);
        if depth > 0 {
            self.reorgs += 1;
            let blocks = (0..depth).map(|_| self.emissions()).collect();
            self.chain.push(Step::Reorg { blocks });
        }
    }

    /// Waits until all nodes have executed the planned steps.
    pub async fn follow(&self) {
        let end = Instant::now() + ARRIVE;
        while self.nodes.iter().any(|node| node.done() < self.chain.len()) {
            let done: Vec<usize> = self.nodes.iter().map(|node| node.done()).collect();
            assert!(
                Instant::now() < end,
                "the nodes have done {done:?} of {} steps (seed {})",
                self.chain.len(),
                self.seed
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the active node of the proxy.
    pub async fn active(&self) -> Arc<Node> {
        let end = Instant::now() + ARRIVE;
        loop {
            let active = self.proxy.metrics("headwater_upstream_active{").await;
            let is_active = |node: &&Arc<Node>| {
                let mut names = active.iter().filter(|(_, active)| **active > 0.0);
                names.any(|(name, _)| name.contains(&node.address()))
            };
            if let Some(node) = self.nodes.iter().find(is_active) {
                return node.clone();
            }
            assert!(Instant::now() < end, "no upstream is in use: {active:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the run after the faults: mines last blocks with a log for every filter, then checks all records against
    /// the nodes.
    pub async fn reckon(mut self) -> Reckoning {
        for _ in 0..3 {
            self.mine_with(vec![Emission { first: 0, count: 6 }]);
        }
        self.follow().await;
        self.proxy.lives().await;
        let blocks = self.nodes[0].canonical().await;
        for node in &self.nodes[1..] {
            let own: Vec<_> = node.canonical().await.iter().map(|block| block.hash).collect();
            let same = blocks.iter().map(|block| block.hash).eq(own);
            assert!(same, "the nodes have different chains (seed {})", self.seed);
        }
        let canonical = self.chain.canonical(blocks);
        let end = Instant::now() + ARRIVE;
        let mut late = Vec::new();
        for client in &self.clients {
            let patience = end.saturating_duration_since(Instant::now());
            if !client.arrives(&canonical, patience).await {
                late.push(client.name.clone());
            }
        }
        let have_arrived = || {
            let sessions = self.sessions.iter().all(|client| client.has_arrived(&canonical));
            let sources = self.sources.iter().all(|source| source.has_arrived(&canonical));
            sessions && sources && self.receiver.has_arrived(&canonical)
        };
        while Instant::now() < end && !have_arrived() {
            sleep(Duration::from_millis(100)).await;
        }
        // Long enough for unexpected events to arrive.
        sleep(Duration::from_millis(500)).await;
        let mut reckoning = Reckoning {
            verdict: Verdict::default(),
            clients: Vec::new(),
            others: Vec::new(),
            repeats: Vec::new(),
            events: 0,
            logs: vec![self.proxy.log.clone()],
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
        let sessions = self.sessions.into_iter().map(|client| client.stop(&canonical));
        let sources = self.sources.into_iter().map(|source| source.stop(&canonical));
        for (verdict, words) in sessions.chain(sources) {
            reckoning.verdict.merge(verdict);
            reckoning.others.push(words);
        }
        for (verdict, words, repeats) in self.receiver.judge(&canonical) {
            reckoning.verdict.merge(verdict);
            reckoning.others.push(words);
            reckoning.repeats.extend(repeats);
        }
        for name in late {
            crate::say(&format!("{name} did not get the last block within {ARRIVE:?}"));
        }
        reckoning
    }
}

/// Starts the proxy; for every third seed, all nodes but the first are polled over HTTP.
async fn start_proxy(directory: &Path, nodes: &[Arc<Node>], seed: u64, config: &Path) -> Proxy {
    let scheme = |at: usize| if at > 0 && seed.is_multiple_of(3) { "http" } else { "ws" };
    let upstreams = nodes.iter().enumerate();
    let upstreams = upstreams.map(|(at, node)| format!("{}://{}", scheme(at), node.address()));
    Proxy::start(directory, "proxy", &upstreams.collect::<Vec<_>>(), Some(config)).await
}

impl Reckoning {
    pub fn total(&self, of: impl Fn(&Ended) -> u64) -> u64 {
        self.clients.iter().map(|(_, ended)| of(ended)).sum()
    }

    /// Lists the numbers of ended connections by reason, over all clients.
    pub fn ends(&self) -> String {
        let mut ends = std::collections::BTreeMap::new();
        for (why, count) in self.clients.iter().flat_map(|(_, ended)| &ended.diary.ends) {
            *ends.entry(why).or_insert(0) += count;
        }
        let mut words = String::new();
        for (why, count) in ends {
            let comma = if words.is_empty() { "" } else { ", " };
            write!(words, "{comma}{count} {why}").unwrap();
        }
        words
    }

    /// Saves the proxy's log and the clients' diaries for analysis.
    pub fn keep(&self) -> PathBuf {
        let name = format!("chaos-seed-{}-{}", self.seed, std::process::id());
        let kept = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&kept).unwrap();
        for log in &self.logs {
            std::fs::copy(log, kept.join(log.file_name().unwrap())).unwrap();
        }
        for (name, ended) in &self.clients {
            let mut file = BufWriter::new(File::create(kept.join(format!("{name}.txt"))).unwrap());
            ended.diary.write(&mut file).unwrap();
        }
        kept
    }

    /// Panics with examples and the path of the saved files unless every client received exactly the right events.
    pub fn assert_clean(&self) {
        let mut wrong = String::new();
        if !self.verdict.is_clean() {
            writeln!(wrong, "{}", self.verdict).unwrap();
        }
        for (name, ended) in &self.clients {
            for stray in ended.diary.strays.iter().take(3) {
                writeln!(wrong, "{name}: a message of no subscription: {stray}").unwrap();
            }
        }
        for repeat in &self.repeats {
            writeln!(wrong, "{} came again without a reason: {repeat:?}", repeat.id).unwrap();
        }
        if !wrong.is_empty() {
            panic!(
                "seed {}, the proxy's log in {}\n{wrong}",
                self.seed,
                self.keep().display()
            );
        }
    }
}
