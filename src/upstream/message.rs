//! Messages of a node: answers to our calls, and notifications; parsed without copying their payloads.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::iter;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::envelope::{Envelope, present};
use super::splitter::Splitter;
use crate::jsonrpc::{Outcome, is_method_name};

/// A message of a node.
#[derive(Debug)]
pub(super) enum NodeMessage {
    /// Answer to our call with this id.
    Answer(u64, Outcome),
    /// Notification of a subscription.
    Notification(Notification),
}

/// Notification of a subscription at the node, recognised by its shape: a method, and `params.subscription`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notification {
    /// Method of the notification. Libraries differ in it (geth: `eth_subscription`, jsonrpsee: any name that the
    /// node's author chose).
    pub method: Bytes,
    /// Subscription id at the node, as raw JSON, since some nodes send numbers.
    pub subscription: String,
    /// Event or end of the subscription.
    pub notice: Notice,
}

/// Content of a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Event, as raw JSON.
    Event(Bytes),
    /// End of the subscription, with the node's error object: jsonrpsee sends `params.error` in place of
    /// `params.result` where a subscriber lags or the server shuts down.
    Ended(Bytes),
}

#[derive(serde::Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    subscription: &'a RawValue,
    /// Result of the notification; `null` is a result like any other.
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl NodeMessage {
    /// Parses a frame. An array contains several messages, and a frame may contain several values, with or without
    /// newlines between them (Nethermind 1.21, Tendermint). Skips messages that are neither answers nor
    /// notifications, and text that is not JSON: a node that sends nonsense is noticed by its silence.
    pub(super) fn parse(frame: &Bytes) -> impl Iterator<Item = Self> + use<> {
        // Nearly every frame is one message, which needs no list.
        let one = if is_array(frame) { None } else { Envelope::read(frame) };
        let parts = || values(frame).filter_map(|value| Self::value(&value)).flatten();
        let several = match &one {
            Some(_) => Vec::new(),
            None => Self::value(frame).unwrap_or_else(|| parts().collect()),
        };
        let one = one.and_then(|envelope| Self::of(frame, &envelope));
        one.into_iter().chain(several)
    }

    /// Parses a frame that is one JSON object or array; `None` for anything else, such as several values.
    fn value(json: &Bytes) -> Option<Vec<Self>> {
        if is_array(json) {
            let items: Vec<&RawValue> = serde_json::from_slice(json).ok()?;
            let envelopes = items
                .into_iter()
                .filter_map(|item| Envelope::read(item.get().as_bytes()));
            return Some(envelopes.filter_map(|envelope| Self::of(json, &envelope)).collect());
        }
        Envelope::read(json).map(|envelope| Self::of(json, &envelope).into_iter().collect())
    }

    fn of(frame: &Bytes, envelope: &Envelope<'_>) -> Option<Self> {
        let outcome = envelope.outcome(frame);
        if let (Some(method), Some(params)) = (envelope.method(), envelope.params) {
            if let Some(notification) = notification(frame, method, params) {
                return Some(Self::Notification(notification));
            }
            // Some gateways echo the request in its answer. Without a result or error, this is a request of the node.
            return Some(Self::Answer(envelope.id()?, outcome?));
        }
        Some(Self::Answer(envelope.id()?, outcome.unwrap_or_else(no_result)))
    }
}

/// Parses a notification; `None` where the parameters are not those of a notification.
fn notification(frame: &Bytes, method: Cow<'_, str>, params: &str) -> Option<Notification> {
    let slice = |raw: &RawValue| frame.slice_ref(raw.get().as_bytes());
    // Serde would read an array as the members in order, and an echoed request has an array.
    if !params.starts_with('{') {
        return None;
    }
    let params: Params<'_> = serde_json::from_str(params).ok()?;
    let notice = match (params.error, params.result) {
        (Some(error), _) => Notice::Ended(slice(error)),
        (None, Some(result)) => Notice::Event(slice(result)),
        (None, None) => return None,
    };
    Some(Notification {
        method: match method {
            Cow::Borrowed(name) => frame.slice_ref(name.as_bytes()),
            Cow::Owned(name) => name.into(),
        },
        subscription: params.subscription.get().to_owned(),
        notice,
    })
}

