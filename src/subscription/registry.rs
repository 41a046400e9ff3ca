//! All subscriptions of all clients, behind one lock.
//!
//! Sessions subscribe and unsubscribe, the dispatcher fans out, each in one short hold of the lock. That makes the
//! promises simple: whoever is in the tables when a block is fanned out gets all of it, whoever is not gets none of it,
//! and after `unsubscribe` returned nothing more is queued. Time under the lock is some tens of nanoseconds for each
//! delivery; writes to sockets happen after it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use bytes::Bytes;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::{Notify, watch};

use super::members::{Members, Progress, Until};
use super::transaction_event::{Fate, InForms, hash_json};
use super::{Index, Line, LogFilter, Slot, Stream, Topic, TransactionFilter};
use crate::backplane::{ChainEvent, Gossip, TransactionForm, Wanted};
use crate::chain::{BlockLogs, BlockTransactions, Cursor, History, Log, Loss, Page, Transaction};
use crate::clock::{Clock, Millis};
use crate::delivery::{Batch, CloseReason, Compression, Event, Kind, Outbox, Phase, Recipient, SubscriptionId};
use crate::telemetry::{KindLabel, Metrics, ReasonLabel};

/// A subscription as its owner, the session, holds it.
#[derive(Debug)]
pub struct Subscription {
    /// Its delivery end.
    pub recipient: Arc<Recipient>,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Heads(usize),
    Logs(Slot),
    PendingHashes(usize),
    Pending(Slot),
    Syncing(usize),
    Mined(Slot),
    /// On its way to the live stream, or there already.
    Resumed(Kind, ClientKey),
}

impl Place {
    fn kind(self) -> Kind {
        match self {
            Self::Heads(_) => Kind::Heads,
            Self::Logs(_) => Kind::Logs,
            Self::PendingHashes(_) | Self::Pending(_) => Kind::Pending,
            Self::Syncing(_) => Kind::Syncing,
            Self::Mined(_) => Kind::Mined,
            Self::Resumed(kind, _) => kind,
        }
    }
}

/// A subscription as the fan-out sees it.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    pub(super) recipient: Arc<Recipient>,
    pub(super) outbox: Arc<Outbox>,
}

#[derive(Debug)]
struct Tables {
    heads: Slab<Subscriber>,
    logs: Index<LogFilter, Subscriber>,
    /// Those who are told what a node's own stream of hashes tells.
    pending_hashes: Slab<Subscriber>,
    /// Those who need the whole transaction, to be told or to be selected by.
    pending: Index<TransactionFilter, Subscriber>,
    syncing: Slab<Subscriber>,
    mined: Index<TransactionFilter, Subscriber>,
    /// What those who are told of removals were sent, by the sequence of its block; for as many blocks as are remembered.
    told: BTreeMap<u64, Vec<Transaction>>,
    /// The last block whose transactions were told.
    mined_through: u64,
    /// Until then nobody else may want transactions of blocks: the node does not serve them, and every head would wait for
    /// them in vain.
    mined_refused_until: Millis,
    /// The node's last word on its sync state, for newcomers.
    sync_state: Option<(Bytes, Arc<Batch>)>,
    history: History,
    /// Subscriptions that are told what was before they join the live stream, by client.
    replays: HashMap<ClientKey, Members>,
    /// Where resumed subscriptions have joined.
    joined: HashMap<SubscriptionId, Place>,
    seen_pending: Recent,
    /// Clients may agree on compression.
    compresses: bool,
}

/// How long a subscription waits for the first block after a start.
const FIRST_BLOCK: Duration = Duration::from_secs(10);

/// How long nobody else may want transactions of blocks after a node did not serve them, in milliseconds.
const MINED_REFUSED: Millis = 60_000;

/// See [`Outbox::id`].
type ClientKey = u64;

