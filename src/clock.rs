//! Milliseconds since the process's clock began: small enough to keep in every queued event, and stopped when tokio's
//! time is paused.

use std::time::Duration;

use tokio::time::Instant;

/// Milliseconds since the process's clock began; for comparison, never for display.
pub type Millis = u64;

/// The process's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts the clock at 1, so that 0 can mean "never".
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now() - Duration::from_millis(1))
    }

    /// Returns the current time.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.0.elapsed().as_millis() as Millis
    }

    /// Converts a time to an instant for tokio's timers.
    #[must_use]
    pub fn instant(&self, at: Millis) -> Instant {
        self.0 + Duration::from_millis(at)
    }
}
