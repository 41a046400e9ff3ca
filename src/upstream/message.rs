//! What a node sends: answers to our calls and notifications, read without copying their payloads.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::jsonrpc::Outcome;

/// One message of a node.
#[derive(Debug)]
pub enum NodeMessage {
    /// The answer to the call with this id of ours.
    Answer(u64, Outcome),
    /// A message of a subscription.
    Notification(Notification),
}

/// A message of a subscription at the node, known by its shape: a method, and `params.subscription`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The method that it names. Libraries differ in it (geth: `eth_subscription`, jsonrpsee: whatever the node's author wrote).
    pub method: Bytes,
    /// The node's id (its raw JSON, for some nodes send numbers).
    pub subscription: String,
    /// What it brings.
    pub notice: Notice,
}

/// What a message of a subscription brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An event.
    Event(Bytes),
    /// The end of the subscription, with the node's error object: jsonrpsee sends `params.error` in place of `params.result`
    /// where a subscriber lags or the server shuts down.
    Ended(Bytes),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    subscription: &'a RawValue,
    /// `null` is a result as any other.
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

fn present<'de, D: serde::Deserializer<'de>>(member: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(member).map(Some)
}

impl NodeMessage {
    /// Reads a frame; an array holds several. What is neither answer nor event is left out, and so is what is no JSON:
    /// a node that talks nonsense is noticed by its silence.
    #[must_use]
    pub fn parse(frame: &Bytes) -> Vec<Self> {
        let first = frame.iter().find(|byte| !byte.is_ascii_whitespace());
        if first == Some(&b'[') {
            let items: Vec<&RawValue> = serde_json::from_slice(frame).unwrap_or_default();
            return items
                .into_iter()
                .filter_map(|item| Self::one(frame, item.get()))
                .collect();
        }
        std::str::from_utf8(frame)
            .ok()
            .and_then(|text| Self::one(frame, text))
            .into_iter()
            .collect()
    }

    fn one(frame: &Bytes, text: &str) -> Option<Self> {
        let envelope: Envelope<'_> = serde_json::from_str(text).ok()?;
        let slice = |raw: &RawValue| frame.slice_ref(raw.get().as_bytes());
        if let Some(method) = envelope.method {
            let params: Params<'_> = serde_json::from_str(envelope.params?.get()).ok()?;
            let notice = match (params.error, params.result) {
                (Some(error), _) => Notice::Ended(slice(error)),
                (None, Some(result)) => Notice::Event(slice(result)),
                (None, None) => return None,
            };
            return Some(Self::Notification(Notification {
                method: match method {
                    Cow::Borrowed(name) => frame.slice_ref(name.as_bytes()),
                    Cow::Owned(name) => name.into(),
                },
                subscription: params.subscription.get().to_owned(),
                notice,
            }));
        }
        let id = serde_json::from_str(envelope.id?.get()).ok()?;
        let outcome = match (envelope.error, envelope.result) {
            (Some(error), _) => Outcome::Error(slice(error)),
            (None, Some(result)) => Outcome::Result(slice(result)),
            // `"result":null` reads as no result here.
            (None, None) => Outcome::Result(Bytes::from_static(b"null")),
        };
        Some(Self::Answer(id, outcome))
    }
}

