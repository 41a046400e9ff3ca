//! Signs of life of one client, checked by the watch over all clients.

use super::ClientWriter;
use super::state::Sent;
use crate::clock::Moment;
use crate::delivery::CloseReason;

/// Signs of life of one client, and its figures.
#[derive(Clone, Copy, Debug)]
pub struct LivenessSigns {
    /// Arrival of the last frame, at first the start of the connection; `None` for a client that sends none.
    pub last_activity: Option<Moment>,
    /// Arrival of the first part of an unfinished message; `None` between messages.
    pub unfinished_since: Option<Moment>,
    /// Moment since which the socket takes no bytes; `None` if the socket takes them.
    pub blocked_since: Option<Moment>,
    /// Moment since which the connection is closing; `None` if it is not closing.
    pub closing_since: Option<Moment>,
    /// Reason to close the connection, if an event has waited longer than the limit.
    pub overdue: Option<CloseReason>,
    /// Bytes in the queue and in the current write.
    pub waiting_bytes: usize,
    /// Data written since the client connected.
    pub sent: Sent,
}

impl ClientWriter {
    /// Records that a frame arrived from the client.
    pub fn note_activity(&self) {
        self.last_activity.store(Some(self.shared.clock.now()));
    }

    /// Records that part of a message arrived; the time limit runs from the first part.
    pub fn message_begun(&self) {
        if self.unfinished_since.load().is_none() {
            self.unfinished_since.store(Some(self.shared.clock.now()));
        }
    }

    /// Records that a message is complete.
    pub fn message_done(&self) {
        self.unfinished_since.store(None);
    }

    /// Returns the signs of life at `now`.
    #[must_use]
    pub fn signs(&self, now: Moment) -> LivenessSigns {
        let state = self.state.lock();
        let overdue = state.is_overdue(now, self.shared.limits.max_age);
        LivenessSigns {
            last_activity: self.last_activity.load().filter(|_| !self.is_event_stream()),
            unfinished_since: self.unfinished_since.load(),
            blocked_since: state.blockage.since(),
            closing_since: state.closing_since,
            overdue: overdue.then(|| state.backlogged()),
            waiting_bytes: state.queue.bytes() + state.writing.bytes(),
            sent: state.sent,
        }
    }
}
