//! Raw bytes on the socket, for all that a well-behaved library would neither send nor show.

use std::net::SocketAddr;
use std::time::Duration;

use headwater::deflate::{self, Inflater};
use headwater::delivery::Compression;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

pub use crate::client_frame::frame;
use crate::harness::within;

pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;
/// Mask that clears the final bit of a first byte.
pub const MORE: u8 = 0x7f;
/// First byte of a final continuation frame.
pub const END: u8 = 0x80;
/// First byte of a compressed text message.
pub const DEFLATED: u8 = 0xc1;

/// Head of an upgrade as a browser sends it, without `Origin` and without the final empty line.
pub const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

/// A call that only the node can answer.
pub const FORWARDED: &str = r#"{"jsonrpc":"2.0","id":1,"method":"eth_syncing"}"#;
pub const FORWARDED_ANSWER: &str = r#"{"jsonrpc":"2.0","id":1,"result":false}"#;

pub const CHAIN_ID: &str = r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#;
pub const CHAIN_ID_ANSWER: &str = r#"{"jsonrpc":"2.0","id":1,"result":"0x539"}"#;

/// An HTTP answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no HTTP: {text:?}"));
        Self {
            status: head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .expect("a status"),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Makes one request on a connection of its own. `head` lacks the headers for host, length and connection.
pub async fn http(address: SocketAddr, head: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let mut socket = within("connect", TcpStream::connect(address)).await.unwrap();
    let length = if body.is_empty() && !head.starts_with('P') {
        String::new()
    } else {
        format!("\r\ncontent-length: {}", body.len())
    };
    let mut request = format!("{head}\r\nhost: localhost\r\nconnection: close{length}\r\n\r\n").into_bytes();
    request.extend_from_slice(body);
    // A refusal may arrive before the app has read the whole request.
    let _ = within("write", socket.write_all(&request)).await;
    let mut answer = Vec::new();
    let ended = within("an answer", socket.read_to_end(&mut answer)).await;
    assert!(ended.is_ok() || !answer.is_empty(), "{ended:?}");
    Reply::parse(&answer)
}

/// Returns the payload of a close frame.
pub fn close(code: u16, reason: impl AsRef<[u8]>) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_ref()].concat()
}

/// A client that writes any bytes, and accepts from the app nothing but RFC 6455.
pub struct Wire {
    socket: TcpStream,
    /// The negotiated compression.
    compression: Compression,
    inflater: Inflater,
    /// Payload bytes of all frames read so far.
    pub received: usize,
}

impl Wire {
    pub async fn open(address: SocketAddr) -> Self {
        Self::open_with(address, b"", None).await
    }

    /// Opens a WebSocket, with `behind` in the same write as the handshake and a receive buffer of this many bytes.
    pub async fn open_with(address: SocketAddr, behind: &[u8], receive_buffer: Option<u32>) -> Self {
        let mut wire = Self::connect_with(address, receive_buffer).await;
        let reply = wire.handshake(UPGRADE, behind).await;
        assert_eq!(reply.status, 101, "{}", reply.head);
        wire
    }

    /// Opens a WebSocket with compression, as browsers offer it.
    pub async fn deflating(address: SocketAddr) -> Self {
        Self::deflating_with(address, None).await
    }

    /// Like [`Self::deflating`], with a receive buffer of this many bytes.
    pub async fn deflating_with(address: SocketAddr, receive_buffer: Option<u32>) -> Self {
        let mut wire = Self::connect_with(address, receive_buffer).await;
        wire.offer("permessage-deflate; client_max_window_bits", Compression::Takeover)
            .await;
        wire
    }

    /// Opens a WebSocket with compression, as clients offer it that keep no context.
    pub async fn deflating_alone(address: SocketAddr) -> Self {
        let mut wire = Self::connect(address).await;
        let offer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        wire.offer(offer, Compression::NoTakeover).await;
        wire
    }

    async fn offer(&mut self, offer: &str, compression: Compression) {
        let head = format!("{UPGRADE}\r\nSec-WebSocket-Extensions: {offer}");
        let reply = self.handshake(&head, b"").await;
        let agreed = reply.header("sec-websocket-extensions").expect("it is on");
        assert_eq!(
            agreed.contains("server_no_context_takeover"),
            compression == Compression::NoTakeover,
            "{agreed}"
        );
        self.compression = compression;
    }

