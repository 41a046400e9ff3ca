//! Queue of undelivered data for one client, bounded in bytes. No I/O, no clock: the caller passes the time.
//!
//! Three lanes, for three promises: control frames overtake everything (alloy waits ten seconds for a pong), answers
//! are never delayed, and events keep their order behind the hold-off of a new subscription (E5). Events of a
//! subscription on hold block the lane, so that the order across a connection's subscriptions (E3) is kept; each
//! subscription is on hold once and for milliseconds, so no client can block its lane for good.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::{Allowance, Batch, Recipient, SubscriptionId, frame};
use crate::clock::Moment;

/// Kind of an event; decides if it may be shed, and names the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Block header.
    Heads,
    /// Logs of one block.
    Logs,
    /// Pending transaction: best effort (E8).
    Pending,
    /// Sync state of the node.
    Syncing,
    /// Transactions of one block.
    Mined,
    /// Receipts of one block.
    Receipts,
    /// Event of a passed-through subscription, whose kind only the node knows.
    Passthrough,
    /// Message of a subscription of the embedding program.
    Extension,
    /// Whole block with the logs that match a filter.
    Blocks,
}

impl Kind {
    /// All kinds, each at the index of its discriminant.
    pub const ALL: [Self; 9] = [
        Self::Heads,
        Self::Logs,
        Self::Pending,
        Self::Syncing,
        Self::Mined,
        Self::Receipts,
        Self::Passthrough,
        Self::Extension,
        Self::Blocks,
    ];

    /// Returns the value of the `kind` label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Heads => "newHeads",
            Self::Logs => "logs",
            Self::Pending => "newPendingTransactions",
            Self::Syncing => "syncing",
            Self::Mined => "minedTransactions",
            Self::Receipts => "transactionReceipts",
            Self::Passthrough => "passthrough",
            Self::Extension => "extension",
            Self::Blocks => "blockLogs",
        }
    }

    /// Returns the name of such events in a stream of server-sent events.
    #[must_use]
    pub fn event_name(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Pending => "pending",
            Self::Mined => "minedTransactions",
            Self::Receipts => "receipts",
            Self::Logs | Self::Syncing | Self::Passthrough | Self::Extension | Self::Blocks => self.label(),
        }
    }
}

/// Part of the next write.
#[derive(Debug)]
pub enum Chunk {
    /// Frames for this client alone, and the subscriptions that their last byte releases.
    Bytes(Vec<Bytes>, Vec<Arc<Recipient>>),
    /// Shared events for one subscription.
    Events(Arc<Recipient>, Arc<Batch>),
}

/// Result of [`Queue::gather`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Bytes gathered, events included.
    pub bytes: usize,
    /// Moment at which the first event on hold, or over the egress budget, may be written; `None` if no event waits or
    /// the moment is unknown.
    pub held_until: Option<Moment>,
    /// `true` if another gathering would return more at once.
    pub more: bool,
    /// Bytes of events among the bytes gathered.
    pub event_bytes: usize,
    /// `true` if events wait for the client's egress budget.
    pub over_budget: bool,
}

/// Result of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// Queued.
    Queued {
        /// Events of pending transactions that were dropped to make room.
        shed: usize,
    },
    /// Dropped: this many events of pending transactions without room.
    Shed(usize),
    /// Over the limit: the client must be closed.
    Full,
}

#[derive(Debug)]
struct QueuedAnswer {
    pieces: Vec<Bytes>,
    releases: Vec<Arc<Recipient>>,
}

#[derive(Debug)]
struct Delivery {
    item: Item,
    queued_at: Moment,
}

/// Entry of the lane of events.
#[derive(Debug)]
enum Item {
    /// Events for one subscription.
    Events(Arc<Recipient>, Arc<Batch>),
    /// Ping with this payload, which marks a position behind the events before it.
    Mark(u64),
}

/// Bytes of a mark on the wire: a ping with eight bytes.
const MARK_LEN: usize = 10;

impl Item {
    fn len(&self) -> usize {
        match self {
            Self::Events(_, batch) => batch.wire_len,
            Self::Mark(_) => MARK_LEN,
        }
    }

    /// Checks if this is a batch of pending transactions.
    fn is_pending(&self) -> bool {
        matches!(self, Self::Events(_, batch) if batch.kind == Kind::Pending)
    }
}

/// Queue of one client.
#[derive(Debug, Default)]
pub struct Queue {
    control: VecDeque<Bytes>,
    answers: VecDeque<QueuedAnswer>,
    events: VecDeque<Delivery>,
    bytes: usize,
}

/// Most control frames in the queue. RFC 6455 section 5.5.3 lets an endpoint answer only the latest of several pings,
/// so a flood of pings costs no memory.
const MAX_CONTROL: usize = 64;

