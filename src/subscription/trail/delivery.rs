//! Delivery of one whole block to the members of a level.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::Trail;
use crate::chain::{BlockLogs, BlockReceipts, BlockTransactions, Header};
use crate::clock::Moment;
use crate::delivery::{Batch, Event, Kind, SubscriptionId};
use crate::subscription::Include;
use crate::subscription::block_filter::Parts;
use crate::subscription::block_table::Message;
use crate::subscription::event_id::{self, BehindLogs};
use crate::subscription::flush::{DirtyClients, send};
use crate::subscription::receipt_filter::Bodies;
use crate::subscription::subscriber::{ClientKey, Subscriber};
use crate::subscription::transaction_event::{Fate, PerForm};

/// Whole block to deliver.
#[derive(Debug)]
pub(in crate::subscription) struct WholeBlock {
    pub(super) header: Header,
    pub(super) logs: Option<Arc<BlockLogs>>,
    pub(super) transactions: Option<Arc<BlockTransactions>>,
    pub(super) receipts: Option<Arc<BlockReceipts>>,
    /// Further blocks have reached the level already.
    pub(super) more: bool,
}

/// Encoder of an event that all its subscribers share.
type Encode<'a> = dyn Fn(&[u8]) -> Event + 'a;

impl Trail {
    /// Queues a block for all members. Returns the clients without room for the blocks behind it.
    pub(in crate::subscription) fn deliver(
        &mut self,
        block: &WholeBlock,
        encode: &Encode<'_>,
        due: &mut DirtyClients,
        now: Moment,
    ) -> BTreeSet<ClientKey> {
        let mut out = Out {
            late: self.unanswered(block.header.block.number),
            full: BTreeSet::new(),
            more: block.more,
            behind: event_id::behind(block.header.block.hash),
            seen: Instant::now(),
            due,
            now,
        };
        if !self.heads.is_empty() {
            let batch = out.one(Kind::Heads, encode(&block.header.json));
            out.send(self.heads.iter().map(|(_, subscriber)| subscriber), &batch);
        }
        if let Some(logs) = &block.logs {
            self.deliver_logs(logs, encode, &mut out);
        }
        if let Some(transactions) = &block.transactions {
            self.deliver_transactions(transactions, encode, &mut out);
        }
        if let Some(receipts) = &block.receipts {
            let mut bodies = Bodies::new(&receipts.receipts);
            self.receipts.for_each_match(&receipts.receipts, |positions, takers| {
                let batch = bodies.of(positions, |json| out.one(Kind::Receipts, encode(json)));
                out.send(takers, &batch);
            });
        }
        if let Some(logs) = &block.logs {
            let parts = Parts {
                header: &block.header,
                transactions: block.transactions.as_deref(),
                receipts: block.receipts.as_deref(),
            };
            let mut empty = HashMap::new();
            self.blocks.adopt(parts, logs, |message, takers| {
                let batch = out.message(message, &mut empty, encode);
                out.send(takers, &batch);
            });
        }
        for kind in [Kind::Logs, Kind::Receipts] {
            if self.marked.has(kind) {
                let mark = Batch::mark(kind, &out.behind);
                out.send(self.marked.of(kind), &mark);
            }
        }
        out.full
    }

    /// Queues the removal of a block for the members that were sent it.
    pub(in crate::subscription) fn take_back(
        &mut self,
        header: &Header,
        logs: &BlockLogs,
        encode: &Encode<'_>,
        due: &mut DirtyClients,
        now: Moment,
    ) {
        let number = header.block.number;
        let mut out = Out {
            late: HashSet::new(),
            full: BTreeSet::new(),
            more: false,
            // Blocks are taken back newest first.
            behind: event_id::behind(header.parent),
            seen: Instant::now(),
            due,
            now,
        };
        let mut empty = HashMap::new();
        self.blocks.take_back(header, logs, |message, takers| {
            let batch = out.message(message, &mut empty, encode);
            out.send(takers.filter(|own| own.recipient.was_sent(number)), &batch);
        });
    }

