//! The door: authentication, limits, and the end of a client's stay.
//!
//! ```text
//! address    the client's address, past trusted hops only
//! identity   the party that is charged: a key, a token's subject, a network, a connection
//! key token  proofs of an identity
//! origin     pages and host names that are accepted
//! methods    methods that may be called, and their costs
//! effect     effect of a method by its name: it reads, or it acts
//! plan       limits; policy holds all of the above, as one value that a reload swaps
//! account    usage of one identity, its subscriptions, and reports about both; accounts all of them
//! quota      requests of one account, and the debt for those at other headwaters
//! foreign    use of accounts at other headwaters, and their names between headwaters
//! usage      requests and bytes of one account, for the operator
//! handshake  connections without a request yet
//! crowd      choice of the connection that is displaced
//! ```
//!
//! [`Policy`] is made from checked settings and never changes; [`Door`] keeps the one in force. A client's session
//! has a [`Pass`] with its account. A reload exchanges the terms in the account, so that the session is neither
//! dropped nor authenticated again.

mod account;
mod address;
mod crowd;
mod effect;
mod foreign;
mod handshake;
mod identity;
mod key;
mod methods;
mod origin;
mod plan;
mod policy;
mod quota;
mod token;
mod usage;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, Guard};
use http::Request;
use http::header::{HOST, HeaderMap, ORIGIN};

pub use account::{
    Account, AccountLimits, AccountSubscription, AccountSubscriptions, AccountUsage, Accounts, BYTES_PER_REQUEST,
    ConnectionSlot, Exceeded, Limit, Reserved, Terms,
};
pub use address::{ForwardedHeader, Proxies};
pub use crowd::{Activity, Crowd, Seat};
pub use effect::{PUBLIC, acts};
pub use foreign::{AccountDigest, AccountSecret, AccountUse, ForeignCharge, InvalidAccountDigest, Places};
pub use handshake::{Handshake, Handshakes};
pub use identity::{Identity, Network};
pub use key::{ApiKey, Digest, InvalidDigest};
pub use methods::{Beyond, Development, Methods, Unknown, Verdict, Weights};
pub use origin::{Hosts, Origins};
pub use plan::{Plan, RefusalLimit, Refusals};
pub use policy::{Auth, CredentialSource, CredentialSources, InvalidKind, Kinds, Policy, Rights};
#[cfg(test)]
pub(crate) use quota::tests as request_quota_tests;
pub use token::{TokenError, TokenSettings, Tokens, VerifiedToken};
pub use usage::{Usage, UsageSums};

use crate::clock::Clock;
use crate::delivery::CloseReason;

/// Reason why a client is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Handshake that is not RFC 6455, version 13.
    Malformed,
    /// Token of a session that has another form than it must have.
    Session,
    /// No key or token where one is required, or one that is not valid, or not any more.
    Unauthorized,
    /// Origin of a page that is not on the list.
    Origin,
    /// Host name that is not on the list.
    Host,
    /// Address that the key does not allow.
    Address,
    /// Connections of all clients at their maximum.
    Full,
    /// Connections of this client at their maximum.
    Connections,
    /// Too many handshakes of this client, with the wait until the next one passes.
    Handshakes(Duration),
    /// Too many requests of this address that were rejected or need no admission, with the wait until the next one
    /// passes.
    Requests(Duration),
    /// Too many connections that have not sent a request yet, or too many accounts in use.
    Busy,
    /// Shutdown of headwater.
    Draining,
    /// No TLS handshake, so that no answer can be sent.
    Tls,
    /// No PROXY protocol header at the start of the connection; no answer is sent.
    NotProxied,
}

impl Refusal {
    /// Returns the value of the `reason` label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "handshake",
            Self::Session => "session",
            Self::Unauthorized => "unauthorized",
            Self::Origin => "origin",
            Self::Host => "host",
            Self::Address => "address",
            Self::Full => "connections",
            Self::Connections => "client_connections",
            Self::Handshakes(_) => "handshakes",
            Self::Requests(_) => "requests",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Tls => "tls",
            Self::NotProxied => "proxy_protocol",
        }
    }
}