/// The tables of all subscriptions.
#[derive(Debug)]
pub struct Registry {
    tables: Mutex<Tables>,
    wanted: watch::Sender<Wanted>,
    /// Tells those who wait for it that the chain went on.
    published: watch::Sender<()>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Registry {
    /// Empty tables that remember so many blocks; clients may agree on compression where it `compresses`; `wanted` tells
    /// the upstreams what is subscribed to.
    #[must_use]
    pub fn new(
        remembered: usize,
        compresses: bool,
        wanted: watch::Sender<Wanted>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let tables = Tables {
            heads: Slab::new(),
            logs: Index::default(),
            pending_hashes: Slab::new(),
            pending: Index::default(),
            syncing: Slab::new(),
            mined: Index::default(),
            told: BTreeMap::new(),
            mined_through: 0,
            mined_refused_until: 0,
            sync_state: None,
            history: History::new(remembered),
            replays: HashMap::new(),
            joined: HashMap::new(),
            seen_pending: Recent::default(),
            compresses,
        };
        Self {
            tables: Mutex::new(tables),
            wanted,
            published: watch::Sender::new(()),
            clock,
            metrics,
        }
    }

    /// Adds a subscription, live. From now on its events are queued; they leave when the answer did (see [`Recipient`]).
    #[must_use]
    pub fn subscribe(&self, topic: Topic, outbox: &Arc<Outbox>) -> Subscription {
        let mut tables = self.tables.lock();
        let recipient = Recipient::new(SubscriptionId::random(), tables.history.next_sequence());
        let subscriber = Subscriber {
            recipient: recipient.clone(),
            outbox: outbox.clone(),
        };
        let place = match topic {
            Topic::Chain(stream, _) => tables.join(stream, subscriber),
            Topic::Pending(filter) => match filter.source() {
                TransactionForm::Hash => Place::PendingHashes(tables.pending_hashes.insert(subscriber)),
                TransactionForm::Full => Place::Pending(tables.pending.insert(filter, subscriber)),
            },
            Topic::Syncing => {
                // A newcomer is told the present state at once, as geth does (PROTOCOL 1.8).
                if let Some((_, batch)) = &tables.sync_state
                    && outbox.push_events(&recipient, batch, self.clock.now())
                {
                    outbox.flush();
                }
                Place::Syncing(tables.syncing.insert(subscriber))
            }
            Topic::Mined(filter) => Place::Mined(tables.mined.insert(filter, subscriber)),
        };
        self.count(place.kind()).inc();
        self.publish_wanted(&mut tables);
        Subscription { recipient, place }
    }

    /// Adds a subscription that is told what came behind `cursor` before it joins the live stream, by
    /// [`Self::replay`]. Without a cursor it waits for one.
    #[must_use]
    pub fn resume(&self, stream: Stream, cursor: Option<Cursor>, outbox: &Arc<Outbox>) -> Subscription {
        let mut tables = self.tables.lock();
        let kind = stream.kind();
        let recipient = Recipient::resumed(SubscriptionId::random());
        let subscriber = Subscriber {
            recipient: recipient.clone(),
            outbox: outbox.clone(),
        };
        let members = tables.replays.entry(outbox.id()).or_default();
        members.add(stream, cursor, subscriber);
        self.count(kind).inc();
        Subscription {
            recipient,
            place: Place::Resumed(kind, outbox.id()),
        }
    }

    /// Changes where a resumed subscription goes on, unless it is over.
    pub fn with_cursor(
        &self,
        outbox: &Arc<Outbox>,
        id: SubscriptionId,
        change: impl FnOnce(&mut Option<Cursor>, &History),
    ) {
        let mut tables = self.tables.lock();
        let Tables { replays, history, .. } = &mut *tables;
        if let Some(cursor) = replays.get_mut(&outbox.id()).and_then(|members| members.cursor(id)) {
            change(cursor, history);
        }
    }

    /// Ends a resumed subscription that found no place to go on; its owner may still hold it.
    pub fn give_up(&self, outbox: &Arc<Outbox>, id: SubscriptionId) {
        if let Some((kind, subscriber)) = self.tables.lock().leave_replay(outbox.id(), id) {
            subscriber.recipient.give_up();
            self.count(kind).dec();
        }
    }

    /// Whether transactions of blocks can be had, as far as is known.
    #[must_use]
    pub fn serves_mined(&self) -> bool {
        self.clock.now() >= self.tables.lock().mined_refused_until
    }

    /// Whether what is published next is for those who subscribe now: the chain has begun, and stands at its tip.
    #[must_use]
    pub fn is_at_its_tip(&self) -> bool {
        self.with_history(|history| {
            let tip = history.tip().map(|tip| tip.header.block);
            tip.is_some() && tip == history.stands_at()
        })
    }

    /// Whether a block was published since the start, or since continuity was lost.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.with_history(|history| history.tip().is_some())
    }

