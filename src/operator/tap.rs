//! Tap: one client's messages, redacted, for a bounded time.

use std::time::Duration;

use jsonrpsee::SubscriptionSink;
use jsonrpsee::core::SubscriptionResult;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::redaction::redact;
use super::service::send;
use crate::delivery::{Direction, TappedMessage};

/// Time of a tap, if the query has none, and the longest.
const TIME: Duration = Duration::from_secs(30);
const MAX_TIME: Duration = Duration::from_secs(600);

/// Bytes of a tap, if the query has none, and the most.
const BYTES: usize = 256 << 10;
const MAX_BYTES: usize = 4 << 20;

/// Most taps at a time, over all clients.
pub(super) const MAX_TAPS: usize = 4;

/// Bounds of a tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct TapQuery {
    /// Time after which it ends, in seconds: at most 600; 30 if not set.
    pub seconds: Option<u64>,
    /// Bytes of messages after which it ends: at most 4 MiB; 256 KiB if not set.
    pub max_bytes: Option<usize>,
}

/// Item of a tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum TapItem {
    /// Message of the client.
    Received {
        /// Length, without framing and compression.
        bytes: u64,
        /// Text, redacted; `None` for a message above 64 KiB.
        text: Option<String>,
    },
    /// Message to the client: queued, and about to be written.
    Sent {
        /// Length, without framing and compression.
        bytes: u64,
        /// Text, redacted; `None` for a message above 64 KiB.
        text: Option<String>,
    },
    /// Messages that this reader missed, since it was too slow.
    Missed {
        /// Number of messages.
        count: u64,
    },
    /// End of the tap.
    Ended {
        /// `time`, `bytes`, or `closed` if the client has left.
        reason: String,
    },
}

/// Bounds of one tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TapBounds {
    pub(super) time: Duration,
    pub(super) bytes: usize,
}

impl From<TapQuery> for TapBounds {
    fn from(query: TapQuery) -> Self {
        Self {
            time: query.seconds.map_or(TIME, Duration::from_secs).min(MAX_TIME),
            bytes: query.max_bytes.unwrap_or(BYTES).min(MAX_BYTES),
        }
    }
}

/// Sends a tap's messages until it is over, and then the reason.
pub(super) async fn forward(
    sink: &SubscriptionSink,
    mut messages: mpsc::Receiver<TappedMessage>,
    time: Duration,
    is_connected: impl Fn() -> bool,
) -> SubscriptionResult {
    let end = Instant::now() + time;
    let reason = loop {
        let message = tokio::select! {
            () = sink.closed() => return Ok(()),
            () = tokio::time::sleep_until(end) => break "time",
            message = messages.recv() => message,
        };
        let Some(message) = message else {
            break if is_connected() { "bytes" } else { "closed" };
        };
        if message.missed > 0 {
            send(sink, &TapItem::Missed { count: message.missed }).await?;
        }
        let bytes = message.length as u64;
        let text = message.text.map(|text| redact(message.direction, &text));
        let item = match message.direction {
            Direction::Received => TapItem::Received { bytes, text },
            Direction::Sent(_) => TapItem::Sent { bytes, text },
        };
        send(sink, &item).await?;
    };
    send(
        sink,
        &TapItem::Ended {
            reason: reason.to_owned(),
        },
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_is_bounded_whatever_is_asked_for() {
        let bounds = |seconds, max_bytes| {
            let bounds = TapBounds::from(TapQuery { seconds, max_bytes });
            (bounds.time.as_secs(), bounds.bytes)
        };
        assert_eq!(bounds(None, None), (30, 256 << 10));
        assert_eq!(bounds(Some(1), Some(2)), (1, 2));
        assert_eq!(bounds(Some(u64::MAX), Some(usize::MAX)), (600, 4 << 20));
    }
}