/// Remote end of a connection, as far as it is known without a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Address of the peer, which may be a proxy's.
    pub peer: IpAddr,
    /// Number of the connection, never used again.
    pub connection: u64,
}

/// Admission of a client, kept as long as its connection.
#[derive(Debug)]
pub struct Pass {
    account: Arc<Account>,
    /// Expiry of the token, in seconds since 1970; `None` without a token.
    expires: Option<u64>,
    /// Address of the client; `None` if a proxy withholds it.
    address: Option<IpAddr>,
    activity: Option<Arc<Activity>>,
    /// Hash of the key that signed the token; `None` without a token.
    signer: Option<Digest>,
    signers: Arc<ArcSwap<HashSet<Digest>>>,
}

/// Identity that a request proves by its key or token.
struct Proof {
    identity: Identity,
    expires: Option<u64>,
    signer: Option<Digest>,
}

impl Pass {
    /// Returns the account that is charged.
    #[must_use]
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Checks if the client has proved its identity by a key or token.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.account.is_proven()
    }

    /// Returns the address of the client; `None` if a proxy withholds it.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Ties the pass to its connection, which may be displaced by others.
    #[must_use]
    pub fn on(self, seat: &Seat) -> Self {
        if let Some(address) = self.address {
            seat.is_of(address);
        }
        let activity = Some(seat.activity().clone());
        Self { activity, ..self }
    }

    /// Returns the activity of the connection.
    #[must_use]
    pub fn activity(&self) -> Option<&Arc<Activity>> {
        self.activity.as_ref()
    }

    /// Returns the terms that apply now.
    #[must_use]
    pub fn terms(&self) -> Guard<Arc<Terms>> {
        self.account.terms()
    }

    /// Returns the reason why the client may not stay, if there is one; `now` is [`unix_now`].
    #[must_use]
    pub fn over(&self, now: u64) -> Option<CloseReason> {
        let is_signed = self.signer.is_none_or(|signer| self.signers.load().contains(&signer));
        if self.account.is_revoked() || !is_signed {
            return Some(CloseReason::Revoked);
        }
        self.expires.is_some_and(|at| at < now).then_some(CloseReason::Expired)
    }
}

/// Returns the seconds since 1970; 0 if the clock is before.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Policy in force, and the accounts of all clients.
#[derive(Debug)]
pub struct Door {
    policy: ArcSwap<Policy>,
    /// Keys that tokens may be signed with, for sessions that were admitted by a token.
    signers: Arc<ArcSwap<HashSet<Digest>>>,
    accounts: Arc<Accounts>,
    handshakes: Handshakes,
    clock: Clock,
}

impl Door {
    /// Creates a door without accounts.
    #[must_use]
    pub fn new(policy: Arc<Policy>, clock: Clock) -> Self {
        Self {
            signers: Arc::new(ArcSwap::from_pointee(policy.auth.signers())),
            policy: ArcSwap::new(policy),
            accounts: Arc::default(),
            handshakes: Handshakes::default(),
            clock,
        }
    }

    /// Shares the quotas of its accounts with other headwaters of this secret.
    #[must_use]
    pub fn sharing(self, secret: AccountSecret) -> Self {
        let accounts = Arc::new(Accounts::sharing(secret));
        Self { accounts, ..self }
    }

    /// Returns the policy in force.
    #[must_use]
    pub fn policy(&self) -> Guard<Arc<Policy>> {
        self.policy.load()
    }

    /// Puts another policy in force, for open sessions too.
    pub fn exchange(&self, policy: Arc<Policy>) {
        self.policy.store(policy.clone());
        self.signers.store(Arc::new(policy.auth.signers()));
        self.accounts.review(&policy);
    }

