//! Audit: each act of an operator is logged, and the newest ones stay in memory.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tracing::info;

use super::views::AuditEntry;
use crate::admin::Actor;
use crate::telemetry::unix_millis;

/// Most acts in memory.
const KEPT: usize = 256;

/// Longest target or outcome, in bytes.
const MAX_TEXT: usize = 256;

/// The newest acts.
#[derive(Debug, Default)]
pub(super) struct Audit(Mutex<VecDeque<AuditEntry>>);

impl Audit {
    /// Records an act and its outcome, and returns the outcome.
    pub(super) fn note<T, E: std::fmt::Display>(
        &self,
        actor: Actor,
        act: &'static str,
        target: &str,
        outcome: Result<T, E>,
    ) -> Result<T, E> {
        let words = outcome
            .as_ref()
            .err()
            .map_or_else(|| "ok".to_owned(), ToString::to_string);
        let (by, peer) = (actor.credential.label(), actor.peer.to_string());
        let (target, words) = (shortened(target), shortened(&words));
        info!(by, peer, act, target, outcome = words, "operator: audit");
        let mut entries = self.0.lock();
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(AuditEntry {
            at_ms: unix_millis(),
            by: by.to_owned(),
            peer,
            act: act.to_owned(),
            target,
            outcome: words,
        });
        outcome
    }

    /// Returns the newest acts, newest first.
    pub(super) fn newest(&self, count: usize) -> Vec<AuditEntry> {
        self.0.lock().iter().rev().take(count).cloned().collect()
    }
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Credential;

    #[test]
    fn acts_are_kept_with_their_outcome_newest_first() {
        let audit = Audit::default();
        let actor = Actor {
            credential: Credential::Token,
            peer: "203.0.113.7".parse().unwrap(),
        };
        assert_eq!(audit.note(actor, "disconnect", "7", Ok::<_, String>(1)), Ok(1));
        let long = "é".repeat(MAX_TEXT);
        assert!(
            audit
                .note(actor, "cordon", &long, Err::<(), _>("no such upstream"))
                .is_err()
        );
        let newest = audit.newest(10);
        let lines: Vec<_> = newest.iter().map(|entry| (&*entry.act, &*entry.outcome)).collect();
        assert_eq!(lines, [("cordon", "no such upstream"), ("disconnect", "ok")]);
        assert_eq!((newest[0].target.len(), &*newest[1].peer), (MAX_TEXT, "203.0.113.7"));
        for _ in 0..2 * KEPT {
            audit.note(actor, "drain", "", Ok::<_, String>(())).unwrap();
        }
        assert_eq!(audit.newest(usize::MAX).len(), KEPT);
        assert_eq!(audit.newest(3).len(), 3);
    }
}
