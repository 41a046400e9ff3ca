//! Pending transactions that arrive together, and the writes that carry them.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::sync::Arc;

use alloy_primitives::Address;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::time::Instant;

use super::{Client, Desk, hash, heads};
use crate::backplane::{BestEffortEvent, TransactionForm};
use crate::subscription::flush::{DirtyClients, flush, flush_while};
use crate::subscription::{Topic, TransactionFilter};

const FULL: TransactionForm = TransactionForm::Full;
const HASH: TransactionForm = TransactionForm::Hash;

fn all(form: TransactionForm) -> Topic {
    Topic::Pending(TransactionFilter::all(form))
}

fn from(sender: u8, form: TransactionForm) -> Topic {
    let options = json!({"fromAddress": Address::repeat_byte(sender)});
    Topic::Pending(TransactionFilter::pending(&options, form).unwrap())
}

/// Makes a whole transaction; its sender is 0 or 1, as its number is even or odd.
fn whole(number: u64) -> Value {
    let sender = Address::repeat_byte((number % 2) as u8);
    json!({"hash": hash(number), "from": sender, "to": null})
}

/// Makes announcements: `h1` by hash, `w2` whole.
fn announced(story: &str) -> VecDeque<BestEffortEvent> {
    let event = |word: &str| {
        let number: u64 = word[1..].parse().unwrap();
        let (form, json) = match &word[..1] {
            "h" => (HASH, json!(hash(number))),
            _ => (FULL, whole(number)),
        };
        let (json, seen) = (json.to_string().into(), Instant::now());
        BestEffortEvent::Pending { form, json, seen }
    };
    story.split_whitespace().map(event).collect()
}

/// Fans out all of these without a write.
fn queue(desk: &Desk, mut arrived: VecDeque<BestEffortEvent>, due: &mut DirtyClients) {
    while !arrived.is_empty() {
        assert!(!desk.registry.fan_out_best_effort(&mut arrived, due));
    }
}

/// Checks that nothing is written to the client.
fn has_nothing(client: &Client) -> bool {
    // Not tokio's own read, which fails until the runtime has polled the socket.
    let read = SockRef::from(&client.socket).peek(&mut [MaybeUninit::uninit()]);
    read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn each_subscription_gets_its_transactions_once_and_in_order() {
    let desk = Desk::new(1);
    let (whole_of, hash_of) = (|number| whole(number), |number| json!(hash(number)));
    let mut clients = Vec::new();
    for (topic, wants) in [
        (all(HASH), vec![hash_of(1), hash_of(2), hash_of(3)]),
        (all(FULL), vec![whole_of(1), whole_of(2), whole_of(3)]),
        (from(1, FULL), vec![whole_of(1), whole_of(3)]),
        (from(1, HASH), vec![hash_of(1), hash_of(3)]),
        (from(0, HASH), vec![hash_of(2)]),
        (from(9, FULL), vec![]),
    ] {
        let client = desk.client(&Arc::default()).await;
        desk.subscribe(&client, topic);
        clients.push((client, wants));
    }
    let mut due = DirtyClients::default();
    queue(&desk, announced("h1 w1 h2 h1 w2 w1 h3 w3"), &mut due);
    flush(due);
    // A second node announces them once more.
    let mut due = DirtyClients::default();
    queue(&desk, announced("w3 w2 h2 h3"), &mut due);
    assert!(due.is_empty());
    for (client, wants) in &mut clients {
        assert_eq!(client.received(wants.len()).await, *wants);
        assert!(has_nothing(client));
    }
}

#[tokio::test]
async fn more_than_a_group_leaves_in_order_too() {
    let desk = Desk::new(1);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, all(HASH));
    let story: String = (0..200).map(|number| format!("h{number} ")).collect();
    let mut due = DirtyClients::default();
    let mut arrived = announced(&story);
    let mut turns = 0;
    while !arrived.is_empty() {
        assert!(!desk.registry.fan_out_best_effort(&mut arrived, &mut due));
        turns += 1;
    }
    assert_eq!(turns, 4, "64 at a time");
    flush(due);
    let all: Vec<Value> = (0..200).map(|number| json!(hash(number))).collect();
    assert_eq!(client.received(200).await, all);
}

/// What arrives while the clients are written to leaves with what they wait for, and no client is skipped.
#[tokio::test]
async fn a_block_and_later_transactions_join_what_is_not_written_yet() {
    let desk = Desk::new(1);
    let mut clients = Vec::new();
    for _ in 0..40 {
        let client = desk.client(&Arc::default()).await;
        desk.subscribe(&client, all(HASH));
        desk.subscribe(&client, heads());
        clients.push(client);
    }
    let mut due = DirtyClients::default();
    queue(&desk, announced("h1"), &mut due);
    flush_while(&mut due, || false);
    assert!(!due.is_empty());
    let written = clients.iter().filter(|client| !has_nothing(client)).count();
    assert_eq!(written, 32);
    queue(&desk, announced("h2 h3"), &mut due);
    desk.play("h1");
    flush_while(&mut due, || true);
    assert!(due.is_empty());
    for client in &mut clients {
        let received = client.received(4).await;
        assert_eq!(received.last(), Some(&json!(1)), "{received:?}");
        assert_eq!(received[..3], [1, 2, 3].map(|number| json!(hash(number))));
        assert!(has_nothing(client));
    }
}
