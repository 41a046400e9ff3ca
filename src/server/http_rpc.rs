//! JSON-RPC over HTTP, as geth serves it (PROTOCOL 1.15).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Body as HyperBody;
use tracing::Instrument as _;

use super::call_places::{CallPlace, CallPlaces};
use super::http_response::{plain, retry_after};
use super::listener::{HttpConnection, ServerSettings};
use super::request_body::{self, Unread};
use super::response_body::Body;
use crate::content_coding::ContentCoding;
use crate::door::Pass;
use crate::extension::{Call, Client, Connection, Role};
use crate::jsonrpc::{
    self, ErrorObjectOwned, INTERNAL_ERROR, METHOD_NOT_FOUND, Outcome, Request as RpcRequest, SERVER_ERROR, error,
};
use crate::rpc::{Begun, Local, PACK_FROM, SubscriptionMethod};
use crate::session::{
    Offered, OwnCaller, PlannedMessage, PlannedReply, RequestRefusal, Services, Transport, call_own, caller,
};
use crate::shares::{Charge, Full, RETRY_AFTER};
use crate::telemetry::{MessageRecord, RequestRecord};
use crate::{panics, pieces};

/// Media types that geth accepts as JSON (`rpc/http.go`, `acceptedContentTypes`).
const CONTENT_TYPES: [&str; 3] = ["application/json", "application/json-rpc", "application/jsonrequest"];

/// Answers a request that is neither an upgrade nor a POST.
pub(super) fn answer_others(method: &Method) -> Response<Body> {
    match *method {
        // Health checks of load balancers.
        Method::GET | Method::OPTIONS | Method::HEAD => plain(StatusCode::OK, ""),
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
    }
}

/// Answers one POST request.
pub(super) async fn answer<B: HyperBody<Data = Bytes> + Unpin>(
    request: Request<B>,
    pass: &Pass,
    connection: &HttpConnection,
    record: Option<&Arc<RequestRecord>>,
) -> Response<Body> {
    let (services, settings) = (connection.services(), connection.settings());
    let coding = accepted_coding(&request, settings);
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if !CONTENT_TYPES.contains(&media.as_str()) {
        let wrong = "invalid content type, only application/json is supported\n";
        return charged(plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, wrong), pass, connection).await;
    }
    let reading = request_body::read(request.into_body(), pass, &services.inbound);
    let without_request = match tokio::time::timeout(settings.body_timeout(), reading).await {
        Ok(Ok((body, _))) if body.iter().all(u8::is_ascii_whitespace) => plain(StatusCode::OK, ""),
        Ok(Ok((body, held))) => {
            let message = record.map(|record| record.received(body.len()));
            let reply = respond(body, held, pass, connection, message.as_ref()).await;
            return finish(reply, coding, pass, connection).await;
        }
        Ok(Err(Unread::Refused(refusal))) => {
            return finish(HttpReply::unread(refusal, services), None, pass, connection).await;
        }
        Ok(Err(Unread::TooLong)) => plain(StatusCode::PAYLOAD_TOO_LARGE, "content length too large\n"),
        Ok(Err(Unread::Broken)) => plain(StatusCode::BAD_REQUEST, "the body could not be read\n"),
        Err(_) => plain(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
    };
    charged(without_request, pass, connection).await
}

/// Returns the coding in which the client would like a long answer.
fn accepted_coding<B>(request: &Request<B>, settings: &ServerSettings) -> Option<ContentCoding> {
    if !settings.http_compression {
        return None;
    }
    let values = request.headers().get_all(ACCEPT_ENCODING).into_iter();
    ContentCoding::accepted(values.filter_map(|value| value.to_str().ok()))
}

/// Charges a body without a request, since it was read and is answered; returns a refusal instead of `response` if the
/// quota is used up.
async fn charged(response: Response<Body>, pass: &Pass, connection: &HttpConnection) -> Response<Body> {
    let charged = pass.terms().charge_one();
    match charged {
        Ok(()) => response,
        Err(exceeded) => {
            let unread = HttpReply::unread(RequestRefusal::Quota(exceeded), connection.services());
            finish(unread, None, pass, connection).await
        }
    }
}

