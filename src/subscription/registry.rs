//! All subscriptions of all clients, behind one lock.
//!
//! Sessions subscribe and unsubscribe, the dispatcher fans out; each takes the lock once, for a short time. The
//! published chain changes under this lock alone ([`PublishedWriter`]), in step with the tables. That
//! makes the promises simple: a subscription gets everything from its first block on ([`History::next_sequence`]) and
//! nothing from before, and after `unsubscribe` has returned no more events are queued. Time under the lock is some
//! tens of nanoseconds for each delivery; sockets are written to after it is released.

mod event_streams;
mod heads;
mod refusals;
mod sessions;
mod trailing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tracing::warn;

use self::refusals::not_served;
use self::sessions::Sessions;
use super::block_trace::{BlockTraces, FanOutTrace};
use super::contents::ContentsWait;
use super::flush::{DirtyClients, flush};
use super::passthrough::PassthroughFull;
use super::replay_group::{Goal, GroupKey, Progress, ReplayGroup, WaitFor};
use super::subscriber::Subscriber;
use super::tables::{IndexSlot, Tables};
use super::{Level, SessionLimits, Stream, Topic};
use crate::backplane::{Answers, BestEffortEvent, NodeSubscription, Wanted};
use crate::chain::{Absent, BlockRef, ContentKind, Cursor, Header, History, Page, Published, PublishedWriter};
use crate::clock::{Clock, Moment};
use crate::delivery::{ClientWriter, Kind, Recipient, SubscriptionId};
use crate::telemetry::{KindLabel, Metrics, ReasonLabel};

pub use event_streams::Begins;

/// A client's subscription, as the session owns it.
#[derive(Debug)]
pub struct Subscription {
    /// Delivery end of the subscription.
    pub recipient: Arc<Recipient>,
    place: IndexSlot,
    /// Position at which a live subscription began; for server-sent events alone.
    start: Option<Arc<str>>,
}

/// Handle of a subscription that awaits the node's answer; the session may end the subscription meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct UnconfirmedSubscription {
    id: SubscriptionId,
    place: IndexSlot,
}

impl Subscription {
    /// Returns the handle that [`Registry::accept`] and [`Registry::refuse`] take.
    #[must_use]
    pub fn unconfirmed(&self) -> UnconfirmedSubscription {
        UnconfirmedSubscription {
            id: self.recipient.id(),
            place: self.place,
        }
    }
}

/// Subscriptions ended under one lock, some hundreds of nanoseconds each.
const LEAVE_TOGETHER: usize = 256;

/// The tables of all subscriptions.
#[derive(Debug)]
pub struct Registry {
    tables: Mutex<Tables>,
    published: Arc<Published>,
    /// Most different subscriptions that are passed through to the node.
    max_passthrough: usize,
    wanted: watch::Sender<Wanted>,
    /// Notifies the dispatcher that a resumed subscription needs contents.
    needs: Notify,
    /// Blocks that are traced.
    traces: BlockTraces,
    /// Trace of the head that is under way.
    under_way: Mutex<Option<Arc<FanOutTrace>>>,
    sessions: Mutex<Sessions>,
    /// Connections with a session: without any, their book costs nothing.
    session_clients: AtomicUsize,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Registry {
    /// Builds empty tables. Events are applied to `published`; with `compresses` clients may agree on compression.
    /// `wanted` announces to the upstreams which subscriptions are needed; at most `max_passthrough`
    /// different ones are of kinds that only the nodes know.
    #[must_use]
    pub fn new(
        published: PublishedWriter,
        max_passthrough: usize,
        compresses: bool,
        wanted: watch::Sender<Wanted>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            published: published.reader(),
            tables: Mutex::new(Tables::new(published, compresses)),
            max_passthrough,
            wanted,
            needs: Notify::new(),
            traces: BlockTraces::default(),
            under_way: Mutex::default(),
            sessions: Mutex::new(Sessions::new(SessionLimits::default(), 0)),
            session_clients: AtomicUsize::new(0),
            clock,
            metrics,
        }
    }

