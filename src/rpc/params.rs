//! Parameters of a call: one text for all that mean the same, and the block that one of them names.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::ops::Range;

use alloy_primitives::B256;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::quantity::Height;

/// Returns the positional parameters, empty if there are none; `None` if the text is not an array.
#[must_use]
pub(super) fn args(params: &str) -> Option<Vec<&RawValue>> {
    if params.is_empty() {
        return Some(Vec::new());
    }
    serde_json::from_str(params).ok()
}

/// Returns a text that is the same for parameters that mean the same: no spaces, members sorted by name, hexadecimal
/// in lower case, each number and character written in one way. `None` for an object with two members of one name in
/// any case, which nodes read in different ways, for numbers that a double does not distinguish, for text that is not
/// JSON, and for text that is too long or too deep.
#[must_use]
pub(super) fn canonical(params: &str) -> Option<String> {
    if params.len() > MAX_LENGTH {
        return None;
    }
    let mut out = String::with_capacity(params.len());
    if params.is_empty() {
        out.push_str("[]");
        return Some(out);
    }
    let mut json = serde_json::Deserializer::from_str(params);
    let canonical = Canonical {
        out: &mut out,
        depth: MAX_DEPTH,
    };
    canonical.deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(out)
}

/// Longest parameters, in bytes: the code of a contract fits, in hexadecimal (EIP-3860: 49,152 bytes).
const MAX_LENGTH: usize = 128 << 10;

/// Most nesting levels; no call in use is deeper: `eth_call` with overrides of storage has five.
const MAX_DEPTH: usize = 12;

/// Bound below which a double represents every integer (2^53).
const MAX_DOUBLE: f64 = 9_007_199_254_740_992.0;

/// Writer of canonical JSON, in one pass over the input: each call whose answer may be cached needs this.
struct Canonical<'o> {
    out: &'o mut String,
    depth: usize,
}

impl Canonical<'_> {
    fn inner<E: de::Error>(&mut self) -> Result<Canonical<'_>, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom("too deep"))?;
        Ok(Canonical { out: self.out, depth })
    }

    fn text<E: de::Error>(&mut self, text: &str) -> Result<(), E> {
        let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.bytes().all(is_plain) {
            self.out.push('"');
            self.out.push_str(text);
            self.out.push('"');
        } else {
            self.out.push_str(&serde_json::to_string(text).map_err(E::custom)?);
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Canonical<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Canonical<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.out.push_str("null");
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.out.push_str(if value { "true" } else { "false" });
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        write!(self.out, "{value}").map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        write!(self.out, "{value}").map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        if value.abs() >= MAX_DOUBLE || value == 0.0 && value.is_sign_negative() {
            return Err(E::custom("not told apart from others"));
        }
        // Never written as an integer: to a node 1.0 is not one.
        write!(self.out, "{value:?}").map_err(E::custom)
    }

    fn visit_str<E: de::Error>(mut self, value: &str) -> Result<(), E> {
        if !is_hex(value) {
            return self.text(value);
        }
        self.out.push('"');
        let from = self.out.len();
        self.out.push_str(value);
        self.out[from..].make_ascii_lowercase();
        self.out.push('"');
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.out.push('[');
        let from = self.out.len();
        while items.next_element_seed(self.inner()?)?.is_some() {
            self.out.push(',');
        }
        self.out.truncate(from.max(self.out.len() - 1));
        self.out.push(']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.out.push('{');
        let from = self.out.len();
        let mut members: Vec<(Cow<'de, str>, Range<usize>)> = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            let start = self.out.len() - from;
            self.text(&name)?;
            self.out.push(':');
            map.next_value_seed(self.inner()?)?;
            self.out.push(',');
            members.push((name, start..self.out.len() - from));
        }
        let order = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|name| name.bytes().map(|byte| byte.to_ascii_lowercase()));
            a.cmp(b)
        };
        if !members.is_sorted_by(|(a, _), (b, _)| order(a, b).is_lt()) {
            members.sort_by(|(a, _), (b, _)| order(a, b));
            if members
                .windows(2)
                .any(|pair| pair[0].0.eq_ignore_ascii_case(&pair[1].0))
            {
                return Err(de::Error::custom("a member stands twice"));
            }
            let unsorted = self.out.split_off(from);
            for (_, member) in members {
                self.out.push_str(&unsorted[member]);
            }
        }
        self.out.truncate(from.max(self.out.len() - 1));
        self.out.push('}');
        Ok(())
    }
}

