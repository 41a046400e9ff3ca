//! Connection of an attacker: bytes over TCP, a WebSocket without a library's rules, or HTTP. Nothing that the process
//! does to it is an error; it is counted.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

use crate::arena::Arena;
use crate::client_frame::frame;

pub const TEXT: u8 = 0x81;
pub const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;
/// The bit of the last fragment of a message.
const FINAL: u8 = 0x80;

/// Last bytes of attackers' addresses; the bystander's is another one.
pub const ATTACKERS: std::ops::RangeInclusive<u8> = 2..=8;

/// Last bytes of the addresses of other clients that must not suffer: one that connects during the attack, and one with
/// a filter.
pub const NEWCOMER: u8 = 10;
pub const OWNER: u8 = 11;

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Returns the last byte of the address of the attacker with this number; attackers share the addresses in turns.
pub fn attacker(number: usize) -> u8 {
    let (first, last) = (usize::from(*ATTACKERS.start()), usize::from(*ATTACKERS.end()));
    (first + number % (last - first + 1)) as u8
}

pub fn request(id: usize, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// Opens a TCP connection from 127.0.0.`from`, with a small receive buffer where one is given.
pub async fn connect(to: SocketAddr, from: u8, receive_buffer: Option<u32>) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0)))?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The answer to an HTTP request.
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

/// A connection to the program.
pub struct Peer {
    arena: Arena,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Peer {
    /// Opens a TCP connection to the clients' port; `None`, and a count, where that fails.
    pub async fn connect(arena: &Arena, from: u8) -> Option<Self> {
        Self::connect_to(arena, arena.address(), from, None).await
    }

    pub async fn connect_to(arena: &Arena, to: SocketAddr, from: u8, receive_buffer: Option<u32>) -> Option<Self> {
        match connect(to, from, receive_buffer).await {
            Ok(stream) => {
                let (reader, writer) = stream.into_split();
                Some(Self {
                    arena: arena.clone(),
                    reader: BufReader::with_capacity(4 << 10, reader),
                    writer,
                })
            }
            Err(_) => {
                arena.count("no TCP");
                None
            }
        }
    }

    /// Opens a WebSocket; `None`, and a count, where it is refused.
    pub async fn open(arena: &Arena, from: u8) -> Option<Self> {
        Self::open_with(arena, from, None).await
    }

    pub async fn open_with(arena: &Arena, from: u8, receive_buffer: Option<u32>) -> Option<Self> {
        let mut peer = Self::connect_to(arena, arena.address(), from, receive_buffer).await?;
        if peer.write(UPGRADE).await {
            match peer.reply().await {
                Some(reply) if reply.status == 101 => return Some(peer),
                Some(reply) => arena.count(&format!("HTTP {}", reply.status)),
                None => arena.count("cut"),
            }
        }
        None
    }

    /// Writes bytes as they are; `false` where the other end does not accept them any more.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.writer.write_all(bytes.as_ref()).await.is_ok()
    }

    pub async fn send(&mut self, text: impl AsRef<[u8]>) -> bool {
        self.write(frame(TEXT, text)).await
    }

    /// Reads the next message that is not a notification (those are counted); `None`, and a count, where the connection
    /// ends.
    pub async fn answer(&mut self) -> Option<String> {
        read_answer(&self.arena, &mut self.reader).await
    }

    pub async fn ask(&mut self, text: impl AsRef<[u8]>) -> Option<String> {
        if !self.send(text).await {
            self.arena.count("cut");
            return None;
        }
        self.answer().await
    }

    /// Reads one byte; `None` where the connection ends.
    pub async fn byte(&mut self) -> Option<u8> {
        self.reader.read_u8().await.ok()
    }

    /// Sends an HTTP request with this head, without its final line breaks, and reads the reply; its status is counted.
    /// The connection may have carried other requests.
    pub async fn http(&mut self, head: &str, body: &str) -> Option<Reply> {
        let reply = match self.write(format!("{head}\r\n\r\n{body}")).await {
            true => self.reply().await,
            false => None,
        };
        match &reply {
            Some(reply) => self.arena.count(&format!("HTTP {}", reply.status)),
            None => self.arena.count("cut"),
        }
        reply
    }

    /// Posts JSON.
    pub async fn post(&mut self, body: &str) -> Option<Reply> {
        self.http(&post_head(body.len()), body).await
    }

    async fn reply(&mut self) -> Option<Reply> {
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            let line = line.trim_end().to_ascii_lowercase();
            match (status, line.split_once(':')) {
                (None, _) => status = Some(line.split(' ').nth(1)?.parse().ok()?),
                (_, Some(("content-length", value))) => length = value.trim().parse().ok()?,
                _ if line.is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).await.ok()?;
        Some(Reply { status: status?, body })
    }

    /// Returns the writing half; answers are read and counted in the background until the connection ends.
    pub fn into_writer(self) -> OwnedWriteHalf {
        let Self {
            arena,
            mut reader,
            writer,
        } = self;
        tokio::spawn(async move { while read_answer(&arena, &mut reader).await.is_some() {} });
        writer
    }

    /// Resets the connection instead of closing it.
    pub fn cut(self) {
        let _ = socket2::SockRef::from(self.writer.as_ref()).set_linger(Some(Duration::ZERO));
    }
}

/// Reads the next message that is not a notification, for [`Peer::answer`].
async fn read_answer(arena: &Arena, reader: &mut BufReader<OwnedReadHalf>) -> Option<String> {
    // Long messages come in fragments.
    let mut message = Vec::new();
    loop {
        let Some((first, length)) = read_frame(reader, &mut message).await else {
            arena.count("cut");
            return None;
        };
        let control = first & 0x08 != 0;
        if first == CLOSE {
            let payload = &message[message.len() - length..];
            let code = payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
            arena.count(&format!("closed {code}"));
            return None;
        }
        if control {
            message.truncate(message.len() - length);
        } else if first & FINAL != 0 {
            let text = String::from_utf8(std::mem::take(&mut message)).ok()?;
            if !text.starts_with(r#"{"jsonrpc":"2.0","method""#) {
                arena.count_answers(&text);
                return Some(text);
            }
        }
    }
}

/// Appends the next frame's payload, and returns its first byte and its length.
async fn read_frame(reader: &mut BufReader<OwnedReadHalf>, message: &mut Vec<u8>) -> Option<(u8, usize)> {
    let first = reader.read_u8().await.ok()?;
    let length = match reader.read_u8().await.ok()? & 0x7f {
        126 => u64::from(reader.read_u16().await.ok()?),
        127 => reader.read_u64().await.ok()?,
        length => u64::from(length),
    };
    let (start, length) = (message.len(), usize::try_from(length).ok()?);
    message.resize(start + length, 0);
    reader.read_exact(&mut message[start..]).await.ok()?;
    Some((first, length))
}

/// Returns the head of a POST of so much JSON, without its end.
pub fn post_head(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}")
}
