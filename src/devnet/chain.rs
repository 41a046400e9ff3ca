//! The block tree: pure, seeded, without I/O and without a clock.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use thiserror::Error;

use super::{
    accounts::{Accounts, GAS_TRANSFER},
    block::{Block, Seal, SealedBloom, Transaction},
    config::Config,
    pool::Pool,
};

/// Maximum number of pending transactions in a block, in place of a gas limit; the rest waits for the next block.
const MAX_BLOCK_TRANSACTIONS: usize = 2_000;
/// Number of pending transactions at which generation stops, so that a high rate without blocks stays bounded.
const MAX_PENDING: usize = 10_000;

/// A chain with its side branches, its pending transactions and its random generator.
///
/// The same settings and the same sequence of calls give the same hashes.
#[derive(Debug)]
pub struct Chain {
    accounts: Accounts,
    rng: StdRng,
    transactions_per_block: usize,
    genesis_timestamp: u64,
    timestamp_interval: u64,
    gas_limit: u64,
    keep_blocks: u64,
    habits: Habits,
    /// Blocks that can be read by hash, of all branches.
    blocks: HashMap<B256, Arc<Block>>,
    /// Hashes of the same blocks by number, to forget the old blocks.
    numbers: BTreeMap<u64, Vec<B256>>,
    /// Canonical blocks that are kept, oldest first. Never empty.
    canonical: VecDeque<Arc<Block>>,
    genesis: Arc<Block>,
    /// Block hash and index of each canonical transaction.
    mined: HashMap<B256, (B256, usize)>,
    pool: Pool,
    /// Head before the last change of branch.
    abandoned: Option<B256>,
}

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

/// The reason why a command or a transaction was refused. The messages about transactions are geth's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// The depth exceeds the blocks that are kept.
    #[error("cannot drop {depth} blocks, only {available} are kept; raise keep_blocks")]
    TooDeep {
        /// Requested depth.
        depth: u64,
        /// Maximum depth now.
        available: u64,
    },
    /// The block is not kept.
    #[error("unknown block")]
    UnknownBlock,
    /// No branch was dropped yet.
    #[error("no branch was dropped yet")]
    NothingAbandoned,
    /// The pool has this transaction.
    #[error("already known")]
    AlreadyKnown,
    /// A transaction of the sender with this nonce is mined.
    #[error("nonce too low: next nonce {next}, tx nonce {nonce}")]
    NonceTooLow {
        /// The sender's transaction count.
        next: u64,
        /// The refused transaction's nonce.
        nonce: u64,
    },
    /// An earlier nonce is missing. Unlike geth this node does not queue such transactions.
    #[error("nonce too high: next nonce {next}, tx nonce {nonce}")]
    NonceTooHigh {
        /// The sender's transaction count, pending ones included.
        next: u64,
        /// The refused transaction's nonce.
        nonce: u64,
    },
    /// A pending transaction with this nonce pays as much.
    #[error("replacement transaction underpriced")]
    ReplacementUnderpriced,
    /// The transaction was signed for another chain.
    #[error("invalid chain id for signer: have {have} want {want}")]
    WrongChain {
        /// The transaction's chain id.
        have: u64,
        /// This chain's id.
        want: u64,
    },
}

impl Chain {
    /// Creates a chain of the genesis block and `initial_blocks` more.
    pub fn new(config: &Config) -> Self {
        let accounts = Accounts::new(config);
        // Twice the gas of a usual block keeps the base fee constant.
        let gas_limit = (accounts.gas() * config.transactions_per_block as u64 * 2).max(1_000_000);
        let seal = Seal {
            number: 0,
            bloom: SealedBloom::Honest,
            timestamp: config.genesis_timestamp,
            gas_limit,
            beneficiary: Address::ZERO,
            mix_hash: B256::ZERO,
        };
        let genesis = Arc::new(Block::genesis(config.chain_id, seal));
        let mut chain = Self {
            accounts,
            rng: StdRng::seed_from_u64(config.seed),
            transactions_per_block: config.transactions_per_block,
            genesis_timestamp: config.genesis_timestamp,
            timestamp_interval: config.timestamp_interval.max(1),
            gas_limit,
            keep_blocks: config.keep_blocks.max(1),
            habits: Habits {
                holes: config.holes,
                empty_blooms: config.empty_blooms,
                greedy_blooms: config.greedy_blooms,
            },
            blocks: HashMap::from([(genesis.hash(), genesis.clone())]),
            numbers: BTreeMap::new(),
            canonical: VecDeque::from([genesis.clone()]),
            genesis,
            mined: HashMap::new(),
            pool: Pool::default(),
            abandoned: None,
        };
        for _ in 0..config.initial_blocks {
            chain.mine();
        }
        if config.fork_seed != 0 {
            chain.rng = StdRng::seed_from_u64(config.seed.rotate_left(32) ^ config.fork_seed);
        }
        chain
    }

