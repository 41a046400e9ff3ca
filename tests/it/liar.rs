//! Nodes that lie: about their height, about their answers, about where they are. A bystander is not affected.

use std::time::Duration;

use headwater::config::typed::{Described, Upstream};
use headwater::upstream::Share;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::bystander::Bystander;
use crate::cli::headwater;
use crate::harness::{Proxy, eventually};
use crate::scripted::{Answer, Made, Mine, Scripted, word};

const JUMP: u64 = 1_000_000;

/// Silence timeout; half of it is the time limit for a node in use that lags, forks or is doubted.
const SILENCE: Duration = Duration::from_secs(2);

/// Three nodes of one chain, of which at most one lies.
struct Three {
    nodes: Vec<Scripted>,
    proxy: Proxy,
}

impl Three {
    /// Starts the nodes and the app; the node at index `liar` gets no calls.
    async fn start(liar: usize) -> Self {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let node = Scripted::start().await;
            node.grow(5);
            nodes.push(node);
        }
        let upstream = |(i, node): (usize, &Scripted)| {
            Upstream::Described(Described {
                address: node.ws_url(),
                archive: false,
                methods: None,
                calls: if i == liar { Share::None } else { Share::Share },
            })
        };
        let upstreams = nodes.iter().enumerate().map(upstream).collect();
        let proxy = Proxy::start(&[], |config| {
            config.upstream = upstreams;
            config.node.silence_timeout = SILENCE;
            config.node.failback_after = Duration::from_millis(300);
        })
        .await;
        let three = Self { nodes, proxy };
        three.proxy.ready().await;
        three.proxy.connected().await;
        three.in_use(0).await;
        three
    }

    /// Mines the same block at each of these nodes.
    fn mine(&self, by: &[usize]) -> Made {
        let made: Vec<Made> = by.iter().map(|id| self.nodes[*id].mine(Mine::logs(1))).collect();
        assert!(made.iter().all(|one| one.hash() == made[0].hash()));
        made[0].clone()
    }

    async fn in_use(&self, id: usize) {
        eventually("it is in use", async || self.is_in_use(id).await).await;
    }

    async fn is_in_use(&self, id: usize) -> bool {
        self.proxy.upstreams().await[id]["active"] == true
    }

    async fn failovers(&self, reason: &str) -> f64 {
        let sample = format!("headwater_failovers_total{{reason=\"{reason}\"}}");
        self.proxy.metric(&sample).await
    }

    async fn height(&self) -> Value {
        let mut client = self.proxy.client().await;
        client.call("eth_blockNumber", json!([])).await["result"].clone()
    }
}

/// The first lie of a node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// A head a million blocks above the newest, with an unknown parent.
    Jump,
    /// A head a million blocks above the newest, with the newest as its parent.
    Leap,
    /// A head near the greatest height there is.
    Greatest,
    /// A head whose number is not a valid height.
    NoHeight,
}

impl Lie {
    fn tell(self, node: &Scripted) {
        let nowhere = Mine::default().tag("lie").parent(word("nowhere"));
        let head = node.head().number();
        match self {
            Self::Jump => _ = node.mine(nowhere.number(head + JUMP)),
            Self::Leap => _ = node.mine(Mine::default().tag("lie").number(head + JUMP)),
            Self::Greatest => _ = node.mine(nowhere.number(i64::MAX as u64 - 100)),
            Self::NoHeight => {
                let mut header = node.head().header;
                header["number"] = json!("0xffffffffffffffff");
                header["hash"] = json!(word("lie"));
                node.announce(&header, "newHeads");
            }
        }
    }
}

