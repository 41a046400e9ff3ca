//! Methods and subscriptions of a program that embeds headwater, on the client port.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use bytesize::ByteSize;
use headwater::app::App;
use headwater::config::typed;
use headwater::devnet::Devnet;
use headwater::extension::Client as Caller;
use jsonrpsee::core::{RpcResult, SubscriptionError, SubscriptionResult, async_trait, to_json_raw_value};
use jsonrpsee::proc_macros::rpc;
use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::ws_client::WsClientBuilder;
use jsonrpsee::{ConnectionId, Extensions, PendingSubscriptionSink};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

use crate::harness::{Proxy, adopted, eventually, node, within};
use crate::wire::Wire;

#[rpc(server, client, namespace = "own")]
trait Own {
    #[method(name = "sum")]
    fn sum(&self, numbers: Vec<u64>) -> RpcResult<u64>;

    #[method(name = "late")]
    async fn late(&self) -> RpcResult<String>;

    /// Waits until the client has left.
    #[method(name = "never")]
    async fn never(&self) -> RpcResult<()>;

    /// Waits on a thread of its own, until the test opens the gate.
    #[method(name = "blocks", blocking)]
    fn blocks(&self) -> RpcResult<()>;

    #[method(name = "fails")]
    fn fails(&self) -> RpcResult<()>;

    #[method(name = "panics")]
    fn panics(&self) -> RpcResult<()>;

    #[method(name = "caller", with_extensions)]
    fn caller(&self) -> RpcResult<(bool, usize)>;

    /// Counts from 0 up to `until`, then ends as `end` says.
    #[subscription(name = "subscribeCount" => "count", unsubscribe = "unsubscribeCount", item = u64)]
    async fn count(&self, until: u64, end: String) -> SubscriptionResult;

    /// Sends messages of this many bytes, as fast as the sink takes them.
    #[subscription(name = "subscribeFlood" => "flood", unsubscribe = "unsubscribeFlood", item = String)]
    async fn flood(&self, bytes: usize) -> SubscriptionResult;
}

/// Count of callbacks that run, raised while this lives.
struct Runs(Arc<AtomicUsize>);

impl Runs {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The program.
#[derive(Clone, Default)]
struct Program {
    release: Arc<Notify>,
    /// Subscriptions that the client has ended, or its connection.
    closed: Arc<AtomicUsize>,
    /// Callbacks that wait.
    waiting: Arc<AtomicUsize>,
    /// Callbacks that were called.
    begun: Arc<AtomicUsize>,
    /// `true` once callbacks on threads of their own may go on.
    gate: Arc<(Mutex<bool>, Condvar)>,
}

/// Opens the gate of a program when it is dropped: the threads that wait there would outlive a failed test.
struct Opens(Program);

impl Drop for Opens {
    fn drop(&mut self) {
        *self.0.gate.0.lock().unwrap() = true;
        self.0.gate.1.notify_all();
    }
}

#[async_trait]
impl OwnServer for Program {
    fn sum(&self, numbers: Vec<u64>) -> RpcResult<u64> {
        Ok(numbers.iter().sum())
    }

    async fn late(&self) -> RpcResult<String> {
        self.release.notified().await;
        Ok("late".to_owned())
    }

    async fn never(&self) -> RpcResult<()> {
        let _waits = Runs::new(&self.waiting);
        std::future::pending().await
    }

    fn blocks(&self) -> RpcResult<()> {
        let _waits = Runs::new(&self.waiting);
        self.begun.fetch_add(1, Ordering::Relaxed);
        let mut is_open = self.gate.0.lock().unwrap();
        while !*is_open {
            is_open = self.gate.1.wait(is_open).unwrap();
        }
        Ok(())
    }

    fn fails(&self) -> RpcResult<()> {
        Err(ErrorObjectOwned::owned(-4, "a <fault>", Some(json!({"why": 1}))))
    }

    fn panics(&self) -> RpcResult<()> {
        panic!("a fault of the program");
    }

