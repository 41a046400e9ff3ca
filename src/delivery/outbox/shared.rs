//! What all outboxes share: their limits, the clock, and the counts of what they wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use crate::clock::{Clock, Millis};
use crate::delivery::{Backlog, Kind};
use crate::telemetry::{KindLabel, Metrics};

/// Bounds of one client's queue.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Bytes, not messages: one full block of logs can outweigh a thousand heads.
    pub max_bytes: usize,
    /// Bytes that wait for all clients together; see [`Backlog`].
    pub max_total_bytes: usize,
    /// Age of the oldest undelivered event, in milliseconds.
    pub max_age: Millis,
    /// From the answer to `eth_subscribe` to the first notification, in milliseconds (E5).
    pub holdoff: Millis,
}

/// What all outboxes share.
#[derive(Debug)]
pub struct OutboxShared {
    pub(super) limits: OutboxLimits,
    pub(super) clock: Clock,
    next_id: AtomicU64,
    backlog: Backlog,
    /// Looked up once: the delivery path should not hash labels.
    delivered: [Counter; Kind::ALL.len()],
    bytes_out: Counter,
    saved: Counter,
    latency: Histogram,
}

impl OutboxShared {
    /// Limits and counters.
    #[must_use]
    pub fn new(limits: OutboxLimits, clock: Clock, metrics: &Metrics) -> Arc<Self> {
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

    /// What all of them together hold back.
    #[must_use]
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// Names an outbox among all that there ever were.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Bytes that compression kept from the socket.
    pub(super) fn saved(&self, bytes: usize) {
        self.saved.inc_by(bytes as u64);
    }

    /// Counts.
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

/// What some writes did.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) delivered: [u64; Kind::ALL.len()],
    pub(super) bytes: u64,
    pub(super) saved: u64,
    /// When the event that was written last arrived from the node.
    pub(super) latest: Option<Instant>,
}
