//! Verdict on a row: what the bystander received before and during the attack, compared with the node's blocks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::Serialize;

use crate::arena::Form;
use crate::bystander::Seen;
use crate::node::Truth;

/// Bound of the process's resident memory in any attack. To be lowered to the sum of the budgets in the settings, and
/// their overhead, as soon as all memory that is kept for clients is counted.
pub const MEMORY_BOUND: u64 = 768 << 20;

/// Measurements in one part of the row.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Part {
    pub calls: usize,
    pub call_p50_ms: f64,
    pub call_max_ms: f64,
    pub resume_max_ms: f64,
    /// Longest time between two heads.
    pub head_gap_ms: f64,
}

/// Result of a row that was played.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    pub name: String,
    pub before: Part,
    pub during: Part,
    pub rss_before: u64,
    pub rss_max: u64,
    /// Calls, transactions and resumes of the bystander that failed.
    pub failed: usize,
    /// Heads and logs that it did not receive, or received twice, or that the node does not have.
    pub lost: usize,
    pub closed: usize,
    /// Counts of what the attackers got.
    pub got: BTreeMap<String, u64>,
    /// Reasons for a failed row.
    pub reasons: Vec<String>,
}

impl Verdict {
    pub fn held(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Returns a failure for a row that could not be played.
    pub fn broken(name: &str, why: String) -> Self {
        Self {
            name: name.to_owned(),
            reasons: vec![why],
            ..Self::default()
        }
    }

    /// Adds the bystander's record, compared with the node's blocks up to the last head that it must have received.
    pub fn judge(&mut self, seen: &Seen, truth: &HashMap<u64, Truth>, last: u64, form: Form, block_time: Duration) {
        self.before = part(seen, false);
        self.during = part(seen, true);
        self.failed = seen.failures.len();
        self.closed = seen.closed.len();
        let mut reasons: Vec<String> = seen.closed.iter().map(|why| format!("closed: {why}")).collect();
        reasons.extend(seen.failures.iter().cloned());
        let lost = losses(seen, truth, last);
        self.lost = lost.len();
        if let Some(first) = lost.first() {
            reasons.push(format!("{} events lost or wrong, first {first}", lost.len()));
        }
        let bound = 2.0 * millis(block_time) + self.before.head_gap_ms;
        if form == Form::Full && self.during.head_gap_ms > bound {
            reasons.push(format!(
                "{:.0} ms between two heads, more than {bound:.0}",
                self.during.head_gap_ms
            ));
        }
        if self.rss_max > MEMORY_BOUND {
            reasons.push(format!(
                "{} MiB resident, more than {}",
                self.rss_max >> 20,
                MEMORY_BOUND >> 20
            ));
        }
        self.reasons.extend(reasons);
        self.reasons = counted(&self.reasons);
    }
}

/// Merges reasons that differ in digits only, with their number.
fn counted(reasons: &[String]) -> Vec<String> {
    let mut kinds: BTreeMap<String, (&String, usize)> = BTreeMap::new();
    for reason in reasons {
        let kind = reason
            .split(|c: char| c.is_ascii_hexdigit())
            .filter(|part| !part.is_empty())
            .collect();
        kinds.entry(kind).or_insert((reason, 0)).1 += 1;
    }
    let line = |(reason, times): (&String, usize)| match times {
        1 => reason.clone(),
        _ => format!("{times} × {reason}"),
    };
    kinds.into_values().map(line).collect()
}

/// Lists missing, repeated and foreign heads and logs. The first head may have come before the subscription to its
/// logs; everything after it must have arrived.
fn losses(seen: &Seen, truth: &HashMap<u64, Truth>, last: u64) -> Vec<String> {
    let Some(first) = seen.heads.first().map(|head| head.number) else {
        return vec!["every head".to_owned()];
    };
    let mut lost = Vec::new();
    let mut got = HashSet::new();
    for head in seen.heads.iter().filter(|head| head.number <= last) {
        let is_true = truth.get(&head.number).is_none_or(|block| block.hash == head.hash);
        if !is_true || !got.insert(head.number) {
            lost.push(format!("head {} {}", head.number, head.hash));
        }
    }
    for number in first + 1..=last {
        let Some(block) = truth.get(&number) else { continue };
        if !got.contains(&number) {
            lost.push(format!("head {number}"));
        }
        let logs = seen.logs.get(&block.hash).copied().unwrap_or(0);
        if block.logs.is_some_and(|count| count != logs) {
            lost.push(format!("logs of {number}: {logs} of {}", block.logs.unwrap_or(0)));
        }
    }
    lost
}

fn part(seen: &Seen, during: bool) -> Part {
    let side = usize::from(during);
    let mut calls = seen.calls[side].clone();
    calls.sort();
    let gaps = seen.heads.windows(2).filter(|pair| pair[1].during == during);
    Part {
        calls: calls.len(),
        call_p50_ms: calls.get(calls.len() / 2).copied().map_or(0.0, millis),
        call_max_ms: calls.last().copied().map_or(0.0, millis),
        resume_max_ms: seen.resumes[side].iter().max().copied().map_or(0.0, millis),
        head_gap_ms: gaps.map(|pair| millis(pair[1].at - pair[0].at)).fold(0.0, f64::max),
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
