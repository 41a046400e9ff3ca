//! Reads of blocks, state and transactions: the node that may answer, and the cache that may keep the answer.

use bytes::Bytes;
use futures_util::FutureExt;

use super::{Answer, Calls, is_empty_list, is_null, key, route};
use crate::jsonrpc::Outcome;
use crate::rpc::by_hash::Expected;
use crate::rpc::cache::{By, CacheKey};
use crate::rpc::cache_scope::{CacheScope, ChainSnapshot, FRESH, Route};
use crate::rpc::method::{Basis, Method};
use crate::rpc::params::{self, BlockName};
use crate::upstream::{CallError, CallRequest};

/// Plan of a read.
#[derive(Debug)]
pub(super) struct ReadPlan {
    /// State of the chain when the plan was made.
    snapshot: ChainSnapshot,
    /// Block that the call names, as for [`ChainSnapshot::plan`].
    block: Option<Option<BlockName>>,
    /// `true` for a transaction or its receipt.
    of_transaction: bool,
    /// See [`Route`].
    route: Route,
    /// Key of the answer in the cache; `None` if it is neither cached nor shared.
    key: Option<CacheKey>,
}

impl Calls {
    /// Plans a read, and sets the nodes that may answer it.
    pub(super) fn plan_read(&self, basis: Basis, ask: &mut CallRequest) -> ReadPlan {
        let mut snapshot = self.snapshot();
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
            snapshot.named = self.number_held(block.flatten());
        }
        self.look_for_finality(&snapshot, block.flatten());
        let plan = snapshot.plan(basis, block);
        route(ask, plan);
        ReadPlan {
            snapshot,
            block,
            of_transaction: matches!(basis, Basis::Mined | Basis::Sought),
            route: plan,
            key: plan.scope.and_then(|scope| key(scope, ask)),
        }
    }

    /// Returns the cached answer to a read.
    pub(super) fn cached_answer(&self, plan: &ReadPlan, ask: &CallRequest) -> Option<Bytes> {
        let of_final = || self.cached_final(&plan.snapshot, ask);
        let kept = plan.of_transaction.then(of_final).flatten();
        kept.or_else(|| self.cache.get(plan.key.as_ref()?))
    }

    /// Answers a read whose answer is not cached.
    pub(super) async fn read(&self, known: Method, ask: &CallRequest, plan: &ReadPlan) -> Answer {
        let ReadPlan {
            snapshot,
            block,
            of_transaction,
            route,
            key,
        } = plan;
        let (block, of_transaction) = (*block, *of_transaction);
        let of_block = known.is_of_a_block_itself();
        let returns_block = matches!(known.name, "eth_getBlockByNumber" | "eth_getBlockByHash");
        let head = snapshot.view.head;
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
            (Some(BlockName::Latest), Some(head)) if returns_block => {
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
            let head = head.filter(|_| snapshot.unpublished_head.is_none() && is_null(json) && !is_there(json))?;
            (self.published.view().branch == snapshot.view.branch).then_some(CallError::Behind(head.number))
        };
        let expected = Expected::of(known.name, &ask.params);
        let asking = || {
            let asking = async {
                match self.ask(ask, expected, is_there).await {
                    Ok(Outcome::Result(json)) => missing(&json).map_or(Ok(Outcome::Result(json)), Err),
                    other => other,
                }
            };
            asking.boxed()
        };
        let key = key.as_ref().map(|key| (key, route.admission));
        let (answer, by) = self.shared_or_forwarded(known, key, ask, holds, asking).await;
        // A block parameter that is not understood here may name the pending block.
        let of_blocks = block != Some(None) && !(route.of_node && route.scope.is_none());
        if let (Ok(Outcome::Result(json)), By::Node, true) = (&answer, by, of_blocks) {
            if returns_block {
                self.note_block_number(params::number_of(json, "number"));
            }
            if known.name == "eth_getBlockReceipts" {
                self.note_block_number(params::last_block_number(json));
            }
            if of_transaction {
                let number = params::number_of(json, "blockNumber");
                self.note_block_number(number);
                self.look_for_finality(snapshot, number.map(BlockName::Number));
                self.keep_if_final(snapshot, ask, number, json);
            }
        }
        answer
    }

    /// Returns the number of a block that is named by its hash, if it is in memory; looked up only if there are
    /// archives, for which alone it matters.
    fn number_held(&self, block: Option<BlockName>) -> Option<u64> {
        let (BlockName::Hash(hash) | BlockName::Canonical(hash)) = block.filter(|_| self.pool.has_archives())? else {
            return None;
        };
        self.published
            .with_history(|history| Some(history.find(hash)?.header.block.number))
    }

    /// Checks if the published chain has no block of this number and goes on above it, as far as it is in memory.
    fn has_no_block(&self, number: u64) -> bool {
        self.published.with_history(|history| {
            let reaches_down = history.oldest().is_some_and(|oldest| oldest.number() <= number);
            reaches_down && history.from(number).is_some_and(|own| own.number() > number)
        })
    }

    /// Checks if the published chain, as far as it is in memory, has a block with this number.
    fn is_published(&self, number: u64) -> bool {
        self.published
            .with_history(|history| history.from(number).is_some_and(|own| own.number() == number))
    }

    /// Caches a transaction or receipt of a final block for as long as the chain is the same.
    fn keep_if_final(&self, snapshot: &ChainSnapshot, ask: &CallRequest, number: Option<u64>, json: &Bytes) {
        if let (Some(number), Some(newest)) = (number, snapshot.view.final_block)
            && number <= newest
            && let Some(key) = settled_key(snapshot, ask)
        {
            self.cache.keep(key, Bytes::copy_from_slice(json));
        }
    }

    fn cached_final(&self, snapshot: &ChainSnapshot, ask: &CallRequest) -> Option<Bytes> {
        snapshot.view.final_block?;
        self.cache.get(&settled_key(snapshot, ask)?)
    }
}

fn settled_key(snapshot: &ChainSnapshot, ask: &CallRequest) -> Option<CacheKey> {
    key(CacheScope::Chain { epoch: snapshot.epoch }, ask)
}
