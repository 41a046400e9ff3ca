//! Checks a client's events against the chain itself, and counts lost, duplicated and misordered ones.
//!
//! Pure: no I/O, no clock, no knowledge of the sources of either side. The checker verifies the event contract: heads
//! are a path through the block tree (E1); logs are the chain's, in order, and removed oldest first when their blocks
//! are dropped (E2); with both kinds on one connection, head N, then the logs of N, then head N+1 (E3); and at the
//! end nothing is missing (E4), even across a lost connection (E9).
//!
//! ```text
//! Record, event by event > Checker (mod.rs: relations between heads and logs)
//!                            > Walk (heads.rs), Ledger (logs.rs) > Verdict
//! ```
//!
//! A fault is counted once, and the checker continues as if the event had been right, so that one fault does not look
//! like many. A missing event is only *presumed* lost: if it is delivered later, it was misordered.

// Shared by several test binaries; each uses only a part.
#![allow(dead_code, unreachable_pub)]

use std::collections::{HashMap, HashSet};
use std::fmt;

use alloy_primitives::{Address, B256};

use heads::{Moved, Walk};
use logs::Ledger;

mod heads;
mod logs;

/// The events delivered to one client during one logical subscription, over all its connections.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Name of the client, for the examples.
    pub name: String,
    /// Events in the order of arrival.
    pub delivered: Vec<Delivered>,
}

/// One event delivered to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// A `newHeads` notification.
    Head {
        /// The block's number.
        number: u64,
        /// The block's hash.
        hash: B256,
        /// The parent block's hash.
        parent: B256,
    },
    /// A `logs` notification.
    Log {
        /// Number and hash of the log's block.
        block: (u64, B256),
        /// Content of the log, and its index in the block.
        log: Log,
        /// `true` if the event removes an earlier log.
        removed: bool,
    },
    /// The answer to a subscription, on the first connection or on a later one. If one answer includes both kinds
    /// (one batch), the checker also verifies the order of heads relative to logs.
    Subscribed {
        /// `true` if the client subscribes to `newHeads`.
        heads: bool,
        /// `true` if the client subscribes to `logs`.
        logs: bool,
        /// The requested start.
        from: Start,
    },
}

/// The requested start of a subscription. A later connection of the same record continues it, so only the start of
/// the first matters; the range to be covered is an argument of [`check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The next event.
    Live,
    /// The event after this block, or after the log with this index in the block.
    After(B256, Option<u64>),
    /// The block of this number.
    FromBlock(u64),
}

/// A log: its index in the block, and the fields that must be equal on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `logIndex`.
    pub index: u64,
    /// Address of the emitting contract.
    pub address: Address,
    /// Topics of the log.
    pub topics: Vec<B256>,
    /// Hash of the data.
    pub data: B256,
}

/// A block of the node's chain.
#[derive(Clone, Debug)]
pub struct CanonBlock {
    /// Number of the block.
    pub number: u64,
    /// Hash of the block.
    pub hash: B256,
    /// Hash of the parent block.
    pub parent: B256,
    /// All logs of the block, in order.
    pub logs: Vec<Log>,
}

/// The final history of the chain.
#[derive(Clone, Debug, Default)]
pub struct Canonical {
    /// Blocks oldest first, each the parent of the next.
    pub blocks: Vec<CanonBlock>,
    /// Blocks that were canonical for a while, in any order, as far as known. With them, events of dropped branches
    /// are checked as strictly as the rest; without them, two consecutive reorgs, of which a client of logs receives
    /// only the removals, may look like one in the wrong order.
    pub orphans: Vec<CanonBlock>,
    /// Blocks that the chain left and may have returned to without any event in between: the chain rewound past them,
    /// or switched to another branch and back before it was announced. These may be announced again without another
    /// head in between.
    pub rewound: HashSet<B256>,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Events never delivered: heads, logs, and removals of logs.
    pub lost: u64,
    /// Events delivered again without a reorg as a reason.
    pub duplicated: u64,
    /// Events delivered out of order.
    pub misordered: u64,
    /// Impossible events: the removal of a log that was never delivered, or a log that its block does not have.
    pub contradictory: u64,
    /// Descriptions of the first few faults.
    pub examples: Vec<String>,
}

/// Number of examples kept in a verdict: the first fault matters, the others often follow from it.
const EXAMPLES: usize = 8;

