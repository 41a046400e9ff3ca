//! One level of finality: the subscribers whose streams wait for it, and the walk that delivers each block to all of
//! them once it has reached the level. No I/O.
//!
//! The walk trails the head. A reorg of blocks that it has delivered ends the streams of the level; only the walk of the
//! head itself goes back, and has its blocks taken back. Blocks come from memory, or from a page that the nodes gave;
//! contents that memory lacks are fetched for the next few blocks, once for all subscribers. A block is delivered whole:
//! head, logs, transactions, receipts (E3).

mod contents;
mod delivery;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use alloy_primitives::B256;
use slab::Slab;

pub(super) use self::delivery::WholeBlock;
use super::block_table::{BlockSlot, BlockTable};
use super::marked::MarkedStreams;
use super::subscriber::{ClientKey, Subscriber};
use super::{Index, LogIndex, LogSlot, ReceiptFilter, Slot, Stream, TransactionFilter};
use crate::chain::{BlockRef, Content, ContentKind, Cursor, Gap, Header, History, Needs, Next, Page, SentExtent};
use crate::clock::Moment;
use crate::delivery::SubscriptionId;
use crate::shares::Owner;

/// Source of the number up to which blocks have a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Basis {
    /// Not known yet.
    #[default]
    Unknown,
    /// Tag of the node in use.
    Tag,
    /// Depth below the head, as a client or the settings say.
    Depth,
    /// None: the node has no block of this tag, and the settings give no depth.
    Absent,
}

/// Subscribers of one level, and their place in the chain.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// Account that subscribed first.
    opener: Option<Owner>,
    /// Number after the last block that has reached the level.
    end: Option<u64>,
    basis: Basis,
    /// Block of the node's tag above the published head: it proves something once the chain has it.
    tagged_ahead: Option<BlockRef>,
    walk: Option<Walk>,
    heads: Slab<Subscriber>,
    logs: LogIndex<Subscriber>,
    mined: Index<TransactionFilter, Subscriber>,
    receipts: Index<ReceiptFilter, Subscriber>,
    blocks: BlockTable,
    /// Members that get server-sent events, and the position behind every block.
    marked: MarkedStreams,
    members: HashMap<SubscriptionId, Member>,
    /// Members whose answer was not queued yet when the last block was delivered.
    unanswered: Vec<Subscriber>,
    /// Subscriptions of the level that replay before they join.
    pub replaying: usize,
    page: Page,
    is_fetching: bool,
    /// Fetches of the same page in a row that did not lead on.
    tries: u32,
    /// Contents of the next blocks that memory does not keep.
    fetched: HashMap<(B256, ContentKind), Content>,
    awaited: Vec<(ContentKind, Header)>,
    /// Time since when the next block has waited for contents.
    pub waiting_since: Option<Moment>,
}

/// Place of a walk.
#[derive(Debug)]
struct Walk {
    /// Number of the next block: all blocks below were delivered, or were there when the walk began.
    next: u64,
    cursor: Cursor,
}

/// Place of a walk, for the streams that join it.
#[derive(Clone, Copy, Debug)]
pub(super) struct WalkPlace {
    /// Number of the next block.
    pub next: u64,
    /// Block that was delivered last; `None` before the first one.
    pub behind: Option<BlockRef>,
}

/// Member of a trail: the subscriber's place in its table, and the stream with which it leaves for a replay.
#[derive(Debug)]
struct Member {
    client: ClientKey,
    slot: TrailSlot,
    stream: Stream,
}

#[derive(Clone, Copy, Debug)]
enum TrailSlot {
    Heads(usize),
    Logs(LogSlot),
    Mined(Slot),
    Receipts(Slot),
    Blocks(BlockSlot),
}

/// Next step of a walk.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing to do before the next head, tag, page or contents.
    Idle,
    /// The walk begins; from now on the level's place is known.
    Begin,
    /// Deliver this block.
    Deliver(WholeBlock),
    /// Fetch contents: [`Trail::awaited`] has changed.
    Await,
    /// Fetch blocks older than memory. After a page that does not lead on, some time later.
    Fetch(Gap, Retry),
    /// The chain no longer has the block that was delivered last.
    Broken,
}

/// Reason to fetch a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// The first page from this block on.
    First,
    /// The page before did not lead on.
    Again,
}

impl Trail {
    /// Creates a trail that `owner` subscribed to first.
    pub(super) fn opened_by(owner: Owner) -> Self {
        Self {
            opener: Some(owner),
            ..Self::default()
        }
    }

    pub(super) fn opener(&self) -> Option<Owner> {
        self.opener
    }

    // ---- members

