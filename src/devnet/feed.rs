//! Connected clients, their subscriptions, and the messages queued for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    block::{Block, Transaction},
    config::Faults,
    filter::LogFilter,
    receipts::ReceiptFilter,
    shape::{self, json},
};

/// Maximum number of unknown methods that [`Stats`] keeps by name: callers may invent any number.
const MAX_UNKNOWN_METHODS: usize = 1_000;

/// A connected client, numbered by order of arrival.
pub(super) type ClientId = u64;

/// A message queued for a client.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A whole message, flushed by itself so that no other message shares its packet.
    Answer(String),
    /// `prefix`, `payload` and [`NOTIFICATION_END`]. All clients share one payload.
    Notification { prefix: Arc<str>, payload: Arc<str> },
}

/// The end of a notification, after its payload.
pub(super) const NOTIFICATION_END: &str = "}}";

/// Kind and arguments of a subscription.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    NewHeads,
    Logs(LogFilter),
    /// `true` for whole transactions.
    Pending(bool),
    Syncing,
    Receipts(ReceiptFilter),
    /// A kind that no other node has: the number of each head together with the subscription's argument, and one number
    /// immediately.
    Numbers {
        of: Value,
        at_first: u64,
    },
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::NewHeads => "newHeads",
            Self::Logs(_) => "logs",
            Self::Pending(_) => "newPendingTransactions",
            Self::Syncing => "syncing",
            Self::Receipts(_) => "transactionReceipts",
            Self::Numbers { .. } => "blockNumbers",
        }
    }
}

/// A subscription, to be activated after its answer is queued.
#[derive(Debug)]
pub(super) struct Subscription {
    id: String,
    prefix: Arc<str>,
    kind: Kind,
}

impl Subscription {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    fn notification(&self, payload: &Arc<str>) -> Outgoing {
        Outgoing::Notification {
            prefix: self.prefix.clone(),
            payload: payload.clone(),
        }
    }
}

/// The receiving side of a client, for its session.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ClientId,
    pub(super) queue: mpsc::Receiver<Outgoing>,
    /// Cancelled when the queue has overflowed or the client was cut: the session must end.
    pub(super) overflow: CancellationToken,
}

/// Counters of a node since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Open WebSocket and IPC connections.
    pub connections: usize,
    /// WebSocket and IPC connections since the start.
    pub connections_opened: u64,
    /// Clients dropped as slow readers.
    pub slow_clients_dropped: u64,
    /// Active subscriptions by kind.
    pub subscriptions: BTreeMap<String, usize>,
    /// Calls by method, over all transports; unknown methods under `unknown`.
    pub calls: BTreeMap<String, u64>,
    /// Names of the unknown methods, the first 1,000 different ones.
    pub unknown_methods: BTreeSet<String>,
    /// `newHeads` notifications queued, all clients together.
    pub heads_sent: u64,
    /// `logs` notifications queued, all clients together, removed ones included.
    pub logs_sent: u64,
    /// `newPendingTransactions` notifications queued, all clients together.
    pub pending_sent: u64,
    /// The number of the newest block.
    pub block_number: u64,
    /// Number of pending transactions.
    pub pending_transactions: usize,
}

/// The clients and their subscriptions.
///
/// All methods are synchronous and are called under the node's lock, so messages are queued in the order of events.
#[derive(Debug)]
pub(super) struct Feed {
    clients: BTreeMap<ClientId, Client>,
    queue_messages: usize,
    ids: StdRng,
    /// Running counts; [`Feed::stats`] adds those that are computed on demand.
    counts: Stats,
}

#[derive(Debug)]
struct Client {
    queue: mpsc::Sender<Outgoing>,
    overflow: CancellationToken,
    subscriptions: Vec<Subscription>,
}

impl Feed {
    pub(super) fn new(seed: u64, queue_messages: usize) -> Self {
        Self {
            clients: BTreeMap::new(),
            queue_messages: queue_messages.max(1),
            // Separate from the chain's randomness, so that clients do not change the chain.
            ids: StdRng::seed_from_u64(!seed),
            counts: Stats::default(),
        }
    }

    pub(super) fn connect(&mut self) -> Connection {
        let (sender, queue) = mpsc::channel(self.queue_messages);
        let overflow = CancellationToken::new();
        self.counts.connections_opened += 1;
        let id = self.counts.connections_opened;
        self.clients.insert(
            id,
            Client {
                queue: sender,
                overflow: overflow.clone(),
                subscriptions: Vec::new(),
            },
        );
        Connection { id, queue, overflow }
    }

    pub(super) fn disconnect(&mut self, client: ClientId) {
        self.clients.remove(&client);
    }

    /// Cuts a client's connection; its pending answers are lost.
    pub(super) fn cut(&mut self, client: ClientId) {
        if let Some(gone) = self.clients.remove(&client) {
            gone.overflow.cancel();
        }
    }

    pub(super) fn count_call(&mut self, method: &str) {
        match self.counts.calls.get_mut(method) {
            Some(count) => *count += 1,
            None => drop(self.counts.calls.insert(method.to_owned(), 1)),
        }
    }

    pub(super) fn count_unknown_call(&mut self, method: &str) {
        self.count_call("unknown");
        if self.counts.unknown_methods.len() < MAX_UNKNOWN_METHODS {
            self.counts.unknown_methods.insert(method.to_owned());
        }
    }

