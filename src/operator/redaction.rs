//! Redaction of a client's messages before an operator sees them.
//!
//! Parameters of a method that signs, writes, administers or sends may hold a password, a key or a transaction that is
//! not public yet: they are replaced. So is the result of a call, unless its request was seen and is none of these: the
//! request decides when it comes ([`discloses`]), so that neither a slow reader nor the client's choice of ids shows one.
//! Texts that look like a key or a token are replaced anywhere. A message that is not JSON is not shown.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

use crate::delivery::{Direction, Results};
use crate::door;

/// Text in place of what is not shown.
const HIDDEN: &str = "[hidden]";

/// Words in names of methods that send, in lower case.
const SENDING: [&str; 5] = ["send", "submit", "bundle", "private", "raw"];

/// Method of a request; one that is named twice is no request.
#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
}

/// Returns the methods of a request or batch; `None` if an item is something else.
fn methods(message: &[u8]) -> Option<Vec<Call<'_>>> {
    match message.trim_ascii_start().first()? {
        b'[' => serde_json::from_slice(message).ok(),
        _ => serde_json::from_slice(message).ok().map(|call| vec![call]),
    }
}

/// Checks if the results of all calls in a message of a client may be shown.
pub(super) fn discloses(message: &[u8]) -> bool {
    methods(message).is_some_and(|calls| calls.iter().all(|call| !is_hidden(&call.method)))
}

/// Returns a message as an operator may see it.
pub(super) fn redact(direction: Direction, text: &[u8]) -> String {
    let Ok(mut message) = serde_json::from_slice::<Value>(text) else {
        return format!("[not JSON, {} bytes]", text.len());
    };
    match direction {
        Direction::Received => {
            let is_clear = methods(text).is_some();
            each(&mut message, |members| request(members, is_clear));
        }
        Direction::Sent(Results::Hidden) => each(&mut message, hide_result),
        Direction::Sent(Results::Disclosed) => {}
    }
    mask(&mut message);
    message.to_string()
}

type Members = serde_json::Map<String, Value>;

/// Changes the message, or each item of a batch.
fn each(message: &mut Value, change: impl Fn(&mut Members)) {
    let items = match message {
        Value::Array(items) => &mut items[..],
        item => std::slice::from_mut(item),
    };
    items.iter_mut().filter_map(Value::as_object_mut).for_each(change);
}

fn request(members: &mut Members, is_clear: bool) {
    members.retain(|name, _| matches!(&**name, "jsonrpc" | "id" | "method" | "params"));
    let method = members.get("method").and_then(Value::as_str).unwrap_or_default();
    if is_clear && !is_hidden(method) {
        return;
    }
    if let Some(params) = members.get_mut("params") {
        *params = HIDDEN.into();
    }
}

fn hide_result(members: &mut Members) {
    if let Some(result) = members.get_mut("result") {
        *result = HIDDEN.into();
    }
    match members.get_mut("error") {
        Some(Value::Object(error)) => error.retain(|name, _| name == "code"),
        Some(error) => *error = HIDDEN.into(),
        None => {}
    }
}

/// Checks if parameters and result of a method are not shown.
fn is_hidden(method: &str) -> bool {
    let method = method.to_ascii_lowercase();
    door::acts(&method) || SENDING.iter().any(|word| method.contains(word))
}

