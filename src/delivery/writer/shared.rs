//! State shared by all writers: limits, the clock, and counters of written data.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::delivery::{Backlog, Kind};
use crate::telemetry::{KindLabel, Metrics};

/// Limits of one client's queue, and of all queues together.
#[derive(Clone, Copy, Debug)]
pub struct WriterLimits {
    /// Most bytes in one queue. Not messages: one full block of logs can outweigh a thousand heads.
    pub max_bytes: usize,
    /// Most bytes that wait for all clients together; see [`Backlog`].
    pub max_total_bytes: usize,
    /// Greatest age of an undelivered event.
    pub max_age: Duration,
    /// Hold-off from the answer to `eth_subscribe` to the first notification (E5).
    pub holdoff: Duration,
}

/// State shared by all writers.
#[derive(Debug)]
pub struct WriterShared {
    pub(super) limits: WriterLimits,
    pub(super) clock: Clock,
    next_id: AtomicU64,
    backlog: Backlog,
    /// Counter of each kind, looked up once: the delivery path should not hash labels.
    delivered: [Counter; Kind::ALL.len()],
    bytes_out: Counter,
    saved: Counter,
    latency: Histogram,
}

impl WriterShared {
    /// Creates the shared state with these limits, and looks up the counters.
    #[must_use]
    pub fn new(limits: WriterLimits, clock: Clock, metrics: &Metrics) -> Arc<Self> {
        let delivered = Kind::ALL.map(|kind| {
            metrics
                .deliveries
                .get_or_create_owned(&KindLabel { kind: kind.label() })
        });
        Arc::new(Self {
            limits,
            clock,
            next_id: AtomicU64::new(0),
            backlog: Backlog::new(limits.max_total_bytes),
            delivered,
            bytes_out: metrics.bytes_out.clone(),
            saved: metrics.bytes_saved.clone(),
            latency: metrics.delivery_latency.clone(),
        })
    }

    /// Returns the global backlog of undelivered bytes.
    #[must_use]
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// Returns a new id, unique among all writers since the start.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts bytes saved by compression.
    pub(super) fn saved(&self, bytes: usize) {
        self.saved.inc_by(bytes as u64);
    }

    /// Adds a tally to the metrics.
    pub(super) fn record(&self, tally: &Tally) {
        if tally.bytes > 0 {
            self.bytes_out.inc_by(tally.bytes);
        }
        if tally.saved > 0 {
            self.saved.inc_by(tally.saved);
        }
        for (counter, count) in self.delivered.iter().zip(tally.delivered) {
            if count > 0 {
                counter.inc_by(count);
            }
        }
        if let Some(seen) = tally.latest {
            self.latency.observe(seen.elapsed().as_secs_f64());
        }
    }
}

/// Counts of some writes, added to the metrics together.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) delivered: [u64; Kind::ALL.len()],
    pub(super) bytes: u64,
    pub(super) saved: u64,
    /// Arrival from the node of the event that was written last.
    pub(super) latest: Option<Instant>,
}
