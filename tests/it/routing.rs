//! Choice of the node for a call, and retries at other nodes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use headwater::config::typed::{self, Described, Upstream};
use headwater::devnet::{Config, Control, Devnet};
use headwater::upstream::Share;
use serde_json::{Value, json};

use crate::harness::{Client, Proxy, adopted, eventually};

/// Nodes of one chain, all connected.
struct Nodes {
    _nodes: Vec<Devnet>,
    controls: Vec<Control>,
    proxy: Proxy,
}

fn request(method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()
}

/// Returns a call that was not made before, which goes to the least loaded node.
fn work(n: usize) -> String {
    let account = alloy_primitives::Address::left_padding_from(&n.to_be_bytes());
    request("eth_getBalance", &json!([account, "latest"]))
}

impl Nodes {
    async fn start(
        count: usize,
        describe: impl Fn(usize, &mut Described),
        edit: impl FnOnce(&mut typed::Config),
    ) -> Self {
        let mut nodes = Vec::new();
        for _ in 0..count {
            nodes.push(Devnet::start(Config::manual()).await.unwrap());
        }
        let controls: Vec<Control> = nodes.iter().map(Devnet::handle).collect();
        let upstreams: Vec<Upstream> = nodes
            .iter()
            .enumerate()
            .map(|(i, node)| {
                let mut own = Described {
                    address: node.ws_url(),
                    archive: false,
                    methods: None,
                    calls: Share::Share,
                };
                describe(i, &mut own);
                Upstream::Described(own)
            })
            .collect();
        for control in &controls[1..] {
            control.set_faults(|faults| faults.refuse_connections = true);
        }
        let proxy = Proxy::start(&[], |config| {
            config.upstream = upstreams;
            config.calls.head_wait_timeout = Duration::from_millis(300);
            edit(config);
        })
        .await;
        proxy.settled(&controls[0]).await;
        for control in &controls[1..] {
            control.set_faults(|faults| faults.refuse_connections = false);
        }
        let nodes = Self {
            _nodes: nodes,
            controls,
            proxy,
        };
        nodes.proxy.connected().await;
        nodes
    }

    async fn plain(count: usize) -> Self {
        Self::start(count, |_, _| {}, |_| {}).await
    }

    async fn status(&self) -> Vec<Value> {
        self.proxy.upstreams().await
    }

    async fn lose(&self, node: usize) {
        self.proxy.lose(&self.controls[node], node).await;
    }

    fn asked(&self, method: &str) -> Vec<u64> {
        let count = |control: &Control| control.stats().calls.get(method).copied().unwrap_or(0);
        self.controls.iter().map(count).collect()
    }

    fn fault(&self, node: usize, methods: &[&str], code: i64, message: &str) {
        self.controls[node].set_faults(|faults| {
            faults.failing_methods = methods.iter().map(|&name| name.to_owned()).collect();
            faults.failure = (code, message.into());
        });
    }

    fn mine(&self) -> Vec<Arc<headwater::devnet::Block>> {
        self.controls.iter().map(Control::mine).collect()
    }

    async fn rerouted(&self, reason: &str) -> f64 {
        let sample = format!("headwater_rerouted_calls_total{{reason=\"{reason}\"}}");
        self.proxy.metric(&sample).await
    }
}

#[tokio::test]
async fn calls_go_to_who_has_the_least_to_do() {
    let nodes = Nodes::plain(2).await;
    let delay = |node: usize, delay| {
        nodes.controls[node].set_faults(|faults| faults.delay = Some(Duration::from_millis(delay)));
    };
    delay(0, 100);
    delay(1, 10);
    let clients = join_all((0..8).map(|_| nodes.proxy.client())).await;
    let asking = clients.into_iter().enumerate().map(|(at, mut client)| async move {
        for n in 0..20 {
            assert!(client.ask(work(100 * at + n)).await.contains("result"));
        }
    });
    join_all(asking).await;
    let asked = nodes.asked("eth_getBalance");
    assert_eq!(asked.iter().sum::<u64>(), 160);
    assert!(asked[0] > 0 && asked[1] > 3 * asked[0], "{asked:?}");
    assert_eq!(nodes.status().await[1]["callsInFlight"], 0);
    assert!(nodes.status().await[1]["latencySeconds"].as_f64().unwrap() > 0.005);
}

#[tokio::test]
async fn what_one_node_has_in_its_memory_is_asked_of_the_one_in_use() {
    let nodes = Nodes::plain(2).await;
    let mut client = nodes.proxy.client().await;
    for _ in 0..5 {
        client.call("txpool_status", json!([])).await;
        client
            .call(
                "eth_getTransactionCount",
                json!([alloy_primitives::Address::ZERO, "pending"]),
            )
            .await;
        client.call("eth_nothing", json!([])).await;
        client.call("eth_sendRawTransaction", json!(["0x00"])).await;
    }
    for method in ["eth_getTransactionCount", "eth_sendRawTransaction"] {
        assert_eq!(nodes.asked(method), [5, 0], "{method}");
    }
    // devnet knows neither method: the read is retried at the other node, the call of an unknown method is not.
    assert_eq!(nodes.asked("unknown"), [10, 5]);
}

