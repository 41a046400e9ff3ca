//! The nodes, and all blocks that were ever part of their chains.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use alloy_primitives::B256;
use headwater::devnet::{Block, ChainError, Config, Control, Devnet, Faults, Reorg};

use crate::client;
use crate::history::{CanonBlock, Canonical};
use crate::plan::{Act, INITIAL_BLOCKS, Plan};

pub struct Fleet {
    nodes: Vec<Node>,
    /// Every block that any node ever had.
    known: HashMap<B256, Arc<Block>>,
    rewound: HashSet<B256>,
    progress: Arc<Progress>,
}

/// Facts about the chain that clients may use without a request, to determine the start of a live subscription.
#[derive(Debug, Default)]
pub struct Progress {
    /// Highest block number that any node ever had.
    pub highest: AtomicU64,
    /// Number of blocks made so far.
    pub blocks: AtomicU64,
    /// `true` while the app restarts.
    pub down: AtomicBool,
    /// Number of times that the app began.
    pub lives: AtomicU64,
}

struct Node {
    devnet: Devnet,
    control: Control,
    view: View,
    /// Permanent faults, which remain after a repair.
    habits: Faults,
}

/// A follower's relation to the leader's chain.
#[derive(Clone, Copy, Debug)]
enum View {
    Behind(u64),
    Stopped,
}

impl Fleet {
    pub async fn start(plan: &Plan) -> Self {
        let mut fleet = Self {
            nodes: Vec::new(),
            known: HashMap::new(),
            rewound: HashSet::new(),
            progress: Arc::default(),
        };
        for node in 0..plan.nodes {
            let mut config = Config {
                seed: plan.seed,
                fork_seed: node as u64,
                initial_blocks: if node == 0 { INITIAL_BLOCKS } else { 0 },
                transactions_per_block: plan.transactions,
                log_data_bytes: plan.log_bytes,
                accounts: 4,
                tokens: 4,
                faults: plan.features.faults(node),
                ..Config::manual()
            };
            plan.features.config(&mut config);
            let devnet = Devnet::start(config).await.unwrap();
            let control = devnet.handle();
            fleet.nodes.push(Node {
                devnet,
                control,
                view: View::Behind(0),
                habits: plan.features.faults(node),
            });
        }
        let initial: Vec<_> = fleet.leader().with_chain(|chain| {
            let numbers = 0..=chain.head().number();
            numbers.filter_map(|number| chain.block_at(number).cloned()).collect()
        });
        fleet.know(&initial);
        fleet.follow(false);
        fleet
    }

    pub fn leader(&self) -> &Control {
        &self.nodes[0].control
    }

    /// Returns the node's address as an upstream.
    pub fn url(&self, plan: &Plan, node: usize) -> String {
        let devnet = &self.nodes[node].devnet;
        if plan.polled == Some(node) {
            devnet.http_url()
        } else {
            devnet.ws_url()
        }
    }

    /// Returns the addresses of these nodes.
    pub fn urls(&self, plan: &Plan, nodes: &[usize]) -> Vec<String> {
        nodes.iter().map(|node| self.url(plan, *node)).collect()
    }

    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    fn know(&mut self, blocks: &[Arc<Block>]) {
        for block in blocks {
            self.progress.highest.fetch_max(block.number(), Ordering::Relaxed);
            self.progress.blocks.fetch_add(1, Ordering::Relaxed);
            self.known.insert(block.hash(), block.clone());
        }
    }

    fn changed(&mut self, reorg: &Result<Reorg, ChainError>) {
        if let Ok(reorg) = reorg {
            self.know(&reorg.adopted);
            if reorg.adopted.is_empty() {
                self.rewound.extend(reorg.dropped.iter().map(|block| block.hash()));
            }
        }
    }

