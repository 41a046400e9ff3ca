//! The logs of one block, as one answer to `eth_getLogs{blockHash}` tells them.

use std::ops::Range;
use std::time::Instant;

use alloy_primitives::{Address, B256, Bloom, BloomInput, U64};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::BlockRef;

/// One log: the node's own bytes, and what filters look at.
#[derive(Clone, Debug)]
pub struct Log {
    /// Who emitted it.
    pub address: Address,
    /// None to four words.
    pub topics: Vec<B256>,
    /// Place within the block.
    pub index: u64,
    json: Bytes,
    /// Where the value of `removed` stands in `json`; nowhere if the node left it out.
    removed: Option<Range<usize>>,
}

impl Log {
    /// What a subscriber gets when the block is adopted.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// What a subscriber gets when the block is dropped: the same bytes but for `removed` (PROTOCOL R3).
    #[must_use]
    pub fn removed_json(&self) -> Vec<u8> {
        let json = &self.json;
        match &self.removed {
            Some(at) => [&json[..at.start], b"true", &json[at.end..]].concat(),
            None => [&json[..json.len() - 1], br#","removed":true}"#].concat(),
        }
    }
}

/// All logs of one block, in the order of their index.
#[derive(Debug)]
pub struct BlockLogs {
    /// The block.
    pub block: BlockRef,
    /// Ordered, each index once.
    pub logs: Vec<Log>,
    /// When the block's header arrived.
    pub seen: Instant,
}

/// The answer cannot be this block's logs.
#[derive(Debug, thiserror::Error)]
pub enum BadLogs {
    /// Not an array of logs.
    #[error("not an array of logs: {0}")]
    Shape(#[from] serde_json::Error),
    /// A log of another block, or one that says it is removed.
    #[error("a log of another block, or one that is marked removed, at position {0}")]
    Foreign(usize),
    /// An index that does not grow.
    #[error("log indices out of order at position {0}")]
    Order(usize),
    /// The header's bloom says otherwise.
    #[error("the logs do not add up to the header's logsBloom")]
    Bloom,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    address: Address,
    topics: Vec<B256>,
    block_hash: B256,
    block_number: U64,
    log_index: U64,
    #[serde(borrow)]
    removed: Option<&'a RawValue>,
}

impl BlockLogs {
    /// Reads the node's answer and holds each log against the block that was asked for.
    ///
    /// # Errors
    /// [`BadLogs`] where a log is malformed, of another block, or out of order.
    pub fn parse(block: BlockRef, answer: &Bytes, seen: Instant) -> Result<Self, BadLogs> {
        let items: Vec<&RawValue> = serde_json::from_slice(answer)?;
        let mut logs: Vec<Log> = Vec::with_capacity(items.len());
        for (position, item) in items.into_iter().enumerate() {
            let text = item.get();
            let fields: Fields<'_> = serde_json::from_str(text)?;
            let removed = fields.removed.map(|value| {
                let start = value.get().as_ptr() as usize - text.as_ptr() as usize;
                start..start + value.get().len()
            });
            let says_removed = fields.removed.is_some_and(|value| value.get() == "true");
            if fields.block_hash != block.hash || fields.block_number.to::<u64>() != block.number || says_removed {
                return Err(BadLogs::Foreign(position));
            }
            let index = fields.log_index.to();
            if logs.last().is_some_and(|last| last.index >= index) {
                return Err(BadLogs::Order(position));
            }
            let json = answer.slice_ref(text.as_bytes());
            logs.push(Log {
                address: fields.address,
                topics: fields.topics,
                index,
                json,
                removed,
            });
        }
        Ok(Self { block, logs, seen })
    }

    /// Nothing to tell.
    #[must_use]
    pub fn empty(block: BlockRef, seen: Instant) -> Self {
        Self {
            block,
            logs: Vec::new(),
            seen,
        }
    }

    /// Bytes of JSON.
    #[must_use]
    pub fn json_len(&self) -> usize {
        self.logs.iter().map(|log| log.json.len()).sum()
    }

    /// Holds the logs against the header's bloom. Equality, not inclusion: the bloom is built from exactly these logs
    /// (Yellow Paper section 4.3.1), so a log that is missing shows.
    ///
    /// # Errors
    /// [`BadLogs::Bloom`].
    pub fn check_bloom(&self, bloom: &Bloom) -> Result<(), BadLogs> {
        if self.bloom() == *bloom {
            Ok(())
        } else {
            Err(BadLogs::Bloom)
        }
    }

    /// Whether the logs account for everything that the bloom says, and perhaps for more.
    #[must_use]
    pub fn covers_bloom(&self, bloom: &Bloom) -> bool {
        self.bloom().contains(bloom)
    }

    /// What the header's bloom must be if these are all of the block's logs.
    #[must_use]
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
mod tests {
    use super::*;

    const BLOCK: BlockRef = BlockRef {
        number: 7,
        hash: B256::repeat_byte(7),
    };

    fn log(index: u64, tail: &str) -> String {
        let (a, t, h) = (Address::repeat_byte(1), B256::repeat_byte(2), BLOCK.hash);
        format!(
            r#"{{"address":"{a}","topics":["{t}"],"data":"0x","blockNumber":"0x7","blockHash":"{h}","logIndex":"0x{index:x}"{tail}}}"#
        )
    }

    fn parse(answer: &str) -> Result<BlockLogs, BadLogs> {
        BlockLogs::parse(BLOCK, &Bytes::copy_from_slice(answer.as_bytes()), Instant::now())
    }

    #[test]
    fn a_removed_copy_differs_in_removed_alone() {
        let plain = log(0, r#","removed":false,"x":1"#);
        let bare = log(1, "");
        let block = parse(&format!("[{plain}, {bare}]")).expect("logs");
        assert_eq!(block.logs[0].json(), plain.as_bytes());
        assert_eq!(
            block.logs[0].removed_json(),
            log(0, r#","removed":true,"x":1"#).as_bytes()
        );
        assert_eq!(block.logs[1].removed_json(), log(1, r#","removed":true"#).as_bytes());
    }

    #[test]
    fn logs_that_cannot_be_this_blocks_are_refused() {
        assert!(matches!(
            parse(&format!("[{},{}]", log(1, ""), log(1, ""))),
            Err(BadLogs::Order(1))
        ));
        assert!(matches!(
            parse(&format!("[{}]", log(1, r#","removed":true"#))),
            Err(BadLogs::Foreign(0))
        ));
        assert!(matches!(
            parse(&format!("[{}]", log(1, "").replace("0x7\"", "0x8\""))),
            Err(BadLogs::Foreign(0))
        ));
        assert!(matches!(parse("null"), Err(BadLogs::Shape(_))));
    }

    #[test]
    fn the_bloom_shows_what_is_missing() {
        let block = parse(&format!("[{}]", log(0, ""))).expect("logs");
        let mut bloom = Bloom::ZERO;
        bloom.accrue(BloomInput::Raw(Address::repeat_byte(1).as_slice()));
        assert!(block.check_bloom(&bloom).is_err());
        bloom.accrue(BloomInput::Raw(B256::repeat_byte(2).as_slice()));
        assert!(block.check_bloom(&bloom).is_ok());
        assert!(BlockLogs::empty(BLOCK, Instant::now()).check_bloom(&bloom).is_err());
    }
}
