//! Limits of a client.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;

/// Limits of one client. Those "of a client" apply to all of its connections together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Name, as in `[plans.NAME]`; `default` is `[limits]`.
    pub name: Arc<str>,
    /// Refill of the burst, in units of [`super::Weights`] a second.
    pub requests_per_second: NonZeroU32,
    /// Most units at once.
    pub request_burst: NonZeroU32,
    /// Most upgrades and failed proofs a minute.
    pub handshakes_per_minute: NonZeroU32,
    /// Most connections of a client.
    pub max_connections: usize,
    /// Most subscriptions of a connection.
    pub max_subscriptions: usize,
    /// Most subscriptions of a client.
    pub max_subscriptions_per_client: usize,
    /// Most index entries of a client: addresses times topics of its `logs` filters, and the addresses or
    /// transactions that its other filters name.
    pub max_index_entries: usize,
    /// Most calls of a connection in flight at the node; items of a batch count one by one.
    pub max_in_flight: u32,
    /// Most items of a batch.
    pub max_batch: usize,
    /// Longest message, in bytes.
    pub max_message_bytes: usize,
    /// Longest HTTP body, in bytes.
    pub max_body_bytes: usize,
    /// Most notifications of a client, in bytes a second; 0 for no limit.
    pub egress_bytes_per_second: u64,
    /// Longest queue of a connection, in bytes; `None` for `delivery.max_queue_bytes`.
    pub max_queue_bytes: Option<usize>,
    /// Refused messages that are tolerated.
    pub refusal_limit: RefusalLimit,
}

impl Plan {
    /// Returns a plan of the largest values, for clients that are limited elsewhere.
    pub(crate) fn without_limits() -> Self {
        // The limiter counts in nanoseconds: a million a second is far from its bounds.
        const MANY: NonZeroU32 = NonZeroU32::new(1_000_000).expect("not zero");
        Self {
            name: "within".into(),
            requests_per_second: MANY,
            request_burst: MANY,
            handshakes_per_minute: MANY,
            max_connections: usize::MAX,
            max_subscriptions: usize::MAX,
            max_subscriptions_per_client: usize::MAX,
            max_index_entries: usize::MAX,
            max_in_flight: u32::MAX,
            max_batch: 1,
            max_message_bytes: usize::MAX,
            max_body_bytes: usize::MAX,
            egress_bytes_per_second: 0,
            max_queue_bytes: None,
            refusal_limit: RefusalLimit {
                refusals: u32::MAX,
                window: Duration::from_secs(1),
            },
        }
    }

    /// Returns the time without use after which every quota is full again, at least a minute.
    #[must_use]
    pub fn refill(&self) -> Duration {
        let requests = u32::from(self.request_burst).div_ceil(u32::from(self.requests_per_second));
        Duration::from_secs(u64::from(requests).max(60))
    }
}

/// Refused messages that a connection may collect within a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalLimit {
    /// Most refusals within the window; one more closes the connection.
    pub refusals: u32,
    /// Length of the window, which begins with its first refusal.
    pub window: Duration,
}

/// Refused messages of one connection. A client that ignores the hint when to retry costs as much as one that is
/// served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusals {
    /// First refusal of the window; `None` before any.
    since: Option<Moment>,
    count: u32,
}

impl Refusals {
    /// Counts a refusal; returns `true` if it is above the limit.
    #[must_use]
    pub fn note(&mut self, now: Moment, refusal_limit: RefusalLimit) -> bool {
        if self.since.is_none_or(|since| now.since(since) > refusal_limit.window) {
            *self = Self {
                since: Some(now),
                count: 0,
            };
        }
        self.count = self.count.saturating_add(1);
        self.count > refusal_limit.refusals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::at;

    #[test]
    fn patience_ends_within_the_window_only() {
        let refusal_limit = RefusalLimit {
            refusals: 3,
            window: Duration::from_secs(1),
        };
        let mut refusals = Refusals::default();
        assert_eq!(
            [1, 2, 1001, 1001].map(|now| refusals.note(at(now), refusal_limit)),
            [false, false, false, true]
        );
        let mut slow = Refusals::default();
        assert!((1..100).all(|i| !slow.note(at(i * 400), refusal_limit)));
    }
}
