//! Batches of one block's contents for the filters that select any of them.

use std::borrow::Cow;
use std::collections::BTreeSet;

use alloy_primitives::B256;
use tokio::time::Instant;

use super::event_id::{BehindLogs, Branch};
use super::flush::{DirtyClients, share_a_series};
use super::gate::Position;
use super::receipt_filter::Bodies;
use super::subscriber::{Subscriber, is_open};
use super::tables::Tables;
use super::transaction_event::{Fate, PerForm};
use crate::chain::{BlockLogs, BlockReceipts, Log, Transaction};
use crate::clock::Moment;
use crate::delivery::{Batch, Event, Kind};

/// Event that a block's logs are sent in.
#[derive(Clone, Copy, Debug)]
pub(super) enum LogFate {
    /// The block became part of the chain.
    Adopted,
    /// The block was dropped with this branch.
    Removed(Branch),
}

impl LogFate {
    fn payload(self, log: &Log) -> Cow<'_, [u8]> {
        match self {
            Self::Adopted => Cow::Borrowed(log.json()),
            Self::Removed(_) => Cow::Owned(log.removed_json()),
        }
    }

    /// Returns the positions of a stream behind the logs of this block.
    fn positions(self, block: B256) -> BehindLogs {
        match self {
            Self::Adopted => BehindLogs::of(block),
            Self::Removed(branch) => branch.within(block),
        }
    }
}

impl Tables {
    /// Delivers a block's receipts: one event for each filter that matches any of them, shared by all its
    /// subscribers. A reorg does not take receipts back (PROTOCOL R5), so none are kept.
    ///
    /// Builds no event for clients that are closing: the bytes copied under the lock are bounded by the size of the
    /// queues.
    pub(super) fn receipts(
        &mut self,
        block: &BlockReceipts,
        at: Position,
        wants: impl Fn(&Subscriber) -> bool,
        due: &mut DirtyClients,
        now: Moment,
    ) {
        let (fronts, mut gate) = (self.fronts(), std::mem::take(&mut self.gate));
        let mut bodies = Bodies::new(&block.receipts);
        self.receipts.for_each_match(&block.receipts, |positions, subscribers| {
            let takes = |subscriber: &&Subscriber| wants(subscriber) && is_open(subscriber);
            let mut wanting = subscribers.filter(takes).peekable();
            if wanting.peek().is_some() {
                let one = |json: &[u8]| self.one_of_block(Kind::Receipts, json, block.seen, block.block.hash);
                let batch = bodies.of(positions, one);
                gate.send(at, &fronts, wanting, &batch, due, now);
            }
        });
        self.gate = gate;
    }

    /// Delivers a block's transactions, or their removal. Encodes each transaction at most once in each form; all
    /// subscribers of a filter share its events. Returns the transactions delivered to at least one subscription with
    /// `includeRemoved`.
    #[expect(
        clippy::too_many_arguments,
        reason = "a place, a predicate and the fan-out's own three"
    )]
    pub(super) fn mined(
        &mut self,
        transactions: &[Transaction],
        fate: Fate,
        seen: Instant,
        place: Position,
        wants: impl Fn(&Subscriber) -> bool,
        due: &mut DirtyClients,
        now: Moment,
    ) -> Vec<Transaction> {
        let (fronts, mut gate) = (self.fronts(), std::mem::take(&mut self.gate));
        let mut encoded: Vec<PerForm<Event>> = transactions.iter().map(|_| PerForm::default()).collect();
        let mut sent = BTreeSet::new();
        self.mined
            .for_each_match(transactions, |filter, positions, subscribers| {
                let mut wanting = subscribers.filter(|subscriber| wants(subscriber)).peekable();
                if (fate == Fate::Removed && !filter.removed) || wanting.peek().is_none() {
                    return;
                }
                if filter.removed {
                    sent.extend(positions);
                }
                let encode = |&at: &usize| {
                    let event = || self.event(&fate.json(&transactions[at], filter.form));
                    encoded[at].get(filter.form, event).clone()
                };
                let events = positions.iter().map(encode).collect();
                gate.send(
                    place,
                    &fronts,
                    wanting,
                    &Batch::new(Kind::Mined, events, seen),
                    due,
                    now,
                );
            });
        self.gate = gate;
        sent.into_iter().map(|at: usize| transactions[at].alone()).collect()
    }

    /// Delivers a block's logs, or their removal. Encodes each log at most once; all subscribers of a filter share
    /// its events, whatever their block ranges.
    ///
    /// Builds no batch for clients that are closing: a client that subscribes to the same logs by many filters is
    /// closed when its queue is full.
    pub(super) fn logs(
        &mut self,
        block: &BlockLogs,
        fate: LogFate,
        place: Position,
        wants: impl Fn(&Subscriber) -> bool,
        due: &mut DirtyClients,
        now: Moment,
    ) {
        let ids = self.marked.has(Kind::Logs).then(|| fate.positions(block.block.hash));
        let (fronts, mut gate) = (self.fronts(), std::mem::take(&mut self.gate));
        let mut index = std::mem::take(&mut self.logs);
        let mut encoded: Vec<Option<Event>> = vec![None; block.logs.len()];
        index.for_each_match(&block.logs, block.block.number, |positions, takers| {
            let wanting = || takers.iter().filter(|subscriber| wants(subscriber));
            if !wanting().any(is_open) {
                return;
            }
            let events = positions
                .iter()
                .map(|&at| {
                    let log = &block.logs[at as usize];
                    let encode = || {
                        let id = ids.as_ref().map(|ids| ids.log(log.index));
                        self.event(&fate.payload(log)).at(id)
                    };
                    encoded[at as usize].get_or_insert_with(encode).clone()
                })
                .collect();
            let batch = if self.compresses && positions.len() > 1 && share_a_series(takers.iter()) {
                Batch::in_series(Kind::Logs, events, block.seen)
            } else {
                Batch::new(Kind::Logs, events, block.seen)
            };
            gate.send(place, &fronts, wanting(), &batch, due, now);
        });
        self.logs = index;
        self.gate = gate;
    }
}
