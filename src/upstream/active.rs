//! The choice of the upstream in use: actors report to [`Ranking`], and its decisions take effect here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{info, warn};

use super::ranking::{Ranking, ReportedBlock, Switch, SwitchReason, UnprovedHead};
use super::{Answers, Endpoint, MinHead, NodeSubscription, UpstreamId, UpstreamSettings};
use crate::clock::{AtomicMoment, Clock, Moment};
use crate::telemetry::{Event, Metrics, ReasonLabel};

/// The choice, shared by the pool and the actors. Every change of the upstream in use is made under one lock, so that
/// watch, log and metrics report changes in their order.
#[derive(Debug)]
pub(super) struct ActiveUpstream {
    clock: Clock,
    decided: Mutex<Decided>,
    active: watch::Sender<Option<UpstreamId>>,
    /// Answers of the upstream in use to subscribe requests.
    answers: watch::Sender<Answers>,
    /// Subscriptions postponed by the node's rate limit, with the node's error object.
    rate_limited: watch::Sender<HashMap<NodeSubscription, Bytes>>,
    /// Signal that an upstream connected, was lost or reported a head.
    moves: watch::Sender<()>,
    metrics: Arc<Metrics>,
}

/// Identity of an upstream for the log.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub id: UpstreamId,
    pub endpoint: Endpoint,
    /// Newest sign of life.
    pub last_activity: Arc<AtomicMoment>,
}

#[derive(Debug)]
struct Decided {
    ranking: Ranking,
    /// The upstreams of the ranking.
    named: Vec<Named>,
    /// Upstream lost while no other was connected.
    left: Option<Named>,
}

impl ActiveUpstream {
    /// Creates the choice without upstreams; see [`Self::arrange`].
    pub(super) fn new(settings: &UpstreamSettings, metrics: Arc<Metrics>) -> Self {
        // Half of `silence_timeout`: the time to detect a problem, and the time to act, are equally long.
        let lag_tolerance = settings.silence_timeout / 2;
        Self {
            clock: Clock::start(),
            decided: Mutex::new(Decided {
                ranking: Ranking::new(lag_tolerance, settings.failback_after),
                named: Vec::new(),
                left: None,
            }),
            active: watch::Sender::new(None),
            answers: watch::Sender::default(),
            rate_limited: watch::Sender::default(),
            moves: watch::Sender::new(()),
            metrics,
        }
    }

    pub(super) fn active(&self) -> Option<UpstreamId> {
        *self.active.borrow()
    }

