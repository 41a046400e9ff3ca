//! Session of one WebSocket client: a socket, a reader, a queue, and the subscriptions of the connection.
//!
//! One task, without timer or buffer while idle. The task waits in `select` and decides in `apply`; nothing in `apply`
//! waits, so a client that does not read cannot prevent its session from noticing the end of the connection.

mod batch;
mod clients;
mod control_frames;
mod reader;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Sleep;
use tracing::debug;

pub use clients::{Clients, KeepaliveSettings};
pub use control_frames::ControlFrames;
pub use reader::{Deflated, Form, Inbound, MAX_FRAGMENTS, Reader};

use crate::clock::Clock;
use crate::deflate;
use crate::delivery::{
    Answered, ClientWriter, CloseReason, Compression, Ended, InFlight, Phase, Recipient, Socket, WriterLimits,
    WriterShared, frame,
};
use crate::door::{Door, Limit, Methods, Pass, Refusals, Reserved, Verdict};
use crate::jsonrpc::{
    self, ErrorObjectOwned, INVALID_REQUEST, Item, LIMIT_EXCEEDED, Message, Outcome, PARSE_ERROR, Request, Response,
    SERVER_ERROR, error,
};
use crate::look::look;
use crate::panics;
use crate::rpc::{Caller, Holder, Local, Planned, Rpc, SubscriptionMethod, id_argument, not_passed};
use crate::shares::{Budget, Charge};
use crate::subscription::{Asked, NodeSubscription, Registry, Replays, Start, Subscription, Topic, no_such_kind};
use crate::telemetry::{Metrics, ReasonLabel};

/// Session settings that do not change while the process runs; the client's other limits are in its
/// [`crate::door::Plan`].
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// Limits of the queue.
    pub writer: WriterLimits,
    /// `TCP_NOTSENT_LOWAT`, in bytes: how much the kernel may buffer unsent, so that the backlog stays in our queue as
    /// references to shared frames. 0 keeps the kernel's default.
    pub notsent_lowat: u32,
    /// Limit on bytes of incomplete or unanswered messages of all clients.
    pub max_inbound_bytes: usize,
}

/// Services shared by all sessions.
#[derive(Debug)]
pub struct Services {
    /// Live subscriptions.
    pub registry: Arc<Registry>,
    /// Subscriptions that start in the past.
    pub replays: Arc<Replays>,
    /// All other methods.
    pub rpc: Arc<Rpc>,
    /// Connected clients.
    pub clients: Clients,
    /// Admission of clients, and their quotas.
    pub door: Door,
    /// Settings.
    pub settings: SessionSettings,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Clock of the process.
    pub clock: Clock,
    /// Budget for incomplete messages, and for long ones that are not answered yet.
    pub inbound: Arc<Budget>,
    writers: Arc<WriterShared>,
}

impl Services {
    /// Combines the services, and creates the client registry, the inbound budget and the shared state of writers.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        replays: Arc<Replays>,
        rpc: Arc<Rpc>,
        door: Door,
        settings: SessionSettings,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let writers = WriterShared::new(settings.writer, clock, &metrics);
        Self {
            registry,
            replays,
            rpc,
            clients: Clients::new(clock),
            door,
            settings,
            metrics,
            clock,
            inbound: Budget::new("too many bytes of messages at once", settings.max_inbound_bytes),
            writers,
        }
    }

    /// Counts `count` refusals under this reason.
    pub fn count_refusals(&self, limit: &'static str, count: usize) {
        let label = ReasonLabel { reason: limit };
        self.metrics.refused.get_or_create(&label).inc_by(count as u64);
    }

    /// Decides if a call other than a subscription is refused: `None` if it may be forwarded.
    pub fn refused_call(&self, methods: &Methods, method: &str) -> Option<Local> {
        match methods.verdict(method) {
            Verdict::Serve => None,
            Verdict::InDevelopment if self.rpc.may_develop() => Some(Local::InDevelopment),
            Verdict::InDevelopment | Verdict::Refuse => Some(self.rpc.refused_method(method).into()),
        }
    }

    /// Counts one refusal under this reason.
    pub fn count_refusal(&self, limit: &'static str) {
        self.count_refusals(limit, 1);
    }
}

impl AsRef<Door> for Services {
    fn as_ref(&self) -> &Door {
        &self.door
    }
}

