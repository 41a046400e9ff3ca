//! Verifies a block's receipts and header against its hash (E7): the optional level above the bloom.
//!
//! ```text
//! hash         = keccak(rlp(header))                    verify_hash
//! receiptsRoot = root of the trie of all its receipts   verify
//! the receipts' logs = the answer to eth_getLogs        verify
//! ```
//!
//! With both, an upstream can neither forge nor omit a log of a block whose hash is right. Three things remain on
//! trust: that the hash is canonical, which only the consensus layer can prove; the hash of the log's transaction,
//! which is covered by `transactionsRoot` and not by this root (its index is proven); and a log's optional
//! `blockTimestamp`.

use alloy_consensus::Header as ConsensusHeader;
use alloy_consensus::proofs::ordered_trie_root_with_encoder;
use alloy_primitives::{Address, B64, B256, Bloom, Bytes, Log, U8, U64, U256};
use alloy_rlp::Encodable;
use serde::Deserialize;

use super::{BlockLogs, Header};

/// Reason why the receipts are not this block's, or the logs are not in the receipts.
#[derive(Debug, thiserror::Error)]
pub enum BadReceipts {
    /// The header has no valid `receiptsRoot` to check the receipts against.
    #[error("the header has no receiptsRoot: {0}")]
    Header(#[source] serde_json::Error),
    /// Not an array of receipts; also for `null`, the answer of a node that does not know the block.
    #[error("not an array of receipts: {0}")]
    Shape(#[source] serde_json::Error),
    /// A receipt with neither `status` nor `root`.
    #[error("the receipt at position {0} has neither status nor root")]
    Outcome(usize),
    /// A receipt whose bloom does not match its logs. If every block has such receipts, the chain leaves receipt blooms
    /// empty.
    #[error("the logs of the receipt at position {0} do not add up to its logsBloom")]
    Bloom(usize),
    /// A receipt is missing, forged or out of order.
    #[error("the receipts add up to the root {computed}, the header's receiptsRoot is {said}")]
    Root {
        /// Root of the receipts in the answer.
        computed: B256,
        /// Root in the header.
        said: B256,
    },
    /// The roots differ, but the chain rather than the node may be at fault: it has transactions of its own type,
    /// whose receipts need not have the standard encoding. A lying node can claim such a type too, so one answer is
    /// no reason to switch the verification off.
    #[error(
        "the receipts do not add up to the header's receiptsRoot; one is of the type {0:#x}, which this chain may \
         encode in a form of its own: if this recurs, headwater cannot verify its receipts"
    )]
    UnknownType(u8),
    /// More or fewer logs than the receipts have.
    #[error("{answered} logs were answered, the receipts have {proven}")]
    Count {
        /// Number of logs in the answer to `eth_getLogs`.
        answered: usize,
        /// Number of logs in the receipts.
        proven: usize,
    },
    /// A log that differs from the receipts' log at the same position.
    #[error("the log at position {0} is not the one in the receipts")]
    Log(usize),
}

