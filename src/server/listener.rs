//! Accepts connections and serves HTTP on them, until they upgrade to WebSocket.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::response_body::Body;
use super::write_timeout::WriteTimeout;
use super::{handshake, http_response, http_rpc, permessage_deflate, proxy_protocol};
use crate::delivery::{Compression, Socket};
use crate::door::{Caller, ConnectionSlot, Crowd, Handshake, Pass, Refusal, Refusals, Seat};
use crate::panics;
use crate::session::{self, Services};
use crate::tls::Certificate;

/// Server settings that do not change while the process runs.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Time limit for each of a PROXY header, a TLS handshake and a request's head.
    pub header_timeout: Duration,
    /// Time limit for a client to take the next bytes of a response; then the connection is cut off.
    pub write_deadline: Duration,
    /// `true` if offers of permessage-deflate are accepted.
    pub compression: bool,
    /// `true` if every connection begins with a PROXY protocol header, version 2.
    pub proxied: bool,
    /// TLS configuration at the start; `None` for a port without TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

impl ServerSettings {
    /// Returns the time limit for a body: three times that for a head; 30 s by default, as in geth (`rpc/http.go`).
    #[must_use]
    pub fn body_timeout(&self) -> Duration {
        self.header_timeout * 3
    }
}

/// Refused connections that are open at the same time and get a 429 or 503; further ones are dropped without a
/// response.
const TURNED_AWAY: usize = 64;

/// Allowance for displaced connections that are still closing: this many, and one in this many of all connections, may
/// be open beyond the limit.
const LEAVING: usize = 16;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Listening socket and the state of its connections.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    shared: Arc<ServerShared>,
}

/// State shared by all connections.
#[derive(Debug)]
struct ServerShared {
    settings: ServerSettings,
    certificate: Option<Arc<Certificate>>,
    services: Arc<Services>,
    open: AtomicUsize,
    crowd: Crowd,
    /// Number of connections accepted since the start.
    accepted: AtomicU64,
    turned_away: AtomicUsize,
    stop: CancellationToken,
    /// All tasks that serve a connection, awaited at shutdown.
    tasks: TaskTracker,
}

/// Open connection, counted until dropped.
#[derive(Debug)]
struct Open {
    shared: Arc<ServerShared>,
    /// Seat among all open connections, taken once the client's address is known.
    seat: OnceLock<Seat>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connection that speaks HTTP.
pub(super) struct Connection {
    shared: Arc<ServerShared>,
    open: Arc<Open>,
    caller: Caller,
    /// Refusal, if every request on this connection is answered with it.
    turned_away: Option<Refusal>,
    /// Cancelled when the connection is displaced by another one.
    displaced: CancellationToken,
    kept: Mutex<ConnectionState>,
}

/// State that a connection gains and gives back while open.
#[derive(Default)]
struct ConnectionState {
    /// ConnectionSlot among the connections without a request, until the first request.
    handshake: Option<Handshake>,
    /// ConnectionSlot among its client's connections, from the first admitted request on.
    place: Option<ConnectionSlot>,
    refusals: Refusals,
}

impl Connection {
    /// Returns the services shared by all connections.
    pub(super) fn services(&self) -> &Arc<Services> {
        &self.shared.services
    }

