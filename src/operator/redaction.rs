//! Redaction of a client's messages before an operator sees them.
//!
//! Parameters of a method that signs, writes, administers or sends may hold a password, a key or a transaction that is
//! not public yet: they are replaced, and so is the result of the call. Texts that look like a key or a token are
//! replaced anywhere. A message that is not JSON is not shown.

use std::collections::VecDeque;

use serde_json::Value;

use crate::delivery::Direction;
use crate::door;

/// Text in place of what is not shown.
const HIDDEN: &str = "[hidden]";

/// Most calls under way whose results will be hidden; beyond them the oldest one's result is the one that is shown.
const MAX_CALLS: usize = 1024;

/// Words in names of methods that send, in lower case.
const SENDING: [&str; 5] = ["send", "submit", "bundle", "private", "raw"];

/// Redaction of one client's messages.
#[derive(Debug, Default)]
pub(super) struct Redaction {
    /// Ids of calls whose results are not shown, as JSON.
    hidden: VecDeque<String>,
}

impl Redaction {
    /// Returns a message as an operator may see it.
    pub(super) fn redact(&mut self, direction: Direction, text: &[u8]) -> String {
        let Ok(mut message) = serde_json::from_slice::<Value>(text) else {
            return format!("[not JSON, {} bytes]", text.len());
        };
        match &mut message {
            Value::Array(items) => items.iter_mut().for_each(|item| self.item(direction, item)),
            item => self.item(direction, item),
        }
        mask(&mut message);
        message.to_string()
    }

    fn item(&mut self, direction: Direction, item: &mut Value) {
        let Value::Object(members) = item else {
            return;
        };
        let id = members.get("id").map(Value::to_string);
        match direction {
            Direction::Received => {
                members.retain(|name, _| matches!(&**name, "jsonrpc" | "id" | "method" | "params"));
                let method = members.get("method").and_then(Value::as_str).unwrap_or_default();
                if !is_hidden(method) {
                    return;
                }
                if let Some(params) = members.get_mut("params") {
                    *params = HIDDEN.into();
                }
                if self.hidden.len() == MAX_CALLS {
                    self.hidden.pop_front();
                }
                self.hidden.extend(id);
            }
            Direction::Sent => {
                let call = id.and_then(|id| self.hidden.iter().position(|own| *own == id));
                let Some(call) = call else { return };
                self.hidden.remove(call);
                if let Some(result) = members.get_mut("result") {
                    *result = HIDDEN.into();
                }
                if let Some(Value::Object(error)) = members.get_mut("error") {
                    error.retain(|name, _| name == "code");
                }
            }
        }
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
    const SENT: Direction = Direction::Sent;

    #[test]
    fn what_may_be_secret_is_hidden_and_the_rest_is_shown() {
        let mut redaction = Redaction::default();
        for (direction, message, shown) in [
            (
                RECEIVED,
                r#"{"id":1,"jsonrpc":"2.0","method":"eth_call","params":[{"to":"0x1"}]}"#,
                r#"{"id":1,"jsonrpc":"2.0","method":"eth_call","params":[{"to":"0x1"}]}"#,
            ),
            (SENT, r#"{"id":1,"result":"0x"}"#, r#"{"id":1,"result":"0x"}"#),
            (
                RECEIVED,
                r#"{"id":"a","method":"personal_unlockAccount","params":["0x1","password"],"auth":"secret"}"#,
                r#"{"id":"a","method":"personal_unlockAccount","params":"[hidden]"}"#,
            ),
            (SENT, r#"{"id":"b","result":true}"#, r#"{"id":"b","result":true}"#),
            (
                SENT,
                r#"{"id":"a","result":"0x2"}"#,
                r#"{"id":"a","result":"[hidden]"}"#,
            ),
            (SENT, r#"{"id":"a","result":"0x2"}"#, r#"{"id":"a","result":"0x2"}"#),
            (
                RECEIVED,
                r#"[{"id":2,"method":"eth_sendRawTransaction","params":["0x3"]},{"id":3,"method":"eth_sign","params":[]},7]"#,
                r#"[{"id":2,"method":"eth_sendRawTransaction","params":"[hidden]"},{"id":3,"method":"eth_sign","params":"[hidden]"},7]"#,
            ),
            (
                SENT,
                r#"[{"id":2,"error":{"code":-32000,"message":"0x3","data":"0x3"}},{"id":3,"result":"0x4"}]"#,
                r#"[{"error":{"code":-32000},"id":2},{"id":3,"result":"[hidden]"}]"#,
            ),
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
            assert_eq!(redaction.redact(direction, message.as_bytes()), shown, "{message}");
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
        let mut redaction = Redaction::default();
        for id in 0..2 * MAX_CALLS {
            let call = format!(r#"{{"id":{id},"method":"eth_sign"}}"#);
            redaction.redact(RECEIVED, call.as_bytes());
        }
        assert_eq!(redaction.hidden.len(), MAX_CALLS);
    }
}
