//! Resume: finds the place at which a returning client goes on; one [`task`] per client replays its subscriptions
//! until they join the live stream.

mod levels;
mod positions;
mod task;

use std::sync::{Arc, Weak};
use std::time::Duration;

use alloy_primitives::B256;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backoff::RESUME;
use crate::chain::{Archive, ContentKind, Cursor, Delivered, History, Located, NoNodeAnswer, Published, Removal};
use crate::delivery::{ClientWriter, Recipient};
use crate::jsonrpc::{ErrorObjectOwned, INTERNAL_ERROR, Outcome, RESOURCE_NOT_FOUND, error, error_with};
use crate::shares::{Budget, FairPool, Owner};
use crate::telemetry::{Metrics, ReasonLabel};

use super::replay_group::GroupKey;
use super::{Level, Registry, Start, Stream, Subscription, UnconfirmedSubscription};

/// Most pages that are being fetched, or sent to a client that reads, at the same time. Each is about a megabyte, and
/// its blocks are requested eight at a time.
const PAGES: usize = 16;

/// Clients of one account that wait to fetch a page. Each waits once, so the number of connections is the real bound.
const MAX_WAITING: usize = 1 << 20;

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
    /// Depth at which a block counts as final on a chain whose nodes have no tags; 0 for none.
    pub finality_depth: u64,
    /// Time for which a subscription waits for the block after which it resumes, if that is not known yet.
    pub block_wait: Duration,
}

/// Resume service for clients that return.
#[derive(Debug)]
pub struct Replays {
    registry: Arc<Registry>,
    published: Arc<Published>,
    archive: Archive,
    settings: ReplaySettings,
    places: Arc<FairPool>,
    budget: Arc<Budget>,
    /// Notifies the task of the levels of a subscription to one.
    leveled: Notify,
    metrics: Arc<Metrics>,
}

/// New subscription; with the search for its first block if that is not in memory, or the client's error.
pub(super) type Begun = Result<(Subscription, Option<StartLookup>), ErrorObjectOwned>;

/// Search for the block at which a subscription begins; the answer to `eth_subscribe` waits for it.
#[derive(Debug)]
pub struct StartLookup {
    replays: Arc<Replays>,
    writer: Weak<ClientWriter>,
    asked: UnconfirmedSubscription,
    key: GroupKey,
    recipient: Arc<Recipient>,
    /// Place to find; `None` if the cursor is known.
    start: Option<Start>,
    /// Extent that a session was sent before; the stream goes on from its place instead.
    delivered: Option<Box<Delivered>>,
    level: Option<Level>,
    logs: bool,
    owner: Owner,
}

