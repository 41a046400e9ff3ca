//! Subscriptions passed through to the node: events before the answer, what is wanted of the node, and shares.

use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Client, Desk, heads};
use crate::clock::Moment;
use crate::subscription::{Passthrough, Topic};
use crate::telemetry::ReasonLabel;

fn passed(kind: &str) -> Passthrough {
    let name = RawValue::from_string(format!("\"{kind}\"")).unwrap();
    Passthrough::new("eth_subscribe", &[&*name]).unwrap()
}

fn kind(kind: &str) -> Topic {
    Topic::Passthrough(passed(kind), kind.to_owned())
}

/// An answer in a batch with a slow call takes long: events that arrive before it must not block the rest of the queue.
#[tokio::test]
async fn what_is_passed_before_its_answer_holds_nothing_up_and_is_told_behind_the_answer() {
    let desk = Desk::new(4);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    let waits = desk.ask(&client, kind("votes"));
    let of = passed("votes");
    // The newest eight are kept.
    for payload in ["0", "1", "2", "3", "4", "5", "6", "7", "8"] {
        assert!(desk.pass(&of, payload), "it waits");
    }
    let lost = ReasonLabel { reason: "unanswered" };
    assert_eq!(
        desk.metrics.pending_dropped.get_or_create(&lost).get(),
        1,
        "the oldest, and it is counted"
    );
    desk.play("h1 l1");
    assert_eq!(client.received(1).await, [json!(1)]);
    assert!(desk.registry.deliver_early(), "it still waits");
    waits.recipient.release(Moment::START);
    assert!(!desk.registry.deliver_early());
    assert!(!desk.pass(&of, "9"));
    assert_eq!(client.received(9).await, (1..=9).map(Value::from).collect::<Vec<_>>());
    // Nothing is kept for a subscription that ended.
    let waits = desk.ask(&client, kind("votes"));
    assert!(desk.pass(&of, "10"));
    desk.registry.unsubscribe(&waits);
    assert!(!desk.registry.deliver_early());
}

#[tokio::test]
async fn what_is_wanted_of_the_node_is_made_anew_only_when_a_different_one_comes_or_goes() {
    let mut desk = Desk::new(4);
    let client = desk.client(&Arc::default()).await;
    let mut wanted = || desk.wanted.borrow_and_update().passed.clone();
    let first = desk.registry.subscribe(kind("a"), &client.writer).unwrap();
    let held = wanted();
    assert_eq!(held.iter().collect::<Vec<_>>(), [&passed("a")]);
    let same = desk.registry.subscribe(kind("a"), &client.writer).unwrap();
    let other = desk.registry.subscribe(heads(), &client.writer).unwrap();
    desk.registry.unsubscribe(&first);
    desk.registry.unsubscribe(&other);
    let pending = desk.registry.subscribe(Topic::Syncing, &client.writer).unwrap();
    assert!(Arc::ptr_eq(&held, &wanted()));
    desk.registry.unsubscribe(&pending);
    desk.registry.unsubscribe(&same);
    assert!(wanted().is_empty());
}

#[tokio::test]
async fn an_account_has_a_quarter_of_what_is_passed_and_all_together_no_more_than_there_is() {
    let desk = Desk::new(8);
    let (one, other) = (Arc::default(), Arc::default());
    let (client, again) = (desk.client(&one).await, desk.client(&one).await);
    let ask = |client: &Client, name: &str| desk.registry.subscribe(kind(name), &client.writer);
    let first = ask(&client, "a").unwrap();
    ask(&again, "b").unwrap();
    // A second connection of the account does not raise its share, and an equal subscription does not count.
    for client in [&client, &again] {
        let why = ask(client, "c").unwrap_err().to_string();
        assert!(why.contains(": 2 different subscriptions of this client"), "{why}");
        ask(client, "b").unwrap();
    }
    let second = ask(&again, "a").unwrap();
    let stranger = desk.client(&other).await;
    ask(&stranger, "c").unwrap();
    assert!(
        ask(&client, "c").is_err(),
        "it is there already, but two are this account's"
    );
    desk.registry.unsubscribe(&first);
    assert!(ask(&client, "c").is_err(), "the other connection has it still");
    desk.registry.unsubscribe(&second);
    ask(&client, "c").unwrap();
    // b and c are there.
    for names in [["d", "e"], ["f", "g"], ["h", "i"]] {
        let own = desk.client(&Arc::default()).await;
        for name in names {
            ask(&own, name).unwrap();
        }
    }
    let late = desk.client(&Arc::default()).await;
    let why = ask(&late, "j").unwrap_err().to_string();
    assert!(why.contains(": 8 different subscriptions are"), "{why}");
    ask(&late, "d").unwrap();
    // Every account may have one, however low the limit.
    let small = Desk::new(2);
    let (one, other) = (small.client(&one).await, small.client(&other).await);
    small.ask(&one, kind("a"));
    assert!(small.registry.subscribe(kind("b"), &one.writer).is_err());
    small.ask(&other, kind("b"));
}
