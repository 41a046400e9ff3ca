//! The nodes: one actor for each endpoint, and the pool that chooses among them.
//!
//! ```text
//! connection | poller   what a node says  > standing (pure: lag, forks, priority) > choice (the one in use: watch, log,
//!                                           metrics) > whoever watches it: ingest, the actors themselves
//!                       its heads         > ingest
//! pool                  our own calls     > the actor of whoever told the block
//! routing               clients' calls    > the actor of whoever has the newest head, can answer and has the least to do
//! ```
//!
//! A node that speaks in messages has two actors: `connection`, of its stream, and `call_lane`, of calls and long answers; a
//! call that may have broken a connection is asked in `quarantine`, and a question of our own that is late behind calls
//! takes a `detour`.
//!
//! An actor owns its socket. It multiplexes calls by ids of its own, keeps the subscriptions that are wanted, and says
//! what it sees; it never decides what is canonical. Reconnection, buffering and resubscription are here and nowhere else.

mod alone;
mod announcement;
mod call;
mod call_lane;
mod choice;
mod connection;
mod detour;
mod early;
mod endpoint;
mod feeds;
mod identity;
mod lanes;
mod link;
mod load;
mod message;
mod metered;
mod naming;
mod node;
mod passed;
mod pending;
mod poller;
mod pool;
mod proof;
mod published;
mod quarantine;
mod routing;
mod sights;
mod splitter;
mod standing;
mod under_way;

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use backon::ExponentialBuilder;
use bytes::Bytes;
use serde_json::value::RawValue;

pub use announcement::Heads;
pub use call::{Ask, CallError, Reach, Repeat, Whom};
pub(crate) use call::{Complaint, complaint, throttled};
pub use endpoint::{BadEndpoint, Endpoint};
pub use lanes::Lanes;
pub use naming::SubscriptionMethod;
pub use node::{Node, Share};
pub use passed::{Answers, Passed};
pub use pool::{Channels, Pool, UpstreamStatus};
pub(crate) use standing::{MAX_HOLE, Told};

use crate::quantity::Height;

/// The two forms in which a transaction is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionForm {
    /// The hash alone.
    Hash,
    /// The whole transaction.
    Full,
}

/// A subscription at a node beside its heads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeSubscription {
    /// To pending transactions.
    Pending(TransactionForm),
    /// One that is passed through.
    Passed(Passed),
}

/// What somebody downstream wants beyond heads; nothing is asked of the node that nobody wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Hashes of pending transactions.
    pub pending_hashes: bool,
    /// Whole pending transactions.
    pub pending_full: bool,
    /// The node's sync state.
    pub syncing: bool,
    /// What is passed through.
    pub passed: Arc<BTreeSet<Passed>>,
}

impl Wanted {
    /// Whether this one is among it.
    pub(crate) fn includes(&self, subscription: &NodeSubscription) -> bool {
        match subscription {
            NodeSubscription::Pending(TransactionForm::Hash) => self.pending_hashes,
            NodeSubscription::Pending(TransactionForm::Full) => self.pending_full,
            NodeSubscription::Passed(passed) => self.passed.contains(passed),
        }
    }
}

/// Which of the configured upstreams; also its priority, 0 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

/// What an upstream says about the chain.
#[derive(Clone, Debug)]
pub enum Sighting {
    /// A `newHeads` payload.
    Announced(Bytes),
    /// Its newest block, fetched: right after a connection, and again and again from an HTTP node.
    Latest(Bytes),
    /// The only upstream returned with another genesis: a development chain was started anew, and nothing that was known
    /// of the old one holds.
    Replaced,
}

/// What an upstream says beyond the chain: best effort by nature (E8).
#[derive(Debug)]
pub enum Gossip {
    /// A pending transaction.
    Pending {
        /// Hash or whole.
        form: TransactionForm,
        /// The node's bytes.
        json: Bytes,
        /// When it arrived.
        seen: Instant,
    },
    /// The answer to `eth_syncing`.
    Syncing(Bytes),
    /// An event of a subscription that is passed through.
    Passed {
        /// Which.
        of: Passed,
        /// The method that the node names in it.
        method: Bytes,
        /// The node's bytes.
        json: Bytes,
        /// When it arrived.
        seen: Instant,
    },
}

