//! The levels of finality with subscriptions, and the effects of chain events on them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::flush::DirtyClients;
use super::level::end_at_depth;
use super::replay_group::{GroupKey, ReplayGroup};
use super::subscriber::{ClientKey, Subscriber};
use super::tables::{IndexSlot, Tables};
use super::trail::{Basis, Retry, Step, Trail, WalkPlace};
use super::{Level, Stream};
use crate::chain::{
    Absent, BlockRef, ContentKind, Cursor, FetchedContent, Gap, Header, MAX_FETCHES, Page, PublishedBlock, SentExtent,
    Tag, Tagged,
};
use crate::clock::Moment;
use crate::delivery::{ClientWriter, CloseReason, SubscriptionId};
use crate::shares::Owner;

/// Blocks delivered at one level before others have their turn.
const TURN: usize = 8;

/// Pages in a row that do not lead on, half a second apart, after which the streams of a level end: a node that restarts
/// is back before that.
const TRIES: u32 = 120;

/// Most depths (`confirmations`) in use at the same time: each has a walk of its own, which fetches the contents of its
/// blocks and encodes them anew.
const MAX_DEPTHS: usize = 16;

/// Most depths that one account may have opened.
const MAX_DEPTHS_OF_ACCOUNT: usize = 4;

/// Contents fetched for the levels, in bytes of JSON, above which only those of the next block of each are fetched.
const MAX_AHEAD_BYTES: usize = 64 << 20;

/// Trails by their level.
#[derive(Debug, Default)]
pub(super) struct Trails {
    by_level: BTreeMap<Level, Trail>,
    /// `true` once a node had a block of a tag: depth never takes the place of this chain's tags.
    has_tags: bool,
}

/// State of one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelState {
    /// The level.
    pub level: Level,
    /// Number of the newest block that has reached it, as far as it was delivered.
    pub number: Option<u64>,
    /// Source of that number: `tag`, `depth`, `none` without either, or `unknown`.
    pub basis: &'static str,
    /// Subscriptions.
    pub subscriptions: usize,
}

/// Position of a level that subscriptions wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// Not known yet.
    Unknown,
    /// Known.
    Begun,
    /// No block has this level.
    Absent,
}

/// Work that follows from an advance.
#[derive(Debug, Default)]
pub(super) struct TrailWork {
    /// Blocks older than memory that walks need.
    pub gaps: Vec<(Level, Gap, Retry)>,
    /// Clients that read too slowly for a jump of the level, and replay by themselves.
    pub paged: BTreeMap<ClientKey, Arc<ClientWriter>>,
    /// `true` if more can be delivered at once.
    pub again: bool,
    /// `true` if other contents are to be fetched.
    pub needs: bool,
    /// `true` if a level has moved.
    pub moved: bool,
}

impl Trails {
    /// Returns the trail of this level, to which a subscription of `owner` is added.
    pub(super) fn of(&mut self, level: Level, owner: Owner) -> &mut Trail {
        self.by_level.entry(level).or_insert_with(|| Trail::opened_by(owner))
    }

    /// Checks if `owner` may subscribe to this level.
    ///
    /// # Errors
    /// The client's error text, if the level is a depth that nobody uses yet, and there can be no more of them.
    pub(super) fn admit(&self, level: Level, owner: Owner) -> Result<(), String> {
        if !matches!(level, Level::Confirmations(_)) || self.by_level.contains_key(&level) {
            return Ok(());
        }
        let depths = self
            .by_level
            .iter()
            .filter(|(level, _)| matches!(level, Level::Confirmations(_)));
        let (mut all, mut own) = (0, 0);
        for (_, trail) in depths {
            all += 1;
            own += usize::from(trail.opener() == Some(owner));
        }
        if own >= MAX_DEPTHS_OF_ACCOUNT {
            return Err(format!(
                "limit exceeded: {MAX_DEPTHS_OF_ACCOUNT} different confirmations of this client"
            ));
        }
        if all >= MAX_DEPTHS {
            return Err(format!(
                "limit exceeded: {MAX_DEPTHS} different confirmations of all clients"
            ));
        }
        Ok(())
    }

    /// Returns the place of a level's walk; `None` until it is known.
    pub(super) fn place(&self, level: Level) -> Option<WalkPlace> {
        self.by_level.get(&level).and_then(Trail::place)
    }

