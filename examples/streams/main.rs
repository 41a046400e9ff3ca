//! The programs in Rust of the pages on streams, each in a file of its own.
//!
//! ```sh
//! cargo run --example streams finality ws://127.0.0.1:9546 0xCONTRACT
//! ```
//!
//! The programs print what they take, and keep it in memory, where a program of yours has a table.

#![expect(clippy::print_stdout, reason = "the events are this program's output")]
#![expect(clippy::print_stderr, reason = "and why it connects again")]

mod block_logs;
mod finality;
mod resume;
mod server_sent_events;
mod sessions;
mod webhooks;

use std::cell::RefCell;
use std::error::Error;
use std::time::Duration;

use alloy_primitives::{B256, U64};
use alloy_rpc_types_eth::Log;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::sleep;

const USAGE: &str = "usage: streams finality|block-logs|sessions ws://HOST:PORT 0xCONTRACT, \
    streams resume ws://HOST:PORT 0xCONTRACT 0xBLOCK, \
    streams server-sent-events http://HOST:PORT 0xCONTRACT, or streams webhooks PORT SECRET";

type Outcome = Result<(), Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome {
    drop(rustls::crypto::ring::default_provider().install_default());
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["finality", url, address] => final_logs(url, address).await,
        ["block-logs", url, address] => whole_blocks(url, address).await,
        ["resume", url, address, block] => resumed_logs(url, address, block.parse::<U64>()?.to()).await,
        ["sessions", url, address] => sessions::follow(url, address.parse()?, |log| show(&log)).await,
        ["server-sent-events", url, address] => {
            let take = |kind: &str, data: &str, _: &str| {
                if kind == "logs" {
                    println!("{data}");
                }
            };
            let query = format!("{url}/events?kind=logs&address={address}");
            server_sent_events::follow(&query, None, take).await
        }
        ["webhooks", port, secret] => {
            let take = |kind: &str, event: &RawValue| {
                let event: Value = serde_json::from_str(event.get()).unwrap_or_default();
                let text = |member: &str| event[member].as_str().unwrap_or("-").to_owned();
                println!("{kind} {} {}", text("blockHash"), text("logIndex"));
            };
            webhooks::receive(port.parse()?, secret.to_owned(), take).await
        }
        _ => Err(USAGE.into()),
    }
}

/// Waits before the next attempt.
async fn again(outcome: Outcome) {
    if let Err(why) = outcome {
        eprintln!("{why}; connecting again");
    }
    sleep(Duration::from_millis(200)).await;
}

/// Returns a log's place: its block and its index there.
fn place(log: &Log) -> (B256, u64) {
    (log.block_hash.unwrap_or_default(), log.log_index.unwrap_or_default())
}

fn show(log: &Log) {
    let (block, index) = place(log);
    println!("{} {block} {index}", if log.removed { "undo" } else { "add" });
}

async fn final_logs(url: &str, address: &str) -> Outcome {
    let (address, last) = (address.parse()?, RefCell::new(None));
    loop {
        let from = last.borrow().clone();
        let save = |log: Log| {
            let (block, index) = place(&log);
            println!("{block} {index}");
            *last.borrow_mut() = Some(log);
        };
        again(finality::follow(url, address, from, save).await).await;
    }
}

async fn whole_blocks(url: &str, address: &str) -> Outcome {
    let (address, chain) = (address.parse()?, RefCell::new(Vec::new()));
    loop {
        let last = chain.borrow().last().copied();
        let take = |message: block_logs::BlockLogs| {
            let hash = message.block.hash;
            if message.removed {
                chain.borrow_mut().pop();
                println!("undo {hash}");
            } else {
                chain.borrow_mut().push(hash);
                println!("add {hash} {}", message.logs.len());
            }
        };
        again(block_logs::follow(url, address, last, take).await).await;
    }
}

async fn resumed_logs(url: &str, address: &str, from_block: u64) -> Outcome {
    let address = address.parse()?;
    let save = |logs: &[Log]| {
        let places = logs.iter().map(place);
        let places: Vec<String> = places.map(|(block, index)| format!("{block}/{index}")).collect();
        println!("{}", places.join(" "));
    };
    let mut kept = resume::Kept::new(save);
    loop {
        match resume::follow(url, address, from_block, &mut kept).await {
            Err(resume::Ended::TooOld) => return Err("away for too long".into()),
            Err(resume::Ended::Lost(why)) => again(Err(why)).await,
            Ok(()) => again(Ok(())).await,
        }
    }
}
