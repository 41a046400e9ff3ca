//! Client of one node over HTTP, which polls its head and posts calls.
//!
//! A poller reports the same events as a connection, so nothing downstream can tell the two apart.
//!
//! A rate-limited node is not lost: a refused poll is repeated after the wait that the node names, or after a wait
//! that grows. The node counts as lost only if no head was learned for `node.silence_timeout`. The head and
//! best-effort events each have their own back-off: refused calls of clients delay neither.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};
use url::Url;

use super::call::{Call, CallReceiver, is_throttled, is_unknown_method};
use super::identity::{Genesis, NETWORK_ID, has_no_chain_id};
use super::load::{BackOff, LONGEST};
use super::message;
use super::pending::{self, Announced, Fetches, Forms, MAX_UNDER_WAY};
use super::pool::UpstreamShared;
use super::{BestEffortEvent, CallError, HeadReport, Heads, NodeSubscription, TransactionForm, Wanted};
use crate::jsonrpc::{LIMIT_EXCEEDED, METHOD_NOT_FOUND, Outcome, error};
use crate::panics;
use crate::shares::{Budget, Charge, Full, Owner};

/// Id of every call: each has a POST of its own.
const ID: u64 = 1;

/// Longest answer that is not charged to the memory budget, in bytes: the number of such answers is bounded.
const UNCHARGED: usize = 64 << 10;

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
    handshake: Option<(Instant, Step)>,
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
enum Step {
    ChainId,
    Genesis,
}

/// HTTP access to the node.
#[derive(Clone, Debug)]
struct HttpTransport {
    client: reqwest::Client,
    url: Url,
    max_message_bytes: usize,
}

/// Failure of a POST.
#[derive(Debug, thiserror::Error)]
enum HttpFailure {
    #[error("rate limited by the node")]
    Throttled(Option<Duration>),
    #[error("an answer of more than {0} bytes (raise node.max_message_bytes)")]
    TooLong(usize),
    #[error(transparent)]
    Full(#[from] Full),
    #[error("{0}")]
    Other(String),
}

impl From<String> for HttpFailure {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

impl HttpTransport {
    async fn call(&self, method: &str, params: &str, mut room: Option<Charge>) -> Result<Outcome, HttpFailure> {
        let body = message::request(ID, method, params);
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .body(body);
        // The address may hold a key: it stays out of the error.
        let failed = |error: reqwest::Error| HttpFailure::Other(chain(&error.without_url()));
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let after = response.headers().get(reqwest::header::RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
        // A known length is reserved at once, as far as it is allowed: growing means copying.
        let length = response.content_length().unwrap_or(0) as usize;
        let mut charged = |bytes: usize| match &mut room {
            Some(room) if bytes > UNCHARGED => room.resize(bytes),
            _ => Ok(()),
        };
        let length = length.min(self.max_message_bytes);
        charged(length)?;
        let mut answer = Vec::with_capacity(length);
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.len() + chunk.len() > self.max_message_bytes {
                return Err(HttpFailure::TooLong(self.max_message_bytes));
            }
            // Charged before the buffer grows, by doubling.
            if answer.len() + chunk.len() > answer.capacity() {
                charged((answer.len() + chunk.len()).max(2 * answer.capacity()))?;
            }
            answer.extend_from_slice(&chunk);
        }
        if status.is_redirection() {
            return Err(HttpFailure::Other(format!(
                "HTTP {status}: headwater does not follow redirects, configure the final address"
            )));
        }
        if status == reqwest::StatusCode::TOO_MANY_REQUESTS {
            return Err(HttpFailure::Throttled(after.map(Duration::from_secs)));
        }
        message::answer(&answer.into(), ID)
            .ok_or_else(|| HttpFailure::Other(format!("HTTP {status} without a JSON-RPC answer")))
    }

    async fn result(&self, method: &str, params: &str) -> Result<Bytes, HttpFailure> {
        result_of(self.outcome(method, params).await?)
    }

