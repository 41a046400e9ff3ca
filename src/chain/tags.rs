//! Blocks that a node names by a tag of finality.

use alloy_primitives::B256;
use bytes::Bytes;

use super::BlockRef;
use super::source::Source;
use crate::jsonrpc::Outcome;
use crate::upstream::{Complaint, complaint, place_of};

/// Tag of a block that the consensus of the chain has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tag {
    /// `safe`: justified; dropped only if a third of the validators misbehave.
    Safe,
    /// `finalized`: dropped only by agreement of people.
    Finalized,
}

impl Tag {
    /// All tags.
    pub const ALL: [Self; 2] = [Self::Safe, Self::Finalized];

    /// Returns the name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Finalized => "finalized",
        }
    }
}

/// Answer of a node about a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tagged {
    /// The block.
    Block(BlockRef),
    /// The node has no such block: the chain has no tags, or is too young.
    None,
    /// An error that may mean that there is no such block, or anything else.
    Refused,
    /// No usable answer, which is evidence of nothing.
    Unknown,
}

impl Source {
    /// Asks the node in use for the newest block of this tag.
    pub async fn tagged(&self, tag: Tag) -> Tagged {
        let params = format!(r#"["{}",false]"#, tag.name());
        match self.pool.call_internal("eth_getBlockByNumber", &params, None, 0).await {
            Ok(Outcome::Result(json)) => read(&json),
            Ok(error) => match complaint(&error) {
                Complaint::Throttled | Complaint::NotNow => Tagged::Unknown,
                Complaint::Unsupported => Tagged::None,
                // geth: -39001 "Unknown block", or "finalized block not found" before the first one.
                Complaint::Pruned | Complaint::Other => Tagged::Refused,
            },
            Err(_) => Tagged::Unknown,
        }
    }
}

fn read(json: &Bytes) -> Tagged {
    if &json[..] == b"null" {
        return Tagged::None;
    }
    match place_of(json) {
        Ok(place) if place.hash != B256::ZERO => Tagged::Block(BlockRef {
            number: place.number,
            hash: place.hash,
        }),
        _ => Tagged::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_null_and_nonsense_are_told_apart() {
        let hash = B256::repeat_byte(7);
        let block = BlockRef { number: 16, hash };
        let parent = B256::ZERO;
        for (json, expect) in [
            (
                format!(r#"{{"number":"0x10","hash":"{hash}","parentHash":"{parent}"}}"#),
                Tagged::Block(block),
            ),
            ("null".into(), Tagged::None),
            (
                format!(r#"{{"number":"0x10","hash":"{parent}","parentHash":"{parent}"}}"#),
                Tagged::Unknown,
            ),
            (r#"{"number":"0x10"}"#.into(), Tagged::Unknown),
            ("17".into(), Tagged::Unknown),
        ] {
            assert_eq!(read(&Bytes::from(json.clone())), expect, "{json}");
        }
    }
}
