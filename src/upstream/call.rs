//! A call on its way to a node: what is asked, who may be asked, and what it may come to.

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::jsonrpc::{INVALID_PARAMS, LIMIT_EXCEEDED, METHOD_NOT_FOUND, Outcome};

/// A call came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No upstream is connected, or none that serves this method. Nothing was sent.
    #[error("upstream unavailable")]
    Unavailable,
    /// No upstream has the newest block that clients were shown. Nothing was sent.
    #[error("no upstream has reached block {0} yet")]
    Behind(u64),
    /// The connection was lost before the answer came; the node may have acted.
    #[error("upstream connection lost")]
    Lost,
    /// Somebody's answer was longer than is read from a node; over a connection that many share, everybody's.
    #[error("response too large")]
    TooLong,
    /// The node is asked too much, and perhaps says when to come again.
    #[error("upstream is rate limited")]
    Throttled(Option<Duration>),
    /// No answer in time.
    #[error("request timed out")]
    TimedOut,
}

impl CallError {
    /// The value of the `outcome` label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Behind(_) => "behind",
            Self::Lost => "lost",
            Self::TooLong => "response_too_large",
            Self::Throttled(_) => "throttled",
            Self::TimedOut => "timeout",
        }
    }
}

/// What a client's call asks, and what may be done with it.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The method's name.
    pub method: String,
    /// JSON, empty for none.
    pub params: String,
    /// Calls of one class take about the same time.
    pub class: &'static str,
    /// Which upstreams can know the answer.
    pub reach: Reach,
    /// Which of them is asked.
    pub whom: Whom,
    /// Asked twice it does no harm: it may be sent again where the first answer does not come.
    pub again: bool,
    /// It asks for state that a node keeps only where it is an archive.
    pub archive: bool,
    /// Its answer may be of any length.
    pub long: bool,
}

/// How far an upstream must have come to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It does not matter.
    Anywhere,
    /// As far as the block of this number.
    Number(u64),
    /// It has the newest head that clients were shown, and on the same branch.
    Head,
    /// As [`Self::Head`], and rather one that has come as far as this number, where there is one: somebody was told of it.
    Beyond(u64),
}

/// Which of several upstreams is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Whoever has the least to do.
    LeastLoaded,
    /// The one in use: what is asked about is in one node's own memory (its pool of transactions, say), and asked about
    /// again and again.
    InUse,
}

/// One call on its way to a node.
#[derive(Debug)]
pub(super) struct Call {
    pub method: String,
    /// JSON, empty for none.
    pub params: String,
    pub reply: oneshot::Sender<Result<Outcome, CallError>>,
}

/// Calls for one upstream.
#[derive(Debug)]
pub(super) struct Inbox {
    /// The stream's own.
    pub ours: mpsc::Receiver<Call>,
    /// Clients'.
    pub theirs: mpsc::Receiver<Call>,
}

impl Inbox {
    /// The next call, ours first; clients' only where there is room for them. `None` when the pool is gone.
    pub async fn next(&mut self, room: bool) -> Option<Call> {
        tokio::select! {
            biased;
            call = self.ours.recv() => call,
            call = self.theirs.recv(), if room => call,
        }
    }

    /// A call that is there already, in the same order.
    pub fn try_next(&mut self) -> Option<Call> {
        self.ours.try_recv().or_else(|_| self.theirs.try_recv()).ok()
    }
}

/// Sends a call and waits for its answer, so long at most.
pub(super) async fn exchange(
    lane: &mpsc::Sender<Call>,
    method: String,
    params: String,
    patience: Duration,
) -> Result<Outcome, CallError> {
    let (reply, answer) = oneshot::channel();
    let call = Call { method, params, reply };
    let exchange = async {
        lane.send(call).await.map_err(|_| CallError::Unavailable)?;
        answer.await.map_err(|_| CallError::Lost)?
    };
    tokio::time::timeout(patience, exchange)
        .await
        .unwrap_or(Err(CallError::TimedOut))
}

/// What matters of an error object.
#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    #[serde(default)]
    message: String,
}

