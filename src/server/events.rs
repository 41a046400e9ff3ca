//! `GET /events`: server-sent events. Reads the request, and writes the head of the response.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{HeaderName, Method, Request, Response, StatusCode};
use serde_json::json;
use serde_json::value::RawValue;

use super::events_query::{Query, invalid};
use super::exchange::Exchange;
use super::http_response::{retry_after, share};
use super::response_body::Body;
use crate::delivery::{CloseReason, event_stream};
use crate::door::ApiKey;
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, LIMIT_EXCEEDED, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND};
use crate::session::StreamRefusal;
use crate::shares::RETRY_AFTER;

/// Header in which a browser names the position behind which it resumes.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Keeps reverse proxies of the nginx family from collecting events.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Stream that a request is for.
#[derive(Debug)]
pub struct EventsRequest {
    /// Parameters of `eth_subscribe`.
    pub params: Box<RawValue>,
    /// Id behind which the stream begins.
    pub id: Option<String>,
}

/// Start of a query's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamStart {
    /// Start that the query names.
    AsWritten,
    /// The next event, whatever the query says.
    Live,
    /// Behind this id, whatever the query says.
    Behind(String),
}

/// Checks if the path of a request is that of streams of events; an API key may follow.
pub(super) fn is_for_events<B>(request: &Request<B>) -> bool {
    let mut parts = request.uri().path().trim_end_matches('/').rsplit('/');
    let last = match parts.next() {
        Some(key) if ApiKey::is_one(key) => parts.next(),
        last => last,
    };
    request.method() == Method::GET && last == Some("events")
}

impl EventsRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// If the query has no kind, or parameters that the kind does not take.
    pub(super) fn read<B>(request: &Request<B>) -> Result<Self, ErrorObjectOwned> {
        let query = Query::read(request.uri().query().unwrap_or_default());
        let last = request.headers().get(LAST_EVENT_ID);
        let last = last.filter(|id| !id.is_empty()).map(|id| id.to_str());
        let last = last
            .transpose()
            .map_err(|_| invalid("Last-Event-ID is not an id of this stream"))?;
        query.request(last)
    }

    /// Reads the query of a stream without an HTTP request.
    ///
    /// # Errors
    /// As `read`.
    pub fn of_query(query: &str, start: &StreamStart) -> Result<Self, ErrorObjectOwned> {
        let query = Query::read(query);
        match start {
            StreamStart::Behind(id) => query.request(Some(id)),
            StreamStart::AsWritten => query.request(None),
            StreamStart::Live => query.live().request(None),
        }
    }
}

/// Returns the response to a request without a stream. A browser's `EventSource` gives up at any status but 200, so no
/// error that a reconnect cannot heal is one that it repeats.
pub(super) fn refused(why: &StreamRefusal) -> Response<Body> {
    let why = Refused::of(why);
    let mut response = Response::new(Body::new(std::slice::from_ref(&why.body), None));
    *response.status_mut() = why.status;
    why.headers(response.headers_mut());
    response
}

/// Returns the head of a stream that begins, without its body.
pub(super) fn begun() -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// Returns the response while headwater shuts down: a stream that ends at once, since a browser reconnects after that, and
/// not after an error.
pub(super) fn draining() -> Response<Body> {
    let end = event_stream::whole(CloseReason::Drain);
    begun().map(|()| Body::new(&[end], None))
}

/// Response without a stream.
struct Refused {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Bytes,
}

impl Refused {
    fn of(StreamRefusal { error, retry_after }: &StreamRefusal) -> Self {
        let status = match error.code() {
            INVALID_PARAMS => StatusCode::BAD_REQUEST,
            METHOD_NOT_FOUND => StatusCode::NOT_FOUND,
            RESOURCE_NOT_FOUND => StatusCode::GONE,
            LIMIT_EXCEEDED => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let is_busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        // Arguments have numbers in `eth_subscribe` alone.
        let message = error.message();
        let rest = message
            .strip_prefix("invalid argument ")
            .and_then(|rest| rest.split_once(": "));
        let mut body = json!({ "code": error.code(), "message": rest.map_or(message, |(_, rest)| rest) });
        if let Some(data) = error.data().and_then(|data| serde_json::from_str(data.get()).ok()) {
            body["data"] = data;
        }
        Self {
            status,
            retry_after: retry_after.or(is_busy.then_some(RETRY_AFTER)),
            body: json!({ "error": body }).to_string().into(),
        }
    }

    fn headers(&self, headers: &mut HeaderMap) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after {
            retry_after(headers, after);
        }
    }
}

