//! Methods that may be called, and their costs.

use std::collections::{BTreeMap, HashMap};

use super::effect;
use crate::method_pattern::{InvalidPattern, Pattern, Patterns};

/// The methods that may be called.
#[derive(Clone, Debug, Default)]
pub struct Methods {
    /// Allowed methods: a pattern covers methods that read; a method that acts must be named in full.
    pub allowed: Patterns,
    /// Denied methods, compared without regard to case; they override `allowed`.
    pub denied: Patterns,
    /// Methods that are allowed beyond that list.
    pub beyond: Beyond,
}

/// Methods that may be called although no list names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beyond {
    /// No further methods: a key's list is complete.
    #[default]
    Nothing,
    /// Further methods by the settings that apply to all clients.
    Settings {
        /// Treatment of unknown namespaces.
        unknown: Unknown,
        /// Treatment of methods for development.
        development: Development,
    },
}

/// Treatment of namespaces that are not known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// Refusal with geth's "does not exist".
    #[default]
    Refuse,
    /// Forwarding to the node, unless the name shows that the method acts.
    Serve,
}

/// Treatment of the methods by which a development chain is commanded, and of a development node's own accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Development {
    /// No exception: these methods follow the same rules as others.
    #[default]
    Off,
    /// Served where every upstream is a development node, and clients connect from this machine alone.
    Local,
}

/// Decision about a call of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed, whatever the upstreams are.
    Serve,
    /// Allowed only while every upstream is a development node.
    InDevelopment,
    /// Refused.
    Refuse,
}

impl Methods {
    /// Checks if a method may be called whatever the upstreams are.
    #[must_use]
    pub fn allow(&self, method: &str) -> bool {
        self.verdict(method) == Verdict::Serve
    }

    /// Decides if a method may be called.
    #[must_use]
    pub fn verdict(&self, method: &str) -> Verdict {
        if self.denied.match_any_case(method) {
            return Verdict::Refuse;
        }
        let (unknown, development) = match self.beyond {
            Beyond::Nothing => (Unknown::Refuse, Development::Off),
            Beyond::Settings { unknown, development } => (unknown, development),
        };
        let acts = effect::acts(method);
        let is_served_unlisted = unknown == Unknown::Serve && !acts && !effect::is_known(method);
        if self.list(method, acts) || is_served_unlisted {
            Verdict::Serve
        } else if development == Development::Local && effect::is_for_development(method) {
            Verdict::InDevelopment
        } else {
            Verdict::Refuse
        }
    }

    /// Checks if a method may be called that the embedding program adds: it need not be listed, unless the list is a
    /// key's own and so complete.
    #[must_use]
    pub fn allow_added(&self, method: &str) -> bool {
        !self.denied.match_any_case(method)
            && (self.beyond != Beyond::Nothing || self.list(method, effect::acts(method)))
    }

    /// Checks if a method of headwater's own may be called: a client learns by them of itself alone, so no list need name
    /// them.
    #[must_use]
    pub fn allow_own(&self, method: &str) -> bool {
        !self.denied.match_any_case(method)
    }

    /// Checks if a subscription may be started by this method. Kinds that only the node knows are allowed one by one in
    /// `subscriptions.passthrough`, so that an unknown namespace need not be listed here as well.
    #[must_use]
    pub fn allow_subscription(&self, method: &str) -> bool {
        let acts = effect::acts(method);
        let is_passed = self.beyond != Beyond::Nothing && !acts && !effect::is_known(method);
        !self.denied.match_any_case(method) && (self.list(method, acts) || is_passed)
    }

    fn list(&self, method: &str, acts: bool) -> bool {
        if acts {
            self.allowed.name(method)
        } else {
            self.allowed.match_any(method)
        }
    }
}

/// Costs of calls, in units of the request quota; 1 for a method without an entry.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    names: HashMap<String, u32>,
    /// Prefixes and costs, the longest prefix first: the most specific one counts.
    prefixes: Vec<(String, u32)>,
}

impl Weights {
    /// Reads the costs by method name or prefix (`debug_*`).
    ///
    /// # Errors
    /// [`InvalidPattern`] if a text is neither a method name nor a prefix.
    pub fn parse(weights: &BTreeMap<String, u32>) -> Result<Self, InvalidPattern> {
        let mut read = Self::default();
        for (text, weight) in weights {
            match Pattern::parse(text)? {
                Pattern::Name(name) => drop(read.names.insert(name, *weight)),
                Pattern::Prefix(prefix) => read.prefixes.push((prefix, *weight)),
            }
        }
        read.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(read)
    }

