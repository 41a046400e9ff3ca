//! Events delivered to the clients of one subscription, checked for losses, duplicates and order. No I/O, no clock.
//!
//! The first client that receives an event records it; the others are compared with that record. Usually a client's
//! next message is the next event byte for byte, and costs one comparison.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use alloy_primitives::{B256, U64};
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    #[value(name = "newHeads", alias = "heads")]
    Heads,
    Logs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// Block hash.
    hash: B256,
    /// Log index in the block; 0 for heads.
    index: u64,
    removed: bool,
}

struct Event {
    key: Key,
    number: u64,
    parent: B256,
    /// JSON text, kept until all clients have the event.
    body: Box<[u8]>,
    first: Instant,
    clients: usize,
    /// Index of the next occurrence of this event, if the chain returned to its branch.
    again: Option<usize>,
}

/// The fields of a head or a log that are checked here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(alias = "blockHash")]
    hash: B256,
    #[serde(alias = "blockNumber")]
    number: U64,
    #[serde(default)]
    parent_hash: B256,
    #[serde(default)]
    log_index: U64,
    #[serde(default)]
    removed: bool,
}

/// All events of one subscription, in the order of their first receipt by any client.
pub struct Stream {
    kind: Kind,
    /// Number of subscribed clients.
    clients: usize,
    events: Vec<Event>,
    /// Index of each event's first occurrence.
    known: HashMap<Key, usize>,
}

/// Classification of a received event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// No other client had it before.
    First,
    /// Time since the first client's receipt; zero for a duplicate.
    Later(Duration),
    /// Time since the first client's receipt; all clients have the event now.
    Last(Duration),
}

/// The events of a stream that one client has received.
pub struct Feed {
    /// The client has all events from `start` up to, but not including, `next`.
    start: usize,
    next: usize,
    /// Events received outside that range.
    others: BTreeSet<usize>,
    last: Option<usize>,
    /// Block number of the client's first event.
    began: u64,
    /// Heads whose parent is not on the client's branch, each with `true` if the client received the parent earlier.
    broken: Vec<(usize, bool)>,
    /// Minimum block number and log index of the next log.
    floor: (u64, u64),
    /// Block of the last log; `None` after a removal.
    standing: Option<B256>,
    pub doubled: u64,
    pub disordered: u64,
    /// Description of the first fault.
    pub fault: Option<String>,
}

