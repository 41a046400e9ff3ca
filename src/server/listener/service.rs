//! HTTP service of one connection, behind TLS if there is a certificate: requests, their admission, and the upgrade.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body as HyperBody, Incoming};
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

use super::{Http2, HttpConnection, Open, ServerShared, StreamSeat, http2};
use crate::delivery::{Compression, Pipe, Socket};
use crate::door::{ConnectionSlot, Pass, Refusal};
use crate::server::exchange::Exchange;
use crate::server::permessage_deflate::Agreement;
use crate::server::response_body::Body;
use crate::server::write_timeout::WriteTimeout;
use crate::server::{events, handshake, http_response, http_rpc, permessage_deflate};
use crate::session::{self, SessionToken};
use crate::telemetry::{Carrier, RequestRecord};

/// Longest head of a request, in bytes.
pub(super) const MAX_HEAD: usize = 16 << 10;

impl HttpConnection {
    /// Takes a place among the client's connections, which the connection keeps until it is closed or serves another
    /// client: a reverse proxy's connection may carry requests of several clients in turn. Over HTTP/2 it may carry them
    /// at the same time, and each client has a place as long as it has a request.
    pub(super) fn enter(&self, pass: &Pass) -> Result<Arc<ConnectionSlot>, Refusal> {
        let mut kept = self.kept.lock();
        kept.handshake = None;
        let of_client = |place: &Arc<ConnectionSlot>| place.is_of(pass.account());
        if let Some(own) = kept.place.as_ref().filter(|place| of_client(place)) {
            return Ok(own.clone());
        }
        kept.place = None;
        let in_use = kept.places.iter().filter_map(Weak::upgrade).find(of_client);
        let own = match in_use {
            Some(own) => own,
            None => Arc::new(pass.account().enter().ok_or(Refusal::Connections)?),
        };
        if self.is_http2() {
            // As many as there are clients with streams.
            kept.places
                .retain(|place| place.strong_count() > 0 && place.as_ptr() != Arc::as_ptr(&own));
            kept.places.push(Arc::downgrade(&own));
        }
        kept.place = Some(own.clone());
        Ok(own)
    }
}

/// Serves one connection: HTTP until an upgrade, after a TLS handshake if there is a certificate.
pub(super) async fn serve(stream: TcpStream, connection: Arc<HttpConnection>) {
    let certificate = connection.shared.certificate.as_ref().map(|own| own.load_full());
    match certificate {
        None if shared_http2(&connection) == Http2::On => match begins_http2(&stream, &connection).await {
            // On the heap, as below.
            Some(true) => Box::pin(http2::serve(stream, connection)).await,
            Some(false) => serve_http(stream, connection).await,
            None => {}
        },
        None => serve_http(stream, connection).await,
        // On the heap, or the future of a connection without TLS would include space for it.
        Some(certificate) => Box::pin(serve_tls(stream, certificate, connection)).await,
    }
}

fn shared_http2(connection: &HttpConnection) -> Http2 {
    connection.shared.settings.http2.offered
}

/// Waits for the first bytes of a connection without TLS, and returns if it speaks HTTP/2 by prior knowledge; `None` if
/// there are none in time.
async fn begins_http2(stream: &TcpStream, connection: &HttpConnection) -> Option<bool> {
    let shared = &connection.shared;
    let first = Box::pin(http2::is_preface(stream));
    tokio::select! {
        begins = tokio::time::timeout(shared.settings.header_timeout, first) => begins.ok()?.ok(),
        () = shared.stop.cancelled() => None,
    }
}

