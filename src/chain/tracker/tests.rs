//! Tests of the tracker on small chains, written as one word for each event.

use std::collections::BTreeMap;

use bytes::Bytes;
use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// Spells the name as a hash: `a3` is block 3 of branch a.
fn hash(name: &str) -> B256 {
    let mut hash = B256::ZERO;
    hash[..name.len()].copy_from_slice(name.as_bytes());
    hash
}

fn name(hash: B256) -> String {
    String::from_utf8_lossy(&hash[..]).trim_end_matches('\0').to_owned()
}

fn header(own: &str, parent: &str) -> Header {
    let number = own.trim_start_matches(|c: char| c.is_alphabetic()).parse().unwrap_or(0);
    Header {
        block: BlockRef {
            number,
            hash: hash(own),
        },
        parent: hash(parent),
        bloom: Some(Box::default()),
        timestamp: 0,
        json: Bytes::new(),
        seen: tokio::time::Instant::now(),
    }
}

fn show(step: &Step) -> String {
    let names = |headers: &[Header]| {
        headers
            .iter()
            .map(|h| format!(" +{}", name(h.block.hash)))
            .collect::<String>()
    };
    match step {
        Step::Nothing => "-".to_owned(),
        Step::Need(hash) => format!("need {}", name(*hash)),
        Step::NeedNumbered(block) => format!("need numbers to {}", name(block.hash)),
        Step::Extend(new) => format!("extend{}", names(new)),
        Step::Reorg { dropped, adopted, .. } => {
            let gone: String = dropped.iter().map(|b| format!(" -{}", name(b.hash))).collect();
            format!("reorg{gone}{}", names(adopted))
        }
        Step::Behind(block) => format!("behind {}", name(block.hash)),
        Step::Far { waypoint, .. } => format!("far {waypoint}"),
        Step::Reset(head) => format!("reset {}", name(head.block.hash)),
    }
}

/// `b2<a1` announces b2 with parent a1; `?b2<a1` supplies it; `!a1` confirms a rewind; `~` toggles the wary mode.
#[track_caller]
fn check(events: &str, expect: Expect) {
    let mut tracker = Tracker::new(8);
    let mut is_wary = false;
    let steps: Vec<String> = events
        .split_whitespace()
        .map(|event| {
            if event == "~" {
                is_wary = !is_wary;
                tracker.set_wary(is_wary);
                return "~".to_owned();
            }
            if let Some(to) = event.strip_prefix('!') {
                return show(&tracker.rewind(hash(to)));
            }
            let (supplied, event) = event.strip_prefix('?').map_or((false, event), |event| (true, event));
            let (own, parent) = event.split_once('<').expect("own<parent");
            show(&if supplied {
                tracker.supply(header(own, parent))
            } else {
                tracker.announce(header(own, parent))
            })
        })
        .collect();
    expect.assert_eq(&steps.join("; "));
}

#[test]
fn heads_in_order_extend() {
    check("a1<g0 a2<a1 a3<a2", expect!["extend +a1; extend +a2; extend +a3"]);
}

#[test]
fn a_repeated_head_is_nothing_and_an_older_one_is_doubtful() {
    check(
        "a1<g0 a2<a1 a2<a1 a1<g0 a3<a2",
        expect!["extend +a1; extend +a2; -; behind a1; extend +a3"],
    );
}

#[test]
fn a_jump_is_walked_back_and_arrives_oldest_first() {
    check(
        "a1<g0 a4<a3 ?a3<a2 ?a2<a1",
        expect!["extend +a1; need a3; need a2; extend +a2 +a3 +a4"],
    );
}

#[test]
fn a_sibling_replaces_the_head() {
    check("a1<g0 a2<a1 b2<a1", expect!["extend +a1; extend +a2; reorg -a2 +b2"]);
}

#[test]
fn only_the_tip_after_a_deep_reorg() {
    check(
        "a1<g0 a2<a1 a3<a2 b4<b3 ?b3<b2 ?b2<a1",
        expect!["extend +a1; extend +a2; extend +a3; need b3; need b2; reorg -a3 -a2 +b2 +b3 +b4"],
    );
}

