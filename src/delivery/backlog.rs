//! What all clients together hold back, bounded in bytes: one client's bound, times many clients, is more than a machine
//! has.
//!
//! Only queues whose socket is full are counted, so a delivery to clients that read touches nothing that is shared. An
//! event counts in each queue that holds it, with all its bytes, although the queues share it: the sum is an upper bound of
//! the memory, reached where every client waits for something of its own (answers; events of filters that nobody else
//! has). What was already taken from a queue for the next write counts too, for a long answer is taken whole.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The sum of the bytes that wait for clients that do not read.
#[derive(Debug)]
pub struct Backlog {
    max: usize,
    total: AtomicUsize,
    exceeded: Notify,
}

impl Backlog {
    /// Nothing waits, and no more than `max` bytes may.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            total: AtomicUsize::new(0),
            exceeded: Notify::new(),
        }
    }

    /// How much waits.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Whether more waits than may.
    #[must_use]
    pub fn is_exceeded(&self) -> bool {
        self.bytes() > self.max
    }

    /// Resolves when more waits than may. Whoever waits here closes clients, which takes locks that whoever fills a queue
    /// holds: what is queued until then comes on top.
    pub async fn exceeded(&self) {
        while !self.is_exceeded() {
            self.exceeded.notified().await;
        }
    }

    /// A queue that held back `before` bytes holds back `now`.
    pub(super) fn change(&self, before: usize, now: usize) {
        if now < before {
            self.total.fetch_sub(before - now, Ordering::Relaxed);
        } else if self.total.fetch_add(now - before, Ordering::Relaxed) + (now - before) > self.max {
            self.exceeded.notify_one();
        }
    }
}
