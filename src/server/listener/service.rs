//! HTTP service of one connection, behind TLS if there is a certificate: requests, their admission, and the upgrade.

use std::io;
use std::sync::Arc;

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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tracing::{Instrument as _, debug};

use super::{HttpConnection, Open};
use crate::delivery::{Compression, Socket};
use crate::door::{Pass, Refusal};
use crate::server::exchange::Exchange;
use crate::server::response_body::Body;
use crate::server::write_timeout::WriteTimeout;
use crate::server::{events, handshake, http_response, http_rpc, permessage_deflate};
use crate::session::{self, SessionToken};
use crate::telemetry::Carrier;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

impl HttpConnection {
    /// Takes a place among the client's connections until this one is closed. A reverse proxy's connection may carry
    /// requests of several clients in turn.
    pub(super) fn enter(&self, pass: &Pass) -> Result<(), Refusal> {
        let mut kept = self.kept.lock();
        if !kept.place.as_ref().is_some_and(|place| place.is_of(pass.account())) {
            kept.place = None;
            kept.place = Some(pass.account().enter().ok_or(Refusal::Connections)?);
        }
        Ok(())
    }
}

/// Serves one connection: HTTP until an upgrade, after a TLS handshake if there is a certificate.
pub(super) async fn serve(stream: TcpStream, connection: Arc<HttpConnection>) {
    let certificate = connection.shared.certificate.as_ref().map(|own| own.load_full());
    match certificate {
        None => serve_http(stream, connection).await,
        // On the heap, or the future of a connection without TLS would include space for it.
        Some(certificate) => Box::pin(serve_tls(stream, certificate, connection)).await,
    }
}

async fn serve_tls(stream: TcpStream, certificate: Arc<ServerConfig>, connection: Arc<HttpConnection>) {
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

async fn serve_http<S>(stream: S, connection: Arc<HttpConnection>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Into<Socket> + 'static,
{
    let shared = connection.shared.clone();
    let own = connection.clone();
    let turned_away = connection.turned_away.is_some();
    let service = service_fn(move |request: Request<Incoming>| {
        let connection = connection.clone();
        async move { Ok::<_, std::convert::Infallible>(respond(request, connection).await) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.settings.header_timeout)
        .max_buf_size(MAX_HEAD)
        .keep_alive(!turned_away)
        .serve_connection(
            TokioIo::new(WriteTimeout::new(stream, shared.settings.write_deadline)),
            service,
        )
        .with_upgrades();
    let served = tokio::select! {
        // A stream that begins while headwater stops still takes its connection over: hyper would wait for it forever.
        biased;
        served = &mut connection => served,
        () = own.taken_over.notified() => {
            let parts = connection.into_parts();
            return own.serve_stream(parts.map(|parts| parts.io.into_inner().into_inner().into()));
        }
        () = shared.stop.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!("http: {error}");
    }
}

async fn respond(request: Request<Incoming>, connection: Arc<HttpConnection>) -> Response<Body> {
    let services = connection.shared.services.clone();
    let page = request.headers().get(ORIGIN).cloned();
    // A page whose origin is not allowed gets no CORS headers.
    let page = page.filter(|_| services.door.policy().may_ask(request.headers()));
    let holds_a_place = request.method() == Method::POST;
    let upgrades = handshake::is_upgrade(&request);
    let carrier = if upgrades { Carrier::WebSocket } else { Carrier::Http };
    let is_trusted = services.door.policy().proxies.trusts(connection.caller.peer);
    let mut exchange = Exchange::begin(&request, carrier, is_trusted, &services.metrics.recorder);
    let seat = InUse::new(&connection);
    let admitted = admit(request, upgrades, connection.clone(), &mut exchange).await;
    connection.kept.lock().has_answered = true;
    // A stream keeps the connection in use.
    let is_stream = admitted
        .as_ref()
        .is_ok_and(|response| matches!(response.body(), Body::Stream(_)));
    seat.end(is_stream);
    let outcome = admitted.as_ref().map_or_else(|why| why.label(), |_| "answered");
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
    exchange.responded(response, outcome)
}

/// Marks the connection as answering a request, until dropped.
struct InUse {
    open: Arc<Open>,
    /// `true` if the connection stays in use.
    stays: bool,
}

impl InUse {
    fn new(connection: &HttpConnection) -> Self {
        let in_use = Self {
            open: connection.open.clone(),
            stays: false,
        };
        in_use.set(true);
        in_use
    }

    /// Ends the answer to a request; `stays` if something else uses the connection from now on.
    fn end(mut self, stays: bool) {
        self.stays = stays;
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
        if !self.stays {
            self.set(false);
        }
    }
}

async fn admit(
    request: Request<Incoming>,
    upgrades: bool,
    connection: Arc<HttpConnection>,
    exchange: &mut Exchange,
) -> Result<Response<Body>, Refusal> {
    connection.kept.lock().handshake = None;
    connection.turned_away.map_or(Ok(()), Err)?;
    let shared = &connection.shared;
    let is_for_events = !upgrades && events::is_for_events(&request);
    if shared.stop.is_cancelled() {
        return match is_for_events {
            true => Ok(events::draining()),
            false => Err(Refusal::Draining),
        };
    }
    let door = &shared.services.door;
    if is_for_events {
        let pass = door.admit(&request, connection.caller, true)?;
        exchange.admitted(&pass, &shared.services.metrics.recorder);
        // On the heap, as below.
        return Box::pin(connection.answer_events(request, pass)).await;
    }
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
    exchange.admitted(&pass, &shared.services.metrics.recorder);
    if !upgrades {
        connection.enter(&pass)?;
        // On the heap, or the future of a connection that upgrades would include space for it.
        let answering = http_rpc::answer(request, &pass, &connection, exchange.record());
        return Ok(Box::pin(answering.instrument(exchange.span())).await);
    }
    let accept = handshake::check(&request)?;
    let token = handshake::session(&request)?;
    connection.enter(&pass)?;
    Ok(upgrade(request, (pass, token), &accept, &connection, exchange))
}

fn upgrade(
    request: Request<Incoming>,
    (pass, token): (Pass, Option<SessionToken>),
    accept: &str,
    connection: &HttpConnection,
    exchange: &Exchange,
) -> Response<Body> {
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
    let record = exchange.record().cloned();
    tasks.spawn(async move {
        match upgrade.await.map_err(io::Error::other).and_then(bare) {
            Ok((socket, early)) => session::serve(socket, early, pass, (compression, token), services, record).await,
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
            return Ok((parts.io.into_inner().into_inner().into(), parts.read_buf));
        }
        Err(upgraded) => upgraded,
    };
    match upgraded.downcast::<TokioIo<WriteTimeout<TlsStream<TcpStream>>>>() {
        Ok(parts) => Ok((parts.io.into_inner().into_inner().into(), parts.read_buf)),
        Err(_) => Err(io::Error::other("the connection is not the socket that was accepted")),
    }
}
