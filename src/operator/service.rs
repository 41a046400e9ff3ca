//! The server's half of the API.

use std::sync::{Arc, Weak};
use std::time::Duration;

use jsonrpsee::core::{RpcResult, SubscriptionResult, async_trait};
use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::types::error::INVALID_PARAMS_CODE;
use jsonrpsee::{Extensions, PendingSubscriptionSink, SubscriptionMessage, SubscriptionSink};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::api::OperatorServer;
use super::audit::{self, Audit};
use super::clients;
use super::costs::Costs;
use super::redaction;
use super::sampler::Sampler;
use super::status::SentBlocks;
use super::tap::{self, MAX_TAPS, TapBounds, TapQuery};
use super::usage::{self, UsageLog};
use super::views::{
    AuditEntry, ClientPage, ClientQuery, ClientView, Drain, Reloaded, ReorgView, Status, UpstreamName, UpstreamView,
    UsageQuery, UsageRow,
};
use crate::admin::Readiness;
use crate::chain::Published;
use crate::delivery::{ClientWriter, CloseReason, TappedMessage};
use crate::door::unix_now;
use crate::reload::{self, ReloadHandle};
use crate::session::Services;
use crate::telemetry::{Entry, Event, unix_millis};
use crate::upstream::{Pool, UpstreamId};
use crate::webhooks::Webhooks;

/// Error code of an id or a name that does not exist.
const NOT_FOUND: i32 = -32001;

/// Error code of an act that is refused.
pub(super) const REFUSED: i32 = -32000;

/// Interval of states to subscribers.
const STATUS: Duration = Duration::from_secs(1);

/// Seconds between collections of the accounts' usage: an account is dropped after a minute without use at the
/// earliest.
const COLLECT: u64 = 10;

/// Seconds between writes of the usage file.
const WRITE: u64 = 300;

/// Longest time over which a drain closes clients.
const MAX_CLOSE: Duration = Duration::from_secs(3600);

/// Most entries of an answer that names no number.
const NEWEST: usize = 64;

/// State that the API reads and acts on.
#[derive(Debug)]
pub struct Parts {
    /// Clients, accounts and metrics.
    pub services: Arc<Services>,
    /// Upstreams.
    pub pool: Arc<Pool>,
    /// Published blocks.
    pub published: Arc<Published>,
    /// Readiness, and the drain.
    pub readiness: Arc<Readiness>,
    /// Task that follows the configuration; `None` if there is none.
    pub reload: Option<ReloadHandle>,
    /// Webhooks.
    pub webhooks: Arc<Webhooks>,
    /// Usage of accounts before this start.
    pub usage: UsageLog,
}

/// The server's half of the API.
#[derive(Clone, Debug)]
pub struct OperatorService(Arc<Inner>);

impl std::ops::Deref for OperatorService {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// State of the API.
#[derive(Debug)]
pub struct Inner {
    pub(super) parts: Parts,
    pub(super) sampler: Sampler,
    pub(super) started: Instant,
    audit: Audit,
    usage: Mutex<UsageLog>,
    /// Held while the file of usage is written: the shutdown's writer waits for the other one.
    usage_file: tokio::sync::Mutex<()>,
    pub(super) costs: Mutex<Costs>,
    /// Outcome of the last check for late contents of blocks, a second ago.
    pub(super) late: Mutex<Result<(), String>>,
    /// Places of taps.
    taps: Semaphore,
    /// Task that closes clients during a drain.
    closing: Mutex<Option<AbortHandle>>,
}

impl OperatorService {
    /// Creates the service.
    #[must_use]
    pub fn new(mut parts: Parts) -> Self {
        Self(Arc::new(Inner {
            sampler: Sampler::new(&parts.services.metrics),
            started: Instant::now(),
            audit: Audit::default(),
            usage: Mutex::new(std::mem::take(&mut parts.usage)),
            usage_file: tokio::sync::Mutex::default(),
            costs: Mutex::default(),
            late: Mutex::new(Ok(())),
            taps: Semaphore::new(MAX_TAPS),
            closing: Mutex::default(),
            parts,
        }))
    }

    /// Takes samples and collects usage; never returns.
    pub async fn run(self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for round in 1_u64.. {
            second.tick().await;
            *self.late.lock() = self.parts.readiness.check_contents();
            if let Some(refused) = self.sampler.sample() {
                self.parts.services.metrics.journal.enter(refused);
            }
            if round % COLLECT == 0 {
                self.collect();
                self.costs.lock().turn();
            }
            if round % WRITE == 0 {
                self.write_usage().await;
            }
        }
    }

    /// Collects the usage that is left, and writes the file: for the shutdown.
    pub async fn finish(&self) {
        self.collect();
        self.write_usage().await;
    }

    fn collect(&self) {
        let taken = self.parts.services.door.accounts().take_usage();
        self.costs.lock().add(&taken);
        self.usage.lock().add(taken, unix_now());
    }

