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

use super::{LogFilter, Passthrough, ReceiptFilter, Registry, Start, Stream, Subscription, Topic};
use crate::backplane::{BestEffortEvent, ChainEvent, Wanted};
use crate::chain::{
    Absent, BlockLogs, BlockReceipts, BlockRef, BlockTransactions, Content, ContentKind, FetchedContent, Header,
};
use crate::clock::Clock;
use crate::delivery::{ClientWriter, Compression, Egress, WriterLimits, WriterShared};
use crate::jsonrpc::{Item, Message};
use crate::telemetry::{Metrics, ReasonLabel};

/// A registry with everything that the fan-out needs.
struct Desk {
    registry: Registry,
    wanted: watch::Receiver<Wanted>,
    shared: Arc<WriterShared>,
    metrics: Arc<Metrics>,
}

impl Desk {
    fn new(max_passthrough: usize) -> Self {
        let (metrics, _) = Metrics::new();
        let limits = WriterLimits {
            max_bytes: 1 << 20,
            max_total_bytes: 1 << 20,
            max_age: 60_000,
            holdoff: 0,
        };
        let (sender, wanted) = watch::channel(Wanted::default());
        let shared = WriterShared::new(limits, Clock::start(), &metrics);
        let metrics = Arc::new(metrics);
        let registry = Registry::new(8, max_passthrough, false, sender, Clock::start(), metrics.clone());
        Self {
            registry,
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
            writer: ClientWriter::new(server.into(), Compression::None, account.clone(), self.shared.clone()),
            socket,
        }
    }

    /// Subscribes without an answer.
    fn ask(&self, client: &Client, topic: Topic) -> Subscription {
        self.registry.subscribe(topic, &client.writer).unwrap()
    }

    fn subscribe(&self, client: &Client, topic: Topic) -> Subscription {
        let subscription = self.ask(client, topic);
        subscription.recipient.release(0);
        subscription
    }

    /// Plays chain events: `h` a head, `r` a rewind to a block; and fetched contents of a block: `l` logs, `t`
    /// transactions, `c` receipts, with `!` behind them if no node gives them.
    fn play(&self, story: &str) {
        for word in story.split_whitespace() {
            let (what, number) = word.split_at(1);
            let header = header(number.trim_end_matches('!').parse().unwrap());
            let content = match what {
                "h" => {
                    self.registry.fan_out(std::iter::once(ChainEvent::Head(header)));
                    continue;
                }
                "r" => {
                    self.registry.fan_out(std::iter::once(ChainEvent::Rewind(header.block)));
                    continue;
                }
                "l" => Content::Logs(Arc::new(logs(&header))),
                "t" => Content::Transactions(Arc::new(transactions(&header))),
                _ => Content::Receipts(Arc::new(receipts(&header))),
            };
            let kind = match content {
                Content::Logs(_) => ContentKind::Logs,
                Content::Transactions(_) => ContentKind::Transactions,
                Content::Receipts(_) => ContentKind::Receipts,
            };
            self.registry.fetched(FetchedContent {
                block: header.block.hash,
                kind,
                result: if number.ends_with('!') {
                    Err(Absent::Throttled)
                } else {
                    Ok(content)
                },
            });
        }
    }

    /// Returns the contents that are to be fetched now.
    fn needed(&self) -> String {
        let word = |(kind, header): &(ContentKind, Header)| format!("{}{}", &kind.label()[..1], header.block.number);
        self.registry.needed().iter().map(word).collect::<Vec<_>>().join(" ")
    }

    fn pass(&self, of: &Passthrough, payload: &'static str) -> bool {
        self.registry.fan_out_gossip(BestEffortEvent::Passthrough {
            of: of.clone(),
            method: Bytes::from_static(b"eth_subscription"),
            json: Bytes::from(payload),
            seen: Instant::now(),
        })
    }
}

struct Client {
    writer: Arc<ClientWriter>,
    socket: TcpStream,
}

impl Client {
    /// Reads the results of the next `count` notifications.
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
        bloom: Some(Box::default()),
        timestamp: 0,
        json: number.to_string().into(),
        seen: Instant::now(),
    }
}

