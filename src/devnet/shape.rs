//! Blocks, transactions, receipts and logs in geth's format, with the same members in the same order.
//!
//! geth builds headers in notifications, transactions and logs from structs, but blocks and receipts from maps, which
//! Go writes in alphabetical order. Hence the two orders of a header's fields.

use std::{fmt::LowerHex, sync::Arc};

use alloy_consensus::{Transaction as _, TxEnvelope, Typed2718};
use alloy_eips::{eip2930::AccessListItem, eip7702::SignedAuthorization};
use alloy_primitives::{Address, B64, B256, Bloom, Bytes, U256, keccak256};
use serde::{Serialize, Serializer};

use super::block::{Block, PlacedLog, Transaction};
use super::config::Faults;

/// A number as `0x` and hex digits without leading zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantity<T>(pub(super) T);

impl<T: LowerHex> Serialize for Quantity<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

/// Returns the JSON text of a shape.
pub(super) fn json(shape: &impl Serialize) -> String {
    serde_json::to_string(shape).expect("shapes have string keys and infallible fields")
}

/// Returns a header as in `eth_getHeaderBy*`.
pub(super) fn head(block: &Block) -> Arc<str> {
    announcement(block, &Faults::default())
}

/// Returns the payload of a `newHeads` notification.
pub(super) fn announcement(block: &Block, faults: &Faults) -> Arc<str> {
    let header = block.header();
    let hash = block.hash();
    json(&Head {
        parent_hash: header.parent_hash,
        sha3_uncles: header.ommers_hash,
        miner: header.beneficiary,
        state_root: header.state_root,
        transactions_root: header.transactions_root,
        receipts_root: header.receipts_root,
        logs_bloom: (!faults.announce_without_bloom).then_some(&header.logs_bloom),
        difficulty: Quantity(0),
        number: Quantity(header.number),
        gas_limit: Quantity(header.gas_limit),
        gas_used: Quantity(header.gas_used),
        timestamp: Quantity(header.timestamp),
        extra_data: &header.extra_data,
        mix_hash: header.mix_hash,
        nonce: header.nonce,
        base_fee_per_gas: Quantity(block.base_fee()),
        withdrawals_root: header.withdrawals_root,
        blob_gas_used: Quantity(0),
        excess_blob_gas: Quantity(0),
        parent_beacon_block_root: header.parent_beacon_block_root,
        requests_hash: header.requests_hash,
        block_access_list_hash: (),
        slot_number: (),
        hash: if faults.announce_other_hash {
            keccak256(hash)
        } else {
            hash
        },
    })
    .into()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    parent_hash: B256,
    sha3_uncles: B256,
    miner: Address,
    state_root: B256,
    transactions_root: B256,
    receipts_root: B256,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs_bloom: Option<&'a Bloom>,
    difficulty: Quantity<u64>,
    number: Quantity<u64>,
    gas_limit: Quantity<u64>,
    gas_used: Quantity<u64>,
    timestamp: Quantity<u64>,
    extra_data: &'a Bytes,
    mix_hash: B256,
    nonce: B64,
    base_fee_per_gas: Quantity<u64>,
    withdrawals_root: Option<B256>,
    blob_gas_used: Quantity<u64>,
    excess_blob_gas: Quantity<u64>,
    parent_beacon_block_root: Option<B256>,
    requests_hash: Option<B256>,
    // Fields of forks that this chain does not have: null, as geth's header struct writes them.
    block_access_list_hash: (),
    slot_number: (),
    hash: B256,
}

/// Returns a log as in `eth_getLogs`, receipts and notifications.
pub(super) fn log<'a>(block: &Block, placed: PlacedLog<'a>, removed: bool) -> LogShape<'a> {
    LogShape {
        address: placed.log.address,
        topics: placed.log.topics(),
        data: &placed.log.data.data,
        block_number: Quantity(block.number()),
        transaction_hash: placed.transaction_hash,
        transaction_index: Quantity(placed.transaction_index),
        block_hash: block.hash(),
        block_timestamp: Quantity(block.header().timestamp),
        log_index: Quantity(placed.log_index),
        removed,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogShape<'a> {
    address: Address,
    topics: &'a [B256],
    data: &'a Bytes,
    block_number: Quantity<u64>,
    transaction_hash: B256,
    transaction_index: Quantity<usize>,
    block_hash: B256,
    block_timestamp: Quantity<u64>,
    log_index: Quantity<usize>,
    removed: bool,
}

