//! The chain being put together: what was seen and fetched goes in; what is to be published, in order, and what is to be
//! asked for comes out. No I/O, no clock.
//!
//! The pipeline holds what is still to be published, oldest first. A head leaves it as soon as its parents are known: a block's
//! contents are fetched beside ([`super::Contents`]). A block that is dropped before its head was published leaves no trace.

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use tracing::{debug, info, warn};

use super::source::{Refused, Verify};
use super::{BlockRef, Header, Step, Tracker};
use crate::telemetry::Metrics;
use crate::upstream::MAX_HOLE;

/// Attempts to fetch a block of a walk before the walk is given up: about a minute.
const WALK_GIVE_UP: u32 = 36;

/// Attempts from which on failed calls are no longer counted, and the attempts that are then repeated; with up to so many
/// upstreams each one gets its turn again and again.
const WALK_PATIENT: u32 = 10;
const WALK_TURNS: u32 = 6;

/// Blocks that may wait to be published even where less history is kept, before the next stepping stone is looked at.
const MIN_PIPELINE: usize = 64;

/// So many times as many end in a loss of continuity: the last stone and the head behind it bring one and a half, and
/// heads go on coming.
const MAX_PIPELINES: usize = 4;

/// Headers asked for in one round trip of a walk: the parent by its hash, the ones below by number, which are used if the
/// walk comes to them. Where none of these is answered the rest of the walk goes by hashes alone.
const WALK_AHEAD: u64 = 15;

/// Largest lead of a doubted head, in blocks, at which its parents are fetched all the same: a polled node reports one
/// of several blocks, and is the first to do so now and then.
const SHORT_WALK: u64 = 64;

/// Answers in a row that there is no such block after which it is believed: over a second, and each asks another node.
const DENIED: u32 = 6;

/// Blocks without a parent that are asked for by number in one round trip.
const NUMBERED: u64 = 64;

/// What happened to the canonical chain, in the order of delivery (E1 to E3).
#[derive(Clone, Debug)]
pub enum ChainEvent {
    /// A block was adopted on top of the one before.
    Head(Header),
    /// Every block above this one was dropped.
    Rewind(BlockRef),
    /// The block below the oldest one that was published so far: nothing happened, but history reaches further.
    Past(Header),
    /// Blocks are missing that cannot be had any more; what follows starts anew.
    ContinuityLost(Loss),
}

/// Why continuity was lost; each has a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A reorg reached below what is remembered, or an outage was longer than is made up for.
    TooFar,
    /// The node's chain began anew.
    Replaced,
    /// Too many blocks waited to be published.
    Backlog,
    /// The nodes have not, or no longer, what a client that came back is to be told.
    NoPast,
}

impl Loss {
    /// The value of the `reason` label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TooFar => "too_far",
            Self::Replaced => "replaced",
            Self::Backlog => "backlog",
            Self::NoPast => "no_past",
        }
    }
}

/// Settings of the history.
#[derive(Clone, Copy, Debug)]
pub struct HistorySettings {
    /// Blocks kept with their logs, dropped ones not counted; also how far back a reorg may reach.
    pub blocks: usize,
    /// Blocks that may be missing after an outage and are still fetched one by one.
    pub max_replay: u64,
    /// What logs are held against before they are delivered (E7).
    pub verify: Verify,
    /// How long an upstream that comes into use may be behind what was published before the chain is taken to have gone
    /// back.
    pub patience: Duration,
    /// Bytes of blocks that do not belong to the chain yet, or not any more.
    pub max_parent_bytes: usize,
    /// Bytes of the blocks that are kept.
    pub max_bytes: usize,
}

#[derive(Debug)]
enum Work {
    Adopt(Header),
    Rewind(BlockRef),
    ContinuityLost(Loss),
}

