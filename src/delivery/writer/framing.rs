//! Clients of WebSocket and of server-sent events, as far as a writer differs.

use bytes::Bytes;

use super::ClientWriter;
use crate::delivery::{Framing, event_stream};

/// Ping without payload.
const PING: Bytes = Bytes::from_static(&[0x89, 0]);

impl ClientWriter {
    /// Checks if the client gets server-sent events.
    #[must_use]
    pub fn is_event_stream(&self) -> bool {
        self.framing == Framing::EventStream
    }

    /// Queues a sign of life ahead of all data and flushes: a ping, which the client answers, or a comment. A response has
    /// no comment before its head.
    pub fn ping(&self) {
        match self.framing {
            Framing::WebSocket => self.control(PING),
            Framing::EventStream if self.state.lock().sent.bytes > 0 => self.control(event_stream::COMMENT),
            Framing::EventStream => {}
        }
    }
}
