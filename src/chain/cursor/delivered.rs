//! Resume of a stream of which it is known what was sent, and what its client has certainly received. No I/O, no clock.

use std::collections::VecDeque;

use super::{AbandonedBranch, At, Cursor, Resend, Retraction, dropped_since};
use crate::chain::BlockRef;
use crate::chain::archive::Located;
use crate::chain::history::History;

/// Part of a stream that was delivered before its client left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Number at which the stream began: nothing below was sent, or is to be sent, unless a reorg replaced it.
    pub first: u64,
    /// Newest block whose events the client has certainly received, with all before; `None` for none.
    pub received: Option<BlockRef>,
    /// Newest block whose events were sent; `None` for none.
    pub sent: Option<BlockRef>,
    /// Ends of branches that were sent, and left for another one before the client had certainly received that.
    pub left: Vec<BlockRef>,
    /// Lowest number of a block that was taken back, if the client has not certainly received what followed: if that
    /// block is canonical again, it is due again, although `received` may be above it.
    pub taken_back: Option<u64>,
}

impl Delivered {
    /// Returns the blocks whose place relative to the canonical chain decides how the stream goes on: first the received
    /// one, then the sent one, then the branches.
    pub fn blocks(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.received
            .into_iter()
            .chain(self.sent)
            .chain(self.left.iter().copied())
    }

    /// Returns the place of a block in memory, of which the way to the canonical chain is in memory too.
    #[must_use]
    pub fn in_memory(history: &History, block: BlockRef, logs: bool) -> Option<Located> {
        let (undo, left) = dropped_since(history, block, None, logs);
        history.is_canonical(left.ancestor).then_some(Located { undo, left })
    }

    /// Returns the cursor that takes back what was sent and dropped since, then repeats what was sent and not certainly
    /// received, and `overlap` blocks before, and then goes on. `places` are those of [`Self::blocks`], in that order.
    #[must_use]
    pub fn resume(&self, places: Vec<Located>, overlap: u64) -> Cursor {
        let ancestors = || places.iter().map(|place| place.left.ancestor);
        // The client may have any of these: each has to be taken back, should the chain leave it.
        let Some(sent) = ancestors().max_by_key(|ancestor| ancestor.number) else {
            return Cursor::from(self.first);
        };
        // What follows the lowest may have been taken back to get to another.
        let lowest = ancestors().min_by_key(|ancestor| ancestor.number);
        let received = lowest.filter(|_| self.received.is_some());
        let mut undo: Vec<Retraction> = places.into_iter().flat_map(|place| place.undo).collect();
        undo.retain(|own| own.logs.block.number >= self.first);
        undo.sort_by_key(|own| (own.logs.block.number, own.logs.block.hash));
        undo.dedup_by_key(|own| own.logs.block);
        let at = if undo.is_empty() {
            At::Behind(sent, None)
        } else {
            let left = AbandonedBranch {
                blocks: VecDeque::new(),
                ancestor: sent,
            };
            At::Undoing(undo.into(), left)
        };
        // A reorg may have replaced blocks below the first one.
        let (first, next) = match received {
            Some(received) => {
                let behind = received.number.saturating_add(1);
                let next = self.taken_back.map_or(behind, |from| from.min(behind));
                let first = self.first.min(next);
                (first, first.max(next.saturating_sub(overlap)))
            }
            None => (self.first, self.first),
        };
        let resend = (next <= sent.number).then(|| Box::new(Resend { next, last: None }));
        Cursor {
            first,
            at,
            again: VecDeque::new(),
            resend,
        }
    }
}

/// Extent of what a stream was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentExtent {
    /// Whole blocks.
    Whole {
        /// Newest block of which all was sent since the stream was resumed, with all that had to be repeated before it;
        /// `None` for none.
        current: Option<BlockRef>,
        /// Newest block of which all was ever sent; `None` for none.
        ever: Option<BlockRef>,
    },
    /// A part of a removal, which reaches down to the block of this number.
    TakingBack {
        /// Lowest number of a block that is taken back.
        from: u64,
    },
}

impl SentExtent {
    /// Returns the newest block of which all was sent since the stream was resumed, if any; `None` in a removal.
    #[must_use]
    pub fn current(self) -> Option<Option<BlockRef>> {
        match self {
            Self::Whole { current, .. } => Some(current),
            Self::TakingBack { .. } => None,
        }
    }
}

impl Cursor {
    /// Returns the extent of what the stream was sent; `None` within a block.
    #[must_use]
    pub fn sent_extent(&self) -> Option<SentExtent> {
        match &self.at {
            At::Before(_) => Some(SentExtent::Whole {
                current: None,
                ever: None,
            }),
            &At::Behind(block, None) if self.again.is_empty() => Some(SentExtent::Whole {
                current: match self.resending(block) {
                    Some(resend) => resend.last,
                    None => Some(block),
                },
                ever: Some(block),
            }),
            At::Behind(..) => None,
            At::Undoing(undo, left) => {
                let above = left.ancestor.number.saturating_add(1);
                let lowest = undo.iter().map(|own| own.logs.block.number).min();
                Some(SentExtent::TakingBack {
                    from: lowest.map_or(above, |number| number.min(above)),
                })
            }
        }
    }
}

impl History {
    /// Returns the canonical block at which the branch of `block` begins, if memory has the way there.
    #[must_use]
    pub fn fork_of(&self, block: BlockRef) -> Option<BlockRef> {
        Some(Delivered::in_memory(self, block, false)?.left.ancestor)
    }
}
