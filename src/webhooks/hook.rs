//! State machine of one webhook: batches, their delivery in order, retries, and the position that is kept. No I/O; time
//! is passed in.
//!
//! ```text
//! take, mark, gap > gathered > sealed > saved > posted ... accepted > position > saved with the next batch
//!                                                      ... given up > buried   >
//! ```
//!
//! A batch is on the disk, as it will be sent, before the first byte of it is sent, and stays there until it is known to be
//! delivered. So whatever happens in between, a reorg included, a receiver that has it gets the same bytes under the same id
//! again, and what follows continues from its end.

use std::time::Duration;

use tokio::time::Instant;

use super::state_file::{HookBatch, HookState};
use crate::backoff::Doubling;

/// Time between two writes of a position that only moves over blocks without events.
const QUIET: Duration = Duration::from_secs(1);

/// Longest wait that a receiver may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Bounds of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookLimits {
    /// Most events of a batch.
    pub events: usize,
    /// Bytes of events at which a batch is complete.
    pub bytes: usize,
    /// Longest wait between two attempts.
    pub retry_max: Duration,
    /// Time from the first attempt after which a batch is given up.
    pub retry_for: Duration,
}

/// First wait before a batch is sent again.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Next step, which the caller takes and reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Write [`Hook::state`]; then [`Hook::saved`].
    Save,
    /// Send [`Hook::batch`]; then [`Hook::answered`].
    Post,
    /// Write [`Hook::batch`] to the file of dead letters; then [`Hook::buried`].
    Bury,
    /// Nothing before this time, or before there are events; `None`: only events change anything.
    Wait(Option<Instant>),
    /// The receiver wants nothing more.
    Disabled,
}

/// Answer of a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Status 2xx.
    Accepted,
    /// Status 410.
    Gone,
    /// Anything else, or none.
    Failed {
        /// Wait that the receiver asks for.
        retry_after: Option<Duration>,
    },
}

/// Step of the batch under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Sent at this time.
    Due(Instant),
    Sending,
    GivenUp,
    Disabled,
}

/// Events behind the batch under way.
#[derive(Debug, Default)]
struct Gathered {
    kind: String,
    /// Events of the next batch, with commas between.
    data: String,
    events: usize,
    /// Position behind them.
    position: Option<String>,
}

/// One webhook.
#[derive(Debug)]
pub(super) struct Hook {
    limits: HookLimits,
    state: HookState,
    /// `true` if the state on the disk is this one.
    is_saved: bool,
    /// Time at which the state was last written.
    saved_at: Option<Instant>,
    /// `true` if only the position differs, by blocks without events.
    is_quiet: bool,
    step: Step,
    attempts: u32,
    first_attempt: Option<Instant>,
    gathered: Gathered,
    random: fastrand::Rng,
}

impl Hook {
    /// Continues from a state on the disk, or begins with a fresh one.
    pub(super) fn new(limits: HookLimits, state: HookState, random: fastrand::Rng, now: Instant) -> Self {
        Self {
            limits,
            is_saved: true,
            saved_at: None,
            is_quiet: false,
            step: Step::Due(now),
            attempts: 0,
            first_attempt: None,
            gathered: Gathered::default(),
            state,
            random,
        }
    }

    /// Returns the state that is to be on the disk.
    pub(super) fn state(&self) -> &HookState {
        &self.state
    }

    /// Returns the batch under way.
    pub(super) fn batch(&self) -> Option<&HookBatch> {
        self.state.batch.as_ref()
    }

    /// Returns the id of the batch under way: the same for each attempt, also by another process.
    pub(super) fn id(&self) -> String {
        format!("msg_{}_{}", self.state.series, self.state.sequence)
    }

    /// Returns the attempts to deliver the batch under way.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Checks if the next batch is complete: no more events are to be taken.
    pub(super) fn is_full(&self) -> bool {
        self.gathered.events >= self.limits.events || self.gathered.data.len() >= self.limits.bytes
    }

    /// Checks if all events that were taken are delivered.
    pub(super) fn is_idle(&self) -> bool {
        self.state.batch.is_none() && self.gathered.events == 0
    }

    /// Returns the position behind all events that were taken; `None` before the first position.
    pub(super) fn position(&self) -> Option<&str> {
        let batch = self.state.batch.as_ref().and_then(|own| own.end.as_deref());
        self.gathered
            .position
            .as_deref()
            .or(batch)
            .or(self.state.position.as_deref())
    }

    /// Takes an event, with the position behind it.
    pub(super) fn take(&mut self, kind: &str, data: &str, position: Option<String>) {
        let gathered = &mut self.gathered;
        if gathered.events == 0 {
            kind.clone_into(&mut gathered.kind);
        } else {
            gathered.data.push(',');
        }
        gathered.data.push_str(data);
        gathered.events += 1;
        if position.is_some() {
            gathered.position = position;
        }
    }

    /// Takes a position behind blocks without events.
    pub(super) fn mark(&mut self, position: String) {
        if self.position() == Some(&*position) {
            return;
        }
        if self.is_idle() {
            // The first position is written at once: a process that ends now begins there.
            self.is_quiet = self.is_quiet || (self.is_saved && self.state.position.is_some());
            self.is_saved = false;
            self.state.position = Some(position);
        } else {
            self.gathered.position = Some(position);
        }
    }

