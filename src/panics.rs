//! Panics: each ends the task that it happens in, is counted, and is reported to the caller that cleans up.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use crate::telemetry::{Metrics, ReasonLabel};

/// Runs a task; returns `None` if it panicked. The standard hook has written the message and the place by then.
///
/// The task's shared state is behind locks that a panic releases, so a change in progress stays half made: the caller
/// must end the session or connection that the task served.
///
/// Not an `async fn`: its state would hold the future twice, as an argument and as the awaited value.
pub fn caught<F: Future>(task: &'static str, metrics: &Metrics, future: F) -> impl Future<Output = Option<F::Output>> {
    let guarded = AssertUnwindSafe(future).catch_unwind();
    guarded.map(move |outcome| outcome.map_err(|_| count(task, metrics)).ok())
}

/// Counts a panic in a task of this name that was caught elsewhere.
pub fn count(task: &'static str, metrics: &Metrics) {
    metrics.panics.get_or_create(&ReasonLabel { reason: task }).inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_costs_a_task_next_to_nothing() {
        let (metrics, _) = Metrics::new();
        let task = async {
            let room = std::hint::black_box([0_u8; 5000]);
            tokio::task::yield_now().await;
            room[17]
        };
        let alone = size_of_val(&task);
        assert!((5000..6000).contains(&alone));
        assert!(size_of_val(&caught("call", &metrics, task)) <= alone + 64);
    }

    #[tokio::test]
    async fn a_panic_is_counted_and_ends_its_task_alone() {
        let (metrics, _) = Metrics::new();
        let seen = |task| metrics.panics.get_or_create(&ReasonLabel { reason: task }).get();
        assert_eq!(caught("call", &metrics, async { 5 }).await, Some(5));
        let overflow = std::hint::black_box(u8::MAX);
        let broken = async {
            tokio::task::yield_now().await;
            overflow + std::hint::black_box(1)
        };
        assert_eq!(caught("call", &metrics, broken).await, None);
        assert_eq!((seen("call"), seen("session")), (1, 0));
        assert_eq!(caught("call", &metrics, async { 6 }).await, Some(6));
    }
}
