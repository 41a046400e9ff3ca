//! Blocks whose events were printed: which are taken back in a reorg, and from where to continue after a disconnect.

use std::collections::VecDeque;

use alloy_primitives::B256;

use super::event::{Event, Header, Log};

/// Bounds of the window. A deeper reorg ends the command, for it could not say what is gone.
const MAX_BLOCKS: usize = 1_024;
const MAX_BYTES: usize = 64 << 20;

/// The end of the chain as it was printed: each block's parent is the one before.
#[derive(Debug)]
pub(super) struct Window {
    /// Oldest first.
    blocks: VecDeque<Block>,
    bytes: usize,
    /// Number of the first block that is printed.
    start: u64,
    /// Blocks below the oldest one were printed and are forgotten.
    is_trimmed: bool,
    /// Hash of the block in which a removal has begun: everything from there on is being taken back.
    undoing: Option<B256>,
}

#[derive(Debug)]
struct Block {
    number: u64,
    hash: B256,
    parent: B256,
    /// All events of the block are here. Only the newest block can be without some.
    is_complete: bool,
    /// Events that were printed of the block, in this order.
    events: Vec<Event>,
}

/// Point at which a subscription continues: after this block, or after this log of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResumePoint {
    pub(super) block: B256,
    pub(super) log: Option<u64>,
}

/// Error: a reorg goes deeper than the window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooDeep;

/// Completeness of a block's events when it is adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    Complete,
    /// More of them follow, until the next block.
    Following,
}

impl Window {
    /// Makes a window for what follows: blocks from `start` on are printed. `anchor` is the block to continue after.
    pub(super) fn new(start: u64, anchor: Option<&Header>) -> Self {
        let mut window = Self {
            blocks: VecDeque::new(),
            bytes: 0,
            start,
            is_trimmed: false,
            undoing: None,
        };
        if let Some(anchor) = anchor {
            window.adopt(anchor, Vec::new(), Contents::Complete);
        }
        window
    }

    /// Makes a window after a block below which everything was printed and is not remembered.
    pub(super) fn after(anchor: &Header) -> Self {
        Self {
            is_trimmed: true,
            ..Self::new(anchor.number + 1, Some(anchor))
        }
    }

