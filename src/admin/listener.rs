//! HTTP listener of the operator's port, with bounds on time and connections.
//!
//! The pages of [`Admin`] are for probes, scrapers and people. A browser page whose own name resolves to this port (DNS
//! rebinding) gets 403, and silent connections do not keep probes out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{HOST, HeaderMap, ORIGIN};
use axum::http::{Request, StatusCode, Uri};
use axum::response::IntoResponse;
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
use super::activity::{Activity, Watched};
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

/// Longest lifetime of a connection; a scraper that keeps one open reconnects. An answer that is being written then has as
/// long again.
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
        make_room(&mut open).await;
        let activity = Activity::default();
        open.push_back(AdminConnection {
            since: Instant::now(),
            activity: activity.clone(),
            task: serving.spawn(connection(stream, Peer(peer), pages.clone(), hosts.clone(), activity)),
        });
    }
}

/// An open connection.
struct AdminConnection {
    since: Instant,
    activity: Activity,
    task: AbortHandle,
}

/// Closes the oldest silent connection, or else the oldest, until there is room for one more.
async fn make_room(open: &mut VecDeque<AdminConnection>) {
    open.retain(|connection| !connection.task.is_finished());
    while open.len() >= MAX_CONNECTIONS {
        let silent = open.iter().position(|connection| !connection.activity.asks());
        let oldest = silent.unwrap_or(0);
        tokio::time::sleep_until(open[oldest].since + GRACE).await;
        // Its request may have come meanwhile: then another one is closed, or this one as the oldest.
        if silent.is_none() || !open[oldest].activity.asks() {
            open[oldest].task.abort();
            open.remove(oldest);
        }
        open.retain(|connection| !connection.task.is_finished());
    }
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    pages: TowerToHyperService<axum::Router>,
    hosts: Arc<Hosts>,
    activity: Activity,
) {
    let stream = Watched {
        stream: WriteTimeout::new(stream, WRITE),
        activity: activity.clone(),
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let admitted = admit(&hosts, request.uri(), request.headers());
        let (pages, activity) = (pages.clone(), activity.clone());
        activity.request();
        async move {
            let response = match admitted {
                Ok(()) => match pages.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                },
                Err(why) => (StatusCode::FORBIDDEN, why).into_response(),
            };
            Ok::<_, Infallible>(response.map(|body| activity.answer(body)))
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        // A connection to the operator's API leaves this function's bounds for those of the API.
        .with_upgrades();
    let mut serving = pin!(serving);
    let ended = match tokio::time::timeout(LIFETIME, serving.as_mut()).await {
        Ok(ended) => Ok(ended),
        Err(_) => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(LIFETIME, serving).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(why)) => debug!("admin port: {why}"),
        Err(_) => debug!("admin port: cut a connection off after {:?}", 2 * LIFETIME),
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
    use std::net::Ipv4Addr;

    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Serves one connection on which `/` was requested; returns the client's end.
    async fn requested(page: Router, activity: Activity) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let (pages, hosts) = (TowerToHyperService::new(page), Arc::new(Hosts::new(&[])));
        tokio::spawn(connection(stream, Peer(peer), pages, hosts, activity));
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            .await
            .unwrap();
        client
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_being_written_outlives_the_connections_lifetime() {
        let begin = Instant::now();
        let slow = || async {
            Body::from_stream(stream::unfold(1, |part| async move {
                tokio::time::sleep(LIFETIME / 6).await;
                (part <= 9).then(|| (Ok::<_, Infallible>(Bytes::from(format!("part {part};"))), part + 1))
            }))
        };
        let mut client = requested(Router::new().route("/", get(slow)), Activity::default()).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("part 9;") && answer.ends_with("0\r\n\r\n"), "{answer}");
        assert!(begin.elapsed() > LIFETIME);
    }

    #[tokio::test]
    async fn a_connection_asks_until_its_answer_is_written() {
        const LENGTH: usize = 32 << 20;
        let activity = Activity::default();
        let long = get(async || vec![0; LENGTH]);
        let mut client = requested(Router::new().route("/", long), activity.clone()).await;
        client.read_u8().await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(activity.asks(), "most of it is not with the socket yet");
        }
        let mut rest = vec![0; LENGTH];
        client.read_exact(&mut rest).await.unwrap();
        let silent = async {
            while activity.asks() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), silent).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_spared_still_counts() {
        let mut tasks = JoinSet::new();
        let mut open: VecDeque<AdminConnection> = (0..MAX_CONNECTIONS)
            .map(|_| AdminConnection {
                since: Instant::now(),
                activity: Activity::default(),
                task: tasks.spawn(std::future::pending::<()>()),
            })
            .collect();
        let oldest = open[0].activity.clone();
        let asking = async {
            tokio::time::sleep(GRACE / 2).await;
            oldest.request();
        };
        tokio::join!(make_room(&mut open), asking);
        assert_eq!(open.len(), MAX_CONNECTIONS - 1);
        assert!(open[0].activity.asks(), "the oldest asked in time");
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        assert_eq!(tasks.len(), MAX_CONNECTIONS - 1);

        // All ask: the oldest one makes room.
        for one in &open {
            one.activity.request();
        }
        open.push_back(AdminConnection {
            since: Instant::now(),
            activity: oldest.clone(),
            task: tasks.spawn(std::future::pending::<()>()),
        });
        make_room(&mut open).await;
        assert_eq!(open.len(), MAX_CONNECTIONS - 1);
    }

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
