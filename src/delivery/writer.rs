//! Writing half of one client, as used by the fan-out, the session and the watch over all clients.
//!
//! The producer of data also writes it: the fan-out puts a block's events into the queue and then flushes, so that they
//! leave in one `writev` and no task is woken for them. The session's task is woken only to wait: for a socket that
//! takes no more, for a subscription that is still on hold, for the end. This saves a third of the CPU time per
//! delivery compared to waking a task (`benches/fanout`, one event at a time).
//!
//! The state is behind one lock, taken for a push or a `writev`; both concern this client alone. The pump writes the
//! queue to the socket.

mod framing;
mod in_flight;
mod pump;
mod shared;
mod signs;
mod state;
mod tapping;
mod write_stall;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;

use self::shared::Tally;
use self::state::{GATHER_BYTES, State};
use super::queue::Push;
use super::tap::Disclosure;
use super::template::Template;
use super::{Batch, CloseReason, Compression, Egress, Framing, Kind, Recipient, Socket, SubscriptionId, frame};
use crate::clock::{AtomicMoment, Moment};
use crate::pieces;
use crate::shares::Owner;

pub use in_flight::InFlight;
pub use shared::{WriterLimits, WriterShared};
pub use signs::LivenessSigns;
pub use state::{Ended, Phase, Sent, Waits};

/// Queue length at which a replay pauses, in bytes: the size of one write.
const REPLAY_BYTES: usize = GATHER_BYTES;

/// Writing half of one client.
#[derive(Debug)]
pub struct ClientWriter {
    id: u64,
    /// Longest queue, in bytes.
    max_bytes: usize,
    socket: Socket,
    shared: Arc<WriterShared>,
    state: Mutex<State>,
    in_flight: AtomicU32,
    compression: Compression,
    framing: Framing,
    /// Arrival of the last frame, at first the start of the connection.
    last_activity: AtomicMoment,
    /// Egress budget, shared with the client's other connections.
    egress: Arc<Egress>,
    /// Arrival of the first part of an unfinished message; `None` between messages.
    unfinished_since: AtomicMoment,
    /// Number of live subscriptions of the connection, by kind. Changed and read under the registry's lock.
    live: [AtomicU32; Kind::ALL.len()],
    /// `true` while there is a tap, or was until recently: messages are copied under the lock.
    is_tapped: AtomicBool,
}

/// Result of queueing an answer.
#[derive(Debug)]
pub enum Answered {
    /// Queued, or dropped because the connection is closing.
    Yes,
    /// Not queued for lack of room; returns the subscriptions that the answer would have released.
    NoRoom(Vec<Arc<Recipient>>),
}

/// Clients flushed together from which on their frames are laid out in one piece: for fewer, the memory for it costs as
/// much as it saves.
const TEMPLATE_FOR: usize = 4;

/// Length above which an answer is long, in bytes.
const LONG_ANSWER: usize = 16 << 10;

/// Bytes of answers that may be corked until all requests that arrived together are read.
const CORKED: usize = 32 << 10;

impl ClientWriter {
    /// Creates the writing half of a socket, with the compression agreed with the client and the egress budget of its
    /// account.
    #[must_use]
    pub fn new(socket: Socket, compression: Compression, egress: Arc<Egress>, shared: Arc<WriterShared>) -> Arc<Self> {
        let max_bytes = shared.limits.max_bytes;
        Self::framed(max_bytes, socket, Framing::WebSocket, compression, egress, shared)
    }

    /// Creates the writing half for a client of this framing, with a queue of at most `max_bytes`.
    #[must_use]
    pub fn framed(
        max_bytes: usize,
        socket: Socket,
        framing: Framing,
        compression: Compression,
        egress: Arc<Egress>,
        shared: Arc<WriterShared>,
    ) -> Arc<Self> {
        let now = shared.clock.now();
        Arc::new(Self {
            id: shared.next_id(),
            max_bytes,
            socket,
            shared,
            state: Mutex::new(State::new(compression, framing)),
            in_flight: AtomicU32::new(0),
            compression,
            framing,
            last_activity: AtomicMoment::new(now),
            egress,
            unfinished_since: AtomicMoment::default(),
            live: Default::default(),
            is_tapped: AtomicBool::new(false),
        })
    }

