//! JSON-RPC over HTTP, as geth serves it (PROTOCOL 1.15).

use std::net::IpAddr;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;

use super::ServerSettings;
use crate::jsonrpc::{
    self, ErrorObjectOwned, INVALID_REQUEST, Item, METHOD_NOT_FOUND, Message, PARSE_ERROR, SERVER_ERROR, error,
};
use crate::rpc::{Planned, subscription_method};
use crate::session::{Identity, Services};
use crate::telemetry::ReasonLabel;

/// What geth takes for JSON (`rpc/http.go`, `acceptedContentTypes`).
const CONTENT_TYPES: [&str; 3] = ["application/json", "application/json-rpc", "application/jsonrequest"];

/// Answers one request.
pub async fn answer(
    request: Request<Incoming>,
    peer: IpAddr,
    services: &Services,
    door: &ServerSettings,
) -> Response<Full<Bytes>> {
    match *request.method() {
        Method::POST => {}
        // Health probes of load balancers.
        Method::GET | Method::OPTIONS | Method::HEAD => return plain(StatusCode::OK, ""),
        _ => return plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
    }
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
        return plain(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid content type, only application/json is supported\n",
        );
    }
    let collecting = Limited::new(request.into_body(), door.max_body_bytes).collect();
    let Ok(collected) = tokio::time::timeout(door.body_timeout(), collecting).await else {
        return plain(StatusCode::REQUEST_TIMEOUT, "the body took too long\n");
    };
    let body = match collected {
        Ok(body) => body.to_bytes(),
        Err(why) if why.is::<http_body_util::LengthLimitError>() => {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "content length too large\n");
        }
        Err(_) => return plain(StatusCode::BAD_REQUEST, "the body could not be read\n"),
    };
    if body.iter().all(u8::is_ascii_whitespace) {
        return plain(StatusCode::OK, "");
    }
    json(respond(&body, Identity::from(peer), services).await)
}

/// The body of the answer; empty where nothing wants one.
async fn respond(body: &Bytes, identity: Identity, services: &Services) -> Vec<u8> {
    let whole = |id: &str, why| {
        let mut out = Vec::new();
        jsonrpc::Response::new(id, why).write_to(&mut out);
        out
    };
    let unread = |why: ErrorObjectOwned| {
        services
            .metrics
            .refused
            .get_or_create(&ReasonLabel { reason: "requests" })
            .inc();
        whole("null", why.into())
    };
    if let Err(why) = services.quota.charge_bytes(identity, body.len()) {
        return unread(why);
    }
    let parsed = Message::parse(body, services.settings.max_batch);
    // As in a session: what holds no request costs as much as one.
    if !parsed.as_ref().is_ok_and(Message::holds_requests)
        && let Err(why) = services.quota.charge(identity, 1)
    {
        return unread(why);
    }
    match parsed {
        Err(why) => whole("null", error(PARSE_ERROR, why.to_string()).into()),
        Ok(Message::Single(item)) => {
            let planned = plan(std::slice::from_ref(&item), identity, services).pop();
            let mut out = Vec::new();
            if let Some(planned) = planned
                && let Some(response) = services.rpc.complete(planned).await
            {
                response.write_to(&mut out);
            }
            out
        }
        Ok(Message::Batch(items)) if items.is_empty() => whole("null", error(INVALID_REQUEST, "empty batch").into()),
        Ok(Message::TooMany(first)) => {
            let why = error(INVALID_REQUEST, "batch too large").into();
            jsonrpc::batch(&[jsonrpc::Response::new(jsonrpc::id_text(first), why)]).unwrap_or_default()
        }
        Ok(Message::Batch(items)) => {
            let planned = plan(&items, identity, services);
            jsonrpc::batch(&services.rpc.complete_batch(planned).await).unwrap_or_default()
        }
    }
}

/// Each item is charged; all are refused together where the quota is used up.
fn plan(items: &[Item<'_>], identity: Identity, services: &Services) -> Vec<Planned> {
    match services.quota.charge(identity, items.len() as u32) {
        Err(why) => {
            services
                .metrics
                .refused
                .get_or_create(&ReasonLabel { reason: "requests" })
                .inc_by(items.len() as u64);
            let why = why.into();
            items.iter().map(|item| Planned::refused(item, &why)).collect()
        }
        Ok(()) => items
            .iter()
            .map(|item| {
                Planned::new(item, &mut |request| match subscription_method(&request.method)? {
                    (_, true) => Some(error(METHOD_NOT_FOUND, "notifications not supported").into()),
                    (_, false) => Some(error(SERVER_ERROR, "subscription not found").into()),
                })
            })
            .collect(),
    }
}

/// A short answer in plain text.
pub fn plain(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

fn json(body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
