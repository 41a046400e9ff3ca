//! Classification of a node's `newHeads`, by comparing each announcement with the block it announces. No I/O, no
//! clock.
//!
//! ```text
//!            the block has the announced hash, and no field that the announcement lacks
//! unknown -------------------------------------------------------------------------> headers, compared now and then
//!    |  <-------------------------------------------------------------------- one block has another hash: a reorg?
//!    |     two in a row have another hash, or one announcement lacks a field
//!    +-----------------------------------------------------------------------------> bells, until the connection ends
//! ```
//!
//! On Cosmos EVM chains and go-opera the announced hash is not the block's, and elsewhere an announced header lacks
//! fields that its block has (issue 11). Such announcements only signal a new head, which is then fetched. While the
//! class is unknown, announcements wait for the comparison, at most for the time limit given to
//! [`Announcements::new`].

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{ReportedBlock, place_of};
use crate::backoff::HEAD;

/// Members of a header that link and verify blocks.
const NEEDED: [&str; 5] = [
    "parentHash",
    "logsBloom",
    "stateRoot",
    "transactionsRoot",
    "receiptsRoot",
];

/// Most announcements queued behind a comparison. Above that the oldest is dropped: the chain fetches it as a parent
/// of the later ones.
const MAX_HELD: usize = 64;

/// Mismatches in a row that are not taken for reorgs any more: blocks with another hash than announced, or
/// announcements that are not headers.
const CONTRADICTIONS: u32 = 2;

/// Undecided comparisons in a row after which the next one waits for [`AGAIN`], instead of taking the next
/// announcement.
const UNDECIDED: u32 = 8;

/// Time until a node whose announcements are headers is compared again: a load balancer may have switched to another
/// node.
const AGAIN: Duration = Duration::from_secs(300);

/// Most repeats of the fetch of the newest head for one announcement: about two seconds in all.
const MAX_RINGS: u32 = 9;

/// Source of a node's heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// Announced headers, delivered as they are.
    Announced,
    /// Blocks fetched after each announcement, which only signals that there is a new head ("rings").
    Rung,
    /// Blocks polled at an interval: the node announces none.
    Polled,
}

impl Heads {
    /// Returns the label in `/status`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Announced => "header",
            Self::Rung => "ring",
            Self::Polled => "poll",
        }
    }
}

/// An action for the connection to take.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Deliver this announcement.
    Deliver(Bytes),
    /// Fetch the newest head, which should reach this goal.
    Ring(Goal),
    /// Request a block; the number identifies the request when its answer is passed to [`Announcements::answered`].
    Ask(u64, HeaderLookup),
    /// Report the source of heads, with the reason (empty for headers).
    Found(Heads, String),
}

