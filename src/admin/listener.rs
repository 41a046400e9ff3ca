//! HTTP listener of the operator's port, with bounds on time and connections.
//!
//! The pages of [`Admin`] are for probes, scrapers and people. A browser page whose own name resolves to this port (DNS
//! rebinding) gets 403, and silent connections do not keep probes out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::header::{HOST, HeaderMap, ORIGIN};
use axum::http::{Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Admin;
use super::api::Peer;
use crate::door::Hosts;
use crate::server::WriteTimeout;

/// Most open connections. A new one beyond that closes the oldest silent connection, or else the oldest, so that a
/// new probe gets in.
const MAX_CONNECTIONS: usize = 64;

/// Shortest lifetime of a silent connection, so that a request in flight is answered.
const GRACE: Duration = Duration::from_millis(50);

/// Timeout for the head of a request, and so for an idle connection.
const HEAD: Duration = Duration::from_secs(10);

/// Time limit for progress in writing: an operator that does not read is disconnected.
const WRITE: Duration = Duration::from_secs(10);

/// Longest lifetime of a connection; a scraper that keeps one open reconnects.
const LIFETIME: Duration = Duration::from_secs(60);

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Pages that are served under any Host: liveness and readiness, for probes.
const PROBES: [&str; 2] = ["/health", "/ready"];

/// Serves the operator's pages; never returns.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, hosts: Hosts) {
    let pages = TowerToHyperService::new(admin.router());
    let hosts = Arc::new(hosts);
    let mut serving = JoinSet::new();
    let mut open: VecDeque<AdminConnection> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = serving.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors: accepting again at once would spin.
                warn!("admin port: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            let silent = open
                .iter()
                .position(|connection| !connection.asks.load(Ordering::Relaxed));
            if let Some(oldest) = open.remove(silent.unwrap_or(0)) {
                tokio::time::sleep_until(oldest.since + GRACE).await;
                if !oldest.asks.load(Ordering::Relaxed) || silent.is_none() {
                    oldest.task.abort();
                }
            }
        }
        let asks = Arc::new(AtomicBool::new(false));
        open.push_back(AdminConnection {
            since: Instant::now(),
            asks: asks.clone(),
            task: serving.spawn(connection(stream, Peer(peer), pages.clone(), hosts.clone(), asks)),
        });
    }
}

/// An open connection.
struct AdminConnection {
    since: Instant,
    /// `true` while a request of the connection is being answered.
    asks: Arc<AtomicBool>,
    task: AbortHandle,
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    pages: TowerToHyperService<axum::Router>,
    hosts: Arc<Hosts>,
    asks: Arc<AtomicBool>,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let admitted = admit(&hosts, request.uri(), request.headers());
        let (pages, asks) = (pages.clone(), asks.clone());
        asks.store(true, Ordering::Relaxed);
        async move {
            let response: Response = match admitted {
                Ok(()) => match pages.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                },
                Err(why) => (StatusCode::FORBIDDEN, why).into_response(),
            };
            asks.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, WRITE)), service)
        // A connection to the operator's API leaves this function's bounds for those of the API.
        .with_upgrades();
    match tokio::time::timeout(LIFETIME, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => debug!("admin port: {why}"),
        Err(_) => debug!("admin port: closed a connection after {LIFETIME:?}"),
    }
}

/// Checks the Host and Origin of a request; the pages for probes may be requested with any.
///
/// # Errors
/// The body of the 403, if the Host is not listed or an Origin is another page.
fn admit(hosts: &Hosts, target: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    if PROBES.contains(&target.path()) {
        return Ok(());
    }
    let header = headers.get(HOST).map(|value| value.as_bytes());
    let host = target.authority().map_or(header, |own| Some(own.as_str().as_bytes()));
    if !hosts.check(host) {
        return Err("invalid host specified: list it in admin_hosts\n");
    }
    let is_own = |origin: &[u8]| {
        let page = std::str::from_utf8(origin).ok().and_then(|page| page.split_once("://"));
        page.is_some_and(|(_, page)| host.is_some_and(|host| host.eq_ignore_ascii_case(page.as_bytes())))
    };
    match headers.get_all(ORIGIN).iter().all(|origin| is_own(origin.as_bytes())) {
        true => Ok(()),
        false => Err("requests from pages of other origins are refused\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_pages_that_may_ask() {
        let hosts = Hosts::new(&["localhost".to_owned(), "metrics.internal".to_owned()]);
        let may = |target: &str, host: &str, origins: &[&str]| {
            let mut headers = HeaderMap::new();
            if !host.is_empty() {
                headers.insert(HOST, host.parse().unwrap());
            }
            for origin in origins {
                headers.append(ORIGIN, origin.parse().unwrap());
            }
            admit(&hosts, &target.parse().unwrap(), &headers).is_ok()
        };
        for host in [
            "127.0.0.1:9547",
            "127.0.0.1",
            "[::1]:9547",
            "localhost:9547",
            "LOCALHOST",
            "metrics.internal",
            "",
        ] {
            assert!(may("/metrics", host, &[]), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9547",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "internal",
        ] {
            assert!(!may("/metrics", host, &[]) && !may("/status", host, &[]), "{host}");
            assert!(
                may("/health", host, &["http://evil.example"]) && may("/ready", host, &[]),
                "{host}"
            );
        }
        assert!(
            !may("http://evil.example/status", "localhost", &[]),
            "the target comes first"
        );
        assert!(may("http://localhost/status", "evil.example", &[]));
        assert!(may("/status", "localhost:9547", &["http://localhost:9547"]));
        for page in [
            "http://localhost:3000",
            "http://evil.example",
            "null",
            "",
            "localhost:9547",
            "http://localhost:9547/",
        ] {
            assert!(!may("/status", "localhost:9547", &[page]), "{page}");
        }
        assert!(!may(
            "/status",
            "localhost:9547",
            &["http://localhost:9547", "http://evil.example"]
        ));
        assert!(!may("/status", "", &["http://"]));
    }
}
