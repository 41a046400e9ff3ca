//! Operator's port: `/health`, `/ready`, `/metrics`, `/status`. All pages are read-only.

mod listener;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use serde_json::json;

use crate::chain::{History, Published};
use crate::session::Services;
use crate::telemetry::{BudgetLabel, KindLabel, ReasonLabel, UpstreamLabel};
use crate::upstream::Pool;
pub use listener::serve;

/// State that the operator's pages show.
#[derive(Debug)]
pub struct Admin {
    /// Clients, accounts, subscriptions and metrics.
    pub services: Arc<Services>,
    /// Upstreams.
    pub pool: Arc<Pool>,
    /// Published chain.
    pub published: Arc<Published>,
    /// All metrics.
    pub registry: Registry,
    /// Age of the head above which `/ready` fails.
    pub max_head_age: Duration,
    /// Longest wait of subscribers for the contents of a block (its logs, say) before `/ready` fails.
    pub max_contents_age: Duration,
    /// Set when shutdown begins.
    pub draining: AtomicBool,
}

impl Admin {
    /// Returns the router of the pages `/health`, `/ready`, `/metrics`, `/status`.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/health", get(async || "alive\n"))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/status", get(status))
            .with_state(self)
    }

    /// Checks readiness; returns the text of the page, or as error the reason why headwater is not ready.
    fn readiness(&self) -> Result<String, String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining".into());
        }
        if self.pool.active().is_none() {
            return Err("no upstream is connected".into());
        }
        let Some((block, seen)) = self.published.last_adopted() else {
            return Err("no head received yet".into());
        };
        let age = seen.elapsed();
        if age > self.max_head_age {
            let (age, max) = (age.as_secs(), self.max_head_age.as_secs());
            return Err(format!(
                "head {} arrived {age} s ago, more than ready.max_head_age ({max} s)",
                block.number
            ));
        }
        let (late, _) = self.services.registry.late();
        if let Some(late) = late.iter().find(|late| late.age > self.max_contents_age) {
            return Err(format!(
                "{} of a block are missing, subscribers have waited {} s for them",
                late.kind.label(),
                late.age.as_secs()
            ));
        }
        Ok(format!("head {}", block.number))
    }

    /// Sets the gauges that are derived from other state.
    fn refresh(&self) {
        let metrics = &self.services.metrics;
        metrics.queue_bytes.set(self.services.clients.queued_bytes() as i64);
        metrics.accounts.set(self.services.door.accounts().len() as i64);
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
        }
        let (upstream, ours) = self.pool.answers_under_way();
        for (budget, bytes) in [
            ("inbound", self.services.inbound.used()),
            ("answers", self.services.rpc.answers().used()),
            ("upstream", upstream),
            ("upstream_ours", ours),
            ("history", self.published.with_history(History::bytes)),
            ("replays", self.services.replays.budget().used()),
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
    match admin.readiness() {
        Ok(line) => (StatusCode::OK, format!("ready: {line}\n")),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    admin.refresh();
    let (entries, bytes) = admin.services.rpc.kept().await;
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
    let page = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": admin.readiness().is_ok(),
        "clients": admin.services.clients.len(),
        "queuedBytes": admin.services.clients.queued_bytes(),
        "head": head,
        "upstreams": upstreams,
    });
    ([(header::CONTENT_TYPE, "application/json")], format!("{page:#}\n"))
}
