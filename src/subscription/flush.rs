//! Flushes clients whose queues got events in this fan-out. Other modules decide which events are queued.

use std::sync::Arc;

use slab::Slab;
use tokio::runtime::Handle;

use super::block_trace::FanOutTrace;
use super::subscriber::{ClientKey, Subscriber};
use crate::clock::Moment;
use crate::delivery::{Batch, ClientWriter, Compression};

/// Clients with events to write.
#[derive(Debug, Default)]
pub(super) struct DirtyClients {
    writers: Vec<Arc<ClientWriter>>,
    /// Clients that agreed on compression: the first one compresses a shared event, for which the clients in
    /// `writers` should not wait.
    deflating: Vec<Arc<ClientWriter>>,
    /// Bytes of the largest batch, uncompressed.
    heaviest: usize,
    /// `true` if another task writes to all of them.
    elsewhere: bool,
    /// Trace of the event, if it is traced.
    trace: Option<Arc<FanOutTrace>>,
}

impl DirtyClients {
    /// Has all clients written to by another task, or the first group of them by this one.
    pub(super) fn elsewhere(&mut self, elsewhere: bool) {
        self.elsewhere = elsewhere;
    }

    /// Traces the writes.
    pub(super) fn trace(&mut self, trace: Option<Arc<FanOutTrace>>) {
        self.trace = trace;
    }

    /// Adds a client.
    pub(super) fn add(&mut self, writer: &Arc<ClientWriter>) {
        let writers = match writer.compression() {
            Compression::None => &mut self.writers,
            Compression::NoTakeover | Compression::Takeover => &mut self.deflating,
        };
        writers.push(writer.clone());
    }

    /// Returns the ids of the clients.
    pub(super) fn clients(&self) -> impl Iterator<Item = ClientKey> {
        self.writers.iter().chain(&self.deflating).map(|writer| writer.id())
    }

    /// Checks if there is nobody to write to.
    pub(super) fn is_empty(&self) -> bool {
        self.writers.is_empty() && self.deflating.is_empty()
    }

    /// Leaves one group of clients to this task, and has tasks on all cores write to the others.
    fn spread(&mut self) {
        let together = self.together();
        let deflating = std::mem::take(&mut self.deflating);
        if self.writers.is_empty() {
            self.writers = deflating;
        } else if !deflating.is_empty() {
            flush_elsewhere(deflating, self.trace.clone());
        }
        while self.writers.len() > together {
            let writers = self.writers.split_off(self.writers.len() - together);
            flush_elsewhere(writers, self.trace.clone());
        }
    }

    /// Returns the number of clients that one task writes to.
    fn together(&self) -> usize {
        let bounds = if self.heaviest < LARGE {
            SMALL_TOGETHER
        } else {
            LARGE_TOGETHER
        };
        let (fewest, _) = bounds;
        let clients = self.writers.len().max(self.deflating.len());
        if clients <= fewest {
            return fewest;
        }
        together(clients, bounds, workers())
    }
}

/// Fewest and most clients written to by one task: many if each write is small, for a second core costs more than it
/// brings (1.16 against 1.30 of the bare loop's CPU for heads to a thousand clients on two cores); few if each write is
/// long (1.2 to 1.4 against 1.45 for bursts of a hundred logs). Measured by `benches/fanout`.
const SMALL_TOGETHER: (usize, usize) = (256, 1024);
const LARGE_TOGETHER: (usize, usize) = (32, 128);

/// Least size of a long write, in bytes.
const LARGE: usize = 16 << 10;

/// Clients written to between two looks for newer events, see [`flush_while`]: at most a millisecond, for which a block
/// waits.
const LOOK_AFTER: usize = 32;

/// Returns the number of clients that one task writes to, out of `clients`: their share if half of the workers write,
/// within these bounds. The other half is left to sessions and nodes.
fn together(clients: usize, (fewest, most): (usize, usize), workers: usize) -> usize {
    clients.div_ceil((workers / 2).max(1)).clamp(fewest, most)
}

/// Returns the number of the runtime's workers.
fn workers() -> usize {
    Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers())
}

