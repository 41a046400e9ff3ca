//! The canonical form of a `logs` filter, read with geth's grammar and geth's error texts (PROTOCOL 1.5).
//!
//! Equal filters become equal values whatever their order, case or repetitions, so that clients with equal filters
//! share one entry of the index.

use alloy_primitives::{Address, B256, hex};
use serde_json::{Map, Value};

use super::criteria::Criteria;
use super::ranged::{ALL_BLOCKS, Range};
use super::topics::Topics;
use crate::chain::{Log, LogQuery};
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, SERVER_ERROR, error};

/// Most topic positions (geth `eth/filters/api.go`, `maxTopics`).
pub(super) const MAX_TOPICS: usize = 4;
/// Most alternatives in one topic position (geth `maxSubTopics`).
pub(super) const MAX_SUB_TOPICS: usize = 1000;
/// Most addresses (geth's default of `--rpc.logquerylimit`).
pub(super) const MAX_ADDRESSES: usize = 1000;

/// Filter of a `logs` subscription.
///
/// The number of topic positions counts, wildcards included: a filter of n positions needs a log of at least n topics
/// (geth, besu, nethermind; PROTOCOL fact 14).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogFilter {
    criteria: Criteria,
    /// Block range, both ends included: bounds live logs and never replays.
    blocks: Range,
}

impl Default for LogFilter {
    fn default() -> Self {
        Self {
            criteria: Criteria::default(),
            blocks: ALL_BLOCKS,
        }
    }
}

impl LogFilter {
    /// Reads the second parameter of `eth_subscribe("logs", …)`. `null` matches everything, as web3.js 4 sends it. A
    /// `blockHash` is checked and otherwise ignored.
    ///
    /// # Errors
    /// geth's error if a field is malformed or exceeds a limit, or if the block range is not valid.
    pub fn parse(value: &Value) -> Result<Self, ErrorObjectOwned> {
        let fields = match value {
            Value::Null => return Ok(Self::default()),
            Value::Object(fields) => fields,
            other => return Err(no_input(other)),
        };
        let present = |name: &str| field(fields, name);
        if let Some(hash) = present("blockHash") {
            read_hash(hash, "blockHash").map_err(argument)?;
        }
        let from = present("fromBlock").map(Tag::parse).transpose().map_err(argument)?;
        let to = present("toBlock").map(Tag::parse).transpose().map_err(argument)?;
        let positions = topics_array(fields)?;
        if present("blockHash").is_some() && (from.is_some() || to.is_some()) {
            return Err(argument(
                "cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other".into(),
            ));
        }
        let addresses = addresses(present("address"))?;
        if positions.len() > MAX_TOPICS {
            return Err(argument("exceed max topics".into()));
        }
        let topics = positions.iter().map(position).collect::<Result<Vec<_>, _>>()?;
        if topics.iter().any(|position| position.len() > MAX_SUB_TOPICS) {
            return Err(argument("exceed max topics".into()));
        }
        if addresses.len() > MAX_ADDRESSES {
            return Err(error(
                SERVER_ERROR,
                "exceed max addresses or topics per search position",
            ));
        }
        Ok(Self {
            criteria: criteria(addresses, topics),
            blocks: range(from, to)?,
        })
    }

    /// Checks if the filter matches this log of block `number`, as geth's `filterLogs` does.
    #[must_use]
    pub fn matches(&self, log: &Log, number: u64) -> bool {
        let (from, to) = self.blocks;
        (from..=to).contains(&number) && self.criteria.matches(log)
    }

    /// Returns the filter without its block range, as sent to nodes and checked against blooms.
    #[must_use]
    pub fn query(&self) -> LogQuery {
        let topics: Vec<_> = self.criteria.topics.iter().collect();
        LogQuery::new(&self.criteria.addresses, &topics)
    }

