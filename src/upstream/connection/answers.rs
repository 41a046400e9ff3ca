//! Answers of the node to a connection's requests, each handled by its purpose.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{End, FeedState, Purpose, Serving, text};
use crate::backoff::RATE_LIMIT;
use crate::jsonrpc::Outcome;
use crate::upstream::complaint::{is_temporarily_unavailable, is_throttled};
use crate::upstream::identity::{Doubt, Genesis, has_no_chain_id};
use crate::upstream::{BestEffortEvent, HeadReport};

/// Time without a fetch of the newest head after a rate limit.
const LEFT_ALONE: Duration = Duration::from_secs(1);

impl Serving {
    pub(super) async fn answered(&mut self, purpose: Purpose, outcome: Outcome) -> Result<(), End> {
        if purpose.is_vital() {
            self.asked = None;
            if is_throttled(&outcome) {
                self.spare(purpose);
                return Ok(());
            }
        }
        match (purpose, outcome) {
            (Purpose::Caller(reply), outcome) => drop(reply.send(Ok(outcome))),
            (Purpose::ChainId, outcome) if has_no_chain_id(&outcome) => drop(self.ask_vital(Purpose::NetworkId)),
            (Purpose::ChainId | Purpose::NetworkId, Outcome::Result(json)) => {
                self.shared.check_chain_id(&text(&json)).map_err(End::Refused)?;
                self.ask_vital(Purpose::Genesis);
            }
            (Purpose::Compare(question), outcome) => self.compared(question, outcome).await,
            (Purpose::Rung, outcome) => self.rung(outcome).await,
            (Purpose::Genesis, outcome) => match self.shared.check_genesis(&outcome) {
                Genesis::Same => drop(self.ask_vital(Purpose::Subscribe(FeedState::Heads))),
                Genesis::Other(doubt) => self.doubted(doubt).await?,
            },
            (Purpose::PublishedSample(mut doubt), outcome) => {
                doubt.answered(&outcome);
                self.doubted(doubt).await?;
            }
            (Purpose::ChainId | Purpose::NetworkId | Purpose::Latest, Outcome::Error(error)) => {
                let why = text(&error);
                let is_temporarily_unavailable = is_temporarily_unavailable(&Outcome::Error(error));
                return Err(if is_temporarily_unavailable {
                    End::NotNow(why)
                } else {
                    End::Refused(why)
                });
            }
            (Purpose::Subscribe(feed), Outcome::Result(json)) => self.subscribed(feed, text(&json)).await?,
            (Purpose::Subscribe(feed), outcome @ Outcome::Error(_)) if feed.is_throttled(&outcome) => {
                self.set_rate_limited(feed, outcome);
            }
            (Purpose::Subscribe(feed), Outcome::Error(error)) => self.refused(feed, error)?,
            (Purpose::Unsubscribe { method, subscription }, outcome) if is_throttled(&outcome) => {
                let now = Instant::now();
                self.shared.load.throttled(now, None);
                self.end_back_off.refused(now, None, RATE_LIMIT);
                if let Some(None) = self.feeds.get(&subscription) {
                    self.ending.push_back((method, subscription));
                }
            }
            // Also after a refusal: then the node does not know the subscription.
            (Purpose::Unsubscribe { subscription, .. }, _) => {
                self.ended(&subscription);
                // Its place may be free for another one now.
                self.reconcile();
            }
            (
                Purpose::EndUnknown {
                    subscription, others, ..
                },
                outcome,
            ) => self.disowned(subscription, others, &outcome),
            (Purpose::Transaction(seen), outcome) => self.fetched(outcome, seen)?,
            (Purpose::Latest, Outcome::Result(json)) => {
                // Head first: the choice of the upstream depends on it.
                self.report(HeadReport::Latest(json)).await;
                if !self.ready {
                    self.ready = true;
                    info!("upstream {}: connected", self.shared.endpoint);
                    self.shared.up();
                    self.reconcile();
                }
            }
            (Purpose::Probe, Outcome::Result(json)) => self.probed(json).await?,
            (Purpose::Syncing, Outcome::Result(json)) => self.shared.best_effort(BestEffortEvent::Syncing(json)),
            (Purpose::Syncing | Purpose::Probe | Purpose::Ignored, _) => {}
        }
        Ok(())
    }

    /// Continues the handshake of a node whose genesis differs from the known one, once the published blocks that it
    /// has, or lacks, show which chain it is on.
    async fn doubted(&mut self, doubt: Doubt) -> Result<(), End> {
        if doubt.question().is_some() {
            self.ask_vital(Purpose::PublishedSample(doubt));
        } else {
            self.shared.resolve(&doubt).await.map_err(End::Refused)?;
            self.ask_vital(Purpose::Subscribe(FeedState::Heads));
        }
        Ok(())
    }

    /// Handles a rate limit of a vital request: the node is alive, and a new connection would begin with more
    /// requests. A handshake step is retried after a back-off, and so are the fetch of the head and its subscription;
    /// probes recur anyway.
    fn spare(&mut self, purpose: Purpose) {
        let now = Instant::now();
        self.shared.load.throttled(now, None);
        if matches!(purpose, Purpose::Rung) {
            self.put_off_head(now + LEFT_ALONE);
            return;
        }
        if matches!(purpose, Purpose::Probe) {
            debug!(upstream = %self.shared.endpoint, "rate limited; the newest head is requested again later");
            return;
        }
        if matches!(purpose, Purpose::Subscribe(FeedState::Heads)) {
            self.heads_put_off();
            return;
        }
        let why = "rate limited by the node";
        warn!(
            "upstream {}: {why}; the handshake continues after a back-off",
            self.shared.endpoint
        );
        self.shared.status.lock().last_error = Some(why.into());
        self.postponed = Some(purpose);
        self.handshake.refused(now, None, RATE_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::super::subscriptions::tests::{answers, asked, serving};
    use super::*;
    use crate::upstream::link::Inbound;

    #[tokio::test]
    async fn the_network_id_stands_for_the_chains() {
        let unknown = r#"{"code":-32601,"message":"the method eth_chainId does not exist"}"#;
        for (member, answer) in [("error", unknown), ("result", "null")] {
            let (mut serving, _wants) = serving(|_| {});
            serving.ask_vital(Purpose::ChainId);
            assert_eq!(asked(&mut serving), ["eth_chainId []"]);
            answers(&mut serving, member, answer).await;
            assert_eq!(asked(&mut serving), ["net_version []"]);
            answers(&mut serving, "result", r#""1337""#).await;
            assert_eq!(asked(&mut serving), [r#"eth_getBlockByNumber ["0x0",false]"#]);
            assert_eq!(serving.shared.identity.chain_id(), Some(r#""0x539""#));
        }
        for (member, answer) in [("error", unknown), ("result", "null")] {
            let (mut serving, _wants) = serving(|_| {});
            serving.ask_vital(Purpose::NetworkId);
            let frame = format!(r#"{{"id":{},"{member}":{answer}}}"#, serving.next_id);
            let end = serving.apply(Inbound::Message(frame.into())).await;
            assert!(matches!(end, Err(End::Refused(_))));
        }
    }
}