#[test]
fn a_return_to_the_old_branch_needs_no_fetch() {
    check(
        "a1<g0 a2<a1 b2<a1 a3<a2",
        expect!["extend +a1; extend +a2; reorg -a2 +b2; reorg -b2 +a2 +a3"],
    );
}

#[test]
fn a_shorter_branch_wins_when_the_node_says_so() {
    check(
        "a1<g0 a2<a1 a3<a2 b2<a1",
        expect!["extend +a1; extend +a2; extend +a3; reorg -a3 -a2 +b2"],
    );
}

#[test]
fn a_confirmed_rewind_drops_and_a_new_head_goes_on_from_there() {
    check(
        "a1<g0 a2<a1 a3<a2 a1<g0 !a1 b2<a1",
        expect!["extend +a1; extend +a2; extend +a3; behind a1; reorg -a3 -a2; extend +b2"],
    );
}

#[test]
fn a_head_during_a_walk_joins_it() {
    check(
        "a1<g0 a3<a2 a4<a3 ?a2<a1",
        expect!["extend +a1; need a2; -; extend +a2 +a3 +a4"],
    );
}

#[test]
fn a_reorg_during_a_walk_starts_another_and_late_answers_do_no_harm() {
    check(
        "a1<g0 a3<a2 b2<a1 ?a2<a1 a3<a2",
        expect!["extend +a1; need a2; extend +b2; -; reorg -b2 +a2 +a3"],
    );
}

#[test]
fn a_gap_beyond_history_is_crossed_by_waypoints() {
    check(
        "a1<g0 a20<a19 a5<a4 a21<a20 ?a4<a3 ?a3<a2 ?a2<a1 a21<a20 a9<a8",
        expect!["extend +a1; far 5; need a4; far 5; need a3; need a2; extend +a2 +a3 +a4 +a5; far 9; need a8"],
    );
}

#[test]
fn a_walk_that_finds_no_known_block_is_told() {
    check(
        "a1<g0 b9<b8 ?b8<b7 ?b7<b6 ?b6<b5 ?b5<b4 ?b4<b3 ?b3<b2 ?b2<b1",
        expect!["extend +a1; need b8; need b7; need b6; need b5; need b4; need b3; need b2; reset b9"],
    );
}

#[test]
fn older_blocks_may_be_added_below() {
    let mut tracker = Tracker::new(3);
    tracker.announce(header("a5", "a4"));
    assert!(!tracker.prepend(&header("a3", "a2")));
    assert!(tracker.prepend(&header("a4", "a3")));
    assert!(tracker.prepend(&header("a3", "a2")));
    assert!(!tracker.prepend(&header("a2", "a1")), "no more than the limit");
    let mut holes = Tracker::new(3);
    holes.announce(header("a9", "a5"));
    assert_eq!(holes.below(), Some(hash("a5")));
    assert!(holes.prepend(&header("a5", "a2")));
    assert!(!holes.prepend(&header("a4", "a2")), "not the parent");
    assert_eq!(show(&holes.announce(header("b7", "a5"))), "reorg -a9 +b7");
    assert_eq!(show(&tracker.announce(header("b4", "a3"))), "reorg -a5 -a4 +b4");
}

#[test]
fn numbers_without_a_block_change_nothing() {
    check(
        "a1<g0 a5<a1 a8<a5 b7<a5 b9<b7 a8<a5 a12<a8",
        expect!["extend +a1; extend +a5; extend +a8; reorg -a8 +b7; extend +b9; reorg -b9 -b7 +a8; extend +a12"],
    );
    check(
        "a1<g0 a5<a1 a14<a11 ?a11<a6 ?a6<a5",
        expect!["extend +a1; extend +a5; far 9; -; -"],
    );
    check(
        "a1<g0 a5<a1 a8<a5 a5<a1 !a5 a13<a5",
        expect!["extend +a1; extend +a5; extend +a8; behind a5; reorg -a8; extend +a13"],
    );
}

