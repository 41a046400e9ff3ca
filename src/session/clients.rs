//! Registry of connected clients. One task checks the signs of life of all clients, so that no connection needs a
//! timer.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rand::seq::SliceRandom;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::clock::{Clock, Moment};
use crate::delivery::{Backlog, ClientWriter, CloseReason, LivenessSigns, Sent};
use crate::door::{Pass, unix_now};

/// Interval between checks of all clients.
const ROUND: Duration = Duration::from_secs(1);

/// Parts of the registry that are checked one after the other in a round: connects and disconnects wait for the lock
/// while one is, some ten microseconds for a thousand clients.
pub(super) const PARTS: u32 = 16;

/// Average interval between two close frames of a drain: a hundred clients a second reconnect to the remaining
/// instances.
const BETWEEN_CLOSES: Duration = Duration::from_millis(10);
/// Pause before the global backlog is checked again, if no client could be closed.
const LEAVING: Duration = Duration::from_millis(10);

/// Time limit for a client to answer a close frame, and to read what is flushed before it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Intervals and time limits by which clients are pinged and disconnected.
#[derive(Clone, Copy, Debug)]
pub struct KeepaliveSettings {
    /// Interval between pings, regardless of traffic (PROTOCOL 1.12); load balancers cut idle sockets after 30 s.
    pub ping_interval: Duration,
    /// Time without any frame, pongs included, after which a client is disconnected. Also the time limit for a message
    /// from its first byte to its last: a client that sends a byte now and then is alive, but occupies our memory.
    pub silence_timeout: Duration,
    /// Time without write progress after which a client is disconnected: the client does not read.
    pub write_deadline: Duration,
}

#[derive(Debug)]
struct Client {
    writer: Arc<ClientWriter>,
    pass: Arc<Pass>,
    since: Moment,
    pinged_at: Moment,
    /// Part of the written data that was added to the account's usage.
    counted: Sent,
}

impl Client {
    fn connected(&self) -> ConnectedClient {
        ConnectedClient {
            writer: self.writer.clone(),
            pass: self.pass.clone(),
            since: self.since,
        }
    }

    /// Adds data to the account's usage that was written since the last call; returns its bytes.
    fn count(&mut self, sent: Sent) -> u64 {
        let before = std::mem::replace(&mut self.counted, sent);
        let bytes = sent.bytes.saturating_sub(before.bytes);
        let notifications = sent.notifications.saturating_sub(before.notifications);
        if bytes > 0 {
            self.pass.terms().usage().wrote(notifications, bytes);
        }
        bytes
    }
}

/// Connected client.
#[derive(Clone, Debug)]
pub struct ConnectedClient {
    /// Its writing half, and id.
    pub writer: Arc<ClientWriter>,
    /// Its admission.
    pub pass: Arc<Pass>,
    /// Time of the connection.
    pub since: Moment,
}

/// Clients of which the bytes of the last second are remembered.
const BUSIEST: usize = 8;

/// State of all queues at the last check of all clients.
#[derive(Clone, Debug, Default)]
pub struct QueueTotals {
    /// Bytes in all queues and current writes.
    pub bytes: usize,
    /// Bytes in the longest queue.
    pub largest: usize,
    /// Clients whose sockets take no bytes.
    pub blocked: usize,
    /// Id, account and bytes of the clients to which the most was written since the check before, most first.
    pub busiest: Vec<(u64, String, u64)>,
}

/// Registry of connected clients.
#[derive(Debug)]
pub struct Clients {
    all: Mutex<Slab<Client>>,
    totals: Mutex<QueueTotals>,
    left: Notify,
    /// `true` once new clients are closed at once.
    draining: AtomicBool,
    clock: Clock,
}

