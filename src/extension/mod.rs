//! Methods and subscriptions that the embedding program adds, from a module of jsonrpsee (`RpcModule`, `#[rpc]`).
//!
//! Clients reach them like headwater's own, over WebSocket and HTTP, single and in batches: quotas, places for calls in
//! flight and rights are the same. jsonrpsee supplies the table and the callbacks; envelopes, ids, framing and queues
//! are headwater's (`stream`).

mod stream;

use std::fmt;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jsonrpsee::Extensions;
use jsonrpsee::core::server::{ConnectionId, MethodCallback, MethodResponse, Methods};
use jsonrpsee::types::{Id, Params};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::door::Pass;
use crate::jsonrpc::{INTERNAL_ERROR, Outcome, error};
use crate::panics;
use crate::rpc::Local;
use crate::telemetry::Metrics;

pub use stream::Streams;

/// Name of the callbacks in the count of panics.
const TASK: &str = "extension";

/// A method name of a module that is taken.
#[derive(Debug, thiserror::Error)]
#[error("method {0} is served by headwater itself or by another module: put it into a namespace of its own")]
pub struct NameTaken(&'static str);

/// Adds the methods of a module.
///
/// # Errors
/// [`NameTaken`] if headwater serves (`serves`), or another module has, a method of one of the names.
pub fn merge(methods: &mut Methods, module: Methods, serves: impl Fn(&str) -> bool) -> Result<(), NameTaken> {
    let is_taken = |name: &&str| serves(name) || methods.method(name).is_some();
    let taken = module.method_names().find(is_taken);
    match taken {
        Some(taken) => Err(NameTaken(taken)),
        None => methods.merge(module).map_err(|_| NameTaken("of the module")),
    }
}

/// Client as the callbacks of an extension see it, in jsonrpsee's `Extensions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Number of the account that is charged: the same for all connections of a key, a token's subject or an address,
    /// as long as the process runs.
    pub account: u64,
    /// Address of the client; `None` if a proxy withholds it.
    pub address: Option<IpAddr>,
}

impl Client {
    /// Returns the client that this pass admits.
    #[must_use]
    pub fn of(pass: &Pass) -> Self {
        Self {
            account: pass.account().number(),
            address: pass.address(),
        }
    }
}

/// Role of a method in an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Only answers.
    Call,
    /// Begins a subscription.
    Subscribe,
    /// Ends a subscription.
    Unsubscribe,
}

/// Methods and subscriptions of the embedding program.
pub struct Extension {
    methods: Methods,
    /// Values that the module gives to each of its callbacks.
    extensions: Extensions,
    max_response_bytes: usize,
    connections: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extension").finish_non_exhaustive()
    }
}

/// Call of a method: its parameters and its caller.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Method name.
    pub method: &'a str,
    /// Parameters as the client wrote them.
    pub params: Option<&'a RawValue>,
    /// Caller.
    pub client: Client,
    /// Connection on which the call arrived; a request over HTTP counts as a connection.
    pub connection: &'a Connection,
}

/// Connection of a client, as the callbacks of an extension count them.
///
/// When it is dropped, asynchronous callbacks that have not answered are dropped, as by jsonrpsee's own server over HTTP: one that
/// waits for ever would otherwise stay for every client that has called it and left.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    left: CancellationToken,
}

impl Connection {
    /// Returns the number, unique as long as the process runs.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Boxes the outcome of an asynchronous callback, which begins when it is polled and ends with the connection.
    fn until_left(&self, outcome: impl Future<Output = Outcome> + Send + 'static) -> BoxFuture<'static, Outcome> {
        let left = self.left.clone();
        let ending = async move {
            if left.is_cancelled() {
                return internal_error();
            }
            tokio::select! {
                // Most outcomes are known at once, and are not worth a place among those that wait.
                biased;
                outcome = outcome => outcome,
                () = left.cancelled() => internal_error(),
            }
        };
        ending.boxed()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.left.cancel();
    }
}

impl Extension {
    /// Takes the methods of all modules. An answer longer than `max_response_bytes` becomes jsonrpsee's error -32008.
    #[must_use]
    pub fn new(mut methods: Methods, max_response_bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            extensions: methods.extensions().clone(),
            methods,
            max_response_bytes,
            connections: AtomicUsize::new(0),
            metrics,
        }
    }

