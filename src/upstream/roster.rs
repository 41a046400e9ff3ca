//! The upstreams by priority, with the settings of each as they are configured now.
//!
//! A roster does not change: a reload of the configuration replaces it. Whoever sends a call holds the upstream that
//! takes it. So one that has left the roster lives until its last call is answered or has reached its time limit; then
//! its actors have no sender any more, and end.

pub(super) mod plan;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::call::CallSender;
use super::lanes::{Lane, Lanes};
use super::quarantine::Quarantine;
use super::shared::UpstreamShared;
use super::{CallError, Node, UpstreamId};

/// The actors of one upstream, and what calls to it share.
#[derive(Debug)]
pub(super) struct Upstream {
    /// Calls over the stream's connection.
    pub(super) stream: CallSender,
    /// Calls over the second connection, if the node has two lanes.
    pub(super) calls: CallSender,
    pub(super) quarantine: Quarantine,
    /// Permits for connections of [`Self::overtake`].
    pub(super) detours: Semaphore,
    pub(super) shared: Arc<UpstreamShared>,
}

impl Upstream {
    /// Returns the connection that calls of this lane take now. Waits for `time_limit` at most while the second
    /// connection is being opened.
    ///
    /// # Errors
    /// Returns [`CallError::Unavailable`] where there is no connection, or where the second one was not opened in
    /// time.
    pub(super) async fn way(&self, lane: Lane, time_limit: Duration) -> Result<&CallSender, CallError> {
        if lane == Lane::Stream {
            return Ok(&self.stream);
        }
        let now = *self.shared.lanes.borrow();
        let lanes = if now == Lanes::Opening {
            // On the heap: the wait is rare, and not a part of each call's future.
            Box::pin(self.opened(time_limit)).await
        } else {
            now
        };
        match lanes {
            Lanes::Two => Ok(&self.calls),
            Lanes::One => Ok(&self.stream),
            Lanes::Down | Lanes::Opening => Err(CallError::Unavailable),
        }
    }

    async fn opened(&self, time_limit: Duration) -> Lanes {
        let mut lanes = self.shared.lanes.subscribe();
        let opened = tokio::time::timeout(time_limit, lanes.wait_for(|lanes| *lanes != Lanes::Opening)).await;
        opened.ok().and_then(Result::ok).map_or(Lanes::Down, |lanes| *lanes)
    }
}

/// An upstream with its place in the configuration.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: UpstreamId,
    pub(super) node: Node,
    pub(super) upstream: Arc<Upstream>,
    /// `Some` for one that the configuration does not name any more, and that has not left yet.
    pub(super) leaving: Option<Leaving>,
}

/// The wait of an upstream for its successors.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    /// Upstreams that the same reload added.
    pub(super) successors: Arc<[UpstreamId]>,
    /// Time from which it does not wait for them any more.
    pub(super) until: Instant,
}

/// All upstreams by priority; those that leave come last.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster(pub(super) Vec<Member>);

impl Roster {
    /// Returns the upstream of this id; `None` if it has left. Few members: they are compared one after the other.
    pub(super) fn get(&self, id: UpstreamId) -> Option<&Member> {
        self.0.iter().find(|member| member.id == id)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Member> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn ids(&self) -> Vec<UpstreamId> {
        Vec::from_iter(self.iter().map(|member| member.id))
    }
}
