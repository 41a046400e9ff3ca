//! Chains where not every number has a block, and blocks without a parent: clients get exactly what the node has.

use serde_json::{Value, json};

use crate::bystander::Bystander;
use crate::harness::{Client, Proxy, eventually};
use crate::scripted::{Answer, Hole, Made, Mine, Scripted, word};

const HOLES: [Hole; 3] = [Hole::Error, Hole::Null, Hole::Before];

/// Blocks that the app keeps in memory here; older ones are fetched from the node.
const MEMORY: usize = 24;

/// A chain that grows with holes and changes its branch, and a client of the node itself.
struct Sparse {
    node: Scripted,
    direct: Client,
    random: fastrand::Rng,
    branch: usize,
    /// Blocks that were announced, or lie below an announced one, in the order of their adoption.
    adopted: Vec<Made>,
    /// All blocks that were ever mined.
    ever: Vec<Made>,
}

impl Sparse {
    async fn start(hole: Hole, seed: u64) -> Self {
        let node = Scripted::start().await;
        node.holes(hole);
        let direct = Client::connect(&node.ws_url()).await;
        let mut sparse = Self {
            ever: node.canonical(),
            node,
            direct,
            random: fastrand::Rng::with_seed(seed),
            branch: 0,
            adopted: Vec::new(),
        };
        for _ in 0..60 {
            sparse.mine_on(&sparse.node.head(), false);
        }
        sparse
    }

    fn mine_on(&mut self, parent: &Made, announced: bool) -> Made {
        let gap = match self.random.u32(..20) {
            0 => 3_000,
            1..=6 => self.random.u64(2..6),
            _ => 1,
        };
        let mine = Mine::logs(self.random.usize(..3)).on_block(parent);
        // A head is as high as any before: no node can report that a block above its head was dropped.
        let highest = self.ever.iter().map(Made::number).max().unwrap();
        let least = if announced { highest } else { 0 };
        let number = (parent.number() + gap).max(least);
        let mine = mine.number(number).tag(&self.branch.to_string());
        let made = self.node.mine(if announced { mine } else { mine.silent() });
        self.ever.push(made.clone());
        made
    }

    /// Replaces up to four of the newest blocks by a branch whose tip the node announces; returns a watcher's story.
    fn reorg(&mut self) -> Vec<String> {
        let canonical = self.node.canonical();
        let depth = self.random.usize(..5);
        let (kept, gone) = canonical.split_at(canonical.len() - depth);
        self.branch += 1;
        // Logs from before the watcher subscribed are not removed for it.
        let received = |made: &&Made| self.adopted.iter().any(|own| own.hash() == made.hash());
        let mut story: Vec<String> = gone.iter().filter(received).flat_map(Made::dropped).collect();
        let mut parent = kept.last().unwrap().clone();
        let length = self.random.usize(1..5);
        for block in 1..=length {
            parent = self.mine_on(&parent, block == length);
            story.extend(parent.adopted());
            self.adopted.push(parent.clone());
        }
        story
    }

    /// Returns the canonical blocks after this one, and the non-canonical ones of its branch, each oldest first.
    fn since(&self, block: &Made) -> (Vec<Made>, Vec<Made>) {
        let canonical = self.node.canonical();
        let (mut gone, mut at) = (Vec::new(), block.clone());
        loop {
            if let Some(place) = canonical.iter().position(|own| own.hash() == at.hash()) {
                gone.reverse();
                return (canonical[place + 1..].to_vec(), gone);
            }
            let parent = at.parent();
            gone.push(at);
            at = self.ever.iter().find(|own| own.hash() == parent).unwrap().clone();
        }
    }

