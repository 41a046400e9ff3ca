//! Spans of a block's way to the sockets: the block itself, and its contents.
//!
//! ```text
//! block   publish         announced by the node  ..  handed to the registry     | contents  fetch   published .. arrived
//!         match           ..  queued for the first slice of clients             |
//!         first_socket    ..  written to the first group of clients             |
//!         last_socket     ..  written to the last group                         |
//! ```
//!
//! A sampled block has one trace; nothing here runs once per client.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use alloy_primitives::B256;
use parking_lot::Mutex;

use crate::chain::{BlockRef, ContentKind, Header};
use crate::telemetry::Tracer;
use crate::telemetry::trace::{SpanKind, SpanPlace};

/// Most traced blocks whose contents may still arrive.
const KEPT: usize = 64;

/// Traced blocks.
#[derive(Debug, Default)]
pub(super) struct BlockTraces {
    recent: Mutex<VecDeque<Traced>>,
}

/// Block that was published, with the place of its span.
#[derive(Clone, Copy, Debug)]
struct Traced {
    block: BlockRef,
    place: SpanPlace,
    published: SystemTime,
}

impl BlockTraces {
    /// Begins the trace of a block that is about to be fanned out; `None` if the block is not sampled.
    pub(super) fn block(&self, tracer: &Arc<Tracer>, header: &Header) -> Option<Arc<FanOutTrace>> {
        let place = tracer.begin(None)?;
        let published = SystemTime::now();
        let mut recent = self.recent.lock();
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(Traced {
            block: header.block,
            place,
            published,
        });
        drop(recent);
        let announced = published.checked_sub(header.seen.elapsed()).unwrap_or(published);
        let names = ("block", "publish");
        Some(FanOutTrace::new(
            tracer,
            place,
            names,
            header.block,
            announced,
            published,
        ))
    }

    /// Begins the span of contents that have arrived; `None` if their block is not traced.
    pub(super) fn contents(&self, tracer: &Arc<Tracer>, block: B256, kind: ContentKind) -> Option<Arc<FanOutTrace>> {
        let recent = self.recent.lock();
        let Traced {
            block,
            place,
            published,
        } = *recent.iter().find(|own| own.block.hash == block)?;
        drop(recent);
        let names = (kind.label(), "fetch");
        let arrived = SystemTime::now();
        Some(FanOutTrace::new(
            tracer,
            place.child(),
            names,
            block,
            published,
            arrived,
        ))
    }
}

/// Fan-out of a block or of its contents; its spans end with the last handle, when the last client was written to.
#[derive(Debug)]
pub(super) struct FanOutTrace {
    tracer: Arc<Tracer>,
    place: SpanPlace,
    /// Names of the span, and of its first part.
    names: (&'static str, &'static str),
    block: BlockRef,
    begin: SystemTime,
    arrived: SystemTime,
    matched: OnceLock<SystemTime>,
    first_socket: OnceLock<SystemTime>,
}

impl FanOutTrace {
    fn new(
        tracer: &Arc<Tracer>,
        place: SpanPlace,
        names: (&'static str, &'static str),
        block: BlockRef,
        begin: SystemTime,
        arrived: SystemTime,
    ) -> Arc<Self> {
        Arc::new(Self {
            tracer: tracer.clone(),
            place,
            names,
            block,
            begin,
            arrived,
            matched: OnceLock::new(),
            first_socket: OnceLock::new(),
        })
    }

    /// Records that the first clients have it in their queues; only the first call counts.
    pub(super) fn matched(&self) {
        self.matched.get_or_init(SystemTime::now);
    }

    /// Records that a group of clients was written to; only the first call counts.
    pub(super) fn written(&self) {
        self.first_socket.get_or_init(SystemTime::now);
    }
}

impl Drop for FanOutTrace {
    fn drop(&mut self) {
        let last = SystemTime::now();
        let mut begin = self.arrived;
        let mut part = |name, end: Option<SystemTime>| {
            if let Some(end) = end {
                let span = self.place.child().span(name, SpanKind::Internal, begin, end);
                begin = end;
                self.tracer.end(span);
            }
        };
        part("match", self.matched.get().copied());
        // Nobody was written to: no client subscribes to it, or all queues wait for something else.
        let first = self.first_socket.get().copied();
        part("first_socket", first);
        part("last_socket", first.map(|_| last));
        let (name, first_part) = self.names;
        let arrival = self.place.child();
        self.tracer
            .end(arrival.span(first_part, SpanKind::Internal, self.begin, self.arrived));
        let mut span = self.place.span(name, SpanKind::Internal, self.begin, last);
        span.attributes = vec![
            ("headwater.block.number", self.block.number.into()),
            ("headwater.block.hash", self.block.hash.to_string().into()),
        ];
        self.tracer.end(span);
    }
}
