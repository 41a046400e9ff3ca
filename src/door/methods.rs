//! Which methods may be called, and what each costs.

use std::collections::{BTreeMap, HashMap};

use crate::patterns::{NoPattern, Pattern, Patterns};

/// What may be called.
#[derive(Clone, Debug, Default)]
pub struct Methods {
    /// These.
    pub allowed: Patterns,
    /// But not these.
    pub denied: Patterns,
}

impl Methods {
    /// Whether this one may.
    #[must_use]
    pub fn allow(&self, method: &str) -> bool {
        self.allowed.match_any(method) && !self.denied.match_any(method)
    }
}

/// What a call costs; 1 where nothing else is said.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    names: HashMap<String, u32>,
    /// Longest first: the closest word counts.
    prefixes: Vec<(String, u32)>,
}

impl Weights {
    /// Reads them.
    ///
    /// # Errors
    /// [`NoPattern`].
    pub fn parse(weights: &BTreeMap<String, u32>) -> Result<Self, NoPattern> {
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

    /// Of one call.
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

    #[test]
    fn what_is_denied_is_not_allowed_whatever_else_is_said() {
        let methods = Methods {
            allowed: patterns(&["eth_*", "debug_traceCall"]),
            denied: patterns(&["eth_sign*", "debug_*"]),
        };
        for (method, allowed) in [
            ("eth_call", true),
            ("eth_sign", false),
            ("eth_signTypedData_v4", false),
            ("debug_traceCall", false),
            ("net_version", false),
            ("Eth_call", false),
            ("", false),
        ] {
            assert_eq!(methods.allow(method), allowed, "{method}");
        }
        assert!(!Methods::default().allow("eth_call"));
        for wrong in ["", "a*b", "*_call", "eth call"] {
            assert!(Patterns::parse(&[wrong]).is_err(), "{wrong}");
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
