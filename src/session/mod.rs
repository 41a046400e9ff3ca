//! One WebSocket client: a socket, a reader, a queue, and the subscriptions that live and die with it.
//!
//! One task, no timer and no buffer while idle. It waits in `select` and decides in `apply`; nothing in `apply` waits, so
//! a client that does not read cannot keep its own session from hearing that it is over.

mod clients;
mod limits;
mod reader;
mod writing;

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use serde_json::Value;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tracing::debug;

pub use clients::{Clients, LifeSigns};
pub use limits::{Identity, RequestQuota};
pub use reader::{Inbound, Reader};
pub use writing::{Done, Writing};

use crate::clock::Clock;
use crate::delivery::{CloseReason, Kind, Millis, News, Outbox, OutboxLimits, Recipient, SubscriptionId, frame};
use crate::jsonrpc::{
    self, INVALID_PARAMS, INVALID_REQUEST, Item, LIMIT_EXCEEDED, Message, Outcome, PARSE_ERROR, Request, Response,
    SERVER_ERROR, error,
};
use crate::rpc::{Planned, Rpc, subscription_method};
use crate::subscription::{Registry, Subscription, Topic};
use crate::telemetry::{KindLabel, Metrics, ReasonLabel};

/// Bounds of one session.
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// Longest message, in bytes.
    pub max_message_bytes: usize,
    /// Most items of a batch.
    pub max_batch: usize,
    /// Most subscriptions.
    pub max_subscriptions: usize,
    /// Most calls (a batch counts as one) that wait for the node.
    pub max_in_flight: u32,
    /// From the answer to `eth_subscribe` to the first notification (E5).
    pub holdoff: Duration,
    /// Bounds of the queue.
    pub outbox: OutboxLimits,
    /// `TCP_NOTSENT_LOWAT`, in bytes: what the kernel may hold back unsent, so that the backlog stays in our queue as
    /// references to shared frames. 0 leaves the kernel's own.
    pub notsent_lowat: u32,
}

/// What every session works with.
#[derive(Debug)]
pub struct Services {
    /// Subscriptions.
    pub registry: Arc<Registry>,
    /// Everything else.
    pub rpc: Arc<Rpc>,
    /// Connected clients.
    pub clients: Clients,
    /// How much each may ask.
    pub quota: RequestQuota,
    /// Bounds.
    pub settings: SessionSettings,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
    delivered: [Counter; 4],
}

impl Services {
    /// Puts them together.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        rpc: Arc<Rpc>,
        quota: RequestQuota,
        settings: SessionSettings,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        // Looked up once: the delivery path should not hash labels.
        let delivered = [Kind::Heads, Kind::Logs, Kind::Pending, Kind::Syncing].map(|kind| {
            metrics
                .deliveries
                .get_or_create_owned(&KindLabel { kind: kind.label() })
        });
        Self {
            registry,
            rpc,
            clients: Clients::new(clock),
            quota,
            settings,
            metrics,
            clock,
            delivered,
        }
    }

    fn delivered(&self, kind: Kind) -> &Counter {
        &self.delivered[match kind {
            Kind::Heads => 0,
            Kind::Logs => 1,
            Kind::Pending => 2,
            Kind::Syncing => 3,
        }]
    }
}

/// Bytes gathered for one write. A block for one client is seldom more; a pong waits for no more than this.
const GATHER_BYTES: usize = 256 << 10;

/// Writes in a row before others get their turn.
const MAX_WRITES: usize = 8;

/// Reads in a row before others get their turn.
const MAX_READS: usize = 16;

/// Bytes asked of the socket in one read.
const READ_BYTES: usize = 4 << 10;

/// Progress that resets the write deadline. A reader of a byte a second makes progress too, but not enough of it.
const PROGRESS_BYTES: usize = 16 << 10;

/// How far the connection is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// What is queued leaves first, then the close frame.
    Flushing(CloseReason),
    /// The close frame is written or on its way; what arrives is only looked through for its echo.
    Closing(CloseReason),
}

/// What the session waits for.
#[derive(Debug)]
enum Wake {
    News(News),
    Readable,
    Writable,
    Released,
}

