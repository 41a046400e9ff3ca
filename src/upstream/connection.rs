//! Connection to one node over WebSocket or IPC: connects, serves, reconnects.
//!
//! Per connection: request the chain id and the genesis, subscribe to heads (or poll them if the node serves no
//! `newHeads`), fetch the newest block (so that blocks missed meanwhile show at once), then serve calls and the
//! subscriptions that clients need. One task reads and writes, and neither waits for the other: a writer task, or a
//! channel to it, cost each call a wake-up of another thread (`benches/forward`).

mod heads;
mod ownerless;
mod pending;
mod subscriptions;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use backon::BackoffBuilder as _;
use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use self::heads::HeadsState;
use self::ownerless::Ownerless;
use self::pending::Pending;
use super::call::{Call, CallReceiver, Reply, is_throttled, is_throttled_by_code};
use super::feeds::Feeds;
use super::identity::{Doubt, Genesis, NETWORK_ID, has_no_chain_id};
use super::link::{self, Inbound, LinkError, Outbound, Reader};
use super::load::{BackOff, LONGEST};
use super::message::{self, NodeMessage, Notice, Notification};
use super::pool::UpstreamShared;
use super::unmatched_events::UnmatchedEvents;
use super::{BestEffortEvent, CallError, HeadReport, NodeSubscription};
use crate::jsonrpc::{Outcome, TIMEOUT, error};
use crate::panics;

/// Most messages that wait to be written. Above that, calls stay in their [`CallReceiver`], and their callers wait.
const WRITE_QUEUE: usize = 128;

/// Most given-up subscribe requests whose late answers are still recognized.
const MAX_LATE: usize = 64;

/// Bytes received between two ticks above which they are not pongs alone: part of a message has arrived.
const CONTROL_BYTES: u64 = 4096;

/// Time without a fetch of the newest head after a rate limit.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// Interval of `eth_syncing` requests while a client subscribes to `syncing`.
const SYNCING_INTERVAL: Duration = Duration::from_secs(10);

/// Reason for the end of a connection.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the handshake timed out")]
    ConnectTimeout,
    #[error("nothing received for {0:?}, not even a pong")]
    Silent(Duration),
    #[error("no answer for {0:?} to a request that every node answers")]
    Unanswered(Duration),
    #[error("{0}")]
    Refused(String),
    #[error("its newHeads subscription is dead: the chain advances, but the node announces no heads")]
    HeadsStalled,
    #[error("the node ended its newHeads subscription twice in a row: {0}")]
    HeadsEnded(String),
    #[error("a bug in headwater ended the connection; the log has the panic")]
    Panicked,
    #[error("shutting down")]
    Shutdown,
}

/// Purpose of a subscription at the node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum FeedState {
    Heads,
    Beside(NodeSubscription),
}

impl FeedState {
    /// Checks if the node refuses the subscription because of a rate limit. The refusal of a kind that a client named
    /// may repeat the client's words, so only its code counts.
    fn is_throttled(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Beside(NodeSubscription::Passthrough(_)) => is_throttled_by_code(outcome),
            Self::Heads | Self::Beside(NodeSubscription::Pending(_)) => is_throttled(outcome),
        }
    }

    /// Returns the method that ends the subscription at the node.
    fn unsubscribe(&self) -> String {
        match self {
            Self::Heads | Self::Beside(NodeSubscription::Pending(_)) => "eth_unsubscribe".to_owned(),
            Self::Beside(NodeSubscription::Passthrough(passed)) => passed.unsubscribe(),
        }
    }
}

