//! Development nodes: checks if every upstream is one, by its `web3_clientVersion`.
//!
//! Nodes are asked only when a client commands a development chain or uses a node's unlocked accounts, and once for
//! each connection to each upstream: after a reconnect another node may be behind the same address.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::info;

use crate::jsonrpc::Outcome;
use crate::upstream::{Pool, UpstreamId};

/// Prefixes of the answers of development nodes to `web3_clientVersion`, in lower case: anvil, Hardhat, Ganache before
/// version 7 and since, and our own.
const VERSIONS: [&str; 5] = [
    "anvil/",
    "hardhatnetwork/",
    "ethereumjs testrpc/",
    "ganache/",
    "headwater-devnet/",
];

/// Timeout of a node's answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Wait before a node that gave no answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Cache of the upstreams that are development nodes.
#[derive(Debug)]
pub(super) struct DevelopmentCalls {
    /// `true` where clients can connect from this machine only.
    is_local: bool,
    /// Kinds of the upstreams; locked while a node is asked, so that concurrent callers share one question.
    known: Mutex<HashMap<UpstreamId, Known>>,
    is_on: AtomicBool,
}

/// Kind of a node, valid for one connection to it.
#[derive(Debug)]
struct Known {
    connects: u64,
    word: Word,
}

#[derive(Debug)]
enum Word {
    DevelopmentCalls,
    Other,
    /// No answer, at this time.
    None(Instant),
}

impl DevelopmentCalls {
    /// Creates an empty cache. Where clients may connect from elsewhere no node is ever asked.
    #[must_use]
    pub(super) fn new(is_local: bool) -> Self {
        Self {
            is_local,
            known: Mutex::default(),
            is_on: AtomicBool::new(false),
        }
    }

    /// Checks if development commands can be served at all.
    #[must_use]
    pub(super) fn is_possible(&self) -> bool {
        self.is_local
    }

    /// Checks if all upstreams are connected and each is a development node.
    pub(super) async fn is_on(&self, pool: &Pool) -> bool {
        if !self.is_local {
            return false;
        }
        let mut known = self.known.lock().await;
        let ids = pool.ids();
        known.retain(|id, _| ids.contains(id));
        let mut all = !ids.is_empty();
        for id in ids {
            all = all && is_development(&mut known, pool, id).await;
        }
        if self.is_on.swap(all, Ordering::Relaxed) != all {
            if all {
                info!(
                    "every upstream is a development node and clients connect from this machine only: headwater serves \
                     commands to the chain (evm_*, anvil_*, hardhat_*, ganache_*, devnet_*) and the node's own \
                     accounts; set methods.development = \"off\" to refuse them"
                );
            } else {
                info!("not every upstream is a development node any more: headwater refuses commands to the chain");
            }
        }
        all
    }
}

async fn is_development(known: &mut HashMap<UpstreamId, Known>, pool: &Pool, id: UpstreamId) -> bool {
    // Read before the question: an answer over the previous connection must not count for the next one.
    let connects = pool.connects(id);
    if !pool.is_connected(id) {
        return false;
    }
    let is_known = known.get(&id).is_some_and(|known| {
        let is_fresh = !matches!(known.word, Word::None(at) if at.elapsed() >= AGAIN);
        known.connects == connects && is_fresh
    });
    if !is_known {
        let word = match pool.ask(id, "web3_clientVersion", "", TIMEOUT).await {
            Ok(Outcome::Result(version)) if is_version(&version) => Word::DevelopmentCalls,
            Ok(Outcome::Result(_)) => Word::Other,
            Ok(Outcome::Error(_)) | Err(_) => Word::None(Instant::now()),
        };
        known.insert(id, Known { connects, word });
    }
    let is_one = known
        .get(&id)
        .is_some_and(|known| matches!(known.word, Word::DevelopmentCalls));
    is_one && pool.connects(id) == connects && pool.is_connected(id)
}

/// Checks if this JSON is the version of a development node.
fn is_version(json: &[u8]) -> bool {
    let version: String = serde_json::from_slice(json).unwrap_or_default();
    let version = version.to_ascii_lowercase();
    VERSIONS.iter().any(|own| version.starts_with(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn development_nodes_are_known_by_their_first_word() {
        for version in [
            "anvil/v1.7.1",
            "HardhatNetwork/2.22.0/@ethereumjs/vm/5.6.0",
            "EthereumJS TestRPC/v2.13.2/ethereum-js",
            "Ganache/v7.9.2/EthereumJS TestRPC/v7.9.2/ethereum-js",
            "headwater-devnet/v0.1.0",
        ] {
            assert!(is_version(format!("{version:?}").as_bytes()), "{version}");
        }
        for other in [
            r#""Geth/v1.17.8-stable/linux-amd64/go1.25""#,
            r#""Geth/anvil/v1""#,
            r#"" anvil/v1""#,
            r#""anvil""#,
            r#""reth/v1.5.0""#,
            r#""Nethermind/v1.32""#,
            r#"["anvil/v1"]"#,
            r#"{"version":"anvil/v1"}"#,
            "null",
            "1",
            "",
        ] {
            assert!(!is_version(other.as_bytes()), "{other}");
        }
    }
}
