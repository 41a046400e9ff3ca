//! Bits of addresses and topics in a bloom of 2048 bits (Yellow Paper section 4.3.1). No I/O, no clock.

use std::fmt;
use std::hash::BuildHasher;

use alloy_primitives::map::DefaultHashBuilder;
use alloy_primitives::{Bloom, keccak256};

use super::Log;

/// The three bits of a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BloomBits([u16; 3]);

impl BloomBits {
    pub(super) fn of(word: &[u8]) -> Self {
        let hash = keccak256(word);
        Self([0, 2, 4].map(|at| u16::from_be_bytes([hash[at], hash[at + 1]]) & 2047))
    }

    pub(super) fn are_in(self, bloom: &Bloom) -> bool {
        self.0
            .iter()
            .all(|bit| bloom[255 - usize::from(bit / 8)] & (1 << (bit % 8)) != 0)
    }

    fn set_in(self, bloom: &mut Bloom) {
        for bit in self.0 {
            bloom[255 - usize::from(bit / 8)] |= 1 << (bit % 8);
        }
    }
}

/// Number of words that are remembered, 40 bytes each. A block of 300 logs has some 1,200 words, of which a few hundred
/// were not in the blocks before.
const REMEMBERED: usize = 1 << 13;

/// Longest word: a topic.
const WORD: usize = 32;

/// Bits of the words of recent blocks. Most words of a block were in one before (contracts, kinds of events, busy
/// wallets) or occur several times in it, and a look-up costs a fiftieth of the hash.
///
/// Each word has one place, and the last word to come takes it: a node that sends only new words costs the hashes that
/// it costs without the table.
pub(super) struct RememberedBits {
    places: Box<[Place]>,
    /// Seeded, so that nobody can choose words that displace those of others.
    hasher: DefaultHashBuilder,
}

/// A word, padded with zeros, with its length; empty with a length of 0, which no word has.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    word: [u8; WORD],
    bits: BloomBits,
    len: u8,
}

impl fmt::Debug for RememberedBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RememberedBits").finish_non_exhaustive()
    }
}

impl Default for RememberedBits {
    fn default() -> Self {
        Self::with_places(REMEMBERED)
    }
}

impl RememberedBits {
    /// Creates an empty table; `places` is a power of two.
    fn with_places(places: usize) -> Self {
        Self {
            places: vec![Place::default(); places].into(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Computes the bloom of these logs.
    pub(super) fn bloom(&mut self, logs: &[Log]) -> Bloom {
        let mut sum = Bloom::ZERO;
        for log in logs {
            self.of(log.address.0.0, BloomBits::of).set_in(&mut sum);
            for topic in &log.topics {
                self.of(topic.0, BloomBits::of).set_in(&mut sum);
            }
        }
        sum
    }

    fn of<const LEN: usize>(&mut self, word: [u8; LEN], hash: impl FnOnce(&[u8]) -> BloomBits) -> BloomBits {
        const { assert!(0 < LEN && LEN <= WORD) }
        let mut padded = [0; WORD];
        padded[..LEN].copy_from_slice(&word);
        let (len, at) = (
            LEN as u8,
            self.hasher.hash_one(padded) as usize & (self.places.len() - 1),
        );
        let place = &mut self.places[at];
        if place.len != len || place.word != padded {
            let bits = hash(&word);
            *place = Place {
                word: padded,
                bits,
                len,
            };
        }
        place.bits
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{Address, B256, BloomInput};
    use proptest::prelude::*;

    use super::*;

    /// Few words, which come again, and words that may take the place of another.
    fn word() -> impl Strategy<Value = B256> {
        prop_oneof![
            (0u8..4).prop_map(B256::repeat_byte),
            any::<[u8; WORD]>().prop_map(B256::from),
            // The padded form of an address.
            (0u8..4).prop_map(|byte| {
                let mut word = B256::ZERO;
                word[..20].fill(byte);
                word
            }),
        ]
    }

    fn naive(words: &[B256]) -> Bloom {
        let mut sum = Bloom::ZERO;
        for word in words {
            sum.accrue(BloomInput::Raw(&word[..20]));
            sum.accrue(BloomInput::Raw(word.as_slice()));
        }
        sum
    }

    proptest! {
        #[test]
        fn remembered_bits_are_those_of_the_word(
            blocks in prop::collection::vec(prop::collection::vec(word(), 0..20), 1..6),
        ) {
            // Two places, so that words displace each other.
            let mut remembered = RememberedBits::with_places(2);
            for words in blocks {
                let mut sum = Bloom::ZERO;
                for word in &words {
                    remembered.of(Address::from_slice(&word[..20]).0.0, BloomBits::of).set_in(&mut sum);
                    remembered.of(word.0, BloomBits::of).set_in(&mut sum);
                    prop_assert!(BloomBits::of(word.as_slice()).are_in(&sum));
                }
                prop_assert_eq!(sum, naive(&words));
            }
        }
    }

    #[test]
    fn a_word_that_comes_again_is_not_hashed_again() {
        let (mut remembered, mut hashed) = (RememberedBits::default(), 0);
        let words = [[1; WORD], [2; WORD], [1; WORD], [1; WORD], [2; WORD]];
        // The chance that two words have the same place is 1 in 8192, for each seed anew.
        for _ in 0..2 {
            for word in words {
                let _ = remembered.of(word, |word| {
                    hashed += 1;
                    BloomBits::of(word)
                });
            }
        }
        assert!((2..10).contains(&hashed), "{hashed} hashes of two words");
    }
}
