//! Clients that reconnect and go on where they were (E9).

use std::time::Duration;

use headwater::config::typed::FilterFromBlock;
use headwater::devnet::Block;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::bystander::Bystander;
use crate::harness::{Client, Rig, adopted, dropped, eventually, node_with_logs_of};
use crate::scripted::{Answer, Ask, Made, Mine, Scripted, address, word};

/// Returns `after` for the last log of this block.
fn behind(block: &Block) -> Value {
    json!({"after": {"blockHash": block.hash(), "logIndex": format!("{:#x}", block.logs().count() - 1)}})
}

/// Subscribes to heads and logs in one batch, as a client does that needs both in order.
async fn resume_both(client: &mut Client, start: &Value) {
    let heads = match start.get("after") {
        Some(after) => json!({"after": {"blockHash": after["blockHash"]}}),
        None => start.clone(),
    };
    let batch = json!([
        {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads", heads]},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_subscribe", "params": ["logs", {}, start]},
    ]);
    let answer: Value = serde_json::from_str(&client.ask(batch.to_string()).await).unwrap();
    assert!(
        answer[0]["result"].is_string() && answer[1]["result"].is_string(),
        "{answer}"
    );
}

/// Returns the lines of a story that begin with `word`.
fn only(word: &str, story: Vec<String>) -> Vec<String> {
    story.into_iter().filter(|line| line.starts_with(word)).collect()
}

/// Returns the story of a client that resumes on a branch that was left: the logs of `undone`, oldest block first,
/// are removed, then `blocks` are adopted.
fn received(undone: &[Arc<Block>], blocks: &[Arc<Block>]) -> Vec<String> {
    let mut newest_first: Vec<Arc<Block>> = undone.to_vec();
    newest_first.reverse();
    [dropped(&newest_first), adopted(blocks)].concat()
}

async fn fifty_blocks_and_a_reorg(history: usize) {
    let rig = Rig::with(|config| config.history.blocks = history).await;
    let before = rig.control.mine_many(6);
    let mut witness = rig.watcher().await;
    // The client has seen the six blocks, and is away while the last three are dropped and fifty are adopted.
    let mut blocks = rig.control.reorg(3, 5).unwrap().adopted;
    for _ in 0..9 {
        blocks.extend(rig.control.mine_many(5));
    }
    let last = format!("{:#x}", blocks.last().unwrap().number());
    loop {
        if witness.event().await.json()["number"] == json!(last) {
            break;
        }
    }
    let mut client = rig.client().await;
    resume_both(&mut client, &behind(&before[5])).await;
    client.expect(received(&before[3..], &blocks)).await;
    rig.nothing_else(&mut client).await;
}

#[tokio::test]
async fn fifty_blocks_and_a_reorg_are_made_up_for_from_memory() {
    fifty_blocks_and_a_reorg(256).await;
}

#[tokio::test]
async fn fifty_blocks_and_a_reorg_are_made_up_for_from_the_node() {
    fifty_blocks_and_a_reorg(8).await;
}

#[tokio::test]
async fn after_a_restart_of_the_proxy_nothing_is_missing() {
    let rig = Rig::start().await;
    let blocks = rig.control.mine_many(40);
    let branch = rig.control.reorg(2, 4).unwrap();
    let again = crate::harness::Proxy::start(&[rig.node.ws_url()], |config| config.history.blocks = 16).await;
    again.ready().await;
    let mut client = again.client().await;
    resume_both(&mut client, &behind(&blocks[10])).await;
    client
        .expect([adopted(&blocks[11..38]), adopted(&branch.adopted)].concat())
        .await;
    let mut on_the_old_branch = again.client().await;
    resume_both(&mut on_the_old_branch, &behind(&blocks[39])).await;
    on_the_old_branch.expect(received(&blocks[38..], &branch.adopted)).await;
    let block = rig.control.mine();
    client.expect(adopted(std::slice::from_ref(&block))).await;
    on_the_old_branch.expect(adopted(&[block])).await;
}

