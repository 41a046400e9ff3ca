//! What the chain asks of the nodes: blocks by hash or number, and a block's logs. Each answer is held against what is
//! known before anybody believes it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{B256, Bloom};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::patience::{Failed, Patience};
use super::{Absent, BlockLogs, BlockReceipts, BlockTransactions, Header, HeaderShape, NotAHeader, receipts};
use crate::jsonrpc::{METHOD_NOT_FOUND, Outcome};
use crate::upstream::{CallError, Pool, throttled};

/// First and longest wait before a fetch that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// The code for history that a node has no longer (EIP-4444).
const PRUNED: i64 = 4444;

/// What matters of an error object.
#[derive(Deserialize)]
struct Code {
    code: i64,
}

/// Whether this chain's blooms can be believed: some chains leave them empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BloomTrust {
    /// No block with logs was seen yet.
    Unknown,
    /// A bloom was not empty: an empty one means no logs.
    Honest,
    /// A block with an empty bloom had logs.
    Empty,
}

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
    bloom: Mutex<BloomTrust>,
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
            bloom: Mutex::new(BloomTrust::Unknown),
            verify,
        }
    }

    /// Takes an announced header as the pattern for those that are fetched.
    pub fn shape(&self, announced: &[u8], anew: bool) {
        let mut shape = self.shape.lock();
        if anew || !shape.is_known() {
            shape.learn(announced);
        }
    }

    /// The chain has begun anew: nothing that was learned of it holds. The shape is the node's: a backfilled header has it also
    /// before the first announcement.
    pub fn forget(&self) {
        *self.bloom.lock() = BloomTrust::Unknown;
    }

    /// The header of a fetched block, with the members that this node announces.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn header_of(&self, block: &Bytes) -> Result<Header, NotAHeader> {
        self.shape.lock().header_of(block, Instant::now())
    }

    /// The block's logs where its header tells that there are none.
    #[must_use]
    pub fn no_logs(&self, header: &Header) -> Option<BlockLogs> {
        let none = header.bloom.as_deref() == Some(&Bloom::ZERO)
            && *self.bloom.lock() == BloomTrust::Honest
            && self.is_whole(header);
        none.then(|| BlockLogs::empty(header.block, header.seen))
    }

    /// Whether the header is what its hash stands for, where that is to be verified.
    #[must_use]
    pub fn is_whole(&self, header: &Header) -> bool {
        self.verify != Verify::Receipts || receipts::verify_hash(&header.json).is_ok()
    }

    fn bloom(&self, header: &Header, logs: &BlockLogs) {
        let mut bloom = self.bloom.lock();
        if header.telling_bloom().is_some() {
            *bloom = BloomTrust::Honest;
        } else if header.bloom.is_some() && !logs.logs.is_empty() && *bloom == BloomTrust::Unknown {
            warn!("this chain leaves logsBloom empty: logs are asked for at every block and cannot be verified");
            *bloom = BloomTrust::Empty;
        }
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
    pool: Arc<Pool>,
    learned: Arc<Learned>,
}

