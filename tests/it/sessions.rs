//! Sessions: a client that only names a token goes on where its WebSocket stack certainly was (E9).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use headwater::config::typed;
use headwater::devnet::Block;
use serde_json::{Value, json};

use crate::harness::{Event, Proxy, Rig, adopted, dropped};
use crate::wire::{CLOSE, PING, PONG, TEXT, UPGRADE, Wire};

const LOST: &str = "the position of this session is lost, events may be missing: read the chain again";

/// Returns a token that was made so many seconds ago.
fn token(age: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    format!("{}-{:016x}", now - age, rand::random::<u64>())
}

/// Frame from the app, as far as sessions are concerned.
#[derive(Debug, PartialEq)]
enum Got {
    Event(String),
    Answer(Value),
    Mark(Vec<u8>),
    Closed(u16, String),
}

/// A client whose pongs the test sends by hand.
struct Peer {
    wire: Wire,
    /// Marks that were not confirmed.
    marks: Vec<Vec<u8>>,
    /// Events that came before an answer.
    early: Vec<String>,
    confirms: bool,
}

impl Peer {
    async fn open(address: SocketAddr, token: &str) -> Self {
        let mut wire = Wire::connect(address).await;
        let head = UPGRADE.replacen("GET /", &format!("GET /?session={token}"), 1);
        let reply = wire.handshake(&head, b"").await;
        assert_eq!(reply.status, 101, "{}", reply.head);
        Self {
            wire,
            marks: Vec::new(),
            early: Vec::new(),
            confirms: false,
        }
    }

    async fn next(&mut self) -> Got {
        loop {
            let (first, payload) = self.wire.frame().await;
            match first {
                PING if payload.len() == 8 => return Got::Mark(payload),
                PING => self.wire.send(PONG, payload).await,
                CLOSE => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    let reason = String::from_utf8(payload[2..].to_vec()).unwrap();
                    self.wire.send(CLOSE, &payload[..2]).await;
                    return Got::Closed(code, reason);
                }
                TEXT => {
                    let text = String::from_utf8(payload).unwrap();
                    let json: Value = serde_json::from_str(&text).unwrap();
                    if json.get("method").is_none() {
                        return Got::Answer(json);
                    }
                    return Got::Event(match &json["params"]["result"] {
                        whole if whole.get("block").is_some() => format!(
                            "{} {} {}",
                            if whole["removed"] == true { "undo" } else { "block" },
                            whole["block"]["number"].as_str().unwrap(),
                            &whole["block"]["hash"].as_str().unwrap()[..10],
                        ),
                        Value::Array(receipts) => format!("receipts {}", receipts[0]["blockNumber"].as_str().unwrap()),
                        own if own.get("transaction").is_some() => {
                            format!("mined {}", own["transaction"]["blockNumber"].as_str().unwrap())
                        }
                        _ => Event::parse(&text).line(),
                    });
                }
                other => panic!("{other:#x} {payload:?}"),
            }
        }
    }

    async fn subscribe(&mut self, params: Value) -> String {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": params});
        let answer = self.ask(request).await;
        answer["result"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    async fn ask(&mut self, request: Value) -> Value {
        self.wire.send(TEXT, request.to_string()).await;
        loop {
            match self.next().await {
                Got::Answer(answer) => return answer,
                Got::Event(line) => self.early.push(line),
                Got::Mark(mark) => self.mark(mark).await,
                closed @ Got::Closed(..) => panic!("{closed:?}"),
            }
        }
    }

    async fn mark(&mut self, mark: Vec<u8>) {
        if self.confirms {
            self.wire.send(PONG, mark).await;
        } else {
            self.marks.push(mark);
        }
    }

    async fn watch(&mut self) {
        self.subscribe(json!(["newHeads"])).await;
        self.subscribe(json!(["logs", {}])).await;
    }

    async fn line(&mut self) -> String {
        if !self.early.is_empty() {
            return self.early.remove(0);
        }
        loop {
            match self.next().await {
                Got::Event(line) => return line,
                Got::Mark(mark) => self.mark(mark).await,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn expect(&mut self, story: impl IntoIterator<Item = String>) {
        for (i, line) in story.into_iter().enumerate() {
            assert_eq!(self.line().await, line, "line {i}");
        }
    }

    /// Reads up to the next mark behind what was read, and confirms it, and has the app take the pong.
    async fn confirm(&mut self) {
        let Got::Mark(mark) = self.next().await else {
            panic!("no mark");
        };
        self.pong(mark).await;
    }

    async fn pong(&mut self, mark: Vec<u8>) {
        self.wire.send(PONG, mark).await;
        self.ask(json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}))
            .await;
    }

    async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.next().await {
                Got::Closed(code, reason) => return (code, reason),
                Got::Event(_) | Got::Mark(_) | Got::Answer(_) => {}
            }
        }
    }

    /// Cuts the connection without a goodbye, and waits until the app has noticed.
    async fn cut(self, proxy: &Proxy) {
        let before = proxy.metric("headwater_clients").await;
        self.wire.cut();
        crate::harness::eventually("the client is gone", async || {
            proxy.metric("headwater_clients").await < before
        })
        .await;
    }
}

