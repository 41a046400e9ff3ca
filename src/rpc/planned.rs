//! Item of a message on its way to its answer: planned, begun, waiting.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::value::RawValue;

use super::calls::Unanswered;
use super::method;
use crate::jsonrpc::{self, INVALID_REQUEST, Item, Outcome, Request, Response, error};
use crate::telemetry::CallRecord;

/// Item of a message on its way to its answer.
pub enum Planned {
    /// Answered here; the raw id and the outcome.
    Done(String, Outcome),
    /// Answered here, after a wait; the raw id and the future outcome.
    Later(String, BoxFuture<'static, Outcome>),
    /// Forwarded to a node.
    Forward {
        /// Raw id; `None` for a notification, whose answer is dropped.
        id: Option<String>,
        /// Method name.
        method: Cow<'static, str>,
        /// Parameters as JSON; empty for none. A copy: a slice of the message would keep the client's whole read buffer
        /// in memory.
        params: Arc<str>,
        /// Nodes that may get the call.
        before: Before,
    },
    /// Item with its record.
    Recorded(Arc<CallRecord>, Box<Self>),
    /// Gets no answer.
    Silent,
}

/// Item after its first step.
pub enum Begun {
    /// Answered; `None` if it gets no answer.
    Answered(Option<Response>),
    /// Not answered yet.
    Waits(Waiting),
}

/// Item whose answer takes a wait, see [`crate::rpc::Rpc::finish`].
pub struct Waiting {
    pub(super) wait: Wait,
    /// Record of the item, if it is logged or traced.
    pub(super) record: Option<Arc<CallRecord>>,
}

impl From<Wait> for Waiting {
    fn from(wait: Wait) -> Self {
        Self { wait, record: None }
    }
}

pub(super) enum Wait {
    /// Answered here: the raw id and the outcome.
    Local(String, BoxFuture<'static, Outcome>),
    /// Call: the raw id, `None` for a notification.
    Call(Option<String>, Box<Unanswered>),
    /// Call for logs under way: the raw id as above, and the future outcome.
    Logs(Option<String>, BoxFuture<'static, Outcome>),
    /// Call that only development nodes may get: id, method and parameters.
    InDevelopment(Option<String>, Cow<'static, str>, Arc<str>),
}

/// Nodes that may get a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Any node.
    AnyNode,
    /// Development nodes only: refused unless every upstream is one.
    DevelopmentNodes,
}

/// Decision about a request that does not go to just any node.
pub enum Local {
    /// Forwarding to development nodes only.
    InDevelopment,
    /// Outcome that is known now.
    Now(Outcome),
    /// Outcome that has to be awaited.
    Later(BoxFuture<'static, Outcome>),
}

impl<T: Into<Outcome>> From<T> for Local {
    fn from(outcome: T) -> Self {
        Self::Now(outcome.into())
    }
}

/// Callback that decides about a request; `None` to forward it to any node.
pub type LocalHandler<'a> = dyn FnMut(&Request<'_>) -> Option<Local> + 'a;

impl Planned {
    /// Decides how an item is answered.
    pub fn new(item: &Item<'_>, local: &mut LocalHandler<'_>) -> Self {
        let (request, id) = match item {
            Item::Response => return Self::Silent,
            Item::Invalid(id) => {
                let outcome = error(INVALID_REQUEST, "invalid request").into();
                return Self::Done(jsonrpc::id_text(*id).to_owned(), outcome);
            }
            Item::Flawed(request, flaw) => {
                let answer = |id: &RawValue| Self::Done(id.get().to_owned(), flaw.error(&request.method).into());
                return request.id.map_or(Self::Silent, answer);
            }
            Item::Call(request) => (request, Some(jsonrpc::id_text(request.id).to_owned())),
            Item::Notification(request) => (request, None),
        };
        let forward = |id, before| Self::Forward {
            id,
            method: method::Method::static_name(&request.method),
            params: request.params.map(RawValue::get).unwrap_or_default().into(),
            before,
        };
        match (local(request), id) {
            (None, id) => forward(id, Before::AnyNode),
            (Some(Local::InDevelopment), id) => forward(id, Before::DevelopmentNodes),
            (Some(Local::Now(outcome)), Some(id)) => Self::Done(id, outcome),
            (Some(Local::Later(outcome)), Some(id)) => Self::Later(id, outcome),
            (Some(_), None) => Self::Silent,
        }
    }

    /// Returns the record of the item, if it is logged or traced.
    #[must_use]
    pub fn record(&self) -> Option<&Arc<CallRecord>> {
        match self {
            Self::Recorded(record, _) => Some(record),
            _ => None,
        }
    }

    /// Plans the refusal of an item; notifications and responses get no answer, as always.
    #[must_use]
    pub fn refused(item: &Item<'_>, why: &Outcome) -> Self {
        match item {
            Item::Call(request) => Self::Done(jsonrpc::id_text(request.id).to_owned(), why.clone()),
            Item::Invalid(id) => Self::Done(jsonrpc::id_text(*id).to_owned(), why.clone()),
            Item::Flawed(request, _) => {
                let answer = |id: &RawValue| Self::Done(id.get().to_owned(), why.clone());
                request.id.map_or(Self::Silent, answer)
            }
            Item::Notification(_) | Item::Response => Self::Silent,
        }
    }
}
