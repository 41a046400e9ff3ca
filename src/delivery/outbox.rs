//! The writing half of one client: its queue, what is on its way into the socket, and how its end goes.
//!
//! Whoever has something for a client writes it: the fan-out puts a block's events into the queue and then flushes,
//! so that they leave in one `writev` with no task woken for them. The session's task is woken only for what needs
//! waiting: a socket that takes no more, a subscription that is still held, the end. That saved a third of the CPU for
//! each delivery over waking a task for it (`benches/fanout`, one event at a time).
//!
//! All of it is behind one lock, held for a push or for a `writev`; both are of this client alone.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::queue::Push;
use super::writing::{Done, Writing};
use super::{
    Allowance, Backlog, Batch, CloseReason, Compression, Egress, Kind, Millis, Queue, Recipient, Socket,
    SubscriptionId, frame,
};
use crate::clock::Clock;
use crate::pieces;
use crate::telemetry::{KindLabel, Metrics};

/// Bounds of one client's queue.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Bytes, not messages: one full block of logs can outweigh a thousand heads.
    pub max_bytes: usize,
    /// Bytes that wait for all clients together; see [`Backlog`].
    pub max_total_bytes: usize,
    /// Age of the oldest undelivered event, in milliseconds.
    pub max_age: Millis,
    /// From the answer to `eth_subscribe` to the first notification, in milliseconds (E5).
    pub holdoff: Millis,
}

/// What all outboxes share.
#[derive(Debug)]
pub struct OutboxShared {
    limits: OutboxLimits,
    clock: Clock,
    next_id: AtomicU64,
    backlog: Backlog,
    /// Looked up once: the delivery path should not hash labels.
    delivered: [Counter; Kind::ALL.len()],
    bytes_out: Counter,
    saved: Counter,
    latency: Histogram,
}

impl OutboxShared {
    /// Limits and counters.
    #[must_use]
    pub fn new(limits: OutboxLimits, clock: Clock, metrics: &Metrics) -> Arc<Self> {
        let delivered = Kind::ALL.map(|kind| {
            metrics
                .deliveries
                .get_or_create_owned(&KindLabel { kind: kind.label() })
        });
        Arc::new(Self {
            limits,
            clock,
            next_id: AtomicU64::new(0),
            backlog: Backlog::new(limits.max_total_bytes),
            delivered,
            bytes_out: metrics.bytes_out.clone(),
            saved: metrics.bytes_saved.clone(),
            latency: metrics.delivery_latency.clone(),
        })
    }

    /// What all of them together hold back.
    #[must_use]
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    fn record(&self, tally: &Tally) {
        if tally.bytes > 0 {
            self.bytes_out.inc_by(tally.bytes);
        }
        if tally.saved > 0 {
            self.saved.inc_by(tally.saved);
        }
        for (counter, count) in self.delivered.iter().zip(tally.delivered) {
            if count > 0 {
                counter.inc_by(count);
            }
        }
        if let Some(seen) = tally.latest {
            self.latency.observe(seen.elapsed().as_secs_f64());
        }
    }
}

/// What some writes did.
#[derive(Debug, Default)]
struct Tally {
    delivered: [u64; Kind::ALL.len()],
    bytes: u64,
    saved: u64,
    /// When the event that was written last arrived from the node.
    latest: Option<Instant>,
}

/// Bytes gathered for one write. A block for one client is seldom more; a pong waits for no more than this.
const GATHER_BYTES: usize = 256 << 10;

/// What may wait for a client while more of the past is to come, in bytes: a write's worth.
const REPLAY_BYTES: usize = GATHER_BYTES;

/// Writes in a row before others get their turn.
const MAX_WRITES: usize = 8;

/// Progress that resets the write deadline. A reader of a byte a second makes progress too, but not enough of it.
const PROGRESS_BYTES: usize = 16 << 10;

