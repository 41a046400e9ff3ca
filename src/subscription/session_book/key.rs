//! Names and bounds of sessions.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{B256, Keccak256};

use super::SessionToken;

/// Bounds of sessions.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Time for which positions are kept without a connection.
    pub keep: Duration,
    /// Blocks before the received one that are sent again.
    pub overlap: u64,
    /// Most sessions of all clients.
    pub max: usize,
    /// Most bytes of positions of all clients.
    pub max_bytes: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(600),
            overlap: 1,
            max: 40_000,
            max_bytes: 64 << 20,
        }
    }
}

/// Identity of a session: a token counts within its account alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// Account, as the operator knows it.
    pub account: Arc<str>,
    /// Token.
    pub token: SessionToken,
}

/// Canonical subscription: equal for equal parameters, in whatever form they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionKey(pub(super) B256);

impl SubscriptionKey {
    /// Returns the key of a canonical value.
    #[must_use]
    pub fn of(canonical: &impl Hash) -> Self {
        struct Digest(Keccak256);
        impl Hasher for Digest {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
            fn finish(&self) -> u64 {
                0
            }
        }
        let mut digest = Digest(Keccak256::new());
        canonical.hash(&mut digest);
        Self(digest.0.finalize())
    }
}