    /// Checks if the filter names neither addresses nor topics; it may still require a number of topics.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.criteria.addresses.is_empty() && self.criteria.topics.iter().all(|position| position.is_empty())
    }

    /// Returns the lower bound of the live logs, 0 for none.
    #[must_use]
    pub fn first_block(&self) -> u64 {
        self.blocks.0
    }

    /// Returns the addresses that match, sorted; empty means any.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.criteria.addresses
    }

    /// Returns the topics that match at a position, sorted; empty means any.
    #[must_use]
    pub fn topics_at(&self, position: usize) -> &[B256] {
        self.criteria.topics.at(position)
    }

    /// Returns the index entries that the filter is charged: addresses times topics, each at least one, and more if
    /// it has too many combinations of them to be indexed by all.
    #[must_use]
    pub fn index_entries(&self) -> usize {
        let topics: usize = self.criteria.topics.iter().map(|position| position.len()).sum();
        let named = self.criteria.addresses.len().max(1) * topics.max(1);
        named.max(self.criteria.index_entries())
    }

    /// Splits the filter into its criteria and its block range.
    pub(super) fn into_parts(self) -> (Criteria, Range) {
        (self.criteria, self.blocks)
    }

    #[cfg(test)]
    pub(crate) fn of(addresses: Vec<Address>, topics: Vec<Vec<B256>>) -> Self {
        Self {
            criteria: criteria(addresses, topics),
            blocks: ALL_BLOCKS,
        }
    }

    /// Returns the filter with this block range.
    #[cfg(test)]
    pub(crate) fn within(self, blocks: (u64, u64)) -> Self {
        Self { blocks, ..self }
    }
}

fn criteria(addresses: Vec<Address>, topics: Vec<Vec<B256>>) -> Criteria {
    let topics: Vec<_> = topics.into_iter().map(canonical).collect();
    Criteria {
        addresses: canonical(addresses),
        topics: Topics::new(&topics),
    }
}

pub(super) fn canonical<T: Ord>(mut values: Vec<T>) -> Box<[T]> {
    values.sort_unstable();
    values.dedup();
    values.into()
}

/// Returns Go's error for a value that is not an object in place of geth's options.
pub(super) fn no_input(value: &Value) -> ErrorObjectOwned {
    let kind = go_type(value);
    argument(format!(
        "json: cannot unmarshal {kind} into Go value of type filters.input"
    ))
}

/// Returns a field that is present and not `null`. Go matches field names in any case: to ignore a field in another
/// case would send everything to a client that filters. Of several spellings, the last in the map's byte order
/// counts, which is the one in lower case.
pub(super) fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let mut named = fields.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
    let (_, value) = named.next_back()?;
    (!value.is_null()).then_some(value)
}

/// Builds geth's error for the filter; geth names the position of the parameter, counting the kind as 0.
pub(super) fn argument(message: String) -> ErrorObjectOwned {
    error(INVALID_PARAMS, format!("invalid argument 1: {message}"))
}

/// Returns the name that Go's JSON reader uses for the type of a value.
pub(super) fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Decodes hex as geth's `hexutil.Decode` does, with the same error texts.
fn decode_hex(text: &str) -> Result<Vec<u8>, &'static str> {
    if text.is_empty() {
        return Err("empty hex string");
    }
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .ok_or("hex string without 0x prefix")?;
    // geth reports an invalid digit before an odd length.
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err("invalid hex string");
    }
    hex::decode(digits).map_err(|_| "hex string of odd length")
}

fn fixed<const N: usize>(text: &str, what: &str) -> Result<[u8; N], String> {
    let bytes = decode_hex(text)?;
    let len = bytes.len();
    bytes
        .try_into()
        .map_err(|_| format!("hex has invalid length {len} after decoding; expected {N} for {what}"))
}

/// Reads an address as geth does: in either case, without checking the checksum.
pub(super) fn address(text: &str) -> Result<Address, String> {
    fixed::<20>(text, "address").map(Address::from)
}

/// Reads a hash in this field as geth's `hexutil.UnmarshalFixedJSON` does, which wraps only some of its errors.
pub(super) fn read_hash(value: &Value, field: &str) -> Result<B256, String> {
    let unreadable =
        |what: &str| format!("json: cannot unmarshal {what} into Go struct field input.{field} of type common.Hash");
    let Value::String(text) = value else {
        return Err(unreadable("non-string"));
    };
    let digits = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => digits,
        None if text.is_empty() => text,
        None => return Err(unreadable("hex string without 0x prefix")),
    };
    if digits.len() % 2 == 1 {
        return Err(unreadable("hex string of odd length"));
    }
    if digits.len() != 64 {
        return Err(format!(
            "hex string has length {}, want 64 for common.Hash",
            digits.len()
        ));
    }
    decode_hex(text)
        .map(|bytes| B256::from_slice(&bytes))
        .map_err(unreadable)
}

