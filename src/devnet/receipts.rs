//! The filter of a subscription to receipts, with geth's grammar.

use std::collections::BTreeSet;

use alloy_primitives::B256;
use serde_json::Value;

use super::{block::Block, params::hex_bytes, rpc::RpcError, shape};

/// Maximum number of transactions named by a subscription, as in geth.
const MAX_TRANSACTIONS: usize = 200;

/// Hashes of the transactions to report; empty for all.
#[derive(Clone, Debug, Default)]
pub(super) struct ReceiptFilter(BTreeSet<B256>);

impl ReceiptFilter {
    /// Parses the argument of `transactionReceipts`; `null` matches everything.
    pub(super) fn parse(value: &Value) -> Result<Self, RpcError> {
        let unreadable = |what: &str| RpcError::invalid_argument(1, what);
        let fields = match value {
            Value::Null => return Ok(Self::default()),
            Value::Object(fields) => fields,
            _ => {
                return Err(unreadable(
                    "json: cannot unmarshal it into Go value of type filters.input",
                ));
            }
        };
        let hashes = match fields.get("transactionHashes") {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Array(hashes)) => hashes,
            Some(_) => {
                let what =
                    "json: cannot unmarshal it into Go struct field input.transactionHashes of type []common.Hash";
                return Err(unreadable(what));
            }
        };
        let wanted = hashes
            .iter()
            .map(|hash| read_hash(hash).map_err(|why| unreadable(&why)))
            .collect::<Result<_, _>>()?;
        if hashes.len() > MAX_TRANSACTIONS {
            let most = "exceed max number of transaction hashes allowed per transactionReceipts subscription";
            return Err(RpcError::new(-32000, most));
        }
        Ok(Self(wanted))
    }

    /// Returns the matching receipts of a block as a JSON array, or `None` if there are none.
    pub(super) fn of(&self, block: &Block) -> Option<String> {
        let wanted = |transaction: B256| self.0.is_empty() || self.0.contains(&transaction);
        let receipts: Vec<String> = (0..block.transactions().len())
            .filter(|&index| wanted(block.transactions()[index].hash()))
            .map(|index| shape::json(&shape::receipt(block, index)))
            .collect();
        (!receipts.is_empty()).then(|| format!("[{}]", receipts.join(",")))
    }
}

fn read_hash(value: &Value) -> Result<B256, String> {
    let text = value
        .as_str()
        .ok_or("json: cannot unmarshal non-string into Go struct field input.transactionHashes of type common.Hash")?;
    let bytes = hex_bytes(text)?;
    let length = || format!("hex string has length {}, want 64 for common.Hash", 2 * bytes.len());
    B256::try_from(&bytes[..]).map_err(|_| length())
}
