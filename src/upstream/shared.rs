//! State of one upstream that its actors share with the pool.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::active::ActiveUpstream;
use super::identity::{ChainIdentity, Doubt, Genesis};
use super::lanes::Lanes;
use super::load::Load;
use super::metered::Meter;
use super::{
    BestEffortEvent, Endpoint, HeadReport, Heads, NodeSubscription, UpstreamId, UpstreamSettings, Wanted, place_of,
};
use crate::clock::AtomicMoment;
use crate::jsonrpc::Outcome;
use crate::shares::Budget;

/// State of one upstream, for the admin port.
#[derive(Clone, Debug, Default)]
pub struct UpstreamStatus {
    /// `true` if calls can be sent.
    pub connected: bool,
    /// `true` if this upstream is in use.
    pub active: bool,
    /// `true` if the operator keeps this upstream out of use.
    pub cordoned: bool,
    /// `true` if the configuration does not name this upstream any more: it leaves once another can serve in its
    /// place.
    pub leaving: bool,
    /// Number of connections made so far.
    pub connects: u64,
    /// Reason why the last connection failed or ended; `None` while connected.
    pub last_error: Option<String>,
    /// Reason why a reachable upstream is not used: it is on another chain.
    pub refused: Option<String>,
    /// Chain id that the node reports, as JSON.
    pub chain_id: Option<String>,
    /// Source of its heads, once known.
    pub heads: Option<Heads>,
    /// Connections that calls may take; `None` over HTTP, where each call has its own.
    pub lanes: Option<Lanes>,
    /// Number of the newest head that the upstream reported.
    pub head: Option<u64>,
    /// Time since another upstream first reported the oldest block that this one has not reached; `None` without a
    /// connection.
    pub lag: Option<Duration>,
    /// Number of clients' calls in flight.
    pub in_flight: u32,
    /// Smoothed latency of clients' calls; `None` before the first answer.
    pub latency: Option<Duration>,
}

/// State of one upstream, shared by the pool and the upstream's actors.
#[derive(Debug)]
pub(super) struct UpstreamShared {
    pub id: UpstreamId,
    pub endpoint: Endpoint,
    pub settings: UpstreamSettings,
    pub status: Mutex<UpstreamStatus>,
    /// Newest sign of life.
    pub last_activity: Arc<AtomicMoment>,
    pub active: Arc<ActiveUpstream>,
    pub identity: Arc<ChainIdentity>,
    /// Newest head, with which the ingest starts when this upstream comes into use.
    pub newest: Mutex<Option<HeadReport>>,
    pub sightings: mpsc::Sender<(UpstreamId, HeadReport)>,
    pub best_effort: mpsc::Sender<BestEffortEvent>,
    pub best_effort_dropped: Arc<AtomicU64>,
    pub wanted: watch::Receiver<Wanted>,
    /// Load by clients' calls, and back-off after a rate limit.
    pub load: Load,
    /// Number of the stream's connection, counted from 1; `None` without a connection.
    pub stream: watch::Sender<Option<u64>>,
    /// Connections that calls may take.
    pub lanes: watch::Sender<Lanes>,
    /// Bytes read from the newest connection for calls.
    pub call_bytes: Mutex<Meter>,
    /// Memory budget of answers to clients' calls that are being read over HTTP.
    pub answers: Arc<Budget>,
    /// Memory budget of answers to our own calls; clients use none of it.
    pub internal_answers: Arc<Budget>,
}

impl UpstreamShared {
    /// Records a new connection.
    pub(super) fn up(&self) {
        let connects = {
            let mut status = self.status.lock();
            status.connected = true;
            status.connects += 1;
            status.last_error = None;
            status.refused = None;
            status.connects
        };
        // Calls that arrive from now on wait for the second connection.
        self.lanes
            .send_if_modified(|lanes| *lanes == Lanes::Down && std::mem::replace(lanes, Lanes::Opening) == Lanes::Down);
        self.stream.send_replace(Some(connects));
        self.note_activity();
        self.active.up(self.id);
    }

    /// Records a sign of life.
    pub(super) fn note_activity(&self) {
        self.active.note_activity(&self.last_activity);
    }

    /// Records that the connection was lost or could not be made.
    pub(super) fn down(&self, why: String) {
        {
            let mut status = self.status.lock();
            status.connected = false;
            status.last_error = Some(why);
        }
        self.stream.send_replace(None);
        self.active.down(self.id);
    }

    /// Checks the node's chain id: the first node that is reached fixes the chain, and a node of another chain is
    /// refused, with the reason as the error.
    pub(super) fn check_chain_id(&self, chain_id: &str) -> Result<(), String> {
        self.status.lock().chain_id = Some(chain_id.to_owned());
        let checked = self.identity.check_chain_id(&self.endpoint, chain_id);
        let chain_id = self.refused_if(checked)?;
        self.status.lock().chain_id = Some(chain_id);
        Ok(())
    }

    /// Checks the answer about block 0 against the known genesis.
    pub(super) fn check_genesis(&self, answer: &Outcome) -> Genesis {
        let reported = match answer {
            Outcome::Result(block) => self.identity.other_genesis(block),
            Outcome::Error(_) => None,
        };
        match reported {
            None => Genesis::Same,
            Some(other) => Genesis::Other(Doubt::new(other, self.active.some_published())),
        }
    }