#[tokio::test]
async fn in_the_middle_of_a_block_the_rest_of_it_comes_first() {
    for history in [256, 4] {
        let rig = Rig::with(|config| config.history.blocks = history).await;
        let blocks = rig.control.mine_many(9);
        rig.settled(&rig.control).await;
        let mut client = rig.client().await;
        let start = json!({"after": {"blockHash": blocks[1].hash(), "logIndex": "0x2"}});
        client.subscribe(json!(["logs", {}, start])).await;
        let rest = only("log", adopted(&blocks[1..2])).split_off(3);
        client.expect([rest, only("log", adopted(&blocks[2..]))].concat()).await;
        let reorg = rig.control.reorg(2, 3).unwrap();
        client
            .expect([dropped(&reorg.dropped), only("log", adopted(&reorg.adopted))].concat())
            .await;
    }
}

#[tokio::test]
async fn from_a_block_on() {
    for history in [256, 4] {
        let rig = Rig::with(|config| config.history.blocks = history).await;
        let blocks = rig.control.mine_many(12);
        let first = blocks[2].number();
        let mut client = rig.client().await;
        resume_both(&mut client, &json!({"fromBlock": format!("{first:#x}")})).await;
        client.expect(adopted(&blocks[2..])).await;
        // A reorg that reaches below the start removes only logs that the client got.
        if history > 12 {
            let reorg = rig.control.reorg(11, 12).unwrap();
            client.expect(received(&blocks[2..], &reorg.adopted)).await;
        }
        let mut next = rig.client().await;
        let tip = rig.control.head().number();
        resume_both(&mut next, &json!({"fromBlock": format!("{:#x}", tip + 1)})).await;
        let mut later = rig.client().await;
        resume_both(&mut later, &json!({"fromBlock": format!("{:#x}", tip + 3)})).await;
        let blocks = rig.control.mine_many(4);
        next.expect(adopted(&blocks)).await;
        later.expect(adopted(&blocks[2..])).await;
        rig.nothing_else(&mut later).await;
    }
}

#[tokio::test]
async fn what_cannot_be_resumed_names_the_oldest_block_that_can() {
    let rig = Rig::with(|config| {
        config.history.blocks = 4;
        config.history.max_replay = 6;
        config.limits.max_subscriptions = 1;
        config.calls.head_wait_timeout = Duration::from_millis(200);
    })
    .await;
    let blocks = rig.control.mine_many(12);
    rig.settled(&rig.control).await;
    let oldest = rig.control.head().number() - 6;
    let mut client = rig.client().await;
    let unknown = json!({"after": {"blockHash": format!("0x{}", "ab".repeat(32))}});
    for start in [
        unknown,
        behind(&blocks[1]),
        json!({"fromBlock": "0x1"}),
        json!({"fromBlock": format!("{:#x}", oldest - 1)}),
    ] {
        let answer = client.call("eth_subscribe", json!(["logs", {}, start])).await;
        assert_eq!(answer["error"]["code"], -32001, "{answer}");
        assert_eq!(
            answer["error"]["data"]["oldestBlock"],
            format!("{oldest:#x}"),
            "{answer}"
        );
        let words = answer["error"]["message"].as_str().unwrap();
        assert!(words.starts_with("cannot resume: block "), "{words}");
    }
    // None of these counts as a subscription, and the block named as the oldest can be resumed from.
    client
        .subscribe(json!(["newHeads", {"fromBlock": format!("{oldest:#x}")}]))
        .await;
    client.expect(only("head", adopted(&blocks[5..]))).await;
    let answer = client.call("eth_subscribe", json!(["newHeads"])).await;
    assert_eq!(answer["error"]["code"], -32005, "{answer}");
    assert_eq!(rig.metric("headwater_subscriptions{kind=\"logs\"}").await, 0.0);
    assert_eq!(rig.metric("headwater_resumed_total{reason=\"unknown\"}").await, 1.0);
    assert_eq!(rig.metric("headwater_resumed_total{reason=\"too_old\"}").await, 3.0);
}

