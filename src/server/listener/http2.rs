//! HTTP/2 connections: requests and sessions on streams of one connection.
//!
//! ```text
//! preface  finds connections without TLS that speak HTTP/2
//! meter    counts frames that carry nothing, and gives other tasks their turn
//! stream   one stream: its request, its response, or a WebSocket
//! ```
//!
//! A stream is a request, as over HTTP/1.1. What streams of one connection could multiply is shared by them: the calls in
//! flight have the places of one connection, and each session counts as one more connection. Bytes are given to h2 only
//! as far as the client's windows are open, so that the rest waits in its own place, counted, and with a time limit.

mod meter;
mod preface;
mod stream;

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection};
use h2::{Ping, PingPong, Reason};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::debug;

use self::meter::Metered;
pub(super) use self::preface::is_preface;
use super::HttpConnection;
use super::service::MAX_HEAD;
use crate::panics;
use crate::server::write_timeout::WriteTimeout;

/// HTTP/2 to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Http2 {
    /// HTTP/1.1 alone.
    Off,
    /// Over TLS, by ALPN.
    Tls,
    /// Over TLS, and without TLS by prior knowledge.
    On,
}

/// Settings of HTTP/2 connections.
#[derive(Clone, Copy, Debug)]
pub struct Http2Settings {
    /// Connections that may speak HTTP/2.
    pub offered: Http2,
    /// Most streams of a connection at a time.
    pub max_streams: u32,
    /// Interval between pings.
    pub ping_interval: Duration,
    /// Time limit for the answer to a ping.
    pub silence_timeout: Duration,
}

/// Bytes of one stream given to h2 at once: a frame. So much of each stream may wait for a socket that is full.
const CHUNK: usize = 16 << 10;

/// Window of a stream, in bytes: what a client may send of a body before it is read.
const STREAM_WINDOW: u32 = 64 << 10;

/// Window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Budget of h2 for small DATA frames that no stream has taken yet: 256 bytes less their length for each. A burst of short
/// messages that is read in one turn (16 KiB of frames with a byte each) must fit.
const SMALL_FRAMES: usize = 512 << 10;

/// Streams that a client resets before they are taken; more end the connection (CVE-2023-44487).
const MAX_UNTAKEN_RESETS: usize = 20;

/// Streams that break the protocol; more end the connection.
const MAX_ERROR_RESETS: usize = 256;

/// Wait for a client to close a connection without streams, after `GOAWAY`.
const LINGER: Duration = Duration::from_secs(1);

/// Serves one connection, up to its end.
pub(super) async fn serve<S>(stream: S, connection: Arc<HttpConnection>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connection.calls.get_or_init(Arc::default);
    let settings = connection.settings();
    let stream = Metered::new(WriteTimeout::new(stream, settings.write_deadline));
    let handshake = builder(settings.http2).handshake::<_, Bytes>(stream);
    match tokio::time::timeout(settings.header_timeout, handshake).await {
        Ok(Ok(http2)) => Driver::new(http2, connection).run().await,
        Ok(Err(why)) => debug!("http/2: {why}"),
        Err(_) => debug!("http/2: no preface in time"),
    }
}

