//! Accepts connections and hands each to its protocol.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::handshake::{self, Origins, Refusal};
use super::{extension, post};
use crate::delivery::Compression;
use crate::session::{self, Services};
use crate::telemetry::ReasonLabel;

/// Bounds of the door.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Most open connections, of either kind.
    pub max_connections: usize,
    /// How long a client may take to send a request's head.
    pub header_timeout: Duration,
    /// Longest HTTP body, in bytes.
    pub max_body_bytes: usize,
    /// Which browser pages may connect.
    pub origins: Origins,
    /// Whether an offer of permessage-deflate is taken.
    pub compression: bool,
}

impl ServerSettings {
    /// How long a body may take: three times what its head may; 30 s by default, as in geth (`rpc/http.go`).
    #[must_use]
    pub fn body_timeout(&self) -> Duration {
        self.header_timeout * 3
    }
}

/// Connections above the limit that are still answered, with 429; beyond these they are dropped unheard.
const TURNED_AWAY: usize = 64;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// The listening end.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    door: Arc<Door>,
}

/// What every connection shares.
#[derive(Debug)]
struct Door {
    settings: ServerSettings,
    services: Arc<Services>,
    open: AtomicUsize,
    stop: CancellationToken,
    /// Everything that serves a connection, so that the end can wait for it.
    tasks: TaskTracker,
}

/// One open connection; counted until dropped.
struct Open(Arc<Door>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Serves a socket that is already bound, until `stop`.
    #[must_use]
    pub fn new(
        listener: TcpListener,
        settings: ServerSettings,
        services: Arc<Services>,
        stop: CancellationToken,
    ) -> Self {
        let door = Door {
            settings,
            services,
            open: AtomicUsize::new(0),
            stop,
            tasks: TaskTracker::new(),
        };
        Self {
            listener,
            door: Arc::new(door),
        }
    }

    /// Accepts until told to stop; what is still served can be waited for. Sessions go on, see
    /// [`session::Clients::drain`].
    pub async fn run(self) -> TaskTracker {
        let stop = self.door.stop.clone();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => {
                    self.door.tasks.close();
                    return self.door.tasks.clone();
                }
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    // Out of file descriptors: accepting again at once would spin.
                    warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let before = self.door.open.fetch_add(1, Ordering::Relaxed);
        let open = Open(self.door.clone());
        let max = self.door.settings.max_connections;
        if before >= max + TURNED_AWAY {
            self.door.refused(Refusal::Full);
            return;
        }
        if let Err(error) = stream.set_nodelay(true) {
            debug!("TCP_NODELAY: {error}");
        }
        self.door.tasks.spawn(serve(stream, peer.ip(), open, before >= max));
    }
}

impl Door {
    fn refused(&self, why: Refusal) {
        self.services
            .metrics
            .refused
            .get_or_create(&ReasonLabel { reason: why.label() })
            .inc();
    }
}

/// One connection: HTTP until it upgrades.
async fn serve(stream: TcpStream, peer: IpAddr, open: Open, full: bool) {
    let door = open.0.clone();
    let open = Arc::new(open);
    let service = service_fn(|request: Request<Incoming>| {
        let open = open.clone();
        async move { Ok::<_, std::convert::Infallible>(respond(request, peer, open, full).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(door.settings.header_timeout)
        .max_buf_size(MAX_HEAD)
        .keep_alive(!full)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = door.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!("http: {error}");
    }
}

async fn respond(request: Request<Incoming>, peer: IpAddr, open: Arc<Open>, full: bool) -> Response<Full<Bytes>> {
    let door = &open.0;
    if full {
        return refuse(door, Refusal::Full);
    }
    if !handshake::is_upgrade(&request) {
        if let Err(why) = handshake::check_origin(&request, &door.settings.origins) {
            return refuse(door, why);
        }
        return post::answer(request, peer, &door.services, &door.settings).await;
    }
    let accept = match handshake::check(&request, &door.settings.origins) {
        Ok(accept) => accept,
        Err(why) => return refuse(door, why),
    };
    let extension = if door.settings.compression {
        extension::agree(request.headers())
    } else {
        None
    };
    let compression = extension.map_or(Compression::None, |agreed| agreed.compression);
    let services = door.services.clone();
    let upgrade = hyper::upgrade::on(request);
    let tasks = door.tasks.clone();
    tasks.spawn(async move {
        match upgrade.await.map_err(io::Error::other).and_then(bare) {
            Ok((socket, early)) => session::serve(socket, early, peer, compression, services).await,
            Err(error) => debug!("upgrade: {error}"),
        }
        drop(open);
    });
    let mut response = post::plain(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(agreed) = extension {
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(agreed.answer));
    }
    response
}

fn refuse(door: &Door, why: Refusal) -> Response<Full<Bytes>> {
    door.refused(why);
    let (status, body) = why.answer();
    let mut response = post::plain(status, body);
    match why {
        Refusal::Malformed => drop(
            response
                .headers_mut()
                .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        ),
        Refusal::Full => drop(
            response
                .headers_mut()
                .insert("retry-after", HeaderValue::from_static("10")),
        ),
        Refusal::Origin => {}
    }
    response
}

/// The socket itself, and what was read behind the handshake.
fn bare(upgraded: Upgraded) -> io::Result<(TcpStream, Bytes)> {
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => Ok((parts.io.into_inner(), parts.read_buf)),
        Err(_) => Err(io::Error::other("the connection is not the socket that was accepted")),
    }
}
