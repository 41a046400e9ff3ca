//! Tests of the checker: it finds no fault in correct records, and finds every single fault injected into one.

use std::collections::HashMap;

use alloy_primitives::{Address, B256, keccak256};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use history::{CanonBlock, Canonical, Delivered, Log, Record, Start, Verdict, check, check_cut};

#[path = "mod.rs"]
mod history;

/// A chain with reorgs, and a correct server with one client.
struct World {
    rng: StdRng,
    blocks: HashMap<B256, CanonBlock>,
    canonical: Vec<B256>,
    heads: bool,
    logs: bool,
    filter: fn(&Log) -> bool,
    delivered: Vec<Delivered>,
    /// Logs delivered and not removed, by block.
    live_logs: Vec<(B256, Vec<Log>)>,
    /// Blocks dropped last, oldest first.
    left: Vec<B256>,
    /// `true` if block numbers may have holes.
    holes: bool,
}

impl World {
    fn new(seed: u64, heads: bool, logs: bool, filter: fn(&Log) -> bool, holes: bool) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            blocks: HashMap::new(),
            canonical: Vec::new(),
            heads,
            logs,
            filter,
            delivered: vec![Delivered::Subscribed {
                heads,
                logs,
                from: Start::Live,
            }],
            live_logs: Vec::new(),
            left: Vec::new(),
            holes,
        };
        let genesis = world.block(99, B256::ZERO);
        world.canonical.push(genesis);
        world
    }

    fn block(&mut self, number: u64, parent: B256) -> B256 {
        let hash = B256::from(self.rng.random::<[u8; 32]>());
        let logs = (0..self.rng.random_range(0..4))
            .map(|index| Log {
                index,
                address: Address::repeat_byte(self.rng.random_range(0..3)),
                topics: vec![B256::repeat_byte(self.rng.random_range(0..3))],
                data: keccak256(hash),
            })
            .collect();
        self.blocks.insert(
            hash,
            CanonBlock {
                number,
                hash,
                parent,
                logs,
            },
        );
        hash
    }

    fn extend(&mut self, count: u64) {
        for _ in 0..count {
            let tip = self.canonical[self.canonical.len() - 1];
            let gap = if self.holes && self.rng.random_ratio(1, 3) {
                self.rng.random_range(1..4)
            } else {
                0
            };
            let block = self.block(self.blocks[&tip].number + 1 + gap, tip);
            self.adopt(block);
        }
    }

    fn adopt(&mut self, hash: B256) {
        self.canonical.push(hash);
        let block = self.blocks[&hash].clone();
        if self.heads {
            self.delivered.push(Delivered::Head {
                number: block.number,
                hash,
                parent: block.parent,
            });
        }
        if self.logs {
            let logs: Vec<_> = block.logs.iter().filter(|log| (self.filter)(log)).cloned().collect();
            self.tell(&block, &logs, false);
            self.live_logs.push((hash, logs));
        }
    }

    fn tell(&mut self, block: &CanonBlock, logs: &[Log], removed: bool) {
        let block = (block.number, block.hash);
        let delivered = logs.iter().cloned().map(|log| Delivered::Log { block, log, removed });
        self.delivered.extend(delivered);
    }

    /// Drops the newest `depth` blocks and removes their logs, the oldest block's first.
    fn drop_blocks(&mut self, depth: usize) {
        let from = (self.canonical.len() - depth).max(1);
        self.left = self.canonical.split_off(from);
        for hash in self.left.clone() {
            if let Some(at) = self.live_logs.iter().position(|(block, _)| *block == hash) {
                let (_, logs) = self.live_logs.remove(at);
                self.tell(&self.blocks[&hash].clone(), &logs, true);
            }
        }
    }

    fn reconnect(&mut self) {
        let last = self.delivered.iter().rev().find_map(|delivered| match delivered {
            Delivered::Log {
                block,
                log,
                removed: false,
            } => Some(Start::After(block.1, Some(log.index))),
            _ => None,
        });
        let from = last.unwrap_or(Start::FromBlock(100));
        self.delivered.push(Delivered::Subscribed {
            heads: self.heads,
            logs: self.logs,
            from,
        });
    }

    /// Runs the chain and returns record and history; with `returns`, the chain also returns to dropped branches.
    fn live(mut self, returns: bool) -> (Record, Canonical) {
        self.extend(3);
        for _ in 0..self.rng.random_range(2..7) {
            let depth = self.rng.random_range(1..5);
            match self.rng.random_range(0..6) {
                0..2 => {
                    self.drop_blocks(depth);
                    self.extend(depth as u64 + 1);
                }
                2 if returns => {
                    self.drop_blocks(depth);
                    for block in self.left.clone() {
                        self.adopt(block);
                    }
                }
                3 if returns => {
                    self.drop_blocks(depth);
                    let left = self.left.clone();
                    self.extend(1);
                    self.drop_blocks(1);
                    for block in left {
                        self.adopt(block);
                    }
                }
                4 => self.reconnect(),
                _ => self.extend(2),
            }
        }
        self.extend(1);
        let (canonical, orphans) = self
            .blocks
            .into_values()
            .partition::<Vec<_>, _>(|block| self.canonical.contains(&block.hash));
        let mut canonical = Canonical {
            blocks: canonical,
            orphans,
            ..Canonical::default()
        };
        canonical.blocks.sort_by_key(|block| block.number);
        if returns {
            canonical.rewound = canonical
                .orphans
                .iter()
                .chain(&canonical.blocks)
                .map(|block| block.hash)
                .collect();
        }
        (
            Record {
                name: "client".into(),
                delivered: self.delivered,
            },
            canonical,
        )
    }
}

