//! Stream of a client that replays missed events.

use std::sync::Arc;

use crate::chain::{BlockRef, Cursor, Next};
use crate::delivery::Batch;
use crate::subscription::Stream;
use crate::subscription::event_id::{self, Branch, Ids};
use crate::subscription::marked::needs_marks;
use crate::subscription::subscriber::Subscriber;

/// Replayed blocks without an event after which a client of server-sent events is sent its position. Live streams get it
/// behind every block; here a client that loses its connection has at most so many blocks read once more.
const MARK_EVERY: u32 = 64;

#[derive(Debug)]
pub(super) struct ReplayMember {
    pub(super) stream: Stream,
    /// `true` if the pages fetched for this client include the logs that match this stream's filter.
    pub(super) is_asked_for: bool,
    /// Place at which the stream goes on; `None` until the block it starts from is found.
    pub(super) cursor: Option<Cursor>,
    /// Block behind which the stream is, on a branch that another stream of the client was found to have left: to be
    /// located before any stream goes on.
    pub(super) left_behind: Option<BlockRef>,
    pub(super) subscriber: Subscriber,
    /// Blocks since the last position that the client was sent.
    unmarked: u32,
}

impl ReplayMember {
    pub(super) fn new(stream: Stream, cursor: Option<Cursor>, subscriber: Subscriber) -> Self {
        Self {
            stream,
            is_asked_for: false,
            cursor,
            left_behind: None,
            subscriber,
            unmarked: 0,
        }
    }

    /// Returns the ids of the next events.
    pub(super) fn ids(&self) -> Ids {
        if !self.subscriber.writer.is_event_stream() {
            return Ids::None;
        }
        let branch = self.cursor.as_ref().and_then(Cursor::taking_back);
        branch.map_or(Ids::Behind, |(ancestor, tip, up_to)| {
            let tip = (tip.hash, up_to);
            Ids::Within(Branch { ancestor, tip })
        })
    }

    /// Returns the position behind a block, for a client that gets it: behind one with events, and from time to time.
    pub(super) fn mark(&mut self, next: &Next, has_events: bool) -> Option<Arc<Batch>> {
        let block = match next {
            Next::Block(own) => own.header.block,
            Next::Rest(logs, _) => logs.block,
            _ => return None,
        };
        let kind = self.stream.kind();
        if !needs_marks(kind, &self.subscriber) {
            return None;
        }
        self.unmarked += 1;
        if !has_events && self.unmarked < MARK_EVERY {
            return None;
        }
        self.unmarked = 0;
        Some(Batch::mark(kind, &event_id::behind(block.hash)))
    }

    /// Returns the position at which the stream joins the live one, unless the client has it.
    pub(super) fn caught_up(&mut self) -> Option<Arc<Batch>> {
        let block = self.cursor.as_ref().and_then(Cursor::is_behind)?;
        (std::mem::take(&mut self.unmarked) > 0).then(|| Batch::mark(self.stream.kind(), &event_id::behind(block.hash)))
    }
}
