//! Looking whether an answer is known, without asking anybody for it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// One waker in one place: it is recognised by its address.
static LOOKER: &Waker = Waker::noop();

/// What the future comes to, if that is known already. It does not get past [`awaited`]; who gets nothing awaits it.
pub fn look<F: Future + ?Sized>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(LOOKER)) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Resolves as soon as somebody waits for the future that it stands in, rather than looks.
///
/// Who looks in vain starts a task. Had the node's actor been woken by then, the new task would push it off this worker's
/// slot for what runs next, and another worker would be woken for it: that cost more than the call.
pub fn awaited() -> impl Future<Output = ()> {
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