async fn rig(edit: impl FnOnce(&mut typed::Config)) -> Rig {
    let rig = Rig::with(edit).await;
    rig.control.mine_many(12);
    rig.settled(&rig.control).await;
    rig
}

fn only(kind: &str, story: Vec<String>) -> Vec<String> {
    story.into_iter().filter(|line| line.starts_with(kind)).collect()
}

/// Confirms everything up to the last of these events: the marks behind heads and behind logs.
async fn confirm_all(peer: &mut Peer) {
    peer.confirms = true;
    for mark in std::mem::take(&mut peer.marks) {
        peer.wire.send(PONG, mark).await;
    }
    peer.ask(json!({"jsonrpc": "2.0", "id": 9, "method": "eth_chainId"}))
        .await;
}

#[tokio::test]
async fn what_happened_in_between_is_delivered_from_the_confirmed_block_on() {
    for history in [256, 4] {
        let rig = rig(|config| config.history.blocks = history).await;
        let token = token(0);
        let mut peer = Peer::open(rig.address, &token).await;
        peer.watch().await;
        let first = rig.control.mine_many(3);
        peer.expect(adopted(&first)).await;
        // The mark behind the logs of the third block.
        peer.confirm().await;
        peer.cut(&rig).await;
        let missed = rig.control.mine_many(9);
        rig.settled(&rig.control).await;
        let mut peer = Peer::open(rig.address, &token).await;
        let batch = json!([
            {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]},
            {"jsonrpc": "2.0", "id": 2, "method": "eth_subscribe", "params": ["logs", {}]},
        ]);
        peer.ask(batch).await;
        // One block is sent again: the library may have dropped it with its buffer.
        let again: Vec<Arc<Block>> = [&first[2..], &missed[..]].concat();
        peer.expect(adopted(&again)).await;
        let live = rig.control.mine_many(2);
        peer.expect(adopted(&live)).await;
    }
}

#[tokio::test]
async fn what_was_sent_and_not_confirmed_is_sent_again() {
    let rig = rig(|config| config.sessions.overlap = 0).await;
    let token = token(0);
    let mut peer = Peer::open(rig.address, &token).await;
    peer.watch().await;
    let mut blocks = rig.control.mine_many(2);
    peer.expect(adopted(&blocks)).await;
    peer.confirm().await;
    blocks.extend(rig.control.mine_many(4));
    peer.expect(adopted(&blocks[2..])).await;
    peer.cut(&rig).await;
    let mut peer = Peer::open(rig.address, &token).await;
    peer.subscribe(json!(["logs", {}])).await;
    peer.expect(only("log", adopted(&blocks[2..]))).await;
    peer.subscribe(json!(["newHeads"])).await;
    peer.expect(only("head", adopted(&blocks[2..]))).await;
    confirm_all(&mut peer).await;
    peer.cut(&rig).await;
    // Now all is confirmed.
    let mut peer = Peer::open(rig.address, &token).await;
    peer.watch().await;
    let next = rig.control.mine();
    peer.expect(adopted(&[next])).await;
}

#[tokio::test]
async fn what_was_sent_and_dropped_meanwhile_is_taken_back() {
    for history in [256, 6] {
        let rig = rig(|config| {
            config.history.blocks = history;
            config.sessions.overlap = 0;
        })
        .await;
        let token = token(0);
        let mut peer = Peer::open(rig.address, &token).await;
        peer.subscribe(json!(["logs", {}])).await;
        let mut blocks = rig.control.mine_many(2);
        let logs = |blocks: &[Arc<Block>]| only("log", adopted(blocks));
        peer.expect(logs(&blocks)).await;
        peer.confirm().await;
        blocks.extend(rig.control.mine_many(2));
        peer.expect(logs(&blocks[2..])).await;
        peer.cut(&rig).await;
        // The confirmed block, and both that are not, are dropped.
        let reorg = rig.control.reorg(3, 5).unwrap();
        rig.settled(&rig.control).await;
        let mut peer = Peer::open(rig.address, &token).await;
        peer.subscribe(json!(["logs", {}])).await;
        peer.expect(dropped(&reorg.dropped)).await;
        peer.expect(logs(&reorg.adopted)).await;
    }
}

