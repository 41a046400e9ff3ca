//! `/api`: the operator's API over WebSocket and HTTP, and the sessions of browsers that use it.
//!
//! jsonrpsee's server answers; this file admits. The sender of a request is among the request's extensions, for the
//! methods that act.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, LOCATION, RETRY_AFTER, SET_COOKIE, UPGRADE};
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Limited};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use jsonrpsee::Methods;
use jsonrpsee::server::{
    BatchRequestConfig, HttpBody, PingConfig, RandomStringIdProvider, ServerBuilder, ServerConfig, ServerHandle,
    StopHandle, stop_channel,
};
use serde_json::json;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Admin;
use super::access::{Actor, Credential, Denied};
use super::sessions::SessionEnd;

/// Most connections to the API, and requests in progress.
const MAX_CONNECTIONS: u32 = 16;

/// Most subscriptions of a connection.
const MAX_SUBSCRIPTIONS: u32 = 16;

/// Longest request, in bytes.
const MAX_REQUEST: u32 = 64 << 10;

/// Longest response, in bytes; every answer is paged well below it.
const MAX_RESPONSE: u32 = 4 << 20;

/// Most requests in a batch.
const MAX_BATCH: u32 = 32;

/// Messages that wait for a connection that does not read; then its subscriptions wait, which skips states and tells of
/// missed events.
const MAX_WAITING: u32 = 32;

/// Interval of pings to a connection, and the silence after which it is closed.
const PING: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(50);

/// Longest body of a login, in bytes.
const MAX_FORM: usize = 4 << 10;

/// Remote address of a connection to the admin port, among a request's extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub SocketAddr);

type Serve = dyn Fn(Request<Body>, StopHandle) -> BoxFuture<'static, Response> + Send + Sync;

/// jsonrpsee's server of some methods.
pub struct Api {
    serve: Box<Serve>,
    /// Stops a connection at the end of the server.
    stop: StopHandle,
    /// Ends the connections when it is dropped.
    _running: ServerHandle,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Api(…)")
    }
}

impl Api {
    /// Creates a server of these methods, within the limits of the admin port.
    #[must_use]
    pub fn new(methods: impl Into<Methods>) -> Self {
        let ping = PingConfig::new()
            .ping_interval(PING)
            .inactive_limit(SILENCE)
            .max_failures(1);
        let config = ServerConfig::builder()
            .max_connections(MAX_CONNECTIONS)
            .max_subscriptions_per_connection(MAX_SUBSCRIPTIONS)
            .max_request_body_size(MAX_REQUEST)
            .max_response_body_size(MAX_RESPONSE)
            .set_batch_request_config(BatchRequestConfig::Limit(MAX_BATCH))
            .set_message_buffer_capacity(MAX_WAITING)
            .set_id_provider(RandomStringIdProvider::new(16))
            .enable_ws_ping(ping)
            .build();
        let (stop, running) = stop_channel();
        let services = ServerBuilder::with_config(config).to_service_builder();
        let methods = methods.into();
        let serve = move |request: Request<Body>, stop: StopHandle| -> BoxFuture<'static, Response> {
            let service = TowerToHyperService::new(services.clone().build(methods.clone(), stop));
            Box::pin(async move {
                match service.call(request.map(HttpBody::new)).await {
                    Ok(response) => response.map(Body::new),
                    Err(why) => {
                        debug!("admin port: {why}");
                        StatusCode::INTERNAL_SERVER_ERROR.into_response()
                    }
                }
            })
        };
        Self {
            serve: Box::new(serve),
            stop,
            _running: running,
        }
    }
}

/// Answers `/api`.
pub(super) async fn api(
    State(admin): State<Arc<Admin>>,
    Extension(peer): Extension<Peer>,
    mut request: Request<Body>,
) -> Response {
    match actor(&admin, peer, &request).and_then(|actor| Ok((actor, stop_handle(&admin, actor, &request)?))) {
        Ok((actor, stop)) => {
            // The server logs requests, at its finest level.
            request.headers_mut().remove(AUTHORIZATION);
            request.headers_mut().remove(COOKIE);
            request.extensions_mut().insert(actor);
            (admin.api.serve)(request, stop).await
        }
        Err(denied) => refuse(denied, peer),
    }
}

