//! Signs of life of a node on one connection, and time limits for requests that it leaves unanswered.

use bytes::Bytes;
use tokio::time::Instant;

use super::{End, Purpose, Serving};
use crate::jsonrpc::{Outcome, TIMEOUT, error};
use crate::upstream::link::{LinkReader, Outbound};
use crate::upstream::{CallError, HeadReport};

/// Most given-up subscribe requests whose late answers are still recognized.
const MAX_LATE: usize = 64;

/// Bytes received between two ticks above which they are not pongs alone: part of a message has arrived.
const CONTROL_BYTES: u64 = 4096;

impl Serving {
    /// Gives up our own requests that are not vital and were not answered within `request_timeout`.
    pub(super) fn expire(&mut self) -> Result<(), End> {
        let silence_timeout = self.shared.settings.request_timeout;
        while let Some((&id, since)) = self.own.first_key_value()
            && since.elapsed() >= silence_timeout
        {
            self.own.remove(&id);
            match self.waiting.remove(&id) {
                Some(Purpose::Subscribe(feed)) => {
                    if self.late.len() == MAX_LATE {
                        self.late.pop_first();
                    }
                    self.late.insert(id, feed.unsubscribe());
                    match error(TIMEOUT, CallError::TimedOut.to_string()).into() {
                        Outcome::Error(why) | Outcome::Result(why) => self.refused(feed, why)?,
                    }
                }
                Some(Purpose::Unsubscribe { subscription, .. }) => self.ended(&subscription),
                Some(Purpose::Transaction(_)) => self.unfetched(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Handles the head that a probe found. A socket that answers pings can still miss heads (a frozen node, a
    /// subscription that the node lost). The head is reported, so that nothing is missed meanwhile; the second one
    /// that was not announced ends the connection. If another connection would be no better, the head is polled:
    /// zetachain and cdk-erigon grant `newHeads` and announce nothing.
    pub(super) async fn probed(&mut self, json: Bytes) -> Result<(), End> {
        let before = self.head;
        self.report(HeadReport::Latest(json)).await;
        if self.head == before {
            return Ok(());
        }
        self.unannounced += 1;
        if self.heads.rarely_announces() {
            self.heads_unannounced();
            return Ok(());
        }
        if self.unannounced > 1 {
            Err(End::HeadsStalled)
        } else {
            Ok(())
        }
    }

    /// Compares the total of bytes received with the last tick's. Bytes of an incomplete message are a sign of life,
    /// and answers behind that message are not overdue.
    fn look_at_bytes(&mut self, received: u64) {
        let came = received.saturating_sub(self.bytes);
        if came > 0 {
            self.last_received = Instant::now();
        }
        if came > CONTROL_BYTES && !self.whole && self.asked.is_some() {
            self.asked = Some(Instant::now());
        }
        (self.bytes, self.whole) = (received, false);
    }

    pub(super) fn tick(&mut self, reader: &LinkReader) -> Result<(), End> {
        let silence_timeout = self.shared.settings.silence_timeout;
        self.look_at_bytes(reader.received());
        let quiet = self.last_received.elapsed();
        if quiet >= silence_timeout {
            return Err(End::Silent(silence_timeout));
        }
        // A frozen node behind a live socket: pongs arrive, answers do not.
        if self.asked.is_some_and(|at| at.elapsed() >= silence_timeout / 2) {
            return Err(End::Unanswered(silence_timeout / 2));
        }
        self.expire()?;
        if self.handshake.until(Instant::now()).is_none()
            && let Some(purpose) = self.postponed.take()
        {
            self.ask_vital(purpose);
        }
        // A third of the limit without a head, half for the answer; the rest covers the tick interval.
        if self.ready && !self.heads.is_polled() && self.last_head.elapsed() >= silence_timeout / 3 {
            self.last_head = Instant::now();
            self.ask_vital(Purpose::Probe);
        }
        // Callers that gave up need no answer any more.
        self.waiting
            .retain(|_, purpose| !matches!(purpose, Purpose::Caller(reply) if reply.is_closed()));
        if quiet >= silence_timeout / 3 {
            if reader.has_pings() {
                self.put(Outbound::Ping);
            } else {
                self.ask("eth_chainId", "", Purpose::Ignored);
            }
        }
        if !self.awaits_id() {
            self.end_all_unmatched();
        }
        self.reconcile();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::subscriptions::tests::serving;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_of_a_long_message_are_signs_of_life() {
        let (mut serving, _wants) = serving(|_| {});
        let silence_timeout = serving.shared.settings.silence_timeout;
        serving.ask_vital(Purpose::Probe);
        let asked = serving.asked;
        // Pongs: the connection is alive, and the answer is still due.
        tokio::time::advance(silence_timeout / 4).await;
        serving.look_at_bytes(6);
        assert_eq!(
            (serving.last_received.elapsed(), serving.asked),
            (Duration::ZERO, asked)
        );
        // Part of a message, with the answer behind it.
        tokio::time::advance(silence_timeout / 4).await;
        serving.look_at_bytes(1 << 20);
        assert_eq!(serving.asked.map(|at| at.elapsed()), Some(Duration::ZERO));
        let asked = serving.asked;
        // Whole messages, while a request stays unanswered.
        tokio::time::advance(silence_timeout / 4).await;
        serving.whole = true;
        serving.look_at_bytes(2 << 20);
        assert_eq!(serving.asked, asked);
        tokio::time::advance(silence_timeout / 4).await;
        serving.look_at_bytes(2 << 20);
        assert_eq!(
            (serving.last_received.elapsed(), serving.asked),
            (silence_timeout / 4, asked)
        );
    }
}
