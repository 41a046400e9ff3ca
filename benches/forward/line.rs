//! One connection for calls: WebSocket, or HTTP with keep-alive.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use mio::{Interest, Registry, Token, net::TcpStream};
use socket2::SockRef;

use crate::{
    call::quoted,
    frames::{BINARY, CLOSE, FrameReader, PING, PONG, TEXT, client_frame},
    websocket::{check_upgrade, http_head_len, http_header, upgrade_request},
};

/// Read timeout outside of measurements.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    Ws,
    Http,
}

impl Transport {
    pub const ALL: [Self; 2] = [Self::Ws, Self::Http];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ws => "WebSocket",
            Self::Http => "HTTP",
        }
    }
}

pub struct Line {
    stream: TcpStream,
    server: SocketAddr,
    incoming: Incoming,
    /// Bytes of requests that are not written yet.
    out: Vec<u8>,
}

enum Incoming {
    Ws(FrameReader),
    /// Contains the beginning of a response.
    Http(Vec<u8>),
}

impl Line {
    pub fn connect(server: SocketAddr, transport: Transport) -> Result<Self> {
        // Blocking is fine before there is anything to measure.
        let mut stream = std::net::TcpStream::connect(server).with_context(|| format!("connecting to {server}"))?;
        // A reset instead of a FIN: thousands of sockets in TIME_WAIT would disturb the next runs.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        stream.set_nodelay(true)?;
        let incoming = match transport {
            Transport::Http => Incoming::Http(Vec::new()),
            Transport::Ws => {
                upgrade(&mut stream, server)?;
                Incoming::Ws(FrameReader::new(false))
            }
        };
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: TcpStream::from_std(stream),
            server,
            incoming,
            out: Vec::new(),
        })
    }

    pub fn register(&mut self, registry: &Registry, token: usize) -> Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        Ok(registry.register(&mut self.stream, Token(token), both)?)
    }

    /// Queues a request for the next [`Self::flush`].
    pub fn ask(&mut self, request: &str) {
        match &self.incoming {
            Incoming::Ws(_) => self.out.extend(client_frame(TEXT, request.as_bytes())),
            Incoming::Http(_) => {
                let (server, len) = (self.server, request.len());
                let _infallible = write!(
                    self.out,
                    "POST / HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{request}"
                );
            }
        }
    }

    /// Writes as much as the socket accepts; a writable event follows when the socket accepts more.
    pub fn flush(&mut self) -> Result<()> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(written) => drop(self.out.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("writing"),
            }
        }
        Ok(())
    }

    /// Reads all available bytes and passes each message to `on_message`.
    pub fn read(&mut self, buffer: &mut [u8], mut on_message: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        loop {
            let len = match self.stream.read(buffer) {
                Ok(0) => bail!("the connection was closed"),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("reading"),
            };
            let Self { incoming, out, .. } = self;
            match incoming {
                Incoming::Ws(frames) => frames.feed(&buffer[..len], |message| {
                    match message.opcode {
                        TEXT | BINARY => on_message(&message.payload)?,
                        PING => out.extend(client_frame(PONG, &message.payload)),
                        PONG => {}
                        CLOSE => bail!(
                            "closed by the server: {}",
                            quoted(message.payload.get(2..).unwrap_or_default())
                        ),
                        other => bail!("a frame with opcode {other:#x}"),
                    }
                    Ok(())
                })?,
                Incoming::Http(partial) => {
                    partial.extend_from_slice(&buffer[..len]);
                    while let Some(whole) = first_response(partial, &mut on_message)? {
                        partial.drain(..whole);
                    }
                }
            }
            // A short read has emptied the socket; later data raises a new edge (epoll(7), question 9).
            if len < buffer.len() {
                return Ok(());
            }
        }
    }
}

fn upgrade(stream: &mut std::net::TcpStream, server: SocketAddr) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(upgrade_request(&server.to_string(), false).as_bytes())?;
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let len = stream.read(&mut buffer).context("no answer to the upgrade")?;
        ensure!(len > 0, "hung up in the upgrade: {}", quoted(&head));
        head.extend_from_slice(&buffer[..len]);
        if let Some(len) = http_head_len(&head) {
            // No request has been sent yet.
            ensure!(len == head.len(), "bytes behind the upgrade");
            return check_upgrade(std::str::from_utf8(&head)?, false);
        }
    }
}

/// Passes the body of the first response to `on_body` and returns the length of head and body; `None` while
/// incomplete.
fn first_response(bytes: &[u8], mut on_body: impl FnMut(&[u8]) -> Result<()>) -> Result<Option<usize>> {
    let Some(head_len) = http_head_len(bytes) else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..head_len])?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "an HTTP answer: {}", quoted(bytes));
    let Some(len) = http_header(head, "content-length") else {
        bail!("an HTTP answer without its length: {head}");
    };
    let whole = head_len + len.parse::<usize>()?;
    let Some(body) = bytes.get(head_len..whole) else {
        return Ok(None);
    };
    on_body(body)?;
    Ok(Some(whole))
}
