//! The tables of subscriptions, and the effect of each event on them. All of them are behind the registry's lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use alloy_primitives::B256;
use bytes::Bytes;
use slab::Slab;
use tokio::time::Instant;

use super::best_effort::RecentHashes;
use super::contents::Streams;
use super::cooldown::Cooldown;
use super::flush::DirtyClients;
use super::gate::{Gate, Position};
use super::head_slices::HeadSubscribers;
use super::marked::MarkedStreams;
use super::passthrough::{PassthroughFull, PassthroughSubscribers};
use super::replay_group::{GroupKey, ReplayGroup};
use super::subscriber::Subscriber;
use super::trails::Trails;
use super::{Index, Level, LogIndex, LogSlot, ReceiptFilter, Slot, Stream, Topic, TransactionFilter, event_id};
use crate::backplane::{TransactionForm, Wanted};
use crate::chain::{ContentKind, PublishedWriter, Transaction};
use crate::clock::Moment;
use crate::delivery::{Batch, Event, Kind, SubscriptionId};

#[derive(Clone, Copy, Debug)]
pub(super) enum IndexSlot {
    Heads(usize),
    Logs(LogSlot),
    PendingHashes(usize),
    Pending(Slot),
    Syncing(usize),
    Mined(Slot),
    Receipts(Slot),
    Passthrough,
    /// Replaying, or joined to the live stream or a trail (`Tables::joined`).
    Resumed(Kind, GroupKey),
    /// Member of the trail of a level.
    Trail(Kind, Level),
}

impl IndexSlot {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Heads(_) => Kind::Heads,
            Self::Logs(_) => Kind::Logs,
            Self::PendingHashes(_) | Self::Pending(_) => Kind::Pending,
            Self::Syncing(_) => Kind::Syncing,
            Self::Mined(_) => Kind::Mined,
            Self::Receipts(_) => Kind::Receipts,
            Self::Passthrough => Kind::Passthrough,
            Self::Resumed(kind, _) | Self::Trail(kind, _) => kind,
        }
    }
}

/// Tables of live and replaying subscriptions, and the state that the fan-out needs.
#[derive(Debug)]
pub(super) struct Tables {
    pub heads: HeadSubscribers,
    pub logs: LogIndex<Subscriber>,
    /// Subscribers that get the node's own stream of hashes, unfiltered.
    pub pending_hashes: Slab<Subscriber>,
    /// Subscribers that need whole transactions, to be delivered or to be matched.
    pub pending: Index<TransactionFilter, Subscriber>,
    /// Subscriptions in the two tables above that the node has accepted.
    pub accepted_pending: HashSet<SubscriptionId>,
    pub syncing: Slab<Subscriber>,
    pub mined: Index<TransactionFilter, Subscriber>,
    /// Transactions delivered to subscriptions with `includeRemoved`, by the sequence of their block; kept for as
    /// many blocks as the history.
    pub mined_sent: BTreeMap<u64, Vec<Transaction>>,
    pub receipts: Index<ReceiptFilter, Subscriber>,
    /// Blocks whose contents are still to be delivered, by kind of contents.
    pub streams: Streams,
    pub gate: Gate,
    /// `true` while a resumed client may have logs that memory lacks: the logs of every block in memory are needed
    /// for removals.
    pub takes_back: bool,
    /// Moment until which logs of new blocks are fetched even without subscribers; `None` before the first logs
    /// subscription.
    pub logs_fresh_until: Option<Moment>,
    /// Cool-down per kind of contents, after no node gave those of a block.
    pub refusals: [Cooldown; ContentKind::ALL.len()],
    pub passing: PassthroughSubscribers,
    /// Live subscribers of server-sent events that get the position behind every block.
    pub marked: MarkedStreams,
    /// The node's latest sync state, for new subscribers: its JSON and the event.
    pub sync_state: Option<(Bytes, Arc<Batch>)>,
    /// Published chain, which changes in step with the tables.
    pub published: PublishedWriter,
    /// Subscriptions that replay before they join the live stream or a trail, by client and level.
    pub replays: HashMap<GroupKey, ReplayGroup>,
    pub trails: Trails,
    /// Places of subscriptions that have joined the live stream or a trail, or have left a trail for a replay.
    pub joined: HashMap<SubscriptionId, IndexSlot>,
    pub seen_pending: RecentHashes,
    /// `true` if clients may agree on compression.
    pub compresses: bool,
}

