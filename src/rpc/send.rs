//! Signed transactions on their way to the nodes: to one node or to all, and once more if lost.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{B256, hex, keccak256};
use alloy_rlp::Header;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use serde::Deserialize;
use tokio::time::Instant;

use crate::jsonrpc::Outcome;
use crate::upstream::{CallError, CallRequest, MinHead, Pool, Repeat, Target};

type Answer = Result<Outcome, CallError>;

/// Waits before the nodes are asked if they have a transaction: a node may have read the transaction, but not added it
/// to its pool yet.
const ARRIVING: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(400)];

/// Time limit for each of these questions: the sender waits for all of them.
const LOOKUP: Duration = Duration::from_secs(2);

/// Sends a transaction to the active node, or to all nodes if `broadcast` is set, and answers as soon as one node has
/// accepted it. "Already known" is success.
///
/// If the connection ended first, the nodes are asked for the transaction; unless one is known to have it, it is sent
/// again, on connections of its own: its nonce makes it valid only once. After that, a node's error is passed on only if
/// every node denies having the transaction. Else the answer is [`CallError::Lost`], or [`CallError::Breaks`] if the
/// transaction is what breaks connections.
pub(super) async fn send(pool: &Arc<Pool>, ask: CallRequest, broadcast: bool) -> Answer {
    let all_eligible = if broadcast { pool.all_eligible(&ask) } else { Vec::new() };
    let hash = hash_of(&ask.params);
    if all_eligible.len() < 2 {
        return match known_is_success(pool.call(&ask).await, hash) {
            Err(CallError::Lost) => after_loss(pool, &ask, hash).await,
            answer => answer,
        };
    }
    let mut sending: FuturesUnordered<_> = all_eligible
        .into_iter()
        .enumerate()
        .map(|(rank, id)| {
            let (pool, ask) = (pool.clone(), ask.clone());
            // Tasks of their own: the other nodes get the transaction even after one has answered.
            let sent = tokio::spawn(async move {
                let answer = pool.call_at(id, &ask).await;
                if answer == Err(CallError::Lost) {
                    ask.conduct.isolate_changes(Instant::now());
                }
                answer
            });
            async move { (rank, sent.await.unwrap_or(Err(CallError::Lost))) }
        })
        .collect();
    let mut is_lost = false;
    let mut refused: Option<(bool, usize, Answer)> = None;
    while let Some((rank, answer)) = sending.next().await {
        let answer = known_is_success(answer, hash);
        if let Ok(Outcome::Result(_)) = answer {
            return answer;
        }
        is_lost |= answer == Err(CallError::Lost);
        // A node's own error is better than no answer, and the error of the first node is better than that of others.
        let better = (answer.is_err(), rank);
        if refused.as_ref().is_none_or(|(lost, rank, _)| better < (*lost, *rank)) {
            refused = Some((better.0, better.1, answer));
        }
    }
    if is_lost {
        return after_loss(pool, &ask, hash).await;
    }
    refused.map_or(Err(CallError::Unavailable), |(_, _, answer)| answer)
}

