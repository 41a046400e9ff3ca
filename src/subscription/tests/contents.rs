//! Contents of blocks, and the heads that wait for them on a connection.

use std::sync::Arc;

use super::{Desk, all_logs, heads, of_transactions, words};
use crate::jsonrpc::{Item, Message};
use crate::subscription::Topic;

fn mined() -> Topic {
    let text = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["alchemy_minedTransactions"]}"#;
    let Ok(Message::Single(Item::Call(request))) = Message::parse(text.as_bytes(), 1) else {
        panic!("{text}")
    };
    Topic::parse("eth", &request).unwrap()
}

/// Every connection gets head N, the contents of N that it subscribes to, then head N + 1; and waits for nothing
/// else.
#[tokio::test]
async fn a_connection_waits_for_contents_that_it_subscribes_to_and_for_no_others() {
    let story = "h1 l1 t1 c1 h2 h3 c2 t3 l2 h4 t2 l3 c3 l4 t4 c4";
    for (topics, expect) in [
        (vec![heads()], "h1 h2 h3 h4"),
        (vec![heads(), all_logs()], "h1 l1 h2 l2 h3 l3 h4 l4"),
        (vec![all_logs()], "l1 l2 l3 l4"),
        (
            vec![all_logs(), of_transactions(&[])],
            "l1 c0a+0b l2 c14+15 l3 c1e+1f l4 c28+29",
        ),
        (
            vec![heads(), all_logs(), mined(), of_transactions(&[])],
            "h1 l1 t1 c0a+0b h2 l2 t2 c14+15 h3 l3 t3 c1e+1f h4 l4 t4 c28+29",
        ),
        (vec![heads(), mined()], "h1 t1 h2 t2 h3 t3 h4 t4"),
    ] {
        let desk = Desk::new(0);
        // Another client that subscribes to everything.
        let other = desk.client(&Arc::default()).await;
        for topic in [heads(), all_logs(), mined(), of_transactions(&[])] {
            desk.subscribe(&other, topic);
        }
        let mut client = desk.client(&Arc::default()).await;
        for topic in topics {
            desk.subscribe(&client, topic);
        }
        desk.play(story);
        let received = client.received(expect.split(' ').count()).await;
        assert_eq!(words(&received), expect);
    }
}

#[tokio::test]
async fn heads_alone_come_at_once_while_logs_of_many_blocks_are_awaited() {
    let desk = Desk::new(0);
    let (mut alone, mut both) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
    desk.subscribe(&alone, heads());
    desk.subscribe(&both, heads());
    desk.subscribe(&both, all_logs());
    desk.play("h1 h2 h3");
    assert_eq!(words(&alone.received(3).await), "h1 h2 h3");
    assert_eq!(words(&both.received(1).await), "h1");
    assert_eq!(desk.needed(), "l1 l2 l3");
    desk.play("l3 l2");
    assert_eq!(desk.needed(), "l1");
    desk.play("l1");
    assert_eq!(words(&both.received(5).await), "l1 h2 l2 h3 l3");
    assert_eq!(desk.registry.late().1, 0, "nothing waits any more");
}

#[tokio::test]
async fn what_awaits_a_subscription_that_ended_is_delivered() {
    let desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    let receipts = desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 h2 h3");
    assert_eq!(words(&client.received(1).await), "h1");
    desk.registry.unsubscribe(&receipts);
    assert_eq!(words(&client.received(2).await), "h2 h3");
    assert_eq!(desk.needed(), "");
}

#[tokio::test]
async fn contents_that_no_node_gives_close_those_who_subscribe_to_them_alone() {
    let desk = Desk::new(0);
    let (mut alone, both) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
    desk.subscribe(&alone, heads());
    desk.subscribe(&both, heads());
    desk.subscribe(&both, all_logs());
    desk.play("h1 h2 l1!");
    assert_ne!(both.writer.phase(), crate::delivery::Phase::Open);
    assert!(desk.registry.refuses(&all_logs()).is_some());
    assert_eq!(desk.registry.refuses(&heads()), None);
    desk.play("h3");
    assert_eq!(desk.needed(), "");
    assert_eq!(words(&alone.received(3).await), "h1 h2 h3");
}

/// The block's fate says nothing about the contents of others, so that new subscriptions are accepted.
#[tokio::test]
async fn a_block_that_no_node_knows_closes_its_subscribers_and_refuses_nobody() {
    let desk = Desk::new(0);
    let waiting = desk.client(&Arc::default()).await;
    desk.subscribe(&waiting, all_logs());
    desk.play("h1 h2 l1?");
    assert_ne!(waiting.writer.phase(), crate::delivery::Phase::Open);
    assert_eq!(desk.registry.refuses(&all_logs()), None);
    let mut new = desk.client(&Arc::default()).await;
    desk.subscribe(&new, all_logs());
    desk.play("h3 l3");
    assert_eq!(words(&new.received(1).await), "l3");
}
