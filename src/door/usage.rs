//! Usage of an account since it was last collected: for the operator's accounting, not for limits.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sums of one account over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageSums {
    /// Requests, by weight.
    pub requests: u64,
    /// Messages refused by the quota of requests.
    pub refusals: u64,
    /// Notifications written to WebSocket connections.
    pub notifications: u64,
    /// Bytes written to WebSocket connections.
    pub bytes: u64,
}

impl UsageSums {
    /// Checks if nothing was used.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for UsageSums {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.refusals += other.refusals;
        self.notifications += other.notifications;
        self.bytes += other.bytes;
    }
}

/// Counters of one account.
#[derive(Debug, Default)]
pub struct Usage {
    requests: AtomicU64,
    /// Requests since the account was opened, by weight.
    admitted: AtomicU64,
    refusals: AtomicU64,
    notifications: AtomicU64,
    bytes: AtomicU64,
}

impl Usage {
    /// Counts a message that was charged this much.
    pub(super) fn charged(&self, units: u64) {
        self.requests.fetch_add(units, Ordering::Relaxed);
        self.admitted.fetch_add(units, Ordering::Relaxed);
    }

    /// Returns the requests that were charged since the account was opened, by weight.
    pub(super) fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Counts a message that the quota refused.
    pub(super) fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts notifications and bytes that were written to a connection.
    pub fn wrote(&self, notifications: u64, bytes: u64) {
        if notifications > 0 {
            self.notifications.fetch_add(notifications, Ordering::Relaxed);
        }
        if bytes > 0 {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Returns the sums, and begins anew.
    pub(super) fn take(&self) -> UsageSums {
        let take = |counter: &AtomicU64| match counter.load(Ordering::Relaxed) {
            // Most accounts are idle, and a load is cheaper than an exchange.
            0 => 0,
            _ => counter.swap(0, Ordering::Relaxed),
        };
        UsageSums {
            requests: take(&self.requests),
            refusals: take(&self.refusals),
            notifications: take(&self.notifications),
            bytes: take(&self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_use_is_collected_once() {
        let usage = Usage::default();
        assert!(usage.take().is_zero());
        usage.charged(5);
        usage.charged(2);
        usage.refused();
        usage.wrote(3, 700);
        usage.wrote(0, 10);
        let mut all = usage.take();
        let expected = UsageSums {
            requests: 7,
            refusals: 1,
            notifications: 3,
            bytes: 710,
        };
        assert_eq!(all, expected);
        assert!(usage.take().is_zero());
        all += expected;
        assert_eq!((all.requests, all.bytes), (14, 1420));
    }
}
