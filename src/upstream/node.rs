//! A node as the operator describes it: where it is, and what may be asked of it.

use super::Endpoint;
use crate::patterns::Patterns;

/// One configured node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Whether it has the state of every block. While such a one is connected, questions about the state of old blocks go to
    /// such ones alone.
    pub archive: bool,
    /// What it serves.
    pub methods: Patterns,
    /// Which of the clients' calls it gets.
    pub calls: Share,
}

/// A node's part of the clients' calls; the stream itself goes by priority alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// As many as it answers quickly.
    #[default]
    Share,
    /// Those that no other can take.
    Spare,
    /// None: it is there for heads and logs.
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
