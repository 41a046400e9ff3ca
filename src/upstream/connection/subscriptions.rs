//! What a connection has subscribed to at its node beside the heads: made what is wanted, ended, put off, and given up.
//!
//! ```text
//! wanted > asked > stands > is being ended > gone
//!             > refused (until it is wanted anew)    > put off (asked again after a while)
//!             > given up (its grant, if it comes late, is ended)
//! ```

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{End, Feed, PassedState, Purpose, SYNCING_INTERVAL, Serving, SubscriptionState, WRITE_QUEUE, text};
use crate::jsonrpc::{INTERNAL_ERROR, Outcome, error};
use crate::upstream::load::LONGEST;
use crate::upstream::{Passed, TransactionForm, Wanted};

/// Subscriptions that wait to be ended; while there are more, none to pending transactions is begun.
const MAX_ENDING: usize = 64;

impl Serving {
    pub(super) async fn subscribed(&mut self, feed: Feed, subscription: String) -> Result<(), End> {
        if let Some(Some(_)) = self.feeds.get(&subscription) {
            // Whoever has it keeps it. To end the connection would end it for all, again and again.
            let why = error(INTERNAL_ERROR, "the node gave two subscriptions one id");
            return match why.into() {
                Outcome::Error(why) | Outcome::Result(why) => self.refused(feed, why),
            };
        }
        self.back_offs.remove(&feed);
        match feed {
            Feed::Heads => {
                self.heads_granted();
                self.ask_vital(Purpose::Latest);
            }
            Feed::Pending(form) => {
                self.pending
                    .insert(form, SubscriptionState::Stands(subscription.clone()));
                self.shared.settle(form, true);
            }
            Feed::Passed(ref passed) => {
                self.passed
                    .insert(passed.clone(), PassedState::Stands(subscription.clone()));
                self.shared.settle_passed(passed, Some(Ok(())));
            }
        }
        self.feeds.insert(subscription.clone(), Some(feed.clone()));
        for json in self.early.take(&subscription) {
            self.deliver(feed.clone(), json).await;
        }
        // It may not be wanted any more by now.
        self.reconcile();
        Ok(())
    }

    /// The node does not serve it.
    pub(super) fn refused(&mut self, feed: Feed, error: Bytes) -> Result<(), End> {
        self.back_offs.remove(&feed);
        match feed {
            Feed::Heads => self.heads_refused(&text(&error)),
            Feed::Pending(form) => {
                warn!(upstream = %self.shared.endpoint, ?form, "no pending transactions: {}", text(&error));
                self.pending.insert(form, SubscriptionState::Refused);
                self.shared.settle(form, true);
            }
            Feed::Passed(passed) => {
                debug!(upstream = %self.shared.endpoint, ?passed, "refused: {}", text(&error));
                self.shared.settle_passed(&passed, Some(Err(error.clone())));
                self.passed.insert(passed, PassedState::Refused(error));
                // Whoever asked may be gone.
                self.reconcile();
            }
        }
        Ok(())
    }

    /// The node is asked too much: the subscription is asked for again after a while. Whatever else it refuses meanwhile does
    /// not make that later.
    pub(super) fn put_off(&mut self, feed: Feed, outcome: Outcome) {
        let now = Instant::now();
        self.shared.load.throttled(now, None);
        let back_off = self.back_offs.entry(feed.clone()).or_default();
        back_off.refused(now, None, LONGEST);
        match (feed, outcome) {
            (Feed::Pending(form), _) => drop(self.pending.remove(&form)),
            (Feed::Passed(passed), Outcome::Error(error)) => {
                self.shared.put_off(&passed, Some(error.clone()));
                self.passed.insert(passed, PassedState::PutOff(error));
                self.reconcile();
            }
            _ => {}
        }
    }

    fn is_put_off(&self, feed: &Feed) -> bool {
        let back_off = self.back_offs.get(feed);
        back_off.is_some_and(|back_off| back_off.until(Instant::now()).is_some())
    }

