//! Channels from the one history to the dispatcher. In process: two bounded channels.
//!
//! Chain events are never dropped: a full channel makes the ingest wait. Gossip is dropped, and counted, by its
//! sender.

use tokio::sync::mpsc;

pub use crate::chain::ChainEvent;
pub use crate::upstream::{Answers, BestEffortEvent, NodeSubscription, Passthrough, TransactionForm, Wanted};

/// Most chain events that wait for the dispatcher. It takes about a millisecond for a block, so this is seconds of
/// the fastest chain; the bound is for a dispatcher that does not keep up.
const CHAIN_QUEUE: usize = 256;

/// Events that the dispatcher reads.
#[derive(Debug)]
pub struct Feed {
    /// Chain events, in order and complete.
    pub chain: mpsc::Receiver<ChainEvent>,
    /// Best-effort events.
    pub best_effort: mpsc::Receiver<BestEffortEvent>,
}

/// Builds the in-process backplane: the ingest's sender, and the dispatcher's feed.
#[must_use]
pub fn in_process(best_effort: mpsc::Receiver<BestEffortEvent>) -> (mpsc::Sender<ChainEvent>, Feed) {
    let (publisher, chain) = mpsc::channel(CHAIN_QUEUE);
    (publisher, Feed { chain, best_effort })
}
