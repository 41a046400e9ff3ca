//! All receipts of one block in a node's own bytes. Verification against the block's hash is in [`receipts`].
//!
//! [`receipts`]: super::receipts

use std::collections::HashSet;

use alloy_primitives::{B256, keccak256};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::transaction::{Root, RootClaim, claims};
use super::{BadLogs, BlockLogs, BlockRef, Header};
use crate::quantity;

/// One receipt: the node's own bytes, and the fields that filters check.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// Hash of its transaction.
    pub transaction: B256,
    json: Bytes,
}

impl Receipt {
    /// Returns the whole receipt as JSON.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.json
    }
}

/// All receipts of one block, in the order of its transactions.
#[derive(Debug)]
pub struct BlockReceipts {
    /// Number and hash of the block.
    pub block: BlockRef,
    /// Receipts, ordered by transaction index.
    pub receipts: Vec<Receipt>,
    /// Moment at which the block's header arrived.
    pub seen: Instant,
}

/// Reason why an answer cannot be this block's receipts.
#[derive(Debug, thiserror::Error)]
pub enum NotItsReceipts {
    /// Not an array of receipts: also if the node does not know the block and answers `null`.
    #[error("not an array of receipts: {0}")]
    Shape(#[from] serde_json::Error),
    /// A receipt names another block, is out of order, or repeats a transaction; its position in the array, from 0.
    #[error("a receipt of another block, or out of order, at position {0}")]
    Foreign(usize),
    /// A log of the receipts cannot be the block's.
    #[error("logs of the receipts: {0}")]
    Logs(#[from] BadLogs),
}

impl BlockReceipts {
    /// Returns empty receipts if the header shows that the block has none.
    #[must_use]
    pub fn none(header: &Header) -> Option<Self> {
        let none = claims(header, Root::Receipts) == RootClaim::None;
        none.then(|| Self {
            block: header.block,
            receipts: Vec::new(),
            seen: header.seen,
        })
    }

    /// Reads the node's answer to `eth_getBlockReceipts` and checks it against the header, except for the header's
    /// bloom and root. Indices ascend, with holes on chains that have transactions without receipts (Sei, HyperEVM).
    ///
    /// # Errors
    /// [`NotItsReceipts::Shape`] if the answer is not an array of receipts, [`NotItsReceipts::Foreign`] if a receipt is
    /// of another block, out of order, or of the same transaction as an earlier one.
    pub fn parse(header: &Header, answer: &Bytes) -> Result<Self, NotItsReceipts> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields {
            transaction_hash: B256,
            /// Absent, `null` or zero on some chains: a request by hash cannot return another block.
            block_hash: Option<B256>,
            #[serde(default, deserialize_with = "quantity::optional")]
            block_number: Option<u64>,
            #[serde(default, deserialize_with = "quantity::optional")]
            transaction_index: Option<u64>,
        }
        let items: Vec<&RawValue> = serde_json::from_slice(answer)?;
        let mut receipts = Vec::with_capacity(items.len());
        let mut seen = HashSet::with_capacity(items.len());
        let mut next = 0;
        for (position, item) in items.into_iter().enumerate() {
            let fields: Fields = serde_json::from_str(item.get())?;
            let index = fields.transaction_index.unwrap_or(next);
            let of_block = match fields.block_hash {
                None | Some(B256::ZERO) => fields.block_number.is_none_or(|number| number == header.block.number),
                Some(hash) => hash == header.block.hash,
            };
            if !of_block || index < next || !seen.insert(fields.transaction_hash) {
                return Err(NotItsReceipts::Foreign(position));
            }
            next = index.saturating_add(1);
            receipts.push(Receipt {
                transaction: fields.transaction_hash,
                json: answer.slice_ref(item.get().as_bytes()),
            });
        }
        Ok(Self {
            block: header.block,
            receipts,
            seen: header.seen,
        })
    }

    /// Returns the block's logs, read from its receipts; a receipt without `logs`, or with `null`, has none.
    ///
    /// # Errors
    /// [`NotItsReceipts::Logs`] if a log cannot be the block's, [`NotItsReceipts::Shape`] if the `logs` of a receipt
    /// are not an array.
    pub fn logs(&self) -> Result<BlockLogs, NotItsReceipts> {
        #[derive(Deserialize)]
        struct Logs<'a> {
            #[serde(borrow)]
            logs: Option<Vec<&'a RawValue>>,
        }
        let mut logs = Vec::new();
        for receipt in &self.receipts {
            let of_receipt: Logs<'_> = serde_json::from_slice(&receipt.json)?;
            let items = of_receipt.logs.unwrap_or_default();
            logs.extend(items.iter().map(|item| receipt.json.slice_ref(item.get().as_bytes())));
        }
        Ok(BlockLogs::of(self.block, logs.into_iter(), self.seen)?)
    }

    /// Returns a fingerprint, equal for the same transactions with the same `logs`, the parts that filters check.
    #[must_use]
    pub fn print(&self, logs: &BlockLogs) -> B256 {
        let hashes = self.receipts.iter().map(|receipt| receipt.transaction);
        keccak256(hashes.chain([logs.print()]).collect::<Vec<_>>().concat())
    }
}

#[cfg(test)]
mod tests {
    use alloy_consensus::constants::EMPTY_ROOT_HASH;
    use alloy_primitives::{Address, Bloom};
    use serde_json::{Value, json};

    use super::*;

    fn header(root: Option<B256>) -> Header {
        let mut json = json!({
            "hash": B256::repeat_byte(7), "parentHash": B256::ZERO, "number": "0x7",
            "logsBloom": Bloom::ZERO, "timestamp": "0x1",
        });
        if let Some(root) = root {
            json["receiptsRoot"] = json!(root);
        }
        Header::parse(json.to_string().into(), Instant::now()).expect("a header")
    }

