//! headwater inside another program, with a namespace of that program: base fees of the newest blocks.
//!
//! ```text
//! cargo run --release --example embed -- ws://127.0.0.1:8546 127.0.0.1:8545
//! ```
//!
//! Without an upstream it serves an embedded devnet. Clients call `fees_average`, subscribe with `fees_subscribeRises`,
//! and everything else is headwater's. The program itself reads the chain from headwater, as a client within the
//! process.

#![allow(clippy::print_stdout)] // The address, for the caller.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use headwater::app::App;
use headwater::config::{Config, typed};
use jsonrpsee::core::{SubscriptionResult, async_trait, to_json_raw_value};
use jsonrpsee::proc_macros::rpc;
use jsonrpsee::{Methods, PendingSubscriptionSink, rpc_params};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

/// Blocks whose base fees are kept.
const BLOCKS: usize = 64;

/// Base fee of a block, in wei.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct BaseFee {
    block: u64,
    wei: u64,
}

#[rpc(server, namespace = "fees")]
trait Fees {
    /// Returns the average base fee of the newest blocks, at most 64, in wei; 0 before the first block.
    #[method(name = "average")]
    fn average(&self, blocks: usize) -> u64;

    /// Notifies of each block whose base fee is at least `wei`.
    #[subscription(name = "subscribeRises" => "rises", unsubscribe = "unsubscribeRises", item = BaseFee)]
    async fn rises(&self, wei: u64) -> SubscriptionResult;
}

/// Base fees of the newest blocks.
#[derive(Clone)]
struct Newest {
    /// The newest last.
    kept: watch::Sender<VecDeque<BaseFee>>,
    live: broadcast::Sender<BaseFee>,
}

impl Newest {
    fn new() -> Self {
        Self {
            kept: watch::Sender::new(VecDeque::new()),
            live: broadcast::Sender::new(BLOCKS),
        }
    }

    /// Adds the fee of a block. A reorg replaces the fees of the blocks that it drops.
    fn add(&self, fee: BaseFee) {
        self.kept.send_modify(|kept| {
            kept.retain(|own| own.block < fee.block);
            kept.push_back(fee);
            kept.drain(..kept.len().saturating_sub(BLOCKS));
        });
        // An error means that nobody has subscribed.
        let _ = self.live.send(fee);
    }
}

#[async_trait]
impl FeesServer for Newest {
    fn average(&self, blocks: usize) -> u64 {
        let kept = self.kept.borrow();
        let fees = kept.iter().rev().take(blocks).map(|fee| fee.wei);
        let count = fees.len().max(1) as u64;
        fees.sum::<u64>() / count
    }

    async fn rises(&self, pending: PendingSubscriptionSink, wei: u64) -> SubscriptionResult {
        let mut live = self.live.subscribe();
        let sink = pending.accept().await?;
        loop {
            // An error that the client sees, rather than blocks that it misses.
            let fee = tokio::select! {
                () = sink.closed() => return Ok(()),
                fee = live.recv() => fee?,
            };
            if fee.wei >= wei {
                sink.send(to_json_raw_value(&fee)?).await?;
            }
        }
    }
}

/// Members of a header that are read here.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    number: String,
    base_fee_per_gas: Option<String>,
}

impl Header {
    fn fee(&self) -> Option<BaseFee> {
        let number = |hex: &str| u64::from_str_radix(hex.strip_prefix("0x")?, 16).ok();
        Some(BaseFee {
            block: number(&self.number)?,
            wei: number(self.base_fee_per_gas.as_deref()?)?,
        })
    }
}

/// Reads the chain from headwater, and subscribes again when a subscription has ended.
async fn follow(headwater: impl Into<Methods>, newest: Newest) {
    let methods: Methods = headwater.into();
    loop {
        if let Err(why) = follow_once(&methods, &newest).await {
            eprintln!("headwater: {why}; subscribing again");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn follow_once(methods: &Methods, newest: &Newest) -> Result<()> {
    let mut heads = methods
        .subscribe("eth_subscribe", rpc_params!["newHeads"], BLOCKS)
        .await?;
    while let Some(head) = heads.next::<Header>().await {
        let (header, _) = head?;
        if let Some(fee) = header.fee() {
            newest.add(fee);
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut settings = typed::Config {
        admin: "127.0.0.1:0".to_owned(),
        ..typed::Config::default()
    };
    settings.upstream.extend(arguments.next().map(typed::Upstream::Address));
    if let Some(address) = arguments.next() {
        settings.listen = address;
    }

    let newest = Newest::new();
    let app = App::bind(Config::check(&settings)?)
        .await?
        .serve(newest.clone().into_rpc())?;
    println!("listening on ws://{}", app.address()?);
    let following = tokio::spawn(follow(app.module(), newest));

    app.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
    following.abort();
    Ok(())
}
