//! One node over WebSocket or IPC: connects, serves, reconnects.
//!
//! Per connection: ask for the chain id and the genesis, subscribe to heads, fetch the newest block (so that what was missed meanwhile
//! shows at once), then serve calls and whatever else is wanted. Reading and writing are this one task's, and neither waits for
//! the other: a writer task, or a channel to it, cost each call a wake-up of another thread (`benches/forward`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use super::call::{Call, Inbox, is_throttled};
use super::early::Early;
use super::link::{self, Inbound, LinkError, Outbound, Reader};
use super::load::{BackOff, LONGEST};
use super::message::{self, NodeMessage};
use super::pool::Shared;
use super::{CallError, Gossip, Passed, Sighting, TransactionForm, Wanted};
use crate::jsonrpc::{INTERNAL_ERROR, Outcome, TIMEOUT, error};

/// Messages that wait until the node takes them. When there are so many calls wait in their queue, where callers see it.
const WRITE_QUEUE: usize = 128;

/// Questions for subscriptions that were given up whose answers are still known when they come.
const MAX_LATE: usize = 64;

/// Subscriptions that wait to be ended; while there are more, none to pending transactions is begun.
const MAX_ENDING: usize = 64;

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
    #[error("the node does not serve eth_subscribe(\"newHeads\"): {0}")]
    NoHeads(String),
    #[error("its newHeads subscription is dead: the chain goes on and nothing is announced")]
    Deaf,
    #[error("shutting down")]
    Shutdown,
}

/// What a subscription at the node feeds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Feed {
    Heads,
    Pending(TransactionForm),
    Passed(Passed),
}

impl Feed {
    /// The method by which it is ended at the node.
    fn unsubscribe(&self) -> String {
        match self {
            Self::Heads | Self::Pending(_) => "eth_unsubscribe".to_owned(),
            Self::Passed(passed) => passed.unsubscribe(),
        }
    }
}

/// What an answer is for.
#[derive(Debug)]
enum Purpose {
    Caller(oneshot::Sender<Result<Outcome, CallError>>),
    ChainId,
    Genesis,
    Subscribe(Feed),
    Latest,
    /// No head was announced for a while: is there a newer one?
    Probe,
    Syncing,
    /// The end of the subscription with this id of the node's, by this method.
    Unsubscribe {
        method: String,
        subscription: String,
    },
    Ignored,
}

impl Purpose {
    /// Whether a node that does not answer this is of no use.
    fn is_vital(&self) -> bool {
        self.vital_question().is_some()
    }

