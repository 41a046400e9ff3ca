//! All upstreams: shared state, the one in use, and calls to them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::active::ActiveUpstream;
use super::call::{CallReceiver, CallSender, exchange, throttled};
use super::call_lane::CallLane;
use super::connection::Connection;
use super::detour;
use super::identity::ChainIdentity;
use super::lanes::{Lane, Lanes};
use super::load::{Load, P95};
use super::poller::Poller;
use super::proof::prove;
use super::quarantine::Quarantine;
use super::shared::{UpstreamShared, UpstreamStatus};
use super::{
    Answers, BestEffortEvent, CallError, Endpoint, HeadReport, MinHead, Node, NodeSubscription, Share, UpstreamId,
    UpstreamSettings, Wanted,
};
use crate::backoff::Doubling;
use crate::jsonrpc::Outcome;
use crate::shares::{Budget, Owner};
use crate::telemetry::Metrics;

#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) node: Node,
    /// Calls over the stream's connection.
    pub(super) stream: CallSender,
    /// Calls over the second connection, if the node has two lanes.
    pub(super) calls: CallSender,
    pub(super) quarantine: Quarantine,
    /// Permits for connections of [`Self::overtake`].
    pub(super) detours: Semaphore,
    pub(super) shared: Arc<UpstreamShared>,
}

impl Upstream {
    /// Returns the connection that calls of this lane take now. Waits for `time_limit` at most while the second
    /// connection is being opened.
    ///
    /// # Errors
    /// Returns [`CallError::Unavailable`] where there is no connection, or where the second one was not opened in
    /// time.
    pub(super) async fn way(&self, lane: Lane, time_limit: Duration) -> Result<&CallSender, CallError> {
        if lane == Lane::Stream {
            return Ok(&self.stream);
        }
        let now = *self.shared.lanes.borrow();
        let lanes = if now == Lanes::Opening {
            // On the heap: the wait is rare, and not a part of each call's future.
            Box::pin(self.opened(time_limit)).await
        } else {
            now
        };
        match lanes {
            Lanes::Two => Ok(&self.calls),
            Lanes::One => Ok(&self.stream),
            Lanes::Down | Lanes::Opening => Err(CallError::Unavailable),
        }
    }

    async fn opened(&self, time_limit: Duration) -> Lanes {
        let mut lanes = self.shared.lanes.subscribe();
        let opened = tokio::time::timeout(time_limit, lanes.wait_for(|lanes| *lanes != Lanes::Opening)).await;
        opened.ok().and_then(Result::ok).map_or(Lanes::Down, |lanes| *lanes)
    }
}

/// All configured upstreams, by priority.
#[derive(Debug)]
pub struct Pool {
    pub(super) upstreams: Vec<Upstream>,
    pub(super) active: Arc<ActiveUpstream>,
    identity: Arc<ChainIdentity>,
    pub(super) request_timeout: Duration,
    pub(super) head_wait: Duration,
    pub(super) hedges: bool,
    /// Usual latency of calls by class (`Ask::class`); recorded only if calls are hedged.
    pub(super) usual: Mutex<HashMap<&'static str, P95>>,
    fetch_timeout: Duration,
    silence_timeout: Duration,
    best_effort_dropped: Arc<AtomicU64>,
    answers: Arc<Budget>,
    our_answers: Arc<Budget>,
    pub(super) metrics: Arc<Metrics>,
    /// Task that checks the upstreams' time limits.
    looking: Mutex<Option<JoinHandle<()>>>,
}

/// Channels from the pool to the chain and to subscriptions, and back.
#[derive(Debug)]
pub struct Channels {
    /// Reports about the chain. Their receiver must never wait for a call, or the two would deadlock.
    pub sightings: mpsc::Sender<(UpstreamId, HeadReport)>,
    /// Best-effort events.
    pub best_effort: mpsc::Sender<BestEffortEvent>,
    /// Subscriptions that clients have.
    pub wanted: watch::Receiver<Wanted>,
}

/// Cordon of the only upstream that could take calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no other upstream that takes calls is connected")]
pub struct LastUpstream;

/// Shortest time limit of our own call before it is retried at another upstream.
const MIN_FETCH_TIMEOUT: Duration = Duration::from_millis(250);

