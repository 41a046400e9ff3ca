//! Accounts: the usage of each identity, counted against its plan.
//!
//! A session looks up its account once and keeps the pointer, so that a request needs no table: governor's quotas and
//! three counters are behind that pointer. An account that is not in use is dropped once its quotas are full again
//! and no consequence of its [`Conduct`] is in force: a new account would have the same quotas.

mod listing;
mod report;
mod shared;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::listing::Listing;
use self::shared::{SharedAccount, SharedAccounts};
use super::quota::RequestQuota;
use super::{Identity, Places, Policy, Rights, Usage, UsageSums};
use crate::clock::{AtomicMoment, Moment};
use crate::conduct::Conduct;
use crate::delivery::Egress;
use crate::jsonrpc::{ErrorObjectOwned, LIMIT_EXCEEDED};
use crate::shares::Owner;

pub use self::listing::Reserved;
pub use self::report::{AccountLimits, AccountSubscription, AccountSubscriptions, AccountUsage};

/// Length of a message, in bytes, that costs as much as a request, whatever its content. Most requests are a
/// hundredth of it.
pub const BYTES_PER_REQUEST: usize = 64 << 10;

/// Most accounts in the table. A flood from ever new networks that reaches it evicts the accounts that are not in
/// use.
const MAX_ACCOUNTS: usize = 100_000;

/// Error of a quota that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Wait until the same charge fits; `None` if it exceeds the whole quota and never fits.
    pub retry_after: Option<Duration>,
}

impl From<Exceeded> for ErrorObjectOwned {
    /// Returns `-32005 limit exceeded`, with `data.retryAfterMs` if a retry can succeed.
    fn from(exceeded: Exceeded) -> Self {
        let hint = exceeded.retry_after.map(|after| after.as_millis() as u64 + 1);
        let data = hint.map(|ms| serde_json::json!({ "retryAfterMs": ms }));
        Self::owned(LIMIT_EXCEEDED, "limit exceeded", data)
    }
}

/// Limit that was reached, with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Subscriptions of the client, over all of its connections.
    Subscriptions(usize),
    /// Index entries of the client: addresses times topics of its filters.
    IndexEntries(usize),
}

/// Rights of an account in force, and the quotas that belong to them.
#[derive(Debug)]
pub struct Terms {
    /// Rights of the account's identity.
    pub rights: Arc<Rights>,
    requests: Arc<RequestQuota>,
    handshakes: Arc<DefaultDirectRateLimiter>,
    conduct: Arc<Conduct>,
    usage: Arc<Usage>,
}

impl Terms {
    fn new(rights: Arc<Rights>) -> Self {
        let plan = &rights.plan;
        let requests = RequestQuota::new(plan.requests_per_second, plan.request_burst, DefaultClock::default());
        let handshakes = Quota::per_minute(plan.handshakes_per_minute);
        Self {
            requests: Arc::new(requests),
            handshakes: Arc::new(RateLimiter::direct(handshakes)),
            conduct: Arc::default(),
            usage: Arc::default(),
            rights,
        }
    }

    /// Returns these terms with other rights. Quotas that are unchanged keep their usage; changed ones begin full.
    fn with(&self, rights: Arc<Rights>) -> Self {
        let fresh = Self::new(rights);
        let (old, new) = (&self.rights.plan, &fresh.rights.plan);
        let same_requests =
            (old.requests_per_second, old.request_burst) == (new.requests_per_second, new.request_burst);
        Self {
            requests: if same_requests {
                self.requests.clone()
            } else {
                fresh.requests
            },
            handshakes: if old.handshakes_per_minute == new.handshakes_per_minute {
                self.handshakes.clone()
            } else {
                fresh.handshakes
            },
            conduct: self.conduct.clone(),
            usage: self.usage.clone(),
            rights: fresh.rights,
        }
    }

