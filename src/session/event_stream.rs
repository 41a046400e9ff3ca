//! Session of a client of server-sent events: one subscription, whose events are the body of an HTTP response.
//!
//! The session of a WebSocket client, with its input closed: the same queue, limits and ends. The subscription is made as
//! `eth_subscribe` makes it, and its answer is the head of the response.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use tracing::debug;

use super::intake::RequestRefusal;
use super::web_socket::{Acquired, WebSocket};
use super::{Services, Session};
use crate::delivery::{ClientWriter, CloseReason, Compression, Ended, Framing, InFlight, Socket, event_stream};
use crate::door::Pass;
use crate::jsonrpc::{ErrorObjectOwned, INTERNAL_ERROR, Outcome, Request, error};
use crate::panics;
use crate::rpc::{Local, SubscriptionMethod};
use crate::shares::RETRY_AFTER;
use crate::subscription::Begins;

/// Returns the bytes of the response before the first event, for a stream that begins or is refused.
pub type Respond = Box<dyn FnOnce(Result<(), StreamRefusal>) -> Bytes + Send>;

/// Reason why there is no stream.
#[derive(Debug)]
pub struct StreamRefusal {
    /// Error, as `eth_subscribe` answers it.
    pub error: ErrorObjectOwned,
    /// Wait before a retry can succeed, if it is known.
    pub retry_after: Option<Duration>,
}

impl From<ErrorObjectOwned> for StreamRefusal {
    fn from(error: ErrorObjectOwned) -> Self {
        let retry_after = None;
        Self { error, retry_after }
    }
}

/// Client's connection, and the services.
type Client<'a> = (&'a Arc<ClientWriter>, &'a Arc<Services>);

/// Serves a stream of events until the client disconnects. `params` are those of `eth_subscribe`; `id` is the position that
/// the client named, if it did.
pub fn serve_events(
    socket: Socket,
    pass: Pass,
    params: Box<RawValue>,
    id: Option<String>,
    respond: Respond,
    services: Arc<Services>,
) -> impl Future<Output = ()> + Send {
    if let Err(why) = socket.set_user_timeout(services.settings.silence_timeout) {
        debug!("TCP_USER_TIMEOUT: {why}");
    }
    let mut session = Session::new(
        socket,
        Bytes::new(),
        pass,
        (Framing::EventStream, Compression::None),
        services.clone(),
    );
    session.input_closed = true;
    async move {
        let lived = panics::caught("session", &services.metrics, async {
            session.begin(&params, id, respond);
            drop(params);
            session.live().await
        })
        .await;
        session.leave(lived.unwrap_or(Ended::Abort(CloseReason::Internal)));
    }
}

/// Method as which a stream is charged.
const METHOD: &str = "eth_subscribe";

/// Stream whose subscription is made, or about to be.
struct Opening {
    respond: Respond,
    id: Option<String>,
    acquired: Acquired,
}

impl Session {
    /// Makes the subscription, and responds as soon as its outcome is known.
    fn begin(&mut self, params: &RawValue, id: Option<String>, respond: Respond) {
        let mut opening = Opening {
            respond,
            id,
            acquired: Acquired::default(),
        };
        if let Err(refusal) = self.charge_stream(&mut opening) {
            let retry_after = match refusal {
                RequestRefusal::Quota(exceeded) => exceeded.retry_after,
                RequestRefusal::InboundBytes(_) | RequestRefusal::InFlight => Some(RETRY_AFTER),
            };
            let error = refusal.counted(1, &self.services.metrics);
            return opening.refuse(&self.writer, StreamRefusal { error, retry_after });
        }
        let mut transport = WebSocket {
            services: &self.services,
            pass: &self.pass,
            writer: &self.writer,
            subscriptions: &mut self.subscriptions,
            streams: &mut self.streams,
            has_session: false,
            acquired: std::mem::take(&mut opening.acquired),
        };
        let request = Request {
            id: None,
            method: METHOD.into(),
            params: Some(params),
        };
        let local = transport.subscribe(SubscriptionMethod::Subscribe("eth"), &request);
        opening.acquired = transport.acquired;
        let begins = self
            .subscriptions
            .first()
            .map(|(subscription, _)| subscription.begins());
        let outcome = match local {
            Err(why) => why.into(),
            Ok(Local::Now(outcome)) => outcome,
            Ok(Local::InDevelopment) => error(INTERNAL_ERROR, "internal error").into(),
            Ok(Local::Later(later)) => {
                let services = self.services.clone();
                tokio::spawn(async move {
                    let outcome = panics::caught("call", &services.metrics, later).await;
                    // The place knows the writer, and does not keep the socket of a client that has left.
                    let Some(writer) = opening.acquired.place.as_ref().and_then(InFlight::writer) else {
                        return;
                    };
                    match outcome {
                        Some(outcome) => opening.finish((&writer, &services), outcome, begins),
                        None => writer.close(CloseReason::Internal),
                    }
                });
                return;
            }
        };
        opening.finish((&self.writer, &self.services), outcome, begins);
    }

    /// Charges the request, as a message of a WebSocket client is, and takes a place among the calls of the connection.
    fn charge_stream(&self, opening: &mut Opening) -> Result<(), RequestRefusal> {
        let terms = self.pass.terms();
        terms
            .charge([Some(METHOD)].into_iter())
            .map_err(RequestRefusal::Quota)?;
        let place = self.writer.begin_call(terms.rights.plan.max_in_flight);
        opening.acquired.place = Some(place.ok_or(RequestRefusal::InFlight)?);
        Ok(())
    }
}

impl Opening {
    fn finish(self, (writer, services): Client<'_>, outcome: Outcome, begins: Option<Begins>) {
        if let Outcome::Error(why) = &outcome {
            let why: ErrorObjectOwned =
                serde_json::from_slice(why).unwrap_or_else(|_| error(INTERNAL_ERROR, "internal error"));
            return self.refuse(writer, StreamRefusal::from(why));
        }
        let Opening { respond, id, acquired } = self;
        let known = begins.and_then(|begins| services.registry.start_id(&begins));
        let start = known.as_deref().or(id.as_deref());
        let resumes = acquired.releases.iter().any(|recipient| recipient.is_resumed());
        let pieces = vec![respond(Ok(())), event_stream::opening(start)];
        drop(writer.answer(pieces, acquired.releases));
        // The place keeps a drain from ending the response before its head.
        drop(acquired.place);
        if resumes {
            services.replays.begin(writer);
        }
    }

    fn refuse(self, writer: &ClientWriter, why: StreamRefusal) {
        drop(writer.answer(vec![(self.respond)(Err(why))], Vec::new()));
        drop(self.acquired.place);
        writer.close(CloseReason::Goodbye(None));
    }
}
