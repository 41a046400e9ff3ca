//! The two connections to a node: faults on the one for calls affect neither the stream nor other clients.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::{Value, json};

use crate::bystander::Bystander;
use crate::harness::{Client, Proxy, eventually};
use crate::scripted::{Answer, Made, Mine, Scripted};

fn request(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

async fn lanes(proxy: &Proxy) -> Value {
    proxy.upstreams().await[0]["lanes"].clone()
}

async fn has_lanes(proxy: &Proxy, expected: &str) {
    eventually("its lanes", async || lanes(proxy).await == expected).await;
}

/// Starts a node that closes the connection on calls to `0xdead`, and on transactions of these bytes.
async fn easily_broken() -> Scripted {
    let node = Scripted::start().await;
    node.grow(3);
    node.answer("eth_call", |ask| match ask.params[0]["to"] == "0xdead" {
        true => Answer::Close,
        false => json!("0x1").into(),
    });
    node.answer("eth_gasPrice", |_| json!("0x3").into());
    for method in ["eth_sendRawTransaction", "eth_oddity"] {
        node.answer(method, |ask| match ask.params[0] == "0xdead" {
            true => Answer::Close,
            false => json!("0x2").into(),
        });
    }
    node
}

fn poison(number: usize) -> Value {
    request("eth_call", &json!([{"to": "0xdead", "nonce": number}, "latest"]))
}

fn harmless() -> Value {
    request("eth_call", &json!([{"to": "0xbeef"}, "latest"]))
}

/// Returns the answer to a call; other messages are kept.
async fn ask(client: &mut Client, call: Value) -> String {
    client.ask(call.to_string()).await
}

#[tokio::test]
async fn a_call_that_breaks_connections_costs_its_account_alone() {
    let node = easily_broken().await;
    let proxy = node.proxy(|_| {}).await;
    has_lanes(&proxy, "two").await;
    let bystander = Bystander::join(&proxy).await;
    let mut other = proxy.client().await;
    let mut attacker = Client::connect_from("127.0.0.7", proxy.address).await;
    let heads = attacker.subscribe(json!(["newHeads"])).await;
    // Another client's call is in flight on the same connection.
    node.hold("eth_gasPrice");
    other.send(request("eth_gasPrice", &json!([])).to_string()).await;
    eventually("it is under way", async || node.calls("eth_gasPrice") == 1).await;
    attacker.send(poison(1).to_string()).await;
    eventually("it is asked again", async || node.calls("eth_gasPrice") == 2).await;
    node.release("eth_gasPrice");
    let answer = other.next().await;
    assert!(answer.contains("result"), "{answer}");
    let why = attacker.next().await;
    assert!(why.contains("-32603") && why.contains("closes its connection"), "{why}");
    // From now on the attacker is refused, and no other client is.
    for number in 1..4 {
        let refused = ask(&mut attacker, poison(number)).await;
        assert!(
            refused.contains("-32005") && refused.contains("retryAfterMs"),
            "{refused}"
        );
        let answer = ask(&mut other, harmless()).await;
        assert!(answer.contains("\"0x1\""), "{answer}");
    }
    // The call that breaks connections is sent for no client.
    let asked = node.calls("eth_call");
    let mut third = Client::connect_from("127.0.0.8", proxy.address).await;
    let refused = ask(&mut third, poison(1)).await;
    assert!(refused.contains("-32603"), "{refused}");
    assert_eq!(node.calls("eth_call"), asked);
    // The attacker's subscriptions go on, as all others do.
    let made = node.mine(Mine::default());
    let event = attacker.event().await;
    assert_eq!(
        (event.subscription.clone(), event.json()["hash"].clone()),
        (heads, json!(made.hash()))
    );
    bystander.saw_only(&[made]).await;
    assert_eq!(node.calls("eth_subscribe"), 1, "the stream's connection never broke");
}

/// A transaction that no node has is sent once more, alone: a second loss shows that it breaks connections.
#[tokio::test]
async fn a_transaction_that_breaks_connections_costs_its_account_alone() {
    let node = easily_broken().await;
    let proxy = node.proxy(|_| {}).await;
    has_lanes(&proxy, "two").await;
    let bystander = Bystander::join(&proxy).await;
    let mut attacker = Client::connect_from("127.0.0.7", proxy.address).await;
    let mut other = proxy.client().await;
    let bad = request("eth_sendRawTransaction", &json!(["0xdead"]));
    let found = ask(&mut attacker, bad.clone()).await;
    assert!(found.contains("closes its connection"), "{found}");
    assert_eq!(node.calls("eth_sendRawTransaction"), 3);
    for call in [harmless(), bad] {
        let refused = ask(&mut attacker, call).await;
        assert!(refused.contains("-32005"), "{refused}");
    }
    let good = request("eth_sendRawTransaction", &json!(["0xbeef"]));
    let sent = ask(&mut other, good).await;
    assert!(sent.contains("\"0x2\""), "{sent}");
    assert_eq!(node.calls("eth_sendRawTransaction"), 4);
    let made = node.mine(Mine::default());
    bystander.saw_only(&[made]).await;
}

/// Parameters without a transaction's hash cannot be looked for, so the account's next send goes on a connection of its
/// own.
#[tokio::test]
async fn junk_that_breaks_connections_is_found_at_the_second_time() {
    let node = easily_broken().await;
    let proxy = node.proxy(|_| {}).await;
    has_lanes(&proxy, "two").await;
    let mut attacker = Client::connect_from("127.0.0.7", proxy.address).await;
    let junk = || request("eth_sendRawTransaction", &json!(["0xdead", null]));
    let lost = ask(&mut attacker, junk()).await;
    assert!(lost.contains("connection lost"), "{lost}");
    has_lanes(&proxy, "two").await;
    let opened = node.connections().1;
    let found = ask(&mut attacker, junk()).await;
    assert!(found.contains("closes its connection"), "{found}");
    assert_eq!(
        node.connections().1,
        opened + 2,
        "nothing but connections of its own broke"
    );
}

/// Calls of one account that wait while another of them is found to break connections are refused, not sent.
#[tokio::test]
async fn many_calls_that_break_connections_break_few() {
    let node = easily_broken().await;
    let proxy = node.proxy(|_| {}).await;
    has_lanes(&proxy, "two").await;
    let bystander = Bystander::join(&proxy).await;
    let mut attacker = Client::connect_from("127.0.0.7", proxy.address).await;
    let calls = 60;
    for number in 0..calls {
        attacker.send(poison(number).to_string()).await;
    }
    let mut refused = 0;
    for _ in 0..calls {
        refused += usize::from(attacker.next().await.contains("-32005"));
    }
    assert!(refused >= calls / 2, "{refused}");
    assert!(node.calls("eth_call") <= calls / 2, "{}", node.calls("eth_call"));
    let made = node.mine(Mine::default());
    bystander.saw_only(&[made]).await;
}

/// Answers to a transaction that was in flight when the connection broke, by what the nodes then report of it.
#[tokio::test]
async fn a_transaction_that_was_lost_is_looked_for_and_sent_again() {
    // The node has the transaction before, and after the second send; its answer then; times sent; the client's
    // answer.
    for (before, after, again, sent, expect) in [
        (true, true, "", 1, "HASH"),
        (false, false, "", 2, "\"0x2\""),
        (false, false, "already known", 2, "HASH"),
        (false, true, "nonce too low: next nonce 5, tx nonce 4", 2, "HASH"),
        (false, false, "insufficient funds", 2, "insufficient funds"),
    ] {
        let node = easily_broken().await;
        let attempts = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = attempts.clone();
        let case = format!("{before} {after} {again}");
        node.answer("eth_sendRawTransaction", move |_| {
            match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Answer::Close,
                _ if again.is_empty() => json!("0x2").into(),
                _ => Answer::Error(-32000, again.into(), Value::Null),
            }
        });
        node.answer("eth_getTransactionByHash", move |ask| {
            let has = match attempts.load(std::sync::atomic::Ordering::Relaxed) {
                1 => before,
                _ => after,
            };
            has.then(|| json!({"hash": ask.params[0]}))
                .unwrap_or(json!(null))
                .into()
        });
        let proxy = node.proxy(|_| {}).await;
        has_lanes(&proxy, "two").await;
        let mut client = proxy.client().await;
        let answer = ask(&mut client, request("eth_sendRawTransaction", &json!(["0x02c20102"]))).await;
        let hash = alloy_primitives::keccak256([2, 0xc2, 1, 2]).to_string();
        assert!(answer.contains(&expect.replace("HASH", &hash)), "{case}: {answer}");
        assert_eq!(node.calls("eth_sendRawTransaction"), sent, "{case}");
    }
}

