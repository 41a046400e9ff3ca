//! Resume: finds the place at which a returning client goes on; one task per client replays its subscriptions until
//! they join the live stream.
//!
//! A step ([`super::replay_group`]) happens under the registry's lock, so a stream that has caught up joins without a gap
//! or a repetition. Blocks older than memory are fetched between the steps, and no more is queued than the client has
//! room for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::chain::{Archive, Cursor, Fetch, Gap, History, Loss, NotAsked, Page};
use crate::delivery::{ClientWriter, CloseReason, Kind, Phase, Recipient, SubscriptionId};
use crate::jsonrpc::{ErrorObjectOwned, INTERNAL_ERROR, Outcome, RESOURCE_NOT_FOUND, error, error_with};
use crate::panics;
use crate::shares::{Budget, Charge, FairPool, Owner, Place};
use crate::telemetry::{Metrics, ReasonLabel};

use super::replay_group::{Lost, WaitFor};
use super::{LogFilter, Registry, Start, Stream, Subscription};

/// Interval at which the queue of a replaying client is checked for room.
const LOOK: Duration = Duration::from_millis(5);

/// Interval at which a task that waits for the chain checks if its client is still connected.
const STILL_THERE: Duration = Duration::from_secs(1);

/// Attempts without progress before the client is closed, half a second apart: the node may be behind, or in a reorg.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// Longest wait of a returning client for the first block after a start.
const FIRST_BLOCK: Duration = Duration::from_secs(10);

/// Most pages that are being fetched, or sent to a client that reads, at the same time. Each is about a megabyte, and
/// its blocks are requested eight at a time.
const PAGES: usize = 16;

/// Clients of one account that wait to fetch a page. Each waits once, so the number of connections is the real bound.
const MAX_WAITING: usize = 1 << 20;

/// Time without room in its queue after which a client gives up its page and its place; it gets both again when it
/// reads.
const STALLED: Duration = Duration::from_millis(250);

/// Wait before a page is fetched again for which there was no room in the budget.
const NO_ROOM: Duration = Duration::from_millis(100);

/// Most different filters of a client that nodes are asked for one by one; with more, all logs are fetched.
const FILTERS: usize = 4;

/// Bounds of resume requests.
#[derive(Clone, Copy, Debug)]
pub struct ReplaySettings {
    /// Furthest start of a subscription, in blocks behind the newest.
    pub max_blocks: u64,
    /// Longest dropped branch that is traced back, in blocks.
    pub max_reorg: usize,
    /// `true` if the `fromBlock` of a filter requests a replay; otherwise it bounds the live logs, as in geth.
    pub filter_from_block: bool,
    /// Most bytes of pages in memory, of all clients together.
    pub max_page_bytes: usize,
}

/// Resume service for clients that return.
#[derive(Debug)]
pub struct Replays {
    registry: Arc<Registry>,
    archive: Archive,
    settings: ReplaySettings,
    places: Arc<FairPool>,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
}

/// Blocks fetched for one client, with their place among the pages and their share of the budget.
struct HeldPage {
    page: Page,
    _place: Place,
    _charge: Charge,
    /// Set when other clients need these bytes.
    is_given_up: Arc<AtomicBool>,
}

/// New subscription; with the search for its first block if that is not in memory, or the client's error.
pub type Begun = Result<(Subscription, Option<StartLookup>), ErrorObjectOwned>;

/// Search for the block at which a subscription begins; the answer to `eth_subscribe` waits for it.
#[derive(Debug)]
pub struct StartLookup {
    replays: Arc<Replays>,
    writer: Weak<ClientWriter>,
    recipient: Arc<Recipient>,
    start: Start,
    logs: bool,
    owner: Owner,
}

impl Replays {
    /// Builds the service; no task runs yet.
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

