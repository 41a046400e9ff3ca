//! The contents of one block: logs, transactions and receipts, fetched from the nodes and checked.
//!
//! [`Inquiry`] decides which node is asked next and by which calls; [`Evidence`] decides when the answers are believed.

use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use alloy_primitives::{B256, Bloom};
use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::evidence::{Amount, Belief, Blooms, Evidence, Fit, LISTED, Said, Wrong, shared};
use super::inquiry::{AttemptError, FetchWay, Inquiry, Missing, Question, Record};
use super::source::{Refused, Source, Verify};
use super::transaction::{Root, RootClaim, claims, is_filled};
use super::{Absent, BlockLogs, BlockReceipts, BlockTransactions, Header, receipts};
use crate::jsonrpc::Outcome;
use crate::telemetry::ReasonLabel;
use crate::upstream::{CallError, Complaint, UpstreamId, complaint, throttled};

/// Interval at which to look for a connected node while there is none.
const NO_NODE: Duration = Duration::from_millis(50);

/// Number of blocks below the newest requested one from which on a block's receipts count as written by all nodes.
const WRITTEN: u64 = 64;

/// Limits for receipts of one block that are requested one by one: concurrent calls, receipts, and bytes of JSON.
const PARTS_AT_ONCE: usize = 16;
const MAX_PARTS: usize = 2000;
const MAX_PARTS_BYTES: usize = 64 << 20;

/// Knowledge about the nodes from the contents of earlier blocks.
#[derive(Debug)]
pub(super) struct Experience {
    record: Mutex<Record>,
    blooms: Mutex<Blooms>,
    warned: Mutex<HashSet<(UpstreamId, Odd)>>,
    /// `true` once a header hashed to its block's hash: from then on each header must.
    hashes_hold: AtomicBool,
    /// Number of the newest block whose contents were requested.
    newest: AtomicU64,
    since: Instant,
}

impl Default for Experience {
    fn default() -> Self {
        Self {
            record: Mutex::default(),
            blooms: Mutex::default(),
            warned: Mutex::default(),
            hashes_hold: AtomicBool::new(false),
            newest: AtomicU64::new(0),
            since: Instant::now(),
        }
    }
}

/// Oddity of an upstream, logged once for each upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Odd {
    BloomTooFull,
    BloomTooEmpty,
    NoBloom,
    NoHash,
    RepeatedIndices,
}

/// Parsed contents, with their weight as evidence.
struct Heard<T> {
    content: T,
    said: Said,
    /// Bloom of the logs, if it was computed.
    bloom: Option<Bloom>,
    /// `true` if several logs have the same index.
    repeats: bool,
}

impl Source {
    /// Fetches all logs of a block, also if its bloom is empty. Gives up after `node.silence_timeout`, not counting
    /// time without any connected node.
    ///
    /// # Errors
    /// [`Absent`] if no answer is believed in time, or earlier if all nodes refuse the calls, have pruned the logs,
    /// or keep losing the connection over them.
    pub async fn logs(&self, header: &Header) -> Result<BlockLogs, Absent> {
        Ok(self.find_logs(header).await?)
    }

    /// Fetches the logs as [`Self::logs`] does, and reports if they are pruned.
    ///
    /// # Errors
    /// [`Missing`] in the cases of [`Absent`] above.
    pub(super) async fn find_logs(&self, header: &Header) -> Result<BlockLogs, Missing> {
        let ask = |question| self.ask_logs(header, question);
        self.inquire("logs", header, &FetchWay::LOGS, ask).await
    }

    /// Fetches all transactions of a block, in the same time.
    ///
    /// # Errors
    /// [`Absent`] in the cases of [`Self::logs`].
    pub async fn transactions(&self, header: &Header) -> Result<BlockTransactions, Absent> {
        if let Some(none) = BlockTransactions::none(header) {
            return Ok(none);
        }
        let ask = |question| self.ask_transactions(header, question);
        Ok(self
            .inquire("transactions", header, &FetchWay::TRANSACTIONS, ask)
            .await?)
    }