    /// Waits for the first block after a start, for a while.
    pub async fn begun(&self) {
        let mut published = self.watch_published();
        let first = published.wait_for(|()| self.has_begun());
        drop(tokio::time::timeout(FIRST_BLOCK, first).await);
    }

    /// Looks at what was published, under the lock.
    pub fn with_history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.tables.lock().history)
    }

    /// Tells when the chain goes on.
    #[must_use]
    pub fn watch_published(&self) -> watch::Receiver<()> {
        self.published.subscribe()
    }

    /// Where this client's resumed subscriptions have nobody yet who replays for them, that is the caller, woken by this.
    #[must_use]
    pub fn claim_replay(&self, outbox: &Arc<Outbox>) -> Option<Arc<Notify>> {
        let mut tables = self.tables.lock();
        tables.replays.get_mut(&outbox.id()).and_then(Members::claim)
    }

    /// Whoever is woken by this replays for the client no more.
    pub fn end_replay(&self, client: u64, woken: &Arc<Notify>) {
        let mut tables = self.tables.lock();
        if let Some(members) = tables.replays.get_mut(&client) {
            members.unclaim(woken);
            if members.is_over() {
                tables.replays.remove(&client);
            }
        }
    }

    /// Queues the next events of a client's resumed subscriptions as long as it has room; those that are level with the
    /// live stream join it.
    pub fn replay(&self, outbox: &Arc<Outbox>, page: &Page) -> Progress {
        let mut tables = self.tables.lock();
        let tables = &mut *tables;
        let Some(members) = tables.replays.get_mut(&outbox.id()) else {
            let (wrote, until) = (false, Until::Done);
            return Progress { wrote, until };
        };
        let (progress, level) = members.advance(&tables.history, page, self.clock.now());
        if members.is_empty() {
            tables.replays.remove(&outbox.id());
        }
        for (stream, subscriber, first) in level {
            let since = tables.history.sequence_from(first);
            subscriber.recipient.begin(since);
            let id = subscriber.recipient.id();
            let place = tables.join(stream, subscriber);
            tables.joined.insert(id, place);
        }
        self.metrics.filters.set(tables.logs.filters() as i64);
        progress
    }

    fn count(&self, kind: Kind) -> impl std::ops::Deref<Target = prometheus_client::metrics::gauge::Gauge> {
        self.metrics
            .subscriptions
            .get_or_create(&KindLabel { kind: kind.label() })
    }

    /// Ends a subscription: nothing more is queued for it, and what was queued is forgotten.
    pub fn unsubscribe(&self, subscription: &Subscription) {
        let mut tables = self.tables.lock();
        let id = subscription.recipient.id();
        let place = tables.joined.remove(&id).unwrap_or(subscription.place);
        let gone = match place {
            Place::Heads(at) => tables.heads.try_remove(at),
            Place::Logs(slot) => tables.logs.remove(slot),
            Place::PendingHashes(at) => tables.pending_hashes.try_remove(at),
            Place::Pending(slot) => tables.pending.remove(slot),
            Place::Syncing(at) => tables.syncing.try_remove(at),
            Place::Mined(slot) => tables.mined.remove(slot),
            Place::Resumed(_, client) => tables.leave_replay(client, id).map(|(_, subscriber)| subscriber),
        };
        if let Some(subscriber) = gone {
            subscriber.outbox.forget(id);
            self.count(place.kind()).dec();
        }
        self.publish_wanted(&mut tables);
    }

    fn publish_wanted(&self, tables: &mut Tables) {
        self.metrics.filters.set(tables.logs.filters() as i64);
        let wanted = Wanted {
            pending_hashes: !tables.pending_hashes.is_empty(),
            pending_full: !tables.pending.is_empty(),
            syncing: !tables.syncing.is_empty(),
        };
        if !wanted.syncing {
            // Nobody keeps it fresh any more.
            tables.sync_state = None;
        }
        self.wanted.send_if_modified(|current| {
            let changed = *current != wanted;
            *current = wanted;
            changed
        });
    }

    /// Fans out chain events, in order, as far as they need not wait, and writes to each client once.
    pub fn fan_out(&self, line: &mut Line) {
        self.with_tables(|tables, due, now| self.fan_out_line(line, tables, due, now));
        self.published.send_replace(());
    }

    /// Fans out the transactions of the block that the line waits for, and what has waited for them. Without them those
    /// who want them are closed.
    pub fn fan_out_transactions(&self, found: Option<BlockTransactions>, line: &mut Line) {
        self.with_tables(|tables, due, now| {
            line.go_on();
            match found {
                Some(block) => tables.transactions(&block, due, now),
                None => {
                    tables.mined_refused_until = now + MINED_REFUSED;
                    tables.lose_transactions();
                    self.count_loss("no_transactions");
                }
            }
            self.fan_out_line(line, tables, due, now);
        });
        self.published.send_replace(());
    }

    fn fan_out_line(&self, line: &mut Line, tables: &mut Tables, due: &mut Due, now: Millis) {
        if !tables.wants_transactions() {
            // Whoever wanted them has left.
            line.go_on();
        }
        while let Some(event) = line.take() {
            if let ChainEvent::Head(header) = &event
                && tables.wants_transactions()
            {
                line.wait_for(header.clone());
            }
            if let Err(loss) = tables.chain(event, due, now) {
                self.count_loss(loss.label());
            }
        }
    }

    fn count_loss(&self, reason: &'static str) {
        self.metrics
            .continuity_lost
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// Fans out what may be lost.
    pub fn fan_out_gossip(&self, gossip: Gossip) {
        self.with_tables(|tables, due, now| tables.gossip(gossip, due, now));
    }

    fn with_tables(&self, apply: impl FnOnce(&mut Tables, &mut Due, Millis)) {
        let mut due = Due::default();
        apply(&mut self.tables.lock(), &mut due, self.clock.now());
        flush(due);
    }
}

