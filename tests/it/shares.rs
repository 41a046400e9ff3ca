//! Fair shares of places and bytes: one address takes all that it can get, and a client of another is served.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Client, Proxy, Rig, eventually, node_with_logs_of, within};
use crate::scripted::{Answer, Mine, Scripted};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, UPGRADE, Wire};

/// Connects from 127.0.0.`host`.
async fn from(proxy: &Proxy, host: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, host], 0).into()).unwrap();
    within("connect", socket.connect(proxy.address)).await.unwrap()
}

async fn bystander(proxy: &Proxy) -> Client {
    Client::over(from(proxy, 2).await).await
}

fn call(id: usize, method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}

fn memory(budget: &str) -> String {
    format!("headwater_memory_bytes{{budget=\"{budget}\"}}")
}

/// Calls at the node's limit from one address; another address's call is sent at once.
#[tokio::test]
async fn calls_in_flight_at_a_node() {
    let node = Scripted::start().await;
    node.answer("eth_call", |_| Answer::Never);
    let proxy = node
        .proxy(|config| {
            config.node.max_in_flight = 16;
            config.limits.request_burst = 100_000;
        })
        .await;
    let mut greedy = Vec::new();
    for of in 0..6 {
        let mut client = proxy.client().await;
        if of == 0 {
            client.become_known().await;
        }
        for id in 0..256 {
            let data = json!([{"to": format!("0x{of:040x}"), "data": format!("0x{id:08x}")}, "latest"]);
            client.send(call(id, "eth_call", &data)).await;
        }
        greedy.push(client);
    }
    // One address gets half of the places and a queue; calls beyond those are refused with a time to retry.
    eventually("they are refused", async || {
        proxy.metric("headwater_refused_total{reason=\"calls\"}").await >= (6 * 256 - 1024 - 8) as f64
    })
    .await;
    let refused: Value = serde_json::from_str(&greedy[5].next().await).unwrap();
    assert_eq!(refused["error"]["code"], -32005, "{refused}");
    assert_eq!(refused["error"]["data"]["retryAfterMs"], 1000);
    let mut bystander = bystander(&proxy).await;
    for i in 0..20 {
        let block = bystander
            .call("eth_getBlockByNumber", json!([format!("{i:#x}"), false]))
            .await;
        assert!(block.get("result").is_some(), "{block}");
    }
    assert_eq!(node.calls("eth_call"), 8);
}

/// Resumes after unknown blocks, without end, from one address; another address resumes from a block to be fetched.
#[tokio::test]
async fn searches_for_blocks_to_resume_from() {
    let node = Scripted::start().await;
    let real = node.grow(40)[4].hash();
    let known = real.clone();
    node.answer("eth_getBlockByHash", move |ask| match ask.params[0] == known.as_str() {
        true => ask.usual(),
        false => Answer::After(Duration::from_secs(60), Box::new(Value::Null.into())),
    });
    let proxy = node.proxy(|config| config.history.blocks = 8).await;
    let mut greedy = Vec::new();
    for of in 0..4 {
        let mut client = proxy.client().await;
        for id in 0..200_usize {
            let after = json!(["newHeads", {"after": {"blockHash": format!("0x{:064x}", of * 1000 + id + 1)}}]);
            client.send(call(id, "eth_subscribe", &after)).await;
        }
        greedy.push(client);
    }
    eventually("the queue is full", async || {
        proxy.metric("headwater_resumed_total{reason=\"busy\"}").await > 100.0
    })
    .await;
    let mut bystander = bystander(&proxy).await;
    let id = bystander
        .subscribe(json!(["newHeads", {"after": {"blockHash": real}}]))
        .await;
    let first = bystander.event().await;
    assert_eq!(
        (first.subscription.as_str(), &first.json()["number"]),
        (id.as_str(), &json!("0x6"))
    );
}