/// Returns the answer in the body of an HTTP response, `None` without one. One POST has one answer, so the id decides
/// only among several: nodes and gateways leave the id out, write `null` in errors, or make it a string (issue 11).
/// Without our id an error must be an object, since a gateway's own error page is not an answer of the node.
#[must_use]
pub(super) fn answer(body: &Bytes, id: u64) -> Option<Outcome> {
    let mut other = None;
    let mut look = |frame: &Bytes, envelope: &Envelope<'_>| {
        let outcome = envelope.outcome(frame);
        // A notification, or a request of the node.
        if envelope.method().is_some() && outcome.is_none() {
            return None;
        }
        if envelope.id() == Some(id) {
            return Some(outcome.unwrap_or_else(no_result));
        }
        let is_answer = !matches!(&outcome, Some(Outcome::Error(error)) if !error.starts_with(b"{"));
        other = other.take().or(outcome.filter(|_| is_answer));
        None
    };
    let own = match Envelope::read(body).filter(|_| !is_array(body)) {
        Some(envelope) => look(body, &envelope),
        None => values(body).find_map(|value| {
            if !is_array(&value) {
                return look(&value, &Envelope::read(&value)?);
            }
            let items: Vec<&RawValue> = serde_json::from_slice(&value).ok()?;
            let mut envelopes = items
                .into_iter()
                .filter_map(|item| Envelope::read(item.get().as_bytes()));
            envelopes.find_map(|envelope| look(&value, &envelope))
        }),
    };
    own.or(other)
}

/// Splits a frame into its JSON objects and arrays, in order.
fn values(frame: &Bytes) -> impl Iterator<Item = Bytes> {
    let mut splitter = Splitter::default();
    splitter.buffer().extend_from_slice(frame);
    iter::from_fn(move || splitter.next())
}

fn is_array(json: &[u8]) -> bool {
    json.trim_ascii_start().starts_with(b"[")
}

/// Returns `null`, the result of an answer with neither result nor error.
fn no_result() -> Outcome {
    Outcome::Result(Bytes::from_static(b"null"))
}

