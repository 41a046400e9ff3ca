//! Virtual time that advances only on command, in steps, after all pending work has been done.
//!
//! tokio's paused time would advance whenever all tasks wait, even with bytes in transit between two real sockets. A
//! blocking task that lives as long as the simulation prevents that (see `tokio::time::pause`).

use std::sync::mpsc;
use std::time::Duration;

/// Stops tokio's automatic advance of time until dropped.
pub struct Still(#[allow(dead_code, reason = "its end is what matters")] mpsc::Sender<()>);

impl Still {
    pub fn hold() -> Self {
        let (sender, dropped) = mpsc::channel();
        tokio::task::spawn_blocking(move || dropped.recv());
        Self(sender)
    }
}

/// Length of one step. Coarse, since a step costs system calls whatever its length; finer than every timeout in use.
pub const STEP: Duration = Duration::from_millis(20);

/// Number of yields to the runtime per step; on each yield, ready tasks run and the sockets are polled once. Enough
/// for a head to travel from a node to the clients, with the call for its logs in between. Longer work continues in
/// the next step, slightly late.
const TURNS: usize = 24;

/// Runs all pending work, then advances time by one step.
pub async fn step() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(STEP).await;
}
