//! How long, and how often, the nodes are asked for what a block holds: the next head waits meanwhile, everybody's. No I/O,
//! no clock.

use std::time::Duration;

use super::source::wait_before;

/// What the nodes have for one block: six seconds in which there is a node to ask. While none is connected there is no next
/// head, and nothing to give up on.
const PATIENCE: Duration = Duration::from_secs(6);

/// Longest wait between two rounds.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// So many times each node says that it does not serve what is asked for before that is believed of all: a balancer may
/// have asked one that is different.
const NOT_SERVED: u32 = 3;

/// So many times the question may break a connection: with it goes what others were to be told over it.
const BROKEN: u32 = 3;

/// What came of asking once, where it was nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// No node was there to be asked.
    Unavailable,
    /// The connection was lost over it, or the answer was too long to be read.
    Broken,
    /// The node is asked too much.
    Throttled,
    /// It says that it has no such method.
    NotServed,
    /// Any other error, no answer in time, or an answer that cannot be this block's.
    Other,
}

/// Why what a block holds cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// No node has it, or none serves it.
    NotServed,
    /// The nodes' rate limits did not let it through.
    Throttled,
}

/// What is left of it for one block.
#[derive(Debug)]
pub(super) struct Patience {
    nodes: u32,
    attempt: u32,
    left: Duration,
    not_served: u32,
    broken: u32,
    throttled: bool,
}

impl Patience {
    /// With so many nodes, which are asked in turn.
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes: u32::try_from(nodes).unwrap_or(u32::MAX).max(1),
            attempt: 0,
            left: PATIENCE,
            not_served: 0,
            broken: 0,
            throttled: false,
        }
    }

    /// Each further attempt asks another node.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How long this attempt may take.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// An attempt took so long, in vain: how long to wait before the next. Nodes that fail are waited for once a round.
    ///
    /// # Errors
    /// [`Absent`]: there is no next.
    pub fn failed(&mut self, why: Failed, took: Duration) -> Result<Duration, Absent> {
        self.attempt += 1;
        let wait = if why == Failed::Unavailable || self.attempt.is_multiple_of(self.nodes) {
            wait_before((self.attempt / self.nodes).max(1)).min(LONGEST_WAIT)
        } else {
            Duration::ZERO
        };
        if why == Failed::Unavailable {
            return Ok(wait);
        }
        self.not_served = if why == Failed::NotServed {
            self.not_served + 1
        } else {
            0
        };
        self.broken += u32::from(why == Failed::Broken);
        self.throttled |= why == Failed::Throttled;
        if self.not_served >= NOT_SERVED.saturating_mul(self.nodes) {
            return Err(Absent::NotServed);
        }
        self.left = self.left.saturating_sub(took + wait);
        if self.left.is_zero() || self.broken >= BROKEN {
            let throttled = self.throttled && self.broken < BROKEN;
            return Err(if throttled {
                Absent::Throttled
            } else {
                Absent::NotServed
            });
        }
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    /// Fails in this way, again and again; how often, how long that takes, and why it is given up.
    fn ask(nodes: usize, mut fails: impl FnMut(u32) -> Failed) -> (u32, Duration, Absent) {
        let mut patience = Patience::new(nodes);
        let mut asked = Duration::ZERO;
        loop {
            assert!(patience.attempt() < 10_000, "it ends");
            asked += QUICK;
            match patience.failed(fails(patience.attempt()), QUICK) {
                Ok(wait) => asked += wait,
                Err(absent) => return (patience.attempt(), asked, absent),
            }
        }
    }

    #[test]
    fn a_question_that_breaks_the_connection_is_asked_three_times_whatever_lies_between() {
        assert_eq!(ask(1, |_| Failed::Broken).0, 3);
        let (attempts, _, why) = ask(1, |attempt| match attempt % 100 {
            99 => Failed::Broken,
            _ => Failed::Unavailable,
        });
        assert_eq!((attempts, why), (300, Absent::NotServed));
    }

    #[test]
    fn only_the_time_with_a_node_counts() {
        let mut patience = Patience::new(1);
        for _ in 0..1_000 {
            assert!(patience.failed(Failed::Unavailable, PATIENCE).is_ok());
        }
        assert_eq!(patience.left(), PATIENCE);
        assert!(patience.failed(Failed::Other, PATIENCE).is_err());
        // Nodes that come and go do not make it longer.
        let mut other = 0;
        ask(1, |attempt| match attempt % 2 {
            0 => Failed::Unavailable,
            _ => {
                other += 1;
                Failed::Other
            }
        });
        assert!(other < 20, "{other}");
    }

    #[test]
    fn what_is_not_there_yet_is_asked_for_six_seconds() {
        for nodes in [1, 3] {
            let (_, asked, why) = ask(nodes, |_| Failed::Other);
            assert!(
                asked > PATIENCE - LONGEST_WAIT && asked < PATIENCE + LONGEST_WAIT,
                "{asked:?}"
            );
            assert_eq!(why, Absent::NotServed);
        }
    }

    #[test]
    fn what_no_node_serves_is_believed_after_three_rounds_long_before_six_seconds() {
        for nodes in [1, 3, 5] {
            let (attempts, asked, why) = ask(nodes, |_| Failed::NotServed);
            assert_eq!((attempts, why), (3 * nodes as u32, Absent::NotServed));
            assert!(asked < Duration::from_millis(200), "{asked:?}");
        }
    }

    #[test]
    fn a_rate_limit_is_called_so() {
        assert_eq!(ask(1, |_| Failed::Throttled).2, Absent::Throttled);
        let mixed = |attempt: u32| if attempt == 0 { Failed::Throttled } else { Failed::Other };
        assert_eq!(ask(2, mixed).2, Absent::Throttled);
        let refused = |attempt: u32| {
            if attempt == 0 {
                Failed::Throttled
            } else {
                Failed::NotServed
            }
        };
        assert_eq!(ask(1, refused).2, Absent::NotServed);
    }
}