    pub(super) fn settings(&self) -> &ServerSettings {
        &self.shared.settings
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.turned_away.is_some() {
            self.shared.turned_away.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Server {
    /// Creates a server for a bound socket, over TLS if there is a certificate. Serves until `stop` is cancelled.
    #[must_use]
    pub fn new(
        listener: TcpListener,
        certificate: Option<Arc<Certificate>>,
        settings: ServerSettings,
        services: Arc<Services>,
        stop: CancellationToken,
    ) -> Self {
        let shared = ServerShared {
            settings,
            certificate,
            services,
            open: AtomicUsize::new(0),
            crowd: Crowd::default(),
            accepted: AtomicU64::new(0),
            turned_away: AtomicUsize::new(0),
            stop,
            tasks: TaskTracker::new(),
        };
        Self {
            listener,
            shared: Arc::new(shared),
        }
    }

    /// Accepts connections until stopped; returns a tracker to wait for those still open. Sessions are not ended here,
    /// see [`session::Clients::drain`].
    pub async fn run(self) -> TaskTracker {
        let stop = self.shared.stop.clone();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => {
                    self.shared.tasks.close();
                    return self.shared.tasks.clone();
                }
            };
            match accepted {
                Ok((stream, peer)) => self.accept(stream, peer.ip()),
                Err(error) => {
                    // Out of file descriptors: accepting again at once would spin.
                    warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn accept(&self, stream: TcpStream, peer: IpAddr) {
        let shared = &self.shared;
        let before = shared.open.fetch_add(1, Ordering::Relaxed);
        let open = Arc::new(Open {
            shared: shared.clone(),
            seat: OnceLock::new(),
        });
        // Refused connections are counted as open, but occupy no place of admitted ones.
        let turned_away = shared.turned_away.load(Ordering::Relaxed);
        let (before, max) = (
            before.saturating_sub(turned_away),
            shared.services.door.policy().max_connections,
        );
        let room = match before {
            _ if before < max => Room::Free,
            // Displaced connections take a moment to close.
            _ if before < max + max / LEAVING + LEAVING => Room::OfOthers,
            _ => Room::None,
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!("TCP_NODELAY: {error}");
        }
        if shared.settings.proxied {
            shared.tasks.spawn(begin_proxied(stream, peer, open, room));
        } else {
            begin(stream, peer, open, room);
        }
    }
}

/// Room for one more connection.
#[derive(Clone, Copy)]
enum Room {
    Free,
    /// Room that another connection has to vacate.
    OfOthers,
    None,
}

/// Reads the client's address from the load balancer's header, then continues with [`begin`].
async fn begin_proxied(mut stream: TcpStream, peer: IpAddr, open: Arc<Open>, room: Room) {
    let shared = &open.shared;
    let client = proxy_protocol::client_of(&mut stream);
    match tokio::time::timeout(shared.settings.header_timeout, client).await {
        Ok(Ok(client)) => begin(stream, client.unwrap_or(peer), open, room),
        Ok(Err(why)) => {
            debug!("{why}");
            shared.services.count_refusal(Refusal::NotProxied.label());
        }
        Err(_) => shared.services.count_refusal(Refusal::NotProxied.label()),
    }
}

/// Serves a connection of this client, or refuses it.
fn begin(stream: TcpStream, peer: IpAddr, open: Arc<Open>, room: Room) {
    let shared = open.shared.clone();
    let has_room = match room {
        Room::Free => true,
        Room::OfOthers => shared.crowd.displace(peer),
        Room::None => false,
    };
    let begun = if has_room {
        shared.services.door.handshake(peer)
    } else {
        Err(Refusal::Full)
    };
    let displaced = CancellationToken::new();
    if let Ok(handshake) = &begun {
        let seat = open
            .seat
            .get_or_init(|| shared.crowd.enter(peer, shared.services.clock.now()));
        for activity in [seat.activity(), handshake.activity()] {
            let displaced = displaced.clone();
            activity.on_leave(move || displaced.cancel());
        }
    }
    let (handshake, turned) = match begun {
        Ok(handshake) => (Some(handshake), None),
        Err(why) => (None, Some(why)),
    };
    let mut drop_silently = false;
    if turned.is_some() {
        drop_silently = shared.turned_away.fetch_add(1, Ordering::Relaxed) >= TURNED_AWAY;
    }
    let connection = Arc::new(Connection {
        shared: shared.clone(),
        open,
        caller: Caller {
            peer,
            connection: shared.accepted.fetch_add(1, Ordering::Relaxed),
        },
        turned_away: turned,
        displaced,
        kept: Mutex::new(ConnectionState {
            handshake,
            ..ConnectionState::default()
        }),
    });
    if let Some(why) = turned
        && drop_silently
    {
        shared.services.count_refusal(why.label());
        return;
    }
    let metrics = shared.services.metrics.clone();
    shared.tasks.spawn(async move {
        let displaced = connection.displaced.clone();
        let services = connection.shared.services.clone();
        tokio::select! {
            _ = panics::caught("connection", &metrics, serve(stream, connection)) => {}
            () = displaced.cancelled() => services.count_refusal("displaced"),
        }
    });
}

impl Connection {
    /// Takes a place among the client's connections until this one is closed. A reverse proxy's connection may carry
    /// requests of several clients in turn.
    fn enter(&self, pass: &Pass) -> Result<(), Refusal> {
        let mut kept = self.kept.lock();
        if !kept.place.as_ref().is_some_and(|place| place.is_of(pass.account())) {
            kept.place = None;
            kept.place = Some(pass.account().enter().ok_or(Refusal::Connections)?);
        }
        Ok(())
    }

    /// Records a refused request; returns `true` if there were too many.
    pub(super) fn refused(&self, pass: &Pass) -> bool {
        let (now, refusal_limit) = (self.shared.services.clock.now(), pass.terms().rights.plan.refusal_limit);
        self.kept.lock().refusals.note(now, refusal_limit)
    }
}

/// Serves one connection: HTTP until an upgrade, after a TLS handshake if there is a certificate.
async fn serve(stream: TcpStream, connection: Arc<Connection>) {
    let certificate = connection.shared.certificate.as_ref().map(|own| own.load_full());
    match certificate {
        None => serve_http(stream, connection).await,
        // On the heap, or the future of a connection without TLS would include space for it.
        Some(certificate) => Box::pin(serve_tls(stream, certificate, connection)).await,
    }
}

async fn serve_tls(stream: TcpStream, certificate: Arc<ServerConfig>, connection: Arc<Connection>) {
    let shared = connection.shared.clone();
    let handshake = TlsAcceptor::from(certificate).accept(stream);
    match tokio::time::timeout(shared.settings.header_timeout, handshake).await {
        Ok(Ok(stream)) => serve_http(stream, connection).await,
        Ok(Err(why)) => {
            debug!("TLS: {why}");
            shared.services.count_refusal(Refusal::Tls.label());
        }
        Err(_) => shared.services.count_refusal(Refusal::Tls.label()),
    }
}

async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, connection: Arc<Connection>) {
    let shared = connection.shared.clone();
    let turned_away = connection.turned_away.is_some();
    let service = service_fn(move |request: Request<Incoming>| {
        let connection = connection.clone();
        async move { Ok::<_, std::convert::Infallible>(respond(request, connection).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.settings.header_timeout)
        .max_buf_size(MAX_HEAD)
        .keep_alive(!turned_away)
        .serve_connection(
            TokioIo::new(WriteTimeout::new(stream, shared.settings.write_deadline)),
            service,
        )
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shared.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!("http: {error}");
    }
}

async fn respond(request: Request<Incoming>, connection: Arc<Connection>) -> Response<Body> {
    let services = connection.shared.services.clone();
    let page = request.headers().get(ORIGIN).cloned();
    // A page whose origin is not allowed gets no CORS headers.
    let page = page.filter(|_| services.door.policy().may_ask(request.headers()));
    let holds_a_place = request.method() == Method::POST;
    let seat = InUse::new(&connection);
    let admitted = admit(request, connection).await;
    drop(seat);
    // Only a connection with a place among its client's may stay open, or their number would not be bounded.
    let stays = admitted.is_ok() && holds_a_place;
    let mut response = admitted.unwrap_or_else(|why| {
        services.count_refusal(why.label());
        http_response::refusal(why)
    });
    if !stays && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    if let Some(page) = page
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        http_response::share(&mut response, page);
    }
    response
}

/// Marks the connection as answering a request, until dropped.
struct InUse {
    open: Arc<Open>,
}

impl InUse {
    fn new(connection: &Connection) -> Self {
        let in_use = Self {
            open: connection.open.clone(),
        };
        in_use.set(true);
        in_use
    }

    fn set(&self, in_use: bool) {
        if let Some(seat) = self.open.seat.get() {
            seat.activity().used(self.open.shared.services.clock.now());
            seat.activity().set_in_use(in_use);
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.set(false);
    }
}

async fn admit(request: Request<Incoming>, connection: Arc<Connection>) -> Result<Response<Body>, Refusal> {
    connection.kept.lock().handshake = None;
    connection.turned_away.map_or(Ok(()), Err)?;
    let shared = &connection.shared;
    if shared.stop.is_cancelled() {
        return Err(Refusal::Draining);
    }
    let door = &shared.services.door;
    let upgrades = handshake::is_upgrade(&request);
    if !upgrades && request.method() != Method::POST {
        door.admit_page(&request, connection.caller)?;
        if http_response::is_preflight(&request) {
            return Ok(http_response::preflight());
        }
        return Ok(http_rpc::answer_others(request.method()));
    }
    let mut pass = door.admit(&request, connection.caller, upgrades)?;
    if let Some(seat) = connection.open.seat.get() {
        pass = pass.on(seat);
    }
    if !upgrades {
        connection.enter(&pass)?;
        // On the heap, or the future of a connection that upgrades would include space for it.
        return Ok(Box::pin(http_rpc::answer(request, &pass, &connection)).await);
    }
    let accept = handshake::check(&request)?;
    connection.enter(&pass)?;
    Ok(upgrade(request, pass, &accept, &connection))
}

fn upgrade(request: Request<Incoming>, pass: Pass, accept: &str, connection: &Connection) -> Response<Body> {
    let shared = &connection.shared;
    // The rest of the connection's state is dropped with hyper; what an idle client keeps is small.
    let (open, place) = (connection.open.clone(), connection.kept.lock().place.take());
    let extension = if shared.settings.compression {
        permessage_deflate::agree(request.headers())
    } else {
        None
    };
    let compression = extension.map_or(Compression::None, |agreed| agreed.compression);
    let services = shared.services.clone();
    let subprotocol = handshake::subprotocol(request.headers(), &services.door.policy().subprotocols);
    let upgrade = hyper::upgrade::on(request);
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        match upgrade.await.map_err(io::Error::other).and_then(bare) {
            Ok((socket, early)) => session::serve(socket, early, pass, compression, services).await,
            Err(error) => debug!("upgrade: {error}"),
        }
        drop((open, place));
    });
    let mut response = http_response::plain(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::from_str(accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(agreed) = subprotocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, agreed);
    }
    if let Some(agreed) = extension {
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(agreed.answer));
    }
    response
}

/// Returns the socket itself, and the bytes read after the handshake.
fn bare(upgraded: Upgraded) -> io::Result<(Socket, Bytes)> {
    let upgraded = match upgraded.downcast::<TokioIo<WriteTimeout<TcpStream>>>() {
        Ok(parts) => {
            let tcp = parts.io.into_inner().into_inner();
            return Ok((Socket::Plain(tcp), parts.read_buf));
        }
        Err(upgraded) => upgraded,
    };
    match upgraded.downcast::<TokioIo<WriteTimeout<TlsStream<TcpStream>>>>() {
        Ok(parts) => {
            let (tcp, tls) = parts.io.into_inner().into_inner().into_inner();
            Ok((Socket::secured(tcp, tls), parts.read_buf))
        }
        Err(_) => Err(io::Error::other("the connection is not the socket that was accepted")),
    }
}
