//! One round over the streams of a client: the oldest block that any of them is at.

use super::member::ReplayMember;
use super::{Goal, Lost};
use crate::chain::{BlockRef, ContentKind, Cursor, History, Needs, Next, Page, PublishedBlock};
use crate::delivery::{Kind, SubscriptionId};
use crate::subscription::trail::WalkPlace;
use crate::subscription::{Level, Stream};

/// Positions of all streams of a client.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Streams at the oldest block that any stream is at, with their next events; and the number of that block.
    pub(super) first: Vec<(usize, Next)>,
    pub(super) number: u64,
    /// `true` if that block has to be fetched.
    pub(super) below: bool,
    pub(super) level: Vec<usize>,
    pub(super) pending: bool,
    pub(super) lost: Option<(SubscriptionId, Lost)>,
    /// `true` if a stream of finality is behind a dropped block.
    pub(super) broken: bool,
}

impl Round {
    pub(super) fn of(all: &mut [ReplayMember], history: &History, page: &Page, goal: Goal) -> Self {
        let mut round = Self::default();
        let mut awaited = u64::MAX;
        for (i, member) in all.iter_mut().enumerate() {
            let ReplayMember {
                stream,
                is_asked_for,
                cursor: Some(cursor),
                left_behind,
                subscriber,
                ..
            } = member
            else {
                continue;
            };
            if !subscriber.recipient.is_answered() {
                continue;
            }
            let needs = match stream {
                Stream::Blocks(_) => Needs::Blocks,
                Stream::Heads | Stream::Mined(_) | Stream::Receipts(_) => Needs::Headers,
                Stream::Logs(_) if *is_asked_for => Needs::MatchingLogs,
                Stream::Logs(_) => Needs::Logs,
            };
            let next = match (goal, left_behind) {
                (Goal::Head, Some(block)) => Next::Lost(*block),
                (Goal::Head, None) => cursor.next(history, page, needs),
                (Goal::Trail(level, walk), _) => match next_below(level, walk, cursor, history, page, needs) {
                    Some(next) => next,
                    None => {
                        round.broken = true;
                        return round;
                    }
                },
            };
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
                // A reorg may take back logs that the client got before it resumed: logs that memory lacks are
                // fetched first.
                Next::Level
                    if matches!(goal, Goal::Head)
                        && stream.kind() == Kind::Logs
                        && history.without_logs().next().is_some() =>
                {
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
                        up_to: cursor.last_log_of(*block),
                        logs: stream.needs(ContentKind::Logs),
                    };
                    round.lost = Some((subscriber.recipient.id(), lost));
                    return round;
                }
                Next::Retraction(_) => 0,
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
        // The next head is delivered after the logs of this block (E3).
        if round.number > awaited {
            round.first.clear();
        }
        round
    }
}

/// Returns the next step of a stream that joins a level where its walk is; `None` if the stream takes nothing back and is
/// behind a block that a reorg dropped.
fn next_below(
    level: Level,
    walk: Option<WalkPlace>,
    cursor: &mut Cursor,
    history: &History,
    page: &Page,
    needs: Needs,
) -> Option<Next> {
    let is_dropped = cursor.is_behind().is_some_and(|block| history.is_dropped(block));
    if is_dropped && level.is_final() {
        return None;
    }
    let Some(WalkPlace { next: end, behind }) = walk.filter(|walk| is_dropped || cursor.first_ahead() <= walk.next)
    else {
        return Some(Next::Ahead);
    };
    if !is_dropped && cursor.first_ahead() == end && cursor.is_at_a_start() {
        match meeting(cursor, behind, history, page) {
            Meeting::Joins => return Some(Next::Level),
            Meeting::Waits => return Some(Next::Ahead),
            Meeting::Differs(_) => {}
        }
    }
    let next = cursor.next(history, page, needs);
    let meeting = meeting(cursor, behind, history, page);
    let may_join = !is_dropped && matches!(meeting, Meeting::Joins);
    Some(match next {
        Next::Retraction(_) if level.is_final() => return None,
        Next::Block(own) if own.number() >= end => match meeting {
            Meeting::Waits => Next::Ahead,
            Meeting::Differs(Some(last)) => Next::Lost(last),
            Meeting::Joins | Meeting::Differs(None) => Next::Level,
        },
        Next::Below(number) if number >= end && may_join => Next::Level,
        Next::Awaited(number) if number >= end && may_join => Next::Level,
        // The logs of the chain's newest block are being fetched: the client's heads wait for them, as for those of
        // older blocks. The level may have this block already, if none of its members needs logs.
        Next::Level => match history.tip().map(PublishedBlock::number) {
            Some(tip) if tip >= end => Next::Level,
            Some(tip) if tip >= cursor.first_ahead() => Next::Awaited(tip),
            _ => Next::Ahead,
        },
        other => other,
    })
}

/// Relation of a stream to the walk of its level, at whose place it has arrived.
enum Meeting {
    /// It joins.
    Joins,
    /// It joins once the walk has delivered a block: nothing proves yet that the stream's, below memory, is of the
    /// published chain.
    Waits,
    /// It was sent this block last, which may be of another branch; `None` in a removal.
    Differs(Option<BlockRef>),
}

/// Compares the block that a stream was sent last with the one that its level's walk is behind. The number alone proves
/// nothing: memory may not know the branch of the stream's block.
fn meeting(cursor: &Cursor, behind: Option<BlockRef>, history: &History, page: &Page) -> Meeting {
    let oldest = history.oldest().map_or(0, PublishedBlock::number);
    match cursor.joins_behind(behind, history, page) {
        Ok(()) => Meeting::Joins,
        Err(Some(last)) if behind.is_none() && last.number < oldest => Meeting::Waits,
        Err(last) => Meeting::Differs(last),
    }
}
