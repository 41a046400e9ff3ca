//! The subscriptions of one client that replay missed events, and the step in which they advance together: block by
//! block, heads before logs, so that the order across them (E3) is that of the live stream. No I/O.

mod member;
mod round;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::chain::{BlockRef, ContentKind, Cursor, Gap, History, Next, Page, PublishedBlock, Retraction};
use crate::clock::Moment;
use crate::delivery::{Kind, Phase, SubscriptionId};

use self::member::ReplayMember;
use self::round::Round;
use super::subscriber::{ClientKey, Subscriber};
use super::trail::WalkPlace;
use super::{Level, LogFilter, Stream};

/// Bound of one turn, in blocks and logs visited, some tens of nanoseconds each: a turn keeps the registry's lock for
/// a fraction of a millisecond, and for at least one round of a client's streams.
const TURN: usize = 8_192;

/// Identity of a group: a client, and the level of finality that the streams wait for, `None` for those that follow the
/// head. Streams of different levels have no order among each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupKey {
    client: ClientKey,
    pub(super) level: Option<Level>,
}

impl GroupKey {
    pub(super) fn new(client: ClientKey, level: Option<Level>) -> Self {
        Self { client, level }
    }

    pub(super) fn client(self) -> ClientKey {
        self.client
    }
}

/// End of the replay of a group, where its streams join the others.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    /// The head of the chain.
    Head,
    /// The place of a level's walk; `None` until it is known.
    Trail(Level, Option<WalkPlace>),
}

/// A client's subscriptions that are not yet live.
#[derive(Debug, Default)]
pub(super) struct ReplayGroup {
    level: Option<Level>,
    all: Vec<ReplayMember>,
    /// Wakes the task that replays for this client; `None` if there is none.
    claimed: Option<Arc<Notify>>,
}

/// Result of a step.
#[derive(Debug)]
pub struct Progress {
    /// `true` if events were queued.
    pub wrote: bool,
    /// Condition for the next step.
    pub until: WaitFor,
}

/// Condition that a replay waits for.
#[derive(Debug)]
pub enum WaitFor {
    /// Room in the client's queue.
    Room,
    /// A newly published block, newly delivered logs, or the answer to a subscription.
    News,
    /// Other tasks' turn.
    Turn,
    /// Blocks, or logs of blocks, that are not in memory; of the logs, those that match these filters.
    Fetched(Gap, Vec<Arc<LogFilter>>, Vec<ContentKind>),
    /// Search for a block that is not in memory.
    Located(SubscriptionId, Lost),
    /// Nothing: a reorg dropped a block behind which a stream of finality stands.
    Broken,
    /// Nothing: all streams are live, or the client is gone.
    Done,
}

/// Place of a stream behind a block that is not in memory.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    pub(super) block: BlockRef,
    pub(super) up_to: Option<u64>,
    pub(super) logs: bool,
}

/// Stream that has caught up, its subscriber, and the number of the first block that it covers (0 for all).
pub(super) type Caught = (Stream, Subscriber, u64);

