//! Blocks of which a node has told before they were published: by the block itself, its receipts or its logs, whatever was
//! asked; not by its hash alone (`eth_getFilterChanges` of a block filter), which says no number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The highest block of which a node has told before it was published: what stands on the head is asked of nodes until the
/// head has come so far, so that nobody who was told of a block is told later that there is none.
#[derive(Debug, Default)]
pub struct Outrun {
    /// 0 where there is none, so that most looks cost one load.
    number: AtomicU64,
    since: Mutex<Option<Instant>>,
}

impl Outrun {
    /// A block that is not published within so long was on a branch that nobody else will see.
    const LIFETIME: Duration = Duration::from_secs(10);

    /// A node told of this block.
    pub fn note(&self, number: u64) {
        if self.number.fetch_max(number, Ordering::Relaxed) < number {
            *self.since.lock() = Some(Instant::now());
        }
    }

    /// The block beyond this one of which a node has told lately, if any has.
    pub fn beyond(&self, head: u64) -> Option<u64> {
        let number = self.number.load(Ordering::Relaxed);
        if number == 0 {
            return None;
        }
        let old = || self.since.lock().is_none_or(|since| since.elapsed() > Self::LIFETIME);
        if number > head && !old() {
            return Some(number);
        }
        // Only this one: another may have been noted meanwhile.
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
        let outrun = Outrun::default();
        assert_eq!(outrun.beyond(5), None);
        outrun.note(7);
        outrun.note(6);
        assert_eq!((outrun.beyond(5), outrun.beyond(6)), (Some(7), Some(7)));
        assert_eq!(outrun.beyond(7), None);
        assert_eq!(outrun.beyond(5), None, "it is over");
    }
}
