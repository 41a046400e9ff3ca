//! A block with its transactions and receipts, and its sealing.

use std::{collections::HashMap, sync::Arc};

use alloy_consensus::{
    Header, Receipt, ReceiptEnvelope, ReceiptWithBloom, Transaction as _, TxEnvelope,
    constants::{EMPTY_OMMER_ROOT_HASH, EMPTY_WITHDRAWALS},
    proofs::{calculate_receipt_root, calculate_transaction_root},
    transaction::SignerRecoverable,
};
use alloy_eips::{
    eip1559::{BaseFeeParams, calc_next_block_base_fee},
    eip2718::Decodable2718,
    eip7685::EMPTY_REQUESTS_HASH,
};
use alloy_primitives::{Address, B64, B256, Bloom, BloomInput, Bytes, Log, U256, keccak256};
use alloy_rlp::Encodable;

/// The base fee of the genesis block, in wei.
const GENESIS_BASE_FEE: u64 = 1_000_000_000;

/// A signed transaction with its sender and hash, computed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    envelope: TxEnvelope,
    hash: B256,
    from: Address,
}

impl Transaction {
    /// Combines a transaction with its signer, which is not checked.
    pub(super) fn new(envelope: TxEnvelope, from: Address) -> Self {
        Self {
            hash: *envelope.tx_hash(),
            envelope,
            from,
        }
    }

    /// Decodes the argument of `eth_sendRawTransaction` (EIP-2718) and recovers the sender.
    ///
    /// # Errors
    ///
    /// Returns a sentence in geth's words if the bytes are not a transaction or the signature is invalid.
    pub fn decode(mut raw: &[u8]) -> Result<Self, String> {
        let envelope = TxEnvelope::decode_2718(&mut raw).map_err(|error| format!("rlp: {error}"))?;
        let from = envelope.recover_signer().map_err(|_| "invalid sender".to_owned())?;
        Ok(Self::new(envelope, from))
    }

    /// Returns the transaction itself.
    pub fn envelope(&self) -> &TxEnvelope {
        &self.envelope
    }

    /// Returns the transaction hash.
    pub fn hash(&self) -> B256 {
        self.hash
    }

    /// Returns the signer.
    pub fn from(&self) -> Address {
        self.from
    }

    /// Returns the called account; `None` for a contract creation.
    pub fn to(&self) -> Option<Address> {
        self.envelope.to()
    }

    /// Returns the call data.
    pub fn input(&self) -> &Bytes {
        self.envelope.input()
    }

    /// Returns the nonce: the sender's count of earlier transactions.
    pub fn nonce(&self) -> u64 {
        self.envelope.nonce()
    }
}

/// A transaction's outcome in a block: the consensus receipt and values that depend on the position.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) receipt: ReceiptEnvelope,
    pub(super) gas_used: u64,
    /// Index in the block of the transaction's first log.
    pub(super) first_log: usize,
}

/// A sealed block. Immutable; shared by reference.
#[derive(Debug)]
pub struct Block {
    header: Header,
    hash: B256,
    /// RLP length of the whole block in bytes.
    size: usize,
    transactions: Vec<Arc<Transaction>>,
    outcomes: Vec<Outcome>,
    /// Transaction counts of all accounts after this block. Accounts that never sent are absent.
    nonces: HashMap<Address, u64>,
}

/// A log with its position in its block.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedLog<'a> {
    pub(super) log: &'a Log,
    pub(super) log_index: usize,
    pub(super) transaction_index: usize,
    pub(super) transaction_hash: B256,
}

/// Properties of a block that come from randomness and settings rather than from its parent and transactions.
#[derive(Clone, Debug)]
pub(super) struct Seal {
    /// Above the parent's number.
    pub(super) number: u64,
    pub(super) bloom: SealedBloom,
    pub(super) timestamp: u64,
    pub(super) gas_limit: u64,
    pub(super) beneficiary: Address,
    /// Randomness that makes siblings with the same transactions differ.
    pub(super) mix_hash: B256,
}

/// Relation of a block's bloom to its logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SealedBloom {
    Honest,
    Empty,
    /// Claims this item besides the logs.
    With(B256),
    /// Claims everything.
    Full,
}

impl SealedBloom {
    fn of(self, logs: Bloom) -> Bloom {
        match self {
            Self::Honest => logs,
            Self::Empty => Bloom::ZERO,
            Self::With(item) => {
                let mut claimed = logs;
                claimed.accrue(BloomInput::Raw(item.as_slice()));
                claimed
            }
            Self::Full => Bloom::repeat_byte(0xff),
        }
    }
}