    /// Makes a batch of its own of an event of headwater's, behind which the stream goes on at `position`. All events before
    /// must be delivered.
    pub(super) fn announce(&mut self, kind: &str, data: &str, position: Option<String>, now: Instant, now_ms: u64) {
        debug_assert!(self.is_idle(), "events before it are not delivered");
        kind.clone_into(&mut self.gathered.kind);
        data.clone_into(&mut self.gathered.data);
        (self.gathered.events, self.gathered.position) = (1, position);
        self.seal(now, now_ms, false);
    }

    fn seal(&mut self, now: Instant, now_ms: u64, is_list: bool) {
        let gathered = std::mem::take(&mut self.gathered);
        self.state.sequence += 1;
        let (sequence, kind, data) = (self.state.sequence, &gathered.kind, &gathered.data);
        let data = if is_list { format!("[{data}]") } else { data.clone() };
        self.state.batch = Some(HookBatch {
            sequence,
            events: gathered.events,
            created_ms: now_ms,
            end: gathered.position,
            body: body(kind, sequence, now_ms, &data),
        });
        (self.is_saved, self.is_quiet) = (false, false);
        (self.attempts, self.first_attempt, self.step) = (0, None, Step::Due(now));
    }

    /// Returns the next step; `now_ms` is in milliseconds since 1970.
    pub(super) fn next(&mut self, now: Instant, now_ms: u64) -> Act {
        if self.state.batch.is_none() && self.gathered.events > 0 {
            self.seal(now, now_ms, true);
        }
        if !self.is_saved {
            let due = self.saved_at.map(|at| at + QUIET);
            return match due.filter(|due| self.is_quiet && *due > now) {
                Some(due) => Act::Wait(Some(due)),
                None => Act::Save,
            };
        }
        match (&self.state.batch, self.step) {
            (None, _) => Act::Wait(None),
            (Some(_), Step::Due(at)) if at <= now => Act::Post,
            (Some(_), Step::Due(at)) => Act::Wait(Some(at)),
            (Some(_), Step::Sending) => Act::Wait(None),
            (Some(_), Step::GivenUp) => Act::Bury,
            (Some(_), Step::Disabled) => Act::Disabled,
        }
    }

    /// Checks if the state is on the disk.
    pub(super) fn is_saved(&self) -> bool {
        self.is_saved
    }

    /// Notes that the state is on the disk.
    pub(super) fn saved(&mut self, now: Instant) {
        (self.is_saved, self.is_quiet, self.saved_at) = (true, false, Some(now));
    }

    /// Notes that the batch is being sent.
    pub(super) fn sending(&mut self, now: Instant) {
        self.step = Step::Sending;
        self.attempts = self.attempts.saturating_add(1);
        self.first_attempt.get_or_insert(now);
    }

    /// Notes the answer to the batch; returns the wait before it is sent again.
    pub(super) fn answered(&mut self, answer: &Answer, now: Instant) -> Option<Duration> {
        match answer {
            Answer::Accepted => {
                self.advance();
                None
            }
            Answer::Gone => {
                self.step = Step::Disabled;
                None
            }
            Answer::Failed { retry_after } => self.retry(*retry_after, now),
        }
    }

    fn retry(&mut self, retry_after: Option<Duration>, now: Instant) -> Option<Duration> {
        let left = self.first_attempt.map_or(Duration::ZERO, |first| {
            (first + self.limits.retry_for).saturating_duration_since(now)
        });
        if left.is_zero() {
            self.step = Step::GivenUp;
            return None;
        }
        let waits = Doubling::new(FIRST_WAIT, LONGEST_WAIT).within(self.limits.retry_max);
        let wait = waits.nth(self.attempts.saturating_sub(1));
        // Many webhooks of a receiver that returns must not come at once.
        let wait = wait.mul_f64(0.5 + self.random.f64() / 2.0);
        let asked = retry_after.unwrap_or_default().min(LONGEST_WAIT);
        // The last attempt is at the limit.
        let wait = wait.max(asked).min(left);
        self.step = Step::Due(now + wait);
        Some(wait)
    }

    /// Notes that the batch is in the file of dead letters.
    pub(super) fn buried(&mut self) {
        self.advance();
    }

    fn advance(&mut self) {
        let end = self.state.batch.take().and_then(|own| own.end);
        if end.is_some() {
            self.state.position = end;
        }
        if self.gathered.events == 0
            && let Some(position) = self.gathered.position.take()
        {
            self.state.position = Some(position);
        }
        (self.is_saved, self.is_quiet) = (false, false);
    }
}

/// Returns the body of a batch, as the specification recommends it.
pub(super) fn body(kind: &str, sequence: u64, now_ms: u64, data: &str) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_millis(now_ms);
    let time = humantime::format_rfc3339_millis(time);
    format!(r#"{{"type":"{kind}","timestamp":"{time}","sequence":{sequence},"data":{data}}}"#)
}

#[cfg(test)]
mod tests;
