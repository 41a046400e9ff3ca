//! The JSON-RPC 2.0 envelope, read and written as geth does it.
//!
//! PROTOCOL 1.3 and 1.4 are the contract: ids are echoed byte for byte, only the first JSON value of a frame counts,
//! the last of two equal keys wins, member names match in any case, and an object that is itself a response is ignored.
//! jsonrpsee's own request type refuses most of these (ids other than `u64` or string, repeated keys, trailing bytes),
//! so the envelope is ours; its error object serves as it is.
//!
//! No payload is copied here: parsed items borrow from the message, and an answer is assembled around the node's
//! bytes.

mod flaw;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
pub use flaw::{Flaw, MAX_DEPTH, is_method_name, not_available};
pub use jsonrpsee_types::ErrorObjectOwned;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Longest method name, in bytes, as in geth (`rpc/handler.go`, `maxMethodNameLength`).
pub const MAX_METHOD_NAME: usize = 2048;

/// Content of one message from a client.
#[derive(Debug)]
pub enum Message<'a> {
    /// One JSON object (or a bare scalar, which is an [`Item::Invalid`]).
    Single(Item<'a>),
    /// An array: items in the order of the request, possibly none.
    Batch(Vec<Item<'a>>),
    /// An array of too many items; the id of the first call among the items that were parsed.
    TooMany(Option<&'a RawValue>),
}

/// One element of a message.
#[derive(Debug)]
pub enum Item<'a> {
    /// Call, which gets an answer.
    Call(Request<'a>),
    /// Notification: has no `id` and gets no answer.
    Notification(Request<'a>),
    /// Response: ignored, as geth ignores answers to calls that it never made.
    Response,
    /// Invalid item: gets `-32600 invalid request` under the `id` that could be read, else under `null`.
    Invalid(Option<&'a RawValue>),
    /// Request that is never forwarded: answered here under its `id` with the error of its flaw. A notification,
    /// which has no `id`, gets no answer.
    Flawed(Request<'a>, Flaw),
}

/// A method call as the client wrote it.
#[derive(Debug)]
pub struct Request<'a> {
    /// The id's own bytes; `null` for a notification.
    pub id: Option<&'a RawValue>,
    /// The method's name, unescaped.
    pub method: Cow<'a, str>,
    /// The `params` member, if it was there and not `null`.
    pub params: Option<&'a RawValue>,
}

impl Request<'_> {
    /// Returns the positional parameters; empty if there are none.
    ///
    /// # Errors
    /// `-32602 non-array args` where `params` is an object or a scalar, as geth answers.
    pub fn args(&self) -> Result<Vec<&RawValue>, ErrorObjectOwned> {
        let Some(params) = self.params else {
            return Ok(Vec::new());
        };
        if !params.get().starts_with('[') {
            return Err(error(INVALID_PARAMS, "non-array args"));
        }
        serde_json::from_str(params.get()).map_err(|_| error(INVALID_PARAMS, "non-array args"))
    }
}

/// Message that is not JSON.
#[derive(Debug, thiserror::Error)]
#[error("parse error")]
pub struct InvalidJson;

impl<'a> Message<'a> {
    /// Reads the first JSON value of a frame and ignores the rest (PROTOCOL J2). Of an array no more than `max_batch`
    /// items and one are parsed: fifteen megabytes can contain seven million of them.
    ///
    /// # Errors
    /// [`InvalidJson`] if the bytes are not UTF-8 or do not begin with a JSON value.
    pub fn parse(frame: &'a [u8], max_batch: usize) -> Result<Self, InvalidJson> {
        let text = std::str::from_utf8(frame).map_err(|_| InvalidJson)?;
        if let Some(item) = Item::read_object(text) {
            return Ok(Self::Single(item));
        }
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
        let value = values.next().ok_or(InvalidJson)?.map_err(|_| InvalidJson)?;
        if value.get().starts_with('[') {
            let mut items = Vec::new();
            let read = serde_json::Deserializer::from_str(value.get()).deserialize_seq(Items {
                into: &mut items,
                max: max_batch,
            });
            if items.len() > max_batch {
                let first = items.iter().find_map(|item| match item {
                    Item::Call(request) | Item::Flawed(request, _) => request.id,
                    _ => None,
                });
                return Ok(Self::TooMany(first));
            }
            read.map_err(|_| InvalidJson)?;
            Ok(Self::Batch(items))
        } else {
            Ok(Self::Single(Item::parse(value)))
        }
    }

    /// Checks if the message has items to answer, or to charge, one by one; if not, it gets one answer as a whole.
    #[must_use]
    pub fn holds_requests(&self) -> bool {
        match self {
            Self::Single(_) => true,
            Self::Batch(items) => !items.is_empty(),
            Self::TooMany(_) => false,
        }
    }
}

impl<'a> Item<'a> {
    fn parse(value: &'a RawValue) -> Self {
        match serde_json::from_str::<Members<'a>>(value.get()) {
            Ok(members) => Self::of(value.get(), members),
            Err(_) => Item::Invalid(None),
        }
    }

    /// Reads the object at the beginning of a text in one pass, as nearly all messages are; `None` for anything else.
    fn read_object(text: &'a str) -> Option<Self> {
        let start = text.find(|c: char| !matches!(c, ' ' | '\n' | '\t' | '\r'))?;
        if !text[start..].starts_with('{') {
            return None;
        }
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Members<'a>>();
        let members = values.next()?.ok()?;
        Some(Self::of(&text[start..start + values.byte_offset()], members))
    }

    fn of(value: &'a str, members: Members<'a>) -> Self {
        let id = members.id.filter(|id| !id.get().starts_with(['{', '[']));
        let id_is_absent = members.id.is_none();
        let is_answer = members.is_answer();
        let method = members.method.filter(|method| !method.is_empty());
        match method {
            Some(method) if members.version && (id.is_some() || id_is_absent) => {
                let flaw = Flaw::of(value, &method);
                let request = Request {
                    id,
                    method,
                    params: members.params,
                };
                match flaw {
                    Some(flaw) => Item::Flawed(request, flaw),
                    None if id_is_absent => Item::Notification(request),
                    None => Item::Call(request),
                }
            }
            None if is_answer && id.is_some() => Item::Response,
            _ => Item::Invalid(id),
        }
    }
}

/// Reader of the items of an array, up to one above the limit.
struct Items<'v, 'a> {
    into: &'v mut Vec<Item<'a>>,
    max: usize,
}

impl<'a> Visitor<'a> for Items<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a batch")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<(), A::Error> {
        // The items that are left are an error to serde, which the caller recognises by the count.
        while self.into.len() <= self.max
            && let Some(item) = items.next_element::<&'a RawValue>()?
        {
            self.into.push(Item::parse(item));
        }
        Ok(())
    }
}

