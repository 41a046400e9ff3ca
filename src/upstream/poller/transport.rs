//! HTTP access to a node: one POST for each call, and its failures.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use url::Url;

use crate::jsonrpc::Outcome;
use crate::shares::{Budget, Charge, Full, Owner};
use crate::telemetry::TraceParent;
use crate::telemetry::trace::TRACEPARENT;
use crate::upstream::call::{Call, is_throttled};
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

impl HttpTransport {
    async fn call(
        &self,
        method: &str,
        params: &str,
        trace: Option<TraceParent>,
        mut room: Option<Charge>,
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
        // The address may hold a key: it stays out of the error.
        let failed = |error: reqwest::Error| HttpFailure::Other(chain(&error.without_url()));
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let after = response.headers().get(reqwest::header::RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
        // A known length is reserved at once, as far as it is allowed: growing means copying.
        let length = response.content_length().unwrap_or(0) as usize;
        let mut charged = |bytes: usize| match &mut room {
            Some(room) if bytes > UNCHARGED => room.resize(bytes),
            _ => Ok(()),
        };
        let length = length.min(self.max_message_bytes);
        charged(length)?;
        let mut answer = Vec::with_capacity(length);
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.len() + chunk.len() > self.max_message_bytes {
                return Err(HttpFailure::TooLong(self.max_message_bytes));
            }
            // Charged before the buffer grows, by doubling.
            if answer.len() + chunk.len() > answer.capacity() {
                charged((answer.len() + chunk.len()).max(2 * answer.capacity()))?;
            }
            answer.extend_from_slice(&chunk);
        }
        if status.is_redirection() {
            return Err(HttpFailure::Other(format!(
                "HTTP {status}: headwater does not follow redirects, configure the final address"
            )));
        }
        if status == reqwest::StatusCode::TOO_MANY_REQUESTS {
            return Err(HttpFailure::Throttled(after.map(Duration::from_secs)));
        }
        message::answer(&answer.into(), ID)
            .ok_or_else(|| HttpFailure::Other(format!("HTTP {status} without a JSON-RPC answer")))
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
