//! For how long nobody may want what the nodes did not give: every head would wait for it anew. No I/O, no clock.

use crate::chain::Absent;
use crate::clock::Millis;

/// After the first time, in milliseconds; each further time in a row it is twice as long as before.
const FIRST: Millis = 60_000;

/// Longest, in milliseconds.
const LONGEST: Millis = 3_600_000;

/// One question that the nodes do not answer.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    until: Millis,
    lasts: Millis,
    why: Absent,
}

impl Refusal {
    /// It was asked in vain.
    pub fn begin(&mut self, why: Absent, now: Millis) {
        let lasts = self.last.as_ref().map_or(FIRST, |last| (2 * last.lasts).min(LONGEST));
        let until = now + lasts;
        self.last = Some(Last { until, lasts, why });
    }

    /// It was answered: the next time is the first again.
    pub fn end(&mut self) {
        self.last = None;
    }

    /// Why nobody may want it now.
    pub fn now(&self, now: Millis) -> Option<Absent> {
        self.last.as_ref().filter(|last| now < last.until).map(|last| last.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_twice_as_long_each_time_up_to_an_hour_and_begins_anew_when_it_works() {
        let mut refusal = Refusal::default();
        let mut now = 1;
        assert_eq!(refusal.now(now), None);
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            refusal.begin(Absent::NotServed, now);
            now += minutes * 60_000;
            assert_eq!(refusal.now(now - 1), Some(Absent::NotServed), "{minutes}");
            assert_eq!(refusal.now(now), None, "{minutes}");
        }
        refusal.end();
        refusal.begin(Absent::Throttled, now);
        assert_eq!(refusal.now(now + FIRST - 1), Some(Absent::Throttled));
        assert_eq!(refusal.now(now + FIRST), None);
        refusal.end();
        assert_eq!(refusal.now(now), None);
    }
}
