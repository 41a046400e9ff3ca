//! The plan of the chain: every node executes the same steps, each at its own pace. Transactions, timestamps and
//! genesis are equal, so the block hashes are equal too.

use std::collections::{HashMap, HashSet};

use alloy_primitives::B256;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::history::{CanonBlock, Canonical, Log};

/// First of anvil's accounts, which sends all transactions.
const ACCOUNT: &str = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266";
/// Address of the contract, which the account's first transaction deploys.
pub const CONTRACT: alloy_primitives::Address = alloy_primitives::address!("5fbdb2315678afecb367f032d93f642f64180aa3");

/// Depth of the deepest reorg, in blocks.
pub const MAX_DEPTH: u64 = 8;

/// `emitMany(first, n)`: `n` transfers with the values `first..first + n`, and a note after each odd value.
#[derive(Clone, Copy, Debug)]
pub struct Emission {
    pub first: u64,
    pub count: u64,
}

impl Emission {
    pub fn transaction(self) -> Value {
        let data = format!("0x3d23178e{:064x}{:064x}", self.first, self.count);
        transaction(json!({"to": CONTRACT, "gas": "0x100000", "data": data}))
    }
}

/// One step of a node.
#[derive(Clone, Debug)]
pub enum Step {
    /// Mines a block that deploys the contract.
    Deploy { timestamp: u64 },
    /// Mines a block with these transactions.
    Mine { timestamp: u64, emissions: Vec<Emission> },
    /// Replaces as many blocks as `blocks` has.
    Reorg { blocks: Vec<Vec<Emission>> },
}

/// Returns the transaction that deploys the contract.
pub fn deployment() -> Value {
    let artefact: Value = serde_json::from_str(include_str!("../interop/contract/Emitter.json")).unwrap();
    transaction(json!({"gas": "0x200000", "data": artefact["bytecode"]}))
}

/// Completes a transaction with fixed fees, which do not depend on the node's fee estimate.
fn transaction(mut what: Value) -> Value {
    what["from"] = json!(ACCOUNT);
    what["maxFeePerGas"] = json!("0x174876e800");
    what["maxPriorityFeePerGas"] = json!("0x1");
    what
}

/// The steps, and the blocks that the nodes made of them.
pub struct Chain {
    /// Timestamp of block 0, the same for all nodes.
    pub genesis: u64,
    steps: Mutex<Vec<Planned>>,
    count: watch::Sender<usize>,
    made: Mutex<Made>,
}

struct Planned {
    step: Step,
    /// Number of the block that the step builds on; `height` is the number of the newest block after the step.
    base: u64,
    height: u64,
}

#[derive(Default)]
struct Made {
    /// Newest block by the number of steps done.
    tips: HashMap<usize, B256>,
    /// Number of steps done by newest block.
    places: HashMap<B256, usize>,
    /// Every block that a node had, with its logs.
    seen: HashMap<B256, CanonBlock>,
    /// Blocks that a node rewound past and may mine again with the same hash.
    rewound: HashSet<B256>,
}

impl Chain {
    pub fn new(genesis: u64) -> Self {
        Self {
            genesis,
            steps: Mutex::default(),
            count: watch::Sender::new(0),
            made: Mutex::default(),
        }
    }

    pub fn push(&self, step: Step) {
        let mut steps = self.steps.lock();
        let before = steps.last().map_or(0, |planned| planned.height);
        let (base, height) = match &step {
            Step::Reorg { blocks } => (before - blocks.len() as u64, before),
            Step::Deploy { .. } | Step::Mine { .. } => (before, before + 1),
        };
        steps.push(Planned { step, base, height });
        self.count.send_replace(steps.len());
    }

    /// Returns the number of the newest block of the plan.
    pub fn height(&self) -> u64 {
        self.steps.lock().last().map_or(0, |planned| planned.height)
    }

    /// Returns `true` if no later step of the plan so far drops a block of the first `done` steps.
    pub fn stands(&self, done: usize) -> bool {
        let steps = self.steps.lock();
        let height = done.checked_sub(1).map_or(0, |last| steps[last].height);
        steps[done..].iter().all(|planned| planned.base >= height)
    }

    /// Returns `true` if no future step can drop a block of the first `done` steps.
    pub fn is_final(&self, done: usize) -> bool {
        let height = done.checked_sub(1).map_or(0, |last| self.steps.lock()[last].height);
        self.stands(done) && self.height() >= height + MAX_DEPTH
    }

    pub fn len(&self) -> usize {
        *self.count.borrow()
    }

    /// Returns the step after the first `done` steps; waits until the step is planned.
    pub async fn step(&self, done: usize) -> Step {
        let mut count = self.count.subscribe();
        count.wait_for(|count| *count > done).await.expect("the sender is ours");
        self.steps.lock()[done].step.clone()
    }

    /// Records the newest block of a node after `done` steps. Returns `false` if another node had a different one.
    pub fn agree(&self, done: usize, tip: B256) -> bool {
        let mut made = self.made.lock();
        made.places.entry(tip).or_insert(done);
        *made.tips.entry(done).or_insert(tip) == tip
    }

    /// Returns the number of steps that lead to this newest block; `None` in the middle of a step.
    pub fn place(&self, tip: B256) -> Option<usize> {
        let made = self.made.lock();
        let place = *made.places.get(&tip)?;
        (made.tips[&place] == tip).then_some(place)
    }

    pub fn has_seen(&self, hash: B256) -> bool {
        self.made.lock().seen.contains_key(&hash)
    }

    /// Records that a node rewinds past these blocks.
    pub fn rewinds(&self, blocks: Vec<B256>) {
        self.made.lock().rewound.extend(blocks);
    }

    pub fn saw(&self, block: CanonBlock) {
        self.made.lock().seen.insert(block.hash, block);
    }

    /// Returns the final chain of a node, `blocks`, with all other blocks seen as orphans.
    pub fn canonical(&self, blocks: Vec<CanonBlock>) -> Canonical {
        let own: HashSet<B256> = blocks.iter().map(|block| block.hash).collect();
        let made = self.made.lock();
        Canonical {
            blocks,
            orphans: made
                .seen
                .values()
                .filter(|block| !own.contains(&block.hash))
                .cloned()
                .collect(),
            rewound: made.rewound.clone(),
        }
    }
}

/// Parses number, hash and parent hash of a node's block.
pub fn header(block: &Value) -> (u64, B256, B256) {
    (
        number(&block["number"]),
        hash(&block["hash"]),
        hash(&block["parentHash"]),
    )
}

/// Parses a node's log and the number and hash of its block.
pub fn log(log: &Value) -> ((u64, B256), Log) {
    let data: alloy_primitives::Bytes = serde_json::from_value(log["data"].clone()).unwrap();
    let place = (number(&log["blockNumber"]), hash(&log["blockHash"]));
    let log = Log {
        index: number(&log["logIndex"]),
        address: serde_json::from_value(log["address"].clone()).unwrap(),
        topics: serde_json::from_value(log["topics"].clone()).unwrap(),
        data: alloy_primitives::keccak256(data),
    };
    (place, log)
}

fn number(value: &Value) -> u64 {
    let number: alloy_primitives::U64 = serde_json::from_value(value.clone()).unwrap();
    number.to()
}

fn hash(value: &Value) -> B256 {
    serde_json::from_value(value.clone()).unwrap()
}
