//! From an event to the filters that want it. No I/O, no clock.
//!
//! Equal filters are one entry. Each entry hangs under the keys of its filter, and an event has a handful of keys at which
//! it is looked up: the cost grows with matches, not with filters.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use alloy_primitives::{Address, B256};
use slab::Slab;

use super::LogFilter;
use crate::chain::Log;

/// What an index can be made of.
pub trait Filter: Eq + Hash {
    /// A place to look. `HashMap`'s own hasher is seeded, for clients choose the keys.
    type Key: Eq + Hash;

    /// The keys under which it hangs, at least one: an event that it wants has one of them.
    fn keys(&self) -> Vec<Self::Key>;
}

#[derive(Debug)]
struct Entry<F, S> {
    filter: Arc<F>,
    subscribers: Slab<S>,
}

/// Filters with their subscribers.
#[derive(Debug)]
pub struct Index<F: Filter, S> {
    entries: Slab<Entry<F, S>>,
    by_filter: HashMap<Arc<F>, usize>,
    postings: HashMap<F::Key, Vec<usize>>,
    subscribers: usize,
}

/// Where a subscriber was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    entry: usize,
    subscriber: usize,
}

impl<F: Filter, S> Default for Index<F, S> {
    fn default() -> Self {
        Self {
            entries: Slab::new(),
            by_filter: HashMap::new(),
            postings: HashMap::new(),
            subscribers: 0,
        }
    }
}

impl<F: Filter, S> Index<F, S> {
    /// Adds a subscriber.
    pub fn insert(&mut self, filter: F, subscriber: S) -> Slot {
        let entry = match self.by_filter.get(&filter) {
            Some(&entry) => entry,
            None => {
                let filter = Arc::new(filter);
                let entry = self.entries.insert(Entry {
                    filter: filter.clone(),
                    subscribers: Slab::with_capacity(1),
                });
                for key in filter.keys() {
                    self.postings.entry(key).or_default().push(entry);
                }
                self.by_filter.insert(filter, entry);
                entry
            }
        };
        self.subscribers += 1;
        Slot {
            entry,
            subscriber: self.entries[entry].subscribers.insert(subscriber),
        }
    }

    /// Takes a subscriber out; nothing happens where it is gone already.
    pub fn remove(&mut self, slot: Slot) -> Option<S> {
        let entry = self.entries.get_mut(slot.entry)?;
        let subscriber = entry.subscribers.try_remove(slot.subscriber)?;
        self.subscribers -= 1;
        if entry.subscribers.is_empty() {
            let filter = self.entries.remove(slot.entry).filter;
            self.by_filter.remove(&filter);
            for key in filter.keys() {
                if let Some(posting) = self.postings.get_mut(&key) {
                    if let Some(at) = posting.iter().position(|&entry| entry == slot.entry) {
                        posting.swap_remove(at);
                    }
                    if posting.is_empty() {
                        self.postings.remove(&key);
                    }
                }
            }
        }
        Some(subscriber)
    }

    /// A subscriber, while it is here.
    pub(super) fn get(&self, slot: Slot) -> Option<&S> {
        self.entries.get(slot.entry)?.subscribers.get(slot.subscriber)
    }

    /// Number of subscribers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.subscribers
    }

    /// Whether nobody subscribed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subscribers == 0
    }

    /// Number of distinct filters.
    #[must_use]
    pub fn filters(&self) -> usize {
        self.entries.len()
    }

    /// All subscribers.
    pub fn iter(&self) -> impl Iterator<Item = &S> {
        self.entries
            .iter()
            .flat_map(|(_, entry)| entry.subscribers.iter().map(|(_, subscriber)| subscriber))
    }

    /// The distinct filters.
    pub(super) fn each_filter(&self) -> impl Iterator<Item = &F> {
        self.entries.iter().map(|(_, entry)| &*entry.filter)
    }

    /// The entries that hang under these keys, again and again where they hang under several.
    pub(super) fn under(&self, keys: impl Iterator<Item = F::Key>) -> impl Iterator<Item = usize> {
        keys.filter_map(|key| self.postings.get(&key)).flatten().copied()
    }

    /// A filter and who wants what it selects.
    pub(super) fn entry(&self, entry: usize) -> (&F, impl Iterator<Item = &S>) {
        let Entry { filter, subscribers } = &self.entries[entry];
        (filter, subscribers.iter().map(|(_, subscriber)| subscriber))
    }
}

