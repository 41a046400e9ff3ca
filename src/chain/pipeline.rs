//! Assembly of the chain: announced and fetched headers go in; events to publish, in order, and requests to the nodes
//! come out. No I/O, no clock.
//!
//! The pipeline contains the events still to be published, oldest first. A head leaves it as soon as its parents are
//! known: the contents of a block are fetched in parallel ([`super::ContentFetches`]). A block that is dropped before
//! its head was published leaves no trace.

mod fetch;
mod walk;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use tracing::{debug, info, warn};

use super::source::Verify;
use super::{BlockRef, Header, Step, Tracker};
use crate::telemetry::Metrics;
use crate::upstream::MAX_HOLE;

pub(super) use fetch::{FetchRequest, FetchResult};

/// Blocks that may wait to be published before the next waypoint is postponed; more if history keeps more.
const MIN_PIPELINE: usize = 64;

/// Multiple of that number at which continuity is lost: the last stone and the head above it bring one and a half times
/// as many blocks, and heads keep arriving.
const MAX_PIPELINES: usize = 4;

/// Largest lead of a doubted head over the tip, in blocks, at which its parents are still fetched: a polled node
/// reports one of several blocks, and is sometimes the first to report a block.
const SHORT_WALK: u64 = 64;

/// Change of the canonical chain, in the order of delivery (E1 to E3).
#[derive(Clone, Debug)]
pub enum ChainEvent {
    /// A block was adopted on top of the previous one.
    Head(Header),
    /// All blocks above this one were dropped.
    Rewind(BlockRef),
    /// Backfilled parent of the oldest published block: the chain did not change, history reaches further down.
    Backfilled(Header),
    /// Blocks are missing that cannot be fetched any more; the chain starts anew with the next head.
    ContinuityLost(Loss),
}

/// Reason for a loss of continuity; each has a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A reorg reached below the blocks in memory, or an outage was too long to catch up.
    TooFar,
    /// The node's chain started anew.
    Replaced,
    /// Too many blocks waited to be published.
    Backlog,
    /// The nodes lack, or have pruned, blocks or logs that a resuming client needs.
    NoBackfill,
}

impl Loss {
    /// Returns the value of the `reason` label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TooFar => "too_far",
            Self::Replaced => "replaced",
            Self::Backlog => "backlog",
            Self::NoBackfill => "no_backfill",
        }
    }
}

/// Settings of the history.
#[derive(Clone, Copy, Debug)]
pub struct HistorySettings {
    /// Blocks kept with their logs, dropped ones not counted; also the maximum depth of a reorg.
    pub blocks: usize,
    /// Largest number of blocks missing after an outage that is still fetched one by one.
    pub max_replay: u64,
    /// Data that logs are checked against before delivery (E7).
    pub verify: Verify,
    /// Time that an upstream which comes into use behind the published head has to catch up, before the chain counts as
    /// rewound.
    pub rewind_delay: Duration,
    /// Bound in bytes of JSON: for the blocks of a walk, for blocks set aside, and for blocks that wait to be
    /// published, each.
    pub max_parent_bytes: usize,
    /// Bound in bytes for the blocks in memory.
    pub max_bytes: usize,
}

#[derive(Debug)]
enum PendingEvent {
    Adopt(Header),
    Rewind(BlockRef),
    ContinuityLost(Loss),
}

/// Known part of the chain, published or not.
#[derive(Debug)]
pub(super) struct Pipeline {
    settings: HistorySettings,
    metrics: Arc<Metrics>,
    tracker: Tracker,
    pipeline: VecDeque<PendingEvent>,
    walking: Option<B256>,
    /// Block without a parent, below which the node's blocks are requested by number.
    numbering: Option<BlockRef>,
    /// Upper end of the walk's gap when numbers ahead were last requested, and the lowest of these numbers; 0 if none
    /// was answered.
    ahead_to: Option<(u64, u64)>,
    /// Consecutive answers that the block which the walk needs does not exist.
    denied: u32,
    /// `true` once blocks were related by number, which is logged once.
    by_number: bool,
    /// Head too far ahead for one walk; the chain gets there by waypoints.
    far: Option<Header>,
    needs_waypoint: bool,
    /// Blocks adopted on the way to `far`.
    caught_up: u64,
    past: Backfill,
    /// `true` if the upstream in use is new or reconnected, or another one was first to announce a block: it may be
    /// behind for a while, which is no reorg.
    catching_up: bool,
    /// `true` while the height of the upstream in use is doubted.
    is_wary: bool,
    /// Number of times that catching up began, and the round for which a request about the tip is pending.
    round: u64,
    settling: Option<u64>,
    asks: Vec<FetchRequest>,
}

/// Progress of the backfill below the first block. After a start a reorg may reach below that block, and resuming
/// clients may have been delivered older blocks.
#[derive(Debug)]
enum Backfill {
    /// The next block is to be requested.
    Wanted,
    Fetching(B256),
    /// Fetched; waits until all known blocks are published, because receivers of the events need room for it, too.
    Held(Header),
    Ready(Header),
    /// History is full, or begins with the chain, or the node has no older block.
    Complete,
}

