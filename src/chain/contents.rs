//! The contents of one block: logs, transactions and receipts, fetched from the nodes and checked.
//!
//! [`Inquiry`] decides which node is asked next and by which calls; [`Evidence`] decides when the answers are believed.

mod answer;
mod parsed;

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use alloy_primitives::{B256, Bloom};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};

use self::parsed::ParsedContents;
use super::bloom_bits::RememberedBits;
use super::evidence::{AcceptReason, Amount, Blooms, Evidence, LISTED, Wrong};
use super::inquiry::{AttemptError, FetchWay, Inquiry, Missing, Question, Record};
use super::source::{BadAnswer, Seek, Source};
use super::{Absent, BlockLogs, BlockReceipts, BlockTransactions, Content, ContentKind, Header};
use crate::telemetry::ReasonLabel;
use crate::upstream::UpstreamId;

/// Interval at which to look for a connected node while there is none.
const NO_NODE: Duration = Duration::from_millis(50);

/// Knowledge about the nodes from the contents of earlier blocks.
#[derive(Debug)]
pub(super) struct Experience {
    record: Mutex<Record>,
    blooms: Mutex<Blooms>,
    bloom_bits: Mutex<RememberedBits>,
    warned: Mutex<HashSet<(UpstreamId, Oddity)>>,
    /// `true` once a header hashed to its block's hash: from then on each header must.
    hashes_hold: AtomicBool,
    /// Number of the newest block whose contents were requested.
    newest: AtomicU64,
    /// Start of the clock by which `record` is kept.
    started: Instant,
}

impl Default for Experience {
    fn default() -> Self {
        Self {
            record: Mutex::default(),
            blooms: Mutex::default(),
            bloom_bits: Mutex::default(),
            warned: Mutex::default(),
            hashes_hold: AtomicBool::new(false),
            newest: AtomicU64::new(0),
            started: Instant::now(),
        }
    }
}

/// Handling of time in which no node answers, and no new block is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// The time does not count, up to a bound: the chain stands still for everybody.
    Waits,
    /// The time counts: the caller tries again by itself.
    Ends,
}

/// Oddity of an upstream, logged once for each upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Oddity {
    BloomTooFull,
    BloomTooEmpty,
    NoBloom,
    NoHash,
    RepeatedIndices,
}

impl Source {
    /// Fetches all logs of a block, also if its bloom is empty. Gives up after `node.silence_timeout`, not counting
    /// time without any connected node, nor, if it is to wait, time without any answer while no new block is published.
    ///
    /// # Errors
    /// [`Absent`] if no answer is believed in time, or earlier if all nodes refuse the calls, have pruned the logs,
    /// or keep losing the connection over them.
    pub async fn logs(&self, header: &Header, silence: Silence) -> Result<BlockLogs, Absent> {
        Ok(self.find_logs(header, silence).await?)
    }

    /// Fetches the logs as [`Self::logs`] does, and reports if they are pruned.
    ///
    /// # Errors
    /// [`Missing`] in the cases of [`Absent`] above.
    pub(super) async fn find_logs(&self, header: &Header, silence: Silence) -> Result<BlockLogs, Missing> {
        let ask = |question| self.ask_logs(header, question);
        self.inquire("logs", (header, silence), &FetchWay::LOGS, ask).await
    }

    /// Fetches all transactions of a block, in the same time.
    ///
    /// # Errors
    /// [`Absent`] in the cases of [`Self::logs`].
    pub async fn transactions(&self, header: &Header, silence: Silence) -> Result<BlockTransactions, Absent> {
        if let Some(none) = BlockTransactions::none(header) {
            return Ok(none);
        }
        let ask = |question| self.ask_transactions(header, question);
        Ok(self
            .inquire("transactions", (header, silence), &FetchWay::TRANSACTIONS, ask)
            .await?)
    }

    /// Fetches all receipts of a block, in the same time.
    ///
    /// # Errors
    /// [`Absent`] in the cases of [`Self::logs`].
    pub async fn receipts(&self, header: &Header, silence: Silence) -> Result<BlockReceipts, Absent> {
        if let Some(none) = BlockReceipts::none(header) {
            return Ok(none);
        }
        let ask = |question| self.ask_receipts(header, question);
        Ok(self
            .inquire("receipts", (header, silence), &FetchWay::RECEIPTS, ask)
            .await?)
    }

    /// Fetches contents of this kind.
    ///
    /// # Errors
    /// [`Absent`] in the cases of [`Self::logs`].
    pub(super) async fn content(
        &self,
        kind: ContentKind,
        header: &Header,
        silence: Silence,
    ) -> Result<Content, Absent> {
        Ok(match kind {
            ContentKind::Logs => Content::Logs(Arc::new(self.logs(header, silence).await?)),
            ContentKind::Transactions => Content::Transactions(Arc::new(self.transactions(header, silence).await?)),
            ContentKind::Receipts => Content::Receipts(Arc::new(self.receipts(header, silence).await?)),
        })
    }

