//! Addresses and topics of a `logs` filter, and the index keys built from them. No I/O, no clock.
//!
//! A key combines one value from each field that the filter names: address, topics 0 to 3. A log has one such
//! combination for each set of fields, so the filters under its keys are exactly those that match, however many
//! values they share. A filter with too many combinations is indexed by some of its fields and then compared with the
//! log; such filters are few, since each counts as many index entries.

use std::hash::{BuildHasher, RandomState};

use alloy_primitives::Address;

use super::topics::Topics;
use crate::chain::Log;

/// The addresses and topics of a filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Criteria {
    /// Allowed addresses: sorted, without duplicates; empty means any.
    pub addresses: Box<[Address]>,
    /// Allowed topics for each position.
    pub topics: Topics,
}

/// Address and topics 0 to 3.
const FIELDS: usize = 5;

/// Most keys of one filter, unless the filter names more values in a single field: then one key for each of these
/// values.
const MAX_KEYS: usize = 256;

/// Index entries charged for a filter that is indexed by only some of its fields: by default a client can have two
/// hundred of them, each of which may have to be compared with each log of a block, at some 50 ns a time.
const INEXACT_ENTRIES: usize = 1_000;

/// Fields that a key combines, as bits (bit 0 the address), and the least number of topics of a log with that key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    fields: u8,
    topics: u8,
}

impl Shape {
    fn fields(self) -> impl Iterator<Item = usize> {
        (0..FIELDS).filter(move |field| self.fields & (1 << field) != 0)
    }
}

impl Criteria {
    /// Checks if the filter matches a log, as geth's `filterLogs` does.
    pub(super) fn matches(&self, log: &Log) -> bool {
        (self.addresses.is_empty() || self.addresses.binary_search(&log.address).is_ok())
            && self.topics.positions() <= log.topics.len()
            && self
                .topics
                .iter()
                .zip(&log.topics)
                .all(|(wanted, topic)| wanted.is_empty() || wanted.binary_search(topic).is_ok())
    }

    /// Counts the values that the filter names in a field; 0 means any.
    fn values(&self, field: usize) -> usize {
        match field.checked_sub(1) {
            None => self.addresses.len(),
            Some(position) => self.topics.at(position).len(),
        }
    }

    /// Chooses the fields that the keys combine: the named ones that give the most keys within the bound. Returns the
    /// number of keys, too.
    fn keyed(&self) -> (Shape, usize) {
        let values: [usize; FIELDS] = std::array::from_fn(|field| self.values(field));
        let most = values.into_iter().max().unwrap_or(0).max(MAX_KEYS);
        let combinations = |shape: &Shape| shape.fields().map(|field| values[field]).product::<usize>();
        let named = (0..FIELDS).fold(0, |named, field| named | u8::from(values[field] > 0) << field);
        let topics = self.topics.positions() as u8;
        let shapes = (0..1u8 << FIELDS)
            .filter(|fields| fields & !named == 0)
            .map(|fields| Shape { fields, topics });
        shapes
            .map(|shape| (shape, combinations(&shape)))
            .filter(|(_, keys)| *keys <= most)
            .max_by_key(|(shape, keys)| (*keys, shape.fields.count_ones()))
            .unwrap_or((Shape { fields: 0, topics }, 1))
    }

    /// Returns the fields that the keys combine.
    pub(super) fn shape(&self) -> Shape {
        self.keyed().0
    }

    /// Returns the number of index entries that the filter is charged, at least its number of keys.
    pub(super) fn index_entries(&self) -> usize {
        let (shape, keys) = self.keyed();
        let is_exact = (0..FIELDS).all(|field| self.values(field) == 0 || shape.fields & (1 << field) != 0);
        if is_exact { keys } else { keys.max(INEXACT_ENTRIES) }
    }
}

/// Builder of keys. A key is a sum of seeded hashes of its words: outsiders cannot construct two keys that collide,
/// and a log's words are hashed once for all its keys.
#[derive(Debug, Default)]
pub(super) struct Keys(RandomState);

impl Keys {
    /// Returns the part that all keys of a shape have in common.
    pub(super) fn base(&self, shape: Shape) -> u64 {
        self.0.hash_one(shape)
    }

