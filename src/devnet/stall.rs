//! Stalls on command: nothing is read, sent or answered, and the sockets stay open.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// The control of stalls; connections wait at its gates.
#[derive(Debug)]
pub(super) struct Stall(watch::Sender<Silence>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    None,
    Until(Instant),
    /// Until a command ends it.
    Open,
}

impl Silence {
    fn holds(self) -> bool {
        match self {
            Self::None => false,
            Self::Until(end) => Instant::now() < end,
            Self::Open => true,
        }
    }
}

impl Default for Stall {
    fn default() -> Self {
        Self(watch::Sender::new(Silence::None))
    }
}

impl Stall {
    /// Begins a stall; `None` lasts until [`Self::end`].
    pub(super) fn begin(&self, duration: Option<Duration>) {
        let end = duration.and_then(|duration| Instant::now().checked_add(duration));
        self.0.send_replace(end.map_or(Silence::Open, Silence::Until));
    }

    pub(super) fn end(&self) {
        self.0.send_replace(Silence::None);
    }

    pub(super) fn gate(&self) -> Gate {
        Gate(self.0.subscribe())
    }
}

/// The place where a connection waits for the end of a stall.
#[derive(Clone, Debug)]
pub(super) struct Gate(watch::Receiver<Silence>);

impl Gate {
    /// Waits until there is no stall. Cancel-safe.
    pub(super) async fn open(&mut self) {
        loop {
            let silence = *self.0.borrow_and_update();
            let changed = match silence {
                silence if !silence.holds() => return,
                Silence::Until(end) => tokio::select! {
                    () = sleep_until(end) => return,
                    changed = self.0.changed() => changed,
                },
                Silence::Open | Silence::None => self.0.changed().await,
            };
            if changed.is_err() {
                // The node is gone; the waiting task is about to be stopped.
                return std::future::pending().await;
            }
        }
    }

    /// Waits until a stall begins. Cancel-safe.
    pub(super) async fn shut(&mut self) {
        if self.0.wait_for(|silence| silence.holds()).await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_ends_by_time_or_by_command() {
        let stall = Stall::default();
        let mut gate = stall.gate();
        gate.open().await;
        let start = Instant::now();
        stall.begin(Some(Duration::from_secs(3)));
        gate.shut().await;
        gate.open().await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        stall.begin(None);
        tokio::select! {
            () = gate.open() => panic!("open-ended silence must hold"),
            () = tokio::time::sleep(Duration::from_secs(3600)) => stall.end(),
        }
        gate.open().await;
    }
}
