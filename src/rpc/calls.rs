//! Answers to calls: known already, from blocks in memory, from the cache, or from a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::by_hash::{ByHash, Expected};
use super::cache::{By, Cache, Key};
use super::cache_scope::{CacheScope, ChainSnapshot, FRESH, Route};
use super::filters::Filters;
use super::finality::{self, Finality};
use super::local_logs::{self, LocalRange, RangeQuery};
use super::method::{Basis, Method, Role};
use super::params::{self, BlockName};
use super::send;
use super::unpublished_head::UnpublishedHead;
use super::{Caller, RpcSettings, not_available};
use crate::chain::{BlockLogs, BlockRef, Tip, Verify};
use crate::conduct::{Conduct, Counted};
use crate::jsonrpc::{INTERNAL_ERROR, INVALID_REQUEST, LIMIT_EXCEEDED, Outcome, RESPONSE_TOO_LARGE, TIMEOUT, error};
use crate::look::awaited;
use crate::shares::{Budget, Charge, FairPool, Full, Owner, Place};
use crate::subscription::Registry;
use crate::telemetry::{AnsweredLabel, Metrics, OutcomeLabel, ReasonLabel};
use crate::upstream::{Ask, CallError, MinHead, Pool, Repeat, Target, UpstreamId};

/// Waits before a node is asked again for a published block that it does not have yet.
const MISSING: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(320),
];

/// Longest wait for the logs of the newest block before a node is asked for them.
const LOGS_WAIT: Duration = Duration::from_secs(2);

/// Largest lead over the published head, in blocks, that is taken from a number in a node's answer: a trusted node is
/// not far ahead, and the claim of a single node must not keep answers out of the cache for long.
const MAX_OUTRUN: u64 = 64;

/// Length of answers, in bytes, above which few are put together at the same time.
const LONG: usize = 1 << 20;

/// Most long answers that are put together at the same time.
const BUILDERS: usize = 2;

/// Most calls in flight of accounts whose answers are long: with answers of 20 MiB, 0.7 s of a link of 1 Gbit/s.
const LONG_CALLS: usize = 4;

/// Most calls in flight beyond the windows of their accounts: slow calls of a new account do not stop its other
/// calls.
const BEYOND_CALLS: usize = 8;

/// Most long answers of one account that wait to be put together.
const MAX_BUILDS: usize = 64;

/// Most calls of one account that wait to be sent to a node: as many as it may have in flight with the default of
/// `node.max_in_flight`.
const MAX_WAITING: usize = 1024;

type Answer = Result<Outcome, CallError>;

/// Places of a call in flight: in its account's window, or else beyond it, and among all calls.
type Turn<'a> = (Option<Counted<'a>>, Option<Place>, Place);

