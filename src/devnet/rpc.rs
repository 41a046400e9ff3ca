//! The method table, with answers and errors in geth's words.

use alloy_primitives::U256;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use thiserror::Error;

use super::{
    abi,
    accounts::PRIORITY_FEE,
    block::{Block, Transaction},
    chain::{Chain, ChainError},
    config::HoleAnswer,
    feed::{Kind, Subscription},
    filter::{Blocks, LogFilter},
    node::{Caller, SimulatedNode, State},
    params::{BlockTag, Params, hex_bytes, word},
    polling::Polled,
    receipts::ReceiptFilter,
    shape::{self, Quantity},
};

mod commands;

/// Depth of the safe block below the head.
const SAFE_DEPTH: u64 = 32;
/// Depth of the finalized block below the head. Reorgs on command may go deeper nevertheless.
const FINALIZED_DEPTH: u64 = 64;
/// Balance of every account in ether, constant.
const BALANCE_ETHER: u64 = 1_000;

/// A JSON-RPC error object.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[error("{message} ({code})")]
pub struct RpcError {
    /// JSON-RPC's code or the node's own.
    pub code: i64,
    /// A message for people.
    pub message: String,
    /// Present only in reverts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    /// Creates an error without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    pub(super) fn invalid_argument(index: usize, what: &str) -> Self {
        Self::new(-32602, format!("invalid argument {index}: {what}"))
    }

    fn unknown_method(method: &str) -> Self {
        Self::new(-32601, format!("the method {method} does not exist/is not available"))
    }
}

impl From<ChainError> for RpcError {
    fn from(error: ChainError) -> Self {
        Self::new(-32000, error.to_string())
    }
}

/// The result as JSON text.
type Answer = Result<String, RpcError>;

/// Executes one call. A new subscription is added to `subscribed`, to be activated after the answer is queued.
pub(super) fn call(
    node: &SimulatedNode,
    state: &mut State,
    caller: Caller,
    method: &str,
    params: Option<&RawValue>,
    subscribed: &mut Vec<Subscription>,
) -> Answer {
    let failing = !method.starts_with("devnet_") && state.faults.failing_calls > 0;
    state.faults.failing_calls -= u32::from(failing);
    if failing || state.faults.failing_methods.iter().any(|failing| failing == method) {
        let (code, message) = state.faults.failure.clone();
        return Err(RpcError::new(code, message));
    }
    if let Caller::Client(client) = caller
        && state.faults.hangs_up_on.iter().any(|own| own == method)
    {
        state.feed.cut(client);
    }
    if let (true, Caller::Http) = (method.ends_with("_subscribe"), caller) {
        return Err(RpcError::new(-32601, "notifications not supported"));
    }
    let params = Params::parse(params)?;
    match method {
        _ if method.ends_with("_subscribe") => {
            // As in geth, the namespace ends at the first `_`.
            let namespace = method.split_once('_').map_or(method, |(namespace, _)| namespace);
            subscribe(state, namespace, &params, subscribed)
        }
        _ if method.ends_with("_unsubscribe") => unsubscribe(state, caller, &params),
        "eth_sendRawTransaction" => send_raw_transaction(state, &params),
        "eth_newBlockFilter" => ok(&Quantity(state.polling.make(Polled::Blocks))),
        "eth_newPendingTransactionFilter" => ok(&Quantity(state.polling.make(Polled::Pending))),
        "eth_newFilter" => {
            let filter = LogFilter::parse(params.required(0)?)?;
            ok(&Quantity(state.polling.make(Polled::Logs(filter))))
        }
        "eth_getFilterChanges" => state.polling.take(filter_id(&params)?).ok_or_else(filter_not_found),
        "eth_getFilterLogs" => {
            let filter = state
                .polling
                .log_filter(filter_id(&params)?)
                .cloned()
                .ok_or_else(filter_not_found)?;
            logs(&state.chain, &filter)
        }
        "eth_uninstallFilter" => ok(&state.polling.remove(filter_id(&params)?)),
        "eth_getLogs" => {
            let filter = LogFilter::parse(params.required(0)?)?;
            let first = match &filter.blocks {
                Blocks::Hash(hash) => state.chain.block(*hash).map(|block| block.number()),
                Blocks::Range { from, .. } => number_of(&state.chain, *from),
            };
            if first.is_some_and(|first| first < state.faults.pruned_below) {
                return Err(RpcError::new(4444, "pruned history unavailable"));
            }
            let answer = logs(&state.chain, &filter)?;
            if state.faults.empty_log_answers == 0 {
                return Ok(answer);
            }
            state.faults.empty_log_answers -= 1;
            Ok("[]".to_owned())
        }
        "web3_clientVersion" => ok(&state.client_version),
        "eth_getCode" if state.faults.code_bytes > 0 => Ok(state.long_code().to_owned()),
        "net_version" => ok(&state.chain_id.to_string()),
        "eth_chainId" => ok(&Quantity(state.chain_id)),
        "eth_getBlockReceipts"
            if named(&state.chain, state.faults.hole_answer, &params, 0)?
                .is_some_and(|block| block.number() < state.faults.pruned_below) =>
        {
            Err(RpcError::new(4444, "pruned history unavailable"))
        }
        "eth_getTransactionReceipt"
            if state
                .chain
                .mined(params.hash(0)?)
                .is_some_and(|(block, _)| block.number() < state.faults.pruned_below) =>
        {
            Err(RpcError::new(4444, "pruned history unavailable"))
        }
        _ if method.starts_with("devnet_") => commands::call(node, state, method, &params),
        _ => read(&state.chain, state.faults.hole_answer, method, &params),
    }
}

