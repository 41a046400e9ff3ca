//! Group of pending transactions that leave together: one batch of events for each filter. No I/O, no clock.
//!
//! A client gets a group in one batch per subscription, so in one write, which costs it little more than a single
//! transaction. Filters that select the same transactions in the same form share a batch.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::transaction_event::{PerForm, hash_json};
use crate::backplane::TransactionForm;
use crate::chain::Transaction;
use crate::delivery::{Batch, Event, Kind};

/// Most transactions of a group in each form: as many as a [`Selection`] has bits.
const MAX_TRANSACTIONS: usize = Selection::BITS as usize;

/// Most bytes of JSON in a group of several transactions. A queue drops a batch whole, so a batch must not be much
/// larger than an event: with envelopes this is 24 KiB at most, and the smallest queue (64 KiB) keeps 32 KiB for pending
/// transactions.
const MAX_BYTES: usize = 16 << 10;

/// Most matches of filters in a group of several transactions. They are found under the registry's lock, at some tens
/// of nanoseconds each.
const MAX_MATCHES: usize = 4096;

/// Positions of whole transactions in their group, as bits.
type Selection = u64;

#[derive(Debug)]
struct WholeTransaction {
    json: Bytes,
    /// `None` where it could not be parsed.
    read: Option<Transaction>,
}

/// Pending transactions in the order of arrival, in the forms in which the node announced them.
#[derive(Debug, Default)]
pub(super) struct PendingGroup {
    hashes: Vec<Bytes>,
    whole: Vec<WholeTransaction>,
    /// Whole transactions that each filter selects, by the filter's entry in the index.
    selected: BTreeMap<usize, Selection>,
    matches: usize,
    bytes: usize,
    /// Arrival of the first transaction.
    seen: Option<Instant>,
}

impl PendingGroup {
    /// Checks if a transaction with this many bytes may join the group. The first one may, whatever its size.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.seen.is_none()
            || (self.hashes.len().max(self.whole.len()) < MAX_TRANSACTIONS
                && self.bytes + bytes <= MAX_BYTES
                && self.matches < MAX_MATCHES)
    }

    /// Adds a transaction that the node announced by its hash.
    pub(super) fn add_hash(&mut self, json: Bytes, seen: Instant) {
        self.note(&json, seen);
        self.hashes.push(json);
    }

    /// Adds a whole transaction, which the filters with these entries select.
    pub(super) fn add_whole(&mut self, json: Bytes, read: Option<Transaction>, selecting: &[usize], seen: Instant) {
        self.note(&json, seen);
        let bit = 1 << self.whole.len();
        for &entry in selecting {
            *self.selected.entry(entry).or_default() |= bit;
        }
        self.matches += selecting.len();
        self.whole.push(WholeTransaction { json, read });
    }

    fn note(&mut self, json: &Bytes, seen: Instant) {
        self.bytes += json.len();
        self.seen.get_or_insert(seen);
    }

    /// Returns the events of the transactions announced by hash; `None` if there are none. `encode` makes an event of
    /// a payload.
    pub(super) fn hashes(&self, encode: impl Fn(&[u8]) -> Event) -> Option<Arc<Batch>> {
        let seen = self.seen.filter(|_| !self.hashes.is_empty())?;
        let events = self.hashes.iter().map(|json| encode(json)).collect();
        Some(Batch::new(Kind::Pending, events, seen))
    }

    /// Calls `send` with the entry of each filter that selects any whole transaction, ascending, and its events.
    /// `form_of` returns the form that the filter wants; each transaction is encoded at most once in each form.
    pub(super) fn for_each_filter(
        &self,
        form_of: impl Fn(usize) -> TransactionForm,
        encode: impl Fn(&[u8]) -> Event,
        mut send: impl FnMut(usize, &Arc<Batch>),
    ) {
        let Some(seen) = self.seen else { return };
        let mut encoded: Vec<PerForm<Event>> = self.whole.iter().map(|_| PerForm::default()).collect();
        let mut batches: HashMap<(TransactionForm, Selection), Arc<Batch>> = HashMap::new();
        for (&entry, &selection) in &self.selected {
            let form = form_of(entry);
            let batch = batches.entry((form, selection)).or_insert_with(|| {
                let of_selection = self.whole.iter().zip(&mut encoded).enumerate();
                let of_selection = of_selection.filter(|(position, _)| selection >> position & 1 == 1);
                let event = |(_, (transaction, encoded)): (_, (&WholeTransaction, &mut PerForm<Event>))| {
                    encoded.get(form, || encode(&transaction.payload(form))).clone()
                };
                Batch::new(Kind::Pending, of_selection.map(event).collect(), seen)
            });
            send(entry, batch);
        }
    }
}

