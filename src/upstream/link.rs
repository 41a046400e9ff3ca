//! One open connection to a node over WebSocket or IPC: a reading half and a writing half.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, StreamExt};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config};
use url::Url;

use super::Endpoint;
use super::metered::{Meter, Metered};
use super::splitter::Splitter;
use crate::backoff::Failure;

type Socket = WebSocketStream<MaybeTlsStream<Metered<TcpStream>>>;

/// Buffer space for one read, in bytes. Tungstenite fills it with zeros each time it looks for bytes, also where there
/// are none: its default of 128 KiB cost each wake-up of an actor more than a call.
const READ_BYTES: usize = 16 << 10;

/// Failure of a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// WebSocket or TLS error, or a refused handshake.
    #[error("{0}")]
    Ws(Box<tokio_tungstenite::tungstenite::Error>),
    /// Socket error.
    #[error("{0}{hint}", hint = remedy(.0))]
    Io(#[from] io::Error),
    /// Failed look-up of the host's name.
    #[error("{0}; is that the node's name, and is it running?")]
    Name(#[source] io::Error),
    /// Message above the limit, in bytes.
    #[error("a message of more than {0} bytes (raise node.max_message_bytes)")]
    TooBig(usize),
    /// End of the connection by the node.
    #[error("the node closed the connection")]
    Closed,
}

impl From<tokio_tungstenite::tungstenite::Error> for LinkError {
    fn from(error: tokio_tungstenite::tungstenite::Error) -> Self {
        match error {
            tokio_tungstenite::tungstenite::Error::Io(error) => Self::Io(error),
            error => Self::Ws(Box::new(error)),
        }
    }
}

impl LinkError {
    /// Returns the kind of failure of [`connect`]. Published ports of containers accept connections and close them while
    /// no process listens behind them, and gateways answer 502, 503 or 504.
    pub(super) fn failure(&self) -> Failure {
        use tokio_tungstenite::tungstenite::Error;
        use tokio_tungstenite::tungstenite::error::ProtocolError::HandshakeIncomplete;
        match self {
            Self::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable => Failure::Refused,
                io::ErrorKind::TimedOut => Failure::Unanswered,
                _ => Failure::Other,
            },
            Self::Ws(error) => match &**error {
                Error::ConnectionClosed | Error::Protocol(HandshakeIncomplete) => Failure::Refused,
                Error::Http(answer) if matches!(answer.status().as_u16(), 502..=504) => Failure::Refused,
                _ => Failure::Other,
            },
            Self::Name(_) => Failure::Refused,
            Self::TooBig(_) | Self::Closed => Failure::Other,
        }
    }

    /// Checks if the connection failed because of a message above the limit.
    #[must_use]
    pub(super) fn is_too_big(&self) -> bool {
        match self {
            Self::Ws(error) => matches!(**error, tokio_tungstenite::tungstenite::Error::Capacity(_)),
            Self::TooBig(_) => true,
            Self::Io(_) | Self::Name(_) | Self::Closed => false,
        }
    }
}

/// Returns a hint for the operator, appended to the error message.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "; is the node running, and does it listen there?",
        io::ErrorKind::NotFound => "; is the node running, and is that the path of its socket?",
        io::ErrorKind::PermissionDenied => "; may this user open the node's socket?",
        _ => "",
    }
}

/// Item read from a connection.
#[derive(Debug)]
pub(super) enum Inbound {
    /// One message, whole.
    Message(Bytes),
    /// Sign of life without content, such as a pong.
    Alive,
}

/// Item to be written to a connection.
#[derive(Debug)]
pub(super) enum Outbound {
    /// One JSON text.
    Message(String),
    /// Ping, which requests a sign of life; dropped over IPC.
    Ping,
}

/// The reading half.
#[derive(Debug)]
pub(super) struct LinkReader {
    half: ReadHalf,
    meter: Meter,
}

#[derive(Debug)]
enum ReadHalf {
    Ws(SplitStream<Socket>),
    /// Socket, splitter of messages, and longest message that is read, in bytes.
    Ipc(OwnedReadHalf, Splitter, usize),
}

/// The writing half.
#[derive(Debug)]
pub(super) enum Writer {
    /// WebSocket, with its own queue of frames.
    Ws(SplitSink<Socket, Message>),
    /// Unix socket, and the bytes that it has not accepted yet.
    Ipc(OwnedWriteHalf, BytesMut),
}

