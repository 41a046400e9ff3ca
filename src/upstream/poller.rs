//! Client of one node over HTTP, which polls its head and posts calls.
//!
//! A poller reports the same events as a connection, so nothing downstream can tell the two apart.
//!
//! A rate-limited node is not lost: a refused poll is repeated after the wait that the node names, or after a wait
//! that grows. The node counts as lost only if no head was learned for `node.silence_timeout`. The head and
//! best-effort events each have their own back-off: refused calls of clients delay neither.

mod mempool;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};
use url::Url;

use self::mempool::MempoolPoller;
use self::transport::{HttpFailure, HttpTransport, forward, result_of};
use super::call::CallReceiver;
use super::identity::{Genesis, NETWORK_ID, has_no_chain_id};
use super::shared::UpstreamShared;
use super::{HeadReport, Heads};
use crate::backoff::{BackOff, RATE_LIMIT};
use crate::panics;

/// Longest wait before a failed poll is repeated.
const ONCE_MORE: Duration = Duration::from_millis(250);

/// Polls that fit into the silence timeout when all are refused: our own back-off must not make us lose the node.
const TRIES: u32 = 4;

/// Actor that polls a node.
#[derive(Debug)]
pub(super) struct Poller {
    shared: Arc<UpstreamShared>,
    node: HttpTransport,
    call_receiver: Option<CallReceiver>,
    head: Option<Bytes>,
    /// Last completed step of the handshake, and the time of its start: with a node that leaves every third question
    /// unanswered, each poll continues where the previous one ended.
    handshake: Option<(Instant, PollStep)>,
    ready: bool,
    /// Time at which the head was last learned.
    learned: Instant,
    /// `true` after one failed poll, which may have been the fault of a single answer.
    failed_once: bool,
    /// Back-off of polls that were refused since the last success.
    back_off: Option<BackOff>,
}

/// Step of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PollStep {
    ChainId,
    Genesis,
}

impl Poller {
    pub(super) fn new(shared: Arc<UpstreamShared>, url: Url, call_receiver: CallReceiver) -> Self {
        let silence = shared.settings.silence_timeout;
        let client = reqwest::Client::builder()
            // The configured address is the one that is asked, with its credentials: neither the environment nor a
            // redirect replaces it.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // A connection that was idle for so long may be half-open, and must not be reused.
            .pool_idle_timeout(silence)
            .http2_keep_alive_interval(silence / 3)
            .http2_keep_alive_timeout(silence / 3)
            .connect_timeout(shared.settings.connect_timeout)
            .timeout(shared.settings.request_timeout)
            .tls_backend_preconfigured(rustls::ClientConfig::clone(&shared.settings.trust))
            .build()
            .expect("nothing is set that could fail");
        let node = HttpTransport {
            client,
            offers_compression: shared.settings.compression.is_offered(&url),
            url,
            max_message_bytes: shared.settings.max_message_bytes,
        };
        Self {
            shared,
            node,
            call_receiver: Some(call_receiver),
            head: None,
            handshake: None,
            ready: false,
            learned: Instant::now(),
            failed_once: false,
            back_off: None,
        }
    }

