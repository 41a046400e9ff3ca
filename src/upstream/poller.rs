//! One node over HTTP: its head is asked for again and again, calls are posted.
//!
//! It says the same things as a connection does, so nothing downstream can tell the two apart.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};
use url::Url;

use super::message::{self, NodeMessage};
use super::pool::{Call, CallError, Shared};
use super::{Gossip, PendingForm, Sighting};
use crate::jsonrpc::Outcome;

/// Full transactions fetched for the hashes of one poll; the rest is dropped and counted (E8).
const MAX_FULL_PER_POLL: usize = 256;

/// The actor.
#[derive(Debug)]
pub(super) struct Poller {
    shared: Arc<Shared>,
    node: Node,
    calls: Option<mpsc::Receiver<Call>>,
    head: Option<Bytes>,
    filter: Option<String>,
    ready: bool,
}

/// The node as HTTP shows it.
#[derive(Clone, Debug)]
struct Node {
    client: reqwest::Client,
    url: Url,
    max_message_bytes: usize,
}

impl Node {
    async fn call(&self, method: &str, params: &str) -> Result<Outcome, String> {
        let body = message::request(1, method, params);
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .body(body);
        // The address may hold a key: it stays out of the error.
        let mut response = request.send().await.map_err(|error| chain(&error.without_url()))?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error.without_url()))? {
            if answer.len() + chunk.len() > self.max_message_bytes {
                return Err(format!("an answer of more than {} bytes", self.max_message_bytes));
            }
            answer.extend_from_slice(&chunk);
        }
        match NodeMessage::parse(&answer.into()).pop() {
            Some(NodeMessage::Answer(_, outcome)) => Ok(outcome),
            _ => Err(format!("HTTP {status} without a JSON-RPC answer")),
        }
    }

    async fn result(&self, method: &str, params: &str) -> Result<Bytes, String> {
        match self.call(method, params).await? {
            Outcome::Result(json) => Ok(json),
            Outcome::Error(error) => Err(String::from_utf8_lossy(&error).into_owned()),
        }
    }
}

/// Posts calls until the pool is gone.
async fn forward(node: Node, mut calls: mpsc::Receiver<Call>, max_in_flight: usize) {
    let room = Arc::new(Semaphore::new(max_in_flight));
    while let Some(call) = calls.recv().await {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let node = node.clone();
        tokio::spawn(async move {
            let outcome = node.call(&call.method, &call.params).await.map_err(|_| CallError::Lost);
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
    pub(super) fn new(shared: Arc<Shared>, url: Url, calls: mpsc::Receiver<Call>) -> Self {
        let client = reqwest::Client::builder()
            .connect_timeout(shared.settings.connect_timeout)
            .timeout(shared.settings.request_timeout)
            .build()
            .expect("nothing is set that could fail once the TLS provider is installed");
        let node = Node {
            client,
            url,
            max_message_bytes: shared.settings.max_message_bytes,
        };
        Self {
            shared,
            node,
            calls: Some(calls),
            head: None,
            filter: None,
            ready: false,
        }
    }

    /// Runs until the pool is gone.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(self.shared.settings.poll_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let Some(calls) = self.calls.take() else { return };
        // Beside the polling: a slow poll must not hold back a call.
        let mut forwarding = tokio::spawn(forward(self.node.clone(), calls, self.shared.settings.max_in_flight));
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let polled = tokio::time::timeout(self.shared.settings.silence_timeout, self.poll()).await;
                    if let Err(why) = polled.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                        self.failed(why).await;
                    }
                }
                _ = &mut forwarding => return,
            }
        }
    }

    async fn failed(&mut self, why: String) {
        if self.ready || self.shared.status.lock().last_error.as_ref() != Some(&why) {
            warn!(
                "upstream {}: {why}; asking again every {:?}",
                self.shared.endpoint, self.shared.settings.poll_interval
            );
        }
        self.shared.down(why);
        self.filter = None;
        self.head = None;
        if std::mem::take(&mut self.ready) {
            self.shared.sighting(Sighting::Lost).await;
        }
    }

    async fn poll(&mut self) -> Result<(), String> {
        if !self.ready {
            let chain_id = self.node.result("eth_chainId", "").await?;
            self.shared.check_chain(&String::from_utf8_lossy(&chain_id))?;
        }
        let head = self.node.result("eth_getBlockByNumber", r#"["latest",false]"#).await?;
        if !self.ready {
            self.ready = true;
            self.shared.up();
            info!("upstream {}: connected", self.shared.endpoint);
        }
        if self.head.as_ref() != Some(&head) {
            self.head = Some(head.clone());
            self.shared.sighting(Sighting::Latest(head)).await;
        }
        let wanted = self.shared.wants();
        if wanted.syncing {
            let syncing = self.node.result("eth_syncing", "").await?;
            self.shared.gossip(Gossip::Syncing(syncing));
        }
        self.poll_pending(wanted.pending_hashes, wanted.pending_full).await
    }

    async fn poll_pending(&mut self, hashes: bool, full: bool) -> Result<(), String> {
        if !hashes && !full {
            if let Some(filter) = self.filter.take() {
                let _ = self.node.call("eth_uninstallFilter", &format!("[{filter}]")).await;
            }
            return Ok(());
        }
        let filter = match &self.filter {
            Some(filter) => filter.clone(),
            None => {
                let Outcome::Result(id) = self.node.call("eth_newPendingTransactionFilter", "").await? else {
                    // The node has no such filter: heads and logs go on without.
                    return Ok(());
                };
                self.filter.insert(String::from_utf8_lossy(&id).into_owned()).clone()
            }
        };
        let changes = match self.node.call("eth_getFilterChanges", &format!("[{filter}]")).await? {
            Outcome::Result(changes) => changes,
            Outcome::Error(_) => {
                // Nodes forget filters; the next poll makes a new one.
                self.filter = None;
                return Ok(());
            }
        };
        let seen = Instant::now();
        let found: Vec<&RawValue> = serde_json::from_slice(&changes).unwrap_or_default();
        for hash in &found {
            if hashes {
                let json = changes.slice_ref(hash.get().as_bytes());
                self.shared.gossip(Gossip::Pending {
                    form: PendingForm::Hash,
                    json,
                    seen,
                });
            }
        }
        if full {
            for hash in found.iter().take(MAX_FULL_PER_POLL) {
                let transaction = self
                    .node
                    .result("eth_getTransactionByHash", &format!("[{}]", hash.get()))
                    .await?;
                if &transaction[..] != b"null" {
                    self.shared.gossip(Gossip::Pending {
                        form: PendingForm::Full,
                        json: transaction,
                        seen,
                    });
                }
            }
        }
        Ok(())
    }
}