    /// Returns the accounts of all clients.
    #[must_use]
    pub fn accounts(&self) -> &Arc<Accounts> {
        &self.accounts
    }

    /// Registers a connection that has not sent a request yet.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if this address has its share of such connections already.
    pub fn handshake(&self, peer: IpAddr) -> Result<Handshake, Refusal> {
        let policy = self.policy();
        // All clients behind a proxy have the proxy's address.
        let share = if policy.proxies.trusts(peer) {
            1
        } else {
            handshake::SHARE
        };
        self.handshakes
            .begin(peer, policy.max_handshakes, share, self.clock.now())
            .ok_or(Refusal::Busy)
    }

    /// Identifies the sender of a request and decides if it is admitted; `upgrades`: the request is a handshake.
    /// Charges each handshake, each failed proof, each token that was not seen before and each request that is
    /// rejected.
    ///
    /// # Errors
    /// [`Refusal`] if the host, the key or token, the origin or the address is not accepted, a quota is used up, or
    /// too many accounts are in use.
    pub fn admit<B>(&self, request: &Request<B>, caller: Caller, upgrades: bool) -> Result<Pass, Refusal> {
        let policy = self.policy.load();
        let headers = request.headers();
        let address = policy.proxies.client(caller.peer, headers);
        let network = || network(address, caller);
        let turn_away = |why| Err(self.turn_away(&policy, network(), why));
        if !policy.hosts.check(host(request)) {
            return turn_away(Refusal::Host);
        }
        let proof = match policy.auth.shown(request) {
            Some(shown) => Some(self.prove(&policy, &shown, network)?),
            None => None,
        };
        let (identity, expires, signer) = match proof {
            Some(proof) => (proof.identity, proof.expires, proof.signer),
            None => (network(), None, None),
        };
        let Some(rights) = policy.rights(&identity) else {
            return Err(self.reject_unproven(&policy, network()));
        };
        if !rights.origins(&policy).check(headers) {
            return turn_away(Refusal::Origin);
        }
        if !rights.allows_address(address) {
            return turn_away(Refusal::Address);
        }
        let account = self
            .accounts
            .open(identity, rights, self.clock.now())
            .ok_or(Refusal::Busy)?;
        let now = self.policy.load();
        if !Arc::ptr_eq(&policy, &now) {
            // The policy was exchanged meanwhile, maybe before the account existed and could be reviewed.
            account.review(&now);
        }
        if upgrades {
            account
                .charge_handshake()
                .map_err(|exceeded| Refusal::Handshakes(exceeded.retry_after.unwrap_or_default()))?;
        }
        Ok(Pass {
            account,
            expires,
            address,
            activity: None,
            signer,
            signers: self.signers.clone(),
        })
    }

    /// Admits a connection of the embedding program's own server, which has identified and limited its client.
    #[must_use]
    pub fn admit_within(&self, connection: u64) -> Pass {
        self.admit_own(Identity::Within(connection))
    }

    /// Admits the session of a webhook.
    #[must_use]
    pub fn admit_webhook(&self, name: &Arc<str>) -> Pass {
        self.admit_own(Identity::Webhook(name.clone()))
    }

    fn admit_own(&self, identity: Identity) -> Pass {
        let policy = self.policy.load();
        let rights = Arc::new(policy.anonymous.within());
        Pass {
            account: self.accounts.open_within(identity, rights, self.clock.now()),
            expires: None,
            address: None,
            activity: None,
            signer: None,
            signers: self.signers.clone(),
        }
    }

