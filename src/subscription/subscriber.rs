//! A subscription in the fan-out.

use std::sync::Arc;

use crate::delivery::{ClientWriter, Phase, Recipient};

/// One subscription of one client.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    pub recipient: Arc<Recipient>,
    pub writer: Arc<ClientWriter>,
}

/// Id of a connection, see [`ClientWriter::id`].
pub(super) type ClientKey = u64;

/// Checks if the subscriber's connection takes more events.
pub(super) fn is_open(subscriber: &Subscriber) -> bool {
    subscriber.writer.phase() == Phase::Open
}
