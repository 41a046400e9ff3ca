//! The node: one lock around all state that a command or a request can change.

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    block::{Block, Transaction},
    chain::{Chain, ChainError, Reorg},
    config::{Config, Faults},
    feed::{ClientId, Connection, Feed, Stats, Subscription},
    polling::Polling,
    rpc::{self, RpcError},
    stall::Stall,
};

/// Maximum number of calls in a batch; larger batches are refused, as geth does.
const MAX_BATCH: usize = 1_000;

/// A simulated node.
#[derive(Debug)]
pub(super) struct SimulatedNode {
    state: Mutex<State>,
    pub(super) stall: Stall,
    /// Counter of the commands to cut all connections.
    pub(super) cuts: watch::Sender<u64>,
    pub(super) timing: watch::Sender<Timing>,
    pub(super) shutdown: CancellationToken,
}

/// Rates of automatic blocks and transactions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Timing {
    pub(super) block_time: Option<Duration>,
    pub(super) pending_rate: f64,
}

/// The state behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) chain: Chain,
    pub(super) feed: Feed,
    pub(super) polling: Polling,
    pub(super) faults: Faults,
    pub(super) chain_id: u64,
    pub(super) client_version: String,
    /// A head delayed by a fault until the next head is announced.
    late_head: Option<Arc<Block>>,
    /// See [`Self::long_code`].
    long_code: String,
}

/// The origin of a call: subscriptions need a connection that can be written to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller {
    Http,
    Client(ClientId),
}

