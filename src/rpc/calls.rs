//! Answers to calls: known already, from blocks in memory, from the cache, or from a node.

mod logs;
mod reads;
mod turn;
mod unanswered;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::logs::{BUILDERS, MAX_BUILDS};
use self::turn::{BEYOND_CALLS, LONG_CALLS, MAX_WAITING};
use self::unanswered::Way;
pub(super) use self::unanswered::{Begun, Unanswered};
use super::by_hash::{ByHash, Expected};
use super::cache::{By, Cache, CacheKey};
use super::cache_scope::{Admission, CacheScope, ChainSnapshot, Route};
use super::filters::Filters;
use super::finality::{self, Finality};
use super::method::Method;
use super::packing::Packing;
use super::params::{self, BlockName};
use super::send;
use super::unpublished_head::UnpublishedHead;
use super::{CallContext, RpcSettings};
use crate::chain::Published;
use crate::conduct::Conduct;
use crate::jsonrpc::{INTERNAL_ERROR, LIMIT_EXCEEDED, Outcome, RESPONSE_TOO_LARGE, TIMEOUT, error};
use crate::shares::{Budget, FairPool};
use crate::telemetry::{AnsweredLabel, CallRecord, Metrics, OutcomeLabel};
use crate::upstream::{CallError, CallRequest, Pool, Target, UpstreamId};

/// Waits before a node is asked again for a published block that it does not have yet.
const MISSING: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(320),
];

/// Largest lead over the published head, in blocks, that is taken from a number in a node's answer: a trusted node is
/// not far ahead, and the claim of a single node must not keep answers out of the cache for long.
const MAX_OUTRUN: u64 = 64;

type Answer = Result<Outcome, CallError>;

/// Service that answers calls.
#[derive(Debug)]
pub(super) struct Calls {
    pool: Arc<Pool>,
    published: Arc<Published>,
    pub(super) cache: Cache,
    filters: Filters,
    /// Bytes of answers that are put together, or wait to be read over HTTP.
    pub(super) answers: Arc<Budget>,
    /// Places for calls in flight at the nodes.
    places: Arc<FairPool>,
    /// Places for calls in flight of accounts whose answers are long.
    long: Arc<FairPool>,
    /// Places for calls in flight beyond the windows of their accounts.
    beyond: Arc<FairPool>,
    /// Places for long answers that are put together.
    builders: Arc<FairPool>,
    pub(super) packing: Packing,
    finality: Finality,
    unpublished_head: UnpublishedHead,
    by_hash: ByHash,
    /// Number of commands that changed a development chain; added to the era.
    changes: AtomicU64,
    /// Node in use, or the last one that was.
    node: Mutex<Option<UpstreamId>>,
    settings: RpcSettings,
    metrics: Arc<Metrics>,
}

