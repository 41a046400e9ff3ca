//! A jsonrpsee WebSocket server that exposes `eth_subscribe`, `eth_unsubscribe` and the methods of a node, fanned out
//! from one upstream, with a rate limit for each client: for each of its connections.
//!
//! ```text
//! cargo run --release --example jsonrpsee_server -- ws://127.0.0.1:8546 127.0.0.1:8645
//! ```
//!
//! Without an upstream it serves an embedded devnet. The limit, 100 requests a second with bursts of 200, is a layer of
//! jsonrpsee around its methods; headwater's own ports take free ports of this machine.

#![allow(clippy::print_stdout)] // The address, for the caller.

use std::num::NonZeroU32;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use headwater::app::App;
use headwater::config::{Config, typed};
use jsonrpsee::MethodResponse;
use jsonrpsee::core::middleware::{Batch, BatchEntry, BatchEntryErr, Notification, RpcServiceBuilder, RpcServiceT};
use jsonrpsee::core::traits::IdProvider;
use jsonrpsee::server::{Server, ServerConfig};
use jsonrpsee::types::{ErrorObject, Request, SubscriptionId};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut settings = typed::Config {
        listen: "127.0.0.1:0".to_owned(),
        admin: "127.0.0.1:0".to_owned(),
        ..typed::Config::default()
    };
    settings.upstream.extend(arguments.next().map(typed::Upstream::Address));
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8645".to_owned());

    let app = App::bind(Config::check(&settings)?).await?;
    let methods = app.module();

    let each_connection = RpcServiceBuilder::new().layer_fn(|service| RateLimit {
        service,
        limiter: Arc::new(RateLimiter::direct(quota())),
    });
    let config = ServerConfig::builder().ws_only().set_id_provider(HexIds).build();
    let server = Server::builder()
        .set_config(config)
        .set_rpc_middleware(each_connection)
        .build(&address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    println!("listening on ws://{}", server.local_addr()?);
    let serving = server.start(methods);

    app.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
    let _ = serving.stop();
    Ok(())
}

fn quota() -> Quota {
    const PER_SECOND: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
    const BURST: NonZeroU32 = NonZeroU32::new(200).expect("not zero");
    Quota::per_second(PER_SECOND).allow_burst(BURST)
}

/// Ids as geth's, which some libraries parse as numbers.
#[derive(Debug)]
struct HexIds;

impl IdProvider for HexIds {
    fn next_id(&self) -> SubscriptionId<'static> {
        format!("{:#034x}", rand::random::<u128>() | 1 << 127).into()
    }
}

/// Rate limit of one connection.
#[derive(Clone)]
struct RateLimit<S> {
    service: S,
    limiter: Arc<DefaultDirectRateLimiter>,
}

impl<S> RateLimit<S> {
    fn check(&self) -> Result<(), ErrorObject<'static>> {
        let exceeded = |_| ErrorObject::owned(-32005, "limit exceeded: too many requests", None::<()>);
        self.limiter.check().map_err(exceeded)
    }
}

impl<S> RpcServiceT for RateLimit<S>
where
    S: RpcServiceT<MethodResponse = MethodResponse> + Clone + Send + Sync + 'static,
{
    type MethodResponse = S::MethodResponse;
    type NotificationResponse = S::NotificationResponse;
    type BatchResponse = S::BatchResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        let (limited, service) = (self.check(), self.service.clone());
        async move {
            match limited {
                Ok(()) => service.call(request).await,
                Err(exceeded) => MethodResponse::error(request.id, exceeded),
            }
        }
    }

    // Each call in a batch costs as much as a single one. Notifications are not carried out by jsonrpsee.
    fn batch<'a>(&self, mut batch: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        for entry in batch.iter_mut() {
            if let (Ok(BatchEntry::Call(request)), Err(exceeded)) = (&*entry, self.check()) {
                *entry = Err(BatchEntryErr::new(request.id.clone(), exceeded));
            }
        }
        self.service.batch(batch)
    }

    fn notification<'a>(
        &self,
        notification: Notification<'a>,
    ) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        self.service.notification(notification)
    }
}
