//! Batches: messages of several items, answered by one message.
//!
//! A batch needs one of the connection's places for calls in flight, as a single call does, and the intake refuses it
//! without one. Each further item in progress at the same time takes one more place, but only while half of the places
//! are free; other items wait. So a batch of any length is answered completely, and always leaves room for a single
//! call.

use std::sync::Arc;

use tracing::{Instrument as _, Span};

use super::intake::caller;
use super::web_socket::Acquired;
use super::{Services, Session};
use crate::delivery::{Answered, ClientWriter, CloseReason, Disclosure, Recipient};
use crate::jsonrpc::{self, Response};
use crate::panics;
use crate::rpc::{Begun, Planned};

impl Session {
    pub(super) fn batch(&self, planned: Vec<Planned>, acquired: Acquired) {
        let Acquired {
            place,
            room,
            releases,
            disclosure,
        } = acquired;
        // Without a place, because no item waits or because all are refused.
        let Some(place) = place else {
            let caller = caller(&self.pass);
            let done = planned
                .into_iter()
                .filter_map(|one| match self.services.rpc.begin(one, &caller) {
                    Begun::Answered(response) => response,
                    Begun::Waits(_) => None,
                });
            let responses: Vec<Response> = done.collect();
            return self
                .services
                .answer_batch(&self.writer, &responses, releases, disclosure);
        };
        let max_in_flight = self.pass.terms().rights.plan.max_in_flight;
        let (services, caller) = (self.services.clone(), caller(&self.pass));
        let record = planned.iter().find_map(Planned::record);
        let log_span = record.map_or_else(Span::none, |record| record.log_span());
        let answering = async move {
            let more = |_| place.writer()?.begin_call(max_in_flight / 2);
            let awaits = || place.writer().is_some();
            let _room = room;
            let completing = services.rpc.complete_batch(planned, &caller, more, awaits);
            let completed = panics::caught("call", &services.metrics, completing).await;
            match (place.writer(), completed) {
                (Some(writer), Some((responses, _room))) => {
                    services.answer_batch(&writer, &responses, releases, disclosure)
                }
                (Some(writer), None) => writer.close(CloseReason::Internal),
                (None, _) => {}
            }
        };
        tokio::spawn(answering.instrument(log_span));
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
        disclosure: Disclosure,
    ) {
        let resumes = releases.iter().any(|recipient| recipient.is_resumed());
        let Some(array) = jsonrpc::batch(responses) else { return };
        if let Answered::NoRoom(releases) = writer.answer(writer.text(&array, disclosure), releases) {
            let short: Vec<Response> = responses.iter().cloned().map(Response::shortened).collect();
            if let Some(array) = jsonrpc::batch(&short)
                && let Answered::NoRoom(_) = writer.answer(writer.text(&array, disclosure), releases)
            {
                writer.close(CloseReason::SlowConsumer);
            }
        }
        if resumes {
            self.replays.begin(writer);
        }
    }
}