type Filter = fn(&Log) -> bool;

const KINDS: [(bool, bool, Filter); 4] = [
    (true, false, |_| false),
    (false, true, |_| true),
    (true, true, |_| true),
    (true, true, |log| log.address == Address::repeat_byte(1)),
];

fn each_record(seeds: u64, returns: bool, mut look: impl FnMut(Record, Canonical, Filter)) {
    for seed in 0..seeds {
        for (holes, (heads, logs, filter)) in [false, true]
            .into_iter()
            .flat_map(|holes| KINDS.map(|kind| (holes, kind)))
        {
            let (mut record, canonical) = World::new(seed, heads, logs, filter, holes).live(returns);
            record.name = format!("seed {seed}, heads {heads}, logs {logs}, holes {holes}");
            look(record, canonical, filter);
        }
    }
}

/// Injects a fault at every position of every record; the verdict must count it in `counter` and, with few
/// exceptions, nowhere else.
#[track_caller]
fn each_fault_is_found(
    seeds: u64,
    counter: fn(&Verdict) -> u64,
    fault: impl Fn(&mut Vec<Delivered>, usize, &Canonical) -> bool,
) {
    let (mut faults, mut counted_again) = (0, 0);
    each_record(seeds, false, |record, canonical, filter| {
        for at in 0..record.delivered.len() {
            let mut broken = record.clone();
            if !fault(&mut broken.delivered, at, &canonical) {
                continue;
            }
            let verdict = check(&broken, &canonical, filter, 100);
            faults += 1;
            if counter(&verdict) == 0 {
                show(&broken, at);
                panic!("fault {at} of {} was not found: {verdict}", record.name);
            }
            let total = verdict.lost + verdict.duplicated + verdict.misordered + verdict.contradictory;
            if total > 1 {
                counted_again += 1;
            }
        }
    });
    assert!(faults > 1000, "{faults}");
    assert!(
        counted_again * 100 < faults,
        "one fault looks like many: {counted_again} of {faults}"
    );
}

fn show(record: &Record, fault: usize) {
    for (at, delivered) in record.delivered.iter().enumerate() {
        let mark = if at == fault { " <- fault" } else { "" };
        match delivered {
            Delivered::Head { number, hash, parent } => {
                eprintln!(
                    "head {number} {} < {}{mark}",
                    &hash.to_string()[..10],
                    &parent.to_string()[..10]
                );
            }
            Delivered::Log { block, log, removed } => {
                let word = if *removed { "undo" } else { "log" };
                eprintln!("{word} {} {} {}{mark}", block.0, &block.1.to_string()[..10], log.index);
            }
            Delivered::Subscribed { from, .. } => eprintln!("subscribed {from:?}{mark}"),
        }
    }
}

fn is_event(delivered: &Delivered) -> bool {
    !matches!(delivered, Delivered::Subscribed { .. })
}

#[test]
fn right_records_are_clean() {
    for returns in [false, true] {
        each_record(200, returns, |record, canonical, filter| {
            let verdict = check(&record, &canonical, filter, 100);
            if !verdict.is_clean() {
                show(&record, usize::MAX);
                panic!("{verdict}");
            }
        });
    }
}

#[test]
fn right_records_are_clean_wherever_they_end() {
    each_record(60, true, |record, canonical, filter| {
        for end in 0..record.delivered.len() {
            let mut cut = record.clone();
            cut.delivered.truncate(end);
            let verdict = check_cut(&cut, &canonical, filter, 100);
            if !verdict.is_clean() {
                show(&cut, usize::MAX);
                panic!("{end}: {verdict}");
            }
        }
    });
}

#[test]
fn right_records_are_clean_where_dropped_blocks_are_unknown() {
    each_record(200, false, |record, canonical, filter| {
        let canonical = Canonical {
            orphans: Vec::new(),
            ..canonical
        };
        let verdict = check(&record, &canonical, filter, 100);
        // Misordered is allowed: without the tree, the removals of two consecutive reorgs look like those of one.
        assert_eq!(
            (verdict.lost, verdict.duplicated, verdict.contradictory),
            (0, 0, 0),
            "{verdict}"
        );
    });
}

