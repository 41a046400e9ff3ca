mod doubts;
mod invariants;

use expect_test::{Expect, expect};

use super::*;

const LAG_TOLERANCE: Duration = Duration::from_secs(4);
const FAILBACK_AFTER: Duration = Duration::from_secs(10);

/// Parses a block's name: `a3` is block 3 of branch a, and its parent is block 2 of the same branch. The parent of
/// `a8<5` is block 5, and the parent of `b6<a5` is block 5 of branch a.
fn block(name: &str) -> ReportedBlock {
    let (name, parent) = name
        .split_once('<')
        .map_or((name, None), |(name, parent)| (name, Some(parent)));
    let number: u64 = name[1..].parse().unwrap();
    let hash = |branch: u8, number: u64| {
        let mut hash = B256::with_last_byte(branch);
        hash[..8].copy_from_slice(&number.to_be_bytes());
        hash
    };
    let own = name.as_bytes()[0];
    let parent = match parent.map(|parent| (parent.as_bytes()[0], parent)) {
        None => hash(own, number.wrapping_sub(1)),
        Some((branch, parent)) if branch.is_ascii_alphabetic() => hash(branch, parent[1..].parse().unwrap()),
        Some((_, parent)) => hash(own, parent.parse().unwrap()),
    };
    ReportedBlock {
        number,
        hash: hash(own, number),
        parent,
    }
}

/// Returns a ranking of upstreams 0 to 3.
fn four() -> Ranking {
    let mut ranking = Ranking::new(LAG_TOLERANCE, FAILBACK_AFTER);
    ranking.arrange(&[0, 1, 2, 3].map(UpstreamId));
    ranking
}

/// Story: `0+a3` upstream 0 connects with head a3, `0a4` it reports a4, `0-` it is lost, `+5` five seconds pass,
/// with a decision at each quarter of a second, `=a3` clients were shown a3, `0x` the operator cordons it, `0o` ends
/// that, `/10` from now on the upstreams are 1 and 0, in this order. The outcome lists the switches with
/// the second of each.
fn story(events: &str) -> (Ranking, String) {
    let mut ranking = four();
    let mut now = Duration::ZERO;
    let mut out = Vec::new();
    let mut note = |switch: Option<Switch>, now: Duration| {
        let Some(Switch { from, to, why }) = switch else {
            return;
        };
        let name = |id: Option<UpstreamId>| id.map_or("-".to_owned(), |id| id.0.to_string());
        let why = match why {
            SwitchReason::Lagging(lag) => format!("lagging {lag:?}"),
            why => format!("{why:?}").to_lowercase(),
        };
        out.push(format!("{}>{} {why} @{:?}", name(from), name(to), now));
    };
    for event in events.split_whitespace() {
        if let Some(seconds) = event.strip_prefix('+') {
            for _ in 0..seconds.parse::<u32>().unwrap() * 4 {
                now += Duration::from_millis(250);
                note(ranking.decide(now), now);
            }
            continue;
        }
        if let Some(head) = event.strip_prefix('=') {
            let ReportedBlock { number, hash, .. } = block(head);
            ranking.published(Some((number, hash)), now);
            note(ranking.decide(now), now);
            continue;
        }
        if let Some(order) = event.strip_prefix('/') {
            let order = order.bytes().map(|digit| UpstreamId((digit - b'0').into()));
            ranking.arrange(&Vec::from_iter(order));
            note(ranking.decide(now), now);
            continue;
        }
        let (id, what) = event.split_at(1);
        let id = UpstreamId(id.parse().unwrap());
        let head = what.trim_start_matches('+');
        if what == "-" {
            ranking.down(id);
        } else if what == "x" || what == "o" {
            ranking.cordon(id, what == "x");
        } else if !head.is_empty() {
            ranking.announced(id, block(head));
        }
        if what.starts_with('+') {
            ranking.up(id);
        }
        note(ranking.decide(now), now);
    }
    (ranking, out.join("; "))
}

#[track_caller]
fn check(events: &str, expect: Expect) {
    expect.assert_eq(&story(events).1);
}