    /// Charges a message: the weights of its items, all of them or none; 1 for an item that is not a request
    /// (`None`). A call that weighs more than the burst costs the whole burst.
    ///
    /// # Errors
    /// [`Exceeded`] if the quota does not cover the message, and for ten minutes after a call of the account broke a
    /// node's connection.
    pub fn charge<'a>(&self, methods: impl Iterator<Item = Option<&'a str>>) -> Result<(), Exceeded> {
        if let Some(left) = self.conduct.refused_for(Instant::now()) {
            return Err(Exceeded {
                retry_after: Some(left),
            });
        }
        let burst = u32::from(self.rights.plan.request_burst);
        // An item that is not a request costs 1: it was read, too.
        let weights = methods.map(|method| method.map_or(1, |method| self.rights.weights.of(method)).min(burst));
        self.charge_units(weights.fold(0, u32::saturating_add))
    }

    /// Returns the counters of the account's usage.
    #[must_use]
    pub fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// Returns the account's record of calls that broke a node's connection, and of long answers.
    #[must_use]
    pub fn conduct(&self) -> &Arc<Conduct> {
        &self.conduct
    }

    /// Charges the length of a message before it is read: one request for each 64 KiB.
    ///
    /// # Errors
    /// [`Exceeded`] if the quota of requests does not cover the length.
    pub fn charge_bytes(&self, bytes: usize) -> Result<(), Exceeded> {
        self.charge_units(u32::try_from(bytes / BYTES_PER_REQUEST).unwrap_or(u32::MAX))
    }

    /// Charges a message without requests as one request: it was read, and gets an answer.
    ///
    /// # Errors
    /// [`Exceeded`] if the quota of requests is used up.
    pub fn charge_one(&self) -> Result<(), Exceeded> {
        self.charge_units(1)
    }

    /// Returns the units of requests that may be spent at once. Takes one unit: a quota tells what is left only when it is
    /// charged.
    #[must_use]
    pub fn take_requests_left(&self) -> u32 {
        self.requests.take(NonZeroU32::MIN).unwrap_or(0)
    }

    fn charge_units(&self, units: u32) -> Result<(), Exceeded> {
        let Some(charge) = NonZeroU32::new(units) else {
            return Ok(());
        };
        match self.requests.take(charge) {
            Ok(_) => self.usage.charged(units.into()),
            Err(exceeded) => {
                self.usage.refused();
                return Err(exceeded);
            }
        }
        Ok(())
    }
}

/// Hash that numbers identities; its random seed makes the numbers unpredictable from outside.
static NUMBERS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Account of one identity.
#[derive(Debug)]
pub struct Account {
    identity: Identity,
    number: u64,
    terms: ArcSwap<Terms>,
    egress: Arc<Egress>,
    connections: AtomicUsize,
    subscriptions: AtomicUsize,
    index_entries: AtomicUsize,
    listing: Listing,
    revoked: AtomicBool,
    /// Part that other headwaters know of; `None` if quotas are not shared.
    shared: Option<Box<SharedAccount>>,
    /// Moment at which the account was first found unused; `None` while it is in use.
    unused_since: AtomicMoment,
}

impl Account {
    fn has_consequence(&self) -> bool {
        self.terms.load().conduct.has_consequence(Instant::now())
    }

    fn new(identity: Identity, rights: Arc<Rights>, shared: Option<Box<SharedAccount>>) -> Self {
        Self {
            number: NUMBERS.hash_one(&identity),
            identity,
            egress: Arc::new(Egress::new(rights.plan.egress_bytes_per_second)),
            terms: ArcSwap::from_pointee(Terms::new(rights)),
            connections: AtomicUsize::new(0),
            subscriptions: AtomicUsize::new(0),
            index_entries: AtomicUsize::new(0),
            listing: Listing::default(),
            revoked: AtomicBool::new(false),
            shared,
            unused_since: AtomicMoment::default(),
        }
    }

