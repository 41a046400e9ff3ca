//! Export of spans to a collector by OTLP.
//!
//! ```text
//! telemetry::trace   spans that have ended  >  bounded queue  >  Exporter (batches)  >  encode  >  collector
//! ```
//!
//! A collector that is slow, full or gone delays nobody: spans wait in the queue, and what finds no room there is dropped
//! and counted.

mod collector;
mod encode;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use self::collector::{Collector, ExportError};
use self::encode::Resource;
use crate::backoff::Doubling;
use crate::telemetry::ReasonLabel;
use crate::telemetry::trace::{Sampling, Span, SpansDropped};

/// Most spans of one export.
const BATCH: usize = 512;

/// Longest wait of a span for others of its batch.
const GATHER: Duration = Duration::from_secs(1);

/// Waits before a batch is exported again: doubling, within these bounds.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Most exports of one batch; then its spans are dropped.
const TRIES: u32 = 5;

/// Transport of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Protobuf over HTTP.
    Http,
    /// gRPC.
    Grpc,
}

/// Settings of the export.
#[derive(Clone, Debug)]
pub struct OtlpSettings {
    /// Address of the collector.
    pub endpoint: Url,
    /// Transport.
    pub protocol: Protocol,
    /// Share of traces that are recorded.
    pub sampling: Sampling,
    /// Name of this service.
    pub service: String,
    /// Authorities that a collector's certificate is checked against.
    pub trust: Arc<rustls::ClientConfig>,
}

/// Task that exports spans.
#[derive(Debug)]
pub struct Exporter {
    spans: mpsc::Receiver<Span>,
    collector: Collector,
    resource: Resource,
    dropped: SpansDropped,
    is_failing: bool,
}

impl Exporter {
    /// Creates the task for the spans of a tracer.
    ///
    /// # Errors
    /// The reason why there is no HTTP client.
    pub fn new(
        settings: &OtlpSettings,
        spans: mpsc::Receiver<Span>,
        dropped: SpansDropped,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            spans,
            collector: Collector::new(settings)?,
            resource: Resource {
                service: settings.service.clone(),
                instance: format!("{:032x}", fastrand::u128(..)),
            },
            dropped,
            is_failing: false,
        })
    }

    /// Exports spans until `stop`, then those that wait, each batch once.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let received = tokio::select! {
                received = self.spans.recv_many(&mut batch, BATCH) => received,
                () = stop.cancelled() => 0,
            };
            if received == 0 {
                break;
            }
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH && !stop.is_cancelled() {
                let room = BATCH - batch.len();
                let more = timeout_at(until, self.spans.recv_many(&mut batch, room));
                tokio::select! {
                    more = more => if matches!(more, Ok(0) | Err(_)) { break },
                    () = stop.cancelled() => {}
                }
            }
            self.export(&mut batch, &stop).await;
        }
        self.spans.close();
        while self.spans.recv_many(&mut batch, BATCH).await > 0 {
            self.export(&mut batch, &stop).await;
        }
    }

    async fn export(&mut self, batch: &mut Vec<Span>, stop: &CancellationToken) {
        let request = encode::request(&self.resource, batch);
        let waits = Doubling::new(WAITS.0, WAITS.1);
        for attempt in 0..TRIES {
            match self.collector.export(&request).await {
                Ok(rejected) => {
                    if std::mem::take(&mut self.is_failing) {
                        info!("tracing: the collector takes spans again");
                    }
                    self.count_dropped(rejected);
                    batch.clear();
                    return;
                }
                Err(why) => {
                    if !std::mem::replace(&mut self.is_failing, true) {
                        warn!(
                            "tracing: the collector does not take spans: {why}; check tracing.endpoint and tracing.protocol"
                        );
                    }
                    let is_last = attempt + 1 == TRIES;
                    if is_last || matches!(why, ExportError::Refused(_)) || stop.is_cancelled() {
                        break;
                    }
                }
            }
            tokio::select! {
                () = sleep(waits.nth(attempt)) => {}
                () = stop.cancelled() => {}
            }
        }
        self.count_dropped(batch.len() as u64);
        batch.clear();
    }

    fn count_dropped(&self, spans: u64) {
        let label = ReasonLabel { reason: "refused" };
        self.dropped.get_or_create(&label).inc_by(spans);
    }
}
