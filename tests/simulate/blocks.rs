//! Whole blocks that a client was sent, one behind the other.

use alloy_primitives::B256;
use serde::Deserialize;

use crate::client::{HeadShape, LogShape};
use crate::history::Canonical;

/// A block that the client was sent: number, hash and parent, and the indices of its logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub number: u64,
    pub hash: B256,
    pub parent: B256,
    pub logs: Vec<u64>,
}

/// Result of `blockLogs`.
#[derive(Deserialize)]
pub struct BlockShape {
    pub block: HeadShape,
    pub removed: bool,
    pub logs: Vec<LogShape>,
}

impl BlockShape {
    /// Returns the block as received.
    pub fn received(&self) -> Received {
        Received {
            number: self.block.number.to(),
            hash: self.block.hash,
            parent: self.block.parent_hash,
            logs: self.logs.iter().map(|log| log.log().index).collect(),
        }
    }
}

/// The client's chain.
#[derive(Debug, Default)]
pub struct Blocks {
    /// Blocks since the last fresh start, oldest first.
    pub list: Vec<Received>,
    /// Parent of the oldest of these blocks, or of the block that was taken back last. `blockLogs` that resumed has all
    /// blocks up to its start, and takes these back too, one after the other; `None` for one that began live.
    pub before: Option<B256>,
    /// `true` if the stream resumed before its first block came: then any block may be the newest.
    begins_anywhere: bool,
}

impl Blocks {
    /// Begins a connection, which goes on behind these blocks if it resumes.
    pub fn begin(&mut self, resumes: bool) {
        if let Some(first) = self.list.first() {
            self.before = Some(first.parent);
        } else if !resumes {
            self.before = None;
        }
        self.begins_anywhere = resumes && self.list.is_empty() && self.before.is_none();
    }

    /// Returns the hash of the newest block.
    pub fn last(&self) -> Option<B256> {
        self.list.last().map(|block| block.hash)
    }

    /// Takes a message of `blockLogs`.
    ///
    /// # Errors
    /// The contradiction: the block does not follow, or is not the newest one.
    pub fn whole(&mut self, message: &BlockShape) -> Result<(), String> {
        let own = message.received();
        let (number, last) = (own.number, self.last().or(self.before));
        if message.removed {
            if last != Some(own.hash) && !(self.begins_anywhere && last.is_none()) {
                return Err(format!("block {number} was taken back, and is not the newest"));
            }
            if self.list.pop().is_none() {
                self.before = Some(own.parent);
            }
            return Ok(());
        }
        let follows = last.is_none_or(|last| last == own.parent);
        self.list.push(own);
        if follows {
            Ok(())
        } else {
            Err(format!("block {number} is not the child of the one before"))
        }
    }

    /// Returns everything that contradicts the chain: gaps, dropped blocks, and other logs.
    pub fn faults(&self, canonical: &Canonical) -> Vec<String> {
        let mut faults = Vec::new();
        for pair in self.list.windows(2) {
            if pair[1].parent != pair[0].hash {
                faults.push(format!("a gap between {} and {}", pair[0].number, pair[1].number));
            }
        }
        for block in &self.list {
            let Some(own) = canonical.blocks.iter().find(|own| own.hash == block.hash) else {
                faults.push(format!("block {} was dropped, and the stream went on", block.number));
                continue;
            };
            let logs: Vec<u64> = own.logs.iter().map(|log| log.index).collect();
            if block.logs != logs {
                faults.push(format!("block {}: logs {:?}, not {logs:?}", block.number, block.logs));
            }
        }
        faults
    }

    /// Returns the blocks from number `first` on that should have come before the first one.
    pub fn missing(&self, canonical: &Canonical, first: u64) -> Vec<String> {
        let begin = self.list.first().map_or(0, |own| own.number);
        let before = canonical.blocks.iter();
        let before = before.filter(|block| (first..begin).contains(&block.number));
        before
            .map(|block| format!("block {} is missing", block.number))
            .collect()
    }
}
