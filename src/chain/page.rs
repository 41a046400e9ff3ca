//! Blocks, or logs of blocks, that memory has not and that were fetched for a stream. No I/O, no clock.

use std::collections::VecDeque;

use alloy_primitives::B256;

use super::history::{Published, position_from};
use super::{BlockRef, Header, Needs};

/// What a stream needs and memory has not.
#[derive(Clone, Debug)]
pub enum Gap {
    /// The blocks from this number on, below this one, which is the oldest in memory.
    Below(u64, Box<Header>),
    /// The logs of these blocks, each the parent of the next.
    Logs(Vec<Header>),
}

impl Gap {
    /// Blocks that are fetched for a stream at the same time.
    pub const MAX: usize = 64;

    /// The number at which it begins.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        match self {
            Self::Below(first, _) => Some(*first),
            Self::Logs(headers) => headers.first().map(|header| header.block.number),
        }
    }
}

/// Blocks that were fetched, oldest first, each the parent of the next: no canonical block from a number on, up to the last
/// of them, is missing. Numbers between them have no block; the parents' hashes are the proof.
#[derive(Clone, Debug, Default)]
pub struct Page {
    from: u64,
    blocks: VecDeque<Published>,
    /// The block in memory that follows the last of them, or all numbers from `from` on where there are none.
    joins: Option<B256>,
    without_logs: WithoutLogs,
}

/// Why a block of a page has no logs with it.
#[derive(Clone, Copy, Debug, Default)]
enum WithoutLogs {
    /// They were not asked for, and may be any.
    #[default]
    Unknown,
    /// None of them matches the filters for which the page was fetched.
    NoMatch,
}

impl Page {
    /// The blocks from this number on. The parent of the first has a lower number.
    #[must_use]
    pub fn new(from: u64, blocks: VecDeque<Published>) -> Self {
        Self {
            from,
            blocks,
            ..Self::default()
        }
    }

    /// The same, where the blocks without logs have none that match the filters for which the page was fetched.
    #[must_use]
    pub fn sifted(self) -> Self {
        let without_logs = WithoutLogs::NoMatch;
        Self { without_logs, ..self }
    }

    /// The same, where this block in memory is the next.
    #[must_use]
    pub fn joined(self, next: B256) -> Self {
        let joins = Some(next);
        Self { joins, ..self }
    }

    /// Nothing was fetched, and nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.joins.is_none()
    }

    /// The first block at or above this number.
    #[must_use]
    pub fn from(&self, number: u64) -> Option<&Published> {
        self.blocks
            .get(position_from(&self.blocks, number))
            .filter(|_| number >= self.from)
    }

    /// This very block.
    #[must_use]
    pub fn find(&self, block: BlockRef) -> Option<&Published> {
        self.blocks
            .get(position_from(&self.blocks, block.number))
            .filter(|own| own.header.block == block)
    }

    /// Whether this block of the page is here with all that a stream needs of it.
    #[must_use]
    pub fn suffices(&self, own: &Published, needs: Needs) -> bool {
        let sifted = matches!(self.without_logs, WithoutLogs::NoMatch);
        match needs {
            Needs::Headers => true,
            Needs::Logs => own.logs.is_some(),
            Needs::MatchingLogs => own.logs.is_some() || sifted,
        }
    }

    /// Whether no block lies between this number and this block, the number included.
    #[must_use]
    pub fn joins(&self, number: u64, next: BlockRef) -> bool {
        let above_all = self.blocks.back().is_none_or(|last| number > last.number());
        self.joins == Some(next.hash) && number >= self.from && above_all
    }

    /// Bytes of JSON in it.
    #[must_use]
    pub fn json_len(&self) -> usize {
        let bytes = |own: &Published| own.header.json.len() + own.logs.as_ref().map_or(0, |logs| logs.json_len());
        self.blocks.iter().map(bytes).sum()
    }

    /// The blocks, oldest first.
    #[must_use]
    pub fn blocks(&self) -> &VecDeque<Published> {
        &self.blocks
    }
}