/// Executes the methods that only read the chain.
fn read(chain: &Chain, hole: HoleAnswer, method: &str, params: &Params) -> Answer {
    let head = chain.head();
    match method {
        "eth_blockNumber" => ok(&Quantity(head.number())),
        "eth_syncing" => ok(&false),
        "eth_accounts" => ok(&[(); 0]),
        "eth_gasPrice" => ok(&Quantity(u128::from(head.base_fee()) + PRIORITY_FEE)),
        "eth_maxPriorityFeePerGas" => ok(&Quantity(PRIORITY_FEE)),
        "eth_feeHistory" => fee_history(chain, hole, params),
        "eth_getBlockByNumber" => {
            let full = params.flag(1)?;
            ok(&resolve(chain, hole, params.block(0)?)?.map(|block| shape::block(block, full)))
        }
        "eth_getBlockByHash" => {
            let full = params.flag(1)?;
            ok(&chain.block(params.hash(0)?).map(|block| shape::block(block, full)))
        }
        "eth_getHeaderByNumber" => {
            raw(resolve(chain, hole, params.block(0)?)?.map(|block| shape::head(block).to_string()))
        }
        "eth_getHeaderByHash" => raw(chain.block(params.hash(0)?).map(|block| shape::head(block).to_string())),
        "eth_getBlockTransactionCountByNumber" => {
            ok(&resolve(chain, hole, params.block(0)?)?.map(|block| Quantity(block.transactions().len())))
        }
        "eth_getBlockTransactionCountByHash" => ok(&chain
            .block(params.hash(0)?)
            .map(|block| Quantity(block.transactions().len()))),
        "eth_getTransactionByHash" => {
            let hash = params.hash(0)?;
            match chain.mined(hash) {
                Some((block, index)) => ok(&shape::mined_transaction(block, index)),
                None => ok(&chain.pending(hash).map(|pending| shape::pending_transaction(pending))),
            }
        }
        "eth_getTransactionReceipt" => ok(&chain
            .mined(params.hash(0)?)
            .map(|(block, index)| shape::receipt(block, index))),
        "eth_getBlockReceipts" => {
            let block = named(chain, hole, params, 0)?;
            let receipts = |block: &Block| {
                (0..block.transactions().len())
                    .map(|index| shape::json(&shape::receipt(block, index)))
                    .collect::<Vec<_>>()
            };
            raw(block.map(|block| format!("[{}]", receipts(block).join(","))))
        }
        "eth_getTransactionCount" => {
            let account = params.address(0)?;
            match params.block(1)? {
                BlockTag::Pending => ok(&Quantity(chain.pending_nonce(account))),
                _ => ok(&Quantity(existing(named(chain, hole, params, 1)?)?.nonce_of(account))),
            }
        }
        "eth_getBalance" => {
            params.address(0)?;
            existing(named(chain, hole, params, 1)?)?;
            ok(&Quantity(
                U256::from(BALANCE_ETHER) * U256::from(10).pow(U256::from(18)),
            ))
        }
        "eth_getCode" => {
            let is_token = chain.tokens().contains(&params.address(0)?);
            existing(named(chain, hole, params, 1)?)?;
            ok(&alloy_primitives::Bytes::from_static(if is_token {
                abi::TOKEN_CODE
            } else {
                &[]
            }))
        }
        "eth_getStorageAt" => {
            params.address(0)?;
            params.required(1)?;
            existing(named(chain, hole, params, 2)?)?;
            ok(&word(U256::ZERO))
        }
        "eth_call" => {
            existing(named(chain, hole, params, 1)?)?;
            execute(chain, params.required(0)?)
        }
        "eth_estimateGas" => {
            let call = params.required(0)?;
            execute(chain, call)?;
            let to = call.get("to").and_then(Value::as_str).and_then(|to| to.parse().ok());
            ok(&Quantity(chain.gas_of(to)))
        }
        _ => Err(RpcError::unknown_method(method)),
    }
}

