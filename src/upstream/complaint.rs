//! Meaning of a node's error: codes and words of nodes and gateways, in tables.
//!
//! Our own questions are valid, so words count in the errors that they get. In an answer to a client words may be the
//! client's own, so there only codes and whole messages count.

use std::time::Duration;

use serde::Deserialize;

use super::call::CallError;
use crate::jsonrpc::{INTERNAL_ERROR, INVALID_PARAMS, LIMIT_EXCEEDED, METHOD_NOT_FOUND, Outcome};

/// The members of a JSON-RPC error object that are read.
#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    message: Option<String>,
}

impl ErrorObject {
    fn of(outcome: &Outcome) -> Option<Self> {
        let Outcome::Error(json) = outcome else { return None };
        serde_json::from_slice(json).ok()
    }

    fn message(&self) -> String {
        self.message.as_deref().unwrap_or_default().to_ascii_lowercase()
    }
}

/// Meaning of a node's error for a request of our own, whose JSON and arguments are known to be valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// A rate limit; see [`throttled`].
    Throttled,
    /// The node does not serve the method, or not this form of its parameters.
    Unsupported,
    /// The node no longer has the data: error 4444 of EIP-4444, as geth, reth and Nethermind answer.
    Pruned,
    /// Nobody looked for the answer; see [`is_temporarily_unavailable`].
    NotNow,
    /// Any other error: the block is not available yet, the node has a problem, or the answer would be too long.
    Other,
}

/// Code for history that a node has pruned (EIP-4444).
const PRUNED: i64 = 4444;
/// EIP-1474's "method not supported", returned by Hardhat.
const METHOD_NOT_SUPPORTED: i64 = -32004;
/// JSON-RPC's "parse error", returned by ganache for a method that it does not know.
const PARSE_ERROR: i64 = -32700;
/// JSON-RPC's "invalid params": nodes from before EIP-234 read no `blockHash` in a filter, others accept a block by
/// number only.
const BAD_PARAMS: i64 = INVALID_PARAMS as i64;

/// Classifies the error in the answer to a request of our own.
pub(crate) fn complaint(outcome: &Outcome) -> Complaint {
    if is_throttled(outcome) {
        return Complaint::Throttled;
    }
    let Some(error) = ErrorObject::of(outcome) else {
        return Complaint::Other;
    };
    if error.code == PRUNED {
        return Complaint::Pruned;
    }
    if is_temporarily_unavailable(outcome) {
        return Complaint::NotNow;
    }
    let message = error.message();
    let too_much = ["result", "range", "response size", "too large", "too many"];
    match error.code {
        PARSE_ERROR => Complaint::Unsupported,
        // reth uses this code for a query with too many results, too.
        BAD_PARAMS if !too_much.iter().any(|words| message.contains(words)) => Complaint::Unsupported,
        _ if is_unsupported(&error) => Complaint::Unsupported,
        _ if REFUSALS.iter().any(|words| message.contains(words)) => Complaint::Unsupported,
        _ => Complaint::Other,
    }
}

/// Words that refuse a method or a form of it, with any code.
const REFUSALS: [&str; 9] = [
    "not supported",
    "unsupported",
    "not implemented",
    "unimplemented",
    "whitelisted",
    "disabled",
    "not enabled",
    "not allowed",
    "unknown method",
];

/// Words that refuse a method if the message names one; about a block they mean that it is not available yet.
const VAGUE_REFUSALS: [&str; 5] = [
    "does not exist",
    "doesn't exist",
    "not available",
    "unavailable",
    "not found",
];

/// Checks if an error says that the node does not offer the method, for clients' requests and our own.
fn is_unsupported(error: &ErrorObject) -> bool {
    if error.code == i64::from(METHOD_NOT_FOUND) {
        return true;
    }
    let message = error.message();
    let words = || message.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let of_a_method = words().any(|word| word.starts_with("method") || word.starts_with("eth_"));
    let data = [
        "block",
        "header",
        "receipt",
        "log",
        "transaction",
        "state",
        "trie",
        "hash",
        "history",
        "data",
        "resource",
    ];
    // A word in a method name does not count: `eth_getBlockReceipts` is not a block.
    let of_data = words().any(|word| data.iter().any(|stem| word.starts_with(stem)));
    let vague = VAGUE_REFUSALS.iter().any(|words| message.contains(words));
    match error.code {
        METHOD_NOT_SUPPORTED => !(vague && of_data),
        _ => of_a_method && ((vague && !of_data) || REFUSALS.iter().any(|words| message.contains(words))),
    }
}

/// Checks if an error says that another node may be able to answer: this one does not offer the method, was not asked, or
/// lacks the state (messages of geth, reth, Erigon, Nethermind, Besu in this order).
pub(super) fn may_succeed_elsewhere(outcome: &Outcome) -> bool {
    let Some(error) = ErrorObject::of(outcome) else {
        return false;
    };
    let message = error.message();
    let stateless = [
        "missing trie node",
        "header not found",
        "state at block",
        "state is not available",
        "no state available",
        "world state unavailable",
    ];
    is_unsupported(&error) || is_no_node_reached(outcome) || stateless.iter().any(|words| message.contains(words))
}

/// Checks if an error object says that this node will never serve the request: it does not know the method, or does
/// not accept such parameters (-32004 is EIP-1474's "method not supported").
pub(super) fn is_for_good(error: &[u8]) -> bool {
    serde_json::from_slice(error).is_ok_and(|ErrorObject { code, .. }| {
        [METHOD_NOT_FOUND.into(), BAD_PARAMS, METHOD_NOT_SUPPORTED].contains(&code)
    })
}

