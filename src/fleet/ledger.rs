//! Ledger of what each headwater of a fleet reported of its accounts. No I/O, no clock.
//!
//! A member reports sums that grow, and numbers its lines, so that a report that is lost, repeated, late or received from
//! two roots changes nothing. A member is one run of a process: after a restart it is another one, whose sums begin anew. A member that is
//! silent holds no places any more; what it used before is a debt already, and is worked off.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::clock::Moment;
use crate::door::{AccountDigest, AccountUse, ForeignCharge, Places};

/// Most members.
pub(super) const MAX_MEMBERS: usize = 64;

/// Most accounts of all members together, at some 250 bytes; one member may have a quarter.
const MAX_LINES: usize = 1 << 16;

/// Time after which a member that is silent, or an account that a member does not use, is dropped.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Most places of one kind that a line may hold, so that sums over all members fit.
const MAX_PLACES: u32 = 1 << 24;

/// Interval between searches for lines and members that are not used any more.
const SWEEP: Duration = Duration::from_secs(5);

/// Shortest time between two reports of one member.
const MIN_INTERVAL: Duration = Duration::from_millis(20);

/// One run of a headwater, by a random number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct MemberId(u64);

/// Text that is not the number of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the number of a member")]
pub(super) struct InvalidMemberId;

impl MemberId {
    /// Creates the number of this run.
    #[must_use]
    pub(super) fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MemberId {
    type Err = InvalidMemberId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or(InvalidMemberId)
    }
}

/// Reason why a report is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReportRefusal {
    /// As many members as the ledger has room for.
    #[error("too many members")]
    Members,
    /// Too soon after the member's last report.
    #[error("too many reports")]
    TooSoon,
    /// Member that is this process itself.
    #[error("the report of this headwater itself")]
    Own,
}

/// Line as it is passed on: the account, the line's number at the member that it is about, and the use.
pub(super) type PassedLine = (AccountDigest, u64, AccountUse);

/// Lines that another member does not have yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Members that are reachable, with their lines.
    pub(super) members: Vec<(MemberId, Vec<PassedLine>)>,
    /// Version of the last line, from which the next changes follow.
    pub(super) version: u64,
}

/// Reports of all members.
#[derive(Debug)]
pub(super) struct Ledger {
    own: MemberId,
    /// Time after which a member counts as silent.
    silence: Duration,
    members: HashMap<MemberId, Member>,
    /// Newest lines last.
    order: BTreeMap<u64, (MemberId, AccountDigest)>,
    version: u64,
    /// Places of all other members that are reachable.
    foreign: HashMap<AccountDigest, Places>,
    /// Lines that found no room.
    dropped: u64,
    swept: Moment,
}

#[derive(Debug)]
struct Member {
    last_contact: Moment,
    is_live: bool,
    lines: HashMap<AccountDigest, Line>,
}

#[derive(Debug)]
struct Line {
    used: AccountUse,
    /// Number of the line at the member that it is about.
    number: u64,
    version: u64,
    changed: Moment,
}

impl Ledger {
    /// Creates a ledger that knows this process alone.
    #[must_use]
    pub(super) fn new(own: MemberId, silence: Duration, now: Moment) -> Self {
        let mut ledger = Self {
            own,
            silence,
            members: HashMap::new(),
            order: BTreeMap::new(),
            version: 0,
            foreign: HashMap::new(),
            dropped: 0,
            swept: now,
        };
        ledger.members.insert(own, Member::new(now));
        ledger
    }

    /// Records that a member reports.
    ///
    /// # Errors
    /// [`ReportRefusal`] if its lines are not to be recorded.
    pub(super) fn report(&mut self, member: MemberId, now: Moment) -> Result<(), ReportRefusal> {
        match self.members.get(&member) {
            _ if member == self.own => return Err(ReportRefusal::Own),
            Some(known) if now.since(known.last_contact) < MIN_INTERVAL && known.is_live => {
                return Err(ReportRefusal::TooSoon);
            }
            None if self.members.len() >= MAX_MEMBERS => return Err(ReportRefusal::Members),
            _ => {}
        }
        self.record_contact(member, now);
        Ok(())
    }

