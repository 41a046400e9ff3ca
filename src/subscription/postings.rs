//! Posting lists: the entries of an index under each of their keys. No I/O, no clock.
//!
//! An entry knows its rank in each of its lists, so its removal takes constant time, however long the lists are:
//! clients choose the keys, and a hundred thousand filters may share one.

use std::collections::HashMap;
use std::hash::Hash;

/// Entries by key. `HashMap`'s own hasher is seeded, for clients choose the keys.
#[derive(Debug)]
pub(super) struct Postings<K> {
    lists: HashMap<K, Vec<Posting>>,
}

/// An entry in the list of one of its keys; `key` is the position of that key among the entry's own. Lists are many and
/// short, so both numbers are small.
#[derive(Clone, Copy, Debug)]
struct Posting {
    entry: u32,
    key: u32,
}

/// Ranks of an entry in the lists of its keys, in the order of the keys.
#[derive(Debug, Default)]
pub(super) struct Ranks(Box<[u32]>);

impl Ranks {
    /// Sets the entry's rank in the list of one of its keys.
    pub(super) fn set(&mut self, key: usize, rank: u32) {
        self.0[key] = rank;
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
            let list = self.lists.entry(own).or_default();
            let key = small(key);
            list.push(Posting { entry, key });
            small(list.len() - 1)
        };
        Ranks(keys.into_iter().enumerate().map(rank).collect())
    }

    /// Removes an entry that was added with the same keys in the same order. The last entry of a list moves to the
    /// rank that becomes free, and is passed to `moved`: entry, position among its keys, new rank.
    pub(super) fn remove(
        &mut self,
        ranks: &Ranks,
        keys: impl IntoIterator<Item = K>,
        mut moved: impl FnMut(usize, usize, u32),
    ) {
        for (key, &rank) in keys.into_iter().zip(&ranks.0) {
            let Some(list) = self.lists.get_mut(&key) else { continue };
            list.swap_remove(rank as usize);
            if let Some(other) = list.get(rank as usize) {
                moved(other.entry as usize, other.key as usize, rank);
            }
            if list.is_empty() {
                self.lists.remove(&key);
            } else if list.len() < list.capacity() / SPARSE {
                list.shrink_to(list.len() * 2);
            }
        }
    }

    /// Returns the entries under a key.
    pub(super) fn under<'a>(&'a self, key: &K) -> impl Iterator<Item = usize> + use<'a, K> {
        let list = self.lists.get(key).map_or(&[][..], |list| list);
        list.iter().map(|posting| posting.entry as usize)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }
}

fn small(number: usize) -> u32 {
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
