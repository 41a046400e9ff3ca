//! Granted subscriptions are served, although nodes refuse, ignore or end them, or begin them by other methods.

use serde_json::{Value, json};

use crate::bystander::Bystander;
use crate::harness::{Client, eventually};
use crate::scripted::{Answer, Ask, Scripted, address, word};

const PENDING: &str = "newPendingTransactions";

fn notification(method: &str, id: &str, member: &str, value: &Value) -> String {
    json!({"jsonrpc": "2.0", "method": method, "params": {"subscription": id, member: value}}).to_string()
}

/// Makes an override of `eth_subscribe` that applies `answer` to pending transactions; `None` answers as usual.
fn pending(answer: impl Fn(&Ask<'_>) -> Option<Answer> + Send + Sync + 'static) -> impl Fn(&Ask<'_>) -> Answer {
    move |ask| {
        let own = (ask.params[0] == PENDING).then(|| answer(ask)).flatten();
        own.unwrap_or_else(|| ask.usual())
    }
}

#[tokio::test]
async fn a_refusal_of_pending_transactions_is_the_clients() {
    let words = r#"no "newPendingTransactions" subscription in eth namespace"#;
    for (code, message) in [
        (-32601, words),
        (-32000, "mempool disabled"),
        (-32602, "invalid argument 0"),
    ] {
        let node = Scripted::start().await;
        node.answer("eth_subscribe", pending(move |_| Some(Answer::error(code, message))));
        let proxy = node.proxy(|_| {}).await;
        let bystander = Bystander::join(&proxy).await;
        let mut client = proxy.client().await;
        for params in [
            json!([PENDING]),
            json!([PENDING, true]),
            json!(["alchemy_pendingTransactions", {"toAddress": address("to")}]),
        ] {
            let answer = client.call("eth_subscribe", params).await;
            assert_eq!(answer["error"], json!({"code": code, "message": message}));
        }
        assert_eq!(
            proxy
                .metric(r#"headwater_subscriptions{kind="newPendingTransactions"}"#)
                .await,
            0.0
        );
        let heads = node.mine_many(2, 0);
        bystander.saw_only(&heads).await;
    }
}

/// The node's answer is a result, but not a subscription id.
#[tokio::test]
async fn a_grant_without_an_id_is_a_refusal() {
    for grant in [json!(false), json!(null), json!(true), json!("")] {
        let node = Scripted::start().await;
        let answer = grant.clone();
        node.answer("eth_subscribe", move |ask| match ask.params[0] == "newHeads" {
            true => ask.usual(),
            false => answer.clone().into(),
        });
        let proxy = node.proxy(|_| {}).await;
        let bystander = Bystander::join(&proxy).await;
        let mut client = proxy.client().await;
        for params in [json!([PENDING]), json!([PENDING, true]), json!(["newVotes"])] {
            let answer = client.call("eth_subscribe", params).await;
            assert_eq!(answer["error"]["code"], -32603, "{grant} {answer}");
        }
        let heads = node.mine_many(2, 0);
        bystander.saw_only(&heads).await;
    }
}

/// Events with several transactions, and objects that are not transactions but name one.
#[tokio::test]
async fn pending_transactions_are_read_out_of_lists_and_objects() {
    let node = Scripted::start().await;
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut client = proxy.client().await;
    client.subscribe(json!([PENDING])).await;
    let hash = |name: &str| json!(word(name));
    node.announce(
        &json!([hash("a"), {"transactionHash": hash("b")}, null, hash("c")]),
        PENDING,
    );
    node.announce(&json!({"txHash": hash("d")}), PENDING);
    for name in ["a", "b", "c", "d"] {
        assert_eq!(client.event().await.json(), hash(name));
    }
    let heads = node.mine_many(1, 0);
    bystander.saw_only(&heads).await;
}

/// Over HTTP another method asks the node, and the client gets the same error.
#[tokio::test]
async fn a_node_without_a_filter_of_pending_transactions_refuses_them_over_http() {
    let node = Scripted::start().await;
    node.answer("eth_newPendingTransactionFilter", |_| {
        Answer::error(
            -32601,
            "the method eth_newPendingTransactionFilter does not exist/is not available",
        )
    });
    let proxy = node.polling_proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut client = proxy.client().await;
    for params in [json!([PENDING]), json!([PENDING, true])] {
        assert_eq!(client.call("eth_subscribe", params).await["error"]["code"], -32601);
    }
    let head = node.mine(crate::scripted::Mine::default());
    bystander.saw_only(&[head]).await;
}

#[tokio::test]
async fn a_node_that_does_not_answer_refuses_in_bounded_time() {
    let node = Scripted::start().await;
    node.answer("eth_subscribe", pending(|_| Some(Answer::Never)));
    let proxy = node
        .proxy(|config| config.node.request_timeout = std::time::Duration::from_millis(300))
        .await;
    let bystander = Bystander::join(&proxy).await;
    let mut client = proxy.client().await;
    let answer = client.call("eth_subscribe", json!([PENDING])).await;
    assert_eq!(answer["error"]["message"], "request timed out");
    let heads = node.mine_many(1, 0);
    bystander.saw_only(&heads).await;
}

/// The node refuses the flag for whole transactions, or accepts and ignores it.
#[tokio::test]
async fn whole_pending_transactions_are_fetched_where_the_node_announces_hashes() {
    let (from, to) = (address("from"), address("to"));
    for refused in [true, false] {
        let node = Scripted::start().await;
        node.answer(
            "eth_subscribe",
            pending(move |ask| {
                let has_flag = ask.params.as_array().is_some_and(|params| params.len() > 1);
                (refused && has_flag).then(|| Answer::error(-32602, "too many arguments, want at most 1"))
            }),
        );
        let whole = move |hash: &Value| json!({"hash": hash, "from": from, "to": to, "blockHash": null});
        node.answer("eth_getTransactionByHash", move |ask| whole(&ask.params[0]).into());
        let proxy = node.proxy(|_| {}).await;
        let bystander = Bystander::join(&proxy).await;
        let (mut hashes, mut full, mut filtered) = (proxy.client().await, proxy.client().await, proxy.client().await);
        full.subscribe(json!([PENDING, true])).await;
        filtered
            .subscribe(json!(["alchemy_pendingTransactions", {"toAddress": to}]))
            .await;
        hashes.subscribe(json!([PENDING])).await;
        for n in 0..5 {
            let hash = json!(word(&format!("{n}")));
            node.announce(&hash, PENDING);
            assert_eq!(hashes.event().await.json(), hash);
            assert_eq!(full.event().await.json(), whole(&hash));
            assert_eq!(filtered.event().await.json(), whole(&hash));
        }
        eventually("one serves both forms", async || node.subscribed(PENDING) == 1).await;
        let heads = node.mine_many(1, 0);
        bystander.saw_only(&heads).await;
        drop((hashes, full, filtered));
        eventually("none is left", async || node.subscribed(PENDING) == 0).await;
    }
}

#[tokio::test]
async fn subscriptions_that_the_node_ends_are_begun_anew() {
    let node = Scripted::start().await;
    node.answer("eth_getTransactionByHash", |_| json!(null).into());
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut client = proxy.client().await;
    let kinds = [json!([PENDING]), json!([PENDING, true]), json!(["newVotes"])];
    for params in &kinds {
        client.subscribe(params.clone()).await;
    }
    let lagged = json!({"code": -32020, "message": "subscription lagged"});
    for kind in [PENDING, "newVotes", "newHeads"] {
        node.end_subscriptions(kind, &lagged);
    }
    eventually("all stand", async || {
        node.subscribed(PENDING) == 2 && node.subscribed("newVotes") == 1 && node.subscribed("newHeads") == 1
    })
    .await;
    node.announce(&json!(word("p")), PENDING);
    assert_eq!(client.event().await.json(), json!(word("p")));
    node.announce(&json!(1), "newVotes");
    loop {
        // The hash arrives in both subscriptions.
        if client.event().await.json() == 1 {
            break;
        }
    }
    let heads = node.mine_many(3, 0);
    bystander.saw_only(&heads).await;
    // If the node refuses the new subscription, the subscribed clients are closed.
    node.answer("eth_subscribe", |_| Answer::error(-32601, "no more"));
    node.end_subscriptions("newVotes", &lagged);
    let (_, code, _) = client.closed().await;
    assert_eq!(code, 1012);
}

/// A kind that the node always ends at once is not served: clients get the node's error, after a few attempts.
#[tokio::test]
async fn a_subscription_that_ends_at_once_each_time_is_given_up() {
    let node = Scripted::start().await;
    node.answer("eth_subscribe", |ask| {
        if ask.params[0] == "newVotes" {
            let (id, end) = (
                json!(format!("{:#x}", 0xe000 + ask.count)),
                json!({"code": 7, "message": "full"}),
            );
            let answer = json!({"jsonrpc": "2.0", "id": ask.id, "result": id}).to_string();
            ask.node
                .send_all(&notification("eth_subscription", id.as_str().unwrap(), "error", &end));
            return Answer::Raw(answer);
        }
        ask.usual()
    });
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut client = proxy.client().await;
    let before = node.calls("eth_subscribe");
    let answer = client.call("eth_subscribe", json!(["newVotes"])).await;
    assert_eq!(answer["error"], json!({"code": 7, "message": "full"}));
    assert!(node.calls("eth_subscribe") - before <= 5);
    let heads = node.mine_many(1, 0);
    bystander.saw_only(&heads).await;
}

#[tokio::test]
async fn a_method_that_subscribes_is_passed_under_its_own_name_or_refused_and_never_forwarded() {
    let node = Scripted::start().await;
    let own = "reth_subscribeChainNotifications";
    node.answer(own, |_| json!("0xaa01").into());
    node.answer("reth_unsubscribeChainNotifications", |_| json!(true).into());
    let proxy = node
        .proxy(|config| config.subscriptions.passthrough = vec!["reth_*".to_owned()])
        .await;
    let bystander = Bystander::join(&proxy).await;
    let (mut one, mut two) = (proxy.client().await, proxy.client().await);
    let mut ids = Vec::new();
    for client in [&mut one, &mut two] {
        let answer = client.call(own, json!([])).await;
        ids.push(answer["result"].as_str().unwrap().to_owned());
    }
    assert_eq!(node.calls(own), 1, "one at the node for all");
    for (n, name) in [own, "reth_subscriptionChainNotifications"].into_iter().enumerate() {
        node.send_all(&notification(name, "0xaa01", "result", &json!({"n": n})));
        for (client, id) in [(&mut one, &ids[0]), (&mut two, &ids[1])] {
            let message: Value = serde_json::from_str(&client.next().await).unwrap();
            let params = json!({"subscription": id, "result": {"n": n}});
            assert_eq!(message, json!({"jsonrpc": "2.0", "method": name, "params": params}));
        }
    }
    for (client, id) in [(&mut one, &ids[0]), (&mut two, &ids[1])] {
        let answer = client.call("reth_unsubscribeChainNotifications", json!([id])).await;
        assert_eq!(answer["result"], true);
    }
    eventually("it is ended", async || {
        node.params("reth_unsubscribeChainNotifications") == [json!(["0xaa01"])]
    })
    .await;
    // Methods that are not listed, or that no method ends, are refused; over HTTP all are.
    for method in [
        "debug_subscribeBlocks",
        "state_subscribeStorage",
        "eth_subscribeBundles",
        "logsSubscribe",
        "subscribe",
        "chainHead_v1_follow",
    ] {
        let answer = one.call(method, json!([])).await;
        assert_eq!(answer["error"]["code"], -32601, "{method}");
        let words = answer["error"]["message"].as_str().unwrap();
        assert!(
            words.starts_with(&format!("the method {method} does not exist/is not available")),
            "{words}"
        );
        assert_eq!(node.calls(method), 0, "{method}");
    }
    for method in [own, "debug_subscribeBlocks", "logsSubscribe"] {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": []});
        let answer: Value = serde_json::from_str(&proxy.post(request.to_string()).await).unwrap();
        assert_eq!(answer["error"]["code"], -32601, "{method}");
    }
    assert_eq!(node.calls(own), 1);
    let heads = node.mine_many(1, 0);
    bystander.saw_only(&heads).await;
}

/// A call began a stream that no client owns.
#[tokio::test]
async fn a_stream_that_nobody_owns_is_ended_and_counted() {
    let node = Scripted::start().await;
    node.answer("eth_watch", |_| json!("0xbb").into());
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut client = proxy.client().await;
    client.call("eth_watch", json!([])).await;
    for n in 0..20 {
        node.send_all(&notification("eth_subscription", "0xbb", "result", &json!(n)));
    }
    eventually("they are counted", async || {
        proxy
            .metric("headwater_upstream_unknown_subscription_events_total")
            .await
            == 20.0
    })
    .await;
    eventually("it is ended", async || {
        node.params("eth_unsubscribe") == [json!(["0xbb"])]
    })
    .await;
    let heads = node.mine_many(2, 0);
    bystander.saw_only(&heads).await;
    assert_eq!(node.calls("eth_unsubscribe"), 1);
}

/// Notifications are accepted under any method name.
#[tokio::test]
async fn an_event_is_an_event_whatever_its_method_is_called() {
    let node = Scripted::start().await;
    let proxy = node.proxy(|_| {}).await;
    let bystander = Bystander::join(&proxy).await;
    let mut client: Client = proxy.client().await;
    client.subscribe(json!([PENDING])).await;
    for (n, name) in ["eth_subscription", "eth_pending", "x", ""].into_iter().enumerate() {
        let hash = json!(word(&n.to_string()));
        node.notify(PENDING, |id| notification(name, id, "result", &hash));
        assert_eq!(client.event().await.json(), hash, "{name}");
    }
    let heads = node.mine_many(1, 0);
    bystander.saw_only(&heads).await;
}