impl SimulatedNode {
    pub(super) fn new(config: &Config) -> Self {
        let state = State {
            chain: Chain::new(config),
            feed: Feed::new(config.seed, config.queue_messages),
            polling: Polling::default(),
            faults: config.faults.clone(),
            chain_id: config.chain_id,
            client_version: config.client_version.clone(),
            late_head: None,
            long_code: String::new(),
        };
        let timing = Timing {
            block_time: config.block_time,
            pending_rate: config.pending_rate,
        };
        Self {
            state: Mutex::new(state),
            stall: Stall::default(),
            cuts: watch::Sender::new(0),
            timing: watch::Sender::new(timing),
            shutdown: CancellationToken::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn connect(&self) -> Connection {
        self.lock().feed.connect()
    }

    /// Cuts all connections.
    pub(super) fn disconnect(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Executes a client's message and queues the answer under one lock, so that no answer is older than the
    /// notification before it.
    pub(super) fn serve_client(&self, client: ClientId, message: &[u8]) {
        let mut state = self.lock();
        if state.faults.closes_over(message) {
            let error = RpcError::new(-32700, "parse error");
            state.feed.answer(client, error_answer("null", &error));
            state.feed.cut(client);
            return;
        }
        let mut subscribed = Vec::new();
        if let Some(answer) = self.answer(&mut state, Caller::Client(client), message, &mut subscribed) {
            state.feed.answer(client, answer);
        }
        for subscription in subscribed {
            state.feed.activate(client, subscription);
        }
    }

    /// Executes an HTTP request's message; returns `None` if no answer is due (notifications only).
    pub(super) fn serve_http(&self, message: &[u8]) -> Option<String> {
        self.answer(&mut self.lock(), Caller::Http, message, &mut Vec::new())
    }

    fn answer(
        &self,
        state: &mut State,
        caller: Caller,
        message: &[u8],
        subscribed: &mut Vec<Subscription>,
    ) -> Option<String> {
        match Message::parse(message) {
            Err(error) => Some(error_answer("null", &error)),
            Ok(Message::Single(request)) => self.execute(state, caller, request, subscribed),
            Ok(Message::Batch(requests)) if requests.is_empty() => {
                Some(error_answer("null", &RpcError::new(-32600, "empty batch")))
            }
            Ok(Message::Batch(requests)) if requests.len() > MAX_BATCH => Some(format!(
                "[{}]",
                error_answer("null", &RpcError::new(-32600, "batch too large"))
            )),
            Ok(Message::Batch(requests)) => {
                let mut answers = Vec::new();
                for request in requests {
                    answers.extend(self.execute(state, caller, request, subscribed));
                }
                (!answers.is_empty()).then(|| format!("[{}]", answers.join(",")))
            }
        }
    }

    fn execute(
        &self,
        state: &mut State,
        caller: Caller,
        request: &RawValue,
        subscribed: &mut Vec<Subscription>,
    ) -> Option<String> {
        let request = match serde_json::from_str::<Request<'_>>(request.get()) {
            Ok(request) if request.jsonrpc == "2.0" => request,
            // Any other error keeps the request's id, by which the caller finds the answer.
            _ => {
                let id = serde_json::from_str::<Identified<'_>>(request.get())
                    .ok()
                    .and_then(|request| request.id);
                let id = id.map_or("null", RawValue::get);
                return Some(error_answer(id, &RpcError::new(-32600, "invalid request")));
            }
        };
        let result = rpc::call(self, state, caller, &request.method, request.params, subscribed);
        match &result {
            Err(error) if error.code == -32601 => state.feed.count_unknown_call(&request.method),
            _ => state.feed.count_call(&request.method),
        }
        let id = request.id?.get();
        Some(match result {
            Ok(mut answer) => {
                // In place: a copy of a long result would take longer than all else here.
                answer.insert_str(0, &format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#));
                answer.push('}');
                answer
            }
            Err(error) => error_answer(id, &error),
        })
    }
}

impl State {
    /// Returns the answer to `eth_getCode` under [`Faults::code_bytes`], built once.
    pub(super) fn long_code(&mut self) -> &str {
        let bytes = self.faults.code_bytes;
        if self.long_code.len() != 2 * bytes + 4 {
            self.long_code = format!("\"0x{}\"", "00".repeat(bytes));
        }
        &self.long_code
    }

    pub(super) fn mine(&mut self) -> Arc<Block> {
        let block = self.chain.mine();
        self.announce(&block);
        block
    }

    pub(super) fn reorg(&mut self, depth: u64, new_len: u64) -> Result<Reorg, ChainError> {
        let reorg = self.chain.reorg(depth, new_len)?;
        self.announce_reorg(&reorg);
        Ok(reorg)
    }

    pub(super) fn rewind(&mut self, depth: u64) -> Result<Reorg, ChainError> {
        let reorg = self.chain.rewind(depth)?;
        self.announce_reorg(&reorg);
        Ok(reorg)
    }

    pub(super) fn switch_back(&mut self) -> Result<Reorg, ChainError> {
        let reorg = self.chain.switch_back()?;
        self.announce_reorg(&reorg);
        Ok(reorg)
    }

    pub(super) fn import(&mut self, branch: &[Arc<Block>]) -> Result<Reorg, ChainError> {
        let reorg = self.chain.import(branch)?;
        self.announce_reorg(&reorg);
        Ok(reorg)
    }

    pub(super) fn add_pending(&mut self) -> Option<Arc<Transaction>> {
        let transaction = self.chain.next_pending()?;
        self.announce_pending(&transaction);
        Some(transaction)
    }

    pub(super) fn submit(&mut self, transaction: Transaction) -> Result<Arc<Transaction>, ChainError> {
        let transaction = self.chain.submit(transaction)?;
        self.announce_pending(&transaction);
        Ok(transaction)
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            block_number: self.chain.head().number(),
            pending_transactions: self.chain.pending_len(),
            ..self.feed.stats()
        }
    }

    fn announce(&mut self, block: &Arc<Block>) {
        self.announce_head(block);
        self.announce_logs(block, false);
    }

    /// Announces removed logs first, oldest block first, then the new blocks.
    fn announce_reorg(&mut self, reorg: &Reorg) {
        if self.faults.send_removed_logs {
            for block in reorg.dropped.iter().rev() {
                self.announce_logs(block, true);
            }
        }
        match reorg.adopted.split_last() {
            // As geth does: a rewind is announced by the ancestor's head, once more.
            None if !reorg.dropped.is_empty() => self.announce_head(&reorg.ancestor),
            None => {}
            Some((tip, others)) if self.faults.announce_tip_only_after_reorg => {
                for block in others {
                    self.announce_logs(block, false);
                }
                self.announce(tip);
            }
            Some(_) => {
                for block in &reorg.adopted {
                    self.announce(block);
                }
            }
        }
    }

    fn announce_head(&mut self, block: &Arc<Block>) {
        self.polling.collect_block(block);
        if self.faults.skip_heads > 0 {
            self.faults.skip_heads -= 1;
            return;
        }
        if self.faults.late_heads > 0 && self.late_head.is_none() {
            self.faults.late_heads -= 1;
            self.late_head = Some(block.clone());
            return;
        }
        for head in [Some(block.clone()), self.late_head.take()].into_iter().flatten() {
            self.feed.publish_head(&head, &self.faults);
            if self.faults.duplicate_heads {
                self.feed.publish_head(&head, &self.faults);
            }
        }
    }

    fn announce_logs(&mut self, block: &Block, removed: bool) {
        self.polling.collect_logs(block, removed);
        self.feed.publish_logs(block, removed);
        if !removed {
            self.feed.publish_receipts(block);
        }
    }

    fn announce_pending(&mut self, transaction: &Transaction) {
        self.polling.collect_pending(transaction);
        self.feed.publish_pending(transaction);
    }
}

/// Checks if a message has control methods only, which are answered during a stall too, so that it can be ended.
pub(super) fn is_control(message: &[u8]) -> bool {
    let control = |request: &&RawValue| {
        serde_json::from_str::<Request<'_>>(request.get()).is_ok_and(|request| request.method.starts_with("devnet_"))
    };
    match Message::parse(message) {
        Ok(Message::Single(request)) => control(&request),
        Ok(Message::Batch(requests)) => requests.iter().all(control),
        Err(_) => false,
    }
}

enum Message<'a> {
    Single(&'a RawValue),
    Batch(Vec<&'a RawValue>),
}

impl<'a> Message<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, RpcError> {
        let parse_error = |error: serde_json::Error| RpcError::new(-32700, error.to_string());
        let raw: &RawValue = serde_json::from_slice(message).map_err(parse_error)?;
        if raw.get().starts_with('[') {
            serde_json::from_str(raw.get()).map(Self::Batch).map_err(parse_error)
        } else {
            Ok(Self::Single(raw))
        }
    }
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, default)]
    jsonrpc: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    method: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    /// Echoed as written. Absent in a notification, which is executed and not answered.
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
}

/// The id of an invalid request.
#[derive(Deserialize)]
struct Identified<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

/// Distinguishes `"id": null` from an absent id.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

fn error_answer(id: &str, error: &RpcError) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{}}}"#, super::shape::json(error))
}