    /// Fetches all receipts of a block, in the same time.
    ///
    /// # Errors
    /// [`Absent`] in the cases of [`Self::logs`].
    pub async fn receipts(&self, header: &Header) -> Result<BlockReceipts, Absent> {
        if let Some(none) = BlockReceipts::none(header) {
            return Ok(none);
        }
        let ask = |question| self.ask_receipts(header, question);
        Ok(self.inquire("receipts", header, &FetchWay::RECEIPTS, ask).await?)
    }

    /// Asks by one way after the other, and by several in parallel once the first is late, until an answer is believed.
    async fn inquire<T, F: Future<Output = Result<Heard<T>, AttemptError>>>(
        &self,
        what: &'static str,
        header: &Header,
        ways: &'static [FetchWay],
        ask: impl Fn(Question) -> F,
    ) -> Result<T, Missing> {
        let Experience {
            record, blooms, since, ..
        } = &self.experience;
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
        let mut kept: Option<(UpstreamId, FetchWay, B256, Heard<T>)> = None;
        let (begun, mut idle) = (Instant::now(), Duration::ZERO);
        loop {
            let nodes = self.pool.by_preference(header.block.hash);
            if nodes.is_empty() && under_way.is_empty() {
                tokio::time::sleep(NO_NODE).await;
                idle += NO_NODE;
                continue;
            }
            let now = begun.elapsed().saturating_sub(idle);
            let next = {
                let mut record = record.lock();
                for node in &nodes {
                    record.connected(*node, self.pool.connects(*node));
                }
                inquiry.next(now, &nodes, &record, since.elapsed())
            };
            if let Some(question) = next {
                let asked = ask(question);
                under_way.push(async move {
                    let asked_at = Instant::now();
                    let answer = tokio::time::timeout(question.within, asked).await;
                    (
                        question,
                        asked_at.elapsed(),
                        answer.unwrap_or(Err(AttemptError::Other(Refused::CallFailed))),
                    )
                });
                continue;
            }
            if let Some(missing) = inquiry.over(now, &nodes) {
                self.not_found(what, header, missing);
                return Err(missing);
            }
            let (question, took, answer) = tokio::select! {
                Some(answered) = under_way.next(), if !under_way.is_empty() => answered,
                () = tokio::time::sleep(inquiry.wake(now).saturating_sub(now)) => continue,
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
                    if record.lock().failed(node, way, why, since.elapsed()) {
                        let (address, why) = (self.pool.address(node), why.label());
                        warn!("upstream {address}: cannot fetch {what} by {way:?} for now ({why}); using other ways");
                    }
                    continue;
                }
            };
            let said = heard.said;
            if way.is_by_index() && !record.lock().offers(node, FetchWay::ReceiptsByHash, since.elapsed()) {
                evidence.tried_receipts(node);
            }
            match evidence.hear(node, way, said, now) {
                Some(belief) => {
                    let mut record = record.lock();
                    record.works(node, way, took);
                    for (node, way) in inquiry.late(now) {
                        record.failed(node, way, AttemptError::Other(Refused::CallFailed), since.elapsed());
                    }
                    drop(record);
                    let (node, heard) = match kept {
                        Some((node, _, print, first)) if belief != Belief::Fits && print == said.print => (node, first),
                        _ => (node, heard),
                    };
                    self.learn(node, header, &heard);
                    return Ok(heard.content);
                }
                None => {
                    debug!(block = %header.block, ?way, ?said, "the {what} are not accepted yet");
                    inquiry.doubted(node, way, now);
                    match said.amount {
                        Amount::None if way == FetchWay::LogsByHash && header.telling_bloom().is_none() => {
                            inquiry.index_is_behind(node, now);
                        }
                        Amount::NoneListed => inquiry.listed(node, way, now, LISTED),
                        _ => {}
                    }
                    self.count_retry(what, Refused::Bloom.label());
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
        };
        warn!(block = %header.block, "{why} {what} of this block; clients that subscribe to them are closed with 1012");
    }

    /// Updates the knowledge about the chain's blooms from believed contents, and logs the node's oddities.
    fn learn<T>(&self, node: UpstreamId, header: &Header, heard: &Heard<T>) {
        if heard.repeats {
            self.warn_once(
                node,
                Odd::RepeatedIndices,
                "the node repeats logIndex within a block: resumes after a log are not exact, after a block they are",
            );
        }
        let Some(own) = &heard.bloom else { return };
        if header.bloom.as_deref() == Some(&Bloom::ZERO) && *own != Bloom::ZERO {
            self.experience.blooms.lock().learn(&Bloom::ZERO, own);
            self.warn_once(
                node,
                Odd::NoBloom,
                "a block with an empty logsBloom has logs: headwater cannot verify them",
            );
        }
        let Some(bloom) = header.telling_bloom() else { return };
        let reason = match self.experience.blooms.lock().learn(bloom, own) {
            None => return,
            Some(Wrong::TooMuch) => {
                self.warn_once(
                    node,
                    Odd::BloomTooFull,
                    "a block's logsBloom claims more logs than the block has: its logs are accepted when two answers \
                     agree",
                );
                "overstated"
            }
            Some(Wrong::Empty) => {
                self.warn_once(
                    node,
                    Odd::NoBloom,
                    "a block with an empty logsBloom has logs: headwater cannot verify them",
                );
                return;
            }
            Some(Wrong::TooLittle) => {
                self.warn_once(
                    node,
                    Odd::BloomTooEmpty,
                    "a block has logs that are not in its logsBloom: they are accepted when two answers agree",
                );
                "understated"
            }
        };
        let label = ReasonLabel { reason };
        self.pool.metrics().wrong_blooms.get_or_create(&label).inc();
    }

    fn warn_once(&self, node: UpstreamId, odd: Odd, text: &str) {
        if self.experience.warned.lock().insert((node, odd)) {
            warn!("upstream {}: {text}", self.pool.address(node));
        }
    }

    async fn ask_logs(&self, header: &Header, question: Question) -> Result<Heard<BlockLogs>, AttemptError> {
        let json = self.answer(header, question).await?;
        let block = header.block;
        match question.way {
            FetchWay::LogsByHash | FetchWay::LogsByNumber => {
                let logs =
                    BlockLogs::parse(block, &json, header.seen).map_err(|error| refused(header, "logs", &error))?;
                if self.level(header, question.node)? == Verify::Receipts {
                    undisputed(header, &logs)?;
                    let proof = Question {
                        way: FetchWay::ReceiptsByHash,
                        ..question
                    };
                    let receipts = self.answer(header, proof).await?;
                    receipts::verify(header, &receipts, &logs).map_err(|error| unproven(header, &error))?;
                    return Ok(Heard::proven(logs.repeats_indices(), logs));
                }
                let amount = if logs.logs.is_empty() {
                    Amount::None
                } else {
                    Amount::Some
                };
                let (mut said, bloom) = self.weigh(header, question.way, &logs, amount, || logs.print())?;
                if &json[..] == b"null" && header.bloom.as_deref() != Some(&Bloom::ZERO) {
                    // `null`: some nodes mean by it that there are no logs, others that they do not know the block.
                    said = Said {
                        print: logs.print(),
                        ..NOTHING
                    };
                }
                Ok(Heard {
                    repeats: logs.repeats_indices(),
                    content: logs,
                    said,
                    bloom,
                })
            }
            _ => {
                let read = BlockReceipts::parse(header, &json).map_err(|error| refused(header, "receipts", &error))?;
                let logs = read.logs().map_err(|error| refused(header, "receipts", &error))?;
                if self.level(header, question.node)? == Verify::Receipts {
                    undisputed(header, &logs)?;
                    receipts::verify(header, &json, &logs).map_err(|error| unproven(header, &error))?;
                    return Ok(Heard::proven(logs.repeats_indices(), logs));
                }
                let (said, bloom) = self.weigh_receipts(header, question.way, &read, &logs, || logs.print())?;
                Ok(Heard {
                    repeats: logs.repeats_indices(),
                    content: logs,
                    said,
                    bloom,
                })
            }
        }
    }

    async fn ask_receipts(&self, header: &Header, question: Question) -> Result<Heard<BlockReceipts>, AttemptError> {
        let json = self.answer(header, question).await?;
        let read = BlockReceipts::parse(header, &json).map_err(|error| refused(header, "receipts", &error))?;
        if self.level(header, question.node)? == Verify::Receipts {
            receipts::verify_root(header, &json).map_err(|error| unproven(header, &error))?;
            return Ok(Heard::proven(false, read));
        }
        let logs = read.logs().map_err(|error| refused(header, "receipts", &error))?;
        let (said, bloom) = self.weigh_receipts(header, question.way, &read, &logs, || read.print(&logs))?;
        Ok(Heard {
            content: read,
            said,
            bloom,
            repeats: false,
        })
    }

    async fn ask_transactions(
        &self,
        header: &Header,
        question: Question,
    ) -> Result<Heard<BlockTransactions>, AttemptError> {
        let json = self.answer(header, question).await?;
        let content =
            BlockTransactions::parse(header, &json).map_err(|error| refused(header, "transactions", &error))?;
        let said = match claims(header, Root::Transactions) {
            RootClaim::Some if content.transactions.is_empty() => return Err(AttemptError::Other(Refused::Malformed)),
            RootClaim::Idle if content.transactions.is_empty() => NOTHING,
            _ => Said::WHOLE,
        };
        Ok(Heard {
            content,
            said,
            bloom: None,
            repeats: false,
        })
    }

    /// Returns the level of verification that is possible: receipts prove nothing on a chain whose headers have another
    /// kind of hash (zkSync, Filecoin). One header that hashes to its block's hash shows that this is not such a chain;
    /// from then on each header must.
    fn level(&self, header: &Header, node: UpstreamId) -> Result<Verify, AttemptError> {
        let verify = self.learned.verify();
        if verify != Verify::Receipts {
            return Ok(verify);
        }
        let hold = &self.experience.hashes_hold;
        match receipts::verify_hash(&header.json) {
            Ok(()) => hold.store(true, Ordering::Relaxed),
            Err(error) if hold.load(Ordering::Relaxed) => {
                debug!(block = %header.block, "header refused: {error}");
                return Err(AttemptError::Other(Refused::Header));
            }
            Err(error) => {
                self.warn_once(
                    node,
                    Odd::NoHash,
                    &format!("history.verify = \"receipts\" is not possible, checking logs against logsBloom: {error}"),
                );
                return Ok(Verify::Bloom);
            }
        }
        Ok(verify)
    }

    /// Checks if an empty answer about a block may be premature: the block is recent and not empty, and its bloom does
    /// not show whether it has logs.
    fn may_be_early(&self, header: &Header) -> bool {
        let is_unknown = match header.bloom.as_deref() {
            None => true,
            Some(bloom) => *bloom == Bloom::ZERO && self.experience.blooms.lock().are_left_empty(),
        };
        let newest = self.experience.newest.load(Ordering::Relaxed);
        is_unknown && newest.saturating_sub(header.block.number) < WRITTEN && is_filled(header)
    }

    /// Checks logs against the header's bloom.
    fn weigh(
        &self,
        header: &Header,
        way: FetchWay,
        logs: &BlockLogs,
        amount: Amount,
        print: impl Fn() -> B256,
    ) -> Result<(Said, Option<Bloom>), AttemptError> {
        if logs.is_disputed() {
            // Logs that were requested by hash and add up to the bloom are the block's, even if they carry another
            // hash.
            let own = logs.bloom();
            if !way.is_by_hash() || header.telling_bloom() != Some(&own) {
                undisputed(header, logs)?;
            }
            let (print, covers) = (print(), shared(&own, &own));
            return Ok((
                Said {
                    fit: Fit::More,
                    amount,
                    print,
                    covers,
                },
                Some(own),
            ));
        }
        if self.learned.verify() == Verify::None {
            return Ok((Said::WHOLE, None));
        }
        let own = logs.bloom();
        let Some(bloom) = header.telling_bloom() else {
            let said = match amount {
                Amount::Some => Said::WHOLE,
                _ if !self.may_be_early(header) => Said::WHOLE,
                _ => Said {
                    fit: Fit::Less,
                    amount,
                    print: print(),
                    covers: 0,
                },
            };
            return Ok((said, Some(own)));
        };
        let said = match self.experience.blooms.lock().fit(bloom, &own) {
            Fit::Whole => Said::WHOLE,
            fit => Said {
                fit,
                amount,
                print: print(),
                covers: shared(bloom, &own),
            },
        };
        Ok((said, Some(own)))
    }

    /// Checks receipts as [`Self::weigh`] checks logs, and also against the header's claim that there are receipts.
    fn weigh_receipts(
        &self,
        header: &Header,
        way: FetchWay,
        read: &BlockReceipts,
        logs: &BlockLogs,
        print: impl Fn() -> B256,
    ) -> Result<(Said, Option<Bloom>), AttemptError> {
        let claim = claims(header, Root::Receipts);
        match claim {
            // Hedera's relay, and nodes that have not written the receipts yet.
            RootClaim::Some if read.receipts.is_empty() => return Err(AttemptError::Other(Refused::Receipts)),
            RootClaim::Idle if read.receipts.is_empty() => {
                let print = print();
                return Ok((Said { print, ..NOTHING }, Some(Bloom::ZERO)));
            }
            _ => {}
        }
        let executed = !read.receipts.is_empty() || matches!(claim, RootClaim::None | RootClaim::Disputed);
        let amount = match (logs.logs.is_empty(), executed) {
            (false, _) => Amount::Some,
            (true, true) if !read.receipts.is_empty() && self.may_be_early(header) => Amount::NoneListed,
            (true, true) => Amount::NoneExecuted,
            (true, false) => Amount::None,
        };
        self.weigh(header, way, logs, amount, print)
    }

    /// Returns the answer to one question as JSON; an answer that takes several calls is assembled.
    async fn answer(&self, header: &Header, question: Question) -> Result<Bytes, AttemptError> {
        let Question { node, way, within } = question;
        let (number, hash) = (header.block.number, header.block.hash);
        let params = match way {
            FetchWay::LogsByHash => format!(r#"[{{"blockHash":"{hash}"}}]"#),
            FetchWay::LogsByNumber => format!(r#"[{{"fromBlock":"{number:#x}","toBlock":"{number:#x}"}}]"#),
            FetchWay::ReceiptsByHash => format!(r#"["{hash}"]"#),
            FetchWay::ReceiptsByNumber => format!(r#"["{number:#x}"]"#),
            FetchWay::BlockByHash => format!(r#"["{hash}",true]"#),
            FetchWay::BlockByNumber => format!(r#"["{number:#x}",true]"#),
            FetchWay::EachReceipt => return self.each_receipt(header, node, within).await,
        };
        let json = self.call(node, way.method(), &params, within).await?;
        // An empty answer names no block: by number, it may be about a block of another branch.
        if matches!(way, FetchWay::LogsByNumber | FetchWay::ReceiptsByNumber) && matches!(&json[..], b"[]" | b"null") {
            self.is_canonical(header, node, within).await?;
        }
        Ok(json)
    }

    async fn is_canonical(&self, header: &Header, node: UpstreamId, within: Duration) -> Result<(), AttemptError> {
        #[derive(Deserialize)]
        struct Block {
            hash: B256,
        }
        let params = format!(r#"["{:#x}",false]"#, header.block.number);
        let json = self.call(node, "eth_getBlockByNumber", &params, within).await?;
        let found = serde_json::from_slice::<Block>(&json);
        if found.is_ok_and(|found| found.hash == header.block.hash) {
            Ok(())
        } else {
            Err(AttemptError::Other(Refused::Malformed))
        }
    }

    /// Fetches a block's receipts one by one, by its transactions' hashes; returns a JSON array.
    async fn each_receipt(&self, header: &Header, node: UpstreamId, within: Duration) -> Result<Bytes, AttemptError> {
        #[derive(Deserialize)]
        struct Block<'a> {
            hash: B256,
            #[serde(borrow)]
            transactions: Vec<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Whole {
            hash: B256,
        }
        let malformed = |_| AttemptError::Other(Refused::Malformed);
        let params = format!(r#"["{}",false]"#, header.block.hash);
        let json = self.call(node, "eth_getBlockByHash", &params, within).await?;
        let block: Block<'_> = serde_json::from_slice(&json).map_err(malformed)?;
        if block.hash != header.block.hash || block.transactions.len() > MAX_PARTS {
            return Err(AttemptError::Other(Refused::Malformed));
        }
        let hash_of = |item: &&RawValue| {
            let hash = serde_json::from_str::<B256>(item.get());
            hash.or_else(|_| serde_json::from_str::<Whole>(item.get()).map(|whole| whole.hash))
        };
        let hashes = block.transactions.iter().map(hash_of).collect::<Result<Vec<B256>, _>>();
        let method = FetchWay::EachReceipt.method();
        let one = |hash| async move { self.call(node, method, &format!(r#"["{hash}"]"#), within).await };
        let parts = stream::iter(hashes.map_err(malformed)?)
            .map(one)
            .buffered(PARTS_AT_ONCE);
        let join = |mut all: Vec<u8>, part: Bytes| async move {
            if &part[..] == b"null" || all.len() + part.len() > MAX_PARTS_BYTES {
                return Err(AttemptError::Other(Refused::NodeError));
            }
            all.push(if all.is_empty() { b'[' } else { b',' });
            all.extend_from_slice(&part);
            Ok(all)
        };
        let mut all = parts.try_fold(Vec::new(), join).await?;
        if all.is_empty() {
            all.push(b'[');
        }
        all.push(b']');
        Ok(all.into())
    }

    async fn call(
        &self,
        node: UpstreamId,
        method: &str,
        params: &str,
        within: Duration,
    ) -> Result<Bytes, AttemptError> {
        let answer = self.pool.ask(node, method, params, within).await;
        if throttled(&answer).is_some() {
            return Err(AttemptError::Throttled);
        }
        Err(match answer {
            Ok(Outcome::Result(json)) => return Ok(json),
            Ok(error) => match complaint(&error) {
                Complaint::Throttled => AttemptError::Throttled,
                Complaint::Unsupported => AttemptError::NotServed,
                Complaint::Pruned => AttemptError::Pruned,
                Complaint::Other => AttemptError::Other(Refused::NodeError),
            },
            Err(CallError::Unavailable) => AttemptError::Unavailable,
            Err(CallError::TooLong) => AttemptError::TooLong,
            // Over HTTP a lost call breaks no other call.
            Err(CallError::Lost) if !self.pool.is_http(node) => AttemptError::Broken,
            Err(_) => AttemptError::Other(Refused::CallFailed),
        })
    }
}

impl<T> Heard<T> {
    fn proven(repeats: bool, content: T) -> Self {
        Self {
            content,
            said: Said::WHOLE,
            bloom: None,
            repeats,
        }
    }
}

/// An empty answer although the header claims that there is something.
const NOTHING: Said = Said {
    fit: Fit::Less,
    amount: Amount::None,
    print: B256::ZERO,
    covers: 0,
};

fn refused(header: &Header, what: &str, error: &dyn std::error::Error) -> AttemptError {
    debug!(block = %header.block, "{what} refused: {error}");
    AttemptError::Other(Refused::Malformed)
}

fn undisputed(header: &Header, logs: &BlockLogs) -> Result<(), AttemptError> {
    if logs.is_disputed() {
        debug!(block = %header.block, "logs refused: one names another block, or is marked removed");
        return Err(AttemptError::Other(Refused::Malformed));
    }
    Ok(())
}

fn unproven(header: &Header, error: &dyn std::error::Error) -> AttemptError {
    debug!(block = %header.block, "receipts refused: {error}");
    AttemptError::Other(Refused::Receipts)
}
