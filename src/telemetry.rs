//! Metrics, the journal of notable events, the access log, spans, and the setup of the log.

mod access_log;
mod fleet;
mod journal;
mod log_setup;
mod readings;
mod record;
pub mod request_id;
pub mod trace;
mod webhook_metrics;

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use access_log::{AccessLog, AccessLogError, AccessLogSettings, Carrier, Destination};
pub use fleet::FleetMetrics;
pub use journal::{Entry, Event, Journal, unix_millis};
pub use log_setup::{LogFormat, init_log};
pub use readings::{Reading, Readings, quantile};
pub use record::{Attempt, CallOutcome, CallRecord, MessageRecord, Recorder, RequestRecord};
pub use request_id::RequestId;
pub use trace::{TraceParent, Tracer};
pub use webhook_metrics::{WebhookLabel, WebhookMetrics, WebhookOutcomeLabel};

/// A label such as `kind="newHeads"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// Kind of subscription.
    pub kind: &'static str,
}

/// A label such as `reason="slow_consumer"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Short name of the reason.
    pub reason: &'static str,
}

/// A label such as `budget="inbound"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BudgetLabel {
    /// Name of the budget, as in the section `[memory]` of the settings.
    pub budget: &'static str,
}

/// Labels such as `coding="gzip",stage="before"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PackedLabel {
    /// Name of the content coding.
    pub coding: &'static str,
    /// `before` or `after` compression.
    pub stage: &'static str,
}

/// A label such as `outcome="result"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// Short name of the outcome.
    pub outcome: &'static str,
}

/// Labels such as `method="eth_call",by="memory"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnsweredLabel {
    /// Name of a known method.
    pub method: &'static str,
    /// Source of the answer: `memory`, `shared`, `history` or `node`.
    pub by: &'static str,
}

