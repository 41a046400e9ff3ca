//! `headwater bench` against correct servers and against faulty ones.

use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use headwater::config::typed::Compression;
use headwater::devnet::{Config, Devnet};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

use crate::cli::{run, text};
use crate::harness::{Proxy, within};

/// Runs `headwater bench` with these arguments, separated by spaces, to its end.
async fn bench(url: &str, args: &str) -> Output {
    let args = format!("bench {url} {args}");
    let running = tokio::task::spawn_blocking(move || run(&args.split_whitespace().collect::<Vec<_>>(), &[]));
    within("the load's end", running).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_server_passes_also_through_reorgs() {
    let config = Config {
        block_time: Some(Duration::from_millis(50)),
        ..Config::manual()
    };
    let node = Devnet::start(config).await.unwrap();
    let proxy = Proxy::start(&[node.ws_url()], |_| {}).await;
    proxy.ready().await;
    let control = node.handle();
    let reorgs = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            control.reorg(2, 3).unwrap();
        }
    });
    let url = format!("ws://{}", proxy.address);
    let both = format!(
        "--clients=40 --kind=newHeads,logs --duration=2s --pid={}",
        std::process::id()
    );
    let filtered = r#"--clients=7 --kind=logs --filter={} --filter={"topics":[null,null]} --duration=1s --json"#;
    let (words, filters) = tokio::join!(bench(&url, &both), bench(&url, filtered));
    reorgs.abort();

    assert!(words.status.success(), "{words:?}");
    let figures = text(&words.stdout);
    for line in [
        "clients      40 of ws://",
        "connecting   ",
        "deliveries   ",
        "spread       p50",
        "last client  p50",
        "µs CPU a delivery",
        "faults       0 lost, 0 doubled, 0 out of order, 0 closed",
    ] {
        assert!(figures.contains(line), "{figures} lacks {line:?}");
    }

    assert!(filters.status.success(), "{filters:?}");
    let report: Value = serde_json::from_slice(&filters.stdout).unwrap();
    assert_eq!((&report["clients"], &report["lost"]), (&json!(7), &json!(0)));
    assert_eq!(report["subscriptions"].as_array().map(Vec::len), Some(2));
    assert!(report["deliveries"].as_u64() > Some(7), "{report}");
    assert!(report["server"].is_null() && report["bytes"].as_u64() > Some(1000));
}

/// Compression delivers the same events in fewer bytes; an endpoint that declines it makes `bench --compress` fail.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_compressed_is_read_and_what_is_not_is_refused() {
    let config = Config {
        block_time: Some(Duration::from_millis(50)),
        ..Config::manual()
    };
    let node = Devnet::start(config).await.unwrap();
    let proxy = Proxy::start(&[node.ws_url()], |config| {
        config.delivery.compression = Compression::On;
    })
    .await;
    proxy.ready().await;
    let url = format!("ws://{}", proxy.address);
    let args = "--clients=20 --kind=newHeads,logs --duration=1s --json";
    let (plain, shorter) = (
        bench(&url, args).await,
        bench(&url, &format!("{args} --compress")).await,
    );
    let [plain, shorter] = [plain, shorter].map(|output| {
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["bytes"].as_f64().unwrap() / report["deliveries"].as_f64().unwrap()
    });
    assert!(shorter < 0.6 * plain, "{shorter} of {plain} bytes");

    let declined = bench(&node.ws_url(), "--clients=2 --duration=1s --compress").await;
    failed(&declined, "declined compression");
}

#[track_caller]
fn failed(output: &Output, words: &str) {
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(
        line.lines().count() == 1 && line.contains(words),
        "{line:?} lacks {words:?}"
    );
}

#[tokio::test]
async fn who_is_not_there_is_told_in_one_line() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let output = bench(&format!("ws://{address}"), "").await;
    failed(&output, "is a server running there?");
    assert!(output.stdout.is_empty());
    failed(&bench("http://127.0.0.1:1", "").await, "ws:// or wss://");
    failed(&bench("ws://127.0.0.1:1", "--clients=100000000").await, "ulimit -n");
    failed(&bench("ws://127.0.0.1:1", "--pid=4294967295").await, "pid");
}

/// Sends each client that connects a script of its own, once all have subscribed.
async fn serve(listener: TcpListener, scripts: Vec<Vec<Value>>) {
    let subscribed = Arc::new(Barrier::new(scripts.len()));
    for events in scripts {
        let (stream, _) = listener.accept().await.unwrap();
        let subscribed = subscribed.clone();
        tokio::spawn(async move {
            let mut socket = accept_async(stream).await.unwrap();
            socket.next().await.unwrap().unwrap();
            let answer = json!({"jsonrpc": "2.0", "id": 0, "result": "0x1"});
            socket.send(Message::text(answer.to_string())).await.unwrap();
            subscribed.wait().await;
            for event in events {
                // Members in another order than headwater writes them.
                let text = json!({"params": {"result": event, "subscription": "0x1"}, "method": "eth_subscription"});
                socket.send(Message::text(text.to_string())).await.unwrap();
            }
            // Answers pings and the close frame.
            while let Some(Ok(_)) = socket.next().await {}
        });
    }
}

fn hash(number: u64) -> String {
    format!("0x{number:064x}")
}

fn head(number: u64) -> Value {
    json!({"number": format!("{number:#x}"), "hash": hash(number), "parentHash": hash(number - 1)})
}

fn log(number: u64, index: u64) -> Value {
    json!({
        "blockNumber": format!("{number:#x}"), "blockHash": hash(number), "logIndex": format!("{index:#x}"),
        "removed": false,
    })
}

/// Runs `bench` against a server that sends each client a script of its own; returns the process output and report.
async fn judged(kind: &str, scripts: [Vec<Value>; 3]) -> (Output, Value) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(serve(listener, scripts.to_vec()));
    let output = bench(&url, &format!("--clients=3 --kind={kind} --duration=1s --json")).await;
    server.abort();
    let report = serde_json::from_slice(&output.stdout).unwrap();
    (output, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_one_client_lacks_is_lost() {
    let sound: Vec<Value> = (1..6).map(head).collect();
    let skipping = [1, 2, 4, 5].map(head).to_vec();
    let (output, report) = judged("newHeads", [sound.clone(), skipping, sound]).await;
    failed(&output, "1 lost, 0 doubled, 0 out of order, 0 closed");
    let fault = report["faults"][0].as_str().unwrap();
    assert!(fault.contains("head 3 (") && fault.ends_with("was lost"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_one_client_gets_twice_is_doubled() {
    let sound: Vec<Value> = (0..4).map(|index| log(7, index)).collect();
    let doubling = [0, 1, 1, 2, 3].map(|index| log(7, index)).to_vec();
    let (output, report) = judged("logs", [sound.clone(), sound, doubling]).await;
    failed(&output, "0 lost, 1 doubled, 0 out of order, 0 closed");
    let fault = report["faults"][0].as_str().unwrap();
    assert!(
        fault.contains("log 1 of block 7") && fault.ends_with("arrived twice"),
        "{report}"
    );
}