    /// Returns the chain up to which the tables were served.
    #[must_use]
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// Adds a live subscription. From now on its events are queued; they leave after the answer (see [`Recipient`]).
    /// A subscription that is passed through is not answered before the node has [accepted](Self::accept) it.
    ///
    /// # Errors
    /// [`PassthroughFull`] if no further different subscription may be passed through.
    pub fn subscribe(&self, topic: Topic, writer: &Arc<ClientWriter>) -> Result<Subscription, PassthroughFull> {
        let mut tables = self.tables.lock();
        let id = SubscriptionId::random();
        let recipient = match &topic {
            Topic::Passthrough(passed, _) if passed.is_of_its_own() => Recipient::unnamed(id),
            Topic::Passthrough(passed, _) => Recipient::within(passed.namespace(), id),
            _ => Recipient::new(id, tables.published.with_history(History::next_sequence)),
        };
        let mut start = None;
        if writer.is_event_stream() {
            // An HTTP client knows no id that an answer would have to tell first; events still follow the response's head.
            recipient.answered();
            start = tables.begins_behind(topic.kind(), recipient.since());
        }
        let subscriber = Subscriber {
            recipient: recipient.clone(),
            writer: writer.clone(),
        };
        if matches!(topic, Topic::Syncing)
            // A new subscriber gets the present state at once, as in geth (PROTOCOL 1.8).
            && let Some(batch) = tables.sync_state()
            && writer.push_events(&recipient, batch, self.clock.now())
        {
            writer.flush();
        }
        if let Topic::Chain(Stream::Logs(_), _) = topic {
            tables.keep_logs_fresh(self.clock.now());
        }
        let place = tables.insert(topic, subscriber, self.max_passthrough)?;
        self.count(place.kind()).inc();
        self.update_node_subscriptions(&mut tables);
        Ok(Subscription {
            recipient,
            place,
            start,
        })
    }

    /// Records that the node accepted a passed or pending-transactions subscription. From now on the client is closed
    /// if another node refuses it.
    pub fn accept(&self, UnconfirmedSubscription { id, place }: UnconfirmedSubscription) {
        let mut tables = self.tables.lock();
        match place {
            IndexSlot::Passthrough => tables.passing.accept(id),
            place => tables.accept_pending(place, id),
        }
    }

    /// Removes a subscription that the node refused; its session may still own it.
    pub fn refuse(&self, UnconfirmedSubscription { id, place }: UnconfirmedSubscription) {
        let mut tables = self.tables.lock();
        if let Some(subscriber) = tables.remove(place, id) {
            subscriber.recipient.refuse();
            subscriber.writer.forget(id);
            self.count(place.kind()).dec();
            self.update_node_subscriptions(&mut tables);
        }
    }

    /// Applies the answers of the node in use: closes clients whose accepted subscriptions this node refuses. Clients
    /// that still wait for the answer to `eth_subscribe` get the refusal there.
    pub fn answered(&self, answers: &Answers) {
        let tables = self.tables.lock();
        for (of, _) in answers.iter().filter(|(_, answer)| answer.is_err()) {
            match of {
                NodeSubscription::Pending(form) => tables.close_refused_pending(*form),
                NodeSubscription::Passthrough(passed) => tables.passing.close_refused(passed),
            }
        }
    }

    /// Adds a subscription that gets the events behind `cursor` by [`Self::replay`] before it joins the live stream, or
    /// the trail of its level. Without a cursor it waits for one ([`Self::with_cursor`]).
    #[must_use]
    pub fn resume(
        &self,
        level: Option<Level>,
        stream: Stream,
        cursor: Option<Cursor>,
        writer: &Arc<ClientWriter>,
    ) -> Subscription {
        let key = GroupKey::new(writer.id(), level);
        let mut tables = self.tables.lock();
        let kind = stream.kind();
        let recipient = Recipient::resumed(SubscriptionId::random());
        if writer.is_event_stream() {
            recipient.answered();
        }
        let subscriber = Subscriber {
            recipient: recipient.clone(),
            writer: writer.clone(),
        };
        let members = tables.replays.entry(key).or_insert_with(|| ReplayGroup::at(level));
        members.add(stream, cursor, subscriber);
        if let Some(level) = level {
            tables.trails.of(level, writer.owner()).replaying += 1;
        } else if kind == Kind::Logs {
            tables.keep_logs_fresh(self.clock.now());
            tables.takes_back = true;
            self.needs.notify_one();
        }
        self.count(kind).inc();
        Subscription {
            recipient,
            place: IndexSlot::Resumed(kind, key),
            start: None,
        }
    }

