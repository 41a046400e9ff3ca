//! Subscriptions that are refused for a while, since no node gave their contents.

use super::Registry;
use crate::chain::{Absent, ContentKind};
use crate::subscription::Topic;

/// Returns the label of the loss, and of the refusals that follow it, if no node gives these contents.
pub(super) fn not_served(kind: ContentKind) -> &'static str {
    match kind {
        ContentKind::Logs => "no_logs",
        ContentKind::Transactions => "no_transactions",
        ContentKind::Receipts => "no_receipts",
    }
}

impl Registry {
    /// Returns the label and the client's error text if this topic is refused now: no node gave such contents a short
    /// while ago.
    #[must_use]
    pub fn refuses(&self, topic: &Topic) -> Option<(&'static str, String)> {
        let needs = |kind: ContentKind| match topic {
            Topic::Chain(stream, _) | Topic::Trailing(_, stream, _) => stream.needs(kind),
            Topic::Mined(_) => kind == ContentKind::Transactions,
            Topic::Receipts(_) => kind == ContentKind::Receipts,
            Topic::Pending(_) | Topic::Syncing | Topic::Passthrough(..) => false,
        };
        let mut kinds = ContentKind::ALL.into_iter().filter(|kind| needs(*kind));
        kinds.find_map(|kind| self.refuses_contents(kind))
    }

    fn refuses_contents(&self, kind: ContentKind) -> Option<(&'static str, String)> {
        let what = kind.label();
        let words = match self.tables.lock().cooldown(kind, self.clock.now())? {
            Absent::NotServed | Absent::UnknownBlock => format!("the node does not serve the {what} of its blocks"),
            Absent::Unanswered => {
                format!("the node does not answer calls for the {what} of its blocks, try again later")
            }
            Absent::Throttled => {
                format!("the node's rate limit prevents fetching the {what} of its blocks, try again later")
            }
        };
        Some((not_served(kind), words))
    }
}