/// All metrics. Counters only grow; gauges that are derived from other state are set when `/metrics` is requested.
#[derive(Debug)]
pub struct Metrics {
    /// Open WebSocket clients.
    pub clients: Gauge,
    /// WebSocket clients since the start.
    pub connections: Counter,
    /// Upgrades and requests refused, by reason.
    pub refused: Family<ReasonLabel, Counter>,
    /// Panics, by the task that ended.
    pub panics: Family<ReasonLabel, Counter>,
    /// Clients with an account in memory.
    pub accounts: Gauge,
    /// Reloads of the configuration, by outcome.
    pub config_reloads: Family<OutcomeLabel, Counter>,
    /// Closed connections, by reason.
    pub closes: Family<ReasonLabel, Counter>,
    /// Open subscriptions, by kind.
    pub subscriptions: Family<KindLabel, Gauge>,
    /// Distinct log filters.
    pub filters: Gauge,
    /// Events written to sockets, by kind.
    pub deliveries: Family<KindLabel, Counter>,
    /// Bytes written to clients' sockets.
    pub bytes_out: Counter,
    /// Bytes that compression saved on clients' sockets.
    pub bytes_saved: Counter,
    /// Bytes of HTTP answers that were compressed, before and after.
    pub packed_bytes: Family<PackedLabel, Counter>,
    /// Bytes read from clients' sockets.
    pub bytes_in: Counter,
    /// Seconds from the arrival of the node's message to the write on the client's socket.
    pub delivery_latency: Histogram,
    /// Bytes in the queues of all clients.
    pub queue_bytes: Gauge,
    /// Bytes in memory, by the budget that bounds them.
    pub memory_bytes: Family<BudgetLabel, Gauge>,
    /// Best-effort events (pending transactions, events of passed-through subscriptions) dropped under pressure, by
    /// place.
    pub pending_dropped: Family<ReasonLabel, Counter>,
    /// Events of subscriptions at an upstream that headwater did not make.
    pub unknown_subscription_events: Counter,
    /// Requests from clients, by outcome.
    pub requests: Family<OutcomeLabel, Counter>,
    /// Calls forwarded to an upstream, by outcome.
    pub forwarded: Family<OutcomeLabel, Counter>,
    /// Calls sent to a second upstream, by reason.
    pub rerouted: Family<ReasonLabel, Counter>,
    /// Calls by method and source of the answer: the node, memory, or one answer shared by equal calls.
    pub answered: Family<AnsweredLabel, Counter>,
    /// Bytes of cached answers.
    pub cache_bytes: Gauge,
    /// Number of cached answers.
    pub cache_entries: Gauge,
    /// Duration of forwarded calls, in seconds.
    pub forward_seconds: Histogram,
    /// 1 if an upstream is connected, else 0.
    pub upstream_up: Family<UpstreamLabel, Gauge>,
    /// Connections made to an upstream.
    pub upstream_connects: Family<UpstreamLabel, Gauge>,
    /// 1 if an upstream is in use, else 0.
    pub upstream_active: Family<UpstreamLabel, Gauge>,
    /// Seconds since another upstream first reported the oldest block that this upstream has not reached.
    pub upstream_lag: Family<UpstreamLabel, Gauge<f64, AtomicU64>>,
    /// Changes from one upstream to another, by reason.
    pub failovers: Family<ReasonLabel, Counter>,
    /// Seconds from the last message of the abandoned upstream until another was in use. Failbacks are not recorded.
    pub failover_seconds: Histogram,
    /// Number of the newest block.
    pub head_number: Gauge,
    /// Seconds since the newest block arrived; NaN before the first.
    pub head_age: Gauge<f64, AtomicU64>,
    /// Reorgs.
    pub reorgs: Counter,
    /// Blocks dropped by reorgs.
    pub reorged_blocks: Counter,
    /// Blocks fetched because their announcement was missed.
    pub backfilled_blocks: Counter,
    /// Seconds for which subscribers have waited for contents of a block, by kind of contents.
    pub contents_awaited: Family<KindLabel, Gauge<f64, AtomicU64>>,
    /// Events that wait for contents of an earlier block on their connection.
    pub early_events: Gauge,
    /// Answers about a block's logs that failed or were not accepted, and were requested again, by reason.
    pub log_retries: Family<ReasonLabel, Counter>,
    /// Blocks whose bloom does not match their logs, by direction.
    pub wrong_blooms: Family<ReasonLabel, Counter>,
    /// Times that continuity was lost, by reason; clients were closed with 1012.
    pub continuity_lost: Family<ReasonLabel, Counter>,
    /// Subscriptions that requested past events, by the source of these events or the reason of the refusal.
    pub resumed: Family<ReasonLabel, Counter>,
    /// Lines that are missing in the access log, by reason.
    pub access_log_dropped: Family<ReasonLabel, Counter>,
    /// Spans that were not exported, by reason.
    pub spans_dropped: Family<ReasonLabel, Counter>,
    /// Sessions in memory, those without a connection included.
    pub sessions: Gauge,
    /// Subscriptions whose positions are kept.
    pub session_positions: Gauge,
    /// Positions of returning sessions, by outcome.
    pub session_claims: Family<OutcomeLabel, Counter>,
    /// Webhooks.
    pub webhooks: WebhookMetrics,
    /// Exchange of quotas with other headwaters.
    pub fleet: FleetMetrics,
    /// Notable events, for the operator's API.
    pub journal: Journal,
    /// Records of single requests, as far as they are on.
    pub recorder: Recorder,
    /// Labels of the upstreams' gauges: those of upstreams that have left are removed.
    pub upstream_labels: Mutex<HashSet<UpstreamLabel>>,
}

/// A label such as `upstream="ws://127.0.0.1:8546"`; never with a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabel {
    /// Address without secrets.
    pub upstream: String,
}

