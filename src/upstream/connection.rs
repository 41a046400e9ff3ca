//! One node over WebSocket or IPC: connects, serves, reconnects.
//!
//! Per connection: ask for the chain id and the genesis, subscribe to heads (or poll them where the node serves no `newHeads`),
//! fetch the newest block (so that what was missed meanwhile shows at once), then serve calls and whatever else is wanted. Reading and writing are this one task's, and neither waits for
//! the other: a writer task, or a channel to it, cost each call a wake-up of another thread (`benches/forward`).

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
use super::call::{Call, Inbox, Reply, is_throttled, is_throttled_by_code};
use super::early::Early;
use super::feeds::Feeds;
use super::identity::{Doubt, Genesis, NETWORK_ID, has_no_chain_id};
use super::link::{self, Inbound, LinkError, Outbound, Reader};
use super::load::{BackOff, LONGEST};
use super::message::{self, NodeMessage, Notice, Notification};
use super::pool::Shared;
use super::{CallError, Gossip, NodeSubscription, Sighting};
use crate::jsonrpc::{Outcome, TIMEOUT, error};
use crate::panics;

/// Messages that wait until the node takes them. When there are so many calls wait in their queue, where callers see it.
const WRITE_QUEUE: usize = 128;

/// Questions for subscriptions that were given up whose answers are still known when they come.
const MAX_LATE: usize = 64;

/// More bytes than the pongs between two looks: part of a message.
const CONTROL_BYTES: u64 = 4096;

/// How long the newest head is not asked for where the node says that it is asked too much.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// How often a node is asked for its sync state while someone wants it.
const SYNCING_INTERVAL: Duration = Duration::from_secs(10);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("no answer to the handshake in time")]
    ConnectTimeout,
    #[error("nothing received for {0:?}, not even a pong")]
    Silent(Duration),
    #[error("no answer for {0:?} to a question that every node answers")]
    Unanswered(Duration),
    #[error("{0}")]
    Refused(String),
    #[error("its newHeads subscription is dead: the chain goes on and nothing is announced")]
    Deaf,
    #[error("the node ended its newHeads subscription twice in a row: {0}")]
    HeadsEnded(String),
    #[error("a bug of ours ended the connection; the log says where")]
    Panicked,
    #[error("shutting down")]
    Shutdown,
}

/// What a subscription at the node feeds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Feed {
    Heads,
    Beside(NodeSubscription),
}

impl Feed {
    /// Checks if the node refuses the subscription because of a rate limit. The refusal of a kind that a client named
    /// may repeat the client's words, so only its code counts.
    fn is_throttled(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Beside(NodeSubscription::Passed(_)) => is_throttled_by_code(outcome),
            Self::Heads | Self::Beside(NodeSubscription::Pending(_)) => is_throttled(outcome),
        }
    }

    /// The method by which it is ended at the node.
    fn unsubscribe(&self) -> String {
        match self {
            Self::Heads | Self::Beside(NodeSubscription::Pending(_)) => "eth_unsubscribe".to_owned(),
            Self::Beside(NodeSubscription::Passed(passed)) => passed.unsubscribe(),
        }
    }
}

/// What an answer is for.
#[derive(Debug)]
enum Purpose {
    Caller(Reply),
    ChainId,
    /// The chain's id where the node serves no `eth_chainId`.
    NetworkId,
    Genesis,
    /// A block that was published, where the node's genesis is another one than before.
    Published(Doubt),
    Subscribe(Feed),
    Latest,
    /// No head was announced for a while: is there a newer one?
    Probe,
    /// The newest head, since one was announced, or since the node announces none.
    Rung,
    /// A block that was announced; the number is the comparison's.
    Compare(u64),
    Syncing,
    /// The end of the subscription with this id of the node's, by this method.
    Unsubscribe {
        method: String,
        subscription: String,
    },
    /// As [`Self::Unsubscribe`], of a stream that nobody owns; where it is refused these other methods may end it.
    Disown {
        subscription: String,
        others: Vec<String>,
    },
    /// A whole pending transaction that was announced by its hash, and when.
    Transaction(std::time::Instant),
    Ignored,
}