    /// Performs an act on the nodes; ignores acts on clients and the app.
    pub fn act(&mut self, act: &Act) {
        match *act {
            Act::Mine(count) => {
                let blocks = self.leader().mine_many(count);
                self.know(&blocks);
                self.follow(false);
            }
            Act::Reorg { depth, len } => {
                let reorg = self.leader().reorg(depth, len);
                self.changed(&reorg);
                self.follow(false);
            }
            Act::Rewind(depth) => {
                let reorg = self.leader().rewind(depth);
                self.changed(&reorg);
                self.follow(true);
            }
            Act::Return => {
                let reorg = self.leader().switch_back();
                self.changed(&reorg);
                self.follow(true);
            }
            Act::Disconnect(node) => self.nodes[node].control.disconnect(),
            Act::Stall(node, span) => self.nodes[node].control.stall(Some(Duration::from_millis(span))),
            Act::Restart(node, _) => {
                self.nodes[node]
                    .control
                    .set_faults(|faults| faults.refuse_connections = true);
                self.nodes[node].control.disconnect();
            }
            Act::Accept(node) => self.nodes[node]
                .control
                .set_faults(|faults| faults.refuse_connections = false),
            Act::Fault(node, fault, _) => self.nodes[node].control.set_faults(|faults| fault.begin(faults)),
            Act::Repair(node, fault) => self.nodes[node].control.set_faults(|faults| fault.end(faults)),
            Act::Lag(node, lag) => {
                self.nodes[node].view = View::Behind(lag);
                self.follow(false);
            }
            Act::Pause(node) => self.nodes[node].view = View::Stopped,
            Act::Fork(node, count) => {
                self.nodes[node].view = View::Stopped;
                let blocks = self.nodes[node].control.mine_many(count);
                self.know(&blocks);
            }
            Act::Heal(node) => {
                self.nodes[node].view = View::Behind(0);
                self.follow(true);
            }
            Act::Join(_)
            | Act::Break(_)
            | Act::Hang(..)
            | Act::Upgrade
            | Act::Cordon(..)
            | Act::Uncordon(_)
            | Act::Reload(_) => {}
        }
    }

    /// Updates the followers. A node rewinds on its own branch only if the leader did (`back`).
    fn follow(&mut self, back: bool) {
        for at in 1..self.nodes.len() {
            let View::Behind(lag) = self.nodes[at].view else {
                continue;
            };
            let target = self.leader().with_chain(|chain| {
                let number = chain.head().number().saturating_sub(lag);
                chain.block_at_or_below(number).cloned()
            });
            let Some(target) = target else { continue };
            let follower = &self.nodes[at].control;
            let behind =
                follower.with_chain(|chain| chain.is_canonical(&target) && chain.head().hash() != target.hash());
            if behind && !(back && lag == 0) {
                continue;
            }
            let reorg = follower.follow(self.leader(), lag);
            self.changed(&reorg);
        }
    }

    /// Ends all temporary faults and brings all nodes in sync.
    pub fn repair(&mut self) {
        for node in &mut self.nodes {
            node.control.set_faults(|faults| *faults = node.habits.clone());
            node.control.resume();
            node.view = View::Behind(0);
        }
        self.follow(true);
    }

    /// Returns the leader's chain, with all other known blocks as orphans.
    pub fn canonical(&self) -> Canonical {
        let (canonical, orphans): (Vec<_>, Vec<_>) = self.leader().with_chain(|chain| {
            self.known
                .values()
                .cloned()
                .partition(|block: &Arc<Block>| chain.is_canonical(block))
        });
        let shape =
            |blocks: Vec<Arc<Block>>| -> Vec<CanonBlock> { blocks.iter().map(|block| canon_block(block)).collect() };
        let mut blocks = shape(canonical);
        blocks.sort_by_key(|block| block.number);
        // The chain may have left a block for a sibling, and returned before the sibling was announced.
        let mut siblings: HashMap<B256, Vec<B256>> = HashMap::new();
        for block in self.known.values() {
            siblings.entry(block.parent_hash()).or_default().push(block.hash());
        }
        let several = siblings.into_values().filter(|blocks| blocks.len() > 1).flatten();
        let rewound = self.rewound.iter().copied().chain(several).collect();
        Canonical {
            blocks,
            orphans: shape(orphans),
            rewound,
        }
    }
}

fn canon_block(block: &Block) -> CanonBlock {
    let logs = block.logs().enumerate();
    let logs = logs.map(|(index, entry)| client::log(index as u64, entry.address, entry.topics(), &entry.data.data));
    CanonBlock {
        number: block.number(),
        hash: block.hash(),
        parent: block.parent_hash(),
        logs: logs.collect(),
    }
}
