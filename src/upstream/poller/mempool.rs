//! Best-effort events of a node over HTTP, polled: pending transactions and its sync state.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::value::RawValue;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::debug;

use super::transport::{HttpFailure, HttpTransport};
use crate::backoff::{BackOff, RATE_LIMIT};
use crate::jsonrpc::{LIMIT_EXCEEDED, METHOD_NOT_FOUND, Outcome, error};
use crate::upstream::complaint::is_unknown_method;
use crate::upstream::pending::{self, Announced, Fetches, Forms, MAX_UNDER_WAY};
use crate::upstream::shared::UpstreamShared;
use crate::upstream::{BestEffortEvent, CallError, NodeSubscription, TransactionForm, Wanted};

/// Poller of best-effort events (pending transactions, sync state) while clients subscribe to them. Failures stay here:
/// a node that does not serve them is still a good node.
#[derive(Debug)]
pub(super) struct MempoolPoller {
    shared: Arc<UpstreamShared>,
    node: HttpTransport,
    filter: Option<String>,
    back_off: BackOff,
    /// Error object of a node that returns no transaction by its hash.
    no_whole: Option<Bytes>,
}

impl MempoolPoller {
    pub(super) fn new(shared: Arc<UpstreamShared>, node: HttpTransport) -> Self {
        Self {
            shared,
            node,
            filter: None,
            back_off: BackOff::default(),
            no_whole: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(self.shared.settings.poll_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = self.shared.wanted.clone();
        let mut before = Wanted::default();
        loop {
            let is_due = tokio::select! {
                _ = tick.tick() => true,
                Ok(()) = changes.changed() => false,
            };
            let wanted = self.shared.wants();
            self.refuse_passed(&wanted);
            // New subscriptions are answered at once. Refused kinds do not cause polls, since any client may
            // subscribe to them.
            let wanted = Wanted {
                passed: Arc::default(),
                ..wanted
            };
            let is_new = before != wanted;
            before = wanted.clone();
            if !is_due && !is_new || self.back_off.until(Instant::now()).is_some() {
                continue;
            }
            if let Err(why) = self.poll(&wanted).await {
                debug!("upstream {}: {why}", self.shared.endpoint);
                match why {
                    HttpFailure::Throttled(after) => {
                        let now = Instant::now();
                        self.shared.load.throttled(now, after);
                        self.back_off.refused(now, after, RATE_LIMIT);
                        self.set_rate_limited();
                    }
                    HttpFailure::TooLong(_) | HttpFailure::Full(_) | HttpFailure::Other(_) => self.filter = None,
                }
            }
        }
    }

    /// Reports the answer for pending transactions in both forms, which one filter serves.
    fn set_answer(&self, answer: Result<(), Bytes>) {
        let whole = self.no_whole.clone().map_or(answer.clone(), Err);
        for (form, answer) in [(TransactionForm::Hash, answer), (TransactionForm::Full, whole)] {
            self.shared.set_answer(&NodeSubscription::Pending(form), Some(answer));
        }
    }

    /// Reports the rate limit to clients that subscribe to pending transactions in the meantime; the filter is polled
    /// again later.
    fn set_rate_limited(&self) {
        let Outcome::Error(why) = error(LIMIT_EXCEEDED, CallError::Throttled(None).to_string()).into() else {
            return;
        };
        for form in [TransactionForm::Hash, TransactionForm::Full] {
            self.shared
                .set_rate_limited(&NodeSubscription::Pending(form), Some(why.clone()));
        }
    }

    /// Refuses kinds that only the node knows: over HTTP nothing is passed through.
    fn refuse_passed(&self, wanted: &Wanted) {
        self.shared.remove_unsubscribed(wanted);
        for passed in &*wanted.passed {
            // Message of geth over HTTP (PROTOCOL 1.5).
            let none = error(METHOD_NOT_FOUND, "notifications not supported");
            if let Outcome::Error(none) = none.into() {
                self.shared
                    .set_answer(&NodeSubscription::Passthrough(passed.clone()), Some(Err(none)));
            }
        }
    }

    async fn poll(&mut self, wanted: &Wanted) -> Result<(), HttpFailure> {
        if wanted.syncing {
            let syncing = self.node.result("eth_syncing", "").await?;
            self.shared.best_effort(BestEffortEvent::Syncing(syncing));
        }
        if !wanted.pending_hashes && !wanted.pending_full {
            if let Some(filter) = self.filter.take() {
                self.node.outcome("eth_uninstallFilter", &format!("[{filter}]")).await?;
            }
            return Ok(());
        }
        // Nodes forget filters: then this call fails, and the next poll makes a new filter.
        let is_new = self.filter.is_none();
        let filter = match &self.filter {
            Some(filter) => filter,
            None => {
                let made = self.node.outcome("eth_newPendingTransactionFilter", "").await?;
                let id = match made {
                    Outcome::Result(id) => id,
                    Outcome::Error(error) => {
                        let why = String::from_utf8_lossy(&error).into_owned();
                        self.set_answer(Err(error));
                        return Err(why.into());
                    }
                };
                self.no_whole = None;
                self.filter.insert(String::from_utf8_lossy(&id).into_owned())
            }
        };
        let changes = self
            .node
            .outcome("eth_getFilterChanges", &format!("[{filter}]"))
            .await?;
        let changes = match changes {
            Outcome::Result(changes) => changes,
            Outcome::Error(error) => {
                let why = String::from_utf8_lossy(&error).into_owned();
                if is_new {
                    self.set_answer(Err(error));
                }
                return Err(why.into());
            }
        };
        let seen = tokio::time::Instant::now();
        self.set_answer(Ok(()));
        let found: Vec<&RawValue> = serde_json::from_slice(&changes).unwrap_or_default();
        let forms = Forms {
            hashes: wanted.pending_hashes,
            whole: wanted.pending_full && self.no_whole.is_none(),
        };
        let mut fetches = Fetches::default();
        let mut dropped = 0;
        for json in found {
            match Announced::read(&changes.slice_ref(json.get().as_bytes())) {
                Some(transaction) => {
                    let hash = self.shared.announced(transaction, forms, seen);
                    dropped += hash.map_or(0, |hash| fetches.push(&hash, seen));
                }
                None => dropped += 1,
            }
        }
        self.shared.count_dropped(dropped);
        self.fetch_whole(fetches).await
    }

    async fn fetch_whole(&mut self, mut fetches: Fetches) -> Result<(), HttpFailure> {
        let calls = fetches.take_waiting().into_iter().map(|(hash, seen)| {
            let node = self.node.clone();
            async move {
                let (method, params) = pending::fetch(&hash);
                (node.outcome(method, &params).await, seen)
            }
        });
        let mut left = calls.len();
        let mut answers = stream::iter(calls).buffered(MAX_UNDER_WAY);
        while let Some((answer, seen)) = answers.next().await {
            left -= 1;
            match answer {
                Ok(answer) => {
                    if let Err(error) = self.shared.fetched(answer, seen)
                        && is_unknown_method(&error)
                    {
                        self.shared.count_dropped(left);
                        self.no_whole = Some(error);
                        self.set_answer(Ok(()));
                        return Ok(());
                    }
                }
                Err(why @ HttpFailure::Throttled(_)) => {
                    self.shared.count_dropped(left + 1);
                    return Err(why);
                }
                Err(_) => self.shared.count_dropped(1),
            }
        }
        Ok(())
    }
}
