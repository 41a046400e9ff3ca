//! A client of the load generator: its connection, its subscriptions, and the decoding of received bytes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use headwater::deflate::Inflater;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_EXTENSIONS;
use tokio_tungstenite::tungstenite::{self, http};
use tokio_tungstenite::{Connector, MaybeTlsStream, client_async_tls_with_config};
use url::Url;

use headwater::tls::trust;

use super::frames::{BINARY, CLOSE, FrameReader, Message, PING, PONG, TEXT, client_frame};
use super::run::Run;
use super::stream::{Feed, Receipt, Stream};

/// Bytes; enough for a burst of some hundred logs, so that a client usually needs one read per burst. All clients share
/// the buffer.
const READ_BUFFER: usize = 256 * 1024;

const HANDSHAKE: Duration = Duration::from_secs(30);

/// The endpoint, resolved once for all clients.
pub struct Target {
    url: Url,
    address: SocketAddr,
    connector: Connector,
    /// `true` if clients offer permessage-deflate.
    compress: bool,
}

/// The offer of a browser: the server may keep its compression context from message to message.
const OFFER: HeaderValue = HeaderValue::from_static("permessage-deflate; client_max_window_bits");

type Socket = MaybeTlsStream<TcpStream>;

impl Target {
    /// Resolves `url`. With `compress`, clients offer permessage-deflate.
    pub async fn of(url: &str, compress: bool) -> Result<Self> {
        let parsed: Url = url
            .parse()
            .with_context(|| format!("{url} is not a valid URL: use one such as ws://127.0.0.1:9546"))?;
        ensure!(
            matches!(parsed.scheme(), "ws" | "wss"),
            "{url} is not a valid WebSocket URL: use ws:// or wss://"
        );
        let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = parsed.port_or_known_default().unwrap_or(80);
        let address = tokio::net::lookup_host((host, port))
            .await
            .with_context(|| format!("cannot find {host}; is the name right?"))?
            .next()
            .with_context(|| format!("{host} has no address"))?;
        let connector = if parsed.scheme() == "wss" {
            Connector::Rustls(trust(None)?)
        } else {
            Connector::Plain
        };
        Ok(Self {
            url: parsed,
            address,
            connector,
            compress,
        })
    }

    async fn connect(&self) -> Result<Socket> {
        let stream = TcpStream::connect(self.address)
            .await
            .with_context(|| format!("cannot connect to {}; is a server running there?", self.url))?;
        stream.set_nodelay(true)?;
        let mut request = self.url.as_str().into_client_request()?;
        if self.compress {
            request.headers_mut().insert(SEC_WEBSOCKET_EXTENSIONS, OFFER);
        }
        let upgrade = client_async_tls_with_config(request, stream, None, Some(self.connector.clone()));
        match upgrade.await {
            Ok((socket, answer)) => {
                ensure!(
                    !self.compress || answer.headers().contains_key(SEC_WEBSOCKET_EXTENSIONS),
                    "{} declined compression; enable it there (headwater: delivery.compression = \"on\") or omit \
                     --compress",
                    self.url
                );
                // The server sends nothing before a request, so no data is lost with the buffers of the handshake.
                Ok(socket.into_inner())
            }
            Err(tungstenite::Error::Http(answer)) if answer.status() == http::StatusCode::TOO_MANY_REQUESTS => {
                bail!(
                    "HTTP 429 from {}; raise its limit of connections or use fewer --clients",
                    self.url
                )
            }
            Err(error) => {
                Err(error).with_context(|| format!("{} refused the WebSocket handshake; is the URL right?", self.url))
            }
        }
    }
}

/// State shared by all clients.
pub struct Shared {
    pub target: Target,
    pub run: RefCell<Run>,
    buffer: RefCell<Box<[u8]>>,
}

impl Shared {
    pub fn new(target: Target, run: Run) -> Self {
        Self {
            target,
            run: RefCell::new(run),
            buffer: RefCell::new(vec![0; READ_BUFFER].into()),
        }
    }
}

/// Connects and subscribes. The caller passes the socket to `listen` next.
pub async fn connect(shared: &Shared, number: usize) -> Result<Socket> {
    let subscribing = async {
        let mut socket = shared.target.connect().await?;
        let calls = shared.run.borrow().subscribe_calls(number);
        for call in calls {
            socket.write_all(&client_frame(TEXT, call.as_bytes())).await?;
        }
        while !shared.run.borrow().subscribed(number) {
            turn(shared, number, &mut socket).await?;
        }
        Ok(socket)
    };
    tokio::time::timeout(HANDSHAKE, subscribing)
        .await
        .with_context(|| format!("no answer to eth_subscribe within {} s", HANDSHAKE.as_secs()))?
}

/// Reads until the connection ends, and returns the reason.
pub async fn listen(shared: Rc<Shared>, number: usize, mut socket: Socket) -> anyhow::Error {
    loop {
        if let Err(error) = turn(&shared, number, &mut socket).await {
            return error;
        }
    }
}

