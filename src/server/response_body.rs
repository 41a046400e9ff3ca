//! HTTP response body in pieces, each sent without a copy.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use hyper::body::{Body as HyperBody, Frame, SizeHint};

use super::call_places::CallPlace;
use crate::delivery::Pipe;
use crate::pieces;
use crate::shares::Charge;
use crate::telemetry::RequestRecord;

/// Bytes handed to hyper at once over HTTP/1.1. hyper asks for more when nearly all of that is written, so unread bytes stay here and
/// stay charged.
const SLICE: usize = 64 << 10;

/// Body of a response.
#[derive(Debug)]
pub(super) enum Body {
    /// Pieces whose length is known.
    Pieces(Pieces),
    /// Bytes of a connection within the process, up to its end.
    Stream(Pipe),
}

/// Pieces of a response body, last first.
#[derive(Debug)]
pub(super) struct Pieces {
    pieces: Vec<Bytes>,
    /// Charge to the budget of all long answers, released when the bytes are written, except for the last slice, or
    /// dropped.
    _room: Option<Charge>,
    /// Place among the calls of an HTTP/2 connection, which the request has until its response is sent.
    _place: Option<CallPlace>,
    /// Record of the write, which ends when the body is sent or dropped.
    _write: Option<WriteRecord>,
}

/// Write of a response that is traced.
#[derive(Debug)]
struct WriteRecord {
    request: Arc<RequestRecord>,
    begin: SystemTime,
}

impl Drop for WriteRecord {
    fn drop(&mut self) {
        self.request.part("write", self.begin);
    }
}

impl Body {
    /// Creates a body of these parts in order; `room` is released once they are sent or dropped.
    #[must_use]
    pub(super) fn new(parts: &[Bytes], room: Option<Charge>) -> Self {
        let mut pieces = pieces::together(parts);
        pieces.reverse();
        Self::Pieces(Pieces {
            pieces,
            _room: room,
            _place: None,
            _write: None,
        })
    }

    /// Keeps the request's place among the calls of its connection until the body is sent or dropped.
    pub(super) fn hold(&mut self, place: Option<CallPlace>) {
        if let Self::Pieces(own) = self {
            own._place = place;
        }
    }

    /// Polls for the number of bytes at hand; 0 at the end of the body.
    pub(super) fn poll_unread(&mut self, cx: &Context<'_>) -> Poll<usize> {
        match self {
            Self::Pieces(own) => Poll::Ready(pieces::length(&own.pieces)),
            Self::Stream(pipe) => pipe.poll_unread(cx),
        }
    }

    /// Takes up to `most` of the bytes at hand.
    pub(super) fn take(&mut self, most: usize) -> Bytes {
        match self {
            Self::Pieces(own) => own.next(most).unwrap_or_default(),
            Self::Stream(pipe) => pipe.take(most),
        }
    }

    /// Traces the write of the body, if its request is traced and the body has an end.
    pub(super) fn record(&mut self, request: Arc<RequestRecord>) {
        if let Self::Pieces(own) = self {
            own._write = request.is_traced().then(|| WriteRecord {
                request,
                begin: SystemTime::now(),
            });
        }
    }
}

impl Pieces {
    fn next(&mut self, most: usize) -> Option<Bytes> {
        let piece = self.pieces.last_mut()?;
        let slice = piece.split_to(piece.len().min(most));
        if piece.is_empty() {
            self.pieces.pop();
        }
        Some(slice)
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

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Pieces(own) => Poll::Ready(own.next(SLICE).map(|slice| Ok(Frame::data(slice)))),
            Self::Stream(pipe) => {
                let bytes = ready!(pipe.poll_bytes(cx));
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Pieces(own) => own.pieces.is_empty(),
            Self::Stream(_) => false,
        }
    }

    /// Returns the exact length in bytes if it is known, so that the response has a `Content-Length`.
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Pieces(own) => SizeHint::with_exact(pieces::length(&own.pieces) as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
