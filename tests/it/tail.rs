//! `headwater tail`, as a process: at a headwater, at nodes, and over connections that break.

mod endings;
mod nodes;
mod process;
mod relay;

use std::sync::Arc;
use std::time::Duration;

use headwater::devnet::{Block, Control, Reorg};

use self::process::{Tail, received};
use self::relay::Relay;
use crate::harness::{Proxy, Rig, adopted, dropped, node};

/// Kinds of endpoints. All stories are the same at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Headwater,
    /// A node that knows nothing of resuming.
    Node,
}

const BOTH: [At; 2] = [At::Headwater, At::Node];

/// A node, a headwater before it, and a relay before one of the two.
struct Stage {
    rig: Rig,
    relay: Relay,
}

impl Stage {
    async fn before(at: At) -> Self {
        let rig = Rig::start().await;
        let relay = match at {
            At::Headwater => Relay::start(rig.proxy.address).await,
            At::Node => Relay::start(rig.node.address()).await,
        };
        Self { rig, relay }
    }

    fn control(&self) -> &Control {
        &self.rig.control
    }

    /// Starts a tail of heads and logs as JSON, and waits until it follows: until a block that is mined arrives.
    async fn tail(&self) -> Tail {
        self.following().await.0
    }

    /// Starts a tail like [`Self::tail`]; also returns what it received so far.
    async fn following(&self) -> (Tail, Vec<String>) {
        let mut tail = Tail::start(&self.relay.url(), "heads logs --json");
        let mut mined = vec![self.control().mine()];
        let first = loop {
            tokio::select! {
                line = tail.json() => break received(&line),
                () = tokio::time::sleep(Duration::from_millis(200)) => mined.push(self.control().mine()),
            }
        };
        let mut story = adopted(&mined);
        let at = story.iter().position(|line| *line == first);
        let story = story.split_off(at.expect("the first line is of a mined block"));
        tail.expect(&story[1..]).await;
        (tail, story)
    }
}

/// Returns what it prints of a reorg: logs and heads that are gone, then the new branch. headwater takes back all logs
/// before a tail takes back the heads.
fn reorged(at: At, reorg: &Reorg) -> Vec<String> {
    let oldest_first = reorg.dropped.iter().rev();
    let gone = |block: &Arc<Block>| format!("gone {:#x} {}", block.number(), &block.hash().to_string()[..10]);
    let dropped = match at {
        At::Headwater => [dropped(&reorg.dropped), oldest_first.map(gone).collect()].concat(),
        At::Node => oldest_first
            .flat_map(|block| [vec![gone(block)], dropped(std::slice::from_ref(block))].concat())
            .collect(),
    };
    [dropped, adopted(&reorg.adopted)].concat()
}

#[tokio::test]
async fn heads_and_logs_are_told_in_order_with_reorgs() {
    for at in BOTH {
        let stage = Stage::before(at).await;
        let mut tail = stage.tail().await;
        tail.expect(&adopted(&stage.control().mine_many(3))).await;
        let reorg = stage.control().reorg(2, 3).unwrap();
        tail.expect(&reorged(at, &reorg)).await;
        tail.expect(&adopted(&[stage.control().mine()])).await;
    }
}

#[tokio::test]
async fn what_happened_during_a_disconnect_is_told_once() {
    for at in BOTH {
        let stage = Stage::before(at).await;
        let mut tail = stage.tail().await;
        let received = stage.control().mine_many(3);
        tail.expect(&adopted(&received)).await;
        stage.relay.close();
        let missed = stage.control().mine_many(40);
        stage.rig.settled(stage.control()).await;
        stage.relay.open();
        tail.expect(&adopted(&missed)).await;
        tail.notices("connecting again").await;
        tail.notices("continuing after block").await;
        tail.expect(&adopted(&[stage.control().mine()])).await;
    }
}

#[tokio::test]
async fn blocks_that_were_dropped_during_a_disconnect_are_told_as_removed() {
    for at in BOTH {
        let stage = Stage::before(at).await;
        let mut tail = stage.tail().await;
        tail.expect(&adopted(&stage.control().mine_many(4))).await;
        stage.relay.close();
        let reorg = stage.control().reorg(3, 5).unwrap();
        stage.rig.settled(stage.control()).await;
        stage.relay.open();
        tail.expect(&reorged(at, &reorg)).await;
        // And one to a shorter branch, of which the missing heights come later.
        stage.relay.close();
        let reorg = stage.control().reorg(3, 2).unwrap();
        let later = stage.control().mine_many(2);
        stage.rig.settled(stage.control()).await;
        stage.relay.open();
        tail.expect(&reorged(at, &reorg)).await;
        tail.expect(&adopted(&later)).await;
    }
}