    /// Returns a seeded hash of all addresses and topics of a filter.
    pub(super) fn whole(&self, criteria: &Criteria) -> u64 {
        self.0.hash_one(criteria)
    }

    fn word(&self, field: usize, word: &[u8]) -> u64 {
        self.0.hash_one((field, word))
    }

    /// Returns the keys of a filter, ascending, without duplicates.
    pub(super) fn of(&self, criteria: &Criteria) -> Vec<u64> {
        let shape = criteria.shape();
        let mut keys = vec![self.base(shape)];
        for field in shape.fields() {
            let words: Vec<u64> = match field.checked_sub(1) {
                None => criteria
                    .addresses
                    .iter()
                    .map(|own| self.word(field, own.as_slice()))
                    .collect(),
                Some(position) => {
                    let topics = criteria.topics.at(position).iter();
                    topics.map(|own| self.word(field, own.as_slice())).collect()
                }
            };
            let with = |key: &u64| words.iter().map(|word| key.wrapping_add(*word)).collect::<Vec<_>>();
            keys = keys.iter().flat_map(with).collect();
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Hashes the words of a log.
    pub(super) fn words(&self, log: &Log) -> Words {
        let mut fields = [None; FIELDS];
        fields[0] = Some(self.word(0, log.address.as_slice()));
        for (field, topic) in (1..).zip(&log.topics).take(FIELDS - 1) {
            fields[field] = Some(self.word(field, topic.as_slice()));
        }
        let topics = log.topics.len();
        Words { fields, topics }
    }
}

/// Hashed words of a log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    fields: [Option<u64>; FIELDS],
    topics: usize,
}

impl Words {
    /// Returns the log's key of a shape with this base; `None` if the log has too few topics.
    pub(super) fn key(&self, shape: Shape, base: u64) -> Option<u64> {
        if usize::from(shape.topics) > self.topics {
            return None;
        }
        let mut fields = shape.fields();
        fields.try_fold(base, |key, field| Some(key.wrapping_add(self.fields[field]?)))
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;

    use super::*;

    /// Builds criteria with so many values in each field; a topic position with 0 values is a wildcard.
    fn named(addresses: u64, topics: &[u64]) -> Criteria {
        let word = |number: u64| B256::from(alloy_primitives::U256::from(number));
        let topics: Vec<Box<[B256]>> = topics.iter().map(|own| (0..*own).map(word).collect()).collect();
        Criteria {
            addresses: (0..addresses).map(|own| Address::from_word(word(own))).collect(),
            topics: Topics::new(&topics),
        }
    }

    /// Fields that are keyed, keys that result, and index entries that a client is charged.
    #[test]
    fn a_filter_is_found_by_all_its_fields_or_by_as_many_combinations_as_may_be() {
        for (addresses, topics, fields, keys, entries) in [
            (0, &[][..], 0b0_0000, 1, 1),
            (0, &[0, 0], 0b0_0000, 1, 1),
            (1, &[], 0b0_0001, 1, 1),
            (1, &[1, 1, 1, 1], 0b1_1111, 1, 1),
            (0, &[1, 0, 1], 0b0_1010, 1, 1),
            (2, &[3, 0, 4], 0b0_1011, 24, 24),
            (16, &[16], 0b0_0011, 256, 256),
            (1000, &[1], 0b0_0011, 1000, 1000),
            (0, &[1, 1000], 0b0_0110, 1000, 1000),
            // Too many combinations: indexed by the best subset, and charged for it.
            (1000, &[2], 0b0_0001, 1000, 1000),
            (0, &[17, 16], 0b0_0010, 17, 1000),
            (0, &[10, 10, 10], 0b0_1100, 100, 1000),
            (1, &[1, 1000, 1000], 0b0_1011, 1000, 1000),
        ] {
            let criteria = named(addresses, topics);
            let (shape, combinations) = criteria.keyed();
            let case = (addresses, topics);
            assert_eq!(shape.fields.count_ones(), u32::count_ones(fields), "{case:?} {shape:?}");
            assert_eq!(combinations, keys, "{case:?}");
            assert_eq!(Keys::default().of(&criteria).len(), keys, "{case:?}");
            assert_eq!(criteria.index_entries(), entries, "{case:?}");
        }
    }
}
