//! Time since which a socket takes no bytes: the start of the write deadline.

use crate::clock::Millis;

/// Progress that resets the write deadline, in bytes. A reader of one byte a second makes progress too, but not enough.
const PROGRESS_BYTES: usize = 16 << 10;

/// Blocked state of a socket, and the bytes written since the deadline last started.
#[derive(Debug, Default)]
pub(super) struct WriteStall {
    /// Start of the write deadline; 0 while the socket takes bytes.
    since: Millis,
    /// The TLS layer has encrypted bytes that it could not send yet.
    unsent: bool,
    progress: usize,
}

impl WriteStall {
    /// Returns the start of the write deadline; 0 if the socket takes bytes.
    pub(super) fn since(&self) -> Millis {
        self.since
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.since != 0
    }

    /// Checks if the TLS layer has bytes that it could not send yet.
    pub(super) fn is_unsent(&self) -> bool {
        self.unsent
    }

    /// Records that the socket took nothing.
    pub(super) fn refused(&mut self, now: Millis) {
        if self.since == 0 {
            self.since = now;
        }
    }

    /// Records that the pump paused although the socket takes more: other tasks run until the socket reports writable
    /// again.
    pub(super) fn yielded(&mut self, now: Millis) {
        self.since = now;
    }

    /// Records that the socket took `bytes`; `all` if nothing is left to write.
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

    /// Records if the TLS layer could send all its bytes; `all` if nothing else is left to write.
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
        let mut blockage = WriteStall::default();
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