/// Returns the JSON-RPC request; `params` is JSON, empty for none.
#[must_use]
pub(super) fn request(id: u64, method: &str, params: &str) -> String {
    let params = if params.is_empty() { "[]" } else { params };
    if !is_method_name(method) {
        let method = serde_json::Value::from(method);
        return format!(r#"{{"jsonrpc":"2.0","id":{id},"method":{method},"params":{params}}}"#);
    }
    // One allocation of the exact length, which then becomes `Bytes` without another one.
    const PARTS: [&str; 4] = [r#"{"jsonrpc":"2.0","id":"#, r#","method":""#, r#"","params":"#, "}"];
    let digits = id.checked_ilog10().map_or(1, |log| log as usize + 1);
    let fixed: usize = PARTS.map(str::len).iter().sum();
    let mut request = String::with_capacity(fixed + digits + method.len() + params.len());
    request.push_str(PARTS[0]);
    // Writing to a string cannot fail.
    let _ = write!(request, "{id}");
    for part in [PARTS[1], method, PARTS[2], params, PARTS[3]] {
        request.push_str(part);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(frame: &str, expect: &str) {
        let messages = NodeMessage::parse(&Bytes::copy_from_slice(frame.as_bytes()));
        let shown: Vec<String> = messages
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
            // Both members: an error wins, and the result is not delivered as an event.
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
    fn several_values_in_one_frame_are_all_read() {
        let event = r#"{"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"0x1","result":"}{\""}}"#;
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":[{"a":"]"}]}"#;
        let (event_read, answer_read) = (r#""0x1":"}{\"""#, r#"1=[{"a":"]"}]"#);
        for between in ["", "\n", "\r\n", " \t", ",", "\u{1e}", "null", " 5 "] {
            let both = format!("{event}{between}{answer}");
            check(&both, &format!("{event_read} {answer_read}"));
            check(&format!("{both}{between}"), &format!("{event_read} {answer_read}"));
            check(
                &format!("[{event},{answer}]{between}{event}{between}[]{between}{answer}"),
                &format!("{event_read} {answer_read} {event_read} {answer_read}"),
            );
            // A value that is not valid JSON does not lose the others.
            check(
                &format!(r#"{{"id":nan}}{between}{both}"#),
                &format!("{event_read} {answer_read}"),
            );
            check(
                &format!(r#"{both}{between}{{"id":"#),
                &format!("{event_read} {answer_read}"),
            );
        }
    }

    #[test]
    fn an_odd_member_loses_no_message() {
        for id in ["7", "\"7\"", "7.0", "\"0x7\"", "\"0x07\"", " 7 "] {
            check(&format!(r#"{{"id":{id},"result":"0x1"}}"#), r#"7="0x1""#);
        }
        for id in ["null", "true", "\"x\"", "-7", "7.5", "[7]", "{}", "1e300"] {
            check(&format!(r#"{{"id":{id},"result":"0x1"}}"#), "");
        }
        for odd in [
            r#""error":null"#,
            r#""method":null"#,
            r#""method":5"#,
            r#""params":[]"#,
            r#""params":{"x":1}"#,
            r#""jsonrpc":2,"more":{"result":[]},"ID":9"#,
        ] {
            check(&format!(r#"{{"id":1,{odd},"result":0}}"#), "1=0");
        }
        check(r#"{"id":1,"method":"x","result":0}"#, "1=0");
        // Answers that echo the request.
        for params in [
            "[]",
            r#"["latest",false]"#,
            "[1,2,null]",
            "{}",
            "null",
            r#"{"subscription":7}"#,
        ] {
            let echo = format!(r#""id":1,"method":"eth_chainId","params":{params}"#);
            check(&format!(r#"{{{echo},"result":"0x1"}}"#), r#"1="0x1""#);
            check(&format!(r#"{{{echo},"error":{{"code":3}}}}"#), r#"1!{"code":3}"#);
        }
        check(r#"{"id":1,"method":"eth_chainId","params":[]}"#, "");
        check(r#"{"id":1,"result":null,"error":{"code":1}}"#, r#"1!{"code":1}"#);
        check(
            r#"{"id":null,"more":[],"method":"eth_subscription","params":{"more":{},"subscription":"0x1","result":{}}}"#,
            r#""0x1":{}"#,
        );
    }

    #[test]
    fn one_post_has_one_answer() {
        let check = |body: &str, expect: &str| {
            let read = match answer(&Bytes::copy_from_slice(body.as_bytes()), 1) {
                Some(Outcome::Result(json)) => String::from_utf8_lossy(&json).into_owned(),
                Some(Outcome::Error(json)) => format!("!{}", String::from_utf8_lossy(&json)),
                None => "none".into(),
            };
            assert_eq!(read, expect, "{body}");
        };
        let error = r#"{"code":3,"message":"execution reverted: no", "data":"0x08c379a0"}"#;
        for id in [
            "",
            r#""id":null,"#,
            r#""id":"1","#,
            r#""id":1.0,"#,
            r#""id":0,"#,
            r#""id":"x","#,
            r#""id":[],"#,
        ] {
            check(
                &format!(r#"{{"jsonrpc":"2.0",{id}"result":{{"a": 1}}}}"#),
                r#"{"a": 1}"#,
            );
            check(&format!(r#"{{"jsonrpc":"2.0",{id}"result":null}}"#), "null");
            check(
                &format!(r#"{{"jsonrpc":"2.0",{id}"error":{error}}}"#),
                &format!("!{error}"),
            );
            check(&format!(r#" [{{{id}"result":"0x1"}}] "#), r#""0x1""#);
        }
        check(r#"{"id":1}"#, "null");
        check(r#"{"id":1,"error":"no"}"#, r#"!"no""#);
        let echo = r#""method":"eth_call","params":[{},"latest"]"#;
        check(&format!(r#"{{{echo},"id":1,"result":"0x1"}}"#), r#""0x1""#);
        check(&format!(r#"{{{echo},"error":{error}}}"#), &format!("!{error}"));
        check(&format!(r#"{{{echo},"id":1}}"#), "none");
        check(r#"{"id":7,"result":7}{"id":1,"result":1}"#, "1");
        check(r#"[{"id":7,"result":7},{"id":1,"result":1}]"#, "1");
        check("{\"result\":7}\n{\"result\":8}", "7");
        check(
            r#"{"method":"eth_subscription","params":{"subscription":1,"result":5}} {"result":7}"#,
            "7",
        );
        for body in [
            "",
            "5",
            "null",
            "[]",
            "{}",
            "<html>",
            r#"{"id":7}"#,
            r#"{"error":"Bad Gateway"}"#,
            r#"{"message":"no","status":500}"#,
            r#"{"id":1,"result":"#,
        ] {
            check(body, "none");
        }
    }

    #[test]
    fn a_request_is_written_at_its_exact_length() {
        for id in [0, 9, 10, 99, 100, u64::MAX] {
            let request = request(id, "m", "[1]");
            assert_eq!(
                request,
                format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m","params":[1]}}"#)
            );
            assert_eq!(request.capacity(), request.len());
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
