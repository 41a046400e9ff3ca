//! Webhooks: events posted to receivers.

mod examples;
mod killed;
mod receiver;
#[path = "../shared/webhook_request.rs"]
mod webhook_request;

use std::path::Path;
use std::time::Duration;

use headwater::config::typed;
use serde_json::{Value, json};

use self::receiver::{Receiver, Reply};
use self::webhook_request::SECRET;
use crate::cli;
use crate::harness::{Proxy, Rig, adopted, dropped, eventually, node, within};

/// Folder with the files of webhooks.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), format!("{SECRET}\n")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Returns the settings of a webhook at this receiver.
    fn hook(&self, url: String, stream: &str) -> typed::Webhook {
        let name = url.split(['/', '?']).nth(2).unwrap().replace(':', "-");
        typed::Webhook {
            url,
            stream: Some(stream.to_owned()),
            secret_file: Some(self.path("secret")),
            state: Some(self.path(&format!("state-{name}"))),
            batch: None,
            batch_bytes: None,
            timeout: Some(Duration::from_secs(5)),
            retry_max: Some(Duration::from_millis(20)),
            retry_for: None,
            dead_letters: None,
            dead_letters_bytes: None,
            allow_private: true,
            ca: None,
        }
    }
}

fn add(config: &mut typed::Config, name: &str, hook: typed::Webhook) {
    config.webhooks.insert(name.to_owned(), hook);
}

async fn status(proxy: &Proxy, name: &str) -> Value {
    let status: Value = serde_json::from_str(&proxy.admin("/status").await.body).unwrap();
    let hooks = status["webhooks"].as_array().unwrap();
    hooks.iter().find(|own| own["name"] == name).cloned().unwrap()
}

/// Waits until a webhook has a position: events from then on are sent.
async fn begun(proxy: &Proxy, name: &str) {
    eventually("it has begun", async || status(proxy, name).await["phase"] == "idle").await;
}

fn logs(story: Vec<String>) -> Vec<String> {
    story.into_iter().filter(|line| !line.starts_with("head")).collect()
}

