//! Commands to a running node.

use std::{sync::Arc, time::Duration};

use super::{
    block::{Block, Transaction},
    chain::{Chain, ChainError, Reorg},
    config::Faults,
    feed::Stats,
    node::SimulatedNode,
};

/// Commands to a [`super::Devnet`]. Cheap to clone; commands to a node that was dropped have no effect on clients.
///
/// A command returns when all notifications that follow from it are queued for the clients.
#[derive(Clone, Debug)]
pub struct Control(Arc<SimulatedNode>);

impl Control {
    pub(super) fn new(node: Arc<SimulatedNode>) -> Self {
        Self(node)
    }

    /// Mines a block.
    pub fn mine(&self) -> Arc<Block> {
        self.0.lock().mine()
    }

    /// Mines `count` blocks and returns them, oldest first.
    pub fn mine_many(&self, count: u64) -> Vec<Arc<Block>> {
        (0..count).map(|_| self.mine()).collect()
    }

    /// Replaces the newest `depth` blocks by `new_len` others, see [`Chain::reorg`].
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::TooDeep`] if fewer blocks are kept.
    pub fn reorg(&self, depth: u64, new_len: u64) -> Result<Reorg, ChainError> {
        self.0.lock().reorg(depth, new_len)
    }

    /// Drops the newest `depth` blocks, see [`Chain::rewind`].
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::TooDeep`] if fewer blocks are kept.
    pub fn rewind(&self, depth: u64) -> Result<Reorg, ChainError> {
        self.0.lock().rewind(depth)
    }

    /// Returns to the branch that was abandoned last, see [`Chain::switch_back`].
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::NothingAbandoned`] if there is none, and [`ChainError::UnknownBlock`] if it is forgotten.
    pub fn switch_back(&self) -> Result<Reorg, ChainError> {
        self.0.lock().switch_back()
    }

    /// Makes the block `lag` below another node's head the head of this node, and announces the change: new blocks, or
    /// a reorg to the other node's branch. Nodes that share one chain need the same `seed` and `initial_blocks`.
    ///
    /// Several nodes form one network this way: after each command to the leader its followers follow, at once or some
    /// blocks behind. A node that does not follow has stopped; a node that mines meanwhile has forked, and heals when
    /// it follows again.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::UnknownBlock`] if the nodes have no block in common that both keep, and
    /// [`ChainError::TooDeep`] if the common block is too far below the head.
    pub fn follow(&self, leader: &Self, lag: u64) -> Result<Reorg, ChainError> {
        // Not under both locks at once: the leader may follow this node too.
        let branch: Vec<_> = leader.with_chain(|chain| {
            let newest = chain.head().number().saturating_sub(lag);
            (chain.oldest_number()..=newest)
                .filter_map(|number| chain.block_at(number).cloned())
                .collect()
        });
        self.0.lock().import(&branch)
    }

    /// Adds a generated pending transaction; returns `None` while the pool is full.
    pub fn add_pending(&self) -> Option<Arc<Transaction>> {
        self.0.lock().add_pending()
    }

    /// Cuts the connections of all clients: WebSockets by a TCP reset, HTTP connections after the answer in flight. See
    /// [`Faults::refuse_connections`] to keep clients away.
    pub fn disconnect(&self) {
        self.0.disconnect();
    }

    /// Stalls the node: sockets stay open, but nothing is read, sent or answered, not even pings. Only control methods
    /// over HTTP are served. Blocks are still produced; clients get the missed messages after the stall. `None` lasts
    /// until [`Self::resume`].
    pub fn stall(&self, duration: Option<Duration>) {
        self.0.stall.begin(duration);
    }

    /// Ends a stall.
    pub fn resume(&self) {
        self.0.stall.end();
    }

    /// Changes the faults of the node.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().faults);
    }

    /// Returns the current faults of the node.
    pub fn faults(&self) -> Faults {
        self.0.lock().faults.clone()
    }

    /// Returns the counters of the node.
    pub fn stats(&self) -> Stats {
        self.0.lock().stats()
    }

    /// Returns the newest block.
    pub fn head(&self) -> Arc<Block> {
        self.0.lock().chain.head().clone()
    }

    /// Reads the chain. The node is locked meanwhile.
    pub fn with_chain<T>(&self, read: impl FnOnce(&Chain) -> T) -> T {
        read(&self.0.lock().chain)
    }
}