/// Purpose of a request, by which its answer is handled.
#[derive(Debug)]
enum Purpose {
    Caller(Reply),
    ChainId,
    /// The chain's id from a node that does not serve `eth_chainId`.
    NetworkId,
    Genesis,
    /// A published block, from a node whose genesis differs from the known one.
    PublishedSample(Doubt),
    Subscribe(FeedState),
    Latest,
    /// The newest head, after some time without an announcement: is there a newer one?
    Probe,
    /// The newest head, after an announcement that is not a header, or from a node that is polled.
    Rung,
    /// An announced block; the number is that of `Act::Ask`.
    Compare(u64),
    Syncing,
    /// The end of a subscription: `method` ends it, `subscription` is the node's id as JSON.
    Unsubscribe {
        method: String,
        subscription: String,
    },
    /// Like [`Self::Unsubscribe`], for a stream that belongs to no subscription of ours; `others` are methods to try
    /// if the node refuses.
    Disown {
        subscription: String,
        others: Vec<String>,
    },
    /// A whole pending transaction, with the time at which its hash was announced.
    Transaction(std::time::Instant),
    Ignored,
}

impl Purpose {
    /// Checks if the request is one that every usable node answers: a step of the handshake, or the newest head.
    /// Without an answer the connection is closed, or for `newHeads` the head is polled.
    fn is_vital(&self) -> bool {
        self.vital_question().is_some()
    }