    /// Runs until the pool is gone.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(self.shared.settings.poll_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let Some(CallReceiver { internal, from_clients }) = self.call_receiver.take() else {
            return;
        };
        // Besides the polling: neither a slow poll nor a client's slow call may delay the stream.
        let max = self.shared.settings.max_in_flight;
        let mut forwarding = tokio::spawn(forward(
            self.node.clone(),
            from_clients,
            max,
            self.shared.answers.clone(),
        ));
        let fetching = tokio::spawn(forward(
            self.node.clone(),
            internal,
            max,
            self.shared.internal_answers.clone(),
        ));
        let gossiping = tokio::spawn(MempoolPoller::new(self.shared.clone(), self.node.clone()).run());
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let shared = self.shared.clone();
                    let turn = panics::caught("node", shared.active.metrics(), self.turn()).await;
                    if let Some(Some(next)) = turn {
                        tick.reset_at(next);
                    }
                }
                _ = &mut forwarding => {
                    fetching.abort();
                    gossiping.abort();
                    return;
                }
            }
        }
    }

    /// Polls the node unless its back-off still runs. Returns the time of the next turn, where it is not the usual one.
    async fn turn(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if let Some(next) = self.next_poll(now) {
            if self.ready && now >= self.end() {
                self.failed(HttpFailure::Throttled(None).to_string());
            }
            return Some(self.next_turn(next));
        }
        // Half of the timeout: a poll that never ends may have begun a while after the node fell silent.
        let time_limit = self.shared.settings.silence_timeout / 2;
        let polled = tokio::time::timeout(time_limit, self.poll()).await;
        match polled.unwrap_or_else(|_| Err(format!("no answer for {time_limit:?}").into())) {
            Ok(()) => {
                self.learned = Instant::now();
                self.failed_once = false;
                self.back_off = None;
                None
            }
            Err(HttpFailure::Throttled(after)) => {
                self.throttled(after);
                self.next_poll(Instant::now()).map(|next| self.next_turn(next))
            }
            // Within half of the timeout: the next poll may take the other half.
            Err(why) if self.ready && !self.failed_once && self.learned.elapsed() < time_limit => {
                debug!("upstream {}: {why}; retrying once", self.shared.endpoint);
                self.failed_once = true;
                Some(Instant::now() + self.shared.settings.poll_interval.min(ONCE_MORE))
            }
            Err(why) => {
                self.failed(why.to_string());
                // A node of another chain will hardly change: poll it rarely.
                let refused = self.shared.status.lock().refused.is_some();
                refused.then(|| Instant::now() + self.shared.settings.reconnect_max)
            }
        }
    }

    /// Returns the end of the back-off; `None` where it is over.
    fn next_poll(&self, now: Instant) -> Option<Instant> {
        self.back_off?.until(now)
    }

    /// Bounds the next turn by the time at which the node counts as lost.
    fn next_turn(&self, next: Instant) -> Instant {
        if self.ready { next.min(self.end()) } else { next }
    }

    /// Returns the time at which the node counts as lost unless its head is learned before.
    fn end(&self) -> Instant {
        self.learned + self.shared.settings.silence_timeout
    }

    /// Records a rate limit. The node counts as lost only if no head was learned for the silence timeout; until then
    /// it is polled a few times, after the waits that it names. Clients' calls avoid it, too.
    fn throttled(&mut self, after: Option<Duration>) {
        let now = Instant::now();
        self.shared.load.throttled(now, after);
        let is_first = self.back_off.is_none();
        let waits = if self.ready {
            RATE_LIMIT.within(self.shared.settings.silence_timeout / TRIES)
        } else {
            RATE_LIMIT
        };
        self.back_off.get_or_insert_default().refused(now, after, waits);
        let why = HttpFailure::Throttled(after);
        if !self.ready || now >= self.end() {
            self.failed(why.to_string());
        } else if is_first {
            warn!("upstream {}: {why}; polling it less often", self.shared.endpoint);
        }
    }

    fn failed(&mut self, why: String) {
        if self.ready || self.shared.status.lock().last_error.as_ref() != Some(&why) {
            let now = Instant::now();
            let again = match self.next_poll(now) {
                Some(next) => format!("in {:.1?}", next.saturating_duration_since(now)),
                None => format!("every {:?}", self.shared.settings.poll_interval),
            };
            warn!("upstream {}: {why}; retrying {again}", self.shared.endpoint);
        }
        self.shared.down(why);
        self.head = None;
        if std::mem::take(&mut self.ready) {
            // Behind a balancer another node may answer next.
            self.handshake = None;
        }
        self.failed_once = false;
    }

    /// Checks if a step of the handshake is done and recent.
    fn has_done(&self, step: PollStep) -> bool {
        let time_limit = self.shared.settings.silence_timeout;
        self.handshake
            .is_some_and(|(since, done)| done >= step && since.elapsed() < time_limit)
    }

    fn done(&mut self, step: PollStep) {
        let since = match self.handshake {
            Some((since, _)) if self.has_done(PollStep::ChainId) => since,
            _ => Instant::now(),
        };
        self.handshake = Some((since, step));
    }

    async fn poll(&mut self) -> Result<(), HttpFailure> {
        if !self.ready && !self.has_done(PollStep::ChainId) {
            let mut chain_id = self.node.outcome("eth_chainId", "").await?;
            if has_no_chain_id(&chain_id) {
                chain_id = self.node.outcome(NETWORK_ID, "").await?;
            }
            self.shared
                .check_chain_id(&String::from_utf8_lossy(&result_of(chain_id)?))?;
            self.done(PollStep::ChainId);
        }
        if !self.ready && !self.has_done(PollStep::Genesis) {
            let genesis = self.node.outcome("eth_getBlockByNumber", r#"["0x0",false]"#).await?;
            if let Genesis::Other(mut doubt) = self.shared.check_genesis(&genesis) {
                while let Some((method, params)) = doubt.question() {
                    doubt.answered(&self.node.outcome(method, &params).await?);
                }
                self.shared.resolve(&doubt).await?;
            }
            self.done(PollStep::Genesis);
        }
        let head = self.node.result("eth_getBlockByNumber", r#"["latest",false]"#).await?;
        self.shared.note_activity();
        if self.head.as_ref() != Some(&head) {
            self.head = Some(head.clone());
            self.shared.report(HeadReport::Latest(head)).await;
        }
        if !self.ready {
            self.ready = true;
            info!("upstream {}: connected", self.shared.endpoint);
            self.shared.has_heads(Heads::Polled);
            self.shared.up();
        }
        Ok(())
    }
}
