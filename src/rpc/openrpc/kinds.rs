//! Table of the kinds of `eth_subscribe`: parameters behind the name, events, and an example.

use serde_json::{Value, json};

use super::grammar::{Field, fields, schema};
use crate::delivery::Kind;

/// Method whose parameters depend on the kinds that the client may subscribe to.
pub(super) const SUBSCRIBE: &str = "eth_subscribe";

/// Kind of subscription, under one of its names.
#[derive(Debug)]
pub(super) struct Named {
    pub name: &'static str,
    /// Kind by which the right to subscribe is given.
    pub kind: Kind,
    pub summary: &'static str,
    /// Parameters behind the name, in the notation of [`super::grammar`].
    pub params: &'static str,
    /// Type of an event.
    pub event: &'static str,
    /// Example of the parameters behind the name, as a JSON array; empty without one.
    pub example: &'static str,
}

const PENDING: &str = "options?: PendingOptions | null";
const MINED: &str = "options?: MinedOptions | null, stream?: StreamOptions";

/// All names that headwater knows, sorted by kind.
pub(super) const NAMED: &[Named] = &[
    Named {
        name: "newHeads",
        kind: Kind::Heads,
        summary: "Header of each block that becomes part of the chain, complete over reorgs and outages.",
        params: "stream?: StreamOptions",
        event: "Header",
        example: r#"[{"after":{"blockHash":"0x88e96d4537bea4d9c05d12549907b32561d3bf31f45aae734cdc119f13406cb6"}}]"#,
    },
    Named {
        name: "newFinalizedHeads",
        kind: Kind::Heads,
        summary: "Header of each block once it is finalized: newHeads with finality.",
        params: "start?: StartOptions",
        event: "Header",
        example: "[]",
    },
    Named {
        name: "newSafeHeads",
        kind: Kind::Heads,
        summary: "Header of each block once it is safe: newHeads with finality.",
        params: "start?: StartOptions",
        event: "Header",
        example: "",
    },
    Named {
        name: "logs",
        kind: Kind::Logs,
        summary: "Logs that match a filter; on a reorg those of dropped blocks again, with removed: true.",
        params: "filter?: LogFilter | null, stream?: StreamOptions",
        event: "Log",
        example: r#"[{"address":"0xdac17f958d2ee523a2206206994597c13d831ec7","topics":["0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"]},{"fromBlock":"0x1312d00","finality":"finalized"}]"#,
    },
    Named {
        name: "newPendingTransactions",
        kind: Kind::Pending,
        summary: "Hashes of pending transactions (without or with false), whole transactions (true), or those that options name. Best effort.",
        params: "options?: boolean | PendingOptions | null",
        event: "Hash | Transaction",
        example: "[true]",
    },
    Named {
        name: "pendingTransactions",
        kind: Kind::Pending,
        summary: "Another name of newPendingTransactions.",
        params: "options?: boolean | PendingOptions | null",
        event: "Hash | Transaction",
        example: "",
    },
    Named {
        name: "alchemy_pendingTransactions",
        kind: Kind::Pending,
        summary: "Pending transactions from or to addresses; whole, unless hashesOnly is true. Best effort.",
        params: PENDING,
        event: "Transaction | Hash",
        example: r#"[{"toAddress":["0xdac17f958d2ee523a2206206994597c13d831ec7"],"hashesOnly":true}]"#,
    },
    Named {
        name: "nodit_pendingTransactions",
        kind: Kind::Pending,
        summary: "Another name of alchemy_pendingTransactions.",
        params: PENDING,
        event: "Transaction | Hash",
        example: "",
    },
    Named {
        name: "alchemy_newFullPendingTransactions",
        kind: Kind::Pending,
        summary: "Pending transactions, whole. Best effort.",
        params: "",
        event: "Transaction",
        example: "",
    },
    Named {
        name: "syncing",
        kind: Kind::Syncing,
        summary: "Sync state of the node: the present one at once, then each change.",
        params: "",
        event: "boolean | SyncingEvent",
        example: "",
    },
    Named {
        name: "alchemy_minedTransactions",
        kind: Kind::Mined,
        summary: "Transactions of new blocks by sender and recipient, complete over reorgs and outages.",
        params: MINED,
        event: "MinedTransaction",
        example: r#"[{"addresses":[{"to":"0xdac17f958d2ee523a2206206994597c13d831ec7"}],"includeRemoved":true}]"#,
    },
    Named {
        name: "nodit_minedTransactions",
        kind: Kind::Mined,
        summary: "Another name of alchemy_minedTransactions.",
        params: MINED,
        event: "MinedTransaction",
        example: "",
    },
    Named {
        name: "transactionReceipts",
        kind: Kind::Receipts,
        summary: "Receipts of each new block, or of named transactions: one event per block that has any.",
        params: "filter?: ReceiptFilter | null, stream?: StreamOptions",
        event: "Receipt[]",
        example: r#"[{"transactionHashes":["0x5c504ed432cb51138bcf09aa5e8a410dd4a1e204ef84bfed1be16dfba1b22060"]}]"#,
    },
    Named {
        name: "blockLogs",
        kind: Kind::Blocks,
        summary: "One message for every block, with the logs that match; removed: true takes a whole block back.",
        params: "filter?: LogFilter | null, stream?: StreamOptions",
        event: "BlockLogs",
        example: r#"[{"address":"0xdac17f958d2ee523a2206206994597c13d831ec7"},{"include":["receipts"]}]"#,
    },
];

