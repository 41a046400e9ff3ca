//! Subscriptions that are told what came before, on their way to the live stream.
//!
//! All that one client resumes goes on in one step, block by block, heads before logs: the order across its subscriptions
//! (E3) is that of the live stream. A step happens under the registry's lock, so a stream that is level with what was
//! published joins without a seam. What is older than memory is fetched between the steps, and no more is queued than the
//! client has room for.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use alloy_primitives::Bloom;
use tokio::sync::Notify;

use crate::chain::{Archive, Cursor, History, Log, Needs, Next, Page, Unavailable, Undo};
use crate::delivery::{Batch, CloseReason, Event, Kind, Millis, Outbox, Phase, Recipient, SubscriptionId};
use crate::jsonrpc::{ErrorObjectOwned, INTERNAL_ERROR, Outcome, RESOURCE_NOT_FOUND, error, error_with};
use crate::telemetry::{Metrics, ReasonLabel};

use super::registry::Subscriber;
use super::{InBloom, LogFilter, Registry, Start, Subscription, Topic};

/// How often a client that is behind is looked at for room. Only those that come back have this timer.
const LOOK: Duration = Duration::from_millis(5);

/// How often a stream that waits for the chain looks whether its client is still there.
const STILL_THERE: Duration = Duration::from_secs(1);

/// Tries, with a wait between them, before a stream that leads nowhere ends: the node may be behind, or change its mind.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// How long a client that comes back waits for the first block after a start.
const FIRST_BLOCK: Duration = Duration::from_secs(10);

/// What a turn may cost, in words and logs looked at, some tens of nanoseconds each: the registry's lock is held for a
/// fraction of a millisecond, and for one round of a client's streams at least.
const TURN: usize = 8_192;

/// A client's subscriptions that are not yet live.
#[derive(Debug, Default)]
pub(super) struct Members {
    all: Vec<Member>,
    /// Whoever replays for them is woken by this.
    claimed: Option<Arc<Notify>>,
}

#[derive(Debug)]
struct Member {
    wants: Wants,
    /// Known when the block was found.
    cursor: Option<Cursor>,
    subscriber: Subscriber,
}

/// What a stream that can be resumed is about.
#[derive(Clone, Debug)]
enum Wants {
    Heads,
    Logs(LogFilter, Arc<InBloom>),
}

impl Wants {
    fn kind(&self) -> Kind {
        match self {
            Self::Heads => Kind::Heads,
            Self::Logs(..) => Kind::Logs,
        }
    }
}

/// How a step went.
#[derive(Debug)]
pub struct Progress {
    /// Something was queued.
    pub wrote: bool,
    /// What has to happen before the next.
    pub until: Until,
}

/// What a replay waits for.
#[derive(Debug)]
pub enum Until {
    /// The client has room.
    Room,
    /// The chain goes on, or an answer leaves.
    News,
    /// Others have had their turn.
    Turn,
    /// Blocks older than memory: from the first number, below the second, with the logs that these filters may want.
    Fetched(u64, u64, Vec<Arc<InBloom>>),
    /// A place that memory does not know is found.
    Located(SubscriptionId, Lost),
    /// Nothing: all are live, or the client is gone.
    Done,
}

/// A stream stands behind a block that is not known.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    block: crate::chain::BlockRef,
    up_to: Option<u64>,
    logs: bool,
}

/// A stream that has been told everything: what it wants, who wants it, and the first block that it was told.
pub(super) type Level = (Topic, Subscriber, u64);

