//! Quotas that hold for all headwaters of a tree together.

use std::path::Path;
use std::time::{Duration, Instant};

use headwater::config::typed;
use headwater::devnet::Devnet;
use headwater::door::ApiKey;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Client, Proxy, adopted, eventually, node};
use crate::keys::allow;

/// Address of the client whose quota is shared.
const CLIENT: &str = "127.0.0.7";

/// Address of a client whose quotas nobody else uses.
const BYSTANDER: &str = "127.0.0.9";

/// Two roots with a node, and two edges behind both.
struct Fleet {
    node: Devnet,
    roots: Vec<Proxy>,
    edges: Vec<Proxy>,
    _folder: tempfile::TempDir,
}

fn shared(config: &mut typed::Config, secret: &Path) {
    config.fleet.secret_file = secret.to_str().unwrap().to_owned();
    config.fleet.exchange = Duration::from_millis(50);
}

impl Fleet {
    /// Starts all of them with these limits, and waits until each counts what the others report.
    async fn start(edit: impl Fn(&mut typed::Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
        let (node, key) = (node().await, ApiKey::random());
        let (mut roots, mut edges, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let root = Proxy::start(&[node.ws_url()], |config| {
                allow(config, "edges", &key, "edge = true");
                edit(config);
                shared(config, &secret);
            })
            .await;
            root.connected().await;
            addresses.push(format!("ws://{}/{}", root.address, key.reveal()));
            roots.push(root);
        }
        // The node itself is the last resort: it answers when no root does.
        addresses.push(node.ws_url());
        for _ in 0..2 {
            let edge = Proxy::start(&addresses, |config| {
                edit(config);
                shared(config, &secret);
            })
            .await;
            edge.connected().await;
            edges.push(edge);
        }
        let fleet = Self {
            node,
            roots,
            edges,
            _folder: folder,
        };
        for (proxy, others) in fleet
            .roots
            .iter()
            .map(|root| (root, 2.0))
            .chain(fleet.edges.iter().map(|edge| (edge, 3.0)))
        {
            eventually("all are heard", async || {
                proxy.metric("headwater_fleet_members").await == others
            })
            .await;
        }
        fleet
    }
}

/// Asks until a request is refused for the quota; returns the number of those that were not.
async fn exhaust(client: &mut Client) -> u64 {
    for asked in 0..100_000 {
        if is_limited(&client.call("eth_chainId", json!([])).await) {
            return asked;
        }
    }
    panic!("no quota");
}

fn is_limited(answer: &Value) -> bool {
    answer["error"]["code"] == -32005
}

/// Use of a client at one edge, or at a root, is missing at the others, once however many roots say so. Other clients
/// do not notice, and without a root each edge goes on with its own quotas.
#[tokio::test]
async fn what_a_client_used_at_one_edge_is_missing_at_the_others() {
    let mut fleet = Fleet::start(|config| {
        (config.limits.requests_per_second, config.limits.request_burst) = (1, 20);
        config.limits.max_batch = 20;
    })
    .await;
    let [one, other] = [&fleet.edges[0], &fleet.edges[1]];
    let mut bystander = Client::connect_from(BYSTANDER, other.address).await;
    bystander.subscribe(json!(["newHeads"])).await;
    let begin = Instant::now();
    let used = exhaust(&mut Client::connect_from(CLIENT, one.address).await).await;
    assert!(used >= 20, "{used}");
    for others in [other, &fleet.roots[0], &fleet.roots[1]] {
        eventually("it is charged", async || {
            others.metric("headwater_fleet_foreign_units_total").await >= used as f64
        })
        .await;
    }
    assert!(
        other.metric("headwater_fleet_foreign_units_total").await <= (used + 1) as f64 + begin.elapsed().as_secs_f64(),
        "once, although both roots say it; the bystander used one"
    );
    let more = exhaust(&mut Client::connect_from(CLIENT, other.address).await).await;
    let refilled = begin.elapsed().as_secs_f64();
    assert!(more as f64 <= refilled + 1.0, "{more} after {refilled} s");
    for root in &fleet.roots {
        let more = exhaust(&mut Client::connect_from(CLIENT, root.address).await).await;
        let refilled = begin.elapsed().as_secs_f64();
        assert!(more as f64 <= refilled + 1.0, "{more} at a root after {refilled} s");
    }
    // The bystander has its whole quota, less the subscription, and its heads.
    for asked in 0..19 {
        let answer = bystander.call("eth_chainId", json!([])).await;
        assert!(!is_limited(&answer), "{asked}: {answer}");
    }
    let heads = |blocks: &[_]| -> Vec<String> {
        let all = adopted(blocks).into_iter();
        all.filter(|line| line.starts_with("head")).collect()
    };
    let blocks = fleet.node.handle().mine_many(2);
    bystander.expect(heads(&blocks)).await;
    let unknown = fleet.node.handle().stats().unknown_methods;
    assert!(
        unknown.contains("headwater_accountLimits") && !unknown.contains("fleet_report"),
        "a node is probed and gets no reports: {unknown:?}"
    );
    // Both roots end: nobody is heard, and quotas are each edge's own.
    for root in fleet.roots.drain(..) {
        root.stop();
        drop(root.ended().await);
    }
    for edge in &fleet.edges {
        eventually("alone", async || edge.metric("headwater_fleet_alone").await == 1.0).await;
        let used = exhaust(&mut Client::connect_from("127.0.0.8", edge.address).await).await;
        assert!(used >= 20, "{used}");
    }
    let blocks = fleet.node.handle().mine_many(2);
    bystander.expect(heads(&blocks)).await;
}

/// Limits of connections and subscriptions hold for both edges, and places are free again when they are given back or
/// their edge ends.
#[tokio::test]
async fn places_at_one_edge_count_at_the_other() {
    let mut fleet = Fleet::start(|config| {
        config.limits.max_connections_per_client = 3;
        config.limits.max_subscriptions_per_client = 2;
    })
    .await;
    let address = fleet.edges[1].address;
    let mut bystander = Client::connect_from(BYSTANDER, address).await;
    bystander.subscribe(json!(["newHeads"])).await;
    let mut first = Client::connect_from(CLIENT, fleet.edges[0].address).await;
    let second = Client::connect_from(CLIENT, fleet.edges[0].address).await;
    let mut third = Client::connect_from(CLIENT, address).await;
    let admitted = async || {
        let local = TcpSocket::new_v4().unwrap();
        local.bind(format!("{CLIENT}:0").parse().unwrap()).unwrap();
        let socket: TcpStream = local.connect(address).await.unwrap();
        Client::try_over(socket).await.is_ok()
    };
    eventually("a fourth connection is refused", async || !admitted().await).await;
    drop(second);
    eventually("a third is not", admitted).await;
    for _ in 0..2 {
        first.subscribe(json!(["newHeads"])).await;
    }
    eventually("a third subscription is refused", async || {
        let answer = third.call("eth_subscribe", json!(["newHeads"])).await;
        if let Some(id) = answer["result"].as_str() {
            third.call("eth_unsubscribe", json!([id])).await;
        }
        is_limited(&answer)
    })
    .await;
    // The edge ends, and its places with it.
    let edge = fleet.edges.remove(0);
    edge.stop();
    drop(edge.ended().await);
    eventually("the places of the edge are free", async || {
        third.call("eth_subscribe", json!(["newHeads"])).await["result"].is_string()
    })
    .await;
    let block = fleet.node.handle().mine();
    let head = adopted(&[block]).into_iter().find(|line| line.starts_with("head"));
    bystander.expect(head.into_iter().collect()).await;
}

/// Reports are taken from edges alone, and only from those that share quotas; a report that is none changes nothing.
#[tokio::test]
async fn only_an_edge_reports() {
    const NONE: i64 = -32601;
    const EMPTY: &str = r#"{"member":"0123456789abcdef","seen":null,"accounts":[]}"#;
    let report = |text: &str| -> Value { serde_json::from_str(&format!("[{text}]")).unwrap() };
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    for shares in [true, false] {
        let (node, key) = (node().await, ApiKey::random());
        let root = Proxy::start(&[node.ws_url()], |config| {
            allow(config, "edges", &key, "edge = true");
            if shares {
                shared(config, &secret);
            }
        })
        .await;
        root.connected().await;
        let mut client = root.client().await;
        let mut edge = Client::connect(&format!("ws://{}/{}", root.address, key.reveal())).await;
        let refused = client.call("fleet_report", report(EMPTY)).await;
        assert_eq!(refused["error"]["code"], NONE, "{refused}");
        let answer = edge.call("fleet_report", report(EMPTY)).await;
        assert_eq!(answer["result"].is_object(), shares, "{answer}");
        if !shares {
            assert_eq!(answer["error"]["code"], NONE, "{answer}");
            continue;
        }
        assert_eq!(answer["result"]["members"].as_array().unwrap().len(), 1, "{answer}");
        let row = r#"["AAAAAAAAAAAAAAAAAAAAAA",1,1,1,1,1,1,1,1]"#;
        let rows = vec![row; 501].join(",");
        for wrong in [
            "".to_owned(),
            "1".to_owned(),
            "{}".to_owned(),
            EMPTY.replace("0123456789abcdef", "0123456789abcdeg"),
            EMPTY.replace("[]", r#"[["short",1,1,1,1,1,1,1,1]]"#),
            EMPTY.replace("[]", &format!("[{}]", row.replace(",1]", ",4294967296]"))),
            EMPTY.replace("[]", &format!("[{rows}]")),
        ] {
            let answer = edge.call("fleet_report", report(&wrong)).await;
            assert_eq!(answer["error"]["code"], -32602, "{wrong}: {answer}");
        }
        // A flood: some of it is refused, the rest answered, and others are served.
        let flood: Vec<Value> = (0..200)
            .map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "fleet_report", "params": report(EMPTY)}))
            .collect();
        let answers: Vec<Value> = serde_json::from_str(&edge.ask(json!(flood).to_string()).await).unwrap();
        assert!(answers.iter().any(is_limited));
        assert_eq!(client.call("eth_chainId", json!([])).await["result"], "0x539");
    }
}
