//! A client's socket: plain, or with TLS on top. Both are read and written without waiting, by whoever has something.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use bytes::{BufMut, BytesMut};
use parking_lot::Mutex;
use rustls::ServerConnection;
use socket2::SockRef;
use tokio::net::TcpStream;

/// Encrypted bytes that may wait for the socket, in bytes: what is not taken stays in the client's queue, where it
/// is bounded and can be dropped.
const UNSENT: usize = 64 << 10;

/// The socket of a client whose handshakes are over.
#[derive(Debug)]
pub enum Socket {
    /// `ws://`.
    Plain(TcpStream),
    /// `wss://`.
    Tls(Box<Secured>),
}

/// A socket and the state of its TLS.
#[derive(Debug)]
pub struct Secured {
    tcp: TcpStream,
    tls: Mutex<ServerConnection>,
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(tcp)
    }
}

impl Socket {
    /// Goes on where a TLS handshake ended.
    #[must_use]
    pub fn secured(tcp: TcpStream, mut tls: ServerConnection) -> Self {
        tls.set_buffer_limit(Some(UNSENT));
        Self::Tls(Box::new(Secured {
            tcp,
            tls: Mutex::new(tls),
        }))
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(secured) => &secured.tcp,
        }
    }

    /// The socket's options.
    #[must_use]
    pub fn options(&self) -> SockRef<'_> {
        SockRef::from(self.tcp())
    }

    /// Waits until there may be something to read.
    ///
    /// # Errors
    /// The system's.
    pub async fn readable(&self) -> io::Result<()> {
        self.tcp().readable().await
    }

    /// Waits until something may be written.
    ///
    /// # Errors
    /// The system's.
    pub async fn writable(&self) -> io::Result<()> {
        self.tcp().writable().await
    }

    /// Reads what is there into the room that `buffer` has; 0 at the end.
    ///
    /// # Errors
    /// The system's, `WouldBlock` among them; `InvalidData` for what is no TLS.
    pub fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_read_buf(buffer),
            Self::Tls(secured) => secured.try_read(buffer),
        }
    }

    /// Takes as much as it can.
    ///
    /// # Errors
    /// The system's, `WouldBlock` among them.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(slices),
            Self::Tls(secured) => secured.try_write(slices),
        }
    }

    /// Whether all that was taken is with the system. Where it is not, this is to be asked again when the socket is
    /// writable.
    ///
    /// # Errors
    /// The system's, but not `WouldBlock`.
    pub fn try_flush(&self) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(true),
            Self::Tls(secured) => secured.try_flush(&mut secured.tls.lock()),
        }
    }

    /// Throws away some of what is there: unread bytes would turn the close into a reset, and the peer would lose what was
    /// written last.
    pub fn discard(&self) {
        let mut sink = [0; READ];
        for _ in 0..16 {
            if !matches!(self.tcp().try_read(&mut sink), Ok(read) if read > 0) {
                break;
            }
        }
    }

    /// Ends our half.
    pub fn shut(&self) {
        if let Self::Tls(secured) = self {
            let mut tls = secured.tls.lock();
            tls.send_close_notify();
            drop(secured.try_flush(&mut tls));
        }
        drop(self.options().shutdown(Shutdown::Write));
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
                // A peer that ends without saying so has only ended.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
                Ok(read) => {
                    buffer.put_slice(&text[..read]);
                    return Ok(read);
                }
            }
            tls.read_tls(&mut Raw(&self.tcp))?;
            if let Err(error) = tls.process_new_packets() {
                // The alert that says why.
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

/// Plain text that is read at once, in bytes.
const READ: usize = 4 << 10;

/// A socket as rustls wants it.
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
