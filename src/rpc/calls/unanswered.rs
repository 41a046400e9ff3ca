//! Calls that are not answered yet: the first step of each call, which waits for nothing, answers it or plans the next.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::Calls;
use super::reads::ReadPlan;
use crate::chain::BlockRef;
use crate::jsonrpc::{INVALID_REQUEST, Outcome, error, not_available};
use crate::rpc::CallContext;
use crate::rpc::method::{Method, Role};
use crate::rpc::params;
use crate::upstream::{CallRequest, MinHead, Repeat, Target};

/// Outcome of the first step of a call.
#[derive(Debug)]
pub(in crate::rpc) enum Begun {
    /// Answer that was known, or an error.
    Answered(Outcome),
    /// Call that is to be finished by [`Calls::finish`]. On the heap: it is moved from hand to hand.
    Unanswered(Box<Unanswered>),
}

/// Call whose answer is not known without a wait.
#[derive(Debug)]
pub(in crate::rpc) struct Unanswered {
    pub(super) known: Method,
    pub(super) ask: CallRequest,
    pub(super) way: Way,
}

/// Way to the answer of a call.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are reads, and on the heap already")]
pub(super) enum Way {
    /// From a node, if no equal call is under way, and into the cache.
    Read(ReadPlan),
    /// Logs: from blocks in memory, or like a read.
    Logs,
    /// Number of the newest block, where it is not certain here.
    BlockNumber,
    /// Signed transaction to the nodes.
    Send,
    /// Filter, made at a node.
    NewFilter,
    /// Filter, at the node that has it.
    UseFilter,
    /// Command to a development chain.
    Control,
    /// From a node.
    Plain,
}

impl Unanswered {
    /// Checks if the call asks for logs.
    pub(in crate::rpc) fn is_of_logs(&self) -> bool {
        matches!(self.way, Way::Logs)
    }
}

impl Calls {
    /// Answers a call if the answer is known, without any wait or work for a node.
    pub(in crate::rpc) fn begin(&self, method: Cow<'static, str>, params: Arc<str>, caller: &CallContext) -> Begun {
        if params.len() > self.settings.max_request_bytes {
            self.count("too_large");
            return Begun::Answered(error(INVALID_REQUEST, "request too large").into());
        }
        let known = Method::of(&method);
        let answered = |outcome| Begun::Answered(self.counted(Ok(outcome)));
        if let Some(outcome) = self.known(known.role, &params) {
            self.note(known, "memory", &caller.record);
            return answered(outcome);
        }
        if known.role == Role::Misspelt || !self.pool.serves(&method) {
            return answered(not_available(&method).into());
        }
        let mut ask = CallRequest {
            method,
            params,
            class: known.name,
            min_head: MinHead::Any,
            target: Target::Active,
            repeat: Repeat::Read,
            archive: false,
            conduct: caller.conduct.clone(),
            owner: caller.owner,
            record: caller.record.clone(),
        };
        // A client that has seen a later block is not answered from before it.
        let newest = || self.unpublished_head().map_or(MinHead::Published, MinHead::PreferAbove);
        // A read, also of logs, names the nodes in its plan.
        let way = match known.role {
            Role::Read(basis) => {
                let plan = self.plan_read(basis, &mut ask);
                if let Some(kept) = self.cached_answer(&plan, &ask) {
                    self.note(known, "memory", &caller.record);
                    return answered(Outcome::Result(kept));
                }
                Way::Read(plan)
            }
            Role::Logs => Way::Logs,
            Role::BlockNumber => {
                ask.min_head = newest();
                Way::BlockNumber
            }
            Role::ChainId | Role::OfNode => Way::Plain,
            Role::Send => {
                ask.repeat = Repeat::Signed;
                Way::Send
            }
            Role::NewFilter => {
                (ask.min_head, ask.repeat) = (newest(), Repeat::Never);
                Way::NewFilter
            }
            Role::UseFilter => {
                ask.repeat = Repeat::Never;
                Way::UseFilter
            }
            Role::Control => {
                ask.repeat = Repeat::Never;
                Way::Control
            }
            Role::Unknown | Role::Misspelt => {
                (ask.min_head, ask.repeat) = (newest(), Repeat::Never);
                Way::Plain
            }
        };
        Begun::Unanswered(Box::new(Unanswered { known, ask, way }))
    }

    /// Returns the answer that needs no node. A call with unexpected parameters is left to the node.
    fn known(&self, role: Role, params: &str) -> Option<Outcome> {
        let json = match role {
            Role::ChainId if is_empty(params) => Bytes::copy_from_slice(self.pool.chain_id()?.as_bytes()),
            Role::BlockNumber if is_empty(params) => format!("\"{:#x}\"", self.newest()?.number).into(),
            _ => return None,
        };
        Some(Outcome::Result(json))
    }

    /// Returns the head, if the nodes are not known to have a newer block or to be on their way to another branch.
    fn newest(&self) -> Option<BlockRef> {
        let view = self.published.view();
        let head = view.head.filter(|_| view.is_settled)?;
        self.unpublished_head.beyond(head.number).is_none().then_some(head)
    }

    /// Returns the block number beyond the published head that a node has reported lately.
    fn unpublished_head(&self) -> Option<u64> {
        self.unpublished_head.beyond(self.published.view().head?.number)
    }
}

fn is_empty(params: &str) -> bool {
    params.is_empty() || params::args(params).is_some_and(|args| args.is_empty())
}