#[tokio::test]
async fn a_removal_that_was_not_confirmed_is_sent_again() {
    let rig = rig(|config| config.sessions.overlap = 0).await;
    let token = token(0);
    let mut peer = Peer::open(rig.address, &token).await;
    peer.subscribe(json!(["logs", {}])).await;
    let logs = |blocks: &[Arc<Block>]| only("log", adopted(blocks));
    let first = rig.control.mine_many(2);
    peer.expect(logs(&first)).await;
    peer.confirm().await;
    let one = rig.control.reorg(1, 1).unwrap();
    peer.expect([dropped(&one.dropped), logs(&one.adopted)].concat()).await;
    let two = rig.control.reorg(1, 2).unwrap();
    peer.expect([dropped(&two.dropped), logs(&two.adopted)].concat()).await;
    peer.cut(&rig).await;
    let mut peer = Peer::open(rig.address, &token).await;
    peer.subscribe(json!(["logs", {}])).await;
    // Both branches that the client may have, in any order of blocks of one number.
    let mut undone = Vec::new();
    let count = dropped(&one.dropped).len() + dropped(&two.dropped).len();
    for _ in 0..count {
        undone.push(peer.line().await);
    }
    undone.sort();
    let mut expected = [dropped(&one.dropped), dropped(&two.dropped)].concat();
    expected.sort();
    assert_eq!(undone, expected);
    peer.expect(logs(&two.adopted)).await;
}

