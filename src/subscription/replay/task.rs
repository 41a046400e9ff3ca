//! Task that replays the subscriptions of one client until they join the live stream, and the pages that it fetches.
//!
//! A step ([`crate::subscription::replay_group`]) happens under the registry's lock, so a stream that has caught up
//! joins without a gap or a repetition. Blocks older than memory are fetched between the steps, and no more is queued
//! than the client has room for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::Replays;
use crate::chain::{ContentKind, Fetch, Gap, History, Loss, Page};
use crate::delivery::{ClientWriter, CloseReason, Phase, SubscriptionId};
use crate::panics;
use crate::shares::{Charge, Owner, Place};
use crate::subscription::replay_group::{GroupKey, Lost, WaitFor};
use crate::subscription::{Level, LogFilter};
use crate::telemetry::ReasonLabel;

/// Interval at which the queue of a replaying client is checked for room.
const LOOK: Duration = Duration::from_millis(5);

/// Interval at which a task that waits for the chain checks if its client is still connected.
const STILL_THERE: Duration = Duration::from_secs(1);

/// Attempts without progress before the client is closed, half a second apart: the node may be behind, or in a reorg.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// Time without room in its queue after which a client gives up its page and its place; it gets both again when it
/// reads.
const STALLED: Duration = Duration::from_millis(250);

/// Wait before a page is fetched again for which there was no room in the budget.
const NO_ROOM: Duration = Duration::from_millis(100);

/// Most different filters of a client that nodes are asked for one by one; with more, all logs are fetched.
const FILTERS: usize = 4;

/// Blocks fetched for one client, with their place among the pages and their share of the budget.
struct HeldPage {
    page: Page,
    _place: Place,
    _charge: Charge,
    /// Set when other clients need these bytes.
    is_given_up: Arc<AtomicBool>,
}

impl Replays {
    pub(super) async fn run(self: Arc<Self>, writer: Weak<ClientWriter>, key: GroupKey, woken: Arc<Notify>) {
        let owner = writer.upgrade().map(|writer| writer.owner());
        if let Some(owner) = owner
            && panics::caught("replay", &self.metrics, self.replay(owner, &writer, key, &woken))
                .await
                .is_none()
            && let Some(writer) = writer.upgrade()
        {
            writer.close(CloseReason::Internal);
        }
        self.registry.end_replay(key, &woken);
    }

    async fn replay(&self, owner: Owner, writer: &Weak<ClientWriter>, key: GroupKey, woken: &Notify) {
        let (none, mut page): (_, Option<HeldPage>) = (Page::default(), None);
        let mut published = self.published.watch();
        let (mut tries, mut fetched) = (0, None);
        loop {
            // If everything is in memory, nothing else in this loop waits.
            tokio::task::consume_budget().await;
            published.borrow_and_update();
            let until = {
                let Some(writer) = writer.upgrade() else { return };
                let progress = self
                    .registry
                    .replay(key, page.as_ref().map_or(&none, |held| &held.page));
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
                WaitFor::Broken => {
                    if let Some(writer) = writer.upgrade() {
                        writer.close(CloseReason::FinalityBroken);
                    }
                    return;
                }
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
                WaitFor::Fetched(gap, filters, extras) => {
                    let generation = self.published.with_history(History::generation);
                    let asked = (std::mem::discriminant(&gap), gap.first(), filters.len(), extras.len());
                    drop(page.take());
                    let (contents, of) = (fetch(&filters), &extras[..]);
                    let Some(found) = self.fetch((owner, writer), generation, gap, contents, of).await else {
                        tokio::time::sleep(NO_ROOM).await;
                        continue;
                    };
                    // Fetching the same page twice is no progress.
                    let leads_on = !found.page.is_empty() && fetched.replace(asked) != Some(asked);
                    page = Some(found);
                    leads_on
                }
                WaitFor::Located(id, lost) => {
                    page = None;
                    self.locate(owner, writer, key, id, lost).await
                }
            };
            if found {
                tries = 0;
                continue;
            }
            tries += 1;
            if tries == TRIES {
                let reason = Loss::NoBackfill.label();
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
        fetch: Fetch,
        extras: &[ContentKind],
    ) -> Option<HeldPage> {
        let mut acquiring = std::pin::pin!(self.places.acquire(owner));
        let place = loop {
            if let Ok(place) = tokio::time::timeout(STILL_THERE, acquiring.as_mut()).await {
                break place.ok()?;
            }
            // A client that left gives up its turn.
            writer.upgrade().filter(|writer| writer.phase() == Phase::Open)?;
        };
        // The places of fetches are shared: a client that left gives up its own.
        let page = tokio::select! {
            page = self.archive.page(generation, gap, fetch, extras) => page,
            () = left(writer) => return None,
        };
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
    async fn locate(
        &self,
        owner: Owner,
        writer: &Weak<ClientWriter>,
        key: GroupKey,
        id: SubscriptionId,
        lost: Lost,
    ) -> bool {
        self.archive.forget();
        let Lost { block, up_to, logs } = lost;
        let located = self
            .archive
            .locate(owner, block.hash, up_to, logs, self.settings.max_reorg)
            .await;
        let (Ok(Some(located)), Some(writer)) = (located, writer.upgrade()) else {
            return false;
        };
        if key.level.is_some_and(Level::is_final) && located.left.ancestor != block {
            writer.close(CloseReason::FinalityBroken);
            return true;
        }
        let branch: Vec<_> = located.left.blocks.iter().copied().collect();
        let mut found = true;
        self.registry.with_cursor(key, id, |cursor, history| {
            if let Some(cursor) = cursor {
                found = cursor.found(history, block, located, logs);
            }
        });
        self.registry.leave_branch(key, id, &branch);
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

/// Waits until a client is gone.
async fn left(writer: &Weak<ClientWriter>) {
    while writer.upgrade().is_some_and(|writer| writer.phase() == Phase::Open) {
        tokio::time::sleep(STILL_THERE).await;
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