#[tokio::test]
async fn what_the_node_no_longer_has_is_refused_before_it_is_promised() {
    let rig = Rig::with(|config| config.history.blocks = 4).await;
    let blocks = rig.control.mine_many(20);
    rig.settled(&rig.control).await;
    let first_kept = blocks[10].number();
    rig.control.set_faults(|faults| faults.pruned_below = first_kept);
    let mut client = rig.client().await;
    for start in [
        behind(&blocks[8]),
        behind(&blocks[9]),
        json!({"after": {"blockHash": blocks[8].hash()}}),
        json!({"fromBlock": format!("{:#x}", first_kept - 1)}),
    ] {
        let answer = client.call("eth_subscribe", json!(["logs", {}, start])).await;
        assert_eq!(answer["error"]["code"], -32001, "{answer}");
        let words = answer["error"]["message"].as_str().unwrap();
        assert!(words.contains("the node no longer has block "), "{words}");
        let oldest = answer["error"]["data"]["oldestBlock"].as_str().unwrap();
        let oldest = u64::from_str_radix(oldest.trim_start_matches("0x"), 16).unwrap();
        assert!((first_kept..=rig.control.head().number()).contains(&oldest), "{answer}");
    }
    // Headers are available, and so are the logs from the first kept block on.
    client
        .subscribe(json!(["newHeads", {"fromBlock": format!("{:#x}", blocks[8].number())}]))
        .await;
    client.expect(only("head", adopted(&blocks[8..]))).await;
    let mut client = rig.client().await;
    client
        .subscribe(json!(["logs", {}, {"fromBlock": format!("{first_kept:#x}")}]))
        .await;
    client.expect(only("log", adopted(&blocks[10..]))).await;
    assert_eq!(rig.metric("headwater_resumed_total{reason=\"pruned\"}").await, 4.0);
}

#[tokio::test]
async fn other_options_get_geths_words() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    for (params, words) in [
        (json!(["newHeads", {}]), "too many arguments, want at most 1"),
        (json!(["newHeads", {"since": 1}]), "too many arguments, want at most 1"),
        (json!(["logs", {}, {}]), "too many arguments, want at most 2"),
        (json!(["logs", {}, true]), "too many arguments, want at most 2"),
        (
            json!(["logs", {}, {"fromBlock": "0x1"}, 1]),
            "too many arguments, want at most 2",
        ),
        (
            json!(["syncing", {"fromBlock": "0x1"}]),
            "too many arguments, want at most 1",
        ),
    ] {
        let answer = client.call("eth_subscribe", params).await;
        assert_eq!(answer["error"], json!({"code": -32602, "message": words}));
    }
    let answer = client
        .call("eth_subscribe", json!(["newHeads", {"after": {"blockHash": "0x1"}}]))
        .await;
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
}

