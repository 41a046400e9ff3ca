//! Metrics of webhooks.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// A label such as `webhook="transfers"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WebhookLabel {
    /// Name in the settings.
    pub webhook: String,
}

/// Labels such as `webhook="transfers",outcome="accepted"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WebhookOutcomeLabel {
    /// Name in the settings.
    pub webhook: String,
    /// Short name of the outcome.
    pub outcome: &'static str,
}

/// Metrics of all webhooks.
#[derive(Debug, Default)]
pub struct WebhookMetrics {
    /// Events that receivers have accepted.
    pub events: Family<WebhookLabel, Counter>,
    /// Requests to receivers, by outcome.
    pub attempts: Family<WebhookOutcomeLabel, Counter>,
    /// Events given up: they are in the file of dead letters.
    pub dead_events: Family<WebhookLabel, Counter>,
    /// Positions that could not be served any more.
    pub gaps: Family<WebhookLabel, Counter>,
    /// Seconds since the oldest batch that is not delivered was made; 0 if there is none.
    pub lag: Family<WebhookLabel, Gauge<f64, AtomicU64>>,
    /// 1 if the webhook sends nothing until a restart or a reload, else 0.
    pub disabled: Family<WebhookLabel, Gauge>,
}

impl WebhookMetrics {
    pub(super) fn add_to(&self, registry: &mut Registry) {
        registry.register(
            "webhook_events",
            "Events that receivers of webhooks have accepted",
            self.events.clone(),
        );
        registry.register(
            "webhook_attempts",
            "Requests to receivers of webhooks, by outcome",
            self.attempts.clone(),
        );
        registry.register(
            "webhook_dead_events",
            "Events of webhooks given up after retry_for; they are in the file of dead letters",
            self.dead_events.clone(),
        );
        registry.register(
            "webhook_gaps",
            "Positions of webhooks that could not be served any more: the receiver got headwater.gap",
            self.gaps.clone(),
        );
        registry.register(
            "webhook_lag_seconds",
            "Age of the oldest batch of a webhook that is not delivered; 0 if there is none",
            self.lag.clone(),
        );
        registry.register(
            "webhook_disabled",
            "1 if a webhook sends nothing until a restart or a reload: its receiver answered 410",
            self.disabled.clone(),
        );
    }

    /// Removes the gauges of a webhook that has left.
    pub fn forget(&self, webhook: &str) {
        let label = WebhookLabel {
            webhook: webhook.to_owned(),
        };
        self.lag.remove(&label);
        self.disabled.remove(&label);
    }
}
