//! A node as the operator configures it: its address, and the calls that it gets.

use super::Endpoint;
use crate::method_pattern::Patterns;

/// A configured node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Address of the node.
    pub endpoint: Endpoint,
    /// `true` if the node has the state of every block. While any such node is connected, calls about the state of
    /// old blocks go only to such nodes.
    pub archive: bool,
    /// Methods that the node serves.
    pub methods: Patterns,
    /// Share of the clients' calls that the node gets.
    pub calls: Share,
}

/// Nodes over HTTP that are offered to compress their answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeCompression {
    /// Nodes on other machines: on this one, compression costs time and saves none.
    #[default]
    Auto,
    /// All nodes.
    On,
    /// No node.
    Off,
}

impl NodeCompression {
    /// Checks if the node of this address is offered to compress.
    pub(super) fn is_offered(self, url: &url::Url) -> bool {
        let is_local = match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        match self {
            Self::Auto => !is_local,
            Self::On => true,
            Self::Off => false,
        }
    }
}

/// A node's share of the clients' calls; the stream of heads goes by priority alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Full share, according to load and latency.
    #[default]
    Share,
    /// Only calls that no other node can take.
    Spare,
    /// No calls: the node is used for heads and logs only.
    None,
}

impl From<Endpoint> for Node {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            archive: false,
            methods: Patterns::all(),
            calls: Share::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_on_this_machine_is_not_offered_to_compress() {
        for (url, auto) in [
            ("http://localhost:8545", false),
            ("http://127.0.0.1:8545", false),
            ("http://127.9.0.1", false),
            ("http://[::1]:8545", false),
            ("http://node.localhost", false),
            ("http://10.0.0.1:8545", true),
            ("https://node.example/key", true),
            ("http://[2001:db8::1]", true),
        ] {
            let address = url.parse().unwrap();
            assert_eq!(NodeCompression::Auto.is_offered(&address), auto, "{url}");
            assert!(NodeCompression::On.is_offered(&address) && !NodeCompression::Off.is_offered(&address));
        }
    }
}
