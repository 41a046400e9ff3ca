use std::net::IpAddr;
use std::sync::Arc;

use jsonrpsee::RpcModule;

use super::*;
use crate::config::{Config, typed};
use crate::door::{Account, Accounts, Identity};
use crate::rpc::Before;
use crate::server::Http;
use crate::session::tests::services;
use crate::telemetry::ReasonLabel;

/// WebSocket of a client, as far as an intake needs one: a subscription is accepted, and its end too.
struct Client {
    has_places: bool,
    has_room: bool,
    /// Calls of the transport, in order.
    log: Vec<String>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            has_places: true,
            has_room: true,
            log: Vec::new(),
        }
    }
}

impl Transport for Client {
    fn charge_inbound(&mut self, _: usize) -> Result<(), Full> {
        self.has_room.then_some(()).ok_or(Full("no room"))
    }

    fn begin_call(&mut self, max: u32) -> bool {
        self.log.push(format!("place of {max}"));
        self.has_places
    }

    fn begin_subscription(
        &mut self,
        method: SubscriptionMethod<'_>,
        request: &Request<'_>,
    ) -> Result<Local, ErrorObjectOwned> {
        self.log.push(format!("{method:?} {}", request.method));
        Ok(Outcome::Result("\"0x5\"".into()).into())
    }

    fn end_subscription(&mut self, request: &Request<'_>) -> Outcome {
        self.log.push(request.method.to_string());
        Outcome::TRUE
    }

    fn call_own(&mut self, request: &Request<'_>) -> Result<Local, ErrorObjectOwned> {
        self.log.push(format!("own {}", request.method));
        Ok(Outcome::Result("8".into()).into())
    }

    fn call_extension(&mut self, role: Role, request: &Request<'_>) -> Result<Local, ErrorObjectOwned> {
        self.log.push(format!("{role:?} {}", request.method));
        Ok(Outcome::Result("7".into()).into())
    }
}

/// Account and metrics of one client.
struct Rig {
    account: Arc<Account>,
    metrics: Arc<Metrics>,
    extension: Extension,
    may_develop: bool,
}

impl Rig {
    /// Creates a client that may have 4 calls in flight and send 3 items at once.
    fn new(edit: impl FnOnce(&mut typed::Config)) -> Self {
        let mut typed = typed::Config::default();
        (typed.limits.max_in_flight, typed.limits.max_batch) = (4, 3);
        edit(&mut typed);
        let policy = Config::check(&typed).unwrap().door;
        let identity = Identity::Network("10.0.0.1".parse::<IpAddr>().unwrap().into());
        let metrics = Arc::new(Metrics::new().0);
        Self {
            extension: Extension::new(module().into(), 1000, metrics.clone()),
            metrics,
            account: Accounts::default()
                .open(identity, policy.anonymous.clone(), crate::clock::at(0))
                .unwrap(),
            may_develop: false,
        }
    }

    fn take(&self, message: &str, transport: &mut impl Transport) -> String {
        let intake = Intake {
            record: None,
            terms: &self.account.terms(),
            may_develop: self.may_develop,
            extension: &self.extension,
            metrics: &self.metrics,
        };
        show(intake.take(message.as_bytes(), transport))
    }

    /// Checks the answer over HTTP, where this client's extension is the services' own.
    fn take_over_http(&self, message: &str) -> String {
        // The services start tasks, none of which has to run here.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let services = services(|_| {});
        let services = Arc::into_inner(services).expect("nobody else has it");
        let services = Arc::new(services.extended(Extension::new(module().into(), 1000, self.metrics.clone())));
        let pass = services.door.admit_within(0);
        self.take(
            message,
            &mut Http {
                services: &services,
                pass: &pass,
                connection: None,
                places: None,
                place: None,
            },
        )
    }

    fn refused(&self, reason: &'static str) -> u64 {
        self.metrics.refused.get_or_create(&ReasonLabel { reason }).get()
    }
}

