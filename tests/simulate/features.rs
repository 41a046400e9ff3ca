//! Properties of a simulation's chain and nodes that differ from Ethereum's.
//!
//! Each feature has its own random generator, so that it changes neither another feature nor the meaning of older
//! seeds.

use std::fmt;

use headwater::devnet::{Config, Faults, HoleAnswer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// One in this many blocks skips numbers; nodes answer for the missing numbers in this way.
    pub holes: Option<(u32, HoleAnswer)>,
    /// One in `.0` blocks has an empty bloom, and one in `.1` a bloom with too many bits; 0 means none.
    pub blooms: Option<(u32, u32)>,
    /// The defect of announcements, and the only node that has it; `None` means all nodes.
    pub lies: Option<(Lie, Option<usize>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    OtherHash,
    NoBloom,
    Both,
}

/// Names for choosing features.
const NAMES: [&str; 3] = ["holes", "blooms", "lies"];

impl Features {
    /// Returns the features of a seed: the named ones ("all", "none", "holes,lies"), or each with a probability of
    /// one third.
    pub fn draw(seed: u64, named: Option<&str>) -> Self {
        if let Some(words) = named {
            let known = |word: &str| NAMES.contains(&word) || word == "all" || word == "none";
            assert!(words.split(',').all(known), "{words:?}: not of {NAMES:?}, all, none");
        }
        let on = |name: &str| {
            let index = NAMES.iter().position(|one| *one == name).expect("a known name") as u64;
            let mut rng = StdRng::seed_from_u64(seed.rotate_left(20) ^ (0xfea7 + index));
            let drawn = rng.random_ratio(1, 3);
            let chosen = named.map_or(drawn, |words| {
                words.split(',').any(|word| word == name || word == "all")
            });
            chosen.then_some(rng)
        };
        Self {
            holes: on("holes").map(|mut rng| {
                let answer = [HoleAnswer::Null, HoleAnswer::Error, HoleAnswer::Before][rng.random_range(0..3)];
                ([2, 4, 10][rng.random_range(0..3)], answer)
            }),
            blooms: on("blooms").map(|mut rng| [(1, 0), (4, 0), (0, 1), (0, 4), (4, 4)][rng.random_range(0..5)]),
            lies: on("lies").map(|mut rng| {
                let lie = [Lie::OtherHash, Lie::NoBloom, Lie::Both][rng.random_range(0..3)];
                (lie, rng.random_ratio(1, 2).then_some(0))
            }),
        }
    }

    /// Sets the features in the configuration of a node.
    pub fn config(&self, config: &mut Config) {
        config.holes = self.holes.map_or(0, |(one_in, _)| one_in);
        (config.empty_blooms, config.greedy_blooms) = self.blooms.unwrap_or_default();
    }

    /// Returns the permanent faults of this node.
    pub fn faults(&self, node: usize) -> Faults {
        let lie = self.lies.filter(|(_, liar)| liar.is_none_or(|liar| liar == node));
        let lie = lie.map(|(lie, _)| lie);
        Faults {
            hole_answer: self.holes.map(|(_, answer)| answer).unwrap_or_default(),
            announce_other_hash: matches!(lie, Some(Lie::OtherHash | Lie::Both)),
            announce_without_bloom: matches!(lie, Some(Lie::NoBloom | Lie::Both)),
            ..Faults::default()
        }
    }

    /// Returns `true` if only the block's receipts can reveal an answer with missing logs.
    pub fn hides_logs(&self) -> bool {
        self.blooms.is_some_and(|(empty, _)| empty > 0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { holes, blooms, lies } = self;
        if *self == Self::default() {
            return f.write_str("no features");
        }
        let mut words = Vec::new();
        words.extend(holes.map(|(one_in, answer)| format!("holes (1 in {one_in}, answered with {answer:?})")));
        words.extend(blooms.map(|(empty, greedy)| format!("blooms (1 in {empty} empty, 1 in {greedy} greedy)")));
        words.extend(lies.map(|(lie, by)| format!("lies ({lie:?} by {by:?})")));
        f.write_str(&words.join(", "))
    }
}
