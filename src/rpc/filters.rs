//! Filters that a node keeps for a client (`eth_newFilter` and its kin), and the node of each.
//!
//! Clients get an id of ours. So two nodes may use the same id, no client can guess another's, and a filter is asked
//! for at its own node, whichever node answers other calls. No other id reaches a node: nodes count their filters, and
//! one that accepts a number or an object as an id would give a client another's events, or end another's filter. A
//! node that is lost takes its filters along: a new filter could not report the events since, so the client gets
//! "filter not found", as from a node that was restarted, and libraries make another.

use std::time::Duration;

use super::held_logs::LogQuery;
use super::id_argument::id_argument;
use super::{Holder, params};
use crate::delivery::SubscriptionId;
use crate::jsonrpc::{INVALID_PARAMS, Outcome, SERVER_ERROR, error};
use crate::upstream::{Ask, CallError, Pool, UpstreamId};
use moka::future::Cache;
use moka::policy::EvictionPolicy;

/// Filters that are known; each is a few hundred bytes. Beyond them the one that was not asked for the longest time goes.
const MAX_FILTERS: u64 = 100_000;

/// Nodes forget a filter that is not asked for in five minutes (geth `eth/filters/api.go`, `deadline`).
const IDLE: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Debug)]
struct Place {
    /// The account that made it.
    holder: Holder,
    node: UpstreamId,
    /// Id of the filter at the node, as the node wrote it.
    id: String,
    /// `true` for a filter of blocks' logs, and not of the pending one's.
    of_blocks: bool,
}

/// A filter that stands at a node, and is this account's.
#[derive(Clone, Debug)]
pub struct Found {
    own: SubscriptionId,
    place: Place,
}

impl Found {
    /// Checks if the filter's changes are logs, which name their blocks; `false` where its arguments were not
    /// understood.
    pub fn tells_of_blocks(&self) -> bool {
        self.place.of_blocks
    }
}

/// All filters of all clients.
#[derive(Debug)]
pub struct Filters(Cache<SubscriptionId, Place>);

impl Default for Filters {
    fn default() -> Self {
        let kept = Cache::builder()
            .max_capacity(MAX_FILTERS)
            // Who makes filters without end loses their own first: others' are asked for.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(IDLE);
        Self(kept.build())
    }
}

impl Filters {
    /// Makes a filter at a node.
    ///
    /// # Errors
    /// As [`Pool::call`].
    pub async fn make(&self, pool: &Pool, ask: &Ask, holder: Holder) -> Result<Outcome, CallError> {
        let node = pool.place(ask).await?;
        let answer = pool.call_at(node, ask).await?;
        let Outcome::Result(id) = &answer else {
            return Ok(answer);
        };
        let own = SubscriptionId::random();
        let id = String::from_utf8_lossy(id).into_owned();
        let query = params::args(&ask.params).and_then(|args| LogQuery::parse(&args));
        let of_blocks = ask.method == "eth_newFilter" && query.is_some();
        let place = Place {
            holder,
            node,
            id,
            of_blocks,
        };
        self.0.insert(own, place).await;
        Ok(Outcome::Result(format!("\"{own}\"").into()))
    }

    /// The filter that the parameters name, where they are one id of this account's.
    ///
    /// # Errors
    /// The answer to anything else, in geth's words.
    pub async fn find(&self, ask: &Ask, holder: Holder) -> Result<Found, Outcome> {
        let non_array = || error(INVALID_PARAMS, "non-array args");
        let args = params::args(&ask.params).ok_or_else(non_array)?;
        let unknown = || unknown(ends(ask));
        let own = id_argument(&args)?.ok_or_else(unknown)?;
        let place = self.0.get(&own).await;
        let place = place.filter(|place| place.holder == holder).ok_or_else(unknown)?;
        Ok(Found { own, place })
    }

    /// Asks for a filter's news or ends it, where it lives.
    ///
    /// # Errors
    /// As [`Pool::call`].
    pub async fn ask(&self, pool: &Pool, ask: Ask, Found { own, place }: Found) -> Result<Outcome, CallError> {
        let ends = ends(&ask);
        // Of two concurrent calls that end a filter, one gets "not found".
        if ends && self.0.remove(&own).await.is_none() || !pool.is_connected(place.node) && pool.active().is_some() {
            return Ok(unknown(ends));
        }
        let params = format!("[{}]", place.id);
        pool.call_at(place.node, &Ask { params, ..ask }).await
    }
}

fn ends(ask: &Ask) -> bool {
    ask.method == "eth_uninstallFilter"
}

/// geth's words (`eth/filters/api.go`).
fn unknown(ends: bool) -> Outcome {
    if ends {
        Outcome::Result("false".into())
    } else {
        error(SERVER_ERROR, "filter not found").into()
    }
}