/// Members that decide what an item is; all others are skipped.
#[derive(Default)]
struct Members<'a> {
    version: bool,
    id: Option<&'a RawValue>,
    method: Option<Cow<'a, str>>,
    /// `true` if there is a method that is not a string.
    strange_method: bool,
    params: Option<&'a RawValue>,
    outcome: bool,
}

impl Members<'_> {
    /// Checks if the object is a response and not a request; an empty method counts as none.
    fn is_answer(&self) -> bool {
        self.version && self.outcome && !self.strange_method && self.params.is_none()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON-RPC object")
            }

            // A derived reader refuses a repeated key; geth takes the last one.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members::default();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    let value = map.next_value::<&'de RawValue>()?;
                    let some = (value.get() != "null").then_some(value);
                    let is = |name: &str| key.0.eq_ignore_ascii_case(name);
                    if is("jsonrpc") {
                        members.version = text_of(value).is_some_and(|version| version == "2.0");
                    } else if is("id") {
                        members.id = Some(value);
                    } else if is("method") {
                        members.method = text_of(value);
                        members.strange_method = some.is_some() && members.method.is_none();
                    } else if is("params") {
                        members.params = some;
                    } else if is("result") || is("error") {
                        members.outcome = true;
                    }
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// String, borrowed if it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Returns the text of a JSON string; `None` for another value.
fn text_of(value: &RawValue) -> Option<Cow<'_, str>> {
    let text = value.get();
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
        _ => serde_json::from_str::<Text<'_>>(text).ok().map(|text| text.0),
    }
}

// Error codes: JSON-RPC 2.0 section 5.1, EIP-1474, and geth's `rpc/errors.go`.
/// Not JSON.
pub const PARSE_ERROR: i32 = -32700;
/// Not a request.
pub const INVALID_REQUEST: i32 = -32600;
/// No such method, or no such subscription.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// Wrong parameters.
pub const INVALID_PARAMS: i32 = -32602;
/// No upstream, or another internal fault.
pub const INTERNAL_ERROR: i32 = -32603;
/// geth's default for errors without a code of their own.
pub const SERVER_ERROR: i32 = -32000;
/// EIP-1474 "resource not found".
pub const RESOURCE_NOT_FOUND: i32 = -32001;
/// geth's `errMsgTimeout`.
pub const TIMEOUT: i32 = -32002;
/// geth's `errMsgResponseTooLarge`.
pub const RESPONSE_TOO_LARGE: i32 = -32003;
/// EIP-1474 "limit exceeded"; viem retries it.
pub const LIMIT_EXCEEDED: i32 = -32005;

/// Creates an error object without `data`.
#[must_use]
pub fn error(code: i32, message: impl Into<String>) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(code, message, None::<()>)
}

/// Creates an error object with `data`.
#[must_use]
pub fn error_with(code: i32, message: impl Into<String>, data: &serde_json::Value) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(code, message, Some(data))
}

/// Outcome of a call: JSON that is written as it is under `result` or under `error`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The node's (or our) result, verbatim.
    Result(Bytes),
    /// The node's (or our) error object, verbatim.
    Error(Bytes),
}

impl Outcome {
    /// `true`, as `eth_unsubscribe` answers.
    pub const TRUE: Self = Self::Result(Bytes::from_static(b"true"));
}

