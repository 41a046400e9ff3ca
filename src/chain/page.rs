//! Blocks, or logs of blocks, that are not in memory and were fetched for a stream. No I/O, no clock.

use std::collections::{HashMap, VecDeque};

use alloy_primitives::B256;

use super::history::{PublishedBlock, position_from};
use super::{BlockRef, Content, ContentKind, Header, Needs};

/// Part of the chain that a stream needs and memory lacks.
#[derive(Clone, Debug)]
pub enum Gap {
    /// The blocks from this number up to, but not including, this one, which is the oldest in memory.
    Below(u64, Box<Header>),
    /// The logs of these blocks, oldest first, each the parent of the next.
    Logs(Vec<Header>),
    /// Other contents of these blocks, oldest first, each the parent of the next.
    Contents(Vec<Header>),
}

impl Gap {
    /// Maximum number of blocks fetched for a stream at a time.
    pub const MAX: usize = 64;

    /// Returns the number at which the gap begins; `None` without blocks.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        match self {
            Self::Below(first, _) => Some(*first),
            Self::Logs(headers) | Self::Contents(headers) => headers.first().map(|header| header.block.number),
        }
    }
}

/// Fetched blocks, oldest first, each the parent of the next: from `from` to the last block, no canonical block is
/// missing. Numbers between them have no block, as the parent hashes prove.
#[derive(Clone, Debug, Default)]
pub struct Page {
    from: u64,
    blocks: VecDeque<PublishedBlock>,
    /// Hash of the block in memory that follows the last one; without blocks, no number from `from` up to it has a
    /// block.
    joins: Option<B256>,
    /// `true` if the parent hashes lead from a block in memory to these blocks. A page that ends below memory is what one
    /// node has there.
    leads_to_memory: bool,
    without_logs: WithoutLogs,
    /// Contents other than logs.
    contents: HashMap<(B256, ContentKind), Content>,
}

/// Reason why a block of a page comes without logs.
#[derive(Clone, Copy, Debug, Default)]
enum WithoutLogs {
    /// The logs were not requested; the block may have any.
    #[default]
    Unknown,
    /// No log matches the filters for which the page was fetched.
    NoMatch,
}

impl Page {
    /// Creates a page of the blocks from this number on, oldest first. The parent of the first has a lower number.
    #[must_use]
    pub fn new(from: u64, blocks: VecDeque<PublishedBlock>) -> Self {
        Self {
            from,
            blocks,
            ..Self::default()
        }
    }

    /// Marks the page as filtered: blocks without logs have none that match the filters for which the page was
    /// fetched.
    #[must_use]
    pub fn sifted(self) -> Self {
        let without_logs = WithoutLogs::NoMatch;
        Self { without_logs, ..self }
    }

    /// Sets the hash of the block in memory that follows the page.
    #[must_use]
    pub fn joined(self, next: B256) -> Self {
        let joins = Some(next);
        Self { joins, ..self }
    }

    /// Sets whether the parent hashes lead from a block in memory to the page.
    #[must_use]
    pub fn known_to_lead_to_memory(self, leads_to_memory: bool) -> Self {
        Self {
            leads_to_memory,
            ..self
        }
    }

    /// Checks if a block of the page is known to be of the published chain.
    #[must_use]
    pub fn proves(&self, block: BlockRef) -> bool {
        self.leads_to_memory && self.find(block).is_some()
    }

    /// Adds contents of its blocks other than logs.
    #[must_use]
    pub fn with(self, contents: HashMap<(B256, ContentKind), Content>) -> Self {
        Self { contents, ..self }
    }

    /// Returns contents of a block other than logs.
    #[must_use]
    pub fn content(&self, block: B256, kind: ContentKind) -> Option<&Content> {
        self.contents.get(&(block, kind))
    }

    /// Checks if nothing was fetched and nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.joins.is_none()
    }

    /// Returns the first block at or above this number; `None` if the page begins above it or ends below.
    #[must_use]
    pub fn from(&self, number: u64) -> Option<&PublishedBlock> {
        self.blocks
            .get(position_from(&self.blocks, number))
            .filter(|_| number >= self.from)
    }

    /// Returns the block with this number and hash.
    #[must_use]
    pub fn find(&self, block: BlockRef) -> Option<&PublishedBlock> {
        self.blocks
            .get(position_from(&self.blocks, block.number))
            .filter(|own| own.header.block == block)
    }

    /// Checks if a block of the page comes with everything that the stream needs.
    #[must_use]
    pub fn suffices(&self, own: &PublishedBlock, needs: Needs) -> bool {
        let sifted = matches!(self.without_logs, WithoutLogs::NoMatch);
        match needs {
            Needs::Headers => true,
            Needs::Logs | Needs::Blocks => own.logs.is_some(),
            Needs::MatchingLogs => own.logs.is_some() || sifted,
        }
    }

    /// Checks if `next`, a block in memory, is the first canonical block at or above this number.
    #[must_use]
    pub fn joins(&self, number: u64, next: BlockRef) -> bool {
        let above_all = self.blocks.back().is_none_or(|last| number > last.number());
        self.joins == Some(next.hash) && number >= self.from && above_all
    }

    /// Returns the length of the JSON of headers and contents, in bytes.
    #[must_use]
    pub fn json_len(&self) -> usize {
        let bytes = |own: &PublishedBlock| own.header.json.len() + own.logs.as_ref().map_or(0, |logs| logs.json_len());
        self.blocks.iter().map(bytes).sum::<usize>() + self.contents.values().map(Content::json_len).sum::<usize>()
    }

    /// Returns the blocks, oldest first.
    #[must_use]
    pub fn blocks(&self) -> &VecDeque<PublishedBlock> {
        &self.blocks
    }
}