    /// Returns method and parameters of a request for which [`Self::is_vital`] is `true`, else `None`.
    fn vital_question(&self) -> Option<(&'static str, Cow<'static, str>)> {
        let (method, params) = match self {
            Self::ChainId => ("eth_chainId", "".into()),
            Self::NetworkId => (NETWORK_ID, "".into()),
            Self::Genesis => ("eth_getBlockByNumber", r#"["0x0",false]"#.into()),
            Self::PublishedSample(doubt) => return doubt.question().map(|(method, params)| (method, params.into())),
            Self::Subscribe(FeedState::Heads) => ("eth_subscribe", r#"["newHeads"]"#.into()),
            Self::Latest | Self::Probe | Self::Rung => ("eth_getBlockByNumber", r#"["latest",false]"#.into()),
            _ => return None,
        };
        Some((method, params))
    }
}

/// Actor of one node; outlives its connections.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<UpstreamShared>,
    calls: CallReceiver,
    /// `true` if the previous connection was closed with [`End::HeadsStalled`].
    was_deaf: bool,
}

/// State of one connection.
///
/// Reporting a head waits for room in the channel to the ingest, and meanwhile the socket is neither read nor
/// written.
#[derive(Debug)]
struct Serving {
    shared: Arc<UpstreamShared>,
    /// Messages to write, see [`WRITE_QUEUE`].
    out: VecDeque<Outbound>,
    /// `true` while queued bytes are not with the kernel yet.
    unsent: bool,
    next_id: u64,
    waiting: HashMap<u64, Purpose>,
    /// Times of our own requests in `waiting` that are not vital: unanswered ones must not take the place of clients'
    /// calls for ever.
    own: BTreeMap<u64, Instant>,
    /// Given-up subscribe requests, each with the method that ends a subscription which the node grants late.
    late: BTreeMap<u64, String>,
    /// Subscriptions by the node's id. `None` while one is being ended: its further events are dropped, and not taken
    /// for those of a new subscription that may get the same id.
    feeds: Feeds<Option<FeedState>>,
    /// Subscriptions to end whose requests are not queued yet: method and the node's id.
    ending: VecDeque<(String, String)>,
    /// Back-off of the requests that end subscriptions, after a rate limit.
    end_back_off: BackOff,
    early: UnmatchedEvents,
    /// Time at which bytes were last received.
    last_received: Instant,
    /// Total of bytes received at the last tick; `whole` is `true` if a complete message has arrived since.
    bytes: u64,
    whole: bool,
    /// Time at which a head was last announced, polled or probed for.
    last_head: Instant,
    heads: HeadsState,
    /// Hash of the head last announced or fetched.
    head: Option<B256>,
    /// Probes in a row that found a new head which was not announced.
    unannounced: u32,
    /// Start of the wait for a vital answer, cleared by any such answer; `None` if none is awaited.
    asked: Option<Instant>,
    /// Handshake step refused by a rate limit, to be retried. There is one at most: each step follows from the one
    /// before.
    postponed: Option<Purpose>,
    /// Back-off of `postponed`.
    handshake: BackOff,
    /// Back-off of each subscription that was rate-limited, or ended by the node soon after its grant.
    back_offs: HashMap<FeedState, BackOff>,
    asked_syncing: Option<Instant>,
    /// Subscriptions other than heads, with their state. Those passed through are at most
    /// [`UpstreamSettings::max_passthrough`](super::UpstreamSettings), including those that no client needs any more.
    subscriptions: HashMap<NodeSubscription, SubscriptionState>,
    /// Times in a row that the node ended a subscription soon after its grant.
    ends: HashMap<NodeSubscription, u32>,
    /// Time at which the node last ended the subscription to heads.
    heads_ended: Option<Instant>,
    pending: Pending,
    ownerless: Ownerless,
    ready: bool,
    /// `true` if the connection ended with a message above the limit.
    too_long: bool,
}

/// State of a subscription at the node.
#[derive(Debug)]
enum SubscriptionState {
    Asked,
    Stands {
        subscription: String,
        since: Instant,
    },
    /// Refused, with this error object. Requested again when a client subscribes anew; one to pending transactions
    /// that the node will never serve, with the next connection only.
    Refused(Bytes),
    /// Rate-limited, with this error object; requested again after a back-off.
    PutOff(Bytes),
    /// Ended by the node; requested again, after a back-off if it ended soon after the grant.
    Ended,
}

impl Connection {
    pub(super) fn new(shared: Arc<UpstreamShared>, calls: CallReceiver) -> Self {
        Self {
            shared,
            calls,
            was_deaf: false,
        }
    }

    /// Runs until the pool is gone.
    pub(super) async fn run(mut self) {
        let settings = self.shared.settings.clone();
        let backoff = settings.backoff();
        let mut waits = backoff.build();
        loop {
            let began = Instant::now();
            let shared = self.shared.clone();
            let served = panics::caught("node", shared.active.metrics(), self.connect_and_serve()).await;
            let end = served.unwrap_or(End::Panicked);
            if matches!(end, End::Shutdown) {
                return;
            }
            self.was_deaf = matches!(end, End::HeadsStalled);
            self.shared.down(end.to_string());
            // The back-off starts anew after a connection that lasted, and grows while connections fail at once.
            if began.elapsed() > settings.reconnect_max {
                waits = backoff.build();
            }
            let wait = waits.next().unwrap_or(settings.reconnect_max);
            warn!("upstream {}: {end}; reconnecting in {wait:.1?}", self.shared.endpoint);
            if !self.calls.refuse_for(wait).await {
                return;
            }
        }
    }

    async fn connect_and_serve(&mut self) -> End {
        let settings = &self.shared.settings;
        let connecting = link::connect(&self.shared.endpoint, settings.max_message_bytes, &settings.trust);
        let (mut reader, mut writer) = match tokio::time::timeout(settings.connect_timeout, connecting).await {
            Ok(Ok(halves)) => halves,
            Ok(Err(error)) => return error.into(),
            Err(_) => return End::ConnectTimeout,
        };
        let mut serving = Serving::new(self.shared.clone());
        if self.was_deaf {
            serving.heads.follows_deaf();
        }
        serving.ask_vital(Purpose::ChainId);
        let mut wanted = self.shared.wanted.clone();
        let mut active = self.shared.active.watch_active();
        let mut tick = tokio::time::interval(settings.tick());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (room, unsent) = (serving.has_room(), serving.unsent);
            let outcome = tokio::select! {
                inbound = reader.next() => match inbound {
                    Ok(inbound) => serving.apply(inbound).await,
                    Err(error) => Err(error.into()),
                },
                call = self.calls.next(room), if serving.out.len() < WRITE_QUEUE => match call {
                    Some(call) => {
                        serving.call(call);
                        if serving.waiting.len() > 1 {
                            // Under load other callers are about to queue their calls.
                            tokio::task::yield_now().await;
                        }
                        // Calls queued behind this one leave in the same write.
                        while serving.has_room()
                            && serving.out.len() < WRITE_QUEUE
                            && let Some(call) = self.calls.try_next()
                        {
                            serving.call(call);
                        }
                        Ok(())
                    }
                    None => Err(End::Shutdown),
                },
                _ = tick.tick() => serving.tick(&reader),
                () = due(serving.heads_due()) => serving.heads_turn().await,
                Ok(()) = wanted.changed() => { serving.reconcile(); Ok(()) }
                Ok(()) = active.changed() => { serving.reconcile(); Ok(()) }
                written = writer.drain(&mut serving.out), if unsent => {
                    serving.unsent = false;
                    written.map_err(End::from)
                }
            };
            if let Err(end) = outcome {
                serving.too_long = matches!(&end, End::Link(error) if error.is_too_big());
                // Before callers get their error (on drop): a retry must not find the connection up.
                self.shared.down(end.to_string());
                return end;
            }
        }
    }
}

impl Serving {
    fn new(shared: Arc<UpstreamShared>) -> Self {
        let heads = HeadsState::new(&shared.settings);
        Self {
            shared,
            out: VecDeque::new(),
            unsent: false,
            next_id: 0,
            waiting: HashMap::new(),
            own: BTreeMap::new(),
            late: BTreeMap::new(),
            feeds: Feeds::default(),
            ending: VecDeque::new(),
            end_back_off: BackOff::default(),
            early: UnmatchedEvents::default(),
            last_received: Instant::now(),
            bytes: 0,
            whole: false,
            last_head: Instant::now(),
            heads,
            head: None,
            unannounced: 0,
            asked: None,
            postponed: None,
            handshake: BackOff::default(),
            back_offs: HashMap::new(),
            asked_syncing: None,
            subscriptions: HashMap::new(),
            ends: HashMap::new(),
            heads_ended: None,
            pending: Pending::default(),
            ownerless: Ownerless::default(),
            ready: false,
            too_long: false,
        }
    }

