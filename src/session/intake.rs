//! Intake of messages, the same for WebSocket and HTTP: bytes become items that are charged and planned.
//!
//! ```text
//! message  > Message::parse     one without requests is charged as one request
//!          > Terms::charge      weights of all items, or all are refused
//!          > ServedBy           server of each method: the transport (subscriptions), an extension, a node, or nobody
//!          = PlannedMessage     completed by crate::rpc, answered by the transport
//! ```
//!
//! The length of a message is charged by the transport as the bytes arrive, before they are read. [`Transport`] is all
//! that an intake needs of it.

use std::slice;

use crate::door::{Exceeded, Pass, Terms, Verdict};
use crate::extension::{Extension, Role};
use crate::fleet::FLEET_REPORT;
use crate::jsonrpc::{
    self, ErrorObjectOwned, INVALID_REQUEST, Item, LIMIT_EXCEEDED, Message, Outcome, PARSE_ERROR, Request, Response,
    error,
};
use crate::rpc::{CallContext, Holder, Local, Planned, SubscriptionMethod, openrpc, refused_method};
use crate::shares::Full;
use crate::telemetry::{MessageRecord, Metrics};

/// Part of the intake in which WebSocket and HTTP differ.
pub(crate) trait Transport {
    /// Charges a parsed message of this many bytes to the inbound budget, until its items are answered.
    ///
    /// # Errors
    /// [`Full`] if the budget has no room for the message, which is then refused.
    fn charge_inbound(&mut self, bytes: usize) -> Result<(), Full>;

    /// Takes a place for a message whose answer may have to wait, of the `max` calls that the client's connection may
    /// have in flight; `false` if no place is free.
    fn begin_call(&mut self, max: u32) -> bool;

    /// Answers a call of a method that begins a subscription.
    ///
    /// # Errors
    /// The answer, if the subscription is refused.
    fn begin_subscription(
        &mut self,
        method: SubscriptionMethod<'_>,
        request: &Request<'_>,
    ) -> Result<Local, ErrorObjectOwned>;

