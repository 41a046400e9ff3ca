//! Answers that hold no JSON, and what browsers want to be told about any.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue,
    ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_VERSION, VARY, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode};

use super::body::Body;
use crate::door::Refusal;

/// When to come again where nobody knows when there will be room.
const LATER: Duration = Duration::from_secs(10);

/// A short answer in plain text.
pub fn plain(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}

/// Tells somebody who is not let in why, as far as it concerns them; where geth has words, in these.
pub fn refusal(why: Refusal) -> Response<Body> {
    let (status, body) = match why {
        Refusal::Malformed | Refusal::Tls | Refusal::NotProxied => (StatusCode::BAD_REQUEST, "Bad Request\n"),
        Refusal::Unauthorized => (StatusCode::UNAUTHORIZED, "a valid API key or token is needed\n"),
        Refusal::Origin | Refusal::Address => (StatusCode::FORBIDDEN, "Forbidden\n"),
        Refusal::Host => (StatusCode::FORBIDDEN, "invalid host specified\n"),
        Refusal::Full | Refusal::Connections => (
            StatusCode::TOO_MANY_REQUESTS,
            "Too many connections. Please try again later.\n",
        ),
        Refusal::Handshakes(_) => (
            StatusCode::TOO_MANY_REQUESTS,
            "Too many handshakes. Please slow down.\n",
        ),
        Refusal::Requests(_) => (StatusCode::TOO_MANY_REQUESTS, "Too many requests. Please slow down.\n"),
        Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, "Busy. Please try again later.\n"),
        Refusal::Draining => (
            StatusCode::SERVICE_UNAVAILABLE,
            "Shutting down. Please connect again.\n",
        ),
    };
    let mut response = plain(status, body);
    let headers = response.headers_mut();
    match why {
        Refusal::Malformed => drop(headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))),
        Refusal::Unauthorized => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        Refusal::Full | Refusal::Connections | Refusal::Busy => retry_after(headers, LATER),
        Refusal::Handshakes(after) | Refusal::Requests(after) => retry_after(headers, after),
        // Another process may be listening already.
        Refusal::Draining => retry_after(headers, Duration::from_secs(1)),
        Refusal::Origin | Refusal::Host | Refusal::Address | Refusal::Tls | Refusal::NotProxied => {}
    }
    response
}

/// In whole seconds, as the header wants it, and never too early.
pub fn retry_after(headers: &mut HeaderMap, after: Duration) {
    let seconds = after.as_millis().div_ceil(1000).max(1) as u64;
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
}

/// Whether a page asks whether it may ask.
pub fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ORIGIN)
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// It may; [`share`] adds from where.
pub fn preflight() -> Response<Body> {
    let mut response = plain(StatusCode::NO_CONTENT, "");
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("content-type, authorization, x-api-key"),
    );
    // geth's (`node/rpcstack.go`, `newCorsHandler`).
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Lets the page at `origin` read this answer. The origin itself rather than `*`, so that a list stays one.
pub fn share(response: &mut Response<Body>, origin: HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    headers.append(VARY, HeaderValue::from_static("Origin"));
}
