//! Subscriptions of a connection by the node's id, in any spelling.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::quantity::Quantity;

/// Map by ids as JSON texts; two spellings of one id are one key.
#[derive(Debug)]
pub(super) struct Feeds<T>(HashMap<String, T>);

impl<T> Default for Feeds<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Feeds<T> {
    pub(super) fn get(&self, id: &str) -> Option<&T> {
        self.0.get(&key(id))
    }

    pub(super) fn contains_key(&self, id: &str) -> bool {
        self.get(id).is_some()
    }

    pub(super) fn insert(&mut self, id: String, feed: T) -> Option<T> {
        self.0.insert(key(&id), feed)
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<T> {
        self.0.remove(&key(id))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Checks if an answer grants a subscription: a number or a non-blank string does. Gateways that do not support
/// subscriptions answer `false`, `null` or `""`.
pub(super) fn is_id(json: &str) -> bool {
    match serde_json::from_str(json) {
        Ok(serde_json::Value::String(text)) => !text.trim().is_empty(),
        Ok(serde_json::Value::Number(_)) => true,
        _ => false,
    }
}

/// Returns the same text for all spellings of an id.
///
/// Nodes grant `"0x1f"` and announce `31`, `"0x1F"` or `"0x001f"` (issue 11): a number is the same in each. Hex
/// digits without a prefix, as in a UUID, are the same in both cases. All else stays as it is: Substrate's ids
/// distinguish case.
pub(super) fn key(id: &str) -> String {
    let id = id.trim();
    if let Some(number) = Quantity::parse(id) {
        return format!("{number:#x}");
    }
    let Ok(text) = serde_json::from_str::<Cow<'_, str>>(id) else {
        // A number above 64 bits is written in decimal.
        return id
            .parse()
            .map_or_else(|_| id.to_owned(), |number: u128| format!("{number:#x}"));
    };
    let is_hex = |text: &str| text.bytes().all(|digit| digit.is_ascii_hexdigit());
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if is_hex(digits) => format!("0x{}", digits.trim_start_matches('0').to_ascii_lowercase()),
        None if is_hex(&text.replace('-', "")) => match text.parse::<u128>() {
            Ok(number) if !text.starts_with('0') => format!("{number:#x}"),
            _ => format!("\"{}\"", text.to_ascii_lowercase()),
        },
        _ => format!("\"{text}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_number_or_a_text() {
        for id in [
            r#""0x1f""#,
            "7",
            r#""a-b""#,
            "1e3",
            "340282366920938463463374607431768211456",
        ] {
            assert!(is_id(id), "{id}");
        }
        for other in ["null", "false", "true", r#""""#, r#"" ""#, "[]", r#"["0x1"]"#, "{}", ""] {
            assert!(!is_id(other), "{other}");
        }
    }

    #[test]
    fn an_id_is_the_same_in_every_spelling() {
        for same in [
            &[
                r#""0x1f""#,
                r#""0x1F""#,
                r#""0X1f""#,
                r#""0x001f""#,
                "31",
                "31.0",
                r#""31""#,
                " 31 ",
            ][..],
            &[
                r#""0x9cef478923ff08bf67fde6c64013158d""#,
                r#""0x9CEF478923FF08BF67FDE6C64013158D""#,
                r#""0x009cef478923ff08bf67fde6c64013158d""#,
                "208601977208117116436529228571550619021",
                r#""208601977208117116436529228571550619021""#,
            ],
            &["0", r#""0x0""#, r#""0x""#, r#""0x00""#],
            &[
                r#""67e55044-10b1-426f-9247-bb680e5fe0c8""#,
                r#""67E55044-10B1-426F-9247-BB680E5FE0C8""#,
            ],
            &[r#""\u0030x1e""#, r#""0x1e""#],
        ] {
            for id in same {
                assert_eq!(key(id), key(same[0]), "{id}");
            }
        }
        let apart = [
            r#""0x1f""#,
            r#""1f""#,
            r#""0x1f0""#,
            r#""V9gxRZ3hTuKwaMFo""#,
            r#""v9gxrz3htukwamfo""#,
            r#""0xzz""#,
            r#""0xZZ""#,
            r#""""#,
            "null",
            r#""null""#,
            "true",
            "-1",
            "1.5",
            "[1]",
        ];
        for (i, one) in apart.iter().enumerate() {
            for other in &apart[i + 1..] {
                assert_ne!(key(one), key(other), "{one} {other}");
            }
        }
    }
}
