//! Batches: messages of several items, answered by one message.
//!
//! A batch needs one of the connection's places for calls in flight, as a single call does, and is refused without one.
//! Each further item in progress at the same time takes one more place, but only while half of the places are free;
//! other items wait. So a batch of any length is answered completely, and always leaves room for a single call.

use std::sync::Arc;

use super::requests::{too_many_calls, waits};
use super::{Services, Session};
use crate::delivery::{Answered, ClientWriter, CloseReason, Recipient};
use crate::jsonrpc::{self, INVALID_REQUEST, Item, Response, error};
use crate::panics;
use crate::rpc::Planned;

impl Session {
    pub(super) fn batch(&mut self, items: &[Item<'_>]) {
        if items.is_empty() {
            return self.answer(
                Response::new("null", error(INVALID_REQUEST, "empty batch").into()),
                Vec::new(),
            );
        }
        let mut releases = Vec::new();
        // Before any item is processed: a batch that gets no place must not have ended a subscription already.
        let waits = items.iter().any(waits);
        let (max_in_flight, charged) = self.charge(items);
        let place = if waits {
            self.writer.begin_call(max_in_flight)
        } else {
            None
        };
        let refusal = match charged {
            Err(why) => Some(("requests", why.into())),
            Ok(()) if waits && place.is_none() => Some(("in_flight", too_many_calls())),
            Ok(()) => None,
        };
        let planned: Vec<Planned> = match &refusal {
            Some((limit, why)) => items.iter().map(|item| self.refuse(item, limit, why)).collect(),
            None => items
                .iter()
                .map(|item| self.plan(item, place.is_some(), &mut releases))
                .collect(),
        };
        let Some(place) = place.filter(|_| refusal.is_none()) else {
            let done = planned.into_iter().filter_map(|one| match one {
                Planned::Done(id, outcome) => Some(self.services.rpc.local(&id, outcome)),
                _ => None,
            });
            let responses: Vec<Response> = done.collect();
            self.services.answer_batch(&self.writer, &responses, releases);
            if refusal.is_some() {
                self.note_refusal();
            }
            return;
        };
        let (services, caller, held) = (self.services.clone(), self.caller(), self.held.take());
        tokio::spawn(async move {
            let more = |_| place.writer()?.begin_call(max_in_flight / 2);
            let awaits = || place.writer().is_some();
            let _held = held;
            let completing = services.rpc.complete_batch(planned, &caller, more, awaits);
            let completed = panics::caught("call", &services.metrics, completing).await;
            match (place.writer(), completed) {
                (Some(writer), Some((responses, _room))) => services.answer_batch(&writer, &responses, releases),
                (Some(writer), None) => writer.close(CloseReason::Internal),
                (None, _) => {}
            }
        });
    }
}

impl Services {
    /// Sends the responses to a batch. If the array is too long for the queue, sends a short error for every item; if
    /// that is too long too, closes the connection.
    pub(super) fn answer_batch(
        &self,
        writer: &Arc<ClientWriter>,
        responses: &[Response],
        releases: Vec<Arc<Recipient>>,
    ) {
        let resumes = releases.iter().any(|recipient| recipient.is_resumed());
        let Some(array) = jsonrpc::batch(responses) else { return };
        if let Answered::NoRoom(releases) = writer.answer(writer.text(&array), releases) {
            let short: Vec<Response> = responses.iter().cloned().map(Response::shortened).collect();
            if let Some(array) = jsonrpc::batch(&short)
                && let Answered::NoRoom(_) = writer.answer(writer.text(&array), releases)
            {
                writer.close(CloseReason::SlowConsumer);
            }
        }
        if resumes {
            self.replays.begin(writer);
        }
    }
}
