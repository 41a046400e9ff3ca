//! Everything that a reload exchanges, as one value: whoever looks at it sees all of the old or all of the new.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use http::Request;
use http::header::{AUTHORIZATION, HeaderMap};
use ipnet::IpNet;

use super::{ApiKey, Digest, Hosts, Identity, Methods, Origins, Plan, Proxies, Tokens, Weights};
use crate::delivery::Kind;
use crate::patterns::Patterns;

/// What the configuration says about clients.
#[derive(Debug)]
pub struct Policy {
    /// Most open connections, of either kind, of all clients.
    pub max_connections: usize,
    /// Most connections that have not sent a request yet.
    pub max_handshakes: usize,
    /// Pages that may connect.
    pub origins: Origins,
    /// Names by which we may be asked for.
    pub hosts: Hosts,
    /// WebSocket subprotocols that are echoed.
    pub subprotocols: Vec<String>,
    /// The proxies before us.
    pub proxies: Proxies,
    /// Who proves what.
    pub auth: Auth,
    /// Of those who prove nothing.
    pub anonymous: Arc<Rights>,
    /// Of tokens, by the name of their plan.
    pub plans: HashMap<Arc<str>, Arc<Rights>>,
}

impl Policy {
    /// What an identity may do; none where it is nobody's any more.
    #[must_use]
    pub fn rights(&self, identity: &Identity) -> Option<Arc<Rights>> {
        match identity {
            Identity::Key(digest) => self.auth.keys.get(digest).cloned(),
            Identity::Token { plan, .. } => {
                self.auth.tokens.as_ref()?;
                self.plans.get(plan).cloned()
            }
            Identity::Network(_) | Identity::Connection(_) => (!self.auth.required).then(|| self.anonymous.clone()),
        }
    }

    /// Whether a page may ask whether it may ask. Its question comes without the key, so pages of any key pass.
    #[must_use]
    pub fn may_ask(&self, headers: &HeaderMap) -> bool {
        let mut of_keys = self.auth.keys.values().filter_map(|rights| rights.origins.as_ref());
        self.origins.check(headers) || of_keys.any(|origins| origins.check(headers))
    }
}

/// What one identity may do.
#[derive(Clone, Debug)]
pub struct Rights {
    /// How much.
    pub plan: Arc<Plan>,
    /// Which methods.
    pub methods: Methods,
    /// What each costs.
    pub weights: Arc<Weights>,
    /// Which subscriptions.
    pub kinds: Kinds,
    /// Which kinds that are not known here are asked of the node, as `<namespace>_<kind>`.
    pub passed: Arc<Patterns>,
    /// From which pages, where its key says so.
    pub origins: Option<Origins>,
    /// From which addresses, where its key says so.
    pub addresses: Option<Vec<IpNet>>,
}

impl Rights {
    /// From which pages.
    #[must_use]
    pub fn origins<'a>(&'a self, policy: &'a Policy) -> &'a Origins {
        self.origins.as_ref().unwrap_or(&policy.origins)
    }

    /// Whether it may come from there; from an address that nobody tells it may not, where addresses matter.
    #[must_use]
    pub fn allows_address(&self, address: Option<IpAddr>) -> bool {
        self.addresses.as_ref().is_none_or(|allowed| {
            address.is_some_and(|address| allowed.iter().any(|network| network.contains(&address.to_canonical())))
        })
    }
}

/// Kinds of subscriptions.
#[derive(Clone, Debug, Default)]
pub struct Kinds(Option<Vec<Kind>>);

/// The text is no kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no kind of subscription: use newHeads, logs, newPendingTransactions, syncing, minedTransactions, \
     transactionReceipts or passed (those that only the node knows)"
)]
pub struct NoKind(String);

impl Kinds {
    /// All of them.
    pub const ALL: Self = Self(None);

    /// These.
    ///
    /// # Errors
    /// [`NoKind`], which names the first that is none.
    pub fn parse(names: &[String]) -> Result<Self, NoKind> {
        let kind = |name: &String| {
            let mut kinds = Kind::ALL.into_iter();
            kinds
                .find(|kind| kind.label() == name)
                .ok_or_else(|| NoKind(name.clone()))
        };
        names.iter().map(kind).collect::<Result<_, _>>().map(Some).map(Self)
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn allow(&self, kind: Kind) -> bool {
        self.0.as_ref().is_none_or(|kinds| kinds.contains(&kind))
    }
}

/// A place in a request where a key may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// `Authorization: Bearer …`.
    Bearer,
    /// `X-API-Key: …`.
    Header,
    /// `/KEY`, `/v1/KEY`: the last segment of the path.
    Path,
    /// `?key=…`.
    Query,
}

/// Where keys are looked for.
#[derive(Clone, Debug, Default)]
pub struct Ways(pub Vec<Way>);

/// Who proves what.
#[derive(Debug, Default)]
pub struct Auth {
    /// Nobody comes in without.
    pub required: bool,
    /// Where keys are looked for.
    pub ways: Ways,
    /// Keys, by their hash.
    pub keys: HashMap<Digest, Arc<Rights>>,
    /// Tokens, where they are taken.
    pub tokens: Option<Tokens>,
}

impl Auth {
    /// Whether there is anything that could be proven.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.required || !self.keys.is_empty() || self.tokens.is_some()
    }

    /// The keys that tokens may be signed with.
    pub(super) fn signers(&self) -> HashSet<Digest> {
        self.tokens.iter().flat_map(Tokens::signers).collect()
    }

    /// The key or token that this request shows, where anything could be proven.
    pub(super) fn shown<'a, B>(&self, request: &'a Request<B>) -> Option<Cow<'a, str>> {
        if self.is_used() { self.ways.find(request) } else { None }
    }
}

impl Ways {
    /// The first key or token that stands where one may.
    fn find<'a, B>(&self, request: &'a Request<B>) -> Option<Cow<'a, str>> {
        [Way::Bearer, Way::Header, Way::Path, Way::Query]
            .into_iter()
            .filter(|way| self.0.contains(way))
            .find_map(|way| way.find(request))
    }
}

impl Way {
    fn find<B>(self, request: &Request<B>) -> Option<Cow<'_, str>> {
        let header = |name| {
            request
                .headers()
                .get(name)
                .and_then(|value: &http::HeaderValue| value.to_str().ok())
        };
        match self {
            Self::Bearer => {
                // Other schemes are not for us: libraries make one of an address with a user.
                let (scheme, token) = header(AUTHORIZATION.as_str())?.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().into())
            }
            Self::Header => header("x-api-key").map(|key| key.trim().into()),
            Self::Path => {
                // An ordinary path is no key that failed.
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
    fn check(ways: &[Way], target: &str, headers: &[(&str, &str)], expect: Option<&str>) {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        assert_eq!(
            Ways(ways.to_vec()).find(&request).as_deref(),
            expect,
            "{target} {headers:?}"
        );
    }

    #[test]
    fn a_key_is_found_where_it_may_stand_and_nowhere_else() {
        let all = [Way::Query, Way::Path, Way::Header, Way::Bearer];
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
