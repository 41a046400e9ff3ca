//! Ids of requests, by which a client's report, a log line and an access log line are put together.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Name of the header that carries the id, in requests and responses.
pub const HEADER: &str = "x-request-id";

/// Longest id that is accepted, in bytes: a UUID has 36, the ids of usual balancers up to 64.
const LONGEST: usize = 64;

/// Id of an HTTP request or of a WebSocket connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Origin);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// Made here.
    Made(u128),
    /// Sent with the request, and checked.
    Given(Arc<str>),
}

impl RequestId {
    /// Makes an id. It need not be unpredictable: it gives no access to anything.
    #[must_use]
    pub fn random() -> Self {
        Self(Origin::Made(fastrand::u128(..)))
    }

    /// Reads an id as it was sent: 1 to 64 letters, digits, `-`, `_` and `.` of ASCII. Others are `None`: an id is
    /// written to logs and headers as it is.
    #[must_use]
    pub fn parse(sent: &[u8]) -> Option<Self> {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        if sent.is_empty() || sent.len() > LONGEST || !sent.iter().all(is_plain) {
            return None;
        }
        std::str::from_utf8(sent)
            .ok()
            .map(|text| Self(Origin::Given(text.into())))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Origin::Made(number) => write!(f, "{number:032x}"),
            Origin::Given(text) => f.write_str(text),
        }
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_plain_characters_and_limited_length_is_kept_as_it_is() {
        let longest = "a".repeat(LONGEST);
        for id in ["a", "7f9c2b1e-5d3a-4f60-8e21-0c9d4b7a6f15", "Req_1.2", &longest] {
            assert_eq!(RequestId::parse(id.as_bytes()).unwrap().to_string(), id);
        }
        let too_long = "a".repeat(LONGEST + 1);
        for id in ["", "a b", "a\"b", "a\nb", "a/1", "ä", &too_long] {
            assert_eq!(RequestId::parse(id.as_bytes()), None, "{id:?}");
        }
        assert_eq!(RequestId::parse(b"\xff"), None);
    }

    #[test]
    fn a_made_id_has_a_form_that_is_accepted() {
        let made = RequestId::random();
        assert_eq!(made.to_string().len(), 32);
        assert!(RequestId::parse(made.to_string().as_bytes()).is_some());
        assert_ne!(made, RequestId::random());
    }
}
