//! State of one client's writing half, behind its lock: queue, current write and phase of the connection.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::write_stall::WriteStall;
use crate::clock::Moment;
use crate::delivery::tap::Tap;
use crate::delivery::write_buffer::WriteBuffer;
use crate::delivery::{Allowance, CloseReason, Compression, Egress, Framing, Queue, event_stream, frame};

/// Bytes of answers, and of events, gathered for one write. A block for one client is seldom larger. A pong waits for
/// no more than one write, but a long answer is gathered whole.
pub(super) const GATHER_BYTES: usize = 256 << 10;

/// Phase of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Open: everything may be sent.
    #[default]
    Open,
    /// Closing after a flush: the queue is written first, then the close frame.
    Flushing(CloseReason),
    /// Closing: the close frame is written or next in the current write.
    Closing(CloseReason),
}

/// Way in which the connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer disconnected or the socket failed.
    Gone,
    /// Close frames were exchanged.
    Closed,
    /// Connection cut off; unsent bytes in the kernel are dropped.
    Abort(CloseReason),
}

/// Events that the session has to wait for on behalf of the writing half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// `true` if the socket takes no more for now.
    pub writable: bool,
    /// Moment at which the first event on hold may be written.
    pub until: Option<Moment>,
    /// Set when the connection has ended: nothing to wait for.
    pub over: Option<Ended>,
}

/// Data written to one client since it connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Notifications.
    pub notifications: u64,
    /// Bytes, frames of all kinds.
    pub bytes: u64,
}

/// Data behind the lock.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) writing: WriteBuffer,
    pub(super) phase: Phase,
    /// `true` once the peer's close frame has arrived.
    pub(super) echoed: bool,
    /// `true` once the peer has answered our close frame with its code.
    pub(super) is_acknowledged: bool,
    pub(super) over: Option<Ended>,
    pub(super) blockage: WriteStall,
    /// Bytes of the queue and the current write that are counted in the [`Backlog`](crate::delivery::Backlog).
    pub(super) held_back: usize,
    /// Moment at which the first event on hold may be written.
    pub(super) held_until: Option<Moment>,
    /// `true` if events wait for the client's egress budget.
    over_budget: bool,
    /// Moment at which the close frame was queued.
    pub(super) closing_since: Option<Moment>,
    /// A producer has promised to flush.
    pub(super) flush_due: bool,
    /// Answers are corked, and the owner of the cork will flush.
    pub(super) corked: bool,
    /// The waits have changed since the session last checked them.
    news: bool,
    waker: Option<Waker>,
    pub(super) shed: u64,
    pub(super) sent: Sent,
    pub(super) tap: Option<Box<Tap>>,
    framing: Framing,
}

impl State {
    /// Creates an empty state for a client with this compression and framing.
    pub(super) fn new(compression: Compression, framing: Framing) -> Self {
        Self {
            writing: WriteBuffer::new(compression),
            framing,
            // Server-sent events go one way: nothing answers the end of the stream.
            echoed: framing == Framing::EventStream,
            ..Self::default()
        }
    }

    /// Gathers the next chunks, given the calls in flight; returns `false` if there is nothing to write now.
    pub(super) fn gather(&mut self, now: Moment, calls: u32, egress: &Egress) -> bool {
        if matches!(self.phase, Phase::Closing(_)) {
            self.writing.rest();
            if self.echoed {
                self.end(Ended::Closed);
            }
            return false;
        }
        // A closing client gets its queued events regardless of the egress budget.
        let allowance = match self.phase {
            Phase::Open => egress.allowance(now),
            _ => Allowance::Free,
        };
        let gathered = self.queue.gather(now, GATHER_BYTES, allowance, self.writing.chunks());
        if allowance != Allowance::Free {
            egress.charge(gathered.event_bytes, now);
        }
        self.over_budget = gathered.over_budget;
        if self.held_until.is_some_and(|at| at <= now) || gathered.held_until.is_some() {
            self.held_until = gathered.held_until;
        }
        if !self.writing.is_empty() {
            return true;
        }
        match self.phase {
            Phase::Flushing(reason) if gathered.held_until.is_none() && calls == 0 => {
                self.push_close(reason, now);
                true
            }
            _ => {
                self.writing.rest();
                false
            }
        }
    }

    /// Checks if the oldest event has waited longer than `max_age`.
    pub(super) fn is_overdue(&self, now: Moment, max_age: Duration) -> bool {
        self.queue.oldest().is_some_and(|oldest| now.since(oldest) > max_age)
    }

    /// Returns what the session has to wait for.
    pub(super) fn waits(&self) -> Waits {
        let writable = !self.writing.is_empty() || self.blockage.is_unsent();
        // The end of a hold changes nothing while the socket takes no bytes.
        let until = if writable { None } else { self.held_until };
        Waits {
            writable,
            until,
            over: self.over,
        }
    }

    /// Returns the reason to close a client whose queue is too long or too old.
    pub(super) fn backlogged(&self) -> CloseReason {
        if self.over_budget && !self.blockage.is_blocked() {
            CloseReason::OverBudget
        } else {
            CloseReason::SlowConsumer
        }
    }

    /// Queues the close frame behind the current write and drops the rest of the queue.
    pub(super) fn push_close(&mut self, reason: CloseReason, now: Moment) {
        match (self.framing, reason.code()) {
            (Framing::WebSocket, Some(code)) => self.writing.push(frame::close(code, reason.text())),
            (Framing::WebSocket, None) => self.writing.push(frame::control(frame::Opcode::Close, b"")),
            // Without the head of a response the connection just ends, which a client takes for a lost one.
            (Framing::EventStream, _) if self.sent.bytes == 0 && self.writing.is_empty() => {}
            (Framing::EventStream, _) => {
                if let Some(end) = event_stream::end(reason) {
                    self.writing.push(end);
                }
            }
        }
        self.queue = Queue::default();
        self.phase = Phase::Closing(reason);
        self.closing_since = Some(now);
    }

    /// Marks the connection as over; the first way is kept.
    pub(super) fn end(&mut self, over: Ended) {
        self.over.get_or_insert(over);
        self.notify_session();
    }

    /// Resolves when the session was [notified](Self::notify_session) since the last call.
    pub(super) fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.news) {
            return Poll::Ready(());
        }
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Notifies the session that its waits have changed.
    pub(super) fn notify_session(&mut self) {
        self.news = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