    /// Opens the TCP connection only.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(within("connect", TcpStream::connect(address)).await.unwrap())
    }

    async fn connect_with(address: SocketAddr, receive_buffer: Option<u32>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let stream = within("connect", socket.connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// Uses an existing connection.
    pub fn over(socket: TcpStream) -> Self {
        Self {
            socket,
            compression: Compression::None,
            inflater: Inflater::default(),
            received: 0,
        }
    }

    /// Sends a request's head and, in the same write, `behind`; returns the answer's head.
    pub async fn handshake(&mut self, head: &str, behind: &[u8]) -> Reply {
        self.write([head.as_bytes(), b"\r\n\r\n", behind].concat()).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within("the answer's head", self.socket.read_u8()).await.unwrap());
        }
        Reply::parse(&head)
    }

    /// Reads exactly this many bytes.
    pub async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        within("bytes", self.socket.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within("write", self.socket.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Writes bytes; returns `false` if the connection has ended.
    pub async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        within("write", self.socket.write_all(bytes.as_ref())).await.is_ok()
    }

    /// Returns the status of the answer to a request; `None` if the connection ends first.
    pub async fn try_handshake(&mut self, head: &str) -> Option<u16> {
        self.try_write(format!("{head}\r\n\r\n")).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(within("the answer's head", self.socket.read_u8()).await.ok()?);
        }
        Some(Reply::parse(&answer).status)
    }

    /// Subscribes to all logs.
    pub async fn subscribe_logs(&mut self) {
        let subscribe = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs"]}"#;
        self.send(TEXT, subscribe).await;
        assert!(self.text().await.contains("result"));
    }

    pub async fn send(&mut self, first: u8, payload: impl AsRef<[u8]>) {
        self.write(frame(first, payload)).await;
    }

    /// Returns the next frame: its first byte and payload.
    pub async fn frame(&mut self) -> (u8, Vec<u8>) {
        within("a frame", self.try_frame()).await.unwrap()
    }

    /// Returns the next frame; `None` if none begins within this time.
    pub async fn frame_within(&mut self, time: Duration) -> Option<(u8, Vec<u8>)> {
        match tokio::time::timeout(time, self.socket.readable()).await {
            Ok(_) => Some(self.frame().await),
            Err(_) => None,
        }
    }

    /// Reads one byte, of any value.
    pub async fn byte(&mut self) -> u8 {
        within("a byte", self.socket.read_u8()).await.unwrap()
    }

    async fn try_frame(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let first = self.socket.read_u8().await?;
        let len = self.socket.read_u8().await?;
        assert_eq!(first & 0x30, 0, "reserved bits");
        assert!(
            first & 0x40 == 0 || self.compression != Compression::None && first & 0x0f == 1,
            "compressed: {first:#x}"
        );
        assert!(matches!(first & 0x0f, 0 | 1 | 8 | 9 | 10), "opcode of {first:#x}");
        assert_eq!(len & 0x80, 0, "masked");
        let len = match len {
            126 => self.socket.read_u16().await? as usize,
            127 => self.socket.read_u64().await? as usize,
            len => len as usize,
        };
        assert!(
            first & 0x08 == 0 || (first & 0x80 != 0 && len <= 125),
            "control frame rules"
        );
        let mut payload = vec![0; len];
        self.socket.read_exact(&mut payload).await?;
        self.received += len;
        Ok((first, payload))
    }

    /// Reads the next message, of one frame; returns its text, and `true` if it was compressed.
    pub async fn inflated(&mut self) -> (String, bool) {
        let (first, payload) = self.frame().await;
        self.message(first, payload)
    }

    /// Decodes a frame that is a whole message; returns its text, and `true` if it was compressed.
    pub fn message(&mut self, first: u8, payload: Vec<u8>) -> (String, bool) {
        let deflated = first == DEFLATED;
        assert!(deflated || first == TEXT, "{}", String::from_utf8_lossy(&payload));
        let text = match self.compression {
            _ if !deflated => payload,
            Compression::Takeover => {
                let mut text = Vec::new();
                self.inflater.inflate(&payload, &mut text).unwrap();
                text
            }
            // The message must not refer to earlier ones.
            _ => deflate::inflate(&payload, 16 << 20, || Ok::<(), ()>(())).unwrap(),
        };
        (String::from_utf8(text).unwrap(), deflated)
    }

    /// Reads the next message, uncompressed and of one frame.
    pub async fn text(&mut self) -> String {
        let (first, payload) = self.frame().await;
        assert_eq!(first, TEXT, "{}", String::from_utf8_lossy(&payload));
        String::from_utf8(payload).unwrap()
    }

    /// Checks that the connection still answers.
    pub async fn works(&mut self) {
        self.send(TEXT, CHAIN_ID).await;
        assert_eq!(self.text().await, CHAIN_ID_ANSWER);
    }

    /// Reads to the close frame; returns the number of data frames before it, and its code.
    pub async fn closed(&mut self) -> (usize, Option<u16>) {
        let mut frames = 0;
        loop {
            let (first, payload) = self.frame().await;
            if first == CLOSE {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                assert!(std::str::from_utf8(payload.get(2..).unwrap_or_default()).is_ok());
                return (frames, code);
            }
            frames += usize::from(first & 0x08 == 0);
        }
    }

    /// Checks that the app closes the connection and sends nothing before.
    pub async fn ends(&mut self) {
        let mut byte = [0];
        let read = within("the end", self.socket.read(&mut byte)).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{byte:?}");
    }

    /// Reads frames until the connection ends in any way; returns the number of payload bytes, and any close code.
    pub async fn until_the_end(&mut self) -> (usize, Option<u16>) {
        let mut bytes = 0;
        let reading = async {
            while let Ok((first, payload)) = self.try_frame().await {
                bytes += payload.len();
                if first == CLOSE {
                    return payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                }
            }
            None
        };
        let code = within("the end", reading).await;
        (bytes, code)
    }

    /// Resets the connection without a close frame.
    pub fn cut(self) {
        let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }
}
