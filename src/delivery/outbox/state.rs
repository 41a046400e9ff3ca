//! The state of one client's writing half, behind its lock: what waits, what is on its way, how far the end is.

use std::task::{Context, Poll, Waker};

use super::blockage::Blockage;
use crate::clock::Millis;
use crate::delivery::writing::Writing;
use crate::delivery::{Allowance, CloseReason, Compression, Egress, Queue, frame};

/// Bytes gathered for one write. A block for one client is seldom more; a pong waits for no more than this.
pub(super) const GATHER_BYTES: usize = 256 << 10;

/// How far the connection is from its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Everything may be sent.
    #[default]
    Open,
    /// What is queued leaves first, then the close frame.
    Flushing(CloseReason),
    /// The close frame is written or on its way.
    Closing(CloseReason),
}

/// The connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The peer hung up or the socket failed.
    Gone,
    /// Close frames went both ways.
    Closed,
    /// Whatever the kernel still holds for this peer is dropped with it.
    Abort(CloseReason),
}

/// What the session has to wait for on behalf of the writing half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// The socket takes no more for now.
    pub writable: bool,
    /// An event may leave then.
    pub until: Option<Millis>,
    /// Nothing: it is over.
    pub over: Option<Over>,
}

/// What the lock holds.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) writing: Writing,
    pub(super) phase: Phase,
    /// The peer's close frame arrived.
    pub(super) echoed: bool,
    pub(super) over: Option<Over>,
    pub(super) blockage: Blockage,
    /// Bytes of the queue that are counted in the [`Backlog`](crate::delivery::Backlog).
    pub(super) held_back: usize,
    /// When the first held event may leave.
    pub(super) held_until: Option<Millis>,
    /// It is the client's budget that holds events back.
    over_budget: bool,
    pub(super) closing_since: Millis,
    /// Somebody will flush.
    pub(super) flush_due: bool,
    /// Answers are held back for a moment by somebody who will flush.
    pub(super) corked: bool,
    /// There is something that the session has not looked at.
    news: bool,
    waker: Option<Waker>,
    pub(super) shed: u64,
}

impl State {
    /// Nothing waits, for a client that agreed on this.
    pub(super) fn new(compression: Compression) -> Self {
        Self {
            writing: Writing::new(compression),
            ..Self::default()
        }
    }

    /// Takes the next chunks; `false` where there is nothing to write now.
    pub(super) fn gather(&mut self, now: Millis, calls: u32, egress: &Egress) -> bool {
        if matches!(self.phase, Phase::Closing(_)) {
            self.writing.rest();
            if self.echoed {
                self.end(Over::Closed);
            }
            return false;
        }
        // Who is shown out is given what it is owed, whatever its budget.
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

    /// Whether an event waits for longer than it may.
    pub(super) fn is_overdue(&self, now: Millis, max_age: Millis) -> bool {
        self.queue
            .oldest()
            .is_some_and(|oldest| now.saturating_sub(oldest) > max_age)
    }

    /// What the session has to wait for.
    pub(super) fn waits(&self) -> Waits {
        let writable = !self.writing.is_empty() || self.blockage.is_unsent();
        // While the socket takes nothing, an event that may leave changes nothing.
        let until = if writable { None } else { self.held_until };
        Waits {
            writable,
            until,
            over: self.over,
        }
    }

    /// Why there is a backlog.
    pub(super) fn backlogged(&self) -> CloseReason {
        if self.over_budget && !self.blockage.is_blocked() {
            CloseReason::OverBudget
        } else {
            CloseReason::SlowConsumer
        }
    }

    /// Puts the close frame behind what is on its way; nothing follows it.
    pub(super) fn push_close(&mut self, reason: CloseReason, now: Millis) {
        self.writing.push(match reason.code() {
            Some(code) => frame::close(code, reason.text()),
            None => frame::control(frame::Opcode::Close, b""),
        });
        self.queue = Queue::default();
        self.phase = Phase::Closing(reason);
        self.closing_since = now;
    }

    /// It is over; the first way stays.
    pub(super) fn end(&mut self, over: Over) {
        self.over.get_or_insert(over);
        self.tell();
    }

    /// Resolves when somebody was told since.
    pub(super) fn poll_news(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.news) {
            return Poll::Ready(());
        }
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The session has something to look at.
    pub(super) fn tell(&mut self) {
        self.news = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
