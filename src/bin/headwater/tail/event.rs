//! Events as a node sends them, read strictly: a line is made of numbers, hashes and addresses, never of the node's
//! own text.

use alloy_primitives::{Address, B256, Bytes, U256};
use headwater::quantity::{Height, Quantity, optional};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// A block's header, also as it is in a block.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    #[serde(deserialize_with = "height")]
    pub(super) number: u64,
    pub(super) hash: B256,
    pub(super) parent_hash: B256,
    #[serde(default, deserialize_with = "optional")]
    pub(super) timestamp: Option<u64>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) gas_used: Option<u64>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) gas_limit: Option<u64>,
    /// Base fee; absent before London, and on chains without it.
    pub(super) base_fee_per_gas: Option<U256>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Log {
    #[serde(deserialize_with = "height")]
    pub(super) block_number: u64,
    pub(super) block_hash: B256,
    pub(super) transaction_hash: B256,
    #[serde(deserialize_with = "quantity")]
    pub(super) transaction_index: u64,
    #[serde(deserialize_with = "quantity")]
    pub(super) log_index: u64,
    pub(super) address: Address,
    pub(super) topics: Vec<B256>,
    pub(super) data: Bytes,
    #[serde(default)]
    pub(super) removed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Receipt {
    #[serde(deserialize_with = "height")]
    pub(super) block_number: u64,
    pub(super) block_hash: B256,
    pub(super) transaction_hash: B256,
    #[serde(deserialize_with = "quantity")]
    pub(super) transaction_index: u64,
    /// Outcome; absent before Byzantium.
    #[serde(default, deserialize_with = "success")]
    pub(super) status: Option<bool>,
    pub(super) from: Address,
    pub(super) to: Option<Address>,
    pub(super) contract_address: Option<Address>,
    #[serde(deserialize_with = "quantity")]
    pub(super) gas_used: u64,
    pub(super) effective_gas_price: Option<U256>,
    /// Number of its logs.
    #[serde(default, deserialize_with = "count")]
    pub(super) logs: usize,
}

/// One event, which becomes one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Head(Header),
    Log(Log),
    Receipt(Receipt),
    Pending(B256),
}

impl Event {
    /// Returns about how many bytes the event occupies.
    pub(super) fn size(&self) -> usize {
        let behind = match self {
            Self::Log(log) => log.data.len() + log.topics.len() * size_of::<B256>(),
            Self::Head(_) | Self::Receipt(_) | Self::Pending(_) => 0,
        };
        size_of::<Self>() + behind
    }
}

fn height<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Height::deserialize(from).map(|height| height.0)
}

fn quantity<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Quantity::deserialize(from).map(|quantity| quantity.0)
}

fn count<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    Vec::<IgnoredAny>::deserialize(from).map(|items| items.len())
}

fn success<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    Ok(Option::<Quantity>::deserialize(from)?.map(|status| status.0 != 0))
}
