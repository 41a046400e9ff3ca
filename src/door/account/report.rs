//! Reports to a client about its own account: limits, use of them, and subscriptions.

use std::sync::atomic::Ordering;

use serde::Serialize;

use super::Account;
use crate::delivery::{Kind, SubscriptionId};
use crate::door::{Identity, Plan};

/// Most subscriptions in a report.
const MAX_LISTED: usize = 1_000;

/// Limits of an account, under the names of the settings; see [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountLimits {
    /// Name of the plan; `default` without one.
    pub plan: String,
    /// Refill of the burst, in units a second.
    pub requests_per_second: u32,
    /// Most units at once.
    pub request_burst: u32,
    /// Most upgrades and failed proofs a minute.
    pub handshakes_per_minute: u32,
    /// Most connections of the account.
    pub max_connections: usize,
    /// Most subscriptions of a connection.
    pub max_subscriptions: usize,
    /// Most subscriptions of the account.
    pub max_subscriptions_per_client: usize,
    /// Most index entries of the account.
    pub max_index_entries: usize,
    /// Most calls of a connection in flight.
    pub max_in_flight: u32,
    /// Most items of a batch.
    pub max_batch: usize,
    /// Longest message, in bytes.
    pub max_message_bytes: usize,
    /// Longest HTTP body, in bytes.
    pub max_body_bytes: usize,
    /// Most notifications, in bytes a second; `None` for no limit.
    pub egress_bytes_per_second: Option<u64>,
    /// Most refused messages of a connection within the window.
    pub max_refusals: u32,
    /// Length of the window, in milliseconds.
    pub refusal_window_ms: u64,
}