/// One client's writing half.
#[derive(Debug)]
pub struct Outbox {
    id: u64,
    socket: Socket,
    shared: Arc<OutboxShared>,
    state: Mutex<State>,
    in_flight: AtomicU32,
    compression: Compression,
    last_heard: AtomicU64,
    /// Shared with the client's other connections.
    egress: Arc<Egress>,
    /// Since when a message of the client is not whole; 0 between messages.
    unfinished_since: AtomicU64,
}

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

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    writing: Writing,
    phase: Phase,
    /// The peer's close frame arrived.
    echoed: bool,
    over: Option<Over>,
    /// Since when the socket takes no bytes; 0 when it does.
    blocked_since: Millis,
    /// It took what it could not send yet.
    unsent: bool,
    /// Bytes of the queue that are counted in the [`Backlog`].
    held_back: usize,
    progress: usize,
    /// When the first held event may leave.
    held_until: Option<Millis>,
    /// It is the client's budget that holds events back.
    over_budget: bool,
    closing_since: Millis,
    /// Somebody will flush.
    flush_due: bool,
    /// The session is reading requests, and will flush.
    corked: bool,
    /// There is something that the session has not looked at.
    news: bool,
    waker: Option<Waker>,
    shed: u64,
}

/// What became of an answer.
#[derive(Debug)]
pub enum Answered {
    /// It is on its way, or nobody is there to read it.
    Yes,
    /// Nothing was queued; the subscriptions that it would have released are given back.
    NoRoom(Vec<Arc<Recipient>>),
}

/// From here on an answer is long, in bytes.
const LONG_ANSWER: usize = 16 << 10;

/// Bytes of answers that are held back until all requests that came in together are read.
const CORKED: usize = 32 << 10;

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

/// What the watch over all clients looks at.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    /// When a frame last arrived.
    pub last_heard: Millis,
    /// Since when a message is not whole; 0 between messages.
    pub unfinished_since: Millis,
    /// Since when the socket takes no bytes; 0 when it does.
    pub blocked_since: Millis,
    /// Since when the connection is closing; 0 when it is not.
    pub closing_since: Millis,
    /// An event waits for longer than it may, for this reason.
    pub overdue: Option<CloseReason>,
}

impl Outbox {
    /// The writing half of a socket, to a client that agreed on this, within its budget.
    #[must_use]
    pub fn new(socket: Socket, compression: Compression, egress: Arc<Egress>, shared: Arc<OutboxShared>) -> Arc<Self> {
        let now = shared.clock.now();
        let state = State {
            writing: Writing::new(compression),
            ..State::default()
        };
        Arc::new(Self {
            id: shared.next_id.fetch_add(1, Ordering::Relaxed),
            socket,
            shared,
            state: Mutex::new(state),
            in_flight: AtomicU32::new(0),
            compression,
            last_heard: AtomicU64::new(now),
            egress,
            unfinished_since: AtomicU64::new(0),
        })
    }

    /// Names it among all that there ever were.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The socket, for reading.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// What the client agreed on.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    // ---- putting in

    /// A text message as this client reads it, in pieces for [`Self::answer`].
    #[must_use]
    pub fn text(&self, parts: &[Bytes]) -> Vec<Bytes> {
        if self.compression != Compression::None
            && let Some(frame) = frame::deflated_text(parts)
        {
            let plain = pieces::length(parts);
            self.shared.saved.inc_by(plain.saturating_sub(frame.len()) as u64);
            return vec![frame];
        }
        frame::text(parts)
    }

