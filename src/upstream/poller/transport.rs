//! HTTP access to a node: one POST for each call, and its failures.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, RETRY_AFTER};
use tokio::sync::{Semaphore, mpsc};
use url::Url;

use crate::content_coding::ContentCoding;
use crate::content_coding::unpack::{self, Unpack};
use crate::jsonrpc::Outcome;
use crate::shares::{Budget, Charge, Full, Owner};
use crate::telemetry::TraceParent;
use crate::telemetry::trace::TRACEPARENT;
use crate::upstream::call::Call;
use crate::upstream::complaint::is_throttled;
use crate::upstream::{CallError, message};

/// Id of every call: each has a POST of its own.
const ID: u64 = 1;

/// Longest answer that is not charged to the memory budget, in bytes: the number of such answers is bounded.
const UNCHARGED: usize = 64 << 10;

/// HTTP access to the node.
#[derive(Clone, Debug)]
pub(super) struct HttpTransport {
    pub(super) client: reqwest::Client,
    pub(super) url: Url,
    pub(super) max_message_bytes: usize,
    /// `true` if the node may compress its answers.
    pub(super) offers_compression: bool,
}

/// Failure of a POST.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpFailure {
    #[error("rate limited by the node")]
    Throttled(Option<Duration>),
    #[error("an answer of more than {0} bytes (raise node.max_message_bytes)")]
    TooLong(usize),
    #[error(transparent)]
    Full(#[from] Full),
    #[error("{0}")]
    Other(String),
}

impl From<String> for HttpFailure {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

/// Text of an answer, which grows as far as its limits allow.
struct Answer {
    text: Vec<u8>,
    /// Most bytes of the text.
    max: usize,
    room: Option<Charge>,
    /// Times that the text is in memory while it is read.
    copies: usize,
    /// Limit that was exceeded.
    failure: Option<HttpFailure>,
}

impl Answer {
    /// Reserves memory for a text of this length, as far as it is allowed.
    fn reserve(&mut self, length: usize) -> Result<(), Full> {
        let length = length.min(self.max);
        self.charge(length)?;
        self.text.reserve_exact(length);
        Ok(())
    }

    fn charge(&mut self, length: usize) -> Result<(), Full> {
        match &mut self.room {
            Some(room) if length > UNCHARGED => room.resize(length * self.copies),
            _ => Ok(()),
        }
    }

    fn push(&mut self, part: &[u8]) -> Result<(), HttpFailure> {
        let length = self.text.len() + part.len();
        if length > self.max {
            return Err(HttpFailure::TooLong(self.max));
        }
        // Charged before the buffer grows, by doubling.
        if length > self.text.capacity() {
            self.charge(length.max(2 * self.text.capacity()))?;
        }
        self.text.extend_from_slice(part);
        Ok(())
    }
}

impl std::io::Write for Answer {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.push(part).map_err(|why| {
            let words = why.to_string();
            self.failure = Some(why);
            std::io::Error::other(words)
        })?;
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads `Content-Encoding`; `None` for text as it is.
fn coding_of(value: Option<&[u8]>) -> Result<Option<ContentCoding>, HttpFailure> {
    let Some(value) = value else { return Ok(None) };
    let name = String::from_utf8_lossy(value);
    let name = name.trim();
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        return Ok(None);
    }
    let unknown = || {
        let words = "the node compresses with a coding that it was not offered: configure it to use gzip or zstd";
        HttpFailure::Other(words.to_owned())
    };
    ContentCoding::named(name).map(Some).ok_or_else(unknown)
}

impl HttpTransport {
    /// Posts a call, and offers the node to compress its answer. The limits of an answer hold for its text, whatever the
    /// number of bytes in which it comes.
    async fn call(
        &self,
        method: &str,
        params: &str,
        trace: Option<TraceParent>,
        room: Option<Charge>,
    ) -> Result<Outcome, HttpFailure> {
        let body = message::request(ID, method, params);
        let mut request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .body(body);
        if let Some(trace) = trace {
            request = request.header(TRACEPARENT, trace.to_string());
        }
        if self.offers_compression {
            request = request.header(ACCEPT_ENCODING, "zstd, gzip");
        }
        // The address may hold a key: it stays out of the error.
        let failed = |error: reqwest::Error| HttpFailure::Other(chain(&error.without_url()));
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
        // Read whatever the status is: the connection serves the next call only then.
        let answer = self.read(response, room).await;
        if status.is_redirection() {
            return Err(HttpFailure::Other(format!(
                "HTTP {status}: headwater does not follow redirects, configure the final address"
            )));
        }
        if status == reqwest::StatusCode::TOO_MANY_REQUESTS {
            return Err(HttpFailure::Throttled(after.map(Duration::from_secs)));
        }
        let answer = answer?;
        message::answer(&answer.into(), ID)
            .ok_or_else(|| HttpFailure::Other(format!("HTTP {status} without a JSON-RPC answer")))
    }