    /// Asks by one way after the other, and by several in parallel once the first is late, until an answer is believed.
    async fn inquire<T, F: Future<Output = Result<ParsedContents<T>, AttemptError>>>(
        &self,
        what: &'static str,
        (header, silence): (&Header, Silence),
        ways: &'static [FetchWay],
        ask: impl Fn(Question) -> F,
    ) -> Result<T, Missing> {
        let Experience { record, blooms, .. } = &self.experience;
        let clock = || self.experience.started.elapsed();
        let budget = self.pool.silence_timeout();
        let (two, habit) = {
            let blooms = blooms.lock();
            (blooms.need_two(), blooms.claim_too_much())
        };
        self.experience.newest.fetch_max(header.block.number, Ordering::Relaxed);
        let mut inquiry = Inquiry::new(ways, budget, two);
        let mut evidence = Evidence::new(budget, habit);
        let mut under_way = FuturesUnordered::new();
        // The first doubted answer; replaced when the same node changes its answer by the same way. If an equal answer
        // confirms it, this one is returned: `eth_getLogs` rather than the receipts that confirm it.
        let mut kept: Option<(UpstreamId, FetchWay, B256, ParsedContents<T>)> = None;
        let (begun, mut idle) = (Instant::now(), Duration::ZERO);
        // Published head when the nodes fell silent, and the time since when that was not counted yet.
        let mut stopped: Option<(Option<(u64, B256)>, Duration)> = None;
        loop {
            // Time without a node that can be asked is not the nodes' time: they would be taken for nodes without logs.
            let connected = self.pool.by_preference(header.block.hash);
            let open = |node: &UpstreamId| self.pool.is_open(*node);
            let nodes: Vec<UpstreamId> = connected.iter().copied().filter(open).collect();
            if nodes.is_empty() && under_way.is_empty() {
                let paused = Instant::now();
                match connected.is_empty() {
                    true => tokio::time::sleep(NO_NODE).await,
                    false => drop(tokio::time::timeout(NO_NODE, self.pool.opened(&connected)).await),
                }
                idle += paused.elapsed();
                continue;
            }
            let now = begun.elapsed().saturating_sub(idle);
            // Nodes that answer nothing, and announce no block either, are cut off from the chain: gateways without a
            // node, or frozen ones. That is not the nodes' time. With new blocks it is: then they withhold the contents.
            let is_silent = silence == Silence::Waits && inquiry.is_unanswered(&nodes);
            let head = self.pool.published_head();
            match stopped.filter(|_| is_silent) {
                Some((at, counted)) if at == head => {
                    inquiry.extend(now.saturating_sub(counted));
                    stopped = Some((head, now));
                }
                None if is_silent => {
                    if stopped.is_none() {
                        let block = header.block;
                        warn!(%block, "no upstream answers the calls for the {what} of this block; waiting while no new block comes");
                    }
                    stopped = Some((head, now));
                }
                Some(_) => {}
                None => stopped = None,
            }
            let next = {
                let mut record = record.lock();
                if record.nodes() > self.pool.count() {
                    record.retain(|node| self.pool.has(node));
                }
                for node in &nodes {
                    record.connected(*node, self.pool.connects(*node));
                }
                inquiry.next(now, &nodes, &record, clock())
            };
            if let Some(question) = next {
                let asked = ask(question);
                under_way.push(async move {
                    let asked_at = Instant::now();
                    let answer = tokio::time::timeout(question.within, asked).await;
                    (
                        question,
                        asked_at.elapsed(),
                        answer.unwrap_or(Err(AttemptError::Other(BadAnswer::CallFailed))),
                    )
                });
                continue;
            }
            if let Some(missing) = inquiry.over(now, &nodes) {
                let missing = match missing {
                    Missing::NotServed if self.is_forgotten(header, nodes.len()).await => Missing::UnknownBlock,
                    missing => missing,
                };
                self.not_found(what, header, missing);
                return Err(missing);
            }
            let (wait, waiting) = (inquiry.wake(now).saturating_sub(now), Instant::now());
            let answered = tokio::select! {
                answered = under_way.next(), if !under_way.is_empty() => answered,
                () = tokio::time::sleep(wait) => None,
            };
            // Beyond the wait this process did not run: it was stopped, or its machine. The nodes may have answered.
            idle += waiting.elapsed().saturating_sub(wait);
            let Some((question, took, answer)) = answered else {
                continue;
            };
            let Question { node, way, .. } = question;
            let now = begun.elapsed().saturating_sub(idle);
            let heard = match answer {
                Ok(heard) => heard,
                Err(why) => {
                    inquiry.failed(node, way, why, now);
                    if matches!(way, FetchWay::ReceiptsByHash | FetchWay::EachReceipt) {
                        evidence.tried_receipts(node);
                    }
                    self.count_retry(what, why.label());
                    // Without an answer: counted below, once the node has answered in another way.
                    if !why.is_no_failure() && record.lock().failed(node, way, why, clock()) {
                        let (address, why) = (self.pool.address(node), why.label());
                        warn!("upstream {address}: cannot fetch {what} by {way:?} for now ({why}); using other ways");
                    }
                    continue;
                }
            };
            let said = heard.said;
            if way.is_by_index() && !record.lock().offers(node, FetchWay::ReceiptsByHash, clock()) {
                evidence.tried_receipts(node);
            }
            match evidence.add_answer(node, way, said, now) {
                Some(belief) => {
                    let mut record = record.lock();
                    record.works(node, way, took);
                    for (node, way) in inquiry.late(node, now) {
                        record.failed(node, way, AttemptError::Other(BadAnswer::CallFailed), clock());
                    }
                    drop(record);
                    let (node, heard) = match kept {
                        Some((node, _, print, first)) if belief != AcceptReason::Fits && print == said.print => {
                            (node, first)
                        }
                        _ => (node, heard),
                    };
                    self.learn(node, header, &heard);
                    return Ok(heard.content);
                }
                None => {
                    debug!(block = %header.block, ?way, ?said, "the {what} are not accepted yet");
                    inquiry.doubted(node, way, now);
                    match said.amount {
                        Amount::None if way == FetchWay::LogsByHash && header.usable_bloom().is_none() => {
                            inquiry.index_is_behind(node, now);
                        }
                        Amount::NoneListed => inquiry.listed(node, way, now, LISTED),
                        _ => {}
                    }
                    self.count_retry(what, BadAnswer::Bloom.label());
                    if kept
                        .as_ref()
                        .is_none_or(|(own, of, print, _)| *print != said.print && (*own, *of) == (node, way))
                    {
                        kept = Some((node, way, said.print, heard));
                    }
                }
            }
        }
    }

