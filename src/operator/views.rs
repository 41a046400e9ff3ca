//! Values that the API takes and returns.
//!
//! Times are milliseconds since 1970, durations milliseconds, both in names that say so; counters count from the start.

use std::collections::BTreeMap;

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};

use crate::webhooks::HookStatus;

/// Defines a value: a serde struct in camel case.
macro_rules! view {
    ($(#[$attribute:meta])* $name:ident { $( $(#[$field_attribute:meta])* $field:ident: $kind:ty, )* }) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name { $( $(#[$field_attribute])* pub $field: $kind, )* }
    };
}

view!(
    /// State of everything that a page shows.
    Status {
        /// Version of headwater.
        version: String,
        /// Time of this state, in milliseconds since 1970.
        at_ms: u64,
        /// Time since the start.
        uptime_ms: u64,
        /// `true` if `/ready` answers 200.
        ready: bool,
        /// Reason why it does not.
        not_ready: Option<String>,
        /// `true` while drained, by the operator or for a shutdown.
        drained: bool,
        /// Chain id, as the nodes report it.
        chain_id: Option<String>,
        /// Newest block; `None` before the first.
        head: Option<HeadView>,
        /// Upstreams, by priority.
        upstreams: Vec<UpstreamView>,
        /// Connected clients.
        clients: u64,
        /// Clients that connected since the start.
        connections: u64,
        /// Accounts in memory.
        accounts: u64,
        /// Subscriptions, by kind.
        subscriptions: BTreeMap<String, u64>,
        /// Distinct filters of logs.
        log_filters: u64,
        /// Levels with at least one subscription: of finality, and `head` for `blockLogs` without one.
        #[serde(default)]
        finality: Vec<FinalityView>,
        /// Notifications written since the start, by kind.
        deliveries: BTreeMap<String, u64>,
        /// Bytes written to clients since the start.
        sent_bytes: u64,
        /// Bytes read from clients since the start.
        received_bytes: u64,
        /// Bytes that compression saved since the start.
        saved_bytes: u64,
        /// Requests since the start, by outcome.
        requests: BTreeMap<String, u64>,
        /// Time from the arrival of a node's message to the write to the client's socket.
        latency: LatencyView,
        /// Queues of all clients.
        queues: QueuesView,
        /// Connections closed since the start, by reason.
        closes: BTreeMap<String, u64>,
        /// Requests and connections refused since the start, by limit.
        refusals: BTreeMap<String, u64>,
        /// Failovers since the start, by reason.
        failovers: BTreeMap<String, u64>,
        /// Reorgs since the start.
        reorgs: u64,
        /// The newest 64 published blocks, oldest first, dropped ones among them; empty beside `new_blocks`.
        #[serde(default)]
        blocks: Vec<BlockView>,
        /// Blocks published since the item before, in an item of a subscription: they follow the blocks of that one, of
        /// which otherwise nothing has changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        new_blocks: Option<Vec<BlockView>>,
        /// Clients to which the most was written within the last second, most first.
        busiest: Vec<BusyView>,
        /// Accounts that used the most within the last ten seconds or so, by bytes, most first.
        #[serde(default)]
        costliest: Vec<CostlyView>,
        /// Webhooks, by name.
        #[serde(default)]
        webhooks: Vec<HookStatus>,
    }
);

impl Status {
    /// Completes an item of a subscription by the blocks of the complete item before it.
    pub fn complete(&mut self, before: Option<&Self>) {
        if let Some(news) = self.new_blocks.take() {
            let passed = before.map_or(0, |before| self.at_ms.saturating_sub(before.at_ms));
            self.blocks = BlockView::after(before.map_or(&[][..], |before| &before.blocks), passed, news);
        }
    }
}

impl BlockView {
    /// Returns the blocks of an item: the blocks of the item `passed` milliseconds before, and new ones.
    pub(super) fn after(before: &[Self], passed: u64, news: Vec<Self>) -> Vec<Self> {
        let older = before.iter().map(|block| Self {
            age_ms: block.age_ms + passed,
            ..block.clone()
        });
        let mut blocks: Vec<_> = older.chain(news).collect();
        blocks.drain(..blocks.len().saturating_sub(STATUS_BLOCKS));
        blocks
    }
}

/// Blocks of a status.
const STATUS_BLOCKS: usize = 64;

view!(
    /// Level of finality.
    FinalityView {
        /// `head` (`blockLogs` without finality), `finalized`, `safe`, or a number of confirmations.
        level: String,
        /// Number of the newest block that has it and was delivered; `None` while it is not known.
        number: Option<u64>,
        /// Source of the number: the node's `tag`, the `depth` (confirmations, or `history.finality_depth`), `none` if
        /// the node has no such block and no depth is set, `unknown` before a node has answered.
        basis: String,
        /// Subscriptions.
        subscriptions: u64,
    }
);

view!(
    /// Newest block.
    HeadView {
        /// Number.
        number: u64,
        /// Hash.
        hash: B256,
        /// Time since its arrival.
        age_ms: u64,
    }
);

view!(
    /// Upstream.
    UpstreamView {
        /// Place in the settings, 0 first: the priority.
        index: usize,
        /// Address, without secrets.
        address: String,
        /// State in one word.
        state: UpstreamState,
        /// `true` if it is in use.
        active: bool,
        /// `true` if the operator keeps it out of use.
        cordoned: bool,
        /// Newest head that it reported.
        head: Option<u64>,
        /// Time since another upstream first reported the oldest block that this one has not reached; `None` without a
        /// connection.
        lag_ms: Option<u64>,
        /// Smoothed latency of clients' calls.
        latency_ms: Option<f64>,
        /// Clients' calls in flight.
        calls_in_flight: u32,
        /// Connections made since the start.
        connects: u64,
        /// Source of its heads.
        announcements: Option<String>,
        /// Connections that calls may take.
        lanes: Option<String>,
        /// Reason why it is not used, or why the last connection ended.
        error: Option<String>,
    }
);

/// State of an upstream in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UpstreamState {
    /// In use.
    Active,
    /// Connected.
    Standby,
    /// Kept out of use by the operator.
    Cordoned,
    /// On another chain.
    Refused,
    /// Not connected.
    Down,
}

