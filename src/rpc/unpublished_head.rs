//! Highest block number that a node has reported before it was published: by the block itself, its receipts or its
//! logs, in the answer to any call; not by the block's hash alone (`eth_getFilterChanges` of a block filter), which
//! has no number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Highest block number that a node has reported before it was published. Until the head reaches it, nodes are asked
/// for answers that depend on the head, so that a client that saw a block is not answered later that there is none.
#[derive(Debug, Default)]
pub(super) struct UnpublishedHead {
    /// Block number; 0 for none, so that most checks cost one load.
    number: AtomicU64,
    since: Mutex<Option<Instant>>,
}

impl UnpublishedHead {
    /// Time after which an unpublished block is forgotten: it was on a branch that no other node follows.
    const LIFETIME: Duration = Duration::from_secs(10);

    /// Records a block number that a node reported.
    pub(super) fn note(&self, number: u64) {
        if self.number.load(Ordering::Relaxed) >= number {
            return;
        }
        // Under the lock: `beyond` never sees the number with the time of an earlier one.
        let mut since = self.since.lock();
        if self.number.fetch_max(number, Ordering::Relaxed) < number {
            *since = Some(Instant::now());
        }
    }

    /// Returns the recorded number if it is above this head and was reported lately; otherwise forgets it.
    pub(super) fn beyond(&self, head: u64) -> Option<u64> {
        let number = self.number.load(Ordering::Relaxed);
        if number == 0 {
            return None;
        }
        let since = self.since.lock();
        // It may have changed until the lock was taken.
        let number = self.number.load(Ordering::Relaxed);
        if number > head && since.is_some_and(|since| since.elapsed() <= Self::LIFETIME) {
            return Some(number);
        }
        // Only this number is cleared: another one may have been recorded meanwhile.
        let _ = self
            .number
            .compare_exchange(number, 0, Ordering::Relaxed, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_has_come_so_far_ends_it() {
        let unpublished_head = UnpublishedHead::default();
        assert_eq!(unpublished_head.beyond(5), None);
        unpublished_head.note(7);
        unpublished_head.note(6);
        assert_eq!(
            (unpublished_head.beyond(5), unpublished_head.beyond(6)),
            (Some(7), Some(7))
        );
        assert_eq!(unpublished_head.beyond(7), None);
        assert_eq!(unpublished_head.beyond(5), None, "it is over");
    }
}