/// Where a filter of logs hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogKey {
    /// A value at topic position 1 to 3.
    Topic(u8, B256),
    /// An address with a first topic.
    Event(Address, B256),
    /// An address.
    Address(Address),
    /// A first topic from any address.
    First(B256),
    /// Nothing in particular.
    Any,
}

/// An address-and-event filter hangs under each pair; beyond this many pairs under the addresses alone.
const MAX_PAIRS: usize = 256;

impl Filter for LogFilter {
    type Key = LogKey;

    /// Its most selective dimension. The keys are of one kind and of one topic position, so no log meets an entry twice.
    fn keys(&self) -> Vec<LogKey> {
        let fewest = (1..=3u8)
            .filter(|&at| !self.topics_at(at.into()).is_empty())
            .min_by_key(|&at| self.topics_at(at.into()).len());
        if let Some(at) = fewest {
            return self
                .topics_at(at.into())
                .iter()
                .map(|topic| LogKey::Topic(at, *topic))
                .collect();
        }
        let (addresses, first) = (self.addresses(), self.topics_at(0));
        match (addresses.is_empty(), first.is_empty()) {
            (true, true) => vec![LogKey::Any],
            (true, false) => first.iter().map(|topic| LogKey::First(*topic)).collect(),
            (false, false) if addresses.len() * first.len() <= MAX_PAIRS => addresses
                .iter()
                .flat_map(|address| first.iter().map(|topic| LogKey::Event(*address, *topic)))
                .collect(),
            (false, _) => addresses.iter().map(|address| LogKey::Address(*address)).collect(),
        }
    }
}

