//! The canonical form of what a subscription to `transactionReceipts` wants, read with geth's grammar (PROTOCOL 1.5).
//!
//! Equal filters become equal values whatever their order, case or repetitions, so that clients who ask for the same
//! share one entry of the index, and one body.

use std::collections::HashMap;

use alloy_primitives::B256;
use serde_json::Value;

use super::filter::{argument, canonical, field, go_type, no_input, read_hash};
use super::index::{Filter, Index};
use crate::chain::Receipt;
use crate::jsonrpc::{ErrorObjectOwned, SERVER_ERROR, error};

/// Most transactions of one subscription (geth `eth/filters/api.go`, `maxTxHashes`).
pub const MAX_TRANSACTIONS: usize = 200;

/// Which receipts a subscription wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReceiptFilter {
    /// Of these transactions: sorted, each once; empty means any.
    transactions: Box<[B256]>,
}

/// Where a filter of receipts hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReceiptKey {
    /// Every receipt.
    Any,
    /// This transaction's.
    Of(B256),
}

impl ReceiptFilter {
    /// Reads the second parameter of `eth_subscribe("transactionReceipts", …)`; `null` is every receipt.
    ///
    /// # Errors
    /// geth's for what cannot be read. How many there are is counted later: see [`Self::at_most`].
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

    /// The filter, unless it names more transactions than geth takes, repetitions counted.
    ///
    /// # Errors
    /// geth's.
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

    /// Transactions that it names; none means any.
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
    /// For each filter that wants any of a block's receipts: their positions, ascending, and its subscribers.
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
            // A filter hangs under one of them at most.
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

/// One event: an array of receipts, each in the node's own bytes.
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