    async fn write_usage(&self) {
        let _writer = self.usage_file.lock().await;
        let file = self.usage.lock().file();
        if let Some((path, text)) = file {
            usage::write(path, text).await;
        }
    }

    fn enter(&self, event: Event) {
        self.parts.services.metrics.journal.enter(event);
    }

    fn upstream(&self, name: &UpstreamName) -> RpcResult<(UpstreamId, String)> {
        let upstreams = self.parts.pool.ids().into_iter().enumerate();
        let mut found = upstreams
            .map(|(place, id)| (place, id, self.parts.pool.address(id)))
            .filter(|(place, _, address)| match name {
                UpstreamName::Index(index) => place == index,
                UpstreamName::Address(own) => address == own,
            });
        match (found.next(), found.next()) {
            (Some((_, id, address)), None) => Ok((id, address)),
            (None, _) => Err(error(NOT_FOUND, "no such upstream: see operator_upstreams")),
            (Some(_), Some(_)) => {
                let why = "several upstreams have this address without its secrets: use the index";
                Err(error(INVALID_PARAMS_CODE, why))
            }
        }
    }

    fn disconnect_client(&self, id: u64) -> RpcResult<()> {
        let client = self.parts.services.clients.get(id).ok_or_else(no_client)?;
        client.writer.close(CloseReason::Operator);
        Ok(())
    }

    /// Begins a tap, which ends with its guard.
    fn begin_tap(&self, id: u64, bytes: usize) -> RpcResult<(TapGuard<'_>, mpsc::Receiver<TappedMessage>)> {
        let client = self.parts.services.clients.get(id).ok_or_else(no_client)?;
        let full = || error(REFUSED, format!("there are {MAX_TAPS} taps already: end one first"));
        let place = self.taps.try_acquire().map_err(|_| full())?;
        let messages = client.writer.tap(bytes, redaction::discloses);
        let messages = messages.ok_or_else(|| error(REFUSED, "this client has a tap already"))?;
        let guard = TapGuard {
            writer: Arc::downgrade(&client.writer),
            _place: place,
        };
        Ok((guard, messages))
    }

    fn close_clients(&self, over: Option<Duration>) {
        let task = over.map(|over| {
            let services = self.parts.services.clone();
            let closing = async move { services.clients.close_gradually(over).await };
            tokio::spawn(closing).abort_handle()
        });
        if let Some(before) = std::mem::replace(&mut *self.closing.lock(), task) {
            before.abort();
        }
    }
}

/// Tap that ends when this is dropped.
struct TapGuard<'a> {
    writer: Weak<ClientWriter>,
    _place: SemaphorePermit<'a>,
}

impl Drop for TapGuard<'_> {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.upgrade() {
            writer.end_tap();
        }
    }
}

fn error(code: i32, why: impl Into<String>) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(code, why, None::<()>)
}

fn no_client() -> ErrorObjectOwned {
    error(NOT_FOUND, "no such client: it may have left; see operator_clients")
}

fn reloaded(outcome: Option<reload::Reloaded>) -> RpcResult<Reloaded> {
    match outcome {
        Some(Ok(needs_restart)) => Ok(Reloaded { needs_restart }),
        Some(Err(why)) => Err(error(REFUSED, why.to_string())),
        None => Err(error(REFUSED, "the task that follows the configuration has ended")),
    }
}

fn no_configuration() -> ErrorObjectOwned {
    error(REFUSED, "this process follows no configuration")
}

#[async_trait]
impl OperatorServer for OperatorService {
    fn status(&self) -> RpcResult<Status> {
        Ok(self.gather())
    }

    fn clients(&self, query: Option<ClientQuery>) -> RpcResult<ClientPage> {
        let services = &self.parts.services;
        let query = query.unwrap_or_default();
        Ok(clients::page(services.clients.all(), &query, services.clock.now()))
    }

    fn client(&self, id: u64) -> RpcResult<ClientView> {
        let services = &self.parts.services;
        let client = services.clients.get(id).ok_or_else(no_client)?;
        Ok(clients::view(&client, services.clock.now()))
    }

    fn disconnect(&self, extensions: &Extensions, id: u64) -> RpcResult<()> {
        let target = format!("client {id}");
        self.audit
            .act(extensions, "disconnect", &target, || self.disconnect_client(id))
    }

    fn upstreams(&self) -> RpcResult<Vec<UpstreamView>> {
        Ok(self.upstream_views())
    }

    fn cordon(&self, extensions: &Extensions, upstream: UpstreamName, force: Option<bool>) -> RpcResult<bool> {
        self.audit.act(extensions, "cordon", &upstream.to_string(), || {
            let (id, address) = self.upstream(&upstream)?;
            let cordoned = self.parts.pool.cordon(id, force.unwrap_or(false));
            let changed = cordoned.map_err(|why| error(REFUSED, format!("{why}: calls would fail; set force")))?;
            if changed {
                self.enter(Event::Cordoned { upstream: address });
            }
            Ok(changed)
        })
    }

