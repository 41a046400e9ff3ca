//! Moments of the process's clock: small enough to keep in every queued event, and stopped when tokio's time is paused.

use std::num::NonZeroU64;
use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Moment of the process's clock, in whole milliseconds. `Option<Moment>` needs eight bytes like `Moment` itself: every
/// queued event has one, and every client several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(NonZeroU64);

impl Moment {
    /// Start of the clock.
    pub const START: Self = Self(NonZeroU64::MIN);

    /// Returns the time that has passed since `earlier`; zero if `earlier` is the later moment.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.get().saturating_sub(earlier.0.get()))
    }

    /// Returns the moment as a number above 0, for storage beside other states.
    pub(crate) const fn to_bits(self) -> u64 {
        self.0.get()
    }

    /// Returns the moment of a number from [`Self::to_bits`]; `None` for 0.
    pub(crate) const fn from_bits(bits: u64) -> Option<Self> {
        match NonZeroU64::new(bits) {
            Some(bits) => Some(Self(bits)),
            None => None,
        }
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// Returns the moment `after` later, without the part of `after` below a millisecond. A sum beyond the range is the
    /// last moment.
    fn add(self, after: Duration) -> Self {
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

/// Moment that several threads read and set; `None` for never. Orders no other memory access.
#[derive(Debug, Default)]
pub struct AtomicMoment(AtomicU64);

impl AtomicMoment {
    /// Creates a cell with this moment.
    #[must_use]
    pub const fn new(at: Moment) -> Self {
        Self(AtomicU64::new(at.to_bits()))
    }

    /// Returns the moment.
    #[must_use]
    pub fn load(&self) -> Option<Moment> {
        Moment::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Sets the moment.
    pub fn store(&self, at: Option<Moment>) {
        self.0.store(at.map_or(0, Moment::to_bits), Ordering::Relaxed);
    }
}

/// The process's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the current moment.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment::START + self.0.elapsed()
    }

    /// Converts a moment to an instant for tokio's timers.
    #[must_use]
    pub fn instant(&self, at: Moment) -> Instant {
        self.0 + at.since(Moment::START)
    }
}

/// Returns the moment this many milliseconds after the start.
#[cfg(test)]
pub(crate) fn at(millis: u64) -> Moment {
    Moment::START + Duration::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_or_none_needs_eight_bytes() {
        assert_eq!(size_of::<Option<Moment>>(), 8);
        assert_eq!(size_of::<AtomicMoment>(), 8);
    }

    #[test]
    fn times_are_whole_milliseconds_and_never_overflow() {
        assert_eq!(at(5).since(at(2)), Duration::from_millis(3));
        assert_eq!(at(2).since(at(5)), Duration::ZERO);
        assert_eq!(at(2) + Duration::from_micros(1999), at(3));
        assert_eq!(at(2) + Duration::MAX, at(u64::MAX));
    }

    #[test]
    fn a_cell_is_empty_until_a_moment_is_stored_and_the_start_is_one() {
        let cell = AtomicMoment::default();
        assert_eq!(cell.load(), None);
        cell.store(Some(Moment::START));
        assert_eq!(cell.load(), Some(Moment::START));
        cell.store(None);
        assert_eq!(cell.load(), None);
        assert_eq!(AtomicMoment::new(at(7)).load(), Some(at(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn moments_follow_tokios_time() {
        let clock = Clock::start();
        assert_eq!(clock.now(), Moment::START);
        tokio::time::advance(Duration::from_millis(70)).await;
        assert_eq!(clock.now(), at(70));
        assert_eq!(clock.instant(at(70)), Instant::now());
    }
}
