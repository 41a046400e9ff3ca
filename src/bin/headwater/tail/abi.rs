//! Events by which logs are decoded, from signatures and ABI files.

use std::collections::HashMap;

use alloy_dyn_abi::{DynSolEvent, DynSolType, DynSolValue};
use alloy_json_abi::{Event, JsonAbi};
use alloy_primitives::B256;
use serde_json::Value;

use super::event::Log;

/// Bound on the words that a log's data may decode to, if all its offsets point at the longest array in it.
const MAX_WORDS: u128 = 1 << 20;

/// Most topics of a log.
const MAX_TOPICS: usize = 4;

/// Events by their first topic. Two can share it: the `Transfer` of ERC-20 and of ERC-721 differ only in what is indexed.
#[derive(Debug, Default)]
pub(super) struct Events(HashMap<B256, Vec<Known>>);

/// An event that can be decoded.
#[derive(Debug)]
struct Known {
    name: String,
    signature: String,
    parameters: Vec<Parameter>,
    /// Number of indexed parameters; `None` if the signature does not say which, so that the log's topics decide.
    indexed: Option<usize>,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    ty: DynSolType,
    indexed: bool,
}

/// A decoded log.
#[derive(Debug)]
pub(super) struct Decoded<'a> {
    pub(super) name: &'a str,
    pub(super) signature: &'a str,
    /// In the order of the signature. The name is empty if the signature has none.
    pub(super) arguments: Vec<(&'a str, Argument)>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Argument {
    Value(DynSolValue),
    /// Hash of an indexed value that does not fit a topic; the value is not in the log.
    Hash(B256),
}

impl Events {
    /// Reads the ABI files, by their names and contents, and the `--event` flags: a signature, or the name of an event
    /// in the files. Returns the events, and the first topics that the flags ask for.
    ///
    /// # Errors
    /// If a file is not an ABI, or a flag is neither a signature nor the name of an event in a file.
    pub(super) fn new(files: &[(String, String)], flags: &[String]) -> Result<(Self, Vec<B256>), String> {
        let (mut events, mut topics) = (Self::default(), Vec::new());
        let mut by_name: HashMap<String, Vec<B256>> = HashMap::new();
        for (path, content) in files {
            for event in abi(content).map_err(|why| format!("{path}: {why}"))?.events() {
                // Without a topic of its own, an anonymous event cannot be distinguished from others.
                if event.anonymous {
                    continue;
                }
                let known = Known::new(event, true).map_err(|why| format!("{path}: event {}: {why}", event.name))?;
                by_name.entry(event.name.clone()).or_default().push(event.selector());
                events.add(event.selector(), known);
            }
        }
        for flag in flags {
            let asked = match by_name.get(flag.trim()) {
                Some(named) => named.clone(),
                None if flag.contains('(') => {
                    let event = signature(flag)?;
                    let says_indexed = event.inputs.iter().any(|input| input.indexed);
                    let known = Known::new(&event, says_indexed).map_err(|why| format!("--event {flag:?}: {why}"))?;
                    let topic = event.selector();
                    // An ABI knows which parameters are indexed, and their names: a bare signature adds nothing to it.
                    if says_indexed || !events.0.contains_key(&topic) {
                        events.add(topic, known);
                    }
                    vec![topic]
                }
                None if files.is_empty() => {
                    return Err(format!(
                        "--event {flag:?} is not a signature such as 'Transfer(address,address,uint256)'; a name alone needs --abi"
                    ));
                }
                None => return Err(format!("--event {flag:?}: no file of --abi has such an event")),
            };
            for topic in asked {
                if !topics.contains(&topic) {
                    topics.push(topic);
                }
            }
        }
        Ok((events, topics))
    }

    fn add(&mut self, topic: B256, known: Known) {
        let same = self.0.entry(topic).or_default();
        if !same.iter().any(|other| other.indexed == known.indexed) {
            same.push(known);
        }
    }

    /// Decodes a log; `None` if no event fits it.
    pub(super) fn decode(&self, log: &Log) -> Option<Decoded<'_>> {
        let (first, topics) = log.topics.split_first()?;
        self.0
            .get(first)?
            .iter()
            .find_map(|known| known.decode(topics, &log.data))
    }
}

/// Reads an ABI: the array itself, or a compiler's artefact that has it as its member `abi`.
fn abi(content: &str) -> Result<JsonAbi, String> {
    let json: Value = serde_json::from_str(content).map_err(|why| format!("not JSON: {why}"))?;
    let abi = match json {
        Value::Object(mut artefact) => artefact
            .remove("abi")
            .ok_or("neither an ABI (an array) nor an artefact with a member \"abi\"")?,
        other => other,
    };
    serde_json::from_value(abi).map_err(|why| format!("not an ABI: {why}"))
}