    /// Ends a subscription at the node, as soon as there is room to say so.
    fn unsubscribe(&mut self, method: String, subscription: String) {
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

    /// The node tells nothing of it any more; its id may be another's by now.
    pub(super) fn ended(&mut self, subscription: &str) {
        if let Some(None) = self.feeds.get(subscription) {
            self.feeds.remove(subscription);
        }
    }

    /// A subscription stands that was given up.
    pub(super) fn answered_late(&mut self, method: String, outcome: Outcome) {
        if let Outcome::Result(json) = outcome
            && !self.feeds.contains_key(&text(&json))
        {
            self.unsubscribe(method, text(&json));
        }
    }

    /// Whether a subscription is asked for, so that its events may come before its id.
    pub(super) fn awaits_id(&self) -> bool {
        let mut purposes = self.waiting.values();
        purposes.any(|purpose| matches!(purpose, Purpose::Subscribe(_)))
    }

    /// Makes the node's subscriptions what is wanted now.
    pub(super) fn reconcile(&mut self) {
        if !self.ready {
            return;
        }
        let wanted = self.shared.wants();
        self.write_ending();
        let forms = [
            (
                TransactionForm::Hash,
                wanted.pending_hashes,
                r#"["newPendingTransactions"]"#,
            ),
            (
                TransactionForm::Full,
                wanted.pending_full,
                r#"["newPendingTransactions",true]"#,
            ),
        ];
        for (form, wanted, params) in forms {
            match (self.pending.remove(&form), wanted) {
                (None, true) => {
                    let feed = Feed::Pending(form);
                    let may_ask = !self.is_put_off(&feed) && self.ending.len() < MAX_ENDING;
                    if may_ask && self.ask("eth_subscribe", params, Purpose::Subscribe(feed)) {
                        self.pending.insert(form, SubscriptionState::Asked);
                    }
                }
                (Some(SubscriptionState::Stands(subscription)), false) => {
                    self.shared.settle(form, false);
                    self.unsubscribe(Feed::Pending(form).unsubscribe(), subscription);
                }
                // Asked for: when the answer comes this is looked at again. Else it is known already, also where another
                // upstream was in use for a moment.
                (Some(state), _) => {
                    if wanted && !matches!(state, SubscriptionState::Asked) {
                        self.shared.settle(form, true);
                    }
                    self.pending.insert(form, state);
                }
                (None, false) => {}
            }
        }
        self.reconcile_passed(&wanted);
        if !wanted.syncing {
            self.asked_syncing = None;
        } else if self.asked_syncing.is_none_or(|at| at.elapsed() >= SYNCING_INTERVAL) {
            self.asked_syncing = Some(Instant::now());
            self.ask("eth_syncing", "", Purpose::Syncing);
        }
    }

    fn reconcile_passed(&mut self, wanted: &Wanted) {
        let unwanted: Vec<Passed> = self
            .passed
            .iter()
            .filter(|(passed, state)| !wanted.passed.contains(*passed) && !matches!(state, PassedState::Asked))
            .map(|(passed, _)| passed.clone())
            .collect();
        for passed in unwanted {
            self.back_offs.remove(&Feed::Passed(passed.clone()));
            if let Some(PassedState::Stands(subscription)) = self.passed.remove(&passed) {
                self.unsubscribe(passed.unsubscribe(), subscription);
            }
        }
        self.shared.forget_unwanted(wanted);
        for passed in &*wanted.passed {
            let feed = Feed::Passed(passed.clone());
            match self.passed.get(passed) {
                // When the answer comes this is looked at again.
                Some(PassedState::Asked) => {}
                // Also where another upstream was in use for a moment.
                Some(PassedState::Stands(_)) => self.shared.settle_passed(passed, Some(Ok(()))),
                Some(PassedState::Refused(error)) => self.shared.settle_passed(passed, Some(Err(error.clone()))),
                Some(PassedState::PutOff(error)) if self.is_put_off(&feed) => {
                    self.shared.put_off(passed, Some(error.clone()));
                }
                None if !self.has_room_to_pass() => {}
                Some(PassedState::PutOff(_)) | None => {
                    if self.ask(passed.method(), passed.params(), Purpose::Subscribe(feed)) {
                        self.passed.insert(passed.clone(), PassedState::Asked);
                        self.shared.put_off(passed, None);
                    }
                }
            }
        }
    }

    /// Neither those who ask and leave before the node answers, nor those that it does not end, come to more than may be
    /// wanted at the same time.
    fn has_room_to_pass(&self) -> bool {
        let max = self.shared.settings.max_passed;
        let ending = self.feeds.values().filter(|feed| feed.is_none()).count();
        self.passed.len() < max && ending < max
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::config::{Config, typed};
    use crate::telemetry::Metrics;
    use crate::upstream::choice::Choice;
    use crate::upstream::identity::Identity;
    use crate::upstream::link::{Inbound, Outbound};
    use crate::upstream::load::Load;
    use crate::upstream::pool::Shared;
    use crate::upstream::{Endpoint, UpstreamId};

    /// A connection that stands, to the node in use, and what is wanted of it.
    fn serving(edit: impl FnOnce(&mut typed::Config)) -> (Serving, watch::Sender<Wanted>) {
        let mut typed = typed::Config {
            upstream: vec!["ws://127.0.0.1:1".to_owned().into()],
            ..typed::Config::default()
        };
        edit(&mut typed);
        let config = Config::check(&typed).expect("good settings");
        let endpoint: Endpoint = config.upstreams[0].endpoint.clone();
        let (wants, wanted) = watch::channel(Wanted::default());
        let metrics = Arc::new(Metrics::new().0);
        let shared = Shared {
            id: UpstreamId(0),
            endpoint: endpoint.clone(),
            status: Mutex::default(),
            choice: Arc::new(Choice::new(vec![endpoint], &config.node, metrics)),
            settings: config.node,
            identity: Arc::new(Identity::new(1, None)),
            newest: Mutex::default(),
            sightings: mpsc::channel(1).0,
            gossip: mpsc::channel(1).0,
            gossip_dropped: Arc::new(AtomicU64::new(0)),
            wanted,
            load: Load::default(),
        };
        shared.up();
        let mut serving = Serving::new(Arc::new(shared));
        serving.ready = true;
        (serving, wants)
    }

    fn passed(of: usize) -> Passed {
        let param = serde_json::value::to_raw_value(&of).expect("a number");
        Passed::new("eth_subscribe", &[&param]).expect("short")
    }

    fn want(wants: &watch::Sender<Wanted>, of: impl IntoIterator<Item = usize>) {
        wants.send_modify(|wanted| wanted.passed = Arc::new(of.into_iter().map(passed).collect::<BTreeSet<_>>()));
    }

    /// What is written next.
    fn written(serving: &mut Serving) -> Vec<String> {
        let messages = serving.out.drain(..).map(|message| match message {
            Outbound::Message(text) => text,
            Outbound::Ping => "ping".to_owned(),
        });
        messages.collect()
    }

    async fn says(serving: &mut Serving, text: &str) {
        let message = Inbound::Message(Bytes::copy_from_slice(text.as_bytes()));
        serving.apply(message).await.expect("the connection stands");
    }

    #[tokio::test]
    async fn a_subscription_is_ended_also_where_the_write_queue_is_full() {
        let (mut serving, wants) = serving(|_| {});
        want(&wants, [1]);
        wants.send_modify(|wanted| wanted.pending_hashes = true);
        serving.reconcile();
        assert_eq!(written(&mut serving).len(), 2);
        for (id, subscription) in [(1, "0xa"), (2, "0xb")] {
            let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"{subscription}"}}"#);
            says(&mut serving, &answer).await;
        }
        while serving.put(Outbound::Ping) {}
        wants.send_replace(Wanted::default());
        serving.reconcile();
        assert!(written(&mut serving).iter().all(|text| text == "ping"));
        serving.reconcile();
        let ends = written(&mut serving).concat();
        assert!(ends.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{ends}");
        assert!(ends.contains(r#""eth_unsubscribe","params":["0xb"]"#), "{ends}");
        serving.reconcile();
        assert!(written(&mut serving).is_empty(), "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_waits_for_its_own_refusals_alone() {
        let (mut serving, wants) = serving(|_| {});
        let hour = Duration::from_secs(3600);
        serving.shared.load.throttled(Instant::now(), Some(hour));
        want(&wants, [1]);
        wants.send_modify(|wanted| wanted.pending_hashes = true);
        serving.reconcile();
        assert_eq!(written(&mut serving).len(), 2);
        let limit = r#""error":{"code":-32005,"message":"rate limited"}"#;
        for id in [1, 2] {
            says(&mut serving, &format!(r#"{{"jsonrpc":"2.0","id":{id},{limit}}}"#)).await;
        }
        serving.reconcile();
        assert!(written(&mut serving).is_empty(), "not at once");
        tokio::time::advance(Duration::from_secs(1)).await;
        serving.reconcile();
        assert_eq!(written(&mut serving).len(), 2);
        for id in [3, 4] {
            says(&mut serving, &format!(r#"{{"jsonrpc":"2.0","id":{id},{limit}}}"#)).await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        serving.reconcile();
        assert!(written(&mut serving).is_empty(), "the second time it takes longer");
        tokio::time::advance(Duration::from_secs(1)).await;
        serving.reconcile();
        assert_eq!(written(&mut serving).len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_is_ended_also_where_the_node_is_asked_too_much() {
        let (mut serving, wants) = serving(|_| {});
        want(&wants, [1]);
        serving.reconcile();
        says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
        want(&wants, []);
        serving.reconcile();
        written(&mut serving);
        says(
            &mut serving,
            r#"{"jsonrpc":"2.0","id":2,"error":{"code":429,"message":"slow down"}}"#,
        )
        .await;
        serving.reconcile();
        assert!(written(&mut serving).is_empty(), "not at once");
        tokio::time::advance(Duration::from_secs(1)).await;
        serving.reconcile();
        let end = written(&mut serving).concat();
        assert!(end.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{end}");
    }

    #[tokio::test]
    async fn one_that_is_being_ended_takes_a_place_until_the_node_has_answered() {
        let (mut serving, wants) = serving(|typed| typed.subscriptions.max_passed = 1);
        want(&wants, [1]);
        serving.reconcile();
        says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
        written(&mut serving);
        want(&wants, [2]);
        serving.reconcile();
        let end = written(&mut serving);
        assert!(end.len() == 1 && end[0].contains("eth_unsubscribe"), "{end:?}");
        says(&mut serving, r#"{"jsonrpc":"2.0","id":2,"result":true}"#).await;
        let next = written(&mut serving);
        assert!(next.len() == 1 && next[0].contains(r#""params":[2]"#), "{next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_answered_takes_no_place_for_ever() {
        let (mut serving, wants) = serving(|typed| typed.subscriptions.max_passed = 2);
        let mut asked = 0;
        // Who asks and leaves comes to no more than the limit.
        for of in 0..10 {
            want(&wants, [of]);
            serving.reconcile();
            asked += written(&mut serving).len();
        }
        assert_eq!((asked, serving.waiting.len()), (2, 2));
        tokio::time::advance(serving.shared.settings.request_timeout).await;
        serving.expire().expect("it stands");
        let next = written(&mut serving).concat();
        assert!(next.contains(r#""params":[9]"#), "{next}");
        // What is granted after all is ended.
        says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
        let end = written(&mut serving).concat();
        assert!(end.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{end}");
        // And an end that is not answered takes no place for ever either.
        tokio::time::advance(serving.shared.settings.request_timeout).await;
        serving.expire().expect("it stands");
        assert!(serving.waiting.is_empty() && serving.feeds.is_empty() && serving.own.is_empty());
    }
}
