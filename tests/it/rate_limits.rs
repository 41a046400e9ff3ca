//! Nodes that report a rate limit: they are spared, and not taken for dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use headwater::devnet::{Control, Devnet};
use parking_lot::Mutex;
use serde_json::json;

use crate::harness::{Proxy, Rig, adopted, eventually, node};

/// Rate limit before a node: the requests that get 429, and the value of `Retry-After`.
#[derive(Clone, Copy)]
struct Limit {
    /// Text that a request must contain to be refused.
    part: &'static str,
    retry_after: Option<&'static str>,
}

/// A poll of the head, as headwater writes it.
const POLL: &str = r#""eth_getBlockByNumber","params":["latest",false]"#;

/// A hosted node: a rate limit in front of a node that is polled.
struct Hosted {
    node: Devnet,
    control: Control,
    address: String,
    limit: Arc<Mutex<Option<Limit>>>,
    refused: Arc<AtomicU64>,
}

impl Hosted {
    async fn start() -> Self {
        // The front calls the node by HTTP with the process's rustls provider; only the first installation counts.
        drop(rustls::crypto::ring::default_provider().install_default());
        let node = node().await;
        let (limit, refused) = (Arc::new(Mutex::new(None::<Limit>)), Arc::new(AtomicU64::new(0)));
        let (rule, count, target, client) = (limit.clone(), refused.clone(), node.http_url(), reqwest::Client::new());
        let front = axum::Router::new().fallback(move |body: String| {
            let (limit, count) = (*rule.lock(), count.clone());
            let (target, client) = (target.clone(), client.clone());
            async move {
                if let Some(limit) = limit.filter(|limit| body.contains(limit.part)) {
                    count.fetch_add(1, Ordering::SeqCst);
                    let mut answer = axum::response::Response::new("slow down".to_owned());
                    *answer.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                    if let Some(after) = limit.retry_after {
                        answer.headers_mut().insert("retry-after", after.parse().unwrap());
                    }
                    return answer;
                }
                let request = client.post(target).header("content-type", "application/json");
                let answer = request.body(body).send().await.unwrap().text().await.unwrap();
                axum::response::Response::new(answer)
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, front).await });
        Self {
            control: node.handle(),
            node,
            address,
            limit,
            refused,
        }
    }