/// A headwater that was restarted has forgotten the dropped branch, and its history is short: what cannot be resumed is
/// read by calls.
#[tokio::test]
async fn a_headwater_that_starts_again_on_its_port_is_continued_at() {
    let node = node().await;
    let control = node.handle();
    let start = async |listen: String| {
        Proxy::start(&[node.ws_url()], |config| {
            config.listen = listen;
            config.history.blocks = 4;
            config.history.max_replay = 6;
        })
        .await
    };
    let first = start("127.0.0.1:0".to_owned()).await;
    first.settled(&control).await;
    let address = first.address;
    let mut tail = Tail::start(&format!("ws://{address}"), "heads logs --json --from 1");
    let before: Vec<_> = control.with_chain(|chain| {
        (1..=chain.head().number())
            .filter_map(|number| chain.block_at(number).cloned())
            .collect()
    });
    tail.expect(&adopted(&before)).await;
    tail.expect(&adopted(&control.mine_many(2))).await;
    first.stop();
    first.ended().await.unwrap();
    tail.notices("connecting again").await;
    let reorg = control.reorg(2, 30).unwrap();
    let second = start(address.to_string()).await;
    second.settled(&control).await;
    tail.expect(&reorged(At::Node, &reorg)).await;
    tail.expect(&adopted(&[control.mine()])).await;
}

/// Cuts every connection after some bytes, in the middle of a block or a message, while the chain grows and reorganises.
#[tokio::test]
async fn whatever_breaks_each_event_is_told_once_and_the_end_is_the_nodes_chain() {
    for at in BOTH {
        let stage = Stage::before(at).await;
        let (mut tail, mut told_so_far) = stage.following().await;
        let mut random = fastrand::Rng::with_seed(15);
        for _ in 0..30 {
            stage.relay.cut_after(random.u64(2_000..60_000));
            stage.relay.cut();
            for _ in 0..random.usize(1..5) {
                match random.u8(0..3) {
                    0 => drop(stage.control().reorg(random.u64(1..4), random.u64(1..6)).unwrap()),
                    _ => drop(stage.control().mine_many(random.u64(1..4))),
                }
                // Some of it while the tail follows, the rest while it is away.
                let until = tokio::time::Instant::now() + Duration::from_millis(random.u64(0..100));
                while let Ok(line) = tokio::time::timeout_at(until, tail.json()).await {
                    apply(&mut told_so_far, received(&line));
                }
            }
        }
        stage.relay.cut_after(u64::MAX);
        stage.relay.cut();
        let last = stage.control().mine();
        let end = adopted(&[last]).pop().unwrap();
        while told_so_far.last() != Some(&end) {
            let line = received(&tail.json().await);
            apply(&mut told_so_far, line);
        }
        let first = told_so_far[0].clone();
        let blocks: Vec<_> = stage.control().with_chain(|chain| {
            (0..=chain.head().number())
                .filter_map(|number| chain.block_at(number).cloned())
                .collect()
        });
        let chain = adopted(&blocks);
        let start = chain
            .iter()
            .position(|line| *line == first)
            .expect("the first block is on the chain");
        assert_eq!(told_so_far, chain[start..]);
    }
}

/// Takes a line into account: what is removed must be there, and what is printed must be new.
#[track_caller]
fn apply(lines: &mut Vec<String>, line: String) {
    let earlier = match line.split_once(' ') {
        Some(("gone", rest)) => Some(format!("head {rest}")),
        Some(("undo", rest)) => Some(format!("log {rest}")),
        _ => None,
    };
    match earlier {
        Some(earlier) => {
            let at = lines.iter().position(|line| *line == earlier);
            lines.remove(at.unwrap_or_else(|| panic!("{line:?} was not there: {lines:#?}")));
        }
        None => {
            assert!(!lines.contains(&line), "{line:?} is received twice");
            lines.push(line);
        }
    }
}
