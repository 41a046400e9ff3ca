//! Journal of rare, notable events: failovers, reorgs, closes, reloads and acts of the operator.
//!
//! The newest entries stay in memory, and readers follow the rest by a bounded channel. An entry costs a lock and an
//! allocation or two, so nothing that happens once per message or delivery is entered: refusals come once a second as
//! sums (see [`super::Readings`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Most entries in memory.
const KEPT: usize = 256;

/// Most entries that a reader may be behind before it misses some. A restart of a balancer closes thousands of clients
/// at once.
const AHEAD: usize = 1024;

/// Event with its time and number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Number of the entry since the start; without gaps.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at: u64,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// Notable event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    /// Change of the active upstream.
    Failover {
        /// Upstream that was active; `None` at the start.
        from: Option<String>,
        /// Upstream that is active now; `None` if no other is connected.
        to: Option<String>,
        /// Reason, as in the metric `failovers`; `none_left` without another upstream.
        reason: String,
    },
    /// Drop of published blocks.
    Reorg {
        /// Number of the newest block that both branches have.
        fork: u64,
        /// Number of dropped blocks.
        depth: u64,
    },
    /// Loss of continuity: subscribers to the chain were closed.
    ContinuityLost,
    /// End of a client's connection.
    Closed {
        /// Id of the client.
        client: u64,
        /// Account of the client.
        account: String,
        /// Reason, as in the metric `closes`.
        reason: String,
        /// Close code that headwater sent; `None` without one.
        code: Option<u16>,
    },
    /// Requests and connections refused within the last second, by reason.
    Refused {
        /// Number by reason, as in the metric `refused`.
        counts: BTreeMap<String, u64>,
    },
    /// Reload of the configuration.
    Reloaded {
        /// Changed settings that wait for a restart.
        needs_restart: Vec<String>,
    },
    /// Configuration that was not valid; the previous one stays in force.
    ReloadRefused {
        /// The error.
        error: String,
    },
    /// Upstream that gets no more calls and is not active.
    Cordoned {
        /// Address of the upstream.
        upstream: String,
    },
    /// End of a cordon.
    Uncordoned {
        /// Address of the upstream.
        upstream: String,
    },
    /// Drain by the operator: `/ready` answers 503.
    Drained,
    /// End of a drain.
    Undrained,
    /// Entries that this reader missed, since it was too slow.
    Missed {
        /// Number of entries.
        count: u64,
    },
}

/// The journal.
#[derive(Debug)]
pub struct Journal {
    kept: Mutex<Kept>,
    live: broadcast::Sender<Entry>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<Entry>,
    next: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            live: broadcast::Sender::new(AHEAD),
        }
    }
}

impl Journal {
    /// Enters an event.
    pub fn enter(&self, event: Event) {
        let mut kept = self.kept.lock();
        let entry = Entry {
            number: kept.next,
            at: unix_millis(),
            event,
        };
        kept.next += 1;
        if kept.entries.len() == KEPT {
            kept.entries.pop_front();
        }
        kept.entries.push_back(entry.clone());
        // Under the lock, so that readers get entries by number. An error means that there is no reader.
        let _ = self.live.send(entry);
    }

    /// Returns the newest `count` entries, oldest first, and a receiver of those that follow.
    #[must_use]
    pub fn follow(&self, count: usize) -> (Vec<Entry>, broadcast::Receiver<Entry>) {
        let kept = self.kept.lock();
        let skipped = kept.entries.len().saturating_sub(count);
        let newest = kept.entries.iter().skip(skipped).cloned().collect();
        (newest, self.live.subscribe())
    }
}

/// Returns the milliseconds since 1970; 0 if the clock is before.
#[must_use]
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entries_are_kept_and_a_slow_reader_learns_how_many_it_missed() {
        let journal = Journal::default();
        journal.enter(Event::Drained);
        let (kept, mut live) = journal.follow(10);
        assert_eq!((kept.len(), &kept[0].event), (1, &Event::Drained));
        for _ in 0..AHEAD + 5 {
            journal.enter(Event::Undrained);
        }
        let missed = live.try_recv();
        assert!(
            matches!(missed, Err(broadcast::error::TryRecvError::Lagged(5))),
            "{missed:?}"
        );
        assert_eq!(live.try_recv().unwrap().number, 6);
        let (kept, _) = journal.follow(usize::MAX);
        assert_eq!((kept.len(), kept[0].number), (KEPT, (AHEAD + 6 - KEPT) as u64));
        assert_eq!(journal.follow(2).0.len(), 2);
        assert!(journal.follow(0).0.is_empty());
    }

    #[test]
    fn an_entry_is_one_flat_object() {
        let entry = Entry {
            number: 1,
            at: 2,
            event: Event::Failover {
                from: None,
                to: Some("ws://a".into()),
                reason: "lost".into(),
            },
        };
        let text = serde_json::to_string(&entry).unwrap();
        let flat = r#"{"number":1,"at":2,"event":"failover","from":null,"to":"ws://a","reason":"lost"}"#;
        assert_eq!(text, flat);
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
    }
}
