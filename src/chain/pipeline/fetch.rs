//! Requests to the nodes for blocks, and their answers.

use std::ops::{Range, RangeInclusive};

use alloy_primitives::B256;

use super::walk::{DENIED, tries_after};
use super::{Backfill, Pipeline};
use crate::chain::source::BadAnswer;
use crate::chain::{BlockRef, Header};

/// Request to the nodes; the `u32` is the number of attempts so far.
#[derive(Clone, Debug)]
pub(in crate::chain) enum FetchRequest {
    /// A block of a walk by its hash, and canonical blocks by number that the walk may reach.
    Parent(B256, Range<u64>, u32),
    /// The canonical blocks of these numbers, for a walk that reached this block, which has no parent.
    Numbered(BlockRef, RangeInclusive<u64>, u32),
    /// The node's tip, after the node announced this canonical block below our tip.
    TipBehind(BlockRef),
    /// The node's tip after a while, because the upstream that came into use in this round is behind ours.
    Settled(u64),
    /// The first block at or above this number, a waypoint towards a head that is far ahead.
    Stone(u64, u32),
    /// The parent of the oldest block.
    Backfill(B256),
}

/// Answer of a node; the `u32` is the number of attempts including this one.
#[derive(Debug)]
pub(in crate::chain) enum FetchResult {
    /// Answer to [`FetchRequest::Parent`].
    Parent(B256, Result<Option<Header>, BadAnswer>, Vec<Header>, u32),
    /// Answer to [`FetchRequest::Numbered`].
    Numbered(BlockRef, Result<Vec<Header>, BadAnswer>, u32),
    /// Answer to [`FetchRequest::TipBehind`].
    TipBehind(BlockRef, Option<Header>),
    /// Answer to [`FetchRequest::Settled`]; `None` if the node is syncing, or gives no answer.
    Settled(u64, Option<Header>),
    /// Answer to [`FetchRequest::Stone`].
    Stone(u64, Result<Option<Header>, BadAnswer>, u32),
    /// Answer to [`FetchRequest::Backfill`]; `None` if no node gives the block.
    Backfill(B256, Option<Header>),
}

impl Pipeline {
    /// Handles the answer to a request.
    pub(crate) fn fetched(&mut self, fetched: FetchResult) {
        match fetched {
            FetchResult::Parent(hash, block, below, attempts) => {
                if below.is_empty() {
                    // Few of these numbers have a block, or the node rejects that many calls at once.
                    self.ahead_to = self.ahead_to.map(|(top, _)| (top, 0));
                }
                for header in below {
                    // Set aside in case the walk reaches it.
                    let step = self.tracker.supply(header);
                    self.step(step);
                }
                match block {
                    // A block no longer needed is set aside: the walk may return to it.
                    Ok(Some(header)) => {
                        let step = self.tracker.supply(header);
                        self.step(step);
                    }
                    // A node may announce a block before it serves it, so retry while the hash is needed.
                    other if self.tracker.needs() == Some(hash) => {
                        self.denied = if matches!(other, Ok(None)) { self.denied + 1 } else { 0 };
                        match tries_after(&other, attempts) {
                            _ if self.denied >= DENIED => {
                                self.denied = 0;
                                let step = self.tracker.deny(hash);
                                self.step(step);
                            }
                            Some(tries) => self.walk_to(hash, tries),
                            None => self.give_up_walk(),
                        }
                    }
                    _ => {}
                }
            }
            FetchResult::Numbered(block, found, attempts) => self.numbered(block, found, attempts),
            // Meanwhile another upstream may have come into use, or been first to announce a block.
            FetchResult::TipBehind(block, Some(tip)) if tip.block == block && self.catching_up => {}
            FetchResult::TipBehind(block, Some(tip)) if tip.block == block => {
                let step = self.tracker.rewind(block.hash);
                self.step(step);
            }
            FetchResult::TipBehind(_, Some(tip)) => self.announced(tip),
            FetchResult::TipBehind(_, None) => {}
            FetchResult::Settled(round, tip) => {
                self.settling = None;
                match tip {
                    _ if !self.catching_up || round != self.round => {}
                    Some(tip) => {
                        self.catching_up = false;
                        self.believe(tip);
                    }
                    None => {
                        self.settling = Some(round);
                        self.asks.push(FetchRequest::Settled(round));
                    }
                }
            }
            FetchResult::Stone(number, waypoint, attempts) => self.stone_fetched(number, waypoint, attempts),
            // An answer for another hash is from before the chain started anew.
            FetchResult::Backfill(hash, found) if matches!(self.past, Backfill::Fetching(asked) if asked == hash) => {
                self.past = match found {
                    Some(header) => Backfill::Held(header),
                    None => Backfill::Complete,
                };
                self.backfill();
            }
            FetchResult::Backfill(..) => {}
        }
    }
}
