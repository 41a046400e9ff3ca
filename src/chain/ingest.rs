//! Actor that turns the heads reported by the upstreams into one chain, and sends its events in order. The published
//! chain changes when they are delivered ([`super::published`]).
//!
//! Reports are accepted at once: missing parents are fetched concurrently. [`Pipeline`] decides.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use super::pipeline::{FetchRequest, FetchResult, Pipeline};
use super::source::{Seek, Source};
use super::{BlockRef, ChainEvent, Header, HistorySettings};
use crate::backoff::BLOCK;
use crate::telemetry::{BudgetLabel, Metrics};
use crate::upstream::{HeadReport, Pool, UpstreamId};

/// Attempts for a block below the oldest known one; no client waits for it.
const PAST_TRIES: u32 = 5;

type Fetch = Pin<Box<dyn Future<Output = FetchResult> + Send>>;

/// Input of the actor.
enum Input<'a> {
    /// Another upstream came into use, or the same one reconnected, or none is left.
    Active(Option<UpstreamId>),
    HeadReport(UpstreamId, HeadReport),
    FetchResult(Box<FetchResult>),
    Room(mpsc::Permit<'a, ChainEvent>),
}

/// Actor that sends the events of the chain.
pub struct Ingest {
    pool: Arc<Pool>,
    source: Arc<Source>,
    sightings: mpsc::Receiver<(UpstreamId, HeadReport)>,
    out: mpsc::Sender<ChainEvent>,
    pipeline: Pipeline,
    rewind_delay: Duration,
    /// Upstream in use.
    active: Option<UpstreamId>,
    /// `true` while no trusted chain of parents leads to the head of the upstream in use.
    is_doubted: bool,
    fetches: FuturesUnordered<Fetch>,
    /// Bytes of blocks that do not belong to the published chain.
    stray: Gauge,
}

impl Ingest {
    /// Creates an actor that sends the events to `out`.
    #[must_use]
    pub fn new(
        pool: Arc<Pool>,
        source: Arc<Source>,
        sightings: mpsc::Receiver<(UpstreamId, HeadReport)>,
        out: mpsc::Sender<ChainEvent>,
        settings: HistorySettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let stray = BudgetLabel { budget: "parents" };
        let stray = metrics.memory_bytes.get_or_create_owned(&stray);
        let pipeline = Pipeline::new(settings, metrics);
        Self {
            pool,
            source,
            sightings,
            out,
            pipeline,
            rewind_delay: settings.rewind_delay,
            active: None,
            is_doubted: false,
            fetches: FuturesUnordered::new(),
            stray,
        }
    }

    /// Runs until the upstreams or the receiver of the events are gone.
    pub async fn run(mut self) {
        let mut active = self.pool.watch_active();
        active.mark_changed();
        let out = self.out.clone();
        loop {
            for ask in self.pipeline.asks() {
                self.fetches
                    .push(Box::pin(fetch(self.source.clone(), self.rewind_delay, ask)));
            }
            let input = tokio::select! {
                // Sending comes first: ready events must not wait for input. The upstream in use comes before
                // reported heads: the first head of an upstream that has just reconnected must not count as one from
                // before.
                biased;
                room = out.reserve(), if self.pipeline.has_ready_event() => match room {
                    Ok(permit) => Input::Room(permit),
                    Err(_) => return,
                },
                Some(fetched) = self.fetches.next() => Input::FetchResult(Box::new(fetched)),
                Ok(()) = active.changed() => Input::Active(*active.borrow_and_update()),
                sighting = self.sightings.recv() => match sighting {
                    Some((from, sighting)) => Input::HeadReport(from, sighting),
                    None => return,
                },
            };
            self.apply(input);
            self.stray.set(self.pipeline.stray_bytes() as i64);
        }
    }

    fn apply(&mut self, input: Input<'_>) {
        if !matches!(input, Input::Active(_)) {
            self.weigh();
        }
        match input {
            Input::Room(permit) => {
                if let Some(event) = self.pipeline.next_event() {
                    self.notify_pool(&event);
                    permit.send(event);
                }
            }
            Input::FetchResult(fetched) => self.pipeline.fetched(*fetched),
            Input::Active(active) => {
                self.active = active;
                self.pipeline.in_use();
                self.is_doubted = false;
                self.weigh();
                if let Some(id) = active
                    && let Some(sighting) = self.pool.newest(id)
                {
                    self.seen(id, sighting);
                }
            }
            Input::HeadReport(from, sighting) => self.seen(from, sighting),
        }
    }

