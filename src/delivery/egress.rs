//! The budget of a client's notifications, in bytes a second, shared by its connections.
//!
//! Over it nothing is thrown away: events wait in the client's own queue, within its bounds in bytes and age, as they wait
//! for a slow reader, and past these the connection ends with a reason. So a burst is smoothed, and only who wants more
//! than the budget for good is shown out.
//!
//! A virtual clock of one number (GCRA, as governor's) rather than governor itself, which lets nothing pass that is above a
//! burst: the logs of one block may be, and cannot be split. They pass, and are paid for afterwards. Where there is no
//! budget, one relaxed load is all that it costs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Millis;
use crate::shares::Owner;

/// What may be saved up, in microseconds: a second's worth.
const SAVED: u64 = 1_000_000;

/// One client's budget.
#[derive(Debug, Default)]
pub struct Egress {
    /// Bytes a second; 0 for any number.
    rate: AtomicU64,
    /// What was sent is paid for then, in microseconds.
    paid_at: AtomicU64,
    owner: Owner,
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Anything.
    Free,
    /// About so many bytes.
    Bytes(usize),
    /// Nothing before then.
    NotBefore(Millis),
}

impl Egress {
    /// So many bytes a second; 0 for any number.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self {
            rate: AtomicU64::new(rate),
            paid_at: AtomicU64::new(0),
            owner: Owner::default(),
        }
    }

    /// The account whose budget it is, in what all clients share.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Another rate, from now on; what is owed at the old one is forgiven.
    pub fn set_rate(&self, rate: u64) {
        if self.rate.swap(rate, Ordering::Relaxed) != rate {
            self.paid_at.store(0, Ordering::Relaxed);
        }
    }

    /// What may be sent.
    #[must_use]
    pub fn allowance(&self, now: Millis) -> Allowance {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return Allowance::Free;
        }
        let (now, paid_at) = (now.saturating_mul(1000), self.paid_at.load(Ordering::Relaxed));
        if paid_at > now {
            return Allowance::NotBefore(paid_at.div_ceil(1000));
        }
        let bytes = u128::from(rate) * u128::from((now - paid_at).min(SAVED)) / 1_000_000;
        Allowance::Bytes(usize::try_from(bytes).unwrap_or(usize::MAX).max(1))
    }

    /// So much was sent.
    pub fn charge(&self, bytes: usize, now: Millis) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 || bytes == 0 {
            return;
        }
        let earliest = now.saturating_mul(1000).saturating_sub(SAVED);
        let cost = u64::try_from(bytes as u128 * 1_000_000 / u128::from(rate)).unwrap_or(u64::MAX);
        let pay = |paid_at: u64| Some(paid_at.max(earliest).saturating_add(cost));
        let _ = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_saved_up_and_what_is_above_is_paid_for_afterwards() {
        let egress = Egress::new(1000);
        assert_eq!(egress.allowance(10_000), Allowance::Bytes(1000));
        egress.charge(400, 10_000);
        assert_eq!(egress.allowance(10_000), Allowance::Bytes(600));
        egress.charge(2600, 10_000);
        assert_eq!(egress.allowance(10_000), Allowance::NotBefore(12_000));
        assert_eq!(egress.allowance(11_999), Allowance::NotBefore(12_000));
        assert_eq!(egress.allowance(12_000), Allowance::Bytes(1));
        assert_eq!(egress.allowance(12_500), Allowance::Bytes(500));
        assert_eq!(egress.allowance(60_000), Allowance::Bytes(1000), "no more is saved up");
        egress.charge(u32::MAX as usize, 60_000);
        egress.set_rate(1000);
        assert!(matches!(egress.allowance(61_000), Allowance::NotBefore(_)));
        egress.set_rate(2000);
        assert_eq!(egress.allowance(61_000), Allowance::Bytes(2000));
        egress.set_rate(0);
        egress.charge(usize::MAX, 61_000);
        assert_eq!(egress.allowance(61_000), Allowance::Free);
    }
}