    /// Answers a call or notification of a method that ends a subscription.
    fn end_subscription(&mut self, request: &Request<'_>) -> Outcome;

    /// Answers a call of a method of headwater's own.
    ///
    /// # Errors
    /// The answer, if the settings deny the method.
    fn call_own(&mut self, request: &Request<'_>) -> Result<Local, ErrorObjectOwned>;

    /// Answers a call of a method of the embedding program.
    ///
    /// # Errors
    /// The answer, if the call begins a subscription that is refused.
    fn call_extension(&mut self, role: Role, request: &Request<'_>) -> Result<Local, ErrorObjectOwned>;
}

/// Server of a method. This is the one decision, for both transports, where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServedBy<'a> {
    /// The transport, by [`Transport::begin_subscription`].
    BeginSubscription(SubscriptionMethod<'a>),
    /// The transport, by [`Transport::end_subscription`].
    EndSubscription,
    /// The embedding program, by [`Transport::call_extension`].
    Extension(Role),
    /// headwater itself, by [`Transport::call_own`].
    Headwater,
    /// A node, or [`crate::rpc`] for it, if the client may call the method.
    Node,
    /// Nobody: the method begins a subscription that could not be ended, or ends one that cannot exist.
    Nobody,
}

impl<'a> ServedBy<'a> {
    fn of(method: &'a str, extension: &Extension) -> Self {
        if let Some(role) = extension.role(method) {
            return Self::Extension(role);
        }
        match SubscriptionMethod::of(method) {
            Some(SubscriptionMethod::Unsubscribe) => Self::EndSubscription,
            Some(SubscriptionMethod::Unpaired) => Self::Nobody,
            Some(begins @ (SubscriptionMethod::Subscribe(_) | SubscriptionMethod::SubscribeKind(_))) => {
                Self::BeginSubscription(begins)
            }
            None if openrpc::is_own(method) || method == FLEET_REPORT => Self::Headwater,
            None => Self::Node,
        }
    }
}

/// Need of an item for a place among the calls in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PlaceNeed {
    /// No place: the answer is known at once.
    Never,
    /// Place for a subscription, whose answer may have to wait for the node, or for a block to resume from. The
    /// transport refuses it if it has to wait and has no place.
    Perhaps,
    /// A place, without which the item is refused.
    Always,
}

impl PlaceNeed {
    fn of(item: &Item<'_>, extension: &Extension) -> Self {
        match item {
            Item::Call(request) | Item::Notification(request) => match ServedBy::of(&request.method, extension) {
                ServedBy::Node => Self::Always,
                ServedBy::Extension(Role::Call | Role::Subscribe) if request.id.is_some() => Self::Always,
                ServedBy::Extension(_) => Self::Never,
                ServedBy::BeginSubscription(_) if request.id.is_some() => Self::Perhaps,
                ServedBy::BeginSubscription(_) | ServedBy::EndSubscription | ServedBy::Headwater | ServedBy::Nobody => {
                    Self::Never
                }
            },
            Item::Response | Item::Invalid(_) | Item::Flawed(..) => Self::Never,
        }
    }

    /// Returns the need of a batch: a place for the whole, if any of its items may need one, or answers at length: such
    /// items take turns.
    fn of_batch(items: &[Item<'_>], extension: &Extension) -> Self {
        let takes_turns = |item: &Item<'_>| {
            Self::of(item, extension) != Self::Never
                || matches!(item, Item::Call(request) if ServedBy::of(&request.method, extension) == ServedBy::Headwater)
        };
        if items.iter().any(takes_turns) {
            Self::Always
        } else {
            Self::Never
        }
    }
}

/// Reason why requests of a client are refused before any of them is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestRefusal {
    /// Quota of requests used up.
    Quota(Exceeded),
    /// No room in the inbound budget.
    InboundBytes(Full),
    /// No place among the calls in flight of the connection.
    InFlight,
}

impl RequestRefusal {
    /// Counts a refusal of this many items, and returns the error that answers each.
    pub(crate) fn counted(self, items: usize, metrics: &Metrics) -> ErrorObjectOwned {
        match self {
            Self::Quota(exceeded) => {
                metrics.count_refusals("requests", items);
                exceeded.into()
            }
            Self::InboundBytes(full) => {
                metrics.count_refusals("inbound_bytes", items);
                full.into()
            }
            Self::InFlight => {
                metrics.count_refusals("in_flight", items);
                error(LIMIT_EXCEEDED, "limit exceeded: too many calls in flight")
            }
        }
    }

    /// Counts the refusal of a message that was not read, and returns the response to it.
    pub(crate) fn unread(self, metrics: &Metrics) -> Response {
        Response::new("null", self.counted(1, metrics).into())
    }
}

/// Message of which everything is decided that needs no wait.
pub(crate) struct PlannedMessage {
    /// Reply, as far as it is decided.
    pub(crate) reply: PlannedReply,
    /// Reason, if all items were refused.
    pub(crate) refusal: Option<RequestRefusal>,
}

/// Form of the reply to a message.
pub(crate) enum PlannedReply {
    /// Response to one item, or nothing.
    Single(Planned),
    /// Array of the responses to a batch, or nothing if no item gets one.
    Batch(Vec<Planned>),
    /// One response to a message without requests, or to one that was not read.
    Whole(Response),
    /// Array of one response, to a batch of too many items.
    WholeBatch(Response),
}

impl PlannedMessage {
    /// Refuses a message that was not read, and counts that.
    pub(super) fn unread(refusal: RequestRefusal, metrics: &Metrics) -> Self {
        Self {
            reply: PlannedReply::Whole(refusal.unread(metrics)),
            refusal: Some(refusal),
        }
    }
}

impl PlannedReply {
    fn whole(why: ErrorObjectOwned) -> Self {
        Self::Whole(Response::new("null", why.into()))
    }
}

impl From<PlannedReply> for PlannedMessage {
    fn from(reply: PlannedReply) -> Self {
        Self { reply, refusal: None }
    }
}

/// Intake of the messages of one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intake<'a> {
    /// Terms of the client in force.
    pub(super) terms: &'a Terms,
    /// `true` if commands to development chains may be served.
    pub(super) may_develop: bool,
    /// Methods of the embedding program.
    pub(super) extension: &'a Extension,
    /// Metrics, for the refusals.
    pub(super) metrics: &'a Metrics,
    /// Record of the message, if its calls may be logged or traced.
    pub(super) record: Option<&'a MessageRecord>,
}

