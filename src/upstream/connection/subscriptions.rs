//! Subscriptions of a connection at its node, other than heads: requested, ended, postponed and given up.
//!
//! ```text
//! needed > asked > stands > being ended > gone
//!            > refused (until a client subscribes anew)    > put off (asked again after a back-off)
//!            > given up (a late grant is ended)
//!                  stands > ended by the node (asked again; refused if it ends soon, several times in a row)
//! ```

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{End, FeedState, Purpose, SYNCING_INTERVAL, Serving, SubscriptionState, WRITE_QUEUE, text};
use crate::backoff::RATE_LIMIT;
use crate::jsonrpc::{INTERNAL_ERROR, Outcome, error};
use crate::upstream::complaint::is_for_good;
use crate::upstream::feeds::is_id;
use crate::upstream::{NodeSubscription, TransactionForm, Wanted};

#[cfg(test)]
pub(super) mod tests;

/// Number of subscriptions waiting to be ended at which none to pending transactions is begun any more.
const MAX_ENDING: usize = 64;

/// Time from the grant within which an end by the node counts as a failure, see [`MAX_ENDS`].
const SOON: std::time::Duration = std::time::Duration::from_secs(10);

/// Times in a row that a subscription is requested again after the node ended it within [`SOON`].
const MAX_ENDS: u32 = 3;

pub(super) const HASHES: NodeSubscription = NodeSubscription::Pending(TransactionForm::Hash);
pub(super) const WHOLE: NodeSubscription = NodeSubscription::Pending(TransactionForm::Full);

