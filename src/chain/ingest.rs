//! The actor that turns sightings into one history with its logs, and publishes it in order.
//!
//! Sightings are taken at once, whatever else is going on: what has to be fetched (a parent, the logs of a block) is
//! fetched beside. The pipeline holds what is still to be published, oldest first; a block leaves it when its logs are
//! there, and a block that is dropped before its head was published leaves no trace.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{B256, Bloom};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{BlockLogs, BlockRef, Header, HeaderShape, Step, Tracker};
use crate::jsonrpc::Outcome;
use crate::telemetry::Metrics;
use crate::upstream::{CallError, Pool, Sighting, UpstreamId};

/// First and longest wait before a fetch that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Refused answers for the logs of one block after which it is said aloud (about six seconds), and after which it is
/// given up (about a minute).
const LOG_WARN: u32 = 10;
const LOG_GIVE_UP: u32 = 36;

/// Blocks that may wait for their logs even where less history is kept; twice as many end in a loss of continuity.
const MIN_PIPELINE: usize = 64;

/// Logs fetched at the same time: after an outage many blocks wait, and one round trip each is too slow.
const MAX_LOG_FETCHES: usize = 8;

/// What happened to the canonical chain, in the order of delivery (E1 to E3).
#[derive(Debug)]
pub enum ChainEvent {
    /// A block was adopted; its logs follow before the next head.
    Head(Header),
    /// The logs of the block whose head came last; never empty.
    Logs(Arc<BlockLogs>),
    /// A block was dropped whose logs had been published.
    Removed(Arc<BlockLogs>),
    /// Blocks are missing that cannot be had any more.
    ContinuityLost,
}

/// The newest block that was published, for whoever wants to know how fresh the stream is.
#[derive(Debug, Default)]
pub struct Tip(Mutex<Option<(BlockRef, Instant)>>);

impl Tip {
    /// The newest block and when it arrived.
    #[must_use]
    pub fn get(&self) -> Option<(BlockRef, Instant)> {
        *self.0.lock()
    }
}

/// Settings of the history.
#[derive(Clone, Copy, Debug)]
pub struct HistorySettings {
    /// Blocks kept with their logs; also how far back a gap or a reorg may reach.
    pub blocks: usize,
    /// Whether logs are held against the header's bloom before they are delivered (E7).
    pub verify_bloom: bool,
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

#[derive(Debug)]
enum Work {
    Adopt {
        header: Header,
        head_published: bool,
        logs: LogsState,
    },
    Drop(Arc<BlockLogs>),
    ContinuityLost,
}

#[derive(Debug)]
enum LogsState {
    Wanted,
    Fetching,
    Ready(Arc<BlockLogs>),
    /// The block was dropped before its logs were published: there is nothing to tell any more.
    Moot,
}

/// What a fetch brought.
#[derive(Debug)]
enum Fetched {
    /// A block on a walk, or nothing yet after so many tries.
    Parent(B256, Option<Bytes>, u32),
    /// A block's logs, or why not after so many tries.
    Logs(BlockRef, Result<BlockLogs, &'static str>, u32),
    /// The node's tip, asked for because it announced a block that lies behind ours.
    TipBehind(BlockRef, Option<Bytes>),
    /// The tip of the upstream that took over.
    Latest(Option<Bytes>),
}

type Fetch = Pin<Box<dyn Future<Output = Fetched> + Send>>;

/// What the actor waits for.
enum Input<'a> {
    Sighting(UpstreamId, Sighting),
    Fetched(Fetched),
    Room(mpsc::Permit<'a, ChainEvent>),
}

/// The actor.
pub struct Ingest {
    pool: Arc<Pool>,
    sightings: mpsc::Receiver<(UpstreamId, Sighting)>,
    out: mpsc::Sender<ChainEvent>,
    history: History,
    fetches: FuturesUnordered<Fetch>,
}

/// Everything that is decided, and nothing that waits.
struct History {
    pool: Arc<Pool>,
    settings: HistorySettings,
    metrics: Arc<Metrics>,
    tip: Arc<Tip>,
    tracker: Tracker,
    shape: HeaderShape,
    bloom: BloomTrust,
    pipeline: VecDeque<Work>,
    /// Logs that were published, by block, for the day when the block is dropped. As many blocks as the tracker keeps.
    published: HashMap<B256, Arc<BlockLogs>>,
    published_order: VecDeque<B256>,
    log_fetches: usize,
    walking: Option<B256>,
    /// The upstream is new or returned: it may be behind for a while, which is no reorg.
    catching_up: bool,
    /// Fetches decided on, not yet started.
    wanted: Vec<Fetch>,
}

impl Ingest {
    /// An actor that reads what upstreams see and publishes what that means.
    #[must_use]
    pub fn new(
        pool: Arc<Pool>,
        sightings: mpsc::Receiver<(UpstreamId, Sighting)>,
        out: mpsc::Sender<ChainEvent>,
        settings: HistorySettings,
        metrics: Arc<Metrics>,
        tip: Arc<Tip>,
    ) -> Self {
        let history = History {
            pool: pool.clone(),
            settings,
            metrics,
            tip,
            tracker: Tracker::new(settings.blocks),
            shape: HeaderShape::default(),
            bloom: BloomTrust::Unknown,
            pipeline: VecDeque::new(),
            published: HashMap::new(),
            published_order: VecDeque::new(),
            log_fetches: 0,
            walking: None,
            catching_up: true,
            wanted: Vec::new(),
        };
        Self {
            pool,
            sightings,
            out,
            history,
            fetches: FuturesUnordered::new(),
        }
    }

