//! Changes of branch: reorgs, rewinds, and the adoption of another branch.

use std::sync::Arc;

use alloy_primitives::B256;
use rand::RngExt;

use super::{Chain, ChainError};
use crate::devnet::block::{Block, Transaction};

/// A change of branch. Both lists may be empty, but a reorg proper has both.
#[derive(Clone, Debug)]
pub struct Reorg {
    /// The newest block common to both branches.
    pub ancestor: Arc<Block>,
    /// The blocks that are no longer canonical, newest first.
    pub dropped: Vec<Arc<Block>>,
    /// The blocks that became canonical, oldest first.
    pub adopted: Vec<Arc<Block>>,
}

impl Chain {
    /// Replaces the newest `depth` blocks by `new_len` different ones.
    ///
    /// Most of the dropped transactions are mined again, in other places; about a quarter are replaced by others with
    /// the same nonce and never return.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::TooDeep`] if fewer blocks are kept; the chain is unchanged then.
    pub fn reorg(&mut self, depth: u64, new_len: u64) -> Result<Reorg, ChainError> {
        let dropped = self.unwind(depth)?;
        let returned = self.returned(&dropped);
        let returned = returned
            .into_iter()
            .map(|transaction| self.perhaps_replace(transaction))
            .collect();
        self.rebuild_pool(returned);
        let ancestor = self.head().clone();
        let adopted = (0..new_len)
            .map(|_| {
                self.fill_pool();
                self.mine_up_to(self.transactions_per_block)
            })
            .collect();
        Ok(Reorg {
            ancestor,
            dropped,
            adopted,
        })
    }

    /// Makes the block `depth` below the head the new head. The dropped transactions return to the pool.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::TooDeep`] if fewer blocks are kept; the chain is unchanged then.
    pub fn rewind(&mut self, depth: u64) -> Result<Reorg, ChainError> {
        let dropped = self.unwind(depth)?;
        let returned = self.returned(&dropped);
        self.rebuild_pool(returned);
        Ok(Reorg {
            ancestor: self.head().clone(),
            dropped,
            adopted: Vec::new(),
        })
    }

    /// Returns to the branch that was canonical before the last change of branch.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::NothingAbandoned`] if no branch was dropped yet, and the errors of [`Self::set_head`],
    /// such as [`ChainError::UnknownBlock`] if that branch is forgotten.
    pub fn switch_back(&mut self) -> Result<Reorg, ChainError> {
        self.set_head(self.abandoned.ok_or(ChainError::NothingAbandoned)?)
    }

    /// Makes a known block the head, on any branch.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::UnknownBlock`] if the block or one of its ancestors is not kept, and
    /// [`ChainError::TooDeep`] if the change begins below the canonical blocks that are kept.
    pub fn set_head(&mut self, hash: B256) -> Result<Reorg, ChainError> {
        let mut adopted = Vec::new();
        let mut ancestor = self.blocks.get(&hash).ok_or(ChainError::UnknownBlock)?;
        while !self.is_canonical(ancestor) {
            adopted.push(ancestor.clone());
            ancestor = self
                .blocks
                .get(&ancestor.parent_hash())
                .ok_or(ChainError::UnknownBlock)?;
        }
        adopted.reverse();
        let ancestor = ancestor.clone();
        // A genesis block that is not among the kept blocks is deeper than any of them.
        let above = self
            .position(ancestor.number())
            .map_or(self.canonical.len(), |at| self.canonical.len() - 1 - at);
        let dropped = self.unwind(above as u64)?;
        for block in &adopted {
            self.adopt(block.clone());
        }
        let returned = self.returned(&dropped);
        self.rebuild_pool(returned);
        Ok(Reorg {
            ancestor,
            dropped,
            adopted,
        })
    }

    /// Imports blocks of another node, oldest first, and makes the last one the head. Known blocks are skipped.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::UnknownBlock`] if `branch` is empty or the parent of its first block is not kept, and the
    /// errors of [`Self::set_head`].
    pub fn import(&mut self, branch: &[Arc<Block>]) -> Result<Reorg, ChainError> {
        for block in branch {
            if !self.blocks.contains_key(&block.parent_hash()) && !self.blocks.contains_key(&block.hash()) {
                return Err(ChainError::UnknownBlock);
            }
            if self.blocks.insert(block.hash(), block.clone()).is_none() {
                self.numbers.entry(block.number()).or_default().push(block.hash());
            }
        }
        self.set_head(branch.last().ok_or(ChainError::UnknownBlock)?.hash())
    }

    /// Takes the newest `depth` blocks off the canonical chain and returns them, newest first. They stay readable by
    /// hash.
    fn unwind(&mut self, depth: u64) -> Result<Vec<Arc<Block>>, ChainError> {
        let available = self.canonical.len() as u64 - 1;
        if depth > available {
            return Err(ChainError::TooDeep { depth, available });
        }
        if depth > 0 {
            self.abandoned = Some(self.head().hash());
        }
        let dropped: Vec<_> = (0..depth).filter_map(|_| self.canonical.pop_back()).collect();
        for block in &dropped {
            self.forget_transactions(block);
        }
        Ok(dropped)
    }

    /// Returns the transactions of dropped blocks, in the order in which they were mined.
    fn returned(&self, dropped: &[Arc<Block>]) -> Vec<Arc<Transaction>> {
        dropped
            .iter()
            .rev()
            .flat_map(|block| block.transactions())
            .cloned()
            .collect()
    }

    fn rebuild_pool(&mut self, returned: Vec<Arc<Transaction>>) {
        let head = self.head().clone();
        self.pool.rebuild(returned, |account| head.nonce_of(account));
    }

    /// "Speeds up" a quarter of our own accounts' transactions: replaces them by others with the same nonce.
    fn perhaps_replace(&mut self, transaction: Arc<Transaction>) -> Arc<Transaction> {
        let (sender, nonce) = (transaction.from(), transaction.nonce());
        if !self.accounts.is_sender(sender) || !self.rng.random_ratio(1, 4) {
            return transaction;
        }
        let base_fee = self.head().base_fee();
        Arc::new(self.accounts.sign(sender, nonce, base_fee, &mut self.rng))
    }
}
