//! Upstreams join, leave and change by a reload, while clients stream and call.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater::devnet::{Block, Control, Devnet};
use headwater::operator::{OperatorClient, Reloaded};
use jsonrpsee::core::client::Error;
use jsonrpsee::ws_client::WsClient;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Client, Proxy, adopted, eventually, node, within};
use crate::operator::operator;
use crate::wire::{FORWARDED, FORWARDED_ANSWER};

/// An app that follows a file with its upstreams.
struct Followed {
    proxy: Proxy,
    api: WsClient,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

const SETTINGS: &str = "[node]\nreconnect_min = \"5ms\"\nreconnect_max = \"50ms\"\nsilence_timeout = \"4s\"\n\
    poll_interval = \"20ms\"\nfailback_after = \"500ms\"\n";

impl Followed {
    /// Starts with these upstreams, each as TOML; the first one's node is `first`.
    async fn start(upstreams: &[String], first: &Control) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headwater.toml");
        std::fs::write(&path, text(upstreams)).unwrap();
        let proxy = Proxy::from_file(&path, &[]).await;
        proxy.settled(first).await;
        proxy.connected().await;
        let followed = Self {
            api: operator(&proxy).await,
            proxy,
            path,
            _folder: folder,
        };
        followed.in_use(0).await;
        followed
    }

    async fn reload(&self, upstreams: &[String]) {
        let reloaded = self.reload_text(&text(upstreams)).await.unwrap();
        assert_eq!(reloaded.needs_restart, [""; 0]);
    }