impl Clients {
    /// Creates an empty registry.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            all: Mutex::default(),
            totals: Mutex::default(),
            left: Notify::new(),
            draining: AtomicBool::new(false),
            clock,
        }
    }

    /// Adds a client; returns a number that identifies the client until [`Self::remove`].
    pub fn add(&self, writer: Arc<ClientWriter>, pass: Arc<Pass>) -> usize {
        let number = self.all.lock().insert(Client {
            writer: writer.clone(),
            pass,
            since: self.clock.now(),
            pinged_at: self.clock.now(),
            counted: Sent::default(),
        });
        if self.draining.load(Ordering::SeqCst) {
            writer.close(CloseReason::Drain);
        }
        number
    }

    /// Removes a client.
    pub fn remove(&self, number: usize) {
        let mut all = self.all.lock();
        if let Some(mut gone) = all.try_remove(number) {
            let sent = gone.writer.signs(self.clock.now()).sent;
            gone.count(sent);
        }
        if all.is_empty() {
            all.shrink_to_fit();
            self.left.notify_waiters();
        }
    }

    /// Returns the number of connected clients.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.lock().len()
    }

    /// Checks if no client is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.lock().is_empty()
    }

    /// Returns the bytes in all queues and current writes.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.all
            .lock()
            .iter()
            .map(|(_, client)| client.writer.waiting_bytes())
            .sum()
    }

    /// Returns the state of all queues at the last check, at most a second ago.
    #[must_use]
    pub fn queue_totals(&self) -> QueueTotals {
        self.totals.lock().clone()
    }

    /// Returns all clients.
    #[must_use]
    pub fn all(&self) -> Vec<ConnectedClient> {
        let all = self.all.lock();
        all.iter().map(|(_, client)| client.connected()).collect()
    }

    /// Returns the client with this id, see [`ClientWriter::id`].
    #[must_use]
    pub fn get(&self, id: u64) -> Option<ConnectedClient> {
        let all = self.all.lock();
        let mut found = all.iter().filter(|(_, client)| client.writer.id() == id);
        found.next().map(|(_, client)| client.connected())
    }

    /// Closes the clients that are connected now, in random order, spread evenly over this time. New clients are
    /// served.
    pub async fn close_gradually(&self, over: Duration) {
        let writers = self.shuffled();
        let between = over / u32::try_from(writers.len()).unwrap_or(u32::MAX).max(1);
        for writer in writers {
            if let Some(writer) = writer.upgrade() {
                writer.close(CloseReason::Drain);
            }
            tokio::time::sleep(between).await;
        }
    }

    /// Returns all clients in random order, to be closed one after the other. A client that leaves meanwhile leaves its
    /// socket and its queue with it: these hold neither.
    fn shuffled(&self) -> Vec<Weak<ClientWriter>> {
        let mut writers: Vec<_> = {
            let all = self.all.lock();
            all.iter().map(|(_, client)| Arc::downgrade(&client.writer)).collect()
        };
        writers.shuffle(&mut rand::rng());
        writers
    }

    /// Closes the clients with the longest queues whenever the global backlog exceeds its limit. Never returns.
    pub async fn enforce_total_backlog(&self, backlog: &Backlog) {
        loop {
            backlog.exceeded().await;
            let mut waiting: Vec<(usize, Arc<ClientWriter>)> = Vec::new();
            for (_, client) in self.all.lock().iter() {
                let held_back = client.writer.held_back();
                if held_back > 0 {
                    waiting.push((held_back, client.writer.clone()));
                }
            }
            waiting.sort_unstable_by_key(|(held_back, _)| Reverse(*held_back));
            let mut closed = 0;
            for (_, writer) in waiting {
                if !backlog.is_exceeded() {
                    break;
                }
                writer.close(CloseReason::LongestQueue);
                closed += 1;
            }
            if closed > 0 {
                warn!(
                    closed,
                    "closed clients with the longest queues: all queues exceeded delivery.max_total_queue_bytes"
                );
            } else {
                // The remaining bytes belong to clients that are closing.
                tokio::time::sleep(LEAVING).await;
            }
        }
    }

    /// Closes all clients in random order, and waits until all have disconnected or `grace` is over; the rest is cut
    /// off. The close frames are spread over time, since clients closed together reconnect together, but over about
    /// half of `grace` at most: the last client needs time to read its queued events, too.
    pub async fn drain(&self, grace: Duration) {
        let end = tokio::time::Instant::now() + grace;
        // From here on new clients are closed at once; clients that connected before are in the list.
        self.draining.store(true, Ordering::SeqCst);
        let writers = self.shuffled();
        let count = u32::try_from(writers.len()).unwrap_or(u32::MAX).max(1);
        let between = BETWEEN_CLOSES.min(grace / 2 / count);
        let mut at = tokio::time::Instant::now();
        for writer in writers {
            // Timers have a resolution of a millisecond; closes due before the next tick happen together.
            tokio::time::sleep_until(at).await;
            if let Some(writer) = writer.upgrade() {
                writer.close(CloseReason::Drain);
            }
            at += between.mul_f64(2.0 * rand::random::<f64>());
        }
        let all_left = async {
            loop {
                let left = self.left.notified();
                if self.is_empty() {
                    return;
                }
                left.await;
            }
        };
        if tokio::time::timeout_at(end, all_left).await.is_err() {
            for (_, client) in self.all.lock().iter() {
                client.writer.kill(CloseReason::Drain);
            }
        }
    }

    /// Pings clients, and disconnects those that are silent, slow or without a valid pass. Never returns.
    pub async fn watch(&self, signs: KeepaliveSettings) {
        let mut tick = tokio::time::interval(ROUND / PARTS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut round = Round::default();
            for part in 0..PARTS {
                tick.tick().await;
                // Written without the lock: a system call for each client.
                for (writer, action) in self.check(part as usize, &mut round, &signs) {
                    action.apply(&writer);
                }
            }
            let Round { mut totals, busiest } = round;
            let named = busiest
                .into_iter()
                .map(|(id, pass, bytes)| (id, pass.account().label(), bytes));
            totals.busiest = named.collect();
            *self.totals.lock() = totals;
        }
    }

    /// Checks the clients of one part of the registry; returns those that something is to be written to.
    pub(super) fn check(
        &self,
        part: usize,
        round: &mut Round,
        signs: &KeepaliveSettings,
    ) -> Vec<(Arc<ClientWriter>, Action)> {
        let (now, date) = (self.clock.now(), unix_now());
        let mut due = Vec::new();
        let mut all = self.all.lock();
        for number in (part..all.capacity()).step_by(PARTS as usize) {
            let Some(client) = all.get_mut(number) else { continue };
            let state = client.writer.signs(now);
            round.add(client, &state);
            let action = match action(&state, &client.pass, (now, date), signs) {
                None if now.since(client.pinged_at) < signs.ping_interval => continue,
                None => {
                    client.pinged_at = now;
                    Action::Ping
                }
                Some(action) => action,
            };
            due.push((client.writer.clone(), action));
        }
        due
    }
}