/// A program's methods: a call, an asynchronous one, and a subscription.
fn module() -> RpcModule<()> {
    let mut module = RpcModule::new(());
    module.register_method("own_now", |_, _, _| 5).unwrap();
    module
        .register_async_method("own_later", |_, _, _| async { 6 })
        .unwrap();
    module
        .register_subscription(
            "own_subscribeTicks",
            "ticks",
            "own_unsubscribeTicks",
            |_, pending, _, _| async {
                drop(pending);
            },
        )
        .unwrap();
    module
}

fn show(PlannedMessage { reply, refusal }: PlannedMessage) -> String {
    let text = |response: Response| String::from_utf8(response.parts().concat()).unwrap();
    let reply = match reply {
        PlannedReply::Single(planned) => item(planned),
        PlannedReply::Batch(planned) => {
            let items: Vec<String> = planned.into_iter().map(item).collect();
            format!("[{}]", items.join(", "))
        }
        PlannedReply::Whole(response) => text(response),
        PlannedReply::WholeBatch(response) => format!("[{}]", text(response)),
    };
    match refusal {
        None => reply,
        Some(RequestRefusal::Quota(Exceeded { retry_after: Some(_) })) => format!("quota: {}", without_hint(&reply)),
        Some(refusal) => format!("{refusal:?}: {reply}"),
    }
}

/// Cuts `data` out of an error: the wait before a retry depends on the time.
fn without_hint(reply: &str) -> String {
    match reply.split_once(",\"data\":") {
        Some((before, _)) => format!("{before}}}}}"),
        None => reply.to_owned(),
    }
}

fn item(planned: Planned) -> String {
    match planned {
        Planned::Done(id, Outcome::Result(result)) => format!("{id} = {}", String::from_utf8_lossy(&result)),
        Planned::Done(id, Outcome::Error(error)) => {
            let error: serde_json::Value = serde_json::from_slice(&error).unwrap();
            format!("{id} ! {} {}", error["code"], error["message"].as_str().unwrap())
        }
        Planned::Later(id, _) => format!("{id} later"),
        Planned::Forward {
            id,
            method,
            params,
            before,
        } => {
            let place = match before {
                Before::AnyNode => "",
                Before::DevelopmentNodes => " in development",
            };
            format!("{} > {method}{params}{place}", id.as_deref().unwrap_or("-"))
        }
        Planned::Recorded(_, planned) => item(*planned),
        Planned::Silent => "-".to_owned(),
    }
}

fn call(id: &str, method: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":[1]}}"#)
}

fn notification(method: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{method}"}}"#)
}

/// Takes in one message over WebSocket and over HTTP: what the transports differ in is the answer to methods of
/// subscriptions.
#[track_caller]
fn check_each(message: &str, web_socket: &str, http: &str, log: &str) {
    let rig = Rig::new(|_| {});
    let mut client = Client::default();
    assert_eq!(rig.take(message, &mut client), web_socket, "{message} over WebSocket");
    assert_eq!(client.log.join(", "), log, "{message}");
    assert_eq!(rig.take_over_http(message), http, "{message} over HTTP");
}

#[track_caller]
fn check(message: &str, expect: &str, log: &str) {
    check_each(message, expect, expect, log);
}

#[test]
fn an_item_is_forwarded_answered_or_ignored() {
    check(&call("7", "eth_call"), "7 > eth_call[1]", "place of 4");
    check(&call("null", "eth_call"), "null > eth_call[1]", "place of 4");
    check(&notification("eth_call"), "- > eth_call", "place of 4");
    check(r#"{"jsonrpc":"2.0","id":7,"result":1}"#, "-", "");
    check(r#"{"jsonrpc":"2.0","id":7}"#, "7 ! -32600 invalid request", "");
    check("5", "null ! -32600 invalid request", "");
    let odd = "-32601 the method eth call does not exist/is not available";
    check(&call("7", "eth call"), &format!("7 ! {odd}"), "");
    check(&notification("eth call"), "-", "");
}

#[test]
fn a_message_without_requests_gets_one_response() {
    let parse_error = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error"}}"#;
    check("hello", parse_error, "");
    check("", parse_error, "");
    let empty = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"empty batch"}}"#;
    check("[]", empty, "");
    let too_many = format!("[5,{0},{0},{0}]", call("9", "eth_call"));
    let too_large = r#"[{"jsonrpc":"2.0","id":9,"error":{"code":-32600,"message":"batch too large"}}]"#;
    check(&too_many, too_large, "");
}

