//! The blocks of the scripted node, and an ordinary node's answers from them.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::Answer;
use super::block::{Made, Mine, word};

/// The answer to a block number that has no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    Null,
    Error,
    /// The nearest block below.
    Before,
}

pub struct Chain {
    blocks: HashMap<String, Made>,
    canonical: BTreeMap<u64, String>,
    pub head: Made,
    pub hole: Hole,
}

impl Chain {
    pub fn genesis() -> Self {
        let head = Mine::default().made(0, &word("").to_string());
        Self {
            blocks: HashMap::from([(head.hash(), head.clone())]),
            canonical: BTreeMap::from([(0, head.hash())]),
            head,
            hole: Hole::Null,
        }
    }

    /// Makes a block the head and its branch canonical.
    pub fn adopt(&mut self, made: Made) {
        self.canonical.split_off(&made.number());
        self.canonical.insert(made.number(), made.hash());
        self.blocks.insert(made.hash(), made.clone());
        self.head = made.clone();
        let mut child = made;
        while let Some(parent) = self.blocks.get(&child.parent()) {
            if parent.number() >= child.number() {
                break;
            }
            self.canonical
                .retain(|number, _| *number <= parent.number() || *number >= child.number());
            if self.canonical.insert(parent.number(), parent.hash()) == Some(parent.hash()) {
                break;
            }
            child = parent.clone();
        }
    }

    pub fn block(&self, number: u64) -> Option<&Made> {
        self.blocks.get(self.canonical.get(&number)?)
    }

    /// Returns the canonical blocks, oldest first.
    pub fn canonical(&self) -> impl Iterator<Item = &Made> {
        self.canonical.values().map(|hash| &self.blocks[hash])
    }

    /// Returns the answer to a method that reads the chain; `None` for other methods.
    pub fn answer(&self, method: &str, params: &Value) -> Option<Answer> {
        let found = || self.find(&params[0]);
        let answered = match method {
            "eth_blockNumber" => Ok(self.head.header["number"].clone()),
            "eth_getBlockByNumber" | "eth_getBlockByHash" => {
                found().map(|made| json!(made.map(|made| made.block(params[1] == true))))
            }
            "eth_getBlockReceipts" => found().map(|made| json!(made.map(Made::receipts))),
            "eth_getLogs" => self.logs(&params[0]),
            _ => return None,
        };
        Some(answered.map_or_else(|refused| refused, Answer::Result))
    }

    /// Finds a block by number, tag or hash.
    fn find(&self, name: &Value) -> Result<Option<&Made>, Answer> {
        let name = name["blockHash"].as_str().or(name.as_str()).unwrap_or("latest");
        let number = match name {
            hash if hash.len() == 66 => return Ok(self.blocks.get(hash)),
            "earliest" => 0,
            "latest" | "pending" | "safe" | "finalized" => return Ok(Some(&self.head)),
            number => quantity(number),
        };
        match (self.block(number), self.hole) {
            (Some(made), _) => Ok(Some(made)),
            (None, _) if number > self.head.number() => Ok(None),
            (None, Hole::Null) => Ok(None),
            (None, Hole::Error) => Err(Answer::error(-32000, "requested epoch was a null round")),
            (None, Hole::Before) => {
                let below = self.canonical.range(..number).next_back();
                Ok(below.map(|(_, hash)| &self.blocks[hash]))
            }
        }
    }

    fn logs(&self, filter: &Value) -> Result<Value, Answer> {
        let blocks: Vec<&Made> = if let Some(hash) = filter["blockHash"].as_str() {
            let unknown = || Answer::error(-32000, "unknown block");
            vec![self.blocks.get(hash).ok_or_else(unknown)?]
        } else {
            let edge = |name: &Value| match name.as_str() {
                Some("earliest") => 0,
                Some(number) if number.starts_with("0x") => quantity(number),
                _ => self.head.number(),
            };
            let range = edge(&filter["fromBlock"])..=edge(&filter["toBlock"]);
            self.canonical().filter(|made| range.contains(&made.number())).collect()
        };
        let logs = blocks.into_iter().flat_map(|made| &made.logs);
        Ok(json!(logs.filter(|log| selects(filter, log)).collect::<Vec<_>>()))
    }
}

fn quantity(hex: &str) -> u64 {
    u64::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap()
}

/// Checks if a log matches the addresses and topics of a filter, by geth's rules.
fn selects(filter: &Value, log: &Value) -> bool {
    let any = |wanted: &Value, have: &Value| match wanted {
        Value::Null => true,
        Value::Array(alternatives) => alternatives.is_empty() || alternatives.contains(have),
        one => one == have,
    };
    let topics = filter["topics"].as_array().map_or(&[][..], Vec::as_slice);
    let at = |(place, wanted): (usize, &Value)| log["topics"].get(place).is_some_and(|have| any(wanted, have));
    any(&filter["address"], &log["address"]) && topics.iter().enumerate().all(at)
}