impl<'a> Intake<'a> {
    /// Records the calls of the message, too.
    pub(crate) fn recording(self, record: Option<&'a MessageRecord>) -> Self {
        Self { record, ..self }
    }

    /// Takes in a message whose length is charged already.
    pub(crate) fn take(&self, message: &[u8], transport: &mut impl Transport) -> PlannedMessage {
        let parsed = Message::parse(message, self.terms.rights.plan.max_batch);
        // Requests are charged one by one. A message without any costs as much as one, since it is read and answered.
        if !parsed.as_ref().is_ok_and(Message::holds_requests)
            && let Err(exceeded) = self.terms.charge_one()
        {
            return PlannedMessage::unread(RequestRefusal::Quota(exceeded), self.metrics);
        }
        if let Err(full) = transport.charge_inbound(message.len()) {
            return PlannedMessage::unread(RequestRefusal::InboundBytes(full), self.metrics);
        }
        match parsed {
            // geth closes the connection here; that has no benefit and breaks ethers clients for good (PROTOCOL J3,
            // J4).
            Err(why) => PlannedReply::whole(error(PARSE_ERROR, why.to_string())).into(),
            Ok(Message::Single(item)) => self.single(&item, transport),
            Ok(Message::Batch(items)) if items.is_empty() => {
                PlannedReply::whole(error(INVALID_REQUEST, "empty batch")).into()
            }
            Ok(Message::Batch(items)) => self.batch(&items, transport),
            // As in geth: an array of one, with the id of the first call (PROTOCOL B2).
            Ok(Message::TooMany(first)) => {
                let why = error(INVALID_REQUEST, "batch too large").into();
                PlannedReply::WholeBatch(Response::new(jsonrpc::id_text(first), why)).into()
            }
        }
    }

    fn single(&self, item: &Item<'_>, transport: &mut impl Transport) -> PlannedMessage {
        match self.admit(slice::from_ref(item), PlaceNeed::of(item, self.extension), transport) {
            Ok(()) => PlannedReply::Single(self.recorded(item, self.plan(item, transport))).into(),
            Err(refusal) => {
                let why = refusal.counted(1, self.metrics).into();
                PlannedMessage {
                    reply: PlannedReply::Single(self.recorded(item, Planned::refused(item, &why))),
                    refusal: Some(refusal),
                }
            }
        }
    }

