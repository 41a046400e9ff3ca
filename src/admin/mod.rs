//! Operator's port: `/health`, `/ready`, `/metrics` and `/status`, which only read, the operator's API, and the live page.
//!
//! ```text
//! listener    bounds on time and connections; Host and Origin of each request
//! activity    requests that are being answered
//! access      the admin token, sessions, loopback
//! sessions    browsers that have shown the token
//! api         /api, and the login of browsers
//! readiness   /ready
//! page        /, the live page: its files and the policy of its content
//! ```

mod access;
mod activity;
mod api;
mod listener;
mod page;
mod readiness;
mod sessions;

use std::collections::HashSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use prometheus_client::registry::Registry;
use serde_json::json;

use crate::chain::{History, Published};
use crate::session::Services;
use crate::telemetry::{BudgetLabel, KindLabel, ReasonLabel, UpstreamLabel};
use crate::upstream::Pool;
use crate::webhooks::Webhooks;
pub use access::{Access, Actor, AdminToken, Credential, Denied, TokenFileError};
pub use api::Api;
pub use listener::serve;
pub use page::{ClientPort, Page};
pub use readiness::Readiness;

/// State that the operator's pages show.
#[derive(Debug)]
pub struct Admin {
    /// Clients, accounts, subscriptions and metrics.
    pub services: Arc<Services>,
    /// Upstreams.
    pub pool: Arc<Pool>,
    /// Published chain.
    pub published: Arc<Published>,
    /// Webhooks.
    pub webhooks: Arc<Webhooks>,
    /// All metrics.
    pub registry: Registry,
    /// Readiness.
    pub readiness: Arc<Readiness>,
    /// Access to the operator's API.
    pub access: Access,
    /// The operator's API.
    pub api: Api,
    /// The live page.
    pub page: Page,
}

impl Admin {
    /// Returns the router of the pages and of the operator's API.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/", get(page::document))
            .route("/page/{file}", get(page::file))
            .route("/health", get(async || "alive\n"))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/status", get(status))
            .route("/api", any(api::api))
            .route("/session", get(api::session))
            .route("/login", post(api::log_in))
            .route("/logout", post(api::log_out))
            .with_state(self)
    }

    /// Sets the gauges of the upstreams, and removes those of upstreams that have left.
    fn refresh_upstreams(&self) {
        let metrics = &self.services.metrics;
        // The lock is kept for the whole refresh: of two concurrent scrapes, the later one must not set a gauge again that
        // the other has removed.
        let mut shown = metrics.upstream_labels.lock();
        let mut there = HashSet::new();
        for (upstream, status) in self.pool.status() {
            let label = UpstreamLabel { upstream };
            metrics.upstream_up.get_or_create(&label).set(status.connected.into());
            metrics
                .upstream_connects
                .get_or_create(&label)
                .set(status.connects as i64);
            metrics.upstream_active.get_or_create(&label).set(status.active.into());
            metrics
                .upstream_lag
                .get_or_create(&label)
                .set(status.lag.map_or(f64::NAN, |lag| lag.as_secs_f64()));
            there.insert(label);
        }
        for label in shown.difference(&there) {
            metrics.upstream_up.remove(label);
            metrics.upstream_connects.remove(label);
            metrics.upstream_active.remove(label);
            metrics.upstream_lag.remove(label);
        }
        *shown = there;
    }

    /// Sets the gauges that are derived from other state.
    fn refresh(&self) {
        let metrics = &self.services.metrics;
        metrics.queue_bytes.set(self.services.clients.queued_bytes() as i64);
        metrics.accounts.set(self.services.door.accounts().len() as i64);
        let sessions = self.services.registry.session_totals();
        metrics.sessions.set(sessions.sessions as i64);
        metrics.session_positions.set(sessions.positions as i64);
        metrics.head_age.set(
            self.published
                .last_adopted()
                .map_or(f64::NAN, |(_, seen)| seen.elapsed().as_secs_f64()),
        );
        let (late, early) = self.services.registry.late();
        for late in late {
            let label = KindLabel {
                kind: late.kind.label(),
            };
            metrics
                .contents_awaited
                .get_or_create(&label)
                .set(late.age.as_secs_f64());
        }
        metrics.early_events.set(early as i64);
        self.webhooks.refresh_metrics();
        self.refresh_upstreams();
        let (upstream, ours) = self.pool.answers_under_way();
        for (budget, bytes) in [
            ("inbound", self.services.inbound.used()),
            ("answers", self.services.rpc.answers().used()),
            ("upstream", upstream),
            ("upstream_internal", ours),
            ("history", self.published.with_history(History::bytes)),
            ("replays", self.services.replays.budget().used()),
            ("sessions", sessions.bytes),
        ] {
            let gauge = metrics.memory_bytes.get_or_create_owned(&BudgetLabel { budget });
            gauge.set(bytes as i64);
        }
        let ingress = metrics
            .pending_dropped
            .get_or_create_owned(&ReasonLabel { reason: "ingress" });
        ingress.inc_by(self.pool.best_effort_dropped().saturating_sub(ingress.get()));
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    match admin.readiness.check() {
        Ok(head) => (StatusCode::OK, format!("ready: head {head}\n")),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    admin.refresh();
    let (entries, bytes) = admin.services.rpc.kept();
    admin.services.metrics.cache_entries.set(entries as i64);
    admin.services.metrics.cache_bytes.set(bytes as i64);
    let mut page = String::new();
    match prometheus_client::encoding::text::encode(&mut page, &admin.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], page)
        }
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            "encoding failed\n".into(),
        ),
    }
}

async fn status(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let upstreams: Vec<_> = admin
        .pool
        .status()
        .into_iter()
        .map(|(address, status)| {
            json!({
                "address": address,
                "connected": status.connected,
                "active": status.active,
                "cordoned": status.cordoned,
                "leaving": status.leaving,
                "connects": status.connects,
                "chainId": status.chain_id.and_then(|json| serde_json::from_str::<serde_json::Value>(&json).ok()),
                "head": status.head,
                "lanes": status.lanes.map(|lanes| lanes.label()),
                "announcements": status.heads.map(|heads| heads.label()),
                "lagSeconds": status.lag.map(|lag| lag.as_secs_f64()),
                "callsInFlight": status.in_flight,
                "latencySeconds": status.latency.map(|latency| latency.as_secs_f64()),
                "refused": status.refused,
                "lastError": status.last_error,
            })
        })
        .collect();
    let head = admin.published.last_adopted().map(
        |(block, seen)| json!({"number": block.number, "hash": block.hash, "ageSeconds": seen.elapsed().as_secs_f64()}),
    );
    let levels = admin.services.registry.levels().into_iter().map(|state| {
        json!({
            "level": state.level.to_string(),
            "number": state.number,
            "basis": state.basis,
            "subscriptions": state.subscriptions,
        })
    });
    let fleet = admin.services.fleet.as_ref().map(|fleet| {
        let state = fleet.state();
        json!({"members": state.members, "accounts": state.accounts})
    });
    let page = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": admin.readiness.check().is_ok(),
        "clients": admin.services.clients.len(),
        "queuedBytes": admin.services.clients.queued_bytes(),
        "head": head,
        "finality": levels.collect::<Vec<_>>(),
        "upstreams": upstreams,
        "webhooks": admin.webhooks.status(),
        "fleet": fleet,
    });
    ([(header::CONTENT_TYPE, "application/json")], format!("{page:#}\n"))
}
