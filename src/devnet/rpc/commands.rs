//! The control methods, `devnet_*`: the commands of [`super::super::Control`] over the wire.

use std::time::Duration;

use alloy_primitives::B256;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Answer, RpcError, ok};
use crate::devnet::{
    block::Block,
    chain::Reorg,
    config::Faults,
    node::{SimulatedNode, State},
    params::Params,
};

/// Maximum number of blocks or transactions in one command; more would lock the node for seconds.
const MAX_BLOCKS: u64 = 10_000;

pub(super) fn call(node: &SimulatedNode, state: &mut State, method: &str, params: &Params) -> Answer {
    match method {
        // devnet_mine(count = 1) -> [blockHash]
        "devnet_mine" => {
            let count = blocks(params.number(0)?.unwrap_or(1))?;
            ok(&(0..count).map(|_| state.mine().hash()).collect::<Vec<_>>())
        }
        // devnet_reorg(depth = 1, newLength = depth + 1) -> {ancestor, dropped, adopted}
        "devnet_reorg" => {
            let depth = params.number(0)?.unwrap_or(1);
            let new_len = blocks(params.number(1)?.unwrap_or(depth.saturating_add(1)))?;
            ok(&ReorgShape::from(state.reorg(depth, new_len)?))
        }
        // devnet_rewind(depth = 1) -> {ancestor, dropped, adopted: []}
        "devnet_rewind" => ok(&ReorgShape::from(state.rewind(params.number(0)?.unwrap_or(1))?)),
        // devnet_switchBack() -> {ancestor, dropped, adopted}
        "devnet_switchBack" => ok(&ReorgShape::from(state.switch_back()?)),
        // devnet_addPending(count = 1) -> [transactionHash]
        "devnet_addPending" => {
            let count = blocks(params.number(0)?.unwrap_or(1))?;
            let added = (0..count).map_while(|_| state.add_pending().map(|transaction| transaction.hash()));
            ok(&added.collect::<Vec<_>>())
        }
        // devnet_disconnect() -> true, over HTTP; other callers are cut before the answer.
        "devnet_disconnect" => {
            node.disconnect();
            ok(&true)
        }
        // devnet_stall(milliseconds or null for no end; 0 ends it) -> true
        "devnet_stall" => {
            match params.number(0)? {
                Some(0) => node.stall.end(),
                duration => node.stall.begin(duration.map(Duration::from_millis)),
            }
            ok(&true)
        }
        // devnet_setBlockTime(milliseconds or null for none) -> true
        "devnet_setBlockTime" => {
            let block_time = params.number(0)?.filter(|time| *time > 0).map(Duration::from_millis);
            node.timing.send_modify(|timing| timing.block_time = block_time);
            ok(&true)
        }
        // devnet_setPendingRate(transactions per second) -> true
        "devnet_setPendingRate" => {
            let rate = params.required(0)?.as_f64();
            let rate = rate.ok_or_else(|| RpcError::invalid_argument(0, "expected a number"))?;
            node.timing.send_modify(|timing| timing.pending_rate = rate);
            ok(&true)
        }
        // devnet_setFaults({name: value, ...}) -> all faults; faults not named stay as they are.
        "devnet_setFaults" => {
            state.faults = merged(&state.faults, params.required(0)?)?;
            ok(&state.faults)
        }
        "devnet_stats" => ok(&state.stats()),
        _ => Err(RpcError::unknown_method(method)),
    }
}

fn blocks(count: u64) -> Result<u64, RpcError> {
    if count > MAX_BLOCKS {
        return Err(RpcError::invalid_argument(
            0,
            &format!("at most {MAX_BLOCKS} at a time"),
        ));
    }
    Ok(count)
}

fn merged(faults: &Faults, changes: &Value) -> Result<Faults, RpcError> {
    let Value::Object(changes) = changes else {
        return Err(RpcError::invalid_argument(0, "expected an object"));
    };
    let mut all = json!(faults);
    for (name, value) in changes {
        all[name] = value.clone();
    }
    serde_json::from_value(all).map_err(|error| RpcError::invalid_argument(0, &error.to_string()))
}

#[derive(Serialize)]
struct ReorgShape {
    ancestor: B256,
    /// Newest first.
    dropped: Vec<B256>,
    /// Oldest first.
    adopted: Vec<B256>,
}

impl From<Reorg> for ReorgShape {
    fn from(reorg: Reorg) -> Self {
        let hashes = |blocks: Vec<std::sync::Arc<Block>>| blocks.iter().map(|block| block.hash()).collect();
        Self {
            ancestor: reorg.ancestor.hash(),
            dropped: hashes(reorg.dropped),
            adopted: hashes(reorg.adopted),
        }
    }
}
