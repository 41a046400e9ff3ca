//! The published chain, against which the upstreams' chains are checked; a head is recorded here before clients get it
//! (`chain::published`). No I/O, no clock.

use std::collections::{HashMap, VecDeque};

use alloy_primitives::B256;

/// Most published blocks remembered, by which a chain is recognised. With four blocks a second that is a quarter of
/// an hour.
pub(super) const MAX_PUBLISHED: usize = 4096;

/// Published heads that are still canonical, and blocks below them: number and hash, ascending.
#[derive(Debug, Default)]
pub(super) struct PublishedSample {
    blocks: VecDeque<(u64, B256)>,
    numbers: HashMap<B256, u64>,
}

impl PublishedSample {
    /// Records a published head, which replaces blocks at its height and above; `None` where clients have to begin
    /// anew.
    pub(super) fn head(&mut self, head: Option<(u64, B256)>) {
        let Some((number, hash)) = head else {
            *self = Self::default();
            return;
        };
        while let Some(dropped) = self.blocks.pop_back_if(|(own, _)| *own >= number) {
            self.numbers.remove(&dropped.1);
        }
        self.blocks.push_back((number, hash));
        self.numbers.insert(hash, number);
        if self.blocks.len() > MAX_PUBLISHED
            && let Some((_, oldest)) = self.blocks.pop_front()
        {
            self.numbers.remove(&oldest);
        }
    }

    /// Adds a block below the published ones, where there is room for it.
    pub(super) fn past(&mut self, number: u64, hash: B256) {
        let is_below = self.blocks.front().is_some_and(|(oldest, _)| number < *oldest);
        if is_below && self.blocks.len() < MAX_PUBLISHED {
            self.blocks.push_front((number, hash));
            self.numbers.insert(hash, number);
        }
    }

    pub(super) fn newest(&self) -> Option<(u64, B256)> {
        self.blocks.back().copied()
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.blocks.front().map(|(number, _)| *number)
    }

    /// Returns the blocks from this number down, highest first.
    pub(super) fn down_from(&self, number: u64) -> impl Iterator<Item = (u64, B256)> {
        let end = self.blocks.partition_point(|(own, _)| *own <= number);
        self.blocks.range(..end).rev().copied()
    }

    pub(super) fn number_of(&self, hash: B256) -> Option<u64> {
        self.numbers.get(&hash).copied()
    }

    /// Returns hashes of the newest block, of some older ones, each about twice as deep as the one before, and of the
    /// oldest: a node that went back some blocks has one of them that is hardly deeper.
    pub(super) fn some(&self) -> Vec<B256> {
        let deepest = self.blocks.len().checked_sub(1);
        let doubling = (0..).map(|power: u32| (1_usize << power) - 1);
        let depths = doubling.take_while(|depth| deepest.is_some_and(|deepest| *depth < deepest));
        depths
            .chain(deepest)
            .filter_map(|depth| self.blocks.get(self.blocks.len() - 1 - depth))
            .map(|(_, hash)| *hash)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_what_was_published_is_remembered() {
        let mut published = PublishedSample::default();
        let hash = |number: u64| B256::left_padding_from(&number.to_be_bytes());
        let some = |published: &PublishedSample| -> Vec<u64> {
            let number = |hash: &B256| u64::from_be_bytes(hash[24..].try_into().expect("8 bytes"));
            published.some().iter().map(number).collect()
        };
        assert!(some(&published).is_empty());
        published.head(Some((10, hash(10))));
        assert_eq!(some(&published), [10]);
        (11..=20).for_each(|number| published.head(Some((number, hash(number)))));
        assert_eq!(some(&published), [20, 19, 17, 13, 10]);
        published.past(9, hash(9));
        published.past(9, hash(9));
        published.past(30, hash(30));
        assert_eq!(some(&published), [20, 19, 17, 13, 9]);
        published.head(Some((12, hash(12))));
        assert_eq!(
            (some(&published), published.newest()),
            (vec![12, 11, 9], Some((12, hash(12))))
        );
        assert_eq!(
            (published.number_of(hash(9)), published.number_of(hash(20))),
            (Some(9), None)
        );
        assert_eq!(
            published.down_from(11).collect::<Vec<_>>(),
            [(11, hash(11)), (10, hash(10)), (9, hash(9))]
        );
        (13..10_000).for_each(|number| published.head(Some((number, hash(number)))));
        published.past(1, hash(1));
        assert_eq!(
            (published.blocks.len(), published.numbers.len()),
            (MAX_PUBLISHED, MAX_PUBLISHED)
        );
        assert_eq!(published.oldest(), Some(10_000 - MAX_PUBLISHED as u64));
        published.head(None);
        assert!(some(&published).is_empty() && published.newest().is_none());
    }
}