    /// Returns the role of a method; `None` if the extension has no such method.
    #[must_use]
    pub fn role(&self, method: &str) -> Option<Role> {
        self.methods.method(method).map(|callback| match callback {
            MethodCallback::Sync(_) | MethodCallback::Async(_) => Role::Call,
            MethodCallback::Subscription(_) => Role::Subscribe,
            MethodCallback::Unsubscription(_) => Role::Unsubscribe,
        })
    }

    /// Returns the names of all methods, in no order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.methods.method_names()
    }

    /// Begins a connection.
    #[must_use]
    pub fn connect(&self) -> Connection {
        Connection {
            id: ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed)),
            left: CancellationToken::new(),
        }
    }

    /// Calls a method that only answers, or ends a subscription. A panic of the callback is an internal error of this
    /// call alone.
    ///
    /// A callback that answers begins when the outcome is polled: the items of a batch take turns, so that neither their
    /// answers nor the threads of blocking callbacks are those of the whole batch at once.
    #[must_use]
    pub fn call(&self, call: &Call<'_>) -> Local {
        self.call_with(call, |_| {})
    }

    /// Like [`Self::call`], with more values for the callback, which `add` adds.
    pub(crate) fn call_with(&self, call: &Call<'_>, add: impl FnOnce(&mut Extensions)) -> Local {
        let params = Params::new(call.params.map(RawValue::get));
        let (connection, longest) = (call.connection.id, self.max_response_bytes);
        let mut extensions = self.extensions(call);
        add(&mut extensions);
        let outcome = match self.methods.method(call.method) {
            Some(MethodCallback::Unsubscription(callback)) => {
                return self
                    .guarded(|| callback(ID, params, connection, longest, extensions))
                    .into();
            }
            Some(MethodCallback::Sync(callback)) => {
                let (callback, params) = (callback.clone(), params.into_owned());
                self.awaited(async move { callback(ID, params, longest, extensions) })
                    .boxed()
            }
            Some(MethodCallback::Async(callback)) => {
                let (callback, params) = (callback.clone(), params.into_owned());
                let answer = async move { callback(ID, params, connection, longest, extensions).await };
                call.connection.until_left(self.awaited(answer))
            }
            Some(MethodCallback::Subscription(_)) | None => return internal_error().into(),
        };
        Local::Later(outcome)
    }

    fn extensions(&self, call: &Call<'_>) -> Extensions {
        let mut extensions = self.extensions.clone();
        extensions.insert(call.connection.id);
        extensions.insert(call.client);
        extensions
    }

    fn guarded(&self, callback: impl FnOnce() -> MethodResponse) -> Outcome {
        match catch_unwind(AssertUnwindSafe(callback)) {
            Ok(response) => outcome(response),
            Err(_) => self.panicked(),
        }
    }

    fn awaited(
        &self,
        answer: impl Future<Output = MethodResponse> + Send + 'static,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let metrics = self.metrics.clone();
        async move {
            let answered = panics::caught(TASK, &metrics, answer).await;
            answered.map_or_else(internal_error, outcome)
        }
    }

    fn panicked(&self) -> Outcome {
        panics::count(TASK, &self.metrics);
        internal_error()
    }
}

/// Id of every call of a callback. The client's own id, of any JSON type, is put back around the outcome.
const ID: Id<'static> = Id::Number(0);

/// Envelope of a result under [`ID`], up to the result.
const RESULT: &str = r#"{"jsonrpc":"2.0","id":0,"result":"#;

fn internal_error() -> Outcome {
    error(INTERNAL_ERROR, "internal error").into()
}

/// Cuts the envelope off a response, without a copy of a result in jsonrpsee's usual form.
fn outcome(response: MethodResponse) -> Outcome {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        result: Option<&'a RawValue>,
        #[serde(borrow)]
        error: Option<&'a RawValue>,
    }

    let is_success = response.is_success();
    let (json, on_close, _) = response.into_parts();
    if let Some(processed) = on_close {
        processed.notify(is_success);
    }
    let text: Box<str> = json.into();
    let text = Bytes::from(String::from(text));
    if text.starts_with(RESULT.as_bytes()) && text.ends_with(b"}") {
        return Outcome::Result(text.slice(RESULT.len()..text.len() - 1));
    }
    match serde_json::from_slice::<Envelope<'_>>(&text) {
        Ok(Envelope { error: Some(error), .. }) => Outcome::Error(text.slice_ref(error.get().as_bytes())),
        Ok(Envelope {
            result: Some(result), ..
        }) => Outcome::Result(text.slice_ref(result.get().as_bytes())),
        _ => internal_error(),
    }
}

#[cfg(test)]
mod tests;
