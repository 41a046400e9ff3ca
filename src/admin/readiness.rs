//! Readiness, as `/ready` reports it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::chain::Published;
use crate::session::Services;
use crate::upstream::Pool;

/// State of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Drain {
    /// Serving.
    #[default]
    None,
    /// Drained by the operator, who may end it.
    Operator,
    /// Shutdown.
    Shutdown,
}

/// State from which readiness is derived.
#[derive(Debug)]
pub struct Readiness {
    services: Arc<Services>,
    pool: Arc<Pool>,
    published: Arc<Published>,
    max_head_age: Duration,
    max_contents_age: Duration,
    drain: Mutex<Drain>,
}

impl Readiness {
    /// Combines the state. `max_head_age` is the age of the head, `max_contents_age` the longest wait of subscribers for
    /// the contents of a block (its logs, say), above which headwater is not ready.
    #[must_use]
    pub fn new(
        services: Arc<Services>,
        pool: Arc<Pool>,
        published: Arc<Published>,
        max_head_age: Duration,
        max_contents_age: Duration,
    ) -> Self {
        Self {
            services,
            pool,
            published,
            max_head_age,
            max_contents_age,
            drain: Mutex::default(),
        }
    }

    /// Checks readiness; returns the newest block's number.
    ///
    /// # Errors
    /// Returns the reason why headwater is not ready.
    pub fn check(&self) -> Result<u64, String> {
        self.check_head().and_then(|head| self.check_contents().map(|()| head))
    }

    /// Checks readiness but for the contents of blocks.
    ///
    /// # Errors
    /// Returns the reason why headwater is not ready.
    pub fn check_head(&self) -> Result<u64, String> {
        match *self.drain.lock() {
            Drain::None => {}
            Drain::Operator => return Err("drained by the operator".into()),
            Drain::Shutdown => return Err("draining".into()),
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
        Ok(block.number)
    }

    /// Checks if contents of blocks are late. Takes the registry's lock.
    ///
    /// # Errors
    /// Returns the reason why headwater is not ready.
    pub fn check_contents(&self) -> Result<(), String> {
        let (late, _) = self.services.registry.late();
        if let Some(late) = late.iter().find(|late| late.age > self.max_contents_age) {
            return Err(format!(
                "{} of a block are missing, subscribers have waited {} s for them",
                late.kind.label(),
                late.age.as_secs()
            ));
        }
        Ok(())
    }

    /// Records that the shutdown has begun.
    pub fn shut_down(&self) {
        *self.drain.lock() = Drain::Shutdown;
    }

    /// Drains, or ends that; returns `false` where nothing changes. The drain of a shutdown cannot be ended.
    pub fn set_drained(&self, drained: bool) -> bool {
        let (from, to) = if drained {
            (Drain::None, Drain::Operator)
        } else {
            (Drain::Operator, Drain::None)
        };
        let mut drain = self.drain.lock();
        let changes = *drain == from;
        if changes {
            *drain = to;
        }
        changes
    }

    /// Checks if headwater is drained, by the operator or by a shutdown.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        *self.drain.lock() != Drain::None
    }
}
