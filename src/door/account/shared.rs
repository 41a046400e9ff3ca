//! Accounts that other headwaters count too: own use for them, and the charge for theirs.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Account, Accounts};
use crate::clock::Moment;
use crate::door::foreign::ForeignUse;
use crate::door::{AccountDigest, AccountSecret, AccountUse, ForeignCharge, Identity, Places, Plan};

/// Most accounts that are known by their use elsewhere, at some 200 bytes; those that are used here come on top.
const MAX_FOREIGN: usize = 1 << 16;

/// Part of a burst, of a second's bytes or of a limit of places that is not worth a report.
const SMALL_PART: u64 = 64;

/// Part of a limit of places below which an account's places are not worth a report.
const FEW_PLACES: u64 = 16;

/// Part of an account that other headwaters know of.
#[derive(Debug)]
pub(super) struct SharedAccount {
    digest: AccountDigest,
    foreign: Arc<ForeignUse>,
    /// Use that was reported last.
    reported: Mutex<AccountUse>,
}

impl SharedAccount {
    /// Returns the places in use elsewhere.
    pub(super) fn foreign_places(&self) -> Places {
        self.foreign.places()
    }
}

/// Accounts by the names that other headwaters use.
#[derive(Debug)]
pub(super) struct SharedAccounts {
    secret: AccountSecret,
    known: Mutex<HashMap<AccountDigest, KnownAccount>>,
}

#[derive(Debug, Default)]
struct KnownAccount {
    foreign: Arc<ForeignUse>,
    /// Account here, if it is open.
    account: Weak<Account>,
}

impl SharedAccounts {
    pub(super) fn new(secret: AccountSecret) -> Self {
        Self {
            secret,
            known: Mutex::default(),
        }
    }

    /// Makes an account one that is shared, if its identity means something elsewhere.
    pub(super) fn share(&self, identity: &Identity) -> Option<Box<SharedAccount>> {
        let digest = self.secret.digest(identity)?;
        let foreign = self.known.lock().entry(digest).or_default().foreign.clone();
        Some(Box::new(SharedAccount {
            digest,
            foreign,
            reported: Mutex::default(),
        }))
    }

    /// Enters a new account in the table, and charges it what was used elsewhere of late.
    pub(super) fn opened(&self, account: &Arc<Account>, now: Moment) {
        let Some(shared) = &account.shared else { return };
        let terms = account.terms();
        let owed = shared.foreign.owed(terms.rights.plan.requests_per_second, now);
        if owed > 0 {
            terms.requests.charge_foreign(owed);
        }
        if let Some(known) = self.known.lock().get_mut(&shared.digest) {
            known.account = Arc::downgrade(account);
        }
    }

    /// Drops what nobody uses.
    pub(super) fn forget_idle(&self, now: Moment) {
        let mut known = self.known.lock();
        known.retain(|_, known| known.account.strong_count() > 0 || !known.foreign.is_over(now));
        known.shrink_to_fit();
    }

    fn charge(&self, charge: &ForeignCharge, now: Moment) {
        let account = {
            let mut known = self.known.lock();
            let is_full = known.len() >= MAX_FOREIGN;
            let known = match known.get(&charge.account) {
                Some(known) => known,
                None if is_full => return,
                None => known.entry(charge.account).or_default(),
            };
            known.foreign.note(charge, now);
            known.account.upgrade()
        };
        // After the lock: the account may be dropped here.
        let Some(account) = account else { return };
        if charge.units > 0 {
            let units = u32::try_from(charge.units).unwrap_or(u32::MAX);
            account.terms().requests.charge_foreign(units);
        }
        if charge.bytes > 0 {
            account.egress.charge_foreign(charge.bytes, now);
        }
    }
}

impl Account {
    /// Returns the use of the account if it differs from the one returned before by more than a small part of a limit.
    fn use_to_report(&self) -> Option<(AccountDigest, AccountUse)> {
        let shared = self.shared.as_ref()?;
        let terms = self.terms();
        if terms.rights.edge {
            return None;
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let places = Places {
            connections: count(self.connections.load(Ordering::Relaxed)),
            subscriptions: count(self.subscriptions.load(Ordering::Relaxed)),
            index_entries: count(self.index_entries.load(Ordering::Relaxed)),
        };
        let (units, bytes) = (terms.usage.admitted(), self.egress.sent());
        let mut reported = shared.reported.lock();
        let now = AccountUse {
            units,
            fresh_units: units.saturating_sub(reported.units),
            bytes,
            fresh_bytes: bytes.saturating_sub(reported.bytes),
            places: worth_places(places, &terms.rights.plan),
        };
        is_worth(&now, &reported, &terms.rights.plan).then(|| {
            *reported = now;
            (shared.digest, now)
        })
    }
}

/// Returns the places, without those of which the client has few.
fn worth_places(places: Places, plan: &Plan) -> Places {
    let worth = |count: u32, max: usize| {
        if u64::from(count).saturating_mul(FEW_PLACES) >= max as u64 {
            count
        } else {
            0
        }
    };
    Places {
        connections: worth(places.connections, plan.max_connections),
        subscriptions: worth(places.subscriptions, plan.max_subscriptions_per_client),
        index_entries: worth(places.index_entries, plan.max_index_entries),
    }
}

fn is_worth(now: &AccountUse, reported: &AccountUse, plan: &Plan) -> bool {
    let differs = |now: u32, then: u32, max: usize| {
        let is_end = (now == 0) != (then == 0);
        is_end || u64::from(now.abs_diff(then)) > max as u64 / SMALL_PART
    };
    let (places, then) = (now.places, reported.places);
    now.fresh_units > u64::from(plan.request_burst.get()) / SMALL_PART
        || now.fresh_bytes > plan.egress_bytes_per_second / SMALL_PART
        || differs(places.connections, then.connections, plan.max_connections)
        || differs(
            places.subscriptions,
            then.subscriptions,
            plan.max_subscriptions_per_client,
        )
        || differs(places.index_entries, then.index_entries, plan.max_index_entries)
}

impl Accounts {
    /// Creates a table of accounts that other headwaters with the same secret count too.
    #[must_use]
    pub fn sharing(secret: AccountSecret) -> Self {
        Self {
            shared: Some(SharedAccounts::new(secret)),
            ..Self::default()
        }
    }

    /// Returns the accounts whose use has changed by more than a small part of a limit since the last call, the busiest
    /// first.
    #[must_use]
    pub fn take_uses(&self) -> Vec<(AccountDigest, AccountUse)> {
        if self.shared.is_none() {
            return Vec::new();
        }
        let all = self.all.lock();
        let mut uses: Vec<_> = all.values().filter_map(|account| account.use_to_report()).collect();
        drop(all);
        uses.sort_unstable_by_key(|(digest, own)| (std::cmp::Reverse((own.fresh_units, own.fresh_bytes)), *digest));
        uses
    }

    /// Charges an account what was used at other headwaters. An account that is not open here is charged when it is
    /// opened soon.
    pub fn charge_foreign(&self, charge: &ForeignCharge, now: Moment) {
        if let Some(shared) = &self.shared {
            shared.charge(charge, now);
        }
    }
}