impl Purpose {
    /// Whether a node that does not answer this is of no use.
    fn is_vital(&self) -> bool {
        self.vital_question().is_some()
    }

    /// What only a node that is of no use does not answer: method and parameters.
    fn vital_question(&self) -> Option<(&'static str, Cow<'static, str>)> {
        let (method, params) = match self {
            Self::ChainId => ("eth_chainId", "".into()),
            Self::NetworkId => (NETWORK_ID, "".into()),
            Self::Genesis => ("eth_getBlockByNumber", r#"["0x0",false]"#.into()),
            Self::Published(doubt) => return doubt.question().map(|(method, params)| (method, params.into())),
            Self::Subscribe(Feed::Heads) => ("eth_subscribe", r#"["newHeads"]"#.into()),
            Self::Latest | Self::Probe | Self::Rung => ("eth_getBlockByNumber", r#"["latest",false]"#.into()),
            _ => return None,
        };
        Some((method, params))
    }
}

/// The actor.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    calls: Inbox,
    /// The connection before was given up as deaf.
    was_deaf: bool,
}

/// What lives as long as one connection.
#[derive(Debug)]
struct Serving {
    shared: Arc<Shared>,
    /// See [`WRITE_QUEUE`].
    out: VecDeque<Outbound>,
    /// Not all of it is with the kernel.
    unsent: bool,
    next_id: u64,
    waiting: HashMap<u64, Purpose>,
    /// Questions of our own among them that are not vital, and since when they wait: what is left unanswered must not take
    /// the place of clients' calls for ever.
    own: BTreeMap<u64, Instant>,
    /// Questions for subscriptions that were given up, with the method that ends what they may still be answered with.
    late: BTreeMap<u64, String>,
    /// By the node's id; `None` where it is being ended: what is still told of it is for nobody, whoever gets its id next.
    feeds: Feeds<Option<Feed>>,
    /// What is to be ended and was not written yet: method and id.
    ending: VecDeque<(String, String)>,
    /// When that is written, where the node was asked too much to end one.
    end_back_off: BackOff,
    early: Early,
    /// Time at which bytes were last received.
    last_received: Instant,
    /// Bytes received until the last look, and whether a whole message came since.
    bytes: u64,
    whole: bool,
    /// When a head was last announced or probed for.
    last_head: Instant,
    heads: HeadsState,
    /// Hash of the head that was announced, or seen by a probe, last.
    head: Option<B256>,
    /// Probes in a row that found a head which was never announced.
    unannounced: u32,
    /// Since when the oldest question that must be answered waits.
    asked: Option<Instant>,
    /// The question of the handshake that was refused, since the node is asked too much; each follows from the one before.
    postponed: Option<Purpose>,
    /// When that is asked again.
    handshake: BackOff,
    /// When subscriptions are asked for again that were refused for the same reason.
    back_offs: HashMap<Feed, BackOff>,
    asked_syncing: Option<Instant>,
    /// Subscriptions beside the heads that are asked for or stand, or why not; of those that are passed through
    /// [`UpstreamSettings::max_passed`](super::UpstreamSettings) at most, also of those that nobody wants any more.
    subscriptions: HashMap<NodeSubscription, SubscriptionState>,
    /// Times in a row that the node ended one of them soon after it had granted it.
    ends: HashMap<NodeSubscription, u32>,
    /// When it last ended the one to heads.
    heads_ended: Option<Instant>,
    pending: Pending,
    ownerless: Ownerless,
    ready: bool,
    /// It ended by a message that was longer than is read.
    too_long: bool,
}

/// A subscription as the node has it.
#[derive(Debug)]
enum SubscriptionState {
    Asked,
    Stands {
        subscription: String,
        since: Instant,
    },
    /// With this error; asked again when somebody wants it anew, and one to pending transactions that the node does not
    /// know with the next connection.
    Refused(Bytes),
    /// With this error, since the node is asked too much; asked again after a while.
    PutOff(Bytes),
    /// By the node; asked again after a while.
    Ended,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, calls: Inbox) -> Self {
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
            let served = panics::caught("node", shared.choice.metrics(), self.connect_and_serve()).await;
            let end = served.unwrap_or(End::Panicked);
            if matches!(end, End::Shutdown) {
                return;
            }
            self.was_deaf = matches!(end, End::Deaf);
            self.shared.down(end.to_string());
            // A connection that held is no reason for patience; one that was refused at once is.
            if began.elapsed() > settings.reconnect_max {
                waits = backoff.build();
            }
            let wait = waits.next().unwrap_or(settings.reconnect_max);
            warn!("upstream {}: {end}; trying again in {wait:.1?}", self.shared.endpoint);
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
        let mut active = self.shared.choice.watch_active();
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
                            // Where many ask, others are about to.
                            tokio::task::yield_now().await;
                        }
                        // Those behind it leave in the same write.
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
                // Before those who wait are told: whoever asks again must not find it standing.
                self.shared.down(end.to_string());
                return end;
            }
        }
    }
}