impl Pool {
    /// Starts the actors of each node. They run until the pool's last handle is dropped.
    #[must_use]
    pub fn start(nodes: &[Node], settings: &UpstreamSettings, channels: &Channels, metrics: Arc<Metrics>) -> Arc<Self> {
        let endpoints = nodes.iter().map(|node| node.endpoint.clone()).collect();
        let active = Arc::new(ActiveUpstream::new(endpoints, settings, metrics.clone()));
        let identity = Arc::new(ChainIdentity::new(nodes.len(), settings.chain_id));
        let best_effort_dropped = Arc::new(AtomicU64::new(0));
        let answers = Budget::new("too many bytes of answers at once", settings.max_answer_bytes);
        let our_answers = Budget::new("answers to our own questions", settings.max_answer_bytes);
        let upstreams = nodes
            .iter()
            .enumerate()
            .map(|(i, node)| {
                let endpoint = &node.endpoint;
                let shared = Arc::new(UpstreamShared {
                    id: UpstreamId(i),
                    endpoint: endpoint.clone(),
                    settings: settings.clone(),
                    status: Mutex::default(),
                    active: active.clone(),
                    identity: identity.clone(),
                    newest: Mutex::default(),
                    sightings: channels.sightings.clone(),
                    best_effort: channels.best_effort.clone(),
                    best_effort_dropped: best_effort_dropped.clone(),
                    wanted: channels.wanted.clone(),
                    load: Load::default(),
                    stream: watch::Sender::default(),
                    lanes: watch::Sender::new(Lanes::One),
                    call_bytes: Mutex::default(),
                    answers: answers.clone(),
                    our_answers: our_answers.clone(),
                });
                let (stream, call_receiver) = CallReceiver::new();
                let mut calls = stream.clone();
                match endpoint {
                    Endpoint::Http(url) => {
                        tokio::spawn(Poller::new(shared.clone(), url.clone(), call_receiver).run());
                    }
                    _ => {
                        tokio::spawn(Connection::new(shared.clone(), call_receiver).run());
                        if settings.lanes > 1 {
                            let call_receiver;
                            (calls, call_receiver) = CallReceiver::new();
                            shared.lanes.send_replace(Lanes::Down);
                            tokio::spawn(CallLane::new(shared.clone(), call_receiver).run());
                        }
                    }
                }
                Upstream {
                    node: node.clone(),
                    stream,
                    calls,
                    quarantine: Quarantine::default(),
                    detours: Semaphore::new(detour::PLACES),
                    shared,
                }
            })
            .collect();
        let pool = Arc::new(Self {
            upstreams,
            active,
            identity,
            request_timeout: settings.request_timeout,
            head_wait: settings.head_wait,
            hedges: settings.hedge,
            usual: Mutex::default(),
            silence_timeout: settings.silence_timeout,
            fetch_timeout: (settings.silence_timeout / 4).max(MIN_FETCH_TIMEOUT),
            best_effort_dropped,
            answers,
            our_answers,
            metrics,
            looking: Mutex::default(),
        });
        let looking = tokio::spawn(look(Arc::downgrade(&pool), settings.tick()));
        *pool.looking.lock() = Some(looking);
        pool
    }

    /// Waits for the end of the task that watches the upstreams, which ends early only by a panic.
    pub async fn watched(self: Arc<Self>) {
        let looking = self.looking.lock().take();
        if let Some(looking) = looking {
            drop(looking.await);
        }
    }

    /// Returns the upstream in use.
    #[must_use]
    pub fn active(&self) -> Option<UpstreamId> {
        self.active.active()
    }

    /// Returns a receiver of the upstream in use: it signals a change, and the return of the same upstream after it
    /// was lost.
    #[must_use]
    pub fn watch_active(&self) -> watch::Receiver<Option<UpstreamId>> {
        self.active.watch_active()
    }

    /// Checks if this upstream alone vouches for its height.
    #[must_use]
    pub fn is_doubted(&self, id: UpstreamId) -> bool {
        self.active.is_doubted(id)
    }

    /// Checks if a block on top of the newest one may be published on the word of this upstream, although another one
    /// is in use.
    #[must_use]
    pub fn may_lead(&self, id: UpstreamId, block: B256) -> bool {
        self.active.may_lead(id, block)
    }

    /// Records that this block is to be published on the word of this upstream alone.
    pub fn leads(&self, id: UpstreamId, number: u64, hash: B256) {
        self.active.leads(id, number, hash);
    }

