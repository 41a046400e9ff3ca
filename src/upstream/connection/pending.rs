//! Pending transactions over a connection: in the requested form, or whole ones fetched by hash if the node refuses
//! the flag for them, or accepts it and announces hashes nevertheless.

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{info, warn};

use super::subscriptions::{HASHES, WHOLE};
use super::{End, FeedState, Purpose, Serving, SubscriptionState, WRITE_QUEUE, text};
use crate::backoff::{BackOff, RATE_LIMIT};
use crate::jsonrpc::Outcome;
use crate::upstream::complaint::{is_throttled, is_unknown_method};
use crate::upstream::pending::{Announced, Fetches, Forms, fetch};
use crate::upstream::{TransactionForm, Wanted};

#[cfg(test)]
mod tests;

/// State of a node's pending transactions, for one connection.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// `true` if whole transactions are fetched by hash.
    by_hash: bool,
    /// Error object of a node that does not know the method of these fetches; whole transactions are not available
    /// then.
    no_whole: Option<Bytes>,
    fetches: Fetches,
    /// Back-off of the fetches after a rate limit.
    back_off: BackOff,
}

impl Pending {
    pub(super) fn is_by_hash(&self) -> bool {
        self.by_hash
    }

    pub(super) fn no_whole(&self) -> Option<Bytes> {
        self.no_whole.clone()
    }
}

impl Serving {
    /// Fetches whole transactions by hash from now on, for this reason.
    pub(super) fn whole_by_hash(&mut self, why: &str) {
        if !std::mem::replace(&mut self.pending.by_hash, true) {
            info!(
                "upstream {}: no whole pending transactions are announced, headwater fetches them by hash: {why}",
                self.shared.endpoint
            );
        }
    }

    /// Passes on pending transactions, announced at `seen` in a subscription to this form. Unreadable ones are
    /// counted as dropped.
    pub(super) fn announced_pending(&mut self, subscription: &str, form: TransactionForm, json: &Bytes, seen: Instant) {
        for transaction in Announced::read_all(json) {
            match transaction {
                Some(transaction) => self.announced_one(subscription, form, transaction, seen),
                None => self.shared.count_dropped(1),
            }
        }
    }

    fn announced_one(&mut self, subscription: &str, form: TransactionForm, transaction: Announced, seen: Instant) {
        if form == TransactionForm::Full && matches!(transaction, Announced::Hash(_)) && !self.pending.by_hash {
            self.whole_by_hash("the node announced a hash although whole transactions were requested");
            self.take_for_hashes(subscription.to_owned());
        }
        let by_hash = self.pending.by_hash;
        let forms = Forms {
            hashes: form == TransactionForm::Hash || by_hash,
            whole: match form {
                TransactionForm::Hash => by_hash && self.shared.wanted.borrow().pending_full,
                TransactionForm::Full => true,
            } && self.pending.no_whole.is_none(),
        };
        if let Some(hash) = self.shared.announced(transaction, forms, seen) {
            let lost = self.pending.fetches.push(&hash, seen);
            self.shared.count_dropped(lost);
            self.begin_fetches();
        }
    }

    /// Turns a subscription to whole transactions, on which the node announces hashes, into the one to hashes; ends
    /// it if there is one to hashes already.
    fn take_for_hashes(&mut self, subscription: String) {
        let state = self.forget(&WHOLE);
        match self.subscriptions.get(&HASHES) {
            Some(SubscriptionState::Requested | SubscriptionState::Granted { .. }) => {
                self.unsubscribe(FeedState::Beside(WHOLE).unsubscribe(), subscription);
            }
            _ => {
                self.subscriptions.extend(state.map(|state| (HASHES, state)));
                self.feeds.insert(subscription, Some(FeedState::Beside(HASHES)));
            }
        }
        self.reconcile();
    }

    /// Fetches waiting transactions, or drops them if no client subscribes to whole ones.
    pub(super) fn fetch_whole(&mut self, wanted: &Wanted) {
        if !wanted.pending_full {
            self.pending.fetches.take_waiting();
        }
        self.begin_fetches();
    }

    fn begin_fetches(&mut self) {
        if self.pending.back_off.until(Instant::now()).is_some() {
            return;
        }
        while self.out.len() < WRITE_QUEUE
            && let Some((hash, seen)) = self.pending.fetches.begin()
        {
            let (method, params) = fetch(&hash);
            self.ask(method, &params, Purpose::Transaction(seen));
        }
    }

    /// Handles the answer to a fetch of a transaction that was announced at `seen`.
    pub(super) fn fetched(&mut self, answer: Outcome, seen: Instant) -> Result<(), End> {
        self.pending.fetches.done();
        if is_throttled(&answer) {
            let now = Instant::now();
            self.shared.load.throttled(now, None);
            self.pending.back_off.refused(now, None, RATE_LIMIT);
        }
        if let Err(error) = self.shared.fetched(answer, seen)
            && is_unknown_method(&error)
            && self.pending.no_whole.is_none()
        {
            warn!(
                upstream = %self.shared.endpoint,
                "the node does not serve whole pending transactions: {}",
                text(&error)
            );
            let left = self.pending.fetches.take_waiting().len();
            self.shared.count_dropped(left);
            self.pending.no_whole = Some(error);
            self.reconcile();
        }
        self.begin_fetches();
        Ok(())
    }

    /// Gives up a fetch that the node did not answer; the transaction is counted as dropped.
    pub(super) fn unfetched(&mut self) {
        self.pending.fetches.done();
        self.shared.count_dropped(1);
        self.begin_fetches();
    }
}