    async fn reload_text(&self, text: &str) -> Result<Reloaded, Error> {
        let fresh = self.path.with_extension("new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, &self.path).unwrap();
        self.api.reload().await
    }

    async fn in_use(&self, place: usize) {
        eventually("it is in use", async || {
            let upstreams = self.proxy.upstreams().await;
            upstreams.get(place).is_some_and(|one| one["active"] == true)
        })
        .await;
    }

    /// Waits until these nodes, and no others, are connected upstreams, in this order.
    async fn are(&self, nodes: &[&Devnet]) {
        let addresses: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
        eventually("the upstreams are the new ones", async || {
            let now = self.proxy.upstreams().await;
            now.len() == nodes.len()
                && now.iter().zip(&addresses).all(|(one, address)| {
                    one["connected"] == true
                        && one["lanes"] != "opening"
                        && one["address"].as_str().unwrap().contains(address)
                })
        })
        .await;
    }

    /// Returns the address that each series of a metric has.
    async fn labels(&self, metric: &str) -> Vec<String> {
        let page = self.proxy.admin("/metrics").await.body;
        let lines = page
            .lines()
            .filter_map(|line| line.strip_prefix(metric)?.strip_prefix("{upstream=\""));
        let mut labels: Vec<String> = lines.map(|line| line.split('"').next().unwrap().to_owned()).collect();
        labels.sort();
        labels
    }
}

fn text(upstreams: &[String]) -> String {
    format!("upstream = [{}]\n{SETTINGS}", upstreams.join(", "))
}

/// Returns the node as an entry of the settings.
fn entry(node: &Devnet) -> String {
    format!("{:?}", node.ws_url())
}

/// Mines the same block at all nodes.
fn mine(nodes: &[&Control]) -> Arc<Block> {
    let blocks: Vec<_> = nodes.iter().map(|node| node.mine()).collect();
    assert!(blocks.iter().all(|block| block.hash() == blocks[0].hash()));
    blocks[0].clone()
}

/// Checks that the client got nothing but what it was checked for.
async fn nothing_more(client: &mut Client) {
    let (answer, beside) = client.ask_alone(FORWARDED).await;
    assert_eq!((&*answer, beside), (FORWARDED_ANSWER, Vec::new()));
}

#[tokio::test]
async fn one_that_is_added_takes_over_later_and_the_others_keep_their_connections() {
    let (one, two) = (node().await, node().await);
    let (first, second) = (one.handle(), two.handle());
    let app = Followed::start(&[entry(&one)], &first).await;
    let mut client = app.proxy.watcher().await;
    client.expect(adopted(&[mine(&[&first, &second])])).await;
    let opened = first.stats().connections_opened;

    app.reload(&[entry(&one), entry(&two)]).await;
    app.are(&[&one, &two]).await;
    app.in_use(0).await;
    client.expect(adopted(&[mine(&[&first, &second])])).await;
    assert_eq!(app.labels("headwater_upstream_up").await.len(), 2);
    // The new one can lead, and keep the other's calls.
    app.proxy.lose(&first, 0).await;
    client.expect(adopted(&[second.mine()])).await;
    nothing_more(&mut client).await;
    first.set_faults(|faults| faults.refuse_connections = false);
    first.follow(&second, 0).unwrap();
    app.are(&[&one, &two]).await;
    app.in_use(0).await;

    // Another order is another priority, and no connection.
    let before = [first.stats().connections_opened, second.stats().connections_opened];
    assert!(before[0] > opened, "it was lost");
    app.reload(&[entry(&two), entry(&one)]).await;
    app.in_use(0).await;
    app.are(&[&two, &one]).await;
    // The first's own chain would have other transactions by now.
    let both = || {
        let block = second.mine();
        first.follow(&second, 0).unwrap();
        block
    };
    client.expect(adopted(&[both()])).await;
    // Nor is a change of what it serves.
    let spare = format!("{{ address = {}, calls = \"none\" }}", entry(&two));
    app.reload(&[spare, entry(&one)]).await;
    let asked = second.stats().calls.get("eth_syncing").copied();
    for _ in 0..3 {
        assert_eq!(client.ask(FORWARDED).await, FORWARDED_ANSWER);
    }
    assert_eq!(
        second.stats().calls.get("eth_syncing").copied(),
        asked,
        "it takes no calls"
    );
    client.expect(adopted(&[both()])).await;
    let after = [first.stats().connections_opened, second.stats().connections_opened];
    assert_eq!(after, before);
    nothing_more(&mut client).await;
}

#[tokio::test]
async fn the_leader_that_is_removed_finishes_its_calls_and_the_stream_has_no_seam() {
    for transport in ["ws", "http"] {
        let (one, two) = (node().await, node().await);
        let (first, second) = (one.handle(), two.handle());
        let leader = match transport {
            "ws" => entry(&one),
            _ => format!("{:?}", one.http_url()),
        };
        let spare = format!("{{ address = {}, calls = \"spare\" }}", entry(&two));
        let app = Followed::start(&[leader, spare], &first).await;
        let mut client = app.proxy.watcher().await;
        let mut caller = app.proxy.client().await;
        let filter = caller.call("eth_newBlockFilter", json!([])).await["result"].clone();
        client.expect(adopted(&[mine(&[&first, &second])])).await;

        // A call that the node in use gets, and that it answers after it has left.
        first.set_faults(|faults| {
            faults.delay = Some(Duration::from_millis(1500));
            faults.delay_on = vec!["eth_getTransactionCount".into()];
        });
        let count = json!({"jsonrpc": "2.0", "id": 5, "method": "eth_getTransactionCount",
            "params": ["0x0000000000000000000000000000000000000001", "pending"]});
        within("the call is at the node in use", async {
            caller.send(count.to_string()).await;
            while !first.stats().calls.contains_key("eth_getTransactionCount") {
                // On a machine that is busy the spare may get it, and has answered.
                if timeout(Duration::from_millis(5), caller.next()).await.is_ok() {
                    app.in_use(0).await;
                    caller.send(count.to_string()).await;
                }
            }
        })
        .await;
        app.reload(&[entry(&two)]).await;
        assert_eq!(
            app.proxy.metric("headwater_failovers_total{reason=\"removed\"}").await,
            1.0
        );
        let now = app.proxy.upstreams().await;
        assert_eq!((now.len(), &now[0]["active"]), (1, &json!(true)), "{transport}");
        for metric in ["up", "connects", "active", "lag_seconds"] {
            let labels = app.labels(&format!("headwater_upstream_{metric}")).await;
            assert_eq!(labels, [now[0]["address"].as_str().unwrap()], "{metric}");
        }
        let blocks = [second.mine(), second.mine(), second.mine()];
        client.expect(adopted(&blocks)).await;
        let answer: Value = serde_json::from_str(&caller.next().await).unwrap();
        assert_eq!(
            answer,
            json!({"jsonrpc": "2.0", "id": 5, "result": "0x0"}),
            "{transport}"
        );

        // Then its connections end, and for several poll intervals it is not asked any more. A connection that was given up
        // may still be in its queue.
        eventually("it is left alone", async || {
            let (asked, since) = (first.stats().calls, Instant::now());
            while since.elapsed() < Duration::from_millis(200) {
                client.expect(adopted(&[second.mine()])).await;
                assert_eq!(client.ask(FORWARDED).await, FORWARDED_ANSWER);
            }
            let now = first.stats();
            (now.calls, now.connections) == (asked, 0)
        })
        .await;
        // What existed there alone has ended; a client makes another.
        let gone = caller.call("eth_getFilterChanges", json!([filter])).await;
        assert_eq!(gone["error"]["message"], "filter not found", "{gone}");
        nothing_more(&mut client).await;
    }
}

#[tokio::test]
async fn a_changed_address_joins_before_the_old_one_leaves() {
    let (one, two) = (node().await, node().await);
    let (first, second) = (one.handle(), two.handle());
    let app = Followed::start(&[entry(&one)], &first).await;
    let mut client = app.proxy.watcher().await;
    client.subscribe(json!(["newPendingTransactions"])).await;
    client.expect(adopted(&[mine(&[&first, &second])])).await;

    // A wrong address costs nothing: the old one stays, for as long as the new one cannot be reached.
    second.set_faults(|faults| faults.refuse_connections = true);
    app.reload(&[entry(&two)]).await;
    let now = app.proxy.upstreams().await;
    assert_eq!(now.len(), 2);
    assert_eq!(
        (&now[0]["connected"], &now[0]["leaving"]),
        (&json!(false), &json!(false))
    );
    assert_eq!((&now[1]["active"], &now[1]["leaving"]), (&json!(true), &json!(true)));
    client.expect(adopted(&[mine(&[&first, &second])])).await;
    assert_eq!(client.ask(FORWARDED).await, FORWARDED_ANSWER);
    // A second reload may take it back, with the connection that it has.
    let opened = first.stats().connections_opened;
    app.reload(&[entry(&one)]).await;
    app.are(&[&one]).await;
    app.reload(&[entry(&two)]).await;
    assert_eq!(first.stats().connections_opened, opened);

    second.set_faults(|faults| faults.refuse_connections = false);
    app.are(&[&two]).await;
    client.expect(adopted(&[second.mine(), second.mine()])).await;
    // Best-effort kinds go on at the new one.
    eventually("it is subscribed there", async || {
        second.stats().subscriptions.get("newPendingTransactions").copied() == Some(1)
    })
    .await;
    let sent = second.add_pending().unwrap();
    assert_eq!(client.event().await.payload, json!(sent.hash()).to_string());
    eventually("the old one is left alone", async || first.stats().connections == 0).await;

    // Another key at the same node is another upstream.
    let opened = second.stats().connections_opened;
    let keyed = format!("{:?}", format!("{}/key", two.ws_url().trim_end_matches('/')));
    app.reload(&[keyed]).await;
    app.are(&[&two]).await;
    eventually("the old connections end", async || second.stats().connections == 2).await;
    assert_eq!(second.stats().connections_opened, opened + 2);
    client.expect(adopted(&[second.mine()])).await;
    nothing_more(&mut client).await;
}

#[tokio::test]
async fn a_reload_without_upstreams_or_with_nonsense_changes_nothing() {
    let (one, two) = (node().await, node().await);
    let first = one.handle();
    let app = Followed::start(&[entry(&one), entry(&two)], &first).await;
    let mut client = app.proxy.watcher().await;
    let opened = [
        first.stats().connections_opened,
        two.handle().stats().connections_opened,
    ];
    let refused = async |text: &str| match app.reload_text(text).await.unwrap_err() {
        Error::Call(error) => {
            assert!(!error.message().contains('\n'), "{error}");
            error.message().to_owned()
        }
        other => panic!("{other}"),
    };
    assert_eq!(
        refused(SETTINGS).await,
        "upstream: a reload cannot remove every upstream: keep one, or restart for the embedded devnet"
    );
    for (text, words) in [
        (
            text(&[entry(&one), "\"localhost\"".into()]),
            "is not a valid node address",
        ),
        (text(&["5".into()]), "upstream"),
        ("upstream = [".to_owned(), "invalid"),
        // A valid list beside an invalid setting.
        (text(&[entry(&two)]) + "[limits]\nmax_batch = 0\n", "max_batch"),
    ] {
        let why = refused(&text).await;
        assert!(why.contains(words), "{why}");
    }
    app.are(&[&one, &two]).await;
    app.in_use(0).await;
    assert_eq!(
        [
            first.stats().connections_opened,
            two.handle().stats().connections_opened
        ],
        opened
    );
    client.expect(adopted(&[mine(&[&first, &two.handle()])])).await;
    nothing_more(&mut client).await;
}

#[tokio::test]
async fn whatever_list_follows_which_nothing_is_lost_or_told_twice() {
    let mut rng = StdRng::seed_from_u64(18);
    let nodes = [node().await, node().await, node().await];
    let controls = nodes.each_ref().map(Devnet::handle);
    let app = Followed::start(&[entry(&nodes[0])], &controls[0]).await;
    let mut watcher = app.proxy.watcher().await;
    let mut caller = app.proxy.client().await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    // Calls go on all the time, and each is answered.
    let calling = tokio::spawn(async move {
        let mut answered = 0;
        while stopped.try_recv().is_err() {
            assert_eq!(caller.ask(FORWARDED).await, FORWARDED_ANSWER);
            answered += 1;
        }
        answered
    });
    let all = controls.each_ref();
    for _ in 0..25 {
        let mut list: Vec<usize> = (0..nodes.len()).collect();
        list.shuffle(&mut rng);
        list.truncate(rng.random_range(1..=nodes.len()));
        let entries: Vec<String> = list.iter().map(|at| entry(&nodes[*at])).collect();
        let before = mine(&all);
        app.reload(&entries).await;
        let after = mine(&all);
        watcher.expect(adopted(&[before, after])).await;
    }
    app.reload(&[entry(&nodes[1])]).await;
    app.are(&[&nodes[1]]).await;
    watcher.expect(adopted(&[controls[1].mine()])).await;
    nothing_more(&mut watcher).await;
    for control in [&controls[0], &controls[2]] {
        eventually("it is left alone", async || control.stats().connections == 0).await;
    }
    stop.send(()).unwrap();
    assert!(calling.await.unwrap() > 0);
}
