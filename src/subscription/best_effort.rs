//! Best-effort events: pending transactions, events of kinds that only the node knows, and the node's sync state.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use alloy_primitives::B256;
use bytes::Bytes;
use tokio::time::Instant;

use super::flush::{DirtyClients, answered, is_answered, send};
use super::pending_group::PendingGroup;
use super::subscriber::Subscriber;
use super::tables::{IndexSlot, Tables};
use crate::backplane::{BestEffortEvent, TransactionForm};
use crate::chain::Transaction;
use crate::clock::Moment;
use crate::delivery::{Batch, CloseReason, Event, Kind, SubscriptionId};

impl Tables {
    /// Adds a transaction to the group, unless it is known or no client subscribes to it.
    fn add_pending(&mut self, form: TransactionForm, json: Bytes, seen: Instant, group: &mut PendingGroup) {
        match form {
            TransactionForm::Hash => self.add_hash(json, seen, group),
            TransactionForm::Full => self.add_whole(json, seen, group),
        }
    }

    fn add_hash(&mut self, json: Bytes, seen: Instant, group: &mut PendingGroup) {
        // An unreadable hash cannot be deduplicated and is delivered.
        let known =
            serde_json::from_slice(&json).is_ok_and(|hash| !self.seen_pending.is_new(TransactionForm::Hash, hash));
        if !known && !self.pending_hashes.is_empty() {
            group.add_hash(json, seen);
        }
    }

    fn add_whole(&mut self, json: Bytes, seen: Instant, group: &mut PendingGroup) {
        let read = Transaction::parse(json.clone()).ok();
        if let Some(read) = &read
            && !self.seen_pending.is_new(TransactionForm::Full, read.hash)
        {
            return;
        }
        // An unreadable transaction matches only filters without addresses.
        let (from, to) = read.as_ref().map_or((None, None), |read| (read.from, read.to));
        let selecting = self.pending.matching_entries(from, to);
        if !selecting.is_empty() {
            group.add_whole(json, read, &selecting, seen);
        }
    }

    /// Delivers a group: one batch for each filter, shared by its subscribers.
    fn send_pending(&self, group: &PendingGroup, due: &mut DirtyClients, now: Moment) {
        let encode = |payload: &[u8]| self.event(payload);
        if let Some(batch) = group.hashes(encode) {
            send(answered(&self.pending_hashes), &batch, due, now);
        }
        let form_of = |entry| self.pending.entry(entry).0.form;
        group.for_each_filter(form_of, encode, |entry, batch| {
            let (_, subscribers) = self.pending.entry(entry);
            send(subscribers.filter(is_answered), batch, due, now);
        });
    }

    /// Marks a subscription to pending transactions as accepted by the node, unless it ended meanwhile.
    pub(super) fn accept_pending(&mut self, place: IndexSlot, id: SubscriptionId) {
        let subscriber = match place {
            IndexSlot::PendingHashes(at) => self.pending_hashes.get(at),
            IndexSlot::Pending(slot) => self.pending.get(slot),
            _ => None,
        };
        if subscriber.is_some_and(|subscriber| subscriber.recipient.id() == id) {
            self.accepted_pending.insert(id);
        }
    }

    /// Closes clients whose subscriptions of this form a node had accepted, now that the node in use refuses them.
    pub(super) fn close_refused_pending(&self, form: TransactionForm) {
        let refused: &mut dyn Iterator<Item = &Subscriber> = match form {
            TransactionForm::Hash => &mut self.pending_hashes.iter().map(|(_, subscriber)| subscriber),
            TransactionForm::Full => &mut self.pending.iter(),
        };
        for subscriber in refused {
            if self.accepted_pending.contains(&subscriber.recipient.id()) {
                subscriber.writer.close(CloseReason::NotServed);
            }
        }
    }

    /// Returns the node's latest sync state, for new subscribers.
    pub(super) fn sync_state(&self) -> Option<&Arc<Batch>> {
        self.sync_state.as_ref().map(|(_, batch)| batch)
    }

    /// Fans out the oldest of these events, and with a pending transaction the ones right behind it that may join its
    /// group; removes them from `arrived`. Returns how many early events were evicted to keep this one.
    pub(super) fn best_effort(
        &mut self,
        arrived: &mut VecDeque<BestEffortEvent>,
        due: &mut DirtyClients,
        now: Moment,
    ) -> u64 {
        let Some(event) = arrived.pop_front() else { return 0 };
        match event {
            BestEffortEvent::Pending { form, json, seen } => {
                let mut group = PendingGroup::default();
                self.add_pending(form, json, seen, &mut group);
                while let Some(BestEffortEvent::Pending { form, json, seen }) =
                    arrived.pop_front_if(|next| joins(&group, next))
                {
                    self.add_pending(form, json, seen, &mut group);
                }
                self.send_pending(&group, due, now);
            }
            BestEffortEvent::Passthrough { of, method, json, seen } => {
                let event = match of.namespace() {
                    _ if of.is_of_its_own() => Event::naming(&String::from_utf8_lossy(&method), &json),
                    "eth" => self.event(&json),
                    other => Event::within(other, &json),
                };
                return self.passing.event(&of, event, seen, due, now);
            }
            BestEffortEvent::Syncing(state) => {
                if self.sync_state.as_ref().is_some_and(|(known, _)| *known == state) {
                    return 0;
                }
                let batch = self.one(Kind::Syncing, &sync_payload(&state), Instant::now());
                // A state is announced once, so it is queued even for subscribers whose answer is not queued yet.
                let everyone = self.syncing.iter().map(|(_, subscriber)| subscriber);
                send(everyone, &batch, due, now);
                self.sync_state = Some((state, batch));
            }
        }
        0
    }
}

/// Checks if an event joins the group, as its next pending transaction.
fn joins(group: &PendingGroup, event: &BestEffortEvent) -> bool {
    match event {
        BestEffortEvent::Pending { json, .. } => group.has_room(json.len()),
        BestEffortEvent::Passthrough { .. } | BestEffortEvent::Syncing(_) => false,
    }
}

/// Converts an answer to `eth_syncing` into the payload of geth's `syncing` subscription (PROTOCOL 1.8): `false`
/// unchanged, the progress as an object with Go's field names and plain numbers.
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

/// Hashes of recently seen pending transactions, by form: a failover must not repeat them (E8).
#[derive(Debug, Default)]
pub(super) struct RecentHashes {
    known: HashSet<(TransactionForm, B256)>,
    order: VecDeque<(TransactionForm, B256)>,
}

/// Entries kept: about a minute of a busy mainnet node.
const RECENT_PENDING: usize = 16_384;

impl RecentHashes {
    pub(super) fn is_new(&mut self, form: TransactionForm, hash: B256) -> bool {
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
        let mut recent = RecentHashes::default();
        let hash = B256::repeat_byte(1);
        for form in [TransactionForm::Hash, TransactionForm::Full] {
            assert!(recent.is_new(form, hash));
            assert!(!recent.is_new(form, hash));
        }
    }
}
