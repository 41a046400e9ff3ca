//! Reorgs: blocks dropped while their contents are delivered or awaited.

use std::sync::Arc;

use super::{Desk, all_logs, hash, header, heads, logs, of_transactions, words};
use crate::backplane::ChainEvent;
use crate::chain::{Content, ContentKind, FetchedContent};

/// A reorg takes back logs of a dropped block that were delivered, and drops those that were not.
#[tokio::test]
async fn a_reorg_takes_back_what_was_delivered_and_no_more() {
    let desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    desk.subscribe(&client, all_logs());
    desk.play("h1 l1 h2 l2 h3 r1");
    // Another block 2 replaces blocks 2 and 3.
    let mut other = header(2);
    other.block.hash = hash(22);
    assert!(
        !desk.registry.fan_out(std::iter::once(ChainEvent::Head(other.clone()))),
        "one slice"
    );
    assert_eq!(desk.needed(), "l2");
    desk.registry.fetched(FetchedContent {
        block: other.block.hash,
        kind: ContentKind::Logs,
        result: Ok(Content::Logs(Arc::new(logs(&other)))),
    });
    desk.play("l3");
    assert_eq!(words(&client.received(8).await), "h1 l1 h2 l2 h3 -l2 h2 l2");
}

/// A connection on which events of a dropped block waited gets neither them nor their removals.
#[tokio::test]
async fn a_dropped_block_leaves_no_trace_where_it_waited() {
    let desk = Desk::new(0);
    let (mut client, mut other) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
    for topic in [heads(), all_logs(), of_transactions(&[])] {
        desk.subscribe(&client, topic);
    }
    desk.subscribe(&other, all_logs());
    desk.play("h1 l1 h2 l2 h3 l3 r1");
    let mut branch = header(2);
    branch.block.hash = hash(22);
    assert!(
        !desk.registry.fan_out(std::iter::once(ChainEvent::Head(branch))),
        "one slice"
    );
    desk.play("c1");
    assert_eq!(words(&client.received(4).await), "h1 l1 c0a+0b h2");
    assert_eq!(words(&other.received(5).await), "l1 l2 l3 -l2 -l3");
}
