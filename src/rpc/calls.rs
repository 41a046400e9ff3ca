//! What a call comes to: what is known already, what is held or kept, or what a node says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::RpcSettings;
use super::anchor::{Anchor, Ground, Plan};
use super::cache::{By, Cache, Key};
use super::filters::Filters;
use super::held_logs::LogQuery;
use super::method::{Basis, Method, Role};
use super::params::{self, BlockName};
use super::send;
use crate::chain::{BlockRef, Tip};
use crate::jsonrpc::{INTERNAL_ERROR, INVALID_REQUEST, LIMIT_EXCEEDED, Outcome, RESPONSE_TOO_LARGE, TIMEOUT, error};
use crate::look::awaited;
use crate::subscription::Registry;
use crate::telemetry::{AnsweredLabel, Metrics, OutcomeLabel};
use crate::upstream::{Ask, CallError, Pool, Reach, UpstreamId, Whom};

/// A block that clients were shown may be asked for before the node that answers can tell it: asked again after so long.
const MISSING: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(320),
];

/// Only blocks this near to the head are asked for again; one further down that a node does not have, it has no longer.
const FRESH: u64 = 16;

type Answer = Result<Outcome, CallError>;

/// Answers calls.
#[derive(Debug)]
pub struct Calls {
    pool: Arc<Pool>,
    tip: Arc<Tip>,
    registry: Arc<Registry>,
    cache: Cache,
    filters: Filters,
    finality: Arc<Finality>,
    outrun: Outrun,
    /// Times that somebody changed a development chain at will.
    changes: AtomicU64,
    /// The node in use, or the one that was last.
    node: Mutex<Option<UpstreamId>>,
    settings: RpcSettings,
    metrics: Arc<Metrics>,
}