/// Returns the method of each item, for [`crate::door::Terms::charge`]; `None` for an item that is not a request.
pub fn methods<'a>(items: &'a [Item<'_>]) -> impl Iterator<Item = Option<&'a str>> {
    items.iter().map(|item| match item {
        Item::Call(request) | Item::Notification(request) | Item::Flawed(request, _) => Some(&*request.method),
        Item::Response | Item::Invalid(_) => None,
    })
}

impl Services {
    /// Enforces the limit on the global backlog, see [`Clients::enforce_total_backlog`]. Never returns.
    pub async fn enforce_total_backlog(&self) {
        self.clients.enforce_total_backlog(self.writers.backlog()).await;
    }
}

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
    reader: Reader,
    control_frames: ControlFrames,
    /// `true` if further input is ignored, after a violation of the framing.
    input_closed: bool,
    subscriptions: Vec<(Subscription, Reserved)>,
    /// Charge for an incomplete message, if long.
    unfinished: Option<Charge>,
    /// Charge for the message being processed, if long; passed on to its calls until they are answered.
    held: Option<Charge>,
}

/// Serves a client until it is disconnected. `early` are the bytes that arrived after the handshake, in which
/// `compression` was agreed.
///
/// Not an `async fn`, whose future would keep space for the arguments while the client is idle.
pub fn serve(
    socket: Socket,
    early: Bytes,
    pass: Pass,
    compression: Compression,
    services: Arc<Services>,
) -> impl Future<Output = ()> + Send {
    let lowat = services.settings.notsent_lowat;
    if lowat > 0
        && let Err(why) = socket.options().set_tcp_notsent_lowat(lowat)
    {
        debug!("TCP_NOTSENT_LOWAT: {why}");
    }
    let pass = Arc::new(pass);
    let egress = pass.account().egress().clone();
    let writer = ClientWriter::new(socket, compression, egress, services.writers.clone());
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
    let mut reader = Reader::new(longest, compression != Compression::None);
    reader.buffer().extend_from_slice(&early);
    // Even an empty slice keeps the handshake's whole read buffer alive.
    drop(early);
    let mut session = Session {
        number,
        pass,
        refusals: Refusals::default(),
        services: services.clone(),
        writer,
        reader,
        control_frames: ControlFrames::default(),
        input_closed: false,
        subscriptions: Vec::new(),
        unfinished: None,
        held: None,
    };
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
        let own = self.subscriptions.iter().map(|(subscription, _)| subscription);
        self.services.registry.unsubscribe_all(own);
        self.subscriptions.clear();
        self.services.clients.remove(self.number);
        self.services.metrics.clients.dec();
    }
}

