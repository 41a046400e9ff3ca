//! Server-sent events: `GET /events`.

pub mod browser;
pub mod examples;
pub mod source;

use std::sync::Arc;
use std::time::Duration;

use headwater::devnet::Block;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use self::source::{Message, Source};
use crate::harness::{Rig, adopted, dropped, eventually, node_with_logs_of, within};
use crate::wire::{Reply, http};

async fn get(rig: &Rig, query: &str) -> Reply {
    http(rig.address, &format!("GET /events?{query} HTTP/1.1"), "").await
}

fn only(word: &str, story: Vec<String>) -> Vec<String> {
    story.into_iter().filter(|line| line.starts_with(word)).collect()
}

fn logs(blocks: &[Arc<Block>]) -> Vec<String> {
    only("log", adopted(blocks))
}

#[tokio::test]
async fn a_stream_is_named_numbered_and_has_the_nodes_bytes() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.subscribe(json!(["newHeads"])).await;
    client.subscribe(json!(["logs", {}])).await;
    let mut heads = Source::open(rig.address, "kind=heads").await;
    let mut all = Source::open(rig.address, "kind=logs").await;
    let start = all.mark().await;
    assert_eq!(all.retry, Some(1000));
    assert_eq!(start, heads.mark().await, "both begin behind the same block");
    let blocks = rig.control.mine_many(3);
    for block in &blocks {
        let theirs = client.event().await;
        let ours = heads.message().await;
        assert_eq!((ours.event.as_str(), &ours.data), ("heads", &theirs.payload));
        let mut ids = Vec::new();
        for _ in 0..block.logs().count() {
            let ours = all.message().await;
            assert_eq!((ours.event.as_str(), ours.data), ("logs", client.event().await.payload));
            ids.push(ours.id);
        }
        // Behind the last log comes the block, the same position as behind its head.
        assert_eq!(all.mark().await, ours.id);
        ids.dedup();
        assert_eq!(ids.len(), block.logs().count());
    }
    for head in [&heads.head, &all.head] {
        assert!(head.contains("cache-control: no-store"), "{head}");
        assert!(!head.contains("content-encoding"), "{head}");
    }
}

