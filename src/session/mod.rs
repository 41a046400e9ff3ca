//! Session of one client, of WebSocket or of server-sent events: a socket, a reader, a queue, and the subscriptions of the connection.
//!
//! One task, without timer or buffer while idle. The task waits in `poll_wake` and decides in `apply`; nothing in `apply`
//! waits, so a client that does not read cannot prevent its session from noticing the end of the connection.

mod batch;
mod clients;
mod control_frames;
mod discovery;
mod event_stream;
mod intake;
mod own;
mod positions_file;
mod reader;
mod requests;
mod services;
mod subscriptions;
mod web_socket;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::Sleep;
use tracing::debug;

pub use clients::{Clients, ConnectedClient, KeepaliveSettings, QueueTotals};
pub use control_frames::ControlFrames;
pub use discovery::Offered;
pub use event_stream::{Respond, StreamRefusal, serve_events};
pub(crate) use intake::{PlannedMessage, PlannedReply, RequestRefusal, Transport, caller};
pub(crate) use own::{OwnCaller, call as call_own, module as own_methods};
pub use positions_file::{PositionsFileError, take_positions, write_positions};
pub use reader::{ClientFrame, DeflatedMessage, Form, MAX_FRAGMENTS, MessageReader};
pub use services::{Services, SessionSettings};

use crate::delivery::{ClientWriter, CloseReason, Compression, Ended, Framing, Phase, Socket, frame};
use crate::door::{Pass, Refusals, Reserved, unix_now};
use crate::extension::Streams;
use crate::panics;
use crate::shares::Charge;
pub use crate::subscription::SessionToken;
use crate::subscription::{SessionKey, Subscription};
use crate::telemetry::{Event, ReasonLabel, RequestRecord};

/// Reads in a row before other tasks get their turn.
const MAX_READS: usize = 16;

/// Minimum length of a message that is charged to the inbound budget of all clients, in bytes. Shorter ones are bounded
/// by their number.
const LONG_MESSAGE: usize = (4 << 10) + 1;

/// Buffer space for one read, in bytes.
const READ_BYTES: usize = 4 << 10;

/// Event that wakes the session.
#[derive(Debug)]
enum Wake {
    /// The writer's waits have changed.
    News,
    Readable,
    Writable,
    Released,
}

struct Session {
    number: usize,
    pass: Arc<Pass>,
    refusals: Refusals,
    services: Arc<Services>,
    writer: Arc<ClientWriter>,
    reader: MessageReader,
    control_frames: ControlFrames,
    /// `true` if further input is ignored, after a violation of the framing.
    input_closed: bool,
    /// `true` if the client gave the token of a session, whose positions are kept.
    has_session: bool,
    subscriptions: Vec<(Subscription, Reserved)>,
    /// Subscriptions to the embedding program; `None` until the first call of one of its methods.
    streams: Option<Box<Streams>>,
    /// Charge for an incomplete message, if long.
    unfinished: Option<Charge>,
    /// Record of the connection, if it or its messages may be logged or traced.
    record: Option<Arc<RequestRecord>>,
}

/// Serves a client until it is disconnected. `early` are the bytes that arrived after the handshake, in which
/// `compression` was agreed and `token` names the session, and `record` is its record.
///
/// Not an `async fn`, whose future would keep space for the arguments while the client is idle.
pub fn serve(
    socket: Socket,
    early: Bytes,
    pass: Pass,
    (compression, token): (Compression, Option<SessionToken>),
    services: Arc<Services>,
    record: Option<Arc<RequestRecord>>,
) -> impl Future<Output = ()> + Send {
    let form = (Framing::WebSocket, compression);
    let mut session = Session::new(socket, early, pass, form, services.clone());
    session.record = record;
    if let Some(token) = token {
        session.open(token);
    }
    async move {
        let lived = panics::caught("session", &services.metrics, session.live()).await;
        let over = match lived {
            Some(over) => over,
            None => {
                session.violated(CloseReason::Internal);
                let leaving = panics::caught("session", &services.metrics, session.run()).await;
                leaving.unwrap_or(Ended::Abort(CloseReason::Internal))
            }
        };
        session.leave(over);
    }
}

/// Removes all traces of the session, whatever ended it, a panic included.
impl Drop for Session {
    fn drop(&mut self) {
        self.leave_session();
        let own = self.subscriptions.iter().map(|(subscription, _)| subscription);
        self.services.registry.unsubscribe_all(own);
        self.subscriptions.clear();
        self.services.clients.remove(self.number);
        self.services.metrics.clients.dec();
    }
}