    /// Queues events; `true` when [`Self::flush`] has to follow, after all pushes.
    #[must_use]
    pub fn push_events(&self, to: &Arc<Recipient>, batch: &Arc<Batch>, now: Millis) -> bool {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return false;
        }
        let limits = &self.shared.limits;
        let overdue = state
            .queue
            .oldest()
            .is_some_and(|oldest| now.saturating_sub(oldest) > limits.max_age);
        let push = if overdue {
            Push::Full
        } else {
            state
                .queue
                .push_events(to.clone(), batch.clone(), now, limits.max_bytes)
        };
        self.settle(&mut state, push)
    }

    /// Queues an answer and flushes; subscriptions in `releases` are served a hold-off after it left. A long answer for
    /// which there is no room is given back: the caller says so under its id. A short one ends the connection.
    #[must_use]
    pub fn answer(&self, pieces: Vec<Bytes>, releases: Vec<Arc<Recipient>>) -> Answered {
        let mut state = self.state.lock();
        // What was asked before the end is still answered.
        if matches!(state.phase, Phase::Closing(_)) {
            return Answered::Yes;
        }
        let len = pieces::length(&pieces);
        let (long, max) = (len > LONG_ANSWER, self.shared.limits.max_bytes);
        if state.corked && state.queue.bytes() + len > CORKED {
            self.pump(&mut state);
        }
        // Short ones may use as much again, so that what did not fit can be told.
        let push = state
            .queue
            .push_answer(pieces, &releases, if long { max } else { 2 * max });
        if push == Push::Full && long {
            return Answered::NoRoom(releases);
        }
        releases.iter().for_each(|recipient| recipient.answered());
        if self.settle(&mut state, push) && !(state.corked && state.queue.bytes() <= CORKED) {
            self.pump(&mut state);
        }
        Answered::Yes
    }

    /// Holds answers back until [`Self::uncork`]: those to requests that came in together leave together.
    pub fn cork(&self) {
        self.state.lock().corked = true;
    }

    /// Lets them leave.
    pub fn uncork(&self) {
        let mut state = self.state.lock();
        state.corked = false;
        if !state.queue.is_empty() {
            self.pump(&mut state);
        }
    }

    /// Queues a ping or pong ahead of all data and flushes.
    pub fn control(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Closing(_)) {
            state.queue.push_control(frame);
            self.pump(&mut state);
        }
    }

    /// Drops the queued events of a subscription that was ended.
    pub fn forget(&self, id: SubscriptionId) {
        let mut state = self.state.lock();
        state.queue.forget(id);
        self.recount(&mut state);
    }

    /// Writes what can be written now.
    pub fn flush(&self) {
        self.pump(&mut self.state.lock());
    }

    /// Writes what can be written now to each of these clients. They are counted together, for counters that all cores
    /// share cost as much as the rest of a delivery.
    pub fn flush_all(outboxes: &[Arc<Self>]) {
        let Some(first) = outboxes.first() else { return };
        let (mut tally, now) = (Tally::default(), first.shared.clock.now());
        for outbox in outboxes {
            outbox.pump_into(&mut outbox.state.lock(), now, &mut tally);
        }
        first.shared.record(&tally);
    }

    // ---- the end

    /// Ends the connection with a close frame; the first reason stays.
    pub fn close(&self, reason: CloseReason) {
        self.begin_close(&mut self.state.lock(), reason);
    }

    /// The peer's close frame arrived: it is echoed where it was the first.
    pub fn peer_closed(&self, code: Option<u16>) {
        let mut state = self.state.lock();
        state.echoed = true;
        if matches!(state.phase, Phase::Closing(_)) {
            self.pump(&mut state);
        } else {
            self.begin_close(&mut state, CloseReason::Goodbye(code));
        }
    }

    /// Drops the socket at once, even in the middle of a frame.
    pub fn kill(&self, reason: CloseReason) {
        self.state.lock().end(Over::Abort(reason));
    }

    /// Where the connection stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    // ---- waiting

    /// Resolves when [`Self::waits`] has something new to say.
    pub fn poll_news(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.news) {
            return Poll::Ready(());
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// What to wait for.
    #[must_use]
    pub fn waits(&self) -> Waits {
        let state = self.state.lock();
        let writable = !state.writing.is_empty() || state.unsent;
        // While the socket takes nothing, an event that may leave changes nothing.
        let until = if writable { None } else { state.held_until };
        Waits {
            writable,
            until,
            over: state.over,
        }
    }

    // ---- being watched

    /// A frame arrived from the client.
    pub fn heard(&self) {
        self.last_heard.store(self.shared.clock.now(), Ordering::Relaxed);
    }

    /// Part of a message arrived; the clock runs from the first part on.
    pub fn message_begun(&self) {
        if self.unfinished_since.load(Ordering::Relaxed) == 0 {
            self.unfinished_since.store(self.shared.clock.now(), Ordering::Relaxed);
        }
    }

    /// A message is whole.
    pub fn message_done(&self) {
        self.unfinished_since.store(0, Ordering::Relaxed);
    }

    /// Signs of life.
    #[must_use]
    pub fn signs(&self, now: Millis) -> Signs {
        let state = self.state.lock();
        let max_age = self.shared.limits.max_age;
        let overdue = state
            .queue
            .oldest()
            .is_some_and(|oldest| now.saturating_sub(oldest) > max_age);
        Signs {
            last_heard: self.last_heard.load(Ordering::Relaxed),
            unfinished_since: self.unfinished_since.load(Ordering::Relaxed),
            blocked_since: state.blocked_since,
            closing_since: state.closing_since,
            overdue: overdue.then(|| state.backlogged()),
        }
    }

    /// Bytes that wait.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.state.lock().queue.bytes()
    }

    /// Bytes that wait because the socket takes no more.
    #[must_use]
    pub fn held_back(&self) -> usize {
        self.state.lock().held_back
    }

    /// Bytes that wait or are on their way.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        let state = self.state.lock();
        state.queue.bytes() + state.writing.bytes()
    }

    /// Whether a replay may queue more: the better part of the queue stays for what is live.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queued_bytes() < REPLAY_BYTES.min(self.shared.limits.max_bytes / 4)
    }

    /// Pending transactions that were dropped for this client.
    #[must_use]
    pub fn shed(&self) -> u64 {
        self.state.lock().shed
    }

    /// Takes one of `max` places for a call in flight.
    #[must_use]
    pub fn begin_call(self: &Arc<Self>, max: u32) -> Option<InFlight> {
        // One too many is not counted for a moment either: somebody else might be refused for it.
        let one_more = |now: u32| (now < max).then(|| now + 1);
        let taken = self
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| InFlight(Arc::downgrade(self)))
    }

    // ---- behind the lock

    /// Keeps count of what a push did; `true` when somebody has to flush.
    fn settle(&self, state: &mut State, push: Push) -> bool {
        match push {
            Push::Queued { shed } => state.shed += shed as u64,
            Push::Shed => {
                state.shed += 1;
                return false;
            }
            Push::Full => {
                self.begin_close(state, state.backlogged());
                return false;
            }
        }
        self.recount(state);
        // While the socket is blocked its readiness is what we wait for.
        state.blocked_since == 0 && !std::mem::replace(&mut state.flush_due, true)
    }

    /// Keeps the sum over all clients right. Where the socket takes everything nothing that is shared is touched.
    fn recount(&self, state: &mut State) {
        let now = if state.blocked_since == 0 {
            0
        } else if matches!(state.phase, Phase::Closing(_)) {
            // It is on its way out, within a deadline of its own: others need not leave for it.
            state.queue.bytes()
        } else {
            state.queue.bytes() + state.writing.bytes()
        };
        if now != state.held_back {
            self.shared.backlog.change(state.held_back, now);
            state.held_back = now;
        }
    }

    fn begin_close(&self, state: &mut State, reason: CloseReason) {
        if std::mem::take(&mut state.corked) {
            // What was answered before the end was only held back for a moment.
            self.pump(state);
        }
        match state.phase {
            // A second reason changes nothing once a close frame is on its way.
            Phase::Closing(_) => return,
            Phase::Flushing(_) if reason.flushes() => {}
            Phase::Open if reason.flushes() => state.phase = Phase::Flushing(reason),
            Phase::Open | Phase::Flushing(_) => {
                state.writing.cut();
                state.push_close(reason, self.shared.clock.now());
            }
        }
        self.pump(state);
    }

    /// Writes until there is nothing left, the socket is full, or others should get their turn; then makes sure that
    /// the session waits for what comes next.
    fn pump(&self, state: &mut State) {
        let mut tally = Tally::default();
        self.pump_into(state, self.shared.clock.now(), &mut tally);
        self.shared.record(&tally);
    }

    /// The time is the caller's: reading the clock for each of a thousand clients shows.
    fn pump_into(&self, state: &mut State, now: Millis, tally: &mut Tally) {
        state.flush_due = false;
        let before = (state.blocked_since != 0, state.held_until);
        let mut turns = 0;
        while state.over.is_none() {
            let calls = self.in_flight.load(Ordering::Relaxed);
            if state.writing.is_empty() && !state.gather(now, calls, &self.egress) {
                break;
            }
            if turns == MAX_WRITES {
                // The rest is written when the socket says that it is writable, which it is.
                state.blocked_since = now;
                break;
            }
            turns += 1;
            match self.write(state, now, tally) {
                Ok(written) => state.note_progress(written, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if state.blocked_since == 0 {
                        state.blocked_since = now;
                    }
                    break;
                }
                Err(_) => state.end(Over::Gone),
            }
        }
        match self.socket.try_flush() {
            Ok(flushed) => state.note_flush(flushed, now),
            Err(_) => state.end(Over::Gone),
        }
        let written = state.writing.is_empty() && !state.unsent;
        if matches!(state.phase, Phase::Closing(reason) if reason.is_violation()) && written {
            // The echo cannot be told from what is still being sent; the end of our half tells the client to end its own.
            self.socket.shut();
        }
        self.recount(state);
        let after = (state.blocked_since != 0, state.held_until);
        if after != before && after != (false, None) {
            state.tell();
        }
    }

    fn write(&self, state: &mut State, now: Millis, tally: &mut Tally) -> io::Result<usize> {
        let release_at = now + self.shared.limits.holdoff;
        let mut released = false;
        let written = state.writing.write(
            |slices| self.socket.try_write(slices),
            |done| match done {
                Done::Released(recipients) => {
                    released = true;
                    recipients.iter().for_each(|recipient| recipient.release(release_at));
                }
                Done::Delivered(batch) => {
                    tally.delivered[batch.kind as usize] += batch.events.len() as u64;
                    tally.latest = Some(batch.seen);
                    if self.compression != Compression::None {
                        tally.saved += batch.saved(self.compression) as u64;
                    }
                }
            },
        )?;
        tally.bytes += written as u64;
        if released {
            // Events may wait behind the answer that just left; nobody else would come back for them.
            state.held_until = Some(state.held_until.map_or(release_at, |at| at.min(release_at)));
        }
        Ok(written)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.shared.backlog.change(self.state.get_mut().held_back, 0);
    }
}

