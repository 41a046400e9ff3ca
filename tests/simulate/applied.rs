//! State that a client with a session has applied, and its differences from the chain.

use std::collections::HashMap;

use alloy_primitives::{Address, B256};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::blocks::Received;
use crate::client;
use crate::history::{CanonBlock, Canonical, Log};
use crate::plan::{Kind, Selection};
use crate::trailing::Level;

/// Subscriptions of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Heads and logs, at the head or at a level of finality.
    HeadsAndLogs(Level, Kind),
    /// `blockLogs` of all logs.
    BlockLogs,
}

/// Kind of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Heads,
    Logs,
    Blocks,
}

impl Wants {
    pub fn draw(at: u64, blocks_in_memory: u64, rng: &mut StdRng) -> Self {
        let kind = if rng.random_ratio(1, 3) {
            Kind::Heads
        } else {
            Kind::Both(Selection::draw(rng))
        };
        match at {
            0 => Self::HeadsAndLogs(Level::Head, kind),
            1 => Self::BlockLogs,
            _ => {
                let depth = rng.random_range(1..=blocks_in_memory.min(24));
                let level = [Level::Safe, Level::Confirmations(depth), Level::Confirmations(depth)];
                Self::HeadsAndLogs(level[rng.random_range(0..3)], kind)
            }
        }
    }

    pub fn level(self) -> Level {
        match self {
            Self::HeadsAndLogs(level, _) => level,
            Self::BlockLogs => Level::Head,
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            Self::HeadsAndLogs(_, kind) => kind,
            Self::BlockLogs => Kind::Logs(Selection::All),
        }
    }

    /// Returns the subscriptions with their parameters.
    pub fn subscriptions(self, contracts: &[Address]) -> Vec<(Of, Value)> {
        let Self::HeadsAndLogs(level, kind) = self else {
            return vec![(Of::Blocks, json!(["blockLogs", {}]))];
        };
        let mut all = vec![(Of::Heads, json!(["newHeads"]))];
        all.extend(client::filter(kind, contracts).map(|filter| (Of::Logs, json!(["logs", filter]))));
        if level != Level::Head {
            for (_, params) in &mut all {
                params.as_array_mut().unwrap().push(level.options());
            }
        }
        all
    }
}

/// State that the client has applied, over all connections since its position was lost last.
#[derive(Debug, Default)]
pub struct State {
    pub heads: HashMap<B256, u64>,
    /// Each log with the number of its block, and whether it is applied or was taken back.
    pub logs: HashMap<(B256, u64), (u64, Log, bool)>,
    pub blocks: HashMap<B256, (Received, bool)>,
    /// Number of the first block that each subscription must cover; `None` until it was answered once.
    pub from: Vec<Option<u64>>,
}

impl State {
    /// Returns everything in which this differs from the chain.
    pub fn differences(&self, wants: Wants, contracts: &[Address], canonical: &Canonical) -> Vec<String> {
        let top = canonical.blocks.last().map_or(0, |block| block.number);
        let top = top.saturating_sub(wants.level().depth());
        let mut faults = Vec::new();
        let subscriptions = wants.subscriptions(contracts);
        for (at, (of, _)) in subscriptions.iter().enumerate() {
            let Some(from) = self.from.get(at).copied().flatten() else {
                continue;
            };
            // Nor has anything behind the first block a hole. Blocks below the start come if a reorg reaches there, in order up to
            // the start; but one may come alone: while the chain is on its way back to the branch on which the client is,
            // its head is sent, and if the client is cut before it confirms that, the stream goes on where it was.
            let has_come = |block: &&CanonBlock| match of {
                Of::Heads => self.heads.contains_key(&block.hash),
                Of::Blocks => self.blocks.contains_key(&block.hash),
                Of::Logs => false,
            };
            let below = canonical.blocks.iter().rev().filter(|block| block.number < from);
            let from = below.take_while(has_come).last().map_or(from, |first| first.number);
            for block in &canonical.blocks {
                let due = (from..=top).contains(&block.number);
                match of {
                    Of::Heads => {
                        if due && !self.heads.contains_key(&block.hash) {
                            faults.push(format!("head {} is missing", block.number));
                        }
                    }
                    Of::Logs => {
                        let own = block.logs.iter();
                        for log in own.filter(|log| client::selects(wants.kind(), contracts, log)) {
                            match self.logs.get(&(block.hash, log.index)) {
                                Some((_, same, true)) if same == log => {}
                                Some((_, other, true)) => faults.push(format!("{other:?} is not {log:?}")),
                                _ if !due => {}
                                other => faults.push(format!(
                                    "log {} of block {} is missing: {}",
                                    log.index,
                                    block.number,
                                    if other.is_some() { "taken back" } else { "never sent" }
                                )),
                            }
                        }
                    }
                    Of::Blocks => match self.blocks.get(&block.hash) {
                        Some((own, true)) => {
                            let logs: Vec<u64> = block.logs.iter().map(|log| log.index).collect();
                            if own.logs != logs || own.parent != block.parent {
                                faults.push(format!("block {}: {own:?}", block.number));
                            }
                        }
                        _ if due => faults.push(format!("block {} is missing", block.number)),
                        _ => {}
                    },
                }
            }
        }
        let is_canonical = |hash: &B256| canonical.blocks.iter().any(|block| block.hash == *hash);
        for ((hash, index), (number, _, applied)) in &self.logs {
            if *applied && !is_canonical(hash) {
                faults.push(format!("log {index} of block {number} was not taken back"));
            }
        }
        for (hash, (block, applied)) in &self.blocks {
            if *applied && !is_canonical(hash) {
                faults.push(format!("block {} was not taken back", block.number));
            }
        }
        if wants.level() != Level::Head {
            let dropped = self.heads.iter().filter(|(hash, _)| !is_canonical(hash));
            faults.extend(dropped.map(|(_, number)| format!("block {number} was final, and dropped")));
        }
        faults
    }
}
