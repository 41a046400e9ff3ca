//! `GET /events`: server-sent events. Reads the request, and writes the head of the response.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{HeaderName, Method, Request, Response, StatusCode};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::exchange::Exchange;
use super::http_response::{retry_after, share};
use super::response_body::Body;
use crate::delivery::{CloseReason, event_stream};
use crate::door::ApiKey;
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, LIMIT_EXCEEDED, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND, error};
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
    /// That of the query.
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

/// Kinds: name in a query, the kind of `eth_subscribe`, and its form of filter.
const KINDS: [(&str, &str, Filter); 9] = [
    ("heads", "newHeads", Filter::None),
    ("newHeads", "newHeads", Filter::None),
    ("newFinalizedHeads", "newFinalizedHeads", Filter::None),
    ("newSafeHeads", "newSafeHeads", Filter::None),
    ("logs", "logs", Filter::Logs),
    ("blockLogs", "blockLogs", Filter::Logs),
    ("receipts", "transactionReceipts", Filter::Receipts),
    ("transactionReceipts", "transactionReceipts", Filter::Receipts),
    ("pending", "newPendingTransactions", Filter::Pending),
];

/// Parameters that a kind takes besides the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    None,
    Logs,
    Receipts,
    Pending,
}

impl Filter {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Logs => &["address", "topic0", "topic1", "topic2", "topic3"],
            Self::Receipts => &["transactionHash"],
            Self::Pending => &["fromAddress", "toAddress", "hashesOnly"],
        }
    }
}

/// Options of streams of the chain.
const OPTIONS: [&str; 5] = ["after", "fromBlock", "finality", "confirmations", "include"];

/// Parameters that the door reads.
const CREDENTIALS: &str = "key";

impl EventsRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// If the query has no kind, or parameters that the kind does not take.
    pub(super) fn read<B>(request: &Request<B>) -> Result<Self, ErrorObjectOwned> {
        let query = request.uri().query().unwrap_or_default();
        let query = Query::read(query)?;
        let last = request.headers().get(LAST_EVENT_ID);
        let last = last.filter(|id| !id.is_empty()).map(|id| id.to_str());
        let last = last
            .transpose()
            .map_err(|_| invalid("Last-Event-ID is no id of this stream"))?;
        query.request(last)
    }

    /// Reads the query of a stream without an HTTP request.
    ///
    /// # Errors
    /// As `read`.
    pub fn of_query(query: &str, start: &StreamStart) -> Result<Self, ErrorObjectOwned> {
        let mut query = Query::read(query)?;
        let is_live = *start == StreamStart::Live;
        query
            .0
            .retain(|(name, _)| !is_live || (name != "after" && name != "fromBlock"));
        match start {
            StreamStart::Behind(id) => query.request(Some(id)),
            StreamStart::AsWritten | StreamStart::Live => query.request(None),
        }
    }
}

fn invalid(message: impl Into<String>) -> ErrorObjectOwned {
    error(INVALID_PARAMS, message.into())
}

