//! Waits before something is tried again that grow while it fails. No I/O, no clock.
//!
//! Each wait is twice the one before, from a first to a longest; attempts are counted by the user, and so is their end.
//!
//! | waits | first | longest | user | reason |
//! |---|---|---|---|---|
//! | [`Reconnection`] | `node.reconnect_min` | `node.reconnect_max`, 2 s where no node answers | `upstream::connection`, `call_lane` until the lane is open | many instances must not connect to a node at once, so these waits have jitter |
//! | [`RATE_LIMIT`] | 1 s | 30 s | [`BackOff`] in `upstream`: clients' calls, and each kind of our own requests to one node | rate limits pass within seconds; a poll is not put off until the node counts as lost |
//! | [`HEAD`] | 10 ms | 500 ms | `upstream::announcement` | a node announces a head before it serves the block |
//! | [`LANE_HEAD`] | 50 ms | 5 s | `upstream::call_lane`, while it opens | the node at the other end is about to import the newest head |
//! | [`LANE_THROTTLED`] | 250 ms | 5 s | `upstream::call_lane`, while it opens | a rate limit, within the time limit of a connection |
//! | [`BLOCK`] | 40 ms | 2 s | `chain`: ingest, source, archive | a node announces a block before it serves its parents |
//! | [`RESUME`] | 300 ms | 2 s | `subscription::replay`: the block after which a client resumes | another instance, or its node, may be a moment ahead |
//! | [`CONTENTS`] | 40 ms | 1 s | `chain::inquiry`: one node, one way, one block | within a block's time |
//! | [`CONTENTS_THROTTLED`] | 640 ms | 1 s | the same, after a rate limit | |
//! | [`PUT_OFF`] | 1 min | 1 h | `chain::inquiry`: a way that does not work at a node | a node seldom learns to serve what it does not |
//! | [`PUT_OFF_THROTTLED`] | 1 s | 1 min | the same, after a rate limit | rate limits pass |
//! | [`COOLDOWN_UNANSWERED`] | 1 s | 1 min | the same as the next, where no node answered at all | nodes that are cut off return, and the next answer ends it |
//! | [`COOLDOWN`] | 1 min | 1 h | `subscription::cooldown`: new subscriptions after no node gave a block's contents | clients would wait in vain, and be closed, again and again |
//!
//! The time limit of our own calls doubles in the same way (`upstream::pool`). Waits of other kinds are not here:
//!
//! - **intervals**, at which something may be due: the head of a polled node, the one repeat of a failed poll, a node of
//!   another chain (`upstream::poller`); room in a client's queue (`subscription::replay`); a connected node
//!   (`chain::contents`);
//! - **few attempts at a fixed distance**, which a client waits for: a page of a replay (`subscription::replay::task`),
//!   a published block that a node lacks (`rpc::calls`), a transaction that nodes may have (`rpc::send`);
//! - **long waits until a node is believed to have changed**: a second connection (`upstream::lanes`), `newHeads`
//!   (`upstream::connection::heads`), form of announcements (`upstream::announcement`), development methods
//!   (`rpc::development`);
//! - **budgets**, times after which a search ends however often it was tried: a block's contents (`chain::inquiry`);
//! - **failed accepts**, 50 ms: file descriptors are returned at any time (`server::listener`, `admin::listener`);
//! - **hints to clients**, `retryAfterMs`, after which they may try again (`shares`, `door::account`).

use std::time::Duration;

use tokio::time::Instant;

/// Back-off of requests to a node after a rate limit. Meanwhile client calls go to the node only where no other is
/// left.
pub(crate) const RATE_LIMIT: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_secs(30));

/// Waits for a block that a node has announced.
pub(crate) const HEAD: Doubling = Doubling::new(Duration::from_millis(10), Duration::from_millis(500));

/// Waits for the newest head at the other end of a connection for calls.
pub(crate) const LANE_HEAD: Doubling = Doubling::new(Duration::from_millis(50), Duration::from_secs(5));

