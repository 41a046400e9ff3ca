//! All connected clients: their signs of life are watched here, so that no connection needs a timer of its own.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::seq::SliceRandom;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::clock::{Clock, Millis};
use crate::delivery::{Backlog, CloseReason, Outbox, Signs, frame};
use crate::door::{Pass, unix_now};

/// How often every client is looked at.
const ROUND: Duration = Duration::from_secs(1);

/// Between two close frames of a drain, on average: hundred clients a second come back to those that remain.
const BETWEEN_CLOSES: Duration = Duration::from_millis(10);
/// How long a client that was cut off may take to be gone.
const LEAVING: Duration = Duration::from_millis(10);

/// How long a client may take to answer a close frame, and to take what is flushed before it.
const CLOSE_PATIENCE: Millis = 5_000;

/// When clients are pinged and given up.
#[derive(Clone, Copy, Debug)]
pub struct LifeSigns {
    /// A ping goes out that often, whatever the traffic (PROTOCOL 1.12); load balancers cut idle sockets after 30 s.
    pub ping_interval: Duration,
    /// Nothing heard for so long, pongs included: the client is gone. A message may take as long from its first byte to its
    /// last: whoever sends a byte now and then is heard, but keeps what it has sent in our memory.
    pub silence_timeout: Duration,
    /// No progress in writing for so long: the client does not read.
    pub write_deadline: Duration,
}

#[derive(Debug)]
struct Client {
    outbox: Arc<Outbox>,
    pass: Arc<Pass>,
    pinged_at: Millis,
}

/// Connected clients.
#[derive(Debug)]
pub struct Clients {
    all: Mutex<Slab<Client>>,
    left: Notify,
    /// Whoever comes is asked to leave.
    draining: AtomicBool,
    clock: Clock,
}

impl Clients {
    /// Nobody yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            all: Mutex::default(),
            left: Notify::new(),
            draining: AtomicBool::new(false),
            clock,
        }
    }

    /// A client came; the number names it until it leaves.
    pub fn add(&self, outbox: Arc<Outbox>, pass: Arc<Pass>) -> usize {
        let number = self.all.lock().insert(Client {
            outbox: outbox.clone(),
            pass,
            pinged_at: self.clock.now(),
        });
        if self.draining.load(Ordering::SeqCst) {
            outbox.close(CloseReason::Drain);
        }
        number
    }

    /// A client left.
    pub fn remove(&self, number: usize) {
        let mut all = self.all.lock();
        all.try_remove(number);
        if all.is_empty() {
            all.shrink_to_fit();
            self.left.notify_waiters();
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.lock().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.lock().is_empty()
    }

    /// Bytes that wait in all queues, and behind them for the sockets.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.all
            .lock()
            .iter()
            .map(|(_, client)| client.outbox.waiting_bytes())
            .sum()
    }

    /// Closes the clients with the longest queues whenever all queues together are too long, for ever.
    pub async fn relieve(&self, backlog: &Backlog) {
        loop {
            backlog.exceeded().await;
            let mut waiting: Vec<(usize, Arc<Outbox>)> = Vec::new();
            for (_, client) in self.all.lock().iter() {
                let held_back = client.outbox.held_back();
                if held_back > 0 {
                    waiting.push((held_back, client.outbox.clone()));
                }
            }
            waiting.sort_unstable_by_key(|(held_back, _)| Reverse(*held_back));
            let mut closed = 0;
            for (_, outbox) in waiting {
                if !backlog.is_exceeded() {
                    break;
                }
                outbox.close(CloseReason::LongestQueue);
                closed += 1;
            }
            if closed > 0 {
                warn!(
                    closed,
                    "the longest queues: all together were above delivery.max_total_queue_bytes"
                );
            } else {
                // What is left belongs to clients that are leaving.
                tokio::time::sleep(LEAVING).await;
            }
        }
    }

    /// Asks every client to leave, one after the other in any order, and waits until all have or the time is over; the rest
    /// is cut off. All together would come back together. Half of the time at most is for the asking: the last one has to
    /// read what it is owed, too.
    pub async fn drain(&self, grace: Duration) {
        let end = tokio::time::Instant::now() + grace;
        // From here on whoever comes is asked to leave at once; before, it is among these.
        self.draining.store(true, Ordering::SeqCst);
        let mut outboxes: Vec<_> = self
            .all
            .lock()
            .iter()
            .map(|(_, client)| client.outbox.clone())
            .collect();
        outboxes.shuffle(&mut rand::rng());
        let count = u32::try_from(outboxes.len()).unwrap_or(u32::MAX).max(1);
        let between = BETWEEN_CLOSES.min(grace / 2 / count);
        let mut at = tokio::time::Instant::now();
        for outbox in outboxes {
            // Timers have a millisecond; those that are due before the next go together.
            tokio::time::sleep_until(at).await;
            outbox.close(CloseReason::Drain);
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
                client.outbox.kill(CloseReason::Drain);
            }
        }
    }

    /// Pings and gives up clients, and shows those out whose pass is over, for ever.
    pub async fn watch(&self, signs: LifeSigns) {
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ping = frame::control(frame::Opcode::Ping, b"");
        loop {
            round.tick().await;
            let (now, date) = (self.clock.now(), unix_now());
            // The lock is held for a walk over thousands of clients, about a millisecond; only comings and goings wait.
            for (_, client) in self.all.lock().iter_mut() {
                let state = client.outbox.signs(now);
                if let Some(reason) = verdict(&state, now, &signs) {
                    client.outbox.kill(reason);
                } else if now.saturating_sub(state.last_heard) >= signs.silence_timeout.as_millis() as Millis {
                    client.outbox.close(CloseReason::Silent);
                } else if is_unfinished(&state, now, &signs) {
                    client.outbox.close(CloseReason::Unfinished);
                } else if let Some(reason) = state.overdue.or_else(|| client.pass.over(date)) {
                    client.outbox.close(reason);
                } else if now.saturating_sub(client.pinged_at) >= signs.ping_interval.as_millis() as Millis {
                    client.pinged_at = now;
                    client.outbox.control(ping.clone());
                }
            }
        }
    }
}

/// Whether a client is beyond waiting for.
fn verdict(state: &Signs, now: Millis, signs: &LifeSigns) -> Option<CloseReason> {
    let since = |at: Millis| now.saturating_sub(at);
    if state.closing_since != 0 {
        return (since(state.closing_since) >= CLOSE_PATIENCE).then_some(CloseReason::WriteDeadline);
    }
    let overdue = state.blocked_since != 0 && since(state.blocked_since) >= signs.write_deadline.as_millis() as Millis;
    overdue.then_some(CloseReason::WriteDeadline)
}

fn is_unfinished(state: &Signs, now: Millis, signs: &LifeSigns) -> bool {
    let since = state.unfinished_since;
    since != 0 && now.saturating_sub(since) >= signs.silence_timeout.as_millis() as Millis
}