/// The place of a block or header: all that a head needs to be one. Some nodes leave out the parent's hash above block 0, or
/// write `null` or `0x`; it reads as zero, as of a block whose parent is not known.
///
/// # Errors
/// Missing hash or number; malformed hash, number or parent.
pub(crate) fn place_of(block: &[u8]) -> serde_json::Result<Told> {
    let place: Place<'_> = serde_json::from_slice(block)?;
    Ok(Told {
        number: place.number.0,
        hash: place.hash,
        parent: place.parent()?.unwrap_or_default(),
    })
}

/// Checks if a block or header names its parent; block 0 has none to name.
fn names_parent(block: &[u8]) -> bool {
    let named = serde_json::from_slice(block)
        .and_then(|place: Place<'_>| Ok(place.number == Height(0) || place.parent()?.is_some()));
    named.unwrap_or(false)
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place<'a> {
    hash: B256,
    #[serde(borrow)]
    parent_hash: Option<&'a RawValue>,
    number: Height,
}

impl Place<'_> {
    fn parent(&self) -> serde_json::Result<Option<B256>> {
        match self.parent_hash.map(RawValue::get) {
            None | Some("null" | r#""""# | r#""0x""#) => Ok(None),
            Some(parent) => serde_json::from_str(parent).map(Some),
        }
    }
}

/// Bounds and patience towards the nodes.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// The chain that all must be on; without it the first that is reached says which.
    pub chain_id: Option<NonZeroU64>,
    /// How long a call may take.
    pub request_timeout: Duration,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// First wait before a reconnection; doubled each time, with jitter.
    pub reconnect_min: Duration,
    /// Longest wait before a reconnection.
    pub reconnect_max: Duration,
    /// Within so long a node that is dead, stalled, behind the others or forked is left.
    pub silence_timeout: Duration,
    /// How long a better one must have been sound before it is taken back.
    pub take_back_after: Duration,
    /// How often an HTTP node is asked for its head.
    pub poll_interval: Duration,
    /// How long a call waits for a node that can answer it.
    pub call_patience: Duration,
    /// Whether a second node is asked where the first is slow.
    pub hedge: bool,
    /// Calls in flight on one upstream.
    pub max_in_flight: usize,
    /// Different subscriptions that are passed through, as many as are ever wanted at the same time.
    pub max_passed: usize,
    /// Connections to a node over WebSocket or IPC: 2, or 1 where calls share the stream's.
    pub lanes: u8,
    /// Longest message that is read from a node, in bytes.
    pub max_message_bytes: usize,
    /// Bytes of answers to clients' calls that are being read from HTTP nodes, and again of those to our own questions.
    pub max_answer_bytes: usize,
    /// Whose certificates are believed.
    pub trust: Arc<rustls::ClientConfig>,
}

impl UpstreamSettings {
    /// Waits before a lost connection is opened again.
    fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.reconnect_min)
            .with_max_delay(self.reconnect_max)
            .with_jitter()
            .without_max_times()
    }

    /// How often it is looked whether somebody's time is up: often enough that the looks hardly add to the timeout.
    fn tick(&self) -> Duration {
        (self.silence_timeout / 20).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_is_not_named_is_none() {
        let (hash, parent) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let named = format!(r#","parentHash":"{parent}""#);
        let zero = format!(r#","parentHash":"{}""#, B256::ZERO);
        for (number, member, read, is_named) in [
            ("\"0x5\"", &*named, Some(parent), true),
            ("\"0x5\"", &zero, Some(B256::ZERO), true),
            ("\"0x5\"", "", Some(B256::ZERO), false),
            ("\"0x5\"", r#","parentHash":null"#, Some(B256::ZERO), false),
            ("\"0x5\"", r#","parentHash":"""#, Some(B256::ZERO), false),
            ("\"0x5\"", r#","parentHash":"0x""#, Some(B256::ZERO), false),
            ("\"0x5\"", r#","parentHash":"0x12""#, None, false),
            ("\"0x5\"", r#","parentHash":7"#, None, false),
            ("\"0x0\"", "", Some(B256::ZERO), true),
            ("\"0x0\"", r#","parentHash":null"#, Some(B256::ZERO), true),
            ("null", &named, None, false),
        ] {
            let block = format!(r#"{{"hash":"{hash}","number":{number}{member}}}"#);
            let place = place_of(block.as_bytes()).ok();
            assert_eq!(place.map(|place| place.parent), read, "{block}");
            assert_eq!(names_parent(block.as_bytes()), is_named, "{block}");
        }
        assert!(place_of(b"null").is_err() && !names_parent(b"null"));
    }
}
