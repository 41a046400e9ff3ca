//! Holds what a client was told against the chain itself, and counts what was lost, doubled or out of order.
//!
//! Pure: no I/O, no clock, no knowledge of who produced either side. What is checked is the event contract: heads are a
//! walk on the block tree (E1); logs are those of the chain, ordered, and undone oldest first when their blocks are
//! dropped (E2); with both kinds on one connection, head N, then the logs of N, then head N+1 (E3); and at the end
//! nothing is missing (E4), also across a lost connection (E9).
//!
//! ```text
//! Record, event by event > Checker (mod.rs: what heads and logs mean for each other)
//!                            > Walk (heads.rs), Ledger (logs.rs) > Verdict
//! ```
//!
//! A fault is counted once and the checker goes on as if it had been right, so that one fault does not look like many.
//! What is missing is only *presumed* lost: when it comes later it was out of order.

// Shared by several test binaries, of which none uses all of it.
#![allow(dead_code, unreachable_pub)]

use std::collections::{HashMap, HashSet};
use std::fmt;

use alloy_primitives::{Address, B256};

use heads::{Moved, Walk};
use logs::Ledger;

mod heads;
mod logs;

/// What one client was told in the course of one logical subscription, over all its connections.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Who it is, for the examples.
    pub name: String,
    /// In the order of arrival.
    pub told: Vec<Told>,
}

/// One thing that a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A `newHeads` notification.
    Head {
        /// The block's number.
        number: u64,
        /// The block's hash.
        hash: B256,
        /// Its parent's hash.
        parent: B256,
    },
    /// A `logs` notification.
    Log {
        /// Number and hash of its block.
        block: (u64, B256),
        /// What and where in the block.
        log: Log,
        /// Whether it undoes an earlier one.
        removed: bool,
    },
    /// The answer to a subscription, on the first connection or on a later one. With both kinds in one of these (which
    /// means: in one batch) their order with respect to each other is checked too.
    Subscribed {
        /// `newHeads` is among them.
        heads: bool,
        /// `logs` is among them.
        logs: bool,
        /// Where it starts.
        from: Start,
    },
}

/// Where a subscription was asked to start. A later connection of the same record continues it, so that only the first
/// one's is of interest here: what must be covered is an argument of [`check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what comes next.
    Live,
    /// After this block, or after this log of it.
    After(B256, Option<u64>),
    /// With this block.
    FromBlock(u64),
}

/// A log: its place in the block and what must be the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `logIndex`.
    pub index: u64,
    /// Who emitted it.
    pub address: Address,
    /// Its topics.
    pub topics: Vec<B256>,
    /// The hash of its data.
    pub data: B256,
}

/// A block as the node has it.
#[derive(Clone, Debug)]
pub struct CanonBlock {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// Its parent's hash.
    pub parent: B256,
    /// All its logs, in order.
    pub logs: Vec<Log>,
}

/// The chain's own history, at the end.
#[derive(Clone, Debug, Default)]
pub struct Canonical {
    /// Oldest first, each the parent of the next.
    pub blocks: Vec<CanonBlock>,
    /// Blocks that were canonical for a while, in any order, as far as known. With them what was told of dropped
    /// branches is checked as strictly as the rest; without them two reorgs in a row, of which a client of logs sees
    /// only the removals, may look like one that is told in the wrong order.
    pub orphans: Vec<CanonBlock>,
    /// Blocks that the chain left and may have returned to with nothing told in between: it went back behind them, or to
    /// another branch that was gone before it was told. These may be announced anew although no other head came first.
    pub rewound: HashSet<B256>,
}

/// What was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Never told: heads, logs, and removals of logs.
    pub lost: u64,
    /// Told again although nothing had happened to it.
    pub duplicated: u64,
    /// Told, but not at its place.
    pub misordered: u64,
    /// What cannot be: the removal of a log that was never told, a log that its block does not have.
    pub contradictory: u64,
    /// The first few, in words.
    pub examples: Vec<String>,
}

/// Examples kept in a verdict: the first fault matters, the others often follow from it.
const EXAMPLES: usize = 8;

impl Verdict {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.misordered + self.contradictory == 0
    }

    /// Adds another's counts and examples.
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

