//! Calls of one client that are not answered yet.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::{ClientWriter, Phase};

/// Place among the calls in flight of one client, released when dropped. Does not keep the socket open after the client
/// has disconnected.
#[derive(Debug)]
pub struct InFlight(Weak<ClientWriter>);

impl InFlight {
    /// Takes one of `max` places; `None` if no place is free.
    pub(super) fn begin(writer: &Arc<ClientWriter>, max: u32) -> Option<Self> {
        // Not `fetch_add` and undo: a concurrent call could be refused because of the temporary count.
        let one_more = |now: u32| (now < max).then(|| now + 1);
        let taken = writer
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Self(Arc::downgrade(writer)))
    }

    /// Returns the writer for the answer; `None` if the client has disconnected.
    #[must_use]
    pub fn writer(&self) -> Option<Arc<ClientWriter>> {
        self.0.upgrade()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(writer) = self.0.upgrade()
            && writer.in_flight.fetch_sub(1, Ordering::Relaxed) == 1
            && matches!(writer.phase(), Phase::Flushing(_))
        {
            // The close frame may have waited for this call.
            writer.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::delivery::writer::tests::pair;

    #[tokio::test]
    async fn calls_in_flight_are_counted_and_given_back() {
        let (writer, _client) = pair(10_000, Duration::ZERO).await;
        let first = writer.begin_call(1);
        assert!(first.is_some());
        assert!(writer.begin_call(1).is_none());
        drop(first);
        assert!(writer.begin_call(1).is_some());
    }
}
