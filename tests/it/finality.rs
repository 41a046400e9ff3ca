//! Streams that trail the head at a level of finality: nothing is taken back, nothing is left out.

use std::ops::Range;
use std::sync::Arc;

use headwater::devnet::{Block, Control};
use serde_json::{Value, json};

use crate::harness::{Client, Proxy, Rig, adopted, dropped, node_with_logs_of};
use crate::scripted::{Answer, Mine, Scripted};

/// Depth of the simulated node's `safe` and `finalized` blocks.
const SAFE: u64 = 32;
const FINALIZED: u64 = 64;

const BROKEN: &str = "a reorg dropped blocks that were delivered as final: undo them and resubscribe";

/// Returns the canonical blocks of these numbers.
fn canonical(node: &Control, numbers: Range<u64>) -> Vec<Arc<Block>> {
    let block = |number| node.with_chain(|chain| chain.block_at(number).cloned().unwrap());
    numbers.map(block).collect()
}

/// Subscribes to heads and logs with these options, in one batch.
async fn both(proxy: &Proxy, options: &Value) -> Client {
    let mut client = proxy.client().await;
    let batch = json!([
        {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads", options]},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_subscribe", "params": ["logs", {}, options]},
    ]);
    let answer: Value = serde_json::from_str(&client.ask(batch.to_string()).await).unwrap();
    assert!(
        answer[0]["result"].is_string() && answer[1]["result"].is_string(),
        "{answer}"
    );
    client
}

fn after(block: &Block) -> Value {
    json!({"blockHash": block.hash()})
}

/// Starts the app behind a node with so many blocks.
async fn rig(blocks: u64) -> Rig {
    let rig = Rig::start().await;
    rig.control.mine_many(blocks);
    rig.settled(&rig.control).await;
    rig
}

#[tokio::test]
async fn each_level_trails_the_head_by_its_depth_and_takes_nothing_back() {
    for (options, depth) in [
        (json!({"finality": "finalized"}), FINALIZED),
        (json!({"finality": "safe"}), SAFE),
        (json!({"confirmations": 5}), 4),
        (json!({"confirmations": "0x1"}), 0),
    ] {
        let rig = rig(80).await;
        let before = rig.control.head().number();
        let mut client = both(&rig, &options).await;
        for _ in 0..4 {
            rig.control.mine();
            // A reorg above the level: dropped blocks never appear.
            let reorg = depth.min(3);
            if reorg > 0 {
                rig.control.reorg(reorg, reorg + 2).unwrap();
            }
        }
        let head = rig.control.head().number();
        let reached = canonical(&rig.control, before - depth + 1..head - depth + 1);
        client.expect(adopted(&reached)).await;
        // Nothing else came before the next block.
        rig.control.mine();
        client
            .expect(adopted(&canonical(&rig.control, head - depth + 1..head - depth + 2)))
            .await;
    }
}

#[tokio::test]
async fn a_stream_of_finality_resumes_from_memory_and_from_the_node() {
    for history in [256, 8] {
        let rig = Rig::with(|config| config.history.blocks = history).await;
        rig.control.mine_many(90);
        rig.settled(&rig.control).await;
        let head = rig.control.head().number();
        let end = head - FINALIZED + 1;
        let last = canonical(&rig.control, 9..10).remove(0);
        let options = json!({"finality": "finalized", "after": after(&last)});
        let mut client = both(&rig, &options).await;
        let mut witness = both(&rig, &json!({"finality": "finalized"})).await;
        client.expect(adopted(&canonical(&rig.control, 10..end))).await;
        rig.control.mine_many(3);
        let next = adopted(&canonical(&rig.control, end..end + 3));
        client.expect(next.clone()).await;
        witness.expect(next).await;
        // In the middle of a block, and with a filter.
        let mut client = rig.client().await;
        let rest = json!({"finality": "finalized", "after": {"blockHash": last.hash(), "logIndex": "0x2"}});
        client.subscribe(json!(["logs", {}, rest])).await;
        let blocks = canonical(&rig.control, 9..end + 3);
        let logs: Vec<String> = adopted(&blocks)
            .into_iter()
            .filter(|line| line.starts_with("log"))
            .collect();
        client.expect(logs[3..].to_vec()).await;
    }
}

