//! The block tree: pure, seeded, without I/O and without a clock.

mod habits;
mod reorg;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use thiserror::Error;

use self::habits::Habits;
use super::{
    accounts::{Accounts, GAS_TRANSFER},
    block::{Block, Seal, SealedBloom, Transaction},
    config::Config,
    pool::Pool,
};

pub use reorg::Reorg;

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
}

fn random_hash(rng: &mut impl Rng) -> B256 {
    B256::new(rng.random())
}

#[cfg(test)]
mod tests;