/// A call that may have changed something is not sent again, so after one is lost the account's next such call goes
/// on a connection of its own.
#[tokio::test]
async fn a_change_that_breaks_connections_is_found_at_the_second_time() {
    let node = easily_broken().await;
    let proxy = node.proxy(|_| {}).await;
    has_lanes(&proxy, "two").await;
    let bystander = Bystander::join(&proxy).await;
    let mut attacker = Client::connect_from("127.0.0.7", proxy.address).await;
    let bad = || request("eth_oddity", &json!(["0xdead"]));
    let lost = ask(&mut attacker, bad()).await;
    assert!(lost.contains("-32603") && lost.contains("connection lost"), "{lost}");
    // A harmless call among the suspects is sent, once.
    let good = request("eth_oddity", &json!(["0xbeef"]));
    let sent = ask(&mut attacker, good).await;
    assert!(sent.contains("\"0x2\""), "{sent}");
    has_lanes(&proxy, "two").await;
    let opened = node.connections().1;
    let found = ask(&mut attacker, bad()).await;
    assert!(found.contains("closes its connection"), "{found}");
    assert_eq!(
        node.connections().1,
        opened + 1,
        "nothing but the connection of its own broke"
    );
    let refused = ask(&mut attacker, harmless()).await;
    assert!(refused.contains("-32005"), "{refused}");
    assert_eq!(node.calls("eth_oddity"), 3);
    let made = node.mine(Mine::default());
    bystander.saw_only(&[made]).await;
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_nobody_elses() {
    let node = easily_broken().await;
    node.answer("eth_getCode", |_| json!("0".repeat(2 << 20)).into());
    let proxy = node
        .proxy(|config| config.node.max_message_bytes = ByteSize::mib(1))
        .await;
    has_lanes(&proxy, "two").await;
    let bystander = Bystander::join(&proxy).await;
    let (mut one, mut two) = (proxy.client().await, proxy.client().await);
    let mut attacker = Client::connect_from("127.0.0.7", proxy.address).await;
    let long = || request("eth_getCode", &json!(["0x5a", "latest"]));
    node.hold("eth_sendRawTransaction");
    node.hold("eth_gasPrice");
    one.send(request("eth_sendRawTransaction", &json!(["0xbeef"])).to_string())
        .await;
    two.send(request("eth_gasPrice", &json!([])).to_string()).await;
    eventually("both are under way", async || {
        node.calls("eth_sendRawTransaction") + node.calls("eth_gasPrice") == 2
    })
    .await;
    let answer = ask(&mut attacker, long()).await;
    assert!(
        answer.contains("-32003") && answer.contains("response too large"),
        "{answer}"
    );
    node.release("eth_gasPrice");
    eventually("it is sent again", async || node.calls("eth_sendRawTransaction") == 2).await;
    node.release("eth_sendRawTransaction");
    let (sent, answer) = (one.next().await, two.next().await);
    assert!(sent.contains("\"0x2\""), "{sent}");
    assert!(answer.contains("result"), "{answer}");
    // The next long answer breaks a connection of its own.
    has_lanes(&proxy, "two").await;
    let opened = node.connections().1;
    let answer = ask(&mut attacker, long()).await;
    assert!(answer.contains("response too large"), "{answer}");
    assert_eq!(node.connections().1, opened + 1);
    let answer = ask(&mut attacker, harmless()).await;
    assert!(
        answer.contains("\"0x1\""),
        "it goes on, on connections of its own: {answer}"
    );
    let made = node.mine(Mine::default());
    bystander.saw_only(&[made]).await;
}

/// A node restarts, twice, with a call in flight that is not to blame.
#[tokio::test]
async fn a_node_that_restarts_marks_no_call() {
    let node = easily_broken().await;
    let proxy = node.proxy(|_| {}).await;
    has_lanes(&proxy, "two").await;
    let mut client = proxy.client().await;
    node.hold("eth_gasPrice");
    client.send(request("eth_gasPrice", &json!([])).to_string()).await;
    for asked in 1..3 {
        eventually("it is under way", async || node.calls("eth_gasPrice") == asked).await;
        node.disconnect();
    }
    node.release("eth_gasPrice");
    let answer = client.next().await;
    assert!(answer.contains("connection lost"), "{answer}");
    has_lanes(&proxy, "two").await;
    let answer = ask(&mut client, request("eth_gasPrice", &json!([]))).await;
    assert!(answer.contains("result"), "{answer}");
}

#[tokio::test]
async fn a_node_that_allows_one_connection_gets_one() {
    let node = easily_broken().await;
    node.limit_connections(1);
    let proxy = node.proxy(|_| {}).await;
    has_lanes(&proxy, "one").await;
    let bystander = Bystander::join(&proxy).await;
    let mut client = proxy.watcher().await;
    let answer = ask(&mut client, harmless()).await;
    assert!(answer.contains("\"0x1\""), "{answer}");
    let made = node.mine(Mine::logs(2));
    client.expect(made.adopted()).await;
    bystander.saw_only(&[made]).await;
    assert_eq!(node.calls("eth_subscribe"), 1);
}

/// Behind a balancer the second connection may lead to another node.
#[tokio::test]
async fn a_second_connection_to_another_chain_or_an_older_block_is_not_used() {
    for (method, answer) in [("eth_chainId", json!("0x63")), ("eth_getBlockByHash", json!(null))] {
        let node = easily_broken().await;
        let right = node.head();
        node.answer(method, move |ask| {
            // The first connection is the stream's.
            match (ask.connection(), &ask.params[0]) {
                (Some(1), _) => ask.usual(),
                (_, hash) if method == "eth_getBlockByHash" && *hash != json!(right.hash()) => ask.usual(),
                _ => answer.clone().into(),
            }
        });
        let proxy = node
            .proxy(|config| config.node.silence_timeout = Duration::from_millis(500))
            .await;
        has_lanes(&proxy, "one").await;
        let mut client = proxy.client().await;
        let answer = ask(&mut client, harmless()).await;
        assert!(answer.contains("\"0x1\""), "{answer}");
        assert_eq!(node.calls("eth_subscribe"), 1, "{method}");
    }
}

#[tokio::test]
async fn one_lane_is_enough_where_it_is_set() {
    let node = easily_broken().await;
    let proxy = node.proxy(|config| config.node.lanes = 1).await;
    has_lanes(&proxy, "one").await;
    let mut client = proxy.client().await;
    let answer = ask(&mut client, harmless()).await;
    assert!(answer.contains("\"0x1\""), "{answer}");
    assert_eq!(node.connections(), (1, 1));
}

/// Long answers keep the connection for calls busy: the logs of a block do not wait behind them.
#[tokio::test]
async fn logs_overtake_calls_of_clients() {
    let node = Scripted::start().await;
    node.grow(3);
    // The connection for calls. The first request for logs goes there, and none is answered on it.
    let busy: Arc<OnceLock<Option<usize>>> = Arc::default();
    for method in ["eth_getLogs", "eth_getBlockReceipts"] {
        let busy = busy.clone();
        node.answer(method, move |ask| {
            match *busy.get_or_init(|| ask.connection()) == ask.connection() {
                true => Answer::Never,
                false => ask.usual(),
            }
        });
    }
    // About 0.8 MB arrives every 20 ms.
    node.answer("eth_getCode", |ask| {
        let wait = Duration::from_millis(20 * ask.count as u64);
        Answer::After(wait, Box::new(json!("0x".to_owned() + &"00".repeat(400 << 10)).into()))
    });
    let proxy = node.proxy(|_| {}).await;
    has_lanes(&proxy, "two").await;
    let bystander = Bystander::join(&proxy).await;
    let mut watcher = proxy.watcher().await;
    let others = (0..8).map(|number| {
        let (address, code) = (proxy.address, format!("{number:#042x}"));
        tokio::spawn(async move {
            let mut other = Client::connect_from(&format!("127.0.1.{}", number + 1), address).await;
            for account in 0..30 {
                let params = json!([format!("{code}{account:02x}")[..42], "latest"]);
                other.ask(request("eth_getCode", &params).to_string()).await;
            }
        })
    });
    let others: Vec<_> = others.collect();
    eventually("long answers come", async || node.calls("eth_getCode") > 4).await;
    let made = node.mine_many(2, 2);
    watcher.expect(made.iter().flat_map(Made::adopted).collect()).await;
    assert!(node.connections().1 > 2, "{:?}", node.connections());
    others.iter().for_each(|other| other.abort());
    bystander.saw_only(&made).await;
}
