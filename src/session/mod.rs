//! One WebSocket client: a socket, a reader, a queue, and the subscriptions that live and die with it.
//!
//! One task, no timer and no buffer while idle. It waits in `select` and decides in `apply`; nothing in `apply` waits, so
//! a client that does not read cannot keep its own session from hearing that it is over.

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

pub use clients::{Clients, LifeSigns};
pub use control_frames::ControlFrames;
pub use reader::{Deflated, Form, Inbound, MAX_FRAGMENTS, Reader};

use crate::clock::Clock;
use crate::deflate;
use crate::delivery::{
    Answered, CloseReason, Compression, InFlight, Outbox, OutboxLimits, OutboxShared, Over, Phase, Recipient, Socket,
    frame,
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

/// What of a session is settled for as long as the service runs; the rest is its client's [`crate::door::Plan`].
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// Bounds of the queue.
    pub outbox: OutboxLimits,
    /// `TCP_NOTSENT_LOWAT`, in bytes: what the kernel may hold back unsent, so that the backlog stays in our queue as
    /// references to shared frames. 0 leaves the kernel's own.
    pub notsent_lowat: u32,
    /// Bytes of messages that are not whole or not answered, of all clients.
    pub max_inbound_bytes: usize,
}

/// What every session works with.
#[derive(Debug)]
pub struct Services {
    /// Subscriptions.
    pub registry: Arc<Registry>,
    /// Subscriptions that begin in the past.
    pub replays: Arc<Replays>,
    /// Everything else.
    pub rpc: Arc<Rpc>,
    /// Connected clients.
    pub clients: Clients,
    /// Who may come in, and how much each may ask.
    pub door: Door,
    /// Bounds.
    pub settings: SessionSettings,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
    /// Room for messages that are not whole, and for long ones that are not answered.
    pub inbound: Arc<Budget>,
    outboxes: Arc<OutboxShared>,
}

impl Services {
    /// Puts them together.
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
        let outboxes = OutboxShared::new(settings.outbox, clock, &metrics);
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
            outboxes,
        }
    }

    /// Counts what was refused.
    pub fn count_refusals(&self, limit: &'static str, count: usize) {
        let label = ReasonLabel { reason: limit };
        self.metrics.refused.get_or_create(&label).inc_by(count as u64);
    }

    /// Decides about a call that is no subscription: `None` where it is forwarded to any node.
    pub fn refused_call(&self, methods: &Methods, method: &str) -> Option<Local> {
        match methods.verdict(method) {
            Verdict::Serve => None,
            Verdict::InDevelopment if self.rpc.may_develop() => Some(Local::InDevelopment),
            Verdict::InDevelopment | Verdict::Refuse => Some(self.rpc.refused_method(method).into()),
        }
    }

    /// As [`Self::count_refusals`], of one.
    pub fn count_refusal(&self, limit: &'static str) {
        self.count_refusals(limit, 1);
    }
}

impl AsRef<Door> for Services {
    fn as_ref(&self) -> &Door {
        &self.door
    }
}

