//! Subscribers of filters that differ in their block range only, ordered by range. No I/O, no clock.
//!
//! Most ranges have no bounds. The others are ordered by their bounds, and delivery visits only those that include
//! the block.

use std::collections::BTreeSet;

use slab::Slab;

use super::postings::small;

/// First and last block; the bounds of `fromBlock` and `toBlock`.
pub(super) type Range = (u64, u64);

/// The range without bounds.
pub(super) const ALL_BLOCKS: Range = (0, u64::MAX);

/// Subscribers with their ranges.
#[derive(Debug)]
pub(super) struct Ranged<S> {
    unbounded: Unbounded<S>,
    /// Subscribers with bounds; boxed, since few filters have any.
    bounded: Option<Box<Bounded<S>>>,
}

/// Subscribers without bounds. Most filters have one subscriber, which takes no allocation.
#[derive(Debug)]
enum Unbounded<S> {
    None,
    One(S),
    Many(Box<Slab<S>>),
}

impl<S> Unbounded<S> {
    fn insert(&mut self, subscriber: S) -> usize {
        let mut all = match std::mem::replace(self, Self::None) {
            Self::None => {
                *self = Self::One(subscriber);
                return 0;
            }
            Self::One(first) => {
                let mut all = Box::new(Slab::with_capacity(2));
                // At 0, as before.
                all.insert(first);
                all
            }
            Self::Many(all) => all,
        };
        let at = all.insert(subscriber);
        *self = Self::Many(all);
        at
    }

    fn remove(&mut self, at: usize) -> Option<S> {
        match self {
            Self::One(_) if at == 0 => match std::mem::replace(self, Self::None) {
                Self::One(own) => Some(own),
                Self::None | Self::Many(_) => None,
            },
            Self::Many(all) => {
                let gone = all.try_remove(at);
                if all.is_empty() {
                    *self = Self::None;
                }
                gone
            }
            Self::None | Self::One(_) => None,
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    fn iter(&self) -> impl Iterator<Item = &S> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(own) => (Some(own), None),
            Self::Many(all) => (None, Some(all.iter().map(|(_, own)| own))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// Handle of a subscriber, for its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeSlot {
    Unbounded(u32),
    Bounded(u32),
}

#[derive(Debug)]
struct Bounded<S> {
    all: Slab<(Range, S)>,
    /// Current block, by which ranges are sorted into those that begin after it, those that include it and those that
    /// end before it.
    at: u64,
    /// Ranges that begin after the current block, by first block.
    ahead: BTreeSet<(u64, usize)>,
    /// Ranges that include the current block, by last block.
    current: BTreeSet<(u64, usize)>,
    /// Ranges that end before the current block, by last block.
    over: BTreeSet<(u64, usize)>,
}

/// Subscribers of one filter whose ranges include the current block.
#[derive(Debug)]
pub struct Takers<'a, S>(&'a Ranged<S>);

impl<S> Clone for Takers<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Takers<'_, S> {}

impl<'a, S> Takers<'a, S> {
    /// Iterates over the subscribers.
    pub fn iter(self) -> impl Iterator<Item = &'a S> {
        let bounded = self.0.bounded.iter().flat_map(|bounded| bounded.takers());
        self.0.unbounded.iter().chain(bounded)
    }
}

impl<S> Default for Ranged<S> {
    fn default() -> Self {
        Self {
            unbounded: Unbounded::None,
            bounded: None,
        }
    }
}

impl<S> Ranged<S> {
    pub(super) fn insert(&mut self, range: Range, subscriber: S) -> RangeSlot {
        if range == ALL_BLOCKS {
            return RangeSlot::Unbounded(small(self.unbounded.insert(subscriber)));
        }
        let bounded = self.bounded.get_or_insert_with(Box::default);
        RangeSlot::Bounded(small(bounded.insert(range, subscriber)))
    }