/// Makes one log for a block.
fn logs(header: &Header) -> BlockLogs {
    let BlockRef { number, hash } = header.block;
    let one = json!({
        "address": format!("{:#042x}", 1), "topics": [], "data": "0x", "blockHash": hash,
        "blockNumber": format!("{number:#x}"), "logIndex": "0x0",
    });
    BlockLogs::parse(header.block, &json!([one]).to_string().into(), header.seen).unwrap()
}

/// Makes one transaction for a block.
fn transactions(header: &Header) -> BlockTransactions {
    let BlockRef { number, hash } = header.block;
    let one = json!({
        "hash": self::hash(1000 + number), "from": format!("{:#042x}", 1), "to": null, "blockHash": hash,
        "blockNumber": format!("{number:#x}"), "transactionIndex": "0x0",
    });
    let block = json!({ "hash": hash, "transactions": [one] });
    BlockTransactions::parse(header, &block.to_string().into()).unwrap()
}

/// Makes two receipts for a block.
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

fn passed(kind: &str) -> Passthrough {
    let name = RawValue::from_string(format!("\"{kind}\"")).unwrap();
    Passthrough::new("eth_subscribe", &[&*name]).unwrap()
}

fn kind(kind: &str) -> Topic {
    Topic::Passthrough(passed(kind), kind.to_owned())
}

/// Abbreviates results: a head by its number, a log or transaction by its block's, receipts by their transactions'
/// last digits.
fn words(told: &[Value]) -> String {
    let word = |one: &Value| match one {
        Value::Array(receipts) => {
            let digits = |receipt: &Value| receipt["transactionHash"].as_str().unwrap()[64..].to_owned();
            format!("c{}", receipts.iter().map(digits).collect::<Vec<_>>().join("+"))
        }
        Value::Object(event) => {
            let (what, of) = match event.get("transaction") {
                Some(transaction) => ("t", transaction),
                None => ("l", one),
            };
            let is_removed = event.get("removed") == Some(&json!(true));
            let removed = if is_removed { "-" } else { "" };
            let number = of["blockNumber"].as_str().unwrap().trim_start_matches("0x");
            format!("{removed}{what}{number}")
        }
        head => format!("h{head}"),
    };
    told.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// The chain goes back below a block whose receipts are awaited, and adopts the same blocks again: the head is not
/// delivered twice, but the receipts are still due.
#[tokio::test]
async fn receipts_are_told_where_the_chain_goes_back_and_comes_the_same_way_again() {
    let desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 l1 c1 h2 l2");
    desk.play("h3 r1 h2 l2 h3 l3 c2 c3 h4 l4 c4");
    let told = client.told(8).await;
    assert_eq!(words(&told), "h1 c0a+0b h2 c14+15 h3 c1e+1f h4 c28+29");
}

/// The same, with the receipts of block 2 delivered before the rewind.
#[tokio::test]
async fn nobody_is_told_the_receipts_of_one_block_twice() {
    let desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 l1 c1 h2 l2 c2 h3 l3");
    let mut late = desk.client(&Arc::default()).await;
    desk.subscribe(&late, of_transactions(&[]));
    desk.play("r1 h2 l2 c2 h3 l3 c3 h4 l4 c4");
    let told = client.told(8).await;
    assert_eq!(words(&told), "h1 c0a+0b h2 c14+15 h3 c1e+1f h4 c28+29");
    // A subscription made after a block's logs were delivered begins with the next block.
    assert_eq!(words(&late.told(1).await), "c28+29");
}

#[tokio::test]
async fn filters_that_select_the_same_receipts_are_told_the_same() {
    let desk = Desk::new(0);
    let (mut one, mut other) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
    desk.subscribe(&one, of_transactions(&[hash(10), hash(99)]));
    desk.subscribe(&other, of_transactions(&[hash(10), hash(98)]));
    desk.subscribe(&other, of_transactions(&[hash(11), hash(20), hash(21)]));
    desk.play("h1 l1 c1 h2 l2 c2");
    assert_eq!(words(&one.told(1).await), "c0a");
    let mut told = other.told(3).await;
    // There is no order between subscriptions.
    told[..2].sort_by_key(Value::to_string);
    assert_eq!(words(&told), "c0a c0b c14+15");
}

#[tokio::test]
async fn who_was_refused_for_a_rate_limit_is_told_so() {
    let desk = Desk::new(0);
    let client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 l1");
    assert_eq!(desk.registry.refuses(&of_transactions(&[])), None);
    desk.play("c1!");
    let (_, why) = desk.registry.refuses(&of_transactions(&[])).unwrap();
    assert!(why.contains("rate limit"), "{why}");
    assert_eq!(desk.registry.refuses(&heads()), None);
}

/// An answer in a batch with a slow call takes long: events that arrive before it must not block the rest of the queue.
#[tokio::test]
async fn what_is_passed_before_its_answer_holds_nothing_up_and_is_told_behind_the_answer() {
    let desk = Desk::new(4);
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
    // Nothing is kept for a subscription that ended.
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
    let first = desk.registry.subscribe(kind("a"), &client.writer).unwrap();
    let held = wanted();
    assert_eq!(held.iter().collect::<Vec<_>>(), [&passed("a")]);
    let same = desk.registry.subscribe(kind("a"), &client.writer).unwrap();
    let other = desk.registry.subscribe(heads(), &client.writer).unwrap();
    desk.registry.unsubscribe(&first);
    desk.registry.unsubscribe(&other);
    let pending = desk.registry.subscribe(Topic::Syncing, &client.writer).unwrap();
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
    let ask = |client: &Client, name: &str| desk.registry.subscribe(kind(name), &client.writer);
    let first = ask(&client, "a").unwrap();
    ask(&again, "b").unwrap();
    // A second connection of the account does not raise its share, and an equal subscription does not count.
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
    // Every account may have one, however low the limit.
    let small = Desk::new(2);
    let (one, other) = (small.client(&one).await, small.client(&other).await);
    small.ask(&one, kind("a"));
    assert!(small.registry.subscribe(kind("b"), &one.writer).is_err());
    small.ask(&other, kind("b"));
}

fn all_logs() -> Topic {
    let filter = LogFilter::parse(&json!({})).unwrap();
    Topic::Chain(Stream::Logs(filter), Start::Live)
}

fn mined() -> Topic {
    let text = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["alchemy_minedTransactions"]}"#;
    let Ok(Message::Single(Item::Call(request))) = Message::parse(text.as_bytes(), 1) else {
        panic!("{text}")
    };
    Topic::parse("eth", &request).unwrap()
}

