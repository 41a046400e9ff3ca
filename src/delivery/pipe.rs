//! Connection within the process: two ends, each direction with a bounded buffer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most unread bytes of one direction: the size of one write of a client's queue.
const CAPACITY: usize = 64 << 10;

/// One end of a connection. The other end reads the end of the stream once this one is dropped.
#[derive(Debug)]
pub struct Pipe {
    incoming: Arc<Direction>,
    outgoing: Arc<Direction>,
}

#[derive(Debug, Default)]
struct Direction(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    is_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn wake(waker: &mut Option<Waker>) {
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }
}

impl Direction {
    fn close(&self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        State::wake(&mut state.reader);
        State::wake(&mut state.writer);
    }

    fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.is_closed || !state.bytes.is_empty() {
            return Poll::Ready(());
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.is_closed || state.bytes.len() < CAPACITY {
            return Poll::Ready(());
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Moves up to `most` bytes to `take`, and returns their number, 0 at the end of the stream; `WouldBlock` if there
    /// are none.
    fn try_read(&self, most: usize, take: impl FnOnce(&[u8])) -> io::Result<usize> {
        let mut state = self.0.lock();
        let length = state.bytes.len().min(most);
        if length == 0 && most > 0 {
            return match state.is_closed {
                true => Ok(0),
                false => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        take(&state.bytes[..length]);
        state.bytes.advance(length);
        if state.bytes.is_empty() {
            // An idle connection has no buffer.
            state.bytes = BytesMut::new();
        }
        State::wake(&mut state.writer);
        Ok(length)
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let before = state.bytes.len();
        for slice in slices {
            let room = CAPACITY.saturating_sub(state.bytes.len());
            state.bytes.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        let taken = state.bytes.len() - before;
        if taken == 0 && slices.iter().any(|slice| !slice.is_empty()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        State::wake(&mut state.reader);
        Ok(taken)
    }
}

impl Pipe {
    /// Creates both ends of a connection.
    #[must_use]
    pub fn pair() -> (Self, Self) {
        let (one, other) = (Arc::<Direction>::default(), Arc::<Direction>::default());
        let end = |incoming: &Arc<Direction>, outgoing: &Arc<Direction>| Self {
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
        };
        (end(&one, &other), end(&other, &one))
    }

    /// Polls for all unread bytes; `None` at the end of the stream.
    pub fn poll_bytes(&self, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        std::task::ready!(self.incoming.poll_readable(cx));
        let mut bytes = Bytes::new();
        let read = self
            .incoming
            .try_read(CAPACITY, |unread| bytes = Bytes::copy_from_slice(unread));
        Poll::Ready(read.is_ok_and(|read| read > 0).then_some(bytes))
    }

    /// Polls for the number of unread bytes; 0 at the end of the stream.
    pub fn poll_unread(&self, cx: &Context<'_>) -> Poll<usize> {
        std::task::ready!(self.incoming.poll_readable(cx));
        Poll::Ready(self.incoming.0.lock().bytes.len())
    }

    /// Takes up to `most` unread bytes; none if there are none.
    #[must_use]
    pub fn take(&self, most: usize) -> Bytes {
        let mut bytes = Bytes::new();
        // Nothing to read, and the end: both are no bytes.
        drop(
            self.incoming
                .try_read(most, |unread| bytes = Bytes::copy_from_slice(unread)),
        );
        bytes
    }

    pub(super) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        self.incoming.poll_readable(cx)
    }

    /// Polls until the other end takes bytes, or is gone.
    pub fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        self.outgoing.poll_writable(cx)
    }

    pub(super) fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let most = buffer.capacity() - buffer.len();
        self.incoming.try_read(most, |bytes| buffer.extend_from_slice(bytes))
    }

    /// Writes as much as the other end takes; returns the bytes taken.
    ///
    /// # Errors
    /// `WouldBlock` if it takes nothing, `BrokenPipe` if it is gone.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.outgoing.try_write(slices)
    }

    /// Ends this end's direction.
    pub fn shut(&self) {
        self.outgoing.close();
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.incoming.close();
        self.outgoing.close();
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.incoming.poll_readable(cx));
        let read = self
            .incoming
            .try_read(buffer.remaining(), |bytes| buffer.put_slice(bytes));
        Poll::Ready(read.map(drop))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.outgoing.poll_writable(cx));
        Poll::Ready(self.outgoing.try_write(&[IoSlice::new(bytes)]))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_arrive_in_order_through_a_small_buffer() {
        let (mut one, mut other) = Pipe::pair();
        let text: Vec<u8> = (0..CAPACITY * 3 + 17).map(|at| (at % 251) as u8).collect();
        let sent = text.clone();
        let sending = tokio::spawn(async move {
            one.write_all(&sent).await.unwrap();
            let mut answer = [0; 4];
            one.read_exact(&mut answer).await.unwrap();
            answer
        });
        let mut received = vec![0; text.len()];
        other.read_exact(&mut received).await.unwrap();
        assert!(received == text);
        other.write_all(b"done").await.unwrap();
        assert_eq!(&sending.await.unwrap(), b"done");
        // The other end is gone.
        assert_eq!(other.read(&mut received).await.unwrap(), 0);
        assert_eq!(other.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_direction_takes_nothing_and_an_empty_one_gives_nothing() {
        let (one, other) = Pipe::pair();
        let mut buffer = BytesMut::with_capacity(10);
        let blocked = |result: io::Result<usize>| result.unwrap_err().kind() == io::ErrorKind::WouldBlock;
        assert!(blocked(other.try_read(&mut buffer)));
        let block = vec![7; CAPACITY - 1];
        let slices = [IoSlice::new(&block), IoSlice::new(b"abc")];
        assert_eq!(one.try_write(&slices).unwrap(), CAPACITY);
        assert!(blocked(one.try_write(&slices)));
        assert_eq!(other.try_read(&mut buffer).unwrap(), 10);
        assert_eq!(one.try_write(&slices).unwrap(), 10);
        one.shut();
        let mut rest = 0;
        loop {
            buffer.clear();
            match other.try_read(&mut buffer).unwrap() {
                0 => break,
                read => rest += read,
            }
        }
        assert_eq!(rest, CAPACITY);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// Random writes, in slices, and reads, about as long as the buffer: all bytes arrive, in order, up to the end.
        #[test]
        fn no_byte_is_lost_or_changes_its_place(
            steps in prop::collection::vec((any::<bool>(), 1..CAPACITY * 3 / 2, 1_usize..4), 1..40),
        ) {
            let (one, other) = Pipe::pair();
            let byte = |at: usize| (at % 251) as u8;
            let (mut written, mut read) = (0_usize, 0_usize);
            for (writes, length, parts) in steps {
                if writes {
                    let bytes: Vec<u8> = (written..written + length).map(byte).collect();
                    let slices: Vec<IoSlice<'_>> = bytes.chunks(length.div_ceil(parts)).map(IoSlice::new).collect();
                    match one.try_write(&slices) {
                        Ok(taken) => written += taken,
                        Err(why) => {
                            prop_assert_eq!(why.kind(), io::ErrorKind::WouldBlock);
                            prop_assert_eq!(written - read, CAPACITY);
                        }
                    }
                } else {
                    let mut buffer = BytesMut::with_capacity(length);
                    match other.try_read(&mut buffer) {
                        Ok(taken) => {
                            prop_assert!(buffer.iter().enumerate().all(|(at, own)| *own == byte(read + at)));
                            read += taken;
                        }
                        Err(why) => {
                            prop_assert_eq!(why.kind(), io::ErrorKind::WouldBlock);
                            prop_assert_eq!(written, read);
                        }
                    }
                }
                prop_assert!(written - read <= CAPACITY);
            }
            drop(one);
            loop {
                let mut buffer = BytesMut::with_capacity(CAPACITY);
                let taken = other.try_read(&mut buffer).unwrap();
                prop_assert!(buffer.iter().enumerate().all(|(at, own)| *own == byte(read + at)));
                read += taken;
                if taken == 0 {
                    break;
                }
            }
            prop_assert_eq!(written, read);
        }
    }
}