#[tokio::test]
async fn a_node_is_asked_what_it_is_there_for() {
    let describe = |i: usize, own: &mut Described| match i {
        0 => own.methods = Some(vec!["eth_g*".into(), "eth_syncing".into()]),
        1 => {
            own.archive = true;
            own.calls = Share::Spare;
        }
        _ => own.calls = Share::None,
    };
    let nodes = Nodes::start(3, describe, |_| {}).await;
    let mut watcher = nodes.proxy.watcher().await;
    let mut blocks = Vec::new();
    for _ in 0..140 {
        blocks.push(nodes.mine()[0].clone());
    }
    watcher.expect(adopted(&blocks)).await;
    let mut client = nodes.proxy.client().await;
    let account = alloy_primitives::Address::ZERO;
    client.call("eth_getBalance", json!([account, "latest"])).await;
    assert_eq!(nodes.asked("eth_getBalance"), [1, 0, 0]);
    client.call("eth_getBalance", json!([account, "0x5"])).await;
    assert_eq!(
        nodes.asked("eth_getBalance"),
        [1, 1, 0],
        "old state: the archive's, though it is spare"
    );
    client.call("eth_feeHistory", json!(["0x1", "latest", []])).await;
    assert_eq!(nodes.asked("eth_feeHistory"), [0, 1, 0], "the first does not serve it");
    nodes.lose(0).await;
    client.call("eth_gasPrice", json!([])).await;
    assert_eq!(nodes.asked("eth_gasPrice"), [0, 1, 0], "nobody else is left");
    assert!(nodes.asked("eth_getBalance")[2] + nodes.asked("eth_feeHistory")[2] == 0);
}

/// The blocks in memory show which hashes are recent.
#[tokio::test]
async fn old_state_is_asked_of_the_archive_also_by_hash() {
    let describe = |i: usize, own: &mut Described| own.archive = i == 1;
    for held in [200, 16] {
        let nodes = Nodes::start(2, describe, |config| config.history.blocks = held).await;
        let mut watcher = nodes.proxy.watcher().await;
        // The archive is slow, so it is chosen only for a reason.
        nodes.controls[1].set_faults(|faults| faults.delay = Some(Duration::from_millis(50)));
        let blocks: Vec<_> = (0..140).map(|_| nodes.mine()[0].clone()).collect();
        watcher.expect(adopted(&blocks)).await;
        let mut client = nodes.proxy.client().await;
        for n in 0..4 {
            client.ask(work(n)).await;
        }
        let (old, recent) = (blocks[0].hash(), blocks[139 - 5].hash());
        let names = |hash: alloy_primitives::B256| {
            [
                json!(hash),
                json!({"blockHash": hash}),
                json!({"blockHash": hash, "requireCanonical": true}),
            ]
        };
        for (hash, archive) in [(old, 1), (recent, 0)] {
            for name in names(hash) {
                let before = nodes.asked("eth_getBalance");
                let answer = client
                    .call("eth_getBalance", json!([alloy_primitives::Address::ZERO, name]))
                    .await;
                let after = nodes.asked("eth_getBalance");
                let asked = [after[0] - before[0], after[1] - before[1]];
                assert_eq!(asked, [1 - archive, archive], "{held} held: {name} {answer}");
            }
        }
        // A call that needs no state may go to any node.
        let before = nodes.asked("eth_getBlockByHash");
        client.call("eth_getBlockByHash", json!([old, true])).await;
        assert_eq!(nodes.asked("eth_getBlockByHash")[0], before[0] + 1);
    }
}

#[tokio::test]
async fn what_no_node_is_there_for_is_not_waited_for() {
    let describe =
        |_: usize, own: &mut Described| own.methods = Some(vec!["eth_getBalance".into(), "eth_syncing".into()]);
    // Longer than the test may take: there is nothing to wait for.
    let nodes = Nodes::start(1, describe, |config| {
        config.calls.head_wait_timeout = Duration::from_secs(3600)
    })
    .await;
    let mut client = nodes.proxy.client().await;
    for method in [
        "eth_gasPrice",
        "eth_sendRawTransaction",
        "eth_newBlockFilter",
        "eth_nothing",
    ] {
        let answer = client.call(method, json!([])).await;
        let words = format!("the method {method} does not exist/is not available");
        assert_eq!(answer["error"], json!({"code": -32601, "message": words}));
    }
    assert!(client.ask(work(1)).await.contains("result"));
    assert!(
        client.call("eth_chainId", json!([])).await["result"].is_string(),
        "known without one"
    );
}