fn signature(flag: &str) -> Result<Event, String> {
    let parsed = Event::parse(flag).map_err(|_| {
        format!("--event {flag:?} is not a signature; write it as 'Transfer(address indexed from, address indexed to, uint256 value)'")
    })?;
    if parsed.anonymous {
        return Err(format!(
            "--event {flag:?}: an anonymous event has no topic to filter by; use --topic"
        ));
    }
    Ok(parsed)
}

impl Known {
    fn new(event: &Event, says_indexed: bool) -> Result<Self, String> {
        let mut parameters = Vec::with_capacity(event.inputs.len());
        for input in &event.inputs {
            let ty = input.selector_type();
            let ty: DynSolType = ty.parse().map_err(|_| format!("{ty:?} is not a type"))?;
            if is_empty(&ty) {
                return Err(format!("a value of type {ty} is empty"));
            }
            parameters.push(Parameter {
                name: input.name.clone(),
                ty,
                indexed: input.indexed,
            });
        }
        let indexed = parameters.iter().filter(|parameter| parameter.indexed).count();
        if indexed >= MAX_TOPICS {
            return Err("at most 3 parameters can be indexed".to_owned());
        }
        Ok(Self {
            name: event.name.clone(),
            signature: event.signature(),
            parameters,
            indexed: says_indexed.then_some(indexed),
        })
    }

    fn decode(&self, topics: &[B256], data: &[u8]) -> Option<Decoded<'_>> {
        // Where the signature does not say what is indexed, the first parameters are, as nearly all contracts have it.
        let is_indexed = |at: usize| match self.indexed {
            Some(_) => self.parameters[at].indexed,
            None => at < topics.len(),
        };
        if self.indexed.is_some_and(|indexed| indexed != topics.len()) || topics.len() > self.parameters.len() {
            return None;
        }
        let (mut indexed, mut body) = (Vec::new(), Vec::new());
        for (at, parameter) in self.parameters.iter().enumerate() {
            let side = if is_indexed(at) { &mut indexed } else { &mut body };
            side.push(parameter.ty.clone());
        }
        let body = DynSolType::Tuple(body);
        if words(&body, data.len()) > MAX_WORDS {
            return None;
        }
        let event = DynSolEvent::new_unchecked(None, indexed, body);
        let decoded = event.decode_log_parts(topics.iter().copied(), data).ok()?;
        let (mut indexed, mut body) = (decoded.indexed.into_iter(), decoded.body.into_iter());
        let mut arguments = Vec::with_capacity(self.parameters.len());
        for (at, parameter) in self.parameters.iter().enumerate() {
            let argument = match is_indexed(at) {
                false => Argument::Value(body.next()?),
                true if is_hashed(&parameter.ty) => {
                    Argument::Hash(indexed.next()?.as_fixed_bytes()?.0.try_into().ok()?)
                }
                true => Argument::Value(indexed.next()?),
            };
            arguments.push((parameter.name.as_str(), argument));
        }
        Some(Decoded {
            name: &self.name,
            signature: &self.signature,
            arguments,
        })
    }
}

/// Checks if an indexed value of this type is in the log as its hash only.
fn is_hashed(ty: &DynSolType) -> bool {
    use DynSolType::{Array, Bytes, FixedArray, String, Tuple};
    matches!(ty, Bytes | String | Array(_) | FixedArray(..) | Tuple(_))
}

/// Checks if a value of this type, or an element of it, takes no bytes, so that data of any length holds any number.
fn is_empty(ty: &DynSolType) -> bool {
    match ty {
        DynSolType::Tuple(types) => types.is_empty() || types.iter().any(is_empty),
        DynSolType::FixedArray(inner, length) => *length == 0 || is_empty(inner),
        DynSolType::Array(inner) => is_empty(inner),
        _ => false,
    }
}

/// Returns a bound on the words that data of this length decodes to. Offsets may share what they point at, so each level
/// of arrays can repeat all of the next: the data of one log would decode to gigabytes.
fn words(ty: &DynSolType, length: usize) -> u128 {
    let levels = levels(ty).max(1);
    let share = (length / 32 / levels as usize) as u128 + 1;
    share.saturating_pow(levels).saturating_mul(levels.into())
}

/// Returns the number of nested values whose length is in the data.
fn levels(ty: &DynSolType) -> u32 {
    match ty {
        DynSolType::Bytes | DynSolType::String => 1,
        DynSolType::Array(inner) => 1 + levels(inner),
        DynSolType::FixedArray(inner, _) => levels(inner),
        DynSolType::Tuple(types) => types.iter().map(levels).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
