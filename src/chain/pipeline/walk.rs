//! Walk from a head down to the known chain, by hash or by number, and the waypoints towards a head that is too
//! far ahead for one walk.

use alloy_primitives::B256;
use tracing::{debug, warn};

use super::{FetchRequest, MIN_PIPELINE, Pipeline};
use crate::chain::source::BadAnswer;
use crate::chain::{BlockRef, Header};

/// Attempts to fetch a block of a walk before the walk is given up: about a minute.
const WALK_GIVE_UP: u32 = 36;

/// Attempts after which failed calls no longer count, and the number of attempts that are then repeated: with up to
/// that many upstreams, each is asked again and again.
const WALK_PATIENT: u32 = 10;
const WALK_TURNS: u32 = 6;

/// Headers requested in one round trip of a walk: the parent by its hash, the blocks below by number, used if the walk
/// reaches them. If none of these is answered, the walk continues by hash alone.
const WALK_AHEAD: u64 = 15;

/// Consecutive answers that a block does not exist before they are believed: each from another node, over a second.
pub(super) const DENIED: u32 = 6;

/// Blocks requested by number in one round trip, for a block without a parent.
const NUMBERED: u64 = 64;

impl Pipeline {
    pub(super) fn walk_to(&mut self, hash: B256, attempt: u32) {
        if self.walking == Some(hash) && attempt == 0 {
            return;
        }
        if attempt == 0 {
            self.denied = 0;
        }
        self.walking = Some(hash);
        let gap = self.tracker.gap();
        // The last block of the gap is mostly the parent itself. No number is requested twice: one without an answer
        // has no block.
        let asked = self
            .ahead_to
            .filter(|(top, _)| gap.end <= *top)
            .map(|(_, lowest)| lowest);
        let last = gap.end.saturating_sub(1).min(asked.unwrap_or(u64::MAX));
        let ahead = gap.start.max(last.saturating_sub(WALK_AHEAD))..last;
        let ahead = if attempt == 0 { ahead } else { 0..0 };
        if !ahead.is_empty() {
            self.ahead_to = Some((gap.end, ahead.start));
        }
        self.asks.push(FetchRequest::Parent(hash, ahead, attempt));
    }

    /// Continues a walk at a block whose parent has no usable hash (`hardhat_mine` makes blocks without one, issue 11).
    pub(super) fn walk_by_number(&mut self, block: BlockRef, attempt: u32) {
        if self.numbering == Some(block) && attempt == 0 {
            return;
        }
        self.numbering = Some(block);
        if !std::mem::replace(&mut self.by_number, true) {
            warn!(
                %block,
                "the node has no parent of this block: headwater relates its blocks by number where parents are missing"
            );
        }
        let oldest = self.tracker.oldest().map_or(0, |oldest| oldest.number);
        let lowest = block.number.saturating_sub(NUMBERED).max(oldest);
        self.asks
            .push(FetchRequest::Numbered(block, lowest..=block.number, attempt));
    }

    pub(super) fn numbered(&mut self, block: BlockRef, found: Result<Vec<Header>, BadAnswer>, attempts: u32) {
        if self.numbering != Some(block) {
            return;
        }
        let failed = match found {
            Ok(found) => match self.tracker.supply_numbered(block, found) {
                Some(step) => return self.step(step),
                None => None,
            },
            Err(reason) => Some(reason),
        };
        match failed {
            // A failed call is no reason to give up.
            Some(BadAnswer::CallFailed) => self.walk_by_number(block, attempts.min(DENIED - 1)),
            _ if attempts < DENIED => self.walk_by_number(block, attempts),
            _ => self.give_up_walk(),
        }
    }

    /// Handles a head that is out of reach of a single walk: after an outage longer than history.
    pub(super) fn advance_by_waypoint(&mut self, head: Header, waypoint: u64) {
        let missing = self
            .tracker
            .tip()
            .map_or(0, |tip| head.block.number.saturating_sub(tip.block.number));
        // Not every number has a block: the missing blocks are estimated from the density of those in memory.
        let (blocks, numbers) = self.tracker.extent();
        let likely = u128::from(missing) * u128::from(blocks) / u128::from(numbers.max(1));
        if likely.max(self.caught_up.into()) > self.settings.max_replay.into() {
            self.caught_up = 0;
            let step = self.tracker.restart(head);
            return self.step(step);
        }
        if self.tracker.needs().is_none() && !self.needs_waypoint {
            debug!(head = %head.block, waypoint, "far behind the node; catching up in steps");
            self.needs_waypoint = true;
            self.asks.push(FetchRequest::Stone(waypoint, 0));
        }
        self.far = Some(head);
    }

    pub(super) fn stone_fetched(&mut self, number: u64, waypoint: Result<Option<Header>, BadAnswer>, attempts: u32) {
        if self.far.is_none() {
            self.needs_waypoint = false;
            return;
        }
        match waypoint {
            // The pipeline is bounded: the next stone waits until there is room.
            _ if self.pipeline.len() > self.settings.blocks.max(MIN_PIPELINE) => {
                self.asks.push(FetchRequest::Stone(number, 1))
            }
            Ok(Some(waypoint)) => {
                self.needs_waypoint = false;
                self.announced_stone(waypoint);
            }
            other => match tries_after(&other, attempts) {
                Some(tries) => self.asks.push(FetchRequest::Stone(number, tries)),
                None => {
                    self.needs_waypoint = false;
                    self.give_up_walk();
                }
            },
        }
    }

    /// Walks to a waypoint, the first block at or above a number: few blocks lead there, whatever its own number.
    fn announced_stone(&mut self, waypoint: Header) {
        let block = waypoint.block;
        let step = self.tracker.walk_to(waypoint);
        self.stepped(block, step);
    }

    /// Starts anew at the node's head: no node has the blocks between the known chain and that head.
    pub(super) fn give_up_walk(&mut self) {
        if let Some(head) = self.far.take().or_else(|| self.tracker.target().cloned()) {
            warn!(head = %head.block, "no node has the blocks between the published chain and this head");
            let step = self.tracker.restart(head);
            self.step(step);
        }
    }
}

/// Caps the attempts of failed calls, which are no reason to give up: the node may return. The count drops by several,
/// not by one, because it also selects the upstream to ask.
fn cap_tries(reason: BadAnswer, tries: u32) -> u32 {
    match tries {
        WALK_PATIENT.. if reason == BadAnswer::CallFailed => WALK_PATIENT - WALK_TURNS,
        _ => tries,
    }
}

/// Returns the number of attempts so far, or `None` if the block is given up.
pub(super) fn tries_after(answer: &Result<Option<Header>, BadAnswer>, tries: u32) -> Option<u32> {
    let tries = match answer {
        Err(reason) => cap_tries(*reason, tries),
        Ok(_) => tries,
    };
    (tries < WALK_GIVE_UP).then_some(tries)
}
