//! Logs of one block, as a node reports them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

#[cfg(test)]
use alloy_primitives::BloomInput;
use alloy_primitives::{Address, B256, Bloom, keccak256};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::BlockRef;
use super::bloom_bits::RememberedBits;
use crate::quantity;

mod plain;

/// One log: the node's own bytes, and the fields that filters match.
#[derive(Clone, Debug)]
pub struct Log {
    /// Contract that emitted the log.
    pub address: Address,
    /// Up to four words.
    pub topics: Vec<B256>,
    /// Position within the block (`logIndex`).
    pub index: u64,
    json: Bytes,
    /// Range of the value of `removed` in `json`; `None` if the node omits it.
    removed: Option<Range<usize>>,
}

impl Log {
    /// Returns the JSON delivered when the block is adopted.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// Returns the JSON delivered when the block is dropped: the same bytes except for `removed` (PROTOCOL R3).
    #[must_use]
    pub fn removed_json(&self) -> Vec<u8> {
        let json = &self.json;
        match &self.removed {
            Some(at) => [&json[..at.start], b"true", &json[at.end..]].concat(),
            None => [&json[..json.len() - 1], br#","removed":true}"#].concat(),
        }
    }
}

/// All logs of one block, ordered by index.
#[derive(Debug)]
pub struct BlockLogs {
    /// `true` if a log names another block or is marked removed: then the logs are believed only if they match the
    /// header's bloom.
    disputed: bool,
    /// Number and hash of the block.
    pub block: BlockRef,
    /// Ordered by index. Nodes that restart the index in each transaction (Lotus, Thor) repeat indices: then in the
    /// node's order.
    pub logs: Vec<Log>,
    /// Time when the block's header arrived.
    pub seen: Instant,
}

impl BlockLogs {
    /// Returns the logs behind this index.
    #[must_use]
    pub(super) fn behind(&self, index: u64) -> Self {
        let logs = self.logs.iter().filter(|log| log.index > index);
        Self {
            disputed: self.disputed,
            block: self.block,
            logs: logs.cloned().collect(),
            seen: self.seen,
        }
    }
}

/// Reason why an answer cannot be this block's logs.
#[derive(Debug, thiserror::Error)]
pub enum BadLogs {
    /// Not an array of logs.
    #[error("not an array of logs: {0}")]
    Shape(#[from] serde_json::Error),
    /// Not an object, or a log without a block hash whose number is another block's.
    #[error("a log of another block at position {0}")]
    Foreign(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    address: Address,
    /// `None` for `null` too: cdk-erigon's LOG0.
    topics: Option<Vec<B256>>,
    /// Absent, `null` or zero in some nodes' logs of system transactions (bnb-chain/bsc#443, viction#431).
    block_hash: Option<B256>,
    #[serde(default, deserialize_with = "quantity::optional")]
    block_number: Option<u64>,
    #[serde(default, deserialize_with = "quantity::optional")]
    log_index: Option<u64>,
    transaction_hash: Option<&'a RawValue>,
    #[serde(borrow)]
    removed: Option<&'a RawValue>,
}

/// A parsed log, with properties that only the whole block's check needs.
struct Read {
    log: Log,
    /// The log names another block, or is marked removed.
    disputed: bool,
    /// The log has an index and its transaction's hash: then a copy with the same bytes is the same log.
    placed: bool,
}

impl Read {
    /// Reads one log of this block; a log without an index gets its position as the index. A block hash overrides the
    /// number; a log without a hash must not have another block's number.
    fn parse(block: BlockRef, json: Bytes, position: usize) -> Result<Self, BadLogs> {
        let text = std::str::from_utf8(&json).map_err(|_| BadLogs::Foreign(position))?;
        // serde would read an array as a struct too, but an array has no members to add to.
        if !text.starts_with('{') {
            return Err(BadLogs::Foreign(position));
        }
        let fields: Fields<'_> = serde_json::from_str(text)?;
        let says_removed = fields.removed.is_some_and(|value| value.get() == "true");
        let named = fields.block_hash.filter(|hash| *hash != B256::ZERO);
        if named.is_none() && fields.block_number.is_some_and(|number| number != block.number) {
            return Err(BadLogs::Foreign(position));
        }
        let disputed = says_removed || named.is_some_and(|hash| hash != block.hash);
        let placed = fields.log_index.is_some() && fields.transaction_hash.is_some();
        let removed = fields.removed.map(|value| {
            let start = value.get().as_ptr() as usize - text.as_ptr() as usize;
            start..start + value.get().len()
        });
        let (address, topics) = (fields.address, fields.topics);
        let index = fields.log_index.unwrap_or(position as u64);
        let Some(topics) = topics else {
            return Self::parse(block, with_topics(&json)?, position);
        };
        // A log delivered on adoption must not be marked removed.
        let (json, removed) = match removed {
            Some(at) if says_removed => {
                let plain = [&json[..at.start], b"false", &json[at.end..]].concat();
                (Bytes::from(plain), Some(at.start..at.start + b"false".len()))
            }
            removed => (json, removed),
        };
        let log = Log {
            address,
            topics,
            index,
            json,
            removed,
        };
        Ok(Self { log, disputed, placed })
    }
}

/// Replaces `null` or absent topics by an empty array, which clients expect (go-ethereum, ethers).
fn with_topics(json: &Bytes) -> Result<Bytes, serde_json::Error> {
    #[derive(Deserialize)]
    struct Topics<'a> {
        /// Not an `Option`, which would read `null` as `None`.
        #[serde(borrow, default)]
        topics: Member<'a>,
    }
    #[derive(Default)]
    struct Member<'a>(Option<&'a RawValue>);
    impl<'de: 'a, 'a> Deserialize<'de> for Member<'a> {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            <&RawValue>::deserialize(deserializer).map(|value| Self(Some(value)))
        }
    }
    let Topics { topics } = serde_json::from_slice(json)?;
    let text = match topics.0 {
        Some(null) => {
            let start = null.get().as_ptr() as usize - json.as_ptr() as usize;
            let end = start + null.get().len();
            [&json[..start], b"[]", &json[end..]].concat()
        }
        // A non-empty object: it was already read as one.
        None => [&json[..json.len() - 1], br#","topics":[]}"#].concat(),
    };
    Ok(text.into())
}

