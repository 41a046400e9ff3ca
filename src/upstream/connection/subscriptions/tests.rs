use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::config::{Config, typed};
use crate::telemetry::Metrics;
use crate::upstream::choice::Choice;
use crate::upstream::identity::Identity;
use crate::upstream::link::{Inbound, Outbound};
use crate::upstream::load::Load;
use crate::upstream::pool::Shared;
use crate::upstream::{Endpoint, Passed, UpstreamId};

/// A connection that stands, to the node in use, and what is wanted of it.
fn serving(edit: impl FnOnce(&mut typed::Config)) -> (Serving, watch::Sender<Wanted>) {
    let mut typed = typed::Config {
        upstream: vec!["ws://127.0.0.1:1".to_owned().into()],
        ..typed::Config::default()
    };
    edit(&mut typed);
    let config = Config::check(&typed).expect("good settings");
    let endpoint: Endpoint = config.upstreams[0].endpoint.clone();
    let (wants, wanted) = watch::channel(Wanted::default());
    let metrics = Arc::new(Metrics::new().0);
    let shared = Shared {
        id: UpstreamId(0),
        endpoint: endpoint.clone(),
        status: Mutex::default(),
        choice: Arc::new(Choice::new(vec![endpoint], &config.node, metrics)),
        settings: config.node,
        identity: Arc::new(Identity::new(1, None)),
        newest: Mutex::default(),
        sightings: mpsc::channel(1).0,
        gossip: mpsc::channel(1).0,
        gossip_dropped: Arc::new(AtomicU64::new(0)),
        wanted,
        load: Load::default(),
    };
    shared.up();
    let mut serving = Serving::new(Arc::new(shared));
    serving.ready = true;
    (serving, wants)
}

fn passed(of: usize) -> Passed {
    let param = serde_json::value::to_raw_value(&of).expect("a number");
    Passed::new("eth_subscribe", &[&param]).expect("short")
}

fn want(wants: &watch::Sender<Wanted>, of: impl IntoIterator<Item = usize>) {
    wants.send_modify(|wanted| wanted.passed = Arc::new(of.into_iter().map(passed).collect::<BTreeSet<_>>()));
}

/// What is written next.
fn written(serving: &mut Serving) -> Vec<String> {
    let messages = serving.out.drain(..).map(|message| match message {
        Outbound::Message(text) => text,
        Outbound::Ping => "ping".to_owned(),
    });
    messages.collect()
}

async fn says(serving: &mut Serving, text: &str) {
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
    let (mut serving, wants) = serving(|typed| typed.subscriptions.max_passed = 1);
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
    let (mut serving, wants) = serving(|typed| typed.subscriptions.max_passed = 2);
    let mut asked = 0;
    // Who asks and leaves comes to no more than the limit.
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
    // What is granted after all is ended.
    says(&mut serving, r#"{"jsonrpc":"2.0","id":1,"result":"0xa"}"#).await;
    let end = written(&mut serving).concat();
    assert!(end.contains(r#""eth_unsubscribe","params":["0xa"]"#), "{end}");
    // And an end that is not answered takes no place for ever either.
    tokio::time::advance(serving.shared.settings.request_timeout).await;
    serving.expire().expect("it stands");
    assert!(serving.waiting.is_empty() && serving.feeds.is_empty() && serving.own.is_empty());
}