view!(
    /// Delivery latency.
    LatencyView {
        /// Median of the last minute; `None` without a delivery.
        p50_ms: Option<f64>,
        /// 99th percentile of the last minute.
        p99_ms: Option<f64>,
        /// Samples since the start at or below each bound, ascending.
        buckets: Vec<BucketView>,
    }
);

view!(
    /// Bucket of a histogram.
    BucketView {
        /// Bound; `None` for the last bucket, which has none.
        up_to_ms: Option<f64>,
        /// Samples at or below it.
        count: u64,
    }
);

view!(
    /// Queues of all clients, at most a second ago.
    QueuesView {
        /// Bytes in all queues.
        bytes: u64,
        /// Bytes in the longest queue.
        largest: u64,
        /// Clients whose sockets take no bytes now.
        slow: u64,
    }
);

view!(
    /// Published block.
    BlockView {
        /// Number.
        number: u64,
        /// Hash.
        hash: B256,
        /// Hash of the parent.
        parent: B256,
        /// Timestamp of the header, in seconds since 1970.
        timestamp: u64,
        /// Time since its arrival.
        age_ms: u64,
        /// `true` if a reorg dropped it.
        dropped: bool,
    }
);

view!(
    /// Client to which much was written within the last second.
    BusyView {
        /// Id of the client.
        client: u64,
        /// Its account.
        account: String,
        /// Bytes written.
        bytes: u64,
    }
);

view!(
    /// Account that used much within the last ten seconds.
    CostlyView {
        /// Account: `key NAME`, `token SUBJECT`, or `anonymous` for all others together.
        account: String,
        /// Requests, by weight.
        requests: u64,
        /// Messages refused by the quota of requests.
        refusals: u64,
        /// Notifications written.
        notifications: u64,
        /// Bytes written to WebSocket connections.
        bytes: u64,
    }
);

/// Selection, order and page of clients.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientQuery {
    /// Text that the account or address contains.
    pub text: Option<String>,
    /// Kind of subscription that the client has.
    pub kind: Option<String>,
    /// Least bytes in the queue.
    pub min_queue: Option<u64>,
    /// Order, greatest first.
    pub sort: ClientSort,
    /// Clients to skip.
    pub offset: usize,
    /// Length of the page, at most 200; 50 if not set.
    pub limit: Option<usize>,
}