    fn uncordon(&self, extensions: &Extensions, upstream: UpstreamName) -> RpcResult<bool> {
        self.audit.act(extensions, "uncordon", &upstream.to_string(), || {
            let (id, address) = self.upstream(&upstream)?;
            let changed = self.parts.pool.uncordon(id);
            if changed {
                self.enter(Event::Uncordoned { upstream: address });
            }
            Ok(changed)
        })
    }

    fn drain(&self, extensions: &Extensions, drain: Option<Drain>) -> RpcResult<bool> {
        let within = drain.unwrap_or_default().close_within_ms.map(Duration::from_millis);
        let target = within.map_or_else(String::new, |within| format!("clients within {within:?}"));
        self.audit.act(extensions, "drain", &target, || {
            if within.is_some_and(|within| within > MAX_CLOSE) {
                return Err(error(INVALID_PARAMS_CODE, "closeWithinMs must be at most an hour"));
            }
            let changed = self.parts.readiness.set_drained(true);
            if changed {
                self.enter(Event::Drained);
            }
            if within.is_some() {
                self.close_clients(within);
            }
            Ok(changed)
        })
    }

    fn undrain(&self, extensions: &Extensions) -> RpcResult<bool> {
        self.audit.act(extensions, "undrain", "", || {
            self.close_clients(None);
            let changed = self.parts.readiness.set_drained(false);
            if changed {
                self.enter(Event::Undrained);
            }
            Ok(changed)
        })
    }

    async fn reload(&self, extensions: &Extensions) -> RpcResult<Reloaded> {
        let actor = audit::actor(extensions)?;
        let outcome = match &self.parts.reload {
            Some(handle) => reloaded(handle.apply().await),
            None => Err(no_configuration()),
        };
        self.audit.note(actor, "reload", "", outcome)
    }

    async fn check_config(&self) -> RpcResult<Reloaded> {
        match &self.parts.reload {
            Some(handle) => reloaded(handle.check().await),
            None => Err(no_configuration()),
        }
    }

    fn usage(&self, query: Option<UsageQuery>) -> RpcResult<Vec<UsageRow>> {
        self.collect();
        Ok(self.usage.lock().rows(&query.unwrap_or_default(), unix_now()))
    }

    fn reorgs(&self, last: Option<usize>) -> RpcResult<Vec<ReorgView>> {
        Ok(self.reorg_views(last.unwrap_or(NEWEST)))
    }

    fn audit(&self, last: Option<usize>) -> RpcResult<Vec<AuditEntry>> {
        Ok(self.audit.newest(last.unwrap_or(NEWEST)))
    }

    async fn subscribe_status(&self, pending: PendingSubscriptionSink) -> SubscriptionResult {
        let sink = pending.accept().await?;
        let mut second = tokio::time::interval(STATUS);
        // A client that is slow to read gets fewer states, each of them fresh.
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent = SentBlocks::default();
        loop {
            tokio::select! {
                () = sink.closed() => return Ok(()),
                _ = second.tick() => {
                    let mut status = self.gather();
                    status.new_blocks = sent.news(&mut status.blocks);
                    if status.new_blocks.is_some() {
                        status.blocks.clear();
                    }
                    send(&sink, &status).await?;
                }
            }
        }
    }

    async fn subscribe_events(&self, pending: PendingSubscriptionSink, last: Option<usize>) -> SubscriptionResult {
        let sink = pending.accept().await?;
        let (newest, mut live) = self.parts.services.metrics.journal.follow(last.unwrap_or(0));
        let mut number = newest.last().map_or(0, |entry| entry.number);
        for entry in &newest {
            send(&sink, entry).await?;
        }
        loop {
            let entry = tokio::select! {
                () = sink.closed() => return Ok(()),
                received = live.recv() => match received {
                    Ok(entry) => entry,
                    Err(RecvError::Lagged(count)) => Entry {
                        number,
                        at: unix_millis(),
                        event: Event::Missed { count },
                    },
                    Err(RecvError::Closed) => return Ok(()),
                },
            };
            number = entry.number;
            send(&sink, &entry).await?;
        }
    }

    async fn tap(
        &self,
        pending: PendingSubscriptionSink,
        extensions: &Extensions,
        id: u64,
        query: Option<TapQuery>,
    ) -> SubscriptionResult {
        let bounds = TapBounds::from(query.unwrap_or_default());
        let target = format!("client {id}, {:?}, {} bytes", bounds.time, bounds.bytes);
        let begun = self
            .audit
            .act(extensions, "tap", &target, || self.begin_tap(id, bounds.bytes));
        let (guard, messages) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                pending.reject(why).await;
                return Ok(());
            }
        };
        let sink = pending.accept().await?;
        tap::forward(&sink, messages, bounds.time, || guard.writer.strong_count() > 0).await
    }
}

/// Sends an item, when the connection has room for it.
pub(super) async fn send(sink: &SubscriptionSink, item: &impl Serialize) -> SubscriptionResult {
    let item = serde_json::value::to_raw_value(item)?;
    sink.send(SubscriptionMessage::from(item)).await?;
    Ok(())
}
