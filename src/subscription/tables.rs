//! Who is subscribed to what, and what each event of the chain means for them. All of it is behind the registry's lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use slab::Slab;

use super::contents::Streams;
use super::due::Due;
use super::gate::Gate;
use super::gossip::Recent;
use super::members::Members;
use super::passing::{Full, Passing};
use super::refusal::Refusal;
use super::subscriber::{ClientKey, Subscriber};
use super::{Index, LogIndex, LogSlot, ReceiptFilter, Slot, Stream, Topic, TransactionFilter};
use crate::backplane::{TransactionForm, Wanted};
use crate::chain::{ContentKind, History, Transaction};
use crate::clock::Millis;
use crate::delivery::{Batch, Event, Kind, SubscriptionId};

#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Heads(usize),
    Logs(LogSlot),
    PendingHashes(usize),
    Pending(Slot),
    Syncing(usize),
    Mined(Slot),
    Receipts(Slot),
    Passed,
    /// On its way to the live stream, or there already.
    Resumed(Kind, ClientKey),
}

impl Place {
    pub fn kind(self) -> Kind {
        match self {
            Self::Heads(_) => Kind::Heads,
            Self::Logs(_) => Kind::Logs,
            Self::PendingHashes(_) | Self::Pending(_) => Kind::Pending,
            Self::Syncing(_) => Kind::Syncing,
            Self::Mined(_) => Kind::Mined,
            Self::Receipts(_) => Kind::Receipts,
            Self::Passed => Kind::Passed,
            Self::Resumed(kind, _) => kind,
        }
    }
}

/// The tables.
#[derive(Debug)]
pub(super) struct Tables {
    pub heads: Slab<Subscriber>,
    pub logs: LogIndex<Subscriber>,
    /// Those who are told what a node's own stream of hashes tells.
    pub pending_hashes: Slab<Subscriber>,
    /// Those who need the whole transaction, to be told or to be selected by.
    pub pending: Index<TransactionFilter, Subscriber>,
    /// Those of both to whom the node has said yes.
    pub accepted_pending: HashSet<SubscriptionId>,
    pub syncing: Slab<Subscriber>,
    pub mined: Index<TransactionFilter, Subscriber>,
    /// What those who are told of removals were sent, by the sequence of its block; for as many blocks as are remembered.
    pub told: BTreeMap<u64, Vec<Transaction>>,
    pub receipts: Index<ReceiptFilter, Subscriber>,
    /// Blocks whose contents are still to be delivered, by kind of contents.
    pub streams: Streams,
    pub gate: Gate,
    /// Somebody who subscribes to logs resumed: of each block in memory logs may have to be taken back.
    pub takes_back: bool,
    /// Until then logs of new blocks are fetched although nobody subscribes to them.
    pub logs_fresh_until: Millis,
    /// Per kind of contents, the time for which it is not offered after no node gave those of a block.
    pub refusals: [Refusal; ContentKind::ALL.len()],
    pub passing: Passing,
    /// The node's last word on its sync state, for newcomers.
    pub sync_state: Option<(Bytes, Arc<Batch>)>,
    pub history: History,
    /// Subscriptions that are told what was before they join the live stream, by client.
    pub replays: HashMap<ClientKey, Members>,
    /// Where resumed subscriptions have joined.
    pub joined: HashMap<SubscriptionId, Place>,
    pub seen_pending: Recent,
    /// Clients may agree on compression.
    pub compresses: bool,
}

impl Tables {
    /// Empty ones that remember so many blocks; clients may agree on compression where it `compresses`.
    pub fn new(remembered: usize, compresses: bool) -> Self {
        Self {
            heads: Slab::new(),
            logs: LogIndex::default(),
            pending_hashes: Slab::new(),
            pending: Index::default(),
            accepted_pending: HashSet::new(),
            syncing: Slab::new(),
            mined: Index::default(),
            told: BTreeMap::new(),
            receipts: Index::default(),
            streams: Streams::default(),
            gate: Gate::default(),
            takes_back: false,
            logs_fresh_until: 0,
            refusals: Default::default(),
            passing: Passing::default(),
            sync_state: None,
            history: History::new(remembered),
            replays: HashMap::new(),
            joined: HashMap::new(),
            seen_pending: Recent::default(),
            compresses,
        }
    }