/// Every connection gets head N, the contents of N that it subscribes to, then head N + 1; and waits for nothing
/// else.
#[tokio::test]
async fn a_connection_waits_for_contents_that_it_subscribes_to_and_for_no_others() {
    let story = "h1 l1 t1 c1 h2 h3 c2 t3 l2 h4 t2 l3 c3 l4 t4 c4";
    for (topics, expect) in [
        (vec![heads()], "h1 h2 h3 h4"),
        (vec![heads(), all_logs()], "h1 l1 h2 l2 h3 l3 h4 l4"),
        (vec![all_logs()], "l1 l2 l3 l4"),
        (
            vec![all_logs(), of_transactions(&[])],
            "l1 c0a+0b l2 c14+15 l3 c1e+1f l4 c28+29",
        ),
        (
            vec![heads(), all_logs(), mined(), of_transactions(&[])],
            "h1 l1 t1 c0a+0b h2 l2 t2 c14+15 h3 l3 t3 c1e+1f h4 l4 t4 c28+29",
        ),
        (vec![heads(), mined()], "h1 t1 h2 t2 h3 t3 h4 t4"),
    ] {
        let desk = Desk::new(0);
        // Another client that subscribes to everything.
        let other = desk.client(&Arc::default()).await;
        for topic in [heads(), all_logs(), mined(), of_transactions(&[])] {
            desk.subscribe(&other, topic);
        }
        let mut client = desk.client(&Arc::default()).await;
        for topic in topics {
            desk.subscribe(&client, topic);
        }
        desk.play(story);
        let told = client.told(expect.split(' ').count()).await;
        assert_eq!(words(&told), expect);
    }
}