    /// Changes the place at which a resumed subscription goes on; does nothing if the subscription is live or ended.
    pub fn with_cursor(&self, key: GroupKey, id: SubscriptionId, change: impl FnOnce(&mut Option<Cursor>, &History)) {
        let mut tables = self.tables.lock();
        let Tables { replays, published, .. } = &mut *tables;
        if let Some(cursor) = replays.get_mut(&key).and_then(|members| members.cursor(id)) {
            published.with_history(|history| change(cursor, history));
            self.begin_position(&tables, id, key);
        }
    }

    /// Has the other resumed subscriptions of the group located that are on a branch which `id` was found to have left.
    pub fn leave_branch(&self, key: GroupKey, id: SubscriptionId, branch: &[BlockRef]) {
        if let Some(members) = self.tables.lock().replays.get_mut(&key) {
            members.leave(id, branch);
        }
    }

    /// Checks if the chain stands at the newest published block, so that new subscriptions begin with the next one.
    #[must_use]
    pub fn is_at_its_tip(&self) -> bool {
        self.published.is_at_its_tip()
    }

    /// Checks if a block was published since the start, or since continuity was lost.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.published.has_begun()
    }

    /// Waits for the first block after a start, for at most 10 s.
    pub async fn begun(&self) {
        self.published.begun().await;
    }

    /// Claims the replays of this client's resumed subscriptions for the caller: each group that no task replays yet, with
    /// the notifier that wakes its task. Tasks of other groups are woken.
    #[must_use]
    pub fn claim_replays(&self, client: u64) -> Vec<(GroupKey, Arc<Notify>)> {
        let mut tables = self.tables.lock();
        let Tables { replays, trails, .. } = &mut *tables;
        let levels = std::iter::once(None).chain(trails.levels().map(Some));
        let claim = |level| {
            let key = GroupKey::new(client, level);
            Some((key, replays.get_mut(&key)?.claim()?))
        };
        levels.filter_map(claim).collect()
    }

    /// Ends the claim of the task with this notifier.
    pub fn end_replay(&self, key: GroupKey, woken: &Arc<Notify>) {
        let mut tables = self.tables.lock();
        if let Some(members) = tables.replays.get_mut(&key) {
            members.unclaim(woken);
            if members.is_over() {
                tables.replays.remove(&key);
            }
        }
    }

    /// Queues the next events of a group of resumed subscriptions while the client's queue has room; subscriptions that
    /// have caught up join the live stream, or the trail of their level.
    pub fn replay(&self, key: GroupKey, page: &Page) -> Progress {
        let mut tables = self.tables.lock();
        let tables = &mut *tables;
        let goal = match key.level {
            None => Goal::Head,
            Some(level) => Goal::Trail(level, tables.trails.place(level)),
        };
        let Some(members) = tables.replays.get_mut(&key) else {
            let (wrote, until) = (false, WaitFor::Done);
            return Progress { wrote, until };
        };
        if !page.is_empty() {
            tables.published.change_logs(|history| history.fill(page));
        }
        let now = self.clock.now();
        let advance = |history: &History| members.advance(history, page, goal, now);
        let (progress, caught) = tables.published.with_history(advance);
        if members.is_empty() {
            tables.replays.remove(&key);
        }
        // Nothing has moved otherwise.
        let moves = progress.wrote || !caught.is_empty();
        for (stream, subscriber, first) in caught {
            let id = subscriber.recipient.id();
            let place = match key.level {
                None => tables.catch_up(stream, subscriber, first),
                Some(level) => tables.reach(level, stream, subscriber, first),
            };
            tables.joined.insert(id, place);
        }
        self.metrics.filters.set(tables.log_filters() as i64);
        let marked = moves && self.mark_one(key.client(), tables, now);
        Progress {
            wrote: progress.wrote | marked,
            ..progress
        }
    }

    fn count(&self, kind: Kind) -> impl std::ops::Deref<Target = prometheus_client::metrics::gauge::Gauge> {
        self.metrics
            .subscriptions
            .get_or_create(&KindLabel { kind: kind.label() })
    }

    /// Ends a subscription: no more events are queued for it, and queued ones are dropped.
    pub fn unsubscribe(&self, subscription: &Subscription) {
        self.unsubscribe_all(std::slice::from_ref(subscription));
    }

    /// Ends subscriptions. A client may have thousands: the lock is released after every `LEAVE_TOGETHER`, and work
    /// for all of them is done once per group.
    pub fn unsubscribe_all<'a>(&self, subscriptions: impl IntoIterator<Item = &'a Subscription>) {
        let mut subscriptions = subscriptions.into_iter().peekable();
        while subscriptions.peek().is_some() {
            self.with_tables(|tables, due, now| {
                for subscription in subscriptions.by_ref().take(LEAVE_TOGETHER) {
                    let id = subscription.recipient.id();
                    let place = tables.joined.remove(&id).unwrap_or(subscription.place);
                    if let Some(subscriber) = tables.remove(place, id) {
                        subscriber.writer.forget(id);
                        self.count(place.kind()).dec();
                    }
                }
                // Events of other kinds may have waited for contents of these.
                tables.drop_unneeded(now);
                tables.release(due, now);
                self.update_node_subscriptions(tables);
            });
        }
    }

    fn update_node_subscriptions(&self, tables: &mut Tables) {
        self.metrics.filters.set(tables.log_filters() as i64);
        let wanted = tables.wanted();
        self.wanted.send_if_modified(|current| {
            let changed = *current != wanted;
            *current = wanted;
            changed
        });
    }

    /// Waits until a resumed subscription needs contents.
    pub async fn needs_more(&self) {
        self.needs.notified().await;
    }

    /// Returns the headers of the blocks whose contents are to be fetched now.
    #[must_use]
    pub fn needed(&self) -> Vec<(ContentKind, Header)> {
        self.tables.lock().needed()
    }

    /// Returns the waiting times per kind of contents, and the number of events that wait for contents.
    #[must_use]
    pub fn late(&self) -> (Vec<ContentsWait>, usize) {
        let tables = self.tables.lock();
        (tables.late(self.clock.now()).collect(), tables.early_events())
    }

    fn deliver(&self, tables: &mut Tables, due: &mut DirtyClients, now: Moment) {
        for (kind, why) in tables.deliver(due, now) {
            self.lost_contents(kind, why);
        }
    }

    /// Logs and counts contents that no node gives.
    fn lost_contents(&self, kind: ContentKind, why: Absent) {
        let reason = match why {
            Absent::NotServed => "no node serves them",
            Absent::Throttled => "the nodes' rate limits prevent fetching them",
            Absent::UnknownBlock => "no node knows the block any more",
            Absent::Unanswered => "no node answers",
        };
        let what = kind.label();
        warn!("{what} of blocks: {reason}; clients that subscribe to them are closed with 1012");
        self.count_loss(match why {
            Absent::UnknownBlock => "unknown_block",
            Absent::NotServed | Absent::Throttled | Absent::Unanswered => not_served(kind),
        });
    }

    fn count_loss(&self, reason: &'static str) {
        self.metrics
            .continuity_lost
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// Queues the oldest of these best-effort events, and with a pending transaction the ones right behind it, for the
    /// caller to flush `due`. Returns `true` if an event waits for the answer to a subscription: [`Self::deliver_early`]
    /// delivers it.
    #[must_use]
    pub(super) fn fan_out_best_effort(&self, arrived: &mut VecDeque<BestEffortEvent>, due: &mut DirtyClients) -> bool {
        let (lost, early) = {
            let mut tables = self.tables.lock();
            let lost = tables.best_effort(arrived, due, self.clock.now());
            (lost, tables.passing.has_early())
        };
        if lost > 0 {
            let place = ReasonLabel { reason: "unanswered" };
            self.metrics.pending_dropped.get_or_create(&place).inc_by(lost);
        }
        early
    }

    /// Delivers early events to subscriptions that were answered meanwhile; returns `true` if some still wait.
    #[must_use]
    pub fn deliver_early(&self) -> bool {
        self.with_tables(|tables, due, now| {
            tables.passing.deliver_early(due, now);
            tables.passing.has_early()
        })
    }

    fn with_tables<T>(&self, apply: impl FnOnce(&mut Tables, &mut DirtyClients, Moment) -> T) -> T {
        let (result, due) = self.apply(apply);
        flush(due);
        result
    }

    /// Changes the tables; the caller writes to the clients.
    fn apply<T>(&self, apply: impl FnOnce(&mut Tables, &mut DirtyClients, Moment) -> T) -> (T, DirtyClients) {
        let mut due = DirtyClients::default();
        let result = apply(&mut self.tables.lock(), &mut due, self.clock.now());
        (result, due)
    }
}
