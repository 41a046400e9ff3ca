//! One history out of what a node announces. No I/O, no clock.
//!
//! Heads in any order go in; what they mean for the canonical chain comes out. A head whose parent is unknown starts a
//! walk: the tracker names the hash that it needs next, until the walk meets the chain that it knows.

use std::collections::{HashMap, VecDeque};

use alloy_primitives::B256;

use super::{BlockRef, Header};

/// What an announcement, or an answer to a [`Step::Need`], came to.
#[derive(Clone, Debug)]
pub enum Step {
    /// Nothing new.
    Nothing,
    /// The header with this hash is needed to go on; give it to [`Tracker::supply`].
    Need(B256),
    /// The walk came to this block, which has no parent, or one that no node has. The node's blocks up to this one by number
    /// are needed to go on; give them to [`Tracker::supply_numbered`].
    NeedNumbered(BlockRef),
    /// The chain grew: oldest first, never empty.
    Extend(Vec<Header>),
    /// The chain changed its mind.
    Reorg {
        /// The newest block that both branches have.
        ancestor: BlockRef,
        /// Newest first; may not be empty.
        dropped: Vec<BlockRef>,
        /// Oldest first; empty when the node only went back.
        adopted: Vec<Header>,
    },
    /// The node announces a block that is already behind the tip: it went back, or it repeats itself. Whoever can ask
    /// the node decides, and calls [`Tracker::rewind`].
    Behind(BlockRef),
    /// The head is too far ahead for one walk and was not taken: it is to be announced again later. Unless a walk is in
    /// progress, the node's first block at or above this number is the next stepping stone, for [`Tracker::walk_to`].
    Far {
        /// The head.
        head: Header,
        /// The least number of the stepping stone.
        stone: u64,
    },
    /// Continuity is lost: no bounded walk leads from here to what was known. The chain starts again at this head.
    Reset(Header),
}

/// The canonical chain as far back as history reaches, and a walk in progress.
///
/// Blocks are related by their parents' hashes alone. Numbers ascend, and some have no block (Filecoin's null rounds, issue
/// 11): a number says how many blocks there can be at most, never which block is the parent.
#[derive(Debug)]
pub struct Tracker {
    /// Blocks kept, and the longest walk; at least one.
    limit: usize,
    /// Oldest first; each the parent of the next.
    canonical: VecDeque<Header>,
    number_of: HashMap<B256, u64>,
    /// From the announced head down to the oldest ancestor fetched so far; newest first.
    walk: Vec<Header>,
    /// Blocks off the canonical chain that need not be fetched again.
    aside: HashMap<B256, Header>,
    aside_order: VecDeque<B256>,
}

