//! Copies of a client's messages for a [`Tap`].

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::ClientWriter;
use crate::delivery::tap::{Direction, Tap, TappedMessage};
use crate::delivery::{Batch, Recipient};

impl ClientWriter {
    /// Begins a tap that copies `budget` bytes of messages at most; `None` if there is one.
    #[must_use]
    pub fn tap(&self, budget: usize) -> Option<mpsc::Receiver<TappedMessage>> {
        let mut tap = self.tap.lock();
        if tap.as_ref().is_some_and(|tap| !tap.is_unread()) {
            return None;
        }
        let (own, receiver) = Tap::new(budget);
        *tap = Some(Box::new(own));
        self.is_tapped.store(true, Ordering::Relaxed);
        Some(receiver)
    }

    /// Ends the tap if its reader is gone.
    pub fn end_tap(&self) {
        let mut tap = self.tap.lock();
        if tap.as_ref().is_some_and(|tap| tap.is_unread()) {
            *tap = None;
            self.is_tapped.store(false, Ordering::Relaxed);
        }
    }

    /// Copies a message from the client, if there is a tap.
    pub fn tap_received(&self, message: &[u8]) {
        if self.is_tapped.load(Ordering::Relaxed) {
            self.copy(Direction::Received, &[message]);
        }
    }

    /// Copies an answer, if there is a tap.
    pub(super) fn tap_answer(&self, parts: &[Bytes]) {
        if self.is_tapped.load(Ordering::Relaxed) {
            let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
            self.copy(Direction::Sent, &parts);
        }
    }

    /// Copies events, if there is a tap.
    pub(super) fn tap_events(&self, to: &Recipient, batch: &Batch) {
        if self.is_tapped.load(Ordering::Relaxed) {
            for event in &batch.events {
                let [_header, prefix, body] = event.slices(to.prefix());
                self.copy(Direction::Sent, &[prefix, body]);
            }
        }
    }

    #[cold]
    fn copy(&self, direction: Direction, parts: &[&[u8]]) {
        let mut tap = self.tap.lock();
        if tap.as_mut().is_some_and(|tap| !tap.copy(direction, parts)) {
            *tap = None;
            self.is_tapped.store(false, Ordering::Relaxed);
        }
    }
}
