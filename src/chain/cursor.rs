//! Position in the chain from which a stream of events continues: the next event, however the chain changed meanwhile.
//! No I/O, no clock.

mod delivered;
mod step;

use std::collections::VecDeque;
use std::sync::Arc;

use alloy_primitives::B256;

pub use self::delivered::{Delivered, SentExtent};
use self::step::{behind, dropped_since, from_number, resent, rest_of};
use super::history::{History, PublishedBlock};
use super::{BlockLogs, BlockRef, Header, Located, Page};

/// Position of a stream: the events it was delivered, and the block it began with.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// Number at which the stream began: no block below was delivered, so none below is removed.
    first: u64,
    at: At,
    /// Delivered blocks above `at`, oldest first: a stream of heads sends no removals, so if the chain adopts these
    /// blocks again there is nothing to send.
    again: VecDeque<BlockRef>,
    /// Blocks up to `at` that are sent once more; few streams have any.
    resend: Option<Box<Resend>>,
}

/// Repetition of delivered blocks, up to the one behind which the stream is.
#[derive(Clone, Debug)]
struct Resend {
    /// Lowest number of the next block.
    next: u64,
    /// Block that was repeated last.
    last: Option<BlockRef>,
}

#[derive(Clone, Debug)]
enum At {
    /// Before the first canonical block at or above this number.
    Before(u64),
    /// Behind this block, of which all was delivered, or the logs up to this index.
    Behind(BlockRef, Option<u64>),
    /// On an abandoned branch: these logs are to be removed, oldest first; then the stream continues behind the
    /// ancestor.
    Undoing(VecDeque<Retraction>, AbandonedBranch),
}

/// Abandoned branch, as far as it was delivered to a stream.
#[derive(Clone, Debug)]
pub struct AbandonedBranch {
    /// Blocks of the branch, oldest first.
    pub blocks: VecDeque<BlockRef>,
    /// Block at which the branch began.
    pub ancestor: BlockRef,
}

/// Delivered logs of a dropped block, to be removed.
#[derive(Clone, Debug)]
pub struct Retraction {
    /// Header of the dropped block.
    pub header: Header,
    /// All logs of the dropped block.
    pub logs: Arc<BlockLogs>,
    /// Index of the last log that was delivered; `None` for all.
    pub up_to: Option<u64>,
}

/// Position within the removal of a branch, see [`Cursor::within`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Removal {
    /// Block behind which the stream goes on: the parent of the first block that was taken back.
    pub ancestor: BlockRef,
    /// Last block of the branch that was delivered.
    pub tip: B256,
    /// Index of the last log of `tip` that was delivered; `None` for all.
    pub up_to: Option<u64>,
    /// Block whose logs are being taken back; those of the blocks below are.
    pub block: B256,
    /// Index of the last log that was taken back.
    pub index: u64,
}

/// Parts of blocks that a stream needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Headers only.
    Headers,
    /// Headers and logs. A bloom does not show that a block has no logs (issue 11: Polygon, HyperEVM).
    Logs,
    /// The same, for a page fetched for this stream's filter too: logs that the page leaves out do not match. Blocks in
    /// memory have all their logs, to be able to send removals.
    MatchingLogs,
    /// Headers and all logs; blocks are taken back newest first.
    Blocks,
}

impl Needs {
    fn logs(self) -> bool {
        self != Self::Headers
    }
}

/// Next step of a stream.
#[derive(Clone, Debug)]
pub enum Next {
    /// Remove logs.
    Retraction(Retraction),
    /// Send the logs of a block after this index.
    Rest(Arc<BlockLogs>, u64),
    /// Send a whole block.
    Block(PublishedBlock),
    /// Nothing to send: the stream has caught up and joins the live stream.
    Level,
    /// Nothing to send before the next head, or before the tip's logs are fetched.
    Pending,
    /// Nothing to send before the logs of the block of this number are delivered to live subscriptions.
    Awaited(u64),
    /// Nothing to send yet: the chain has not reached the stream's position.
    Ahead,
    /// Fetch the first block at or above this number, which is older than memory, or its logs, which are not in memory;
    /// see [`History::gap`].
    Below(u64),
    /// Locate this block: the stream is behind it, or behind a dropped branch on top of it, and memory does not know
    /// it.
    Lost(BlockRef),
}

impl Cursor {
    /// Creates a cursor behind this block, of which all logs were delivered, or those up to an index.
    #[must_use]
    pub fn behind(block: BlockRef, up_to: Option<u64>) -> Self {
        Self {
            first: 0,
            at: At::Behind(block, up_to),
            again: VecDeque::new(),
            resend: None,
        }
    }