impl Tracker {
    /// A tracker that keeps `limit` blocks and walks back as many at most.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            canonical: VecDeque::new(),
            number_of: HashMap::new(),
            walk: Vec::new(),
            aside: HashMap::new(),
            aside_order: VecDeque::new(),
        }
    }

    /// The newest canonical header.
    #[must_use]
    pub fn tip(&self) -> Option<&Header> {
        self.canonical.back()
    }

    /// The oldest canonical block that is kept.
    #[must_use]
    pub fn oldest(&self) -> Option<BlockRef> {
        self.canonical.front().map(|header| header.block)
    }

    /// The hash that the walk in progress waits for.
    #[must_use]
    pub fn needs(&self) -> Option<B256> {
        self.walk.last().map(|lowest| lowest.parent)
    }

    /// The numbers that the walk in progress has yet to cross if no block of ours is dropped: above our tip, below what was
    /// fetched so far.
    #[must_use]
    pub fn gap(&self) -> std::ops::Range<u64> {
        match (self.tip(), self.walk.last()) {
            (Some(tip), Some(lowest)) => tip.block.number.saturating_add(1)..lowest.block.number,
            _ => 0..0,
        }
    }

    /// The block below the oldest one, where there is one and room for it.
    #[must_use]
    pub fn below(&self) -> Option<B256> {
        let oldest = self.canonical.front()?;
        (self.canonical.len() < self.limit && oldest.has_parent()).then_some(oldest.parent)
    }

    /// Canonical blocks that are kept, and the numbers from the first to the last of them.
    #[must_use]
    pub fn extent(&self) -> (u64, u64) {
        let numbers = self.canonical.front().zip(self.canonical.back());
        let span = numbers.map_or(0, |(first, last)| {
            (last.block.number - first.block.number).saturating_add(1)
        });
        (self.canonical.len() as u64, span)
    }

    /// Adds the parent of the oldest block, so that a reorg may reach below it; `false` where it is not that, or where
    /// there is no room.
    pub fn prepend(&mut self, older: &Header) -> bool {
        let fits = self.canonical.len() < self.limit
            && self
                .canonical
                .front()
                .is_some_and(|oldest| oldest.parent == older.block.hash && oldest.block.number > older.block.number);
        if fits {
            self.aside.remove(&older.block.hash);
            self.number_of.insert(older.block.hash, older.block.number);
            self.canonical.push_front(older.clone());
        }
        fits
    }

    /// Gives up what was known and starts again at this head.
    pub fn restart(&mut self, head: Header) -> Step {
        self.walk = vec![head];
        self.reset()
    }

    /// The node says: this is my head.
    pub fn announce(&mut self, head: Header) -> Step {
        let hash = head.block.hash;
        if self.canonical.is_empty() {
            self.append(head.clone());
            return Step::Extend(vec![head]);
        }
        if self.number_of.contains_key(&hash) {
            let block = head.block;
            self.abandon_walk();
            return if self.tip().is_some_and(|tip| tip.block == block) {
                Step::Nothing
            } else {
                Step::Behind(block)
            };
        }
        match self.walk.first() {
            Some(target) if target.block.hash == hash => Step::Nothing,
            // The chain grew while its gap is being fetched: the same gap is still the one to fill.
            Some(target) if target.block.hash == head.parent && self.walk.len() < self.limit => {
                self.walk.insert(0, head);
                Step::Nothing
            }
            Some(target) if target.block.hash == head.parent => {
                let stone = head.block.number;
                Step::Far { head, stone }
            }
            _ => match self.number_of.get(&head.parent) {
                // No number can be taken from it: nothing grows on it that could be believed.
                Some(parent) if head.block.number <= *parent => Step::Nothing,
                Some(_) => self.walk_to(head),
                None => match self.stone_before(&head) {
                    Some(stone) => Step::Far { head, stone },
                    None => self.walk_to(head),
                },
            },
        }
    }

    /// As [`Self::announce`], of a head that is new and to which as few blocks lead as can be walked, whatever its number: the
    /// numbers before it have none.
    pub fn walk_to(&mut self, head: Header) -> Step {
        if self.number_of.contains_key(&head.block.hash) {
            return Step::Nothing;
        }
        self.abandon_walk();
        self.walk.push(head);
        self.advance()
    }

    /// The block to go to first where this head is further ahead than a walk may reach.
    fn stone_before(&self, head: &Header) -> Option<u64> {
        let tip = self.tip()?.block.number;
        let reach = self.limit as u64;
        // Half of it, so that a reorg that happened meanwhile can be walked too.
        (head.block.number.saturating_sub(tip) > reach).then_some(tip + reach.div_ceil(2))
    }

    /// The answer to a [`Step::Need`]. An answer that nobody waits for any more is put aside.
    pub fn supply(&mut self, header: Header) -> Step {
        if self.needs() == Some(header.block.hash) {
            self.walk.push(header);
            return self.advance();
        }
        if !self.number_of.contains_key(&header.block.hash) {
            self.put_aside(header);
        }
        Step::Nothing
    }

    /// No node has the block that the walk needs: the one of the number before is taken for it, where the node has that.
    pub fn deny(&mut self, hash: B256) -> Step {
        match self.walk.last_mut().filter(|lowest| lowest.parent == hash) {
            Some(lowest) => {
                lowest.parent = B256::ZERO;
                self.advance()
            }
            None => Step::Nothing,
        }
    }

    /// The answer to a [`Step::NeedNumbered`] for this block: canonical blocks of the node, each known by its number alone.
    /// `None` where they do not lead on: they do not have the block itself, or none of the number before.
    pub fn supply_numbered(&mut self, block: BlockRef, canonical: Vec<Header>) -> Option<Step> {
        let waits = |lowest: &&Header| lowest.block == block && !lowest.has_parent();
        if self.walk.last().filter(waits).is_none() {
            return Some(Step::Nothing);
        }
        let by_number: HashMap<u64, Header> = canonical.into_iter().map(|own| (own.block.number, own)).collect();
        if by_number.get(&block.number)?.block != block {
            return None;
        }
        while let Some(lowest) = self.walk.last_mut()
            && !lowest.has_parent()
            && let Some(before) = lowest.block.number.checked_sub(1)
            && let Some(before) = by_number.get(&before)
        {
            // From here on it is the parent, for all who go by hashes.
            lowest.parent = before.block.hash;
            if self.number_of.contains_key(&before.block.hash) || self.walk.len() >= self.limit {
                break;
            }
            self.walk.push(before.clone());
        }
        self.walk.last().filter(|lowest| !waits(lowest))?;
        Some(self.advance())
    }

    /// The node really went back to this canonical block.
    pub fn rewind(&mut self, to: B256) -> Step {
        self.abandon_walk();
        match self.drop_above(to) {
            Some((ancestor, dropped)) if !dropped.is_empty() => Step::Reorg {
                ancestor,
                dropped,
                adopted: Vec::new(),
            },
            _ => Step::Nothing,
        }
    }

    /// Goes on with the walk as far as known blocks lead.
    fn advance(&mut self) -> Step {
        while let Some(lowest) = self.walk.last() {
            let (parent, number) = (lowest.parent, lowest.block.number);
            // Numbers that do not ascend are no chain.
            let ascends = self
                .walk
                .iter()
                .rev()
                .nth(1)
                .is_none_or(|child| child.block.number > number);
            match self.number_of.get(&parent) {
                Some(below) if ascends && *below < number => return self.join(parent),
                None if ascends => {}
                _ => return self.reset(),
            }
            let below_history = self
                .canonical
                .front()
                .is_some_and(|oldest| number <= oldest.block.number);
            if below_history || self.walk.len() >= self.limit || number == 0 {
                return self.reset();
            }
            if !lowest.has_parent() {
                return Step::NeedNumbered(lowest.block);
            }
            match self.aside.remove(&parent) {
                Some(header) => self.walk.push(header),
                None => return Step::Need(parent),
            }
        }
        Step::Nothing
    }

    /// The walk met the chain at `ancestor`.
    fn join(&mut self, ancestor: B256) -> Step {
        let mut adopted = std::mem::take(&mut self.walk);
        adopted.reverse();
        let dropped = self.drop_above(ancestor);
        for header in &adopted {
            self.append(header.clone());
        }
        match dropped {
            Some((ancestor, dropped)) if !dropped.is_empty() => Step::Reorg {
                ancestor,
                dropped,
                adopted,
            },
            _ => Step::Extend(adopted),
        }
    }

    fn reset(&mut self) -> Step {
        let mut walk = std::mem::take(&mut self.walk);
        self.canonical.clear();
        self.number_of.clear();
        walk.truncate(1);
        match walk.pop() {
            Some(head) => {
                self.append(head.clone());
                Step::Reset(head)
            }
            None => Step::Nothing,
        }
    }

    fn append(&mut self, header: Header) {
        self.aside.remove(&header.block.hash);
        self.number_of.insert(header.block.hash, header.block.number);
        self.canonical.push_back(header);
        while self.canonical.len() > self.limit
            && let Some(oldest) = self.canonical.pop_front()
        {
            self.number_of.remove(&oldest.block.hash);
        }
    }

    /// What is dropped, newest first; `None` where `ancestor` is not canonical.
    fn drop_above(&mut self, ancestor: B256) -> Option<(BlockRef, Vec<BlockRef>)> {
        let number = *self.number_of.get(&ancestor)?;
        let mut dropped = Vec::new();
        while self.tip().is_some_and(|tip| tip.block.hash != ancestor)
            && let Some(header) = self.canonical.pop_back()
        {
            self.number_of.remove(&header.block.hash);
            dropped.push(header.block);
            self.put_aside(header);
        }
        Some((BlockRef { number, hash: ancestor }, dropped))
    }

    /// Forgets the blocks up to this number.
    pub fn forget_through(&mut self, number: u64) {
        while self
            .canonical
            .front()
            .is_some_and(|oldest| oldest.block.number <= number)
            && let Some(oldest) = self.canonical.pop_front()
        {
            self.number_of.remove(&oldest.block.hash);
        }
    }

    /// The head that the walk in progress leads to.
    #[must_use]
    pub fn target(&self) -> Option<&Header> {
        self.walk.first()
    }

    /// Gives up the walk in progress; its blocks are put aside.
    pub fn abandon_walk(&mut self) {
        for header in std::mem::take(&mut self.walk) {
            self.put_aside(header);
        }
    }

    fn put_aside(&mut self, header: Header) {
        let hash = header.block.hash;
        if self.aside.insert(hash, header).is_none() {
            self.aside_order.push_back(hash);
        }
        // The order may name blocks that were taken back; they leave it here too.
        while self.aside_order.len() > self.limit
            && let Some(oldest) = self.aside_order.pop_front()
        {
            self.aside.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    /// `a3` is block 3 of branch a; the hash spells the name.
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
            seen: std::time::Instant::now(),
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
            Step::Far { stone, .. } => format!("far {stone}"),
            Step::Reset(head) => format!("reset {}", name(head.block.hash)),
        }
    }

    /// `b2<a1` announces b2 with parent a1; `?b2<a1` supplies it; `!a1` confirms a rewind.
    #[track_caller]
    fn check(events: &str, expect: Expect) {
        let mut tracker = Tracker::new(8);
        let steps: Vec<String> = events
            .split_whitespace()
            .map(|event| {
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
    fn a_gap_beyond_history_is_crossed_by_stepping_stones() {
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
        // Now they are related by hashes.
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
    fn a_stepping_stone_may_be_above_its_number() {
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
        /// Random trees, any head announced at any time, parents supplied on demand: what comes out, replayed, is
        /// always a chain of parents that ends at the announced head.
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
                    // After a stepping stone the head is announced again.
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
                        Step::Far { head, stone } => {
                            // What the node has at or above that number.
                            let mut first = head;
                            while by_hash[&first.parent].block.number >= stone { first = by_hash[&first.parent].clone(); }
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
}