#[test]
fn a_wary_chain_is_never_given_up() {
    // One block is too far above its parent, the next as far as allowed.
    check(
        "a1<g0 ~ b9000<a1 a2<a1 c131<a2 c130<a2",
        expect!["extend +a1; ~; -; extend +a2; -; extend +c130"],
    );
    // A walk that does not meet the chain, and a head below history.
    check(
        "a1<g0 a2<a1 ~ b4<b3 ?b3<b2 ?b2<b1 ?b1<b0 a3<a2 ~ b4<b3 ?b3<b2 ?b2<b1 ?b1<b0",
        expect![
            "extend +a1; extend +a2; ~; need b3; need b2; need b1; -; extend +a3; ~; need b3; need b2; need b1; reset b4"
        ],
    );
    let mut tracker = Tracker::new(8);
    tracker.announce(header("a1", "g0"));
    tracker.set_wary(true);
    assert_eq!(show(&tracker.restart(header("b9000", "b8999"))), "-");
    assert_eq!(tracker.tip().map(|tip| tip.block.number), Some(1));
    tracker.set_wary(false);
    assert_eq!(show(&tracker.restart(header("b9000", "b8999"))), "reset b9000");
}

#[test]
fn a_head_on_top_of_the_tip_is_not_far_whatever_its_number() {
    check(
        "a1<g0 a9000<a1 b9100<a9000 b20000<b19000",
        expect!["extend +a1; extend +a9000; extend +b9100; far 9104"],
    );
}

#[test]
fn a_gap_of_blocks_without_a_parent_is_crossed_by_number() {
    let block = |own: &str, parent: &str| header(own, if parent == "-" { "" } else { parent });
    let listed = |words: &str| -> Vec<Header> {
        let pairs = words
            .split_whitespace()
            .map(|word| word.split_once('<').expect("own<parent"));
        pairs.map(|(own, parent)| block(own, parent)).collect()
    };
    let mut tracker = Tracker::new(8);
    tracker.announce(block("a1", "g0"));
    assert_eq!(show(&tracker.announce(block("a6", "a5"))), "need a5");
    assert_eq!(show(&tracker.supply(block("a5", "-"))), "need numbers to a5");
    let to = block("a5", "-").block;
    assert!(
        tracker.supply_numbered(to, listed("b5<- a4<- a3<-")).is_none(),
        "of another branch"
    );
    assert!(
        tracker.supply_numbered(to, listed("a5<- a3<-")).is_none(),
        "with a hole"
    );
    let step = tracker.supply_numbered(to, listed("a5<- a4<- a3<-"));
    assert_eq!(step.as_ref().map(show).as_deref(), Some("need numbers to a3"));
    let step = tracker.supply_numbered(block("a3", "-").block, listed("a3<- a2<a1 a1<g0"));
    assert_eq!(step.as_ref().map(show).as_deref(), Some("extend +a2 +a3 +a4 +a5 +a6"));
    // From now on these blocks are linked by hash.
    assert_eq!(show(&tracker.announce(block("b5", "a4"))), "reorg -a6 -a5 +b5");
    assert_eq!(show(&tracker.announce(block("a6", "a5"))), "reorg -b5 +a5 +a6");
    assert_eq!(show(&tracker.announce(block("a7", "-"))), "need numbers to a7");
    let step = tracker.supply_numbered(block("a7", "-").block, listed("a7<- a6<a5"));
    assert_eq!(step.as_ref().map(show).as_deref(), Some("extend +a7"));
}

#[test]
fn a_parent_that_every_node_denies_is_the_block_of_the_number_before() {
    let mut tracker = Tracker::new(8);
    tracker.announce(header("a1", "g0"));
    assert_eq!(show(&tracker.announce(header("a3", "x"))), "need x");
    assert_eq!(show(&tracker.deny(hash("y"))), "-", "another one");
    assert_eq!(show(&tracker.deny(hash("x"))), "need numbers to a3");
    let a3 = header("a3", "x");
    let step = tracker.supply_numbered(a3.block, vec![a3.clone(), header("a2", "a1")]);
    assert_eq!(step.as_ref().map(show).as_deref(), Some("extend +a2 +a3"));
}