/// Builds the HTTP response, with a status and `Retry-After` if the message was refused.
async fn finish(
    HttpReply {
        answer,
        room,
        place,
        refused,
    }: HttpReply,
    coding: Option<ContentCoding>,
    pass: &Pass,
    connection: &HttpConnection,
) -> Response<Body> {
    let services = connection.services();
    let parts = answer.parts();
    let needed = match &answer {
        HttpAnswer::One(_) => services.rpc.room_for(pass.account().owner(), pieces::length(&parts)),
        // A batch was charged while its answer grew.
        HttpAnswer::Nothing | HttpAnswer::Batch(_) => Ok(room),
    };
    let (mut response, refused) = match (needed, &answer) {
        (Ok(room), _) => (packed_or_json(coding, &parts, room, pass, services).await, refused),
        (Err(full), HttpAnswer::One(one)) => {
            let refused = Some(RetryHint::busy(RETRY_AFTER));
            (json(one.instead(full.into()).parts(), None), refused)
        }
        (Err(_), _) => (json(&parts, None), refused),
    };
    response.body_mut().hold(place);
    if connection.settings().http_compression {
        response
            .headers_mut()
            .append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    if let Some(RetryHint { status, after }) = refused {
        *response.status_mut() = status;
        if let Some(after) = after {
            retry_after(response.headers_mut(), after);
        }
        if connection.refused(pass) {
            services.count_refusal("abuse");
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}

/// Result of processing a body.
struct HttpReply {
    answer: HttpAnswer,
    /// Charge for the answer, if taken already.
    room: Option<Charge>,
    /// Place of the message among the calls of its connection, over HTTP/2.
    place: Option<CallPlace>,
    /// Status and header, if the message was refused as a whole.
    refused: Option<RetryHint>,
}

/// Status and `Retry-After` of a message of which no part was answered.
#[derive(Clone, Copy)]
struct RetryHint {
    status: StatusCode,
    /// Wait before a retry; `None` if no retry can succeed.
    after: Option<Duration>,
}

impl RetryHint {
    fn busy(after: Duration) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            after: Some(after),
        }
    }
}

impl From<RequestRefusal> for RetryHint {
    fn from(refusal: RequestRefusal) -> Self {
        match refusal {
            RequestRefusal::Quota(exceeded) => Self {
                status: StatusCode::TOO_MANY_REQUESTS,
                after: exceeded.retry_after,
            },
            RequestRefusal::InboundBytes(_) | RequestRefusal::InFlight => Self::busy(RETRY_AFTER),
        }
    }
}

enum HttpAnswer {
    /// No answer: the message holds notifications only.
    Nothing,
    One(jsonrpc::Response),
    Batch(Vec<jsonrpc::Response>),
}

impl HttpAnswer {
    fn parts(&self) -> Vec<Bytes> {
        match self {
            Self::Nothing => Vec::new(),
            Self::One(response) => response.parts().to_vec(),
            Self::Batch(responses) => jsonrpc::batch(responses).unwrap_or_default(),
        }
    }
}

impl HttpReply {
    /// Answers with an internal error, after a panic.
    fn broken() -> Self {
        let why = error(INTERNAL_ERROR, "internal error");
        HttpAnswer::One(jsonrpc::Response::new("null", why.into())).into()
    }

    /// Answers a message that was not read.
    fn unread(refusal: RequestRefusal, services: &Services) -> Self {
        Self {
            refused: Some(refusal.into()),
            ..HttpAnswer::One(refusal.unread(&services.metrics)).into()
        }
    }
}

impl From<HttpAnswer> for HttpReply {
    fn from(answer: HttpAnswer) -> Self {
        Self {
            answer,
            room: None,
            place: None,
            refused: None,
        }
    }
}

/// HTTP as the transport of a message: it has no subscriptions, and the body was charged while it was read.
pub(crate) struct Http<'a> {
    /// Services, for the methods that need no node.
    pub(crate) services: &'a Arc<Services>,
    /// Rights of the client.
    pub(crate) pass: &'a Pass,
    /// Connection to the embedding program, from the first call of one of its methods on.
    pub(crate) connection: Option<Connection>,
    /// Places of the calls on the connection; `None` over HTTP/1.1.
    pub(crate) places: Option<&'a Arc<CallPlaces>>,
    /// Place of this message.
    pub(crate) place: Option<CallPlace>,
}

impl Transport for Http<'_> {
    fn charge_inbound(&mut self, _: usize) -> Result<(), Full> {
        Ok(())
    }

    /// HTTP/1.1 serves one request at a time, so each message may use all places of its connection; the streams of
    /// HTTP/2 share them.
    fn begin_call(&mut self, max: u32) -> bool {
        let Some(places) = self.places else { return true };
        self.place = places.take(max);
        self.place.is_some()
    }

    fn begin_subscription(&mut self, _: SubscriptionMethod<'_>, _: &RpcRequest<'_>) -> Result<Local, ErrorObjectOwned> {
        Err(error(METHOD_NOT_FOUND, "notifications not supported"))
    }

    fn end_subscription(&mut self, _: &RpcRequest<'_>) -> Outcome {
        error(SERVER_ERROR, "subscription not found").into()
    }

    fn call_own(&mut self, request: &RpcRequest<'_>) -> Result<Local, ErrorObjectOwned> {
        let caller = OwnCaller {
            services: self.services.clone(),
            account: self.pass.account().clone(),
            connection: None,
            offered: Offered::Http,
        };
        call_own(self.pass, request, caller)
    }

    fn call_extension(&mut self, role: Role, request: &RpcRequest<'_>) -> Result<Local, ErrorObjectOwned> {
        match role {
            Role::Call => Ok(self.services.extension.call(&Call {
                method: &request.method,
                params: request.params,
                client: Client::of(self.pass),
                connection: self.connection.get_or_insert_with(|| self.services.extension.connect()),
            })),
            Role::Subscribe => Err(error(METHOD_NOT_FOUND, "notifications not supported")),
            Role::Unsubscribe => Err(error(SERVER_ERROR, "subscription not found")),
        }
    }
}

