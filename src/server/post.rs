//! JSON-RPC over HTTP, as geth serves it (PROTOCOL 1.15).

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::answer::{plain, retry_after};
use super::body::Body;
use super::listener::Connection;
use super::room::{Full, Taken};
use super::upload::{self, Unread};
use crate::door::{Exceeded, Pass};
use crate::jsonrpc::{
    self, ErrorObjectOwned, INTERNAL_ERROR, INVALID_REQUEST, Item, METHOD_NOT_FOUND, Message, PARSE_ERROR,
    SERVER_ERROR, error,
};
use crate::look::look;
use crate::rpc::{Holder, Planned, SubscriptionMethod, not_available};
use crate::session::{Services, methods};
use crate::{panics, pieces};

/// What geth takes for JSON (`rpc/http.go`, `acceptedContentTypes`).
const CONTENT_TYPES: [&str; 3] = ["application/json", "application/json-rpc", "application/jsonrequest"];

/// Answers what is neither an upgrade nor a POST.
pub fn answer_others(method: &Method) -> Response<Body> {
    match *method {
        // Health probes of load balancers.
        Method::GET | Method::OPTIONS | Method::HEAD => plain(StatusCode::OK, ""),
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
    }
}

/// Answers one request.
pub async fn answer(request: Request<Incoming>, pass: &Pass, connection: &Connection) -> Response<Body> {
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
    let reading = upload::read(request.into_body(), pass);
    let without_request = match tokio::time::timeout(settings.body_timeout(), reading).await {
        Ok(Ok(body)) if body.iter().all(u8::is_ascii_whitespace) => plain(StatusCode::OK, ""),
        Ok(Ok(body)) => return finish(respond(&body, pass, services).await, pass, connection),
        Ok(Err(Unread::Exceeded(exceeded))) => return finish(Answered::unread(exceeded, services), pass, connection),
        Ok(Err(Unread::TooLong)) => plain(StatusCode::PAYLOAD_TOO_LARGE, "content length too large\n"),
        Ok(Err(Unread::Broken)) => plain(StatusCode::BAD_REQUEST, "the body could not be read\n"),
        Err(_) => plain(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
    };
    charged(without_request, pass, connection)
}

/// Charges what holds no request, for it was read and is answered; in place of the answer a refusal where the quota is used
/// up.
fn charged(response: Response<Body>, pass: &Pass, connection: &Connection) -> Response<Body> {
    let charged = pass.terms().charge_one();
    match charged {
        Ok(()) => response,
        Err(exceeded) => finish(Answered::unread(exceeded, connection.services()), pass, connection),
    }
}

/// The response to what a body came to.
fn finish(Answered { answer, refused }: Answered, pass: &Pass, connection: &Connection) -> Response<Body> {
    let services = connection.services();
    let parts = answer.parts();
    let mut response = match connection.room().take(pass.account(), pieces::length(&parts)) {
        Ok(room) => json(&parts, room),
        Err(Full) => {
            services.count_refusal("long_answers");
            json(&answer.shortened().parts(), None)
        }
    };
    if let Some(exceeded) = refused {
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        if let Some(after) = exceeded.retry_after {
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

/// What a body came to.
struct Answered {
    answer: Answer,
    /// It was refused as a whole.
    refused: Option<Exceeded>,
}

enum Answer {
    /// Nobody wants one.
    Nothing,
    One(jsonrpc::Response),
    Batch(Vec<jsonrpc::Response>),
}

impl Answer {
    fn parts(&self) -> Vec<Bytes> {
        match self {
            Self::Nothing => Vec::new(),
            Self::One(response) => response.parts().to_vec(),
            Self::Batch(responses) => jsonrpc::batch(responses).unwrap_or_default(),
        }
    }

    /// The same with errors in place of what is long.
    fn shortened(self) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::One(response) => Self::One(response.shortened()),
            Self::Batch(all) => Self::Batch(all.into_iter().map(jsonrpc::Response::shortened).collect()),
        }
    }
}

impl Answered {
    fn whole(id: &str, why: ErrorObjectOwned) -> Self {
        Answer::One(jsonrpc::Response::new(id, why.into())).into()
    }

    /// A bug of ours: nobody knows what became of it.
    fn broken() -> Self {
        Self::whole("null", error(INTERNAL_ERROR, "internal error"))
    }

    /// Nobody looked at what it asks.
    fn unread(exceeded: Exceeded, services: &Services) -> Self {
        services.count_refusal("requests");
        Self {
            refused: Some(exceeded),
            ..Self::whole("null", exceeded.into())
        }
    }
}

impl From<Answer> for Answered {
    fn from(answer: Answer) -> Self {
        Self { answer, refused: None }
    }
}

async fn respond(body: &Bytes, pass: &Pass, services: &Arc<Services>) -> Answered {
    let terms = pass.account().terms();
    let parsed = Message::parse(body, terms.rights.plan.max_batch);
    // As in a session: what holds no request costs as much as one.
    if !parsed.as_ref().is_ok_and(Message::holds_requests)
        && let Err(exceeded) = terms.charge_one()
    {
        return Answered::unread(exceeded, services);
    }
    drop(terms);
    match parsed {
        Err(why) => Answered::whole("null", error(PARSE_ERROR, why.to_string())),
        Ok(Message::Single(item)) => {
            let (mut planned, refused) = plan(std::slice::from_ref(&item), pass, services);
            let response = match planned.pop() {
                Some(planned) => {
                    let rpc = services.rpc.clone();
                    staying(services, async move { rpc.complete(planned).await }).await
                }
                None => Some(None),
            };
            let Some(response) = response else {
                return Answered::broken();
            };
            let answer = response.map_or(Answer::Nothing, Answer::One);
            Answered { answer, refused }
        }
        Ok(Message::Batch(items)) if items.is_empty() => Answered::whole("null", error(INVALID_REQUEST, "empty batch")),
        Ok(Message::TooMany(first)) => {
            let why = error(INVALID_REQUEST, "batch too large").into();
            Answer::Batch(vec![jsonrpc::Response::new(jsonrpc::id_text(first), why)]).into()
        }
        Ok(Message::Batch(items)) => {
            let (planned, refused) = plan(&items, pass, services);
            let rpc = services.rpc.clone();
            // A connection has one request at a time, so that all its places are this batch's.
            let max = pass.terms().rights.plan.max_in_flight as usize;
            let more = move |under_way| (under_way < max).then_some(());
            let responses = staying(
                services,
                async move { rpc.complete_batch(planned, more, || true).await },
            )
            .await;
            let Some(responses) = responses else {
                return Answered::broken();
            };
            let answer = Answer::Batch(responses);
            Answered { answer, refused }
        }
    }
}

/// Goes on also where the one who asked hangs up: others may be waiting for the same answer. `None` where it panicked.
async fn staying<T: Send + 'static>(services: &Services, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let mut work = Box::pin(work);
    if let Some(done) = look(work.as_mut()) {
        return Some(done);
    }
    let done = tokio::spawn(work).await;
    done.map_err(|_| panics::count("call", &services.metrics)).ok()
}

/// Each item is charged; all are refused together where the quota is used up.
fn plan(items: &[Item<'_>], pass: &Pass, services: &Services) -> (Vec<Planned>, Option<Exceeded>) {
    let terms = pass.terms();
    if let Err(exceeded) = terms.charge(methods(items)) {
        services.count_refusals("requests", items.len());
        let why = ErrorObjectOwned::from(exceeded).into();
        let refused = items.iter().map(|item| Planned::refused(item, &why)).collect();
        return (refused, Some(exceeded));
    }
    let holder = Holder(pass.account().number());
    let plan = |item| {
        Planned::new(
            item,
            holder,
            &mut |request| match SubscriptionMethod::of(&request.method) {
                Some(SubscriptionMethod::Subscribe(_) | SubscriptionMethod::SubscribeKind(_)) => {
                    Some(error(METHOD_NOT_FOUND, "notifications not supported").into())
                }
                Some(SubscriptionMethod::Unsubscribe) => Some(error(SERVER_ERROR, "subscription not found").into()),
                Some(SubscriptionMethod::Unpaired) => Some(not_available(&request.method).into()),
                None => services.refused_call(&terms.rights.methods, &request.method),
            },
        )
    };
    (items.iter().map(plan).collect(), None)
}

fn json(body: &[Bytes], room: Option<Taken>) -> Response<Body> {
    let mut response = Response::new(Body::new(body, room));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
