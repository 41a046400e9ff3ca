//! The shared end of one client's queue: the dispatcher and the calls put in, the session takes out.
//!
//! A push is one short lock. Whoever pushes wakes the session afterwards, once for all that it pushed, so that a block's
//! events leave in one `writev`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use super::queue::Push;
use super::{Batch, Chunk, CloseReason, Gathered, Millis, Queue, Recipient, SubscriptionId};

/// Bounds of one client's queue.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Bytes, not messages: one full block of logs can outweigh a thousand heads.
    pub max_bytes: usize,
    /// Age of the oldest undelivered event, in milliseconds.
    pub max_age: Millis,
}

/// One client's queue, its state of closing and its signs of life.
#[derive(Debug)]
pub struct Outbox {
    limits: OutboxLimits,
    state: Mutex<State>,
    in_flight: AtomicU32,
    last_heard: AtomicU64,
    blocked_since: AtomicU64,
    closing_since: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    closing: Option<CloseReason>,
    killed: Option<CloseReason>,
    /// There is something that the session has not looked at.
    news: bool,
    waker: Option<Waker>,
    shed: u64,
}

/// What the session finds when it is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Something to write.
    Queued,
    /// Close, in an orderly way.
    Close(CloseReason),
    /// Drop the socket now.
    Kill(CloseReason),
}

impl Outbox {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: OutboxLimits, now: Millis) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
            in_flight: AtomicU32::new(0),
            last_heard: AtomicU64::new(now),
            blocked_since: AtomicU64::new(0),
            closing_since: AtomicU64::new(0),
        })
    }

    /// Queues events; `true` when the session must be woken for them (by [`Self::wake`], after all pushes).
    #[must_use]
    pub fn push_events(&self, to: &Arc<Recipient>, batch: &Arc<Batch>, now: Millis) -> bool {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return false;
        }
        let overdue = state
            .queue
            .oldest()
            .is_some_and(|oldest| now.saturating_sub(oldest) > self.limits.max_age);
        let push = if overdue {
            Push::Full
        } else {
            state
                .queue
                .push_events(to.clone(), batch.clone(), now, self.limits.max_bytes)
        };
        state.settle(push)
    }

    /// Queues an answer and wakes the session; subscriptions in `releases` are served a hold-off after it left.
    pub fn answer(&self, pieces: Vec<Bytes>, releases: Vec<Arc<Recipient>>) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return;
        }
        let push = state.queue.push_answer(pieces, releases, self.limits.max_bytes);
        if state.settle(push) {
            state.wake();
        }
    }

    /// Queues a ping or pong ahead of all data and wakes the session.
    pub fn control(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_none() {
            state.queue.push_control(frame);
            state.news = true;
            state.wake();
        }
    }

    /// Drops the queued events of a subscription that was ended.
    pub fn forget(&self, id: SubscriptionId) {
        self.state.lock().queue.forget(id);
    }

    /// Asks for a close frame; the first reason stays.
    pub fn close(&self, reason: CloseReason) {
        let mut state = self.state.lock();
        if state.closing.is_none() {
            state.closing = Some(reason);
            state.news = true;
            state.wake();
        }
    }

    /// Asks for the socket to be dropped at once, even in the middle of a frame.
    pub fn kill(&self, reason: CloseReason) {
        let mut state = self.state.lock();
        state.killed.get_or_insert(reason);
        state.news = true;
        state.wake();
    }

    /// Wakes the session.
    pub fn wake(&self) {
        self.state.lock().wake();
    }

    /// Resolves when there is something to do. While the socket takes nothing (`blocked`) only an end counts.
    pub fn poll_news(&self, cx: &mut Context<'_>, blocked: bool) -> Poll<News> {
        let mut state = self.state.lock();
        if state.news {
            if let Some(reason) = state.killed {
                return Poll::Ready(News::Kill(reason));
            }
            if let Some(reason) = state.closing {
                // Told once; the session's own state has it from here on.
                state.news = false;
                return Poll::Ready(News::Close(reason));
            }
            if !blocked {
                return Poll::Ready(News::Queued);
            }
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Takes what may be written now.
    pub fn gather(&self, now: Millis, budget: usize, out: &mut VecDeque<Chunk>) -> Gathered {
        let mut state = self.state.lock();
        let gathered = state.queue.gather(now, budget, out);
        state.news = gathered.more || state.killed.is_some();
        gathered
    }

    /// Bytes that wait and pending-transaction events dropped so far.
    #[must_use]
    pub fn backlog(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.queue.bytes(), state.shed)
    }

    /// When the oldest waiting event was queued.
    #[must_use]
    pub fn oldest(&self) -> Option<Millis> {
        self.state.lock().queue.oldest()
    }

    /// Age beyond which a waiting event ends the connection.
    #[must_use]
    pub fn max_age(&self) -> Millis {
        self.limits.max_age
    }

    /// Takes one of `max` places for a call in flight.
    #[must_use]
    pub fn begin_call(self: &Arc<Self>, max: u32) -> Option<InFlight> {
        let place = InFlight(self.clone());
        // The place is given back by its drop when it was one too many.
        (self.in_flight.fetch_add(1, Ordering::Relaxed) < max).then_some(place)
    }

    /// A frame arrived from the client.
    pub fn heard(&self, now: Millis) {
        self.last_heard.store(now, Ordering::Relaxed);
    }

    /// When a frame last arrived from the client.
    #[must_use]
    pub fn last_heard(&self) -> Millis {
        self.last_heard.load(Ordering::Relaxed)
    }

    /// Since when the socket takes no bytes; 0 when it does.
    #[must_use]
    pub fn blocked_since(&self) -> Millis {
        self.blocked_since.load(Ordering::Relaxed)
    }

    /// Notes that the socket takes no bytes since then (0: that it does).
    pub fn set_blocked_since(&self, at: Millis) {
        self.blocked_since.store(at, Ordering::Relaxed);
    }

    /// Since when the close handshake runs; 0 when it does not.
    #[must_use]
    pub fn closing_since(&self) -> Millis {
        self.closing_since.load(Ordering::Relaxed)
    }

    /// Notes that the close handshake began.
    pub fn set_closing_since(&self, at: Millis) {
        self.closing_since.store(at.max(1), Ordering::Relaxed);
    }
}

