//! Reasons to stop before the end, and their exit codes.

use std::fmt;
use std::io;

/// Reason to stop, or to connect again. The exit codes are those of sysexits(3), as for the whole program; docs/tail.md
/// lists them.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// Flags that make no sense.
    #[error("{0}; see headwater tail --help")]
    Usage(String),
    /// No endpoint, or none that is ready.
    #[error("{0}")]
    Unavailable(String),
    /// The connection broke off.
    #[error("{0}")]
    Interrupted(String),
    /// The endpoint does not allow what is asked for, or does not have it: a method, or history that it has pruned.
    #[error("{0}")]
    Refused(String),
    /// The endpoint's words are not those of an Ethereum node.
    #[error("{0}; is this an Ethereum node's WebSocket?")]
    Garbled(String),
    /// Events are lost: what was missed, or what was dropped, can no longer be sent.
    #[error("{0}")]
    Lost(String),
    /// Standard output does not take a line.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

impl TailError {
    /// Returns the exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Lost(_) => 65,
            Self::Unavailable(_) => 69,
            Self::Output(_) => 74,
            Self::Interrupted(_) => 75,
            Self::Garbled(_) => 76,
            Self::Refused(_) => 77,
        }
    }

    /// Checks if another attempt may help.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Interrupted(_))
    }
}

/// Reason to leave what the command does at the moment.
#[derive(Debug)]
pub(super) enum Stop {
    /// All that was asked for is printed, or nobody reads it.
    Done,
    Failed(TailError),
}

impl From<TailError> for Stop {
    fn from(error: TailError) -> Self {
        Self::Failed(error)
    }
}

/// An endpoint in messages: without path and user, which may hold a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint(pub(super) url::Url);

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        match self.0.port() {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}