    /// Makes a call like [`Self::call`], but reports a rate limit as a failure, however the node expresses it.
    async fn outcome(&self, method: &str, params: &str) -> Result<Outcome, HttpFailure> {
        let outcome = self.call(method, params, None).await?;
        if is_throttled(&outcome) {
            return Err(HttpFailure::Throttled(None));
        }
        Ok(outcome)
    }
}

fn result_of(outcome: Outcome) -> Result<Bytes, HttpFailure> {
    match outcome {
        Outcome::Result(json) => Ok(json),
        Outcome::Error(error) => Err(String::from_utf8_lossy(&error).into_owned().into()),
    }
}

/// Posts calls until the pool is gone.
async fn forward(node: HttpTransport, mut calls: mpsc::Receiver<Call>, max_in_flight: usize, answers: Arc<Budget>) {
    let room = Arc::new(Semaphore::new(max_in_flight));
    while let Some(call) = calls.recv().await {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let node = node.clone();
        // Each question of our own is charged separately.
        let owner = if call.owner == Owner::OURS {
            Owner::default()
        } else {
            call.owner
        };
        let room = Some(answers.open(owner));
        tokio::spawn(async move {
            let outcome = node
                .call(&call.method, &call.params, room)
                .await
                .map_err(|failed| match failed {
                    HttpFailure::Throttled(after) => CallError::Throttled(after),
                    HttpFailure::TooLong(_) => CallError::TooLong,
                    HttpFailure::Full(full) => CallError::Full(full),
                    HttpFailure::Other(_) => CallError::Lost,
                });
            drop(call.reply.send(outcome));
            drop(place);
        });
    }
}

/// Returns an error with its causes, which reqwest's own text leaves out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
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
        let Some(CallReceiver { ours, theirs }) = self.call_receiver.take() else {
            return;
        };
        // Besides the polling: neither a slow poll nor a client's slow call may delay the stream.
        let max = self.shared.settings.max_in_flight;
        let mut forwarding = tokio::spawn(forward(self.node.clone(), theirs, max, self.shared.answers.clone()));
        let fetching = tokio::spawn(forward(self.node.clone(), ours, max, self.shared.our_answers.clone()));
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
        let longest = if self.ready {
            (self.shared.settings.silence_timeout / TRIES).min(LONGEST)
        } else {
            LONGEST
        };
        self.back_off.get_or_insert_default().refused(now, after, longest);
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
    fn has_done(&self, step: Step) -> bool {
        let time_limit = self.shared.settings.silence_timeout;
        self.handshake
            .is_some_and(|(since, done)| done >= step && since.elapsed() < time_limit)
    }

    fn done(&mut self, step: Step) {
        let since = match self.handshake {
            Some((since, _)) if self.has_done(Step::ChainId) => since,
            _ => Instant::now(),
        };
        self.handshake = Some((since, step));
    }

