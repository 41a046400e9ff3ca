//! Connection with a write time limit: an HTTP response occupies memory until the peer reads it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Stream that fails with `TimedOut` if the peer takes less than `PROGRESS` bytes within the time limit.
#[derive(Debug)]
pub struct WriteTimeout<S> {
    stream: S,
    time_limit: Duration,
    /// Timer of the time limit, created when a write has to wait.
    blocked: Option<Pin<Box<Sleep>>>,
    /// Bytes taken since the timer was created.
    progress: usize,
}

/// Bytes that the peer has to take within the time limit, if there are as many: a reader of one byte a second makes
/// progress too, but not enough.
const PROGRESS: usize = 16 << 10;

impl<S> WriteTimeout<S> {
    /// Wraps a stream, with the time limit for progress in writing.
    #[must_use]
    pub fn new(stream: S, time_limit: Duration) -> Self {
        Self {
            stream,
            time_limit,
            blocked: None,
            progress: 0,
        }
    }

    /// Returns the stream.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Checks the result of a write: counts its bytes, or starts or checks the timer.
    fn watch_write(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(taken)) = &polled {
            self.progress += taken;
            if self.progress >= PROGRESS {
                self.blocked = None;
            }
            return polled;
        }
        self.watch(cx, polled)
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            // The peer has taken everything.
            self.blocked = None;
            return polled;
        }
        if self.blocked.is_none() {
            self.progress = 0;
        }
        let time_limit = self.time_limit;
        let blocked = self
            .blocked
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(time_limit)));
        ready!(blocked.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_write(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch_write(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_enough_now_and_then_is_waited_for_and_who_takes_less_is_not() {
        for (taken, enough) in [(PROGRESS, true), (PROGRESS / 2, false), (0, false)] {
            let (ours, mut theirs) = tokio::io::duplex(PROGRESS);
            let mut stream = WriteTimeout::new(ours, Duration::from_secs(5));
            let reading = tokio::spawn(async move {
                for _ in 0..8 {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                    // There is no more to read if the writer has given up.
                    let _ = theirs.read_exact(&mut vec![0; taken]).await;
                }
            });
            let written = stream.write_all(&vec![7; 8 * PROGRESS]).await;
            let ended = written.map_err(|error| error.kind());
            assert_eq!(
                ended,
                if enough { Ok(()) } else { Err(io::ErrorKind::TimedOut) },
                "{taken}"
            );
            drop(stream);
            reading.await.unwrap();
        }
    }
}
