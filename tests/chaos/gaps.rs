//! Waits of clients in a tree, and the faults that explain them.

use std::fmt;
use std::time::{Duration, Instant};

use crate::client::{WAIT, Wait};
use crate::tree::BLOCK_TIME;
use crate::world::Reckoning;

/// Longest time that a fault may be felt after its end: a node that is silent is left, and one that returns is found.
const AFTER: Duration = Duration::from_millis(2_500);

/// Time without an event when one root of two is lost, beyond that between two blocks.
const ROOT_LOST: Duration = Duration::from_millis(500);

/// Time that a busy machine may add to a wait.
const BUSY: Duration = Duration::from_millis(1_000);

/// Time in which some clients may have heard nothing.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    pub began: Instant,
    pub ended: Instant,
    /// Port of the edge whose clients alone may notice it, `None` for all.
    pub edge: Option<u16>,
    /// `true` for a root that was killed.
    pub is_root_killed: bool,
}

/// Longest waits of clients that follow heads, and how many were too long.
#[derive(Debug, Default)]
pub struct Gaps {
    /// Longest part of a wait in which no fault ran that the client may have noticed.
    pub beyond: Duration,
    /// Longest wait amid nothing but the loss of one root, of those that are recorded.
    root_lost: Option<Duration>,
    /// Number of roots that were killed while nothing else failed.
    roots_lost: usize,
    /// Waits whose part without a fault exceeds [`AFTER`] and the time between two blocks.
    pub too_long: Vec<String>,
}

impl Gaps {
    pub fn of(reckoning: &Reckoning, outages: &[Outage]) -> Self {
        let mut gaps = Self::default();
        let alone = |outage: &&Outage| {
            let overlaps = |other: &&Outage| other.began < outage.ended + AFTER && outage.began < other.ended + AFTER;
            outage.is_root_killed && outages.iter().filter(overlaps).count() == 1
        };
        gaps.roots_lost = outages.iter().filter(alone).count();
        for (name, ended) in &reckoning.clients {
            for wait in &ended.diary.waits {
                gaps.add(name, wait, outages);
            }
        }
        gaps
    }

    fn add(&mut self, name: &str, wait: &Wait, outages: &[Outage]) {
        let gap = wait.to - wait.from;
        let felt = |outage: &&Outage| {
            let reaches = outage.edge.is_none_or(|port| wait.ports.contains(&port));
            reaches && outage.began < wait.to && outage.ended + AFTER > wait.from
        };
        let mut near: Vec<&Outage> = outages.iter().filter(felt).collect();
        near.sort_by_key(|outage| outage.began);
        let (mut covered, mut until) = (Duration::ZERO, wait.from);
        for outage in &near {
            let ended = outage.ended.min(wait.to);
            covered += ended.saturating_duration_since(outage.began.max(until));
            until = until.max(ended);
        }
        let beyond = gap.saturating_sub(covered);
        self.beyond = self.beyond.max(beyond);
        if beyond > AFTER + BLOCK_TIME + BUSY {
            self.too_long
                .push(format!("{name}: {gap:.1?}, {beyond:.1?} of it without a fault"));
        }
        if let [only] = near[..]
            && only.is_root_killed
        {
            self.root_lost = self.root_lost.max(Some(gap));
            if gap > BLOCK_TIME + ROOT_LOST + BUSY {
                self.too_long
                    .push(format!("{name}: {gap:.1?} when one root was killed"));
            }
        }
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { beyond, roots_lost, .. } = self;
        write!(
            f,
            "time in a gap without a fault at most {beyond:.1?} (limit {:.1?}); ",
            AFTER + BLOCK_TIME
        )?;
        match self.root_lost {
            Some(longest) => write!(f, "longest gap when one root alone was killed {longest:.1?}")?,
            None => write!(f, "no gap above {WAIT:?} when one root alone was killed")?,
        }
        let limit = BLOCK_TIME + ROOT_LOST;
        write!(
            f,
            " ({roots_lost} times, limit {limit:.1?}); {} too long {:?}",
            self.too_long.len(),
            self.too_long
        )
    }
}
