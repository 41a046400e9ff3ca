//! The fan-out as clients see it, event by event, over sockets.

mod contents;
mod levels;
mod passthrough;
mod pending;
mod receipts;
mod reorgs;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::flush::{DirtyClients, flush};
use super::{LogFilter, Passthrough, ReceiptFilter, Registry, Start, Stream, Subscription, Topic};
use crate::backplane::{BestEffortEvent, ChainEvent, Wanted};
use crate::chain::{
    Absent, BlockLogs, BlockReceipts, BlockRef, BlockTransactions, Content, ContentKind, FetchedContent, Header,
    History, PublishedWriter,
};
use crate::clock::{Clock, Moment};
use crate::delivery::{ClientWriter, Compression, Egress, WriterLimits, WriterShared};
use crate::telemetry::Metrics;

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
            max_age: Duration::from_secs(60),
            holdoff: Duration::ZERO,
        };
        let (sender, wanted) = watch::channel(Wanted::default());
        let shared = WriterShared::new(limits, Clock::start(), &metrics);
        let metrics = Arc::new(metrics);
        let writer = PublishedWriter::new(History::new(8), metrics.clone());
        let registry = Registry::new(writer, max_passthrough, false, sender, Clock::start(), metrics.clone());
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
        subscription.recipient.release(Moment::START);
        subscription
    }

    /// Plays chain events: `h` a head, `r` a rewind to a block; and fetched contents of a block: `l` logs, `t`
    /// transactions, `c` receipts, with `!` behind them if no node gives them.
    fn play(&self, story: &str) {
        for word in story.split_whitespace() {
            let (what, number) = word.split_at(1);
            let header = header(number.trim_end_matches(['!', '?']).parse().unwrap());
            let content = match what {
                "h" => {
                    assert!(
                        !self.registry.fan_out(std::iter::once(ChainEvent::Head(header))),
                        "one slice"
                    );
                    continue;
                }
                "r" => {
                    assert!(
                        !self.registry.fan_out(std::iter::once(ChainEvent::Rewind(header.block))),
                        "one slice"
                    );
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
                result: match number.chars().last() {
                    Some('!') => Err(Absent::Throttled),
                    Some('?') => Err(Absent::UnknownBlock),
                    _ => Ok(content),
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
        let event = BestEffortEvent::Passthrough {
            of: of.clone(),
            method: Bytes::from_static(b"eth_subscription"),
            json: Bytes::from(payload),
            seen: Instant::now(),
        };
        let mut due = DirtyClients::default();
        let early = self
            .registry
            .fan_out_best_effort(&mut VecDeque::from([event]), &mut due);
        flush(due);
        early
    }
}

struct Client {
    writer: Arc<ClientWriter>,
    socket: TcpStream,
}

impl Client {
    /// Reads the results of the next `count` notifications.
    async fn received(&mut self, count: usize) -> Vec<Value> {
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

fn all_logs() -> Topic {
    let filter = LogFilter::parse(&json!({})).unwrap();
    Topic::Chain(Stream::Logs(filter.into()), Start::Live)
}

fn of_transactions(hashes: &[B256]) -> Topic {
    Topic::Receipts(ReceiptFilter::at_most(hashes.to_vec()).unwrap())
}

/// Abbreviates results: a head by its number, a log or transaction by its block's, receipts by their transactions'
/// last digits.
fn words(received: &[Value]) -> String {
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
    received.iter().map(word).collect::<Vec<_>>().join(" ")
}
