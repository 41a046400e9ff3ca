//! One node over HTTP: its head is asked for again and again, calls are posted.
//!
//! It says the same things as a connection does, so nothing downstream can tell the two apart.
//!
//! A node that says that it is asked too much is not lost: what it refused is asked again when it said, or after a while that
//! grows, and it is lost only where no head could be learned for so long that silence would have been its end, too. Its head
//! and the gossip wait for their own refusals alone: a client whose calls are refused takes neither from the others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};
use url::Url;

use super::call::{Call, Inbox, is_throttled, is_unknown_method};
use super::identity::{Genesis, NETWORK_ID, has_no_chain_id};
use super::load::{BackOff, LONGEST};
use super::message;
use super::pending::{self, Announced, Fetches, Forms, MAX_UNDER_WAY};
use super::pool::Shared;
use super::{CallError, Gossip, Heads, NodeSubscription, Sighting, TransactionForm, Wanted};
use crate::jsonrpc::{LIMIT_EXCEEDED, METHOD_NOT_FOUND, Outcome, error};
use crate::panics;
use crate::shares::{Budget, Charge, Full, Owner};

/// The id of every call: each has a POST of its own.
const ID: u64 = 1;

/// Answers up to this length take no room: their number is bounded.
const UNCHARGED: usize = 64 << 10;

/// Longest wait before a node whose poll failed is asked once more.
const ONCE_MORE: Duration = Duration::from_millis(250);

/// Polls, all of them refused, within the silence that ends a node: it should not be lost by our own patience.
const TRIES: u32 = 4;

/// The actor.
#[derive(Debug)]
pub(super) struct Poller {
    shared: Arc<Shared>,
    node: HttpTransport,
    inbox: Option<Inbox>,
    head: Option<Bytes>,
    /// The part of the handshake that is done, and since when: a node that leaves every third question unanswered begins
    /// each poll where the one before ended.
    handshake: Option<(Instant, Step)>,
    ready: bool,
    /// When its head was last learned.
    learned: Instant,
    /// Its last poll failed, which may have been one answer's fault.
    failed_once: bool,
    /// Of polls that were refused since the last that was not.
    back_off: Option<BackOff>,
}

/// A part of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    ChainId,
    Genesis,
}

/// The way to the node by HTTP.
#[derive(Clone, Debug)]
struct HttpTransport {
    client: reqwest::Client,
    url: Url,
    max_message_bytes: usize,
}

/// A post came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("rate limited: the node says that it is asked too much")]
    Throttled(Option<Duration>),
    #[error("an answer of more than {0} bytes (raise node.max_message_bytes)")]
    TooLong(usize),
    #[error(transparent)]
    Full(#[from] Full),
    #[error("{0}")]
    Other(String),
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

impl HttpTransport {
    async fn call(&self, method: &str, params: &str, mut room: Option<Charge>) -> Result<Outcome, Failed> {
        let body = message::request(ID, method, params);
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .body(body);
        // The address may hold a key: it stays out of the error.
        let failed = |error: reqwest::Error| Failed::Other(chain(&error.without_url()));
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let after = response.headers().get(reqwest::header::RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
        // Where the length is known it is taken at its word, as far as it is allowed: growing means copying.
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
                return Err(Failed::TooLong(self.max_message_bytes));
            }
            // Before it grows, by doubling, as it will.
            if answer.len() + chunk.len() > answer.capacity() {
                charged((answer.len() + chunk.len()).max(2 * answer.capacity()))?;
            }
            answer.extend_from_slice(&chunk);
        }
        if status.is_redirection() {
            return Err(Failed::Other(format!(
                "HTTP {status}: redirects are not followed, set the address that serves"
            )));
        }
        if status == reqwest::StatusCode::TOO_MANY_REQUESTS {
            return Err(Failed::Throttled(after.map(Duration::from_secs)));
        }
        message::answer(&answer.into(), ID)
            .ok_or_else(|| Failed::Other(format!("HTTP {status} without a JSON-RPC answer")))
    }

    async fn result(&self, method: &str, params: &str) -> Result<Bytes, Failed> {
        result_of(self.outcome(method, params).await?)
    }

    /// As [`Self::call`]; that it is asked too much is no answer, however the node says it.
    async fn outcome(&self, method: &str, params: &str) -> Result<Outcome, Failed> {
        let outcome = self.call(method, params, None).await?;
        if is_throttled(&outcome) {
            return Err(Failed::Throttled(None));
        }
        Ok(outcome)
    }
}