impl Tables {
    /// Puts a subscription where live events find it.
    fn join(&mut self, stream: Stream, subscriber: Subscriber) -> Place {
        match stream {
            Stream::Logs(filter) => Place::Logs(self.logs.insert(filter, subscriber)),
            Stream::Heads => Place::Heads(self.heads.insert(subscriber)),
        }
    }

    fn leave_replay(&mut self, client: ClientKey, id: SubscriptionId) -> Option<(Kind, Subscriber)> {
        let members = self.replays.get_mut(&client)?;
        let gone = members.remove(id);
        // Whoever replays for it removes it: a second one must not come in between.
        if members.is_over() {
            self.replays.remove(&client);
        }
        gone
    }

    /// An error where continuity is lost, which everybody whom it concerns has been told then.
    fn chain(&mut self, event: ChainEvent, due: &mut Due, now: Millis) -> Result<(), Loss> {
        match event {
            ChainEvent::Head(header) => {
                let (json, seen) = (header.json.clone(), header.seen);
                let Some(dropped) = self.history.head(header) else {
                    return Ok(());
                };
                for own in dropped {
                    let told = |subscriber: &Subscriber| subscriber.recipient.was_sent(own.sequence);
                    if let Some(block) = own.logs {
                        self.logs(&block, |log| self.event(&log.removed_json()), &mut { told }, due, now);
                    }
                    if let Some(transactions) = self.told.remove(&own.sequence) {
                        let seen = Instant::now();
                        self.mined(&transactions, Fate::Removed, seen, told, due, now);
                    }
                }
                if !self.heads.is_empty() {
                    let batch = self.one(Kind::Heads, &json, seen);
                    send(answered(&self.heads), &batch, due, now);
                }
            }
            ChainEvent::Logs(block) => {
                if let Some(sequence) = self.history.logs(block.clone()) {
                    let takes = &mut |subscriber: &Subscriber| subscriber.recipient.takes(sequence);
                    self.logs(&block, |log| self.event(log.json()), takes, due, now);
                }
            }
            ChainEvent::Rewind(to) => {
                if self.history.rewind(to).is_err() {
                    self.lose_continuity();
                    return Err(Loss::TooFar);
                }
            }
            ChainEvent::Past(header, logs) => self.history.past(header, logs),
            ChainEvent::ContinuityLost(loss) => {
                self.lose_continuity();
                return Err(loss);
            }
        }
        Ok(())
    }