    /// Returns the newest head that this upstream reported.
    #[must_use]
    pub fn newest(&self, id: UpstreamId) -> Option<HeadReport> {
        self.upstreams[id.0].shared.newest.lock().clone()
    }

    /// Waits for the answer of the upstream in use to a subscription: accepted, or refused with the node's error
    /// object.
    ///
    /// A rate limit of the node counts as a refusal, while the actor retries for the clients that have the
    /// subscription already. Only a subscription to pending transactions is granted then, and also while no upstream
    /// is in use: its clients are closed where the node refuses it later.
    ///
    /// # Errors
    /// Returns [`CallError::Unavailable`] where no upstream comes into use in time, [`CallError::TimedOut`] where the
    /// upstream in use does not answer in time.
    pub async fn answered(&self, of: &NodeSubscription) -> Result<Result<(), Bytes>, CallError> {
        let mut active = self.active.watch_active();
        let is_pending = matches!(of, NodeSubscription::Pending(_));
        if !is_pending {
            let comes = active.wait_for(Option::is_some);
            if !matches!(tokio::time::timeout(self.head_wait, comes).await, Ok(Ok(_))) {
                return Err(CallError::Unavailable);
            }
        }
        let mut answers = self.active.answers().subscribe();
        let mut put_off = self.active.put_off().subscribe();
        let answered = async {
            tokio::select! {
                biased;
                all = answers.wait_for(|all| all.contains_key(of)) => all.ok()?.get(of).cloned(),
                all = put_off.wait_for(|all| all.contains_key(of)) => {
                    let error = all.ok()?.get(of).cloned();
                    error.map(|error| if is_pending { Ok(()) } else { Err(error) })
                }
                _ = active.wait_for(Option::is_none), if is_pending => Some(Ok(())),
            }
        };
        match tokio::time::timeout(self.request_timeout, answered).await {
            Ok(answer) => answer.ok_or(CallError::Lost),
            Err(_) => Err(CallError::TimedOut),
        }
    }

    /// Returns a receiver of the answers of the upstream in use to subscriptions.
    #[must_use]
    pub fn watch_answers(&self) -> watch::Receiver<Answers> {
        self.active.answers().subscribe()
    }

    /// Sends a call of our own, which waits behind no client's. A call about `block` goes first to an upstream that
    /// reported the block, and with each further `attempt` to the next one; where there are several, the time limit
    /// is short at first.
    ///
    /// # Errors
    /// Returns a [`CallError`] like [`Self::call`].
    pub async fn call_ours(
        &self,
        method: &str,
        params: &str,
        block: Option<B256>,
        attempt: u32,
    ) -> Result<Outcome, CallError> {
        let (id, among) = self.active.for_us(block, attempt).ok_or(CallError::Unavailable)?;
        let time_limit = if among > 1 {
            // Doubled with each round: where all upstreams are slow, the wait must become long enough for one of
            // them.
            Doubling::new(self.fetch_timeout, self.request_timeout).nth(attempt / among)
        } else {
            self.request_timeout
        };
        self.ask(id, method, params, time_limit).await
    }

    /// Returns the connected upstreams in the order in which they are asked about a block: those that lag or are
    /// forked last, among the others those that reported the block first.
    #[must_use]
    pub fn by_preference(&self, block: B256) -> Vec<UpstreamId> {
        self.active.by_preference(block)
    }

    /// Checks if the upstream's connection for calls is open: for a while after a connection none is.
    #[must_use]
    pub fn is_open(&self, id: UpstreamId) -> bool {
        *self.upstreams[id.0].shared.lanes.borrow() != Lanes::Opening
    }

    /// Waits until the connection for calls of one of these upstreams is open, or was given up.
    pub async fn opened(&self, ids: &[UpstreamId]) {
        let opened = ids.iter().map(|id| {
            let mut lanes = self.upstreams[id.0].shared.lanes.subscribe();
            Box::pin(async move { drop(lanes.wait_for(|lanes| *lanes != Lanes::Opening).await) })
        });
        futures_util::future::select_all(opened).await;
    }

