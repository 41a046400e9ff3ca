//! A number of at most 64 bits as a node writes it in JSON.
//!
//! The execution API's specification knows one spelling, `"0x539"`. Nodes also write `"0x0539"`, `"0X539"`, `"1337"`,
//! `1337` and `1337.0` (issue 11): each of them is the same number to the readers in this file.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_json::value::RawValue;

/// Greatest height of a block: sums of heights, and their signed forms in metrics, cannot overflow below it.
pub const MAX_HEIGHT: u64 = i64::MAX as u64;

/// Bound up to which a double represents every integer, so that a number written as a double is exact (IEEE 754, 53
/// bits).
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Number of at most 64 bits, in any spelling.
///
/// A string of digits alone is decimal unless it begins with a zero (`"010"` is ambiguous); a string with other hex
/// digits needs its `0x`. `"0x"` is zero, as OpenEthereum wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(pub u64);

/// Height of a block, up to [`MAX_HEIGHT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Height(pub u64);

impl Quantity {
    /// Reads one JSON value; `None` if it is not a number of at most 64 bits (`null`, say).
    #[must_use]
    pub fn parse(json: &str) -> Option<u64> {
        let text = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let quantity = match text {
            // A string without escapes, which nearly all nodes write, needs no reader of JSON.
            Some(text) if !text.contains('\\') => Self::of_text(text),
            _ => serde_json::from_str(json).ok(),
        };
        quantity.map(|Self(number)| number)
    }

    fn of_text(text: &str) -> Option<Self> {
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some("") => 0,
            // `from_str_radix` accepts a sign too.
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
                u64::from_str_radix(digits, 16).ok()?
            }
            None if text == "0" || text.starts_with(|first: char| matches!(first, '1'..='9')) => text.parse().ok()?,
            _ => return None,
        };
        Some(Self(number))
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of at most 64 bits, as a hex string or otherwise")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity(number))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Quantity, E> {
                if number.fract() == 0.0 && (0.0..=MAX_EXACT).contains(&number) {
                    Ok(Quantity(number as u64))
                } else {
                    Err(E::custom(format_args!(
                        "{number} is not a valid number of at most 64 bits"
                    )))
                }
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Quantity, E> {
                Quantity::of_text(text)
                    .ok_or_else(|| E::custom(format_args!("{text:?} is not a valid number of at most 64 bits")))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl<'de> Deserialize<'de> for Height {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Quantity(number) = Quantity::deserialize(deserializer)?;
        if number <= MAX_HEIGHT {
            Ok(Self(number))
        } else {
            Err(D::Error::custom(format_args!("{number} is not a valid block number")))
        }
    }
}

/// Reads a member that decides nothing: `None` for `null` and for any value that is not a number. Use with
/// `#[serde(default, deserialize_with = "quantity::optional")]`, on JSON text in memory.
///
/// # Errors
/// If the text is not JSON.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(|value| Quantity::parse(value.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_in_every_spelling() {
        for (json, expect) in [
            (r#""0x0""#, Some(0)),
            (r#""0x""#, Some(0)),
            (r#""0x539""#, Some(1337)),
            (r#""0x0539""#, Some(1337)),
            (r#""0X539""#, Some(1337)),
            (r#""0xFf""#, Some(255)),
            (r#""1337""#, Some(1337)),
            (r#""0""#, Some(0)),
            ("1337", Some(1337)),
            ("1337.0", Some(1337)),
            ("1.337e3", Some(1337)),
            (" 7 ", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            (r#""18446744073709551615""#, Some(u64::MAX)),
            (r#""0xffffffffffffffff""#, Some(u64::MAX)),
            (
                r#""0x0000000000000000000000000000000000000000000000000000000000000539""#,
                Some(1337),
            ),
            (r#""\u0030x7""#, Some(7)),
            (r#""0x10000000000000000""#, None),
            ("18446744073709551616", None),
            ("1e19", None),
            ("-1", None),
            ("-0x1", None),
            (r#""-1""#, None),
            (r#""0x-1""#, None),
            (r#""0x+1""#, None),
            (r#""+1""#, None),
            ("1.5", None),
            (r#""1.5""#, None),
            (r#""ff""#, None),
            (r#""010""#, None),
            (r#""1f""#, None),
            (r#""0xg""#, None),
            (r#"" 0x1""#, None),
            (r#""""#, None),
            ("null", None),
            ("true", None),
            ("[1]", None),
            (r#"{"a":1}"#, None),
            ("", None),
            ("1 2", None),
        ] {
            assert_eq!(Quantity::parse(json), expect, "{json}");
        }
    }

    #[test]
    fn a_height_leaves_room_above_it() {
        let read = |json: &str| serde_json::from_str::<Height>(json).ok().map(|height| height.0);
        assert_eq!(read(r#""0x00ff""#), Some(255));
        assert_eq!(read(r#""0x7fffffffffffffff""#), Some(MAX_HEIGHT));
        for refused in [r#""0x8000000000000000""#, r#""0xffffffffffffffff""#, "null", "-1"] {
            assert_eq!(read(refused), None, "{refused}");
        }
    }

    #[test]
    fn an_optional_number_fails_nothing() {
        #[derive(serde::Deserialize)]
        struct Fields {
            #[serde(default, deserialize_with = "optional")]
            timestamp: Option<u64>,
        }
        for (json, expect) in [
            (r#"{"timestamp":"0x5"}"#, Some(5)),
            (r#"{"timestamp":5}"#, Some(5)),
            (r#"{"timestamp":null}"#, None),
            (r#"{"timestamp":[{}]}"#, None),
            (r#"{"timestamp":"0x10000000000000000"}"#, None),
            ("{}", None),
        ] {
            let fields: Fields = serde_json::from_str(json).expect(json);
            assert_eq!(fields.timestamp, expect, "{json}");
        }
    }
}