fn builder(settings: Http2Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(MAX_HEAD as u32)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(CHUNK)
        .data_frame_budget(SMALL_FRAMES)
        .max_pending_accept_reset_streams(MAX_UNTAKEN_RESETS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .enable_connect_protocol();
    builder
}

/// Task of one connection.
struct Driver<S> {
    http2: Connection<S, Bytes>,
    connection: Arc<HttpConnection>,
    pings: Option<PingPong>,
    /// Time of the last ping, and if its answer is missing.
    pinged: (Instant, bool),
    /// Time since which the connection is known to have no streams.
    idle_since: Option<Instant>,
    /// `true` once no more requests are taken.
    is_ending: bool,
}

/// Event that wakes the task.
enum Woken {
    Request(Box<(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)>),
    Pong,
    Round,
    End,
    Over(Option<h2::Error>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    fn new(mut http2: Connection<S, Bytes>, connection: Arc<HttpConnection>) -> Self {
        let now = Instant::now();
        Self {
            pings: http2.ping_pong(),
            http2,
            connection,
            pinged: (now, false),
            idle_since: Some(now),
            is_ending: false,
        }
    }

    async fn run(mut self) {
        let round = tokio::time::sleep_until(self.next_round());
        tokio::pin!(round);
        loop {
            let (connection, is_ending) = (self.connection.clone(), self.is_ending);
            let (pings, awaits_pong) = (&mut self.pings, self.pinged.1);
            let pong = async {
                match pings {
                    Some(pings) if awaits_pong => poll_fn(|cx| pings.poll_pong(cx)).await,
                    _ => pending().await,
                }
            };
            let woken = tokio::select! {
                accepted = self.http2.accept() => match accepted {
                    Some(Ok(request)) => Woken::Request(Box::new(request)),
                    Some(Err(why)) => Woken::Over(Some(why)),
                    None => Woken::Over(None),
                },
                pong = pong => match pong {
                    Ok(_) => Woken::Pong,
                    Err(why) => Woken::Over(Some(why)),
                },
                () = &mut round => Woken::Round,
                () = connection.shared.stop.cancelled(), if !is_ending => Woken::End,
                () = connection.taken_over.notified(), if !is_ending => Woken::End,
            };
            match woken {
                // The client may send it again on another connection.
                Woken::Request(mut request) if self.is_ending => request.1.send_reset(Reason::REFUSED_STREAM),
                Woken::Request(request) => self.begin(*request),
                Woken::Pong => self.pinged.1 = false,
                Woken::End => self.end(),
                Woken::Round => {
                    if !self.goes_on() {
                        return;
                    }
                }
                Woken::Over(why) => {
                    if let Some(why) = why {
                        debug!("http/2: {why}");
                    }
                    return;
                }
            }
            round.as_mut().reset(self.next_round());
        }
    }

    fn begin(&mut self, (request, respond): (http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)) {
        self.idle_since = None;
        let connection = self.connection.clone();
        let metrics = connection.shared.services.metrics.clone();
        self.connection.shared.tasks.spawn(async move {
            panics::caught("connection", &metrics, stream::serve(request, respond, connection)).await;
        });
    }

    /// Sends `GOAWAY`: streams go on, and requests that come nevertheless are refused.
    fn end(&mut self) {
        (self.is_ending, self.idle_since) = (true, None);
        self.http2.graceful_shutdown();
    }

    /// Checks the time limits; returns `false` if the connection has to be cut off.
    fn goes_on(&mut self) -> bool {
        let now = Instant::now();
        let (http2, header_timeout) = {
            let settings = self.connection.settings();
            (settings.http2, settings.header_timeout)
        };
        if self.http2.has_streams() {
            self.idle_since = None;
        } else if let Some(since) = self.idle_since {
            if self.is_ending {
                return now < since + LINGER;
            }
            if now >= since + header_timeout {
                self.end();
            }
        } else {
            self.idle_since = Some(now);
        }
        let (at, is_awaited) = self.pinged;
        if is_awaited {
            return now < at + http2.silence_timeout;
        }
        if now >= at + http2.ping_interval {
            let sent = self.pings.as_mut().map(|pings| pings.send_ping(Ping::opaque()));
            self.pinged = (now, sent.is_some_and(|sent| sent.is_ok()));
        }
        true
    }

    /// Returns the time at which a limit may be reached.
    fn next_round(&self) -> Instant {
        let settings = self.connection.settings();
        let idle = if self.is_ending {
            LINGER
        } else {
            settings.header_timeout
        };
        let idle = self.idle_since.unwrap_or_else(Instant::now) + idle;
        let (at, is_awaited) = self.pinged;
        let limit = match is_awaited {
            true => settings.http2.silence_timeout,
            false => settings.http2.ping_interval,
        };
        idle.min(at + limit)
    }
}
