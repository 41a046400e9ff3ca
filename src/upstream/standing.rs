//! Ranking of the upstreams, and the choice of the one in use. No I/O, no clock: times are passed in.
//!
//! ```text
//!             the first that connects          it lags or is forked, and there is a refuge
//!   nothing ---------------------------> A ------------------------------------------------> B
//!   in use  <--------------------------- in use <------------------------------------------- in use
//!             lost, and no other stands        A is better by priority and was sound for a while
//! ```
//!
//! Lag is measured in time, not in blocks: the time since another upstream first reported the oldest block that this
//! one has not reached. So one `patience` fits a chain with a block every 12 seconds and one with four blocks a second.
//!
//! A height counts against the others only where its parents lead to the published chain, or where two upstreams report
//! it: a single node can report any number. An upstream whose height does not count is doubted: it is never a refuge,
//! and it is left when it is in use and stays doubted. Its head may be a real jump; [`super::proof`] walks from there
//! to the published chain.
//!
//! Switches do not flap: an upstream is left for lag or a fork only for another one with less than half of `patience`
//! of lag, so that it takes time until that one can be left too; and one of better priority is taken back only after it
//! was sound without interruption, or at once where all have just connected.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use alloy_primitives::B256;

use super::UpstreamId;
use super::published::Published;

/// Blocks remembered of each upstream, to compare branches and to know which upstreams can be asked for a block.
const MAX_CHAIN: usize = 128;

/// First reports remembered. With four blocks a second that is four minutes, far longer than any `patience`.
const MAX_SIGHTS: usize = 1024;

/// Blocks by which an upstream may trail the newest one and still be chosen by its priority alone.
const NEAR: u64 = 2;

/// Largest difference of numbers between a parent and its child at which the child's number is credible: a node that
/// names any parent may name any number. Filecoin's longest runs of null rounds are a tenth of it.
pub(crate) const MAX_HOLE: u64 = 128;

/// Wait before a walk that led nowhere is repeated, as a multiple of `patience`.
const WALK_AGAIN: u32 = 8;

/// Time for which an upstream may not lead again after a block of its own was published and taken back, as a multiple
/// of `patience`.
const LEAD_AGAIN: u32 = 40;

/// Blocks with which one upstream of two leads while the other has none of them.
const MAX_LED: u32 = 16;

/// A head as its node reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub number: u64,
    pub hash: B256,
    pub parent: B256,
}

/// Reason for a change of the upstream in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// No upstream was in use.
    First,
    /// The connection ended.
    Lost,
    /// Lag behind the others, for this long.
    Lagging(Duration),
    /// Branch other than that of most upstreams.
    Forked,
    /// Height that did not count, see [`Standing::is_doubted`].
    Doubted,
    /// Return to an upstream of better priority that has been sound for long enough.
    TakeBack,
}

/// A change of the upstream in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switch {
    pub from: Option<UpstreamId>,
    pub to: Option<UpstreamId>,
    pub why: Why,
}

/// Head to be proved by a walk along its parents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub id: UpstreamId,
    pub number: u64,
    pub hash: B256,
    /// Lowest parent that is known, from which the walk goes on: the highest number that it can have, and its hash.
    pub below: (u64, B256),
    /// Lowest number that is remembered of the published chain: a walk below it finds nothing.
    pub oldest: u64,
}

/// All upstreams, as reported so far.
#[derive(Debug)]
pub(super) struct Standing {
    /// Longest lag or fork that is tolerated of the upstream in use.
    patience: Duration,
    take_back_after: Duration,
    members: Vec<Member>,
    active: Option<UpstreamId>,
    /// Time at which the first one that connected came into use; `None` once one is lost.
    began: Option<Duration>,
    sights: FirstSights,
    published: Published,
    led: Option<Led>,
}

/// Newest block accepted from an upstream that is not in use, and that no other has reported.
#[derive(Debug)]
struct Led {
    by: UpstreamId,
    number: u64,
    hash: B256,
    is_published: bool,
    /// Such blocks one after the other.
    run: u32,
}

#[derive(Debug, Default)]
struct Member {
    connected: bool,
    /// Newest part of its chain: number and hash, each the parent of the next. Numbers ascend, and some have no block.
    /// The first entry may be known as a parent only, and then has the highest number that it can have.
    chain: VecDeque<(u64, B256)>,
    /// Highest block that it reported over this connection.
    highest: Option<(u64, B256)>,
    outvoted_since: Option<Duration>,
    /// Number of the highest published block that is known to be on its chain; `None` where its chain leads to none.
    root: Option<u64>,
    doubted_since: Option<Duration>,
    /// Earliest time of another walk from its chain.
    walk_at: Option<Duration>,
    /// Time since which it has been connected, without lag and not forked.
    sound_since: Option<Duration>,
    /// Earliest time at which it may lead, see [`Standing::may_lead`]. Survives a reconnect.
    leads_at: Duration,
}

impl Standing {
    pub fn new(members: usize, patience: Duration, take_back_after: Duration) -> Self {
        Self {
            patience,
            take_back_after,
            members: (0..members).map(|_| Member::default()).collect(),
            active: None,
            began: None,
            sights: FirstSights::default(),
            published: Published::default(),
            led: None,
        }
    }

    /// Records the head that clients were shown, or `None` where they have to begin anew.
    pub fn published(&mut self, head: Option<(u64, B256)>, now: Duration) {
        self.published.head(head);
        if let Some(led) = &mut self.led {
            let (by, was_published) = (led.by, led.is_published);
            led.is_published = self.published.number_of(led.hash).is_some();
            if was_published && !led.is_published {
                if head.is_some_and(|(number, _)| number <= led.number) {
                    self.members[by.0].leads_at = now + self.patience * LEAD_AGAIN;
                }
                self.led = None;
            }
        }
        for member in &mut self.members {
            member.root = match head {
                Some((number, hash)) if member.told(hash) => Some(number),
                // What is at this number now is not on its chain, as far as is known.
                Some((number, _)) => member.root.map(|root| root.min(number.saturating_sub(1))),
                None => None,
            };
        }
    }

