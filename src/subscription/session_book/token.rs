//! Name of a session, which its client makes when it starts and keeps in its URL.

use std::sync::Arc;
use std::time::Duration;

/// Age above which a token that is unknown here belonged to a session whose positions are lost: a client connects as
/// soon as it has made its token. Clocks that differ by more make the first connection end once.
const FRESH: Duration = Duration::from_secs(30);

/// Token of a session: `<unix seconds>-<random>`, 16 to 128 characters of `[A-Za-z0-9_-]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionToken {
    text: Arc<str>,
    /// Time at which the client made it, in seconds since 1970.
    made: u64,
}

impl SessionToken {
    /// Reads a token; `None` if it has another form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(16..=128).contains(&text.len()) || !text.bytes().all(is_plain) {
            return None;
        }
        let (made, random) = text.split_once('-')?;
        let is_number = !made.is_empty() && made.bytes().all(|byte| byte.is_ascii_digit());
        let made = made.parse().ok().filter(|_| is_number && !random.is_empty())?;
        Some(Self {
            text: text.into(),
            made,
        })
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the time at which the client made it, in seconds since 1970.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made
    }

    /// Checks if the token was made just now; `now` is in seconds since 1970.
    #[must_use]
    pub fn is_fresh(&self, now: u64) -> bool {
        is_fresh(self.made, now)
    }
}

/// Checks if this time is just now, both in seconds since 1970.
pub(super) fn is_fresh(time: u64, now: u64) -> bool {
    time.abs_diff(now) <= FRESH.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_time_and_something_random() {
        for text in [
            "1764504000-abcde",
            "1-aaaaaaaaaaaaaa",
            "1764504000-a_B-9",
            "0-00000000000000",
        ] {
            assert_eq!(SessionToken::parse(text).expect(text).as_str(), text);
        }
        assert!(SessionToken::parse(&format!("1764504000-{}", "x".repeat(117))).is_some());
        for text in [
            "",
            "1764504000-abcd",
            "1764504000abcdefgh",
            "-176450400012345",
            "+1764504000-abcde",
            "1764504000000000-",
            "x764504000-abcde",
            "1764504000-abcd%",
            "1764504000-abcdé",
            "99999999999999999999999-a",
        ] {
            assert_eq!(SessionToken::parse(text), None, "{text}");
        }
        assert!(SessionToken::parse(&format!("1764504000-{}", "x".repeat(118))).is_none());
    }

    #[test]
    fn a_token_is_fresh_for_half_a_minute_by_either_clock() {
        let token = SessionToken::parse("1000-aaaaaaaaaaa").expect("a token");
        for (now, fresh) in [(969, false), (970, true), (1000, true), (1030, true), (1031, false)] {
            assert_eq!(token.is_fresh(now), fresh, "{now}");
        }
    }
}