/// What the items of a message call, for [`crate::door::Terms::charge`].
pub fn methods<'a>(items: &'a [Item<'_>]) -> impl Iterator<Item = Option<&'a str>> {
    items.iter().map(|item| match item {
        Item::Call(request) | Item::Notification(request) | Item::Flawed(request, _) => Some(&*request.method),
        Item::Response | Item::Invalid(_) => None,
    })
}

impl Services {
    /// Keeps what waits for all clients together within its bound, for ever.
    pub async fn relieve(&self) {
        self.clients.relieve(self.outboxes.backlog()).await;
    }
}

/// Reads in a row before others get their turn.
const MAX_READS: usize = 16;

/// A message from here on takes room among those of all clients, in bytes. Shorter ones are bounded by their number.
const LONG_MESSAGE: usize = (4 << 10) + 1;

/// Bytes asked of the socket in one read.
const READ_BYTES: usize = 4 << 10;

/// What the session waits for.
#[derive(Debug)]
enum Wake {
    /// What there is to wait for has changed.
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
    outbox: Arc<Outbox>,
    reader: Reader,
    control_frames: ControlFrames,
    /// The client broke the framing: what it sends is not looked at any more.
    deaf: bool,
    subscriptions: Vec<(Subscription, Reserved)>,
    /// Room of a message that is not whole, where it is long.
    unfinished: Option<Charge>,
    /// Room of the message that is being looked at, where it is long: for its calls, until they are answered.
    held: Option<Charge>,
}

/// Serves a client until it is gone. `early` is what arrived behind the handshake, which agreed on compression or not.
///
/// No `async fn`: an idle client would keep the room of its arguments.
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
    let outbox = Outbox::new(socket, compression, egress, services.outboxes.clone());
    let number = services.clients.add(outbox.clone(), pass.clone());
    if let Some(activity) = pass.activity() {
        let outbox = Arc::downgrade(&outbox);
        activity.set_in_use(false);
        activity.on_leave(move || {
            if let Some(outbox) = outbox.upgrade() {
                outbox.close(CloseReason::Displaced);
            }
        });
    }
    services.metrics.clients.inc();
    services.metrics.connections.inc();
    let longest = pass.terms().rights.plan.max_message_bytes;
    let mut reader = Reader::new(longest, compression != Compression::None);
    reader.buffer().extend_from_slice(&early);
    // Even an empty rest keeps the handshake's whole read buffer alive.
    drop(early);
    let mut session = Session {
        number,
        pass,
        refusals: Refusals::default(),
        services: services.clone(),
        outbox,
        reader,
        control_frames: ControlFrames::default(),
        deaf: false,
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
                leaving.unwrap_or(Over::Abort(CloseReason::Internal))
            }
        };
        session.leave(over);
    }
}