    /// Returns the number of the identity, which is the same after the account was dropped and opened again.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the account as operators know it: `key NAME`, `token SUBJECT`, or the network.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.identity {
            Identity::Key(_) => match &self.terms().rights.key {
                Some(name) => format!("key {name}"),
                None => "key".to_owned(),
            },
            Identity::Token { subject, .. } => format!("token {subject}"),
            Identity::Network(network) => network.to_string(),
            Identity::Connection(number) => format!("connection {number}"),
            Identity::Within(number) => format!("connection {number} of the embedding program"),
            Identity::Webhook(name) => format!("webhook {name}"),
        }
    }

    /// Checks if the account is that of a key or token.
    #[must_use]
    pub(super) fn is_proven(&self) -> bool {
        matches!(self.identity, Identity::Key(_) | Identity::Token { .. })
    }

    /// Returns the terms in force.
    #[must_use]
    pub fn terms(&self) -> Guard<Arc<Terms>> {
        self.terms.load()
    }

    /// Returns the owner to which the account's places and bytes are charged.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.egress.owner()
    }

    /// Returns the budget of the account's notifications, in bytes a second.
    #[must_use]
    pub fn egress(&self) -> &Arc<Egress> {
        &self.egress
    }

    /// Checks if the identity has lost its rights: its key or the plan of its token was removed, or a key is required
    /// now.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    pub(super) fn review(&self, policy: &Policy) {
        match policy.rights(&self.identity) {
            Some(rights) => {
                self.egress.set_rate(rights.plan.egress_bytes_per_second);
                self.terms.store(Arc::new(self.terms.load().with(rights)));
                self.revoked.store(false, Ordering::Relaxed);
            }
            None => self.revoked.store(true, Ordering::Relaxed),
        }
    }

    /// Charges a handshake.
    ///
    /// # Errors
    /// [`Exceeded`] if the quota of handshakes is used up.
    pub fn charge_handshake(&self) -> Result<(), Exceeded> {
        let charged = self.terms.load().handshakes.check();
        charged.map_err(|until| Exceeded {
            retry_after: Some(until.wait_time_from(DefaultClock::default().now())),
        })
    }

    /// Returns the places of the account that are in use at other headwaters.
    fn foreign_places(&self) -> Places {
        self.shared
            .as_ref()
            .map_or_else(Places::default, |shared| shared.foreign_places())
    }

    /// Takes a place for one more connection; `None` at the plan's limit.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        // A place above the limit is given back when it is dropped.
        let place = ConnectionSlot(self.clone());
        let before = before.saturating_add(self.foreign_places().connections as usize);
        (before < self.terms.load().rights.plan.max_connections).then_some(place)
    }

    /// Reserves one more subscription with this many index entries (addresses times topics).
    ///
    /// # Errors
    /// [`Limit`] if the client's subscriptions or index entries would exceed the plan.
    pub fn reserve(self: &Arc<Self>, index_entries: usize) -> Result<Reserved, Limit> {
        let subscriptions = self.subscriptions.fetch_add(1, Ordering::Relaxed);
        // No filter has as many: a thousand addresses times four thousand topics.
        let counted = u32::try_from(index_entries).unwrap_or(u32::MAX);
        let entries = self.index_entries.fetch_add(counted as usize, Ordering::Relaxed);
        let reserved = Reserved::new(self.clone(), counted);
        let terms = self.terms.load();
        let plan = &terms.rights.plan;
        let foreign = self.foreign_places();
        let subscriptions = subscriptions.saturating_add(foreign.subscriptions as usize);
        let entries = entries.saturating_add(foreign.index_entries as usize);
        if subscriptions >= plan.max_subscriptions_per_client {
            return Err(Limit::Subscriptions(plan.max_subscriptions_per_client));
        }
        if entries.saturating_add(index_entries) > plan.max_index_entries && index_entries > 0 {
            return Err(Limit::IndexEntries(plan.max_index_entries));
        }
        Ok(reserved)
    }
}

/// Open connection of an account, counted until dropped.
#[derive(Debug)]
pub struct ConnectionSlot(Arc<Account>);

