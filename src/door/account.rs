//! What each identity has used of its plan.
//!
//! A session looks its account up once and keeps it, so that a request touches no table: governor's quotas and three
//! counters are all behind one pointer. An account is forgotten when nobody holds it and its quotas are full again, for then
//! a fresh one is the same.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Identity, Policy, Rights};
use crate::clock::Millis;
use crate::conduct::Conduct;
use crate::delivery::Egress;
use crate::jsonrpc::{ErrorObjectOwned, LIMIT_EXCEEDED};
use crate::shares::Owner;

/// A message of this length costs as much as a request, whatever it says. Most requests are a hundredth of it.
pub const BYTES_PER_REQUEST: usize = 64 << 10;

/// Most accounts that are remembered; a flood from ever new networks then finds those forgotten that nobody holds.
const MAX_ACCOUNTS: usize = 100_000;

/// A quota is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// When to come again; never, where the whole quota would not be enough.
    pub retry_after: Option<Duration>,
}

impl From<Exceeded> for ErrorObjectOwned {
    /// `-32005 limit exceeded` with `data.retryAfterMs`.
    fn from(exceeded: Exceeded) -> Self {
        let hint = exceeded.retry_after.map(|after| after.as_millis() as u64 + 1);
        let data = hint.map(|ms| serde_json::json!({ "retryAfterMs": ms }));
        Self::owned(LIMIT_EXCEEDED, "limit exceeded", data)
    }
}

/// What there is no more room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Subscriptions of the client.
    Subscriptions(usize),
    /// Addresses times topics of the client.
    IndexEntries(usize),
}

type Limiter = DefaultDirectRateLimiter;

/// What holds for an account, and the quotas that go with it.
#[derive(Debug)]
pub struct Terms {
    /// What its identity may do.
    pub rights: Arc<Rights>,
    requests: Arc<Limiter>,
    handshakes: Arc<Limiter>,
    conduct: Arc<Conduct>,
}

impl Terms {
    fn new(rights: Arc<Rights>) -> Self {
        let plan = &rights.plan;
        let requests = Quota::per_second(plan.requests_per_second).allow_burst(plan.request_burst);
        let handshakes = Quota::per_minute(plan.handshakes_per_minute);
        Self {
            requests: Arc::new(RateLimiter::direct(requests)),
            handshakes: Arc::new(RateLimiter::direct(handshakes)),
            conduct: Arc::default(),
            rights,
        }
    }

    /// With other rights. Quotas that stay as they are keep what was used of them; others begin full.
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
            rights: fresh.rights,
        }
    }

    /// Charges a message: its items by their weights, all of them or none. One call that weighs more than the burst takes
    /// all of it.
    ///
    /// # Errors
    /// [`Exceeded`], also for a while after a call that broke a node's connection.
    pub fn charge<'a>(&self, methods: impl Iterator<Item = Option<&'a str>>) -> Result<(), Exceeded> {
        if let Some(left) = self.conduct.refused_for(Instant::now()) {
            return Err(Exceeded {
                retry_after: Some(left),
            });
        }
        let burst = u32::from(self.rights.plan.request_burst);
        // What is no request at all was still read.
        let weights = methods.map(|method| method.map_or(1, |method| self.rights.weights.of(method)).min(burst));
        self.charge_units(weights.fold(0, u32::saturating_add))
    }

    /// Record of the account's calls that broke a node's connection.
    #[must_use]
    pub fn conduct(&self) -> &Arc<Conduct> {
        &self.conduct
    }

    /// Charges the length of a message before it is read: one request for each 64 KiB.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn charge_bytes(&self, bytes: usize) -> Result<(), Exceeded> {
        self.charge_units(u32::try_from(bytes / BYTES_PER_REQUEST).unwrap_or(u32::MAX))
    }

    /// Charges a message that holds no request: it was read, and gets an answer.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn charge_one(&self) -> Result<(), Exceeded> {
        self.charge_units(1)
    }

    fn charge_units(&self, units: u32) -> Result<(), Exceeded> {
        NonZeroU32::new(units).map_or(Ok(()), |units| take(&self.requests, units))
    }
}