/// Whatever ends a session, even a bug of ours: nothing of it stays behind.
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
    async fn live(&mut self) -> Over {
        self.take_messages();
        // What TLS has decrypted already makes no socket readable.
        match self.read() {
            Ok(()) => self.run().await,
            Err(over) => over,
        }
    }

    async fn run(&mut self) -> Over {
        // Made when something is held, which is once for each new subscription; an idle client has no timer.
        let mut held: Option<Pin<Box<Sleep>>> = None;
        loop {
            let waits = self.outbox.waits();
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
            // A socket that is always ready takes nothing from tokio's budget by itself.
            tokio::task::consume_budget().await;
            let wake = match self.select(waits.writable, held.as_mut()).await {
                Ok(wake) => wake,
                Err(_) => return Over::Gone,
            };
            if let Err(over) = self.apply(wake) {
                return over;
            }
        }
    }

    async fn select(&self, writable: bool, held: Option<&mut Pin<Box<Sleep>>>) -> io::Result<Wake> {
        let socket = self.outbox.socket();
        let holds = held.is_some();
        tokio::select! {
            () = poll_fn(|cx| self.outbox.poll_news(cx)) => Ok(Wake::News),
            readable = socket.readable() => readable.map(|()| Wake::Readable),
            writable = socket.writable(), if writable => writable.map(|()| Wake::Writable),
            () = async { if let Some(sleep) = held { sleep.await } }, if holds => Ok(Wake::Released),
        }
    }

    fn apply(&mut self, wake: Wake) -> Result<(), Over> {
        match wake {
            Wake::News => self.forget_message(),
            Wake::Readable => return self.read(),
            Wake::Released | Wake::Writable => self.outbox.flush(),
        }
        Ok(())
    }

    // ---- reading

    fn read(&mut self) -> Result<(), Over> {
        for _ in 0..MAX_READS {
            let buffer = self.reader.buffer();
            buffer.reserve(READ_BYTES);
            match self.outbox.socket().try_read(buffer) {
                Ok(0) => return Err(Over::Gone),
                Ok(read) => {
                    self.services.metrics.bytes_in.inc_by(read as u64);
                    self.outbox.heard();
                    // A write for each answer is most of what a short one costs (benches/forward).
                    let _cork = self.outbox.cork();
                    self.take_messages();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Over::Gone),
            }
        }
        self.reader.rest();
        self.charge_unfinished();
        Ok(())
    }

    fn take_messages(&mut self) {
        // After a violation nothing that follows can be read as frames.
        while !self.deaf {
            let phase = self.outbox.phase();
            let inbound = match self.reader.next_inbound() {
                Ok(Some(inbound)) => inbound,
                Ok(None) if self.reader.is_between_messages() => return,
                Ok(None) => return self.outbox.message_begun(),
                Err(reason) => {
                    self.violated(reason);
                    break;
                }
            };
            if !self.reader.is_inside_message() {
                self.outbox.message_done();
                self.unfinished = None;
            }
            match inbound {
                Inbound::Close(code) => self.outbox.peer_closed(code),
                Inbound::Ping(payload) => {
                    if self.counts_control_frame() {
                        self.outbox.control(frame::control(frame::Opcode::Pong, &payload));
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

    /// Charges the received part of a message that is not complete to the budget for all of them.
    fn charge_unfinished(&mut self) {
        let bytes = self.reader.held_bytes();
        if bytes < LONG_MESSAGE {
            self.unfinished = None;
            return;
        }
        let charge = self.unfinished.get_or_insert_with(|| {
            let outbox = Arc::downgrade(&self.outbox);
            let evict = move || {
                if let Some(outbox) = outbox.upgrade() {
                    outbox.close(CloseReason::NoRoom);
                }
            };
            self.services
                .inbound
                .open_evictable(self.outbox.owner(), Arc::new(evict))
        });
        if charge.resize(bytes).is_err() {
            self.outbox.close(CloseReason::NoRoom);
            self.forget_message();
        }
    }

    /// Gives back what has come of a message where it was given up for others.
    fn forget_message(&mut self) {
        if matches!(self.outbox.phase(), Phase::Closing(CloseReason::NoRoom)) && !self.deaf {
            self.services.count_refusal("inbound_bytes");
            self.deaf = true;
            self.reader.forget();
            self.unfinished = None;
        }
    }

    /// Whether it was not one too many.
    fn counts_control_frame(&mut self) -> bool {
        let counted = self.control_frames.count(self.services.clock.now());
        counted.map_err(|reason| self.violated(reason)).is_ok()
    }

    fn violated(&mut self, reason: CloseReason) {
        self.deaf = true;
        self.outbox.close(reason);
    }

    // ---- requests

    fn message(&mut self, message: &[u8]) {
        if let Some(activity) = self.pass.activity() {
            activity.used(self.services.clock.now());
        }
        // Long messages are work before they are understood; who has used up the quota is not even read.
        let charged = self.pass.terms().charge_bytes(message.len());
        match charged {
            Ok(()) => self.charged(message),
            Err(exceeded) => self.unread("requests", exceeded.into()),
        }
    }

    /// As [`Self::message`], but charged while it grows, for nobody knows before how long it becomes.
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
        self.lose_patience();
    }

    /// A message was refused for a limit. One is told when to come again; who goes on all the same is shown out.
    fn lose_patience(&mut self) {
        let patience = self.pass.terms().rights.plan.patience;
        if self.refusals.note(self.services.clock.now(), patience) {
            self.outbox.close(CloseReason::Abuse);
        }
    }

    fn charged(&mut self, message: &[u8]) {
        let terms = self.pass.account().terms();
        let parsed = Message::parse(message, terms.rights.plan.max_batch);
        // Requests are charged one by one. What holds none costs as much as one, for it is read and answered.
        if !parsed.as_ref().is_ok_and(Message::holds_requests)
            && let Err(exceeded) = terms.charge_one()
        {
            drop(terms);
            return self.unread("requests", exceeded.into());
        }
        drop(terms);
        if message.len() >= LONG_MESSAGE {
            match self.services.inbound.charge(self.outbox.owner(), message.len()) {
                Ok(room) => self.held = Some(room),
                Err(full) => return self.unread("inbound_bytes", full.into()),
            }
        }
        match parsed {
            // geth closes here; that gains nothing and ends ethers users for good (PROTOCOL J3, J4).
            Err(why) => self.answer(
                Response::new("null", error(PARSE_ERROR, why.to_string()).into()),
                Vec::new(),
            ),
            Ok(Message::Single(item)) => self.single(&item),
            Ok(Message::Batch(items)) => self.batch(&items),
            // As geth: an array of one, under the id of the first call (PROTOCOL B2).
            Ok(Message::TooMany(first)) => {
                let response = Response::new(
                    jsonrpc::id_text(first),
                    error(INVALID_REQUEST, "batch too large").into(),
                );
                self.services.answer_batch(&self.outbox, &[response], Vec::new());
            }
        }
        self.held = None;
    }

    fn single(&mut self, item: &Item<'_>) {
        let mut releases = Vec::new();
        let (max_in_flight, charged) = self.charge(std::slice::from_ref(item));
        let place = waits(item).then(|| self.outbox.begin_call(max_in_flight)).flatten();
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
                // What is known already needs no task.
                if let Some(known) = look(completing.as_mut()) {
                    if let Some(response) = known {
                        self.answer(response, releases);
                    }
                } else {
                    let (services, held) = (self.services.clone(), self.held.take());
                    tokio::spawn(async move {
                        let _held = held;
                        let completed = panics::caught("call", &services.metrics, completing).await;
                        let Some(outbox) = place.as_ref().and_then(InFlight::outbox) else {
                            return;
                        };
                        let Some(completed) = completed else {
                            return outbox.close(CloseReason::Internal);
                        };
                        if let Some(response) = completed {
                            // What the node answered at once leaves at once, after everybody's turn: a write for each was
                            // a fifth of what a call costs (benches/forward).
                            let cork = outbox.awaits_several().then(|| outbox.cork()).flatten();
                            services.answer(&outbox, &response, releases);
                            if cork.is_some() {
                                tokio::task::yield_now().await;
                            }
                        }
                    });
                }
            }
        }
        if refused {
            self.lose_patience();
        }
    }

    /// Charges all items or none; and how many calls may be in flight.
    fn caller(&self) -> Caller {
        Caller {
            owner: self.outbox.owner(),
            holder: Holder(self.pass.account().number()),
            conduct: self.pass.terms().conduct().clone(),
        }
    }

    fn charge(&self, items: &[Item<'_>]) -> (u32, Result<(), ErrorObjectOwned>) {
        let terms = self.pass.terms();
        let charged = terms.charge(methods(items)).map_err(ErrorObjectOwned::from);
        (terms.rights.plan.max_in_flight, charged)
    }

    /// `can_wait`: there is a place for an answer that is not known at once.
    fn plan(&mut self, item: &Item<'_>, can_wait: bool, releases: &mut Vec<Arc<Recipient>>) -> Planned {
        let notification = matches!(item, Item::Notification(_));
        Planned::new(item, &mut |request| {
            match SubscriptionMethod::of(&request.method) {
                // The way out is never barred.
                Some(SubscriptionMethod::Unsubscribe) => Some(self.unsubscribe(request).into()),
                Some(SubscriptionMethod::Unpaired) => Some(self.services.rpc.refused_method(&request.method).into()),
                // Without an id there is no way to tell the subscription's: it is ignored, as in reth (PROTOCOL J7).
                Some(_) if notification => Some(Outcome::TRUE.into()),
                Some(method) => Some(
                    self.subscribe(method, request, can_wait, releases)
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
        can_wait: bool,
        releases: &mut Vec<Arc<Recipient>>,
    ) -> Result<Local, ErrorObjectOwned> {
        let terms = self.pass.account().terms();
        let methods = &terms.rights.methods;
        let (mut topic, is_allowed, name) = match method {
            SubscriptionMethod::Subscribe(namespace) => {
                let topic = Topic::parse(namespace, request)?;
                let name = format!("{namespace}_{}", topic.name());
                // `eth_x_subscribe` subscribes as `eth_subscribe` does: who denies the one denies the other.
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
        // The node's answer decides about these.
        let of = match &topic {
            Topic::Passed(passed, _) => Some(NodeSubscription::Passed(passed.clone())),
            Topic::Pending(filter) => Some(NodeSubscription::Pending(filter.source())),
            _ => None,
        };
        if of.is_some() {
            if matches!(topic, Topic::Passed(..)) && !terms.rights.passed.match_any(&name) {
                return Err(not_offered(&topic));
            }
            if !can_wait {
                services.count_refusal("in_flight");
                return Err(error(LIMIT_EXCEEDED, TOO_MANY_CALLS));
            }
            // Those that the node refused are not counted.
            self.subscriptions.retain(|(own, _)| !own.recipient.is_over());
        }
        if let Topic::Chain(stream, start @ Start::Live) = &mut topic {
            *start = services.replays.start_of(stream);
        }
        let max = terms.rights.plan.max_subscriptions;
        if self.subscriptions.len() >= max {
            // Those that found no place to resume from are not counted.
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
        let settled = self.settled(&topic);
        let (subscription, finding) = match topic {
            // Before the first block nobody can say where "now" is, so what is answered then could have a gap; and where the
            // chain went back, others know blocks that this client is still to be told.
            Topic::Chain(stream, start) if start != Start::Live || !services.registry.is_at_its_tip() => {
                if !can_wait {
                    services.count_refusal("in_flight");
                    return Err(error(LIMIT_EXCEEDED, TOO_MANY_CALLS));
                }
                services.replays.subscribe(stream, start, &self.outbox)?
            }
            topic => match services.registry.subscribe(topic, &self.outbox) {
                Ok(subscription) => (subscription, None),
                Err(full) => {
                    services.count_refusal("passed");
                    return Err(error(LIMIT_EXCEEDED, full.to_string()));
                }
            },
        };
        let recipient = subscription.recipient.clone();
        if self.subscriptions.capacity() == 0 {
            // Growing begins with four, and most clients have one.
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
        Ok(match (finding, settled) {
            (Some(finding), _) => Local::Later(finding.outcome().boxed()),
            (None, Some(settled)) if can_wait => Local::Later(settled.map(|()| id).boxed()),
            (None, _) => id.into(),
        })
    }

    /// What the answer to a subscription waits for, so that there is no gap behind it.
    fn settled(&self, topic: &Topic) -> Option<BoxFuture<'static, ()>> {
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
        self.services.answer(&self.outbox, &response, releases);
    }

    // ---- the end

    /// Counts the end and lets go of the socket.
    fn leave(&mut self, over: Over) {
        let label = match (over, self.outbox.phase()) {
            (_, Phase::Closing(reason) | Phase::Flushing(reason)) => reason.label(),
            (Over::Abort(reason), Phase::Open) => reason.label(),
            (Over::Gone | Over::Closed, Phase::Open) => "gone",
        };
        self.services
            .metrics
            .closes
            .get_or_create(&ReasonLabel { reason: label })
            .inc();
        let shed = self.outbox.shed();
        if shed > 0 {
            self.services
                .metrics
                .pending_dropped
                .get_or_create(&ReasonLabel { reason: "slow_client" })
                .inc_by(shed);
        }
        let socket = self.outbox.socket();
        match over {
            // A peer that does not read would pin what the kernel holds for it: reset instead.
            Over::Abort(_) => drop(socket.options().set_linger(Some(Duration::ZERO))),
            Over::Gone | Over::Closed => {
                socket.shut();
                socket.discard();
            }
        }
    }
}

impl Services {
    /// Waits for the node in use to say what it thinks of a subscription that stands there for its clients.
    ///
    /// # Errors
    /// What the client is told instead; there is no subscription then.
    async fn grant(&self, of: &NodeSubscription, asked: Asked) -> Result<(), Outcome> {
        let mut answered = self.rpc.answered(of).await;
        if answered.is_ok() {
            self.registry.accept(asked);
            // Another node may have come into use since, and said no before anybody was there to be closed.
            answered = self.rpc.answered_now(of);
        }
        if answered.is_err() {
            self.registry.refuse(asked);
        }
        answered
    }

    /// Sends a response, or where it is too long for what the client has left unread, says that.
    fn answer(&self, outbox: &Arc<Outbox>, response: &Response, releases: Vec<Arc<Recipient>>) {
        let resumes = releases.iter().any(|recipient| recipient.is_resumed());
        let pieces = |response: &Response| outbox.text(&response.parts());
        if let Answered::NoRoom(releases) = outbox.answer(pieces(response), releases) {
            // An error is short: it is queued, or the connection ends.
            drop(outbox.answer(pieces(&response.clone().shortened()), releases));
        }
        if resumes {
            self.replays.begin(outbox);
        }
    }
}

/// Whether the answer to an item may have to wait: for the node, for its own subscription to pending transactions, or for
/// a block to resume from.
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
