//! The OpenRPC document of one client: the methods and kinds of subscriptions that it may use, and no others.
//!
//! ```text
//! methods  signatures and summaries         schemas  types of parameters, answers and events
//! kinds    kinds of subscriptions           grammar  notation of these tables
//! ```
//!
//! All parts but `eth_subscribe` are encoded once per process, and a document is put together from them, so that a client
//! that asks for it again and again costs little more than the bytes. The format is <https://spec.open-rpc.org> 1.3.2.

mod grammar;
mod kinds;
mod methods;
mod schemas;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::{Value, json};

use self::grammar::collect_names;
use self::kinds::{SUBSCRIBE, subscribe};
pub use self::methods::OWN;
use self::methods::{METHODS, method, undescribed};
use self::schemas::SCHEMAS;
use crate::delivery::Kind;

/// Version of the specification that the document follows.
const OPENRPC: &str = "1.3.2";

/// Rights of the client that the document is for.
pub struct Offer<'a> {
    /// Checks if the client may call a method, over the transport by which it asks.
    pub calls: &'a dyn Fn(&str) -> bool,
    /// Checks if the client may subscribe to a kind by `eth_subscribe`; [`Kind::Passthrough`] stands for the kinds that
    /// only the node knows.
    pub kinds: &'a dyn Fn(Kind) -> bool,
    /// Returns the cost of a call, in units of the request quota.
    pub weight: &'a dyn Fn(&str) -> u32,
    /// Names of further methods, which are described by their names alone: an embedder's, and those of the node that
    /// the settings name in full. Names that are known here are ignored.
    pub further: &'a [&'a str],
}

/// All parts of documents, encoded.
#[derive(Debug)]
struct Parts {
    methods: Vec<Part>,
    schemas: BTreeMap<&'static str, Part>,
    info: String,
    errors: String,
}

/// Method or schema.
#[derive(Debug)]
struct Part {
    name: &'static str,
    json: String,
    /// Names of the schemas to which the part refers.
    names: BTreeSet<String>,
}

impl Part {
    fn new(name: &'static str, value: &Value) -> Self {
        let mut names = BTreeSet::new();
        collect_names(value, &mut names);
        let json = value.to_string();
        Self { name, json, names }
    }

    /// Returns the method with the cost of a call.
    fn weighed(&self, weight: u32) -> String {
        let open = self.json.strip_suffix('}').unwrap_or(&self.json);
        format!(r#"{open},"x-weight":{weight}}}"#)
    }
}

static PARTS: LazyLock<Parts> = LazyLock::new(Parts::new);

/// Checks if a method is defined by headwater itself: `rpc_discover`, `headwater_…`.
#[must_use]
pub fn is_own(method: &str) -> bool {
    OWN.contains(&method)
}

/// Returns the document as JSON.
#[must_use]
pub fn document(offer: &Offer<'_>) -> String {
    let parts = &*PARTS;
    let subscribe = if (offer.calls)(SUBSCRIBE) {
        subscribe(offer.kinds)
    } else {
        None
    };
    let subscribe = subscribe.map(|value| Part::new(SUBSCRIBE, &value));
    let known = parts.methods.iter().filter(|part| (offer.calls)(part.name));
    let known: Vec<&Part> = known.chain(&subscribe).collect();
    let mut methods: Vec<_> = known
        .iter()
        .map(|part| part.weighed((offer.weight)(part.name)))
        .collect();
    let is_known = |name: &str| name == SUBSCRIBE || parts.methods.iter().any(|part| part.name == name);
    let further: BTreeSet<_> = offer.further.iter().filter(|name| !is_known(name)).collect();
    let further = further.into_iter().filter(|name| (offer.calls)(name));
    methods.extend(further.map(|name| undescribed(name, (offer.weight)(name)).to_string()));
    let schemas: Vec<_> = parts
        .needed(&known)
        .map(|part| format!(r#""{}":{}"#, part.name, part.json))
        .collect();
    format!(
        r#"{{"openrpc":"{OPENRPC}","info":{},"methods":[{}],"components":{{"schemas":{{{}}},"errors":{}}}}}"#,
        parts.info,
        methods.join(","),
        schemas.join(","),
        parts.errors,
    )
}

impl Parts {
    fn new() -> Self {
        let methods = METHODS.iter().filter_map(|(text, summary)| method(text, summary));
        let schemas = SCHEMAS.iter().map(|own| (own.name, Part::new(own.name, &own.value())));
        Self {
            methods: methods.map(|(name, value)| Part::new(name, &value)).collect(),
            schemas: schemas.collect(),
            info: info().to_string(),
            errors: errors().to_string(),
        }
    }

    /// Returns the schemas to which these methods refer, directly or by other schemas, sorted by name.
    fn needed(&self, methods: &[&Part]) -> impl Iterator<Item = &Part> {
        let mut needed = BTreeMap::new();
        let mut open: Vec<&Part> = methods.to_vec();
        while let Some(part) = open.pop() {
            for name in &part.names {
                if let Some(schema) = self.schemas.get(name.as_str())
                    && needed.insert(schema.name, schema).is_none()
                {
                    open.push(schema);
                }
            }
        }
        needed.into_values()
    }
}

fn info() -> Value {
    json!({
        "title": "headwater",
        "version": env!("CARGO_PKG_VERSION"),
        "description": "Ethereum JSON-RPC over WebSocket and HTTP. Methods and kinds of subscriptions are those that \
            the caller may use; a node may lack some of its methods, and answers then with error -32601. \
            x-answered-by: headwater; cache (headwater where it holds the answer, else a node); or node. \
            x-weight: units of the quota of requests that a call costs. \
            x-subscriptions: kinds of eth_subscribe, with their parameters behind the name, and their events.",
        "license": { "name": env!("CARGO_PKG_LICENSE") },
    })
}

/// Returns headwater's own errors.
fn errors() -> Value {
    json!({
        "CannotResume": {
            "code": -32001,
            "message": "cannot resume",
            "data": { "oldestBlock": "number of the oldest block that can be resumed from" },
        },
        "LimitExceeded": {
            "code": -32005,
            "message": "limit exceeded",
            "data": { "retryAfterMs": "wait until a retry can succeed; absent if it never can" },
        },
        "NotAvailable": { "code": -32601, "message": "the method does not exist/is not available" },
        "RequestTimedOut": { "code": -32002, "message": "request timed out" },
        "ResponseTooLarge": { "code": -32003, "message": "response too large" },
        "UpstreamUnavailable": { "code": -32603, "message": "upstream unavailable" },
    })
}
