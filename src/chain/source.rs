//! The questions of the chain to the nodes: blocks by hash or number. What a block holds is asked for in `contents.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::debug;

use super::contents::Experience;
use super::heights::{self, Heights};
use super::{BlockRef, Header, HeaderShape, NotAHeader};
use crate::jsonrpc::Outcome;
use crate::upstream::{CallError, Complaint, Pool, complaint};

/// First and longest wait before a fetch that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Tries for the parent of a block that a node has: another node may lack it, or one behind a balancer.
const PARENT_TRIES: u32 = 5;

/// How long logs of a range are waited for: to fetch those of each block does not take much longer.
const RANGE: Duration = Duration::from_secs(2);

/// Why an answer about logs was not believed; the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No answer: a matter of the connection, not of the block.
    CallFailed,
    /// The node answered with an error.
    NodeError,
    /// The node answered that it has no such method.
    NotServed,
    /// It had it once: error 4444 of EIP-4444, as geth, reth and Nethermind answer.
    Pruned,
    /// It cannot be this block's.
    Malformed,
    /// It does not add up to the header's bloom.
    Bloom,
    /// The header is not what its hash stands for.
    Header,
    /// It is not what the block's receipts say, or these are not the block's.
    Receipts,
}

impl Refused {
    /// The value of the `reason` label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::CallFailed => "call_failed",
            Self::NodeError => "node_error",
            Self::NotServed => "not_served",
            Self::Pruned => "pruned",
            Self::Malformed => "malformed",
            Self::Bloom => "bloom",
            Self::Header => "header",
            Self::Receipts => "receipts",
        }
    }
}

/// What the nodes' answers have taught about this chain.
#[derive(Debug)]
pub struct Learned {
    shape: Mutex<HeaderShape>,
    verify: Verify,
}

/// What the logs of a block are held against before they are delivered (E7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Block, order and indices alone.
    None,
    /// The header's `logsBloom` too: a log that is missing shows, as good as always.
    #[default]
    Bloom,
    /// The block's receipts, their root and the header's hash too: a node can neither forge nor omit a log.
    Receipts,
}

impl Learned {
    /// Nothing yet.
    #[must_use]
    pub fn new(verify: Verify) -> Self {
        Self {
            shape: Mutex::default(),
            verify,
        }
    }

    /// Takes an announced header as the pattern for those that are fetched. It is the node's and not the chain's: where the
    /// chain begins anew, headers that are backfilled before the first announcement have it too.
    pub fn shape(&self, announced: &[u8], anew: bool) {
        let mut shape = self.shape.lock();
        if anew || !shape.is_known() {
            shape.learn(announced);
        }
    }

    /// The header of a fetched block, with the members that this node announces.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn header_of(&self, block: &Bytes) -> Result<Header, NotAHeader> {
        self.shape.lock().header_of(block, Instant::now())
    }

    /// What contents are held against.
    #[must_use]
    pub fn verify(&self) -> Verify {
        self.verify
    }
}

/// What a block is looked for by.
#[derive(Clone, Copy, Debug)]
pub enum Seek {
    /// Its hash, whatever branch it is on.
    Hash(B256),
    /// Its number on the canonical chain.
    Number(u64),
}

/// The nodes as the chain sees them.
#[derive(Debug)]
pub struct Source {
    pub(super) pool: Arc<Pool>,
    pub(super) learned: Arc<Learned>,
    pub(super) experience: Experience,
}

impl Source {
    /// Asks these nodes, and holds what they say against the rest.
    #[must_use]
    pub fn new(pool: Arc<Pool>, verify: Verify) -> Self {
        let learned = Arc::new(Learned::new(verify));
        let experience = Experience::default();
        Self {
            pool,
            learned,
            experience,
        }
    }

    /// What their answers have taught.
    #[must_use]
    pub fn learned(&self) -> &Arc<Learned> {
        &self.learned
    }

    /// The block with this hash; `None` where the node does not have it, or not yet, or gave no answer.
    pub async fn block_by_hash(&self, hash: B256, attempt: u32) -> Option<Header> {
        self.seek(Seek::Hash(hash), attempt).await.ok().flatten()
    }

    /// The node's canonical block of this number.
    pub async fn block_by_number(&self, number: u64, attempt: u32) -> Option<Header> {
        self.seek(Seek::Number(number), attempt).await.ok().flatten()
    }