impl Stream {
    pub fn new(kind: Kind, clients: usize) -> Self {
        Self {
            kind,
            clients,
            events: Vec::new(),
            known: HashMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Records the `result` of a notification.
    ///
    /// # Errors
    /// Returns an error if `body` is neither a head nor a log.
    pub fn take(&mut self, feed: &mut Feed, body: &[u8], now: Instant) -> Result<Receipt> {
        let id = match self.events.get(feed.next) {
            Some(event) if feed.others.is_empty() && feed.last.is_some() && *event.body == *body => feed.next,
            _ => match self.find(feed, body, now)? {
                Some(id) => id,
                None => {
                    feed.doubled += 1;
                    return Ok(Receipt::Later(Duration::ZERO));
                }
            },
        };
        match self.kind {
            Kind::Heads => self.walk(feed, id),
            Kind::Logs => self.order(feed, id),
        }
        feed.keep(id, self.events[id].number);
        let event = &mut self.events[id];
        event.clients += 1;
        let late = now.duration_since(event.first);
        Ok(if event.clients == self.clients {
            event.body = Box::default();
            Receipt::Last(late)
        } else if event.clients == 1 {
            Receipt::First
        } else {
            Receipt::Later(late)
        })
    }

    /// Finds the event of this message, or records a new one. Returns `None` for a duplicate.
    fn find(&mut self, feed: &mut Feed, body: &[u8], now: Instant) -> Result<Option<usize>> {
        let quoted = || String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let fields: Fields =
            serde_json::from_slice(body).with_context(|| format!("neither a head nor a log: {}", quoted()))?;
        let key = Key {
            hash: fields.hash,
            index: fields.log_index.to(),
            removed: fields.removed,
        };
        let mut at = self.known.get(&key).copied();
        let mut before = None;
        if at.is_some_and(|id| feed.has(id)) && !self.may_return(feed, key) {
            let what = self.describe(at.unwrap_or_default());
            feed.note(|| format!("{what} arrived twice"));
            return Ok(None);
        }
        while let Some(id) = at
            && feed.has(id)
        {
            before = at;
            at = self.events[id].again;
        }
        if at.is_some() {
            return Ok(at);
        }
        let id = self.events.len();
        self.events.push(Event {
            key,
            number: fields.number.to(),
            parent: fields.parent_hash,
            body: body.into(),
            first: now,
            clients: 0,
            again: None,
        });
        match before {
            Some(before) => self.events[before].again = Some(id),
            None => drop(self.known.insert(key, id)),
        }
        Ok(Some(id))
    }

    /// Checks if an event may be delivered to the client again, because the chain left its branch in between.
    fn may_return(&self, feed: &Feed, key: Key) -> bool {
        match self.kind {
            Kind::Heads => feed
                .last
                .is_some_and(|last| self.events[last].key != key && !self.descends(last, key.hash)),
            Kind::Logs => {
                let opposite = Key {
                    removed: !key.removed,
                    ..key
                };
                let (same, opposite) = (self.times(feed, key), self.times(feed, opposite));
                if key.removed { opposite > same } else { opposite >= same }
            }
        }
    }

    /// Counts how often the client received the event.
    fn times(&self, feed: &Feed, key: Key) -> usize {
        let first = self.known.get(&key).copied();
        std::iter::successors(first, |&id| self.events[id].again)
            .filter(|&id| feed.has(id))
            .count()
    }

    /// Checks if `ancestor` is an ancestor of the head, as far as the delivered heads show.
    fn descends(&self, head: usize, ancestor: B256) -> bool {
        self.ancestors(head).any(|parent| parent == ancestor)
    }

    /// Yields the hashes of parent, grandparent and so on, up to the first block that was not delivered to any client.
    fn ancestors(&self, head: usize) -> impl Iterator<Item = B256> {
        let parent = |id: usize| self.events[id].parent;
        std::iter::successors(Some(parent(head)), move |&hash| self.head(hash).map(parent))
    }

    fn head(&self, hash: B256) -> Option<usize> {
        let key = Key {
            hash,
            index: 0,
            removed: false,
        };
        self.known.get(&key).copied()
    }

    /// Checks that the parent of a head is the previous head or an ancestor of the previous head.
    fn walk(&self, feed: &mut Feed, id: usize) {
        let event = &self.events[id];
        let Some(last) = feed.last else {
            feed.last = Some(id);
            return;
        };
        if event.parent != self.events[last].key.hash {
            if self.descends(last, event.key.hash) {
                feed.disordered += 1;
                feed.note(|| format!("{} arrived after one of its descendants", self.describe(id)));
                return;
            }
            // Nothing is known below the lowest delivered head.
            let lowest = self.events[last]
                .number
                .saturating_sub(self.ancestors(last).count() as u64);
            if !self.descends(last, event.parent) && event.number > lowest {
                let had = self.head(event.parent).is_some_and(|parent| feed.has(parent));
                feed.broken.push((id, had));
            }
        }
        feed.last = Some(id);
    }

    /// Checks that logs ascend, except for removals, which lower the floor to their block.
    fn order(&self, feed: &mut Feed, id: usize) {
        let event = &self.events[id];
        let place = (event.number, event.key.index);
        feed.last = Some(id);
        if event.key.removed {
            // The new branch may begin below the client's first block, for which the client had no logs to be removed.
            let floor = if event.number > feed.began { event.number } else { 0 };
            feed.floor = feed.floor.min((floor, 0));
            feed.standing = None;
            return;
        }
        let sibling = event.number == feed.floor.0 && feed.standing.is_some_and(|block| block != event.key.hash);
        if place < feed.floor || sibling {
            feed.disordered += 1;
            feed.note(|| format!("{} arrived after a later one", self.describe(id)));
            return;
        }
        feed.floor = (place.0, place.1 + 1);
        feed.standing = Some(event.key.hash);
    }

    /// Counts the events up to `end` that the client lacks. Required are those from `window` on, or from the client's
    /// first event if it is older.
    pub fn lost(&self, feed: &Feed, window: usize, end: usize) -> u64 {
        self.missing(feed, window, end).count() as u64 + self.gaps(feed).count() as u64
    }

    /// Describes the first of the events that the client lacks.
    pub fn first_lost(&self, feed: &Feed, window: usize, end: usize) -> Option<String> {
        let missing = self.missing(feed, window, end).next();
        let lost = missing.map(|id| format!("{} was lost", self.describe(id)));
        lost.or_else(|| {
            let id = self.gaps(feed).next()?;
            Some(format!("{} arrived without its parent", self.describe(id)))
        })
    }

    fn missing(&self, feed: &Feed, window: usize, end: usize) -> impl Iterator<Item = usize> {
        let early = feed.last.is_some() && feed.start < window;
        let from = if early { feed.start } else { window };
        (from..end).filter(move |&id| {
            // The client may have subscribed in the middle of its first block.
            let due = !early || self.events[id].number > feed.began;
            due && !feed.has(id)
        })
    }

    /// Yields heads whose parent should have been delivered before them and was delivered to no client. A parent that
    /// another client received is counted by `missing`.
    fn gaps(&self, feed: &Feed) -> impl Iterator<Item = usize> {
        let nobody_got = |(id, had): (usize, bool)| match self.head(self.events[id].parent) {
            Some(parent) => had && self.events[parent].again.is_none(),
            None => true,
        };
        let gaps = feed.broken.iter().copied().filter(move |gap| nobody_got(*gap));
        gaps.map(|(id, _)| id)
    }

    fn describe(&self, id: usize) -> String {
        let Event { key, number, .. } = &self.events[id];
        match self.kind {
            Kind::Heads => format!("head {number} ({})", key.hash),
            Kind::Logs => {
                let removal = if key.removed { "the removal of " } else { "" };
                format!("{removal}log {} of block {number} ({})", key.index, key.hash)
            }
        }
    }
}

impl Feed {
    /// Creates the feed of a client that subscribes when `known` events are recorded.
    pub fn new(known: usize) -> Self {
        Self {
            start: known,
            next: known,
            others: BTreeSet::new(),
            last: None,
            began: 0,
            broken: Vec::new(),
            floor: (0, 0),
            standing: None,
            doubled: 0,
            disordered: 0,
            fault: None,
        }
    }

    fn has(&self, id: usize) -> bool {
        (self.start..self.next).contains(&id) || self.others.contains(&id)
    }

    /// Checks if the client has all events up to `end`.
    pub fn complete(&self, end: usize) -> bool {
        self.next >= end
    }

    fn keep(&mut self, id: usize, number: u64) {
        if self.start == self.next && self.others.is_empty() {
            // The client's first event: earlier ones predate its subscription.
            (self.start, self.next, self.began) = (id, id + 1, number);
        } else if id == self.next {
            self.next += 1;
            while self.others.remove(&self.next) {
                self.next += 1;
            }
        } else {
            self.others.insert(id);
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        self.fault.get_or_insert_with(what);
    }
}

#[cfg(test)]
mod tests;
