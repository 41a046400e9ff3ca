//! Since when a socket takes no bytes: what the write deadline runs from.

use crate::clock::Millis;

/// Progress that resets the write deadline. A reader of a byte a second makes progress too, but not enough of it.
const PROGRESS_BYTES: usize = 16 << 10;

/// Whether a socket takes bytes, and how many it took since it last took none.
#[derive(Debug, Default)]
pub(super) struct Blockage {
    /// 0 while it takes them.
    since: Millis,
    /// It took what it could not send yet.
    unsent: bool,
    progress: usize,
}

impl Blockage {
    /// Since when the socket takes no bytes; 0 when it does.
    pub(super) fn since(&self) -> Millis {
        self.since
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.since != 0
    }

    /// Whether the socket holds what it could not send yet.
    pub(super) fn is_unsent(&self) -> bool {
        self.unsent
    }

    /// The socket took nothing.
    pub(super) fn refused(&mut self, now: Millis) {
        if self.since == 0 {
            self.since = now;
        }
    }

    /// The socket would take more; it is others' turn until it says so again.
    pub(super) fn yielded(&mut self, now: Millis) {
        self.since = now;
    }

    /// The socket took so many bytes, which may have been all there were.
    pub(super) fn took(&mut self, bytes: usize, all: bool, now: Millis) {
        self.progress += bytes;
        if all {
            self.progress = 0;
            self.since = 0;
        } else if self.since != 0 && self.progress >= PROGRESS_BYTES {
            self.progress = 0;
            self.since = now;
        }
    }

    /// The socket sent what it had taken, or could not; with that all may have left.
    pub(super) fn flushed(&mut self, flushed: bool, all: bool, now: Millis) {
        self.unsent = !flushed;
        if !flushed {
            self.refused(now);
        } else if all {
            self.since = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_runs_anew_after_enough_progress_and_ends_when_all_is_written() {
        let mut blockage = Blockage::default();
        blockage.refused(5);
        blockage.refused(6);
        blockage.took(PROGRESS_BYTES - 1, false, 7);
        assert_eq!(blockage.since(), 5, "a trickle is not enough");
        blockage.took(1, false, 8);
        assert_eq!(blockage.since(), 8);
        blockage.took(1, true, 9);
        assert!(!blockage.is_blocked());
        blockage.flushed(false, true, 10);
        assert!(blockage.is_unsent());
        assert_eq!(blockage.since(), 10);
        blockage.flushed(true, true, 11);
        assert!(!blockage.is_unsent() && !blockage.is_blocked());
    }
}
