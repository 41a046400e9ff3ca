//! Subscriptions that are passed through to the node: their subscribers, and the delivery of their events.
//!
//! One subscription at the node serves all clients with an equal one. It is requested as soon as the first client
//! subscribes; a client's `eth_subscribe` is answered when the node has answered.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::flush::{DirtyClients, is_answered, send};
use super::index::{Filter, Index, Slot};
use super::subscriber::Subscriber;
use crate::backplane::Passthrough;
use crate::clock::Moment;
use crate::delivery::{Batch, CloseReason, Event, Kind, SubscriptionId};
use crate::shares::Owner;

/// Passed subscriptions with their subscribers.
#[derive(Debug, Default)]
pub(super) struct PassthroughSubscribers {
    index: Index<Passthrough, Subscriber>,
    members: HashMap<SubscriptionId, PassthroughSubscriber>,
    /// All different subscriptions; rebuilt only if one is added or removed, for every subscription of any kind
    /// compares this set.
    wanted: Arc<BTreeSet<Passthrough>>,
    /// Number of equal subscriptions of each account.
    held: HashMap<Owner, HashMap<Passthrough, usize>>,
    /// Events that arrived before the answer to a subscription was queued, oldest first. In a client's queue they
    /// would block everything behind them for as long as the slowest call of a batch takes.
    early: HashMap<SubscriptionId, VecDeque<Arc<Batch>>>,
}

#[derive(Debug)]
struct PassthroughSubscriber {
    passed: Passthrough,
    slot: Slot,
    account: Owner,
    /// The node has accepted the subscription.
    accepted: bool,
}

fn account_of(subscriber: &Subscriber) -> Owner {
    subscriber.writer.owner()
}

/// Newest events kept for a subscription whose answer is not queued yet. Some kinds announce the present state first,
/// and then nothing for long.
const EARLY: usize = 8;

/// Divisor of the total that gives one account's share: an account alone must not use up all places.
const SHARE: usize = 4;

/// Limit on passed subscriptions that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassthroughFull {
    /// So many different subscriptions are at the node already.
    #[error(
        "limit exceeded: {0} different subscriptions are passed through to the node (subscriptions.max_passthrough)"
    )]
    All(usize),
    /// So many different subscriptions are this account's already.
    #[error(
        "limit exceeded: {0} different subscriptions of this client are passed through to the node (a quarter of subscriptions.max_passthrough)"
    )]
    Own(usize),
}

impl Filter for Passthrough {
    type Key = Self;

    fn keys(&self) -> Vec<Self> {
        vec![self.clone()]
    }
}

impl PassthroughSubscribers {
    /// Adds a subscriber.
    ///
    /// # Errors
    /// [`PassthroughFull`] if there would be more than `max` different subscriptions, or more than a quarter of `max`, but at
    /// least one, of this account.
    pub(super) fn insert(
        &mut self,
        passed: Passthrough,
        subscriber: Subscriber,
        max: usize,
    ) -> Result<(), PassthroughFull> {
        let is_new = self.entry(&passed).is_none();
        if is_new && self.index.filters() >= max {
            return Err(PassthroughFull::All(max));
        }
        let (account, share) = (account_of(&subscriber), (max / SHARE).max(1));
        let held = self.held.get(&account);
        if held.is_some_and(|held| held.len() >= share && !held.contains_key(&passed)) {
            return Err(PassthroughFull::Own(share));
        }
        *self.held.entry(account).or_default().entry(passed.clone()).or_default() += 1;
        let id = subscriber.recipient.id();
        let slot = self.index.insert(passed.clone(), subscriber);
        let member = PassthroughSubscriber {
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

    /// Marks a subscription as accepted by the node.
    pub(super) fn accept(&mut self, id: SubscriptionId) {
        if let Some(member) = self.members.get_mut(&id) {
            member.accepted = true;
        }
    }

    /// Removes and returns a subscriber; `None` if there is none with this id.
    pub(super) fn remove(&mut self, id: SubscriptionId) -> Option<Subscriber> {
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

    /// Returns the different subscriptions. The `Arc` changes only with the set, so that comparing two of them
    /// compares pointers.
    pub(super) fn wanted(&self) -> Arc<BTreeSet<Passthrough>> {
        self.wanted.clone()
    }

    /// Fans out an event, and keeps it for subscribers whose answer is not queued yet: the node may announce it only
    /// once. Returns how many older events were evicted.
    pub(super) fn event(
        &mut self,
        passed: &Passthrough,
        event: Event,
        seen: Instant,
        due: &mut DirtyClients,
        now: Moment,
    ) -> u64 {
        let Some(entry) = self.entry(passed) else { return 0 };
        let mut lost = 0;
        self.deliver_early(due, now);
        let batch = Batch::new(Kind::Passthrough, [event].into(), seen);
        let (_, subscribers) = self.index.entry(entry);
        let answered = |subscriber: &&Subscriber| {
            let id = subscriber.recipient.id();
            // An answer may have been queued meanwhile: earlier events go first.
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

    /// Delivers early events to the subscribers that were answered meanwhile.
    pub(super) fn deliver_early(&mut self, due: &mut DirtyClients, now: Moment) {
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

    /// Checks if any event waits for the answer to a subscription.
    pub(super) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// Closes clients whose subscription a node had accepted, now that the node in use refuses it. A client that
    /// still waits for the answer to `eth_subscribe` gets the refusal there.
    pub(super) fn close_refused(&self, passed: &Passthrough) {
        let Some(entry) = self.entry(passed) else { return };
        let (_, subscribers) = self.index.entry(entry);
        for subscriber in subscribers {
            let member = self.members.get(&subscriber.recipient.id());
            if member.is_some_and(|member| member.accepted) {
                subscriber.writer.close(CloseReason::NotServed);
            }
        }
    }

    fn entry(&self, passed: &Passthrough) -> Option<usize> {
        self.index.under(std::iter::once(passed.clone())).next()
    }
}
