//! headwater as a module of jsonrpsee: subscriptions and calls for servers of other programs.
//!
//! A program that has a server of its own (a node, an execution extension, an internal service) merges this module into
//! it. Each subscription is a [session](crate::session) within the process, so kinds, options, resumption, order and
//! bounds are those of a client's connection; each call takes the path of a client's call. The program's server admits
//! clients and limits them.

mod subscription;

use std::sync::Arc;

use jsonrpsee::core::server::ConnectionId;
use jsonrpsee::core::{RpcResult, SubscriptionResult};
use jsonrpsee::types::{ErrorObjectOwned, Params};
use jsonrpsee::{Extensions, PendingSubscriptionSink, RpcModule};
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::door::Pass;
use crate::extension::Role;
use crate::jsonrpc::{INTERNAL_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, Outcome, Request, error};
use crate::rpc::{Local, SubscriptionMethod, known_methods, openrpc};
use crate::session::{Offered, OwnCaller, PlannedReply, Services, Transport, call_own, caller};
use crate::shares::Full;

/// Services of the proxy, `None` until it runs.
pub type Running = watch::Receiver<Option<Arc<Services>>>;

/// Context of the module's callbacks.
#[derive(Debug)]
struct Context(Running);

impl Context {
    /// Waits until the proxy runs.
    async fn services(&self) -> Result<Arc<Services>, ErrorObjectOwned> {
        let mut running = self.0.clone();
        let services = running.wait_for(Option::is_some).await.ok().and_then(|now| now.clone());
        services.ok_or_else(|| error(INTERNAL_ERROR, "the proxy has ended"))
    }
}

/// Builds the module: `eth_subscribe`, `eth_unsubscribe`, the methods of headwater's own, and every other method by name
/// of which it has rules.
#[must_use]
pub fn module(running: Running) -> RpcModule<()> {
    const UNIQUE: &str = "the table of methods has each name once, and none of a subscription";
    let mut module = RpcModule::new(Context(running));
    module
        .register_subscription("eth_subscribe", "eth_subscription", "eth_unsubscribe", subscribe)
        .expect(UNIQUE);
    for method in known_methods().chain(openrpc::OWN.iter().copied()) {
        module
            .register_async_method(method, move |params, context, extensions| async move {
                call(method, &params, &context, &extensions).await
            })
            .expect(UNIQUE);
    }
    module.remove_context()
}

async fn subscribe(
    params: Params<'static>,
    pending: PendingSubscriptionSink,
    context: Arc<Context>,
    extensions: Extensions,
) -> SubscriptionResult {
    let services = match context.services().await {
        Ok(services) => services,
        Err(why) => {
            pending.reject(why).await;
            return Ok(());
        }
    };
    let pass = pass(&services, &extensions);
    subscription::serve(&services, pass, &params, pending).await
}

async fn call(
    method: &str,
    params: &Params<'_>,
    context: &Context,
    extensions: &Extensions,
) -> RpcResult<Box<RawValue>> {
    let services = context.services().await?;
    let pass = pass(&services, extensions);
    let message = request(method, params);
    let planned = services.intake(&pass.terms()).take(
        message.as_bytes(),
        &mut Within {
            services: &services,
            pass: &pass,
        },
    );
    let PlannedReply::Single(planned) = planned.reply else {
        return Err(error(INVALID_REQUEST, "invalid request"));
    };
    let Some(response) = services.rpc.complete(planned, &caller(&pass)).await else {
        return Err(error(INTERNAL_ERROR, "internal error"));
    };
    match response.into_outcome() {
        Outcome::Result(json) => Ok(raw(&json)?),
        Outcome::Error(json) => Err(serde_json::from_slice(&json).map_err(|_| not_json())?),
    }
}

/// Transport of a call within the process: the other server bounds its messages and calls.
struct Within<'a> {
    services: &'a Arc<Services>,
    pass: &'a Pass,
}

impl Transport for Within<'_> {
    fn charge_inbound(&mut self, _: usize) -> Result<(), Full> {
        Ok(())
    }

    fn begin_call(&mut self, _: u32) -> bool {
        true
    }

    fn begin_subscription(&mut self, _: SubscriptionMethod<'_>, _: &Request<'_>) -> Result<Local, ErrorObjectOwned> {
        Err(not_a_call())
    }

    fn end_subscription(&mut self, _: &Request<'_>) -> Outcome {
        not_a_call().into()
    }

    fn call_own(&mut self, request: &Request<'_>) -> Result<Local, ErrorObjectOwned> {
        let caller = OwnCaller {
            services: self.services.clone(),
            account: self.pass.account().clone(),
            connection: None,
            offered: Offered::Module,
        };
        call_own(self.pass, request, caller)
    }

    /// The other server has the module itself.
    fn call_extension(&mut self, _: Role, _: &Request<'_>) -> Result<Local, ErrorObjectOwned> {
        Err(not_a_call())
    }
}

fn not_a_call() -> ErrorObjectOwned {
    error(METHOD_NOT_FOUND, "not a method that only answers")
}

/// Admits a connection of the program's server: limits and clients' rights are that server's, the methods that nobody
/// may call are the settings'.
fn pass(services: &Services, extensions: &Extensions) -> Pass {
    // Without a server, as in `RpcModule::call`, all calls are of one account.
    let connection = extensions.get::<ConnectionId>().map_or(0, |id| id.0);
    services.door.admit_within(connection as u64)
}

fn request(method: &str, params: &Params<'_>) -> String {
    match params.as_str() {
        Some(params) => format!(r#"{{"jsonrpc":"2.0","id":0,"method":"{method}","params":{params}}}"#),
        None => format!(r#"{{"jsonrpc":"2.0","id":0,"method":"{method}"}}"#),
    }
}

fn raw(json: &[u8]) -> Result<Box<RawValue>, ErrorObjectOwned> {
    let text = std::str::from_utf8(json).map_err(|_| not_json())?;
    RawValue::from_string(text.to_owned()).map_err(|_| not_json())
}

fn not_json() -> ErrorObjectOwned {
    error(INTERNAL_ERROR, "the answer is not JSON")
}