    /// Returns the extent of a level's walk; `None` until it has begun.
    pub(super) fn extent(&self, level: Level) -> Option<SentExtent> {
        self.by_level.get(&level)?.extent()
    }

    pub(super) fn reached(&self, level: Level) -> Reached {
        match self.by_level.get(&level) {
            Some(trail) if trail.next().is_some() => Reached::Begun,
            Some(trail) if trail.basis() == Basis::Absent => Reached::Absent,
            _ => Reached::Unknown,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_level.is_empty()
    }

    /// Returns the longest time for which the next block of a level has waited for contents of this kind.
    pub(super) fn waiting(&self, kind: ContentKind, now: Moment) -> Duration {
        let waiting = self.by_level.values().filter(|trail| trail.is_waiting_for(kind));
        let times = waiting.filter_map(|trail| Some(now.since(trail.waiting_since?)));
        times.max().unwrap_or_default()
    }

    pub(super) fn levels(&self) -> impl Iterator<Item = Level> {
        self.by_level.keys().copied()
    }

    /// Checks if a tag is wanted.
    pub(super) fn want(&self, tag: Tag) -> bool {
        self.by_level.contains_key(&Level::Tag(tag))
    }

    pub(super) fn states(&self) -> Vec<LevelState> {
        let states = self.by_level.iter().map(|(level, trail)| LevelState {
            level: *level,
            number: trail.next().and_then(|next| next.checked_sub(1)),
            basis: match trail.basis() {
                Basis::Unknown => "unknown",
                Basis::Tag => "tag",
                Basis::Depth => "depth",
                Basis::Absent => "none",
            },
            subscriptions: trail.subscriptions(),
        });
        states.collect()
    }

    /// Removes a member.
    pub(super) fn remove(&mut self, level: Level, id: SubscriptionId) -> Option<Subscriber> {
        let removed = self.by_level.get_mut(&level)?.remove(id);
        self.tidy(level);
        removed.map(|(_, subscriber)| subscriber)
    }

    /// Records that a subscription of this level no longer replays.
    pub(super) fn left_replay(&mut self, level: Level) {
        if let Some(trail) = self.by_level.get_mut(&level) {
            trail.replaying = trail.replaying.saturating_sub(1);
        }
        self.tidy(level);
    }

    fn tidy(&mut self, level: Level) {
        if self.by_level.get(&level).is_some_and(Trail::is_unused) {
            self.by_level.remove(&level);
        }
    }

    /// Returns contents to fetch for the next blocks of all levels: the next block of each level first, lest one level
    /// waits for another.
    pub(super) fn needed(&self) -> Vec<(ContentKind, Header)> {
        let mut needed: Vec<(ContentKind, Header)> = Vec::new();
        let most = self
            .by_level
            .values()
            .map(|trail| trail.awaited().len())
            .max()
            .unwrap_or(0);
        let ahead = self.by_level.values().map(Trail::fetched_bytes).sum::<usize>() < MAX_AHEAD_BYTES;
        for at in 0..most {
            let takes = |trail: &&Trail| ahead || trail.awaits_next(at);
            let trails = self.by_level.values().filter(takes);
            for (kind, header) in trails.filter_map(|trail| trail.awaited().get(at)) {
                let is_new = |(own, of): &(ContentKind, Header)| own != kind || of.block != header.block;
                if needed.len() < MAX_FETCHES && needed.iter().all(is_new) {
                    needed.push((*kind, header.clone()));
                }
            }
        }
        needed
    }

    /// Closes all subscribers: the chain is not connected with the blocks that they have.
    pub(super) fn lose_continuity(&mut self) {
        for trail in self.by_level.values_mut() {
            close(trail.subscribers(), CloseReason::ContinuityLost);
            trail.reset();
        }
    }
}

fn close<'a>(subscribers: impl Iterator<Item = &'a Subscriber>, reason: CloseReason) {
    subscribers.for_each(|subscriber| subscriber.writer.close(reason));
}

