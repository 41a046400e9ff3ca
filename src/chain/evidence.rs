//! Weight of the answers about one block's contents: decides which answers are believed. No I/O, no clock.
//!
//! Logs that add up exactly to the header's bloom are as good as proven, by one call. If they differ, the chain may be
//! odd (Filecoin's blooms are full of ones, Bor's and HyperEVM's lack the logs of system transactions), or the node may
//! be behind: a block is announced before its receipts are written, and a node then answers `[]`. So logs that differ
//! from the bloom are believed when two nodes agree, and `[]` only when one of the two cannot be behind, or when it is
//! repeated for longer than writing the receipts takes. Gateways that truncate return a part of the logs: answers of
//! one node by hash and by number count as one until its receipts were tried.

use std::time::Duration;

use alloy_primitives::{B256, Bloom};

use super::inquiry::FetchWay;
use crate::upstream::UpstreamId;

/// Time for which a single node must repeat its answer to be believed alone.
const ALONE: Duration = Duration::from_secs(2);
/// Shorter time in place of [`ALONE`], if the logs account for all of the bloom and more, or if there are some and this
/// chain's blooms always claim too much: a node that is behind does not answer so.
const ALONE_WITH_LOGS: Duration = Duration::from_millis(250);
/// Number of equal answers that is required within that time.
const TIMES: u32 = 4;
/// Time over which receipts without logs must be repeated if no bloom confirms them, and (below) the number of such
/// answers: some nodes list receipts before they have executed the block (filecoin-project/lotus#12078; 0.6 s were
/// measured).
pub(super) const LISTED: Duration = Duration::from_secs(1);
const LISTED_TIMES: u32 = 2;
/// Blocks with a wrong bloom since the last exact one, after which wrong blooms count as a habit of this chain.
const HABIT: u32 = 3;
/// Blocks with bits that no log accounts for, after which these bits count as set in each block's bloom.
const CONSTANT: u32 = 2;

/// Relation of the contents to the header's claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// They are what the header claims, or it makes no claim to check them against.
    Whole,
    /// They account for all of the bloom, and have further logs.
    More,
    /// They do not account for all that the header claims.
    Less,
}

/// Emptiness of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    /// Not empty.
    Some,
    /// Empty: a node that is behind gives the same answer.
    None,
    /// Receipts without logs, of a block whose bloom proves nothing: a node that is behind may list them.
    NoneListed,
    /// Empty, and the answer shows that the block was executed: receipts without logs, or none according to the root.
    NoneExecuted,
}

/// Answer about the block, without its contents.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerSummary {
    pub fit: Fit,
    pub amount: Amount,
    /// Fingerprint, equal for the same contents from any node.
    pub print: B256,
    /// Number of bits of the bloom that the contents account for.
    pub covers: usize,
}

impl AnswerSummary {
    /// Answer without any contradiction to the header.
    pub(super) const WHOLE: Self = Self {
        fit: Fit::Whole,
        amount: Amount::Some,
        print: B256::ZERO,
        covers: 0,
    };
}

/// Reason why contents are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptReason {
    /// The contents are what the header claims.
    Fits,
    /// The contents contradict the header, and two answers agree.
    Agreed,
    /// The contents contradict the header, and one node repeats them.
    Repeated,
}

/// The last answer of one upstream by one way.
#[derive(Debug)]
struct NodeAnswer {
    node: UpstreamId,
    way: FetchWay,
    said: AnswerSummary,
    /// Time of the first of `times` equal answers in a row.
    since: Duration,
    times: u32,
}

/// Answers about one block so far: one entry for each upstream and way.
#[derive(Debug)]
pub(super) struct Evidence {
    voices: Vec<NodeAnswer>,
    alone: Duration,
    /// `true` if the chain's blooms claim too much as a rule.
    habit: bool,
    /// Upstreams that were asked for receipts, or need not be.
    tried: Vec<UpstreamId>,
}