#[test]
fn the_first_that_connects_is_used_and_priority_is_repaired() {
    check("1+a5 +3 0+a5 +60", expect!["->1 first @0ns; 1>0 failback @3s"]);
    // Upstream 0 lags: it has to catch up first.
    check("1+a9 +1 0+a5 +1 0a9 +60", expect!["->1 first @0ns; 1>0 failback @2s"]);
    // After the time to connect, an upstream must first be sound for a while.
    check("1+a5 +4 0+a5 +9", expect!["->1 first @0ns"]);
    check("1+a5 +4 0+a5 +11", expect!["->1 first @0ns; 1>0 failback @14s"]);
    check("1+a5 2+a5 2- 0+a5 +9", expect!["->1 first @0ns"]);
}

#[test]
fn a_lost_one_is_left_for_the_next_by_priority() {
    check("0+a5 1+a5 2+a5 +1 0-", expect!["->0 first @0ns; 0>1 lost @1s"]);
    check(
        "0+a5 0- +3 0+a9",
        expect!["->0 first @0ns; 0>- lost @0ns; ->0 first @3s"],
    );
    check("0+a5 0- 1+", expect!["->0 first @0ns; 0>- lost @0ns; ->1 first @0ns"]);
}

#[test]
fn a_cordoned_one_is_left_at_once_and_is_not_chosen_before_the_cordon_ends() {
    check("0+a5 1+a5 0x +60", expect!["->0 first @0ns; 0>1 cordoned @0ns"]);
    check(
        "0+a5 1+a5 0x +1 0o +60",
        expect!["->0 first @0ns; 0>1 cordoned @0ns; 1>0 failback @1s"],
    );
    check(
        "0+a5 0x +60 0o +1",
        expect!["->0 first @0ns; 0>- cordoned @0ns; ->0 first @60s"],
    );
    check(
        "0+a5 1x 1+a5 0- +5 0+a5",
        expect!["->0 first @0ns; 0>- lost @0ns; ->0 first @5s"],
    );
    check(
        "0+a5 1+a5 0x 0- 0+a6 1a6 +20 1-",
        expect!["->0 first @0ns; 0>1 cordoned @0ns; 1>- lost @20s"],
    );
    // Its head is no height that the others lag behind, and it has no vote.
    check("0+a5 1+a5 1x 1a9 +20", expect!["->0 first @0ns"]);
    let (ranking, _) = story("0+a5 1+a5 1x 1a6");
    assert_eq!(ranking.have(6, block("a6").hash), []);
    assert_eq!(ranking.by_preference(Some(block("a6").hash)), [UpstreamId(0)]);
    assert!(ranking.is_cordoned(UpstreamId(1)) && ranking.is_connected(UpstreamId(1)));
    let (ranking, _) = story("0+a5 1+a5 1x 1a6 1o");
    assert_eq!(ranking.have(6, block("a6").hash), [UpstreamId(1)]);
}

#[test]
fn one_that_is_removed_is_left_at_once_and_its_late_reports_count_for_nothing() {
    check("0+a5 1+a5 +9 /123", expect!["->0 first @0ns; 0>1 removed @9s"]);
    check(
        "0+a5 1+a5 +9 /123 0a9 0+a10 0- +60",
        expect!["->0 first @0ns; 0>1 removed @9s"],
    );
    check(
        "0+a5 /123 +3 2+a5",
        expect!["->0 first @0ns; 0>- removed @0ns; ->2 first @3s"],
    );
    // One that is not in use leaves without a switch, and comes back as a new one.
    check("0+a5 1+a5 /0 +9 0- 1+a6 +60", expect!["->0 first @0ns; 0>- lost @9s"]);
    let (mut ranking, _) = story("0+a5 1+a5 /0 1a6 /01");
    assert!(!ranking.is_connected(UpstreamId(1)) && !ranking.cordon(UpstreamId(7), true));
    assert!(!ranking.may_lead(UpstreamId(7), block("a6").hash, Duration::ZERO));
    assert_eq!(ranking.have(5, block("a5").hash), [UpstreamId(0)]);
}

