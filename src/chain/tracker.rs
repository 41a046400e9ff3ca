//! Builds one history from a node's announcements. No I/O, no clock.
//!
//! Heads go in, in any order; the resulting changes of the canonical chain come out. A head with an unknown parent
//! starts a walk: the tracker requests one parent after the other until the walk meets a known block.

use std::collections::{HashMap, VecDeque};

use alloy_primitives::B256;

use super::{BlockRef, Header};
use crate::upstream::MAX_HOLE;

/// The result of an announcement, or of an answer to a [`Step::Need`].
#[derive(Clone, Debug)]
pub enum Step {
    /// Nothing new.
    Nothing,
    /// The walk needs the header with this hash; pass it to [`Tracker::supply`].
    Need(B256),
    /// The walk reached this block, which has no parent, or a parent that no node has. The walk needs the node's
    /// blocks by number up to this one; pass them to [`Tracker::supply_numbered`].
    NeedNumbered(BlockRef),
    /// The chain grew by these blocks: oldest first, never empty.
    Extend(Vec<Header>),
    /// A reorg, or a rewind if `adopted` is empty.
    Reorg {
        /// The newest block that both branches share.
        ancestor: BlockRef,
        /// Blocks that left the canonical chain, newest first; never empty.
        dropped: Vec<BlockRef>,
        /// Blocks that joined the canonical chain, oldest first; empty if the node only went back.
        adopted: Vec<Header>,
    },
    /// The node announced a canonical block below the tip: it went back, or repeats itself. The caller asks the node,
    /// and calls [`Tracker::rewind`] if it went back.
    Behind(BlockRef),
    /// The head is too far ahead for one walk and was not accepted; announce it again later. Unless a walk is in
    /// progress, the node's first block at or above `waypoint` is the next waypoint, for [`Tracker::walk_to`].
    Far {
        /// The head.
        head: Header,
        /// Lowest number of the waypoint.
        waypoint: u64,
    },
    /// Continuity is lost: no bounded walk leads from this head to a known block. The chain starts again at this
    /// head.
    Reset(Header),
}

/// The canonical chain as far back as history reaches, and the walk in progress.
///
/// Blocks are linked by parent hashes alone. Numbers ascend, and some have no block (Filecoin's null rounds, issue
/// 11): a number bounds how many blocks there can be, but does not identify the parent. The exception is a parent
/// that no node has, see [`Self::supply_numbered`].
#[derive(Debug)]
pub struct Tracker {
    /// Maximum number of canonical blocks, of blocks in a walk, and of blocks set aside; at least 1.
    limit: usize,
    /// Oldest first; each the parent of the next.
    canonical: VecDeque<Header>,
    number_of: HashMap<B256, u64>,
    /// From the announced head down to the oldest ancestor fetched so far; newest first.
    walk: Vec<Header>,
    /// Blocks off the canonical chain, kept so that they need not be fetched again.
    aside: HashMap<B256, Header>,
    aside_order: VecDeque<B256>,
    /// Wary mode, see [`Self::set_wary`]: the published chain is never given up, and a child far above its parent is
    /// refused.
    is_wary: bool,
    aside_bytes: usize,
    /// Bound in bytes of JSON, for the blocks of a walk and separately for those set aside.
    max_bytes: usize,
}

