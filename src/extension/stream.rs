//! Subscriptions of one connection to an extension: jsonrpsee's sinks, emptied into the client's queue.
//!
//! A callback that sends does not wait for the client, only for the answer once 64 messages are ahead of it: messages
//! queue like other events, behind the answer, and a client that is too slow is closed with 1013.

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use jsonrpsee::core::server::{MethodCallback, MethodSink, SubscriptionState};
use jsonrpsee::core::traits::IdProvider;
use jsonrpsee::types::{Params, SubscriptionId as WireId};
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Call, Connection, Extension, ID, TASK, internal_error};
use crate::clock::Clock;
use crate::delivery::{Batch, ClientWriter, Event, Kind, Recipient, SubscriptionId};
use crate::door::Reserved;
use crate::jsonrpc::Outcome;
use crate::panics;
use crate::telemetry::{KindLabel, Metrics};

/// Messages of one subscription that wait to be queued. They wait for the answer to the subscription only: until then a
/// callback that sends more of them waits.
const SINK: usize = 64;

/// Subscriptions of one connection.
#[derive(Debug)]
pub struct Streams {
    connection: Arc<Connection>,
    all: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    id: SubscriptionId,
    /// `true` once the subscription has ended: no message is queued after the client's queue has forgotten it.
    ended: Arc<Mutex<bool>>,
    task: AbortOnDropHandle<()>,
}

/// Supplies the id of one subscription.
#[derive(Debug)]
struct Given(SubscriptionId);

impl IdProvider for Given {
    fn next_id(&self) -> WireId<'static> {
        self.0.to_string().into()
    }
}

impl Streams {
    /// Creates the table of a new connection.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self {
            connection: Arc::new(connection),
            all: Vec::new(),
        }
    }

    /// Returns the connection.
    #[must_use]
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Returns the number of subscriptions that have not ended.
    pub fn count(&mut self) -> usize {
        self.all.retain(|stream| !stream.task.is_finished());
        self.all.len()
    }

    /// Begins a subscription. Returns its recipient, which the answer releases, and the future outcome of the call.
    #[must_use]
    pub fn subscribe(
        &mut self,
        extension: &Extension,
        call: &Call<'_>,
        writer: &Arc<ClientWriter>,
        clock: Clock,
        reserved: Reserved,
    ) -> (Arc<Recipient>, BoxFuture<'static, Outcome>) {
        let id = SubscriptionId::random();
        let recipient = Recipient::whole(id);
        let (sink, messages) = mpsc::channel(SINK);
        let answer = extension.begin(call, sink, id);
        let ended = Arc::default();
        let pump = Pump {
            ended: Arc::clone(&ended),
            recipient: recipient.clone(),
            writer: Arc::downgrade(writer),
            clock,
            _open: Open::new(&extension.metrics, writer),
            _reserved: reserved.listed(writer.id(), Kind::Extension, &recipient),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(pump.run(messages)));
        self.all.push(Stream { id, ended, task });
        let answered = recipient.clone();
        let answer = answer.map(|answer| call.connection.until_left(extension.awaited(answer)));
        let outcome = async move {
            let outcome = match answer {
                Some(answer) => answer.await,
                None => internal_error(),
            };
            if matches!(outcome, Outcome::Error(_)) {
                answered.refuse();
            }
            outcome
        };
        (recipient, Box::pin(outcome))
    }

    /// Ends a subscription of this connection: none of its messages is written after the answer. `false` if there is no
    /// such subscription.
    pub fn end(&mut self, id: SubscriptionId, writer: &ClientWriter) -> bool {
        let Some(at) = self.all.iter().position(|stream| stream.id == id) else {
            return false;
        };
        let stream = self.all.swap_remove(at);
        *stream.ended.lock() = true;
        writer.forget(id);
        true
    }
}

impl Extension {
    /// Calls the callback that begins a subscription; `None` if it panicked.
    fn begin(
        &self,
        call: &Call<'_>,
        sink: mpsc::Sender<Box<RawValue>>,
        id: SubscriptionId,
    ) -> Option<BoxFuture<'static, jsonrpsee::core::server::MethodResponse>> {
        let Some(MethodCallback::Subscription(callback)) = self.methods.method(call.method) else {
            return None;
        };
        let longest = u32::try_from(self.max_response_bytes).unwrap_or(u32::MAX);
        let state = SubscriptionState {
            conn_id: call.connection.id(),
            id_provider: &Given(id),
            // Subscriptions are counted by the session and the account; the permit limits nothing here.
            subscription_permit: Arc::new(Semaphore::new(1)).try_acquire_owned().ok()?,
        };
        let params = Params::new(call.params.map(RawValue::get));
        let sink = MethodSink::new_with_limit(sink, longest);
        let extensions = self.extensions(call);
        let begun = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            callback(ID, params, sink, state, extensions)
        }));
        begun.map_err(|_| panics::count(TASK, &self.metrics)).ok()
    }
}

/// Count of open subscriptions, of all clients and of the connection, raised while this lives.
#[derive(Debug)]
struct Open {
    metrics: Arc<Metrics>,
    writer: Weak<ClientWriter>,
}

impl Open {
    fn label() -> KindLabel {
        KindLabel {
            kind: Kind::Extension.label(),
        }
    }

    fn new(metrics: &Arc<Metrics>, writer: &Arc<ClientWriter>) -> Self {
        metrics.subscriptions.get_or_create(&Self::label()).inc();
        writer.joined(Kind::Extension);
        Self {
            metrics: metrics.clone(),
            writer: Arc::downgrade(writer),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.subscriptions.get_or_create(&Self::label()).dec();
        if let Some(writer) = self.writer.upgrade() {
            writer.left(Kind::Extension);
        }
    }
}

/// Task that moves the messages of one subscription into the client's queue.
struct Pump {
    ended: Arc<Mutex<bool>>,
    recipient: Arc<Recipient>,
    writer: Weak<ClientWriter>,
    clock: Clock,
    _open: Open,
    _reserved: Reserved,
}

impl Pump {
    async fn run(self, mut messages: mpsc::Receiver<Box<RawValue>>) {
        // jsonrpsee sends the answer to the sink, too.
        if messages.recv().await.is_none() || !self.recipient.until_answered().await {
            return;
        }
        let mut received = Vec::new();
        while messages.recv_many(&mut received, SINK).await > 0 {
            let Some(writer) = self.writer.upgrade() else { return };
            let events = received.drain(..).map(|message| Event::whole(message.get().as_bytes()));
            let batch = Batch::new(Kind::Extension, events.collect(), Instant::now());
            let ended = self.ended.lock();
            if *ended {
                return;
            }
            if writer.push_events(&self.recipient, &batch, self.clock.now()) {
                writer.flush();
            }
        }
    }
}