    /// Returns an id that is unique among all writers since the start.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the socket, for reading.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Returns the compression agreed with the client.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Records that a subscription of this kind receives live events from now on.
    pub fn joined(&self, kind: Kind) {
        self.live[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Records that a subscription of this kind that had [joined](Self::joined) ended.
    pub fn left(&self, kind: Kind) {
        self.live[kind as usize].fetch_sub(1, Ordering::Relaxed);
    }

    /// Checks if the connection has a live subscription of this kind.
    #[must_use]
    pub fn subscribes_to(&self, kind: Kind) -> bool {
        self.live[kind as usize].load(Ordering::Relaxed) > 0
    }

    /// Returns the budget for notifications, shared by all connections of the account and no others.
    #[must_use]
    pub fn egress(&self) -> &Arc<Egress> {
        &self.egress
    }

    /// Returns the account on whose behalf the connection is served.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.egress.owner()
    }

    // ---- queueing

    /// Encodes a text message as agreed with this client, in pieces for [`Self::answer`]. `disclosure` is that of the
    /// request, see [`Self::tap_received`].
    #[must_use]
    pub fn text(&self, parts: &[Bytes], disclosure: Disclosure) -> Vec<Bytes> {
        self.tap_answer(parts, disclosure);
        if self.compression != Compression::None
            && let Some(frame) = frame::deflated_text(parts)
        {
            let plain = pieces::length(parts);
            self.shared.saved(plain.saturating_sub(frame.len()));
            return vec![frame];
        }
        frame::text(parts)
    }

    /// Queues events. Returns `true` if the caller has to call [`Self::flush`] after all its pushes.
    #[must_use]
    pub fn push_events(&self, to: &Arc<Recipient>, batch: &Arc<Batch>, now: Moment) -> bool {
        let batch = batch.framed(self.framing);
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return false;
        }
        if state.tap.is_some() {
            state.tap_events(to, batch);
        }
        let limits = &self.shared.limits;
        let push = if state.is_overdue(now, limits.max_age) {
            Push::Full
        } else {
            state.queue.push_events(to.clone(), batch.clone(), now, self.max_bytes)
        };
        self.after_push(&mut state, push)
    }

    /// Queues an answer and flushes. Subscriptions in `releases` get events one hold-off after the answer is written. A
    /// long answer without room is rejected, and the caller answers its id with an error; a short one ends the
    /// connection.
    #[must_use]
    pub fn answer(&self, pieces: Vec<Bytes>, releases: Vec<Arc<Recipient>>) -> Answered {
        let mut state = self.state.lock();
        // While flushing, requests from before the end are still answered.
        if matches!(state.phase, Phase::Closing(_)) {
            return Answered::Yes;
        }
        let len = pieces::length(&pieces);
        let (long, max) = (len > LONG_ANSWER, self.max_bytes);
        if state.corked && state.queue.bytes() + len > CORKED {
            self.pump(&mut state);
        }
        // Short answers may use twice the limit, so that the error in place of a rejected long one still fits.
        let push = state
            .queue
            .push_answer(pieces, &releases, if long { max } else { 2 * max });
        if push == Push::Full && long {
            return Answered::NoRoom(releases);
        }
        releases.iter().for_each(|recipient| recipient.answered());
        if self.after_push(&mut state, push) {
            if state.corked && state.queue.bytes() <= CORKED {
                // Events pushed meanwhile need not wait for the cork: their push asks for a flush of its own.
                state.flush_due = false;
            } else {
                self.pump(&mut state);
            }
        }
        Answered::Yes
    }

    /// Corks answers until the cork is dropped: answers produced together leave together. Returns `None` if answers are
    /// corked already; then the owner of that cork flushes.
    #[must_use]
    pub fn cork(self: &Arc<Self>) -> Option<Cork> {
        let held_back = std::mem::replace(&mut self.state.lock().corked, true);
        (!held_back).then(|| Cork(self.clone()))
    }

