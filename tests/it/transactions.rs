//! Subscriptions to transactions, pending and mined, by sender and recipient.

use alloy_primitives::Address;
use headwater::devnet::Transaction;
use serde_json::{Value, json};

use crate::harness::{Client, Event, Rig, eventually};

/// A client of the app with these two subscriptions; the second wants every whole transaction, and shows that of the
/// first nothing is missing and nothing too much.
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
        let (mut told, mut others) = (Vec::new(), Vec::new());
        for Event { subscription, payload } in client.events(wanted.len() + all.len()).await {
            let payload: Value = serde_json::from_str(&payload).unwrap();
            if subscription == *id {
                assert_eq!(payload.is_string(), *hashes, "{payload}");
                told.push(if *hashes { payload } else { payload["hash"].clone() });
            } else {
                others.push(payload["hash"].clone());
            }
        }
        assert_eq!(told, wanted);
        assert_eq!(others, all.iter().map(|tx| json!(tx.hash())).collect::<Vec<_>>());
    }
    // Nothing else was under way.
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
    // Hashes of everything are what the node itself tells.
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
