//! Proof of a height that only one node reports: a walk along the parents of its head to the published chain.
//!
//! A walk is tried where a head stays in doubt, for instance the head of a node that reconnects far ahead of a stuck
//! one. All questions go to the node whose height is to be proved.

use std::collections::HashMap;
use std::sync::Arc;

use alloy_primitives::B256;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::pool::Pool;
use super::ranking::{MAX_HOLE, UnprovedHead};
use super::{ReportedBlock, UpstreamId, place_of};
use crate::jsonrpc::Outcome;

/// Longest walk, in blocks: as many as are remembered of the published chain.
const MAX_WALK: usize = 4096;

/// Longest time of a walk, in units of `node.silence_timeout`.
const WALK_TIMEOUT: u32 = 2;

/// Blocks requested by number in one round trip, besides the parent by its hash.
const AHEAD: u64 = 15;

/// Walks from a head that is in doubt, and records the result.
pub(super) async fn prove(pool: Arc<Pool>, claim: UnprovedHead) {
    // A node that answers slowly must not keep other heads from being proved.
    let root = timeout(pool.silence_timeout() * WALK_TIMEOUT, root_of(&pool, &claim)).await;
    let root = root.ok().flatten();
    pool.active.walked(claim, root);
}

/// Returns the number of the published block that the walk reached; `None` where it reached none.
async fn root_of(pool: &Pool, claim: &UnprovedHead) -> Option<u64> {
    let (mut highest, mut parent) = claim.below;
    let mut known: HashMap<B256, ReportedBlock> = HashMap::new();
    for _ in 0..MAX_WALK {
        // A child that claims to be too far above its parent is not believed, see `MAX_HOLE`.
        let lowest = highest.saturating_sub(MAX_HOLE);
        if let Some(number) = pool.active.published_number(parent) {
            return (lowest..=highest).contains(&number).then_some(number);
        }
        if highest < claim.oldest {
            return None;
        }
        if !known.contains_key(&parent) {
            known = blocks(pool, claim.id, parent, highest).await;
        }
        let block = known.remove(&parent)?;
        if !(lowest..=highest).contains(&block.number) || block.number == 0 {
            return None;
        }
        (highest, parent) = (block.number - 1, block.parent);
    }
    None
}

/// Fetches a block by its hash, and the blocks below it by number, most likely its ancestors. Returns them by hash.
async fn blocks(pool: &Pool, id: UpstreamId, hash: B256, number: u64) -> HashMap<B256, ReportedBlock> {
    let time_limit = pool.silence_timeout() / 4;
    let ask = async |method: &str, params: String| match pool.ask(id, method, &params, time_limit).await {
        Ok(Outcome::Result(block)) => place_of(&block).ok(),
        _ => None,
    };
    let below = (number.saturating_sub(AHEAD)..number)
        .map(|number| ask("eth_getBlockByNumber", format!(r#"["{number:#x}",false]"#)));
    let (block, below) = tokio::join!(
        ask("eth_getBlockByHash", format!(r#"["{hash}",false]"#)),
        join_all(below)
    );
    let all = below.into_iter().chain([block]).flatten();
    all.map(|block| (block.hash, block)).collect()
}
