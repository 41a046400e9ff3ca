//! Who is subscribed to what, and what each event of the chain means for them. All of it is behind the registry's lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use slab::Slab;

use super::due::{Due, answered, send, share_a_series};
use super::gossip::Recent;
use super::line::{Content, Contents, Wants};
use super::members::Members;
use super::passing::{Full, Passing};
use super::receipt_filter::Bodies;
use super::refusal::Refusal;
use super::transaction_event::{Fate, InForms};
use super::{Index, LogFilter, ReceiptFilter, Slot, Stream, Topic, TransactionFilter};
use crate::backplane::{ChainEvent, TransactionForm, Wanted};
use crate::chain::{Absent, BlockLogs, BlockReceipts, History, Log, Loss, Transaction};
use crate::clock::Millis;
use crate::delivery::{Batch, CloseReason, Event, Kind, Outbox, Phase, Recipient, SubscriptionId};

#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Heads(usize),
    Logs(Slot),
    PendingHashes(usize),
    Pending(Slot),
    Syncing(usize),
    Mined(Slot),
    Receipts(Slot),
    Passed,
    /// On its way to the live stream, or there already.
    Resumed(Kind, ClientKey),
}

impl Place {
    pub fn kind(self) -> Kind {
        match self {
            Self::Heads(_) => Kind::Heads,
            Self::Logs(_) => Kind::Logs,
            Self::PendingHashes(_) | Self::Pending(_) => Kind::Pending,
            Self::Syncing(_) => Kind::Syncing,
            Self::Mined(_) => Kind::Mined,
            Self::Receipts(_) => Kind::Receipts,
            Self::Passed => Kind::Passed,
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
/// See [`Outbox::id`].
pub(super) type ClientKey = u64;

/// Whether its client takes more.
fn is_open(subscriber: &Subscriber) -> bool {
    subscriber.outbox.phase() == Phase::Open
}

/// The tables.
#[derive(Debug)]
pub(super) struct Tables {
    heads: Slab<Subscriber>,
    logs: Index<LogFilter, Subscriber>,
    /// Those who are told what a node's own stream of hashes tells.
    pub pending_hashes: Slab<Subscriber>,
    /// Those who need the whole transaction, to be told or to be selected by.
    pub pending: Index<TransactionFilter, Subscriber>,
    /// Those of both to whom the node has said yes.
    pub accepted_pending: HashSet<SubscriptionId>,
    pub syncing: Slab<Subscriber>,
    mined: Index<TransactionFilter, Subscriber>,
    /// What those who are told of removals were sent, by the sequence of its block; for as many blocks as are remembered.
    told: BTreeMap<u64, Vec<Transaction>>,
    receipts: Index<ReceiptFilter, Subscriber>,
    /// The last block whose transactions or receipts were told.
    contents_through: u64,
    /// Where the nodes do not give transactions of blocks nobody else may want them for a while: every head would wait for
    /// them in vain.
    pub no_transactions: Refusal,
    /// The same for receipts, which are another question.
    pub no_receipts: Refusal,
    pub passing: Passing,
    /// The node's last word on its sync state, for newcomers.
    pub sync_state: Option<(Bytes, Arc<Batch>)>,
    pub history: History,
    /// Subscriptions that are told what was before they join the live stream, by client.
    pub replays: HashMap<ClientKey, Members>,
    /// Where resumed subscriptions have joined.
    pub joined: HashMap<SubscriptionId, Place>,
    pub seen_pending: Recent,
    /// Clients may agree on compression.
    compresses: bool,
}

impl Tables {
    /// Empty ones that remember so many blocks; clients may agree on compression where it `compresses`.
    pub fn new(remembered: usize, compresses: bool) -> Self {
        Self {
            heads: Slab::new(),
            logs: Index::default(),
            pending_hashes: Slab::new(),
            pending: Index::default(),
            accepted_pending: HashSet::new(),
            syncing: Slab::new(),
            mined: Index::default(),
            told: BTreeMap::new(),
            receipts: Index::default(),
            contents_through: 0,
            no_transactions: Refusal::default(),
            no_receipts: Refusal::default(),
            passing: Passing::default(),
            sync_state: None,
            history: History::new(remembered),
            replays: HashMap::new(),
            joined: HashMap::new(),
            seen_pending: Recent::default(),
            compresses,
        }
    }

    /// Adds a subscription, live; of those that are passed through there are `max_passed` different ones at most.
    pub fn insert(&mut self, topic: Topic, subscriber: Subscriber, max_passed: usize) -> Result<Place, Full> {
        Ok(match topic {
            Topic::Chain(stream, _) => self.join(stream, subscriber),
            Topic::Pending(filter) => match filter.source() {
                TransactionForm::Hash => Place::PendingHashes(self.pending_hashes.insert(subscriber)),
                TransactionForm::Full => Place::Pending(self.pending.insert(filter, subscriber)),
            },
            Topic::Syncing => Place::Syncing(self.syncing.insert(subscriber)),
            Topic::Mined(filter) => Place::Mined(self.mined.insert(filter, subscriber)),
            Topic::Receipts(filter) => Place::Receipts(self.receipts.insert(filter, subscriber)),
            Topic::Passed(passed, _) => {
                self.passing.insert(passed, subscriber, max_passed)?;
                Place::Passed
            }
        })
    }

    /// Takes a subscription out; nothing happens where it is gone already.
    pub fn remove(&mut self, place: Place, id: SubscriptionId) -> Option<Subscriber> {
        match place {
            Place::Heads(at) => self.heads.try_remove(at),
            Place::Logs(slot) => self.logs.remove(slot),
            // One that the node refused is gone before its owner knows, and its place may be another's by now.
            Place::PendingHashes(at) => {
                self.accepted_pending.remove(&id);
                let is_own = self.pending_hashes.get(at).is_some_and(|own| own.recipient.id() == id);
                is_own.then(|| self.pending_hashes.remove(at))
            }
            Place::Pending(slot) => {
                self.accepted_pending.remove(&id);
                let is_own = self.pending.get(slot).is_some_and(|own| own.recipient.id() == id);
                is_own.then(|| self.pending.remove(slot)).flatten()
            }
            Place::Syncing(at) => self.syncing.try_remove(at),
            Place::Mined(slot) => self.mined.remove(slot),
            Place::Receipts(slot) => self.receipts.remove(slot),
            Place::Passed => self.passing.remove(id),
            Place::Resumed(_, client) => self.leave_replay(client, id).map(|(_, subscriber)| subscriber),
        }
    }

    /// What the nodes have to be asked for beside the chain.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            pending_hashes: !self.pending_hashes.is_empty(),
            pending_full: !self.pending.is_empty(),
            syncing: !self.syncing.is_empty(),
            passed: self.passing.wanted(),
        }
    }

    /// Distinct filters of logs.
    pub fn log_filters(&self) -> usize {
        self.logs.filters()
    }

    /// Puts a subscription where live events find it.
    pub fn join(&mut self, stream: Stream, subscriber: Subscriber) -> Place {
        match stream {
            Stream::Logs(filter) => Place::Logs(self.logs.insert(filter, subscriber)),
            Stream::Heads => Place::Heads(self.heads.insert(subscriber)),
        }
    }

    pub fn leave_replay(&mut self, client: ClientKey, id: SubscriptionId) -> Option<(Kind, Subscriber)> {
        let members = self.replays.get_mut(&client)?;
        let gone = members.remove(id);
        // Whoever replays for it removes it: a second one must not come in between.
        if members.is_over() {
            self.replays.remove(&client);
        }
        gone
    }

    /// An error where continuity is lost, which everybody whom it concerns has been told then.
    pub fn chain(&mut self, event: ChainEvent, due: &mut Due, now: Millis) -> Result<(), Loss> {
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
        let contents = self.mined.iter().chain(self.receipts.iter());
        for subscriber in heads.chain(self.logs.iter()).chain(replayed).chain(contents) {
            subscriber.outbox.close(CloseReason::ContinuityLost);
        }
    }

    /// Which contents of the next block are for anybody: those who are on their way out need not be waited for.
    pub fn wants(&self) -> Wants {
        Wants {
            transactions: self.mined.iter().any(is_open),
            receipts: self.receipts.iter().any(is_open),
        }
    }

    /// A block's transactions cannot be had.
    pub fn lose_transactions(&mut self, why: Absent, now: Millis) {
        self.no_transactions.begin(why, now);
        for subscriber in self.mined.iter() {
            subscriber.outbox.close(CloseReason::ContinuityLost);
        }
    }

    /// A block's receipts cannot be had.
    pub fn lose_receipts(&mut self, why: Absent, now: Millis) {
        self.no_receipts.begin(why, now);
        for subscriber in self.receipts.iter() {
            subscriber.outbox.close(CloseReason::ContinuityLost);
        }
    }

    /// What was fetched of a block, behind its logs.
    pub fn contents(&mut self, contents: &Contents, due: &mut Due, now: Millis) {
        // Those of an empty block were not asked for.
        if matches!(&contents.transactions, Content::Here(block) if !block.transactions.is_empty()) {
            self.no_transactions.end();
        }
        if matches!(&contents.receipts, Content::Here(block) if !block.receipts.is_empty()) {
            self.no_receipts.end();
        }
        let block = contents.header.block;
        // It need not be the tip: where the chain went back, and comes the same way again, blocks above it are known already
        // while those below them are told what they hold.
        let own = self.history.at(block.number).filter(|own| own.header.block == block);
        let Some(sequence) = own.map(|own| own.sequence) else {
            return;
        };
        // The chain may have gone back, and come the same way again.
        if sequence <= self.contents_through {
            return;
        }
        self.contents_through = sequence;
        // Who subscribed behind the block's logs begins with the next one.
        let takes = |subscriber: &Subscriber| {
            let recipient = &subscriber.recipient;
            recipient.was_sent(sequence) && recipient.takes(sequence)
        };
        if let Content::Here(block) = &contents.transactions {
            let told = self.mined(&block.transactions, Fate::Adopted, block.seen, takes, due, now);
            if !told.is_empty() {
                self.told.insert(sequence, told);
            }
            let oldest = self.history.oldest().map_or(sequence, |own| own.sequence);
            self.told = self.told.split_off(&oldest);
        }
        if let Content::Here(block) = &contents.receipts {
            self.receipts(block, takes, due, now);
        }
    }

    /// One event for each filter that wants any of the block's receipts, shared by all its subscribers. Nothing is taken
    /// back of them on a reorg (PROTOCOL R5), so nothing is kept.
    ///
    /// None is made for clients that take no more, so that what is copied under the lock is bounded by what queues hold.
    fn receipts(&self, block: &BlockReceipts, wants: impl Fn(&Subscriber) -> bool, due: &mut Due, now: Millis) {
        let mut bodies = Bodies::new(&block.receipts);
        self.receipts.for_each_match(&block.receipts, |positions, subscribers| {
            let takes = |subscriber: &&Subscriber| wants(subscriber) && is_open(subscriber);
            let mut wanting = subscribers.filter(takes).peekable();
            if wanting.peek().is_some() {
                let batch = bodies.of(positions, |json| self.one(Kind::Receipts, json, block.seen));
                send(wanting, &batch, due, now);
            }
        });
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
    pub fn event(&self, payload: &[u8]) -> Event {
        let event = Event::new(payload);
        if self.compresses { event.compressible() } else { event }
    }

    pub fn one(&self, kind: Kind, payload: &[u8], seen: Instant) -> Arc<Batch> {
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
}
