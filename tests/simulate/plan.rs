//! The plan of one simulation, drawn from a seed before anything starts.

use std::fmt;
use std::time::Duration;

use headwater::devnet::Faults;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt, SeedableRng};

use crate::features::Features;

/// Number of blocks at the start: more than the deepest reorg drops.
pub const INITIAL_BLOCKS: u64 = 80;

/// Depth of the deepest reorg, in blocks.
const MAX_DEPTH: u64 = 64;

/// Length of the planned acts, in milliseconds.
const LENGTH: u64 = 30_000;

/// The plan of a simulation.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub features: Features,
    /// Number of nodes. Node 0 leads; its chain is the expected one at the end.
    pub nodes: usize,
    /// Nodes in the order of their priority in the app's configuration.
    pub order: Vec<usize>,
    /// Node that is polled over HTTP instead of being subscribed to.
    pub polled: Option<usize>,
    /// Value of `history.blocks`.
    pub history: usize,
    /// Size in bytes of a log's data.
    pub log_bytes: usize,
    pub transactions: usize,
    pub clients: Vec<Kind>,
    /// Number of blocks before the newest at which each client starts; `None` starts live.
    pub behind: Vec<Option<u64>>,
    /// `true` if clients resume after a lost connection.
    pub resumes: bool,
    /// `true` if the app keeps the positions of sessions in a file over a restart.
    pub keeps_positions: bool,
    /// Acts with their times in milliseconds, in order.
    pub acts: Vec<(u64, Act)>,
}

/// The subscriptions of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Heads,
    Logs(Selection),
    /// Heads and logs, subscribed to in one batch.
    Both(Selection),
}

/// The logs that a client subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    All,
    /// Logs of this many of the busiest contracts.
    Contracts(usize),
    Transfers,
}

