//! Task of one webhook: it waits here, [`Hook`] decides.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::dead_letters::{self, DeadLetter};
use super::event_text::Item;
use super::feed::{Feed, NoFeed};
use super::hook::{Act, Answer, Hook};
use super::number_behind;
use super::receiver::{Posted, Receiver};
use super::report::{HookReport, ReportedBatch};
use super::settings::HookSettings;
use super::source::{Came, Opening, Source};
use super::state_file::{HookState, StateLock};
use super::status::HookCell;
use crate::backoff::Doubling;
use crate::door::unix_now;
use crate::server::StreamStart;
use crate::session::Services;
use crate::subscription::{ResumePoint, resume_point};
use crate::telemetry::unix_millis;

/// Time for which nodes may not know the block of a position, before it counts as gone: after a restart they may be behind.
const UNKNOWN: Duration = Duration::from_secs(60);

/// Waits before a feed is opened again, or a file is tried again.
const AGAIN: Doubling = Doubling::new(Duration::from_millis(200), Duration::from_secs(30));

/// Interval between attempts to claim a file of state.
const CLAIM: Duration = Duration::from_millis(500);

/// Time for the request under way at the end; without an answer the batch is sent again after the next start.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Type of the event about events that are missing.
const GAP: &str = "headwater.gap";

/// Task of one webhook.
pub(super) struct HookTask {
    pub(super) settings: HookSettings,
    pub(super) services: Arc<Services>,
    pub(super) cell: Arc<HookCell>,
    pub(super) stop: CancellationToken,
}

/// State of a task while it runs.
struct Running<'a> {
    task: &'a HookTask,
    hook: Hook,
    receiver: Arc<Receiver>,
    source: Source,
    stream: Arc<str>,
    report: HookReport<'a>,
    /// Attempts in a row to open a feed that failed.
    refused: u32,
    /// Time since which no node knows the block of the position.
    unknown_since: Option<Instant>,
    /// Time since which events find no room.
    full_since: Option<Instant>,
    /// Last failure of the batch under way.
    failure: String,
}

impl HookTask {
    /// Runs until it is stopped.
    pub(super) async fn run(&self) {
        let name = &self.settings.name;
        let Some((_lock, state)) = self.claim().await else {
            return;
        };
        let receiver = match Receiver::new(&self.settings) {
            Ok(receiver) => Arc::new(receiver),
            Err(why) => {
                error!("webhook {name}: cannot create the HTTP client: {why}");
                self.cell.note(Some(why.to_string()));
                return self.stop.cancelled().await;
            }
        };
        let (metrics, cell) = (&self.services.metrics.webhooks, self.cell.clone());
        let report = HookReport::begin(&self.settings, metrics, cell, &state);
        let now = Instant::now();
        let running = Running {
            hook: Hook::new(self.settings.limits, state, fastrand::Rng::new(), now),
            receiver,
            source: Source::Closed(now),
            stream: self.settings.stream.as_str().into(),
            report,
            refused: 0,
            unknown_since: None,
            full_since: None,
            failure: String::new(),
            task: self,
        };
        running.run().await;
    }

    /// Claims the file of state and reads it; `None` once the task is to stop.
    async fn claim(&self) -> Option<(StateLock, HookState)> {
        let (settings, mut last) = (&self.settings, String::new());
        loop {
            let claimed = match StateLock::claim(&settings.state) {
                Ok(Some(lock)) => match HookState::read(&settings.state, settings.kind) {
                    Ok(state) => Ok((lock, state.unwrap_or_else(|| HookState::new(settings.kind)))),
                    Err(why) => Err(why.to_string()),
                },
                Ok(None) => Err(format!("{}: used by another process", settings.state.display())),
                Err(why) => Err(format!("{}: {why}", settings.state.display())),
            };
            let why = match claimed {
                Ok(claimed) => {
                    self.cell.note(None);
                    return Some(claimed);
                }
                Err(why) => why,
            };
            if why != last {
                warn!("webhook {}: waits for its state: {why}", settings.name);
                self.cell.note(Some(why.clone()));
                last = why;
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = sleep(CLAIM) => {}
            }
        }
    }

    /// Writes a file until it succeeds; `None` if the task is to stop instead.
    async fn until_written<T, F>(&self, setting: &str, write: impl Fn() -> F) -> Option<T>
    where
        F: FnOnce() -> std::io::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        for attempt in 0.. {
            let written = tokio::task::spawn_blocking(write()).await;
            let why = match written {
                Ok(Ok(written)) => return Some(written),
                Ok(Err(why)) => why.to_string(),
                Err(why) => why.to_string(),
            };
            let why = format!("webhooks.{}.{setting}: {why}", self.settings.name);
            if attempt == 0 {
                error!("{why}; nothing is sent until it can be written");
            }
            self.cell.note(Some(why));
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = sleep(AGAIN.nth(attempt)) => {}
            }
        }
        None
    }
}

