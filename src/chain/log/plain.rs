//! One pass over a plain answer with a block's logs. No I/O, no clock.
//!
//! Data and other members that decide nothing are stepped over. Any surprise ends the pass with `None`, and the caller
//! reads the whole answer with serde: both agree on each answer that this pass reads.

use std::ops::Range;

use alloy_primitives::{Address, B256, hex};
use bytes::Bytes;

use super::{Log, Read};
use crate::chain::BlockRef;
use crate::plain_json::PlainJson;
use crate::quantity::Quantity;

/// Most topics of a log (`LOG4` of the EVM).
const TOPICS: usize = 4;

/// Reads the logs of a block in the node's order; `None` if the answer is not plain, or if a log is malformed, of
/// another block, or marked removed.
pub(super) fn read(block: BlockRef, answer: &Bytes) -> Option<Vec<Read>> {
    let own_hash = format!("\"{:#x}\"", block.hash);
    let mut json = PlainJson::new(answer)?;
    let mut all = Vec::new();
    json.array(|json| {
        let start = json.position();
        let mut members = Members::default();
        json.object(|json, key| members.read(json, key))?;
        let text = start..json.position();
        all.push(members.into_log(block, &own_hash, all.len(), answer, text)?);
        Some(())
    })?;
    json.is_at_end().then_some(all)
}

/// Members of a log that decide anything; those that nodes write in several forms as JSON text.
#[derive(Default)]
struct Members<'a> {
    address: Option<Address>,
    topics: Option<Vec<B256>>,
    block_hash: Option<&'a str>,
    block_number: Option<&'a str>,
    log_index: Option<&'a str>,
    transaction_hash: Option<&'a str>,
    /// Value of `removed`, with its range in the answer.
    removed: Option<(&'a str, Range<usize>)>,
}

impl<'a> Members<'a> {
    fn read(&mut self, json: &mut PlainJson<'a>, key: &str) -> Option<()> {
        match key {
            "address" => once(&mut self.address, word(json.string()?)?.into()),
            "topics" => once(&mut self.topics, topics(json)?),
            "blockHash" => once(&mut self.block_hash, json.value()?),
            "blockNumber" => once(&mut self.block_number, json.value()?),
            "logIndex" => once(&mut self.log_index, json.value()?),
            "transactionHash" => once(&mut self.transaction_hash, json.value()?),
            "removed" => {
                let start = json.position();
                let value = json.value()?;
                once(&mut self.removed, (value, start..json.position()))
            }
            _ => json.value().map(drop),
        }
    }

    /// Builds the log with the text at this range of the answer, as [`Read::parse`] does.
    fn into_log(
        self,
        block: BlockRef,
        own_hash: &str,
        position: usize,
        answer: &Bytes,
        text: Range<usize>,
    ) -> Option<Read> {
        let present = |value: Option<&'a str>| value.filter(|value| *value != "null");
        let named = match present(self.block_hash) {
            None => None,
            Some(hash) if hash == own_hash => Some(block.hash),
            Some(hash) => {
                Some(B256::from(word(hash.strip_prefix('"')?.strip_suffix('"')?)?)).filter(|hash| !hash.is_zero())
            }
        };
        let number = || self.block_number.and_then(Quantity::parse);
        if named.is_none() && number().is_some_and(|number| number != block.number) {
            return None;
        }
        let removed = match self.removed {
            Some(("true", _)) => return None,
            Some(("null", _)) | None => None,
            Some((_, at)) => Some(at.start - text.start..at.end - text.start),
        };
        let index = self.log_index.and_then(Quantity::parse);
        Some(Read {
            log: Log {
                address: self.address?,
                topics: self.topics?,
                index: index.unwrap_or(position as u64),
                json: answer.slice(text),
                removed,
            },
            disputed: named.is_some_and(|hash| hash != block.hash),
            placed: index.is_some() && present(self.transaction_hash).is_some(),
        })
    }
}

/// Stores the value of a member; `None` if the member is repeated.
fn once<T>(member: &mut Option<T>, value: T) -> Option<()> {
    member.replace(value).is_none().then_some(())
}

fn topics(json: &mut PlainJson<'_>) -> Option<Vec<B256>> {
    let (mut topics, mut count) = ([B256::ZERO; TOPICS], 0);
    json.array(|json| {
        *topics.get_mut(count)? = word(json.string()?)?.into();
        count += 1;
        Some(())
    })?;
    Some(topics[..count].to_vec())
}

fn word<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    let mut word = [0; LEN];
    let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 2 * LEN)?;
    hex::decode_to_slice(digits, &mut word).ok()?;
    Some(word)
}
