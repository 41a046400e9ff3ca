//! The actor that turns sightings into one history, and publishes it in order.
//!
//! Sightings are taken at once, whatever else is going on: missing parents are fetched beside. [`Assembly`] decides.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tracing::warn;

use super::assembly::{Ask, Assembly, Fetched};
use super::source::{Seek, Source, wait_before};
use super::{BlockRef, ChainEvent, Header, HistorySettings};
use crate::telemetry::{BudgetLabel, Metrics};
use crate::upstream::{Pool, Sighting, UpstreamId};

/// Tries for a block below the oldest known one; nobody waits for it.
const PAST_TRIES: u32 = 5;

/// Where the chain stands as it was published, for those who answer questions about it.
#[derive(Debug, Default)]
pub struct Tip(Mutex<Extent>);

/// How far the published chain goes.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    view: View,
    /// Highest number that was published since the chain began, or began anew.
    highest: u64,
    /// When the newest block arrived, whichever it is now.
    arrived: Option<(BlockRef, Instant)>,
}

/// The chain at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Its newest block; `None` before the first, and after continuity was lost.
    pub head: Option<BlockRef>,
    /// Another one where blocks were taken back since: what was true of a number may not be any more.
    pub branch: u64,
    /// Another one where the chain was lost and began anew.
    pub era: u64,
    /// Up to here blocks are final, as a node said; `None` where none has.
    pub final_block: Option<u64>,
    /// It stands as high as ever. Below that it is on its way to another branch, or became shorter; only the node knows.
    pub is_settled: bool,
}

impl Tip {
    /// The newest block and when it arrived.
    #[must_use]
    pub fn get(&self) -> Option<(BlockRef, Instant)> {
        self.0.lock().arrived
    }

    /// The chain now.
    #[must_use]
    pub fn view(&self) -> View {
        self.0.lock().view
    }

    /// A node said that blocks are final up to this one; those that are not published yet count when they are asked for again.
    pub fn note_final(&self, number: u64) {
        let view = &mut self.0.lock().view;
        view.final_block = view.head.map(|head| number.min(head.number));
    }

    fn note(&self, event: &ChainEvent) {
        let mut extent = self.0.lock();
        let Extent { view, highest, arrived } = &mut *extent;
        match event {
            ChainEvent::Head(header) => {
                view.head = Some(header.block);
                *arrived = Some((header.block, header.seen));
                *highest = (*highest).max(header.block.number);
            }
            ChainEvent::Rewind(to) => {
                view.head = Some(*to);
                view.branch += 1;
                if view.final_block.is_some_and(|newest| newest > to.number) {
                    // What was called final was not: a development chain, mostly.
                    view.final_block = None;
                    view.era += 1;
                }
            }
            ChainEvent::ContinuityLost(_) => {
                (view.head, view.final_block, *highest) = (None, None, 0);
                view.branch += 1;
                view.era += 1;
            }
            ChainEvent::Past(_) => {}
        }
        view.is_settled = view.head.is_some_and(|head| head.number >= *highest);
    }
}

type Fetch = Pin<Box<dyn Future<Output = Fetched> + Send>>;

/// What the actor waits for.
enum Input<'a> {
    /// Another upstream is in use, or the same one after it was lost, or none.
    Active(Option<UpstreamId>),
    Sighting(UpstreamId, Sighting),
    Fetched(Box<Fetched>),
    Room(mpsc::Permit<'a, ChainEvent>),
}

/// The actor.
pub struct Ingest {
    pool: Arc<Pool>,
    source: Arc<Source>,
    sightings: mpsc::Receiver<(UpstreamId, Sighting)>,
    out: mpsc::Sender<ChainEvent>,
    metrics: Arc<Metrics>,
    tip: Arc<Tip>,
    assembly: Assembly,
    patience: Duration,
    /// The upstream in use.
    active: Option<UpstreamId>,
    /// `true` while no trusted chain of parents leads to the head of the upstream in use.
    is_doubted: bool,
    fetches: FuturesUnordered<Fetch>,
    /// Bytes of blocks that do not belong to the chain.
    stray: Gauge,
}

impl Ingest {
    /// An ingest that publishes to `out`.
    #[must_use]
    pub fn new(
        pool: Arc<Pool>,
        source: Arc<Source>,
        sightings: mpsc::Receiver<(UpstreamId, Sighting)>,
        out: mpsc::Sender<ChainEvent>,
        settings: HistorySettings,
        metrics: Arc<Metrics>,
        tip: Arc<Tip>,
    ) -> Self {
        let assembly = Assembly::new(settings, metrics.clone());
        let stray = BudgetLabel { budget: "parents" };
        let stray = metrics.memory_bytes.get_or_create_owned(&stray);
        Self {
            pool,
            source,
            sightings,
            out,
            metrics,
            tip,
            assembly,
            patience: settings.patience,
            active: None,
            is_doubted: false,
            fetches: FuturesUnordered::new(),
            stray,
        }
    }

