//! The operator's API, through the client that jsonrpsee generates of its trait.

mod access;
mod acts;
mod commands;
mod page;
mod tap;

use std::path::PathBuf;

use headwater::door::ApiKey;
use headwater::operator::{
    ClientQuery, ClientSort, ClientView, Entry, Event, OperatorClient, Status, UpstreamState, UsageQuery,
};
use jsonrpsee::core::client::{Error, Subscription};
use jsonrpsee::ws_client::{WsClient, WsClientBuilder};
use serde_json::json;

use crate::door::upgrade;
use crate::harness::{Proxy, Rig, adopted, eventually, reorged, within};
use crate::keys::allow;
use crate::wire::{CHAIN_ID, FORWARDED};

/// Connects to the API without a token.
pub async fn operator(proxy: &Proxy) -> WsClient {
    let url = format!("ws://{}/api", proxy.admin);
    within("connect", WsClientBuilder::default().build(url)).await.unwrap()
}

/// Returns code and message of a refusal.
fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> (i32, String) {
    match answer.unwrap_err() {
        Error::Call(error) => (error.code(), error.message().to_owned()),
        other => panic!("{other}"),
    }
}

/// Returns the first event that `pick` picks.
async fn event<T>(events: &mut Subscription<Entry>, pick: impl Fn(Event) -> Option<T>) -> T {
    let picking = async {
        loop {
            let entry = events.next().await.unwrap().unwrap();
            if let Some(picked) = pick(entry.event) {
                return picked;
            }
        }
    };
    within("an event", picking).await
}

/// Makes a file with a secret; the folder has to be kept.
fn secret(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[tokio::test]
async fn status_has_what_a_page_shows() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    let api = operator(&rig).await;
    client.expect(adopted(&rig.control.mine_many(2))).await;
    let reorg = rig.control.reorg(1, 2).unwrap();
    client.expect(reorged(&reorg)).await;
    client.ask(FORWARDED).await;

    let mut updates = api.subscribe_status().await.unwrap();
    let received = async {
        let mut before = None;
        loop {
            let mut status: Status = updates.next().await.unwrap().unwrap();
            status.complete(before.as_ref());
            // Some figures are as old as a second.
            if status.latency.p99_ms.is_some() && !status.requests.is_empty() && status.clients == 1 {
                return status;
            }
            before = Some(status);
        }
    };
    let status = within("a full status", received).await;
    let head = status.head.unwrap();
    assert_eq!(head.hash, rig.control.head().hash());
    assert!(status.ready && !status.drained && status.not_ready.is_none());
    assert_eq!((status.clients, status.reorgs), (1, 1));
    assert_eq!(status.chain_id.as_deref(), Some("0x539"));
    assert_eq!((status.subscriptions["newHeads"], status.subscriptions["logs"]), (1, 1));
    // Two blocks, then two of the other branch.
    assert_eq!(status.deliveries["newHeads"], 4);
    assert!(status.deliveries["logs"] >= 24 && status.sent_bytes > 1000 && status.received_bytes > 100);
    assert_eq!(status.latency.buckets.len(), 19);
    assert!(status.latency.buckets[18].up_to_ms.is_none() && status.latency.buckets[18].count > 0);
    assert_eq!((status.queues.bytes, status.queues.slow), (0, 0));
    let [upstream] = &status.upstreams[..] else { panic!() };
    assert_eq!(
        (upstream.state, upstream.head),
        (UpstreamState::Active, Some(head.number))
    );
    assert!(upstream.address.starts_with("ws://127.0.0.1:") && upstream.connects == 1);

    // Dropped blocks stay, and each block's parent is before it.
    let dropped: Vec<_> = status.blocks.iter().filter(|block| block.dropped).collect();
    assert_eq!(dropped.len(), 1);
    assert_eq!(dropped[0].hash, reorg.dropped[0].hash());
    let last = status.blocks.last().unwrap();
    assert_eq!((last.hash, last.number), (head.hash, head.number));
    for (at, block) in status.blocks.iter().enumerate().skip(1) {
        assert!(status.blocks[..at].iter().any(|before| before.hash == block.parent));
    }
    let reorgs = api.reorgs(None).await.unwrap();
    assert_eq!((reorgs.len(), reorgs[0].depth), (1, 1));
    assert_eq!(reorgs[0].dropped, [reorg.dropped[0].hash()]);
    assert_eq!(reorgs[0].next, Some(reorg.adopted[0].hash()));
    assert!(api.reorgs(Some(0)).await.unwrap().is_empty());
    assert_eq!(api.upstreams().await.unwrap().len(), 1);
    assert!(api.status().await.unwrap().uptime_ms >= status.uptime_ms);

    let document = include_str!("../../docs/operator.md");
    let json = serde_json::to_value(api.status().await.unwrap()).unwrap();
    for member in json.as_object().unwrap().keys() {
        assert!(
            document.contains(&format!("`{member}`")),
            "docs/operator.md lacks {member}"
        );
    }
    updates.unsubscribe().await.unwrap();
    rig.nothing_else(&mut client).await;
}

