//! Pending transactions over a connection: in the form that was asked for, or whole ones fetched by their hashes where the
//! node refuses the flag for them or takes it and announces hashes all the same.

use std::time::Instant as Seen;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{info, warn};

use super::subscriptions::{HASHES, WHOLE};
use super::{End, Feed, Purpose, Serving, SubscriptionState, WRITE_QUEUE, text};
use crate::jsonrpc::Outcome;
use crate::upstream::call::{is_throttled, is_unknown_method};
use crate::upstream::load::{BackOff, LONGEST};
use crate::upstream::pending::{Announced, Fetches, Forms, fetch};
use crate::upstream::{TransactionForm, Wanted};

#[cfg(test)]
mod tests;

/// What is known of a node's pending transactions as long as the connection lasts.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Whole ones are fetched by their hashes.
    by_hash: bool,
    /// The node does not know the method by which they are fetched, with this error object.
    no_whole: Option<Bytes>,
    fetches: Fetches,
    /// When they are fetched again, where the node was asked too much.
    back_off: BackOff,
}

impl Pending {
    pub fn is_by_hash(&self) -> bool {
        self.by_hash
    }

    pub fn no_whole(&self) -> Option<Bytes> {
        self.no_whole.clone()
    }
}

impl Serving {
    /// From now on whole transactions are fetched.
    pub(super) fn whole_by_hash(&mut self, why: &str) {
        if !std::mem::replace(&mut self.pending.by_hash, true) {
            info!(
                "upstream {}: pending transactions are fetched by their hashes, for it does not announce whole ones: {why}",
                self.shared.endpoint
            );
        }
    }

    /// Pending transactions were announced in a subscription to this form.
    pub(super) fn announced_pending(&mut self, subscription: &str, form: TransactionForm, json: &Bytes, seen: Seen) {
        for transaction in Announced::read_all(json) {
            match transaction {
                Some(transaction) => self.announced_one(subscription, form, transaction, seen),
                None => self.shared.count_dropped(1),
            }
        }
    }

    fn announced_one(&mut self, subscription: &str, form: TransactionForm, transaction: Announced, seen: Seen) {
        if form == TransactionForm::Full && matches!(transaction, Announced::Hash(_)) && !self.pending.by_hash {
            self.whole_by_hash("it announced a hash although whole ones were asked for");
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

    /// The subscription to whole transactions is one to hashes; it is kept where there is no other.
    fn take_for_hashes(&mut self, subscription: String) {
        let state = self.forget(&WHOLE);
        match self.subscriptions.get(&HASHES) {
            Some(SubscriptionState::Asked | SubscriptionState::Stands { .. }) => {
                self.unsubscribe(Feed::Beside(WHOLE).unsubscribe(), subscription);
            }
            _ => {
                self.subscriptions.extend(state.map(|state| (HASHES, state)));
                self.feeds.insert(subscription, Some(Feed::Beside(HASHES)));
            }
        }
        self.reconcile();
    }

    /// Fetches what waits, while anybody wants it.
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

    /// The answer for one that was announced at this time.
    pub(super) fn fetched(&mut self, answer: Outcome, seen: Seen) -> Result<(), End> {
        self.pending.fetches.done();
        if is_throttled(&answer) {
            let now = Instant::now();
            self.shared.load.throttled(now, None);
            self.pending.back_off.refused(now, None, LONGEST);
        }
        if let Err(error) = self.shared.fetched(answer, seen)
            && is_unknown_method(&error)
            && self.pending.no_whole.is_none()
        {
            warn!(upstream = %self.shared.endpoint, "no whole pending transactions: {}", text(&error));
            let left = self.pending.fetches.take_waiting().len();
            self.shared.count_dropped(left);
            self.pending.no_whole = Some(error);
            self.reconcile();
        }
        self.begin_fetches();
        Ok(())
    }

    /// One is given up, for the node does not answer.
    pub(super) fn unfetched(&mut self) {
        self.pending.fetches.done();
        self.shared.count_dropped(1);
        self.begin_fetches();
    }
}