impl Members {
    pub fn add(&mut self, topic: Topic, cursor: Option<Cursor>, subscriber: Subscriber) {
        let wants = match topic {
            Topic::Logs(filter) => {
                let bloom = Arc::new(filter.in_bloom());
                Wants::Logs(filter, bloom)
            }
            _ => Wants::Heads,
        };
        self.all.push(Member {
            wants,
            cursor,
            subscriber,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn subscribers(&self) -> impl Iterator<Item = &Subscriber> {
        self.all.iter().map(|member| &member.subscriber)
    }

    pub fn cursor(&mut self, id: SubscriptionId) -> Option<&mut Option<Cursor>> {
        let member = self
            .all
            .iter_mut()
            .find(|member| member.subscriber.recipient.id() == id)?;
        Some(&mut member.cursor)
    }

    pub fn remove(&mut self, id: SubscriptionId) -> Option<(Kind, Subscriber)> {
        let at = self
            .all
            .iter()
            .position(|member| member.subscriber.recipient.id() == id)?;
        let member = self.all.swap_remove(at);
        Some((member.wants.kind(), member.subscriber))
    }

    /// For the first who asks, to be woken by; the others wake that one.
    pub fn claim(&mut self) -> Option<Arc<Notify>> {
        if let Some(claimed) = &self.claimed {
            claimed.notify_one();
            return None;
        }
        Some(self.claimed.insert(Arc::default()).clone())
    }

    /// Whoever is woken by this does not replay any more; another one may have claimed them meanwhile.
    pub fn unclaim(&mut self, woken: &Arc<Notify>) {
        self.claimed.take_if(|claimed| Arc::ptr_eq(claimed, woken));
    }

    /// Nobody is in it, and nobody will look again.
    pub fn is_over(&self) -> bool {
        self.all.is_empty() && self.claimed.is_none()
    }

    /// What a round costs.
    fn cost(&self) -> usize {
        let one = |member: &Member| match &member.wants {
            Wants::Heads => 1,
            Wants::Logs(_, bloom) => 1 + bloom.words(),
        };
        self.all.iter().map(one).sum()
    }

    /// Queues what comes next, the oldest block first, until there is no more room, nothing more to be had, or it is the
    /// turn of others.
    pub fn advance(&mut self, history: &History, page: &Page, now: Millis) -> (Progress, Vec<Level>) {
        let mut wrote = false;
        let mut steps = 0;
        let until = loop {
            if steps >= TURN {
                break Until::Turn;
            }
            steps += self.cost();
            let round = Round::of(&mut self.all, history, page);
            if let Some((id, lost)) = round.lost {
                break Until::Located(id, lost);
            }
            if round.first.is_empty() {
                // Nobody is behind: those that are level go on together, lest the next head overtakes the logs of this one.
                if round.pending {
                    break Until::News;
                }
                let joining = round.level.into_iter().rev().map(|i| self.join(i)).collect();
                let until = if self.all.is_empty() { Until::Done } else { Until::News };
                return (Progress { wrote, until }, joining);
            }
            if round.below {
                let filters = self.all.iter().filter_map(|member| match &member.wants {
                    Wants::Logs(_, bloom) => Some(bloom.clone()),
                    Wants::Heads => None,
                });
                let end = history.oldest().map_or(round.number, |own| own.header.block.number);
                break Until::Fetched(round.number, end, filters.collect());
            }
            for (_, next) in &round.first {
                steps += match next {
                    Next::Block(own) => own.logs.as_ref().map_or(0, |logs| logs.logs.len()),
                    Next::Undo(Undo { logs, .. }) | Next::Rest(logs, _) => logs.logs.len(),
                    _ => 0,
                };
            }
            match self.tell(round.first, now) {
                Ok(some) => wrote |= some,
                Err((some, until)) => {
                    wrote |= some;
                    break until;
                }
            }
        };
        (Progress { wrote, until }, Vec::new())
    }

    /// Queues the events of one block for those who are at it; whether there were any, and what to wait for if it does not
    /// go on.
    fn tell(&mut self, mut first: Vec<(usize, Next)>, now: Millis) -> Result<bool, (bool, Until)> {
        let mut wrote = false;
        first.sort_by_key(|(i, _)| self.all[*i].wants.kind() as u8);
        for (i, next) in first {
            let member = &mut self.all[i];
            let outbox = &member.subscriber.outbox;
            if outbox.phase() != Phase::Open {
                return Err((wrote, Until::Done));
            }
            if !outbox.has_room() {
                return Err((wrote, Until::Room));
            }
            if let Some(batch) = events(&member.wants, &next) {
                wrote = true;
                // Whether it has to be flushed is known: it has.
                let _flush = outbox.push_events(&member.subscriber.recipient, &batch, now);
            }
            if let Some(cursor) = &mut member.cursor {
                cursor.told(&next);
            }
        }
        Ok(wrote)
    }

    fn join(&mut self, i: usize) -> Level {
        let member = self.all.swap_remove(i);
        let topic = match member.wants {
            Wants::Heads => Topic::Heads,
            Wants::Logs(filter, _) => Topic::Logs(filter),
        };
        let first = member.cursor.map_or(0, |cursor| cursor.first());
        (topic, member.subscriber, first)
    }
}

/// Where all streams of a client are.
#[derive(Debug, Default)]
struct Round {
    /// Those at the oldest block that somebody is at, and its number.
    first: Vec<(usize, Next)>,
    number: u64,
    /// That block has to be fetched.
    below: bool,
    level: Vec<usize>,
    pending: bool,
    lost: Option<(SubscriptionId, Lost)>,
}

impl Round {
    fn of(all: &mut [Member], history: &History, page: &Page) -> Self {
        let mut round = Self::default();
        for (i, member) in all.iter_mut().enumerate() {
            let Member {
                wants,
                cursor: Some(cursor),
                subscriber,
            } = member
            else {
                continue;
            };
            if !subscriber.recipient.is_answered() {
                continue;
            }
            let next = match wants {
                Wants::Heads => cursor.next(history, page, Needs::Headers),
                Wants::Logs(_, in_bloom) => cursor.next(history, page, Needs::Logs(&|bloom| in_bloom.may_match(bloom))),
            };
            let number = match &next {
                Next::Ahead => continue,
                Next::Pending => {
                    round.pending = true;
                    continue;
                }
                Next::Level => {
                    round.level.push(i);
                    continue;
                }
                Next::Lost(block) => {
                    let lost = Lost {
                        block: *block,
                        up_to: cursor.told_of(*block),
                        logs: wants.kind() == Kind::Logs,
                    };
                    round.lost = Some((subscriber.recipient.id(), lost));
                    return round;
                }
                Next::Undo(_) => 0,
                Next::Rest(logs, _) => logs.block.number,
                Next::Block(own) => own.header.block.number,
                Next::Below(number) => *number,
            };
            if round.first.is_empty() || number < round.number {
                round.first.clear();
                round.number = number;
                round.below = false;
            }
            if number == round.number {
                round.below |= matches!(next, Next::Below(_));
                round.first.push((i, next));
            }
        }
        round
    }
}

/// What a stream is told; `None` where the filter wants nothing of it.
fn events(wants: &Wants, next: &Next) -> Option<Arc<Batch>> {
    let events: Vec<Event> = match (wants, next) {
        (Wants::Heads, Next::Block(own)) => vec![Event::new(&own.header.json)],
        (Wants::Logs(filter, in_bloom), next) => {
            let (logs, removed) = match next {
                // Looking at each log costs more.
                Next::Block(own) if *own.header.bloom != Bloom::ZERO && !in_bloom.may_match(&own.header.bloom) => {
                    return None;
                }
                Next::Block(own) => (own.logs.as_ref()?, false),
                Next::Rest(logs, _) => (logs, false),
                Next::Undo(Undo { logs, .. }) => (logs, true),
                _ => return None,
            };
            let wanted = |log: &&Log| {
                let told = match next {
                    Next::Rest(_, up_to) => log.index > *up_to,
                    Next::Undo(Undo { up_to: Some(up_to), .. }) => log.index <= *up_to,
                    _ => true,
                };
                told && filter.matches(log, logs.block.number)
            };
            let encode = |log: &Log| match removed {
                true => Event::new(&log.removed_json()),
                false => Event::new(log.json()),
            };
            logs.logs.iter().filter(wanted).map(encode).collect()
        }
        _ => return None,
    };
    // Late by nature: what is measured is how long they wait here.
    (!events.is_empty()).then(|| Batch::new(wants.kind(), events.into(), Instant::now()))
}

/// Bounds of what may be asked for.
#[derive(Clone, Copy, Debug)]
pub struct ReplaySettings {
    /// How far back a subscription may begin, in blocks behind the newest.
    pub max_blocks: u64,
    /// How far a dropped branch is traced back, in blocks.
    pub max_reorg: usize,
    /// Whether the `fromBlock` of a filter asks for a replay; else it bounds the live logs, as in geth.
    pub filter_from_block: bool,
}

/// The way into the live stream for clients that come back.
#[derive(Debug)]
pub struct Replays {
    registry: Arc<Registry>,
    archive: Archive,
    settings: ReplaySettings,
    metrics: Arc<Metrics>,
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
            metrics,
        })
    }

