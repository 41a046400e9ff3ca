use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

const LAG_TOLERANCE: Duration = Duration::from_secs(4);
const FAILBACK_AFTER: Duration = Duration::from_secs(10);

/// Parses a block's name: `a3` is block 3 of branch a, and its parent is block 2 of the same branch. The parent of
/// `a8<5` is block 5, and the parent of `b6<a5` is block 5 of branch a.
fn told(name: &str) -> ReportedBlock {
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

/// Story: `0+a3` upstream 0 connects with head a3, `0a4` it reports a4, `0-` it is lost, `+5` five seconds pass,
/// with a decision at each quarter of a second, `=a3` clients were shown a3. The outcome lists the switches with
/// the second of each.
fn story(events: &str) -> (Ranking, String) {
    let mut ranking = Ranking::new(4, LAG_TOLERANCE, FAILBACK_AFTER);
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
            let ReportedBlock { number, hash, .. } = told(head);
            ranking.published(Some((number, hash)), now);
            note(ranking.decide(now), now);
            continue;
        }
        let (id, what) = event.split_at(1);
        let id = UpstreamId(id.parse().unwrap());
        let head = what.trim_start_matches('+');
        if what == "-" {
            ranking.down(id);
        } else if !head.is_empty() {
            ranking.announced(id, told(head));
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
    let hash = |name: &str| told(name).hash;
    assert_eq!(
        ranking.have(9, hash("a9")),
        [UpstreamId(0), UpstreamId(1), UpstreamId(2)]
    );
    assert_eq!(ranking.have(5, hash("a5")), [UpstreamId(0)]);
    let mut ranking = ranking;
    assert!(!ranking.announced(UpstreamId(0), told("a9<5")), "late");
    assert!(
        !ranking.announced(UpstreamId(1), told("a9<5")),
        "late, and known as a parent"
    );
    assert!(ranking.announced(UpstreamId(1), told("b15<9")));
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

/// Nodes 0 and 1 are honest and 2 is not, or the other way round.
#[test]
fn a_height_counts_where_it_leads_to_the_published_chain_or_where_two_tell_it() {
    // The upstream of lowest priority jumps by a million, and grows from there: no failover, and no upstream lags.
    let jump = "0+a5 1+a5 2+a5 =a5 2b1000005";
    check(&format!("{jump} +60"), expect!["->0 first @0ns"]);
    check(
        &format!("{jump} +2 0a6 1a6 =a6 2b1000006 +2 0a7 1a7 =a7 2b1000007 +60"),
        expect!["->0 first @0ns"],
    );
    check(
        &format!("{jump} 0- +1 1-"),
        expect!["->0 first @0ns; 0>1 lost @0ns; 1>2 lost @1s"],
    );
    // The jump names the published head as its parent.
    check("0+a5 1+a5 2+a5 =a5 2a1000005<5 +60", expect!["->0 first @0ns"]);
    check(
        "0+a5 1+a5 2+a5 =a5 2a1000005<5 2a1000006 +60",
        expect!["->0 first @0ns"],
    );
    // The greatest possible number.
    check(
        "0+a5 1+a5 2+a5 =a5 2b9223372036854775807 +60",
        expect!["->0 first @0ns"],
    );
    // The upstream goes back to the chain, and counts again.
    check(
        &format!("{jump} +60 0a6 1a6 2a6 =a6 +1 0- 1-"),
        expect!["->0 first @0ns; 0>1 lost @61s; 1>2 lost @61s"],
    );
    // Two upstreams report the height: now 0 lags, and 0 alone.
    check(
        "0+a5 1+a5 2+a5 =a5 2a1000005 +1 1a1000005 +60",
        expect!["->0 first @0ns; 0>1 lagging 4s @5s"],
    );
    // Of two upstreams only one goes on, block by block: its chain leads to the published one.
    check(
        "0+a5 1+a5 =a5 1a6 1a7 +60",
        expect!["->0 first @0ns; 0>1 lagging 4s @4s"],
    );
    // All upstreams jump.
    check(
        "0+a5 1+a5 2+a5 =a5 0a1000005 1a1000005 2a1000005 +60",
        expect!["->0 first @0ns"],
    );
}

/// Returns the events of a branch of `count` blocks, which may be more than are remembered of each upstream.
fn branch(id: u8, from: u64, count: u64) -> String {
    let first = format!("{id}b{from}<{}", from - 1);
    let rest = (from + 1..from + count).map(|number| format!("{id}b{number}"));
    std::iter::once(first).chain(rest).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_branch_from_a_published_block_does_not_count_where_two_others_have_the_published_one() {
    // `b6<5` names b5 as its parent, so the branch begins with a block of its own on a5.
    let fork = |id: u8, count| branch(id, 6, count).replacen(&format!("{id}b6<5"), &format!("{id}b6<a5"), 1);
    for count in [1, 20, 300] {
        let ahead = fork(2, count);
        // The upstream of lowest priority invents the branch: no failover.
        check(
            &format!("0+a5 1+a5 2+a5 =a5 {ahead} 0a6 1a6 =a6 +60"),
            expect!["->0 first @0ns"],
        );
        // Of two upstreams that disagree either may be right.
        check(
            &format!("0+a5 2+a5 =a5 {ahead} 0a6 =a6 +60"),
            if count == 1 {
                expect!["->0 first @0ns"]
            } else {
                expect!["->0 first @0ns; 0>2 lagging 4s @4s"]
            },
        );
        // The upstream in use invents the branch, and the branch is published.
        let published = (6..6 + count)
            .map(|number| format!("=b{number}"))
            .collect::<Vec<_>>()
            .join(" ");
        check(
            &format!("0+a5 1+a5 2+a5 =a5 {} {published} 1a6 2a6 +60", fork(0, count)),
            expect!["->0 first @0ns; 0>1 forked @4s"],
        );
        // Two upstreams go on, and one is stuck.
        check(
            &format!("0+a5 1+a5 2+a5 =a5 {} {} +60", fork(1, count), fork(2, count)),
            expect!["->0 first @0ns; 0>1 lagging 4s @4s"],
        );
    }
}

#[test]
fn who_leads_to_a_block_that_is_taken_back_does_not_lead_again_soon() {
    // Returns the upstreams from which this block is accepted, after 1 led to a block.
    let may_lead = |events: &str, block: &str, led: &str, then: &str| {
        let (mut ranking, _) = story(events);
        if !led.is_empty() {
            ranking.leads(UpstreamId(1), told(led).number, told(led).hash);
        }
        let mut now = Duration::ZERO;
        for event in then.split_whitespace() {
            match (event.strip_prefix('='), event.strip_prefix('+')) {
                (Some(head), _) => ranking.published(Some((told(head).number, told(head).hash)), now),
                (_, Some(seconds)) => now += Duration::from_secs(seconds.parse().unwrap()),
                _ if event == "-" => ranking.down(UpstreamId(1)),
                _ => _ = ranking.announced(UpstreamId(0), told(event)),
            }
        }
        let ids = (0..3).map(UpstreamId);
        ids.filter(|id| ranking.may_lead(*id, told(block).hash, now))
            .map(|id| id.0.to_string())
            .collect::<String>()
    };
    // Of three upstreams, a single one is not believed.
    assert_eq!(may_lead("0+a5 1+a5 2+a5 =a5 1a6", "a6", "", ""), "02");
    assert_eq!(may_lead("0+a5 1+a5 2+a5 =a5 1a6 2a6", "a6", "", ""), "012");
    // Of two upstreams either may be right, until one was wrong.
    let two = "0+a5 1+a5 =a5 1b6<a5";
    assert_eq!(may_lead(two, "b6", "", ""), "012");
    assert_eq!(may_lead(two, "b6", "b6", "=a5"), "012", "not published yet");
    assert_eq!(may_lead(two, "c6", "b6", "=b6 =a5"), "02");
    assert_eq!(may_lead(two, "c6", "b6", "=b6 =a6"), "02");
    assert_eq!(may_lead(two, "c6", "b6", "=b6 =a5 - +159"), "02");
    assert_eq!(may_lead(two, "c6", "b6", "=b6 =a5 - +160"), "012");
    // The other upstream had the block too, and left it: a reorg.
    assert_eq!(may_lead(two, "c7", "b6", "=b6 b6<a5 c6<a5 =a5 =c6"), "012");
    // Clients begin anew.
    assert_eq!(may_lead(two, "c7", "b6", "=b6 =a99"), "012");
}

#[test]
fn who_is_in_use_and_jumps_alone_is_left_for_one_that_has_what_was_published() {
    let jump = "0+a5 1+a5 2+a5 =a5 0b1000005";
    check(&format!("{jump} +60"), expect!["->0 first @0ns; 0>1 doubted @4s"]);
    check(
        &format!("{jump} +1 1a6 2a6 =a6 0b1000006 +1 1a7 2a7 =a7 +60"),
        expect!["->0 first @0ns; 0>1 doubted @4s"],
    );
    // The upstream goes back in time; or later, and failback follows after a while.
    check(&format!("{jump} +3 0a6 1a6 2a6 =a6 +60"), expect!["->0 first @0ns"]);
    check(
        &format!("{jump} +20 0a6 1a6 2a6 =a6 +20"),
        expect!["->0 first @0ns; 0>1 doubted @4s; 1>0 failback @30s"],
    );
    // The others are behind the blocks published from this upstream: it is the best there is.
    check(
        "0+a5 1+a5 2+a5 =a5 0a6 0a7 =a7 0a100 +3 =a100 +60",
        expect!["->0 first @0ns"],
    );
    // An upstream that is connected alone may report any height.
    check("0+a5 =a5 0b1000005 +60", expect!["->0 first @0ns"]);
    check("0+a5 1+a5 1- =a5 0b1000005 +60", expect!["->0 first @0ns"]);
}

#[test]
fn a_head_in_doubt_is_walked_from_and_counts_when_the_walk_arrived() {
    let (mut ranking, _) = story("0+a5 1+a5 =a5 1- 1+a50 +2");
    let now = Duration::from_secs(2);
    let claim = ranking.unproved(now).expect("a claim");
    assert_eq!(
        (claim.id, claim.number, claim.below.0, claim.oldest),
        (UpstreamId(1), 50, 49, 5)
    );
    assert!(ranking.is_doubted(UpstreamId(1)) && !ranking.is_doubted(UpstreamId(0)));
    ranking.walked(claim, None, now);
    assert_eq!(ranking.unproved(now + LAG_TOLERANCE), None, "not again soon");
    assert_eq!(ranking.unproved(now + LAG_TOLERANCE * WALK_AGAIN), Some(claim));
    // The walk starts above a leap, whatever is below the leap.
    let (leaping, _) = story("0+a5 1+a5 =a5 1a6 1a1000005<6 1a1000006 +2");
    let above = leaping.unproved(now).map(|claim| (claim.number, claim.below));
    assert_eq!(above, Some((1_000_006, (1_000_004, told("a6").hash))));
    // The chain grew in the meantime: the proved block is below the head.
    ranking.announced(UpstreamId(1), told("a51"));
    ranking.walked(claim, Some(5), now);
    assert!(!ranking.is_doubted(UpstreamId(1)));
    assert_eq!(ranking.decide(now), None);
    let lag = ranking.lag(UpstreamId(0), now + LAG_TOLERANCE);
    assert_eq!(lag, Some(LAG_TOLERANCE));
    // The walk proved another chain than the present one.
    ranking.announced(UpstreamId(1), told("b90"));
    ranking.walked(claim, Some(5), now);
    assert!(ranking.is_doubted(UpstreamId(1)));
}

#[test]
fn who_is_doubted_is_not_asked_for_what_it_claims_to_have() {
    let (ranking, _) = story("0+a5 1+a5 2+a5 =a5 2b1000005");
    let ids = |ids: Vec<UpstreamId>| ids.into_iter().map(|id| id.0).collect::<Vec<_>>();
    assert_eq!(ids(ranking.reached(5).collect()), [0, 1]);
    assert_eq!(ids(ranking.reached(6).collect()), Vec::<usize>::new());
    let a5 = told("a5");
    assert_eq!(ids(ranking.have(a5.number, a5.hash)), [0, 1]);
}

#[test]
fn a_block_is_asked_of_those_who_told_it_and_then_of_the_others() {
    let (ranking, _) = story("0+a5 1+a5 2+a5 2a6");
    let asked = |name: &str, attempt| {
        let block = (!name.is_empty()).then(|| told(name).hash);
        ranking.pick_for_block(block, attempt).map(|(id, among)| (id.0, among))
    };
    assert_eq!([0, 1, 2, 3].map(|n| asked("a6", n).unwrap().0), [2, 0, 1, 2]);
    assert_eq!([0, 1, 2].map(|n| asked("a4", n).unwrap().0), [0, 1, 2]);
    assert_eq!([0, 1, 2].map(|n| asked("z1", n).unwrap().0), [0, 1, 2]);
    assert_eq!(asked("", 0), Some((0, 3)));
    let (ranking, _) = story("0+a5 1+a5 2+a5 1a6 1a7 +5");
    let asked = |n| ranking.pick_for_block(Some(told("a5").hash), n).map(|(id, _)| id.0);
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
        let told = told(name);
        let have = ranking.have(told.number, told.hash);
        have.into_iter().map(|id| id.0).collect::<Vec<_>>()
    };
    assert_eq!(
        ["a5", "b5", "a6", "b6"].map(have),
        [vec![0, 2], vec![1], vec![2], vec![]]
    );
    assert_eq!(have("c1"), [0, 2], "further back than is remembered, but 1 is outvoted");
    // One address with two nodes behind it: a momentary step back does not lose the block.
    let (mut ranking, _) = story("0+a5");
    ranking.fetched(UpstreamId(0), told("a4"));
    let a5 = told("a5");
    assert_eq!(ranking.have(a5.number, a5.hash), [UpstreamId(0)]);
}

#[test]
fn a_late_or_repeated_head_moves_nobody_back() {
    let (mut ranking, _) = story("0+a5 0a6 0a7");
    assert!(!ranking.announced(UpstreamId(0), told("a6")));
    assert_eq!(ranking.number(UpstreamId(0)), 7);
    assert!(ranking.fetched(UpstreamId(0), told("a6")), "unless it says so");
    assert_eq!(ranking.number(UpstreamId(0)), 6);
    assert!(!ranking.fetched(UpstreamId(0), told("a6")));
    assert!(ranking.announced(UpstreamId(0), told("b5")));
    assert_eq!(ranking.number(UpstreamId(0)), 5);
}

#[derive(Clone, Debug)]
enum Event {
    Up(usize, u64),
    Down(usize),
    /// Head of an upstream; `true` for a branch of its own.
    Head(usize, bool, u64),
    Wait(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..4usize, 0..3u64).prop_map(|(id, ahead)| Event::Up(id, ahead)),
        1 => (0..4usize).prop_map(Event::Down),
        9 => (0..4usize, prop::bool::weighted(0.1), 0..3u64).prop_map(|(id, own, ahead)| Event::Head(id, own, ahead)),
        6 => (50..3_000u64).prop_map(Event::Wait),
    ]
}

proptest! {
    /// Checks the invariants of any story: an upstream is in use exactly while one is connected, and switches are as
    /// rare as their causes. A failback improves the priority, so between two other switches there are at most three.
    #[test]
    fn one_that_stands_is_in_use_and_nothing_flaps(events in prop::collection::vec(any_event(), 1..200)) {
        let mut ranking = Ranking::new(4, LAG_TOLERANCE, FAILBACK_AFTER);
        let (mut now, mut causes, mut switches) = (Duration::ZERO, 1, 0);
        let mut heads = [10u64; 4];
        for event in events {
            match event {
                Event::Up(id, ahead) => {
                    heads[id] += ahead;
                    ranking.announced(UpstreamId(id), told(&format!("a{}", heads[id])));
                    ranking.up(UpstreamId(id));
                    causes += 1;
                }
                Event::Down(id) => {
                    ranking.down(UpstreamId(id));
                    causes += 1;
                }
                Event::Head(id, own, ahead) => {
                    heads[id] += ahead;
                    let branch = if own { char::from(b'b' + id as u8) } else { 'a' };
                    ranking.announced(UpstreamId(id), told(&format!("{branch}{}", heads[id])));
                }
                Event::Wait(millis) => now += Duration::from_millis(millis),
            }
            switches += u128::from(ranking.decide(now).is_some());
            let active = ranking.active;
            prop_assert_eq!(active.is_some(), ranking.connected().next().is_some());
            prop_assert!(active.is_none_or(|id| ranking.members[id.0].connected));
            prop_assert!(ranking.decide(now).is_none(), "one look is enough");
        }
        let slow = now.as_millis() / (LAG_TOLERANCE.as_millis() / 2);
        prop_assert!(switches <= 4 * (causes + slow), "{switches} switches, {causes} causes, {slow} patiences");
    }

    /// Checks that an upstream that reports every block first and has the best priority is never left.
    #[test]
    fn who_leads_is_not_left(events in prop::collection::vec(any_event(), 1..200)) {
        let mut ranking = Ranking::new(4, LAG_TOLERANCE, FAILBACK_AFTER);
        let (mut now, mut head) = (Duration::ZERO, 10);
        ranking.announced(UpstreamId(0), told("a10"));
        ranking.up(UpstreamId(0));
        ranking.decide(now);
        for event in events {
            head += 1;
            ranking.announced(UpstreamId(0), told(&format!("a{head}")));
            match event {
                Event::Up(id, back) if id > 0 => {
                    ranking.announced(UpstreamId(id), told(&format!("a{}", head - back)));
                    ranking.up(UpstreamId(id));
                }
                Event::Down(id) if id > 0 => ranking.down(UpstreamId(id)),
                Event::Head(id, own, back) if id > 0 => {
                    let branch = if own { char::from(b'b' + id as u8) } else { 'a' };
                    ranking.announced(UpstreamId(id), told(&format!("{branch}{}", head - back)));
                }
                Event::Wait(millis) => now += Duration::from_millis(millis),
                _ => {}
            }
            prop_assert_eq!(ranking.decide(now), None);
            prop_assert_eq!(ranking.active, Some(UpstreamId(0)));
        }
    }
}
