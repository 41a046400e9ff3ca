//! The log filter with geth's grammar and geth's predicate.

use alloy_primitives::{Address, B256, Log};
use serde_json::Value;

use super::{
    params::{BlockTag, hex_bytes},
    rpc::RpcError,
};

/// Maximum number of topic positions, and of topics of a log.
const MAX_TOPICS: usize = 4;

/// A filter of logs by block, address and topics.
///
/// A filter with n topic positions matches only logs of at least n topics, also if the last positions are wildcards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    pub(super) blocks: Blocks,
    /// Accepted addresses; empty for any address.
    addresses: Vec<Address>,
    /// Accepted topics for each position; empty for any topic.
    topics: Vec<Vec<B256>>,
}

/// The blocks to which a filter applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Blocks {
    Hash(B256),
    Range { from: BlockTag, to: BlockTag },
}

impl Default for Blocks {
    fn default() -> Self {
        Self::Range {
            from: BlockTag::Latest,
            to: BlockTag::Latest,
        }
    }
}

impl LogFilter {
    /// Parses a filter object; `null` is the filter that matches everything.
    ///
    /// # Errors
    ///
    /// Returns -32602 with geth's message if `value` is not a valid filter.
    pub fn parse(value: &Value) -> Result<Self, RpcError> {
        let invalid = |what: &str| RpcError::invalid_argument(0, what);
        let object = match value {
            Value::Null => return Ok(Self::default()),
            Value::Object(object) => object,
            other => {
                let what = match other {
                    Value::Bool(_) => "bool",
                    Value::Number(_) => "number",
                    Value::String(_) => "string",
                    _ => "array",
                };
                return Err(invalid(&format!(
                    "json: cannot unmarshal {what} into Go value of type filters.input"
                )));
            }
        };
        let field = |name| object.get(name).filter(|value| !value.is_null());
        let tag = |name| {
            field(name)
                .map(BlockTag::parse)
                .transpose()
                .map_err(|error| invalid(&error))
        };
        let (from, to) = (tag("fromBlock")?, tag("toBlock")?);
        let blocks = match field("blockHash") {
            Some(_) if from.is_some() || to.is_some() => {
                let both = "cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other";
                return Err(invalid(both));
            }
            Some(hash) => Blocks::Hash(parse_word(hash).map_err(|error| invalid(&error))?),
            None => Blocks::Range {
                from: from.unwrap_or(BlockTag::Latest),
                to: to.unwrap_or(BlockTag::Latest),
            },
        };
        let addresses = field("address")
            .map_or(Ok(Vec::new()), parse_addresses)
            .map_err(|error| invalid(&error))?;
        let topics = field("topics")
            .map_or(Ok(Vec::new()), parse_topics)
            .map_err(|error| invalid(&error))?;
        Ok(Self {
            blocks,
            addresses,
            topics,
        })
    }

    /// Refuses the ranges that geth's subscriptions refuse. Ranges that begin in the past are accepted, but nothing is
    /// replayed.
    pub(super) fn check_live(&self) -> Result<(), RpcError> {
        use BlockTag::{Earliest, Finalized, Latest, Number, Pending, Safe};
        let Blocks::Range { from, to } = &self.blocks else {
            return Ok(());
        };
        match (from, to) {
            (Pending, _) | (_, Pending) => Err(RpcError::new(-32602, "pending logs are not supported")),
            (Number(from), Number(to)) if from <= to => Ok(()),
            (Safe | Finalized, _) | (_, Safe | Finalized | Earliest | Number(_)) => {
                Err(RpcError::new(-32602, "invalid block range params"))
            }
            (Number(_) | Earliest | Latest, Latest) => Ok(()),
        }
    }

    /// Checks if a log's address and topics match.
    pub fn matches(&self, log: &Log) -> bool {
        let topics = log.topics();
        (self.addresses.is_empty() || self.addresses.contains(&log.address))
            && self.topics.len() <= topics.len()
            && self
                .topics
                .iter()
                .zip(topics)
                .all(|(wanted, topic)| wanted.is_empty() || wanted.contains(topic))
    }

    /// Checks if live logs of this block match: numeric bounds hold, all others do not bound the future.
    pub(super) fn covers(&self, number: u64) -> bool {
        match &self.blocks {
            Blocks::Hash(_) => true,
            Blocks::Range { from, to } => {
                !matches!(from, BlockTag::Number(from) if number < *from)
                    && !matches!(to, BlockTag::Number(to) if number > *to)
            }
        }
    }
}

fn parse_addresses(value: &Value) -> Result<Vec<Address>, String> {
    let parse = |text: &str| {
        let bytes = hex_bytes(text)?;
        Address::try_from(&bytes[..]).map_err(|_| {
            format!(
                "hex has invalid length {} after decoding; expected 20 for address",
                bytes.len()
            )
        })
    };
    match value {
        Value::String(text) => Ok(vec![parse(text).map_err(|error| format!("invalid address: {error}"))?]),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let text = item
                    .as_str()
                    .ok_or_else(|| format!("non-string address at index {index}"))?;
                parse(text).map_err(|error| format!("invalid address at index {index}: {error}"))
            })
            .collect(),
        _ => Err("invalid addresses in query".to_owned()),
    }
}

