//! The fan-out as clients see it, event by event, over sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Line, Passed, ReceiptFilter, Registry, Start, Stream, Subscription, Topic};
use crate::backplane::{ChainEvent, Gossip, Wanted};
use crate::chain::{Absent, BlockLogs, BlockReceipts, BlockRef, Header};
use crate::clock::Clock;
use crate::delivery::{Compression, Egress, Outbox, OutboxLimits, OutboxShared};
use crate::telemetry::{Metrics, ReasonLabel};

/// All that the fan-out needs.
struct Desk {
    registry: Registry,
    line: Line,
    wanted: watch::Receiver<Wanted>,
    shared: Arc<OutboxShared>,
    metrics: Arc<Metrics>,
}

impl Desk {
    fn new(max_passed: usize) -> Self {
        let (metrics, _) = Metrics::new();
        let limits = OutboxLimits {
            max_bytes: 1 << 20,
            max_total_bytes: 1 << 20,
            max_age: 60_000,
            holdoff: 0,
        };
        let (sender, wanted) = watch::channel(Wanted::default());
        let shared = OutboxShared::new(limits, Clock::start(), &metrics);
        let metrics = Arc::new(metrics);
        let registry = Registry::new(8, max_passed, false, sender, Clock::start(), metrics.clone());
        Self {
            registry,
            line: Line::default(),
            wanted,
            shared,
            metrics,
        }
    }

    async fn client(&self, account: &Arc<Egress>) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.writable().await.unwrap();
        Client {
            outbox: Outbox::new(server.into(), Compression::None, account.clone(), self.shared.clone()),
            socket,
        }
    }

    /// Subscribes, and is not answered.
    fn ask(&self, client: &Client, topic: Topic) -> Subscription {
        self.registry.subscribe(topic, &client.outbox).unwrap()
    }

    fn subscribe(&self, client: &Client, topic: Topic) -> Subscription {
        let subscription = self.ask(client, topic);
        subscription.recipient.release(0);
        subscription
    }

    /// Events of the chain: `h` a head, `l` its logs, `r` back to it; and the receipts `c` of the block that is waited for.
    fn play(&mut self, story: &str) {
        for word in story.split_whitespace() {
            let (what, number) = word.split_at(1);
            let header = header(number.parse().unwrap());
            let event = match what {
                "h" => ChainEvent::Head(header),
                "l" => ChainEvent::Logs(Arc::new(BlockLogs::empty(header.block, header.seen))),
                "r" => ChainEvent::Rewind(header.block),
                _ => {
                    self.registry.fan_out(&mut self.line);
                    self.line.receipts_came(Ok(receipts(&header)));
                    continue;
                }
            };
            self.line.extend(std::iter::once(event));
        }
        self.registry.fan_out(&mut self.line);
    }

    fn pass(&self, of: &Passed, payload: &'static str) -> bool {
        self.registry.fan_out_gossip(Gossip::Passed {
            of: of.clone(),
            method: Bytes::from_static(b"eth_subscription"),
            json: Bytes::from(payload),
            seen: Instant::now(),
        })
    }
}

struct Client {
    outbox: Arc<Outbox>,
    socket: TcpStream,
}

impl Client {
    /// The results of the next so many notifications.
    async fn told(&mut self, count: usize) -> Vec<Value> {
        let mut results = Vec::new();
        for _ in 0..count {
            let mut head = [0; 2];
            self.read(&mut head).await;
            assert_eq!(head[0], 0x81);
            let mut len = usize::from(head[1]);
            if len == 126 {
                let mut long = [0; 2];
                self.read(&mut long).await;
                len = u16::from_be_bytes(long).into();
            }
            let mut text = vec![0; len];
            self.read(&mut text).await;
            let mut text: Value = serde_json::from_slice(&text).unwrap();
            results.push(text["params"]["result"].take());
        }
        results
    }

    async fn read(&mut self, into: &mut [u8]) {
        let read = self.socket.read_exact(into);
        tokio::time::timeout(Duration::from_secs(10), read)
            .await
            .unwrap()
            .unwrap();
    }
}

fn hash(number: u64) -> B256 {
    B256::left_padding_from(&number.to_be_bytes())
}

