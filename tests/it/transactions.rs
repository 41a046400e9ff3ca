//! Subscriptions to transactions, pending and mined, by sender and recipient.

use std::sync::Arc;

use alloy_primitives::Address;
use headwater::devnet::{Block, Transaction};
use serde_json::{Value, json};

use crate::harness::{Client, Event, Proxy, Rig, adopted, eventually, node, take_away};

/// Returns a client with this subscription, and the subscription's id. A second one, to all whole pending
/// transactions, shows that the first lacks no event and has none too many.
async fn filtered(rig: &Rig, params: Value) -> (Client, String) {
    let mut client = rig.client().await;
    let id = client.subscribe(params).await;
    client.subscribe(json!(["newPendingTransactions", true])).await;
    (client, id)
}

#[tokio::test]
async fn pending_transactions_are_selected_by_sender_or_recipient() {
    let rig = Rig::start().await;
    let (senders, tokens): (Vec<Address>, Vec<Address>) = rig
        .control
        .with_chain(|chain| (chain.senders().collect(), chain.tokens().to_vec()));
    let (from, to) = (senders[0], tokens[0]);
    let sent = |tx: &Transaction| tx.from() == from;
    let received = |tx: &Transaction| tx.to() == Some(to);
    let upper = json!(from).as_str().unwrap().to_uppercase().replacen("0X", "0x", 1);
    type Wants<'a> = Box<dyn Fn(&Transaction) -> bool + 'a>;
    let cases: Vec<(Value, bool, Wants<'_>)> = vec![
        (json!(["alchemy_pendingTransactions"]), false, Box::new(|_| true)),
        (
            json!(["alchemy_pendingTransactions", {"fromAddress": upper}]),
            false,
            Box::new(sent),
        ),
        (
            json!(["alchemy_pendingTransactions", {"toAddress": [to, Address::ZERO], "hashesOnly": true}]),
            true,
            Box::new(received),
        ),
        (
            json!(["nodit_pendingTransactions", {"fromAddress": [from], "toAddress": to, "hashesOnly": false}]),
            false,
            Box::new(|tx| sent(tx) || received(tx)),
        ),
        (
            json!(["newPendingTransactions", {"fromAddress": from, "toAddress": from}]),
            true,
            Box::new(|tx| sent(tx) || tx.to() == Some(from)),
        ),
        (
            json!(["alchemy_pendingTransactions", {"toAddress": Address::repeat_byte(9)}]),
            false,
            Box::new(|_| false),
        ),
    ];
    let mut clients = Vec::new();
    for (params, ..) in &cases {
        clients.push(filtered(&rig, params.clone()).await);
    }
    assert_eq!(
        rig.control.stats().subscriptions.get("newPendingTransactions"),
        Some(&1),
        "one of the node's subscriptions for all of them"
    );
    let all: Vec<_> = (0..60).map(|_| rig.control.add_pending().unwrap()).collect();
    assert!(all.iter().any(|tx| sent(tx)) && all.iter().any(|tx| received(tx)));
    for ((_, hashes, wants), (client, id)) in cases.iter().zip(&mut clients) {
        let wanted: Vec<_> = all.iter().filter(|tx| wants(tx)).map(|tx| json!(tx.hash())).collect();
        let (mut arrived, mut others) = (Vec::new(), Vec::new());
        for Event { subscription, payload } in client.events(wanted.len() + all.len()).await {
            let payload: Value = serde_json::from_str(&payload).unwrap();
            if subscription == *id {
                assert_eq!(payload.is_string(), *hashes, "{payload}");
                arrived.push(if *hashes { payload } else { payload["hash"].clone() });
            } else {
                others.push(payload["hash"].clone());
            }
        }
        assert_eq!(arrived, wanted);
        assert_eq!(others, all.iter().map(|tx| json!(tx.hash())).collect::<Vec<_>>());
    }
    // No other event was in flight.
    let last = json!(rig.control.add_pending().unwrap().hash());
    for (client, _) in &mut clients {
        let event = client.event().await.json();
        assert!(event == last || event["hash"] == last, "{event}");
    }
}