    fn has_room(&self) -> bool {
        self.waiting.len() < self.shared.settings.max_in_flight
    }

    fn register(&mut self, purpose: Purpose) -> u64 {
        self.next_id += 1;
        self.waiting.insert(self.next_id, purpose);
        self.next_id
    }

    fn call(&mut self, call: Call) {
        let id = self.register(Purpose::Caller(call.reply));
        self.put(Outbound::Message(message::request(id, &call.method, &call.params)));
    }

    /// Queues a message; returns `false` if the write queue is full.
    fn put(&mut self, message: Outbound) -> bool {
        let room = self.out.len() < WRITE_QUEUE;
        if room {
            self.out.push_back(message);
            self.unsent = true;
        }
        room
    }

    /// Queues a request of our own. Returns `false` if the write queue is full: the request is dropped, and callers
    /// repeat those that matter.
    fn ask(&mut self, method: &str, params: &str, purpose: Purpose) -> bool {
        if self.out.len() >= WRITE_QUEUE {
            return false;
        }
        let is_vital = purpose.is_vital();
        if matches!(purpose, Purpose::Subscribe(FeedState::Heads)) {
            // Without an answer to this request the head is polled.
            self.asked_for_heads();
        } else if is_vital {
            self.asked.get_or_insert_with(Instant::now);
        }
        if matches!(purpose, Purpose::Subscribe(_)) && !self.awaits_id() {
            // Early events so far belong to no subscription that is requested from now on.
            self.disown_early();
        }
        let id = self.register(purpose);
        if !is_vital {
            self.own.insert(id, Instant::now());
        }
        self.put(Outbound::Message(message::request(id, method, params)))
    }

    fn ask_vital(&mut self, purpose: Purpose) -> bool {
        let question = purpose.vital_question();
        question.is_some_and(|(method, params)| self.ask(method, &params, purpose))
    }

