//! Upstreams that join, leave or change by a reload of the configuration, while clients are connected.
//!
//! ```text
//! reload   new list > roster::plan   those that stay keep connections, calls and subscriptions, in the new order
//!                                    new ones get actors at once; those that are not named any more are to leave
//! watch    roster::plan::leaves_now  one leaves once another can serve in its place: the ranking forgets it (if it is
//!                                    in use, that is a failover), the roster too, and its calls finish
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::active::{ActiveUpstream, Named};
use super::call::CallReceiver;
use super::call_lane::CallLane;
use super::connection::Connection;
use super::detour;
use super::identity::ChainIdentity;
use super::lanes::Lanes;
use super::load::Load;
use super::poller::Poller;
use super::pool::{Channels, Pool};
use super::quarantine::Quarantine;
use super::roster::plan::{Entry, Outlook, leaves_now, plan};
use super::roster::{Leaving, Member, Roster, Upstream};
use super::shared::UpstreamShared;
use super::{Endpoint, MinHead, Node, Share, UpstreamId, UpstreamSettings};
use crate::shares::Budget;

/// State shared by the actors of all upstreams.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) settings: UpstreamSettings,
    pub(super) channels: Channels,
    pub(super) active: Arc<ActiveUpstream>,
    pub(super) identity: Arc<ChainIdentity>,
    pub(super) best_effort_dropped: Arc<AtomicU64>,
    /// Memory budget of answers to clients' calls that are being read over HTTP.
    pub(super) answers: Arc<Budget>,
    /// The same for our own calls.
    pub(super) internal_answers: Arc<Budget>,
    /// Id of the next upstream: none is given twice, so that no record of one is taken for another's.
    next: Mutex<usize>,
}

impl Common {
    pub(super) fn new(settings: &UpstreamSettings, channels: Channels, active: Arc<ActiveUpstream>) -> Self {
        Self {
            settings: settings.clone(),
            channels,
            active,
            identity: Arc::new(ChainIdentity::new(settings.chain_id)),
            best_effort_dropped: Arc::default(),
            answers: Budget::new("too many bytes of answers at once", settings.max_answer_bytes),
            internal_answers: Budget::new("answers to headwater's own requests", settings.max_answer_bytes),
            next: Mutex::default(),
        }
    }

    /// Creates an upstream. Its actors are started apart, once the choice knows it.
    fn create(&self, node: &Node) -> (Member, Start) {
        let id = {
            let mut next = self.next.lock();
            *next += 1;
            UpstreamId(*next - 1)
        };
        let shared = Arc::new(UpstreamShared {
            id,
            endpoint: node.endpoint.clone(),
            settings: self.settings.clone(),
            status: Mutex::default(),
            last_activity: Arc::default(),
            active: self.active.clone(),
            identity: self.identity.clone(),
            newest: Mutex::default(),
            sightings: self.channels.sightings.clone(),
            best_effort: self.channels.best_effort.clone(),
            best_effort_dropped: self.best_effort_dropped.clone(),
            wanted: self.channels.wanted.clone(),
            load: Load::default(),
            stream: watch::Sender::default(),
            lanes: watch::Sender::new(Lanes::One),
            call_bytes: Mutex::default(),
            answers: self.answers.clone(),
            internal_answers: self.internal_answers.clone(),
        });
        let (stream, stream_calls) = CallReceiver::new();
        let mut calls = stream.clone();
        let mut lane = None;
        if self.settings.lanes > 1 && !matches!(node.endpoint, Endpoint::Http(_)) {
            let lane_calls;
            (calls, lane_calls) = CallReceiver::new();
            shared.lanes.send_replace(Lanes::Down);
            lane = Some(CallLane::new(shared.clone(), lane_calls));
        }
        let start = Start {
            shared: shared.clone(),
            calls: stream_calls,
            lane,
        };
        let upstream = Upstream {
            stream,
            calls,
            quarantine: Quarantine::default(),
            detours: Semaphore::new(detour::PLACES),
            shared,
        };
        let member = Member {
            id,
            node: node.clone(),
            upstream: Arc::new(upstream),
            leaving: None,
        };
        (member, start)
    }
}

/// Actors of an upstream that are not started yet.
struct Start {
    shared: Arc<UpstreamShared>,
    calls: CallReceiver,
    lane: Option<CallLane>,
}

impl Start {
    fn start(self) {
        match &self.shared.endpoint {
            Endpoint::Http(url) => {
                let url = url.clone();
                tokio::spawn(Poller::new(self.shared, url, self.calls).run());
            }
            _ => {
                tokio::spawn(Connection::new(self.shared, self.calls).run());
            }
        }
        if let Some(lane) = self.lane {
            tokio::spawn(lane.run());
        }
    }
}

/// Warns of namespaces that a node serves and that clients may be able to call.
fn warn_of_namespaces(endpoint: &Endpoint) {
    if matches!(endpoint, Endpoint::Ipc(_)) {
        warn!(
            "upstream {endpoint}: over IPC a node serves all its namespaces, the operator's too; the settings of methods \
             and keys decide which of them clients may call (docs/methods.md)"
        );
    }
}

