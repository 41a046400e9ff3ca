//! `transactionReceipts`: the receipts of new blocks, all or by the hash of their transaction.

use std::sync::Arc;

use alloy_primitives::B256;
use headwater::chain::Verify;
use headwater::devnet::{Block, Control};
use serde_json::{Value, json};

use crate::harness::{Client, Proxy, Rig, adopted, dropped, eventually, node};

async fn subscribed(proxy: &Proxy, params: Value) -> Client {
    let mut client = proxy.client().await;
    client.subscribe(params).await;
    client
}

async fn all(proxy: &Proxy) -> Client {
    subscribed(proxy, json!(["transactionReceipts"])).await
}

fn some(hashes: &[B256]) -> Value {
    json!(["transactionReceipts", {"transactionHashes": hashes}])
}

/// Returns the node's own receipts of the selected transactions of a block, as one event.
async fn known(rig: &Rig, block: &Block, wanted: impl Fn(usize) -> bool) -> String {
    let mut receipts = Vec::new();
    for (index, transaction) in block.transactions().iter().enumerate() {
        if wanted(index) {
            let get = json!({
                "jsonrpc": "2.0", "id": 1, "method": "eth_getTransactionReceipt", "params": [transaction.hash()],
            });
            let answer = rig.ask_node(&get).await;
            let own = answer.split_once(r#""result":"#).unwrap().1.strip_suffix('}').unwrap();
            receipts.push(own.to_owned());
        }
    }
    format!("[{}]", receipts.join(","))
}

/// Returns the hash of an event's block, and the positions of its transactions.
fn places(payload: &str) -> (B256, Vec<String>) {
    let receipts: Vec<Value> = serde_json::from_str(payload).unwrap();
    let hash = serde_json::from_value(receipts[0]["blockHash"].clone()).unwrap();
    let index = |receipt: &Value| receipt["transactionIndex"].as_str().unwrap().to_owned();
    (hash, receipts.iter().map(index).collect())
}

/// Checks that the client gets the receipts of each of these blocks once, in this order.
async fn expect(client: &mut Client, blocks: &[Arc<Block>]) {
    for block in blocks {
        let (hash, indices) = places(&client.event().await.payload);
        assert_eq!(hash, block.hash(), "block {}", block.number());
        assert_eq!(indices.len(), block.transactions().len());
    }
}

fn calls(node: &Control) -> u64 {
    let stats = node.stats();
    stats.calls.get("eth_getBlockReceipts").copied().unwrap_or(0)
}

/// Methods that return receipts: those of a block together, and one by one.
const RECEIPTS: [&str; 2] = ["eth_getBlockReceipts", "eth_getTransactionReceipt"];

fn fail(node: &Control, code: i64, methods: &[&str]) {
    let failing_methods = methods.iter().map(|method| (*method).to_owned()).collect();
    node.set_faults(|faults| {
        faults.failing_methods = failing_methods;
        faults.failure = (code, "no".to_owned());
    });
}

#[tokio::test]
async fn receipts_are_the_nodes_own_and_stand_behind_the_logs_and_mined_transactions() {
    let rig = Rig::start().await;
    let before = calls(&rig.control);
    let mut client = rig.client().await;
    // Receipts come last, although they are subscribed to first.
    let receipts = client.subscribe(json!(["transactionReceipts", null])).await;
    let mined = client
        .subscribe(json!(["alchemy_minedTransactions", {"hashesOnly": true}]))
        .await;
    let logs = client.subscribe(json!(["logs", {}])).await;
    let heads = client.subscribe(json!(["newHeads"])).await;
    let mut other = subscribed(
        &rig,
        json!(["transactionReceipts", {"transactionHashes": [], "else": 1}]),
    )
    .await;
    let blocks = rig.control.mine_many(10);
    for block in &blocks {
        let count = block.transactions().len();
        let mut story = vec![&heads];
        story.extend(std::iter::repeat_n(&logs, block.logs().count()));
        story.extend(std::iter::repeat_n(&mined, count));
        let events = client.events(story.len()).await;
        assert_eq!(
            events.iter().map(|event| &event.subscription).collect::<Vec<_>>(),
            story
        );
        let event = client.event().await;
        assert_eq!(event.subscription, receipts);
        assert_eq!(event.payload, known(&rig, block, |_| true).await);
        assert_eq!(other.event().await.payload, event.payload);
    }
    assert_eq!(calls(&rig.control), before + 10, "once for all who want them");
    assert_eq!(client.unsubscribe(&receipts).await["result"], true);
    drop(other);
    eventually("nobody wants any", async || {
        rig.metric(r#"headwater_subscriptions{kind="transactionReceipts"}"#)
            .await
            == 0.0
    })
    .await;
    let mut watcher = rig.watcher().await;
    rig.nothing_else(&mut watcher).await;
    assert_eq!(calls(&rig.control), before + 10);
}

#[tokio::test]
async fn receipts_are_selected_by_the_hash_of_their_transaction() {
    let rig = Rig::start().await;
    let pending: Vec<_> = (0..6).map(|_| rig.control.add_pending().unwrap().hash()).collect();
    let (one, none) = (pending[1], B256::repeat_byte(9));
    let mut everything = all(&rig).await;
    let mut single = subscribed(&rig, some(&[one])).await;
    let mut same = subscribed(&rig, some(&[one, none, one])).await;
    let mut others = subscribed(&rig, some(&pending[2..])).await;
    let mut nothing = subscribed(&rig, some(&[none])).await;
    let watched = nothing.subscribe(json!(["newHeads"])).await;
    let blocks = rig.control.mine_many(4);
    expect(&mut everything, &blocks).await;
    let of = |wanted: &'static [usize]| {
        let pending = pending.clone();
        move |hash: B256| wanted.iter().any(|at| pending[*at] == hash)
    };
    for (client, wanted) in [
        (&mut single, of(&[1])),
        (&mut same, of(&[1])),
        (&mut others, of(&[2, 3, 4, 5])),
    ] {
        let mut received = 0;
        for block in &blocks {
            let hash = |index: usize| block.transactions()[index].hash();
            if (0..block.transactions().len()).any(|index| wanted(hash(index))) {
                let expected = known(&rig, block, |index| wanted(hash(index))).await;
                assert_eq!(client.event().await.payload, expected);
                received += 1;
            }
        }
        assert!(received > 0, "the blocks hold what is pending");
    }
    for _ in &blocks {
        assert_eq!(nothing.event().await.subscription, watched);
    }
}

#[tokio::test]
async fn a_reorg_takes_nothing_back_and_tells_the_adopted_blocks() {
    let rig = Rig::start().await;
    let mut client = all(&rig).await;
    let mut watcher = rig.watcher().await;
    let first = rig.control.mine_many(3);
    expect(&mut client, &first).await;
    watcher.expect(adopted(&first)).await;
    let reorg = rig.control.reorg(2, 3).unwrap();
    expect(&mut client, &reorg.adopted).await;
    watcher
        .expect([dropped(&reorg.dropped), adopted(&reorg.adopted)].concat())
        .await;
    // Back to the branch that was left: its receipts are delivered once more.
    let reorg = rig.control.switch_back().unwrap();
    expect(&mut client, &reorg.adopted).await;
}

#[tokio::test]
async fn after_an_outage_the_receipts_of_every_block_come_in_order() {
    let rig = Rig::start().await;
    let mut client = all(&rig).await;
    rig.control.set_faults(|faults| faults.refuse_connections = true);
    rig.control.disconnect();
    let blocks = rig.control.mine_many(40);
    rig.control.set_faults(|faults| faults.refuse_connections = false);
    expect(&mut client, &blocks).await;
}

#[tokio::test]
async fn receipts_go_on_from_the_second_node_without_a_seam() {
    let (first, second) = (node().await, node().await);
    second.handle().set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[first.ws_url(), second.ws_url()], |_| {}).await;
    proxy.settled(&first.handle()).await;
    second.handle().set_faults(|faults| faults.refuse_connections = false);
    proxy.connected().await;
    let mut client = all(&proxy).await;
    let mut story = first.handle().mine_many(2);
    second.handle().mine_many(2);
    expect(&mut client, &story).await;
    first.handle().set_faults(|faults| faults.refuse_connections = true);
    first.handle().disconnect();
    story = second.handle().mine_many(3);
    expect(&mut client, &story).await;
}