/// Checks if an index occurs twice.
fn repeats(logs: &[Log]) -> bool {
    let mut seen = HashSet::with_capacity(logs.len());
    !logs.iter().all(|log| seen.insert(log.index))
}

/// Drops byte-for-byte copies of logs if that leaves one log for each index. If indices restart in each transaction,
/// two different logs may be identical: then all are kept.
fn without_copies(read: Vec<Read>) -> Vec<Log> {
    let ascend = read.is_sorted_by(|one, next| one.log.index < next.log.index);
    let mut seen = HashSet::new();
    let has_copies = !ascend && read.iter().all(|read| read.placed) && {
        let indices: HashSet<u64> = read.iter().map(|read| read.log.index).collect();
        let distinct: HashSet<&Bytes> = read.iter().map(|read| &read.log.json).collect();
        distinct.len() < read.len() && distinct.len() == indices.len()
    };
    let logs = read.into_iter().map(|read| read.log);
    logs.filter(|log| !has_copies || seen.insert(log.json.clone()))
        .collect()
}

impl BlockLogs {
    /// Reads the node's answer and checks each log against the requested block. `null` means no logs.
    ///
    /// # Errors
    /// [`BadLogs`] if the answer is not an array, or a log is malformed or of another block.
    pub fn parse(block: BlockRef, answer: &Bytes, seen: Instant) -> Result<Self, BadLogs> {
        match plain::read(block, answer) {
            Some(read) => Ok(Self::of_read(block, read, seen)),
            None => Self::parse_any(block, answer, seen),
        }
    }

