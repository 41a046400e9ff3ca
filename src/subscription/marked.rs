//! Subscribers of server-sent events whose streams may be quiet: they get the position behind every block, so that a
//! client resumes there and not behind the last event that matched. No I/O.

use std::collections::HashMap;

use super::subscriber::Subscriber;
use crate::delivery::{Kind, SubscriptionId};

/// Marked subscribers, by kind.
#[derive(Debug, Default)]
pub(super) struct MarkedStreams {
    logs: HashMap<SubscriptionId, Subscriber>,
    receipts: HashMap<SubscriptionId, Subscriber>,
}

/// Checks if a stream of this kind, sent to this subscriber, needs positions besides those of its events.
pub(super) fn needs_marks(kind: Kind, subscriber: &Subscriber) -> bool {
    matches!(kind, Kind::Logs | Kind::Receipts) && subscriber.writer.is_event_stream()
}

impl MarkedStreams {
    /// Adds a subscriber if its stream needs marks.
    pub(super) fn insert(&mut self, kind: Kind, subscriber: &Subscriber) {
        if needs_marks(kind, subscriber) {
            let table = if kind == Kind::Logs {
                &mut self.logs
            } else {
                &mut self.receipts
            };
            table.insert(subscriber.recipient.id(), subscriber.clone());
        }
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) {
        if !self.is_empty() {
            self.logs.remove(&id);
            self.receipts.remove(&id);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.logs.is_empty() && self.receipts.is_empty()
    }

    /// Returns the subscribers of a kind.
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = &Subscriber> {
        let table = match kind {
            Kind::Logs => Some(&self.logs),
            Kind::Receipts => Some(&self.receipts),
            _ => None,
        };
        table.into_iter().flat_map(HashMap::values)
    }

    /// Checks if a kind has any.
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.of(kind).next().is_some()
    }
}