impl NodeSubscription {
    /// Returns method and parameters of the subscribe request.
    fn question(&self) -> (&str, &str) {
        match self {
            Self::Pending(TransactionForm::Hash) => ("eth_subscribe", r#"["newPendingTransactions"]"#),
            Self::Pending(TransactionForm::Full) => ("eth_subscribe", r#"["newPendingTransactions",true]"#),
            Self::Passthrough(passed) => (passed.method(), passed.params()),
        }
    }
}

impl Serving {
    pub(super) async fn subscribed(&mut self, feed: FeedState, subscription: String) -> Result<(), End> {
        let why = if !is_id(&subscription) {
            Some("the node answered a subscription without an id")
        } else if let Some(Some(_)) = self.feeds.get(&subscription) {
            // The first subscription keeps the id. Closing the connection would end all of them, again and again.
            Some("the node gave two subscriptions the same id")
        } else {
            None
        };
        if let Some(why) = why {
            return match error(INTERNAL_ERROR, why).into() {
                Outcome::Error(why) | Outcome::Result(why) => self.refused(feed, why),
            };
        }
        match &feed {
            FeedState::Heads => {
                self.heads_granted();
                self.ask_vital(Purpose::Latest);
            }
            FeedState::Beside(of) => {
                let state = SubscriptionState::Granted {
                    subscription: subscription.clone(),
                    since: Instant::now(),
                };
                self.subscriptions.insert(of.clone(), state);
                self.set_answer(of, Some(Ok(())));
            }
        }
        self.feeds.insert(subscription.clone(), Some(feed));
        for early in self.early.take(&subscription) {
            self.notified(early).await?;
        }
        // No client may need the subscription any more.
        self.reconcile();
        Ok(())
    }

    /// Handles a refusal, with the node's error object, or headwater's own if the node did not answer or gave no usable
    /// id.
    pub(super) fn refused(&mut self, feed: FeedState, error: Bytes) -> Result<(), End> {
        let of = match feed {
            FeedState::Heads => {
                self.heads_refused(&text(&error));
                return Ok(());
            }
            FeedState::Beside(of) => of,
        };
        if of == WHOLE {
            self.whole_by_hash(&text(&error));
            self.forget(&WHOLE);
        } else {
            match &of {
                NodeSubscription::Pending(_) => {
                    warn!(
                        upstream = %self.shared.endpoint,
                        "the node refused the subscription to pending transactions: {}",
                        text(&error)
                    );
                }
                NodeSubscription::Passthrough(passed) => {
                    debug!(
                        upstream = %self.shared.endpoint,
                        ?passed,
                        "the node refused a subscription: {}",
                        text(&error)
                    );
                }
            }
            self.forget(&of);
            self.set_answer(&of, Some(Err(error.clone())));
            self.subscriptions.insert(of, SubscriptionState::Refused(error));
        }
        // The client that asked may be gone.
        self.reconcile();
        Ok(())
    }

    /// Handles the end of a granted subscription by the node. Returns [`End::HeadsEnded`] if that to heads ends twice
    /// within `silence_timeout`.
    pub(super) fn ended_by_node(&mut self, subscription: &str, feed: FeedState, error: Bytes) -> Result<(), End> {
        warn!(upstream = %self.shared.endpoint, ?feed, "the node ended a subscription: {}", text(&error));
        self.feeds.remove(subscription);
        let now = Instant::now();
        let of = match feed {
            FeedState::Heads => {
                let again = self.shared.settings.silence_timeout;
                if self.heads_ended.replace(now).is_some_and(|at| now - at < again) {
                    return Err(End::HeadsEnded(text(&error)));
                }
                // The newest block is fetched after the grant, so that no head is missed.
                if !self.ask_vital(Purpose::Subscribe(FeedState::Heads)) {
                    self.heads_put_off();
                }
                return Ok(());
            }
            FeedState::Beside(of) => of,
        };
        let state = self.subscriptions.insert(of.clone(), SubscriptionState::Ended);
        let is_soon = matches!(state, Some(SubscriptionState::Granted { since, .. }) if now - since < SOON);
        let ends = self.ends.entry(of.clone()).or_default();
        *ends = if is_soon { *ends + 1 } else { 0 };
        if *ends > MAX_ENDS {
            return self.refused(FeedState::Beside(of), error);
        }
        if is_soon {
            let back_off = self.back_offs.entry(FeedState::Beside(of.clone())).or_default();
            back_off.refused(now, None, RATE_LIMIT);
        }
        // New subscribers wait until it stands again.
        self.set_answer(&of, None);
        self.reconcile();
        Ok(())
    }

    /// Publishes the node's answer for a subscription: granted, an error object, or `None` if it is not known at
    /// present. The subscription to hashes answers for whole transactions, too, while these are fetched by hash.
    fn set_answer(&self, of: &NodeSubscription, answer: Option<Result<(), Bytes>>) {
        self.shared.set_answer(of, answer.clone());
        if *of == HASHES && self.pending.is_by_hash() {
            let whole = self.pending.no_whole().map_or(answer, |error| Some(Err(error)));
            self.shared.set_answer(&WHOLE, whole);
        }
    }

    /// Publishes that a subscription is rate-limited, with the node's error object; `None` once it is requested
    /// again.
    fn say_put_off(&self, of: &NodeSubscription, error: Option<&Bytes>) {
        self.shared.set_rate_limited(of, error.cloned());
        if *of == HASHES && self.pending.is_by_hash() {
            self.shared.set_rate_limited(&WHOLE, error.cloned());
        }
    }

    /// Records a rate limit: the subscription is requested again after a back-off of its own, which other refusals do
    /// not extend.
    pub(super) fn set_rate_limited(&mut self, feed: FeedState, outcome: Outcome) {
        let now = Instant::now();
        self.shared.load.throttled(now, None);
        let back_off = self.back_offs.entry(feed.clone()).or_default();
        back_off.refused(now, None, RATE_LIMIT);
        if let (FeedState::Beside(of), Outcome::Error(error)) = (feed, outcome) {
            self.say_put_off(&of, Some(&error));
            self.subscriptions.insert(of, SubscriptionState::RateLimited(error));
            self.reconcile();
        }
    }

    fn is_put_off(&self, of: &NodeSubscription) -> bool {
        let back_off = self.back_offs.get(&FeedState::Beside(of.clone()));
        back_off.is_some_and(|back_off| back_off.until(Instant::now()).is_some())
    }

    /// Removes all state of a subscription; returns its last state.
    pub(super) fn forget(&mut self, of: &NodeSubscription) -> Option<SubscriptionState> {
        self.back_offs.remove(&FeedState::Beside(of.clone()));
        self.ends.remove(of);
        self.subscriptions.remove(of)
    }

    /// Ends a subscription at the node, as soon as the write queue has room.
    pub(super) fn unsubscribe(&mut self, method: String, subscription: String) {
        self.feeds.insert(subscription.clone(), None);
        self.ending.push_back((method, subscription));
        self.write_ending();
    }

    fn write_ending(&mut self) {
        if self.end_back_off.until(Instant::now()).is_some() {
            return;
        }
        while self.out.len() < WRITE_QUEUE
            && let Some((method, subscription)) = self.ending.pop_front()
        {
            let params = format!("[{subscription}]");
            self.ask(&method.clone(), &params, Purpose::Unsubscribe { method, subscription });
        }
    }

    /// Forgets a subscription that has ended at the node, unless its id was given to another one meanwhile.
    pub(super) fn ended(&mut self, subscription: &str) {
        if let Some(None) = self.feeds.get(subscription) {
            self.feeds.remove(subscription);
        }
    }

    /// Ends a subscription that was granted after its request was given up.
    pub(super) fn answered_late(&mut self, method: String, outcome: Outcome) {
        if let Outcome::Result(json) = outcome
            && is_id(&text(&json))
            && !self.feeds.contains_key(&text(&json))
        {
            self.unsubscribe(method, text(&json));
        }
    }

    /// Checks if a subscribe request is in flight: events may arrive before its id.
    pub(super) fn awaits_id(&self) -> bool {
        let mut purposes = self.waiting.values();
        purposes.any(|purpose| matches!(purpose, Purpose::Subscribe(_)))
    }

    /// Adjusts the node's subscriptions to those that clients need now.
    pub(super) fn reconcile(&mut self) {
        if !self.ready {
            return;
        }
        let wanted = self.shared.wants();
        self.write_ending();
        let needed = self.needed(&wanted);
        self.end_unneeded(&needed);
        self.shared.remove_unsubscribed(&wanted);
        for of in &needed {
            self.bring_about(of);
        }
        self.fetch_whole(&wanted);
        if !wanted.syncing {
            self.asked_syncing = None;
        } else if self.asked_syncing.is_none_or(|at| at.elapsed() >= SYNCING_INTERVAL) {
            self.asked_syncing = Some(Instant::now());
            self.ask("eth_syncing", "", Purpose::Syncing);
        }
    }

    /// Returns the subscriptions at the node that serve `wanted`.
    fn needed(&self, wanted: &Wanted) -> Vec<NodeSubscription> {
        let (by_hash, no_whole) = (self.pending.is_by_hash(), self.pending.no_whole());
        if let Some(error) = &no_whole {
            self.shared.set_answer(&WHOLE, Some(Err(error.clone())));
        }
        let hashes = wanted.pending_hashes || wanted.pending_full && by_hash && no_whole.is_none();
        let whole = wanted.pending_full && !by_hash;
        let passed = wanted.passed.iter().cloned().map(NodeSubscription::Passthrough);
        let pending = [hashes.then_some(HASHES), whole.then_some(WHOLE)];
        pending.into_iter().flatten().chain(passed).collect()
    }

    fn end_unneeded(&mut self, needed: &[NodeSubscription]) {
        let is_over = |of: &NodeSubscription, state: &SubscriptionState| match state {
            // Decided again when the answer arrives.
            SubscriptionState::Requested => false,
            // There are only two of these, and clients that subscribe again and again need not cause a request each
            // time.
            SubscriptionState::Refused(error) if matches!(of, NodeSubscription::Pending(_)) => !is_for_good(error),
            _ => true,
        };
        let unneeded = self.subscriptions.iter();
        let unneeded: Vec<NodeSubscription> = unneeded
            .filter(|(of, state)| !needed.contains(of) && is_over(of, state))
            .map(|(of, _)| of.clone())
            .collect();
        for of in unneeded {
            if let Some(SubscriptionState::Granted { subscription, .. }) = self.forget(&of) {
                self.unsubscribe(FeedState::Beside(of).unsubscribe(), subscription);
            }
        }
    }

    fn bring_about(&mut self, of: &NodeSubscription) {
        match self.subscriptions.get(of) {
            // Decided again when the answer arrives.
            Some(SubscriptionState::Requested) => {}
            // Repeated, since a change of the upstream in use clears all answers.
            Some(SubscriptionState::Granted { .. }) => self.set_answer(of, Some(Ok(()))),
            Some(SubscriptionState::Refused(error)) => self.set_answer(of, Some(Err(error.clone()))),
            Some(SubscriptionState::RateLimited(error)) if self.is_put_off(of) => self.say_put_off(of, Some(error)),
            Some(SubscriptionState::Ended) if self.is_put_off(of) => {}
            None if !self.has_room_for(of) => {}
            Some(SubscriptionState::RateLimited(_) | SubscriptionState::Ended) | None => {
                let (method, params) = of.question();
                if self.ask(method, params, Purpose::Subscribe(FeedState::Beside(of.clone()))) {
                    self.subscriptions.insert(of.clone(), SubscriptionState::Requested);
                    self.say_put_off(of, None);
                }
            }
        }
    }

    /// Checks if another subscription may be requested. Passed-through subscriptions (also those of clients that left
    /// before the answer) and subscriptions being ended must each be fewer than `max_passthrough`.
    fn has_room_for(&self, of: &NodeSubscription) -> bool {
        if matches!(of, NodeSubscription::Pending(_)) {
            return self.ending.len() < MAX_ENDING;
        }
        let max = self.shared.settings.max_passthrough;
        let is_passed = |of: &&NodeSubscription| matches!(of, NodeSubscription::Passthrough(_));
        let passed = self.subscriptions.keys().filter(is_passed).count();
        let ending = self.feeds.values().filter(|feed| feed.is_none()).count();
        passed < max && ending < max
    }
}