/// Looks for a transaction whose connection was lost before the node's answer, and sends it again if no node has it.
async fn after_loss(pool: &Pool, ask: &CallRequest, hash: Option<B256>) -> Answer {
    // The transaction may be what ended the connection, and would do so each time.
    let lost = || {
        ask.conduct.isolate_changes(Instant::now());
        Err(CallError::Lost)
    };
    let Some(hash) = hash else { return lost() };
    if find(pool, ask, hash).await == Presence::Somewhere {
        ask.conduct.isolate_changes(Instant::now());
        return Ok(accepted(hash));
    }
    match known_is_success(pool.send_again(ask).await, Some(hash)) {
        // "Nonce too low", say, if the first copy arrived late.
        Ok(Outcome::Error(error)) => match find(pool, ask, hash).await {
            Presence::Somewhere => Ok(accepted(hash)),
            Presence::Nowhere => Ok(Outcome::Error(error)),
            Presence::Unknown => lost(),
        },
        answer @ (Ok(Outcome::Result(_)) | Err(CallError::Breaks)) => answer,
        Err(_) => lost(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// A node has the transaction.
    Somewhere,
    /// All nodes say that they do not have it.
    Nowhere,
    /// At least one node gave no usable answer.
    Unknown,
}

/// Asks all nodes for a transaction, until one has it.
async fn find(pool: &Pool, ask: &CallRequest, hash: B256) -> Presence {
    #[derive(Deserialize)]
    struct Transaction {
        hash: B256,
    }
    let question = CallRequest {
        method: "eth_getTransactionByHash".into(),
        params: format!("[\"{hash}\"]").into(),
        class: "eth_getTransactionByHash",
        min_head: MinHead::Any,
        target: Target::Active,
        repeat: Repeat::Read,
        ..ask.clone()
    };
    let mut denials = 0;
    for wait in ARRIVING {
        tokio::time::sleep(wait).await;
        let asked = pool.all_eligible(&question).into_iter();
        let asked = asked.map(|id| tokio::time::timeout(LOOKUP, pool.call_at(id, &question)));
        denials = 0;
        for answer in join_all(asked).await {
            let Ok(Ok(Outcome::Result(json))) = answer else {
                continue;
            };
            match serde_json::from_slice::<Option<Transaction>>(&json) {
                Ok(Some(found)) if found.hash == hash => return Presence::Somewhere,
                Ok(None) => denials += 1,
                _ => {}
            }
        }
    }
    match denials == pool.count() {
        true => Presence::Nowhere,
        false => Presence::Unknown,
    }
}

/// Returns the answer to an accepted transaction.
fn accepted(hash: B256) -> Outcome {
    Outcome::Result(format!("\"{hash}\"").into())
}

/// Turns the error of a node that has the transaction already into success.
fn known_is_success(answer: Answer, hash: Option<B256>) -> Answer {
    match (&answer, hash) {
        (Ok(Outcome::Error(error)), Some(hash)) if is_known(error) => Ok(accepted(hash)),
        _ => answer,
    }
}

/// Checks if a node's error means that it has the transaction (geth and reth, Nethermind, Besu, anvil).
fn is_known(error: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Error {
        message: String,
    }
    let Ok(Error { message }) = serde_json::from_slice(error) else {
        return false;
    };
    let message = message.to_ascii_lowercase();
    // Only at the beginning: "unknown transaction type" contains Besu's words, too.
    message.starts_with("known transaction")
        || ["already known", "alreadyknown", "already imported"]
            .iter()
            .any(|words| message.contains(words))
}

/// Returns the hash of the transaction; `None` if the parameters are not one string of hexadecimal bytes.
fn hash_of(params: &str) -> Option<B256> {
    let (text,): (String,) = serde_json::from_str(params).ok()?;
    let raw = hex::decode(text.strip_prefix("0x")?).ok()?;
    match without_blobs(&raw) {
        Some(body) => Some(keccak256([&[BLOB_TYPE], body].concat())),
        None if raw.is_empty() => None,
        None => Some(keccak256(&raw)),
    }
}

/// Type of transactions that carry blobs (EIP-4844).
const BLOB_TYPE: u8 = 3;

/// Returns the transaction itself, if it is in the form in which it is sent with its blobs: a list whose first member
/// is a list (EIP-4844, "Networking"). `None` for any other form.
fn without_blobs(raw: &[u8]) -> Option<&[u8]> {
    let mut rest = raw.strip_prefix(&[BLOB_TYPE])?;
    Header::decode(&mut rest).ok().filter(|outer| outer.list)?;
    let body = rest;
    let inner = Header::decode(&mut rest).ok().filter(|inner| inner.list)?;
    let length = body.len() - rest.len() + inner.payload_length;
    body.get(..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_transaction_without_its_blobs() {
        let hash = |raw: &[u8]| hash_of(&format!("[\"{}\"]", hex::encode_prefixed(raw)));
        assert_eq!(hash(b"\x02\xc2\x01\x02"), Some(keccak256(b"\x02\xc2\x01\x02")));
        let (bare, with_blobs) = (b"\x03\xc2\x01\x02", b"\x03\xc5\xc2\x01\x02\xc0\xc0");
        assert_eq!(hash(bare), Some(keccak256(bare)));
        assert_eq!(hash(with_blobs), Some(keccak256(bare)));
        for params in ["", "[]", "[\"0x\"]", "[\"0xz\"]", "[\"0x02\",1]", "[5]"] {
            assert_eq!(hash_of(params), None, "{params}");
        }
    }

    #[test]
    fn that_a_node_has_it_is_success() {
        let error = |message: &str| {
            let json = format!(r#"{{"code":-32000,"message":"{message}"}}"#);
            known_is_success(Ok(Outcome::Error(json.into())), Some(B256::ZERO))
        };
        for known in [
            "already known",
            "AlreadyKnown",
            "Known transaction",
            "transaction already imported",
        ] {
            let expect = format!("\"{}\"", B256::ZERO);
            assert_eq!(error(known), Ok(Outcome::Result(expect.into())), "{known}");
        }
        for other in [
            "nonce too low",
            "replacement transaction underpriced",
            "unknown transaction type",
        ] {
            assert!(matches!(error(other), Ok(Outcome::Error(_))), "{other}");
        }
    }
}