#[tokio::test]
async fn events_are_posted_in_order_with_the_nodes_bytes_and_signed() {
    let (files, receiver, heads) = (Files::new(), Receiver::start().await, Receiver::start().await);
    let rig = Rig::with(|config| {
        add(config, "logs", files.hook(receiver.url(), "kind=logs"));
        add(config, "heads", files.hook(heads.url(), "kind=heads"));
    })
    .await;
    begun(&rig, "logs").await;
    begun(&rig, "heads").await;
    let mut client = rig.client().await;
    client.subscribe(json!(["logs", {}])).await;
    let blocks = rig.control.mine_many(3);
    receiver.expect(&logs(adopted(&blocks))).await;
    let own: Vec<String> = blocks
        .iter()
        .map(|block| adopted(std::slice::from_ref(block))[0].clone())
        .collect();
    heads.expect(&own).await;
    // As a client gets them, byte by byte.
    let mut theirs = Vec::new();
    for _ in 0..receiver.story().len() {
        theirs.push(client.event().await.payload);
    }
    let ours: Vec<String> = receiver.accepted().iter().map(|own| own.body.clone()).collect();
    let ours: String = ours
        .iter()
        .map(|body| {
            body.split_once("\"data\":[")
                .unwrap()
                .1
                .trim_end_matches("]}")
                .to_owned()
                + ","
        })
        .collect();
    assert_eq!(ours, theirs.iter().map(|own| own.clone() + ",").collect::<String>());
    let first = &receiver.accepted()[0];
    let body = first.json();
    assert_eq!((&body["type"], &body["sequence"]), (&json!("logs"), &json!(1)));
    let head = (
        first.headers["content-type"].as_str(),
        first.headers["user-agent"].starts_with("headwater/"),
    );
    assert_eq!(head, ("application/json", true));
    eventually("it is shown", async || {
        let status = status(&rig, "logs").await;
        (status["behind"] == 0, status["events"].clone(), status["lagMs"].clone()) == (true, json!(18), json!(0))
    })
    .await;
    assert_eq!(
        rig.metric(r#"headwater_webhook_events_total{webhook="logs"}"#).await,
        18.0
    );
    assert_eq!(
        rig.metric(r#"headwater_webhook_lag_seconds{webhook="logs"}"#).await,
        0.0
    );
    let page = rig.admin("/status").await.body;
    assert!(!page.contains("hunter2") && !page.contains("whsec"), "{page}");
}

#[tokio::test]
async fn a_batch_that_is_not_accepted_comes_again_the_same() {
    let (files, receiver, other) = (Files::new(), Receiver::start().await, Receiver::start().await);
    let rig = Rig::with(|config| {
        let hook = typed::Webhook {
            timeout: Some(Duration::from_millis(300)),
            ..files.hook(receiver.url(), "kind=logs")
        };
        add(config, "a", hook);
    })
    .await;
    begun(&rig, "a").await;
    let location: &'static str = format!("location: {}\r\n", other.url()).leak();
    let failures = [
        Reply::Status(500, ""),
        Reply::Status(302, location),
        Reply::Status(307, location),
        Reply::Status(404, ""),
        Reply::Status(429, "retry-after: 0\r\n"),
        Reply::Close,
        Reply::HalfHead,
        Reply::Hang,
        Reply::Status(503, "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
    ];
    let count = failures.len();
    receiver.next(failures);
    let block = rig.control.mine();
    let story = logs(adopted(&[block]));
    receiver.expect(&story).await;
    let tried = receiver.requests();
    let first = &tried[0];
    for again in &tried[..=count] {
        assert_eq!((&again.id, &again.body), (&first.id, &first.body));
    }
    assert!(other.requests().is_empty(), "a redirect was followed");
    // An answer whose body does not come is one.
    receiver.next([Reply::Half]);
    let story = [story, logs(adopted(&[rig.control.mine()]))].concat();
    receiver.expect(&story).await;
    let failed = r#"headwater_webhook_attempts_total{webhook="a",outcome="failed"}"#;
    assert_eq!(rig.metric(failed).await, count as f64);
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_left_alone_until_a_restart() {
    let (files, receiver, other) = (Files::new(), Receiver::start().await, Receiver::start().await);
    let edit = |config: &mut typed::Config| {
        add(config, "gone", files.hook(receiver.url(), "kind=logs"));
        add(config, "other", files.hook(other.url(), "kind=logs"));
    };
    let rig = Rig::with(edit).await;
    begun(&rig, "gone").await;
    begun(&rig, "other").await;
    receiver.next([Reply::Status(410, "")]);
    let mut story = logs(adopted(&[rig.control.mine()]));
    eventually("it is disabled", async || {
        status(&rig, "gone").await["phase"] == "disabled"
    })
    .await;
    assert_eq!(rig.metric(r#"headwater_webhook_disabled{webhook="gone"}"#).await, 1.0);
    story.extend(logs(adopted(&rig.control.mine_many(2))));
    other.expect(&story).await;
    assert_eq!(receiver.requests().len(), 1);
    let id = receiver.requests()[0].id.clone();
    let Rig { node, control, proxy } = rig;
    proxy.stop();
    within("it ends", proxy.ended()).await.unwrap();
    let again = Proxy::start(&[node.ws_url()], edit).await;
    again.settled(&control).await;
    receiver.expect(&story).await;
    assert_eq!(receiver.requests()[1].id, id);
}

#[tokio::test]
async fn a_batch_that_is_given_up_is_a_dead_letter_and_the_next_one_is_sent() {
    let (files, receiver) = (Files::new(), Receiver::start().await);
    let rig = Rig::with(|config| {
        let hook = typed::Webhook {
            retry_for: Some(Duration::from_millis(100)),
            dead_letters: Some(files.path("dead")),
            ..files.hook(receiver.url(), "kind=logs")
        };
        add(config, "a", hook);
    })
    .await;
    begun(&rig, "a").await;
    receiver.usual(Some(Reply::Status(500, "")));
    let lost = logs(adopted(&[rig.control.mine()]));
    let dead = r#"headwater_webhook_dead_events_total{webhook="a"}"#;
    eventually("it is given up", async || rig.metric(dead).await == lost.len() as f64).await;
    receiver.usual(None);
    receiver.expect(&logs(adopted(&[rig.control.mine()]))).await;
    let text = std::fs::read_to_string(files.path("dead")).unwrap();
    let letters: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(letters[0]["body"], json!(receiver.requests()[0].body));
    assert_eq!(
        (&letters[0]["id"], &letters[0]["error"]),
        (
            &json!(receiver.requests()[0].id),
            &json!("HTTP 500 Internal Server Error")
        )
    );
}

/// A receiver that hangs delays its own hook only, whose memory is bounded; it gets all once it returns.
#[tokio::test]
async fn a_receiver_that_hangs_delays_nobody_else_and_gets_all_later() {
    let (files, stuck, other) = (Files::new(), Receiver::start().await, Receiver::start().await);
    let rig = Rig::with(|config| {
        let hook = typed::Webhook {
            timeout: Some(Duration::from_secs(3600)),
            batch: Some(7),
            ..files.hook(stuck.url(), "kind=logs")
        };
        add(config, "stuck", hook);
        add(config, "other", files.hook(other.url(), "kind=logs"));
    })
    .await;
    begun(&rig, "stuck").await;
    begun(&rig, "other").await;
    let mut client = rig.client().await;
    client.subscribe(json!(["newHeads"])).await;
    client.subscribe(json!(["logs", {}])).await;
    stuck.usual(Some(Reply::Hang));
    let blocks = rig.control.mine_many(20);
    let story = adopted(&blocks);
    client.expect(story.clone()).await;
    other.expect(&logs(story.clone())).await;
    // Its feed is dropped, so that nothing waits for it in any queue.
    let feeds = r#"headwater_subscriptions{kind="logs"}"#;
    eventually("it has no feed", async || rig.metric(feeds).await == 2.0).await;
    let more = rig.control.mine_many(20);
    client.expect(adopted(&more)).await;
    let story = [logs(story), logs(adopted(&more))].concat();
    other.expect(&story).await;
    assert_eq!(stuck.requests().len(), 1);
    // A restart ends the request that hangs.
    stuck.usual(None);
    let Rig { node, control, proxy } = rig;
    proxy.stop();
    within("it ends", proxy.ended()).await.unwrap();
    let again = Proxy::start(&[node.ws_url()], |config| {
        let hook = typed::Webhook {
            batch: Some(7),
            ..files.hook(stuck.url(), "kind=logs")
        };
        add(config, "stuck", hook);
    })
    .await;
    again.settled(&control).await;
    stuck.expect(&story).await;
    assert!(stuck.requests().iter().all(|own| own.lines().len() <= 7));
}

/// A reorg while the proxy is down; and an end in the middle of the removals.
#[tokio::test]
async fn removals_come_over_a_restart_and_go_on_where_they_were() {
    let (files, receiver) = (Files::new(), Receiver::start().await);
    let node = node().await;
    let control = node.handle();
    let edit = |config: &mut typed::Config| {
        let hook = typed::Webhook {
            batch: Some(1),
            ..files.hook(receiver.url(), "kind=logs")
        };
        add(config, "a", hook);
    };
    let first = Proxy::start(&[node.ws_url()], edit).await;
    first.settled(&control).await;
    begun(&first, "a").await;
    let blocks = control.mine_many(3);
    let mut story = logs(adopted(&blocks));
    receiver.expect(&story).await;
    first.stop();
    within("it ends", first.ended()).await.unwrap();
    let reorg = control.reorg(2, 3).unwrap();
    let removals = dropped(&reorg.dropped);
    // The fifth removal is not accepted, and the process ends.
    receiver.next([const { Reply::Status(204, "") }; 4]);
    receiver.usual(Some(Reply::Status(500, "")));
    let second = Proxy::start(&[node.ws_url()], edit).await;
    let (count, accepted) = (story.len(), removals[..4].to_vec());
    eventually("some are taken back", async || {
        receiver.story().len() == count + 4 && !receiver.requests().last().unwrap().is_accepted
    })
    .await;
    story.extend(accepted);
    receiver.expect(&story).await;
    second.stop();
    within("it ends", second.ended()).await.unwrap();
    receiver.usual(None);
    let third = Proxy::start(&[node.ws_url()], edit).await;
    third.settled(&control).await;
    story.extend(removals[4..].to_vec());
    story.extend(logs(adopted(&reorg.adopted)));
    receiver.expect(&story).await;
    story.extend(logs(adopted(&[control.mine()])));
    receiver.expect(&story).await;
    assert_eq!(third.metric(r#"headwater_webhook_gaps_total{webhook="a"}"#).await, 0.0);
}

#[tokio::test]
async fn a_position_that_is_too_old_is_announced_and_the_stream_goes_on_live() {
    let (files, receiver) = (Files::new(), Receiver::start().await);
    let node = node().await;
    let control = node.handle();
    let edit = |config: &mut typed::Config| {
        config.history.max_replay = 8;
        config.history.blocks = 8;
        add(config, "a", files.hook(receiver.url(), "kind=logs"));
    };
    let first = Proxy::start(&[node.ws_url()], edit).await;
    first.settled(&control).await;
    begun(&first, "a").await;
    let before = logs(adopted(&[control.mine()]));
    receiver.expect(&before).await;
    eventually("it is idle", async || status(&first, "a").await["phase"] == "idle").await;
    first.stop();
    within("it ends", first.ended()).await.unwrap();
    control.mine_many(30);
    let second = Proxy::start(&[node.ws_url()], edit).await;
    second.settled(&control).await;
    eventually("the gap is announced", async || {
        receiver.accepted().iter().any(|own| own.json()["type"] != "logs")
    })
    .await;
    let blocks = control.mine_many(2);
    eventually("it goes on", async || receiver.story().len() == before.len() + 12).await;
    assert_eq!(receiver.story()[before.len()..], logs(adopted(&blocks)));
    let gaps: Vec<Value> = receiver.accepted().iter().map(receiver::Request::json).collect();
    let gap = gaps.iter().find(|own| own["type"] == "headwater.gap").unwrap();
    assert_eq!(gap["data"]["firstBlock"], json!(format!("{:#x}", blocks[0].number())));
    assert!(
        gap["data"]["position"].is_string() && gap["data"]["lastBlockHash"].is_string(),
        "{gap}"
    );
    assert!(gap["data"]["reason"].as_str().unwrap().contains("too old"), "{gap}");
    assert_eq!(second.metric(r#"headwater_webhook_gaps_total{webhook="a"}"#).await, 1.0);
}

#[tokio::test]
async fn webhooks_and_their_secrets_change_by_reload() {
    let (files, receiver, other) = (Files::new(), Receiver::start().await, Receiver::start().await);
    let node = node().await;
    let control = node.handle();
    let section = |name: &str, url: String| {
        format!(
            "[webhooks.{name}]\nurl = {url:?}\nstream = \"kind=logs\"\nsecret_file = {:?}\nstate = {:?}\nallow_private = true\n",
            files.path("secret"),
            files.path(name)
        )
    };
    let config = files.path("headwater.toml");
    std::fs::write(&config, section("a", receiver.url())).unwrap();
    let proxy = Proxy::from_file(Path::new(&config), &[node.ws_url()]).await;
    proxy.settled(&control).await;
    begun(&proxy, "a").await;
    let mut story = logs(adopted(&[control.mine()]));
    receiver.expect(&story).await;
    let signatures = |receiver: &Receiver| {
        let requests = receiver.requests();
        requests.last().unwrap().headers["webhook-signature"].split(' ').count()
    };
    assert_eq!(signatures(&receiver), 1);
    // A second secret, and a second webhook.
    std::fs::write(files.path("secret"), format!("{SECRET}\nwhsec_{}\n", "A".repeat(32))).unwrap();
    std::fs::write(&config, section("a", receiver.url()) + &section("b", other.url())).unwrap();
    eventually("b is there", async || {
        let page = proxy.admin("/status").await.body;
        page.contains("\"name\": \"b\"")
    })
    .await;
    begun(&proxy, "a").await;
    begun(&proxy, "b").await;
    let more = logs(adopted(&[control.mine()]));
    other.expect(&more).await;
    story.extend(more);
    receiver.expect(&story).await;
    assert_eq!((signatures(&receiver), signatures(&other)), (2, 2));
    // One leaves, and returns without a loss.
    std::fs::write(&config, section("b", other.url())).unwrap();
    eventually("a has left", async || {
        !proxy.admin("/status").await.body.contains("\"name\": \"a\"")
    })
    .await;
    let late = logs(adopted(&[control.mine()]));
    std::fs::write(&config, section("a", receiver.url()) + &section("b", other.url())).unwrap();
    story.extend(late);
    receiver.expect(&story).await;
}

/// Returns the configuration of one webhook as a file.
fn file(files: &Files, url: &str, more: &str) -> String {
    let text = format!(
        "[webhooks.a]\nurl = {url:?}\nstream = \"kind=logs\"\nsecret_file = {:?}\nstate = {:?}\n{more}",
        files.path("secret"),
        files.path("state")
    );
    let path = files.path("one.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_test_event_is_signed_and_its_outcome_is_one_line() {
    let (files, receiver) = (Files::new(), Receiver::start().await);
    let config = file(&files, &receiver.url(), "allow_private = true\n");
    let test = async |name: &str| {
        let (config, name) = (config.clone(), name.to_owned());
        let run = move || cli::run(&["webhook", "test", &name, "--config", &config], &[]);
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    let output = test("a").await;
    let line = cli::text(&output.stdout).to_owned();
    assert!(
        output.status.success() && line.starts_with("webhook a: HTTP 204 No Content in "),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
    assert_eq!(receiver.accepted()[0].json()["type"], "headwater.test");
    receiver.next([Reply::Status(401, "")]);
    let output = test("a").await;
    let line = cli::text(&output.stderr);
    assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1));
    assert!(
        line.starts_with("headwater: webhook a: HTTP 401 Unauthorized in "),
        "{line}"
    );
    let output = test("b").await;
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        cli::text(&output.stderr),
        "headwater: \"b\" is not a configured webhook: use one of a\n"
    );
    assert!(!Path::new(&files.path("state")).exists(), "a test has no position");
}

#[tokio::test]
async fn settings_that_cannot_work_stop_the_start_with_the_remedy() {
    let files = Files::new();
    let refused = |config: &str, part: &str| {
        let output = cli::run(
            &["--config", config, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"],
            &[],
        );
        let line = cli::text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{line}");
        assert!(line.contains(part) && line.lines().count() == 1, "{line}");
        assert!(!line.contains("hunter2") && !line.contains("whsec_Mf"), "{line}");
    };
    let private = "http://169.254.169.254/latest?key=hunter2";
    refused(
        &file(&files, private, ""),
        "webhooks.a.url: 169.254.169.254 is not a public address: set allow_private",
    );
    std::fs::write(files.path("state"), "{\"version\":1,\"kind\":\"logs\"").unwrap();
    let url = "https://hooks.example/?key=hunter2";
    refused(
        &file(&files, url, ""),
        "not the state of a webhook: restore it from a copy, or move it away",
    );
}

/// A name that leads to a private address is known only when it is resolved.
#[tokio::test]
async fn a_name_of_a_private_address_is_not_connected_to() {
    let (files, receiver) = (Files::new(), Receiver::start().await);
    let url = format!("http://localhost:{}/", receiver.address.port());
    let config = file(&files, &url, "");
    let run = move || cli::run(&["webhook", "test", "a", "--config", &config], &[]);
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let line = cli::text(&output.stderr);
    assert!(line.contains("is not a public address: set allow_private"), "{line}");
    assert!(receiver.requests().is_empty());
}