#[tokio::test]
async fn clients_are_selected_sorted_and_paged() {
    let key = ApiKey::random();
    let rig = Rig::with(|config| allow(config, "alice", &key, "")).await;
    let api = operator(&rig).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(rig.client().await);
    }
    clients[1].subscribe(json!(["newHeads"])).await;
    clients[1].subscribe(json!(["logs", {}])).await;
    clients[3].subscribe(json!(["logs", {}])).await;
    let (_hers, _) = upgrade(rig.address, &format!("\r\nX-API-Key: {}", key.reveal())).await;
    let ask = async |query: ClientQuery| api.clients(Some(query)).await.unwrap();
    eventually("all are there", async || {
        let page = ask(ClientQuery::default()).await;
        page.connected == 6 && page.matching == 6
    })
    .await;
    let all = api.clients(None).await.unwrap().clients;
    assert!(all.is_sorted_by(|a, b| a.id > b.id), "newest first");
    assert_eq!((&*all[0].account, &*all[0].plan), ("key alice", "default"));
    assert_eq!(all[1].account, "127.0.0.1");
    assert_eq!(all[1].address.as_deref(), Some("127.0.0.1"));

    let query = |edit: fn(&mut ClientQuery)| {
        let mut query = ClientQuery::default();
        edit(&mut query);
        query
    };
    let page = ask(query(|query| (query.offset, query.limit) = (2, Some(3)))).await;
    let ids = |clients: &[ClientView]| clients.iter().map(|one| one.id).collect::<Vec<_>>();
    assert_eq!((page.matching, ids(&page.clients)), (6, ids(&all[2..5])));
    let page = ask(query(|query| query.offset = 6)).await;
    assert_eq!((page.matching, page.clients.len()), (6, 0));
    let page = ask(query(|query| query.limit = Some(usize::MAX))).await;
    assert_eq!(page.clients.len(), 6);
    let page = ask(query(|query| query.kind = Some("logs".into()))).await;
    assert_eq!(page.matching, 2);
    let page = ask(query(|query| query.text = Some("alice".into()))).await;
    assert_eq!((page.matching, page.clients[0].id), (1, all[0].id));
    let page = ask(query(|query| query.min_queue = Some(1))).await;
    assert_eq!(page.matching, 0);
    let page = ask(query(|query| query.sort = ClientSort::Subscriptions)).await;
    let counts: Vec<u32> = page
        .clients
        .iter()
        .map(|one| one.subscriptions.values().sum())
        .collect();
    assert_eq!(counts, [2, 1, 0, 0, 0, 0]);

    let busiest = page.clients[0].id;
    let (reading, block) = (&mut clients[1], rig.control.mine());
    reading.expect(adopted(&[block])).await;
    let one = api.client(busiest).await.unwrap();
    assert_eq!((one.notifications, one.closing), (7, false));
    for sort in [ClientSort::Sent, ClientSort::Notifications] {
        let sorted = api
            .clients(Some(ClientQuery {
                sort,
                ..ClientQuery::default()
            }))
            .await
            .unwrap();
        assert_eq!(sorted.clients[0].id, busiest, "{sort:?}");
    }
    for sort in [ClientSort::Queue, ClientSort::Calls] {
        let sorted = api
            .clients(Some(ClientQuery {
                sort,
                ..ClientQuery::default()
            }))
            .await
            .unwrap();
        assert_eq!(sorted.matching, 6, "{sort:?}");
    }
    assert_eq!(refusal(api.client(u64::MAX).await).0, -32001);
}