#[tokio::test]
async fn a_long_past_comes_at_the_clients_pace() {
    // Forty blocks of about 60 kB for a queue of 256 KiB: a client that reads is never too slow.
    let node = node_with_logs_of(10_000).await;
    let rig = Rig::before(node, |config| {
        config.history.blocks = 16;
        config.delivery.max_queue_bytes = bytesize::ByteSize::kib(256);
    })
    .await;
    let blocks = rig.control.mine_many(40);
    rig.settled(&rig.control).await;
    let mut client = rig.client().await;
    let start = json!({"fromBlock": format!("{:#x}", blocks[0].number())});
    client.subscribe(json!(["logs", {}, start])).await;
    let story = only("log", adopted(&blocks));
    let (first, rest) = story.split_at(50);
    client.expect(first.to_vec()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.expect(rest.to_vec()).await;
    client.expect(only("log", adopted(&[rig.control.mine()]))).await;
}

#[tokio::test]
async fn nothing_follows_an_unsubscribe_in_the_middle_of_the_past() {
    let node = node_with_logs_of(10_000).await;
    let rig = Rig::before(node, |config| {
        config.delivery.max_queue_bytes = bytesize::ByteSize::kib(64)
    })
    .await;
    let blocks = rig.control.mine_many(40);
    rig.settled(&rig.control).await;
    let mut client = rig.client().await;
    let start = json!({"fromBlock": format!("{:#x}", blocks[0].number())});
    let id = client.subscribe(json!(["logs", {}, start])).await;
    client.event().await;
    assert_eq!(client.unsubscribe(&id).await["result"], true);
    client.forget_early();
    let heads = client.subscribe(json!(["newHeads"])).await;
    rig.control.mine();
    assert_eq!(client.event().await.subscription, heads);
    assert_eq!(
        client.unsubscribe(&id).await["error"]["message"],
        "subscription not found"
    );
    assert_eq!(rig.metric("headwater_subscriptions{kind=\"logs\"}").await, 0.0);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_the_past_leaves_nothing_behind() {
    let node = node_with_logs_of(10_000).await;
    let rig = Rig::before(node, |_| {}).await;
    let blocks = rig.control.mine_many(40);
    rig.settled(&rig.control).await;
    let mut client = rig.client().await;
    let start = json!({"fromBlock": format!("{:#x}", blocks[0].number())});
    client.subscribe(json!(["logs", {}, start])).await;
    client.subscribe(json!(["newHeads", {"fromBlock": "0xffffffff"}])).await;
    drop(client);
    eventually("it is gone", async || {
        let kinds = ["logs", "newHeads"];
        let mut left = 0.0;
        for kind in kinds {
            left += rig.metric(&format!("headwater_subscriptions{{kind=\"{kind}\"}}")).await;
        }
        left == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_filters_from_block_replays_only_where_it_is_set_to() {
    for replay in [false, true] {
        let rig = Rig::with(|config| {
            if replay {
                config.subscriptions.filter_from_block = FilterFromBlock::Replay;
            }
        })
        .await;
        let blocks = rig.control.mine_many(5);
        rig.settled(&rig.control).await;
        let mut client = rig.client().await;
        let from = format!("{:#x}", blocks[1].number());
        client.subscribe(json!(["logs", {"fromBlock": from}])).await;
        // go-ethereum's client always sends this.
        let mut go = rig.client().await;
        go.subscribe(json!(["logs", {"fromBlock": "0x0"}])).await;
        let next = rig.control.mine();
        if replay {
            client.expect(only("log", adopted(&blocks[1..]))).await;
        }
        client.expect(only("log", adopted(std::slice::from_ref(&next)))).await;
        go.expect(only("log", adopted(&[next]))).await;
    }
}

#[tokio::test]
async fn a_reorg_in_the_middle_of_the_past_is_told_of_what_was_sent() {
    let node = node_with_logs_of(10_000).await;
    let rig = Rig::before(node, |_| {}).await;
    let blocks = rig.control.mine_many(60);
    rig.settled(&rig.control).await;
    let mut client = rig.client().await;
    let start = json!({"fromBlock": format!("{:#x}", blocks[0].number())});
    client.subscribe(json!(["logs", {}, start])).await;
    client.expect(only("log", adopted(&blocks[..1]))).await;
    rig.control.reorg(58, 60).unwrap();
    // The sockets decide how much of the old branch the client gets; replayed, the events must add up.
    let mut live: Vec<String> = only("log", adopted(&blocks[..1]));
    let head = rig.control.mine();
    let last = only("log", adopted(&[head])).pop().unwrap();
    while live.last() != Some(&last) {
        let line = client.event().await.line();
        match line.strip_prefix("undo ") {
            Some(log) => {
                let at = live.iter().position(|own| own.strip_prefix("log ") == Some(log));
                live.remove(at.expect("it was received"));
            }
            None => live.push(line),
        }
    }
    let canonical = rig.control.with_chain(|chain| {
        let numbers = blocks[0].number()..=chain.head().number();
        numbers
            .map(|number| chain.block_at(number).unwrap().clone())
            .collect::<Vec<_>>()
    });
    assert_eq!(live, only("log", adopted(&canonical)));
}

#[tokio::test]
async fn a_filter_that_matches_little_costs_the_node_little() {
    let rig = Rig::with(|config| config.history.blocks = 4).await;
    let blocks = rig.control.mine_many(60);
    // Logs of live blocks are always fetched.
    let mut live = rig.client().await;
    let tip = format!("{:#x}", blocks[59].number());
    live.subscribe(json!(["logs", {}, {"fromBlock": tip}])).await;
    live.expect(only("log", adopted(&blocks[59..]))).await;
    let calls = || rig.control.stats().calls.get("eth_getLogs").copied().unwrap_or(0);
    let before = calls();
    let mut client = rig.client().await;
    let start = json!({"fromBlock": format!("{:#x}", blocks[0].number())});
    let nobody = json!({"address": "0x000000000000000000000000000000000000dEaD"});
    client.subscribe(json!(["logs", nobody, start])).await;
    // Sixty streams that match nothing do not delay the others.
    for _ in 0..60 {
        client.subscribe(json!(["logs", nobody, start])).await;
    }
    let mut heads = rig.client().await;
    heads.subscribe(json!(["newHeads", start])).await;
    heads.expect(only("head", adopted(&blocks))).await;
    eventually("all are live", async || {
        rig.metric("headwater_log_filters").await == 2.0
    })
    .await;
    // A few calls for false positives of the blooms.
    assert!(calls() - before < 20, "{} calls for nothing", calls() - before);
}

/// Mines a chain whose blooms lack the logs of system transactions: the bloom of the block at 7 is empty (HyperEVM),
/// that of the block at 20 has the other logs alone (Bor).
fn mine_with_system_logs(node: &Scripted) -> Vec<Made> {
    let system = |index: usize, log: &mut Value| {
        if index == 1 {
            log["address"] = json!(address("system"));
        }
    };
    let plain = node.mine(Mine::logs(1)).header["logsBloom"].clone();
    let mine = |place: usize| match place {
        7 => Mine::logs(2)
            .edit_logs(system)
            .with("logsBloom", json!(format!("0x{}", "0".repeat(512)))),
        20 => Mine::logs(2).edit_logs(system).with("logsBloom", plain.clone()),
        _ => Mine::logs(1),
    };
    (0..40).map(|place| node.mine(mine(place))).collect()
}

type Override = fn(&Ask<'_>) -> Answer;

#[tokio::test]
async fn a_narrow_filter_finds_logs_that_no_bloom_shows() {
    let other = |ask: &Ask<'_>| {
        ask.edited(|logs| {
            let logs = logs.as_array_mut().unwrap();
            logs.iter_mut()
                .for_each(|log| log["blockHash"] = json!(word("another branch")));
        })
    };
    let table: [(&str, Override, bool); 8] = [
        ("ordinary", |ask| ask.usual(), true),
        ("narrow", |_| Answer::error(-32005, "block range is too wide"), false),
        ("without ranges", |_| Answer::error(-32601, "not found"), false),
        ("busy", |_| Answer::error(-32005, "limit exceeded"), false),
        ("long", |_| Answer::error(-32602, "query exceeds max results 2"), false),
        ("null", |_| Value::Null.into(), false),
        ("reorganized", other, false),
        ("silent", |_| Answer::Never, false),
    ];
    for (name, answer, is_cheap) in table {
        let node = Scripted::start().await;
        let blocks = mine_with_system_logs(&node);
        node.answer("eth_getLogs", move |ask| {
            let edges = (&ask.params[0]["fromBlock"], &ask.params[0]["toBlock"]);
            match edges.0 == edges.1 {
                true => ask.usual(),
                false => answer(ask),
            }
        });
        let proxy = node.proxy(|config| config.history.blocks = 4).await;
        let bystander = Bystander::join(&proxy).await;
        let before = node.calls("eth_getLogs");
        let mut client = proxy.client().await;
        let start = json!({"fromBlock": format!("{:#x}", blocks[0].number())});
        let nobody = json!({"address": address("nobody"), "topics": [null, null]});
        let system = json!({"address": address("system"), "topics": [[word("Transfer"), word("x")], null]});
        client.subscribe(json!(["logs", nobody, start])).await;
        client.subscribe(json!(["logs", system, start])).await;
        let story = [7, 20].map(|place: usize| blocks[place].adopted().pop().unwrap());
        client.expect(story.to_vec()).await;
        // A live block, after all that was replayed.
        let head = node.mine(Mine::logs(1).edit_logs(|_, log| log["address"] = json!(address("system"))));
        client.expect(head.adopted().split_off(1)).await;
        let calls = node.calls("eth_getLogs") - before;
        assert_eq!(calls < 25, is_cheap, "{name}: {calls} calls");
        bystander.saw_only(&[head]).await;
    }
}

/// A branch was dropped while its logs were kept nowhere, at a node that forgets such blocks: a client's logs of that
/// branch cannot be removed, and the client gets an error at once.
#[tokio::test]
async fn a_dropped_block_whose_logs_are_nowhere_is_refused() {
    let node = Scripted::start().await;
    let base = node.grow(3)[2].clone();
    let proxy = node.proxy(|_| {}).await;
    let mut bystander = Bystander::join(&proxy).await;
    let gone = node.mine_many(3, 2);
    bystander.sees(&gone).await;
    let hashes: Vec<String> = gone.iter().map(Made::hash).collect();
    node.answer("eth_getBlockByHash", {
        let hashes = hashes.clone();
        move |ask| match hashes.iter().any(|hash| ask.params[0] == *hash) {
            true => Value::Null.into(),
            false => ask.usual(),
        }
    });
    node.answer("eth_getLogs", move |ask| {
        match hashes.iter().any(|hash| ask.params[0]["blockHash"] == *hash) {
            true => Answer::error(-32000, "unknown block"),
            false => ask.usual(),
        }
    });
    let mut adopted = vec![node.mine(Mine::logs(1).tag("b").on_block(&base))];
    adopted.extend((0..3).map(|_| node.mine(Mine::logs(1).tag("b"))));
    bystander.sees(&adopted).await;
    let mut client = proxy.client().await;
    for block in &gone {
        let after = json!({"after": {"blockHash": block.hash(), "logIndex": "0x1"}});
        let answer = client.call("eth_subscribe", json!(["logs", {}, after])).await;
        assert_eq!(answer["error"]["code"], -32001, "{answer}");
    }
    // Heads need no logs.
    let after = json!({"after": {"blockHash": gone[2].hash()}});
    client.subscribe(json!(["newHeads", after])).await;
    client.expect(adopted.iter().map(Made::head_line).collect()).await;
    bystander.saw_only(&[node.mine(Mine::default())]).await;
}

/// A client that moves between two instances, of which the second is a block behind, takes nothing back.
#[tokio::test]
async fn a_block_that_is_on_its_way_is_waited_for() {
    let (ahead, node) = (Scripted::start().await, Scripted::start().await);
    let common = (ahead.grow(3), node.grow(3));
    assert_eq!(common.0[2].hash(), common.1[2].hash(), "equal chains");
    let proxy = node
        .proxy(|config| config.calls.head_wait_timeout = Duration::from_secs(60))
        .await;
    let bystander = Bystander::join(&proxy).await;
    let newest = ahead.grow(1)[0].clone();
    let mut client = proxy.client().await;
    let asked = node.calls("eth_getBlockByHash");
    let (_, made) = tokio::join!(
        client.subscribe(json!(["newHeads", {"after": {"blockHash": newest.hash()}}])),
        async {
            eventually("the node is asked", async || node.calls("eth_getBlockByHash") > asked).await;
            node.mine(Mine::default())
        }
    );
    assert_eq!(made.hash(), newest.hash());
    let next = node.mine(Mine::logs(1));
    client.expect(vec![next.head_line()]).await;
    bystander.saw_only(&[made, next]).await;
}

#[tokio::test]
async fn a_refused_resumption_is_not_charged_to_the_account() {
    let rig = Rig::with(|config| {
        config.limits.max_index_entries = 10;
        config.calls.head_wait_timeout = Duration::from_millis(200);
    })
    .await;
    rig.control.mine();
    rig.settled(&rig.control).await;
    let mut client = rig.client().await;
    let addresses: Vec<String> = (0..6).map(|number| format!("{number:#042x}")).collect();
    let filter = json!({"address": addresses});
    let unknown = json!({"after": {"blockHash": format!("0x{}", "ab".repeat(32))}});
    for _ in 0..5 {
        let refused = client.call("eth_subscribe", json!(["logs", filter, unknown])).await;
        assert_eq!(refused["error"]["code"], -32001, "{refused}");
    }
    client.subscribe(json!(["logs", filter])).await;
}
