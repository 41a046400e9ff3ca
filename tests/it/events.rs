//! The event contract: every head and log in order and once, and every reorg reported.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater::devnet::{Block, ChainError, Control, Faults, Reorg};
use serde_json::{Value, json};

use crate::harness::{Client, Event, Rig, adopted, dropped, eventually, reorged, take_away, within, without_logs};

/// Checks that the next events equal, in order, those of the node itself: heads and logs, removed logs first.
async fn same(client: &mut Client, witness: &mut Client, count: usize) {
    for _ in 0..count {
        let (mine, theirs) = (client.event().await, witness.event().await);
        assert_eq!(mine.payload, theirs.payload);
    }
}

#[tokio::test]
async fn heads_and_logs_are_the_nodes_own_bytes_in_order() {
    let rig = Rig::start().await;
    let (mut client, mut witness) = (rig.watcher().await, rig.witness().await);
    rig.control.mine();
    same(&mut client, &mut witness, 7).await;
    rig.control.mine_many(20);
    same(&mut client, &mut witness, 20 * 7).await;
    rig.nothing_else(&mut client).await;
}

#[tokio::test]
async fn a_reorg_of_any_depth_takes_back_the_old_logs_before_it_tells_the_new_blocks() {
    let rig = Rig::start().await;
    let (mut client, mut witness) = (rig.watcher().await, rig.witness().await);
    rig.control.mine_many(8);
    same(&mut client, &mut witness, 8 * 7).await;
    for depth in 1..=8 {
        for (depth, new_len) in [(depth, depth), (depth, depth + 1), (depth, depth + 3)] {
            let story = reorged(&rig.control.reorg(depth, new_len).unwrap());
            same(&mut client, &mut witness, story.len()).await;
        }
    }
    rig.nothing_else(&mut client).await;
    assert_eq!(rig.metric("headwater_reorgs_total").await, 24.0);
}

#[tokio::test]
async fn removed_logs_are_the_delivered_bytes_but_for_one_word() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.subscribe(json!(["logs"])).await;
    rig.control.mine_many(3);
    let delivered = client.events(18).await;
    rig.control.reorg(2, 2).unwrap();
    let removed = client.events(12).await;
    for (was, is) in delivered[6..].iter().zip(removed) {
        assert_eq!(
            is.payload,
            was.payload.replace(r#""removed":false"#, r#""removed":true"#)
        );
        assert_ne!(is.payload, was.payload);
    }
}

#[tokio::test]
async fn a_newcomer_is_not_told_of_the_removal_of_what_it_was_never_sent() {
    let rig = Rig::start().await;
    let mut old = rig.watcher().await;
    for _ in 0..2 {
        rig.nothing_else(&mut old).await;
    }
    let mut newcomer = rig.watcher().await;
    let known = rig.control.mine();
    newcomer.expect(adopted(std::slice::from_ref(&known))).await;
    old.expect(adopted(std::slice::from_ref(&known))).await;
    let reorg = rig.control.reorg(3, 4).unwrap();
    old.expect(reorged(&reorg)).await;
    newcomer
        .expect([dropped(&[known]), adopted(&reorg.adopted)].concat())
        .await;
    // One more reorg, whose dropped blocks both clients know.
    let reorg = rig.control.reorg(4, 5).unwrap();
    old.expect(reorged(&reorg)).await;
    newcomer.expect(reorged(&reorg)).await;
    // A client that connects now has got none of the dropped logs.
    let mut last = rig.watcher().await;
    let reorg = rig.control.reorg(2, 3).unwrap();
    last.expect(adopted(&reorg.adopted)).await;
}

