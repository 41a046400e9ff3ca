//! Webhooks: events are posted to receivers, in order and at least once.
//!
//! ```text
//! feed > event_text     a session within the process: the stream of GET /events, resumed by its ids
//! hook                  batches, retries and the position (pure)
//! state_file            position and batch, on the disk before a byte is sent
//! receiver > target     one signed request to an address that was checked
//!          > signature
//! dead_letters          batches that were given up
//! actor > source        the task: waits for all of them
//!       > report        log, metrics, status
//! ```
//!
//! A webhook is one more client: its session has a queue with the bounds of every other, and waits for nobody but its own
//! receiver.

mod actor;
mod dead_letters;
mod event_text;
mod feed;
mod hook;
mod receiver;
mod report;
mod settings;
mod signature;
mod source;
mod state_file;
mod status;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::actor::HookTask;
use self::hook::Answer;
use self::receiver::Receiver;
use self::status::HookCell;
use crate::door::unix_now;
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, Request, error};
use crate::panics;
use crate::server::{EventsRequest, StreamStart};
use crate::session::Services;
use crate::subscription::{ResumePoint, Topic, resume_point};
use crate::telemetry::{WebhookLabel, unix_millis};

pub use hook::HookLimits;
pub use settings::HookSettings;
pub use signature::{SecretFileError, Secrets};
pub use state_file::{HookBatch, HookState, StateFileError};
pub use status::{HookPhase, HookStatus};
pub use target::{PrivateAddress, check_host, is_public};

/// Wait before a webhook whose task ended by a panic begins again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Reads the query that selects a stream; returns the name of its kind.
///
/// # Errors
/// If the query is not valid, has a position, or is of a kind without positions.
pub fn check_stream(query: &str) -> Result<&'static str, ErrorObjectOwned> {
    let refused = |why: &str| error(INVALID_PARAMS, why.to_owned());
    let request = EventsRequest::of_query(query, &StreamStart::AsWritten)?;
    if request.id.is_some() || request.params.get().contains("\"after\"") {
        return Err(refused("after has no effect: the position is in the file of state"));
    }
    let topic = Topic::parse(
        "eth",
        &Request {
            id: None,
            method: "eth_subscribe".into(),
            params: Some(&request.params),
        },
    )?;
    let kind = topic.kind().event_name();
    match topic.into_resumable() {
        Some(_) => Ok(kind),
        None => Err(refused(
            "events of this kind have no positions: use heads, logs, blockLogs or receipts",
        )),
    }
}

/// All webhooks that run.
#[derive(Debug)]
pub struct Webhooks {
    services: Arc<Services>,
    /// `None` once the process ends: a reload while it drains begins none, for they are the next process's.
    running: Mutex<Option<BTreeMap<Arc<str>, RunningHook>>>,
}

#[derive(Debug)]
struct RunningHook {
    settings: HookSettings,
    cell: Arc<HookCell>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Changes of a list of webhooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HooksReshaped {
    /// Webhooks that began, those with other settings included.
    pub begun: usize,
    /// Webhooks that ended, those with other settings included.
    pub ended: usize,
}

impl Webhooks {
    /// Runs these webhooks.
    #[must_use]
    pub fn start(services: Arc<Services>, hooks: Vec<HookSettings>) -> Arc<Self> {
        let webhooks = Arc::new(Self {
            services,
            running: Mutex::new(Some(BTreeMap::new())),
        });
        webhooks.reshape(hooks);
        webhooks
    }

    /// Runs these webhooks instead of those that run. One with the same settings goes on; one with other settings begins
    /// once the former has written its position.
    pub fn reshape(&self, hooks: Vec<HookSettings>) -> HooksReshaped {
        let mut running = self.running.lock();
        let mut changes = HooksReshaped::default();
        let Some(running) = &mut *running else { return changes };
        let mut stopped = Vec::new();
        let stays = |own: &RunningHook| {
            let is_disabled = own.cell.read(0).phase == HookPhase::Disabled;
            !is_disabled && hooks.contains(&own.settings)
        };
        running.retain(|name, own| {
            if stays(own) {
                return true;
            }
            own.stop.cancel();
            changes.ended += 1;
            stopped.push(name.clone());
            false
        });
        for settings in hooks {
            if !running.contains_key(&settings.name) {
                changes.begun += 1;
                stopped.retain(|name| *name != settings.name);
                running.insert(settings.name.clone(), self.begin(settings));
            }
        }
        for name in stopped {
            self.services.metrics.webhooks.forget(&name);
        }
        changes
    }