    pub(super) fn watch_active(&self) -> watch::Receiver<Option<UpstreamId>> {
        self.active.subscribe()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn answers(&self) -> &watch::Sender<Answers> {
        &self.answers
    }

    pub(super) fn rate_limited(&self) -> &watch::Sender<HashMap<NodeSubscription, Bytes>> {
        &self.rate_limited
    }

    /// Sets the upstreams, by priority, see [`Ranking::arrange`]. If the one in use leaves, another takes over now.
    pub(super) fn arrange(&self, members: Vec<Named>) {
        let order = Vec::from_iter(members.iter().map(|member| member.id));
        self.change(|decided| {
            decided.ranking.arrange(&order);
            // Those that leave have a name until the switch is logged.
            let others = std::mem::take(&mut decided.named).into_iter();
            let others = others.filter(|own| !order.contains(&own.id));
            decided.named = members.iter().cloned().chain(others).collect();
        });
        self.decided.lock().named.retain(|own| order.contains(&own.id));
    }

    /// Checks if an upstream takes part in the choice.
    pub(super) fn contains(&self, id: UpstreamId) -> bool {
        self.decided.lock().ranking.contains(id)
    }

    /// Checks if an upstream could come into use now, see [`Ranking::is_ready`].
    pub(super) fn is_ready(&self, id: UpstreamId) -> bool {
        self.decided.lock().ranking.is_ready(id, self.now())
    }

    /// Records a sign of life of an upstream in its cell.
    pub(super) fn note_activity(&self, cell: &AtomicMoment) {
        cell.store(Some(self.clock.now()));
    }

    /// Records that this upstream is connected.
    pub(super) fn up(&self, id: UpstreamId) {
        self.update(|ranking| ranking.up(id));
    }

    /// Records that this upstream is lost.
    pub(super) fn down(&self, id: UpstreamId) {
        self.update(|ranking| ranking.down(id));
    }

    /// Records an announced head, see [`Ranking::announced`].
    pub(super) fn announced(&self, id: UpstreamId, reported: ReportedBlock) -> bool {
        self.update(|ranking| ranking.announced(id, reported))
    }

    /// Records a fetched head, see [`Ranking::fetched`].
    pub(super) fn fetched(&self, id: UpstreamId, reported: ReportedBlock) -> bool {
        self.update(|ranking| ranking.fetched(id, reported))
    }

    /// Keeps an upstream out of use, or ends that, see [`Ranking::cordon`].
    pub(super) fn cordon(&self, id: UpstreamId, cordoned: bool) -> bool {
        self.update(|ranking| ranking.cordon(id, cordoned))
    }

    /// Checks if the operator keeps an upstream out of use.
    pub(super) fn is_cordoned(&self, id: UpstreamId) -> bool {
        self.decided.lock().ranking.is_cordoned(id)
    }

    /// Checks if an upstream is connected, even if it is kept out of use.
    pub(super) fn is_connected(&self, id: UpstreamId) -> bool {
        self.decided.lock().ranking.is_connected(id)
    }

    /// Decides again, after time has passed.
    pub(super) fn look(&self) {
        self.update(|_| ());
    }

    /// Records the newest published head, or `None` if clients have to begin anew.
    pub(super) fn published(&self, head: Option<(u64, B256)>) {
        let now = self.now();
        self.update(|ranking| ranking.published(head, now));
    }

    /// Records a published block below the oldest one known.
    pub(super) fn published_past(&self, number: u64, hash: B256) {
        self.decided.lock().ranking.published_past(number, hash);
    }

    /// Returns number and hash of the newest published block.
    pub(super) fn published_head(&self) -> Option<(u64, B256)> {
        self.decided.lock().ranking.published_head()
    }

    /// Returns the hashes of the newest published block and of some older ones, see
    /// [`super::published::PublishedSample::some`].
    pub(super) fn some_published(&self) -> impl DoubleEndedIterator<Item = B256> + use<> {
        self.decided.lock().ranking.some_published().into_iter()
    }

    /// Checks if the upstream's height does not count, see [`Ranking::is_doubted`].
    pub(super) fn is_doubted(&self, id: UpstreamId) -> bool {
        self.decided.lock().ranking.is_doubted(id)
    }

    /// Checks if a block may be published on this upstream's report, see [`Ranking::may_lead`].
    pub(super) fn may_lead(&self, id: UpstreamId, block: B256) -> bool {
        self.decided.lock().ranking.may_lead(id, block, self.now())
    }

    /// Records a block published on this upstream's report, see [`Ranking::leads`].
    pub(super) fn leads(&self, id: UpstreamId, number: u64, hash: B256) {
        self.decided.lock().ranking.leads(id, number, hash);
    }

    /// Returns a head to be proved, see [`Ranking::unproved`].
    pub(super) fn unproved(&self) -> Option<UnprovedHead> {
        self.decided.lock().ranking.unproved(self.now())
    }

    /// Returns the number of a published block, see [`Ranking::published_number`].
    pub(super) fn published_number(&self, hash: B256) -> Option<u64> {
        self.decided.lock().ranking.published_number(hash)
    }

    /// Records the result of a walk, see [`Ranking::walked`].
    pub(super) fn walked(&self, claim: UnprovedHead, root: Option<u64>) {
        let now = self.now();
        self.update(|ranking| ranking.walked(claim, root, now));
    }

    /// Wakes calls that wait for an upstream, since one may be available now.
    pub(super) fn moved(&self) {
        self.moves.send_replace(());
    }

    /// Returns a receiver that is notified when the result of [`Self::reached`] may have changed.
    pub(super) fn watch_changes(&self) -> watch::Receiver<()> {
        self.moves.subscribe()
    }

    /// Returns the upstreams that satisfy `min_head`, highest priority first.
    pub(super) fn reached(&self, min_head: MinHead) -> Vec<UpstreamId> {
        let ranking = &self.decided.lock().ranking;
        let have_head = || match ranking.published_head() {
            Some((number, hash)) => ranking.have(number, hash),
            None => ranking.connected().collect(),
        };
        match min_head {
            MinHead::Any => ranking.connected().collect(),
            MinHead::Number(number) => ranking.reached(number).collect(),
            MinHead::Published => have_head(),
            MinHead::PreferAbove(number) => {
                let have = have_head();
                let beyond: Vec<UpstreamId> = ranking.reached(number).filter(|id| have.contains(id)).collect();
                if beyond.is_empty() { have } else { beyond }
            }
        }
    }

    /// Returns the upstream for a request of our own, and the number of upstreams to choose from, see
    /// [`Ranking::pick_for_block`].
    pub(super) fn for_us(&self, block: Option<B256>, attempt: u32) -> Option<(UpstreamId, u32)> {
        self.decided.lock().ranking.pick_for_block(block, attempt)
    }

    /// Returns the upstreams in the order in which they are asked for a block, see [`Ranking::by_preference`].
    pub(super) fn by_preference(&self, block: B256) -> Vec<UpstreamId> {
        self.decided.lock().ranking.by_preference(Some(block))
    }

    pub(super) fn lag(&self, id: UpstreamId) -> Option<Duration> {
        self.decided.lock().ranking.lag(id, self.now())
    }

    /// Returns the time since the start, by which the ranking counts.
    fn now(&self) -> Duration {
        self.clock.now().since(Moment::START)
    }

    fn update<T>(&self, change: impl FnOnce(&mut Ranking) -> T) -> T {
        self.change(|decided| change(&mut decided.ranking))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Decided) -> T) -> T {
        let mut decided = self.decided.lock();
        let result = change(&mut decided);
        if let Some(switch) = decided.ranking.decide(self.now()) {
            self.apply_switch(switch, &mut decided);
        }
        drop(decided);
        self.moves.send_replace(());
        result
    }

