//! HTTP responses without JSON, and CORS headers for all responses.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue,
    ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_VERSION, VARY, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode};

use super::response_body::Body;
use crate::door::Refusal;

/// `Retry-After` if the moment at which there will be room is unknown.
const LATER: Duration = Duration::from_secs(10);

/// Returns a short response in plain text.
pub(super) fn plain(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}

/// Returns the response for a refused client: the reason as far as it concerns the client, in geth's words if geth has
/// any.
pub(super) fn refusal(why: Refusal) -> Response<Body> {
    let (status, body) = match why {
        Refusal::Malformed | Refusal::Tls | Refusal::NotProxied => (StatusCode::BAD_REQUEST, "Bad Request\n"),
        Refusal::Session => (
            StatusCode::BAD_REQUEST,
            "session must be <unix seconds>-<random>, 16 to 128 characters of A-Z a-z 0-9 _ -\n",
        ),
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
        // A replacement process may be listening already.
        Refusal::Draining => retry_after(headers, Duration::from_secs(1)),
        Refusal::Origin | Refusal::Host | Refusal::Address | Refusal::Session | Refusal::Tls | Refusal::NotProxied => {}
    }
    response
}

/// Sets `Retry-After`, in whole seconds, rounded up, at least 1.
pub(super) fn retry_after(headers: &mut HeaderMap, after: Duration) {
    let seconds = after.as_millis().div_ceil(1000).max(1) as u64;
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
}

/// Checks if the request is a CORS preflight.
pub(super) fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ORIGIN)
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Returns the response to a preflight, without the origin, which [`share`] adds.
pub(super) fn preflight() -> Response<Body> {
    let mut response = plain(StatusCode::NO_CONTENT, "");
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("content-type, authorization, x-api-key, last-event-id, x-request-id, traceparent"),
    );
    // As in geth (`node/rpcstack.go`, `newCorsHandler`).
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Lets the page at `origin` read this response. Returns the origin itself rather than `*`, so that a list of origins
/// is enforced.
pub(super) fn share<B>(response: &mut Response<B>, origin: HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("retry-after, x-request-id"),
    );
    headers.append(VARY, HeaderValue::from_static("Origin"));
}
