//! Copies of a client's messages for a [`Tap`], which is behind the writer's lock.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::ClientWriter;
use super::state::State;
use crate::delivery::tap::{Direction, Tap, TappedMessage};
use crate::delivery::{Batch, Recipient};

impl ClientWriter {
    /// Begins a tap that copies `budget` bytes of messages at most; `None` if there is one.
    #[must_use]
    pub fn tap(&self, budget: usize) -> Option<mpsc::Receiver<TappedMessage>> {
        let mut state = self.state.lock();
        if state.tap.as_ref().is_some_and(|tap| !tap.is_unread()) {
            return None;
        }
        let (own, receiver) = Tap::new(budget);
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

    /// Copies a message from the client, if there is a tap.
    pub fn tap_received(&self, message: &[u8]) {
        if self.is_tapped.load(Ordering::Relaxed) {
            self.state.lock().copy(Direction::Received, &[message]);
        }
    }

    /// Copies an answer, if there is a tap.
    pub(super) fn tap_answer(&self, parts: &[Bytes]) {
        if self.is_tapped.load(Ordering::Relaxed) {
            let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
            self.state.lock().copy(Direction::Sent, &parts);
        }
    }
}

impl State {
    /// Copies events for the tap.
    #[cold]
    pub(super) fn tap_events(&mut self, to: &Recipient, batch: &Batch) {
        for event in &batch.events {
            let [_header, prefix, body] = event.slices(to.prefix());
            self.copy(Direction::Sent, &[prefix, body]);
        }
    }

    #[cold]
    fn copy(&mut self, direction: Direction, parts: &[&[u8]]) {
        if self.tap.as_mut().is_some_and(|tap| !tap.copy(direction, parts)) {
            self.tap = None;
        }
    }
}