#[tokio::test]
async fn usage_is_told_by_key() {
    let key = ApiKey::random();
    let (_folder, file) = secret("");
    let rig = Rig::with(|config| {
        allow(config, "alice", &key, "");
        config.admin_usage_file = file.display().to_string();
    })
    .await;
    let api = operator(&rig).await;
    let (mut hers, _) = upgrade(rig.address, &format!("\r\nX-API-Key: {}", key.reveal())).await;
    hers.send(0x81, CHAIN_ID).await;
    hers.text().await;
    hers.send(
        0x81,
        r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}"#,
    )
    .await;
    hers.text().await;
    rig.control.mine();
    hers.text().await;
    let query = UsageQuery {
        account: Some("key alice".into()),
        total: true,
        ..UsageQuery::default()
    };
    // Notifications are counted once a second.
    eventually("the head is counted", async || {
        let rows = api.usage(Some(query.clone())).await.unwrap();
        rows.first().is_some_and(|row| row.notifications == 1)
    })
    .await;
    let rows = api.usage(None).await.unwrap();
    let row = rows.iter().find(|row| row.account == "key alice").unwrap();
    assert!(row.requests >= 2 && row.bytes > 500 && row.refusals == 0, "{row:?}");
    assert!(rows.iter().any(|row| row.account == "anonymous"));

    // The file brings it back.
    rig.stop();
    rig.proxy.ended().await.unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(r#""account":"key alice""#), "{text}");
    let again = Proxy::start(&[rig.node.ws_url()], |config| {
        config.admin_usage_file = file.display().to_string();
    })
    .await;
    let api = operator(&again).await;
    let rows = api.usage(Some(query)).await.unwrap();
    assert_eq!(rows[0].notifications, 1);
}

#[tokio::test]
async fn events_tell_what_happens_and_what_happened() {
    let rig = Rig::with(|config| config.limits.max_subscriptions = 1).await;
    let api = operator(&rig).await;
    let mut events = api.subscribe_events(None).await.unwrap();
    let mut client = rig.client().await;
    client.subscribe(json!(["newHeads"])).await;
    client.call("eth_subscribe", json!(["newHeads"])).await;
    let refused = event(&mut events, |event| match event {
        Event::Refused { counts } => Some(counts),
        _ => None,
    });
    assert_eq!(refused.await, [("subscriptions".to_owned(), 1)].into());
    rig.control.mine_many(2);
    let fork = rig.control.head().number() - 2;
    rig.control.reorg(2, 3).unwrap();
    let reorg = event(&mut events, |event| match event {
        Event::Reorg { fork, depth } => Some((fork, depth)),
        _ => None,
    });
    assert_eq!(reorg.await, (fork, 2));
    drop(client);
    let closed = event(&mut events, |event| match event {
        Event::Closed {
            account, reason, code, ..
        } => Some((account, reason, code)),
        _ => None,
    });
    let gone = ("127.0.0.1".to_owned(), "gone".to_owned(), None);
    assert_eq!(closed.await, gone);

    // A reader that comes later gets the newest ones first.
    let mut later = api.subscribe_events(Some(1000)).await.unwrap();
    let first = within("an entry", later.next()).await.unwrap().unwrap();
    assert!(matches!(first.event, Event::Failover { from: None, .. }), "{first:?}");
    event(&mut later, |event| matches!(event, Event::Reorg { .. }).then_some(())).await;
}