#[tokio::test]
async fn heads_alone_come_at_once_while_logs_of_many_blocks_are_awaited() {
    let desk = Desk::new(0);
    let (mut alone, mut both) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
    desk.subscribe(&alone, heads());
    desk.subscribe(&both, heads());
    desk.subscribe(&both, all_logs());
    desk.play("h1 h2 h3");
    assert_eq!(words(&alone.told(3).await), "h1 h2 h3");
    assert_eq!(words(&both.told(1).await), "h1");
    assert_eq!(desk.needed(), "l1 l2 l3");
    desk.play("l3 l2");
    assert_eq!(desk.needed(), "l1");
    desk.play("l1");
    assert_eq!(words(&both.told(5).await), "l1 h2 l2 h3 l3");
    assert_eq!(desk.registry.late().1, 0, "nothing waits any more");
}

#[tokio::test]
async fn what_awaits_a_subscription_that_ended_is_delivered() {
    let desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    let receipts = desk.subscribe(&client, of_transactions(&[]));
    desk.play("h1 h2 h3");
    assert_eq!(words(&client.told(1).await), "h1");
    desk.registry.unsubscribe(&receipts);
    assert_eq!(words(&client.told(2).await), "h2 h3");
    assert_eq!(desk.needed(), "");
}

#[tokio::test]
async fn contents_that_no_node_gives_close_those_who_subscribe_to_them_alone() {
    let desk = Desk::new(0);
    let (mut alone, both) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
    desk.subscribe(&alone, heads());
    desk.subscribe(&both, heads());
    desk.subscribe(&both, all_logs());
    desk.play("h1 h2 l1!");
    assert_ne!(both.writer.phase(), crate::delivery::Phase::Open);
    assert!(desk.registry.refuses(&all_logs()).is_some());
    assert_eq!(desk.registry.refuses(&heads()), None);
    desk.play("h3");
    assert_eq!(desk.needed(), "");
    assert_eq!(words(&alone.told(3).await), "h1 h2 h3");
}

/// A reorg takes back logs of a dropped block that were delivered, and drops those that were not.
#[tokio::test]
async fn a_reorg_takes_back_what_was_delivered_and_no_more() {
    let desk = Desk::new(0);
    let mut client = desk.client(&Arc::default()).await;
    desk.subscribe(&client, heads());
    desk.subscribe(&client, all_logs());
    desk.play("h1 l1 h2 l2 h3 r1");
    // Another block 2 replaces blocks 2 and 3.
    let mut other = header(2);
    other.block.hash = hash(22);
    desk.registry.fan_out(std::iter::once(ChainEvent::Head(other.clone())));
    assert_eq!(desk.needed(), "l2");
    desk.registry.fetched(FetchedContent {
        block: other.block.hash,
        kind: ContentKind::Logs,
        result: Ok(Content::Logs(Arc::new(logs(&other)))),
    });
    desk.play("l3");
    assert_eq!(words(&client.told(8).await), "h1 l1 h2 l2 h3 -l2 h2 l2");
}

/// A connection on which events of a dropped block waited gets neither them nor their removals.
#[tokio::test]
async fn a_dropped_block_leaves_no_trace_where_it_waited() {
    let desk = Desk::new(0);
    let (mut client, mut other) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
    for topic in [heads(), all_logs(), of_transactions(&[])] {
        desk.subscribe(&client, topic);
    }
    desk.subscribe(&other, all_logs());
    desk.play("h1 l1 h2 l2 h3 l3 r1");
    let mut branch = header(2);
    branch.block.hash = hash(22);
    desk.registry.fan_out(std::iter::once(ChainEvent::Head(branch)));
    desk.play("c1");
    assert_eq!(words(&client.told(4).await), "h1 l1 c0a+0b h2");
    assert_eq!(words(&other.told(5).await), "l1 l2 l3 -l2 -l3");
}