/// Replaces texts that look like a key of headwater or a token.
fn mask(value: &mut Value) {
    match value {
        Value::String(text) if text.contains("hw_") || text.contains("eyJ") => *text = HIDDEN.to_owned(),
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::Object(members) => members.values_mut().for_each(mask),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIVED: Direction = Direction::Received;
    const SENT: Direction = Direction::Sent(Results::Disclosed);
    const SECRET: Direction = Direction::Sent(Results::Hidden);

    #[test]
    fn what_may_be_secret_is_hidden_and_the_rest_is_shown() {
        for (direction, message, shown) in [
            (
                RECEIVED,
                r#"{"id":1,"jsonrpc":"2.0","method":"eth_call","params":[{"to":"0x1"}]}"#,
                r#"{"id":1,"jsonrpc":"2.0","method":"eth_call","params":[{"to":"0x1"}]}"#,
            ),
            (SENT, r#"{"id":1,"result":"0x"}"#, r#"{"id":1,"result":"0x"}"#),
            (SECRET, r#"{"id":1,"result":"0x"}"#, r#"{"id":1,"result":"[hidden]"}"#),
            (
                RECEIVED,
                r#"{"id":"a","method":"personal_unlockAccount","params":["0x1","password"],"auth":"secret"}"#,
                r#"{"id":"a","method":"personal_unlockAccount","params":"[hidden]"}"#,
            ),
            (
                RECEIVED,
                r#"[{"id":2,"method":"eth_sendRawTransaction","params":["0x3"]},{"id":3,"method":"eth_call","params":[]}]"#,
                r#"[{"id":2,"method":"eth_sendRawTransaction","params":"[hidden]"},{"id":3,"method":"eth_call","params":[]}]"#,
            ),
            // Named twice: readers differ on which one counts.
            (
                RECEIVED,
                r#"{"id":2,"method":"personal_sign","params":["0x3"],"method":"eth_call"}"#,
                r#"{"id":2,"method":"eth_call","params":"[hidden]"}"#,
            ),
            (
                SECRET,
                r#"[{"id":2,"error":{"code":-32000,"message":"0x3","data":"0x3"}},{"id":3,"result":"0x4"},7]"#,
                r#"[{"error":{"code":-32000},"id":2},{"id":3,"result":"[hidden]"},7]"#,
            ),
            (SECRET, r#"{"id":2,"error":"0x3"}"#, r#"{"error":"[hidden]","id":2}"#),
            (RECEIVED, "password", "[not JSON, 8 bytes]"),
            (RECEIVED, "\"hw_key\"", "\"[hidden]\""),
            (
                RECEIVED,
                r#"{"id":4,"method":"eth_call","params":[{"x":["my hw_key","eyJhbGciOi"]}]}"#,
                r#"{"id":4,"method":"eth_call","params":[{"x":["[hidden]","[hidden]"]}]}"#,
            ),
            (
                SENT,
                r#"{"method":"eth_subscription","params":{"result":{"hash":"0x5"}}}"#,
                r#"{"method":"eth_subscription","params":{"result":{"hash":"0x5"}}}"#,
            ),
        ] {
            assert_eq!(redact(direction, message.as_bytes()), shown, "{message}");
        }
    }

    #[test]
    fn a_request_discloses_its_result_unless_it_may_be_secret() {
        let call = |method: &str| format!(r#"{{"id":1,"method":"{method}","params":[]}}"#);
        let long = format!(r#"{{"method":"eth_sign","params":["{}"]}}"#, "0".repeat(100_000));
        for (message, disclosed) in [
            (call("eth_call"), true),
            (call("eth_sign"), false),
            (call(r"eth_\u0073ign"), false),
            (long, false),
            (format!(" [{},{}]", call("eth_call"), call("eth_getLogs")), true),
            (format!("[{},{}]", call("eth_call"), call("personal_sign")), false),
            (format!("[{},7]", call("eth_call")), false),
            (r#"{"method":"eth_sign","method":"eth_call"}"#.into(), false),
            (r#"{"id":1}"#.into(), false),
            ("eth_call".into(), false),
            (String::new(), false),
        ] {
            assert_eq!(discloses(message.as_bytes()), disclosed, "{message}");
        }
    }

    #[test]
    fn methods_are_judged_regardless_of_case() {
        for method in [
            "ETH_SENDRAWTRANSACTION",
            "eth_sendPrivateTransaction",
            "admin_addPeer",
            "mev_sendBundle",
        ] {
            assert!(is_hidden(method), "{method}");
        }
        for method in ["eth_getLogs", "eth_subscribe", "debug_traceCall", ""] {
            assert!(!is_hidden(method), "{method}");
        }
    }
}