type Row = (&'static str, Value, fn(&Block) -> String);

/// Each kind, from its first notification to one after a cut.
#[tokio::test]
async fn every_stream_of_the_chain_has_a_position() {
    let rows: [Row; 7] = [
        ("heads", json!(["newHeads"]), |block| adopted_line(block, "head")),
        ("final heads", json!(["newHeads", {"confirmations": 2}]), |block| {
            adopted_line(block, "head")
        }),
        ("whole blocks", json!(["blockLogs", {}]), |block| {
            adopted_line(block, "block")
        }),
        ("receipts", json!(["transactionReceipts"]), |block| {
            format!("receipts {:#x}", block.number())
        }),
        (
            "final receipts",
            json!(["transactionReceipts", null, {"confirmations": 1}]),
            |block| format!("receipts {:#x}", block.number()),
        ),
        (
            "whole final blocks",
            json!(["blockLogs", {}, {"confirmations": 2}]),
            |block| adopted_line(block, "block"),
        ),
        ("from a block", json!(["newHeads", {"fromBlock": "0x11"}]), |block| {
            adopted_line(block, "head")
        }),
    ];
    for (what, params, line) in rows {
        let rig = rig(|config| config.sessions.overlap = 0).await;
        let token = token(0);
        // A stream that trails the head begins with a block before it.
        let depth = usize::from(params.to_string().contains("\"confirmations\":2"));
        let mut all: Vec<Arc<Block>> = if depth > 0 {
            vec![rig.control.head()]
        } else {
            Vec::new()
        };
        let mut peer = Peer::open(rig.address, &token).await;
        peer.confirms = true;
        peer.subscribe(params.clone()).await;
        all.extend(rig.control.mine_many(4));
        for block in &all[..4] {
            assert_eq!(peer.line().await, line(block), "{what}");
        }
        peer.confirm().await;
        peer.cut(&rig).await;
        all.extend(rig.control.mine_many(3));
        rig.settled(&rig.control).await;
        let mut peer = Peer::open(rig.address, &token).await;
        peer.subscribe(params).await;
        all.push(rig.control.mine());
        for block in &all[4..8] {
            assert_eq!(peer.line().await, line(block), "{what}");
        }
    }
}

fn adopted_line(block: &Block, word: &str) -> String {
    format!("{word} {:#x} {}", block.number(), &block.hash().to_string()[..10])
}

#[tokio::test]
async fn equal_subscriptions_are_matched_in_order_and_an_unsubscribe_forgets() {
    let rig = rig(|config| config.sessions.overlap = 0).await;
    let token = token(0);
    let mut peer = Peer::open(rig.address, &token).await;
    let first = peer.subscribe(json!(["newHeads"])).await;
    let other = peer.subscribe(json!(["newHeads"])).await;
    assert_ne!(first, other);
    peer.cut(&rig).await;
    let missed = rig.control.mine_many(2);
    rig.settled(&rig.control).await;
    let mut peer = Peer::open(rig.address, &token).await;
    peer.subscribe(json!(["newHeads"])).await;
    peer.expect(only("head", adopted(&missed))).await;
    let second = peer.subscribe(json!(["newHeads"])).await;
    peer.expect(only("head", adopted(&missed))).await;
    // A third has no position and is live; the second is ended, and has none any more.
    peer.subscribe(json!(["newHeads"])).await;
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_unsubscribe", "params": [second]});
    assert_eq!(peer.ask(request).await["result"], true);
    confirm_all(&mut peer).await;
    let next = rig.control.mine();
    peer.expect([adopted_line(&next, "head"), adopted_line(&next, "head")])
        .await;
    peer.confirm().await;
    peer.cut(&rig).await;
    let missed = rig.control.mine();
    rig.settled(&rig.control).await;
    let mut peer = Peer::open(rig.address, &token).await;
    for _ in 0..2 {
        peer.subscribe(json!(["newHeads"])).await;
        peer.expect([adopted_line(&missed, "head")]).await;
    }
    peer.subscribe(json!(["newHeads"])).await;
    let next = rig.control.mine();
    peer.expect(std::iter::repeat_n(adopted_line(&next, "head"), 3)).await;
}

#[tokio::test]
async fn a_second_connection_closes_the_first_and_goes_on() {
    let rig = rig(|_| {}).await;
    let token = token(0);
    let mut first = Peer::open(rig.address, &token).await;
    first.subscribe(json!(["newHeads"])).await;
    let block = rig.control.mine();
    first.expect([adopted_line(&block, "head")]).await;
    let mut second = Peer::open(rig.address, &token).await;
    let (code, reason) = first.closed().await;
    assert_eq!(
        (code, &*reason),
        (1012, "another connection uses the token of this session")
    );
    second.subscribe(json!(["newHeads"])).await;
    second.expect([adopted_line(&block, "head")]).await;
    // Another account has sessions of its own.
    let mut other = Peer {
        wire: Wire::over(crate::sessions::socket_of("127.0.0.9", rig.address).await),
        marks: Vec::new(),
        early: Vec::new(),
        confirms: true,
    };
    let head = UPGRADE.replacen("GET /", &format!("GET /?session={token}"), 1);
    assert_eq!(other.wire.handshake(&head, b"").await.status, 101);
    other.subscribe(json!(["newHeads"])).await;
    let next = rig.control.mine();
    other.expect([adopted_line(&next, "head")]).await;
    second.expect([adopted_line(&next, "head")]).await;
}

pub async fn socket_of(ip: &str, address: SocketAddr) -> tokio::net::TcpStream {
    let local = tokio::net::TcpSocket::new_v4().unwrap();
    local.bind(format!("{ip}:0").parse().unwrap()).unwrap();
    local.connect(address).await.unwrap()
}

#[tokio::test]
async fn an_old_token_that_is_not_known_is_closed_once_and_then_served_live() {
    let rig = rig(|config| config.sessions.overlap = 0).await;
    for age in [31, 86_400] {
        let token = token(age);
        let mut peer = Peer::open(rig.address, &token).await;
        assert_eq!(peer.closed().await, (1012, LOST.to_owned()));
        peer.wire.ends().await;
        for _ in 0..2 {
            let mut peer = Peer::open(rig.address, &token).await;
            peer.subscribe(json!(["newHeads"])).await;
            let block = rig.control.mine();
            peer.expect([adopted_line(&block, "head")]).await;
            peer.confirm().await;
            peer.cut(&rig).await;
        }
    }
    let head = UPGRADE.replacen("GET /", "GET /?session=not-a-token", 1);
    let mut wire = Wire::connect(rig.address).await;
    let reply = wire.handshake(&head, b"").await;
    assert_eq!(reply.status, 400, "{}", reply.head);
}

#[tokio::test]
async fn a_position_that_cannot_be_served_is_closed_once_and_then_served_live() {
    let rig = rig(|config| config.history.max_replay = 4).await;
    let token = token(0);
    let mut peer = Peer::open(rig.address, &token).await;
    peer.subscribe(json!(["newHeads"])).await;
    peer.cut(&rig).await;
    rig.control.mine_many(9);
    rig.settled(&rig.control).await;
    let mut peer = Peer::open(rig.address, &token).await;
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]});
    peer.wire.send(TEXT, request.to_string()).await;
    assert_eq!(peer.closed().await, (1012, LOST.to_owned()));
    peer.wire.ends().await;
    let mut peer = Peer::open(rig.address, &token).await;
    peer.subscribe(json!(["newHeads"])).await;
    let block = rig.control.mine();
    peer.expect([adopted_line(&block, "head")]).await;
    assert_eq!(
        rig.metric("headwater_session_claims_total{outcome=\"lost\"}").await,
        1.0
    );
}