    fn caller(&self, extensions: &Extensions) -> RpcResult<(bool, usize)> {
        let caller = extensions.get::<Caller>().unwrap();
        let is_local = caller.address.is_some_and(|address| address.is_loopback());
        Ok((is_local, extensions.get::<ConnectionId>().unwrap().0))
    }

    async fn count(&self, pending: PendingSubscriptionSink, until: u64, end: String) -> SubscriptionResult {
        if end == "reject" {
            pending
                .reject(ErrorObjectOwned::owned(-5, "not today", None::<()>))
                .await;
            return Ok(());
        }
        let sink = pending.accept().await?;
        for number in 0..until {
            sink.send(to_json_raw_value(&number)?).await?;
        }
        match end.as_str() {
            "quietly" => Ok(()),
            "fault" => Err(SubscriptionError::from("out of numbers")),
            _ => {
                sink.closed().await;
                self.closed.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    async fn flood(&self, pending: PendingSubscriptionSink, bytes: usize) -> SubscriptionResult {
        let sink = pending.accept().await?;
        let message = to_json_raw_value(&"x".repeat(bytes))?;
        while sink.send(message.clone()).await.is_ok() {}
        self.closed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct Rig {
    node: Devnet,
    program: Program,
    proxy: Proxy,
}

impl Rig {
    async fn with(edit: impl FnOnce(&mut typed::Config)) -> Self {
        let (node, program) = (node().await, Program::default());
        let app: App = Proxy::bind(&[node.ws_url()], edit).await;
        let proxy = Proxy::run(app.serve(program.clone().into_rpc()).unwrap());
        proxy.settled(&node.handle()).await;
        Self { node, program, proxy }
    }

    async fn has_closed(&self, count: usize) {
        eventually("the program sees the end", async || {
            self.program.closed.load(Ordering::Relaxed) == count
        })
        .await;
    }
}

/// Message of a subscription, in jsonrpsee's form, which is geth's.
fn message(notification: &str, id: &str, result: u64) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{notification}","params":{{"subscription":"{id}","result":{result}}}}}"#)
}

/// Answers of the program, and of others beside it: request, answer.
const CALLS: [(&str, &str); 9] = [
    (
        r#"{"jsonrpc":"2.0","id":1.50,"method":"own_sum","params":[[1,2]]}"#,
        r#"{"jsonrpc":"2.0","id":1.50,"result":3}"#,
    ),
    (
        r#"{"jsonrpc":"2.0","id":"é\n","method":"own_sum","params":{"numbers":[5]}}"#,
        r#"{"jsonrpc":"2.0","id":"é\n","result":5}"#,
    ),
    (
        r#"{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"own_sum","params":[[]]}"#,
        r#"{"jsonrpc":"2.0","id":123456789012345678901234567890,"result":0}"#,
    ),
    (
        r#"{"jsonrpc":"2.0","id":null,"method":"own_fails"}"#,
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-4,"message":"a <fault>","data":{"why":1}}}"#,
    ),
    (
        r#"{"jsonrpc":"2.0","id":2,"method":"own_panics"}"#,
        r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32603,"message":"internal error"}}"#,
    ),
    (
        r#"{"jsonrpc":"2.0","id":3,"method":"own_unsubscribeCount","params":["0x1"]}"#,
        r#"{"jsonrpc":"2.0","id":3,"result":false}"#,
    ),
    (
        r#"{"jsonrpc":"2.0","id":4,"method":"own_nothing"}"#,
        r#"{"jsonrpc":"2.0","id":4,"error":{"code":-32601,"message":"the method own_nothing does not exist/is not available"}}"#,
    ),
    (
        r#"[{"jsonrpc":"2.0","id":5,"method":"own_sum","params":[[4]]},{"jsonrpc":"2.0","method":"own_sum","params":[[5]]},{"jsonrpc":"2.0","id":6,"method":"eth_chainId"},{"jsonrpc":"2.0","id":7,"method":"own_fails"}]"#,
        r#"[{"jsonrpc":"2.0","id":5,"result":4},{"jsonrpc":"2.0","id":6,"result":"0x539"},{"jsonrpc":"2.0","id":7,"error":{"code":-4,"message":"a <fault>","data":{"why":1}}}]"#,
    ),
    (
        r#"{"jsonrpc":"2.0","id":8,"method":"own_sum","params":[["x"]]}"#,
        r#"{"jsonrpc":"2.0","id":8,"error":{"code":-32602,"message":"Invalid params","data":"invalid type: string \"x\", expected u64 at line 1 column 4"}}"#,
    ),
];

#[tokio::test]
async fn calls_are_answered_over_both_transports_with_any_id() {
    let rig = Rig::with(|_| {}).await;
    let mut bystander = rig.proxy.watcher().await;
    let mut client = rig.proxy.client().await;
    for (request, answer) in CALLS {
        assert_eq!(client.ask(request).await, answer, "{request}");
        let over_http = match request.contains("unsubscribe") {
            true => r#"{"jsonrpc":"2.0","id":3,"error":{"code":-32000,"message":"subscription not found"}}"#,
            false => answer,
        };
        assert_eq!(rig.proxy.post(request).await, over_http, "{request} over HTTP");
    }
    let subscribe = r#"{"jsonrpc":"2.0","id":1,"method":"own_subscribeCount","params":[1,""]}"#;
    let none = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"notifications not supported"}}"#;
    assert_eq!(rig.proxy.post(subscribe).await, none);
    // Two clients are two connections, and one client is one.
    let first = client.call("own_caller", json!([])).await;
    assert_eq!(client.call("own_caller", json!([])).await, first);
    let other = rig.proxy.client().await.call("own_caller", json!([])).await;
    assert_eq!((&first["result"][0], &other["result"][0]), (&json!(true), &json!(true)));
    assert_ne!(first["result"][1], other["result"][1]);
    assert_eq!(
        rig.proxy.metric(r#"headwater_panics_total{reason="extension"}"#).await,
        2.0
    );
    let block = rig.node.handle().mine();
    bystander.expect(adopted(&[block])).await;
}

