//! headwater as a module of another program's jsonrpsee server.

use headwater::app::App;
use headwater::config::typed;
use headwater::devnet::{Control, Devnet};
use jsonrpsee::server::{Server, ServerConfig, ServerHandle};
use serde_json::{Value, json};

use crate::harness::{Client, Proxy, adopted, eventually, node, reorged};

struct Rig {
    _node: Devnet,
    control: Control,
    proxy: Proxy,
    server: ServerHandle,
    url: String,
}

/// Ids as geth's.
#[derive(Debug)]
struct HexIds;

impl jsonrpsee::core::traits::IdProvider for HexIds {
    fn next_id(&self) -> jsonrpsee::types::SubscriptionId<'static> {
        format!("{:#034x}", rand::random::<u128>() | 1 << 127).into()
    }
}

impl Rig {
    async fn with(edit: impl FnOnce(&mut typed::Config)) -> Self {
        let node = node().await;
        let app: App = Proxy::bind(&[node.ws_url()], edit).await;
        let config = ServerConfig::builder().set_id_provider(HexIds).build();
        let server = Server::builder().set_config(config).build("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", server.local_addr().unwrap());
        let server = server.start(app.module());
        let control = node.handle();
        let proxy = Proxy::run(app);
        proxy.settled(&control).await;
        Self {
            _node: node,
            control,
            proxy,
            server,
            url,
        }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.url).await
    }
}

#[tokio::test]
async fn events_and_answers_are_those_of_the_client_port() {
    let rig = Rig::with(|_| {}).await;
    let (mut client, mut direct) = (rig.client().await, rig.proxy.watcher().await);
    client.subscribe(json!(["newHeads"])).await;
    client.subscribe(json!(["logs", {}])).await;
    let blocks = [rig.control.mine(), rig.control.mine()];
    direct.expect(adopted(&blocks)).await;
    // Each subscription has its own order; together they may interleave.
    let mut lines: Vec<String> = Vec::new();
    for _ in 0..adopted(&blocks).len() {
        lines.push(client.line().await);
    }
    let of = |lines: &[String], kind: &str| -> Vec<String> {
        lines.iter().filter(|line| line.starts_with(kind)).cloned().collect()
    };
    for kind in ["head", "log"] {
        assert_eq!(of(&lines, kind), of(&adopted(&blocks), kind));
    }
    for (method, params) in [
        ("eth_chainId", json!([])),
        ("eth_blockNumber", json!([])),
        ("eth_getBlockByNumber", json!(["latest", false])),
        ("eth_getLogs", json!([{"fromBlock": "0x1"}])),
        (
            "eth_getBalance",
            json!(["0x0000000000000000000000000000000000000001", "latest"]),
        ),
        ("eth_call", json!(["nonsense"])),
        ("web3_clientVersion", json!([])),
    ] {
        let answer = client.call(method, params.clone()).await;
        let mut expected = direct.call(method, params).await;
        if let Some(data) = expected.pointer("/error/data").filter(|data| data.is_null()) {
            assert_eq!(*data, Value::Null);
            expected["error"].as_object_mut().unwrap().remove("data");
        }
        assert_eq!(answer, expected, "{method}");
    }
    let denied = client.call("admin_peers", json!([])).await;
    assert_eq!(denied["error"]["code"], -32601);
}

#[tokio::test]
async fn reorgs_options_and_errors_are_those_of_the_client_port() {
    let rig = Rig::with(|_| {}).await;
    let first = rig.control.mine();
    let second = rig.control.mine();
    rig.proxy.settled(&rig.control).await;
    let mut client = rig.client().await;
    // Resumes after the first block.
    let after = json!(["logs", {}, {"after": {"blockHash": first.hash()}}]);
    client.subscribe(after).await;
    let logs = |lines: Vec<String>| {
        lines
            .into_iter()
            .filter(|line| !line.starts_with("head"))
            .collect::<Vec<_>>()
    };
    client.expect(logs(adopted(&[second]))).await;
    let reorg = rig.control.reorg(1, 2).unwrap();
    client.expect(logs(reorged(&reorg))).await;
    let refused = client.call("eth_subscribe", json!(["nonsense"])).await;
    let direct = rig
        .proxy
        .client()
        .await
        .call("eth_subscribe", json!(["nonsense"]))
        .await;
    assert_eq!(refused["error"], direct["error"]);
}

#[tokio::test]
async fn an_ended_subscription_leaves_nothing_behind() {
    let rig = Rig::with(|_| {}).await;
    let clients = "headwater_clients";
    let before = rig.proxy.metric(clients).await;
    let mut client = rig.client().await;
    let id = client.subscribe(json!(["newHeads"])).await;
    eventually("a session", async || rig.proxy.metric(clients).await == before + 1.0).await;
    assert_eq!(client.unsubscribe(&id).await["result"], true);
    eventually("none", async || rig.proxy.metric(clients).await == before).await;
    client.subscribe(json!(["newHeads"])).await;
    eventually("a session", async || rig.proxy.metric(clients).await == before + 1.0).await;
    drop(client);
    eventually("none", async || rig.proxy.metric(clients).await == before).await;
}

#[tokio::test]
async fn the_end_of_the_proxy_ends_subscriptions_with_a_reason() {
    let rig = Rig::with(|_| {}).await;
    let mut client = rig.client().await;
    client.subscribe(json!(["newHeads"])).await;
    rig.proxy.stop();
    let end: Value = serde_json::from_str(&client.next().await).unwrap();
    assert!(
        end["params"]["error"].as_str().is_some_and(|reason| !reason.is_empty()),
        "{end}"
    );
    let refused = client.call("eth_chainId", json!([])).await;
    assert_eq!(refused["error"]["code"], -32603, "{refused}");
    rig.server.stop().unwrap();
}

#[tokio::test]
async fn own_methods_describe_the_module_and_its_caller() {
    let rig = Rig::with(|_| {}).await;
    let mut client = rig.client().await;
    client.subscribe(json!(["newHeads"])).await;
    let listed = client.call("headwater_accountSubscriptions", json!([])).await;
    assert_eq!(listed["result"]["subscriptions"][0]["kind"], "newHeads", "{listed}");
    let document = client.call("rpc_discover", json!([])).await;
    let methods = document["result"]["methods"].as_array().unwrap();
    assert!(methods.iter().any(|method| method["name"] == "eth_subscribe"));
    // Each method that is offered is there.
    for method in methods {
        let name = method["name"].as_str().unwrap();
        if !name.ends_with("subscribe") && name != "debug_setHead" {
            let answer = client.call(name, json!([])).await;
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert!(message != "Method not found", "{name}: {answer}");
        }
    }
}
