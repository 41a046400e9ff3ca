//! One upstream as the ranking knows it: the newest part of its chain, and its faults.

use std::collections::VecDeque;
use std::time::Duration;

use alloy_primitives::B256;

use super::{MAX_HOLE, ReportedBlock};
use crate::upstream::published::PublishedSample;

/// Most blocks remembered of each upstream, to compare branches and to know which upstreams have a block.
pub(super) const MAX_CHAIN: usize = 128;

#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) connected: bool,
    /// `true` while the operator keeps the upstream out of use. Survives a reconnect.
    pub(super) cordoned: bool,
    /// Newest part of the chain: number and hash, each the parent of the next. Numbers ascend, and may have gaps. The
    /// first entry may be known as a parent only, and then has the highest number that it can have.
    pub(super) chain: VecDeque<(u64, B256)>,
    /// Highest block reported over this connection.
    pub(super) highest: Option<(u64, B256)>,
    pub(super) outvoted_since: Option<Duration>,
    /// Number of the highest published block known to be on this upstream's chain; `None` where no such block is
    /// known.
    pub(super) root: Option<u64>,
    pub(super) doubted_since: Option<Duration>,
    /// Earliest time of another walk from its chain.
    pub(super) walk_at: Option<Duration>,
    /// Time since which the upstream has been connected, without lag and not forked.
    pub(super) sound_since: Option<Duration>,
    /// Earliest time at which the upstream may lead, see [`Ranking::may_lead`](super::Ranking::may_lead). Survives a
    /// reconnect.
    pub(super) leads_at: Duration,
}

impl Default for Candidate {
    fn default() -> Self {
        Self::new()
    }
}

impl Candidate {
    /// Creates an upstream that has not connected yet.
    pub(super) const fn new() -> Self {
        Self {
            connected: false,
            cordoned: false,
            chain: VecDeque::new(),
            highest: None,
            outvoted_since: None,
            root: None,
            doubted_since: None,
            walk_at: None,
            sound_since: None,
            leads_at: Duration::ZERO,
        }
    }

    /// Checks if the upstream is connected and not kept out of use.
    pub(super) fn is_available(&self) -> bool {
        self.connected && !self.cordoned
    }

    pub(super) fn number(&self) -> Option<u64> {
        self.chain.back().map(|(number, _)| *number)
    }

    pub(super) fn hash_at(&self, number: u64) -> Option<B256> {
        let at = self.chain.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.chain[at].1)
    }

    /// Counts the blocks above this number; `None` where the chain is not known so far down.
    pub(super) fn above(&self, number: u64) -> Option<usize> {
        let at = self.chain.partition_point(|(own, _)| *own <= number);
        at.checked_sub(1).map(|_| self.chain.len() - at)
    }

    pub(super) fn reported(&self, hash: B256) -> bool {
        self.chain.iter().rev().any(|(_, own)| *own == hash)
    }

    /// Appends a head. Only blocks that lead to the head stay: the others may not be on this node's chain any more.
    pub(super) fn record(&mut self, head: ReportedBlock, published: &PublishedSample) {
        while self.number().is_some_and(|newest| newest >= head.number) {
            self.chain.pop_back();
        }
        let below = head.number.checked_sub(1);
        let no_parent = head.parent == B256::ZERO;
        let follows = |(number, hash): &(u64, B256)| *hash == head.parent || no_parent && Some(*number) == below;
        // Any node knows the published head, and can write any number above it.
        let is_near = |parent: u64| head.number.saturating_sub(parent) <= MAX_HOLE;
        if !self.chain.back().is_some_and(|own| follows(own) && is_near(own.0)) {
            self.chain.clear();
            let parent = below.filter(|_| !no_parent).map(|number| (number, head.parent));
            self.chain.extend(parent);
            self.root = published.number_of(head.parent).filter(|number| is_near(*number));
            self.walk_at = self.walk_at.filter(|_| self.root.is_none());
        }
        self.root = published.number_of(head.hash).or(self.root);
        self.chain.push_back((head.number, head.hash));
        if self.highest.is_none_or(|(number, _)| head.number >= number) {
            self.highest = Some((head.number, head.hash));
        }
        if self.chain.len() > MAX_CHAIN {
            self.chain.pop_front();
        }
    }
}
