//! From the one history to those who fan it out. In process: two bounded channels.
//!
//! Chain events are never dropped: a full channel makes the ingest wait. Gossip is dropped, and counted, by who sends it.

use tokio::sync::mpsc;

pub use crate::chain::ChainEvent;
pub use crate::upstream::{Answers, Gossip, NodeSubscription, Passed, TransactionForm, Wanted};

/// Chain events that wait for the dispatcher. It takes a block in about a millisecond, so this is seconds of the fastest
/// chain; the bound is there for the day when it does not.
const CHAIN_QUEUE: usize = 256;

/// What the dispatcher reads.
#[derive(Debug)]
pub struct Feed {
    /// In order and complete.
    pub chain: mpsc::Receiver<ChainEvent>,
    /// Best effort.
    pub gossip: mpsc::Receiver<Gossip>,
}

/// The in-process backplane: where the ingest publishes, and what the dispatcher reads.
#[must_use]
pub fn in_process(gossip: mpsc::Receiver<Gossip>) -> (mpsc::Sender<ChainEvent>, Feed) {
    let (publisher, chain) = mpsc::channel(CHAIN_QUEUE);
    (publisher, Feed { chain, gossip })
}
