//! Connections to one node that calls may take, and the decision to open a second one. No I/O, no clock.
//!
//! A node has two lanes: the stream's connection carries subscriptions, headers and liveness checks; the other one
//! carries logs, receipts, whole blocks and clients' calls, so that no answer, however long, delays a head (issue 12: a
//! 60 MB answer on a link of 100 Mbit/s stopped heads for 6.1 s).

use std::time::Duration;

/// Failed attempts to open the second connection before the node counts as one that allows one only.
const ATTEMPTS: u32 = 3;

/// Wait before a second connection is tried again at such a node.
const RETRY: Duration = Duration::from_secs(60);

/// Wait in place of [`RETRY`] at a node that drops its first connection for the second.
const LONG_RETRY: Duration = Duration::from_secs(600);

/// Time from the start of an attempt within which the loss of the stream is blamed on the attempt.
pub(super) const EARLY: Duration = Duration::from_secs(2);

/// State of the connections that calls to a node may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// No connection to the node.
    Down,
    /// Second connection being opened; calls wait for it.
    Opening,
    /// Second connection open, for calls.
    Two,
    /// Single connection, which calls share with the stream.
    One,
}

impl Lanes {
    /// Returns the label in `/status`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Down => "none",
            Self::Opening => "opening",
            Self::Two => "two",
            Self::One => "one",
        }
    }
}

/// Connection that a request of our own takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// The stream's connection.
    Stream,
    /// The connection for calls.
    Calls,
}

impl Lane {
    /// Chooses the lane of a request: only headers are short enough to share the stream's.
    pub(super) fn of(method: &str, params: &str) -> Self {
        let is_header = match method {
            "eth_getBlockByHash" | "eth_getBlockByNumber" => params.trim_end().ends_with(",false]"),
            "eth_chainId" | "eth_blockNumber" | "eth_syncing" => true,
            _ => false,
        };
        if is_header { Self::Stream } else { Self::Calls }
    }
}

/// Outcome of an attempt to have a second connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneEnd {
    /// Second connection not opened, or led to another node.
    NotOpened,
    /// Second connection lost after it was in use.
    InUse,
    /// Stream's connection lost first; `early`: within [`EARLY`] of the attempt.
    StreamLost { early: bool },
}

/// Step after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextLane {
    /// Another attempt soon, for which calls wait.
    Again,
    /// Calls share the stream's connection for this time.
    Share(Duration),
}

/// Attempts at a second connection.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failed: u32,
    lost_streams: u32,
}

impl Attempts {
    /// Decides the step after an attempt.
    pub(super) fn ended(&mut self, how: LaneEnd) -> NextLane {
        match how {
            LaneEnd::InUse => {
                *self = Self::default();
                NextLane::Again
            }
            LaneEnd::NotOpened => {
                self.failed += 1;
                if self.failed < ATTEMPTS {
                    return NextLane::Again;
                }
                NextLane::Share(RETRY)
            }
            LaneEnd::StreamLost { early: true } => {
                self.lost_streams += 1;
                if self.lost_streams < ATTEMPTS {
                    return NextLane::Again;
                }
                self.lost_streams = 0;
                NextLane::Share(LONG_RETRY)
            }
            LaneEnd::StreamLost { early: false } => {
                self.lost_streams = 0;
                NextLane::Again
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Story: a letter for each attempt: `n`ot opened, in `u`se, stream lost `e`arly or `l`ate. Each answer is `.` for
    /// another attempt, or the seconds for which calls share the stream's connection.
    fn check(story: &str, expect: &str) {
        let mut attempts = Attempts::default();
        let next = story.chars().map(|letter| {
            let how = match letter {
                'n' => LaneEnd::NotOpened,
                'u' => LaneEnd::InUse,
                letter => LaneEnd::StreamLost { early: letter == 'e' },
            };
            match attempts.ended(how) {
                NextLane::Again => ".".to_owned(),
                NextLane::Share(span) => span.as_secs().to_string(),
            }
        });
        assert_eq!(next.collect::<Vec<_>>().join(" "), expect, "{story}");
    }

    #[test]
    fn a_node_that_allows_one_connection_gets_one() {
        check("nnn", ". . 60");
        check("nnnnn", ". . 60 60 60");
        check("nnunn", ". . . . .");
        check("nnnunnn", ". . 60 . . . 60");
        check("uuuuu", ". . . . .");
        check("eee", ". . 600");
        check("eeeee", ". . 600 . .");
        check("llllee", ". . . . . .");
        check("eelelee", ". . . . . . .");
        check("eueue", ". . . . .");
    }

    #[test]
    fn long_answers_do_not_go_beside_the_stream() {
        for (method, params, lane) in [
            ("eth_getBlockByHash", r#"["0x5a",false]"#, Lane::Stream),
            ("eth_getBlockByHash", r#"["0x5a",true]"#, Lane::Calls),
            ("eth_getBlockByNumber", r#"["latest",false]"#, Lane::Stream),
            ("eth_getBlockByNumber", r#"["latest",true]"#, Lane::Calls),
            ("eth_getLogs", r#"[{"blockHash":"0x5a"}]"#, Lane::Calls),
            ("eth_getBlockReceipts", r#"["0x5a"]"#, Lane::Calls),
            ("eth_chainId", "", Lane::Stream),
            ("eth_syncing", "", Lane::Stream),
        ] {
            assert_eq!(Lane::of(method, params), lane, "{method} {params}");
        }
    }
}