fn is_hex(text: &str) -> bool {
    text.strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Name of a member, borrowed if it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Block, as a parameter names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockName {
    /// The newest block.
    Latest,
    /// `safe` or `finalized`, which move with the head.
    Moving,
    /// The pending block.
    Pending,
    /// Block by number; `earliest` is 0.
    Number(u64),
    /// Block by hash.
    Hash(B256),
    /// Block by hash, as long as it is canonical: the answer may change.
    Canonical(B256),
}

impl BlockName {
    /// Reads a tag, a number, a hash, or the object of EIP-1898. `None` for anything else, which is left to the node.
    #[must_use]
    pub(super) fn parse(raw: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Eip1898<'a> {
            #[serde(borrow)]
            block_number: Option<&'a str>,
            block_hash: Option<B256>,
            require_canonical: Option<bool>,
        }
        if raw.get().starts_with('{') {
            let own: Eip1898<'_> = serde_json::from_str(raw.get()).ok()?;
            return match (own.block_number, own.block_hash) {
                (Some(number), None) => Self::named(number),
                (None, Some(hash)) if own.require_canonical == Some(true) => Some(Self::Canonical(hash)),
                (None, Some(hash)) => Some(Self::Hash(hash)),
                _ => None,
            };
        }
        Self::named(serde_json::from_str(raw.get()).ok()?)
    }

    fn named(text: &str) -> Option<Self> {
        Some(match text {
            "latest" => Self::Latest,
            "earliest" => Self::Number(0),
            "pending" => Self::Pending,
            "safe" | "finalized" => Self::Moving,
            _ => {
                let digits = text.strip_prefix("0x")?;
                // geth rejects leading zeros and more than 64 bits with its own error.
                match digits.len() {
                    64 => Self::Hash(text.parse().ok()?),
                    1 => Self::Number(u64::from_str_radix(digits, 16).ok()?),
                    2..=16 if !digits.starts_with('0') => Self::Number(u64::from_str_radix(digits, 16).ok()?),
                    _ => return None,
                }
            }
        })
    }
}