impl ReplayGroup {
    /// Creates a group of streams of this level.
    pub(super) fn at(level: Option<Level>) -> Self {
        Self {
            level,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, stream: Stream, cursor: Option<Cursor>, subscriber: Subscriber) {
        self.all.push(ReplayMember::new(stream, cursor, subscriber));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Checks if any of the streams follows the head and is of logs: then new blocks need their logs at once.
    pub(super) fn need_logs(&self) -> bool {
        self.level.is_none() && self.all.iter().any(|member| member.stream.kind() == Kind::Logs)
    }

    /// Returns the kinds of contents that the page fetched next has to bring.
    fn extras(&self) -> Vec<ContentKind> {
        let wanted = |kind: &ContentKind| self.all.iter().any(|member| member.stream.needs_extra(*kind));
        ContentKind::ALL.into_iter().filter(wanted).collect()
    }

    /// Returns the subscribers whose streams are behind one of these blocks.
    pub(super) fn behind_any<'a>(&'a self, blocks: &'a [PublishedBlock]) -> impl Iterator<Item = &'a Subscriber> {
        let is_behind = |member: &&ReplayMember| {
            let block = member.cursor.as_ref().and_then(Cursor::is_behind);
            block.is_some_and(|block| blocks.iter().any(|own| own.header.block == block))
        };
        self.all.iter().filter(is_behind).map(|member| &member.subscriber)
    }

    /// Returns the filters of all log streams, for the page that is fetched next.
    fn ask_for_all(&mut self) -> Vec<Arc<LogFilter>> {
        let ask = |member: &mut ReplayMember| match &member.stream {
            Stream::Logs(filter) => {
                member.is_asked_for = true;
                Some(filter.clone())
            }
            // A message lists all logs that match; those of a page for several filters would be too few.
            Stream::Blocks(_) => Some(Arc::default()),
            Stream::Heads | Stream::Mined(_) | Stream::Receipts(_) => None,
        };
        self.all.iter_mut().filter_map(ask).collect()
    }

    pub(super) fn subscribers(&self) -> impl Iterator<Item = &Subscriber> {
        self.all.iter().map(|member| &member.subscriber)
    }

    pub(super) fn cursor(&mut self, id: SubscriptionId) -> Option<&mut Option<Cursor>> {
        let member = self
            .all
            .iter_mut()
            .find(|member| member.subscriber.recipient.id() == id)?;
        member.left_behind = None;
        Some(&mut member.cursor)
    }

    /// Returns the cursors of all members whose place is known.
    pub(super) fn cursors(&self) -> impl Iterator<Item = (SubscriptionId, &Cursor)> {
        let members = self.all.iter();
        members.filter_map(|member| Some((member.subscriber.recipient.id(), member.cursor.as_ref()?)))
    }

    pub(super) fn cursor_of(&self, id: SubscriptionId) -> Option<&Cursor> {
        let member = self.all.iter().find(|member| member.subscriber.recipient.id() == id)?;
        member.cursor.as_ref()
    }

    /// Has the streams located that are behind one of these blocks, on a branch that the stream `id` has left: while one
    /// stream goes on along the new branch, another would follow only where it meets the new blocks, and its removals
    /// would come behind their heads (E3).
    pub(super) fn leave(&mut self, id: SubscriptionId, branch: &[BlockRef]) {
        for member in &mut self.all {
            let block = member.cursor.as_ref().and_then(Cursor::is_behind);
            if member.subscriber.recipient.id() != id {
                member.left_behind = block.filter(|block| branch.contains(block));
            }
        }
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) -> Option<Subscriber> {
        let at = self
            .all
            .iter()
            .position(|member| member.subscriber.recipient.id() == id)?;
        Some(self.all.swap_remove(at).subscriber)
    }

    /// Claims the replay of this client: returns the notifier of the new task. `None` if a task already replays; that
    /// task is woken.
    pub(super) fn claim(&mut self) -> Option<Arc<Notify>> {
        if let Some(claimed) = &self.claimed {
            claimed.notify_one();
            return None;
        }
        Some(self.claimed.insert(Arc::default()).clone())
    }

    /// Ends the claim of the task with this notifier, unless another task has claimed the replay meanwhile.
    pub(super) fn unclaim(&mut self, woken: &Arc<Notify>) {
        self.claimed.take_if(|claimed| Arc::ptr_eq(claimed, woken));
    }

    /// Checks if there are neither streams nor a task.
    pub(super) fn is_over(&self) -> bool {
        self.all.is_empty() && self.claimed.is_none()
    }

    /// Queues the next events, the oldest block first, until the queue is full, nothing more is available, or the
    /// turn is over. Returns the streams that join the live stream.
    pub(super) fn advance(
        &mut self,
        history: &History,
        page: &Page,
        goal: Goal,
        now: Moment,
    ) -> (Progress, Vec<Caught>) {
        let mut wrote = false;
        let mut steps = 0;
        let until = loop {
            if steps >= TURN {
                break WaitFor::Turn;
            }
            steps += self.all.len();
            let round = Round::of(&mut self.all, history, page, goal);
            if round.broken {
                break WaitFor::Broken;
            }
            if let Some((id, lost)) = round.lost {
                break WaitFor::Located(id, lost);
            }
            if round.first.is_empty() {
                // No stream is behind: level streams join together, lest the next head overtakes the logs of this
                // block.
                if round.pending {
                    break WaitFor::News;
                }
                for &i in &round.level {
                    let member = &mut self.all[i];
                    if let Some(mark) = member.caught_up() {
                        wrote = true;
                        let Subscriber { recipient, writer } = &member.subscriber;
                        let _flush = writer.push_events(recipient, &mark, now);
                    }
                }
                let joining = round.level.into_iter().rev().map(|i| self.join(i)).collect();
                let until = if self.all.is_empty() {
                    WaitFor::Done
                } else {
                    WaitFor::News
                };
                return (Progress { wrote, until }, joining);
            }
            if round.below {
                break match history.gap(round.number) {
                    Some(gap) => WaitFor::Fetched(gap, self.ask_for_all(), self.extras()),
                    None => WaitFor::News,
                };
            }
            let lacking = |(i, next): &(usize, Next)| {
                let Next::Block(own) = next else { return false };
                let stream = &self.all[*i].stream;
                let is_lacking = |kind: &ContentKind| page.content(own.header.block.hash, *kind).is_none();
                let mut needed = ContentKind::ALL.into_iter().filter(|kind| stream.needs_extra(*kind));
                needed.any(|kind| is_lacking(&kind))
            };
            if round.first.iter().any(lacking) {
                break match history.gap_of_contents(round.number) {
                    Some(gap) => WaitFor::Fetched(gap, self.ask_for_all(), self.extras()),
                    None => WaitFor::News,
                };
            }
            for (_, next) in &round.first {
                steps += match next {
                    Next::Block(own) => own.logs.as_ref().map_or(0, |logs| logs.logs.len()),
                    Next::Retraction(Retraction { logs, .. }) | Next::Rest(logs, _) => logs.logs.len(),
                    _ => 0,
                };
            }
            match self.tell(round.first, page, now) {
                Ok(some) => wrote |= some,
                Err((some, until)) => {
                    wrote |= some;
                    break until;
                }
            }
        };
        (Progress { wrote, until }, Vec::new())
    }

    /// Queues the events of one block for the streams in `first`. Returns `true` if there were any; the error holds
    /// the same, and the condition to wait for before the rest.
    fn tell(&mut self, mut first: Vec<(usize, Next)>, page: &Page, now: Moment) -> Result<bool, (bool, WaitFor)> {
        let mut wrote = false;
        first.sort_by_key(|(i, _)| self.all[*i].stream.kind() as u8);
        for (i, next) in first {
            let member = &mut self.all[i];
            let writer = &member.subscriber.writer;
            if writer.phase() != Phase::Open {
                return Err((wrote, WaitFor::Done));
            }
            if !writer.has_room() {
                return Err((wrote, WaitFor::Room));
            }
            let events = member.stream.events(&next, page, member.ids());
            let mark = member.mark(&next, events.is_some());
            for batch in events.into_iter().chain(mark) {
                wrote = true;
                // The caller flushes in any case.
                let _flush = member
                    .subscriber
                    .writer
                    .push_events(&member.subscriber.recipient, &batch, now);
            }
            if let Some(cursor) = &mut member.cursor {
                cursor.record_sent(&next);
            }
        }
        Ok(wrote)
    }

    fn join(&mut self, i: usize) -> Caught {
        let member = self.all.swap_remove(i);
        let first = member.cursor.map_or(0, |cursor| cursor.first());
        (member.stream, member.subscriber, first)
    }
}