    fn limit(&self, part: &'static str, retry_after: Option<&'static str>) {
        *self.limit.lock() = Some(Limit { part, retry_after });
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    fn asked(&self, method: &str) -> u64 {
        asked(&self.control, method)
    }

    /// Returns the number of polls that arrive within this many poll intervals.
    async fn polls_in(&self, intervals: u32) -> u64 {
        let before = self.asked("eth_getBlockByNumber") + self.refused();
        tokio::time::sleep(POLL_INTERVAL * intervals).await;
        self.asked("eth_getBlockByNumber") + self.refused() - before
    }
}

const POLL_INTERVAL: Duration = Duration::from_millis(20);

fn asked(control: &Control, method: &str) -> u64 {
    control.stats().calls.get(method).copied().unwrap_or(0)
}

async fn before(addresses: &[String], silence: Duration) -> Proxy {
    let proxy = Proxy::start(addresses, |config| {
        config.node.poll_interval = POLL_INTERVAL;
        config.node.silence_timeout = silence;
        config.calls.head_wait_timeout = Duration::from_millis(300);
    })
    .await;
    proxy.ready().await;
    proxy
}

/// Returns a call that was not made before, which goes to the least loaded node.
fn work(n: usize) -> String {
    let account = alloy_primitives::Address::left_padding_from(&n.to_be_bytes());
    json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getBalance", "params": [account, "latest"]}).to_string()
}

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(120);

/// The node reports the limit by HTTP status alone, with `Retry-After`.
#[tokio::test]
async fn a_node_that_refuses_calls_is_asked_for_none_where_there_is_another() {
    let (hosted, second) = (Hosted::start().await, node().await);
    let proxy = before(&[hosted.address.clone(), second.ws_url()], LONG).await;
    proxy.connected().await;
    let mut client = proxy.client().await;
    hosted.limit("eth_getBalance", Some("30"));
    for n in 0..10 {
        let answer = client.ask(work(n)).await;
        assert!(answer.contains("result"), "{answer}");
    }
    assert_eq!(hosted.refused(), 1);
    // Without another node the client gets the error.
    drop(second);
    eventually("the second is lost", async || {
        let answer = client.ask(work(10)).await;
        answer.contains(r#"{"code":-32005,"message":"upstream is rate limited"}"#)
    })
    .await;
}

#[tokio::test]
async fn a_node_whose_polls_are_refused_is_not_lost_and_tells_its_heads_again() {
    let hosted = Hosted::start().await;
    let proxy = before(std::slice::from_ref(&hosted.address), LONG).await;
    proxy.settled(&hosted.control).await;
    let mut client = proxy.watcher().await;
    client.expect(adopted(&[hosted.control.mine()])).await;
    hosted.limit(POLL, Some("1"));
    eventually("a poll is refused", async || hosted.refused() > 0).await;
    // Client calls are not affected by a refused poll.
    assert!(client.ask(work(0)).await.contains("result"));
    let block = hosted.control.mine();
    eventually("it is asked again", async || hosted.refused() > 1).await;
    *hosted.limit.lock() = None;
    client.expect(adopted(&[block])).await;
    let status = &proxy.upstreams().await[0];
    assert_eq!((&status["connected"], &status["connects"]), (&json!(true), &json!(1)));
}

/// Some nodes report the limit by an error code, with HTTP status 200.
#[tokio::test]
async fn a_node_whose_polls_are_answered_with_a_limits_error_is_not_lost() {
    for code in [-32005, -32029, -32603, -32000] {
        let node = node().await;
        let control = node.handle();
        let proxy = before(&[node.http_url()], LONG).await;
        proxy.settled(&control).await;
        let mut client = proxy.watcher().await;
        control.set_faults(|faults| {
            faults.failing_methods = vec!["eth_getBlockByNumber".into()];
            faults.failure = (code, "rate limited".into());
        });
        let failed = asked(&control, "eth_getBlockByNumber");
        eventually("it is asked again", async || {
            asked(&control, "eth_getBlockByNumber") > failed + 1
        })
        .await;
        let block = control.mine();
        control.set_faults(|faults| faults.failing_methods.clear());
        client.expect(adopted(&[block])).await;
        assert_eq!(proxy.upstreams().await[0]["connects"], 1);
    }
}

#[tokio::test]
async fn a_node_that_refuses_every_poll_is_lost_as_a_silent_one_is_and_comes_back() {
    let hosted = Hosted::start().await;
    let proxy = before(std::slice::from_ref(&hosted.address), Duration::from_secs(2)).await;
    // Longer than the silence timeout allows.
    hosted.limit(POLL, Some("30"));
    eventually("asked again before it is given up", async || hosted.refused() > 2).await;
    hosted.limit(POLL, Some("1"));
    eventually("it is lost", async || proxy.upstreams().await[0]["connected"] == false).await;
    let status = &proxy.upstreams().await[0];
    assert!(
        status["lastError"].as_str().unwrap().starts_with("rate limited"),
        "{status}"
    );
    *hosted.limit.lock() = None;
    eventually("it is back", async || proxy.upstreams().await[0]["connected"] == true).await;
}

#[tokio::test]
async fn a_refused_poll_spares_the_node_clients_calls() {
    let (hosted, second) = (Hosted::start().await, node().await);
    let proxy = before(&[hosted.address.clone(), second.ws_url()], LONG).await;
    proxy.connected().await;
    let mut client = proxy.client().await;
    hosted.limit(POLL, Some("30"));
    eventually("a poll is refused", async || hosted.refused() > 0).await;
    // The refusal of the poll has taken effect when no other poll follows.
    while hosted.polls_in(10).await > 0 {}
    for n in 0..10 {
        assert!(client.ask(work(n)).await.contains("result"));
    }
    assert_eq!(hosted.asked("eth_getBalance"), 0);
    assert_eq!(asked(&second.handle(), "eth_getBalance"), 10);
    drop((hosted.node, second));
}

/// A client decides how often its own calls are refused; that must not affect the events of all clients.
#[tokio::test]
async fn refused_calls_hold_up_neither_the_polls_nor_the_gossip() {
    let hosted = Hosted::start().await;
    let proxy = before(std::slice::from_ref(&hosted.address), LONG).await;
    proxy.settled(&hosted.control).await;
    let mut heads = proxy.watcher().await;
    let mut pending = proxy.client().await;
    hosted.limit("eth_getBalance", Some("30"));
    for n in 0..3 {
        assert!(heads.ask(work(n)).await.contains("upstream is rate limited"));
        heads.expect(adopted(&[hosted.control.mine()])).await;
    }
    pending.subscribe(json!(["newPendingTransactions"])).await;
    let hash = hosted.control.add_pending().unwrap().hash();
    assert_eq!(pending.event().await.payload, json!(hash).to_string());
    assert_eq!(proxy.upstreams().await[0]["connects"], 1);
}

#[tokio::test]
async fn refused_gossip_is_asked_for_again_and_holds_up_no_polls() {
    let hosted = Hosted::start().await;
    let proxy = before(std::slice::from_ref(&hosted.address), LONG).await;
    proxy.settled(&hosted.control).await;
    let mut heads = proxy.watcher().await;
    let mut pending = proxy.client().await;
    hosted.limit("eth_newPendingTransactionFilter", Some("1"));
    pending.subscribe(json!(["newPendingTransactions"])).await;
    eventually("it is asked for again", async || hosted.refused() > 1).await;
    let refused = hosted.refused();
    hosted.limit("eth_newPendingTransactionFilter", Some("30"));
    eventually("it is refused for long", async || hosted.refused() > refused).await;
    heads.expect(adopted(&[hosted.control.mine()])).await;
}

/// `Retry-After` exceeds the silence timeout.
#[tokio::test]
async fn every_second_request_that_is_refused_ends_no_node() {
    let hosted = Hosted::start().await;
    let proxy = before(std::slice::from_ref(&hosted.address), Duration::from_secs(4)).await;
    proxy.settled(&hosted.control).await;
    let mut client = proxy.watcher().await;
    for n in 0..4 {
        hosted.limit("", Some("5"));
        let refused = hosted.refused();
        assert!(client.ask(work(n)).await.contains("upstream is rate limited"));
        eventually("a poll is refused, too", async || hosted.refused() > refused + 1).await;
        *hosted.limit.lock() = None;
        client.expect(adopted(&[hosted.control.mine()])).await;
    }
    assert_eq!(proxy.upstreams().await[0]["connects"], 1);
}

/// Requests of a WebSocket handshake are retried, too: a new connection would only need more of them.
#[tokio::test]
async fn a_handshake_that_is_refused_for_a_limit_goes_on_later() {
    let node = node().await;
    let control = node.handle();
    for method in ["eth_chainId", "eth_getBlockByNumber", "eth_subscribe"] {
        control.set_faults(|faults| {
            faults.failing_methods = vec![method.into()];
            faults.failure = (-32005, "rate limited".into());
        });
        let opened = control.stats().connections_opened;
        let before = asked(&control, method);
        let proxy = Proxy::start(&[node.ws_url()], |config| config.node.lanes = 1).await;
        eventually("it is asked again", async || asked(&control, method) > before + 1).await;
        control.set_faults(|faults| faults.failing_methods.clear());
        proxy.ready().await;
        assert_eq!(control.stats().connections_opened, opened + 1, "{method}");
    }
}

/// The node was taken for one without such subscriptions, until the next connection.
#[tokio::test]
async fn a_subscription_to_pending_transactions_that_is_refused_for_a_limit_is_asked_for_again() {
    let rig = Rig::start().await;
    rig.control.set_faults(|faults| {
        faults.failing_methods = vec!["eth_subscribe".into()];
        faults.failure = (-32005, "rate limited".into());
    });
    let mut client = rig.client().await;
    client.subscribe(json!(["newPendingTransactions"])).await;
    rig.control.set_faults(|faults| faults.failing_methods.clear());
    eventually("it stands", async || {
        rig.control.stats().subscriptions.contains_key("newPendingTransactions")
    })
    .await;
    let hash = rig.control.add_pending().unwrap().hash();
    assert_eq!(client.event().await.payload, json!(hash).to_string());
}