#[derive(Clone, Debug)]
#[allow(
    dead_code,
    reason = "how long it lasts is in the report; its end is an act of its own"
)]
pub enum Act {
    Mine(u64),
    Reorg {
        depth: u64,
        len: u64,
    },
    Rewind(u64),
    /// Returns to the branch dropped last.
    Return,
    /// Cuts the node's connections.
    Disconnect(usize),
    /// Makes the node silent for this many milliseconds.
    Stall(usize, u64),
    /// Cuts the node's connections and refuses new ones for this many milliseconds.
    Restart(usize, u64),
    /// Causes a fault for this many milliseconds.
    Fault(usize, Fault, u64),
    /// Ends the fault.
    Repair(usize, Fault),
    /// Lets the node accept connections again.
    Accept(usize),
    /// Keeps a follower this many blocks behind from now on.
    Lag(usize, u64),
    /// Stops a follower.
    Pause(usize),
    /// Stops a follower, and mines this many blocks on its own branch.
    Fork(usize, u64),
    /// Brings a follower back in sync, whatever its state.
    Heal(usize),
    /// Cordons the node for this many milliseconds, as its operator.
    Cordon(usize, u64),
    /// Ends the cordon.
    Uncordon(usize),
    /// Reloads the configuration with these nodes as upstreams, in this order.
    Reload(Vec<usize>),
    /// Starts a client.
    Join(usize),
    /// Stops the app as for a new version, and starts it again.
    Upgrade,
    /// Cuts a client's connection; the client reconnects.
    Break(usize),
    /// Makes a client stop reading for this many milliseconds.
    Hang(usize, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    HeadsTwice,
    HeadsSkipped(u32),
    HeadsLate(u32),
    EmptyLogs(u32),
    NoRemovedLogs,
    TipOnly,
    Failing(&'static str),
    FailingCalls(u32),
    Slow(u64),
}

impl Fault {
    pub fn begin(self, faults: &mut Faults) {
        match self {
            Self::HeadsTwice => faults.duplicate_heads = true,
            Self::HeadsSkipped(count) => faults.skip_heads = count,
            Self::HeadsLate(count) => faults.late_heads = count,
            Self::EmptyLogs(count) => faults.empty_log_answers = count,
            Self::NoRemovedLogs => faults.send_removed_logs = false,
            Self::TipOnly => faults.announce_tip_only_after_reorg = true,
            Self::Failing(method) => faults.failing_methods.push(method.into()),
            Self::FailingCalls(count) => faults.failing_calls = count,
            Self::Slow(delay) => faults.delay = Some(Duration::from_millis(delay)),
        }
    }

    pub fn end(self, faults: &mut Faults) {
        match self {
            Self::HeadsTwice => faults.duplicate_heads = false,
            Self::HeadsSkipped(_) => faults.skip_heads = 0,
            Self::HeadsLate(_) => faults.late_heads = 0,
            Self::EmptyLogs(_) => faults.empty_log_answers = 0,
            Self::NoRemovedLogs => faults.send_removed_logs = true,
            Self::TipOnly => faults.announce_tip_only_after_reorg = false,
            Self::Failing(method) => faults.failing_methods.retain(|failing| failing != method),
            Self::FailingCalls(_) => faults.failing_calls = 0,
            Self::Slow(_) => faults.delay = None,
        }
    }
}

impl Plan {
    pub fn draw(seed: u64, features: Features) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = rng.random_range(1..=3);
        let mut order: Vec<usize> = (0..nodes).collect();
        order.rotate_left(rng.random_range(0..nodes));
        let bulky = rng.random_ratio(1, 4);
        let mut plan = Self {
            seed,
            features,
            nodes,
            order,
            polled: rng.random_ratio(1, 6).then(|| rng.random_range(0..nodes)),
            history: [8, 16, 64, 128, 256][rng.random_range(0..5)],
            log_bytes: if bulky { 4000 } else { 32 },
            transactions: if bulky { 1 } else { rng.random_range(1..=3) },
            clients: (0..rng.random_range(4..10)).map(|_| kind(&mut rng)).collect(),
            behind: Vec::new(),
            resumes: rng.random_ratio(3, 4),
            keeps_positions: StdRng::seed_from_u64(seed.rotate_left(12) ^ 0x5e55).random_ratio(1, 2),
            acts: Vec::new(),
        };
        plan.draw_chain(&mut rng);
        plan.draw_nodes(&mut rng);
        plan.draw_clients(&mut rng);
        plan.draw_starts();
        plan.draw_cordons();
        plan.draw_reloads();
        plan.acts.sort_by_key(|(at, _)| *at);
        if features.hides_logs() {
            // With empty blooms, an answer without logs cannot be detected.
            let lacking = |act: &Act| matches!(act, Act::Fault(_, Fault::EmptyLogs(_), _));
            plan.acts.retain(|(_, act)| !lacking(act));
        }
        plan
    }

    fn at(&mut self, at: u64, act: Act) {
        self.acts.push((at, act));
    }

    fn draw_chain(&mut self, rng: &mut StdRng) {
        let block_time = [300, 600, 1200][rng.random_range(0..3)];
        // Percentage of acts that drop or restore blocks, from a calm chain to an unstable one.
        let unrest = [0, 5, 15, 40][rng.random_range(0..4)];
        // Only in some simulations, so that reorgs deeper than the history occur, but not always.
        let deep = rng.random_ratio(1, 3);
        let mut at = 0;
        while at < LENGTH {
            at += rng.random_range(block_time / 2..block_time * 3 / 2);
            if !rng.random_ratio(unrest, 100) {
                let count = if rng.random_ratio(1, 20) {
                    rng.random_range(2..6)
                } else {
                    1
                };
                self.at(at, Act::Mine(count));
                continue;
            }
            let depth = match rng.random_range(0..10) {
                0 if deep => rng.random_range(1..=MAX_DEPTH),
                0..4 => rng.random_range(1..=7),
                _ => rng.random_range(1..=3),
            };
            let act = match rng.random_range(0..8) {
                0 => Act::Rewind(depth),
                1..3 => Act::Return,
                _ => Act::Reorg {
                    depth,
                    len: (depth + rng.random_range(0..3)).max(1),
                },
            };
            self.at(at, act);
            // Sometimes the next act follows closely.
            if rng.random_ratio(1, 3) {
                at = at.saturating_sub(block_time * 9 / 10);
            }
        }
    }

    fn draw_nodes(&mut self, rng: &mut StdRng) {
        for node in 0..self.nodes {
            for _ in 0..rng.random_range(0..10) {
                let at = rng.random_range(0..LENGTH);
                let span = if rng.random_ratio(1, 4) {
                    rng.random_range(100..15_000)
                } else {
                    rng.random_range(100..3_000)
                };
                let act = match rng.random_range(0..10) {
                    0..2 => Act::Disconnect(node),
                    2 => Act::Stall(node, span),
                    3 => {
                        self.at(at + span, Act::Accept(node));
                        Act::Restart(node, span)
                    }
                    _ => {
                        let fault = fault(rng);
                        self.at(at + span, Act::Repair(node, fault));
                        Act::Fault(node, fault, span)
                    }
                };
                self.at(at, act);
            }
            if node > 0 {
                for _ in 0..rng.random_range(0..5) {
                    let at = rng.random_range(0..LENGTH);
                    let act = match rng.random_range(0..5) {
                        0 => Act::Lag(node, rng.random_range(0..10)),
                        1 => Act::Pause(node),
                        2 => Act::Fork(node, rng.random_range(1..8)),
                        _ => Act::Heal(node),
                    };
                    self.at(at, act);
                }
            }
        }
    }

    fn draw_clients(&mut self, rng: &mut StdRng) {
        for client in 0..self.clients.len() {
            let at = if client < 3 { 0 } else { rng.random_range(0..LENGTH) };
            self.at(at, Act::Join(client));
            for _ in 0..rng.random_range(0..4) {
                let at = rng.random_range(at..LENGTH);
                let act = if rng.random_ratio(2, 3) {
                    Act::Break(client)
                } else {
                    Act::Hang(client, rng.random_range(500..20_000))
                };
                self.at(at, act);
            }
        }
    }

    /// Draws starts and restarts with a separate generator, like every later addition, so that older seeds keep their
    /// meaning.
    fn draw_starts(&mut self) {
        let mut rng = StdRng::seed_from_u64(!self.seed);
        let behind = |_| {
            let replays = self.resumes && rng.random_ratio(1, 4);
            replays.then(|| rng.random_range(0..INITIAL_BLOCKS))
        };
        self.behind = (0..self.clients.len()).map(behind).collect();
        if rng.random_ratio(1, 6) {
            let at = rng.random_range(0..LENGTH);
            self.at(at, Act::Upgrade);
        }
    }

    /// Draws cordons of single nodes, in a third of the plans with several.
    fn draw_cordons(&mut self) {
        let mut rng = StdRng::seed_from_u64(self.seed.rotate_left(20) ^ 0xc0d0);
        if self.nodes == 1 || !rng.random_ratio(1, 3) {
            return;
        }
        for _ in 0..rng.random_range(1..6) {
            let (at, span) = (rng.random_range(0..LENGTH), rng.random_range(100..6_000));
            let node = rng.random_range(0..self.nodes);
            self.at(at, Act::Cordon(node, span));
            self.at(at + span, Act::Uncordon(node));
        }
    }

    /// Draws lists of upstreams, in a third of the plans with several nodes.
    fn draw_reloads(&mut self) {
        let mut rng = StdRng::seed_from_u64(self.seed.rotate_left(40) ^ 0x4e10ad);
        if self.nodes == 1 || !rng.random_ratio(1, 3) {
            return;
        }
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..LENGTH);
            let mut list: Vec<usize> = (0..self.nodes).collect();
            list.shuffle(&mut rng);
            list.truncate(rng.random_range(1..=self.nodes));
            self.at(at, Act::Reload(list));
        }
    }

    /// Returns `true` if events are so large that a client's queue soon fills.
    pub fn is_bulky(&self) -> bool {
        self.log_bytes > 1000
    }

    /// Returns `true` if more blocks may change than `history.blocks` covers, so that clients may be closed with
    /// 1012.
    pub fn may_lose_continuity(&self) -> bool {
        let blocks: u64 = self
            .acts
            .iter()
            .map(|(_, act)| match act {
                Act::Mine(count) | Act::Fork(_, count) => *count,
                Act::Reorg { len, .. } => *len,
                _ => 0,
            })
            .sum();
        let upgraded = self.acts.iter().any(|(_, act)| matches!(act, Act::Upgrade));
        upgraded || blocks + MAX_DEPTH > self.history as u64
    }
}

