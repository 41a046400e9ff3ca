use tokio::time::Instant;

use super::*;
use crate::clock::at;
use crate::delivery::Event;

const MAX: usize = 1000;

fn batch(kind: Kind) -> Arc<Batch> {
    Batch::new(kind, vec![Event::new(b"1")].into(), Instant::now())
}

fn released() -> Arc<Recipient> {
    let recipient = Recipient::new(SubscriptionId::random(), 0);
    recipient.release(Moment::START);
    recipient
}

fn drain(queue: &mut Queue, now: Moment) -> (Vec<String>, Gathered) {
    let mut out = VecDeque::new();
    let gathered = queue.gather(now, usize::MAX / 4, Allowance::Free, &mut out);
    let names = out.into_iter().map(|chunk| match chunk {
        Chunk::Bytes(pieces, _) => String::from_utf8_lossy(&pieces.concat()).into_owned(),
        Chunk::Events(_, batch) => batch.kind.label().to_owned(),
    });
    (names.collect(), gathered)
}

#[test]
fn every_kind_has_its_place() {
    assert!(
        Kind::ALL
            .iter()
            .enumerate()
            .all(|(place, kind)| *kind as usize == place)
    );
}

#[test]
fn control_overtakes_answers_and_answers_overtake_events() {
    let mut queue = Queue::default();
    assert_eq!(
        queue.push_events(released(), batch(Kind::Heads), Moment::START, MAX),
        Push::Queued { shed: 0 }
    );
    assert_eq!(
        queue.push_answer(vec![Bytes::from_static(b"answer")], &[], MAX),
        Push::Queued { shed: 0 }
    );
    queue.push_control(Bytes::from_static(b"pong"));
    let (names, gathered) = drain(&mut queue, Moment::START);
    assert_eq!(names, ["pong", "answer", "newHeads"]);
    assert!(!gathered.more);
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn a_new_subscription_is_held_and_keeps_the_order_behind_it() {
    let mut queue = Queue::default();
    let new = Recipient::new(SubscriptionId::random(), 0);
    let old = released();
    let _ = queue.push_events(old.clone(), batch(Kind::Heads), Moment::START, MAX);
    let _ = queue.push_events(new.clone(), batch(Kind::Logs), Moment::START, MAX);
    let _ = queue.push_events(old, batch(Kind::Heads), Moment::START, MAX);
    let (names, gathered) = drain(&mut queue, at(5));
    assert_eq!((names, gathered.held_until), (vec!["newHeads".to_owned()], None));
    new.release(at(15));
    let (names, gathered) = drain(&mut queue, at(14));
    assert_eq!((names.len(), gathered.held_until), (0, Some(at(15))));
    let (names, _) = drain(&mut queue, at(15));
    assert_eq!(names, ["logs", "newHeads"]);
}

#[test]
fn only_events_wait_for_the_budget_and_none_is_lost() {
    let mut queue = Queue::default();
    let to = released();
    let len = batch(Kind::Heads).wire_len;
    for _ in 0..3 {
        let _ = queue.push_events(to.clone(), batch(Kind::Heads), Moment::START, MAX);
    }
    let _ = queue.push_answer(vec![Bytes::from_static(b"answer")], &[], MAX);
    queue.push_control(Bytes::from_static(b"pong"));
    let mut gather = |allowance| {
        let mut out = VecDeque::new();
        let gathered = queue.gather(at(5), usize::MAX / 4, allowance, &mut out);
        (
            out.len(),
            gathered.event_bytes,
            gathered.held_until,
            gathered.over_budget,
            gathered.more,
        )
    };
    assert_eq!(gather(Allowance::NotBefore(at(9))), (2, 0, Some(at(9)), true, false));
    // A batch cannot be split and passes whole.
    assert_eq!(gather(Allowance::Bytes(1)), (1, len, None, false, true));
    assert_eq!(gather(Allowance::Bytes(len + 1)), (2, 2 * len, None, false, false));
    assert_eq!(
        gather(Allowance::NotBefore(at(9))),
        (0, 0, None, false, false),
        "nothing waits for it"
    );
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn pending_transactions_make_room_and_nothing_else_does() {
    let mut queue = Queue::default();
    let to = released();
    let len = batch(Kind::Heads).wire_len;
    let max = len * 4;
    assert_eq!(
        queue.push_events(to.clone(), batch(Kind::Pending), Moment::START, max),
        Push::Queued { shed: 0 }
    );
    assert_eq!(
        queue.push_events(to.clone(), batch(Kind::Pending), Moment::START, max),
        Push::Queued { shed: 0 }
    );
    assert_eq!(
        queue.push_events(to.clone(), batch(Kind::Pending), Moment::START, max),
        Push::Shed(1),
        "half is theirs"
    );
    assert_eq!(
        queue.push_events(to.clone(), batch(Kind::Heads), Moment::START, max),
        Push::Queued { shed: 0 }
    );
    assert_eq!(
        queue.push_events(to.clone(), batch(Kind::Heads), Moment::START, max),
        Push::Queued { shed: 0 }
    );
    assert_eq!(
        queue.push_events(to.clone(), batch(Kind::Logs), Moment::START, max),
        Push::Queued { shed: 2 }
    );
    assert_eq!(
        queue.push_events(to.clone(), batch(Kind::Logs), Moment::START, max),
        Push::Queued { shed: 0 }
    );
    assert_eq!(queue.push_events(to, batch(Kind::Logs), Moment::START, max), Push::Full);
    assert_eq!(
        drain(&mut queue, Moment::START).0,
        ["newHeads", "newHeads", "logs", "logs"]
    );
}

#[test]
fn transactions_that_came_together_are_dropped_together_and_each_counts() {
    let mut queue = Queue::default();
    let to = released();
    let three = Batch::new(Kind::Pending, vec![Event::new(b"1"); 3].into(), Instant::now());
    let max = 2 * three.wire_len;
    let mut push = |batch: &Arc<Batch>| queue.push_events(to.clone(), batch.clone(), Moment::START, max);
    assert_eq!(push(&three), Push::Queued { shed: 0 });
    assert_eq!(push(&three), Push::Shed(3));
    assert_eq!(push(&batch(Kind::Pending)), Push::Shed(1));
    let logs = Batch::new(Kind::Logs, vec![Event::new(b"1"); 4].into(), Instant::now());
    assert_eq!(push(&logs), Push::Queued { shed: 3 });
    assert_eq!(drain(&mut queue, Moment::START).0, ["logs"]);
}

#[test]
fn an_ended_subscription_leaves_nothing_behind() {
    let mut queue = Queue::default();
    let (ended, stays) = (released(), released());
    let _ = queue.push_events(ended.clone(), batch(Kind::Heads), Moment::START, MAX);
    let _ = queue.push_events(stays, batch(Kind::Logs), Moment::START, MAX);
    queue.forget(ended.id());
    assert_eq!(drain(&mut queue, Moment::START).0, ["logs"]);
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn a_ping_flood_costs_bounded_memory() {
    let mut queue = Queue::default();
    for _ in 0..10_000 {
        queue.push_control(Bytes::from_static(b"0123456789"));
    }
    assert_eq!(queue.bytes(), MAX_CONTROL * 10);
}
