//! Table of the methods: signature and summary, after ethereum/execution-apis (CC0-1.0) and geth's additions.

use serde_json::{Value, json};

use super::grammar::{Field, signature};
use crate::rpc::method::{Basis, Method, Role};

/// Methods that headwater answers or forwards, sorted by name; `eth_subscribe` is described by its kinds.
pub(super) const METHODS: &[(&str, &str)] = &[
    (
        "debug_setHead(block: Uint) -> null",
        "Sets the chain back to this block. A command to the node.",
    ),
    ("eth_accounts() -> Address[]", "Addresses of the node's own accounts."),
    ("eth_baseFee() -> Uint", "Base fee of the next block, in wei per gas."),
    (
        "eth_blobBaseFee() -> Uint",
        "Base fee of blobs in the next block, in wei per gas of blobs.",
    ),
    (
        "eth_blockNumber() -> Uint",
        "Number of the newest block: never below a head that was delivered on any connection.",
    ),
    (
        "eth_call(transaction: Call, block?: BlockId, stateOverrides?: StateOverrides, blockOverrides?: BlockOverrides) -> Bytes",
        "Executes a call on the state of a block, without a transaction. Returns the returned bytes.",
    ),
    (
        "eth_capabilities() -> object",
        "Head of the node, and the data that it keeps, by kind.",
    ),
    ("eth_chainId() -> Uint", "Id of the chain (EIP-155)."),
    (
        "eth_coinbase() -> Address",
        "Address to which the node's blocks pay their fees.",
    ),
    (
        "eth_config() -> object",
        "Settings of the present fork and of the next one (EIP-7910).",
    ),
    (
        "eth_createAccessList(transaction: Call, block?: BlockId, stateOverrides?: StateOverrides) -> AccessListResult",
        "Access list that a transaction would use, and its gas with that list (EIP-2930).",
    ),
    (
        "eth_estimateGas(transaction: Call, block?: BlockId, stateOverrides?: StateOverrides, blockOverrides?: BlockOverrides) -> Uint",
        "Gas that a transaction needs to succeed.",
    ),
    (
        "eth_feeHistory(blockCount: Uint | integer, newestBlock: BlockTagOrNumber, rewardPercentiles?: number[]) -> FeeHistory",
        "Base fees, used gas and priority fees of a range of blocks.",
    ),
    (
        "eth_fillTransaction(transaction: Call) -> object",
        "Fills in what a transaction lacks (nonce, gas, fees), and signs nothing.",
    ),
    (
        "eth_gasPrice() -> Uint",
        "Price per gas that the node suggests, in wei.",
    ),
    (
        "eth_getBalance(address: Address, block?: BlockId) -> Uint",
        "Balance of an account, in wei.",
    ),
    (
        "eth_getBlockByHash(hash: Hash, full: boolean) -> Block | null",
        "Block of this hash, with whole transactions (true) or their hashes (false).",
    ),
    (
        "eth_getBlockByNumber(block: BlockTagOrNumber, full: boolean) -> Block | null",
        "Block of this number or tag, with whole transactions (true) or their hashes (false).",
    ),
    (
        "eth_getBlockReceipts(block: BlockId) -> Receipt[] | null",
        "Receipts of all transactions of a block.",
    ),
    (
        "eth_getBlockTransactionCountByHash(hash: Hash) -> Uint | null",
        "Number of transactions of the block of this hash.",
    ),
    (
        "eth_getBlockTransactionCountByNumber(block: BlockTagOrNumber) -> Uint | null",
        "Number of transactions of the block of this number or tag.",
    ),
    (
        "eth_getCode(address: Address, block?: BlockId) -> Bytes",
        "Code of a contract.",
    ),
    (
        "eth_getFilterChanges(filter: FilterId) -> Hash[] | Log[]",
        "Events of a filter since it was last asked: hashes, or logs. Only filters of the same account.",
    ),
    (
        "eth_getFilterLogs(filter: FilterId) -> Log[]",
        "All logs of a filter of logs. Only filters of the same account.",
    ),
    (
        "eth_getHeaderByHash(hash: Hash) -> Header | null",
        "Header of the block of this hash.",
    ),
    (
        "eth_getHeaderByNumber(block: BlockTagOrNumber) -> Header | null",
        "Header of the block of this number or tag.",
    ),
    (
        "eth_getLogs(filter: LogQuery) -> Log[]",
        "Logs of a range of blocks, or of one block, that match a filter.",
    ),
    (
        "eth_getProof(address: Address, storageKeys: Slot[], block: BlockId) -> AccountProof",
        "Merkle proof of an account and of slots of its storage (EIP-1186).",
    ),
    (
        "eth_getRawTransactionByBlockHashAndIndex(hash: Hash, index: Uint) -> Bytes | null",
        "Encoded transaction at a place in the block of this hash.",
    ),
    (
        "eth_getRawTransactionByBlockNumberAndIndex(block: BlockTagOrNumber, index: Uint) -> Bytes | null",
        "Encoded transaction at a place in the block of this number or tag.",
    ),
    (
        "eth_getRawTransactionByHash(hash: Hash) -> Bytes | null",
        "Encoded transaction of this hash.",
    ),
    (
        "eth_getStorageAt(address: Address, slot: Slot, block?: BlockId) -> Bytes",
        "Value of a slot of a contract's storage.",
    ),
    (
        "eth_getStorageValues(slots: Map<Slot[]>, block?: BlockId) -> Map<Bytes[]>",
        "Values of slots of several contracts, by address.",
    ),
    (
        "eth_getTransactionByBlockHashAndIndex(hash: Hash, index: Uint) -> Transaction | null",
        "Transaction at a place in the block of this hash.",
    ),
    (
        "eth_getTransactionByBlockNumberAndIndex(block: BlockTagOrNumber, index: Uint) -> Transaction | null",
        "Transaction at a place in the block of this number or tag.",
    ),
    (
        "eth_getTransactionByHash(hash: Hash) -> Transaction | null",
        "Transaction of this hash, mined or pending.",
    ),
    (
        "eth_getTransactionCount(address: Address, block?: BlockId) -> Uint",
        "Number of transactions that an account has sent: its next nonce.",
    ),
    (
        "eth_getTransactionReceipt(hash: Hash) -> Receipt | null",
        "Receipt of a mined transaction.",
    ),
    (
        "eth_getUncleByBlockHashAndIndex(hash: Hash, index: Uint) -> Block | null",
        "Uncle at a place in the block of this hash.",
    ),
    (
        "eth_getUncleByBlockNumberAndIndex(block: BlockTagOrNumber, index: Uint) -> Block | null",
        "Uncle at a place in the block of this number or tag.",
    ),
    (
        "eth_getUncleCountByBlockHash(hash: Hash) -> Uint | null",
        "Number of uncles of the block of this hash.",
    ),
    (
        "eth_getUncleCountByBlockNumber(block: BlockTagOrNumber) -> Uint | null",
        "Number of uncles of the block of this number or tag.",
    ),
    (
        "eth_maxPriorityFeePerGas() -> Uint",
        "Priority fee that the node suggests, in wei per gas.",
    ),
    (
        "eth_newBlockFilter() -> FilterId",
        "Creates a filter of block hashes, to be polled. Subscribe to newHeads instead where possible.",
    ),
    (
        "eth_newFilter(filter: LogQuery) -> FilterId",
        "Creates a filter of logs, to be polled. Subscribe to logs instead where possible.",
    ),
    (
        "eth_newPendingTransactionFilter(full?: boolean) -> FilterId",
        "Creates a filter of pending transactions, to be polled.",
    ),
    (
        "eth_pendingTransactions() -> Transaction[]",
        "Pending transactions of the node's own accounts.",
    ),
    (
        "eth_protocolVersion() -> string | integer",
        "Version of the protocol between nodes.",
    ),
    (
        "eth_sendRawTransaction(transaction: Bytes) -> Hash",
        "Submits a signed transaction. A transaction that the node has already is a success.",
    ),
    (
        "eth_sendRawTransactionSync(transaction: Bytes, timeout?: integer) -> Receipt",
        "Submits a signed transaction, and waits for its receipt, at most this many milliseconds (EIP-7966).",
    ),
    (
        "eth_simulateV1(simulation: Simulation, block?: BlockId) -> SimulatedBlock[]",
        "Executes calls in a series of blocks on top of a block, with overrides of state and blocks.",
    ),
    (
        "eth_syncing() -> boolean | SyncProgress",
        "Sync state of the node: false, or how far it is.",
    ),
    (
        "eth_uninstallFilter(filter: FilterId) -> boolean",
        "Ends a filter. Only filters of the same account.",
    ),
    (
        "eth_unsubscribe(subscription: SubscriptionId) -> boolean",
        "Ends a subscription of this connection. No event of it follows the answer.",
    ),
    (
        "headwater_accountLimits() -> AccountLimits",
        "Limits of the caller's account: of all connections with the same key or token, else of the same network.",
    ),
    (
        "headwater_accountSubscriptions() -> AccountSubscriptions",
        "Subscriptions of the caller's account, on all of its connections.",
    ),
    (
        "headwater_accountUsage() -> AccountUsage",
        "Use that the caller's account makes of its limits. Costs one unit more than its weight.",
    ),
    ("net_listening() -> boolean", "True if the node accepts peers."),
    ("net_peerCount() -> Uint | integer", "Number of the node's peers."),
    ("net_version() -> string", "Id of the network, in decimal."),
    (
        "rpc.discover() -> object",
        "This document, under the name that OpenRPC gives the method.",
    ),
    (
        "rpc_discover() -> object",
        "This document: the methods and kinds of subscriptions that the caller may use.",
    ),
    (
        "rpc_modules() -> Map<string>",
        "Namespaces of methods, and their versions.",
    ),
    (
        "txpool_content() -> TxPool",
        "Transactions in the node's pool, by sender and nonce.",
    ),
    (
        "txpool_contentFrom(address: Address) -> TxPool",
        "Transactions of one sender in the node's pool, by nonce.",
    ),
    (
        "txpool_inspect() -> TxPool",
        "Summaries of the transactions in the node's pool, by sender and nonce.",
    ),
    (
        "txpool_status() -> TxPoolStatus",
        "Number of transactions in the node's pool.",
    ),
    ("web3_clientVersion() -> string", "Name and version of the node."),
    ("web3_sha3(data: Bytes) -> Hash", "Keccak-256 hash of the bytes."),
];