impl Block {
    pub(super) fn genesis(chain_id: u64, seal: Seal) -> Self {
        let origin = keccak256(format!("headwater devnet {chain_id}"));
        Self::seal(B256::ZERO, GENESIS_BASE_FEE, origin, HashMap::new(), Vec::new(), seal)
    }

    /// Seals the block after `self` from transactions, each with its logs and gas used.
    pub(super) fn child(&self, body: Vec<(Arc<Transaction>, Vec<Log>, u64)>, seal: Seal) -> Self {
        let base_fee = calc_next_block_base_fee(
            self.header.gas_used,
            self.header.gas_limit,
            self.base_fee(),
            BaseFeeParams::ethereum(),
        );
        let nonces = self.nonces.clone();
        Self::seal(self.hash, base_fee, self.header.state_root, nonces, body, seal)
    }

    fn seal(
        parent_hash: B256,
        base_fee: u64,
        parent_state: B256,
        mut nonces: HashMap<Address, u64>,
        body: Vec<(Arc<Transaction>, Vec<Log>, u64)>,
        seal: Seal,
    ) -> Self {
        let mut hashes = Hashes::default();
        let mut transactions = Vec::with_capacity(body.len());
        let mut outcomes = Vec::with_capacity(body.len());
        let (mut gas_total, mut first_log, mut logs_bloom) = (0, 0, Bloom::ZERO);
        for (transaction, logs, gas_used) in body {
            nonces.insert(transaction.from(), transaction.nonce() + 1);
            gas_total += gas_used;
            let log_count = logs.len();
            let receipt_bloom = hashes.bloom(&logs);
            let receipt = Receipt {
                status: true.into(),
                cumulative_gas_used: gas_total,
                logs,
            };
            let receipt = ReceiptWithBloom {
                receipt,
                logs_bloom: receipt_bloom,
            };
            logs_bloom |= receipt_bloom;
            let receipt = ReceiptEnvelope::from_typed(transaction.envelope().tx_type(), receipt);
            outcomes.push(Outcome {
                receipt,
                gas_used,
                first_log,
            });
            first_log += log_count;
            transactions.push(transaction);
        }
        let envelopes: Vec<_> = transactions
            .iter()
            .map(|transaction| transaction.envelope().clone())
            .collect();
        let receipts: Vec<_> = outcomes.iter().map(|outcome| &outcome.receipt).collect();
        let transactions_root = calculate_transaction_root(&envelopes);
        let header = Header {
            parent_hash,
            ommers_hash: EMPTY_OMMER_ROOT_HASH,
            beneficiary: seal.beneficiary,
            // There is no state to take the root of; this value changes when the history does.
            state_root: keccak256([parent_state, transactions_root].concat()),
            transactions_root,
            receipts_root: calculate_receipt_root(&receipts),
            logs_bloom: seal.bloom.of(logs_bloom),
            difficulty: U256::ZERO,
            number: seal.number,
            gas_limit: seal.gas_limit.max(gas_total),
            gas_used: gas_total,
            timestamp: seal.timestamp,
            extra_data: Bytes::from_static(b"headwater devnet"),
            mix_hash: seal.mix_hash,
            nonce: B64::ZERO,
            base_fee_per_gas: Some(base_fee),
            withdrawals_root: Some(EMPTY_WITHDRAWALS),
            blob_gas_used: Some(0),
            excess_blob_gas: Some(0),
            parent_beacon_block_root: Some(keccak256(seal.mix_hash)),
            requests_hash: Some(EMPTY_REQUESTS_HASH),
            ..Header::default()
        };
        let hash = header.hash_slow();
        let size = block_size(&header, &envelopes);
        Self {
            header,
            hash,
            size,
            transactions,
            outcomes,
            nonces,
        }
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the block hash, keccak(rlp(header)).
    pub fn hash(&self) -> B256 {
        self.hash
    }

    /// Returns the parent's hash.
    pub fn parent_hash(&self) -> B256 {
        self.header.parent_hash
    }

    /// Returns the height: the number of blocks below, unless there are [`super::Config::holes`].
    pub fn number(&self) -> u64 {
        self.header.number
    }

    /// Returns the transactions, in order.
    pub fn transactions(&self) -> &[Arc<Transaction>] {
        &self.transactions
    }

    /// Returns the receipts of the transactions, in order.
    pub fn receipts(&self) -> impl ExactSizeIterator<Item = &ReceiptEnvelope> {
        self.outcomes.iter().map(|outcome| &outcome.receipt)
    }

    /// Returns the logs, in order: a log's position is its `logIndex`.
    pub fn logs(&self) -> impl Iterator<Item = &Log> {
        self.placed_logs().map(|placed| placed.log)
    }

    pub(super) fn placed_logs(&self) -> impl Iterator<Item = PlacedLog<'_>> {
        (0..self.outcomes.len()).flat_map(|index| self.logs_of_transaction(index))
    }

