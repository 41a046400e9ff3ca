//! The logs of a client: added minus removed (E2).

use std::collections::HashSet;

use alloy_primitives::B256;

use super::{At, Delivered, Log, Tree, Verdict, name};

/// Block hash and log index.
type Key = (B256, u64);

/// The client's current logs.
pub(super) struct Ledger {
    /// Logs in chain order.
    live: Vec<Entry>,
    /// Logs delivered and removed.
    gone: HashSet<Key>,
    /// Logs never delivered, of dropped blocks.
    lost: Vec<(At, u64)>,
    /// Logs removed before they were delivered.
    undone_early: HashSet<Key>,
    /// Logs whose removal is presumed lost, because an event of another branch was delivered.
    overdue: HashSet<Key>,
    removals: Option<Removals>,
    /// Number of the first covered block.
    floor: u64,
    /// `true` if the stream was resumed after a log: the server does not know the original start of the stream, and
    /// may remove logs from before it.
    resumed: bool,
}

struct Entry {
    block: At,
    index: u64,
    /// `true` while the log is presumed lost; cleared on delivery.
    missing: bool,
    /// `true` if removals skipped this log and continued with later ones.
    skipped: bool,
}

/// A run of consecutive removals.
struct Removals {
    /// Index in `live` of the log to be removed next.
    next: usize,
    /// Block of the last removal.
    block: At,
    /// All blocks of this run so far.
    blocks: Vec<At>,
}

fn log_name(block: At, index: u64) -> String {
    format!("log {index} of block {}", name(block))
}

impl Ledger {
    pub(super) fn new(from: u64) -> Self {
        Self {
            live: Vec::new(),
            gone: HashSet::new(),
            lost: Vec::new(),
            undone_early: HashSet::new(),
            overdue: HashSet::new(),
            removals: None,
            floor: from,
            resumed: false,
        }
    }

    pub(super) fn resumed(&mut self) {
        self.resumed = true;
    }

    /// Returns `true` if this log was delivered and removed.
    pub(super) fn was_undone(&self, block: At, log: &Log) -> bool {
        self.gone.contains(&(block.1, log.index))
    }

    /// Returns the number of the first block with logs that were or should have been delivered.
    fn begins(&self) -> u64 {
        self.live
            .first()
            .map_or(self.floor, |first| first.block.0.min(self.floor))
    }

    fn position(&self, key: Key) -> Option<usize> {
        self.live.iter().rposition(|entry| (entry.block.1, entry.index) == key)
    }

    /// Applies a log with `removed: true`.
    pub(super) fn removed(&mut self, tree: &Tree, block: At, log: &Log, verdict: &mut Verdict) {
        let key = (block.1, log.index);
        let words = || format!("removal of {}", log_name(block, log.index));
        let Some(at) = self.position(key) else {
            if self.overdue.remove(&key) {
                verdict.misordered(words);
            } else if self.gone.contains(&key) {
                verdict.duplicated(words);
            } else if !(self.resumed && block.0 < self.begins()) {
                self.undone_early.insert(key);
            }
            return;
        };
        let entry = self.live.remove(at);
        self.gone.insert(key);
        self.floor = self.floor.min(block.0);
        if entry.missing {
            self.lost.push((block, log.index));
        }
        let Some(removals) = &mut self.removals else {
            self.removals = Some(Removals {
                next: at,
                block,
                blocks: vec![block],
            });
            // The whole block is dropped, so its earlier logs should have been removed first.
            self.skip(at, |entry| entry.block == block);
            return;
        };
        let last = std::mem::replace(&mut removals.block, block);
        if last != block {
            removals.blocks.push(block);
        }
        if at < removals.next || entry.skipped {
            removals.next = removals.next.saturating_sub(usize::from(at < removals.next));
            // Below the block of the last removal: correct if the chain dropped the two blocks one after the other.
            let removed_whole = removals.next >= self.live.len();
            let apart = block.0 < last.0 && !entry.skipped && removed_whole && tree.parts_between(block, last);
            if apart {
                removals.next = at;
                self.skip(at, |entry| entry.block == block);
            } else {
                removals.block = last;
                verdict.misordered(words);
            }
        } else {
            let next = removals.next;
            removals.next = at;
            for entry in &mut self.live[next..at] {
                entry.skipped = true;
            }
        }
    }