    /// Verifies a key or token. A token is charged to the address before its verification, which costs more than any
    /// other step of admission; a token that was verified before costs nothing.
    fn prove(&self, policy: &Policy, shown: &str, network: impl Fn() -> Identity) -> Result<Proof, Refusal> {
        if ApiKey::is_one(shown) {
            let digest = Digest::of(shown);
            if !policy.auth.keys.contains_key(&digest) {
                return Err(self.reject_unproven(policy, network()));
            }
            return Ok(Proof {
                identity: Identity::Key(digest),
                expires: None,
                signer: None,
            });
        }
        let tokens = policy.auth.tokens.as_ref();
        let verified = match tokens.and_then(|tokens| tokens.recall(shown, unix_now())) {
            Some(verified) => verified,
            None => {
                let refusal = self.reject_unproven(policy, network());
                let verified = match refusal {
                    Refusal::Unauthorized => tokens.and_then(|tokens| tokens.verify(shown).ok()),
                    _ => None,
                };
                verified.ok_or(refusal)?
            }
        };
        Ok(Proof {
            identity: Identity::Token {
                subject: verified.subject,
                plan: verified.plan,
            },
            expires: Some(verified.expires),
            signer: Some(verified.signer),
        })
    }

    /// Checks if a page may send a request that needs no identity (a liveness check, a CORS preflight), and charges
    /// it as a request of its address.
    ///
    /// # Errors
    /// [`Refusal`] if the host or the origin is not accepted, or the requests of the address are used up.
    pub fn admit_page<B>(&self, request: &Request<B>, caller: Caller) -> Result<(), Refusal> {
        let policy = self.policy.load();
        let address = policy.proxies.client(caller.peer, request.headers());
        let turn_away = |why| self.turn_away(&policy, network(address, caller), why);
        if !policy.hosts.check(host(request)) {
            return Err(turn_away(Refusal::Host));
        }
        if !policy.may_ask(request.headers()) {
            return Err(turn_away(Refusal::Origin));
        }
        self.charge(&policy, network(address, caller))
    }

    /// Charges a request to an address.
    fn charge(&self, policy: &Policy, network: Identity) -> Result<(), Refusal> {
        let account = self.accounts.open(network, policy.anonymous.clone(), self.clock.now());
        let charged = account.ok_or(Refusal::Busy)?.terms().charge_one();
        charged.map_err(|exceeded| Refusal::Requests(exceeded.retry_after.unwrap_or_default()))
    }

    /// Charges a rejected request to its address, since a refusal is work too; returns the refusal to answer with.
    fn turn_away(&self, policy: &Policy, network: Identity, why: Refusal) -> Refusal {
        self.charge(policy, network).err().unwrap_or(why)
    }

    /// Charges a failed proof as a handshake of its address, so that guessing is as slow as connecting; returns the
    /// refusal to answer with.
    fn reject_unproven(&self, policy: &Policy, network: Identity) -> Refusal {
        let Some(account) = self.accounts.open(network, policy.anonymous.clone(), self.clock.now()) else {
            return Refusal::Busy;
        };
        match account.charge_handshake() {
            Ok(()) => Refusal::Unauthorized,
            Err(exceeded) => Refusal::Handshakes(exceeded.retry_after.unwrap_or_default()),
        }
    }

    /// Drops idle accounts whose quotas are full again, and releases unused memory.
    pub fn forget_idle(&self) {
        self.accounts.forget_idle(self.clock.now());
        self.handshakes.shrink();
    }
}

/// Returns the identity to charge for requests without a key or token: the network, or the connection where its address
/// is unknown.
fn network(address: Option<IpAddr>, caller: Caller) -> Identity {
    match address {
        Some(address) => Identity::Network(address.into()),
        None => Identity::Connection(caller.connection),
    }
}

/// Returns the requested host: of the request's target if that is absolute, else of the `Host` header.
fn host<B>(request: &Request<B>) -> Option<&[u8]> {
    match request.uri().host() {
        Some(host) => Some(host.as_bytes()),
        None => request.headers().get(HOST).map(http::HeaderValue::as_bytes),
    }
}

/// Returns the `Origin` of the page that sends a request.
fn page(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(ORIGIN).map(http::HeaderValue::as_bytes)
}