impl WholeTransaction {
    fn payload(&self, form: TransactionForm) -> Bytes {
        match (form, &self.read) {
            (TransactionForm::Hash, Some(read)) => hash_json(read).into(),
            _ => self.json.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;
    use expect_test::expect;

    use super::*;
    use crate::delivery::{Prefix, SubscriptionId};

    const FULL: TransactionForm = TransactionForm::Full;
    const HASH: TransactionForm = TransactionForm::Hash;

    fn whole(number: u8) -> (Bytes, Option<Transaction>) {
        let json = Bytes::from(format!(r#"{{"hash":"{}"}}"#, B256::repeat_byte(number)));
        (json.clone(), Transaction::parse(json).ok())
    }

    /// Adds transactions: `h1` by hash, `w2:0,5` whole and selected by the filters 0 and 5, `?3:0` whole and unreadable.
    fn group(story: &str) -> PendingGroup {
        let (mut group, seen) = (PendingGroup::default(), Instant::now());
        for word in story.split_whitespace() {
            let (what, rest) = word.split_at(1);
            let (number, entries) = rest.split_once(':').unwrap_or((rest, ""));
            let entries: Vec<usize> = entries.split(',').filter_map(|entry| entry.parse().ok()).collect();
            let (json, read) = whole(number.parse().unwrap());
            match what {
                "h" => group.add_hash(Bytes::from(format!("\"{number}\"")), seen),
                "w" => group.add_whole(json, read, &entries, seen),
                _ => group.add_whole(Bytes::from(format!("[{number}]")), None, &entries, seen),
            }
        }
        group
    }

    fn text(batch: &Batch) -> String {
        let prefix = Prefix::new(SubscriptionId::random());
        let words = batch.events.iter().map(|event| {
            let [_, _, body] = event.slices(&prefix);
            let body = String::from_utf8_lossy(body).replace("}}", "");
            match body.split_once("0x") {
                Some((before, hash)) => format!("{}{}", if before == "\"" { "" } else { "w" }, &hash[..2]),
                None => body.replace('"', ""),
            }
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Returns a line per batch; filters with odd entries want hashes. A batch that a filter shares with an earlier
    /// one is marked with `=`.
    fn outcome(story: &str) -> String {
        let group = group(story);
        let mut lines = Vec::new();
        lines.extend(
            group
                .hashes(Event::new)
                .map(|batch| format!("hashes: {}", text(&batch))),
        );
        let mut known: Vec<Arc<Batch>> = Vec::new();
        let form_of = |entry| if entry % 2 == 1 { HASH } else { FULL };
        group.for_each_filter(form_of, Event::new, |entry, batch| {
            let is_shared = known.iter().any(|other| Arc::ptr_eq(other, batch));
            lines.push(format!("{entry}:{} {}", if is_shared { "=" } else { "" }, text(batch)));
            known.push(batch.clone());
        });
        lines.join("\n") + "\n"
    }

    #[test]
    fn each_filter_gets_its_transactions_in_order_of_arrival() {
        assert_eq!(outcome(""), "\n");
        expect![[r#"
            hashes: 1 2 3
        "#]]
        .assert_eq(&outcome("h1 h2 h3"));
        expect![[r#"
            0: w01 w02 w04
            1: 01 04
            2:= w01 w02 w04
            3: 02
            4: w02
            7:= 01 04
        "#]]
        .assert_eq(&outcome("w1:0,1,2,7 w2:0,2,3,4 w3 w4:0,1,2,7"));
        // One announcement in both forms; an unreadable transaction has no hash of its own.
        expect![[r#"
            hashes: 1 2
            0: w01 [2]
            1: [2]
        "#]]
        .assert_eq(&outcome("h1 w1:0 h2 ?2:0,1"));
    }

    #[test]
    fn a_group_is_bounded_in_transactions_bytes_and_matches() {
        assert!(group("").has_room(MAX_BYTES + 1), "the first one has room");
        let two = group("h1 w1:0");
        assert!(two.has_room(MAX_BYTES - two.bytes) && !two.has_room(MAX_BYTES + 1 - two.bytes));
        for kind in ["h1 ", "w1 "] {
            assert!(group(&kind.repeat(MAX_TRANSACTIONS - 1)).has_room(1), "{kind}");
            let full = group(&kind.repeat(MAX_TRANSACTIONS));
            assert!(!full.has_room(1) && full.bytes < MAX_BYTES, "{kind}");
        }
        // The last bit is in use.
        let last = outcome(&("w1 ".repeat(MAX_TRANSACTIONS - 1) + "w2:0"));
        assert_eq!(last, "0: w02\n");
        let mut many = group("");
        let (json, read) = whole(1);
        let entries: Vec<usize> = (0..MAX_MATCHES).collect();
        many.add_whole(json.clone(), read.clone(), &entries[1..], Instant::now());
        assert!(many.has_room(1));
        many.add_whole(json, read, &entries[..1], Instant::now());
        assert!(!many.has_room(1));
    }
}
