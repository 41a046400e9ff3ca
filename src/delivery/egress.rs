//! Egress budget: bytes of notifications a second for one client, shared by its connections.
//!
//! A client over its budget loses nothing: events wait in its queue, within the limits of bytes and age, as they do for
//! a slow reader; beyond these limits the connection is closed with a reason. So bursts are smoothed, and only a client
//! whose average demand exceeds the budget is disconnected.
//!
//! Implemented as one number (GCRA, the algorithm of the `governor` crate) rather than with `governor`, which never
//! passes an item larger than the burst: the logs of one block may be larger and cannot be split. Such a batch is sent,
//! and the debt is paid off afterwards. Without a budget the cost is one relaxed load.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Moment;
use crate::shares::Owner;

/// Unused budget that a client can save up, in microseconds: one second's worth.
const SAVED: u64 = 1_000_000;

/// Egress budget of one client.
#[derive(Debug, Default)]
pub struct Egress {
    /// Bytes a second; 0 for unlimited.
    rate: AtomicU64,
    /// Time after [`Moment::START`] at which the bytes sent so far are paid off, in microseconds: at high rates the
    /// cost of a message is below a millisecond.
    paid_at: AtomicU64,
    /// Bytes charged since the start.
    sent: AtomicU64,
    owner: Owner,
}

/// Amount of event bytes that may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Unlimited.
    Free,
    /// About this many bytes; a batch is not split.
    Bytes(usize),
    /// Nothing before this moment.
    NotBefore(Moment),
}

impl Egress {
    /// Creates a budget of `rate` bytes a second; 0 for unlimited.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self {
            rate: AtomicU64::new(rate),
            paid_at: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            owner: Owner::default(),
        }
    }

    /// Returns the account as which this client takes its share of global budgets.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Changes the rate; debt from the old rate is forgiven.
    pub fn set_rate(&self, rate: u64) {
        if self.rate.swap(rate, Ordering::Relaxed) != rate {
            self.paid_at.store(0, Ordering::Relaxed);
        }
    }

    /// Returns how much may be sent at `now`.
    #[must_use]
    pub fn allowance(&self, now: Moment) -> Allowance {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return Allowance::Free;
        }
        let (now, paid_at) = (micros(now), self.paid_at.load(Ordering::Relaxed));
        if paid_at > now {
            return Allowance::NotBefore(Moment::START + Duration::from_millis(paid_at.div_ceil(1000)));
        }
        let bytes = u128::from(rate) * u128::from((now - paid_at).min(SAVED)) / 1_000_000;
        Allowance::Bytes(usize::try_from(bytes).unwrap_or(usize::MAX).max(1))
    }

    /// Charges `bytes` that were sent at `now`.
    pub fn charge(&self, bytes: usize, now: Moment) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 || bytes == 0 {
            return;
        }
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        let earliest = micros(now).saturating_sub(SAVED);
        let cost = cost(bytes as u64, rate);
        let pay = |paid_at: u64| Some(paid_at.max(earliest).saturating_add(cost));
        let _ = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
    }

    /// Returns the bytes that were charged since the start; those of a time without a limit do not count.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Charges `bytes` that other headwaters sent. A debt by this charge is paid off within a second.
    pub fn charge_foreign(&self, bytes: u64, now: Moment) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 || bytes == 0 {
            return;
        }
        let now = micros(now);
        let (earliest, latest) = (now.saturating_sub(SAVED), now.saturating_add(SAVED));
        let cost = cost(bytes, rate);
        let pay = |paid_at: u64| {
            let next = paid_at.max(earliest).saturating_add(cost).min(latest);
            Some(next.max(paid_at))
        };
        let _ = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
    }
}

/// Returns the time that bytes cost at a rate, in microseconds.
fn cost(bytes: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(rate)).unwrap_or(u64::MAX)
}

/// Returns the time from [`Moment::START`] to `at` in microseconds.
fn micros(at: Moment) -> u64 {
    u64::try_from(at.since(Moment::START).as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::at;

    #[test]
    fn bytes_of_others_delay_by_a_second_at_most() {
        let egress = Egress::new(1000);
        egress.charge_foreign(400, at(10_000));
        assert_eq!(egress.allowance(at(10_000)), Allowance::Bytes(600));
        egress.charge_foreign(u64::MAX, at(10_000));
        assert_eq!(egress.allowance(at(10_000)), Allowance::NotBefore(at(11_000)));
        egress.charge(3000, at(10_000));
        egress.charge_foreign(1, at(10_000));
        assert_eq!(egress.allowance(at(10_000)), Allowance::NotBefore(at(14_000)));
        assert_eq!(egress.sent(), 3000);
    }

    #[test]
    fn a_second_is_saved_up_and_what_is_above_is_paid_for_afterwards() {
        let egress = Egress::new(1000);
        assert_eq!(egress.allowance(at(10_000)), Allowance::Bytes(1000));
        egress.charge(400, at(10_000));
        assert_eq!(egress.allowance(at(10_000)), Allowance::Bytes(600));
        egress.charge(2600, at(10_000));
        assert_eq!(egress.allowance(at(10_000)), Allowance::NotBefore(at(12_000)));
        assert_eq!(egress.allowance(at(11_999)), Allowance::NotBefore(at(12_000)));
        assert_eq!(egress.allowance(at(12_000)), Allowance::Bytes(1));
        assert_eq!(egress.allowance(at(12_500)), Allowance::Bytes(500));
        assert_eq!(
            egress.allowance(at(60_000)),
            Allowance::Bytes(1000),
            "no more is saved up"
        );
        egress.charge(u32::MAX as usize, at(60_000));
        egress.set_rate(1000);
        assert!(matches!(egress.allowance(at(61_000)), Allowance::NotBefore(_)));
        egress.set_rate(2000);
        assert_eq!(egress.allowance(at(61_000)), Allowance::Bytes(2000));
        egress.set_rate(0);
        egress.charge(usize::MAX, at(61_000));
        assert_eq!(egress.allowance(at(61_000)), Allowance::Free);
    }
}
