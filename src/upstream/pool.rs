//! All upstreams: shared state, the one in use, and calls to them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use alloy_primitives::B256;
use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::active::ActiveUpstream;
use super::call::exchange;
use super::complaint::throttled;
use super::lanes::{Lane, Lanes};
use super::load::P95;
use super::membership::Common;
use super::proof::prove;
use super::roster::{Member, Roster, Upstream};
use super::shared::UpstreamStatus;
use super::{
    BestEffortEvent, CallError, Endpoint, HeadReport, MinHead, Node, NodeSubscription, Share, UpstreamId,
    UpstreamSettings, Wanted,
};
use crate::backoff::Doubling;
use crate::jsonrpc::Outcome;
use crate::shares::Owner;
use crate::telemetry::Metrics;

/// All configured upstreams; [`Self::reshape`] changes them.
#[derive(Debug)]
pub struct Pool {
    pub(super) roster: ArcSwap<Roster>,
    pub(super) active: Arc<ActiveUpstream>,
    pub(super) common: Common,
    /// Held while the roster is replaced.
    pub(super) reshaping: Mutex<()>,
    pub(super) request_timeout: Duration,
    pub(super) head_wait: Duration,
    pub(super) hedges: bool,
    /// Usual latency of calls by class (`CallRequest::class`); recorded only if calls are hedged.
    pub(super) usual: Mutex<HashMap<&'static str, P95>>,
    fetch_timeout: Duration,
    silence_timeout: Duration,
    pub(super) metrics: Arc<Metrics>,
    /// Task that checks the upstreams' time limits.
    looking: Mutex<Option<JoinHandle<()>>>,
}

