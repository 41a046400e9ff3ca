//! The app under test, the node behind it, and a client that checks the shape of every message it receives.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use headwater::app::{App, Broken};
use headwater::config::{Config, Flags, typed};
use headwater::devnet::{self, Block, Control, Devnet, Reorg};
use headwater::reload::{ConfigSource, Follower};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, client_async, connect_async, connect_async_tls_with_config,
};
use tokio_util::sync::CancellationToken;

use crate::wire::{Reply, http};

/// Time limit of every wait: longer than any awaited event takes, also where many tests share few cores.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Awaits a future. Panics with `what` if it is not done within [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Polls a condition every 5 ms until it holds, for state that can only be polled.
pub async fn eventually(what: &str, mut seen: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !seen().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, looking).await;
}

/// Starts a node that acts on commands only; its blocks have 3 transactions of 2 logs.
pub async fn node() -> Devnet {
    Devnet::start(devnet::Config::manual()).await.unwrap()
}

/// Starts a node with 6 logs in each block, each of about `bytes` bytes of JSON.
pub async fn node_with_logs_of(bytes: usize) -> Devnet {
    let config = devnet::Config {
        log_data_bytes: bytes / 2,
        ..devnet::Config::manual()
    };
    Devnet::start(config).await.unwrap()
}

/// The running app.
pub struct Proxy {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Broken>>,
}

impl Proxy {
    /// Starts the app with these upstreams; `edit` changes the settings.
    pub async fn start(upstreams: &[String], edit: impl FnOnce(&mut typed::Config)) -> Self {
        Self::run(Self::bind(upstreams, edit).await)
    }

    /// Binds the app as [`Self::start`] does, without running it.
    pub async fn bind(upstreams: &[String], edit: impl FnOnce(&mut typed::Config)) -> App {
        let mut typed = typed::Config {
            listen: "127.0.0.1:0".into(),
            admin: "127.0.0.1:0".into(),
            upstream: upstreams.iter().cloned().map(Into::into).collect(),
            ..typed::Config::default()
        };
        typed.node.reconnect_min = Duration::from_millis(5);
        typed.node.reconnect_max = Duration::from_millis(50);
        edit(&mut typed);
        App::bind(Config::check(&typed).unwrap()).await.unwrap()
    }

    /// Starts the app with a configuration file and these upstreams; changes of the file are followed.
    pub async fn from_file(file: &std::path::Path, upstreams: &[String]) -> Self {
        let source = ConfigSource {
            file: Some(file.to_owned()),
            flags: Flags {
                listen: Some("127.0.0.1:0".into()),
                admin: Some("127.0.0.1:0".into()),
                upstream: upstreams.to_vec(),
                ..Flags::default()
            },
            ..ConfigSource::default()
        };
        let (typed, config) = source.read().unwrap();
        let follower = Follower::new(source, typed).unwrap();
        Self::run(App::bind(config).await.unwrap().follow(follower))
    }

    /// Runs an app.
    pub fn run(app: App) -> Self {
        let (address, admin) = (app.address().unwrap(), app.admin_address().unwrap());
        let stop = CancellationToken::new();
        let running = tokio::spawn(app.run(stop.clone().cancelled_owned()));
        Self {
            address,
            admin,
            stop,
            running,
        }
    }

    /// Waits until `/ready` answers 200.
    pub async fn ready(&self) {
        eventually("ready", async || self.admin("/ready").await.status == 200).await;
    }

    /// Waits until `/ready` answers 503: no node is in use, or for another reason.
    pub async fn unready(&self) {
        eventually("not ready", async || self.admin("/ready").await.status == 503).await;
    }

    /// Returns the entries of `upstreams` in `/status`, in the order of the settings.
    pub async fn upstreams(&self) -> Vec<Value> {
        let status: Value = serde_json::from_str(&self.admin("/status").await.body).unwrap();
        status["upstreams"].as_array().unwrap().clone()
    }

    /// Waits until all nodes are connected and no second connection, for calls, is still being opened.
    pub async fn connected(&self) {
        eventually("all are connected", async || {
            let is_open = |one: &Value| one["connected"] == true && one["lanes"] != "opening";
            self.upstreams().await.iter().all(is_open)
        })
        .await;
    }

