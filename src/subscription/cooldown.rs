//! Cool-down of new subscriptions after no node gave a block's contents: 1 min, doubling to 1 h; after nodes that did not
//! answer at all, 1 s, doubling to 1 min. Without it new subscribers would wait for contents in vain, and be closed, again
//! and again. No I/O, no clock.

use std::time::Duration;

use crate::backoff::{COOLDOWN, COOLDOWN_UNANSWERED};
use crate::chain::Absent;
use crate::clock::Moment;

/// Cool-down of one kind of contents.
#[derive(Debug, Default)]
pub(super) struct Cooldown {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    until: Moment,
    lasts: Duration,
    why: Absent,
}

impl Cooldown {
    /// Starts a cool-down after a failure.
    pub(super) fn begin(&mut self, why: Absent, now: Moment) {
        let waits = match why {
            Absent::Unanswered => COOLDOWN_UNANSWERED,
            Absent::NotServed | Absent::Throttled | Absent::UnknownBlock => COOLDOWN,
        };
        let lasts = waits.after(self.last.as_ref().map(|last| last.lasts));
        let until = now + lasts;
        self.last = Some(Last { until, lasts, why });
    }

    /// Resets the cool-down after a success: the next one is the shortest again.
    pub(super) fn end(&mut self) {
        self.last = None;
    }

    /// Returns the reason for the cool-down; `None` if there is none now.
    pub(super) fn now(&self, now: Moment) -> Option<Absent> {
        self.last.as_ref().filter(|last| now < last.until).map(|last| last.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_twice_as_long_each_time_up_to_an_hour_and_begins_anew_when_it_works() {
        let mut cooldown = Cooldown::default();
        let mut now = Moment::START;
        assert_eq!(cooldown.now(now), None);
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            cooldown.begin(Absent::NotServed, now);
            let last = now + Duration::from_millis(minutes * 60_000 - 1);
            now = last + Duration::from_millis(1);
            assert_eq!(cooldown.now(last), Some(Absent::NotServed), "{minutes}");
            assert_eq!(cooldown.now(now), None, "{minutes}");
        }
        cooldown.end();
        cooldown.begin(Absent::Throttled, now);
        assert_eq!(
            cooldown.now(now + Duration::from_millis(59_999)),
            Some(Absent::Throttled)
        );
        assert_eq!(cooldown.now(now + Duration::from_secs(60)), None);
        cooldown.end();
        assert_eq!(cooldown.now(now), None);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            cooldown.begin(Absent::Unanswered, now);
            now = now + Duration::from_secs(seconds);
            assert_eq!(cooldown.now(now), None, "{seconds}");
        }
        // A refusal is one, whatever was before.
        cooldown.end();
        cooldown.begin(Absent::Unanswered, now);
        cooldown.begin(Absent::NotServed, now);
        assert_eq!(
            cooldown.now(now + Duration::from_millis(59_999)),
            Some(Absent::NotServed)
        );
    }
}
