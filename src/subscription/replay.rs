//! The way of clients that come back into the live stream: where they go on, and one task for each that takes all its
//! subscriptions there.
//!
//! A step ([`super::members`]) happens under the registry's lock, so a stream that is level with what was published joins
//! without a seam. What is older than memory is fetched between the steps, and no more is queued than the client has room
//! for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::chain::{Archive, Cursor, Fetch, Gap, History, Loss, NotAsked, Page};
use crate::delivery::{CloseReason, Kind, Outbox, Phase, Recipient, SubscriptionId};
use crate::jsonrpc::{ErrorObjectOwned, INTERNAL_ERROR, Outcome, RESOURCE_NOT_FOUND, error, error_with};
use crate::panics;
use crate::shares::{Budget, Charge, FairPool, Owner, Place};
use crate::telemetry::{Metrics, ReasonLabel};

use super::members::{Lost, Until};
use super::{LogFilter, Registry, Start, Stream, Subscription};

/// How often a client that is behind is looked at for room. Only those that come back have this timer.
const LOOK: Duration = Duration::from_millis(5);

/// How often a stream that waits for the chain looks whether its client is still there.
const STILL_THERE: Duration = Duration::from_secs(1);

/// Tries, with a wait between them, before a stream that leads nowhere ends: the node may be behind, or change its mind.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// How long a client that comes back waits for the first block after a start.
const FIRST_BLOCK: Duration = Duration::from_secs(10);

/// Most pages that are fetched, or sent to a client that reads, at the same time. Each is about a megabyte, and its
/// blocks are requested eight at a time.
const PAGES: usize = 16;

/// Clients of one account that wait to fetch a page. Each waits once, so this bounds nothing that connections do not.
const MAX_WAITING: usize = 1 << 20;

/// A client that has not read for so long keeps no page and no place: both are had again when it reads.
const STALLED: Duration = Duration::from_millis(250);

/// Before a page is fetched again for which there was no room.
const NO_ROOM: Duration = Duration::from_millis(100);

/// Most different filters of a client for which the nodes are asked beside each other; for more all logs are fetched.
const FILTERS: usize = 4;

/// Bounds of what may be asked for.
#[derive(Clone, Copy, Debug)]
pub struct ReplaySettings {
    /// How far back a subscription may begin, in blocks behind the newest.
    pub max_blocks: u64,
    /// How far a dropped branch is traced back, in blocks.
    pub max_reorg: usize,
    /// Whether the `fromBlock` of a filter asks for a replay; else it bounds the live logs, as in geth.
    pub filter_from_block: bool,
    /// Most bytes of pages that are fetched for replaying clients and not queued yet, of all clients.
    pub max_page_bytes: usize,
}

/// The way into the live stream for clients that come back.
#[derive(Debug)]
pub struct Replays {
    registry: Arc<Registry>,
    archive: Archive,
    settings: ReplaySettings,
    places: Arc<FairPool>,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
}

/// Blocks that were fetched for one client, with the place and the room that they take.
struct HeldPage {
    page: Page,
    _place: Place,
    _charge: Charge,
    /// Others need the room.
    is_given_up: Arc<AtomicBool>,
}

/// A subscription with what is known of where it begins.
pub type Begun = Result<(Subscription, Option<Finding>), ErrorObjectOwned>;

/// A block still has to be found before a subscription can be answered.
#[derive(Debug)]
pub struct Finding {
    replays: Arc<Replays>,
    outbox: Weak<Outbox>,
    recipient: Arc<Recipient>,
    start: Start,
    logs: bool,
    owner: Owner,
}

