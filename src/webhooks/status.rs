//! State of a webhook, as operators see it.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Phase of a webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookPhase {
    /// The hook waits for its file of state, which another process uses or which cannot be used, or for the first block.
    #[default]
    Starting,
    /// All events that there are were delivered.
    Idle,
    /// A batch is being delivered.
    Delivering,
    /// The last attempt failed: the batch is sent again.
    Retrying,
    /// The receiver answered 410: nothing is sent until a restart or a reload.
    Disabled,
}

impl HookPhase {
    /// Returns the name of the phase.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Delivering => "delivering",
            Self::Retrying => "retrying",
            Self::Disabled => "disabled",
        }
    }
}

/// State of a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookStatus {
    /// Name in the settings.
    pub name: String,
    /// Kind of its events.
    pub kind: String,
    /// Phase.
    pub phase: HookPhase,
    /// Position behind the last delivered batch.
    pub position: Option<String>,
    /// Blocks between that position and the head; `None` if the position is too old for the blocks in memory, or there is
    /// none.
    pub behind: Option<u64>,
    /// Age of the batch that is being delivered, in milliseconds; 0 if there is none.
    pub lag_ms: u64,
    /// Number of the last batch.
    pub sequence: u64,
    /// Events delivered since the start.
    pub events: u64,
    /// Attempts to deliver the batch under way.
    pub attempts: u32,
    /// Last failure of the batch under way, of the file of state, or of the stream.
    pub error: Option<String>,
}

/// Latest status of a webhook, which its task writes.
#[derive(Debug, Default)]
pub(super) struct HookCell(Mutex<LatestStatus>);

/// Status, and the time at which the batch under way was made, in milliseconds since 1970.
#[derive(Clone, Debug, Default)]
struct LatestStatus {
    status: HookStatus,
    created_ms: Option<u64>,
}

impl HookCell {
    /// Changes the status; `created_ms` is that of the batch under way.
    pub(super) fn change(&self, created_ms: Option<u64>, change: impl FnOnce(&mut HookStatus)) {
        let mut latest = self.0.lock();
        latest.created_ms = created_ms;
        change(&mut latest.status);
    }

    /// Notes a failure, or its end.
    pub(super) fn note(&self, error: Option<String>) {
        self.0.lock().status.error = error;
    }

    /// Returns the status with its lag.
    pub(super) fn read(&self, now_ms: u64) -> HookStatus {
        let latest = self.0.lock().clone();
        let lag_ms = latest.created_ms.map_or(0, |created| now_ms.saturating_sub(created));
        HookStatus {
            lag_ms,
            ..latest.status
        }
    }
}
