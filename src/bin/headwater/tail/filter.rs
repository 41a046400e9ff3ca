//! The filter of logs that the flags describe.

use std::str::FromStr;

use alloy_primitives::{Address, B256};
use serde_json::{Map, Value, json};

/// Most topics of a log.
const MAX_TOPICS: usize = 4;

/// Topics that are accepted at one position; empty for any topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice(Vec<B256>);

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text, "any" | "*") {
            return Ok(Self::default());
        }
        text.split(',').map(topic).collect::<Result<_, _>>().map(Self)
    }
}

/// Parses a topic: 32 bytes, or an address, which is padded as an indexed one is.
fn topic(text: &str) -> Result<B256, String> {
    let is_hex = text
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    match text.len() {
        66 if is_hex => text.parse().map_err(|_| "not a topic".to_owned()),
        42 if is_hex => text
            .parse::<Address>()
            .map(|address| address.into_word())
            .map_err(|_| "not a topic".to_owned()),
        _ => Err("a topic is 0x and 64 hex digits, an address, several of them with commas between, or any".to_owned()),
    }
}

/// A filter of logs, as `eth_subscribe` and `eth_getLogs` take it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogFilter {
    addresses: Vec<Address>,
    topics: Vec<Choice>,
}

impl LogFilter {
    /// Combines the flags: the first position accepts the events if there are any, and the topics follow.
    ///
    /// # Errors
    /// If there are more positions than a log has topics.
    pub(super) fn new(addresses: Vec<Address>, events: Vec<B256>, topics: Vec<Choice>) -> Result<Self, String> {
        let first = (!events.is_empty()).then_some(Choice(events));
        let has_event = first.is_some();
        let topics: Vec<Choice> = first.into_iter().chain(topics).collect();
        match topics.len() > MAX_TOPICS {
            true if has_event => {
                Err("a log has at most 4 topics, and --event is the first: give --topic 3 times at most".into())
            }
            true => Err("a log has at most 4 topics: give --topic 4 times at most".into()),
            false => Ok(Self { addresses, topics }),
        }
    }

    /// Returns the filter as JSON, without blocks.
    pub(super) fn json(&self) -> Map<String, Value> {
        let mut filter = Map::new();
        if !self.addresses.is_empty() {
            filter.insert("address".into(), json!(self.addresses));
        }
        if !self.topics.is_empty() {
            let topics = self.topics.iter().map(|Choice(choice)| match choice.as_slice() {
                [] => Value::Null,
                [one] => json!(one),
                several => json!(several),
            });
            filter.insert("topics".into(), topics.collect());
        }
        filter
    }

    /// Checks if one of these is an address of the filter; also true if the filter has none.
    pub(super) fn concerns(&self, addresses: &[Option<Address>]) -> bool {
        self.addresses.is_empty()
            || addresses
                .iter()
                .flatten()
                .any(|address| self.addresses.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const A: &str = "0x00000000000000000000000000000000000000aa";
    const T: &str = "0x00000000000000000000000000000000000000000000000000000000000000bb";

    #[track_caller]
    fn check(addresses: &[&str], events: &[&str], topics: &[&str], expect: Expect) {
        let topics: Result<Vec<Choice>, String> = topics.iter().map(|topic| topic.parse()).collect();
        let filter = topics.and_then(|topics| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let events = events.iter().map(|event| event.parse().unwrap()).collect();
            LogFilter::new(addresses, events, topics)
        });
        let text = filter.map_or_else(|why| why, |filter| Value::Object(filter.json()).to_string());
        expect.assert_eq(&text.replace(&"0".repeat(38), "~").replace(&"0".repeat(24), "~"));
    }

    #[test]
    fn flags_make_a_filter() {
        check(&[], &[], &[], expect!["{}"]);
        check(&[A], &[], &[], expect![[r#"{"address":["0x~aa"]}"#]]);
        check(&[], &[], &[T], expect![[r#"{"topics":["0x~~bb"]}"#]]);
        // Open positions at the end count: the log must have so many topics.
        check(
            &[],
            &[],
            &["any", T, "*"],
            expect![[r#"{"topics":[null,"0x~~bb",null]}"#]],
        );
        check(
            &[],
            &[],
            &[&format!("{T},{A}")],
            expect![[r#"{"topics":[["0x~~bb","0x~~aa"]]}"#]],
        );
        check(
            &[],
            &[T],
            &["any", A],
            expect![[r#"{"topics":["0x~~bb",null,"0x~~aa"]}"#]],
        );
        check(&[], &[T, T], &[], expect![[r#"{"topics":[["0x~~bb","0x~~bb"]]}"#]]);
    }

    #[test]
    fn mistakes_are_said() {
        check(
            &[],
            &[],
            &["0x12"],
            expect!["a topic is 0x and 64 hex digits, an address, several of them with commas between, or any"],
        );
        check(
            &[],
            &[],
            &[""],
            expect!["a topic is 0x and 64 hex digits, an address, several of them with commas between, or any"],
        );
        check(
            &[],
            &[],
            &["any,any"],
            expect!["a topic is 0x and 64 hex digits, an address, several of them with commas between, or any"],
        );
        check(
            &[],
            &[],
            &["any"; 5],
            expect!["a log has at most 4 topics: give --topic 4 times at most"],
        );
        check(
            &[],
            &[T],
            &["any"; 4],
            expect!["a log has at most 4 topics, and --event is the first: give --topic 3 times at most"],
        );
    }

    #[test]
    fn an_address_concerns_whatever_names_it() {
        let [a, b] = [0xaa, 0xbb].map(Address::with_last_byte);
        let filter = LogFilter::new(vec![a], Vec::new(), Vec::new()).unwrap();
        assert!(filter.concerns(&[Some(b), None, Some(a)]));
        assert!(!filter.concerns(&[Some(b), None]));
        assert!(LogFilter::default().concerns(&[None]));
    }
}
