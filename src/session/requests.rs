//! Requests of a client: each message is charged, parsed, planned and answered.

use std::sync::Arc;

use super::{DeflatedMessage, LONG_MESSAGE, Services, Session};
use crate::deflate;
use crate::delivery::{Answered, ClientWriter, CloseReason, InFlight, Recipient};
use crate::jsonrpc::{
    self, ErrorObjectOwned, INVALID_REQUEST, Item, LIMIT_EXCEEDED, Message, Outcome, PARSE_ERROR, Response, error,
};
use crate::look::look;
use crate::panics;
use crate::rpc::{CallContext, Holder, Local, Planned, SubscriptionMethod};

/// Returns the method of each item, for [`crate::door::Terms::charge`]; `None` for an item that is not a request.
pub fn methods<'a>(items: &'a [Item<'_>]) -> impl Iterator<Item = Option<&'a str>> {
    items.iter().map(|item| match item {
        Item::Call(request) | Item::Notification(request) | Item::Flawed(request, _) => Some(&*request.method),
        Item::Response | Item::Invalid(_) => None,
    })
}

impl Session {
    pub(super) fn message(&mut self, message: &[u8]) {
        if let Some(activity) = self.pass.activity() {
            activity.used(self.services.clock.now());
        }
        // Long messages cost work before they are parsed; a message over the quota is not even parsed.
        let charged = self.pass.terms().charge_bytes(message.len());
        match charged {
            Ok(()) => self.charged(message),
            Err(exceeded) => self.unread("requests", exceeded.into()),
        }
    }

    /// Like [`Self::message`], but charged while inflating, since the length is not known before.
    pub(super) fn deflated(&mut self, message: &DeflatedMessage) {
        let terms = self.pass.account().terms();
        let max = terms.rights.plan.max_message_bytes;
        let inflated = message.inflate(max, || terms.charge_bytes(deflate::STEP));
        drop(terms);
        match inflated {
            Ok(message) => self.charged(&message),
            Err(Ok(exceeded)) => self.unread("requests", exceeded.into()),
            Err(Err(reason)) => self.violated(reason),
        }
    }

    fn unread(&mut self, limit: &'static str, why: ErrorObjectOwned) {
        self.services.count_refusal(limit);
        self.answer(Response::new("null", why.into()), Vec::new());
        self.note_refusal();
    }

    /// Records a message refused because of a limit. The client learns when to retry; a client that goes on anyway is
    /// closed.
    pub(super) fn note_refusal(&mut self) {
        let refusal_limit = self.pass.terms().rights.plan.refusal_limit;
        if self.refusals.note(self.services.clock.now(), refusal_limit) {
            self.writer.close(CloseReason::Abuse);
        }
    }

    fn charged(&mut self, message: &[u8]) {
        self.writer.tap_received(message);
        let terms = self.pass.account().terms();
        let parsed = Message::parse(message, terms.rights.plan.max_batch);
        // Requests are charged one by one. A message without any costs as much as one, since it is read and answered.
        if !parsed.as_ref().is_ok_and(Message::holds_requests)
            && let Err(exceeded) = terms.charge_one()
        {
            drop(terms);
            return self.unread("requests", exceeded.into());
        }
        drop(terms);
        if message.len() >= LONG_MESSAGE {
            match self.services.inbound.charge(self.writer.owner(), message.len()) {
                Ok(room) => self.held = Some(room),
                Err(full) => return self.unread("inbound_bytes", full.into()),
            }
        }
        match parsed {
            // geth closes the connection here; that has no benefit and breaks ethers clients for good (PROTOCOL J3,
            // J4).
            Err(why) => self.answer(
                Response::new("null", error(PARSE_ERROR, why.to_string()).into()),
                Vec::new(),
            ),
            Ok(Message::Single(item)) => self.single(&item),
            Ok(Message::Batch(items)) => self.batch(&items),
            // As in geth: an array of one, with the id of the first call (PROTOCOL B2).
            Ok(Message::TooMany(first)) => {
                let response = Response::new(
                    jsonrpc::id_text(first),
                    error(INVALID_REQUEST, "batch too large").into(),
                );
                self.services.answer_batch(&self.writer, &[response], Vec::new());
            }
        }
        self.held = None;
    }

    fn single(&mut self, item: &Item<'_>) {
        let mut releases = Vec::new();
        let (max_in_flight, charged) = self.charge(std::slice::from_ref(item));
        let place = waits(item).then(|| self.writer.begin_call(max_in_flight)).flatten();
        let refusal = match charged {
            Err(why) => Some(("requests", why.into())),
            Ok(()) if is_forwarded(item) && place.is_none() => Some(("in_flight", too_many_calls())),
            Ok(()) => None,
        };
        let refused = refusal.is_some();
        let planned = match &refusal {
            Some((limit, why)) => self.refuse(item, limit, why),
            None => self.plan(item, place.is_some(), &mut releases),
        };
        match (planned, place) {
            (Planned::Silent, _) => {}
            (Planned::Done(id, outcome), _) => {
                let response = self.services.rpc.local(&id, outcome);
                self.answer(response, releases);
            }
            (planned, place) => {
                let (services, caller) = (self.services.clone(), self.caller());
                let mut completing = Box::pin(async move { services.rpc.complete(planned, &caller).await });
                // An answer that is known already needs no task.
                if let Some(known) = look(completing.as_mut()) {
                    if let Some(response) = known {
                        self.answer(response, releases);
                    }
                } else {
                    let (services, held) = (self.services.clone(), self.held.take());
                    tokio::spawn(async move {
                        let _held = held;
                        let completed = panics::caught("call", &services.metrics, completing).await;
                        let Some(writer) = place.as_ref().and_then(InFlight::writer) else {
                            return;
                        };
                        let Some(completed) = completed else {
                            return writer.close(CloseReason::Internal);
                        };
                        if let Some(response) = completed {
                            // Answers that the node sent together leave together, after all ready tasks have run: a
                            // write for each was a fifth of the cost of a call (benches/forward).
                            let cork = writer.awaits_several().then(|| writer.cork()).flatten();
                            services.answer(&writer, &response, releases);
                            if cork.is_some() {
                                tokio::task::yield_now().await;
                            }
                        }
                    });
                }
            }
        }
        if refused {
            self.note_refusal();
        }
    }

    /// Returns the identity of this client for calls.
    pub(super) fn caller(&self) -> CallContext {
        CallContext {
            owner: self.writer.owner(),
            holder: Holder(self.pass.account().number()),
            conduct: self.pass.terms().conduct().clone(),
        }
    }

    /// Charges all items or none; returns also how many calls may be in flight.
    pub(super) fn charge(&self, items: &[Item<'_>]) -> (u32, Result<(), ErrorObjectOwned>) {
        let terms = self.pass.terms();
        let charged = terms.charge(methods(items)).map_err(ErrorObjectOwned::from);
        (terms.rights.plan.max_in_flight, charged)
    }

    /// Plans an item. `has_slot` is `true` if there is a place for an answer that is not known at once.
    pub(super) fn plan(&mut self, item: &Item<'_>, has_slot: bool, releases: &mut Vec<Arc<Recipient>>) -> Planned {
        let notification = matches!(item, Item::Notification(_));
        Planned::new(item, &mut |request| {
            match SubscriptionMethod::of(&request.method) {
                // Unsubscribing is always allowed.
                Some(SubscriptionMethod::Unsubscribe) => Some(self.unsubscribe(request).into()),
                Some(SubscriptionMethod::Unpaired) => Some(self.services.rpc.refused_method(&request.method).into()),
                // Without an id there is no response to carry the subscription's id: ignored, as in reth (PROTOCOL J7).
                Some(_) if notification => Some(Outcome::TRUE.into()),
                Some(method) => Some(
                    self.subscribe(method, request, has_slot, releases)
                        .unwrap_or_else(Local::from),
                ),
                None => self
                    .services
                    .refused_call(&self.pass.terms().rights.methods, &request.method),
            }
        })
    }

    pub(super) fn refuse(&self, item: &Item<'_>, limit: &'static str, why: &Outcome) -> Planned {
        self.services.count_refusal(limit);
        Planned::refused(item, why)
    }

    pub(super) fn answer(&self, response: Response, releases: Vec<Arc<Recipient>>) {
        self.services.answer(&self.writer, &response, releases);
    }
}

impl Services {
    /// Sends a response, or a short error if the response is too long for the client's queue.
    fn answer(&self, writer: &Arc<ClientWriter>, response: &Response, releases: Vec<Arc<Recipient>>) {
        let resumes = releases.iter().any(|recipient| recipient.is_resumed());
        let pieces = |response: &Response| writer.text(&response.parts());
        if let Answered::NoRoom(releases) = writer.answer(pieces(response), releases) {
            // An error is short: queued, or the connection ends.
            drop(writer.answer(pieces(&response.clone().shortened()), releases));
        }
        if resumes {
            self.replays.begin(writer);
        }
    }
}

/// Checks if the answer to an item may have to wait: for the node, for its own subscription to pending transactions, or
/// for a block to resume from.
pub(super) fn waits(item: &Item<'_>) -> bool {
    match item {
        Item::Call(request) => !matches!(
            SubscriptionMethod::of(&request.method),
            Some(SubscriptionMethod::Unsubscribe | SubscriptionMethod::Unpaired)
        ),
        Item::Notification(_) => is_forwarded(item),
        Item::Response | Item::Invalid(_) | Item::Flawed(..) => false,
    }
}

fn is_forwarded(item: &Item<'_>) -> bool {
    match item {
        Item::Call(request) | Item::Notification(request) => SubscriptionMethod::of(&request.method).is_none(),
        Item::Response | Item::Invalid(_) | Item::Flawed(..) => false,
    }
}

pub(super) const TOO_MANY_CALLS: &str = "limit exceeded: too many calls in flight";

pub(super) fn too_many_calls() -> Outcome {
    error(LIMIT_EXCEEDED, TOO_MANY_CALLS).into()
}
