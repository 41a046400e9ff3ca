//! The upstreams of a ranking, by priority.

use std::ops::Index;
use std::time::Duration;

use super::candidate::Candidate;
use crate::upstream::UpstreamId;

/// An upstream that is not, or no longer, a member: never connected. Its actor may still report for a while.
static NO_MEMBER: Candidate = Candidate::new();

/// Few, so that a look-up by id compares one after the other.
#[derive(Debug, Default)]
pub(super) struct Members(Vec<(UpstreamId, Candidate)>);

impl Members {
    /// Sets members and order: members that are not named leave, ids that are new join.
    pub(super) fn arrange(&mut self, order: &[UpstreamId]) {
        let mut before = std::mem::take(&mut self.0);
        self.0 = Vec::from_iter(order.iter().map(|id| {
            let known = before.iter().position(|(own, _)| own == id);
            known.map_or_else(|| (*id, Candidate::default()), |at| before.swap_remove(at))
        }));
    }

    pub(super) fn contains(&self, id: UpstreamId) -> bool {
        self.0.iter().any(|(own, _)| *own == id)
    }

    /// Returns the members by priority.
    pub(super) fn iter(&self) -> impl Iterator<Item = (UpstreamId, &Candidate)> {
        self.0.iter().map(|(id, member)| (*id, member))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Candidate> {
        self.0.iter_mut().map(|(_, member)| member)
    }

    /// Returns the ids by priority.
    pub(super) fn ids(&self) -> Vec<UpstreamId> {
        self.iter().map(|(id, _)| id).collect()
    }

    /// Returns a member to be changed; `None` if it has left.
    pub(super) fn get_mut(&mut self, id: UpstreamId) -> Option<&mut Candidate> {
        let found = self.0.iter_mut().find(|(own, _)| *own == id);
        found.map(|(_, member)| member)
    }

    /// Notes since when a member is in a state; a state that does not hold has no beginning.
    pub(super) fn since(
        &mut self,
        id: UpstreamId,
        of: impl FnOnce(&mut Candidate) -> &mut Option<Duration>,
        holds: bool,
        now: Duration,
    ) {
        if let Some(member) = self.get_mut(id) {
            let since = of(member);
            *since = holds.then(|| since.unwrap_or(now));
        }
    }
}

impl Index<UpstreamId> for Members {
    type Output = Candidate;

    fn index(&self, id: UpstreamId) -> &Candidate {
        let found = self.0.iter().find(|(own, _)| *own == id);
        found.map_or(&NO_MEMBER, |(_, member)| member)
    }
}
