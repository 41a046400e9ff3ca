//! Feed of a webhook: a session within the process, whose events are those of `GET /events`.
//!
//! The session bounds its own queue. A feed that is not read for long is dropped by its user, who opens another one at its
//! position; old blocks come from history as fast as they are read.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::event_text::{EventText, Item, TooLong};
use crate::delivery::Pipe;
use crate::jsonrpc::{INTERNAL_ERROR, INVALID_PARAMS, RESOURCE_NOT_FOUND, error};
use crate::server::{EventsRequest, StreamStart};
use crate::session::{self, Respond, Services, StreamRefusal};
use crate::subscription::UNKNOWN_BLOCK;

/// Open stream of events.
#[derive(Debug)]
pub(super) struct Feed {
    pipe: Pipe,
    text: EventText,
}

/// Reason why there is no feed.
#[derive(Debug)]
pub(super) enum NoFeed {
    /// The position cannot be served any more.
    Gap(String),
    /// The block of the position is not known: it is gone, or the nodes are behind.
    Unknown(String),
    /// A later attempt may succeed.
    Later(String),
}

impl From<StreamRefusal> for NoFeed {
    fn from(StreamRefusal { error, .. }: StreamRefusal) -> Self {
        let message = error.message().to_owned();
        match error.code() {
            // The settings are checked, so what is not valid is the position.
            RESOURCE_NOT_FOUND if message.contains(UNKNOWN_BLOCK) => Self::Unknown(message),
            RESOURCE_NOT_FOUND | INVALID_PARAMS => Self::Gap(message),
            _ => Self::Later(message),
        }
    }
}

impl Feed {
    /// Opens the stream of this query at a place.
    pub(super) async fn open(
        services: Arc<Services>,
        name: Arc<str>,
        stream: Arc<str>,
        start: StreamStart,
    ) -> Result<Self, NoFeed> {
        // Without a block there is no position at which a live stream begins.
        services.registry.published().begun().await;
        let request = EventsRequest::of_query(&stream, &start).map_err(StreamRefusal::from)?;
        let pass = services.door.admit_webhook(&name);
        let (own, theirs) = Pipe::pair();
        let (sender, outcome) = oneshot::channel();
        let respond: Respond = Box::new(|outcome| {
            drop(sender.send(outcome));
            Bytes::new()
        });
        let serving = session::serve_events(theirs.into(), pass, request.params, request.id, respond, services);
        tokio::spawn(serving);
        let closed = || StreamRefusal::from(error(INTERNAL_ERROR, "closed before the stream began"));
        outcome.await.unwrap_or_else(|_| Err(closed()))?;
        Ok(Self {
            pipe: own,
            text: EventText::default(),
        })
    }

    /// Returns the next item that was read already.
    pub(super) fn item(&mut self) -> Option<Item> {
        self.text.next()
    }

    /// Waits for more bytes; `false` at the end of the stream. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`TooLong`] if an event is.
    pub(super) async fn more(&mut self) -> Result<bool, TooLong> {
        let bytes = std::future::poll_fn(|cx| self.pipe.poll_bytes(cx)).await;
        match bytes {
            Some(bytes) => self.text.push(&bytes).map(|()| true),
            None => Ok(false),
        }
    }
}
