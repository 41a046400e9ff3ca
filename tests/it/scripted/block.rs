//! A block of the scripted node, and the description from which it is mined.

use std::sync::Arc;

use alloy_primitives::{Address, B256, Bloom, BloomInput, keccak256};
use serde_json::{Map, Value, json};

/// The transactions root and receipts root of a block without transactions.
pub const EMPTY_ROOT: &str = "0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421";

/// Returns the hash of a text, by which tests name blocks and words; zero for the empty text.
pub fn word(text: &str) -> B256 {
    if text.is_empty() { B256::ZERO } else { keccak256(text) }
}

/// Returns the address that a text names.
pub fn address(text: &str) -> Address {
    Address::from_word(word(text))
}

/// A mined block of the node.
#[derive(Clone, Debug)]
pub struct Made {
    pub header: Value,
    pub logs: Vec<Value>,
    number: u64,
    hash: String,
}

impl Made {
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn hash(&self) -> String {
        self.hash.clone()
    }

    pub fn parent(&self) -> String {
        self.header["parentHash"].as_str().unwrap_or_default().to_owned()
    }

    /// Returns the hashes of the block's transactions, one for each log.
    pub fn transactions(&self) -> Vec<B256> {
        (0..self.logs.len())
            .map(|index| transaction(&self.hash, index))
            .collect()
    }

    /// Returns the answer to `eth_getBlockBy*`; `whole` asks for whole transactions in place of hashes.
    pub fn block(&self, whole: bool) -> Value {
        let mut block = self.header.clone();
        block["size"] = json!("0x200");
        block["uncles"] = json!([]);
        let transaction = |(index, hash)| {
            json!({
                "hash": hash, "from": address("from"), "to": address("to"), "blockHash": self.hash,
                "blockNumber": quantity(self.number), "transactionIndex": quantity(index as u64),
            })
        };
        block["transactions"] = match self.transactions() {
            transactions if whole => transactions.into_iter().enumerate().map(transaction).collect(),
            transactions => json!(transactions),
        };
        block
    }

    /// Returns the answer to `eth_getBlockReceipts`: one receipt for each log.
    pub fn receipts(&self) -> Vec<Value> {
        let receipt = |(index, log): (usize, &Value)| {
            json!({
                "transactionHash": transaction(&self.hash, index), "transactionIndex": quantity(index as u64),
                "blockHash": self.hash, "blockNumber": quantity(self.number), "from": address("from"),
                "to": address("to"), "status": "0x1", "type": "0x2", "gasUsed": "0x5208",
                "cumulativeGasUsed": quantity(0x5208 * (index as u64 + 1)), "logsBloom": bloom(&[log]), "logs": [log],
            })
        };
        self.logs.iter().enumerate().map(receipt).collect()
    }

    /// Returns the story's line of the block's head; see [`crate::harness::adopted`].
    pub fn head_line(&self) -> String {
        format!("head {} {}", quantity(self.number), &self.hash[..10])
    }

    /// Returns the story of a watcher when the block is adopted: its head, then its logs.
    pub fn adopted(&self) -> Vec<String> {
        [vec![self.head_line()], self.log_lines("log")].concat()
    }

    /// Returns the story of a watcher when the block is dropped: its logs.
    pub fn dropped(&self) -> Vec<String> {
        self.log_lines("undo")
    }

    fn log_lines(&self, word: &str) -> Vec<String> {
        let (number, hash) = (quantity(self.number), &self.hash[..10]);
        let line = |log: &Value| format!("{word} {number} {hash} {}", log["logIndex"].as_str().unwrap());
        self.logs.iter().map(line).collect()
    }
}

type Edit = Arc<dyn Fn(&mut Map<String, Value>) + Send + Sync>;
type LogEdit = Arc<dyn Fn(usize, &mut Value) + Send + Sync>;

/// Description of a block to mine; by default on the head, without logs, with its own header announced.
#[derive(Clone, Default)]
pub struct Mine {
    number: Option<u64>,
    parent: Option<String>,
    logs: usize,
    tag: String,
    silent: bool,
    edits: Vec<Edit>,
    announced: Vec<Edit>,
    log_edits: Vec<LogEdit>,
}

impl Mine {
    /// Describes a block with this number of logs, each of a transaction of its own.
    pub fn logs(logs: usize) -> Self {
        Self {
            logs,
            ..Self::default()
        }
    }

    /// Sets the height, in place of the parent's plus one.
    pub fn number(mut self, number: u64) -> Self {
        self.number = Some(number);
        self
    }

    /// Sets the hash of the parent, in place of the head; the node need not have that block.
    pub fn parent(mut self, hash: impl ToString) -> Self {
        self.parent = Some(hash.to_string());
        self
    }

