//! Choice of the upstream in use: failover, failback, and the faults that an upstream is left for.

use std::cmp::Reverse;
use std::time::Duration;

use alloy_primitives::B256;

use super::candidate::MAX_CHAIN;
use super::{Ranking, Switch, SwitchReason};
use crate::upstream::UpstreamId;

/// Blocks by which an upstream may trail the newest one and still be chosen by its priority alone.
const NEAR: u64 = 2;

impl Ranking {
    /// Decides which upstream should be in use; to be called after every change, and regularly. Returns a change.
    pub(crate) fn decide(&mut self, now: Duration) -> Option<Switch> {
        let ids = self.members.ids();
        for id in &ids {
            let outvoted = self.is_outvoted(*id);
            self.members
                .since(*id, |member| &mut member.outvoted_since, outvoted, now);
        }
        for id in &ids {
            let doubted = self.is_doubted(*id);
            self.members
                .since(*id, |member| &mut member.doubted_since, doubted, now);
        }
        if let Some(newest) = self.newest() {
            self.sights.note(newest, now);
            // A block that no upstream reports any more does not count as lag.
            self.sights.forget_above(newest);
        }
        for id in &ids {
            let sound = !self.members[*id].cordoned
                && !self.is_forked(*id, now)
                && !self.was_doubted(*id, now)
                && self.lag(*id, now).is_some_and(|lag| lag < self.lag_tolerance);
            self.members.since(*id, |member| &mut member.sound_since, sound, now);
        }
        let (to, why) = self.verdict(now)?;
        if why == SwitchReason::First {
            self.began = Some(now);
        }
        let from = std::mem::replace(&mut self.active, to);
        Some(Switch { from, to, why })
    }

    fn verdict(&self, now: Duration) -> Option<(Option<UpstreamId>, SwitchReason)> {
        let Some(active) = self.active else {
            return self.fallback(now).map(|to| (Some(to), SwitchReason::First));
        };
        if !self.contains(active) {
            return Some((self.fallback(now), SwitchReason::Removed));
        }
        let Some(lag) = self.lag(active, now) else {
            return Some((self.fallback(now), SwitchReason::Lost));
        };
        if self.members[active].cordoned {
            return Some((self.fallback(now), SwitchReason::Cordoned));
        }
        if lag >= self.lag_tolerance
            && let Some(to) = self.better_candidate(now)
        {
            return Some((Some(to), SwitchReason::Lagging(lag)));
        }
        if self.is_forked(active, now)
            && let Some(to) = self.better_candidate(now)
        {
            return Some((Some(to), SwitchReason::Forked));
        }
        // All of the published chain may be from the doubted upstream: only one that has reached its head is better.
        if self.was_doubted(active, now)
            && let Some(to) = self.better_candidate(now)
            && self.published.newest().is_some_and(|(head, _)| self.number(to) >= head)
        {
            return Some((Some(to), SwitchReason::Doubted));
        }
        // Chance decides which upstream connects first, so at the start failback does not wait.
        let is_start = |began| now.saturating_sub(began) < self.lag_tolerance;
        let wait = if self.began.is_some_and(is_start) {
            Duration::ZERO
        } else {
            self.failback_after
        };
        let recovered = |id: &UpstreamId| {
            let since = self.members[*id].sound_since;
            since.is_some_and(|since| now.saturating_sub(since) >= wait) && self.is_fit(*id, now) && self.is_near(*id)
        };
        let members = self.members.iter().map(|(id, _)| id);
        let better = members.take_while(|id| *id != active).find(recovered)?;
        Some((Some(better), SwitchReason::FailBack))
    }

    /// Checks if an upstream could come into use now: connected, near the newest block, and without fault.
    pub(crate) fn is_ready(&self, id: UpstreamId, now: Duration) -> bool {
        self.members[id].is_available() && self.is_fit(id, now) && self.is_near(id)
    }

    /// Chooses a replacement for an upstream that is still connected: only one that is clearly better.
    fn better_candidate(&self, now: Duration) -> Option<UpstreamId> {
        let fit = || self.connected().filter(|id| self.is_fit(*id, now));
        fit().find(|id| self.is_near(*id)).or_else(|| fit().next())
    }

    /// Chooses an upstream where none is in use: any that is connected, preferably one that is fit, else the highest.
    fn fallback(&self, now: Duration) -> Option<UpstreamId> {
        let highest = || {
            self.connected()
                .enumerate()
                .max_by_key(|(place, id)| (!self.is_doubted(*id), self.number(*id), Reverse(*place)))
                .map(|(_, id)| id)
        };
        self.better_candidate(now).or_else(highest)
    }

    /// Checks if an upstream may replace another: its lag is below half of `lag_tolerance`, so that it is not the next one
    /// to be left.
    fn is_fit(&self, id: UpstreamId, now: Duration) -> bool {
        let member = &self.members[id];
        !member.cordoned
            && member.outvoted_since.is_none()
            && member.doubted_since.is_none()
            && self.lag(id, now).is_some_and(|lag| lag < self.lag_tolerance / 2)
    }

    fn is_near(&self, id: UpstreamId) -> bool {
        let Some(newest) = self.newest() else { return true };
        let number = self.number(id);
        // On a chain where some numbers have no block, two blocks may be many numbers apart.
        let ahead = |id: UpstreamId| {
            let blocks = self.members[id].above(number);
            self.number(id) == newest && blocks.is_some_and(|blocks| blocks as u64 <= NEAR)
        };
        number.saturating_add(NEAR) >= newest || self.connected().any(ahead)
    }

    fn is_forked(&self, id: UpstreamId, now: Duration) -> bool {
        let since = self.members[id].outvoted_since;
        since.is_some_and(|since| now.saturating_sub(since) >= self.lag_tolerance)
    }

    fn was_doubted(&self, id: UpstreamId, now: Duration) -> bool {
        let since = self.members[id].doubted_since;
        since.is_some_and(|since| now.saturating_sub(since) >= self.lag_tolerance)
    }

    /// Checks if, at the highest block that can be compared, two or more upstreams agree on another hash, and more
    /// than agree with this one. Of two that disagree neither is outvoted; priority decides.
    fn is_outvoted(&self, id: UpstreamId) -> bool {
        if self.connected().count() < 3 {
            return false;
        }
        let member = &self.members[id];
        // Below the remembered part of its chain: the published blocks that it has, and that two others have reached.
        let lowest = member.chain.front().map_or(0, |(number, _)| *number);
        let mut others: Vec<u64> = self
            .connected()
            .filter(|other| *other != id)
            .map(|id| self.number(id))
            .collect();
        others.sort_unstable_by_key(|number| Reverse(*number));
        let highest = member
            .root
            .map(|root| root.min(lowest.saturating_sub(1)).min(others[1]));
        let published = highest
            .into_iter()
            .flat_map(|highest| self.published.down_from(highest))
            .take(MAX_CHAIN);
        for (number, own) in member.chain.iter().rev().copied().chain(published) {
            let others = self.connected().filter(|other| *other != id);
            let votes: Vec<B256> = others.filter_map(|id| self.members[id].hash_at(number)).collect();
            if votes.len() >= 2 {
                let count = |hash: B256| votes.iter().filter(|vote| **vote == hash).count();
                let against = votes.iter().filter(|vote| **vote != own).map(|vote| count(*vote)).max();
                return against.is_some_and(|against| against >= 2 && against > count(own) + 1);
            }
        }
        false
    }
}
