//! A subscription server in the way jsonrpsee intends: a registered subscription, one broadcast channel, one task per
//! subscription that sends into its sink.
//!
//! The limits are raised so that none of them affects the measurement, and messages are built with
//! [`SubscriptionMessage::new`], the cheaper of jsonrpsee's two ways.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use jsonrpsee::{
    PendingSubscriptionSink, RpcModule, SubscriptionMessage,
    core::traits::IdProvider,
    server::{Server, ServerConfig},
    types::SubscriptionId,
};
use serde_json::value::RawValue;
use tokio::sync::broadcast;

use crate::{
    notification,
    roles::{ServeArgs, on_each_event},
};

/// The results of one event, shared by all subscriptions.
type Event = Arc<[Box<RawValue>]>;

pub fn serve(args: &ServeArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(args))
}

async fn run(args: &ServeArgs) -> Result<()> {
    let chain = args.chain();
    let raw = |result| RawValue::from_string(result).expect("the chain's results are JSON");
    let events: Vec<Event> = (0..args.events)
        .map(|event| chain.results(event).into_iter().map(raw).collect())
        .collect();

    let (sender, _) = broadcast::channel::<Event>(64);
    let mut module = RpcModule::new(sender.clone());
    module.register_subscription(
        "eth_subscribe",
        "eth_subscription",
        "eth_unsubscribe",
        |_, pending, feed, _| subscription(pending, feed.subscribe()),
    )?;

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
    let handle = server.start(module);
    println!("listening {address}");
    on_each_event(move |event| {
        let _nobody_subscribed = sender.send(events[event].clone());
    });
    handle.stopped().await;
    Ok(())
}

async fn subscription(pending: PendingSubscriptionSink, mut feed: broadcast::Receiver<Event>) {
    let Ok(sink) = pending.accept().await else {
        return;
    };
    loop {
        let event = tokio::select! {
            () = sink.closed() => return,
            event = feed.recv() => event,
        };
        // A lagging subscription ends here; the load generator then reports the lost messages.
        let Ok(event) = event else { return };
        for result in event.iter() {
            let message = SubscriptionMessage::new(sink.method_name(), sink.subscription_id(), result)
                .expect("a raw value always serialises");
            if sink.send(message).await.is_err() {
                return;
            }
        }
    }
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