/// Methods that headwater itself defines.
pub const OWN: [&str; 5] = [
    "headwater_accountLimits",
    "headwater_accountSubscriptions",
    "headwater_accountUsage",
    "rpc.discover",
    "rpc_discover",
];

/// Returns a method without its cost; `None` if its signature cannot be read.
pub(super) fn method(text: &'static str, summary: &'static str) -> Option<(&'static str, Value)> {
    let signature = signature(text)?;
    let params: Vec<_> = signature.params.iter().map(Field::descriptor).collect();
    let method = json!({
        "name": signature.name,
        "summary": summary,
        "paramStructure": "by-position",
        "params": params,
        "result": { "name": "result", "schema": signature.result },
        "x-answered-by": answered_by(signature.name),
    });
    Some((signature.name, method))
}

fn answered_by(name: &str) -> &'static str {
    if OWN.contains(&name) || name.ends_with("_unsubscribe") {
        return "headwater";
    }
    match Method::of(name).role {
        Role::ChainId | Role::BlockNumber => "headwater",
        Role::Read(Basis::Work) => "node",
        Role::Read(_) | Role::Logs => "cache",
        Role::OfNode | Role::Send | Role::NewFilter | Role::UseFilter | Role::Control => "node",
        Role::Unknown | Role::Misspelt => "node",
    }
}

/// Returns a method of which the name alone is known.
pub(super) fn undescribed(name: &str, weight: u32) -> Value {
    json!({
        "name": name,
        "summary": "Parameters and answer are not described here.",
        "paramStructure": "by-position",
        "params": [],
        "result": { "name": "result", "schema": true },
        "x-weight": weight,
    })
}