impl Tables {
    /// Builds empty tables that follow this chain.
    pub(super) fn new(published: PublishedWriter, compresses: bool) -> Self {
        Self {
            heads: HeadSubscribers::default(),
            logs: LogIndex::default(),
            pending_hashes: Slab::new(),
            pending: Index::default(),
            accepted_pending: HashSet::new(),
            syncing: Slab::new(),
            mined: Index::default(),
            mined_sent: BTreeMap::new(),
            receipts: Index::default(),
            streams: Streams::default(),
            gate: Gate::default(),
            takes_back: false,
            logs_fresh_until: None,
            refusals: Default::default(),
            passing: PassthroughSubscribers::default(),
            marked: MarkedStreams::default(),
            sync_state: None,
            published,
            replays: HashMap::new(),
            trails: Trails::default(),
            joined: HashMap::new(),
            seen_pending: RecentHashes::default(),
            compresses,
        }
    }

    /// Adds a live subscription.
    ///
    /// # Errors
    /// [`PassthroughFull`] if more than `max_passthrough` different subscriptions would be passed through, or the account's share is
    /// used up.
    pub(super) fn insert(
        &mut self,
        topic: Topic,
        subscriber: Subscriber,
        max_passthrough: usize,
    ) -> Result<IndexSlot, PassthroughFull> {
        let writer = subscriber.writer.clone();
        let place = match topic {
            Topic::Chain(stream, _) => return Ok(self.join(stream, subscriber)),
            Topic::Trailing(level, stream, _) => {
                let kind = stream.kind();
                self.trails.of(level, writer.owner()).join(stream, subscriber, None);
                return Ok(IndexSlot::Trail(kind, level));
            }
            Topic::Pending(filter) => match filter.source() {
                TransactionForm::Hash => IndexSlot::PendingHashes(self.pending_hashes.insert(subscriber)),
                TransactionForm::Full => IndexSlot::Pending(self.pending.insert(filter, subscriber)),
            },
            Topic::Syncing => IndexSlot::Syncing(self.syncing.insert(subscriber)),
            Topic::Mined(filter) => IndexSlot::Mined(self.mined.insert(filter, subscriber)),
            Topic::Receipts(filter) => {
                self.marked.insert(Kind::Receipts, &subscriber);
                IndexSlot::Receipts(self.receipts.insert(filter, subscriber))
            }
            Topic::Passthrough(passed, _) => {
                self.passing.insert(passed, subscriber, max_passthrough)?;
                IndexSlot::Passthrough
            }
        };
        writer.joined(place.kind());
        Ok(place)
    }

    /// Removes and returns a subscription; `None` if it is gone already.
    pub(super) fn remove(&mut self, place: IndexSlot, id: SubscriptionId) -> Option<Subscriber> {
        match place {
            IndexSlot::Resumed(_, key) => return self.leave_replay(key, id),
            IndexSlot::Trail(_, level) => return self.trails.remove(level, id),
            _ => {}
        }
        let gone = match place {
            IndexSlot::Heads(at) => self.heads.remove(at),
            IndexSlot::Logs(slot) => self.logs.remove(slot),
            // A refused subscription is removed before its session knows, and another one may have taken its place.
            IndexSlot::PendingHashes(at) => {
                self.accepted_pending.remove(&id);
                let is_own = self.pending_hashes.get(at).is_some_and(|own| own.recipient.id() == id);
                is_own.then(|| self.pending_hashes.remove(at))
            }
            IndexSlot::Pending(slot) => {
                self.accepted_pending.remove(&id);
                let is_own = self.pending.get(slot).is_some_and(|own| own.recipient.id() == id);
                is_own.then(|| self.pending.remove(slot)).flatten()
            }
            IndexSlot::Syncing(at) => self.syncing.try_remove(at),
            IndexSlot::Mined(slot) => self.mined.remove(slot),
            IndexSlot::Receipts(slot) => self.receipts.remove(slot),
            IndexSlot::Passthrough | IndexSlot::Resumed(..) | IndexSlot::Trail(..) => self.passing.remove(id),
        }?;
        gone.writer.left(place.kind());
        self.marked.remove(id);
        self.gate.forget(gone.writer.id(), id);
        Some(gone)
    }

    /// Queues events at the gate that need not wait any longer.
    pub(super) fn release(&mut self, due: &mut DirtyClients, now: Moment) {
        self.gate.release(&self.fronts(), due, now);
    }