    /// Adds a member. `first` is the number of the first block that it has or gets; `None` for the next one.
    pub(super) fn join(&mut self, stream: Stream, subscriber: Subscriber, first: Option<u64>) {
        let first = first.or(self.next());
        subscriber.recipient.begin(first.unwrap_or(u64::MAX));
        let (id, client) = (subscriber.recipient.id(), subscriber.writer.id());
        if !subscriber.recipient.is_answered() {
            self.unanswered.push(subscriber.clone());
        }
        self.marked.insert(stream.kind(), &subscriber);
        let slot = match stream.clone() {
            Stream::Heads => TrailSlot::Heads(self.heads.insert(subscriber)),
            Stream::Logs(filter) => TrailSlot::Logs(self.logs.insert(Arc::unwrap_or_clone(filter), subscriber)),
            Stream::Mined(filter) => TrailSlot::Mined(self.mined.insert(filter, subscriber)),
            Stream::Receipts(filter) => TrailSlot::Receipts(self.receipts.insert(filter, subscriber)),
            Stream::Blocks(filter) => TrailSlot::Blocks(self.blocks.insert(filter, subscriber)),
        };
        self.members.insert(id, Member { client, slot, stream });
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) -> Option<(Stream, Subscriber)> {
        let Member { slot, stream, .. } = self.members.remove(&id)?;
        self.unanswered.retain(|own| own.recipient.id() != id);
        self.marked.remove(id);
        let subscriber = match slot {
            TrailSlot::Heads(at) => self.heads.try_remove(at),
            TrailSlot::Logs(slot) => self.logs.remove(slot),
            TrailSlot::Mined(slot) => self.mined.remove(slot),
            TrailSlot::Receipts(slot) => self.receipts.remove(slot),
            TrailSlot::Blocks(slot) => self.blocks.remove(slot),
        };
        Some((stream, subscriber?))
    }

    /// Removes the members of these clients, and returns them with the place behind which each of them is.
    pub(super) fn leave(&mut self, clients: &BTreeSet<ClientKey>) -> Vec<(Stream, Subscriber, Cursor)> {
        let Some(cursor) = self.walk.as_ref().filter(|_| !clients.is_empty()) else {
            return Vec::new();
        };
        let cursor = cursor.cursor.clone();
        let members = self.members.iter();
        let leaving = members.filter(|(_, member)| clients.contains(&member.client));
        let leaving: Vec<SubscriptionId> = leaving.map(|(id, _)| *id).collect();
        let removed = leaving.into_iter().filter_map(|id| self.remove(id));
        removed
            .map(|(stream, subscriber)| {
                let first = subscriber.recipient.since();
                (stream, subscriber, cursor.clone().began_at(first))
            })
            .collect()
    }

    pub(super) fn is_unused(&self) -> bool {
        self.members.is_empty() && self.replaying == 0
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.members.len() + self.replaying
    }

    pub(super) fn subscribers(&self) -> impl Iterator<Item = &Subscriber> {
        let heads = self.heads.iter().map(|(_, subscriber)| subscriber);
        heads
            .chain(self.logs.iter())
            .chain(self.mined.iter())
            .chain(self.receipts.iter())
            .chain(self.blocks.iter())
    }