impl Evidence {
    /// Creates the evidence about a block for which answers may arrive within `budget`.
    pub(super) fn new(budget: Duration, habit: bool) -> Self {
        Self {
            voices: Vec::new(),
            // With a budget below twice [`ALONE`], half of the budget has to do.
            alone: ALONE.min(budget / 2),
            habit,
            tried: Vec::new(),
        }
    }

    /// Records that an upstream's receipts were tried, or are not worth a call.
    pub(super) fn tried_receipts(&mut self, node: UpstreamId) {
        if !self.tried.contains(&node) {
            self.tried.push(node);
        }
    }

    /// Records an answer; returns `None` while it is not believed.
    pub(super) fn add_answer(
        &mut self,
        node: UpstreamId,
        way: FetchWay,
        said: AnswerSummary,
        now: Duration,
    ) -> Option<AcceptReason> {
        if said.fit == Fit::Whole {
            return Some(AcceptReason::Fits);
        }
        if !way.is_by_index() {
            self.tried_receipts(node);
        }
        let own = match self
            .voices
            .iter_mut()
            .position(|voice| (voice.node, voice.way) == (node, way))
        {
            Some(at) => at,
            None => {
                self.voices.push(NodeAnswer {
                    node,
                    way,
                    said,
                    since: now,
                    times: 0,
                });
                self.voices.len() - 1
            }
        };
        let voice = &mut self.voices[own];
        if voice.said.print != said.print {
            (voice.since, voice.times) = (now, 0);
        }
        voice.said = said;
        voice.times += 1;
        let voice = &self.voices[own];
        let others = || {
            self.voices
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != own)
                .map(|(_, other)| other)
        };
        let apart = |other: &NodeAnswer| {
            let is_one_answer = other.node == node && other.way.is_by_index() && way.is_by_index();
            let is_part = (said.fit, said.amount) == (Fit::Less, Amount::Some);
            let outdone = others().any(|other| other.said.covers > said.covers);
            !is_part || !is_one_answer || self.habit || self.tried.contains(&node) && !outdone
        };
        if others().any(|other| agree(&voice.said, &other.said) && apart(other)) {
            return Some(AcceptReason::Agreed);
        }
        let times = match said.amount {
            Amount::NoneListed => LISTED_TIMES,
            _ => TIMES,
        };
        let at_least = match (said.fit, said.amount) {
            (_, Amount::NoneListed) => LISTED.min(self.alone),
            (Fit::More, _) => ALONE_WITH_LOGS.min(self.alone),
            (_, Amount::Some) if self.habit => ALONE_WITH_LOGS.min(self.alone),
            _ => self.alone,
        };
        let outdone = others().any(|other| other.said.covers > said.covers);
        let long = voice.times >= times && now.saturating_sub(voice.since) >= at_least;
        (long && !outdone).then_some(AcceptReason::Repeated)
    }
}

/// Checks if two answers agree, and not only because both may be early.
fn agree(one: &AnswerSummary, other: &AnswerSummary) -> bool {
    let may_be_early = |said: &AnswerSummary| matches!(said.amount, Amount::None | Amount::NoneListed);
    let early = may_be_early(one) && may_be_early(other);
    one.print == other.print && !early
}

/// Reliability of a chain's blooms, learned from its blocks.
///
/// Bits without a log at two blocks, which each header since has set, count as set at every block: the rest of a bloom
/// is still checked against the logs. The first header without all of these bits shows that blooms are computed again,
/// and from that header on every bit counts: an exact bloom is never weakened by those before it.
#[derive(Debug, Default)]
pub(super) struct Blooms {
    in_vain: Bloom,
    /// Blocks with bits that no log accounts for, since `in_vain` was last empty.
    blocks: u32,
    /// Blocks since the last exact bloom whose bloom claims too much, and too little.
    too_much: u32,
    too_little: u32,
    /// `true` if a block had logs and an empty bloom, and no bloom was exact since.
    left_empty: bool,
}