impl Queue {
    /// Returns the queued bytes, as on the wire without compression.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Checks if the queue is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.answers.is_empty() && self.events.is_empty()
    }

    /// Returns the moment at which the oldest event was queued.
    #[must_use]
    pub fn oldest(&self) -> Option<Moment> {
        self.events.front().map(|delivery| delivery.queued_at)
    }

    /// Queues a ping or pong ahead of all data; the oldest control frame is dropped if there are too many.
    pub fn push_control(&mut self, frame: Bytes) {
        if self.control.len() == MAX_CONTROL
            && let Some(oldest) = self.control.pop_front()
        {
            self.bytes -= oldest.len();
        }
        self.bytes += frame.len();
        self.control.push_back(frame);
    }

    /// Queues an answer. Subscriptions in `releases` get events one hold-off after its last byte is written.
    #[must_use]
    pub fn push_answer(&mut self, pieces: Vec<Bytes>, releases: &[Arc<Recipient>], max_bytes: usize) -> Push {
        let len: usize = pieces.iter().map(Bytes::len).sum();
        // An answer longer than the limit is still accepted by an empty queue: the call was allowed.
        if self.bytes > 0 && self.bytes + len > max_bytes {
            return Push::Full;
        }
        self.bytes += len;
        self.answers.push_back(QueuedAnswer {
            pieces,
            releases: releases.to_vec(),
        });
        Push::Queued { shed: 0 }
    }

    /// Queues events for one subscription.
    #[must_use]
    pub fn push_events(&mut self, to: Arc<Recipient>, batch: Arc<Batch>, now: Moment, max_bytes: usize) -> Push {
        let len = batch.wire_len;
        let mut shed = 0;
        if batch.kind == Kind::Pending {
            // Half of the room is reserved for events that must not be lost.
            if self.bytes + len > max_bytes / 2 {
                return Push::Shed(batch.events.len());
            }
        } else if self.bytes + len > max_bytes {
            shed = self.shed_pending();
            if self.bytes > 0 && self.bytes + len > max_bytes {
                return Push::Full;
            }
        }
        self.bytes += len;
        if self.events.capacity() == 0 {
            // Room for one, which is all that most clients ever need; growing starts with four.
            self.events.reserve_exact(1);
        }
        self.events.push_back(Delivery {
            item: Item::Events(to, batch),
            queued_at: now,
        });
        Push::Queued { shed }
    }

    /// Queues a mark behind all events; returns `false` without room for it, which ends nothing.
    #[must_use]
    pub fn push_mark(&mut self, payload: u64, now: Moment, max_bytes: usize) -> bool {
        if self.bytes + MARK_LEN > max_bytes {
            return false;
        }
        self.bytes += MARK_LEN;
        self.events.push_back(Delivery {
            item: Item::Mark(payload),
            queued_at: now,
        });
        true
    }

    /// Drops the events of a subscription that has ended, so that none follows the answer to `eth_unsubscribe`.
    pub fn forget(&mut self, id: SubscriptionId) {
        self.retain(|item| !matches!(item, Item::Events(to, _) if to.id() == id));
    }

    /// Moves chunks that may be written now to `out`: all control frames, about `budget` bytes of answers and as many
    /// of events, but no more events than `allowance`.
    pub fn gather(&mut self, now: Moment, budget: usize, allowance: Allowance, out: &mut VecDeque<Chunk>) -> Gathered {
        let mut gathered = Gathered::default();
        if !self.control.is_empty() {
            let frames: Vec<Bytes> = std::mem::take(&mut self.control).into();
            gathered.bytes += frames.iter().map(Bytes::len).sum::<usize>();
            out.push_back(Chunk::Bytes(frames, Vec::new()));
        }
        let stop = gathered.bytes + budget;
        while gathered.bytes < stop
            && let Some(answer) = self.answers.pop_front()
        {
            gathered.bytes += answer.pieces.iter().map(Bytes::len).sum::<usize>();
            out.push_back(Chunk::Bytes(answer.pieces, answer.releases));
        }
        if self.answers.is_empty() {
            // A client that only listens sends one request: free the lane's memory.
            self.answers = VecDeque::new();
        }
        let before = gathered.bytes;
        let stop = match allowance {
            Allowance::Free => before + budget,
            Allowance::Bytes(allowed) => before + budget.min(allowed),
            Allowance::NotBefore(at) => {
                if !self.events.is_empty() {
                    (gathered.held_until, gathered.over_budget) = (Some(at), true);
                }
                before
            }
        };
        while gathered.bytes < stop
            && let Some(first) = self.events.front()
        {
            let release_at = match &first.item {
                Item::Events(to, _) => to.release_at(),
                Item::Mark(_) => Some(now),
            };
            if release_at.is_none_or(|at| at > now) {
                // `None` until the answer is written; the task that writes the answer gathers again.
                gathered.held_until = release_at;
                gathered.event_bytes = gathered.bytes - before;
                self.bytes -= gathered.bytes;
                gathered.more = !self.answers.is_empty();
                return gathered;
            }
            if let Some(delivery) = self.events.pop_front() {
                gathered.bytes += delivery.item.len();
                out.push_back(match delivery.item {
                    Item::Events(to, batch) => Chunk::Events(to, batch),
                    Item::Mark(payload) => {
                        let ping = frame::control(frame::Opcode::Ping, &payload.to_be_bytes());
                        Chunk::Bytes(vec![ping], Vec::new())
                    }
                });
            }
        }
        gathered.event_bytes = gathered.bytes - before;
        self.bytes -= gathered.bytes;
        gathered.more = if gathered.over_budget {
            !self.answers.is_empty()
        } else {
            !self.is_empty()
        };
        gathered
    }

    fn shed_pending(&mut self) -> usize {
        let pending = self.events.iter().filter_map(|delivery| match &delivery.item {
            Item::Events(_, batch) if batch.kind == Kind::Pending => Some(batch.events.len()),
            _ => None,
        });
        let shed = pending.sum();
        self.retain(|item| !item.is_pending());
        shed
    }

    fn retain(&mut self, keep: impl Fn(&Item) -> bool) {
        let bytes = &mut self.bytes;
        self.events.retain(|delivery| {
            let keeps = keep(&delivery.item);
            if !keeps {
                *bytes -= delivery.item.len();
            }
            keeps
        });
    }
}

#[cfg(test)]
mod tests;
