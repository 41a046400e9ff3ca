//! A stock jsonrpsee server with headwater as its module (`App::module`), as `examples/jsonrpsee_server.rs` has it: chain,
//! nodes and matching are headwater's, envelopes, framing and sockets jsonrpsee's.
//!
//! The limits are raised so that none of them affects the measurement.

use std::{
    future,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result};
use headwater::{
    app::App,
    config::{Config, typed},
};
use jsonrpsee::{
    core::traits::IdProvider,
    server::{Server, ServerConfig},
    types::SubscriptionId,
};

use crate::notification;

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(long)]
    pub upstream: SocketAddr,
}

pub fn serve(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: &Args) -> Result<()> {
    // headwater's own ports take any free ones, which nobody uses.
    let settings = typed::Config {
        listen: "127.0.0.1:0".to_owned(),
        admin: "127.0.0.1:0".to_owned(),
        upstream: vec![format!("ws://{}", args.upstream).into()],
        ..typed::Config::default()
    };
    let app = App::bind(Config::check(&settings)?).await?;
    let config = ServerConfig::builder()
        .max_connections(u32::MAX >> 8)
        .set_message_buffer_capacity(4096)
        .set_id_provider(HexIds::default())
        .build();
    let server = Server::builder()
        .set_config(config)
        .build(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await?;
    let address = server.local_addr().context("the address just bound")?;
    let _serving = server.start(app.module());
    println!("listening {address}");
    Ok(app.run(future::pending()).await?)
}

/// Assigns ids of the same length as the other servers, so that all servers send the same number of bytes.
#[derive(Debug, Default)]
struct HexIds(AtomicU64);

impl IdProvider for HexIds {
    fn next_id(&self) -> SubscriptionId<'static> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        notification::subscription_id(number).into()
    }
}