/// Waits after a rate limit while a connection for calls is opened.
pub(crate) const LANE_THROTTLED: Doubling = Doubling::new(Duration::from_millis(250), Duration::from_secs(5));

/// Waits before a block is fetched again.
pub(crate) const BLOCK: Doubling = Doubling::new(Duration::from_millis(40), Duration::from_secs(2));

/// Waits before nodes are asked again for the block after which a client resumes.
pub(crate) const RESUME: Doubling = Doubling::new(Duration::from_millis(300), Duration::from_secs(2));

/// Waits before a node is asked again for a block's contents in the same way.
pub(crate) const CONTENTS: Doubling = Doubling::new(Duration::from_millis(40), Duration::from_secs(1));

/// Waits in place of [`CONTENTS`] after a rate limit.
pub(crate) const CONTENTS_THROTTLED: Doubling = Doubling::new(Duration::from_millis(640), Duration::from_secs(1));

/// Times for which a way to request contents is put off at a node.
pub(crate) const PUT_OFF: Doubling = Doubling::new(Duration::from_secs(60), Duration::from_secs(3600));

/// Times in place of [`PUT_OFF`] after a rate limit.
pub(crate) const PUT_OFF_THROTTLED: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_secs(60));

/// Times in place of [`COOLDOWN`] where no node answered at all.
pub(crate) const COOLDOWN_UNANSWERED: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_secs(60));

/// Times for which new subscriptions are refused.
pub(crate) const COOLDOWN: Doubling = Doubling::new(Duration::from_secs(60), Duration::from_secs(3600));

/// Longest time between attempts to connect where no node answers: the node is down or frozen, an attempt costs neither
/// side anything, and streams should go on soon after its return.
const NOBODY: Duration = Duration::from_secs(2);

/// Times that double from a first to a longest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doubling {
    first: Duration,
    longest: Duration,
}

impl Doubling {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// Bounds all times by `longest`, the first too.
    pub(crate) fn within(self, longest: Duration) -> Self {
        Self::new(self.first.min(longest), self.longest.min(longest))
    }

    /// Returns time number `n`, counted from 0.
    pub(crate) fn nth(self, n: u32) -> Duration {
        self.first.saturating_mul(1 << n.min(31)).min(self.longest)
    }

    /// Returns the wait before an attempt, counted from 0: none before the first.
    pub(crate) fn before(self, attempt: u32) -> Duration {
        attempt.checked_sub(1).map_or(Duration::ZERO, |n| self.nth(n))
    }

    /// Returns the time after `last`, `None` for the first.
    pub(crate) fn after(self, last: Option<Duration>) -> Duration {
        last.map_or(self.first, |last| {
            last.saturating_mul(2).clamp(self.first, self.longest)
        })
    }
}

/// Reason for a new attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No node at the address: no process listens there, its name is unknown, or what listens there (a container's port,
    /// a gateway) has no node behind it.
    Refused,
    /// No answer within a time limit, from a host or node that is down or frozen.
    Unanswered,
    /// Lost connection that had served: the node is most likely restarting, however short the connection lasted.
    Gone,
    /// Connection that never served, or that ended for another reason.
    Other,
}

/// Waits before connections to one node. Each is random in the upper half of a bound that doubles, but not below the
/// first wait and never above the longest. After an attempt that ended at a time limit, the wait begins with it.
#[derive(Debug)]
pub(crate) struct Reconnection {
    waits: Doubling,
    /// Bound of the last wait; `None` before the first one, and after a connection that lasted.
    bound: Option<Duration>,
}

impl Reconnection {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        let waits = Doubling::new(first, longest);
        Self { waits, bound: None }
    }

    /// Returns the wait after a connection, or an attempt at one, that took this time. The waits start anew after a
    /// connection that lasted, and grow while connections fail at once.
    pub(crate) fn wait(&mut self, why: Failure, lasted: Duration) -> Duration {
        let Doubling { first, longest } = self.waits;
        if lasted > longest {
            self.bound = None;
        }
        let longest = match why {
            // Waits for a node that is down do not add to those after other failures: the port may open before the node
            // answers.
            Failure::Refused | Failure::Unanswered | Failure::Gone => longest.min(NOBODY).max(first),
            Failure::Other => longest,
        };
        let bound = Doubling::new(first, longest).after(Some(self.bound.unwrap_or(first)));
        self.bound = Some(bound);
        let least = (bound / 2).max(first);
        let wait = least + (bound - least).mul_f64(fastrand::f64());
        match why {
            // The attempt was most of the wait. The next one is in the node's queue when the node goes on.
            Failure::Unanswered => wait.saturating_sub(lasted).max(first),
            Failure::Refused | Failure::Gone | Failure::Other => wait,
        }
    }
}