/// One check of all clients.
#[derive(Default)]
pub(super) struct Round {
    totals: QueueTotals,
    /// Id, pass and bytes, most bytes first.
    busiest: Vec<(u64, Arc<Pass>, u64)>,
}

impl Round {
    fn add(&mut self, client: &mut Client, state: &LivenessSigns) {
        let Self { totals, busiest } = self;
        totals.bytes += state.waiting_bytes;
        totals.largest = totals.largest.max(state.waiting_bytes);
        totals.blocked += usize::from(state.blocked_since.is_some());
        let bytes = client.count(state.sent);
        if bytes > 0 && (busiest.len() < BUSIEST || busiest.last().is_some_and(|last| last.2 < bytes)) {
            let place = busiest.partition_point(|busy| busy.2 >= bytes);
            busiest.insert(place, (client.writer.id(), client.pass.clone(), bytes));
            busiest.truncate(BUSIEST);
        }
    }
}

/// Write to a client that its signs of life ask for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Ping,
    Close(CloseReason),
    Kill(CloseReason),
}

impl Action {
    pub(super) fn apply(self, writer: &ClientWriter) {
        match self {
            Self::Ping => writer.ping(),
            Self::Close(reason) => writer.close(reason),
            Self::Kill(reason) => writer.kill(reason),
        }
    }
}

/// Returns how a client is disconnected; `None` for one that stays. `date` is in seconds since 1970.
fn action(state: &LivenessSigns, pass: &Pass, (now, date): (Moment, u64), signs: &KeepaliveSettings) -> Option<Action> {
    if let Some(reason) = verdict(state, now, signs) {
        return Some(Action::Kill(reason));
    }
    let reason = if has_passed(state.last_activity, now, signs.silence_timeout) {
        Some(CloseReason::Silent)
    } else if has_passed(state.unfinished_since, now, signs.silence_timeout) {
        Some(CloseReason::Unfinished)
    } else {
        state.overdue.or_else(|| pass.over(date))
    };
    reason.map(Action::Close)
}

/// Returns the reason to cut a client off: a close or a write that takes too long.
fn verdict(state: &LivenessSigns, now: Moment, signs: &KeepaliveSettings) -> Option<CloseReason> {
    let overdue = match state.closing_since {
        Some(since) => now.since(since) >= CLOSE_TIMEOUT,
        None => has_passed(state.blocked_since, now, signs.write_deadline),
    };
    overdue.then_some(CloseReason::WriteDeadline)
}

/// Checks if a time limit that began at `since` has passed; one that did not begin has not.
fn has_passed(since: Option<Moment>, now: Moment, limit: Duration) -> bool {
    since.is_some_and(|since| now.since(since) >= limit)
}
