//! A WebSocket connection to an endpoint: calls, and the notifications that arrive meanwhile.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderName, HeaderValue};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::error::{Endpoint, TailError};
use super::message::{self, Answer, AnswerId, Member, Notification, RpcError};
use crate::text::short;

/// Time for the connection, TLS and the upgrade together.
const CONNECT_TIME: Duration = Duration::from_secs(20);

/// Time for an answer. headwater's own limit is below it, so its reason arrives.
const CALL_TIME: Duration = Duration::from_secs(60);

/// Silence after which a ping is sent, and after which, without any frame, the connection is given up.
const SILENCE: Duration = Duration::from_secs(25);

/// Bound on the notifications that wait while a call is under way. Above it the connection is given up and resumed.
const MAX_WAITING_BYTES: usize = 64 << 20;

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

impl Connection {
    /// Connects to an endpoint, with these headers in the handshake besides its own.
    ///
    /// # Errors
    /// [`TailError::Unavailable`] if nothing answers, [`TailError::Refused`] if the answer is no upgrade to a WebSocket.
    pub(super) async fn open(endpoint: &Endpoint, headers: &[(HeaderName, HeaderValue)]) -> Result<Self, TailError> {
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
                return Err(TailError::Unavailable(format!(
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
    ///
    /// # Errors
    /// [`TailError::Interrupted`] if the connection breaks or no answer comes, [`TailError::Garbled`] if one is not
    /// JSON-RPC.
    pub(super) async fn call(&mut self, method: &str, params: Value) -> Result<Answer, TailError> {
        let id = self.next_id;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let mut answers = self.exchange(request.to_string(), id..id + 1).await?;
        answers.pop().ok_or_else(|| self.interrupted("gave no answer"))
    }

    /// Calls a method whose result has this type.
    ///
    /// # Errors
    /// Errors of [`Self::call`], and [`TailError::Garbled`] if the result is of another type.
    pub(super) async fn read<T: DeserializeOwned>(
        &mut self,
        method: &str,
        params: Value,
    ) -> Result<Result<T, RpcError>, TailError> {
        match self.call(method, params).await? {
            Ok(result) => Ok(Ok(self.parsed(&result, method)?)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Parses a result or an event; `what` names it in the error.
    ///
    /// # Errors
    /// [`TailError::Garbled`] if it is of another type.
    pub(super) fn parsed<T: DeserializeOwned>(&self, json: &RawValue, what: &str) -> Result<T, TailError> {
        serde_json::from_str(json.get()).map_err(|why| {
            TailError::Garbled(format!(
                "{} sent an odd result of {what}: {}",
                self.endpoint,
                short(&why.to_string())
            ))
        })
    }

    /// Calls `eth_subscribe` for each of these parameters in one batch, so that the events keep their order.
    ///
    /// # Errors
    /// Errors of [`Self::call`].
    pub(super) async fn subscribe(&mut self, params: Vec<Value>) -> Result<Vec<Answer>, TailError> {
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
    ///
    /// # Errors
    /// Errors of [`Self::call`], and the endpoint's refusal.
    pub(super) async fn subscribe_one(&mut self, kind: &str) -> Result<String, TailError> {
        let answer = self.call("eth_subscribe", json!([kind])).await?;
        self.subscribed(answer, kind)
    }

    async fn exchange(&mut self, message: String, ids: Range<u64>) -> Result<Vec<Answer>, TailError> {
        self.next_id = ids.end;
        if let Err(error) = self.socket.send(Message::text(message)).await {
            return Err(self.interrupted(&short(&error.to_string())));
        }
        match timeout(CALL_TIME, self.answers(ids)).await {
            Ok(answers) => answers,
            Err(_) => Err(self.interrupted(&format!("gave no answer within {} s", CALL_TIME.as_secs()))),
        }
    }

    async fn answers(&mut self, ids: Range<u64>) -> Result<Vec<Answer>, TailError> {
        let mut slots: Vec<Option<Answer>> = ids.clone().map(|_| None).collect();
        while slots.iter().any(Option::is_none) {
            for (id, answer) in self.read_message().await? {
                let indices = match id {
                    AnswerId::One(id) if ids.contains(&id) => {
                        let index = (id - ids.start) as usize;
                        index..index + 1
                    }
                    AnswerId::One(_) => continue,
                    AnswerId::All => 0..slots.len(),
                };
                for slot in &mut slots[indices] {
                    slot.get_or_insert_with(|| answer.clone());
                }
            }
            if self.waiting_bytes > MAX_WAITING_BYTES {
                return Err(self.interrupted("sends faster than the answers to calls arrive"));
            }
        }
        Ok(slots.into_iter().flatten().collect())
    }

    /// Returns the next notification.
    ///
    /// # Errors
    /// [`TailError::Interrupted`] if the connection breaks or a subscription ends, [`TailError::Garbled`] if a message is
    /// not JSON-RPC.
    pub(super) async fn next(&mut self) -> Result<Notification, TailError> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                self.waiting_bytes -= event.size();
                return Ok(event);
            }
            // Answers to calls that were given up.
            drop(self.read_message().await?);
        }
    }

    /// Reads the next message: its notifications are put behind those that wait, its answers are returned.
    async fn read_message(&mut self) -> Result<Vec<(AnswerId, Answer)>, TailError> {
        let text = self.text().await?;
        let mut answers = Vec::new();
        for member in message::parse(&text).map_err(|_| self.garbled())? {
            match member {
                Member::Answer(id, answer) => answers.push((id, answer)),
                Member::Event(event) => {
                    self.waiting_bytes += event.size();
                    self.waiting.push_back(event);
                }
                Member::Ended => return Err(self.interrupted("ended a subscription")),
            }
        }
        Ok(answers)
    }

    /// Reads the next text; pings where there is silence.
    async fn text(&mut self) -> Result<Utf8Bytes, TailError> {
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
            match message {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Binary(bytes))) => {
                    return Utf8Bytes::try_from(bytes).map_err(|_| self.garbled());
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    let code = u16::from(frame.code);
                    return Err(self.interrupted(&format!("closed the connection: {code} {}", short(&frame.reason))));
                }
                Some(Ok(Message::Close(None))) | None => return Err(self.interrupted("closed the connection")),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    return Err(self.interrupted(&format!("lost the connection: {}", short(&error.to_string()))));
                }
            }
        }
    }

    pub(super) fn interrupted(&self, why: &str) -> TailError {
        TailError::Interrupted(format!("{} {why}", self.endpoint))
    }

    fn garbled(&self) -> TailError {
        TailError::Garbled(format!("{} sent a message that is not JSON-RPC", self.endpoint))
    }
}

fn unreachable(endpoint: &Endpoint, error: &Error) -> TailError {
    let Error::Http(answer) = error else {
        return TailError::Unavailable(format!(
            "cannot connect to {endpoint} ({}); is headwater or a node running there?",
            short(&error.to_string())
        ));
    };
    let status = answer.status();
    let text = format!("{endpoint} answered {status}");
    match status.as_u16() {
        401 | 403 => TailError::Refused(format!(
            "{text}; put the key that it asks for into the URL, as in {endpoint}/KEY, or give --header 'Authorization: Bearer KEY'"
        )),
        429 | 500.. => TailError::Unavailable(format!("{text}; try again later")),
        _ => TailError::Refused(format!("{text}; this is not the WebSocket of an Ethereum node")),
    }
}
