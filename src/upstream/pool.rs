//! The upstreams together: which one is used, and calls to it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::connection::Connection;
use super::poller::Poller;
use super::{Endpoint, Gossip, PendingForm, Sighting, UpstreamId, UpstreamSettings, Wanted};
use crate::jsonrpc::Outcome;

/// A call came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No upstream is connected.
    #[error("upstream unavailable")]
    Unavailable,
    /// The connection was lost before the answer came; the node may have acted.
    #[error("upstream connection lost")]
    Lost,
    /// No answer in time.
    #[error("request timed out")]
    TimedOut,
}

/// One call on its way to a node.
#[derive(Debug)]
pub(super) struct Call {
    pub method: String,
    /// JSON, empty for none.
    pub params: String,
    pub reply: oneshot::Sender<Result<Outcome, CallError>>,
}

/// Calls for one upstream.
#[derive(Debug)]
pub(super) struct Inbox {
    /// The stream's own.
    pub ours: mpsc::Receiver<Call>,
    /// Clients'.
    pub theirs: mpsc::Receiver<Call>,
}

impl Inbox {
    /// The next call, ours first; clients' only where there is room for them. `None` when the pool is gone.
    pub async fn next(&mut self, room: bool) -> Option<Call> {
        tokio::select! {
            biased;
            call = self.ours.recv() => call,
            call = self.theirs.recv(), if room => call,
        }
    }
}

/// What is known of one upstream, for the admin port.
#[derive(Clone, Debug, Default)]
pub struct UpstreamStatus {
    /// Whether calls can be sent.
    pub connected: bool,
    /// Connections made so far.
    pub connects: u64,
    /// Why the last connection failed or ended.
    pub last_error: Option<String>,
    /// What the node says of itself.
    pub chain_id: Option<String>,
    /// Number of the newest head it told.
    pub head: Option<u64>,
}

/// What pool and actors share about one upstream.
#[derive(Debug)]
pub(super) struct Shared {
    pub id: UpstreamId,
    pub endpoint: Endpoint,
    pub settings: UpstreamSettings,
    pub status: Mutex<UpstreamStatus>,
    pub active: watch::Sender<Option<UpstreamId>>,
    /// What the upstream in use was asked for and has answered.
    pub settled: watch::Sender<Wanted>,
    pub chain_id: Arc<OnceLock<String>>,
    pub sightings: mpsc::Sender<(UpstreamId, Sighting)>,
    pub gossip: mpsc::Sender<Gossip>,
    pub gossip_dropped: Arc<AtomicU64>,
    pub wanted: watch::Receiver<Wanted>,
}

impl Shared {
    /// A connection stands: it becomes the active one where none is. Whoever is active stays so until lost, so that a
    /// node that comes and goes does not make the stream flap.
    pub fn up(&self) {
        {
            let mut status = self.status.lock();
            status.connected = true;
            status.connects += 1;
            status.last_error = None;
        }
        self.active.send_if_modified(|active| {
            let free = active.is_none();
            if free {
                *active = Some(self.id);
            }
            free
        });
    }

    /// It told a head.
    pub fn told_head(&self, number: u64) {
        self.status.lock().head = Some(number);
    }

    /// The connection is lost or could not be made.
    pub fn down(&self, why: String) {
        let mut status = self.status.lock();
        status.connected = false;
        status.last_error = Some(why);
    }

    /// The first node that is reached fixes the chain; one of another chain is refused.
    pub fn check_chain(&self, chain_id: &str) -> Result<(), String> {
        let expected = self.chain_id.get_or_init(|| chain_id.to_owned());
        self.status.lock().chain_id = Some(chain_id.to_owned());
        if expected == chain_id {
            return Ok(());
        }
        Err(format!(
            "{} is on chain {chain_id}, but the others are on {expected}: check upstreams",
            self.endpoint
        ))
    }

    /// The upstream in use has answered for a form, or lost it.
    pub fn settle(&self, form: PendingForm, settled: bool) {
        if *self.active.borrow() == Some(self.id) {
            self.settled
                .send_if_modified(|all| std::mem::replace(all.pending(form), settled) != settled);
        }
    }

    /// What is wanted of this upstream: nothing unless it is the active one.
    pub fn wants(&self) -> Wanted {
        let mine = *self.active.borrow() == Some(self.id);
        if mine { *self.wanted.borrow() } else { Wanted::default() }
    }

    /// Tells the ingest; waits for room, of which there is enough unless the ingest is stuck.
    pub async fn sighting(&self, sighting: Sighting) {
        // It is gone only when we shut down.
        drop(self.sightings.send((self.id, sighting)).await);
    }

