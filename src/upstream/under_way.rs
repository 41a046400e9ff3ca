//! Calls in flight on one connection to a node, and the messages that wait to be written. No I/O, no clock.

use std::collections::{HashMap, HashSet, VecDeque};

use alloy_primitives::map::DefaultHashBuilder;

use super::CallError;
use super::call::{Call, Reply};
use super::link::Outbound;
use super::message::{self, NodeMessage};

/// Most messages that wait to be written; further calls wait in the actor's inbox, so that their callers wait with
/// them.
const WRITE_QUEUE: usize = 128;

/// Most abandoned calls remembered; above that all are forgotten, since the node apparently answers none of them.
const MAX_ABANDONED: usize = 4096;

/// Calls in flight, by the ids that they were sent with.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    next_id: u64,
    /// Nobody chooses these ids, so their hash need not withstand chosen ones.
    waiting: HashMap<u64, Reply, DefaultHashBuilder>,
    /// Calls whose callers gave up, and whose answers may still arrive.
    abandoned: HashSet<u64>,
    pub out: VecDeque<Outbound>,
}

impl UnderWay {
    /// Number of calls without an answer.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Checks if another message may be queued.
    pub(super) fn is_writable(&self) -> bool {
        self.out.len() < WRITE_QUEUE
    }

    /// Queues a call.
    pub(super) fn begin(&mut self, call: Call) {
        let Call {
            method, params, reply, ..
        } = call;
        self.next_id += 1;
        self.waiting.insert(self.next_id, reply);
        self.out
            .push_back(Outbound::Message(message::request(self.next_id, &method, &params)));
    }

    /// Queues a call whose answer is used only as a sign of life.
    pub(super) fn probe(&mut self, method: &str) {
        self.next_id += 1;
        self.out
            .push_back(Outbound::Message(message::request(self.next_id, method, "")));
    }

    /// Passes an answer to its caller. Notifications are dropped: this connection has no subscriptions.
    pub(super) fn received(&mut self, message: NodeMessage) {
        let NodeMessage::Answer(id, outcome) = message else {
            return;
        };
        if let Some(reply) = self.waiting.remove(&id) {
            drop(reply.send(Ok(outcome)));
        }
        self.abandoned.remove(&id);
    }

    /// Moves calls whose callers gave up to the abandoned ones.
    pub(super) fn forget_closed(&mut self) {
        let closed = self.waiting.extract_if(|_, reply| reply.is_closed());
        self.abandoned.extend(closed.map(|(id, _)| id));
        if self.abandoned.len() > MAX_ABANDONED {
            self.abandoned.clear();
        }
    }

    /// Fails all calls, since the connection ended. An answer that was too long can be blamed on a call only where
    /// that call is the only one in flight; of several, each is lost.
    pub(super) fn lose_all(&mut self, too_long: bool) {
        let why = if too_long && self.waiting.len() == 1 && self.abandoned.is_empty() {
            CallError::TooLong
        } else {
            CallError::Lost
        };
        for (_, reply) in self.waiting.drain() {
            drop(reply.send(Err(why)));
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.lose_all(false);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::jsonrpc::Outcome;
    use crate::shares::Owner;

    fn begin(under_way: &mut UnderWay, method: &str) -> oneshot::Receiver<Result<Outcome, CallError>> {
        let (reply, answer) = oneshot::channel();
        under_way.begin(Call {
            method: method.to_owned().into(),
            params: "[]".into(),
            owner: Owner::OURS,
            trace: None,
            reply,
        });
        answer
    }

    #[test]
    fn answers_find_their_callers_in_any_order() {
        let mut under_way = UnderWay::default();
        let (mut one, mut two) = (begin(&mut under_way, "a"), begin(&mut under_way, "b"));
        under_way.probe("eth_chainId");
        let asked: Vec<_> = under_way.out.iter().map(|message| format!("{message:?}")).collect();
        assert!(
            asked[0].contains("\\\"a\\\"") && asked[2].contains("eth_chainId"),
            "{asked:?}"
        );
        for (id, json) in [(3, "3"), (2, "2"), (2, "4"), (9, "9"), (1, "1")] {
            under_way.received(NodeMessage::Answer(id, Outcome::Result(json.into())));
        }
        assert_eq!(one.try_recv(), Ok(Ok(Outcome::Result("1".into()))));
        assert_eq!(two.try_recv(), Ok(Ok(Outcome::Result("2".into()))));
        assert_eq!(under_way.len(), 0);
    }

    #[test]
    fn only_a_call_that_is_alone_has_too_long_an_answer() {
        let mut under_way = UnderWay::default();
        let mut one = begin(&mut under_way, "a");
        under_way.lose_all(true);
        assert_eq!(one.try_recv(), Ok(Err(CallError::TooLong)));
        let (mut one, mut two) = (begin(&mut under_way, "a"), begin(&mut under_way, "b"));
        under_way.lose_all(true);
        assert_eq!(
            (one.try_recv(), two.try_recv()),
            (Ok(Err(CallError::Lost)), Ok(Err(CallError::Lost)))
        );
        let mut one = begin(&mut under_way, "a");
        drop(under_way);
        assert_eq!(one.try_recv(), Ok(Err(CallError::Lost)));
    }
}
