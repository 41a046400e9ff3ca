//! The nodes: one actor for each endpoint, and the pool that chooses among them.
//!
//! An actor owns its socket. It multiplexes calls by ids of its own, keeps the subscriptions that are wanted, and says
//! what it sees; it never decides what is canonical. Reconnection, buffering and resubscription are here and nowhere else.

mod connection;
mod endpoint;
mod link;
mod message;
mod poller;
mod pool;
mod splitter;

use std::time::{Duration, Instant};

use alloy_primitives::{B256, U64};
use bytes::Bytes;

pub use endpoint::{BadEndpoint, Endpoint};
pub use pool::{CallError, Channels, Pool, UpstreamStatus};

/// The two forms of a pending transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PendingForm {
    /// The hash alone.
    Hash,
    /// The whole transaction.
    Full,
}

/// What somebody downstream wants beyond heads; nothing is asked of the node that nobody wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Hashes of pending transactions.
    pub pending_hashes: bool,
    /// Whole pending transactions.
    pub pending_full: bool,
    /// The node's sync state.
    pub syncing: bool,
}

impl Wanted {
    /// The flag of one form.
    pub(crate) fn pending(&mut self, form: PendingForm) -> &mut bool {
        match form {
            PendingForm::Hash => &mut self.pending_hashes,
            PendingForm::Full => &mut self.pending_full,
        }
    }
}

/// Which of the configured upstreams; also its priority, 0 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

/// What an upstream says about the chain.
#[derive(Debug)]
pub enum Sighting {
    /// A `newHeads` payload.
    Announced(Bytes),
    /// Its newest block, fetched: right after a connection, and again and again from an HTTP node.
    Latest(Bytes),
    /// The connection is lost.
    Lost,
}

/// What an upstream says beyond the chain: best effort by nature (E8).
#[derive(Debug)]
pub enum Gossip {
    /// A pending transaction.
    Pending {
        /// Hash or whole.
        form: PendingForm,
        /// The node's bytes.
        json: Bytes,
        /// When it arrived.
        seen: Instant,
    },
    /// The answer to `eth_syncing`.
    Syncing(Bytes),
}

/// Hash and number of a block or header.
fn place_of(block: &[u8]) -> Option<(B256, u64)> {
    #[derive(serde::Deserialize)]
    struct Block {
        hash: B256,
        number: U64,
    }
    serde_json::from_slice::<Block>(block)
        .ok()
        .map(|block| (block.hash, block.number.to()))
}

/// Bounds and patience towards the nodes.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// How long a call may take.
    pub request_timeout: Duration,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// First wait before a reconnection; doubled each time, with jitter.
    pub reconnect_min: Duration,
    /// Longest wait before a reconnection.
    pub reconnect_max: Duration,
    /// Nothing received for so long, pongs included: the connection is dead.
    pub silence_timeout: Duration,
    /// How often an HTTP node is asked for its head.
    pub poll_interval: Duration,
    /// Calls in flight on one upstream.
    pub max_in_flight: usize,
    /// Longest call that is sent to a node, in bytes of its parameters.
    pub max_request_bytes: usize,
    /// Longest message that is read from a node, in bytes.
    pub max_message_bytes: usize,
}
