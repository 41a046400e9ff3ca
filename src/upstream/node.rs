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
