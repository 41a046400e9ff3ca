//! All subscriptions of all clients, behind one lock.
//!
//! Sessions subscribe and unsubscribe, the dispatcher fans out, each in one short hold of the lock. That makes the
//! promises simple: whoever is in the tables when a block is fanned out gets all of it, whoever is not gets none of it,
//! and after `unsubscribe` returned nothing more is queued. Time under the lock is some tens of nanoseconds for each
//! delivery; due happen after it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use alloy_primitives::B256;
use bytes::Bytes;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::watch;

use super::{Index, Slot, Topic};
use crate::backplane::{ChainEvent, Gossip, PendingForm, Wanted};
use crate::chain::{BlockLogs, Log};
use crate::clock::Clock;
use crate::delivery::{Batch, CloseReason, Event, Kind, Millis, Outbox, Recipient, SubscriptionId};
use crate::telemetry::{KindLabel, Metrics};

/// Blocks whose delivery is remembered, so that a newcomer is never told of the removal of what it was never sent.
const REMEMBERED: usize = 4096;

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
    Pending(PendingForm, usize),
    Syncing(usize),
}

impl Place {
    fn kind(self) -> Kind {
        match self {
            Self::Heads(_) => Kind::Heads,
            Self::Logs(_) => Kind::Logs,
            Self::Pending(..) => Kind::Pending,
            Self::Syncing(_) => Kind::Syncing,
        }
    }
}

/// A subscription as the fan-out sees it.
#[derive(Debug)]
struct Subscriber {
    recipient: Arc<Recipient>,
    outbox: Arc<Outbox>,
}

#[derive(Debug, Default)]
struct Tables {
    heads: Slab<Subscriber>,
    logs: Index<Subscriber>,
    pending_hashes: Slab<Subscriber>,
    pending_full: Slab<Subscriber>,
    syncing: Slab<Subscriber>,
    /// The node's last word on its sync state, for newcomers.
    sync_state: Option<(Bytes, Arc<Batch>)>,
    /// Counts fan-outs of logs.
    sequence: u64,
    delivered: HashMap<B256, u64>,
    delivered_order: VecDeque<B256>,
    seen_pending: Recent,
}