fn addresses(value: Option<&Value>) -> Result<Vec<Address>, ErrorObjectOwned> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => address(text)
            .map(|one| vec![one])
            .map_err(|why| argument(format!("invalid address: {why}"))),
        Some(Value::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(i, item)| match item {
                Value::String(text) => {
                    address(text).map_err(|why| argument(format!("invalid address at index {i}: {why}")))
                }
                _ => Err(argument(format!("non-string address at index {i}"))),
            })
            .collect(),
        Some(_) => Err(argument("invalid addresses in query".into())),
    }
}

fn topics_array(fields: &Map<String, Value>) -> Result<&[Value], ErrorObjectOwned> {
    match field(fields, "topics") {
        None => Ok(&[]),
        Some(Value::Array(positions)) => Ok(positions),
        Some(other) => Err(argument(format!(
            "json: cannot unmarshal {} into Go struct field input.topics of type []interface {{}}",
            go_type(other)
        ))),
    }
}

/// Reads one topic position; an empty result means any. A `null` among alternatives makes a wildcard, and the
/// alternatives after it are not read.
fn position(value: &Value) -> Result<Vec<B256>, ErrorObjectOwned> {
    let topic = |text: &str| fixed::<32>(text, "topic").map(B256::from).map_err(argument);
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(vec![topic(text)?]),
        Value::Array(alternatives) => {
            let mut wanted = Vec::with_capacity(alternatives.len());
            for alternative in alternatives {
                match alternative {
                    Value::Null => return Ok(Vec::new()),
                    Value::String(text) => wanted.push(topic(text)?),
                    _ => return Err(argument("invalid topic(s)".into())),
                }
            }
            Ok(wanted)
        }
        _ => Err(argument("invalid topic(s)".into())),
    }
}

/// Block parameter of the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Number(u64),
    Earliest,
    Latest,
    Pending,
    /// `safe` and `finalized`.
    Settled,
}

impl Tag {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = match value {
            Value::String(text) => text.as_str(),
            _ => return Err("hex string without 0x prefix".into()),
        };
        Ok(match text {
            "earliest" => Self::Earliest,
            "latest" => Self::Latest,
            "pending" => Self::Pending,
            "safe" | "finalized" => Self::Settled,
            "" => return Err("empty hex string".into()),
            _ => {
                let digits = text
                    .strip_prefix("0x")
                    .or_else(|| text.strip_prefix("0X"))
                    .ok_or("hex string without 0x prefix")?;
                if digits.is_empty() {
                    return Err("hex string \"0x\"".into());
                }
                if digits.len() > 1 && digits.starts_with('0') {
                    return Err("hex number with leading zero digits".into());
                }
                if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return Err("invalid hex string".into());
                }
                let number = u64::from_str_radix(digits, 16).map_err(|_| "hex number > 64 bits")?;
                if number > i64::MAX as u64 {
                    return Err("block number larger than int64".into());
                }
                Self::Number(number)
            }
        })
    }
}

/// Checks the range as geth's `SubscribeLogs` does; a start in the past means "from now on" (PROTOCOL fact 15:
/// go-ethereum's client always sends `0x0`).
fn range(from: Option<Tag>, to: Option<Tag>) -> Result<(u64, u64), ErrorObjectOwned> {
    let (from, to) = (from.unwrap_or(Tag::Latest), to.unwrap_or(Tag::Latest));
    if from == Tag::Pending || to == Tag::Pending {
        return Err(error(INVALID_PARAMS, "pending logs are not supported"));
    }
    let from = if from == Tag::Earliest { Tag::Number(0) } else { from };
    match (from, to) {
        (Tag::Latest, Tag::Latest) => Ok((0, u64::MAX)),
        (Tag::Number(first), Tag::Latest) => Ok((first, u64::MAX)),
        (Tag::Number(first), Tag::Number(last)) if first <= last => Ok((first, last)),
        _ => Err(error(INVALID_PARAMS, "invalid block range params")),
    }
}

#[cfg(test)]
mod tests;
