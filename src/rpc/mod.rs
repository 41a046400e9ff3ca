//! Requests other than subscriptions, and their answers in order.
//!
//! ```text
//! calls    method (table of methods)  >  cache_scope (state that the answer depends on)
//!          > cache  >  in_flight (equal calls share one)  >  upstream::routing (a node)
//!
//! sightings         questions asked lately, which decide if an answer is cached
//! local_logs        logs of blocks in memory         filters     filters that exist at one node
//! send              signed transactions              finality    look-up of the final block
//! unpublished_head  blocks reported before they      by_hash     answers checked against the requested hash
//!                   are published                    development commands to development chains
//! openrpc           document of what may be called
//! ```

mod by_hash;
mod cache;
mod cache_scope;
mod calls;
mod development;
mod filters;
mod finality;
mod id_argument;
mod in_flight;
mod local_logs;
mod method;
pub mod openrpc;
mod packing;
mod params;
mod planned;
mod send;
mod sightings;
mod unpublished_head;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use crate::chain::{Published, Verify};
use crate::conduct::Conduct;
use crate::jsonrpc::{ErrorObjectOwned, METHOD_NOT_FOUND, Outcome, Response, error, not_available};
use crate::shares::{Budget, Charge, Full, Owner};
use crate::telemetry::{CallOutcome, CallRecord, Metrics, OutcomeLabel};
pub use crate::upstream::SubscriptionMethod;
use crate::upstream::{NodeSubscription, Pool};

use calls::Calls;
use development::DevelopmentCalls;
pub use id_argument::id_argument;
pub use packing::PACK_FROM;
use planned::Wait;
pub use planned::{Before, Begun, Local, LocalHandler, Planned, Waiting};

/// Most items of one batch in flight at the same time.
const BATCH_CONCURRENCY: usize = 32;

/// Length of answers, in bytes, below which they need no room in the budget.
const LONG_ANSWER: usize = 64 << 10;

/// Checks if headwater serves a method of this name by rules of its own, in any case of its letters.
#[must_use]
pub fn serves(method: &str) -> bool {
    const OWN: [&str; 4] = ["headwater_", "rpc_", "rpc.", "eth_subscribe"];
    let begins = |own: &str| {
        let beginning = method.as_bytes().get(..own.len());
        beginning.is_some_and(|beginning| beginning.eq_ignore_ascii_case(own.as_bytes()))
    };
    OWN.into_iter().any(begins)
        || method.eq_ignore_ascii_case("eth_unsubscribe")
        || method::Method::of(method).role != method::Role::Unknown
}

/// Returns the names of all methods of which headwater has rules, except those that only share a prefix.
pub fn known_methods() -> impl Iterator<Item = &'static str> {
    method::names()
}

/// Number of the account that makes a call, the same as long as the process runs: a filter that one account made at a
/// node is not another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder(pub u64);

/// Account that makes a call.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Owner of its places and bytes in shared pools and budgets.
    pub owner: Owner,
    /// Number of the account, the same after the account was dropped and opened again.
    pub holder: Holder,
    /// Record of its calls that broke a node's connection.
    pub conduct: Arc<Conduct>,
    /// Record of this call, if it is logged or traced.
    pub record: Option<Arc<CallRecord>>,
}

impl CallContext {
    /// Returns the context of a call with a record.
    fn recorded(&self, record: &Arc<CallRecord>) -> Self {
        Self {
            record: Some(record.clone()),
            ..self.clone()
        }
    }
}

/// Settings of calls: forwarding, lengths of answers, sizes of cache and budgets.
#[derive(Clone, Copy, Debug)]
pub struct RpcSettings {
    /// `true` to send signed transactions to all nodes.
    pub broadcast: bool,
    /// Longest parameters of a call, in bytes: a node that closes its connection on a long message closes it for all
    /// clients.
    pub max_request_bytes: usize,
    /// Longest answer to one call, in bytes.
    pub max_response_bytes: usize,
    /// Bytes of a batch's answer after which items get an error instead (geth `node/defaults.go`,
    /// `BatchResponseMaxSize`).
    pub max_batch_response_bytes: usize,
    /// Bytes of answers that are cached.
    pub max_cache_bytes: u64,
    /// The proof that the contents of blocks are checked against.
    pub verify: Verify,
    /// `true` if clients connect from this machine alone.
    pub is_local: bool,
    /// Most calls in flight, of all clients and at all nodes: nearly all may be at one node.
    pub max_in_flight: usize,
    /// Longest wait of a call for a place among those in flight.
    pub queue_wait: Duration,
    /// Most bytes of answers that are put together, or wait to be read over HTTP, of all clients.
    pub max_answer_bytes: usize,
}

/// Service that answers calls.
#[derive(Debug)]
pub struct Rpc {
    pool: Arc<Pool>,
    calls: Calls,
    development: DevelopmentCalls,
    max_batch_response: usize,
    metrics: Arc<Metrics>,
}

