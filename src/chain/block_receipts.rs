//! All receipts of one block as a node tells them. Whether they are what the block's hash stands for is [`receipts`]'s
//! to say.
//!
//! [`receipts`]: super::receipts

use std::time::Instant;

use alloy_consensus::constants::EMPTY_ROOT_HASH;
use alloy_primitives::{Address, B256, Bloom, BloomInput, U64};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{BlockRef, Header};

/// One receipt: the node's own bytes, and what filters look at.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// Its transaction.
    pub transaction: B256,
    json: Bytes,
}

impl Receipt {
    /// The whole of it.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.json
    }
}

/// All receipts of one block, in the order of its transactions.
#[derive(Debug)]
pub struct BlockReceipts {
    /// The block.
    pub block: BlockRef,
    /// In the order of execution.
    pub receipts: Vec<Receipt>,
    /// When the block's header arrived.
    pub seen: Instant,
}

/// The answer cannot be this block's receipts.
#[derive(Debug, thiserror::Error)]
pub enum NotItsReceipts {
    /// Not an array of receipts: also where the node does not know the block and says `null`.
    #[error("not an array of receipts: {0}")]
    Shape(#[from] serde_json::Error),
    /// A receipt of another block, or out of its place.
    #[error("a receipt of another block, or out of order, at position {0}")]
    Foreign(usize),
    /// The header says that there are some.
    #[error("no receipts, against the header's receiptsRoot")]
    None,
    /// A log is missing or forged, and with it perhaps a receipt.
    #[error("the receipts' logs do not add up to the header's logsBloom")]
    Bloom,
}

impl BlockReceipts {
    /// The block's receipts where its header tells that there are none.
    #[must_use]
    pub fn none(header: &Header) -> Option<Self> {
        says_none(header).then(|| Self {
            block: header.block,
            receipts: Vec::new(),
            seen: header.seen,
        })
    }

    /// Reads the node's answer to `eth_getBlockReceipts` and holds it against the header, except for its bloom and root.
    ///
    /// # Errors
    /// [`NotItsReceipts`].
    pub fn parse(header: &Header, answer: &Bytes) -> Result<Self, NotItsReceipts> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields {
            transaction_hash: B256,
            block_hash: B256,
            transaction_index: U64,
        }
        let items: Vec<&RawValue> = serde_json::from_slice(answer)?;
        if items.is_empty() && !says_none(header) {
            return Err(NotItsReceipts::None);
        }
        let mut receipts = Vec::with_capacity(items.len());
        for (position, item) in items.into_iter().enumerate() {
            let fields: Fields = serde_json::from_str(item.get())?;
            if fields.block_hash != header.block.hash || fields.transaction_index != U64::from(position) {
                return Err(NotItsReceipts::Foreign(position));
            }
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

    /// Holds the receipts' logs against the header's bloom: a receipt without a log that is missing at the end does not
    /// show. `bloom` is [`Header::telling_bloom`]; without one nothing is checked.
    ///
    /// # Errors
    /// [`NotItsReceipts::Bloom`]; where `more` is believed (Bor's state sync has logs that are in no bloom), only where
    /// there is less than the bloom says.
    pub fn check_bloom(&self, bloom: Option<&Bloom>, more: bool) -> Result<(), NotItsReceipts> {
        let Some(bloom) = bloom else { return Ok(()) };
        let own = self.bloom()?;
        if own == *bloom || (more && own.contains(bloom)) {
            Ok(())
        } else {
            Err(NotItsReceipts::Bloom)
        }
    }

    /// What the header's bloom must be if these are all receipts with logs.
    fn bloom(&self) -> Result<Bloom, serde_json::Error> {
        #[derive(Deserialize)]
        struct Logs {
            logs: Vec<Words>,
        }
        #[derive(Deserialize)]
        struct Words {
            address: Address,
            topics: Vec<B256>,
        }
        let mut sum = Bloom::ZERO;
        for receipt in &self.receipts {
            let Logs { logs } = serde_json::from_slice(&receipt.json)?;
            for log in logs {
                sum.accrue(BloomInput::Raw(log.address.as_slice()));
                for topic in &log.topics {
                    sum.accrue(BloomInput::Raw(topic.as_slice()));
                }
            }
        }
        Ok(sum)
    }
}

/// Whether the header's root is that of no receipts; one that it does not have says nothing.
fn says_none(header: &Header) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Root {
        receipts_root: B256,
    }
    serde_json::from_slice::<Root>(&header.json).is_ok_and(|root| root.receipts_root == EMPTY_ROOT_HASH)
}

#[cfg(test)]
mod tests {
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
        // Spaces are the node's own bytes, too.
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
        foreign["blockHash"] = json!(B256::ZERO);
        for (answer, why) in [
            (Value::Null, "not an array"),
            (json!([B256::ZERO]), "not an array"),
            (json!([]), "no receipts"),
            (json!([first(), foreign]), "a receipt of another block"),
            (json!([first(), first()]), "a receipt of another block"),
            (json!([receipt(1, &json!([]))]), "a receipt of another block"),
        ] {
            let refused = parse(&own, &answer).expect_err(why);
            assert!(refused.starts_with(why), "{refused}");
        }
    }

    #[test]
    fn none_are_none_where_the_root_says_so() {
        let empty = header(Some(EMPTY_ROOT_HASH));
        assert!(BlockReceipts::none(&empty).is_some_and(|none| none.receipts.is_empty()));
        assert!(parse(&empty, &json!([])).is_ok());
        for unsure in [header(None), header(Some(B256::ZERO))] {
            assert!(BlockReceipts::none(&unsure).is_none());
        }
    }

    #[test]
    fn the_bloom_shows_a_log_that_is_missing_and_one_too_many() {
        let own = header(Some(B256::repeat_byte(3)));
        let log = |n: u8| json!({"address": Address::repeat_byte(n), "topics": [B256::repeat_byte(n)]});
        let of = |logs: &[Value]| parse(&own, &json!([receipt(0, &json!(logs))])).expect("receipts");
        let (one, two) = (of(&[log(1)]), of(&[log(1), log(2)]));
        let bloom = |of: &BlockReceipts| of.bloom().expect("logs");
        assert!(one.check_bloom(Some(&bloom(&one)), false).is_ok());
        assert!(one.check_bloom(Some(&bloom(&two)), false).is_err());
        assert!(
            one.check_bloom(Some(&bloom(&two)), true).is_err(),
            "less is never believed"
        );
        assert!(two.check_bloom(Some(&bloom(&one)), false).is_err());
        assert!(two.check_bloom(Some(&bloom(&one)), true).is_ok());
        assert!(two.check_bloom(None, false).is_ok());
    }
}
