//! A client of HTTP/2 on one connection.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::harness::within;

pub struct Peer {
    pub requests: SendRequest<Bytes>,
    running: JoinHandle<Result<(), h2::Error>>,
}

/// A whole response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Returns a request with this path, and these headers as `name: value`.
pub fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://localhost{path}"))
        .version(http::Version::HTTP_2);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

pub fn post() -> Request<()> {
    request(Method::POST, "/", &[("content-type", "application/json")])
}

impl Peer {
    /// Connects without TLS, by prior knowledge.
    pub async fn connect(address: SocketAddr) -> Self {
        // By default h2's client gives up after a hundred short frames that its streams have not taken yet.
        Self::with(address, Builder::new().data_frame_budget(1 << 20)).await
    }

    pub async fn with(address: SocketAddr, builder: &Builder) -> Self {
        let socket = within("connect", TcpStream::connect(address)).await.unwrap();
        Self::over(socket, builder).await
    }

    pub async fn over<S>(socket: S, builder: &Builder) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = within("handshake", builder.handshake(socket)).await.unwrap();
        let running = tokio::spawn(connection);
        let requests = within("ready", requests.ready()).await.unwrap();
        Self { requests, running }
    }

    /// Sends a request with this body, and returns its response once it comes.
    pub async fn send(&mut self, request: Request<()>, body: impl Into<Bytes>) -> ResponseFuture {
        let body = body.into();
        let requests = within("a place for a stream", self.requests.clone().ready()).await;
        self.requests = requests.unwrap();
        let (response, mut stream) = self.requests.send_request(request, body.is_empty()).unwrap();
        if !body.is_empty() {
            // Bodies of the tests fit into the window.
            stream.send_data(body, true).unwrap();
        }
        response
    }

    pub async fn ask(&mut self, request: Request<()>, body: impl Into<Bytes>) -> Answer {
        whole(self.send(request, body).await).await
    }

    /// Posts JSON, and returns the text of the answer, whose status must be 200.
    pub async fn post(&mut self, body: &str) -> String {
        let answer = self.ask(post(), body.to_owned()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text().to_owned()
    }

    /// Waits for the server to end the connection, and returns the reason of its `GOAWAY`.
    pub async fn ended(self) -> Option<Reason> {
        drop(self.requests);
        let ended = within("the connection ends", self.running).await.unwrap();
        ended.err().and_then(|why| why.reason())
    }

    /// Opens a stream of events, which must begin.
    pub async fn events(&mut self, query: &str, last: &str) -> Events {
        let headers: &[_] = if last.is_empty() {
            &[]
        } else {
            &[("last-event-id", last)]
        };
        let request = request(Method::GET, &format!("/events?{query}"), headers);
        let response = within("a stream", self.send(request, "").await).await.unwrap();
        assert_eq!(response.status(), 200);
        let (head, body) = response.into_parts();
        Events {
            headers: head.headers,
            body,
            text: BytesMut::new(),
        }
    }

    /// Opens a WebSocket by an extended CONNECT with these headers; returns the headers of the response.
    pub async fn web_socket(
        &mut self,
        headers: &[(&str, &str)],
    ) -> Result<(WebSocketStream<DuplexStream>, HeaderMap), u16> {
        let headers = [&[("sec-websocket-version", "13")], headers].concat();
        let mut request = request(Method::CONNECT, "/", &headers);
        request
            .extensions_mut()
            .insert(h2::ext::Protocol::from_static("websocket"));
        let (response, stream) = self.requests.send_request(request, false).unwrap();
        let response = within("a handshake", response).await.unwrap();
        if response.status() != 200 {
            return Err(response.status().as_u16());
        }
        let (head, body) = response.into_parts();
        let socket = WebSocketStream::from_raw_socket(duplex(stream, body), Role::Client, None).await;
        Ok((socket, head.headers))
    }
}

/// Returns the bytes of a stream as a socket.
fn duplex(mut send: SendStream<Bytes>, mut receive: RecvStream) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (mut read, mut write) = tokio::io::split(ours);
    tokio::spawn(async move {
        let mut bytes = vec![0; 16 << 10];
        loop {
            match read.read(&mut bytes).await {
                Ok(count) if count > 0 => send.send_data(Bytes::copy_from_slice(&bytes[..count]), false).unwrap(),
                _ => return drop(send.send_data(Bytes::new(), true)),
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(data)) = receive.data().await {
            receive.flow_control().release_capacity(data.len()).unwrap();
            if write.write_all(&data).await.is_err() {
                return;
            }
        }
        drop(write.shutdown().await);
    });
    theirs
}

/// Reads a whole response.
pub async fn whole(response: ResponseFuture) -> Answer {
    let response = within("a response", response).await.unwrap();
    let (head, mut body) = response.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(data) = within("a body", body.data()).await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: bytes.freeze(),
    }
}

/// A stream of events.
pub struct Events {
    pub headers: HeaderMap,
    pub body: RecvStream,
    text: BytesMut,
}

impl Events {
    /// Returns the value of the next line that begins with this field; `None` at the end of the stream.
    pub async fn next(&mut self, field: &str) -> Option<String> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line = self.text.split_to(end + 1);
                let line = std::str::from_utf8(&line).unwrap().trim_end();
                if let Some(value) = line.strip_prefix(field).and_then(|rest| rest.strip_prefix(": ")) {
                    return Some(value.to_owned());
                }
                continue;
            }
            let data = within("an event", self.body.data()).await?.unwrap();
            self.body.flow_control().release_capacity(data.len()).unwrap();
            self.text.extend_from_slice(&data);
        }
    }

    pub async fn json(&mut self) -> Value {
        serde_json::from_str(&self.next("data").await.unwrap()).unwrap()
    }
}

/// Waits up to this long for the server to end a socket; returns all bytes that came.
pub async fn rest(socket: &mut TcpStream, patience: Duration) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = tokio::time::timeout(patience, async {
        let mut piece = vec![0; 64 << 10];
        while let Ok(count) = socket.read(&mut piece).await {
            if count == 0 {
                break;
            }
            bytes.extend_from_slice(&piece[..count]);
        }
    });
    reading.await.expect("the server ends the connection");
    bytes
}