    /// Takes the node at index `number` of the settings away, and waits until `/status` shows it as not connected.
    pub async fn lose(&self, node: &Control, number: usize) {
        take_away(node);
        eventually("it is lost", async || {
            self.upstreams().await[number]["connected"] == false
        })
        .await;
    }

    /// Waits until the app is ready and has published the node's newest head.
    pub async fn settled(&self, node: &Control) {
        self.ready().await;
        // Announcements that the node has sent arrive before the answers to calls that are sent now.
        let mut client = self.client().await;
        for _ in 0..10 {
            client.call("eth_syncing", json!([])).await;
        }
        // When the node has mined several blocks at once, wait until the last is published.
        eventually("the newest head", async || {
            self.metric("headwater_head_number").await >= node.head().number() as f64
        })
        .await;
    }

    pub async fn client(&self) -> Client {
        Client::connect(&format!("ws://{}", self.address)).await
    }

    /// Returns a client that subscribes to heads and all logs.
    pub async fn watcher(&self) -> Client {
        let mut client = self.client().await;
        client.subscribe(json!(["newHeads"])).await;
        client.subscribe(json!(["logs", {}])).await;
        client
    }

    /// Posts JSON and returns the body of the answer, whose status must be 200.
    pub async fn post(&self, body: impl AsRef<[u8]>) -> String {
        self.post_for(200, body).await.body
    }

    /// Posts JSON and returns the answer, which must have this status.
    pub async fn post_for(&self, status: u16, body: impl AsRef<[u8]>) -> Reply {
        let reply = http(self.address, "POST / HTTP/1.1\r\ncontent-type: application/json", body).await;
        assert_eq!(reply.status, status, "{}\n{}", reply.head, reply.body);
        reply
    }

    /// Returns a page of the admin port.
    pub async fn admin(&self, page: &str) -> Reply {
        http(self.admin, &format!("GET {page} HTTP/1.1"), "").await
    }

    /// Returns the value of a sample in `/metrics`; 0 if the page does not have it.
    pub async fn metric(&self, sample: &str) -> f64 {
        let page = self.admin("/metrics").await.body;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Signals shutdown.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the app has ended and returns its result.
    pub async fn ended(self) -> Result<(), Broken> {
        within("the app ends", self.running).await.unwrap()
    }
}

/// An app with one node.
pub struct Rig {
    pub node: Devnet,
    pub control: Control,
    pub proxy: Proxy,
}

impl Deref for Rig {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        &self.proxy
    }
}

impl Rig {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(edit: impl FnOnce(&mut typed::Config)) -> Self {
        Self::before(node().await, edit).await
    }

    /// Starts the app with this node as upstream, over WebSocket; waits until it is ready.
    pub async fn before(node: Devnet, edit: impl FnOnce(&mut typed::Config)) -> Self {
        let proxy = Proxy::start(&[node.ws_url()], edit).await;
        let control = node.handle();
        proxy.settled(&control).await;
        Self { node, control, proxy }
    }

    /// Returns a client of the node itself, with the subscriptions of [`Proxy::watcher`].
    pub async fn witness(&self) -> Client {
        let mut client = Client::connect(&self.node.ws_url()).await;
        client.subscribe(json!(["newHeads"])).await;
        client.subscribe(json!(["logs", {}])).await;
        client
    }

    /// Mines a block and expects its events next: any event still in flight would arrive before them.
    pub async fn nothing_else(&self, client: &mut Client) {
        let block = self.control.mine();
        client.expect(adopted(&[block])).await;
    }

    /// Posts a request to the node itself and returns the body of its answer.
    pub async fn ask_node(&self, body: &Value) -> String {
        http(
            self.node.address(),
            "POST / HTTP/1.1\r\ncontent-type: application/json",
            body.to_string(),
        )
        .await
        .body
    }
}

/// Cuts all connections of a node and makes it refuse new ones until `refuse_connections` is reset.
pub fn take_away(node: &Control) {
    node.set_faults(|faults| faults.refuse_connections = true);
    node.disconnect();
}

/// A notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub subscription: String,
    /// JSON as received.
    pub payload: String,
}