impl Tracker {
    /// Creates a tracker that keeps up to `limit` blocks and walks back by up to as many.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            canonical: VecDeque::new(),
            number_of: HashMap::new(),
            walk: Vec::new(),
            aside: HashMap::new(),
            aside_order: VecDeque::new(),
            is_wary: false,
            aside_bytes: 0,
            max_bytes: usize::MAX,
        }
    }

    /// Sets the wary mode, for a node whose height is doubted. It rejects everything that would cost continuity:
    /// walks that do not meet the chain, restarts, and blocks further than `MAX_HOLE` (`upstream::ranking`) above
    /// their parents.
    pub fn set_wary(&mut self, is_wary: bool) {
        self.is_wary = is_wary;
    }

    /// Bounds the blocks of a walk, and separately those set aside, to `max_bytes` bytes of JSON.
    #[must_use]
    pub fn within(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }

    /// Returns the bytes of JSON in blocks that are not, or not yet, canonical.
    #[must_use]
    pub fn stray_bytes(&self) -> usize {
        self.aside_bytes + self.walk_bytes()
    }

    fn walk_bytes(&self) -> usize {
        self.walk.iter().map(|header| header.json.len()).sum()
    }

    fn take_aside(&mut self, hash: &B256) -> Option<Header> {
        let header = self.aside.remove(hash)?;
        self.aside_bytes -= header.json.len();
        Some(header)
    }

    /// Returns the newest canonical header.
    #[must_use]
    pub fn tip(&self) -> Option<&Header> {
        self.canonical.back()
    }

    /// Returns the oldest canonical block in memory.
    #[must_use]
    pub fn oldest(&self) -> Option<BlockRef> {
        self.canonical.front().map(|header| header.block)
    }

    /// Returns the hash that the walk in progress needs next; `None` without a walk.
    #[must_use]
    pub fn needs(&self) -> Option<B256> {
        self.walk.last().map(|lowest| lowest.parent)
    }

    /// Returns the numbers that the walk in progress has yet to cross if no canonical block is dropped: above the
    /// tip, below the lowest block fetched so far.
    #[must_use]
    pub fn gap(&self) -> std::ops::Range<u64> {
        match (self.tip(), self.walk.last()) {
            (Some(tip), Some(lowest)) => tip.block.number.saturating_add(1)..lowest.block.number,
            _ => 0..0,
        }
    }

    /// Returns the parent hash of the oldest block, if there is a parent and room for it.
    #[must_use]
    pub fn below(&self) -> Option<B256> {
        let oldest = self.canonical.front()?;
        (self.canonical.len() < self.limit && oldest.has_parent()).then_some(oldest.parent)
    }

    /// Returns the count of canonical blocks in memory, and the count of numbers from the first to the last of them.
    #[must_use]
    pub fn extent(&self) -> (u64, u64) {
        let numbers = self.canonical.front().zip(self.canonical.back());
        let span = numbers.map_or(0, |(first, last)| {
            (last.block.number - first.block.number).saturating_add(1)
        });
        (self.canonical.len() as u64, span)
    }

    /// Adds the parent of the oldest block, so that a reorg may reach below it; `false` if `older` is not the parent,
    /// or there is no room.
    pub fn prepend(&mut self, older: &Header) -> bool {
        let fits = self.canonical.len() < self.limit
            && self
                .canonical
                .front()
                .is_some_and(|oldest| oldest.parent == older.block.hash && oldest.block.number > older.block.number);
        if fits {
            self.take_aside(&older.block.hash);
            self.number_of.insert(older.block.hash, older.block.number);
            self.canonical.push_front(older.clone());
        }
        fits
    }

    /// Drops the known chain and starts again at this head. In wary mode a chain that has blocks is kept.
    pub fn restart(&mut self, head: Header) -> Step {
        self.walk = vec![head];
        self.reset()
    }

    /// Handles a head that the node announces.
    pub fn announce(&mut self, head: Header) -> Step {
        let hash = head.block.hash;
        if self.canonical.is_empty() {
            self.append(head.clone());
            return Step::Extend(vec![head]);
        }
        if self.number_of.contains_key(&hash) {
            let block = head.block;
            self.abandon_walk();
            return if self.tip().is_some_and(|tip| tip.block == block) {
                Step::Nothing
            } else {
                Step::Behind(block)
            };
        }
        match self.walk.first() {
            Some(target) if target.block.hash == hash => Step::Nothing,
            // The chain grew while its gap is being fetched: the gap to fill is still the same.
            Some(target) if target.block.hash == head.parent && self.walk.len() < self.limit => {
                self.walk.insert(0, head);
                Step::Nothing
            }
            Some(target) if target.block.hash == head.parent => {
                let waypoint = head.block.number;
                Step::Far { head, waypoint }
            }
            _ => match self.number_of.get(&head.parent) {
                // A head whose number does not exceed its parent's is invalid: ignore it.
                Some(parent) if head.block.number <= *parent => Step::Nothing,
                Some(_) => self.walk_to(head),
                None => match self.stone_before(&head) {
                    Some(waypoint) => Step::Far { head, waypoint },
                    None => self.walk_to(head),
                },
            },
        }
    }

    /// Handles a new head like [`Self::announce`], but walks to it whatever its number. Few blocks lead to it: the
    /// numbers from the requested waypoint up to it have no block.
    pub fn walk_to(&mut self, head: Header) -> Step {
        if self.number_of.contains_key(&head.block.hash) {
            return Step::Nothing;
        }
        self.abandon_walk();
        self.walk.push(head);
        self.advance()
    }

    /// Returns the lowest number of the waypoint to take first, if a head is further ahead than a walk may
    /// reach.
    fn stone_before(&self, head: &Header) -> Option<u64> {
        let tip = self.tip()?.block.number;
        let reach = self.limit as u64;
        // Half of the reach, so that the walk can also cover a reorg that happened meanwhile.
        (head.block.number.saturating_sub(tip) > reach).then_some(tip + reach.div_ceil(2))
    }

    /// Handles the answer to a [`Step::Need`]. A block that no walk needs any more is set aside.
    pub fn supply(&mut self, header: Header) -> Step {
        if self.needs() == Some(header.block.hash) {
            self.walk.push(header);
            return self.advance();
        }
        if !self.number_of.contains_key(&header.block.hash) {
            self.put_aside(header);
        }
        Step::Nothing
    }

    /// Records that no node has the block that the walk needs: the node's block with the previous number takes its
    /// place.
    pub fn deny(&mut self, hash: B256) -> Step {
        match self.walk.last_mut().filter(|lowest| lowest.parent == hash) {
            Some(lowest) => {
                lowest.parent = B256::ZERO;
                self.advance()
            }
            None => Step::Nothing,
        }
    }

    /// Handles the answer to a [`Step::NeedNumbered`] for this block: the node's canonical blocks, each identified by
    /// its number alone. `None` if they do not extend the walk: the block itself or the one with the previous number
    /// is missing.
    pub fn supply_numbered(&mut self, block: BlockRef, canonical: Vec<Header>) -> Option<Step> {
        let waits = |lowest: &&Header| lowest.block == block && !lowest.has_parent();
        if self.walk.last().filter(waits).is_none() {
            return Some(Step::Nothing);
        }
        let by_number: HashMap<u64, Header> = canonical.into_iter().map(|own| (own.block.number, own)).collect();
        if by_number.get(&block.number)?.block != block {
            return None;
        }
        while let Some(lowest) = self.walk.last_mut()
            && !lowest.has_parent()
            && let Some(before) = lowest.block.number.checked_sub(1)
            && let Some(before) = by_number.get(&before)
        {
            // From now on the two blocks are linked by hash.
            lowest.parent = before.block.hash;
            if self.number_of.contains_key(&before.block.hash) || self.walk.len() >= self.limit {
                break;
            }
            self.walk.push(before.clone());
        }
        self.walk.last().filter(|lowest| !waits(lowest))?;
        Some(self.advance())
    }

    /// Handles a confirmed rewind of the node to this canonical block.
    pub fn rewind(&mut self, to: B256) -> Step {
        self.abandon_walk();
        match self.drop_above(to) {
            Some((ancestor, dropped)) if !dropped.is_empty() => Step::Reorg {
                ancestor,
                dropped,
                adopted: Vec::new(),
            },
            _ => Step::Nothing,
        }
    }

    /// Continues the walk as far as known blocks lead.
    fn advance(&mut self) -> Step {
        while let Some(lowest) = self.walk.last() {
            let (parent, number) = (lowest.parent, lowest.block.number);
            // Blocks whose numbers do not ascend are not a valid chain.
            let ascends = self
                .walk
                .iter()
                .rev()
                .nth(1)
                .is_none_or(|child| child.block.number > number);
            match self.number_of.get(&parent) {
                Some(below) if ascends && *below < number => return self.join(parent),
                None if ascends => {}
                _ => return self.reset(),
            }
            let below_history = self
                .canonical
                .front()
                .is_some_and(|oldest| number <= oldest.block.number);
            let too_long = self.walk.len() >= self.limit || self.walk_bytes() > self.max_bytes;
            if below_history || too_long || number == 0 {
                return self.reset();
            }
            if !lowest.has_parent() {
                return Step::NeedNumbered(lowest.block);
            }
            match self.take_aside(&parent) {
                Some(header) => self.walk.push(header),
                None => return Step::Need(parent),
            }
        }
        Step::Nothing
    }

    /// Completes a walk that met the chain at `ancestor`.
    fn join(&mut self, ancestor: B256) -> Step {
        if self.is_wary && self.leaps(ancestor) {
            self.walk.clear();
            return Step::Nothing;
        }
        let mut adopted = std::mem::take(&mut self.walk);
        adopted.reverse();
        let dropped = self.drop_above(ancestor);
        for header in &adopted {
            self.append(header.clone());
        }
        match dropped {
            Some((ancestor, dropped)) if !dropped.is_empty() => Step::Reorg {
                ancestor,
                dropped,
                adopted,
            },
            _ => Step::Extend(adopted),
        }
    }

    /// Checks if a block of the walk is more than `MAX_HOLE` above its parent: too much on one node's word.
    fn leaps(&self, ancestor: B256) -> bool {
        let below = self.number_of.get(&ancestor).copied();
        let parents = self.walk.iter().skip(1).map(|own| own.block.number).chain(below);
        let mut pairs = self.walk.iter().zip(parents);
        pairs.any(|(child, parent)| child.block.number.saturating_sub(parent) > MAX_HOLE)
    }

    fn reset(&mut self) -> Step {
        if self.is_wary && !self.canonical.is_empty() {
            self.walk.clear();
            return Step::Nothing;
        }
        let mut walk = std::mem::take(&mut self.walk);
        self.canonical.clear();
        self.number_of.clear();
        walk.truncate(1);
        match walk.pop() {
            Some(head) => {
                self.append(head.clone());
                Step::Reset(head)
            }
            None => Step::Nothing,
        }
    }

    fn append(&mut self, header: Header) {
        self.take_aside(&header.block.hash);
        self.number_of.insert(header.block.hash, header.block.number);
        self.canonical.push_back(header);
        while self.canonical.len() > self.limit
            && let Some(oldest) = self.canonical.pop_front()
        {
            self.number_of.remove(&oldest.block.hash);
        }
    }

    /// Drops the blocks above `ancestor`. Returns `ancestor` and the dropped blocks, newest first; `None` if
    /// `ancestor` is not canonical.
    fn drop_above(&mut self, ancestor: B256) -> Option<(BlockRef, Vec<BlockRef>)> {
        let number = *self.number_of.get(&ancestor)?;
        let mut dropped = Vec::new();
        while self.tip().is_some_and(|tip| tip.block.hash != ancestor)
            && let Some(header) = self.canonical.pop_back()
        {
            self.number_of.remove(&header.block.hash);
            dropped.push(header.block);
            self.put_aside(header);
        }
        Some((BlockRef { number, hash: ancestor }, dropped))
    }

    /// Returns the head that the walk in progress leads to.
    #[must_use]
    pub fn target(&self) -> Option<&Header> {
        self.walk.first()
    }

    /// Gives up the walk in progress; its blocks are set aside.
    pub fn abandon_walk(&mut self) {
        for header in std::mem::take(&mut self.walk) {
            self.put_aside(header);
        }
    }

    fn put_aside(&mut self, header: Header) {
        let (hash, bytes) = (header.block.hash, header.json.len());
        if self.take_aside(&hash).is_none() {
            self.aside_order.push_back(hash);
        }
        self.aside.insert(hash, header);
        self.aside_bytes += bytes;
        while self.aside_bytes > self.max_bytes
            && let Some(longest) = self.aside.values().max_by_key(|own| own.json.len())
        {
            let longest = longest.block.hash;
            self.take_aside(&longest);
        }
        // The order may name blocks that are no longer set aside; they are removed from the order here.
        while self.aside_order.len() > self.limit
            && let Some(oldest) = self.aside_order.pop_front()
        {
            self.take_aside(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;