/// Receipts that are fetched for verification are checked against the root.
#[tokio::test]
async fn receipts_that_are_proven_are_told_too() {
    let rig = Rig::with(|config| config.history.verify = Verify::Receipts).await;
    let mut client = all(&rig).await;
    let blocks = rig.control.mine_many(3);
    for block in &blocks {
        assert_eq!(client.event().await.payload, known(&rig, block, |_| true).await);
    }
}

#[tokio::test]
async fn blocks_without_transactions_tell_nothing_and_ask_for_nothing() {
    let node = headwater::devnet::Devnet::start(headwater::devnet::Config {
        transactions_per_block: 0,
        ..headwater::devnet::Config::manual()
    });
    let rig = Rig::before(node.await.unwrap(), |_| {}).await;
    let mut client = all(&rig).await;
    let heads = client.subscribe(json!(["newHeads"])).await;
    let before = calls(&rig.control);
    rig.control.mine_many(3);
    for event in client.events(3).await {
        assert_eq!(event.subscription, heads);
    }
    assert_eq!(calls(&rig.control), before);
}

#[tokio::test]
async fn where_the_node_does_not_serve_receipts_who_wants_them_is_told_and_the_others_go_on() {
    let rig = Rig::start().await;
    let mut client = all(&rig).await;
    let mut watcher = rig.watcher().await;
    fail(&rig.control, -32601, &RECEIPTS);
    let blocks = rig.control.mine_many(2);
    let (messages, code, _) = client.closed().await;
    assert_eq!((messages.len(), code), (0, 1012));
    watcher.expect(adopted(&blocks)).await;
    let lost = rig
        .metric(r#"headwater_continuity_lost_total{reason="no_receipts"}"#)
        .await;
    assert_eq!(lost, 1.0);
    // For a while no new client may make every head wait for receipts; what the node does serve is available.
    let refused = watcher.call("eth_subscribe", json!(["transactionReceipts"])).await;
    assert_eq!(
        refused["error"],
        json!({"code": -32000, "message": "the node does not serve the receipts of its blocks"})
    );
    watcher.subscribe(json!(["alchemy_minedTransactions"])).await;
}

/// The node closes the connection on the request itself: retried for ever, it would delay every client's next head.
#[tokio::test]
async fn where_the_node_hangs_up_on_the_question_who_asked_is_told_and_the_others_go_on() {
    let rig = Rig::start().await;
    let mut client = all(&rig).await;
    let mut watcher = rig.watcher().await;
    let asked = calls(&rig.control);
    let hangs_up_on = RECEIPTS.map(str::to_owned).to_vec();
    rig.control.set_faults(|faults| faults.hangs_up_on = hangs_up_on);
    let mut blocks = vec![rig.control.mine()];
    let (messages, code, _) = client.closed().await;
    assert_eq!((messages.len(), code), (0, 1012));
    assert_eq!(calls(&rig.control), asked + 3);
    blocks.push(rig.control.mine());
    watcher.expect(adopted(&blocks)).await;
    assert_eq!(calls(&rig.control), asked + 3, "nobody wants any");
}

#[tokio::test]
async fn a_rate_limit_is_called_so() {
    let rig = Rig::start().await;
    let mut client = all(&rig).await;
    fail(&rig.control, 429, &RECEIPTS);
    rig.control.mine();
    assert_eq!(client.closed().await.1, 1012);
    let mut other = rig.client().await;
    let refused = other.call("eth_subscribe", json!(["transactionReceipts"])).await;
    let words = "the node's rate limit prevents fetching the receipts of its blocks, try again later";
    assert_eq!(refused["error"], json!({"code": -32000, "message": words}));
}

#[tokio::test]
async fn a_block_that_is_dropped_before_its_receipts_came_holds_nobody_up() {
    let rig = Rig::start().await;
    let mut client = all(&rig).await;
    let mut watcher = rig.watcher().await;
    fail(&rig.control, -32000, &RECEIPTS);
    let lost = rig.control.mine_many(2);
    watcher.expect(adopted(&lost[..1])).await;
    let reorg = rig.control.reorg(2, 3).unwrap();
    let mut story = adopted(&lost[1..]);
    story.extend(dropped(&reorg.dropped));
    story.extend(adopted(&reorg.adopted[..1]));
    watcher.expect(story).await;
    fail(&rig.control, -32000, &[]);
    watcher.expect(adopted(&reorg.adopted[1..])).await;
    expect(&mut client, &reorg.adopted).await;
}

#[tokio::test]
async fn hashes_up_to_the_limit_and_not_one_more() {
    let rig = Rig::with(|config| config.limits.max_index_entries = 201).await;
    let hashes = |count: u64| -> Vec<B256> { (0..count).map(|n| B256::left_padding_from(&n.to_be_bytes())).collect() };
    let mut client = rig.client().await;
    let full = client.subscribe(some(&hashes(200))).await;
    let refused = client.call("eth_subscribe", some(&hashes(201))).await;
    assert_eq!(
        refused["error"],
        json!({
            "code": -32000,
            "message": "exceed max number of transaction hashes allowed per transactionReceipts subscription",
        })
    );
    // The hashes also count toward the limit for all filters of a client.
    client.subscribe(some(&hashes(1))).await;
    let refused = client.call("eth_subscribe", some(&hashes(1))).await;
    assert_eq!(refused["error"]["code"], -32005, "{refused}");
    client.subscribe(json!(["transactionReceipts"])).await;
    client.unsubscribe(&full).await;
    client.subscribe(some(&hashes(200))).await;
}

#[tokio::test]
async fn before_the_first_block_the_answer_waits_for_it() {
    let node = node().await;
    let control = node.handle();
    control.set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[node.ws_url()], |_| {}).await;
    let mut client = proxy.client().await;
    let subscribe = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["transactionReceipts"]});
    client.send(subscribe.to_string()).await;
    control.set_faults(|faults| faults.refuse_connections = false);
    assert!(client.next().await.contains("result"));
    let blocks = [control.head(), control.mine()];
    // The first event may be of the block that the answer waited for.
    let (hash, _) = places(&client.event().await.payload);
    let at = blocks.iter().position(|block| block.hash() == hash).unwrap();
    expect(&mut client, &blocks[at + 1..]).await;
}