/// Connects to a node; a longer message than `max_message_bytes` ends the connection.
///
/// # Errors
/// [`LinkError`] if connecting or the handshake fails, or if the endpoint is HTTP.
pub(super) async fn connect(
    endpoint: &Endpoint,
    max_message_bytes: usize,
    trust: &Arc<rustls::ClientConfig>,
) -> Result<(LinkReader, Writer), LinkError> {
    match endpoint {
        Endpoint::Ws(url) => {
            let config = WebSocketConfig::default()
                .read_buffer_size(READ_BYTES)
                .max_message_size(Some(max_message_bytes))
                .max_frame_size(Some(max_message_bytes));
            let request = with_basic_auth(url)?;
            let found = lookup_host(host_and_port(url)).await.map_err(LinkError::Name)?;
            let stream = TcpStream::connect(&found.collect::<Vec<_>>()[..]).await?;
            stream.set_nodelay(true)?;
            let meter = Meter::default();
            let stream = Metered::new(stream, meter.clone());
            let tls = Connector::Rustls(trust.clone());
            let (socket, _) = client_async_tls_with_config(request, stream, Some(config), Some(tls)).await?;
            let (sink, stream) = socket.split();
            let half = ReadHalf::Ws(stream);
            Ok((LinkReader { half, meter }, Writer::Ws(sink)))
        }
        Endpoint::Ipc(path) => {
            let (reader, writer) = UnixStream::connect(path).await?.into_split();
            let half = ReadHalf::Ipc(reader, Splitter::default(), max_message_bytes);
            let meter = Meter::default();
            Ok((LinkReader { half, meter }, Writer::Ipc(writer, BytesMut::new())))
        }
        Endpoint::Http(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "HTTP nodes are polled").into()),
    }
}

/// Returns host and port of a WebSocket URL. An IPv6 host is in brackets in the URL, but not in the result.
fn host_and_port(url: &Url) -> (String, u16) {
    let host = match url.host() {
        Some(url::Host::Ipv6(ip)) => ip.to_string(),
        Some(host) => host.to_string(),
        None => String::new(),
    };
    let port = url.port_or_known_default().unwrap_or(80);
    (host, port)
}

/// Builds the handshake request: user and password of the URL become an `Authorization` header, as in go-ethereum and
/// alloy. They are percent-encoded in a URL (RFC 3986 section 3.2.1) and not in the header (RFC 7617), as in reqwest
/// over HTTP.
fn with_basic_auth(url: &Url) -> Result<tokio_tungstenite::tungstenite::http::Request<()>, LinkError> {
    let mut bare = url.clone();
    // Neither call can fail for a URL that has a host.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    let mut request = bare.as_str().into_client_request()?;
    if !url.username().is_empty() || url.password().is_some() {
        use base64::Engine as _;
        let mut pair: Vec<u8> = percent_decode_str(url.username()).collect();
        pair.push(b':');
        pair.extend(percent_decode_str(url.password().unwrap_or_default()));
        let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        if let Ok(mut value) = value.parse::<http::HeaderValue>() {
            value.set_sensitive(true);
            request.headers_mut().insert(http::header::AUTHORIZATION, value);
        }
    }
    Ok(request)
}

impl LinkReader {
    /// Waits for the next message. Cancel-safe: bytes already read stay in the buffer.
    ///
    /// # Errors
    /// [`LinkError`] if the connection has ended or failed.
    pub(super) async fn next(&mut self) -> Result<Inbound, LinkError> {
        let Self { half, meter } = self;
        match half {
            ReadHalf::Ws(stream) => match stream.next().await.ok_or(LinkError::Closed)?? {
                message @ (Message::Text(_) | Message::Binary(_)) => Ok(Inbound::Message(message.into_data())),
                Message::Close(_) => Err(LinkError::Closed),
                _ => Ok(Inbound::Alive),
            },
            ReadHalf::Ipc(half, splitter, max) => loop {
                if let Some(value) = splitter.next() {
                    return Ok(Inbound::Message(value));
                }
                if splitter.len() > *max {
                    return Err(LinkError::TooBig(*max));
                }
                let buffer: &mut BytesMut = splitter.buffer();
                buffer.reserve(READ_BYTES);
                match half.read_buf(buffer).await? {
                    0 => return Err(LinkError::Closed),
                    read => meter.add(read),
                }
            },
        }
    }

    /// Returns the counter behind [`Self::received`].
    #[must_use]
    pub(super) fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Returns the number of bytes received so far, including those of an incomplete message.
    #[must_use]
    pub(super) fn received(&self) -> u64 {
        self.meter.total()
    }

    /// Checks if the node answers pings; over a Unix socket there are none.
    #[must_use]
    pub(super) fn has_pings(&self) -> bool {
        matches!(self.half, ReadHalf::Ws(_))
    }
}