impl ConnectionSlot {
    /// Checks if the connection belongs to this account.
    #[must_use]
    pub fn is_of(&self, account: &Arc<Account>) -> bool {
        Arc::ptr_eq(&self.0, account)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Table of all accounts, bounded; it shrinks as accounts are dropped.
#[derive(Debug)]
pub struct Accounts {
    all: Mutex<HashMap<Identity, Arc<Account>>>,
    max: usize,
    /// Names of the accounts between headwaters; `None` if quotas are not shared.
    shared: Option<SharedAccounts>,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            all: Mutex::default(),
            max: MAX_ACCOUNTS,
            shared: None,
        }
    }
}

impl Accounts {
    /// Returns the account of an identity, or a new one with these rights; `None` if the table is full of accounts in
    /// use.
    #[must_use]
    pub fn open(&self, identity: Identity, rights: Arc<Rights>, now: Moment) -> Option<Arc<Account>> {
        let mut all = self.all.lock();
        if let Some(account) = all.get(&identity) {
            account.unused_since.store(None);
            return Some(account.clone());
        }
        if all.len() >= self.max {
            // A consequence is kept as long as there is room: else a flood of new accounts would end it.
            all.retain(|_, account| Arc::strong_count(account) > 1 || account.has_consequence());
            if all.len() >= self.max {
                all.retain(|_, account| Arc::strong_count(account) > 1);
            }
            if all.len() >= self.max {
                return None;
            }
        }
        let shared = self.shared.as_ref();
        let own = shared.and_then(|shared| shared.share(&identity));
        let account = Arc::new(Account::new(identity.clone(), rights, own));
        if let Some(shared) = shared {
            shared.opened(&account, now);
        }
        all.insert(identity, account.clone());
        Some(account)
    }

    /// Like [`Self::open`], for a client that its own server admits: if the table is full, its account is in no table.
    pub(super) fn open_within(&self, identity: Identity, rights: Arc<Rights>, now: Moment) -> Arc<Account> {
        self.open(identity.clone(), rights.clone(), now)
            .unwrap_or_else(|| Arc::new(Account::new(identity, rights, None)))
    }

    pub(super) fn review(&self, policy: &Policy) {
        self.all.lock().values().for_each(|account| account.review(policy));
    }

    /// Drops accounts that are not in use, once their quotas are full again and no consequence is in force; shrinks
    /// the table.
    pub fn forget_idle(&self, now: Moment) {
        let mut all = self.all.lock();
        all.retain(|_, account| {
            // Under the lock no session can obtain an account that is not in use.
            if Arc::strong_count(account) > 1 || account.has_consequence() {
                account.unused_since.store(None);
                return true;
            }
            let refill = account.terms.load().rights.plan.refill();
            match account.unused_since.load() {
                None => {
                    account.unused_since.store(Some(now));
                    true
                }
                Some(since) => now.since(since) < refill,
            }
        });
        all.shrink_to_fit();
        if let Some(shared) = &self.shared {
            shared.forget_idle(now);
        }
    }

    /// Returns the usage since the last call, by account; the accounts without key or token together as `anonymous`.
    #[must_use]
    pub fn take_usage(&self) -> HashMap<String, UsageSums> {
        let mut sums: HashMap<String, UsageSums> = HashMap::new();
        let mut anonymous = UsageSums::default();
        for account in self.all.lock().values() {
            let own = account.terms.load().usage.take();
            match &account.identity {
                _ if own.is_zero() => {}
                Identity::Key(_) | Identity::Token { .. } | Identity::Webhook(_) => {
                    *sums.entry(account.label()).or_default() += own
                }
                Identity::Network(_) | Identity::Connection(_) | Identity::Within(_) => anonymous += own,
            }
        }
        if !anonymous.is_zero() {
            sums.insert("anonymous".to_owned(), anonymous);
        }
        sums
    }

    /// Returns the number of accounts in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.lock().len()
    }

    /// Checks if the table has no accounts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.lock().is_empty()
    }
}

#[cfg(test)]
mod tests;