/// Answers `GET /session`: if this browser may use the API, by which proof, and where it finds the client port.
pub(super) async fn session(
    State(admin): State<Arc<Admin>>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    match actor(&admin, peer, &request) {
        Ok(actor) => {
            let session = json!({
                "credential": actor.credential.label(),
                "clientUrl": admin.page.client_url(request.headers()),
            });
            ([(CONTENT_TYPE, "application/json")], session.to_string()).into_response()
        }
        Err(denied) => refuse(denied, peer),
    }
}

/// Answers `POST /login`: a form with the field `token`.
pub(super) async fn log_in(
    State(admin): State<Arc<Admin>>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let proxied = request.headers().get("x-forwarded-proto");
    let is_secured = proxied.is_some_and(|scheme| scheme.as_bytes().eq_ignore_ascii_case(b"https"));
    let Ok(form) = Limited::new(request.into_body(), MAX_FORM).collect().await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "the form is too long\n").into_response();
    };
    let form = form.to_bytes();
    let mut fields = url::form_urlencoded::parse(&form);
    let token = fields.find(|(name, _)| name == "token").map(|(_, token)| token);
    let token = token.as_deref().unwrap_or_default().trim();
    match admin.access.log_in(token, peer.0.ip(), is_secured, Instant::now()) {
        Ok(cookie) => {
            info!(peer = %peer.0.ip(), "operator: a browser logged in");
            (
                StatusCode::SEE_OTHER,
                [(SET_COOKIE, cookie), (LOCATION, "/".to_owned())],
            )
                .into_response()
        }
        Err(denied) => refuse(denied, peer),
    }
}

/// Answers `POST /logout`.
pub(super) async fn log_out(State(admin): State<Arc<Admin>>, request: Request<Body>) -> Response {
    let cookie = admin.access.log_out(request.headers());
    (
        StatusCode::SEE_OTHER,
        [(SET_COOKIE, cookie), (LOCATION, "/".to_owned())],
    )
        .into_response()
}

/// Admits a request, and returns its sender.
fn actor(admin: &Admin, Peer(peer): Peer, request: &Request<Body>) -> Result<Actor, Denied> {
    let acts = request.method() != Method::GET || request.headers().contains_key(UPGRADE);
    admin.access.check(request.headers(), peer.ip(), acts, Instant::now())
}

/// Returns the stop handle of a request: a WebSocket of a session ends with the session.
fn stop_handle(admin: &Admin, actor: Actor, request: &Request<Body>) -> Result<StopHandle, Denied> {
    if actor.credential != Credential::Session || !request.headers().contains_key(UPGRADE) {
        return Ok(admin.api.stop.clone());
    }
    let session = admin.access.session(request.headers(), Instant::now());
    // It may have ended since the check.
    Ok(ends_with(session.ok_or(Denied::Unauthorized)?))
}

/// Creates a stop handle that stops its connection when a session ends; the task of it ends with the connection.
fn ends_with(session: SessionEnd) -> StopHandle {
    let (stop, running) = stop_channel();
    tokio::spawn(async move {
        tokio::select! {
            () = session.over() => drop(running.stop()),
            () = running.clone().stopped() => {}
        }
    });
    stop
}

fn refuse(denied: Denied, Peer(peer): Peer) -> Response {
    match denied {
        Denied::Unauthorized => {
            debug!(peer = %peer.ip(), "operator: refused a request without a valid token");
            let why = "the operator's API needs the admin token: set admin_token_file, and send it as Authorization: \
                       Bearer TOKEN; without a token it is served from loopback to loopback only\n";
            (StatusCode::UNAUTHORIZED, [("www-authenticate", "Bearer")], why).into_response()
        }
        Denied::Attempts(after) => {
            warn!(peer = %peer.ip(), "operator: too many wrong tokens from this address");
            let seconds = after.as_secs() + 1;
            (
                StatusCode::TOO_MANY_REQUESTS,
                [(RETRY_AFTER, seconds.to_string())],
                "too many wrong tokens: wait a minute\n",
            )
                .into_response()
        }
        Denied::NoOrigin => (StatusCode::FORBIDDEN, "the request names no origin\n").into_response(),
    }
}