    fn lose_continuity(&mut self) {
        self.history.clear();
        self.told.clear();
        let heads = self.heads.iter().map(|(_, subscriber)| subscriber);
        let replayed = self.replays.values().flat_map(Members::subscribers);
        for subscriber in heads.chain(self.logs.iter()).chain(replayed).chain(self.mined.iter()) {
            subscriber.outbox.close(CloseReason::ContinuityLost);
        }
    }

    /// Whether the transactions of the next block are for anybody: those who are on their way out need not be waited for.
    fn wants_transactions(&self) -> bool {
        self.mined
            .iter()
            .any(|subscriber| subscriber.outbox.phase() == Phase::Open)
    }

    /// The tip's transactions cannot be had.
    fn lose_transactions(&self) {
        for subscriber in self.mined.iter() {
            subscriber.outbox.close(CloseReason::ContinuityLost);
        }
    }

    /// The tip's transactions are here.
    fn transactions(&mut self, block: &BlockTransactions, due: &mut Due, now: Millis) {
        let tip = self.history.tip().filter(|tip| tip.header.block == block.block);
        let Some(sequence) = tip.map(|tip| tip.sequence) else {
            return;
        };
        // The chain may have gone back, and come the same way again.
        if sequence <= self.mined_through {
            return;
        }
        self.mined_through = sequence;
        // Who subscribed behind the block's logs begins with the next one.
        let takes = |subscriber: &Subscriber| {
            let recipient = &subscriber.recipient;
            recipient.takes(sequence) && recipient.was_sent(sequence)
        };
        let told = self.mined(&block.transactions, Fate::Adopted, block.seen, takes, due, now);
        if !told.is_empty() {
            self.told.insert(sequence, told);
        }
        let oldest = self.history.oldest().map_or(sequence, |own| own.sequence);
        self.told = self.told.split_off(&oldest);
    }

    /// Every transaction is encoded at most once in each form, and the events of a filter are shared by all its
    /// subscribers. Those that were sent to somebody who is to be told if they are removed.
    fn mined(
        &self,
        transactions: &[Transaction],
        fate: Fate,
        seen: Instant,
        wants: impl Fn(&Subscriber) -> bool,
        due: &mut Due,
        now: Millis,
    ) -> Vec<Transaction> {
        let mut encoded: Vec<InForms<Event>> = transactions.iter().map(|_| InForms::default()).collect();
        let mut told = BTreeSet::new();
        self.mined
            .for_each_match(transactions, |filter, positions, subscribers| {
                let mut wanting = subscribers.filter(|subscriber| wants(subscriber)).peekable();
                if (fate == Fate::Removed && !filter.removed) || wanting.peek().is_none() {
                    return;
                }
                if filter.removed {
                    told.extend(positions);
                }
                let encode = |&at: &usize| {
                    let event = || self.event(&fate.json(&transactions[at], filter.form));
                    encoded[at].get(filter.form, event).clone()
                };
                let events = positions.iter().map(encode).collect();
                send(wanting, &Batch::new(Kind::Mined, events, seen), due, now);
            });
        told.into_iter().map(|at: usize| transactions[at].alone()).collect()
    }

    /// An event for all who want it.
    fn event(&self, payload: &[u8]) -> Event {
        let event = Event::new(payload);
        if self.compresses { event.compressible() } else { event }
    }

    fn one(&self, kind: Kind, payload: &[u8], seen: Instant) -> Arc<Batch> {
        Batch::new(kind, Box::new([self.event(payload)]), seen)
    }

