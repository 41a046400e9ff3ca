//! One node over WebSocket or IPC: connects, serves, reconnects.
//!
//! Per connection: ask for the chain id and the genesis, subscribe to heads, fetch the newest block (so that what was missed meanwhile
//! shows at once), then serve calls and whatever else is wanted. Reading and writing are this one task's, and neither waits for
//! the other: a writer task, or a channel to it, cost each call a wake-up of another thread (`benches/forward`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use super::call::{Call, Inbox, is_throttled};
use super::link::{self, Inbound, LinkError, Outbound, Reader};
use super::message::{self, NodeMessage};
use super::pool::Shared;
use super::{CallError, Gossip, Passed, Sighting, TransactionForm, Wanted};
use crate::jsonrpc::Outcome;

/// Messages that wait until the node takes them. When there are so many calls wait in their queue, where callers see it.
const WRITE_QUEUE: usize = 128;

/// Events of subscriptions whose id is not known yet: some nodes send the first event before the answer.
const MAX_EARLY: usize = 64;

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
#[derive(Clone, Debug, PartialEq, Eq)]
enum Feed {
    Heads,
    Pending(TransactionForm),
    Passed(Passed),
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
    feeds: HashMap<String, Feed>,
    early: VecDeque<(String, Bytes)>,
    last_received: Instant,
    /// When a head was last announced or probed for.
    last_head: Instant,
    /// Hash of the head that was announced, or seen by a probe, last.
    head: Option<B256>,
    /// Probes in a row that found a head which was never announced.
    unannounced: u32,
    /// Since when the oldest question that must be answered waits.
    asked: Option<Instant>,
    /// What is asked again when the node is no longer spared; each question of the handshake follows from the one before.
    postponed: Option<Purpose>,
    asked_syncing: Option<Instant>,
    /// Subscriptions that are asked for or stand, pending ones only.
    pending: HashMap<TransactionForm, SubscriptionState>,
    /// The same of those that are passed through; the node's error where it refused one.
    passed: HashMap<Passed, Passing>,
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

#[derive(Debug)]
enum Passing {
    Asked,
    Stands(String),
    /// Asked again when somebody wants it anew.
    Refused(Bytes),
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
            feeds: HashMap::new(),
            early: VecDeque::new(),
            last_received: Instant::now(),
            last_head: Instant::now(),
            head: None,
            unannounced: 0,
            asked: None,
            postponed: None,
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
        if purpose.is_vital() {
            self.asked.get_or_insert_with(Instant::now);
        }
        let id = self.register(purpose);
        let sent = self.put(Outbound::Message(message::request(id, method, params)));
        if !sent {
            self.waiting.remove(&id);
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
                            self.answered(purpose, outcome).await?;
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
            (Purpose::Subscribe(feed), Outcome::Result(json)) => self.subscribed(feed, text(&json)).await,
            (Purpose::Subscribe(Feed::Heads), Outcome::Error(error)) => return Err(End::NoHeads(text(&error))),
            (Purpose::Subscribe(Feed::Pending(form)), outcome) if is_throttled(&outcome) => {
                // It is asked for again when the node is no longer spared.
                self.shared.load.throttled(Instant::now(), None);
                self.pending.remove(&form);
            }
            (Purpose::Subscribe(Feed::Pending(form)), Outcome::Error(error)) => {
                warn!(upstream = %self.shared.endpoint, ?form, "no pending transactions: {}", text(&error));
                self.pending.insert(form, SubscriptionState::Refused);
                self.shared.settle(form, true);
            }
            (Purpose::Subscribe(Feed::Passed(passed)), Outcome::Error(error)) => {
                debug!(upstream = %self.shared.endpoint, ?passed, "refused: {}", text(&error));
                self.shared.settle_passed(&passed, Some(Err(error.clone())));
                self.passed.insert(passed, Passing::Refused(error));
                // Whoever asked may be gone.
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
        self.shared.load.throttled(Instant::now(), None);
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
    }

    async fn subscribed(&mut self, feed: Feed, subscription: String) {
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
                    .insert(passed.clone(), Passing::Stands(subscription.clone()));
                self.shared.settle_passed(passed, Some(Ok(())));
            }
        }
        self.feeds.insert(subscription.clone(), feed.clone());
        let (now, later): (VecDeque<_>, _) = self.early.drain(..).partition(|(id, _)| *id == subscription);
        self.early = later;
        for (_, json) in now {
            self.deliver(feed.clone(), json).await;
        }
        // It may not be wanted any more by now.
        self.reconcile();
    }

    async fn event(&mut self, subscription: String, json: Bytes) {
        match self.feeds.get(&subscription).cloned() {
            Some(feed) => self.deliver(feed, json).await,
            None => {
                if self.early.len() == MAX_EARLY {
                    // A head among them is made up for by the next; a pending transaction is not.
                    self.early.pop_front();
                    self.shared.count_dropped(1);
                }
                self.early.push_back((subscription, json));
            }
        }
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
        let spared = self.shared.load.is_backing_off(Instant::now());
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
                    if !spared && self.ask("eth_subscribe", params, Purpose::Subscribe(Feed::Pending(form))) {
                        self.pending.insert(form, SubscriptionState::Asked);
                    }
                }
                (Some(SubscriptionState::Stands(subscription)), false) => {
                    self.shared.settle(form, false);
                    self.feeds.remove(&subscription);
                    self.ask("eth_unsubscribe", &format!("[{subscription}]"), Purpose::Ignored);
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
            .filter(|(passed, standing)| !wanted.passed.contains(*passed) && !matches!(standing, Passing::Asked))
            .map(|(passed, _)| passed.clone())
            .collect();
        for passed in unwanted {
            self.shared.settle_passed(&passed, None);
            if let Some(Passing::Stands(subscription)) = self.passed.remove(&passed) {
                self.feeds.remove(&subscription);
                self.ask(&passed.unsubscribe(), &format!("[{subscription}]"), Purpose::Ignored);
            }
        }
        for passed in &*wanted.passed {
            match self.passed.get(passed) {
                None => {
                    let purpose = Purpose::Subscribe(Feed::Passed(passed.clone()));
                    if self.ask(passed.method(), passed.params(), purpose) {
                        self.passed.insert(passed.clone(), Passing::Asked);
                    }
                }
                // When the answer comes this is looked at again.
                Some(Passing::Asked) => {}
                // Also where another upstream was in use for a moment.
                Some(Passing::Stands(_)) => self.shared.settle_passed(passed, Some(Ok(()))),
                Some(Passing::Refused(error)) => self.shared.settle_passed(passed, Some(Err(error.clone()))),
            }
        }
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
        if !self.shared.load.is_backing_off(Instant::now())
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