impl Pipeline {
    pub(super) fn new(settings: HistorySettings, metrics: Arc<Metrics>) -> Self {
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
            needs_waypoint: false,
            caught_up: 0,
            past: Backfill::Wanted,
            catching_up: true,
            is_wary: false,
            round: 0,
            settling: None,
            asks: Vec::new(),
        }
    }

    /// Takes the requests to be sent now.
    pub(super) fn asks(&mut self) -> std::vec::Drain<'_, FetchRequest> {
        self.asks.drain(..)
    }

    /// Returns the bytes of JSON of blocks that are not part of the published chain.
    pub(super) fn stray_bytes(&self) -> usize {
        self.tracker.stray_bytes() + self.pipeline_bytes()
    }

    /// Checks if the upstream in use may still be behind the published chain.
    pub(super) fn is_catching_up(&self) -> bool {
        self.catching_up
    }

    /// Records if the height of the upstream in use is doubted, see [`Tracker::set_wary`].
    pub(super) fn doubt(&mut self, is_doubted: bool) {
        self.is_wary = is_doubted;
        self.tracker.set_wary(is_doubted);
    }

    /// Handles a head that an upstream not in use was first to announce: accepted if it extends the tip. Branches, and
    /// numbers without a block, are accepted from the upstream in use only: any node can name the tip as a parent.
    /// Returns `true` if the head was accepted.
    pub(super) fn announced_by_standby(&mut self, header: Header) -> bool {
        let extends = self.tracker.tip().is_some_and(|tip| {
            tip.block.hash == header.parent && header.block.number.saturating_sub(tip.block.number) <= MAX_HOLE
        });
        // A walk in progress leads to more than this block, unless it leads to a doubted head.
        let is_accepted = extends && (self.is_wary || self.tracker.needs().is_none());
        if is_accepted {
            let step = self.tracker.announce(header);
            self.step(step);
            self.catch_up();
        }
        is_accepted
    }

    /// Begins a round in which the upstream in use may be behind the published chain.
    fn catch_up(&mut self) {
        self.catching_up = true;
        self.round += 1;
    }

    /// Asks for the tip again after a while. Nearly always the upstream catches up; if it does not, the chain was
    /// rewound.
    fn wait_for_upstream(&mut self, block: BlockRef) {
        debug!(%block, "the active upstream is behind the published chain; waiting for it");
        if self.settling != Some(self.round) {
            self.settling = Some(self.round);
            self.asks.push(FetchRequest::Settled(self.round));
        }
    }

    /// Handles that another upstream came into use, or the same one reconnected.
    pub(super) fn in_use(&mut self) {
        self.catch_up();
        // A walk to another upstream's head may lead to blocks that this upstream never had.
        self.tracker.abandon_walk();
        self.walking = None;
        self.numbering = None;
        self.far = None;
        if matches!(self.past, Backfill::Complete) {
            self.past = Backfill::Wanted;
        }
    }

    /// Handles that the node's chain started anew, at whatever height.
    pub(super) fn replaced(&mut self) {
        if self.tracker.tip().is_none() {
            return;
        }
        self.start_anew(Loss::Replaced);
    }

    /// Forgets the chain and queues the loss of continuity; the next head is the first.
    fn start_anew(&mut self, loss: Loss) {
        self.tracker = Tracker::new(self.settings.blocks).within(self.settings.max_parent_bytes);
        self.tracker.set_wary(self.is_wary);
        self.walking = None;
        self.numbering = None;
        self.far = None;
        self.past = Backfill::Wanted;
        self.pipeline.clear();
        self.pipeline.push_back(PendingEvent::ContinuityLost(loss));
    }

    /// Handles a head announced by the upstream in use.
    pub(super) fn announced(&mut self, header: Header) {
        let tip = self.tracker.tip().map(|tip| tip.block.number);
        if self.is_wary && tip.is_some_and(|tip| header.block.number.saturating_sub(tip) > SHORT_WALK) {
            debug!(head = %header.block, "head not followed yet: no other node has reached its height");
            self.announced_by_standby(header);
            return;
        }
        // Even on another branch, this may be a head that the upstream has yet to leave.
        let behind = self.catching_up
            && self
                .tracker
                .tip()
                .is_some_and(|tip| header.block.number < tip.block.number);
        let below = |oldest: BlockRef| header.block.number <= oldest.number && header.block != oldest;
        if behind || self.tracker.oldest().is_some_and(below) {
            // The node has just come into use, or a balancer asked a backend far behind: one report is no proof.
            if !self.catching_up {
                self.catch_up();
            }
            return self.wait_for_upstream(header.block);
        }
        self.believe(header);
    }

    /// Handles a head as [`Self::announced`] does, once it is not doubted any more.
    fn believe(&mut self, header: Header) {
        self.far = None;
        self.announce(header);
    }

    fn announce(&mut self, header: Header) {
        let block = header.block;
        let step = self.tracker.announce(header);
        self.stepped(block, step);
    }

    fn stepped(&mut self, block: BlockRef, step: Step) {
        self.step(step);
        if self.tracker.tip().is_some_and(|tip| tip.block == block) {
            // Level with the published chain: from here on, a lower head means a rewind.
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
                self.asks.push(FetchRequest::TipBehind(block));
            }
            Step::Far { head, waypoint } => self.advance_by_waypoint(head, waypoint),
            Step::Reset(head) => self.reset(head),
        }
        if self.tracker.needs().is_none() {
            self.walking = None;
            self.numbering = None;
            self.ahead_to = None;
            if !self.needs_waypoint
                && let Some(head) = self.far.take()
            {
                self.announce(head);
            }
        }
    }

    fn reset(&mut self, head: Header) {
        // A newer head than the one that did not fit is as good a start, and nearer to the tip.
        if let Some(far) = self.far.take() {
            let step = self.tracker.restart(far);
            return self.step(step);
        }
        warn!(
            head = %head.block,
            "continuity lost: the missing blocks cannot be fetched or exceed history.max_replay; subscribers to the \
             chain are closed with 1012"
        );
        self.pipeline.clear();
        self.pipeline.push_back(PendingEvent::ContinuityLost(Loss::TooFar));
        self.past = Backfill::Wanted;
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
        self.pipeline.extend(headers.into_iter().map(PendingEvent::Adopt));
        // A node that announces heads faster than they can be published must not fill the memory.
        let is_long = self.pipeline.len() > MAX_PIPELINES * self.settings.blocks.max(MIN_PIPELINE);
        if is_long || self.pipeline_bytes() > self.settings.max_parent_bytes {
            warn!(
                blocks = self.pipeline.len(),
                "continuity lost: too many blocks wait to be published; subscribers to the chain are closed with 1012"
            );
            self.start_anew(Loss::Backlog);
        }
    }

    fn pipeline_bytes(&self) -> usize {
        let bytes = |work: &PendingEvent| match work {
            PendingEvent::Adopt(header) => header.json.len(),
            PendingEvent::Rewind(_) | PendingEvent::ContinuityLost(_) => 0,
        };
        self.pipeline.iter().map(bytes).sum()
    }

    /// Drops the blocks above `ancestor`; `dropped` is newest first. A block whose head was not published leaves no
    /// trace.
    fn rewind(&mut self, ancestor: BlockRef, dropped: &[BlockRef]) {
        let mut published = false;
        for block in dropped {
            let waiting = self
                .pipeline
                .iter()
                .rposition(|work| matches!(work, PendingEvent::Adopt(header) if header.block == *block));
            published |= waiting.and_then(|at| self.pipeline.remove(at)).is_none();
        }
        if published {
            // Consecutive rewinds become one, so that removals come oldest first (E2).
            while matches!(self.pipeline.back(), Some(PendingEvent::Rewind(_))) {
                self.pipeline.pop_back();
            }
            self.pipeline.push_back(PendingEvent::Rewind(ancestor));
        }
    }

    /// Requests the parent of the oldest block, if no event waits to be published.
    fn backfill(&mut self) {
        if !self.pipeline.is_empty() {
            return;
        }
        self.past = match std::mem::replace(&mut self.past, Backfill::Wanted) {
            Backfill::Held(header) if self.tracker.prepend(&header) => Backfill::Ready(header),
            // The block does not fit, and asking again would not help.
            Backfill::Held(header) if self.tracker.below() == Some(header.block.hash) => Backfill::Complete,
            // The chain started anew meanwhile.
            Backfill::Held(..) => Backfill::Wanted,
            other => other,
        };
        if !matches!(self.past, Backfill::Wanted) {
            return;
        }
        let Some(below) = self.tracker.below() else {
            self.past = Backfill::Complete;
            return;
        };
        self.past = Backfill::Fetching(below);
        self.asks.push(FetchRequest::Backfill(below));
    }

    /// Checks if there is an event to publish.
    pub(super) fn has_ready_event(&self) -> bool {
        !self.pipeline.is_empty() || matches!(self.past, Backfill::Ready(..))
    }

    /// Takes the next event, in order.
    pub(super) fn next_event(&mut self) -> Option<ChainEvent> {
        // First, because a later rewind may go back to this block.
        if matches!(self.past, Backfill::Ready(..))
            && let Backfill::Ready(header) = std::mem::replace(&mut self.past, Backfill::Wanted)
        {
            self.backfill();
            return Some(ChainEvent::Backfilled(header));
        }
        let event = self.pipeline.pop_front().map(|work| match work {
            PendingEvent::Adopt(header) => ChainEvent::Head(header),
            PendingEvent::Rewind(to) => ChainEvent::Rewind(to),
            PendingEvent::ContinuityLost(loss) => ChainEvent::ContinuityLost(loss),
        });
        self.backfill();
        event
    }
}