    /// Decides about a node whose genesis differs from the known one: accepts it if it has a published block, refuses
    /// it like [`Self::check_chain_id`], or, where it is the only upstream, reports that the chain was started anew.
    pub(super) async fn resolve(&self, doubt: &Doubt) -> Result<(), String> {
        if let Some(block) = doubt.found() {
            info!(
                "upstream {}: its genesis differs from before, but it has block {block}: it is on the same chain",
                self.endpoint
            );
            self.identity.same_chain(doubt.genesis());
            return Ok(());
        }
        if !self.active.contains(self.id) {
            return Err("it left the configuration".to_owned());
        }
        let checked = self.identity.other_chain(&self.endpoint, doubt.genesis());
        self.refused_if(checked)?;
        warn!(
            "upstream {}: its genesis differs from before and it has none of the published blocks: the chain was \
             replaced, subscribers to the chain are closed with 1012",
            self.endpoint
        );
        self.send(HeadReport::Replaced).await;
        Ok(())
    }

    fn refused_if<T>(&self, checked: Result<T, String>) -> Result<T, String> {
        if let Err(why) = &checked {
            self.status.lock().refused = Some(why.clone());
        }
        checked
    }

    /// Records the answer of the upstream in use to a subscription; `None` while there is none.
    pub(super) fn set_answer(&self, of: &NodeSubscription, answer: Option<Result<(), Bytes>>) {
        self.set_rate_limited(of, None);
        self.set_entry(self.active.answers(), of, answer);
    }

    /// Records that a rate limit postponed a subscription at the upstream in use. New subscribers get the node's
    /// error, those that have the subscription wait. `None` when the node is asked again.
    pub(super) fn set_rate_limited(&self, of: &NodeSubscription, error: Option<Bytes>) {
        self.set_entry(self.active.rate_limited(), of, error);
    }

    /// Sets or removes the entry of a subscription, while this upstream is in use. No entry is kept for a
    /// subscription that no client has.
    fn set_entry<T: PartialEq>(
        &self,
        all: &watch::Sender<HashMap<NodeSubscription, T>>,
        of: &NodeSubscription,
        value: Option<T>,
    ) {
        let value = value.filter(|_| self.wanted.borrow().includes(of));
        all.send_if_modified(|all| {
            if self.active.active() != Some(self.id) {
                return false;
            }
            match value {
                Some(value) if all.get(of) == Some(&value) => false,
                Some(value) => {
                    all.insert(of.clone(), value);
                    true
                }
                None => all.remove(of).is_some(),
            }
        });
    }

    /// Removes the entries of subscriptions that no client has any more: there is no bound on what clients may ask
    /// for.
    pub(super) fn remove_unsubscribed(&self, wanted: &Wanted) {
        self.retain_subscribed(self.active.answers(), wanted);
        self.retain_subscribed(self.active.rate_limited(), wanted);
    }

    fn retain_subscribed<T>(&self, all: &watch::Sender<HashMap<NodeSubscription, T>>, wanted: &Wanted) {
        all.send_if_modified(|all| {
            let before = all.len();
            if self.active.active() == Some(self.id) {
                all.retain(|of, _| wanted.includes(of));
            }
            all.len() != before
        });
    }

    /// Returns the subscriptions that this upstream has to serve: none unless it is in use.
    pub(super) fn wants(&self) -> Wanted {
        let mine = self.active.active() == Some(self.id);
        if mine {
            self.wanted.borrow().clone()
        } else {
            Wanted::default()
        }
    }

    /// Records the source of heads; `false` where it has not changed.
    pub(super) fn has_heads(&self, heads: Heads) -> bool {
        self.status.lock().heads.replace(heads) != Some(heads)
    }

    /// Reports a head: first to the choice, then to the ingest, which may ask for this block at once. Returns the
    /// block's hash, if the head could be parsed.
    pub(super) async fn report(&self, sighting: HeadReport) -> Option<B256> {
        let reported = match &sighting {
            HeadReport::Announced(json) => place_of(json)
                .ok()
                .map(|reported| (reported, self.active.announced(self.id, reported))),
            HeadReport::Latest(json) => place_of(json)
                .ok()
                .map(|reported| (reported, self.active.fetched(self.id, reported))),
            HeadReport::Replaced => None,
        };
        if let Some((reported, true)) = reported {
            self.status.lock().head = Some(reported.number);
            *self.newest.lock() = Some(sighting.clone());
        }
        self.send(sighting).await;
        reported.map(|(reported, _)| reported.hash)
    }

    /// Sends a report to the ingest; waits for room, of which there is enough unless the ingest is stuck.
    async fn send(&self, sighting: HeadReport) {
        if !self.active.contains(self.id) {
            // It has left, and finishes its calls.
            return;
        }
        // The receiver is dropped only at shutdown.
        drop(self.sightings.send((self.id, sighting)).await);
    }

    pub(super) fn best_effort(&self, best_effort: BestEffortEvent) {
        if self.best_effort.try_send(best_effort).is_err() {
            self.count_dropped(1);
        }
    }

    /// Counts best-effort events, mostly pending transactions, that were not passed on.
    pub(super) fn count_dropped(&self, count: usize) {
        self.best_effort_dropped.fetch_add(count as u64, Ordering::Relaxed);
    }
}
