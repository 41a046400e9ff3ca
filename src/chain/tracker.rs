//! One history out of what a node announces. No I/O, no clock.
//!
//! Heads in any order go in; what they mean for the canonical chain comes out. A head whose parent is unknown starts a
//! walk: the tracker names the hash that it needs next, until the walk meets the chain that it knows.

use std::collections::{HashMap, VecDeque};

use alloy_primitives::B256;

use super::{BlockRef, Header};
use crate::upstream::MAX_HOLE;

/// What an announcement, or an answer to a [`Step::Need`], came to.
#[derive(Clone, Debug)]
pub enum Step {
    /// Nothing new.
    Nothing,
    /// The header with this hash is needed to go on; give it to [`Tracker::supply`].
    Need(B256),
    /// The walk came to this block, which has no parent, or one that no node has. The node's blocks up to this one by number
    /// are needed to go on; give them to [`Tracker::supply_numbered`].
    NeedNumbered(BlockRef),
    /// The chain grew: oldest first, never empty.
    Extend(Vec<Header>),
    /// The chain changed its mind.
    Reorg {
        /// The newest block that both branches have.
        ancestor: BlockRef,
        /// Newest first; may not be empty.
        dropped: Vec<BlockRef>,
        /// Oldest first; empty when the node only went back.
        adopted: Vec<Header>,
    },
    /// The node announces a block that is already behind the tip: it went back, or it repeats itself. Whoever can ask
    /// the node decides, and calls [`Tracker::rewind`].
    Behind(BlockRef),
    /// The head is too far ahead for one walk and was not taken: it is to be announced again later. Unless a walk is in
    /// progress, the node's first block at or above this number is the next stepping stone, for [`Tracker::walk_to`].
    Far {
        /// The head.
        head: Header,
        /// The least number of the stepping stone.
        stone: u64,
    },
    /// Continuity is lost: no bounded walk leads from here to what was known. The chain starts again at this head.
    Reset(Header),
}

/// The canonical chain as far back as history reaches, and a walk in progress.
///
/// Blocks are related by their parents' hashes alone. Numbers ascend, and some have no block (Filecoin's null rounds, issue
/// 11): a number says how many blocks there can be at most, never which block is the parent.
#[derive(Debug)]
pub struct Tracker {
    /// Blocks kept, and the longest walk; at least one.
    limit: usize,
    /// Oldest first; each the parent of the next.
    canonical: VecDeque<Header>,
    number_of: HashMap<B256, u64>,
    /// From the announced head down to the oldest ancestor fetched so far; newest first.
    walk: Vec<Header>,
    /// Blocks off the canonical chain that need not be fetched again.
    aside: HashMap<B256, Header>,
    aside_order: VecDeque<B256>,
    /// Wary mode, see [`Self::set_wary`]: the published chain is never given up, and a child far above its parent is
    /// refused.
    is_wary: bool,
    aside_bytes: usize,
    /// Bound in bytes of JSON, for the blocks of a walk and again for those put aside.
    max_bytes: usize,
}

impl Tracker {
    /// A tracker that keeps `limit` blocks and walks back as many at most.
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

    /// Sets the wary mode, for a node whose height is doubted. Nothing that costs continuity is accepted in it: neither
    /// walks that lead nowhere and restarts, nor blocks further than `MAX_HOLE` (`upstream::standing`) above their
    /// parents.
    pub fn set_wary(&mut self, is_wary: bool) {
        self.is_wary = is_wary;
    }

    /// The same within so many bytes for the blocks of a walk, and again for those that are put aside.
    #[must_use]
    pub fn within(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }

    /// Bytes of JSON of blocks that do not belong to the chain, or not yet.
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

    /// The newest canonical header.
    #[must_use]
    pub fn tip(&self) -> Option<&Header> {
        self.canonical.back()
    }

    /// The oldest canonical block that is kept.
    #[must_use]
    pub fn oldest(&self) -> Option<BlockRef> {
        self.canonical.front().map(|header| header.block)
    }

    /// The hash that the walk in progress waits for.
    #[must_use]
    pub fn needs(&self) -> Option<B256> {
        self.walk.last().map(|lowest| lowest.parent)
    }

    /// The numbers that the walk in progress has yet to cross if no block of ours is dropped: above our tip, below what was
    /// fetched so far.
    #[must_use]
    pub fn gap(&self) -> std::ops::Range<u64> {
        match (self.tip(), self.walk.last()) {
            (Some(tip), Some(lowest)) => tip.block.number.saturating_add(1)..lowest.block.number,
            _ => 0..0,
        }
    }