#[tokio::test]
async fn calls_obey_places_quotas_and_lists_of_methods() {
    let rig = Rig::with(|typed| {
        typed.limits.max_in_flight = 1;
        typed.methods.denied = vec!["own_sum".to_owned()];
        typed.methods.weights.insert("own_caller".to_owned(), 1000);
    })
    .await;
    let mut client = rig.proxy.client().await;
    let denied = client.call("own_sum", json!([[1]])).await;
    assert_eq!(denied["error"]["code"], -32601);
    client.send(r#"{"jsonrpc":"2.0","id":1,"method":"own_late"}"#).await;
    let full = client.call("own_late", json!([])).await;
    assert_eq!(full["error"]["code"], -32005, "{full}");
    rig.program.release.notify_one();
    assert_eq!(client.next().await, r#"{"jsonrpc":"2.0","id":1,"result":"late"}"#);
    // The burst is 200 by default: a call that weighs more costs all of it.
    eventually("the quota is used up", async || {
        let answer = client.call("own_caller", json!([])).await;
        answer["error"]["code"] == -32005
    })
    .await;
}

#[tokio::test]
async fn messages_of_a_subscription_follow_its_answer_in_order() {
    let rig = Rig::with(|_| {}).await;
    let mut client = rig.proxy.client().await;
    for (until, end) in [(0, "quietly"), (1, "quietly"), (300, "quietly"), (300, "fault")] {
        let answer = client.call("own_subscribeCount", json!([until, end])).await;
        let id = answer["result"].as_str().unwrap().to_owned();
        assert!(id.starts_with("0x") && id.len() == 34, "{id}");
        for number in 0..until {
            assert_eq!(client.next().await, message("own_count", &id, number));
        }
        if end == "fault" {
            let fault =
                r#"{"jsonrpc":"2.0","method":"own_count","params":{"subscription":"ID","error":"out of numbers"}}"#;
            assert_eq!(client.next().await, fault.replace("ID", &id));
        }
        // It has ended: nothing to unsubscribe from.
        let answer = client.call("own_unsubscribeCount", json!([id])).await;
        assert_eq!(answer["result"], false);
    }
    let rejected = client.call("own_subscribeCount", json!([5, "reject"])).await;
    assert_eq!(rejected["error"], json!({"code": -5, "message": "not today"}));
    // In a batch, with another subscription.
    let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"own_subscribeCount","params":[2,""]},{"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}]"#;
    let answers: Value = serde_json::from_str(&client.ask(batch).await).unwrap();
    let id = answers[0]["result"].as_str().unwrap().to_owned();
    assert_eq!(client.next().await, message("own_count", &id, 0));
    assert_eq!(client.next().await, message("own_count", &id, 1));
    let block = rig.node.handle().mine();
    assert_eq!(client.line().await, adopted(&[block])[0]);
    let open = r#"headwater_subscriptions{kind="extension"}"#;
    eventually("one is open", async || rig.proxy.metric(open).await == 1.0).await;
    let answer = client.call("own_unsubscribeCount", json!([id])).await;
    assert_eq!(answer["result"], true);
    rig.has_closed(1).await;
    eventually("none is open", async || rig.proxy.metric(open).await == 0.0).await;
}

#[tokio::test]
async fn nothing_of_a_subscription_is_read_after_it_was_ended() {
    let rig = Rig::with(|_| {}).await;
    let mut client = rig.proxy.client().await;
    for round in 1..=20 {
        let answer = client.call("own_subscribeFlood", json!([10])).await;
        let id = answer["result"].clone();
        let end = json!({"jsonrpc": "2.0", "id": 7, "method": "own_unsubscribeFlood", "params": [id]});
        client.send(end.to_string()).await;
        while client.next().await.contains("own_flood") {}
        client.forget_early();
        rig.has_closed(round).await;
        // The next text is the answer to this call.
        let (answer, beside) = client
            .ask_alone(r#"{"jsonrpc":"2.0","id":1,"method":"own_sum","params":[[1]]}"#)
            .await;
        assert_eq!(
            (answer.as_str(), beside.len()),
            (r#"{"jsonrpc":"2.0","id":1,"result":1}"#, 0)
        );
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_the_program_goes_on() {
    let rig = Rig::with(|typed| typed.delivery.max_queue_bytes = ByteSize::kib(64)).await;
    let mut bystander = rig.proxy.watcher().await;
    let mut lazy = Wire::open_with(rig.proxy.address, &[], Some(4096)).await;
    lazy.send(
        0x81,
        r#"{"jsonrpc":"2.0","id":1,"method":"own_subscribeFlood","params":[1000]}"#,
    )
    .await;
    rig.has_closed(1).await;
    let (_, code) = lazy.until_the_end().await;
    assert!(code.is_none_or(|code| code == 1013), "{code:?}");
    let closes = r#"headwater_closes_total{reason="slow_consumer"}"#;
    eventually("it is counted", async || rig.proxy.metric(closes).await == 1.0).await;
    let block = rig.node.handle().mine();
    bystander.expect(adopted(&[block])).await;
}

#[tokio::test]
async fn subscriptions_are_counted_with_those_to_the_chain() {
    let rig = Rig::with(|typed| typed.limits.max_subscriptions = 2).await;
    let mut client = rig.proxy.client().await;
    client.subscribe(json!(["newHeads"])).await;
    let rejected = client.call("own_subscribeCount", json!([0, "reject"])).await;
    assert_eq!(rejected["error"]["code"], -5);
    let counted = client.call("own_subscribeCount", json!([0, ""])).await;
    assert!(counted["result"].is_string());
    for params in [
        ("own_subscribeCount", json!([0, ""])),
        ("eth_subscribe", json!(["newHeads"])),
    ] {
        let refused = client.call(params.0, params.1).await;
        assert_eq!(
            refused["error"]["message"],
            "limit exceeded: 2 subscriptions on this connection"
        );
    }
    let ended = client.call("own_unsubscribeCount", json!([counted["result"]])).await;
    assert_eq!(ended["result"], true);
    client.subscribe(json!(["newHeads"])).await;
    // The connection ends, and with it the subscriptions.
    let mut other = rig.proxy.client().await;
    other.call("own_subscribeCount", json!([0, ""])).await;
    drop(other);
    rig.has_closed(2).await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_waiting_calls_along() {
    let rig = Rig::with(|_| {}).await;
    let mut bystander = rig.proxy.watcher().await;
    let waiting = async |count: usize| {
        eventually("the callbacks that wait", async || {
            rig.program.waiting.load(Ordering::Relaxed) == count
        })
        .await;
    };
    let one = r#"{"jsonrpc":"2.0","id":1,"method":"own_never"}"#;
    let several = format!("[{one},{one},{one}]");
    for _ in 0..10 {
        let mut client = rig.proxy.client().await;
        client.send(one).await;
        client.send(&*several).await;
        waiting(4).await;
        drop(client);
        waiting(0).await;
    }
    for (body, count) in [(one, 1), (&*several, 3)] {
        let mut http = tokio::net::TcpStream::connect(rig.proxy.address).await.unwrap();
        let head = format!(
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        http.write_all(head.as_bytes()).await.unwrap();
        waiting(count).await;
        drop(http);
        waiting(0).await;
    }
    let block = rig.node.handle().mine();
    bystander.expect(adopted(&[block])).await;
}

#[tokio::test]
async fn a_batch_gets_the_places_of_its_client_and_no_more_threads() {
    let rig = Rig::with(|typed| typed.limits.max_in_flight = 4).await;
    let gate = Opens(rig.program.clone());
    let mut bystander = rig.proxy.watcher().await;
    let mut client = rig.proxy.client().await;
    let calls: Vec<String> = (0..50)
        .map(|id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"own_blocks"}}"#))
        .collect();
    client.send(format!("[{}]", calls.join(","))).await;
    let begun = || rig.program.begun.load(Ordering::Relaxed);
    eventually("some of the batch run", async || begun() > 0).await;
    let block = rig.node.handle().mine();
    bystander.expect(adopted(&[block])).await;
    // A thread starts at once; those of a whole batch would have by now, or will before the answer.
    assert!(begun() <= 4, "{}", begun());
    drop(gate);
    let answers: Value = serde_json::from_str(&client.next().await).unwrap();
    assert_eq!(answers.as_array().unwrap().len(), 50);
    assert_eq!(begun(), 50);
}

#[tokio::test]
async fn messages_are_compressed_for_clients_that_agreed() {
    let rig = Rig::with(|typed| {
        let compressing = json!({"delivery": {"compression": "on"}});
        typed.delivery.compression = serde_json::from_value(compressing["delivery"]["compression"].clone()).unwrap();
    })
    .await;
    let mut wire = Wire::deflating(rig.proxy.address).await;
    wire.send(
        0x81,
        r#"{"jsonrpc":"2.0","id":1,"method":"own_subscribeFlood","params":[3000]}"#,
    )
    .await;
    let (answer, _) = wire.inflated().await;
    assert!(
        answer.starts_with(r#"{"jsonrpc":"2.0","id":1,"result":"0x"#),
        "{answer}"
    );
    for _ in 0..20 {
        let (text, was_compressed) = wire.inflated().await;
        assert!(was_compressed);
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(message["params"]["result"].as_str().unwrap().len(), 3000);
    }
}

#[tokio::test]
async fn jsonrpsees_own_client_is_served() {
    let rig = Rig::with(|_| {}).await;
    let client = WsClientBuilder::default()
        .build(format!("ws://{}", rig.proxy.address))
        .await
        .unwrap();
    assert_eq!(client.sum(vec![20, 22]).await.unwrap(), 42);
    let mut counts = client.count(50, String::new()).await.unwrap();
    for number in 0..50 {
        let count = within("a count", counts.next()).await.unwrap();
        assert_eq!(count.unwrap(), number);
    }
    within("unsubscribing", counts.unsubscribe()).await.unwrap();
    rig.has_closed(1).await;
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused_at_the_start() {
    let app = Proxy::bind(&["ws://127.0.0.1:1".to_owned()], |_| {}).await;
    let mut module = jsonrpsee::RpcModule::new(());
    module.register_method("eth_chainId", |_, _, _| 5).unwrap();
    let refused = app.serve(module).err().unwrap();
    assert_eq!(
        refused.to_string(),
        "method eth_chainId is served by headwater itself or by another module: put it into a namespace of its own"
    );
}

#[tokio::test]
async fn headwaters_own_methods_describe_the_caller() {
    let rig =
        Rig::with(|typed| typed.methods.denied = vec!["headwater_accountUsage".to_owned(), "own_sum".to_owned()]).await;
    let mut client = rig.proxy.client().await;
    let id = client.subscribe(json!(["newHeads"])).await;
    let counted = client.call("own_subscribeCount", json!([0, ""])).await;
    let listed = client.call("headwater_accountSubscriptions", json!([])).await;
    let listed = listed["result"]["subscriptions"].as_array().unwrap().clone();
    let of = |kind: &str| listed.iter().find(|one| one["kind"] == kind).unwrap()["id"].clone();
    assert_eq!(
        (of("newHeads"), of("extension")),
        (json!(id), counted["result"].clone())
    );
    let limits = client.call("headwater_accountLimits", json!([])).await;
    assert_eq!(limits["result"]["plan"], "default");
    let denied = client.call("headwater_accountUsage", json!([])).await;
    assert_eq!(denied["error"]["code"], -32601);
    let names = |document: &Value| -> Vec<String> {
        let methods = document["result"]["methods"].as_array().unwrap().iter();
        methods
            .map(|method| method["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let over_web_socket = names(&client.call("rpc_discover", json!([])).await);
    let request = r#"{"jsonrpc":"2.0","id":1,"method":"rpc.discover"}"#;
    let over_http = names(&serde_json::from_str(&rig.proxy.post(request).await).unwrap());
    for (name, by_socket, by_http) in [
        ("eth_subscribe", true, false),
        ("eth_call", true, true),
        ("own_late", true, true),
        ("own_sum", false, false),
        ("headwater_accountUsage", false, false),
        ("rpc_discover", true, true),
    ] {
        let has = |names: &[String]| names.iter().any(|one| one == name);
        assert_eq!((has(&over_web_socket), has(&over_http)), (by_socket, by_http), "{name}");
    }
}

#[tokio::test]
async fn a_subscription_is_ended_by_its_own_method_and_id_alone() {
    let rig = Rig::with(|_| {}).await;
    let mut client = rig.proxy.client().await;
    let counted = client.call("own_subscribeCount", json!([0, ""])).await;
    let id = counted["result"].as_str().unwrap();
    let upper = format!("0x{}", id[2..].to_uppercase());
    for (method, id, ended) in [
        ("own_unsubscribeFlood", id, false),
        ("own_unsubscribeCount", upper.as_str(), upper == id),
        ("own_unsubscribeCount", "0x0", false),
    ] {
        assert_eq!(client.call(method, json!([id])).await["result"], ended, "{method} {id}");
    }
    let listed = client.call("headwater_accountSubscriptions", json!([])).await;
    assert_eq!(listed["result"]["subscriptions"][0]["id"], id);
    assert_eq!(client.call("own_unsubscribeCount", json!([id])).await["result"], true);
    rig.has_closed(1).await;
}
