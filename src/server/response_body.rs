//! HTTP response body in pieces, each sent without a copy.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HyperBody, Frame, SizeHint};

use crate::pieces;
use crate::shares::Charge;

/// Bytes handed to hyper at once. hyper asks for more when nearly all of that is written, so unread bytes stay here and
/// stay charged.
const SLICE: usize = 64 << 10;

/// Pieces of a response body, last first.
#[derive(Debug, Default)]
pub(super) struct Body {
    pieces: Vec<Bytes>,
    /// Charge to the budget of all long answers, released when the bytes are written, except for the last slice, or
    /// dropped.
    _room: Option<Charge>,
}

impl Body {
    /// Creates a body of these parts in order; `room` is released once they are sent or dropped.
    #[must_use]
    pub(super) fn new(parts: &[Bytes], room: Option<Charge>) -> Self {
        let mut pieces = pieces::together(parts);
        pieces.reverse();
        Self { pieces, _room: room }
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::new(&[Bytes::from_static(text.as_bytes())], None)
    }
}

impl HyperBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(piece) = self.pieces.last_mut() else {
            return Poll::Ready(None);
        };
        let slice = piece.split_to(piece.len().min(SLICE));
        if piece.is_empty() {
            self.pieces.pop();
        }
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Returns the exact length in bytes, so that the response has a `Content-Length`.
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(pieces::length(&self.pieces) as u64)
    }
}
