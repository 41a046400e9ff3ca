//! Load of one upstream by client calls: calls in flight, latency, and the back-off after a rate limit. The caller
//! passes the time.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::backoff::{BackOff, RATE_LIMIT};

/// Idle time after which a known latency is halved, so that an upstream that was slow once is tried again.
const HALF_LIFE: Duration = Duration::from_secs(5);

/// Weight of one answer in the average of latencies, as in TCP's smoothed round trip (RFC 6298 section 2.3).
const SMOOTHING: f64 = 1.0 / 8.0;

/// The load of one upstream.
#[derive(Debug, Default)]
pub(super) struct Load(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    in_flight: u32,
    /// Smoothed latency in seconds, and the time of its last update; `None` before the first answer or failure.
    latency: Option<(f64, Instant)>,
    back_off: BackOff,
}

/// Latency that a lost call counts as, at least. It decays, so the node is tried again.
const LOST: Duration = Duration::from_secs(1);

/// Call in flight; counts until it is dropped.
#[derive(Debug)]
pub(super) struct InFlightCall<'a> {
    load: &'a Load,
    began: Instant,
    answered: bool,
}

impl InFlightCall<'_> {
    /// Records a result, and returns its latency. Errors never lower the average: nodes fail fast.
    pub(super) fn answered(mut self, now: Instant) -> Duration {
        self.answered = true;
        let took = now - self.began;
        self.load.took(took, now);
        took
    }

    /// Records an error or a time-out: the average can only rise.
    pub(super) fn failed(mut self, now: Instant) {
        self.answered = true;
        self.load.took_at_least(now - self.began, now);
    }

    /// Records a lost call: its latency counts as `LOST` at least.
    pub(super) fn lost(mut self, now: Instant) {
        self.answered = true;
        self.load.took_at_least(LOST, now);
    }
}

impl Load {
    /// Counts a call as in flight from this time.
    pub(super) fn begin(&self, began: Instant) -> InFlightCall<'_> {
        self.0.lock().in_flight += 1;
        InFlightCall {
            load: self,
            began,
            answered: false,
        }
    }

    fn took(&self, took: Duration, now: Instant) {
        let mut state = self.0.lock();
        let took = took.as_secs_f64();
        let smoothed = state
            .latency(now)
            .map_or(took, |before| before + SMOOTHING * (took - before));
        state.latency = Some((smoothed, now));
    }

    /// Records a failed or abandoned call: the average can only rise, and without any sample is `LOST` at least.
    fn took_at_least(&self, took: Duration, now: Instant) {
        let mut state = self.0.lock();
        let before = state.latency.map_or(LOST.as_secs_f64(), |(before, _)| before);
        state.latency = Some((before.max(took.as_secs_f64()), now));
    }

    /// Records a rate limit, with the wait that the node names, or a gateway that reaches no node.
    pub(super) fn throttled(&self, now: Instant, after: Option<Duration>) {
        self.0.lock().back_off.refused(now, after, RATE_LIMIT);
    }

    /// Checks if client calls should avoid this upstream, since a back-off runs.
    pub(super) fn is_backing_off(&self, now: Instant) -> bool {
        self.0.lock().back_off.until(now).is_some()
    }

    /// Returns the expected latency of one more call in seconds, if each call in flight takes the smoothed latency.
    /// Without any sample the cost is 0 while no call is in flight, and infinite otherwise: a new upstream is tried
    /// by one call at a time.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        let state = self.0.lock();
        match state.latency(now) {
            Some(latency) => latency * f64::from(state.in_flight + 1),
            None if state.in_flight == 0 => 0.0,
            None => f64::INFINITY,
        }
    }

    /// Returns the number of calls in flight and the smoothed latency, `None` before the first sample.
    pub(super) fn figures(&self) -> (u32, Option<Duration>) {
        let state = self.0.lock();
        (
            state.in_flight,
            state.latency.map(|(own, _)| Duration::from_secs_f64(own)),
        )
    }
}

impl State {
    fn latency(&self, now: Instant) -> Option<f64> {
        let (latency, at) = self.latency?;
        // The latency decays only while idle: an upstream that owes answers does not improve by being silent.
        let idle = if self.in_flight == 0 {
            now.saturating_duration_since(at).as_secs_f64()
        } else {
            0.0
        };
        Some(latency * 0.5_f64.powf(idle / HALF_LIFE.as_secs_f64()))
    }
}