impl Serving {
    fn new(shared: Arc<Shared>) -> Self {
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
            early: Early::default(),
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

    /// `false` where there is no room.
    fn put(&mut self, message: Outbound) -> bool {
        let room = self.out.len() < WRITE_QUEUE;
        if room {
            self.out.push_back(message);
            self.unsent = true;
        }
        room
    }

    /// A question of our own. A full write queue drops it; those that matter are asked again at the next tick.
    fn ask(&mut self, method: &str, params: &str, purpose: Purpose) -> bool {
        let is_vital = purpose.is_vital();
        if matches!(purpose, Purpose::Subscribe(Feed::Heads)) {
            // A node that does not answer this is polled.
            self.asked_for_heads();
        } else if is_vital {
            self.asked.get_or_insert_with(Instant::now);
        }
        if matches!(purpose, Purpose::Subscribe(_)) && !self.awaits_id() {
            // What came for those before is for none of those that follow.
            self.disown_early();
        }
        let id = self.register(purpose);
        let sent = self.put(Outbound::Message(message::request(id, method, params)));
        if !sent {
            self.waiting.remove(&id);
        } else if !is_vital {
            self.own.insert(id, Instant::now());
        }
        sent
    }

    fn ask_vital(&mut self, purpose: Purpose) -> bool {
        let question = purpose.vital_question();
        question.is_some_and(|(method, params)| self.ask(method, &params, purpose))
    }

    async fn apply(&mut self, inbound: Inbound) -> Result<(), End> {
        self.last_received = Instant::now();
        self.shared.choice.heard(self.shared.id);
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
                Genesis::Same => drop(self.ask_vital(Purpose::Subscribe(Feed::Heads))),
                Genesis::Other(doubt) => self.doubted(doubt).await?,
            },
            (Purpose::Published(mut doubt), outcome) => {
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
            // Also where it is refused: then the node does not know it.
            (Purpose::Unsubscribe { subscription, .. }, _) => {
                self.ended(&subscription);
                // It may have taken the place of another one.
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
                // Head first: who is chosen depends on it.
                self.tell(Sighting::Latest(json)).await;
                if !self.ready {
                    self.ready = true;
                    info!("upstream {}: connected", self.shared.endpoint);
                    self.shared.up();
                    self.reconcile();
                }
            }
            (Purpose::Probe, Outcome::Result(json)) => self.probed(json).await?,
            (Purpose::Latest, Outcome::Error(error)) => return Err(End::Refused(text(&error))),
            (Purpose::Syncing, Outcome::Result(json)) => self.shared.gossip(Gossip::Syncing(json)),
            (Purpose::Syncing | Purpose::Probe | Purpose::Ignored, _) => {}
        }
        Ok(())
    }

    /// The node's genesis is another one than before: on with the handshake once its own blocks have said which chain it is on.
    async fn doubted(&mut self, doubt: Doubt) -> Result<(), End> {
        if doubt.question().is_some() {
            self.ask_vital(Purpose::Published(doubt));
        } else {
            self.shared.resolve(&doubt).await.map_err(End::Refused)?;
            self.ask_vital(Purpose::Subscribe(Feed::Heads));
        }
        Ok(())
    }