/// Order of clients, greatest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClientSort {
    /// By id, newest connection first.
    #[default]
    Newest,
    /// By bytes in the queue.
    Queue,
    /// By bytes written.
    Sent,
    /// By notifications written.
    Notifications,
    /// By number of subscriptions.
    Subscriptions,
    /// By calls in flight.
    Calls,
}

view!(
    /// Page of clients.
    ClientPage {
        /// Number of clients that match.
        matching: usize,
        /// Number of clients that are connected.
        connected: usize,
        /// The clients.
        clients: Vec<ClientView>,
    }
);

view!(
    /// Connected client.
    ClientView {
        /// Id, unique since the start.
        id: u64,
        /// Account: `key NAME`, `token SUBJECT`, or the network of a client without either.
        account: String,
        /// Address; `None` if a proxy withholds it.
        address: Option<String>,
        /// Plan.
        plan: String,
        /// Time since the connection.
        connected_ms: u64,
        /// Time since the last frame of the client.
        silent_ms: u64,
        /// Live subscriptions, by kind; without kinds that the client has none of.
        subscriptions: BTreeMap<String, u32>,
        /// Calls in flight.
        calls_in_flight: u32,
        /// Bytes in the queue.
        queued_bytes: u64,
        /// Time for which the socket has taken no bytes; `None` if it takes them.
        blocked_ms: Option<u64>,
        /// Notifications written.
        notifications: u64,
        /// Bytes written.
        sent_bytes: u64,
        /// Pending transactions dropped for lack of room.
        dropped: u64,
        /// Compression agreed with the client.
        compression: String,
        /// `true` once the connection is being closed.
        closing: bool,
    }
);

/// Upstream, by its place in the settings or its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum UpstreamName {
    /// Place in the settings, 0 first.
    Index(usize),
    /// Address without secrets, as in [`UpstreamView::address`].
    Address(String),
}

/// Extent of a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    /// Time over which the connected clients are closed with 1012, at most an hour; without it they stay.
    pub close_within_ms: Option<u64>,
}

view!(
    /// Result of a reload or a check of the configuration.
    Reloaded {
        /// Changed settings that wait for a restart.
        needs_restart: Vec<String>,
    }
);

/// Selection of usage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct UsageQuery {
    /// Account; all if not set.
    pub account: Option<String>,
    /// Newest hours, at most 720; 24 if not set. The current hour is one of them.
    pub hours: Option<u64>,
    /// `true` for one row per account, with the sums of these hours.
    pub total: bool,
}

view!(
    /// Usage of one account in one hour, or in all hours asked for.
    UsageRow {
        /// Begin of the (first) hour, in seconds since 1970.
        hour: u64,
        /// Account: `key NAME`, `token SUBJECT`, `anonymous`, or `others` beyond a thousand accounts an hour.
        account: String,
        /// Requests, by weight.
        requests: u64,
        /// Messages refused by the quota of requests.
        refusals: u64,
        /// Notifications written.
        notifications: u64,
        /// Bytes written to WebSocket connections.
        bytes: u64,
    }
);

view!(
    /// Drop of published blocks.
    ReorgView {
        /// Time since then.
        age_ms: u64,
        /// Number of the newest block that both branches have.
        fork: u64,
        /// Hash of that block.
        fork_hash: B256,
        /// Number of dropped blocks.
        depth: u64,
        /// Hashes of the dropped blocks, oldest first; of a deep reorg the newest 64.
        dropped: Vec<B256>,
        /// First block of the branch that replaced them.
        next: Option<B256>,
    }
);

view!(
    /// Act of an operator.
    AuditEntry {
        /// Time, in milliseconds since 1970.
        at_ms: u64,
        /// Proof: `token`, `session` or `loopback`.
        by: String,
        /// Address of the peer.
        peer: String,
        /// Method.
        act: String,
        /// Its object.
        target: String,
        /// `ok`, or the reason why nothing was done.
        outcome: String,
    }
);

impl std::fmt::Display for UpstreamName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(index) => write!(f, "upstream {index}"),
            Self::Address(address) => f.write_str(address),
        }
    }
}