fn ok(result: &impl Serialize) -> Answer {
    Ok(shape::json(result))
}

/// Returns JSON text as it is, or `null` without any.
fn raw(result: Option<String>) -> Answer {
    Ok(result.unwrap_or_else(|| "null".to_owned()))
}

fn resolve(chain: &Chain, hole: HoleAnswer, tag: BlockTag) -> Result<Option<&Block>, RpcError> {
    let (oldest, head) = (chain.oldest_number(), chain.head().number());
    let found = match (tag, hole) {
        (BlockTag::Number(number), HoleAnswer::Null) => chain.block_at(number),
        (BlockTag::Number(number), HoleAnswer::Error) => {
            let block = chain.block_at(number);
            if block.is_none() && (oldest..head).contains(&number) {
                return Err(RpcError::new(-32000, format!("no block was made in round {number}")));
            }
            block
        }
        (BlockTag::Number(number), HoleAnswer::Before) if number > head => None,
        (tag, _) => number_of(chain, tag).and_then(|number| chain.block_at_or_below(number)),
    };
    Ok(found.map(AsRef::as_ref))
}

/// Returns a number as it is, or the number of the block that a tag names.
fn number_of(chain: &Chain, tag: BlockTag) -> Option<u64> {
    let head = chain.head().number();
    let number = match tag {
        BlockTag::Number(number) => return Some(number),
        BlockTag::Earliest => 0,
        BlockTag::Latest | BlockTag::Pending => head,
        BlockTag::Safe => head.saturating_sub(SAFE_DEPTH),
        BlockTag::Finalized => head.saturating_sub(FINALIZED_DEPTH),
    };
    chain.block_at_or_below(number).map(|block| block.number())
}

/// Returns a block named by number, tag, hash or an object with either.
fn named<'a>(chain: &'a Chain, hole: HoleAnswer, params: &Params, index: usize) -> Result<Option<&'a Block>, RpcError> {
    let hash = match params.get(index) {
        Some(Value::Object(object)) => object.get("blockHash").and_then(Value::as_str),
        Some(Value::String(text)) if text.len() == 66 => Some(text.as_str()),
        _ => None,
    };
    let Some(hash) = hash else {
        return resolve(chain, hole, params.block(index)?);
    };
    let hash = hash
        .parse()
        .map_err(|_| RpcError::invalid_argument(index, "invalid hex string"))?;
    Ok(chain.block(hash).map(AsRef::as_ref))
}

fn existing(block: Option<&Block>) -> Result<&Block, RpcError> {
    block.ok_or_else(|| RpcError::new(-32000, "header not found"))
}

fn logs(chain: &Chain, filter: &LogFilter) -> Answer {
    let mut found = Vec::new();
    let mut collect = |block: &Block| {
        let wanted = block.placed_logs().filter(|placed| filter.matches(placed.log));
        found.extend(wanted.map(|placed| shape::json(&shape::log(block, placed, false))));
    };
    match &filter.blocks {
        Blocks::Hash(hash) => collect(
            chain
                .block(*hash)
                .ok_or_else(|| RpcError::new(-32000, "unknown block"))?,
        ),
        Blocks::Range { from, to } => {
            let number = |tag: &BlockTag| match tag {
                BlockTag::Pending => Err(RpcError::new(-32602, "pending logs are not supported")),
                tag => Ok(number_of(chain, *tag).unwrap_or(0)),
            };
            let (from, to) = (number(from)?, number(to)?);
            if from > to {
                return Err(RpcError::new(-32602, "invalid block range params"));
            }
            let kept = from.max(chain.oldest_number())..=to.min(chain.head().number());
            kept.filter_map(|number| chain.block_at(number))
                .for_each(|block| collect(block));
        }
    }
    Ok(format!("[{}]", found.join(",")))
}