#[tokio::test]
async fn a_stream_that_starts_above_its_level_waits_for_it() {
    let rig = rig(80).await;
    let head = rig.control.head();
    let mut resumed = rig.client().await;
    resumed
        .subscribe(json!(["newFinalizedHeads", {"after": after(&head)}]))
        .await;
    let mut later = rig.client().await;
    later
        .subscribe(json!(["newSafeHeads", {"fromBlock": format!("{:#x}", head.number() + 2)}]))
        .await;
    rig.control.mine_many(SAFE + 3);
    let number = head.number();
    let heads = |blocks: Range<u64>| -> Vec<String> {
        let lines = adopted(&canonical(&rig.control, blocks)).into_iter();
        lines.filter(|line| line.starts_with("head")).collect()
    };
    later.expect(heads(number + 2..number + 4)).await;
    rig.control.mine_many(FINALIZED - SAFE);
    resumed.expect(heads(number + 1..number + 4)).await;
    // A block that was never final is dropped: the stream cannot go on behind it.
    let head = rig.control.head();
    let mut stranded = rig.client().await;
    stranded
        .subscribe(json!(["newHeads", {"finality": "safe", "after": after(&head)}]))
        .await;
    rig.control.reorg(1, 2).unwrap();
    let (_, code, reason) = stranded.closed().await;
    assert_eq!((code, reason.as_str()), (1012, BROKEN));
    // And is refused from then on.
    let mut refused = rig.client().await;
    let answer = refused
        .call(
            "eth_subscribe",
            json!(["newHeads", {"finality": "safe", "after": after(&head)}]),
        )
        .await;
    assert_eq!(answer["error"]["code"], -32001, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("was dropped by a reorg"), "{message}");
}

#[tokio::test]
async fn a_reorg_below_what_was_delivered_ends_the_streams_of_that_level_alone() {
    let rig = rig(80).await;
    let mut safe = both(&rig, &json!({"finality": "safe"})).await;
    let mut deep = both(&rig, &json!({"finality": "finalized"})).await;
    let mut watcher = rig.watcher().await;
    let before = rig.control.head().number();
    let block = rig.control.mine();
    safe.expect(adopted(&canonical(&rig.control, before - SAFE + 1..before - SAFE + 2)))
        .await;
    watcher.expect(adopted(std::slice::from_ref(&block))).await;
    let reorg = rig.control.reorg(SAFE + 2, SAFE + 3).unwrap();
    let (messages, code, reason) = safe.closed().await;
    assert_eq!((code, reason.as_str()), (1012, BROKEN));
    assert!(messages.is_empty(), "{messages:?}");
    watcher
        .expect([dropped(&[block]), adopted(&reorg.adopted)].concat())
        .await;
    let end = before - FINALIZED + 1;
    deep.expect(adopted(&canonical(&rig.control, end..end + 2))).await;
    // A new stream of the level begins behind the new safe block.
    let head = rig.control.head().number();
    let mut again = both(&rig, &json!({"finality": "safe"})).await;
    rig.control.mine();
    again
        .expect(adopted(&canonical(&rig.control, head - SAFE + 1..head - SAFE + 2)))
        .await;
}