/// Returns a block as in `eth_getBlockBy*`, with whole transactions or their hashes.
pub(super) fn block(block: &Block, full: bool) -> BlockShape<'_> {
    let header = block.header();
    let transactions = if full {
        let shapes = (0..block.transactions().len()).map(|index| mined_transaction(block, index));
        Transactions::Full(shapes.collect())
    } else {
        Transactions::Hashes(
            block
                .transactions()
                .iter()
                .map(|transaction| transaction.hash())
                .collect(),
        )
    };
    BlockShape {
        base_fee_per_gas: Quantity(block.base_fee()),
        blob_gas_used: Quantity(0),
        difficulty: Quantity(0),
        excess_blob_gas: Quantity(0),
        extra_data: &header.extra_data,
        gas_limit: Quantity(header.gas_limit),
        gas_used: Quantity(header.gas_used),
        hash: block.hash(),
        logs_bloom: &header.logs_bloom,
        miner: header.beneficiary,
        mix_hash: header.mix_hash,
        nonce: header.nonce,
        number: Quantity(header.number),
        parent_beacon_block_root: header.parent_beacon_block_root,
        parent_hash: header.parent_hash,
        receipts_root: header.receipts_root,
        requests_hash: header.requests_hash,
        sha3_uncles: header.ommers_hash,
        size: Quantity(block.size()),
        state_root: header.state_root,
        timestamp: Quantity(header.timestamp),
        transactions,
        transactions_root: header.transactions_root,
        uncles: [],
        withdrawals: [],
        withdrawals_root: header.withdrawals_root,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BlockShape<'a> {
    base_fee_per_gas: Quantity<u64>,
    blob_gas_used: Quantity<u64>,
    difficulty: Quantity<u64>,
    excess_blob_gas: Quantity<u64>,
    extra_data: &'a Bytes,
    gas_limit: Quantity<u64>,
    gas_used: Quantity<u64>,
    hash: B256,
    logs_bloom: &'a Bloom,
    miner: Address,
    mix_hash: B256,
    nonce: B64,
    number: Quantity<u64>,
    parent_beacon_block_root: Option<B256>,
    parent_hash: B256,
    receipts_root: B256,
    requests_hash: Option<B256>,
    sha3_uncles: B256,
    size: Quantity<usize>,
    state_root: B256,
    timestamp: Quantity<u64>,
    transactions: Transactions<'a>,
    transactions_root: B256,
    uncles: [B256; 0],
    withdrawals: [(); 0],
    withdrawals_root: Option<B256>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Transactions<'a> {
    Hashes(Vec<B256>),
    Full(Vec<TransactionShape<'a>>),
}

/// Returns a transaction with its position in a block.
pub(super) fn mined_transaction(block: &Block, index: usize) -> TransactionShape<'_> {
    let mut shape = pending_transaction(&block.transactions()[index]);
    shape.block_hash = Some(block.hash());
    shape.block_number = Some(Quantity(block.number()));
    shape.block_timestamp = Some(Quantity(block.header().timestamp));
    shape.transaction_index = Some(Quantity(index));
    shape.gas_price = Quantity(
        block.transactions()[index]
            .envelope()
            .effective_gas_price(Some(block.base_fee())),
    );
    shape
}

/// Returns a transaction without a block.
pub(super) fn pending_transaction(transaction: &Transaction) -> TransactionShape<'_> {
    let envelope = transaction.envelope();
    let signature = envelope.signature();
    let parity = u64::from(signature.v());
    let (v, typed) = match envelope {
        // EIP-155 includes the chain id in v.
        TxEnvelope::Legacy(_) => (
            envelope.chain_id().map_or(27 + parity, |id| 35 + 2 * id + parity),
            false,
        ),
        _ => (parity, true),
    };
    let dynamic = envelope.max_priority_fee_per_gas().is_some();
    TransactionShape {
        block_hash: None,
        block_number: None,
        block_timestamp: None,
        from: transaction.from(),
        gas: Quantity(envelope.gas_limit()),
        gas_price: Quantity(envelope.max_fee_per_gas()),
        max_fee_per_gas: dynamic.then(|| Quantity(envelope.max_fee_per_gas())),
        max_priority_fee_per_gas: envelope.max_priority_fee_per_gas().map(Quantity),
        max_fee_per_blob_gas: envelope.max_fee_per_blob_gas().map(Quantity),
        hash: transaction.hash(),
        input: envelope.input(),
        nonce: Quantity(envelope.nonce()),
        to: envelope.to(),
        transaction_index: None,
        value: Quantity(envelope.value()),
        r#type: Quantity(envelope.ty()),
        access_list: envelope
            .access_list()
            .map(|list| list.iter().map(AccessShape::from).collect()),
        chain_id: envelope.chain_id().map(Quantity),
        blob_versioned_hashes: envelope.blob_versioned_hashes(),
        authorization_list: envelope
            .authorization_list()
            .map(|list| list.iter().map(AuthorizationShape::from).collect()),
        v: Quantity(v),
        r: Quantity(signature.r()),
        s: Quantity(signature.s()),
        y_parity: typed.then_some(Quantity(parity)),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TransactionShape<'a> {
    block_hash: Option<B256>,
    block_number: Option<Quantity<u64>>,
    block_timestamp: Option<Quantity<u64>>,
    from: Address,
    gas: Quantity<u64>,
    gas_price: Quantity<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_fee_per_gas: Option<Quantity<u128>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_priority_fee_per_gas: Option<Quantity<u128>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_fee_per_blob_gas: Option<Quantity<u128>>,
    hash: B256,
    input: &'a Bytes,
    nonce: Quantity<u64>,
    to: Option<Address>,
    transaction_index: Option<Quantity<usize>>,
    value: Quantity<U256>,
    r#type: Quantity<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_list: Option<Vec<AccessShape<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain_id: Option<Quantity<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blob_versioned_hashes: Option<&'a [B256]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization_list: Option<Vec<AuthorizationShape>>,
    v: Quantity<u64>,
    r: Quantity<U256>,
    s: Quantity<U256>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y_parity: Option<Quantity<u64>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccessShape<'a> {
    address: Address,
    storage_keys: &'a [B256],
}