fn take(limiter: &Limiter, units: NonZeroU32) -> Result<(), Exceeded> {
    match limiter.check_n(units) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(until)) => Err(Exceeded {
            retry_after: Some(until.wait_time_from(DefaultClock::default().now())),
        }),
        Err(_) => Err(Exceeded { retry_after: None }),
    }
}

/// Hash that numbers identities; unpredictable from outside.
static NUMBERS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// One identity.
#[derive(Debug)]
pub struct Account {
    identity: Identity,
    number: u64,
    terms: ArcSwap<Terms>,
    egress: Arc<Egress>,
    connections: AtomicUsize,
    subscriptions: AtomicUsize,
    index_entries: AtomicUsize,
    revoked: AtomicBool,
    /// When it was first seen unused; 0 while it is used.
    unused_since: AtomicU64,
}

impl Account {
    fn new(identity: Identity, rights: Arc<Rights>) -> Self {
        Self {
            number: NUMBERS.hash_one(&identity),
            identity,
            egress: Arc::new(Egress::new(rights.plan.egress_bytes_per_second)),
            terms: ArcSwap::from_pointee(Terms::new(rights)),
            connections: AtomicUsize::new(0),
            subscriptions: AtomicUsize::new(0),
            index_entries: AtomicUsize::new(0),
            revoked: AtomicBool::new(false),
            unused_since: AtomicU64::new(0),
        }
    }

    /// The number of its identity, which is the same when the account was forgotten and comes again.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What holds now.
    #[must_use]
    pub fn terms(&self) -> Guard<Arc<Terms>> {
        self.terms.load()
    }

    /// Returns the owner that its places and bytes are charged to.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.egress.owner()
    }

    /// The budget of its notifications.
    #[must_use]
    pub fn egress(&self) -> &Arc<Egress> {
        &self.egress
    }

    /// Whether the key was withdrawn, or the plan of the token is no more.
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
    /// [`Exceeded`].
    pub fn charge_handshake(&self) -> Result<(), Exceeded> {
        take(&self.terms.load().handshakes, NonZeroU32::MIN)
    }

    /// A place for one more connection.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        // One too many is given back by its drop.
        let place = Place(self.clone());
        (before < self.terms.load().rights.plan.max_connections).then_some(place)
    }

    /// A place for one more subscription with so many addresses times topics.
    ///
    /// # Errors
    /// The [`Limit`] that is reached.
    pub fn reserve(self: &Arc<Self>, index_entries: usize) -> Result<Reserved, Limit> {
        let subscriptions = self.subscriptions.fetch_add(1, Ordering::Relaxed);
        let entries = self.index_entries.fetch_add(index_entries, Ordering::Relaxed);
        let reserved = Reserved {
            account: self.clone(),
            index_entries,
        };
        let terms = self.terms.load();
        let plan = &terms.rights.plan;
        if subscriptions >= plan.max_subscriptions_per_client {
            return Err(Limit::Subscriptions(plan.max_subscriptions_per_client));
        }
        if entries.saturating_add(index_entries) > plan.max_index_entries && index_entries > 0 {
            return Err(Limit::IndexEntries(plan.max_index_entries));
        }
        Ok(reserved)
    }
}

/// One open connection of an account, until dropped.
#[derive(Debug)]
pub struct Place(Arc<Account>);

impl Place {
    /// Whether it is this account's.
    #[must_use]
    pub fn is_of(&self, account: &Arc<Account>) -> bool {
        Arc::ptr_eq(&self.0, account)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One subscription of an account, until dropped.
#[derive(Debug)]
pub struct Reserved {
    account: Arc<Account>,
    index_entries: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.account.subscriptions.fetch_sub(1, Ordering::Relaxed);
        self.account
            .index_entries
            .fetch_sub(self.index_entries, Ordering::Relaxed);
    }
}

/// All accounts, bounded, and shrinking.
#[derive(Debug)]
pub struct Accounts {
    all: Mutex<HashMap<Identity, Arc<Account>>>,
    max: usize,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            all: Mutex::default(),
            max: MAX_ACCOUNTS,
        }
    }
}

