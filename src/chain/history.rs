//! Recent blocks of the published chain with their headers and logs, dropped branches included. Streams resume from
//! them. No I/O, no clock.
//!
//! [`super::published`] owns them, and applies events; the registry changes the logs that are kept with them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use alloy_primitives::B256;

use super::{BlockLogs, BlockRef, Gap, Header, Page};

/// A published block.
#[derive(Clone, Debug)]
pub struct PublishedBlock {
    /// Its header.
    pub header: Header,
    /// Its logs; `None` if they were not fetched, or not yet.
    pub logs: Option<Arc<BlockLogs>>,
    /// `true` while its logs are to be delivered to live subscriptions: a resuming stream waits for them, or joins
    /// before them.
    pub awaits_logs: bool,
    /// `true` if no node has its logs: they are not requested again.
    pub lacks_logs: bool,
    /// Position in the order of publication: grows by one from block to block, across reorgs too.
    pub sequence: u64,
}

impl PublishedBlock {
    /// Returns the block number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.header.block.number
    }
}

/// Returns the index of the first of these blocks, ascending by number, at or above `number`; the length if there is
/// none.
pub(super) fn position_from(blocks: &VecDeque<PublishedBlock>, number: u64) -> usize {
    blocks.partition_point(|published| published.number() < number)
}

/// Blocks that were published, as far back as memory reaches.
#[derive(Debug)]
pub struct History {
    limit: usize,
    /// Bytes of all blocks in memory, and their bound; see [`weight`].
    bytes: usize,
    max_bytes: usize,
    /// Oldest first; each the parent of the next. Numbers ascend, and some have no block (Filecoin's null rounds, issue
    /// 11).
    canonical: VecDeque<PublishedBlock>,
    /// Blocks of abandoned branches, by hash; at most as many as canonical ones.
    dropped: HashMap<B256, PublishedBlock>,
    dropped_order: VecDeque<B256>,
    /// Sequence of the block published last.
    sequence: u64,
    /// Number of reorgs and of calls of [`Self::clear`].
    generation: u64,
    /// Block to which the chain went back, while no other block took the place of those above; see [`Self::rewind`].
    back_at: Option<BlockRef>,
}

/// Sequence before the first published block. Blocks added below count down, by as much as their numbers do: so the
/// sequence of a number is known before its block is ([`History::sequence_from`]), even if it has no block.
const FIRST: u64 = 1 << 32;

/// Blocks kept whatever their size: reorgs of a few blocks happen every day.
const FEW: usize = 16;

/// Approximate memory of a log in addition to its JSON, in bytes.
const LOG: usize = 256;

/// Returns the approximate memory of a block, in bytes.
fn weight(published: &PublishedBlock) -> usize {
    published.header.json.len() + published.logs.as_ref().map_or(0, |logs| weight_of_logs(logs))
}

fn weight_of_logs(logs: &BlockLogs) -> usize {
    logs.json_len() + LOG * logs.logs.len()
}

/// The chain went back to a block that is not in memory: delivered events can no longer be removed.
#[derive(Debug)]
pub(super) struct Forgotten;