impl Session {
    fn new(
        socket: Socket,
        early: Bytes,
        pass: Pass,
        (framing, compression): (Framing, Compression),
        services: Arc<Services>,
    ) -> Self {
        let lowat = services.settings.notsent_lowat;
        if lowat > 0
            && let Err(why) = socket.set_notsent_lowat(lowat)
        {
            debug!("TCP_NOTSENT_LOWAT: {why}");
        }
        let pass = Arc::new(pass);
        let egress = pass.account().egress().clone();
        let room = pass.terms().rights.plan.max_queue_bytes;
        let room = room.unwrap_or(services.settings.writer.max_bytes);
        let writer = ClientWriter::framed(room, socket, framing, compression, egress, services.writers.clone());
        let number = services.clients.add(writer.clone(), pass.clone());
        if let Some(activity) = pass.activity() {
            let writer = Arc::downgrade(&writer);
            activity.set_in_use(false);
            activity.on_leave(move || {
                if let Some(writer) = writer.upgrade() {
                    writer.close(CloseReason::Displaced);
                }
            });
        }
        services.metrics.clients.inc();
        services.metrics.connections.inc();
        let longest = pass.terms().rights.plan.max_message_bytes;
        let mut reader = MessageReader::new(longest, compression != Compression::None);
        reader.buffer().extend_from_slice(&early);
        // Even an empty slice keeps the handshake's whole read buffer alive.
        drop(early);
        Self {
            number,
            pass,
            refusals: Refusals::default(),
            services,
            writer,
            reader,
            control_frames: ControlFrames::default(),
            input_closed: false,
            has_session: false,
            subscriptions: Vec::new(),
            streams: None,
            unfinished: None,
            record: None,
        }
    }

    /// Opens the session that the client named.
    fn open(&mut self, token: SessionToken) {
        self.has_session = true;
        let account = self.pass.account().label().into();
        let key = SessionKey { account, token };
        self.services.registry.open_session(key, &self.writer, unix_now());
    }

    /// Leaves the session that the client named, whose positions stay unless the close reason said that they are lost.
    fn leave_session(&mut self) {
        if !std::mem::take(&mut self.has_session) {
            return;
        }
        let reason = match self.writer.phase() {
            Phase::Closing(reason) | Phase::Flushing(reason) => Some(reason),
            Phase::Open => None,
        };
        let keeps = !reason.is_some_and(CloseReason::loses_events);
        let says_so = !keeps || reason == Some(CloseReason::PositionLost);
        let is_noticed = says_so && self.writer.is_acknowledged();
        self.services
            .registry
            .close_session(self.writer.id(), keeps, is_noticed);
    }

    async fn live(&mut self) -> Ended {
        self.take_messages();
        // Data that TLS has decrypted already does not make the socket readable.
        match self.read() {
            Ok(()) => self.run().await,
            Err(over) => over,
        }
    }

    async fn run(&mut self) -> Ended {
        // Created when an event is on hold, once for each new subscription; an idle client has no timer.
        let mut held: Option<Pin<Box<Sleep>>> = None;
        loop {
            let waits = self.writer.waits();
            if let Some(over) = waits.over {
                return over;
            }
            let until = waits.until.map(|at| self.services.clock.instant(at));
            match (&mut held, until) {
                (Some(sleep), Some(until)) if sleep.deadline() != until => sleep.as_mut().reset(until),
                (None, Some(until)) => held = Some(Box::pin(tokio::time::sleep_until(until))),
                (_, None) => held = None,
                _ => {}
            }
            // A socket that is always ready does not consume tokio's budget by itself.
            tokio::task::consume_budget().await;
            let wake = match poll_fn(|cx| self.poll_wake(cx, waits.writable, held.as_mut())).await {
                Ok(wake) => wake,
                Err(_) => return Ended::Gone,
            };
            if let Err(over) = self.apply(wake) {
                return over;
            }
        }
    }

