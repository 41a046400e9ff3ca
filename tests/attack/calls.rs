//! Attacks by calls: their parameters, methods and answers.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::arena::Arena;
use crate::node::{POISON, SLOW_METHOD};
use crate::peer::{OWNER, Peer, Reply, attacker, request};

/// Nesting depth one above the limit of Go's decoder (`maxNestingDepth` in encoding/json).
const TOO_DEEP: usize = 10_001;

/// Methods by which a node signs, writes or is administered.
const FORBIDDEN: [&str; 24] = [
    "admin_addPeer",
    "admin_stopWS",
    "anvil_setBalance",
    "clique_propose",
    "debug_setHead",
    "dev_addWithdrawal",
    "dev_setFeeRecipient",
    "devnet_stats",
    "engine_forkchoiceUpdatedV3",
    "eth_resend",
    "eth_sendTransaction",
    "eth_sign",
    "eth_signTransaction",
    "eth_signTypedData_v4",
    "evm_mine",
    "hardhat_reset",
    "miner_stop",
    "parity_setMaxGasPrice",
    "personal_sendTransaction",
    "personal_unlockAccount",
    "signer_list",
    "testing_buildBlockV1",
    "testing_commitBlockV1",
    "wallet_addEthereumChain",
];

/// Names that some nodes trim, fold or cut to one of [`FORBIDDEN`].
const ODD: [&str; 12] = [
    " eth_sendTransaction",
    "eth_sendTransaction ",
    "\teth_sendTransaction",
    "eth_sendTransaction\n",
    "eth_sendTransaction\u{0}",
    "\u{feff}eth_sendTransaction",
    "eth_sendTransaction\u{200b}",
    "ETH_sendTransaction",
    "eth_send\u{0}Transaction",
    "eth_sendTransactıon",
    "eth__sendTransaction",
    "",
];

/// Parameters that are JSON to us, and too deep for the node.
pub async fn deep(arena: Arena) {
    const CALLS: usize = 12;
    arena
        .all(CALLS, async |arena: Arena, number| {
            arena.turn(number, CALLS).await;
            let deep = "[".repeat(TOO_DEEP) + &"]".repeat(TOO_DEEP);
            let call = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"eth_call","params":{deep}}}"#);
            if let Some(mut peer) = Peer::open(&arena, attacker(number)).await {
                peer.ask(call).await;
            }
        })
        .await;
}

/// Calls on which the node closes the connection that all clients share.
pub async fn poison(arena: Arena) {
    const CALLS: usize = 20;
    arena
        .all(CALLS, async |arena: Arena, number| {
            arena.turn(number, CALLS).await;
            let params = json!([{"to": POISON, "nonce": format!("{number:#x}")}, "latest"]);
            if let Some(mut peer) = Peer::open(&arena, attacker(number)).await {
                peer.ask(request(1, "eth_call", &params).to_string()).await;
            }
        })
        .await;
}