impl Event {
    /// Parses a notification and checks that it is spelled as every library expects (PROTOCOL 1.8).
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        #[derive(Deserialize)]
        struct Notification<'a> {
            #[serde(borrow)]
            params: Params<'a>,
        }
        #[derive(Deserialize)]
        struct Params<'a> {
            subscription: &'a str,
            #[serde(borrow)]
            result: &'a RawValue,
        }
        let params = serde_json::from_str::<Notification<'_>>(text)
            .unwrap_or_else(|error| panic!("no notification ({error}): {text}"))
            .params;
        let event = Self {
            subscription: params.subscription.into(),
            payload: params.result.get().into(),
        };
        assert_eq!(text, event.text());
        event
    }

    fn text(&self) -> String {
        let Self { subscription, payload } = self;
        format!(
            r#"{{"jsonrpc":"2.0","method":"eth_subscription","params":{{"subscription":"{subscription}","result":{payload}}}}}"#
        )
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.payload).unwrap()
    }

    /// Returns the event as one line of a story; see [`adopted`].
    pub fn line(&self) -> String {
        let json = self.json();
        match json["hash"].as_str() {
            Some(hash) => format!("head {} {}", json["number"].as_str().unwrap(), &hash[..10]),
            None => format!(
                "{} {} {} {}",
                if json["removed"] == true { "undo" } else { "log" },
                json["blockNumber"].as_str().unwrap(),
                &json["blockHash"].as_str().unwrap()[..10],
                json["logIndex"].as_str().unwrap()
            ),
        }
    }
}

/// Returns the methods by which a block's logs can be fetched; without them no logs are available.
pub fn without_logs() -> Vec<String> {
    ["eth_getLogs", "eth_getBlockReceipts", "eth_getTransactionReceipt"]
        .map(str::to_owned)
        .to_vec()
}

/// Returns the story of a watcher when these blocks are adopted: one line for each event, in order.
pub fn adopted(blocks: &[Arc<Block>]) -> Vec<String> {
    blocks
        .iter()
        .flat_map(|block| {
            let hash = &block.hash().to_string()[..10];
            let mut lines = vec![format!("head {:#x} {hash}", block.number())];
            lines.extend(logs("log", block));
            lines
        })
        .collect()
}

/// Returns the story of a watcher when these blocks are dropped; the blocks are newest first, the lines oldest first.
pub fn dropped(blocks: &[Arc<Block>]) -> Vec<String> {
    blocks.iter().rev().flat_map(|block| logs("undo", block)).collect()
}

/// Returns the story of a watcher for a reorg.
pub fn reorged(reorg: &Reorg) -> Vec<String> {
    [dropped(&reorg.dropped), adopted(&reorg.adopted)].concat()
}

fn logs(word: &str, block: &Block) -> Vec<String> {
    let hash = &block.hash().to_string()[..10];
    (0..block.logs().count())
        .map(|index| format!("{word} {:#x} {hash} {index:#x}", block.number()))
        .collect()
}

/// A WebSocket client that uses another library than the app.
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Notifications that arrived while the client waited for an answer, oldest first.
    early: VecDeque<String>,
}

impl Client {
    pub async fn connect(url: &str) -> Self {
        let (socket, _) = within("connect", connect_async(url)).await.unwrap();
        Self {
            socket,
            early: VecDeque::new(),
        }
    }

    /// Connects from another address of this machine, such as 127.0.0.7, which has an account of its own.
    pub async fn connect_from(ip: &str, address: SocketAddr) -> Self {
        let local = TcpSocket::new_v4().unwrap();
        local.bind(format!("{ip}:0").parse().unwrap()).unwrap();
        Self::over(within("connect", local.connect(address)).await.unwrap()).await
    }

    /// Opens a WebSocket over an existing connection.
    pub async fn over(socket: TcpStream) -> Self {
        Self::try_over(socket).await.unwrap()
    }