impl ErrorObject {
    fn of(outcome: &Outcome) -> Option<Self> {
        let Outcome::Error(json) = outcome else { return None };
        serde_json::from_slice(json).ok()
    }
}

/// Whether an answer says that this node cannot tell, but another may: it does not offer the method, or has not the state
/// (geth, reth, Erigon, Nethermind, Besu in this order).
pub(super) fn is_elsewhere(outcome: &Outcome) -> bool {
    let Some(ErrorObject { code, message }) = ErrorObject::of(outcome) else {
        return false;
    };
    let message = message.to_ascii_lowercase();
    let stateless = [
        "missing trie node",
        "header not found",
        "state at block",
        "state is not available",
        "no state available",
        "world state unavailable",
    ];
    code == i64::from(METHOD_NOT_FOUND) || stateless.iter().any(|words| message.contains(words))
}

/// Whether an error object says that this node will never do what it was asked: it does not know the method, or takes no such
/// parameters (-32004 is EIP-1474's "method not supported").
pub(super) fn is_for_good(error: &[u8]) -> bool {
    serde_json::from_slice(error).is_ok_and(|ErrorObject { code, .. }| {
        [METHOD_NOT_FOUND, INVALID_PARAMS, -32004]
            .map(i64::from)
            .contains(&code)
    })
}

/// Whether an error object says that the node does not know the method.
pub(super) fn is_unknown_method(error: &[u8]) -> bool {
    serde_json::from_slice(error)
        .is_ok_and(|ErrorObject { code, .. }| [METHOD_NOT_FOUND, -32004].map(i64::from).contains(&code))
}

/// Whether an answer says that the node is asked too much: 429 as Alchemy and QuickNode answer, -32029 as Erigon's hosts, and
/// -32005, which EIP-1474 calls "limit exceeded"; but Infura says by it, too, that a query has too many results, which is
/// the question's fault.
pub(super) fn is_throttled(outcome: &Outcome) -> bool {
    let Some(error) = ErrorObject::of(outcome) else {
        return false;
    };
    match error.code {
        429 | -32029 => true,
        code if code == i64::from(LIMIT_EXCEEDED) => {
            let message = error.message.to_ascii_lowercase();
            let the_questions = ["result", "range", "logs", "response size", "block"];
            !the_questions.iter().any(|word| message.contains(word))
        }
        _ => false,
    }
}

/// Whether an answer, or none, says that the node is asked too much; and perhaps when to come again.
pub(crate) fn throttled(answer: &Result<Outcome, CallError>) -> Option<Option<Duration>> {
    match answer {
        Ok(outcome) => is_throttled(outcome).then_some(None),
        Err(CallError::Throttled(after)) => Some(*after),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_that_a_node_is_asked_too_much() {
        for (error, throttled) in [
            (
                r#"{"code":429,"message":"Your app has exceeded its compute units"}"#,
                true,
            ),
            (r#"{"code":-32029,"message":"Too many requests"}"#, true),
            (
                r#"{"code":-32005,"message":"daily request count exceeded, request rate limited"}"#,
                true,
            ),
            (r#"{"code":-32005,"message":"limit exceeded"}"#, true),
            (
                r#"{"code":-32005,"message":"query returned more than 10000 results"}"#,
                false,
            ),
            (r#"{"code":-32005,"message":"block range is too wide"}"#, false),
            (r#"{"code":-32000,"message":"too many requests"}"#, false),
            (r#"{"code":3,"message":"execution reverted"}"#, false),
            ("5", false),
        ] {
            assert_eq!(is_throttled(&Outcome::Error(error.into())), throttled, "{error}");
        }
        let elsewhere = |error: &str| is_elsewhere(&Outcome::Error(error.to_owned().into()));
        assert!(elsewhere(
            r#"{"code":-32601,"message":"the method x does not exist/is not available"}"#
        ));
        assert!(elsewhere(r#"{"code":-32000,"message":"missing trie node 5a (path )"}"#));
        assert!(!elsewhere(r#"{"code":3,"message":"execution reverted"}"#));
        assert!(!is_throttled(&Outcome::Result(r#"{"code":429}"#.into())));
    }
}
