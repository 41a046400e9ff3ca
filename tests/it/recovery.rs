//! Attempts to connect to a node that is away, counted over simulated minutes.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use headwater::config::{Config, typed};
use headwater::telemetry::Metrics;
use headwater::upstream::{Channels, Pool, Wanted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

/// Simulated time of each test.
const SPAN: Duration = Duration::from_secs(300);

/// Time limit of making a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Runs a pool with this upstream for [`SPAN`], with the default settings except for [`CONNECT`].
async fn run_before(address: String) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut typed = typed::Config {
        upstream: vec![address.into()],
        ..typed::Config::default()
    };
    typed.node.connect_timeout = CONNECT;
    let config = Config::check(&typed).unwrap();
    let ((sightings, _seen), (best_effort, _heard)) = (mpsc::channel(64), mpsc::channel(64));
    let (_wants, wanted) = watch::channel(Wanted::default());
    let channels = Channels {
        sightings,
        best_effort,
        wanted,
    };
    let _pool = Pool::start(&config.upstreams, &config.node, &channels, Arc::new(Metrics::new().0));
    tokio::time::sleep(SPAN).await;
}

/// Counts the connections that wait to be accepted.
fn waiting<T>(mut accept: impl FnMut() -> std::io::Result<T>) -> usize {
    let accepted = std::iter::from_fn(|| match accept() {
        Ok(connection) => Some(connection),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    });
    accepted.count()
}

/// The sockets of a frozen process: connections are accepted by the kernel, and nobody answers. Each attempt lasts 5 s,
/// and is in the node's queue when the node goes on; between two attempts is a pause of 0.1 s.
#[tokio::test(start_paused = true)]
async fn a_frozen_node_has_an_attempt_in_its_queue_nearly_always() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    run_before(format!("ws://{}", listener.local_addr().unwrap())).await;
    let attempts = waiting(|| listener.accept());
    assert!((50..=60).contains(&attempts), "{attempts} over WebSocket");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.ipc");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    run_before(path.display().to_string()).await;
    // The time limit of an answer is checked every half second.
    let attempts = waiting(|| listener.accept());
    assert!((50..=60).contains(&attempts), "{attempts} over IPC");
}

/// A published port of a container, or a gateway: what listens at the address has no node behind it.
#[tokio::test(start_paused = true)]
async fn an_address_without_a_node_behind_it_is_tried_every_two_seconds() {
    let gateway = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n";
    let refusal = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
    for (answer, expect) in [("", 140..=310), (gateway, 140..=310), (refusal, 20..=70)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("ws://{}", listener.local_addr().unwrap());
        let attempts = Arc::new(AtomicUsize::new(0));
        let counted = attempts.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let _request = connection.read(&mut [0; 4096]).await;
                let _sent = connection.write_all(answer.as_bytes()).await;
            }
        });
        run_before(address).await;
        serving.abort();
        let attempts = attempts.load(Ordering::Relaxed);
        assert!(expect.contains(&attempts), "{attempts} after {answer:?}");
    }
}