    pub fn gossip(&self, gossip: Gossip) {
        if self.gossip.try_send(gossip).is_err() {
            self.gossip_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Upstream {
    calls: mpsc::Sender<Call>,
    /// A lane of our own: the stream must not wait behind clients' calls.
    ours: mpsc::Sender<Call>,
    shared: Arc<Shared>,
}

/// All upstreams.
#[derive(Debug)]
pub struct Pool {
    upstreams: Vec<Upstream>,
    active: watch::Sender<Option<UpstreamId>>,
    settled: watch::Sender<Wanted>,
    request_timeout: Duration,
    gossip_dropped: Arc<AtomicU64>,
}

/// The pool's two outlets and its inlet.
#[derive(Debug)]
pub struct Channels {
    /// What is seen of the chain; its reader must never wait for a call, or the two would wait for each other.
    pub sightings: mpsc::Sender<(UpstreamId, Sighting)>,
    /// What may be dropped.
    pub gossip: mpsc::Sender<Gossip>,
    /// What somebody wants.
    pub wanted: watch::Receiver<Wanted>,
}

/// How long a subscriber to pending transactions waits for the node's own subscription.
const SETTLE_PATIENCE: Duration = Duration::from_secs(1);

/// Blocks by which an upstream may be behind the others and still be chosen by its priority.
const NEAR: u64 = 2;

/// Calls that wait for an actor to take them.
const CALL_QUEUE: usize = 256;

impl Pool {
    /// Starts an actor for each endpoint. They run until the pool's last handle is gone.
    #[must_use]
    pub fn start(endpoints: &[Endpoint], settings: &UpstreamSettings, channels: &Channels) -> Arc<Self> {
        let active = watch::Sender::new(None);
        let settled = watch::Sender::new(Wanted::default());
        let chain_id = Arc::new(OnceLock::new());
        let gossip_dropped = Arc::new(AtomicU64::new(0));
        let upstreams = endpoints
            .iter()
            .enumerate()
            .map(|(i, endpoint)| {
                let shared = Arc::new(Shared {
                    id: UpstreamId(i),
                    endpoint: endpoint.clone(),
                    settings: settings.clone(),
                    status: Mutex::default(),
                    active: active.clone(),
                    settled: settled.clone(),
                    chain_id: chain_id.clone(),
                    sightings: channels.sightings.clone(),
                    gossip: channels.gossip.clone(),
                    gossip_dropped: gossip_dropped.clone(),
                    wanted: channels.wanted.clone(),
                });
                let (calls, theirs_in) = mpsc::channel(CALL_QUEUE);
                let (ours, ours_in) = mpsc::channel(CALL_QUEUE);
                let inbox = Inbox {
                    ours: ours_in,
                    theirs: theirs_in,
                };
                match endpoint {
                    Endpoint::Http(url) => tokio::spawn(Poller::new(shared.clone(), url.clone(), inbox).run()),
                    _ => tokio::spawn(Connection::new(shared.clone(), inbox).run()),
                };
                Upstream { calls, ours, shared }
            })
            .collect();
        Arc::new(Self {
            upstreams,
            active,
            settled,
            request_timeout: settings.request_timeout,
            gossip_dropped,
        })
    }

    /// The upstream in use.
    #[must_use]
    pub fn active(&self) -> Option<UpstreamId> {
        *self.active.borrow()
    }

    /// Waits until the node has answered for this form of pending transactions, so that none is missed that comes after
    /// our own answer; not for long, and not without a node.
    pub async fn pending_settled(&self, form: PendingForm) {
        let mut settled = self.settled.subscribe();
        if self.active().is_some() {
            let stands = settled.wait_for(|all| *all.clone().pending(form));
            drop(tokio::time::timeout(SETTLE_PATIENCE, stands).await);
        }
    }

    /// The upstream in use was lost: takes the next one that stands, by priority.
    pub fn fail_over(&self, lost: UpstreamId) -> Option<UpstreamId> {
        self.active.send_if_modified(|active| {
            if *active != Some(lost) {
                return false;
            }
            let standing = || {
                let each = self
                    .upstreams
                    .iter()
                    .map(|upstream| (upstream, upstream.shared.status.lock().clone()));
                each.filter(|(_, status)| status.connected)
            };
            // One that is syncing is no refuge while another is near the newest head.
            let newest = standing().filter_map(|(_, status)| status.head).max().unwrap_or(0);
            let near = |head: Option<u64>| head.is_some_and(|head| head + NEAR >= newest);
            let next = standing()
                .find(|(_, status)| near(status.head))
                .or_else(|| standing().next())
                .map(|(upstream, _)| upstream);
            *active = next.map(|upstream| upstream.shared.id);
            self.settled.send_replace(Wanted::default());
            true
        });
        self.active()
    }

    /// Calls the upstream in use. `params` is JSON, empty for none.
    ///
    /// # Errors
    /// [`CallError`]; an error that the node itself answers is an [`Outcome::Error`].
    pub async fn call(&self, method: String, params: String) -> Result<Outcome, CallError> {
        self.exchange(method, params, |upstream| &upstream.calls).await
    }

    /// As [`Self::call`], for the stream itself: it waits behind no client.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_ours(&self, method: &str, params: &str) -> Result<Outcome, CallError> {
        self.exchange(method.to_owned(), params.to_owned(), |upstream| &upstream.ours)
            .await
    }

    async fn exchange(
        &self,
        method: String,
        params: String,
        lane: impl Fn(&Upstream) -> &mpsc::Sender<Call>,
    ) -> Result<Outcome, CallError> {
        let id = self.active().ok_or(CallError::Unavailable)?;
        let upstream = self.upstreams.get(id.0).ok_or(CallError::Unavailable)?;
        let (reply, answer) = oneshot::channel();
        let call = Call { method, params, reply };
        let exchange = async {
            lane(upstream).send(call).await.map_err(|_| CallError::Unavailable)?;
            answer.await.map_err(|_| CallError::Lost)?
        };
        tokio::time::timeout(self.request_timeout, exchange)
            .await
            .unwrap_or(Err(CallError::TimedOut))
    }

    /// Each upstream's address (without secrets) and state, by priority.
    #[must_use]
    pub fn status(&self) -> Vec<(String, UpstreamStatus)> {
        let one = |upstream: &Upstream| {
            (
                upstream.shared.endpoint.to_string(),
                upstream.shared.status.lock().clone(),
            )
        };
        self.upstreams.iter().map(one).collect()
    }

    /// Pending transactions that arrived faster than they could be passed on.
    #[must_use]
    pub fn gossip_dropped(&self) -> u64 {
        self.gossip_dropped.load(Ordering::Relaxed)
    }
}
