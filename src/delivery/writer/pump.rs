//! Pump of a writer: writes its queue to its socket and updates the counters.

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;

use super::shared::Tally;
use super::state::State;
use super::{ClientWriter, Ended, Phase};
use crate::clock::Moment;
use crate::delivery::queue::Push;
use crate::delivery::template::Template;
use crate::delivery::write_buffer::Done;
use crate::delivery::{CloseReason, Compression};

/// Writes in a row before other tasks get their turn.
const MAX_WRITES: usize = 8;

impl ClientWriter {
    /// Accounts for a push; returns `true` if the caller has to flush.
    pub(super) fn after_push(&self, state: &mut State, push: Push) -> bool {
        match push {
            Push::Queued { shed } => state.shed += shed as u64,
            Push::Shed(events) => {
                state.shed += events as u64;
                return false;
            }
            Push::Full => {
                self.begin_close(state, state.backlogged());
                return false;
            }
        }
        self.recount(state);
        // While the socket is blocked, the session waits for its readiness and flushes then.
        !state.blockage.is_blocked() && !std::mem::replace(&mut state.flush_due, true)
    }

    /// Updates this client's part of the global backlog. No shared counter is touched while the socket takes
    /// everything.
    pub(super) fn recount(&self, state: &mut State) {
        let now = if !state.blockage.is_blocked() {
            0
        } else if matches!(state.phase, Phase::Closing(_)) {
            // The connection ends within its own deadline: other clients need not be closed for its last bytes.
            state.queue.bytes()
        } else {
            state.queue.bytes() + state.writing.bytes()
        };
        if now != state.held_back {
            self.shared.backlog().change(state.held_back, now);
            state.held_back = now;
        }
    }

    /// Starts to close the connection, unless a close frame is queued already.
    pub(super) fn begin_close(&self, state: &mut State, reason: CloseReason) {
        if std::mem::take(&mut state.corked) {
            // Answers corked before the end were only delayed for a moment.
            self.pump(state);
        }
        match state.phase {
            // A second reason changes nothing once a close frame is queued.
            Phase::Closing(_) => return,
            Phase::Flushing(_) if reason.flushes() => {}
            Phase::Open if reason.flushes() => state.phase = Phase::Flushing(reason),
            Phase::Open | Phase::Flushing(_) => {
                state.writing.cut();
                state.push_close(reason, self.shared.clock.now());
            }
        }
        self.pump(state);
    }

    /// Writes until nothing is left, the socket is full, or other tasks should get their turn; then notifies the
    /// session if its waits have changed.
    pub(super) fn pump(&self, state: &mut State) {
        let mut tally = Tally::default();
        self.pump_into(state, self.shared.clock.now(), &mut tally, None);
        self.shared.record(&tally);
    }

    /// Like [`Self::pump`], with the caller's time and tally: the cost of reading the clock for each of a thousand
    /// clients is measurable. `template` is that of the clients before, if there are several.
    pub(super) fn pump_into(
        &self,
        state: &mut State,
        now: Moment,
        tally: &mut Tally,
        mut template: Option<&mut Template>,
    ) {
        state.flush_due = false;
        let before = (state.blockage.is_blocked(), state.held_until);
        let mut turns = 0;
        while state.over.is_none() {
            let calls = self.in_flight.load(Ordering::Relaxed);
            if state.writing.is_empty() && !state.gather(now, calls, &self.egress) {
                break;
            }
            if turns == MAX_WRITES {
                // The rest is written when tokio reports the socket writable, which it is already.
                state.blockage.yielded(now);
                break;
            }
            turns += 1;
            match self.write(state, now, tally, template.as_deref_mut()) {
                Ok(written) => state.blockage.took(written, state.writing.is_empty(), now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    state.blockage.refused(now);
                    break;
                }
                Err(_) => state.end(Ended::Gone),
            }
        }
        match self.socket.try_flush() {
            Ok(flushed) => state.blockage.flushed(flushed, state.writing.is_empty(), now),
            Err(_) => state.end(Ended::Gone),
        }
        let written = state.writing.is_empty() && !state.blockage.is_unsent();
        if matches!(state.phase, Phase::Closing(reason) if reason.is_violation()) && written {
            // After a violation the echo cannot be found in the client's input; the end of our half makes the client
            // end its own.
            self.socket.shut();
        }
        self.recount(state);
        let after = (state.blockage.is_blocked(), state.held_until);
        if after != before && after != (false, None) {
            state.notify_session();
        }
    }

