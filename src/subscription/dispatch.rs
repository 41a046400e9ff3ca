//! The fan-out loop: reads the backplane, fans out, wakes.

use std::sync::Arc;

use super::Registry;
use crate::backplane::Feed;

/// Events fanned out before clients are woken. What came in together leaves together, in one write for each client.
const MAX_TOGETHER: usize = 64;

/// Runs until the backplane ends.
pub async fn dispatch(mut feed: Feed, registry: Arc<Registry>) {
    let mut events = Vec::with_capacity(MAX_TOGETHER);
    loop {
        tokio::select! {
            // Blocks before gossip: pending transactions may wait, and may be dropped.
            biased;
            taken = feed.chain.recv_many(&mut events, MAX_TOGETHER) => {
                if taken == 0 {
                    return;
                }
                registry.fan_out(events.drain(..));
            }
            Some(gossip) = feed.gossip.recv() => registry.fan_out_gossip(gossip),
        }
        // A full feed must not keep this thread from the sessions that it wakes.
        tokio::task::yield_now().await;
    }
}