#[tokio::test]
async fn a_client_that_may_not_have_read_of_its_loss_is_closed_again() {
    let rig = rig(|_| {}).await;
    let token = token(31);
    for _ in 0..2 {
        // It is gone before it reads the close frame.
        let lost = "headwater_session_claims_total{outcome=\"lost\"}";
        let before = rig.metric(lost).await;
        let peer = Peer::open(rig.address, &token).await;
        crate::harness::eventually("the client is closed", async || rig.metric(lost).await > before).await;
        peer.cut(&rig).await;
    }
    let mut peer = Peer::open(rig.address, &token).await;
    assert_eq!(peer.closed().await, (1012, LOST.to_owned()));
    peer.wire.ends().await;
    let mut peer = Peer::open(rig.address, &token).await;
    peer.subscribe(json!(["newHeads"])).await;
    let block = rig.control.mine();
    peer.expect([adopted_line(&block, "head")]).await;
}

#[tokio::test]
async fn positions_are_kept_over_a_graceful_restart_by_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("positions");
    for keeps in [true, false] {
        let node = crate::harness::node().await;
        let control = node.handle();
        control.mine_many(8);
        let edit = |config: &mut typed::Config| {
            if keeps {
                config.sessions.file = path.to_str().unwrap().to_owned();
            }
        };
        let proxy = Proxy::start(&[node.ws_url()], edit).await;
        proxy.settled(&control).await;
        let token = token(0);
        let mut peer = Peer::open(proxy.address, &token).await;
        peer.confirms = true;
        peer.watch().await;
        let first = control.mine_many(2);
        peer.expect(adopted(&first)).await;
        peer.confirm().await;
        proxy.stop();
        assert_eq!(peer.closed().await, (1012, "service restart".to_owned()));
        proxy.ended().await.unwrap();
        assert_eq!(path.exists(), keeps);
        let missed = control.mine_many(3);
        // A token made in the second in which the process starts may be new.
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        let proxy = Proxy::start(&[node.ws_url()], edit).await;
        proxy.settled(&control).await;
        assert!(!path.exists(), "positions are of one restart");
        let mut peer = Peer::open(proxy.address, &token).await;
        if !keeps {
            assert_eq!(peer.closed().await, (1012, LOST.to_owned()));
            continue;
        }
        peer.subscribe(json!(["logs", {}])).await;
        let all = [&first[1..], &missed].concat();
        peer.expect(only("log", adopted(&all))).await;
    }
}

#[tokio::test]
async fn forged_pongs_confirm_nothing_and_are_limited_and_answers_to_marks_are_not() {
    let rig = rig(|config| {
        config.sessions.overlap = 0;
        // The bystander reads now and then, and answers no ping before.
        config.keepalive.silence_timeout = std::time::Duration::from_secs(600);
    })
    .await;
    let mut bystander = rig.client().await;
    bystander.subscribe(json!(["newHeads"])).await;
    let mut mined = Vec::new();
    let token = token(0);
    let mut peer = Peer::open(rig.address, &token).await;
    peer.subscribe(json!(["newHeads"])).await;
    let block = rig.control.mine();
    mined.push(adopted_line(&block, "head"));
    peer.expect([adopted_line(&block, "head")]).await;
    for forged in [&b"12345678"[..], b"", &[0; 8], &[0xff; 8]] {
        peer.wire.send(PONG, forged).await;
    }
    peer.ask(json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}))
        .await;
    peer.cut(&rig).await;
    let mut peer = Peer::open(rig.address, &token).await;
    peer.confirms = true;
    peer.subscribe(json!(["newHeads"])).await;
    peer.expect([adopted_line(&block, "head")]).await;
    // More marks than control frames are allowed, each confirmed.
    for _ in 0..1_100 {
        let block = rig.control.mine();
        assert_eq!(peer.line().await, adopted_line(&block, "head"));
        mined.push(adopted_line(&block, "head"));
        if mined.len() == 100 {
            bystander.expect(std::mem::take(&mut mined)).await;
        }
    }
    let mut closed = None;
    for _ in 0..1_001 {
        if !peer.wire.try_write(crate::wire::frame(PONG, b"12345678")).await {
            break;
        }
    }
    while closed.is_none() {
        if let Got::Closed(code, reason) = peer.next().await {
            closed = Some((code, reason));
        }
    }
    assert_eq!(closed, Some((1008, "too many control frames".to_owned())));
    bystander.expect(mined).await;
    let next = rig.control.mine();
    bystander.expect(vec![adopted_line(&next, "head")]).await;
}