    /// Runs until the upstreams or the readers are gone.
    pub async fn run(mut self) {
        let mut active = self.pool.watch_active();
        active.mark_changed();
        let out = self.out.clone();
        loop {
            for ask in self.assembly.asks() {
                self.fetches
                    .push(Box::pin(fetch(self.source.clone(), self.patience, ask)));
            }
            let input = tokio::select! {
                // Publishing first: what is ready should not wait for what comes in. Who is in use before what is seen: a
                // sighting of an upstream that has just returned must not be taken for one of before.
                biased;
                room = out.reserve(), if self.assembly.has_news() => match room {
                    Ok(permit) => Input::Room(permit),
                    Err(_) => return,
                },
                Some(fetched) = self.fetches.next() => Input::Fetched(Box::new(fetched)),
                Ok(()) = active.changed() => Input::Active(*active.borrow_and_update()),
                sighting = self.sightings.recv() => match sighting {
                    Some((from, sighting)) => Input::Sighting(from, sighting),
                    None => return,
                },
            };
            self.apply(input);
            self.stray.set(self.assembly.stray_bytes() as i64);
        }
    }

    fn apply(&mut self, input: Input<'_>) {
        if !matches!(input, Input::Active(_)) {
            self.weigh();
        }
        match input {
            Input::Room(permit) => {
                if let Some(event) = self.assembly.next_event() {
                    self.note(&event);
                    permit.send(event);
                }
            }
            Input::Fetched(fetched) => self.assembly.fetched(*fetched),
            Input::Active(active) => {
                self.active = active;
                self.assembly.in_use();
                self.is_doubted = false;
                self.weigh();
                if let Some(id) = active
                    && let Some(sighting) = self.pool.newest(id)
                {
                    self.seen(id, sighting);
                }
            }
            Input::Sighting(from, sighting) => self.seen(from, sighting),
        }
    }

    /// Updates the doubt about the upstream in use. Its heads are not followed meanwhile: once another upstream has
    /// come as far, its newest head is handled again.
    fn weigh(&mut self) {
        let is_doubted = self.active.is_some_and(|id| self.pool.is_doubted(id));
        let was_doubted = std::mem::replace(&mut self.is_doubted, is_doubted);
        self.assembly.doubt(is_doubted);
        if was_doubted
            && !is_doubted
            && let Some(id) = self.active
            && let Some(sighting) = self.pool.newest(id)
        {
            self.seen(id, sighting);
        }
    }

    fn seen(&mut self, from: UpstreamId, sighting: Sighting) {
        let in_use = self.active == Some(from);
        let header = match sighting {
            Sighting::Announced(json) => {
                let header = Header::parse(json, Instant::now()).and_then(Header::bounded);
                // Nothing is learned from what is refused.
                if let Ok(header) = &header
                    && in_use
                {
                    self.source
                        .learned()
                        .shape(&header.json, self.assembly.is_catching_up());
                }
                header
            }
            Sighting::Latest(json) => self.source.learned().header_of(&json),
            Sighting::Replaced => return self.assembly.replaced(),
        };
        match header {
            Ok(header) if in_use => self.assembly.announced(header),
            Ok(header) => {
                let BlockRef { number, hash } = header.block;
                if self.pool.may_lead(from, hash) && self.assembly.glimpsed(header) {
                    self.pool.leads(from, number, hash);
                }
            }
            Err(error) => warn!("a node's head was refused: {error}"),
        }
    }

    fn note(&self, event: &ChainEvent) {
        let head = match event {
            ChainEvent::Head(header) => Some(header.block),
            ChainEvent::Rewind(to) => Some(*to),
            ChainEvent::ContinuityLost(_) => None,
            ChainEvent::Past(header) => return self.pool.published_past(header.block.number, header.block.hash),
        };
        // Before anybody is shown it, and before answers are kept as its: what is asked next goes to those who have it.
        self.pool.published(head.map(|head| (head.number, head.hash)));
        self.tip.note(event);
        if let Some(head) = head {
            self.metrics.head_number.set(head.number as i64);
        }
    }
}

async fn fetch(source: Arc<Source>, patience: Duration, ask: Ask) -> Fetched {
    match ask {
        Ask::Parent(hash, ahead, tries) => {
            tokio::time::sleep(wait_before(tries)).await;
            let ahead = join_all(ahead.map(|number| source.block_by_number(number, 0)));
            let (block, ahead) = tokio::join!(source.seek(Seek::Hash(hash), tries), ahead);
            Fetched::Parent(hash, block, ahead.into_iter().flatten().collect(), tries + 1)
        }
        Ask::Numbered(block, numbers, tries) => {
            tokio::time::sleep(wait_before(tries)).await;
            let below = join_all(numbers.map(|number| source.seek(Seek::Number(number), tries))).await;
            let found = match below.last() {
                Some(Err(reason)) => Err(*reason),
                _ => Ok(below.into_iter().flatten().flatten().collect()),
            };
            Fetched::Numbered(block, found, tries + 1)
        }
        Ask::Settled(round) => {
            tokio::time::sleep(patience).await;
            let (tip, syncing) = tokio::join!(source.latest(), source.is_syncing());
            Fetched::Settled(round, tip.filter(|_| !syncing))
        }
        Ask::TipBehind(block) => Fetched::TipBehind(block, source.latest().await),
        Ask::Stone(number, tries) => {
            tokio::time::sleep(wait_before(tries)).await;
            Fetched::Stone(number, source.first_from(number, tries).await, tries + 1)
        }
        Ask::Past(hash) => {
            for attempt in 0..PAST_TRIES {
                tokio::time::sleep(wait_before(attempt)).await;
                if let Some(header) = source.block_by_hash(hash, attempt).await {
                    return Fetched::Past(hash, Some(header));
                }
            }
            Fetched::Past(hash, None)
        }
    }
}