    /// Mines a block of the pending transactions, filled up with generated ones.
    pub fn mine(&mut self) -> Arc<Block> {
        self.fill_pool();
        self.mine_up_to(self.transactions_per_block.max(MAX_BLOCK_TRANSACTIONS))
    }

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

    /// Adds a generated pending transaction, as if it had arrived from the network; returns `None` while the pool is
    /// full.
    pub fn next_pending(&mut self) -> Option<Arc<Transaction>> {
        if self.pool.len() >= MAX_PENDING {
            return None;
        }
        let sender = self.accounts.draw(&mut self.rng);
        let nonce = self.pending_nonce(sender);
        let base_fee = self.head().base_fee();
        let transaction = Arc::new(self.accounts.sign(sender, nonce, base_fee, &mut self.rng));
        let mined = self.head().nonce_of(sender);
        self.pool
            .admit(transaction.clone(), mined)
            .expect("the nonce is the sender's next");
        Some(transaction)
    }

    /// Adds a transaction to the pool.
    ///
    /// # Errors
    ///
    /// Returns geth's error if the chain id, the nonce or the fee does not fit, or the transaction is known; see
    /// [`ChainError`].
    pub fn submit(&mut self, transaction: Transaction) -> Result<Arc<Transaction>, ChainError> {
        let want = self.accounts.chain_id();
        if let Some(have) = transaction.envelope().chain_id().filter(|have| *have != want) {
            return Err(ChainError::WrongChain { have, want });
        }
        let transaction = Arc::new(transaction);
        self.pool
            .admit(transaction.clone(), self.head().nonce_of(transaction.from()))?;
        Ok(transaction)
    }

    /// Returns the newest canonical block.
    pub fn head(&self) -> &Arc<Block> {
        self.canonical
            .back()
            .expect("the chain starts with a block and keeps at least one")
    }

    /// Returns a block by hash, canonical or not.
    pub fn block(&self, hash: B256) -> Option<&Arc<Block>> {
        self.blocks.get(&hash)
    }

    /// Returns a canonical block by number. Only the newest `keep_blocks` and the genesis block are known.
    pub fn block_at(&self, number: u64) -> Option<&Arc<Block>> {
        if number == 0 {
            return Some(&self.genesis);
        }
        self.canonical.get(self.position(number)?)
    }

    /// Returns the newest kept canonical block at or below this number.
    pub fn block_at_or_below(&self, number: u64) -> Option<&Arc<Block>> {
        if number == 0 {
            return Some(&self.genesis);
        }
        let above = self.canonical.partition_point(|block| block.number() <= number);
        self.canonical.get(above.checked_sub(1)?)
    }

    /// Returns the index of a number among the canonical blocks that are kept.
    fn position(&self, number: u64) -> Option<usize> {
        self.canonical
            .binary_search_by_key(&number, |block| block.number())
            .ok()
    }

    /// Returns the number of the oldest canonical block that is kept, the genesis block aside.
    pub fn oldest_number(&self) -> u64 {
        self.canonical.front().map_or(0, |block| block.number())
    }

    /// Checks if the block is on the branch of the head.
    pub fn is_canonical(&self, block: &Block) -> bool {
        self.block_at(block.number())
            .is_some_and(|canonical| canonical.hash() == block.hash())
    }

    /// Returns the canonical block and index of a mined transaction.
    pub fn mined(&self, transaction: B256) -> Option<(&Arc<Block>, usize)> {
        let (block, index) = self.mined.get(&transaction)?;
        Some((self.blocks.get(block)?, *index))
    }

    /// Returns a pending transaction.
    pub fn pending(&self, transaction: B256) -> Option<&Arc<Transaction>> {
        self.pool.get(transaction)
    }

    /// Returns the number of pending transactions.
    pub fn pending_len(&self) -> usize {
        self.pool.len()
    }

    /// Returns the account's transaction count, pending ones included.
    pub fn pending_nonce(&self, account: Address) -> u64 {
        self.pool.next_nonce(account, self.head().nonce_of(account))
    }

