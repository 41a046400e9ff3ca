//! HTTP/2 as real clients speak it: curl, Node's `http2`, and Chromium, which opens a WebSocket on the connection of its
//! requests. A client that the machine does not have is named, and not tested.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::response::Html;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::harness::{Rig, within};
use crate::server_sent_events::examples::Running;
use crate::tls::Authority;
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER};

/// Runs a program to its end; `None` if the machine does not have it.
async fn run(program: &'static str, args: Vec<String>) -> Option<Output> {
    let running = tokio::task::spawn_blocking(move || Command::new(program).args(args).output());
    let output = within(program, running).await.unwrap();
    if output.is_err() {
        eprintln!("no {program}");
    }
    output.ok()
}

fn args(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

#[tokio::test]
async fn curl_by_prior_knowledge_and_by_alpn() {
    let features = run("curl", args(&["--version"])).await;
    if !features.is_some_and(|output| String::from_utf8_lossy(&output.stdout).contains("HTTP2")) {
        return eprintln!("no curl with HTTP/2");
    }
    let (rig, authority) = (Rig::start().await, Authority::new());
    let secured = authority.rig(|_| {}).await;
    let off = authority
        .rig(|config| config.server.http2 = headwater::server::Http2::Off)
        .await;
    let https = |rig: &Rig| format!("https://localhost:{}/", rig.address.port());
    for (flags, url, version) in [
        (
            &["--http2-prior-knowledge"][..],
            format!("http://{}/", rig.address),
            "2",
        ),
        // An upgrade from HTTP/1.1 (RFC 7540) is not answered, and the request is, as RFC 9113 wants it.
        (&["--http2"], format!("http://{}/", rig.address), "1.1"),
        (&[], https(&secured), "2"),
        (&["--http1.1"], https(&secured), "1.1"),
        (&[], https(&off), "1.1"),
    ] {
        let mut call = args(flags);
        // The names of this authority and its certificates are the same, which OpenSSL takes for self-signed.
        call.extend(args(&[
            "-sSk",
            "--json",
            CHAIN_ID,
            "-w",
            " %{http_version} %{http_code}",
            &url,
        ]));
        let output = run("curl", call).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            text,
            format!("{CHAIN_ID_ANSWER} {version} 200"),
            "{flags:?} {url} {:?}",
            output.stderr
        );
    }
}

/// Posts 200 calls at once, then opens a WebSocket as RFC 8441 says, all on one connection.
const NODE: &str = r#"
import http2 from "node:http2";
const peer = http2.connect(process.argv[1]);
const settings = await new Promise((done) => peer.on("remoteSettings", done));
const ask = (id) => new Promise((done, fail) => {
  const stream = peer.request({ ":method": "POST", ":path": "/", "content-type": "application/json" });
  let text = "";
  stream.setEncoding("utf8").on("data", (part) => { text += part; }).on("end", () => done(JSON.parse(text))).on("error", fail);
  stream.end(JSON.stringify({ jsonrpc: "2.0", id, method: "eth_chainId" }));
});
const ids = (await Promise.all([...Array(200).keys()].map(ask))).map((answer) => answer.id);
const socket = peer.request({ ":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":path": "/",
  ":authority": "localhost", "sec-websocket-version": "13" });
const head = await new Promise((done) => socket.on("response", done));
const call = Buffer.from('{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}');
socket.write(Buffer.concat([Buffer.from([0x81, 0x80 | call.length, 0, 0, 0, 0]), call]));
const frame = await new Promise((done) => socket.once("data", done));
console.log(JSON.stringify({ connect: settings.enableConnectProtocol, right: ids.every((id, at) => id === at),
  status: head[":status"], answer: frame.subarray(2).toString() }));
peer.destroy();
"#;

#[tokio::test]
async fn node_asks_and_opens_a_web_socket() {
    let rig = Rig::start().await;
    let url = format!("http://{}", rig.address);
    let Some(output) = run("node", args(&["--input-type=module", "-e", NODE, &url])).await else {
        return;
    };
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output:?}"));
    assert_eq!(
        said,
        json!({"connect": true, "right": true, "status": 200, "answer": CHAIN_ID_ANSWER})
    );
}