impl Writer {
    /// Writes all queued messages at once. Cancel-safe: the next call writes what this one took out of the queue.
    ///
    /// # Errors
    /// [`LinkError`] if the connection has ended or failed.
    pub(super) async fn drain(&mut self, queue: &mut VecDeque<Outbound>) -> Result<(), LinkError> {
        poll_fn(|cx| self.poll_drain(cx, queue)).await
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, queue: &mut VecDeque<Outbound>) -> Poll<Result<(), LinkError>> {
        match self {
            Self::Ws(sink) => {
                let mut sink = Pin::new(sink);
                while !queue.is_empty() {
                    ready!(sink.as_mut().poll_ready(cx))?;
                    let message = queue.pop_front().map(|message| match message {
                        Outbound::Message(text) => Message::text(text),
                        Outbound::Ping => Message::Ping(Bytes::new()),
                    });
                    message.map_or(Ok(()), |message| sink.as_mut().start_send(message))?;
                }
                ready!(sink.poll_flush(cx))?;
            }
            Self::Ipc(half, unwritten) => {
                for message in queue.drain(..) {
                    match message {
                        Outbound::Message(text) => {
                            unwritten.extend_from_slice(text.as_bytes());
                            unwritten.extend_from_slice(b"\n");
                        }
                        // A Unix socket has no pings; the actor sends a cheap request instead.
                        Outbound::Ping => {}
                    }
                }
                while !unwritten.is_empty() {
                    match ready!(Pin::new(&mut *half).poll_write(cx, unwritten))? {
                        0 => return Poll::Ready(Err(LinkError::Closed)),
                        written => unwritten.advance(written),
                    }
                }
                // Frees the buffer, so that a long request does not keep its memory.
                *unwritten = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_or_socket_without_a_process_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("node.ipc");
        let failure = async |endpoint: Endpoint| {
            let trust = crate::tls::trust(None).unwrap();
            let connected = connect(&endpoint, 1000, &trust).await;
            connected.err().map(|error| error.failure())
        };
        let tcp = format!("ws://127.0.0.1:{port}").parse().unwrap();
        assert_eq!(failure(tcp).await, Some(Failure::Refused));
        let ipc = || Endpoint::Ipc(socket.clone());
        assert_eq!(failure(ipc()).await, Some(Failure::Refused), "no such path");
        drop(tokio::net::UnixListener::bind(&socket).unwrap());
        assert_eq!(
            failure(ipc()).await,
            Some(Failure::Refused),
            "a path that a process left behind"
        );
        let folder = Endpoint::Ipc(folder.path().join("node.ipc").join("below"));
        assert_eq!(failure(folder).await, Some(Failure::Other));
        let unknown = LinkError::Name(io::Error::other("no such name"));
        assert_eq!(unknown.failure(), Failure::Refused);
        assert_eq!(LinkError::Closed.failure(), Failure::Other);
    }

    /// Each row: the answer to the handshake, after which the connection is closed.
    #[tokio::test]
    async fn a_port_without_a_node_behind_it_refuses() {
        let answer = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        for (answer, expect) in [
            (String::new(), Failure::Refused),
            ("HTTP/1.1 ".into(), Failure::Refused),
            (answer("502 Bad Gateway"), Failure::Refused),
            (answer("503 Service Unavailable"), Failure::Refused),
            (answer("504 Gateway Timeout"), Failure::Refused),
            (answer("500 Internal Server Error"), Failure::Other),
            (answer("429 Too Many Requests"), Failure::Other),
            (answer("401 Unauthorized"), Failure::Other),
            (answer("200 OK"), Failure::Other),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
            let trust = crate::tls::trust(None).unwrap();
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                assert!(read > 0);
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes())
                    .await
                    .unwrap();
            };
            let (connected, ()) = tokio::join!(connect(&endpoint, 1000, &trust), serve);
            assert_eq!(connected.err().map(|error| error.failure()), Some(expect), "{answer}");
        }
    }

    #[test]
    fn hosts_are_read() {
        for (address, host, port) in [
            ("ws://node", "node", 80),
            ("wss://node/v1", "node", 443),
            ("ws://127.0.0.1:8546", "127.0.0.1", 8546),
            ("ws://user:key@[::1]:8546/", "::1", 8546),
        ] {
            let url = address.parse().unwrap();
            assert_eq!(host_and_port(&url), (host.to_owned(), port), "{address}");
        }
    }

    #[test]
    fn user_and_password_are_decoded() {
        for (address, expect) in [
            ("ws://node:1", None),
            ("ws://user:pass@node:1", Some("Basic dXNlcjpwYXNz")),
            ("ws://user@node:1", Some("Basic dXNlcjo=")),
            ("ws://:pass@node:1", Some("Basic OnBhc3M=")),
            // us@er:p@ss:/%
            (
                "wss://us%40er:p%40ss%3A%2F%25@node/v1?key=a%20b",
                Some("Basic dXNAZXI6cEBzczovJQ=="),
            ),
            // A plus stays a plus, an invalid escape stays as it is, and bytes need not be UTF-8.
            ("ws://a+b:100%@node:1", Some("Basic YStiOjEwMCU=")),
            ("ws://a:%ff@node:1", Some("Basic YTr/")),
        ] {
            let request = with_basic_auth(&address.parse().unwrap()).unwrap();
            let header = request.headers().get("authorization");
            assert_eq!(header.map(|value| value.to_str().unwrap()), expect, "{address}");
            assert!(header.is_none_or(http::HeaderValue::is_sensitive));
            assert!(!request.uri().to_string().contains('@'), "{}", request.uri());
        }
    }
}