    /// Returns the subscriptions needed at the nodes besides heads.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            pending_hashes: !self.pending_hashes.is_empty(),
            pending_full: !self.pending.is_empty(),
            syncing: !self.syncing.is_empty(),
            passed: self.passing.wanted(),
        }
    }

    /// Returns the number of distinct filters of logs.
    pub(super) fn log_filters(&self) -> usize {
        self.logs.filters()
    }

    /// Adds a subscription of a stream of the chain to the live tables.
    pub(super) fn join(&mut self, stream: Stream, subscriber: Subscriber) -> IndexSlot {
        subscriber.writer.joined(stream.kind());
        self.marked.insert(stream.kind(), &subscriber);
        match stream {
            Stream::Logs(filter) => IndexSlot::Logs(self.logs.insert(Arc::unwrap_or_clone(filter), subscriber)),
            Stream::Heads => IndexSlot::Heads(self.heads.insert(subscriber)),
            Stream::Mined(filter) => IndexSlot::Mined(self.mined.insert(filter, subscriber)),
            Stream::Receipts(filter) => IndexSlot::Receipts(self.receipts.insert(filter, subscriber)),
            // Whole blocks are always delivered by a trail.
            stream @ Stream::Blocks(_) => {
                self.trails
                    .of(Level::Head, subscriber.writer.owner())
                    .join(stream, subscriber, None);
                IndexSlot::Trail(Kind::Blocks, Level::Head)
            }
        }
    }

    /// Adds a replayed stream that has caught up with the head to the live tables. `first` is the number of the first
    /// block that it covers.
    pub(super) fn catch_up(&mut self, stream: Stream, subscriber: Subscriber, first: u64) -> IndexSlot {
        let since = self.published.with_history(|history| match stream {
            Stream::Heads | Stream::Logs(_) | Stream::Blocks(_) => history.sequence_from(first),
            // The page had the contents of the newest block, which live subscribers may still wait for.
            Stream::Mined(_) | Stream::Receipts(_) => history.tip().map_or(0, |tip| tip.sequence + 1),
        });
        subscriber.recipient.begin(since);
        self.join(stream, subscriber)
    }

    /// Adds a replayed stream that has caught up with its level to the trail. `first` is the number of the first block
    /// that it covers.
    pub(super) fn reach(&mut self, level: Level, stream: Stream, subscriber: Subscriber, first: u64) -> IndexSlot {
        let kind = stream.kind();
        self.trails
            .of(level, subscriber.writer.owner())
            .join(stream, subscriber, Some(first));
        self.trails.left_replay(level);
        IndexSlot::Trail(kind, level)
    }

    pub(super) fn leave_replay(&mut self, key: GroupKey, id: SubscriptionId) -> Option<Subscriber> {
        let members = self.replays.get_mut(&key)?;
        let gone = members.remove(id);
        // The replaying task removes an empty entry when it ends: a second task must not start before.
        if members.is_over() {
            self.replays.remove(&key);
        }
        if let Some(level) = key.level.filter(|_| gone.is_some()) {
            self.trails.left_replay(level);
        }
        gone
    }

    /// Encodes an event, to be shared by all its subscribers.
    pub(super) fn event(&self, payload: &[u8]) -> Event {
        let event = Event::new(payload);
        if self.compresses { event.compressible() } else { event }
    }

    pub(super) fn one(&self, kind: Kind, payload: &[u8], seen: Instant) -> Arc<Batch> {
        Batch::new(kind, Box::new([self.event(payload)]), seen)
    }

    /// Like [`Self::one`], for the only event of this kind in a block.
    pub(super) fn one_of_block(&self, kind: Kind, payload: &[u8], seen: Instant, block: B256) -> Arc<Batch> {
        let event = self.event(payload).at(Some(event_id::behind(block)));
        Batch::new(kind, Box::new([event]), seen)
    }

    /// Queues the position behind a block for the subscribers to this kind that get marks.
    pub(super) fn mark(
        &mut self,
        kind: Kind,
        block: B256,
        place: Position,
        wants: impl Fn(&Subscriber) -> bool,
        due: &mut DirtyClients,
        now: Moment,
    ) {
        if self.marked.has(kind) {
            let fronts = self.fronts();
            let batch = Batch::mark(kind, &event_id::behind(block));
            let wanting = self.marked.of(kind).filter(|own| wants(own));
            self.gate.send(place, &fronts, wanting, &batch, due, now);
        }
    }

    /// Returns the position at which a live subscription begins that joins now; `None` before the first block, and for
    /// kinds that cannot be resumed.
    pub(super) fn begins_behind(&self, kind: Kind, since: u64) -> Option<Arc<str>> {
        if !matches!(kind, Kind::Heads | Kind::Logs | Kind::Receipts) {
            return None;
        }
        let awaits = |kind: ContentKind, sequence| self.streams[kind as usize].contains(sequence);
        let behind = self.published.with_history(|history| {
            let head = history.head()?;
            let tip = history.tip()?;
            let gets_tip = since <= tip.sequence
                && match kind {
                    Kind::Logs => awaits(ContentKind::Logs, tip.sequence),
                    Kind::Receipts => awaits(ContentKind::Receipts, tip.sequence),
                    _ => false,
                };
            Some(if gets_tip { tip.header.parent } else { head.hash })
        })?;
        Some(event_id::behind(behind))
    }
}
