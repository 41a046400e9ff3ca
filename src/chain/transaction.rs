//! A transaction as a node tells it, pending or in a block, and all of those of one block.

use std::time::Instant;

use alloy_primitives::{Address, B256};
use bytes::Bytes;
use serde::Deserialize;

use super::BlockRef;

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