    fn batch(&self, items: &[Item<'_>], transport: &mut impl Transport) -> PlannedMessage {
        // The place is taken before any item is planned: a batch that gets none must not have ended a subscription
        // already.
        match self.admit(items, PlaceNeed::of_batch(items, self.extension), transport) {
            Ok(()) => {
                let planned = items.iter().map(|item| self.recorded(item, self.plan(item, transport)));
                PlannedReply::Batch(planned.collect()).into()
            }
            Err(refusal) => {
                let why = refusal.counted(items.len(), self.metrics).into();
                let refused = items
                    .iter()
                    .map(|item| self.recorded(item, Planned::refused(item, &why)));
                PlannedMessage {
                    reply: PlannedReply::Batch(refused.collect()),
                    refusal: Some(refusal),
                }
            }
        }
    }

    /// Charges all items or none, and takes a place for them.
    fn admit(&self, items: &[Item<'_>], need: PlaceNeed, transport: &mut impl Transport) -> Result<(), RequestRefusal> {
        self.terms.charge(methods(items)).map_err(RequestRefusal::Quota)?;
        let has_place = need != PlaceNeed::Never && transport.begin_call(self.terms.rights.plan.max_in_flight);
        if need == PlaceNeed::Always && !has_place {
            return Err(RequestRefusal::InFlight);
        }
        Ok(())
    }

    fn plan(&self, item: &Item<'_>, transport: &mut impl Transport) -> Planned {
        Planned::new(
            item,
            &mut |request| match ServedBy::of(&request.method, self.extension) {
                // Always allowed.
                ServedBy::EndSubscription => Some(transport.end_subscription(request).into()),
                // Without an id there is no response to carry the subscription's id: ignored, as in reth (PROTOCOL J7).
                ServedBy::BeginSubscription(_) if request.id.is_none() => Some(Outcome::TRUE.into()),
                ServedBy::BeginSubscription(method) => {
                    let begun = transport.begin_subscription(method, request);
                    Some(begun.unwrap_or_else(Local::from))
                }
                // The end of a subscription is always allowed: the method may be denied since its begin.
                ServedBy::Extension(Role::Call | Role::Subscribe)
                    if !self.terms.rights.methods.allow_added(&request.method) =>
                {
                    Some(self.refused(&request.method))
                }
                // Not carried out without an id, as by jsonrpsee's own server.
                ServedBy::Extension(_) if request.id.is_none() => Some(Outcome::TRUE.into()),
                ServedBy::Extension(role) => {
                    let called = transport.call_extension(role, request);
                    Some(called.unwrap_or_else(Local::from))
                }
                ServedBy::Headwater => Some(transport.call_own(request).unwrap_or_else(Local::from)),
                ServedBy::Node => self.local(&request.method),
                ServedBy::Nobody => Some(self.refused(&request.method)),
            },
        )
    }

    /// Adds the record of an item, if it gets one.
    fn recorded(&self, item: &Item<'_>, planned: Planned) -> Planned {
        let Some(message) = self.record else { return planned };
        let (method, params) = match item {
            Item::Call(request) | Item::Notification(request) | Item::Flawed(request, _) => {
                (&*request.method, request.params.map_or(0, |params| params.get().len()))
            }
            Item::Invalid(_) => ("", 0),
            Item::Response => return planned,
        };
        match message.call(method, params) {
            Some(record) => Planned::Recorded(record, Box::new(planned)),
            None => planned,
        }
    }

    /// Decides if the client may call a method of the nodes: `None` if the call goes to any of them.
    fn local(&self, method: &str) -> Option<Local> {
        match self.terms.rights.methods.verdict(method) {
            Verdict::Serve => None,
            Verdict::InDevelopment if self.may_develop => Some(Local::InDevelopment),
            Verdict::InDevelopment | Verdict::Refuse => Some(self.refused(method)),
        }
    }

    fn refused(&self, method: &str) -> Local {
        refused_method(method, self.metrics).into()
    }
}

/// Returns the method of each item, for [`Terms::charge`]; `None` for an item that is not a request.
fn methods<'a>(items: &'a [Item<'_>]) -> impl Iterator<Item = Option<&'a str>> {
    items.iter().map(|item| match item {
        Item::Call(request) | Item::Notification(request) | Item::Flawed(request, _) => Some(&*request.method),
        Item::Response | Item::Invalid(_) => None,
    })
}

/// Returns the identity of a client for its calls.
pub(crate) fn caller(pass: &Pass) -> CallContext {
    CallContext {
        owner: pass.account().owner(),
        holder: Holder(pass.account().number()),
        conduct: pass.terms().conduct().clone(),
        record: None,
    }
}

#[cfg(test)]
mod tests;
