//! The nodes: one actor for each endpoint, and the pool that chooses among them.
//!
//! ```text
//! connection | poller   reports         > ranking (pure: lag, forks, priority)
//!                                       > active (upstream in use: watch, log, metrics) > ingest, the actors
//!                       heads           > ingest
//! pool                  our own calls   > actor of an upstream that reported the block
//! routing               clients' calls  > actor of the least loaded upstream that has the newest head and can answer
//! ```
//!
//! A reload of the configuration may add, remove and change upstreams (`membership`).
//!
//! A node over WebSocket or IPC has two actors: `connection` for the stream, and `call_lane` for calls and long
//! answers. A call that may have broken a connection is sent again in `quarantine`, and our own question that is
//! delayed behind calls takes a `detour`. What a node's error means is in the tables of `complaint`.
//!
//! An actor owns its socket. It multiplexes calls by its own ids, keeps the subscriptions that clients need, and
//! reports what the node sends; it never decides which blocks are canonical. Reconnection, buffering and
//! resubscription happen here and nowhere else.

mod active;
mod announcement;
mod call;
mod call_lane;
mod complaint;
mod connection;
mod dedicated_connection;
mod detour;
mod endpoint;
mod envelope;
mod feeds;
mod first_reports;
mod identity;
mod lanes;
mod link;
mod load;
mod membership;
mod message;
mod metered;
mod naming;
mod node;
mod passthrough;
mod pending;
mod poller;
mod pool;
mod proof;
mod published;
mod quarantine;
mod ranking;
mod roster;
mod routing;
mod shared;
mod splitter;
mod under_way;
mod unmatched_events;

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::time::Instant;

pub use announcement::Heads;
pub use call::{CallError, CallRequest, MinHead, Repeat, Target};
pub(crate) use complaint::{Complaint, complaint, throttled};
pub use endpoint::{BadEndpoint, Endpoint};
pub use lanes::Lanes;
pub use membership::Reshaped;
pub use naming::SubscriptionMethod;
pub use node::{Node, NodeCompression, Share};
pub use passthrough::{Answers, Passthrough};
pub use pool::{Channels, LastUpstream, Pool};
pub(crate) use ranking::{MAX_HOLE, ReportedBlock};
pub use shared::UpstreamStatus;

use crate::backoff::Reconnection;
use crate::quantity::Height;

/// Form in which a pending transaction is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionForm {
    /// Hash only.
    Hash,
    /// Full transaction object.
    Full,
}

/// A subscription at a node besides the one to heads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeSubscription {
    /// Subscription to pending transactions.
    Pending(TransactionForm),
    /// Subscription of a kind that is passed through.
    Passthrough(Passthrough),
}

/// Events besides heads that clients subscribe to; the node is asked for no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Hashes of pending transactions.
    pub pending_hashes: bool,
    /// Whole pending transactions.
    pub pending_full: bool,
    /// The node's sync state.
    pub syncing: bool,
    /// Subscriptions that are passed through.
    pub passed: Arc<BTreeSet<Passthrough>>,
}

impl Wanted {
    /// Checks if this subscription is included.
    pub(crate) fn includes(&self, subscription: &NodeSubscription) -> bool {
        match subscription {
            NodeSubscription::Pending(TransactionForm::Hash) => self.pending_hashes,
            NodeSubscription::Pending(TransactionForm::Full) => self.pending_full,
            NodeSubscription::Passthrough(passed) => self.passed.contains(passed),
        }
    }
}

/// Number of an upstream, by which it is known as long as it is configured; no other upstream ever gets the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

/// Report of an upstream about the chain.
#[derive(Clone, Debug)]
pub enum HeadReport {
    /// Payload of a `newHeads` event.
    Announced(Bytes),
    /// Newest block, fetched: after each connection, after announcements that are not usable headers, or by polling.
    Latest(Bytes),
    /// Another genesis at the only upstream after a reconnect: a development chain was started anew, and nothing
    /// known of the old chain is valid any more.
    Replaced,
}

/// Best-effort event of an upstream: may be dropped (E8).
#[derive(Debug)]
pub enum BestEffortEvent {
    /// A pending transaction.
    Pending {
        /// Form of `json`.
        form: TransactionForm,
        /// The node's bytes.
        json: Bytes,
        /// Time of arrival.
        seen: Instant,
    },
    /// Answer to `eth_syncing`.
    Syncing(Bytes),
    /// Event of a subscription that is passed through.
    Passthrough {
        /// Subscription that the event belongs to.
        of: Passthrough,
        /// Method of the node's notification.
        method: Bytes,
        /// The node's bytes.
        json: Bytes,
        /// Time of arrival.
        seen: Instant,
    },
}

/// Parses number, hash and parent of a block or header. Some nodes leave out the parent's hash above block 0, or
/// write `null` or `0x`; it is zero then, as for a block with an unknown parent.
///
/// # Errors
/// Returns an error where the hash or the number is missing, or where hash, number or parent are malformed.
pub(crate) fn place_of(block: &[u8]) -> serde_json::Result<ReportedBlock> {
    let place: Place<'_> = serde_json::from_slice(block)?;
    Ok(ReportedBlock {
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

/// Limits and time limits for the connections to the nodes.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Chain id that all upstreams must have; `None`: the id of the first upstream that is reached.
    pub chain_id: Option<NonZeroU64>,
    /// Time limit of a call.
    pub request_timeout: Duration,
    /// Time limit of making a connection.
    pub connect_timeout: Duration,
    /// Shortest wait before a reconnection; waits double each time, with jitter.
    pub reconnect_min: Duration,
    /// Longest wait before a reconnection, jitter included.
    pub reconnect_max: Duration,
    /// Time within which a node that is dead, stalled, lagging or forked is replaced by another one.
    pub silence_timeout: Duration,
    /// Time for which an upstream of better priority must have been sound before failback to it.
    pub failback_after: Duration,
    /// Interval at which an HTTP node is polled for its head.
    pub poll_interval: Duration,
    /// Time for which a client's call waits for a node that can answer it.
    pub head_wait: Duration,
    /// `true` if a read is also sent to a second node where the first is slow.
    pub hedge: bool,
    /// Calls in flight on one connection at which client calls wait. Over HTTP, most calls in flight of clients, and
    /// again of our own.
    pub max_in_flight: usize,
    /// Most different subscriptions that are passed through at the same time, over all clients.
    pub max_passthrough: usize,
    /// Connections to a node over WebSocket or IPC: 2, or 1 where calls share the stream's connection.
    pub lanes: u8,
    /// Nodes over HTTP that may compress their answers.
    pub compression: NodeCompression,
    /// Longest message accepted from a node, in bytes.
    pub max_message_bytes: usize,
    /// Memory for answers that are being read from HTTP nodes, in bytes: so much for clients' calls, and again for
    /// our own.
    pub max_answer_bytes: usize,
    /// TLS client configuration, with the trusted authorities.
    pub trust: Arc<rustls::ClientConfig>,
}

impl UpstreamSettings {
    /// Returns the waits before reconnections.
    fn reconnection(&self) -> Reconnection {
        Reconnection::new(self.reconnect_min, self.reconnect_max)
    }

    /// Returns the interval at which time limits are checked: short enough to add hardly anything to the timeout.
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
