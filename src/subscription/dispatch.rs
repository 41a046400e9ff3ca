//! The fan-out loop: hands chain events, fetched contents and best-effort events to the registry, one after the
//! other.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::Registry;
use crate::backplane::{Answers, Feed};
use crate::chain::ContentFetches;

/// Most chain events fanned out before clients are woken. Events that arrive together leave together, in one write
/// for each client.
const MAX_TOGETHER: usize = 64;

/// Interval of checks for `eth_subscribe` answers that early events wait for: about the hold-off of a new
/// subscription (E5). Runs only while there are early events.
const EARLY_LOOK: Duration = Duration::from_millis(10);

/// Runs until the backplane closes. `answers` are the answers of the node in use to subscriptions that are passed
/// through.
pub async fn dispatch(
    mut feed: Feed,
    mut answers: watch::Receiver<Answers>,
    registry: Arc<Registry>,
    mut contents: ContentFetches,
) {
    let mut arrived = Vec::with_capacity(MAX_TOGETHER);
    let mut early = false;
    let mut look = tokio::time::interval(EARLY_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Blocks before best-effort events: pending transactions may wait, and may be dropped.
            biased;
            taken = feed.chain.recv_many(&mut arrived, MAX_TOGETHER) => {
                if taken == 0 {
                    return;
                }
                registry.fan_out(arrived.drain(..));
                contents.follow(&registry.needed());
            }
            Some(fetched) = contents.next() => {
                registry.fetched(fetched);
                contents.follow(&registry.needed());
            }
            () = registry.needs_more() => contents.follow(&registry.needed()),
            Ok(()) = answers.changed() => registry.answered(&answers.borrow_and_update()),
            _ = look.tick(), if early => early = registry.tell_early(),
            Some(best_effort) = feed.best_effort.recv() => early = registry.fan_out_gossip(best_effort),
        }
        // A full feed must not keep this thread from the sessions that were woken.
        tokio::task::yield_now().await;
    }
}
