//! Time since which a socket takes no bytes: the start of the write deadline.

use crate::clock::Moment;

/// Progress that resets the write deadline, in bytes. A reader of one byte a second makes progress too, but not enough.
const PROGRESS_BYTES: usize = 16 << 10;

/// Blocked state of a socket, and the bytes written since the deadline last started.
#[derive(Debug, Default)]
pub(super) struct WriteStall {
    /// Start of the write deadline; `None` while the socket takes bytes.
    since: Option<Moment>,
    /// The TLS layer has encrypted bytes that it could not send yet.
    unsent: bool,
    progress: usize,
}

impl WriteStall {
    /// Returns the start of the write deadline; `None` if the socket takes bytes.
    pub(super) fn since(&self) -> Option<Moment> {
        self.since
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.since.is_some()
    }

    /// Checks if the TLS layer has bytes that it could not send yet.
    pub(super) fn is_unsent(&self) -> bool {
        self.unsent
    }

    /// Records that the socket took nothing.
    pub(super) fn refused(&mut self, now: Moment) {
        self.since.get_or_insert(now);
    }

    /// Records that the pump paused although the socket takes more: other tasks run until the socket reports writable
    /// again.
    pub(super) fn yielded(&mut self, now: Moment) {
        self.since = Some(now);
    }

    /// Records that the socket took `bytes`; `all` if nothing is left to write.
    pub(super) fn took(&mut self, bytes: usize, all: bool, now: Moment) {
        self.progress += bytes;
        if all {
            self.progress = 0;
            self.since = None;
        } else if self.since.is_some() && self.progress >= PROGRESS_BYTES {
            self.progress = 0;
            self.since = Some(now);
        }
    }

    /// Records if the TLS layer could send all its bytes; `all` if nothing else is left to write.
    pub(super) fn flushed(&mut self, flushed: bool, all: bool, now: Moment) {
        self.unsent = !flushed;
        if !flushed {
            self.refused(now);
        } else if all {
            self.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::at;

    #[test]
    fn the_deadline_runs_anew_after_enough_progress_and_ends_when_all_is_written() {
        let mut blockage = WriteStall::default();
        blockage.refused(at(5));
        blockage.refused(at(6));
        blockage.took(PROGRESS_BYTES - 1, false, at(7));
        assert_eq!(blockage.since(), Some(at(5)), "a trickle is not enough");
        blockage.took(1, false, at(8));
        assert_eq!(blockage.since(), Some(at(8)));
        blockage.took(1, true, at(9));
        assert!(!blockage.is_blocked());
        blockage.flushed(false, true, at(10));
        assert!(blockage.is_unsent());
        assert_eq!(blockage.since(), Some(at(10)));
        blockage.flushed(true, true, at(11));
        assert!(!blockage.is_unsent() && !blockage.is_blocked());
    }
}
