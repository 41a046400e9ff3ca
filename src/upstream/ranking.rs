//! Ranking of the upstreams, and the choice of the one in use. No I/O, no clock: times are passed in.
//!
//! ```text
//!             first to connect             A is lost, or lags, is forked or doubted while B is fit
//!   none   ---------------------------> A ------------------------------------------------> B
//!   in use <--------------------------- in use <------------------------------------------- in use
//!             lost, no other connected     A is better by priority and was sound for a while
//! ```
//!
//! Lag is measured in time, not in blocks: the time since another upstream first reported the oldest block that this
//! one has not reached. So one `lag_tolerance` fits a chain with a block every 12 seconds and one with four blocks a second.
//!
//! A height counts against the others only where its parents lead to the published chain, or where two upstreams report
//! it: a single node can report any number. An upstream whose height does not count is doubted: it is never a refuge,
//! and it is left when it is in use and stays doubted. Its head may be a real jump; [`super::proof`] walks from there
//! to the published chain.
//!
//! An upstream that the operator has cordoned counts as not connected in every choice and vote.
//!
//! Switches do not flap: an upstream is left for lag or a fork only for another one with less than half of `lag_tolerance`
//! of lag, so that it takes time until that one can be left too; and one of better priority is taken back only after it
//! was sound without interruption, or at once where all have just connected.

mod candidate;
mod choice;
mod members;

use std::cmp::Reverse;
use std::time::Duration;

use alloy_primitives::B256;

use self::candidate::Candidate;
use self::members::Members;
use super::UpstreamId;
use super::first_reports::FirstReports;
use super::published::PublishedSample;

/// Largest difference of numbers between a parent and its child at which the child's number is credible: a node can
/// name any parent and any number. Filecoin's longest runs of null rounds are a tenth of this.
pub(crate) const MAX_HOLE: u64 = 128;

/// Wait before a walk that led nowhere is repeated, as a multiple of `lag_tolerance`.
const WALK_AGAIN: u32 = 8;

/// Time for which an upstream may not lead again after a block of its own was published and taken back, as a multiple
/// of `lag_tolerance`.
const LEAD_AGAIN: u32 = 40;

/// Most blocks in a row with which one upstream of two leads while the other has none of them.
const MAX_LED: u32 = 16;

/// A head as its node reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReportedBlock {
    pub number: u64,
    pub hash: B256,
    pub parent: B256,
}

/// Reason for a change of the upstream in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SwitchReason {
    /// No upstream was in use.
    First,
    /// The connection ended.
    Lost,
    /// Cordon by the operator.
    Cordoned,
    /// Removal from the configuration.
    Removed,
    /// Lag behind the others, for this long.
    Lagging(Duration),
    /// Branch other than that of most upstreams.
    Forked,
    /// Height that did not count, see [`Ranking::is_doubted`].
    Doubted,
    /// Return to an upstream of better priority that has been sound for long enough.
    FailBack,
}

/// A change of the upstream in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switch {
    pub from: Option<UpstreamId>,
    pub to: Option<UpstreamId>,
    pub why: SwitchReason,
}

/// Head to be proved by a walk along its parents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnprovedHead {
    pub id: UpstreamId,
    pub number: u64,
    pub hash: B256,
    /// Lowest known parent, from which the walk goes on: the highest number that this parent can have, and its hash.
    pub below: (u64, B256),
    /// Lowest number remembered of the published chain: a walk below this number finds nothing.
    pub oldest: u64,
}

/// All upstreams, as reported so far.
#[derive(Debug)]
pub(super) struct Ranking {
    /// Longest time for which the upstream in use may lag or be forked.
    lag_tolerance: Duration,
    failback_after: Duration,
    members: Members,
    active: Option<UpstreamId>,
    /// Time at which the first upstream that connected came into use; `None` once a connection was lost.
    began: Option<Duration>,
    sights: FirstReports,
    published: PublishedSample,
    led: Option<UnconfirmedLead>,
}

/// Newest block accepted from an upstream that is not in use, and that no other has reported.
#[derive(Debug)]
struct UnconfirmedLead {
    by: UpstreamId,
    number: u64,
    hash: B256,
    is_published: bool,
    /// Number of such blocks in a row.
    run: u32,
}

