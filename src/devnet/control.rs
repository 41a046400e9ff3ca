//! The commands to a running node.

use std::{sync::Arc, time::Duration};

use super::{
    block::{Block, Transaction},
    chain::{Chain, ChainError, Reorg},
    config::Faults,
    feed::Stats,
    node::SimulatedNode,
};

/// Commands to a [`super::Devnet`]. Cheap to clone; commands to a node that was dropped have no effect on anybody.
///
/// A command returns when everything that follows from it is queued for the clients.
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

    /// Mines `count` blocks, oldest first.
    pub fn mine_many(&self, count: u64) -> Vec<Arc<Block>> {
        (0..count).map(|_| self.mine()).collect()
    }

    /// Replaces the newest `depth` blocks by `new_len` others, see [`Chain::reorg`].
    ///
    /// # Errors
    ///
    /// [`ChainError::TooDeep`].
    pub fn reorg(&self, depth: u64, new_len: u64) -> Result<Reorg, ChainError> {
        self.0.lock().reorg(depth, new_len)
    }

    /// Drops the newest `depth` blocks, see [`Chain::rewind`].
    ///
    /// # Errors
    ///
    /// [`ChainError::TooDeep`].
    pub fn rewind(&self, depth: u64) -> Result<Reorg, ChainError> {
        self.0.lock().rewind(depth)
    }

    /// Returns to the branch that was left last, see [`Chain::switch_back`].
    ///
    /// # Errors
    ///
    /// [`ChainError::NothingAbandoned`] or [`ChainError::UnknownBlock`].
    pub fn switch_back(&self) -> Result<Reorg, ChainError> {
        self.0.lock().switch_back()
    }

    /// Makes the block `lag` below another node's head the head of this one, and announces what that means: new blocks,
    /// or a reorg to the other's branch. Nodes that share one chain need the same `seed` and `initial_blocks`.
    ///
    /// This is how several nodes are one network: after each command to the leader its followers follow, at once or
    /// some blocks behind. One that does not follow has stopped; one that mines meanwhile has forked, and heals when it
    /// follows again.
    ///
    /// # Errors
    ///
    /// [`ChainError::UnknownBlock`] when the two have no block in common that both keep; [`ChainError::TooDeep`].
    pub fn follow(&self, leader: &Self, lag: u64) -> Result<Reorg, ChainError> {
        // Not under both locks at once: each may follow the other.
        let branch: Vec<_> = leader.with_chain(|chain| {
            let newest = chain.head().number().saturating_sub(lag);
            (chain.oldest_number()..=newest)
                .filter_map(|number| chain.block_at(number).cloned())
                .collect()
        });
        self.0.lock().import(&branch)
    }

    /// Adds a pending transaction; `None` while the pool is full.
    pub fn add_pending(&self) -> Option<Arc<Transaction>> {
        self.0.lock().add_pending()
    }

    /// Cuts every client's socket: WebSockets by a TCP reset, HTTP connections after the answer under way. See
    /// [`Faults::refuse_connections`] to keep them away.
    pub fn disconnect(&self) {
        self.0.disconnect();
    }

    /// Falls silent: sockets stay open, nothing is read, sent or answered, pings neither. Only control methods over
    /// HTTP are served. Blocks go on; what clients missed follows after the silence. `None` lasts until
    /// [`Self::resume`].
    pub fn stall(&self, duration: Option<Duration>) {
        self.0.stall.begin(duration);
    }

    /// Ends a silence.
    pub fn resume(&self) {
        self.0.stall.end();
    }

    /// Changes what the node does wrong.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().faults);
    }

    /// What the node does wrong now.
    pub fn faults(&self) -> Faults {
        self.0.lock().faults.clone()
    }

    /// What the node did so far.
    pub fn stats(&self) -> Stats {
        self.0.lock().stats()
    }

    /// The newest block.
    pub fn head(&self) -> Arc<Block> {
        self.0.lock().chain.head().clone()
    }

    /// Reads the chain. The node does nothing else meanwhile.
    pub fn with_chain<T>(&self, read: impl FnOnce(&Chain) -> T) -> T {
        read(&self.0.lock().chain)
    }
}
