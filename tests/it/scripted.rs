//! A scripted node: JSON-RPC over WebSocket and HTTP on one port, whose chain and answers may be odd in any way.
//!
//! It answers the standard methods from the blocks that a test mines. [`Scripted::answer`] overrides any method,
//! [`Mine`] any field of a block, of its logs or of its announcement.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headwater::config::typed;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::harness::{Proxy, eventually};

mod block;
mod chain;
mod connection;
use self::chain::Chain;
pub use self::{
    block::{Made, Mine, address, word},
    chain::Hole,
};

/// Most calls that the trace keeps.
const MAX_TRACE: usize = 10_000;

/// The reply to one request.
pub enum Answer {
    Result(Value),
    /// Code, message and, where not null, data.
    Error(i64, String, Value),
    /// An error: code, message and, where not null, data.
    Raw(String),
    /// No answer, ever.
    Never,
    /// The end of the connection.
    Close,
    /// Another answer, later; requests behind it are answered meanwhile.
    After(Duration, Box<Answer>),
}

impl Answer {
    pub fn error(code: i64, message: &str) -> Self {
        Self::Error(code, message.to_owned(), Value::Null)
    }
}

impl From<Value> for Answer {
    fn from(result: Value) -> Self {
        Self::Result(result)
    }
}

/// A request, as an override gets it.
pub struct Ask<'a> {
    pub node: &'a Scripted,
    pub method: &'a str,
    pub params: &'a Value,
    pub id: &'a Value,
    /// Calls of the method so far, this one included.
    pub count: usize,
    /// The WebSocket connection; `None` over HTTP.
    socket: Option<&'a Socket>,
}

impl Ask<'_> {
    /// Returns the answer of an ordinary node.
    pub fn usual(&self) -> Answer {
        self.node.0.state.lock().usual(self)
    }

    /// Returns [`Self::usual`] with its result edited; an error is left unchanged.
    pub fn edited(&self, edit: impl FnOnce(&mut Value)) -> Answer {
        match self.usual() {
            Answer::Result(mut result) => {
                edit(&mut result);
                Answer::Result(result)
            }
            other => other,
        }
    }

    /// Returns the number of the WebSocket connection, counted from 1; `None` over HTTP.
    pub fn connection(&self) -> Option<usize> {
        self.socket.map(|socket| socket.number)
    }

    pub fn is_http(&self) -> bool {
        self.socket.is_none()
    }
}

