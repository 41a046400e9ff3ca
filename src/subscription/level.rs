//! Level of finality that a stream waits for before it delivers a block.

use std::fmt;

use crate::chain::Tag;

/// Level of finality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Head of the chain: blocks come at once, and are taken back when a reorg drops them.
    Head,
    /// Blocks up to the one that the node in use names by this tag.
    Tag(Tag),
    /// Blocks that are this many deep, the block itself counted; 1 is the head.
    Confirmations(u64),
}

impl Level {
    /// Checks if blocks of this level are never taken back.
    pub(super) fn is_final(self) -> bool {
        self != Self::Head
    }

    /// Returns the number after the last block of this level when the chain's head has the number `head`.
    /// `None` for a tag, of which only a node knows.
    pub(super) fn end_at(self, head: u64) -> Option<u64> {
        match self {
            Self::Head => Some(end_at_depth(head, 1)),
            Self::Tag(_) => None,
            Self::Confirmations(depth) => Some(end_at_depth(head, depth)),
        }
    }
}

/// Returns the number after the last block that is `depth` deep under the head, the block itself counted.
pub(super) fn end_at_depth(head: u64, depth: u64) -> u64 {
    head.saturating_add(2).saturating_sub(depth)
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("head"),
            Self::Tag(tag) => f.write_str(tag.name()),
            Self::Confirmations(depth) => write!(f, "{depth} confirmations"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_itself_is_its_first_confirmation() {
        for (depth, head, end) in [(1, 10, 11), (2, 10, 10), (11, 10, 1), (12, 10, 0), (99, 10, 0)] {
            assert_eq!(Level::Confirmations(depth).end_at(head), Some(end), "{depth} at {head}");
        }
        assert_eq!(Level::Tag(Tag::Safe).end_at(10), None);
    }
}
