//! Quota of requests: governor's limiter, with a debt in front of it for what the same client used at other headwaters.
//!
//! The limiter never passes a charge that it cannot cover, so foreign use, which has happened, cannot be charged to it
//! directly. The debt takes what the limiter has, and what is missing is worked off before anything else passes.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota as Rate, RateLimiter};
use parking_lot::Mutex;

use super::Exceeded;

const NANOS: u128 = 1_000_000_000;

/// Quota of requests of one account.
#[derive(Debug)]
pub(crate) struct RequestQuota<C: Clock = DefaultClock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, StateInformationMiddleware>,
    clock: C,
    per_second: NonZeroU32,
    burst: NonZeroU32,
    /// Units used elsewhere that the limiter could not cover yet; at most the burst.
    debt: AtomicU32,
    /// Held while the debt changes: two that work it off at once would pay twice.
    working: Mutex<()>,
}

impl<C: Clock + Clone> RequestQuota<C> {
    /// Creates a full quota.
    pub(super) fn new(per_second: NonZeroU32, burst: NonZeroU32, clock: C) -> Self {
        let rate = Rate::per_second(per_second).allow_burst(burst);
        Self {
            limiter: RateLimiter::direct_with_clock(rate, clock.clone()).with_middleware(),
            clock,
            per_second,
            burst,
            debt: AtomicU32::new(0),
            working: Mutex::new(()),
        }
    }

    /// Takes units; returns those that are left.
    ///
    /// # Errors
    /// [`Exceeded`] if the quota does not cover the units, or while a debt is being worked off.
    pub(crate) fn take(&self, units: NonZeroU32) -> Result<u32, Exceeded> {
        let debt = self.debt();
        if debt > 0 {
            return Err(Exceeded {
                retry_after: (units <= self.burst).then(|| self.refill(debt.saturating_add(units.get()))),
            });
        }
        match self.limiter.check_n(units) {
            Ok(Ok(left)) => Ok(left.remaining_burst_capacity()),
            Ok(Err(until)) => Err(Exceeded {
                retry_after: Some(until.wait_time_from(self.clock.now())),
            }),
            Err(_) => Err(Exceeded { retry_after: None }),
        }
    }

    /// Charges units that were used elsewhere. The debt that remains is at most the burst: one that is charged in error
    /// is over soon.
    pub(crate) fn charge_foreign(&self, units: u32) {
        let _working = self.working.lock();
        let debt = self.debt.load(Ordering::Relaxed).saturating_add(units);
        let debt = self.work_off(debt.min(self.burst.get().saturating_mul(2)));
        self.debt.store(debt.min(self.burst.get()), Ordering::Relaxed);
    }

    /// Returns the debt that is left after what can be worked off now.
    fn debt(&self) -> u32 {
        if self.debt.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let _working = self.working.lock();
        let debt = self.work_off(self.debt.load(Ordering::Relaxed));
        self.debt.store(debt, Ordering::Relaxed);
        debt
    }

    /// Pays as much of a debt as the limiter has; returns the rest.
    fn work_off(&self, debt: u32) -> u32 {
        let Some(wanted) = NonZeroU32::new(debt.min(self.burst.get())) else {
            return 0;
        };
        match self.limiter.check_n(wanted) {
            Ok(Ok(_)) => debt - wanted.get(),
            Ok(Err(until)) => {
                let wait = until.wait_time_from(self.clock.now()).as_nanos();
                let missing = (wait * u128::from(self.per_second.get())).div_ceil(NANOS);
                let there = u128::from(wanted.get()).saturating_sub(missing);
                let there = NonZeroU32::new(u32::try_from(there).unwrap_or(u32::MAX));
                // Not all of it if a charge came in between.
                let paid = there.filter(|there| matches!(self.limiter.check_n(*there), Ok(Ok(_))));
                debt - paid.map_or(0, u32::from)
            }
            Err(_) => debt,
        }
    }

    /// Returns the time in which this many units are refilled.
    fn refill(&self, units: u32) -> Duration {
        let nanos = (u128::from(units) * NANOS).div_ceil(self.per_second.get().into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;

    /// Quota with the clock by which it is refilled.
    pub(crate) type FakeQuota = (RequestQuota<FakeRelativeClock>, FakeRelativeClock);

    pub(crate) fn quota(per_second: u32, burst: u32) -> FakeQuota {
        let clock = FakeRelativeClock::default();
        let of = |units| NonZeroU32::new(units).unwrap();
        (RequestQuota::new(of(per_second), of(burst), clock.clone()), clock)
    }

    fn take(quota: &RequestQuota<FakeRelativeClock>, units: u32) -> Result<u32, Option<u64>> {
        let taken = quota.take(NonZeroU32::new(units).unwrap());
        taken.map_err(|exceeded| exceeded.retry_after.map(|after| after.as_millis() as u64))
    }

    #[test]
    fn foreign_use_is_worked_off_before_anything_passes() {
        let (quota, clock) = quota(10, 20);
        quota.charge_foreign(5);
        assert_eq!(take(&quota, 5), Ok(10), "what the limiter has pays at once");
        quota.charge_foreign(15);
        assert_eq!(take(&quota, 1), Err(Some(600)), "a debt of five, and one");
        assert_eq!(take(&quota, 21), Err(None));
        clock.advance(Duration::from_millis(300));
        assert_eq!(take(&quota, 1), Err(Some(300)));
        clock.advance(Duration::from_millis(300));
        assert_eq!(take(&quota, 1), Ok(0));
    }

    #[test]
    fn a_debt_is_at_most_the_burst_and_is_over_in_time() {
        let (quota, clock) = quota(10, 20);
        (0..100).for_each(|_| quota.charge_foreign(u32::MAX));
        assert_eq!(take(&quota, 1), Err(Some(2_100)));
        clock.advance(Duration::from_secs(2));
        assert_eq!(take(&quota, 1), Err(Some(100)));
        clock.advance(Duration::from_secs(2));
        assert_eq!(take(&quota, 20), Ok(0), "and the quota is full again as without it");
    }

    proptest! {
        /// Own and foreign use together are what one quota would have passed, as long as no debt reaches its bound; up to one
        /// unit, for what is beyond the bound is forgiven in whole units.
        #[test]
        fn own_and_foreign_use_are_bounded_together(
            steps in prop::collection::vec((0_u64..400, 1_u32..8, 0_u32..4), 1..200),
        ) {
            let (quota, clock) = quota(10, 20);
            let (mut used, mut millis) = (0_u64, 0_u64);
            for (wait, own, foreign) in steps {
                clock.advance(Duration::from_millis(wait));
                millis += wait;
                quota.charge_foreign(foreign);
                let allowed = 20 + millis * 10 / 1000;
                if take(&quota, own).is_ok() {
                    used += u64::from(own);
                    prop_assert!(used <= allowed + 1, "{} of {}", used, allowed);
                }
                used += u64::from(foreign);
                used = used.min(allowed + 20);
            }
        }
    }
}
