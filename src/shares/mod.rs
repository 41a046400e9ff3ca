//! Resources that clients compete for: places ([`FairPool`]) and bytes ([`Budget`]), with a share for each owner.
//!
//! Both give one owner a quarter of the whole at most, and half of what the others leave: however many owners take
//! all that they can get, the next one still finds room. No I/O, no clock.

mod budget;
mod pool;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use budget::{Budget, Charge, Evict};
pub use pool::{FairPool, Place};

use crate::jsonrpc::{ErrorObjectOwned, LIMIT_EXCEEDED, Outcome, error_with};

/// Part of the whole that one owner may have: a quarter.
const PART: usize = 4;

/// Returns the share of one owner, if the others have `others`: a quarter of the whole, and at most half of the rest, as in
/// the dynamic thresholds of shared buffers in switches (Choudhury and Hahne 1998): quarters alone would let four owners
/// leave nothing to a fifth.
pub(crate) fn share(max: usize, others: usize) -> usize {
    (max / PART).min(max.saturating_sub(others) / 2)
}

/// Hint when to retry while a pool or budget is full: the real time is unknown, and most places and bytes are given
/// back soon.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Account that places and bytes are charged to. An account that was dropped and opened again is another owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(u64);

impl Owner {
    /// Owner of headwater's own places and bytes.
    pub const OURS: Self = Self(0);
}

impl Default for Owner {
    /// Creates an owner that differs from all others.
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Full pool or budget; a retry may succeed soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit exceeded: {0}, try again later")]
pub struct Full(pub &'static str);

impl From<Full> for ErrorObjectOwned {
    /// Error -32005 with `data.retryAfterMs`, like that of a used-up quota.
    fn from(full: Full) -> Self {
        let hint = serde_json::json!({ "retryAfterMs": RETRY_AFTER.as_millis() as u64 });
        error_with(LIMIT_EXCEEDED, full.to_string(), &hint)
    }
}

impl From<Full> for Outcome {
    fn from(full: Full) -> Self {
        ErrorObjectOwned::from(full).into()
    }
}
