//! One client address at two edges of a tree, with a quota that holds for both.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use headwater::devnet::{self, Devnet};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::processes::Processes;
use crate::{TURN, say, setting};

/// Requests a second, and the burst.
const RATE: u64 = 10;
const BURST: u64 = 20;

/// Most requests that both edges admit within a second: the burst and a second's worth, which one process admits, and
/// what the other edge admits before it learns of them.
const WORST_SECOND: usize = 45;

/// Requests that both edges may admit beyond those of one process, in any time.
const BEYOND: u64 = 31;

/// Asks as fast as the edge answers for this long, and returns the times at which a request was admitted.
async fn ask(port: u16, begin: Instant, lasts: Duration) -> Vec<Duration> {
    let (mut socket, _) = connect_async(format!("ws://127.0.0.1:{port}")).await.unwrap();
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}).to_string();
    let mut admitted = Vec::new();
    while begin.elapsed() < lasts {
        socket.send(Message::text(request.clone())).await.unwrap();
        let answer = loop {
            match socket.next().await.expect("it stays open").unwrap() {
                Message::Text(text) => break serde_json::from_str::<Value>(&text).unwrap(),
                Message::Close(why) => panic!("closed: {why:?}"),
                _ => {}
            }
        };
        match answer["error"]["code"].as_i64() {
            None => admitted.push(begin.elapsed()),
            // Short beside the time of a request at this rate.
            Some(-32005) => sleep(Duration::from_millis(4)).await,
            Some(_) => panic!("{answer}"),
        }
    }
    admitted
}

#[ignore = "takes a minute, and a machine of its own: make chaos SHAPE=quotas"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_at_two_edges_has_one_quota() {
    let _turn = TURN.write().await;
    let lasts = Duration::from_secs(setting("QUOTA_SECONDS", 60));
    let directory = tempfile::Builder::new().prefix("chaos-quotas-").tempdir().unwrap();
    let node = Devnet::start(devnet::Config::manual()).await.unwrap();
    let limits = format!(
        "[limits]\nrequests_per_second = {RATE}\nrequest_burst = {BURST}\nmax_batch = {BURST}\nmax_refusals = 1000000\n"
    );
    let tree = Processes::start(directory.path(), node.address().port(), &["edge-1", "edge-2"], &limits).await;
    for edge in &tree.edges {
        while edge
            .metrics("headwater_fleet_members")
            .await
            .values()
            .all(|count| *count < 3.0)
        {
            sleep(Duration::from_millis(50)).await;
        }
    }
    let begin = Instant::now();
    let (one, other) = tokio::join!(
        ask(tree.edges[0].port, begin, lasts),
        ask(tree.edges[1].port, begin, lasts)
    );
    let counts = (one.len(), other.len());
    let mut all = [one, other].concat();
    all.sort();
    let within = |from: &Duration| {
        all.iter()
            .filter(|at| (*from..*from + Duration::from_secs(1)).contains(at))
            .count()
    };
    let worst = all.iter().map(within).max().unwrap_or_default();
    let most = BURST + RATE * lasts.as_secs() + BEYOND;
    say(&format!(
        "quotas: {counts:?}, {} of at most {most} admitted in {lasts:?}, {worst} of at most {WORST_SECOND} in the worst second",
        all.len()
    ));
    // One process admits all that the bucket gives.
    assert!(all.len() as u64 >= RATE * lasts.as_secs(), "{counts:?}");
    assert!(
        worst <= WORST_SECOND && all.len() as u64 <= most,
        "{counts:?}, {worst} in the worst second"
    );
}
