//! Blocks whose contents of one kind are still to be delivered, oldest first. No I/O, no clock.
//!
//! Each kind of contents has its own stream, in the order of the chain: slow receipts delay neither logs nor heads.
//! The order across kinds (E3) is kept per connection, by the [gate](super::gate).

use std::collections::VecDeque;

use alloy_primitives::B256;

use crate::chain::{Absent, BlockRef, Content, Header, MAX_FETCHES, PublishedBlock};
use crate::clock::Moment;

/// Blocks that await their contents, or wait behind a block that does.
#[derive(Debug, Default)]
pub(super) struct ContentStream {
    queue: VecDeque<StreamEntry>,
}

#[derive(Debug)]
struct StreamEntry {
    header: Header,
    sequence: u64,
    /// Moment at which the block's head was published.
    since: Moment,
    content: Option<Result<Content, Absent>>,
}

impl ContentStream {
    /// Adds the block whose head was just published.
    pub(super) fn push(&mut self, header: Header, sequence: u64, now: Moment) {
        self.queue.push_back(StreamEntry {
            header,
            sequence,
            since: now,
            content: None,
        });
    }

    /// Records the contents of a block, or the reason why no node gives them.
    pub(super) fn fetched(&mut self, block: B256, content: Result<Content, Absent>) {
        if let Some(entry) = self.queue.iter_mut().find(|entry| entry.header.block.hash == block) {
            entry.content = Some(content);
        }
    }

    /// Removes blocks that left the canonical chain before their contents were delivered.
    pub(super) fn remove(&mut self, dropped: &[PublishedBlock]) {
        self.queue
            .retain(|entry| !dropped.iter().any(|own| own.sequence == entry.sequence));
    }

    /// Returns the sequence of the oldest block that is still to be delivered.
    pub(super) fn front(&self) -> Option<u64> {
        self.queue.front().map(|entry| entry.sequence)
    }

    /// Checks if the contents of the block with this sequence are still to be delivered.
    pub(super) fn contains(&self, sequence: u64) -> bool {
        self.queue.iter().any(|entry| entry.sequence == sequence)
    }

    /// Returns the sequence of the oldest block if its contents are known and the block `stands`. After a rewind
    /// below the block its contents wait: the chain may adopt the same block again.
    pub(super) fn ready(&self, stands: impl Fn(BlockRef) -> bool) -> Option<u64> {
        let front = self.queue.front()?;
        (front.content.is_some() && stands(front.header.block)).then_some(front.sequence)
    }

    /// Removes and returns the oldest block's sequence, with its contents or the reason why no node gives them;
    /// `None` if the contents are still awaited.
    pub(super) fn pop(&mut self) -> Option<(u64, Result<Content, Absent>)> {
        let entry = self.queue.pop_front_if(|entry| entry.content.is_some())?;
        Some((entry.sequence, entry.content?))
    }

    /// Returns the headers of the blocks whose contents are to be fetched now, oldest first, at most `MAX_FETCHES`.
    pub(super) fn needed(&self, stands: impl Fn(BlockRef) -> bool) -> impl Iterator<Item = &Header> {
        let awaited = self.queue.iter().filter(|entry| entry.content.is_none());
        let headers = awaited.map(|entry| &entry.header);
        headers.filter(move |header| stands(header.block)).take(MAX_FETCHES)
    }

    /// Returns the time at which the head of the oldest block in the stream was published.
    pub(super) fn awaited_since(&self) -> Option<Moment> {
        self.queue.front().map(|entry| entry.since)
    }

    /// Returns the number of blocks in the stream.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Forgets all blocks: there is no subscriber, or no node serves these contents.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }
}
