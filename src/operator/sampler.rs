//! Samples of the metrics, taken once a second: the latencies of the last minute, and the refusals of the last second.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

use super::views::{BucketView, LatencyView};
use crate::telemetry::{Event, Metrics, Reading, Readings, quantile};

/// Samples of the latencies in memory; with one a second, a minute.
const WINDOW: usize = 60;

/// Samples in memory.
#[derive(Debug)]
pub(super) struct Sampler {
    readings: Readings,
    samples: Mutex<Samples>,
}

#[derive(Debug, Default)]
struct Samples {
    newest: Reading,
    /// Counts of the latency's buckets, oldest first.
    latencies: VecDeque<Vec<u64>>,
}

impl Sampler {
    /// Reads for the first time.
    pub(super) fn new(metrics: &Metrics) -> Self {
        let sampler = Self {
            readings: Readings::new(metrics),
            samples: Mutex::default(),
        };
        sampler.sample();
        sampler
    }

    /// Takes a sample; returns the refusals since the sample before, as an event, if there are any.
    pub(super) fn sample(&self) -> Option<Event> {
        let reading = self.readings.read();
        self.samples.lock().add(reading)
    }

    /// Returns the newest sample, and the latencies of the last minute.
    pub(super) fn newest(&self) -> (Reading, LatencyView) {
        let samples = self.samples.lock();
        (samples.newest.clone(), samples.latency())
    }
}

impl Samples {
    fn add(&mut self, reading: Reading) -> Option<Event> {
        let mut counts = BTreeMap::new();
        for (reason, count) in &reading.refused {
            let before = self.newest.refused.get(reason).copied().unwrap_or(0);
            if *count > before {
                counts.insert(reason.clone(), count - before);
            }
        }
        if self.latencies.len() > WINDOW {
            self.latencies.pop_front();
        }
        self.latencies
            .push_back(reading.latency.iter().map(|(_, count)| *count).collect());
        self.newest = reading;
        (!counts.is_empty()).then_some(Event::Refused { counts })
    }

    fn latency(&self) -> LatencyView {
        let buckets = &self.newest.latency;
        let before = self.latencies.front();
        let within: Vec<(f64, u64)> = buckets
            .iter()
            .enumerate()
            .map(|(at, (bound, count))| {
                let before = before.and_then(|counts| counts.get(at)).copied().unwrap_or(0);
                (*bound, count.saturating_sub(before))
            })
            .collect();
        let ms = |share| quantile(&within, share).map(|seconds| seconds * 1000.0);
        let bucket = |(bound, count): &(f64, u64)| BucketView {
            up_to_ms: bound.is_finite().then_some(bound * 1000.0),
            count: *count,
        };
        LatencyView {
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            buckets: buckets.iter().map(bucket).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_once_and_latencies_for_a_minute() {
        let reading = |host: u64, fast: u64, slow: u64| Reading {
            refused: [("host".to_owned(), host)].into(),
            latency: vec![(0.001, fast), (0.1, fast + slow), (f64::INFINITY, fast + slow)],
            ..Reading::default()
        };
        let mut samples = Samples::default();
        assert_eq!(samples.add(reading(0, 0, 0)), None);
        assert_eq!(samples.latency().p50_ms, None);
        let counts = [("host".to_owned(), 3)].into();
        assert_eq!(samples.add(reading(3, 0, 4)), Some(Event::Refused { counts }));
        assert_eq!(samples.add(reading(3, 0, 4)), None);
        let latency = samples.latency();
        assert!(latency.p50_ms.unwrap() > 1.0 && latency.p99_ms.unwrap() <= 100.0);
        let bounds: Vec<_> = latency.buckets.iter().map(|bucket| bucket.up_to_ms).collect();
        assert_eq!(bounds, [Some(1.0), Some(100.0), None]);
        for _ in 0..WINDOW {
            samples.add(reading(3, 0, 4));
        }
        assert_eq!(samples.latency().p50_ms, None, "a minute later");
        samples.add(reading(3, 9, 4));
        assert!(samples.latency().p99_ms.unwrap() <= 1.0);
    }
}