    /// Reads the text of an answer.
    async fn read(&self, mut response: reqwest::Response, room: Option<Charge>) -> Result<Vec<u8>, HttpFailure> {
        let failed = |error: reqwest::Error| HttpFailure::Other(chain(&error.without_url()));
        let unpacking = |why: std::io::Error| HttpFailure::Other(format!("an answer that cannot be unpacked: {why}"));
        let coding = coding_of(response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes))?;
        let mut answer = Answer {
            text: Vec::new(),
            max: self.max_message_bytes,
            room,
            // A window of zstd may be as long as the text.
            copies: if coding == Some(ContentCoding::Zstd) { 2 } else { 1 },
            failure: None,
        };
        if coding.is_none() {
            // A known length is reserved at once, as far as it is allowed: growing means copying.
            answer.reserve(response.content_length().unwrap_or(0) as usize)?;
        }
        let mut unpack = Unpack::new(coding, answer).map_err(unpacking)?;
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            let step = if coding.is_some() {
                unpack::STEP
            } else {
                chunk.len().max(1)
            };
            for part in chunk.chunks(step) {
                if let Err(why) = unpack.write(part) {
                    return Err(unpack.sink().failure.take().unwrap_or_else(|| unpacking(why)));
                }
                if coding.is_some() {
                    // A few bytes may stand for a long text.
                    tokio::task::consume_budget().await;
                }
            }
        }
        if let Err(why) = unpack.finish() {
            return Err(unpack.sink().failure.take().unwrap_or_else(|| unpacking(why)));
        }
        Ok(std::mem::take(&mut unpack.sink().text))
    }

    pub(super) async fn result(&self, method: &str, params: &str) -> Result<Bytes, HttpFailure> {
        result_of(self.outcome(method, params).await?)
    }

    /// Makes a call like [`Self::call`], but reports a rate limit as a failure, however the node expresses it.
    pub(super) async fn outcome(&self, method: &str, params: &str) -> Result<Outcome, HttpFailure> {
        let outcome = self.call(method, params, None, None).await?;
        if is_throttled(&outcome) {
            return Err(HttpFailure::Throttled(None));
        }
        Ok(outcome)
    }
}

pub(super) fn result_of(outcome: Outcome) -> Result<Bytes, HttpFailure> {
    match outcome {
        Outcome::Result(json) => Ok(json),
        Outcome::Error(error) => Err(String::from_utf8_lossy(&error).into_owned().into()),
    }
}

/// Posts calls until the pool is gone.
pub(super) async fn forward(
    node: HttpTransport,
    mut calls: mpsc::Receiver<Call>,
    max_in_flight: usize,
    answers: Arc<Budget>,
) {
    let room = Arc::new(Semaphore::new(max_in_flight));
    while let Some(call) = calls.recv().await {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let node = node.clone();
        // Each question of our own is charged separately.
        let owner = if call.owner == Owner::OURS {
            Owner::default()
        } else {
            call.owner
        };
        let room = Some(answers.open(owner));
        tokio::spawn(async move {
            let outcome =
                node.call(&call.method, &call.params, call.trace, room)
                    .await
                    .map_err(|failed| match failed {
                        HttpFailure::Throttled(after) => CallError::Throttled(after),
                        HttpFailure::TooLong(_) => CallError::TooLong,
                        HttpFailure::Full(full) => CallError::Full(full),
                        HttpFailure::Other(_) => CallError::Lost,
                    });
            drop(call.reply.send(outcome));
            drop(place);
        });
    }
}

/// Returns an error with its causes, which reqwest's own text leaves out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
