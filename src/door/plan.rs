//! How much a client may have.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Millis;

/// The bounds of one client, whoever it is. Those of a client hold for all of its connections together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// As in `[plans.NAME]`; `default` is `[limits]`.
    pub name: Arc<str>,
    /// Refills what is used up of the burst, in units of [`super::Weights`].
    pub requests_per_second: NonZeroU32,
    /// Units at once.
    pub request_burst: NonZeroU32,
    /// Upgrades, and proofs that fail.
    pub handshakes_per_minute: NonZeroU32,
    /// Connections of a client.
    pub max_connections: usize,
    /// Subscriptions of a connection.
    pub max_subscriptions: usize,
    /// Subscriptions of a client.
    pub max_subscriptions_per_client: usize,
    /// Addresses times topics, over all of a client's `logs` filters, and what its other filters name.
    pub max_index_entries: usize,
    /// Calls (a batch counts as one) of a connection that wait for the node.
    pub max_in_flight: u32,
    /// Items of a batch.
    pub max_batch: usize,
    /// Longest message, in bytes.
    pub max_message_bytes: usize,
    /// Longest HTTP body, in bytes.
    pub max_body_bytes: usize,
    /// Notifications of a client, in bytes a second; 0 for any number.
    pub egress_bytes_per_second: u64,
    /// With what goes on all the same.
    pub patience: Patience,
}

impl Plan {
    /// After so long without any use every quota is full again.
    #[must_use]
    pub fn refill(&self) -> Duration {
        let requests = u32::from(self.request_burst).div_ceil(u32::from(self.requests_per_second));
        Duration::from_secs(u64::from(requests).max(60))
    }
}

/// How many refusals a connection may collect within which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// One more is too many.
    pub refusals: u32,
    /// Since the first of them.
    pub window: Duration,
}

/// The refused messages of one connection. A client that was told when to come again and goes on all the same costs as
/// much as one that is served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusals {
    since: Millis,
    count: u32,
}

impl Refusals {
    /// One more; `true` where it is one too many.
    #[must_use]
    pub fn note(&mut self, now: Millis, patience: Patience) -> bool {
        if self.count == 0 || now.saturating_sub(self.since) > patience.window.as_millis() as Millis {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count > patience.refusals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_within_the_window_only() {
        let patience = Patience {
            refusals: 3,
            window: Duration::from_secs(1),
        };
        let mut refusals = Refusals::default();
        assert_eq!(
            [1, 2, 1001, 1001].map(|at| refusals.note(at, patience)),
            [false, false, false, true]
        );
        let mut slow = Refusals::default();
        assert!((1..100).all(|i| !slow.note(i * 400, patience)));
    }
}