impl Rpc {
    /// Creates the service: it answers from the chain in `published`, and asks `pool` for the rest.
    #[must_use]
    pub fn new(pool: Arc<Pool>, published: Arc<Published>, settings: RpcSettings, metrics: Arc<Metrics>) -> Self {
        Self {
            pool: pool.clone(),
            calls: Calls::new(pool, published, settings, metrics.clone()),
            development: DevelopmentCalls::new(settings.is_local),
            max_batch_response: settings.max_batch_response_bytes,
            metrics,
        }
    }

    /// Returns the number of cached answers, and their bytes.
    pub fn kept(&self) -> (u64, u64) {
        self.calls.kept()
    }

    /// Waits for the answer of the node in use to a subscription.
    ///
    /// # Errors
    /// The node's own error object, or an error if the node does not answer.
    pub async fn answered(&self, of: &NodeSubscription) -> Result<(), Outcome> {
        match self.pool.answered(of).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Outcome::Error(error)),
            Err(why) => Err(calls::failed(why)),
        }
    }

    /// Returns the answer of the node in use to a subscription, like [`Self::answered`] but without a wait: `Ok` if
    /// there is no answer yet.
    ///
    /// # Errors
    /// The node's own error object.
    pub fn answered_now(&self, of: &NodeSubscription) -> Result<(), Outcome> {
        match self.pool.watch_answers().borrow().get(of) {
            Some(Err(error)) => Err(Outcome::Error(error.clone())),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Takes the first step towards the answer to an item, which waits for nothing. It asks no node, except for logs.
    #[must_use]
    pub fn begin(self: &Arc<Self>, planned: Planned, caller: &CallContext) -> Begun {
        match planned {
            Planned::Recorded(record, planned) => {
                let begin = record.began_part();
                let begun = self.begin(*planned, &caller.recorded(&record));
                record.part("cache", begin);
                match begun {
                    Begun::Answered(response) => {
                        finish_record(&record, response.as_ref());
                        Begun::Answered(response)
                    }
                    Begun::Waits(Waiting { wait, .. }) => Begun::Waits(Waiting {
                        wait,
                        record: Some(record),
                    }),
                }
            }
            Planned::Silent => Begun::Answered(None),
            Planned::Done(id, outcome) => Begun::Answered(Some(self.local(&id, outcome))),
            Planned::Later(id, mut outcome) => match (&mut outcome).now_or_never() {
                Some(outcome) => Begun::Answered(Some(self.local(&id, outcome))),
                None => Begun::Waits(Wait::Local(id, outcome).into()),
            },
            Planned::Forward {
                id,
                method,
                params,
                before: Before::AnyNode,
            } => match self.calls.begin(method, params, caller) {
                calls::Begun::Answered(outcome) => Begun::Answered(id.map(|id| Response::new(&id, outcome))),
                calls::Begun::Unanswered(call) if call.is_of_logs() => {
                    // Mostly put together from memory, without a wait.
                    let (rpc, caller) = (self.clone(), caller.clone());
                    let mut outcome = async move { rpc.calls.finish(&call, &caller).await }.boxed();
                    match (&mut outcome).now_or_never() {
                        Some(outcome) => Begun::Answered(id.map(|id| Response::new(&id, outcome))),
                        None => Begun::Waits(Wait::Logs(id, outcome).into()),
                    }
                }
                calls::Begun::Unanswered(call) => Begun::Waits(Wait::Call(id, call).into()),
            },
            Planned::Forward {
                id,
                method,
                params,
                before: Before::DevelopmentNodes,
            } => Begun::Waits(Wait::InDevelopment(id, method, params).into()),
        }
    }

    /// Returns the response to an item after its first step; `None` if it gets none.
    pub async fn finish(&self, Waiting { wait, record }: Waiting, caller: &CallContext) -> Option<Response> {
        let (id, outcome) = match wait {
            Wait::Local(id, outcome) => {
                let outcome = outcome.await;
                (Some(id), self.counted_here(outcome))
            }
            Wait::Call(id, call) => (id, self.calls.finish(&call, caller).await),
            Wait::Logs(id, outcome) => (id, outcome.await),
            Wait::InDevelopment(id, method, params) => {
                let recorded = record.as_ref().map(|record| caller.recorded(record));
                let caller = recorded.as_ref().unwrap_or(caller);
                let outcome = Box::pin(self.in_development(method, params, caller)).await;
                (id, outcome)
            }
        };
        let response = id.map(|id| Response::new(&id, outcome));
        if let Some(record) = record {
            finish_record(&record, response.as_ref());
        }
        response
    }

    async fn in_development(&self, method: Cow<'static, str>, params: Arc<str>, caller: &CallContext) -> Outcome {
        if !self.development.is_on(&self.pool).await {
            return refused_method(&method, &self.metrics);
        }
        match self.calls.begin(method, params, caller) {
            calls::Begun::Answered(outcome) => outcome,
            calls::Begun::Unanswered(call) => self.calls.finish(&call, caller).await,
        }
    }

    /// Returns the response to one item; `None` if it gets none.
    pub async fn complete(self: &Arc<Self>, planned: Planned, caller: &CallContext) -> Option<Response> {
        match self.begin(planned, caller) {
            Begun::Answered(response) => response,
            Begun::Waits(waiting) => self.finish(waiting, caller).await,
        }
    }

    /// Returns the response to an item that was answered here, and counts it.
    #[must_use]
    pub fn local(&self, id: &str, outcome: Outcome) -> Response {
        Response::new(id, self.counted_here(outcome))
    }

    fn counted_here(&self, outcome: Outcome) -> Outcome {
        let result = matches!(outcome, Outcome::Result(_));
        self.count(if result { "local_result" } else { "local_error" });
        outcome
    }

    /// Returns the responses to a batch, in the order of the request. One item may be in flight, and another one for
    /// each place that `more` gives (its argument: the items in flight); an item keeps its place until it is
    /// answered. Once `awaits` returns `false`, no further item is begun. The charge for the responses' bytes is
    /// returned with them.
    pub async fn complete_batch<P>(
        self: &Arc<Self>,
        planned: Vec<Planned>,
        caller: &CallContext,
        more: impl Fn(usize) -> Option<P>,
        awaits: impl Fn() -> bool,
    ) -> (Vec<Response>, Option<Charge>) {
        let (mut room, owner) = (None, caller.owner);
        let mut responses: Vec<Option<Response>> = planned.iter().map(|_| None).collect();
        let mut planned = planned.into_iter().enumerate();
        let (mut under_way, mut first_is_free) = (FuturesUnordered::new(), true);
        // A response waits for the ones before it, and the bytes that wait are bounded, too.
        let mut done = 0;
        loop {
            while planned.len() > 0 && under_way.len() < BATCH_CONCURRENCY && awaits() {
                let place = if std::mem::take(&mut first_is_free) {
                    None
                } else {
                    let Some(place) = more(under_way.len()) else { break };
                    Some(place)
                };
                under_way.extend(
                    planned
                        .next()
                        .map(|(at, one)| async move { (at, self.complete(one, caller).await, place) }),
                );
            }
            let Some((at, response, place)) = under_way.next().await else {
                break;
            };
            first_is_free |= place.is_none();
            responses[at] = response.map(|response| {
                let fits = response.body().len() <= self.max_batch_response && done <= 2 * self.max_batch_response;
                let response = match self.room(&mut room, owner, done + response.body().len()) {
                    _ if !fits => response.shortened(),
                    Ok(()) => response,
                    Err(full) => response.instead(full.into()),
                };
                done += response.body().len();
                response
            });
        }
        let mut bytes = 0;
        let fitted = responses.into_iter().flatten().map(|response| {
            bytes += response.body().len();
            if bytes > self.max_batch_response {
                response.shortened()
            } else {
                response
            }
        });
        (fitted.collect(), room)
    }

    /// Takes room for answers of this many bytes together; short ones need none.
    fn room(&self, room: &mut Option<Charge>, owner: Owner, bytes: usize) -> Result<(), Full> {
        let charged = self.try_room(room, owner, bytes);
        charged.inspect_err(|_| self.metrics.count_refusals("long_answers", 1))
    }

    /// Takes room like [`Self::room`], for something that can be done without: no refusal is counted.
    fn try_room(&self, room: &mut Option<Charge>, owner: Owner, bytes: usize) -> Result<(), Full> {
        if bytes < LONG_ANSWER {
            return Ok(());
        }
        room.get_or_insert_with(|| self.calls.answers.open(owner)).resize(bytes)
    }

    /// Takes room for one answer of this many bytes until it is read; `None` if it is too short to need any.
    ///
    /// # Errors
    /// [`Full`] if the budget has no room for it.
    pub fn room_for(&self, owner: Owner, bytes: usize) -> Result<Option<Charge>, Full> {
        let mut room = None;
        self.room(&mut room, owner, bytes)?;
        Ok(room)
    }

    /// Returns the budget of answers that are put together, or wait to be read over HTTP.
    #[must_use]
    pub fn answers(&self) -> &Budget {
        &self.calls.answers
    }

    /// Checks if commands to development chains may be served at all; each command then checks the upstreams.
    #[must_use]
    pub fn may_develop(&self) -> bool {
        self.development.is_possible()
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// Ends the record of a call that got this response.
fn finish_record(record: &CallRecord, response: Option<&Response>) {
    let outcome = match response {
        None => CallOutcome::NoAnswer,
        Some(response) if response.is_error() => CallOutcome::Error(response.error_code()),
        Some(_) => CallOutcome::Result,
    };
    record.finish(outcome, response.map_or(0, Response::length));
}

/// Counts a call of a method that may not be called, and returns the answer to it.
#[must_use]
pub fn refused_method(method: &str, metrics: &Metrics) -> Outcome {
    metrics.count_refusals("method", 1);
    not_available(method).into()
}

/// Returns the error for a method that subscribes and is not passed to the node; its message begins with geth's.
#[must_use]
pub fn not_passed(method: &str) -> ErrorObjectOwned {
    let why = not_available(method);
    let message = format!(
        "{}: it subscribes, and subscriptions.passthrough does not list it",
        why.message()
    );
    error(METHOD_NOT_FOUND, message)
}
