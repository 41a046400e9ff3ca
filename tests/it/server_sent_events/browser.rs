//! A browser's own `EventSource`, with the page of the documentation's example: reloads of the page, a restart of the proxy
//! and a reorg. Runs where there is a Chromium (`CHROMIUM` names one).

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Html;
use axum::routing::{get, post};
use tokio::sync::{Mutex, mpsc};

use super::examples::{Running, code};
use crate::harness::{Event, Proxy, adopted, dropped, eventually, node, within};

/// Flags as in tests/interop/libraries/browser.mjs.
pub const FLAGS: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// Messages between the page and the test.
#[derive(Clone)]
struct Desk {
    page: Arc<str>,
    taken: mpsc::UnboundedSender<String>,
    commands: Arc<Mutex<mpsc::UnboundedReceiver<&'static str>>>,
}

/// Returns a page that runs the example: it posts the logs that it takes, in order, and does what it is commanded to do.
fn page(url: &str) -> String {
    let script = code("ts").replace("&address=${address}", "");
    format!(
        r#"<!doctype html><script type="module">
const url = "{url}";
// Waits for the answer, so that a reload of the page comes before a log or behind it.
const take = (log) => {{
  const request = new XMLHttpRequest();
  request.open("POST", "/take", false);
  request.send(JSON.stringify(log));
}};
{script}
if (await (await fetch("/command")).text() === "reload") location.reload();
</script>"#
    )
}

struct Browser {
    _process: Running,
    taken: mpsc::UnboundedReceiver<String>,
    commands: mpsc::UnboundedSender<&'static str>,
}

impl Browser {
    /// Opens the page; `None` without a Chromium.
    async fn open(url: &str, profile: &Path) -> Option<Self> {
        let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
        if !Path::new(&program).exists() {
            return None;
        }
        let (taken, received) = mpsc::unbounded_channel();
        let (commands, to_page) = mpsc::unbounded_channel();
        let desk = Desk {
            page: page(url).into(),
            taken,
            commands: Arc::new(Mutex::new(to_page)),
        };
        let show = async |State(desk): State<Desk>| Html(desk.page.to_string());
        let take = async |State(desk): State<Desk>, body: String| drop(desk.taken.send(body));
        let command = async |State(desk): State<Desk>| desk.commands.lock().await.recv().await.unwrap_or_default();
        let router = Router::new()
            .route("/", get(show))
            .route("/take", post(take))
            .route("/command", get(command))
            .with_state(desk);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut chromium = Command::new(program);
        chromium
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.display()));
        // Without a command for it the browser would print the page and exit.
        chromium
            .arg("--remote-debugging-port=0")
            .arg(format!("http://{address}/"));
        Some(Self {
            _process: Running::start(chromium.stdout(Stdio::null()).stderr(Stdio::null())),
            taken: received,
            commands,
        })
    }

    async fn expect(&mut self, story: &[String]) {
        for (at, line) in story.iter().enumerate() {
            let payload = within("a log in the page", self.taken.recv()).await.unwrap();
            let subscription = String::new();
            assert_eq!(Event { subscription, payload }.line(), *line, "log {at}");
        }
    }
}

fn logs(blocks: &[Arc<headwater::devnet::Block>]) -> Vec<String> {
    adopted(blocks)
        .into_iter()
        .filter(|line| line.starts_with("log"))
        .collect()
}

#[tokio::test]
async fn a_browser_goes_on_over_reloads_a_restart_and_a_reorg() {
    let node = node().await;
    let control = node.handle();
    let first = Proxy::start(&[node.ws_url()], |_| {}).await;
    first.settled(&control).await;
    let profile = tempfile::tempdir().unwrap();
    let url = format!("http://{}", first.address);
    let Some(mut browser) = Browser::open(&url, profile.path()).await else {
        eprintln!("no Chromium: apt-get install chromium, or set CHROMIUM to one");
        return;
    };
    let streams = r#"headwater_subscriptions{kind="logs"}"#;
    eventually("the page is there", async || first.metric(streams).await == 1.0).await;
    let blocks = control.mine_many(3);
    browser.expect(&logs(&blocks)).await;
    // What comes while the page is being loaded is not missing, a reorg included.
    browser.commands.send("reload").unwrap();
    let more = control.mine_many(2);
    let reorg = control.reorg(3, 4).unwrap();
    let story = [logs(&more), dropped(&reorg.dropped), logs(&reorg.adopted)].concat();
    let mut seen = Vec::new();
    while seen.last() != story.last() {
        let payload = within("a log in the page", browser.taken.recv()).await.unwrap();
        let subscription = String::new();
        seen.push(Event { subscription, payload }.line());
    }
    // How much of the dropped blocks it got before depends on the moment of the reload.
    let stands = |lines: &[String]| {
        let mut stands = Vec::new();
        for line in lines {
            let (word, log) = line.split_once(' ').unwrap();
            match word {
                "log" => stands.push(log.to_owned()),
                _ => stands.retain(|own| own != log),
            }
        }
        stands
    };
    let before = logs(&blocks);
    let all = |lines: &[String]| stands(&[&before[..], lines].concat());
    assert_eq!(all(&seen), all(&story));
    // The proxy restarts on its port, and the chain goes on.
    let listen = first.address.to_string();
    first.stop();
    first.ended().await.unwrap();
    let reorg = control.reorg(2, 3).unwrap();
    let second = Proxy::start(&[node.ws_url()], |config| config.listen = listen).await;
    second.ready().await;
    browser
        .expect(&[dropped(&reorg.dropped), logs(&reorg.adopted)].concat())
        .await;
    let block = control.mine();
    browser.expect(&logs(&[block])).await;
}