/// Reason why a header does not match its hash.
#[derive(Debug, thiserror::Error)]
pub enum BadHash {
    /// Members that every Ethereum header has are missing or malformed.
    #[error("not a whole header: {0}")]
    Shape(#[from] serde_json::Error),
    /// A forged header; or, if every block of every upstream fails, a chain whose headers have other members than
    /// Ethereum's.
    #[error("the header's fields have the hash {computed}, but the header says {said}")]
    Mismatch {
        /// Hash of the header's members.
        computed: B256,
        /// Hash that the header names.
        said: B256,
    },
}

/// Checks the node's answer to `eth_getBlockReceipts` against the header's `receiptsRoot`, and the block's logs
/// against the receipts. The root is only as trustworthy as its header: see [`verify_hash`].
///
/// The trie is that of the Yellow Paper ("Holistic Validity"): each receipt under the RLP of its index. A missing,
/// changed or moved receipt gives another root.
///
/// # Errors
/// [`BadReceipts`] if the receipts are malformed or do not match the header, or the logs do not match the receipts.
pub fn verify(header: &Header, receipts_answer: &[u8], logs: &BlockLogs) -> Result<(), BadReceipts> {
    same_logs(&proven(header, receipts_answer)?, logs)
}

/// Checks the receipts as [`verify`] does, but without logs: for receipts that are delivered themselves. The root
/// does not cover their transactions' hashes and the values that nodes derive (addresses, prices, gas of each); these
/// remain on trust.
///
/// # Errors
/// [`BadReceipts`] if the receipts are malformed or do not match the header.
pub fn verify_root(header: &Header, receipts_answer: &[u8]) -> Result<(), BadReceipts> {
    proven(header, receipts_answer).map(drop)
}

/// Parses the receipts and checks that their root is the header's.
fn proven(header: &Header, receipts_answer: &[u8]) -> Result<Vec<ProvedReceipt>, BadReceipts> {
    let Roots { receipts_root: said } = serde_json::from_slice(&header.json).map_err(BadReceipts::Header)?;
    let receipts: Vec<ProvedReceipt> = serde_json::from_slice(receipts_answer).map_err(BadReceipts::Shape)?;
    for (position, receipt) in receipts.iter().enumerate() {
        receipt.check(position)?;
    }
    let computed = ordered_trie_root_with_encoder(&receipts, ProvedReceipt::encode);
    if computed != said {
        let unknown = receipts.iter().find_map(ProvedReceipt::unknown_type);
        return Err(unknown.map_or(BadReceipts::Root { computed, said }, BadReceipts::UnknownType));
    }
    Ok(receipts)
}

/// Recomputes the hash of an announced header or a whole block from its members (Yellow Paper, "Serialisation"). A
/// `null` member counts as absent: nodes send `null` for members of forks that the chain has not had.
///
/// # Errors
/// [`BadHash`] if members are missing or the hash differs. If every block fails, the chain's headers cannot be
/// verified.
pub fn verify_hash(header_json: &[u8]) -> Result<(), BadHash> {
    let members: Members = serde_json::from_slice(header_json)?;
    let said = members.hash;
    let computed = ConsensusHeader::from(members).hash_slow();
    if computed == said {
        Ok(())
    } else {
        Err(BadHash::Mismatch { computed, said })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Roots {
    receipts_root: B256,
}

/// The members of a receipt that consensus covers, and its transaction's hash.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProvedReceipt {
    /// Nodes older than EIP-2718 omit the type.
    #[serde(default, rename = "type")]
    kind: U8,
    /// Present since Byzantium (EIP-658).
    status: Option<U64>,
    /// State root after the transaction, before Byzantium. Nethermind sends a `status` along with it.
    root: Option<B256>,
    cumulative_gas_used: U64,
    logs_bloom: Bloom,
    logs: Vec<Log>,
    deposit_nonce: Option<U64>,
    deposit_receipt_version: Option<U64>,
    transaction_hash: B256,
}

/// Type of legacy transactions (EIP-2718), whose encoded receipts have no type prefix.
const LEGACY: u8 = 0;
/// Newest type of Ethereum (EIP-7702).
const NEWEST: u8 = 4;
/// Type of Optimism's deposits.
const DEPOSIT: u8 = 0x7e;

impl ProvedReceipt {
    /// Checks one receipt by itself. The root would detect the same faults, but not show which receipt is wrong.
    fn check(&self, position: usize) -> Result<(), BadReceipts> {
        if self.status.is_none() && self.root.is_none() {
            return Err(BadReceipts::Outcome(position));
        }
        if self.logs.iter().collect::<Bloom>() != self.logs_bloom {
            return Err(BadReceipts::Bloom(position));
        }
        Ok(())
    }

    /// Appends `type || rlp([status or root, cumulative gas, bloom, logs])` (EIP-2718; Yellow Paper, "Transaction
    /// Receipt"). Unknown types are assumed to have this form too, as most chains' own types do.
    fn encode(&self, out: &mut Vec<u8>) {
        let status = self.status.unwrap_or_default();
        let outcome: &dyn Encodable = match &self.root {
            Some(root) => root,
            None => &status,
        };
        let mut members = vec![outcome, &self.cumulative_gas_used, &self.logs_bloom, &self.logs];
        let nonce = self.deposit_nonce.unwrap_or_default();
        // Hashed since Canyon, which added the version; before, nodes sent the nonce but it was not hashed.
        if let Some(version) = &self.deposit_receipt_version {
            members.extend([&nonce as &dyn Encodable, version]);
        }
        let kind = self.kind.to::<u8>();
        if kind != LEGACY {
            out.push(kind);
        }
        alloy_rlp::encode_list::<&dyn Encodable, dyn Encodable>(&members, out);
    }

    fn unknown_type(&self) -> Option<u8> {
        let kind = self.kind.to();
        (kind > NEWEST && kind != DEPOSIT).then_some(kind)
    }
}

/// Members of a log in the answer to `eth_getLogs`, besides its address, topics and index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rest {
    data: Bytes,
    transaction_index: U64,
    transaction_hash: B256,
}

/// Compares the answered logs with the receipts' logs. Indices count across the block's receipts, from 0 without
/// holes.
fn same_logs(receipts: &[ProvedReceipt], logs: &BlockLogs) -> Result<(), BadReceipts> {
    let answered = logs.logs.len();
    let proven = receipts.iter().map(|receipt| receipt.logs.len()).sum();
    if answered != proven {
        return Err(BadReceipts::Count { answered, proven });
    }
    let placed = receipts
        .iter()
        .enumerate()
        .flat_map(|(place, receipt)| receipt.logs.iter().map(move |log| (place, receipt, log)));
    for (index, (answer, (place, receipt, log))) in logs.logs.iter().zip(placed).enumerate() {
        let same = answer.index == index as u64
            && answer.address == log.address
            && answer.topics == log.topics()
            && serde_json::from_slice(answer.json()).is_ok_and(|rest: Rest| {
                rest.data == log.data.data
                    && rest.transaction_index == U64::from(place)
                    && rest.transaction_hash == receipt.transaction_hash
            });
        if !same {
            return Err(BadReceipts::Log(index));
        }
    }
    Ok(())
}

/// A header's members as nodes send them, and the hash to check them against.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    parent_hash: B256,
    sha3_uncles: B256,
    miner: Address,
    state_root: B256,
    transactions_root: B256,
    receipts_root: B256,
    logs_bloom: Bloom,
    difficulty: U256,
    number: U64,
    gas_limit: U64,
    gas_used: U64,
    timestamp: U64,
    extra_data: Bytes,
    mix_hash: B256,
    nonce: B64,
    base_fee_per_gas: Option<U64>,
    withdrawals_root: Option<B256>,
    blob_gas_used: Option<U64>,
    excess_blob_gas: Option<U64>,
    parent_beacon_block_root: Option<B256>,
    requests_hash: Option<B256>,
    block_access_list_hash: Option<B256>,
    slot_number: Option<U64>,
    hash: B256,
}