/// What is to be asked of the nodes; the number counts the tries before.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// A block on a walk, and these canonical ones, which the walk may come to.
    Parent(B256, Range<u64>, u32),
    /// The canonical blocks of these numbers, for a walk that came to this block, which has no parent.
    Numbered(BlockRef, RangeInclusive<u64>, u32),
    /// The tip, for a block was announced that lies behind ours.
    TipBehind(BlockRef),
    /// The tip again after a while, for the upstream that came into use in this round lies behind ours.
    Settled(u64),
    /// A stepping stone on the way to a head that is far ahead.
    Stone(u64, u32),
    /// The block below the oldest.
    Past(B256),
}

/// What a node answered; the number counts the tries with this one.
#[derive(Debug)]
pub(super) enum Fetched {
    /// To [`Ask::Parent`].
    Parent(B256, Result<Option<Header>, Refused>, Vec<Header>, u32),
    /// To [`Ask::Numbered`].
    Numbered(BlockRef, Result<Vec<Header>, Refused>, u32),
    /// To [`Ask::TipBehind`].
    TipBehind(BlockRef, Option<Header>),
    /// To [`Ask::Settled`]; `None` where the node says that it is syncing, or nothing.
    Settled(u64, Option<Header>),
    /// To [`Ask::Stone`].
    Stone(u64, Result<Option<Header>, Refused>, u32),
    /// To [`Ask::Past`]; `None` where it cannot be had.
    Past(B256, Option<Header>),
}

/// The chain as far as it is known, published or not.
#[derive(Debug)]
pub(super) struct Assembly {
    settings: HistorySettings,
    metrics: Arc<Metrics>,
    tracker: Tracker,
    pipeline: VecDeque<Work>,
    walking: Option<B256>,
    /// The block without a parent below which the node's blocks are asked for by number.
    numbering: Option<BlockRef>,
    /// Where the walk stood when it last asked for numbers ahead of it, and the lowest of these; 0 where that led nowhere.
    ahead_to: Option<(u64, u64)>,
    /// Answers in a row that there is no such block as the walk needs.
    denied: u32,
    /// Blocks were related by number, and it was said.
    by_number: bool,
    /// A head too far ahead for one walk: the chain goes there by stepping stones.
    far: Option<Header>,
    stone_wanted: bool,
    /// Blocks adopted on the way there.
    caught_up: u64,
    past: Past,
    /// The upstream in use is new, or returned, or another one was first with a block: it may be behind for a while, which
    /// is no reorg.
    catching_up: bool,
    /// The word of the upstream in use is doubted.
    is_wary: bool,
    /// Counts the times that it began to catch up, and which of them is asked about.
    round: u64,
    settling: Option<u64>,
    asks: Vec<Ask>,
}

/// How the filling of history below the first block goes. After a start a reorg may reach below it, and clients come back
/// who were told of those blocks before.
#[derive(Debug)]
enum Past {
    /// The next one is to be fetched.
    Wanted,
    Fetching(B256),
    /// It is here, and waits until all that is known is published: what listens must have room for it, too.
    Held(Header),
    Ready(Header),
    /// History is full, begins with the chain, or the node has no more.
    Complete,
}

impl Assembly {
    pub fn new(settings: HistorySettings, metrics: Arc<Metrics>) -> Self {
        Self {
            settings,
            metrics,
            tracker: Tracker::new(settings.blocks).within(settings.max_parent_bytes),
            pipeline: VecDeque::new(),
            walking: None,
            numbering: None,
            ahead_to: None,
            denied: 0,
            by_number: false,
            far: None,
            stone_wanted: false,
            caught_up: 0,
            past: Past::Wanted,
            catching_up: true,
            is_wary: false,
            round: 0,
            settling: None,
            asks: Vec::new(),
        }
    }

