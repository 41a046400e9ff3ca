//! A subscription as the fan-out sees it.

use std::sync::Arc;

use crate::delivery::{Outbox, Phase, Recipient};

/// One subscription of one client.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    pub recipient: Arc<Recipient>,
    pub outbox: Arc<Outbox>,
}

/// See [`Outbox::id`].
pub(super) type ClientKey = u64;

/// Whether its client takes more.
pub(super) fn is_open(subscriber: &Subscriber) -> bool {
    subscriber.outbox.phase() == Phase::Open
}
