//! A transaction as a node reports it, pending or in a block, and all transactions of one block.

use std::collections::HashSet;

use alloy_consensus::constants::EMPTY_ROOT_HASH;
use alloy_primitives::{Address, B256};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{BlockRef, Header};
use crate::quantity;

/// One transaction: the node's own bytes, and the fields that filters match.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Hash that identifies the transaction.
    pub hash: B256,
    /// Sender; `None` for transactions without a signer, which some chains have.
    pub from: Option<Address>,
    /// Recipient; `None` for a contract creation.
    pub to: Option<Address>,
    json: Bytes,
}

#[derive(Deserialize)]
struct Fields {
    hash: B256,
    from: Option<Address>,
    to: Option<Address>,
}

impl Transaction {
    /// Reads the hash, the sender and the recipient.
    ///
    /// # Errors
    /// [`serde_json::Error`] if the JSON has no hash, or its sender or recipient is not a valid address.
    pub fn parse(json: Bytes) -> Result<Self, serde_json::Error> {
        let Fields { hash, from, to } = serde_json::from_slice(&json)?;
        Ok(Self { hash, from, to, json })
    }

    /// Copies the transaction's bytes, so that keeping it does not keep the whole block's answer in memory.
    #[must_use]
    pub fn alone(&self) -> Self {
        Self {
            json: Bytes::copy_from_slice(&self.json),
            ..self.clone()
        }
    }

    /// Returns the node's JSON, unchanged.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.json
    }
}

/// All transactions of one block.
#[derive(Debug)]
pub struct BlockTransactions {
    /// Number and hash of the block.
    pub block: BlockRef,
    /// Transactions in the order of execution.
    pub transactions: Vec<Transaction>,
    /// Time when the block's header arrived.
    pub seen: Instant,
}

/// Reason why an answer cannot be this block.
#[derive(Debug, thiserror::Error)]
pub enum BadTransactions {
    /// Not a block with whole transactions; also for `null`, the answer of a node that does not know the block.
    #[error("not a block with its transactions: {0}")]
    Shape(#[from] serde_json::Error),
    /// The answer is another block; this is its hash.
    #[error("the answer is another block: {0}")]
    Block(B256),
    /// A transaction names another block.
    #[error("a transaction of another block at position {0}")]
    Foreign(usize),
}

impl BlockTransactions {
    /// Returns the empty list if the header shows that the block has no transactions.
    #[must_use]
    pub fn none(header: &Header) -> Option<Self> {
        let none = claims(header, Root::Transactions) == RootClaim::None;
        none.then(|| Self {
            block: header.block,
            transactions: Vec::new(),
            seen: header.seen,
        })
    }

    /// Reads the node's answer to `eth_getBlockByHash` and checks it against the header, except for the header's
    /// root. Transactions are ordered by index, which may have holes (Sei, Oasis, HyperEVM); if an index occurs twice
    /// (ref-fvm#1136), in the node's order. A transaction that occurs twice (hiero-json-rpc-relay#2853) is kept once.
    ///
    /// # Errors
    /// [`BadTransactions`] if the answer is malformed, another block, or has a transaction of another block.
    pub fn parse(header: &Header, answer: &Bytes) -> Result<Self, BadTransactions> {
        #[derive(Deserialize)]
        struct Block<'a> {
            hash: B256,
            #[serde(borrow)]
            transactions: Vec<&'a RawValue>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct SizeHint {
            /// Absent, `null` or zero on some chains.
            block_hash: Option<B256>,
            #[serde(default, deserialize_with = "quantity::optional")]
            transaction_index: Option<u64>,
        }
        let block: Block<'_> = serde_json::from_slice(answer)?;
        if block.hash != header.block.hash {
            return Err(BadTransactions::Block(block.hash));
        }
        let mut transactions = Vec::with_capacity(block.transactions.len());
        let (mut next, mut seen, mut indices) = (0, HashSet::new(), HashSet::new());
        for (position, item) in block.transactions.into_iter().enumerate() {
            let place: SizeHint = serde_json::from_str(item.get())?;
            let index = place.transaction_index.unwrap_or(next);
            let named = place.block_hash.filter(|hash| *hash != B256::ZERO);
            if named.is_some_and(|hash| hash != block.hash) {
                return Err(BadTransactions::Foreign(position));
            }
            let transaction = Transaction::parse(answer.slice_ref(item.get().as_bytes()))?;
            if seen.insert(transaction.hash) {
                next = index.saturating_add(1);
                indices.insert(index);
                transactions.push((index, transaction));
            }
        }
        if indices.len() == transactions.len() {
            transactions.sort_by_key(|(index, _)| *index);
        }
        Ok(Self {
            block: header.block,
            transactions: transactions.into_iter().map(|(_, transaction)| transaction).collect(),
            seen: header.seen,
        })
    }
}

/// One of the roots in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    Transactions,
    Receipts,
}

