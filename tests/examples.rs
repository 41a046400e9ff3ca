//! The examples, run as programs: before the devnet, with jsonrpsee's own client.
//!
//! `cargo test` builds the examples before it runs this; after `cargo test --test examples` alone they may be missing
//! (`cargo build --examples`). ethers and viem are tested in tests/interop (`embed`).

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use headwater::devnet::{Config, Devnet};
use jsonrpsee::core::client::{ClientT, Error, Subscription, SubscriptionClientT};
use jsonrpsee::rpc_params;
use jsonrpsee::ws_client::{WsClient, WsClientBuilder};
use serde_json::Value;

/// Limit of each wait, longer than any awaited event takes.
const PATIENCE: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// A running example; ends with the test.
struct Example {
    child: Child,
    url: String,
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Example {
    async fn start(name: &str, node: &Devnet) -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_headwater"))
            .with_file_name("examples")
            .join(name);
        assert!(binary.exists(), "no {}: run cargo build --examples", binary.display());
        let mut child = Command::new(binary)
            .args([&node.ws_url(), "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reading = tokio::task::spawn_blocking(move || lines.map_while(Result::ok).next());
        let line = within("its address", reading).await.unwrap().unwrap();
        let url = line.strip_prefix("listening on ").unwrap().to_owned();
        Self { child, url }
    }

    async fn client(&self) -> WsClient {
        let building = WsClientBuilder::default().build(&self.url);
        within("connecting", building).await.unwrap()
    }
}

/// Mines blocks until the subscription has delivered one, and returns it: the program may still be connecting.
async fn first(node: &Devnet, events: &mut Subscription<Value>) -> Value {
    let mining = async {
        loop {
            node.handle().mine();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("an event", async {
        tokio::select! {
            event = events.next() => event.unwrap().unwrap(),
            () = mining => unreachable!("it mines for ever"),
        }
    })
    .await
}

#[tokio::test]
async fn embed_serves_a_method_and_a_subscription_of_its_own() {
    let node = Devnet::start(Config::manual()).await.unwrap();
    let example = Example::start("embed", &node).await;
    let client = example.client().await;
    let mut rises: Subscription<Value> = client
        .subscribe("fees_subscribeRises", rpc_params![0], "fees_unsubscribeRises")
        .await
        .unwrap();
    let rise = first(&node, &mut rises).await;
    let average: u64 = client.request("fees_average", rpc_params![64]).await.unwrap();
    assert!(rise["wei"].as_u64().unwrap() > 0 && average > 0, "{rise} {average}");
    let chain: String = client.request("eth_chainId", rpc_params![]).await.unwrap();
    assert_eq!(chain, "0x539");
    rises.unsubscribe().await.unwrap();
}

#[tokio::test]
async fn jsonrpsee_server_serves_subscriptions_and_limits_each_client() {
    let node = Devnet::start(Config::manual()).await.unwrap();
    let example = Example::start("jsonrpsee_server", &node).await;
    let client = example.client().await;
    let mut heads: Subscription<Value> = client
        .subscribe("eth_subscribe", rpc_params!["newHeads"], "eth_unsubscribe")
        .await
        .unwrap();
    let head = first(&node, &mut heads).await;
    let hash = head["hash"].clone();
    let block: Value = client
        .request("eth_getBlockByHash", rpc_params![&hash, false])
        .await
        .unwrap();
    assert_eq!(block["number"], head["number"]);
    // 200 at once, and 100 a second.
    let mut refused = 0;
    for _ in 0..1000 {
        match client.request::<String, _>("eth_chainId", rpc_params![]).await {
            Ok(chain) => assert_eq!(chain, "0x539"),
            Err(Error::Call(error)) => {
                assert_eq!(error.code(), -32005);
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0);
    let other = example.client().await;
    let chain: String = other.request("eth_chainId", rpc_params![]).await.unwrap();
    assert_eq!(chain, "0x539", "another client has a limit of its own");
}