    /// Adds a subscription, live; of those that are passed through there are `max_passed` different ones at most.
    pub fn insert(&mut self, topic: Topic, subscriber: Subscriber, max_passed: usize) -> Result<Place, Full> {
        let outbox = subscriber.outbox.clone();
        let place = match topic {
            Topic::Chain(stream, _) => return Ok(self.join(stream, subscriber)),
            Topic::Pending(filter) => match filter.source() {
                TransactionForm::Hash => Place::PendingHashes(self.pending_hashes.insert(subscriber)),
                TransactionForm::Full => Place::Pending(self.pending.insert(filter, subscriber)),
            },
            Topic::Syncing => Place::Syncing(self.syncing.insert(subscriber)),
            Topic::Mined(filter) => Place::Mined(self.mined.insert(filter, subscriber)),
            Topic::Receipts(filter) => Place::Receipts(self.receipts.insert(filter, subscriber)),
            Topic::Passed(passed, _) => {
                self.passing.insert(passed, subscriber, max_passed)?;
                Place::Passed
            }
        };
        outbox.joined(place.kind());
        Ok(place)
    }

    /// Takes a subscription out; nothing happens where it is gone already.
    pub fn remove(&mut self, place: Place, id: SubscriptionId) -> Option<Subscriber> {
        if let Place::Resumed(_, client) = place {
            return self.leave_replay(client, id).map(|(_, subscriber)| subscriber);
        }
        let gone = match place {
            Place::Heads(at) => self.heads.try_remove(at),
            Place::Logs(slot) => self.logs.remove(slot),
            // One that the node refused is gone before its owner knows, and its place may be another's by now.
            Place::PendingHashes(at) => {
                self.accepted_pending.remove(&id);
                let is_own = self.pending_hashes.get(at).is_some_and(|own| own.recipient.id() == id);
                is_own.then(|| self.pending_hashes.remove(at))
            }
            Place::Pending(slot) => {
                self.accepted_pending.remove(&id);
                let is_own = self.pending.get(slot).is_some_and(|own| own.recipient.id() == id);
                is_own.then(|| self.pending.remove(slot)).flatten()
            }
            Place::Syncing(at) => self.syncing.try_remove(at),
            Place::Mined(slot) => self.mined.remove(slot),
            Place::Receipts(slot) => self.receipts.remove(slot),
            Place::Passed | Place::Resumed(..) => self.passing.remove(id),
        }?;
        gone.outbox.left(place.kind());
        self.gate.forget(gone.outbox.id(), id);
        Some(gone)
    }

    /// Queues what waited for a subscription that ended.
    pub fn release(&mut self, due: &mut Due, now: Millis) {
        self.gate.release(&self.fronts(), due, now);
    }

    /// What the nodes have to be asked for beside the chain.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            pending_hashes: !self.pending_hashes.is_empty(),
            pending_full: !self.pending.is_empty(),
            syncing: !self.syncing.is_empty(),
            passed: self.passing.wanted(),
        }
    }

    /// Distinct filters of logs.
    pub fn log_filters(&self) -> usize {
        self.logs.filters()
    }

    /// Puts a subscription where live events find it.
    pub fn join(&mut self, stream: Stream, subscriber: Subscriber) -> Place {
        subscriber.outbox.joined(stream.kind());
        match stream {
            Stream::Logs(filter) => Place::Logs(self.logs.insert(filter, subscriber)),
            Stream::Heads => Place::Heads(self.heads.insert(subscriber)),
        }
    }

    pub fn leave_replay(&mut self, client: ClientKey, id: SubscriptionId) -> Option<(Kind, Subscriber)> {
        let members = self.replays.get_mut(&client)?;
        let gone = members.remove(id);
        // Whoever replays for it removes it: a second one must not come in between.
        if members.is_over() {
            self.replays.remove(&client);
        }
        gone
    }

    /// An event for all who want it.
    pub fn event(&self, payload: &[u8]) -> Event {
        let event = Event::new(payload);
        if self.compresses { event.compressible() } else { event }
    }

    pub fn one(&self, kind: Kind, payload: &[u8], seen: Instant) -> Arc<Batch> {
        Batch::new(kind, Box::new([self.event(payload)]), seen)
    }
}