/// Unfinished messages from one address; another address's long message is read.
#[tokio::test]
async fn messages_that_are_not_whole() {
    let rig = Rig::with(|config| config.memory.inbound = ByteSize::mib(2)).await;
    let part = vec![b' '; 200 << 10];
    let mut greedy = Vec::new();
    for host in [1, 3, 4, 5, 6] {
        for _ in 0..8 {
            let mut wire = Wire::over(from(&rig, host).await);
            assert_eq!(wire.handshake(UPGRADE, b"").await.status, 101);
            // The header of a text frame of a megabyte, its mask, and a fifth of it.
            let header = [&[0x81, 0xFF][..], &(1_u64 << 20).to_be_bytes(), &[0; 4]].concat();
            wire.try_write([header, part.clone()].concat()).await;
            greedy.push(wire);
            // The same over HTTP.
            let mut http = from(&rig, host).await;
            let head =
                "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n";
            let _ = http.write_all(&[head.as_bytes(), &part].concat()).await;
            greedy.push(Wire::over(http));
        }
    }
    eventually("what is too much goes", async || {
        rig.metric("headwater_refused_total{reason=\"inbound_bytes\"}").await >= 40.0
    })
    .await;
    assert!(rig.metric(&memory("inbound")).await <= f64::from(2 << 20));
    let mut bystander = bystander(&rig).await;
    for _ in 0..5 {
        let long = format!("{}{CHAIN_ID}", " ".repeat(150 << 10));
        assert_eq!(bystander.ask(long).await, CHAIN_ID_ANSWER);
    }
    drop(greedy);
    eventually("all is given back", async || {
        rig.metric(&memory("inbound")).await == 0.0
    })
    .await;
}

/// Long answers of an HTTP node to one address; answers to another address are read.
#[tokio::test]
async fn answers_that_are_being_read() {
    let node = node_with_logs_of(500_000).await;
    node.handle().mine_many(3);
    let proxy = Proxy::start(&[node.http_url()], |config| {
        config.node.poll_interval = Duration::from_millis(20);
        config.memory.upstream = ByteSize::mib(16);
        config.cache.max_bytes = ByteSize::b(0);
    })
    .await;
    proxy.ready().await;
    let mut greedy = proxy.client().await;
    for id in 0..60 {
        // No two calls share an answer.
        let block = json!([format!("{:#x}", id % 4), id]);
        greedy.send(call(id, "eth_getBlockReceipts", &block)).await;
    }
    let mut bystander = bystander(&proxy).await;
    for _ in 0..5 {
        let answer = bystander.call("eth_getBlockReceipts", json!(["0x2"])).await;
        assert!(answer["result"].is_array(), "{}", answer["error"]);
    }
    for _ in 0..60 {
        let answer: Value = serde_json::from_str(&greedy.next().await).unwrap();
        assert!(
            answer.get("result").is_some() || answer["error"]["code"] == -32005 || answer["error"]["code"] == -32003
        );
    }
    assert_eq!(proxy.metric(&memory("upstream")).await, 0.0);
}

/// Batches of long answers that are not read count toward the memory limit from assembly until they are written.
#[tokio::test]
async fn batches_that_are_not_read() {
    let rig = Rig::before(node_with_logs_of(200_000).await, |config| {
        config.memory.answers = ByteSize::mib(8);
    })
    .await;
    let receipts = r#"{"jsonrpc":"2.0","id":1,"method":"eth_getBlockReceipts","params":["0x2"]}"#;
    let batch = format!("[{}]", [receipts; 8].join(","));
    let head = format!(
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        batch.len()
    );
    let mut greedy = Vec::new();
    for _ in 0..10 {
        let mut http = from(&rig, 1).await;
        http.write_all(format!("{head}{batch}").as_bytes()).await.unwrap();
        greedy.push(http);
    }
    eventually("there is no more room for it", async || {
        rig.metric("headwater_refused_total{reason=\"long_answers\"}").await >= 10.0
    })
    .await;
    assert!(rig.metric(&memory("answers")).await <= f64::from(8 << 20));
    let mut http = Wire::over(from(&rig, 2).await);
    let post = format!(
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}",
        receipts.len()
    );
    assert_eq!(http.handshake(&post, receipts.as_bytes()).await.status, 200);
    drop((greedy, http));
    eventually("all is given back", async || {
        rig.metric(&memory("answers")).await == 0.0
    })
    .await;
}