/// Checks if an error object says that the node does not know the method.
pub(super) fn is_unknown_method(error: &[u8]) -> bool {
    serde_json::from_slice(error)
        .is_ok_and(|ErrorObject { code, .. }| [METHOD_NOT_FOUND.into(), METHOD_NOT_SUPPORTED].contains(&code))
}

/// Errors of gateways whose nodes cannot be reached, in full: headwater, proxyd (-32011), Ankr (-32055), dRPC (1, 19).
const NO_NODE_REACHED: [(i64, &str); 6] = [
    (INTERNAL_ERROR as i64, "upstream unavailable"),
    (INTERNAL_ERROR as i64, "upstream connection lost"),
    (-32011, "no backend is currently healthy to serve traffic"),
    (-32055, "no nodes available"),
    (1, "no available upstreams to process the request"),
    (19, "temporary internal error. please retry"),
];

/// Beginning of headwater's error for a block that none of its nodes has reached.
const NOT_REACHED: &str = "no upstream has reached block ";

/// Words of gateways, and of nodes that start or stop, with any code: the phrases of HTTP statuses 502 to 504, and those of
/// a connection that was not made.
const NOT_NOW: [&str; 19] = [
    "timed out",
    "bad gateway",
    "gateway timeout",
    "gateway time-out",
    "service unavailable",
    "temporarily unavailable",
    "upstream unavailable",
    "upstream connection lost",
    "no backend is currently healthy",
    "no healthy upstream",
    "no available upstreams",
    "upstreams exhausted",
    "no nodes available",
    "connection refused",
    "connection reset",
    "please retry",
    "starting up",
    "is starting",
    "shutting down",
];

/// Checks if the error of a client's call is one of [`NO_NODE_REACHED`] as a whole: a part of it may be the client's own words.
pub(super) fn is_no_node_reached(outcome: &Outcome) -> bool {
    ErrorObject::of(outcome).is_some_and(|error| {
        let message = error.message();
        let is_it = |(code, words): &(i64, &str)| error.code == *code && message == *words;
        let is_not_reached = || {
            let number = message
                .strip_prefix(NOT_REACHED)
                .and_then(|rest| rest.strip_suffix(" yet"));
            error.code == i64::from(INTERNAL_ERROR) && number.is_some_and(|number| number.parse::<u64>().is_ok())
        };
        NO_NODE_REACHED.iter().any(is_it) || is_not_reached()
    })
}

/// Checks if the error of a client's call says that the upstream reaches no node now. Not if it lost the connection to its
/// node: the call may be what broke it.
pub(super) fn is_without_node(outcome: &Outcome) -> bool {
    let lost = |error: ErrorObject| error.message() == "upstream connection lost";
    is_no_node_reached(outcome) && !ErrorObject::of(outcome).is_some_and(lost)
}

/// Checks if the answer to a request of our own is no evidence about its subject, and no refusal: a gateway (another
/// headwater, a load balancer) reached no node in time, or the node starts or stops.
pub(super) fn is_temporarily_unavailable(outcome: &Outcome) -> bool {
    if is_no_node_reached(outcome) {
        return true;
    }
    ErrorObject::of(outcome).is_some_and(|error| {
        let message = error.message();
        match error.code {
            // Other words may be part of the reason why there is no such method.
            code if code == i64::from(METHOD_NOT_FOUND) => message.contains("temporarily unavailable"),
            _ => NOT_NOW.iter().any(|words| message.contains(words)) && !message.contains("revert"),
        }
    })
}

/// Words of a rate limit, with any code (gateways use -32601, -32000 and -32603).
const LIMITS: [&str; 5] = [
    "rate limit",
    "ratelimit",
    "too many requests",
    "request limit",
    "compute units",
];

/// Checks if the answer to a request of our own reports a rate limit, by its code or its words.
pub(super) fn is_throttled(outcome: &Outcome) -> bool {
    if is_throttled_by_code(outcome) {
        return true;
    }
    ErrorObject::of(outcome).is_some_and(|error| {
        let message = error.message();
        LIMITS.iter().any(|words| message.contains(words)) && !message.contains("revert")
    })
}

/// Checks if the code of an error reports a rate limit: 429 (Alchemy, QuickNode), -32029 (Erigon's hosts), or -32005,
/// which EIP-1474 calls "limit exceeded". Infura uses -32005 for a query with too many results as well, which is not
/// a rate limit. In an answer to a client words prove nothing: they may be the client's own (a contract's reason, a
/// name).
pub(super) fn is_throttled_by_code(outcome: &Outcome) -> bool {
    let Some(error) = ErrorObject::of(outcome) else {
        return false;
    };
    match error.code {
        429 | -32029 => true,
        code if code == i64::from(LIMIT_EXCEEDED) => {
            let message = error.message();
            let the_questions = ["result", "range", "logs", "response size", "block"];
            !the_questions.iter().any(|word| message.contains(word))
        }
        _ => false,
    }
}

/// Checks if a request of our own was rate-limited. `None` if not; else the wait before a retry, if the node names
/// one.
pub(crate) fn throttled(answer: &Result<Outcome, CallError>) -> Option<Option<Duration>> {
    answer_throttled(answer, is_throttled)
}

/// Checks a client's call for a rate limit like [`throttled`], but by the code alone.
pub(super) fn call_throttled(answer: &Result<Outcome, CallError>) -> Option<Option<Duration>> {
    answer_throttled(answer, is_throttled_by_code)
}

fn answer_throttled(
    answer: &Result<Outcome, CallError>,
    is_throttled: fn(&Outcome) -> bool,
) -> Option<Option<Duration>> {
    match answer {
        Ok(outcome) => is_throttled(outcome).then_some(None),
        Err(CallError::Throttled(after)) => Some(*after),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests;
