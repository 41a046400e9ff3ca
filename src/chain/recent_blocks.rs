//! Newest published blocks, dropped ones among them, and the newest reorgs: the chain as people look at it.

use std::collections::VecDeque;

use alloy_primitives::B256;
use tokio::time::Instant;

use super::{BlockRef, ChainEvent};

/// Most blocks in memory, dropped ones included.
const MAX_BLOCKS: usize = 64;

/// Most reorgs in memory.
const MAX_REORGS: usize = 64;

/// Most hashes kept of one reorg.
const MAX_HASHES: usize = 64;

/// Published block.
#[derive(Clone, Copy, Debug)]
pub struct RecentBlock {
    /// Number and hash.
    pub block: BlockRef,
    /// Hash of the parent.
    pub parent: B256,
    /// Timestamp of the header.
    pub timestamp: u64,
    /// Arrival of the header.
    pub seen: Instant,
    /// `true` if a reorg dropped the block.
    pub dropped: bool,
}

/// Drop of published blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reorg {
    /// Time of the drop.
    pub at: Instant,
    /// Newest block that both branches have.
    pub fork: BlockRef,
    /// Block that was the newest one.
    pub old_head: BlockRef,
    /// Number of dropped blocks.
    pub depth: u64,
    /// Hashes of the dropped blocks, oldest first; of a deep reorg the newest ones.
    pub dropped: Vec<B256>,
    /// First block of the branch that replaces them, once it is published.
    pub next: Option<BlockRef>,
}

/// Newest blocks and reorgs.
#[derive(Debug, Default)]
pub struct RecentBlocks {
    blocks: VecDeque<RecentBlock>,
    reorgs: VecDeque<Reorg>,
}

impl RecentBlocks {
    /// Returns the blocks in the order of publication.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = &RecentBlock> {
        self.blocks.iter()
    }

    /// Returns the reorgs, oldest first.
    pub fn reorgs(&self) -> impl DoubleEndedIterator<Item = &Reorg> {
        self.reorgs.iter()
    }

    /// Records an event; returns the reorg if it is one. `head` is the newest block before the event.
    pub(super) fn note(&mut self, event: &ChainEvent, head: Option<BlockRef>, now: Instant) -> Option<&Reorg> {
        match event {
            ChainEvent::Head(header) => {
                if let Some(reorg) = self.reorgs.back_mut()
                    && reorg.next.is_none()
                {
                    reorg.next = Some(header.block);
                }
                if self.blocks.len() == MAX_BLOCKS {
                    self.blocks.pop_front();
                }
                self.blocks.push_back(RecentBlock {
                    block: header.block,
                    parent: header.parent,
                    timestamp: header.timestamp,
                    seen: header.seen,
                    dropped: false,
                });
                None
            }
            ChainEvent::Rewind(to) => {
                let old_head = head?;
                let mut dropped = Vec::new();
                for block in self.blocks.iter_mut().filter(|block| !block.dropped) {
                    if block.block.number > to.number {
                        block.dropped = true;
                        dropped.push(block.block.hash);
                    }
                }
                // Some numbers may have no block. Of blocks below the ones in memory, only the numbers are known.
                let is_deeper = self
                    .blocks
                    .front()
                    .is_none_or(|oldest| oldest.block.number > to.number + 1);
                let depth = if is_deeper {
                    old_head.number.saturating_sub(to.number)
                } else {
                    dropped.len() as u64
                };
                dropped.drain(..dropped.len().saturating_sub(MAX_HASHES));
                if self.reorgs.len() == MAX_REORGS {
                    self.reorgs.pop_front();
                }
                self.reorgs.push_back(Reorg {
                    at: now,
                    fork: *to,
                    old_head,
                    depth,
                    dropped,
                    next: None,
                });
                self.reorgs.back()
            }
            ChainEvent::ContinuityLost(_) => {
                self.blocks.clear();
                None
            }
            ChainEvent::Backfilled(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Header, Loss};

    /// Applies `a5` (head 5 of branch a, on the block before) and `<a4` (rewind to it); `!` is a loss of continuity.
    fn after(story: &str) -> RecentBlocks {
        let mut recent = RecentBlocks::default();
        let now = Instant::now();
        let mut head: Option<BlockRef> = None;
        for word in story.split_whitespace() {
            let event = match word.strip_prefix('<') {
                _ if word == "!" => ChainEvent::ContinuityLost(Loss::TooFar),
                Some(to) => ChainEvent::Rewind(block(to)),
                None => {
                    let BlockRef { number, hash } = block(word);
                    let parent = head.map_or(B256::ZERO, |head| head.hash);
                    let json = format!(
                        r#"{{"number":"{number:#x}","hash":"{hash}","parentHash":"{parent}","timestamp":"0x1"}}"#
                    );
                    ChainEvent::Head(Header::parse(json.into(), now).unwrap())
                }
            };
            recent.note(&event, head, now);
            head = match &event {
                ChainEvent::Head(header) => Some(header.block),
                ChainEvent::Rewind(to) => Some(*to),
                _ => None,
            };
        }
        recent
    }

    fn block(name: &str) -> BlockRef {
        let number: u64 = name[1..].parse().unwrap();
        let mut hash = B256::with_last_byte(name.as_bytes()[0]);
        hash[..8].copy_from_slice(&number.to_be_bytes());
        BlockRef { number, hash }
    }

    fn names(recent: &RecentBlocks) -> String {
        let name = |hash: &B256| {
            format!(
                "{}{}",
                char::from(hash[31]),
                u64::from_be_bytes(hash[..8].try_into().unwrap())
            )
        };
        let blocks = recent.blocks().map(|own| {
            let mark = if own.dropped { "-" } else { "" };
            format!("{mark}{}", name(&own.block.hash))
        });
        let reorgs = recent.reorgs().map(|reorg| {
            let dropped: Vec<_> = reorg.dropped.iter().map(name).collect();
            let next = reorg.next.map_or("?".to_owned(), |next| name(&next.hash));
            format!(
                "({} {}: {} > {next})",
                name(&reorg.fork.hash),
                reorg.depth,
                dropped.join(" ")
            )
        });
        blocks.chain(reorgs).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn dropped_blocks_stay_and_each_reorg_has_its_blocks() {
        for (story, expected) in [
            ("", ""),
            ("a1 a2", "a1 a2"),
            ("a1 a2 a3 <a1", "a1 -a2 -a3 (a1 2: a2 a3 > ?)"),
            ("a1 a2 <a1 b2 b3", "a1 -a2 b2 b3 (a1 1: a2 > b2)"),
            ("a1 a2 <a1 b2 <a1 a2", "a1 -a2 -b2 a2 (a1 1: a2 > b2) (a1 1: b2 > a2)"),
            ("a1 a2 ! b7", "b7"),
            ("<a1", ""),
        ] {
            assert_eq!(names(&after(story)), expected, "{story}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let long: String = (1..=200).map(|number| format!("a{number} ")).collect();
        let recent = after(&format!("{long} <a50"));
        assert_eq!(recent.blocks().count(), MAX_BLOCKS);
        let reorg = recent.reorgs().next().unwrap();
        assert_eq!((reorg.depth, reorg.dropped.len()), (150, MAX_HASHES));
        let often: String = (0..100).map(|_| "a2 <a1 ").collect();
        assert_eq!(after(&format!("a1 {often}")).reorgs().count(), MAX_REORGS);
    }
}