/// Runs one story: one node of three lies for longer than the time limit while the others mine on. Then it recants,
/// and counts as sound again.
async fn one_lies(liar: usize, lie: Lie) {
    let three = Three::start(liar).await;
    let honest: Vec<usize> = (0..3).filter(|id| *id != liar).collect();
    let mut bystander = Bystander::join(&three.proxy).await;
    bystander.sees(&[three.mine(&[0, 1, 2]), three.mine(&[0, 1, 2])]).await;
    lie.tell(&three.nodes[liar]);
    let mut meanwhile = Vec::new();
    for _ in 0..20 {
        let made = three.mine(&honest);
        if lie == Lie::NoHeight {
            three.nodes[liar].mine(Mine::logs(1));
        } else {
            three.nodes[liar].mine(Mine::default().tag("lie"));
        }
        bystander.sees(std::slice::from_ref(&made)).await;
        assert_eq!(three.height().await, made.header["number"], "{lie:?}");
        meanwhile.push(made);
        tokio::time::sleep(SILENCE / 15).await;
    }
    let left = liar == 0 && lie != Lie::NoHeight;
    three.in_use(usize::from(left)).await;
    assert_eq!(three.failovers("doubted").await, f64::from(u8::from(left)), "{lie:?}");
    assert_eq!(three.failovers("lagging").await, 0.0, "{lie:?}");
    let lost = three
        .proxy
        .metric("headwater_continuity_lost_total{reason=\"too_far\"}")
        .await;
    assert_eq!(lost, 0.0, "{lie:?}");
    // The liar recants.
    if lie != Lie::NoHeight {
        let mut parent = three.nodes[liar].block(7).unwrap();
        for made in &meanwhile {
            let own = Mine::logs(1).on_block(&parent);
            parent = three.nodes[liar].mine(if made.number() == 8 { own } else { own.silent() });
            assert_eq!(parent.hash(), made.hash());
        }
    }
    bystander.sees(&[three.mine(&[0, 1, 2])]).await;
    three.in_use(0).await;
    honest.iter().for_each(|id| three.nodes[*id].stop());
    three.in_use(liar).await;
    bystander.saw_only(&[three.mine(&[liar]), three.mine(&[liar])]).await;
}

#[tokio::test]
async fn the_last_of_three_lies_about_its_height() {
    for lie in [Lie::Jump, Lie::Leap, Lie::Greatest, Lie::NoHeight] {
        one_lies(2, lie).await;
    }
}

#[tokio::test]
async fn the_first_of_three_lies_about_its_height() {
    for lie in [Lie::Jump, Lie::Leap, Lie::Greatest, Lie::NoHeight] {
        one_lies(0, lie).await;
    }
}

/// A branch that one node of three invents on top of a published block, longer than the app remembers.
#[tokio::test]
async fn a_branch_of_one_node_is_not_followed_however_far_it_runs_ahead() {
    let three = Three::start(2).await;
    let mut bystander = Bystander::join(&three.proxy).await;
    bystander.sees(&[three.mine(&[0, 1, 2]), three.mine(&[0, 1, 2])]).await;
    let invented = || three.nodes[2].mine(Mine::default().tag("lie"));
    (0..300).for_each(|_| _ = invented());
    for round in 0..20 {
        let made = three.mine(&[0, 1]);
        bystander.sees(std::slice::from_ref(&made)).await;
        assert_eq!(three.height().await, made.header["number"]);
        if round < 10 {
            invented();
        } else {
            three.nodes[2].mine(Mine::default().tag("lie").on_block(&made));
        }
        tokio::time::sleep(SILENCE / 15).await;
    }
    three.in_use(0).await;
    let all = three.failovers("doubted").await + three.failovers("lagging").await + three.failovers("forked").await;
    assert_eq!(all, 0.0);
    bystander.saw_only(&[three.mine(&[0, 1])]).await;
}

/// All nodes jump after a stall: no node has the blocks between, and service continues at the new height.
#[tokio::test]
async fn a_chain_that_really_jumps_is_followed_when_a_second_node_says_so() {
    let three = Three::start(2).await;
    let mut client = three.proxy.watcher().await;
    let jump = || Mine::logs(1).number(JUMP).parent(word("missed"));
    three.nodes[0].mine(jump());
    // One node alone is not believed.
    eventually("it has received", async || {
        three.proxy.upstreams().await[0]["head"] == json!(JUMP)
    })
    .await;
    assert_eq!(three.height().await, "0x5");
    three.nodes[1].mine(jump());
    assert_eq!(client.closed().await.1, 1012);
    three.nodes[2].mine(jump());
    eventually("the new height", async || three.height().await == "0xf4240").await;
    let bystander = Bystander::join(&three.proxy).await;
    bystander
        .saw_only(&[three.mine(&[0, 1, 2]), three.mine(&[0, 1, 2])])
        .await;
}

#[tokio::test]
async fn a_node_alone_may_jump() {
    let node = Scripted::start().await;
    node.grow(5);
    let proxy = node.proxy(|_| {}).await;
    let mut client = proxy.watcher().await;
    node.mine(Mine::logs(1).number(JUMP).parent(word("missed")));
    assert_eq!(client.closed().await.1, 1012);
    node.settled(&proxy).await;
    let bystander = Bystander::join(&proxy).await;
    bystander.saw_only(&node.mine_many(3, 1)).await;
}

