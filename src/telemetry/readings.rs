//! Values of metrics by label, for the operator's API.
//!
//! `prometheus_client` gives a family's values, and a histogram's buckets, to its text encoder only. So the few families
//! that are needed are registered once more, in a registry of their own, and its text is read: some fifty lines, read
//! once a second at most.

use std::collections::BTreeMap;

use prometheus_client::registry::Registry;

use super::Metrics;

/// Registry of the metrics that are read.
#[derive(Debug)]
pub struct Readings(Registry);

/// Values at one moment, all since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Refused requests and connections, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Closed connections, by reason.
    pub closes: BTreeMap<String, u64>,
    /// Requests, by outcome.
    pub requests: BTreeMap<String, u64>,
    /// Failovers, by reason.
    pub failovers: BTreeMap<String, u64>,
    /// Samples of the delivery latency at or below each bound in seconds; the last bound is infinite.
    pub latency: Vec<(f64, u64)>,
}

impl Readings {
    /// Registers the metrics that are read.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let mut registry = Registry::default();
        registry.register("refused", "", metrics.refused.clone());
        registry.register("closes", "", metrics.closes.clone());
        registry.register("requests", "", metrics.requests.clone());
        registry.register("failovers", "", metrics.failovers.clone());
        registry.register("latency", "", metrics.delivery_latency.clone());
        Self(registry)
    }

    /// Reads all values.
    #[must_use]
    pub fn read(&self) -> Reading {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.0) {
            Ok(()) => Reading::parse(&text),
            // Writing to a string does not fail.
            Err(_) => Reading::default(),
        }
    }
}

impl Reading {
    fn parse(text: &str) -> Self {
        let mut reading = Self::default();
        for line in text.lines() {
            let Some((name, label, value)) = sample(line) else {
                continue;
            };
            let values = match name {
                "refused_total" => &mut reading.refused,
                "closes_total" => &mut reading.closes,
                "requests_total" => &mut reading.requests,
                "failovers_total" => &mut reading.failovers,
                "latency_bucket" => {
                    let bound = if label == "+Inf" {
                        f64::INFINITY
                    } else {
                        label.parse().unwrap_or(f64::NAN)
                    };
                    reading.latency.push((bound, value));
                    continue;
                }
                _ => continue,
            };
            values.insert(label.to_owned(), value);
        }
        reading
    }
}

/// Returns name, label and value of a line that has one label.
fn sample(line: &str) -> Option<(&str, &str, u64)> {
    let (name, rest) = line.split_once('{')?;
    let (label, value) = rest.split_once("\"} ")?;
    let (_, label) = label.split_once("=\"")?;
    Some((name, label, value.parse().ok()?))
}

/// Returns the latency in seconds at or below which this share of the samples lies, given the samples per bucket:
/// interpolated within the bucket, `None` without samples. Samples above the highest finite bound count as that bound.
#[must_use]
pub fn quantile(buckets: &[(f64, u64)], share: f64) -> Option<f64> {
    let all = buckets.last()?.1;
    let rank = share * all as f64;
    let (mut bound_below, mut below) = (0.0, 0);
    for (bound, up_to) in buckets {
        if all > 0 && *up_to as f64 >= rank && *up_to > below {
            if bound.is_infinite() {
                return Some(bound_below);
            }
            let part = (rank - below as f64).max(0.0) / (up_to - below) as f64;
            return Some(bound_below + (bound - bound_below) * part);
        }
        if bound.is_finite() {
            bound_below = *bound;
        }
        below = *up_to;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{OutcomeLabel, ReasonLabel};

    #[test]
    fn what_was_counted_is_read() {
        let (metrics, _) = Metrics::new();
        let readings = Readings::new(&metrics);
        let none = readings.read();
        assert!(none.refused.is_empty() && none.closes.is_empty());
        assert_eq!(none.latency.len(), 19);
        metrics.refused.get_or_create(&ReasonLabel { reason: "host" }).inc_by(3);
        metrics.closes.get_or_create(&ReasonLabel { reason: "gone" }).inc();
        let outcome = OutcomeLabel { outcome: "result" };
        metrics.requests.get_or_create(&outcome).inc_by(7);
        metrics.failovers.get_or_create(&ReasonLabel { reason: "lost" }).inc();
        metrics.delivery_latency.observe(60e-6);
        metrics.delivery_latency.observe(99.0);
        let some = readings.read();
        let one = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        assert_eq!((some.refused, some.closes), (one("host", 3), one("gone", 1)));
        assert_eq!((some.requests, some.failovers), (one("result", 7), one("lost", 1)));
        let ends: Vec<u64> = [0, 1, 17, 18].map(|at: usize| some.latency[at].1).into();
        assert_eq!(ends, [0, 1, 1, 2]);
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let buckets = |counts: [u64; 4]| {
            let bounds = [1.0, 2.0, 4.0, f64::INFINITY];
            Vec::from_iter(bounds.into_iter().zip(counts))
        };
        for (counts, share, expected) in [
            ([0, 0, 0, 0], 0.5, None),
            ([0, 4, 4, 4], 0.5, Some(1.5)),
            ([0, 4, 4, 4], 1.0, Some(2.0)),
            ([2, 2, 4, 4], 0.5, Some(1.0)),
            ([2, 2, 4, 4], 0.75, Some(3.0)),
            ([0, 0, 0, 9], 0.5, Some(4.0)),
            ([1, 1, 1, 100], 0.99, Some(4.0)),
        ] {
            assert_eq!(quantile(&buckets(counts), share), expected, "{counts:?} {share}");
        }
        assert_eq!(quantile(&[], 0.5), None);
    }
}
