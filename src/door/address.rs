//! The client's address: the peer's, or where the peer is a proxy of ours, the one that it tells.
//!
//! Each hop appends the address it was called from, so only the right end of the header is anybody's word but the client's
//! own: it is read from there, and no further than to the first hop that is not trusted. Which of the two headers counts is a
//! setting, for a proxy that appends to one of them passes the other on as the client wrote it.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// In which header trusted proxies tell whom they speak for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardedHeader {
    /// What nearly all of them do.
    #[default]
    #[serde(rename = "x-forwarded-for")]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// The proxies before us.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    trusted: Vec<IpNet>,
    header: ForwardedHeader,
}

/// What one hop says of the one before it.
enum Hop {
    At(IpAddr),
    /// RFC 7239 section 6: `unknown`, or a name that begins with `_`.
    Hidden,
    Unreadable,
}

impl Proxies {
    /// These networks hold proxies, who tell in this header.
    #[must_use]
    pub fn new(trusted: Vec<IpNet>, header: ForwardedHeader) -> Self {
        Self { trusted, header }
    }

    /// Whether a proxy of ours has this address.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// The client's address; none where a trusted proxy says that it keeps it to itself. Of what cannot be read the hop
    /// that sent it is taken for the client, so that nonsense never buys a limit of its own.
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
        // No address holds a comma, so quotes need no care; a client's own unbalanced one must not swallow what our
        // proxy has appended.
        let values: Vec<_> = headers.get_all(name).iter().collect();
        let hops = values
            .iter()
            .rev()
            .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        for hop in hops {
            // One hop that is no text says nothing about those that our proxies appended behind it.
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

/// `for=…` of one element of `Forwarded`.
fn element(text: &str) -> Hop {
    let node_of = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("for")
            .then(|| node(value.trim().trim_matches('"')))
    };
    text.split(';').find_map(node_of).unwrap_or(Hop::Unreadable)
}

/// An address, with or without a port.
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