/// The tables of all subscriptions.
#[derive(Debug)]
pub struct Registry {
    tables: Mutex<Tables>,
    wanted: watch::Sender<Wanted>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Registry {
    /// Empty tables; `wanted` tells the upstreams what is subscribed to.
    #[must_use]
    pub fn new(wanted: watch::Sender<Wanted>, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self {
            tables: Mutex::default(),
            wanted,
            clock,
            metrics,
        }
    }

    /// Adds a subscription. From now on its events are queued; they leave when the answer did (see [`Recipient`]).
    #[must_use]
    pub fn subscribe(&self, topic: Topic, outbox: &Arc<Outbox>) -> Subscription {
        let mut tables = self.tables.lock();
        let recipient = Recipient::new(SubscriptionId::random(), tables.sequence + 1);
        let subscriber = Subscriber {
            recipient: recipient.clone(),
            outbox: outbox.clone(),
        };
        let place = match topic {
            Topic::Heads => Place::Heads(tables.heads.insert(subscriber)),
            Topic::Logs(filter) => Place::Logs(tables.logs.insert(filter, subscriber)),
            Topic::Pending(form) => Place::Pending(form, tables.pending(form).insert(subscriber)),
            Topic::Syncing => {
                // A newcomer is told the present state at once, as geth does (PROTOCOL 1.8).
                if let Some((_, batch)) = &tables.sync_state
                    && outbox.push_events(&recipient, batch, self.clock.now())
                {
                    outbox.flush();
                }
                Place::Syncing(tables.syncing.insert(subscriber))
            }
        };
        self.metrics
            .subscriptions
            .get_or_create(&KindLabel {
                kind: place.kind().label(),
            })
            .inc();
        self.publish_wanted(&mut tables);
        Subscription { recipient, place }
    }

    /// Ends a subscription: nothing more is queued for it, and what was queued is forgotten.
    pub fn unsubscribe(&self, subscription: &Subscription) {
        let mut tables = self.tables.lock();
        let gone = match subscription.place {
            Place::Heads(at) => tables.heads.try_remove(at),
            Place::Logs(slot) => tables.logs.remove(slot),
            Place::Pending(form, at) => tables.pending(form).try_remove(at),
            Place::Syncing(at) => tables.syncing.try_remove(at),
        };
        if let Some(subscriber) = gone {
            subscriber.outbox.forget(subscription.recipient.id());
            self.metrics
                .subscriptions
                .get_or_create(&KindLabel {
                    kind: subscription.place.kind().label(),
                })
                .dec();
        }
        self.publish_wanted(&mut tables);
    }

    fn publish_wanted(&self, tables: &mut Tables) {
        self.metrics.filters.set(tables.logs.filters() as i64);
        let wanted = Wanted {
            pending_hashes: !tables.pending_hashes.is_empty(),
            pending_full: !tables.pending_full.is_empty(),
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

    /// Fans out chain events, in order, and due each client once.
    pub fn fan_out(&self, events: impl Iterator<Item = ChainEvent>) {
        self.with_tables(|tables, due, now| {
            for event in events {
                tables.chain(event, due, now);
            }
        });
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
    fn pending(&mut self, form: PendingForm) -> &mut Slab<Subscriber> {
        match form {
            PendingForm::Hash => &mut self.pending_hashes,
            PendingForm::Full => &mut self.pending_full,
        }
    }

    fn chain(&mut self, event: ChainEvent, due: &mut Due, now: Millis) {
        match event {
            ChainEvent::Head(header) => {
                if !self.heads.is_empty() {
                    let batch = one(Kind::Heads, &header.json, header.seen);
                    send(answered(&self.heads, self.sequence), &batch, due, now);
                }
            }
            ChainEvent::Logs(block) => {
                self.sequence += 1;
                self.remember(block.block.hash);
                let sequence = self.sequence;
                let takes = &mut |subscriber: &Subscriber| subscriber.recipient.takes(sequence);
                self.logs(&block, |log| Event::new(log.json()), takes, due, now);
            }
            ChainEvent::Removed(block) => {
                let Some(delivered) = self.delivered.remove(&block.block.hash) else {
                    return;
                };
                let told = &mut |subscriber: &Subscriber| subscriber.recipient.was_sent(delivered);
                self.logs(&block, |log| Event::new(&log.removed_json()), told, due, now);
            }
            ChainEvent::ContinuityLost => {
                let heads = self.heads.iter().map(|(_, subscriber)| subscriber);
                for subscriber in heads.chain(self.logs.iter()) {
                    subscriber.outbox.close(CloseReason::ContinuityLost);
                }
            }
        }
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
                let mut wanting = subscribers.filter(|subscriber| wants(subscriber)).peekable();
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
                send(wanting, &Batch::new(Kind::Logs, events, block.seen), due, now);
            });
    }

    fn remember(&mut self, hash: B256) {
        self.delivered.insert(hash, self.sequence);
        self.delivered_order.push_back(hash);
        if self.delivered_order.len() > REMEMBERED
            && let Some(oldest) = self.delivered_order.pop_front()
            && !self.delivered_order.contains(&oldest)
        {
            self.delivered.remove(&oldest);
        }
    }

    fn gossip(&mut self, gossip: Gossip, due: &mut Due, now: Millis) {
        match gossip {
            Gossip::Pending { form, json, seen } => {
                if self.seen_pending.is_new(form, &json) {
                    let sequence = self.sequence;
                    let batch = one(Kind::Pending, &json, seen);
                    send(answered(self.pending(form), sequence), &batch, due, now);
                }
            }
            Gossip::Syncing(state) => {
                if self.sync_state.as_ref().is_some_and(|(known, _)| *known == state) {
                    return;
                }
                let batch = one(Kind::Syncing, &sync_payload(&state), Instant::now());
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
    while due.outboxes.len() > together {
        let others = due.outboxes.split_off(due.outboxes.len() - together);
        tokio::spawn(async move { Outbox::flush_all(&others) });
    }
    Outbox::flush_all(&due.outboxes);
}

fn one(kind: Kind, payload: &[u8], seen: Instant) -> Arc<Batch> {
    Batch::new(kind, Box::new([Event::new(payload)]), seen)
}

/// The subscribers whose answer is on its way at least.
fn answered(table: &Slab<Subscriber>, sequence: u64) -> impl Iterator<Item = &Subscriber> {
    table
        .iter()
        .map(|(_, subscriber)| subscriber)
        .filter(move |subscriber| subscriber.recipient.takes(sequence))
}

fn send<'a>(subscribers: impl Iterator<Item = &'a Subscriber>, batch: &Arc<Batch>, due: &mut Due, now: Millis) {
    for subscriber in subscribers {
        if subscriber.outbox.push_events(&subscriber.recipient, batch, now) {
            due.outboxes.push(subscriber.outbox.clone());
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
    known: std::collections::HashSet<(PendingForm, B256)>,
    order: VecDeque<(PendingForm, B256)>,
}

/// About a minute of a busy mainnet node.
const RECENT_PENDING: usize = 16_384;

impl Recent {
    fn is_new(&mut self, form: PendingForm, json: &[u8]) -> bool {
        #[derive(serde::Deserialize)]
        struct Transaction {
            hash: B256,
        }
        let hash = match form {
            PendingForm::Hash => serde_json::from_slice::<B256>(json),
            PendingForm::Full => serde_json::from_slice::<Transaction>(json).map(|transaction| transaction.hash),
        };
        // What has no hash cannot be told apart and passes.
        let Ok(hash) = hash else { return true };
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
        let hash = format!("\"{}\"", B256::repeat_byte(1));
        assert!(recent.is_new(PendingForm::Hash, hash.as_bytes()));
        assert!(!recent.is_new(PendingForm::Hash, hash.as_bytes()));
        assert!(recent.is_new(
            PendingForm::Full,
            format!(r#"{{"hash":{hash},"nonce":"0x0"}}"#).as_bytes()
        ));
    }
}
