//! Posting lists: the entries of an index under each of their keys. No I/O, no clock.
//!
//! An entry knows its rank in each of its lists, so its removal takes constant time, however long the lists are:
//! clients choose the keys, and a hundred thousand filters may share one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

/// Entries by key. `HashMap`'s own hasher is seeded, for clients choose the keys.
#[derive(Debug)]
pub(super) struct Postings<K> {
    lists: HashMap<K, List>,
}

/// Entries under one key. Most keys have one entry: it takes no allocation.
#[derive(Debug)]
enum List {
    One(Posting),
    /// Boxed: a list is as small as its one entry.
    #[expect(clippy::box_collection, reason = "lists are many, and few of them are long")]
    Many(Box<Vec<Posting>>),
}

impl List {
    fn as_slice(&self) -> &[Posting] {
        match self {
            Self::One(posting) => std::slice::from_ref(posting),
            Self::Many(list) => list,
        }
    }

    /// Adds an entry, and returns its rank.
    fn push(&mut self, posting: Posting) -> usize {
        match self {
            Self::One(first) => {
                *self = Self::Many(Box::new(vec![*first, posting]));
                1
            }
            Self::Many(list) => {
                list.push(posting);
                list.len() - 1
            }
        }
    }

    /// Removes the entry at a rank; returns `false` if the list is empty then.
    fn remove(&mut self, rank: usize) -> bool {
        let Self::Many(list) = self else { return false };
        list.swap_remove(rank);
        match list[..] {
            [] => false,
            [last] => {
                *self = Self::One(last);
                true
            }
            _ => {
                if list.len() < list.capacity() / SPARSE {
                    list.shrink_to(list.len() * 2);
                }
                true
            }
        }
    }
}

/// An entry in the list of one of its keys; `key` is the position of that key among the entry's own. Lists are many and
/// short, so both numbers are small.
#[derive(Clone, Copy, Debug)]
struct Posting {
    entry: u32,
    key: u32,
}

/// Ranks of an entry in the lists of its keys, in the order of the keys.
#[derive(Debug)]
pub(super) enum Ranks {
    /// Of an entry with one key, as most have.
    One(u32),
    Many(Box<[u32]>),
}

impl Ranks {
    fn new(ranks: Vec<u32>) -> Self {
        match ranks[..] {
            [rank] => Self::One(rank),
            _ => Self::Many(ranks.into()),
        }
    }

    fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(rank) => std::slice::from_ref(rank),
            Self::Many(ranks) => ranks,
        }
    }

    /// Sets the entry's rank in the list of one of its keys.
    pub(super) fn set(&mut self, key: usize, rank: u32) {
        match self {
            Self::One(own) => *own = rank,
            Self::Many(ranks) => ranks[key] = rank,
        }
    }
}

/// Divisor of a list's capacity below which the list shrinks: seldom enough that removal stays constant on average.
const SPARSE: usize = 4;

impl<K> Default for Postings<K> {
    fn default() -> Self {
        Self { lists: HashMap::new() }
    }
}

impl<K: Eq + Hash> Postings<K> {
    /// Adds an entry under these keys, which must differ from each other.
    pub(super) fn insert(&mut self, entry: usize, keys: impl IntoIterator<Item = K>) -> Ranks {
        let entry = small(entry);
        let rank = |(key, own): (usize, K)| {
            let posting = Posting { entry, key: small(key) };
            match self.lists.entry(own) {
                Entry::Occupied(list) => small(list.into_mut().push(posting)),
                Entry::Vacant(new) => {
                    new.insert(List::One(posting));
                    0
                }
            }
        };
        Ranks::new(keys.into_iter().enumerate().map(rank).collect())
    }

    /// Removes an entry that was added with the same keys in the same order. The last entry of a list moves to the
    /// rank that becomes free, and is passed to `moved`: entry, position among its keys, new rank.
    pub(super) fn remove(
        &mut self,
        ranks: &Ranks,
        keys: impl IntoIterator<Item = K>,
        mut moved: impl FnMut(usize, usize, u32),
    ) {
        for (key, &rank) in keys.into_iter().zip(ranks.as_slice()) {
            let Some(list) = self.lists.get_mut(&key) else { continue };
            if !list.remove(rank as usize) {
                self.lists.remove(&key);
            } else if let Some(other) = list.as_slice().get(rank as usize) {
                moved(other.entry as usize, other.key as usize, rank);
            }
        }
    }

    /// Returns the entries under a key.
    pub(super) fn under<'a>(&'a self, key: &K) -> impl Iterator<Item = usize> + use<'a, K> {
        let list = self.lists.get(key).map_or(&[][..], List::as_slice);
        list.iter().map(|posting| posting.entry as usize)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }
}

/// Returns a number of an entry, or of a key, in half its size.
pub(super) fn small(number: usize) -> u32 {
    u32::try_from(number).expect("memory ends long before 2^32 filters")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_leave_the_lists_that_they_are_in(
            steps in prop::collection::vec((0u8..12, prop::collection::btree_set(0u8..5, 1..4)), 0..60),
        ) {
            let mut postings = Postings::default();
            let mut ranks: BTreeMap<usize, Ranks> = BTreeMap::new();
            let mut keys: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
            for (entry, own) in steps {
                let entry = usize::from(entry);
                match keys.remove(&entry) {
                    Some(own) => {
                        let gone = ranks.remove(&entry).expect("it was added");
                        postings.remove(&gone, own, |other, key, rank| {
                            ranks.get_mut(&other).expect("it is there").set(key, rank);
                        });
                    }
                    None => {
                        let own: Vec<u8> = own.into_iter().collect();
                        ranks.insert(entry, postings.insert(entry, own.clone()));
                        keys.insert(entry, own);
                    }
                }
                for key in 0u8..5 {
                    let mut found: Vec<usize> = postings.under(&key).collect();
                    found.sort_unstable();
                    let expected: Vec<usize> = keys.iter().filter(|(_, own)| own.contains(&key)).map(|(at, _)| *at).collect();
                    prop_assert_eq!(found, expected);
                }
            }
            prop_assert_eq!(postings.is_empty(), keys.is_empty());
        }
    }
}