    /// Opens a WebSocket like [`Self::over`]; returns a refusal as an error.
    pub async fn try_over(socket: TcpStream) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        let upgrading = client_async("ws://localhost/", MaybeTlsStream::Plain(socket));
        let (socket, _) = within("upgrade", upgrading).await?;
        Ok(Self {
            socket,
            early: VecDeque::new(),
        })
    }

    /// Connects over TLS.
    pub async fn secured(url: &str, config: Arc<rustls::ClientConfig>) -> Self {
        let connector = Some(Connector::Rustls(config));
        let connecting = connect_async_tls_with_config(url, None, false, connector);
        let (socket, _) = within("connect", connecting).await.unwrap();
        Self {
            socket,
            early: VecDeque::new(),
        }
    }

    pub async fn send(&mut self, message: impl Into<Message>) {
        within("send", self.socket.send(message.into())).await.unwrap();
    }

    /// Returns the next message, which must be text; pings and pongs are skipped.
    pub async fn next(&mut self) -> String {
        match self.next_but_control("a message").await {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("not text: {other:?}"),
        }
    }

    async fn next_but_control(&mut self, what: &str) -> Message {
        let reading = async {
            loop {
                match self.socket.next().await.unwrap().unwrap() {
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => return other,
                }
            }
        };
        within(what, reading).await
    }

    /// Sends a message and returns the next text that is not a notification; notifications before it are kept.
    pub async fn ask(&mut self, message: impl Into<Message>) -> String {
        self.send(message).await;
        loop {
            let text = self.next().await;
            if !text.starts_with(r#"{"jsonrpc":"2.0","method""#) {
                return text;
            }
            self.early.push_back(text);
        }
    }

    /// Like [`Self::ask`]; also returns all kept notifications, those that arrived before the answer included.
    pub async fn ask_alone(&mut self, message: impl Into<Message>) -> (String, Vec<String>) {
        let answer = self.ask(message).await;
        (answer, self.early.drain(..).collect())
    }

    /// Checks that the other end closes the connection without a close frame.
    pub async fn ends(&mut self) {
        let end = within("the end", self.socket.next()).await;
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    }

    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let answer: Value = serde_json::from_str(&self.ask(request.to_string()).await).unwrap();
        assert_eq!(answer["id"], 7, "{answer}");
        answer
    }

    /// Subscribes and returns the subscription id.
    pub async fn subscribe(&mut self, params: Value) -> String {
        let answer = self.call("eth_subscribe", params).await;
        answer["result"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    pub async fn unsubscribe(&mut self, id: &str) -> Value {
        self.call("eth_unsubscribe", json!([id])).await
    }

    /// Returns the next notification, kept ones first.
    pub async fn event(&mut self) -> Event {
        let text = match self.early.pop_front() {
            Some(text) => text,
            None => self.next().await,
        };
        Event::parse(&text)
    }

    /// Makes so many calls that the length of its account's answers counts as known; see `headwater::conduct`.
    pub async fn become_known(&mut self) {
        for number in 0..64 {
            let params = json!([format!("{number:#042x}"), "earliest"]);
            let call = json!({"jsonrpc": "2.0", "id": number, "method": "eth_getBalance", "params": params});
            self.ask(call.to_string()).await;
        }
    }

    /// Returns the next notification as a line of a story.
    pub async fn line(&mut self) -> String {
        self.event().await.line()
    }

    /// Drops the notifications that were kept while the client waited for an answer.
    pub fn forget_early(&mut self) {
        self.early.clear();
    }

    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// Reads as many notifications as the story has lines, and compares each.
    pub async fn expect(&mut self, story: Vec<String>) {
        for (i, line) in story.iter().enumerate() {
            let received = tokio::time::timeout(PATIENCE - Duration::from_secs(1), self.event()).await;
            let received = received.map_or("nothing".to_owned(), |event| event.line());
            assert_eq!(received, *line, "after {:?}", &story[i.saturating_sub(8)..i]);
        }
    }

    /// Like [`Self::expect`], but accepts one event with this line before the story.
    pub async fn expect_after_optional(&mut self, line: &str, story: Vec<String>) {
        let event = self.event().await;
        if event.line() != line {
            self.early.push_front(event.text());
        }
        self.expect(story).await;
    }

    /// Reads to the close frame; returns the messages before it, its code and its reason.
    pub async fn closed(&mut self) -> (Vec<String>, u16, String) {
        let mut messages: Vec<String> = self.early.drain(..).collect();
        loop {
            match self.next_but_control("a close frame").await {
                Message::Text(text) => messages.push(text.as_str().to_owned()),
                Message::Close(Some(close)) => {
                    // Flushes the close frame that the library sends in reply.
                    let _ = self.socket.flush().await;
                    return (messages, close.code.into(), close.reason.as_str().to_owned());
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
