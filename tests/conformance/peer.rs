//! A client that sends arbitrary bytes, accepts only valid RFC 6455 in return, and reports errors instead of
//! panicking, so that the suite continues with the next row.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client_frame;

/// Time limit, longer than any expected event takes, even when many tests share few cores.
const PATIENCE: Duration = Duration::from_secs(15);

/// Upgrade headers of a browser, without `Origin`.
const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    // RFC 6455's own example.
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(PATIENCE, future)
        .await
        .map_err(|_| format!("{what}: not within {PATIENCE:?}"))
}

/// Polls a condition until it is true.
pub async fn until(what: &str, mut seen: impl AsyncFnMut() -> bool) -> Result<(), String> {
    within(what, async {
        while !seen().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// An HTTP response.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    /// Pairs of lower-case name and value.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let name = name.to_ascii_lowercase();
        let found = self.headers.iter().find(|(own, _)| *own == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A message or frame from the server, or the end.
#[derive(Debug, PartialEq, Eq)]
pub enum PeerMessage {
    Text(String),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    /// The end of the connection.
    End,
}

impl PeerMessage {
    pub fn show(&self) -> String {
        match self {
            Self::Text(text) => text.replace('\n', "⏎"),
            Self::Pong(payload) => format!("pong {}", String::from_utf8_lossy(payload)),
            Self::Close(code, reason) => format!(
                "close {} {reason}",
                code.map(|code| code.to_string()).unwrap_or_default()
            ),
            Self::End => "the end of the connection".into(),
        }
    }
}

/// One WebSocket connection.
pub struct Peer {
    socket: TcpStream,
    /// `true` after the end of the connection.
    pub over: bool,
}

/// Sends one request on a new connection, and returns the connection if it was upgraded. `headers` replace the
/// default headers of an upgrade or a POST; `None` as a value removes the default.
pub async fn request(
    address: SocketAddr,
    line: &str,
    upgrade: bool,
    headers: &[(String, Option<String>)],
    body: Option<&str>,
) -> Result<(Reply, Option<Peer>), String> {
    let mut all: Vec<(&str, String)> = vec![("Host", address.to_string())];
    if upgrade {
        all.extend(UPGRADE.map(|(name, value)| (name, value.to_owned())));
    } else {
        all.push(("Connection", "close".into()));
    }
    if let Some(body) = body {
        all.push(("Content-Length", body.len().to_string()));
        all.push(("Content-Type", "application/json".into()));
    }
    for (name, value) in headers {
        all.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
        all.extend(value.clone().map(|value| (name.as_str(), value)));
    }
    let lines: String = all.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let text = format!("{line} HTTP/1.1\r\n{lines}\r\n{}", body.unwrap_or_default());
    let mut socket = within("connect", TcpStream::connect(address))
        .await?
        .map_err(|why| format!("connect: {why}"))?;
    // Requests are small; benchmarks measure throughput elsewhere.
    socket.set_nodelay(true).map_err(|why| why.to_string())?;
    // The server may refuse before it has read the whole request.
    let _ = within("write", socket.write_all(text.as_bytes())).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = within("the answer's head", socket.read_u8()).await?;
        head.push(byte.map_err(|why| format!("{why} in {:?}", String::from_utf8_lossy(&head)))?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let mut reply = Reply {
        status: status.ok_or_else(|| format!("no HTTP: {head}"))?,
        headers: lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect(),
        body: String::new(),
    };
    if reply.status == 101 {
        return Ok((reply, Some(Peer { socket, over: false })));
    }
    let length = reply.header("content-length").and_then(|length| length.parse().ok());
    let mut body = Vec::new();
    match length {
        _ if line.starts_with("HEAD") => {}
        Some(length) => {
            body.resize(length, 0);
            let read = within("the answer's body", socket.read_exact(&mut body)).await?;
            read.map_err(|why| format!("the answer's body: {why}"))?;
        }
        None => {
            let read = within("the answer's body", socket.read_to_end(&mut body)).await?;
            read.map_err(|why| format!("the answer's body: {why}"))?;
        }
    }
    reply.body = String::from_utf8_lossy(&body).into_owned();
    Ok((reply, None))
}

/// Posts JSON and returns the body of the response.
pub async fn post(address: SocketAddr, body: &str) -> Result<String, String> {
    Ok(request(address, "POST /", false, &[], Some(body)).await?.0.body)
}

impl Peer {
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let (reply, peer) = request(address, "GET /", true, &[], None).await?;
        peer.ok_or_else(|| format!("the upgrade: {} {}", reply.status, reply.body))
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        within("write", self.socket.write_all(bytes))
            .await?
            .map_err(|why| format!("write: {why}"))
    }

    /// Sends a masked frame, as a client must.
    pub async fn frame(&mut self, first: u8, payload: &[u8]) -> Result<(), String> {
        self.write(&client_frame::frame(first, payload)).await
    }

    pub async fn say(&mut self, text: &str) -> Result<(), String> {
        self.frame(0x81, text.as_bytes()).await
    }

    /// Returns the next complete message or control frame; answers pings.
    pub async fn hear(&mut self, what: &str) -> Result<PeerMessage, String> {
        within(what, self.next()).await?
    }

    async fn next(&mut self) -> Result<PeerMessage, String> {
        let mut message: Option<Vec<u8>> = None;
        loop {
            let Ok((first, payload)) = self.read_frame().await? else {
                self.over = true;
                return Ok(PeerMessage::End);
            };
            let last = first & 0x80 != 0;
            if first & 0x08 != 0 && (!last || payload.len() > 125) {
                return Err(format!("a control frame {first:#x} of {} bytes", payload.len()));
            }
            match (first & 0x0f, &mut message) {
                (1, None) => message = Some(payload),
                (0, Some(message)) => message.extend(payload),
                (8, _) => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    let reason = payload.get(2..).unwrap_or_default().to_vec();
                    let reason = String::from_utf8(reason).map_err(|_| "a close reason that is no UTF-8")?;
                    // Echoes the close frame; the server may be gone already.
                    let _ = self.frame(0x88, &payload).await;
                    return Ok(PeerMessage::Close(code, reason));
                }
                (9, _) => {
                    self.frame(0x8a, &payload).await?;
                    continue;
                }
                (10, _) => return Ok(PeerMessage::Pong(payload)),
                _ => {
                    return Err(format!(
                        "a frame {first:#x} out of place: {}",
                        String::from_utf8_lossy(&payload)
                    ));
                }
            }
            if last && let Some(message) = message.take() {
                let text = String::from_utf8(message).map_err(|_| "a text that is no UTF-8")?;
                return Ok(PeerMessage::Text(text));
            }
        }
    }

    /// Reads one frame; the inner error is the end of the connection.
    async fn read_frame(&mut self) -> Result<std::io::Result<(u8, Vec<u8>)>, String> {
        let read = async {
            let (first, len) = (self.socket.read_u8().await?, self.socket.read_u8().await?);
            let length = match len & 0x7f {
                126 => self.socket.read_u16().await? as usize,
                127 => self.socket.read_u64().await? as usize,
                len => len as usize,
            };
            let mut payload = vec![0; length];
            self.socket.read_exact(&mut payload).await?;
            Ok((first, len, payload))
        };
        Ok(match read.await {
            Ok((first, ..)) if first & 0x70 != 0 => return Err(format!("reserved bits in {first:#x}")),
            Ok((_, len, _)) if len & 0x80 != 0 => return Err("a masked frame".into()),
            Ok((first, _, payload)) => Ok((first, payload)),
            Err(why) => Err(why),
        })
    }
}