#[tokio::test]
async fn a_filter_asks_the_node_for_whole_transactions_while_somebody_has_it() {
    let rig = Rig::start().await;
    let pending = || {
        let stats = rig.control.stats();
        stats.subscriptions.get("newPendingTransactions").copied().unwrap_or(0)
    };
    let (mut one, mut two) = (rig.client().await, rig.client().await);
    // Hashes of all transactions are what the node itself announces.
    one.subscribe(json!(["alchemy_pendingTransactions", {"hashesOnly": true}]))
        .await;
    assert_eq!(pending(), 1);
    let params = json!(["newPendingTransactions", {"fromAddress": Address::ZERO}]);
    let (first, second) = (one.subscribe(params.clone()).await, two.subscribe(params).await);
    assert_eq!(pending(), 2);
    assert_eq!(one.unsubscribe(&first).await["result"], true);
    assert_eq!(two.unsubscribe(&second).await["result"], true);
    eventually("whole ones are wanted no more", async || pending() == 1).await;
    let hash = json!(rig.control.add_pending().unwrap().hash()).to_string();
    assert_eq!(one.event().await.payload, hash);
}

#[tokio::test]
async fn addresses_up_to_the_limit_and_not_one_more() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let many = |count: u64| -> Vec<Address> {
        (0..count)
            .map(|n| Address::left_padding_from(&n.to_be_bytes()))
            .collect()
    };
    client
        .subscribe(json!(["alchemy_pendingTransactions", {"fromAddress": many(1000), "toAddress": many(1000)}]))
        .await;
    let refused = client
        .call(
            "eth_subscribe",
            json!(["alchemy_pendingTransactions", {"toAddress": many(1001)}]),
        )
        .await;
    assert_eq!(
        refused["error"],
        json!({"code": -32602, "message": "invalid argument 1: exceed max addresses: 1001 > 1000"})
    );
}

/// Returns the story of a client with [`mined`] for the transactions that `wants` selects.
fn events_of(word: &str, blocks: &[Arc<Block>], wants: impl Fn(&Transaction) -> bool) -> Vec<String> {
    let wanted = blocks
        .iter()
        .flat_map(|block| block.transactions())
        .filter(|tx| wants(tx));
    wanted.map(|tx| format!("{word} {}", tx.hash())).collect()
}

/// Formats an event of mined transactions as a line of a story.
fn line(event: &Event) -> String {
    let json = event.json();
    assert_eq!(json.as_object().unwrap().len(), 2, "{json}");
    let word = if json["removed"].as_bool().unwrap() {
        "removed"
    } else {
        "mined"
    };
    format!("{word} {}", json["transaction"]["hash"].as_str().unwrap())
}

async fn mined(rig: &Proxy, options: Value) -> Client {
    let mut client = rig.client().await;
    client.subscribe(json!(["alchemy_minedTransactions", options])).await;
    client
}

#[track_caller]
fn calls(rig: &Rig) -> u64 {
    rig.control
        .stats()
        .calls
        .get("eth_getBlockByHash")
        .copied()
        .unwrap_or(0)
}

async fn expect(client: &mut Client, story: Vec<String>) {
    let events = client.events(story.len()).await;
    assert_eq!(events.iter().map(line).collect::<Vec<_>>(), story);
}

