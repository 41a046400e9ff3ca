//! Audit: each act of an operator is logged, and the newest ones stay in memory.

use std::collections::VecDeque;

use jsonrpsee::Extensions;
use jsonrpsee::core::RpcResult;
use jsonrpsee::types::ErrorObjectOwned;
use parking_lot::Mutex;
use tracing::info;

use super::service::REFUSED;
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

/// Returns the sender of a request, before anything is done for it.
///
/// # Errors
/// An error of the API, if the request has none: the admin port puts it there.
pub(super) fn actor(extensions: &Extensions) -> RpcResult<Actor> {
    let actor = extensions.get::<Actor>().copied();
    actor.ok_or_else(|| ErrorObjectOwned::owned(REFUSED, "the request has no sender", None::<()>))
}

impl Audit {
    /// Acts for the sender of a request, and records the outcome.
    ///
    /// # Errors
    /// Error of the act. Without a sender nothing is done.
    pub(super) fn act<T>(
        &self,
        extensions: &Extensions,
        act: &'static str,
        target: &str,
        run: impl FnOnce() -> RpcResult<T>,
    ) -> RpcResult<T> {
        let actor = actor(extensions)?;
        self.note(actor, act, target, run())
    }

    /// Records an act and its outcome, and returns the outcome.
    pub(super) fn note<T>(&self, actor: Actor, act: &'static str, target: &str, outcome: RpcResult<T>) -> RpcResult<T> {
        let words = match &outcome {
            Ok(_) => "ok".to_owned(),
            Err(why) => why.message().to_owned(),
        };
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
    fn without_a_sender_nothing_is_done() {
        let audit = Audit::default();
        let mut extensions = Extensions::new();
        let mut done = 0;
        let refused = audit.act(&extensions, "drain", "", || {
            done += 1;
            Ok(())
        });
        assert_eq!((refused.unwrap_err().code(), audit.newest(1).len()), (REFUSED, 0));
        extensions.insert(Actor {
            credential: Credential::Token,
            peer: "203.0.113.7".parse().unwrap(),
        });
        audit
            .act(&extensions, "drain", "", || {
                done += 10;
                Ok(())
            })
            .unwrap();
        assert_eq!((done, audit.newest(2).len()), (10, 1));
    }

    #[test]
    fn acts_are_kept_with_their_outcome_newest_first() {
        let audit = Audit::default();
        let actor = Actor {
            credential: Credential::Token,
            peer: "203.0.113.7".parse().unwrap(),
        };
        assert_eq!(audit.note(actor, "disconnect", "7", Ok(1)), Ok(1));
        let long = "é".repeat(MAX_TEXT);
        let why = ErrorObjectOwned::owned(REFUSED, "no such upstream", None::<()>);
        assert!(audit.note(actor, "cordon", &long, Err::<(), _>(why)).is_err());
        let newest = audit.newest(10);
        let lines: Vec<_> = newest.iter().map(|entry| (&*entry.act, &*entry.outcome)).collect();
        assert_eq!(lines, [("cordon", "no such upstream"), ("disconnect", "ok")]);
        assert_eq!((newest[0].target.len(), &*newest[1].peer), (MAX_TEXT, "203.0.113.7"));
        for _ in 0..2 * KEPT {
            audit.note(actor, "drain", "", Ok(())).unwrap();
        }
        assert_eq!(audit.newest(usize::MAX).len(), KEPT);
        assert_eq!(audit.newest(3).len(), 3);
    }
}