    /// Puts the block on this one in place of the head, one above it.
    pub fn on_block(self, parent: &Made) -> Self {
        self.parent(parent.hash()).number(parent.number() + 1)
    }

    /// Sets the tag: blocks on one parent with different tags are siblings.
    pub fn tag(mut self, tag: &str) -> Self {
        tag.clone_into(&mut self.tag);
        self
    }

    /// Leaves the block unannounced.
    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// Sets a member of the header, in the block and its announcement.
    pub fn with(self, name: &'static str, value: Value) -> Self {
        self.edit(move |header| _ = header.insert(name.to_owned(), value.clone()))
    }

    /// Removes a member of the header, in the block and its announcement.
    pub fn without(self, name: &'static str) -> Self {
        self.edit(move |header| _ = header.remove(name))
    }

    /// Edits the header, in the block and its announcement.
    pub fn edit(mut self, edit: impl Fn(&mut Map<String, Value>) + Send + Sync + 'static) -> Self {
        self.edits.push(Arc::new(edit));
        self
    }

    /// Edits the header in the announcement only.
    pub fn announced(mut self, edit: impl Fn(&mut Map<String, Value>) + Send + Sync + 'static) -> Self {
        self.announced.push(Arc::new(edit));
        self
    }

    /// Edits each log; the number is its index in the block.
    pub fn edit_logs(mut self, edit: impl Fn(usize, &mut Value) + Send + Sync + 'static) -> Self {
        self.log_edits.push(Arc::new(edit));
        self
    }

    /// Returns the block that is mined when `head` is the head.
    pub(super) fn on(&self, head: &Made) -> Made {
        let number = self.number.unwrap_or(head.number + 1);
        self.made(number, &self.parent.clone().unwrap_or(head.hash()))
    }

    pub(super) fn made(&self, number: u64, parent: &str) -> Made {
        let hash = word(&format!("{}/{number}/{parent}/{}", self.tag, self.logs)).to_string();
        let log = |index: usize| {
            json!({
                "address": address("token"), "topics": [word("Transfer"), word(&format!("from{index}"))], "data": "0x01",
                "blockNumber": quantity(number), "transactionHash": transaction(&hash, index),
                "transactionIndex": quantity(index as u64), "blockHash": hash, "logIndex": quantity(index as u64),
                "removed": false,
            })
        };
        let mut logs: Vec<Value> = (0..self.logs).map(log).collect();
        for (index, log) in logs.iter_mut().enumerate() {
            self.log_edits.iter().for_each(|edit| edit(index, log));
        }
        let root = |kind: &str| match self.logs {
            0 => json!(EMPTY_ROOT),
            _ => json!(word(&format!("{kind}{hash}"))),
        };
        let mut header = json!({
            "parentHash": parent, "sha3Uncles": word("[]"), "miner": address("miner"),
            "stateRoot": word(&format!("state{hash}")), "transactionsRoot": root("transactions"),
            "receiptsRoot": root("receipts"), "logsBloom": bloom(&logs.iter().collect::<Vec<_>>()),
            "difficulty": "0x0", "number": quantity(number), "gasLimit": "0x1c9c380", "gasUsed": "0x5208",
            "timestamp": quantity(1_700_000_000 + number), "extraData": "0x", "mixHash": B256::ZERO,
            "nonce": "0x0000000000000000", "baseFeePerGas": "0x7", "hash": hash,
        });
        let members = header.as_object_mut().unwrap();
        self.edits.iter().for_each(|edit| edit(members));
        Made {
            header,
            logs,
            number,
            hash,
        }
    }

    /// Returns the header to announce; `None` if the block is silent.
    pub(super) fn announcement(&self, made: &Made) -> Option<Value> {
        let mut header = made.header.clone();
        let members = header.as_object_mut().unwrap();
        self.announced.iter().for_each(|edit| edit(members));
        (!self.silent).then_some(header)
    }
}

fn quantity(number: u64) -> String {
    format!("{number:#x}")
}

fn transaction(block: &str, index: usize) -> B256 {
    word(&format!("transaction{block}{index}"))
}

/// Returns the bloom of these logs' addresses and topics; malformed ones are skipped.
fn bloom(logs: &[&Value]) -> Bloom {
    let mut bloom = Bloom::ZERO;
    for log in logs {
        let topics = log["topics"].as_array().map_or(&[][..], Vec::as_slice);
        for item in topics.iter().chain([&log["address"]]) {
            if let Some(bytes) = item
                .as_str()
                .and_then(|hex| hex.parse::<alloy_primitives::Bytes>().ok())
            {
                bloom.accrue(BloomInput::Raw(&bytes));
            }
        }
    }
    bloom
}
