//! Subscriptions of kinds that headwater does not know: they are passed to the node, one there for all equal ones.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use headwater::config::{Config, typed};
use headwater::devnet::{Control, Devnet};
use headwater::telemetry::Metrics;
use headwater::upstream::{Channels, NodeSubscription, Passthrough, Pool, Wanted};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, connect_async};

use crate::harness::{Client, Proxy, Rig, eventually, node, take_away};

/// Returns the params of a subscription of the node's own kind.
fn numbers(of: &Value) -> Value {
    json!(["blockNumbers", of])
}

/// Returns the number of such subscriptions at the node.
fn at_node(node: &Control) -> usize {
    node.stats().subscriptions.get("blockNumbers").copied().unwrap_or(0)
}

fn calls(node: &Control, method: &str) -> u64 {
    node.stats().calls.get(method).copied().unwrap_or(0)
}

/// Returns the node's event, byte for byte.
fn received(number: u64, of: &Value) -> String {
    format!(r#"{{"number": "{number:#x}","of":{of}}}"#)
}

/// Reads up to this event. The event of the number before may come first, if the client got it on subscribing.
async fn until(client: &mut Client, number: u64, of: &Value) {
    let (earlier, wanted) = (received(number - 1, of), received(number, of));
    loop {
        let payload = client.event().await.payload;
        if payload == wanted {
            return;
        }
        assert_eq!(payload, earlier);
    }
}

/// Makes a call that must fail; returns its error object.
async fn refused(client: &mut Client, method: &str, params: Value) -> Value {
    let answer = client.call(method, params).await;
    assert!(answer["error"].is_object(), "{answer}");
    answer["error"].clone()
}

#[tokio::test]
async fn one_at_the_node_serves_all_who_ask_for_the_same() {
    let rig = Rig::start().await;
    let of = json!({"a": 1, "b": [2]});
    let mut first = rig.client().await;
    let id = first.subscribe(numbers(&of)).await;
    let now = rig.control.head().number();
    // The node sends an event right behind its answer: the event is not lost.
    let event = first.event().await;
    assert_eq!((event.payload, event.subscription), (received(now, &of), id.clone()));
    let before = calls(&rig.control, "eth_subscribe");
    let mut second = rig.client().await;
    let text = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":[ "blockNumbers", {"b":[2],"a":1} ]}"#;
    assert!(second.ask(text).await.contains("result"));
    let third = second.subscribe(numbers(&of)).await;
    assert_eq!(calls(&rig.control, "eth_subscribe"), before);
    assert_eq!(at_node(&rig.control), 1);
    let mut other = rig.client().await;
    other.subscribe(numbers(&json!(7))).await;
    assert_eq!(at_node(&rig.control), 2);
    let block = rig.control.mine();
    assert_eq!(first.event().await.payload, received(block.number(), &of));
    let both = second.events(2).await;
    assert!(both.iter().all(|event| event.payload == received(block.number(), &of)));
    assert_ne!(both[0].subscription, both[1].subscription);
    until(&mut other, block.number(), &json!(7)).await;
    // The node's subscription ends with the last client's.
    assert_eq!(first.unsubscribe(&id).await["result"], true);
    assert_eq!(second.unsubscribe(&third).await["result"], true);
    drop(other);
    eventually("the other is ended", async || at_node(&rig.control) == 1).await;
    rig.control.mine();
    assert_eq!(second.event().await.payload, received(block.number() + 1, &of));
    drop(second);
    eventually("nobody wants any", async || at_node(&rig.control) == 0).await;
    assert_eq!(rig.metric(r#"headwater_subscriptions{kind="passthrough"}"#).await, 0.0);
}

#[tokio::test]
async fn what_the_node_refuses_is_refused_in_its_own_words() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let before = calls(&rig.control, "unknown");
    let unknown = refused(&mut client, "eth_subscribe", json!(["newVotes"])).await;
    let words = r#"no "newVotes" subscription in eth namespace"#;
    assert_eq!(unknown, json!({"code": -32601, "message": words}));
    assert_eq!(calls(&rig.control, "unknown"), before + 1, "the node was asked");
    let many = refused(&mut client, "eth_subscribe", json!(["blockNumbers", 1, 2])).await;
    assert_eq!(many["message"], "too many arguments, want at most 2");
    rig.control.set_faults(|faults| {
        faults.failing_methods = vec!["eth_subscribe".to_owned()];
        faults.failure = (-39001, "not today".to_owned());
    });
    let failed = refused(&mut client, "eth_subscribe", numbers(&json!(1))).await;
    assert_eq!(failed, json!({"code": -39001, "message": "not today"}));
    rig.control.set_faults(|faults| faults.failing_methods = Vec::new());
    // The node is asked again; a refused subscription is not counted.
    eventually("the node is asked again", async || {
        client.call("eth_subscribe", numbers(&json!(1))).await["result"].is_string()
    })
    .await;
    assert_eq!(at_node(&rig.control), 1);
    assert_eq!(rig.metric(r#"headwater_subscriptions{kind="passthrough"}"#).await, 1.0);
}

#[tokio::test]
async fn after_a_failover_it_is_made_anew_and_where_that_is_refused_its_clients_are_told() {
    let (first, second) = (node().await, node().await);
    let (one, two) = (first.handle(), second.handle());
    two.set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[first.ws_url(), second.ws_url()], |config| {
        config.node.failback_after = std::time::Duration::from_secs(3_600);
    })
    .await;
    proxy.settled(&one).await;
    two.set_faults(|faults| faults.refuse_connections = false);
    proxy.connected().await;
    let of = json!("x");
    let mut client = proxy.client().await;
    let id = client.subscribe(numbers(&of)).await;
    assert_eq!(client.event().await.subscription, id);
    one.set_faults(|faults| faults.refuse_connections = true);
    one.disconnect();
    eventually("it is at the second", async || at_node(&two) == 1).await;
    let block = two.mine();
    loop {
        // The second node sends its present number at once, too.
        let event = client.event().await;
        assert_eq!(event.subscription, id, "its id stays");
        if event.payload == received(block.number(), &of) {
            break;
        }
    }
    one.set_faults(|faults| {
        faults.refuse_connections = false;
        faults.no_own_kind = true;
    });
    let mut bystander = proxy.watcher().await;
    proxy.connected().await;
    two.set_faults(|faults| faults.refuse_connections = true);
    two.disconnect();
    let (_, code, reason) = client.closed().await;
    assert_eq!(code, 1012);
    assert!(reason.contains("does not serve one of your subscriptions"), "{reason}");
    // No other client is closed.
    bystander.forget_early();
    assert!(bystander.call("eth_chainId", json!([])).await["result"].is_string());
}

#[tokio::test]
async fn the_same_node_serves_it_again_after_its_connection_was_lost() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let of = Value::Null;
    client.subscribe(json!(["blockNumbers"])).await;
    let now = rig.control.head().number();
    assert_eq!(client.event().await.payload, received(now, &of));
    rig.control.disconnect();
    assert_eq!(
        client.event().await.payload,
        received(now, &of),
        "what it tells at first"
    );
    let block = rig.control.mine();
    assert_eq!(client.event().await.payload, received(block.number(), &of));
    assert_eq!(at_node(&rig.control), 1);
}

#[tokio::test]
async fn over_http_there_are_none() {
    let node = node().await;
    let proxy = Proxy::start(&[node.http_url()], |_| {}).await;
    proxy.settled(&node.handle()).await;
    let mut client = proxy.client().await;
    let why = refused(&mut client, "eth_subscribe", numbers(&json!(1))).await;
    assert_eq!(why, json!({"code": -32601, "message": "notifications not supported"}));
}

#[tokio::test]
async fn where_no_node_is_connected_nobody_can_say() {
    let node = node().await;
    node.handle().set_faults(|faults| faults.refuse_connections = true);
    let proxy = Proxy::start(&[node.ws_url()], |config| {
        config.calls.head_wait_timeout = std::time::Duration::from_millis(50);
    })
    .await;
    let mut client = proxy.client().await;
    let why = refused(&mut client, "eth_subscribe", numbers(&json!(1))).await;
    assert_eq!(why, json!({"code": -32603, "message": "upstream unavailable"}));
}

#[tokio::test]
async fn different_ones_up_to_the_limit_and_not_one_more() {
    let rig = Rig::with(|config| config.subscriptions.max_passthrough = 8).await;
    let mut client = rig.client().await;
    let first = client.subscribe(numbers(&json!(1))).await;
    client.subscribe(numbers(&json!(2))).await;
    // An equal subscription does not count again.
    client.subscribe(numbers(&json!(2))).await;
    let why = refused(&mut client, "eth_subscribe", numbers(&json!(3))).await;
    assert_eq!(
        why,
        json!({
            "code": -32005,
            "message": "limit exceeded: 2 different subscriptions of this client are passed through to the node (a quarter of \
                subscriptions.max_passthrough)",
        })
    );
    assert_eq!(at_node(&rig.control), 2);
    client.unsubscribe(&first).await;
    client.subscribe(numbers(&json!(3))).await;
    // A kind that the node refuses takes no place.
    client.call("eth_subscribe", json!(["newVotes"])).await;
}

#[tokio::test]
async fn only_kinds_that_are_listed_are_passed_and_what_is_denied_is_denied() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let own = json!(["blockNumbers"]);
    let words = |namespace: &str| {
        let message = format!(r#"no "blockNumbers" subscription in {namespace} namespace"#);
        json!({"code": -32601, "message": message})
    };
    for namespace in ["chain", "debug", "admin"] {
        let method = format!("{namespace}_subscribe");
        assert_eq!(refused(&mut client, &method, own.clone()).await, words(namespace));
    }
    let before = calls(&rig.control, "eth_subscribe");
    assert_eq!(at_node(&rig.control), 0);
    // Notifications of another namespace have its own method name.
    let listed = Rig::with(|config| {
        config.subscriptions.passthrough = vec!["chain_blockNumbers".to_owned(), "debug_*".to_owned()];
    })
    .await;
    let mut client = listed.client().await;
    let answer = client.call("chain_subscribe", own.clone()).await;
    let id = answer["result"].as_str().unwrap().to_owned();
    let now = listed.control.head().number();
    let expected = |number| {
        let params = format!(
            r#"{{"subscription":"{id}","result":{}}}"#,
            received(number, &Value::Null)
        );
        format!(r#"{{"jsonrpc":"2.0","method":"chain_subscription","params":{params}}}"#)
    };
    assert_eq!(client.next().await, expected(now));
    listed.control.mine();
    assert_eq!(client.next().await, expected(now + 1));
    assert_eq!(refused(&mut client, "eth_subscribe", own.clone()).await, words("eth"));
    // methods.denied takes precedence.
    assert_eq!(
        refused(&mut client, "debug_subscribe", own.clone()).await,
        words("debug")
    );
    assert_eq!(client.call("chain_unsubscribe", json!([id])).await["result"], true);
    eventually("it is ended", async || at_node(&listed.control) == 0).await;
    assert_eq!(calls(&rig.control, "eth_subscribe"), before);
    // With an empty list nothing is passed.
    let none = Rig::with(|config| config.subscriptions.passthrough = Vec::new()).await;
    let mut client = none.client().await;
    assert_eq!(refused(&mut client, "eth_subscribe", own).await, words("eth"));
    assert_eq!(calls(&none.control, "unknown"), 0);
}

/// Such a request costs a client as much as a call, and counts toward its calls in flight.
#[tokio::test]
async fn who_asks_again_and_again_is_refused_as_for_any_call() {
    let rig = Rig::with(|config| {
        config.limits.requests_per_second = 1;
        config.limits.request_burst = 5;
        config.limits.max_batch = 5;
    })
    .await;
    let mut client = rig.client().await;
    let before = calls(&rig.control, "unknown");
    let mut limited = 0;
    for _ in 0..20 {
        let why = refused(&mut client, "eth_subscribe", json!(["newVotes"])).await;
        limited += u32::from(why["code"] == -32005);
    }
    let asked = calls(&rig.control, "unknown") - before;
    assert!(limited >= 10 && asked <= 20 - u64::from(limited), "{limited} {asked}");
}

/// Rule of a [`Front`] for a request: `None` forwards it to the node, otherwise these messages are sent back.
type Rule = dyn FnMut(&Value) -> Option<Vec<Value>> + Send;

/// A proxy between headwater and a node that answers some requests itself.
struct Front {
    address: String,
    rule: Arc<Mutex<Box<Rule>>>,
    /// Requests that were not forwarded to the node, oldest first.
    kept: Arc<Mutex<Vec<Value>>>,
    say: broadcast::Sender<Value>,
}

impl Front {
    async fn start(node: &Devnet) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = Self {
            address: format!("ws://{}", listener.local_addr().unwrap()),
            rule: Arc::new(Mutex::new(Box::new(|_| None))),
            kept: Arc::default(),
            say: broadcast::Sender::new(16),
        };
        let (rule, kept, said, target) = (front.rule.clone(), front.kept.clone(), front.say.clone(), node.ws_url());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (rule, kept, mut said, target) = (rule.clone(), kept.clone(), said.subscribe(), target.clone());
                tokio::spawn(async move {
                    let mut near = accept_async(stream).await.unwrap();
                    let Ok((mut far, _)) = connect_async(target).await else {
                        return;
                    };
                    loop {
                        tokio::select! {
                            message = near.next() => {
                                let Some(Ok(message)) = message else { return };
                                let question: Value = match &message {
                                    Message::Text(text) => serde_json::from_str(text).unwrap(),
                                    _ => Value::Null,
                                };
                                let verdict = rule.lock()(&question);
                                let Some(answers) = verdict else {
                                    drop(far.send(message).await);
                                    continue;
                                };
                                for answer in answers {
                                    drop(near.send(Message::text(answer.to_string())).await);
                                }
                                kept.lock().push(question);
                            }
                            message = far.next() => {
                                let Some(Ok(message)) = message else { return };
                                drop(near.send(message).await);
                            }
                            Ok(message) = said.recv() => drop(near.send(Message::text(message.to_string())).await),
                        }
                    }
                });
            }
        });
        front
    }

    fn rule(&self, rule: impl FnMut(&Value) -> Option<Vec<Value>> + Send + 'static) {
        *self.rule.lock() = Box::new(rule);
    }

    fn kept(&self) -> Vec<Value> {
        self.kept.lock().clone()
    }

    /// Sends a message as if from the node.
    fn say(&self, message: Value) {
        self.say.send(message).unwrap();
    }
}

