//! An account's record of what its calls cost at the nodes: connections that they broke, and long answers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Time for which a consequence is in force (issue 12).
pub const CONSEQUENCE: Duration = Duration::from_secs(600);

/// Length of an answer, in bytes, above which it is long: some milliseconds of a link of 1 Gbit/s.
const LONG_ANSWER: usize = 1 << 20;

/// Calls that an account may have in flight before the length of its answers is known. Each short answer adds one, as
/// in the slow start of TCP (RFC 5681, section 3.1): 60 calls at once take five round trips in place of one.
const FIRST_CALLS: usize = 2;

/// Size of the window at which an account's answers count as known: from then on the calls in flight are not bounded.
const KNOWN_CALLS: usize = 64;

/// Calls of an account that are sent on connections of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solitude {
    /// Those that were lost with a shared connection.
    Lost,
    /// Also all that may change something.
    Changes,
    /// All.
    All,
}

/// Record of an account, shared with its calls on their way to the nodes.
#[derive(Debug, Default)]
pub struct Conduct {
    /// `true` once there was a consequence; nearly all accounts have none, and take this fast path.
    has_record: AtomicBool,
    until: Mutex<Consequences>,
    /// Length of the account's answers, in bytes: the longest of late, which shrinks with each shorter one.
    answer: AtomicUsize,
    window: Mutex<Window>,
    /// Signal that the window has room for a waiting call.
    room: Notify,
}

/// Calls of the account in flight.
#[derive(Debug)]
struct Window {
    under_way: usize,
    /// Calls that may be in flight: [`FIRST_CALLS`] to [`KNOWN_CALLS`], at which there is no bound.
    size: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            under_way: 0,
            size: FIRST_CALLS,
        }
    }
}

impl Window {
    fn has_room(&self) -> bool {
        self.under_way < self.size || self.size >= KNOWN_CALLS
    }
}

/// Call in flight that the window counts.
#[derive(Debug)]
pub struct Counted<'a>(&'a Conduct);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.window.lock().under_way -= 1;
        self.0.room.notify_one();
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Consequences {
    refused: Option<Instant>,
    all_alone: Option<Instant>,
    sends_alone: Option<Instant>,
}

impl Conduct {
    /// Records a call that broke a connection on which it was alone: the account's calls are refused for a while.
    pub fn broke_a_connection(&self, now: Instant) {
        self.record(|until| until.refused = Some(now + CONSEQUENCE));
    }

    /// Makes the account's calls go on connections of their own for a while: an answer was longer than is read from a
    /// node, or a call that may have broken a connection had no answer in time.
    pub fn isolate_calls(&self, now: Instant) {
        self.record(|until| until.all_alone = Some(now + CONSEQUENCE));
    }

    /// Makes the account's calls that may change something go on connections of their own for a while, to find the one
    /// that breaks connections: one was in flight on a connection that broke, and could not be tried alone.
    pub fn isolate_changes(&self, now: Instant) {
        self.record(|until| until.sends_alone = Some(now + CONSEQUENCE));
    }

    /// Records the length of an answer, in bytes. A long answer is forgotten after some short ones.
    pub fn record_answer_size(&self, bytes: usize) {
        let before = self.answer.load(Ordering::Relaxed);
        let after = bytes.max(before - before / 4);
        if after != before {
            self.answer.store(after, Ordering::Relaxed);
        }
        {
            let mut window = self.window.lock();
            window.size = match bytes > LONG_ANSWER {
                true => FIRST_CALLS,
                false => KNOWN_CALLS.min(window.size + 1),
            };
        }
        self.room.notify_one();
    }

