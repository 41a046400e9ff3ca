//! Subscriptions of a client: admission, `eth_subscribe` and `eth_unsubscribe`.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Services;
use super::intake::RequestRefusal;
use super::web_socket::WebSocket;
use crate::delivery::CloseReason;
use crate::door::{Limit, Reserved, unix_now};
use crate::jsonrpc::{ErrorObjectOwned, LIMIT_EXCEEDED, Outcome, Request, SERVER_ERROR, error};
use crate::rpc::{Local, SubscriptionMethod, id_argument, not_passed};
use crate::subscription::{
    Claim, NodeSubscription, Start, SubscriptionKey, Topic, UnconfirmedSubscription, no_such_kind,
};

impl WebSocket<'_> {
    /// Begins a subscription, whose recipient the answer releases.
    ///
    /// # Errors
    /// The answer: the parameters are wrong, the client may not have the kind or method, or a limit of the connection, the
    /// client or the process is reached.
    pub(super) fn subscribe(
        &mut self,
        method: SubscriptionMethod<'_>,
        request: &Request<'_>,
    ) -> Result<Local, ErrorObjectOwned> {
        let has_place = self.acquired.place.is_some();
        // Subscriptions that found no block to resume from, or that the node refused, are not counted, nor charged.
        self.subscriptions.retain(|(own, _)| !own.recipient.is_refused());
        let terms = self.pass.account().terms();
        let methods = &terms.rights.methods;
        let (mut topic, is_allowed, name) = match method {
            SubscriptionMethod::Subscribe(namespace) => {
                let topic = Topic::parse(namespace, request)?;
                let name = format!("{namespace}_{}", topic.name());
                // `eth_x_subscribe` subscribes like `eth_subscribe`: a rule that denies one denies the other.
                (
                    topic,
                    methods.allow_subscription(&format!("{namespace}_subscribe")),
                    name,
                )
            }
            _ => (Topic::of_its_own(request)?, true, request.method.clone().into_owned()),
        };
        let not_offered = |topic: &Topic| match method {
            SubscriptionMethod::Subscribe(namespace) => no_such_kind(namespace, topic.name()),
            _ => not_passed(&request.method),
        };
        if !is_allowed || !methods.allow_subscription(&request.method) || !terms.rights.kinds.allow(topic.kind()) {
            self.services.count_refusal("kind");
            return Err(not_offered(&topic));
        }
        let services = self.services.clone();
        // For these, the node's answer decides.
        let of = match &topic {
            Topic::Passthrough(passed, _) => Some(NodeSubscription::Passthrough(passed.clone())),
            Topic::Pending(filter) => Some(NodeSubscription::Pending(filter.source())),
            _ => None,
        };
        if of.is_some() {
            if matches!(topic, Topic::Passthrough(..)) && !terms.rights.passed.match_any(&name) {
                return Err(not_offered(&topic));
            }
            if !has_place {
                return Err(RequestRefusal::InFlight.counted(1, &services.metrics));
            }
        }
        let remembered = topic.session_key().filter(|_| self.has_session);
        if let Topic::Chain(stream, start @ Start::Live) = &mut topic {
            *start = services.replays.start_of(stream);
        }
        self.check_count()?;
        if let Some((label, words)) = services.registry.refuses(&topic) {
            services.count_refusal(label);
            return Err(error(SERVER_ERROR, words));
        }
        let reserved = self.reserve(topic.index_entries())?;
        let (granted, kind) = (self.granted(&topic), topic.kind());
        if remembered.is_some() {
            services
                .registry
                .admit_position(self.writer.id(), unix_now())
                .map_err(|words| error(LIMIT_EXCEEDED, words))?;
        }
        if let Topic::Trailing(level, ..) = &topic
            && let Err(words) = services.registry.admit_level(*level, self.writer.owner())
        {
            services.count_refusal("depths");
            return Err(error(LIMIT_EXCEEDED, words));
        }
        // Without a place in flight a position is not claimed: the client may subscribe again.
        let claim = match remembered {
            Some(key) => self.claim(key, has_place)?,
            None => None,
        };
        let (subscription, finding) = match topic {
            topic if claim.is_some() => {
                let claim = claim.as_ref();
                let delivered = claim.and_then(|claim| claim.delivered.clone());
                let resumed = topic
                    .into_resumable()
                    .zip(delivered)
                    .map(|((level, stream), delivered)| {
                        services.replays.restore(level, stream, delivered, self.writer)
                    });
                match resumed.unwrap_or(Err(CloseReason::PositionLost)) {
                    Ok(begun) => begun?,
                    Err(reason) => {
                        if let Some(claim) = claim {
                            services.registry.lose_claim(self.writer, claim, reason);
                        }
                        return Err(error(SERVER_ERROR, reason.text()));
                    }
                }
            }
            // Before the first block there is no position for "now", so an answer could leave a gap; and after a
            // rewind, live subscribers know blocks that this client still has to receive.
            Topic::Chain(stream, start) if start != Start::Live || !services.registry.is_at_its_tip() => {
                if !has_place {
                    return Err(RequestRefusal::InFlight.counted(1, &services.metrics));
                }
                services.replays.subscribe(stream, start, self.writer)?
            }
            // The answer may wait for a node's tag.
            Topic::Trailing(level, stream, start) => {
                if !has_place {
                    return Err(RequestRefusal::InFlight.counted(1, &services.metrics));
                }
                services.replays.trail(level, stream, start, self.writer)?
            }
            topic => match services.registry.subscribe(topic, self.writer) {
                Ok(subscription) => (subscription, None),
                Err(full) => {
                    services.count_refusal("passthrough");
                    return Err(error(LIMIT_EXCEEDED, full.to_string()));
                }
            },
        };
        if let Some(key) = remembered {
            services
                .registry
                .follow(self.writer, key, claim.as_ref(), &subscription);
        }
        let recipient = subscription.recipient.clone();
        if self.subscriptions.capacity() == 0 {
            // Growing starts with four, and most clients have one.
            self.subscriptions.reserve_exact(1);
        }
        let asked = subscription.unconfirmed();
        let reserved = reserved.listed(self.writer.id(), kind, &recipient);
        self.subscriptions.push((subscription, reserved));
        self.note_use();
        let id = Outcome::Result(format!("\"{}\"", recipient.id()).into());
        self.acquired.releases.push(recipient);
        if let Some(of) = of {
            return Ok(Local::Later(
                async move { services.grant(&of, asked).await.err().unwrap_or(id) }.boxed(),
            ));
        }
        Ok(match (finding, granted) {
            (Some(finding), _) => Local::Later(finding.outcome().boxed()),
            (None, Some(granted)) if has_place => Local::Later(granted.map(|()| id).boxed()),
            (None, _) => id.into(),
        })
    }

    /// Takes the position that the session has of this subscription; `None` if it has none.
    ///
    /// # Errors
    /// The client's answer, if the connection has no place in flight: the answer may wait for a node.
    fn claim(&self, key: SubscriptionKey, has_place: bool) -> Result<Option<Claim>, ErrorObjectOwned> {
        if !has_place {
            return Err(RequestRefusal::InFlight.counted(1, &self.services.metrics));
        }
        Ok(self.services.registry.claim(self.writer.id(), key))
    }

    /// Checks the number of subscriptions of the connection, those to an extension included.
    ///
    /// # Errors
    /// The client's answer, if there can be no more.
    pub(super) fn check_count(&mut self) -> Result<(), ErrorObjectOwned> {
        let max = self.pass.terms().rights.plan.max_subscriptions;
        let streams = self.streams.as_mut().map_or(0, |streams| streams.count());
        if self.subscriptions.len() + streams >= max {
            self.services.count_refusal("subscriptions");
            let message = format!("limit exceeded: {max} subscriptions on this connection");
            return Err(error(LIMIT_EXCEEDED, message));
        }
        Ok(())
    }

    /// Reserves a subscription with this many index entries in the account.
    ///
    /// # Errors
    /// The client's answer, if the account can have no more.
    pub(super) fn reserve(&self, index_entries: usize) -> Result<Reserved, ErrorObjectOwned> {
        self.pass.account().reserve(index_entries).map_err(|limit| {
            let (label, message) = match limit {
                Limit::Subscriptions(max) => (
                    "client_subscriptions",
                    format!("limit exceeded: {max} subscriptions of this client"),
                ),
                Limit::IndexEntries(max) => (
                    "index_entries",
                    format!("limit exceeded: {max} addresses times topics, and hashes, in the filters of this client"),
                ),
            };
            self.services.count_refusal(label);
            error(LIMIT_EXCEEDED, message)
        })
    }

    /// Returns the event that the answer to a subscription waits for, so that no gap follows the answer; `None` if it
    /// need not wait.
    fn granted(&self, topic: &Topic) -> Option<BoxFuture<'static, ()>> {
        let services = self.services.clone();
        match topic {
            Topic::Mined(_) | Topic::Receipts(_) if !services.registry.has_begun() => {
                Some(async move { services.registry.begun().await }.boxed())
            }
            _ => None,
        }
    }

    pub(super) fn unsubscribe(&mut self, request: &Request<'_>) -> Outcome {
        let id = match request.args().and_then(|args| id_argument(&args)) {
            Ok(id) => id,
            Err(why) => return why.into(),
        };
        let mine = self
            .subscriptions
            .iter()
            .position(|(own, _)| Some(own.recipient.id()) == id);
        match mine.map(|at| self.subscriptions.swap_remove(at)) {
            Some((subscription, _)) => {
                if self.has_session {
                    let id = subscription.recipient.id();
                    self.services.registry.forget_position(self.writer.id(), id);
                }
                self.services.registry.unsubscribe(&subscription);
                self.note_use();
                Outcome::TRUE
            }
            None => error(SERVER_ERROR, "subscription not found").into(),
        }
    }

    /// Records if the connection has subscriptions: one that has is displaced last.
    pub(super) fn note_use(&mut self) {
        let streams = self.streams.as_mut().map_or(0, |streams| streams.count());
        if let Some(activity) = self.pass.activity() {
            activity.set_in_use(self.subscriptions.len() + streams > 0);
        }
    }
}

impl Services {
    /// Waits for the active node's answer to a subscription made there on behalf of clients.
    ///
    /// # Errors
    /// The client's answer, if the node refuses; the subscription is removed.
    async fn grant(&self, of: &NodeSubscription, asked: UnconfirmedSubscription) -> Result<(), Outcome> {
        let mut answered = self.rpc.answered(of).await;
        if answered.is_ok() {
            self.registry.accept(asked);
            // Another node may have become active since, and refused before the subscription could be closed for it.
            answered = self.rpc.answered_now(of);
        }
        if answered.is_err() {
            self.registry.refuse(asked);
        }
        answered
    }
}