    /// Polls for the next event. Not a `select!` of futures: those of a socket's readiness are half of the memory of an
    /// idle client's task. Reading comes last, so that a client that always sends still gets what waits for it.
    fn poll_wake(
        &self,
        cx: &mut Context<'_>,
        writable: bool,
        held: Option<&mut Pin<Box<Sleep>>>,
    ) -> Poll<io::Result<Wake>> {
        let socket = self.writer.socket();
        if self.writer.poll_changed(cx).is_ready() {
            return Poll::Ready(Ok(Wake::News));
        }
        if held.is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(Wake::Released));
        }
        if writable && let Poll::Ready(writable) = socket.poll_writable(cx) {
            return Poll::Ready(writable.map(|()| Wake::Writable));
        }
        socket
            .poll_readable(cx)
            .map(|readable| readable.map(|()| Wake::Readable))
    }

    fn apply(&mut self, wake: Wake) -> Result<(), Ended> {
        match wake {
            Wake::News => self.forget_message(),
            Wake::Readable => return self.read(),
            Wake::Released | Wake::Writable => self.writer.flush(),
        }
        Ok(())
    }

    // ---- reading

    fn read(&mut self) -> Result<(), Ended> {
        for _ in 0..MAX_READS {
            let buffer = self.reader.buffer();
            buffer.reserve(READ_BYTES);
            match self.writer.socket().try_read(buffer) {
                Ok(0) => return Err(Ended::Gone),
                Ok(read) => {
                    self.services.metrics.bytes_in.inc_by(read as u64);
                    if let Some(record) = &self.record {
                        record.read(read);
                    }
                    if self.writer.is_event_stream() {
                        // The response ends with the connection: there is nothing to send behind the request.
                        self.violated(CloseReason::Protocol("no input is taken on a stream of events"));
                        self.reader.buffer().clear();
                        return Ok(());
                    }
                    self.writer.note_activity();
                    // One write per answer would be most of the cost of a short answer (benches/forward).
                    let _cork = self.writer.cork();
                    self.take_messages();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Ended::Gone),
            }
        }
        self.reader.rest();
        self.charge_unfinished();
        Ok(())
    }

    fn take_messages(&mut self) {
        // After a violation, the rest of the input cannot be parsed as frames.
        while !self.input_closed {
            let phase = self.writer.phase();
            let inbound = match self.reader.next_inbound() {
                Ok(Some(inbound)) => inbound,
                Ok(None) if self.reader.is_between_messages() => return,
                Ok(None) => return self.writer.message_begun(),
                Err(reason) => {
                    self.violated(reason);
                    break;
                }
            };
            if !self.reader.is_inside_message() {
                self.writer.message_done();
                self.unfinished = None;
            }
            match inbound {
                ClientFrame::Close(code) => self.writer.peer_closed(code),
                ClientFrame::Ping(payload) => {
                    if self.counts_control_frame() {
                        self.writer.control(frame::control(frame::Opcode::Pong, &payload));
                    }
                }
                ClientFrame::Pong(payload) => {
                    if !self.confirms(&payload) {
                        self.counts_control_frame();
                    }
                }
                ClientFrame::Message(_, message) if phase == Phase::Open => self.message(&message),
                ClientFrame::DeflatedMessage(message) if phase == Phase::Open => self.deflated(&message),
                ClientFrame::Message(..) | ClientFrame::DeflatedMessage(_) => {}
            }
        }
        self.reader.buffer().clear();
    }

    /// Charges the received part of an incomplete message to the inbound budget.
    fn charge_unfinished(&mut self) {
        let bytes = self.reader.held_bytes();
        if bytes < LONG_MESSAGE {
            self.unfinished = None;
            return;
        }
        let charge = self.unfinished.get_or_insert_with(|| {
            let writer = Arc::downgrade(&self.writer);
            let evict = move || {
                if let Some(writer) = writer.upgrade() {
                    writer.close(CloseReason::NoRoom);
                }
            };
            self.services
                .inbound
                .open_evictable(self.writer.owner(), Arc::new(evict))
        });
        if charge.resize(bytes).is_err() {
            self.writer.close(CloseReason::NoRoom);
            self.forget_message();
        }
    }

    /// Frees an incomplete message that was evicted to make room for other clients.
    fn forget_message(&mut self) {
        if matches!(self.writer.phase(), Phase::Closing(CloseReason::NoRoom)) && !self.input_closed {
            self.services.count_refusal("inbound_bytes");
            self.input_closed = true;
            self.reader.forget();
            self.unfinished = None;
        }
    }

    /// Checks if a pong confirms a position; such pongs are as many as our pings.
    fn confirms(&self, payload: &[u8]) -> bool {
        self.has_session
            && <[u8; 8]>::try_from(payload).is_ok_and(|payload| {
                self.services
                    .registry
                    .confirm(self.writer.id(), u64::from_be_bytes(payload))
            })
    }

    /// Counts a ping or pong; closes the connection and returns `false` if there were too many.
    fn counts_control_frame(&mut self) -> bool {
        let counted = self.control_frames.count(self.services.clock.now());
        counted.map_err(|reason| self.violated(reason)).is_ok()
    }

    fn violated(&mut self, reason: CloseReason) {
        self.input_closed = true;
        self.writer.close(reason);
    }

    // ---- the end

    /// Counts the end of the session and closes the socket.
    fn leave(&mut self, over: Ended) {
        let reason = match (over, self.writer.phase()) {
            (_, Phase::Closing(reason) | Phase::Flushing(reason)) => Some(reason),
            (Ended::Abort(reason), Phase::Open) => Some(reason),
            (Ended::Gone | Ended::Closed, Phase::Open) => None,
        };
        let label = reason.map_or("gone", CloseReason::label);
        self.services.metrics.journal.enter(Event::Closed {
            client: self.writer.id(),
            account: self.pass.account().label(),
            reason: label.to_owned(),
            code: reason.and_then(CloseReason::code),
        });
        self.services
            .metrics
            .closes
            .get_or_create(&ReasonLabel { reason: label })
            .inc();
        if let Some(record) = &self.record {
            let sent = self.writer.signs(self.services.clock.now()).sent;
            record.closed(label, reason.and_then(CloseReason::code), sent.bytes);
        }
        let shed = self.writer.shed();
        if shed > 0 {
            self.services
                .metrics
                .pending_dropped
                .get_or_create(&ReasonLabel { reason: "slow_client" })
                .inc_by(shed);
        }
        // A client that sees the end may come back at once.
        self.leave_session();
        let socket = self.writer.socket();
        match over {
            // A peer that does not read would pin its bytes in the kernel: reset the connection instead.
            Ended::Abort(_) => socket.reset_on_close(),
            Ended::Gone | Ended::Closed => {
                socket.shut();
                socket.discard();
            }
        }
    }
}

#[cfg(test)]
mod tests;