    /// Runs until the upstreams or the readers are gone.
    pub async fn run(mut self) {
        loop {
            self.fetches.extend(self.history.wanted.drain(..));
            let input = tokio::select! {
                // Publishing first: what is ready should not wait for what comes in.
                biased;
                room = self.out.reserve(), if self.history.has_news() => match room {
                    Ok(permit) => Input::Room(permit),
                    Err(_) => return,
                },
                Some(fetched) = self.fetches.next() => Input::Fetched(fetched),
                sighting = self.sightings.recv() => match sighting {
                    Some((from, sighting)) => Input::Sighting(from, sighting),
                    None => return,
                },
            };
            match input {
                Input::Room(permit) => {
                    if let Some(event) = self.history.next_event() {
                        permit.send(event);
                    }
                }
                Input::Fetched(fetched) => self.history.fetched(fetched),
                Input::Sighting(from, Sighting::Lost) => {
                    let was_active = self.pool.active() == Some(from);
                    let next = self.pool.fail_over(from);
                    self.history.lost(was_active, next);
                }
                // Only the upstream in use is believed; the others stand by.
                Input::Sighting(from, sighting) if self.pool.active() == Some(from) => self.history.seen(sighting),
                Input::Sighting(..) => {}
            }
        }
    }
}

impl History {
    fn seen(&mut self, sighting: Sighting) {
        let now = Instant::now();
        match sighting {
            Sighting::Announced(json) => {
                if self.catching_up || !self.shape.is_known() {
                    self.shape.learn(&json);
                }
                match Header::parse(json, now) {
                    Ok(header) => self.announced(header),
                    Err(error) => warn!("an announced head was refused: {error}"),
                }
            }
            Sighting::Latest(json) => self.latest(&json),
            Sighting::Lost => {}
        }
    }

    fn latest(&mut self, json: &[u8]) {
        match self.shape.header_of(json, Instant::now()) {
            Ok(header) => self.announced(header),
            Err(error) => warn!("the node's latest block was refused: {error}"),
        }
    }

