//! Streams of events: a connection is taken over by the session of its stream, or carries the stream as a response's body.

use std::sync::Arc;

use http::header::ORIGIN;
use http::{HeaderValue, Request, Response};
use tokio::sync::oneshot;

use super::{HttpConnection, StreamSeat};
use crate::delivery::{Pipe, Socket};
use crate::door::{Pass, Refusal};
use crate::server::events::{self, EventsRequest};
use crate::server::exchange::Exchange;
use crate::server::handshake;
use crate::server::response_body::Body;
use crate::session::{self, Respond};

/// Stream that takes a connection over.
pub(super) struct EventStream {
    pass: Pass,
    request: EventsRequest,
    /// Origin of the page that may read the response.
    page: Option<HeaderValue>,
    exchange: Exchange,
}

impl HttpConnection {
    /// Answers a request for a stream of events.
    ///
    /// The stream takes the connection over if this is its first request over HTTP/1: then there is no layer between our
    /// frames and the kernel, as with WebSocket. The response to an earlier request may not be written yet; behind one,
    /// the stream is the body of a response.
    pub(super) async fn answer_events<B>(
        self: &Arc<Self>,
        request: Request<B>,
        pass: Pass,
        exchange: &Exchange,
    ) -> Result<Response<Body>, Refusal> {
        if handshake::has_body(request.headers()) {
            return Err(Refusal::Malformed);
        }
        let read = match EventsRequest::read(&request) {
            Ok(read) => read,
            Err(why) => {
                // Read and answered: charged like a message without a request.
                let charged = pass.terms().charge_one();
                charged.map_err(|exceeded| Refusal::Requests(exceeded.retry_after.unwrap_or_default()))?;
                return Ok(events::refused(&why.into()));
            }
        };
        let (pass, seat) = self.seat_for(pass)?;
        let policy = self.shared.services.door.policy();
        let page = request.headers().get(ORIGIN).cloned();
        let page = page.filter(|_| policy.may_ask(request.headers()));
        let stream = EventStream {
            pass,
            request: read,
            page,
            exchange: exchange.handed_on(),
        };
        if self.kept.lock().has_answered || seat.is_some() {
            return Ok(self.body(stream, seat).await);
        }
        self.kept.lock().stream = Some(Box::new(stream));
        self.taken_over.notify_one();
        // The task of the connection drops this future together with hyper.
        std::future::pending().await
    }

    /// Serves the stream that takes the connection over, on its socket.
    pub(super) fn serve_stream(&self, socket: Option<Socket>) {
        let stream = self.kept.lock().stream.take();
        let (Some(stream), Some(socket)) = (stream, socket) else {
            return;
        };
        let EventStream {
            pass,
            request,
            page,
            exchange,
        } = *stream;
        let respond: Respond = Box::new(move |outcome| events::raw(outcome, page, &exchange));
        let (open, place) = (self.open.clone(), self.kept.lock().place.take());
        let services = self.shared.services.clone();
        let serving = session::serve_events(socket, pass, request.params, request.id, respond, services);
        self.shared.tasks.spawn(async move {
            serving.await;
            drop((open, place));
        });
    }

    /// Returns a response whose body is the stream, which has this seat if it has one of its own.
    async fn body(&self, stream: EventStream, seat: Option<StreamSeat>) -> Response<Body> {
        let EventStream { pass, request, .. } = stream;
        let (own, theirs) = Pipe::pair();
        let (sender, outcome) = oneshot::channel();
        let respond: Respond = Box::new(|outcome| {
            drop(sender.send(outcome));
            bytes::Bytes::new()
        });
        let services = self.shared.services.clone();
        let serving = session::serve_events(own.into(), pass, request.params, request.id, respond, services);
        self.shared.tasks.spawn(async move {
            serving.await;
            drop(seat);
        });
        match outcome.await {
            Ok(Ok(())) => events::begun().map(|()| Body::Stream(theirs)),
            Ok(Err(why)) => events::refused(&why),
            // The session ended before it had an outcome.
            Err(_) => {
                let why = crate::jsonrpc::error(crate::jsonrpc::INTERNAL_ERROR, "closed before the stream began");
                events::refused(&why.into())
            }
        }
    }
}