    /// What is to be asked for now.
    pub fn asks(&mut self) -> std::vec::Drain<'_, Ask> {
        self.asks.drain(..)
    }

    /// Bytes of blocks that do not belong to the published chain.
    pub fn stray_bytes(&self) -> usize {
        self.tracker.stray_bytes() + self.pipeline_bytes()
    }

    /// Whether the upstream in use has not yet come to where the chain is.
    pub fn is_catching_up(&self) -> bool {
        self.catching_up
    }

    /// Records if the height of the upstream in use is doubted, see [`Tracker::set_wary`].
    pub fn doubt(&mut self, is_doubted: bool) {
        self.is_wary = is_doubted;
        self.tracker.set_wary(is_doubted);
    }

    /// Handles a head that an upstream not in use was first to announce: accepted where it extends the tip. Branches,
    /// and numbers without a block, are accepted from the upstream in use only: any node can name the tip as a parent.
    /// Returns if it was accepted.
    pub fn glimpsed(&mut self, header: Header) -> bool {
        let extends = self.tracker.tip().is_some_and(|tip| {
            tip.block.hash == header.parent && header.block.number.saturating_sub(tip.block.number) <= MAX_HOLE
        });
        // A walk is the way to more than this block, unless it leads to what is doubted.
        let is_accepted = extends && (self.is_wary || self.tracker.needs().is_none());
        if is_accepted {
            let step = self.tracker.announce(header);
            self.step(step);
            self.catch_up();
        }
        is_accepted
    }

    /// The upstream in use may be behind what was published.
    fn catch_up(&mut self) {
        self.catching_up = true;
        self.round += 1;
    }

    /// It is behind. Nearly always it comes up; where it does not, it is the chain that went back.
    fn wait_for_upstream(&mut self, block: BlockRef) {
        debug!(%block, "the upstream is behind what was published; waiting for it");
        if self.settling != Some(self.round) {
            self.settling = Some(self.round);
            self.asks.push(Ask::Settled(self.round));
        }
    }

    /// Another upstream is in use, or the same one after it was lost.
    pub fn in_use(&mut self) {
        self.catch_up();
        // A walk on the word of another one may lead to blocks that this one never had.
        self.tracker.abandon_walk();
        self.walking = None;
        self.numbering = None;
        self.far = None;
        if matches!(self.past, Past::Complete) {
            self.past = Past::Wanted;
        }
    }

    /// The chain has begun anew, whatever its height.
    pub fn replaced(&mut self) {
        if self.tracker.tip().is_none() {
            return;
        }
        self.start_anew(Loss::Replaced);
    }

    /// Nothing that is known leads on: the next head is the first.
    fn start_anew(&mut self, loss: Loss) {
        self.tracker = Tracker::new(self.settings.blocks).within(self.settings.max_parent_bytes);
        self.tracker.set_wary(self.is_wary);
        self.walking = None;
        self.numbering = None;
        self.far = None;
        self.past = Past::Wanted;
        self.pipeline.clear();
        self.pipeline.push_back(Work::ContinuityLost(loss));
    }

    /// The upstream in use says: this is my head.
    pub fn announced(&mut self, header: Header) {
        let tip = self.tracker.tip().map(|tip| tip.block.number);
        if self.is_wary && tip.is_some_and(|tip| header.block.number.saturating_sub(tip) > SHORT_WALK) {
            debug!(head = %header.block, "doubted: no other node has come so far");
            self.glimpsed(header);
            return;
        }
        // On another branch it may be one that this upstream has only not left yet.
        let behind = self.catching_up
            && self
                .tracker
                .tip()
                .is_some_and(|tip| header.block.number < tip.block.number);
        let below = |oldest: BlockRef| header.block.number <= oldest.number && header.block != oldest;
        if behind || self.tracker.oldest().is_some_and(below) {
            // A node that has just come into use, or a balancer that asked a backend far behind. Once is no proof.
            if !self.catching_up {
                self.catch_up();
            }
            return self.wait_for_upstream(header.block);
        }
        self.believe(header);
    }

    /// As [`Self::announced`], for a head that is doubted no longer, or never was.
    fn believe(&mut self, header: Header) {
        self.far = None;
        self.announce(header);
    }

    fn announce(&mut self, header: Header) {
        let block = header.block;
        let step = self.tracker.announce(header);
        self.stepped(block, step);
    }

    /// The first block at or above the number of a stepping stone: few blocks lead to it, whatever its own number.
    fn announced_stone(&mut self, stone: Header) {
        let block = stone.block;
        let step = self.tracker.walk_to(stone);
        self.stepped(block, step);
    }

    fn stepped(&mut self, block: BlockRef, step: Step) {
        self.step(step);
        if self.tracker.tip().is_some_and(|tip| tip.block == block) {
            // Level with what was published: from here on a step back is one.
            self.catching_up = false;
            if self.far.is_none() {
                self.caught_up = 0;
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Nothing => {}
            Step::Need(hash) => self.walk_to(hash, 0),
            Step::NeedNumbered(block) => self.walk_by_number(block, 0),
            Step::Extend(new) => self.adopt(new),
            Step::Reorg {
                ancestor,
                dropped,
                adopted,
            } => {
                info!(ancestor = %ancestor, dropped = dropped.len(), adopted = adopted.len(), "reorg");
                self.metrics.reorgs.inc();
                self.metrics.reorged_blocks.inc_by(dropped.len() as u64);
                self.rewind(ancestor, &dropped);
                self.adopt(adopted);
            }
            Step::Behind(block) if self.catching_up => self.wait_for_upstream(block),
            Step::Behind(block) => {
                self.asks.push(Ask::TipBehind(block));
            }
            Step::Far { head, stone } => self.go_far(head, stone),
            Step::Reset(head) => self.reset(head),
        }
        if self.tracker.needs().is_none() {
            self.walking = None;
            self.numbering = None;
            self.ahead_to = None;
            if !self.stone_wanted
                && let Some(head) = self.far.take()
            {
                self.announce(head);
            }
        }
    }

    /// A head that no single walk reaches: after an outage that was longer than history.
    fn go_far(&mut self, head: Header, stone: u64) {
        let missing = self
            .tracker
            .tip()
            .map_or(0, |tip| head.block.number.saturating_sub(tip.block.number));
        // Not every number need have a block: they are taken to be as far apart as those that are remembered.
        let (blocks, numbers) = self.tracker.extent();
        let likely = u128::from(missing) * u128::from(blocks) / u128::from(numbers.max(1));
        if likely.max(self.caught_up.into()) > self.settings.max_replay.into() {
            self.caught_up = 0;
            let step = self.tracker.restart(head);
            return self.step(step);
        }
        if self.tracker.needs().is_none() && !self.stone_wanted {
            debug!(head = %head.block, stone, "far behind the node: catching up");
            self.stone_wanted = true;
            self.asks.push(Ask::Stone(stone, 0));
        }
        self.far = Some(head);
    }

    fn stone_fetched(&mut self, number: u64, stone: Result<Option<Header>, Refused>, attempts: u32) {
        if self.far.is_none() {
            self.stone_wanted = false;
            return;
        }
        match stone {
            // What waits to be published is bounded: the next stone is looked at when there is room.
            _ if self.pipeline.len() > self.settings.blocks.max(MIN_PIPELINE) => self.asks.push(Ask::Stone(number, 1)),
            Ok(Some(stone)) => {
                self.stone_wanted = false;
                self.announced_stone(stone);
            }
            other => match tries_after(&other, attempts) {
                Some(tries) => self.asks.push(Ask::Stone(number, tries)),
                None => {
                    self.stone_wanted = false;
                    self.give_up_walk();
                }
            },
        }
    }

    /// Nobody serves the way from what is known to the node's head.
    fn give_up_walk(&mut self) {
        if let Some(head) = self.far.take().or_else(|| self.tracker.target().cloned()) {
            warn!(head = %head.block, "no node has the blocks before this head");
            let step = self.tracker.restart(head);
            self.step(step);
        }
    }

    fn reset(&mut self, head: Header) {
        // Where there is a newer head than the one that did not fit, it is as good a start, and nearer to the tip.
        if let Some(far) = self.far.take() {
            let step = self.tracker.restart(far);
            return self.step(step);
        }
        warn!(head = %head.block, "continuity lost: more blocks are missing than can be fetched; clients are closed with 1012");
        self.pipeline.clear();
        self.pipeline.push_back(Work::ContinuityLost(Loss::TooFar));
        self.past = Past::Wanted;
        self.adopt(vec![head]);
    }

    fn adopt(&mut self, headers: Vec<Header>) {
        self.catching_up = false;
        if self.far.is_some() {
            self.caught_up += headers.len() as u64;
        }
        self.metrics
            .backfilled_blocks
            .inc_by(headers.len().saturating_sub(1) as u64);
        self.pipeline.extend(headers.into_iter().map(Work::Adopt));
        // A node that announces heads faster than they can be published must not fill the memory.
        let is_long = self.pipeline.len() > MAX_PIPELINES * self.settings.blocks.max(MIN_PIPELINE);
        if is_long || self.pipeline_bytes() > self.settings.max_parent_bytes {
            warn!(
                blocks = self.pipeline.len(),
                "too many blocks wait to be published; clients are closed with 1012"
            );
            self.start_anew(Loss::Backlog);
        }
    }

    fn pipeline_bytes(&self) -> usize {
        let bytes = |work: &Work| match work {
            Work::Adopt(header) => header.json.len(),
            Work::Rewind(_) | Work::ContinuityLost(_) => 0,
        };
        self.pipeline.iter().map(bytes).sum()
    }

    /// Takes back what is above `ancestor`; `dropped` is newest first. A block whose head was not published leaves no trace.
    fn rewind(&mut self, ancestor: BlockRef, dropped: &[BlockRef]) {
        let mut published = false;
        for block in dropped {
            let waiting = self
                .pipeline
                .iter()
                .rposition(|work| matches!(work, Work::Adopt(header) if header.block == *block));
            published |= waiting.and_then(|at| self.pipeline.remove(at)).is_none();
        }
        if published {
            // Two steps back are one, so that removals come oldest first (E2).
            while matches!(self.pipeline.back(), Some(Work::Rewind(_))) {
                self.pipeline.pop_back();
            }
            self.pipeline.push_back(Work::Rewind(ancestor));
        }
    }

    fn walk_to(&mut self, hash: B256, attempt: u32) {
        if self.walking == Some(hash) && attempt == 0 {
            return;
        }
        if attempt == 0 {
            self.denied = 0;
        }
        self.walking = Some(hash);
        let gap = self.tracker.gap();
        // The parent itself is the last of the gap, mostly. No number is asked for twice: where it was not answered it has no
        // block.
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
        self.asks.push(Ask::Parent(hash, ahead, attempt));
    }

    /// The parent of a block is not to be had by a hash (`hardhat_mine` makes blocks without one, issue 11).
    fn walk_by_number(&mut self, block: BlockRef, attempt: u32) {
        if self.numbering == Some(block) && attempt == 0 {
            return;
        }
        self.numbering = Some(block);
        if !std::mem::replace(&mut self.by_number, true) {
            warn!(%block, "the node has no parent of this block: where parents are missing, its blocks are related by number");
        }
        let oldest = self.tracker.oldest().map_or(0, |oldest| oldest.number);
        let lowest = block.number.saturating_sub(NUMBERED).max(oldest);
        self.asks.push(Ask::Numbered(block, lowest..=block.number, attempt));
    }

    fn numbered(&mut self, block: BlockRef, found: Result<Vec<Header>, Refused>, attempts: u32) {
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
            // Without an answer there is nothing to give up on.
            Some(Refused::CallFailed) => self.walk_by_number(block, attempts.min(DENIED - 1)),
            _ if attempts < DENIED => self.walk_by_number(block, attempts),
            _ => self.give_up_walk(),
        }
    }

    /// An answer came.
    pub fn fetched(&mut self, fetched: Fetched) {
        match fetched {
            Fetched::Parent(hash, block, below, attempts) => {
                if below.is_empty() {
                    // Few of these numbers have a block, or the node does not answer so many questions.
                    self.ahead_to = self.ahead_to.map(|(top, _)| (top, 0));
                }
                for header in below {
                    // Put aside: the walk comes to it, or not.
                    let step = self.tracker.supply(header);
                    self.step(step);
                }
                match block {
                    // One that is not needed any more is put aside: the walk may come back to it.
                    Ok(Some(header)) => {
                        let step = self.tracker.supply(header);
                        self.step(step);
                    }
                    // A node may announce a block before it serves it; while the hash is needed it is asked for.
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
            Fetched::Numbered(block, found, attempts) => self.numbered(block, found, attempts),
            // Meanwhile another upstream may have come into use, or been first with a block.
            Fetched::TipBehind(block, Some(tip)) if tip.block == block && self.catching_up => {}
            Fetched::TipBehind(block, Some(tip)) if tip.block == block => {
                let step = self.tracker.rewind(block.hash);
                self.step(step);
            }
            Fetched::TipBehind(_, Some(tip)) => self.announced(tip),
            Fetched::TipBehind(_, None) => {}
            Fetched::Settled(round, tip) => {
                self.settling = None;
                match tip {
                    _ if !self.catching_up || round != self.round => {}
                    Some(tip) => {
                        self.catching_up = false;
                        self.believe(tip);
                    }
                    None => {
                        self.settling = Some(round);
                        self.asks.push(Ask::Settled(round));
                    }
                }
            }
            Fetched::Stone(number, stone, attempts) => self.stone_fetched(number, stone, attempts),
            // Another answer is from before the chain started anew.
            Fetched::Past(hash, found) if matches!(self.past, Past::Fetching(asked) if asked == hash) => {
                self.past = match found {
                    Some(header) => Past::Held(header),
                    None => Past::Complete,
                };
                self.fetch_past();
            }
            Fetched::Past(..) => {}
        }
    }

    /// Asks for the block below the oldest one, when there is nothing better to do.
    fn fetch_past(&mut self) {
        if !self.pipeline.is_empty() {
            return;
        }
        self.past = match std::mem::replace(&mut self.past, Past::Wanted) {
            Past::Held(header) if self.tracker.prepend(&header) => Past::Ready(header),
            // It does not fit, and would not fit if it was asked for again.
            Past::Held(header) if self.tracker.below() == Some(header.block.hash) => Past::Complete,
            // The chain started anew meanwhile.
            Past::Held(..) => Past::Wanted,
            other => other,
        };
        if !matches!(self.past, Past::Wanted) {
            return;
        }
        let Some(below) = self.tracker.below() else {
            self.past = Past::Complete;
            return;
        };
        self.past = Past::Fetching(below);
        self.asks.push(Ask::Past(below));
    }

    /// Whether there is something to publish.
    pub fn has_news(&self) -> bool {
        !self.pipeline.is_empty() || matches!(self.past, Past::Ready(..))
    }

    /// The next event in order.
    pub fn next_event(&mut self) -> Option<ChainEvent> {
        // First, for events behind it may go back to it.
        if matches!(self.past, Past::Ready(..))
            && let Past::Ready(header) = std::mem::replace(&mut self.past, Past::Wanted)
        {
            self.fetch_past();
            return Some(ChainEvent::Past(header));
        }
        let event = self.pipeline.pop_front().map(|work| match work {
            Work::Adopt(header) => ChainEvent::Head(header),
            Work::Rewind(to) => ChainEvent::Rewind(to),
            Work::ContinuityLost(loss) => ChainEvent::ContinuityLost(loss),
        });
        self.fetch_past();
        event
    }
}

/// Without an answer there is nothing to give up on: the node may come back. The count goes back by several, not by one,
/// for it also says whose turn it is among the upstreams.
fn patient(reason: Refused, tries: u32) -> u32 {
    match tries {
        WALK_PATIENT.. if reason == Refused::CallFailed => WALK_PATIENT - WALK_TURNS,
        _ => tries,
    }
}

/// How often a block was asked for, `None` where that was often enough.
fn tries_after(answer: &Result<Option<Header>, Refused>, tries: u32) -> Option<u32> {
    let tries = match answer {
        Err(reason) => patient(*reason, tries),
        Ok(_) => tries,
    };
    (tries < WALK_GIVE_UP).then_some(tries)
}