impl Verdict {
    /// Returns `true` if no fault was found.
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.misordered + self.contradictory == 0
    }

    /// Adds the counts and examples of another verdict.
    pub fn merge(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.misordered += other.misordered;
        self.contradictory += other.contradictory;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
    }

    fn example(&mut self, words: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(words());
        }
    }

    fn lost(&mut self, words: impl FnOnce() -> String) {
        self.lost += 1;
        self.example(|| format!("lost: {}", words()));
    }

    fn duplicated(&mut self, words: impl FnOnce() -> String) {
        self.duplicated += 1;
        self.example(|| format!("duplicated: {}", words()));
    }

    fn misordered(&mut self, words: impl FnOnce() -> String) {
        self.misordered += 1;
        self.example(|| format!("misordered: {}", words()));
    }

    fn contradictory(&mut self, words: impl FnOnce() -> String) {
        self.contradictory += 1;
        self.example(|| format!("contradictory: {}", words()));
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            lost,
            duplicated,
            misordered,
            contradictory,
            examples,
        } = self;
        write!(f, "{lost} lost, {duplicated} duplicated, {misordered} misordered")?;
        if *contradictory > 0 {
            write!(f, ", {contradictory} contradictory")?;
        }
        examples.iter().try_for_each(|example| write!(f, "\n  {example}"))
    }
}

/// Checks a complete record: it must cover every block of the chain from number `from` on, up to the newest. `filter`
/// is the client's log filter.
pub fn check(record: &Record, canonical: &Canonical, filter: impl Fn(&Log) -> bool, from: u64) -> Verdict {
    let mut checker = Checker::new(canonical, filter, from);
    checker.read(&record.delivered);
    checker.arrive();
    checker.verdict(&record.name)
}

/// Checks a record that may end anywhere, because the client left or was closed: the events must have no gap, but
/// need not reach the newest block.
pub fn check_cut(record: &Record, canonical: &Canonical, filter: impl Fn(&Log) -> bool, from: u64) -> Verdict {
    let mut checker = Checker::new(canonical, filter, from);
    checker.read(&record.delivered);
    checker.verdict(&record.name)
}

/// Number and hash of a block.
type At = (u64, B256);

fn name((number, hash): At) -> String {
    format!("{number} {}", &hash.to_string()[..10])
}

/// All known blocks, with the logs that match the client's filter.
struct Tree {
    blocks: HashMap<B256, Node>,
    rewound: HashSet<B256>,
    /// Number of known children by block hash.
    children: HashMap<B256, usize>,
    newest: Option<At>,
}

struct Node {
    number: u64,
    parent: B256,
    /// Logs that match the filter; `None` if only the header is known.
    logs: Option<Vec<Log>>,
}

impl Tree {
    fn new(canonical: &Canonical, filter: impl Fn(&Log) -> bool) -> Self {
        let mut tree = Self {
            blocks: HashMap::new(),
            rewound: canonical.rewound.clone(),
            children: HashMap::new(),
            newest: canonical.blocks.last().map(|block| (block.number, block.hash)),
        };
        for block in canonical.orphans.iter().chain(&canonical.blocks) {
            let logs = block.logs.iter().filter(|log| filter(log)).cloned().collect();
            tree.add(
                block.hash,
                Node {
                    number: block.number,
                    parent: block.parent,
                    logs: Some(logs),
                },
            );
        }
        tree
    }

    fn add(&mut self, hash: B256, node: Node) {
        if !self.blocks.contains_key(&hash) {
            *self.children.entry(node.parent).or_default() += 1;
            self.blocks.insert(hash, node);
        }
    }

    fn parent(&self, hash: B256) -> Option<B256> {
        Some(self.blocks.get(&hash)?.parent)
    }

    /// Returns the logs to be delivered for this block; `None` if unknown.
    fn logs(&self, hash: B256) -> Option<&[Log]> {
        self.blocks.get(&hash)?.logs.as_deref()
    }

    /// Returns a block's parent with its number. Numbers may have holes, so one less is only the fallback for an
    /// unknown parent.
    fn below(&self, block: At) -> Option<At> {
        let parent = self.parent(block.1)?;
        let known = self.blocks.get(&parent).map(|node| node.number);
        Some((known.unwrap_or(block.0.saturating_sub(1)), parent))
    }

    /// Checks if `old` is this block or one of its ancestors; `None` if a block in between is unknown.
    fn descends(&self, hash: B256, number: u64, old: At) -> Option<bool> {
        let mut at = (number, hash);
        while at.0 > old.0 {
            at = self.below(at)?;
        }
        // No ancestor further down can be `old`: on this branch, its number belongs to another block or to none.
        Some(at == old)
    }

    fn is_canonical(&self, block: At) -> bool {
        self.newest
            .is_some_and(|newest| self.descends(newest.1, newest.0, block) == Some(true))
    }

