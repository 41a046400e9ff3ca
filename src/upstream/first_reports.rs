//! Times at which blocks were first reported by any upstream. No I/O, no clock.

use std::collections::VecDeque;
use std::time::Duration;

/// First reports remembered. With four blocks a second that is four minutes, far longer than any `patience`.
const MAX_SIGHTS: usize = 1024;

/// Times at which blocks were first reported, by ascending number: each entry covers its number and those below it
/// down to the entry before.
#[derive(Debug, Default)]
pub(super) struct FirstReports(VecDeque<(u64, Duration)>);

impl FirstReports {
    pub(super) fn note(&mut self, number: u64, now: Duration) {
        if self.0.back().is_none_or(|(newest, _)| number > *newest) {
            self.0.push_back((number, now));
        }
        if self.0.len() > MAX_SIGHTS {
            self.0.pop_front();
        }
    }

    pub(super) fn forget_above(&mut self, number: u64) {
        while let Some((newest, at)) = self.0.pop_back() {
            if newest <= number {
                return self.0.push_back((newest, at));
            }
            if self.0.back().is_none_or(|(before, _)| *before < number) {
                return self.0.push_back((number, at));
            }
        }
    }

    pub(super) fn lag(&self, head: u64, now: Duration) -> Duration {
        let missed = self.0.partition_point(|(number, _)| *number <= head);
        self.0
            .get(missed)
            .map_or(Duration::ZERO, |(_, at)| now.saturating_sub(*at))
    }
}