fn asks_for_numbers(question: &Value) -> bool {
    question["params"][0] == "blockNumbers"
}

fn answer(question: &Value, result: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": question["id"], "result": result})
}

fn event(subscription: &str, result: &str) -> Value {
    let params = json!({"subscription": subscription, "result": result});
    json!({"jsonrpc": "2.0", "method": "eth_subscription", "params": params})
}

/// Starts a node behind a front, and the app.
async fn fronted(edit: impl FnOnce(&mut typed::Config)) -> (Devnet, Front, Proxy) {
    let node = node().await;
    let front = Front::start(&node).await;
    let proxy = Proxy::start(std::slice::from_ref(&front.address), edit).await;
    proxy.settled(&node.handle()).await;
    (node, front, proxy)
}

/// A rate limit is not a refusal: subscribed clients get no events for a while, and only new requests get the error.
#[tokio::test]
async fn where_the_node_is_asked_too_much_it_is_asked_again_and_nobody_is_closed() {
    let (node, front, proxy) = fronted(|_| {}).await;
    let (control, of) = (node.handle(), json!("x"));
    let mut client = proxy.client().await;
    let id = client.subscribe(numbers(&of)).await;
    client.event().await;
    let error = json!({"code": -32005, "message": "daily request count exceeded"});
    let said = error.clone();
    front.rule(move |question| {
        let answer = json!({"jsonrpc": "2.0", "id": question["id"], "error": said});
        asks_for_numbers(question).then(|| vec![answer])
    });
    control.disconnect();
    eventually("it is asked for again", async || front.kept().len() > 1).await;
    let mut other = proxy.client().await;
    assert_eq!(refused(&mut other, "eth_subscribe", numbers(&of)).await, error);
    assert_eq!(refused(&mut other, "eth_subscribe", numbers(&json!("y"))).await, error);
    front.rule(|_| None);
    let event = client.event().await;
    assert_eq!(
        (event.subscription, event.payload),
        (id, received(control.head().number(), &of))
    );
}