#[tokio::test]
async fn a_filter_gets_back_only_what_it_selected() {
    let rig = Rig::start().await;
    let mut watcher = rig.watcher().await;
    rig.nothing_else(&mut watcher).await;
    // The busiest contract.
    let address = rig.control.with_chain(|chain| chain.tokens()[0]);
    let mut client = rig.client().await;
    client.subscribe(json!(["logs", {"address": address}])).await;
    let of = |blocks: &[std::sync::Arc<headwater::devnet::Block>]| -> usize {
        blocks
            .iter()
            .flat_map(|block| block.logs())
            .filter(|log| log.address == address)
            .count()
    };
    let blocks = rig.control.mine_many(6);
    let delivered = client.events(of(&blocks)).await;
    assert!(!delivered.is_empty());
    let reorg = rig.control.reorg(6, 7).unwrap();
    let removed = client.events(delivered.len()).await;
    for (was, is) in delivered.iter().zip(removed) {
        assert_eq!(
            is.payload,
            was.payload.replace(r#""removed":false"#, r#""removed":true"#)
        );
    }
    for event in client.events(of(&reorg.adopted)).await {
        assert_eq!(event.json()["removed"], false);
    }
}

#[tokio::test]
async fn the_chain_may_return_to_a_branch_that_it_had_left() {
    let rig = Rig::start().await;
    let (mut client, mut witness) = (rig.watcher().await, rig.witness().await);
    rig.control.mine_many(4);
    same(&mut client, &mut witness, 4 * 7).await;
    let away = rig.control.reorg(2, 3).unwrap();
    same(&mut client, &mut witness, reorged(&away).len()).await;
    for _ in 0..3 {
        let back = rig.control.switch_back().unwrap();
        assert!(!back.adopted.is_empty());
        same(&mut client, &mut witness, reorged(&back).len()).await;
    }
    rig.nothing_else(&mut client).await;
}

/// geth announces the newest head alone; the blocks below have to be fetched.
#[tokio::test]
async fn a_node_that_announces_only_the_tip_of_a_reorg_hides_nothing() {
    let rig = Rig::start().await;
    rig.control.set_faults(|faults| {
        faults.announce_tip_only_after_reorg = true;
        faults.send_removed_logs = false;
    });
    let mut client = rig.watcher().await;
    let blocks = rig.control.mine_many(8);
    client.expect(adopted(&blocks)).await;
    for depth in 1..=8 {
        let reorg = rig.control.reorg(depth, depth + 1).unwrap();
        client.expect(reorged(&reorg)).await;
    }
    let back = rig.control.switch_back().unwrap();
    client.expect(reorged(&back)).await;
    rig.nothing_else(&mut client).await;
}

type Change = fn(&Control) -> Result<Reorg, ChainError>;

/// The chain becomes shorter by a rewind, or by a reorg to a shorter branch.
#[tokio::test]
async fn a_chain_that_shrinks_takes_back_its_logs() {
    for tip_only in [false, true] {
        let rig = Rig::start().await;
        rig.control
            .set_faults(|faults| faults.announce_tip_only_after_reorg = tip_only);
        let mut client = rig.watcher().await;
        for change in [
            (|control| control.rewind(1)) as Change,
            |control| control.rewind(3),
            |control| control.reorg(3, 1),
            |control| control.reorg(4, 2),
        ] {
            let blocks = rig.control.mine_many(4);
            client.expect(adopted(&blocks)).await;
            let change = change(&rig.control).unwrap();
            // A shorter chain is reported only when a block replaces a lost one: before, the lost blocks may come
            // again.
            let next = rig.control.mine();
            client.expect(dropped(&change.dropped)).await;
            // geth announces the ancestor of a rewind; the app may do so or not.
            let ancestor = adopted(std::slice::from_ref(&change.ancestor)).swap_remove(0);
            let story = [adopted(&change.adopted), adopted(&[next])].concat();
            client.expect_after_optional(&ancestor, story).await;
        }
    }
}

/// A restored node, or a load balancer that switched nodes: the same blocks come again, and no client is notified.
#[tokio::test]
async fn a_chain_that_goes_back_and_comes_the_same_way_again_is_told_to_nobody() {
    let rig = Rig::with(|config| config.node.silence_timeout = Duration::from_secs(1)).await;
    let mut client = rig.watcher().await;
    let mut mined = rig.client().await;
    mined
        .subscribe(json!(["alchemy_minedTransactions", {"hashesOnly": true, "includeRemoved": true}]))
        .await;
    let blocks = rig.control.mine_many(4);
    client.expect(adopted(&blocks)).await;
    let transactions = |blocks: &[Arc<Block>]| blocks.iter().map(|block| block.transactions().len()).sum::<usize>();
    mined.events(transactions(&blocks)).await;
    rig.control.rewind(3).unwrap();
    let back = blocks[0].number() as f64;
    eventually("it is believed", async || {
        rig.metric("headwater_head_number").await == back
    })
    .await;
    // A client that subscribes now starts at the node's height, and misses nothing above.
    let mut newcomer = rig.client().await;
    newcomer.subscribe(json!(["logs", {}])).await;
    let logs = |story: Vec<String>| {
        story
            .into_iter()
            .filter(|line| line.starts_with("log"))
            .collect::<Vec<_>>()
    };
    newcomer.expect(logs(adopted(&blocks[1..]))).await;
    rig.control.switch_back().unwrap();
    eventually("it is back", async || {
        rig.metric("headwater_head_number").await == back + 3.0
    })
    .await;
    let next = [rig.control.mine()];
    client.expect(adopted(&next)).await;
    newcomer.expect(logs(adopted(&next))).await;
    for event in mined.events(transactions(&next)).await {
        assert_eq!(event.json()["removed"], false);
    }
    // The chain goes back again and takes another branch: clients get all of that.
    rig.control.rewind(2).unwrap();
    let story = [vec![next[0].clone(), blocks[3].clone()], vec![]].concat();
    let other = [rig.control.mine()];
    client.expect([dropped(&story), adopted(&other)].concat()).await;
    newcomer.expect([dropped(&story), logs(adopted(&other))].concat()).await;
}

#[tokio::test]
async fn nothing_is_lost_or_told_twice_over_a_lost_connection_to_the_node() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    for round in 0..6 {
        rig.control.disconnect();
        let mut story = adopted(&rig.control.mine_many(round));
        client.expect(std::mem::take(&mut story)).await;
        let blocks = rig.control.mine_many(3);
        rig.control.disconnect();
        client.expect(adopted(&blocks)).await;
    }
    assert!(
        rig.metric(&format!(
            r#"headwater_upstream_connects{{upstream="{}"}}"#,
            rig.node.ws_url()
        ))
        .await
            > 6.0
    );
}

