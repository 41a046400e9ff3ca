//! The chain's requests to the nodes: blocks by hash or number. The contents of blocks are requested in
//! `contents.rs`.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::debug;

use super::contents::Experience;
use super::heights::{self, Heights};
use super::{BlockRef, Header, HeaderShape, NotAHeader};
use crate::backoff::BLOCK;
use crate::jsonrpc::Outcome;
use crate::upstream::{CallError, Complaint, Pool, complaint};

/// Attempts to fetch the parent of a block that a node has: another node, or another one behind a load balancer, may
/// lack the parent.
const PARENT_TRIES: u32 = 5;

/// Time limit for a range query: fetching the logs of each block does not take much longer.
const RANGE: Duration = Duration::from_secs(2);

/// Reason why an answer about a block was not used; a metrics label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadAnswer {
    /// No answer of a node: a fault of the connection, or an error that means "not now"; not evidence about the block.
    CallFailed,
    /// The node answered with an error.
    NodeError,
    /// The node does not serve the method.
    NotServed,
    /// The node no longer has the data: error 4444 of EIP-4444, as geth, reth and Nethermind answer.
    Pruned,
    /// The answer is malformed, or cannot be about this block.
    Malformed,
    /// The logs do not match the header's bloom.
    Bloom,
    /// The header does not match its hash.
    Header,
    /// The logs do not match the block's receipts, or the receipts are not the block's.
    Receipts,
}

impl BadAnswer {
    /// Returns the value of the `reason` label in the metrics.
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

/// Properties of this chain learned from the nodes' answers.
#[derive(Debug)]
pub struct ChainProfile {
    shape: Mutex<HeaderShape>,
    verify: Verify,
}

/// Evidence that logs are checked against before delivery (E7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Block, order and indices alone.
    None,
    /// Also the header's `logsBloom`: a missing log is nearly always detected.
    #[default]
    Bloom,
    /// Also the block's receipts, their root and the header's hash: a node can neither forge nor omit a log.
    Receipts,
}

impl ChainProfile {
    /// Starts without any knowledge.
    #[must_use]
    pub fn new(verify: Verify) -> Self {
        Self {
            shape: Mutex::default(),
            verify,
        }
    }

    /// Takes an announced header as the pattern for fetched headers, if there is none yet or `anew` is set. The
    /// pattern belongs to the node, not to the chain: it is replaced while the upstream in use catches up.
    pub fn shape(&self, announced: &[u8], anew: bool) {
        let mut shape = self.shape.lock();
        if anew || !shape.is_known() {
            shape.learn(announced);
        }
    }

    /// Reads the header of a fetched block and reduces it to the members that this node announces.
    ///
    /// # Errors
    /// [`NotAHeader`] in the same cases as [`Header::parse`].
    pub fn header_of(&self, block: &Bytes) -> Result<Header, NotAHeader> {
        self.shape.lock().header_of(block, Instant::now())
    }

    /// Returns the evidence that contents are checked against.
    #[must_use]
    pub fn verify(&self) -> Verify {
        self.verify
    }
}

/// Key for a block lookup.
#[derive(Clone, Copy, Debug)]
pub enum Seek {
    /// The block's hash, on any branch.
    Hash(B256),
    /// The block's number on the canonical chain.
    Number(u64),
}

/// The chain's access to the nodes.
#[derive(Debug)]
pub struct Source {
    pub(super) pool: Arc<Pool>,
    pub(super) learned: Arc<ChainProfile>,
    pub(super) experience: Experience,
}

impl Source {
    /// Creates a source that asks the upstreams of `pool` and checks their answers as `verify` requires.
    #[must_use]
    pub fn new(pool: Arc<Pool>, verify: Verify) -> Self {
        let learned = Arc::new(ChainProfile::new(verify));
        let experience = Experience::default();
        Self {
            pool,
            learned,
            experience,
        }
    }

    /// Returns the properties learned from the nodes' answers.
    #[must_use]
    pub fn learned(&self) -> &Arc<ChainProfile> {
        &self.learned
    }

    /// Fetches the block with this hash; `None` if the node does not have it (yet) or gave no answer.
    pub async fn block_by_hash(&self, hash: B256, attempt: u32) -> Option<Header> {
        self.seek(Seek::Hash(hash), attempt).await.ok().flatten()
    }

    /// Fetches the node's canonical block of this number; `None` if the node does not have it (yet) or gave no
    /// answer.
    pub async fn block_by_number(&self, number: u64, attempt: u32) -> Option<Header> {
        self.seek(Seek::Number(number), attempt).await.ok().flatten()
    }