/// Returns the value of one member of a JSON object, the last of equal names; other values are skipped unread.
#[must_use]
pub(super) fn member<'a>(json: &'a [u8], name: &str) -> Option<&'a RawValue> {
    struct Find<'n>(&'n str);
    impl<'de> DeserializeSeed<'de> for Find<'_> {
        type Value = Option<&'de RawValue>;

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_any(self)
        }
    }
    impl<'de> Visitor<'de> for Find<'_> {
        type Value = Option<&'de RawValue>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(Name(own)) = map.next_key()? {
                if own == self.0 {
                    found = Some(map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Find(name).deserialize(&mut deserializer).ok().flatten()
}

/// Returns a block number as a node spells it, up to [`MAX_HEIGHT`](crate::quantity::MAX_HEIGHT).
#[must_use]
pub(super) fn quantity(raw: &RawValue) -> Option<u64> {
    serde_json::from_str::<Height>(raw.get()).ok().map(|height| height.0)
}

/// Returns the value of a member that is a block number, read by [`quantity`].
#[must_use]
pub(super) fn number_of(json: &[u8], name: &str) -> Option<u64> {
    member(json, name).and_then(quantity)
}

/// Returns the block number of the last entry of a list of logs or receipts, which is the newest: nodes list them in
/// the order of their blocks. The list may be many megabytes, so it is not parsed as JSON: the last `"blockNumber"`
/// is searched from the end. The same name inside a string is written with `\"` and does not match.
#[must_use]
pub(super) fn last_block_number(list: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"blockNumber\"";
    let objects = list.trim_ascii_end().strip_suffix(b"]")?.trim_ascii_end();
    // A list of hashes may be as long, and has no such member.
    objects.strip_suffix(b"}")?;
    let at = objects.windows(NAME.len()).rposition(|own| own == NAME)?;
    let value = objects[at + NAME.len()..].trim_ascii_start().strip_prefix(b":")?;
    // Up to the next member, or to the end of the object.
    let end = value.iter().position(|byte| matches!(byte, b',' | b'}'))?;
    let height: Height = serde_json::from_slice(&value[..end]).ok()?;
    Some(height.0)
}

/// Returns the block hash of each object of a list of logs or receipts, and of the logs in these; `None` for a value
/// that is not a hash. The bytes are searched, as in [`last_block_number`].
pub(super) fn block_hashes(list: &[u8]) -> impl Iterator<Item = Option<B256>> {
    const NAME: &[u8] = b"\"blockHash\"";
    let mut rest = list;
    std::iter::from_fn(move || {
        loop {
            let at = rest.iter().position(|&byte| byte == b'"')?;
            rest = &rest[at..];
            let Some(behind) = rest.strip_prefix(NAME) else {
                rest = &rest[1..];
                continue;
            };
            rest = behind;
            if let Some(value) = behind.trim_ascii_start().strip_prefix(b":") {
                let quoted = value.trim_ascii_start().strip_prefix(b"\"");
                let hash = quoted.and_then(|text| text.split(|&byte| byte == b'"').next());
                return Some(hash.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_means_the_same_has_one_text() {
        let text = |params: &str| canonical(params).unwrap_or_else(|| "none".into());
        for (params, expect) in [
            ("", "[]"),
            ("[ ]", "[]"),
            (
                r#"[ {"to":"0xAB", "data":"0xcD"} , "latest"]"#,
                r#"[{"data":"0xcd","to":"0xab"},"latest"]"#,
            ),
            (r#"[{"d\u0061ta":"0x"}]"#, r#"[{"data":"0x"}]"#),
            // Values that may differ in meaning keep different texts.
            (
                r#"[1.0, 1, -1, 1e0, 25.50, 18446744073709551615, "\u0030xAB", "\/"]"#,
                r#"[1.0,1,-1,1.0,25.5,18446744073709551615,"0xab","/"]"#,
            ),
            ("[18446744073709551617]", "none"),
            ("[9007199254740993.0]", "none"),
            (
                "[{},[],{\"b\":{},\"a\":[[],true,null]}]",
                "[{},[],{\"a\":[[],true,null],\"b\":{}}]",
            ),
            (r#"["0Xab","0xzz","AB","a b"]"#, r#"["0Xab","0xzz","AB","a b"]"#),
            (r#"[{"a":1,"a":2}]"#, "none"),
            (r#"[{"b":{"a":1,"\u0061":2}}]"#, "none"),
            (r#"[{"data":1,"to":2,"DATA":3}]"#, "none"),
            ("[-0]", "none"),
            ("nonsense", "none"),
            ("[1] 2", "none"),
            (&"[".repeat(100_000), "none"),
            (&format!("{}{}", "[".repeat(13), "]".repeat(13)), "none"),
        ] {
            assert_eq!(text(params), expect, "{params}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost(value in any_json()) {
            let text = serde_json::to_string_pretty(&value).unwrap();
            let short = canonical(&text).unwrap();
            prop_assert_eq!(canonical(&short), Some(short.clone()));
            prop_assert_eq!(serde_json::from_str::<Value>(&short).unwrap(), value);
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-zG-Z\"\\\\ ]{0,6}".prop_map(Value::from),
            "0x[0-9a-f]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z\" ]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::from(serde_json::Map::from_iter(map))),
            ]
        })
    }

    #[test]
    fn blocks_as_parameters_name_them() {
        let hash = format!("\"{:#x}\"", B256::repeat_byte(7));
        let parse = |text: &str| {
            let raw: &RawValue = serde_json::from_str(text).unwrap();
            BlockName::parse(raw)
        };
        let by_hash = Some(BlockName::Hash(B256::repeat_byte(7)));
        for (text, expect) in [
            (r#""latest""#, Some(BlockName::Latest)),
            (r#""earliest""#, Some(BlockName::Number(0))),
            (r#""finalized""#, Some(BlockName::Moving)),
            (r#""pending""#, Some(BlockName::Pending)),
            (r#""0x0""#, Some(BlockName::Number(0))),
            (r#""0x1b4""#, Some(BlockName::Number(436))),
            (r#""0x01b4""#, None),
            (r#""0x""#, None),
            (r#""LATEST""#, None),
            (r#""0x11111111111111111""#, None),
            ("5", None),
            ("null", None),
            (&hash, by_hash),
            (&format!(r#"{{"blockHash":{hash}}}"#), by_hash),
            (&format!(r#"{{"blockHash":{hash},"requireCanonical":false}}"#), by_hash),
            (
                &format!(r#"{{"blockHash":{hash},"requireCanonical":true}}"#),
                Some(BlockName::Canonical(B256::repeat_byte(7))),
            ),
            (r#"{"blockNumber":"0x5"}"#, Some(BlockName::Number(5))),
            (r#"{"blockNumber":"0x5","x":1}"#, None),
            (&format!(r#"{{"blockHash":{hash},"blockNumber":"0x5"}}"#), None),
        ] {
            assert_eq!(parse(text), expect, "{text}");
        }
    }

    #[test]
    fn the_last_of_a_list_says_how_far_it_goes() {
        for (list, number) in [
            (r#"[{"blockNumber":"0x1"},{"blockNumber":"0x2a"}]"#, Some(42)),
            (
                "[ {\"a\":1, \"blockNumber\" : \"0x2\" ,\"removed\":false}\n]\n",
                Some(2),
            ),
            (r#"[{"blockNumber":"0x2","data":"\"blockNumber\":\"0x3\""}]"#, Some(2)),
            (r#"[{"blockNumber":null}]"#, None),
            (r#"[{"blockNumber":5}]"#, Some(5)),
            (r#"[{"blockNumber":"1337","logIndex":0}]"#, Some(1337)),
            (r#"[{"logIndex":0,"blockNumber":"0X539"}]"#, Some(1337)),
            (r#"[{"blockNumber":"0x+5"}]"#, None),
            (r#"[{"blockNumber":9223372036854775808}]"#, None),
            (r#"[{"blockNumber":"0x11111111111111111"}]"#, None),
            (r#"[{"blockNumber"}]"#, None),
            (r#"[{"blockNumber":"0x"#, None),
            (r#"["0x2"]"#, None),
            ("[]", None),
            ("null", None),
            ("", None),
        ] {
            assert_eq!(last_block_number(list.as_bytes()), number, "{list}");
        }
    }

    #[test]
    fn one_member_is_found_wherever_it_stands() {
        let json = br#"{"a":{"number":"0x1"},"number":"0x2","b":[{"number":3}]}"#;
        assert_eq!(member(json, "number").and_then(quantity), Some(2));
        assert!(member(json, "c").is_none());
        for other in [&b"null"[..], b"[1]", b"5", b"{", b""] {
            assert!(member(other, "number").is_none());
        }
    }
}