    /// Returns the members that do not get this block. A client's members whose answers are queued together begin with
    /// the same block, although the answers are recorded one by one meanwhile.
    fn unanswered(&mut self, number: u64) -> HashSet<SubscriptionId> {
        let waiting = self.unanswered.iter().filter(|own| !own.recipient.is_answered());
        let waiting: HashSet<ClientKey> = waiting.map(|own| own.writer.id()).collect();
        self.unanswered.retain(|own| waiting.contains(&own.writer.id()));
        let late = self.unanswered.iter();
        late.for_each(|own| own.recipient.begin(number.saturating_add(1)));
        self.unanswered.iter().map(|own| own.recipient.id()).collect()
    }

    fn deliver_logs(&mut self, block: &BlockLogs, encode: &Encode<'_>, out: &mut Out<'_>) {
        let ids = self.marked.has(Kind::Logs).then(|| BehindLogs::of(block.block.hash));
        let mut encoded: Vec<Option<Event>> = vec![None; block.logs.len()];
        self.logs
            .for_each_match(&block.logs, block.block.number, |positions, takers| {
                let event = |&at: &u32| {
                    let log = &block.logs[at as usize];
                    let encode = || encode(log.json()).at(ids.as_ref().map(|ids| ids.log(log.index)));
                    encoded[at as usize].get_or_insert_with(encode).clone()
                };
                let batch = Batch::new(Kind::Logs, positions.iter().map(event).collect(), out.seen);
                out.send(takers.iter(), &batch);
            });
    }

    fn deliver_transactions(&self, block: &BlockTransactions, encode: &Encode<'_>, out: &mut Out<'_>) {
        let all = &block.transactions;
        let mut encoded: Vec<PerForm<Event>> = all.iter().map(|_| PerForm::default()).collect();
        self.mined.for_each_match(all, |filter, positions, takers| {
            let event = |&at: &usize| {
                let make = || encode(&Fate::Adopted.json(&all[at], filter.form));
                encoded[at].get(filter.form, make).clone()
            };
            let batch = Batch::new(Kind::Mined, positions.iter().map(event).collect(), out.seen);
            out.send(takers, &batch);
        });
    }
}

/// Deliveries of one block.
struct Out<'a> {
    /// Members that do not get this block.
    late: HashSet<SubscriptionId>,
    full: BTreeSet<ClientKey>,
    more: bool,
    /// Position behind the block.
    behind: Arc<str>,
    /// Blocks of a level are late by nature: the latency measured is their time in the queue.
    seen: Instant,
    due: &'a mut DirtyClients,
    now: Moment,
}

impl Out<'_> {
    /// Returns the batch of the only event of this kind in the block.
    fn one(&self, kind: Kind, event: Event) -> Arc<Batch> {
        let event = event.at(Some(self.behind.clone()));
        Batch::new(kind, Box::new([event]), self.seen)
    }

    fn message(
        &self,
        message: Message<'_>,
        empty: &mut HashMap<Include, Arc<Batch>>,
        encode: &Encode<'_>,
    ) -> Arc<Batch> {
        match message {
            Message::Own(json) => self.one(Kind::Blocks, encode(&json)),
            Message::Empty(include, make) => {
                let made = empty.entry(include);
                made.or_insert_with(|| self.one(Kind::Blocks, encode(&make()))).clone()
            }
        }
    }

    fn send<'a>(&mut self, subscribers: impl Iterator<Item = &'a Subscriber>, batch: &Arc<Batch>) {
        let late = std::mem::take(&mut self.late);
        let is_late = |own: &&Subscriber| !late.is_empty() && late.contains(&own.recipient.id());
        for subscriber in subscribers.filter(|own| !is_late(own)) {
            // A single block is queued like a live one; a client is paged only behind a jump of the level.
            if self.more && !subscriber.writer.has_room() {
                self.full.insert(subscriber.writer.id());
            }
            send(std::iter::once(subscriber), batch, self.due, self.now);
        }
        self.late = late;
    }
}