/// The session is over.
#[derive(Clone, Copy, Debug)]
enum Over {
    Yes(&'static str),
    /// Whatever the kernel still holds for this peer is dropped with it.
    Abort(CloseReason),
}

struct Session {
    socket: TcpStream,
    identity: Identity,
    services: Arc<Services>,
    outbox: Arc<Outbox>,
    reader: Reader,
    writing: Writing,
    subscriptions: Vec<Subscription>,
    phase: Phase,
    echoed: bool,
    progress: usize,
    /// When the first held event may leave.
    held: Option<Pin<Box<Sleep>>>,
}

/// Serves a client until it is gone. `early` is what arrived behind the handshake.
pub async fn serve(socket: TcpStream, early: Bytes, peer: IpAddr, services: Arc<Services>) {
    let now = services.clock.now();
    let outbox = Outbox::new(services.settings.outbox, now);
    let number = services.clients.add(outbox.clone());
    services.metrics.clients.inc();
    services.metrics.connections.inc();
    let lowat = services.settings.notsent_lowat;
    if lowat > 0
        && let Err(why) = SockRef::from(&socket).set_tcp_notsent_lowat(lowat)
    {
        debug!("TCP_NOTSENT_LOWAT: {why}");
    }
    let mut reader = Reader::new(services.settings.max_message_bytes);
    reader.buffer().extend_from_slice(&early);
    let mut session = Session {
        socket,
        identity: Identity::from(peer),
        services: services.clone(),
        outbox,
        reader,
        writing: Writing::default(),
        subscriptions: Vec::new(),
        phase: Phase::Open,
        echoed: false,
        progress: 0,
        held: None,
    };
    let over = session.run(!early.is_empty()).await;
    session.leave(over);
    drop(session);
    services.clients.remove(number);
    services.metrics.clients.dec();
}

impl Session {
    async fn run(&mut self, early: bool) -> Over {
        let mut outcome = if early { self.take_messages() } else { Ok(()) };
        loop {
            if let Err(over) = outcome {
                return over;
            }
            // Neither the queue nor a socket that is always ready takes from tokio's budget by itself.
            tokio::task::consume_budget().await;
            let wake = self.select().await;
            outcome = match wake {
                Ok(wake) => self.apply(wake),
                Err(_) => Err(Over::Yes("gone")),
            };
        }
    }

    async fn select(&mut self) -> io::Result<Wake> {
        let blocked = !self.writing.is_empty();
        let (outbox, socket, held) = (&self.outbox, &self.socket, &mut self.held);
        tokio::select! {
            news = poll_fn(|cx| outbox.poll_news(cx, blocked)) => Ok(Wake::News(news)),
            readable = socket.readable() => readable.map(|()| Wake::Readable),
            writable = socket.writable(), if blocked => writable.map(|()| Wake::Writable),
            () = async { if let Some(sleep) = held { sleep.await } }, if held.is_some() => Ok(Wake::Released),
        }
    }

    fn apply(&mut self, wake: Wake) -> Result<(), Over> {
        match wake {
            Wake::News(News::Kill(reason)) => Err(Over::Abort(reason)),
            Wake::News(News::Close(reason)) => self.begin_close(reason),
            Wake::Readable => self.read(),
            Wake::Released => {
                self.held = None;
                self.write()
            }
            Wake::News(News::Queued) | Wake::Writable => self.write(),
        }
    }

    // ---- reading

    fn read(&mut self) -> Result<(), Over> {
        for _ in 0..MAX_READS {
            let buffer = self.reader.buffer();
            buffer.reserve(READ_BYTES);
            match self.socket.try_read_buf(buffer) {
                Ok(0) => return Err(Over::Yes("gone")),
                Ok(read) => {
                    self.services.metrics.bytes_in.inc_by(read as u64);
                    self.outbox.heard(self.services.clock.now());
                    self.take_messages()?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Over::Yes("gone")),
            }
        }
        self.reader.rest();
        if self.writing.is_empty() { self.write() } else { Ok(()) }
    }

    fn take_messages(&mut self) -> Result<(), Over> {
        if matches!(self.phase, Phase::Closing(reason) if !reason.listens()) {
            // After a violation nothing that follows can be read as frames.
            self.reader.buffer().clear();
            return Ok(());
        }
        loop {
            match self.reader.next_inbound() {
                Ok(None) => return Ok(()),
                Ok(Some(inbound)) => self.inbound(inbound)?,
                Err(reason) => {
                    self.reader.buffer().clear();
                    return self.begin_close(reason);
                }
            }
        }
    }