    /// Records a block below those that clients were shown.
    pub fn published_past(&mut self, number: u64, hash: B256) {
        self.published.past(number, hash);
    }

    /// Returns the newest published block.
    pub fn published_head(&self) -> Option<(u64, B256)> {
        self.published.newest()
    }

    /// See [`Published::some`].
    pub fn some_published(&self) -> Vec<B256> {
        self.published.some()
    }

    /// Returns the number of a block that was published.
    pub fn published_number(&self, hash: B256) -> Option<u64> {
        self.published.number_of(hash)
    }

    /// `true` where it says that it is higher than can be believed: no parents lead from its head to the published chain, as far as
    /// is known, or two others contradict it, and no other has come so far. One that is alone is never doubted, and before the
    /// first block none is.
    pub fn is_doubted(&self, id: UpstreamId) -> bool {
        let member = &self.members[id.0];
        member.connected
            && !self.leads_to_published(id)
            && self.published.newest().is_some()
            && self.connected().count() > 1
            && self.newest().is_some_and(|newest| self.number(id) > newest)
    }

    /// Returns a head that has been doubted for a while, and from which no walk was tried lately.
    pub fn unproved(&self, now: Duration) -> Option<Claim> {
        let oldest = self.published.oldest()?;
        self.connected().find_map(|id| {
            let member = &self.members[id.0];
            let doubted_for = now.saturating_sub(member.doubted_since?);
            let is_due = member.walk_at.is_none_or(|at| now >= at);
            let (number, hash) = *member.chain.back()?;
            let below = *member.chain.front()?;
            (doubted_for >= self.patience / 4 && is_due).then_some(Claim {
                id,
                number,
                hash,
                below,
                oldest,
            })
        })
    }

    /// The walk from a head has come to the published block of this number, or to none.
    pub fn walked(&mut self, claim: Claim, root: Option<u64>, now: Duration) {
        let member = &mut self.members[claim.id.0];
        if root.is_some() && member.told(claim.hash) {
            member.root = member.root.max(root);
        }
        if !self.leads_to_published(claim.id) {
            self.members[claim.id.0].walk_at = Some(now + self.patience * WALK_AGAIN);
        }
    }

    /// Checks that the chain leads to the published one, and that no two others have published blocks where it has others: one
    /// node alone can invent a branch that begins at a published block.
    fn leads_to_published(&self, id: UpstreamId) -> bool {
        let Some(root) = self.members[id.0].root else {
            return false;
        };
        let above = |other: &UpstreamId| self.members[other.0].root.is_some_and(|own| own > root);
        self.number(id) <= root || self.connected().filter(above).count() < 2
    }

    /// Checks if a block on top of the newest one is published on the word of this upstream, although another one is in
    /// use: clients see a head when it is known, not when the upstream in use has it. Of three or more upstreams another
    /// one must have reported it, since one alone can invent blocks; of two, this one must not have led to a dropped block
    /// within [`LEAD_AGAIN`].
    pub fn may_lead(&self, id: UpstreamId, block: B256, now: Duration) -> bool {
        let member = &self.members[id.0];
        let is_trusted = now >= member.leads_at && member.outvoted_since.is_none();
        let run = self.led.as_ref().map_or(0, |led| led.run);
        is_trusted && run < MAX_LED && self.connected().count() < 3 || self.is_confirmed(id, block)
    }

    /// Records that this block is to be published on the word of this upstream alone.
    pub fn leads(&mut self, id: UpstreamId, number: u64, hash: B256) {
        if self.is_confirmed(id, hash) {
            return;
        }
        let before = self.led.take().filter(|led| led.by == id);
        self.led = Some(Led {
            by: id,
            number,
            hash,
            is_published: false,
            run: before.map_or(0, |led| led.run) + 1,
        });
    }

    /// Records that another upstream reports the block that one leads with.
    fn confirm(&mut self, id: UpstreamId, told: Told) {
        self.led
            .take_if(|led| led.by != id && (led.hash == told.hash || led.hash == told.parent));
    }

    /// Checks if another upstream has reported this block.
    fn is_confirmed(&self, id: UpstreamId, block: B256) -> bool {
        self.connected()
            .any(|other| other != id && self.members[other.0].told(block))
    }

    /// Records a new connection, over which heads may have been reported already.
    pub fn up(&mut self, id: UpstreamId) {
        self.members[id.0].connected = true;
    }

    /// Records that there is no connection.
    pub fn down(&mut self, id: UpstreamId) {
        let member = &mut self.members[id.0];
        self.began = self.began.filter(|_| !member.connected);
        *member = Member {
            leads_at: member.leads_at,
            ..Member::default()
        };
    }

    /// Records an announced head. `false` for a block that the upstream reported before: late or repeated.
    pub fn announced(&mut self, id: UpstreamId, told: Told) -> bool {
        self.confirm(id, told);
        let member = &mut self.members[id.0];
        let news = !member.told(told.hash);
        if news {
            member.tell(told, &self.published);
        }
        news
    }

    /// Records the answer to a question for the head, which may be a step back. `false` where the head has not moved.
    pub fn fetched(&mut self, id: UpstreamId, told: Told) -> bool {
        self.confirm(id, told);
        let member = &mut self.members[id.0];
        let news = member.chain.back() != Some(&(told.number, told.hash));
        if news {
            member.tell(told, &self.published);
        }
        news
    }

    /// Returns the time since the first report of the oldest block that it has not reached; `None` without a
    /// connection.
    pub fn lag(&self, id: UpstreamId, now: Duration) -> Option<Duration> {
        let member = &self.members[id.0];
        member
            .connected
            .then(|| self.sights.lag(member.number().unwrap_or(0), now))
    }

