//! Index from the logs of a block to the filters that match them. No I/O, no clock.
//!
//! Filters with the same addresses and topics are one group, whatever their block ranges. A log is looked up once for
//! each set of fields that keys combine: the cost grows with matches, not with filters, however many values these
//! share.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use hashbrown::HashTable;
use slab::Slab;

use super::LogFilter;
use super::criteria::{Criteria, Keys, Shape};
use super::postings::{Postings, Ranks, small};
use super::ranged::{RangeSlot, Ranged, Takers};
use crate::chain::Log;

/// Filters of logs with their subscribers.
#[derive(Debug)]
pub struct LogIndex<S> {
    groups: Slab<Group<S>>,
    /// Groups by the hash of their criteria, which are in the group only.
    by_criteria: HashTable<u32>,
    postings: Postings<u64>,
    /// Sets of fields that keys combine: a few dozen at most.
    shapes: Vec<ShapeInUse>,
    keys: Keys,
    subscribers: usize,
}

#[derive(Debug)]
struct Group<S> {
    criteria: Criteria,
    ranks: Ranks,
    subscribers: Ranged<S>,
}

#[derive(Debug)]
struct ShapeInUse {
    shape: Shape,
    /// Part that the keys of this shape have in common.
    base: u64,
    groups: usize,
}

/// Handle of a subscriber, for its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSlot {
    group: u32,
    seat: RangeSlot,
}

impl<S> Default for LogIndex<S> {
    fn default() -> Self {
        Self {
            groups: Slab::new(),
            by_criteria: HashTable::new(),
            postings: Postings::default(),
            shapes: Vec::new(),
            keys: Keys::default(),
            subscribers: 0,
        }
    }
}

impl<S> LogIndex<S> {
    /// Adds a subscriber.
    pub fn insert(&mut self, filter: LogFilter, subscriber: S) -> LogSlot {
        let (criteria, blocks) = filter.into_parts();
        let hash = self.keys.whole(&criteria);
        let is_own = |own: &u32| self.groups[*own as usize].criteria == criteria;
        let group = match self.by_criteria.find(hash, is_own) {
            Some(&group) => group,
            None => self.add(criteria, hash),
        };
        self.subscribers += 1;
        LogSlot {
            group,
            seat: self.groups[group as usize].subscribers.insert(blocks, subscriber),
        }
    }

    fn add(&mut self, criteria: Criteria, hash: u64) -> u32 {
        let shape = criteria.shape();
        match self.shapes.iter_mut().find(|own| own.shape == shape) {
            Some(own) => own.groups += 1,
            None => self.shapes.push(ShapeInUse {
                shape,
                base: self.keys.base(shape),
                groups: 1,
            }),
        }
        let group = self.groups.vacant_key();
        self.groups.insert(Group {
            ranks: self.postings.insert(group, self.keys.of(&criteria)),
            criteria,
            subscribers: Ranged::default(),
        });
        let group = small(group);
        let Self { groups, keys, .. } = self;
        self.by_criteria
            .insert_unique(hash, group, |own| keys.whole(&groups[*own as usize].criteria));
        group
    }

    /// Removes and returns a subscriber; `None` if the slot is empty.
    pub fn remove(&mut self, slot: LogSlot) -> Option<S> {
        let group = self.groups.get_mut(slot.group as usize)?;
        let subscriber = group.subscribers.remove(slot.seat)?;
        self.subscribers -= 1;
        if group.subscribers.is_empty() {
            let Group { criteria, ranks, .. } = self.groups.remove(slot.group as usize);
            let hash = self.keys.whole(&criteria);
            if let Ok(own) = self.by_criteria.find_entry(hash, |own| *own == slot.group) {
                own.remove();
            }
            let groups = &mut self.groups;
            self.postings
                .remove(&ranks, self.keys.of(&criteria), |other, key, rank| {
                    groups[other].ranks.set(key, rank);
                });
            let shape = criteria.shape();
            if let Some(own) = self.shapes.iter_mut().find(|own| own.shape == shape) {
                own.groups -= 1;
            }
            self.shapes.retain(|own| own.groups > 0);
        }
        Some(subscriber)
    }

