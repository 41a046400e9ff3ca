//! Services that all sessions work with, and the settings of sessions.

use std::sync::Arc;
use std::time::Duration;

use super::Clients;
use super::intake::Intake;
use crate::clock::Clock;
use crate::delivery::{WriterLimits, WriterShared};
use crate::door::{Door, Terms};
use crate::extension::Extension;
use crate::fleet::Fleet;
use crate::rpc::Rpc;
use crate::shares::Budget;
use crate::subscription::{Registry, Replays};
use crate::telemetry::Metrics;

/// Session settings that do not change while the process runs; the client's other limits are in its
/// [`crate::door::Plan`].
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// Limits of the queue.
    pub writer: WriterLimits,
    /// `TCP_NOTSENT_LOWAT`, in bytes: how much the kernel may buffer unsent, so that the backlog stays in our queue as
    /// references to shared frames. 0 keeps the kernel's default.
    pub notsent_lowat: u32,
    /// Time without an acknowledgement from the peer of a stream of server-sent events, after which it is disconnected.
    pub silence_timeout: Duration,
    /// Limit on bytes of incomplete or unanswered messages of all clients.
    pub max_inbound_bytes: usize,
}

/// Services shared by all sessions.
#[derive(Debug)]
pub struct Services {
    /// Live subscriptions.
    pub registry: Arc<Registry>,
    /// Subscriptions that start in the past.
    pub replays: Arc<Replays>,
    /// All other methods.
    pub rpc: Arc<Rpc>,
    /// Connected clients.
    pub clients: Clients,
    /// Admission of clients, and their quotas.
    pub door: Door,
    /// Methods and subscriptions of the embedding program.
    pub extension: Extension,
    /// Exchange of quotas with other headwaters; `None` if it is off.
    pub fleet: Option<Arc<Fleet>>,
    /// Methods of headwater's own.
    pub(crate) own: Extension,
    /// Settings.
    pub settings: SessionSettings,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Clock of the process.
    pub clock: Clock,
    /// Budget for incomplete messages, and for long ones that are not answered yet.
    pub inbound: Arc<Budget>,
    pub(super) writers: Arc<WriterShared>,
}

impl Services {
    /// Combines the services, and creates the client registry, the inbound budget and the shared state of writers.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        replays: Arc<Replays>,
        rpc: Arc<Rpc>,
        door: Door,
        settings: SessionSettings,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let writers = WriterShared::new(settings.writer, clock, &metrics);
        Self {
            registry,
            replays,
            rpc,
            clients: Clients::new(clock),
            door,
            fleet: None,
            own: Extension::new(super::own_methods().into(), usize::MAX, metrics.clone()),
            extension: Extension::new(jsonrpsee::Methods::new(), usize::MAX, metrics.clone()),
            settings,
            metrics,
            clock,
            inbound: Budget::new("too many bytes of messages at once", settings.max_inbound_bytes),
            writers,
        }
    }

    /// Serves the methods of an extension, too.
    #[must_use]
    pub fn extended(self, extension: Extension) -> Self {
        Self { extension, ..self }
    }

    /// Exchanges quotas with other headwaters, too.
    #[must_use]
    pub fn in_fleet(self, fleet: Option<Arc<Fleet>>) -> Self {
        Self { fleet, ..self }
    }

    /// Returns the intake of a client's messages under these terms.
    pub(crate) fn intake<'a>(&'a self, terms: &'a Terms) -> Intake<'a> {
        Intake {
            terms,
            may_develop: self.rpc.may_develop(),
            extension: &self.extension,
            metrics: &self.metrics,
            record: None,
        }
    }

    /// Counts one refusal under this reason.
    pub fn count_refusal(&self, limit: &'static str) {
        self.metrics.count_refusals(limit, 1);
    }

    /// Enforces the limit on the global backlog, see [`Clients::enforce_total_backlog`]. Never returns.
    pub async fn enforce_total_backlog(&self) {
        self.clients.enforce_total_backlog(self.writers.backlog()).await;
    }
}

impl AsRef<Door> for Services {
    fn as_ref(&self) -> &Door {
        &self.door
    }
}
