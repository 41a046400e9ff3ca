//! A WebSocket connection to an endpoint: calls, and the notifications that arrive meanwhile.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::text::short;
use super::trouble::{Endpoint, Trouble};

/// Time for the connection, TLS and the upgrade together.
const CONNECT_TIME: Duration = Duration::from_secs(20);

/// Time for an answer. headwater's own limit is below it, so its reason arrives.
const CALL_TIME: Duration = Duration::from_secs(60);

/// Silence after which a ping is sent, and after which, without any frame, the connection is given up.
const SILENCE: Duration = Duration::from_secs(25);

/// Bound on the notifications that wait while a call is under way. Above it the connection is given up and resumed.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Code for history that a node does not keep (EIP-4444): geth, reth, Nethermind.
const PRUNED: i64 = 4444;
/// Words of other nodes, with any code: Erigon's "old data not available due to pruning", and CometBFT's "height 5 is
/// not available, lowest height is 100", which chains of the Cosmos SDK pass on.
const PRUNED_WORDS: [&str; 2] = ["prun", "lowest height"];

/// Longest message; also of a frame, since geth sends an answer in one.
const MAX_MESSAGE_BYTES: usize = 128 << 20;

pub(super) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    endpoint: Endpoint,
    next_id: u64,
    waiting: VecDeque<Notification>,
    waiting_bytes: usize,
    has_pinged: bool,
}

/// An event of a subscription.
pub(super) struct Notification {
    /// JSON of the subscription's id.
    pub(super) subscription: String,
    pub(super) result: Box<RawValue>,
}

/// An error that the endpoint answered.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RpcError {
    #[serde(default)]
    pub(super) code: i64,
    #[serde(default)]
    message: String,
}

pub(super) type Answer = Result<Box<RawValue>, RpcError>;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<RpcError>,
    #[serde(borrow, default)]
    params: Option<Params<'a>>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    subscription: &'a RawValue,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
}

enum Incoming {
    /// Answers by the ids of their requests; `None` if the endpoint did not say which.
    Answers(Vec<(Option<u64>, Answer)>),
    Event(Notification),
}

impl RpcError {
    pub(super) fn text(&self) -> String {
        format!("{} ({})", short(&self.message), self.code)
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Checks if the node says that it no longer has what was asked for.
    pub(super) fn is_pruned(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.code == PRUNED || PRUNED_WORDS.iter().any(|words| message.contains(words))
    }

    /// Returns the trouble that this answer is: a limit or a node that is away pass, anything else is a refusal.
    pub(super) fn trouble(&self, endpoint: &Endpoint, what: &str) -> Trouble {
        let text = format!("{endpoint} refused {what}: {}", self.text());
        match self.code {
            -32005 | -32603 | -32002 => Trouble::Unavailable(text),
            _ => Trouble::Refused(text),
        }
    }
}

impl Connection {
    /// Connects to an endpoint, with these headers in the handshake besides its own.
    pub(super) async fn open(endpoint: &Endpoint, headers: &[(HeaderName, HeaderValue)]) -> Result<Self, Trouble> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let mut request = endpoint
            .0
            .as_str()
            .into_client_request()
            .map_err(|error| unreachable(endpoint, &error))?;
        request.headers_mut().extend(headers.iter().cloned());
        let connecting = connect_async_with_config(request, Some(config), false);
        let socket = match timeout(CONNECT_TIME, connecting).await {
            Ok(Ok((socket, _))) => socket,
            Ok(Err(error)) => return Err(unreachable(endpoint, &error)),
            Err(_) => {
                let seconds = CONNECT_TIME.as_secs();
                return Err(Trouble::Unavailable(format!(
                    "cannot connect to {endpoint} within {seconds} s"
                )));
            }
        };
        Ok(Self {
            socket,
            endpoint: endpoint.clone(),
            next_id: 1,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            has_pinged: false,
        })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Calls a method; an error of the endpoint is the inner one.
    pub(super) async fn call(&mut self, method: &str, params: Value) -> Result<Answer, Trouble> {
        let id = self.next_id;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let mut answers = self.exchange(request.to_string(), id..id + 1).await?;
        answers.pop().ok_or_else(|| self.interrupted("gave no answer"))
    }

