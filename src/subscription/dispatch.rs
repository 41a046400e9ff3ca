//! The fan-out loop: hands chain events, fetched contents and best-effort events to the registry, one after the
//! other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::Registry;
use super::flush::{DirtyClients, flush, flush_while};
use crate::backplane::{Answers, BestEffortEvent, Feed};
use crate::chain::ContentFetches;

/// Most chain events fanned out before clients are woken, and most best-effort events taken at once. Events that
/// arrive together leave together, in one write for each client.
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
    let (mut taken, mut gossip) = (Vec::with_capacity(MAX_TOGETHER), VecDeque::with_capacity(MAX_TOGETHER));
    // Clients with best-effort events to write. While they are written to, events that arrive are queued behind those
    // and leave in the same write; a single event leaves at once.
    let mut unwritten = DirtyClients::default();
    let mut early = false;
    let mut look = tokio::time::interval(EARLY_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Blocks before best-effort events: pending transactions may wait, and may be dropped.
            biased;
            count = feed.chain.recv_many(&mut arrived, MAX_TOGETHER) => {
                if count == 0 {
                    flush(unwritten);
                    return;
                }
                let mut is_more = registry.fan_out(arrived.drain(..));
                // Their queues hold the block too: a client is written to by the flush that was promised first.
                flush(std::mem::take(&mut unwritten));
                // Asked for before all clients have the head: logs take a node some time.
                contents.follow(&registry.needed());
                while is_more {
                    is_more = registry.fan_out_next();
                    // A thousand slices must not keep this thread from the sessions that were woken.
                    tokio::task::yield_now().await;
                }
            }
            Some(fetched) = contents.next() => {
                registry.fetched(fetched);
                flush(std::mem::take(&mut unwritten));
                contents.follow(&registry.needed());
            }
            () = registry.needs_more() => contents.follow(&registry.needed()),
            Ok(()) = answers.changed() => registry.answered(&answers.borrow_and_update()),
            _ = look.tick(), if early => early = registry.deliver_early(),
            Some(()) = next_best_effort(&mut feed.best_effort, &mut taken, &mut gossip) => {
                early = registry.fan_out_best_effort(&mut gossip, &mut unwritten);
                flush_while(&mut unwritten, || gossip.is_empty() && is_quiet(&feed));
            }
            () = std::future::ready(()), if !unwritten.is_empty() => flush_while(&mut unwritten, || is_quiet(&feed)),
        }
        // A full feed must not keep this thread from the sessions that were woken.
        tokio::task::yield_now().await;
    }
}

/// Checks if no event waits.
fn is_quiet(feed: &Feed) -> bool {
    feed.chain.is_empty() && feed.best_effort.is_empty()
}

/// Waits until `gossip` has an event; moves all events there that have arrived, by way of `taken`, if it has none.
/// `None` once the channel is closed and everything is taken. Cancel-safe.
async fn next_best_effort(
    best_effort: &mut mpsc::Receiver<BestEffortEvent>,
    taken: &mut Vec<BestEffortEvent>,
    gossip: &mut VecDeque<BestEffortEvent>,
) -> Option<()> {
    if gossip.is_empty() {
        best_effort.recv_many(taken, MAX_TOGETHER).await;
        gossip.extend(taken.drain(..));
    }
    (!gossip.is_empty()).then_some(())
}
