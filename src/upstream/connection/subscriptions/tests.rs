use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::clock::AtomicMoment;
use crate::config::{Config, typed};
use crate::telemetry::Metrics;
use crate::upstream::active::{ActiveUpstream, Named};
use crate::upstream::identity::ChainIdentity;
use crate::upstream::lanes::Lanes;
use crate::upstream::link::{Inbound, Outbound};
use crate::upstream::load::Load;
use crate::upstream::shared::UpstreamShared;
use crate::upstream::{BestEffortEvent, Endpoint, Passthrough, UpstreamId};

/// Creates an open connection to the upstream in use, and the sender of what clients need.
pub(crate) fn serving(edit: impl FnOnce(&mut typed::Config)) -> (Serving, watch::Sender<Wanted>) {
    let (serving, wants, _) = heard(edit);
    (serving, wants)
}

/// Creates the same as [`serving`], with the receiver of the events that are passed on.
pub(crate) fn heard(
    edit: impl FnOnce(&mut typed::Config),
) -> (Serving, watch::Sender<Wanted>, mpsc::Receiver<BestEffortEvent>) {
    let mut typed = typed::Config {
        upstream: vec!["ws://127.0.0.1:1".to_owned().into()],
        ..typed::Config::default()
    };
    edit(&mut typed);
    let config = Config::check(&typed).expect("good settings");
    let endpoint: Endpoint = config.upstreams[0].endpoint.clone();
    let (wants, wanted) = watch::channel(Wanted::default());
    let (best_effort, passed_on) = mpsc::channel(1024);
    let metrics = Arc::new(Metrics::new().0);
    let active = ActiveUpstream::new(&config.node, metrics);
    let last_activity = Arc::<AtomicMoment>::default();
    active.arrange(vec![Named {
        id: UpstreamId(0),
        endpoint: endpoint.clone(),
        last_activity: last_activity.clone(),
    }]);
    let shared = UpstreamShared {
        id: UpstreamId(0),
        endpoint,
        status: Mutex::default(),
        last_activity,
        active: Arc::new(active),
        settings: config.node,
        identity: Arc::new(ChainIdentity::new(None)),
        newest: Mutex::default(),
        sightings: mpsc::channel(1).0,
        best_effort,
        best_effort_dropped: Arc::new(AtomicU64::new(0)),
        wanted,
        load: Load::default(),
        stream: watch::Sender::default(),
        lanes: watch::Sender::new(Lanes::One),
        call_bytes: Mutex::default(),
        answers: crate::shares::Budget::new("answers", 1 << 20),
        internal_answers: crate::shares::Budget::new("answers", 1 << 20),
    };
    shared.up();
    let mut serving = Serving::new(Arc::new(shared));
    serving.ready = true;
    (serving, wants, passed_on)
}

pub(crate) fn want_pending(wants: &watch::Sender<Wanted>, hashes: bool, full: bool) {
    wants.send_modify(|wanted| (wanted.pending_hashes, wanted.pending_full) = (hashes, full));
}

/// Returns a message of the subscription with this id.
pub(crate) fn message(id: &str, member: &str, value: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"eth_subscription","params":{{"subscription":{id},"{member}":{value}}}}}"#)
}

