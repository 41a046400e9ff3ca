//! Look-up of the final block at a node, when a call may gain from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::params;
use crate::chain::Published;
use crate::jsonrpc::Outcome;
use crate::shares::Owner;
use crate::upstream::{CallRequest, MinHead, Pool, Repeat, Target};

/// Record of the last look-up of the final block.
#[derive(Debug, Default)]
pub(super) struct Finality {
    /// Number of the head at the look-up; 0 before the first.
    asked_at: AtomicU64,
}

impl Finality {
    /// Depth below the head, in blocks, from which a block may be final: two epochs of Ethereum's consensus.
    pub(super) const DEEP: u64 = 64;

    /// Fewest blocks between two look-ups: an epoch, in which finality moves once.
    const EVERY: u64 = 32;

    /// Checks if a look-up is due, and records it as done if so.
    pub(super) fn is_due(&self, head: u64) -> bool {
        let asked_at = self.asked_at.load(Ordering::Relaxed);
        // A lower head is another chain's.
        (asked_at == 0 || head < asked_at || head >= asked_at + Self::EVERY)
            && self
                .asked_at
                .compare_exchange(asked_at, head.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// Asks a node for the newest final block and records its number. If the node does not answer with one, nothing
/// changes.
pub(super) async fn look(pool: Arc<Pool>, published: Arc<Published>) {
    let ask = CallRequest {
        owner: Owner::OURS,
        method: "eth_getBlockByNumber".into(),
        params: r#"["finalized",false]"#.into(),
        class: "eth_getBlockByNumber",
        min_head: MinHead::Published,
        target: Target::LeastLoaded,
        repeat: Repeat::Read,
        archive: false,
        conduct: Arc::default(),
        record: None,
    };
    if let Ok(Outcome::Result(json)) = pool.call(&ask).await
        && let Some(number) = params::number_of(&json, "number")
    {
        published.note_final(number);
    }
}
