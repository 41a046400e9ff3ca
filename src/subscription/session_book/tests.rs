use std::time::Duration;

use alloy_primitives::B256;
use expect_test::{Expect, expect};

use super::*;
use crate::clock::at;

mod chain;

const NOW: u64 = 1_000;

fn limits() -> SessionLimits {
    SessionLimits {
        keep: Duration::from_secs(60),
        ..SessionLimits::default()
    }
}

fn key(account: &str, token: &str) -> SessionKey {
    SessionKey {
        account: account.into(),
        token: SessionToken::parse(&format!("{NOW}-{token:a>16}")).expect("a token"),
    }
}

fn block(number: u64) -> BlockRef {
    let hash = B256::from(alloy_primitives::U256::from(number));
    BlockRef { number, hash }
}

fn live(answered: bool) -> Live<()> {
    let recipient = Recipient::new(SubscriptionId::random(), 0);
    if answered {
        recipient.answered();
    }
    Live { recipient, place: () }
}

/// Plays a story of one session, in words: `c1` connects client 1, `x1` ends its connection (`X1` with a close frame that
/// says that events are lost, `y1` and `Y1` with one that its client has answered), `sa` subscribes to `a`, `s!a` without an answer, `ua` unsubscribes from the newest `a`, `n5` notes that all
/// subscriptions were sent block 5, `k` confirms the newest mark, `K` the oldest, `f` forges a pong, `+9` waits nine
/// seconds.
#[track_caller]
fn check(story: &str, expect: Expect) {
    let mut book = SessionBook::<()>::new(limits(), 0);
    let mut now = at(1);
    let mut unix = NOW;
    let mut client = 0;
    let mut lives: Vec<(char, Live<()>)> = Vec::new();
    let mut marks: Vec<u64> = Vec::new();
    let mut out = Vec::new();
    for word in story.split_whitespace() {
        let (what, rest) = word.split_at(1);
        let number = || rest.parse::<u64>().expect("a number");
        match what {
            "c" => {
                client = number();
                lives.clear();
                marks.clear();
                out.push(match book.open(key("acme", "t"), client, now, unix) {
                    Ok(Opened { displaced, is_lost }) => match (displaced, is_lost) {
                        (Some(displaced), true) => format!("displaced {displaced}, lost"),
                        (Some(displaced), false) => format!("displaced {displaced}"),
                        (None, true) => "lost".to_owned(),
                        (None, false) => "open".to_owned(),
                    },
                    Err(NoRoom) => "no room".to_owned(),
                });
            }
            "x" => book.close(number(), now, true),
            "X" => book.close(number(), now, false),
            "y" => book.close_noticed(number(), now, true),
            "Y" => book.close_noticed(number(), now, false),
            "s" => {
                let name = rest.chars().last().expect("a name");
                let own = SubscriptionKey::of(&name);
                let claim = book.claim(client, own, now);
                let live = live(!rest.starts_with('!'));
                out.push(match claim.as_ref().map(|claim| &claim.delivered) {
                    None => format!("{name} new"),
                    Some(None) => format!("{name} lost"),
                    Some(Some(delivered)) => format!(
                        "{name} from {:?} of {:?}",
                        delivered.received.map(|block| block.number),
                        delivered.sent.map(|block| block.number)
                    ),
                });
                book.follow(client, own, claim.as_ref(), live.clone(), Some((1, Some(block(0)))));
                lives.push((name, live));
            }
            "u" => {
                let at = lives
                    .iter()
                    .rposition(|(name, _)| rest.starts_with(*name))
                    .expect("subscribed");
                let (_, gone) = lives.remove(at);
                book.forget(client, gone.recipient.id());
            }
            "n" => {
                let extent = SentExtent::Whole {
                    current: Some(block(number())),
                    ever: Some(block(number())),
                };
                let payload = marks.len() as u64 + 100;
                let noted = book.note(client, |_| Some((extent, Some(1))), |_| Standing::Canonical, || payload);
                match noted {
                    Some(mark) => marks.push(mark),
                    None => out.push("no mark".to_owned()),
                }
            }
            "k" | "K" => {
                let mark = if what == "k" { marks.last() } else { marks.first() };
                assert!(book.confirm(client, *mark.expect("a mark")));
            }
            "f" => assert!(!book.confirm(client, 7)),
            "+" => {
                now = now + Duration::from_secs(number());
                unix += number();
            }
            _ => panic!("{word}"),
        }
    }
    let totals = book.totals();
    out.push(format!("{} of {}", totals.positions, totals.sessions));
    expect.assert_eq(&out.join("; "));
}