/// The call as the node reads it; `params` is JSON, empty for none.
#[must_use]
pub fn request(id: u64, method: &str, params: &str) -> String {
    let method = serde_json::Value::from(method);
    let params = if params.is_empty() { "[]" } else { params };
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":{method},"params":{params}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(frame: &str, expect: &str) {
        let messages = NodeMessage::parse(&Bytes::copy_from_slice(frame.as_bytes()));
        let shown: Vec<String> = messages
            .into_iter()
            .map(|message| match message {
                NodeMessage::Answer(id, Outcome::Result(json)) => format!("{id}={}", String::from_utf8_lossy(&json)),
                NodeMessage::Answer(id, Outcome::Error(json)) => format!("{id}!{}", String::from_utf8_lossy(&json)),
                NodeMessage::Notification(Notification {
                    method,
                    subscription: id,
                    notice,
                }) => {
                    let name = String::from_utf8_lossy(&method);
                    let name = if name == "eth_subscription" { "" } else { &*name };
                    match notice {
                        Notice::Event(json) => format!("{name}{id}:{}", String::from_utf8_lossy(&json)),
                        Notice::Ended(json) => format!("{name}{id}/{}", String::from_utf8_lossy(&json)),
                    }
                }
            })
            .collect();
        assert_eq!(shown.join(" "), expect, "{frame}");
    }

    #[test]
    fn answers_and_events_keep_the_nodes_bytes() {
        check(r#"{"jsonrpc":"2.0","id":1,"result":{"a" : 1.0}}"#, r#"1={"a" : 1.0}"#);
        check("{\"id\":1,\"result\":null}\n", "1=null");
        check(
            r#"{"id":2,"error":{"code":3,"message":"execution reverted","data":"0x08c3"}}"#,
            r#"2!{"code":3,"message":"execution reverted","data":"0x08c3"}"#,
        );
        check(
            r#"{"method":"eth_subscription","params":{"subscription":"0x1","result":"0xab"}}"#,
            r#""0x1":"0xab""#,
        );
        check(
            r#"{"method":"eth_subscription","params":{"subscription":7,"result":null}}"#,
            "7:null",
        );
        check(r#"[{"id":1,"result":1},{"id":2,"result":2}]"#, "1=1 2=2");
    }

    #[test]
    fn an_event_is_known_by_its_shape_and_an_error_in_it_is_its_end() {
        let of = |method: &str, params: &str| format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#);
        for (method, params, expect) in [
            ("eth_subscription", r#"{"subscription":"a","result":1}"#, r#""a":1"#),
            (
                "eth_subscribe",
                r#"{"result":{},"subscription":7}"#,
                "eth_subscribe7:{}",
            ),
            (
                "reth_subscriptionChain",
                r#"{"subscription":"a","result":[]}"#,
                r#"reth_subscriptionChain"a":[]"#,
            ),
            (r"s\u0061w", r#"{"subscription":"a","result":2}"#, r#"saw"a":2"#),
            ("", r#"{"subscription":"a","result":2}"#, r#""a":2"#),
            (
                "eth_subscription",
                r#"{"subscription":"a","error":{"code":1}}"#,
                r#""a"/{"code":1}"#,
            ),
            (
                "eth_subscription",
                r#"{"subscription":"a","error":"lagged"}"#,
                r#""a"/"lagged""#,
            ),
            // Both: what the node calls an error is none to be told as an event.
            (
                "eth_subscription",
                r#"{"result":1,"subscription":"a","error":{}}"#,
                r#""a"/{}"#,
            ),
            (
                "eth_subscription",
                r#"{"subscription":"a","error":null,"result":1,"more":2}"#,
                r#""a":1"#,
            ),
            (
                "eth_subscription",
                r#"{"subscription":"a","error":null,"result":null}"#,
                r#""a":null"#,
            ),
            ("eth_subscription", r#"{"subscription":"a","error":null}"#, ""),
            ("eth_subscription", r#"{"subscription":"a"}"#, ""),
            ("eth_subscription", r#"{"result":1}"#, ""),
            ("eth_subscription", "[1]", ""),
            ("eth_call", "null", ""),
        ] {
            check(&of(method, params), expect);
        }
    }

    #[test]
    fn what_is_neither_is_left_out() {
        for nonsense in [
            "",
            "5",
            "null",
            "hello",
            r#"{"id":null,"error":{}}"#,
            r#"{"method":"eth_subscription"}"#,
        ] {
            check(nonsense, "");
        }
    }

    #[test]
    fn a_method_name_is_escaped() {
        assert_eq!(
            request(7, "a\"b", ""),
            r#"{"jsonrpc":"2.0","id":7,"method":"a\"b","params":[]}"#
        );
    }
}