/// Error of a block's bloom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The bloom claims more than the logs account for.
    TooMuch,
    /// The block has logs that the bloom does not contain.
    TooLittle,
    /// The bloom is empty although there are logs: it cannot be checked against them.
    Empty,
}

impl Blooms {
    /// Compares a block's bloom with the bloom of its logs, `own`.
    pub(super) fn fit(&mut self, bloom: &Bloom, own: &Bloom) -> Fit {
        if !bloom.contains(&self.in_vain) {
            (self.in_vain, self.blocks) = (Bloom::ZERO, 0);
        }
        let constant = self.blocks >= CONSTANT;
        // An empty bloom proves nothing: some chains leave all blooms empty, some nodes that of a block with
        // system logs only.
        if *bloom == Bloom::ZERO || own == bloom {
            return Fit::Whole;
        }
        let counts = if constant {
            without(bloom, &self.in_vain)
        } else {
            *bloom
        };
        if !own.contains(&counts) {
            Fit::Less
        } else if bloom.contains(own) {
            Fit::Whole
        } else {
            Fit::More
        }
    }

    /// Learns from logs that were believed; returns the bloom's error, or `None` if it was right.
    pub(super) fn learn(&mut self, bloom: &Bloom, own: &Bloom) -> Option<Wrong> {
        if own == bloom {
            if *bloom != Bloom::ZERO {
                *self = Self::default();
            }
            return None;
        }
        if *bloom == Bloom::ZERO {
            self.left_empty = true;
            return Some(Wrong::Empty);
        }
        if own.contains(bloom) {
            self.too_little = self.too_little.saturating_add(1);
            return Some(Wrong::TooLittle);
        }
        self.in_vain.accrue_bloom(&without(bloom, own));
        self.blocks = self.blocks.saturating_add(1);
        self.too_much = self.too_much.saturating_add(1);
        Some(Wrong::TooMuch)
    }

    /// Checks if this chain leaves blooms empty, so that an empty bloom is no evidence about a block.
    pub(super) fn are_left_empty(&self) -> bool {
        self.left_empty
    }

    /// Checks if this chain's blooms claim too much as a rule.
    pub(super) fn claim_too_much(&self) -> bool {
        self.too_much >= HABIT
    }

    /// Checks if a second node's answer is needed as a rule, and is better requested at once.
    pub(super) fn need_two(&self) -> bool {
        self.too_little >= HABIT
    }
}

fn without(bloom: &Bloom, bits: &Bloom) -> Bloom {
    let mut rest = *bloom;
    rest.0.iter_mut().zip(bits.0).for_each(|(byte, off)| *byte &= !off);
    rest
}