    fn inbound(&mut self, inbound: Inbound) -> Result<(), Over> {
        match (inbound, self.phase) {
            (Inbound::Close(_), Phase::Closing(_)) => {
                self.echoed = true;
                if self.writing.is_empty() {
                    Err(Over::Yes("closed"))
                } else {
                    Ok(())
                }
            }
            (Inbound::Close(code), _) => {
                self.echoed = true;
                self.begin_close(CloseReason::Goodbye(code))
            }
            (Inbound::Message(message), Phase::Open) => {
                self.message(&message);
                Ok(())
            }
            (Inbound::Ping(payload), Phase::Open | Phase::Flushing(_)) => {
                self.outbox.control(frame::control(frame::Opcode::Pong, &payload));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    // ---- requests

    fn message(&mut self, message: &[u8]) {
        match Message::parse(message) {
            // geth closes here; that gains nothing and ends ethers users for good (PROTOCOL J3, J4).
            Err(why) => self.answer(
                Response::new("null", error(PARSE_ERROR, why.to_string()).into()),
                Vec::new(),
            ),
            Ok(Message::Single(item)) => self.single(&item),
            Ok(Message::Batch(items)) => self.batch(&items),
        }
    }

    fn single(&mut self, item: &Item<'_>) {
        let mut releases = Vec::new();
        let planned = match self.services.quota.charge(self.identity, 1) {
            Err(why) => self.refuse(item, "requests", &why.into()),
            Ok(()) => self.plan(item, &mut releases),
        };
        if !planned.is_forwarded() {
            if let Planned::Done(id, outcome) = planned {
                self.answer(Response::new(&id, outcome), releases);
            }
            return;
        }
        let Some(place) = self.outbox.begin_call(self.services.settings.max_in_flight) else {
            let why = error(LIMIT_EXCEEDED, "limit exceeded: too many calls in flight").into();
            if let Planned::Done(id, outcome) = self.refuse(item, "in_flight", &why) {
                self.answer(Response::new(&id, outcome), Vec::new());
            }
            return;
        };
        let rpc = self.services.rpc.clone();
        tokio::spawn(async move {
            if let Some(response) = rpc.complete(planned).await {
                let pieces = frame::text(&response.head, &response.body, Response::TAIL);
                place.outbox().answer(pieces, Vec::new());
            }
        });
    }

    fn batch(&mut self, items: &[Item<'_>]) {
        if items.is_empty() {
            return self.answer(
                Response::new("null", error(INVALID_REQUEST, "empty batch").into()),
                Vec::new(),
            );
        }
        if items.len() > self.services.settings.max_batch {
            // As geth: an array of one, under the id of the first call (PROTOCOL B2).
            let first = items.iter().find_map(|item| {
                if let Item::Call(request) = item {
                    request.id
                } else {
                    None
                }
            });
            let response = Response::new(
                jsonrpc::id_text(first),
                error(INVALID_REQUEST, "batch too large").into(),
            );
            return self.answer_batch(&[response], Vec::new());
        }
        let mut releases = Vec::new();
        let planned: Vec<Planned> = match self.services.quota.charge(self.identity, items.len() as u32) {
            Err(why) => {
                let why = why.into();
                items.iter().map(|item| self.refuse(item, "requests", &why)).collect()
            }
            Ok(()) => items.iter().map(|item| self.plan(item, &mut releases)).collect(),
        };
        if !planned.iter().any(Planned::is_forwarded) {
            let done = planned.into_iter().filter_map(|one| match one {
                Planned::Done(id, outcome) => Some(Response::new(&id, outcome)),
                _ => None,
            });
            let responses: Vec<Response> = done.collect();
            return self.answer_batch(&responses, releases);
        }
        let Some(place) = self.outbox.begin_call(self.services.settings.max_in_flight) else {
            let why: Outcome = error(LIMIT_EXCEEDED, "limit exceeded: too many calls in flight").into();
            // What was subscribed in this very batch is taken back, for its answer says that it failed.
            self.forget_unanswered(&releases);
            let refused: Vec<Response> = items
                .iter()
                .filter_map(|item| match self.refuse(item, "in_flight", &why) {
                    Planned::Done(id, outcome) => Some(Response::new(&id, outcome)),
                    _ => None,
                })
                .collect();
            return self.answer_batch(&refused, Vec::new());
        };
        let rpc = self.services.rpc.clone();
        tokio::spawn(async move {
            let responses = rpc.complete_batch(planned).await;
            if let Some(array) = jsonrpc::batch(&responses) {
                place.outbox().answer(frame::text(b"", &array.into(), b""), releases);
            }
        });
    }

    fn plan(&mut self, item: &Item<'_>, releases: &mut Vec<Arc<Recipient>>) -> Planned {
        let notification = matches!(item, Item::Notification(_));
        Planned::new(item, &mut |request| match subscription_method(&request.method) {
            // Without an id there is no way to tell the subscription's: it is ignored, as in reth (PROTOCOL J7).
            Some((_, true)) if notification => Some(Outcome::TRUE),
            Some((namespace, true)) => Some(self.subscribe(namespace, request, releases)),
            Some((_, false)) => Some(self.unsubscribe(request)),
            None => None,
        })
    }

    fn refuse(&self, item: &Item<'_>, limit: &'static str, why: &Outcome) -> Planned {
        self.services
            .metrics
            .refused
            .get_or_create(&ReasonLabel { reason: limit })
            .inc();
        Planned::refused(item, why)
    }

    fn subscribe(&mut self, namespace: &str, request: &Request<'_>, releases: &mut Vec<Arc<Recipient>>) -> Outcome {
        let topic = match Topic::parse(namespace, request) {
            Ok(topic) => topic,
            Err(why) => return why.into(),
        };
        if self.subscriptions.len() >= self.services.settings.max_subscriptions {
            self.services
                .metrics
                .refused
                .get_or_create(&ReasonLabel {
                    reason: "subscriptions",
                })
                .inc();
            let max = self.services.settings.max_subscriptions;
            return error(
                LIMIT_EXCEEDED,
                format!("limit exceeded: {max} subscriptions on this connection"),
            )
            .into();
        }
        let subscription = self.services.registry.subscribe(topic, &self.outbox);
        let recipient = subscription.recipient.clone();
        self.subscriptions.push(subscription);
        let answer = format!("\"{}\"", recipient.id());
        releases.push(recipient);
        Outcome::Result(answer.into())
    }

    fn unsubscribe(&mut self, request: &Request<'_>) -> Outcome {
        let id = match unsubscribe_id(request) {
            Ok(id) => id,
            Err(why) => return why.into(),
        };
        let mine = self.subscriptions.iter().position(|own| Some(own.recipient.id()) == id);
        match mine.map(|at| self.subscriptions.swap_remove(at)) {
            Some(subscription) => {
                self.services.registry.unsubscribe(&subscription);
                Outcome::TRUE
            }
            None => error(SERVER_ERROR, "subscription not found").into(),
        }
    }

    fn forget_unanswered(&mut self, releases: &[Arc<Recipient>]) {
        for recipient in releases {
            let mine = self
                .subscriptions
                .iter()
                .position(|own| own.recipient.id() == recipient.id());
            if let Some(at) = mine {
                self.services.registry.unsubscribe(&self.subscriptions.swap_remove(at));
            }
        }
    }

    fn answer(&self, response: Response, releases: Vec<Arc<Recipient>>) {
        self.outbox
            .answer(frame::text(&response.head, &response.body, Response::TAIL), releases);
    }

    fn answer_batch(&self, responses: &[Response], releases: Vec<Arc<Recipient>>) {
        if let Some(array) = jsonrpc::batch(responses) {
            self.outbox.answer(frame::text(b"", &array.into(), b""), releases);
        }
    }

    // ---- writing

    fn write(&mut self) -> Result<(), Over> {
        for _ in 0..MAX_WRITES {
            if self.writing.is_empty() && !self.gather()? {
                return Ok(());
            }
            let now = self.services.clock.now();
            let (services, release_at) = (
                &self.services,
                now + self.services.settings.holdoff.as_millis() as Millis,
            );
            let socket = &self.socket;
            let mut latest: Option<Instant> = None;
            let mut released = false;
            let written = self.writing.write(
                |slices| socket.try_write_vectored(slices),
                |done| match done {
                    Done::Released(recipients) => {
                        released = true;
                        recipients.iter().for_each(|recipient| recipient.release(release_at));
                    }
                    Done::Delivered(batch) => {
                        services.delivered(batch.kind).inc_by(batch.events.len() as u64);
                        latest = Some(batch.seen);
                    }
                },
            );
            if let Some(seen) = latest {
                services.metrics.delivery_latency.observe(seen.elapsed().as_secs_f64());
            }
            if released && self.held.is_none() {
                // Events may wait behind the answer that just left; nobody else will wake us for them.
                self.hold_until(release_at);
            }
            match written {
                Ok(written) => {
                    self.services.metrics.bytes_out.inc_by(written as u64);
                    self.note_progress(written, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.outbox.blocked_since() == 0 {
                        self.outbox.set_blocked_since(now);
                    }
                    return Ok(());
                }
                Err(_) => return Err(Over::Yes("gone")),
            }
        }
        Ok(())
    }

    fn note_progress(&mut self, written: usize, now: Millis) {
        self.progress += written;
        if self.writing.is_empty() {
            self.progress = 0;
            self.outbox.set_blocked_since(0);
        } else if self.progress >= PROGRESS_BYTES {
            self.progress = 0;
            self.outbox.set_blocked_since(now);
        }
    }

    /// Takes the next chunks; `false` where there is nothing to write now.
    fn gather(&mut self) -> Result<bool, Over> {
        if matches!(self.phase, Phase::Closing(_)) {
            self.writing.rest();
            return if self.echoed {
                Err(Over::Yes("closed"))
            } else {
                Ok(false)
            };
        }
        let gathered = self
            .outbox
            .gather(self.services.clock.now(), GATHER_BYTES, self.writing.chunks());
        if let Some(at) = gathered.held_until {
            self.hold_until(at);
        }
        if !self.writing.is_empty() {
            return Ok(true);
        }
        match self.phase {
            Phase::Flushing(reason) if self.held.is_none() => {
                self.push_close(reason);
                Ok(true)
            }
            _ => {
                self.writing.rest();
                Ok(false)
            }
        }
    }

    fn hold_until(&mut self, at: Millis) {
        let until = self.services.clock.instant(at);
        self.held = Some(Box::pin(tokio::time::sleep_until(until)));
    }

    // ---- the end

    fn begin_close(&mut self, reason: CloseReason) -> Result<(), Over> {
        match self.phase {
            // A second reason changes nothing once a close frame is on its way.
            Phase::Closing(_) => return Ok(()),
            Phase::Flushing(_) if reason.flushes() => return self.write(),
            Phase::Open | Phase::Flushing(_) => {}
        }
        self.outbox.close(reason);
        self.outbox.set_closing_since(self.services.clock.now());
        if reason.flushes() && self.phase == Phase::Open {
            self.phase = Phase::Flushing(reason);
        } else {
            self.writing.cut();
            self.push_close(reason);
        }
        self.write()
    }

    fn push_close(&mut self, reason: CloseReason) {
        let close = match reason.code() {
            Some(code) => frame::close(code, reason.text()),
            None => frame::control(frame::Opcode::Close, b""),
        };
        self.writing.push(close);
        self.phase = Phase::Closing(reason);
    }

    /// Ends what lived with the connection.
    fn leave(&mut self, over: Over) {
        for subscription in self.subscriptions.drain(..) {
            self.services.registry.unsubscribe(&subscription);
        }
        let label = match (over, self.phase) {
            (Over::Abort(reason), Phase::Open) => reason.label(),
            (_, Phase::Closing(reason) | Phase::Flushing(reason)) => reason.label(),
            (Over::Yes(how), Phase::Open) => how,
        };
        self.services
            .metrics
            .closes
            .get_or_create(&ReasonLabel { reason: label })
            .inc();
        let socket = SockRef::from(&self.socket);
        match over {
            // A peer that does not read would pin what the kernel holds for it: reset instead.
            Over::Abort(_) => drop(socket.set_linger(Some(Duration::ZERO))),
            Over::Yes(_) => {
                drop(socket.shutdown(std::net::Shutdown::Write));
                // Unread bytes would turn the close into a reset, and the peer would lose the close frame.
                let mut sink = [0; 4096];
                for _ in 0..MAX_READS {
                    if !matches!(self.socket.try_read(&mut sink), Ok(read) if read > 0) {
                        break;
                    }
                }
            }
        }
    }
}

/// geth's grammar of `eth_unsubscribe` (PROTOCOL 1.7). An id that is none names no subscription.
fn unsubscribe_id(request: &Request<'_>) -> Result<Option<SubscriptionId>, jsonrpc::ErrorObjectOwned> {
    let args = request.args()?;
    if args.len() > 1 {
        return Err(error(INVALID_PARAMS, "too many arguments, want at most 1"));
    }
    let first = args
        .first()
        .ok_or_else(|| error(INVALID_PARAMS, "missing value for required argument 0"))?;
    let kind = match serde_json::from_str(first.get()) {
        Ok(Value::String(id)) => return Ok(SubscriptionId::parse(&id)),
        Ok(Value::Null) | Err(_) => return Ok(None),
        Ok(Value::Bool(_)) => "bool",
        Ok(Value::Number(_)) => "number",
        Ok(Value::Array(_)) => "array",
        Ok(Value::Object(_)) => "object",
    };
    Err(error(
        INVALID_PARAMS,
        format!("invalid argument 0: json: cannot unmarshal {kind} into Go value of type rpc.ID"),
    ))
}
