//! Filters that a node keeps for a client (`eth_newFilter` and its kin), and the node of each.
//!
//! Clients get an id that headwater assigned. So two nodes may use the same id, no client can guess another's, and a
//! filter is asked for at its own node, whichever node answers other calls. No other id reaches a node: nodes count their filters, and
//! one that accepts a number or an object as an id would give a client another's events, or end another's filter. A
//! node that is lost takes its filters along: a new filter could not report the events since, so the client gets
//! "filter not found", as from a node that was restarted, and libraries make another.

use std::time::Duration;

use super::id_argument::id_argument;
use super::local_logs::RangeQuery;
use super::{Holder, params};
use crate::delivery::SubscriptionId;
use crate::jsonrpc::{INVALID_PARAMS, Outcome, SERVER_ERROR, error};
use crate::upstream::{CallError, CallRequest, Pool, UpstreamId};
use moka::future::Cache;
use moka::policy::EvictionPolicy;

/// Most filters in memory, a few hundred bytes each; beyond them the least recently used one is evicted.
const MAX_FILTERS: u64 = 100_000;

/// Time without use after which a filter is forgotten. Nodes forget it after five minutes (geth `eth/filters/api.go`,
/// `deadline`).
const IDLE: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Debug)]
struct FilterHome {
    /// Account that made the filter.
    holder: Holder,
    node: UpstreamId,
    /// Id of the filter at the node, as the node wrote it.
    id: String,
    /// `true` if the filter is for the logs of blocks, and not of the pending block.
    of_blocks: bool,
}

/// Filter at a node that belongs to the account that names it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    own: SubscriptionId,
    place: FilterHome,
}

impl Found {
    /// Checks if the filter's changes are logs, which name their blocks; `false` where its arguments were not
    /// understood.
    pub(super) fn returns_logs(&self) -> bool {
        self.place.of_blocks
    }
}

/// All filters of all clients.
#[derive(Debug)]
pub(super) struct Filters(Cache<SubscriptionId, FilterHome>);

impl Default for Filters {
    fn default() -> Self {
        let kept = Cache::builder()
            .max_capacity(MAX_FILTERS)
            // LRU: an account that makes filters without end loses its own first, since clients poll the other ones.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(IDLE);
        Self(kept.build())
    }
}

impl Filters {
    /// Makes a filter at a node.
    ///
    /// # Errors
    /// [`CallError`], like [`Pool::call`].
    pub(super) async fn make(&self, pool: &Pool, ask: &CallRequest, holder: Holder) -> Result<Outcome, CallError> {
        let node = pool.place(ask).await?;
        let answer = pool.call_at(node, ask).await?;
        let Outcome::Result(id) = &answer else {
            return Ok(answer);
        };
        let own = SubscriptionId::random();
        let id = String::from_utf8_lossy(id).into_owned();
        let query = params::args(&ask.params).and_then(|args| RangeQuery::parse(&args));
        let of_blocks = ask.method == "eth_newFilter" && query.is_some();
        let place = FilterHome {
            holder,
            node,
            id,
            of_blocks,
        };
        self.0.insert(own, place).await;
        Ok(Outcome::Result(format!("\"{own}\"").into()))
    }

    /// Returns the filter that the parameters name.
    ///
    /// # Errors
    /// The answer of geth, if the parameters are not one id of a filter of this account.
    pub(super) async fn find(&self, ask: &CallRequest, holder: Holder) -> Result<Found, Outcome> {
        let non_array = || error(INVALID_PARAMS, "non-array args");
        let args = params::args(&ask.params).ok_or_else(non_array)?;
        let unknown = || unknown(ends(ask));
        let own = id_argument(&args)?.ok_or_else(unknown)?;
        let place = self.0.get(&own).await;
        let place = place.filter(|place| place.holder == holder).ok_or_else(unknown)?;
        Ok(Found { own, place })
    }

    /// Sends a call about a filter to the filter's node.
    ///
    /// # Errors
    /// [`CallError`], like [`Pool::call`].
    pub(super) async fn ask(
        &self,
        pool: &Pool,
        ask: CallRequest,
        Found { own, place }: Found,
    ) -> Result<Outcome, CallError> {
        let ends = ends(&ask);
        // Of two concurrent calls that end a filter, one gets "not found".
        if ends && self.0.remove(&own).await.is_none() || !pool.is_connected(place.node) && pool.active().is_some() {
            return Ok(unknown(ends));
        }
        let params = format!("[{}]", place.id).into();
        pool.call_at(place.node, &CallRequest { params, ..ask }).await
    }
}

fn ends(ask: &CallRequest) -> bool {
    ask.method == "eth_uninstallFilter"
}

/// Returns geth's answer about an unknown filter (`eth/filters/api.go`).
fn unknown(ends: bool) -> Outcome {
    if ends {
        Outcome::Result("false".into())
    } else {
        error(SERVER_ERROR, "filter not found").into()
    }
}