    /// Fetches a block; `None` if the node answers that there is none.
    ///
    /// # Errors
    /// [`BadAnswer`] if there is no answer, an error, or an answer about another block; none of these is evidence about
    /// the block.
    pub async fn seek(&self, seek: Seek, attempt: u32) -> Result<Option<Header>, BadAnswer> {
        let (method, params, hash) = match seek {
            Seek::Hash(hash) => ("eth_getBlockByHash", format!(r#"["{hash}",false]"#), Some(hash)),
            Seek::Number(number) => ("eth_getBlockByNumber", format!(r#"["{number:#x}",false]"#), None),
        };
        let json = answered(self.pool.call_internal(method, &params, hash, attempt).await)?;
        if &json[..] == b"null" {
            return Ok(None);
        }
        let header = self.learned.header_of(&json).map_err(|error| {
            debug!("a fetched block was refused: {error}");
            BadAnswer::Malformed
        })?;
        match seek {
            Seek::Hash(hash) if header.block.hash != hash => Err(BadAnswer::Malformed),
            Seek::Number(number) if header.block.number > number => Err(BadAnswer::Malformed),
            // For a number without a block, Forest answers the block before (issue 11).
            Seek::Number(number) if header.block.number < number => Ok(None),
            _ => Ok(Some(header)),
        }
    }

    /// Finds the first canonical block at or above this number; `None` if the node's chain ends below it.
    ///
    /// # Errors
    /// [`BadAnswer`] if the node gave no answer, or lacks the blocks that prove which one is the first; neither is
    /// evidence about the block.
    pub async fn first_from(&self, number: u64, attempt: u32) -> Result<Option<Header>, BadAnswer> {
        let direct = self.seek(Seek::Number(number), attempt).await;
        if matches!(direct, Ok(Some(_)) | Err(BadAnswer::CallFailed)) {
            return direct;
        }
        match self.latest().await {
            None => Err(BadAnswer::CallFailed),
            Some(tip) if tip.block.number < number => Ok(None),
            Some(tip) => match heights::first_from(self, number, tip).await {
                Some(first) => Ok(Some(first)),
                None => direct.and(Err(BadAnswer::NodeError)),
            },
        }
    }

    /// Fetches the logs of the node's canonical blocks from `first` to `last`, both included, that match the
    /// criteria, as JSON.
    ///
    /// # Errors
    /// [`BadAnswer`] if there is no answer, or the node does not have `last`: a node that lags answers for the blocks that it
    /// has, and nothing in the answer shows where it ends.
    pub(super) async fn logs_between(
        &self,
        first: BlockRef,
        last: BlockRef,
        criteria: &str,
    ) -> Result<Bytes, BadAnswer> {
        let (from, to) = (first.number, last.number);
        let preferred = self.pool.by_preference(last.hash);
        let node = *preferred.first().ok_or(BadAnswer::CallFailed)?;
        let ask = async |method: &str, params: String| {
            let call = self.pool.ask(node, method, &params, RANGE);
            let answer = tokio::time::timeout(RANGE, call).await;
            answered(answer.unwrap_or(Err(CallError::TimedOut)))
        };
        let newest = ask("eth_getBlockByNumber", format!(r#"["{to:#x}",false]"#)).await?;
        match self.learned.header_of(&newest) {
            Ok(header) if header.block == last => {}
            _ => return Err(BadAnswer::NodeError),
        }
        let params = format!(r#"[{{"fromBlock":"{from:#x}","toBlock":"{to:#x}",{criteria}}}]"#);
        ask("eth_getLogs", params).await
    }

    /// Fetches the node's newest block; `None` if there is no usable answer.
    pub async fn latest(&self) -> Option<Header> {
        let json = found(
            self.pool
                .call_internal("eth_getBlockByNumber", r#"["latest",false]"#, None, 0)
                .await,
        )?;
        self.learned
            .header_of(&json)
            .inspect_err(|error| debug!("a fetched block was refused: {error}"))
            .ok()
    }

    /// Checks if the node reports that it is syncing; `false` without an answer.
    pub async fn is_syncing(&self) -> bool {
        let said = found(self.pool.call_internal("eth_syncing", "", None, 0).await);
        said.is_some_and(|json| &json[..] != b"false")
    }
}

impl Heights for Source {
    async fn at(&self, number: u64) -> Option<Header> {
        self.block_by_number(number, 0).await
    }

    async fn parent(&self, child: &Header) -> Option<Header> {
        let seek = match child.has_parent() {
            true => Seek::Hash(child.parent),
            // A block without a parent: the block with the previous number takes its place.
            false => Seek::Number(child.block.number.checked_sub(1)?),
        };
        for attempt in 0..PARENT_TRIES {
            tokio::time::sleep(BLOCK.before(attempt)).await;
            if let Ok(Some(header)) = self.seek(seek, attempt).await {
                return Some(header);
            }
        }
        None
    }
}

fn answered(answer: Result<Outcome, CallError>) -> Result<Bytes, BadAnswer> {
    match answer {
        Ok(Outcome::Result(json)) => Ok(json),
        Ok(error) => Err(match complaint(&error) {
            Complaint::Pruned => BadAnswer::Pruned,
            Complaint::Unsupported => BadAnswer::NotServed,
            Complaint::NotNow => BadAnswer::CallFailed,
            Complaint::Throttled | Complaint::Other => BadAnswer::NodeError,
        }),
        Err(_) => Err(BadAnswer::CallFailed),
    }
}

/// Returns the result of a call; `None` for `null`, an error, or no answer, which all mean "not yet".
fn found(answer: Result<Outcome, CallError>) -> Option<Bytes> {
    match answer {
        Ok(Outcome::Result(json)) if &json[..] != b"null" => Some(json),
        _ => None,
    }
}