#[tokio::test]
async fn a_read_whose_node_is_lost_is_asked_once_more_elsewhere() {
    let nodes = Nodes::plain(2).await;
    let mut client = nodes.proxy.client().await;
    let head = nodes.controls[0].head().number();
    // The first node is known to be quick, so the call goes there, and the node stalls.
    nodes.controls[1].set_faults(|faults| faults.delay = Some(Duration::from_millis(30)));
    for n in 0..6 {
        client.ask(work(n)).await;
    }
    nodes.controls[0].set_faults(|faults| faults.delay = Some(Duration::from_secs(60)));
    client
        .send(request(
            "eth_getBlockByNumber",
            &json!([format!("{:#x}", head - 1), true]),
        ))
        .await;
    eventually("it is asked", async || nodes.status().await[0]["callsInFlight"] == 1).await;
    nodes.controls[0].disconnect();
    let answer: Value = serde_json::from_str(&client.next().await).unwrap();
    assert_eq!(answer["result"]["number"], format!("{:#x}", head - 1));
    assert_eq!(nodes.rerouted("lost").await, 1.0);
}

#[tokio::test]
async fn a_read_whose_only_node_is_lost_waits_for_its_return() {
    let nodes = Nodes::start(
        1,
        |_, _| {},
        |config| config.calls.head_wait_timeout = Duration::from_secs(10),
    )
    .await;
    let mut client = nodes.proxy.client().await;
    nodes.controls[0].set_faults(|faults| faults.delay = Some(Duration::from_secs(60)));
    client.send(request("eth_gasPrice", &json!([]))).await;
    eventually("it is asked", async || nodes.status().await[0]["callsInFlight"] == 1).await;
    nodes.controls[0].set_faults(|faults| faults.delay = None);
    nodes.controls[0].disconnect();
    assert!(client.next().await.contains("result"));
    // A call that arrives while the node is away waits, too.
    nodes.lose(0).await;
    client.send(request("eth_syncing", &json!([]))).await;
    nodes.controls[0].set_faults(|faults| faults.refuse_connections = false);
    assert!(client.next().await.contains("false"));
}

#[tokio::test]
async fn a_node_that_is_asked_too_much_is_spared() {
    for (code, message) in [(429, "compute units"), (-32005, "rate limited"), (-32029, "slow down")] {
        let nodes = Nodes::plain(2).await;
        let mut client = nodes.proxy.client().await;
        // The first node is the quicker one, and would get all calls.
        nodes.controls[1].set_faults(|faults| faults.delay = Some(Duration::from_millis(50)));
        for n in 0..10 {
            if n == 4 {
                nodes.fault(0, &["eth_getBalance"], code, message);
            }
            let answer = client.ask(work(n)).await;
            assert!(answer.contains("result"), "{answer}");
        }
        assert_eq!(nodes.rerouted("throttled").await, 1.0);
        // If all nodes are rate limited, the client gets a node's own error.
        nodes.fault(1, &["eth_getBalance"], code, message);
        let expect = json!({"code": code, "message": message}).to_string();
        let answer = client.ask(work(10)).await;
        assert!(answer.contains(&expect), "{answer}");
    }
}

#[tokio::test]
async fn a_second_node_is_asked_where_the_first_is_unusually_slow() {
    let nodes = Nodes::start(2, |_, _| {}, |config| config.calls.hedge = true).await;
    let mut client = nodes.proxy.client().await;
    for n in 0..60 {
        client.ask(work(n)).await;
    }
    let hedged = nodes.rerouted("hedged").await;
    for control in &nodes.controls {
        control.set_faults(|faults| faults.delay = Some(Duration::from_secs(60)));
    }
    client.send(work(60)).await;
    eventually("both are asked", async || {
        nodes.status().await.iter().all(|one| one["callsInFlight"] == 1)
    })
    .await;
    assert_eq!(nodes.rerouted("hedged").await, hedged + 1.0);
    // One answer is enough: a node that is lost is not waited for.
    nodes.controls[0].disconnect();
    nodes.controls[1].set_faults(|faults| faults.delay = None);
    nodes.controls[1].disconnect();
    let other: Value = serde_json::from_str(&client.next().await).unwrap();
    assert_eq!(other["id"], 1);
}

