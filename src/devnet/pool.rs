//! Pending transactions.

use std::{collections::HashMap, sync::Arc};

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256};

use super::{block::Transaction, chain::ChainError};

/// Pending transactions in order of arrival. A sender's nonces never have a gap, so any prefix can be mined.
#[derive(Debug, Default)]
pub(super) struct Pool {
    order: Vec<Arc<Transaction>>,
    by_hash: HashMap<B256, Arc<Transaction>>,
    /// The nonce after the last pending transaction, for senders that have any.
    next_nonces: HashMap<Address, u64>,
}

impl Pool {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn get(&self, hash: B256) -> Option<&Arc<Transaction>> {
        self.by_hash.get(&hash)
    }

    /// Returns the nonce of the sender's next transaction; `mined` is the sender's count in the newest block.
    pub(super) fn next_nonce(&self, sender: Address, mined: u64) -> u64 {
        self.next_nonces.get(&sender).copied().unwrap_or(mined)
    }

    /// Admits a transaction as geth's pool does, except that a nonce gap is refused, not queued.
    pub(super) fn admit(&mut self, transaction: Arc<Transaction>, mined: u64) -> Result<(), ChainError> {
        let (nonce, next) = (transaction.nonce(), self.next_nonce(transaction.from(), mined));
        if self.by_hash.contains_key(&transaction.hash()) {
            return Err(ChainError::AlreadyKnown);
        }
        if nonce < mined {
            return Err(ChainError::NonceTooLow { next: mined, nonce });
        }
        if nonce > next {
            return Err(ChainError::NonceTooHigh { next, nonce });
        }
        if nonce == next {
            self.push(transaction);
            return Ok(());
        }
        let replaced = self
            .order
            .iter_mut()
            .find(|pending| pending.from() == transaction.from() && pending.nonce() == nonce)
            .expect("a sender's pending nonces have no gap");
        // geth requires a tenth more.
        let fee = |transaction: &Transaction| transaction.envelope().max_fee_per_gas();
        if fee(&transaction) * 10 < fee(replaced) * 11 {
            return Err(ChainError::ReplacementUnderpriced);
        }
        self.by_hash.remove(&replaced.hash());
        self.by_hash.insert(transaction.hash(), transaction.clone());
        *replaced = transaction;
        Ok(())
    }

    /// Takes up to `limit` of the oldest transactions out of the pool.
    pub(super) fn take(&mut self, limit: usize) -> Vec<Arc<Transaction>> {
        let taken: Vec<_> = self.order.drain(..limit.min(self.order.len())).collect();
        for transaction in &taken {
            self.by_hash.remove(&transaction.hash());
            if self.next_nonces.get(&transaction.from()) == Some(&(transaction.nonce() + 1)) {
                self.next_nonces.remove(&transaction.from());
            }
        }
        taken
    }

    /// Rebuilds the pool after a change of branch: puts `returned` before the pending transactions and keeps the valid
    /// ones.
    pub(super) fn rebuild(&mut self, mut returned: Vec<Arc<Transaction>>, mined: impl Fn(Address) -> u64) {
        returned.append(&mut self.order);
        // Transactions of two branches interleave; sorted by nonce, each sender's transactions have no gap.
        returned.sort_by_key(|transaction| transaction.nonce());
        *self = Self::default();
        for transaction in returned {
            let sender = transaction.from();
            if transaction.nonce() == self.next_nonce(sender, mined(sender)) {
                self.push(transaction);
            }
        }
    }

    fn push(&mut self, transaction: Arc<Transaction>) {
        self.next_nonces.insert(transaction.from(), transaction.nonce() + 1);
        self.by_hash.insert(transaction.hash(), transaction.clone());
        self.order.push(transaction);
    }
}
