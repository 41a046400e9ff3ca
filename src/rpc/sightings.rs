//! Questions that were asked lately: bounded, and fair to every account. No I/O, no clock.
//!
//! Most reads of state are asked once: the balance of one wallet, the price of one amount. Caching all of them takes
//! a quarter of a call's instructions, and memory for answers that nobody asks for again; so an answer of this kind is
//! cached from the second time on.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;

use crate::shares::Owner;

/// Entries of a set, which fill one line of a processor's cache.
const WAYS: usize = 8;

/// Sets of one record, 32 kB. The records of all shards hold 262,144 questions: what a node answers in ten seconds
/// at 25,000 calls a second, so in about the time of a block.
const SETS: usize = 512;

/// Anchors (heads, mostly) for which a question stays known after it came twice under one: what several clients ask
/// at each head costs one call a head, and not two.
const HOT: u8 = 8;

/// Novelty of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// It was not asked lately, or once under each of other anchors.
    First,
    /// It was asked before under this anchor, or twice under one of the last few.
    Again,
}

/// Question in the form in which it is recorded. Its hashes have a random key: no client can choose the entries that
/// its questions displace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    /// Hash of method and parameters.
    pub hash: u64,
    /// Tag of the anchor under which it is asked; those of consecutive heads differ.
    pub anchor: u8,
    /// Tag of the account that asks.
    pub owner: u16,
}

impl Question {
    /// Creates the record of a question of `owner`, of which `digest` is a part of the digest.
    #[must_use]
    pub(super) fn new(keys: &RandomState, digest: u64, anchor: u64, owner: Owner) -> Self {
        Self {
            hash: keys.hash_one(digest),
            anchor: anchor as u8,
            owner: keys.hash_one(owner) as u16,
        }
    }

    fn fingerprint(&self) -> NonZeroU32 {
        NonZeroU32::MIN | (self.hash >> 32) as u32
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    fingerprint: NonZeroU32,
    /// Account that asked first. Another one that repeats the question cannot make it its own, and displace it as
    /// such.
    owner: u16,
    anchor: u8,
    /// Anchors for which the question stays known.
    heat: u8,
}

/// Entries of the questions whose hash falls into one set, the latest first.
type Set = [Option<Entry>; WAYS];

/// Bounded record of questions.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    /// Empty before the first question: an idle record takes no memory.
    sets: Vec<Set>,
}

impl Sightings {
    /// Records a question, and returns if it was known.
    pub(super) fn see(&mut self, question: Question) -> Sight {
        if self.sets.is_empty() {
            self.sets.resize(SETS, [None; WAYS]);
        }
        see(&mut self.sets[question.hash as usize % SETS], question)
    }
}

fn see(set: &mut Set, question: Question) -> Sight {
    let Question { anchor, owner, .. } = question;
    let fingerprint = question.fingerprint();
    let known = set.iter().enumerate().find_map(|(at, entry)| {
        let entry = entry.filter(|entry| entry.fingerprint == fingerprint)?;
        Some((at, entry))
    });
    let (at, heat, sight, owner) = match known {
        Some((at, entry)) if entry.anchor == anchor => (at, HOT, Sight::Again, entry.owner),
        Some((at, entry)) if entry.heat > 0 => (at, entry.heat - 1, Sight::Again, entry.owner),
        Some((at, entry)) => (at, 0, Sight::First, entry.owner),
        None => (displaced(set, owner), 0, Sight::First, owner),
    };
    set[..=at].rotate_right(1);
    set[0] = Some(Entry {
        fingerprint,
        owner,
        anchor,
        heat,
    });
    sight
}