/// Place of the block after which a client resumes.
enum Resumption {
    /// The block is in memory.
    Published(Cursor),
    /// Nodes have the block.
    Located(Located),
    /// Neither.
    Unknown,
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
            published: registry.published().clone(),
            registry,
            archive,
            settings,
            places: FairPool::new("too many wait for the past", PAGES, MAX_WAITING),
            budget: Budget::new("blocks of the past", settings.max_page_bytes),
            leveled: Notify::new(),
            metrics,
        })
    }

    /// Adds a subscription that begins at `start`. Its replay begins after the answer, with [`Self::begin`].
    ///
    /// # Errors
    /// If `start` is a block number too far back.
    pub fn subscribe(self: &Arc<Self>, stream: Stream, start: Start, writer: &Arc<ClientWriter>) -> Begun {
        self.resume(None, stream, start, writer)
    }

    /// Adds a replay that joins the stream of the head, or the trail of a level.
    fn resume(
        self: &Arc<Self>,
        level: Option<Level>,
        stream: Stream,
        start: Start,
        writer: &Arc<ClientWriter>,
    ) -> Begun {
        let logs = stream.needs(ContentKind::Logs);
        let cursor = self
            .published
            .with_history(|history| self.in_memory(history, start, level, logs))?;
        let found = cursor.is_some();
        if found {
            self.count("memory");
        }
        let subscription = self.registry.resume(level, stream, cursor, writer);
        let lookup = self.lookup(level, &subscription, (!found).then_some(start), logs, writer);
        Ok((subscription, lookup))
    }

    /// Returns the search that the answer has to wait for; `None` if the place is known.
    fn lookup(
        self: &Arc<Self>,
        level: Option<Level>,
        subscription: &Subscription,
        start: Option<Start>,
        logs: bool,
        writer: &Arc<ClientWriter>,
    ) -> Option<StartLookup> {
        let is_known = start.is_none() && level.is_none_or(|level| self.has_begun(level));
        (!is_known).then(|| self.search(level, subscription, start, logs, writer))
    }

    fn search(
        self: &Arc<Self>,
        level: Option<Level>,
        subscription: &Subscription,
        start: Option<Start>,
        logs: bool,
        writer: &Arc<ClientWriter>,
    ) -> StartLookup {
        StartLookup {
            replays: self.clone(),
            writer: Arc::downgrade(writer),
            asked: subscription.unconfirmed(),
            key: GroupKey::new(writer.id(), level),
            recipient: subscription.recipient.clone(),
            start,
            delivered: None,
            level,
            logs,
            owner: writer.owner(),
        }
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

    /// Starts the replays for a client whose subscription was answered, or wakes those that run.
    pub fn begin(self: &Arc<Self>, writer: &Arc<ClientWriter>) {
        for (key, woken) in self.registry.claim_replays(writer.id()) {
            tokio::spawn(self.clone().run(Arc::downgrade(writer), key, woken));
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
    fn in_memory(
        &self,
        history: &History,
        start: Start,
        level: Option<Level>,
        logs: bool,
    ) -> Result<Option<Cursor>, ErrorObjectOwned> {
        let Some(tip) = history.tip().map(|tip| tip.header.block.number) else {
            return Ok(None);
        };
        match start {
            Start::Live => {
                // Below the tip after a rewind.
                let head = history.head().map_or(tip, |block| block.number);
                Ok(Some(Cursor::from(head.saturating_add(1))))
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
                if level.is_some_and(Level::is_final)
                    && let Some(own) = found
                    && !history.is_canonical(own.header.block)
                {
                    return Err(self.dropped(block, history.reach(self.settings.max_blocks)));
                }
                let found = found.filter(|own| !logs || !Cursor::lacks_logs(history, own.header.block));
                Ok(found.map(|own| Cursor::behind(own.header.block, log)))
            }
            Start::Within(removal) => {
                self.within_reach(removal.ancestor.number, history.reach(self.settings.max_blocks))?;
                Ok(Cursor::within_memory(&removal, self.settings.max_reorg, history))
            }
        }
    }

    fn not_asked(&self, why: NoNodeAnswer) -> ErrorObjectOwned {
        match why {
            NoNodeAnswer::Unavailable => unavailable(),
            NoNodeAnswer::Busy(full) => {
                self.count("busy");
                full.into()
            }
        }
    }

    /// Returns the error for a stream of finality, which takes nothing back.
    fn dropped(&self, block: B256, oldest: u64) -> ErrorObjectOwned {
        self.count("dropped");
        let what = format!("block {block} was dropped by a reorg, undo it and resume after the block before");
        cannot_resume(&what, oldest)
    }

    fn within_reach(&self, number: u64, oldest: u64) -> Result<(), ErrorObjectOwned> {
        if number >= oldest {
            return Ok(());
        }
        self.count("too_old");
        Err(cannot_resume(&format!("block {number:#x} is too old"), oldest))
    }
}

impl StartLookup {
    /// Finds the block and returns the answer to `eth_subscribe`. The search does not keep the connection of a client
    /// that left.
    pub async fn outcome(self) -> Outcome {
        let found = match (self.start, &self.delivered) {
            (_, Some(delivered)) => match self.find_position(delivered).await {
                Ok(cursor) => Ok(Some(cursor)),
                Err(why) => {
                    self.close(&why);
                    Err(unavailable())
                }
            },
            (Some(start), None) => self.find(start).await.map(Some),
            (None, None) => Ok(None),
        };
        let found = match (found, self.level) {
            (Ok(found), Some(level)) => self.replays.until_begun(level).await.map(|()| found),
            (found, _) => found,
        };
        if self.writer.strong_count() == 0 {
            return Outcome::TRUE;
        }
        let id = self.recipient.id();
        match found {
            Ok(found) => {
                if let Some(found) = found {
                    self.replays
                        .registry
                        .with_cursor(self.key, id, |cursor, _| *cursor = Some(found));
                }
                Outcome::Result(format!("\"{id}\"").into())
            }
            Err(why) => {
                self.replays.registry.refuse(self.asked);
                // A repeated subscription keeps its position.
                if self.delivered.is_none() {
                    self.replays.registry.forget_position(self.key.client(), id);
                }
                why.into()
            }
        }
    }

    async fn find(&self, start: Start) -> Result<Cursor, ErrorObjectOwned> {
        let replays = &self.replays;
        let published = &replays.published;
        published.begun().await;
        let Some(tip) = published.with_history(|history| Some(history.tip()?.number())) else {
            return Err(unavailable());
        };
        if let Some(cursor) =
            published.with_history(|history| replays.in_memory(history, start, self.level, self.logs))?
        {
            return Ok(cursor);
        }
        let reach = || {
            let blocks = replays.settings.max_blocks;
            published.with_history(|history| history.reach(blocks))
        };
        let (block, log) = match start {
            Start::Live => return Ok(Cursor::from(tip.saturating_add(1))),
            Start::From(number) => {
                self.is_served(number, tip).await?;
                replays.count("node");
                return Ok(Cursor::from(number));
            }
            Start::After { block, log } => (block, log),
            Start::Within(removal) => return self.find_removal(removal, reach()).await,
        };
        let located = match self.locate(start, block, log).await? {
            Resumption::Published(cursor) => return Ok(cursor),
            Resumption::Located(located) => located,
            Resumption::Unknown => {
                replays.count("unknown");
                return Err(cannot_resume(&format!("block {block} {UNKNOWN_BLOCK}"), reach()));
            }
        };
        if self.level.is_some_and(Level::is_final) && located.left.ancestor.hash != block {
            return Err(replays.dropped(block, reach()));
        }
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

    /// Looks for a block in memory and at the nodes until `block_wait` is over: the client may have it from another
    /// instance, or by a node, that is a moment ahead, and would take it back for nothing.
    async fn locate(&self, start: Start, block: B256, log: Option<u64>) -> Result<Resumption, ErrorObjectOwned> {
        let replays = &self.replays;
        let (reach, until) = (replays.settings.max_reorg, Instant::now() + replays.settings.block_wait);
        let mut published = replays.published.watch();
        for attempt in 0.. {
            let located = replays.archive.locate(self.owner, block, log, self.logs, reach).await;
            if let Some(located) = located.map_err(|why| replays.not_asked(why))? {
                return Ok(Resumption::Located(located));
            }
            let again = (Instant::now() + RESUME.nth(attempt)).min(until);
            loop {
                let found = replays
                    .published
                    .with_history(|history| replays.in_memory(history, start, self.level, self.logs))?;
                if let Some(cursor) = found {
                    return Ok(Resumption::Published(cursor));
                }
                match tokio::time::timeout_at(again, published.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(Resumption::Unknown),
                    Err(_) => break,
                }
            }
            if again == until || self.writer.strong_count() == 0 {
                break;
            }
        }
        Ok(Resumption::Unknown)
    }

    /// Finds the rest of a removal that memory does not have. `oldest` is the oldest block to resume from.
    async fn find_removal(&self, removal: Removal, oldest: u64) -> Result<Cursor, ErrorObjectOwned> {
        let replays = &self.replays;
        let located = replays
            .archive
            .locate(self.owner, removal.tip, removal.up_to, true, replays.settings.max_reorg)
            .await;
        let undo = located
            .map_err(|why| replays.not_asked(why))?
            .map(|located| located.undo);
        let known = |hash| {
            let undo = undo.as_ref()?.iter().find(|undo| undo.logs.block.hash == hash)?;
            Some((undo.header.clone(), undo.logs.clone()))
        };
        match Cursor::within(&removal, replays.settings.max_reorg, known) {
            Some(cursor) => {
                replays.count("node");
                Ok(cursor)
            }
            None => {
                replays.count("unknown");
                let what = format!("the rest of the dropped branch of block {} is not known", removal.tip);
                Err(cannot_resume(&what, oldest))
            }
        }
    }

    /// Checks that the nodes still have this block, unless it is in memory. The error is returned now, lest a client
    /// waits for the block, is closed, and returns for the same block.
    async fn is_served(&self, number: u64, tip: u64) -> Result<(), ErrorObjectOwned> {
        let (replays, owner) = (&self.replays, self.owner);
        let oldest = replays
            .published
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

/// Words of the error about a block that neither memory nor a node has: a node may have it later.
pub const UNKNOWN_BLOCK: &str = "is not known";

/// The client cannot resume from a block; the error names the oldest one from which it can.
fn cannot_resume(what: &str, oldest: u64) -> ErrorObjectOwned {
    let message = format!("cannot resume: {what}; the oldest block to resume from is {oldest:#x}");
    error_with(
        RESOURCE_NOT_FOUND,
        message,
        &serde_json::json!({ "oldestBlock": format!("{oldest:#x}") }),
    )
}
