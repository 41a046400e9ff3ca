//! Fetches of block contents from the nodes: the logs, transactions and receipts that subscriptions need.
//!
//! Contents never delay a head. The caller names the blocks whose contents are needed ([`ContentFetches::follow`]) and
//! takes the fetched contents ([`ContentFetches::next`]), in any order.

use std::collections::HashMap;
use std::sync::Arc;

use alloy_primitives::B256;
use tokio::task::{AbortHandle, Id, JoinSet};
use tracing::error;

use super::contents::Silence;
use super::{Absent, BlockLogs, BlockReceipts, BlockTransactions, Header, Source};

/// Concurrent fetches of one kind: after an outage many blocks are needed, and one round trip after the other is too
/// slow.
pub const MAX_FETCHES: usize = 8;

/// A kind of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContentKind {
    /// Logs, by `eth_getLogs`.
    Logs,
    /// Whole transactions, by `eth_getBlockByHash`.
    Transactions,
    /// Receipts, by `eth_getBlockReceipts`.
    Receipts,
}

impl ContentKind {
    /// All kinds, in the order in which a block's contents are delivered.
    pub const ALL: [Self; 3] = [Self::Logs, Self::Transactions, Self::Receipts];

    /// Returns the name in metrics, log lines and errors.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Transactions => "transactions",
            Self::Receipts => "receipts",
        }
    }
}

/// Contents of one block, in a node's own bytes.
#[derive(Clone, Debug)]
pub enum Content {
    /// Its logs.
    Logs(Arc<BlockLogs>),
    /// Its transactions.
    Transactions(Arc<BlockTransactions>),
    /// Its receipts.
    Receipts(Arc<BlockReceipts>),
}

impl Content {
    /// Returns the length of the JSON, in bytes.
    #[must_use]
    pub fn json_len(&self) -> usize {
        match self {
            Self::Logs(block) => block.json_len(),
            Self::Transactions(block) => block.transactions.iter().map(|own| own.json().len()).sum(),
            Self::Receipts(block) => block.receipts.iter().map(|own| own.json().len()).sum(),
        }
    }
}

/// Result of one fetch.
#[derive(Debug)]
pub struct FetchedContent {
    /// Hash of the block.
    pub block: B256,
    /// Kind of contents.
    pub kind: ContentKind,
    /// The contents, or the reason why no node served them.
    pub result: Result<Content, Absent>,
}

/// Fetches in flight.
#[derive(Debug)]
pub struct ContentFetches {
    source: Arc<Source>,
    fetches: JoinSet<Result<Content, Absent>>,
    /// Block and kind of each fetch in `fetches`, aborted ones included.
    of: HashMap<Id, (B256, ContentKind)>,
    under_way: HashMap<(B256, ContentKind), AbortHandle>,
}

impl ContentFetches {
    /// Creates an empty set of fetches from `source`.
    #[must_use]
    pub fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            fetches: JoinSet::new(),
            of: HashMap::new(),
            under_way: HashMap::new(),
        }
    }

    /// Starts the fetches that are needed and not in flight yet; aborts those that are no longer needed.
    pub fn follow(&mut self, needed: &[(ContentKind, Header)]) {
        let is_needed = |key: &(B256, ContentKind)| {
            let mut needed = needed.iter();
            needed.any(|(kind, header)| (header.block.hash, *kind) == *key)
        };
        self.under_way.retain(|key, fetch| {
            let keep = is_needed(key);
            if !keep {
                fetch.abort();
            }
            keep
        });
        for (kind, header) in needed {
            let key = (header.block.hash, *kind);
            if self.under_way.contains_key(&key) {
                continue;
            }
            let fetch = self.fetches.spawn(fetch(self.source.clone(), *kind, header.clone()));
            self.of.insert(fetch.id(), key);
            self.under_way.insert(key, fetch);
        }
    }

    /// Waits for the next finished fetch; `None` if none is in flight. Cancel-safe.
    pub async fn next(&mut self) -> Option<FetchedContent> {
        loop {
            let (id, result) = match self.fetches.join_next_with_id().await? {
                Ok(ended) => ended,
                Err(failed) if failed.is_cancelled() => {
                    self.of.remove(&failed.id());
                    continue;
                }
                Err(failed) => {
                    error!("fetching a block's contents failed: {failed}; this is a bug");
                    (failed.id(), Err(Absent::NotServed))
                }
            };
            let Some(key) = self.of.remove(&id) else { continue };
            // An aborted fetch may still have finished, and another one for the same block may be in flight.
            if self.under_way.get(&key).is_some_and(|fetch| fetch.id() == id) {
                self.under_way.remove(&key);
                let (block, kind) = key;
                return Some(FetchedContent { block, kind, result });
            }
        }
    }
}

async fn fetch(source: Arc<Source>, kind: ContentKind, header: Header) -> Result<Content, Absent> {
    source.content(kind, &header, Silence::Waits).await
}
