//! Address of a client: the peer's, or the one that a trusted proxy reports in a header.
//!
//! Each hop appends the address that connected to it, so only the right end of the header can be trusted: the rest
//! may be the client's own text. The header is read from the right, up to the first hop that is not trusted. A setting
//! selects one of the two headers, because a proxy that appends to one passes the other on as the client wrote it.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Header in which trusted proxies report the address of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, which nearly all proxies use.
    #[default]
    #[serde(rename = "x-forwarded-for")]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Trusted proxies in front of headwater.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    trusted: Vec<IpNet>,
    header: ForwardedHeader,
}

/// Report of one hop about the hop before it.
enum Hop {
    At(IpAddr),
    /// RFC 7239 section 6: `unknown`, or a name that begins with `_`.
    Hidden,
    Unreadable,
}

impl Proxies {
    /// Trusts the proxies in these networks, and reads this header of theirs.
    #[must_use]
    pub fn new(trusted: Vec<IpNet>, header: ForwardedHeader) -> Self {
        Self { trusted, header }
    }

    /// Checks if this address belongs to a trusted proxy.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// Returns the client's address; `None` if a trusted proxy withholds it. If a hop's report cannot be read, the
    /// hop that sent it counts as the client, so that nonsense never gets a limit of its own.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return Some(client);
        }
        let (name, read): (_, fn(&str) -> Hop) = match self.header {
            ForwardedHeader::XForwardedFor => (X_FORWARDED_FOR, node),
            ForwardedHeader::Forwarded => (FORWARDED, element),
        };
        // No address contains a comma, so quotes are ignored: an unbalanced quote of the client must not swallow the
        // addresses that our proxy appended.
        let values: Vec<_> = headers.get_all(name).iter().collect();
        let hops = values
            .iter()
            .rev()
            .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        for hop in hops {
            // A hop that is not UTF-8 does not invalidate the hops that our proxies appended after it.
            let hop = std::str::from_utf8(hop).unwrap_or_default();
            match read(hop.trim()) {
                Hop::At(address) => client = address.to_canonical(),
                Hop::Hidden => return None,
                Hop::Unreadable => return Some(client),
            }
            if !self.trusts(client) {
                break;
            }
        }
        Some(client)
    }
}

/// Reads `for=…` of one element of `Forwarded`.
fn element(text: &str) -> Hop {
    let node_of = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("for")
            .then(|| node(value.trim().trim_matches('"')))
    };
    text.split(';').find_map(node_of).unwrap_or(Hop::Unreadable)
}

/// Reads an address, with or without a port.
fn node(text: &str) -> Hop {
    if text.eq_ignore_ascii_case("unknown") || text.starts_with('_') {
        return Hop::Hidden;
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .map_or(Hop::Unreadable, Hop::At)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(header: ForwardedHeader, peer: &str, lines: &[&str], expect: &str) {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap()).to_vec();
        let name = match header {
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
            ForwardedHeader::Forwarded => "forwarded",
        };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, http::HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        let client = Proxies::new(trusted, header).client(peer.parse().unwrap(), &headers);
        let client = client.map_or("hidden".to_owned(), |address| address.to_string());
        assert_eq!(client, expect, "{peer} {lines:?}");
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right_past_trusted_hops_only() {
        let xff = |peer, lines: &[&str], expect| check(ForwardedHeader::XForwardedFor, peer, lines, expect);
        xff("1.2.3.4", &[], "1.2.3.4");
        xff("1.2.3.4", &["9.9.9.9"], "1.2.3.4");
        xff("10.0.0.1", &[], "10.0.0.1");
        xff("10.0.0.1", &["9.9.9.9"], "9.9.9.9");
        xff("::ffff:10.0.0.1", &["9.9.9.9"], "9.9.9.9");
        xff("10.0.0.1", &["8.8.8.8, 9.9.9.9"], "9.9.9.9");
        xff("10.0.0.1", &["8.8.8.8, 9.9.9.9, 10.0.0.2"], "9.9.9.9");
        xff("10.0.0.1", &["8.8.8.8", "9.9.9.9,10.0.0.2"], "9.9.9.9");
        xff("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        xff("fd00::1", &["2001:db8::7"], "2001:db8::7");
        xff("10.0.0.1", &["9.9.9.9:51234"], "9.9.9.9");
        xff("10.0.0.1", &["[2001:db8::7]:443"], "2001:db8::7");
        xff("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7");
        xff("10.0.0.1", &["9.9.9.9, nonsense"], "10.0.0.1");
        xff("10.0.0.1", &["nonsense, 10.0.0.2"], "10.0.0.2");
        xff("10.0.0.1", &["9.9.9.9, "], "10.0.0.1");
        xff("10.0.0.1", &["9.9.9.9, \u{fc}"], "10.0.0.1");
        xff("10.0.0.1", &["unknown"], "hidden");
    }

    #[test]
    fn bytes_that_are_no_text_hide_nothing_that_a_proxy_appended() {
        for value in [
            &b"\xff, 9.9.9.9"[..],
            b"8.8.8.8\xff,9.9.9.9",
            b"\xff,\x80,9.9.9.9, 10.0.0.2",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", http::HeaderValue::from_bytes(value).unwrap());
            let proxies = Proxies::new(vec!["10.0.0.0/8".parse().unwrap()], ForwardedHeader::XForwardedFor);
            let client = proxies.client("10.0.0.1".parse().unwrap(), &headers);
            assert_eq!(client, Some("9.9.9.9".parse().unwrap()), "{value:?}");
        }
    }

    #[test]
    fn forwarded_is_read_the_same_way() {
        let forwarded = |lines: &[&str], expect| check(ForwardedHeader::Forwarded, "10.0.0.1", lines, expect);
        forwarded(&["for=9.9.9.9"], "9.9.9.9");
        forwarded(&["For=\"[2001:db8::7]:4711\";proto=https"], "2001:db8::7");
        forwarded(&["for=8.8.8.8, proto=http;for=9.9.9.9;by=10.0.0.1"], "9.9.9.9");
        forwarded(&["for=8.8.8.8", "for=9.9.9.9, for=10.0.0.2"], "9.9.9.9");
        forwarded(&["for=\"8.8.8.8, for=9.9.9.9"], "9.9.9.9");
        forwarded(&["for=_hidden"], "hidden");
        forwarded(&["for=unknown"], "hidden");
        forwarded(&["for=9.9.9.9, proto=http"], "10.0.0.1");
    }

    #[test]
    fn the_other_header_is_the_clients_own_word() {
        let mut headers = HeaderMap::new();
        headers.insert("forwarded", "for=9.9.9.9".parse().unwrap());
        let proxies = Proxies::new(vec!["10.0.0.0/8".parse().unwrap()], ForwardedHeader::XForwardedFor);
        let peer = "10.0.0.1".parse().unwrap();
        assert_eq!(proxies.client(peer, &headers), Some(peer));
    }
}
