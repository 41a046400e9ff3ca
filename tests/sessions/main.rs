//! Sessions with unmodified libraries: a relay cuts the connection at random moments, with reorgs in between, and what the
//! application saw has no hole.
//!
//! `cargo test --test sessions`; `SESSION_CUTS` and `SESSION_SEED` change the number of cuts (60; 200 is the long form) and
//! the story. viem runs in Node where `tests/interop/node_modules` has it, web3.py where `tests/interop/.venv` does, and go-ethereum's client where
//! there is Go.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]
// The seed and the counts are the result.
#![allow(clippy::print_stdout)]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../it/tail/relay.rs"]
mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy_provider::{Provider, ProviderBuilder, WsConnect};
use alloy_rpc_types_eth::Filter;
use headwater::app::App;
use headwater::config::{Config, typed};
use headwater::devnet::{self, Block, Control, Devnet};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use relay::Relay;

/// Time limit of every wait, or of the time without an event.
const PATIENCE: Duration = Duration::from_secs(60);

/// Event as the application got it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Head(String),
    Log(String, u64),
    Undo(String, u64),
}

/// Events that the application saw, in order.
#[derive(Clone, Default)]
struct Story(Arc<Mutex<Vec<Seen>>>);

impl Story {
    fn push(&self, seen: Seen) {
        self.0.lock().push(seen);
    }

    fn has_head(&self, block: &Block) -> bool {
        let head = Seen::Head(block.hash().to_string());
        self.0.lock().contains(&head)
    }

    /// Waits until this holds. A slow application may be thousands of events behind: the time limit begins anew with
    /// each of them.
    async fn until(&self, what: &str, is_it: impl Fn(&Self) -> bool) {
        let mut events = self.0.lock().len();
        let mut since = Instant::now();
        while !is_it(self) {
            sleep(Duration::from_millis(10)).await;
            let seen = self.0.lock();
            if seen.len() > events {
                (events, since) = (seen.len(), Instant::now());
            }
            assert!(
                since.elapsed() < PATIENCE,
                "{what}: no event for {PATIENCE:?}, after {events} that end with {:?}",
                seen.last()
            );
        }
    }
}

/// The proxy before a node that mines on command, behind a relay.
struct World {
    _node: Devnet,
    control: Control,
    relay: Relay,
    admin: SocketAddr,
    stop: CancellationToken,
    rng: StdRng,
    first: u64,
    cuts: u32,
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

impl World {
    async fn start() -> Self {
        let node = Devnet::start(devnet::Config {
            keep_blocks: 1 << 20,
            ..devnet::Config::manual()
        })
        .await
        .unwrap();
        let control = node.handle();
        control.mine_many(20);
        let mut typed = typed::Config {
            listen: "127.0.0.1:0".into(),
            admin: "127.0.0.1:0".into(),
            upstream: vec![node.ws_url().into()],
            ..typed::Config::default()
        };
        typed.limits.handshakes_per_minute = 1_000_000;
        let app = App::bind(Config::check(&typed).unwrap()).await.unwrap();
        let relay = Relay::start(app.address().unwrap()).await;
        let admin = app.admin_address().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(app.run(stop.clone().cancelled_owned()));
        let seed = variable("SESSION_SEED", rand::random());
        println!("SESSION_SEED={seed}");
        let first = control.head().number() + 1;
        let world = Self {
            _node: node,
            control,
            relay,
            admin,
            stop,
            rng: StdRng::seed_from_u64(seed),
            first,
            cuts: variable("SESSION_CUTS", 60) as u32,
        };
        // A token that was made before the process started is one of a session that is lost.
        world.metrics().await;
        world
    }

    fn url(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        format!("{}/?session={now}-{:016x}", self.relay.url(), rand::random::<u64>())
    }

    fn act(&mut self) {
        match self.rng.random_range(0..10) {
            0..=5 => drop(self.control.mine()),
            6..=7 => drop(self.control.mine_many(self.rng.random_range(2..6))),
            _ => {
                let depth = self.rng.random_range(1..4);
                drop(self.control.reorg(depth, depth + self.rng.random_range(1..3)));
            }
        }
        // A reorg may reach below the blocks that the client began with.
        let depth = self.control.head().number().saturating_sub(self.first);
        if depth < 5 {
            self.control.mine_many(5);
        }
    }

    /// Cuts the connection at random moments, with blocks and reorgs in between, but not while a library subscribes
    /// again: viem forgets a subscription whose answer does not come, and gives up after a handshake that fails.
    async fn cut_in_between(&mut self, story: &Story) {
        self.act();
        for _ in 0..self.cuts {
            for _ in 0..self.rng.random_range(1..5) {
                self.act();
                if self.rng.random_bool(0.5) {
                    sleep(Duration::from_micros(self.rng.random_range(0..15_000))).await;
                }
            }
            let before = self.resumed().await;
            self.relay.cut();
            self.act();
            let waiting = async {
                while self.resumed().await < before + 2 {
                    sleep(Duration::from_millis(2)).await;
                }
            };
            timeout(PATIENCE, waiting).await.expect("both subscriptions again");
            // Behind the answers.
            self.seen(story, &self.control.mine_many(1)).await;
        }
        self.settle(story).await;
    }