/// Returns the number of bits that two blooms share.
pub(super) fn shared(one: &Bloom, other: &Bloom) -> usize {
    let bytes = one.0.iter().zip(other.0);
    bytes.map(|(one, other)| (one & other).count_ones() as usize).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(bits: &str) -> Bloom {
        let mut bloom = Bloom::ZERO;
        for bit in bits.bytes() {
            bloom.0[usize::from(bit - b'a')] = 1;
        }
        bloom
    }

    /// Returns the belief and its reason, or `?`. Each word is an answer: the upstream's digit, `h`ash, `n`umber or
    /// `r`eceipts, `=` its contents (`-` for nothing, `.` for nothing of a block that was executed, `:` for the same if
    /// it may be listed too early, `!` for a failure, letters for bits of a bloom), `@` the milliseconds.
    fn add_answer(bloom: &str, habit: bool, answers: &str) -> String {
        let mut evidence = Evidence::new(Duration::from_secs(10), habit);
        let mut blooms = Blooms::default();
        for word in answers.split_whitespace() {
            let (who, rest) = word.split_once('=').expect("an answer");
            let (what, at) = rest.split_once('@').expect("a time");
            let way = match &who[1..] {
                "h" => FetchWay::LogsByHash,
                "n" => FetchWay::LogsByNumber,
                _ => FetchWay::ReceiptsByHash,
            };
            let node = UpstreamId(who[..1].parse().expect("a digit"));
            if what == "!" {
                evidence.tried_receipts(node);
                continue;
            }
            let amount = match what {
                "-" => Amount::None,
                ":" => Amount::NoneListed,
                "." => Amount::NoneExecuted,
                _ => Amount::Some,
            };
            let own = bits(what.trim_matches(['-', '.', ':']));
            let said = AnswerSummary {
                fit: blooms.fit(&bits(bloom), &own),
                amount,
                print: alloy_primitives::keccak256(own),
                covers: shared(&own, &bits(bloom)),
            };
            let now = Duration::from_millis(at.parse().expect("a time"));
            if let Some(belief) = evidence.add_answer(node, way, said, now) {
                return format!("{what} {belief:?} @{at}");
            }
        }
        "?".to_owned()
    }

    #[test]
    fn which_answers_add_up_to_belief() {
        for (bloom, answers, expect) in [
            ("ab", "0h=ab@1", "ab Fits @1"),
            // An empty bloom proves neither that there are logs nor that there are none.
            ("", "0h=-@1", "- Fits @1"),
            ("", "0h=ab@1", "ab Fits @1"),
            // Less than the bloom: another way, another upstream, or the same answer for a while.
            ("abc", "0h=a@1 0r=a@2", "a Agreed @2"),
            // A gateway that truncates returns the same part by hash and by number.
            ("abc", "0h=a@1 0n=a@2", "?"),
            ("abc", "0h=a@1 0n=a@2 0r=abc@3", "abc Fits @3"),
            ("abc", "0h=a@1 0n=a@2 0r=!@3 0h=a@4", "a Agreed @4"),
            ("abc", "0h=a@1 0r=ab@2 0n=a@3", "?"),
            ("abc", "0h=a@1 1r=!@2 0n=a@3", "?"),
            ("abc", "0h=a@1 1n=a@2", "a Agreed @2"),
            ("abc", "0h=a@1 1h=a@2", "a Agreed @2"),
            ("abc", "0h=a@1 1h=b@2", "?"),
            ("abc", "0h=a@1 0h=a@40 0h=a@900 0h=a@1900", "?"),
            ("abc", "0h=a@1 0h=a@40 0h=a@900 0h=a@1900 0h=a@2001", "a Repeated @2001"),
            ("abc", "0h=a@1 0h=a@5000", "?"),
            ("abc", "0h=a@1 0h=b@40 0h=a@900 0h=a@1900 0h=a@2001", "?"),
            ("abc", "0h=a@1 0h=a@40 1h=ab@50 0h=a@1900 0h=a@2001", "?"),
            // Nothing: a node that is behind answers so by both ways that read its index.
            ("abc", "0h=-@1 0n=-@2 1h=-@3", "?"),
            ("abc", "0h=-@1 0h=-@20 0h=abc@60", "abc Fits @60"),
            ("abc", "0h=-@1 0n=-@2 0r=abc@3", "abc Fits @3"),
            ("abc", "0h=-@1 0r=.@2", ". Agreed @2"),
            ("abc", "0r=.@1 0h=-@2", "- Agreed @2"),
            ("abc", "0r=.@1", "?"),
            ("abc", "0h=-@1 0h=-@700 0h=-@1400 0h=-@2001", "- Repeated @2001"),
            // Receipts that may be listed before the block is executed: two answers over a second.
            ("abc", "0h=-@1 0r=:@2", "?"),
            ("abc", "0h=-@1 0r=:@2 0r=:@900 0h=-@1001", "?"),
            ("abc", "0h=-@1 0r=:@2 0r=:@1002", ": Repeated @1002"),
            ("abc", "0h=-@1 0r=:@2 0r=abc@1002", "abc Fits @1002"),
            ("abc", "0r=:@2 1r=.@3", ". Agreed @3"),
            // More than the bloom: two, or one four times.
            ("a", "0h=ab@1", "?"),
            ("a", "0h=ab@1 1h=a@2", "a Fits @2"),
            ("a", "0h=ab@1 0n=ab@2", "ab Agreed @2"),
            ("a", "0h=ab@1 0h=ab@20 0h=ab@60 0h=ab@140 0h=ab@300", "ab Repeated @300"),
            // Neither: as less.
            ("ac", "0h=ab@1 0h=ab@20 0h=ab@60 0h=ab@140 0h=ab@300", "?"),
            ("ac", "0h=ab@1 0r=ab@300", "ab Agreed @300"),
        ] {
            assert_eq!(add_answer(bloom, false, answers), expect, "{bloom}: {answers}");
        }
        let some = "0h=a@1 0h=a@20 0h=a@60 0h=a@300";
        assert_eq!(
            add_answer("abc", true, some),
            "a Repeated @300",
            "where blooms claim too much as a rule"
        );
        assert_eq!(
            add_answer("abc", true, &some.replace("=a", "=-")),
            "?",
            "but nothing is nothing"
        );
    }

    /// Each word is a block: its bloom, `/`, its logs. Returns the fit of each, computed before learning from the
    /// block.
    fn run(blocks: &str) -> String {
        let mut blooms = Blooms::default();
        let one = |word: &str| {
            let (bloom, own) = word.split_once('/').expect("a block");
            let (bloom, own) = (bits(bloom), bits(own));
            let fit = blooms.fit(&bloom, &own);
            blooms.learn(&bloom, &own);
            format!("{fit:?}")
        };
        blocks.split_whitespace().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_claimed_at_every_block_is_learned_and_forgotten_at_once() {
        for (blocks, expect) in [
            ("ab/ab ab/a", "Whole Less"),
            // All bits set: after two blocks nothing is missed.
            ("abcdef/a abcdef/b abcdef/ abcdef/c", "Less Less Whole Whole"),
            // The next header has a computed bloom: missing logs show.
            ("abcdef/a abcdef/b abcdef/ ab/ ab/a", "Less Less Whole Less Less"),
            // The same bits at every block: the others count.
            ("axy/a bxy/b cxy/ cxy/c", "Less Less Less Whole"),
            // One odd block, then honest ones.
            ("xy/ ab/ ab/ab abxy/ab", "Less Less Whole Less"),
            // Logs that are in no bloom.
            ("a/ab a/ab a/a a/", "More More Whole Less"),
            ("/ /ab ab/", "Whole Whole Less"),
        ] {
            assert_eq!(run(blocks), expect, "{blocks}");
        }
    }

    #[test]
    fn an_empty_bloom_says_nothing_once_a_block_had_logs_all_the_same() {
        let mut blooms = Blooms::default();
        for (bloom, own, expect) in [
            ("", "", false),
            ("ab", "ab", false),
            ("", "a", true),
            ("", "", true),
            ("ab", "a", true),
            ("ab", "ab", false),
        ] {
            blooms.learn(&bits(bloom), &bits(own));
            assert_eq!(blooms.are_left_empty(), expect, "{bloom}/{own}");
        }
    }

    #[test]
    fn a_habit_is_three_blocks_and_one_honest_block_ends_it() {
        let mut blooms = Blooms::default();
        for _ in 0..3 {
            assert!(!blooms.claim_too_much() && !blooms.need_two());
            blooms.learn(&bits("ab"), &bits("a"));
            blooms.learn(&bits("a"), &bits("ab"));
        }
        assert!(blooms.claim_too_much() && blooms.need_two());
        blooms.learn(&Bloom::ZERO, &bits("a"));
        assert!(blooms.claim_too_much(), "an empty one proves nothing");
        blooms.learn(&bits("a"), &bits("a"));
        assert!(!blooms.claim_too_much() && !blooms.need_two());
    }
}