/// Otherwise subscribed clients would wait for ever, without an error.
#[tokio::test]
async fn what_is_not_answered_is_refused_after_a_while_and_ended_where_it_stands_after_all() {
    let (node, front, proxy) = fronted(|config| {
        config.node.request_timeout = Duration::from_millis(500);
    })
    .await;
    let mut client = proxy.client().await;
    client.subscribe(numbers(&json!(1))).await;
    front.rule(|question| asks_for_numbers(question).then(Vec::new));
    node.handle().disconnect();
    let (_, code, _) = client.closed().await;
    assert_eq!(code, 1012);
    let question = front.kept()[0].clone();
    front.rule(|question| (question["method"] == "eth_unsubscribe").then(Vec::new));
    front.say(answer(&question, "0xdead"));
    eventually("it is ended", async || {
        let last = front.kept().pop().unwrap();
        last["method"] == "eth_unsubscribe" && last["params"] == json!(["0xdead"])
    })
    .await;
}

#[tokio::test]
async fn who_asks_and_leaves_again_and_again_has_no_more_asked_than_the_limit() {
    let (_node, front, proxy) = fronted(|config| config.subscriptions.max_passthrough = 2).await;
    front.rule(|question| asks_for_numbers(question).then(Vec::new));
    for of in 0..6 {
        let mut client = proxy.client().await;
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": numbers(&json!(of))});
        client.send(request.to_string()).await;
        eventually("it is wanted", async || {
            proxy.metric(r#"headwater_subscriptions{kind="passthrough"}"#).await == 1.0
        })
        .await;
        eventually("it is asked, if at all", async || front.kept().len() > of.min(1)).await;
        drop(client);
        eventually("it is left", async || {
            proxy.metric(r#"headwater_subscriptions{kind="passthrough"}"#).await == 0.0
        })
        .await;
    }
    assert_eq!(front.kept().len(), 2);
    // An answered request makes room.
    let mut client = proxy.client().await;
    let first = front.kept()[0].clone();
    front.rule(|question| asks_for_numbers(question).then(|| vec![answer(question, "0x2")]));
    front.say(json!({"jsonrpc": "2.0", "id": first["id"], "error": {"code": -32000, "message": "no"}}));
    client.subscribe(numbers(&json!(7))).await;
}

#[tokio::test]
async fn a_node_that_gives_two_one_id_serves_the_first() {
    let (node, front, proxy) = fronted(|_| {}).await;
    front.rule(|question| match &question["method"] {
        _ if asks_for_numbers(question) => Some(vec![answer(question, "0x77")]),
        method if method == "eth_unsubscribe" => Some(Vec::new()),
        _ => None,
    });
    let mut first = proxy.client().await;
    let id = first.subscribe(numbers(&json!(1))).await;
    let mut second = proxy.client().await;
    let why = refused(&mut second, "eth_subscribe", numbers(&json!(2))).await;
    assert_eq!(why["message"], "the node gave two subscriptions the same id");
    front.say(event("0x77", "one"));
    let received = first.event().await;
    assert_eq!(
        (received.subscription, received.payload),
        (id.clone(), r#""one""#.to_owned())
    );
    // Events of an ended subscription are delivered to no client, whichever subscription gets its id next.
    first.unsubscribe(&id).await;
    eventually("it is ended", async || {
        front
            .kept()
            .iter()
            .any(|question| question["method"] == "eth_unsubscribe")
    })
    .await;
    front.say(event("0x77", "still one"));
    let id = second.subscribe(numbers(&json!(2))).await;
    front.say(event("0x77", "two"));
    let received = second.event().await;
    assert_eq!((received.subscription, received.payload), (id, r#""two""#.to_owned()));
    // The stream's connection and the one for calls: neither was opened anew.
    assert_eq!(node.handle().stats().connections_opened, 2);
}

/// Starts a pool alone; returns it, the sender of what is wanted from the nodes, and receivers to keep alive.
fn pool(nodes: &[String]) -> (Arc<Pool>, watch::Sender<Wanted>, impl Sized + use<>) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let typed = typed::Config {
        upstream: nodes.iter().cloned().map(Into::into).collect(),
        ..typed::Config::default()
    };
    let mut config = Config::check(&typed).unwrap();
    // One poll only while the test runs.
    config.node.poll_interval = Duration::from_secs(3600);
    let ((sightings, seen), (best_effort, heard)) = (mpsc::channel(64), mpsc::channel(64));
    let (wants, wanted) = watch::channel(Wanted::default());
    let channels = Channels {
        sightings,
        best_effort,
        wanted,
    };
    let pool = Pool::start(&config.upstreams, &config.node, &channels, Arc::new(Metrics::new().0));
    (pool, wants, (seen, heard))
}

fn kind(n: usize) -> Passthrough {
    let param = serde_json::value::to_raw_value(&n).unwrap();
    Passthrough::new("eth_subscribe", &[&param]).unwrap()
}

/// The kinds that clients can ask for are unbounded, so an answer is kept only while its kind is requested.
#[tokio::test]
async fn an_answer_is_kept_as_long_as_somebody_wants_it_and_over_http_costs_no_poll() {
    for over_http in [true, false] {
        let node = node().await;
        let control = node.handle();
        let url = if over_http { node.http_url() } else { node.ws_url() };
        let (pool, wants, _rest) = pool(&[url]);
        eventually("it is in use", async || pool.active().is_some()).await;
        wants.send_modify(|wanted| wanted.syncing = true);
        eventually("polled", async || calls(&control, "eth_syncing") > 0).await;
        let answers = pool.watch_answers();
        for n in 0..50 {
            wants.send_modify(|wanted| wanted.passed = Arc::new([kind(n)].into()));
            assert!(
                pool.answered(&NodeSubscription::Passthrough(kind(n)))
                    .await
                    .unwrap()
                    .is_err()
            );
            eventually("those before are forgotten", async || answers.borrow().len() == 1).await;
        }
        wants.send_modify(|wanted| wanted.passed = Arc::default());
        eventually("all are forgotten", async || answers.borrow().is_empty()).await;
        assert_eq!(calls(&control, "eth_syncing"), 1);
    }
}

#[tokio::test]
async fn an_answer_is_forgotten_with_the_node_that_gave_it() {
    let (first, second) = (node().await, node().await);
    let (pool, wants, _rest) = pool(&[first.ws_url(), second.ws_url()]);
    eventually("both are connected", async || {
        pool.status().iter().all(|(_, status)| status.connected)
    })
    .await;
    wants.send_modify(|wanted| wanted.passed = Arc::new([kind(1), kind(2)].into()));
    for n in [1, 2] {
        assert!(
            pool.answered(&NodeSubscription::Passthrough(kind(n)))
                .await
                .unwrap()
                .is_err()
        );
    }
    wants.send_modify(|wanted| wanted.passed = Arc::new([kind(2)].into()));
    let lost = pool.active().unwrap();
    take_away(&if lost.0 == 0 { first.handle() } else { second.handle() });
    eventually("the other is in use", async || {
        pool.active().is_some_and(|active| active != lost)
    })
    .await;
    assert!(
        pool.answered(&NodeSubscription::Passthrough(kind(2)))
            .await
            .unwrap()
            .is_err()
    );
    let answers = pool.watch_answers();
    assert_eq!(
        answers.borrow().keys().collect::<Vec<_>>(),
        [&NodeSubscription::Passthrough(kind(2))]
    );
}