    /// Cuts the connection at any moment, with blocks and reorgs in between.
    async fn cut_often(&mut self, story: &Story) {
        self.act();
        for cut in 0..self.cuts {
            for _ in 0..self.rng.random_range(1..4) {
                self.act();
                if self.rng.random_bool(0.5) {
                    sleep(Duration::from_micros(self.rng.random_range(0..15_000))).await;
                }
            }
            if self.rng.random_bool(0.3) {
                // In the middle of whatever the next connections are sent.
                self.relay.cut_after(self.rng.random_range(200..40_000));
            } else {
                self.relay.cut_after(u64::MAX);
            }
            self.relay.cut();
            // The library comes back, and now and then catches up.
            if cut % 8 == 0 {
                self.relay.cut_after(u64::MAX);
                self.relay.cut();
                let block = self.control.mine();
                story.until("catching up", |story| story.has_head(&block)).await;
            } else {
                sleep(Duration::from_millis(self.rng.random_range(0..60))).await;
            }
        }
        self.relay.cut_after(u64::MAX);
        self.relay.cut();
        self.settle(story).await;
    }

    /// Waits until the application has seen the newest block.
    async fn settle(&self, story: &Story) {
        self.seen(story, &self.control.mine_many(6)).await;
    }

    /// Waits until the application has seen these blocks with their logs.
    async fn seen(&self, story: &Story, blocks: &[Arc<Block>]) {
        for block in blocks {
            let log = Seen::Log(block.hash().to_string(), block.logs().count() as u64 - 1);
            story
                .until("a new block", |story| {
                    story.has_head(block) && story.0.lock().contains(&log)
                })
                .await;
        }
    }

    /// Returns the number of subscriptions that went on from their positions.
    async fn resumed(&self) -> u64 {
        self.claims("resumed").await
    }

    /// Returns the number of positions of returning sessions with this outcome.
    async fn claims(&self, outcome: &str) -> u64 {
        self.metric(&format!("headwater_session_claims_total{{outcome=\"{outcome}\"}}"))
            .await
    }

    /// Checks that no client was closed because its position is lost: these applications do not look at the reason.
    async fn check_positions(&self) {
        if self.claims("lost").await > 0 {
            let page = self.metrics().await;
            let names = [
                "continuity_lost",
                "connections_closed",
                "session",
                "resume",
                "upstream_",
                "reorgs",
            ];
            let lines = page
                .lines()
                .filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
            let lines = lines.filter(|line| names.iter().any(|name| line.contains(name)));
            panic!("positions are lost:\n{}", lines.collect::<Vec<_>>().join("\n"));
        }
    }

    /// Returns the value of a metric with these labels; 0 if there is none.
    async fn metric(&self, sample: &str) -> u64 {
        let page = self.metrics().await;
        let line = page.lines().find_map(|line| line.strip_prefix(sample));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }

    async fn metrics(&self) -> String {
        let mut admin = TcpStream::connect(self.admin).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        admin.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        admin.read_to_string(&mut page).await.unwrap();
        page
    }