fn header(number: u64) -> Header {
    Header {
        block: BlockRef {
            number,
            hash: hash(number),
        },
        parent: hash(number - 1),
        bloom: Box::default(),
        timestamp: 0,
        json: number.to_string().into(),
        seen: Instant::now(),
    }
}

/// Two of each block.
fn receipts(header: &Header) -> BlockReceipts {
    let one = |index: u64| {
        json!({
            "transactionHash": hash(header.block.number * 10 + index), "blockHash": header.block.hash,
            "transactionIndex": format!("{index:#x}"),
        })
    };
    let answer = json!([one(0), one(1)]).to_string().into();
    BlockReceipts::parse(header, &answer).unwrap()
}

fn heads() -> Topic {
    Topic::Chain(Stream::Heads, Start::Live)
}

fn of_transactions(hashes: &[B256]) -> Topic {
    Topic::Receipts(ReceiptFilter::at_most(hashes.to_vec()).unwrap())
}

fn passed(kind: &str) -> Passed {
    let name = RawValue::from_string(format!("\"{kind}\"")).unwrap();
    Passed::new("eth_subscribe", &[&*name]).unwrap()
}

fn kind(kind: &str) -> Topic {
    Topic::Passed(passed(kind), kind.to_owned())
}

/// A head as its number, receipts as their transactions' last digits.
fn words(told: &[Value]) -> String {
    let word = |one: &Value| match one {
        Value::Array(receipts) => {
            let digits = |receipt: &Value| receipt["transactionHash"].as_str().unwrap()[64..].to_owned();
            format!("c{}", receipts.iter().map(digits).collect::<Vec<_>>().join("+"))
        }
        head => format!("h{head}"),
    };
    told.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// The chain steps back over a block whose receipts are waited for, and comes the same way again: a head that was there
/// already is not told again, but its receipts were not told.
#[tokio::test]
async fn receipts_are_told_where_the_chain_goes_back_and_comes_the_same_way_again() {
    let mut desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 l1 c1 h2 l2");
    desk.play("h3 r1 h2 l2 h3 l3 c2 c3 h4 l4 c4");
    let told = client.told(8).await;
    assert_eq!(words(&told), "h1 c0a+0b h2 h3 c14+15 c1e+1f h4 c28+29");
}

/// The same, where a block above comes otherwise.
#[tokio::test]
async fn nobody_is_told_the_receipts_of_one_block_twice() {
    let mut desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 l1 c1 h2 l2 c2 h3 l3");
    let mut late = desk.client(&Arc::default()).await;
    desk.subscribe(&late, of_transactions(&[]));
    desk.play("r1 h2 l2 c2 h3 l3 c3 h4 l4 c4");
    let told = client.told(8).await;
    assert_eq!(words(&told), "h1 c0a+0b h2 c14+15 h3 c1e+1f h4 c28+29");
    // Who came behind a block's logs begins with the next.
    assert_eq!(words(&late.told(1).await), "c28+29");
}

#[tokio::test]
async fn filters_that_select_the_same_receipts_are_told_the_same() {
    let mut desk = Desk::new(0);
    let (mut one, mut other) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
    desk.subscribe(&one, of_transactions(&[hash(10), hash(99)]));
    desk.subscribe(&other, of_transactions(&[hash(10), hash(98)]));
    desk.subscribe(&other, of_transactions(&[hash(11), hash(20), hash(21)]));
    desk.play("h1 l1 c1 h2 l2 c2");
    assert_eq!(words(&one.told(1).await), "c0a");
    let mut told = other.told(3).await;
    // In no order between subscriptions.
    told[..2].sort_by_key(Value::to_string);
    assert_eq!(words(&told), "c0a c0b c14+15");
}

#[tokio::test]
async fn who_was_refused_for_a_rate_limit_is_told_so() {
    let mut desk = Desk::new(0);
    let client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 l1");
    assert_eq!(desk.registry.refuses(&of_transactions(&[])), None);
    desk.line.receipts_came(Err(Absent::Throttled));
    desk.play("");
    let (_, why) = desk.registry.refuses(&of_transactions(&[])).unwrap();
    assert!(why.contains("rate limit"), "{why}");
    assert_eq!(desk.registry.refuses(&heads()), None);
}

/// In a batch with a slow call an answer is long in coming: what came before it must not hold up the rest of the queue.
#[tokio::test]
async fn what_is_passed_before_its_answer_holds_nothing_up_and_is_told_behind_the_answer() {
    let mut desk = Desk::new(4);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    let waits = desk.ask(&client, kind("votes"));
    let of = passed("votes");
    // The newest eight are kept.
    for payload in ["0", "1", "2", "3", "4", "5", "6", "7", "8"] {
        assert!(desk.pass(&of, payload), "it waits");
    }
    let lost = ReasonLabel { reason: "unanswered" };
    assert_eq!(
        desk.metrics.pending_dropped.get_or_create(&lost).get(),
        1,
        "the oldest, and it is counted"
    );
    desk.play("h1 l1");
    assert_eq!(client.told(1).await, [json!(1)]);
    assert!(desk.registry.tell_early(), "it still waits");
    waits.recipient.release(0);
    assert!(!desk.registry.tell_early());
    assert!(!desk.pass(&of, "9"));
    assert_eq!(client.told(9).await, (1..=9).map(Value::from).collect::<Vec<_>>());
    // Nothing is kept for who has left.
    let waits = desk.ask(&client, kind("votes"));
    assert!(desk.pass(&of, "10"));
    desk.registry.unsubscribe(&waits);
    assert!(!desk.registry.tell_early());
}

#[tokio::test]
async fn what_is_wanted_of_the_node_is_made_anew_only_when_a_different_one_comes_or_goes() {
    let mut desk = Desk::new(4);
    let client = desk.client(&Arc::default()).await;
    let mut wanted = || desk.wanted.borrow_and_update().passed.clone();
    let first = desk.registry.subscribe(kind("a"), &client.outbox).unwrap();
    let held = wanted();
    assert_eq!(held.iter().collect::<Vec<_>>(), [&passed("a")]);
    let same = desk.registry.subscribe(kind("a"), &client.outbox).unwrap();
    let other = desk.registry.subscribe(heads(), &client.outbox).unwrap();
    desk.registry.unsubscribe(&first);
    desk.registry.unsubscribe(&other);
    let pending = desk.registry.subscribe(Topic::Syncing, &client.outbox).unwrap();
    assert!(Arc::ptr_eq(&held, &wanted()));
    desk.registry.unsubscribe(&pending);
    desk.registry.unsubscribe(&same);
    assert!(wanted().is_empty());
}

#[tokio::test]
async fn an_account_has_a_quarter_of_what_is_passed_and_all_together_no_more_than_there_is() {
    let desk = Desk::new(8);
    let (one, other) = (Arc::default(), Arc::default());
    let (client, again) = (desk.client(&one).await, desk.client(&one).await);
    let ask = |client: &Client, name: &str| desk.registry.subscribe(kind(name), &client.outbox);
    let first = ask(&client, "a").unwrap();
    ask(&again, "b").unwrap();
    // Another connection is no other account, and the same is no other subscription.
    for client in [&client, &again] {
        let why = ask(client, "c").unwrap_err().to_string();
        assert!(why.contains(": 2 different subscriptions of this client"), "{why}");
        ask(client, "b").unwrap();
    }
    let second = ask(&again, "a").unwrap();
    let stranger = desk.client(&other).await;
    ask(&stranger, "c").unwrap();
    assert!(
        ask(&client, "c").is_err(),
        "it is there already, but two are this account's"
    );
    desk.registry.unsubscribe(&first);
    assert!(ask(&client, "c").is_err(), "the other connection has it still");
    desk.registry.unsubscribe(&second);
    ask(&client, "c").unwrap();
    // b and c are there.
    for names in [["d", "e"], ["f", "g"], ["h", "i"]] {
        let own = desk.client(&Arc::default()).await;
        for name in names {
            ask(&own, name).unwrap();
        }
    }
    let late = desk.client(&Arc::default()).await;
    let why = ask(&late, "j").unwrap_err().to_string();
    assert!(why.contains(": 8 different subscriptions are"), "{why}");
    ask(&late, "d").unwrap();
    // However few there are, one is for everybody.
    let small = Desk::new(2);
    let (one, other) = (small.client(&one).await, small.client(&other).await);
    small.ask(&one, kind("a"));
    assert!(small.registry.subscribe(kind("b"), &one.outbox).is_err());
    small.ask(&other, kind("b"));
}
