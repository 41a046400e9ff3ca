//! A proxy that is killed at random moments, with reorgs, and a receiver and a node that fail and are lost: what the receiver
//! has is the chain.

use std::collections::HashMap;
use std::process::{Child, Stdio};
use std::time::Duration;

use headwater::devnet::Control;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use super::receiver::{Receiver, Reply};
use super::{Files, file};
use crate::cli;
use crate::harness::{eventually, node, take_away};

/// Kills of the proxy.
const KILLS: usize = 12;

struct Killed(Child);

impl Killed {
    fn start(config: &str, upstream: &str) -> Self {
        let mut command = cli::headwater(
            &[
                "--config",
                config,
                "--upstream",
                upstream,
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
            ],
            &[
                ("HEADWATER_LOG_FILTER", "error"),
                ("HEADWATER_NODE_RECONNECT_MAX", "100ms"),
            ],
        );
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

/// `kill -9`.
impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Logs that a receiver has, in their order, as it keeps them.
#[derive(Default)]
struct Kept(Vec<(u64, u64, String)>);

impl Kept {
    /// Takes one event; panics if it does not follow from those before.
    fn take(&mut self, log: &Value) {
        let number = |name: &str| {
            let text = log[name].as_str().unwrap().trim_start_matches("0x");
            u64::from_str_radix(text, 16).unwrap()
        };
        let own = (
            number("blockNumber"),
            number("logIndex"),
            log["blockHash"].as_str().unwrap().to_owned(),
        );
        if log["removed"] == true {
            let at = self.0.iter().position(|kept| *kept == own);
            self.0
                .remove(at.unwrap_or_else(|| panic!("{own:?} is taken back, and was not there")));
            return;
        }
        if let Some(last) = self.0.last() {
            assert!((last.0, last.1) < (own.0, own.1), "{own:?} comes after {last:?}");
        }
        self.0.push(own);
    }
}

/// Returns the logs of the canonical chain from this block on.
fn canonical(control: &Control, first: u64) -> Vec<(u64, u64, String)> {
    let head = control.head().number();
    control.with_chain(|chain| {
        let blocks = (first..=head).map(|number| chain.block_at(number).unwrap());
        let logs = blocks.flat_map(|block| {
            let (number, hash) = (block.number(), block.hash().to_string());
            (0..block.logs().count() as u64).map(move |index| (number, index, hash.clone()))
        });
        logs.collect()
    })
}

/// Folds what was accepted; checks that what came more than once is the same, and nothing but a batch that came before.
fn kept(receiver: &Receiver) -> Vec<(u64, u64, String)> {
    let (mut kept, mut seen, mut last) = (Kept::default(), HashMap::new(), String::new());
    for own in receiver.requests().into_iter().filter(|own| own.is_accepted) {
        if let Some(body) = seen.insert(own.id.clone(), own.body.clone()) {
            assert_eq!((&body, &last), (&own.body, &own.id), "only the last batch comes again");
            continue;
        }
        last.clone_from(&own.id);
        let body = own.json();
        assert_eq!(body["type"], "logs", "{body}");
        body["data"].as_array().unwrap().iter().for_each(|log| kept.take(log));
    }
    kept.0
}

#[tokio::test]
async fn kills_at_random_moments_lose_nothing() {
    let seed: u64 = std::env::var("WEBHOOK_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(7);
    let kills: usize = std::env::var("WEBHOOK_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(KILLS);
    let mut random = StdRng::seed_from_u64(seed);
    let (files, mut receiver, node) = (Files::new(), Receiver::start().await, node().await);
    let control = node.handle();
    let config = file(
        &files,
        &receiver.url(),
        "allow_private = true\nbatch = 4\nretry_max = \"20ms\"\ntimeout = \"200ms\"\n",
    );
    let mut proxy = Killed::start(&config, &node.ws_url());
    eventually("it has a position", async || {
        std::path::Path::new(&files.path("state")).exists()
    })
    .await;
    let first = control.head().number() + 1;
    for _ in 0..kills {
        for _ in 0..random.random_range(1..6) {
            match random.random_range(0..13) {
                0..5 => drop(control.mine_many(random.random_range(1..3))),
                5..8 => {
                    let depth = random.random_range(1..4).min(control.head().number() - first + 1);
                    if depth > 0 {
                        control.reorg(depth, depth + random.random_range(0..2)).unwrap();
                    }
                }
                8 => receiver.next([Reply::Hang, Reply::Status(500, ""), Reply::Half]),
                9 => receiver.next([Reply::Close, Reply::HalfHead]),
                10 => {
                    receiver.kill().await;
                    control.mine();
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
                    receiver.start_again().await;
                }
                11 => {
                    take_away(&control);
                    control.mine();
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
                    control.set_faults(|faults| faults.refuse_connections = false);
                }
                _ => control.disconnect(),
            }
            // A random moment; nothing is expected within it.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        }
        drop(proxy);
        if random.random() {
            control.mine();
        }
        proxy = Killed::start(&config, &node.ws_url());
        if random.random() {
            let count = receiver.requests().len();
            control.mine();
            eventually("it goes on", async || receiver.requests().len() > count).await;
        }
    }
    control.mine();
    eventually("the receiver has the chain", async || {
        kept(&receiver) == canonical(&control, first)
    })
    .await;
    let requests = receiver.requests();
    let repeated = requests.iter().filter(|own| own.is_accepted).count() - receiver.accepted().len();
    eprintln!(
        "seed {seed}: {kills} kills, {} requests, {repeated} came again",
        requests.len()
    );
}
