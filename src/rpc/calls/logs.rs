//! Logs of a range of blocks: put together from blocks in memory, or from a node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;

use super::{Answer, Calls, is_empty_list, is_null, key, route};
use crate::chain::{BlockLogs, Verify};
use crate::jsonrpc::{Outcome, RESPONSE_TOO_LARGE, error};
use crate::rpc::by_hash::Expected;
use crate::rpc::cache::By;
use crate::rpc::local_logs::{self, LocalRange, RangeQuery};
use crate::rpc::method::Method;
use crate::rpc::params::{self, BlockName};
use crate::shares::{Charge, Full, Owner, Place};
use crate::upstream::CallRequest;

/// Longest wait for the logs of the newest block before a node is asked for them.
const LOGS_WAIT: Duration = Duration::from_secs(2);

/// Length of answers, in bytes, above which few are put together at the same time.
const LONG: usize = 1 << 20;

/// Most long answers that are put together at the same time.
pub(super) const BUILDERS: usize = 2;

/// Most long answers of one account that wait to be put together.
pub(super) const MAX_BUILDS: usize = 64;

impl Calls {
    pub(super) async fn logs(&self, known: Method, mut ask: CallRequest) -> Answer {
        let owner = ask.owner;
        let query = params::args(&ask.params).and_then(|args| RangeQuery::parse(&args));
        let mut late = false;
        if let Some(query) = query.as_ref().filter(|_| self.settings.verify != Verify::None) {
            match self.local_logs(query).await {
                LocalRange::Blocks(blocks) => {
                    self.note(known, "history", &ask.record);
                    return Ok(self.put_together(query, &blocks, owner).await);
                }
                LocalRange::Later => late = true,
                LocalRange::No => {}
            }
        }
        let snapshot = self.snapshot();
        let last = query.as_ref().map_or(BlockName::Latest, RangeQuery::last);
        self.look_for_finality(&snapshot, Some(last));
        let plan = snapshot.plan_logs(last);
        route(&mut ask, plan);
        let by_hash = matches!(last, BlockName::Hash(_));
        // A node that has a block may not have indexed it yet: an empty list of its logs must not be cached.
        let holds = |json: &Bytes| !(is_null(json) || by_hash && is_empty_list(json));
        // The answer to a query that is not understood here is not cached.
        let scope = plan.scope.filter(|_| query.is_some() && !late);
        let expected = Expected::of(known.name, &ask.params);
        let key = scope.and_then(|scope| key(scope, &ask));
        if let Some(kept) = key.as_ref().and_then(|key| self.cache.get(key)) {
            self.note(known, "memory", &ask.record);
            return Ok(Outcome::Result(kept));
        }
        let asking = || self.ask(&ask, expected, |_| true).boxed();
        let key = key.as_ref().map(|key| (key, plan.admission));
        let (answer, by) = self.shared_or_forwarded(known, key, &ask, holds, asking).await;
        if query.is_some() && !matches!(by, By::Memory) {
            self.note_last_block(&answer);
        }
        answer
    }

    /// Returns the blocks of a query, as soon as all that was published is in memory; waits for [`LOGS_WAIT`] at
    /// most.
    async fn local_logs(&self, query: &RangeQuery) -> LocalRange {
        let mut changes = self.published.watch();
        let until = tokio::time::Instant::now() + LOGS_WAIT;
        loop {
            let held = self.published.with_history(|history| match history.head() {
                Some(head)
                    if query.last() != BlockName::Latest || self.unpublished_head.beyond(head.number).is_none() =>
                {
                    query.held(history, head)
                }
                _ => LocalRange::No,
            });
            match held {
                LocalRange::Later => {}
                held => return held,
            }
            if !matches!(tokio::time::timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
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
}