    /// Checks if no node knows the block, though one answers for it: the chain has left the block, which says nothing about
    /// the contents of others. An error is evidence of nothing.
    async fn is_forgotten(&self, header: &Header, nodes: usize) -> bool {
        let look = async {
            let mut is_denied = false;
            for attempt in (0..).take(nodes) {
                match self.seek(Seek::Hash(header.block.hash), attempt).await {
                    Ok(Some(_)) => return false,
                    Ok(None) => is_denied = true,
                    Err(_) => {}
                }
            }
            is_denied
        };
        let limit = self.pool.silence_timeout();
        tokio::time::timeout(limit, look).await.unwrap_or(false)
    }

    fn count_retry(&self, what: &str, reason: &'static str) {
        if what == "logs" {
            let label = ReasonLabel { reason };
            self.pool.metrics().log_retries.get_or_create(&label).inc();
        }
    }

    fn not_found(&self, what: &str, header: &Header, missing: Missing) {
        let why = match missing {
            Missing::NotServed => "no node has the",
            Missing::Pruned => "no node still has the",
            Missing::Throttled => "the nodes' rate limits prevent fetching the",
            Missing::UnknownBlock => "no node knows the block any more, so none has the",
            Missing::Unanswered => "no node answers the calls for the",
        };
        warn!(block = %header.block, "{why} {what} of this block; clients that subscribe to them are closed with 1012");
    }

    /// Updates the knowledge about the chain's blooms from believed contents, and logs the node's oddities.
    fn learn<T>(&self, node: UpstreamId, header: &Header, heard: &ParsedContents<T>) {
        if heard.repeats {
            self.warn_once(
                node,
                Oddity::RepeatedIndices,
                "the node repeats logIndex within a block: resumes after a log are not exact, after a block they are",
            );
        }
        let Some(own) = &heard.bloom else { return };
        if header.bloom.as_deref() == Some(&Bloom::ZERO) && *own != Bloom::ZERO {
            self.experience.blooms.lock().learn(&Bloom::ZERO, own);
            self.warn_once(
                node,
                Oddity::NoBloom,
                "a block with an empty logsBloom has logs: headwater cannot verify them",
            );
        }
        let Some(bloom) = header.usable_bloom() else { return };
        let reason = match self.experience.blooms.lock().learn(bloom, own) {
            None => return,
            Some(Wrong::TooMuch) => {
                self.warn_once(
                    node,
                    Oddity::BloomTooFull,
                    "a block's logsBloom claims more logs than the block has: its logs are accepted when two answers \
                     agree",
                );
                "overstated"
            }
            Some(Wrong::Empty) => {
                self.warn_once(
                    node,
                    Oddity::NoBloom,
                    "a block with an empty logsBloom has logs: headwater cannot verify them",
                );
                return;
            }
            Some(Wrong::TooLittle) => {
                self.warn_once(
                    node,
                    Oddity::BloomTooEmpty,
                    "a block has logs that are not in its logsBloom: they are accepted when two answers agree",
                );
                "understated"
            }
        };
        let label = ReasonLabel { reason };
        self.pool.metrics().wrong_blooms.get_or_create(&label).inc();
    }

    fn warn_once(&self, node: UpstreamId, odd: Oddity, text: &str) {
        let mut warned = self.experience.warned.lock();
        warned.retain(|(node, _)| self.pool.has(*node));
        if warned.insert((node, odd)) {
            warn!("upstream {}: {text}", self.pool.address(node));
        }
    }
}
