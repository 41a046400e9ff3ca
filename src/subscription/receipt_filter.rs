//! The canonical form of a `transactionReceipts` filter, read with geth's grammar (PROTOCOL 1.5).
//!
//! Equal filters become equal values whatever their order, case or repetitions, so that clients with equal filters
//! share one entry of the index, and one body.

use std::collections::HashMap;
use std::sync::Arc;

use alloy_primitives::B256;
use serde_json::Value;

use super::filter::{argument, canonical, field, go_type, no_input, read_hash};
use super::index::{Filter, Index};
use crate::chain::Receipt;
use crate::delivery::Batch;
use crate::jsonrpc::{ErrorObjectOwned, SERVER_ERROR, error};

/// Most transactions of one subscription (geth `eth/filters/api.go`, `maxTxHashes`).
pub(super) const MAX_TRANSACTIONS: usize = 200;

/// Filter of a `transactionReceipts` subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReceiptFilter {
    /// Transaction hashes that match: sorted, without duplicates; empty means any.
    transactions: Box<[B256]>,
}

/// Index key of a receipt filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReceiptKey {
    /// Matches every receipt.
    Any,
    /// Matches the receipt of this transaction.
    Of(B256),
}

impl ReceiptFilter {
    /// Reads the second parameter of `eth_subscribe("transactionReceipts", …)`; `null` matches every receipt.
    ///
    /// # Errors
    /// geth's error if the value cannot be read. [`Self::at_most`] checks the number of hashes later.
    pub fn parse(value: &Value) -> Result<Vec<B256>, ErrorObjectOwned> {
        let fields = match value {
            Value::Null => return Ok(Vec::new()),
            Value::Object(fields) => fields,
            other => return Err(no_input(other)),
        };
        match field(fields, "transactionHashes") {
            None => Ok(Vec::new()),
            Some(Value::Array(hashes)) => {
                let read = |hash| read_hash(hash, "transactionHashes").map_err(argument);
                hashes.iter().map(read).collect()
            }
            Some(other) => Err(argument(format!(
                "json: cannot unmarshal {} into Go struct field input.transactionHashes of type []common.Hash",
                go_type(other)
            ))),
        }
    }

    /// Builds the filter from the hashes of [`Self::parse`].
    ///
    /// # Errors
    /// geth's error if there are more than `MAX_TRANSACTIONS`, repetitions counted.
    pub fn at_most(transactions: Vec<B256>) -> Result<Self, ErrorObjectOwned> {
        if transactions.len() > MAX_TRANSACTIONS {
            return Err(error(
                SERVER_ERROR,
                "exceed max number of transaction hashes allowed per transactionReceipts subscription",
            ));
        }
        let transactions = canonical(transactions);
        Ok(Self { transactions })
    }

    /// Checks if the filter matches a receipt.
    #[must_use]
    pub fn matches(&self, receipt: &Receipt) -> bool {
        self.transactions.is_empty() || self.transactions.binary_search(&receipt.transaction).is_ok()
    }

    /// Returns the number of transactions that the filter names; 0 means any.
    #[must_use]
    pub fn transactions(&self) -> usize {
        self.transactions.len()
    }
}

impl Filter for ReceiptFilter {
    type Key = ReceiptKey;

    fn keys(&self) -> Vec<ReceiptKey> {
        match &*self.transactions {
            [] => vec![ReceiptKey::Any],
            some => some.iter().copied().map(ReceiptKey::Of).collect(),
        }
    }
}

impl<S> Index<ReceiptFilter, S> {
    /// Calls `each` for every filter that matches any of a block's receipts, with the positions of those receipts,
    /// ascending, and the filter's subscribers.
    pub(super) fn for_each_match<'a>(
        &'a self,
        receipts: &[Receipt],
        mut each: impl FnMut(&[usize], &mut dyn Iterator<Item = &'a S>),
    ) {
        if self.is_empty() {
            return;
        }
        let mut hits: HashMap<usize, Vec<usize>> = HashMap::new();
        for (position, receipt) in receipts.iter().enumerate() {
            // A filter has at most one of these keys.
            let keys = [ReceiptKey::Any, ReceiptKey::Of(receipt.transaction)];
            for entry in self.under(keys.into_iter()) {
                hits.entry(entry).or_default().push(position);
            }
        }
        for (entry, positions) in hits {
            let (_, mut subscribers) = self.entry(entry);
            each(&positions, &mut subscribers);
        }
    }
}

/// The events built from one block's receipts. Receipts can be long and filters many: filters that match the same
/// receipts share one event.
#[derive(Debug)]
pub(super) struct Bodies<'a> {
    receipts: &'a [Receipt],
    /// Events by the positions of their receipts.
    made: HashMap<Box<[usize]>, Arc<Batch>>,
}

impl<'a> Bodies<'a> {
    /// Begins without any event.
    pub(super) fn new(receipts: &'a [Receipt]) -> Self {
        let made = HashMap::new();
        Self { receipts, made }
    }

    /// Returns the event of the receipts at these positions; `make` builds it from its JSON the first time.
    pub(super) fn of(&mut self, positions: &[usize], make: impl FnOnce(&[u8]) -> Arc<Batch>) -> Arc<Batch> {
        if let Some(made) = self.made.get(positions) {
            return made.clone();
        }
        let batch = make(&array(positions.iter().map(|&at| &self.receipts[at])));
        self.made.insert(positions.into(), batch.clone());
        batch
    }
}

/// Returns an event's JSON: an array of receipts, each in the node's own bytes.
pub(super) fn array<'a>(receipts: impl Iterator<Item = &'a Receipt>) -> Vec<u8> {
    let mut json = vec![b'['];
    for (position, receipt) in receipts.enumerate() {
        if position > 0 {
            json.push(b',');
        }
        json.extend_from_slice(receipt.json());
    }
    json.push(b']');
    json
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::chain::{BlockReceipts, BlockRef, Header};
    use crate::delivery::{Event, Kind};

    #[test]
    fn a_body_is_made_once_for_all_filters_that_select_the_same() {
        let block = BlockRef {
            number: 7,
            hash: B256::ZERO,
        };
        let header = Header {
            block,
            parent: B256::ZERO,
            bloom: Some(Box::default()),
            timestamp: 0,
            json: bytes::Bytes::new(),
            seen: Instant::now(),
        };
        let one = |index: u8| {
            serde_json::json!({
                "transactionHash": B256::repeat_byte(index), "blockHash": block.hash,
                "transactionIndex": format!("{index:#x}"),
            })
        };
        let answer = serde_json::json!([one(0), one(1)]).to_string().into();
        let block = BlockReceipts::parse(&header, &answer).expect("receipts");
        let [first, second] = &block.receipts[..] else {
            panic!("two receipts");
        };
        let mut made = Vec::new();
        let mut bodies = Bodies::new(&block.receipts);
        let mut of = |positions: &[usize]| {
            bodies.of(positions, |json| {
                made.push(json.to_vec());
                Batch::new(Kind::Receipts, [Event::new(json)].into(), header.seen)
            })
        };
        let (both, one) = (of(&[0, 1]), of(&[1]));
        assert!(Arc::ptr_eq(&of(&[0, 1]), &both) && Arc::ptr_eq(&of(&[1]), &one));
        assert_eq!(made, [array([first, second].into_iter()), array([second].into_iter())]);
    }
}