/// Number of upstreams that a reload touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reshaped {
    /// New upstreams.
    pub joined: usize,
    /// Upstreams that are to leave.
    pub leaving: usize,
    /// Upstreams that stay, with another priority, share, list of methods or kind of history.
    pub changed: usize,
}

impl Pool {
    /// Replaces the list of upstreams, by priority. Those that stay (by address, credentials included) keep their
    /// connections, calls and subscriptions. New ones are connected to. Those that the list does not name serve on
    /// until the new ones could come into use, for as long as connecting may take, and in any case until another one
    /// is connected; then they finish their calls. An empty list changes nothing.
    pub fn reshape(&self, nodes: &[Node]) -> Reshaped {
        if nodes.is_empty() {
            return Reshaped::default();
        }
        let _one_at_a_time = self.reshaping.lock();
        let before = self.roster.load_full();
        let endpoints = before
            .iter()
            .map(|member| (member.id, &member.upstream.shared.endpoint));
        let plan = plan(endpoints, nodes.iter().map(|node| &node.endpoint));
        let mut starts = Vec::new();
        let mut members = Vec::new();
        let mut reshaped = Reshaped::default();
        let mut successors = Vec::new();
        for (place, (entry, node)) in plan.entries.iter().zip(nodes).enumerate() {
            let known = match entry {
                Entry::Stays(id) => before.get(*id),
                Entry::Joins => None,
            };
            let Some(known) = known else {
                warn_of_namespaces(&node.endpoint);
                let (member, start) = self.common.create(node);
                successors.push(member.id);
                members.push(member);
                starts.push(start);
                continue;
            };
            let is_same = known.node == *node && before.0.get(place).is_some_and(|own| own.id == known.id);
            reshaped.changed += usize::from(!is_same);
            members.push(Member {
                node: node.clone(),
                leaving: None,
                ..known.clone()
            });
        }
        let settings = &self.common.settings;
        let leaving = Leaving {
            until: Instant::now() + settings.connect_timeout + settings.silence_timeout,
            successors: successors.into(),
        };
        for member in plan.leave.iter().filter_map(|id| before.get(*id)) {
            let leaving = member.leaving.clone().unwrap_or_else(|| leaving.clone());
            reshaped.leaving += usize::from(member.leaving.is_none());
            members.push(Member {
                leaving: Some(leaving),
                ..member.clone()
            });
        }
        reshaped.joined = starts.len();
        // In one step, so that the log gives the removal as the reason if the one in use leaves at once.
        let mut roster = Roster(members);
        self.remove_leavers(&mut roster);
        self.set_roster(roster);
        starts.into_iter().for_each(Start::start);
        reshaped
    }

    /// Lets upstreams leave that are to leave and whose replacement is ready.
    pub(super) fn release(&self) {
        if !self.roster.load().iter().any(|member| member.leaving.is_some()) {
            return;
        }
        let _one_at_a_time = self.reshaping.lock();
        let mut roster = Roster::clone(&self.roster.load());
        if self.remove_leavers(&mut roster) {
            self.set_roster(roster);
        }
    }

    /// Removes the upstreams from the roster that may leave now, one after the other, since each removal can change whether
    /// the next one may. Returns `true` if there were any.
    fn remove_leavers(&self, roster: &mut Roster) -> bool {
        let before = roster.len();
        for id in roster.ids() {
            let Some(member) = roster.get(id).filter(|member| self.can_leave(roster, member)) else {
                continue;
            };
            let shared = &member.upstream.shared;
            let in_flight = shared.load.figures().0;
            info!(
                "upstream {}: leaves; calls of clients that finish: {in_flight}",
                shared.endpoint
            );
            roster.0.retain(|own| own.id != id);
        }
        roster.len() < before
    }

    fn can_leave(&self, roster: &Roster, member: &Member) -> bool {
        let Some(leaving) = &member.leaving else { return false };
        let connected = self.active.reached(MinHead::Any);
        let others = roster
            .iter()
            .filter(|own| own.leaving.is_none() && own.node.calls != Share::None);
        let others: Vec<UpstreamId> = others.map(|own| own.id).collect();
        // A successor that left again is not waited for.
        let mut successors = leaving.successors.iter().filter(|id| roster.get(**id).is_some());
        leaves_now(Outlook {
            is_connected: self.active.is_connected(member.id),
            successors_ready: successors.all(|id| self.active.is_ready(*id)),
            another_ready: others.iter().any(|id| self.active.is_ready(*id)),
            another_connected: others.iter().any(|id| connected.contains(id)),
            is_due: Instant::now() >= leaving.until,
        })
    }

    /// Sets the roster, and then the upstreams of the choice: what the choice names can be called, except for the moment
    /// in which one leaves.
    fn set_roster(&self, roster: Roster) {
        let named = roster.iter().map(|member| Named {
            id: member.id,
            endpoint: member.upstream.shared.endpoint.clone(),
            last_activity: member.upstream.shared.last_activity.clone(),
        });
        let named = Vec::from_iter(named);
        // One that leaves and comes back later is a new upstream, of the same chain: with several, none may begin anew.
        self.common.identity.set_alone(named.len() == 1);
        self.roster.store(Arc::new(roster));
        self.active.arrange(named);
    }
}