    /// Records that another headwater hears a member; `false` if there is no room for it.
    pub(super) fn record_contact(&mut self, member: MemberId, now: Moment) -> bool {
        if member == self.own {
            return false;
        }
        let is_full = self.members.len() >= MAX_MEMBERS;
        let known = match self.members.entry(member) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(free) => free.insert(Member::new(now)),
        };
        known.last_contact = now;
        if !known.is_live {
            known.is_live = true;
            // Others were not sent its lines while it was silent.
            for (account, line) in &mut known.lines {
                let sum = self.foreign.entry(*account).or_default();
                *sum = add(*sum, line.used.places);
                self.version += 1;
                self.order.remove(&line.version);
                self.order.insert(self.version, (member, *account));
                line.version = self.version;
            }
        }
        true
    }

    /// Records the use of an account of this process.
    pub(super) fn record_own(&mut self, account: AccountDigest, used: AccountUse, now: Moment) {
        let number = self.version + 1;
        let charge = self.record(self.own, (account, number, used), now);
        debug_assert!(charge.is_none(), "own use is charged as it is admitted");
    }

    /// Records a line of a member. Returns what is to be charged; nothing for a line that is older than the
    /// known one, is of this process, or finds no room.
    pub(super) fn record(
        &mut self,
        member: MemberId,
        (account, number, used): PassedLine,
        now: Moment,
    ) -> Option<ForeignCharge> {
        let used = AccountUse {
            places: at_most(used.places, MAX_PLACES),
            ..used
        };
        let total = self.order.len();
        let known = self.members.get_mut(&member)?;
        let before = known.lines.get(&account);
        if before.is_some_and(|before| before.number >= number) {
            return None;
        }
        if before.is_none() && (total >= MAX_LINES || known.lines.len() >= MAX_LINES / 4) {
            self.dropped += 1;
            return None;
        }
        // A sum that shrinks belongs to an account that was opened again; of one that is not known, only the newest
        // part is news.
        let grown = |before: Option<u64>, sum: u64, fresh: u64| match before {
            Some(before) if before <= sum => sum - before,
            _ => fresh.min(sum),
        };
        let (old, version) = before.map_or((None, None), |line| (Some(line.used), Some(line.version)));
        let units = grown(old.map(|old| old.units), used.units, used.fresh_units);
        let bytes = grown(old.map(|old| old.bytes), used.bytes, used.fresh_bytes);
        self.version += 1;
        if let Some(version) = version {
            self.order.remove(&version);
        }
        self.order.insert(self.version, (member, account));
        let line = Line {
            used,
            number,
            version: self.version,
            changed: now,
        };
        known.lines.insert(account, line);
        if member == self.own {
            return None;
        }
        let places = if known.is_live {
            self.replace(account, old.map_or_else(Places::default, |old| old.places), used.places)
        } else {
            self.foreign.get(&account).copied().unwrap_or_default()
        };
        Some(ForeignCharge {
            account,
            units,
            bytes,
            places,
        })
    }

    /// Lets members be silent, and drops what is not used any more. Returns the places that are free again.
    pub(super) fn expire(&mut self, now: Moment) -> Vec<ForeignCharge> {
        let mut freed = Vec::new();
        let (own, silence) = (self.own, self.silence);
        let is_silent = |(id, member): &(&MemberId, &Member)| {
            **id != own && member.is_live && now.since(member.last_contact) > silence
        };
        let silent: Vec<MemberId> = self.members.iter().filter(is_silent).map(|(id, _)| *id).collect();
        for id in silent {
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            member.is_live = false;
            let lines: Vec<_> = member
                .lines
                .iter()
                .map(|(account, line)| (*account, line.used.places))
                .collect();
            for (account, places) in lines {
                if places != Places::default() {
                    let places = self.replace(account, places, Places::default());
                    freed.push(ForeignCharge {
                        account,
                        units: 0,
                        bytes: 0,
                        places,
                    });
                }
            }
        }
        if now.since(self.swept) < SWEEP {
            return freed;
        }
        self.swept = now;
        let order = &mut self.order;
        self.members.retain(|id, member| {
            let is_gone = *id != own && now.since(member.last_contact) >= FORGOTTEN;
            member.lines.retain(|_, line| {
                let is_held = line.used.places != Places::default();
                let stays = !is_gone && (is_held || now.since(line.changed) < FORGOTTEN);
                if !stays {
                    order.remove(&line.version);
                }
                stays
            });
            !is_gone
        });
        freed
    }

    /// Returns at most `max` lines of this process after a version.
    #[must_use]
    pub(super) fn own_changes(&self, since: u64, max: usize) -> Changes {
        self.changes(since, max, |member| member == self.own)
    }

    /// Returns at most `max` lines of all members but one after a version.
    #[must_use]
    pub(super) fn changes_for(&self, reader: MemberId, since: u64, max: usize) -> Changes {
        self.changes(since, max, |member| member != reader)
    }

    fn changes(&self, since: u64, max: usize, is_meant: impl Fn(MemberId) -> bool) -> Changes {
        let mut members: BTreeMap<MemberId, Vec<_>> = self
            .members
            .iter()
            .filter(|(id, member)| is_meant(**id) && (member.is_live || **id == self.own))
            .map(|(id, _)| (*id, Vec::new()))
            .collect();
        let mut left = max;
        let mut version = self.version;
        for (number, (member, account)) in self.order.range(since.saturating_add(1)..) {
            let Some(lines) = members.get_mut(member) else { continue };
            if left == 0 {
                version = number - 1;
                break;
            }
            if let Some(line) = self.members.get(member).and_then(|member| member.lines.get(account)) {
                lines.push((*account, line.number, line.used));
                left -= 1;
            }
        }
        Changes {
            members: members.into_iter().collect(),
            version,
        }
    }

    /// Returns the number of other members that are reachable.
    #[must_use]
    pub(super) fn others(&self) -> usize {
        self.members.values().filter(|member| member.is_live).count() - 1
    }

    /// Returns the number of lines.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns the number of lines that found no room since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Replaces the places of a line in the sum of its account; returns the sum.
    fn replace(&mut self, account: AccountDigest, old: Places, new: Places) -> Places {
        let sum = self.foreign.entry(account).or_default();
        *sum = add(subtract(*sum, old), new);
        let sum = *sum;
        if sum == Places::default() {
            self.foreign.remove(&account);
        }
        sum
    }
}

impl Member {
    fn new(now: Moment) -> Self {
        Self {
            last_contact: now,
            is_live: true,
            lines: HashMap::new(),
        }
    }
}

fn add(one: Places, other: Places) -> Places {
    Places {
        connections: one.connections.saturating_add(other.connections),
        subscriptions: one.subscriptions.saturating_add(other.subscriptions),
        index_entries: one.index_entries.saturating_add(other.index_entries),
    }
}

fn subtract(from: Places, other: Places) -> Places {
    Places {
        connections: from.connections.saturating_sub(other.connections),
        subscriptions: from.subscriptions.saturating_sub(other.subscriptions),
        index_entries: from.index_entries.saturating_sub(other.index_entries),
    }
}

fn at_most(places: Places, most: u32) -> Places {
    Places {
        connections: places.connections.min(most),
        subscriptions: places.subscriptions.min(most),
        index_entries: places.index_entries.min(most),
    }
}

#[cfg(test)]
mod tests;