#[tokio::test]
async fn mined_transactions_are_the_nodes_own_and_stand_between_two_heads() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    rig.nothing_else(&mut client).await;
    let before = calls(&rig);
    rig.nothing_else(&mut client).await;
    assert_eq!(calls(&rig), before, "nobody wants any");
    let id = client.subscribe(json!(["alchemy_minedTransactions"])).await;
    let mut hashes = mined(&rig, json!({"hashesOnly": true})).await;
    let blocks = rig.control.mine_many(10);
    for block in &blocks {
        let mut story = adopted(std::slice::from_ref(block)).into_iter();
        assert_eq!(client.line().await, story.next().unwrap(), "the head is first");
        let mut transactions = Vec::new();
        for event in client.events(6 + 3).await {
            if event.subscription == id {
                transactions.push(event);
            } else {
                assert_eq!(Some(event.line()), story.next());
            }
        }
        let wanted = events_of("mined", std::slice::from_ref(block), |_| true);
        assert_eq!(transactions.iter().map(line).collect::<Vec<_>>(), wanted);
        for event in transactions {
            let hash = event.json()["transaction"]["hash"].clone();
            let get = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getTransactionByHash", "params": [hash]});
            let answer = rig.ask_node(&get).await;
            let own = answer.split_once(r#""result":"#).unwrap().1.strip_suffix('}').unwrap();
            assert_eq!(event.payload, format!(r#"{{"removed":false,"transaction":{own}}}"#));
            let event = hashes.event().await;
            assert_eq!(
                event.payload,
                format!(r#"{{"removed":false,"transaction":{{"hash":{hash}}}}}"#)
            );
        }
    }
    assert_eq!(calls(&rig), before + 10, "once for all who want them");
    assert_eq!(client.unsubscribe(&id).await["result"], true);
    drop(hashes);
    eventually("nobody wants any", async || {
        rig.metric(r#"headwater_subscriptions{kind="minedTransactions"}"#).await == 0.0
    })
    .await;
    rig.nothing_else(&mut client).await;
    rig.nothing_else(&mut client).await;
    assert_eq!(calls(&rig), before + 10);
}

#[tokio::test]
async fn mined_transactions_are_selected_by_entries_of_sender_and_recipient() {
    let rig = Rig::start().await;
    let (senders, tokens): (Vec<Address>, Vec<Address>) = rig
        .control
        .with_chain(|chain| (chain.senders().collect(), chain.tokens().to_vec()));
    let (from, other, to) = (senders[0], senders[1], tokens[0]);
    let entries = json!([{"from": from, "to": to}, {"from": other}]);
    let mut some = mined(&rig, json!({ "addresses": entries })).await;
    let mut all = mined(&rig, json!({"addresses": [], "hashesOnly": true})).await;
    let mut received = rig.client().await;
    let options = json!({"addresses": [{"to": to}]});
    received.subscribe(json!(["nodit_minedTransactions", options])).await;
    let blocks = rig.control.mine_many(30);
    let both = |tx: &Transaction| tx.from() == from && tx.to() == Some(to);
    assert!(!events_of("", &blocks, both).is_empty());
    expect(
        &mut some,
        events_of("mined", &blocks, |tx| both(tx) || tx.from() == other),
    )
    .await;
    expect(&mut all, events_of("mined", &blocks, |_| true)).await;
    expect(&mut received, events_of("mined", &blocks, |tx| tx.to() == Some(to))).await;
}

#[tokio::test]
async fn removed_transactions_are_told_to_whom_they_were_sent_and_who_asked_for_it() {
    let rig = Rig::start().await;
    let everything = |_: &Transaction| true;
    let mut asked = mined(&rig, json!({"includeRemoved": true})).await;
    let mut not_asked = mined(&rig, json!({"includeRemoved": false})).await;
    let first = rig.control.mine_many(3);
    for client in [&mut asked, &mut not_asked] {
        expect(client, events_of("mined", &first, everything)).await;
    }
    let sender = first[2].transactions()[0].from();
    let options = json!({"includeRemoved": true, "hashesOnly": true, "addresses": [{"from": sender}]});
    let mut newcomer = mined(&rig, options).await;
    let second = [rig.control.mine()];
    expect(&mut asked, events_of("mined", &second, everything)).await;
    expect(&mut not_asked, events_of("mined", &second, everything)).await;
    expect(&mut newcomer, events_of("mined", &second, |tx| tx.from() == sender)).await;
    let reorg = rig.control.reorg(3, 4).unwrap();
    // Oldest block first, as logs are.
    let dropped: Vec<_> = reorg.dropped.iter().rev().cloned().collect();
    let removed = events_of("removed", &dropped, everything);
    expect(
        &mut asked,
        [removed, events_of("mined", &reorg.adopted, everything)].concat(),
    )
    .await;
    expect(&mut not_asked, events_of("mined", &reorg.adopted, everything)).await;
    let own = |tx: &Transaction| tx.from() == sender;
    expect(
        &mut newcomer,
        [
            events_of("removed", &second, own),
            events_of("mined", &reorg.adopted, own),
        ]
        .concat(),
    )
    .await;
    // Back to the branch that was left: its transactions are mined once more.
    let reorg = rig.control.switch_back().unwrap();
    let dropped: Vec<_> = reorg.dropped.iter().rev().cloned().collect();
    let removed = events_of("removed", &dropped, everything);
    expect(
        &mut asked,
        [removed, events_of("mined", &reorg.adopted, everything)].concat(),
    )
    .await;
}

#[tokio::test]
async fn after_an_outage_the_transactions_of_every_block_come_in_order() {
    let rig = Rig::start().await;
    let mut client = mined(&rig, json!({"hashesOnly": true})).await;
    let mut watcher = rig.watcher().await;
    take_away(&rig.control);
    let blocks = rig.control.mine_many(40);
    rig.control.set_faults(|faults| faults.refuse_connections = false);
    expect(&mut client, events_of("mined", &blocks, |_| true)).await;
    watcher.expect(adopted(&blocks)).await;
}

/// Some nodes do not serve a block that they have dropped.
#[tokio::test]
async fn a_block_that_is_dropped_before_its_transactions_came_holds_nobody_up() {
    let rig = Rig::start().await;
    let mut client = mined(&rig, json!({"includeRemoved": true})).await;
    let mut watcher = rig.watcher().await;
    let fail = |methods: &[&str]| {
        let failing_methods = methods.iter().map(|method| (*method).to_owned()).collect();
        rig.control
            .set_faults(|faults| faults.failing_methods = failing_methods);
    };
    fail(&["eth_getBlockByHash", "eth_getBlockByNumber"]);
    let lost = rig.control.mine_many(2);
    // The block's logs need not wait for its transactions, the next head has to.
    watcher.expect(adopted(&lost[..1])).await;
    let reorg = rig.control.reorg(2, 3).unwrap();
    let mut story = adopted(&lost[1..]);
    story.extend(crate::harness::dropped(&reorg.dropped));
    story.extend(adopted(&reorg.adopted[..1]));
    watcher.expect(story).await;
    fail(&[]);
    watcher.expect(adopted(&reorg.adopted[1..])).await;
    expect(&mut client, events_of("mined", &reorg.adopted, |_| true)).await;
}

#[tokio::test]
async fn where_no_node_has_the_transactions_who_wants_them_is_told_and_the_others_go_on() {
    let rig = Rig::start().await;
    let mut client = mined(&rig, json!({})).await;
    let mut watcher = rig.watcher().await;
    let failing_methods = vec!["eth_getBlockByHash".to_owned(), "eth_getBlockByNumber".to_owned()];
    rig.control
        .set_faults(|faults| faults.failing_methods = failing_methods);
    let blocks = rig.control.mine_many(2);
    let (messages, code, _) = client.closed().await;
    assert_eq!((messages.len(), code), (0, 1012));
    watcher.expect(adopted(&blocks)).await;
    rig.nothing_else(&mut watcher).await;
    let lost = rig
        .metric(r#"headwater_continuity_lost_total{reason="no_transactions"}"#)
        .await;
    assert_eq!(lost, 1.0);
}

#[tokio::test]
async fn before_the_first_block_the_answer_waits_for_it() {
    let node = node().await;
    let control = node.handle();
    control.set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[node.ws_url()], |_| {}).await;
    let mut client = proxy.client().await;
    let subscribe =
        json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["alchemy_minedTransactions"]});
    client.send(subscribe.to_string()).await;
    control.set_faults(|faults| faults.refuse_connections = false);
    assert!(client.next().await.contains("result"));
    let blocks = [control.head(), control.mine()];
    // The first event may be of the block that the answer waited for.
    let event = client.event().await;
    let story = events_of("mined", &blocks, |_| true);
    let begins = story.iter().position(|arrived| *arrived == line(&event)).unwrap();
    assert!([0, 3].contains(&begins), "with a block's first");
    expect(&mut client, story[begins + 1..].to_vec()).await;
}