impl State {
    /// Keeps count of what a push did; `true` when the session has to be woken.
    fn settle(&mut self, push: Push) -> bool {
        match push {
            Push::Queued { shed } => self.shed += shed as u64,
            Push::Shed => {
                self.shed += 1;
                return false;
            }
            Push::Full => self.closing = Some(CloseReason::SlowConsumer),
        }
        !std::mem::replace(&mut self.news, true) || push == Push::Full
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A place among the calls in flight of one client; given back when dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Outbox>);

impl InFlight {
    /// Where the answer goes.
    #[must_use]
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::{Event, Kind};
    use std::time::Instant;

    fn outbox(max_bytes: usize) -> Arc<Outbox> {
        Outbox::new(
            OutboxLimits {
                max_bytes,
                max_age: 100,
            },
            0,
        )
    }

    fn one(kind: Kind) -> Arc<Batch> {
        Batch::new(kind, vec![Event::new(b"1")].into(), Instant::now())
    }

    fn news(outbox: &Outbox, blocked: bool) -> Option<News> {
        match outbox.poll_news(&mut Context::from_waker(Waker::noop()), blocked) {
            Poll::Ready(news) => Some(news),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_wake_for_many_pushes() {
        let outbox = outbox(10_000);
        let to = Recipient::new(SubscriptionId::random());
        assert!(outbox.push_events(&to, &one(Kind::Heads), 1));
        assert!(!outbox.push_events(&to, &one(Kind::Logs), 1));
        assert_eq!(news(&outbox, false), Some(News::Queued));
        assert_eq!(news(&outbox, true), None, "a blocked socket waits for itself");
    }

    #[test]
    fn a_full_or_stale_queue_closes_its_client_with_1013() {
        let to = Recipient::new(SubscriptionId::random());
        let full = outbox(one(Kind::Heads).wire_len);
        assert!(full.push_events(&to, &one(Kind::Heads), 1));
        assert!(full.push_events(&to, &one(Kind::Heads), 1));
        assert_eq!(news(&full, true), Some(News::Close(CloseReason::SlowConsumer)));
        assert!(
            !full.push_events(&to, &one(Kind::Heads), 1),
            "nothing is queued behind the end"
        );
        let stale = outbox(10_000);
        let _ = stale.push_events(&to, &one(Kind::Heads), 1);
        assert!(!stale.push_events(&to, &one(Kind::Heads), 101));
        assert!(stale.push_events(&to, &one(Kind::Heads), 102));
        assert_eq!(news(&stale, true), Some(News::Close(CloseReason::SlowConsumer)));
    }

    #[test]
    fn calls_in_flight_are_counted_and_given_back() {
        let outbox = outbox(10_000);
        let first = outbox.begin_call(1);
        assert!(first.is_some());
        assert!(outbox.begin_call(1).is_none());
        drop(first);
        assert!(outbox.begin_call(1).is_some());
    }
}
