//! Addresses to which events may be posted: an operator's webhook must not become a request to a service within the
//! operator's network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Checks if an address is on the public Internet, by the registries of special-purpose addresses (RFC 6890 and its
/// successors at IANA).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match embedded_v4(address) {
            Some(within) => is_public_v4(within),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match a {
        0 | 10 | 127 => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => matches!((b, c), (0, 0 | 2) | (88, 99) | (168, _)),
        198 => matches!((b, c), (18 | 19, _) | (51, 100)),
        203 => (b, c) == (0, 113),
        // Multicast, reserved, broadcast.
        224.. => true,
        _ => false,
    };
    !is_special
}

/// Returns the IPv4 address to which a gateway or the system translates this one.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let low = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        // Mapped (::ffff:0:0/96), translated (::ffff:0:0:0/96), and NAT64 (64:ff9b::/96, RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, g, h] | [0, 0, 0, 0, 0xffff, 0, g, h] | [0x64, 0xff9b, 0, 0, 0, 0, g, h] => {
            Some(low(g, h))
        }
        // 6to4.
        [0x2002, b, c, ..] => Some(low(b, c)),
        _ => None,
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Only 2000::/3 is given out as global unicast. Loopback, unique-local, link-local, site-local, multicast, and
    // compatible addresses are elsewhere.
    let is_global = segments[0] & 0xe000 == 0x2000;
    let is_special = match segments {
        // IETF protocol assignments with Teredo, and documentation.
        [0x2001, b, ..] => b < 0x0200 || b == 0x0db8,
        [0x3fff, b, ..] => b < 0x1000,
        _ => false,
    };
    is_global && !is_special
}

/// Address that is not posted to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a public address: set allow_private = true if the receiver is there")]
pub struct PrivateAddress(pub String);

/// Checks the host of a URL if it is an address: such a host is not resolved.
///
/// # Errors
/// [`PrivateAddress`] for an address that is not public.
pub fn check_host(url: &Url) -> Result<(), PrivateAddress> {
    let address: IpAddr = match url.host() {
        Some(Host::Ipv4(address)) => address.into(),
        Some(Host::Ipv6(address)) => address.into(),
        Some(Host::Domain(_)) | None => return Ok(()),
    };
    match is_public(address) {
        true => Ok(()),
        false => Err(PrivateAddress(address.to_string())),
    }
}

/// Resolver of names, which the connection is made with: it returns public addresses only, so a name cannot lead
/// elsewhere between the check and the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public = public_of(name.as_str(), found)?;
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

fn public_of(name: &str, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, PrivateAddress> {
    let (public, other): (Vec<_>, Vec<_>) = found.partition(|address| is_public(address.ip()));
    match (public.is_empty(), other.first()) {
        (true, Some(first)) => Err(PrivateAddress(format!("{name} ({})", first.ip()))),
        _ => Ok(public),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_public_are_refused() {
        for (addresses, expect) in [
            ("0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 127.0.0.1 127.9.9.9", false),
            (
                "100.64.0.1 100.127.255.255 169.254.169.254 172.16.0.1 172.31.255.255",
                false,
            ),
            (
                "192.168.0.1 192.0.0.8 192.0.2.1 192.88.99.1 198.18.0.1 198.19.9.9 198.51.100.7 203.0.113.9",
                false,
            ),
            ("224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255", false),
            (
                "1.1.1.1 9.9.9.9 11.0.0.1 100.63.0.1 100.128.0.1 126.1.1.1 128.0.0.1 169.253.1.1",
                true,
            ),
            (
                "172.15.0.1 172.32.0.1 192.167.1.1 192.169.1.1 198.17.0.1 198.20.0.1 223.255.255.254",
                true,
            ),
            (":: ::1 fe80::1 febf::1 fc00::1 fdff::1 fec0::1 ff02::1 ff0e::1", false),
            (
                "2001::1 2001:20::1 2001:db8::1 3fff::1 100::1 4000::1 ::7f00:1 ::10.0.0.1",
                false,
            ),
            (
                "::ffff:127.0.0.1 ::ffff:10.1.2.3 ::ffff:169.254.169.254 ::ffff:0:192.168.0.1",
                false,
            ),
            (
                "64:ff9b::10.0.0.1 64:ff9b:1::1 2002:7f00:1:: 2002:a00:1:: 2002:c0a8:1::",
                false,
            ),
            (
                "::ffff:1.1.1.1 64:ff9b::1.1.1.1 2002:101:101:: 2001:4860:4860::8888 2606:4700::1111 2a00::1",
                true,
            ),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(is_public(address.parse().unwrap()), expect, "{address}");
            }
        }
    }

    #[test]
    fn an_address_in_a_url_is_checked_however_it_is_written() {
        for (url, is_refused) in [
            ("http://127.0.0.1/", true),
            ("http://2130706433/", true),
            ("http://0x7f.1/", true),
            ("http://0177.0.0.1/", true),
            ("https://[::1]/", true),
            ("https://[::ffff:10.0.0.1]/", true),
            ("https://user@10.0.0.1:80/", true),
            ("https://1.1.1.1/", false),
            ("https://localhost/", false),
        ] {
            assert_eq!(check_host(&url.parse().unwrap()).is_err(), is_refused, "{url}");
        }
    }

    #[test]
    fn a_name_leads_to_its_public_addresses_only() {
        let of = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0));
            public_of("hooks.example", addresses).map(|own| own.len())
        };
        assert_eq!(of(&["10.0.0.1", "1.1.1.1", "::1"]), Ok(1));
        assert_eq!(of(&[]), Ok(0));
        let why = of(&["10.0.0.1"]).unwrap_err().to_string();
        assert!(
            why.starts_with("hooks.example (10.0.0.1) is not a public address"),
            "{why}"
        );
    }

    #[tokio::test]
    async fn localhost_is_not_resolved() {
        let refused = PublicResolver.resolve("localhost".parse().unwrap()).await;
        assert!(refused.is_err());
    }
}
