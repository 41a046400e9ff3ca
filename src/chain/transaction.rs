//! A transaction as a node tells it, pending or in a block, and all of those of one block.

use std::time::Instant;

use alloy_consensus::constants::EMPTY_ROOT_HASH;
use alloy_primitives::{Address, B256, U64};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{BlockRef, Header};

/// One transaction: the node's own bytes, and what filters look at.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Its name.
    pub hash: B256,
    /// Who signed it; some chains have transactions that nobody did.
    pub from: Option<Address>,
    /// Whom it calls; nobody where it makes a contract.
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
    /// Reads what decides.
    ///
    /// # Errors
    /// The JSON has no hash, or a party that is no address.
    pub fn parse(json: Bytes) -> Result<Self, serde_json::Error> {
        let Fields { hash, from, to } = serde_json::from_slice(&json)?;
        Ok(Self { hash, from, to, json })
    }

    /// The same, without the block that it came in: what is kept should not keep that.
    #[must_use]
    pub fn alone(&self) -> Self {
        Self {
            json: Bytes::copy_from_slice(&self.json),
            ..self.clone()
        }
    }

    /// The whole of it.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.json
    }
}

/// All transactions of one block, in their order.
#[derive(Debug)]
pub struct BlockTransactions {
    /// The block.
    pub block: BlockRef,
    /// In the order of their execution.
    pub transactions: Vec<Transaction>,
    /// When the block's header arrived.
    pub seen: Instant,
}

/// The answer cannot be this block.
#[derive(Debug, thiserror::Error)]
pub enum BadTransactions {
    /// Not a block with whole transactions: also where the node does not know it and says `null`.
    #[error("not a block with its transactions: {0}")]
    Shape(#[from] serde_json::Error),
    /// Another block.
    #[error("another block: {0}")]
    Block(B256),
    /// A transaction of another block, or out of its place.
    #[error("a transaction of another block, or out of order, at position {0}")]
    Foreign(usize),
    /// The header says that there are some.
    #[error("no transactions, against the header's transactionsRoot")]
    None,
}

impl BlockTransactions {
    /// The block's transactions where its header tells that there are none.
    #[must_use]
    pub fn none(header: &Header) -> Option<Self> {
        says_none(header).then(|| Self {
            block: header.block,
            transactions: Vec::new(),
            seen: header.seen,
        })
    }

    /// Reads the node's answer to `eth_getBlockByHash` and holds it against the header.
    ///
    /// # Errors
    /// [`BadTransactions`].
    pub fn parse(header: &Header, answer: &Bytes) -> Result<Self, BadTransactions> {
        #[derive(Deserialize)]
        struct Block<'a> {
            hash: B256,
            #[serde(borrow)]
            transactions: Vec<&'a RawValue>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Place {
            block_hash: B256,
            transaction_index: U64,
        }
        let block: Block<'_> = serde_json::from_slice(answer)?;
        if block.hash != header.block.hash {
            return Err(BadTransactions::Block(block.hash));
        }
        if block.transactions.is_empty() && !says_none(header) {
            return Err(BadTransactions::None);
        }
        let mut transactions = Vec::with_capacity(block.transactions.len());
        for (position, item) in block.transactions.into_iter().enumerate() {
            let place: Place = serde_json::from_str(item.get())?;
            if place.block_hash != block.hash || place.transaction_index.to::<usize>() != position {
                return Err(BadTransactions::Foreign(position));
            }
            transactions.push(Transaction::parse(answer.slice_ref(item.get().as_bytes()))?);
        }
        Ok(Self {
            block: header.block,
            transactions,
            seen: header.seen,
        })
    }
}

/// Whether the header's root is that of no transactions; one that it does not have says nothing.
fn says_none(header: &Header) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Root {
        transactions_root: B256,
    }
    serde_json::from_slice::<Root>(&header.json).is_ok_and(|root| root.transactions_root == EMPTY_ROOT_HASH)
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
        foreign["blockHash"] = json!(B256::ZERO);
        let mut other = block(&[]);
        other["hash"] = json!(B256::ZERO);
        let first = || transaction(0, Value::Null);
        for (answer, why) in [
            (Value::Null, "not a block"),
            (block(&[json!(B256::ZERO)]), "not a block"),
            (other, "another block: 0x00"),
            (block(&[]), "no transactions"),
            (block(&[first(), foreign]), "a transaction of another block"),
            (block(&[first(), first()]), "a transaction of another block"),
            (block(&[transaction(1, Value::Null)]), "a transaction of another block"),
        ] {
            let refused = parse(&own, &answer).expect_err(why);
            assert!(refused.starts_with(why), "{refused}");
        }
    }

    #[test]
    fn none_are_none_where_the_root_says_so() {
        let empty = header(Some(EMPTY_ROOT_HASH));
        assert!(BlockTransactions::none(&empty).is_some_and(|none| none.transactions.is_empty()));
        assert!(parse(&empty, &block(&[])).is_ok());
        for unsure in [header(None), header(Some(B256::ZERO))] {
            assert!(BlockTransactions::none(&unsure).is_none());
        }
    }
}
