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
    /// Not known any more: the way back is looked for when the client returns.
    Unknown,
}

/// Removal of blocks, behind which the client has not certainly received anything yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TakenBack {
    /// Lowest number of a block that was taken back.
    pub(super) from: u64,
    /// Number of the first mark that is behind the removal; `None` until the stream was sent all of it.
    pub(super) mark: Option<u64>,
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
    /// What was taken back meanwhile: if the chain returns to the received block, its ancestors from there on are due again.
    pub(super) taken_back: Option<TakenBack>,
    /// `true` if more branches were left than are remembered.
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
            taken_back: None,
            is_lost: false,
        }
    }

    /// Records what was sent by now, from `first` on, if that is known; see [`Self::sent_up_to`].
    pub(super) fn sent(
        &mut self,
        extent: SentExtent,
        first: Option<u64>,
        standing: impl Fn(BlockRef) -> Standing,
        mark: u64,
    ) {
        self.first = first.map_or(self.first, |first| first.min(self.first));
        match extent {
            SentExtent::Whole { ever, .. } => self.sent_up_to(ever, standing, mark),
            SentExtent::TakingBack { from } => self.take_back(from, None),
        }
    }

    /// Records that all was sent up to a block; `mark` is the number of the next mark, behind all of it.
    fn sent_up_to(&mut self, ever: Option<BlockRef>, standing: impl Fn(BlockRef) -> Standing, mark: u64) {
        // A stream that has a place between two blocks has taken everything back before.
        for (at, _) in &mut self.left {
            at.get_or_insert(mark);
        }
        if let Some(taken_back) = &mut self.taken_back {
            taken_back.mark.get_or_insert(mark);
        }
        if let Some(old) = self.sent.filter(|old| ever != Some(*old)) {
            match standing(old) {
                // Taken back, and the chain has returned to it: the client may still have it when the chain leaves it again.
                Standing::Canonical => {
                    if let Some(ever) = ever.filter(|ever| ever.number < old.number) {
                        self.take_back(ever.number.saturating_add(1), Some(mark));
                        self.leave_branch(Some(mark), old);
                    }
                }
                Standing::Dropped(fork) => {
                    self.take_back(fork.saturating_add(1), Some(mark));
                    self.leave_branch(Some(mark), old);
                }
                Standing::Unknown => self.leave_branch(Some(mark), old),
            }
        }
        self.sent = ever.or(self.sent);
    }

    /// Records the end of a branch that was left; `mark` is the number of the first mark behind its removal.
    fn leave_branch(&mut self, mark: Option<u64>, end: BlockRef) {
        self.left.push((mark, end));
        self.is_lost |= self.left.len() > MAX_LEFT;
        self.left.truncate(MAX_LEFT);
    }

    /// Records that the newest sent block may be being taken back, while the stream has no place between two blocks.
    pub(super) fn may_be_taken_back(&mut self, standing: impl Fn(BlockRef) -> Standing) {
        if let Some(Standing::Dropped(fork)) = self.sent.map(standing) {
            self.take_back(fork.saturating_add(1), None);
        }
    }

    /// Records a removal down to the block of number `from`; what follows it begins there, below the first block too.
    pub(super) fn take_back(&mut self, from: u64, mark: Option<u64>) {
        self.first = self.first.min(from);
        let from = self.taken_back.map_or(from, |before| before.from.min(from));
        self.taken_back = Some(TakenBack { from, mark });
    }

    /// Records that the client has received the mark of this number, with everything before it.
    pub(super) fn confirm(&mut self, mark: u64, up_to: Option<BlockRef>) {
        self.left.retain(|(at, _)| at.is_none_or(|at| at > mark));
        if let Some(block) = up_to {
            self.received = Some(block);
            let is_behind = |taken_back: &mut TakenBack| taken_back.mark.is_some_and(|at| at <= mark);
            self.taken_back.take_if(is_behind);
        }
    }

    /// Includes what an equal subscription was sent, and counts as received what both have.
    pub(super) fn include(&mut self, other: &Self) {
        let number = |block: Option<BlockRef>| block.map(|block| block.number);
        if number(other.received) < number(self.received) {
            self.received = other.received;
        }
        self.first = self.first.min(other.first);
        self.is_lost |= other.is_lost;
        if let Some(other) = other.taken_back {
            self.take_back(other.from, None);
        }
        let others = other.left.iter().map(|(_, block)| *block).chain(other.sent);
        for block in others {
            let is_known = self.sent == Some(block) || self.left.iter().any(|(_, own)| *own == block);
            if !is_known {
                self.leave_branch(None, block);
            }
        }
    }

    /// Records that the connection has ended: the next one takes everything back anew, and its marks before that confirm
    /// nothing of it.
    pub(super) fn leave(&mut self) {
        self.left.iter_mut().for_each(|(at, _)| *at = None);
        if let Some(taken_back) = &mut self.taken_back {
            taken_back.mark = None;
        }
    }

    /// Returns what is needed to resume; `None` if the position is lost.
    pub(super) fn delivered(&self) -> Option<Delivered> {
        (!self.is_lost).then(|| Delivered {
            first: self.first,
            received: self.received,
            sent: self.sent,
            left: self.left.iter().map(|(_, block)| *block).collect(),
            taken_back: self.taken_back.map(|own| own.from),
        })
    }
}
