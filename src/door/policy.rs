//! Everything that a reload exchanges, as one value: a reader sees all of the old policy or all of the new.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use http::Request;
use http::header::{AUTHORIZATION, HeaderMap};
use ipnet::IpNet;

use super::{ApiKey, Digest, Hosts, Identity, Methods, Origins, Plan, Proxies, Tokens, Weights};
use crate::delivery::Kind;
use crate::method_pattern::Patterns;

/// Configuration that applies to clients.
#[derive(Debug)]
pub struct Policy {
    /// Most open connections, of either kind, of all clients.
    pub max_connections: usize,
    /// Most connections that have not sent a request yet.
    pub max_handshakes: usize,
    /// Pages that may connect.
    pub origins: Origins,
    /// Host names that requests may use.
    pub hosts: Hosts,
    /// WebSocket subprotocols that are echoed.
    pub subprotocols: Vec<String>,
    /// Trusted proxies in front of headwater.
    pub proxies: Proxies,
    /// Keys and tokens that are accepted.
    pub auth: Auth,
    /// Rights of clients without a key or token.
    pub anonymous: Arc<Rights>,
    /// Rights of clients with a token, by the name of the token's plan.
    pub plans: HashMap<Arc<str>, Arc<Rights>>,
}

impl Policy {
    /// Returns the rights of an identity; `None` if its key or plan was removed, or if a key is required and it has
    /// none.
    #[must_use]
    pub fn rights(&self, identity: &Identity) -> Option<Arc<Rights>> {
        match identity {
            Identity::Key(digest) => self.auth.keys.get(digest).cloned(),
            Identity::Token { plan, .. } => {
                self.auth.tokens.as_ref()?;
                self.plans.get(plan).cloned()
            }
            Identity::Network(_) | Identity::Connection(_) => (!self.auth.required).then(|| self.anonymous.clone()),
            Identity::Within(_) | Identity::Webhook(_) => Some(Arc::new(self.anonymous.within())),
        }
    }

    /// Checks if a page may send a CORS preflight. The preflight comes without the key, so the pages of any key pass.
    #[must_use]
    pub fn may_ask(&self, headers: &HeaderMap) -> bool {
        let mut of_keys = self.auth.keys.values().filter_map(|rights| rights.origins.as_ref());
        self.origins.check(headers) || of_keys.any(|origins| origins.check(headers))
    }
}

/// Rights of one identity.
#[derive(Clone, Debug)]
pub struct Rights {
    /// Name of the key, as in `[keys.NAME]`; `None` without a key.
    pub key: Option<Arc<str>>,
    /// `true` for another headwater of the same operator, which limits its own clients.
    pub edge: bool,
    /// Limits.
    pub plan: Arc<Plan>,
    /// Methods that may be called.
    pub methods: Methods,
    /// Costs of the methods.
    pub weights: Arc<Weights>,
    /// Kinds of subscriptions that may be started.
    pub kinds: Kinds,
    /// Kinds of subscriptions, unknown to headwater, that are passed to the node, as `<namespace>_<kind>`.
    pub passed: Arc<Patterns>,
    /// Pages that the key allows; `None` for the policy's.
    pub origins: Option<Origins>,
    /// Networks of clients that the key allows; `None` for any.
    pub addresses: Option<Vec<IpNet>>,
}

impl Rights {
    /// Returns these rights for a client of the embedding program's own server: the methods and kinds are the same,
    /// limits of clients and origins are that server's.
    pub(super) fn within(&self) -> Self {
        Self {
            plan: Arc::new(Plan::without_limits()),
            origins: None,
            addresses: None,
            ..self.clone()
        }
    }

    /// Returns the pages that may connect: the key's, or else the policy's.
    #[must_use]
    pub fn origins<'a>(&'a self, policy: &'a Policy) -> &'a Origins {
        self.origins.as_ref().unwrap_or(&policy.origins)
    }

    /// Checks if a client may connect from this address. An unknown address (`None`) fails if the key restricts
    /// addresses.
    #[must_use]
    pub fn allows_address(&self, address: Option<IpAddr>) -> bool {
        self.addresses.as_ref().is_none_or(|allowed| {
            address.is_some_and(|address| allowed.iter().any(|network| network.contains(&address.to_canonical())))
        })
    }
}

/// Set of subscription kinds.
#[derive(Clone, Debug, Default)]
pub struct Kinds(Option<Vec<Kind>>);

/// Name that is not a kind of subscription.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a valid kind of subscription: use newHeads, logs, newPendingTransactions, syncing, \
     minedTransactions, transactionReceipts or passthrough (kinds that only the node knows)"
)]
pub struct InvalidKind(String);

impl Kinds {
    /// All kinds.
    pub const ALL: Self = Self(None);

    /// Reads kinds by their names.
    ///
    /// # Errors
    /// [`InvalidKind`] with the first name that is not a kind.
    pub fn parse(names: &[String]) -> Result<Self, InvalidKind> {
        let kind = |name: &String| {
            let mut kinds = Kind::ALL.into_iter();
            kinds
                .find(|kind| kind.label() == name)
                .ok_or_else(|| InvalidKind(name.clone()))
        };
        names.iter().map(kind).collect::<Result<_, _>>().map(Some).map(Self)
    }

    /// Checks if a kind is in the set.
    #[must_use]
    pub fn allow(&self, kind: Kind) -> bool {
        self.0.as_ref().is_none_or(|kinds| kinds.contains(&kind))
    }
}