    fn lost(&mut self, was_active: bool, next: Option<UpstreamId>) {
        if !was_active {
            return;
        }
        self.catching_up = true;
        if next.is_some() {
            let pool = self.pool.clone();
            self.wanted.push(Box::pin(async move {
                Fetched::Latest(found(
                    pool.call_ours("eth_getBlockByNumber", r#"["latest",false]"#).await,
                ))
            }));
        }
    }

    fn announced(&mut self, header: Header) {
        if self.catching_up
            && self
                .tracker
                .oldest()
                .is_some_and(|oldest| header.block.number < oldest.number)
        {
            debug!(block = %header.block, "the upstream is far behind what was published; waiting for it");
            return;
        }
        let block = header.block;
        let step = self.tracker.announce(header);
        self.step(step);
        if self.tracker.tip().is_some_and(|tip| tip.block == block) {
            // Level with what was published: from here on a step back is one.
            self.catching_up = false;
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Nothing => {}
            Step::Need(hash) => self.walk_to(hash, 0),
            Step::Extend(new) => {
                self.adopt(new);
            }
            Step::Reorg { dropped, adopted } => {
                info!(dropped = dropped.len(), adopted = adopted.len(), "reorg");
                self.metrics.reorgs.inc();
                self.metrics.reorged_blocks.inc_by(dropped.len() as u64);
                self.drop_blocks(&dropped);
                self.adopt(adopted);
            }
            Step::Behind(block) if self.catching_up => {
                debug!(%block, "the upstream is behind what was published; waiting for it");
            }
            Step::Behind(block) => {
                let pool = self.pool.clone();
                self.wanted.push(Box::pin(async move {
                    let tip = pool.call_ours("eth_getBlockByNumber", r#"["latest",false]"#).await;
                    Fetched::TipBehind(block, found(tip))
                }));
            }
            Step::Reset(head) => {
                warn!(head = %head.block, "continuity lost: more blocks are missing than history.blocks holds");
                self.metrics.continuity_lost.inc();
                self.pipeline.clear();
                self.published.clear();
                self.published_order.clear();
                self.pipeline.push_back(Work::ContinuityLost);
                self.adopt(vec![head]);
            }
        }
        if self.tracker.needs().is_none() {
            self.walking = None;
        }
    }

    fn adopt(&mut self, headers: Vec<Header>) {
        self.catching_up = false;
        self.metrics
            .backfilled_blocks
            .inc_by(headers.len().saturating_sub(1) as u64);
        for header in headers {
            self.pipeline.push_back(Work::Adopt {
                header,
                head_published: false,
                logs: LogsState::Wanted,
            });
        }
        // A node that announces heads but serves no logs must not fill the memory.
        if self.pipeline.len() > 2 * self.settings.blocks.max(MIN_PIPELINE) {
            warn!(
                blocks = self.pipeline.len(),
                "too many blocks wait for their logs; subscribers are closed with 1012"
            );
            self.pipeline.clear();
            self.lose_continuity();
        }
        self.fetch_logs();
    }

    /// `dropped` is newest first. A block that is still in the pipeline has no published logs.
    fn drop_blocks(&mut self, dropped: &[BlockRef]) {
        for block in dropped {
            let waiting = self
                .pipeline
                .iter_mut()
                .rposition(|work| matches!(work, Work::Adopt { header, .. } if header.block == *block));
            if let Some(at) = waiting {
                match &mut self.pipeline[at] {
                    Work::Adopt {
                        head_published: true,
                        logs,
                        ..
                    } => *logs = LogsState::Moot,
                    _ => drop(self.pipeline.remove(at)),
                }
            }
        }
        // Oldest first, as geth and reth announce removals (E2).
        for block in dropped.iter().rev() {
            if let Some(logs) = self.published.remove(&block.hash) {
                self.pipeline.push_back(Work::Drop(logs));
            }
        }
    }

    /// Asks for the logs of the oldest blocks that have none yet.
    fn fetch_logs(&mut self) {
        for work in &mut self.pipeline {
            if let Work::Adopt {
                header,
                logs: logs @ LogsState::Wanted,
                ..
            } = work
            {
                if *header.bloom == Bloom::ZERO && self.bloom == BloomTrust::Honest {
                    *logs = LogsState::Ready(Arc::new(BlockLogs::empty(header.block, header.seen)));
                } else if self.log_fetches < MAX_LOG_FETCHES {
                    *logs = LogsState::Fetching;
                    self.log_fetches += 1;
                    let verify = self.settings.verify_bloom;
                    self.wanted
                        .push(Box::pin(logs_of(self.pool.clone(), header.clone(), verify, 0)));
                }
            }
        }
    }

    fn walk_to(&mut self, hash: B256, attempt: u32) {
        if self.walking == Some(hash) && attempt == 0 {
            return;
        }
        self.walking = Some(hash);
        let pool = self.pool.clone();
        self.wanted.push(Box::pin(async move {
            tokio::time::sleep(wait_before(attempt)).await;
            let block = pool
                .call_ours("eth_getBlockByHash", &format!(r#"["{hash}",false]"#))
                .await;
            Fetched::Parent(hash, found(block), attempt + 1)
        }));
    }

    fn fetched(&mut self, fetched: Fetched) {
        match fetched {
            Fetched::Parent(hash, block, attempts) => {
                let needed = self.tracker.needs() == Some(hash);
                match block.map(|json| self.shape.header_of(&json, Instant::now())) {
                    // One that is not needed any more is put aside: the walk may come back to it.
                    Some(Ok(header)) if header.block.hash == hash => {
                        let step = self.tracker.supply(header);
                        self.step(step);
                    }
                    // A node may announce a block before it serves it; while the hash is needed it is asked for.
                    _ if needed => self.walk_to(hash, attempts),
                    _ => {}
                }
            }
            Fetched::Logs(block, result, attempts) => self.logs_fetched(block, result, attempts),
            Fetched::TipBehind(block, tip) => {
                let header = tip.and_then(|json| self.shape.header_of(&json, Instant::now()).ok());
                match header {
                    Some(header) if header.block == block => {
                        let step = self.tracker.rewind(block.hash);
                        self.step(step);
                    }
                    Some(header) => self.announced(header),
                    None => {}
                }
            }
            Fetched::Latest(Some(json)) => self.latest(&json),
            Fetched::Latest(None) => {}
        }
    }

    fn logs_fetched(&mut self, block: BlockRef, result: Result<BlockLogs, &'static str>, attempts: u32) {
        let waiting = self.pipeline.iter_mut().find_map(|work| match work {
            Work::Adopt { header, logs, .. } if header.block == block && matches!(logs, LogsState::Fetching) => {
                Some((&*header, logs))
            }
            _ => None,
        });
        let Some((header, logs)) = waiting else {
            self.log_fetches -= 1;
            return self.fetch_logs();
        };
        match result {
            Ok(found) => {
                if *header.bloom != Bloom::ZERO {
                    self.bloom = BloomTrust::Honest;
                } else if !found.logs.is_empty() && self.bloom == BloomTrust::Unknown {
                    warn!(
                        "this chain leaves logsBloom empty: logs are asked for at every block and cannot be verified"
                    );
                    self.bloom = BloomTrust::Empty;
                }
                *logs = LogsState::Ready(Arc::new(found));
                self.log_fetches -= 1;
                self.fetch_logs();
            }
            Err(reason) => {
                self.metrics
                    .log_retries
                    .get_or_create(&crate::telemetry::ReasonLabel { reason })
                    .inc();
                // Without an answer there is nothing to give up on: the node may come back.
                let attempts = if reason == "call_failed" {
                    attempts.min(LOG_WARN - 1)
                } else {
                    attempts
                };
                if attempts == LOG_WARN {
                    warn!(%block, reason, "the node's logs of this block do not hold; its events wait");
                }
                if attempts < LOG_GIVE_UP {
                    let verify = self.settings.verify_bloom;
                    self.wanted
                        .push(Box::pin(logs_of(self.pool.clone(), header.clone(), verify, attempts)));
                    return;
                }
                warn!(%block, reason, "the node has no logs of this block that hold; subscribers are closed with 1012");
                *logs = LogsState::Moot;
                self.lose_continuity();
                self.log_fetches -= 1;
                self.fetch_logs();
            }
        }
    }

    /// Tells those who listen to the chain that it has a hole here, behind what was published before.
    fn lose_continuity(&mut self) {
        self.metrics.continuity_lost.inc();
        let at = self.pipeline.iter().position(|work| {
            matches!(
                work,
                Work::Adopt {
                    logs: LogsState::Moot,
                    ..
                }
            )
        });
        self.pipeline.insert(at.map_or(0, |at| at + 1), Work::ContinuityLost);
    }

    fn has_news(&self) -> bool {
        match self.pipeline.front() {
            None => false,
            Some(Work::Adopt {
                head_published: true,
                logs: LogsState::Wanted | LogsState::Fetching,
                ..
            }) => false,
            Some(_) => true,
        }
    }

    /// The next event in order; `None` when what stood first had nothing to tell.
    fn next_event(&mut self) -> Option<ChainEvent> {
        match self.pipeline.front_mut()? {
            Work::Adopt {
                header, head_published, ..
            } if !*head_published => {
                *head_published = true;
                self.metrics.head_number.set(header.block.number as i64);
                *self.tip.0.lock() = Some((header.block, header.seen));
                Some(ChainEvent::Head(header.clone()))
            }
            Work::Adopt {
                logs: LogsState::Wanted | LogsState::Fetching,
                ..
            } => None,
            _ => match self.pipeline.pop_front()? {
                Work::Adopt {
                    logs: LogsState::Ready(logs),
                    ..
                } if !logs.logs.is_empty() => {
                    self.remember(logs.clone());
                    Some(ChainEvent::Logs(logs))
                }
                Work::Adopt { .. } => None,
                Work::Drop(logs) => Some(ChainEvent::Removed(logs)),
                Work::ContinuityLost => Some(ChainEvent::ContinuityLost),
            },
        }
    }

    fn remember(&mut self, logs: Arc<BlockLogs>) {
        let hash = logs.block.hash;
        self.published.insert(hash, logs);
        self.published_order.push_back(hash);
        // The order may name blocks that were dropped since; they make the memory shorter than the limit, not longer.
        while self.published_order.len() > self.settings.blocks
            && let Some(oldest) = self.published_order.pop_front()
        {
            if !self.published_order.contains(&oldest) {
                self.published.remove(&oldest);
            }
        }
    }
}

fn wait_before(attempt: u32) -> Duration {
    match attempt {
        0 => Duration::ZERO,
        n => RETRY.0.saturating_mul(1 << n.min(10)).min(RETRY.1),
    }
}

/// The block that a call found; `null`, an error and a lost connection all mean "not yet".
fn found(answer: Result<Outcome, CallError>) -> Option<Bytes> {
    match answer {
        Ok(Outcome::Result(json)) if &json[..] != b"null" => Some(json),
        _ => None,
    }
}

async fn logs_of(pool: Arc<Pool>, header: Header, verify: bool, attempt: u32) -> Fetched {
    tokio::time::sleep(wait_before(attempt)).await;
    let block = header.block;
    let params = format!(r#"[{{"blockHash":"{}"}}]"#, block.hash);
    let result = match pool.call_ours("eth_getLogs", &params).await {
        Ok(Outcome::Result(json)) => match BlockLogs::parse(block, &json, header.seen) {
            // An empty bloom says nothing on chains that leave it empty; whether this is one shows in the logs.
            Ok(logs) if verify && *header.bloom != Bloom::ZERO && !holds(&logs, &header, attempt) => Err("bloom"),
            Ok(logs) => Ok(logs),
            Err(error) => {
                debug!(%block, "logs refused: {error}");
                Err("malformed")
            }
        },
        Ok(Outcome::Error(_)) => Err("node_error"),
        Err(_) => Err("call_failed"),
    };
    Fetched::Logs(block, result, attempt + 1)
}

/// Whether logs and bloom fit. Some chains have logs that are in no bloom (Bor's state sync): after some tries more than
/// the bloom says is believed, less never.
fn holds(logs: &BlockLogs, header: &Header, attempt: u32) -> bool {
    logs.check_bloom(&header.bloom).is_ok() || (attempt >= 3 && logs.covers_bloom(&header.bloom))
}