/// Parameters of a query, in their order.
struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    fn read(query: &'a str) -> Result<Self, ErrorObjectOwned> {
        let pairs = url::form_urlencoded::parse(query.as_bytes());
        let pairs = pairs.filter(|(name, _)| name != CREDENTIALS);
        Ok(Self(pairs.collect()))
    }

    /// Returns the only value of a parameter.
    fn one(&self, name: &str) -> Result<Option<&str>, ErrorObjectOwned> {
        let mut values = self.0.iter().filter(|(own, _)| own == name);
        let first = values.next().map(|(_, value)| &**value);
        match values.next() {
            Some(_) => Err(invalid(format!("{name} is given more than once"))),
            None => Ok(first),
        }
    }

    /// Returns all values of a parameter, those between commas too; `None` without the parameter.
    fn all(&self, name: &str) -> Option<Value> {
        let mut values = self.0.iter().filter(|(own, _)| own == name).peekable();
        values.peek()?;
        let values = values.flat_map(|(_, values)| values.split(','));
        Some(values.map(|value| Value::from(value.trim())).collect())
    }

    fn request(&self, last: Option<&str>) -> Result<EventsRequest, ErrorObjectOwned> {
        let names = || KINDS.map(|(name, ..)| name).join(", ");
        let kind = self.one("kind")?;
        let kind = kind.ok_or_else(|| invalid(format!("kind is missing, want one of {}", names())))?;
        let known = KINDS.iter().find(|(name, ..)| *name == kind);
        let Some((_, kind, filter)) = known else {
            return Err(invalid(format!("kind {kind:?} is not known, want one of {}", names())));
        };
        let options: &[&str] = if *filter == Filter::Pending { &[] } else { &OPTIONS };
        for (name, _) in &self.0 {
            let name = &**name;
            if name != "kind" && !filter.names().contains(&name) && !options.contains(&name) {
                let known = [&["kind"], filter.names(), options].concat().join(", ");
                return Err(invalid(format!("parameter {name:?} is not known, want one of {known}")));
            }
        }
        let mut params = vec![Value::from(*kind)];
        match filter {
            Filter::None => {}
            Filter::Logs => params.push(self.logs()),
            Filter::Receipts => {
                let hashes = self.all("transactionHash");
                params.push(hashes.map_or(Value::Null, |hashes| json!({ "transactionHashes": hashes })));
            }
            Filter::Pending => params.push(self.pending()?),
        }
        let mut id = None;
        if !options.is_empty() {
            let (own, after) = self.options(last)?;
            id = after;
            if !own.is_empty() {
                params.push(own.into());
            }
        }
        let params = RawValue::from_string(Value::from(params).to_string());
        let params = params.map_err(|why| invalid(why.to_string()))?;
        Ok(EventsRequest { params, id })
    }

    fn logs(&self) -> Value {
        let mut filter = Map::new();
        if let Some(addresses) = self.all("address") {
            filter.insert("address".into(), addresses);
        }
        let topics = ["topic0", "topic1", "topic2", "topic3"].map(|name| self.all(name));
        let count = topics.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if count > 0 {
            let topics = topics.into_iter().take(count);
            let topics: Value = topics.map(Option::unwrap_or_default).collect();
            filter.insert("topics".into(), topics);
        }
        filter.into()
    }

    fn pending(&self) -> Result<Value, ErrorObjectOwned> {
        let mut filter = Map::new();
        for name in ["fromAddress", "toAddress"] {
            if let Some(addresses) = self.all(name) {
                filter.insert(name.into(), addresses);
            }
        }
        match self.one("hashesOnly")? {
            None => {}
            Some("true") => drop(filter.insert("hashesOnly".into(), true.into())),
            Some("false") => drop(filter.insert("hashesOnly".into(), false.into())),
            Some(_) => return Err(invalid("hashesOnly must be true or false")),
        }
        Ok(if filter.is_empty() { Value::Null } else { filter.into() })
    }

    /// Returns the object of options, and the id that is in it. A client that reconnects by itself repeats its query: the
    /// last id overrides the start in there.
    fn options(&self, last: Option<&str>) -> Result<(Map<String, Value>, Option<String>), ErrorObjectOwned> {
        let mut options = Map::new();
        let mut id = None;
        let after = match last {
            Some(last) => Some(last),
            None => self.one("after")?,
        };
        match after {
            // A block, or a log, as in `eth_subscribe`.
            Some(place) if place.starts_with("0x") => {
                let (block, index) = place
                    .split_once(':')
                    .map_or((place, None), |(block, index)| (block, Some(index)));
                let mut after = Map::new();
                after.insert("blockHash".into(), block.into());
                if let Some(index) = index {
                    after.insert("logIndex".into(), index.into());
                }
                options.insert("after".into(), after.into());
            }
            Some(own) => {
                options.insert("after".into(), own.into());
                id = Some(own.to_owned());
            }
            None => {}
        }
        if last.is_none()
            && let Some(number) = self.one("fromBlock")?
        {
            options.insert("fromBlock".into(), number.into());
        }
        if let Some(level) = self.one("finality")? {
            options.insert("finality".into(), level.into());
        }
        if let Some(depth) = self.one("confirmations")? {
            let number = depth.parse::<u64>();
            options.insert(
                "confirmations".into(),
                number.map_or_else(|_| depth.into(), Value::from),
            );
        }
        if let Some(parts) = self.all("include") {
            options.insert("include".into(), parts);
        }
        Ok((options, id))
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