/// The standby is behind: a client that got a head is not answered from before that head.
#[tokio::test]
async fn calls_wait_for_a_node_that_has_the_head_that_clients_were_shown_but_not_for_ever() {
    let nodes = Nodes::plain(2).await;
    let mut client = nodes.proxy.watcher().await;
    let block = nodes.controls[0].mine();
    client.expect(adopted(std::slice::from_ref(&block))).await;
    let head = request("eth_getBlockByNumber", &json!(["latest", false]));
    let before = nodes.asked("eth_getBlockByNumber")[1];
    for n in 0..10 {
        assert!(client.ask(head.clone()).await.contains(&block.hash().to_string()));
        assert!(client.ask(work(n)).await.contains("result"));
    }
    assert_eq!(nodes.asked("eth_getBlockByNumber")[1], before);
    assert_eq!(
        nodes.asked("eth_getBalance"),
        [10, 0],
        "the other one has not got so far"
    );
    nodes.lose(0).await;
    let price = request("eth_gasPrice", &json!([]));
    let refused: Value = serde_json::from_str(&client.ask(price.clone()).await).unwrap();
    let number = block.number();
    assert_eq!(
        refused["error"],
        json!({"code": -32603, "message": format!("no upstream has reached block {number} yet")})
    );
    let syncing = client.ask(request("eth_syncing", &json!([]))).await;
    assert!(syncing.contains("false"), "the node's own matter");
    assert!(
        client
            .ask(request("web3_clientVersion", &json!([])))
            .await
            .contains("result"),
        "no matter of blocks"
    );
    // The node answers as soon as it has caught up.
    client.send(price).await;
    nodes.controls[1].follow(&nodes.controls[0], 0).unwrap();
    assert!(client.next().await.contains("result"));
}

#[tokio::test]
async fn a_filter_lives_at_one_node_under_an_id_of_ours() {
    let nodes = Nodes::plain(2).await;
    let (mut client, mut other) = (nodes.proxy.client().await, nodes.proxy.client().await);
    let make = |client: Client| async move {
        let mut client = client;
        let id = client.call("eth_newBlockFilter", json!([])).await["result"].clone();
        (client, id)
    };
    let (first, second);
    (client, first) = make(client).await;
    (other, second) = make(other).await;
    assert_ne!(first, second);
    assert_eq!(first.as_str().unwrap().len(), 34);
    let blocks = nodes.mine();
    for (client, id) in [(&mut client, &first), (&mut other, &second)] {
        let changes = client.call("eth_getFilterChanges", json!([id])).await;
        assert_eq!(changes["result"], json!([blocks[0].hash()]));
        assert_eq!(
            client.call("eth_getFilterChanges", json!([id])).await["result"],
            json!([])
        );
    }
    // Over HTTP no connection identifies the filter's owner.
    let reply: Value = serde_json::from_str(&nodes.proxy.post(request("eth_newFilter", &json!([{}]))).await).unwrap();
    let logs = nodes
        .proxy
        .post(request("eth_getFilterLogs", &json!([reply["result"]])))
        .await;
    assert!(logs.contains("logIndex"));
    assert_eq!(other.call("eth_uninstallFilter", json!([second])).await["result"], true);
    assert_eq!(
        other.call("eth_uninstallFilter", json!([second])).await["result"],
        false
    );
    let gone = json!({"code": -32000, "message": "filter not found"});
    assert_eq!(other.call("eth_getFilterChanges", json!([second])).await["error"], gone);
    assert_eq!(other.call("eth_getFilterChanges", json!(["0x1"])).await["error"], gone);
    // The filter's node is lost: another node cannot know what happened in between.
    nodes.lose(0).await;
    assert_eq!(client.call("eth_getFilterChanges", json!([first])).await["error"], gone);
    let (_, third) = make(client).await;
    let blocks = nodes.controls[1].mine_many(1);
    let changes = other.call("eth_getFilterChanges", json!([third])).await;
    assert_eq!(changes["result"], json!([blocks[0].hash()]));
}

#[tokio::test]
async fn a_signed_transaction_goes_to_one_or_to_all_once_each() {
    const RAW: &str = "0x00";
    for (broadcast, expect) in [(false, [1, 0, 0]), (true, [1, 1, 1])] {
        let nodes = Nodes::start(3, |_, _| {}, |config| config.calls.broadcast = broadcast).await;
        let mut client = nodes.proxy.client().await;
        let words = client.call("eth_sendRawTransaction", json!([RAW])).await;
        assert!(words["error"]["message"].is_string(), "the first node's own: {words}");
        eventually("all that were to get it have it", async || {
            nodes.asked("eth_sendRawTransaction") == expect
        })
        .await;
        nodes.fault(0, &["eth_sendRawTransaction"], -32000, "already known");
        let taken = client.call("eth_sendRawTransaction", json!([RAW])).await;
        let hash = alloy_primitives::keccak256([0]);
        assert_eq!(taken["result"], json!(hash), "that a node has it is what was wanted");
        let twice = expect.map(|count| 2 * count);
        eventually("all have the second, too", async || {
            nodes.asked("eth_sendRawTransaction") == twice
        })
        .await;
    }
}