/// A node reconnects far ahead of another one, which is stuck; its parents lead to the published chain.
#[tokio::test]
async fn who_is_ahead_by_a_way_that_can_be_walked_is_believed() {
    let nodes = [Scripted::start().await, Scripted::start().await];
    nodes.iter().for_each(|node| _ = node.grow(5));
    let proxy = Proxy::start(&nodes.each_ref().map(Scripted::ws_url), |config| {
        config.node.silence_timeout = SILENCE;
    })
    .await;
    proxy.ready().await;
    proxy.connected().await;
    let mut bystander = Bystander::join(&proxy).await;
    let first: Vec<Vec<Made>> = nodes.iter().map(|node| node.mine_many(2, 1)).collect();
    bystander.sees(&first[0]).await;
    let missed: Vec<Made> = (0..300).map(|_| nodes[1].mine(Mine::logs(1).silent())).collect();
    let received = nodes[1].mine(Mine::logs(1));
    bystander.saw_only(&[missed, vec![received]].concat()).await;
    assert_eq!(proxy.upstreams().await[1]["active"], true);
}

/// An answer by hash must be about that hash, for the client that asks and for all later clients.
#[tokio::test]
async fn an_answer_about_another_hash_is_neither_given_nor_kept() {
    let node = Scripted::start().await;
    let made = node.mine_many(3, 2);
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut client = proxy.client().await;
    let (asked, other) = (made[0].clone(), made[1].clone());
    let hash = asked.hash();
    let transaction = asked.transactions()[0];
    for (method, params, right) in [
        ("eth_getBlockByHash", json!([hash, true]), asked.block(true)),
        ("eth_getBlockReceipts", json!([hash]), json!(asked.receipts())),
        ("eth_getLogs", json!([{"blockHash": hash, "x": 1}]), json!(asked.logs)),
        (
            "eth_getTransactionReceipt",
            json!([transaction]),
            asked.receipts()[0].clone(),
        ),
    ] {
        let wrong = match method {
            "eth_getBlockByHash" => other.block(true),
            "eth_getBlockReceipts" => json!(other.receipts()),
            "eth_getLogs" => json!(other.logs),
            _ => other.receipts()[0].clone(),
        };
        let lie = wrong.clone();
        let about = params.clone();
        node.answer(method, move |ask| match *ask.params == about {
            true => Answer::Result(lie.clone()),
            false => ask.usual(),
        });
        let refused = client.call(method, params.clone()).await;
        assert_eq!(refused["error"]["code"], -32603, "{method} {refused}");
        let (truth, about) = (right.clone(), params.clone());
        node.answer(method, move |ask| match *ask.params == about {
            true => Answer::Result(truth.clone()),
            false => ask.usual(),
        });
        assert_eq!(client.call(method, params).await["result"], right, "{method}");
    }
    bystander.saw_only(&node.mine_many(1, 1)).await;
}

/// Starts a server that redirects each connection to `url`; returns its own URL and the number of connections.
async fn redirecting_to(url: String) -> (String, tokio::sync::watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (count, counted) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.send_modify(|count| *count += 1);
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: {url}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (format!("http://{address}"), counted)
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Scripted::start().await;
    let (url, _) = redirecting_to(elsewhere.http_url()).await;
    let proxy = Proxy::start(&[url], |config| config.node.poll_interval = Duration::from_millis(20)).await;
    eventually("it is said", async || {
        let why = proxy.upstreams().await[0]["lastError"].to_string();
        why.contains("307") && why.contains("does not follow redirects")
    })
    .await;
    assert_eq!(elsewhere.calls("eth_chainId"), 0);
}

#[tokio::test]
async fn no_proxy_is_taken_from_the_environment() {
    let node = Scripted::start().await;
    let (url, counted) = redirecting_to(node.http_url()).await;
    let variables =
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"].map(|name| (name, url.as_str()));
    let upstream = node.http_url();
    let args = [
        "--upstream",
        &upstream,
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ];
    let mut child = headwater(&args, &variables)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("the node is asked", async || node.calls("eth_getBlockByNumber") > 2).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(*counted.borrow(), 0);
}