    /// Checks if the chain could drop `upper` and keep its ancestor `lower`: another branch starts in between, or the
    /// chain rewound that far.
    fn parts_between(&self, lower: At, upper: At) -> bool {
        let mut hash = upper.1;
        loop {
            if self.rewound.contains(&hash) {
                return true;
            }
            match self.parent(hash) {
                Some(parent) if self.children.get(&parent).is_some_and(|count| *count > 1) => return true,
                Some(parent) if parent != lower.1 => hash = parent,
                _ => return false,
            }
        }
    }
}

struct Checker {
    tree: Tree,
    walk: Walk,
    ledger: Ledger,
    heads: bool,
    logs: bool,
    from: u64,
    resumed: bool,
    verdict: Verdict,
}

impl Checker {
    fn new(canonical: &Canonical, filter: impl Fn(&Log) -> bool, from: u64) -> Self {
        Self {
            tree: Tree::new(canonical, filter),
            walk: Walk::new(from),
            ledger: Ledger::new(from),
            heads: false,
            logs: false,
            from,
            resumed: false,
            verdict: Verdict::default(),
        }
    }

    fn read(&mut self, delivered: &[Delivered]) {
        for at in 0..delivered.len() {
            self.apply(delivered, at);
        }
    }

    fn apply(&mut self, delivered: &[Delivered], at: usize) {
        match &delivered[at] {
            Delivered::Subscribed { heads, logs, from } => {
                self.heads |= *heads;
                self.logs |= *logs;
                if matches!(from, Start::After(..)) {
                    self.resumed = true;
                    self.ledger.resumed();
                }
            }
            Delivered::Head { number, hash, parent } => {
                self.tree.add(
                    *hash,
                    Node {
                        number: *number,
                        parent: *parent,
                        logs: None,
                    },
                );
                let next = delivered[at + 1..].iter().find_map(|delivered| match delivered {
                    Delivered::Head { hash, parent, .. } => Some((*hash, *parent)),
                    _ => None,
                });
                self.head((*number, *hash), *parent, next);
            }
            Delivered::Log {
                block,
                log,
                removed: true,
            } => self.ledger.removed(&self.tree, *block, log, &mut self.verdict),
            Delivered::Log {
                block,
                log,
                removed: false,
            } => self.added(*block, log, &delivered[at + 1..]),
        }
    }

    fn head(&mut self, block: At, parent: B256, next: Option<(B256, B256)>) {
        let before = self.walk.top();
        let moved = self.walk.head(&self.tree, block, parent, next, &mut self.verdict);
        if !self.logs {
            return;
        }
        // E3: the block before must be complete by now, or its events must have been removed.
        match moved {
            Moved::Stray => {}
            Moved::Extended if self.ledger.undoes(&self.tree, block) => {
                self.verdict
                    .misordered(|| format!("head {} amid the removal of its branch", name(block)));
            }
            Moved::Extended => {
                self.ledger.end_removals();
                if let Some(before) = before {
                    self.ledger.complete(&self.tree, before);
                }
            }
            Moved::Switched(ancestor) => {
                self.ledger.end_removals();
                self.ledger.drop_above(ancestor);
            }
        }
    }

    fn added(&mut self, block: At, log: &Log, rest: &[Delivered]) {
        // The head of a block below `from` may have been announced before the subscription began.
        let announced = !self.heads || self.walk.contains(block.1) || (self.walk.is_empty() && block.0 < self.from);
        // A connection may end between the removals and the heads of the new branch. If the chain has returned to the
        // old branch before the client reconnects, the client already has the heads.
        let again = self.ledger.was_undone(block, log);
        let on_top = self.walk.top().is_none_or(|top| top == block);
        let fresh = self
            .ledger
            .added(&self.tree, block, log, rest, !announced, &mut self.verdict);
        if fresh && !announced {
            self.walk.presume(&self.tree, block, &mut self.verdict);
        } else if fresh && !(self.resumed && again) && self.heads && !on_top && block.0 >= self.from {
            self.verdict
                .misordered(|| format!("log {} of block {} after the next head", log.index, name(block)));
        }
    }

    /// Checks, after the last event, that the client has the same heads and logs as the chain.
    fn arrive(&mut self) {
        let Some(newest) = self.tree.newest else { return };
        if self.heads {
            self.walk.arrive(&self.tree, newest, &mut self.verdict);
        }
        if self.logs {
            self.ledger.arrive(&self.tree, newest);
        }
    }

    fn verdict(mut self, name: &str) -> Verdict {
        self.walk.close(&self.tree, &mut self.verdict);
        self.ledger.close(&self.tree, &mut self.verdict);
        for example in &mut self.verdict.examples {
            *example = format!("{name}: {example}");
        }
        self.verdict
    }
}