impl Session {
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
            let wake = match self.select(waits.writable, held.as_mut()).await {
                Ok(wake) => wake,
                Err(_) => return Ended::Gone,
            };
            if let Err(over) = self.apply(wake) {
                return over;
            }
        }
    }

    async fn select(&self, writable: bool, held: Option<&mut Pin<Box<Sleep>>>) -> io::Result<Wake> {
        let socket = self.writer.socket();
        let holds = held.is_some();
        tokio::select! {
            () = poll_fn(|cx| self.writer.poll_news(cx)) => Ok(Wake::News),
            readable = socket.readable() => readable.map(|()| Wake::Readable),
            writable = socket.writable(), if writable => writable.map(|()| Wake::Writable),
            () = async { if let Some(sleep) = held { sleep.await } }, if holds => Ok(Wake::Released),
        }
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
                    self.writer.heard();
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
                Inbound::Close(code) => self.writer.peer_closed(code),
                Inbound::Ping(payload) => {
                    if self.counts_control_frame() {
                        self.writer.control(frame::control(frame::Opcode::Pong, &payload));
                    }
                }
                Inbound::Pong => drop(self.counts_control_frame()),
                Inbound::Message(_, message) if phase == Phase::Open => self.message(&message),
                Inbound::Deflated(message) if phase == Phase::Open => self.deflated(&message),
                Inbound::Message(..) | Inbound::Deflated(_) => {}
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

    /// Counts a ping or pong; closes the connection and returns `false` if there were too many.
    fn counts_control_frame(&mut self) -> bool {
        let counted = self.control_frames.count(self.services.clock.now());
        counted.map_err(|reason| self.violated(reason)).is_ok()
    }

    fn violated(&mut self, reason: CloseReason) {
        self.input_closed = true;
        self.writer.close(reason);
    }

    // ---- requests

    fn message(&mut self, message: &[u8]) {
        if let Some(activity) = self.pass.activity() {
            activity.used(self.services.clock.now());
        }
        // Long messages cost work before they are parsed; a message over the quota is not even parsed.
        let charged = self.pass.terms().charge_bytes(message.len());
        match charged {
            Ok(()) => self.charged(message),
            Err(exceeded) => self.unread("requests", exceeded.into()),
        }
    }

    /// Like [`Self::message`], but charged while inflating, since the length is not known before.
    fn deflated(&mut self, message: &Deflated) {
        let terms = self.pass.account().terms();
        let max = terms.rights.plan.max_message_bytes;
        let inflated = message.inflate(max, || terms.charge_bytes(deflate::STEP));
        drop(terms);
        match inflated {
            Ok(message) => self.charged(&message),
            Err(Ok(exceeded)) => self.unread("requests", exceeded.into()),
            Err(Err(reason)) => self.violated(reason),
        }
    }

    fn unread(&mut self, limit: &'static str, why: ErrorObjectOwned) {
        self.services.count_refusal(limit);
        self.answer(Response::new("null", why.into()), Vec::new());
        self.note_refusal();
    }

    /// Records a message refused because of a limit. The client learns when to retry; a client that goes on anyway is
    /// closed.
    fn note_refusal(&mut self) {
        let refusal_limit = self.pass.terms().rights.plan.refusal_limit;
        if self.refusals.note(self.services.clock.now(), refusal_limit) {
            self.writer.close(CloseReason::Abuse);
        }
    }

    fn charged(&mut self, message: &[u8]) {
        let terms = self.pass.account().terms();
        let parsed = Message::parse(message, terms.rights.plan.max_batch);
        // Requests are charged one by one. A message without any costs as much as one, since it is read and answered.
        if !parsed.as_ref().is_ok_and(Message::holds_requests)
            && let Err(exceeded) = terms.charge_one()
        {
            drop(terms);
            return self.unread("requests", exceeded.into());
        }
        drop(terms);
        if message.len() >= LONG_MESSAGE {
            match self.services.inbound.charge(self.writer.owner(), message.len()) {
                Ok(room) => self.held = Some(room),
                Err(full) => return self.unread("inbound_bytes", full.into()),
            }
        }
        match parsed {
            // geth closes the connection here; that has no benefit and breaks ethers clients for good (PROTOCOL J3,
            // J4).
            Err(why) => self.answer(
                Response::new("null", error(PARSE_ERROR, why.to_string()).into()),
                Vec::new(),
            ),
            Ok(Message::Single(item)) => self.single(&item),
            Ok(Message::Batch(items)) => self.batch(&items),
            // As in geth: an array of one, with the id of the first call (PROTOCOL B2).
            Ok(Message::TooMany(first)) => {
                let response = Response::new(
                    jsonrpc::id_text(first),
                    error(INVALID_REQUEST, "batch too large").into(),
                );
                self.services.answer_batch(&self.writer, &[response], Vec::new());
            }
        }
        self.held = None;
    }

    fn single(&mut self, item: &Item<'_>) {
        let mut releases = Vec::new();
        let (max_in_flight, charged) = self.charge(std::slice::from_ref(item));
        let place = waits(item).then(|| self.writer.begin_call(max_in_flight)).flatten();
        let refusal = match charged {
            Err(why) => Some(("requests", why.into())),
            Ok(()) if is_forwarded(item) && place.is_none() => Some(("in_flight", too_many_calls())),
            Ok(()) => None,
        };
        let refused = refusal.is_some();
        let planned = match &refusal {
            Some((limit, why)) => self.refuse(item, limit, why),
            None => self.plan(item, place.is_some(), &mut releases),
        };
        match (planned, place) {
            (Planned::Silent, _) => {}
            (Planned::Done(id, outcome), _) => {
                let response = self.services.rpc.local(&id, outcome);
                self.answer(response, releases);
            }
            (planned, place) => {
                let (services, caller) = (self.services.clone(), self.caller());
                let mut completing = Box::pin(async move { services.rpc.complete(planned, &caller).await });
                // An answer that is known already needs no task.
                if let Some(known) = look(completing.as_mut()) {
                    if let Some(response) = known {
                        self.answer(response, releases);
                    }
                } else {
                    let (services, held) = (self.services.clone(), self.held.take());
                    tokio::spawn(async move {
                        let _held = held;
                        let completed = panics::caught("call", &services.metrics, completing).await;
                        let Some(writer) = place.as_ref().and_then(InFlight::writer) else {
                            return;
                        };
                        let Some(completed) = completed else {
                            return writer.close(CloseReason::Internal);
                        };
                        if let Some(response) = completed {
                            // Answers that the node sent together leave together, after all ready tasks have run: a
                            // write for each was a fifth of the cost of a call (benches/forward).
                            let cork = writer.awaits_several().then(|| writer.cork()).flatten();
                            services.answer(&writer, &response, releases);
                            if cork.is_some() {
                                tokio::task::yield_now().await;
                            }
                        }
                    });
                }
            }
        }
        if refused {
            self.note_refusal();
        }
    }

    /// Returns the identity of this client for calls.
    fn caller(&self) -> Caller {
        Caller {
            owner: self.writer.owner(),
            holder: Holder(self.pass.account().number()),
            conduct: self.pass.terms().conduct().clone(),
        }
    }

    /// Charges all items or none; returns also how many calls may be in flight.
    fn charge(&self, items: &[Item<'_>]) -> (u32, Result<(), ErrorObjectOwned>) {
        let terms = self.pass.terms();
        let charged = terms.charge(methods(items)).map_err(ErrorObjectOwned::from);
        (terms.rights.plan.max_in_flight, charged)
    }

    /// Plans an item. `has_slot` is `true` if there is a place for an answer that is not known at once.
    fn plan(&mut self, item: &Item<'_>, has_slot: bool, releases: &mut Vec<Arc<Recipient>>) -> Planned {
        let notification = matches!(item, Item::Notification(_));
        Planned::new(item, &mut |request| {
            match SubscriptionMethod::of(&request.method) {
                // Unsubscribing is always allowed.
                Some(SubscriptionMethod::Unsubscribe) => Some(self.unsubscribe(request).into()),
                Some(SubscriptionMethod::Unpaired) => Some(self.services.rpc.refused_method(&request.method).into()),
                // Without an id there is no response to carry the subscription's id: ignored, as in reth (PROTOCOL J7).
                Some(_) if notification => Some(Outcome::TRUE.into()),
                Some(method) => Some(
                    self.subscribe(method, request, has_slot, releases)
                        .unwrap_or_else(Local::from),
                ),
                None => self
                    .services
                    .refused_call(&self.pass.terms().rights.methods, &request.method),
            }
        })
    }

    fn refuse(&self, item: &Item<'_>, limit: &'static str, why: &Outcome) -> Planned {
        self.services.count_refusal(limit);
        Planned::refused(item, why)
    }

    fn subscribe(
        &mut self,
        method: SubscriptionMethod<'_>,
        request: &Request<'_>,
        has_slot: bool,
        releases: &mut Vec<Arc<Recipient>>,
    ) -> Result<Local, ErrorObjectOwned> {
        let terms = self.pass.account().terms();
        let methods = &terms.rights.methods;
        let (mut topic, is_allowed, name) = match method {
            SubscriptionMethod::Subscribe(namespace) => {
                let topic = Topic::parse(namespace, request)?;
                let name = format!("{namespace}_{}", topic.name());
                // `eth_x_subscribe` subscribes like `eth_subscribe`: a rule that denies one denies the other.
                (
                    topic,
                    methods.allow_subscription(&format!("{namespace}_subscribe")),
                    name,
                )
            }
            _ => (Topic::of_its_own(request)?, true, request.method.clone().into_owned()),
        };
        let not_offered = |topic: &Topic| match method {
            SubscriptionMethod::Subscribe(namespace) => no_such_kind(namespace, topic.name()),
            _ => not_passed(&request.method),
        };
        if !is_allowed || !methods.allow_subscription(&request.method) || !terms.rights.kinds.allow(topic.kind()) {
            self.services.count_refusal("kind");
            return Err(not_offered(&topic));
        }
        let services = self.services.clone();
        // For these, the node's answer decides.
        let of = match &topic {
            Topic::Passthrough(passed, _) => Some(NodeSubscription::Passthrough(passed.clone())),
            Topic::Pending(filter) => Some(NodeSubscription::Pending(filter.source())),
            _ => None,
        };
        if of.is_some() {
            if matches!(topic, Topic::Passthrough(..)) && !terms.rights.passed.match_any(&name) {
                return Err(not_offered(&topic));
            }
            if !has_slot {
                services.count_refusal("in_flight");
                return Err(error(LIMIT_EXCEEDED, TOO_MANY_CALLS));
            }
            // Subscriptions that the node refused are not counted.
            self.subscriptions.retain(|(own, _)| !own.recipient.is_over());
        }
        if let Topic::Chain(stream, start @ Start::Live) = &mut topic {
            *start = services.replays.start_of(stream);
        }
        let max = terms.rights.plan.max_subscriptions;
        if self.subscriptions.len() >= max {
            // Subscriptions that found no block to resume from are not counted.
            self.subscriptions.retain(|(own, _)| !own.recipient.is_over());
        }
        if self.subscriptions.len() >= max {
            services.count_refusal("subscriptions");
            let message = format!("limit exceeded: {max} subscriptions on this connection");
            return Err(error(LIMIT_EXCEEDED, message));
        }
        if let Some((label, words)) = services.registry.refuses(&topic) {
            services.count_refusal(label);
            return Err(error(SERVER_ERROR, words));
        }
        let reserved = self.pass.account().reserve(topic.index_entries()).map_err(|limit| {
            let (label, message) = match limit {
                Limit::Subscriptions(max) => (
                    "client_subscriptions",
                    format!("limit exceeded: {max} subscriptions of this client"),
                ),
                Limit::IndexEntries(max) => (
                    "index_entries",
                    format!("limit exceeded: {max} addresses times topics, and hashes, in the filters of this client"),
                ),
            };
            services.count_refusal(label);
            error(LIMIT_EXCEEDED, message)
        })?;
        let granted = self.granted(&topic);
        let (subscription, finding) = match topic {
            // Before the first block there is no position for "now", so an answer could leave a gap; and after a
            // rewind, live subscribers know blocks that this client still has to receive.
            Topic::Chain(stream, start) if start != Start::Live || !services.registry.is_at_its_tip() => {
                if !has_slot {
                    services.count_refusal("in_flight");
                    return Err(error(LIMIT_EXCEEDED, TOO_MANY_CALLS));
                }
                services.replays.subscribe(stream, start, &self.writer)?
            }
            topic => match services.registry.subscribe(topic, &self.writer) {
                Ok(subscription) => (subscription, None),
                Err(full) => {
                    services.count_refusal("passthrough");
                    return Err(error(LIMIT_EXCEEDED, full.to_string()));
                }
            },
        };
        let recipient = subscription.recipient.clone();
        if self.subscriptions.capacity() == 0 {
            // Growing starts with four, and most clients have one.
            self.subscriptions.reserve_exact(1);
        }
        let asked = subscription.asked();
        self.subscriptions.push((subscription, reserved));
        self.note_use();
        let id = Outcome::Result(format!("\"{}\"", recipient.id()).into());
        releases.push(recipient);
        if let Some(of) = of {
            return Ok(Local::Later(
                async move { services.grant(&of, asked).await.err().unwrap_or(id) }.boxed(),
            ));
        }
        Ok(match (finding, granted) {
            (Some(finding), _) => Local::Later(finding.outcome().boxed()),
            (None, Some(granted)) if has_slot => Local::Later(granted.map(|()| id).boxed()),
            (None, _) => id.into(),
        })
    }

    /// Returns the event that the answer to a subscription waits for, so that no gap follows the answer; `None` if it
    /// need not wait.
    fn granted(&self, topic: &Topic) -> Option<BoxFuture<'static, ()>> {
        let services = self.services.clone();
        match topic {
            Topic::Mined(_) | Topic::Receipts(_) if !services.registry.has_begun() => {
                Some(async move { services.registry.begun().await }.boxed())
            }
            _ => None,
        }
    }

    fn unsubscribe(&mut self, request: &Request<'_>) -> Outcome {
        let id = match request.args().and_then(|args| id_argument(&args)) {
            Ok(id) => id,
            Err(why) => return why.into(),
        };
        let mine = self
            .subscriptions
            .iter()
            .position(|(own, _)| Some(own.recipient.id()) == id);
        match mine.map(|at| self.subscriptions.swap_remove(at)) {
            Some((subscription, _)) => {
                self.services.registry.unsubscribe(&subscription);
                self.note_use();
                Outcome::TRUE
            }
            None => error(SERVER_ERROR, "subscription not found").into(),
        }
    }

    /// Records if the connection has subscriptions: one that has is displaced last.
    fn note_use(&self) {
        if let Some(activity) = self.pass.activity() {
            activity.set_in_use(!self.subscriptions.is_empty());
        }
    }

    fn answer(&self, response: Response, releases: Vec<Arc<Recipient>>) {
        self.services.answer(&self.writer, &response, releases);
    }

    // ---- the end

    /// Counts the end of the session and closes the socket.
    fn leave(&mut self, over: Ended) {
        let label = match (over, self.writer.phase()) {
            (_, Phase::Closing(reason) | Phase::Flushing(reason)) => reason.label(),
            (Ended::Abort(reason), Phase::Open) => reason.label(),
            (Ended::Gone | Ended::Closed, Phase::Open) => "gone",
        };
        self.services
            .metrics
            .closes
            .get_or_create(&ReasonLabel { reason: label })
            .inc();
        let shed = self.writer.shed();
        if shed > 0 {
            self.services
                .metrics
                .pending_dropped
                .get_or_create(&ReasonLabel { reason: "slow_client" })
                .inc_by(shed);
        }
        let socket = self.writer.socket();
        match over {
            // A peer that does not read would pin its bytes in the kernel: reset the connection instead.
            Ended::Abort(_) => drop(socket.options().set_linger(Some(Duration::ZERO))),
            Ended::Gone | Ended::Closed => {
                socket.shut();
                socket.discard();
            }
        }
    }
}