#[test]
fn a_position_is_what_was_confirmed() {
    check(
        "c1 sa n5 k n6 x1 c2 sa",
        expect!["open; a new; open; a from Some(5) of Some(6); 1 of 1"],
    );
    check(
        "c1 sa n5 n6 n7 K x1 c2 sa",
        expect!["open; a new; open; a from Some(5) of Some(7); 1 of 1"],
    );
    check(
        "c1 sa n5 n6 n7 k x1 c2 sa",
        expect!["open; a new; open; a from Some(7) of Some(7); 1 of 1"],
    );
    // The first position is that of the answer.
    check(
        "c1 sa x1 c2 sa",
        expect!["open; a new; open; a from Some(0) of Some(0); 1 of 1"],
    );
    check(
        "c1 sa n5 f x1 c2 sa",
        expect!["open; a new; open; a from Some(0) of Some(5); 1 of 1"],
    );
    // Nothing moved: no mark.
    check("c1 sa n5 n5", expect!["open; a new; no mark; 1 of 1"]);
    // Eight marks are on their way; the next one waits for a pong.
    check(
        "c1 sa n1 n2 n3 n4 n5 n6 n7 n8 n9 K n10 k x1 c2 sa",
        expect!["open; a new; no mark; open; a from Some(10) of Some(10); 1 of 1"],
    );
}

#[test]
fn equal_subscriptions_are_matched_in_order() {
    check(
        "c1 sa n5 k sa sb n6 x1 c2 sb sa sa sa",
        expect![
            "open; a new; a new; b new; open; b from Some(0) of Some(6); a from Some(0) of Some(6); a from Some(0) of Some(6); a new; 4 of 1"
        ],
    );
    check(
        "c1 sa sa ua x1 c2 sa sa",
        expect!["open; a new; a new; open; a from Some(0) of Some(0); a new; 2 of 1"],
    );
    check("c1 sa ua x1 c2 sa", expect!["open; a new; open; a new; 1 of 1"]);
}

#[test]
fn a_subscription_without_an_answer_is_none_and_a_claim_without_one_keeps_its_position() {
    check("c1 s!a x1 c2 sa", expect!["open; a new; open; a new; 1 of 1"]);
    check(
        "c1 sa n5 k x1 c2 s!a x2 c3 sa",
        expect!["open; a new; open; a from Some(5) of Some(5); open; a from Some(5) of Some(5); 1 of 1"],
    );
}

#[test]
fn another_connection_takes_the_place_of_the_first() {
    check(
        "c1 sa n5 k c2 sa x1",
        expect!["open; a new; displaced 1; a from Some(5) of Some(5); 1 of 1"],
    );
}

#[test]
fn positions_are_kept_for_a_while_and_then_lost_once() {
    check(
        "c1 sa x1 +59 c2 sa",
        expect!["open; a new; open; a from Some(0) of Some(0); 1 of 1"],
    );
    check(
        "c1 sa x1 +60 c2 y2 +1 c3 sa",
        expect!["open; a new; lost; open; a new; 1 of 1"],
    );
    // Positions that no subscription claims are not kept by the connection.
    check(
        "c1 sa sb x1 +1 c2 sa +60 sb",
        expect!["open; a new; b new; open; a from Some(0) of Some(0); b new; 3 of 1"],
    );
    check("c1 sa n5 k Y1 c2 sa", expect!["open; a new; open; a new; 1 of 1"]);
}

#[test]
fn a_close_frame_without_an_answer_comes_again_three_times_at_most() {
    // The connection may have ended before the client read it.
    check(
        "c1 sa x1 +60 c2 x2 c3 y3 c4 sa",
        expect!["open; a new; lost; lost; open; a new; 1 of 1"],
    );
    check(
        "c1 sa x1 +60 c2 x2 c3 x3 c4 x4 c5 x5 c6",
        expect!["open; a new; lost; lost; lost; open; open; 0 of 1"],
    );
    // Another connection takes the place of one that is being closed.
    check(
        "c1 sa x1 +60 c2 c3 y3 c4",
        expect!["open; a new; lost; displaced 2, lost; open; 0 of 1"],
    );
    check(
        "c1 sa n5 k X1 c2 y2 c3 sa",
        expect!["open; a new; lost; open; a new; 1 of 1"],
    );
}

