//! Block header: the node's own bytes, and the few fields that headwater reads.

use std::fmt;

use alloy_primitives::{B256, Bloom};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::Error as _;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::quantity;
use crate::upstream::place_of;

/// Number and hash of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Block number.
    pub number: u64,
    /// Block hash.
    pub hash: B256,
}

impl fmt::Display for BlockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number, self.hash)
    }
}

/// A block header.
#[derive(Clone, Debug)]
pub struct Header {
    /// Number and hash.
    pub block: BlockRef,
    /// Hash of the parent; zero if the node names none.
    pub parent: B256,
    /// Bloom that the block's logs must add up to (E7); `None` if the node sends none that can be read. Such a block
    /// may have any logs.
    pub bloom: Option<Box<Bloom>>,
    /// Seconds since 1970; 0 if the node sends no readable time.
    pub timestamp: u64,
    /// Bytes delivered to `newHeads` subscribers.
    pub json: Bytes,
    /// Moment at which the header arrived.
    pub seen: Instant,
}

/// The node sent an invalid header.
#[derive(Debug, thiserror::Error)]
#[error("not a block header: {0}")]
pub struct NotAHeader(#[from] serde_json::Error);

/// Members that do not decide if a header is valid (issue 11): Zilliqa announces no bloom, flow-evm-gateway `"0x"`, and
/// some nodes' clocks tick in milliseconds or nanoseconds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow)]
    logs_bloom: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "quantity::optional")]
    timestamp: Option<u64>,
}

/// Converts seconds, milliseconds, microseconds or nanoseconds since 1970 to seconds. The ranges do not overlap between
/// the years 2001 and 33658.
fn seconds(timestamp: u64) -> u64 {
    match timestamp {
        0..1_000_000_000_000 => timestamp,
        1_000_000_000_000..1_000_000_000_000_000 => timestamp / 1_000,
        1_000_000_000_000_000..1_000_000_000_000_000_000 => timestamp / 1_000_000,
        1_000_000_000_000_000_000.. => timestamp / 1_000_000_000,
    }
}

impl Header {
    /// Checks if the block has a parent: block 0 has none, and neither has a block with a zero parent hash, whatever
    /// its number (`hardhat_mine` makes such blocks, issue 11).
    #[must_use]
    pub fn has_parent(&self) -> bool {
        self.block.number > 0 && self.parent != B256::ZERO
    }

    /// Checks if `before` is the parent. For a block without a parent, the block of the number before counts as the
    /// parent.
    #[must_use]
    pub fn follows(&self, before: BlockRef) -> bool {
        self.block.number > before.number
            && if self.has_parent() {
                self.parent == before.hash
            } else {
                self.block.number - before.number == 1
            }
    }

    /// Parses a `newHeads` payload, which is later delivered unchanged.
    ///
    /// # Errors
    /// [`NotAHeader`] if the hash or number is missing, or if one of them or `parentHash` is malformed.
    pub fn parse(json: Bytes, seen: Instant) -> Result<Self, NotAHeader> {
        let place = place_of(&json)?;
        let fields: Fields<'_> = serde_json::from_slice(&json)?;
        let bloom = fields
            .logs_bloom
            .and_then(|bloom| serde_json::from_str(bloom.get()).ok());
        Ok(Self {
            block: BlockRef {
                number: place.number,
                hash: place.hash,
            },
            parent: place.parent,
            bloom: bloom.map(Box::new),
            timestamp: fields.timestamp.map_or(0, seconds),
            json,
            seen,
        })
    }

    /// Copies the header out of the message it arrived in, so that memory keeps nothing else of that message.
    ///
    /// # Errors
    /// [`NotAHeader`] if the header is longer than any real one: a node could fill the memory with a few hundred of
    /// them.
    pub fn bounded(self) -> Result<Self, NotAHeader> {
        if self.json.len() > MAX_HEADER {
            let why = format!("a header of {} bytes, more than {MAX_HEADER}", self.json.len());
            return Err(serde_json::Error::custom(why).into());
        }
        let json = Bytes::copy_from_slice(&self.json);
        Ok(Self { json, ..self })
    }

