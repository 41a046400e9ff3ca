//! Patterns of method names in settings.

/// Names of methods, or prefixes that end in `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Name(String),
    Prefix(String),
}

/// The error for a text that is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid pattern: use a method's name, or a prefix followed by *, as in debug_*")]
pub struct InvalidPattern(String);

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if name.contains(|c: char| c == '*' || c.is_whitespace()) || (name.is_empty() && !is_prefix) {
            return Err(InvalidPattern(text.to_owned()));
        }
        let name = name.to_owned();
        Ok(if is_prefix {
            Self::Prefix(name)
        } else {
            Self::Name(name)
        })
    }

    fn matches(&self, method: &str) -> bool {
        match self {
            Self::Name(name) => method == name,
            Self::Prefix(prefix) => method.starts_with(prefix.as_str()),
        }
    }
}

impl Patterns {
    /// Returns the pattern that matches every method.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![Pattern::Prefix(String::new())])
    }

    /// Parses names and prefixes; surrounding whitespace is ignored.
    ///
    /// # Errors
    /// Returns [`InvalidPattern`] with the first text that is not a pattern.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, InvalidPattern> {
        let patterns = texts.iter().map(|text| Pattern::parse(text.as_ref().trim()));
        patterns.collect::<Result<_, _>>().map(Self)
    }

    /// Checks if a pattern matches every method.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.0.contains(&Pattern::Prefix(String::new()))
    }

    /// Checks if a pattern is exactly this method's name.
    #[must_use]
    pub fn name(&self, method: &str) -> bool {
        let is_named = |pattern: &Pattern| matches!(pattern, Pattern::Name(name) if name == method);
        self.0.iter().any(is_named)
    }

    /// Checks if a pattern matches this method, like [`Self::match_any`] but without regard to case.
    #[must_use]
    pub fn match_any_case(&self, method: &str) -> bool {
        let matches = |pattern: &Pattern| match pattern {
            Pattern::Name(name) => method.eq_ignore_ascii_case(name),
            Pattern::Prefix(prefix) => {
                let beginning = method.as_bytes().get(..prefix.len());
                beginning.is_some_and(|beginning| beginning.eq_ignore_ascii_case(prefix.as_bytes()))
            }
        };
        self.0.iter().any(matches)
    }

    /// Checks if a pattern matches this method.
    #[must_use]
    pub fn match_any(&self, method: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(method))
    }

    /// Checks if a pattern matches any name that begins with this prefix.
    #[must_use]
    pub fn reach(&self, prefix: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Name(name) => name.starts_with(prefix),
            Pattern::Prefix(own) => own.starts_with(prefix) || prefix.starts_with(own.as_str()),
        })
    }

    /// Returns the patterns that are names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|pattern| match pattern {
            Pattern::Name(name) => Some(name.as_str()),
            Pattern::Prefix(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_reached_from_above_and_below() {
        for (patterns, expect) in [
            (&["*"][..], true),
            (&["e*"], true),
            (&["eth_*"], true),
            (&["eth_new*"], true),
            (&["eth_newVotes"], true),
            (&["debug_traceChain", "ethx_*"], false),
            (&[], false),
        ] {
            assert_eq!(Patterns::parse(patterns).unwrap().reach("eth_"), expect, "{patterns:?}");
        }
    }

    #[test]
    fn names_are_told_from_prefixes() {
        let patterns = Patterns::parse(&["eth_*", "debug_traceCall", "x_y"]).unwrap();
        assert_eq!(Vec::from_iter(patterns.names()), ["debug_traceCall", "x_y"]);
    }
}