    /// The block below the oldest one, where there is one and room for it.
    #[must_use]
    pub fn below(&self) -> Option<B256> {
        let oldest = self.canonical.front()?;
        (self.canonical.len() < self.limit && oldest.has_parent()).then_some(oldest.parent)
    }

    /// Canonical blocks that are kept, and the numbers from the first to the last of them.
    #[must_use]
    pub fn extent(&self) -> (u64, u64) {
        let numbers = self.canonical.front().zip(self.canonical.back());
        let span = numbers.map_or(0, |(first, last)| {
            (last.block.number - first.block.number).saturating_add(1)
        });
        (self.canonical.len() as u64, span)
    }

    /// Adds the parent of the oldest block, so that a reorg may reach below it; `false` where it is not that, or where
    /// there is no room.
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

    /// Gives up what was known and starts again at this head.
    pub fn restart(&mut self, head: Header) -> Step {
        self.walk = vec![head];
        self.reset()
    }

    /// The node says: this is my head.
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
            // The chain grew while its gap is being fetched: the same gap is still the one to fill.
            Some(target) if target.block.hash == head.parent && self.walk.len() < self.limit => {
                self.walk.insert(0, head);
                Step::Nothing
            }
            Some(target) if target.block.hash == head.parent => {
                let stone = head.block.number;
                Step::Far { head, stone }
            }
            _ => match self.number_of.get(&head.parent) {
                // No number can be taken from it: nothing grows on it that could be believed.
                Some(parent) if head.block.number <= *parent => Step::Nothing,
                Some(_) => self.walk_to(head),
                None => match self.stone_before(&head) {
                    Some(stone) => Step::Far { head, stone },
                    None => self.walk_to(head),
                },
            },
        }
    }

    /// As [`Self::announce`], of a head that is new and to which as few blocks lead as can be walked, whatever its number: the
    /// numbers before it have none.
    pub fn walk_to(&mut self, head: Header) -> Step {
        if self.number_of.contains_key(&head.block.hash) {
            return Step::Nothing;
        }
        self.abandon_walk();
        self.walk.push(head);
        self.advance()
    }

    /// The block to go to first where this head is further ahead than a walk may reach.
    fn stone_before(&self, head: &Header) -> Option<u64> {
        let tip = self.tip()?.block.number;
        let reach = self.limit as u64;
        // Half of it, so that a reorg that happened meanwhile can be walked too.
        (head.block.number.saturating_sub(tip) > reach).then_some(tip + reach.div_ceil(2))
    }

    /// The answer to a [`Step::Need`]. An answer that nobody waits for any more is put aside.
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

    /// No node has the block that the walk needs: the one of the number before is taken for it, where the node has that.
    pub fn deny(&mut self, hash: B256) -> Step {
        match self.walk.last_mut().filter(|lowest| lowest.parent == hash) {
            Some(lowest) => {
                lowest.parent = B256::ZERO;
                self.advance()
            }
            None => Step::Nothing,
        }
    }

    /// The answer to a [`Step::NeedNumbered`] for this block: canonical blocks of the node, each known by its number alone.
    /// `None` where they do not lead on: they do not have the block itself, or none of the number before.
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
            // From here on it is the parent, for all who go by hashes.
            lowest.parent = before.block.hash;
            if self.number_of.contains_key(&before.block.hash) || self.walk.len() >= self.limit {
                break;
            }
            self.walk.push(before.clone());
        }
        self.walk.last().filter(|lowest| !waits(lowest))?;
        Some(self.advance())
    }

    /// The node really went back to this canonical block.
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

    /// Goes on with the walk as far as known blocks lead.
    fn advance(&mut self) -> Step {
        while let Some(lowest) = self.walk.last() {
            let (parent, number) = (lowest.parent, lowest.block.number);
            // Numbers that do not ascend are no chain.
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

    /// The walk met the chain at `ancestor`.
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

    /// `true` where a block of the walk is further above its parent than can be believed of one node.
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

    /// What is dropped, newest first; `None` where `ancestor` is not canonical.
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

    /// The head that the walk in progress leads to.
    #[must_use]
    pub fn target(&self) -> Option<&Header> {
        self.walk.first()
    }

    /// Gives up the walk in progress; its blocks are put aside.
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
        // The order may name blocks that were taken back; they leave it here too.
        while self.aside_order.len() > self.limit
            && let Some(oldest) = self.aside_order.pop_front()
        {
            self.take_aside(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;