#[test]
fn marks_of_other_subscriptions_confirm_no_removal_that_is_still_to_come() {
    let mut book = SessionBook::<()>::new(limits(), 0);
    let (a, b) = (SubscriptionKey::of(&'a'), SubscriptionKey::of(&'b'));
    let sent_to = |number| {
        let (current, ever) = (Some(block(number)), Some(block(number)));
        move |_: &Live<()>| Some((SentExtent::Whole { current, ever }, Some(1)))
    };
    book.open(key("a", "t"), 1, at(1), NOW).expect("room");
    book.follow(1, a, None, live(true), Some((1, Some(block(1)))));
    book.follow(1, b, None, live(true), Some((1, Some(block(1)))));
    assert_eq!(book.note(1, sent_to(5), |_| Standing::Canonical, || 50), Some(50));
    // Block 5 is dropped, and 105 takes its place.
    assert_eq!(book.note(1, sent_to(105), |_| Standing::Dropped(4), || 51), Some(51));
    book.close(1, at(2), true);
    book.open(key("a", "t"), 2, at(3), NOW).expect("room");
    let claim = book.claim(2, b, at(3)).expect("a position");
    book.follow(2, b, Some(&claim), live(true), None);
    assert_eq!(book.note(2, sent_to(106), |_| Standing::Canonical, || 60), Some(60));
    assert!(book.confirm(2, 60));
    let left = |claim: Option<Claim>| claim.and_then(|own| own.delivered).map(|own| own.left);
    let claim = book.claim(2, a, at(3));
    assert_eq!(left(claim.clone()), Some(vec![block(5)]));
    book.follow(2, a, claim.as_ref(), live(true), None);
    assert_eq!(book.note(2, sent_to(107), |_| Standing::Canonical, || 61), Some(61));
    assert!(book.confirm(2, 61));
    book.close(2, at(4), true);
    book.open(key("a", "t"), 3, at(5), NOW).expect("room");
    assert_eq!(left(book.claim(3, a, at(5))), Some(Vec::new()));
}

/// alloy repeats a subscription twice if the first answer did not come, uses the one that was answered last, and repeats one
/// of them after the next reconnect.
#[test]
fn a_repeated_subscription_takes_back_what_an_equal_one_was_sent() {
    let mut book = SessionBook::<()>::new(limits(), 0);
    let a = SubscriptionKey::of(&'a');
    let sent_to = |number| {
        let (current, ever) = (Some(block(number)), Some(block(number)));
        move |_: &Live<()>| Some((SentExtent::Whole { current, ever }, Some(1)))
    };
    book.open(key("a", "t"), 1, at(1), NOW).expect("room");
    book.follow(1, a, None, live(true), Some((1, Some(block(1)))));
    book.note(1, sent_to(5), |_| Standing::Canonical, || 50);
    book.close(1, at(2), true);
    book.open(key("a", "t"), 2, at(3), NOW).expect("room");
    let first = book.claim(2, a, at(3)).expect("a position");
    book.follow(2, a, Some(&first), live(false), None);
    book.follow(2, a, None, live(true), Some((7, Some(block(6)))));
    book.note(2, sent_to(8), |_| Standing::Canonical, || 60);
    assert!(book.confirm(2, 60));
    book.close(2, at(4), true);
    book.open(key("a", "t"), 3, at(5), NOW).expect("room");
    let again = book
        .claim(3, a, at(5))
        .and_then(|claim| claim.delivered)
        .expect("a position");
    // Block 8 was sent to the second one only.
    assert_eq!(
        (again.first, again.received, again.sent),
        (1, Some(block(1)), Some(block(5)))
    );
    assert_eq!(again.left, [block(8)]);
}

