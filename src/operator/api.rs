//! Methods and subscriptions of the API.
//!
//! `OperatorClient` is implemented for every client of jsonrpsee: other programs use the API with it, as the command line
//! does.

#[allow(unused_imports)] // The client's half does not name it.
use jsonrpsee::Extensions;
use jsonrpsee::core::{RpcResult, SubscriptionResult};
use jsonrpsee::proc_macros::rpc;

use super::tap::{TapItem, TapQuery};
use super::views::{
    AuditEntry, ClientPage, ClientQuery, ClientView, Drain, Reloaded, ReorgView, Status, UpstreamName, UpstreamView,
    UsageQuery, UsageRow,
};
use crate::telemetry::Entry;

/// The operator's API.
#[rpc(server, client, namespace = "operator")]
pub trait Operator {
    /// Returns the state of everything that a page shows.
    #[method(name = "status")]
    fn status(&self) -> RpcResult<Status>;

    /// Returns a page of the connected clients.
    #[method(name = "clients")]
    fn clients(&self, query: Option<ClientQuery>) -> RpcResult<ClientPage>;

    /// Returns one client.
    #[method(name = "client")]
    fn client(&self, id: u64) -> RpcResult<ClientView>;

    /// Closes a client's connection with 1008.
    #[method(name = "disconnect", with_extensions)]
    fn disconnect(&self, id: u64) -> RpcResult<()>;

    /// Returns the upstreams, by priority.
    #[method(name = "upstreams")]
    fn upstreams(&self) -> RpcResult<Vec<UpstreamView>>;

    /// Keeps an upstream out of use: it is not active and gets no more calls. Refused for the only one that takes calls,
    /// unless `force` is set. Returns `false` if it was cordoned already.
    #[method(name = "cordon", with_extensions)]
    fn cordon(&self, upstream: UpstreamName, force: Option<bool>) -> RpcResult<bool>;

    /// Ends a cordon; returns `false` if there was none.
    #[method(name = "uncordon", with_extensions)]
    fn uncordon(&self, upstream: UpstreamName) -> RpcResult<bool>;

    /// Makes `/ready` answer 503, and closes the connected clients if asked to; returns `false` if it was drained
    /// already.
    #[method(name = "drain", with_extensions)]
    fn drain(&self, drain: Option<Drain>) -> RpcResult<bool>;

    /// Ends a drain; returns `false` if there was none.
    #[method(name = "undrain", with_extensions)]
    fn undrain(&self) -> RpcResult<bool>;

    /// Reads the configuration again and applies it.
    #[method(name = "reload", with_extensions)]
    async fn reload(&self) -> RpcResult<Reloaded>;

    /// Reads the configuration and checks it, without effect.
    #[method(name = "checkConfig")]
    async fn check_config(&self) -> RpcResult<Reloaded>;

    /// Returns the usage of each account by hour, newest hour first.
    #[method(name = "usage")]
    fn usage(&self, query: Option<UsageQuery>) -> RpcResult<Vec<UsageRow>>;

    /// Returns the newest reorgs, newest first; at most 64.
    #[method(name = "reorgs")]
    fn reorgs(&self, last: Option<usize>) -> RpcResult<Vec<ReorgView>>;

    /// Returns the newest acts of operators, newest first; at most 256.
    #[method(name = "audit")]
    fn audit(&self, last: Option<usize>) -> RpcResult<Vec<AuditEntry>>;

    /// Sends the status once a second, beginning now.
    #[subscription(name = "subscribeStatus" => "statusUpdate", unsubscribe = "unsubscribeStatus", item = Status)]
    async fn subscribe_status(&self) -> SubscriptionResult;

    /// Sends the newest `last` events, and those that follow. An event `missed` tells a slow reader how many it missed.
    #[subscription(name = "subscribeEvents" => "event", unsubscribe = "unsubscribeEvents", item = Entry)]
    async fn subscribe_events(&self, last: Option<usize>) -> SubscriptionResult;

    /// Sends the messages of a client, redacted, until the time or the bytes are used up or the client leaves.
    #[subscription(name = "tap" => "tapped", unsubscribe = "untap", item = TapItem, with_extensions)]
    async fn tap(&self, id: u64, query: Option<TapQuery>) -> SubscriptionResult;
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_method_is_documented() {
        let document = include_str!("../../docs/operator.md");
        let source = include_str!("api.rs");
        let named = |line: &str| {
            Some(
                line.trim()
                    .strip_prefix("#[")?
                    .split_once("(name = \"")?
                    .1
                    .split_once('"')?
                    .0
                    .to_owned(),
            )
        };
        let names: Vec<String> = source.lines().filter_map(named).collect();
        assert_eq!(names.len(), 17);
        for name in names {
            assert!(
                document.contains(&format!("`operator_{name}`")),
                "docs/operator.md lacks operator_{name}"
            );
        }
    }
}