/// Returns the bytes of a response on a connection that ends with it. The stream is not chunked: its frames go to the
/// socket as they are.
pub(super) fn raw(outcome: Result<(), StreamRefusal>, page: Option<HeaderValue>, exchange: &Exchange) -> Bytes {
    let (mut head, body) = match outcome {
        Ok(()) => (begun(), Bytes::new()),
        Err(why) => {
            let why = Refused::of(&why);
            let mut head = Response::new(());
            *head.status_mut() = why.status;
            why.headers(head.headers_mut());
            head.headers_mut().insert(CONTENT_LENGTH, why.body.len().into());
            (head, why.body)
        }
    };
    head.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(page) = page {
        share(&mut head, page);
    }
    exchange.headed(&mut head, "answered", body.len() as u64);
    let status = head.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut text = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in head.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            text.extend_from_slice(part);
        }
    }
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(&body);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::error;
    use crate::telemetry::{Carrier, Recorder};

    fn read(query: &str, last: Option<&str>) -> Result<(String, Option<String>), String> {
        let mut request = Request::builder().uri(format!("/events?{query}"));
        if let Some(last) = last {
            request = request.header(LAST_EVENT_ID, last);
        }
        let read = EventsRequest::read(&request.body(()).unwrap());
        read.map(|own| (own.params.get().to_owned(), own.id))
            .map_err(|why| why.message().to_owned())
    }

    #[test]
    fn a_query_becomes_the_parameters_of_a_subscription() {
        let params = |query: &str| read(query, None).map(|(params, _)| params);
        for (query, expect) in [
            ("kind=heads", r#"["newHeads"]"#),
            ("kind=newHeads&key=secret", r#"["newHeads"]"#),
            (
                "kind=heads&finality=finalized&fromBlock=0x10",
                r#"["newHeads",{"finality":"finalized","fromBlock":"0x10"}]"#,
            ),
            ("kind=newSafeHeads", r#"["newSafeHeads"]"#),
            ("kind=logs", r#"["logs",{}]"#),
            (
                "kind=logs&address=0x1,0x2&address=0x3",
                r#"["logs",{"address":["0x1","0x2","0x3"]}]"#,
            ),
            (
                "kind=logs&topic0=0xa&topic2=0xb%2C0xc",
                r#"["logs",{"topics":[["0xa"],null,["0xb","0xc"]]}]"#,
            ),
            (
                "kind=blockLogs&include=header&include=receipts&confirmations=12",
                r#"["blockLogs",{},{"confirmations":12,"include":["header","receipts"]}]"#,
            ),
            ("kind=receipts", r#"["transactionReceipts",null]"#),
            (
                "kind=receipts&transactionHash=0xa",
                r#"["transactionReceipts",{"transactionHashes":["0xa"]}]"#,
            ),
            ("kind=pending", r#"["newPendingTransactions",null]"#),
            (
                "kind=pending&fromAddress=0x1&hashesOnly=false",
                r#"["newPendingTransactions",{"fromAddress":["0x1"],"hashesOnly":false}]"#,
            ),
            (
                "kind=logs&after=0xa:0x1f",
                r#"["logs",{},{"after":{"blockHash":"0xa","logIndex":"0x1f"}}]"#,
            ),
        ] {
            assert_eq!(params(query), Ok(expect.to_owned()), "{query}");
        }
    }

    #[test]
    fn the_last_id_overrides_the_start_in_the_query() {
        let id = |id: &str| Some(id.to_owned());
        let after = |id: &str| format!(r#"["newHeads",{{"after":"{id}"}}]"#);
        assert_eq!(read("kind=heads&after=b1", None), Ok((after("b1"), id("b1"))));
        assert_eq!(read("kind=heads&after=b1", Some("b2")), Ok((after("b2"), id("b2"))));
        assert_eq!(
            read("kind=heads&fromBlock=0x1", Some("b2")),
            Ok((after("b2"), id("b2")))
        );
        assert_eq!(read("kind=heads", Some("")), Ok((r#"["newHeads"]"#.to_owned(), None)));
        // Pending transactions have no ids; an id of another stream means nothing.
        assert!(read("kind=pending", Some("b2")).is_ok());
    }

    #[test]
    fn what_a_kind_does_not_take_is_said() {
        for (query, part) in [
            ("", "kind is missing, want one of heads, "),
            ("kind=syncing", "kind \"syncing\" is not known, want one of heads, "),
            ("kind=heads&kind=logs", "kind is given more than once"),
            (
                "kind=heads&address=0x1",
                "parameter \"address\" is not known, want one of kind, after, ",
            ),
            ("kind=logs&topic4=0x1", "want one of kind, address, topic0, "),
            ("kind=logs&after=b1&after=b2", "after is given more than once"),
            (
                "kind=pending&after=b1",
                "want one of kind, fromAddress, toAddress, hashesOnly",
            ),
            ("kind=pending&hashesOnly=1", "hashesOnly must be true or false"),
        ] {
            let why = read(query, None).expect_err(query);
            assert!(why.contains(part), "{query}: {why}");
        }
    }

    #[test]
    fn only_get_requests_for_the_last_part_events_are_for_streams() {
        let is = |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            is_for_events(&request)
        };
        for path in ["/events", "/events/", "/events?kind=heads", "/v1/events"] {
            assert!(is(Method::GET, path), "{path}");
        }
        for path in ["/", "/event", "/events/x", "/eventsx?events"] {
            assert!(!is(Method::GET, path), "{path}");
        }
        assert!(!is(Method::HEAD, "/events") && !is(Method::POST, "/events"));
    }

    #[test]
    fn an_error_has_a_status_and_a_reason_in_json() {
        let gone = error(RESOURCE_NOT_FOUND, "cannot resume: too old");
        let request = Request::builder().uri("/events").body(()).unwrap();
        let exchange = Exchange::begin(&request, Carrier::Http, false, &Recorder::default());
        let page = Some(HeaderValue::from_static("https://a.example"));
        let text = raw(Err(gone.into()), page, &exchange);
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.starts_with("HTTP/1.1 410 Gone\r\n"), "{text}");
        assert!(
            text.contains("access-control-allow-origin: https://a.example\r\n"),
            "{text}"
        );
        let body = r#"{"error":{"code":-32001,"message":"cannot resume: too old"}}"#;
        assert!(text.ends_with(&format!("\r\n\r\n{body}")), "{text}");
        assert!(text.contains(&format!("content-length: {}\r\n", body.len())));
    }
}