    /// Returns the number of subscribers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.subscribers
    }

    /// Checks if there are no subscribers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subscribers == 0
    }

    /// Returns the number of filters that differ in addresses or topics.
    #[must_use]
    pub fn filters(&self) -> usize {
        self.groups.len()
    }

    /// Iterates over all subscribers.
    pub fn iter(&self) -> impl Iterator<Item = &S> {
        self.groups.iter().flat_map(|(_, group)| group.subscribers.iter())
    }

    /// Returns the groups that have a key of this log, each once: a log has one key of each shape.
    fn under(&self, log: &Log) -> impl Iterator<Item = usize> {
        let words = self.keys.words(log);
        let keys = self.shapes.iter().filter_map(move |own| words.key(own.shape, own.base));
        keys.flat_map(|key| self.postings.under(&key))
    }

    /// Calls `each` for every group of filters that matches any of these logs of block `number`, with the positions
    /// of those logs, ascending, and the group's subscribers whose ranges include this block.
    pub fn for_each_match(&mut self, logs: &[Log], number: u64, mut each: impl FnMut(&[u32], Takers<'_, S>)) {
        if self.is_empty() {
            return;
        }
        // `None` for a group without a subscriber whose range includes this block.
        let mut hits: HashMap<usize, Option<Vec<u32>>> = HashMap::new();
        let mut found: Vec<usize> = Vec::new();
        for (position, log) in (0..).zip(logs) {
            found.clear();
            found.extend(self.under(log));
            for &group in &found {
                let Group {
                    criteria, subscribers, ..
                } = &mut self.groups[group];
                let positions = match hits.entry(group) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(subscribers.turn_to(number).then(Vec::new)),
                };
                if let Some(positions) = positions
                    && criteria.matches(log)
                {
                    positions.push(position);
                }
            }
        }
        for (group, positions) in hits {
            let positions = positions.unwrap_or_default();
            if !positions.is_empty() {
                each(&positions, self.groups[group].subscribers.takers());
            }
        }
    }

    #[cfg(test)]
    fn keeps_nothing(&self) -> bool {
        self.is_empty()
            && self.groups.is_empty()
            && self.by_criteria.is_empty()
            && self.postings.is_empty()
            && self.shapes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use bytes::Bytes;
    use proptest::prelude::*;

    use alloy_primitives::{Address, B256};

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

    /// Few values and, now and then, a field with so many values that all combinations are too many.
    fn filter() -> impl Strategy<Value = LogFilter> {
        let set = || {
            prop_oneof![
                6 => prop::collection::vec(small(), 0..3),
                1 => small().prop_map(|first| (first..first + 20).collect()),
            ]
        };
        let blocks = prop_oneof![
            2 => Just((0, u64::MAX)),
            2 => (4u64..10).prop_map(|first| (first, u64::MAX)),
            1 => (4u64..10, 0u64..4).prop_map(|(first, length)| (first, first + length)),
        ];
        (set(), prop::collection::vec(set(), 0..=4), blocks).prop_map(|(addresses, topics, blocks)| {
            let topic = |at: Vec<u8>| at.into_iter().map(B256::repeat_byte).collect();
            LogFilter::of(
                addresses.into_iter().map(Address::repeat_byte).collect(),
                topics.into_iter().map(topic).collect(),
            )
            .within(blocks)
        })
    }

    proptest! {
        /// Filters are added and removed between blocks, whose numbers go forth and back as in reorgs.
        #[test]
        fn the_index_finds_what_a_scan_finds(
            filters in prop::collection::vec((filter(), 0usize..4), 0..40),
            gone in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4), 0..20),
            logs in prop::collection::vec((small(), prop::collection::vec(small(), 0..=4)), 0..30),
            numbers in prop::collection::vec(3u64..14, 4),
        ) {
            let block = block(&logs);
            let mut index = LogIndex::default();
            let mut alive = Vec::new();
            for (round, number) in numbers.into_iter().enumerate() {
                for (name, (filter, _)) in filters.iter().enumerate().filter(|(_, (_, at))| *at == round) {
                    alive.push((name, filter.clone(), index.insert(filter.clone(), name)));
                }
                for (which, _) in gone.iter().filter(|(_, at)| *at == round) {
                    if !alive.is_empty() {
                        let (name, _, slot) = alive.swap_remove(which.index(alive.len()));
                        prop_assert_eq!(index.remove(slot), Some(name));
                        prop_assert_eq!(index.remove(slot).filter(|&other| other == name), None);
                    }
                }
                prop_assert_eq!(index.len(), alive.len());
                prop_assert_eq!(index.iter().count(), alive.len());
                let mut found: Vec<(usize, Vec<u32>)> = Vec::new();
                index.for_each_match(&block.logs, number, |positions, takers| {
                    found.extend(takers.iter().map(|&name| (name, positions.to_vec())));
                });
                found.sort();
                let all = || (0..).zip(&block.logs);
                let mut expected: Vec<(usize, Vec<u32>)> = alive
                    .iter()
                    .map(|(name, filter, _)| {
                        (*name, all().filter(|(_, log)| filter.matches(log, number)).map(|(at, _)| at).collect())
                    })
                    .filter(|(_, positions): &(usize, Vec<u32>)| !positions.is_empty())
                    .collect();
                expected.sort();
                prop_assert_eq!(found, expected);
            }
            for (_, _, slot) in alive {
                prop_assert!(index.remove(slot).is_some());
            }
            prop_assert!(index.keeps_nothing());
        }
    }

    /// Counts comparisons of filters with a log that none of them matches: 1,000 filters of each kind, which share as
    /// many values as they can.
    #[test]
    fn filters_that_share_a_value_are_not_compared_with_its_logs() {
        let [contract, event, wallet] = [1u8, 2, 3];
        let block = block(&[(contract, vec![event, wallet, wallet])]);
        let log = &block.logs[0];
        let other = |number: u64| B256::from(alloy_primitives::U256::from(number + 1_000));
        let (a, [t, w]) = (Address::repeat_byte(contract), [event, wallet].map(B256::repeat_byte));
        let address = |number| Address::from_word(other(number));
        type Make<'a> = &'a dyn Fn(u64) -> LogFilter;
        let cases: [(&str, Make<'_>, usize, usize); 9] = [
            (
                "first block",
                &|n| LogFilter::of(vec![a], vec![vec![t]]).within((8 + n, u64::MAX)),
                1,
                0,
            ),
            (
                "last block",
                &|n| LogFilter::of(vec![a], vec![vec![t]]).within((0, n % 7)),
                1,
                0,
            ),
            (
                "address",
                &|n| LogFilter::of(vec![address(n)], vec![vec![t], vec![w], vec![w]]),
                1_000,
                0,
            ),
            (
                "first topic",
                &|n| LogFilter::of(vec![a], vec![vec![other(n)], vec![w]]),
                1_000,
                0,
            ),
            (
                "second topic",
                &|n| LogFilter::of(vec![a], vec![vec![t], vec![other(n)], vec![w]]),
                1_000,
                0,
            ),
            (
                "third topic",
                &|n| LogFilter::of(vec![a], vec![vec![t], vec![w], vec![other(n)]]),
                1_000,
                0,
            ),
            (
                "alternatives",
                &|n| {
                    LogFilter::of(
                        vec![a, address(n)],
                        vec![vec![t, other(n)], vec![other(n), other(n + 1)]],
                    )
                },
                1_000,
                0,
            ),
            (
                "more topics",
                &|n| LogFilter::of(vec![a], vec![vec![t, other(n)], vec![], vec![], vec![]]),
                1_000,
                0,
            ),
            (
                "many alternatives",
                &|n| LogFilter::of(vec![a, address(n)], vec![vec![t], (n..n + 150).map(other).collect()]),
                1_000,
                0,
            ),
        ];
        for (differ_in, make, groups, compared) in cases {
            let mut index = LogIndex::default();
            let filters: Vec<LogFilter> = (0..1_000).map(make).collect();
            let slots: Vec<LogSlot> = filters.iter().map(|filter| index.insert(filter.clone(), ())).collect();
            assert!(filters.iter().all(|filter| !filter.matches(log, 7)), "{differ_in}");
            assert_eq!(index.filters(), groups, "{differ_in}");
            // A group whose subscribers' ranges all exclude the block costs one look-up.
            let found: Vec<usize> = index.under(log).collect();
            let mut takes = |group: &usize| index.groups[*group].subscribers.turn_to(7);
            assert_eq!(
                found.iter().filter(|group| takes(group)).count(),
                compared,
                "{differ_in}"
            );
            index.for_each_match(&block.logs, 7, |_, _| panic!("{differ_in}: nothing matches"));
            for slot in slots {
                index.remove(slot);
            }
            assert!(index.keeps_nothing(), "{differ_in}");
        }
    }

    /// Naive matcher as a reference for the predicate: PROTOCOL 1.5, read literally.
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