    /// Every log is encoded at most once, and the events of a filter are shared by all its subscribers.
    fn logs(
        &self,
        block: &BlockLogs,
        encode: impl Fn(&Log) -> Event,
        wants: &mut dyn FnMut(&Subscriber) -> bool,
        due: &mut Due,
        now: Millis,
    ) {
        let mut encoded: Vec<Option<Event>> = vec![None; block.logs.len()];
        self.logs
            .for_each_match(&block.logs, block.block.number, |positions, subscribers| {
                let subscribers = || subscribers.iter().map(|(_, subscriber)| subscriber);
                let mut wanting = subscribers().filter(|subscriber| wants(subscriber)).peekable();
                if wanting.peek().is_none() {
                    return;
                }
                let events = positions
                    .iter()
                    .map(|&at| {
                        encoded[at as usize]
                            .get_or_insert_with(|| encode(&block.logs[at as usize]))
                            .clone()
                    })
                    .collect();
                let batch = if self.compresses && positions.len() > 1 && share_a_series(subscribers()) {
                    Batch::in_series(Kind::Logs, events, block.seen)
                } else {
                    Batch::new(Kind::Logs, events, block.seen)
                };
                send(wanting, &batch, due, now);
            });
    }

    fn pending_hash(&mut self, json: &[u8], seen: Instant, due: &mut Due, now: Millis) {
        // What cannot be read cannot be told apart, and passes.
        let known =
            serde_json::from_slice(json).is_ok_and(|hash| !self.seen_pending.is_new(TransactionForm::Hash, hash));
        if !known && !self.pending_hashes.is_empty() {
            let batch = self.one(Kind::Pending, json, seen);
            send(answered(&self.pending_hashes), &batch, due, now);
        }
    }

    fn pending(&mut self, json: Bytes, seen: Instant, due: &mut Due, now: Millis) {
        let read = Transaction::parse(json.clone());
        if let Ok(read) = &read
            && !self.seen_pending.is_new(TransactionForm::Full, read.hash)
        {
            return;
        }
        // What cannot be read is for those who want everything.
        let (from, to) = read.as_ref().map_or((None, None), |read| (read.from, read.to));
        let mut forms = InForms::default();
        for entry in self.pending.who_want(from, to) {
            let (filter, subscribers) = self.pending.entry(entry);
            let batch = forms.get(filter.form, || match (filter.form, &read) {
                (TransactionForm::Hash, Ok(read)) => self.one(Kind::Pending, &hash_json(read), seen),
                _ => self.one(Kind::Pending, &json, seen),
            });
            send(subscribers.filter(is_answered), batch, due, now);
        }
    }

    fn gossip(&mut self, gossip: Gossip, due: &mut Due, now: Millis) {
        match gossip {
            Gossip::Pending { form, json, seen } => match form {
                TransactionForm::Hash => self.pending_hash(&json, seen, due, now),
                TransactionForm::Full => self.pending(json, seen, due, now),
            },
            Gossip::Syncing(state) => {
                if self.sync_state.as_ref().is_some_and(|(known, _)| *known == state) {
                    return;
                }
                let batch = self.one(Kind::Syncing, &sync_payload(&state), Instant::now());
                // Told once, so it waits even for an answer that is not there yet.
                let everyone = self.syncing.iter().map(|(_, subscriber)| subscriber);
                send(everyone, &batch, due, now);
                self.sync_state = Some((state, batch));
            }
        }
    }
}

/// Clients that have something to be written.
#[derive(Debug, Default)]
struct Due {
    outboxes: Vec<Arc<Outbox>>,
    /// Those that agreed on compression: the first of them compresses, which the others should not wait for.
    deflating: Vec<Arc<Outbox>>,
    /// Bytes of the largest batch.
    heaviest: usize,
}

/// Clients written to by one task: many where each write is small, for a second core costs more than it brings
/// (1.16 against 1.30 of the bare loop's CPU for heads to a thousand clients); few where each is long (1.2 to 1.4 against 1.45
/// for bursts of a hundred logs). Measured by `benches/fanout`.
const SMALL_TOGETHER: usize = 1024;
const LARGE_TOGETHER: usize = 128;

/// From here on a write is long, in bytes.
const LARGE: usize = 16 << 10;

/// Writes to the sockets of these clients: the first here, the others on all cores.
fn flush(mut due: Due) {
    let together = if due.heaviest < LARGE {
        SMALL_TOGETHER
    } else {
        LARGE_TOGETHER
    };
    let flush_elsewhere = |outboxes: Vec<_>| tokio::spawn(async move { Outbox::flush_all(&outboxes) });
    if due.outboxes.is_empty() {
        due.outboxes = due.deflating;
    } else if !due.deflating.is_empty() {
        flush_elsewhere(due.deflating);
    }
    while due.outboxes.len() > together {
        flush_elsewhere(due.outboxes.split_off(due.outboxes.len() - together));
    }
    Outbox::flush_all(&due.outboxes);
}

