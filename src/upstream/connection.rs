//! Connection to one node over WebSocket or IPC: connects, serves, reconnects.
//!
//! Per connection: request the chain id and the genesis, subscribe to heads (or poll them if the node serves no
//! `newHeads`), fetch the newest block (so that blocks missed meanwhile show at once), then serve calls and the
//! subscriptions that clients need. One task reads and writes, and neither waits for the other: a writer task, or a
//! channel to it, cost each call a wake-up of another thread (`benches/forward`).

mod answers;
mod heads;
mod liveness;
mod pending;
mod purpose;
mod subscriptions;
mod unknown_subscriptions;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, warn};

use self::heads::HeadsState;
use self::pending::Pending;
use self::purpose::{FeedState, Purpose};
use self::unknown_subscriptions::UnknownSubscriptions;
use super::call::{Call, CallReceiver};
use super::feeds::Feeds;
use super::link::{self, Inbound, LinkError, Outbound};
use super::message::{self, NodeMessage, Notice, Notification};
use super::shared::UpstreamShared;
use super::unmatched_events::UnmatchedEvents;
use super::{BestEffortEvent, CallError, HeadReport, NodeSubscription};
use crate::backoff::{BackOff, Failure};
use crate::panics;

/// Most messages that wait to be written. Above that, calls stay in their [`CallReceiver`], and their callers wait.
const WRITE_QUEUE: usize = 128;

/// Interval of `eth_syncing` requests while a client subscribes to `syncing`.
const SYNCING_INTERVAL: Duration = Duration::from_secs(10);

/// Reason for the end of a connection.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    NotConnected(LinkError),
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Loss of a connection that had served.
    #[error(transparent)]
    Gone(LinkError),
    #[error("the handshake timed out")]
    ConnectTimeout,
    #[error("nothing received for {0:?}, not even a pong")]
    Silent(Duration),
    #[error("no answer for {0:?} to a request that every node answers")]
    Unanswered(Duration),
    #[error("{0}")]
    Refused(String),
    /// The error object of a gateway that reaches no node.
    #[error("{0}")]
    NotNow(String),
    #[error("its newHeads subscription is dead: the chain advances, but the node announces no heads")]
    HeadsStalled,
    #[error("the node ended its newHeads subscription twice in a row: {0}")]
    HeadsEnded(String),
    #[error("a bug in headwater ended the connection; the log has the panic")]
    Panicked,
    #[error("shutting down")]
    Shutdown,
}

impl End {
    fn failure(&self) -> Failure {
        match self {
            Self::NotConnected(error) => error.failure(),
            Self::ConnectTimeout | Self::Silent(_) | Self::Unanswered(_) => Failure::Unanswered,
            Self::Gone(_) => Failure::Gone,
            Self::NotNow(_) => Failure::Refused,
            Self::Link(_)
            | Self::Refused(_)
            | Self::HeadsStalled
            | Self::HeadsEnded(_)
            | Self::Panicked
            | Self::Shutdown => Failure::Other,
        }
    }
}

/// Actor of one node; outlives its connections.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<UpstreamShared>,
    calls: CallReceiver,
    /// `true` if the previous connection was closed with [`End::HeadsStalled`].
    was_stalled: bool,
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
    unknown_subscriptions: UnknownSubscriptions,
    ready: bool,
    /// `true` if the connection ended with a message above the limit.
    too_long: bool,
}

/// State of a subscription at the node.
#[derive(Debug)]
enum SubscriptionState {
    Requested,
    Granted {
        subscription: String,
        since: Instant,
    },
    /// Refused, with this error object. Requested again when a client subscribes anew; one to pending transactions
    /// that the node will never serve, with the next connection only.
    Refused(Bytes),
    /// Rate-limited, with this error object; requested again after a back-off.
    RateLimited(Bytes),
    /// Ended by the node; requested again, after a back-off if it ended soon after the grant.
    Ended,
}

impl Connection {
    pub(super) fn new(shared: Arc<UpstreamShared>, calls: CallReceiver) -> Self {
        Self {
            shared,
            calls,
            was_stalled: false,
        }
    }

    /// Runs until the pool is gone.
    pub(super) async fn run(mut self) {
        let settings = self.shared.settings.clone();
        let mut reconnection = settings.reconnection();
        loop {
            let began = Instant::now();
            let shared = self.shared.clone();
            let served = panics::caught("node", shared.active.metrics(), self.connect_and_serve()).await;
            let end = served.unwrap_or(End::Panicked);
            if matches!(end, End::Shutdown) {
                return;
            }
            self.was_stalled = matches!(end, End::HeadsStalled);
            self.shared.down(end.to_string());
            let wait = reconnection.wait(end.failure(), began.elapsed());
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
            Ok(Err(error)) => return End::NotConnected(error),
            Err(_) => return End::ConnectTimeout,
        };
        let mut serving = Serving::new(self.shared.clone());
        if self.was_stalled {
            serving.heads.follows_stalled();
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
                return match end {
                    End::Link(error) if serving.ready && !serving.too_long => End::Gone(error),
                    end => end,
                };
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
            unknown_subscriptions: UnknownSubscriptions::default(),
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
            self.end_all_unmatched();
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
        self.shared.note_activity();
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

    async fn notified(&mut self, notification: Notification) -> Result<(), End> {
        match self.feeds.get(&notification.subscription) {
            Some(Some(feed)) => self.deliver(feed.clone(), notification).await?,
            Some(None) => {}
            None if self.awaits_id() => {
                // The next head makes up for a dropped one; a dropped pending transaction is lost.
                let lost = self.early.push(notification);
                self.shared.count_dropped(lost);
            }
            // Its subscription was ended a while ago, or never known.
            None => self.end_unmatched(notification),
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
        let seen = tokio::time::Instant::now();
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

    async fn report(&mut self, sighting: HeadReport) {
        if let Some(hash) = self.shared.report(sighting).await {
            self.head = Some(hash);
        }
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