    /// Calls a method whose result has this type.
    pub(super) async fn read<T: DeserializeOwned>(
        &mut self,
        method: &str,
        params: Value,
    ) -> Result<Result<T, RpcError>, Trouble> {
        match self.call(method, params).await? {
            Ok(result) => Ok(Ok(self.parsed(&result, method)?)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Parses a result or an event; `what` names it in the error.
    pub(super) fn parsed<T: DeserializeOwned>(&self, json: &RawValue, what: &str) -> Result<T, Trouble> {
        serde_json::from_str(json.get()).map_err(|why| {
            Trouble::Garbled(format!(
                "{} sent an odd result of {what}: {}",
                self.endpoint,
                short(&why.to_string())
            ))
        })
    }

    /// Calls `eth_subscribe` for each of these parameters in one batch, so that the events keep their order.
    pub(super) async fn subscribe(&mut self, params: Vec<Value>) -> Result<Vec<Answer>, Trouble> {
        let first = self.next_id;
        let requests: Vec<Value> = (first..)
            .zip(params)
            .map(|(id, params)| json!({"jsonrpc": "2.0", "id": id, "method": "eth_subscribe", "params": params}))
            .collect();
        let ids = first..first + requests.len() as u64;
        self.exchange(Value::from(requests).to_string(), ids).await
    }

    /// Subscribes to a kind without parameters, in a message of its own: some nodes answer a batched one twice.
    /// Returns its id.
    pub(super) async fn subscribe_one(&mut self, kind: &str) -> Result<String, Trouble> {
        let answer = self.call("eth_subscribe", json!([kind])).await?;
        self.subscribed(answer, kind)
    }

    async fn exchange(&mut self, message: String, ids: Range<u64>) -> Result<Vec<Answer>, Trouble> {
        self.next_id = ids.end;
        if let Err(error) = self.socket.send(Message::text(message)).await {
            return Err(self.interrupted(&short(&error.to_string())));
        }
        match timeout(CALL_TIME, self.answers(ids)).await {
            Ok(answers) => answers,
            Err(_) => Err(self.interrupted(&format!("gave no answer within {} s", CALL_TIME.as_secs()))),
        }
    }

    async fn answers(&mut self, ids: Range<u64>) -> Result<Vec<Answer>, Trouble> {
        let mut slots: Vec<Option<Answer>> = ids.clone().map(|_| None).collect();
        while slots.iter().any(Option::is_none) {
            match self.incoming().await? {
                Incoming::Event(event) => {
                    self.waiting_bytes += event.size();
                    self.waiting.push_back(event);
                    if self.waiting_bytes > MAX_WAITING_BYTES {
                        return Err(self.interrupted("sends faster than the answers to calls arrive"));
                    }
                }
                Incoming::Answers(answers) => {
                    for (id, answer) in answers {
                        // An answer without an id is to the whole message.
                        let indices = match id {
                            Some(id) if ids.contains(&id) => (id - ids.start) as usize..(id - ids.start) as usize + 1,
                            Some(_) => continue,
                            None => 0..slots.len(),
                        };
                        for slot in &mut slots[indices] {
                            slot.get_or_insert_with(|| answer.clone());
                        }
                    }
                }
            }
        }
        Ok(slots.into_iter().flatten().collect())
    }

    /// Returns the next notification.
    pub(super) async fn next(&mut self) -> Result<Notification, Trouble> {
        if let Some(event) = self.waiting.pop_front() {
            self.waiting_bytes -= event.size();
            return Ok(event);
        }
        loop {
            if let Incoming::Event(event) = self.incoming().await? {
                return Ok(event);
            }
        }
    }

    /// Reads the next message; pings where there is silence.
    async fn incoming(&mut self) -> Result<Incoming, Trouble> {
        loop {
            let Ok(message) = timeout(SILENCE, self.socket.next()).await else {
                if self.has_pinged {
                    return Err(self.interrupted(&format!("was silent for {} s", 2 * SILENCE.as_secs())));
                }
                self.has_pinged = true;
                if let Err(error) = self.socket.send(Message::Ping(Vec::new().into())).await {
                    return Err(self.interrupted(&short(&error.to_string())));
                }
                continue;
            };
            self.has_pinged = false;
            let text = match message {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Binary(bytes))) => match String::from_utf8(bytes.into()) {
                    Ok(text) => text.into(),
                    Err(_) => return Err(self.garbled()),
                },
                Some(Ok(Message::Close(Some(frame)))) => {
                    let code = u16::from(frame.code);
                    return Err(self.interrupted(&format!("closed the connection: {code} {}", short(&frame.reason))));
                }
                Some(Ok(Message::Close(None))) | None => return Err(self.interrupted("closed the connection")),
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    return Err(self.interrupted(&format!("lost the connection: {}", short(&error.to_string()))));
                }
            };
            if let Some(incoming) = self.understood(&text)? {
                return Ok(incoming);
            }
        }
    }

    fn understood(&self, text: &str) -> Result<Option<Incoming>, Trouble> {
        let envelopes: Vec<Envelope<'_>> = if text.trim_start().starts_with('[') {
            serde_json::from_str(text)
        } else {
            serde_json::from_str(text).map(|one| vec![one])
        }
        .map_err(|_| self.garbled())?;
        let mut answers = Vec::new();
        for envelope in envelopes {
            if let Some(params) = envelope.params {
                let Some(result) = params.result else {
                    return Err(self.interrupted("ended a subscription"));
                };
                return Ok(Some(Incoming::Event(Notification {
                    subscription: params.subscription.get().to_owned(),
                    result: result.to_owned(),
                })));
            }
            let id = envelope.id.and_then(|id| id.get().trim_matches('"').parse().ok());
            let answer = match (envelope.error, envelope.result) {
                (Some(error), _) => Err(error),
                (None, Some(result)) => Ok(result.to_owned()),
                (None, None) => Ok(RawValue::NULL.to_owned()),
            };
            answers.push((id, answer));
        }
        Ok((!answers.is_empty()).then_some(Incoming::Answers(answers)))
    }

    pub(super) fn interrupted(&self, why: &str) -> Trouble {
        Trouble::Interrupted(format!("{} {why}", self.endpoint))
    }

    fn garbled(&self) -> Trouble {
        Trouble::Garbled(format!("{} sent a message that is not JSON-RPC", self.endpoint))
    }
}

impl Notification {
    fn size(&self) -> usize {
        size_of::<Self>() + self.subscription.len() + self.result.get().len()
    }
}

fn unreachable(endpoint: &Endpoint, error: &Error) -> Trouble {
    let Error::Http(answer) = error else {
        return Trouble::Unavailable(format!(
            "cannot connect to {endpoint} ({}); is headwater or a node running there?",
            short(&error.to_string())
        ));
    };
    let status = answer.status();
    let text = format!("{endpoint} answered {status}");
    match status.as_u16() {
        401 | 403 => Trouble::Refused(format!(
            "{text}; put the key that it asks for into the URL, as in {endpoint}/KEY, or give --header 'Authorization: Bearer KEY'"
        )),
        429 | 500.. => Trouble::Unavailable(format!("{text}; try again later")),
        _ => Trouble::Refused(format!("{text}; this is not the WebSocket of an Ethereum node")),
    }
}
