//! Development nodes: tells if every upstream is one, by what it says of itself.
//!
//! Asked for only where somebody commands a development chain or uses a node's unlocked accounts, and once for each
//! connection to each upstream: behind the same address may be another node after a connection was lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tracing::info;

use crate::jsonrpc::Outcome;
use crate::look::awaited;
use crate::upstream::{Pool, UpstreamId};

/// Beginnings of what development nodes answer to `web3_clientVersion`, in small letters: anvil, Hardhat, Ganache before
/// version 7 and since, and our own.
const VERSIONS: [&str; 5] = [
    "anvil/",
    "hardhatnetwork/",
    "ethereumjs testrpc/",
    "ganache/",
    "headwater-devnet/",
];

/// How long a node may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// A node that said nothing is not asked again for so long.
const AGAIN: Duration = Duration::from_secs(1);

/// What is known of the upstreams.
#[derive(Debug)]
pub struct Development {
    /// Clients connect from this machine alone.
    is_local: bool,
    /// Held while a node is asked, so that it is asked once for all who wait.
    known: Mutex<HashMap<usize, Known>>,
    is_on: AtomicBool,
}

/// What a node said on one connection.
#[derive(Debug)]
struct Known {
    connects: u64,
    word: Word,
}

#[derive(Debug)]
enum Word {
    Development,
    Other,
    /// Nothing, then.
    None(Instant),
}

impl Development {
    /// Nothing is known. Where clients may connect from elsewhere nothing will be asked.
    #[must_use]
    pub fn new(is_local: bool) -> Self {
        Self {
            is_local,
            known: Mutex::default(),
            is_on: AtomicBool::new(false),
        }
    }

    /// Whether it is worth asking.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        self.is_local
    }

    /// Whether all upstreams are connected, and each is a development node.
    pub async fn is_on(&self, pool: &Pool) -> bool {
        if !self.is_local {
            return false;
        }
        awaited().await;
        let mut known = self.known.lock().await;
        let mut all = pool.count() > 0;
        for id in (0..pool.count()).map(UpstreamId) {
            all = all && is_development(&mut known, pool, id).await;
        }
        if self.is_on.swap(all, Ordering::Relaxed) != all {
            if all {
                info!(
                    "every upstream is a development node and clients connect from this machine alone: commands to the \
                     chain (evm_*, anvil_*, hardhat_*, ganache_*, devnet_*) and the node's own accounts are served; \
                     methods.development = \"off\" ends that"
                );
            } else {
                info!("not every upstream is a development node any more: commands to the chain are refused");
            }
        }
        all
    }
}

async fn is_development(known: &mut HashMap<usize, Known>, pool: &Pool, id: UpstreamId) -> bool {
    // Before the question: an answer of the connection before must not pass for one of the next.
    let connects = pool.connects(id);
    if !pool.is_connected(id) {
        return false;
    }
    let is_known = known.get(&id.0).is_some_and(|known| {
        let is_fresh = !matches!(known.word, Word::None(at) if at.elapsed() >= AGAIN);
        known.connects == connects && is_fresh
    });
    if !is_known {
        let word = match pool.ask(id, "web3_clientVersion", "", PATIENCE).await {
            Ok(Outcome::Result(version)) if is_version(&version) => Word::Development,
            Ok(Outcome::Result(_)) => Word::Other,
            Ok(Outcome::Error(_)) | Err(_) => Word::None(Instant::now()),
        };
        known.insert(id.0, Known { connects, word });
    }
    let is_one = known
        .get(&id.0)
        .is_some_and(|known| matches!(known.word, Word::Development));
    is_one && pool.connects(id) == connects && pool.is_connected(id)
}

/// Whether this JSON is what a development node calls itself.
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