impl Selection {
    pub fn draw(rng: &mut StdRng) -> Self {
        match rng.random_range(0..4) {
            0..2 => Self::All,
            2 => Self::Contracts(rng.random_range(1..4)),
            _ => Self::Transfers,
        }
    }
}

fn kind(rng: &mut StdRng) -> Kind {
    let selection = Selection::draw(rng);
    match rng.random_range(0..4) {
        0 => Kind::Heads,
        1 => Kind::Logs(selection),
        _ => Kind::Both(selection),
    }
}

fn fault(rng: &mut StdRng) -> Fault {
    match rng.random_range(0..9) {
        0 => Fault::HeadsTwice,
        1 => Fault::HeadsSkipped(rng.random_range(1..4)),
        2 => Fault::HeadsLate(rng.random_range(1..4)),
        3 => Fault::EmptyLogs(rng.random_range(1..6)),
        4 => Fault::NoRemovedLogs,
        5 => Fault::TipOnly,
        6 => Fault::Failing(
            [
                "eth_getLogs",
                "eth_getBlockByHash",
                "eth_getBlockByNumber",
                "eth_subscribe",
                "eth_chainId",
            ][rng.random_range(0..5)],
        ),
        7 => Fault::FailingCalls(rng.random_range(1..6)),
        // Below a quarter of `node.silence_timeout` (4 s in `run.rs`): a slower node that has to reconnect, which takes
        // several round trips, does not serve the logs of a block in time, and their clients are refused for a minute.
        _ => Fault::Slow(rng.random_range(20..1_000)),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            features,
            nodes,
            order,
            polled,
            history,
            log_bytes,
            transactions,
            clients,
            behind,
            resumes,
            keeps_positions,
            acts,
        } = self;
        writeln!(
            f,
            "seed {seed} with {features}: {nodes} nodes as {order:?}, polled {polled:?}, history {history}, {transactions} transactions, logs of {log_bytes} bytes"
        )?;
        writeln!(
            f,
            "  clients: {clients:?}, behind {behind:?}, resuming: {resumes}, file of positions: {keeps_positions}"
        )?;
        let mut mined = 0;
        for (at, act) in acts {
            // Consecutive blocks are summed up in one line.
            if let Act::Mine(count) = act {
                mined += count;
                continue;
            }
            if mined > 0 {
                writeln!(f, "           Mine({mined}) in all")?;
                mined = 0;
            }
            writeln!(f, "  {:7.3}  {act:?}", *at as f64 / 1000.0)?;
        }
        Ok(())
    }
}