    /// Queues an answer; does nothing if the client is gone.
    pub(super) fn answer(&mut self, client: ClientId, answer: String) {
        self.send(client, Outgoing::Answer(answer));
    }

    /// Creates a subscription with a new id, not yet active.
    pub(super) fn prepare(&mut self, namespace: &str, kind: Kind) -> Subscription {
        // At most as long as geth's ids and without leading zeros, for clients that read ids as numbers.
        let id = format!("{:#x}", self.ids.random_range(1u128 << 124..=u128::MAX));
        let prefix = format!(
            r#"{{"jsonrpc":"2.0","method":"{namespace}_subscription","params":{{"subscription":"{id}","result":"#
        );
        Subscription {
            id,
            prefix: prefix.into(),
            kind,
        }
    }

    /// Starts a subscription, which gets every event from here on.
    pub(super) fn activate(&mut self, client: ClientId, subscription: Subscription) {
        let first = match &subscription.kind {
            // A node that is not syncing reports this immediately, and never again.
            Kind::Syncing => Some("false".into()),
            Kind::Numbers { of, at_first } => Some(number(*at_first, of)),
            _ => None,
        };
        let first = first.map(|payload| subscription.notification(&payload));
        let Some(entry) = self.clients.get_mut(&client) else {
            return;
        };
        entry.subscriptions.push(subscription);
        if let Some(first) = first {
            self.send(client, first);
        }
    }

    /// Ends a subscription of this client; returns `false` if the client has none with this id.
    pub(super) fn unsubscribe(&mut self, client: ClientId, id: &str) -> bool {
        let Some(client) = self.clients.get_mut(&client) else {
            return false;
        };
        let before = client.subscriptions.len();
        client.subscriptions.retain(|subscription| subscription.id != id);
        client.subscriptions.len() < before
    }

    pub(super) fn publish_head(&mut self, block: &Block, faults: &Faults) {
        let mut payload = None;
        self.counts.heads_sent += self.publish(|kind| {
            matches!(kind, Kind::NewHeads).then(|| {
                payload
                    .get_or_insert_with(|| shape::announcement(block, faults))
                    .clone()
            })
        });
        self.publish(|kind| match kind {
            Kind::Numbers { of, .. } => Some(number(block.number(), of)),
            _ => None,
        });
    }

    pub(super) fn publish_logs(&mut self, block: &Block, removed: bool) {
        for placed in block.placed_logs() {
            let mut payload: Option<Arc<str>> = None;
            self.counts.logs_sent += self.publish(|kind| match kind {
                Kind::Logs(filter) if filter.covers(block.number()) && filter.matches(placed.log) => {
                    let write = || json(&shape::log(block, placed, removed)).into();
                    Some(payload.get_or_insert_with(write).clone())
                }
                _ => None,
            });
        }
    }

    pub(super) fn publish_receipts(&mut self, block: &Block) {
        self.publish(|kind| match kind {
            Kind::Receipts(filter) => filter.of(block).map(Into::into),
            _ => None,
        });
    }

    pub(super) fn publish_pending(&mut self, transaction: &Transaction) {
        let (mut hash, mut full): (Option<Arc<str>>, Option<Arc<str>>) = (None, None);
        self.counts.pending_sent += self.publish(|kind| match kind {
            Kind::Pending(false) => Some(hash.get_or_insert_with(|| json(&transaction.hash()).into()).clone()),
            Kind::Pending(true) => {
                let write = || json(&shape::pending_transaction(transaction)).into();
                Some(full.get_or_insert_with(write).clone())
            }
            _ => None,
        });
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats {
            connections: self.clients.len(),
            ..self.counts.clone()
        };
        for subscription in self.clients.values().flat_map(|client| &client.subscriptions) {
            *stats
                .subscriptions
                .entry(subscription.kind.name().to_owned())
                .or_default() += 1;
        }
        stats
    }

    /// Queues a payload for each subscription for which `wants` returns one. Returns the number of queued payloads.
    fn publish(&mut self, mut wants: impl FnMut(&Kind) -> Option<Arc<str>>) -> u64 {
        let (mut sent, dropped) = (0, &mut self.counts.slow_clients_dropped);
        self.clients.retain(|_, client| {
            for subscription in &client.subscriptions {
                let Some(payload) = wants(&subscription.kind) else {
                    continue;
                };
                if !client.queue(subscription.notification(&payload)) {
                    *dropped += 1;
                    return false;
                }
                sent += 1;
            }
            true
        });
        sent
    }

    fn send(&mut self, client: ClientId, outgoing: Outgoing) {
        if self.clients.get(&client).is_some_and(|entry| !entry.queue(outgoing)) {
            self.counts.slow_clients_dropped += 1;
            self.clients.remove(&client);
        }
    }
}

/// Formats a number with an unusual space: a proxy must pass on exactly these bytes.
fn number(number: u64, of: &Value) -> Arc<str> {
    format!(r#"{{"number": "{number:#x}","of":{of}}}"#).into()
}

impl Client {
    /// Returns `false` if the queue is full, and signals the session to end.
    fn queue(&self, outgoing: Outgoing) -> bool {
        match self.queue.try_send(outgoing) {
            Ok(()) => true,
            // The session has ended and will disconnect the client.
            Err(mpsc::error::TrySendError::Closed(_)) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.overflow.cancel();
                false
            }
        }
    }
}