    /// What only a node that is of no use does not answer: method and parameters.
    fn vital_question(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::ChainId => Some(("eth_chainId", "")),
            Self::Genesis => Some(("eth_getBlockByNumber", r#"["0x0",false]"#)),
            Self::Subscribe(Feed::Heads) => Some(("eth_subscribe", r#"["newHeads"]"#)),
            Self::Latest | Self::Probe => Some(("eth_getBlockByNumber", r#"["latest",false]"#)),
            _ => None,
        }
    }
}

/// The actor.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    calls: Inbox,
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
    feeds: HashMap<String, Option<Feed>>,
    /// What is to be ended and was not written yet: method and id.
    ending: VecDeque<(String, String)>,
    /// When that is written, where the node was asked too much to end one.
    end_back_off: BackOff,
    early: Early,
    last_received: Instant,
    /// When a head was last announced or probed for.
    last_head: Instant,
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
    /// Subscriptions that are asked for or stand, pending ones only.
    pending: HashMap<TransactionForm, SubscriptionState>,
    /// The same of those that are passed through: [`UpstreamSettings::max_passed`](super::UpstreamSettings) at most, also
    /// of those that nobody wants any more.
    passed: HashMap<Passed, PassedState>,
    ready: bool,
    /// It ended by a message that was longer than is read.
    too_long: bool,
}

/// A subscription to pending transactions, as the node has it.
#[derive(Debug)]
enum SubscriptionState {
    Asked,
    Stands(String),
    /// The node does not offer it; asked again with the next connection.
    Refused,
}

/// A subscription that is passed through, as the node has it.
#[derive(Debug)]
enum PassedState {
    Asked,
    Stands(String),
    /// With this error; asked again when somebody wants it anew.
    Refused(Bytes),
    /// With this error, since the node is asked too much; asked again after a while.
    PutOff(Bytes),
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, calls: Inbox) -> Self {
        Self { shared, calls }
    }

    /// Runs until the pool is gone.
    pub(super) async fn run(mut self) {
        let settings = self.shared.settings.clone();
        let backoff = ExponentialBuilder::default()
            .with_min_delay(settings.reconnect_min)
            .with_max_delay(settings.reconnect_max)
            .with_jitter()
            .without_max_times();
        let mut waits = backoff.build();
        loop {
            let began = Instant::now();
            let end = self.connect_and_serve().await;
            if matches!(end, End::Shutdown) {
                return;
            }
            self.shared.down(end.to_string());
            // A connection that held is no reason for patience; one that was refused at once is.
            if began.elapsed() > settings.reconnect_max {
                waits = backoff.build();
            }
            let wait = waits.next().unwrap_or(settings.reconnect_max);
            warn!("upstream {}: {end}; trying again in {wait:.1?}", self.shared.endpoint);
            if !self.refuse_calls_for(wait).await {
                return;
            }
        }
    }

    /// While there is no connection calls fail at once. `false` when the pool is gone.
    async fn refuse_calls_for(&mut self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                call = self.calls.next(true) => match call {
                    Some(call) => drop(call.reply.send(Err(CallError::Unavailable))),
                    None => return false,
                },
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
        Self {
            shared,
            out: VecDeque::new(),
            unsent: false,
            next_id: 0,
            waiting: HashMap::new(),
            own: BTreeMap::new(),
            late: BTreeMap::new(),
            feeds: HashMap::new(),
            ending: VecDeque::new(),
            end_back_off: BackOff::default(),
            early: Early::default(),
            last_received: Instant::now(),
            last_head: Instant::now(),
            head: None,
            unannounced: 0,
            asked: None,
            postponed: None,
            handshake: BackOff::default(),
            back_offs: HashMap::new(),
            asked_syncing: None,
            pending: HashMap::new(),
            passed: HashMap::new(),
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
        if is_vital {
            self.asked.get_or_insert_with(Instant::now);
        }
        if matches!(purpose, Purpose::Subscribe(_)) && !self.awaits_id() {
            // What came for those before is for none of those that follow.
            self.early.clear();
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

    fn ask_vital(&mut self, purpose: Purpose) {
        if let Some((method, params)) = purpose.vital_question() {
            self.ask(method, params, purpose);
        }
    }

    async fn apply(&mut self, inbound: Inbound) -> Result<(), End> {
        self.last_received = Instant::now();
        self.shared.choice.heard(self.shared.id);
        if let Inbound::Message(frame) = inbound {
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
                    NodeMessage::Event(subscription, json) => self.event(subscription, json).await,
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
            (Purpose::ChainId, Outcome::Result(json)) => {
                self.shared.check_chain_id(&text(&json)).map_err(End::Refused)?;
                self.ask_vital(Purpose::Genesis);
            }
            (Purpose::Genesis, outcome) => {
                self.shared.check_genesis(outcome).await.map_err(End::Refused)?;
                self.ask_vital(Purpose::Subscribe(Feed::Heads));
            }
            (Purpose::ChainId, Outcome::Error(error)) => return Err(End::Refused(text(&error))),
            (Purpose::Subscribe(feed), Outcome::Result(json)) => self.subscribed(feed, text(&json)).await?,
            (Purpose::Subscribe(feed), outcome @ Outcome::Error(_)) if is_throttled(&outcome) => {
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

    /// The node is asked too much, which is no sign of death: what is not asked anyway by and by is asked again when the
    /// node was left alone for a while. A new connection would begin with more questions.
    fn spare(&mut self, purpose: Purpose) {
        let now = Instant::now();
        self.shared.load.throttled(now, None);
        if matches!(purpose, Purpose::Probe) {
            debug!(upstream = %self.shared.endpoint, "rate limited: whether there is a newer head is asked again later");
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

    async fn subscribed(&mut self, feed: Feed, subscription: String) -> Result<(), End> {
        if let Some(Some(_)) = self.feeds.get(&subscription) {
            // Whoever has it keeps it. To end the connection would end it for all, again and again.
            let why = error(INTERNAL_ERROR, "the node gave two subscriptions one id");
            return match why.into() {
                Outcome::Error(why) | Outcome::Result(why) => self.refused(feed, why),
            };
        }
        self.back_offs.remove(&feed);
        match feed {
            Feed::Heads => {
                self.ask_vital(Purpose::Latest);
            }
            Feed::Pending(form) => {
                self.pending
                    .insert(form, SubscriptionState::Stands(subscription.clone()));
                self.shared.settle(form, true);
            }
            Feed::Passed(ref passed) => {
                self.passed
                    .insert(passed.clone(), PassedState::Stands(subscription.clone()));
                self.shared.settle_passed(passed, Some(Ok(())));
            }
        }
        self.feeds.insert(subscription.clone(), Some(feed.clone()));
        for json in self.early.take(&subscription) {
            self.deliver(feed.clone(), json).await;
        }
        // It may not be wanted any more by now.
        self.reconcile();
        Ok(())
    }

    /// The node does not serve it.
    fn refused(&mut self, feed: Feed, error: Bytes) -> Result<(), End> {
        self.back_offs.remove(&feed);
        match feed {
            Feed::Heads => return Err(End::NoHeads(text(&error))),
            Feed::Pending(form) => {
                warn!(upstream = %self.shared.endpoint, ?form, "no pending transactions: {}", text(&error));
                self.pending.insert(form, SubscriptionState::Refused);
                self.shared.settle(form, true);
            }
            Feed::Passed(passed) => {
                debug!(upstream = %self.shared.endpoint, ?passed, "refused: {}", text(&error));
                self.shared.settle_passed(&passed, Some(Err(error.clone())));
                self.passed.insert(passed, PassedState::Refused(error));
                // Whoever asked may be gone.
                self.reconcile();
            }
        }
        Ok(())
    }

    /// The node is asked too much: the subscription is asked for again after a while. Whatever else it refuses meanwhile does
    /// not make that later.
    fn put_off(&mut self, feed: Feed, outcome: Outcome) {
        let now = Instant::now();
        self.shared.load.throttled(now, None);
        let back_off = self.back_offs.entry(feed.clone()).or_default();
        back_off.refused(now, None, LONGEST);
        match (feed, outcome) {
            (Feed::Pending(form), _) => drop(self.pending.remove(&form)),
            (Feed::Passed(passed), Outcome::Error(error)) => {
                self.shared.put_off(&passed, Some(error.clone()));
                self.passed.insert(passed, PassedState::PutOff(error));
                self.reconcile();
            }
            _ => {}
        }
    }

    fn is_put_off(&self, feed: &Feed) -> bool {
        let back_off = self.back_offs.get(feed);
        back_off.is_some_and(|back_off| back_off.until(Instant::now()).is_some())
    }

    /// Ends a subscription at the node, as soon as there is room to say so.
    fn unsubscribe(&mut self, method: String, subscription: String) {
        self.feeds.insert(subscription.clone(), None);
        self.ending.push_back((method, subscription));
        self.write_ending();
    }

    fn write_ending(&mut self) {
        if self.end_back_off.until(Instant::now()).is_some() {
            return;
        }
        while self.out.len() < WRITE_QUEUE
            && let Some((method, subscription)) = self.ending.pop_front()
        {
            let params = format!("[{subscription}]");
            self.ask(&method.clone(), &params, Purpose::Unsubscribe { method, subscription });
        }
    }

    /// The node tells nothing of it any more; its id may be another's by now.
    fn ended(&mut self, subscription: &str) {
        if let Some(None) = self.feeds.get(subscription) {
            self.feeds.remove(subscription);
        }
    }

    /// A subscription stands that was given up.
    fn answered_late(&mut self, method: String, outcome: Outcome) {
        if let Outcome::Result(json) = outcome
            && !self.feeds.contains_key(&text(&json))
        {
            self.unsubscribe(method, text(&json));
        }
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
                    match (feed, error(TIMEOUT, CallError::TimedOut.to_string()).into()) {
                        // It is asked for again.
                        (Feed::Pending(form), _) => drop(self.pending.remove(&form)),
                        (feed, Outcome::Error(why) | Outcome::Result(why)) => self.refused(feed, why)?,
                    }
                }
                Some(Purpose::Unsubscribe { subscription, .. }) => self.ended(&subscription),
                _ => {}
            }
        }
        Ok(())
    }

    async fn event(&mut self, subscription: String, json: Bytes) {
        match self.feeds.get(&subscription) {
            Some(Some(feed)) => self.deliver(feed.clone(), json).await,
            Some(None) => {}
            None if self.awaits_id() => {
                // A head among them is made up for by the next; a pending transaction is not.
                let lost = self.early.push(subscription, &json);
                self.shared.count_dropped(lost);
            }
            // Of one that was ended a while ago, or never was ours.
            None => {}
        }
    }

    /// Whether a subscription is asked for, so that its events may come before its id.
    fn awaits_id(&self) -> bool {
        let mut purposes = self.waiting.values();
        purposes.any(|purpose| matches!(purpose, Purpose::Subscribe(_)))
    }

    async fn deliver(&mut self, feed: Feed, json: Bytes) {
        match feed {
            Feed::Heads => {
                self.last_head = Instant::now();
                self.unannounced = 0;
                self.tell(Sighting::Announced(json)).await;
            }
            Feed::Pending(form) => {
                self.shared.gossip(Gossip::Pending {
                    form,
                    json,
                    seen: std::time::Instant::now(),
                });
            }
            Feed::Passed(of) => {
                let seen = std::time::Instant::now();
                self.shared.gossip(Gossip::Passed { of, json, seen });
            }
        }
    }

    async fn tell(&mut self, sighting: Sighting) {
        if let Some(hash) = self.shared.tell(sighting).await {
            self.head = Some(hash);
        }
    }

    /// A socket that answers pings can still be silent about heads (a frozen node, a subscription that the node lost).
    /// What a probe finds is passed on, so that nothing is missed meanwhile; found twice, the connection is given up.
    async fn probed(&mut self, json: Bytes) -> Result<(), End> {
        let before = self.head;
        self.tell(Sighting::Latest(json)).await;
        if self.head == before {
            return Ok(());
        }
        self.unannounced += 1;
        if self.unannounced > 1 { Err(End::Deaf) } else { Ok(()) }
    }

    /// Makes the node's subscriptions what is wanted now.
    fn reconcile(&mut self) {
        if !self.ready {
            return;
        }
        let wanted = self.shared.wants();
        self.write_ending();
        let forms = [
            (
                TransactionForm::Hash,
                wanted.pending_hashes,
                r#"["newPendingTransactions"]"#,
            ),
            (
                TransactionForm::Full,
                wanted.pending_full,
                r#"["newPendingTransactions",true]"#,
            ),
        ];
        for (form, wanted, params) in forms {
            match (self.pending.remove(&form), wanted) {
                (None, true) => {
                    let feed = Feed::Pending(form);
                    let may_ask = !self.is_put_off(&feed) && self.ending.len() < MAX_ENDING;
                    if may_ask && self.ask("eth_subscribe", params, Purpose::Subscribe(feed)) {
                        self.pending.insert(form, SubscriptionState::Asked);
                    }
                }
                (Some(SubscriptionState::Stands(subscription)), false) => {
                    self.shared.settle(form, false);
                    self.unsubscribe(Feed::Pending(form).unsubscribe(), subscription);
                }
                // Asked for: when the answer comes this is looked at again. Else it is known already, also where another
                // upstream was in use for a moment.
                (Some(state), _) => {
                    if wanted && !matches!(state, SubscriptionState::Asked) {
                        self.shared.settle(form, true);
                    }
                    self.pending.insert(form, state);
                }
                (None, false) => {}
            }
        }
        self.reconcile_passed(&wanted);
        if !wanted.syncing {
            self.asked_syncing = None;
        } else if self.asked_syncing.is_none_or(|at| at.elapsed() >= SYNCING_INTERVAL) {
            self.asked_syncing = Some(Instant::now());
            self.ask("eth_syncing", "", Purpose::Syncing);
        }
    }

    fn reconcile_passed(&mut self, wanted: &Wanted) {
        let unwanted: Vec<Passed> = self
            .passed
            .iter()
            .filter(|(passed, state)| !wanted.passed.contains(*passed) && !matches!(state, PassedState::Asked))
            .map(|(passed, _)| passed.clone())
            .collect();
        for passed in unwanted {
            self.back_offs.remove(&Feed::Passed(passed.clone()));
            if let Some(PassedState::Stands(subscription)) = self.passed.remove(&passed) {
                self.unsubscribe(passed.unsubscribe(), subscription);
            }
        }
        self.shared.forget_unwanted(wanted);
        for passed in &*wanted.passed {
            let feed = Feed::Passed(passed.clone());
            match self.passed.get(passed) {
                // When the answer comes this is looked at again.
                Some(PassedState::Asked) => {}
                // Also where another upstream was in use for a moment.
                Some(PassedState::Stands(_)) => self.shared.settle_passed(passed, Some(Ok(()))),
                Some(PassedState::Refused(error)) => self.shared.settle_passed(passed, Some(Err(error.clone()))),
                Some(PassedState::PutOff(error)) if self.is_put_off(&feed) => {
                    self.shared.put_off(passed, Some(error.clone()));
                }
                None if !self.has_room_to_pass() => {}
                Some(PassedState::PutOff(_)) | None => {
                    if self.ask(passed.method(), passed.params(), Purpose::Subscribe(feed)) {
                        self.passed.insert(passed.clone(), PassedState::Asked);
                        self.shared.put_off(passed, None);
                    }
                }
            }
        }
    }

    /// Neither those who ask and leave before the node answers, nor those that it does not end, come to more than may be
    /// wanted at the same time.
    fn has_room_to_pass(&self) -> bool {
        let max = self.shared.settings.max_passed;
        let ending = self.feeds.values().filter(|feed| feed.is_none()).count();
        self.passed.len() < max && ending < max
    }

    fn tick(&mut self, reader: &Reader) -> Result<(), End> {
        let patience = self.shared.settings.silence_timeout;
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
        if self.ready && self.last_head.elapsed() >= patience / 3 {
            self.last_head = Instant::now();
            self.ask_vital(Purpose::Probe);
        }
        // Callers that gave up need no answer any more.
        self.waiting
            .retain(|_, purpose| !matches!(purpose, Purpose::Caller(reply) if reply.is_closed()));
        if quiet >= patience / 3 {
            match reader {
                Reader::Ws(_) => drop(self.put(Outbound::Ping)),
                Reader::Ipc(..) => drop(self.ask("eth_chainId", "", Purpose::Ignored)),
            }
        }
        self.reconcile();
        Ok(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        debug!(upstream = %self.shared.endpoint, calls = self.waiting.len(), "calls lost with the connection");
        let why = if self.too_long {
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

fn text(json: &Bytes) -> String {
    String::from_utf8_lossy(json).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU64;

    use parking_lot::Mutex;
    use tokio::sync::{mpsc, watch};

    use super::super::choice::Choice;
    use super::super::identity::Identity;
    use super::super::load::Load;
    use super::super::{Endpoint, UpstreamId};
    use super::*;
    use crate::config::{Config, typed};
    use crate::telemetry::Metrics;

    /// A connection that stands, to the node in use, and what is wanted of it.
    fn serving(edit: impl FnOnce(&mut typed::Config)) -> (Serving, watch::Sender<Wanted>) {
        let mut typed = typed::Config {
            upstream: vec!["ws://127.0.0.1:1".to_owned().into()],
            ..typed::Config::default()
        };
        edit(&mut typed);
        let config = Config::check(&typed).expect("good settings");
        let endpoint: Endpoint = config.upstreams[0].endpoint.clone();
        let (wants, wanted) = watch::channel(Wanted::default());
        let metrics = Arc::new(Metrics::new().0);
        let shared = Shared {
            id: UpstreamId(0),
            endpoint: endpoint.clone(),
            status: Mutex::default(),
            choice: Arc::new(Choice::new(vec![endpoint], &config.node, metrics)),
            settings: config.node,
            identity: Arc::new(Identity::new(1, None)),
            newest: Mutex::default(),
            sightings: mpsc::channel(1).0,
            gossip: mpsc::channel(1).0,
            gossip_dropped: Arc::new(AtomicU64::new(0)),
            wanted,
            load: Load::default(),
        };
        shared.up();
        let mut serving = Serving::new(Arc::new(shared));
        serving.ready = true;
        (serving, wants)
    }

    fn passed(of: usize) -> Passed {
        let param = serde_json::value::to_raw_value(&of).expect("a number");
        Passed::new("eth_subscribe", &[&param]).expect("short")
    }

    fn want(wants: &watch::Sender<Wanted>, of: impl IntoIterator<Item = usize>) {
        wants.send_modify(|wanted| wanted.passed = Arc::new(of.into_iter().map(passed).collect::<BTreeSet<_>>()));
    }

    /// What is written next.
    fn written(serving: &mut Serving) -> Vec<String> {
        let messages = serving.out.drain(..).map(|message| match message {
            Outbound::Message(text) => text,
            Outbound::Ping => "ping".to_owned(),
        });
        messages.collect()
    }

    async fn says(serving: &mut Serving, text: &str) {
        let message = Inbound::Message(Bytes::copy_from_slice(text.as_bytes()));
        serving.apply(message).await.expect("the connection stands");
    }

    #[tokio::test]
    async fn a_subscription_is_ended_also_where_the_write_queue_is_full() {
        let (mut serving, wants) = serving(|_| {});
        want(&wants, [1]);
        wants.send_modify(|wanted| wanted.pending_hashes = true);
        serving.reconcile();
        assert_eq!(written(&mut serving).len(), 2);
        for (id, subscription) in [(1, "0xa"), (2, "0xb")] {
            let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"{subscription}"}}"#);
            says(&mut serving, &answer).await;
        }
        while serving.put(Outbound::Ping) {}
        wants.send_replace(Wanted::default());
        serving.reconcile();
        assert!(written(&mut serving).iter().all(|text| text == "ping"));
        serving.reconcile();
        let ends = written(&mut serving).concat();
        assert!(ends.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{ends}");
        assert!(ends.contains(r#""eth_unsubscribe","params":["0xb"]"#), "{ends}");
        serving.reconcile();
        assert!(written(&mut serving).is_empty(), "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_waits_for_its_own_refusals_alone() {
        let (mut serving, wants) = serving(|_| {});
        let hour = Duration::from_secs(3600);
        serving.shared.load.throttled(Instant::now(), Some(hour));
        want(&wants, [1]);
        wants.send_modify(|wanted| wanted.pending_hashes = true);
        serving.reconcile();
        assert_eq!(written(&mut serving).len(), 2);
        let limit = r#""error":{"code":-32005,"message":"rate limited"}"#;
        for id in [1, 2] {
            says(&mut serving, &format!(r#"{{"jsonrpc":"2.0","id":{id},{limit}}}"#)).await;
        }
        serving.reconcile();
        assert!(written(&mut serving).is_empty(), "not at once");
        tokio::time::advance(Duration::from_secs(1)).await;
        serving.reconcile();
        assert_eq!(written(&mut serving).len(), 2);
        for id in [3, 4] {
            says(&mut serving, &format!(r#"{{"jsonrpc":"2.0","id":{id},{limit}}}"#)).await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        serving.reconcile();
        assert!(written(&mut serving).is_empty(), "the second time it takes longer");
        tokio::time::advance(Duration::from_secs(1)).await;
        serving.reconcile();
        assert_eq!(written(&mut serving).len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_is_ended_also_where_the_node_is_asked_too_much() {
        let (mut serving, wants) = serving(|_| {});
        want(&wants, [1]);
        serving.reconcile();
        says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
        want(&wants, []);
        serving.reconcile();
        written(&mut serving);
        says(
            &mut serving,
            r#"{"jsonrpc":"2.0","id":2,"error":{"code":429,"message":"slow down"}}"#,
        )
        .await;
        serving.reconcile();
        assert!(written(&mut serving).is_empty(), "not at once");
        tokio::time::advance(Duration::from_secs(1)).await;
        serving.reconcile();
        let end = written(&mut serving).concat();
        assert!(end.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{end}");
    }

    #[tokio::test]
    async fn one_that_is_being_ended_takes_a_place_until_the_node_has_answered() {
        let (mut serving, wants) = serving(|typed| typed.subscriptions.max_passed = 1);
        want(&wants, [1]);
        serving.reconcile();
        says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
        written(&mut serving);
        want(&wants, [2]);
        serving.reconcile();
        let end = written(&mut serving);
        assert!(end.len() == 1 && end[0].contains("eth_unsubscribe"), "{end:?}");
        says(&mut serving, r#"{"jsonrpc":"2.0","id":2,"result":true}"#).await;
        let next = written(&mut serving);
        assert!(next.len() == 1 && next[0].contains(r#""params":[2]"#), "{next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_answered_takes_no_place_for_ever() {
        let (mut serving, wants) = serving(|typed| typed.subscriptions.max_passed = 2);
        let mut asked = 0;
        // Who asks and leaves comes to no more than the limit.
        for of in 0..10 {
            want(&wants, [of]);
            serving.reconcile();
            asked += written(&mut serving).len();
        }
        assert_eq!((asked, serving.waiting.len()), (2, 2));
        tokio::time::advance(serving.shared.settings.request_timeout).await;
        serving.expire().expect("it stands");
        let next = written(&mut serving).concat();
        assert!(next.contains(r#""params":[9]"#), "{next}");
        // What is granted after all is ended.
        says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
        let end = written(&mut serving).concat();
        assert!(end.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{end}");
        // And an end that is not answered takes no place for ever either.
        tokio::time::advance(serving.shared.settings.request_timeout).await;
        serving.expire().expect("it stands");
        assert!(serving.waiting.is_empty() && serving.feeds.is_empty() && serving.own.is_empty());
    }
}