type Override = Arc<dyn Fn(&Ask<'_>) -> Answer + Send + Sync>;

/// The writing side of a WebSocket connection.
#[derive(Clone)]
struct Socket {
    number: usize,
    out: mpsc::UnboundedSender<Message>,
    end: CancellationToken,
}

struct Subscription {
    id: String,
    kind: String,
    socket: Socket,
}

struct State {
    chain: Chain,
    overrides: HashMap<String, Override>,
    counts: HashMap<String, usize>,
    trace: Vec<(String, Value)>,
    requests: Vec<String>,
    sockets: Vec<Socket>,
    /// Most WebSocket connections that may be open at once.
    max_sockets: usize,
    subscriptions: Vec<Subscription>,
    ids: usize,
    opened: usize,
}

struct Inner {
    address: SocketAddr,
    state: Mutex<State>,
    /// Methods whose answers are withheld.
    held: watch::Sender<HashSet<String>>,
    stop: CancellationToken,
}

/// A handle to the node, which runs until [`Self::stop`] or the end of the test's runtime.
#[derive(Clone)]
pub struct Scripted(Arc<Inner>);

impl Scripted {
    /// Starts a node that has a genesis block only.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = State {
            chain: Chain::genesis(),
            overrides: HashMap::new(),
            counts: HashMap::new(),
            trace: Vec::new(),
            requests: Vec::new(),
            sockets: Vec::new(),
            max_sockets: usize::MAX,
            subscriptions: Vec::new(),
            ids: 0,
            opened: 0,
        };
        let node = Self(Arc::new(Inner {
            address: listener.local_addr().unwrap(),
            state: Mutex::new(state),
            held: watch::Sender::default(),
            stop: CancellationToken::new(),
        }));
        let serving = node.clone();
        tokio::spawn(node.0.stop.clone().run_until_cancelled_owned(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (node, stop) = (serving.clone(), serving.0.stop.clone());
                tokio::spawn(stop.run_until_cancelled_owned(async move { node.serve(stream).await }));
            }
        }));
        node
    }

    /// Starts the app with this node as its only upstream, over WebSocket; waits until the node's head is published.
    pub async fn proxy(&self, edit: impl FnOnce(&mut typed::Config)) -> Proxy {
        self.proxy_at(self.ws_url(), edit).await
    }

    /// Like [`Self::proxy`], but over HTTP, polled every 20 ms.
    pub async fn polling_proxy(&self, edit: impl FnOnce(&mut typed::Config)) -> Proxy {
        self.proxy_at(self.http_url(), |config| {
            config.node.poll_interval = Duration::from_millis(20);
            edit(config);
        })
        .await
    }

    async fn proxy_at(&self, url: String, edit: impl FnOnce(&mut typed::Config)) -> Proxy {
        let proxy = Proxy::start(&[url], edit).await;
        proxy.ready().await;
        self.settled(&proxy).await;
        proxy
    }

    /// Waits until the app has published this node's head.
    pub async fn settled(&self, proxy: &Proxy) {
        let head = self.head().number() as f64;
        eventually("the newest head", async || {
            proxy.metric("headwater_head_number").await == head
        })
        .await;
    }

    pub fn ws_url(&self) -> String {
        format!("ws://{}", self.0.address)
    }

    pub fn http_url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// Mines a block, makes it the head and announces it, unless `mine` is silent.
    pub fn mine(&self, mine: Mine) -> Made {
        let mut state = self.0.state.lock();
        let made = mine.on(&state.chain.head);
        state.chain.adopt(made.clone());
        if let Some(announced) = mine.announcement(&made) {
            state.announce(&announced, "newHeads");
        }
        made
    }

    /// Mines `count` ordinary blocks of `logs` logs each and announces each.
    pub fn mine_many(&self, count: usize, logs: usize) -> Vec<Made> {
        (0..count).map(|_| self.mine(Mine::logs(logs))).collect()
    }

    /// Mines ordinary blocks without logs; announces none of them.
    pub fn grow(&self, count: usize) -> Vec<Made> {
        (0..count).map(|_| self.mine(Mine::default().silent())).collect()
    }

    pub fn head(&self) -> Made {
        self.0.state.lock().chain.head.clone()
    }

    /// Returns the canonical block of this number.
    pub fn block(&self, number: u64) -> Option<Made> {
        self.0.state.lock().chain.block(number).cloned()
    }

    /// Returns the canonical blocks, oldest first.
    pub fn canonical(&self) -> Vec<Made> {
        self.0.state.lock().chain.canonical().cloned().collect()
    }

    /// Notifies all subscriptions of a kind with any value as the result.
    pub fn announce(&self, value: &Value, kind: &str) {
        self.0.state.lock().announce(value, kind);
    }

    /// Sends each subscription of a kind the text that `text` makes of its id.
    pub fn notify(&self, kind: &str, text: impl Fn(&str) -> String) {
        self.0.state.lock().notify(kind, text);
    }

    /// Ends the subscriptions of a kind with `params.error`.
    pub fn end_subscriptions(&self, kind: &str, error: &Value) {
        let mut state = self.0.state.lock();
        state.notify(kind, |id| notification(id, "error", error));
        state.subscriptions.retain(|one| one.kind != kind);
    }

    /// Returns the number of subscriptions of a kind.
    pub fn subscribed(&self, kind: &str) -> usize {
        let state = self.0.state.lock();
        state.subscriptions.iter().filter(|one| one.kind == kind).count()
    }

    /// Sends text to every WebSocket connection.
    pub fn send_all(&self, text: &str) {
        for socket in &self.0.state.lock().sockets {
            let _ = socket.out.send(text.into());
        }
    }

    /// Sets the answer to a method from now on.
    pub fn answer(&self, method: &str, answer: impl Fn(&Ask<'_>) -> Answer + Send + Sync + 'static) {
        let overrides = &mut self.0.state.lock().overrides;
        overrides.insert(method.to_owned(), Arc::new(answer));
    }

    /// Removes the override of a method.
    pub fn answer_as_usual(&self, method: &str) {
        self.0.state.lock().overrides.remove(method);
    }

    /// Sets the answer to a block number that has no block.
    pub fn holes(&self, hole: Hole) {
        self.0.state.lock().chain.hole = hole;
    }

    /// Withholds the answers to a method until [`Self::release`].
    pub fn hold(&self, method: &str) {
        self.0.held.send_modify(|held| _ = held.insert(method.to_owned()));
    }

    pub fn release(&self, method: &str) {
        self.0.held.send_modify(|held| _ = held.remove(method));
    }

    /// Returns the number of calls of a method so far.
    pub fn calls(&self, method: &str) -> usize {
        self.0.state.lock().counts.get(method).copied().unwrap_or(0)
    }

    /// Returns the params of the calls of a method, oldest first, among the first [`MAX_TRACE`] calls of all methods.
    pub fn params(&self, method: &str) -> Vec<Value> {
        let state = self.0.state.lock();
        let of_method = state.trace.iter().filter(|(name, _)| name == method);
        of_method.map(|(_, params)| params.clone()).collect()
    }

    /// Returns the heads of the HTTP requests that opened connections, oldest first.
    pub fn requests(&self) -> Vec<String> {
        self.0.state.lock().requests.clone()
    }

    /// Sets the maximum of WebSocket connections open at once.
    pub fn limit_connections(&self, max: usize) {
        self.0.state.lock().max_sockets = max;
    }

    /// Returns the number of open WebSocket connections, and of all that were ever opened.
    pub fn connections(&self) -> (usize, usize) {
        let state = self.0.state.lock();
        (state.sockets.len(), state.opened)
    }

    /// Closes all WebSocket connections; new ones are accepted.
    pub fn disconnect(&self) {
        for socket in self.0.state.lock().sockets.drain(..) {
            socket.end.cancel();
        }
    }

    /// Closes all connections and stops listening.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Returns the response to a request. `None` closes an HTTP connection and sends nothing on a WebSocket.
    async fn reply(&self, request: Value, socket: Option<&Socket>) -> Option<Message> {
        let method = request["method"].as_str().unwrap();
        let (count, answer) = {
            let mut state = self.0.state.lock();
            if state.trace.len() < MAX_TRACE {
                state.trace.push((method.to_owned(), request["params"].clone()));
            }
            let count = state.counts.entry(method.to_owned()).or_default();
            *count += 1;
            (*count, state.overrides.get(method).cloned())
        };
        let ask = Ask {
            node: self,
            method,
            params: &request["params"],
            id: &request["id"],
            count,
            socket,
        };
        let mut answer = answer.map_or_else(|| ask.usual(), |answer| answer(&ask));
        let mut held = self.0.held.subscribe();
        let _ = held.wait_for(|held| !held.contains(method)).await;
        while let Answer::After(time, then) = answer {
            tokio::time::sleep(time).await;
            answer = *then;
        }
        let (member, value) = match answer {
            Answer::Result(result) => ("result", result),
            Answer::Error(code, message, Value::Null) => ("error", json!({"code": code, "message": message})),
            Answer::Error(code, message, data) => ("error", json!({"code": code, "message": message, "data": data})),
            Answer::Raw(text) => return Some(text.into()),
            Answer::Close => {
                socket.inspect(|socket| socket.end.cancel());
                return None;
            }
            Answer::Never | Answer::After(..) => std::future::pending().await,
        };
        Some(format!(r#"{{"jsonrpc":"2.0","id":{},"{member}":{value}}}"#, request["id"]).into())
    }
}

impl State {
    fn announce(&self, value: &Value, kind: &str) {
        self.notify(kind, |id| notification(id, "result", value));
    }

    fn notify(&self, kind: &str, text: impl Fn(&str) -> String) {
        for one in self.subscriptions.iter().filter(|one| one.kind == kind) {
            let _ = one.socket.out.send(text(&one.id).into());
        }
    }

    fn usual(&mut self, ask: &Ask<'_>) -> Answer {
        match ask.method {
            "eth_chainId" => json!("0x539").into(),
            "net_version" => json!("1337").into(),
            "web3_clientVersion" => json!("scripted/1").into(),
            "eth_syncing" => json!(false).into(),
            "eth_subscribe" => {
                let Some(socket) = ask.socket else {
                    return Answer::error(-32000, "notifications not supported");
                };
                self.ids += 1;
                let id = format!("{:#x}", 0x1000 + self.ids);
                self.subscriptions.push(Subscription {
                    id: id.clone(),
                    kind: ask.params[0].as_str().unwrap().to_owned(),
                    socket: socket.clone(),
                });
                json!(id).into()
            }
            "eth_unsubscribe" => {
                let before = self.subscriptions.len();
                self.subscriptions.retain(|one| ask.params[0] != one.id);
                json!(self.subscriptions.len() < before).into()
            }
            method => self.chain.answer(method, ask.params).unwrap_or_else(|| {
                let unknown = format!("the method {method} does not exist/is not available");
                Answer::error(-32601, &unknown)
            }),
        }
    }
}

/// Formats a notification with its members in geth's order.
fn notification(id: &str, member: &str, value: &Value) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"eth_subscription","params":{{"subscription":"{id}","{member}":{value}}}}}"#)
}