    /// Checks that the events lead to the chain, and returns how many came more than once.
    fn check(&self, story: &Story) -> (usize, usize) {
        let story = story.0.lock();
        let canonical: Vec<Arc<Block>> = (self.first..=self.control.head().number())
            .map(|number| {
                self.control
                    .with_chain(|chain| chain.block_at(number).cloned().unwrap())
            })
            .collect();
        let heads: BTreeSet<&Seen> = story.iter().filter(|seen| matches!(seen, Seen::Head(_))).collect();
        let mut logs: BTreeMap<(&str, u64), bool> = BTreeMap::new();
        let mut distinct = BTreeSet::new();
        let mut repeated = 0;
        for seen in story.iter() {
            repeated += usize::from(!distinct.insert(seen.clone()));
            match seen {
                Seen::Log(hash, index) => drop(logs.insert((hash, *index), true)),
                Seen::Undo(hash, index) => drop(logs.insert((hash, *index), false)),
                Seen::Head(_) => {}
            }
        }
        let mut expected = BTreeSet::new();
        for block in &canonical {
            let hash = block.hash().to_string();
            assert!(
                heads.contains(&Seen::Head(hash.clone())),
                "head {:#x} is missing",
                block.number()
            );
            for index in 0..block.logs().count() as u64 {
                expected.insert((hash.clone(), index));
                let applied = logs.get(&(&*hash, index));
                assert_eq!(
                    applied,
                    Some(&true),
                    "log {index} of {:#x}: {applied:?}",
                    block.number()
                );
            }
        }
        // A reorg below the blocks that the client began with replaces those too, and the new ones are sent.
        let below =
            (0..self.first).filter_map(|number| self.control.with_chain(|chain| chain.block_at(number).cloned()));
        let below: BTreeSet<String> = below.map(|block| block.hash().to_string()).collect();
        for ((hash, index), is_there) in logs {
            let is_canonical = expected.contains(&(hash.to_owned(), index)) || below.contains(hash);
            assert!(!is_there || is_canonical, "log {index} of {hash} was not taken back");
        }
        (story.len(), repeated)
    }
}

async fn with_alloy(slow: Duration) {
    let mut world = World::start().await;
    let story = Story::default();
    let connect = WsConnect::new(world.url())
        .with_max_retries(1_000_000)
        .with_retry_interval(Duration::from_millis(20));
    let provider = ProviderBuilder::new().connect_ws(connect).await.unwrap();
    // A receiver that lags loses events within alloy, session or not.
    let mut heads = provider.subscribe_blocks().channel_size(1 << 20).await.unwrap();
    let mut logs = provider
        .subscribe_logs(&Filter::new())
        .channel_size(1 << 20)
        .await
        .unwrap();
    let received = story.clone();
    let reading = tokio::spawn(async move {
        loop {
            let seen = tokio::select! {
                head = heads.recv() => Seen::Head(head.unwrap().hash.to_string()),
                log = logs.recv() => {
                    let log = log.unwrap();
                    let (hash, index) = (log.block_hash.unwrap().to_string(), log.log_index.unwrap());
                    if log.removed { Seen::Undo(hash, index) } else { Seen::Log(hash, index) }
                }
            };
            received.push(seen);
            if !slow.is_zero() {
                sleep(slow).await;
            }
        }
    });
    world.cut_often(&story).await;
    world.check_positions().await;
    let (events, repeated) = world.check(&story);
    println!(
        "alloy, pause {slow:?}: {} cuts, {events} events, {repeated} of them repeated",
        world.cuts
    );
    reading.abort();
    world.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alloy_sees_no_hole() {
    with_alloy(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_application_on_alloy_sees_no_hole() {
    with_alloy(Duration::from_millis(2)).await;
}

/// Process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn with_script(name: &str, command: &mut Command) {
    let mut world = World::start().await;
    let story = Story::default();
    let slow = if name.contains("slow") { "2" } else { "0" };
    command.arg(world.url()).arg(slow).stdout(Stdio::piped());
    let mut child = Running(command.spawn().unwrap());
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let received = story.clone();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, hash, index] = words[..] else {
                panic!("{line}");
            };
            let index = u64::from_str_radix(index.trim_start_matches("0x"), 16).unwrap();
            let hash = hash.to_owned();
            received.push(match what {
                "head" => Seen::Head(hash),
                "log" => Seen::Log(hash, index),
                _ => Seen::Undo(hash, index),
            });
        }
    });
    let subscribing = async {
        for kind in ["newHeads", "logs"] {
            while world
                .metric(&format!("headwater_subscriptions{{kind=\"{kind}\"}}"))
                .await
                == 0
            {
                sleep(Duration::from_millis(10)).await;
            }
        }
    };
    timeout(PATIENCE, subscribing).await.unwrap();
    world.cut_in_between(&story).await;
    world.check_positions().await;
    let (events, repeated) = world.check(&story);
    println!(
        "{name}: {} cuts, {events} events, {repeated} of them repeated",
        world.cuts
    );
    drop(child);
    world.stop.cancel();
}

async fn with_viem(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    if !folder.join("node_modules/viem").exists() {
        println!("skipped: no viem, see tests/interop/README.md");
        return;
    }
    with_script(
        name,
        Command::new("node").arg(folder.join("libraries/session-viem.mjs")),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viem_sees_no_hole() {
    with_viem("viem").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_application_on_viem_sees_no_hole() {
    with_viem("viem, slow").await;
}

async fn with_web3(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    let python = folder.join(".venv/bin/python");
    if !python.exists() {
        println!("skipped: no web3.py, see tests/interop/README.md");
        return;
    }
    with_script(name, Command::new(python).arg(folder.join("libraries/session_web3.py"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web3_py_sees_no_hole() {
    with_web3("web3.py").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_application_on_web3_py_sees_no_hole() {
    with_web3("web3.py, slow").await;
}

async fn with_go_ethereum(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/go");
    let built = tempfile::tempdir().unwrap();
    let binary = built.path().join("interop");
    let mut build = Command::new("go");
    let build = build.current_dir(folder).args(["build", "-o"]).arg(&binary).arg(".");
    match build.status() {
        Ok(status) => assert!(status.success()),
        Err(_) => return println!("skipped: no Go"),
    }
    with_script(name, Command::new(binary).arg("session")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_ethereum_sees_no_hole() {
    with_go_ethereum("go-ethereum").await;
}

/// Returns the part of a source between the page's name and the end.
fn shown(source: &str) -> &str {
    let (_, after) = source.split_once("docs/sessions.md\n").unwrap();
    let (shown, _) = after.split_once("end\n").unwrap();
    shown.trim_end_matches(['#', '/', ' ', '\n'])
}

#[test]
fn the_page_shows_the_programs() {
    let page = include_str!("../../docs/sessions.md");
    for source in [
        include_str!("../interop/libraries/session_web3.py"),
        include_str!("../interop/go/session.go"),
    ] {
        assert!(page.contains(shown(source)), "{}", shown(source));
    }
}