fn result_of(outcome: Outcome) -> Result<Bytes, Failed> {
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
        // Each of our own questions stands for itself.
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
                    Failed::Throttled(after) => CallError::Throttled(after),
                    Failed::TooLong(_) => CallError::TooLong,
                    Failed::Full(full) => CallError::Full(full),
                    Failed::Other(_) => CallError::Lost,
                });
            drop(call.reply.send(outcome));
            drop(place);
        });
    }
}

/// The whole story: reqwest's own text leaves the cause out.
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
    pub(super) fn new(shared: Arc<Shared>, url: Url, inbox: Inbox) -> Self {
        let silence = shared.settings.silence_timeout;
        let client = reqwest::Client::builder()
            // The address that is set is the one that is asked, with its credentials: neither the environment nor an answer
            // names another.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // What has been idle for so long may be half-open, and one that is half-open must not be kept.
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
            inbox: Some(inbox),
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
        let Some(Inbox { ours, theirs }) = self.inbox.take() else {
            return;
        };
        // Beside the polling: neither a slow poll nor a client's slow call may hold back the stream.
        let max = self.shared.settings.max_in_flight;
        let mut forwarding = tokio::spawn(forward(self.node.clone(), theirs, max, self.shared.answers.clone()));
        let fetching = tokio::spawn(forward(self.node.clone(), ours, max, self.shared.our_answers.clone()));
        let gossiping = tokio::spawn(Gossiper::new(self.shared.clone(), self.node.clone()).run());
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let shared = self.shared.clone();
                    let turn = panics::caught("node", shared.choice.metrics(), self.turn()).await;
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

    /// Asks the node unless its last refusal stands; when the next turn is, where that is another time than usual.
    async fn turn(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if let Some(next) = self.next_poll(now) {
            if self.ready && now >= self.end() {
                self.failed(Failed::Throttled(None).to_string());
            }
            return Some(self.next_turn(next));
        }
        // Half: a poll that never ends may have begun a while after the node fell silent.
        let patience = self.shared.settings.silence_timeout / 2;
        let polled = tokio::time::timeout(patience, self.poll()).await;
        match polled.unwrap_or_else(|_| Err(format!("no answer for {patience:?}").into())) {
            Ok(()) => {
                self.learned = Instant::now();
                self.failed_once = false;
                self.back_off = None;
                None
            }
            Err(Failed::Throttled(after)) => {
                self.throttled(after);
                self.next_poll(Instant::now()).map(|next| self.next_turn(next))
            }
            // Within half the patience: the next one may take the other half.
            Err(why) if self.ready && !self.failed_once && self.learned.elapsed() < patience => {
                debug!("upstream {}: {why}; asking once more", self.shared.endpoint);
                self.failed_once = true;
                Some(Instant::now() + self.shared.settings.poll_interval.min(ONCE_MORE))
            }
            Err(why) => {
                self.failed(why.to_string());
                // One of another chain will hardly change; it is asked now and then.
                let refused = self.shared.status.lock().refused.is_some();
                refused.then(|| Instant::now() + self.shared.settings.reconnect_max)
            }
        }
    }

    /// When the node is asked again, where that is still to come.
    fn next_poll(&self, now: Instant) -> Option<Instant> {
        self.back_off?.until(now)
    }

    /// Not later than its end is known.
    fn next_turn(&self, next: Instant) -> Instant {
        if self.ready { next.min(self.end()) } else { next }
    }

    /// When it is lost unless its head is learned before.
    fn end(&self) -> Instant {
        self.learned + self.shared.settings.silence_timeout
    }

    /// The node is asked too much. It is lost only where it has told no head for as long as a silent one may be silent; until
    /// then it is asked a few times, whenever it said to come again. Clients' calls spare it, too.
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
        let why = Failed::Throttled(after);
        if !self.ready || now >= self.end() {
            self.failed(why.to_string());
        } else if is_first {
            warn!("upstream {}: {why}; it is asked less often", self.shared.endpoint);
        }
    }

    fn failed(&mut self, why: String) {
        if self.ready || self.shared.status.lock().last_error.as_ref() != Some(&why) {
            let now = Instant::now();
            let again = match self.next_poll(now) {
                Some(next) => format!("in {:.1?}", next.saturating_duration_since(now)),
                None => format!("every {:?}", self.shared.settings.poll_interval),
            };
            warn!("upstream {}: {why}; asking again {again}", self.shared.endpoint);
        }
        self.shared.down(why);
        self.head = None;
        if std::mem::take(&mut self.ready) {
            // Another one may answer next.
            self.handshake = None;
        }
        self.failed_once = false;
    }

    /// Whether this part of the handshake is done, not too long ago.
    fn has_done(&self, step: Step) -> bool {
        let patience = self.shared.settings.silence_timeout;
        self.handshake
            .is_some_and(|(since, done)| done >= step && since.elapsed() < patience)
    }

    fn done(&mut self, step: Step) {
        let since = match self.handshake {
            Some((since, _)) if self.has_done(Step::ChainId) => since,
            _ => Instant::now(),
        };
        self.handshake = Some((since, step));
    }

    async fn poll(&mut self) -> Result<(), Failed> {
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
        self.shared.choice.heard(self.shared.id);
        if self.head.as_ref() != Some(&head) {
            self.head = Some(head.clone());
            self.shared.tell(Sighting::Latest(head)).await;
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

/// What is asked of the node besides its head, while someone wants it. Its trouble is nobody else's: a node that does not
/// serve it is still a good node.
#[derive(Debug)]
struct Gossiper {
    shared: Arc<Shared>,
    node: HttpTransport,
    filter: Option<String>,
    back_off: BackOff,
    /// The node tells no transaction by its hash, with this error object.
    no_whole: Option<Bytes>,
}

impl Gossiper {
    fn new(shared: Arc<Shared>, node: HttpTransport) -> Self {
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
            // A new wish is answered at once, but not with every poll: anybody may wish for what is refused here.
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
                    Failed::Throttled(after) => {
                        let now = Instant::now();
                        self.shared.load.throttled(now, after);
                        self.back_off.refused(now, after, LONGEST);
                        self.put_off();
                    }
                    Failed::TooLong(_) | Failed::Full(_) | Failed::Other(_) => self.filter = None,
                }
            }
        }
    }

    /// One filter serves both forms.
    fn settle(&self, answer: Result<(), Bytes>) {
        let whole = self.no_whole.clone().map_or(answer.clone(), Err);
        for (form, answer) in [(TransactionForm::Hash, answer), (TransactionForm::Full, whole)] {
            self.shared.settle(&NodeSubscription::Pending(form), Some(answer));
        }
    }

    /// Whoever asks meanwhile is granted what is asked for again.
    fn put_off(&self) {
        let Outcome::Error(why) = error(LIMIT_EXCEEDED, CallError::Throttled(None).to_string()).into() else {
            return;
        };
        for form in [TransactionForm::Hash, TransactionForm::Full] {
            self.shared.put_off(&NodeSubscription::Pending(form), Some(why.clone()));
        }
    }

    /// Over HTTP nothing is passed through.
    fn refuse_passed(&self, wanted: &Wanted) {
        self.shared.forget_unwanted(wanted);
        for passed in &*wanted.passed {
            // geth's words over HTTP (PROTOCOL 1.5).
            let none = error(METHOD_NOT_FOUND, "notifications not supported");
            if let Outcome::Error(none) = none.into() {
                self.shared
                    .settle(&NodeSubscription::Passed(passed.clone()), Some(Err(none)));
            }
        }
    }

    async fn poll(&mut self, wanted: &Wanted) -> Result<(), Failed> {
        if wanted.syncing {
            let syncing = self.node.result("eth_syncing", "").await?;
            self.shared.gossip(Gossip::Syncing(syncing));
        }
        if !wanted.pending_hashes && !wanted.pending_full {
            if let Some(filter) = self.filter.take() {
                self.node.outcome("eth_uninstallFilter", &format!("[{filter}]")).await?;
            }
            return Ok(());
        }
        // Nodes forget filters; then this fails, and the next poll makes a new one.
        let is_new = self.filter.is_none();
        let filter = match &self.filter {
            Some(filter) => filter,
            None => {
                let made = self.node.outcome("eth_newPendingTransactionFilter", "").await?;
                let id = match made {
                    Outcome::Result(id) => id,
                    Outcome::Error(error) => {
                        let why = String::from_utf8_lossy(&error).into_owned();
                        self.settle(Err(error));
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
                    self.settle(Err(error));
                }
                return Err(why.into());
            }
        };
        let seen = std::time::Instant::now();
        self.settle(Ok(()));
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

    async fn fetch_whole(&mut self, mut fetches: Fetches) -> Result<(), Failed> {
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
                        self.settle(Ok(()));
                        return Ok(());
                    }
                }
                Err(why @ Failed::Throttled(_)) => {
                    self.shared.count_dropped(left + 1);
                    return Err(why);
                }
                Err(_) => self.shared.count_dropped(1),
            }
        }
        Ok(())
    }
}