    /// Decides which upstream should be in use; to be called after every change, and now and then.
    pub fn decide(&mut self, now: Duration) -> Option<Switch> {
        for id in (0..self.members.len()).map(UpstreamId) {
            let outvoted = self.is_outvoted(id);
            let since = &mut self.members[id.0].outvoted_since;
            *since = outvoted.then(|| since.unwrap_or(now));
        }
        for id in (0..self.members.len()).map(UpstreamId) {
            let doubted = self.is_doubted(id);
            let since = &mut self.members[id.0].doubted_since;
            *since = doubted.then(|| since.unwrap_or(now));
        }
        if let Some(newest) = self.newest() {
            self.sights.note(newest, now);
            // A block that no upstream reports any more does not count as lag.
            self.sights.forget_above(newest);
        }
        for id in (0..self.members.len()).map(UpstreamId) {
            let sound = !self.is_forked(id, now)
                && !self.was_doubted(id, now)
                && self.lag(id, now).is_some_and(|lag| lag < self.patience);
            let since = &mut self.members[id.0].sound_since;
            *since = sound.then(|| since.unwrap_or(now));
        }
        let (to, why) = self.verdict(now)?;
        if why == Why::First {
            self.began = Some(now);
        }
        let from = std::mem::replace(&mut self.active, to);
        Some(Switch { from, to, why })
    }

    fn verdict(&self, now: Duration) -> Option<(Option<UpstreamId>, Why)> {
        let Some(active) = self.active else {
            return self.shelter(now).map(|to| (Some(to), Why::First));
        };
        let Some(lag) = self.lag(active, now) else {
            return Some((self.shelter(now), Why::Lost));
        };
        if lag >= self.patience
            && let Some(to) = self.refuge(now)
        {
            return Some((Some(to), Why::Lagging(lag)));
        }
        if self.is_forked(active, now)
            && let Some(to) = self.refuge(now)
        {
            return Some((Some(to), Why::Forked));
        }
        // All of the published chain may be from the doubted upstream: only one that has reached its head is better.
        if self.was_doubted(active, now)
            && let Some(to) = self.refuge(now)
            && self.published.newest().is_some_and(|(head, _)| self.number(to) >= head)
        {
            return Some((Some(to), Why::Doubted));
        }
        // Which one is the first to connect is chance.
        let is_start = |began| now.saturating_sub(began) < self.patience;
        let wait = if self.began.is_some_and(is_start) {
            Duration::ZERO
        } else {
            self.take_back_after
        };
        let recovered = |id: &UpstreamId| {
            let since = self.members[id.0].sound_since;
            since.is_some_and(|since| now.saturating_sub(since) >= wait) && self.is_fit(*id, now) && self.is_near(*id)
        };
        let better = (0..active.0).map(UpstreamId).find(recovered)?;
        Some((Some(better), Why::TakeBack))
    }

    /// Chooses a replacement for an upstream that is still connected: only one that is clearly better.
    fn refuge(&self, now: Duration) -> Option<UpstreamId> {
        let fit = || self.connected().filter(|id| self.is_fit(*id, now));
        fit().find(|id| self.is_near(*id)).or_else(|| fit().next())
    }

    /// Chooses an upstream where none is in use: any that is connected, preferably one that is fit, else the highest.
    fn shelter(&self, now: Duration) -> Option<UpstreamId> {
        let highest = || {
            self.connected()
                .max_by_key(|id| (!self.is_doubted(*id), self.number(*id), Reverse(id.0)))
        };
        self.refuge(now).or_else(highest)
    }

    /// Checks if an upstream may replace another: its lag is below half of `patience`, so that it is not the next one
    /// to be left.
    fn is_fit(&self, id: UpstreamId, now: Duration) -> bool {
        let member = &self.members[id.0];
        member.outvoted_since.is_none()
            && member.doubted_since.is_none()
            && self.lag(id, now).is_some_and(|lag| lag < self.patience / 2)
    }

    fn is_near(&self, id: UpstreamId) -> bool {
        let Some(newest) = self.newest() else { return true };
        let number = self.number(id);
        // Where not every number has a block, two blocks may be many numbers.
        let ahead = |id: UpstreamId| {
            let blocks = self.members[id.0].above(number);
            self.number(id) == newest && blocks.is_some_and(|blocks| blocks as u64 <= NEAR)
        };
        number.saturating_add(NEAR) >= newest || self.connected().any(ahead)
    }

    fn is_forked(&self, id: UpstreamId, now: Duration) -> bool {
        let since = self.members[id.0].outvoted_since;
        since.is_some_and(|since| now.saturating_sub(since) >= self.patience)
    }

    fn was_doubted(&self, id: UpstreamId, now: Duration) -> bool {
        let since = self.members[id.0].doubted_since;
        since.is_some_and(|since| now.saturating_sub(since) >= self.patience)
    }