impl Ranking {
    /// Creates a ranking without upstreams; see [`Self::arrange`].
    pub(super) fn new(lag_tolerance: Duration, failback_after: Duration) -> Self {
        Self {
            lag_tolerance,
            failback_after,
            members: Members::default(),
            active: None,
            began: None,
            sights: FirstReports::default(),
            published: PublishedSample::default(),
            led: None,
        }
    }

    /// Sets the upstreams, by priority. Those that are not named leave: whatever is reported about them later is
    /// ignored. An id names the same upstream for ever.
    pub(super) fn arrange(&mut self, order: &[UpstreamId]) {
        self.members.arrange(order);
        self.led.take_if(|led| !order.contains(&led.by));
    }

    /// Checks if an upstream takes part.
    pub(super) fn contains(&self, id: UpstreamId) -> bool {
        self.members.contains(id)
    }

    /// Records the published head, `None` where clients have to begin anew.
    pub(super) fn published(&mut self, head: Option<(u64, B256)>, now: Duration) {
        self.published.head(head);
        if let Some(led) = &mut self.led {
            let (by, was_published) = (led.by, led.is_published);
            led.is_published = self.published.number_of(led.hash).is_some();
            if was_published && !led.is_published {
                if head.is_some_and(|(number, _)| number <= led.number)
                    && let Some(member) = self.members.get_mut(by)
                {
                    member.leads_at = now + self.lag_tolerance * LEAD_AGAIN;
                }
                self.led = None;
            }
        }
        for member in self.members.iter_mut() {
            member.root = match head {
                Some((number, hash)) if member.reported(hash) => Some(number),
                // The block that is published at this number now is not known to be on this chain.
                Some((number, _)) => member.root.map(|root| root.min(number.saturating_sub(1))),
                None => None,
            };
        }
    }

    /// Records a published block below the others.
    pub(super) fn published_past(&mut self, number: u64, hash: B256) {
        self.published.past(number, hash);
    }

    /// Returns the newest published block.
    pub(super) fn published_head(&self) -> Option<(u64, B256)> {
        self.published.newest()
    }

    /// Returns some published blocks' hashes, see [`PublishedSample::some`].
    pub(super) fn some_published(&self) -> Vec<B256> {
        self.published.some()
    }

    /// Returns the number of a published block; `None` for any other block.
    pub(super) fn published_number(&self, hash: B256) -> Option<u64> {
        self.published.number_of(hash)
    }

    /// Checks if an upstream reports a height that does not count: no known parents lead from its head to the
    /// published chain, or two other upstreams contradict it, and no other has reached that height. An upstream that
    /// is connected alone is never doubted, and none is before the first block is published.
    pub(super) fn is_doubted(&self, id: UpstreamId) -> bool {
        let member = &self.members[id];
        member.is_available()
            && !self.leads_to_published(id)
            && self.published.newest().is_some()
            && self.connected().count() > 1
            && self.newest().is_some_and(|newest| self.number(id) > newest)
    }

    /// Returns a head that has been doubted for a while, and from which no walk was tried recently.
    pub(super) fn unproved(&self, now: Duration) -> Option<UnprovedHead> {
        let oldest = self.published.oldest()?;
        self.connected().find_map(|id| {
            let member = &self.members[id];
            let doubted_for = now.saturating_sub(member.doubted_since?);
            let is_due = member.walk_at.is_none_or(|at| now >= at);
            let (number, hash) = *member.chain.back()?;
            let below = *member.chain.front()?;
            (doubted_for >= self.lag_tolerance / 4 && is_due).then_some(UnprovedHead {
                id,
                number,
                hash,
                below,
                oldest,
            })
        })
    }

    /// Records the result of a walk: the number of the published block that it reached, or `None`.
    pub(super) fn walked(&mut self, claim: UnprovedHead, root: Option<u64>, now: Duration) {
        let Some(member) = self.members.get_mut(claim.id) else {
            return;
        };
        if root.is_some() && member.reported(claim.hash) {
            member.root = member.root.max(root);
        }
        if !self.leads_to_published(claim.id)
            && let Some(member) = self.members.get_mut(claim.id)
        {
            member.walk_at = Some(now + self.lag_tolerance * WALK_AGAIN);
        }
    }

