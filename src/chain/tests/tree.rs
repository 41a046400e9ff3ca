//! Tree of all blocks of all branches, with their logs.

use std::collections::VecDeque;
use std::sync::Arc;

use alloy_primitives::{Address, B256, Bloom};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::time::Instant;

use crate::chain::{BlockLogs, BlockRef, Header};

/// Identifies a log by its block's hash and its index.
pub(super) type Name = (B256, u64);

/// All blocks of all branches; each grows on an earlier one.
#[derive(Debug)]
pub(super) struct Tree(pub(super) Vec<(Header, Arc<BlockLogs>)>);

impl Tree {
    /// Grows a tree; each block is given as the distance back to its parent, the count of numbers without a block
    /// before it, and the count of its logs.
    pub(super) fn grow(blocks: &[(usize, u64, u64)]) -> Self {
        let mut tree = Self(Vec::new());
        tree.add(B256::with_last_byte(255), 0, 1);
        for (back, skipped, logs) in blocks {
            let parent = tree.0[tree.0.len() - 1 - back % tree.0.len().min(12)].0.block;
            tree.add(parent.hash, parent.number + 1 + skipped, *logs);
        }
        tree
    }

    fn add(&mut self, parent: B256, number: u64, logs: u64) {
        let hash = B256::from(alloy_primitives::U256::from(self.0.len() as u64 + 1000));
        let block = BlockRef { number, hash };
        let address = Address::repeat_byte(1);
        let logs: Vec<String> = (0..logs)
            .map(|index| {
                format!(
                    r#"{{"address":"{address}","topics":[],"blockHash":"{hash}","blockNumber":"{number:#x}","logIndex":"{index:#x}"}}"#
                )
            })
            .collect();
        let json = Bytes::from(format!("[{}]", logs.join(",")));
        let logs = BlockLogs::parse(block, &json, Instant::now()).expect("logs");
        let header = Header {
            block,
            parent,
            bloom: Some(Box::new(Bloom::repeat_byte(1))),
            timestamp: 0,
            json: Bytes::new(),
            seen: Instant::now(),
        };
        self.0.push((header, Arc::new(logs)));
    }

    pub(super) fn pick(&self, index: &Index) -> &Header {
        &self.0[index.index(self.0.len())].0
    }

    pub(super) fn by_hash(&self, hash: B256) -> Option<&(Header, Arc<BlockLogs>)> {
        self.0.iter().find(|(header, _)| header.block.hash == hash)
    }

    /// Returns the blocks from the first one to this one.
    pub(super) fn path(&self, to: B256) -> Vec<&(Header, Arc<BlockLogs>)> {
        let mut path = VecDeque::new();
        let mut at = to;
        while let Some(own) = self.by_hash(at) {
            path.push_front(own);
            at = own.0.parent;
        }
        path.into()
    }

    /// Returns all logs of the chain that ends at `to`, from number `first` on.
    pub(super) fn logs(&self, to: B256, first: u64) -> Vec<Name> {
        let path = self
            .path(to)
            .into_iter()
            .filter(|(header, _)| header.block.number >= first);
        path.flat_map(|(_, logs)| names(logs)).collect()
    }
}

pub(super) fn names(logs: &BlockLogs) -> Vec<Name> {
    logs.logs.iter().map(|log| (logs.block.hash, log.index)).collect()
}

/// Count of numbers without a block before the next block.
pub(super) fn skipped() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(0u64), 2 => 1u64..4, 1 => 10u64..60]
}