    /// Returns the cost of one call.
    #[must_use]
    pub fn of(&self, method: &str) -> u32 {
        let prefixed = || {
            self.prefixes
                .iter()
                .find_map(|(prefix, weight)| method.starts_with(prefix.as_str()).then_some(*weight))
        };
        self.names.get(method).copied().or_else(prefixed).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Patterns {
        Patterns::parse(texts).unwrap()
    }

    #[track_caller]
    fn check(methods: &Methods, rows: &[(&str, Verdict)]) {
        for (method, verdict) in rows {
            assert_eq!(methods.verdict(method), *verdict, "{method}");
        }
    }

    #[test]
    fn what_is_denied_is_not_allowed_whatever_else_is_said() {
        let methods = Methods {
            allowed: patterns(&["eth_*", "debug_traceCall", "eth_sign"]),
            denied: patterns(&["eth_getLogs", "eth_sign*", "debug_*"]),
            beyond: Beyond::Settings {
                unknown: Unknown::Serve,
                development: Development::Local,
            },
        };
        for (method, allowed) in [
            ("eth_call", true),
            ("eth_getLogs", false),
            ("eth_getlogs", false),
            ("eth_sign", false),
            ("eth_signTypedData_v4", false),
            ("debug_traceCall", false),
            ("net_version", false),
            ("Eth_call", false),
            ("unheard_of", true),
        ] {
            assert_eq!(methods.allow(method), allowed, "{method}");
            assert!(allowed || methods.verdict(method) == Verdict::Refuse);
        }
        assert!(!Methods::default().allow("eth_call"));
        for wrong in ["", "a*b", "*_call", "eth call"] {
            assert!(Patterns::parse(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pattern_opens_nothing_that_acts() {
        use Verdict::{Refuse, Serve};
        for pattern in [
            "*",
            "eth_*",
            "eth_s*",
            "eth_sendTransaction*",
            "e*",
            "debug_*",
            "debug_s*",
            "admin_*",
            "evm_*",
        ] {
            let methods = Methods {
                allowed: patterns(&[pattern]),
                ..Methods::default()
            };
            let acting = [
                "eth_sendTransaction",
                "eth_sign",
                "eth_SIGN",
                "debug_setHead",
                "admin_peers",
                "evm_mine",
                "x_setY",
            ];
            check(&methods, &acting.map(|method| (method, Refuse)));
        }
        let named = Methods {
            allowed: patterns(&["eth_*", "eth_sendTransaction", "admin_peers", "debug_*"]),
            ..Methods::default()
        };
        check(
            &named,
            &[
                ("eth_sendTransaction", Serve),
                ("eth_SendTransaction", Refuse),
                ("eth_sign", Refuse),
                ("admin_peers", Serve),
                ("admin_addPeer", Refuse),
                ("debug_traceCall", Serve),
                ("debug_writeMemProfile", Refuse),
                ("evm_mine", Refuse),
                ("unheard_of", Refuse),
            ],
        );
    }

    #[test]
    fn beyond_the_list_is_what_the_settings_say() {
        use Verdict::{InDevelopment, Refuse, Serve};
        let methods = |unknown, development| Methods {
            allowed: patterns(&["eth_*"]),
            denied: patterns(&["hardhat_reset"]),
            beyond: Beyond::Settings { unknown, development },
        };
        let rows = |unknown, development| {
            [
                ("eth_call", Serve),
                ("unheard_of", unknown),
                ("unheard_setOf", Refuse),
                ("debug_traceCall", Refuse),
                ("evm_mine", development),
                ("eth_sendTransaction", development),
                ("hardhat_reset", Refuse),
                ("tenderly_setBalance", Refuse),
                ("personal_sign", Refuse),
            ]
        };
        check(&methods(Unknown::Refuse, Development::Off), &rows(Refuse, Refuse));
        check(&methods(Unknown::Serve, Development::Off), &rows(Serve, Refuse));
        check(
            &methods(Unknown::Refuse, Development::Local),
            &rows(Refuse, InDevelopment),
        );
        let subscribes = |methods: &Methods, method: &str| methods.allow_subscription(method);
        let everybodys = methods(Unknown::Refuse, Development::Local);
        for method in ["eth_subscribe", "chain_subscribe", "chain_subscribeBlocks"] {
            assert!(subscribes(&everybodys, method), "{method}");
        }
        for method in ["debug_subscribe", "admin_subscribe", "evm_subscribe"] {
            assert!(!subscribes(&everybodys, method), "{method}");
        }
        let keys = Methods {
            allowed: patterns(&["debug_subscribe", "admin_*"]),
            ..Methods::default()
        };
        for (method, may) in [
            ("debug_subscribe", true),
            ("eth_subscribe", false),
            ("chain_subscribe", false),
            ("admin_subscribe", false),
        ] {
            assert_eq!(subscribes(&keys, method), may, "{method}");
        }
    }

    #[test]
    fn the_closest_word_gives_the_weight() {
        let weights = [
            ("eth_getLogs", 10),
            ("debug_*", 50),
            ("debug_trace*", 100),
            ("web3_*", 0),
        ];
        let weights = weights.map(|(text, weight)| (text.to_owned(), weight)).into();
        let weights = Weights::parse(&weights).unwrap();
        for (method, weight) in [
            ("eth_getLogs", 10),
            ("eth_getLogsX", 1),
            ("eth_call", 1),
            ("debug_traceCall", 100),
            ("debug_storageRangeAt", 50),
            ("web3_sha3", 0),
        ] {
            assert_eq!(weights.of(method), weight, "{method}");
        }
    }
}
