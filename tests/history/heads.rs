//! The path of a client's heads through the block tree (E1).

use std::collections::{HashMap, HashSet};

use alloy_primitives::B256;

use super::{At, Tree, Verdict, name};

/// The client's current branch, according to the delivered heads.
pub(super) struct Walk {
    /// Blocks oldest first, each the parent of the next.
    branch: Vec<Step>,
    positions: HashMap<B256, usize>,
    /// Every delivered head, on any branch.
    delivered: HashSet<B256>,
    /// Heads delivered before their parents.
    early: HashSet<B256>,
    from: u64,
}

struct Step {
    block: At,
    /// `true` if the block is known only from another source than a head; its head is presumed lost until delivered.
    missing: bool,
}

/// The effect of a head.
pub(super) enum Moved {
    /// The head's parent is the head before.
    Extended,
    /// The head's parent is an older block, with this number.
    Switched(u64),
    /// The head was unexpected; the walk is unchanged.
    Stray,
}

impl Walk {
    pub(super) fn new(from: u64) -> Self {
        Self {
            branch: Vec::new(),
            positions: HashMap::new(),
            delivered: HashSet::new(),
            early: HashSet::new(),
            from,
        }
    }

    pub(super) fn top(&self) -> Option<At> {
        self.branch.last().map(|step| step.block)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.branch.is_empty()
    }

    pub(super) fn contains(&self, hash: B256) -> bool {
        self.position(hash).is_some()
    }

    fn position(&self, hash: B256) -> Option<usize> {
        self.positions.get(&hash).copied()
    }

    /// Applies a head. `next` is hash and parent of the following head, which distinguishes a misplaced head from a
    /// missing one.
    pub(super) fn head(
        &mut self,
        tree: &Tree,
        block: At,
        parent: B256,
        next: Option<(B256, B256)>,
        verdict: &mut Verdict,
    ) -> Moved {
        let known = !self.delivered.insert(block.1);
        if let Some(at) = self.position(block.1) {
            if self.branch[at].missing {
                self.branch[at].missing = false;
                verdict.misordered(|| format!("head {}", name(block)));
                return Moved::Stray;
            }
            if !tree.rewound.contains(&block.1) {
                verdict.duplicated(|| format!("head {}", name(block)));
                return Moved::Stray;
            }
        }
        let Some(top) = self.top() else {
            let floor = self.from;
            if block.0 > floor {
                self.presume_path(tree, block, verdict);
            } else {
                self.push(block, false);
            }
            return Moved::Extended;
        };
        if parent == top.1 {
            self.push(block, false);
            return Moved::Extended;
        }
        // The next head continues from the walk's top, so this head was misplaced.
        let belongs_elsewhere = self.delivered.contains(&parent) && next.is_some_and(|(_, after)| after == top.1);
        if belongs_elsewhere && !self.contains(block.1) {
            if known {
                verdict.duplicated(|| format!("head {}", name(block)));
            } else {
                self.early.insert(block.1);
                verdict.misordered(|| format!("head {}", name(block)));
            }
            return Moved::Stray;
        }
        if let Some(at) = self.position(parent) {
            let ancestor = self.branch[at].block.0;
            self.pop_to(at + 1, verdict);
            self.push(block, false);
            return Moved::Switched(ancestor);
        }
        if next.is_some_and(|(hash, _)| hash == parent) {
            self.early.insert(block.1);
            verdict.misordered(|| format!("head {} before its parent", name(block)));
            return Moved::Stray;
        }
        if self
            .branch
            .first()
            .is_some_and(|first| below(tree, block) < first.block.0)
        {
            // The head leaves the chain below all delivered heads, so none of them is canonical any more.
            self.pop_to(0, verdict);
            self.push(block, false);
            return Moved::Switched(below(tree, block));
        }
        if next.is_none() && !tree.is_canonical(block) {
            verdict.misordered(|| format!("head {} of a branch that was left", name(block)));
            return Moved::Stray;
        }
        let joined = self.presume_path(tree, block, verdict);
        match joined {
            Some(joined) if joined == top => Moved::Extended,
            joined => Moved::Switched(joined.map_or_else(|| below(tree, self.branch[0].block), |(number, _)| number)),
        }
    }

    /// Records that this block's head must have been delivered, because a log of the block was.
    pub(super) fn presume(&mut self, tree: &Tree, block: At, verdict: &mut Verdict) {
        self.presume_path(tree, block, verdict);
        if let Some(last) = self.branch.last_mut() {
            last.missing = !self.early.remove(&block.1);
        }
    }

    /// Puts a block on the branch with all blocks in between; returns the block where they join the branch.
    fn presume_path(&mut self, tree: &Tree, block: At, verdict: &mut Verdict) -> Option<At> {
        let mut between = Vec::new();
        let mut lowest = block;
        let joined = loop {
            let Some(parent) = tree.below(lowest) else {
                break None;
            };
            if let Some(at) = self.position(parent.1) {
                break Some(at);
            }
            let floor = self.branch.first().map_or(self.from, |first| first.block.0);
            if lowest.0 <= floor || parent.0 < floor {
                break None;
            }
            lowest = parent;
            between.push(lowest);
        };
        self.pop_to(joined.map_or(0, |at| at + 1), verdict);
        let joined = self.top();
        for block in between.into_iter().rev() {
            let missing = !self.early.remove(&block.1);
            self.push(block, missing);
        }
        self.push(block, false);
        joined
    }

    fn push(&mut self, block: At, missing: bool) {
        self.positions.insert(block.1, self.branch.len());
        self.branch.push(Step { block, missing });
    }

    /// Shortens the branch to `len` blocks; heads missing above are lost.
    fn pop_to(&mut self, len: usize, verdict: &mut Verdict) {
        for step in self.branch.drain(len..) {
            self.positions.remove(&step.block.1);
            if step.missing {
                verdict.lost(|| format!("head {}", name(step.block)));
            }
        }
    }

    /// Checks that the walk has reached the chain's newest block.
    pub(super) fn arrive(&mut self, tree: &Tree, newest: At, verdict: &mut Verdict) {
        if self.top() != Some(newest) && newest.0 >= self.from {
            self.presume_path(tree, newest, verdict);
            if let Some(last) = self.branch.last_mut() {
                last.missing = !self.early.remove(&newest.1);
            }
        }
    }

    /// Reports all heads that are still missing as lost.
    pub(super) fn close(&mut self, tree: &Tree, verdict: &mut Verdict) {
        // Heads that should have been delivered before the first.
        if let Some(first) = self.branch.first().map(|first| first.block) {
            let mut lowest = first;
            while lowest.0 > self.from
                && let Some(parent) = tree.below(lowest)
                && parent.0 >= self.from
            {
                lowest = parent;
                if !self.early.contains(&parent.1) {
                    verdict.lost(|| format!("head {}", name(lowest)));
                }
            }
        }
        self.pop_to(0, verdict);
    }
}

/// Returns the number of the parent block.
fn below(tree: &Tree, block: At) -> u64 {
    tree.below(block)
        .map_or(block.0.saturating_sub(1), |(number, _)| number)
}