#[test]
fn items_of_a_batch_are_planned_in_order_and_share_one_place() {
    let batch = format!("[{},5,{}]", call("1", "eth_call"), notification("eth_gasPrice"));
    let planned = "[1 > eth_call[1], null ! -32600 invalid request, - > eth_gasPrice]";
    check(&batch, planned, "place of 4");
    check("[5]", "[null ! -32600 invalid request]", "");
}

#[test]
fn a_method_is_served_by_a_node_the_transport_or_nobody() {
    let not_supported = "1 ! -32601 notifications not supported";
    check_each(
        &call("1", "eth_subscribe"),
        r#"1 = "0x5""#,
        not_supported,
        r#"place of 4, Subscribe("eth") eth_subscribe"#,
    );
    check_each(
        &call("1", "reth_subscribeChain"),
        r#"1 = "0x5""#,
        not_supported,
        r#"place of 4, SubscribeKind("reth") reth_subscribeChain"#,
    );
    // No response could carry the id of a subscription.
    check(&notification("eth_subscribe"), "-", "");
    let not_found = "1 ! -32000 subscription not found";
    check_each(&call("1", "eth_unsubscribe"), "1 = true", not_found, "eth_unsubscribe");
    check(&notification("eth_unsubscribe"), "-", "eth_unsubscribe");
    check_each(
        &format!("[{},{}]", call("1", "eth_unsubscribe"), call("2", "eth_call")),
        "[1 = true, 2 > eth_call[1]]",
        &format!("[{not_found}, 2 > eth_call[1]]"),
        "place of 4, eth_unsubscribe",
    );
    let unpaired = "1 ! -32601 the method logsSubscribe does not exist/is not available";
    check(&call("1", "logsSubscribe"), unpaired, "");
    let refused = "1 ! -32601 the method admin_peers does not exist/is not available";
    check(&call("1", "admin_peers"), refused, "place of 4");
}

#[test]
fn a_subscription_may_be_ended_whatever_was_denied_since() {
    let rig = Rig::new(|c| c.methods.denied = vec!["own_*".to_owned()]);
    let mut client = Client::default();
    for method in ["own_now", "own_subscribeTicks"] {
        let refused = format!("1 ! -32601 the method {method} does not exist/is not available");
        assert_eq!(rig.take(&call("1", method), &mut client), refused);
    }
    client.log.clear();
    assert_eq!(rig.take(&call("1", "own_unsubscribeTicks"), &mut client), "1 = 7");
    assert_eq!(client.log, ["Unsubscribe own_unsubscribeTicks"]);
}

#[test]
fn a_refused_method_is_counted_on_each_transport() {
    let rig = Rig::new(|_| {});
    for (method, counted) in [
        ("admin_peers", 2),
        ("logsSubscribe", 4),
        ("eth_call", 4),
        ("eth_subscribe", 4),
    ] {
        rig.take(&call("1", method), &mut Client::default());
        rig.take_over_http(&call("1", method));
        assert_eq!(rig.refused("method"), counted, "{method}");
    }
}

#[test]
fn commands_to_development_chains_go_to_them_alone() {
    let mut rig = Rig::new(|_| {});
    let refused = "1 ! -32601 the method evm_mine does not exist/is not available";
    assert_eq!(rig.take_over_http(&call("1", "evm_mine")), refused);
    rig.may_develop = true;
    let sent = "1 > evm_mine[1] in development";
    assert_eq!(rig.take_over_http(&call("1", "evm_mine")), sent);
    assert_eq!(rig.refused("method"), 1);
}

