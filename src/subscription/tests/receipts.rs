//! Receipts of blocks, as clients get them.

use std::sync::Arc;

use serde_json::Value;

use super::{Desk, hash, heads, of_transactions, words};

/// The chain goes back below a block whose receipts are awaited, and adopts the same blocks again: the head is not
/// delivered twice, but the receipts are still due.
#[tokio::test]
async fn receipts_are_told_where_the_chain_goes_back_and_comes_the_same_way_again() {
    let desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 l1 c1 h2 l2");
    desk.play("h3 r1 h2 l2 h3 l3 c2 c3 h4 l4 c4");
    let received = client.received(8).await;
    assert_eq!(words(&received), "h1 c0a+0b h2 c14+15 h3 c1e+1f h4 c28+29");
}

/// The same, with the receipts of block 2 delivered before the rewind.
#[tokio::test]
async fn nobody_is_told_the_receipts_of_one_block_twice() {
    let desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 l1 c1 h2 l2 c2 h3 l3");
    let mut late = desk.client(&Arc::default()).await;
    desk.subscribe(&late, of_transactions(&[]));
    desk.play("r1 h2 l2 c2 h3 l3 c3 h4 l4 c4");
    let received = client.received(8).await;
    assert_eq!(words(&received), "h1 c0a+0b h2 c14+15 h3 c1e+1f h4 c28+29");
    // A subscription made after a block's logs were delivered begins with the next block.
    assert_eq!(words(&late.received(1).await), "c28+29");
}

#[tokio::test]
async fn filters_that_select_the_same_receipts_are_told_the_same() {
    let desk = Desk::new(0);
    let (mut one, mut other) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
    desk.subscribe(&one, of_transactions(&[hash(10), hash(99)]));
    desk.subscribe(&other, of_transactions(&[hash(10), hash(98)]));
    desk.subscribe(&other, of_transactions(&[hash(11), hash(20), hash(21)]));
    desk.play("h1 l1 c1 h2 l2 c2");
    assert_eq!(words(&one.received(1).await), "c0a");
    let mut received = other.received(3).await;
    // There is no order between subscriptions.
    received[..2].sort_by_key(Value::to_string);
    assert_eq!(words(&received), "c0a c0b c14+15");
}

#[tokio::test]
async fn who_was_refused_for_a_rate_limit_is_told_so() {
    let desk = Desk::new(0);
    let client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 l1");
    assert_eq!(desk.registry.refuses(&of_transactions(&[])), None);
    desk.play("c1!");
    let (_, why) = desk.registry.refuses(&of_transactions(&[])).unwrap();
    assert!(why.contains("rate limit"), "{why}");
    assert_eq!(desk.registry.refuses(&heads()), None);
}