    /// Checks that the chain leads to the published one, and that no two others have published blocks where this one
    /// has different ones: a single node can invent a branch that begins at a published block.
    fn leads_to_published(&self, id: UpstreamId) -> bool {
        let Some(root) = self.members[id].root else {
            return false;
        };
        let above = |other: &UpstreamId| self.members[*other].root.is_some_and(|own| own > root);
        self.number(id) <= root || self.connected().filter(above).count() < 2
    }

    /// Checks if a block on top of the newest one may be published on this upstream's report, although another one
    /// is in use: clients see a head as soon as it is known, not when the upstream in use has it. Of three or more
    /// upstreams another one must have reported the block, since a single one can invent blocks; of two, this one
    /// must not have led to a dropped block within [`LEAD_AGAIN`].
    pub(super) fn may_lead(&self, id: UpstreamId, block: B256, now: Duration) -> bool {
        let member = &self.members[id];
        if member.cordoned || !self.contains(id) {
            return false;
        }
        let is_trusted = now >= member.leads_at && member.outvoted_since.is_none();
        let run = self.led.as_ref().map_or(0, |led| led.run);
        is_trusted && run < MAX_LED && self.connected().count() < 3 || self.is_confirmed(id, block)
    }

    /// Records that this block is to be published on this upstream's report alone.
    pub(super) fn leads(&mut self, id: UpstreamId, number: u64, hash: B256) {
        if self.is_confirmed(id, hash) {
            return;
        }
        let before = self.led.take().filter(|led| led.by == id);
        self.led = Some(UnconfirmedLead {
            by: id,
            number,
            hash,
            is_published: false,
            run: before.map_or(0, |led| led.run) + 1,
        });
    }

    /// Records that another upstream reports the block that one leads with.
    fn confirm(&mut self, id: UpstreamId, reported: ReportedBlock) {
        self.led
            .take_if(|led| led.by != id && (led.hash == reported.hash || led.hash == reported.parent));
    }

    /// Checks if another upstream has reported this block.
    fn is_confirmed(&self, id: UpstreamId, block: B256) -> bool {
        self.connected()
            .any(|other| other != id && self.members[other].reported(block))
    }

    /// Records a new connection, over which heads may have been reported already.
    pub(super) fn up(&mut self, id: UpstreamId) {
        if let Some(member) = self.members.get_mut(id) {
            member.connected = true;
        }
    }