impl From<ErrorObjectOwned> for Outcome {
    fn from(error: ErrorObjectOwned) -> Self {
        let json = serde_json::to_string(&error).expect("an error object holds nothing that JSON cannot say");
        Self::Error(escaped(json).into())
    }
}

/// Escapes the characters that HTML and JavaScript know, as Go and so geth writes JSON. They occur in strings only.
fn escaped(json: String) -> String {
    const KNOWN: [char; 5] = ['<', '>', '&', '\u{2028}', '\u{2029}'];
    if !json.contains(KNOWN) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 32);
    for char in json.chars() {
        if KNOWN.contains(&char) {
            out.push_str(&format!("\\u{:04x}", u32::from(char)));
        } else {
            out.push(char);
        }
    }
    out
}

/// Response in the parts that are sent one after the other: `head body tail`, the body being the node's own bytes.
#[derive(Clone, Debug)]
pub struct Response {
    /// Head, up to and including `"result":` or `"error":`; body, whose bytes may be shared with other responses; tail.
    parts: [Bytes; 3],
    id_length: usize,
}

impl Response {
    const START: &'static [u8] = b"{\"jsonrpc\":\"2.0\",\"id\":";
    /// Offset of the id in the head.
    const ID_AT: usize = Self::START.len();
    /// Bytes after the body.
    const TAIL: &'static [u8] = b"}";

    /// Answers `id` (its raw bytes, `null` where there is none) with `outcome`; members in geth's order (PROTOCOL J20).
    #[must_use]
    pub fn new(id: &str, outcome: Outcome) -> Self {
        let (member, body) = match outcome {
            Outcome::Result(body) => (",\"result\":", body),
            Outcome::Error(body) => (",\"error\":", body),
        };
        let mut head = Vec::with_capacity(32 + id.len());
        head.extend_from_slice(Self::START);
        head.extend_from_slice(id.as_bytes());
        head.extend_from_slice(member.as_bytes());
        Self {
            parts: [head.into(), body, Bytes::from_static(Self::TAIL)],
            id_length: id.len(),
        }
    }

    /// Returns the result or error itself.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.parts[1]
    }

    /// Checks if the outcome is an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.parts[0].ends_with(b"\"error\":")
    }

    /// Returns the code of an error; `None` for a result, and for an error object without a number as its code.
    #[must_use]
    pub fn error_code(&self) -> Option<i64> {
        #[derive(Deserialize)]
        struct Coded {
            code: i64,
        }
        let is_error = self.is_error();
        let coded = || serde_json::from_slice::<Coded>(self.body()).ok();
        is_error.then(coded).flatten().map(|coded| coded.code)
    }

    /// Returns the response with an error in place of an outcome for which there is no room. A short outcome (up to
    /// 1,024 bytes) stays, and so does the id of a subscription, which was started.
    #[must_use]
    pub fn shortened(self) -> Self {
        const SHORT: usize = 1024;
        if self.body().len() <= SHORT {
            return self;
        }
        self.instead(error(RESPONSE_TOO_LARGE, "response too large").into())
    }

    /// Returns a response with another outcome under the same id.
    #[must_use]
    pub fn instead(&self, outcome: Outcome) -> Self {
        let id = self.parts[0].slice(Self::ID_AT..Self::ID_AT + self.id_length);
        Self::new(std::str::from_utf8(&id).unwrap_or("null"), outcome)
    }

    /// Returns the wait before a retry that a limit-exceeded error names (`data.retryAfterMs`).
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        #[derive(Deserialize)]
        struct Refusal {
            code: i32,
            data: Hint,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Hint {
            retry_after_ms: u64,
        }
        const SHORT: usize = 1024;
        if !self.is_error() || self.body().len() > SHORT {
            return None;
        }
        let refusal: Refusal = serde_json::from_slice(self.body()).ok()?;
        (refusal.code == LIMIT_EXCEEDED).then_some(Duration::from_millis(refusal.data.retry_after_ms))
    }

    /// Returns the outcome without its envelope.
    #[must_use]
    pub fn into_outcome(self) -> Outcome {
        let is_error = self.is_error();
        let [_, body, _] = self.parts;
        if is_error {
            Outcome::Error(body)
        } else {
            Outcome::Result(body)
        }
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Returns all parts: head, body, tail.
    #[must_use]
    pub fn parts(&self) -> &[Bytes; 3] {
        &self.parts
    }
}

/// Returns the parts of an array of responses; `None` without any: no empty array is sent (PROTOCOL B3).
#[must_use]
pub fn batch(responses: &[Response]) -> Option<Vec<Bytes>> {
    if responses.is_empty() {
        return None;
    }
    let mut parts = Vec::with_capacity(4 * responses.len() + 1);
    for (i, response) in responses.iter().enumerate() {
        parts.push(Bytes::from_static(if i == 0 { b"[" } else { b"," }));
        parts.extend_from_slice(response.parts());
    }
    parts.push(Bytes::from_static(b"]"));
    Some(parts)
}

/// Returns the bytes of an id as they are echoed; `null` if there is none.
#[must_use]
pub fn id_text(id: Option<&RawValue>) -> &str {
    id.map_or("null", RawValue::get)
}

#[cfg(test)]
mod tests;