/// Methods of the operator, under their names and under odd ones; none may reach the node.
pub async fn methods(arena: Arena) {
    let reached = || {
        let stats = arena.node().stats();
        let own = stats.calls.get("devnet_stats").copied().unwrap_or(0);
        (stats.unknown_methods, own)
    };
    let (before, own_before) = reached();
    let Some(mut peer) = Peer::open(&arena, attacker(0)).await else {
        return arena.broken("a client is let in");
    };
    let all: Vec<&str> = FORBIDDEN.into_iter().chain(ODD).collect();
    for method in &all {
        let answer = peer.ask(request(1, method, &json!([])).to_string()).await;
        if answer.is_none_or(|answer| answer.contains(r#""result""#)) {
            arena.broken(format!("{method:?} was not refused"));
        }
    }
    let batch: Vec<Value> = all.iter().map(|method| request(2, method, &json!([]))).collect();
    if let Some(mut poster) = Peer::connect(&arena, attacker(1)).await {
        poster.post(&Value::from(batch).to_string()).await;
    }
    let (after, own_after) = reached();
    let forwarded: BTreeSet<_> = after.difference(&before).collect();
    if !forwarded.is_empty() {
        arena.broken(format!("{} methods reached the node: {forwarded:?}", forwarded.len()));
    }
    if own_after > own_before {
        arena.broken("devnet_stats reached the node");
    }
}

/// A call with a long answer.
pub fn code_of(number: usize) -> Value {
    request(1, "eth_getCode", &json!([format!("{number:#042x}"), "latest"]))
}

/// Four clients that read answers of 20 MiB one after another.
pub async fn long_answers(arena: Arena) {
    arena
        .all(4, async |arena: Arena, number| {
            let Some(mut peer) = Peer::open(&arena, attacker(number)).await else {
                return;
            };
            for turn in 0.. {
                if !arena.goes_on()
                    || peer
                        .ask(code_of(1_000 * (1 + number) + turn).to_string())
                        .await
                        .is_none()
                {
                    return;
                }
            }
        })
        .await;
}

/// Answers longer than the limit for answers from a node.
pub async fn too_long(arena: Arena) {
    const CALLS: usize = 10;
    arena
        .all(CALLS, async |arena: Arena, number| {
            arena.turn(number, CALLS).await;
            if let Some(mut peer) = Peer::open(&arena, attacker(number)).await {
                peer.ask(code_of(number).to_string()).await;
            }
        })
        .await;
}

/// Guesses of another client's filter id, which must neither drain the filter nor uninstall it.
pub async fn foreign_filter(arena: Arena) {
    let Some(mut owner) = Peer::connect(&arena, OWNER).await else {
        return arena.broken("the filter's owner is let in");
    };
    let made = result_of(
        owner
            .post(r#"{"jsonrpc":"2.0","id":1,"method":"eth_newBlockFilter"}"#)
            .await,
    );
    let Some(id) = made.as_str() else {
        return arena.broken(format!("a filter is made: {made}"));
    };
    let first = arena.node().head().number() + 1;
    arena
        .all(2, async |arena: Arena, number| {
            let Some(mut peer) = Peer::open(&arena, attacker(number)).await else {
                return;
            };
            for guess in 0..40 {
                let (text, method) = (
                    format!("{guess:#x}"),
                    ["eth_getFilterChanges", "eth_uninstallFilter"][number],
                );
                for params in [
                    json!([guess]),
                    json!([text]),
                    json!([text, null]),
                    json!({"id": text}),
                    json!({}),
                ] {
                    peer.ask(request(guess, method, &params).to_string()).await;
                }
            }
        })
        .await;
    arena.end().await;
    let last = arena.node().head().number();
    // The node's newest blocks may not have reached the proxy yet.
    sleep(Duration::from_millis(300)).await;
    let changes = result_of(
        owner
            .post(&request(2, "eth_getFilterChanges", &json!([id])).to_string())
            .await,
    );
    let got: BTreeSet<&str> = changes
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let hash = |number| {
        arena
            .node()
            .with_chain(|chain| chain.block_at(number).map(|block| block.hash().to_string()))
    };
    let missing = (first..=last).filter(|number| !hash(*number).is_some_and(|hash| got.contains(hash.as_str())));
    match missing.count() {
        0 => {}
        count => arena.broken(format!(
            "{count} blocks are missing in another client's filter: {changes}"
        )),
    }
}

fn result_of(reply: Option<Reply>) -> Value {
    let body = reply.map(|reply| reply.body).unwrap_or_default();
    let mut answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    match answer["result"].take() {
        Value::Null => answer["error"].take(),
        result => result,
    }
}

/// Calls that take long, as many as one connection may have under way, on twenty connections of two addresses.
pub async fn slow(arena: Arena) {
    const IN_FLIGHT: usize = 256;
    let connections = arena.size(8, 20);
    arena
        .all(connections, async |arena: Arena, number| {
            let Some(mut peer) = Peer::open(&arena, attacker(number % 2)).await else {
                return;
            };
            let mut sent = 0;
            while arena.goes_on() {
                for _ in 0..IN_FLIGHT {
                    sent += 1;
                    let params = json!([{"to": format!("{:#042x}", number * 100_000 + sent)}]);
                    if !peer.send(request(sent, SLOW_METHOD, &params).to_string()).await {
                        return arena.count("cut");
                    }
                }
                for _ in 0..IN_FLIGHT {
                    if peer.answer().await.is_none() {
                        return;
                    }
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
}
