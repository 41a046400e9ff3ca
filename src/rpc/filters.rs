//! Filters that a node keeps for a client (`eth_newFilter` and its kin): which node has which.
//!
//! A client is given an id of ours. So two nodes may use the same id, nobody guesses another's, and a filter is asked for
//! where it lives, whichever node answers everything else. A node that is lost takes its filters along: what happened
//! meanwhile could not be told by a new one, so the client hears "filter not found", as it does from a node that was
//! started anew, and libraries make another.

use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use serde_json::value::RawValue;

use super::held_logs::LogQuery;
use super::params;
use crate::delivery::SubscriptionId;
use crate::jsonrpc::{Outcome, SERVER_ERROR, error};
use crate::upstream::{Ask, CallError, Pool, UpstreamId};

/// Filters that are known; each is a few hundred bytes. Beyond them the one that was not asked for the longest time goes.
const MAX_FILTERS: u64 = 100_000;

/// Nodes forget a filter that is not asked for in five minutes (geth `eth/filters/api.go`, `deadline`).
const IDLE: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Debug)]
struct Place {
    node: UpstreamId,
    /// As the node wrote it.
    id: String,
    /// What it tells is of blocks, and not of the pending one.
    of_blocks: bool,
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
    pub async fn make(&self, pool: &Pool, ask: &Ask) -> Result<Outcome, CallError> {
        let node = pool.place(ask).await?;
        let answer = pool.call_at(node, ask).await?;
        let Outcome::Result(id) = &answer else {
            return Ok(answer);
        };
        let own = SubscriptionId::random();
        let id = String::from_utf8_lossy(id).into_owned();
        let query = params::args(&ask.params).and_then(|args| LogQuery::parse(&args));
        let of_blocks = ask.method == "eth_newFilter" && query.is_some();
        let place = Place { node, id, of_blocks };
        self.0.insert(own, place).await;
        Ok(Outcome::Result(format!("\"{own}\"").into()))
    }

    /// Whether the parameters name a filter that tells of blocks; of one that was not understood nobody knows.
    pub async fn tells_of_blocks(&self, params: &str) -> bool {
        let Some(own) = filter_id(params).and_then(|own| SubscriptionId::parse(&own)) else {
            return false;
        };
        self.0.get(&own).await.is_some_and(|place| place.of_blocks)
    }

    /// Asks for a filter's news or ends it, where it lives.
    ///
    /// # Errors
    /// As [`Pool::call`].
    pub async fn ask(&self, pool: &Pool, ask: Ask) -> Result<Outcome, CallError> {
        let Some(own) = filter_id(&ask.params) else {
            // The node has words for it.
            return pool.call(&ask).await;
        };
        let ends = ask.method == "eth_uninstallFilter";
        let place = match SubscriptionId::parse(&own) {
            Some(own) if ends => self.0.remove(&own).await,
            Some(own) => self.0.get(&own).await,
            None => None,
        };
        let Some(place) = place else { return Ok(unknown(ends)) };
        if !pool.is_connected(place.node) && pool.active().is_some() {
            return Ok(unknown(ends));
        }
        let params = format!("[{}]", place.id);
        pool.call_at(place.node, &Ask { params, ..ask }).await
    }
}

/// The one parameter, where it is one and a string.
fn filter_id(params: &str) -> Option<String> {
    match &params::args(params)?[..] {
        [id] => serde_json::from_str(RawValue::get(id)).ok(),
        _ => None,
    }
}

/// geth's words (`eth/filters/api.go`).
fn unknown(ends: bool) -> Outcome {
    if ends {
        Outcome::Result("false".into())
    } else {
        error(SERVER_ERROR, "filter not found").into()
    }
}