impl Replays {
    /// Puts them together.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        archive: Archive,
        settings: ReplaySettings,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            registry,
            archive,
            settings,
            places: FairPool::new("too many wait for the past", PAGES, MAX_WAITING),
            budget: Budget::new("blocks of the past", settings.max_page_bytes),
            metrics,
        })
    }

    /// Adds a subscription that begins where `start` says. It is replayed when it is answered and
    /// [`Self::begin`] is called.
    ///
    /// # Errors
    /// The start lies too far back.
    pub fn subscribe(self: &Arc<Self>, stream: Stream, start: Start, outbox: &Arc<Outbox>) -> Begun {
        let logs = stream.kind() == Kind::Logs;
        let cursor = self
            .registry
            .with_history(|history| self.in_memory(history, start, logs))?;
        let found = cursor.is_some();
        if found {
            self.count("memory");
        }
        let subscription = self.registry.resume(stream, cursor, outbox);
        let finding = (!found).then(|| Finding {
            replays: self.clone(),
            outbox: Arc::downgrade(outbox),
            recipient: subscription.recipient.clone(),
            start,
            logs,
            owner: outbox.owner(),
        });
        Ok((subscription, finding))
    }

    /// Where a subscription without options begins.
    #[must_use]
    pub fn start_of(&self, stream: &Stream) -> Start {
        match stream {
            // go-ethereum's client sends 0 with every filter (PROTOCOL fact 15) and means nothing by it.
            Stream::Logs(filter) if self.settings.filter_from_block && filter.first_block() > 0 => {
                Start::From(filter.first_block())
            }
            _ => Start::Live,
        }
    }

    /// Starts replaying for a client whose subscription was answered.
    pub fn begin(self: &Arc<Self>, outbox: &Arc<Outbox>) {
        if let Some(woken) = self.registry.claim_replay(outbox) {
            tokio::spawn(self.clone().run(Arc::downgrade(outbox), outbox.id(), woken));
        }
    }

    /// Returns the budget of the pages in memory.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    fn count(&self, reason: &'static str) {
        self.metrics.resumed.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The cursor as far as memory tells; `None` where a node has to be asked.
    fn in_memory(&self, history: &History, start: Start, logs: bool) -> Result<Option<Cursor>, ErrorObjectOwned> {
        let Some(tip) = history.tip().map(|tip| tip.header.block.number) else {
            return Ok(None);
        };
        match start {
            Start::Live => {
                // Below the tip where the chain went back.
                let stands_at = history.stands_at().map_or(tip, |block| block.number);
                Ok(Some(Cursor::from(stands_at.saturating_add(1))))
            }
            Start::From(number) => {
                self.within_reach(number, history.reach(self.settings.max_blocks))?;
                let remembered = history
                    .oldest()
                    .is_some_and(|oldest| number >= oldest.header.block.number);
                Ok(remembered.then(|| Cursor::from(number)))
            }
            Start::After { block, log } => {
                let found = history.find(block);
                let found = found.filter(|own| !logs || !Cursor::lacks_logs(history, own.header.block));
                Ok(found.map(|own| Cursor::behind(own.header.block, log)))
            }
        }
    }

    fn not_asked(&self, why: NotAsked) -> ErrorObjectOwned {
        match why {
            NotAsked::Unavailable => unavailable(),
            NotAsked::Busy(full) => {
                self.count("busy");
                full.into()
            }
        }
    }

    fn within_reach(&self, number: u64, oldest: u64) -> Result<(), ErrorObjectOwned> {
        if number >= oldest {
            return Ok(());
        }
        self.count("too_old");
        Err(cannot_resume(&format!("block {number:#x} is too old"), oldest))
    }

    async fn run(self: Arc<Self>, outbox: Weak<Outbox>, client: u64, woken: Arc<Notify>) {
        let owner = outbox.upgrade().map(|outbox| outbox.owner());
        if let Some(owner) = owner
            && panics::caught("replay", &self.metrics, self.replay(owner, &outbox, &woken))
                .await
                .is_none()
            && let Some(outbox) = outbox.upgrade()
        {
            outbox.close(CloseReason::Internal);
        }
        self.registry.end_replay(client, &woken);
    }

    async fn replay(&self, owner: Owner, outbox: &Weak<Outbox>, woken: &Notify) {
        let (none, mut page): (_, Option<HeldPage>) = (Page::default(), None);
        let mut published = self.registry.watch_published();
        let (mut tries, mut fetched) = (0, None);
        loop {
            // Where everything is in memory nothing else in here waits.
            tokio::task::consume_budget().await;
            published.borrow_and_update();
            let until = {
                let Some(outbox) = outbox.upgrade() else { return };
                let progress = self
                    .registry
                    .replay(&outbox, page.as_ref().map_or(&none, |held| &held.page));
                if progress.wrote {
                    outbox.flush();
                }
                if outbox.phase() != Phase::Open {
                    return;
                }
                progress.until
            };
            let found = match until {
                Until::Done => return,
                Until::Room => {
                    if room(outbox, page.as_ref()).await.is_err() {
                        page = None;
                        // The same is asked for once more, and leads on.
                        fetched = None;
                        drop(room(outbox, None).await);
                    }
                    true
                }
                Until::Turn => {
                    tokio::task::yield_now().await;
                    true
                }
                Until::News => {
                    page = None;
                    tokio::select! {
                        _ = published.changed() => {}
                        () = woken.notified() => {}
                        () = tokio::time::sleep(STILL_THERE) => {}
                    }
                    true
                }
                Until::Fetched(gap, filters) => {
                    let generation = self.registry.with_history(History::generation);
                    let asked = gap.first().map(|first| (first, filters.len()));
                    drop(page.take());
                    let Some(found) = self.fetch((owner, outbox), generation, gap, &filters).await else {
                        tokio::time::sleep(NO_ROOM).await;
                        continue;
                    };
                    // The same once more leads nowhere.
                    let leads_on = !found.page.is_empty() && std::mem::replace(&mut fetched, asked) != asked;
                    page = Some(found);
                    leads_on
                }
                Until::Located(id, lost) => {
                    page = None;
                    self.locate(owner, outbox, id, lost).await
                }
            };
            if found {
                tries = 0;
                continue;
            }
            tries += 1;
            if tries == TRIES {
                let reason = Loss::NoPast.label();
                self.metrics
                    .continuity_lost
                    .get_or_create(&ReasonLabel { reason })
                    .inc();
                if let Some(outbox) = outbox.upgrade() {
                    outbox.close(CloseReason::ContinuityLost);
                }
                return;
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }

    /// The blocks of a gap, as soon as it is this account's turn; `None` where there is no room for them now.
    async fn fetch(
        &self,
        (owner, outbox): (Owner, &Weak<Outbox>),
        generation: u64,
        gap: Gap,
        filters: &[Arc<LogFilter>],
    ) -> Option<HeldPage> {
        let mut acquiring = std::pin::pin!(self.places.acquire(owner));
        let place = loop {
            if let Ok(place) = tokio::time::timeout(STILL_THERE, acquiring.as_mut()).await {
                break place.ok()?;
            }
            // Nobody waits for a client that left.
            outbox.upgrade().filter(|outbox| outbox.phase() == Phase::Open)?;
        };
        let page = self.archive.page(generation, gap, fetch(filters)).await;
        let is_given_up = Arc::new(AtomicBool::new(false));
        let given_up = is_given_up.clone();
        let evict = Arc::new(move || given_up.store(true, Ordering::Relaxed));
        let mut charge = self.budget.open_evictable(owner, evict);
        charge.resize(page.json_len()).ok()?;
        Some(HeldPage {
            page,
            _place: place,
            _charge: charge,
            is_given_up,
        })
    }

    /// `false` where nothing new was found out: the node knows no more than memory, or the other way round.
    async fn locate(&self, owner: Owner, outbox: &Weak<Outbox>, id: SubscriptionId, lost: Lost) -> bool {
        self.archive.forget();
        let Lost { block, up_to, logs } = lost;
        let located = self
            .archive
            .locate(owner, block.hash, up_to, logs, self.settings.max_reorg)
            .await;
        let (Ok(Some(located)), Some(outbox)) = (located, outbox.upgrade()) else {
            return false;
        };
        let mut found = true;
        self.registry.with_cursor(&outbox, id, |cursor, history| {
            if let Some(cursor) = cursor {
                found = cursor.found(history, block, located, logs);
            }
        });
        found
    }
}

/// What is fetched for streams of logs with these filters.
fn fetch(filters: &[Arc<LogFilter>]) -> Fetch {
    let mut distinct: Vec<&LogFilter> = Vec::new();
    for filter in filters {
        if distinct.contains(&&**filter) {
            continue;
        }
        if filter.is_wildcard() || distinct.len() == FILTERS {
            return Fetch::Logs;
        }
        distinct.push(filter);
    }
    match distinct[..] {
        [] => Fetch::Headers,
        _ => Fetch::LogsFor(distinct.into_iter().map(LogFilter::query).collect()),
    }
}

/// Client that does not read while the bytes of its page are needed for others.
struct Stalled;

/// Waits until a client has read most of what waits for it, or is gone; not for long with a page in hand.
async fn room(outbox: &Weak<Outbox>, page: Option<&HeldPage>) -> Result<(), Stalled> {
    let until = tokio::time::Instant::now() + STALLED;
    while outbox
        .upgrade()
        .is_some_and(|outbox| outbox.phase() == Phase::Open && !outbox.has_room())
    {
        tokio::time::sleep(LOOK).await;
        if page.is_some_and(|page| page.is_given_up.load(Ordering::Relaxed) || tokio::time::Instant::now() >= until) {
            return Err(Stalled);
        }
    }
    Ok(())
}

impl Finding {
    /// Finds the block; the answer to the subscription. A client that left is not waited for.
    pub async fn outcome(self) -> Outcome {
        let found = self.find().await;
        let Some(outbox) = self.outbox.upgrade() else {
            return Outcome::TRUE;
        };
        let id = self.recipient.id();
        match found {
            Ok(found) => {
                self.replays
                    .registry
                    .with_cursor(&outbox, id, |cursor, _| *cursor = Some(found));
                Outcome::Result(format!("\"{id}\"").into())
            }
            Err(why) => {
                self.replays.registry.give_up(&outbox, id);
                why.into()
            }
        }
    }

    async fn find(&self) -> Result<Cursor, ErrorObjectOwned> {
        let (replays, owner) = (&self.replays, self.owner);
        let mut published = replays.registry.watch_published();
        let tip = || {
            replays
                .registry
                .with_history(|history| history.tip().map(|tip| tip.header.block.number))
        };
        let first = published.wait_for(|()| tip().is_some());
        drop(tokio::time::timeout(FIRST_BLOCK, first).await);
        let Some(tip) = tip() else {
            return Err(unavailable());
        };
        if let Some(cursor) = replays
            .registry
            .with_history(|history| replays.in_memory(history, self.start, self.logs))?
        {
            return Ok(cursor);
        }
        let reach = || {
            let blocks = replays.settings.max_blocks;
            replays.registry.with_history(|history| history.reach(blocks))
        };
        let (block, log) = match self.start {
            Start::Live => return Ok(Cursor::from(tip.saturating_add(1))),
            Start::From(number) => {
                self.is_served(number, tip).await?;
                replays.count("node");
                return Ok(Cursor::from(number));
            }
            Start::After { block, log } => (block, log),
        };
        let located = replays
            .archive
            .locate(owner, block, log, self.logs, replays.settings.max_reorg)
            .await;
        let Some(located) = located.map_err(|why| replays.not_asked(why))? else {
            replays.count("unknown");
            return Err(cannot_resume(&format!("block {block} is not known"), reach()));
        };
        let number = located.left.ancestor.number;
        replays.within_reach(number, reach())?;
        let first = number.saturating_add(u64::from(log.is_none()));
        self.is_served(first, tip).await?;
        replays.count("node");
        let mut cursor = Cursor::behind(located.left.ancestor, log);
        if located.left.ancestor.hash != block {
            cursor.retrace(located.undo, located.left);
        }
        Ok(cursor)
    }

    /// An error where the nodes do not have this block any more, as far as it is theirs to serve: said now, not to a client
    /// that waits for it, is closed, and comes back for the same.
    async fn is_served(&self, number: u64, tip: u64) -> Result<(), ErrorObjectOwned> {
        let (replays, owner) = (&self.replays, self.owner);
        let oldest = replays
            .registry
            .with_history(|history| history.oldest().map(|own| own.header.block.number));
        let oldest = oldest.unwrap_or(tip);
        if number >= oldest {
            return Ok(());
        }
        match replays.archive.serves(owner, number, self.logs).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                replays.count("pruned");
                let what = format!("the node no longer has block {number:#x}");
                Err(cannot_resume(&what, oldest))
            }
            Err(why) => Err(replays.not_asked(why)),
        }
    }
}

/// No node could be asked: nothing is said about the block.
fn unavailable() -> ErrorObjectOwned {
    error(INTERNAL_ERROR, "upstream unavailable")
}

/// The block cannot be resumed from; the error says which could.
fn cannot_resume(what: &str, oldest: u64) -> ErrorObjectOwned {
    let message = format!("cannot resume: {what}; the oldest block to resume from is {oldest:#x}");
    error_with(
        RESOURCE_NOT_FOUND,
        message,
        &serde_json::json!({ "oldestBlock": format!("{oldest:#x}") }),
    )
}