impl Accounts {
    /// The account of an identity, new with these rights; none where there are too many that somebody holds.
    #[must_use]
    pub fn open(&self, identity: Identity, rights: Arc<Rights>) -> Option<Arc<Account>> {
        let mut all = self.all.lock();
        if let Some(account) = all.get(&identity) {
            account.unused_since.store(0, Ordering::Relaxed);
            return Some(account.clone());
        }
        if all.len() >= self.max {
            all.retain(|_, account| Arc::strong_count(account) > 1);
            if all.len() >= self.max {
                return None;
            }
        }
        let account = Arc::new(Account::new(identity.clone(), rights));
        all.insert(identity, account.clone());
        Some(account)
    }

    pub(super) fn review(&self, policy: &Policy) {
        self.all.lock().values().for_each(|account| account.review(policy));
    }

    /// Forgets accounts that nobody holds and whose quotas are full again, so that the table shrinks.
    pub fn forget_idle(&self, now: Millis) {
        let mut all = self.all.lock();
        all.retain(|_, account| {
            // Under the lock nobody gets hold of it who does not hold it already.
            let has_consequence = account.terms.load().conduct.has_consequence(Instant::now());
            if Arc::strong_count(account) > 1 || has_consequence {
                account.unused_since.store(0, Ordering::Relaxed);
                return true;
            }
            let refill = account.terms.load().rights.plan.refill().as_millis() as Millis;
            match account.unused_since.load(Ordering::Relaxed) {
                0 => {
                    account.unused_since.store(now, Ordering::Relaxed);
                    true
                }
                since => now.saturating_sub(since) < refill,
            }
        });
        all.shrink_to_fit();
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.lock().len()
    }

    /// Whether nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::config::{Config, typed};

    fn policy(edit: impl FnOnce(&mut typed::Config)) -> Arc<Policy> {
        let mut typed = typed::Config::default();
        typed.limits.max_batch = 1;
        edit(&mut typed);
        Config::check(&typed).unwrap().door
    }

    fn identity(ip: &str) -> Identity {
        Identity::Network(ip.parse::<IpAddr>().unwrap().into())
    }

    fn charge(account: &Account, methods: &[&str]) -> Result<(), Exceeded> {
        account.terms().charge(methods.iter().copied().map(Some))
    }

    #[test]
    fn a_burst_passes_and_one_more_does_not() {
        let policy = policy(|c| (c.limits.request_burst, c.limits.requests_per_second) = (5, 1));
        let accounts = Accounts::default();
        let open = |ip| accounts.open(identity(ip), policy.anonymous.clone()).unwrap();
        let (one, other) = (open("10.0.0.1"), open("10.0.0.2"));
        assert!(charge(&one, &["net_version"; 5]).is_ok());
        let error = ErrorObjectOwned::from(charge(&one, &["net_version"]).unwrap_err());
        assert_eq!((error.code(), error.message()), (-32005, "limit exceeded"));
        assert!(error.data().is_some_and(|data| data.get().contains("retryAfterMs")));
        assert!(
            charge(&open("10.0.0.1"), &["net_version"]).is_err(),
            "it is the same account"
        );
        assert_eq!(
            charge(&other, &["net_version"; 6]),
            Err(Exceeded { retry_after: None }),
            "above the burst"
        );
        assert!(
            charge(&other, &["debug_traceCall"]).is_ok(),
            "a heavy call takes all there is"
        );
        assert!(charge(&other, &["net_version"]).is_err());
    }

