//! Which block is final, asked of a node when it would help.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::params;
use crate::chain::Tip;
use crate::jsonrpc::Outcome;
use crate::shares::Owner;
use crate::upstream::{Ask, Pool, Reach, Repeat, Whom};

/// When a node was last asked which block is final.
#[derive(Debug, Default)]
pub struct Finality {
    /// The head then, or 0.
    asked_at: AtomicU64,
}

impl Finality {
    /// Blocks so far below the head may be final: two epochs of Ethereum's consensus.
    pub const DEEP: u64 = 64;

    /// A node is asked at most once in so many blocks: an epoch, in which finality moves once.
    const EVERY: u64 = 32;

    /// Whether it is time to ask; then it counts as asked.
    pub fn is_due(&self, head: u64) -> bool {
        let asked_at = self.asked_at.load(Ordering::Relaxed);
        // A head below is another chain's.
        (asked_at == 0 || head < asked_at || head >= asked_at + Self::EVERY)
            && self
                .asked_at
                .compare_exchange(asked_at, head.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// Asks for the newest final block. A node that does not tell leaves everything as it is: then nothing is final.
pub async fn look(pool: Arc<Pool>, tip: Arc<Tip>) {
    let ask = Ask {
        owner: Owner::OURS,
        method: "eth_getBlockByNumber".into(),
        params: r#"["finalized",false]"#.into(),
        class: "eth_getBlockByNumber",
        reach: Reach::Head,
        whom: Whom::LeastLoaded,
        repeat: Repeat::Read,
        archive: false,
        conduct: Arc::default(),
    };
    if let Ok(Outcome::Result(json)) = pool.call(&ask).await
        && let Some(number) = params::number_of(&json, "number")
    {
        tip.note_final(number);
    }
}
