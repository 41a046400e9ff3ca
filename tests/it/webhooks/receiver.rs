//! Receiver of webhooks that answers as it is told to, and keeps what it got.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::webhook_request::Deliveries;
use crate::harness::{Event, eventually};

/// One answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status, and further header lines.
    Status(u16, &'static str),
    /// No answer, and no end of the connection.
    Hang,
    /// The end of the connection before an answer.
    Close,
    /// The head of an answer with status 200, and the end of the connection within its body.
    Half,
    /// Half of the head of an answer, and the end of the connection.
    HalfHead,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: String,
    pub headers: HashMap<String, String>,
    pub body: String,
    /// `true` if the answer had status 2xx.
    pub is_accepted: bool,
}

impl Request {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Returns the events, as lines of a story.
    pub fn lines(&self) -> Vec<String> {
        let body = self.json();
        let data = body["data"].as_array().cloned().unwrap_or_default();
        let line = |own: &Value| {
            let (subscription, payload) = (String::new(), own.to_string());
            Event { subscription, payload }.line()
        };
        data.iter().map(line).collect()
    }
}

#[derive(Default)]
struct State {
    replies: VecDeque<Reply>,
    usual: Option<Reply>,
    requests: Vec<Request>,
}

/// The receiver.
pub struct Receiver {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let serving = listen(listener, state.clone());
        Self {
            address,
            state,
            serving,
        }
    }

    /// Ends the receiver as a kill does, with its connections.
    pub async fn kill(&mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
    }

    /// Starts it again, with what it had.
    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serving = listen(listener, self.state.clone());
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook?key=hunter2", self.address)
    }

    /// Answers the next requests so; further ones as usual.
    pub fn next(&self, replies: impl IntoIterator<Item = Reply>) {
        self.state.lock().replies.extend(replies);
    }

    /// Answers all other requests so; `None` accepts them.
    pub fn usual(&self, reply: Option<Reply>) {
        self.state.lock().usual = reply;
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().requests.clone()
    }

    /// Returns the accepted requests; one that came again counts once.
    pub fn accepted(&self) -> Vec<Request> {
        let mut seen = std::collections::HashSet::new();
        let all = self.requests().into_iter().filter(|own| own.is_accepted);
        all.filter(|own| seen.insert(own.id.clone())).collect()
    }

    /// Returns all events that were accepted, as lines.
    pub fn story(&self) -> Vec<String> {
        self.accepted().iter().flat_map(Request::lines).collect()
    }

    /// Waits until these events, and no others, were accepted.
    pub async fn expect(&self, story: &[String]) {
        eventually("the receiver has all events", async || {
            self.story().len() >= story.len()
        })
        .await;
        assert_eq!(self.story(), story);
    }
}

fn listen(listener: TcpListener, state: Arc<Mutex<State>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                continue;
            };
            connections.spawn(serve(socket, state.clone()));
        }
    })
}

async fn serve(socket: TcpStream, state: Arc<Mutex<State>>) {
    let mut connection = Deliveries::new(socket);
    while let Some(delivery) = connection.next().await {
        assert!(delivery.is_signed(), "{}", delivery.id());
        let (reply, text) = {
            let mut state = state.lock();
            let reply = state.replies.pop_front().or_else(|| state.usual.clone());
            let reply = reply.unwrap_or(Reply::Status(204, ""));
            let text = match reply {
                Reply::Status(status, lines) => {
                    Some(format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n{lines}\r\n"))
                }
                Reply::Half => Some("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned()),
                Reply::HalfHead => Some("HTTP/1.1 200 O".to_owned()),
                Reply::Hang | Reply::Close => None,
            };
            let is_accepted = matches!(reply, Reply::Status(200..=299, _) | Reply::Half);
            state.requests.push(Request {
                id: delivery.id().to_owned(),
                headers: delivery.headers,
                body: delivery.body,
                is_accepted,
            });
            (reply, text)
        };
        if let Some(text) = text {
            let _ = connection.socket.write_all(text.as_bytes()).await;
        }
        match reply {
            Reply::Hang => std::future::pending().await,
            Reply::Status(..) => {}
            Reply::Close | Reply::Half | Reply::HalfHead => return,
        }
    }
}