    /// Removes and returns a subscriber; `None` if the seat is empty.
    pub(super) fn remove(&mut self, seat: RangeSlot) -> Option<S> {
        match seat {
            RangeSlot::Unbounded(at) => self.unbounded.remove(at as usize),
            RangeSlot::Bounded(at) => {
                let bounded = self.bounded.as_mut()?;
                let gone = bounded.remove(at as usize);
                if bounded.all.is_empty() {
                    self.bounded = None;
                }
                gone
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unbounded.is_empty() && self.bounded.is_none()
    }

    /// Iterates over all subscribers, whatever their ranges.
    pub(super) fn iter(&self) -> impl Iterator<Item = &S> {
        let bounded = self.bounded.iter().flat_map(|bounded| bounded.all.iter());
        self.unbounded
            .iter()
            .chain(bounded.map(|(_, (_, subscriber))| subscriber))
    }

    /// Makes block `number` the current one; returns `false` if no range includes it. The cost grows with the ranges
    /// that begin or end between the previous block and this one, and an advancing chain meets each of these twice.
    pub(super) fn turn_to(&mut self, number: u64) -> bool {
        let bounded = self.bounded.as_mut().is_some_and(|bounded| bounded.turn_to(number));
        bounded || !self.unbounded.is_empty()
    }

    /// Returns the subscribers whose ranges include the current block.
    pub(super) fn takers(&self) -> Takers<'_, S> {
        Takers(self)
    }
}

impl<S> Default for Bounded<S> {
    fn default() -> Self {
        Self {
            all: Slab::new(),
            at: 0,
            ahead: BTreeSet::new(),
            current: BTreeSet::new(),
            over: BTreeSet::new(),
        }
    }
}

impl<S> Bounded<S> {
    /// Returns the set that a range belongs to, and the bound that orders it there.
    fn set_of(&mut self, (first, last): Range) -> (&mut BTreeSet<(u64, usize)>, u64) {
        if first > self.at {
            (&mut self.ahead, first)
        } else if last >= self.at {
            (&mut self.current, last)
        } else {
            (&mut self.over, last)
        }
    }

    fn insert(&mut self, range: Range, subscriber: S) -> usize {
        let at = self.all.insert((range, subscriber));
        let (set, bound) = self.set_of(range);
        set.insert((bound, at));
        at
    }

    fn remove(&mut self, at: usize) -> Option<S> {
        let (range, subscriber) = self.all.try_remove(at)?;
        let (set, bound) = self.set_of(range);
        set.remove(&(bound, at));
        Some(subscriber)
    }

    fn turn_to(&mut self, number: u64) -> bool {
        let mut moving: Vec<usize> = Vec::new();
        if number > self.at {
            let begun = self.ahead.range(..=(number, usize::MAX));
            let ended = self.current.range(..(number, 0));
            moving.extend(begun.chain(ended).map(|(_, at)| *at));
        } else if number < self.at {
            let all = &self.all;
            // Scanning these costs no more than the delivery of the previous block.
            let not_begun = self.current.iter().filter(|(_, at)| all[*at].0.0 > number);
            let not_ended = self.over.range((number, 0)..);
            moving.extend(not_begun.chain(not_ended).map(|(_, at)| *at));
        }
        // Remove from the sets by the previous block, then insert by the new one.
        for &at in &moving {
            let (set, bound) = self.set_of(self.all[at].0);
            set.remove(&(bound, at));
        }
        self.at = number;
        for at in moving {
            let (set, bound) = self.set_of(self.all[at].0);
            set.insert((bound, at));
        }
        !self.current.is_empty()
    }

    fn takers(&self) -> impl Iterator<Item = &S> {
        self.current.iter().map(|(_, at)| &self.all[*at].1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Add(u64, Option<u64>),
        Leave(prop::sample::Index),
        Block(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u64..12, prop::option::of(0u64..6)).prop_map(|(first, length)| Step::Add(first, length)),
            1 => any::<prop::sample::Index>().prop_map(Step::Leave),
            3 => (0u64..20).prop_map(Step::Block),
        ]
    }

    proptest! {
        #[test]
        fn those_take_a_block_whose_range_holds_it_wherever_the_chain_goes(steps in prop::collection::vec(step(), 0..60)) {
            let mut ranged = Ranged::default();
            let mut alive: Vec<(Range, usize, RangeSlot)> = Vec::new();
            for (name, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Add(first, length) => {
                        let range = (first, length.map_or(u64::MAX, |length| first + length));
                        alive.push((range, name, ranged.insert(range, name)));
                    }
                    Step::Leave(which) if !alive.is_empty() => {
                        let (_, name, seat) = alive.swap_remove(which.index(alive.len()));
                        prop_assert_eq!(ranged.remove(seat), Some(name));
                    }
                    Step::Leave(_) => {}
                    Step::Block(number) => {
                        let mut expected: Vec<usize> = alive
                            .iter()
                            .filter(|((first, last), ..)| (*first..=*last).contains(&number))
                            .map(|(_, name, _)| *name)
                            .collect();
                        expected.sort_unstable();
                        prop_assert_eq!(ranged.turn_to(number), !expected.is_empty());
                        let mut found: Vec<usize> = ranged.takers().iter().copied().collect();
                        found.sort_unstable();
                        prop_assert_eq!(found, expected);
                    }
                }
                prop_assert_eq!(ranged.iter().count(), alive.len());
                prop_assert_eq!(ranged.is_empty(), alive.is_empty());
            }
        }
    }
}
