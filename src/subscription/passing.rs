//! Subscriptions that are passed through: who has them, and what is told to them.
//!
//! One at the node serves all who ask for the same. It is wanted from the moment when somebody asks; whoever asks is answered
//! when the node is.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::due::{Due, is_answered, send};
use super::index::{Filter, Index, Slot};
use super::subscriber::Subscriber;
use crate::backplane::Passed;
use crate::clock::Millis;
use crate::delivery::{Batch, CloseReason, Event, Kind, SubscriptionId};
use crate::shares::Owner;

/// Who has which.
#[derive(Debug, Default)]
pub(super) struct Passing {
    index: Index<Passed, Subscriber>,
    members: HashMap<SubscriptionId, Member>,
    /// The different ones of all: made anew only when one comes or goes, for every subscription of any kind looks at it.
    wanted: Arc<BTreeSet<Passed>>,
    /// How many of each an account has.
    held: HashMap<Owner, HashMap<Passed, usize>>,
    /// What came before the answer of these was on its way, oldest first. In a client's queue it would stop whatever is
    /// behind it for as long as the slowest call of a batch takes.
    early: HashMap<SubscriptionId, VecDeque<Arc<Batch>>>,
}

#[derive(Debug)]
struct Member {
    passed: Passed,
    slot: Slot,
    account: Owner,
    /// The node has said yes.
    accepted: bool,
}

fn account_of(subscriber: &Subscriber) -> Owner {
    subscriber.outbox.owner()
}

/// What is kept of the newest for somebody who is not answered yet. Some kinds tell the present state first, and then nothing
/// for long.
const EARLY: usize = 8;

/// What part of all places one account may have: an account alone must not leave the others without.
const SHARE: usize = 4;

/// There is no place for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// So many different ones are at the node already.
    #[error("limit exceeded: {0} different subscriptions are passed to the node (subscriptions.max_passed)")]
    All(usize),
    /// So many of them are this client's.
    #[error(
        "limit exceeded: {0} different subscriptions of this client are passed to the node (a quarter of subscriptions.max_passed)"
    )]
    Own(usize),
}

impl Filter for Passed {
    type Key = Self;

    fn keys(&self) -> Vec<Self> {
        vec![self.clone()]
    }
}

impl Passing {
    /// Adds somebody who asks. Of different ones there are `max` at most, and of one account a quarter of it, at least one.
    pub fn insert(&mut self, passed: Passed, subscriber: Subscriber, max: usize) -> Result<(), Full> {
        let is_new = self.entry(&passed).is_none();
        if is_new && self.index.filters() >= max {
            return Err(Full::All(max));
        }
        let (account, share) = (account_of(&subscriber), (max / SHARE).max(1));
        let held = self.held.get(&account);
        if held.is_some_and(|held| held.len() >= share && !held.contains_key(&passed)) {
            return Err(Full::Own(share));
        }
        *self.held.entry(account).or_default().entry(passed.clone()).or_default() += 1;
        let id = subscriber.recipient.id();
        let slot = self.index.insert(passed.clone(), subscriber);
        let member = Member {
            passed,
            slot,
            account,
            accepted: false,
        };
        self.members.insert(id, member);
        if is_new {
            self.collect();
        }
        Ok(())
    }

    /// The node has said yes.
    pub fn accept(&mut self, id: SubscriptionId) {
        if let Some(member) = self.members.get_mut(&id) {
            member.accepted = true;
        }
    }

    /// Takes somebody out; nothing happens where nobody has this id.
    pub fn remove(&mut self, id: SubscriptionId) -> Option<Subscriber> {
        let member = self.members.remove(&id)?;
        self.early.remove(&id);
        if let Entry::Occupied(mut held) = self.held.entry(member.account) {
            if let Entry::Occupied(mut own) = held.get_mut().entry(member.passed.clone()) {
                *own.get_mut() -= 1;
                if *own.get() == 0 {
                    own.remove();
                }
            }
            if held.get().is_empty() {
                held.remove();
            }
        }
        let gone = self.index.remove(member.slot);
        if self.entry(&member.passed).is_none() {
            self.collect();
        }
        gone
    }

    fn collect(&mut self) {
        self.wanted = Arc::new(self.index.each_filter().cloned().collect());
    }

    /// What the node is asked for. Equal ones are compared as pointers.
    pub fn wanted(&self) -> Arc<BTreeSet<Passed>> {
        self.wanted.clone()
    }

    /// Fans out an event. It may be told but once, so it is kept for those whose answer is not there yet. How many older
    /// ones made way for it.
    pub fn event(&mut self, passed: &Passed, event: Event, seen: Instant, due: &mut Due, now: Millis) -> u64 {
        let Some(entry) = self.entry(passed) else { return 0 };
        let mut lost = 0;
        self.tell_early(due, now);
        let batch = Batch::new(Kind::Passed, [event].into(), seen);
        let (_, subscribers) = self.index.entry(entry);
        let answered = |subscriber: &&Subscriber| {
            let id = subscriber.recipient.id();
            // In their order, whenever the answer came.
            let here = is_answered(subscriber) && !self.early.contains_key(&id);
            if !here {
                let early = self.early.entry(id).or_default();
                early.push_back(batch.clone());
                if early.len() > EARLY {
                    early.pop_front();
                    lost += 1;
                }
            }
            here
        };
        send(subscribers.filter(answered), &batch, due, now);
        lost
    }

    /// Tells what came early to those who were answered meanwhile.
    pub fn tell_early(&mut self, due: &mut Due, now: Millis) {
        let Self {
            index, members, early, ..
        } = self;
        early.retain(|id, batches| {
            let subscriber = members.get(id).and_then(|member| index.get(member.slot));
            let Some(subscriber) = subscriber else { return false };
            if is_answered(&subscriber) {
                for batch in batches {
                    send(std::iter::once(subscriber), batch, due, now);
                }
                return false;
            }
            true
        });
    }

    /// Whether anything waits for an answer.
    pub fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// Another node may refuse what the one before served: those who have it are closed. Whoever only asks is answered.
    pub fn close_refused(&self, passed: &Passed) {
        let Some(entry) = self.entry(passed) else { return };
        let (_, subscribers) = self.index.entry(entry);
        for subscriber in subscribers {
            let member = self.members.get(&subscriber.recipient.id());
            if member.is_some_and(|member| member.accepted) {
                subscriber.outbox.close(CloseReason::NotServed);
            }
        }
    }

    fn entry(&self, passed: &Passed) -> Option<usize> {
        self.index.under(std::iter::once(passed.clone())).next()
    }
}