    fn receipt(index: usize, logs: &Value) -> Value {
        json!({
            "transactionHash": B256::with_last_byte(index as u8), "blockHash": B256::repeat_byte(7),
            "transactionIndex": format!("{index:#x}"), "contractAddress": null, "logs": logs,
        })
    }

    fn parse(header: &Header, answer: &Value) -> Result<BlockReceipts, String> {
        // The node's own bytes include its whitespace.
        let answer = serde_json::to_string_pretty(answer).expect("JSON");
        BlockReceipts::parse(header, &answer.into()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_is_the_nodes_own_bytes_with_its_transaction() {
        let own = header(Some(B256::repeat_byte(3)));
        let text = format!("[{}, {} ]", receipt(0, &json!([])), receipt(1, &json!([])));
        let read = BlockReceipts::parse(&own, &text.into()).expect("receipts");
        assert_eq!(read.block, own.block);
        for (index, read) in read.receipts.iter().enumerate() {
            assert_eq!(read.json()[..], *receipt(index, &json!([])).to_string().as_bytes());
            assert_eq!(read.transaction, B256::with_last_byte(index as u8));
        }
    }

    #[test]
    fn what_is_not_this_block_or_none_of_it_is_refused() {
        let own = header(Some(B256::repeat_byte(3)));
        let first = || receipt(0, &json!([]));
        let mut foreign = receipt(1, &json!([]));
        foreign["blockHash"] = json!(B256::repeat_byte(8));
        let mut nameless = receipt(1, &json!([]));
        nameless["blockHash"] = Value::Null;
        nameless["blockNumber"] = json!("0x8");
        for (answer, why) in [
            (Value::Null, "not an array"),
            (json!([B256::ZERO]), "not an array"),
            (json!([first(), foreign]), "a receipt of another block"),
            (json!([first(), nameless]), "a receipt of another block"),
            (json!([first(), first()]), "a receipt of another block"),
            (
                json!([receipt(1, &json!([])), receipt(0, &json!([]))]),
                "a receipt of another block",
            ),
        ] {
            let refused = parse(&own, &answer).expect_err(why);
            assert!(refused.starts_with(why), "{refused}");
        }
    }

    #[test]
    fn a_receipt_need_not_name_its_block() {
        let own = header(None);
        for (hash, number) in [
            (Value::Null, json!("0x7")),
            (json!(B256::ZERO), json!("0x7")),
            (Value::Null, Value::Null),
            (json!(B256::repeat_byte(7)), json!("0x0")),
        ] {
            let mut nameless = receipt(1, &json!([]));
            nameless["blockNumber"] = number;
            nameless["blockHash"] = hash;
            let read = parse(&own, &json!([receipt(0, &json!([])), nameless]));
            assert_eq!(read.expect("receipts").receipts.len(), 2, "{nameless}");
            _ = nameless.as_object_mut().expect("an object").remove("blockHash");
            nameless["blockNumber"] = json!(7);
            assert!(parse(&own, &json!([nameless])).is_ok());
        }
    }

    #[test]
    fn none_are_none_where_the_root_says_so() {
        let empty = header(Some(EMPTY_ROOT_HASH));
        assert!(BlockReceipts::none(&empty).is_some_and(|none| none.receipts.is_empty()));
        for unsure in [header(None), header(Some(B256::ZERO))] {
            assert!(BlockReceipts::none(&unsure).is_none());
        }
    }

    #[test]
    fn indices_may_have_holes_and_any_spelling() {
        let own = header(None);
        let (first, mut later) = (receipt(1, &json!([])), receipt(4, &json!([])));
        for index in [json!("0x4"), json!("0x04"), json!(4), Value::Null] {
            later["transactionIndex"] = index.clone();
            let read = parse(&own, &json!([first, later]));
            assert_eq!(read.expect("receipts").receipts.len(), 2, "{index}");
        }
    }

    #[test]
    fn the_logs_are_those_of_all_receipts_in_their_order() {
        let own = header(None);
        let log = |n: u8| {
            json!({
                "address": Address::repeat_byte(n), "topics": null, "blockHash": B256::repeat_byte(7),
                "blockNumber": "0x7", "logIndex": n,
            })
        };
        let receipts = json!([
            receipt(0, &json!([log(0), log(1)])),
            receipt(1, &Value::Null),
            receipt(2, &json!([log(2)]))
        ]);
        let logs = parse(&own, &receipts).expect("receipts").logs().expect("logs");
        assert_eq!(logs.logs.iter().map(|log| log.index).collect::<Vec<_>>(), [0, 1, 2]);
        let mut nameless = log(0);
        nameless["blockHash"] = json!(B256::ZERO);
        let receipts = |log: &Value| parse(&own, &json!([receipt(0, &json!([log]))])).expect("receipts");
        assert!(receipts(&nameless).logs().is_ok_and(|logs| !logs.is_disputed()));
        nameless["blockNumber"] = json!("0x8");
        assert!(matches!(receipts(&nameless).logs(), Err(NotItsReceipts::Logs(_))));
        nameless["blockHash"] = json!(B256::repeat_byte(8));
        assert!(receipts(&nameless).logs().is_ok_and(|logs| logs.is_disputed()));
        let (one, two) = (json!([receipt(0, &json!([log(0)]))]), json!([receipt(0, &json!([]))]));
        let print = |answer: &Value| {
            let receipts = parse(&own, answer).expect("receipts");
            receipts.print(&receipts.logs().expect("logs"))
        };
        assert_ne!(print(&one), print(&two));
        assert_eq!(print(&one), print(&one));
    }
}
