//! Walks over chains whose numbers have holes.

use std::sync::Arc;

use alloy_primitives::B256;
use bytes::Bytes;
use tokio::time::Instant;

use super::*;
use crate::backplane::ChainEvent;
use crate::chain::{Published, PublishedWriter};
use crate::telemetry::Metrics;

/// Walk at a depth below the head of a chain.
struct World {
    writer: PublishedWriter,
    published: Arc<Published>,
    trail: Trail,
    depth: u64,
    tip: Option<BlockRef>,
}

impl World {
    fn new(depth: u64) -> Self {
        let writer = PublishedWriter::new(History::new(64), Arc::new(Metrics::new().0));
        let published = writer.reader();
        let trail = Trail::default();
        Self {
            writer,
            published,
            trail,
            depth,
            tip: None,
        }
    }

    /// Plays a word: the number of a block, with the branch if it is not the first one, or `<` and the number of the block
    /// to which the chain goes back. Returns what the walk delivers, or `broken`.
    fn play(&mut self, word: &str) -> Vec<String> {
        if let Some(fork) = word.strip_prefix('<') {
            let fork: u64 = fork.parse().unwrap();
            let (to, first) = self.published.with_history(|history| {
                let above = history.between(fork + 1, u64::MAX).next().unwrap().number();
                (history.at(fork).unwrap().header.block, above)
            });
            self.writer.apply(ChainEvent::Rewind(to)).expect("in memory");
            self.tip = Some(to);
            return match self.trail.is_broken_by(fork + 1, first) {
                true => vec!["broken".to_owned()],
                false => Vec::new(),
            };
        }
        let digits = word.trim_end_matches(char::is_alphabetic);
        let mut hash = [0; 32];
        hash[..word.len()].copy_from_slice(word.as_bytes());
        let block = BlockRef {
            number: digits.parse().unwrap(),
            hash: B256::from(hash),
        };
        let header = Header {
            block,
            parent: self.tip.replace(block).map_or(B256::ZERO, |tip| tip.hash),
            bloom: None,
            timestamp: 0,
            json: Bytes::new(),
            seen: Instant::now(),
        };
        self.writer.apply(ChainEvent::Head(header)).expect("continuous");
        if let Some(end) = (block.number + 1).checked_sub(self.depth).filter(|end| *end > 0) {
            self.trail.reach(end, Basis::Depth);
        }
        let mut delivered = Vec::new();
        loop {
            match self.published.with_history(|history| self.trail.step(history)) {
                Step::Deliver(whole) => {
                    let hash = whole.header.block.hash;
                    let name = hash.iter().take_while(|byte| **byte > 0).map(|byte| char::from(*byte));
                    delivered.push(name.collect());
                }
                Step::Begin => {}
                Step::Idle => return delivered,
                other => panic!("{word}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_walk_delivers_each_block_that_reaches_its_level() {
    for (depth, story, expected) in [
        (1, "1 2 3 4", "1 2 3"),
        (1, "1 2 5 6 9", "1 2 5 6"),
        // The numbers up to 7 were found to have no block; the branch that takes the place of block 8 has some of them.
        (1, "1 2 8 <2 4b 5b 6b", "1 2 4b 5b"),
        (5, "1 2 3 6 8 9 <3 4b 5b 6b 7b 8b 9b", "2 3 4b"),
        (3, "1 2 4 10 12 <4 5b 6b 9b", "2 4 5b 6b"),
        // The walk begins before number 7, and goes back to numbers that the first branch left out.
        (5, "1 2 3 11 <3 4b 5b 6b 9b 10b", "4b 5b"),
        // Of the blocks that are dropped one was delivered.
        (1, "1 2 5 6 <2", "1 2 5 broken"),
        (1, "1 2 5 6 <5 6b 7b", "1 2 5 6b"),
    ] {
        let mut world = World::new(depth);
        let delivered: Vec<String> = story.split(' ').flat_map(|word| world.play(word)).collect();
        assert_eq!(delivered.join(" "), expected, "{story}");
    }
}
