//! How busy one upstream is with clients' calls, how soon it answers, and whether it says that it is asked too much. The
//! caller brings the time.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// After so long without an answer half of what is known of its latency is forgotten: who was slow once is tried again.
const HALF_LIFE: Duration = Duration::from_secs(5);

/// Weight of one answer in the average of latencies, as in TCP's smoothed round trip (RFC 6298 section 2.3).
const SMOOTHING: f64 = 1.0 / 8.0;

/// The shortest time for which what was refused is not asked for, unless so long is too long.
const SHORTEST: Duration = Duration::from_secs(1);

/// The longest, where nothing else bounds it; for so long an upstream that is asked too much is asked only where no other
/// is left.
pub(super) const LONGEST: Duration = Duration::from_secs(30);

/// The load of one upstream.
#[derive(Debug, Default)]
pub(super) struct Load(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    in_flight: u32,
    /// Smoothed latency in seconds, and when it was last told.
    latency: Option<(f64, Instant)>,
    back_off: BackOff,
}

/// How long something is not asked for after a node refused it, since it is asked too much: longer each time, until there
/// was quiet for as long. Each question of our own has one: whatever else the node refuses, its own answer decides.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BackOff(Option<Spared>);

#[derive(Clone, Copy, Debug)]
struct Spared {
    until: Instant,
    length: Duration,
}

impl BackOff {
    /// It was refused; the node may have said when to come again. It is not asked for `longest` at most.
    pub fn refused(&mut self, now: Instant, after: Option<Duration>, longest: Duration) {
        let shortest = SHORTEST.min(longest);
        let length = match self.0 {
            // What was under way already says nothing new, unless it is that it takes longer.
            Some(own) if now < own.until => {
                let until = now + after.unwrap_or_default().min(longest);
                self.0 = Some(Spared {
                    until: until.max(own.until),
                    ..own
                });
                return;
            }
            // It came back and was told the same again.
            Some(own) if now < own.until + own.length => (own.length * 2).min(longest),
            _ => shortest,
        };
        let length = after.map_or(length, |after| after.clamp(shortest, longest));
        self.0 = Some(Spared {
            until: now + length,
            length,
        });
    }

    /// Until when it is not asked for, where that is still to come.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        let until = self.0?.until;
        (now < until).then_some(until)
    }
}

/// Where a call was lost the node is taken to be as slow as this, at least, and is tried again by and by.
const LOST: Duration = Duration::from_secs(1);

/// A call that is under way; it counts until this is dropped.
#[derive(Debug)]
pub(super) struct InFlight<'a> {
    load: &'a Load,
    began: Instant,
    answered: bool,
}

impl InFlight<'_> {
    /// A result came. That of others who are told something else is no measure: an error is quick.
    pub fn answered(mut self, now: Instant) -> Duration {
        self.answered = true;
        let took = now - self.began;
        self.load.took(took, now);
        took
    }

    /// An error came, or nothing: at best it was no quicker than the results before.
    pub fn failed(mut self, now: Instant) {
        self.answered = true;
        self.load.took_at_least(now - self.began, now);
    }

    /// It was lost on the way.
    pub fn lost(mut self, now: Instant) {
        self.answered = true;
        self.load.took_at_least(LOST, now);
    }
}

impl Load {
    /// A call is sent.
    pub fn begin(&self, began: Instant) -> InFlight<'_> {
        self.0.lock().in_flight += 1;
        InFlight {
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

    /// As good as nothing came: it is no quicker than it was, and one that never was quick is not taken to be.
    fn took_at_least(&self, took: Duration, now: Instant) {
        let mut state = self.0.lock();
        let before = state.latency.map_or(LOST.as_secs_f64(), |(before, _)| before);
        state.latency = Some((before.max(took.as_secs_f64()), now));
    }

    /// It says that it is asked too much, and perhaps when to come again.
    pub fn throttled(&self, now: Instant, after: Option<Duration>) {
        self.0.lock().back_off.refused(now, after, LONGEST);
    }

    /// Whether clients' calls should spare it for a while.
    pub fn is_backing_off(&self, now: Instant) -> bool {
        self.0.lock().back_off.until(now).is_some()
    }

    /// What one more call would cost, to be compared: how long it waits where each of those under way takes its time. One
    /// of which nothing is known is tried, by one call at a time.
    pub fn cost(&self, now: Instant) -> f64 {
        let state = self.0.lock();
        match state.latency(now) {
            Some(latency) => latency * f64::from(state.in_flight + 1),
            None if state.in_flight == 0 => 0.0,
            None => f64::INFINITY,
        }
    }

    /// Calls under way, and the smoothed latency.
    pub fn figures(&self) -> (u32, Option<Duration>) {
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
        // A call under way is no idleness: who does not answer is not forgiven for it.
        let idle = if self.in_flight == 0 {
            now.saturating_duration_since(at).as_secs_f64()
        } else {
            0.0
        };
        Some(latency * 0.5_f64.powf(idle / HALF_LIFE.as_secs_f64()))
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.answered {
            // Given up, since another one was quicker, or the one who asked has left.
            let now = Instant::now();
            self.load.took_at_least(now - self.began, now);
        }
        self.load.0.lock().in_flight -= 1;
    }
}

/// Answers to be seen before [`P95`] is believed.
const ENOUGH: u32 = 20;

/// How far one answer moves the estimate, as a part of it.
const STEP: f64 = 0.05;

/// The time within which nineteen of twenty answers come, estimated answer by answer: above it the estimate grows by
/// nineteen parts, below it shrinks by one, so it rests where one in twenty is above.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct P95 {
    seconds: f64,
    seen: u32,
}

impl P95 {
    /// One more answer.
    pub fn note(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.seconds = match self.seen {
            0 => took,
            _ if took > self.seconds => self.seconds * (1.0 + 0.95 * STEP),
            _ => self.seconds * (1.0 - 0.05 * STEP),
        };
        self.seen = self.seen.saturating_add(1);
    }

    /// The estimate, once there were enough answers.
    pub fn get(&self) -> Option<Duration> {
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
        // A time of quiet as long as it was spared, and all is forgotten.
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
    fn a_question_of_our_own_is_not_put_off_for_longer_than_it_can_wait() {
        let (mut back_off, now) = (BackOff::default(), Instant::now());
        assert_eq!(back_off.until(now), None);
        back_off.refused(now, Some(30 * SECOND), 3 * SECOND);
        assert_eq!(back_off.until(now), Some(now + 3 * SECOND));
        let longest = SECOND / 4;
        let mut back_off = BackOff::default();
        for after in [None, Some(Duration::ZERO), Some(SECOND)] {
            back_off.refused(now, after, longest);
            assert_eq!(back_off.until(now), Some(now + longest), "shorter than the shortest");
        }
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