impl Services {
    /// Waits for the active node's answer to a subscription made there on behalf of clients.
    ///
    /// # Errors
    /// The client's answer, if the node refuses; the subscription is removed.
    async fn grant(&self, of: &NodeSubscription, asked: Asked) -> Result<(), Outcome> {
        let mut answered = self.rpc.answered(of).await;
        if answered.is_ok() {
            self.registry.accept(asked);
            // Another node may have become active since, and refused before the subscription could be closed for it.
            answered = self.rpc.answered_now(of);
        }
        if answered.is_err() {
            self.registry.refuse(asked);
        }
        answered
    }

    /// Sends a response, or a short error if the response is too long for the client's queue.
    fn answer(&self, writer: &Arc<ClientWriter>, response: &Response, releases: Vec<Arc<Recipient>>) {
        let resumes = releases.iter().any(|recipient| recipient.is_resumed());
        let pieces = |response: &Response| writer.text(&response.parts());
        if let Answered::NoRoom(releases) = writer.answer(pieces(response), releases) {
            // An error is short: queued, or the connection ends.
            drop(writer.answer(pieces(&response.clone().shortened()), releases));
        }
        if resumes {
            self.replays.begin(writer);
        }
    }
}

/// Checks if the answer to an item may have to wait: for the node, for its own subscription to pending transactions, or
/// for a block to resume from.
fn waits(item: &Item<'_>) -> bool {
    match item {
        Item::Call(request) => !matches!(
            SubscriptionMethod::of(&request.method),
            Some(SubscriptionMethod::Unsubscribe | SubscriptionMethod::Unpaired)
        ),
        Item::Notification(_) => is_forwarded(item),
        Item::Response | Item::Invalid(_) | Item::Flawed(..) => false,
    }
}

fn is_forwarded(item: &Item<'_>) -> bool {
    match item {
        Item::Call(request) | Item::Notification(request) => SubscriptionMethod::of(&request.method).is_none(),
        Item::Response | Item::Invalid(_) | Item::Flawed(..) => false,
    }
}

const TOO_MANY_CALLS: &str = "limit exceeded: too many calls in flight";

fn too_many_calls() -> Outcome {
    error(LIMIT_EXCEEDED, TOO_MANY_CALLS).into()
}
