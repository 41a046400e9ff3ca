//! A call on its way to a node: its request, the upstreams that may answer it, and its errors.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Endpoint;
use crate::conduct::Conduct;
use crate::jsonrpc::Outcome;
use crate::shares::{Full, Owner};
use crate::telemetry::{Attempt, CallRecord, TraceParent};

/// Reason why a call has no usable answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No upstream is connected, or none that serves the method. Nothing was sent.
    #[error("upstream unavailable")]
    Unavailable,
    /// No upstream has the block with this number: the published head, or the block that the call asks for. Nothing
    /// was sent.
    #[error("no upstream has reached block {0} yet")]
    Behind(u64),
    /// The connection was lost before the answer; the node may have executed the call.
    #[error("upstream connection lost")]
    Lost,
    /// The answer was longer than the limit (`node.max_message_bytes`).
    #[error("response too large")]
    TooLong,
    /// The node closes every connection on which it receives this call.
    #[error("the node closes its connection on this call")]
    Breaks,
    /// The node is rate limiting; `Some` is the wait that it asks for.
    #[error("upstream is rate limited")]
    Throttled(Option<Duration>),
    /// No answer within the time limit.
    #[error("request timed out")]
    TimedOut,
    /// The byte budget for answers being read is used up.
    #[error(transparent)]
    Full(#[from] Full),
    /// The answer is about another hash than the one requested.
    #[error("upstream answered for another hash")]
    Another,
}

impl CallError {
    /// Returns the value of the `outcome` label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Behind(_) => "behind",
            Self::Lost => "lost",
            Self::TooLong => "response_too_large",
            Self::Breaks => "breaks_connections",
            Self::Throttled(_) => "throttled",
            Self::TimedOut => "timeout",
            Self::Full(_) => "full",
            Self::Another => "another_hash",
        }
    }
}

/// A client's call, and the rules for routing and repeating it.
#[derive(Clone, Debug)]
pub struct CallRequest {
    /// The method's name.
    pub method: Cow<'static, str>,
    /// Parameters as JSON, empty for none.
    pub params: Arc<str>,
    /// Class for latency statistics: calls of one class take about the same time.
    pub class: &'static str,
    /// Progress that an upstream must have made to know the answer.
    pub min_head: MinHead,
    /// Preference among the upstreams that qualify.
    pub target: Target,
    /// Handling of a connection that is lost before the answer.
    pub repeat: Repeat,
    /// `true` for a request for old state, which only archive nodes keep.
    pub archive: bool,
    /// Record of the account that sent the call.
    pub conduct: Arc<Conduct>,
    /// Account that the bytes of the answer are charged to.
    pub owner: Owner,
    /// Record of the call, if it is logged or traced.
    pub record: Option<Arc<CallRecord>>,
}

impl CallRequest {
    /// Records that this upstream is asked, if the call has a record.
    pub(super) fn attempt(&self, upstream: &Endpoint) -> Option<Attempt> {
        self.record.as_ref().map(|record| record.asks(upstream))
    }
}

/// Ends the record of an attempt.
pub(super) fn attempted(attempt: Option<Attempt>, answer: &Result<Outcome, CallError>) {
    if let Some(attempt) = attempt {
        attempt.end(match answer {
            Ok(Outcome::Result(_)) => "result",
            Ok(Outcome::Error(_)) => "node_error",
            Err(why) => why.label(),
        });
    }
}

/// Handling of a call whose connection is lost before the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// A call that only reads: sent again, on a connection of its own.
    Read,
    /// A signed transaction: the caller looks it up at the nodes, and sends it again if none has it (`rpc/send.rs`).
    Signed,
    /// Never sent again: the call may have changed something.
    Never,
}

/// Progress that an upstream must have made to receive a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinHead {
    /// None: any connected upstream.
    Any,
    /// At least the block with this number.
    Number(u64),
    /// The published head, on the same branch.
    Published,
    /// Like [`Self::Published`], and preferably this number: an answer has already named a block of that height.
    PreferAbove(u64),
}

