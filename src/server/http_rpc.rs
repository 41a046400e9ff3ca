//! JSON-RPC over HTTP, as geth serves it (PROTOCOL 1.15).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::http_response::{plain, retry_after};
use super::listener::HttpConnection;
use super::request_body::{self, Unread};
use super::response_body::Body;
use crate::door::{Exceeded, Pass};
use crate::jsonrpc::{
    self, ErrorObjectOwned, INTERNAL_ERROR, INVALID_REQUEST, Item, METHOD_NOT_FOUND, Message, PARSE_ERROR,
    SERVER_ERROR, error,
};
use crate::look::look;
use crate::rpc::{CallContext, Holder, Planned, SubscriptionMethod, not_available};
use crate::session::{Services, methods};
use crate::shares::{Charge, Full, RETRY_AFTER};
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
pub(super) async fn answer(request: Request<Incoming>, pass: &Pass, connection: &HttpConnection) -> Response<Body> {
    let (services, settings) = (connection.services(), connection.settings());
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
        return charged(plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, wrong), pass, connection);
    }
    let reading = request_body::read(request.into_body(), pass, &services.inbound);
    let without_request = match tokio::time::timeout(settings.body_timeout(), reading).await {
        Ok(Ok((body, _))) if body.iter().all(u8::is_ascii_whitespace) => plain(StatusCode::OK, ""),
        Ok(Ok((body, held))) => return finish(respond(body, held, pass, services).await, pass, connection),
        Ok(Err(Unread::Full(full))) => return finish(HttpReply::busy("null", full, services), pass, connection),
        Ok(Err(Unread::Exceeded(exceeded))) => return finish(HttpReply::unread(exceeded, services), pass, connection),
        Ok(Err(Unread::TooLong)) => plain(StatusCode::PAYLOAD_TOO_LARGE, "content length too large\n"),
        Ok(Err(Unread::Broken)) => plain(StatusCode::BAD_REQUEST, "the body could not be read\n"),
        Err(_) => plain(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
    };
    charged(without_request, pass, connection)
}

/// Charges a body without a request, since it was read and is answered; returns a refusal instead of `response` if the
/// quota is used up.
fn charged(response: Response<Body>, pass: &Pass, connection: &HttpConnection) -> Response<Body> {
    let charged = pass.terms().charge_one();
    match charged {
        Ok(()) => response,
        Err(exceeded) => finish(HttpReply::unread(exceeded, connection.services()), pass, connection),
    }
}