/// Returns the position of the entry that a new question of `owner` displaces: the oldest one of the account that has
/// most entries, as in Longest Queue Drop of shared buffers (Suter et al. 1998). So an account that asks a million
/// questions displaces its own.
fn displaced(set: &Set, owner: u16) -> usize {
    let entries_of = |other: u16| {
        let own = set.iter().flatten().filter(|entry| entry.owner == other).count();
        own + usize::from(other == owner)
    };
    let shares = set.iter().enumerate().map(|(at, entry)| match entry {
        None => (usize::MAX, at),
        Some(entry) => (entries_of(entry.owner), at),
    });
    shares.max().map_or(0, |(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies questions of one set, written as account, question and anchor ("A1@7"), and returns them with a `+` at
    /// those that were known.
    fn seen(set: &mut Set, questions: &str) -> String {
        let words = questions.split_whitespace().map(|word| {
            let (account, rest) = word.split_at(1);
            let (number, anchor) = rest.split_once('@').unwrap();
            let question = Question {
                hash: number.parse::<u64>().unwrap() << 33,
                anchor: anchor.parse().unwrap(),
                owner: account.as_bytes()[0].into(),
            };
            match see(set, question) {
                Sight::First => word.to_owned(),
                Sight::Again => format!("{word}+"),
            }
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(questions: &str) {
        let plain = questions.replace('+', "");
        assert_eq!(seen(&mut [None; WAYS], &plain), questions);
    }

    #[test]
    fn a_question_is_known_from_the_second_time_under_an_anchor() {
        check("A1@1 A1@1+ A2@1 A1@1+ A2@1+");
        check("A1@1 B1@1+ C1@1+");
        check("A1@1 A1@2 A1@3 A1@3+");
    }

    #[test]
    fn one_that_came_twice_is_known_at_the_next_anchors_and_not_for_good() {
        check("A1@1 A1@1+ A1@2+ A1@3+ A1@4+ A1@5+ A1@6+ A1@7+ A1@8+ A1@9+ A1@10 A1@11");
        check("A1@1 A1@1+ A1@2+ A1@2+ A1@3+ A1@4+ A1@5+ A1@6+ A1@7+ A1@8+ A1@9+ A1@10+ A1@11");
    }

    #[test]
    fn the_oldest_question_goes_first() {
        check("A1@1 A2@1 A3@1 A4@1 A5@1 A6@1 A7@1 A8@1 A9@1 A2@1+ A1@1");
        // A repeated one is as good as new.
        check("A1@1 A2@1 A3@1 A4@1 A5@1 A6@1 A7@1 A8@1 A1@1+ A9@1 A1@1+ A2@1");
    }

    #[test]
    fn an_account_that_asks_much_displaces_its_own_questions() {
        let mut set = [None; WAYS];
        assert_eq!(seen(&mut set, "B1@1 C2@1"), "B1@1 C2@1");
        for number in 100..1_000 {
            seen(&mut set, &format!("A{number}@1"));
        }
        assert_eq!(seen(&mut set, "B1@1 C2@1"), "B1@1+ C2@1+");
        // Nor by asking what the others ask.
        assert_eq!(seen(&mut set, "A1@1 A2@1"), "A1@1+ A2@1+");
        for number in 100..1_000 {
            seen(&mut set, &format!("A{number}@1"));
        }
        assert_eq!(seen(&mut set, "B1@1 C2@1"), "B1@1+ C2@1+");
        // Two that ask much get equal shares.
        for number in 100..1_000 {
            seen(&mut set, &format!("A{number}@1 D{number}000@1"));
        }
        assert_eq!(
            seen(&mut set, "B1@1 A999@1 A998@1 D999000@1"),
            "B1@1+ A999@1+ A998@1+ D999000@1+"
        );
    }

    #[test]
    fn a_record_is_bounded_and_takes_no_memory_before_the_first_question() {
        let keys = RandomState::new();
        let owner = Owner::default();
        let mut record = Sightings::default();
        assert_eq!(record.sets.capacity(), 0);
        let question = |number: u64| Question::new(&keys, number, 1, owner);
        for number in 0..100_000 {
            assert_eq!(record.see(question(number)), Sight::First, "{number}");
        }
        assert_eq!(record.see(question(99_999)), Sight::Again);
        assert_eq!(record.see(question(0)), Sight::First);
        assert_eq!(size_of_val(&record.sets[..]), 32 << 10);
    }
}