    /// Records that the connection was lost, or could not be made.
    pub(super) fn down(&mut self, id: UpstreamId) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        self.began = self.began.filter(|_| !member.connected);
        *member = Candidate {
            leads_at: member.leads_at,
            cordoned: member.cordoned,
            ..Candidate::default()
        };
    }

    /// Keeps an upstream out of use, or ends that. Its heads are still taken note of, but it counts as not connected in
    /// every choice and vote. Returns `false` where nothing changes.
    pub(super) fn cordon(&mut self, id: UpstreamId, cordoned: bool) -> bool {
        let Some(member) = self.members.get_mut(id) else {
            return false;
        };
        if cordoned {
            member.sound_since = None;
        }
        std::mem::replace(&mut member.cordoned, cordoned) != cordoned
    }

    /// Checks if the operator keeps an upstream out of use.
    pub(super) fn is_cordoned(&self, id: UpstreamId) -> bool {
        self.members[id].cordoned
    }

    /// Checks if an upstream is connected, even if it is kept out of use.
    pub(super) fn is_connected(&self, id: UpstreamId) -> bool {
        self.members[id].connected
    }

    /// Records an announced head. `false` for a block that the upstream reported before: late or repeated.
    pub(super) fn announced(&mut self, id: UpstreamId, reported: ReportedBlock) -> bool {
        if !self.contains(id) {
            return false;
        }
        self.confirm(id, reported);
        let Some(member) = self.members.get_mut(id) else {
            return false;
        };
        let news = !member.reported(reported.hash);
        if news {
            member.record(reported, &self.published);
        }
        news
    }

    /// Records a fetched head, which may be a step back. `false` where the head has not moved.
    pub(super) fn fetched(&mut self, id: UpstreamId, reported: ReportedBlock) -> bool {
        if !self.contains(id) {
            return false;
        }
        self.confirm(id, reported);
        let Some(member) = self.members.get_mut(id) else {
            return false;
        };
        let news = member.chain.back() != Some(&(reported.number, reported.hash));
        if news {
            member.record(reported, &self.published);
        }
        news
    }

    /// Returns the time since the first report of the oldest block that this upstream has not reached; `None` without
    /// a connection.
    pub(super) fn lag(&self, id: UpstreamId, now: Duration) -> Option<Duration> {
        let member = &self.members[id];
        member
            .connected
            .then(|| self.sights.lag(member.number().unwrap_or(0), now))
    }

    /// Returns the upstream to ask for a block with this hash at this attempt, counted from 0, and the number of
    /// candidates; `None` without a connected upstream. Those that lag or are forked come last, since they may not
    /// answer; among the others those that reported the block come first, and the one in use before its equals.
    pub(super) fn pick_for_block(&self, block: Option<B256>, attempt: u32) -> Option<(UpstreamId, u32)> {
        let order = self.by_preference(block);
        let among = u32::try_from(order.len()).unwrap_or(u32::MAX);
        let turn = attempt.checked_rem(among)?;
        Some((order[turn as usize], among))
    }

    /// Returns the connected upstreams, in the order in which they are asked for a block.
    pub(super) fn by_preference(&self, block: Option<B256>) -> Vec<UpstreamId> {
        let mut order: Vec<UpstreamId> = self.connected().collect();
        // Stable: equals stay in the order of priority.
        order.sort_by_key(|id| {
            let member = &self.members[*id];
            // A call that concerns no block goes to the upstream in use.
            let (unsound, reported) = match block {
                Some(hash) => (member.sound_since.is_none(), member.reported(hash)),
                None => (false, true),
            };
            (unsound, !reported, Some(*id) != self.active)
        });
        order
    }

    /// Returns the upstreams that have reached this number and are not doubted, by priority.
    pub(super) fn reached(&self, number: u64) -> impl Iterator<Item = UpstreamId> {
        let reached = move |id: &UpstreamId| self.number(*id) >= number && self.members[*id].doubted_since.is_none();
        self.connected().filter(reached)
    }

    /// Returns the upstreams that have this block, by priority: those that have it on their chain or as their highest
    /// one (behind a balancer later reports may be lower). If no upstream is known to have the block, returns those
    /// that have reached its number on an unknown branch.
    pub(super) fn have(&self, number: u64, hash: B256) -> Vec<UpstreamId> {
        let reported = |id: &UpstreamId| {
            let member = &self.members[*id];
            member.reported(hash) || member.highest == Some((number, hash))
        };
        let known: Vec<UpstreamId> = self.connected().filter(reported).collect();
        if !known.is_empty() {
            return known;
        }
        let unknown = |id: &UpstreamId| {
            let member = &self.members[*id];
            self.number(*id) >= number
                && member.hash_at(number).is_none()
                && member.outvoted_since.is_none()
                && member.doubted_since.is_none()
        };
        self.connected().filter(unknown).collect()
    }

    /// Returns the connected upstreams that are not kept out of use, by priority.
    pub(super) fn connected(&self) -> impl Iterator<Item = UpstreamId> {
        let available = self.members.iter().filter(|(_, member)| member.is_available());
        available.map(|(id, _)| id)
    }

    fn number(&self, id: UpstreamId) -> u64 {
        self.members[id].number().unwrap_or(0)
    }

    /// Returns the highest height that counts: one whose block leads to the published chain, or that two upstreams
    /// have reached. Outvoted upstreams do not count, or else no upstream could be fit to replace them.
    fn newest(&self) -> Option<u64> {
        let mut heights: Vec<(u64, bool)> = self
            .connected()
            .filter(|id| self.members[*id].outvoted_since.is_none())
            .map(|id| (self.number(id), self.leads_to_published(id)))
            .collect();
        heights.sort_unstable_by_key(|(number, _)| Reverse(*number));
        let all_count = self.published.newest().is_none() || heights.len() == 1;
        let mut counts = heights
            .iter()
            .enumerate()
            .filter(|(place, (_, leads_to_published))| all_count || *leads_to_published || *place > 0);
        counts.next().map(|(_, (number, _))| *number)
    }
}

#[cfg(test)]
mod tests;
