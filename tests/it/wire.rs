//! Bytes on the socket, for what a well-behaved library would not send and would not show.

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
/// Takes the final bit from a first byte.
pub const MORE: u8 = 0x7f;
/// A final continuation.
pub const END: u8 = 0x80;
/// A compressed text message.
pub const DEFLATED: u8 = 0xc1;

/// The head of an upgrade as a browser would send it, without `Origin`; without the empty line.
pub const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

/// A call that nobody but the node can answer.
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

/// One request on a connection of its own. `head` is the request line and headers beyond host, length and connection.
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
    // A refusal may come before all was taken.
    let _ = within("write", socket.write_all(&request)).await;
    let mut answer = Vec::new();
    let ended = within("an answer", socket.read_to_end(&mut answer)).await;
    assert!(ended.is_ok() || !answer.is_empty(), "{ended:?}");
    Reply::parse(&answer)
}

/// A close frame's payload.
pub fn close(code: u16, reason: impl AsRef<[u8]>) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_ref()].concat()
}

/// A client that writes whatever it is told to, and takes nothing but RFC 6455 from the app.
pub struct Wire {
    socket: TcpStream,
    /// What was agreed on.
    compression: Compression,
    inflater: Inflater,
    /// Bytes of the frames' payloads that were read.
    pub received: usize,
}

impl Wire {
    pub async fn open(address: SocketAddr) -> Self {
        Self::open_with(address, b"", None).await
    }

    /// With bytes in the same write behind the handshake, or with a small receive buffer.
    pub async fn open_with(address: SocketAddr, behind: &[u8], receive_buffer: Option<u32>) -> Self {
        let mut wire = Self::connect_with(address, receive_buffer).await;
        let reply = wire.handshake(UPGRADE, behind).await;
        assert_eq!(reply.status, 101, "{}", reply.head);
        wire
    }

    /// With compression, as browsers offer it.
    pub async fn deflating(address: SocketAddr) -> Self {
        Self::deflating_with(address, None).await
    }

    /// As browsers, with a small receive buffer.
    pub async fn deflating_with(address: SocketAddr, receive_buffer: Option<u32>) -> Self {
        let mut wire = Self::connect_with(address, receive_buffer).await;
        wire.offer("permessage-deflate; client_max_window_bits", Compression::Takeover)
            .await;
        wire
    }

    /// With compression, as those offer it that keep no context.
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

    /// Only the TCP connection.
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

    /// Over a connection that is there already.
    pub fn over(socket: TcpStream) -> Self {
        Self {
            socket,
            compression: Compression::None,
            inflater: Inflater::default(),
            received: 0,
        }
    }

    /// Sends a request's head and reads the answer's.
    pub async fn handshake(&mut self, head: &str, behind: &[u8]) -> Reply {
        self.write([head.as_bytes(), b"\r\n\r\n", behind].concat()).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within("the answer's head", self.socket.read_u8()).await.unwrap());
        }
        Reply::parse(&head)
    }

    /// So many bytes of whatever comes.
    pub async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        within("bytes", self.socket.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within("write", self.socket.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Whether the other end still takes it.
    pub async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        within("write", self.socket.write_all(bytes.as_ref())).await.is_ok()
    }

    /// The status of the answer to a request, where there was one.
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

    /// The next frame: its first byte and payload.
    pub async fn frame(&mut self) -> (u8, Vec<u8>) {
        within("a frame", self.try_frame()).await.unwrap()
    }

    /// The next frame, if one begins in this time.
    pub async fn frame_within(&mut self, time: Duration) -> Option<(u8, Vec<u8>)> {
        match tokio::time::timeout(time, self.socket.readable()).await {
            Ok(_) => Some(self.frame().await),
            Err(_) => None,
        }
    }

    /// One byte, whatever it is.
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

    /// The next message, of one frame, and whether it was compressed.
    pub async fn inflated(&mut self) -> (String, bool) {
        let (first, payload) = self.frame().await;
        self.message(first, payload)
    }

    /// What a frame says that is a whole message, and whether it was compressed.
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
            // It must not refer to anything before it.
            _ => deflate::inflate(&payload, 16 << 20, || Ok::<(), ()>(())).unwrap(),
        };
        (String::from_utf8(text).unwrap(), deflated)
    }

    /// The next message, of one frame.
    pub async fn text(&mut self) -> String {
        let (first, payload) = self.frame().await;
        assert_eq!(first, TEXT, "{}", String::from_utf8_lossy(&payload));
        String::from_utf8(payload).unwrap()
    }

    /// The connection still answers.
    pub async fn works(&mut self) {
        self.send(TEXT, CHAIN_ID).await;
        assert_eq!(self.text().await, CHAIN_ID_ANSWER);
    }

    /// Reads to the close frame: data frames before it, and its code.
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

    /// The app ends the connection; nothing comes before that.
    pub async fn ends(&mut self) {
        let mut byte = [0];
        let read = within("the end", self.socket.read(&mut byte)).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{byte:?}");
    }

    /// Reads whole messages until the connection ends in whatever way: how many bytes, and the close code if one came.
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

    /// A reset in place of a farewell.
    pub fn cut(self) {
        let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }
}