    /// Counts a call among those in flight, as soon as the window has room for it.
    pub async fn begin(&self) -> Counted<'_> {
        loop {
            if let Some(counted) = self.try_begin() {
                if self.window.lock().has_room() {
                    // One signal may stand for several places.
                    self.room.notify_one();
                }
                return counted;
            }
            self.room.notified().await;
        }
    }

    /// Counts a call among those in flight, if the window has room for it now.
    #[must_use]
    pub fn try_begin(&self) -> Option<Counted<'_>> {
        let mut window = self.window.lock();
        if !window.has_room() {
            return None;
        }
        window.under_way += 1;
        Some(Counted(self))
    }

    /// Checks if a consequence is in force.
    #[must_use]
    pub fn has_consequence(&self, now: Instant) -> bool {
        let lasts = |until: Option<Instant>| until.is_some_and(|until| now < until);
        self.until()
            .is_some_and(|until| lasts(until.refused) || lasts(until.all_alone) || lasts(until.sends_alone))
    }

    /// Checks if the account's recent answers were long.
    #[must_use]
    pub fn gets_long_answers(&self) -> bool {
        self.answer.load(Ordering::Relaxed) > LONG_ANSWER
    }

    /// Checks if there ever was a consequence; if not, none of the checks below needs to be made.
    #[must_use]
    pub fn has_record(&self) -> bool {
        self.has_record.load(Ordering::Acquire)
    }

    /// Returns the remaining time for which calls are refused; `None` if they are not.
    #[must_use]
    pub fn refused_for(&self, now: Instant) -> Option<Duration> {
        let until = self.until()?.refused?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Checks if a call must be sent on a connection of its own; `changes`: it may change something, and is not
    /// repeated after a loss.
    #[must_use]
    pub fn is_alone(&self, changes: bool, now: Instant) -> bool {
        match self.solitude(now) {
            Solitude::All => true,
            Solitude::Changes => changes,
            Solitude::Lost => false,
        }
    }

    /// Returns which of the account's calls are sent alone now.
    #[must_use]
    pub fn solitude(&self, now: Instant) -> Solitude {
        let lasts = |until: Option<Instant>| until.is_some_and(|until| now < until);
        match self.until() {
            Some(until) if lasts(until.all_alone) => Solitude::All,
            Some(until) if lasts(until.sends_alone) => Solitude::Changes,
            _ => Solitude::Lost,
        }
    }

    fn record(&self, edit: impl FnOnce(&mut Consequences)) {
        edit(&mut self.until.lock());
        self.has_record.store(true, Ordering::Release);
    }

    fn until(&self) -> Option<Consequences> {
        self.has_record().then(|| *self.until.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_answers_are_forgotten_with_short_ones() {
        let conduct = Conduct::default();
        conduct.record_answer_size(LONG_ANSWER);
        assert!(!conduct.gets_long_answers());
        conduct.record_answer_size(20 * LONG_ANSWER);
        let mut short = 0;
        while conduct.gets_long_answers() {
            conduct.record_answer_size(100);
            short += 1;
        }
        assert_eq!(short, 11);
    }

    #[tokio::test]
    async fn calls_under_way_grow_with_each_short_answer() {
        use futures_util::FutureExt as _;
        let conduct = Conduct::default();
        // Calls that begin at once; each stays in flight.
        let begin = |answered: usize, bytes: usize| {
            (0..answered).for_each(|_| conduct.record_answer_size(bytes));
            std::iter::from_fn(|| conduct.begin().now_or_never())
                .take(100)
                .collect::<Vec<_>>()
        };
        let first = begin(0, 0);
        assert_eq!(first.len(), 2);
        assert_eq!(begin(1, 100).len(), 1);
        drop(first);
        assert_eq!(begin(2, 100).len(), 5);
        assert_eq!(begin(KNOWN_CALLS, 100).len(), 100, "known");
        assert_eq!(begin(1, LONG_ANSWER + 1).len(), 2, "not any more");
    }

    #[tokio::test]
    async fn a_call_that_waits_begins_when_another_ends() {
        let conduct = std::sync::Arc::new(Conduct::default());
        let (one, two) = (conduct.begin().await, conduct.begin().await);
        let waiting = {
            let conduct = conduct.clone();
            tokio::spawn(async move { drop(conduct.begin().await) })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(one);
        waiting.await.expect("it begins");
        // All that wait begin once the answers are known.
        let waiting: Vec<_> = (0..200)
            .map(|_| {
                let conduct = conduct.clone();
                tokio::spawn(async move { std::mem::forget(conduct.begin().await) })
            })
            .collect();
        tokio::task::yield_now().await;
        (0..KNOWN_CALLS).for_each(|_| conduct.record_answer_size(100));
        for waiting in waiting {
            waiting.await.expect("it begins");
        }
        drop(two);
    }

    #[test]
    fn each_consequence_lasts_ten_minutes() {
        let (conduct, now) = (Conduct::default(), Instant::now());
        let state = |at: Instant| {
            (
                conduct.refused_for(at),
                conduct.is_alone(false, at),
                conduct.is_alone(true, at),
            )
        };
        assert_eq!(state(now), (None, false, false));
        conduct.isolate_changes(now);
        assert_eq!(state(now), (None, false, true));
        conduct.isolate_calls(now);
        assert_eq!(state(now), (None, true, true));
        conduct.broke_a_connection(now);
        let second = Duration::from_secs(1);
        assert_eq!(state(now + second), (Some(CONSEQUENCE - second), true, true));
        assert_eq!(state(now + CONSEQUENCE), (None, false, false));
    }
}
