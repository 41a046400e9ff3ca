//! Table of the schemas that methods and events refer to, after ethereum/execution-apis (CC0-1.0).
//!
//! Answers of nodes are described as nodes of several chains give them: members that some lack are optional, and
//! further members are allowed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::grammar::{self, Field, fields};

/// Schema under its name.
#[derive(Debug)]
pub(super) struct Schema {
    pub name: &'static str,
    pub form: Form,
    /// Description; empty if the name says enough.
    pub about: &'static str,
}

/// Form of a schema.
#[derive(Debug)]
pub(super) enum Form {
    /// Text that matches a regular expression.
    Text(&'static str),
    /// One of these words.
    Words(&'static [&'static str]),
    /// Another type, in the notation of [`super::grammar`].
    Type(&'static str),
    /// Object of these fields, in the same notation, and of further ones.
    Object(&'static str),
    /// Object like [`Self::Object`], with a description of each field.
    Described(&'static [(&'static str, &'static str)]),
    /// Object like [`Self::Described`], without further fields: headwater refuses those.
    Options(&'static [(&'static str, &'static str)]),
}

use Form::{Described, Object, Options, Text, Type, Words};

const fn schema(name: &'static str, form: Form, about: &'static str) -> Schema {
    Schema { name, form, about }
}

/// Fields of a header, which a block and a simulated block have too. Those of a pending block are in part `null`.
macro_rules! header {
    () => {
        "parentHash: Hash, number: Uint | null, hash: Hash | null, timestamp: Uint, miner?: Address | null, \
         stateRoot?: Hash, transactionsRoot?: Hash, receiptsRoot?: Hash, logsBloom?: Bytes | null, gasLimit: Uint, \
         gasUsed: Uint, extraData?: Bytes, sha3Uncles?: Hash, difficulty?: Uint | null, mixHash?: Hash, \
         nonce?: Bytes | null, baseFeePerGas?: Uint | null, withdrawalsRoot?: Hash | null, blobGasUsed?: Uint | null, \
         excessBlobGas?: Uint | null, parentBeaconBlockRoot?: Hash | null, requestsHash?: Hash | null"
    };
}

/// Fields of a block behind those of its header.
macro_rules! block {
    () => {
        concat!(
            header!(),
            ", size?: Uint, totalDifficulty?: Uint | null, transactions?: Hash[] | Transaction[], uncles?: Hash[], \
             withdrawals?: Withdrawal[] | null"
        )
    };
}

/// Fields of a transaction that a caller chooses.
macro_rules! transaction {
    () => {
        "to?: Address | null, gas?: Uint, gasPrice?: Uint, maxFeePerGas?: Uint, maxPriorityFeePerGas?: Uint, \
         maxFeePerBlobGas?: Uint, value?: Uint, nonce?: Uint, type?: Uint, chainId?: Uint | null, \
         accessList?: AccessListItem[] | null, blobVersionedHashes?: Hash[] | null, \
         authorizationList?: Authorization[] | null"
    };
}

/// All schemas, sorted by name.
pub(super) const SCHEMAS: &[Schema] = &[
    schema("AccessListItem", Object("address: Address, storageKeys: Hash[]"), ""),
    schema(
        "AccessListResult",
        Object("accessList: AccessListItem[], gasUsed: Uint, error?: string"),
        "",
    ),
    schema(
        "AccountLimits",
        Described(&[
            ("plan: string", "Name of the plan; default without one."),
            (
                "requestsPerSecond: integer",
                "Units of requests a second; x-weight says how many a call costs.",
            ),
            ("requestBurst: integer", "Most units at once."),
            (
                "handshakesPerMinute: integer",
                "Most new WebSocket connections a minute.",
            ),
            ("maxConnections: integer", "Most connections of the account."),
            ("maxSubscriptions: integer", "Most subscriptions of a connection."),
            (
                "maxSubscriptionsPerClient: integer",
                "Most subscriptions of the account.",
            ),
            (
                "maxIndexEntries: integer",
                "Most index entries of the account: addresses times topics, and hashes, in its filters.",
            ),
            (
                "maxInFlight: integer",
                "Most calls of a connection that are not answered yet.",
            ),
            ("maxBatch: integer", "Most items of a batch."),
            ("maxMessageBytes: integer", "Longest message over WebSocket, in bytes."),
            ("maxBodyBytes: integer", "Longest body over HTTP, in bytes."),
            (
                "egressBytesPerSecond: integer | null",
                "Bytes of events a second; null without a limit.",
            ),
            (
                "maxRefusals: integer",
                "Refused messages of a connection within refusalWindowMs; one more closes the connection.",
            ),
            ("refusalWindowMs: integer", "Window of maxRefusals, in milliseconds."),
        ]),
        "Limits of an account, under the names of the settings.",
    ),
    schema(
        "AccountOverride",
        Object(
            "nonce?: Uint, balance?: Uint, code?: Bytes, state?: Map<Hash>, stateDiff?: Map<Hash>, \
             movePrecompileToAddress?: Address",
        ),
        "Account as it should be before the call; either all of its storage (state) or some slots (stateDiff).",
    ),
    schema(
        "AccountProof",
        Object(
            "address: Address, accountProof: Bytes[], balance: Uint, codeHash: Hash, nonce: Uint, storageHash: Hash, \
             storageProof: StorageProof[]",
        ),
        "",
    ),
    schema(
        "AccountSubscription",
        Described(&[
            (
                "connection: integer",
                "Number of the connection, not used again until a restart.",
            ),
            ("id: SubscriptionId", "Id, valid on that connection alone."),
            (
                "kind: string",
                "Kind, under the name that rights have: minedTransactions, passthrough, …",
            ),
            ("indexEntries: integer", "Index entries that its filter is charged."),
        ]),
        "",
    ),
    schema(
        "AccountSubscriptions",
        Described(&[
            (
                "connection: integer | null",
                "Number of the connection of this call; null over HTTP.",
            ),
            ("subscriptions: AccountSubscription[]", "Subscriptions, at most 1,000."),
            ("truncated: boolean", "True if there are more than are listed."),
        ]),
        "",
    ),
    schema(
        "AccountUsage",
        Described(&[
            ("connections: integer", "Open connections, of WebSocket and HTTP."),
            ("subscriptions: integer", "Subscriptions on all connections."),
            ("indexEntries: integer", "Index entries of all filters."),
            ("requestsLeft: integer", "Units of requests that may be spent at once."),
        ]),
        "",
    ),
    schema("Address", Text("^0[xX][0-9a-fA-F]{40}$"), "20 bytes in hexadecimal."),
    schema(
        "After",
        Options(&[
            ("blockHash: Hash", "Block of the last event that the client has."),
            (
                "logIndex?: Uint | null",
                "Index of the last log that the client has; without it, it has all of the block's.",
            ),
        ]),
        "Place in a stream, behind an event.",
    ),
    schema(
        "Authorization",
        Object("chainId: Uint, address: Address, nonce: Uint, yParity?: Uint, r?: Uint, s?: Uint"),
        "Authorization to set an account's code (EIP-7702).",
    ),
    schema("Block", Object(block!()), ""),
    schema(
        "BlockId",
        Type("BlockTagOrNumber | Hash | BlockReference"),
        "Block by tag, number, hash, or object (EIP-1898).",
    ),
    schema(
        "BlockLogs",
        Object("block: object, removed: boolean, logs: Log[], receipts?: Receipt[], transactions?: Transaction[]"),
        "block has number, hash, parentHash and timestamp.",
    ),
    schema(
        "BlockOverrides",
        Object(
            "number?: Uint, time?: Uint, gasLimit?: Uint, feeRecipient?: Address, prevRandao?: Hash, \
             baseFeePerGas?: Uint, blobBaseFee?: Uint, withdrawals?: Withdrawal[]",
        ),
        "Members of a block as they should be.",
    ),
    schema(
        "BlockReference",
        Object("blockHash?: Hash, blockNumber?: Uint, requireCanonical?: boolean"),
        "",
    ),
    schema(
        "BlockTag",
        Words(&["earliest", "finalized", "safe", "latest", "pending"]),
        "latest is the head that was delivered last to subscribers, on any connection.",
    ),
    schema("BlockTagOrNumber", Type("BlockTag | Uint"), ""),
    schema("Bytes", Text("^0[xX]([0-9a-fA-F]{2})*$"), "Bytes in hexadecimal."),
    schema(
        "Call",
        Object(concat!("from?: Address, input?: Bytes, data?: Bytes, ", transaction!())),
        "Transaction that is executed but not sent. input and data are the same; give one.",
    ),
    schema(
        "FeeHistory",
        Object(
            "oldestBlock: Uint, baseFeePerGas?: Uint[], gasUsedRatio: number[], reward?: Uint[][] | null, \
             baseFeePerBlobGas?: Uint[], blobGasUsedRatio?: number[]",
        ),
        "",
    ),
    schema(
        "FilterId",
        Text("^0[xX][0-9a-fA-F]+$"),
        "Id of a polled filter, in hexadecimal.",
    ),
    schema("Finality", Words(&["finalized", "safe"]), "Tag of the node in use."),
    schema("Hash", Text("^0[xX][0-9a-fA-F]{64}$"), "32 bytes in hexadecimal."),
    schema("Header", Object(header!()), ""),
    schema(
        "Log",
        Object(
            "address: Address, topics: Hash[], data: Bytes, blockHash?: Hash | null, blockNumber?: Uint | null, \
             blockTimestamp?: Uint | null, transactionHash?: Hash | null, transactionIndex?: Uint | null, \
             logIndex?: Uint | null, removed?: boolean",
        ),
        "",
    ),
    schema(
        "LogFilter",
        Described(&[
            (
                "address?: Address | Address[] | null",
                "Addresses that match, at most 1,000; none for any.",
            ),
            (
                "topics?: Topic[] | null",
                "Topics that match, by position, at most four. A log needs at least as many topics as there are positions.",
            ),
            (
                "fromBlock?: BlockTagOrNumber | null",
                "First block of the logs; nothing is replayed (use StartOptions).",
            ),
            ("toBlock?: BlockTagOrNumber | null", "Last block of the logs."),
        ]),
        "Filter of a subscription to logs.",
    ),
    schema(
        "LogQuery",
        Object(
            "address?: Address | Address[] | null, topics?: Topic[] | null, fromBlock?: BlockTagOrNumber | null, \
             toBlock?: BlockTagOrNumber | null, blockHash?: Hash | null",
        ),
        "Filter of logs of a range of blocks, or of the block of a hash.",
    ),
    schema(
        "MinedOptions",
        Options(&[
            (
                "addresses?: Parties[] | null",
                "Alternatives, at most 1,000 addresses in all; none for every transaction.",
            ),
            (
                "includeRemoved?: boolean | null",
                "True to be sent a removal, on a reorg, of each transaction of dropped blocks.",
            ),
            (
                "hashesOnly?: boolean | null",
                "True for hashes in place of whole transactions.",
            ),
        ]),
        "",
    ),
    schema(
        "MinedTransaction",
        Object("removed: boolean, transaction: Transaction | TransactionHash"),
        "",
    ),
    schema(
        "Parties",
        Options(&[
            ("from?: Address | null", "Sender."),
            ("to?: Address | null", "Recipient."),
        ]),
        "Sender and recipient; both must fit if both are named.",
    ),
    schema(
        "PendingOptions",
        Options(&[
            ("fromAddress?: Address | Address[] | null", "Senders that match."),
            ("toAddress?: Address | Address[] | null", "Recipients that match."),
            (
                "hashesOnly?: boolean | null",
                "True for hashes, false for whole transactions.",
            ),
        ]),
        "A transaction matches by its sender or by its recipient. At most 1,000 addresses; none for every transaction.",
    ),
    schema(
        "Receipt",
        Object(
            "transactionHash: Hash, transactionIndex: Uint, blockHash: Hash, blockNumber: Uint, from: Address, \
             to?: Address | null, contractAddress?: Address | null, cumulativeGasUsed: Uint, gasUsed: Uint, \
             effectiveGasPrice?: Uint, logs: Log[], logsBloom?: Bytes, type?: Uint, status?: Uint, root?: Bytes, \
             blobGasUsed?: Uint | null, blobGasPrice?: Uint | null",
        ),
        "",
    ),
    schema(
        "ReceiptFilter",
        Described(&[(
            "transactionHashes?: Hash[] | null",
            "Transactions, at most 200; none for all transactions.",
        )]),
        "",
    ),
    schema(
        "SimulatedBlock",
        Object(concat!(block!(), ", calls: SimulatedCall[]")),
        "",
    ),
    schema(
        "SimulatedCall",
        Object("status: Uint, returnData: Bytes, gasUsed: Uint, logs?: Log[], maxUsedGas?: Uint, error?: object"),
        "",
    ),
    schema(
        "Simulation",
        Object(
            "blockStateCalls: SimulationStep[], traceTransfers?: boolean, validation?: boolean, \
             returnFullTransactions?: boolean",
        ),
        "",
    ),
    schema(
        "SimulationStep",
        Object("blockOverrides?: BlockOverrides, stateOverrides?: StateOverrides, calls?: Call[]"),
        "One block of a simulation.",
    ),
    schema(
        "Slot",
        Text("^0[xX][0-9a-fA-F]{1,64}$"),
        "Slot of a contract's storage, in hexadecimal.",
    ),
    schema(
        "StartOptions",
        Options(&[
            ("after?: After | null", "Everything after this place."),
            ("fromBlock?: Uint | null", "The block of this number, and all after it."),
        ]),
        "Start of a stream in the past: at most one of both. Error -32001 if it is too far back.",
    ),
    schema(
        "StateOverrides",
        Type("Map<AccountOverride>"),
        "Accounts as they should be, by address.",
    ),
    schema("StorageProof", Object("key: Slot, value: Uint, proof: Bytes[]"), ""),
    schema(
        "StreamOptions",
        Options(&[
            ("after?: After | null", "Everything after this place."),
            ("fromBlock?: Uint | null", "The block of this number, and all after it."),
            (
                "finality?: Finality | null",
                "Blocks come once they have it; none is taken back.",
            ),
            (
                "confirmations?: integer | Uint | null",
                "The same, once they are this many deep, themselves counted; in place of finality.",
            ),
            (
                "include?: string[] | null",
                "header, receipts, transactions: blockLogs.",
            ),
        ]),
        "Start and finality of a stream, an extension of headwater: at most one of after and fromBlock.",
    ),
    schema(
        "SubscriptionId",
        Text("^0[xX][0-9a-fA-F]{1,32}$"),
        "Id of a subscription, valid on its connection.",
    ),
    schema(
        "SyncProgress",
        Object("startingBlock?: Uint, currentBlock: Uint, highestBlock: Uint"),
        "",
    ),
    schema("SyncingEvent", Object("syncing: boolean, status?: object"), ""),
    schema(
        "Topic",
        Type("Hash | Hash[] | null"),
        "One topic, alternatives (at most 1,000), or null for any.",
    ),
    schema(
        "Transaction",
        Object(concat!(
            "hash: Hash, from: Address, input: Bytes, blockHash?: Hash | null, blockNumber?: Uint | null, \
             blockTimestamp?: Uint | null, transactionIndex?: Uint | null, v?: Uint, r?: Uint, s?: Uint, \
             yParity?: Uint, ",
            transaction!()
        )),
        "",
    ),
    schema("TransactionHash", Object("hash: Hash"), ""),
    schema("TxPool", Object("pending: object, queued: object"), ""),
    schema("TxPoolStatus", Object("pending: Uint, queued: Uint"), ""),
    schema(
        "Uint",
        Text("^0[xX](0|[1-9a-fA-F][0-9a-fA-F]*)$"),
        "Number in hexadecimal, without leading zeros.",
    ),
    schema(
        "Withdrawal",
        Object("index: Uint, validatorIndex: Uint, address: Address, amount: Uint"),
        "",
    ),
];

impl Schema {
    /// Returns the JSON schema.
    pub(super) fn value(&self) -> Value {
        let object = |fields: Vec<Field>| {
            let required: Vec<_> = fields
                .iter()
                .filter(|field| field.required)
                .map(|field| field.name)
                .collect();
            let properties: BTreeMap<_, _> = fields.into_iter().map(|field| (field.name, field.schema)).collect();
            json!({ "type": "object", "required": required, "properties": properties })
        };
        // Beside `$ref` a description does not count.
        let with = |about: &str, value: Value| match value {
            Value::Object(mut members) if !members.contains_key("$ref") => {
                members.insert("description".to_owned(), about.into());
                Value::Object(members)
            }
            other => json!({ "description": about, "allOf": [other] }),
        };
        let each = |members: &[(&'static str, &str)]| {
            let read = |(text, about): &(&'static str, &str)| {
                fields(text)
                    .into_iter()
                    .flatten()
                    .map(|field| Field {
                        schema: with(about, field.schema),
                        ..field
                    })
                    .collect::<Vec<_>>()
            };
            object(members.iter().flat_map(read).collect())
        };
        let value = match self.form {
            Form::Text(pattern) => json!({ "type": "string", "pattern": pattern }),
            Form::Words(words) => json!({ "type": "string", "enum": words }),
            Form::Type(text) => grammar::schema(text),
            Form::Object(text) => object(fields(text).unwrap_or_default()),
            Form::Described(members) => each(members),
            Form::Options(members) => {
                let mut closed = each(members);
                closed["additionalProperties"] = false.into();
                closed
            }
        };
        if self.about.is_empty() {
            value
        } else {
            with(self.about, value)
        }
    }
}
