//! Requests of a client over WebSocket: each message is taken in ([`super::intake`]) and answered.

use std::sync::Arc;
use std::time::SystemTime;

use tracing::{Instrument as _, Span};

use super::intake::{PlannedMessage, PlannedReply, RequestRefusal, caller};
use super::web_socket::{Acquired, WebSocket};
use super::{DeflatedMessage, Services, Session};
use crate::deflate;
use crate::delivery::{Answered, ClientWriter, CloseReason, Disclosure, InFlight, Recipient};
use crate::jsonrpc::Response;
use crate::panics;
use crate::rpc::{Begun, Planned};
use crate::telemetry::{CallRecord, RequestRecord};

impl Session {
    pub(super) fn message(&mut self, message: &[u8]) {
        // Long messages cost work before they are parsed; a message over the quota is not even parsed.
        let charged = self.pass.terms().charge_bytes(message.len());
        match charged {
            Ok(()) => self.charged(message),
            Err(exceeded) => self.unread(RequestRefusal::Quota(exceeded)),
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
            Err(Ok(exceeded)) => self.unread(RequestRefusal::Quota(exceeded)),
            Err(Err(reason)) => self.violated(reason),
        }
    }

    fn unread(&mut self, refusal: RequestRefusal) {
        let unread = PlannedMessage::unread(refusal, &self.services.metrics);
        self.reply(unread, Acquired::default());
    }

    fn charged(&mut self, message: &[u8]) {
        let disclosure = self.writer.tap_received(message);
        if let Some(activity) = self.pass.activity() {
            activity.used(self.services.clock.now());
        }
        let mut transport = WebSocket {
            services: &self.services,
            pass: &self.pass,
            writer: &self.writer,
            subscriptions: &mut self.subscriptions,
            streams: &mut self.streams,
            has_session: self.has_session,
            acquired: Acquired {
                disclosure,
                ..Acquired::default()
            },
        };
        let (terms, record) = (self.pass.terms(), self.record.as_ref().map(RequestRecord::message));
        let intake = self.services.intake(&terms).recording(record.as_ref());
        let planned = intake.take(message, &mut transport);
        drop(terms);
        let acquired = transport.acquired;
        self.reply(planned, acquired);
    }

    fn reply(&mut self, PlannedMessage { reply, refusal }: PlannedMessage, acquired: Acquired) {
        match reply {
            PlannedReply::Single(planned) => self.single(planned, acquired),
            PlannedReply::Batch(planned) => self.batch(planned, acquired),
            PlannedReply::Whole(response) => self.answer(&response, acquired.releases, acquired.disclosure),
            PlannedReply::WholeBatch(response) => {
                self.services
                    .answer_batch(&self.writer, &[response], acquired.releases, acquired.disclosure);
            }
        }
        if refusal.is_some() {
            self.note_refusal();
        }
    }

    /// Records a message refused because of a limit. The client learns when to retry; a client that goes on anyway is
    /// closed.
    fn note_refusal(&mut self) {
        let refusal_limit = self.pass.terms().rights.plan.refusal_limit;
        if self.refusals.note(self.services.clock.now(), refusal_limit) {
            self.writer.close(CloseReason::Abuse);
        }
    }

    fn single(&self, planned: Planned, acquired: Acquired) {
        let Acquired {
            place,
            room,
            releases,
            disclosure,
        } = acquired;
        let caller = caller(&self.pass);
        let record = planned.record().cloned();
        let waiting = match self.services.rpc.begin(planned, &caller) {
            Begun::Answered(None) => return,
            Begun::Answered(Some(response)) => {
                let begin = record.as_ref().map(|record| record.began_part());
                self.answer(&response, releases, disclosure);
                return written(record.as_deref(), begin);
            }
            Begun::Waits(waiting) => waiting,
        };
        let services = self.services.clone();
        let log_span = record.as_ref().map_or_else(Span::none, |record| record.log_span());
        let answering = async move {
            let _room = room;
            let completed = panics::caught("call", &services.metrics, services.rpc.finish(waiting, &caller)).await;
            let Some(writer) = place.as_ref().and_then(InFlight::writer) else {
                return;
            };
            let Some(completed) = completed else {
                return writer.close(CloseReason::Internal);
            };
            if let Some(response) = completed {
                // Answers that the node sent together leave together, after all ready tasks have run: a write for each
                // was a fifth of the cost of a call (benches/forward).
                let cork = writer.awaits_several().then(|| writer.cork()).flatten();
                let begin = record.as_ref().map(|record| record.began_part());
                services.answer(&writer, &response, releases, disclosure);
                if cork.is_some() {
                    tokio::task::yield_now().await;
                }
                written(record.as_deref(), begin);
            }
        };
        tokio::spawn(answering.instrument(log_span));
    }

    fn answer(&self, response: &Response, releases: Vec<Arc<Recipient>>, disclosure: Disclosure) {
        self.services.answer(&self.writer, response, releases, disclosure);
    }
}

/// Records the write of a response.
fn written(record: Option<&CallRecord>, begin: Option<SystemTime>) {
    if let (Some(record), Some(begin)) = (record, begin) {
        record.part("write", begin);
    }
}

impl Services {
    /// Sends a response, or a short error if the response is too long for the client's queue.
    fn answer(
        &self,
        writer: &Arc<ClientWriter>,
        response: &Response,
        releases: Vec<Arc<Recipient>>,
        disclosure: Disclosure,
    ) {
        let resumes = releases.iter().any(|recipient| recipient.is_resumed());
        let pieces = |response: &Response| writer.text(response.parts(), disclosure);
        if let Answered::NoRoom(releases) = writer.answer(pieces(response), releases) {
            // An error is short: queued, or the connection ends.
            drop(writer.answer(pieces(&response.clone().shortened()), releases));
        }
        if resumes {
            self.replays.begin(writer);
        }
    }
}