#[tokio::test]
async fn the_options_are_read_strictly_and_an_absent_level_is_said() {
    let rig = rig(3).await;
    let mut client = rig.client().await;
    for (params, words) in [
        (
            json!(["newHeads", {"finality": "latest"}]),
            "invalid argument 1: unknown variant `latest`",
        ),
        (
            json!(["newHeads", {"finality": "safe", "x": 1}]),
            "invalid argument 1: unknown field `x`",
        ),
        (json!(["newHeads", {"x": 1}]), "too many arguments, want at most 1"),
        (json!(["logs", {}, {"x": 1}]), "too many arguments, want at most 2"),
        (
            json!(["transactionReceipts", null, {"x": 1}]),
            "too many arguments, want at most 2",
        ),
        (
            json!(["newFinalizedHeads", {"x": 1}]),
            "too many arguments, want at most 1",
        ),
        (
            json!(["newSafeHeads", {"confirmations": 3}]),
            "invalid argument 1: newSafeHeads is finality already",
        ),
        (
            json!(["newHeads", {"confirmations": 257}]),
            "confirmations: 257 is too deep, want at most 256",
        ),
        (
            json!(["syncing", {"finality": "safe"}]),
            "too many arguments, want at most 1",
        ),
    ] {
        let answer = client.call("eth_subscribe", params.clone()).await;
        assert_eq!(answer["error"]["code"], -32602, "{params} {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(words), "{params} {message}");
    }
}

/// Each depth has a walk of its own: one client must not have headwater fetch each block at hundreds of them.
#[tokio::test]
async fn a_client_opens_few_depths_and_may_use_those_of_others() {
    let rig = rig(80).await;
    let mut client = rig.client().await;
    let depth = |depth: u64| json!(["newHeads", {"confirmations": depth}]);
    let mut ids = Vec::new();
    for own in 2..6 {
        ids.push(client.call("eth_subscribe", depth(own)).await["result"].clone());
    }
    assert!(ids.iter().all(Value::is_string), "{ids:?}");
    let refused = client.call("eth_subscribe", depth(6)).await;
    assert_eq!(refused["error"]["code"], -32005, "{refused}");
    // Depths in use, tags and the head are not counted.
    for allowed in [
        depth(5),
        json!(["newFinalizedHeads"]),
        json!(["newSafeHeads"]),
        json!(["blockLogs", {}]),
    ] {
        let answer = client.call("eth_subscribe", allowed).await;
        assert!(answer["result"].is_string(), "{answer}");
    }
    let left = client.call("eth_unsubscribe", json!([ids[0]])).await;
    assert_eq!(left["result"], true);
    let answer = client.call("eth_subscribe", depth(6)).await;
    assert!(answer["result"].is_string(), "{answer}");
}

/// Starts the app behind a scripted node whose `finalized` block is the one of this number, `None` for an error.
async fn tagged(tag: &Arc<parking_lot::Mutex<Answers>>, depth: u64) -> (Scripted, Proxy) {
    let node = Scripted::start().await;
    let tags = tag.clone();
    node.answer("eth_getBlockByNumber", move |ask| {
        if ask.params[0] != "finalized" {
            return ask.usual();
        }
        let mut tags = tags.lock();
        if let Answers::Once(next) = &mut *tags {
            let next = std::mem::replace(&mut **next, Answers::Null);
            *tags = next;
            return Answer::error(-32603, "header not ready, try later");
        }
        match &*tags {
            Answers::Once(_) => unreachable!("replaced above"),
            Answers::Block(number) => {
                let hash = ask
                    .node
                    .block(*number)
                    .map_or_else(|| json!(format!("{:#066x}", 7)), |own| json!(own.hash()));
                json!({"number": format!("{number:#x}"), "hash": hash, "parentHash": format!("{:#066x}", 0)}).into()
            }
            Answers::Null => Value::Null.into(),
            Answers::Error => Answer::error(-32000, "finalized block not found"),
        }
    });
    node.mine_many(20, 1);
    let proxy = node.proxy(|config| config.history.finality_depth = depth).await;
    (node, proxy)
}

enum Answers {
    /// An error, and then this.
    Once(Box<Self>),
    Block(u64),
    Null,
    Error,
}

/// Reads heads up to this number; each is one above the one before.
async fn heads_up_to(client: &mut Client, first: u64, last: u64) {
    for number in first..=last {
        assert_eq!(client.event().await.json()["number"], json!(format!("{number:#x}")));
    }
}

#[tokio::test]
async fn a_tag_that_moves_back_or_beyond_the_head_harms_nobody() {
    let tag = Arc::new(parking_lot::Mutex::new(Answers::Block(10)));
    let (node, proxy) = tagged(&tag, 0).await;
    let mut client = proxy.client().await;
    client.subscribe(json!(["newFinalizedHeads"])).await;
    let head = node.head().number();
    *tag.lock() = Answers::Block(12);
    node.mine(Mine::logs(1));
    heads_up_to(&mut client, 11, 12).await;
    // Back: nothing is delivered twice.
    *tag.lock() = Answers::Block(5);
    node.mine(Mine::logs(1));
    node.settled(&proxy).await;
    *tag.lock() = Answers::Error;
    node.mine(Mine::logs(1));
    node.settled(&proxy).await;
    *tag.lock() = Answers::Block(14);
    node.mine(Mine::logs(1));
    heads_up_to(&mut client, 13, 14).await;
    // Beyond the head: it proves nothing about this chain.
    *tag.lock() = Answers::Block(1 << 40);
    node.mine(Mine::logs(1));
    node.settled(&proxy).await;
    *tag.lock() = Answers::Block(16);
    node.mine(Mine::logs(1));
    heads_up_to(&mut client, 15, 16).await;
    *tag.lock() = Answers::Block(head + 7);
    node.mine(Mine::logs(1));
    heads_up_to(&mut client, 17, head + 7).await;
}

#[tokio::test]
async fn a_chain_without_tags_has_a_depth_if_it_is_set_and_status_says_so() {
    for answer in [Answers::Null, Answers::Error] {
        let tag = Arc::new(parking_lot::Mutex::new(answer));
        let (_node, proxy) = tagged(&tag, 0).await;
        let mut client = proxy.client().await;
        let answer = client.call("eth_subscribe", json!(["newFinalizedHeads"])).await;
        assert_eq!(answer["error"]["code"], -32000, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("history.finality_depth"), "{message}");
        // The level exists once the chain is old enough.
        *tag.lock() = Answers::Block(3);
        client.subscribe(json!(["newFinalizedHeads"])).await;
    }
    let tag = Arc::new(parking_lot::Mutex::new(Answers::Null));
    let (node, proxy) = tagged(&tag, 6).await;
    let mut client = proxy.client().await;
    client.subscribe(json!(["newFinalizedHeads"])).await;
    let head = node.head().number();
    node.mine(Mine::logs(1));
    heads_up_to(&mut client, head - 5, head - 5).await;
    let status: Value = serde_json::from_str(&proxy.admin("/status").await.body).unwrap();
    let level = json!({"level": "finalized", "number": head - 5, "basis": "depth", "subscriptions": 1});
    assert_eq!(status["finality"], json!([level]));
}

/// An error of a moment is no proof that a chain has no tags: depth, which is less than finality, must not take their place.
#[tokio::test]
async fn a_node_that_fails_for_a_moment_has_tags() {
    let fails_twice = Answers::Once(Box::new(Answers::Once(Box::new(Answers::Block(10)))));
    let tag = Arc::new(parking_lot::Mutex::new(fails_twice));
    let (node, proxy) = tagged(&tag, 2).await;
    let mut client = proxy.client().await;
    client.subscribe(json!(["newFinalizedHeads"])).await;
    *tag.lock() = Answers::Block(11);
    node.mine(Mine::logs(1));
    heads_up_to(&mut client, 11, 11).await;
    let status: Value = serde_json::from_str(&proxy.admin("/status").await.body).unwrap();
    assert_eq!(status["finality"][0]["basis"], "tag");
}

#[tokio::test]
async fn tags_are_asked_for_once_a_head_and_only_while_somebody_wants_them() {
    let tag = Arc::new(parking_lot::Mutex::new(Answers::Block(10)));
    let (node, proxy) = tagged(&tag, 0).await;
    let asked = || {
        let params = node.params("eth_getBlockByNumber");
        params.iter().filter(|params| params[0] == "finalized").count()
    };
    node.mine(Mine::logs(1));
    node.settled(&proxy).await;
    assert_eq!(asked(), 0);
    let mut clients = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..5 {
        let mut client = proxy.client().await;
        ids.push(client.subscribe(json!(["newFinalizedHeads"])).await);
        clients.push(client);
    }
    let before = asked();
    for number in 11..=14 {
        *tag.lock() = Answers::Block(number);
        node.mine(Mine::logs(1));
        for client in &mut clients {
            heads_up_to(client, number, number).await;
        }
    }
    assert_eq!(asked(), before + 4);
    for (client, id) in clients.iter_mut().zip(&ids) {
        client.unsubscribe(id).await;
    }
    node.mine(Mine::logs(1));
    node.settled(&proxy).await;
    assert_eq!(asked(), before + 4);
}

#[tokio::test]
async fn a_jump_of_the_level_is_paged_for_a_client_that_reads_slowly() {
    // 60 blocks of 6 logs of 20 kB become final at once: far more than a queue may hold.
    let node = node_with_logs_of(20_000).await;
    let rig = Rig::before(node, |config| {
        config.delivery.max_queue_bytes = bytesize::ByteSize::kib(512);
        config.history.blocks = 16;
    })
    .await;
    rig.control.mine_many(70);
    rig.settled(&rig.control).await;
    let end = rig.control.head().number() - FINALIZED + 1;
    let mut fast = rig.client().await;
    fast.subscribe(json!(["newFinalizedHeads"])).await;
    let mut slow = both(&rig, &json!({"finality": "finalized"})).await;
    // The tag stands still while the chain grows, and then jumps.
    rig.control
        .set_faults(|faults| faults.failing_methods = vec!["eth_getBlockByNumber".to_owned()]);
    rig.control.mine_many(60);
    rig.settled(&rig.control).await;
    rig.control.set_faults(|faults| faults.failing_methods.clear());
    rig.control.mine();
    let last = rig.control.head().number() - FINALIZED + 1;
    let blocks = canonical(&rig.control, end..last);
    let heads: Vec<String> = adopted(&blocks)
        .into_iter()
        .filter(|line| line.starts_with("head"))
        .collect();
    fast.expect(heads).await;
    slow.expect(adopted(&blocks)).await;
    rig.control.mine();
    slow.expect(adopted(&canonical(&rig.control, last..last + 1))).await;
}

#[tokio::test]
async fn receipts_and_mined_transactions_have_levels_and_resume() {
    for history in [256, 8] {
        let rig = Rig::with(|config| config.history.blocks = history).await;
        rig.control.mine_many(80);
        rig.settled(&rig.control).await;
        for (level, trails) in [(json!("finalized"), FINALIZED), (Value::Null, 0)] {
            rig.settled(&rig.control).await;
            let end = rig.control.head().number() - trails + 1;
            let first = canonical(&rig.control, end - 8..end - 7).remove(0);
            let options = json!({"finality": level, "after": after(&first)});
            let mut client = rig.client().await;
            let batch = json!([
                {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads", options]},
                {"jsonrpc": "2.0", "id": 2, "method": "eth_subscribe",
                    "params": ["alchemy_minedTransactions", {"hashesOnly": true}, options]},
                {"jsonrpc": "2.0", "id": 3, "method": "eth_subscribe",
                    "params": ["transactionReceipts", null, options]},
            ]);
            let answer: Value = serde_json::from_str(&client.ask(batch.to_string()).await).unwrap();
            let id = |at: usize| answer[at]["result"].as_str().unwrap().to_owned();
            let (heads, mined, receipts) = (id(0), id(1), id(2));
            let blocks = canonical(&rig.control, end - 7..end);
            let expected: usize = blocks.iter().map(|block| 2 + block.transactions().len()).sum();
            let mut seen = (Vec::new(), Vec::new(), Vec::new());
            for event in client.events(expected).await {
                let json = event.json();
                if event.subscription == heads {
                    seen.0.push(json["hash"].clone());
                } else if event.subscription == mined {
                    seen.1.push(json["transaction"]["hash"].clone());
                } else {
                    assert_eq!(event.subscription, receipts);
                    seen.2.push(json[0]["blockHash"].clone());
                }
            }
            let hashes: Vec<Value> = blocks.iter().map(|block| json!(block.hash())).collect();
            let transactions = blocks.iter().flat_map(|block| block.transactions());
            let transactions: Vec<Value> = transactions.map(|own| json!(own.hash())).collect();
            assert_eq!(seen, (hashes.clone(), transactions, hashes));
            // It goes on, in the order of the kinds.
            rig.control.mine_many(2);
            let tip = rig.control.head().number();
            for next in canonical(&rig.control, tip - trails - 1..tip - trails + 1) {
                assert_eq!(client.event().await.json()["hash"], json!(next.hash()));
                for own in next.transactions() {
                    assert_eq!(client.event().await.json()["transaction"]["hash"], json!(own.hash()));
                }
                assert_eq!(client.event().await.json()[0]["blockHash"], json!(next.hash()));
            }
        }
    }
}

#[tokio::test]
async fn many_random_reorgs_above_the_level_leave_one_walk_without_gaps() {
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        let rig = Rig::with(|config| config.history.blocks = 64).await;
        rig.control.mine_many(90);
        rig.settled(&rig.control).await;
        let depth = random.u64(4..12);
        let start = rig.control.head().number();
        let options = json!({"confirmations": depth + 1});
        let mut live = both(&rig, &options).await;
        let mut received = Vec::new();
        let mut resumed = both(&rig, &options).await;
        let mut cut = start - depth;
        for _ in 0..25 {
            match random.u8(0..4) {
                0 => {
                    let reorg = random.u64(1..=depth);
                    rig.control.reorg(reorg, reorg + random.u64(0..3)).unwrap();
                }
                1 if random.bool() => {
                    // Cut after some block, and back again behind it.
                    let head = rig.control.head().number();
                    rig.settled(&rig.control).await;
                    let reached = canonical(&rig.control, cut + 1..head - depth + 1);
                    resumed.expect(adopted(&reached)).await;
                    cut = head - depth;
                    let last = canonical(&rig.control, cut..cut + 1).remove(0);
                    rig.control.mine_many(random.u64(0..3));
                    let mut options = options.clone();
                    options["after"] = after(&last);
                    resumed = both(&rig, &options).await;
                }
                _ => drop(rig.control.mine_many(random.u64(1..4))),
            }
        }
        rig.control.mine_many(depth);
        let head = rig.control.head().number();
        received.extend(adopted(&canonical(&rig.control, start - depth + 1..head - depth + 1)));
        live.expect(received).await;
        resumed
            .expect(adopted(&canonical(&rig.control, cut + 1..head - depth + 1)))
            .await;
    }
}