impl Calls {
    /// Answers for the chain as `tip` tells it and `registry` holds it, and asks `pool` for the rest.
    #[must_use]
    pub fn new(
        pool: Arc<Pool>,
        tip: Arc<Tip>,
        registry: Arc<Registry>,
        settings: RpcSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            pool,
            tip,
            registry,
            cache: Cache::new(settings.max_cache_bytes),
            filters: Filters::default(),
            finality: Arc::default(),
            outrun: Outrun::default(),
            changes: AtomicU64::new(0),
            node: Mutex::default(),
            settings,
            metrics,
        }
    }

    /// What a call comes to; every failure is an error object.
    pub async fn answer(&self, method: String, params: String) -> Outcome {
        if params.len() > self.settings.max_request_bytes {
            self.count("too_large");
            return error(INVALID_REQUEST, "request too large").into();
        }
        let outcome = match self.find(method, params).await {
            Ok(outcome) => outcome,
            Err(why) => {
                // PROTOCOL 1.14. The text is the variant's own; nothing of the upstream's address is in it.
                let (label, code) = match why {
                    CallError::Unavailable => ("unavailable", INTERNAL_ERROR),
                    CallError::Behind(_) => ("behind", INTERNAL_ERROR),
                    CallError::Lost => ("lost", INTERNAL_ERROR),
                    CallError::Throttled(_) => ("throttled", LIMIT_EXCEEDED),
                    CallError::TimedOut => ("timeout", TIMEOUT),
                };
                self.count(label);
                return error(code, why.to_string()).into();
            }
        };
        match outcome {
            Outcome::Result(json) if json.len() > self.settings.max_response_bytes => {
                self.count("response_too_large");
                error(RESPONSE_TOO_LARGE, "response too large").into()
            }
            Outcome::Result(json) => {
                self.count("result");
                Outcome::Result(json)
            }
            Outcome::Error(json) => {
                self.count("node_error");
                Outcome::Error(json)
            }
        }
    }

    /// Entries and bytes that are kept.
    pub async fn kept(&self) -> (u64, u64) {
        self.cache.size().await
    }

    async fn find(&self, method: String, params: String) -> Answer {
        let known = Method::of(&method);
        let mut ask = Ask {
            method,
            params,
            class: known.name,
            reach: Reach::Head,
            whom: Whom::InUse,
            again: true,
            archive: false,
        };
        match known.role {
            Role::ChainId if let Some(id) = self.pool.chain_id().filter(|_| is_empty(&ask.params)) => {
                self.note(known, "memory");
                return Ok(Outcome::Result(Bytes::copy_from_slice(id.as_bytes())));
            }
            Role::BlockNumber if let Some(head) = self.newest().filter(|_| is_empty(&ask.params)) => {
                self.note(known, "memory");
                return Ok(Outcome::Result(format!("\"{:#x}\"", head.number).into()));
            }
            Role::Logs => return self.logs(known, ask).await,
            Role::Read(basis) => return self.read(known, basis, ask).await,
            Role::ChainId => ask.reach = Reach::Anywhere,
            Role::BlockNumber | Role::OfNode => {}
            Role::Send => {
                ask.reach = Reach::Anywhere;
                ask.again = false;
                return self.timed(send::send(&self.pool, ask, self.settings.broadcast)).await;
            }
            Role::NewFilter => {
                ask.again = false;
                return self.timed(self.filters.make(&self.pool, &ask)).await;
            }
            Role::UseFilter => {
                ask.again = false;
                ask.reach = Reach::Anywhere;
                return self.timed(self.filters.ask(&self.pool, ask)).await;
            }
            Role::Control => {
                ask.again = false;
                ask.reach = Reach::Anywhere;
                let answer = self.timed(self.pool.call(&ask)).await;
                self.changes.fetch_add(1, Ordering::Relaxed);
                let head = self.tip.view().head.map_or(0, |head| head.number);
                self.outrun.note(head + 1);
                return answer;
            }
            Role::Unknown => ask.again = false,
        }
        self.timed(self.pool.call(&ask)).await
    }

    /// What the newest number is, where that is known here as well as at a node.
    fn newest(&self) -> Option<BlockRef> {
        let view = self.tip.view();
        let head = view.head.filter(|_| view.is_settled)?;
        (!self.outrun.is_beyond(head.number)).then_some(head)
    }

    fn ground(&self) -> Ground {
        let view = self.tip.view();
        let head = view.head.map_or(0, |head| head.number);
        if view.head.is_some() && self.finality.newest().is_some_and(|newest| newest > head) {
            // What was called final was not: a development chain, mostly.
            self.finality.forget();
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        let mut node = self.node.lock();
        *node = self.pool.active().or(*node);
        Ground {
            view,
            era: view.era + self.changes.load(Ordering::Relaxed),
            final_block: self.finality.newest(),
            is_outrun: self.outrun.is_beyond(head),
            node: *node,
        }
    }

    // ---- logs

    async fn logs(&self, known: Method, mut ask: Ask) -> Answer {
        let ground = self.ground();
        let query = params::args(&ask.params).and_then(|args| LogQuery::parse(&args));
        if let Some(query) = &query
            && !(query.last().is_none() && ground.is_outrun)
            && let Some(blocks) = self.registry.with_history(|history| query.blocks(history))
            && let Some(outcome) = query.answer(&blocks, self.settings.max_response_bytes).await
        {
            self.note(known, "history");
            return Ok(outcome);
        }
        let by_hash = query.as_ref().is_some_and(LogQuery::is_by_hash);
        let plan = match &query {
            Some(_) if by_hash => ground.plan(Basis::Hash(0), Some(Some(BlockName::Hash(Default::default())))),
            Some(query) => ground.plan_range(query.last()),
            None => ground.plan_range(None),
        };
        route(&mut ask, plan);
        // A node that has a block may not have indexed it yet: that there is nothing must not be said for ever.
        let holds = |json: &Bytes| !(is_null(json) || by_hash && &json[..] == b"[]");
        // What is not understood is between the client and the node.
        let anchor = plan.anchor.filter(|_| query.is_some());
        self.kept_or_asked(known, anchor, ask, holds, false).await
    }

    // ---- everything else that can be read

    async fn read(&self, known: Method, basis: Basis, mut ask: Ask) -> Answer {
        let ground = self.ground();
        let block = match basis {
            Basis::Hash(at) | Basis::Block(at) | Basis::State(at) | Basis::Account(at) => {
                let args = params::args(&ask.params).unwrap_or_default();
                args.get(at).map(|arg| BlockName::parse(arg))
            }
            _ => None,
        };
        let block = match (basis, block) {
            (Basis::Hash(_), Some(Some(named))) if !matches!(named, BlockName::Hash(_)) => Some(None),
            (_, block) => block,
        };
        self.look_for_finality(&ground, block.flatten());
        let plan = ground.plan(basis, block);
        route(&mut ask, plan);
        let found = basis == Basis::Found;
        if found && let Some(kept) = self.settled(&ground, &ask).await {
            self.note(known, "memory");
            return Ok(Outcome::Result(kept));
        }
        let holds = |json: &Bytes| {
            // A transaction that is pending, or not known yet, is another thing in the next moment.
            let in_block = || params::member(json, "blockHash").is_some_and(|hash| hash.get() != "null");
            !is_null(json) && (!found || in_block())
        };
        let must_be_there = matches!(basis, Basis::Hash(0) | Basis::Block(0))
            && match (block.flatten(), ground.view.head) {
                (Some(BlockName::Number(number)), Some(head)) => number <= head.number && head.number - number < FRESH,
                (Some(BlockName::Hash(hash)), Some(head)) => hash == head.hash,
                _ => false,
            };
        let question = found.then(|| ask.clone());
        let answer = self.kept_or_asked(known, plan.anchor, ask, holds, must_be_there).await;
        if let Ok(Outcome::Result(json)) = &answer {
            self.heed(known, &ground, json);
            if let Some(question) = question {
                self.settle(&ground, &question, json).await;
            }
        }
        answer
    }

    /// What a node tells of a block beyond the head that was published says that the head is not the newest.
    fn heed(&self, known: Method, ground: &Ground, json: &Bytes) {
        let number = match known.name {
            "eth_getBlockByNumber" | "eth_getBlockByHash" => "number",
            "eth_getTransactionReceipt" | "eth_getTransactionByHash" => "blockNumber",
            _ => return,
        };
        if let Some(head) = ground.view.head
            && let Some(number) = params::member(json, number).and_then(params::quantity)
            && number > head.number
        {
            self.outrun.note(number);
        }
    }

    /// The place of a transaction in a final block is kept for good.
    async fn settle(&self, ground: &Ground, ask: &Ask, json: &Bytes) {
        let number = params::member(json, "blockNumber").and_then(params::quantity);
        if let (Some(number), Some(newest)) = (number, ground.final_block)
            && number <= newest
            && let Some(key) = settled_key(ground, ask)
        {
            self.cache.keep(key, Bytes::copy_from_slice(json)).await;
        }
    }

    async fn settled(&self, ground: &Ground, ask: &Ask) -> Option<Bytes> {
        ground.final_block?;
        self.cache.get(&settled_key(ground, ask)?).await
    }

    /// Asks which block is final, where that would help and has not been asked for a while.
    fn look_for_finality(&self, ground: &Ground, block: Option<BlockName>) {
        let (Some(head), Some(BlockName::Number(number))) = (ground.view.head, block) else {
            return;
        };
        let deep = head.number.saturating_sub(number) >= Finality::DEEP;
        if deep && ground.final_block.is_none_or(|newest| number > newest) && self.finality.is_due(head.number) {
            tokio::spawn(look(self.pool.clone(), self.finality.clone()));
        }
    }

    async fn kept_or_asked(
        &self,
        known: Method,
        anchor: Option<Anchor>,
        ask: Ask,
        holds: impl Fn(&Bytes) -> bool,
        must_be_there: bool,
    ) -> Answer {
        let key = anchor.and_then(|anchor| key(anchor, &ask));
        let asking = self.timed(self.ask(&ask, must_be_there));
        let (answer, by) = match key {
            Some(key) => self.cache.answer(key, holds, asking).await,
            None => (asking.await, By::Node),
        };
        let by = match by {
            By::Memory => "memory",
            By::Shared => "shared",
            By::Node => "node",
        };
        self.note(known, by);
        answer
    }

    async fn ask(&self, ask: &Ask, must_be_there: bool) -> Answer {
        let mut answer = self.pool.call(ask).await;
        if must_be_there {
            for wait in MISSING {
                match &answer {
                    Ok(Outcome::Result(json)) if is_null(json) => tokio::time::sleep(wait).await,
                    _ => break,
                }
                answer = self.pool.call(ask).await;
            }
        }
        answer
    }

    // ---- counting

    async fn timed(&self, asking: impl Future<Output = Answer>) -> Answer {
        awaited().await;
        let began = Instant::now();
        let answer = asking.await;
        self.metrics.forward_seconds.observe(began.elapsed().as_secs_f64());
        let outcome = match &answer {
            Ok(Outcome::Result(_)) => "result",
            Ok(Outcome::Error(_)) => "node_error",
            Err(CallError::Unavailable) => "unavailable",
            Err(CallError::Behind(_)) => "behind",
            Err(CallError::Lost) => "lost",
            Err(CallError::Throttled(_)) => "throttled",
            Err(CallError::TimedOut) => "timeout",
        };
        self.metrics.forwarded.get_or_create(&OutcomeLabel { outcome }).inc();
        answer
    }

    fn note(&self, known: Method, by: &'static str) {
        let label = AnsweredLabel { method: known.name, by };
        self.metrics.answered.get_or_create(&label).inc();
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

fn route(ask: &mut Ask, plan: Plan) {
    ask.reach = plan.reach;
    ask.archive = plan.archive;
    if !plan.of_node {
        ask.whom = Whom::LeastLoaded;
    }
}

fn key(anchor: Anchor, ask: &Ask) -> Option<Key> {
    let params = params::canonical(&ask.params)?;
    Some(Key {
        anchor,
        question: format!("{}\n{params}", ask.method).into(),
    })
}

fn settled_key(ground: &Ground, ask: &Ask) -> Option<Key> {
    key(Anchor::Chain { era: ground.era }, ask)
}

fn is_null(json: &Bytes) -> bool {
    &json[..] == b"null"
}

fn is_empty(params: &str) -> bool {
    params.is_empty() || params::args(params).is_some_and(|args| args.is_empty())
}

/// The newest final block that a node told of.
#[derive(Debug)]
struct Finality {
    /// [`Self::UNKNOWN`] before the first.
    newest: AtomicU64,
    /// The head at which a node was last asked.
    asked_at: AtomicU64,
}

impl Default for Finality {
    fn default() -> Self {
        Self {
            newest: AtomicU64::new(Self::UNKNOWN),
            asked_at: AtomicU64::new(0),
        }
    }
}

impl Finality {
    const UNKNOWN: u64 = u64::MAX;

    /// Blocks so far below the head may be final: two epochs of Ethereum's consensus.
    const DEEP: u64 = 64;

    /// A node is asked at most once in so many blocks: an epoch, in which finality moves once.
    const EVERY: u64 = 32;

    fn newest(&self) -> Option<u64> {
        Some(self.newest.load(Ordering::Relaxed)).filter(|newest| *newest != Self::UNKNOWN)
    }

    fn forget(&self) {
        self.newest.store(Self::UNKNOWN, Ordering::Relaxed);
        self.asked_at.store(0, Ordering::Relaxed);
    }

    /// Whether it is time to ask; then it counts as asked.
    fn is_due(&self, head: u64) -> bool {
        let asked_at = self.asked_at.load(Ordering::Relaxed);
        (asked_at == 0 || head >= asked_at + Self::EVERY)
            && self
                .asked_at
                .compare_exchange(asked_at, head.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// Asks for the newest final block. A node that does not tell leaves everything as it is: then nothing is final.
async fn look(pool: Arc<Pool>, finality: Arc<Finality>) {
    let ask = Ask {
        method: "eth_getBlockByNumber".into(),
        params: r#"["finalized",false]"#.into(),
        class: "eth_getBlockByNumber",
        reach: Reach::Head,
        whom: Whom::LeastLoaded,
        again: true,
        archive: false,
    };
    if let Ok(Outcome::Result(json)) = pool.call(&ask).await
        && let Some(number) = params::member(&json, "number").and_then(params::quantity)
    {
        finality.newest.store(number, Ordering::Relaxed);
    }
}

/// The highest block of which a node has told before it was published: what stands on the head is asked of nodes until the
/// head has come so far, so that nobody who was told of a block is told later that there is none.
#[derive(Debug, Default)]
struct Outrun {
    /// 0 where there is none, so that most looks cost one load.
    number: AtomicU64,
    since: Mutex<Option<Instant>>,
}

impl Outrun {
    /// A block that is not published within so long was on a branch that nobody else will see.
    const LIFETIME: Duration = Duration::from_secs(10);

    fn note(&self, number: u64) {
        *self.since.lock() = Some(Instant::now());
        self.number.fetch_max(number, Ordering::Relaxed);
    }

    fn is_beyond(&self, head: u64) -> bool {
        let number = self.number.load(Ordering::Relaxed);
        if number == 0 {
            return false;
        }
        let old = || self.since.lock().is_none_or(|since| since.elapsed() > Self::LIFETIME);
        if number <= head || old() {
            // Only this one: another may have been noted meanwhile.
            let _ = self
                .number
                .compare_exchange(number, 0, Ordering::Relaxed, Ordering::Relaxed);
            return false;
        }
        true
    }
}