    #[test]
    fn weights_add_up() {
        let policy = policy(|c| {
            (c.limits.request_burst, c.limits.requests_per_second) = (10, 1);
            c.methods.weights = [("eth_getLogs".to_owned(), 4), ("web3_*".to_owned(), 0)].into();
        });
        let accounts = Accounts::default();
        let account = accounts.open(identity("10.0.0.1"), policy.anonymous.clone()).unwrap();
        assert!(charge(&account, &["eth_getLogs", "eth_getLogs", "net_version"]).is_ok());
        assert!(charge(&account, &["web3_sha3"; 50]).is_ok());
        assert!(charge(&account, &["net_version", "net_version"]).is_err());
        assert!(charge(&account, &["net_version"]).is_ok());
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let policy = policy(|c| {
            c.limits.max_connections_per_client = 2;
            c.limits.max_subscriptions_per_client = 2;
            c.limits.max_index_entries = 10;
        });
        let accounts = Accounts::default();
        let account = accounts.open(identity("10.0.0.1"), policy.anonymous.clone()).unwrap();
        let (first, second) = (account.enter(), account.enter());
        assert!(first.is_some() && second.is_some() && account.enter().is_none() && account.enter().is_none());
        drop(first);
        assert!(account.enter().is_some());
        let large = account.reserve(9).unwrap();
        assert_eq!(account.reserve(2).unwrap_err(), Limit::IndexEntries(10));
        let small = account.reserve(1).unwrap();
        assert_eq!(account.reserve(0).unwrap_err(), Limit::Subscriptions(2));
        drop((large, small));
        assert!(account.reserve(10).is_ok());
    }

    #[test]
    fn accounts_are_forgotten_when_their_quotas_are_full_again() {
        let policy = policy(|_| {});
        let accounts = Accounts::default();
        let held = accounts.open(identity("10.0.0.1"), policy.anonymous.clone()).unwrap();
        drop(accounts.open(identity("10.0.0.2"), policy.anonymous.clone()));
        accounts.forget_idle(1_000);
        accounts.forget_idle(60_999);
        assert_eq!(accounts.len(), 2);
        accounts.forget_idle(61_000);
        assert_eq!(accounts.len(), 1);
        drop(held);
        accounts.forget_idle(62_000);
        drop(accounts.open(identity("10.0.0.1"), policy.anonymous.clone()));
        accounts.forget_idle(122_000);
        assert_eq!(accounts.len(), 1, "it came again in between");
        accounts.forget_idle(182_000);
        assert!(accounts.is_empty());
    }

    #[test]
    fn a_full_table_forgets_whom_nobody_holds_and_then_takes_no_more() {
        let policy = policy(|_| {});
        let accounts = Accounts {
            max: 3,
            ..Accounts::default()
        };
        let open = |i: u8| accounts.open(identity(&format!("10.0.0.{i}")), policy.anonymous.clone());
        let held: Vec<_> = (0..2).map(open).collect();
        assert!((2..100).all(|i| open(i).is_some() && accounts.len() <= 3));
        let third = open(100);
        assert!(third.is_some() && open(101).is_none() && open(0).is_some());
        drop((held, third));
        assert!(open(101).is_some() && accounts.len() == 1);
    }

    #[test]
    fn other_terms_leave_what_was_used_of_a_quota_that_stays() {
        let old = policy(|c| (c.limits.request_burst, c.limits.requests_per_second) = (5, 1));
        let accounts = Accounts::default();
        let account = accounts.open(identity("10.0.0.1"), old.anonymous.clone()).unwrap();
        assert!(charge(&account, &["net_version"; 5]).is_ok());
        accounts.review(&policy(|c| {
            (c.limits.request_burst, c.limits.requests_per_second) = (5, 1);
            c.limits.max_subscriptions = 7;
        }));
        assert_eq!(account.terms().rights.plan.max_subscriptions, 7);
        assert!(charge(&account, &["net_version"]).is_err());
        accounts.review(&policy(|c| {
            (c.limits.request_burst, c.limits.requests_per_second) = (9, 1)
        }));
        assert!(charge(&account, &["net_version"; 9]).is_ok());
        assert!(!account.is_revoked());
        accounts.review(&policy(|c| {
            let key = format!("hash = \"{}\"", crate::door::ApiKey::random().digest());
            c.keys.insert("alice".into(), toml::from_str(&key).unwrap());
            c.auth.required = true;
        }));
        assert!(account.is_revoked());
    }
}