impl Drop for InFlightCall<'_> {
    fn drop(&mut self) {
        if !self.answered {
            // Abandoned: another upstream was quicker, or the caller left.
            let now = Instant::now();
            self.load.took_at_least(now - self.began, now);
        }
        self.load.0.lock().in_flight -= 1;
    }
}

/// Answers needed before [`P95`] gives an estimate.
const ENOUGH: u32 = 20;

/// Step by which an answer moves the estimate, as a fraction of it.
const STEP: f64 = 0.05;

/// 95th percentile of latencies, estimated answer by answer: a longer latency raises the estimate by nineteen parts,
/// a shorter one lowers it by one part, so it rests where one in twenty is longer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct P95 {
    seconds: f64,
    seen: u32,
}

impl P95 {
    /// Records the latency of an answer.
    pub(super) fn note(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.seconds = match self.seen {
            0 => took,
            _ if took > self.seconds => self.seconds * (1.0 + 0.95 * STEP),
            _ => self.seconds * (1.0 - 0.05 * STEP),
        };
        self.seen = self.seen.saturating_add(1);
    }

    /// Returns the estimate; `None` before [`ENOUGH`] answers.
    pub(super) fn get(&self) -> Option<Duration> {
        (self.seen >= ENOUGH).then(|| Duration::from_secs_f64(self.seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_cost_grows_with_latency_and_with_what_is_under_way() {
        let (load, now) = (Load::default(), Instant::now());
        assert_eq!(load.cost(now), 0.0, "nobody knows yet: it is tried");
        let first = load.begin(now);
        assert_eq!(load.cost(now), f64::INFINITY, "by one call at a time");
        let now = now + Duration::from_millis(100);
        first.answered(now);
        assert_eq!(load.cost(now), 0.1);
        let one = load.begin(now);
        let two = load.begin(now);
        assert!((load.cost(now) - 0.3).abs() < 1e-9);
        assert_eq!(load.cost(now + 60 * SECOND), load.cost(now), "it owes answers");
        one.failed(now);
        two.failed(now);
        assert_eq!(load.cost(now), 0.1, "an error is no measure of speed");
        let soon = now + HALF_LIFE;
        load.begin(soon).failed(soon);
        assert_eq!(load.cost(soon), 0.1, "nor is it forgiven by and by while it fails");
        assert!(
            (load.cost(soon + HALF_LIFE) - 0.05).abs() < 1e-9,
            "idle: half is forgotten"
        );
        load.begin(soon).lost(soon);
        assert_eq!(load.cost(soon), 1.0, "one that loses calls is slow");
        let fresh = Load::default();
        fresh.begin(now).failed(now);
        assert_eq!(fresh.cost(now), 1.0, "and so is one of which nothing else is known");
        assert_eq!(load.figures().0, 0);
    }

    #[test]
    fn who_is_asked_too_much_is_spared_for_longer_each_time() {
        let (load, mut now) = (Load::default(), Instant::now());
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            load.throttled(now, None);
            load.throttled(now, None);
            let length = seconds * SECOND;
            assert!(
                load.is_backing_off(now + length - Duration::from_millis(1)),
                "{seconds}"
            );
            now += length;
            assert!(!load.is_backing_off(now), "{seconds}");
        }
        // Without a rate limit for as long as the last back-off, the back-off starts anew.
        now += 31 * SECOND;
        load.throttled(now, None);
        assert!(!load.is_backing_off(now + SECOND));
        now += 5 * SECOND;
        load.throttled(now, Some(10 * SECOND));
        assert!(load.is_backing_off(now + 9 * SECOND), "it said when to come again");
        load.throttled(now, Some(5 * SECOND));
        assert!(load.is_backing_off(now + 9 * SECOND), "the longer of two");
        load.throttled(now, Some(20 * SECOND));
        assert!(load.is_backing_off(now + 19 * SECOND));
        assert!(!load.is_backing_off(now + 20 * SECOND));
        now += 300 * SECOND;
        load.throttled(now, Some(3600 * SECOND));
        assert!(!load.is_backing_off(now + 30 * SECOND), "but not for so long");
    }

    #[test]
    fn one_in_twenty_is_above_the_estimate() {
        let mut random = 1_u64;
        let mut draw = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            Duration::from_micros((random >> 33) % 10_000)
        };
        let mut p95 = P95::default();
        for _ in 0..ENOUGH - 1 {
            p95.note(draw());
        }
        assert_eq!(p95.get(), None);
        for _ in 0..5000 {
            p95.note(draw());
        }
        let estimate = p95.get().expect("enough").as_micros();
        assert!((9_000..10_000).contains(&estimate), "{estimate} of 10000");
    }
}