#[tokio::test]
async fn every_kind_of_stream_is_served_and_counted() {
    let rig = Rig::start().await;
    let token = rig.control.with_chain(|chain| chain.tokens()[0]);
    let head = rig.control.head();
    let mut safe = Source::open(rig.address, "kind=heads&confirmations=2").await;
    let mut whole = Source::open(rig.address, &format!("kind=blockLogs&address={token}&include=header")).await;
    let mut receipts = Source::open(rig.address, "kind=receipts").await;
    let mut pending = Source::open(rig.address, "kind=pending").await;
    let mut final_logs = Source::open(rig.address, &format!("kind=logs&address={token}&confirmations=2")).await;
    let connected = async || rig.metric("headwater_clients").await;
    assert_eq!(connected().await, 5.0);
    assert_eq!(rig.metric(r#"headwater_subscriptions{kind="blockLogs"}"#).await, 1.0);
    let transaction = rig.control.add_pending().unwrap().hash();
    assert_eq!(pending.message().await.data, format!("\"{transaction}\""));
    assert!(pending.id.is_empty(), "best effort");
    let blocks = rig.control.mine_many(2);
    let message = whole.message().await;
    assert_eq!(
        (message.event.as_str(), message.json()["block"]["hash"].clone()),
        ("blockLogs", json!(blocks[0].hash()))
    );
    assert!(message.json()["header"].is_object());
    let message = receipts.message().await;
    assert_eq!(
        (message.event.as_str(), message.json()[0]["blockHash"].clone()),
        ("receipts", json!(blocks[0].hash()))
    );
    // The block before is the first of this level: the head when the stream began.
    for block in [&head, &blocks[0]] {
        assert_eq!(safe.message().await.json()["hash"], json!(block.hash()));
        for _ in block.logs().filter(|log| log.address == token) {
            assert_eq!(final_logs.message().await.json()["blockHash"], json!(block.hash()));
        }
    }
    drop((safe, whole, receipts, pending, final_logs));
    eventually("all have left", async || connected().await == 0.0).await;
    assert_eq!(rig.metric(r#"headwater_subscriptions{kind="blockLogs"}"#).await, 0.0);
}

#[tokio::test]
async fn a_query_that_makes_no_sense_is_answered_with_the_reason() {
    let rig = Rig::start().await;
    let unknown = "b".to_owned() + &"A".repeat(43);
    for (query, status, code, part) in [
        ("", 400, -32602, "kind is missing"),
        ("kind=syncing", 400, -32602, "is not known"),
        (
            "kind=heads&address=0x1",
            400,
            -32602,
            "parameter \"address\" is not known",
        ),
        ("kind=logs&address=0x1", 400, -32602, "address"),
        ("kind=logs&topic0=1", 400, -32602, "hex string without 0x prefix"),
        (
            "kind=logs&after=x",
            400,
            -32602,
            "after is not the id of a server-sent event",
        ),
        ("kind=logs&after=0x12", 400, -32602, "invalid"),
        ("kind=heads&fromBlock=latest", 400, -32602, "invalid"),
        ("kind=heads&finality=latest", 400, -32602, "unknown variant"),
        (
            "kind=heads&finality=safe&confirmations=1",
            400,
            -32602,
            "choose one or the other",
        ),
        (
            "kind=logs&include=header",
            400,
            -32602,
            "include is an option of blockLogs alone",
        ),
        ("kind=receipts&transactionHash=0x1", 400, -32602, "transactionHashes"),
        (&format!("kind=heads&after={unknown}"), 410, -32001, "is not known"),
    ] {
        let reply = get(&rig, query).await;
        let error = &serde_json::from_str::<Value>(&reply.body).unwrap()["error"];
        let message = error["message"].as_str().unwrap();
        assert_eq!(
            (reply.status, error["code"].as_i64()),
            (status, Some(code)),
            "{query}: {message}"
        );
        assert!(
            message.contains(part) && !message.contains("invalid argument"),
            "{query}: {message}"
        );
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    // Other paths and methods are as before.
    assert_eq!(http(rig.address, "GET / HTTP/1.1", "").await.status, 200);
    assert_eq!(
        http(rig.address, "HEAD /events?kind=heads HTTP/1.1", "").await.status,
        200
    );
    let chain = r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#;
    let post = http(
        rig.address,
        "POST /events HTTP/1.1\r\ncontent-type: application/json",
        chain,
    )
    .await;
    assert_eq!(post.status, 200);
}

/// Reads a stream of logs while the chain reorganises, with a mark behind each block; returns its messages and ids.
async fn received(source: &mut Source, story: &[String]) -> Vec<Message> {
    let mut messages = Vec::new();
    for line in story {
        let message = source.message().await;
        assert_eq!(message.line(), *line);
        messages.push(message);
    }
    messages
}

/// After each event of a sequence with reorgs, within removals too, a client that returns gets the very rest.
#[tokio::test]
async fn it_resumes_exactly_after_each_event_within_a_removal_too() {
    for history in [256, 8] {
        let rig = Rig::with(|config| config.history.blocks = history).await;
        let mut source = Source::open(rig.address, "kind=logs").await;
        let mut blocks = Source::open(rig.address, "kind=blockLogs").await;
        let mut heads = Source::open(rig.address, "kind=heads").await;
        let first = [source.mark().await, blocks.mark().await, heads.mark().await];
        let mut story = logs(&rig.control.mine_many(3));
        let mut messages = received(&mut source, &story).await;
        for (depth, new) in [(2, 3), (1, 2)] {
            let reorg = rig.control.reorg(depth, new).unwrap();
            let part = [dropped(&reorg.dropped), logs(&reorg.adopted)].concat();
            messages.extend(received(&mut source, &part).await);
            story.extend(part);
        }
        let end = rig.control.mine();
        let part = logs(std::slice::from_ref(&end));
        messages.extend(received(&mut source, &part).await);
        story.extend(part);
        let last = source.mark().await;
        // What each event was followed by while the client was connected.
        for at in 0..=messages.len() {
            let id = if at == 0 { &first[0] } else { &messages[at - 1].id };
            let mut again = Source::open_behind(rig.address, "kind=logs", id).await;
            // A branch that was left for good is taken back, and what comes in between is not sent.
            let rest = remaining(&story, at);
            let got = received(&mut again, &rest).await;
            let expected: Vec<&str> = rest.iter().map(String::as_str).collect();
            assert_eq!(
                got.iter().map(Message::line).collect::<Vec<_>>(),
                expected,
                "after {at} of {story:?}"
            );
            while again.id != last {
                again.mark().await;
            }
        }
        // Whole blocks and heads, compared with what came.
        let (mut all, mut seen) = (Vec::new(), Vec::new());
        loop {
            let message = blocks.message().await;
            let is_last = message.json()["block"]["hash"] == json!(end.hash());
            all.push(message);
            if is_last {
                break;
            }
        }
        loop {
            let message = heads.message().await;
            let is_last = message.json()["hash"] == json!(end.hash());
            seen.push(message);
            if is_last {
                break;
            }
        }
        for (kind, all, first) in [("blockLogs", &all, &first[1]), ("heads", &seen, &first[2])] {
            for at in 0..=all.len() {
                let id = if at == 0 { first } else { &all[at - 1].id };
                let mut again = Source::open_behind(rig.address, &format!("kind={kind}"), id).await;
                let mut state = State::of(&all[..at], kind);
                while state != State::of(all, kind) {
                    state.take(&again.message().await);
                }
            }
        }
        let block = rig.control.mine();
        for source in [&mut blocks, &mut heads] {
            let hash = json!(block.hash());
            let json = source.message().await.json();
            assert!(json["hash"] == hash || json["block"]["hash"] == hash);
        }
    }
}

/// Returns what a client that has the first `at` events of a story still has to be sent: logs that it has and that were
/// removed later, then those that stand in the end and that it lacks. Within a removal, the rest of it first.
fn remaining(story: &[String], at: usize) -> Vec<String> {
    let key = |line: &str| line.split_once(' ').unwrap().1.to_owned();
    let stand = |lines: &[String]| {
        let mut stand: Vec<String> = Vec::new();
        for line in lines {
            match line.starts_with("log") {
                true => stand.push(key(line)),
                false => stand.retain(|own| *own != key(line)),
            }
        }
        stand
    };
    let (own, end) = (stand(&story[..at]), stand(story));
    let removed = own
        .iter()
        .filter(|own| !end.contains(own))
        .map(|own| format!("undo {own}"));
    let added = end
        .iter()
        .filter(|one| !own.contains(one))
        .map(|one| format!("log {one}"));
    removed.chain(added).collect()
}

/// Chain as a client of heads or whole blocks has it.
#[derive(Debug, PartialEq)]
struct State {
    blocks: Vec<Value>,
    whole: bool,
}

impl State {
    fn of(messages: &[Message], kind: &str) -> Self {
        let mut state = Self {
            blocks: Vec::new(),
            whole: kind == "blockLogs",
        };
        messages.iter().for_each(|message| state.take(message));
        state
    }

    fn take(&mut self, message: &Message) {
        let json = message.json();
        let block = if self.whole { &json["block"] } else { &json };
        if json["removed"] == true {
            let last = self.blocks.pop().map(|last| last["hash"].clone());
            assert_eq!(last, Some(block["hash"].clone()), "the newest is taken back first");
            return;
        }
        if !self.whole {
            // A head replaces those at and above its number.
            let number = |block: &Value| u64::from_str_radix(&block["number"].as_str().unwrap()[2..], 16).unwrap();
            let own = number(block);
            self.blocks.retain(|kept| number(kept) < own);
        }
        if let Some(last) = self.blocks.last() {
            assert_eq!(last["hash"], block["parentHash"]);
        }
        self.blocks
            .push(json!({"number": block["number"], "hash": block["hash"], "parentHash": block["parentHash"]}));
    }
}

/// A removal that was begun is completed, even if its branch is the canonical one again.
#[tokio::test]
async fn a_removal_is_completed_after_a_restart_and_whatever_became_of_the_branch() {
    let rig = Rig::start().await;
    let mut source = Source::open(rig.address, "kind=logs").await;
    let blocks = rig.control.mine_many(3);
    source.expect(&logs(&blocks)).await;
    let reorg = rig.control.reorg(2, 3).unwrap();
    let undone = dropped(&reorg.dropped);
    source.expect(&undone[..4]).await;
    let id = source.id.clone();
    let rest = [&undone[4..], &logs(&reorg.adopted)[..]].concat();
    // The restarted proxy knows nothing of the branch, and asks the node.
    let again = crate::harness::Proxy::start(&[rig.node.ws_url()], |_| {}).await;
    again.ready().await;
    for address in [rig.address, again.address] {
        let mut source = Source::open_behind(address, "kind=logs", &id).await;
        source.expect(&rest).await;
    }
    // Of other streams it makes no sense.
    for query in ["kind=blockLogs", "kind=logs&confirmations=2"] {
        let reply = get(&rig, &format!("{query}&after={id}")).await;
        assert_eq!(reply.status, 400, "{query}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_quiet_stream_resumes_where_it_was() {
    let rig = Rig::start().await;
    let nobody = "kind=logs&address=0x0909090909090909090909090909090909090909";
    let mut quiet = Source::open(rig.address, nobody).await;
    let mut ids = vec![quiet.mark().await];
    for _ in 0..3 {
        rig.control.mine();
        ids.push(quiet.mark().await);
    }
    rig.control.reorg(2, 3).unwrap();
    // Behind the ancestor, and behind each of the new blocks.
    let fork = quiet.mark().await;
    assert_eq!(fork, ids[1]);
    for _ in 0..3 {
        ids.push(quiet.mark().await);
    }
    assert!(
        ids.iter().enumerate().all(|(at, id)| !ids[..at].contains(id)),
        "{ids:?}"
    );
    // All logs behind the last mark, with another filter than before.
    let block = rig.control.mine();
    let mut all = Source::open_behind(rig.address, "kind=logs", ids.last().unwrap()).await;
    all.expect(&logs(&[block])).await;
    // Receipts are marked too.
    let mut receipts = Source::open(
        rig.address,
        &format!("kind=receipts&transactionHash=0x{}", "9".repeat(64)),
    )
    .await;
    let start = receipts.mark().await;
    rig.control.mine();
    assert_ne!(receipts.mark().await, start);
}

#[tokio::test]
async fn the_places_of_eth_subscribe_are_places_here_and_ids_are_places_there() {
    let rig = Rig::start().await;
    let blocks = rig.control.mine_many(4);
    rig.settled(&rig.control).await;
    let hash = blocks[1].hash();
    let mut source = Source::open(rig.address, &format!("kind=logs&after={hash}:0x2")).await;
    let story = [&logs(&blocks[1..2])[3..], &logs(&blocks[2..])[..]].concat();
    source.expect(&story[..5]).await;
    let id = source.id.clone();
    let mut client = rig.client().await;
    client.subscribe(json!(["logs", {}, {"after": id}])).await;
    client.expect(story[5..].to_vec()).await;
    let number = format!("kind=heads&fromBlock={:#x}", blocks[2].number());
    let mut heads = Source::open(rig.address, &number).await;
    heads.expect(&only("head", adopted(&blocks[2..]))).await;
    // A reconnecting browser repeats its query.
    let mut again = Source::open_behind(rig.address, &number, &heads.id).await;
    let block = rig.control.mine();
    again.expect(&only("head", adopted(&[block]))).await;
}

#[tokio::test]
async fn it_works_behind_other_requests_of_a_connection_too() {
    let rig = Rig::start().await;
    let mut socket = TcpStream::connect(rig.address).await.unwrap();
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#;
    let length = body.len();
    let post = format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    socket.write_all(post.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        within("an answer", socket.read_buf(&mut answer)).await.unwrap();
    }
    let mut source = Source::over(socket, "kind=logs", "").await;
    assert!(source.head.contains("transfer-encoding: chunked"), "{}", source.head);
    source.mark().await;
    let blocks = rig.control.mine_many(2);
    source.expect(&logs(&blocks)).await;
    rig.stop();
    assert_eq!(source.rest().await.last().unwrap().event, "close");
    rig.proxy.ended().await.unwrap();
}

#[tokio::test]
async fn a_drain_ends_the_stream_with_a_reason_and_the_client_goes_on_elsewhere() {
    let rig = Rig::start().await;
    let mut source = Source::open(rig.address, "kind=logs").await;
    let blocks = rig.control.mine_many(2);
    source.expect(&logs(&blocks)).await;
    source.mark().await;
    rig.stop();
    let end = source.rest().await.pop().unwrap();
    assert_eq!(
        (end.event.as_str(), end.json()),
        ("close", json!({"code": 1012, "reason": "service restart"}))
    );
    assert_eq!(source.retry, Some(1000));
    rig.proxy.ended().await.unwrap();
    let block = rig.control.mine();
    let again = crate::harness::Proxy::start(&[rig.node.ws_url()], |_| {}).await;
    again.ready().await;
    let mut source = Source::open_behind(again.address, "kind=logs", &source.id).await;
    source.expect(&logs(&[block])).await;
}

/// A browser gives up at a status other than 200.
#[tokio::test]
async fn a_request_that_is_complete_during_a_drain_is_answered_with_a_stream_that_ends() {
    let rig = Rig::start().await;
    let mut late = TcpStream::connect(rig.address).await.unwrap();
    late.write_all(b"GET /events?kind=heads HTTP/1.1\r\n").await.unwrap();
    // The connection is served, and its request is not complete.
    rig.client().await;
    rig.stop();
    rig.unready().await;
    late.write_all(b"host: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within("the end", late.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let end = r#"{"code":1012,"reason":"service restart"}"#;
    assert_eq!(body, format!("retry: 1000\n\nevent: close\ndata: {end}\n\n"));
    rig.proxy.ended().await.unwrap();
}

#[tokio::test]
async fn limits_are_those_of_other_clients() {
    let rig = Rig::with(|config| {
        config.limits.max_connections_per_client = 2;
        config.server.origins = vec!["https://a.example".into()];
    })
    .await;
    let (first, _second) = (
        Source::open(rig.address, "kind=heads").await,
        Source::open(rig.address, "kind=logs").await,
    );
    let third = get(&rig, "kind=heads").await;
    assert_eq!(third.status, 429, "{}", third.body);
    assert!(third.header("retry-after").is_some());
    drop(first);
    eventually("the place is free", async || {
        get(&rig, "kind=unknown").await.status == 400
    })
    .await;
    // Pages of other origins may not, and the page that may is named.
    let from = async |origin: &str| {
        let head = format!("GET /events?kind=heads&after=x HTTP/1.1\r\norigin: {origin}");
        http(rig.address, &head, "").await
    };
    assert_eq!(from("https://b.example").await.status, 403);
    let own = from("https://a.example").await;
    assert_eq!(
        (own.status, own.header("access-control-allow-origin")),
        (400, Some("https://a.example"))
    );
}

#[tokio::test]
async fn an_idle_stream_is_kept_alive_with_comments_and_takes_no_input() {
    let rig = Rig::with(|config| {
        config.keepalive.ping_interval = Duration::from_secs(1);
        config.keepalive.silence_timeout = Duration::from_secs(2);
    })
    .await;
    let mut socket = TcpStream::connect(rig.address).await.unwrap();
    socket
        .write_all(
            b"GET /events?kind=pending HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        )
        .await
        .unwrap();
    let mut source = Source::open(rig.address, "kind=heads").await;
    for _ in 0..4 {
        source.comment().await;
    }
    let block = rig.control.mine();
    source.expect(&only("head", adopted(&[block]))).await;
    // The client that pipelined is cut, or its second request is ignored: it gets one response.
    rig.stop();
    let mut all = Vec::new();
    drop(within("the end", socket.read_to_end(&mut all)).await);
    let all = String::from_utf8(all).unwrap();
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{all}");
}

#[tokio::test]
async fn a_slow_reader_is_cut_between_two_events_and_resumes_beside_a_bystander() {
    let rig = Rig::before(node_with_logs_of(16 << 10).await, |config| {
        config.delivery.max_queue_bytes = bytesize::ByteSize::kib(512);
    })
    .await;
    let mut bystander = rig.watcher().await;
    let mut quick = Source::open(rig.address, "kind=logs").await;
    let mut slow = Source::narrow(rig.address, "kind=logs").await;
    let mut blocks = Vec::new();
    for _ in 0..60 {
        let block = rig.control.mine();
        bystander.expect(adopted(std::slice::from_ref(&block))).await;
        quick.expect(&logs(std::slice::from_ref(&block))).await;
        blocks.push(block);
    }
    let mut got: Vec<Message> = slow.rest().await;
    // A client that reads nothing for seconds gets no reason either.
    if let Some(end) = got.pop_if(|last| last.event == "close") {
        assert_eq!(end.json()["code"], 1013);
    }
    eventually("it is counted", async || {
        rig.metric(r#"headwater_closes_total{reason="slow_consumer"}"#).await == 1.0
    })
    .await;
    let lines: Vec<String> = got.iter().map(Message::line).collect();
    let story = logs(&blocks);
    assert!(
        !lines.is_empty() && story.starts_with(&lines),
        "{} of {}",
        lines.len(),
        story.len()
    );
    let mut again = Source::open_behind(rig.address, "kind=logs", &slow.id).await;
    again.expect(&story[lines.len()..]).await;
}

/// A client of logs, or of whole blocks, that disconnects at any event, while the chain grows and reorganises: it gets each
/// event once, is taken back what it has and nothing else, and has the canonical chain in the end.
#[tokio::test]
async fn whenever_a_client_disconnects_it_has_the_chain_in_the_end() {
    for (seed, history, query) in [
        (1, 256, "kind=logs"),
        (2, 256, "kind=logs"),
        (3, 8, "kind=logs"),
        (4, 256, "kind=blockLogs"),
        (5, 8, "kind=blockLogs"),
    ] {
        let mut rng = StdRng::seed_from_u64(seed);
        let rig = Rig::with(|config| config.history.blocks = history).await;
        let mut source = Source::open(rig.address, query).await;
        source.mark().await;
        let first = rig.control.head().number() + 1;
        let mut kept = Kept::default();
        for _ in 0..40 {
            let height = rig.control.head().number() + 1 - first;
            match rng.random_range(0..3) {
                0 if height > 1 => {
                    let depth = rng.random_range(1..=height.min(3));
                    rig.control.reorg(depth, depth + rng.random_range(1..3)).unwrap();
                }
                _ => drop(rig.control.mine_many(rng.random_range(1..3))),
            }
            for _ in 0..rng.random_range(0..8) {
                // There may be no more for now.
                match tokio::time::timeout(Duration::from_millis(20), source.next()).await {
                    Ok(message) => kept.take(&message.unwrap(), seed),
                    Err(_) => break,
                }
            }
            if rng.random_bool(0.5) {
                let id = source.id.clone();
                source = Source::open_behind(rig.address, query, &id).await;
            }
        }
        rig.settled(&rig.control).await;
        let last = rig.control.mine();
        let block = |number| rig.control.with_chain(|chain| chain.block_at(number).cloned().unwrap());
        let canonical: Vec<_> = (first..=last.number()).map(block).collect();
        let expected: Vec<String> = canonical
            .iter()
            .flat_map(|block| {
                (0..block.logs().count()).map(|at| Kept::key(&json!(block.hash()), &json!(format!("{at:#x}"))))
            })
            .collect();
        while kept.0 != expected {
            kept.take(&source.message().await, seed);
        }
    }
}

/// Logs that a client has, oldest first.
#[derive(Default)]
struct Kept(Vec<String>);

impl Kept {
    fn key(block: &Value, index: &Value) -> String {
        format!("{} {}", block.as_str().unwrap(), index.as_str().unwrap())
    }

    fn take(&mut self, message: &Message, seed: u64) {
        let json = message.json();
        let alone = [json.clone()];
        let logs = json["logs"].as_array().map_or(&alone[..], Vec::as_slice);
        for log in logs {
            let key = Self::key(&log["blockHash"], &log["logIndex"]);
            let at = self.0.iter().position(|own| *own == key);
            match (log["removed"] == true, at) {
                (true, Some(at)) => drop(self.0.remove(at)),
                (false, None) => self.0.push(key),
                _ => panic!("seed {seed}: {key} came twice, or was not there to be taken back: {message:?}"),
            }
        }
    }
}
