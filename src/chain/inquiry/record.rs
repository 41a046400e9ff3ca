//! Record of how each upstream answered the questions about earlier blocks. No I/O, no clock.

use std::collections::HashMap;
use std::time::Duration;

use super::{AttemptError, BadAnswer, FetchWay};
use crate::backoff::{PUT_OFF, PUT_OFF_THROTTLED};
use crate::upstream::UpstreamId;

/// Consecutive failures after which a way is put off; [`AttemptError::Unavailable`], [`AttemptError::NotNow`],
/// [`AttemptError::Pruned`] and [`AttemptError::TooLong`] do not count.
const STRIKES: u32 = 3;

/// Least time between two failures without an answer that count: when a node returns, all blocks that waited for it have
/// one.
const APART: Duration = Duration::from_secs(1);

/// The same for lost connections, each of which ends all calls on it. Less than the wait before a repeat.
const BROKEN_APART: Duration = Duration::from_millis(30);

/// Experience with each way from earlier blocks. One entry for each upstream and way, so its size is bounded;
/// [`Self::retain`] drops upstreams that have left.
#[derive(Debug, Default)]
pub(in crate::chain) struct Record {
    rows: HashMap<(UpstreamId, FetchWay), Row>,
    connects: HashMap<UpstreamId, u64>,
}

#[derive(Debug, Default)]
struct Row {
    strikes: u32,
    /// Time of the last failure without an answer, or by a lost connection, that counted.
    struck: Option<Duration>,
    put_off: Option<PutOff>,
    /// Duration of the last useful answer.
    took: Option<Duration>,
}

#[derive(Debug)]
struct PutOff {
    until: Duration,
    wait: Duration,
    /// A restarted node may serve what it did not serve before. `false` for a node that hangs up: it reconnects each
    /// time.
    ends_with_connection: bool,
}

impl Record {
    /// Returns the number of upstreams on record.
    pub(in crate::chain) fn nodes(&self) -> usize {
        self.connects.len()
    }

    /// Drops the upstreams that are not there any more.
    pub(in crate::chain) fn retain(&mut self, is_there: impl Fn(UpstreamId) -> bool) {
        self.connects.retain(|node, _| is_there(*node));
        self.rows.retain(|(node, _), _| is_there(*node));
    }

    /// Records an upstream's number of connections; a change ends the put-offs that end with the connection.
    pub(in crate::chain) fn connected(&mut self, node: UpstreamId, connects: u64) {
        if self
            .connects
            .insert(node, connects)
            .is_some_and(|before| before != connects)
        {
            for (_, row) in self.rows.iter_mut().filter(|((own, _), _)| *own == node) {
                row.put_off.take_if(|put_off| put_off.ends_with_connection);
            }
        }
    }

    /// Checks if a way is not put off.
    pub(in crate::chain) fn offers(&self, node: UpstreamId, way: FetchWay, clock: Duration) -> bool {
        let row = self.rows.get(&(node, way));
        row.and_then(|row| row.put_off.as_ref())
            .is_none_or(|put_off| put_off.until <= clock)
    }

    /// Returns the time from a question until its answer is late: well above the way's usual duration, so that a slow
    /// node does not get more questions.
    pub(super) fn late(&self, node: UpstreamId, way: FetchWay, budget: Duration) -> Duration {
        let took = self.rows.get(&(node, way)).and_then(|row| row.took);
        took.map_or(budget / 8, |took| (took * 4).clamp(budget / 40, budget / 4))
    }

    /// Records a useful answer and how long it took.
    pub(in crate::chain) fn works(&mut self, node: UpstreamId, way: FetchWay, took: Duration) {
        let row = self.rows.entry((node, way)).or_default();
        *row = Row {
            took: Some(took),
            ..Row::default()
        };
    }

    /// Records a failure. Returns `true` if it puts off a way that was not put off before; renewing an expired put-off
    /// returns `false`.
    pub(in crate::chain) fn failed(
        &mut self,
        node: UpstreamId,
        way: FetchWay,
        why: AttemptError,
        clock: Duration,
    ) -> bool {
        let row = self.rows.entry((node, way)).or_default();
        let of_the_block = matches!(
            why,
            AttemptError::Unavailable | AttemptError::NotNow | AttemptError::Pruned | AttemptError::TooLong
        );
        let apart = match why {
            AttemptError::Other(BadAnswer::CallFailed) => Some(APART),
            AttemptError::Broken => Some(BROKEN_APART),
            _ => None,
        };
        if let Some(apart) = apart {
            if row.struck.is_some_and(|at| clock < at + apart) {
                return false;
            }
            row.struck = Some(clock);
        }
        row.strikes += u32::from(!of_the_block);
        let waits = match why {
            _ if of_the_block => return false,
            AttemptError::Throttled => PUT_OFF_THROTTLED,
            AttemptError::NotServed => PUT_OFF,
            _ if row.strikes >= STRIKES => PUT_OFF,
            _ => return false,
        };
        if row.put_off.as_ref().is_some_and(|put_off| clock < put_off.until) {
            return false;
        }
        let wait = waits.after(row.put_off.as_ref().map(|put_off| put_off.wait));
        let first = row.put_off.is_none();
        row.put_off = Some(PutOff {
            until: clock + wait,
            wait,
            ends_with_connection: why == AttemptError::NotServed,
        });
        first
    }
}