#[tokio::test]
async fn a_reorg_during_a_lost_connection_is_told_afterwards() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    let blocks = rig.control.mine_many(5);
    client.expect(adopted(&blocks)).await;
    for depth in 1..=4 {
        take_away(&rig.control);
        eventually("the connection is lost", async || rig.control.stats().connections == 0).await;
        let reorg = rig.control.reorg(depth, depth + 2).unwrap();
        rig.control.set_faults(|faults| faults.refuse_connections = false);
        client.expect(reorged(&reorg)).await;
    }
    rig.nothing_else(&mut client).await;
}

#[tokio::test]
async fn a_node_that_falls_silent_is_left_and_nothing_is_lost() {
    let rig = Rig::with(|config| config.node.silence_timeout = Duration::from_secs(1)).await;
    let mut client = rig.watcher().await;
    rig.control.stall(None);
    let blocks = rig.control.mine_many(3);
    rig.unready().await;
    rig.control.resume();
    client.expect(adopted(&blocks)).await;
    rig.nothing_else(&mut client).await;
}

type Fault = fn(&mut Faults);

#[tokio::test]
async fn what_nodes_do_wrong_does_not_reach_clients() {
    for (what, fault) in [
        ("heads twice", (|faults| faults.duplicate_heads = true) as Fault),
        ("heads that are never announced", |faults| faults.skip_heads = 3),
        ("heads in the wrong order", |faults| faults.late_heads = 3),
        ("empty logs at first", |faults| faults.empty_log_answers = 3),
        ("no removed logs", |faults| faults.send_removed_logs = false),
        ("slow answers", |faults| faults.delay = Some(Duration::from_millis(30))),
        ("all at once", |faults| {
            faults.duplicate_heads = true;
            faults.late_heads = 2;
            faults.skip_heads = 2;
            faults.empty_log_answers = 2;
            faults.announce_tip_only_after_reorg = true;
            faults.send_removed_logs = false;
        }),
    ] {
        eprintln!("{what}");
        let rig = Rig::start().await;
        let mut client = rig.watcher().await;
        rig.control.set_faults(fault);
        let blocks = rig.control.mine_many(6);
        client.expect(adopted(&blocks)).await;
        // Skipped heads would hide the reorg itself.
        rig.control
            .set_faults(|faults| (faults.skip_heads, faults.late_heads) = (0, 0));
        let reorg = rig.control.reorg(2, 3).unwrap();
        client.expect(reorged(&reorg)).await;
        rig.nothing_else(&mut client).await;
    }
}