/// Channels from the pool to the chain and to subscriptions, and back.
#[derive(Clone, Debug)]
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
        let active = Arc::new(ActiveUpstream::new(settings, metrics.clone()));
        let pool = Arc::new(Self {
            roster: ArcSwap::default(),
            common: Common::new(settings, channels.clone(), active.clone()),
            reshaping: Mutex::default(),
            active,
            request_timeout: settings.request_timeout,
            head_wait: settings.head_wait,
            hedges: settings.hedge,
            usual: Mutex::default(),
            silence_timeout: settings.silence_timeout,
            fetch_timeout: (settings.silence_timeout / 4).max(MIN_FETCH_TIMEOUT),
            metrics,
            looking: Mutex::default(),
        });
        pool.reshape(nodes);
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

    /// Returns number and hash of the newest published block; `None` before the first one.
    #[must_use]
    pub fn published_head(&self) -> Option<(u64, B256)> {
        self.active.published_head()
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

    /// Checks if a block on top of the newest one may be published on this upstream's report, although another one
    /// is in use.
    #[must_use]
    pub fn may_lead(&self, id: UpstreamId, block: B256) -> bool {
        self.active.may_lead(id, block)
    }

    /// Records that this block is to be published on this upstream's report alone.
    pub fn leads(&self, id: UpstreamId, number: u64, hash: B256) {
        self.active.leads(id, number, hash);
    }

    /// Returns the newest head that this upstream reported.
    #[must_use]
    pub fn newest(&self, id: UpstreamId) -> Option<HeadReport> {
        self.upstream(id)?.shared.newest.lock().clone()
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
        let mut rate_limited = self.active.rate_limited().subscribe();
        let answered = async {
            tokio::select! {
                biased;
                all = answers.wait_for(|all| all.contains_key(of)) => all.ok()?.get(of).cloned(),
                all = rate_limited.wait_for(|all| all.contains_key(of)) => {
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
    pub fn watch_answers(&self) -> watch::Receiver<super::Answers> {
        self.active.answers().subscribe()
    }

    /// Sends a call of our own, which waits behind no client's. A call about `block` goes first to an upstream that
    /// reported the block, and with each further `attempt` to the next one; where there are several, the time limit
    /// is short at first.
    ///
    /// # Errors
    /// Returns a [`CallError`] like [`Self::call`].
    pub async fn call_internal(
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
        self.upstream(id)
            .is_none_or(|upstream| *upstream.shared.lanes.borrow() != Lanes::Opening)
    }

    /// Waits until the connection for calls of one of these upstreams is open, or was given up.
    pub async fn opened(&self, ids: &[UpstreamId]) {
        let opened = ids.iter().filter_map(|id| self.upstream(*id)).map(|upstream| {
            let mut lanes = upstream.shared.lanes.subscribe();
            Box::pin(async move { drop(lanes.wait_for(|lanes| *lanes != Lanes::Opening).await) })
        });
        let opened = Vec::from_iter(opened);
        if !opened.is_empty() {
            futures_util::future::select_all(opened).await;
        }
    }

    /// Sends a call of our own to one upstream, like [`Self::call_internal`], with `time_limit` as the time limit.
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
        let Some(upstream) = self.upstream(id) else {
            return Err(CallError::Unavailable);
        };
        let lane = Lane::of(method, params);
        let way = upstream.way(lane, time_limit).await?;
        let asking = exchange(
            &way.internal,
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

    /// Returns the upstream's address, without secrets; empty for one that has left.
    #[must_use]
    pub fn address(&self, id: UpstreamId) -> String {
        self.upstream(id)
            .map_or_else(String::new, |upstream| upstream.shared.endpoint.to_string())
    }

    /// Returns the upstreams, by priority; those that are about to leave come last.
    #[must_use]
    pub fn ids(&self) -> Vec<UpstreamId> {
        self.roster.load().ids()
    }

    /// Checks if an upstream is one of [`Self::ids`]: it may have left by a reload.
    #[must_use]
    pub fn has(&self, id: UpstreamId) -> bool {
        self.roster.load().get(id).is_some()
    }

    /// Returns the number of upstreams.
    #[must_use]
    pub fn count(&self) -> usize {
        self.roster.load().len()
    }

    /// Returns an upstream, whose actors run at least as long as it is held; `None` if it has left.
    pub(super) fn upstream(&self, id: UpstreamId) -> Option<Arc<Upstream>> {
        self.roster.load().get(id).map(|member| member.upstream.clone())
    }

    /// Returns the number of connections made to the upstream so far.
    #[must_use]
    pub fn connects(&self, id: UpstreamId) -> u64 {
        self.upstream(id)
            .map_or(0, |upstream| upstream.shared.status.lock().connects)
    }

    /// Checks if an upstream is an HTTP node, where a lost call takes no other call with it.
    #[must_use]
    pub fn is_http(&self, id: UpstreamId) -> bool {
        self.upstream(id)
            .is_some_and(|upstream| matches!(upstream.shared.endpoint, Endpoint::Http(_)))
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
        self.common.identity.chain_id()
    }

    /// Returns each upstream's address (without secrets) and state, by priority.
    #[must_use]
    pub fn status(&self) -> Vec<(String, UpstreamStatus)> {
        let active = self.active();
        let one = |member: &Member| {
            let shared = &member.upstream.shared;
            let (in_flight, latency) = shared.load.figures();
            let status = UpstreamStatus {
                active: active == Some(shared.id),
                cordoned: self.active.is_cordoned(shared.id),
                leaving: member.leaving.is_some(),
                lag: self.active.lag(shared.id),
                lanes: (!matches!(shared.endpoint, Endpoint::Http(_))).then(|| *shared.lanes.borrow()),
                in_flight,
                latency,
                ..shared.status.lock().clone()
            };
            (shared.endpoint.to_string(), status)
        };
        self.roster.load().iter().map(one).collect()
    }

    /// Keeps an upstream out of use: it is not active and gets no calls, except about filters that exist there alone.
    /// Calls under way are answered, and another upstream becomes active as after a loss. Returns `false` if it is
    /// cordoned already.
    ///
    /// # Errors
    /// Returns [`LastUpstream`] where no other upstream could take its calls now, unless `force` is set.
    pub fn cordon(&self, id: UpstreamId, force: bool) -> Result<bool, LastUpstream> {
        let others = self.active.reached(MinHead::Any);
        let roster = self.roster.load();
        let takes_calls = |id: UpstreamId| roster.get(id).is_some_and(|member| member.node.calls != Share::None);
        let is_spare = |other: &UpstreamId| *other != id && takes_calls(*other);
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
        (self.common.answers.used(), self.common.internal_answers.used())
    }

    /// Returns the number of best-effort events that were dropped, most of them pending transactions that arrived
    /// faster than they could be passed on.
    #[must_use]
    pub fn best_effort_dropped(&self) -> u64 {
        self.common.best_effort_dropped.load(Ordering::Relaxed)
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
        pool.release();
        if proving.as_ref().is_none_or(JoinHandle::is_finished) {
            proving = pool.active.unproved().map(|claim| tokio::spawn(prove(pool, claim)));
        }
    }
}
