//! Deviations of a chain from Ethereum: heights without a block, and blooms that are not the logs'.

use alloy_primitives::B256;

use crate::devnet::block::SealedBloom;

/// Deviations from Ethereum. They follow from each block's randomness and draw nothing from the chain's generator: a
/// chain has the same transactions with and without them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    pub(super) holes: u32,
    pub(super) empty_blooms: u32,
    pub(super) greedy_blooms: u32,
}

impl Habits {
    /// Returns the number of heights left out below a block.
    pub(super) fn gap(self, randomness: B256) -> u64 {
        if happens(self.holes, randomness, 0) {
            1 + u64::from(randomness[4] % 3)
        } else {
            0
        }
    }

    pub(super) fn bloom(self, randomness: B256) -> SealedBloom {
        if happens(self.empty_blooms, randomness, 8) {
            SealedBloom::Empty
        } else if !happens(self.greedy_blooms, randomness, 12) {
            SealedBloom::Honest
        } else if randomness[16].is_multiple_of(2) {
            SealedBloom::With(randomness)
        } else {
            SealedBloom::Full
        }
    }
}

/// Returns `true` for one in `one_in`, by the four bytes from `at` on; never for 0.
fn happens(one_in: u32, randomness: B256, at: usize) -> bool {
    let bytes = [0, 1, 2, 3].map(|byte| randomness[at + byte]);
    u32::from_be_bytes(bytes).checked_rem(one_in) == Some(0)
}