/// Asks, opens a WebSocket and a stream of events, and reports what came.
fn page(port: u16) -> String {
    format!(
        r#"<!doctype html><script type="module">
const report = (what) => fetch("/report", {{ method: "POST", body: String(what) }});
try {{
  const body = '{CHAIN_ID}';
  const headers = {{ "content-type": "application/json" }};
  const answer = await fetch("https://localhost:{port}/", {{ method: "POST", headers, body }});
  await report(await answer.text());
  // Browsers keep connections with and without credentials apart, and a WebSocket has them.
  await fetch("https://localhost:{port}/", {{ mode: "no-cors", credentials: "include" }});
  const socket = new WebSocket("wss://localhost:{port}/");
  socket.onopen = () => socket.send('{{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}}');
  socket.onmessage = (message) => report("socket " + message.data);
  socket.onclose = (close) => report("closed " + close.code);
  const events = new EventSource("https://localhost:{port}/events?kind=heads");
  events.onopen = () => report("events open");
  events.addEventListener("heads", (message) => report("event " + message.data));
}} catch (error) {{ report(error); }}
</script>"#
    )
}

/// Passes connections on to the proxy, and counts them.
async fn relay(to: std::net::SocketAddr) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::<AtomicUsize>::default();
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                // A browser opens connections ahead of need, and may close them unused.
                client.readable().await.ok()?;
                counted.fetch_add(1, Ordering::SeqCst);
                let mut server = TcpStream::connect(to).await.ok()?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()
            });
        }
    });
    (port, count)
}

#[tokio::test]
async fn chromium_opens_a_web_socket_on_the_connection_of_its_requests() {
    let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    if !Path::new(&program).exists() {
        return eprintln!("no Chromium: apt-get install chromium, or set CHROMIUM to one");
    }
    let authority = Authority::new();
    let rig = authority.rig(|config| config.server.origins = vec!["*".into()]).await;
    let (port, connections) = relay(rig.address).await;
    let (reports, mut received) = mpsc::unbounded_channel();
    let show = async move || Html(page(port));
    let report = async |State(reports): State<mpsc::UnboundedSender<String>>, body: String| drop(reports.send(body));
    let router = Router::new()
        .route("/", get(show))
        .route("/report", post(report))
        .with_state(reports);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let profile = tempfile::tempdir().unwrap();
    let mut chromium = Command::new(program);
    chromium.args(crate::server_sent_events::browser::FLAGS).args([
        "--remote-debugging-port=0",
        "--ignore-certificate-errors",
        &format!("--user-data-dir={}", profile.path().display()),
        &format!("http://localhost:{}/", address.port()),
    ]);
    let _chromium = Running::start(chromium.stdout(Stdio::null()).stderr(Stdio::null()));
    let mut seen = async |begin: &str| {
        loop {
            let report = within(begin, received.recv()).await.unwrap();
            if report.starts_with(begin) {
                return report;
            }
            assert!(!report.starts_with("closed") && !report.contains("Error"), "{report}");
        }
    };
    assert_eq!(seen("{").await, CHAIN_ID_ANSWER);
    assert!(seen("socket").await.contains(r#""id":1"#));
    // Both streams may begin in either order; their heads come once both are there.
    crate::harness::eventually("both are there", async || rig.metric("headwater_clients").await == 2.0).await;
    let block = rig.control.mine();
    let hash = format!("{:#x}", block.hash());
    for _ in 0..2 {
        let report = loop {
            let report = within("a head", received.recv()).await.unwrap();
            if report.contains(&hash) {
                break report;
            }
        };
        assert!(
            report.starts_with("event {") || report.starts_with("socket {"),
            "{report}"
        );
    }
    let connections = connections.load(Ordering::SeqCst);
    assert_eq!(
        connections, 2,
        "one with credentials, one without; the WebSocket has none of its own"
    );
}