    async fn apply(&mut self, inbound: Inbound) -> Result<(), End> {
        self.last_received = Instant::now();
        self.shared.active.heard(self.shared.id);
        if let Inbound::Message(frame) = inbound {
            self.whole = true;
            for message in NodeMessage::parse(&frame) {
                match message {
                    NodeMessage::Answer(id, outcome) => {
                        if let Some(purpose) = self.waiting.remove(&id) {
                            self.own.remove(&id);
                            self.answered(purpose, outcome).await?;
                        } else if let Some(method) = self.late.remove(&id) {
                            self.answered_late(method, outcome);
                        }
                    }
                    NodeMessage::Notification(notification) => self.notified(notification).await?,
                }
            }
        }
        Ok(())
    }

    async fn answered(&mut self, purpose: Purpose, outcome: Outcome) -> Result<(), End> {
        if purpose.is_vital() {
            self.asked = None;
            if is_throttled(&outcome) {
                self.spare(purpose);
                return Ok(());
            }
        }
        match (purpose, outcome) {
            (Purpose::Caller(reply), outcome) => drop(reply.send(Ok(outcome))),
            (Purpose::ChainId, outcome) if has_no_chain_id(&outcome) => drop(self.ask_vital(Purpose::NetworkId)),
            (Purpose::ChainId | Purpose::NetworkId, Outcome::Result(json)) => {
                self.shared.check_chain_id(&text(&json)).map_err(End::Refused)?;
                self.ask_vital(Purpose::Genesis);
            }
            (Purpose::Compare(question), outcome) => self.compared(question, outcome).await,
            (Purpose::Rung, outcome) => self.rung(outcome).await,
            (Purpose::Genesis, outcome) => match self.shared.check_genesis(&outcome) {
                Genesis::Same => drop(self.ask_vital(Purpose::Subscribe(FeedState::Heads))),
                Genesis::Other(doubt) => self.doubted(doubt).await?,
            },
            (Purpose::PublishedSample(mut doubt), outcome) => {
                doubt.answered(&outcome);
                self.doubted(doubt).await?;
            }
            (Purpose::ChainId | Purpose::NetworkId, Outcome::Error(error)) => return Err(End::Refused(text(&error))),
            (Purpose::Subscribe(feed), Outcome::Result(json)) => self.subscribed(feed, text(&json)).await?,
            (Purpose::Subscribe(feed), outcome @ Outcome::Error(_)) if feed.is_throttled(&outcome) => {
                self.put_off(feed, outcome);
            }
            (Purpose::Subscribe(feed), Outcome::Error(error)) => self.refused(feed, error)?,
            (Purpose::Unsubscribe { method, subscription }, outcome) if is_throttled(&outcome) => {
                let now = Instant::now();
                self.shared.load.throttled(now, None);
                self.end_back_off.refused(now, None, LONGEST);
                if let Some(None) = self.feeds.get(&subscription) {
                    self.ending.push_back((method, subscription));
                }
            }
            // Also after a refusal: then the node does not know the subscription.
            (Purpose::Unsubscribe { subscription, .. }, _) => {
                self.ended(&subscription);
                // Its place may be free for another one now.
                self.reconcile();
            }
            (
                Purpose::Disown {
                    subscription, others, ..
                },
                outcome,
            ) => self.disowned(subscription, others, &outcome),
            (Purpose::Transaction(seen), outcome) => self.fetched(outcome, seen)?,
            (Purpose::Latest, Outcome::Result(json)) => {
                // Head first: the choice of the upstream depends on it.
                self.tell(HeadReport::Latest(json)).await;
                if !self.ready {
                    self.ready = true;
                    info!("upstream {}: connected", self.shared.endpoint);
                    self.shared.up();
                    self.reconcile();
                }
            }
            (Purpose::Probe, Outcome::Result(json)) => self.probed(json).await?,
            (Purpose::Latest, Outcome::Error(error)) => return Err(End::Refused(text(&error))),
            (Purpose::Syncing, Outcome::Result(json)) => self.shared.best_effort(BestEffortEvent::Syncing(json)),
            (Purpose::Syncing | Purpose::Probe | Purpose::Ignored, _) => {}
        }
        Ok(())
    }

