//! Index from an event to the filters that match it. No I/O, no clock.
//!
//! Equal filters are one entry. Each entry is listed under the keys of its filter, and an event is looked up under a
//! handful of keys: the cost grows with matches, not with filters. Filters of logs have their own index,
//! `log_index`.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use slab::Slab;

use super::postings::{Postings, Ranks, small};

/// Filter that an [`Index`] can hold.
pub trait Filter: Eq + Hash {
    /// Value under which a filter is listed and an event is looked up.
    type Key: Eq + Hash;

    /// Returns the keys of the filter, at least one, without duplicates: an event that the filter matches has one of
    /// them.
    fn keys(&self) -> Vec<Self::Key>;
}

#[derive(Debug)]
struct Entry<F, S> {
    filter: Arc<F>,
    ranks: Ranks,
    subscribers: Slab<S>,
}

/// Filters with their subscribers.
#[derive(Debug)]
pub struct Index<F: Filter, S> {
    entries: Slab<Entry<F, S>>,
    by_filter: HashMap<Arc<F>, usize>,
    postings: Postings<F::Key>,
    subscribers: usize,
}

/// Handle of a subscriber, for its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    entry: u32,
    subscriber: u32,
}

impl<F: Filter, S> Default for Index<F, S> {
    fn default() -> Self {
        Self {
            entries: Slab::new(),
            by_filter: HashMap::new(),
            postings: Postings::default(),
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
                let entry = self.entries.vacant_key();
                self.entries.insert(Entry {
                    filter: filter.clone(),
                    ranks: self.postings.insert(entry, filter.keys()),
                    subscribers: Slab::with_capacity(1),
                });
                self.by_filter.insert(filter, entry);
                entry
            }
        };
        self.subscribers += 1;
        Slot {
            entry: small(entry),
            subscriber: small(self.entries[entry].subscribers.insert(subscriber)),
        }
    }

    /// Removes and returns a subscriber; `None` if the slot is empty.
    pub fn remove(&mut self, slot: Slot) -> Option<S> {
        let entry = self.entries.get_mut(slot.entry as usize)?;
        let subscriber = entry.subscribers.try_remove(slot.subscriber as usize)?;
        self.subscribers -= 1;
        if entry.subscribers.is_empty() {
            let Entry { filter, ranks, .. } = self.entries.remove(slot.entry as usize);
            self.by_filter.remove(&filter);
            let entries = &mut self.entries;
            self.postings.remove(&ranks, filter.keys(), |other, key, rank| {
                entries[other].ranks.set(key, rank);
            });
        }
        Some(subscriber)
    }

    /// Returns the subscriber in a slot.
    pub(super) fn get(&self, slot: Slot) -> Option<&S> {
        self.entries
            .get(slot.entry as usize)?
            .subscribers
            .get(slot.subscriber as usize)
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

    /// Returns the number of distinct filters.
    #[must_use]
    pub fn filters(&self) -> usize {
        self.entries.len()
    }

    /// Iterates over all subscribers.
    pub fn iter(&self) -> impl Iterator<Item = &S> {
        self.entries
            .iter()
            .flat_map(|(_, entry)| entry.subscribers.iter().map(|(_, subscriber)| subscriber))
    }

    /// Iterates over the distinct filters.
    pub(super) fn each_filter(&self) -> impl Iterator<Item = &F> {
        self.entries.iter().map(|(_, entry)| &*entry.filter)
    }

    /// Returns the entries listed under these keys; an entry with several of the keys is repeated.
    pub(super) fn under(&self, keys: impl Iterator<Item = F::Key>) -> impl Iterator<Item = usize> {
        keys.flat_map(|key| self.postings.under(&key))
    }

    /// Returns an entry's filter and its subscribers.
    pub(super) fn entry(&self, entry: usize) -> (&F, impl Iterator<Item = &S>) {
        let Entry {
            filter, subscribers, ..
        } = &self.entries[entry];
        (filter, subscribers.iter().map(|(_, subscriber)| subscriber))
    }
}
