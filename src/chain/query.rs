//! A stream's log filter, in the forms for nodes and blooms. No I/O, no clock.

use alloy_primitives::{Address, B256, Bloom};

use super::Header;
use super::bloom_bits::BloomBits;

/// Logs that a stream subscribes to: any of these addresses, and at each position any of these topics. An empty list
/// matches everything.
#[derive(Clone, Debug)]
pub struct LogQuery {
    criteria: Box<str>,
    addresses: Box<[BloomBits]>,
    topics: Box<[Box<[BloomBits]>]>,
}

/// Data fetched along with the headers of a page.
#[derive(Clone, Debug)]
pub enum Fetch {
    /// Headers alone.
    Headers,
    /// The logs of all blocks.
    Logs,
    /// The logs of blocks older than memory that may match one of these queries. Few queries, and none of them
    /// matches all logs.
    LogsFor(Vec<LogQuery>),
}

impl LogQuery {
    /// Hashes the addresses and topics once: a client may name thousands, and each block's bloom is checked against
    /// them.
    #[must_use]
    pub fn new(addresses: &[Address], topics: &[&[B256]]) -> Self {
        let bits = |words: &[B256]| words.iter().map(|topic| BloomBits::of(topic.as_slice())).collect();
        Self {
            criteria: criteria(addresses, topics).into(),
            addresses: addresses
                .iter()
                .map(|address| BloomBits::of(address.as_slice()))
                .collect(),
            topics: topics.iter().map(|position| bits(position)).collect(),
        }
    }

    /// Returns the `address` and `topics` members of a filter object, as JSON without braces. They match the query's
    /// logs and possibly more.
    #[must_use]
    pub fn criteria(&self) -> &str {
        &self.criteria
    }

    /// Checks if a block with this bloom may have a matching log, provided that the bloom covers all of the block's
    /// logs.
    #[must_use]
    pub fn may_match(&self, bloom: &Bloom) -> bool {
        let any = |words: &[BloomBits]| words.is_empty() || words.iter().any(|word| word.are_in(bloom));
        any(&self.addresses) && self.topics.iter().all(|position| any(position))
    }

    /// Checks if a block's bloom claims that there may be a matching log. An empty or unknown bloom claims nothing.
    pub(super) fn is_claimed_by(&self, header: &Header) -> bool {
        header.usable_bloom().is_some_and(|bloom| self.may_match(bloom))
    }
}

/// Builds the `address` and `topics` members. geth reads `[T0,null]` as at least two topics, reth as at least one
/// (PROTOCOL fact 14); without trailing wildcards both nodes return the longer of the two results.
fn criteria(addresses: &[Address], topics: &[&[B256]]) -> String {
    let array = |words: Vec<String>| format!("[{}]", words.join(","));
    let mut members = Vec::new();
    if !addresses.is_empty() {
        let words = addresses.iter().map(|address| format!("\"{address:#x}\"")).collect();
        members.push(format!(r#""address":{}"#, array(words)));
    }
    let positions = topics.iter().rposition(|position| !position.is_empty());
    if let Some(last) = positions {
        let position = |words: &[B256]| match words[..] {
            [] => "null".to_owned(),
            _ => array(words.iter().map(|topic| format!("\"{topic:#x}\"")).collect()),
        };
        members.push(format!(
            r#""topics":{}"#,
            array(topics[..=last].iter().map(|own| position(own)).collect())
        ));
    }
    members.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_asks_for_no_less_than_the_filter_wants() {
        let (a, b) = (Address::repeat_byte(0xaa), Address::repeat_byte(0xbb));
        let (t, u) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let (x, y) = (format!("0x{}", "aa".repeat(20)), format!("0x{}", "bb".repeat(20)));
        let (v, w) = (format!("0x{}", "01".repeat(32)), format!("0x{}", "02".repeat(32)));
        let any: &[B256] = &[];
        for (addresses, topics, expected) in [
            (&[][..], &[][..], String::new()),
            (&[], &[any, any], String::new()),
            (&[a], &[], format!(r#""address":["{x}"]"#)),
            (&[a, b], &[any], format!(r#""address":["{x}","{y}"]"#)),
            (&[], &[&[t], any, any], format!(r#""topics":[["{v}"]]"#)),
            (&[], &[any, &[t, u]], format!(r#""topics":[null,["{v}","{w}"]]"#)),
            (
                &[b],
                &[&[t], any, &[u], any],
                format!(r#""address":["{y}"],"topics":[["{v}"],null,["{w}"]]"#),
            ),
        ] {
            assert_eq!(LogQuery::new(addresses, topics).criteria(), expected);
        }
    }
}