    /// Continues the handshake of a node whose genesis differs from the known one, once the published blocks that it
    /// has, or lacks, show which chain it is on.
    async fn doubted(&mut self, doubt: Doubt) -> Result<(), End> {
        if doubt.question().is_some() {
            self.ask_vital(Purpose::PublishedSample(doubt));
        } else {
            self.shared.resolve(&doubt).await.map_err(End::Refused)?;
            self.ask_vital(Purpose::Subscribe(FeedState::Heads));
        }
        Ok(())
    }

    /// Handles a rate limit of a vital request: the node is alive, and a new connection would begin with more
    /// requests. A handshake step is retried after a back-off, and so are the fetch of the head and its subscription;
    /// probes recur anyway.
    fn spare(&mut self, purpose: Purpose) {
        let now = Instant::now();
        self.shared.load.throttled(now, None);
        if matches!(purpose, Purpose::Rung) {
            self.put_off_head(now + LEFT_ALONE);
            return;
        }
        if matches!(purpose, Purpose::Probe) {
            debug!(upstream = %self.shared.endpoint, "rate limited; the newest head is requested again later");
            return;
        }
        if matches!(purpose, Purpose::Subscribe(FeedState::Heads)) {
            self.heads_put_off();
            return;
        }
        let why = "rate limited by the node";
        warn!(
            "upstream {}: {why}; the handshake continues after a back-off",
            self.shared.endpoint
        );
        self.shared.status.lock().last_error = Some(why.into());
        self.postponed = Some(purpose);
        self.handshake.refused(now, None, LONGEST);
    }

    /// Gives up our own requests that are not vital and were not answered within `request_timeout`.
    fn expire(&mut self) -> Result<(), End> {
        let silence_timeout = self.shared.settings.request_timeout;
        while let Some((&id, since)) = self.own.first_key_value()
            && since.elapsed() >= silence_timeout
        {
            self.own.remove(&id);
            match self.waiting.remove(&id) {
                Some(Purpose::Subscribe(feed)) => {
                    if self.late.len() == MAX_LATE {
                        self.late.pop_first();
                    }
                    self.late.insert(id, feed.unsubscribe());
                    match error(TIMEOUT, CallError::TimedOut.to_string()).into() {
                        Outcome::Error(why) | Outcome::Result(why) => self.refused(feed, why)?,
                    }
                }
                Some(Purpose::Unsubscribe { subscription, .. }) => self.ended(&subscription),
                Some(Purpose::Transaction(_)) => self.unfetched(),
                _ => {}
            }
        }
        Ok(())
    }

    async fn notified(&mut self, notification: Notification) -> Result<(), End> {
        match self.feeds.get(&notification.subscription) {
            Some(Some(feed)) => self.deliver(feed.clone(), notification).await?,
            Some(None) => {}
            None if self.awaits_id() => {
                // The next head makes up for a dropped one; a dropped pending transaction is lost.
                let lost = self.early.push(notification);
                self.shared.count_dropped(lost);
            }
            // Its subscription was ended a while ago, or never was ours.
            None => self.disown(notification),
        }
        Ok(())
    }

    async fn deliver(&mut self, feed: FeedState, notification: Notification) -> Result<(), End> {
        let Notification {
            method,
            subscription,
            notice,
        } = notification;
        let json = match notice {
            Notice::Event(json) => json,
            Notice::Ended(why) => return self.ended_by_node(&subscription, feed, why),
        };
        let seen = std::time::Instant::now();
        match feed {
            FeedState::Heads => {
                self.last_head = Instant::now();
                self.unannounced = 0;
                self.announced(json).await;
            }
            FeedState::Beside(NodeSubscription::Pending(form)) => {
                self.announced_pending(&subscription, form, &json, seen)
            }
            FeedState::Beside(NodeSubscription::Passthrough(of)) => {
                self.shared
                    .best_effort(BestEffortEvent::Passthrough { of, method, json, seen });
            }
        }
        Ok(())
    }