impl Source {
    /// Asks these nodes, and holds what they say against the rest.
    #[must_use]
    pub fn new(pool: Arc<Pool>, verify: Verify) -> Self {
        let learned = Arc::new(Learned::new(verify));
        Self { pool, learned }
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
        let asked_for = match seek {
            Seek::Hash(hash) => header.block.hash == hash,
            Seek::Number(number) => header.block.number == number,
        };
        if asked_for {
            Ok(Some(header))
        } else {
            Err(Refused::Malformed)
        }
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

    /// All logs of a block.
    ///
    /// # Errors
    /// [`Refused`]; asking again may help.
    pub async fn logs(&self, header: &Header, attempt: u32) -> Result<BlockLogs, Refused> {
        let block = header.block;
        let params = format!(r#"[{{"blockHash":"{}"}}]"#, block.hash);
        let asked = self.pool.call_ours("eth_getLogs", &params, Some(block.hash), attempt);
        let json = answered(asked.await)?;
        let logs = BlockLogs::parse(block, &json, header.seen).map_err(|error| {
            debug!(%block, "logs refused: {error}");
            Refused::Malformed
        })?;
        let verify = self.learned.verify;
        if verify == Verify::Receipts {
            self.check_receipts(header, &logs, attempt).await?;
        } else if verify == Verify::Bloom && !holds(&logs, header, attempt) {
            return Err(Refused::Bloom);
        }
        self.learned.bloom(header, &logs);
        Ok(logs)
    }

    async fn check_receipts(&self, header: &Header, logs: &BlockLogs, attempt: u32) -> Result<(), Refused> {
        let block = header.block;
        verify_hash(header)?;
        let params = format!(r#"["{}"]"#, block.hash);
        let asked = self
            .pool
            .call_ours("eth_getBlockReceipts", &params, Some(block.hash), attempt);
        let json = answered(asked.await)?;
        receipts::verify(header, &json, logs).map_err(|error| {
            debug!(%block, "receipts refused: {error}");
            Refused::Receipts
        })
    }

    /// All transactions of a block.
    ///
    /// # Errors
    /// [`Absent`]: no node gives any that hold within six seconds, all say that they do not serve them, or they hang up.
    pub async fn transactions(&self, header: &Header) -> Result<BlockTransactions, Absent> {
        match BlockTransactions::none(header) {
            Some(none) => Ok(none),
            None => {
                let fetch = |attempt| self.try_transactions(header, attempt);
                self.patiently("transactions", header, fetch).await
            }
        }
    }

    /// All receipts of a block.
    ///
    /// # Errors
    /// As [`Self::transactions`].
    pub async fn receipts(&self, header: &Header) -> Result<BlockReceipts, Absent> {
        match BlockReceipts::none(header) {
            Some(none) => Ok(none),
            None => {
                let fetch = |attempt| self.try_receipts(header, attempt);
                self.patiently("receipts", header, fetch).await
            }
        }
    }

    /// Fetches what a block holds, again and again, with [`Patience`].
    async fn patiently<T, F: Future<Output = Result<T, Failed>>>(
        &self,
        what: &str,
        header: &Header,
        fetch: impl Fn(u32) -> F,
    ) -> Result<T, Absent> {
        let mut patience = Patience::new(self.pool.len());
        loop {
            let begun = Instant::now();
            let fetched = tokio::time::timeout(patience.left(), fetch(patience.attempt())).await;
            let why = match fetched {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(why)) => why,
                Err(_) => Failed::Other,
            };
            let wait = patience.failed(why, begun.elapsed()).inspect_err(|absent| {
                let why = match absent {
                    Absent::NotServed => "no node has the",
                    Absent::Throttled => "the nodes' rate limits hold back the",
                };
                warn!(block = %header.block, "{why} {what} of this block; who wants them is closed with 1012");
            })?;
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_transactions(&self, header: &Header, attempt: u32) -> Result<BlockTransactions, Failed> {
        let hash = header.block.hash;
        let params = format!(r#"["{hash}",true]"#);
        let json = self.content("eth_getBlockByHash", &params, hash, attempt).await?;
        BlockTransactions::parse(header, &json).map_err(|error| {
            debug!(block = %header.block, "transactions refused: {error}");
            Failed::Other
        })
    }

    async fn try_receipts(&self, header: &Header, attempt: u32) -> Result<BlockReceipts, Failed> {
        let hash = header.block.hash;
        let params = format!(r#"["{hash}"]"#);
        let json = self.content("eth_getBlockReceipts", &params, hash, attempt).await?;
        let block = header.block;
        let read = BlockReceipts::parse(header, &json).map_err(|error| {
            debug!(%block, "receipts refused: {error}");
            Failed::Other
        })?;
        match self.learned.verify {
            Verify::None => {}
            Verify::Bloom => read
                .check_bloom(header.telling_bloom(), believes_more(attempt))
                .map_err(|error| {
                    debug!(%block, "receipts refused: {error}");
                    Failed::Other
                })?,
            Verify::Receipts => {
                verify_hash(header).map_err(|_| Failed::Other)?;
                receipts::verify_root(header, &json).map_err(|error| {
                    debug!(%block, "receipts refused: {error}");
                    Failed::Other
                })?;
            }
        }
        Ok(read)
    }

    async fn content(&self, method: &str, params: &str, hash: B256, attempt: u32) -> Result<Bytes, Failed> {
        let answer = self.pool.call_ours(method, params, Some(hash), attempt).await;
        if throttled(&answer).is_some() {
            return Err(Failed::Throttled);
        }
        match answer {
            Err(CallError::Unavailable) => Err(Failed::Unavailable),
            Err(CallError::TooLong) => Err(Failed::Broken),
            // Over HTTP a node that restarts is answered for by nobody, or by a balancer, again and again.
            Err(CallError::Lost) if !self.pool.any_http() => Err(Failed::Broken),
            // A node that is connected and does not answer is no lost connection.
            Err(_) => Err(Failed::Other),
            answer => answered(answer).map_err(|why| match why {
                Refused::NotServed => Failed::NotServed,
                _ => Failed::Other,
            }),
        }
    }

    /// A block with its logs, for nobody in a hurry; `None` after so many tries.
    pub async fn block_with_logs(&self, hash: B256, tries: u32) -> Option<(Header, BlockLogs)> {
        let mut header = None;
        for attempt in 0..tries {
            tokio::time::sleep(wait_before(attempt)).await;
            if header.is_none() {
                header = self.block_by_hash(hash, attempt).await;
            }
            let Some(header) = &header else { continue };
            let logs = match self.learned.no_logs(header) {
                Some(none) => Ok(none),
                None => self.logs(header, attempt).await,
            };
            if let Ok(logs) = logs {
                return Some((header.clone(), logs));
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

/// The header is what its hash stands for.
fn verify_hash(header: &Header) -> Result<(), Refused> {
    receipts::verify_hash(&header.json).map_err(|error| {
        debug!(block = %header.block, "header refused: {error}");
        Refused::Header
    })
}

fn answered(answer: Result<Outcome, CallError>) -> Result<Bytes, Refused> {
    match answer {
        Ok(Outcome::Result(json)) => Ok(json),
        Ok(Outcome::Error(error)) => Err(match serde_json::from_slice(&error) {
            Ok(Code { code: PRUNED }) => Refused::Pruned,
            Ok(Code { code }) if code == i64::from(METHOD_NOT_FOUND) => Refused::NotServed,
            _ => Refused::NodeError,
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

/// Whether logs and bloom fit. An empty bloom says nothing on chains that leave it empty; whether this is one shows in the
/// logs.
fn holds(logs: &BlockLogs, header: &Header, attempt: u32) -> bool {
    header
        .telling_bloom()
        .is_none_or(|bloom| logs.check_bloom(bloom).is_ok() || (believes_more(attempt) && logs.covers_bloom(bloom)))
}

/// Some chains have logs that are in no bloom (Bor's state sync): after some tries more than the bloom says is believed,
/// less never.
fn believes_more(attempt: u32) -> bool {
    attempt >= 3
}