impl From<&Plan> for AccountLimits {
    fn from(plan: &Plan) -> Self {
        Self {
            plan: plan.name.to_string(),
            requests_per_second: plan.requests_per_second.get(),
            request_burst: plan.request_burst.get(),
            handshakes_per_minute: plan.handshakes_per_minute.get(),
            max_connections: plan.max_connections,
            max_subscriptions: plan.max_subscriptions,
            max_subscriptions_per_client: plan.max_subscriptions_per_client,
            max_index_entries: plan.max_index_entries,
            max_in_flight: plan.max_in_flight,
            max_batch: plan.max_batch,
            max_message_bytes: plan.max_message_bytes,
            max_body_bytes: plan.max_body_bytes,
            egress_bytes_per_second: Some(plan.egress_bytes_per_second).filter(|rate| *rate > 0),
            max_refusals: plan.refusal_limit.refusals,
            refusal_window_ms: u64::try_from(plan.refusal_limit.window.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Use that an account makes of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountUsage {
    /// Open connections, of WebSocket and HTTP.
    pub connections: usize,
    /// Subscriptions on all connections.
    pub subscriptions: usize,
    /// Index entries of all filters.
    pub index_entries: usize,
    /// Units of requests that may be spent at once.
    pub requests_left: u32,
}

/// Subscriptions of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountSubscriptions {
    /// Number of the connection that asks; `None` over HTTP.
    pub connection: Option<u64>,
    /// Subscriptions on all connections, at most a thousand.
    pub subscriptions: Vec<AccountSubscription>,
    /// `true` if there are more.
    pub truncated: bool,
}

/// One subscription in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountSubscription {
    /// Number of the connection, not used again until a restart.
    pub connection: u64,
    /// Id, which is valid on that connection alone.
    pub id: String,
    /// Kind, under the name that rights have.
    pub kind: &'static str,
    /// Index entries that its filter is charged.
    pub index_entries: u32,
}

impl Account {
    /// Reports the limits in force.
    #[must_use]
    pub fn report_limits(&self) -> AccountLimits {
        AccountLimits::from(&*self.terms().rights.plan)
    }

    /// Reports the use of the limits. Takes one unit of requests, see
    /// [`take_requests_left`](super::Terms::take_requests_left).
    #[must_use]
    pub fn report_usage(&self) -> AccountUsage {
        AccountUsage {
            connections: self.connections.load(Ordering::Relaxed),
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
            index_entries: self.index_entries.load(Ordering::Relaxed),
            requests_left: self.terms().take_requests_left(),
        }
    }

    /// Reports the subscriptions, those that the node has refused left out; `connection` is the one that asks, by
    /// [`ClientWriter::id`](crate::delivery::ClientWriter::id). Without a key or token they are those of that connection
    /// alone: others behind the same address may be strangers.
    #[must_use]
    pub fn report_subscriptions(&self, connection: Option<u64>) -> AccountSubscriptions {
        let mut found = Vec::new();
        let mut truncated = false;
        let is_proven = !matches!(self.identity, Identity::Network(_) | Identity::Connection(_));
        self.listing.visit(|of, recipient, kind, index_entries| {
            if !is_proven && connection != Some(of) {
                return true;
            }
            truncated = found.len() == MAX_LISTED;
            if !truncated {
                found.push((of, recipient.id(), kind, index_entries));
            }
            !truncated
        });
        let subscription =
            |(connection, id, kind, index_entries): (u64, SubscriptionId, Kind, u32)| AccountSubscription {
                connection,
                id: id.to_string(),
                kind: kind.label(),
                index_entries,
            };
        AccountSubscriptions {
            connection,
            subscriptions: found.into_iter().map(subscription).collect(),
            truncated,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::expect;
    use serde_json::{Value, json};

    use super::*;
    use crate::clock::at;
    use crate::config::{Config, typed};
    use crate::delivery::Recipient;
    use crate::door::Accounts;
    use crate::rpc::openrpc;

    fn account(edit: impl FnOnce(&mut typed::Config)) -> Arc<Account> {
        let mut typed = typed::Config::default();
        edit(&mut typed);
        let policy = Config::check(&typed).unwrap().door;
        let identity = Identity::Token {
            subject: "alice".into(),
            plan: "default".into(),
        };
        Accounts::default()
            .open(identity, policy.anonymous.clone(), at(0))
            .unwrap()
    }

    fn recipient() -> Arc<Recipient> {
        Recipient::new(SubscriptionId::random(), 0)
    }

    /// Checks that a report has the members that the OpenRPC document describes.
    #[track_caller]
    fn is_described(schema: &str, report: &impl Serialize) {
        let offer = openrpc::Offer {
            calls: &|_| true,
            kinds: &|_| true,
            weight: &|_| 1,
            further: &[],
        };
        let document: Value = serde_json::from_str(&openrpc::document(&offer)).unwrap();
        let described = document["components"]["schemas"][schema]["properties"]
            .as_object()
            .unwrap();
        let report = serde_json::to_value(report).unwrap();
        let members: Vec<_> = report.as_object().unwrap().keys().collect();
        assert_eq!(members, described.keys().collect::<Vec<_>>());
        for (name, value) in report.as_object().unwrap() {
            let schema = described[name].to_string();
            let kind = match value {
                Value::Number(_) => "integer",
                Value::String(_) if schema.contains("SubscriptionId") => "SubscriptionId",
                Value::String(_) => "string",
                Value::Bool(_) => "boolean",
                Value::Null => "null",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            assert!(schema.contains(kind), "{name}: {schema}");
        }
    }

    #[test]
    fn limits_have_the_names_of_the_settings() {
        let report = account(|_| ()).report_limits();
        expect![[r#"
            {
              "plan": "default",
              "requestsPerSecond": 500,
              "requestBurst": 2000,
              "handshakesPerMinute": 12000,
              "maxConnections": 9500,
              "maxSubscriptions": 1024,
              "maxSubscriptionsPerClient": 100000,
              "maxIndexEntries": 200000,
              "maxInFlight": 256,
              "maxBatch": 1000,
              "maxMessageBytes": 5242880,
              "maxBodyBytes": 5242880,
              "egressBytesPerSecond": null,
              "maxRefusals": 1000,
              "refusalWindowMs": 10000
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&report).unwrap());
        is_described("AccountLimits", &report);
        let limited = account(|c| c.limits.egress_bytes_per_second = bytesize::ByteSize(4096)).report_limits();
        assert_eq!(limited.egress_bytes_per_second, Some(4096));
        is_described("AccountLimits", &limited);
    }

    #[test]
    fn usage_counts_what_is_taken_until_it_is_given_back() {
        let account = account(|c| (c.limits.request_burst, c.limits.requests_per_second) = (1_000, 1));
        let slot = account.enter();
        let reserved = account.reserve(7).unwrap();
        account
            .terms()
            .charge([Some("eth_getLogs"), Some("net_version")].into_iter())
            .unwrap();
        let usage = account.report_usage();
        is_described("AccountUsage", &usage);
        assert_eq!(
            serde_json::to_value(usage).unwrap(),
            json!({ "connections": 1, "subscriptions": 1, "indexEntries": 7, "requestsLeft": 988 })
        );
        drop((slot, reserved));
        let usage = account.report_usage();
        assert_eq!((usage.connections, usage.subscriptions, usage.index_entries), (0, 0, 0));
        assert_eq!(usage.requests_left, 987, "each report costs one");
        assert!(account.terms().charge([Some("eth_getLogs"); 98].into_iter()).is_ok());
        for _ in 0..20 {
            let _ = account.report_usage();
        }
        assert_eq!(account.report_usage().requests_left, 0);
    }

    #[test]
    fn subscriptions_are_listed_until_they_end() {
        let account = account(|_| ());
        let (one, other, refused) = (recipient(), recipient(), recipient());
        let first = account.reserve(3).unwrap().listed(5, Kind::Logs, &one);
        let second = account.reserve(0).unwrap().listed(6, Kind::Mined, &other);
        let _refused = account.reserve(0).unwrap().listed(6, Kind::Pending, &refused);
        refused.refuse();
        let report = account.report_subscriptions(Some(6));
        is_described("AccountSubscriptions", &report);
        is_described("AccountSubscription", &report.subscriptions[0]);
        let second_listed = json!({
            "connection": 6, "id": other.id().to_string(), "kind": "minedTransactions", "indexEntries": 0,
        });
        assert_eq!(
            serde_json::to_value(report).unwrap(),
            json!({
                "connection": 6,
                "subscriptions": [
                    { "connection": 5, "id": one.id().to_string(), "kind": "logs", "indexEntries": 3 },
                    second_listed,
                ],
                "truncated": false,
            })
        );
        drop(first);
        let report = serde_json::to_value(account.report_subscriptions(None)).unwrap();
        assert_eq!(
            (&report["connection"], &report["subscriptions"]),
            (&Value::Null, &json!([second_listed]))
        );
        drop(second);
        assert_eq!(account.report_subscriptions(None).subscriptions, []);
    }

    #[test]
    fn a_client_without_key_sees_its_own_connection_alone() {
        let policy = Config::check(&typed::Config::default()).unwrap().door;
        let network = Identity::Network("10.0.0.1".parse::<std::net::IpAddr>().unwrap().into());
        let account = Accounts::default()
            .open(network, policy.anonymous.clone(), at(0))
            .unwrap();
        let recipient = recipient();
        let _all = [5, 6].map(|connection| account.reserve(0).unwrap().listed(connection, Kind::Heads, &recipient));
        let seen = |from| {
            let listed = account.report_subscriptions(from).subscriptions;
            listed.iter().map(|one| one.connection).collect::<Vec<_>>()
        };
        assert_eq!((seen(Some(5)), seen(Some(7)), seen(None)), (vec![5], vec![], vec![]));
    }

    #[test]
    fn a_long_list_is_cut() {
        let account = account(|_| ());
        let recipient = recipient();
        let reserve = || account.reserve(0).unwrap().listed(1, Kind::Heads, &recipient);
        let mut all: Vec<_> = (0..MAX_LISTED).map(|_| reserve()).collect();
        let report = account.report_subscriptions(None);
        assert_eq!((report.subscriptions.len(), report.truncated), (MAX_LISTED, false));
        all.push(reserve());
        let report = account.report_subscriptions(None);
        assert_eq!((report.subscriptions.len(), report.truncated), (MAX_LISTED, true));
        is_described("AccountSubscriptions", &report);
        drop(all);
        assert_eq!(account.report_subscriptions(None).subscriptions, []);
    }
}