impl History {
    /// Creates an empty history that keeps `limit` canonical blocks, and as many dropped ones.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            bytes: 0,
            max_bytes: usize::MAX,
            canonical: VecDeque::new(),
            dropped: HashMap::new(),
            dropped_order: VecDeque::new(),
            sequence: FIRST,
            generation: 0,
            back_at: None,
        }
    }

    /// Bounds the memory to `max_bytes`; the newest 16 blocks are kept whatever their size.
    #[must_use]
    pub fn within(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }

    /// Returns the approximate bytes of all blocks in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets the oldest blocks, dropped ones first, while all together exceed the bound in bytes. A reorg that deep
    /// is handled as one beyond memory.
    fn trim(&mut self) {
        while self.bytes > self.max_bytes {
            if let Some(oldest) = self.dropped_order.pop_front() {
                if !self.dropped_order.contains(&oldest) {
                    self.forget_dropped(&oldest);
                }
            } else if self.canonical.len() > FEW.min(self.limit)
                && let Some(oldest) = self.canonical.pop_front()
            {
                self.bytes -= weight(&oldest);
            } else {
                return;
            }
        }
    }

    fn forget_dropped(&mut self, hash: &B256) {
        if let Some(published) = self.dropped.remove(hash) {
            self.bytes -= weight(&published);
        }
    }

    /// Returns a number that changes when blocks are dropped or all are forgotten: then other caches of the chain may
    /// be stale.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the sequence of the first block whose logs are yet to be delivered to live subscriptions.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        let pending = self.tip().is_some_and(|tip| tip.awaits_logs);
        if pending { self.sequence } else { self.sequence + 1 }
    }

    /// Returns the sequence of the first block for a stream that began at number `first`; 0 for a stream that began
    /// with all.
    #[must_use]
    pub fn sequence_from(&self, first: u64) -> u64 {
        match (self.oldest(), self.from(first)) {
            _ if first == 0 && self.at(0).is_none() => 0,
            // The sequence that the block gets if it is added below the others.
            (Some(oldest), _) if first < oldest.number() => oldest.sequence.saturating_sub(oldest.number() - first),
            (_, Some(published)) => published.sequence,
            _ => self.next_sequence(),
        }
    }

    /// Returns the newest block.
    #[must_use]
    pub fn tip(&self) -> Option<&PublishedBlock> {
        self.canonical.back()
    }

    /// Returns the head of the node's chain: the tip, or a block below after the chain went back.
    #[must_use]
    pub fn head(&self) -> Option<BlockRef> {
        self.back_at.or_else(|| Some(self.tip()?.header.block))
    }

    /// Returns the oldest canonical block.
    #[must_use]
    pub fn oldest(&self) -> Option<&PublishedBlock> {
        self.canonical.front()
    }

    /// Returns the canonical block of this number.
    #[must_use]
    pub fn at(&self, number: u64) -> Option<&PublishedBlock> {
        self.from(number).filter(|published| published.number() == number)
    }

    /// Returns the first canonical block at or above this number, if it is in memory.
    #[must_use]
    pub fn from(&self, number: u64) -> Option<&PublishedBlock> {
        self.canonical.get(position_from(&self.canonical, number))
    }

    /// Returns the canonical blocks with numbers from `first` to `last`, both included, oldest first.
    pub fn between(&self, first: u64, last: u64) -> impl Iterator<Item = &PublishedBlock> {
        let begin = position_from(&self.canonical, first);
        let end = self.canonical.partition_point(|published| published.number() <= last);
        self.canonical.range(begin..end.max(begin))
    }

    /// Returns the lowest number at which a stream can begin with at most `blocks` canonical blocks above its first
    /// one. Blocks in memory are counted; below memory each number counts as one block. 0 if memory is empty.
    #[must_use]
    pub fn reach(&self, blocks: u64) -> u64 {
        let above = self.canonical.len().saturating_sub(1);
        let Some(oldest) = self.oldest() else { return 0 };
        let first = usize::try_from(blocks)
            .ok()
            .and_then(|blocks| above.checked_sub(blocks));
        match first {
            None => oldest.number().saturating_sub(blocks - above as u64),
            Some(0) => oldest.number(),
            // The numbers without a block below it lead to the same block.
            Some(first) => self.canonical[first - 1].number() + 1,
        }
    }

    /// Returns the blocks or logs that a stream at this number needs and memory lacks; `None` if memory is empty.
    #[must_use]
    pub fn gap(&self, number: u64) -> Option<Gap> {
        let oldest = self.oldest()?;
        if number < oldest.number() {
            return Some(Gap::Below(number, Box::new(oldest.header.clone())));
        }
        let first = position_from(&self.canonical, number);
        let lacking = self.canonical.range(first..);
        let lacking = lacking.take_while(|published| published.logs.is_none() && !published.awaits_logs);
        Some(Gap::Logs(
            lacking.take(Gap::MAX).map(|block| block.header.clone()).collect(),
        ))
    }

    /// Returns the blocks from this number on whose contents other than logs a stream needs; `None` if memory is empty.
    #[must_use]
    pub fn gap_of_contents(&self, number: u64) -> Option<Gap> {
        let oldest = self.oldest()?;
        if number < oldest.number() {
            return Some(Gap::Below(number, Box::new(oldest.header.clone())));
        }
        let ahead = self.canonical.range(position_from(&self.canonical, number)..);
        Some(Gap::Contents(
            ahead.take(Gap::MAX).map(|published| published.header.clone()).collect(),
        ))
    }

    /// Returns the newest canonical block that meets a condition.
    #[must_use]
    pub fn newest_where(&self, is_it: impl Fn(&PublishedBlock) -> bool) -> Option<&PublishedBlock> {
        self.canonical.iter().rev().find(|published| is_it(published))
    }

    /// Checks if this block is in memory, and is not canonical.
    #[must_use]
    pub fn is_dropped(&self, block: BlockRef) -> bool {
        let is_in_memory = self.oldest().is_some_and(|oldest| block.number >= oldest.number());
        is_in_memory && !self.is_canonical(block) && self.find(block.hash).is_some()
    }

    /// Checks if this block is canonical and in memory.
    #[must_use]
    pub fn is_canonical(&self, block: BlockRef) -> bool {
        self.at(block.number)
            .is_some_and(|published| published.header.block == block)
    }

    /// Checks if any block has a bloom that is not empty: some chains leave all blooms empty.
    #[must_use]
    pub fn has_blooms(&self) -> bool {
        self.canonical
            .iter()
            .rev()
            .any(|published| published.header.usable_bloom().is_some())
    }

    /// Returns the canonical or dropped block with this hash.
    #[must_use]
    pub fn find(&self, hash: B256) -> Option<&PublishedBlock> {
        let is_it = |published: &&PublishedBlock| published.header.block.hash == hash;
        self.dropped
            .get(&hash)
            .or_else(|| self.canonical.iter().rev().find(is_it))
    }

    /// Adds a head on top of [`Self::head`]; returns the dropped blocks that it replaces, oldest first. `None` if
    /// the head was published before: the chain went back, and adopts the same blocks again. A head that is not a child
    /// of the tip starts the history anew.
    pub(super) fn add_head(&mut self, header: Header) -> Option<Vec<PublishedBlock>> {
        let back_at = self.back_at.take();
        if let Some(back_at) = back_at
            && self
                .canonical
                .get(self.position_above(back_at.number))
                .is_some_and(|published| published.header.block == header.block)
        {
            self.stand_at(header.block);
            return None;
        }
        let dropped = back_at.map_or_else(Vec::new, |back_at| self.drop_above(back_at.number));
        if self.tip().is_some_and(|tip| !header.follows(tip.header.block)) {
            self.clear();
        }
        self.forget_dropped(&header.block.hash);
        self.sequence += 1;
        let published = PublishedBlock {
            header,
            logs: None,
            awaits_logs: false,
            lacks_logs: false,
            sequence: self.sequence,
        };
        self.bytes += weight(&published);
        self.canonical.push_back(published);
        while self.canonical.len() > self.limit
            && let Some(oldest) = self.canonical.pop_front()
        {
            self.bytes -= weight(&oldest);
        }
        self.trim();
        Some(dropped)
    }

    /// Stores the logs fetched for a canonical block.
    pub fn logs(&mut self, logs: Arc<BlockLogs>) {
        if let Some(published) = self.canonical_mut(logs.block.hash)
            && published.logs.is_none()
        {
            let bytes = weight_of_logs(&logs);
            published.logs = Some(logs);
            self.bytes += bytes;
            self.trim();
        }
    }

    /// Records that the logs of this block were delivered to live subscriptions.
    pub fn delivered_logs(&mut self, hash: B256) {
        if let Some(published) = self.canonical_mut(hash) {
            published.awaits_logs = false;
        }
    }

    /// Records that logs of this block are to be delivered to live subscriptions.
    pub fn await_logs(&mut self, hash: B256) {
        if let Some(published) = self.canonical_mut(hash) {
            published.awaits_logs = true;
        }
    }

    /// Records that no logs are to be delivered any more.
    pub fn await_no_logs(&mut self) {
        for published in &mut self.canonical {
            published.awaits_logs = false;
        }
    }

    /// Records that no node has the logs of this block.
    pub fn no_logs(&mut self, hash: B256) {
        if let Some(published) = self.canonical_mut(hash) {
            published.lacks_logs = true;
        }
    }

    /// Returns the headers of canonical blocks without logs, newest first, except blocks whose logs are being fetched
    /// or lost. A client that resumed may have their logs, and a reorg has to remove them.
    pub fn without_logs(&self) -> impl Iterator<Item = &Header> {
        let published = self.canonical.iter().rev();
        published
            .filter(|published| published.logs.is_none() && !published.awaits_logs && !published.lacks_logs)
            .map(|published| &published.header)
    }

    /// Stores logs that a replay fetched, except of blocks whose logs are being fetched for live subscriptions: if a
    /// block is dropped later, its delivered logs can be removed.
    pub fn fill(&mut self, page: &Page) {
        let Some(oldest) = self.oldest().map(PublishedBlock::number) else {
            return;
        };
        // Most pages lie below memory.
        let first = position_from(page.blocks(), oldest);
        for fetched in page.blocks().range(first..) {
            if let Some(logs) = &fetched.logs
                && let Some(published) = self.canonical_mut(logs.block.hash)
                && published.logs.is_none()
                && !published.awaits_logs
            {
                published.logs = Some(logs.clone());
                self.bytes += weight_of_logs(logs);
            }
        }
        self.trim();
    }

    fn canonical_mut(&mut self, hash: B256) -> Option<&mut PublishedBlock> {
        self.canonical
            .iter_mut()
            .rev()
            .find(|published| published.header.block.hash == hash)
    }

    /// Checks if the node's chain has this published block: it is canonical, or older than memory, and the chain did
    /// not go back below it.
    #[must_use]
    pub fn stands(&self, block: BlockRef) -> bool {
        let is_old = self
            .oldest()
            .is_some_and(|oldest| block.number < oldest.header.block.number);
        (is_old || self.is_canonical(block)) && self.head().is_some_and(|at| block.number <= at.number)
    }

    /// Adds a block below the oldest; ignored if it is not the parent of the oldest, or if there is no room.
    pub(super) fn past(&mut self, header: Header) {
        let number = header.block.number;
        let child = self.oldest();
        let child = child.filter(|oldest| self.standing() < self.limit && oldest.header.follows(header.block));
        if let Some(child) = child {
            let was_published = child.sequence > FIRST + 1;
            let below = if was_published { 1 } else { child.number() - number };
            let sequence = child.sequence.saturating_sub(below);
            let published = PublishedBlock {
                header,
                logs: None,
                awaits_logs: false,
                lacks_logs: false,
                sequence,
            };
            if self.bytes + weight(&published) <= self.max_bytes {
                self.bytes += weight(&published);
                self.canonical.push_front(published);
            }
        }
    }

    /// Records that the chain went back to this block. Nothing is dropped before a head shows which blocks take its
    /// place ([`Self::head`]): a restored node, or one behind a balancer, goes back and adopts the same blocks again,
    /// and no client should get these twice. Nodes are silent about a rewind, too: they announce heads, never the lack
    /// of one.
    ///
    /// # Errors
    /// [`Forgotten`] if the block is not a canonical block in memory.
    pub(super) fn rewind(&mut self, to: BlockRef) -> Result<(), Forgotten> {
        if !self.is_canonical(to) {
            return Err(Forgotten);
        }
        self.stand_at(to);
        Ok(())
    }

    fn stand_at(&mut self, block: BlockRef) {
        self.back_at = Some(block).filter(|block| self.tip().is_some_and(|tip| tip.header.block != *block));
    }

    /// Returns the number of blocks up to [`Self::head`]; those above do not count towards the limit, like dropped
    /// ones.
    fn standing(&self) -> usize {
        self.head().map_or(0, |at| self.position_above(at.number))
    }

    /// Returns the index of the first block above this number.
    fn position_above(&self, number: u64) -> usize {
        self.canonical.partition_point(|published| published.number() <= number)
    }

    fn drop_above(&mut self, number: u64) -> Vec<PublishedBlock> {
        self.generation += 1;
        let keep = self.position_above(number);
        let dropped: Vec<PublishedBlock> = self.canonical.drain(keep..).collect();
        for published in &dropped {
            let hash = published.header.block.hash;
            match self.dropped.insert(hash, published.clone()) {
                None => self.dropped_order.push_back(hash),
                Some(before) => self.bytes -= weight(&before),
            }
        }
        // The order may list blocks that were adopted again, so fewer blocks than the limit may be kept, never more.
        while self.dropped_order.len() > self.limit
            && let Some(oldest) = self.dropped_order.pop_front()
        {
            if !self.dropped_order.contains(&oldest) {
                self.forget_dropped(&oldest);
            }
        }
        dropped
    }

    /// Forgets all blocks: the next head is not connected with them.
    pub(super) fn clear(&mut self) {
        self.generation += 1;
        self.back_at = None;
        self.bytes = 0;
        self.canonical.clear();
        self.dropped.clear();
        self.dropped_order.clear();
    }
}

#[cfg(test)]
mod tests;
