//! Stories about heights, branches and leads for which a single upstream vouches.

use std::time::Duration;

use expect_test::expect;

use super::{LAG_TOLERANCE, block, check, story};
use crate::upstream::UpstreamId;
use crate::upstream::ranking::WALK_AGAIN;

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
    let may_lead = |events: &str, name: &str, led: &str, then: &str| {
        let (mut ranking, _) = story(events);
        if !led.is_empty() {
            ranking.leads(UpstreamId(1), block(led).number, block(led).hash);
        }
        let mut now = Duration::ZERO;
        for event in then.split_whitespace() {
            match (event.strip_prefix('='), event.strip_prefix('+')) {
                (Some(head), _) => ranking.published(Some((block(head).number, block(head).hash)), now),
                (_, Some(seconds)) => now += Duration::from_secs(seconds.parse().unwrap()),
                _ if event == "-" => ranking.down(UpstreamId(1)),
                _ => _ = ranking.announced(UpstreamId(0), block(event)),
            }
        }
        let ids = (0..3).map(UpstreamId);
        ids.filter(|id| ranking.may_lead(*id, block(name).hash, now))
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
    assert_eq!(above, Some((1_000_006, (1_000_004, block("a6").hash))));
    // The chain grew in the meantime: the proved block is below the head.
    ranking.announced(UpstreamId(1), block("a51"));
    ranking.walked(claim, Some(5), now);
    assert!(!ranking.is_doubted(UpstreamId(1)));
    assert_eq!(ranking.decide(now), None);
    let lag = ranking.lag(UpstreamId(0), now + LAG_TOLERANCE);
    assert_eq!(lag, Some(LAG_TOLERANCE));
    // The walk proved another chain than the present one.
    ranking.announced(UpstreamId(1), block("b90"));
    ranking.walked(claim, Some(5), now);
    assert!(ranking.is_doubted(UpstreamId(1)));
}

#[test]
fn who_is_doubted_is_not_asked_for_what_it_claims_to_have() {
    let (ranking, _) = story("0+a5 1+a5 2+a5 =a5 2b1000005");
    let ids = |ids: Vec<UpstreamId>| ids.into_iter().map(|id| id.0).collect::<Vec<_>>();
    assert_eq!(ids(ranking.reached(5).collect()), [0, 1]);
    assert_eq!(ids(ranking.reached(6).collect()), Vec::<usize>::new());
    let a5 = block("a5");
    assert_eq!(ids(ranking.have(a5.number, a5.hash)), [0, 1]);
}