fn parse_topics(value: &Value) -> Result<Vec<Vec<B256>>, String> {
    let Value::Array(positions) = value else {
        return Err("json: cannot unmarshal into Go struct field input.topics of type []interface {}".to_owned());
    };
    if positions.len() > MAX_TOPICS {
        return Err("exceed max topics".to_owned());
    }
    let position = |value: &Value| match value {
        Value::Null => Ok(Vec::new()),
        Value::String(_) => Ok(vec![parse_word(value)?]),
        Value::Array(items) => {
            let mut topics = Vec::with_capacity(items.len());
            for item in items {
                match item {
                    // A null anywhere makes the position a wildcard, and the items after it are not checked.
                    Value::Null => return Ok(Vec::new()),
                    Value::String(_) => topics.push(parse_word(item)?),
                    _ => return Err("invalid topic(s)".to_owned()),
                }
            }
            Ok(topics)
        }
        _ => Err("invalid topic(s)".to_owned()),
    };
    positions.iter().map(position).collect()
}

fn parse_word(value: &Value) -> Result<B256, String> {
    let bytes = hex_bytes(value.as_str().ok_or("invalid topic(s)")?)?;
    B256::try_from(&bytes[..]).map_err(|_| {
        format!(
            "hex has invalid length {} after decoding; expected 32 for topic",
            bytes.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use alloy_primitives::LogData;
    use serde_json::json;

    use super::*;

    fn word(byte: u8) -> B256 {
        B256::repeat_byte(byte)
    }

    /// Builds a log of address 0xaa… with the given topics.
    fn log(topics: &[u8]) -> Log {
        let topics = topics.iter().map(|byte| word(*byte)).collect();
        Log {
            address: Address::repeat_byte(0xaa),
            data: LogData::new_unchecked(topics, Default::default()),
        }
    }

    #[test]
    fn predicate_is_geths() {
        let (a, b) = (Address::repeat_byte(0xaa), Address::repeat_byte(0xbb));
        for (filter, topics, wanted) in [
            (json!(null), &[][..], true),
            (json!({}), &[1, 2], true),
            (json!({"address": a}), &[1], true),
            (json!({"address": b}), &[1], false),
            (json!({"address": [b, a]}), &[1], true),
            (json!({"address": []}), &[1], true),
            (json!({"topics": []}), &[], true),
            (json!({"topics": [null]}), &[], false),
            (json!({"topics": [[]]}), &[], false),
            (json!({"topics": [word(1)]}), &[1, 2, 3], true),
            (json!({"topics": [word(2)]}), &[1, 2, 3], false),
            (json!({"topics": [word(1), null]}), &[1], false),
            (json!({"topics": [word(1), null]}), &[1, 2], true),
            (json!({"topics": [null, word(2)]}), &[1, 2], true),
            (json!({"topics": [[word(1), word(2)]]}), &[2], true),
            (json!({"topics": [[word(1), null, "bad"]]}), &[9], true),
            (json!({"topics": [null, null, null, null]}), &[1, 2, 3], false),
        ] {
            let parsed = LogFilter::parse(&filter).unwrap();
            assert_eq!(parsed.matches(&log(topics)), wanted, "{filter} on {topics:?}");
        }
    }

    #[test]
    fn refusals_are_geths() {
        for (filter, message) in [
            (
                json!(true),
                "invalid argument 0: json: cannot unmarshal bool into Go value of type filters.input",
            ),
            (
                json!({"address": "0x123"}),
                "invalid argument 0: invalid address: hex string of odd length",
            ),
            (
                json!({"address": ["0xaa"]}),
                "invalid argument 0: invalid address at index 0: hex has invalid length 1 after decoding; expected 20 for address",
            ),
            (
                json!({"address": [1]}),
                "invalid argument 0: non-string address at index 0",
            ),
            (
                json!({"topics": [null, null, null, null, null]}),
                "invalid argument 0: exceed max topics",
            ),
            (
                json!({"topics": ["0xaa"]}),
                "invalid argument 0: hex has invalid length 1 after decoding; expected 32 for topic",
            ),
            (json!({"topics": [1]}), "invalid argument 0: invalid topic(s)"),
            (
                json!({"fromBlock": "256"}),
                "invalid argument 0: hex string without 0x prefix",
            ),
            (
                json!({"blockHash": word(1), "toBlock": "latest"}),
                "invalid argument 0: cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other",
            ),
        ] {
            let error = LogFilter::parse(&filter).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (-32602, message));
        }
    }

    #[test]
    fn live_ranges_are_geths() {
        for (from, to, accepted) in [
            ("0x0", "latest", true),
            ("earliest", "latest", true),
            ("0x1", "0x2", true),
            ("0x2", "0x1", false),
            ("latest", "0x5", false),
            ("safe", "latest", false),
            ("latest", "finalized", false),
            ("pending", "latest", false),
        ] {
            let filter = LogFilter::parse(&json!({"fromBlock": from, "toBlock": to})).unwrap();
            assert_eq!(filter.check_live().is_ok(), accepted, "{from}..{to}");
        }
        let filter = LogFilter::parse(&json!({"fromBlock": "0x2", "toBlock": "0x3"})).unwrap();
        assert_eq!(
            [1, 2, 3, 4].map(|number| filter.covers(number)),
            [false, true, true, false]
        );
    }
}
