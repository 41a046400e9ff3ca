//! Events that wait, per connection, for contents that come before them. No I/O, no clock.
//!
//! On one connection head N is delivered before the contents of N, and these before head N + 1, for the kinds that
//! the connection subscribes to (E3). Each kind is published as soon as it is known; an event that is early for a
//! connection is kept here until the connection's other kinds have caught up. A connection that subscribes to heads
//! alone waits for nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::flush::{DirtyClients, send};
use super::subscriber::{ClientKey, Subscriber};
use crate::chain::PublishedBlock;
use crate::clock::Moment;
use crate::delivery::{Batch, Kind, SubscriptionId};

/// Position in the order of events: first by block sequence; within a block removals, head, logs, transactions,
/// receipts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    sequence: u64,
    part: u8,
}

impl Position {
    /// Returns the position of removals caused by the block of this sequence: before its head.
    pub(super) fn removals(sequence: u64) -> Self {
        Self { sequence, part: 0 }
    }

    /// Checks if this is the place of removals.
    pub(super) fn is_of_removals(self) -> bool {
        self.part == 0
    }

    /// Returns the position of the block's events of this kind; kinds are declared in the order of delivery.
    pub(super) fn of(kind: Kind, sequence: u64) -> Self {
        let part = 1 + kind as u8;
        Self { sequence, part }
    }
}

/// Progress of the contents: per kind the position of the next delivery, `None` if nothing is awaited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fronts([(Kind, Option<Position>); 3]);

impl Fronts {
    /// Builds the fronts from the sequences of the oldest blocks whose contents are still to be delivered.
    pub(super) fn new(fronts: [(Kind, Option<u64>); 3]) -> Self {
        Self(fronts.map(|(kind, sequence)| (kind, sequence.map(|sequence| Position::of(kind, sequence)))))
    }

    /// Returns the position of the next delivery of this kind; `None` if nothing of it is awaited.
    pub(super) fn of(&self, kind: Kind) -> Option<Position> {
        self.0.iter().find(|(own, _)| *own == kind)?.1
    }

    /// Returns the kinds with a delivery outstanding before this position.
    fn before(&self, at: Position) -> impl Iterator<Item = Kind> {
        self.0
            .into_iter()
            .filter_map(move |(kind, front)| (front? < at).then_some(kind))
    }

    /// Checks if no delivery is outstanding before this position.
    pub(super) fn is_open(&self, at: Position) -> bool {
        self.before(at).next().is_none()
    }

    fn holds_back(&self, subscriber: &Subscriber, at: Position) -> bool {
        self.before(at).any(|kind| subscriber.writer.subscribes_to(kind))
    }
}

#[derive(Debug)]
struct WaitingEvents {
    at: Position,
    subscriber: Subscriber,
    batch: Arc<Batch>,
}

/// Early events, by connection.
#[derive(Debug, Default)]
pub(super) struct Gate {
    waiting: HashMap<ClientKey, VecDeque<WaitingEvents>>,
}

impl Gate {
    /// Queues a batch for the clients whose turn it is, and keeps it for the others.
    pub(super) fn send<'a>(
        &mut self,
        at: Position,
        fronts: &Fronts,
        subscribers: impl Iterator<Item = &'a Subscriber>,
        batch: &Arc<Batch>,
        due: &mut DirtyClients,
        now: Moment,
    ) {
        // In nearly all cases no client has to wait.
        if fronts.is_open(at) {
            return send(subscribers, batch, due, now);
        }
        for subscriber in subscribers {
            if fronts.holds_back(subscriber, at) {
                let waiting = self.waiting.entry(subscriber.writer.id()).or_default();
                let behind = waiting.partition_point(|early| early.at <= at);
                let (subscriber, batch) = (subscriber.clone(), batch.clone());
                waiting.insert(behind, WaitingEvents { at, subscriber, batch });
            } else {
                send(std::iter::once(subscriber), batch, due, now);
            }
        }
    }

    /// Queues the events that need not wait any longer.
    pub(super) fn release(&mut self, fronts: &Fronts, due: &mut DirtyClients, now: Moment) {
        self.waiting.retain(|_, waiting| {
            while let Some(early) = waiting.pop_front_if(|early| !fronts.holds_back(&early.subscriber, early.at)) {
                send(std::iter::once(&early.subscriber), &early.batch, due, now);
            }
            !waiting.is_empty()
        });
    }

    /// Forgets waiting events of dropped blocks: these events are never sent. Returns the
    /// subscription and the block's sequence of each forgotten event, for which no removal is due.
    pub(super) fn drop_blocks(&mut self, dropped: &[PublishedBlock]) -> HashSet<(SubscriptionId, u64)> {
        let mut undelivered = HashSet::new();
        for waiting in self.waiting.values_mut() {
            waiting.retain(|early| {
                let sequence = early.at.sequence;
                let is_dropped = early.at.part > 0 && dropped.iter().any(|own| own.sequence == sequence);
                if is_dropped {
                    undelivered.insert((early.subscriber.recipient.id(), sequence));
                }
                !is_dropped
            });
        }
        undelivered
    }

    /// Forgets the events of a subscription that ended.
    pub(super) fn forget(&mut self, client: ClientKey, id: SubscriptionId) {
        if let Some(waiting) = self.waiting.get_mut(&client) {
            waiting.retain(|early| early.subscriber.recipient.id() != id);
        }
    }

    /// Forgets all events: continuity is lost, and the clients concerned are closed.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Returns the position of the first event that waits for this connection.
    pub(super) fn first_of(&self, client: ClientKey) -> Option<Position> {
        Some(self.waiting.get(&client)?.front()?.at)
    }

    /// Returns the number of batches that wait, each for one subscription.
    pub(super) fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }
}