#[test]
fn a_new_order_is_a_new_priority() {
    check("0+a5 1+a5 +20 /10 +1", expect!["->0 first @0ns; 0>1 failback @20s"]);
    check(
        "0+a5 1+a5 +20 /4015 +60 4+a5 +20",
        expect!["->0 first @0ns; 0>4 failback @90s"],
    );
    let (ranking, _) = story("2+a5 1+a5 0+a5 /210");
    assert_eq!(ranking.connected().map(|id| id.0).collect::<Vec<_>>(), [2, 1, 0]);
    assert_eq!(ranking.by_preference(Some(block("z1").hash)), [2, 1, 0].map(UpstreamId));
    // An upstream that lags or is not connected is not ready to take over.
    let ready = |events: &str| {
        let (ranking, _) = story(events);
        [0, 1, 7].map(|id| ranking.is_ready(UpstreamId(id), Duration::from_secs(3)))
    };
    assert_eq!(ready("0+a5"), [true, false, false]);
    assert_eq!(ready("0+a5 1+a5"), [true, true, false]);
    assert_eq!(ready("0+a5 1+a1 +3"), [true, false, false]);
    assert_eq!(ready("0+a5 1+a5 1x"), [true, false, false]);
}

#[test]
fn one_that_is_far_behind_is_no_refuge_while_another_is_not() {
    check("0+a50 1+a5 2+a49 0-", expect!["->0 first @0ns; 0>2 lost @0ns"]);
    check("0+a50 1+a4 2+a5 +9 0-", expect!["->0 first @0ns; 0>2 lost @9s"]);
}

#[test]
fn numbers_without_a_block_are_no_distance() {
    // Two blocks behind, however many numbers: near enough to be chosen by priority.
    check(
        "0+a5 1+a5 2+a5 2a90<5 2a95<90 0-",
        expect!["->0 first @0ns; 0>1 lost @0ns"],
    );
    check(
        "0+a5 1+a5 2+a5 2a90<5 2a95<90 2a97<95 0-",
        expect!["->0 first @0ns; 0>2 lost @0ns"],
    );
    let (ranking, _) = story("0+a5 0a9<5 0a20<9 1+a20<9 2+a20<9");
    let hash = |name: &str| block(name).hash;
    assert_eq!(
        ranking.have(9, hash("a9")),
        [UpstreamId(0), UpstreamId(1), UpstreamId(2)]
    );
    assert_eq!(ranking.have(5, hash("a5")), [UpstreamId(0)]);
    let mut ranking = ranking;
    assert!(!ranking.announced(UpstreamId(0), block("a9<5")), "late");
    assert!(
        !ranking.announced(UpstreamId(1), block("a9<5")),
        "late, and known as a parent"
    );
    assert!(ranking.announced(UpstreamId(1), block("b15<9")));
}

#[test]
fn a_lagging_one_is_left_when_the_patience_is_over_and_not_before() {
    check("0+a5 1+a5 1a6 +3 0a6 +60", expect!["->0 first @0ns"]);
    check(
        "0+a5 1+a5 +7 1a6 +3 1a7 +3",
        expect!["->0 first @0ns; 0>1 lagging 4s @11s"],
    );
}

#[test]
fn who_follows_at_some_distance_does_not_lag() {
    check(
        "0+a5 1+a5 1a6 +3 0a6 1a7 +3 0a7 1a8 +3 0a8 1a9 +3 0a9",
        expect!["->0 first @0ns"],
    );
}

#[test]
fn nobody_lags_behind_blocks_that_nobody_has_any_more() {
    check("0+a9 1+a9 +1 1b7 +1 0b7 +60", expect!["->0 first @0ns"]);
    check("0+a9 1+a9 2+a99 2- +60", expect!["->0 first @0ns"]);
}

#[test]
fn a_recovered_one_is_taken_back_after_a_while_without_interruption() {
    check(
        "0+a5 1+a5 0- +3 0+a5 +9 0- 0+a5 +9",
        expect!["->0 first @0ns; 0>1 lost @0ns"],
    );
    check(
        "0+a5 1+a5 0- +3 0+a5 +20",
        expect!["->0 first @0ns; 0>1 lost @0ns; 1>0 failback @13s"],
    );
    // The upstream is connected again but lags: it is not sound before it has caught up.
    check(
        "0+a5 1+a5 0- 1a8 +5 0+a5 +20 0a8 +20",
        expect!["->0 first @0ns; 0>1 lost @0ns; 1>0 failback @35s"],
    );
}