    /// Adds a subscription that begins at `start`. Its replay begins after the answer, with [`Self::begin`].
    ///
    /// # Errors
    /// If `start` is a block number too far back.
    pub fn subscribe(self: &Arc<Self>, stream: Stream, start: Start, writer: &Arc<ClientWriter>) -> Begun {
        let logs = stream.kind() == Kind::Logs;
        let cursor = self
            .registry
            .with_history(|history| self.in_memory(history, start, logs))?;
        let found = cursor.is_some();
        if found {
            self.count("memory");
        }
        let subscription = self.registry.resume(stream, cursor, writer);
        let finding = (!found).then(|| StartLookup {
            replays: self.clone(),
            writer: Arc::downgrade(writer),
            recipient: subscription.recipient.clone(),
            start,
            logs,
            owner: writer.owner(),
        });
        Ok((subscription, finding))
    }

    /// Returns the start of a subscription without options.
    #[must_use]
    pub fn start_of(&self, stream: &Stream) -> Start {
        match stream {
            // go-ethereum's client sends 0 with every filter (PROTOCOL fact 15) without requesting a replay.
            Stream::Logs(filter) if self.settings.filter_from_block && filter.first_block() > 0 => {
                Start::From(filter.first_block())
            }
            _ => Start::Live,
        }
    }