    /// Checks that the app and the node return the same logs for a random range of blocks.
    async fn same_logs(&mut self, client: &mut Client) {
        let newest = self.node.head().number();
        let at = |random: &mut fastrand::Rng, numbers: &[Made]| match random.bool() {
            true => random.u64(..=newest),
            // At a block, or next to one.
            false => {
                let near = numbers[random.usize(..numbers.len())].number() + random.u64(..3);
                near.saturating_sub(1).min(newest)
            }
        };
        let canonical = self.node.canonical();
        let (one, other) = (at(&mut self.random, &canonical), at(&mut self.random, &canonical));
        let range = json!([{"fromBlock": hex(one.min(other)), "toBlock": hex(one.max(other))}]);
        let own = client.call("eth_getLogs", range.clone()).await;
        let nodes = self.direct.call("eth_getLogs", range.clone()).await;
        assert_eq!(own, nodes, "{range}");
    }

    /// Checks that a resuming client gets what the node's chain has since then, and nothing else.
    async fn same_resume(&mut self, proxy: &Proxy) {
        let mut client = proxy.client().await;
        let heads = self.random.bool();
        let (start, undone, blocks) = if self.random.u32(..3) == 0 {
            let from = self.random.u64(..=self.node.head().number());
            let canonical = self.node.canonical().into_iter();
            let blocks: Vec<Made> = canonical.filter(|made| made.number() >= from).collect();
            (json!({"fromBlock": hex(from)}), Vec::new(), blocks)
        } else {
            let block = self.ever[self.random.usize(..self.ever.len())].clone();
            let (blocks, gone) = self.since(&block);
            (json!({"after": {"blockHash": block.hash()}}), gone, blocks)
        };
        let story: Vec<String> = match heads {
            true => blocks.iter().map(Made::head_line).collect(),
            false => {
                let undone = undone.iter().flat_map(Made::dropped);
                let logs = |made: &Made| made.adopted().into_iter().skip(1).collect::<Vec<_>>();
                undone.chain(blocks.iter().flat_map(logs)).collect()
            }
        };
        let params = match heads {
            true => json!(["newHeads", start]),
            false => json!(["logs", {}, start]),
        };
        client.subscribe(params).await;
        client.expect(story).await;
        let (_, beside) = client.ask_alone(crate::wire::CHAIN_ID).await;
        assert!(beside.is_empty(), "{start}: {beside:?}");
    }
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

async fn ranges_resumes_and_reorgs(hole: Hole, seed: u64) {
    let mut sparse = Sparse::start(hole, seed).await;
    let memory = |config: &mut headwater::config::typed::Config| {
        config.history.blocks = MEMORY;
        config.history.max_replay = 1_000_000;
    };
    let proxy = sparse.node.proxy(memory).await;
    let bystander = Bystander::join(&proxy).await;
    let (mut watcher, mut client) = (proxy.watcher().await, proxy.client().await);
    for _ in 0..20 {
        let story = sparse.reorg();
        watcher.expect(story).await;
        for _ in 0..10 {
            sparse.same_logs(&mut client).await;
        }
        for _ in 0..3 {
            sparse.same_resume(&proxy).await;
        }
        let newest = client.call("eth_blockNumber", json!([])).await;
        assert_eq!(newest["result"], hex(sparse.node.head().number()));
    }
    bystander.saw_only(&sparse.adopted).await;
}

#[tokio::test]
async fn on_a_chain_with_holes_that_are_errors_all_is_as_the_node_has_it() {
    ranges_resumes_and_reorgs(Hole::Error, 1).await;
}

#[tokio::test]
async fn on_a_chain_with_holes_that_are_null_all_is_as_the_node_has_it() {
    ranges_resumes_and_reorgs(Hole::Null, 2).await;
}

#[tokio::test]
async fn on_a_chain_with_holes_that_are_the_block_before_all_is_as_the_node_has_it() {
    ranges_resumes_and_reorgs(Hole::Before, 3).await;
}

/// A hole of a hundred thousand numbers in an outage, in blocks older than memory, and below the oldest in memory.
#[tokio::test]
async fn a_large_hole_costs_a_few_questions() {
    for hole in HOLES {
        let node = Scripted::start().await;
        node.holes(hole);
        let old = node.mine(Mine::logs(1));
        let first = node.mine(Mine::logs(1).number(100_000));
        node.grow(30);
        let proxy = node
            .proxy(|config| {
                config.history.blocks = 8;
                config.history.max_replay = 1_000_000;
            })
            .await;
        let bystander = Bystander::join(&proxy).await;
        let mut watcher = proxy.watcher().await;
        node.disconnect();
        let mut missed = vec![node.mine(Mine::logs(1).number(200_000).silent())];
        missed.extend((0..20).map(|_| node.mine(Mine::logs(1).silent())));
        missed.push(node.mine(Mine::logs(1).number(300_000).silent()));
        missed.push(node.mine(Mine::logs(1).silent()));
        watcher.expect(missed.iter().flat_map(Made::adopted).collect()).await;
        bystander.saw_only(&missed).await;
        // From inside the hole, and after the block below it.
        for start in [
            json!({"fromBlock": "0x2f"}),
            json!({"after": {"blockHash": old.hash()}}),
        ] {
            let mut client = proxy.client().await;
            client.subscribe(json!(["logs", {}, start])).await;
            let logs = std::iter::once(&first).chain(&missed);
            let line = |made: &Made| made.adopted().swap_remove(1);
            client.expect(logs.map(line).collect()).await;
        }
        let asked = node.calls("eth_getBlockByNumber") + node.calls("eth_getBlockByHash");
        assert!(asked < 1_000, "{hole:?}: {asked} questions");
    }
}

/// A node that returns no block by number is not taken to lack the block.
#[tokio::test]
async fn a_node_that_does_not_tell_blocks_by_number_has_them_all_the_same() {
    let refusals: [fn() -> Answer; 3] = [
        || Answer::error(-32005, "rate limited"),
        || Answer::Result(Value::Null),
        || Answer::error(12, "requested epoch was a null round"),
    ];
    for refusal in refusals {
        let node = Scripted::start().await;
        let blocks = node.mine_many(30, 1);
        let proxy = node.proxy(|config| config.history.blocks = 4).await;
        node.answer("eth_getBlockByNumber", move |ask| match ask.params[0].as_str() {
            Some("latest") => ask.usual(),
            _ => refusal(),
        });
        let mut client = proxy.client().await;
        client
            .subscribe(json!(["newHeads", {"after": {"blockHash": blocks[22].hash()}}]))
            .await;
        client.expect(blocks[23..].iter().map(Made::head_line).collect()).await;
    }
}

/// The history below the first block is fetched once, block by block; after that, nothing more is fetched.
#[tokio::test]
async fn the_backfill_below_a_hole_ends() {
    for hole in HOLES {
        let node = Scripted::start().await;
        node.holes(hole);
        for number in [1, 2, 5, 9, 10, 17] {
            node.mine(Mine::default().number(number));
        }
        let proxy = node.proxy(|_| {}).await;
        // The resume below is served from memory, without calls to a node.
        let block = node.block(1).unwrap();
        eventually("history is filled", async || node.calls("eth_getBlockByHash") >= 6).await;
        let bystander = Bystander::join(&proxy).await;
        let mined = node.mine_many(20, 1);
        bystander.saw_only(&mined).await;
        let mut client = proxy.client().await;
        client
            .subscribe(json!(["newHeads", {"after": {"blockHash": block.hash()}}]))
            .await;
        let above = |made: &Made| made.number() > 1;
        let blocks: Vec<Made> = node.canonical().into_iter().filter(above).collect();
        client.expect(blocks.iter().map(Made::head_line).collect()).await;
        let asked = node.calls("eth_getBlockByHash");
        assert!(asked <= 12, "{hole:?}: {asked} questions");
    }
}

/// Mines blocks as `hardhat_mine` makes them: those in the middle name no parent, and the node has them by number.
fn without_parents(node: &Scripted, count: u64) -> Vec<Made> {
    let first = node.head().number() + 1;
    let orphan = |number| node.mine(Mine::logs(1).parent(word("")).number(number).silent());
    let mut blocks = vec![node.mine(Mine::logs(1).silent())];
    blocks.extend((first + 1..first + count).map(orphan));
    blocks
}

#[tokio::test]
async fn blocks_without_a_parent_are_told_in_the_order_of_their_numbers() {
    let node = Scripted::start().await;
    let old = node.mine_many(3, 1);
    let proxy = node.proxy(|config| config.history.blocks = 128).await;
    let bystander = Bystander::join(&proxy).await;
    let mut watcher = proxy.watcher().await;
    let mut blocks = without_parents(&node, 100);
    blocks.push(node.mine(Mine::logs(1)));
    watcher.expect(blocks.iter().flat_map(Made::adopted).collect()).await;
    // The head itself has no parent.
    let number = node.head().number() + 1;
    blocks.push(node.mine(Mine::logs(1).parent(word("")).number(number)));
    watcher.expect(blocks.last().unwrap().adopted()).await;
    // Another branch from the middle, and resumes on both branches.
    let sibling = node.mine(Mine::logs(2).on_block(&blocks[60]).tag("b"));
    let gone: Vec<String> = blocks[61..].iter().flat_map(Made::dropped).collect();
    watcher.expect([gone.clone(), sibling.adopted()].concat()).await;
    let only_logs = |made: &Made| made.adopted().into_iter().skip(1).collect::<Vec<_>>();
    for (after, undone) in [(&old[1], false), (&blocks[30], false), (blocks.last().unwrap(), true)] {
        let mut client = proxy.client().await;
        client
            .subscribe(json!(["logs", {}, {"after": {"blockHash": after.hash()}}]))
            .await;
        let mut story = if undone { gone.clone() } else { Vec::new() };
        let all = old.iter().chain(&blocks[..61]).chain([&sibling]);
        let later = all.filter(|made| !undone && made.number() > after.number() || made.hash() == sibling.hash());
        story.extend(later.flat_map(only_logs));
        client.expect(story).await;
    }
    blocks.push(sibling);
    bystander.saw_only(&blocks).await;
}

/// The blocks without a parent are older than memory.
#[tokio::test]
async fn a_client_that_comes_back_crosses_blocks_without_a_parent() {
    let node = Scripted::start().await;
    let old = node.mine_many(3, 1);
    let mut blocks = without_parents(&node, 40);
    blocks.extend(node.mine_many(10, 1));
    let proxy = node.proxy(|config| config.history.blocks = 4).await;
    let all: Vec<Made> = old.into_iter().chain(blocks).collect();
    for after in [0, 1, 2, 5, 20, 41, 42, 43, 44] {
        let mut client = proxy.client().await;
        let start = json!({"after": {"blockHash": all[after].hash()}});
        client.subscribe(json!(["newHeads", start])).await;
        client
            .expect(all[after + 1..].iter().map(Made::head_line).collect())
            .await;
    }
}

#[tokio::test]
async fn a_parent_that_the_node_denies_is_the_block_of_the_number_before() {
    let node = Scripted::start().await;
    node.mine_many(3, 1);
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut watcher = proxy.watcher().await;
    let number = node.head().number() + 1;
    let mut blocks = vec![node.mine(Mine::logs(1).parent(word("nobody has it")).number(number))];
    blocks.extend(node.mine_many(2, 1));
    watcher.expect(blocks.iter().flat_map(Made::adopted).collect()).await;
    bystander.saw_only(&blocks).await;
}

/// Nothing leads from the published chain to the head if the number before has no block either.
#[tokio::test]
async fn a_block_without_a_parent_above_a_hole_is_lost_continuity() {
    for hole in HOLES {
        for parent in ["", "nobody has it"] {
            let node = Scripted::start().await;
            node.holes(hole);
            node.mine_many(3, 1);
            let proxy = node.proxy(|_| {}).await;
            let mut watcher = proxy.watcher().await;
            node.mine(Mine::logs(1).parent(word(parent)).number(9));
            let (_, code, _) = watcher.closed().await;
            assert_eq!(code, 1012);
            // The blocks that follow are a chain again.
            let mut watcher = proxy.watcher().await;
            watcher.expect(node.mine(Mine::logs(1)).adopted()).await;
        }
    }
}
