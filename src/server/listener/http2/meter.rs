//! Meter of an HTTP/2 connection: frames that carry no request and no data cost work, and nothing else charges for them.
//!
//! h2 bounds what floods of frames make it store (resets, settings, continuations, empty data). This bounds the work:
//! pings, settings, priorities, window updates, resets and frames of unknown types have an allowance, which grows with
//! time and with the bytes that are sent, for which a client returns window updates.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Frames that a client may send at once.
const BURST: f64 = 2_000.0;

/// Frames that a client may send each second.
const RATE: f64 = 200.0;

/// Bytes sent for which a client may return one more frame: some open the windows of stream and connection for each event.
const BYTES_PER_FRAME: f64 = 128.0;

/// Bytes read in a row before other tasks get their turn, those of the streams among them.
const TURN: usize = 16 << 10;

/// Length of the client's preface, in bytes.
const PREFACE: usize = 24;

/// Length of the head of a frame, in bytes.
const HEAD: usize = 9;

/// Stream that fails if the peer sends too many frames that carry nothing.
pub(super) struct Metered<S> {
    stream: S,
    frames: Frames,
    allowance: Allowance,
    in_a_row: usize,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::default(),
            allowance: Allowance::new(Instant::now()),
            in_a_row: 0,
        }
    }
}

/// Allowance of frames.
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: BURST, at: now }
    }

    fn sent(&mut self, bytes: usize) {
        self.left = (self.left + bytes as f64 / BYTES_PER_FRAME).min(BURST);
    }

    /// Spends frames; returns `false` if they are too many.
    fn spend(&mut self, frames: usize, now: Instant) -> bool {
        if frames > 0 {
            let grown = now.duration_since(self.at).as_secs_f64() * RATE;
            self.left = (self.left + grown).min(BURST) - frames as f64;
            self.at = now;
        }
        self.left >= 0.0
    }
}

/// Place in the peer's frames.
struct Frames {
    /// Bytes up to the next head.
    skip: usize,
    head: [u8; HEAD],
    /// Bytes of the head that are known.
    known: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: PREFACE,
            head: [0; HEAD],
            known: 0,
        }
    }
}

impl Frames {
    /// Goes on over received bytes; returns the number of frames that carry nothing among those that begin in them.
    fn pass(&mut self, mut bytes: &[u8]) -> usize {
        let mut empty = 0;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD - self.known).min(bytes.len());
            if self.skip > 0 || taken == 0 {
                continue;
            }
            self.head[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known == HEAD {
                self.known = 0;
                let [high, middle, low, kind, ..] = self.head;
                self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                // DATA with bytes belongs to a body or a session, HEADERS is a request: both are charged there.
                let carries = matches!((kind, self.skip), (0, 1..) | (1, _));
                empty += usize::from(!carries);
            }
        }
        empty
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.in_a_row >= TURN {
            self.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if polled.is_pending() {
            self.in_a_row = 0;
        }
        ready!(polled)?;
        let read = &buffer.filled()[before..];
        self.in_a_row += read.len();
        let empty = self.frames.pass(read);
        if !self.allowance.spend(empty, Instant::now()) {
            let why = "too many frames without a request or data";
            return Poll::Ready(Err(io::Error::other(why)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> Metered<S> {
    fn sent(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.allowance.sent(*bytes);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.sent(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.sent(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, 0, 0, 0, 0, 1]);
        bytes.resize(HEAD + length, 6);
        bytes
    }

    proptest! {
        /// Frames cut into pieces anywhere are counted as in one piece.
        #[test]
        fn frames_that_carry_nothing_are_counted(
            frames in prop::collection::vec((0_u8..12, 0_usize..40), 0..20),
            piece in 1_usize..50,
        ) {
            let mut wire = vec![b'P'; PREFACE];
            wire.extend(frames.iter().flat_map(|(kind, length)| frame(*kind, *length)));
            let empty = frames.iter().filter(|(kind, length)| match kind {
                0 => *length == 0,
                1 => false,
                _ => true,
            });
            let mut own = Frames::default();
            let counted: usize = wire.chunks(piece).map(|piece| own.pass(piece)).sum();
            prop_assert_eq!(counted, empty.count());
            prop_assert_eq!((own.skip, own.known), (if wire.len() == PREFACE { 0 } else { own.skip }, 0));
        }
    }

    #[test]
    fn an_allowance_grows_with_time_and_with_bytes_sent() {
        let start = Instant::now();
        let mut own = Allowance::new(start);
        assert!(own.spend(2_000, start) && !own.spend(1, start));
        let mut own = Allowance::new(start);
        assert!(own.spend(2_000, start));
        let later = start + Duration::from_secs(1);
        assert!(own.spend(200, later));
        own.sent(12_800);
        assert!(own.spend(100, later) && !own.spend(1, later));
    }
}
