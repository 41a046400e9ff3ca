//! Copies of a client's messages for a [`Tap`], which is behind the writer's lock.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::ClientWriter;
use super::state::State;
use crate::delivery::tap::{Direction, Discloses, Disclosure, Results, Tap, TappedMessage};
use crate::delivery::{Batch, Recipient};

impl ClientWriter {
    /// Begins a tap that copies `budget` bytes of messages at most; `None` if there is one. `discloses` judges each message
    /// of the client when it comes.
    #[must_use]
    pub fn tap(&self, budget: usize, discloses: Discloses) -> Option<mpsc::Receiver<TappedMessage>> {
        let mut state = self.state.lock();
        if state.tap.as_ref().is_some_and(|tap| !tap.is_unread()) {
            return None;
        }
        let (own, receiver) = Tap::new(budget, discloses);
        state.tap = Some(Box::new(own));
        self.is_tapped.store(true, Ordering::Relaxed);
        Some(receiver)
    }

    /// Ends the tap if its reader is gone.
    pub fn end_tap(&self) {
        let mut state = self.state.lock();
        if state.tap.as_ref().is_some_and(|tap| tap.is_unread()) {
            state.tap = None;
        }
        self.is_tapped.store(state.tap.is_some(), Ordering::Relaxed);
    }

    /// Copies a message from the client, if there is a tap; returns if the tap may show the answer.
    pub fn tap_received(&self, message: &[u8]) -> Disclosure {
        if !self.is_tapped.load(Ordering::Relaxed) {
            return Disclosure::default();
        }
        let mut state = self.state.lock();
        let judged = state.copy(&[message], |tap| (Direction::Received, tap.judge(message)));
        judged.unwrap_or_default()
    }

    /// Copies an answer, if there is a tap.
    pub(super) fn tap_answer(&self, parts: &[Bytes], disclosure: Disclosure) {
        if self.is_tapped.load(Ordering::Relaxed) {
            let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
            let mut state = self.state.lock();
            state.copy(&parts, |tap| (Direction::Sent(tap.results(disclosure)), ()));
        }
    }
}

impl State {
    /// Copies events for the tap.
    #[cold]
    pub(super) fn tap_events(&mut self, to: &Recipient, batch: &Batch) {
        for event in &batch.events {
            let [_header, prefix, body] = event.slices(to.prefix());
            self.copy(&[prefix, body], |_| (Direction::Sent(Results::Disclosed), ()));
        }
    }

    /// Copies a message for the tap, if there is one; returns what `judge` says of it.
    #[cold]
    fn copy<T>(&mut self, parts: &[&[u8]], judge: impl FnOnce(&Tap) -> (Direction, T)) -> Option<T> {
        let own = self.tap.as_mut()?;
        let (direction, judged) = judge(own);
        if !own.copy(direction, parts) {
            self.tap = None;
        }
        Some(judged)
    }
}