    /// Marks the logs directly before `at` that should have been removed first.
    fn skip(&mut self, at: usize, which: impl Fn(&Entry) -> bool) {
        for entry in self.live[..at].iter_mut().rev().take_while(|entry| which(entry)) {
            entry.skipped = true;
        }
    }

    /// Ends a run of removals on any other event: all remaining removals of the run are overdue.
    pub(super) fn end_removals(&mut self) {
        if let Some(removals) = self.removals.take() {
            let mut at = 0;
            self.drop_where(|entry| {
                at += 1;
                at > removals.next || entry.skipped
            });
        }
    }

    /// Returns `true` if the current removals include this block or one of its ancestors.
    pub(super) fn undoes(&self, tree: &Tree, block: At) -> bool {
        let gone = self.removals.iter().flat_map(|removals| &removals.blocks);
        gone.into_iter()
            .any(|gone| tree.descends(block.1, block.0, *gone) == Some(true))
    }

    /// Drops all logs above the block of this number, which the chain has left.
    pub(super) fn drop_above(&mut self, ancestor: u64) {
        self.drop_where(|entry| entry.block.0 > ancestor);
    }

    fn drop_where(&mut self, mut which: impl FnMut(&Entry) -> bool) {
        let (goes, live): (Vec<_>, _) = std::mem::take(&mut self.live)
            .into_iter()
            .partition(|entry| which(entry));
        self.live = live;
        for Entry {
            block, index, missing, ..
        } in goes
        {
            self.floor = self.floor.min(block.0);
            if missing {
                self.lost.push((block, index));
            } else {
                self.overdue.insert((block.1, index));
            }
        }
    }

    /// Applies a new log. `rest` contains the following events; `elsewhere` is `true` if the heads are on another
    /// branch. Returns `true` if the log is new and in order among the logs.
    pub(super) fn added(
        &mut self,
        tree: &Tree,
        block: At,
        log: &Log,
        rest: &[Delivered],
        elsewhere: bool,
        verdict: &mut Verdict,
    ) -> bool {
        let key = (block.1, log.index);
        let words = || log_name(block, log.index);
        if let Some(logs) = tree.logs(block.1)
            && !logs.contains(log)
        {
            verdict.contradictory(|| format!("{}: the block has no such log, or it is not asked for", words()));
            return false;
        }
        if self.undone_early.remove(&key) {
            self.gone.insert(key);
            verdict.misordered(|| format!("removal of {} before it was delivered", words()));
            return false;
        }
        if let Some(at) = self.position(key) {
            if std::mem::take(&mut self.live[at].missing) {
                verdict.misordered(words);
                return false;
            }
            if !tree.rewound.contains(&block.1) {
                verdict.duplicated(words);
                return false;
            }
            // The chain left this block and returned to it: the missing event is the removal.
            self.drop_where(|entry| (entry.block.0, entry.index) >= (block.0, log.index));
        }
        let first_time = !self.gone.contains(&key);
        let place = |live: &[Entry]| live.partition_point(|other| (other.block.0, other.index) < (block.0, log.index));
        let entry = Entry {
            block,
            index: log.index,
            missing: false,
            skipped: false,
        };
        if first_time && self.undoes(tree, block) {
            // The log's block, and with it the log, is already being removed.
            verdict.misordered(words);
            self.live.insert(place(&self.live), entry);
            return false;
        }
        let on_another_branch = |entry: &Entry| {
            let (lower, upper) = if entry.block.0 > block.0 {
                (block, entry.block)
            } else {
                (entry.block, block)
            };
            !tree
                .descends(upper.1, upper.0, lower)
                .unwrap_or(lower.0 < upper.0 || lower == upper)
        };
        // Delivered again after its removal: correct if the chain returned to its block; then the log stays or is
        // removed again.
        let returned = || {
            rest.iter().find_map(|delivered| match delivered {
                Delivered::Log {
                    block: other,
                    log: again,
                    removed: true,
                } => (*other == block && again == log).then_some(true),
                Delivered::Log {
                    block: next,
                    removed: false,
                    ..
                } => Some(tree.descends(next.1, next.0, block) != Some(false)),
                _ => None,
            })
        };
        // The current logs are on one branch, so it suffices to check the last.
        let leaves = self.live.last().is_some_and(on_another_branch);
        if !first_time && !returned().unwrap_or(!leaves && !elsewhere) {
            verdict.duplicated(words);
            return false;
        }
        self.end_removals();
        if leaves {
            self.drop_where(on_another_branch);
        }
        self.gone.remove(&key);
        let place = place(&self.live);
        if place < self.live.len() {
            verdict.misordered(words);
            self.live.insert(place, entry);
            return false;
        }
        self.presume_up_to(tree, block, Some(log.index));
        self.live.push(entry);
        true
    }