    /// Checks if, at the highest block that can be compared, two or more agree on another hash, and more than agree
    /// with this one. Of two that disagree neither is right; priority decides.
    fn is_outvoted(&self, id: UpstreamId) -> bool {
        if self.connected().count() < 3 {
            return false;
        }
        let member = &self.members[id.0];
        // Below the end of its chain that is remembered, as far as it is the published one and two others have come.
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
            let votes: Vec<B256> = others.filter_map(|id| self.members[id.0].hash_at(number)).collect();
            if votes.len() >= 2 {
                let count = |hash: B256| votes.iter().filter(|vote| **vote == hash).count();
                let against = votes.iter().filter(|vote| **vote != own).map(|vote| count(*vote)).max();
                return against.is_some_and(|against| against >= 2 && against > count(own) + 1);
            }
        }
        false
    }

    /// Returns the upstream to ask for a block with this hash at this attempt, and the number of candidates. Those that
    /// lag or are forked come last, for they may not answer; among the others those that reported the block come first,
    /// and the one in use before its equals.
    pub fn whom_to_ask(&self, block: Option<B256>, attempt: u32) -> Option<(UpstreamId, u32)> {
        let order = self.order_to_ask(block);
        let among = u32::try_from(order.len()).unwrap_or(u32::MAX);
        let turn = attempt.checked_rem(among)?;
        Some((order[turn as usize], among))
    }

    /// Returns the connected upstreams, in the order in which they are asked for a block.
    pub fn order_to_ask(&self, block: Option<B256>) -> Vec<UpstreamId> {
        let mut order: Vec<UpstreamId> = self.connected().collect();
        order.sort_by_key(|id| {
            let member = &self.members[id.0];
            // A question that concerns no block goes to the upstream in use.
            let (unsound, told) = match block {
                Some(hash) => (member.sound_since.is_none(), member.told(hash)),
                None => (false, true),
            };
            (unsound, !told, Some(*id) != self.active, id.0)
        });
        order
    }

    /// Returns the upstreams that have reached this number and are not doubted, by priority.
    pub fn reached(&self, number: u64) -> impl Iterator<Item = UpstreamId> {
        let reached = move |id: &UpstreamId| self.number(*id) >= number && self.members[id.0].doubted_since.is_none();
        self.connected().filter(reached)
    }

    /// Returns the upstreams that have this block, by priority: those that have it on their chain or as their highest
    /// one (behind a balancer later reports may be lower); where none is known to, those that have come as far and
    /// whose branch is not known.
    pub fn have(&self, number: u64, hash: B256) -> Vec<UpstreamId> {
        let told = |id: &UpstreamId| {
            let member = &self.members[id.0];
            member.told(hash) || member.highest == Some((number, hash))
        };
        let known: Vec<UpstreamId> = self.connected().filter(told).collect();
        if !known.is_empty() {
            return known;
        }
        let unknown = |id: &UpstreamId| {
            let member = &self.members[id.0];
            self.number(*id) >= number
                && member.hash_at(number).is_none()
                && member.outvoted_since.is_none()
                && member.doubted_since.is_none()
        };
        self.connected().filter(unknown).collect()
    }

    /// Returns the connected upstreams, by priority.
    pub fn connected(&self) -> impl Iterator<Item = UpstreamId> {
        let members = self.members.iter().enumerate();
        members
            .filter(|(_, member)| member.connected)
            .map(|(i, _)| UpstreamId(i))
    }

    fn number(&self, id: UpstreamId) -> u64 {
        self.members[id.0].number().unwrap_or(0)
    }

    /// Returns the highest height that counts: one that leads to the published chain, or that two upstreams have
    /// reached. Upstreams that are outvoted do not count, or none could be fit to replace them.
    fn newest(&self) -> Option<u64> {
        let mut heights: Vec<(u64, bool)> = self
            .connected()
            .filter(|id| self.members[id.0].outvoted_since.is_none())
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

impl Member {
    fn number(&self) -> Option<u64> {
        self.chain.back().map(|(number, _)| *number)
    }

    fn hash_at(&self, number: u64) -> Option<B256> {
        let at = self.chain.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.chain[at].1)
    }

    /// Counts its blocks above this number, where its chain is known so far down.
    fn above(&self, number: u64) -> Option<usize> {
        let at = self.chain.partition_point(|(own, _)| *own <= number);
        at.checked_sub(1).map(|_| self.chain.len() - at)
    }

    fn told(&self, hash: B256) -> bool {
        self.chain.iter().rev().any(|(_, own)| *own == hash)
    }

    /// Appends a head. Only blocks that lead to it stay: the rest may not be this node's chain any more.
    fn tell(&mut self, head: Told, published: &Published) {
        while self.number().is_some_and(|newest| newest >= head.number) {
            self.chain.pop_back();
        }
        let below = head.number.checked_sub(1);
        let no_parent = head.parent == B256::ZERO;
        let follows = |(number, hash): &(u64, B256)| *hash == head.parent || no_parent && Some(*number) == below;
        // Any node knows the published head, and can write any number above it.
        let is_near = |parent: u64| head.number.saturating_sub(parent) <= MAX_HOLE;
        if !self.chain.back().is_some_and(|own| follows(own) && is_near(own.0)) {
            self.chain.clear();
            let parent = below.filter(|_| !no_parent).map(|number| (number, head.parent));
            self.chain.extend(parent);
            self.root = published.number_of(head.parent).filter(|number| is_near(*number));
            self.walk_at = self.walk_at.filter(|_| self.root.is_none());
        }
        self.root = published.number_of(head.hash).or(self.root);
        self.chain.push_back((head.number, head.hash));
        if self.highest.is_none_or(|(number, _)| head.number >= number) {
            self.highest = Some((head.number, head.hash));
        }
        if self.chain.len() > MAX_CHAIN {
            self.chain.pop_front();
        }
    }
}

/// Times at which blocks were first reported: ascending numbers, each with the time for itself and the numbers below it
/// down to the entry before.
#[derive(Debug, Default)]
struct FirstSights(VecDeque<(u64, Duration)>);

impl FirstSights {
    fn note(&mut self, number: u64, now: Duration) {
        if self.0.back().is_none_or(|(newest, _)| number > *newest) {
            self.0.push_back((number, now));
        }
        if self.0.len() > MAX_SIGHTS {
            self.0.pop_front();
        }
    }

    fn forget_above(&mut self, number: u64) {
        while let Some((newest, at)) = self.0.pop_back() {
            if newest <= number {
                return self.0.push_back((newest, at));
            }
            if self.0.back().is_none_or(|(before, _)| *before < number) {
                return self.0.push_back((number, at));
            }
        }
    }