    /// The node is asked too much, which is no sign of death: what is not asked anyway by and by is asked again when the
    /// node was left alone for a while. A new connection would begin with more questions.
    fn spare(&mut self, purpose: Purpose) {
        let now = Instant::now();
        self.shared.load.throttled(now, None);
        if matches!(purpose, Purpose::Rung) {
            self.put_off_head(now + LEFT_ALONE);
            return;
        }
        if matches!(purpose, Purpose::Probe) {
            debug!(upstream = %self.shared.endpoint, "rate limited: whether there is a newer head is asked again later");
            return;
        }
        if matches!(purpose, Purpose::Subscribe(Feed::Heads)) {
            self.heads_put_off();
            return;
        }
        let why = "rate limited: the node says that it is asked too much";
        warn!(
            "upstream {}: {why}; the handshake goes on in a while",
            self.shared.endpoint
        );
        self.shared.status.lock().last_error = Some(why.into());
        self.postponed = Some(purpose);
        self.handshake.refused(now, None, LONGEST);
    }

    /// Gives up what the node has left unanswered for as long as a call may take.
    fn expire(&mut self) -> Result<(), End> {
        let patience = self.shared.settings.request_timeout;
        while let Some((&id, since)) = self.own.first_key_value()
            && since.elapsed() >= patience
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
                // A head among them is made up for by the next; a pending transaction is not.
                let lost = self.early.push(notification);
                self.shared.count_dropped(lost);
            }
            // Of one that was ended a while ago, or never was ours.
            None => self.disown(notification),
        }
        Ok(())
    }

    async fn deliver(&mut self, feed: Feed, notification: Notification) -> Result<(), End> {
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
            Feed::Heads => {
                self.last_head = Instant::now();
                self.unannounced = 0;
                self.announced(json).await;
            }
            Feed::Beside(NodeSubscription::Pending(form)) => self.announced_pending(&subscription, form, &json, seen),
            Feed::Beside(NodeSubscription::Passed(of)) => {
                self.shared.gossip(Gossip::Passed { of, method, json, seen });
            }
        }
        Ok(())
    }

    async fn tell(&mut self, sighting: Sighting) {
        if let Some(hash) = self.shared.tell(sighting).await {
            self.head = Some(hash);
        }
    }

    /// Handles the head that a probe found. A socket that answers pings can still miss heads (a frozen node, a
    /// subscription that the node lost). The head is passed on, so that nothing is missed meanwhile; at the second one
    /// that was not announced the connection is given up. Where another connection would be no better the head is
    /// polled: zetachain and cdk-erigon grant `newHeads` and announce nothing.
    async fn probed(&mut self, json: Bytes) -> Result<(), End> {
        let before = self.head;
        self.tell(Sighting::Latest(json)).await;
        if self.head == before {
            return Ok(());
        }
        self.unannounced += 1;
        if self.heads.is_deaf_by_nature() {
            self.heads_unannounced();
            return Ok(());
        }
        if self.unannounced > 1 { Err(End::Deaf) } else { Ok(()) }
    }

    /// Bytes of a message that is not complete yet are signs of life, and the answers behind it are not overdue.
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
        let patience = self.shared.settings.silence_timeout;
        self.look_at_bytes(reader.received());
        let quiet = self.last_received.elapsed();
        if quiet >= patience {
            return Err(End::Silent(patience));
        }
        // A node that is frozen behind a socket that lives: pongs come, answers do not.
        if self.asked.is_some_and(|at| at.elapsed() >= patience / 2) {
            return Err(End::Unanswered(patience / 2));
        }
        self.expire()?;
        if self.handshake.until(Instant::now()).is_none()
            && let Some(purpose) = self.postponed.take()
        {
            self.ask_vital(purpose);
        }
        // A third to wait, half for the answer: what remains is for the ticks.
        if self.ready && !self.heads.is_polled() && self.last_head.elapsed() >= patience / 3 {
            self.last_head = Instant::now();
            self.ask_vital(Purpose::Probe);
        }
        // Callers that gave up need no answer any more.
        self.waiting
            .retain(|_, purpose| !matches!(purpose, Purpose::Caller(reply) if reply.is_closed()));
        if quiet >= patience / 3 {
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
        // Of several callers, whose answer was too long is not known.
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

/// Waits until then, or for ever.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn text(json: &Bytes) -> String {
    String::from_utf8_lossy(json).into_owned()
}
