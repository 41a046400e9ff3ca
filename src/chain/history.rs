//! The chain as it was published: recent blocks with their headers and logs, dropped branches included, and how to go on
//! from any place in it. No I/O, no clock.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use alloy_primitives::B256;

use super::{BlockLogs, BlockRef, Header};

/// A block that was published.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its header.
    pub header: Header,
    /// Its logs; `None` where they were not fetched, or not yet.
    pub logs: Option<Arc<BlockLogs>>,
    /// Its logs are still to be delivered to live subscriptions: a stream that resumes waits for them, or joins before them.
    pub awaits_logs: bool,
    /// Grows by one from block to block as they are published, across reorgs too.
    pub sequence: u64,
}

/// The blocks that were published, as far back as memory reaches.
#[derive(Debug)]
pub struct History {
    limit: usize,
    /// Oldest first; each the parent of the next.
    canonical: VecDeque<Published>,
    /// Blocks of branches that were left, by hash; as many as there are canonical ones at most.
    dropped: HashMap<B256, Published>,
    dropped_order: VecDeque<B256>,
    /// Of the block that was published last.
    sequence: u64,
    /// Counts what was taken back.
    generation: u64,
    /// The chain went back to this block, and no other has taken the place of those above it: see [`Self::rewind`].
    back_at: Option<BlockRef>,
}

/// Where the sequence begins: blocks that are added below the first one count down from it.
const FIRST: u64 = 1 << 32;

/// The chain went back to a block that is not known: what was sent can no longer be taken back.
#[derive(Debug)]
pub struct Forgotten;

