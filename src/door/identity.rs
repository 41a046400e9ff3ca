//! Identities: the parties to which limits apply.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::Digest;

/// Party that is charged: the holder of a key or token, else the client's network, else the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Holder of an API key, by the key's hash: a key that is replaced under the same name is another identity.
    Key(Digest),
    /// Subject of a token, on the plan of the token.
    Token {
        /// Claim `sub`.
        subject: Arc<str>,
        /// Name of the plan.
        plan: Arc<str>,
    },
    /// Network of a client without a key or token.
    Network(Network),
    /// Number of a connection, for a client whose address a trusted proxy withholds (`for=unknown`).
    Connection(u64),
    /// Number of a connection to the embedding program's own server, which limits its clients itself.
    Within(u64),
    /// Name of a webhook, which the settings bound.
    Webhook(Arc<str>),
}

impl Identity {
    /// Returns bytes that differ from those of any other identity; `None` for one that means nothing to another
    /// process: a number, or a webhook of this one.
    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        Some(match self {
            Self::Key(digest) => [&[1], &digest.to_bytes()[..]].concat(),
            Self::Token { subject, plan } => {
                let length = (subject.len() as u64).to_be_bytes();
                [&[2], &length[..], subject.as_bytes(), plan.as_bytes()].concat()
            }
            Self::Network(Network(prefix, is_v6)) => [&[3, u8::from(*is_v6)], &prefix.to_be_bytes()[..]].concat(),
            Self::Connection(_) | Self::Within(_) | Self::Webhook(_) => return None,
        })
    }
}

/// IPv4 address, or the /64 of an IPv6 address: a /64 belongs to one customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(u64, bool);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u32::from(address).into(), false),
            IpAddr::V6(address) => Self((u128::from(address) >> 64) as u64, true),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(address, false) => Ipv4Addr::from(address as u32).fmt(f),
            Self(prefix, true) => write!(f, "{}/64", Ipv6Addr::from(u128::from(prefix) << 64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_64_is_one_client() {
        let network = |text: &str| Network::from(text.parse::<IpAddr>().expect("ip"));
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
        assert_eq!(network("10.0.0.1").to_string(), "10.0.0.1");
        assert_eq!(network("2001:db8:1:2::9").to_string(), "2001:db8:1:2::/64");
    }
}