/// Without `..Default::default()`, so that a member added by alloy cannot be forgotten here.
impl From<Members> for ConsensusHeader {
    fn from(members: Members) -> Self {
        let number = |quantity: U64| quantity.to::<u64>();
        Self {
            parent_hash: members.parent_hash,
            ommers_hash: members.sha3_uncles,
            beneficiary: members.miner,
            state_root: members.state_root,
            transactions_root: members.transactions_root,
            receipts_root: members.receipts_root,
            logs_bloom: members.logs_bloom,
            difficulty: members.difficulty,
            number: number(members.number),
            gas_limit: number(members.gas_limit),
            gas_used: number(members.gas_used),
            timestamp: number(members.timestamp),
            extra_data: members.extra_data,
            mix_hash: members.mix_hash,
            nonce: members.nonce,
            base_fee_per_gas: members.base_fee_per_gas.map(number),
            withdrawals_root: members.withdrawals_root,
            blob_gas_used: members.blob_gas_used.map(number),
            excess_blob_gas: members.excess_blob_gas.map(number),
            parent_beacon_block_root: members.parent_beacon_block_root,
            requests_hash: members.requests_hash,
            block_access_list_hash: members.block_access_list_hash,
            slot_number: members.slot_number.map(number),
        }
    }
}

#[cfg(test)]
mod tests;
