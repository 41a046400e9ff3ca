//! The connections to one node that calls may take, and the decision whether it gets a second one. No I/O, no clock.
//!
//! A node has two lanes: the stream's connection carries subscriptions, headers and signs of life; the other one logs,
//! receipts, whole blocks and clients' calls, so that no answer, however long, delays a head (issue 12: a 60 MB answer on a
//! link of 100 Mbit/s stopped heads for 6.1 s).

use std::time::Duration;

/// Attempts to open the second connection before the node counts as one that allows one only.
const ATTEMPTS: u32 = 3;

/// Time after which a second connection is tried again at such a node.
const RETRY: Duration = Duration::from_secs(60);

/// As [`RETRY`], where the node gives up its first connection for the second.
const LONG_RETRY: Duration = Duration::from_secs(600);

/// A stream that is lost so soon after the second connection was begun is lost because of it.
pub(super) const EARLY: Duration = Duration::from_secs(2);

/// The way of calls to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// There is no connection to the node.
    Down,
    /// The second connection is being opened: calls wait for it.
    Opening,
    /// Calls have a connection of their own.
    Two,
    /// Calls share the stream's connection.
    One,
}

impl Lanes {
    /// The word in `/status`.
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

/// A connection that a question of our own takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// The stream's.
    Stream,
    /// The one for calls.
    Calls,
}

impl Lane {
    /// Headers alone are short enough to go beside the stream.
    pub fn of(method: &str, params: &str) -> Self {
        let is_header = match method {
            "eth_getBlockByHash" | "eth_getBlockByNumber" => params.trim_end().ends_with(",false]"),
            "eth_chainId" | "eth_blockNumber" | "eth_syncing" => true,
            _ => false,
        };
        if is_header { Self::Stream } else { Self::Calls }
    }
}

/// The end of an attempt to have a second connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It could not be opened, or the node behind it is another one.
    NotOpened,
    /// It was in use.
    InUse,
    /// The stream's connection was lost first; `early`: within [`EARLY`] of the attempt.
    StreamLost { early: bool },
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another attempt soon, for which calls wait.
    Again,
    /// Calls share the stream's connection for so long.
    Share(Duration),
}

/// Attempts at a second connection.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failed: u32,
    lost_streams: u32,
}

impl Attempts {
    /// Decides what follows.
    pub fn ended(&mut self, how: Ended) -> Next {
        match how {
            Ended::InUse => {
                *self = Self::default();
                Next::Again
            }
            Ended::NotOpened => {
                self.failed += 1;
                if self.failed < ATTEMPTS {
                    return Next::Again;
                }
                Next::Share(RETRY)
            }
            Ended::StreamLost { early: true } => {
                self.lost_streams += 1;
                if self.lost_streams < ATTEMPTS {
                    return Next::Again;
                }
                self.lost_streams = 0;
                Next::Share(LONG_RETRY)
            }
            Ended::StreamLost { early: false } => Next::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter an attempt: `n`ot opened, in `u`se, stream lost `e`arly or `l`ate; the answers are `.` and seconds.
    fn check(story: &str, expect: &str) {
        let mut attempts = Attempts::default();
        let next = story.chars().map(|letter| {
            let how = match letter {
                'n' => Ended::NotOpened,
                'u' => Ended::InUse,
                letter => Ended::StreamLost { early: letter == 'e' },
            };
            match attempts.ended(how) {
                Next::Again => ".".to_owned(),
                Next::Share(span) => span.as_secs().to_string(),
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
