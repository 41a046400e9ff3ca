//! Calls of one client that are not answered yet.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::{Outbox, Phase};

/// Place among the calls in flight of one client, released when dropped. Does not keep the socket open after the client
/// has disconnected.
#[derive(Debug)]
pub struct InFlight(Weak<Outbox>);

impl InFlight {
    /// Takes one of `max` places; `None` if no place is free.
    pub(super) fn begin(outbox: &Arc<Outbox>, max: u32) -> Option<Self> {
        // Not `fetch_add` and undo: a concurrent call could be refused because of the temporary count.
        let one_more = |now: u32| (now < max).then(|| now + 1);
        let taken = outbox
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Self(Arc::downgrade(outbox)))
    }

    /// Returns the outbox for the answer; `None` if the client has disconnected.
    #[must_use]
    pub fn outbox(&self) -> Option<Arc<Outbox>> {
        self.0.upgrade()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(outbox) = self.0.upgrade()
            && outbox.in_flight.fetch_sub(1, Ordering::Relaxed) == 1
            && matches!(outbox.phase(), Phase::Flushing(_))
        {
            // The close frame may have waited for this call.
            outbox.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::delivery::outbox::tests::pair;

    #[tokio::test]
    async fn calls_in_flight_are_counted_and_given_back() {
        let (outbox, _client) = pair(10_000, 0).await;
        let first = outbox.begin_call(1);
        assert!(first.is_some());
        assert!(outbox.begin_call(1).is_none());
        drop(first);
        assert!(outbox.begin_call(1).is_some());
    }
}