#[test]
fn above_the_quota_all_items_are_refused_and_nothing_is_begun() {
    let poor = || {
        Rig::new(|c| {
            (c.limits.request_burst, c.limits.requests_per_second) = (100, 1);
            c.methods.weights = [("eth_call".to_owned(), 90)].into();
        })
    };
    let batch = format!("[{},{},5]", call("1", "eth_unsubscribe"), notification("eth_call"));
    let rig = poor();
    let mut client = Client::default();
    assert_eq!(rig.take(&call("1", "eth_call"), &mut client), "1 > eth_call[1]");
    let refused = "quota: [1 ! -32005 limit exceeded, -, null ! -32005 limit exceeded]";
    assert_eq!(rig.take(&batch, &mut client), refused);
    assert_eq!(rig.refused("requests"), 3, "each item counts");
    assert_eq!(client.log, ["place of 4"], "of the first call");
    assert_eq!(
        rig.take_over_http(&call("2", "eth_call")),
        "quota: 2 ! -32005 limit exceeded"
    );
    assert_eq!(rig.take_over_http(&notification("eth_call")), "quota: -");
    assert_eq!(rig.refused("requests"), 5);
    // A message that exceeds the whole quota can never succeed.
    let rig = poor();
    let never = "Quota(Exceeded { retry_after: None }): [1 ! -32005 limit exceeded, 2 ! -32005 limit exceeded]";
    let twice = format!("[{},{}]", call("1", "eth_call"), call("2", "eth_call"));
    assert_eq!(rig.take_over_http(&twice), never);
}

#[test]
fn a_message_without_requests_costs_one() {
    let too_many = format!("[{}]", ["5"; 4].join(","));
    for message in ["hello", "[]", &too_many] {
        // The quota refills by one a second, however long this takes.
        let rig = Rig::new(|c| (c.limits.request_burst, c.limits.requests_per_second) = (100, 1));
        let unread = r#"quota: {"jsonrpc":"2.0","id":null,"error":{"code":-32005,"message":"limit exceeded"}}"#;
        let mut answers = Vec::new();
        for _ in 0..200 {
            answers.push(rig.take_over_http(message));
            answers.push(rig.take(message, &mut Client::default()));
        }
        let refused = answers.iter().filter(|answer| *answer == unread).count();
        assert!((200..=300).contains(&refused), "{refused} of {message}");
        assert_eq!(rig.refused("requests"), refused as u64);
    }
}

