//! Copies of a client's messages for a [`Tap`].

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::ClientWriter;
use crate::delivery::tap::{Direction, Discloses, Disclosure, Results, Tap, TappedMessage};
use crate::delivery::{Batch, Recipient};

impl ClientWriter {
    /// Begins a tap that copies `budget` bytes of messages at most; `None` if there is one. `discloses` judges each message
    /// of the client when it comes.
    #[must_use]
    pub fn tap(&self, budget: usize, discloses: Discloses) -> Option<mpsc::Receiver<TappedMessage>> {
        let mut tap = self.tap.lock();
        if tap.as_ref().is_some_and(|tap| !tap.is_unread()) {
            return None;
        }
        let (own, receiver) = Tap::new(budget, discloses);
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

    /// Copies a message from the client, if there is a tap; returns if the tap may show the answer.
    pub fn tap_received(&self, message: &[u8]) -> Disclosure {
        if !self.is_tapped.load(Ordering::Relaxed) {
            return Disclosure::default();
        }
        self.copy(&[message], |tap| (Direction::Received, tap.judge(message)))
            .unwrap_or_default()
    }

    /// Copies an answer, if there is a tap.
    pub(super) fn tap_answer(&self, parts: &[Bytes], disclosure: Disclosure) {
        if self.is_tapped.load(Ordering::Relaxed) {
            let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
            self.copy(&parts, |tap| (Direction::Sent(tap.results(disclosure)), ()));
        }
    }

    /// Copies events, if there is a tap.
    pub(super) fn tap_events(&self, to: &Recipient, batch: &Batch) {
        if self.is_tapped.load(Ordering::Relaxed) {
            for event in &batch.events {
                let [_header, prefix, body] = event.slices(to.prefix());
                self.copy(&[prefix, body], |_| (Direction::Sent(Results::Disclosed), ()));
            }
        }
    }

    #[cold]
    fn copy<T>(&self, parts: &[&[u8]], judge: impl FnOnce(&Tap) -> (Direction, T)) -> Option<T> {
        let mut tap = self.tap.lock();
        let own = tap.as_mut()?;
        let (direction, judged) = judge(own);
        if !own.copy(direction, parts) {
            *tap = None;
            self.is_tapped.store(false, Ordering::Relaxed);
        }
        Some(judged)
    }
}
