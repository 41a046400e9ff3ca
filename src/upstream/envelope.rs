//! Members of a JSON-RPC message of a node, as JSON text.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::jsonrpc::Outcome;
use crate::plain_json::PlainJson;
use crate::quantity::Quantity;

/// A JSON-RPC message with its members as JSON text, so that a malformed member does not lose the others.
#[derive(Debug, Default, PartialEq, serde::Deserialize)]
#[serde(default)]
pub(super) struct Envelope<'a> {
    #[serde(borrow, deserialize_with = "text")]
    id: Option<&'a str>,
    /// `null` is a result like any other.
    #[serde(borrow, deserialize_with = "text_or_null")]
    result: Option<&'a str>,
    #[serde(borrow, deserialize_with = "text")]
    error: Option<&'a str>,
    #[serde(borrow, deserialize_with = "text")]
    method: Option<&'a str>,
    #[serde(borrow, deserialize_with = "text")]
    pub(super) params: Option<&'a str>,
}

/// Deserializes a present member as `Some`, even if it is `null`.
pub(super) fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn text_or_null<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a str>, D::Error> {
    Ok(present(deserializer)?.map(RawValue::get))
}

fn text<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a str>, D::Error> {
    Ok(text_or_null(deserializer)?.filter(|text| *text != "null"))
}

impl<'a> Envelope<'a> {
    pub(super) fn read(json: &'a [u8]) -> Option<Self> {
        Self::read_plain(json).or_else(|| Self::read_any(json))
    }

    fn read_any(json: &'a [u8]) -> Option<Self> {
        // Serde would read an array as the members in order.
        let is_object = json.trim_ascii_start().starts_with(b"{");
        is_object.then(|| serde_json::from_slice(json).ok()).flatten()
    }

    /// Reads a plain text in one pass; geth ends each with a newline.
    fn read_plain(json: &'a [u8]) -> Option<Self> {
        let (mut own, mut seen) = (Self::default(), 0u8);
        let mut json = PlainJson::new(json.trim_ascii_end())?;
        json.object(|json, key| {
            let value = json.value()?;
            let (bit, member) = match key {
                "id" => (1, &mut own.id),
                "result" => (2, &mut own.result),
                "error" => (4, &mut own.error),
                "method" => (8, &mut own.method),
                "params" => (16, &mut own.params),
                _ => return Some(()),
            };
            *member = (value != "null" || key == "result").then_some(value);
            let is_repeated = seen & bit != 0;
            seen |= bit;
            (!is_repeated).then_some(())
        })?;
        json.is_at_end().then_some(own)
    }

    /// Returns our call's id; some gateways send it back as a string or as a double.
    pub(super) fn id(&self) -> Option<u64> {
        self.id.and_then(Quantity::parse)
    }

    pub(super) fn method(&self) -> Option<Cow<'a, str>> {
        serde_json::from_str(self.method?).ok()
    }

    /// Returns the outcome; `None` without result and error.
    pub(super) fn outcome(&self, frame: &Bytes) -> Option<Outcome> {
        let slice = |text: &str| frame.slice_ref(text.as_bytes());
        match (self.error, self.result) {
            (Some(error), _) => Some(Outcome::Error(slice(error))),
            (None, Some(result)) => Some(Outcome::Result(slice(result))),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_messages_are_read_as_others_are() {
        let result = r#""result":[{"a":"0x1","b":[null,true,7]}]"#;
        for (message, is_plain) in [
            (format!(r#"{{"jsonrpc":"2.0","id":1,{result}}}"#), true),
            (format!("{{\"jsonrpc\":\"2.0\",\"id\":1,{result}}}\n"), true),
            (format!(r#"{{{result},"id":"0x1","more":{{}}}}"#), true),
            (
                r#"{"id":1,"result":null,"error":null,"method":null,"params":null}"#.to_owned(),
                true,
            ),
            (
                r#"{"method":"eth_subscription","params":{"subscription":"0x1","result":{}}}"#.to_owned(),
                true,
            ),
            ("{}".to_owned(), true),
            (format!(r#"{{"id": 1,{result}}}"#), false),
            (r#"{"id":1,"result":"a\u0041"}"#.to_owned(), false),
            (r#"{"id":1,"result":1.5}"#.to_owned(), false),
            // A repeated member is an error to serde.
            (format!(r#"{{"id":null,"id":1,{result}}}"#), false),
            (format!(r#"{{{result},{result}}}"#), false),
            (format!(r#"{{"id":1,{result}}} {{}}"#), false),
            ("[]".to_owned(), false),
            ("7".to_owned(), false),
        ] {
            let (read, any) = (
                Envelope::read_plain(message.as_bytes()),
                Envelope::read_any(message.as_bytes()),
            );
            assert_eq!(read.is_some(), is_plain, "{message}");
            assert!(read.is_none() || read == any, "{message}");
            assert_eq!(Envelope::read(message.as_bytes()), any, "{message}");
        }
    }
}