#[test]
fn without_a_place_what_waits_is_refused_and_nothing_else() {
    let rig = Rig::new(|_| {});
    let mut client = Client {
        has_places: false,
        ..Client::default()
    };
    let too_many = "-32005 limit exceeded: too many calls in flight";
    let mut take = |message: &str| rig.take(message, &mut client);
    assert_eq!(take(&call("1", "eth_call")), format!("InFlight: 1 ! {too_many}"));
    assert_eq!(take(&notification("eth_call")), "InFlight: -");
    // The transport decides, for most subscriptions need not wait.
    assert_eq!(take(&call("1", "eth_subscribe")), r#"1 = "0x5""#);
    assert_eq!(take(&call("1", "eth_unsubscribe")), "1 = true");
    assert_eq!(rig.refused("in_flight"), 2);
    // A batch is refused as a whole, before it has ended a subscription.
    let batch = |other: &str| format!("[{},{}]", call("1", "eth_unsubscribe"), call("2", other));
    let all = format!("InFlight: [1 ! {too_many}, 2 ! {too_many}]");
    assert_eq!(take(&batch("eth_call")), all);
    assert_eq!(take(&batch("eth_subscribe")), all);
    assert_eq!(rig.refused("in_flight"), 6);
    assert_eq!(take(&batch("eth_unsubscribe")), "[1 = true, 2 = true]");
    let ended = client.log.iter().filter(|entry| *entry == "eth_unsubscribe").count();
    assert_eq!(ended, 3);
}

#[test]
fn without_room_no_item_is_charged() {
    let rig = Rig::new(|c| {
        (c.limits.request_burst, c.limits.requests_per_second) = (100, 1);
        c.methods.weights = [("eth_call".to_owned(), 100)].into();
    });
    let mut client = Client {
        has_room: false,
        ..Client::default()
    };
    let unread = concat!(
        r#"InboundBytes(Full("no room")): {"jsonrpc":"2.0","id":null,"error":{"code":-32005,"#,
        r#""message":"limit exceeded: no room, try again later","data":{"retryAfterMs":1000}}}"#
    );
    let message = call("1", "eth_call");
    assert_eq!(rig.take(&message, &mut client), unread);
    assert_eq!((rig.refused("inbound_bytes"), client.log.len()), (1, 0));
    client.has_room = true;
    assert_eq!(rig.take(&message, &mut client), "1 > eth_call[1]");
}

#[test]
fn methods_of_the_embedding_program_are_called_by_the_transport() {
    let none = r#"[{"jsonrpc":"2.0","method":"own_now"},{"jsonrpc":"2.0","method":"own_subscribeTicks"}]"#;
    for (message, web_socket, http, log) in [
        (call("1", "own_now"), "1 = 7", "1 later", "place of 4, Call own_now"),
        (
            call("\"a\"", "own_later"),
            "\"a\" = 7",
            "\"a\" later",
            "place of 4, Call own_later",
        ),
        (
            call("1", "own_subscribeTicks"),
            "1 = 7",
            "1 ! -32601 notifications not supported",
            "place of 4, Subscribe own_subscribeTicks",
        ),
        (
            call("1", "own_unsubscribeTicks"),
            "1 = 7",
            "1 ! -32000 subscription not found",
            "Unsubscribe own_unsubscribeTicks",
        ),
        // Not carried out without an id.
        (notification("own_now"), "-", "-", ""),
        (none.to_owned(), "[-, -]", "[-, -]", ""),
        // Another name, in other case: a node's.
        (
            call("1", "own_Now"),
            "1 ! -32601 the method own_Now does not exist/is not available",
            "1 ! -32601 the method own_Now does not exist/is not available",
            "place of 4",
        ),
    ] {
        check_each(&message, web_socket, http, log);
    }
}

#[test]
fn methods_of_the_embedding_program_obey_the_lists_of_methods() {
    let denied = Rig::new(|typed| typed.methods.denied = vec!["own_now".to_owned()]);
    let refused = "1 ! -32601 the method own_now does not exist/is not available";
    assert_eq!(denied.take(&call("1", "own_now"), &mut Client::default()), refused);
    assert_eq!(denied.take(&call("1", "own_later"), &mut Client::default()), "1 = 7");
    assert_eq!(denied.refused("method"), 1);
    let mut without_places = Client {
        has_places: false,
        ..Client::default()
    };
    assert_eq!(
        denied.take(&call("1", "own_later"), &mut without_places),
        "InFlight: 1 ! -32005 limit exceeded: too many calls in flight"
    );
}

#[test]
fn methods_of_headwaters_own_need_no_place() {
    for name in ["rpc_discover", "rpc.discover", "headwater_accountLimits"] {
        let rig = Rig::new(|_| {});
        let mut client = Client {
            has_places: false,
            ..Client::default()
        };
        assert_eq!(rig.take(&call("1", name), &mut client), "1 = 8");
        assert_eq!(client.log, [format!("own {name}")]);
        // In a batch they take turns, so that their answers are not in memory all at once.
        let batch = format!("[{},{}]", call("1", name), call("2", name));
        let refused = rig.take(&batch, &mut client);
        assert!(refused.starts_with("InFlight: [1 ! -32005"), "{refused}");
        assert_eq!(rig.take_over_http(&batch), "[1 later, 2 later]");
        assert!(!rig.take_over_http(&call("1", name)).contains('!'), "{name} over HTTP");
    }
}
