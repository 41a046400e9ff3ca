//! Activity of a connection: a request is being answered until the last byte of the answer is with the socket.
//!
//! The service knows when a request begins, the body when its last part is taken, and the stream when all of it is
//! flushed.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SILENT: u8 = 0;
const ANSWERING: u8 = 1;
/// The answer's last part is in hyper's buffer.
const FLUSHING: u8 = 2;

/// State of a connection, shared by its service, its stream and the listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Arc<AtomicU8>);

impl Activity {
    /// Checks if a request is being answered.
    pub(super) fn asks(&self) -> bool {
        self.0.load(Ordering::Relaxed) != SILENT
    }

    /// Records a request.
    pub(super) fn request(&self) {
        self.0.store(ANSWERING, Ordering::Relaxed);
    }

    /// Returns the body of the answer, whose end is recorded.
    pub(super) fn answer(&self, body: Body) -> Body {
        Body::new(Answer {
            body,
            activity: self.clone(),
        })
    }
}

/// Body that records its end when it is dropped.
struct Answer {
    body: Body,
    activity: Activity,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Activity(state) = &self.activity;
        let _ = state.compare_exchange(ANSWERING, FLUSHING, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Stream that records when an answer is flushed.
#[derive(Debug)]
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) activity: Activity,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes the stream when it has written all that it holds.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            let Activity(state) = &self.activity;
            let _ = state.compare_exchange(FLUSHING, SILENT, Ordering::Relaxed, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