/// Answers the last request as the node.
pub(crate) async fn answers(serving: &mut Serving, member: &str, value: &str) {
    let id = serving.next_id;
    says(serving, &format!(r#"{{"jsonrpc":"2.0","id":{id},"{member}":{value}}}"#)).await;
}

/// Takes the queued requests: method and parameters of each.
pub(crate) fn asked(serving: &mut Serving) -> Vec<String> {
    let of = |text: String| {
        let json: serde_json::Value = serde_json::from_str(&text).expect("a question");
        format!("{} {}", json["method"].as_str().expect("a name"), json["params"])
    };
    written(serving).into_iter().map(of).collect()
}

/// Returns what is published of a subscription: that it stands, an error, or nothing yet.
pub(crate) fn said(serving: &Serving, of: &NodeSubscription) -> String {
    match serving.shared.active.answers().borrow().get(of) {
        Some(Ok(())) => "stands".to_owned(),
        Some(Err(error)) => text(error),
        None => "nothing".to_owned(),
    }
}

fn each_kind() -> [(NodeSubscription, Wanted); 3] {
    let none = Wanted::default;
    [
        (
            HASHES,
            Wanted {
                pending_hashes: true,
                ..none()
            },
        ),
        (
            WHOLE,
            Wanted {
                pending_full: true,
                ..none()
            },
        ),
        (
            NodeSubscription::Passthrough(passed(1)),
            Wanted {
                passed: Arc::new([passed(1)].into()),
                ..none()
            },
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn what_the_node_ends_is_asked_for_again() {
    for (of, wanted) in each_kind() {
        // The end arrives before or after the answer; other members of the message do not matter.
        for (early, end) in [
            (
                false,
                message(r#""0xa""#, "error", r#"{"code":-32020,"message":"lagged"}"#),
            ),
            (false, message(r#""0xa""#, "error", r#""lagged""#)),
            (false, message(r#""0xa""#, "result", r#"null,"error":{}"#)),
            (true, message(r#""0xa""#, "error", "{}")),
        ] {
            let (mut serving, wants) = serving(|_| {});
            wants.send_replace(wanted.clone());
            serving.reconcile();
            let question = asked(&mut serving);
            assert_eq!(question.len(), 1);
            if early {
                says(&mut serving, &end).await;
            }
            answers(&mut serving, "result", r#""0xa""#).await;
            if !early {
                assert_eq!(said(&serving, &of), "stands");
                says(&mut serving, &end).await;
            }
            assert_eq!(said(&serving, &of), "nothing", "whoever asks now waits");
            assert!(asked(&mut serving).is_empty(), "not at once");
            tokio::time::advance(Duration::from_secs(1)).await;
            serving.reconcile();
            assert_eq!(asked(&mut serving), question);
            answers(&mut serving, "result", r#""0xb""#).await;
            assert_eq!(said(&serving, &of), "stands");
            // A subscription that stood for a while is requested again at once.
            tokio::time::advance(SOON).await;
            says(&mut serving, &end.replace("0xa", "0xb")).await;
            assert_eq!(asked(&mut serving), question);
            answers(&mut serving, "error", r#"{"code":-32000,"message":"no more"}"#).await;
            if of == WHOLE {
                assert_eq!(asked(&mut serving), [r#"eth_subscribe ["newPendingTransactions"]"#]);
                answers(&mut serving, "error", r#"{"code":-32000,"message":"no more"}"#).await;
            }
            assert_eq!(said(&serving, &of), r#"{"code":-32000,"message":"no more"}"#);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_node_ends_again_and_again_is_refused() {
    for (of, wanted) in each_kind() {
        let (mut serving, wants) = serving(|_| {});
        wants.send_replace(wanted);
        let (mut questions, mut began) = (0, Instant::now());
        while said(&serving, &of) != r#"{"code":7}"# {
            serving.reconcile();
            for _ in asked(&mut serving) {
                questions += 1;
                let id = format!("\"{questions}\"");
                answers(&mut serving, "result", &id).await;
                says(&mut serving, &message(&id, "error", r#"{"code":7}"#)).await;
            }
            tokio::time::advance(Duration::from_millis(500)).await;
            assert!(began.elapsed() < Duration::from_secs(60));
        }
        // Whole transactions are also tried as hashes.
        let most = (MAX_ENDS + 1) * if of == WHOLE { 2 } else { 1 };
        assert_eq!(questions, most);
        assert!(serving.feeds.is_empty());
        // A client that subscribes anew causes a new request: the node knows the method.
        wants.send_replace(Wanted::default());
        serving.reconcile();
        began = Instant::now();
        wants.send_replace(
            each_kind()
                .into_iter()
                .find(|(own, _)| *own == of)
                .expect("one of them")
                .1,
        );
        serving.reconcile();
        assert_eq!((asked(&mut serving).len(), began.elapsed()), (1, Duration::ZERO));
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_without_an_id_is_none() {
    for grant in ["false", "null", "true", r#""""#, "[]", "{}"] {
        for (of, wanted) in each_kind() {
            let (mut serving, wants) = serving(|_| {});
            wants.send_replace(wanted);
            serving.reconcile();
            asked(&mut serving);
            answers(&mut serving, "result", grant).await;
            if of == WHOLE {
                assert_eq!(asked(&mut serving), [r#"eth_subscribe ["newPendingTransactions"]"#]);
                answers(&mut serving, "result", grant).await;
            }
            assert!(said(&serving, &of).contains("without an id"), "{grant} {of:?}");
            assert!(serving.feeds.is_empty() && asked(&mut serving).is_empty());
        }
        let (mut serving, _wants) = serving(|_| {});
        serving.ask_vital(Purpose::Subscribe(FeedState::Heads));
        asked(&mut serving);
        answers(&mut serving, "result", grant).await;
        assert!(serving.heads.is_polled() && serving.feeds.is_empty(), "{grant}");
        // Granted late, after the request was given up.
        serving.late.insert(99, "eth_unsubscribe".to_owned());
        says(&mut serving, &format!(r#"{{"id":99,"result":{grant}}}"#)).await;
        assert!(asked(&mut serving).is_empty(), "{grant}");
    }
}

/// A client names the kind, and the node's refusal may repeat the client's words.
#[tokio::test]
async fn the_words_of_a_refusal_of_what_a_client_named_are_no_limit() {
    let (mut serving, wants) = serving(|_| {});
    want(&wants, [1]);
    serving.reconcile();
    asked(&mut serving);
    let error = r#"{"code":-32601,"message":"no \"rate limit\" subscription in eth namespace"}"#;
    answers(&mut serving, "error", error).await;
    assert_eq!(said(&serving, &NodeSubscription::Passthrough(passed(1))), error);
    assert!(!serving.shared.load.is_backing_off(Instant::now()));
}

pub(crate) fn passed(of: usize) -> Passthrough {
    let param = serde_json::value::to_raw_value(&of).expect("a number");
    Passthrough::new("eth_subscribe", &[&param]).expect("short")
}

pub(crate) fn want(wants: &watch::Sender<Wanted>, of: impl IntoIterator<Item = usize>) {
    wants.send_modify(|wanted| wanted.passed = Arc::new(of.into_iter().map(passed).collect::<BTreeSet<_>>()));
}

/// Takes the queued messages.
pub(crate) fn written(serving: &mut Serving) -> Vec<String> {
    let messages = serving.out.drain(..).map(|message| match message {
        Outbound::Message(text) => text,
        Outbound::Ping => "ping".to_owned(),
    });
    messages.collect()
}

pub(crate) async fn says(serving: &mut Serving, text: &str) {
    let message = Inbound::Message(Bytes::copy_from_slice(text.as_bytes()));
    serving.apply(message).await.expect("the connection stands");
}

#[tokio::test]
async fn a_subscription_is_ended_also_where_the_write_queue_is_full() {
    let (mut serving, wants) = serving(|_| {});
    want(&wants, [1]);
    wants.send_modify(|wanted| wanted.pending_hashes = true);
    serving.reconcile();
    assert_eq!(written(&mut serving).len(), 2);
    for (id, subscription) in [(1, "0xa"), (2, "0xb")] {
        let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"{subscription}"}}"#);
        says(&mut serving, &answer).await;
    }
    while serving.put(Outbound::Ping) {}
    wants.send_replace(Wanted::default());
    serving.reconcile();
    assert!(written(&mut serving).iter().all(|text| text == "ping"));
    serving.reconcile();
    let ends = written(&mut serving).concat();
    assert!(ends.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{ends}");
    assert!(ends.contains(r#""eth_unsubscribe","params":["0xb"]"#), "{ends}");
    serving.reconcile();
    assert!(written(&mut serving).is_empty(), "once");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_waits_for_its_own_refusals_alone() {
    let (mut serving, wants) = serving(|_| {});
    let hour = Duration::from_secs(3600);
    serving.shared.load.throttled(Instant::now(), Some(hour));
    want(&wants, [1]);
    wants.send_modify(|wanted| wanted.pending_hashes = true);
    serving.reconcile();
    assert_eq!(written(&mut serving).len(), 2);
    let limit = r#""error":{"code":-32005,"message":"rate limited"}"#;
    for id in [1, 2] {
        says(&mut serving, &format!(r#"{{"jsonrpc":"2.0","id":{id},{limit}}}"#)).await;
    }
    serving.reconcile();
    assert!(written(&mut serving).is_empty(), "not at once");
    tokio::time::advance(Duration::from_secs(1)).await;
    serving.reconcile();
    assert_eq!(written(&mut serving).len(), 2);
    for id in [3, 4] {
        says(&mut serving, &format!(r#"{{"jsonrpc":"2.0","id":{id},{limit}}}"#)).await;
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    serving.reconcile();
    assert!(written(&mut serving).is_empty(), "the second time it takes longer");
    tokio::time::advance(Duration::from_secs(1)).await;
    serving.reconcile();
    assert_eq!(written(&mut serving).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_ended_also_where_the_node_is_asked_too_much() {
    let (mut serving, wants) = serving(|_| {});
    want(&wants, [1]);
    serving.reconcile();
    says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
    want(&wants, []);
    serving.reconcile();
    written(&mut serving);
    says(
        &mut serving,
        r#"{"jsonrpc":"2.0","id":2,"error":{"code":429,"message":"slow down"}}"#,
    )
    .await;
    serving.reconcile();
    assert!(written(&mut serving).is_empty(), "not at once");
    tokio::time::advance(Duration::from_secs(1)).await;
    serving.reconcile();
    let end = written(&mut serving).concat();
    assert!(end.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{end}");
}

#[tokio::test]
async fn one_that_is_being_ended_takes_a_place_until_the_node_has_answered() {
    let (mut serving, wants) = serving(|typed| typed.subscriptions.max_passthrough = 1);
    want(&wants, [1]);
    serving.reconcile();
    says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
    written(&mut serving);
    want(&wants, [2]);
    serving.reconcile();
    let end = written(&mut serving);
    assert!(end.len() == 1 && end[0].contains("eth_unsubscribe"), "{end:?}");
    says(&mut serving, r#"{"jsonrpc":"2.0","id":2,"result":true}"#).await;
    let next = written(&mut serving);
    assert!(next.len() == 1 && next[0].contains(r#""params":[2]"#), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_never_answered_takes_no_place_for_ever() {
    let (mut serving, wants) = serving(|typed| typed.subscriptions.max_passthrough = 2);
    let mut asked = 0;
    // Clients that subscribe and leave do not exceed the limit.
    for of in 0..10 {
        want(&wants, [of]);
        serving.reconcile();
        asked += written(&mut serving).len();
    }
    assert_eq!((asked, serving.waiting.len()), (2, 2));
    tokio::time::advance(serving.shared.settings.request_timeout).await;
    serving.expire().expect("it stands");
    let next = written(&mut serving).concat();
    assert!(next.contains(r#""params":[9]"#), "{next}");
    // A late grant is ended.
    says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
    let end = written(&mut serving).concat();
    assert!(end.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{end}");
    // A request to end a subscription that is not answered does not take a place for ever either.
    tokio::time::advance(serving.shared.settings.request_timeout).await;
    serving.expire().expect("it stands");
    assert!(serving.waiting.is_empty() && serving.feeds.is_empty() && serving.own.is_empty());
}