impl Running<'_> {
    async fn run(mut self) {
        let mut sending: Option<Pin<Box<dyn Future<Output = Posted> + Send>>> = None;
        loop {
            self.gather();
            let act = self.hook.next(Instant::now(), unix_millis());
            self.show(&act);
            let until = match act {
                Act::Save if self.save().await => continue,
                Act::Bury if self.bury().await => continue,
                Act::Save | Act::Bury => return,
                Act::Post => {
                    sending = Some(self.post());
                    continue;
                }
                Act::Disabled => {
                    // The batch stays on the disk.
                    drop(self.source);
                    return self.task.stop.cancelled().await;
                }
                Act::Wait(until) => until,
            };
            let answer = async {
                match &mut sending {
                    Some(request) => request.await,
                    None => std::future::pending().await,
                }
            };
            let due = async {
                match until {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.task.stop.cancelled() => break,
                posted = answer => {
                    sending = None;
                    self.answered(&posted);
                }
                () = due => {}
                came = self.source.changed(self.full_since) => self.apply(came),
            }
        }
        self.end(sending).await;
    }

    /// Takes what was read, as far as there is room.
    fn gather(&mut self) {
        let now = Instant::now();
        if let Source::Gap(why, at) = &mut self.source
            && self.hook.is_idle()
            && *at <= now
        {
            let why = std::mem::take(why);
            self.source = Source::Reopening(why, self.open(StreamStart::Live));
        }
        while !self.hook.is_full() {
            match &mut self.source {
                Source::Open(feed) => match feed.item() {
                    Some(Item::Event { kind, data, id }) => {
                        self.refused = 0;
                        self.hook.take(&kind, &String::from_utf8_lossy(&data), id);
                    }
                    Some(Item::Mark(id)) => {
                        self.refused = 0;
                        self.hook.mark(id);
                    }
                    Some(Item::Close(why)) => self.lose(&why),
                    None => break,
                },
                Source::Reopened(gap, feed) => match feed.item() {
                    Some(Item::Close(why)) => {
                        let gap = std::mem::take(gap);
                        self.put_off(&why, |at| Source::Gap(gap, at));
                    }
                    Some(first) => self.announce(first),
                    None => break,
                },
                _ => break,
            }
        }
        self.full_since = self.hook.is_full().then(|| self.full_since.unwrap_or(now));
    }

    /// Tells the receiver about a gap, before the first item of the feed behind it.
    fn announce(&mut self, first: Item) {
        let Source::Reopened(why, feed) = std::mem::replace(&mut self.source, Source::Closed(Instant::now())) else {
            return;
        };
        self.source = Source::Open(feed);
        self.unknown_since = None;
        let (position, event) = match first {
            Item::Mark(id) => (Some(id), None),
            Item::Event { kind, data, id } => (None, Some((kind, data, id))),
            Item::Close(_) => return,
        };
        let last = self.hook.position().map(str::to_owned);
        let first_block = position
            .as_deref()
            .and_then(|id| number_behind(&self.task.services, id));
        let data = json!({
            "position": last,
            "lastBlockHash": last.as_deref().and_then(|id| match resume_point(id)? {
                ResumePoint::Behind(hash) => Some(hash),
                ResumePoint::Before(_) => None,
            }),
            "firstBlock": first_block.map(|number| format!("{number:#x}")),
            "reason": why,
        });
        self.report.gap(&why, GAP);
        let (now, now_ms) = (Instant::now(), unix_millis());
        self.hook.announce(GAP, &data.to_string(), position, now, now_ms);
        if let Some((kind, data, id)) = event {
            self.hook.take(&kind, &String::from_utf8_lossy(&data), id);
        }
    }

    fn apply(&mut self, came: Came) {
        let source = std::mem::replace(&mut self.source, Source::Closed(Instant::now()));
        match (source, came) {
            (Source::Closed(_), Came::Due) => {
                let start = match self.hook.position() {
                    Some(id) => StreamStart::Behind(id.to_owned()),
                    None => StreamStart::AsWritten,
                };
                self.source = Source::Opening(self.open(start));
            }
            (Source::Opening(_), Came::Opened(Ok(feed))) => {
                self.unknown_since = None;
                self.source = Source::Open(feed);
            }
            (Source::Opening(_), Came::Opened(Err(NoFeed::Unknown(why)))) => {
                let now = Instant::now();
                let since = *self.unknown_since.get_or_insert(now);
                if now - since < UNKNOWN {
                    self.put_off(&why, Source::Closed);
                } else {
                    self.source = Source::Gap(why, now);
                }
            }
            (Source::Opening(_), Came::Opened(Err(NoFeed::Gap(why)))) => {
                self.source = Source::Gap(why, Instant::now());
            }
            (Source::Opening(_), Came::Opened(Err(NoFeed::Later(why)))) => self.put_off(&why, Source::Closed),
            (Source::Reopening(gap, _), Came::Opened(Ok(feed))) => self.source = Source::Reopened(gap, feed),
            (Source::Reopening(gap, _), Came::Opened(Err(why))) => {
                let (NoFeed::Gap(why) | NoFeed::Unknown(why) | NoFeed::Later(why)) = why;
                self.put_off(&why, |at| Source::Gap(gap, at));
            }
            (source, Came::Read(Ok(true)) | Came::Due) => self.source = source,
            (Source::Reopened(gap, _), Came::Read(Ok(false))) => self.put_off("closed", |at| Source::Gap(gap, at)),
            (_, Came::Read(Ok(false))) => self.lose("closed"),
            (_, Came::Read(Err(why))) => {
                error!("webhook {}: {why}: it cannot continue", self.task.settings.name);
                // The node would have to send other bytes.
                self.refused = u32::MAX - 1;
                self.lose(&why.to_string());
            }
            // Opened again at the position once there is room.
            (_, Came::Unread) => debug!(
                "webhook {}: the feed is dropped until there is room",
                self.task.settings.name
            ),
            (source, Came::Opened(_)) => self.source = source,
        }
    }

    fn lose(&mut self, why: &str) {
        self.put_off(why, Source::Closed);
    }

    /// Waits before the feed is opened again.
    fn put_off(&mut self, why: &str, source: impl FnOnce(Instant) -> Source) {
        self.report.no_events(why);
        self.source = source(Instant::now() + AGAIN.nth(self.refused));
        self.refused = self.refused.saturating_add(1);
    }

    fn open(&self, start: StreamStart) -> Opening {
        let (services, name) = (self.task.services.clone(), self.task.settings.name.clone());
        Box::pin(Feed::open(services, name, self.stream.clone(), start))
    }

    /// Begins to send the batch.
    fn post(&mut self) -> Pin<Box<dyn Future<Output = Posted> + Send>> {
        self.hook.sending(Instant::now());
        let (receiver, id) = (self.receiver.clone(), self.hook.id());
        let body = self.hook.batch().map(|own| own.body.clone()).unwrap_or_default();
        Box::pin(async move { receiver.post(&id, body, unix_now()).await })
    }

    fn answered(&mut self, posted: &Posted) {
        let batch = ReportedBatch::of(&self.hook);
        let wait = self.hook.answered(&posted.answer, Instant::now());
        if matches!(posted.answer, Answer::Failed { .. }) {
            self.failure.clone_from(&posted.text);
        }
        self.report.answered(&batch, posted, wait);
    }

    /// Shows the state.
    fn show(&self, act: &Act) {
        let is_open = matches!(self.source, Source::Open(_));
        self.report.show(&self.hook, act, is_open);
    }

    /// Writes the state, as often as it takes; `false` if the task is to stop instead.
    async fn save(&mut self) -> bool {
        let (state, path) = (self.hook.state().clone(), self.task.settings.state.clone());
        let state = Arc::new(state);
        let write = || {
            let (state, path) = (state.clone(), path.clone());
            move || state.write(&path)
        };
        let written = self.task.until_written("state", write).await;
        if written.is_some() {
            self.hook.saved(Instant::now());
        }
        written.is_some()
    }

    /// Writes the batch to the file of dead letters; `false` if the task is to stop instead.
    async fn bury(&mut self) -> bool {
        let Some(batch) = self.hook.batch().cloned() else {
            return true;
        };
        let (settings, reported) = (&self.task.settings, ReportedBatch::of(&self.hook));
        let attempts = self.hook.attempts();
        let parts = Arc::new((settings.name.clone(), self.hook.id(), batch, self.failure.clone()));
        let (path, max_bytes) = (settings.dead_letters.clone(), settings.max_dead_letters);
        let write = || {
            let (parts, path) = (parts.clone(), path.clone());
            move || {
                let (name, id, batch, failure) = &*parts;
                dead_letters::append(&path, &DeadLetter::new(name, id, batch, attempts, failure), max_bytes)
            }
        };
        let Some(removed) = self.task.until_written("dead_letters", write).await else {
            return false;
        };
        self.report.buried(&reported, &parts.3, removed);
        self.hook.buried();
        true
    }

    /// Waits a little for the request under way, and writes the last position.
    async fn end(mut self, sending: Option<Pin<Box<dyn Future<Output = Posted> + Send>>>) {
        self.source = Source::Closed(Instant::now());
        if let Some(request) = sending
            && let Ok(posted) = timeout(LAST_ANSWER, request).await
        {
            self.answered(&posted);
        }
        if !self.hook.is_saved() {
            self.save().await;
        }
        self.show(&Act::Wait(None));
    }
}