/// Builds the HTTP response, with a status and `Retry-After` if the message was refused.
fn finish(HttpReply { answer, room, refused }: HttpReply, pass: &Pass, connection: &HttpConnection) -> Response<Body> {
    let services = connection.services();
    let parts = answer.parts();
    let needed = match &answer {
        HttpAnswer::One(_) => services.rpc.room_for(pass.account().owner(), pieces::length(&parts)),
        // A batch was charged while its answer grew.
        HttpAnswer::Nothing | HttpAnswer::Batch(_) => Ok(room),
    };
    let (mut response, refused) = match (needed, &answer) {
        (Ok(room), _) => (json(&parts, room), refused),
        (Err(full), HttpAnswer::One(one)) => {
            let refused = Some(RequestRefusal::Busy(RETRY_AFTER));
            (json(&one.instead(full.into()).parts(), None), refused)
        }
        (Err(_), _) => (json(&parts, None), refused),
    };
    if let Some(refused) = refused {
        let (status, after) = match refused {
            RequestRefusal::Quota(exceeded) => (StatusCode::TOO_MANY_REQUESTS, exceeded.retry_after),
            RequestRefusal::Busy(after) => (StatusCode::SERVICE_UNAVAILABLE, Some(after)),
        };
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
    /// Reason, if the message was refused as a whole.
    refused: Option<RequestRefusal>,
}

/// Reason why no part of a message was answered.
#[derive(Clone, Copy)]
enum RequestRefusal {
    /// The client's quota is used up.
    Quota(Exceeded),
    /// A budget is full; with the wait before a retry.
    Busy(Duration),
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
    fn whole(id: &str, why: ErrorObjectOwned) -> Self {
        HttpAnswer::One(jsonrpc::Response::new(id, why.into())).into()
    }

    /// Answers with an internal error, after a panic.
    fn broken() -> Self {
        Self::whole("null", error(INTERNAL_ERROR, "internal error"))
    }

    /// Answers a message that was not read, since the client's quota is used up.
    fn unread(exceeded: Exceeded, services: &Services) -> Self {
        services.count_refusal("requests");
        Self {
            refused: Some(RequestRefusal::Quota(exceeded)),
            ..Self::whole("null", exceeded.into())
        }
    }

    /// Answers that there is no room for the message at present.
    fn busy(id: &str, full: Full, services: &Services) -> Self {
        services.count_refusal("inbound_bytes");
        Self {
            refused: Some(RequestRefusal::Busy(RETRY_AFTER)),
            ..Self::whole(id, full.into())
        }
    }
}

impl From<HttpAnswer> for HttpReply {
    fn from(answer: HttpAnswer) -> Self {
        Self {
            answer,
            room: None,
            refused: None,
        }
    }
}

/// Requests that were read, before any of them is answered.
enum Intake {
    /// Message that is answered already.
    HttpReply(HttpReply),
    Single(Option<Planned>, Option<Exceeded>),
    Batch(Vec<Planned>, Option<Exceeded>),
}

/// Answers a message. `held` is the charge for its body, kept while its requests are processed; the body itself is
/// dropped once they are planned.
async fn respond(body: Bytes, held: Option<Charge>, pass: &Pass, services: &Arc<Services>) -> HttpReply {
    let intake = take_in(&body, pass, services);
    drop(body);
    let (rpc, caller) = (services.rpc.clone(), caller(pass));
    match intake {
        Intake::HttpReply(answered) => answered,
        Intake::Single(planned, exceeded) => {
            let response = match planned {
                Some(planned) => {
                    let completing = async move {
                        let _held = held;
                        rpc.complete(planned, &caller).await
                    };
                    match detached(services, completing).await {
                        Some(response) => response,
                        None => return HttpReply::broken(),
                    }
                }
                None => None,
            };
            let busy = response.as_ref().and_then(jsonrpc::Response::retry_after);
            HttpReply {
                answer: response.map_or(HttpAnswer::Nothing, HttpAnswer::One),
                room: None,
                refused: exceeded.map(RequestRefusal::Quota).or(busy.map(RequestRefusal::Busy)),
            }
        }
        Intake::Batch(planned, exceeded) => {
            // HTTP/1.1 serves one request at a time, so this batch may use all places of the connection.
            let max = pass.terms().rights.plan.max_in_flight as usize;
            let more = move |under_way| (under_way < max).then_some(());
            let completing = async move {
                let _held = held;
                rpc.complete_batch(planned, &caller, more, || true).await
            };
            let Some((responses, room)) = detached(services, completing).await else {
                return HttpReply::broken();
            };
            HttpReply {
                answer: HttpAnswer::Batch(responses),
                room,
                refused: exceeded.map(RequestRefusal::Quota),
            }
        }
    }
}

fn caller(pass: &Pass) -> CallContext {
    CallContext {
        owner: pass.account().owner(),
        holder: Holder(pass.account().number()),
        conduct: pass.terms().conduct().clone(),
    }
}

fn take_in(body: &[u8], pass: &Pass, services: &Services) -> Intake {
    let terms = pass.account().terms();
    let parsed = Message::parse(body, terms.rights.plan.max_batch);
    // As in a session: a message without requests costs as much as one request.
    if !parsed.as_ref().is_ok_and(Message::holds_requests)
        && let Err(exceeded) = terms.charge_one()
    {
        return Intake::HttpReply(HttpReply::unread(exceeded, services));
    }
    drop(terms);
    match parsed {
        Err(why) => Intake::HttpReply(HttpReply::whole("null", error(PARSE_ERROR, why.to_string()))),
        Ok(Message::Single(item)) => {
            let (mut planned, exceeded) = plan(std::slice::from_ref(&item), pass, services);
            Intake::Single(planned.pop(), exceeded)
        }
        Ok(Message::Batch(items)) if items.is_empty() => {
            Intake::HttpReply(HttpReply::whole("null", error(INVALID_REQUEST, "empty batch")))
        }
        Ok(Message::TooMany(first)) => {
            let why = error(INVALID_REQUEST, "batch too large").into();
            let response = jsonrpc::Response::new(jsonrpc::id_text(first), why);
            Intake::HttpReply(HttpAnswer::Batch(vec![response]).into())
        }
        Ok(Message::Batch(items)) => {
            let (planned, exceeded) = plan(&items, pass, services);
            Intake::Batch(planned, exceeded)
        }
    }
}

/// Runs work to its end even if the client disconnects: other clients may be waiting for the same answer. Returns
/// `None` if the work panicked.
async fn detached<T: Send + 'static>(services: &Services, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let mut work = Box::pin(work);
    if let Some(done) = look(work.as_mut()) {
        return Some(done);
    }
    let done = tokio::spawn(work).await;
    done.map_err(|_| panics::count("call", &services.metrics)).ok()
}

/// Charges and plans all items; all are refused together, with the reason, if the quota is used up.
fn plan(items: &[Item<'_>], pass: &Pass, services: &Services) -> (Vec<Planned>, Option<Exceeded>) {
    let terms = pass.terms();
    if let Err(exceeded) = terms.charge(methods(items)) {
        services.count_refusals("requests", items.len());
        let why = ErrorObjectOwned::from(exceeded).into();
        let refused = items.iter().map(|item| Planned::refused(item, &why)).collect();
        return (refused, Some(exceeded));
    }
    let plan = |item| {
        Planned::new(item, &mut |request| match SubscriptionMethod::of(&request.method) {
            Some(SubscriptionMethod::Subscribe(_) | SubscriptionMethod::SubscribeKind(_)) => {
                Some(error(METHOD_NOT_FOUND, "notifications not supported").into())
            }
            Some(SubscriptionMethod::Unsubscribe) => Some(error(SERVER_ERROR, "subscription not found").into()),
            Some(SubscriptionMethod::Unpaired) => Some(not_available(&request.method).into()),
            None => services.refused_call(&terms.rights.methods, &request.method),
        })
    };
    (items.iter().map(plan).collect(), None)
}

fn json(body: &[Bytes], room: Option<Charge>) -> Response<Body> {
    let mut response = Response::new(Body::new(body, room));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