/// Preference among several upstreams that qualify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The upstream with the lowest expected wait.
    LeastLoaded,
    /// The upstream in use: the subject of the call is in one node's memory (its pool of transactions, say), and is
    /// requested again and again.
    Active,
}

/// A call in the queue of one connection.
#[derive(Debug)]
pub(super) struct Call {
    pub method: Cow<'static, str>,
    /// Parameters as JSON, empty for none.
    pub params: Arc<str>,
    /// Account that the bytes of the answer are charged to.
    pub owner: Owner,
    /// Context for the request, if the call is traced; sent over HTTP, which has a place for it.
    pub trace: Option<TraceParent>,
    pub reply: Reply,
}

/// Sender of the answer to the caller.
pub(super) type Reply = oneshot::Sender<Result<Outcome, CallError>>;

/// Sending ends of a [`CallReceiver`].
#[derive(Clone, Debug)]
pub(super) struct CallSender {
    /// Our own calls, taken before clients' calls.
    pub internal: mpsc::Sender<Call>,
    /// Clients' calls.
    pub from_clients: mpsc::Sender<Call>,
}

/// Queues of calls for one connection.
#[derive(Debug)]
pub(super) struct CallReceiver {
    /// Our own calls.
    pub internal: mpsc::Receiver<Call>,
    /// Clients' calls.
    pub from_clients: mpsc::Receiver<Call>,
}

/// Most calls in each queue of a [`CallReceiver`].
const CALL_QUEUE: usize = 256;

impl CallReceiver {
    /// Creates an empty inbox and its sending ends.
    pub(super) fn new() -> (CallSender, Self) {
        let (internal, internal_in) = mpsc::channel(CALL_QUEUE);
        let (from_clients, from_clients_in) = mpsc::channel(CALL_QUEUE);
        let call_receiver = Self {
            internal: internal_in,
            from_clients: from_clients_in,
        };
        (CallSender { internal, from_clients }, call_receiver)
    }

    /// Waits for the next call, headwater's own first; clients' calls only if `room`. `None` when the pool is gone.
    pub(super) async fn next(&mut self, room: bool) -> Option<Call> {
        tokio::select! {
            biased;
            call = self.internal.recv() => call,
            call = self.from_clients.recv(), if room => call,
        }
    }

    /// Fails calls with [`CallError::Unavailable`] for this time; their callers then try another upstream. Returns
    /// `false` when the pool is gone.
    pub(super) async fn refuse_for(&mut self, span: Duration) -> bool {
        let until = Instant::now() + span;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                call = self.next(true) => match call {
                    Some(call) => drop(call.reply.send(Err(CallError::Unavailable))),
                    None => return false,
                },
            }
        }
    }

    /// Takes a queued call without waiting, in the same order.
    pub(super) fn try_next(&mut self) -> Option<Call> {
        self.internal.try_recv().or_else(|_| self.from_clients.try_recv()).ok()
    }
}

/// Sends a call and waits for its answer, both within `time_limit`.
pub(super) async fn exchange(
    lane: &mpsc::Sender<Call>,
    method: Cow<'static, str>,
    params: Arc<str>,
    owner: Owner,
    trace: Option<TraceParent>,
    time_limit: Duration,
) -> Result<Outcome, CallError> {
    let (reply, answer) = oneshot::channel();
    let call = Call {
        method,
        params,
        owner,
        trace,
        reply,
    };
    // The queue nearly always has room, and the wait for it is not a part of each call's future.
    let full = match lane.try_send(call) {
        Ok(()) => None,
        Err(TrySendError::Full(call)) => Some(Box::pin(lane.send(call))),
        Err(TrySendError::Closed(_)) => return Err(CallError::Unavailable),
    };
    let exchange = async {
        if let Some(sending) = full {
            sending.await.map_err(|_| CallError::Unavailable)?;
        }
        answer.await.map_err(|_| CallError::Lost)?
    };
    tokio::time::timeout(time_limit, exchange)
        .await
        .unwrap_or(Err(CallError::TimedOut))
}