/// Place in a request that may have a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CredentialSource {
    /// `Authorization: Bearer …`.
    Bearer,
    /// `X-API-Key: …`.
    Header,
    /// `/KEY`, `/v1/KEY`: the last segment of the path.
    Path,
    /// `?key=…`.
    Query,
}

/// Places in a request that are searched for a key or token.
#[derive(Clone, Debug, Default)]
pub struct CredentialSources(pub Vec<CredentialSource>);

/// Keys and tokens that are accepted.
#[derive(Debug, Default)]
pub struct Auth {
    /// `true` if only clients with a key or token are admitted.
    pub required: bool,
    /// Places in a request that are searched for a key or token.
    pub ways: CredentialSources,
    /// Rights of the keys, by the key's hash.
    pub keys: HashMap<Digest, Arc<Rights>>,
    /// Tokens; `None` if they are not accepted.
    pub tokens: Option<Tokens>,
}

impl Auth {
    /// Checks if keys or tokens are configured or required.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.required || !self.keys.is_empty() || self.tokens.is_some()
    }

    /// Returns the hashes of the keys that tokens may be signed with.
    pub(super) fn signers(&self) -> HashSet<Digest> {
        self.tokens.iter().flat_map(Tokens::signers).collect()
    }

    /// Returns the key or token of a request; `None` without one, or if neither is configured.
    pub(super) fn shown<'a, B>(&self, request: &'a Request<B>) -> Option<Cow<'a, str>> {
        if self.is_used() { self.ways.find(request) } else { None }
    }
}

impl CredentialSources {
    /// Returns the first key or token, searched in the order of bearer, header, path, query.
    fn find<'a, B>(&self, request: &'a Request<B>) -> Option<Cow<'a, str>> {
        [
            CredentialSource::Bearer,
            CredentialSource::Header,
            CredentialSource::Path,
            CredentialSource::Query,
        ]
        .into_iter()
        .filter(|way| self.0.contains(way))
        .find_map(|way| way.find(request))
    }
}

impl CredentialSource {
    fn find<B>(self, request: &Request<B>) -> Option<Cow<'_, str>> {
        let header = |name| {
            request
                .headers()
                .get(name)
                .and_then(|value: &http::HeaderValue| value.to_str().ok())
        };
        match self {
            Self::Bearer => {
                // Other schemes are ignored: libraries send `Basic` for an address with a user name.
                let (scheme, token) = header(AUTHORIZATION.as_str())?.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().into())
            }
            Self::Header => header("x-api-key").map(|key| key.trim().into()),
            Self::Path => {
                // An ordinary path does not count as a wrong key.
                let last = request.uri().path().trim_end_matches('/').rsplit('/').next()?;
                ApiKey::is_one(last).then(|| last.into())
            }
            Self::Query => url::form_urlencoded::parse(request.uri().query()?.as_bytes())
                .find_map(|(name, value)| (name == "key").then_some(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ways: &[CredentialSource], target: &str, headers: &[(&str, &str)], expect: Option<&str>) {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        assert_eq!(
            CredentialSources(ways.to_vec()).find(&request).as_deref(),
            expect,
            "{target} {headers:?}"
        );
    }

    #[test]
    fn a_key_is_found_where_it_may_stand_and_nowhere_else() {
        let all = [
            CredentialSource::Query,
            CredentialSource::Path,
            CredentialSource::Header,
            CredentialSource::Bearer,
        ];
        check(&all, "/", &[], None);
        check(&all, "/", &[("authorization", "Bearer a.b.c")], Some("a.b.c"));
        check(&all, "/", &[("authorization", "bearer  hw_1 ")], Some("hw_1"));
        check(&all, "/", &[("authorization", "Basic dXNlcjpwYXNz")], None);
        check(&all, "/", &[("x-api-key", "hw_1")], Some("hw_1"));
        for path in ["/hw_1", "/v1/hw_1", "/v3/hw_1/", "/hw_1?x=y"] {
            check(&all, path, &[], Some("hw_1"));
        }
        for path in ["/v3/some-key", "/hw_1/more", "/health?key2=hw_1"] {
            check(&all, path, &[], None);
        }
        check(&all, "/?a=b&key=hw_1%2D", &[], Some("hw_1-"));
        check(&all, "/hw_2?key=hw_3", &[("x-api-key", "hw_1")], Some("hw_1"));
        for (i, way) in all.into_iter().enumerate() {
            let others: Vec<_> = all.into_iter().filter(|other| *other != way).collect();
            let (target, headers): (_, &[(&str, &str)]) = [
                ("/?key=hw_1", &[][..]),
                ("/hw_1", &[]),
                ("/", &[("x-api-key", "hw_1")]),
                ("/", &[("authorization", "Bearer hw_1")]),
            ][i];
            check(&[way], target, headers, Some("hw_1"));
            check(&others, target, headers, None);
        }
    }

    #[test]
    fn kinds_by_their_names() {
        let kinds = Kinds::parse(&["newHeads".into(), "logs".into()]).unwrap();
        assert!(kinds.allow(Kind::Heads) && kinds.allow(Kind::Logs) && !kinds.allow(Kind::Pending));
        assert!(Kinds::ALL.allow(Kind::Pending));
        assert!(Kinds::parse(&["heads".into()]).is_err());
    }
}
