//! Global limit on undelivered bytes: the limit of one client, times the number of clients, exceeds a machine's memory.
//!
//! Only queues whose socket is full are counted, so deliveries to clients that read touch no shared counter. An event
//! counts with all its bytes in each queue that contains it, although the queues share the memory: the sum is an upper
//! bound, reached if the queues share nothing (answers; events of filters that no other client has). Bytes already
//! taken from a queue for the next write count too, since a long answer is taken whole.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Sum of the bytes that wait for clients that do not read, and its limit.
#[derive(Debug)]
pub struct Backlog {
    max: usize,
    total: AtomicUsize,
    exceeded: Notify,
}

impl Backlog {
    /// Creates an empty backlog with a limit of `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            total: AtomicUsize::new(0),
            exceeded: Notify::new(),
        }
    }

    /// Returns the bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Checks if the limit is exceeded.
    #[must_use]
    pub fn is_exceeded(&self) -> bool {
        self.bytes() > self.max
    }

    /// Resolves when the limit is exceeded. The waiting task then closes clients, for which it needs locks that a task
    /// filling a queue may have; events queued until then come on top of the limit.
    pub async fn exceeded(&self) {
        while !self.is_exceeded() {
            self.exceeded.notified().await;
        }
    }

    /// Records that the held-back bytes of one queue changed from `before` to `now`.
    pub(super) fn change(&self, before: usize, now: usize) {
        if now < before {
            self.total.fetch_sub(before - now, Ordering::Relaxed);
        } else if self.total.fetch_add(now - before, Ordering::Relaxed) + (now - before) > self.max {
            self.exceeded.notify_one();
        }
    }
}
