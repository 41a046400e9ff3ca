//! Polling for an answer that is known already, without starting any work for it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Waker with a fixed address, by which [`awaited`] recognises [`look`].
static LOOKER: &Waker = Waker::noop();

/// Polls once, and returns the output if known already. The future does not get past [`awaited`]; if the result is
/// `None`, the caller awaits the future.
pub(crate) fn look<F: Future + ?Sized>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(LOOKER)) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Resolves once the surrounding future is awaited instead of polled by [`look`].
///
/// A caller that gets `None` from [`look`] spawns a task. If the node's actor had been woken by then, the new task
/// would displace it from this worker's slot for the next task, and another worker would be woken for it: that cost
/// more than the call.
pub(crate) fn awaited() -> impl Future<Output = ()> {
    poll_fn(|cx| {
        if cx.waker().will_wake(LOOKER) {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn a_look_begins_nothing() {
        let mut begun = false;
        {
            let mut asking = pin!(async {
                awaited().await;
                begun = true;
                5
            });
            assert_eq!(look(asking.as_mut()), None);
            assert_eq!(asking.await, 5);
        }
        assert!(begun);
        assert_eq!(look(pin!(async { 5 })), Some(5));
    }
}