    async fn poll(&mut self) -> Result<(), HttpFailure> {
        if !self.ready && !self.has_done(Step::ChainId) {
            let mut chain_id = self.node.outcome("eth_chainId", "").await?;
            if has_no_chain_id(&chain_id) {
                chain_id = self.node.outcome(NETWORK_ID, "").await?;
            }
            self.shared
                .check_chain_id(&String::from_utf8_lossy(&result_of(chain_id)?))?;
            self.done(Step::ChainId);
        }
        if !self.ready && !self.has_done(Step::Genesis) {
            let genesis = self.node.outcome("eth_getBlockByNumber", r#"["0x0",false]"#).await?;
            if let Genesis::Other(mut doubt) = self.shared.check_genesis(&genesis) {
                while let Some((method, params)) = doubt.question() {
                    doubt.answered(&self.node.outcome(method, &params).await?);
                }
                self.shared.resolve(&doubt).await?;
            }
            self.done(Step::Genesis);
        }
        let head = self.node.result("eth_getBlockByNumber", r#"["latest",false]"#).await?;
        self.shared.active.heard(self.shared.id);
        if self.head.as_ref() != Some(&head) {
            self.head = Some(head.clone());
            self.shared.tell(HeadReport::Latest(head)).await;
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

/// Poller of best-effort events (pending transactions, sync state) while clients subscribe to them. Failures stay here:
/// a node that does not serve them is still a good node.
#[derive(Debug)]
struct MempoolPoller {
    shared: Arc<UpstreamShared>,
    node: HttpTransport,
    filter: Option<String>,
    back_off: BackOff,
    /// Error object of a node that returns no transaction by its hash.
    no_whole: Option<Bytes>,
}

impl MempoolPoller {
    fn new(shared: Arc<UpstreamShared>, node: HttpTransport) -> Self {
        Self {
            shared,
            node,
            filter: None,
            back_off: BackOff::default(),
            no_whole: None,
        }
    }

    async fn run(mut self) {
        let mut tick = tokio::time::interval(self.shared.settings.poll_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = self.shared.wanted.clone();
        let mut before = Wanted::default();
        loop {
            let is_due = tokio::select! {
                _ = tick.tick() => true,
                Ok(()) = changes.changed() => false,
            };
            let wanted = self.shared.wants();
            self.refuse_passed(&wanted);
            // New subscriptions are answered at once. Refused kinds do not cause polls, since any client may
            // subscribe to them.
            let wanted = Wanted {
                passed: Arc::default(),
                ..wanted
            };
            let is_new = before != wanted;
            before = wanted.clone();
            if !is_due && !is_new || self.back_off.until(Instant::now()).is_some() {
                continue;
            }
            if let Err(why) = self.poll(&wanted).await {
                debug!("upstream {}: {why}", self.shared.endpoint);
                match why {
                    HttpFailure::Throttled(after) => {
                        let now = Instant::now();
                        self.shared.load.throttled(now, after);
                        self.back_off.refused(now, after, LONGEST);
                        self.put_off();
                    }
                    HttpFailure::TooLong(_) | HttpFailure::Full(_) | HttpFailure::Other(_) => self.filter = None,
                }
            }
        }
    }

    /// Reports the answer for pending transactions in both forms, which one filter serves.
    fn set_answer(&self, answer: Result<(), Bytes>) {
        let whole = self.no_whole.clone().map_or(answer.clone(), Err);
        for (form, answer) in [(TransactionForm::Hash, answer), (TransactionForm::Full, whole)] {
            self.shared.set_answer(&NodeSubscription::Pending(form), Some(answer));
        }
    }

    /// Reports the rate limit to clients that subscribe to pending transactions in the meantime; the filter is polled
    /// again later.
    fn put_off(&self) {
        let Outcome::Error(why) = error(LIMIT_EXCEEDED, CallError::Throttled(None).to_string()).into() else {
            return;
        };
        for form in [TransactionForm::Hash, TransactionForm::Full] {
            self.shared.put_off(&NodeSubscription::Pending(form), Some(why.clone()));
        }
    }

    /// Refuses kinds that only the node knows: over HTTP nothing is passed through.
    fn refuse_passed(&self, wanted: &Wanted) {
        self.shared.forget_unwanted(wanted);
        for passed in &*wanted.passed {
            // Message of geth over HTTP (PROTOCOL 1.5).
            let none = error(METHOD_NOT_FOUND, "notifications not supported");
            if let Outcome::Error(none) = none.into() {
                self.shared
                    .set_answer(&NodeSubscription::Passthrough(passed.clone()), Some(Err(none)));
            }
        }
    }

    async fn poll(&mut self, wanted: &Wanted) -> Result<(), HttpFailure> {
        if wanted.syncing {
            let syncing = self.node.result("eth_syncing", "").await?;
            self.shared.best_effort(BestEffortEvent::Syncing(syncing));
        }
        if !wanted.pending_hashes && !wanted.pending_full {
            if let Some(filter) = self.filter.take() {
                self.node.outcome("eth_uninstallFilter", &format!("[{filter}]")).await?;
            }
            return Ok(());
        }
        // Nodes forget filters: then this call fails, and the next poll makes a new filter.
        let is_new = self.filter.is_none();
        let filter = match &self.filter {
            Some(filter) => filter,
            None => {
                let made = self.node.outcome("eth_newPendingTransactionFilter", "").await?;
                let id = match made {
                    Outcome::Result(id) => id,
                    Outcome::Error(error) => {
                        let why = String::from_utf8_lossy(&error).into_owned();
                        self.set_answer(Err(error));
                        return Err(why.into());
                    }
                };
                self.no_whole = None;
                self.filter.insert(String::from_utf8_lossy(&id).into_owned())
            }
        };
        let changes = self
            .node
            .outcome("eth_getFilterChanges", &format!("[{filter}]"))
            .await?;
        let changes = match changes {
            Outcome::Result(changes) => changes,
            Outcome::Error(error) => {
                let why = String::from_utf8_lossy(&error).into_owned();
                if is_new {
                    self.set_answer(Err(error));
                }
                return Err(why.into());
            }
        };
        let seen = std::time::Instant::now();
        self.set_answer(Ok(()));
        let found: Vec<&RawValue> = serde_json::from_slice(&changes).unwrap_or_default();
        let forms = Forms {
            hashes: wanted.pending_hashes,
            whole: wanted.pending_full && self.no_whole.is_none(),
        };
        let mut fetches = Fetches::default();
        let mut dropped = 0;
        for json in found {
            match Announced::read(&changes.slice_ref(json.get().as_bytes())) {
                Some(transaction) => {
                    let hash = self.shared.announced(transaction, forms, seen);
                    dropped += hash.map_or(0, |hash| fetches.push(&hash, seen));
                }
                None => dropped += 1,
            }
        }
        self.shared.count_dropped(dropped);
        self.fetch_whole(fetches).await
    }

    async fn fetch_whole(&mut self, mut fetches: Fetches) -> Result<(), HttpFailure> {
        let calls = fetches.take_waiting().into_iter().map(|(hash, seen)| {
            let node = self.node.clone();
            async move {
                let (method, params) = pending::fetch(&hash);
                (node.outcome(method, &params).await, seen)
            }
        });
        let mut left = calls.len();
        let mut answers = stream::iter(calls).buffered(MAX_UNDER_WAY);
        while let Some((answer, seen)) = answers.next().await {
            left -= 1;
            match answer {
                Ok(answer) => {
                    if let Err(error) = self.shared.fetched(answer, seen)
                        && is_unknown_method(&error)
                    {
                        self.shared.count_dropped(left);
                        self.no_whole = Some(error);
                        self.set_answer(Ok(()));
                        return Ok(());
                    }
                }
                Err(why @ HttpFailure::Throttled(_)) => {
                    self.shared.count_dropped(left + 1);
                    return Err(why);
                }
                Err(_) => self.shared.count_dropped(1),
            }
        }
        Ok(())
    }
}