fn answered(table: &Slab<Subscriber>) -> impl Iterator<Item = &Subscriber> {
    table.iter().map(|(_, subscriber)| subscriber).filter(is_answered)
}

/// Whether the answer of a subscriber is on its way at least.
fn is_answered(subscriber: &&Subscriber) -> bool {
    subscriber.recipient.is_answered()
}

/// Subscribers that make it worth compressing the events of one filter for them alone, some 15 µs an event, where an event
/// that is compressed alone costs that once whatever the number of filters. With 32, fan-out costs at most twice what it
/// costs uncompressed, and that where every event is in dozens of batches: of a thousand clients with a hundred logs a
/// block, 8 to a filter cost 2.1 µs a delivery, 16 cost 1.1, 32 cost 0.66, a thousand 0.17; compressed alone 0.37, not
/// compressed 0.32. The series saves 360 bytes of 750 over the events alone.
const SHARED_BY: usize = 32;

fn share_a_series<'a>(subscribers: impl Iterator<Item = &'a Subscriber>) -> bool {
    let reading = subscribers.filter(|subscriber| subscriber.outbox.compression() == Compression::Takeover);
    reading.take(SHARED_BY).count() == SHARED_BY
}

fn send<'a>(subscribers: impl Iterator<Item = &'a Subscriber>, batch: &Arc<Batch>, due: &mut Due, now: Millis) {
    for subscriber in subscribers {
        if subscriber.outbox.push_events(&subscriber.recipient, batch, now) {
            let outboxes = match subscriber.outbox.compression() {
                Compression::None => &mut due.outboxes,
                Compression::NoTakeover | Compression::Takeover => &mut due.deflating,
            };
            outboxes.push(subscriber.outbox.clone());
            due.heaviest = due.heaviest.max(batch.wire_len);
        }
    }
}

/// What geth's `syncing` subscription sends (PROTOCOL 1.8), out of what `eth_syncing` answers: `false` as it is, the
/// progress as an object with Go's field names and plain numbers.
fn sync_payload(state: &[u8]) -> Vec<u8> {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(state) else {
        return state.to_vec();
    };
    let status: serde_json::Map<String, serde_json::Value> = fields
        .into_iter()
        .map(|(name, value)| {
            let mut letters = name.chars();
            let name = letters
                .next()
                .map(|first| first.to_ascii_uppercase())
                .into_iter()
                .chain(letters)
                .collect();
            let number = value
                .as_str()
                .and_then(|hex| u64::from_str_radix(hex.trim_start_matches("0x"), 16).ok());
            (name, number.map_or(value, Into::into))
        })
        .collect();
    serde_json::json!({"syncing": true, "status": status})
        .to_string()
        .into_bytes()
}

/// Pending transactions seen lately: a failover must not repeat them (E8).
#[derive(Debug, Default)]
struct Recent {
    known: std::collections::HashSet<(TransactionForm, B256)>,
    order: VecDeque<(TransactionForm, B256)>,
}

/// About a minute of a busy mainnet node.
const RECENT_PENDING: usize = 16_384;

impl Recent {
    fn is_new(&mut self, form: TransactionForm, hash: B256) -> bool {
        if !self.known.insert((form, hash)) {
            return false;
        }
        self.order.push_back((form, hash));
        if self.order.len() > RECENT_PENDING
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_progress_is_told_in_geths_words() {
        assert_eq!(sync_payload(b"false"), b"false");
        let payload = sync_payload(br#"{"startingBlock":"0x1","currentBlock":"0x10","stages":[]}"#);
        let expect =
            serde_json::json!({"syncing": true, "status": {"StartingBlock": 1, "CurrentBlock": 16, "Stages": []}});
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&payload).expect("json"),
            expect
        );
    }

    #[test]
    fn a_pending_transaction_is_told_once_in_each_form() {
        let mut recent = Recent::default();
        let hash = B256::repeat_byte(1);
        for form in [TransactionForm::Hash, TransactionForm::Full] {
            assert!(recent.is_new(form, hash));
            assert!(!recent.is_new(form, hash));
        }
    }
}