    fn begin(&self, settings: HookSettings) -> RunningHook {
        let (cell, stop) = (Arc::<HookCell>::default(), CancellationToken::new());
        cell.change(None, |status| {
            status.name = settings.name.to_string();
            settings.kind.clone_into(&mut status.kind);
        });
        let task = HookTask {
            settings: settings.clone(),
            services: self.services.clone(),
            cell: cell.clone(),
            stop: stop.clone(),
        };
        let metrics = self.services.metrics.clone();
        let task = tokio::spawn(async move {
            // After a panic all is as after the end of the process.
            while panics::caught("webhook", &metrics, task.run()).await.is_none() && !task.stop.is_cancelled() {
                sleep(AFTER_PANIC).await;
            }
        });
        RunningHook {
            settings,
            cell,
            stop,
            task,
        }
    }

    /// Returns the state of each webhook, by name.
    #[must_use]
    pub fn status(&self) -> Vec<HookStatus> {
        let head = self
            .services
            .registry
            .published()
            .last_adopted()
            .map(|(block, _)| block.number);
        let now = unix_millis();
        let running = self.running.lock();
        let status = running.iter().flatten().map(|(_, own)| own).map(|own| {
            let mut status = own.cell.read(now);
            let first = status
                .position
                .as_deref()
                .and_then(|id| number_behind(&self.services, id));
            status.behind = first.zip(head).map(|(first, head)| (head + 1).saturating_sub(first));
            status
        });
        status.collect()
    }

    /// Sets the gauges.
    pub fn refresh_metrics(&self) {
        for status in self.status() {
            let label = WebhookLabel { webhook: status.name };
            let lag = &self.services.metrics.webhooks.lag;
            lag.get_or_create(&label).set(status.lag_ms as f64 / 1000.0);
        }
    }

    /// Ends all webhooks: requests under way have a moment, and the last positions are written.
    pub async fn stop(&self) {
        let running = self.running.lock().take().unwrap_or_default();
        for own in running.values() {
            own.stop.cancel();
        }
        for (name, own) in running {
            if own.task.await.is_err() {
                info!("webhook {name}: ended by a panic");
            }
        }
    }
}

/// Returns the number of the first block behind a position; `None` if memory does not know it.
fn number_behind(services: &Services, id: &str) -> Option<u64> {
    match resume_point(id)? {
        ResumePoint::Before(number) => Some(number),
        ResumePoint::Behind(hash) => {
            let published = services.registry.published();
            let number = published.with_history(|history| history.find(hash).map(|own| own.header.block.number));
            Some(number? + 1)
        }
    }
}

/// Sends one signed test event; returns a line about its outcome.
///
/// # Errors
/// The same line, if the receiver did not accept it.
pub async fn send_test(settings: &HookSettings) -> Result<String, String> {
    let name = &settings.name;
    let receiver =
        Receiver::new(settings).map_err(|why| format!("webhook {name}: cannot create the HTTP client: {why}"))?;
    let id = format!("msg_test_{:016x}", rand::random::<u64>());
    let data = json!({ "webhook": **name }).to_string();
    let body = hook::body("headwater.test", 0, unix_millis(), &data);
    let begun = Instant::now();
    let posted = receiver.post(&id, body, unix_now()).await;
    let line = format!(
        "webhook {name}: {} in {} ms ({id})",
        posted.text,
        begun.elapsed().as_millis()
    );
    match posted.answer {
        Answer::Accepted => Ok(line),
        Answer::Gone | Answer::Failed { .. } => Err(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_one_with_positions_and_none_of_its_own() {
        for (query, expect) in [
            ("kind=heads", Ok("heads")),
            (
                "kind=logs&address=0x00000000000000000000000000000000000000aa&finality=safe",
                Ok("logs"),
            ),
            ("kind=blockLogs&include=header&fromBlock=0x10", Ok("blockLogs")),
            ("kind=receipts&confirmations=2", Ok("receipts")),
            ("kind=pending", Err("have no positions")),
            ("kind=heads&after=b1", Err("after")),
            ("kind=logs&address=0x1", Err("address")),
            ("kind=blocks", Err("kind \"blocks\" is not known")),
            ("", Err("kind is missing")),
        ] {
            match (check_stream(query), expect) {
                (Ok(kind), Ok(expected)) => assert_eq!(kind, expected, "{query}"),
                (Err(why), Err(part)) => assert!(why.message().contains(part), "{query}: {why}"),
                (found, _) => panic!("{query}: {found:?}"),
            }
        }
    }
}