    fn write(
        &self,
        state: &mut State,
        now: Moment,
        tally: &mut Tally,
        template: Option<&mut Template>,
    ) -> io::Result<usize> {
        let release_at = now + self.shared.limits.holdoff;
        let mut released = false;
        let mut notifications = 0;
        let done = |done| match done {
            Done::Released(recipients) => {
                released = true;
                recipients.iter().for_each(|recipient| recipient.release(release_at));
            }
            Done::Delivered(batch) => {
                let events = batch.notifications();
                notifications += events;
                tally.delivered[batch.kind as usize] += events;
                tally.latest = (events > 0).then_some(batch.seen).or(tally.latest);
                if self.compression != Compression::None {
                    tally.saved += batch.saved(self.compression) as u64;
                }
            }
        };
        let write = |slices: &[IoSlice<'_>]| self.socket.try_write(slices);
        let written = match template {
            Some(template) => state.writing.write_filled(template, write, done),
            None => state.writing.write(write, done),
        }?;
        tally.bytes += written as u64;
        state.sent.bytes += written as u64;
        state.sent.notifications += notifications;
        if released {
            // Events may wait for this answer's hold-off; no other wake-up would write them.
            state.held_until = Some(state.held_until.map_or(release_at, |at| at.min(release_at)));
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;
    use crate::delivery::writer::Answered;
    use crate::delivery::writer::tests::{one, one_of, pair, read, released};
    use crate::delivery::{Batch, Event, Framing, Kind, frame};

    #[tokio::test]
    async fn a_client_that_does_not_read_is_closed_with_1013_behind_the_frame_that_was_begun() {
        let (writer, mut client) = pair(4 << 20, Duration::ZERO).await;
        let (to, batch) = (released(), one(Kind::Logs, 100_000));
        let mut pushed = 0;
        while writer.phase() == Phase::Open {
            if writer.push_events(&to, &batch, Moment::START) {
                writer.flush();
            }
            pushed += 1;
            assert!(pushed < 10_000, "the queue is bounded");
        }
        assert!(writer.waits().writable);
        assert!(
            !writer.push_events(&to, &batch, Moment::START),
            "nothing is queued behind the end"
        );
        let reading = tokio::spawn(async move {
            let mut wire = Vec::new();
            while !wire.ends_with(CloseReason::SlowConsumer.text().as_bytes()) {
                wire.extend(read(&mut client).await);
            }
            wire
        });
        while writer.waits().writable {
            poll_fn(|cx| writer.socket().poll_writable(cx)).await.unwrap();
            writer.flush();
        }
        let wire = reading.await.unwrap();
        let close = frame::close(1013, CloseReason::SlowConsumer.text()).len();
        assert_eq!(
            (wire.len() - close) % batch.wire_len,
            0,
            "whole frames, then the close frame"
        );
    }

    /// Returns the writer of an event stream, and the client's end of its socket.
    async fn stream() -> (Arc<ClientWriter>, TcpStream) {
        let (writer, _) = pair(1 << 20, Duration::ZERO).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.writable().await.unwrap();
        let (framing, compression) = (Framing::EventStream, Compression::None);
        let shared = writer.shared.clone();
        let stream = ClientWriter::framed(1 << 20, server.into(), framing, compression, Arc::default(), shared);
        (stream, client)
    }

    #[tokio::test]
    async fn an_event_stream_ends_with_its_reason_and_waits_for_no_echo() {
        let (writer, mut client) = stream().await;
        let to = released();
        writer.ping();
        assert_eq!(writer.queued_bytes(), 0, "nothing comes before the head");
        assert!(matches!(
            writer.answer(vec![b"HTTP\r\n\r\n".as_slice().into()], Vec::new()),
            Answered::Yes
        ));
        writer.ping();
        let batch = Batch::new(
            Kind::Heads,
            [Event::new(b"1").at(Some("b1".into()))].into(),
            Instant::now(),
        );
        let _ = writer.push_events(&to, &batch, Moment::START);
        let _ = writer.push_events(&to, &Batch::mark(Kind::Heads, "b2"), Moment::START);
        writer.close(CloseReason::Drain);
        let mut wire = String::new();
        while !wire.ends_with("}\n\n") {
            wire.push_str(std::str::from_utf8(&read(&mut client).await).unwrap());
        }
        let end = r#"{"code":1012,"reason":"service restart"}"#;
        let events = format!("event: heads\ndata: 1\nid: b1\n\nid: b2\n\nevent: close\ndata: {end}\n\n");
        assert_eq!(wire, format!("HTTP\r\n\r\n:\n\n{events}"));
        assert_eq!(writer.waits().over, Some(Ended::Closed));
        assert_eq!(
            writer.signs(Moment::START).sent.notifications,
            1,
            "a position is no event"
        );
    }

    #[tokio::test]
    async fn an_event_stream_without_a_head_ends_without_a_word() {
        for reason in [CloseReason::Drain, CloseReason::Revoked] {
            let (writer, mut client) = stream().await;
            writer.close(reason);
            assert_eq!(writer.waits().over, Some(Ended::Closed));
            writer.socket().shut();
            assert!(read(&mut client).await.is_empty());
        }
    }

    #[tokio::test]
    async fn a_drain_delivers_what_is_owed_first() {
        let (writer, mut client) = pair(10_000, Duration::ZERO).await;
        let _ = writer.push_events(&released(), &one(Kind::Heads, 1), Moment::START);
        writer.close(CloseReason::Drain);
        let wire = read(&mut client).await;
        assert_eq!(
            wire.len(),
            one(Kind::Heads, 1).wire_len + frame::close(1012, CloseReason::Drain.text()).len()
        );
        assert_eq!(writer.waits().over, None, "the echo is still to come");
        writer.peer_closed(Some(1012));
        assert_eq!(writer.waits().over, Some(Ended::Closed));
    }

    #[tokio::test]
    async fn what_a_full_socket_holds_back_is_counted_until_it_is_read_forgotten_closed_or_gone() {
        let (writer, mut client) = pair(64 << 20, Duration::ZERO).await;
        let backlog = |writer: &ClientWriter| writer.shared.backlog().bytes();
        let (to, batch) = (released(), one(Kind::Logs, 100_000));
        let push = |writer: &ClientWriter| {
            if writer.push_events(&to, &batch, Moment::START) {
                writer.flush();
            }
        };
        push(&writer);
        assert_eq!(backlog(&writer), 0, "the socket takes it");
        while writer.held_back() < 3 * batch.wire_len {
            push(&writer);
            assert_eq!(backlog(&writer), writer.held_back());
        }
        let on_its_way = backlog(&writer) - writer.queued_bytes();
        assert!(on_its_way > 0 && writer.queued_bytes() > 0, "both count");
        writer.forget(to.id());
        assert_eq!((backlog(&writer), writer.queued_bytes()), (on_its_way, 0));
        while backlog(&writer) > 0 {
            read(&mut client).await;
            writer.flush();
        }
        while backlog(&writer) == 0 {
            push(&writer);
        }
        writer.close(CloseReason::LongestQueue);
        assert_eq!((backlog(&writer), writer.queued_bytes()), (0, 0));
        let (writer, _client) = one_of(&writer.shared).await;
        while backlog(&writer) == 0 {
            push(&writer);
        }
        let shared = writer.shared.clone();
        drop(writer);
        assert_eq!(shared.backlog().bytes(), 0);
    }
}