impl Tables {
    /// Takes back what the head's trail delivered of dropped blocks, and ends the streams of other levels that had any.
    /// Blocks are given oldest first.
    pub(super) fn break_trails(&mut self, dropped: &[PublishedBlock], due: &mut DirtyClients, now: Moment) {
        let Some(oldest) = dropped.first() else { return };
        let first = oldest.number();
        let fork = oldest.header.parent;
        let fork = self
            .published
            .with_history(|history| history.find(fork).map(|own| own.header.block));
        // Numbers may have holes, and the new branch blocks where the old one had none.
        let end = fork.map_or(first, |fork| fork.number.saturating_add(1));
        let mut trails = std::mem::take(&mut self.trails);
        if let Some(trail) = trails.by_level.get_mut(&Level::Head)
            && trail.is_broken_by(end, first)
        {
            self.take_back_blocks(trail, fork, dropped, due, now);
        }
        self.trails = trails;
        let Self { trails, replays, .. } = self;
        for (level, trail) in trails.by_level.iter_mut().filter(|(level, _)| level.is_final()) {
            if trail.is_broken_by(end, first) {
                end_streams(*level, trail, replays, CloseReason::FinalityBroken);
            } else {
                // The client stands behind a block that never had the level.
                let groups = replays.iter().filter(|(key, _)| key.level == Some(*level));
                let stranded = groups.flat_map(|(_, group)| group.behind_any(dropped));
                close(stranded, CloseReason::FinalityBroken);
            }
        }
    }

    /// Takes whole blocks back that the trail of the head had delivered, newest first.
    fn take_back_blocks(
        &mut self,
        trail: &mut Trail,
        fork: Option<BlockRef>,
        dropped: &[PublishedBlock],
        due: &mut DirtyClients,
        now: Moment,
    ) {
        let next = trail.next().unwrap_or(0);
        let is_delivered = |own: &&PublishedBlock| {
            own.number() < next && trail.subscribers().any(|sub| sub.recipient.was_sent(own.number()))
        };
        let delivered: Vec<&PublishedBlock> = dropped.iter().rev().filter(is_delivered).collect();
        let all = delivered.iter().all(|own| own.logs.is_some());
        let Some(fork) = fork.filter(|_| all) else {
            // What was delivered is no longer known.
            end_streams(Level::Head, trail, &self.replays, CloseReason::ContinuityLost);
            return;
        };
        for own in delivered {
            if let Some(logs) = &own.logs {
                trail.take_back(&own.header, logs, &|payload| self.event(payload), due, now);
            }
        }
        trail.rewind(fork);
    }

    /// Records a node's answer about a tag, unless it says nothing about the published chain. `depth` takes the place of
    /// tags on a chain that has none; 0 for nothing.
    pub(super) fn note_tag(&mut self, tag: Tag, tagged: Tagged, depth: u64) {
        let head = self.published.with_history(|history| Some(history.head()?.number));
        let Some(head) = head else { return };
        if let Tagged::Block(block) = tagged {
            if block.number > head {
                self.trails.has_tags = true;
                if let Some(trail) = self.trails.by_level.get_mut(&Level::Tag(tag)) {
                    trail.reach_later(block);
                }
                return;
            }
            // A node on another branch, or one that contradicts itself, proves nothing about this chain.
            let is_ours = self.published.with_history(|history| {
                history.oldest().is_some_and(|oldest| block.number < oldest.number()) || history.is_canonical(block)
            });
            if !is_ours {
                return;
            }
            self.note_final(tag, block);
        }
        let Some(trail) = self.trails.by_level.get_mut(&Level::Tag(tag)) else {
            return;
        };
        match tagged {
            Tagged::Block(block) => {
                self.trails.has_tags = true;
                trail.reach(block.number.saturating_add(1), Basis::Tag);
            }
            Tagged::None if depth > 0 && !self.trails.has_tags => {
                trail.reach(end_at_depth(head, depth.saturating_add(1)), Basis::Depth);
            }
            Tagged::None => trail.lack(),
            Tagged::Refused | Tagged::Unknown => {}
        }
    }

    /// Records a block of a tag that the published chain has as final for calls, if the tag is `finalized`.
    fn note_final(&self, tag: Tag, block: BlockRef) {
        if tag == Tag::Finalized {
            self.published.reader().note_final(block.number);
        }
    }

