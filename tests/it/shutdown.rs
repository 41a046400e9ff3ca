//! The drain: queued events are delivered, then each client is closed with 1012, `service restart`.

use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::{Event, Proxy, Rig, adopted, eventually, node_with_logs_of};
use crate::wire::{CLOSE, TEXT, Wire, close};

#[tokio::test]
async fn clients_get_what_was_queued_and_then_1012() {
    const BLOCKS: usize = 20;
    let rig = Rig::before(node_with_logs_of(16 << 10).await, |_| {}).await;
    let mut quick = rig.watcher().await;
    let mut slow = Wire::open_with(rig.address, b"", Some(16 << 10)).await;
    slow.subscribe_logs().await;
    let mut idle = rig.client().await;
    for _ in 0..BLOCKS {
        rig.nothing_else(&mut quick).await;
    }
    let mut half_open = Wire::connect(rig.address).await;
    half_open.write("GET / HTTP/1.1\r\nHost:").await;

    rig.stop();
    // The slow client keeps the app running for a while.
    rig.unready().await;
    assert_eq!(rig.admin("/ready").await.body, "not ready: draining\n");
    assert_eq!(rig.admin("/health").await.status, 200);
    eventually("no new clients", async || {
        TcpStream::connect(rig.address).await.is_err()
    })
    .await;
    for client in [&mut quick, &mut idle] {
        let (messages, code, reason) = client.closed().await;
        assert_eq!((messages.len(), code, reason.as_str()), (0, 1012, "service restart"));
    }
    for i in 0..BLOCKS * 6 {
        let log = Event::parse(&slow.text().await).json();
        assert_eq!(log["logIndex"], format!("{:#x}", i % 6));
    }
    let (first, payload) = slow.frame().await;
    assert_eq!((first, &payload[..2]), (CLOSE, &1012u16.to_be_bytes()[..]));
    slow.send(CLOSE, close(1012, "")).await;
    slow.ends().await;
    rig.proxy.ended().await.unwrap();
}

#[tokio::test]
async fn with_nobody_there_it_ends_at_once() {
    let rig = Rig::start().await;
    rig.stop();
    rig.proxy.ended().await.unwrap();
}

#[tokio::test]
async fn events_that_are_held_behind_their_answer_are_delivered_too() {
    let rig = Rig::with(|config| config.delivery.holdoff = std::time::Duration::from_millis(300)).await;
    let mut witness = rig.watcher().await;
    rig.nothing_else(&mut witness).await;
    let mut client = rig.client().await;
    client.subscribe(json!(["newHeads"])).await;
    rig.nothing_else(&mut witness).await;
    rig.stop();
    let (messages, code, _) = client.closed().await;
    assert_eq!((messages.len(), code), (1, 1012));
    drop((client, witness));
    rig.proxy.ended().await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_leaves_is_cut_at_the_end_of_the_grace_period() {
    let rig = Rig::with(|config| config.shutdown.grace = std::time::Duration::from_millis(300)).await;
    let mut stubborn = Wire::open(rig.address).await;
    stubborn.works().await;
    rig.stop();
    assert_eq!(stubborn.closed().await, (0, Some(1012)));
    stubborn.ends().await;
    rig.proxy.ended().await.unwrap();
}

#[tokio::test]
async fn a_client_that_reads_slowly_but_reads_gets_everything_before_the_close_frame() {
    let rig = Rig::before(node_with_logs_of(64 << 10).await, |config| {
        config.shutdown.grace = std::time::Duration::from_secs(60);
    })
    .await;
    let mut quick = rig.watcher().await;
    let mut slow = Wire::open_with(rig.address, b"", Some(16 << 10)).await;
    slow.send(
        TEXT,
        r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs"]}"#,
    )
    .await;
    slow.text().await;
    for _ in 0..14 {
        rig.nothing_else(&mut quick).await;
    }
    drop(quick);
    rig.stop();
    // Ten logs a second, longer than a close frame may wait for its answer.
    let mut frames = 0;
    while slow.frame().await.0 != CLOSE {
        frames += 1;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(frames, 14 * 6);
}

/// Clients that are all closed at once would all reconnect at once. Those closed later are served until then.
#[tokio::test]
async fn a_crowd_is_shown_out_one_after_the_other_and_served_until_then() {
    const CLIENTS: usize = 300;
    let rig = Rig::start().await;
    let mut crowd = Vec::new();
    for _ in 0..CLIENTS {
        crowd.push(rig.watcher().await);
    }
    rig.stop();
    rig.unready().await;
    let blocks = rig.control.mine_many(1);
    let story = adopted(&blocks);
    let mut served = 0;
    for client in &mut crowd {
        let (received, code, _) = client.closed().await;
        assert_eq!(code, 1012);
        let received: Vec<String> = received.iter().map(|text| Event::parse(text).line()).collect();
        // The events of the block that were delivered before the close frame.
        assert!(story.starts_with(&received), "{received:?}");
        served += usize::from(!received.is_empty());
    }
    assert!(served > 0, "somebody was still there");
    rig.proxy.ended().await.unwrap();
}

#[tokio::test]
async fn the_next_one_takes_over_the_port() {
    let rig = Rig::with(|config| config.server.reuse_port = true).await;
    let mut client = rig.client().await;
    client.subscribe(json!(["newHeads"])).await;
    let listen = rig.address.to_string();
    let next = Proxy::start(&[rig.node.ws_url()], |config| {
        config.listen.clone_from(&listen);
        config.server.reuse_port = true;
    })
    .await;
    next.ready().await;
    rig.stop();
    assert_eq!(client.closed().await.1, 1012);
    rig.proxy.ended().await.unwrap();
    // Only the new app listens there now.
    let mut client = next.watcher().await;
    let blocks = [rig.control.mine()];
    client.expect(adopted(&blocks)).await;
}