    /// Reads an answer in any form of JSON.
    fn parse_any(block: BlockRef, answer: &Bytes, seen: Instant) -> Result<Self, BadLogs> {
        let items: Option<Vec<&RawValue>> = serde_json::from_slice(answer)?;
        let items = items.unwrap_or_default();
        Self::of(
            block,
            items.into_iter().map(|item| answer.slice_ref(item.get().as_bytes())),
            seen,
        )
    }

    /// Reads logs one by one, in the node's order; otherwise the same as [`Self::parse`].
    ///
    /// # Errors
    /// [`BadLogs`] if a log is malformed or of another block.
    pub fn of(block: BlockRef, items: impl Iterator<Item = Bytes>, seen: Instant) -> Result<Self, BadLogs> {
        let parsed = items
            .enumerate()
            .map(|(position, json)| Read::parse(block, json, position));
        Ok(Self::of_read(block, parsed.collect::<Result<_, BadLogs>>()?, seen))
    }

    fn of_read(block: BlockRef, read: Vec<Read>, seen: Instant) -> Self {
        let disputed = read.iter().any(|read| read.disputed);
        let mut logs = without_copies(read);
        if !logs.is_sorted_by(|one, next| one.index < next.index) && !repeats(&logs) {
            logs.sort_by_key(|log| log.index);
        }
        Self {
            disputed,
            block,
            logs,
            seen,
        }
    }

    /// Checks if any log names another block or is marked removed. Such logs are the block's only if a non-empty
    /// bloom confirms them.
    #[must_use]
    pub fn is_disputed(&self) -> bool {
        self.disputed
    }

    /// Checks if an index occurs twice: then an index does not identify a log of the block.
    #[must_use]
    pub fn repeats_indices(&self) -> bool {
        !self.logs.is_sorted_by(|one, next| one.index < next.index)
    }

    /// Returns a digest of the logs' addresses, topics, data and transaction hashes, independent of their order and
    /// other members.
    #[must_use]
    pub fn print(&self) -> B256 {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Rest<'a> {
            #[serde(borrow)]
            data: Option<Cow<'a, str>>,
            transaction_hash: Option<B256>,
        }
        let one = |log: &Log| {
            let mut content = log.address.to_vec();
            log.topics
                .iter()
                .for_each(|topic| content.extend_from_slice(topic.as_slice()));
            if let Ok(rest) = serde_json::from_slice::<Rest<'_>>(&log.json) {
                content.extend_from_slice(rest.transaction_hash.unwrap_or_default().as_slice());
                content.extend(
                    rest.data
                        .unwrap_or_default()
                        .bytes()
                        .map(|byte| byte.to_ascii_lowercase()),
                );
            }
            keccak256(content)
        };
        let mut prints: Vec<B256> = self.logs.iter().map(one).collect();
        prints.sort_unstable();
        keccak256(prints.concat())
    }

    /// Returns a block without logs.
    #[must_use]
    pub fn empty(block: BlockRef, seen: Instant) -> Self {
        Self {
            disputed: false,
            block,
            logs: Vec::new(),
            seen,
        }
    }

    /// Returns the length of all logs' JSON, in bytes.
    #[must_use]
    pub fn json_len(&self) -> usize {
        self.logs.iter().map(|log| log.json.len()).sum()
    }

    /// Computes the bloom of these logs, and hashes only words that are not remembered. It equals the header's if they are
    /// all of the block's logs: the bloom is built from exactly these (Yellow Paper section 4.3.1), so a missing log is
    /// detected unless the others set its bits too.
    pub(super) fn bloom_with(&self, remembered: &mut RememberedBits) -> Bloom {
        remembered.bloom(&self.logs)
    }

    /// Computes the same bloom by hashing each word.
    #[cfg(test)]
    pub fn bloom(&self) -> Bloom {
        let mut sum = Bloom::ZERO;
        for log in &self.logs {
            sum.accrue(BloomInput::Raw(log.address.as_slice()));
            for topic in &log.topics {
                sum.accrue(BloomInput::Raw(topic.as_slice()));
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests;