fn fee_history(chain: &Chain, hole: HoleAnswer, params: &Params) -> Answer {
    let count = params.number(0)?.unwrap_or(1).clamp(1, 1024);
    let newest = existing(resolve(chain, hole, params.block(1)?)?)?.number();
    let oldest = (newest + 1).saturating_sub(count).max(chain.oldest_number());
    let percentiles = params.get(2).and_then(Value::as_array).map_or(0, Vec::len);
    let blocks: Vec<_> = (oldest..=newest).filter_map(|number| chain.block_at(number)).collect();
    let mut base_fees: Vec<_> = blocks.iter().map(|block| Quantity(block.base_fee())).collect();
    // One more than blocks: the fee of the block that follows, which changes little here.
    let next = chain.block_at(newest + 1).or(blocks.last().copied());
    base_fees.extend(next.map(|block| Quantity(block.base_fee())));
    let ratios = blocks
        .iter()
        .map(|block| block.header().gas_used as f64 / block.header().gas_limit as f64);
    let rewards = vec![vec![Quantity(PRIORITY_FEE); percentiles]; blocks.len()];
    ok(&FeeHistory {
        oldest_block: Quantity(oldest),
        reward: (percentiles > 0).then_some(rewards),
        base_fee_per_blob_gas: vec![Quantity(1); base_fees.len()],
        blob_gas_used_ratio: vec![0; blocks.len()],
        gas_used_ratio: ratios.collect(),
        base_fee_per_gas: base_fees,
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FeeHistory {
    oldest_block: Quantity<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reward: Option<Vec<Vec<Quantity<u128>>>>,
    base_fee_per_gas: Vec<Quantity<u64>>,
    gas_used_ratio: Vec<f64>,
    base_fee_per_blob_gas: Vec<Quantity<u64>>,
    blob_gas_used_ratio: Vec<u64>,
}

/// Executes a call without effects. Only token contracts return data.
fn execute(chain: &Chain, call: &Value) -> Answer {
    let member = |name: &str| call.get(name).and_then(Value::as_str);
    let input = member("input").or_else(|| member("data")).unwrap_or("0x");
    let input = hex_bytes(input).map_err(|error: String| RpcError::invalid_argument(0, &error))?;
    let to = member("to").map(str::parse::<alloy_primitives::Address>).transpose();
    let to = to.map_err(|_| RpcError::invalid_argument(0, "invalid address"))?;
    let token = chain.tokens().iter().enumerate().find(|(_, token)| Some(**token) == to);
    let Some((index, token)) = token else { return ok(&"0x") };
    match abi::call_token(*token, index, &input) {
        Ok(output) => ok(&output),
        Err(revert) => Err(RpcError {
            code: 3,
            message: format!("execution reverted: {}", revert.reason),
            data: Some(json!(revert.data)),
        }),
    }
}

fn send_raw_transaction(state: &mut State, params: &Params) -> Answer {
    let transaction = Transaction::decode(&params.bytes(0)?).map_err(|error| RpcError::new(-32000, error))?;
    ok(&state.submit(transaction)?.hash())
}

/// The namespace that has only the node's own kind of subscription.
const OWN_NAMESPACE: &str = "chain";

fn subscribe(state: &mut State, namespace: &str, params: &Params, subscribed: &mut Vec<Subscription>) -> Answer {
    let Some(Value::String(name)) = params.get(0) else {
        return Err(RpcError::new(-32602, "expected subscription name as first argument"));
    };
    // geth counts a subscription's arguments without its name.
    let kind = match name.as_str() {
        "blockNumbers" if ["eth", OWN_NAMESPACE].contains(&namespace) && !state.faults.no_own_kind => {
            params.limit(2)?;
            Kind::Numbers {
                of: params.get(1).cloned().unwrap_or_default(),
                at_first: state.chain.head().number(),
            }
        }
        _ if namespace != "eth" => return Err(no_such_kind(namespace, name)),
        "newHeads" => params.limit(1).map(|()| Kind::NewHeads)?,
        "syncing" => params.limit(1).map(|()| Kind::Syncing)?,
        "newPendingTransactions" => {
            params.limit(2)?;
            Kind::Pending(params.flag(1)?)
        }
        "transactionReceipts" => {
            params.limit(2)?;
            Kind::Receipts(ReceiptFilter::parse(params.get(1).unwrap_or(&Value::Null))?)
        }
        "logs" => {
            params.limit(2)?;
            let filter = LogFilter::parse(params.get(1).unwrap_or(&Value::Null));
            let filter = filter.map_err(|mut error| {
                error.message = error.message.replacen("invalid argument 0", "invalid argument 1", 1);
                error
            })?;
            filter.check_live()?;
            Kind::Logs(filter)
        }
        _ => return Err(no_such_kind(namespace, name)),
    };
    let subscription = state.feed.prepare(namespace, kind);
    let answer = ok(&subscription.id());
    subscribed.push(subscription);
    answer
}

fn no_such_kind(namespace: &str, name: &str) -> RpcError {
    RpcError::new(-32601, format!("no \"{name}\" subscription in {namespace} namespace"))
}

fn unsubscribe(state: &mut State, caller: Caller, params: &Params) -> Answer {
    params.limit(1)?;
    let id = params.required(0)?.as_str().unwrap_or_default();
    match caller {
        Caller::Client(client) if state.feed.unsubscribe(client, id) => ok(&true),
        _ => Err(RpcError::new(-32000, "subscription not found")),
    }
}

/// Parses a filter id. A JSON number is accepted too: there are nodes whose ids are integers.
fn filter_id(params: &Params) -> Result<u64, RpcError> {
    params.required(0)?;
    params.number(0).ok().flatten().ok_or_else(filter_not_found)
}

fn filter_not_found() -> RpcError {
    RpcError::new(-32000, "filter not found")
}

#[cfg(test)]
mod tests;
