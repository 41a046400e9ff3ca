//! Accepts connections or refuses them; each open one is counted, and served over HTTP until it upgrades to WebSocket.

mod event_stream;
mod http2;
mod service;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::event_stream::EventStream;
pub use self::http2::{Http2, Http2Settings};
use super::call_places::CallPlaces;
use super::proxy_protocol;
use crate::door::{Caller, ConnectionSlot, Crowd, Handshake, Pass, Refusal, Refusals, Seat};
use crate::panics;
use crate::session::Services;
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
    /// `true` if HTTP answers are compressed for clients that accept it.
    pub http_compression: bool,
    /// HTTP/2 to clients.
    pub http2: Http2Settings,
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

impl ServerShared {
    /// Counts one more connection as open, and returns the room that there is for it.
    fn count(self: &Arc<Self>) -> (Arc<Open>, Room) {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let open = Arc::new(Open {
            shared: self.clone(),
            in_use: AtomicUsize::new(0),
            seat: OnceLock::new(),
        });
        // Refused connections are counted as open, but occupy no place of admitted ones.
        let turned_away = self.turned_away.load(Ordering::Relaxed);
        let (before, max) = (
            before.saturating_sub(turned_away),
            self.services.door.policy().max_connections,
        );
        let room = match before {
            _ if before < max => Room::Free,
            // Displaced connections take a moment to close.
            _ if before < max + max / LEAVING + LEAVING => Room::OfOthers,
            _ => Room::None,
        };
        (open, room)
    }

    /// Checks if a connection from this address has room, if need be by displacing another one.
    fn has_room(&self, room: Room, address: IpAddr) -> bool {
        match room {
            Room::Free => true,
            Room::OfOthers => self.crowd.displace(address),
            Room::None => false,
        }
    }
}

/// Open connection, counted until dropped.
#[derive(Debug)]
struct Open {
    shared: Arc<ServerShared>,
    /// Requests that are being answered; over HTTP/2 there may be several.
    in_use: AtomicUsize,
    /// Seat among all open connections, taken once the client's address is known.
    seat: OnceLock<Seat>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connection that speaks HTTP.
pub(super) struct HttpConnection {
    shared: Arc<ServerShared>,
    open: Arc<Open>,
    caller: Caller,
    /// Refusal, if every request on this connection is answered with it.
    turned_away: Option<Refusal>,
    /// Cancelled when the connection is displaced by another one.
    displaced: CancellationToken,
    kept: Mutex<ConnectionState>,
    /// Notifies the task of the connection that a stream of events takes it over, or that HTTP/2 has to end.
    taken_over: Notify,
    /// Places of the calls of all streams; empty over HTTP/1.1.
    calls: OnceLock<Arc<CallPlaces>>,
}

/// Session on a stream of HTTP/2, counted as one more connection until dropped.
pub(super) struct StreamSeat {
    _open: Arc<Open>,
    _slot: ConnectionSlot,
}

/// State that a connection gains and gives back while open.
#[derive(Default)]
struct ConnectionState {
    /// ConnectionSlot among the connections without a request, until the first request.
    handshake: Option<Handshake>,
    /// ConnectionSlot among its client's connections, from the first admitted request on.
    place: Option<Arc<ConnectionSlot>>,
    /// Slots of the clients with requests on streams of HTTP/2.
    places: Vec<Weak<ConnectionSlot>>,
    refusals: Refusals,
    /// `true` once a request was answered: part of the response may still be in hyper's buffer.
    has_answered: bool,
    /// Stream of events that takes the connection over.
    stream: Option<Box<EventStream>>,
}

impl HttpConnection {
    /// Returns the services shared by all connections.
    pub(super) fn services(&self) -> &Arc<Services> {
        &self.shared.services
    }

    pub(super) fn settings(&self) -> &ServerSettings {
        &self.shared.settings
    }

    /// Returns the places of the calls of all streams; `None` over HTTP/1.1.
    pub(super) fn calls(&self) -> Option<&Arc<CallPlaces>> {
        self.calls.get()
    }

    fn is_http2(&self) -> bool {
        self.calls.get().is_some()
    }

    /// Takes the seat and the place of a session: over HTTP/1.1 those of the connection, which it takes over; over HTTP/2
    /// one more, since a session costs as much as a connection.
    fn seat_for(&self, pass: Pass) -> Result<(Pass, Option<StreamSeat>), Refusal> {
        if !self.is_http2() {
            let pass = match self.open.seat.get() {
                Some(seat) => pass.on(seat),
                None => pass,
            };
            self.enter(&pass)?;
            return Ok((pass, None));
        }
        let shared = &self.shared;
        let slot = pass.account().enter().ok_or(Refusal::Connections)?;
        let (open, room) = shared.count();
        let address = pass.address().unwrap_or(self.caller.peer);
        if !shared.has_room(room, address) {
            return Err(Refusal::Full);
        }
        self.kept.lock().handshake = None;
        let seat = open
            .seat
            .get_or_init(|| shared.crowd.enter(address, shared.services.clock.now()));
        let pass = pass.on(seat);
        let seat = StreamSeat {
            _open: open,
            _slot: slot,
        };
        Ok((pass, Some(seat)))
    }

    /// Records a refused request; returns `true` if there were too many.
    pub(super) fn refused(&self, pass: &Pass) -> bool {
        let (now, refusal_limit) = (self.shared.services.clock.now(), pass.terms().rights.plan.refusal_limit);
        self.kept.lock().refusals.note(now, refusal_limit)
    }
}

impl Drop for HttpConnection {
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
    /// see [`crate::session::Clients::drain`].
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
        let (open, room) = shared.count();
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
    let begun = if shared.has_room(room, peer) {
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
    let connection = Arc::new(HttpConnection {
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
        taken_over: Notify::new(),
        calls: OnceLock::new(),
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
            _ = panics::caught("connection", &metrics, service::serve(stream, connection)) => {}
            () = displaced.cancelled() => services.count_refusal("displaced"),
        }
    });
}