    /// Queues a ping or pong ahead of all data and flushes.
    pub fn control(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Closing(_)) {
            state.queue.push_control(frame);
            self.pump(&mut state);
        }
    }

    /// Queues a ping with this payload behind all events; it marks a position. Returns `Some(true)` if the caller has to
    /// call [`Self::flush`], and `None` if there is no room: nothing is queued.
    #[must_use]
    pub fn push_mark(&self, payload: u64, now: Moment) -> Option<bool> {
        let mut state = self.state.lock();
        if state.phase != Phase::Open || !state.queue.push_mark(payload, now, self.max_bytes) {
            return None;
        }
        Some(self.after_push(&mut state, Push::Queued { shed: 0 }))
    }

    /// Drops the queued events of a subscription that has ended.
    pub fn forget(&self, id: SubscriptionId) {
        let mut state = self.state.lock();
        state.queue.forget(id);
        self.recount(&mut state);
    }

    /// Writes as much as possible now.
    pub fn flush(&self) {
        self.pump(&mut self.state.lock());
    }

    /// Writes as much as possible now to each of these clients. Metrics are updated once for all of them, since
    /// counters shared by all cores cost as much as the rest of a delivery.
    pub fn flush_all(writers: &[Arc<Self>]) {
        let Some(first) = writers.first() else { return };
        let (mut tally, now) = (Tally::default(), first.shared.clock.now());
        let mut template = (writers.len() >= TEMPLATE_FOR).then(Template::default);
        for writer in writers {
            writer.pump_into(&mut writer.state.lock(), now, &mut tally, template.as_mut());
        }
        first.shared.record(&tally);
    }

    // ---- the end

    /// Ends the connection with a close frame; the first reason is kept.
    pub fn close(&self, reason: CloseReason) {
        self.begin_close(&mut self.state.lock(), reason);
    }

    /// Handles the peer's close frame: echoes it unless headwater's own close frame was first.
    pub fn peer_closed(&self, code: Option<u16>) {
        let mut state = self.state.lock();
        state.echoed = true;
        if let Phase::Closing(reason) = state.phase {
            state.is_acknowledged = code == reason.code();
            self.pump(&mut state);
        } else {
            self.begin_close(&mut state, CloseReason::Goodbye(code));
        }
    }

    /// Checks if the peer has answered our close frame: it has everything that was sent before.
    #[must_use]
    pub fn is_acknowledged(&self) -> bool {
        self.state.lock().is_acknowledged
    }

    /// Drops the socket at once, even in the middle of a frame.
    pub fn kill(&self, reason: CloseReason) {
        self.state.lock().end(Ended::Abort(reason));
    }

    /// Returns the phase of the connection.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    // ---- waiting

    /// Resolves when the result of [`Self::waits`] may have changed.
    pub fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.state.lock().poll_changed(cx)
    }

    /// Returns what the session has to wait for.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.state.lock().waits()
    }

    /// Returns the bytes in the queue.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.state.lock().queue.bytes()
    }

    /// Returns the bytes that wait because the socket takes no more.
    #[must_use]
    pub fn held_back(&self) -> usize {
        self.state.lock().held_back
    }

    /// Returns the bytes in the queue and in the current write.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        let state = self.state.lock();
        state.queue.bytes() + state.writing.bytes()
    }

    /// Checks if a replay may queue more: most of the queue is reserved for live events.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queued_bytes() < REPLAY_BYTES.min(self.max_bytes / 4)
    }

    /// Returns the number of pending-transaction events dropped for this client.
    #[must_use]
    pub fn shed(&self) -> u64 {
        self.state.lock().shed
    }

    /// Takes one of `max` places for calls in flight; `None` if no place is free.
    #[must_use]
    pub fn begin_call(self: &Arc<Self>, max: u32) -> Option<InFlight> {
        InFlight::begin(self, max)
    }

    /// Returns the number of calls in flight.
    #[must_use]
    pub fn calls_in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns the number of live subscriptions of this kind.
    #[must_use]
    pub fn live(&self, kind: Kind) -> u32 {
        self.live[kind as usize].load(Ordering::Relaxed)
    }

    /// Checks if several calls of this client are in flight: their answers often arrive together.
    #[must_use]
    pub fn awaits_several(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 1
    }
}

/// Guard that corks answers while it lives.
#[derive(Debug)]
pub struct Cork(Arc<ClientWriter>);

impl Drop for Cork {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.corked = false;
        if !state.queue.is_empty() {
            self.0.pump(&mut state);
        }
    }
}

impl Drop for ClientWriter {
    fn drop(&mut self) {
        self.shared.backlog().change(self.state.get_mut().held_back, 0);
    }
}

#[cfg(test)]
mod tests;
