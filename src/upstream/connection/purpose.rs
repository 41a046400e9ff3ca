//! Purposes of a connection's requests and subscriptions at its node.

use std::borrow::Cow;

use crate::jsonrpc::Outcome;
use crate::upstream::NodeSubscription;
use crate::upstream::call::Reply;
use crate::upstream::complaint::{is_throttled, is_throttled_by_code};
use crate::upstream::identity::{Doubt, NETWORK_ID};

/// Purpose of a subscription at the node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum FeedState {
    Heads,
    Beside(NodeSubscription),
}

impl FeedState {
    /// Checks if the node refuses the subscription because of a rate limit. The refusal of a kind that a client named
    /// may repeat the client's words, so only its code counts.
    pub(super) fn is_throttled(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Beside(NodeSubscription::Passthrough(_)) => is_throttled_by_code(outcome),
            Self::Heads | Self::Beside(NodeSubscription::Pending(_)) => is_throttled(outcome),
        }
    }

    /// Returns the method that ends the subscription at the node.
    pub(super) fn unsubscribe(&self) -> String {
        match self {
            Self::Heads | Self::Beside(NodeSubscription::Pending(_)) => "eth_unsubscribe".to_owned(),
            Self::Beside(NodeSubscription::Passthrough(passed)) => passed.unsubscribe(),
        }
    }
}

/// Purpose of a request, by which its answer is handled.
#[derive(Debug)]
pub(super) enum Purpose {
    Caller(Reply),
    ChainId,
    /// The chain's id from a node that does not serve `eth_chainId`.
    NetworkId,
    Genesis,
    /// A published block, from a node whose genesis differs from the known one.
    PublishedSample(Doubt),
    Subscribe(FeedState),
    Latest,
    /// The newest head, after some time without an announcement: is there a newer one?
    Probe,
    /// The newest head, after an announcement that is not a header, or from a node that is polled.
    Rung,
    /// An announced block; the number is that of `Act::Ask`.
    Compare(u64),
    Syncing,
    /// The end of a subscription: `method` ends it, `subscription` is the node's id as JSON.
    Unsubscribe {
        method: String,
        subscription: String,
    },
    /// Like [`Self::Unsubscribe`], for a stream that belongs to an unknown subscription; `others` are methods to try
    /// if the node refuses.
    EndUnknown {
        subscription: String,
        others: Vec<String>,
    },
    /// A whole pending transaction, with the time at which its hash was announced.
    Transaction(tokio::time::Instant),
    Ignored,
}

impl Purpose {
    /// Checks if the request is one that every usable node answers: a step of the handshake, or the newest head.
    /// Without an answer the connection is closed, or for `newHeads` the head is polled.
    pub(super) fn is_vital(&self) -> bool {
        self.vital_question().is_some()
    }

    /// Returns method and parameters of a request for which [`Self::is_vital`] is `true`, else `None`.
    pub(super) fn vital_question(&self) -> Option<(&'static str, Cow<'static, str>)> {
        let (method, params) = match self {
            Self::ChainId => ("eth_chainId", "".into()),
            Self::NetworkId => (NETWORK_ID, "".into()),
            Self::Genesis => ("eth_getBlockByNumber", r#"["0x0",false]"#.into()),
            Self::PublishedSample(doubt) => return doubt.question().map(|(method, params)| (method, params.into())),
            Self::Subscribe(FeedState::Heads) => ("eth_subscribe", r#"["newHeads"]"#.into()),
            Self::Latest | Self::Probe | Self::Rung => ("eth_getBlockByNumber", r#"["latest",false]"#.into()),
            _ => return None,
        };
        Some((method, params))
    }
}