    async fn tell(&mut self, sighting: HeadReport) {
        if let Some(hash) = self.shared.tell(sighting).await {
            self.head = Some(hash);
        }
    }

    /// Handles the head that a probe found. A socket that answers pings can still miss heads (a frozen node, a
    /// subscription that the node lost). The head is reported, so that nothing is missed meanwhile; the second one
    /// that was not announced ends the connection. If another connection would be no better, the head is polled:
    /// zetachain and cdk-erigon grant `newHeads` and announce nothing.
    async fn probed(&mut self, json: Bytes) -> Result<(), End> {
        let before = self.head;
        self.tell(HeadReport::Latest(json)).await;
        if self.head == before {
            return Ok(());
        }
        self.unannounced += 1;
        if self.heads.is_deaf_by_nature() {
            self.heads_unannounced();
            return Ok(());
        }
        if self.unannounced > 1 {
            Err(End::HeadsStalled)
        } else {
            Ok(())
        }
    }

    /// Compares the total of bytes received with the last tick's. Bytes of an incomplete message are a sign of life,
    /// and answers behind that message are not overdue.
    fn look_at_bytes(&mut self, received: u64) {
        let came = received.saturating_sub(self.bytes);
        if came > 0 {
            self.last_received = Instant::now();
        }
        if came > CONTROL_BYTES && !self.whole && self.asked.is_some() {
            self.asked = Some(Instant::now());
        }
        (self.bytes, self.whole) = (received, false);
    }

    fn tick(&mut self, reader: &Reader) -> Result<(), End> {
        let silence_timeout = self.shared.settings.silence_timeout;
        self.look_at_bytes(reader.received());
        let quiet = self.last_received.elapsed();
        if quiet >= silence_timeout {
            return Err(End::Silent(silence_timeout));
        }
        // A frozen node behind a live socket: pongs arrive, answers do not.
        if self.asked.is_some_and(|at| at.elapsed() >= silence_timeout / 2) {
            return Err(End::Unanswered(silence_timeout / 2));
        }
        self.expire()?;
        if self.handshake.until(Instant::now()).is_none()
            && let Some(purpose) = self.postponed.take()
        {
            self.ask_vital(purpose);
        }
        // A third of the limit without a head, half for the answer; the rest covers the tick interval.
        if self.ready && !self.heads.is_polled() && self.last_head.elapsed() >= silence_timeout / 3 {
            self.last_head = Instant::now();
            self.ask_vital(Purpose::Probe);
        }
        // Callers that gave up need no answer any more.
        self.waiting
            .retain(|_, purpose| !matches!(purpose, Purpose::Caller(reply) if reply.is_closed()));
        if quiet >= silence_timeout / 3 {
            if reader.has_pings() {
                self.put(Outbound::Ping);
            } else {
                self.ask("eth_chainId", "", Purpose::Ignored);
            }
        }
        if !self.awaits_id() {
            self.disown_early();
        }
        self.reconcile();
        Ok(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        debug!(upstream = %self.shared.endpoint, calls = self.waiting.len(), "calls lost with the connection");
        let callers = self
            .waiting
            .values()
            .filter(|purpose| matches!(purpose, Purpose::Caller(_)));
        // With several callers it is not known which answer was too long.
        let why = if self.too_long && callers.count() == 1 {
            CallError::TooLong
        } else {
            CallError::Lost
        };
        for (_, purpose) in self.waiting.drain() {
            if let Purpose::Caller(reply) = purpose {
                drop(reply.send(Err(why)));
            }
        }
    }
}

/// Waits until this time, or for ever if `None`.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn text(json: &Bytes) -> String {
    String::from_utf8_lossy(json).into_owned()
}