#[test]
fn a_waypoint_may_be_above_its_number() {
    let mut tracker = Tracker::new(8);
    tracker.announce(header("a1", "g0"));
    assert_eq!(show(&tracker.announce(header("a90", "a89"))), "far 5");
    assert_eq!(show(&tracker.walk_to(header("a70", "a3"))), "need a3");
    assert_eq!(show(&tracker.supply(header("a3", "a1"))), "extend +a3 +a70");
    assert_eq!(tracker.extent(), (3, 70));
}

#[test]
fn numbers_that_do_not_ascend_are_no_chain() {
    check(
        "a1<g0 a5<a1 b5<a5 b3<a5 a6<a5",
        expect!["extend +a1; extend +a5; -; -; extend +a6"],
    );
    check(
        "a1<g0 a5<a1 b8<b7 ?b7<b9 ?b9<a5",
        expect!["extend +a1; extend +a5; need b7; need b9; reset b8"],
    );
    check(
        "a1<g0 a5<a1 b8<b7 ?b7<b6 ?b6<b3 ?b3<a5",
        expect!["extend +a1; extend +a5; need b7; need b6; need b3; reset b8"],
    );
}

#[test]
fn a_branch_older_than_history_is_told() {
    check("a5<a4 a6<a5 b5<b4", expect!["extend +a5; extend +a6; reset b5"]);
}

proptest! {
    /// Random trees, any head announced at any time, parents supplied on demand: the steps, replayed, are always a
    /// chain of parents that ends at the announced head.
    #[test]
    fn the_replayed_steps_are_the_announced_chain(parents in prop::collection::vec((0usize..6, prop_oneof![3 => Just(1u64), 1 => 1u64..200]), 2..60), heads in prop::collection::vec(any::<prop::sample::Index>(), 1..80)) {
        let mut tree: Vec<Header> = vec![header("g0", "x")];
        for (i, (back, higher)) in parents.iter().enumerate() {
            let parent = tree[tree.len() - 1 - (*back).min(tree.len() - 1)].clone();
            let mut own = header("n", "x");
            own.block = BlockRef { number: parent.block.number + higher, hash: B256::with_last_byte(i as u8 + 1) };
            own.parent = parent.block.hash;
            tree.push(own);
        }
        let by_hash: BTreeMap<B256, Header> = tree.iter().map(|h| (h.block.hash, h.clone())).collect();
        let mut tracker = Tracker::new(128);
        let mut model: Vec<B256> = Vec::new();
        tracker.announce(tree[0].clone());
        model.push(tree[0].block.hash);
        for head in heads {
            let head = tree[head.index(tree.len())].clone();
            let mut step = tracker.announce(head.clone());
            loop {
                // After a waypoint the head is announced again.
                if matches!(step, Step::Nothing) && model.last() != Some(&head.block.hash) { step = tracker.announce(head.clone()); }
                step = match step {
                    Step::Need(hash) => tracker.supply(by_hash[&hash].clone()),
                    Step::Behind(block) => tracker.rewind(block.hash),
                    Step::NeedNumbered(_) => { prop_assert!(false, "all have parents"); break; }
                    Step::Nothing => break,
                    Step::Extend(new) => {
                        for h in new { prop_assert_eq!(Some(&h.parent), model.last()); model.push(h.block.hash); }
                        Step::Nothing
                    }
                    Step::Reorg { ancestor, dropped, adopted } => {
                        for gone in dropped { prop_assert_eq!(Some(gone.hash), model.pop()); }
                        prop_assert_eq!(Some(&ancestor.hash), model.last());
                        for h in adopted { prop_assert_eq!(Some(&h.parent), model.last()); model.push(h.block.hash); }
                        Step::Nothing
                    }
                    Step::Far { head, waypoint } => {
                        // The node's first block at or above that number.
                        let mut first = head;
                        while by_hash[&first.parent].block.number >= waypoint { first = by_hash[&first.parent].clone(); }
                        tracker.walk_to(first)
                    }
                    Step::Reset(_) => { prop_assert!(false, "nothing here is beyond history"); break; }
                };
            }
            prop_assert_eq!(model.last(), Some(&head.block.hash));
            prop_assert_eq!(tracker.tip().map(|tip| tip.block.hash), Some(head.block.hash));
        }
    }
}