    /// Returns the bloom if it can prove anything: known, and not empty, because some chains leave all blooms empty.
    #[must_use]
    pub fn usable_bloom(&self) -> Option<&Bloom> {
        self.bloom.as_deref().filter(|bloom| **bloom != Bloom::ZERO)
    }
}

/// Longest header, in bytes of JSON. Most have one or two thousand; chains with hundreds of signing validators have
/// tens of thousands.
const MAX_HEADER: usize = 256 << 10;

/// Members of a node's `newHeads` payloads, in order.
///
/// A fetched block (on a walk along parents, or from a polled node) has more members than an announced header; the
/// shape cuts the block down to the members that subscribers of this node expect. This is the only place where a node's
/// JSON is reassembled, value by value, unchanged.
#[derive(Clone, Debug, Default)]
pub struct HeaderShape {
    /// Name of each member, and `true` if it was announced as `null`; `None` before the first header.
    members: Option<Vec<(String, bool)>>,
}

/// Members that a block has and geth's header lacks (PROTOCOL 1.8), for nodes that never announced a header.
const BLOCK_ONLY: [&str; 5] = ["transactions", "uncles", "withdrawals", "size", "totalDifficulty"];

impl HeaderShape {
    /// Learns the shape from an announced header.
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

    /// Checks if a header was learned from.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.members.is_some()
    }

    /// Returns the header of a fetched block. The bloom is the block's, even if this node announces none.
    ///
    /// # Errors
    /// [`NotAHeader`] in the cases of [`Header::parse`] and [`Header::bounded`].
    pub fn header_of(&self, block: &Bytes, seen: Instant) -> Result<Header, NotAHeader> {
        let whole = Header::parse(block.clone(), seen)?;
        let json = self.cut(block)?.into();
        Header { json, ..whole }.bounded()
    }

    fn cut(&self, block: &[u8]) -> Result<Vec<u8>, NotAHeader> {
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
                        // geth announces as `null` some members that its blocks leave out.
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
        Ok(out)
    }
}