    /// Updates the doubt about the upstream in use, whose heads are not followed meanwhile: once the doubt ends, its
    /// newest head is handled again.
    fn weigh(&mut self) {
        let is_doubted = self.active.is_some_and(|id| self.pool.is_doubted(id));
        let was_doubted = std::mem::replace(&mut self.is_doubted, is_doubted);
        self.pipeline.doubt(is_doubted);
        if was_doubted
            && !is_doubted
            && let Some(id) = self.active
            && let Some(sighting) = self.pool.newest(id)
        {
            self.seen(id, sighting);
        }
    }

    fn seen(&mut self, from: UpstreamId, sighting: HeadReport) {
        let in_use = self.active == Some(from);
        let header = match sighting {
            HeadReport::Announced(json) => {
                let header = Header::parse(json, Instant::now()).and_then(Header::bounded);
                // Rejected headers do not change the shape.
                if let Ok(header) = &header
                    && in_use
                {
                    self.source
                        .learned()
                        .shape(&header.json, self.pipeline.is_catching_up());
                }
                header
            }
            HeadReport::Latest(json) => self.source.learned().header_of(&json),
            HeadReport::Replaced => return self.pipeline.replaced(),
        };
        match header {
            Ok(header) if in_use => self.pipeline.announced(header),
            Ok(header) => {
                let BlockRef { number, hash } = header.block;
                if self.pool.may_lead(from, hash) && self.pipeline.announced_by_standby(header) {
                    self.pool.leads(from, number, hash);
                }
            }
            Err(error) => warn!("ignored an invalid head from a node: {error}"),
        }
    }

    /// Notifies the pool of an event that is about to be sent: before clients get a head, and before answers are cached
    /// for it, the next calls go to upstreams that have it.
    fn notify_pool(&self, event: &ChainEvent) {
        let head = match event {
            ChainEvent::Head(header) => Some(header.block),
            ChainEvent::Rewind(to) => Some(*to),
            ChainEvent::ContinuityLost(_) => None,
            ChainEvent::Backfilled(header) => return self.pool.published_past(header.block.number, header.block.hash),
        };
        self.pool.published(head.map(|head| (head.number, head.hash)));
    }
}

async fn fetch(source: Arc<Source>, rewind_delay: Duration, ask: FetchRequest) -> FetchResult {
    match ask {
        FetchRequest::Parent(hash, ahead, tries) => {
            tokio::time::sleep(BLOCK.before(tries)).await;
            let ahead = join_all(ahead.map(|number| source.block_by_number(number, 0)));
            let (block, ahead) = tokio::join!(source.seek(Seek::Hash(hash), tries), ahead);
            FetchResult::Parent(hash, block, ahead.into_iter().flatten().collect(), tries + 1)
        }
        FetchRequest::Numbered(block, numbers, tries) => {
            tokio::time::sleep(BLOCK.before(tries)).await;
            let below = join_all(numbers.map(|number| source.seek(Seek::Number(number), tries))).await;
            let found = match below.last() {
                Some(Err(reason)) => Err(*reason),
                _ => Ok(below.into_iter().flatten().flatten().collect()),
            };
            FetchResult::Numbered(block, found, tries + 1)
        }
        FetchRequest::Settled(round) => {
            tokio::time::sleep(rewind_delay).await;
            let (tip, syncing) = tokio::join!(source.latest(), source.is_syncing());
            FetchResult::Settled(round, tip.filter(|_| !syncing))
        }
        FetchRequest::TipBehind(block) => FetchResult::TipBehind(block, source.latest().await),
        FetchRequest::Stone(number, tries) => {
            tokio::time::sleep(BLOCK.before(tries)).await;
            FetchResult::Stone(number, source.first_from(number, tries).await, tries + 1)
        }
        FetchRequest::Backfill(hash) => {
            for attempt in 0..PAST_TRIES {
                tokio::time::sleep(BLOCK.before(attempt)).await;
                if let Some(header) = source.block_by_hash(hash, attempt).await {
                    return FetchResult::Backfill(hash, Some(header));
                }
            }
            FetchResult::Backfill(hash, None)
        }
    }
}
