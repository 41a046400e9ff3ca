//! Subscriptions at the node that headwater does not know: a call began them, or the request to end them was lost. Each
//! costs work and bandwidth until it is ended.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::{Purpose, Serving, WRITE_QUEUE};
use crate::backoff::RATE_LIMIT;
use crate::jsonrpc::{MAX_METHOD_NAME, Outcome};
use crate::upstream::complaint::is_throttled;
use crate::upstream::message::{Notice, Notification};
use crate::upstream::naming::may_end;

/// Most streams ended within one [`WINDOW`]; events of further ones are only counted.
const MAX_KNOWN: usize = 64;

/// Time after which further streams, and those that go on, are ended again.
const WINDOW: Duration = Duration::from_secs(60);

/// Longest id that is sent back, in bytes.
const MAX_ID: usize = 256;

/// Ids of the streams ended within the current [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct UnknownSubscriptions {
    known: HashSet<String>,
    since: Option<Instant>,
}

impl UnknownSubscriptions {
    /// Checks if a stream should be ended: not ended in this window yet, below [`MAX_KNOWN`], and its id not too
    /// long.
    fn is_new(&mut self, id: &str, now: Instant) -> bool {
        if self.since.is_none_or(|since| now - since >= WINDOW) {
            self.known.clear();
            self.since = Some(now);
        }
        self.known.len() < MAX_KNOWN && id.len() <= MAX_ID && self.known.insert(id.to_owned())
    }
}

impl Serving {
    /// Counts an event that belongs to an unknown subscription, and ends its stream at the node.
    pub(super) fn end_unmatched(
        &mut self,
        Notification {
            method,
            subscription,
            notice,
        }: Notification,
    ) {
        if matches!(notice, Notice::Ended(_)) {
            return;
        }
        self.shared.active.metrics().unknown_subscription_events.inc();
        let now = Instant::now();
        let has_room = self.out.len() < WRITE_QUEUE && self.end_back_off.until(now).is_none();
        if has_room && method.len() <= MAX_METHOD_NAME && self.unknown_subscriptions.is_new(&subscription, now) {
            let name = String::from_utf8_lossy(&method);
            warn!(
                "upstream {}: the node sends {name} of an unknown subscription, {subscription}; headwater ends it",
                self.shared.endpoint
            );
            self.end_unknown(subscription, may_end(&name));
        }
    }

    /// Disowns all early events: no answer brought their subscription ids.
    pub(super) fn end_all_unmatched(&mut self) {
        for event in self.early.take_all() {
            self.end_unmatched(event);
        }
    }

    fn end_unknown(&mut self, subscription: String, mut methods: Vec<String>) {
        if methods.is_empty() {
            return;
        }
        let method = methods.remove(0);
        let params = format!("[{subscription}]");
        let others = methods;
        self.ask(&method, &params, Purpose::EndUnknown { subscription, others });
    }

    /// Handles the answer to the end of a stream; after an error the next method is tried.
    pub(super) fn disowned(&mut self, subscription: String, others: Vec<String>, outcome: &Outcome) {
        if is_throttled(outcome) {
            let now = Instant::now();
            self.shared.load.throttled(now, None);
            self.end_back_off.refused(now, None, RATE_LIMIT);
            // The stream's next event triggers another attempt.
            self.unknown_subscriptions.known.remove(&subscription);
        } else if matches!(outcome, Outcome::Error(_)) {
            self.end_unknown(subscription, others);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::subscriptions::tests::{answers, asked, message, says, serving, want};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_is_ended_once_in_a_while_and_not_too_many() {
        let mut unknown_subscriptions = UnknownSubscriptions::default();
        let now = Instant::now;
        assert!(unknown_subscriptions.is_new("a", now()) && !unknown_subscriptions.is_new("a", now()));
        assert!(!unknown_subscriptions.is_new(&"x".repeat(MAX_ID + 1), now()));
        let more = (0..2 * MAX_KNOWN).filter(|n| unknown_subscriptions.is_new(&n.to_string(), now()));
        assert_eq!(more.count(), MAX_KNOWN - 1);
        tokio::time::advance(WINDOW).await;
        assert!(unknown_subscriptions.is_new("a", now()), "it goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_nobody_owns_is_ended_once_and_counted() {
        let (mut serving, wants) = serving(|_| {});
        let event = |name: &str, id: &str| {
            format!(r#"{{"jsonrpc":"2.0","method":"{name}","params":{{"subscription":{id},"result":1}}}}"#)
        };
        let counted = |serving: &Serving| serving.shared.active.metrics().unknown_subscription_events.get();
        for (name, id, first, second) in [
            ("eth_subscription", r#""0xa""#, r#"eth_unsubscribe ["0xa"]"#, ""),
            ("debug_subscription", "7", "debug_unsubscribe [7]", ""),
            (
                "reth_subscribeBlocks",
                "8",
                "reth_unsubscribeBlocks [8]",
                "reth_unsubscribe [8]",
            ),
        ] {
            let before = counted(&serving);
            says(&mut serving, &event(name, id)).await;
            assert_eq!(asked(&mut serving), [first]);
            says(&mut serving, &event(name, id)).await;
            assert!(asked(&mut serving).is_empty(), "once");
            answers(&mut serving, "error", r#"{"code":-32601}"#).await;
            assert_eq!(asked(&mut serving).concat(), second);
            answers(&mut serving, "result", "true").await;
            says(&mut serving, &event(name, id)).await;
            assert!(asked(&mut serving).is_empty());
            assert_eq!(counted(&serving) - before, 3);
        }
        // The end of a subscription is not counted as an event.
        let before = counted(&serving);
        says(&mut serving, &message(r#""0xff""#, "error", "{}")).await;
        assert!(asked(&mut serving).is_empty() && counted(&serving) == before);
        // While a subscribe request is in flight, an event may be ours; if its id does not follow, it has no owner.
        want(&wants, [1]);
        serving.reconcile();
        asked(&mut serving);
        says(&mut serving, &event("eth_subscription", r#""0xb""#)).await;
        assert!(asked(&mut serving).is_empty());
        answers(&mut serving, "result", r#""0xc""#).await;
        want(&wants, [1, 2]);
        serving.reconcile();
        let next = asked(&mut serving);
        assert_eq!(next[0], r#"eth_unsubscribe ["0xb"]"#);
        assert_eq!(next.len(), 2);
        // A node that invents ids does not cause a request for each.
        answers(&mut serving, "result", r#""0xd""#).await;
        let mut ended = 0;
        for n in 0..1000 {
            says(&mut serving, &event("eth_subscription", &n.to_string())).await;
            ended += asked(&mut serving).len();
        }
        assert!(ended <= 64, "{ended}");
    }
}
