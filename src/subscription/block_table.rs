//! Subscribers of `blockLogs` by filter: one message is built for each filter and block. No I/O.

use std::collections::HashMap;

use slab::Slab;

use super::block_filter::{BlockFilter, Include, Parts, adopted, removed};
use super::subscriber::{Subscriber, is_open};
use super::{LogIndex, LogSlot};
use crate::chain::{BlockLogs, Header, Log};

/// Filters with their subscribers.
#[derive(Debug, Default)]
pub(super) struct BlockTable {
    groups: Slab<Group>,
    by_filter: HashMap<BlockFilter, usize>,
    /// Finds the groups whose filters match a log.
    index: LogIndex<usize>,
}

#[derive(Debug)]
struct Group {
    filter: BlockFilter,
    slot: LogSlot,
    subscribers: Slab<Subscriber>,
}

impl Group {
    /// Checks if a subscriber's connection is open.
    fn is_read(&self) -> bool {
        self.subscribers.iter().any(|(_, own)| is_open(own))
    }
}

/// Handle of a subscriber, for its removal.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockSlot {
    group: usize,
    subscriber: usize,
}

impl BlockTable {
    pub(super) fn insert(&mut self, filter: BlockFilter, subscriber: Subscriber) -> BlockSlot {
        let group = match self.by_filter.get(&filter) {
            Some(&group) => group,
            None => {
                let group = self.groups.vacant_key();
                let slot = self.index.insert(filter.logs.clone(), group);
                self.by_filter.insert(filter.clone(), group);
                let subscribers = Slab::with_capacity(1);
                self.groups.insert(Group {
                    filter,
                    slot,
                    subscribers,
                })
            }
        };
        let subscriber = self.groups[group].subscribers.insert(subscriber);
        BlockSlot { group, subscriber }
    }

    pub(super) fn remove(&mut self, BlockSlot { group, subscriber }: BlockSlot) -> Option<Subscriber> {
        let own = self.groups.get_mut(group)?;
        let gone = own.subscribers.try_remove(subscriber)?;
        if own.subscribers.is_empty() {
            let Group { filter, slot, .. } = self.groups.remove(group);
            self.by_filter.remove(&filter);
            self.index.remove(slot);
        }
        Some(gone)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscriber> {
        let groups = self.groups.iter();
        groups.flat_map(|(_, group)| group.subscribers.iter().map(|(_, own)| own))
    }

    /// Returns the subscribers whose messages include such parts.
    pub(super) fn including(&self, wanted: impl Fn(Include) -> bool) -> impl Iterator<Item = &Subscriber> {
        let groups = self
            .groups
            .iter()
            .filter(move |(_, group)| wanted(group.filter.include));
        groups.flat_map(|(_, group)| group.subscribers.iter().map(|(_, own)| own))
    }

    /// Calls `each` with the message of an adopted block for every filter, and the filter's subscribers. Filters without
    /// a matching log share one message.
    pub(super) fn adopt(
        &mut self,
        parts: Parts<'_>,
        logs: &BlockLogs,
        mut each: impl FnMut(Message<'_>, &mut dyn Iterator<Item = &Subscriber>),
    ) {
        let matching = self.matching(logs);
        // A message is as long as the client likes: none is built for one that is closing.
        for (at, group) in self.groups.iter().filter(|(_, group)| group.is_read()) {
            let include = group.filter.include;
            let message = match matching.get(&at) {
                Some(logs) => Message::Own(adopted(parts, include, logs)),
                None => Message::Empty(include, &|| adopted(parts, include, &[])),
            };
            each(message, &mut group.subscribers.iter().map(|(_, own)| own));
        }
    }

    /// Calls `each` as [`Self::adopt`] does, for a block that is taken back.
    pub(super) fn take_back(
        &mut self,
        header: &Header,
        logs: &BlockLogs,
        mut each: impl FnMut(Message<'_>, &mut dyn Iterator<Item = &Subscriber>),
    ) {
        let matching = self.matching(logs);
        for (at, group) in self.groups.iter().filter(|(_, group)| group.is_read()) {
            let message = match matching.get(&at) {
                Some(logs) => Message::Own(removed(header, logs)),
                None => Message::Empty(Include::default(), &|| removed(header, &[])),
            };
            each(message, &mut group.subscribers.iter().map(|(_, own)| own));
        }
    }

    fn matching<'a>(&mut self, logs: &'a BlockLogs) -> HashMap<usize, Vec<&'a Log>> {
        let mut matching = HashMap::new();
        self.index
            .for_each_match(&logs.logs, logs.block.number, |positions, groups| {
                for group in groups.iter() {
                    let own = positions.iter().map(|&at| &logs.logs[at as usize]);
                    matching.insert(*group, own.collect());
                }
            });
        matching
    }
}

/// Message of one filter.
pub(super) enum Message<'a> {
    /// Its own.
    Own(Vec<u8>),
    /// The same for all filters with these parts that match no log.
    Empty(Include, &'a dyn Fn() -> Vec<u8>),
}