    /// Creates a cursor within a removal, which is completed whatever became of the branch. `known` returns a block of the
    /// branch with its logs; `None` if one is not known, or the rest is longer than `max` blocks.
    #[must_use]
    pub fn within(
        removal: &Removal,
        max: usize,
        known: impl Fn(B256) -> Option<(Header, Arc<BlockLogs>)>,
    ) -> Option<Self> {
        let mut undo = VecDeque::new();
        let (mut at, mut up_to) = (removal.tip, removal.up_to);
        loop {
            let (header, logs) = known(at)?;
            if header.block.number <= removal.ancestor.number || undo.len() >= max {
                return None;
            }
            let parent = header.parent;
            if at == removal.block {
                let logs = logs.behind(removal.index).into();
                undo.push_front(Retraction { header, logs, up_to });
                break;
            }
            undo.push_front(Retraction { header, logs, up_to });
            (at, up_to) = (parent, None);
        }
        let left = AbandonedBranch {
            blocks: VecDeque::new(),
            ancestor: removal.ancestor,
        };
        Some(Self {
            first: 0,
            at: At::Undoing(undo, left),
            again: VecDeque::new(),
            resend: None,
        })
    }

    /// Like [`Self::within`], with blocks in memory.
    #[must_use]
    pub fn within_memory(removal: &Removal, max: usize, history: &History) -> Option<Self> {
        Self::within(removal, max, |hash| {
            let own = history.find(hash)?;
            Some((own.header.clone(), own.logs.clone()?))
        })
    }

    /// Returns the branch that is being taken back: the block behind which the stream goes on, and the last block that was
    /// delivered with the index of its last log (`None` for all).
    #[must_use]
    pub fn taking_back(&self) -> Option<(BlockRef, BlockRef, Option<u64>)> {
        let At::Undoing(undo, left) = &self.at else { return None };
        let tip = undo.back()?;
        Some((left.ancestor, tip.logs.block, tip.up_to))
    }

    /// Returns the number before which the stream begins; `None` behind a block.
    #[must_use]
    pub fn is_before(&self) -> Option<u64> {
        match self.at {
            At::Before(number) => Some(number),
            At::Behind(..) | At::Undoing(..) => None,
        }
    }