    /// Returns the subscribers that need these contents.
    pub(super) fn subscribers_to(&self, kind: ContentKind) -> Box<dyn Iterator<Item = &Subscriber> + '_> {
        match kind {
            ContentKind::Logs => Box::new(self.logs.iter().chain(self.blocks.iter())),
            ContentKind::Transactions => {
                let including = self.blocks.including(|include| include.transactions);
                Box::new(self.mined.iter().chain(including))
            }
            ContentKind::Receipts => {
                let including = self.blocks.including(|include| include.receipts);
                Box::new(self.receipts.iter().chain(including))
            }
        }
    }

    // ---- the level

    /// Returns the number of the next block; `None` until the walk has begun.
    pub(super) fn next(&self) -> Option<u64> {
        self.walk.as_ref().map(|walk| walk.next)
    }

    /// Returns the place of the walk; `None` until it has begun.
    pub(super) fn place(&self) -> Option<WalkPlace> {
        self.walk.as_ref().map(|walk| WalkPlace {
            next: walk.next,
            behind: walk.cursor.is_behind(),
        })
    }

    /// Returns the extent of the walk.
    pub(super) fn extent(&self) -> Option<SentExtent> {
        self.walk.as_ref()?.cursor.sent_extent()
    }

    pub(super) fn basis(&self) -> Basis {
        self.basis
    }

    /// Records that blocks below `end` have reached the level; a lower number than before changes nothing.
    pub(super) fn reach(&mut self, end: u64, basis: Basis) {
        self.end = self.end.max(Some(end));
        self.basis = basis;
    }

    /// Records that a node gives this block the level, which is above the published head: the node may have left this
    /// chain. The lowest of these counts, so that a tag that is always one block ahead holds nothing up.
    pub(super) fn reach_later(&mut self, block: BlockRef) {
        self.tagged_ahead.take_if(|before| before.number > block.number);
        self.tagged_ahead.get_or_insert(block);
    }

    /// Has the level reach a block that was tagged before the published chain had it, and returns the block.
    pub(super) fn catch_up_with_tag(&mut self, history: &History, head: u64) -> Option<BlockRef> {
        let tagged = self.tagged_ahead.take_if(|block| block.number <= head)?;
        let block = Some(tagged).filter(|block| history.is_canonical(*block))?;
        self.reach(block.number.saturating_add(1), Basis::Tag);
        Some(block)
    }

    /// Records that no block has the level, unless some had it before.
    pub(super) fn lack(&mut self) {
        if self.end.is_none() {
            self.basis = Basis::Absent;
        }
    }

    /// Checks if a reorg that drops the blocks from number `first` on dropped what was delivered. Otherwise the blocks of
    /// the new branch, from number `end` on, have yet to reach the level.
    pub(super) fn is_broken_by(&mut self, end: u64, first: u64) -> bool {
        self.end = self.end.map(|before| before.min(end));
        // Contents of dropped blocks are never asked for again.
        self.fetched.clear();
        self.awaited.clear();
        let Some(walk) = &mut self.walk else { return false };
        let ahead = walk.cursor.first_ahead();
        if first < ahead {
            return true;
        }
        // The new branch may have blocks of numbers that the old one left out, also where the walk was yet to begin.
        let next = ahead.min(end);
        if walk.cursor.is_before().is_some_and(|first| first > next) {
            walk.cursor = Cursor::from(next);
        }
        walk.next = next;
        self.include_from(next);
        false
    }

    /// Goes back behind this block, to which a reorg dropped what was delivered.
    pub(super) fn rewind(&mut self, fork: BlockRef) {
        let next = fork.number.saturating_add(1);
        let cursor = Cursor::behind(fork, None);
        self.walk = Some(Walk { next, cursor });
        self.include_from(next);
        self.awaited.clear();
        self.fetched.clear();
    }

    /// Records that members which began above this number get the blocks from there on, which may be dropped in their turn.
    fn include_from(&self, next: u64) {
        let above = self.subscribers().filter(|own| own.recipient.since() > next);
        above.for_each(|own| own.recipient.begin(next));
    }

    /// Forgets the place: the chain is another one.
    pub(super) fn reset(&mut self) {
        (self.end, self.walk, self.basis) = (None, None, Basis::Unknown);
        self.tagged_ahead = None;
        self.waiting_since = None;
        (self.page, self.tries) = (Page::default(), 0);
        self.fetched.clear();
        self.awaited.clear();
    }

    // ---- the walk

    /// Returns the next step. After [`Step::Deliver`] the walk stands behind that block.
    pub(super) fn step(&mut self, history: &History) -> Step {
        let (Some(head), Some(end)) = (history.head(), self.end) else {
            return Step::Idle;
        };
        // A node may lie about its tag, and after a rewind the chain may change.
        let end = end.min(head.number.saturating_add(1));
        let Some(walk) = &mut self.walk else {
            // Behind a block, streams that resume join by its hash.
            let below = end.checked_sub(1).and_then(|last| history.between(0, last).last());
            let cursor = below.map_or_else(|| Cursor::from(end), |own| Cursor::behind(own.header.block, None));
            self.walk = Some(Walk { next: end, cursor });
            let waiting = self.subscribers().filter(|own| own.recipient.since() == u64::MAX);
            waiting.for_each(|own| own.recipient.begin(end));
            return Step::Begin;
        };
        // The one comparison per head for all who share the level.
        if walk.next >= end {
            return Step::Idle;
        }
        let next = walk.cursor.next(history, &self.page, Needs::Headers);
        match &next {
            Next::Block(own) if own.number() < end => {
                let (header, logs) = (own.header.clone(), own.logs.clone());
                let awaits_logs = own.awaits_logs;
                let Some(whole) = self.whole(header, logs) else {
                    return self.lacking(history, awaits_logs, end);
                };
                if let Some(walk) = &mut self.walk {
                    walk.cursor.record_sent(&next);
                    walk.next = whole.header.block.number.saturating_add(1);
                }
                self.tries = 0;
                self.awaited.clear();
                let more = self.next().is_some_and(|next| next < end);
                if !more {
                    self.page = Page::default();
                }
                Step::Deliver(WholeBlock { more, ..whole })
            }
            // No block has a number in between.
            Next::Block(_) => {
                walk.next = end;
                Step::Idle
            }
            Next::Below(_) if !self.is_fetching => self.fetch(history, Retry::First),
            Next::Lost(_) | Next::Retraction(_) | Next::Rest(..) if !self.is_fetching => {
                self.fetch(history, Retry::Again)
            }
            _ => Step::Idle,
        }
    }

    fn fetch(&mut self, history: &History, retry: Retry) -> Step {
        let next = self.walk.as_ref().map(|walk| walk.cursor.first_ahead());
        match next.and_then(|next| history.gap(next)) {
            Some(gap @ Gap::Below(..)) => {
                self.is_fetching = true;
                let retry = if self.tries > 0 { Retry::Again } else { retry };
                Step::Fetch(gap, retry)
            }
            // The block is in memory, and does not follow the one that was delivered last.
            Some(_) if retry == Retry::Again => Step::Broken,
            _ => Step::Idle,
        }
    }

    /// Takes the page that was fetched; returns the number of pages in a row that did not lead on.
    pub(super) fn fetched_page(&mut self, page: Page) -> u32 {
        (self.page, self.is_fetching) = (page, false);
        self.tries += 1;
        self.tries
    }
}

#[cfg(test)]
mod tests;