/// Answers a message. `held` is the charge for its body, kept while its requests are processed; the body itself is
/// dropped once they are planned.
async fn respond(
    body: Bytes,
    held: Option<Charge>,
    pass: &Pass,
    connection: &HttpConnection,
    record: Option<&MessageRecord>,
) -> HttpReply {
    let (services, places) = (connection.services(), connection.calls());
    let mut transport = Http {
        services,
        pass,
        connection: None,
        places,
        place: None,
    };
    let terms = pass.terms();
    let intake = services.intake(&terms).recording(record);
    let PlannedMessage { reply, refusal } = intake.take(&body, &mut transport);
    drop(terms);
    // Dropped with this future, when the client has its answer or has left.
    let _connection = transport.connection;
    let place = transport.place;
    drop(body);
    let refused = refusal.map(RetryHint::from);
    let rpc = services.rpc.clone();
    match reply {
        PlannedReply::Whole(response) => HttpReply {
            refused,
            ..HttpAnswer::One(response).into()
        },
        PlannedReply::WholeBatch(response) => HttpReply {
            refused,
            ..HttpAnswer::Batch(vec![response]).into()
        },
        PlannedReply::Single(planned) => {
            let caller = caller(pass);
            let (response, place) = match rpc.begin(planned, &caller) {
                Begun::Answered(response) => (response, place),
                Begun::Waits(waiting) => {
                    // The place goes along: the call is under way even if the client has left.
                    let finishing = async move {
                        let _held = held;
                        (rpc.finish(waiting, &caller).await, place)
                    };
                    let Some(finished) = detached(services, finishing).await else {
                        return HttpReply::broken();
                    };
                    finished
                }
            };
            let busy = response.as_ref().and_then(jsonrpc::Response::retry_after);
            HttpReply {
                answer: response.map_or(HttpAnswer::Nothing, HttpAnswer::One),
                room: None,
                place,
                refused: refused.or(busy.map(RetryHint::busy)),
            }
        }
        PlannedReply::Batch(planned) => {
            let caller = caller(pass);
            let max_in_flight = pass.terms().rights.plan.max_in_flight;
            let max = max_in_flight as usize;
            let places = places.cloned();
            // Over HTTP/2 as over WebSocket: further items use half of the places of the connection.
            let more = move |under_way| match &places {
                None => (under_way < max).then_some(None),
                Some(places) => places.take(max_in_flight / 2).map(Some),
            };
            let completing = async move {
                let _held = held;
                (rpc.complete_batch(planned, &caller, more, || true).await, place)
            };
            let Some(((responses, room), place)) = detached(services, completing).await else {
                return HttpReply::broken();
            };
            HttpReply {
                answer: HttpAnswer::Batch(responses),
                room,
                place,
                refused,
            }
        }
    }
}

/// Runs work to its end even if the client disconnects: other clients may be waiting for the same answer. Returns
/// `None` if the work panicked.
async fn detached<T: Send + 'static>(services: &Services, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|_| panics::count("call", &services.metrics)).ok()
}

/// Returns the answer in the coding that the client would like, or as it is: if it is short, or hardly shorter when packed,
/// or if packing has no place now. `room` is the charge for the answer as it is.
async fn packed_or_json(
    coding: Option<ContentCoding>,
    parts: &[Bytes],
    room: Option<Charge>,
    pass: &Pass,
    services: &Services,
) -> Response<Body> {
    let coding = coding.filter(|_| pieces::length(parts) >= PACK_FROM);
    let Some(coding) = coding else {
        return json(parts, room);
    };
    // On the heap: most answers are short.
    let packing = Box::pin(services.rpc.packed(coding, parts, pass.account().owner()));
    let Some((body, charge)) = packing.await else {
        return json(parts, room);
    };
    let (before, after) = (pieces::length(parts), pieces::length(&body));
    services.metrics.count_packed(coding.name(), before, after);
    let mut response = json(&body, charge);
    let name = HeaderValue::from_static(coding.name());
    response.headers_mut().insert(CONTENT_ENCODING, name);
    response
}

fn json(body: &[Bytes], room: Option<Charge>) -> Response<Body> {
    let mut response = Response::new(Body::new(body, room));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