/// Names and descriptions of the parameters behind the kind.
const PARAMS: [(&str, &str); 2] = [
    (
        "argument",
        "Filter or options of the kind; of heads, their start and finality.",
    ),
    ("stream", "Start of the stream in the past, and finality of its blocks."),
];

/// Returns a schema of values that fit one of these; `None` without any.
fn any_of(mut schemas: Vec<Value>) -> Option<Value> {
    match schemas.len() {
        0 => None,
        1 => schemas.pop(),
        _ => Some(json!({ "anyOf": schemas })),
    }
}

/// Returns `eth_subscribe` with the kinds that are allowed; `None` without any.
pub(super) fn subscribe(allowed: &dyn Fn(Kind) -> bool) -> Option<Value> {
    let named: Vec<&Named> = NAMED.iter().filter(|named| allowed(named.kind)).collect();
    let passes = allowed(Kind::Passthrough);
    let names: Vec<_> = named.iter().map(|named| named.name).collect();
    let known = (!names.is_empty()).then(|| json!({ "type": "string", "enum": names }));
    let passed = passes.then(|| {
        json!({
            "type": "string",
            "pattern": "^[0-9A-Za-z_]{1,64}$",
            "description": "Kind that only the node knows, if the settings allow it.",
        })
    });
    let kind = any_of(known.into_iter().chain(passed).collect())?;
    let mut params = vec![json!({ "name": "kind", "required": true, "schema": kind })];
    let all: Vec<Vec<Field>> = named
        .iter()
        .map(|named| fields(named.params).unwrap_or_default())
        .collect();
    for (at, (name, about)) in PARAMS.into_iter().enumerate() {
        let mut schemas: Vec<Value> = Vec::new();
        for field in all.iter().filter_map(|fields| fields.get(at)) {
            let alternatives = field.schema.get("anyOf").and_then(Value::as_array);
            for schema in alternatives.map_or(std::slice::from_ref(&field.schema), Vec::as_slice) {
                if !schemas.contains(schema) {
                    schemas.push(schema.clone());
                }
            }
        }
        // A schema without rules, which any value fits.
        schemas.extend(passes.then(|| json!({ "description": "Parameter of a kind that only the node knows." })));
        if let Some(schema) = any_of(schemas) {
            params.push(json!({ "name": name, "description": about, "required": false, "schema": schema }));
        }
    }
    let about: Vec<_> = named
        .iter()
        .zip(&all)
        .map(|(named, fields)| subscription(named, fields))
        .collect();
    Some(json!({
        "name": SUBSCRIBE,
        "summary": "Subscribes to events. The answer is the subscription's id; each event is a notification \
            eth_subscription with params.subscription and params.result.",
        "paramStructure": "by-position",
        "params": params,
        "result": { "name": "subscription", "schema": schema("SubscriptionId") },
        "errors": [{ "$ref": "#/components/errors/CannotResume" }, { "$ref": "#/components/errors/LimitExceeded" }],
        "examples": named.iter().filter_map(|named| example(named)).collect::<Vec<_>>(),
        "x-answered-by": "headwater",
        "x-subscriptions": about,
    }))
}

fn subscription(named: &Named, fields: &[Field]) -> Value {
    json!({
        "name": named.name,
        "summary": named.summary,
        "params": fields.iter().map(Field::descriptor).collect::<Vec<_>>(),
        "event": schema(named.event),
    })
}

fn example(named: &Named) -> Option<Value> {
    let values: Vec<Value> = serde_json::from_str(named.example).ok()?;
    let kind = json!({ "name": "kind", "value": named.name });
    let others = PARAMS.iter().zip(values);
    let others = others.map(|((name, _), value)| json!({ "name": name, "value": value }));
    let params: Vec<_> = std::iter::once(kind).chain(others).collect();
    Some(json!({
        "name": named.name,
        "params": params,
        "result": { "name": "subscription", "value": "0x9cef478923ff08bf67fde6c64013158d" },
    }))
}