/// Service that answers calls.
#[derive(Debug)]
pub struct Calls {
    pool: Arc<Pool>,
    tip: Arc<Tip>,
    registry: Arc<Registry>,
    cache: Cache,
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
    /// Creates the service: it answers from `tip` and `registry`, and asks `pool` for the rest.
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
            answers: Budget::new("too many bytes of answers at once", settings.max_answer_bytes),
            places: FairPool::new("too many calls under way", settings.max_in_flight, MAX_WAITING),
            long: FairPool::new("too many long answers at once", LONG_CALLS, MAX_WAITING),
            beyond: FairPool::new("too many calls under way", BEYOND_CALLS, MAX_WAITING),
            builders: FairPool::new("too many long answers at once", BUILDERS, MAX_BUILDS),
            finality: Finality::default(),
            unpublished_head: UnpublishedHead::default(),
            by_hash: ByHash::new(settings.verify),
            changes: AtomicU64::new(0),
            node: Mutex::default(),
            settings,
            metrics,
        }
    }

    /// Returns the outcome of a call; every failure is an error object.
    pub async fn answer(&self, method: String, params: String, caller: &Caller) -> Outcome {
        if params.len() > self.settings.max_request_bytes {
            self.count("too_large");
            return error(INVALID_REQUEST, "request too large").into();
        }
        let outcome = match self.find(method, params, caller).await {
            Ok(outcome) => outcome,
            Err(why) => {
                self.count(why.label());
                return failed(why);
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

    /// Returns the number of cached answers, and their bytes.
    pub async fn kept(&self) -> (u64, u64) {
        self.cache.size().await
    }

    async fn find(&self, method: String, params: String, caller: &Caller) -> Answer {
        let owner = caller.owner;
        let known = Method::of(&method);
        if let Some(outcome) = self.known(known.role, &params) {
            self.note(known, "memory");
            return Ok(outcome);
        }
        if known.role == Role::Misspelt || !self.pool.serves(&method) {
            return Ok(not_available(&method).into());
        }
        let mut ask = Ask {
            method,
            params,
            class: known.name,
            // A client that has seen a later block is not answered from before it.
            min_head: self.unpublished_head().map_or(MinHead::Published, MinHead::PreferAbove),
            target: Target::Active,
            repeat: Repeat::Read,
            archive: false,
            conduct: caller.conduct.clone(),
            owner,
        };
        match known.role {
            Role::Logs => return Box::pin(self.logs(known, ask, owner)).await,
            // On the heap: the future of a call that is answered from memory does not contain the way to a node.
            Role::Read(basis) => return Box::pin(self.read(known, basis, ask, owner)).await,
            Role::ChainId | Role::OfNode => ask.min_head = MinHead::Any,
            Role::BlockNumber => {
                let answer = self.forwarded(caller, self.pool.call(&ask).boxed()).await;
                if let Ok(Outcome::Result(json)) = &answer {
                    let number = serde_json::from_slice(json).ok().and_then(params::quantity);
                    self.note_block_number(number);
                    if number.is_none()
                        && let Some(head) = self.tip.view().head
                    {
                        return Ok(Outcome::Result(format!("\"{:#x}\"", head.number).into()));
                    }
                }
                return answer;
            }
            Role::Send => {
                ask.min_head = MinHead::Any;
                ask.repeat = Repeat::Signed;
                let sent = send::send(&self.pool, ask, self.settings.broadcast);
                return self.forwarded(caller, sent.boxed()).await;
            }
            Role::NewFilter => {
                ask.repeat = Repeat::Never;
                let made = self.filters.make(&self.pool, &ask, caller.holder);
                return self.forwarded(caller, made.boxed()).await;
            }
            Role::UseFilter => {
                ask.repeat = Repeat::Never;
                ask.min_head = MinHead::Any;
                let filter = match Box::pin(self.filters.find(&ask, caller.holder)).await {
                    Ok(filter) => filter,
                    Err(answer) => return Ok(answer),
                };
                let of_blocks = filter.tells_of_blocks();
                let asked = self.filters.ask(&self.pool, ask, filter);
                let answer = self.forwarded(caller, asked.boxed()).await;
                if of_blocks {
                    self.note_last_block(&answer);
                }
                return answer;
            }
            Role::Control => {
                ask.repeat = Repeat::Never;
                ask.min_head = MinHead::Any;
                let answer = self.forwarded(caller, self.pool.call(&ask).boxed()).await;
                // A node that answers with an error has changed nothing. Most nodes do, and any client may send these
                // calls.
                let refused = matches!(
                    answer,
                    Ok(Outcome::Error(_)) | Err(CallError::Unavailable | CallError::Throttled(_))
                );
                if !refused {
                    self.changes.fetch_add(1, Ordering::Relaxed);
                    let head = self.tip.view().head.map_or(0, |head| head.number);
                    self.unpublished_head.note(head + 1);
                }
                return answer;
            }
            Role::Unknown | Role::Misspelt => ask.repeat = Repeat::Never,
        }
        self.forwarded(caller, self.pool.call(&ask).boxed()).await
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
        let view = self.tip.view();
        let head = view.head.filter(|_| view.is_settled)?;
        self.unpublished_head.beyond(head.number).is_none().then_some(head)
    }

    /// Returns the block number beyond the published head that a node has reported lately.
    fn unpublished_head(&self) -> Option<u64> {
        self.unpublished_head.beyond(self.tip.view().head?.number)
    }

    fn ground(&self) -> ChainSnapshot {
        let view = self.tip.view();
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

    /// Returns the number of a block that is named by its hash, if it is in memory; looked up only if there are
    /// archives, for which alone it matters.
    fn number_held(&self, block: Option<BlockName>) -> Option<u64> {
        let (BlockName::Hash(hash) | BlockName::Canonical(hash)) = block.filter(|_| self.pool.has_archives())? else {
            return None;
        };
        self.registry
            .with_history(|history| Some(history.find(hash)?.header.block.number))
    }

    /// Checks if the published chain has no block of this number and goes on above it, as far as it is in memory.
    fn has_no_block(&self, number: u64) -> bool {
        self.registry.with_history(|history| {
            let reaches_down = history.oldest().is_some_and(|oldest| oldest.number() <= number);
            reaches_down && history.from(number).is_some_and(|own| own.number() > number)
        })
    }

    /// Checks if the published chain, as far as it is in memory, has a block with this number.
    fn is_published(&self, number: u64) -> bool {
        self.registry
            .with_history(|history| history.from(number).is_some_and(|own| own.number() == number))
    }

    // ---- logs

    async fn logs(&self, known: Method, mut ask: Ask, owner: Owner) -> Answer {
        let query = params::args(&ask.params).and_then(|args| RangeQuery::parse(&args));
        let mut late = false;
        if let Some(query) = query.as_ref().filter(|_| self.settings.verify != Verify::None) {
            match self.local_logs(query).await {
                LocalRange::Blocks(blocks) => {
                    self.note(known, "history");
                    return Ok(self.put_together(query, &blocks, owner).await);
                }
                LocalRange::Later => late = true,
                LocalRange::No => {}
            }
        }
        let ground = self.ground();
        let last = query.as_ref().map_or(BlockName::Latest, RangeQuery::last);
        self.look_for_finality(&ground, Some(last));
        route(&mut ask, ground.plan_logs(last));
        let by_hash = matches!(last, BlockName::Hash(_));
        // A node that has a block may not have indexed it yet: an empty list of its logs must not be cached.
        let holds = |json: &Bytes| !(is_null(json) || by_hash && is_empty_list(json));
        // The answer to a query that is not understood here is not cached.
        let anchor = ground.plan_logs(last).anchor.filter(|_| query.is_some() && !late);
        let expected = Expected::of(known.name, &ask.params);
        let asking = || self.ask(&ask, expected, |_| true).boxed();
        let (answer, by) = self
            .cached_or_forwarded(known, anchor, (&ask, owner), holds, asking)
            .await;
        if query.is_some() && !matches!(by, By::Memory) {
            self.note_last_block(&answer);
        }
        answer
    }

    /// Returns the blocks of a query, as soon as all that was published is in memory; waits for [`LOGS_WAIT`] at
    /// most.
    async fn local_logs(&self, query: &RangeQuery) -> LocalRange {
        let mut published = self.registry.watch_published();
        let until = tokio::time::Instant::now() + LOGS_WAIT;
        loop {
            let view = self.tip.view();
            let Some(head) = view.head else { return LocalRange::No };
            if query.last() == BlockName::Latest && self.unpublished_head.beyond(head.number).is_some() {
                return LocalRange::No;
            }
            match self.registry.with_history(|history| query.held(history, head)) {
                LocalRange::Later => {}
                held => return held,
            }
            if !matches!(tokio::time::timeout_at(until, published.changed()).await, Ok(Ok(()))) {
                return LocalRange::Later;
            }
        }
    }

    async fn put_together(&self, query: &RangeQuery, blocks: &[Arc<BlockLogs>], owner: Owner) -> Outcome {
        let at_most = local_logs::length(blocks).min(self.settings.max_response_bytes);
        let _room = if at_most > LONG {
            match self.builder(owner, at_most).await {
                Ok(room) => Some(room),
                Err(full) => {
                    self.count_refusal("long_answers");
                    return full.into();
                }
            }
        } else {
            None
        };
        let outcome = query.answer(blocks, self.settings.max_response_bytes).await;
        outcome.unwrap_or_else(|| error(RESPONSE_TOO_LARGE, "response too large").into())
    }

    /// Takes a place and room for a long answer, before it is put together: hundreds at the same time would need
    /// hundreds of times as much memory, and finish no sooner.
    async fn builder(&self, owner: Owner, bytes: usize) -> Result<(Place, Charge), Full> {
        let place = self.builders.acquire(owner).await?;
        Ok((place, self.answers.charge(owner, bytes)?))
    }

    // ---- everything else that can be read

    async fn read(&self, known: Method, basis: Basis, mut ask: Ask, owner: Owner) -> Answer {
        let mut ground = self.ground();
        let block = match (basis, params::args(&ask.params)) {
            (_, None) => Some(None),
            (
                Basis::Recent(at) | Basis::Hash(at) | Basis::Block(at) | Basis::State(at) | Basis::Account(at),
                Some(args),
            ) => args.get(at).map(|arg| BlockName::parse(arg)),
            _ => None,
        };
        let block = match (basis, block) {
            (Basis::Hash(_), Some(Some(named))) if !matches!(named, BlockName::Hash(_)) => Some(None),
            (_, block) => block,
        };
        if matches!(basis, Basis::State(_) | Basis::Account(_)) {
            ground.named = self.number_held(block.flatten());
        }
        self.look_for_finality(&ground, block.flatten());
        let plan = ground.plan(basis, block);
        route(&mut ask, plan);
        let of_transaction = matches!(basis, Basis::Mined | Basis::Sought);
        if of_transaction && let Some(kept) = self.kept_final(&ground, &ask).await {
            self.note(known, "memory");
            return Ok(Outcome::Result(kept));
        }
        let of_block = known.is_of_a_block_itself();
        let tells_number = matches!(known.name, "eth_getBlockByNumber" | "eth_getBlockByHash");
        let head = ground.view.head;
        // Checks if the requested block is there: a node behind a balancer may not have the block that another node
        // announced.
        let is_there = |json: &Bytes| match (block.flatten(), head) {
            _ if !of_block => true,
            (Some(BlockName::Number(number)), Some(head)) if number <= head.number && number + FRESH > head.number => {
                !is_null(json) || self.has_no_block(number)
            }
            // A node that went back a long way answers `null` for older blocks, too, before its next head reports the
            // rewind.
            (Some(BlockName::Number(number)), Some(head)) if number <= head.number => {
                !is_null(json) || !self.is_published(number)
            }
            (Some(BlockName::Hash(hash)), Some(head)) if hash == head.hash => !is_null(json),
            (Some(BlockName::Latest), Some(head)) if tells_number => {
                params::number_of(json, "number").is_some_and(|number| number >= head.number)
            }
            _ => true,
        };
        let holds = |json: &Bytes| {
            // The answer for a transaction that is pending, or unknown, may be another one in the next moment.
            let in_block = || params::member(json, "blockHash").is_some_and(|hash| hash.get() != "null");
            let is_nothing = is_null(json) || of_block && is_empty_list(json);
            !is_nothing && is_there(json) && (!of_transaction || in_block())
        };
        // A published block is never answered with `null` while it is canonical: the nodes are on their way to
        // another branch, and `eth_blockNumber` has reported the block to clients. They get an error instead.
        let missing = |json: &Bytes| {
            let head = head.filter(|_| ground.unpublished_head.is_none() && is_null(json) && !is_there(json))?;
            (self.tip.view().branch == ground.view.branch).then_some(CallError::Behind(head.number))
        };
        let expected = Expected::of(known.name, &ask.params);
        let asking = || {
            let asking = async {
                match self.ask(&ask, expected, is_there).await {
                    Ok(Outcome::Result(json)) => missing(&json).map_or(Ok(Outcome::Result(json)), Err),
                    other => other,
                }
            };
            asking.boxed()
        };
        let (answer, by) = self
            .cached_or_forwarded(known, plan.anchor, (&ask, owner), holds, asking)
            .await;
        // A block parameter that is not understood here may name the pending block.
        let of_blocks = block != Some(None) && !(plan.of_node && plan.anchor.is_none());
        if let (Ok(Outcome::Result(json)), By::Node, true) = (&answer, by, of_blocks) {
            if tells_number {
                self.note_block_number(params::number_of(json, "number"));
            }
            if known.name == "eth_getBlockReceipts" {
                self.note_block_number(params::last_block_number(json));
            }
            if of_transaction {
                let number = params::number_of(json, "blockNumber");
                self.note_block_number(number);
                self.look_for_finality(&ground, number.map(BlockName::Number));
                self.keep_if_final(&ground, &ask, number, json).await;
            }
        }
        answer
    }

    /// Records the number of a block in a node's answer: beyond the published head, it shows that the head is not the
    /// newest block. Only for calls that were understood: the pending block has a number beyond the head as well, and
    /// a client that asks for it at each head would keep the answers of all clients out of the cache.
    fn note_block_number(&self, number: Option<u64>) {
        if let (Some(head), Some(number)) = (self.tip.view().head, number)
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

    /// Caches a transaction or receipt of a final block for as long as the chain is the same.
    async fn keep_if_final(&self, ground: &ChainSnapshot, ask: &Ask, number: Option<u64>, json: &Bytes) {
        if let (Some(number), Some(newest)) = (number, ground.view.final_block)
            && number <= newest
            && let Some(key) = settled_key(ground, ask)
        {
            self.cache.keep(key, Bytes::copy_from_slice(json)).await;
        }
    }

    async fn kept_final(&self, ground: &ChainSnapshot, ask: &Ask) -> Option<Bytes> {
        ground.view.final_block?;
        self.cache.get(&settled_key(ground, ask)?).await
    }

    /// Asks a node for the final block, if this block may be final and the last question is some time ago.
    fn look_for_finality(&self, ground: &ChainSnapshot, block: Option<BlockName>) {
        let (Some(head), Some(BlockName::Number(number))) = (ground.view.head, block) else {
            return;
        };
        let deep = head.number.saturating_sub(number) >= Finality::DEEP;
        let known = ground.view.final_block.is_some_and(|newest| number <= newest);
        if deep && !known && self.finality.is_due(head.number) {
            tokio::spawn(finality::look(self.pool.clone(), self.tip.clone()));
        }
    }

    async fn cached_or_forwarded<'a>(
        &'a self,
        known: Method,
        anchor: Option<CacheScope>,
        (ask, owner): (&Ask, Owner),
        holds: impl Fn(&Bytes) -> bool,
        asking: impl FnOnce() -> BoxFuture<'a, Answer>,
    ) -> (Answer, By) {
        let key = anchor.and_then(|anchor| key(anchor, ask));
        if let Some(key) = &key
            && let Some(kept) = self.cache.get(key).await
        {
            self.note(known, "memory");
            return (Ok(Outcome::Result(kept)), By::Memory);
        }
        // The place is taken before the answer is shared: an equal call of another account must not wait behind the
        // other calls of this account.
        let _turn = match self.turn(owner, &ask.conduct).await {
            Ok(turn) => turn,
            Err(full) => return (Ok(full.into()), By::Node),
        };
        let asking = || self.timed(asking());
        let (answer, by) = match key {
            Some(key) => self.cache.answer(key, holds, asking).await,
            None => (asking().await, By::Node),
        };
        weigh(&ask.conduct, &answer);
        let who = match by {
            By::Memory => "memory",
            By::Shared => "shared",
            By::Node => "node",
        };
        self.note(known, who);
        (answer, by)
    }

    /// Asks a node, and again after each wait of [`MISSING`] while the block is not there or the answer is about
    /// another hash.
    ///
    /// # Errors
    /// [`CallError::Another`] if the last answer is still about another hash.
    async fn ask(&self, ask: &Ask, expected: Option<Expected>, is_there: impl Fn(&Bytes) -> bool) -> Answer {
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

    // ---- places

    async fn forwarded(&self, caller: &Caller, asking: BoxFuture<'_, Answer>) -> Answer {
        match self.turn(caller.owner, &caller.conduct).await {
            Ok(_turn) => {
                let answer = self.timed(asking).await;
                weigh(&caller.conduct, &answer);
                answer
            }
            Err(full) => Ok(full.into()),
        }
    }

    /// Takes the places of a call: first one in its account's window, then one among all calls. An account whose
    /// answers were long takes one of [`LONG_CALLS`] in place of the first; if the window is full, the call takes the
    /// first place that is free in the window or among [`BEYOND_CALLS`].
    async fn turn<'a>(&self, owner: Owner, conduct: &'a Conduct) -> Result<Turn<'a>, Full> {
        awaited().await;
        let (counted, place) = if conduct.gets_long_answers() {
            (None, Some(self.place_of(&self.long, owner).await?))
        } else {
            tokio::select! {
                biased;
                counted = conduct.begin() => (Some(counted), None),
                place = self.place_of(&self.beyond, owner) => (None, Some(place?)),
            }
        };
        Ok((counted, place, self.place_of(&self.places, owner).await?))
    }

    /// Takes a place as soon as it is this account's turn.
    ///
    /// # Errors
    /// [`Full`] if too many calls wait, or if no place is free for this account within the time limit.
    async fn place_of(&self, places: &Arc<FairPool>, owner: Owner) -> Result<Place, Full> {
        let place = tokio::time::timeout(self.settings.queue_wait, places.acquire(owner)).await;
        let place = place.unwrap_or(Err(Full("too many calls under way")));
        if place.is_err() {
            self.count_refusal("calls");
        }
        place
    }

    // ---- counting

    fn count_refusal(&self, reason: &'static str) {
        self.metrics.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Awaits a node's answer, and records its outcome and time. The future is boxed: otherwise its large state would
    /// be part of every call's future, also of those that are answered from memory.
    async fn timed(&self, asking: BoxFuture<'_, Answer>) -> Answer {
        awaited().await;
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

    fn note(&self, known: Method, by: &'static str) {
        let label = AnsweredLabel { method: known.name, by };
        self.metrics.answered.get_or_create(&label).inc();
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// Records the length of a node's answer.
fn weigh(conduct: &Conduct, answer: &Answer) {
    if let Ok(Outcome::Result(json) | Outcome::Error(json)) = answer {
        conduct.got_an_answer(json.len());
    }
}

fn route(ask: &mut Ask, plan: Route) {
    ask.min_head = plan.min_head;
    ask.archive = plan.archive;
    if !plan.of_node {
        ask.target = Target::LeastLoaded;
    }
}

fn key(anchor: CacheScope, ask: &Ask) -> Option<Key> {
    let params = params::canonical(&ask.params)?;
    Some(Key::new(anchor, &ask.method, &params))
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

fn settled_key(ground: &ChainSnapshot, ask: &Ask) -> Option<Key> {
    key(CacheScope::Chain { epoch: ground.epoch }, ask)
}

fn is_null(json: &Bytes) -> bool {
    &json[..] == b"null"
}

fn is_empty_list(json: &Bytes) -> bool {
    &json[..] == b"[]"
}

fn is_empty(params: &str) -> bool {
    params.is_empty() || params::args(params).is_some_and(|args| args.is_empty())
}