    fn lag(&self, head: u64, now: Duration) -> Duration {
        let missed = self.0.partition_point(|(number, _)| *number <= head);
        self.0
            .get(missed)
            .map_or(Duration::ZERO, |(_, at)| now.saturating_sub(*at))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(4);
    const TAKE_BACK: Duration = Duration::from_secs(10);

    /// `a3` is block 3 of branch a; its parent is block 2 of the same branch. That of `a8<5` is block 5, that of `b6<a5` block 5
    /// of branch a.
    fn told(name: &str) -> Told {
        let (name, parent) = name
            .split_once('<')
            .map_or((name, None), |(name, parent)| (name, Some(parent)));
        let number: u64 = name[1..].parse().unwrap();
        let hash = |branch: u8, number: u64| {
            let mut hash = B256::with_last_byte(branch);
            hash[..8].copy_from_slice(&number.to_be_bytes());
            hash
        };
        let own = name.as_bytes()[0];
        let parent = match parent.map(|parent| (parent.as_bytes()[0], parent)) {
            None => hash(own, number.wrapping_sub(1)),
            Some((branch, parent)) if branch.is_ascii_alphabetic() => hash(branch, parent[1..].parse().unwrap()),
            Some((_, parent)) => hash(own, parent.parse().unwrap()),
        };
        Told {
            number,
            hash: hash(own, number),
            parent,
        }
    }

    /// Story: `0+a3` upstream 0 connects with head a3, `0a4` it reports a4, `0-` it is lost, `+5` five seconds pass,
    /// with a decision at each quarter of a second, `=a3` clients were shown a3. The outcome lists the switches with
    /// the second of each.
    fn story(events: &str) -> (Standing, String) {
        let mut standing = Standing::new(4, PATIENCE, TAKE_BACK);
        let mut now = Duration::ZERO;
        let mut out = Vec::new();
        let mut note = |switch: Option<Switch>, now: Duration| {
            let Some(Switch { from, to, why }) = switch else {
                return;
            };
            let name = |id: Option<UpstreamId>| id.map_or("-".to_owned(), |id| id.0.to_string());
            let why = match why {
                Why::Lagging(lag) => format!("lagging {lag:?}"),
                why => format!("{why:?}").to_lowercase(),
            };
            out.push(format!("{}>{} {why} @{:?}", name(from), name(to), now));
        };
        for event in events.split_whitespace() {
            if let Some(seconds) = event.strip_prefix('+') {
                for _ in 0..seconds.parse::<u32>().unwrap() * 4 {
                    now += Duration::from_millis(250);
                    note(standing.decide(now), now);
                }
                continue;
            }
            if let Some(head) = event.strip_prefix('=') {
                let Told { number, hash, .. } = told(head);
                standing.published(Some((number, hash)), now);
                note(standing.decide(now), now);
                continue;
            }
            let (id, what) = event.split_at(1);
            let id = UpstreamId(id.parse().unwrap());
            let head = what.trim_start_matches('+');
            if what == "-" {
                standing.down(id);
            } else if !head.is_empty() {
                standing.announced(id, told(head));
            }
            if what.starts_with('+') {
                standing.up(id);
            }
            note(standing.decide(now), now);
        }
        (standing, out.join("; "))
    }

    #[track_caller]
    fn check(events: &str, expect: Expect) {
        expect.assert_eq(&story(events).1);
    }

    #[test]
    fn the_first_that_connects_is_used_and_priority_is_repaired() {
        check("1+a5 +3 0+a5 +60", expect!["->1 first @0ns; 1>0 takeback @3s"]);
        // It is behind: it has to come up.
        check("1+a9 +1 0+a5 +1 0a9 +60", expect!["->1 first @0ns; 1>0 takeback @2s"]);
        // Once all had time to connect, it is one that comes and goes.
        check("1+a5 +4 0+a5 +9", expect!["->1 first @0ns"]);
        check("1+a5 +4 0+a5 +11", expect!["->1 first @0ns; 1>0 takeback @14s"]);
        check("1+a5 2+a5 2- 0+a5 +9", expect!["->1 first @0ns"]);
    }

    #[test]
    fn a_lost_one_is_left_for_the_next_by_priority() {
        check("0+a5 1+a5 2+a5 +1 0-", expect!["->0 first @0ns; 0>1 lost @1s"]);
        check(
            "0+a5 0- +3 0+a9",
            expect!["->0 first @0ns; 0>- lost @0ns; ->0 first @3s"],
        );
        check("0+a5 0- 1+", expect!["->0 first @0ns; 0>- lost @0ns; ->1 first @0ns"]);
    }

    #[test]
    fn one_that_is_far_behind_is_no_refuge_while_another_is_not() {
        check("0+a50 1+a5 2+a49 0-", expect!["->0 first @0ns; 0>2 lost @0ns"]);
        check("0+a50 1+a4 2+a5 +9 0-", expect!["->0 first @0ns; 0>2 lost @9s"]);
    }

    #[test]
    fn numbers_without_a_block_are_no_distance() {
        // Two blocks behind, by whatever numbers: near enough to be chosen by its priority.
        check(
            "0+a5 1+a5 2+a5 2a90<5 2a95<90 0-",
            expect!["->0 first @0ns; 0>1 lost @0ns"],
        );
        check(
            "0+a5 1+a5 2+a5 2a90<5 2a95<90 2a97<95 0-",
            expect!["->0 first @0ns; 0>2 lost @0ns"],
        );
        let (standing, _) = story("0+a5 0a9<5 0a20<9 1+a20<9 2+a20<9");
        let hash = |name: &str| told(name).hash;
        assert_eq!(
            standing.have(9, hash("a9")),
            [UpstreamId(0), UpstreamId(1), UpstreamId(2)]
        );
        assert_eq!(standing.have(5, hash("a5")), [UpstreamId(0)]);
        let mut standing = standing;
        assert!(!standing.announced(UpstreamId(0), told("a9<5")), "late");
        assert!(
            !standing.announced(UpstreamId(1), told("a9<5")),
            "late, and known as a parent"
        );
        assert!(standing.announced(UpstreamId(1), told("b15<9")));
    }

    #[test]
    fn a_lagging_one_is_left_when_the_patience_is_over_and_not_before() {
        check("0+a5 1+a5 1a6 +3 0a6 +60", expect!["->0 first @0ns"]);
        check(
            "0+a5 1+a5 +7 1a6 +3 1a7 +3",
            expect!["->0 first @0ns; 0>1 lagging 4s @11s"],
        );
    }

    #[test]
    fn who_follows_at_some_distance_does_not_lag() {
        check(
            "0+a5 1+a5 1a6 +3 0a6 1a7 +3 0a7 1a8 +3 0a8 1a9 +3 0a9",
            expect!["->0 first @0ns"],
        );
    }

    #[test]
    fn nobody_lags_behind_blocks_that_nobody_has_any_more() {
        check("0+a9 1+a9 +1 1b7 +1 0b7 +60", expect!["->0 first @0ns"]);
        check("0+a9 1+a9 2+a99 2- +60", expect!["->0 first @0ns"]);
    }

    #[test]
    fn a_recovered_one_is_taken_back_after_a_while_without_interruption() {
        check(
            "0+a5 1+a5 0- +3 0+a5 +9 0- 0+a5 +9",
            expect!["->0 first @0ns; 0>1 lost @0ns"],
        );
        check(
            "0+a5 1+a5 0- +3 0+a5 +20",
            expect!["->0 first @0ns; 0>1 lost @0ns; 1>0 takeback @13s"],
        );
        // It is there again but lags: it is not sound before it has caught up.
        check(
            "0+a5 1+a5 0- 1a8 +5 0+a5 +20 0a8 +20",
            expect!["->0 first @0ns; 0>1 lost @0ns; 1>0 takeback @35s"],
        );
    }

    #[test]
    fn of_two_that_disagree_the_one_in_use_stays() {
        check("0+a5 1+b5 0a6 1b6 +60 0a7 1b7 +60", expect!["->0 first @0ns"]);
        check("0+a5 1+b5 2+a5 3+b5 +60", expect!["->0 first @0ns"]);
    }

    #[test]
    fn who_stays_alone_on_its_branch_is_left_and_comes_back_when_it_has_joined_the_others() {
        check(
            "0+a5 1+b5 2+b5 +3 0a6 1b6 2b6 +3",
            expect!["->0 first @0ns; 0>1 forked @4s"],
        );
        check("0+a5 1+b5 2+b5 +3 0b5 +60", expect!["->0 first @0ns"]);
        check(
            "0+a5 1+b5 2+b5 +4 +20 0b5 +20",
            expect!["->0 first @0ns; 0>1 forked @4s; 1>0 takeback @34s"],
        );
        // A fork that is longer than the others is still one.
        check(
            "0+a5 1+b5 2+b5 0a6 0a7 0a8 +5",
            expect!["->0 first @0ns; 0>1 forked @4s"],
        );
    }

    /// Nodes 0 and 1 are honest, 2 is not, or the other way round.
    #[test]
    fn a_height_counts_where_it_leads_to_the_published_chain_or_where_two_tell_it() {
        // The last by priority jumps by a million, and grows there: nobody leaves for it, and nobody lags.
        let jump = "0+a5 1+a5 2+a5 =a5 2b1000005";
        check(&format!("{jump} +60"), expect!["->0 first @0ns"]);
        check(
            &format!("{jump} +2 0a6 1a6 =a6 2b1000006 +2 0a7 1a7 =a7 2b1000007 +60"),
            expect!["->0 first @0ns"],
        );
        check(
            &format!("{jump} 0- +1 1-"),
            expect!["->0 first @0ns; 0>1 lost @0ns; 1>2 lost @1s"],
        );
        // It names the published head as the parent.
        check("0+a5 1+a5 2+a5 =a5 2a1000005<5 +60", expect!["->0 first @0ns"]);
        check(
            "0+a5 1+a5 2+a5 =a5 2a1000005<5 2a1000006 +60",
            expect!["->0 first @0ns"],
        );
        // The greatest number there is.
        check(
            "0+a5 1+a5 2+a5 =a5 2b9223372036854775807 +60",
            expect!["->0 first @0ns"],
        );
        // It recants, and is as good as before.
        check(
            &format!("{jump} +60 0a6 1a6 2a6 =a6 +1 0- 1-"),
            expect!["->0 first @0ns; 0>1 lost @61s; 1>2 lost @61s"],
        );
        // Two say it: now 0 lags, and it is true of 0 alone.
        check(
            "0+a5 1+a5 2+a5 =a5 2a1000005 +1 1a1000005 +60",
            expect!["->0 first @0ns; 0>1 lagging 4s @5s"],
        );
        // Of two only one goes on, block by block: it leads to what is published.
        check(
            "0+a5 1+a5 =a5 1a6 1a7 +60",
            expect!["->0 first @0ns; 0>1 lagging 4s @4s"],
        );
        // All jump.
        check(
            "0+a5 1+a5 2+a5 =a5 0a1000005 1a1000005 2a1000005 +60",
            expect!["->0 first @0ns"],
        );
    }

    /// As far above as one likes: more blocks than are remembered of each.
    fn branch(id: u8, from: u64, count: u64) -> String {
        let first = format!("{id}b{from}<{}", from - 1);
        let rest = (from + 1..from + count).map(|number| format!("{id}b{number}"));
        std::iter::once(first).chain(rest).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_branch_from_a_published_block_does_not_count_where_two_others_have_the_published_one() {
        // `b6<5` names b5 as its parent, so the branch begins with a block of its own on a5.
        let fork = |id: u8, count| branch(id, 6, count).replacen(&format!("{id}b6<5"), &format!("{id}b6<a5"), 1);
        for count in [1, 20, 300] {
            let ahead = fork(2, count);
            // The last by priority invents it: nobody leaves for it.
            check(
                &format!("0+a5 1+a5 2+a5 =a5 {ahead} 0a6 1a6 =a6 +60"),
                expect!["->0 first @0ns"],
            );
            // Of two that disagree nobody can say which one is right.
            check(
                &format!("0+a5 2+a5 =a5 {ahead} 0a6 =a6 +60"),
                if count == 1 {
                    expect!["->0 first @0ns"]
                } else {
                    expect!["->0 first @0ns; 0>2 lagging 4s @4s"]
                },
            );
            // The one in use invents it, and it is published.
            let published = (6..6 + count)
                .map(|number| format!("=b{number}"))
                .collect::<Vec<_>>()
                .join(" ");
            check(
                &format!("0+a5 1+a5 2+a5 =a5 {} {published} 1a6 2a6 +60", fork(0, count)),
                expect!["->0 first @0ns; 0>1 forked @4s"],
            );
            // Two go on, and one is stuck.
            check(
                &format!("0+a5 1+a5 2+a5 =a5 {} {} +60", fork(1, count), fork(2, count)),
                expect!["->0 first @0ns; 0>1 lagging 4s @4s"],
            );
        }
    }

    #[test]
    fn who_leads_to_a_block_that_is_taken_back_does_not_lead_again_soon() {
        // Upstreams of which this block is accepted, after 1 led to a block.
        let may_lead = |events: &str, block: &str, led: &str, then: &str| {
            let (mut standing, _) = story(events);
            if !led.is_empty() {
                standing.leads(UpstreamId(1), told(led).number, told(led).hash);
            }
            let mut now = Duration::ZERO;
            for event in then.split_whitespace() {
                match (event.strip_prefix('='), event.strip_prefix('+')) {
                    (Some(head), _) => standing.published(Some((told(head).number, told(head).hash)), now),
                    (_, Some(seconds)) => now += Duration::from_secs(seconds.parse().unwrap()),
                    _ if event == "-" => standing.down(UpstreamId(1)),
                    _ => _ = standing.announced(UpstreamId(0), told(event)),
                }
            }
            let ids = (0..3).map(UpstreamId);
            ids.filter(|id| standing.may_lead(*id, told(block).hash, now))
                .map(|id| id.0.to_string())
                .collect::<String>()
        };
        // Of three, one alone is not believed.
        assert_eq!(may_lead("0+a5 1+a5 2+a5 =a5 1a6", "a6", "", ""), "02");
        assert_eq!(may_lead("0+a5 1+a5 2+a5 =a5 1a6 2a6", "a6", "", ""), "012");
        // Of two either may be right, until one was not.
        let two = "0+a5 1+a5 =a5 1b6<a5";
        assert_eq!(may_lead(two, "b6", "", ""), "012");
        assert_eq!(may_lead(two, "b6", "b6", "=a5"), "012", "not published yet");
        assert_eq!(may_lead(two, "c6", "b6", "=b6 =a5"), "02");
        assert_eq!(may_lead(two, "c6", "b6", "=b6 =a6"), "02");
        assert_eq!(may_lead(two, "c6", "b6", "=b6 =a5 - +159"), "02");
        assert_eq!(may_lead(two, "c6", "b6", "=b6 =a5 - +160"), "012");
        // The other one had it too, and left it: a reorg.
        assert_eq!(may_lead(two, "c7", "b6", "=b6 b6<a5 c6<a5 =a5 =c6"), "012");
        // Clients begin anew.
        assert_eq!(may_lead(two, "c7", "b6", "=b6 =a99"), "012");
    }

    #[test]
    fn who_is_in_use_and_jumps_alone_is_left_for_one_that_has_what_was_published() {
        let jump = "0+a5 1+a5 2+a5 =a5 0b1000005";
        check(&format!("{jump} +60"), expect!["->0 first @0ns; 0>1 doubted @4s"]);
        check(
            &format!("{jump} +1 1a6 2a6 =a6 0b1000006 +1 1a7 2a7 =a7 +60"),
            expect!["->0 first @0ns; 0>1 doubted @4s"],
        );
        // It recants in time; or later, and is taken back after a while.
        check(&format!("{jump} +3 0a6 1a6 2a6 =a6 +60"), expect!["->0 first @0ns"]);
        check(
            &format!("{jump} +20 0a6 1a6 2a6 =a6 +20"),
            expect!["->0 first @0ns; 0>1 doubted @4s; 1>0 takeback @30s"],
        );
        // The others are behind what was published by it: it is all that there is.
        check(
            "0+a5 1+a5 2+a5 =a5 0a6 0a7 =a7 0a100 +3 =a100 +60",
            expect!["->0 first @0ns"],
        );
        // Alone it may say what it likes.
        check("0+a5 =a5 0b1000005 +60", expect!["->0 first @0ns"]);
        check("0+a5 1+a5 1- =a5 0b1000005 +60", expect!["->0 first @0ns"]);
    }

    #[test]
    fn a_head_in_doubt_is_walked_from_and_counts_when_the_walk_arrived() {
        let (mut standing, _) = story("0+a5 1+a5 =a5 1- 1+a50 +2");
        let now = Duration::from_secs(2);
        let claim = standing.unproved(now).expect("a claim");
        assert_eq!(
            (claim.id, claim.number, claim.below.0, claim.oldest),
            (UpstreamId(1), 50, 49, 5)
        );
        assert!(standing.is_doubted(UpstreamId(1)) && !standing.is_doubted(UpstreamId(0)));
        standing.walked(claim, None, now);
        assert_eq!(standing.unproved(now + PATIENCE), None, "not again soon");
        assert_eq!(standing.unproved(now + PATIENCE * WALK_AGAIN), Some(claim));
        // From above a leap, whatever is below it.
        let (leaping, _) = story("0+a5 1+a5 =a5 1a6 1a1000005<6 1a1000006 +2");
        let above = leaping.unproved(now).map(|claim| (claim.number, claim.below));
        assert_eq!(above, Some((1_000_006, (1_000_004, told("a6").hash))));
        // It went on meanwhile: what was proved is below its head.
        standing.announced(UpstreamId(1), told("a51"));
        standing.walked(claim, Some(5), now);
        assert!(!standing.is_doubted(UpstreamId(1)));
        assert_eq!(standing.decide(now), None);
        let lag = standing.lag(UpstreamId(0), now + PATIENCE);
        assert_eq!(lag, Some(PATIENCE));
        // Proved was another chain than this one.
        standing.announced(UpstreamId(1), told("b90"));
        standing.walked(claim, Some(5), now);
        assert!(standing.is_doubted(UpstreamId(1)));
    }

    #[test]
    fn who_is_doubted_is_not_asked_for_what_it_claims_to_have() {
        let (standing, _) = story("0+a5 1+a5 2+a5 =a5 2b1000005");
        let ids = |ids: Vec<UpstreamId>| ids.into_iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(ids(standing.reached(5).collect()), [0, 1]);
        assert_eq!(ids(standing.reached(6).collect()), Vec::<usize>::new());
        let a5 = told("a5");
        assert_eq!(ids(standing.have(a5.number, a5.hash)), [0, 1]);
    }

    #[test]
    fn a_block_is_asked_of_those_who_told_it_and_then_of_the_others() {
        let (standing, _) = story("0+a5 1+a5 2+a5 2a6");
        let asked = |name: &str, attempt| {
            let block = (!name.is_empty()).then(|| told(name).hash);
            standing.whom_to_ask(block, attempt).map(|(id, among)| (id.0, among))
        };
        assert_eq!([0, 1, 2, 3].map(|n| asked("a6", n).unwrap().0), [2, 0, 1, 2]);
        assert_eq!([0, 1, 2].map(|n| asked("a4", n).unwrap().0), [0, 1, 2]);
        assert_eq!([0, 1, 2].map(|n| asked("z1", n).unwrap().0), [0, 1, 2]);
        assert_eq!(asked("", 0), Some((0, 3)));
        let (standing, _) = story("0+a5 1+a5 2+a5 1a6 1a7 +5");
        let asked = |n| standing.whom_to_ask(Some(told("a5").hash), n).map(|(id, _)| id.0);
        assert_eq!([0, 1, 2].map(asked), [Some(1), Some(0), Some(2)], "0 and 2 lag");
        assert_eq!(
            standing.whom_to_ask(None, 0).map(|(id, _)| Some(id)),
            Some(standing.active)
        );
        assert_eq!(story("0+a5 0-").0.whom_to_ask(None, 3), None);
    }

    #[test]
    fn it_is_known_who_has_come_how_far_and_on_which_branch() {
        let (standing, _) = story("0+a5 1+b5 2+a5 2a6");
        let reached = |head: u64| standing.reached(head).map(|id| id.0).collect::<Vec<_>>();
        assert_eq!([5, 6, 7].map(reached), [vec![0, 1, 2], vec![2], vec![]]);
        let have = |name: &str| {
            let told = told(name);
            let have = standing.have(told.number, told.hash);
            have.into_iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(
            ["a5", "b5", "a6", "b6"].map(have),
            [vec![0, 2], vec![1], vec![2], vec![]]
        );
        assert_eq!(have("c1"), [0, 2], "further back than is remembered, but 1 is outvoted");
        // One address, two nodes behind it: it is not left for a moment's step back.
        let (mut standing, _) = story("0+a5");
        standing.fetched(UpstreamId(0), told("a4"));
        let a5 = told("a5");
        assert_eq!(standing.have(a5.number, a5.hash), [UpstreamId(0)]);
    }

    #[test]
    fn a_late_or_repeated_head_moves_nobody_back() {
        let (mut standing, _) = story("0+a5 0a6 0a7");
        assert!(!standing.announced(UpstreamId(0), told("a6")));
        assert_eq!(standing.number(UpstreamId(0)), 7);
        assert!(standing.fetched(UpstreamId(0), told("a6")), "unless it says so");
        assert_eq!(standing.number(UpstreamId(0)), 6);
        assert!(!standing.fetched(UpstreamId(0), told("a6")));
        assert!(standing.announced(UpstreamId(0), told("b5")));
        assert_eq!(standing.number(UpstreamId(0)), 5);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Up(usize, u64),
        Down(usize),
        /// A head of an upstream; `true` for one on a branch of its own.
        Head(usize, bool, u64),
        Wait(u64),
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => (0..4usize, 0..3u64).prop_map(|(id, ahead)| Event::Up(id, ahead)),
            1 => (0..4usize).prop_map(Event::Down),
            9 => (0..4usize, prop::bool::weighted(0.1), 0..3u64).prop_map(|(id, own, ahead)| Event::Head(id, own, ahead)),
            6 => (50..3_000u64).prop_map(Event::Wait),
        ]
    }

    proptest! {
        /// Invariants of any story: an upstream is in use exactly while one is connected, and switches are as rare as
        /// their causes. A take-back betters the priority, so between two other switches there are at most three.
        #[test]
        fn one_that_stands_is_in_use_and_nothing_flaps(events in prop::collection::vec(any_event(), 1..200)) {
            let mut standing = Standing::new(4, PATIENCE, TAKE_BACK);
            let (mut now, mut causes, mut switches) = (Duration::ZERO, 1, 0);
            let mut heads = [10u64; 4];
            for event in events {
                match event {
                    Event::Up(id, ahead) => {
                        heads[id] += ahead;
                        standing.announced(UpstreamId(id), told(&format!("a{}", heads[id])));
                        standing.up(UpstreamId(id));
                        causes += 1;
                    }
                    Event::Down(id) => {
                        standing.down(UpstreamId(id));
                        causes += 1;
                    }
                    Event::Head(id, own, ahead) => {
                        heads[id] += ahead;
                        let branch = if own { char::from(b'b' + id as u8) } else { 'a' };
                        standing.announced(UpstreamId(id), told(&format!("{branch}{}", heads[id])));
                    }
                    Event::Wait(millis) => now += Duration::from_millis(millis),
                }
                switches += u128::from(standing.decide(now).is_some());
                let active = standing.active;
                prop_assert_eq!(active.is_some(), standing.connected().next().is_some());
                prop_assert!(active.is_none_or(|id| standing.members[id.0].connected));
                prop_assert!(standing.decide(now).is_none(), "one look is enough");
            }
            let slow = now.as_millis() / (PATIENCE.as_millis() / 2);
            prop_assert!(switches <= 4 * (causes + slow), "{switches} switches, {causes} causes, {slow} patiences");
        }

        /// Leader of the ranking: an upstream that reports every block first and has the best priority is never left.
        #[test]
        fn who_leads_is_not_left(events in prop::collection::vec(any_event(), 1..200)) {
            let mut standing = Standing::new(4, PATIENCE, TAKE_BACK);
            let (mut now, mut head) = (Duration::ZERO, 10);
            standing.announced(UpstreamId(0), told("a10"));
            standing.up(UpstreamId(0));
            standing.decide(now);
            for event in events {
                head += 1;
                standing.announced(UpstreamId(0), told(&format!("a{head}")));
                match event {
                    Event::Up(id, back) if id > 0 => {
                        standing.announced(UpstreamId(id), told(&format!("a{}", head - back)));
                        standing.up(UpstreamId(id));
                    }
                    Event::Down(id) if id > 0 => standing.down(UpstreamId(id)),
                    Event::Head(id, own, back) if id > 0 => {
                        let branch = if own { char::from(b'b' + id as u8) } else { 'a' };
                        standing.announced(UpstreamId(id), told(&format!("{branch}{}", head - back)));
                    }
                    Event::Wait(millis) => now += Duration::from_millis(millis),
                    _ => {}
                }
                prop_assert_eq!(standing.decide(now), None);
                prop_assert_eq!(standing.active, Some(UpstreamId(0)));
            }
        }
    }
}