async fn serve_tls(stream: TcpStream, certificate: Arc<ServerConfig>, connection: Arc<HttpConnection>) {
    let shared = connection.shared.clone();
    let handshake = TlsAcceptor::from(certificate).accept(stream);
    match tokio::time::timeout(shared.settings.header_timeout, handshake).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(crate::tls::HTTP2) => {
            http2::serve(stream, connection).await;
        }
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
        let upgrades = handshake::is_upgrade(&request);
        async move { Ok::<_, std::convert::Infallible>(respond(request, upgrades, connection).await) }
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

/// Returns the response to a request, which `upgrades` to WebSocket. Over HTTP/2 the header `Connection: close` in it means
/// that the connection has to end.
pub(super) async fn respond<B>(request: Request<B>, upgrades: bool, connection: Arc<HttpConnection>) -> Response<Body>
where
    B: HyperBody<Data = Bytes> + Unpin + Send + 'static,
{
    let services = connection.shared.services.clone();
    let page = request.headers().get(ORIGIN).cloned();
    // A page whose origin is not allowed gets no CORS headers.
    let page = page.filter(|_| services.door.policy().may_ask(request.headers()));
    let holds_a_place = request.method() == Method::POST;
    let carrier = if upgrades { Carrier::WebSocket } else { Carrier::Http };
    let is_trusted = services.door.policy().proxies.trusts(connection.caller.peer);
    let mut exchange = Exchange::begin(&request, carrier, is_trusted, &services.metrics.recorder);
    let seat = InUse::new(&connection);
    let admitted = admit(request, upgrades, connection.clone(), &mut exchange).await;
    connection.kept.lock().has_answered = true;
    // A stream keeps the connection in use. Over HTTP/2 the task of its stream does.
    let is_stream = !connection.is_http2()
        && admitted
            .as_ref()
            .is_ok_and(|response| matches!(response.body(), Body::Stream(_)));
    seat.end(is_stream);
    let outcome = admitted.as_ref().map_or_else(|why| why.label(), |_| "answered");
    // Only a connection with a place among its client's may stay open, or their number would not be bounded.
    let stays = match connection.is_http2() {
        false => admitted.is_ok() && holds_a_place,
        // Before it has a place, it is counted among those without a request, and ended when it is idle.
        true => admitted.is_ok() || connection.kept.lock().place.is_some(),
    };
    let has_upgraded = upgrades && admitted.is_ok();
    let mut response = admitted.unwrap_or_else(|why| {
        services.count_refusal(why.label());
        http_response::refusal(why)
    });
    if has_upgraded {
        exchange.name(&mut response);
        return response;
    }
    if !stays {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    if let Some(page) = page {
        http_response::share(&mut response, page);
    }
    exchange.responded(response, outcome)
}

/// Marks the connection as answering a request, until dropped.
pub(super) struct InUse {
    open: Arc<Open>,
    /// `true` if the connection stays in use.
    stays: bool,
}

impl InUse {
    pub(super) fn new(connection: &HttpConnection) -> Self {
        let open = connection.open.clone();
        open.in_use.fetch_add(1, Ordering::Relaxed);
        let in_use = Self { open, stays: false };
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
        if !self.stays && self.open.in_use.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.set(false);
        }
    }
}

async fn admit<B>(
    request: Request<B>,
    upgrades: bool,
    connection: Arc<HttpConnection>,
    exchange: &mut Exchange,
) -> Result<Response<Body>, Refusal>
where
    B: HyperBody<Data = Bytes> + Unpin + Send + 'static,
{
    if !connection.is_http2() {
        connection.kept.lock().handshake = None;
    }
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
        return Box::pin(connection.answer_events(request, pass, exchange)).await;
    }
    if !upgrades && request.method() != Method::POST {
        door.admit_page(&request, connection.caller)?;
        if http_response::is_preflight(&request) {
            return Ok(http_response::preflight());
        }
        return Ok(http_rpc::answer_others(request.method()));
    }
    let mut pass = door.admit(&request, connection.caller, upgrades)?;
    exchange.admitted(&pass, &shared.services.metrics.recorder);
    if !upgrades {
        if let Some(seat) = connection.open.seat.get() {
            pass = pass.on(seat);
        }
        // Kept while the request is answered.
        let _place = connection.enter(&pass)?;
        // On the heap, or the future of a connection that upgrades would include space for it.
        let answering = http_rpc::answer(request, &pass, &connection, exchange.record());
        return Ok(Box::pin(answering.instrument(exchange.span())).await);
    }
    if connection.is_http2() {
        handshake::check_connect(&request)?;
        let token = handshake::session(&request)?;
        let (pass, seat) = connection.seat_for(pass)?;
        return Ok(tunnel(request.headers(), (pass, token), seat, &connection, exchange));
    }
    let accept = handshake::check(&request)?;
    let token = handshake::session(&request)?;
    let (pass, _) = connection.seat_for(pass)?;
    Ok(upgrade(request, (pass, token), &accept, &connection, exchange))
}

/// Returns the extension and the subprotocol that are agreed with a client.
fn agreed(headers: &HeaderMap, shared: &ServerShared) -> (Option<Agreement>, Option<HeaderValue>) {
    let extension = if shared.settings.compression {
        permessage_deflate::agree(headers)
    } else {
        None
    };
    let listed = &shared.services.door.policy().subprotocols;
    (extension, handshake::subprotocol(headers, listed))
}

fn insert_agreed(headers: &mut HeaderMap, extension: Option<Agreement>, subprotocol: Option<HeaderValue>) {
    if let Some(agreed) = subprotocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, agreed);
    }
    if let Some(agreed) = extension {
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(agreed.answer));
    }
}

fn opened(record: Option<&RequestRecord>, status: StatusCode) {
    if let Some(record) = record {
        record.opened(status.as_u16());
    }
}

/// Begins a session on a stream of HTTP/2; its bytes are the body of the response.
fn tunnel(
    headers: &HeaderMap,
    (pass, token): (Pass, Option<SessionToken>),
    seat: Option<StreamSeat>,
    connection: &HttpConnection,
    exchange: &Exchange,
) -> Response<Body> {
    let shared = &connection.shared;
    let (extension, subprotocol) = agreed(headers, shared);
    let compression = extension.map_or(Compression::None, |agreed| agreed.compression);
    let (own, theirs) = Pipe::pair();
    let (services, record) = (shared.services.clone(), exchange.record().cloned());
    opened(record.as_deref(), StatusCode::OK);
    let session = session::serve(own.into(), Bytes::new(), pass, (compression, token), services, record);
    shared.tasks.spawn(async move {
        session.await;
        drop(seat);
    });
    let mut response = Response::new(Body::Stream(theirs));
    insert_agreed(response.headers_mut(), extension, subprotocol);
    response
}

fn upgrade<B>(
    request: Request<B>,
    (pass, token): (Pass, Option<SessionToken>),
    accept: &str,
    connection: &HttpConnection,
    exchange: &Exchange,
) -> Response<Body> {
    let shared = &connection.shared;
    // The rest of the connection's state is dropped with hyper; what an idle client keeps is small.
    let (open, place) = (connection.open.clone(), connection.kept.lock().place.take());
    let (extension, subprotocol) = agreed(request.headers(), shared);
    let compression = extension.map_or(Compression::None, |agreed| agreed.compression);
    let services = shared.services.clone();
    let upgrade = hyper::upgrade::on(request);
    let tasks = shared.tasks.clone();
    let record = exchange.record().cloned();
    tasks.spawn(async move {
        match upgrade.await.map_err(io::Error::other).and_then(bare) {
            Ok((socket, early)) => {
                opened(record.as_deref(), StatusCode::SWITCHING_PROTOCOLS);
                session::serve(socket, early, pass, (compression, token), services, record).await;
            }
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
    insert_agreed(headers, extension, subprotocol);
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