/// Clients that resume and do not read keep no pages in memory, and another client resumes meanwhile.
#[tokio::test]
async fn resumed_streams_that_are_not_read() {
    let rig = Rig::before(node_with_logs_of(20_000).await, |config| {
        config.history.blocks = 4;
        config.memory.replays = ByteSize::mib(4);
    })
    .await;
    rig.control.mine_many(60);
    rig.settled(&rig.control).await;
    let mut greedy = Vec::new();
    for host in [1, 3, 4, 5, 6] {
        for _ in 0..8 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            socket.bind(([127, 0, 0, host], 0).into()).unwrap();
            let mut wire = Wire::over(within("connect", socket.connect(rig.address)).await.unwrap());
            assert_eq!(wire.handshake(UPGRADE, b"").await.status, 101);
            let resume = call(1, "eth_subscribe", &json!(["logs", {}, {"fromBlock": "0x1"}]));
            wire.send(crate::wire::TEXT, resume).await;
            greedy.push(wire);
        }
    }
    let mut bystander = bystander(&rig).await;
    let id = bystander.subscribe(json!(["newHeads", {"fromBlock": "0x1"}])).await;
    for number in 1..=50 {
        let head = bystander.event().await;
        assert_eq!(head.subscription, id);
        assert_eq!(head.json()["number"], format!("{number:#x}"));
    }
    eventually("who does not read keeps none", async || {
        rig.metric(&memory("replays")).await == 0.0
    })
    .await;
    drop(greedy);
}

/// Four addresses open more silent connections than there are places; new clients are served.
#[tokio::test]
async fn places_before_the_first_request() {
    let rig = Rig::with(|config| config.server.max_handshakes = 16).await;
    let mut silent = Vec::new();
    for round in 0..20 {
        for host in [1, 3, 4, 5] {
            silent.push(from(&rig, host).await);
        }
        if round % 4 == 3 {
            assert_eq!(bystander(&rig).await.ask(CHAIN_ID).await, CHAIN_ID_ANSWER);
        }
    }
    eventually("some have given way", async || {
        rig.metric("headwater_refused_total{reason=\"displaced\"}").await >= 5.0
    })
    .await;
}

/// Connections of one address take all places; others displace its idle ones, those without subscriptions first.
#[tokio::test]
async fn connections_in_total() {
    let rig = Rig::with(|config| {
        config.limits.max_connections = 12;
        config.limits.max_connections_per_client = 12;
    })
    .await;
    let mut watcher = rig.client().await;
    watcher.subscribe(json!(["newHeads"])).await;
    let mut greedy = Vec::new();
    while let Ok(client) = Client::try_over(from(&rig, 1).await).await {
        greedy.push(client);
    }
    assert!((10..12).contains(&greedy.len()), "{}", greedy.len());
    let mut others = Vec::new();
    for _ in 0..3 {
        let mut other = bystander(&rig).await;
        assert_eq!(other.ask(CHAIN_ID).await, CHAIN_ID_ANSWER);
        others.push(other);
    }
    for client in greedy.iter_mut().take(3) {
        let (_, code, _) = client.closed().await;
        assert_eq!(code, 1013);
    }
    assert!(Client::try_over(from(&rig, 1).await).await.is_err(), "it has most");
    let block = rig.control.mine();
    assert_eq!(
        watcher.event().await.json()["number"],
        json!(format!("{:#x}", block.number()))
    );
    for client in greedy.iter_mut().skip(3).chain(&mut others) {
        assert_eq!(client.ask(CHAIN_ID).await, CHAIN_ID_ANSWER);
    }
}

/// A node announces long blocks without known parents, without end; the chain goes on, and memory is bounded.
#[tokio::test]
async fn blocks_without_known_parents() {
    let node = Scripted::start().await;
    let proxy = node.proxy(|config| config.memory.parents = ByteSize::mib(2)).await;
    let mut watcher = proxy.client().await;
    watcher.subscribe(json!(["newHeads"])).await;
    let flood = Arc::new("ab".repeat(100_000));
    for i in 0..200_u64 {
        let unknown = json!({
            "hash": format!("0x{:064x}", (1_u64 << 40) + i),
            "parentHash": format!("0x{:064x}", (1_u64 << 41) + i),
            "number": format!("{:#x}", node.head().number() + 1),
            "logsBloom": format!("0x{}", "00".repeat(256)),
            "extraData": format!("0x{flood}"),
        });
        node.announce(&unknown, "newHeads");
    }
    let block = node.mine(Mine::default());
    assert_eq!(watcher.line().await, block.head_line());
    assert!(proxy.metric(&memory("parents")).await <= f64::from(4 << 20));
}