    /// Adds a subscription to heads or logs that begins where `start` says. It is replayed when it is answered and
    /// [`Self::begin`] is called.
    ///
    /// # Errors
    /// The start lies too far back.
    pub fn subscribe(self: &Arc<Self>, topic: Topic, start: Start, outbox: &Arc<Outbox>) -> Begun {
        let logs = topic.kind() == Kind::Logs;
        let cursor = self.registry.with_history(|history| self.in_memory(history, start))?;
        self.count(if cursor.is_some() { "memory" } else { "node" });
        let found = cursor.is_some();
        let subscription = self.registry.resume(topic, cursor, outbox);
        let finding = (!found).then(|| Finding {
            replays: self.clone(),
            outbox: Arc::downgrade(outbox),
            recipient: subscription.recipient.clone(),
            start,
            logs,
        });
        Ok((subscription, finding))
    }

    /// Where a subscription without options begins.
    #[must_use]
    pub fn start_of(&self, topic: &Topic) -> Start {
        match topic {
            // go-ethereum's client sends 0 with every filter (PROTOCOL fact 15) and means nothing by it.
            Topic::Logs(filter) if self.settings.filter_from_block && filter.first_block() > 0 => {
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

    fn count(&self, reason: &'static str) {
        self.metrics.resumed.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The cursor as far as memory tells; `None` where a node has to be asked.
    fn in_memory(&self, history: &History, start: Start) -> Result<Option<Cursor>, ErrorObjectOwned> {
        let Some(tip) = history.tip().map(|tip| tip.header.block.number) else {
            return Ok(None);
        };
        match start {
            Start::Live => Ok(Some(Cursor::from(tip + 1))),
            Start::From(number) => self.within_reach(number, tip).map(|()| Some(Cursor::from(number))),
            Start::After { block, log } => {
                let found = history.find(block);
                Ok(found.map(|own| Cursor::behind(own.header.block, log)))
            }
        }
    }

    fn within_reach(&self, number: u64, tip: u64) -> Result<(), ErrorObjectOwned> {
        let oldest = tip.saturating_sub(self.settings.max_blocks);
        if number >= oldest {
            return Ok(());
        }
        self.count("too_old");
        Err(too_old(&format!("block {number:#x} is too old"), oldest))
    }

    async fn run(self: Arc<Self>, outbox: Weak<Outbox>, client: u64, woken: Arc<Notify>) {
        self.replay(&outbox, &woken).await;
        self.registry.end_replay(client, &woken);
    }

    async fn replay(&self, outbox: &Weak<Outbox>, woken: &Notify) {
        let mut page = Page::new();
        let mut published = self.registry.watch_published();
        let (mut tries, mut fetched) = (0, None);
        loop {
            // Where everything is in memory nothing else in here waits.
            tokio::task::consume_budget().await;
            published.borrow_and_update();
            let until = {
                let Some(outbox) = outbox.upgrade() else { return };
                let progress = self.registry.replay(&outbox, &page);
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
                    room(outbox).await;
                    true
                }
                Until::Turn => {
                    tokio::task::yield_now().await;
                    true
                }
                Until::News => {
                    page.clear();
                    page.shrink_to_fit();
                    tokio::select! {
                        _ = published.changed() => {}
                        () = woken.notified() => {}
                        () = tokio::time::sleep(STILL_THERE) => {}
                    }
                    true
                }
                Until::Fetched(first, end, filters) => {
                    let wanted = |bloom: &Bloom| filters.iter().any(|filter| filter.may_match(bloom));
                    let needs = match filters[..] {
                        [] => Needs::Headers,
                        _ => Needs::Logs(&wanted),
                    };
                    let generation = self.registry.with_history(History::generation);
                    page = self.archive.page(generation, first, end, needs).await;
                    // The same once more leads nowhere.
                    !page.is_empty() && fetched.replace(first) != Some(first)
                }
                Until::Located(id, lost) => self.locate(outbox, id, lost, &mut page).await,
            };
            if found {
                tries = 0;
                continue;
            }
            tries += 1;
            if tries == TRIES {
                self.count("lost");
                if let Some(outbox) = outbox.upgrade() {
                    outbox.close(CloseReason::ContinuityLost);
                }
                return;
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }

    /// `false` where nothing new was found out: the node knows no more than memory, or the other way round.
    async fn locate(&self, outbox: &Weak<Outbox>, id: SubscriptionId, lost: Lost, page: &mut Page) -> bool {
        self.archive.forget();
        page.clear();
        let Lost { block, up_to, logs } = lost;
        let located = self
            .archive
            .locate(block.hash, up_to, logs, self.settings.max_reorg)
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

/// Waits until a client has read most of what waits for it, or is gone.
async fn room(outbox: &Weak<Outbox>) {
    while outbox
        .upgrade()
        .is_some_and(|outbox| outbox.phase() == Phase::Open && !outbox.has_room())
    {
        tokio::time::sleep(LOOK).await;
    }
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
        let replays = &self.replays;
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
            .with_history(|history| replays.in_memory(history, self.start))?
        {
            return Ok(cursor);
        }
        let Start::After { block, log } = self.start else {
            return Ok(Cursor::from(tip + 1));
        };
        let located = replays
            .archive
            .locate(block, log, self.logs, replays.settings.max_reorg)
            .await;
        let Some(located) = located.map_err(|Unavailable| unavailable())? else {
            replays.count("unknown");
            let oldest = tip.saturating_sub(replays.settings.max_blocks);
            return Err(too_old(&format!("block {block} is not known"), oldest));
        };
        replays.within_reach(located.ancestor.number, tip)?;
        let mut cursor = Cursor::behind(located.ancestor, log);
        if located.ancestor.hash != block {
            cursor.retrace(located.undo, located.ancestor);
        }
        Ok(cursor)
    }
}

/// No node could be asked: nothing is said about the block.
fn unavailable() -> ErrorObjectOwned {
    error(INTERNAL_ERROR, "upstream unavailable")
}

/// The block cannot be resumed from; the error says which could.
fn too_old(what: &str, oldest: u64) -> ErrorObjectOwned {
    let message = format!("cannot resume: {what}; the oldest block to resume from is {oldest:#x}");
    error_with(
        RESOURCE_NOT_FOUND,
        message,
        &serde_json::json!({ "oldestBlock": format!("{oldest:#x}") }),
    )
}