    /// Starts the replay for a client whose subscription was answered, or wakes the one that runs.
    pub fn begin(self: &Arc<Self>, writer: &Arc<ClientWriter>) {
        if let Some(woken) = self.registry.claim_replay(writer) {
            tokio::spawn(self.clone().run(Arc::downgrade(writer), writer.id(), woken));
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

    /// Returns the cursor for `start` if memory suffices; `None` if no block was published yet or a node has to be
    /// asked.
    fn in_memory(&self, history: &History, start: Start, logs: bool) -> Result<Option<Cursor>, ErrorObjectOwned> {
        let Some(tip) = history.tip().map(|tip| tip.header.block.number) else {
            return Ok(None);
        };
        match start {
            Start::Live => {
                // Below the tip after a rewind.
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

    async fn run(self: Arc<Self>, writer: Weak<ClientWriter>, client: u64, woken: Arc<Notify>) {
        let owner = writer.upgrade().map(|writer| writer.owner());
        if let Some(owner) = owner
            && panics::caught("replay", &self.metrics, self.replay(owner, &writer, &woken))
                .await
                .is_none()
            && let Some(writer) = writer.upgrade()
        {
            writer.close(CloseReason::Internal);
        }
        self.registry.end_replay(client, &woken);
    }

    async fn replay(&self, owner: Owner, writer: &Weak<ClientWriter>, woken: &Notify) {
        let (none, mut page): (_, Option<HeldPage>) = (Page::default(), None);
        let mut published = self.registry.watch_published();
        let (mut tries, mut fetched) = (0, None);
        loop {
            // If everything is in memory, nothing else in this loop waits.
            tokio::task::consume_budget().await;
            published.borrow_and_update();
            let until = {
                let Some(writer) = writer.upgrade() else { return };
                let progress = self
                    .registry
                    .replay(&writer, page.as_ref().map_or(&none, |held| &held.page));
                if progress.wrote {
                    writer.flush();
                }
                if writer.phase() != Phase::Open {
                    return;
                }
                progress.until
            };
            let found = match until {
                WaitFor::Done => return,
                WaitFor::Room => {
                    if room(writer, page.as_ref()).await.is_err() {
                        page = None;
                        // The same page is fetched once more, which counts as progress.
                        fetched = None;
                        drop(room(writer, None).await);
                    }
                    true
                }
                WaitFor::Turn => {
                    tokio::task::yield_now().await;
                    true
                }
                WaitFor::News => {
                    page = None;
                    tokio::select! {
                        _ = published.changed() => {}
                        () = woken.notified() => {}
                        () = tokio::time::sleep(STILL_THERE) => {}
                    }
                    true
                }
                WaitFor::Fetched(gap, filters) => {
                    let generation = self.registry.with_history(History::generation);
                    let asked = gap.first().map(|first| (first, filters.len()));
                    drop(page.take());
                    let Some(found) = self.fetch((owner, writer), generation, gap, &filters).await else {
                        tokio::time::sleep(NO_ROOM).await;
                        continue;
                    };
                    // Fetching the same page twice is no progress.
                    let leads_on = !found.page.is_empty() && std::mem::replace(&mut fetched, asked) != asked;
                    page = Some(found);
                    leads_on
                }
                WaitFor::Located(id, lost) => {
                    page = None;
                    self.locate(owner, writer, id, lost).await
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
                if let Some(writer) = writer.upgrade() {
                    writer.close(CloseReason::ContinuityLost);
                }
                return;
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }

    /// Fetches the blocks of a gap, when it is this account's turn; `None` if the client left or the budget has no
    /// room.
    async fn fetch(
        &self,
        (owner, writer): (Owner, &Weak<ClientWriter>),
        generation: u64,
        gap: Gap,
        filters: &[Arc<LogFilter>],
    ) -> Option<HeldPage> {
        let mut acquiring = std::pin::pin!(self.places.acquire(owner));
        let place = loop {
            if let Ok(place) = tokio::time::timeout(STILL_THERE, acquiring.as_mut()).await {
                break place.ok()?;
            }
            // A client that left gives up its turn.
            writer.upgrade().filter(|writer| writer.phase() == Phase::Open)?;
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

    /// Searches the nodes for a block that is not in memory, and moves the cursor. Returns `false` without progress:
    /// no node was asked or knows the block, or memory does not have it as canonical yet.
    async fn locate(&self, owner: Owner, writer: &Weak<ClientWriter>, id: SubscriptionId, lost: Lost) -> bool {
        self.archive.forget();
        let Lost { block, up_to, logs } = lost;
        let located = self
            .archive
            .locate(owner, block.hash, up_to, logs, self.settings.max_reorg)
            .await;
        let (Ok(Some(located)), Some(writer)) = (located, writer.upgrade()) else {
            return false;
        };
        let mut found = true;
        self.registry.with_cursor(&writer, id, |cursor, history| {
            if let Some(cursor) = cursor {
                found = cursor.found(history, block, located, logs);
            }
        });
        found
    }
}

/// Returns the contents to fetch for log streams with these filters; without filters headers alone.
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

/// Client that does not read while it keeps a page.
struct Stalled;

/// Waits until a client's queue has room, or the client is gone.
///
/// # Errors
/// [`Stalled`] if the client keeps a page and its bytes are needed for others, or 250 ms have passed.
async fn room(writer: &Weak<ClientWriter>, page: Option<&HeldPage>) -> Result<(), Stalled> {
    let until = tokio::time::Instant::now() + STALLED;
    while writer
        .upgrade()
        .is_some_and(|writer| writer.phase() == Phase::Open && !writer.has_room())
    {
        tokio::time::sleep(LOOK).await;
        if page.is_some_and(|page| page.is_given_up.load(Ordering::Relaxed) || tokio::time::Instant::now() >= until) {
            return Err(Stalled);
        }
    }
    Ok(())
}

impl StartLookup {
    /// Finds the block and returns the answer to `eth_subscribe`. The search does not keep the connection of a client
    /// that left.
    pub async fn outcome(self) -> Outcome {
        let found = self.find().await;
        let Some(writer) = self.writer.upgrade() else {
            return Outcome::TRUE;
        };
        let id = self.recipient.id();
        match found {
            Ok(found) => {
                self.replays
                    .registry
                    .with_cursor(&writer, id, |cursor, _| *cursor = Some(found));
                Outcome::Result(format!("\"{id}\"").into())
            }
            Err(why) => {
                self.replays.registry.give_up(&writer, id);
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

    /// Checks that the nodes still have this block, unless it is in memory. The error is returned now, lest a client
    /// waits for the block, is closed, and returns for the same block.
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

/// No node could be asked, which is not evidence about the block.
fn unavailable() -> ErrorObjectOwned {
    error(INTERNAL_ERROR, "upstream unavailable")
}

/// The client cannot resume from a block; the error names the oldest one from which it can.
fn cannot_resume(what: &str, oldest: u64) -> ErrorObjectOwned {
    let message = format!("cannot resume: {what}; the oldest block to resume from is {oldest:#x}");
    error_with(
        RESOURCE_NOT_FOUND,
        message,
        &serde_json::json!({ "oldestBlock": format!("{oldest:#x}") }),
    )
}