#[test]
fn a_session_that_made_room_is_lost() {
    let mut book = SessionBook::<()>::new(SessionLimits { max: 8, ..limits() }, NOW - 5);
    let open = |book: &mut SessionBook<()>, account, token: &str, client| {
        book.open(key(account, token), client, at(client), NOW)
            .map(|opened| opened.is_lost)
    };
    assert_eq!(open(&mut book, "a", "one", 1), Ok(false));
    assert_eq!(open(&mut book, "a", "two", 2), Ok(false));
    // A quarter of eight, and both are connected.
    assert_eq!(open(&mut book, "a", "three", 3), Err(NoRoom));
    assert_eq!(open(&mut book, "b", "three", 3), Ok(false), "another account");
    book.close(1, at(5), true);
    assert_eq!(
        open(&mut book, "a", "three", 4),
        Ok(true),
        "one of the account had to leave"
    );
    book.close(4, at(6), true);
    assert_eq!(open(&mut book, "a", "one", 5), Ok(true), "it is lost");
    assert_eq!(open(&mut book, "b", "four", 6), Ok(false), "and nobody else");
    // Tokens from before the start may be of sessions of an earlier process.
    let mut book = SessionBook::<()>::new(limits(), NOW + 1);
    assert_eq!(open(&mut book, "a", "one", 1), Ok(true));
}

#[test]
fn few_accounts_cannot_push_out_the_others() {
    let mut book = SessionBook::<()>::new(SessionLimits { max: 32, ..limits() }, 0);
    let open = |book: &mut SessionBook<()>, account: &str, client: u64| {
        let opened = book.open(key(account, &client.to_string()), client, at(client), NOW);
        opened.map(|opened| opened.is_lost)
    };
    // Six sessions of two small accounts wait for their clients.
    for (account, client) in [("s", 1), ("s", 2), ("s", 3), ("t", 4), ("t", 5), ("t", 6)] {
        assert_eq!(open(&mut book, account, client), Ok(false));
        book.close(client, at(client), true);
    }
    // Others take all that they can get: a quarter, and half of what is left by those that are connected.
    let mut client = 10;
    let admitted = ["a", "b", "c", "d"].map(|account| {
        let before = client;
        while open(&mut book, account, client).is_ok() {
            client += 1;
        }
        client - before
    });
    // The fourth one does not get its share of four: only smaller ones have sessions without a connection.
    assert_eq!(admitted, [8, 8, 8, 2]);
    assert_eq!(book.totals().sessions, 32);
    assert_eq!(open(&mut book, "s", 1), Ok(false), "it is kept");
    assert_eq!(open(&mut book, "t", 6), Ok(false), "it is kept");
    // The largest account makes room for a new one, once it has a session without a connection.
    book.close(10, at(100), true);
    assert_eq!(open(&mut book, "g", 101), Ok(false));
    assert_eq!(open(&mut book, "a", 10), Err(NoRoom), "others have taken the rest");
}

#[test]
fn fewer_sessions_than_four_serve_somebody() {
    for max in 1..=4 {
        let mut book = SessionBook::<()>::new(SessionLimits { max, ..limits() }, 0);
        let accounts = ["a", "b", "c", "d", "e"].into_iter().zip(1..);
        let admitted = accounts.filter(|(account, client)| book.open(key(account, "t"), *client, at(1), NOW).is_ok());
        assert_eq!(admitted.count(), max);
    }
}

#[test]
fn an_account_without_room_loses_nothing_of_its_own() {
    let mut book = SessionBook::<()>::new(SessionLimits { max: 16, ..limits() }, 0);
    let open = |book: &mut SessionBook<()>, account: &str, client: u64| {
        let opened = book.open(key(account, &client.to_string()), client, at(client), NOW);
        opened.map(|opened| opened.is_lost)
    };
    for client in 1..=4 {
        assert_eq!(open(&mut book, "a", client), Ok(false));
    }
    book.close(1, at(5), true);
    book.close(2, at(5), true);
    // Others leave a share of two, and two are connected.
    for (account, client) in [
        ("b", 10),
        ("b", 11),
        ("b", 12),
        ("b", 13),
        ("c", 14),
        ("c", 15),
        ("c", 16),
        ("c", 17),
    ] {
        assert_eq!(open(&mut book, account, client), Ok(false));
    }
    for (account, client) in [("d", 18), ("e", 19), ("f", 20), ("g", 21)] {
        assert_eq!(open(&mut book, account, client), Ok(false));
    }
    assert_eq!(open(&mut book, "a", 5), Err(NoRoom));
    assert_eq!(open(&mut book, "a", 1), Ok(false), "it is kept");
}