/// Returns `true` if a head is on the client's branch after the events `delivered`.
fn stands(delivered: &[Delivered], head: B256) -> bool {
    let mut branch: Vec<B256> = Vec::new();
    for delivered in delivered {
        if let Delivered::Head { hash, parent, .. } = delivered {
            branch.truncate(branch.iter().position(|block| block == parent).map_or(0, |at| at + 1));
            branch.push(*hash);
        }
    }
    branch.contains(&head)
}

#[test]
fn whatever_is_lost_is_found() {
    each_fault_is_found(
        30,
        |verdict| verdict.lost,
        |delivered, at, _| {
            if let Delivered::Head { hash, .. } = delivered[at] {
                let trace = delivered[at + 1..].iter().find_map(|delivered| match delivered {
                    Delivered::Head { parent, .. } => Some(*parent == hash),
                    Delivered::Log {
                        block, removed: false, ..
                    } => Some(block.1 == hash),
                    _ => None,
                });
                // A head without logs that was dropped at once: the client cannot know of it, and need not.
                if trace == Some(false) {
                    return false;
                }
            }
            is_event(&delivered[at]) && {
                delivered.remove(at);
                true
            }
        },
    );
}

#[test]
fn whatever_is_told_twice_is_found() {
    for later in [1, 2, 7] {
        each_fault_is_found(
            20,
            |verdict| verdict.duplicated,
            |delivered, at, _| {
                if !is_event(&delivered[at]) || at + later > delivered.len() {
                    return false;
                }
                // A head of a branch dropped meanwhile looks like a return to that branch.
                if let Delivered::Head { hash, .. } = delivered[at]
                    && !stands(&delivered[..at + later], hash)
                {
                    return false;
                }
                delivered.insert(at + later, delivered[at].clone());
                true
            },
        );
    }
}

/// Returns `true` if another branch starts between `lower` and its descendant `upper`: the chain may have dropped the
/// two one after the other, and a client that receives only the removals cannot tell the difference.
fn parts_between(canonical: &Canonical, lower: B256, upper: B256) -> bool {
    let blocks = || canonical.orphans.iter().chain(&canonical.blocks);
    let mut hash = upper;
    while hash != lower {
        let Some(block) = blocks().find(|block| block.hash == hash) else {
            return false;
        };
        if blocks().filter(|other| other.parent == block.parent).count() > 1 {
            return true;
        }
        hash = block.parent;
    }
    false
}

#[test]
fn whatever_is_swapped_is_found() {
    let removed = |delivered: &Delivered| match delivered {
        Delivered::Log {
            block, removed: true, ..
        } => Some(block.1),
        _ => None,
    };
    each_fault_is_found(
        30,
        |verdict| verdict.misordered,
        |delivered, at, canonical| {
            let Some(next) = delivered
                .get(at + 1)
                .filter(|next| is_event(&delivered[at]) && is_event(next))
            else {
                return false;
            };
            if let (Some(lower), Some(upper)) = (removed(&delivered[at]), removed(next))
                && parts_between(canonical, lower, upper)
            {
                return false;
            }
            delivered.swap(at, at + 1);
            true
        },
    );
}

#[test]
fn what_cannot_be_is_found() {
    let changed: [fn(&mut Delivered) -> bool; 2] = [
        // The removal of a log that was never delivered.
        |delivered| match delivered {
            Delivered::Log { removed, log, .. } if *removed => {
                log.index += 100;
                true
            }
            _ => false,
        },
        // A log that differs from the block's.
        |delivered| match delivered {
            Delivered::Log { removed, log, .. } if !*removed => {
                log.data = B256::repeat_byte(7);
                true
            }
            _ => false,
        },
    ];
    for change in changed {
        each_record(30, false, |record, canonical, filter| {
            for at in 0..record.delivered.len() {
                let mut broken = record.clone();
                if change(&mut broken.delivered[at]) {
                    let verdict = check(&broken, &canonical, filter, 100);
                    assert!(verdict.contradictory > 0 && verdict.lost > 0, "{verdict}");
                }
            }
        });
    }
}

#[test]
fn removals_that_come_newest_block_first_are_out_of_order() {
    let (mut changed, mut found) = (0, 0);
    each_record(60, false, |mut record, canonical, filter| {
        let removed = |delivered: &Delivered| match delivered {
            Delivered::Log {
                block, removed: true, ..
            } => Some(*block),
            _ => None,
        };
        let before = record.delivered.clone();
        for run in record
            .delivered
            .chunk_by_mut(|a, b| removed(a).is_some() && removed(b).is_some())
        {
            run.sort_by_key(|delivered| removed(delivered).map(|block| std::cmp::Reverse(block.0)));
        }
        changed += usize::from(before != record.delivered);
        found += usize::from(check(&record, &canonical, filter, 100).misordered > 0);
    });
    // Except for some with a branch between the two blocks: there the chain may have dropped one before the other.
    assert!(found * 10 > changed * 8 && found > 20, "{found} of {changed}");
}
