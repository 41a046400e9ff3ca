//! Negotiation of the WebSocket extension permessage-deflate (RFC 7692 section 7.1).
//!
//! Client messages are compressed without context takeover, so that an idle client costs no memory. A client need not
//! offer this: the response may demand it (section 7.1.1.2). Server messages are compressed once for all clients in
//! either case; clients that do not request messages without context (section 7.1.1.1) get shorter ones.

use http::header::{HeaderMap, SEC_WEBSOCKET_EXTENSIONS};

use crate::delivery::Compression;

/// Agreed extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Compression of messages to the client.
    pub compression: Compression,
    /// Value of `Sec-WebSocket-Extensions` in the response.
    pub answer: &'static str,
}

/// Accepts the first acceptable offer, since offers are in the client's order of preference; `None` if there is none.
#[must_use]
pub fn agree(headers: &HeaderMap) -> Option<Agreement> {
    headers
        .get_all(SEC_WEBSOCKET_EXTENSIONS)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| split(value, ','))
        .find_map(answer)
}

/// Returns the response to one offer; `None` if the offer has to be declined (section 7.1): a parameter is unknown,
/// repeated or has an invalid value, or the server's window would be smaller than the 32 KiB used for compression.
fn answer(offer: &str) -> Option<Agreement> {
    let mut parts = split(offer, ';');
    if parts.next()? != "permessage-deflate" {
        return None;
    }
    let mut seen = Vec::new();
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (trim(name), Some(unquoted(trim(value)))),
            None => (part, None),
        };
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
        match (name, value) {
            ("server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits", None) => {}
            // The client may choose its window: messages are inflated with the largest one in any case (section
            // 7.1.2.2).
            ("client_max_window_bits", Some("8" | "9" | "10" | "11" | "12" | "13" | "14" | "15")) => {}
            ("server_max_window_bits", Some("15")) => {}
            _ => return None,
        }
    }
    // If offered, both have to be repeated in the response.
    let alone = seen.contains(&"server_no_context_takeover");
    let window = seen.contains(&"server_max_window_bits");
    Some(Agreement {
        compression: if alone {
            Compression::NoTakeover
        } else {
            Compression::Takeover
        },
        answer: match (alone, window) {
            (false, false) => "permessage-deflate; client_no_context_takeover",
            (false, true) => "permessage-deflate; client_no_context_takeover; server_max_window_bits=15",
            (true, false) => "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            (true, true) => {
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15"
            }
        },
    })
}

/// Splits a header's value at `separator`, except inside quoted strings.
fn split(value: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = value.split(move |c| {
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && quoted && !escaped;
        c == separator && !quoted
    });
    parts.map(trim)
}

/// Removes the quotes of a value (RFC 6455 section 9.1). Escapes are left as they are: no valid value needs one.
fn unquoted(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value)
}

fn trim(part: &str) -> &str {
    part.trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(offers: &[&'static str], expect: Option<(Compression, &str)>) {
        let mut headers = HeaderMap::new();
        for offer in offers {
            headers.append(SEC_WEBSOCKET_EXTENSIONS, offer.parse().unwrap());
        }
        let agreed = agree(&headers).map(|agreed| (agreed.compression, agreed.answer));
        assert_eq!(agreed, expect, "{offers:?}");
    }

    #[test]
    fn what_can_be_taken_is_taken() {
        let takeover = Some((Compression::Takeover, "permessage-deflate; client_no_context_takeover"));
        for offer in [
            "permessage-deflate",
            // Browsers, `ws` and Python's websockets.
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate;client_max_window_bits=8",
            "permessage-deflate ; client_max_window_bits = \"15\"",
            "permessage-deflate; client_no_context_takeover",
            "x-webkit-deflate-frame, permessage-deflate",
            "permessage-bzip2; x=\"a, permessage-deflate; b\", \tpermessage-deflate",
            // RFC 7692 section 7.1.3: a preferred offer, and a fallback.
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            "permessage-deflate; unknown, permessage-deflate; client_max_window_bits",
        ] {
            check(&[offer], takeover);
        }
        check(&["x-other", "permessage-deflate"], takeover);
        let takeover = Some((
            Compression::Takeover,
            "permessage-deflate; client_no_context_takeover; server_max_window_bits=15",
        ));
        check(&["permessage-deflate; server_max_window_bits=15"], takeover);
        check(
            &["permessage-deflate; server_max_window_bits=\"15\", permessage-deflate"],
            takeover,
        );
    }

    #[test]
    fn messages_stand_alone_where_the_client_asks_for_it() {
        let alone = Some((
            Compression::NoTakeover,
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ));
        for offer in [
            "permessage-deflate; server_no_context_takeover",
            // Go's gorilla/websocket.
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=15",
            "permessage-deflate; server_no_context_takeover, permessage-deflate",
        ] {
            check(&[offer], alone);
        }
        check(
            &["permessage-deflate; server_no_context_takeover; server_max_window_bits=15"],
            Some((
                Compression::NoTakeover,
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15",
            )),
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_declined() {
        check(&[], None);
        for offer in [
            "",
            ",;=,\"",
            "permessage-bzip2",
            "Permessage-Deflate2",
            "permessage-deflate2; client_max_window_bits",
            "x; permessage-deflate",
            "x=\"permessage-deflate\"",
            "x=\", permessage-deflate, \"",
            "x=\"\\\", permessage-deflate, \"",
            "permessage-deflate; unknown",
            "permessage-deflate;",
            "permessage-deflate; client_max_window_bits; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=\"\"",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; client_max_window_bits=\"15",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=14",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=16",
        ] {
            check(&[offer], None);
        }
    }
}