impl History {
    /// Keeps `limit` canonical blocks, and as many dropped ones.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            canonical: VecDeque::new(),
            dropped: HashMap::new(),
            dropped_order: VecDeque::new(),
            sequence: FIRST,
            generation: 0,
            back_at: None,
        }
    }

    /// Another one where blocks were dropped or forgotten since: what is known of the chain elsewhere may be stale.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The sequence of the first block whose logs are still to be published.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        let pending = self.tip().is_some_and(|tip| tip.awaits_logs);
        if pending { self.sequence } else { self.sequence + 1 }
    }

    /// The sequence from which on a stream has been told everything that began with this block; 0 is everything.
    #[must_use]
    pub fn sequence_from(&self, first: u64) -> u64 {
        match (self.oldest(), self.at(first)) {
            (_, Some(own)) => own.sequence,
            (_, None) if first == 0 => 0,
            // The sequence that it has if it is added below the others.
            (Some(oldest), None) if first < oldest.header.block.number => {
                oldest.sequence.saturating_sub(oldest.header.block.number - first)
            }
            _ => self.next_sequence(),
        }
    }

    /// The newest block.
    #[must_use]
    pub fn tip(&self) -> Option<&Published> {
        self.canonical.back()
    }

    /// Where the node's chain stands: at the tip, or below it where it went back ([`Self::rewind`]).
    #[must_use]
    pub fn stands_at(&self) -> Option<BlockRef> {
        self.back_at.or_else(|| Some(self.tip()?.header.block))
    }

    /// The oldest canonical block.
    #[must_use]
    pub fn oldest(&self) -> Option<&Published> {
        self.canonical.front()
    }

    /// The canonical block of this number.
    #[must_use]
    pub fn at(&self, number: u64) -> Option<&Published> {
        let first = self.canonical.front()?.header.block.number;
        self.canonical.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// Whether this block is canonical, as far as memory reaches.
    #[must_use]
    pub fn is_canonical(&self, block: BlockRef) -> bool {
        self.at(block.number).is_some_and(|own| own.header.block == block)
    }

    /// Whether any block has a bloom that is not empty: some chains leave all of them so.
    #[must_use]
    pub fn has_blooms(&self) -> bool {
        self.canonical
            .iter()
            .rev()
            .any(|own| own.header.telling_bloom().is_some())
    }

    /// The canonical or dropped block with this hash.
    #[must_use]
    pub fn find(&self, hash: B256) -> Option<&Published> {
        self.dropped
            .get(&hash)
            .or_else(|| self.canonical.iter().rev().find(|own| own.header.block.hash == hash))
    }

    /// A head on top of where the chain stands; the blocks whose place it takes, oldest first. `None` where it was
    /// published before: the chain went back, and comes the same way again. One that is on top of nothing known starts
    /// anew.
    pub fn head(&mut self, header: Header) -> Option<Vec<Published>> {
        let back_at = self.back_at.take();
        if let Some(back_at) = back_at
            && self
                .at(back_at.number + 1)
                .is_some_and(|own| own.header.block == header.block)
        {
            self.stand_at(header.block);
            return None;
        }
        let dropped = back_at.map_or_else(Vec::new, |back_at| self.drop_above(back_at.number));
        if self.tip().is_some_and(|tip| tip.header.block.hash != header.parent) {
            self.clear();
        }
        self.dropped.remove(&header.block.hash);
        self.sequence += 1;
        self.canonical.push_back(Published {
            header,
            logs: None,
            awaits_logs: false,
            sequence: self.sequence,
        });
        while self.canonical.len() > self.limit {
            self.canonical.pop_front();
        }
        Some(dropped)
    }

    /// The logs of a canonical block were fetched.
    pub fn logs(&mut self, logs: Arc<BlockLogs>) {
        if let Some(own) = self.canonical_mut(logs.block.hash) {
            own.logs.get_or_insert(logs);
        }
    }

    /// The logs of this block were delivered to live subscriptions.
    pub fn delivered_logs(&mut self, hash: B256) {
        if let Some(own) = self.canonical_mut(hash) {
            own.awaits_logs = false;
        }
    }

    /// Logs of this block are to be delivered to live subscriptions.
    pub fn await_logs(&mut self, hash: B256) {
        if let Some(own) = self.canonical_mut(hash) {
            own.awaits_logs = true;
        }
    }

    /// No logs are to be delivered any more.
    pub fn await_no_logs(&mut self) {
        for own in &mut self.canonical {
            own.awaits_logs = false;
        }
    }

    /// Keeps logs that a replay has fetched, of blocks whose logs are not on their way already: where such a block is dropped
    /// later, what was delivered of it can be taken back.
    pub fn fill(&mut self, page: &VecDeque<Published>) {
        for fetched in page {
            if let Some(logs) = &fetched.logs
                && let Some(own) = self.canonical_mut(logs.block.hash)
                && own.logs.is_none()
                && !own.awaits_logs
            {
                own.logs = Some(logs.clone());
            }
        }
    }

    fn canonical_mut(&mut self, hash: B256) -> Option<&mut Published> {
        self.canonical
            .iter_mut()
            .rev()
            .find(|own| own.header.block.hash == hash)
    }

    /// Whether the node's chain has this block, which was published: it is canonical, or so old that it was forgotten as
    /// such, and the chain did not go back below it.
    #[must_use]
    pub fn stands(&self, block: BlockRef) -> bool {
        let is_old = self
            .oldest()
            .is_some_and(|oldest| block.number < oldest.header.block.number);
        (is_old || self.is_canonical(block)) && self.stands_at().is_some_and(|at| block.number <= at.number)
    }

    /// A block below the oldest; one that is not its parent is left out.
    pub fn past(&mut self, header: Header) {
        let child = self
            .oldest()
            .filter(|oldest| self.standing() < self.limit && oldest.header.parent == header.block.hash)
            .map(|oldest| oldest.sequence);
        if let Some(child) = child {
            self.canonical.push_front(Published {
                header,
                logs: None,
                awaits_logs: false,
                sequence: child - 1,
            });
        }
    }

    /// The chain went back to this block. Nothing is dropped before a head says what takes its place ([`Self::head`]): a
    /// node that was restored, or one behind a balancer, goes back and comes the same way again, and nobody should be told
    /// the same blocks twice. A node itself is silent about it, too: it announces heads, never the lack of one.
    ///
    /// # Errors
    /// [`Forgotten`].
    pub fn rewind(&mut self, to: BlockRef) -> Result<(), Forgotten> {
        if !self.is_canonical(to) {
            return Err(Forgotten);
        }
        self.stand_at(to);
        Ok(())
    }

    fn stand_at(&mut self, block: BlockRef) {
        self.back_at = Some(block).filter(|block| self.tip().is_some_and(|tip| tip.header.block != *block));
    }

    /// How many blocks there are up to where the chain stands; those above are on top of the limit, as dropped ones are.
    fn standing(&self) -> usize {
        let above = self.tip().zip(self.stands_at());
        let above = above.map_or(0, |(tip, at)| tip.header.block.number - at.number);
        self.canonical.len().saturating_sub(above as usize)
    }

    fn drop_above(&mut self, number: u64) -> Vec<Published> {
        self.generation += 1;
        let first = self.canonical.front().map_or(0, |own| own.header.block.number);
        let keep = (number - first + 1) as usize;
        let dropped: Vec<Published> = self.canonical.drain(keep..).collect();
        for own in &dropped {
            let hash = own.header.block.hash;
            if self.dropped.insert(hash, own.clone()).is_none() {
                self.dropped_order.push_back(hash);
            }
        }
        // The order may name blocks that came back; they make the memory shorter than the limit, not longer.
        while self.dropped_order.len() > self.limit
            && let Some(oldest) = self.dropped_order.pop_front()
        {
            if !self.dropped_order.contains(&oldest) {
                self.dropped.remove(&oldest);
            }
        }
        dropped
    }

    /// Forgets everything: what follows has no connection with it.
    pub fn clear(&mut self) {
        self.generation += 1;
        self.back_at = None;
        self.canonical.clear();
        self.dropped.clear();
        self.dropped_order.clear();
    }
}