    /// Returns the token contracts, the busiest first.
    pub fn tokens(&self) -> &[Address] {
        self.accounts.tokens()
    }

    /// Returns the accounts that send transactions.
    pub fn senders(&self) -> impl ExactSizeIterator<Item = Address> + '_ {
        self.accounts.senders()
    }

    /// Returns the gas of a call to `to`; `None` is a contract creation.
    pub(super) fn gas_of(&self, to: Option<Address>) -> u64 {
        match to {
            Some(to) if !self.accounts.tokens().contains(&to) => GAS_TRANSFER,
            _ => self.accounts.gas(),
        }
    }

    fn fill_pool(&mut self) {
        while self.pool.len() < self.transactions_per_block && self.next_pending().is_some() {}
    }

    fn mine_up_to(&mut self, limit: usize) -> Arc<Block> {
        let body = self.pool.take(limit);
        let body = body
            .into_iter()
            .map(|transaction| {
                let logs = self.accounts.logs_of(&transaction);
                let gas = self.gas_of(transaction.to()).min(transaction.envelope().gas_limit());
                (transaction, logs, gas)
            })
            .collect();
        let beneficiary = Address::from_slice(&self.rng.random::<[u8; 20]>());
        let mix_hash = random_hash(&mut self.rng);
        let number = self.head().number() + 1 + self.habits.gap(mix_hash);
        let seal = Seal {
            number,
            bloom: self.habits.bloom(mix_hash),
            timestamp: self.genesis_timestamp + number * self.timestamp_interval,
            gas_limit: self.gas_limit,
            beneficiary,
            mix_hash,
        };
        let block = Arc::new(self.head().child(body, seal));
        self.adopt(block.clone());
        block
    }

    /// Appends a child of the head and forgets blocks that are too old.
    fn adopt(&mut self, block: Arc<Block>) {
        for (index, transaction) in block.transactions().iter().enumerate() {
            self.mined.insert(transaction.hash(), (block.hash(), index));
        }
        if self.blocks.insert(block.hash(), block.clone()).is_none() {
            self.numbers.entry(block.number()).or_default().push(block.hash());
        }
        self.canonical.push_back(block);
        self.forget();
    }

    fn forget(&mut self) {
        let oldest = (self.head().number() + 1).saturating_sub(self.keep_blocks);
        while self.canonical.front().is_some_and(|block| block.number() < oldest) {
            self.canonical.pop_front();
        }
        while let Some(entry) = self.numbers.first_entry().filter(|entry| *entry.key() < oldest) {
            for hash in entry.remove() {
                if let Some(block) = self.blocks.remove(&hash) {
                    self.forget_transactions(&block);
                }
            }
        }
    }

    fn forget_transactions(&mut self, block: &Block) {
        for transaction in block.transactions() {
            if self
                .mined
                .get(&transaction.hash())
                .is_some_and(|(hash, _)| *hash == block.hash())
            {
                self.mined.remove(&transaction.hash());
            }
        }
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

/// Deviations from Ethereum. They follow from each block's randomness and draw nothing from the chain's generator: a
/// chain has the same transactions with and without them.
#[derive(Clone, Copy, Debug)]
struct Habits {
    holes: u32,
    empty_blooms: u32,
    greedy_blooms: u32,
}

impl Habits {
    /// Returns the number of heights left out below a block.
    fn gap(self, randomness: B256) -> u64 {
        if happens(self.holes, randomness, 0) {
            1 + u64::from(randomness[4] % 3)
        } else {
            0
        }
    }

    fn bloom(self, randomness: B256) -> SealedBloom {
        if happens(self.empty_blooms, randomness, 8) {
            SealedBloom::Empty
        } else if !happens(self.greedy_blooms, randomness, 12) {
            SealedBloom::Honest
        } else if randomness[16].is_multiple_of(2) {
            SealedBloom::With(randomness)
        } else {
            SealedBloom::Full
        }
    }
}

/// Returns `true` for one in `one_in`, by the four bytes from `at` on; never for 0.
fn happens(one_in: u32, randomness: B256, at: usize) -> bool {
    let bytes = [0, 1, 2, 3].map(|byte| randomness[at + byte]);
    u32::from_be_bytes(bytes).checked_rem(one_in) == Some(0)
}

fn random_hash(rng: &mut impl Rng) -> B256 {
    B256::new(rng.random())
}

#[cfg(test)]
mod tests;