#[tokio::test]
async fn logs_that_cannot_be_had_hold_up_the_next_head_and_nothing_else() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    rig.control.set_faults(|faults| faults.failing_methods = without_logs());
    let blocks = rig.control.mine_many(3);
    let head = client.event().await;
    assert_eq!(head.json()["hash"], json!(blocks[0].hash()));
    eventually("the logs are asked for again", async || {
        rig.metric(r#"headwater_log_retries_total{reason="node_error"}"#).await >= 3.0
    })
    .await;
    assert_eq!(client.call("eth_chainId", json!([])).await["result"], "0x539");
    rig.control.set_faults(|faults| faults.failing_methods.clear());
    client.expect(adopted(&blocks).split_off(1)).await;
}

#[tokio::test]
async fn pending_transactions_come_as_hashes_or_whole_and_once() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let mut kinds = Vec::new();
    for params in [
        json!(["newPendingTransactions"]),
        json!(["newPendingTransactions", false]),
        json!(["pendingTransactions"]),
        json!(["newPendingTransactions", true]),
    ] {
        kinds.push(client.subscribe(params).await);
    }
    eventually("the node is asked for both forms", async || {
        rig.control.stats().subscriptions.get("newPendingTransactions") == Some(&2)
    })
    .await;
    let mut witness = Client::connect(&rig.node.ws_url()).await;
    witness.subscribe(json!(["newPendingTransactions", true])).await;
    for _ in 0..5 {
        let hash = json!(rig.control.add_pending().unwrap().hash()).to_string();
        let full = witness.event().await.payload;
        let mut events = client.events(4).await;
        events.sort_by_key(|event| kinds.iter().position(|id| *id == event.subscription));
        let payloads: Vec<&str> = events.iter().map(|event| event.payload.as_str()).collect();
        assert_eq!(payloads, [&hash, &hash, &hash, full.as_str()]);
    }
}

#[tokio::test]
async fn syncing_says_no_at_once_to_the_first_and_to_the_second() {
    let rig = Rig::start().await;
    for _ in 0..2 {
        let mut client = rig.client().await;
        let id = client.subscribe(json!(["syncing"])).await;
        let expected = Event {
            subscription: id,
            payload: "false".into(),
        };
        assert_eq!(client.event().await, expected);
    }
}

#[tokio::test]
async fn nothing_follows_the_answer_to_unsubscribe() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let marker = client.subscribe(json!(["newHeads"])).await;
    for _ in 0..20 {
        let heads = client.subscribe(json!(["newHeads"])).await;
        let logs = client.subscribe(json!(["logs", {}])).await;
        // Some events are in flight, some are still to come.
        rig.control.mine_many(2);
        for id in [&heads, &logs] {
            client
                .send(json!({"jsonrpc": "2.0", "id": "u", "method": "eth_unsubscribe", "params": [id]}).to_string())
                .await;
        }
        let last = rig.control.mine();
        let (mut answers, mut done) = (0, false);
        while !done || answers < 2 {
            let text = client.next().await;
            if text == r#"{"jsonrpc":"2.0","id":"u","result":true}"# {
                answers += 1;
                continue;
            }
            let event = Event::parse(&text);
            assert!(answers < 1 || event.subscription != heads, "a head after the answer");
            assert!(answers < 2 || event.subscription == marker, "an event after the answer");
            done |= event.subscription == marker && event.json()["hash"] == json!(last.hash());
        }
    }
}