/// Reads once. Whole messages are parsed in the shared buffer, without a copy.
async fn turn(shared: &Shared, number: usize, socket: &mut Socket) -> Result<()> {
    let replies = poll_fn(|cx| {
        let mut buffer = shared.buffer.borrow_mut();
        let mut read = ReadBuf::new(&mut buffer);
        ready!(Pin::new(&mut *socket).poll_read(cx, &mut read))?;
        Poll::Ready(if read.filled().is_empty() {
            Err(anyhow::anyhow!("the connection ended without a close frame"))
        } else {
            shared.run.borrow_mut().received(number, read.filled())
        })
    })
    .await?;
    if !replies.is_empty() {
        socket.write_all(&replies).await?;
    }
    Ok(())
}

/// State of one client.
pub struct Client {
    frames: FrameReader,
    /// `None` if compression was not offered.
    inflater: Option<Inflater>,
    pub subscriptions: Vec<Subscription>,
}

/// One subscription; its index among the client's subscriptions is the id of its request.
pub struct Subscription {
    pub stream: usize,
    /// `None` until `eth_subscribe` is answered.
    pub given: Option<Given>,
}

pub struct Given {
    id: String,
    /// `None` until the first notification.
    envelope: Option<Envelope>,
    pub feed: Feed,
}

/// The bytes before and after the result in every notification of a subscription.
struct Envelope {
    before: Box<[u8]>,
    after: Box<[u8]>,
}

impl Given {
    /// Returns the result in `message` if the bytes around it match the first notification.
    fn result<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        let Envelope { before, after } = self.envelope.as_ref()?;
        message.strip_prefix(&**before)?.strip_suffix(&**after)
    }
}

/// An answer or a notification.
#[derive(Deserialize)]
struct Incoming<'a> {
    id: Option<usize>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<Value>,
    #[serde(borrow)]
    params: Option<Notification<'a>>,
}

#[derive(Deserialize)]
struct Notification<'a> {
    subscription: String,
    #[serde(borrow)]
    result: &'a RawValue,
}

impl Client {
    /// Creates a client with one subscription per stream index. With `compress`, it offers permessage-deflate.
    pub fn new(streams: impl Iterator<Item = usize>, compress: bool) -> Self {
        let asked = |stream| Subscription { stream, given: None };
        Self {
            frames: FrameReader::new(compress),
            inflater: compress.then(Inflater::default),
            subscriptions: streams.map(asked).collect(),
        }
    }

    /// Processes the bytes of one read; returns the bytes to send back (pongs).
    pub fn received(&mut self, bytes: &[u8], streams: &mut [Stream], mut on: impl FnMut(Receipt)) -> Result<Vec<u8>> {
        let now = Instant::now();
        let mut replies = Vec::new();
        let Self {
            frames,
            inflater,
            subscriptions,
        } = self;
        let message_of = |Message {
                              opcode,
                              compressed,
                              mut payload,
                          }: Message<'_>| match opcode {
            TEXT | BINARY => {
                if let Some(inflater) = inflater.as_mut().filter(|_| compressed) {
                    let mut text = Vec::with_capacity(4 * payload.len());
                    inflater
                        .inflate(&payload, &mut text)
                        .context("the server sent a message that is not valid DEFLATE")?;
                    payload = text.into();
                }
                if let Some(receipt) = message(subscriptions, &payload, streams, now)? {
                    on(receipt);
                }
                Ok(())
            }
            PING => {
                replies.extend(client_frame(PONG, &payload));
                Ok(())
            }
            CLOSE => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                bail!("closed with {code} {reason}")
            }
            _ => Ok(()),
        };
        frames.feed(bytes, message_of)?;
        Ok(replies)
    }
}

fn message(
    subscriptions: &mut [Subscription],
    message: &[u8],
    streams: &mut [Stream],
    now: Instant,
) -> Result<Option<Receipt>> {
    for Subscription { stream, given } in &mut *subscriptions {
        if let Some(given) = given
            && let Some(result) = given.result(message)
        {
            return streams[*stream].take(&mut given.feed, result, now).map(Some);
        }
    }
    let quoted = || String::from_utf8_lossy(&message[..message.len().min(300)]).into_owned();
    let incoming: Incoming<'_> =
        serde_json::from_slice(message).with_context(|| format!("not JSON-RPC: {}", quoted()))?;
    if let Some(Notification { subscription, result }) = incoming.params {
        let result = result.get().as_bytes();
        let at = result.as_ptr() as usize - message.as_ptr() as usize;
        for Subscription { stream, given } in subscriptions {
            if let Some(given) = given.as_mut().filter(|given| given.id == subscription) {
                given.envelope = Some(Envelope {
                    before: message[..at].into(),
                    after: message[at + result.len()..].into(),
                });
                return streams[*stream].take(&mut given.feed, result, now).map(Some);
            }
        }
        bail!(
            "the server sent a notification for an unknown subscription: {}",
            quoted()
        );
    }
    if let Some(error) = incoming.error {
        let remedy = if error["code"] == -32005 {
            "; lower --connect-rate or raise its limit"
        } else {
            ""
        };
        bail!("eth_subscribe was refused: {error}{remedy}");
    }
    let id: String = incoming
        .result
        .and_then(|result| serde_json::from_str(result.get()).ok())
        .with_context(|| format!("not an answer to eth_subscribe: {}", quoted()))?;
    let asked = incoming.id.and_then(|at| subscriptions.get_mut(at));
    let Subscription { stream, given } =
        asked.with_context(|| format!("the server answered a request that was not sent: {}", quoted()))?;
    *given = Some(Given {
        id,
        envelope: None,
        feed: Feed::new(streams[*stream].len()),
    });
    Ok(None)
}
