//! Decoded values: as JSON, and as text for people.

use std::fmt::Write as _;

use alloy_dyn_abi::DynSolValue;
use alloy_primitives::hex;
use serde::{Serialize, Serializer};

use crate::text::Printable;

/// Bounds of a value in a line for people, so that one log cannot fill the screen: bytes, characters and elements.
const MAX_BYTES: usize = 64;
const MAX_CHARS: usize = 160;
const MAX_ELEMENTS: usize = 8;

/// A value as JSON: integers as decimal strings, since most readers of JSON round large numbers; bytes and addresses in
/// lower-case hex, as nodes write them.
pub(super) struct Json<'a>(pub(super) &'a DynSolValue);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            DynSolValue::Bool(is) => to.serialize_bool(*is),
            DynSolValue::Int(number, _) => to.collect_str(number),
            DynSolValue::Uint(number, _) => to.collect_str(number),
            DynSolValue::FixedBytes(word, size) => to.serialize_str(&hex::encode_prefixed(&word[..(*size).min(32)])),
            DynSolValue::Address(address) => to.collect_str(&format_args!("{address:#x}")),
            DynSolValue::Function(function) => to.serialize_str(&hex::encode_prefixed(function)),
            DynSolValue::Bytes(bytes) => to.serialize_str(&hex::encode_prefixed(bytes)),
            DynSolValue::String(text) => to.serialize_str(text),
            DynSolValue::Array(values) | DynSolValue::FixedArray(values) | DynSolValue::Tuple(values) => {
                to.collect_seq(values.iter().map(Json))
            }
        }
    }
}

/// Appends a value for people: printable, and shortened.
pub(super) fn write(value: &DynSolValue, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = match value {
        DynSolValue::Bool(is) => write!(out, "{is}"),
        DynSolValue::Int(number, _) => write!(out, "{number}"),
        DynSolValue::Uint(number, _) => write!(out, "{number}"),
        DynSolValue::FixedBytes(word, size) => write!(out, "{}", hex::encode_prefixed(&word[..(*size).min(32)])),
        DynSolValue::Address(address) => write!(out, "{address:#x}"),
        DynSolValue::Function(function) => write!(out, "{}", hex::encode_prefixed(function)),
        DynSolValue::Bytes(bytes) => write!(out, "{}", bytes_of(bytes)),
        DynSolValue::String(text) => {
            let (shown, more) = match text.char_indices().nth(MAX_CHARS) {
                Some((end, _)) => (&text[..end], "…"),
                None => (text.as_str(), ""),
            };
            let shown = shown.replace('\\', "\\\\").replace('"', "\\\"");
            write!(out, "\"{}\"{more}", Printable(&shown))
        }
        DynSolValue::Array(values) | DynSolValue::FixedArray(values) => {
            list(values, ['[', ']'], out);
            Ok(())
        }
        DynSolValue::Tuple(values) => {
            list(values, ['(', ')'], out);
            Ok(())
        }
    };
}

fn list(values: &[DynSolValue], [open, close]: [char; 2], out: &mut String) {
    out.push(open);
    for (at, value) in values.iter().take(MAX_ELEMENTS).enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write(value, out);
    }
    if values.len() > MAX_ELEMENTS {
        // Writing to a String cannot fail.
        let _ = write!(out, ", … {} in all", values.len());
    }
    out.push(close);
}

/// Returns bytes in hex, shortened.
pub(super) fn bytes_of(bytes: &[u8]) -> String {
    match bytes.get(..MAX_BYTES) {
        Some(first) if bytes.len() > MAX_BYTES => format!("{}…({} bytes)", hex::encode_prefixed(first), bytes.len()),
        _ => hex::encode_prefixed(bytes),
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{Address, B256, I256, U256};

    use super::*;

    #[test]
    fn values_are_written_for_programs_and_for_people() {
        let number = |number: u64| DynSolValue::Uint(U256::from(number), 256);
        for (value, json, text) in [
            (DynSolValue::Bool(true), "true", "true"),
            (
                DynSolValue::Uint(U256::MAX, 256),
                "\"115792089237316195423570985008687907853269984665640564039457584007913129639935\"",
                "115792089237316195423570985008687907853269984665640564039457584007913129639935",
            ),
            (DynSolValue::Int(I256::MINUS_ONE, 8), "\"-1\"", "-1"),
            (
                DynSolValue::Address(Address::repeat_byte(0xAB)),
                "\"0xabababababababababababababababababababab\"",
                "0xabababababababababababababababababababab",
            ),
            (
                DynSolValue::FixedBytes(B256::repeat_byte(0x12), 4),
                "\"0x12121212\"",
                "0x12121212",
            ),
            (DynSolValue::Bytes(vec![1, 2]), "\"0x0102\"", "0x0102"),
            (
                DynSolValue::String("\u{1b}]0;\"\\".into()),
                r#""\u001b]0;\"\\""#,
                r#""\u{1b}]0;\"\\""#,
            ),
            (
                DynSolValue::Tuple(vec![number(1), DynSolValue::Array(vec![number(2), number(3)])]),
                r#"["1",["2","3"]]"#,
                "(1, [2, 3])",
            ),
        ] {
            assert_eq!(serde_json::to_string(&Json(&value)).unwrap(), json);
            let mut out = String::new();
            write(&value, &mut out);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn a_line_for_people_stays_short() {
        let mut out = String::new();
        write(&DynSolValue::Bytes(vec![7; 100]), &mut out);
        assert!(out.ends_with("07…(100 bytes)"), "{out}");
        out.clear();
        write(&DynSolValue::String("é".repeat(1_000)), &mut out);
        assert_eq!(out.chars().count(), MAX_CHARS + 3);
        out.clear();
        write(&DynSolValue::Array(vec![DynSolValue::Bool(true); 9]), &mut out);
        assert!(out.ends_with("true, … 9 in all]"), "{out}");
    }
}