    fn apply_switch(&self, Switch { from, to, why }: Switch, decided: &mut Decided) {
        self.active.send_replace(to);
        // After the change of `active`: from now on answers of the previous upstream are ignored.
        self.answers.send_if_modified(|all| !std::mem::take(all).is_empty());
        self.rate_limited
            .send_if_modified(|all| !std::mem::take(all).is_empty());
        let Decided { named, left, .. } = decided;
        let find = |id: UpstreamId| named.iter().find(|own| own.id == id);
        if let Some(from) = from.and_then(find) {
            *left = Some(from.clone());
        }
        let enter = |from: Option<&Endpoint>, reason: &str| {
            self.metrics.journal.enter(Event::Failover {
                from: from.map(Endpoint::to_string),
                to: to.and_then(find).map(|own| own.endpoint.to_string()),
                reason: reason.to_owned(),
            });
        };
        // A single upstream's actor logs itself that it is connected or lost.
        let several = named.len() > 1;
        let Some(next) = to.and_then(find) else {
            enter(from.and_then(find).map(|own| &own.endpoint), "none_left");
            return if several {
                warn!("no upstream is active: none is connected");
            };
        };
        let Some(from) = left.take().filter(|from| from.id != next.id) else {
            enter(None, "first");
            return if several {
                info!("upstream {} is active", next.endpoint);
            };
        };
        let (next, before) = (&next.endpoint, &from.endpoint);
        let reason = match why {
            SwitchReason::First | SwitchReason::Lost => {
                warn!("failover to upstream {next}: {before} is lost");
                "lost"
            }
            SwitchReason::Cordoned => {
                info!("failover to upstream {next}: {before} is cordoned");
                "cordoned"
            }
            SwitchReason::Removed => {
                info!("failover to upstream {next}: {before} leaves the configuration");
                "removed"
            }
            SwitchReason::Lagging(lag) => {
                warn!("failover to upstream {next}: {before} lags by {lag:.1?}");
                "lagging"
            }
            SwitchReason::Forked => {
                warn!("failover to upstream {next}: {before} is on another branch than most of the others");
                "forked"
            }
            SwitchReason::Doubted => {
                warn!(
                    "failover to upstream {next}: no parents link the head of {before} to the published chain, and no \
                     other has reached its height"
                );
                "doubted"
            }
            SwitchReason::FailBack => {
                info!("failback to upstream {next}: it is healthy and has priority over {before}");
                "failback"
            }
        };
        self.metrics.failovers.get_or_create(&ReasonLabel { reason }).inc();
        enter(Some(&from.endpoint), reason);
        if !matches!(
            why,
            SwitchReason::FailBack | SwitchReason::Cordoned | SwitchReason::Removed
        ) && let Some(last) = from.last_activity.load()
        {
            let gap = self.clock.now().since(last);
            self.metrics.failover_seconds.observe(gap.as_secs_f64());
        }
    }
}