/// Members of an object in their order. Names of a header's members have no escapes.
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
            shape
                .header_of(&block.clone().into(), Instant::now())
                .expect("header")
                .json,
            announced.as_bytes(),
            "geth's by default"
        );
        shape.learn(json(r#","size":"0x2""#).as_bytes());
        let header = shape.header_of(&block.clone().into(), Instant::now()).expect("header");
        assert_eq!(header.json, json(r#","size":"0x1""#).as_bytes());
        assert_eq!((header.block.number, header.timestamp), (16, 5));
        shape.learn(json(r#","slotNumber":null"#).as_bytes());
        let header = shape.header_of(&block.clone().into(), Instant::now()).expect("header");
        assert_eq!(header.json, json(r#","slotNumber":null"#).as_bytes());
    }

    /// Parses a header with these members; `H1` and `H2` stand for hashes.
    fn parse(members: &str) -> Result<Header, NotAHeader> {
        let members = members.replace("H1", &B256::with_last_byte(1).to_string());
        let members = members.replace("H2", &B256::with_last_byte(2).to_string());
        Header::parse(members.into(), Instant::now())
    }

    #[test]
    fn what_only_verification_needs_does_not_decide() {
        let good = Bloom::repeat_byte(1);
        for (bloom, expect) in [
            (String::new(), None),
            (r#","logsBloom":null"#.into(), None),
            (r#","logsBloom":"0x""#.into(), None),
            (r#","logsBloom":"0x123""#.into(), None),
            (r#","logsBloom":"0x00""#.into(), None),
            (r#","logsBloom":5"#.into(), None),
            (r#","logsBloom":{"a":[]}"#.into(), None),
            (format!(r#","logsBloom":"{good}00""#), None),
            (format!(r#","logsBloom":"{good}""#), Some(good)),
            (format!(r#","logsBloom":"0x{}""#, "0".repeat(512)), Some(Bloom::ZERO)),
        ] {
            let json = format!(r#"{{"hash":"H1","parentHash":"H2","number":"0x10"{bloom}}}"#);
            let header = parse(&json).expect(&json);
            assert_eq!(header.bloom.as_deref(), expect.as_ref(), "{json}");
            let telling = expect.filter(|bloom| *bloom == good);
            assert_eq!(header.usable_bloom(), telling.as_ref(), "{json}");
        }
        for (timestamp, expect) in [
            ("null", 0),
            (r#""""#, 0),
            (r#""0x10000000000000000""#, 0),
            ("-1", 0),
            ("[]", 0),
            (r#""0x6553f100""#, 1_700_000_000),
            (r#""0X006553F100""#, 1_700_000_000),
            ("1700000000", 1_700_000_000),
            (r#""1700000000""#, 1_700_000_000),
            ("1700000000123", 1_700_000_000),
            ("1700000000123456", 1_700_000_000),
            (r#""0x17979cfe362a0000""#, 1_700_000_000),
            ("18446744073709551615", 18_446_744_073),
        ] {
            let json = format!(r#"{{"hash":"H1","parentHash":"H2","number":"0x10","timestamp":{timestamp}}}"#);
            assert_eq!(parse(&json).expect(&json).timestamp, expect, "{json}");
        }
        for (number, expect) in [
            (r#""0x00ff""#, 255),
            (r#""0XFF""#, 255),
            (r#""255""#, 255),
            ("255", 255),
            ("255.0", 255),
            (r#""0x7fffffffffffffff""#, i64::MAX as u64),
        ] {
            let json = format!(r#"{{"hash":"H1","parentHash":"H2","number":{number}}}"#);
            assert_eq!(parse(&json).expect(&json).block.number, expect, "{json}");
        }
        for parent in ["", r#","parentHash":null"#, r#","parentHash":"0x""#] {
            for number in ["0x0", "0x1"] {
                let json = format!(r#"{{"hash":"H1","number":"{number}"{parent}}}"#);
                assert_eq!(parse(&json).expect(&json).parent, B256::ZERO, "{json}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_an_error() {
        for wrong in [
            "null",
            "5",
            "{}",
            "[]",
            "",
            r#"{"hash":"0x1"}"#,
            r#"{"hash":"H1","parentHash":"H2"}"#,
            r#"{"hash":"H1","parentHash":"H2","number":null}"#,
            r#"{"hash":"H1","parentHash":"H2","number":"latest"}"#,
            r#"{"hash":"H1","parentHash":"H2","number":-1}"#,
            r#"{"hash":"H1","parentHash":"H2","number":"0xffffffffffffffff"}"#,
            r#"{"hash":"H1","parentHash":"H2","number":"0x8000000000000000"}"#,
            r#"{"hash":"H1","parentHash":"H2","number":18446744073709551615}"#,
            r#"{"hash":null,"parentHash":"H2","number":"0x1"}"#,
            r#"{"hash":"H1","parentHash":"0x12","number":"0x1"}"#,
            r#"{"hash":"H1","parentHash":7,"number":"0x1"}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fetched_block_keeps_the_bloom_that_its_node_does_not_announce() {
        let mut shape = HeaderShape::default();
        let h = B256::repeat_byte(1);
        let bare = format!(r#"{{"hash":"{h}","parentHash":"{h}","number":"0x10"}}"#);
        shape.learn(bare.as_bytes());
        let header = shape.header_of(&json("").into(), Instant::now()).expect("header");
        let expect = format!(r#"{{"hash":"{h}","parentHash":"{h}","number":"0x10"}}"#);
        assert_eq!(header.json, expect.as_bytes());
        assert_eq!(header.bloom.as_deref(), Some(&Bloom::ZERO));
    }
}
