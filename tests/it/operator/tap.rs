//! Taps: one client's messages.

use std::time::Duration;

use headwater::config::typed::Compression;
use headwater::operator::{OperatorClient, TapItem, TapQuery};
use jsonrpsee::core::client::Subscription;
use serde_json::{Value, json};

use super::{operator, refusal};
use crate::harness::{Rig, eventually, within};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, FORWARDED, FORWARDED_ANSWER, Wire};

async fn next(tap: &mut Subscription<TapItem>) -> TapItem {
    within("an item", tap.next()).await.unwrap().unwrap()
}

/// Returns the id of the only client.
async fn alone(rig: &Rig, api: &impl OperatorClient) -> u64 {
    eventually("one client", async || rig.metric("headwater_clients").await == 1.0).await;
    api.clients(None).await.unwrap().clients[0].id
}

#[tokio::test]
async fn a_tap_copies_both_ways_and_hides_what_may_be_secret() {
    let rig = Rig::start().await;
    let api = operator(&rig).await;
    let mut client = rig.client().await;
    let id = alone(&rig, &api).await;
    let mut tap = api.tap(id, None).await.unwrap();
    assert_eq!(client.ask(CHAIN_ID).await, CHAIN_ID_ANSWER);
    let bytes = CHAIN_ID.len() as u64;
    let TapItem::Received {
        bytes: received,
        text: Some(text),
    } = next(&mut tap).await
    else {
        panic!()
    };
    assert_eq!(
        (received, serde_json::from_str::<Value>(&text).unwrap()),
        (bytes, serde_json::from_str(CHAIN_ID).unwrap())
    );
    let TapItem::Sent { text: Some(text), .. } = next(&mut tap).await else {
        panic!()
    };
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["result"], "0x539");

    let subscription = client.subscribe(json!(["newHeads"])).await;
    let block = rig.control.mine();
    let head = client.event().await;
    for _ in 0..2 {
        next(&mut tap).await;
    }
    let TapItem::Sent { text: Some(text), .. } = next(&mut tap).await else {
        panic!()
    };
    let event: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(event["params"]["subscription"], subscription);
    assert_eq!(event["params"]["result"], head.json());
    assert_eq!(head.json()["hash"], block.hash().to_string());

    client.call("personal_unlockAccount", json!(["0x1", "password"])).await;
    let TapItem::Received { text: Some(text), .. } = next(&mut tap).await else {
        panic!()
    };
    assert!(
        text.contains(r#""params":"[hidden]""#) && !text.contains("password"),
        "{text}"
    );
    let TapItem::Sent { text: Some(text), .. } = next(&mut tap).await else {
        panic!()
    };
    assert!(text.contains(r#""error":{"code":-32601}"#), "{text}");

    let (code, why) = refusal(api.tap(id, None).await);
    assert_eq!((code, &*why), (-32000, "this client has a tap already"));
    drop(client);
    let ended = TapItem::Ended {
        reason: "closed".into(),
    };
    while next(&mut tap).await != ended {}
    assert_eq!(refusal(api.tap(id, None).await).0, -32001);
    assert_eq!(
        api.audit(None)
            .await
            .unwrap()
            .iter()
            .filter(|entry| entry.act == "tap")
            .count(),
        3
    );
}

#[tokio::test]
async fn a_result_is_hidden_unless_the_tap_saw_its_request() {
    let rig = Rig::start().await;
    let api = operator(&rig).await;
    let mut client = rig.client().await;
    let id = alone(&rig, &api).await;
    rig.control
        .set_faults(|faults| faults.delay = Some(Duration::from_secs(3)));
    client.send(FORWARDED).await;
    eventually("a call is in flight", async || {
        api.client(id).await.unwrap().calls_in_flight == 1
    })
    .await;
    let mut tap = api.tap(id, None).await.unwrap();
    rig.control.set_faults(|faults| faults.delay = None);
    assert_eq!(client.next().await, FORWARDED_ANSWER);
    let TapItem::Sent { text: Some(text), .. } = next(&mut tap).await else {
        panic!()
    };
    assert!(text.contains(r#""result":"[hidden]""#), "{text}");

    // One above 64 KiB is not copied, yet judged; the id is that of the next call.
    let transaction = "0".repeat(100_000);
    client
        .send(
            json!({"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction", "params": [transaction]}).to_string(),
        )
        .await;
    client.next().await;
    client.send(r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#).await;
    client.next().await;
    assert!(matches!(next(&mut tap).await, TapItem::Received { text: None, .. }));
    let TapItem::Sent { text: Some(text), .. } = next(&mut tap).await else {
        panic!()
    };
    assert!(!text.contains("message"), "{text}");
    assert!(matches!(next(&mut tap).await, TapItem::Received { text: Some(_), .. }));
    let TapItem::Sent { text: Some(text), .. } = next(&mut tap).await else {
        panic!()
    };
    assert!(text.contains(r#""result":"0x539""#), "{text}");
}

#[tokio::test]
async fn a_tap_ends_by_itself_and_makes_room_for_another() {
    let rig = Rig::with(|config| config.delivery.compression = Compression::On).await;
    let api = operator(&rig).await;
    let mut wire = Wire::deflating(rig.address).await;
    let id = alone(&rig, &api).await;
    let query = |seconds, max_bytes| {
        Some(TapQuery {
            seconds: Some(seconds),
            max_bytes,
        })
    };
    // Also with compression the text is copied.
    let mut tap = api.tap(id, query(600, Some(2 * CHAIN_ID.len()))).await.unwrap();
    for _ in 0..2 {
        wire.send(0x81, CHAIN_ID).await;
        wire.text().await;
    }
    assert!(matches!(next(&mut tap).await, TapItem::Received { text: Some(_), .. }));
    assert!(matches!(next(&mut tap).await, TapItem::Sent { text: Some(_), .. }));
    assert_eq!(next(&mut tap).await, TapItem::Ended { reason: "bytes".into() });
    let mut tap = api.tap(id, query(0, None)).await.unwrap();
    assert_eq!(next(&mut tap).await, TapItem::Ended { reason: "time".into() });

    // An operator that leaves takes its taps along.
    let mut others = Vec::new();
    let leaving = operator(&rig).await;
    for _ in 0..4 {
        others.push(rig.client().await);
    }
    eventually("all are there", async || {
        api.clients(None).await.unwrap().connected == 5
    })
    .await;
    let ids: Vec<u64> = api
        .clients(None)
        .await
        .unwrap()
        .clients
        .iter()
        .map(|one| one.id)
        .collect();
    let mut taps = Vec::new();
    for id in &ids[..4] {
        taps.push(leaving.tap(*id, query(600, None)).await.unwrap());
    }
    let (code, why) = refusal(api.tap(ids[4], None).await);
    assert_eq!((code, &*why), (-32000, "there are 4 taps already: end one first"));
    drop((taps, leaving));
    eventually("there is room", async || api.tap(ids[0], None).await.is_ok()).await;
}