    /// Sends a call of our own to one upstream, like [`Self::call_ours`], with `time_limit` as the time limit.
    ///
    /// # Errors
    /// Returns a [`CallError`] like [`Self::call`].
    pub async fn ask(
        &self,
        id: UpstreamId,
        method: &str,
        params: &str,
        time_limit: Duration,
    ) -> Result<Outcome, CallError> {
        let upstream = &self.upstreams[id.0];
        let lane = Lane::of(method, params);
        let way = upstream.way(lane, time_limit).await?;
        let asking = exchange(
            &way.ours,
            method.to_owned().into(),
            params.into(),
            Owner::OURS,
            None,
            time_limit,
        );
        let answer = tokio::select! {
            biased;
            answer = asking => answer,
            outcome = upstream.overtake(method, params), if lane == Lane::Calls => Ok(outcome),
        };
        if let Some(after) = throttled(&answer) {
            upstream.shared.load.throttled(Instant::now(), after);
        }
        answer
    }

    /// Returns the upstream's address, without secrets.
    #[must_use]
    pub fn address(&self, id: UpstreamId) -> String {
        self.upstreams[id.0].shared.endpoint.to_string()
    }

    /// Returns the number of upstreams; an [`UpstreamId`] counts from 0.
    #[must_use]
    pub fn count(&self) -> usize {
        self.upstreams.len()
    }

    /// Returns the number of connections made to the upstream so far.
    #[must_use]
    pub fn connects(&self, id: UpstreamId) -> u64 {
        self.upstreams[id.0].shared.status.lock().connects
    }

    /// Checks if an upstream is an HTTP node, where a lost call takes no other call with it.
    #[must_use]
    pub fn is_http(&self, id: UpstreamId) -> bool {
        matches!(self.upstreams[id.0].shared.endpoint, Endpoint::Http(_))
    }

    /// Returns `node.silence_timeout`, from which time limits of our own calls derive.
    #[must_use]
    pub fn silence_timeout(&self) -> Duration {
        self.silence_timeout
    }

    /// Returns the metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the chain's id as JSON, once a node reported it or where it is configured.
    #[must_use]
    pub fn chain_id(&self) -> Option<&str> {
        self.identity.chain_id()
    }

    /// Returns each upstream's address (without secrets) and state, by priority.
    #[must_use]
    pub fn status(&self) -> Vec<(String, UpstreamStatus)> {
        let active = self.active();
        let one = |Upstream { shared, .. }: &Upstream| {
            let (in_flight, latency) = shared.load.figures();
            let status = UpstreamStatus {
                active: active == Some(shared.id),
                cordoned: self.active.is_cordoned(shared.id),
                lag: self.active.lag(shared.id),
                lanes: (!matches!(shared.endpoint, Endpoint::Http(_))).then(|| *shared.lanes.borrow()),
                in_flight,
                latency,
                ..shared.status.lock().clone()
            };
            (shared.endpoint.to_string(), status)
        };
        self.upstreams.iter().map(one).collect()
    }

    /// Keeps an upstream out of use: it is not active and gets no calls, except about filters that exist there alone.
    /// Calls under way are answered, and another upstream becomes active as after a loss. Returns `false` if it is
    /// cordoned already.
    ///
    /// # Errors
    /// Returns [`LastUpstream`] where no other upstream could take its calls now, unless `force` is set.
    pub fn cordon(&self, id: UpstreamId, force: bool) -> Result<bool, LastUpstream> {
        let others = self.active.reached(MinHead::Any);
        let is_spare = |other: &UpstreamId| *other != id && self.upstreams[other.0].node.calls != Share::None;
        if !force && !self.active.is_cordoned(id) && !others.iter().any(is_spare) {
            return Err(LastUpstream);
        }
        Ok(self.active.cordon(id, true))
    }

    /// Ends a cordon. Returns `false` if there is none.
    pub fn uncordon(&self, id: UpstreamId) -> bool {
        self.active.cordon(id, false)
    }

    /// Returns the memory of answers that are being read from HTTP nodes, in bytes: clients', and our own.
    #[must_use]
    pub fn answers_under_way(&self) -> (usize, usize) {
        (self.answers.used(), self.our_answers.used())
    }

    /// Returns the number of best-effort events that were dropped, most of them pending transactions that arrived
    /// faster than they could be passed on.
    #[must_use]
    pub fn best_effort_dropped(&self) -> u64 {
        self.best_effort_dropped.load(Ordering::Relaxed)
    }
}

async fn look(pool: Weak<Pool>, every: Duration) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut proving: Option<JoinHandle<()>> = None;
    loop {
        tick.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        pool.active.look();
        if proving.as_ref().is_none_or(JoinHandle::is_finished) {
            proving = pool.active.unproved().map(|claim| tokio::spawn(prove(pool, claim)));
        }
    }
}