    /// Sets the number at which the stream began: no block below is taken back.
    #[must_use]
    pub fn began_at(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// Creates a cursor before the first block at or above this number.
    #[must_use]
    pub fn from(number: u64) -> Self {
        Self {
            first: number,
            at: At::Before(number),
            again: VecDeque::new(),
            resend: None,
        }
    }

    /// Moves to an abandoned branch: first its delivered logs are removed, oldest first, then the stream continues
    /// behind its ancestor.
    pub fn retrace(&mut self, undo: impl IntoIterator<Item = Retraction>, mut left: AbandonedBranch) {
        let first = self.first;
        let undo = undo.into_iter().filter(|undo| undo.logs.block.number >= first);
        left.blocks.retain(|block| block.number >= first);
        self.at = At::Undoing(undo.collect(), left);
    }

    /// Returns the number at which the stream began; 0 for a stream that began behind a block.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Checks if memory lacks logs of dropped blocks between this block and the canonical chain: their removal cannot
    /// be sent unless a node still has them.
    #[must_use]
    pub fn lacks_logs(history: &History, block: BlockRef) -> bool {
        let (_, left) = dropped_since(history, block, None, true);
        history.find(left.ancestor.hash).is_some() && !history.is_canonical(left.ancestor)
    }

    /// Returns the block behind which the stream is; `None` while it removes logs, and for a stream that begins with a
    /// number.
    #[must_use]
    pub fn is_behind(&self) -> Option<BlockRef> {
        match self.at {
            At::Behind(block, _) => Some(block),
            At::Before(_) | At::Undoing(..) => None,
        }
    }

    /// Returns the lowest number that the next whole block can have.
    #[must_use]
    pub fn first_ahead(&self) -> u64 {
        match &self.at {
            At::Before(number) => *number,
            At::Behind(block, _) => match self.resending(*block) {
                Some(resend) => resend.next,
                None => block.number.saturating_add(1),
            },
            At::Undoing(_, left) => {
                let above = left.ancestor.number.saturating_add(1);
                self.resend.as_deref().map_or(above, |resend| resend.next.min(above))
            }
        }
    }

    /// Checks if the stream can join a walk behind the block `walk`: it was sent that block last. Where the walk is behind
    /// no block yet, the stream's has to be of the published chain: memory has it, or the page proves it. A stream that
    /// begins with a number was sent none.
    ///
    /// # Errors
    /// The block that the stream was sent last, which may be of another branch; `None` in a removal.
    pub fn joins_behind(&self, walk: Option<BlockRef>, history: &History, page: &Page) -> Result<(), Option<BlockRef>> {
        let last = match &self.at {
            At::Before(_) => None,
            At::Behind(block, _) => match self.resending(*block) {
                Some(resend) => resend.last,
                None => Some(*block),
            },
            At::Undoing(..) => return Err(None),
        };
        let Some(last) = last else { return Ok(()) };
        let joins = match walk {
            Some(walk) => walk == last,
            None => history.is_canonical(last) || page.proves(last),
        };
        joins.then_some(()).ok_or(Some(last))
    }

    /// Checks if the stream is between two blocks, not within one.
    #[must_use]
    pub fn is_at_a_start(&self) -> bool {
        matches!(self.at, At::Before(_) | At::Behind(_, None))
    }

    /// Returns the repetition that is under way up to this block.
    fn resending(&self, block: BlockRef) -> Option<&Resend> {
        self.resend.as_deref().filter(|resend| resend.next <= block.number)
    }

    /// Returns the index of the last delivered log of `asked`; `None` if all were, or if the stream is not behind that
    /// block.
    #[must_use]
    pub fn last_log_of(&self, asked: BlockRef) -> Option<u64> {
        match self.at {
            At::Behind(block, up_to) if block == asked => up_to,
            _ => None,
        }
    }

    /// Handles that the nodes located `asked`, which memory did not know. `false` if that does not help: the block is
    /// canonical, and memory does not have it yet.
    pub fn found(&mut self, history: &History, asked: BlockRef, located: Located, logs: bool) -> bool {
        let At::Behind(block, up_to) = self.at else { return true };
        if block == asked && located.left.ancestor == asked {
            return false;
        }
        let Located { mut undo, mut left } = located;
        if block != asked {
            let (newer, since) = dropped_since(history, block, up_to, logs);
            if since.ancestor != asked {
                // The chain changed meanwhile: [`Self::next`] looks again.
                return true;
            }
            undo.extend(newer);
            left.blocks.extend(since.blocks);
        }
        self.retrace(undo, left);
        true
    }

    /// Returns the next step; it stays the same until [`Self::record_sent`].
    pub fn next(&mut self, history: &History, page: &Page, needs: Needs) -> Next {
        let logs = needs.logs();
        loop {
            match &mut self.at {
                At::Undoing(undo, left) => match if needs == Needs::Blocks {
                    undo.back()
                } else {
                    undo.front()
                } {
                    Some(undo) if logs => return Next::Retraction(undo.clone()),
                    _ => {
                        // A block that was still to be repeated is due when the chain adopts it again.
                        let due = self.resend.as_deref().map_or(u64::MAX, |resend| resend.next);
                        let again = left.blocks.drain(..).rev().filter(|block| !logs && block.number < due);
                        again.for_each(|block| self.again.push_front(block));
                        self.at = At::Behind(left.ancestor, None);
                    }
                },
                At::Before(number) => return from_number(*number, history, page, needs),
                &mut At::Behind(block, up_to) => {
                    let is_below = history.oldest().is_none_or(|oldest| block.number < oldest.number());
                    let known = history.is_canonical(block) || is_below && page.find(block).is_some();
                    if !known {
                        let (undo, left) = dropped_since(history, block, up_to, logs);
                        if history.is_canonical(left.ancestor) {
                            self.retrace(undo, left);
                            continue;
                        }
                        if left.ancestor != block {
                            // Removals come oldest first, so the older part of the branch has to be located first.
                            return Next::Lost(left.ancestor);
                        }
                    }
                    match history.tip() {
                        None => return Next::Ahead,
                        // The chain may yet reach this block, or may have abandoned it.
                        Some(tip) if tip.header.block.number < block.number => return Next::Lost(block),
                        Some(_) => {}
                    }
                    let resend = self.resend.as_deref().map(|resend| resend.next);
                    if let Some(number) = resend.filter(|number| *number <= block.number) {
                        return resent(number, block, history, page, needs);
                    }
                    let next = match up_to.filter(|_| logs) {
                        Some(up_to) => rest_of(block, up_to, history, page, needs),
                        None => behind(block, history, page, needs),
                    };
                    match (&next, self.again.front()) {
                        (Next::Block(own), Some(block)) if own.header.block == *block => {
                            self.at = At::Behind(*block, None);
                            self.again.pop_front();
                        }
                        // A live stream gets every head: join when other blocks take the place of these, or these come
                        // again.
                        (Next::Level, Some(_)) => return Next::Pending,
                        _ => return next,
                    }
                }
            }
        }
    }

    /// Advances the stream: `next` was delivered.
    pub fn record_sent(&mut self, next: &Next) {
        match (next, &mut self.at) {
            (Next::Retraction(sent), At::Undoing(undo, _)) => undo.retain(|own| own.logs.block != sent.logs.block),
            (Next::Rest(logs, _), _) => self.at = At::Behind(logs.block, None),
            (Next::Block(own), At::Behind(block, None))
                if own.number() <= block.number && self.resend.as_ref().is_some_and(|own| own.next <= block.number) =>
            {
                self.first = self.first.min(own.number());
                let (next, last) = (own.number().saturating_add(1), Some(own.header.block));
                self.resend = (next <= block.number).then(|| Box::new(Resend { next, last }));
            }
            (Next::Block(own), _) => {
                // After a reorg below the start, the blocks of the new branch come from there on.
                self.first = self.first.min(own.number());
                self.at = At::Behind(own.header.block, None);
                self.again.clear();
                self.resend = None;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
