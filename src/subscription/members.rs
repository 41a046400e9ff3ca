//! The subscriptions of one client that are told what came before, and the step in which they go on together: block by
//! block, heads before logs, so that the order across them (E3) is that of the live stream. No I/O.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use crate::chain::{BlockRef, Cursor, Gap, History, Log, Needs, Next, Page, Undo};
use crate::clock::Millis;
use crate::delivery::{Batch, Event, Kind, Phase, SubscriptionId};

use super::subscriber::Subscriber;
use super::{LogFilter, Stream};

/// What a turn may cost, in blocks and logs looked at, some tens of nanoseconds each: the registry's lock is held for a
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
    /// Its logs were among those for which the page at hand was fetched.
    is_asked_for: bool,
    /// Known when the block was found.
    cursor: Option<Cursor>,
    subscriber: Subscriber,
}

/// What a stream that can be resumed is about.
#[derive(Clone, Debug)]
enum Wants {
    Heads,
    Logs(Arc<LogFilter>),
}

impl Wants {
    fn kind(&self) -> Kind {
        match self {
            Self::Heads => Kind::Heads,
            Self::Logs(_) => Kind::Logs,
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
    /// Blocks, or logs of blocks, that memory has not; with the logs that match these filters.
    Fetched(Gap, Vec<Arc<LogFilter>>),
    /// A place that memory does not know is found.
    Located(SubscriptionId, Lost),
    /// Nothing: all are live, or the client is gone.
    Done,
}

/// A stream stands behind a block that is not known.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    pub(super) block: BlockRef,
    pub(super) up_to: Option<u64>,
    pub(super) logs: bool,
}

/// A stream that has been told everything: what it wants, who wants it, and the first block that it was told.
pub(super) type Level = (Stream, Subscriber, u64);

impl Members {
    pub fn add(&mut self, stream: Stream, cursor: Option<Cursor>, subscriber: Subscriber) {
        let wants = match stream {
            Stream::Logs(filter) => Wants::Logs(filter.into()),
            Stream::Heads => Wants::Heads,
        };
        self.all.push(Member {
            wants,
            is_asked_for: false,
            cursor,
            subscriber,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether any of them is about logs.
    pub fn need_logs(&self) -> bool {
        self.all.iter().any(|member| member.wants.kind() == Kind::Logs)
    }

    /// The filters of all, for which a page is fetched now.
    fn ask_for_all(&mut self) -> Vec<Arc<LogFilter>> {
        let ask = |member: &mut Member| match &member.wants {
            Wants::Heads => None,
            Wants::Logs(filter) => {
                member.is_asked_for = true;
                Some(filter.clone())
            }
        };
        self.all.iter_mut().filter_map(ask).collect()
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

    /// Queues what comes next, the oldest block first, until there is no more room, nothing more to be had, or it is the
    /// turn of others.
    pub fn advance(&mut self, history: &History, page: &Page, now: Millis) -> (Progress, Vec<Level>) {
        let mut wrote = false;
        let mut steps = 0;
        let until = loop {
            if steps >= TURN {
                break Until::Turn;
            }
            steps += self.all.len();
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
                break match history.gap(round.number) {
                    Some(gap) => Until::Fetched(gap, self.ask_for_all()),
                    None => Until::News,
                };
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
        let stream = match member.wants {
            Wants::Heads => Stream::Heads,
            Wants::Logs(filter) => Stream::Logs(Arc::unwrap_or_clone(filter)),
        };
        let first = member.cursor.map_or(0, |cursor| cursor.first());
        (stream, member.subscriber, first)
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
        let mut awaited = u64::MAX;
        for (i, member) in all.iter_mut().enumerate() {
            let Member {
                wants,
                is_asked_for,
                cursor: Some(cursor),
                subscriber,
            } = member
            else {
                continue;
            };
            if !subscriber.recipient.is_answered() {
                continue;
            }
            let needs = match wants {
                Wants::Heads => Needs::Headers,
                Wants::Logs(_) if *is_asked_for => Needs::MatchingLogs,
                Wants::Logs(_) => Needs::Logs,
            };
            let next = cursor.next(history, page, needs);
            let number = match &next {
                Next::Ahead => continue,
                Next::Pending => {
                    round.pending = true;
                    continue;
                }
                Next::Awaited(number) => {
                    round.pending = true;
                    awaited = awaited.min(*number);
                    continue;
                }
                // A reorg may take back logs that the client has from before: they are fetched first.
                Next::Level if wants.kind() == Kind::Logs && history.without_logs().next().is_some() => {
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
        // The next head comes behind the logs of this block (E3).
        if round.number > awaited {
            round.first.clear();
        }
        round
    }
}

/// What a stream is told; `None` where the filter wants nothing of it.
fn events(wants: &Wants, next: &Next) -> Option<Arc<Batch>> {
    let events: Vec<Event> = match (wants, next) {
        (Wants::Heads, Next::Block(own)) => vec![Event::new(&own.header.json)],
        (Wants::Logs(filter), next) => {
            let (logs, removed) = match next {
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