    /// A block; `None` where the node says that it has none.
    ///
    /// # Errors
    /// [`Refused`] says nothing about the block.
    pub async fn seek(&self, seek: Seek, attempt: u32) -> Result<Option<Header>, Refused> {
        let (method, params, hash) = match seek {
            Seek::Hash(hash) => ("eth_getBlockByHash", format!(r#"["{hash}",false]"#), Some(hash)),
            Seek::Number(number) => ("eth_getBlockByNumber", format!(r#"["{number:#x}",false]"#), None),
        };
        let json = answered(self.pool.call_ours(method, &params, hash, attempt).await)?;
        if &json[..] == b"null" {
            return Ok(None);
        }
        let header = self.learned.header_of(&json).map_err(|error| {
            debug!("a fetched block was refused: {error}");
            Refused::Malformed
        })?;
        match seek {
            Seek::Hash(hash) if header.block.hash != hash => Err(Refused::Malformed),
            Seek::Number(number) if header.block.number > number => Err(Refused::Malformed),
            // Where a number has no block, Forest answers the one before (issue 11).
            Seek::Number(number) if header.block.number < number => Ok(None),
            _ => Ok(Some(header)),
        }
    }

    /// The first canonical block at or above this number; `None` where the node's chain ends below it.
    ///
    /// # Errors
    /// [`Refused`] says nothing about the block: the node cannot be asked, or does not have the blocks that prove which one
    /// is the first.
    pub async fn first_from(&self, number: u64, attempt: u32) -> Result<Option<Header>, Refused> {
        let direct = self.seek(Seek::Number(number), attempt).await;
        if matches!(direct, Ok(Some(_)) | Err(Refused::CallFailed)) {
            return direct;
        }
        match self.latest().await {
            None => Err(Refused::CallFailed),
            Some(tip) if tip.block.number < number => Ok(None),
            Some(tip) => match heights::first_from(self, number, tip).await {
                Some(first) => Ok(Some(first)),
                None => direct.and(Err(Refused::NodeError)),
            },
        }
    }

    /// The node's answer about the logs of its canonical blocks of these numbers that meet the criteria, as JSON.
    pub(super) async fn logs_between(&self, first: BlockRef, last: BlockRef, criteria: &str) -> Result<Bytes, Refused> {
        let (from, to) = (first.number, last.number);
        let params = format!(r#"[{{"fromBlock":"{from:#x}","toBlock":"{to:#x}",{criteria}}}]"#);
        let call = self.pool.call_ours("eth_getLogs", &params, Some(last.hash), 0);
        answered(
            tokio::time::timeout(RANGE, call)
                .await
                .unwrap_or(Err(CallError::TimedOut)),
        )
    }

    /// The node's newest block.
    pub async fn latest(&self) -> Option<Header> {
        self.block("eth_getBlockByNumber", r#"["latest",false]"#, None, 0).await
    }

    /// Whether the node says that it is syncing.
    pub async fn is_syncing(&self) -> bool {
        let said = found(self.pool.call_ours("eth_syncing", "", None, 0).await);
        said.is_some_and(|json| &json[..] != b"false")
    }

    /// Each further `attempt` asks another node, as far as there are any.
    async fn block(&self, method: &str, params: &str, hash: Option<B256>, attempt: u32) -> Option<Header> {
        let json = found(self.pool.call_ours(method, params, hash, attempt).await)?;
        self.learned
            .header_of(&json)
            .inspect_err(|error| debug!("a fetched block was refused: {error}"))
            .ok()
    }
}

impl Heights for Source {
    async fn at(&self, number: u64) -> Option<Header> {
        self.block_by_number(number, 0).await
    }

    async fn parent(&self, child: &Header) -> Option<Header> {
        let seek = match child.has_parent() {
            true => Seek::Hash(child.parent),
            // The one of the number before is taken for it.
            false => Seek::Number(child.block.number.checked_sub(1)?),
        };
        for attempt in 0..PARENT_TRIES {
            tokio::time::sleep(wait_before(attempt)).await;
            if let Ok(Some(header)) = self.seek(seek, attempt).await {
                return Some(header);
            }
        }
        None
    }
}

/// How long to wait before this attempt.
pub(super) fn wait_before(attempt: u32) -> Duration {
    match attempt {
        0 => Duration::ZERO,
        n => RETRY.0.saturating_mul(1 << n.min(10)).min(RETRY.1),
    }
}

fn answered(answer: Result<Outcome, CallError>) -> Result<Bytes, Refused> {
    match answer {
        Ok(Outcome::Result(json)) => Ok(json),
        Ok(error) => Err(match complaint(&error) {
            Complaint::Pruned => Refused::Pruned,
            Complaint::Unsupported => Refused::NotServed,
            Complaint::Throttled | Complaint::Other => Refused::NodeError,
        }),
        Err(_) => Err(Refused::CallFailed),
    }
}

/// The block that a call found; `null`, an error and a lost connection all mean "not yet".
fn found(answer: Result<Outcome, CallError>) -> Option<Bytes> {
    match answer {
        Ok(Outcome::Result(json)) if &json[..] != b"null" => Some(json),
        _ => None,
    }
}
