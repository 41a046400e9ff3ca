//! Who is charged.

use std::net::IpAddr;
use std::sync::Arc;

use super::Digest;

/// Who is charged: whoever proved something, else the network it comes from, else the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The holder of an API key. By its hash, so that a key that is replaced under its name is another one.
    Key(Digest),
    /// The subject of a token, on the plan that the token names.
    Token {
        /// `sub`.
        subject: Arc<str>,
        /// Name of a plan.
        plan: Arc<str>,
    },
    /// An address, or its network.
    Network(Network),
    /// Somebody of whom a trusted proxy says only that there is somebody.
    Connection(u64),
}

/// An IPv4 address, or the /64 of an IPv6 address, for a /64 is one customer.
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
    }
}
