//! Report of one webhook to its operator: log, metrics and status.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::hook::{Act, Answer, Hook};
use super::receiver::Posted;
use super::settings::HookSettings;
use super::state_file::HookState;
use super::status::{HookCell, HookPhase};
use crate::telemetry::{WebhookLabel, WebhookMetrics, WebhookOutcomeLabel};

/// Report of one webhook.
pub(super) struct HookReport<'a> {
    name: &'a str,
    kind: &'static str,
    metrics: &'a WebhookMetrics,
    cell: Arc<HookCell>,
    label: WebhookLabel,
}

/// Batch under way, as it is reported.
#[derive(Debug)]
pub(super) struct ReportedBatch {
    id: String,
    attempts: u32,
    events: u64,
}

impl ReportedBatch {
    /// Returns the batch under way.
    pub(super) fn of(hook: &Hook) -> Self {
        Self {
            id: hook.id(),
            attempts: hook.attempts(),
            events: hook.batch().map_or(0, |own| own.events) as u64,
        }
    }
}

impl<'a> HookReport<'a> {
    /// Reports that the webhook begins in this state.
    pub(super) fn begin(
        settings: &'a HookSettings,
        metrics: &'a WebhookMetrics,
        cell: Arc<HookCell>,
        state: &HookState,
    ) -> Self {
        let name = &*settings.name;
        info!(
            position = state.position.as_deref().unwrap_or("none"),
            sequence = state.sequence,
            "webhook {name}: begins"
        );
        let label = WebhookLabel {
            webhook: name.to_owned(),
        };
        metrics.disabled.get_or_create(&label).set(0);
        Self {
            name,
            kind: settings.kind,
            metrics,
            cell,
            label,
        }
    }

    /// Reports the answer to a batch, and the wait before it is sent again.
    pub(super) fn answered(&self, batch: &ReportedBatch, posted: &Posted, wait: Option<Duration>) {
        let (name, metrics, Posted { answer, text }) = (self.name, self.metrics, posted);
        let ReportedBatch { id, attempts, events } = batch;
        let outcome = match answer {
            Answer::Accepted => "accepted",
            Answer::Gone => "gone",
            Answer::Failed { .. } => "failed",
        };
        let label = WebhookOutcomeLabel {
            webhook: self.label.webhook.clone(),
            outcome,
        };
        metrics.attempts.get_or_create(&label).inc();
        match answer {
            Answer::Accepted => {
                metrics.events.get_or_create(&self.label).inc_by(*events);
                if *attempts > 1 {
                    info!(id, attempts, "webhook {name}: delivered again");
                }
                self.cell.change(None, |status| {
                    status.events += events;
                    status.error = None;
                });
            }
            Answer::Gone => {
                metrics.disabled.get_or_create(&self.label).set(1);
                error!(id, "webhook {name}: disabled until a restart or a reload: {text}");
                self.cell.note(Some(text.clone()));
            }
            Answer::Failed { .. } => {
                if *attempts == 1 {
                    warn!(id, ?wait, "webhook {name}: not delivered, it is sent again: {text}");
                } else {
                    debug!(id, attempts, ?wait, "webhook {name}: not delivered: {text}");
                }
                self.cell.note(Some(text.clone()));
            }
        }
    }

    /// Reports that a batch is among the dead letters, for which older ones may have been removed.
    pub(super) fn buried(&self, batch: &ReportedBatch, failure: &str, removed: bool) {
        let ReportedBatch { id, attempts, events } = batch;
        let name = self.name;
        error!(
            id,
            attempts, events, "webhook {name}: given up, it is among the dead letters: {failure}"
        );
        if removed {
            warn!("webhook {name}: the oldest dead letters were removed to make room");
        }
        self.metrics.dead_events.get_or_create(&self.label).inc_by(*events);
    }

    /// Reports that there are no events for now.
    pub(super) fn no_events(&self, why: &str) {
        debug!("webhook {}: no events: {why}", self.name);
        self.cell.note(Some(format!("no events: {why}")));
    }

    /// Reports that events are missing.
    pub(super) fn gap(&self, why: &str, kind: &str) {
        let name = self.name;
        error!(
            "webhook {name}: events are missing: {why}; it continues with live events, and the receiver gets {kind}"
        );
        self.metrics.gaps.get_or_create(&self.label).inc();
    }

    /// Shows the state, and the next step; `is_open` if there is a stream of events.
    pub(super) fn show(&self, hook: &Hook, act: &Act, is_open: bool) {
        let state = hook.state();
        let phase = match (act, hook.batch()) {
            (Act::Disabled, _) => HookPhase::Disabled,
            (_, Some(_)) if hook.attempts() > 1 || matches!(act, Act::Wait(Some(_))) => HookPhase::Retrying,
            (_, Some(_)) => HookPhase::Delivering,
            (_, None) => match state.position {
                Some(_) => HookPhase::Idle,
                None => HookPhase::Starting,
            },
        };
        self.cell.change(hook.batch().map(|own| own.created_ms), |status| {
            if *status.name != *self.name {
                self.name.clone_into(&mut status.name);
                self.kind.clone_into(&mut status.kind);
            }
            status.phase = phase;
            if status.position != state.position {
                status.position.clone_from(&state.position);
            }
            (status.sequence, status.attempts) = (state.sequence, hook.attempts());
            if phase == HookPhase::Idle && is_open {
                status.error = None;
            }
        });
    }
}