/// Reference to the block to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderLookup {
    Hash(B256),
    Number(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worth {
    Unknown,
    Headers,
    Bells,
}

/// An announcement in comparison with its block.
#[derive(Debug)]
struct Comparison {
    announced: Bytes,
    place: ReportedBlock,
    /// `true` if the announcement is delivered only after the comparison, `false` if it was delivered at once.
    is_held: bool,
    seek: HeaderLookup,
    /// Number of the request in flight; answers to earlier ones are ignored.
    question: u64,
    attempt: u32,
    again_at: Option<Instant>,
    until: Instant,
}

/// Announcements of one connection, and what is known about them.
#[derive(Debug)]
pub(super) struct Announcements {
    worth: Worth,
    comparison: Option<Comparison>,
    /// Announcements queued behind the one in comparison, oldest first; at most [`MAX_HELD`].
    held: VecDeque<Bytes>,
    contradictions: u32,
    undecided: u32,
    questions: u64,
    /// Earliest time of the next comparison; `None` for the next announcement.
    next: Option<Instant>,
    time_limit: Duration,
}

impl Announcements {
    /// Creates the state of a new connection; an announcement waits for its comparison for `time_limit` at most.
    pub(super) fn new(time_limit: Duration) -> Self {
        Self {
            worth: Worth::Unknown,
            comparison: None,
            held: VecDeque::new(),
            contradictions: 0,
            undecided: 0,
            questions: 0,
            next: None,
            time_limit,
        }
    }

    /// Handles an announced head; returns the actions to take, in order.
    pub(super) fn announced(&mut self, json: Bytes, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        let Ok(place) = place_of(&json) else {
            self.contradicted("they are not valid headers", &mut acts);
            acts.push(Act::Ring(Goal::Change));
            return acts;
        };
        match self.worth {
            Worth::Bells => acts.push(Act::Ring(Goal::Height(place.number))),
            Worth::Headers => {
                acts.push(Act::Deliver(json.clone()));
                if self.comparison.is_none() && self.next.is_none_or(|next| now >= next) {
                    self.compare(json, place, false, now, &mut acts);
                }
            }
            Worth::Unknown if self.comparison.is_some() => {
                if self.held.len() == MAX_HELD {
                    self.held.pop_front();
                }
                // A copy: a slice would keep the whole frame in memory.
                self.held.push_back(Bytes::copy_from_slice(&json));
            }
            Worth::Unknown => self.compare(json, place, true, now, &mut acts),
        }
        acts
    }

    /// Handles the answer to request number `question`: a block, JSON `null`, or `None` for an error.
    pub(super) fn answered(&mut self, question: u64, block: Option<&Bytes>, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        let Some(comparison) = self.comparison.as_mut().filter(|own| own.question == question) else {
            return acts;
        };
        let announced = comparison.place;
        let found = block.and_then(|block| Some((block, place_of(block).ok()?)));
        match (comparison.seek, found) {
            (_, Some((block, place))) if place.hash == announced.hash => match lacks(&comparison.announced, block) {
                Some(member) => self.bells(&format!("they omit or change the block's {member}"), &mut acts),
                None => self.headers(now, &mut acts),
            },
            (HeaderLookup::Number(_), Some((_, place))) if place.number == announced.number => {
                self.contradicted("their hashes differ from the blocks'", &mut acts);
                if self.worth != Worth::Bells {
                    self.comparison = None;
                    self.worth = Worth::Unknown;
                    acts.push(Act::Ring(Goal::Height(announced.number)));
                    // The chain fetches the earlier ones as parents of the newest.
                    let newest = self.held.pop_back();
                    self.held.clear();
                    if let Some(json) = newest
                        && let Ok(place) = place_of(&json)
                    {
                        self.compare(json, place, true, now, &mut acts);
                    }
                }
            }
            (HeaderLookup::Hash(_), _) => {
                comparison.seek = HeaderLookup::Number(announced.number);
                self.ask(&mut acts);
            }
            (HeaderLookup::Number(_), _) => {
                comparison.seek = HeaderLookup::Hash(announced.hash);
                comparison.again_at = Some(now + HEAD.nth(comparison.attempt));
                comparison.attempt += 1;
            }
        }
        acts
    }

    /// Returns the time at which [`Self::turn`] is due; `None` while no comparison is pending.
    pub(super) fn due(&self) -> Option<Instant> {
        let comparison = self.comparison.as_ref()?;
        Some(
            comparison
                .again_at
                .map_or(comparison.until, |at| at.min(comparison.until)),
        )
    }

    /// Repeats the request if it is due, or gives up the comparison after its time limit and delivers the
    /// announcements.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        let Some(comparison) = &mut self.comparison else {
            return acts;
        };
        if now >= comparison.until {
            self.undecided += 1;
            self.next = (self.undecided >= UNDECIDED).then(|| now + AGAIN);
            self.worth = Worth::Headers;
            self.release(&mut acts);
        } else if comparison.again_at.is_some_and(|at| now >= at) {
            comparison.again_at = None;
            self.ask(&mut acts);
        }
        acts
    }

    fn compare(&mut self, announced: Bytes, place: ReportedBlock, is_held: bool, now: Instant, acts: &mut Vec<Act>) {
        self.comparison = Some(Comparison {
            announced: Bytes::copy_from_slice(&announced),
            place,
            is_held,
            seek: HeaderLookup::Hash(place.hash),
            question: 0,
            attempt: 0,
            again_at: None,
            until: now + self.time_limit,
        });
        self.ask(acts);
    }

    fn ask(&mut self, acts: &mut Vec<Act>) {
        if let Some(comparison) = &mut self.comparison {
            self.questions += 1;
            comparison.question = self.questions;
            acts.push(Act::Ask(self.questions, comparison.seek));
        }
    }

    fn headers(&mut self, now: Instant, acts: &mut Vec<Act>) {
        (self.contradictions, self.undecided) = (0, 0);
        self.next = Some(now + AGAIN);
        self.worth = Worth::Headers;
        acts.push(Act::Found(Heads::Announced, String::new()));
        self.release(acts);
    }

    /// Ends the comparison and delivers all announcements that waited for it.
    fn release(&mut self, acts: &mut Vec<Act>) {
        let first = self
            .comparison
            .take()
            .filter(|own| own.is_held)
            .map(|own| own.announced);
        acts.extend(first.into_iter().chain(self.held.drain(..)).map(Act::Deliver));
    }

    fn bells(&mut self, why: &str, acts: &mut Vec<Act>) {
        self.worth = Worth::Bells;
        acts.push(Act::Found(Heads::Rung, why.to_owned()));
        let first = self.comparison.take().map(|own| own.announced);
        // Also if the announcement was delivered: the fetched block has the members that it lacks.
        if let Some(newest) = self.held.drain(..).next_back().or(first)
            && let Ok(place) = place_of(&newest)
        {
            acts.push(Act::Ring(Goal::Height(place.number)));
        }
    }

    /// Counts a mismatch. A single one may be a reorg; from [`CONTRADICTIONS`] on, announcements only ring.
    fn contradicted(&mut self, why: &str, acts: &mut Vec<Act>) {
        if self.worth == Worth::Bells {
            return;
        }
        self.contradictions += 1;
        if self.contradictions >= CONTRADICTIONS {
            self.bells(why, acts);
        }
    }
}

