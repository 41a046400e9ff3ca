//! HTTP and the WebSocket handshake, on one port.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{
        CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION, UPGRADE,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    node::{SimulatedNode, is_control},
    server::spawn,
    session::serve_websocket,
};

/// geth's limit on a request's body.
const MAX_BODY_BYTES: usize = 5 << 20;

/// Serves one TCP connection until it ends or becomes a WebSocket.
pub(super) async fn serve_connection(node: Arc<SimulatedNode>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut cuts = node.cuts.subscribe();
    let service = service_fn(|request| {
        let node = node.clone();
        async move { Ok::<_, Infallible>(handle(node, request).await) }
    });
    let connection = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let cut = tokio::select! {
        _ = connection.as_mut() => false,
        _ = cuts.changed() => true,
    };
    if cut {
        // The answer in flight may be that of the very command to cut.
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

async fn handle(node: Arc<SimulatedNode>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let mut gate = node.stall.gate();
    if is_upgrade(request.headers()) {
        gate.open().await;
        return upgrade(node, request);
    }
    match *request.method() {
        Method::POST => {}
        // Health probes.
        Method::GET | Method::OPTIONS => return Response::default(),
        _ => return status(StatusCode::METHOD_NOT_ALLOWED),
    }
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await else {
        return status(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let body = body.to_bytes();
    if body.is_empty() {
        return Response::default();
    }
    if !is_control(&body) {
        gate.open().await;
        let delay = node.lock().faults.delay_of(&body);
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }
    let answer = node.serve_http(&body).unwrap_or_default();
    let mut response = Response::new(Full::from(answer));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let has = |name: HeaderName, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
    };
    has(UPGRADE, "websocket") && has(CONNECTION, "upgrade")
}

/// Answers the handshake and passes the socket to a session.
fn upgrade(node: Arc<SimulatedNode>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request
        .headers()
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return status(StatusCode::BAD_REQUEST);
    }
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY) else {
        return status(StatusCode::BAD_REQUEST);
    };
    let accept = derive_accept_key(key.as_bytes());
    let Ok(accept) = HeaderValue::from_str(&accept) else {
        return status(StatusCode::BAD_REQUEST);
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let cuts = node.cuts.subscribe();
    spawn(&node.clone(), async move {
        let Ok(upgraded) = upgraded.await else { return };
        // Always the stream given to `serve_connection`; any other could not be a session's socket.
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
            return;
        };
        serve_websocket(node, cuts, parts.io.into_inner(), parts.read_buf).await;
    });
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}