/// web3.js 4 and web3.py 8 lose notifications that arrive in the same read as the answer (E5).
#[tokio::test]
async fn the_first_notification_waits_behind_its_answer() {
    let rig = Rig::with(|config| config.delivery.holdoff = Duration::from_millis(150)).await;
    let control = rig.control.clone();
    let mining = tokio::spawn(async move {
        loop {
            control.mine();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let subscribe = |id: u64| json!({"jsonrpc": "2.0", "id": id, "method": "eth_subscribe", "params": ["newHeads"]});
    let with_call = json!([subscribe(1), {"jsonrpc": "2.0", "id": 2, "method": "eth_chainId"}]);
    for request in [subscribe(1), json!([subscribe(1)]), with_call] {
        let mut client = rig.client().await;
        client.send(request.to_string()).await;
        let answer: Value = serde_json::from_str(&client.next().await).unwrap();
        let answered = Instant::now();
        assert!(
            answer.get("result").or(answer[0].get("result")).is_some(),
            "the answer first: {answer}"
        );
        let first = client.event().await.json();
        assert!(
            answered.elapsed() >= Duration::from_millis(100),
            "{:?} after the answer",
            answered.elapsed()
        );
        // Delayed heads are not lost.
        let mut parent = first["hash"].clone();
        for _ in 0..20 {
            let head = client.event().await.json();
            assert_eq!(head["parentHash"], parent);
            parent = head["hash"].clone();
        }
    }
    mining.abort();
}

#[tokio::test]
async fn the_usual_holdoff_is_about_ten_milliseconds() {
    let rig = Rig::start().await;
    let mut longest = Duration::ZERO;
    // The longest of several: on a busy machine the answer may be read late.
    for _ in 0..5 {
        let mut client = rig.client().await;
        client.subscribe(json!(["newHeads"])).await;
        let answered = Instant::now();
        rig.control.mine();
        client.event().await;
        longest = longest.max(answered.elapsed());
    }
    assert!(longest >= Duration::from_millis(8), "{longest:?}");
}

#[tokio::test]
async fn equal_subscriptions_have_ids_of_their_own_and_get_a_copy_each() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.subscribe(json!(["newHeads"])).await);
        ids.push(client.subscribe(json!(["logs", {}])).await);
    }
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 6);
    for block in rig.control.mine_many(2) {
        let events = client.events(3 + 3 * 6).await;
        let (heads, logs) = events.split_at(3);
        assert!(
            heads.iter().all(|head| head.json()["hash"] == json!(block.hash())),
            "all heads before the logs"
        );
        for id in &ids {
            let own: Vec<_> = logs.iter().filter(|log| log.subscription == *id).collect();
            assert!(own.is_empty() || own.len() == 6);
            assert!(
                own.iter()
                    .enumerate()
                    .all(|(i, log)| log.json()["logIndex"] == format!("{i:#x}"))
            );
        }
        let received: std::collections::BTreeSet<_> = events.iter().map(|event| &event.subscription).collect();
        assert_eq!(received.len(), 6);
    }
    assert_eq!(client.unsubscribe(&ids[0]).await["result"], true);
    rig.control.mine();
    let events = within("the others go on", client.events(2 + 3 * 6)).await;
    assert!(events.iter().all(|event| event.subscription != ids[0]));
}