#[test]
fn of_two_that_disagree_the_one_in_use_stays() {
    check("0+a5 1+b5 0a6 1b6 +60 0a7 1b7 +60", expect!["->0 first @0ns"]);
    check("0+a5 1+b5 2+a5 3+b5 +60", expect!["->0 first @0ns"]);
}

#[test]
fn who_stays_alone_on_its_branch_is_left_and_comes_back_when_it_has_joined_the_others() {
    check(
        "0+a5 1+b5 2+b5 +3 0a6 1b6 2b6 +3",
        expect!["->0 first @0ns; 0>1 forked @4s"],
    );
    check("0+a5 1+b5 2+b5 +3 0b5 +60", expect!["->0 first @0ns"]);
    check(
        "0+a5 1+b5 2+b5 +4 +20 0b5 +20",
        expect!["->0 first @0ns; 0>1 forked @4s; 1>0 failback @34s"],
    );
    // A fork that is longer than the other chain is still a fork.
    check(
        "0+a5 1+b5 2+b5 0a6 0a7 0a8 +5",
        expect!["->0 first @0ns; 0>1 forked @4s"],
    );
}

#[test]
fn a_block_is_asked_of_those_that_reported_it_and_then_of_the_others() {
    let (ranking, _) = story("0+a5 1+a5 2+a5 2a6");
    let asked = |name: &str, attempt| {
        let block = (!name.is_empty()).then(|| block(name).hash);
        ranking.pick_for_block(block, attempt).map(|(id, among)| (id.0, among))
    };
    assert_eq!([0, 1, 2, 3].map(|n| asked("a6", n).unwrap().0), [2, 0, 1, 2]);
    assert_eq!([0, 1, 2].map(|n| asked("a4", n).unwrap().0), [0, 1, 2]);
    assert_eq!([0, 1, 2].map(|n| asked("z1", n).unwrap().0), [0, 1, 2]);
    assert_eq!(asked("", 0), Some((0, 3)));
    let (ranking, _) = story("0+a5 1+a5 2+a5 1a6 1a7 +5");
    let asked = |n| ranking.pick_for_block(Some(block("a5").hash), n).map(|(id, _)| id.0);
    assert_eq!([0, 1, 2].map(asked), [Some(1), Some(0), Some(2)], "0 and 2 lag");
    assert_eq!(
        ranking.pick_for_block(None, 0).map(|(id, _)| Some(id)),
        Some(ranking.active)
    );
    assert_eq!(story("0+a5 0-").0.pick_for_block(None, 3), None);
}

#[test]
fn it_is_known_who_has_come_how_far_and_on_which_branch() {
    let (ranking, _) = story("0+a5 1+b5 2+a5 2a6");
    let reached = |head: u64| ranking.reached(head).map(|id| id.0).collect::<Vec<_>>();
    assert_eq!([5, 6, 7].map(reached), [vec![0, 1, 2], vec![2], vec![]]);
    let have = |name: &str| {
        let block = block(name);
        let have = ranking.have(block.number, block.hash);
        have.into_iter().map(|id| id.0).collect::<Vec<_>>()
    };
    assert_eq!(
        ["a5", "b5", "a6", "b6"].map(have),
        [vec![0, 2], vec![1], vec![2], vec![]]
    );
    assert_eq!(have("c1"), [0, 2], "further back than is remembered, but 1 is outvoted");
    // One address with two nodes behind it: a momentary step back does not lose the block.
    let (mut ranking, _) = story("0+a5");
    ranking.fetched(UpstreamId(0), block("a4"));
    let a5 = block("a5");
    assert_eq!(ranking.have(a5.number, a5.hash), [UpstreamId(0)]);
}

#[test]
fn a_late_or_repeated_head_moves_nobody_back() {
    let (mut ranking, _) = story("0+a5 0a6 0a7");
    assert!(!ranking.announced(UpstreamId(0), block("a6")));
    assert_eq!(ranking.number(UpstreamId(0)), 7);
    assert!(ranking.fetched(UpstreamId(0), block("a6")), "unless it says so");
    assert_eq!(ranking.number(UpstreamId(0)), 6);
    assert!(!ranking.fetched(UpstreamId(0), block("a6")));
    assert!(ranking.announced(UpstreamId(0), block("b5")));
    assert_eq!(ranking.number(UpstreamId(0)), 5);
}