/// Returns the number of tasks that write a small event to so many clients.
pub(super) fn tasks_for(clients: usize) -> usize {
    let (fewest, _) = SMALL_TOGETHER;
    if clients <= fewest {
        return 1;
    }
    let workers = workers();
    clients
        .div_ceil(together(clients, SMALL_TOGETHER, workers))
        .clamp(1, workers)
}

fn flush_elsewhere(writers: Vec<Arc<ClientWriter>>, trace: Option<Arc<FanOutTrace>>) {
    tokio::spawn(async move { flush_group(&writers, trace.as_deref()) });
}

fn flush_group(writers: &[Arc<ClientWriter>], trace: Option<&FanOutTrace>) {
    ClientWriter::flush_all(writers);
    if let Some(trace) = trace
        && !writers.is_empty()
    {
        trace.written();
    }
}

/// Writes to the sockets of these clients: the first group on this task, the others on all cores.
pub(super) fn flush(mut due: DirtyClients) {
    if due.elsewhere {
        for writers in [due.writers, due.deflating] {
            if !writers.is_empty() {
                flush_elsewhere(writers, due.trace.clone());
            }
        }
        return;
    }
    due.spread();
    flush_group(&due.writers, due.trace.as_deref());
}

/// Like [`flush`], but stops when `proceed` returns `false`, at the earliest after the first [`LOOK_AFTER`] clients.
/// The clients that remain in `due` get what is queued for them meanwhile in the same write.
pub(super) fn flush_while(due: &mut DirtyClients, proceed: impl Fn() -> bool) {
    due.spread();
    while !due.writers.is_empty() {
        let next = due.writers.len().min(LOOK_AFTER);
        ClientWriter::flush_all(&due.writers[..next]);
        due.writers.drain(..next);
        if !proceed() {
            break;
        }
    }
    if due.writers.is_empty() {
        due.heaviest = 0;
    }
}

pub(super) fn answered(table: &Slab<Subscriber>) -> impl Iterator<Item = &Subscriber> {
    table.iter().map(|(_, subscriber)| subscriber).filter(is_answered)
}

/// Checks if the answer to a subscriber's `eth_subscribe` is at least queued.
pub(super) fn is_answered(subscriber: &&Subscriber) -> bool {
    subscriber.recipient.is_answered()
}

/// Subscribers from which on it pays to compress the events of one filter for them alone, in a series. A series costs
/// some 15 µs an event for each filter, while an event that is compressed alone costs that once, whatever the number
/// of filters. With 32, fan-out costs at most twice what it costs uncompressed, and only if every event is in dozens
/// of batches: of a thousand clients with a hundred logs a block, 8 to a filter cost 2.1 µs a delivery, 16 cost 1.1,
/// 32 cost 0.66, a thousand 0.17; compressed alone 0.37, not compressed 0.32. The series saves 360 bytes of 750 over
/// the events alone.
const SHARED_BY: usize = 32;

pub(super) fn share_a_series<'a>(subscribers: impl Iterator<Item = &'a Subscriber>) -> bool {
    let reading = subscribers.filter(|subscriber| subscriber.writer.compression() == Compression::Takeover);
    reading.take(SHARED_BY).count() == SHARED_BY
}

pub(super) fn send<'a>(
    subscribers: impl Iterator<Item = &'a Subscriber>,
    batch: &Arc<Batch>,
    due: &mut DirtyClients,
    now: Moment,
) {
    for subscriber in subscribers {
        if subscriber.writer.push_events(&subscriber.recipient, batch, now) {
            due.add(&subscriber.writer);
            due.heaviest = due.heaviest.max(batch.wire_len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_workers_write_unless_a_group_would_be_too_small_or_too_large() {
        for (clients, bounds, workers, expect) in [
            (1000, SMALL_TOGETHER, 1, 1000),
            (1000, SMALL_TOGETHER, 2, 1000),
            (9000, SMALL_TOGETHER, 2, 1024),
            (1000, SMALL_TOGETHER, 4, 500),
            (1000, SMALL_TOGETHER, 8, 256),
            (9000, SMALL_TOGETHER, 32, 563),
            (1000, LARGE_TOGETHER, 2, 128),
            (100, LARGE_TOGETHER, 2, 100),
            (100, LARGE_TOGETHER, 8, 32),
        ] {
            assert_eq!(
                together(clients, bounds, workers),
                expect,
                "{clients} {bounds:?} {workers}"
            );
        }
    }
}