impl Calls {
    /// Creates the service: it answers from the chain in `published`, and asks `pool` for the rest.
    #[must_use]
    pub(super) fn new(
        pool: Arc<Pool>,
        published: Arc<Published>,
        settings: RpcSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            pool,
            published,
            cache: Cache::new(settings.max_cache_bytes),
            filters: Filters::default(),
            answers: Budget::new("too many bytes of answers at once", settings.max_answer_bytes),
            places: FairPool::new("too many calls under way", settings.max_in_flight, MAX_WAITING),
            long: FairPool::new("too many long answers at once", LONG_CALLS, MAX_WAITING),
            beyond: FairPool::new("too many calls under way", BEYOND_CALLS, MAX_WAITING),
            builders: FairPool::new("too many long answers at once", BUILDERS, MAX_BUILDS),
            packing: Packing::default(),
            finality: Finality::default(),
            unpublished_head: UnpublishedHead::default(),
            by_hash: ByHash::new(settings.verify),
            changes: AtomicU64::new(0),
            node: Mutex::default(),
            settings,
            metrics,
        }
    }

    /// Returns the outcome of a call whose answer was not known; every failure is an error object.
    pub(super) async fn finish(&self, unanswered: &Unanswered, caller: &CallContext) -> Outcome {
        let answer = self.find(unanswered, caller).await;
        self.counted(answer)
    }

    /// Returns the outcome of an answer within the limit of its length, and counts it.
    fn counted(&self, answer: Answer) -> Outcome {
        match answer {
            Err(why) => {
                self.count(why.label());
                failed(why)
            }
            Ok(Outcome::Result(json)) if json.len() > self.settings.max_response_bytes => {
                self.count("response_too_large");
                error(RESPONSE_TOO_LARGE, "response too large").into()
            }
            Ok(Outcome::Result(json)) => {
                self.count("result");
                Outcome::Result(json)
            }
            Ok(Outcome::Error(json)) => {
                self.count("node_error");
                Outcome::Error(json)
            }
        }
    }

    /// Returns the number of cached answers, and their bytes.
    pub(super) fn kept(&self) -> (u64, u64) {
        self.cache.size()
    }

    async fn find(&self, Unanswered { known, ask, way }: &Unanswered, caller: &CallContext) -> Answer {
        // All ways but the usual ones are on the heap, and not a part of each call's future.
        match way {
            Way::Read(plan) => self.read(*known, ask, plan).await,
            Way::Plain => self.forwarded(caller, self.pool.call(ask).boxed()).await,
            Way::Logs => Box::pin(self.logs(*known, ask.clone())).await,
            Way::BlockNumber => {
                let answer = self.forwarded(caller, self.pool.call(ask).boxed()).await;
                if let Ok(Outcome::Result(json)) = &answer {
                    let number = serde_json::from_slice(json).ok().and_then(params::quantity);
                    self.note_block_number(number);
                    if number.is_none()
                        && let Some(head) = self.published.view().head
                    {
                        return Ok(Outcome::Result(format!("\"{:#x}\"", head.number).into()));
                    }
                }
                answer
            }
            Way::Send => {
                let sent = send::send(&self.pool, ask.clone(), self.settings.broadcast);
                self.forwarded(caller, sent.boxed()).await
            }
            Way::NewFilter => {
                let made = self.filters.make(&self.pool, ask, caller.holder);
                self.forwarded(caller, made.boxed()).await
            }
            Way::UseFilter => {
                let filter = match Box::pin(self.filters.find(ask, caller.holder)).await {
                    Ok(filter) => filter,
                    Err(answer) => return Ok(answer),
                };
                let of_blocks = filter.returns_logs();
                let asked = self.filters.ask(&self.pool, ask.clone(), filter);
                let answer = self.forwarded(caller, asked.boxed()).await;
                if of_blocks {
                    self.note_last_block(&answer);
                }
                answer
            }
            Way::Control => {
                let answer = self.forwarded(caller, self.pool.call(ask).boxed()).await;
                // A node that answers with an error has changed nothing. Most nodes do, and any client may send these
                // calls.
                let refused = matches!(
                    answer,
                    Ok(Outcome::Error(_)) | Err(CallError::Unavailable | CallError::Throttled(_))
                );
                if !refused {
                    self.changes.fetch_add(1, Ordering::Relaxed);
                    let head = self.published.view().head.map_or(0, |head| head.number);
                    self.unpublished_head.note(head + 1);
                }
                answer
            }
        }
    }

    fn snapshot(&self) -> ChainSnapshot {
        let view = self.published.view();
        let head = view.head.map_or(0, |head| head.number);
        let mut node = self.node.lock();
        *node = self.pool.active().or(*node);
        ChainSnapshot {
            view,
            epoch: view.epoch + self.changes.load(Ordering::Relaxed),
            unpublished_head: self.unpublished_head.beyond(head),
            node: *node,
            named: None,
        }
    }

    /// Records the number of a block in a node's answer: beyond the published head, it shows that the head is not the
    /// newest block. Only for calls that were understood: the pending block has a number beyond the head as well, and
    /// a client that asks for it at each head would keep the answers of all clients out of the cache.
    fn note_block_number(&self, number: Option<u64>) {
        if let (Some(head), Some(number)) = (self.published.view().head, number)
            && number > head.number
        {
            // The lead is bounded, so that the claim of one node is void after some blocks.
            self.unpublished_head.note(number.min(head.number + MAX_OUTRUN));
        }
    }

    /// Records the last block number of a list of logs or receipts, as in [`Self::note_block_number`].
    fn note_last_block(&self, answer: &Answer) {
        if let Ok(Outcome::Result(list)) = answer {
            self.note_block_number(params::last_block_number(list));
        }
    }

    /// Asks a node for the final block, if this block may be final and the last question is some time ago.
    fn look_for_finality(&self, snapshot: &ChainSnapshot, block: Option<BlockName>) {
        let (Some(head), Some(BlockName::Number(number))) = (snapshot.view.head, block) else {
            return;
        };
        let deep = head.number.saturating_sub(number) >= Finality::DEEP;
        let known = snapshot.view.final_block.is_some_and(|newest| number <= newest);
        if deep && !known && self.finality.is_due(head.number) {
            tokio::spawn(finality::look(self.pool.clone(), self.published.clone()));
        }
    }

    async fn shared_or_forwarded<'a>(
        &'a self,
        known: Method,
        key: Option<(&CacheKey, Admission)>,
        ask: &CallRequest,
        holds: impl Fn(&Bytes) -> bool,
        asking: impl FnOnce() -> BoxFuture<'a, Answer>,
    ) -> (Answer, By) {
        // The place is taken before the answer is shared: an equal call of another account must not wait behind the
        // other calls of this account.
        let _turn = match self.turn(ask.owner, &ask.conduct).await {
            Ok(turn) => turn,
            Err(full) => return (Ok(full.into()), By::Node),
        };
        let asking = || self.timed(asking());
        let (answer, by) = match key {
            Some((key, admission)) => self.cache.answer(key, (admission, ask.owner), holds, asking).await,
            None => (asking().await, By::Node),
        };
        weigh(&ask.conduct, &answer);
        let who = match by {
            By::Memory => "memory",
            By::Shared => "shared",
            By::Node => "node",
        };
        self.note(known, who, &ask.record);
        (answer, by)
    }

    /// Asks a node, and again after each wait of [`MISSING`] while the block is not there or the answer is about
    /// another hash.
    ///
    /// # Errors
    /// [`CallError::Another`] if the last answer is still about another hash.
    async fn ask(&self, ask: &CallRequest, expected: Option<Expected>, is_there: impl Fn(&Bytes) -> bool) -> Answer {
        let fits = |json: &Bytes| expected.is_none_or(|expected| self.by_hash.fits(expected, json));
        let is_there = |json: &Bytes| fits(json) && is_there(json);
        let mut answer = self.pool.call(ask).await;
        for wait in MISSING {
            match &answer {
                Ok(Outcome::Result(json)) if !is_there(json) => tokio::time::sleep(wait).await,
                _ => break,
            }
            answer = self.pool.call(ask).await;
        }
        match answer {
            Ok(Outcome::Result(json)) if !fits(&json) => Err(CallError::Another),
            answer => answer,
        }
    }

    async fn forwarded(&self, caller: &CallContext, asking: BoxFuture<'_, Answer>) -> Answer {
        match self.turn(caller.owner, &caller.conduct).await {
            Ok(_turn) => {
                let answer = self.timed(asking).await;
                weigh(&caller.conduct, &answer);
                answer
            }
            Err(full) => Ok(full.into()),
        }
    }

    // ---- counting

    fn count_refusal(&self, reason: &'static str) {
        self.metrics.count_refusals(reason, 1);
    }

    /// Awaits a node's answer, and records its outcome and time. The future is boxed: its large state is moved once.
    async fn timed(&self, asking: BoxFuture<'_, Answer>) -> Answer {
        let began = Instant::now();
        let answer = asking.await;
        self.metrics.forward_seconds.observe(began.elapsed().as_secs_f64());
        let outcome = match &answer {
            Ok(Outcome::Result(_)) => "result",
            Ok(Outcome::Error(_)) => "node_error",
            Err(why) => why.label(),
        };
        self.metrics.forwarded.get_or_create(&OutcomeLabel { outcome }).inc();
        answer
    }

    /// Counts the source of an answer, and names it in the call's record.
    fn note(&self, known: Method, by: &'static str, record: &Option<Arc<CallRecord>>) {
        let label = AnsweredLabel { method: known.name, by };
        self.metrics.answered.get_or_create(&label).inc();
        if let Some(record) = record {
            record.answered_by(by);
        }
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// Records the length of a node's answer.
fn weigh(conduct: &Conduct, answer: &Answer) {
    if let Ok(Outcome::Result(json) | Outcome::Error(json)) = answer {
        conduct.record_answer_size(json.len());
    }
}

fn route(ask: &mut CallRequest, plan: Route) {
    ask.min_head = plan.min_head;
    ask.archive = plan.archive;
    if !plan.of_node {
        ask.target = Target::LeastLoaded;
    }
}

fn key(scope: CacheScope, ask: &CallRequest) -> Option<CacheKey> {
    let params = params::canonical(&ask.params)?;
    Some(CacheKey::new(scope, &ask.method, &params))
}

/// Returns the error object of a failed call (PROTOCOL 1.14). The message is the variant's own, without the
/// upstream's address.
pub(super) fn failed(why: CallError) -> Outcome {
    let code = match why {
        CallError::Unavailable | CallError::Behind(_) | CallError::Lost | CallError::Breaks | CallError::Another => {
            INTERNAL_ERROR
        }
        CallError::TooLong => RESPONSE_TOO_LARGE,
        CallError::Throttled(_) => LIMIT_EXCEEDED,
        CallError::Full(full) => return full.into(),
        CallError::TimedOut => TIMEOUT,
    };
    error(code, why.to_string()).into()
}

fn is_null(json: &Bytes) -> bool {
    &json[..] == b"null"
}

fn is_empty_list(json: &Bytes) -> bool {
    &json[..] == b"[]"
}