    pub(super) fn logs_of_transaction(&self, transaction_index: usize) -> impl Iterator<Item = PlacedLog<'_>> {
        let outcome = &self.outcomes[transaction_index];
        let transaction_hash = self.transactions[transaction_index].hash();
        outcome
            .receipt
            .logs()
            .iter()
            .enumerate()
            .map(move |(offset, log)| PlacedLog {
                log,
                log_index: outcome.first_log + offset,
                transaction_index,
                transaction_hash,
            })
    }

    pub(super) fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    pub(super) fn base_fee(&self) -> u64 {
        self.header.base_fee_per_gas.unwrap_or(GENESIS_BASE_FEE)
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Returns the account's transaction count after this block.
    pub(super) fn nonce_of(&self, account: Address) -> u64 {
        self.nonces.get(&account).copied().unwrap_or_default()
    }
}

/// Cached hashes of addresses and topics, which repeat within a block: hashing them anew took most of the mining time.
#[derive(Default)]
struct Hashes {
    addresses: HashMap<Address, B256>,
    topics: HashMap<B256, B256>,
}

impl Hashes {
    fn bloom(&mut self, logs: &[Log]) -> Bloom {
        let mut bloom = Bloom::ZERO;
        for log in logs {
            let address = *self
                .addresses
                .entry(log.address)
                .or_insert_with(|| keccak256(log.address));
            bloom.accrue(BloomInput::Hash(address));
            for topic in log.topics() {
                let topic = *self.topics.entry(*topic).or_insert_with(|| keccak256(topic));
                bloom.accrue(BloomInput::Hash(topic));
            }
        }
        bloom
    }
}

/// Returns the RLP length of `[header, transactions, uncles, withdrawals]` in bytes, the last two empty.
fn block_size(header: &Header, transactions: &[TxEnvelope]) -> usize {
    let body: usize = transactions.iter().map(Encodable::length).sum();
    let list = |payload: usize| payload + alloy_rlp::length_of_length(payload);
    list(header.length() + list(body) + list(0) + list(0))
}

#[cfg(test)]
mod tests {
    use alloy_eips::eip2718::Encodable2718;

    use super::{
        super::{Chain, Config},
        *,
    };

    fn block() -> Arc<Block> {
        Chain::new(&Config::manual()).mine()
    }

    #[test]
    fn hash_and_roots_recompute() {
        let block = block();
        assert_eq!(block.hash(), keccak256(alloy_rlp::encode(block.header())));
        let receipts: Vec<_> = block.receipts().cloned().collect();
        assert!(
            receipts
                .iter()
                .all(|receipt| receipt.logs().iter().collect::<Bloom>() == *receipt.logs_bloom())
        );
        assert_eq!(block.header().receipts_root, calculate_receipt_root(&receipts));
        let bodies: Vec<_> = block.transactions().iter().map(|tx| tx.envelope().clone()).collect();
        assert_eq!(block.header().transactions_root, calculate_transaction_root(&bodies));
    }

    #[test]
    fn bloom_covers_the_logs_and_little_else() {
        let block = block();
        assert_eq!(block.logs().count(), 6);
        assert!(block.logs().all(|log| block.header().logs_bloom.contains_log(log)));
        assert!(!block.header().logs_bloom.contains_raw_log(Address::repeat_byte(9), &[]));
    }

    #[test]
    fn log_index_counts_across_transactions() {
        let indices: Vec<_> = block()
            .placed_logs()
            .map(|placed| (placed.transaction_index, placed.log_index))
            .collect();
        assert_eq!(indices, [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]);
    }

    #[test]
    fn transactions_survive_the_wire() {
        let block = block();
        let transaction = &block.transactions()[0];
        let decoded = Transaction::decode(&transaction.envelope().encoded_2718()).unwrap();
        assert_eq!(&decoded, transaction.as_ref());
        assert!(TxEnvelope::decode_2718(&mut &b"\x02nonsense"[..]).is_err());
    }
}
