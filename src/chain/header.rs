//! A block header: the node's own bytes, and the few fields that decide.

use std::fmt;
use std::time::Instant;

use alloy_primitives::{B256, Bloom, U64};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A block's place: number and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Height.
    pub number: u64,
    /// Hash.
    pub hash: B256,
}

impl fmt::Display for BlockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number, self.hash)
    }
}

/// A header as the chain module carries it.
#[derive(Clone, Debug)]
pub struct Header {
    /// Height and hash.
    pub block: BlockRef,
    /// Hash of the block before.
    pub parent: B256,
    /// What the block's logs must add up to (E7).
    pub bloom: Box<Bloom>,
    /// Seconds since 1970, for the age of the head.
    pub timestamp: u64,
    /// What a `newHeads` subscriber gets.
    pub json: Bytes,
    /// When it arrived.
    pub seen: Instant,
}

/// The node sent something that is no header.
#[derive(Debug, thiserror::Error)]
#[error("not a block header: {0}")]
pub struct NotAHeader(#[from] serde_json::Error);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    hash: B256,
    parent_hash: B256,
    number: U64,
    logs_bloom: Bloom,
    #[serde(default)]
    timestamp: U64,
}

impl Header {
    /// Whether there is a block before: block 0 has none, and neither has one whose parent's hash is zero, whatever its
    /// number (`hardhat_mine` makes such, issue 11).
    #[must_use]
    pub fn has_parent(&self) -> bool {
        self.block.number > 0 && self.parent != B256::ZERO
    }

    /// Whether this block is the one before. Of a block without a parent the one of the number before is taken for it.
    #[must_use]
    pub fn follows(&self, before: BlockRef) -> bool {
        self.block.number > before.number
            && if self.has_parent() {
                self.parent == before.hash
            } else {
                self.block.number - before.number == 1
            }
    }

    /// Reads a `newHeads` payload, which is then delivered as it is.
    ///
    /// # Errors
    /// [`NotAHeader`] where hash, parentHash, number or logsBloom is missing or malformed.
    pub fn parse(json: Bytes, seen: Instant) -> Result<Self, NotAHeader> {
        let fields: Fields = serde_json::from_slice(&json)?;
        Ok(Self {
            block: BlockRef {
                number: fields.number.to(),
                hash: fields.hash,
            },
            parent: fields.parent_hash,
            bloom: Box::new(fields.logs_bloom),
            timestamp: fields.timestamp.to(),
            json,
            seen,
        })
    }
}

/// Which members this node puts into its `newHeads`, and in which order.
///
/// A block that was fetched (a walk along parents, a polled node) has more members than a header that was announced;
/// the shape cuts it down to what this node's subscribers are used to. This is the one place where a node's JSON is put
/// together anew, value by value as it came.
#[derive(Clone, Debug, Default)]
pub struct HeaderShape {
    /// Each member's name, and whether it was announced as `null`.
    members: Option<Vec<(String, bool)>>,
}

/// What a block has and a geth header has not (PROTOCOL 1.8), for nodes that never announced one.
const BLOCK_ONLY: [&str; 5] = ["transactions", "uncles", "withdrawals", "size", "totalDifficulty"];

impl HeaderShape {
    /// Learns from an announced header.
    pub fn learn(&mut self, json: &[u8]) {
        if let Ok(Members(members)) = serde_json::from_slice(json) {
            self.members = Some(
                members
                    .into_iter()
                    .map(|(name, value)| (name, value.get() == "null"))
                    .collect(),
            );
        }
    }

    /// Whether a header was seen yet.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.members.is_some()
    }

    /// The header of a fetched block.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn header_of(&self, block: &[u8], seen: Instant) -> Result<Header, NotAHeader> {
        let Members(have) = serde_json::from_slice(block)?;
        let mut out = Vec::with_capacity(block.len());
        let mut put = |name: &str, value: &RawValue| {
            out.push(if out.is_empty() { b'{' } else { b',' });
            out.push(b'"');
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(value.get().as_bytes());
        };
        match &self.members {
            Some(wanted) => {
                for (name, was_null) in wanted {
                    match have.iter().find(|(own, _)| own == name) {
                        Some((_, value)) => put(name, value),
                        // geth announces as `null` what its blocks leave out.
                        None if *was_null => put(name, RawValue::NULL),
                        None => {}
                    }
                }
            }
            None => {
                for (name, value) in &have {
                    if !BLOCK_ONLY.contains(&name.as_str()) {
                        put(name, value);
                    }
                }
            }
        }
        out.push(b'}');
        Header::parse(out.into(), seen)
    }
}

/// The members of an object in their order. Names of a header hold no escapes.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a block")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::with_capacity(32);
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn json(extra: &str) -> String {
        let (h, bloom) = (B256::repeat_byte(1), Bloom::ZERO);
        format!(
            r#"{{"parentHash":"{h}","number":"0x10","logsBloom":"{bloom}","timestamp":"0x5","nonce":null{extra},"hash":"{h}"}}"#
        )
    }

    #[test]
    fn a_fetched_block_is_cut_to_the_announced_members_in_their_order() {
        let announced = json("");
        let mut shape = HeaderShape::default();
        let block =
            json(r#","size":"0x1","transactions":["0x1"],"uncles":[],"withdrawals":[],"totalDifficulty":"0x0""#);
        assert_eq!(
            shape.header_of(block.as_bytes(), Instant::now()).expect("header").json,
            announced.as_bytes(),
            "geth's by default"
        );
        shape.learn(json(r#","size":"0x2""#).as_bytes());
        let header = shape.header_of(block.as_bytes(), Instant::now()).expect("header");
        assert_eq!(header.json, json(r#","size":"0x1""#).as_bytes());
        assert_eq!((header.block.number, header.timestamp), (16, 5));
        shape.learn(json(r#","slotNumber":null"#).as_bytes());
        let header = shape.header_of(block.as_bytes(), Instant::now()).expect("header");
        assert_eq!(header.json, json(r#","slotNumber":null"#).as_bytes());
    }

    #[test]
    fn what_is_no_header_is_an_error() {
        for wrong in ["null", "5", "{}", r#"{"hash":"0x1"}"#] {
            assert!(
                Header::parse(Bytes::copy_from_slice(wrong.as_bytes()), Instant::now()).is_err(),
                "{wrong}"
            );
        }
    }
}
