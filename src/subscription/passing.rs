//! Subscriptions that are passed through: who has them, and what is told to them.
//!
//! One at the node serves all who ask for the same. It is wanted from the moment when somebody asks; whoever asks is answered
//! when the node is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::due::{Due, send};
use super::index::{Filter, Index, Slot};
use super::tables::Subscriber;
use crate::backplane::{Answers, Passed};
use crate::clock::Millis;
use crate::delivery::{Batch, CloseReason, Event, Kind, SubscriptionId};

/// Who has which.
#[derive(Debug, Default)]
pub(super) struct Passing {
    index: Index<Passed, Subscriber>,
    members: HashMap<SubscriptionId, Member>,
}

#[derive(Debug)]
struct Member {
    slot: Slot,
    /// The node has said yes.
    accepted: bool,
}

/// So many different ones are at the node already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit exceeded: {0} different subscriptions are passed to the node (subscriptions.max_passed)")]
pub struct Full(usize);

impl Filter for Passed {
    type Key = Self;

    fn keys(&self) -> Vec<Self> {
        vec![self.clone()]
    }
}

impl Passing {
    /// Adds somebody who asks. Of different ones there are `max` at most.
    pub fn insert(&mut self, passed: Passed, subscriber: Subscriber, max: usize) -> Result<(), Full> {
        if self.entry(&passed).is_none() && self.index.filters() >= max {
            return Err(Full(max));
        }
        let id = subscriber.recipient.id();
        let slot = self.index.insert(passed, subscriber);
        let accepted = false;
        self.members.insert(id, Member { slot, accepted });
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
        self.index.remove(self.members.remove(&id)?.slot)
    }

    /// What the node is asked for.
    pub fn wanted(&self) -> Arc<BTreeSet<Passed>> {
        Arc::new(self.index.each_filter().cloned().collect())
    }

    /// Fans out an event. It may be told but once, so it waits even for an answer that is not there yet.
    pub fn event(&self, passed: &Passed, event: impl FnOnce() -> Event, seen: Instant, due: &mut Due, now: Millis) {
        if let Some(entry) = self.entry(passed) {
            let (_, subscribers) = self.index.entry(entry);
            send(subscribers, &Batch::new(Kind::Passed, [event()].into(), seen), due, now);
        }
    }

    /// Another node may refuse what the one before served: those who have it are closed. Whoever only asks is answered.
    pub fn answered(&self, answers: &Answers) {
        for (passed, _) in answers.iter().filter(|(_, answer)| answer.is_err()) {
            let Some(entry) = self.entry(passed) else { continue };
            let (_, subscribers) = self.index.entry(entry);
            for subscriber in subscribers {
                let member = self.members.get(&subscriber.recipient.id());
                if member.is_some_and(|member| member.accepted) {
                    subscriber.outbox.close(CloseReason::NotServed);
                }
            }
        }
    }

    fn entry(&self, passed: &Passed) -> Option<usize> {
        self.index.under(std::iter::once(passed.clone())).next()
    }
}