/// Back-off after a rate limit or another refusal: it doubles each time, until there was none for as long as the last
/// back-off. Each kind of our own questions has its own back-off, which only answers of that kind change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BackOff(Option<Delay>);

#[derive(Clone, Copy, Debug)]
struct Delay {
    until: Instant,
    length: Duration,
}

impl BackOff {
    /// Records a refusal. `after` is the wait that the node names.
    pub(crate) fn refused(&mut self, now: Instant, after: Option<Duration>, waits: Doubling) {
        let length = match self.0 {
            // The answer to a call that was already in flight: only a longer wait is news.
            Some(own) if now < own.until => {
                let until = now + after.unwrap_or_default().min(waits.longest);
                self.0 = Some(Delay {
                    until: until.max(own.until),
                    ..own
                });
                return;
            }
            // Refused again soon after the back-off ended.
            Some(own) if now < own.until + own.length => waits.after(Some(own.length)),
            _ => waits.first,
        };
        let length = after.map_or(length, |after| after.clamp(waits.first, waits.longest));
        self.0 = Some(Delay {
            until: now + length,
            length,
        });
    }

    /// Returns the end of the back-off, `None` where it is over.
    pub(crate) fn until(&self, now: Instant) -> Option<Instant> {
        let until = self.0?.until;
        (now < until).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn times_double_up_to_the_longest() {
        let waits = Doubling::new(40 * MS, 500 * MS);
        assert_eq!(
            [0, 1, 2, 3, 4, 31, u32::MAX].map(|n| waits.nth(n)),
            [40, 80, 160, 320, 500, 500, 500].map(|ms| ms * MS)
        );
        assert_eq!(
            [0, 1, 2, u32::MAX].map(|n| waits.before(n)),
            [0, 40, 80, 500].map(|ms| ms * MS)
        );
        let after = |last: Option<u32>| waits.after(last.map(|ms| ms * MS));
        assert_eq!(
            [None, Some(0), Some(40), Some(499), Some(10_000)].map(after),
            [40, 40, 80, 500, 500].map(|ms| ms * MS)
        );
        let short = waits.within(30 * MS);
        assert_eq!([short.nth(0), short.nth(9), short.after(None)], [30 * MS; 3]);
    }

    /// Checks the waits after failures in a row against the bounds of each, in milliseconds: at least half of the
    /// bound, at most the bound.
    fn check(first: u32, longest: u32, failures: &[(Failure, u32)], bounds: &[(u32, u32)]) {
        for seed in 0..1000 {
            fastrand::seed(seed);
            let mut reconnection = Reconnection::new(first * MS, longest * MS);
            for (at, ((why, lasted), (least, most))) in failures.iter().zip(bounds).enumerate() {
                let wait = reconnection.wait(*why, *lasted * MS);
                assert!(
                    *least * MS <= wait && wait <= *most * MS,
                    "seed {seed}, wait {at}: {wait:?}"
                );
                assert!(
                    !wait.is_zero() && wait <= longest * MS,
                    "seed {seed}, wait {at}: {wait:?}"
                );
            }
        }
    }

    #[test]
    fn waits_grow_and_stay_within_the_longest_whatever_the_jitter() {
        let failures = [(Failure::Other, 0); 10];
        check(
            100,
            10_000,
            &failures,
            &[
                (100, 200),
                (200, 400),
                (400, 800),
                (800, 1600),
                (1600, 3200),
                (3200, 6400),
                (5000, 10_000),
                (5000, 10_000),
                (5000, 10_000),
                (5000, 10_000),
            ],
        );
        check(50, 50, &failures, &[(50, 50); 10]);
        check(50, 80, &failures, &[(50, 80); 10]);
        check(1, u32::MAX, &failures, &[(1, 2), (2, 4), (4, 8), (8, 16), (16, 32)]);
    }

    #[test]
    fn waits_differ_by_the_jitter() {
        let wait = |seed| {
            fastrand::seed(seed);
            let mut reconnection = Reconnection::new(SECOND, 60 * SECOND);
            reconnection.wait(Failure::Other, Duration::ZERO)
        };
        assert_eq!(wait(1), wait(1));
        assert_ne!(wait(1), wait(2));
    }

    #[test]
    fn a_node_that_refuses_connections_is_tried_every_two_seconds_at_least() {
        use Failure::{Other, Refused};
        let refused = [(Refused, 0); 8];
        let bounds = [
            (100, 200),
            (200, 400),
            (400, 800),
            (800, 1600),
            (1000, 2000),
            (1000, 2000),
        ];
        check(100, 10_000, &refused, &bounds);
        check(100, 300, &refused, &[(100, 200), (150, 300), (150, 300)]);
        // A longer first wait is the operator's choice.
        check(3000, 10_000, &refused, &[(3000, 3000), (3000, 3000)]);
        // The port opens before the node answers: the other failures start from there.
        let starts = [refused.as_slice(), &[(Other, 0), (Other, 0), (Refused, 0)]].concat();
        let after = [
            bounds.as_slice(),
            &[(1000, 2000), (1000, 2000), (2000, 4000), (4000, 8000), (1000, 2000)],
        ]
        .concat();
        check(100, 10_000, &starts, &after);
    }

    #[test]
    fn short_connections_that_served_do_not_add_to_the_wait_after_a_restart() {
        let restarts = [(Failure::Gone, 3_000); 8];
        let bounds = [
            (100, 200),
            (200, 400),
            (400, 800),
            (800, 1600),
            (1000, 2000),
            (1000, 2000),
        ];
        check(100, 10_000, &restarts, &bounds);
    }

    #[test]
    fn an_attempt_without_an_answer_is_part_of_the_wait() {
        use Failure::{Other, Refused, Unanswered};
        check(100, 10_000, &[(Unanswered, 10_000); 4], &[(100, 100); 4]);
        check(100, 10_000, &[(Unanswered, 5_000); 4], &[(100, 100); 4]);
        // A short time limit is no reason to try more often than a node that refuses.
        let bounds = [
            (100, 100),
            (100, 300),
            (300, 700),
            (700, 1500),
            (900, 1900),
            (900, 1900),
        ];
        check(100, 10_000, &[(Unanswered, 100); 6], &bounds);
        let mixed = [(Unanswered, 10_000), (Refused, 0), (Other, 0), (Unanswered, 3_000)];
        check(100, 10_000, &mixed, &[(100, 100), (200, 400), (400, 800), (100, 100)]);
    }

    #[test]
    fn waits_start_anew_after_a_connection_that_lasted() {
        let failures = [(Failure::Other, 0), (Failure::Other, 10_000), (Failure::Other, 10_001)];
        check(100, 10_000, &failures, &[(100, 200), (200, 400), (100, 200)]);
    }

    #[test]
    fn a_question_of_our_own_is_not_put_off_for_longer_than_it_can_wait() {
        let (mut back_off, now) = (BackOff::default(), Instant::now());
        assert_eq!(back_off.until(now), None);
        back_off.refused(now, Some(30 * SECOND), RATE_LIMIT.within(3 * SECOND));
        assert_eq!(back_off.until(now), Some(now + 3 * SECOND));
        let longest = SECOND / 4;
        let mut back_off = BackOff::default();
        for after in [None, Some(Duration::ZERO), Some(SECOND)] {
            back_off.refused(now, after, RATE_LIMIT.within(longest));
            assert_eq!(back_off.until(now), Some(now + longest), "shorter than the shortest");
        }
    }
}