impl State {
    /// Takes the next chunks; `false` where there is nothing to write now.
    fn gather(&mut self, now: Millis, calls: u32, egress: &Egress) -> bool {
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

    /// Why there is a backlog.
    fn backlogged(&self) -> CloseReason {
        if self.over_budget && self.blocked_since == 0 {
            CloseReason::OverBudget
        } else {
            CloseReason::SlowConsumer
        }
    }

    fn push_close(&mut self, reason: CloseReason, now: Millis) {
        self.writing.push(match reason.code() {
            Some(code) => frame::close(code, reason.text()),
            None => frame::control(frame::Opcode::Close, b""),
        });
        // Nothing follows the close frame.
        self.queue = Queue::default();
        self.phase = Phase::Closing(reason);
        self.closing_since = now;
    }

    fn note_progress(&mut self, written: usize, now: Millis) {
        self.progress += written;
        if self.writing.is_empty() {
            self.progress = 0;
            self.blocked_since = 0;
        } else if self.blocked_since != 0 && self.progress >= PROGRESS_BYTES {
            self.progress = 0;
            self.blocked_since = now;
        }
    }

    fn note_flush(&mut self, flushed: bool, now: Millis) {
        self.unsent = !flushed;
        if !flushed && self.blocked_since == 0 {
            self.blocked_since = now;
        } else if flushed && self.writing.is_empty() {
            self.blocked_since = 0;
        }
    }

    fn end(&mut self, over: Over) {
        self.over.get_or_insert(over);
        self.tell();
    }

    fn tell(&mut self) {
        self.news = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A place among the calls in flight of one client; given back when dropped. It does not keep the socket open: a client
/// that left is not waited for.
#[derive(Debug)]
pub struct InFlight(Weak<Outbox>);

impl InFlight {
    /// Where the answer goes; nowhere when the client has left.
    #[must_use]
    pub fn outbox(&self) -> Option<Arc<Outbox>> {
        self.0.upgrade()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(outbox) = self.0.upgrade()
            && outbox.in_flight.fetch_sub(1, Ordering::Relaxed) == 1
            && matches!(outbox.phase(), Phase::Flushing(_))
        {
            // The close frame waited for this call.
            outbox.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::delivery::Event;

    /// An outbox and the client's end of its socket.
    async fn pair(max_bytes: usize, holdoff: Millis) -> (Arc<Outbox>, TcpStream) {
        let limits = OutboxLimits {
            max_bytes,
            max_total_bytes: 1 << 20,
            max_age: 60_000,
            holdoff,
        };
        one_of(&OutboxShared::new(limits, Clock::start(), &Metrics::new().0)).await
    }

    async fn one_of(shared: &Arc<OutboxShared>) -> (Arc<Outbox>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.writable().await.unwrap();
        let outbox = Outbox::new(server.into(), Compression::None, Arc::default(), shared.clone());
        (outbox, client)
    }

    fn one(kind: Kind, len: usize) -> Arc<Batch> {
        Batch::new(kind, vec![Event::new(&vec![b'1'; len])].into(), Instant::now())
    }

    fn released() -> Arc<Recipient> {
        let recipient = Recipient::new(SubscriptionId::random(), 0);
        recipient.release(0);
        recipient
    }

    async fn read(client: &mut TcpStream) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 20];
        let read = tokio::time::timeout(Duration::from_secs(5), client.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        buffer.truncate(read);
        buffer
    }

    #[tokio::test]
    async fn many_pushes_are_one_flush() {
        let (outbox, mut client) = pair(10_000, 0).await;
        let to = released();
        assert!(outbox.push_events(&to, &one(Kind::Heads, 1), 1));
        assert!(!outbox.push_events(&to, &one(Kind::Logs, 1), 1));
        outbox.flush();
        assert_eq!(read(&mut client).await.len(), 2 * one(Kind::Heads, 1).wire_len);
        assert_eq!(outbox.waits(), Waits::default());
        assert!(
            outbox.push_events(&to, &one(Kind::Heads, 1), 1),
            "the next push asks again"
        );
    }

    #[tokio::test]
    async fn the_answer_leaves_alone_and_the_session_is_told_until_when_to_wait() {
        let (outbox, mut client) = pair(10_000, 30).await;
        let to = Recipient::new(SubscriptionId::random(), 0);
        let _ = outbox.push_events(&to, &one(Kind::Heads, 1), 1);
        outbox.flush();
        assert_eq!(
            outbox.waits(),
            Waits::default(),
            "nothing to wait for before the answer"
        );
        assert!(matches!(
            outbox.answer(vec![Bytes::from_static(b"answer")], vec![to.clone()]),
            Answered::Yes
        ));
        assert_eq!(read(&mut client).await, b"answer");
        let until = outbox.waits().until.unwrap();
        assert_eq!(Some(until), to.release_at());
        tokio::time::sleep(Duration::from_millis(40)).await;
        outbox.flush();
        assert_eq!(read(&mut client).await.len(), one(Kind::Heads, 1).wire_len);
        assert_eq!(outbox.waits(), Waits::default());
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_closed_with_1013_behind_the_frame_that_was_begun() {
        let (outbox, mut client) = pair(4 << 20, 0).await;
        let (to, batch) = (released(), one(Kind::Logs, 100_000));
        let mut pushed = 0;
        while outbox.phase() == Phase::Open {
            if outbox.push_events(&to, &batch, 1) {
                outbox.flush();
            }
            pushed += 1;
            assert!(pushed < 10_000, "the queue is bounded");
        }
        assert!(outbox.waits().writable);
        assert!(!outbox.push_events(&to, &batch, 1), "nothing is queued behind the end");
        let reading = tokio::spawn(async move {
            let mut wire = Vec::new();
            while !wire.ends_with(CloseReason::SlowConsumer.text().as_bytes()) {
                wire.extend(read(&mut client).await);
            }
            wire
        });
        while outbox.waits().writable {
            outbox.socket().writable().await.unwrap();
            outbox.flush();
        }
        let wire = reading.await.unwrap();
        let close = frame::close(1013, CloseReason::SlowConsumer.text()).len();
        assert_eq!(
            (wire.len() - close) % batch.wire_len,
            0,
            "whole frames, then the close frame"
        );
    }

    #[tokio::test]
    async fn a_drain_delivers_what_is_owed_first() {
        let (outbox, mut client) = pair(10_000, 0).await;
        let _ = outbox.push_events(&released(), &one(Kind::Heads, 1), 1);
        outbox.close(CloseReason::Drain);
        let wire = read(&mut client).await;
        assert_eq!(
            wire.len(),
            one(Kind::Heads, 1).wire_len + frame::close(1012, CloseReason::Drain.text()).len()
        );
        assert_eq!(outbox.waits().over, None, "the echo is still to come");
        outbox.peer_closed(Some(1012));
        assert_eq!(outbox.waits().over, Some(Over::Closed));
    }

    #[tokio::test]
    async fn calls_in_flight_are_counted_and_given_back() {
        let (outbox, _client) = pair(10_000, 0).await;
        let first = outbox.begin_call(1);
        assert!(first.is_some());
        assert!(outbox.begin_call(1).is_none());
        drop(first);
        assert!(outbox.begin_call(1).is_some());
    }

    #[tokio::test]
    async fn what_a_full_socket_holds_back_is_counted_until_it_is_read_forgotten_closed_or_gone() {
        let (outbox, mut client) = pair(64 << 20, 0).await;
        let backlog = |outbox: &Outbox| outbox.shared.backlog.bytes();
        let (to, batch) = (released(), one(Kind::Logs, 100_000));
        let push = |outbox: &Outbox| {
            if outbox.push_events(&to, &batch, 1) {
                outbox.flush();
            }
        };
        push(&outbox);
        assert_eq!(backlog(&outbox), 0, "the socket takes it");
        while outbox.held_back() < 3 * batch.wire_len {
            push(&outbox);
            assert_eq!(backlog(&outbox), outbox.held_back());
        }
        let on_its_way = backlog(&outbox) - outbox.queued_bytes();
        assert!(on_its_way > 0 && outbox.queued_bytes() > 0, "both count");
        outbox.forget(to.id());
        assert_eq!((backlog(&outbox), outbox.queued_bytes()), (on_its_way, 0));
        while backlog(&outbox) > 0 {
            read(&mut client).await;
            outbox.flush();
        }
        while backlog(&outbox) == 0 {
            push(&outbox);
        }
        outbox.close(CloseReason::LongestQueue);
        assert_eq!((backlog(&outbox), outbox.queued_bytes()), (0, 0));
        let (outbox, _client) = one_of(&outbox.shared).await;
        while backlog(&outbox) == 0 {
            push(&outbox);
        }
        let shared = outbox.shared.clone();
        drop(outbox);
        assert_eq!(shared.backlog.bytes(), 0);
    }
}
