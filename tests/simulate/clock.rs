//! Time that moves only when told to, in steps, after everything that can happen has happened.
//!
//! tokio's paused time would jump ahead whenever all tasks wait, also for bytes that are on their way between two real
//! sockets. A blocking task that lives as long as the simulation inhibits that (see `tokio::time::pause`).

use std::sync::mpsc;
use std::time::Duration;

/// Holds time still while it lives.
pub struct Still(#[allow(dead_code, reason = "its end is what matters")] mpsc::Sender<()>);

impl Still {
    pub fn hold() -> Self {
        let (sender, dropped) = mpsc::channel();
        tokio::task::spawn_blocking(move || dropped.recv());
        Self(sender)
    }
}

/// One step of time. Coarse, for a step costs system calls whatever its length; finer than every timeout in play.
pub const STEP: Duration = Duration::from_millis(20);

/// How often the runtime is let go in each step: every time, whatever is ready runs and the sockets are looked at once.
/// Enough for a head to come all the way from a node to the clients, with the call for its logs in between. What takes
/// longer goes on in the next step, a little late.
const TURNS: usize = 24;

/// Lets everything happen that can happen now, then moves time by one step.
pub async fn step() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(STEP).await;
}