/// A block that is dropped before its logs were delivered leaves nothing to remove.
#[tokio::test]
async fn blocks_dropped_before_they_were_told_leave_no_trace() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    let no_logs = |faults: &mut Faults| faults.failing_methods = without_logs();
    let reorgs = async || rig.metric("headwater_reorgs_total").await;

    rig.control.set_faults(no_logs);
    let blocks = rig.control.mine_many(3);
    let mut first = adopted(&blocks[..1]);
    client.expect(vec![first.remove(0)]).await;
    let reorg = rig.control.reorg(2, 3).unwrap();
    eventually("the reorg is seen", async || reorgs().await == 1.0).await;
    rig.control.set_faults(|faults| faults.failing_methods.clear());
    client.expect([first, adopted(&reorg.adopted)].concat()).await;

    // Now the head was delivered, and its logs were not.
    rig.control.set_faults(no_logs);
    let block = rig.control.mine();
    client.expect(vec![adopted(&[block]).remove(0)]).await;
    let reorg = rig.control.reorg(1, 2).unwrap();
    eventually("the reorg is seen", async || reorgs().await == 2.0).await;
    rig.control.set_faults(|faults| faults.failing_methods.clear());
    client.expect(adopted(&reorg.adopted)).await;
    rig.nothing_else(&mut client).await;
}

/// Timing decides which of the branches in between are reported; the logs must add up in any case.
#[tokio::test]
async fn reorgs_faster_than_they_can_be_walked_add_up() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    let blocks = rig.control.mine_many(6);
    client.expect(adopted(&blocks)).await;
    rig.control.set_faults(|faults| {
        faults.announce_tip_only_after_reorg = true;
        faults.delay = Some(Duration::from_millis(10));
    });
    for depth in 1..=5 {
        rig.control.reorg(depth, depth + 1).unwrap();
    }
    let canonical: Vec<_> = rig.control.with_chain(|chain| {
        let numbers = blocks[0].number()..=chain.head().number();
        numbers.map(|number| chain.block_at(number).unwrap().clone()).collect()
    });
    let expected = logs_in(&adopted(&canonical));
    let mut live = logs_in(&adopted(&blocks));
    while live != expected {
        let line = client.line().await;
        if let Some(log) = line.strip_prefix("undo ") {
            assert!(live.remove(log), "{log} was never received, or is gone already");
        } else if let Some(log) = line.strip_prefix("log ") {
            assert!(live.insert(log.to_owned()), "{log} is received twice");
        }
    }
    rig.nothing_else(&mut client).await;
}

fn logs_in(story: &[String]) -> std::collections::BTreeSet<String> {
    let logs = story.iter().filter_map(|line| line.strip_prefix("log "));
    logs.map(str::to_owned).collect()
}

#[tokio::test]
async fn what_cannot_be_repaired_ends_the_streams_that_it_touches() {
    for deep_reorg in [false, true] {
        let rig = Rig::with(|config| {
            config.history.blocks = 8;
            config.history.max_replay = 8;
        })
        .await;
        let (mut heads, mut logs, mut others) = (rig.client().await, rig.client().await, rig.client().await);
        heads.subscribe(json!(["newHeads"])).await;
        logs.subscribe(json!(["logs", {"address": "0x000000000000000000000000000000000000dEaD"}]))
            .await;
        others.subscribe(json!(["newPendingTransactions"])).await;
        let blocks = rig.control.mine_many(12);
        for block in &blocks {
            assert_eq!(heads.event().await.json()["hash"], json!(block.hash()));
        }
        rig.control
            .set_faults(|faults| faults.announce_tip_only_after_reorg = true);
        if deep_reorg {
            rig.control.reorg(10, 11).unwrap();
        } else {
            take_away(&rig.control);
            eventually("the connection is lost", async || rig.control.stats().connections == 0).await;
            rig.control.mine_many(20);
            rig.control.set_faults(|faults| faults.refuse_connections = false);
        }
        for client in [&mut heads, &mut logs] {
            let (messages, code, reason) = client.closed().await;
            assert_eq!((messages.len(), code), (0, 1012), "{reason}");
            assert!(reason.contains("resubscribe"), "{reason}");
        }
        assert_eq!(others.call("eth_chainId", json!([])).await["result"], "0x539");
        rig.settled(&rig.control).await;
        let mut again = rig.watcher().await;
        rig.nothing_else(&mut again).await;
        assert_eq!(
            rig.metric("headwater_continuity_lost_total{reason=\"too_far\"}").await,
            1.0
        );
    }
}