impl<'a> From<&'a AccessListItem> for AccessShape<'a> {
    fn from(item: &'a AccessListItem) -> Self {
        Self {
            address: item.address,
            storage_keys: &item.storage_keys,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthorizationShape {
    chain_id: Quantity<U256>,
    address: Address,
    nonce: Quantity<u64>,
    y_parity: Quantity<u8>,
    r: Quantity<U256>,
    s: Quantity<U256>,
}

impl From<&SignedAuthorization> for AuthorizationShape {
    fn from(signed: &SignedAuthorization) -> Self {
        Self {
            chain_id: Quantity(*signed.chain_id()),
            address: *signed.address(),
            nonce: Quantity(signed.nonce()),
            y_parity: Quantity(signed.y_parity()),
            r: Quantity(signed.r()),
            s: Quantity(signed.s()),
        }
    }
}

/// Returns a receipt as in `eth_getTransactionReceipt`.
pub(super) fn receipt(block: &Block, index: usize) -> ReceiptShape<'_> {
    let (transaction, outcome) = (&block.transactions()[index], &block.outcomes()[index]);
    let envelope = transaction.envelope();
    ReceiptShape {
        block_hash: block.hash(),
        block_number: Quantity(block.number()),
        contract_address: envelope
            .is_create()
            .then(|| transaction.from().create(transaction.nonce())),
        cumulative_gas_used: Quantity(outcome.receipt.cumulative_gas_used()),
        effective_gas_price: Quantity(envelope.effective_gas_price(Some(block.base_fee()))),
        from: transaction.from(),
        gas_used: Quantity(outcome.gas_used),
        logs: block
            .logs_of_transaction(index)
            .map(|placed| log(block, placed, false))
            .collect(),
        logs_bloom: outcome.receipt.logs_bloom(),
        status: Quantity(u8::from(outcome.receipt.status())),
        to: transaction.to(),
        transaction_hash: transaction.hash(),
        transaction_index: Quantity(index),
        r#type: Quantity(envelope.ty()),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReceiptShape<'a> {
    block_hash: B256,
    block_number: Quantity<u64>,
    contract_address: Option<Address>,
    cumulative_gas_used: Quantity<u64>,
    effective_gas_price: Quantity<u128>,
    from: Address,
    gas_used: Quantity<u64>,
    logs: Vec<LogShape<'a>>,
    logs_bloom: &'a Bloom,
    status: Quantity<u8>,
    to: Option<Address>,
    transaction_hash: B256,
    transaction_index: Quantity<usize>,
    r#type: Quantity<u8>,
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Chain, Config},
        *,
    };

    /// Returns the member names of an object, in order.
    fn keys(json: &str) -> String {
        let mut depth = 0;
        let mut keys = Vec::new();
        for (index, character) in json.char_indices() {
            match character {
                '{' | '[' => depth += 1,
                '}' | ']' => depth -= 1,
                ':' if depth == 1 => keys.push(json[..index - 1].rsplit('"').next().unwrap()),
                _ => {}
            }
        }
        keys.join(" ")
    }

    #[test]
    fn members_stand_in_geths_order() {
        let mined = Chain::new(&Config::manual()).mine();
        let first = mined.placed_logs().next().unwrap();
        assert_eq!(
            keys(&head(&mined)),
            "parentHash sha3Uncles miner stateRoot transactionsRoot receiptsRoot logsBloom difficulty number gasLimit \
             gasUsed timestamp extraData mixHash nonce baseFeePerGas withdrawalsRoot blobGasUsed excessBlobGas \
             parentBeaconBlockRoot requestsHash blockAccessListHash slotNumber hash"
        );
        assert_eq!(
            keys(&json(&log(&mined, first, false))),
            "address topics data blockNumber transactionHash transactionIndex blockHash blockTimestamp logIndex removed"
        );
        assert_eq!(
            keys(&json(&pending_transaction(&mined.transactions()[0]))),
            "blockHash blockNumber blockTimestamp from gas gasPrice maxFeePerGas maxPriorityFeePerGas hash input nonce \
             to transactionIndex value type accessList chainId v r s yParity"
        );
        for alphabetical in [keys(&json(&block(&mined, true))), keys(&json(&receipt(&mined, 0)))] {
            assert!(alphabetical.split(' ').is_sorted(), "{alphabetical}");
        }
    }

    #[test]
    fn numbers_have_no_leading_zeros() {
        assert_eq!(json(&[Quantity(0u64), Quantity(1337)]), r#"["0x0","0x539"]"#);
        assert_eq!(json(&Quantity(U256::ZERO)), r#""0x0""#);
    }
}
