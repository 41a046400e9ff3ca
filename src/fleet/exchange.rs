//! Actor of the exchange: reports to each upstream that is another headwater, to which this one is an edge.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

use super::report::{Answer, FLEET_REPORT, MAX_ROWS, Report, Seen};
use super::{Fleet, MISSED};
use crate::jsonrpc::Outcome;
use crate::upstream::{Complaint, Pool, UpstreamId, complaint};

/// Method that asks an upstream for this process's plan there: another headwater answers, a node does not know it.
const LIMITS: &str = "headwater_accountLimits";

/// Plan of an edge at its root.
const EDGE: &str = "edge";

/// Shortest time limit of a report.
const MIN_TIME_LIMIT: Duration = Duration::from_secs(1);

/// Upstream, as the exchange knows it.
#[derive(Debug, Default)]
struct Peer {
    /// Connections made to it when it was probed.
    connects: u64,
    is_root: Probe,
    /// Newest answer that was applied.
    seen: Option<Seen>,
    /// Version of the own ledger up to which it knows the lines.
    reported: u64,
}

/// Outcome of the question if an upstream is a root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Probe {
    #[default]
    Unknown,
    Root,
    Node,
}

impl Fleet {
    /// Exchanges quotas with all upstreams that take part, until the process ends.
    pub async fn run(self: Arc<Self>, pool: Arc<Pool>) {
        let mut tick = tokio::time::interval(self.exchange);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A peer is in one of both: a report that hangs delays no other, and there is one at a time.
        let mut idle: HashMap<UpstreamId, Peer> = HashMap::new();
        let mut asking: JoinSet<(UpstreamId, Peer)> = JoinSet::new();
        let mut under_way: HashMap<tokio::task::Id, UpstreamId> = HashMap::new();
        loop {
            tokio::select! {
                Some(ended) = asking.join_next_with_id() => match ended {
                    Ok((task, (id, peer))) => {
                        under_way.remove(&task);
                        idle.insert(id, peer);
                    }
                    // A panic: the peer begins anew.
                    Err(why) => drop(under_way.remove(&why.id())),
                },
                _ = tick.tick() => {
                    self.turn();
                    idle.retain(|id, _| pool.has(*id));
                    for id in pool.ids() {
                        if under_way.values().any(|busy| *busy == id) {
                            continue;
                        }
                        let peer = idle.remove(&id).unwrap_or_default();
                        let (fleet, pool) = (self.clone(), pool.clone());
                        let task = asking.spawn(async move { (id, fleet.meet(&pool, id, peer).await) });
                        under_way.insert(task.id(), id);
                    }
                }
            }
        }
    }

    /// Reports to an upstream, if it is a root.
    async fn meet(&self, pool: &Pool, id: UpstreamId, mut peer: Peer) -> Peer {
        let time_limit = (self.exchange * MISSED).max(MIN_TIME_LIMIT);
        let connects = pool.connects(id);
        if connects != peer.connects {
            (peer.connects, peer.is_root) = (connects, Probe::Unknown);
        }
        if peer.is_root == Probe::Unknown {
            peer.is_root = probe(pool, id, time_limit).await;
        }
        if peer.is_root != Probe::Root {
            return peer;
        }
        let (changes, is_new) = {
            let ledger = self.ledger.lock();
            (ledger.own_changes(peer.reported, MAX_ROWS), peer.seen.is_none())
        };
        let accounts = changes.members.into_iter().flat_map(|(_, accounts)| accounts);
        let report = Report {
            member: self.own,
            seen: peer.seen,
            accounts: accounts.map(Into::into).collect(),
        };
        let Ok(params) = serde_json::to_string(&[report]) else {
            return peer;
        };
        match pool.ask(id, FLEET_REPORT, &params, time_limit).await {
            Ok(Outcome::Result(json)) => {
                let answer = serde_json::from_slice::<Answer>(&json).ok();
                let Some(answer) = answer.filter(Answer::is_bounded) else {
                    self.count("failed");
                    peer.is_root = Probe::Node;
                    warn!(
                        upstream = pool.address(id),
                        "fleet: not the answer of a headwater; quotas are not shared with it"
                    );
                    return peer;
                };
                self.count("answered");
                // A root that was started anew knows nothing yet: everything is reported to it again.
                let is_same = peer.seen.is_some_and(|seen| seen.root == answer.seen.root);
                peer.reported = if is_same || is_new { changes.version } else { 0 };
                peer.seen = Some(answer.seen);
                self.apply(answer);
            }
            Ok(error) => {
                self.count("failed");
                if complaint(&error) == Complaint::Unsupported {
                    peer.is_root = Probe::Node;
                    warn!(
                        upstream = pool.address(id),
                        "fleet: this root does not share quotas; set fleet.secret_file there too"
                    );
                } else {
                    debug!(upstream = pool.address(id), "fleet: {error:?}");
                }
            }
            Err(why) => {
                self.count("failed");
                debug!(upstream = pool.address(id), "fleet: {why}");
            }
        }
        peer
    }
}

/// Asks an upstream for this process's plan. A node never gets more than this, once for each connection.
async fn probe(pool: &Pool, id: UpstreamId, time_limit: Duration) -> Probe {
    match pool.ask(id, LIMITS, "[]", time_limit).await {
        Ok(Outcome::Result(json)) => {
            let limits = serde_json::from_slice::<serde_json::Value>(&json).unwrap_or_default();
            if limits["plan"] == EDGE {
                Probe::Root
            } else {
                Probe::Node
            }
        }
        Ok(error) => match complaint(&error) {
            // A root's load balancer, perhaps.
            Complaint::NotNow | Complaint::Throttled => Probe::Unknown,
            Complaint::Unsupported | Complaint::Pruned | Complaint::Other => Probe::Node,
        },
        Err(_) => Probe::Unknown,
    }
}