    /// Presumes lost all logs before this log, or up to the end of this block if `index` is `None`.
    fn presume_up_to(&mut self, tree: &Tree, block: At, index: Option<u64>) {
        let last = self.live.last().map(|last| (last.block, last.index));
        let lowest = last.map_or(self.floor.min(block.0), |(block, _)| block.0);
        let mut path = vec![block];
        let mut at = block;
        while at.0 > lowest
            && let Some(below) = tree.below(at)
            && below.0 >= lowest
        {
            path.push(below);
            at = below;
        }
        for at in path.into_iter().rev() {
            let expected = tree.logs(at.1).unwrap_or_default().iter().filter(|log| {
                let after_last = last.is_none_or(|(block, index)| at.0 > block.0 || log.index > index);
                after_last && (at != block || index.is_none_or(|index| log.index < index))
            });
            let missing = expected.map(|log| Entry {
                block: at,
                index: log.index,
                missing: true,
                skipped: false,
            });
            self.live.extend(missing);
        }
    }

    /// Checks that all logs of a block were delivered, when the next head is delivered.
    pub(super) fn complete(&mut self, tree: &Tree, block: At) {
        if block.0 < self.begins() || self.live.last().is_some_and(|last| last.block.0 > block.0) {
            return;
        }
        self.presume_up_to(tree, block, None);
    }

    /// Compares the current logs with the chain's.
    pub(super) fn arrive(&mut self, tree: &Tree, newest: At) {
        self.removals = None;
        self.drop_where(|entry| tree.descends(newest.1, newest.0, entry.block) == Some(false));
        if newest.0 >= self.floor {
            self.presume_up_to(tree, newest, None);
        }
    }

    /// Reports all logs and removals that are still missing as lost.
    pub(super) fn close(&mut self, tree: &Tree, verdict: &mut Verdict) {
        // Logs that should have been delivered before the first.
        if let Some(first) = self.live.first().map(|first| (first.block, first.index))
            && first.0.0 >= self.floor
            && self.removals.is_none()
        {
            let rest = std::mem::take(&mut self.live);
            self.presume_up_to(tree, first.0, Some(first.1));
            self.live.extend(rest);
        }
        let missing = self.live.iter().filter(|entry| entry.missing);
        self.lost.extend(missing.map(|entry| (entry.block, entry.index)));
        for (block, index) in &self.lost {
            verdict.lost(|| log_name(*block, *index));
        }
        for (hash, index) in &self.overdue {
            verdict.lost(|| format!("removal of log {index} of block {}", &hash.to_string()[..10]));
        }
        for (hash, index) in &self.undone_early {
            let known = tree
                .logs(*hash)
                .is_some_and(|logs| logs.iter().any(|log| log.index == *index));
            let words = || {
                format!(
                    "log {index} of block {}, whose removal was delivered",
                    &hash.to_string()[..10]
                )
            };
            if known {
                verdict.lost(words);
            } else {
                verdict.contradictory(words);
            }
        }
    }
}
