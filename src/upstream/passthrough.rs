//! Subscriptions of a kind that only the node knows. They are passed through, with one subscription at the node for
//! all clients that have the same.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::NodeSubscription;
use super::naming::{SubscriptionMethod, ended_by};

/// Longest parameters, in bytes: they are kept as long as a client subscribes, and sent again after every failover.
const MAX_PARAMS: usize = 16 << 10;

/// Nesting depth down to which values are brought to one form; deeper values are compared as written.
const MAX_DEPTH: usize = 16;

/// A subscription to pass through, in one form for any white space and any order of members; numbers stay as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Passthrough {
    method: Arc<str>,
    params: Arc<str>,
}

/// Answers of the upstream in use to subscriptions: accepted, or refused with this error object.
pub type Answers = HashMap<NodeSubscription, Result<(), Bytes>>;

impl Passthrough {
    /// Makes the subscription by `method` (`<namespace>_subscribe`, `<namespace>_subscribe<Kind>`) with these
    /// parameters; `None` where they are longer than 16 KiB.
    #[must_use]
    pub fn new(method: &str, params: &[&RawValue]) -> Option<Self> {
        let len: usize = params.iter().map(|param| param.get().len()).sum();
        if len > MAX_PARAMS {
            return None;
        }
        let mut canonical = String::with_capacity(len + 2);
        list(params, 0, &mut canonical);
        Some(Self {
            method: method.into(),
            params: canonical.into(),
        })
    }

    /// Returns the method that begins the subscription.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Returns the parameters, as a JSON array.
    #[must_use]
    pub fn params(&self) -> &str {
        &self.params
    }

    /// Returns the namespace of the notifications, `<namespace>_subscription`: the part before the first `_`, as in
    /// geth.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.method
            .split_once('_')
            .map_or(&*self.method, |(namespace, _)| namespace)
    }

    /// Checks if the kind has its own method, `<namespace>_subscribe<Kind>`: then only the node knows the method of
    /// the notifications.
    #[must_use]
    pub fn is_of_its_own(&self) -> bool {
        !matches!(
            SubscriptionMethod::of(&self.method),
            Some(SubscriptionMethod::Subscribe(_))
        )
    }

    /// Returns the method that ends the subscription.
    pub(super) fn unsubscribe(&self) -> String {
        ended_by(&self.method)
    }
}

fn list(items: &[&RawValue], depth: usize, out: &mut String) {
    out.push('[');
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        canonical(item, depth, out);
    }
    out.push(']');
}

/// Appends a value in canonical form. Of two members with the same name the last one counts, as in Go.
fn canonical(value: &RawValue, depth: usize, out: &mut String) {
    let text = value.get();
    let deeper = depth < MAX_DEPTH;
    if deeper
        && text.starts_with('{')
        && let Ok(members) = serde_json::from_str::<BTreeMap<Cow<'_, str>, &RawValue>>(text)
    {
        out.push('{');
        for (at, (name, value)) in members.into_iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(&serde_json::Value::from(name).to_string());
            out.push(':');
            canonical(value, depth + 1, out);
        }
        out.push('}');
    } else if deeper
        && text.starts_with('[')
        && let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(text)
    {
        list(&items, depth + 1, out);
    } else {
        out.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passthrough(method: &str, params: &str) -> Option<Passthrough> {
        let params: Vec<&RawValue> = serde_json::from_str(params).expect("a list");
        Passthrough::new(method, &params)
    }

    #[test]
    fn equal_parameters_are_one_whatever_they_look_like() {
        let same = [
            r#"["x",{"a":[1,{"b":null,"c":"d"}],"e":1.0}]"#,
            r#"[ "x" , { "e" : 1.0, "a" : [ 1, { "c":"d", "b":null } ] } ]"#,
            r#"["x",{"a":0,"a":[1,{"b":null,"c":"d"}],"e":1.0}]"#,
        ];
        for text in same {
            let own = passthrough("eth_subscribe", text).expect("short");
            assert_eq!(own.params(), same[0]);
        }
        // Only the node knows the meaning of a number, so numbers are compared as written.
        for other in ["1.00", "1", "1e0", "10000000000000000000000000000000001"] {
            let text = same[0].replace("1.0", other);
            assert_eq!(passthrough("eth_subscribe", &text).expect("short").params(), text);
        }
    }

    #[test]
    fn the_method_says_what_announces_its_events_and_ends_it() {
        let eth = passthrough("eth_subscribe", r#"["x"]"#).expect("short");
        assert_eq!((eth.namespace(), &*eth.unsubscribe()), ("eth", "eth_unsubscribe"));
        let other = passthrough("chain_a_subscribe", r#"["x"]"#).expect("short");
        assert_eq!(
            (other.namespace(), &*other.unsubscribe()),
            ("chain", "chain_a_unsubscribe")
        );
        assert_ne!(eth, other);
        assert!(!eth.is_of_its_own() && !other.is_of_its_own());
        let own = passthrough("reth_subscribePersistedBlock", "[]").expect("short");
        assert!(own.is_of_its_own());
        assert_eq!(
            (own.namespace(), &*own.unsubscribe(), own.params()),
            ("reth", "reth_unsubscribePersistedBlock", "[]")
        );
    }

    #[test]
    fn parameters_up_to_the_limit_and_not_one_byte_more() {
        let of = |len: usize| format!("[\"{}\"]", "x".repeat(len - 2));
        assert!(passthrough("eth_subscribe", &of(MAX_PARAMS)).is_some());
        assert!(passthrough("eth_subscribe", &of(MAX_PARAMS + 1)).is_none());
        // Deep nesting does not overflow the stack.
        let deep = format!("[{}{}]", "[".repeat(8_000), "]".repeat(8_000));
        let read = passthrough("eth_subscribe", &deep).expect("short");
        assert_eq!(read.params(), deep);
    }
}