/// A header's claim about a kind of contents, derived from its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RootClaim {
    /// The block has none.
    None,
    /// The block has some.
    Some,
    /// The root is not the empty one, but no gas was used: a chain may have its own root for no contents.
    Idle,
    /// The root is the empty one, but gas was used or the bloom is not empty: on Bor and HyperEVM no root covers
    /// system transactions.
    Disputed,
    /// No claim: the root is absent, invalid or zero (zkSync, Fantom).
    Nothing,
}

/// Checks if the header shows that the block is not empty: by [`RootClaim::Some`] or [`RootClaim::Disputed`], or without a root
/// by the gas used.
pub(super) fn is_filled(header: &Header) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Gas {
        #[serde(default, deserialize_with = "quantity::optional")]
        gas_used: Option<u64>,
    }
    match claims(header, Root::Transactions) {
        RootClaim::Some | RootClaim::Disputed => true,
        RootClaim::None | RootClaim::Idle => false,
        RootClaim::Nothing => serde_json::from_slice::<Gas>(&header.json).is_ok_and(|gas| gas.gas_used > Some(0)),
    }
}

/// Reads a header's claim from `root`, the gas used and the bloom.
pub(super) fn claims(header: &Header, root: Root) -> RootClaim {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Roots<'a> {
        #[serde(borrow)]
        transactions_root: Option<&'a RawValue>,
        #[serde(borrow)]
        receipts_root: Option<&'a RawValue>,
        #[serde(default, deserialize_with = "quantity::optional")]
        gas_used: Option<u64>,
    }
    let Ok(roots) = serde_json::from_slice::<Roots<'_>>(&header.json) else {
        return RootClaim::Nothing;
    };
    let root = match root {
        Root::Transactions => roots.transactions_root,
        Root::Receipts => roots.receipts_root,
    };
    let root = root.and_then(|root| serde_json::from_str::<B256>(root.get()).ok());
    let empty = header.usable_bloom().is_none();
    let idle = roots.gas_used.unwrap_or_default() == 0 && empty;
    match root {
        Some(EMPTY_ROOT_HASH) if idle => RootClaim::None,
        Some(EMPTY_ROOT_HASH) => RootClaim::Disputed,
        None | Some(B256::ZERO) => RootClaim::Nothing,
        Some(_) if roots.gas_used == Some(0) && empty => RootClaim::Idle,
        Some(_) => RootClaim::Some,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn header(root: Option<B256>) -> Header {
        let mut json = json!({
            "hash": B256::repeat_byte(7), "parentHash": B256::ZERO, "number": "0x7",
            "logsBloom": alloy_primitives::Bloom::ZERO, "timestamp": "0x1",
        });
        if let Some(root) = root {
            json["transactionsRoot"] = json!(root);
        }
        Header::parse(json.to_string().into(), Instant::now()).expect("a header")
    }

    fn transaction(index: usize, to: Value) -> Value {
        json!({
            "hash": B256::with_last_byte(index as u8), "from": Address::repeat_byte(1), "to": to,
            "blockHash": B256::repeat_byte(7), "transactionIndex": format!("{index:#x}"), "value": "0x0",
        })
    }

    fn parse(header: &Header, answer: &Value) -> Result<BlockTransactions, String> {
        BlockTransactions::parse(header, &answer.to_string().into()).map_err(|error| error.to_string())
    }

    fn block(transactions: &[Value]) -> Value {
        json!({"hash": B256::repeat_byte(7), "number": "0x7", "transactions": transactions})
    }

    #[test]
    fn each_is_the_nodes_own_bytes_with_its_parties() {
        let (someone, root) = (Address::repeat_byte(2), B256::repeat_byte(3));
        let sent = [transaction(0, json!(someone)), transaction(1, Value::Null)];
        let read = parse(&header(Some(root)), &block(&sent)).expect("transactions");
        assert_eq!(read.block.number, 7);
        for (own, sent) in read.transactions.iter().zip(&sent) {
            assert_eq!(own.json()[..], *sent.to_string().as_bytes());
            assert_eq!(own.from, Some(Address::repeat_byte(1)));
        }
        let to: Vec<_> = read.transactions.iter().map(|own| own.to).collect();
        assert_eq!(to, [Some(someone), None]);
    }

    #[test]
    fn what_is_not_this_block_or_not_all_of_it_is_refused() {
        let own = header(Some(B256::repeat_byte(3)));
        let mut foreign = transaction(1, Value::Null);
        foreign["blockHash"] = json!(B256::repeat_byte(8));
        let mut other = block(&[]);
        other["hash"] = json!(B256::ZERO);
        let first = || transaction(0, Value::Null);
        for (answer, why) in [
            (Value::Null, "not a block"),
            (block(&[json!(B256::ZERO)]), "not a block"),
            (other, "the answer is another block: 0x00"),
            (block(&[first(), foreign]), "a transaction of another block"),
        ] {
            let refused = parse(&own, &answer).expect_err(why);
            assert!(refused.starts_with(why), "{refused}");
        }
    }

    #[test]
    fn none_are_none_where_the_root_says_so() {
        let empty = header(Some(EMPTY_ROOT_HASH));
        assert!(BlockTransactions::none(&empty).is_some_and(|none| none.transactions.is_empty()));
        for unsure in [header(None), header(Some(B256::ZERO))] {
            assert!(BlockTransactions::none(&unsure).is_none());
        }
    }

    #[test]
    fn indices_may_have_holes_and_any_spelling() {
        let (first, mut later) = (transaction(1, Value::Null), transaction(4, Value::Null));
        for index in [json!("0x4"), json!("0x04"), json!(4), Value::Null] {
            later["transactionIndex"] = index.clone();
            let read = parse(&header(None), &block(&[first.clone(), later.clone()]));
            assert_eq!(read.expect("transactions").transactions.len(), 2, "{index}");
        }
    }

    /// Each word is a transaction: its hash, `/`, its index. Expected are the hashes in the order of delivery.
    #[test]
    fn each_comes_once_and_in_the_order_of_indices_that_are_its_own() {
        for (words, expect) in [
            ("1/0 2/1 3/2", [1, 2, 3].as_slice()),
            ("1/9 2/8 3/7", &[3, 2, 1]),
            ("3/0 1/0 2/0", &[3, 1, 2]),
            ("1/0 1/0 2/1 2/1", &[1, 2]),
            ("2/1 1/0 2/1", &[1, 2]),
        ] {
            let one = |word: &str| {
                let (hash, index) = word.split_once('/').expect("a transaction");
                let mut one = transaction(hash.parse().expect("a number"), Value::Null);
                one["transactionIndex"] = json!(format!("0x{index}"));
                one
            };
            let sent: Vec<Value> = words.split_whitespace().map(one).collect();
            let read = parse(&header(None), &block(&sent)).expect(words).transactions;
            let hashes: Vec<B256> = read.iter().map(|own| own.hash).collect();
            let expect: Vec<B256> = expect.iter().map(|hash| B256::with_last_byte(*hash)).collect();
            assert_eq!(hashes, expect, "{words}");
        }
    }

    #[test]
    fn a_transaction_need_not_name_its_block() {
        for hash in [Value::Null, json!(B256::ZERO)] {
            let mut nameless = transaction(0, Value::Null);
            nameless["blockHash"] = hash;
            assert!(parse(&header(None), &block(&[nameless.clone()])).is_ok());
            nameless["transactionIndex"] = Value::Null;
            _ = nameless.as_object_mut().expect("an object").remove("blockHash");
            assert!(parse(&header(None), &block(&[nameless])).is_ok());
        }
    }

    #[test]
    fn what_fills_a_block() {
        let (none, some) = (json!(EMPTY_ROOT_HASH), json!(B256::repeat_byte(3)));
        for (root, gas, expect) in [
            (&some, json!("0x5208"), true),
            (&some, Value::Null, true),
            (&some, json!("0x0"), false),
            (&none, json!("0x0"), false),
            (&none, json!("0x5208"), true),
            (&Value::Null, json!("0x5208"), true),
            (&Value::Null, json!("0x0"), false),
            (&Value::Null, Value::Null, false),
        ] {
            let json = json!({
                "hash": B256::repeat_byte(7), "parentHash": B256::ZERO, "number": "0x7",
                "transactionsRoot": root, "gasUsed": gas,
            });
            let header = Header::parse(json.to_string().into(), Instant::now()).expect("a header");
            assert_eq!(is_filled(&header), expect, "{json}");
        }
    }

    #[test]
    fn what_a_root_claims() {
        let (empty, some, zero) = (json!(EMPTY_ROOT_HASH), json!(B256::repeat_byte(3)), json!(B256::ZERO));
        let (none, full) = (
            json!(alloy_primitives::Bloom::ZERO),
            json!(alloy_primitives::Bloom::repeat_byte(255)),
        );
        for (root, gas, bloom, expect) in [
            (&empty, json!("0x0"), &none, RootClaim::None),
            (&empty, Value::Null, &none, RootClaim::None),
            (&empty, json!("0x5208"), &none, RootClaim::Disputed),
            (&empty, json!(21000), &none, RootClaim::Disputed),
            (&empty, json!("0x0"), &full, RootClaim::Disputed),
            (&some, json!("0x5208"), &none, RootClaim::Some),
            (&some, Value::Null, &none, RootClaim::Some),
            (&some, json!("0x0"), &full, RootClaim::Some),
            (&some, json!("0x0"), &none, RootClaim::Idle),
            (&zero, json!("0x0"), &none, RootClaim::Nothing),
            (&Value::Null, json!("0x0"), &none, RootClaim::Nothing),
            (&json!("0x"), json!("0x0"), &none, RootClaim::Nothing),
        ] {
            let json = json!({
                "hash": B256::repeat_byte(7), "parentHash": B256::ZERO, "number": "0x7", "logsBloom": bloom,
                "transactionsRoot": root, "receiptsRoot": root, "gasUsed": gas,
            });
            let header = Header::parse(json.to_string().into(), Instant::now()).expect("a header");
            assert_eq!(claims(&header, Root::Transactions), expect, "{json}");
            assert_eq!(claims(&header, Root::Receipts), expect, "{json}");
        }
    }
}