/// Checks a record that ends when everything was told: every block of the chain from number `from` on must be covered,
/// up to the newest. `filter` is what the client's log filter selects.
pub fn check(record: &Record, canonical: &Canonical, filter: impl Fn(&Log) -> bool, from: u64) -> Verdict {
    let mut checker = Checker::new(canonical, filter, from);
    checker.read(&record.told);
    checker.arrive();
    checker.verdict(&record.name)
}

/// Checks a record that ends anywhere, since the client went or was closed: what was told must be without a hole, but it
/// need not reach the newest block.
pub fn check_cut(record: &Record, canonical: &Canonical, filter: impl Fn(&Log) -> bool, from: u64) -> Verdict {
    let mut checker = Checker::new(canonical, filter, from);
    checker.read(&record.told);
    checker.verdict(&record.name)
}

/// Number and hash of a block.
type At = (u64, B256);

fn name((number, hash): At) -> String {
    format!("{number} {}", &hash.to_string()[..10])
}

/// All blocks that are known, and which of their logs this client is to be told.
struct Tree {
    blocks: HashMap<B256, Node>,
    rewound: HashSet<B256>,
    /// How many known children a block has.
    children: HashMap<B256, usize>,
    newest: Option<At>,
}

struct Node {
    number: u64,
    parent: B256,
    /// What matches; `None` where only the header is known.
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

    /// What the client is to be told of this block; `None` where it is not known.
    fn logs(&self, hash: B256) -> Option<&[Log]> {
        self.blocks.get(&hash)?.logs.as_deref()
    }

    /// A block's parent with its number. Numbers may have holes, so it is one less only where nothing better is known.
    fn below(&self, block: At) -> Option<At> {
        let parent = self.parent(block.1)?;
        let known = self.blocks.get(&parent).map(|node| node.number);
        Some((known.unwrap_or(block.0.saturating_sub(1)), parent))
    }

    /// Whether `old` is this block or one of its ancestors; `None` where too little is known.
    fn descends(&self, hash: B256, number: u64, old: At) -> Option<bool> {
        let mut at = (number, hash);
        while at.0 > old.0 {
            at = self.below(at)?;
        }
        // Below it there is no way back up: on this branch its number is another block's, or none's.
        Some(at == old)
    }

    fn is_canonical(&self, block: At) -> bool {
        self.newest
            .is_some_and(|newest| self.descends(newest.1, newest.0, block) == Some(true))
    }

    /// Whether the chain could leave `upper` and still have `lower`, its ancestor: another branch starts in between, or
    /// the chain went back that far.
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

    fn read(&mut self, told: &[Told]) {
        for at in 0..told.len() {
            self.apply(told, at);
        }
    }

    fn apply(&mut self, told: &[Told], at: usize) {
        match &told[at] {
            Told::Subscribed { heads, logs, from } => {
                self.heads |= *heads;
                self.logs |= *logs;
                if matches!(from, Start::After(..)) {
                    self.resumed = true;
                    self.ledger.resumed();
                }
            }
            Told::Head { number, hash, parent } => {
                self.tree.add(
                    *hash,
                    Node {
                        number: *number,
                        parent: *parent,
                        logs: None,
                    },
                );
                let next = told[at + 1..].iter().find_map(|told| match told {
                    Told::Head { hash, parent, .. } => Some((*hash, *parent)),
                    _ => None,
                });
                self.head((*number, *hash), *parent, next);
            }
            Told::Log {
                block,
                log,
                removed: true,
            } => self.ledger.removed(&self.tree, *block, log, &mut self.verdict),
            Told::Log {
                block,
                log,
                removed: false,
            } => self.added(*block, log, &told[at + 1..]),
        }
    }

    fn head(&mut self, block: At, parent: B256, next: Option<(B256, B256)>) {
        let before = self.walk.top();
        let moved = self.walk.head(&self.tree, block, parent, next, &mut self.verdict);
        if !self.logs {
            return;
        }
        // E3: by now the block before is complete, or what was told of it is undone.
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

    fn added(&mut self, block: At, log: &Log, rest: &[Told]) {
        // Below `from` the head may have been told before the subscription began.
        let announced = !self.heads || self.walk.contains(block.1) || (self.walk.is_empty() && block.0 < self.from);
        // A connection that ended between the removals and the new branch's heads: if the chain has returned when the
        // client does, it has the heads already.
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

    /// Nothing more comes: what the client has must be what the chain has.
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
