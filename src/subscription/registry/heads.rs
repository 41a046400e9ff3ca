//! Fan-out of chain events and of fetched contents, in the registry.

use std::sync::Arc;

use super::Registry;
use crate::backplane::ChainEvent;
use crate::chain::{FetchedContent, Header};
use crate::clock::Moment;
use crate::subscription::block_trace::FanOutTrace;
use crate::subscription::flush::{DirtyClients, flush};
use crate::subscription::tables::Tables;

impl Registry {
    /// Fans out chain events in their order, and writes to each client once. Of a head that comes alone only the first
    /// slice of clients gets it: [`Self::fan_out_next`] goes on while this returns `true`.
    #[must_use]
    pub fn fan_out(&self, events: impl Iterator<Item = ChainEvent>) -> bool {
        let mut events = events.peekable();
        let mut trace = None;
        let (is_more, mut due) = self.apply(|tables, due, now| {
            let mut several = false;
            while let Some(event) = events.next() {
                several |= events.peek().is_some();
                if let ChainEvent::Head(header) = &event {
                    // Of several, the last one's clients are known: all are written to together.
                    trace = self.trace_block(header);
                }
                if let Err(loss) = tables.chain(event, due, now) {
                    self.count_loss(loss.label());
                }
                while several && tables.next_heads(due, now) {}
            }
            self.next_heads(tables, due, now)
        });
        if let Some(trace) = &trace {
            trace.matched();
        }
        if is_more {
            self.under_way.lock().clone_from(&trace);
        }
        due.trace(trace);
        flush(due);
        self.published.notify();
        is_more
    }

    /// Fans out the head that is under way to the next slice of clients; `false` after the last one. No other event may
    /// be fanned out in between.
    #[must_use]
    pub fn fan_out_next(&self) -> bool {
        let (is_more, mut due) = self.apply(|tables, due, now| self.next_heads(tables, due, now));
        if self.metrics.recorder.tracer.is_some() {
            let mut under_way = self.under_way.lock();
            due.trace(if is_more { under_way.clone() } else { under_way.take() });
        }
        flush(due);
        if !is_more {
            self.published.notify();
        }
        is_more
    }

    /// Queues a head for the next slice of its subscribers, and behind the last one what may follow the head; returns
    /// `false` then.
    fn next_heads(&self, tables: &mut Tables, due: &mut DirtyClients, now: Moment) -> bool {
        let is_more = tables.next_heads(due, now);
        if is_more {
            self.mark_due(tables, due, now);
        } else {
            self.deliver(tables, due, now);
            self.mark_all(tables, due, now);
        }
        is_more
    }

    /// Takes fetched contents of a block, and delivers contents that are next in order.
    pub fn fetched(&self, fetched: FetchedContent) {
        let tracer = self.metrics.recorder.tracer.as_ref();
        let trace = tracer.and_then(|tracer| self.traces.contents(tracer, fetched.block, fetched.kind));
        let ((), mut due) = self.apply(|tables, due, now| {
            if let Some((kind, why)) = tables.fetched(fetched) {
                self.lost_contents(kind, why);
            }
            self.deliver(tables, due, now);
            self.mark_all(tables, due, now);
        });
        if let Some(trace) = &trace {
            trace.matched();
        }
        due.trace(trace);
        flush(due);
        self.published.notify();
    }

    fn trace_block(&self, header: &Header) -> Option<Arc<FanOutTrace>> {
        let tracer = self.metrics.recorder.tracer.as_ref()?;
        self.traces.block(tracer, header)
    }
}
