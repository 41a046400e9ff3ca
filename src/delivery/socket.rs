//! Socket of a client: plain, with TLS on top, or within the process. Any task may read and write it, without waiting.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use parking_lot::Mutex;
use rustls::ServerConnection;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::Pipe;

/// Most encrypted bytes that wait for the socket. Data that is not encrypted yet stays in the client's queue, where it
/// is bounded and can be dropped.
const UNSENT: usize = 64 << 10;

/// Socket of a client after its handshakes.
#[derive(Debug)]
pub enum Socket {
    /// `ws://`, not encrypted.
    Plain(TcpStream),
    /// `wss://`, with TLS.
    Tls(Box<Secured>),
    /// Connection within the process.
    Pipe(Pipe),
}

/// TCP socket with its TLS state.
#[derive(Debug)]
pub struct Secured {
    tcp: TcpStream,
    tls: Mutex<ServerConnection>,
}

impl From<Pipe> for Socket {
    fn from(pipe: Pipe) -> Self {
        Self::Pipe(pipe)
    }
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(tcp)
    }
}

impl From<TlsStream<TcpStream>> for Socket {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        let (tcp, tls) = stream.into_inner();
        Self::secured(tcp, tls)
    }
}

impl Socket {
    /// Creates a TLS socket from a completed TLS handshake.
    #[must_use]
    pub fn secured(tcp: TcpStream, mut tls: ServerConnection) -> Self {
        tls.set_buffer_limit(Some(UNSENT));
        Self::Tls(Box::new(Secured {
            tcp,
            tls: Mutex::new(tls),
        }))
    }

    /// Returns the system's socket; `None` within the process.
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(secured) => Some(&secured.tcp),
            Self::Pipe(_) => None,
        }
    }

    /// Sets how much the system may buffer unsent, in bytes (`TCP_NOTSENT_LOWAT`).
    ///
    /// # Errors
    /// If the system refuses, with its error.
    pub fn set_notsent_lowat(&self, bytes: u32) -> io::Result<()> {
        self.tcp()
            .map_or(Ok(()), |tcp| SockRef::from(tcp).set_tcp_notsent_lowat(bytes))
    }

    /// Sets the time after which the system ends a connection whose peer acknowledges nothing (`TCP_USER_TIMEOUT`).
    ///
    /// # Errors
    /// If the system refuses, with its error.
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "an option of Linux"))]
    pub fn set_user_timeout(&self, timeout: Duration) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(tcp) = self.tcp() {
            return SockRef::from(tcp).set_tcp_user_timeout(Some(timeout));
        }
        Ok(())
    }

    /// Resets the connection when the socket is closed, so that unsent bytes are freed at once.
    pub fn reset_on_close(&self) {
        if let Some(tcp) = self.tcp() {
            drop(SockRef::from(tcp).set_linger(Some(Duration::ZERO)));
        }
    }

    /// Polls until there may be data to read, and wakes the task of the last call.
    ///
    /// # Errors
    /// If the socket fails, with the system's error.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(cx),
            Self::Tls(secured) => secured.tcp.poll_read_ready(cx),
            Self::Pipe(pipe) => pipe.poll_readable(cx).map(Ok),
        }
    }

    /// Polls until data may be written, and wakes the task of the last call.
    ///
    /// # Errors
    /// If the socket fails, with the system's error.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_write_ready(cx),
            Self::Tls(secured) => secured.tcp.poll_write_ready(cx),
            Self::Pipe(pipe) => pipe.poll_writable(cx).map(Ok),
        }
    }

    /// Reads available data into the spare capacity of `buffer`; returns the bytes read, 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if there is no data, `InvalidData` if the peer violates TLS, else the system's error.
    pub fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_read_buf(buffer),
            Self::Tls(secured) => secured.try_read(buffer),
            Self::Pipe(pipe) => pipe.try_read(buffer),
        }
    }

    /// Writes as much as the socket takes; returns the bytes taken.
    ///
    /// # Errors
    /// `WouldBlock` if the socket takes nothing, else the system's error.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            // `send` in place of `writev`: without the layer of files, a twentieth of a write's cost.
            Self::Plain(tcp) => match slices {
                [one] => tcp.try_write(one),
                several => tcp.try_write_vectored(several),
            },
            Self::Tls(secured) => secured.try_write(slices),
            Self::Pipe(pipe) => pipe.try_write(slices),
        }
    }

    /// Hands bytes that were taken but not sent to the system. Returns `false` if some remain: call this again when the
    /// socket is writable.
    ///
    /// # Errors
    /// If the socket fails, with the system's error, but never `WouldBlock`.
    pub fn try_flush(&self) -> io::Result<bool> {
        match self {
            Self::Plain(_) | Self::Pipe(_) => Ok(true),
            Self::Tls(secured) => secured.try_flush(&mut secured.tls.lock()),
        }
    }

    /// Discards up to 64 KiB of unread input: closing a socket with unread bytes sends a reset, and the peer would lose
    /// the last data written.
    pub fn discard(&self) {
        let Some(tcp) = self.tcp() else { return };
        let mut sink = [0; READ];
        for _ in 0..16 {
            if !matches!(tcp.try_read(&mut sink), Ok(read) if read > 0) {
                break;
            }
        }
    }

    /// Ends our half of the connection, after a `close_notify` alert over TLS.
    pub fn shut(&self) {
        match self {
            Self::Plain(_) => {}
            Self::Tls(secured) => {
                let mut tls = secured.tls.lock();
                tls.send_close_notify();
                drop(secured.try_flush(&mut tls));
            }
            Self::Pipe(pipe) => pipe.shut(),
        }
        if let Some(tcp) = self.tcp() {
            drop(SockRef::from(tcp).shutdown(Shutdown::Write));
        }
    }
}

impl Secured {
    fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let mut tls = self.tls.lock();
        loop {
            let room = buffer.spare_capacity_mut().len().min(READ);
            let mut text = [0; READ];
            match tls.reader().read(&mut text[..room]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A peer that disconnects without `close_notify` has only disconnected.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
                Ok(read) => {
                    buffer.put_slice(&text[..read]);
                    return Ok(read);
                }
            }
            tls.read_tls(&mut Raw(&self.tcp))?;
            if let Err(error) = tls.process_new_packets() {
                // Sends the alert with the reason.
                drop(self.try_flush(&mut tls));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut tls = self.tls.lock();
        if !self.try_flush(&mut tls)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = tls.writer().write_vectored(slices)?;
        self.try_flush(&mut tls)?;
        Ok(taken)
    }

    fn try_flush(&self, tls: &mut ServerConnection) -> io::Result<bool> {
        while tls.wants_write() {
            match tls.write_tls(&mut Raw(&self.tcp)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Most plain text read at once, in bytes.
const READ: usize = 4 << 10;

/// Adapter that lets rustls use the socket.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
