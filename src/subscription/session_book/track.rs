//! Position of one subscription of a session: what was sent, and what its client has certainly received. No I/O.

use crate::chain::{BlockRef, Delivered, SentExtent};

/// Most branches that may be sent and left before the client confirms any position behind them. A client that is
/// further behind than sixteen reorgs has lost its position.
const MAX_LEFT: usize = 16;

/// Place of a block relative to the canonical chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::subscription) enum Standing {
    /// Canonical, or older than memory.
    Canonical,
    /// On a branch that begins above the block of this number.
    Dropped(u64),
    /// Not known any more.
    Unknown,
}

/// Extent of one stream that was sent, and that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Track {
    pub(super) first: u64,
    pub(super) received: Option<BlockRef>,
    pub(super) sent: Option<BlockRef>,
    /// Ends of branches that were sent and left, each with the number of the first mark behind their removal; `None`
    /// until the connection was sent it.
    pub(super) left: Vec<(Option<u64>, BlockRef)>,
    /// `true` if the way back from a branch is not known any more.
    pub(super) is_lost: bool,
}

impl Track {
    /// Begins a track at the block of number `first`; the client has all up to `at`.
    pub(super) fn begin(first: u64, at: Option<BlockRef>) -> Self {
        Self {
            first,
            received: at,
            sent: at,
            left: Vec::new(),
            is_lost: false,
        }
    }

    /// Records what was sent by now; `mark` is the number of the next mark, behind all of it.
    pub(super) fn sent(&mut self, extent: SentExtent, standing: impl Fn(BlockRef) -> Standing, mark: u64) {
        // A stream that has a place between two blocks has taken everything back before.
        for (at, _) in &mut self.left {
            at.get_or_insert(mark);
        }
        if let Some(old) = self.sent.filter(|old| extent.ever != Some(*old)) {
            match standing(old) {
                Standing::Canonical => {}
                Standing::Dropped(fork) => {
                    self.first = self.first.min(fork.saturating_add(1));
                    self.left.push((Some(mark), old));
                    self.is_lost |= self.left.len() > MAX_LEFT;
                    self.left.truncate(MAX_LEFT);
                }
                Standing::Unknown => self.is_lost = true,
            }
        }
        self.sent = extent.ever.or(self.sent);
    }

    /// Records that the client has received the mark of this number, with everything before it.
    pub(super) fn confirm(&mut self, mark: u64, up_to: Option<BlockRef>) {
        self.left.retain(|(at, _)| at.is_none_or(|at| at > mark));
        self.received = up_to.or(self.received);
    }

    /// Includes what an equal subscription was sent, and counts as received what both have.
    pub(super) fn include(&mut self, other: &Self) {
        let number = |block: Option<BlockRef>| block.map(|block| block.number);
        if number(other.received) < number(self.received) {
            self.received = other.received;
        }
        self.first = self.first.min(other.first);
        self.is_lost |= other.is_lost;
        let others = other.left.iter().map(|(_, block)| *block).chain(other.sent);
        for block in others {
            let is_known = self.sent == Some(block) || self.left.iter().any(|(_, own)| *own == block);
            if !is_known {
                self.left.push((None, block));
            }
        }
        self.is_lost |= self.left.len() > MAX_LEFT;
        self.left.truncate(MAX_LEFT);
    }

    /// Records that the connection has ended: the next one takes everything back anew, and its marks before that confirm
    /// nothing of it.
    pub(super) fn leave(&mut self) {
        self.left.iter_mut().for_each(|(at, _)| *at = None);
    }

    /// Returns what is needed to resume; `None` if the position is lost.
    pub(super) fn delivered(&self) -> Option<Delivered> {
        (!self.is_lost).then(|| Delivered {
            first: self.first,
            received: self.received,
            sent: self.sent,
            left: self.left.iter().map(|(_, block)| *block).collect(),
        })
    }
}