    /// Delivers blocks that have reached their level, some at a time.
    pub(super) fn advance_trails(&mut self, due: &mut DirtyClients, now: Moment) -> TrailWork {
        let mut work = TrailWork::default();
        let head = self.published.with_history(|history| history.head());
        let Some(head) = head else { return work };
        let mut trails = std::mem::take(&mut self.trails);
        for (level, trail) in &mut trails.by_level {
            if let Some(end) = level.end_at(head.number) {
                trail.reach(end, Basis::Depth);
            }
            let caught_up = self
                .published
                .with_history(|history| trail.catch_up_with_tag(history, head.number));
            if let (Level::Tag(tag), Some(block)) = (level, caught_up) {
                self.note_final(*tag, block);
            }
            self.advance_trail(*level, trail, &mut work, due, now);
        }
        self.trails = trails;
        work
    }

    fn advance_trail(
        &mut self,
        level: Level,
        trail: &mut Trail,
        work: &mut TrailWork,
        due: &mut DirtyClients,
        now: Moment,
    ) {
        for _ in 0..TURN {
            match self.published.with_history(|history| trail.step(history)) {
                Step::Idle => return,
                Step::Begin => work.moved = true,
                Step::Await => {
                    trail.waiting_since.get_or_insert(now);
                    work.needs = true;
                    return;
                }
                Step::Fetch(gap, retry) => {
                    work.gaps.push((level, gap, retry));
                    return;
                }
                Step::Broken => {
                    end_streams(level, trail, &self.replays, CloseReason::FinalityBroken);
                    return;
                }
                Step::Deliver(block) => {
                    trail.waiting_since = None;
                    work.moved = true;
                    let full = trail.deliver(&block, &|payload| self.event(payload), due, now);
                    for (stream, subscriber, cursor) in trail.leave(&full) {
                        trail.replaying += 1;
                        self.page_alone(level, stream, subscriber, cursor, work);
                    }
                }
            }
        }
        work.again = true;
    }

    /// Moves a member to the replays of its client.
    fn page_alone(
        &mut self,
        level: Level,
        stream: Stream,
        subscriber: Subscriber,
        cursor: Cursor,
        work: &mut TrailWork,
    ) {
        let (id, kind, writer) = (subscriber.recipient.id(), stream.kind(), subscriber.writer.clone());
        let key = GroupKey::new(writer.id(), Some(level));
        let group = self.replays.entry(key).or_insert_with(|| ReplayGroup::at(key.level));
        group.add(stream, Some(cursor), subscriber);
        self.joined.insert(id, IndexSlot::Resumed(kind, key));
        work.paged.insert(writer.id(), writer);
    }

    /// Takes a page for the walk of a level; ends the level's streams after too many that do not lead on.
    pub(super) fn trail_page(&mut self, level: Level, page: Page) {
        let Self { trails, replays, .. } = self;
        if let Some(trail) = trails.by_level.get_mut(&level)
            && trail.fetched_page(page) >= TRIES
        {
            end_streams(level, trail, replays, CloseReason::ContinuityLost);
        }
    }

    /// Gives fetched contents to the levels that await them. If no node has them, the subscribers that need them are
    /// closed; returns the reason. Live subscriptions go on: contents of old blocks may be pruned, or be more than a node
    /// gives.
    pub(super) fn trail_contents(&mut self, fetched: &FetchedContent) -> Option<Absent> {
        let FetchedContent { block, kind, result } = fetched;
        let mut lost = None;
        for trail in self.trails.by_level.values_mut() {
            let is_awaited = trail.take(*block, *kind, result.as_ref().ok());
            if let Err(why) = result
                && is_awaited
            {
                let mut subscribers = trail.subscribers_to(*kind).peekable();
                lost = lost.or(subscribers.peek().map(|_| *why));
                close(subscribers, CloseReason::ContinuityLost);
            }
        }
        lost
    }
}

/// Closes all subscribers of a level, those that replay included.
fn end_streams(level: Level, trail: &mut Trail, replays: &HashMap<GroupKey, ReplayGroup>, reason: CloseReason) {
    close(trail.subscribers(), reason);
    let groups = replays.iter().filter(|(key, _)| key.level == Some(level));
    close(groups.flat_map(|(_, group)| group.subscribers()), reason);
    trail.reset();
}