/// Returns the first of [`NEEDED`] that the block has and its announcement lacks or changes. A zero value in the
/// block may differ.
fn lacks(announced: &[u8], block: &[u8]) -> Option<&'static str> {
    let members = |json| serde_json::from_slice::<HashMap<String, &RawValue>>(json).unwrap_or_default();
    let (announced, block) = (members(announced), members(block));
    let digits = |members: &HashMap<String, &RawValue>, name: &str| {
        let text: String = serde_json::from_str(members.get(name)?.get()).ok()?;
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
        (!digits.is_empty()).then(|| digits.to_ascii_lowercase())
    };
    NEEDED.into_iter().find(|name| {
        let (announced, block) = (digits(&announced, name), digits(&block, name));
        let is_zero = |digits: &String| digits.bytes().all(|digit| digit == b'0');
        match (announced, block) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(announced), Some(block)) => announced != block && !is_zero(&block),
        }
    })
}

/// Condition for the head that a fetch returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Goal {
    /// Any head.
    #[default]
    Any,
    /// A head other than the last one.
    Change,
    /// A head of this height or above: a node may announce a block before it can serve it.
    Height(u64),
}

/// Fetches of the newest head, one at a time, repeated until one reaches the goal, at most [`MAX_RINGS`] times.
#[derive(Debug, Default)]
pub(super) struct Ring {
    is_asked: bool,
    /// `true` if another ring arrived while a fetch was in flight.
    again: bool,
    goal: Goal,
    attempt: u32,
    at: Option<Instant>,
}

impl Ring {
    /// Records a ring; returns `true` if the head must be fetched now.
    pub(super) fn ring(&mut self, goal: Goal) -> bool {
        if goal != Goal::Any {
            self.goal = goal;
        }
        self.attempt = 0;
        self.again = self.is_asked;
        self.at = None;
        !std::mem::replace(&mut self.is_asked, true)
    }

    /// Records the answer to a fetch: the head's height (`None` for an error), and if the head differs from the last
    /// one. Returns `true` if the head must be fetched again at once.
    pub(super) fn answered(&mut self, height: Option<u64>, is_new: bool, now: Instant) -> bool {
        self.is_asked = false;
        let is_reached = match self.goal {
            Goal::Any => true,
            Goal::Change => is_new,
            Goal::Height(goal) => height.is_some_and(|height| height >= goal),
        };
        let again = std::mem::take(&mut self.again);
        if again && (!is_reached || self.goal == Goal::Change) {
            self.is_asked = true;
        } else if is_reached || self.attempt == MAX_RINGS {
            self.goal = Goal::Any;
        } else {
            self.at = Some(now + HEAD.nth(self.attempt));
            self.attempt += 1;
        }
        self.is_asked
    }

    /// Postpones the fetch, after a full write queue or a rate limit.
    pub(super) fn set_rate_limited(&mut self, until: Instant) {
        (self.is_asked, self.again) = (false, false);
        self.at = Some(until);
    }

    /// Returns the time at which [`Self::turn`] is due; `None` if no fetch is scheduled.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at
    }

    /// Checks if a scheduled fetch is due; if so the caller must fetch the head now.
    pub(super) fn turn(&mut self, now: Instant) -> bool {
        let is_due = self.at.is_some_and(|at| now >= at);
        if is_due {
            self.at = None;
            self.is_asked = true;
        }
        is_due
    }
}

#[cfg(test)]
mod tests;