    /// Returns the number of the first block that is printed.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn is_trimmed(&self) -> bool {
        self.is_trimmed
    }

    /// Returns number and hash of the block at this index, from the oldest.
    pub(super) fn block(&self, index: usize) -> Option<(u64, B256)> {
        self.blocks.get(index).map(|block| (block.number, block.hash))
    }

    /// Returns number and hash of the newest block.
    pub(super) fn tip(&self) -> Option<(u64, B256)> {
        self.blocks.back().map(|block| (block.number, block.hash))
    }

    pub(super) fn contains(&self, hash: B256) -> bool {
        self.blocks.iter().rev().any(|block| block.hash == hash)
    }

    /// Returns the number of blocks up to this number.
    pub(super) fn up_to(&self, number: u64) -> usize {
        self.blocks.partition_point(|block| block.number <= number)
    }

    /// Returns the number that follows the first `keep` blocks.
    pub(super) fn next_after(&self, keep: usize) -> u64 {
        match keep.checked_sub(1).and_then(|last| self.blocks.get(last)) {
            Some(block) => block.number + 1,
            None => self.start,
        }
    }

    /// Appends a block. Its parent must be the newest one, unless there is none.
    pub(super) fn adopt(&mut self, header: &Header, events: Vec<Event>, contents: Contents) {
        if let Some(tip) = self.blocks.back_mut() {
            tip.is_complete = true;
        }
        self.undoing = None;
        self.bytes += events.iter().map(Event::size).sum::<usize>();
        self.blocks.push_back(Block {
            number: header.number,
            hash: header.hash,
            parent: header.parent_hash,
            is_complete: contents == Contents::Complete || header.number < self.start,
            events,
        });
        while self.blocks.len() > MAX_BLOCKS || (self.bytes > MAX_BYTES && self.blocks.len() > 1) {
            let Some(forgotten) = self.blocks.pop_front() else {
                break;
            };
            self.bytes -= forgotten.events.iter().map(Event::size).sum::<usize>();
            self.is_trimmed |= forgotten.number >= self.start;
        }
    }

    /// Drops all but the first `keep` blocks; returns what was printed of them, oldest block first.
    pub(super) fn keep(&mut self, keep: usize) -> Vec<Event> {
        let keep = keep.min(self.blocks.len());
        let dropped: Vec<Event> = self.blocks.drain(keep..).flat_map(|block| block.events).collect();
        self.bytes -= dropped.iter().map(Event::size).sum::<usize>();
        dropped
    }

    /// Makes room for a block that an endpoint announced which names every block: drops all that are not its ancestors,
    /// and returns what was printed of them.
    ///
    /// # Errors
    /// If its parent may be among the blocks that are forgotten.
    pub(super) fn make_room(&mut self, header: &Header) -> Result<Vec<Event>, TooDeep> {
        match self.blocks.iter().rposition(|block| block.hash == header.parent_hash) {
            Some(parent) => Ok(self.keep(parent + 1)),
            // The first block that there is can be one whose parent is not known.
            None if self.is_trimmed => Err(TooDeep),
            None => Ok(self.keep(0)),
        }
    }

    /// Adds a log that follows its block. Returns `None` if it is there already, and the log itself as an error if its
    /// block is not the newest one.
    pub(super) fn take(&mut self, log: Log) -> Result<Option<&Event>, Box<Log>> {
        let tip = self.blocks.back_mut().filter(|block| block.hash == log.block_hash);
        let Some(tip) = tip else {
            return Err(Box::new(log));
        };
        // They come in order, so most need no search.
        let is_behind_all = matches!(tip.events.last(), Some(Event::Log(last)) if last.log_index < log.log_index);
        if !is_behind_all && tip.events.iter().any(|event| is_log(event, log.log_index)) {
            return Ok(None);
        }
        let event = Event::Log(log);
        self.bytes += event.size();
        tip.events.push(event);
        Ok(tip.events.last())
    }

    /// Notes that the endpoint took a log back, and with it all that came after. Returns the event as it was printed;
    /// `None` if it was not, or is not remembered.
    pub(super) fn take_back(&mut self, log: &Log) -> Option<Event> {
        let block = self.blocks.iter_mut().find(|block| block.hash == log.block_hash)?;
        let at = block.events.iter().position(|event| is_log(event, log.log_index))?;
        let event = block.events.remove(at);
        self.bytes -= event.size();
        self.undoing.get_or_insert(block.hash);
        Some(event)
    }

    /// Ends a removal that a disconnect broke off: drops the blocks that it had reached, and returns what is left of
    /// them.
    pub(super) fn settle(&mut self) -> Vec<Event> {
        let begun = self.undoing.take();
        match begun.and_then(|hash| self.blocks.iter().position(|block| block.hash == hash)) {
            Some(index) => self.keep(index),
            None => Vec::new(),
        }
    }

    /// Returns the hash of the newest block if some of its events may be missing.
    pub(super) fn incomplete(&self) -> Option<B256> {
        self.blocks.back().filter(|tip| !tip.is_complete).map(|tip| tip.hash)
    }

    /// Notes that all events of the newest block are here.
    pub(super) fn complete(&mut self) {
        if let Some(tip) = self.blocks.back_mut() {
            tip.is_complete = true;
        }
    }

    /// Returns the points after which the heads and the logs continue; `None` if there is no block yet.
    pub(super) fn resume_points(&self) -> Option<[ResumePoint; 2]> {
        let tip = self.blocks.back()?;
        let heads = ResumePoint {
            block: tip.hash,
            log: None,
        };
        let last = tip.events.iter().rev().find_map(|event| match event {
            Event::Log(log) => Some(log.log_index),
            Event::Head(_) | Event::Receipt(_) | Event::Pending(_) => None,
        });
        let logs = match last {
            _ if tip.is_complete => heads,
            // A block without a log so far: all of them may still be to come.
            None => ResumePoint {
                block: tip.parent,
                log: None,
            },
            last => ResumePoint {
                block: tip.hash,
                log: last,
            },
        };
        Some([heads, logs])
    }
}

fn is_log(event: &Event, index: u64) -> bool {
    matches!(event, Event::Log(log) if log.log_index == index)
}

#[cfg(test)]
pub(super) mod tests;