impl<S> Index<LogFilter, S> {
    /// For each filter that wants any of these logs of block `number`: the positions of those logs, ascending, and the
    /// filter's subscribers.
    pub fn for_each_match(&self, logs: &[Log], number: u64, mut each: impl FnMut(&[u32], &Slab<S>)) {
        if self.is_empty() {
            return;
        }
        let mut hits: HashMap<usize, Vec<u32>> = HashMap::new();
        for (position, log) in logs.iter().enumerate() {
            let first = log.topics.first();
            let keys = [
                Some(LogKey::Any),
                Some(LogKey::Address(log.address)),
                first.map(|topic| LogKey::First(*topic)),
                first.map(|topic| LogKey::Event(log.address, *topic)),
                log.topics.get(1).map(|topic| LogKey::Topic(1, *topic)),
                log.topics.get(2).map(|topic| LogKey::Topic(2, *topic)),
                log.topics.get(3).map(|topic| LogKey::Topic(3, *topic)),
            ];
            for entry in self.under(keys.into_iter().flatten()) {
                if self.entries[entry].filter.matches(log, number) {
                    hits.entry(entry).or_default().push(position as u32);
                }
            }
        }
        for (entry, positions) in hits {
            each(&positions, &self.entries[entry].subscribers);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::chain::{BlockLogs, BlockRef};

    fn block(logs: &[(u8, Vec<u8>)]) -> BlockLogs {
        let block = BlockRef {
            number: 7,
            hash: B256::ZERO,
        };
        let items: Vec<_> = logs
            .iter()
            .enumerate()
            .map(|(i, (address, topics))| {
                serde_json::json!({
                    "address": Address::repeat_byte(*address),
                    "topics": topics.iter().map(|t| B256::repeat_byte(*t)).collect::<Vec<_>>(),
                    "blockHash": block.hash, "blockNumber": "0x7", "logIndex": format!("0x{i:x}"),
                })
            })
            .collect();
        let answer = Bytes::from(serde_json::to_vec(&items).expect("json"));
        BlockLogs::parse(block, &answer, Instant::now()).expect("logs")
    }

    fn small() -> impl Strategy<Value = u8> {
        0u8..4
    }

    fn filter() -> impl Strategy<Value = LogFilter> {
        let set = || prop::collection::vec(small(), 0..3);
        (set(), prop::collection::vec(set(), 0..=4)).prop_map(|(addresses, topics)| {
            LogFilter::of(
                addresses.into_iter().map(Address::repeat_byte).collect(),
                topics
                    .into_iter()
                    .map(|at| at.into_iter().map(B256::repeat_byte).collect())
                    .collect(),
            )
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_scan_finds(
            filters in prop::collection::vec(filter(), 0..40),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            logs in prop::collection::vec((small(), prop::collection::vec(small(), 0..=4)), 0..30),
        ) {
            let block = block(&logs);
            let mut index = Index::default();
            let mut alive: Vec<_> = filters.iter().enumerate().map(|(i, f)| (i, f.clone(), index.insert(f.clone(), i))).collect();
            for at in gone {
                if !alive.is_empty() {
                    let (i, _, slot) = alive.swap_remove(at.index(alive.len()));
                    prop_assert_eq!(index.remove(slot), Some(i));
                    prop_assert_eq!(index.remove(slot).filter(|&other| other == i), None);
                }
            }
            prop_assert_eq!(index.len(), alive.len());
            let mut found: Vec<(usize, Vec<u32>)> = Vec::new();
            index.for_each_match(&block.logs, 7, |positions, subscribers| {
                found.extend(subscribers.iter().map(|(_, &i)| (i, positions.to_vec())));
            });
            found.sort();
            let mut expected: Vec<(usize, Vec<u32>)> = alive
                .iter()
                .map(|(i, f, _)| (*i, (0..logs.len() as u32).filter(|&at| f.matches(&block.logs[at as usize], 7)).collect::<Vec<_>>()))
                .filter(|(_, positions)| !positions.is_empty())
                .collect();
            expected.sort();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn nothing_stays_when_all_have_left() {
        let mut index = Index::default();
        let filters = [
            LogFilter::default(),
            LogFilter::of(vec![Address::ZERO], vec![vec![B256::ZERO]]),
        ];
        let slots: Vec<_> = filters
            .iter()
            .cycle()
            .take(10)
            .map(|f| index.insert(f.clone(), ()))
            .collect();
        assert_eq!((index.filters(), index.len()), (2, 10));
        for slot in slots {
            index.remove(slot);
        }
        assert!(
            index.is_empty() && index.by_filter.is_empty() && index.postings.is_empty() && index.entries.is_empty()
        );
    }

    /// The naive matcher that the predicate is held against: PROTOCOL 1.5, read literally.
    fn naive(addresses: &[u8], topics: &[Vec<u8>], log: &(u8, Vec<u8>)) -> bool {
        (addresses.is_empty() || addresses.contains(&log.0))
            && topics.len() <= log.1.len()
            && topics
                .iter()
                .zip(&log.1)
                .all(|(wanted, topic)| wanted.is_empty() || wanted.contains(topic))
    }

    proptest! {
        #[test]
        fn the_canonical_filter_matches_as_the_typed_one(
            addresses in prop::collection::vec(small(), 0..3),
            topics in prop::collection::vec(prop::collection::vec(small(), 0..3), 0..=4),
            log in (small(), prop::collection::vec(small(), 0..=4)),
        ) {
            let typed = serde_json::json!({
                "address": addresses.iter().map(|a| Address::repeat_byte(*a)).collect::<Vec<_>>(),
                "topics": topics.iter().map(|at| at.iter().map(|t| B256::repeat_byte(*t)).collect::<Vec<_>>()).collect::<Vec<_>>(),
            });
            let filter = LogFilter::parse(&typed).expect("a filter");
            let block = block(std::slice::from_ref(&log));
            prop_assert_eq!(filter.matches(&block.logs[0], 7), naive(&addresses, &topics, &log));
            prop_assert!(filter.query().may_match(&block.bloom()) || !naive(&addresses, &topics, &log), "no bloom hides a match");
        }
    }
}
