//! Methods of headwater's own, as a module of jsonrpsee: the OpenRPC document, the caller's account, and the reports of
//! other headwaters.

use std::sync::Arc;

use jsonrpsee::core::RpcResult;
use jsonrpsee::core::to_json_raw_value;
use jsonrpsee::{Extensions, RpcModule};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Services;
use super::discovery::Offered;
use crate::door::{Account, Pass};
use crate::extension::{Call, Client, Role};
use crate::fleet::FLEET_REPORT;
use crate::jsonrpc::{ErrorObjectOwned, INTERNAL_ERROR, Request, error, not_available};
use crate::rpc::Local;

/// Caller of a method of headwater's own.
#[derive(Clone, Debug)]
pub(crate) struct OwnCaller {
    pub(crate) services: Arc<Services>,
    pub(crate) account: Arc<Account>,
    /// Client's connection, by [`crate::delivery::ClientWriter::id`]; `None` for one without subscriptions.
    pub(crate) connection: Option<u64>,
    /// Methods and subscriptions that the transport offers.
    pub(crate) offered: Offered,
}

impl OwnCaller {
    fn document(&self) -> RpcResult<Box<RawValue>> {
        let terms = self.account.terms();
        let methods = &terms.rights.methods;
        let extension = &self.services.extension;
        let added: Vec<&str> = extension
            .names()
            .filter(|name| methods.allow_added(name))
            .filter(|name| self.offered != Offered::Http || extension.role(name) == Some(Role::Call))
            .collect();
        let document = self.services.document(&terms.rights, self.offered, &added);
        RawValue::from_string(document).map_err(|_| not_json())
    }
}

/// Builds the module. Each callback finds its [`OwnCaller`] in the `Extensions`.
///
/// Callbacks know no other caller than the one that the transport gives them; only the report of another headwater has
/// parameters.
pub(crate) fn module() -> RpcModule<()> {
    const UNIQUE: &str = "each name once";
    let mut module = RpcModule::new(());
    for name in ["rpc_discover", "rpc.discover"] {
        module
            .register_method(name, |_, (), extensions| caller(extensions)?.document())
            .expect(UNIQUE);
    }
    module
        .register_method("headwater_accountLimits", |_, (), extensions| {
            json(&caller(extensions)?.account.report_limits())
        })
        .expect(UNIQUE);
    module
        .register_method("headwater_accountUsage", |_, (), extensions| {
            json(&caller(extensions)?.account.report_usage())
        })
        .expect(UNIQUE);
    module
        .register_method("headwater_accountSubscriptions", |_, (), extensions| {
            let caller = caller(extensions)?;
            json(&caller.account.report_subscriptions(caller.connection))
        })
        .expect(UNIQUE);
    module
        .register_method(FLEET_REPORT, |params, (), extensions| {
            let services = &caller(extensions)?.services;
            match &services.fleet {
                Some(fleet) => fleet.answer(params.as_str()),
                None => Err(not_available(FLEET_REPORT)),
            }
        })
        .expect(UNIQUE);
    module
}

/// Calls a method of headwater's own; refused if the settings deny it by name. Reports are taken from other headwaters
/// alone, by their key, if quotas are shared.
///
/// # Errors
/// geth's error for a method that does not exist, if the method is denied.
pub(crate) fn call(pass: &Pass, request: &Request<'_>, caller: OwnCaller) -> Result<Local, ErrorObjectOwned> {
    let terms = pass.terms();
    let takes_reports = || terms.rights.edge && caller.services.fleet.is_some();
    if !terms.rights.methods.allow_own(&request.method) || (request.method == FLEET_REPORT && !takes_reports()) {
        caller.services.metrics.count_refusals("method", 1);
        return Err(not_available(&request.method));
    }
    let services = caller.services.clone();
    let connection = services.own.connect();
    let call = Call {
        method: &request.method,
        params: request.params,
        client: Client::of(pass),
        connection: &connection,
    };
    Ok(services
        .own
        .call_with(&call, |extensions| drop(extensions.insert(caller))))
}

fn caller(extensions: &Extensions) -> Result<&OwnCaller, ErrorObjectOwned> {
    extensions
        .get()
        .ok_or_else(|| error(INTERNAL_ERROR, "a method of headwater without its caller"))
}

fn json(report: &impl Serialize) -> RpcResult<Box<RawValue>> {
    to_json_raw_value(report).map_err(|_| not_json())
}

fn not_json() -> ErrorObjectOwned {
    error(INTERNAL_ERROR, "the answer is not JSON")
}