#[test]
fn bytes_are_counted_and_bounded() {
    let max_bytes = 4 * (SESSION_BYTES + 2 * SLOT_BYTES);
    let mut book = SessionBook::<()>::new(SessionLimits { max_bytes, ..limits() }, 0);
    book.open(key("a", "one"), 1, at(1), NOW).expect("room");
    for name in 0..2 {
        assert_eq!(book.admit(1, NOW), Ok(()));
        book.follow(1, SubscriptionKey::of(&name), None, live(true), Some((1, None)));
    }
    assert_eq!(book.admit(1, NOW), Err(NoRoom), "a quarter");
    let totals = book.totals();
    assert_eq!((totals.positions, totals.bytes), (2, max_bytes / 4));
    book.close(1, at(2), true);
    assert_eq!(book.totals().bytes, max_bytes / 4);
    book.open(key("a", "two"), 2, at(3), NOW).expect("the first one leaves");
    assert_eq!(book.totals().bytes, SESSION_BYTES);
    book.close(2, at(4), true);
    book.expire(at(4) + Duration::from_secs(60), NOW + 60);
    assert_eq!(book.totals(), SessionTotals::default());
    assert!(book.accounts.is_empty());
    // More than the session and its marks take.
    assert!(SESSION_BYTES > size_of::<Session<u128>>() + 128 + MAX_MARKS * size_of::<Mark>());
    let places = MAX_MARKS * size_of::<(u64, BlockRef)>() * 2;
    assert!(SLOT_BYTES > size_of::<Slot<u128>>() + places + 17 * size_of::<(u64, BlockRef)>() / 2);
}

#[test]
fn positions_survive_a_restart_unless_they_are_too_old() {
    let mut book = SessionBook::<()>::new(limits(), 0);
    book.open(key("a", "one"), 1, at(1), NOW).expect("room");
    book.follow(
        1,
        SubscriptionKey::of(&'a'),
        None,
        live(true),
        Some((1, Some(block(7)))),
    );
    let empty = serde_json::to_string(&book.save(at(1), NOW)).expect("JSON");
    assert!(!empty.contains("one"), "a connected session is not over");
    book.close(1, at(2), true);
    let saved = || -> SavedSessions {
        let text = serde_json::to_string(&book.save(at(2), NOW)).expect("JSON");
        serde_json::from_str(&text).expect("positions")
    };
    let mut next = SessionBook::<()>::new(limits(), NOW + 30);
    assert_eq!(next.restore(saved(), at(1), NOW + 30), 1);
    let opened = next.open(key("a", "one"), 1, at(2), NOW + 31).expect("room");
    assert!(!opened.is_lost);
    let claim = next.claim(1, SubscriptionKey::of(&'a'), at(3)).expect("a position");
    assert_eq!(claim.delivered.and_then(|own| own.received), Some(block(7)));
    let mut late = SessionBook::<()>::new(limits(), NOW + 60);
    assert_eq!(late.restore(saved(), at(1), NOW + 60), 0);
}

#[test]
fn a_lost_position_is_not_forgotten_over_a_restart() {
    let mut book = SessionBook::<()>::new(limits(), 0);
    let reached = |number| {
        let (current, ever) = (Some(block(number)), Some(block(number)));
        move |_: &Live<()>| Some((SentExtent::Whole { current, ever }, Some(1)))
    };
    book.open(key("a", "one"), 1, at(1), NOW).expect("room");
    for name in ['a', 'b'] {
        book.follow(
            1,
            SubscriptionKey::of(&name),
            None,
            live(true),
            Some((1, Some(block(7)))),
        );
    }
    // More branches than are remembered, and no pong.
    for number in 8..40 {
        book.note(1, reached(number), |_| Standing::Dropped(6), || 50 + number);
    }
    book.close(1, at(2), true);
    let saved = book.save(at(2), NOW);
    let mut next = SessionBook::<()>::new(limits(), NOW + 1);
    assert_eq!(next.restore(saved, at(1), NOW + 1), 0);
    let opened = next.open(key("a", "one"), 1, at(1), NOW + 1).expect("room");
    assert!(opened.is_lost, "it would be served live");
}