impl Metrics {
    /// Creates the metrics, and the registry that encodes them.
    #[must_use]
    pub fn new() -> (Self, Registry) {
        let metrics = Self {
            clients: Gauge::default(),
            connections: Counter::default(),
            refused: Family::default(),
            panics: Family::default(),
            accounts: Gauge::default(),
            config_reloads: Family::default(),
            closes: Family::default(),
            subscriptions: Family::default(),
            filters: Gauge::default(),
            deliveries: Family::default(),
            bytes_out: Counter::default(),
            bytes_saved: Counter::default(),
            packed_bytes: Family::default(),
            bytes_in: Counter::default(),
            // 50 microseconds to 13 seconds.
            delivery_latency: Histogram::new(exponential_buckets(50e-6, 2.0, 18)),
            queue_bytes: Gauge::default(),
            memory_bytes: Family::default(),
            pending_dropped: Family::default(),
            unknown_subscription_events: Counter::default(),
            requests: Family::default(),
            forwarded: Family::default(),
            rerouted: Family::default(),
            answered: Family::default(),
            cache_bytes: Gauge::default(),
            cache_entries: Gauge::default(),
            forward_seconds: Histogram::new(exponential_buckets(100e-6, 2.0, 18)),
            upstream_up: Family::default(),
            upstream_connects: Family::default(),
            upstream_active: Family::default(),
            upstream_lag: Family::default(),
            failovers: Family::default(),
            // 1 millisecond to 65 seconds.
            failover_seconds: Histogram::new(exponential_buckets(1e-3, 2.0, 17)),
            head_number: Gauge::default(),
            head_age: Gauge::default(),
            reorgs: Counter::default(),
            reorged_blocks: Counter::default(),
            backfilled_blocks: Counter::default(),
            contents_awaited: Family::default(),
            early_events: Gauge::default(),
            log_retries: Family::default(),
            wrong_blooms: Family::default(),
            continuity_lost: Family::default(),
            resumed: Family::default(),
            access_log_dropped: Family::default(),
            spans_dropped: Family::default(),
            sessions: Gauge::default(),
            session_positions: Gauge::default(),
            session_claims: Family::default(),
            webhooks: WebhookMetrics::default(),
            fleet: FleetMetrics::default(),
            journal: Journal::default(),
            recorder: Recorder::default(),
            upstream_labels: Mutex::default(),
        };
        let mut registry = Registry::with_prefix("headwater");
        let r = &mut registry;
        r.register("clients", "Open WebSocket clients", metrics.clients.clone());
        r.register(
            "connections",
            "WebSocket clients accepted since the start",
            metrics.connections.clone(),
        );
        r.register(
            "refused",
            "Connections and requests refused, by reason",
            metrics.refused.clone(),
        );
        r.register(
            "panics",
            "Panics, each of which ended one session, call, replay or connection only",
            metrics.panics.clone(),
        );
        r.register(
            "accounts",
            "Clients (keys, tokens, addresses) with an account in memory",
            metrics.accounts.clone(),
        );
        r.register(
            "config_reloads",
            "Reloads of the configuration, by outcome",
            metrics.config_reloads.clone(),
        );
        r.register(
            "closes",
            "Closed WebSocket connections, by reason",
            metrics.closes.clone(),
        );
        r.register(
            "subscriptions",
            "Open subscriptions, by kind",
            metrics.subscriptions.clone(),
        );
        r.register("log_filters", "Distinct log filters", metrics.filters.clone());
        r.register(
            "deliveries",
            "Events written to sockets, by kind",
            metrics.deliveries.clone(),
        );
        r.register(
            "sent_bytes",
            "Bytes written to WebSocket clients",
            metrics.bytes_out.clone(),
        );
        r.register(
            "saved_bytes",
            "Bytes that compression saved on the way to WebSocket clients",
            metrics.bytes_saved.clone(),
        );
        r.register(
            "packed_answer_bytes",
            "Bytes of HTTP answers that were compressed, before and after, by coding",
            metrics.packed_bytes.clone(),
        );
        r.register(
            "received_bytes",
            "Bytes read from WebSocket clients",
            metrics.bytes_in.clone(),
        );
        r.register(
            "delivery_latency_seconds",
            "Time from the arrival of the node's message to the write to the client's socket; one sample per group of clients, for its last one",
            metrics.delivery_latency.clone(),
        );
        r.register(
            "resumed",
            "Subscriptions with after or fromBlock: resumed from memory or node (older than memory), or refused: too_old, unknown, pruned",
            metrics.resumed.clone(),
        );
        r.register(
            "sessions",
            "Sessions in memory, those without a connection included",
            metrics.sessions.clone(),
        );
        r.register(
            "session_positions",
            "Subscriptions of sessions whose positions are kept",
            metrics.session_positions.clone(),
        );
        r.register(
            "session_claims",
            "Positions of returning sessions: resumed, or lost (the client was closed with 1012)",
            metrics.session_claims.clone(),
        );
        r.register(
            "queue_bytes",
            "Bytes queued for all clients",
            metrics.queue_bytes.clone(),
        );
        r.register(
            "memory_bytes",
            "Bytes in use, by memory budget",
            metrics.memory_bytes.clone(),
        );
        r.register(
            "pending_dropped",
            "Pending transactions and passed-through events dropped under pressure, by place",
            metrics.pending_dropped.clone(),
        );
        r.register(
            "upstream_unknown_subscription_events",
            "Events of unknown subscriptions at an upstream; headwater ends each such subscription",
            metrics.unknown_subscription_events.clone(),
        );
        r.register(
            "requests",
            "Requests from clients, by outcome",
            metrics.requests.clone(),
        );
        r.register(
            "forwarded_calls",
            "Calls forwarded to an upstream, by outcome",
            metrics.forwarded.clone(),
        );
        r.register(
            "rerouted_calls",
            "Calls sent again: lost (the connection ended before the answer), or to a second upstream: throttled (the first was rate-limited), elsewhere (it could not answer), hedged (it was slow)",
            metrics.rerouted.clone(),
        );
        r.register(
            "answered_calls",
            "Calls that can be answered from memory, by method and source: memory (cached), shared (an equal call was under way), history (blocks in memory), node",
            metrics.answered.clone(),
        );
        r.register("cache_bytes", "Bytes of cached answers", metrics.cache_bytes.clone());
        r.register("cache_entries", "Cached answers", metrics.cache_entries.clone());
        r.register(
            "forward_seconds",
            "Duration of forwarded calls",
            metrics.forward_seconds.clone(),
        );
        r.register(
            "upstream_up",
            "1 if the upstream is connected",
            metrics.upstream_up.clone(),
        );
        r.register(
            "upstream_connects",
            "Connections made to an upstream",
            metrics.upstream_connects.clone(),
        );
        r.register(
            "upstream_active",
            "1 if the upstream is active",
            metrics.upstream_active.clone(),
        );
        r.register(
            "upstream_lag_seconds",
            "Time since another upstream first reported the oldest block that this upstream has not reached",
            metrics.upstream_lag.clone(),
        );
        r.register(
            "failovers",
            "Failovers and failbacks from one upstream to another, by reason",
            metrics.failovers.clone(),
        );
        r.register(
            "failover_seconds",
            "Time from the last message of the previous upstream until another was active",
            metrics.failover_seconds.clone(),
        );
        r.register("head_number", "Number of the newest block", metrics.head_number.clone());
        r.register(
            "head_age_seconds",
            "Time since the newest block arrived",
            metrics.head_age.clone(),
        );
        r.register("reorgs", "Reorgs seen", metrics.reorgs.clone());
        r.register(
            "reorged_blocks",
            "Blocks dropped by reorgs",
            metrics.reorged_blocks.clone(),
        );
        r.register(
            "backfilled_blocks",
            "Blocks fetched because they were never announced",
            metrics.backfilled_blocks.clone(),
        );
        r.register(
            "contents_awaited_seconds",
            "Time for which subscribers have waited for the contents of a block, by kind of contents",
            metrics.contents_awaited.clone(),
        );
        r.register(
            "early_events",
            "Events that wait for contents of an earlier block on their connection",
            metrics.early_events.clone(),
        );
        r.register(
            "log_retries",
            "Answers about a block's logs that failed or were not accepted, so that headwater asked again, by reason",
            metrics.log_retries.clone(),
        );
        r.register(
            "wrong_blooms",
            "Blocks whose logs were accepted although the logsBloom differs: overstated (it claims more than there is), understated (it lacks some)",
            metrics.wrong_blooms.clone(),
        );
        r.register(
            "continuity_lost",
            "Losses of continuity, by reason; affected clients were closed with 1012",
            metrics.continuity_lost.clone(),
        );
        r.register(
            "access_log_dropped",
            "Lines missing in the access log: full (the writer was behind) or write (the file refused them)",
            metrics.access_log_dropped.clone(),
        );
        r.register(
            "spans_dropped",
            "Spans that were not exported: full (the exporter was behind) or refused (the collector did not take them)",
            metrics.spans_dropped.clone(),
        );
        metrics.webhooks.add_to(r);
        metrics.fleet.add_to(r);
        (metrics, registry)
    }

    /// Counts an HTTP answer that was compressed, by its bytes before and after.
    pub fn count_packed(&self, coding: &'static str, before: usize, after: usize) {
        for (stage, bytes) in [("before", before), ("after", after)] {
            let label = PackedLabel { coding, stage };
            self.packed_bytes.get_or_create(&label).inc_by(bytes as u64);
        }
    }

    /// Counts refusals under this reason.
    pub fn count_refusals(&self, reason: &'static str, count: usize) {
        let label = ReasonLabel { reason };
        self.refused.get_or_create(&label).inc_by(count as u64);
    }
}
