//! Differences between two configurations that take effect only after a restart.

use figment::providers::Serialized;
use figment::value::{Dict, Value};
use figment::{Profile, Provider};

use super::{Config, ConfigError, bad, typed};

/// Keys and key prefixes of settings that a reload changes for connected clients too. The other settings are bound to
/// sockets, tasks and memory created at the start.
const LIVE: &[&str] = &[
    "limits.",
    "plans.",
    "keys.",
    "auth.",
    "methods.",
    "subscriptions.passthrough",
    "server.origins",
    "server.hosts",
    "server.subprotocols",
    "server.trusted_proxies",
    "server.forwarded_header",
    "server.max_handshakes",
    "tls.",
    "upstream",
    "webhooks.",
];

/// Checks if a reload changes this setting for connected clients.
pub(super) fn is_live(key: &str) -> bool {
    LIVE.iter().any(|live| key.starts_with(live))
}

/// Returns the changed settings that keep their old value until a restart, as dotted keys.
#[must_use]
pub fn needs_restart(old: &typed::Config, new: &typed::Config) -> Vec<String> {
    let mut differing = changed_keys(old, new);
    differing.retain(|key| !is_live(key));
    // A new certificate is used at once, but a reload does not turn TLS on or off for new connections.
    if old.tls.certificate.is_empty() != new.tls.certificate.is_empty() {
        differing.push("tls.certificate".into());
    }
    // The embedded devnet starts and ends with the process.
    if old.upstream.is_empty() && !new.upstream.is_empty() {
        differing.push("upstream".into());
    }
    differing
}

/// Checks that a valid configuration can replace the one in force while clients are connected.
///
/// # Errors
/// Returns a [`ConfigError`] where no upstream would be left, or where the new upstreams do not fit the settings of
/// `node` in force, which change with a restart only.
pub fn check_reload(old: &typed::Config, new: &typed::Config) -> Result<(), ConfigError> {
    if old.upstream == new.upstream {
        return Ok(());
    }
    if new.upstream.is_empty() {
        return Err(bad(
            "upstream",
            &"a reload cannot remove every upstream: keep one, or restart for the embedded devnet",
        ));
    }
    if old.node == new.node {
        return Ok(());
    }
    let mixed = typed::Config {
        upstream: new.upstream.clone(),
        ..old.clone()
    };
    let refused = |why: ConfigError| ConfigError(format!("{why} (the settings of node change with a restart only)"));
    Config::check_nodes(&mixed).map(|_| ()).map_err(refused)
}

/// Returns the settings that differ, as dotted keys in their order. A plan or a key that only one side has is one key.
pub(super) fn changed_keys(old: &typed::Config, new: &typed::Config) -> Vec<String> {
    let mut differing = Vec::new();
    compare(&dict(old), &dict(new), "", &mut differing);
    differing.sort();
    differing
}

fn dict(config: &typed::Config) -> Dict {
    let data = Serialized::defaults(config).data().ok();
    data.and_then(|mut data| data.remove(&Profile::Default))
        .unwrap_or_default()
}

/// Collects the keys that differ. Sections have the same keys on both sides, except plans and keys.
fn compare(old: &Dict, new: &Dict, prefix: &str, differing: &mut Vec<String>) {
    for (key, value) in new {
        let key_path = format!("{prefix}{key}");
        match (old.get(key), value) {
            (Some(Value::Dict(_, old)), Value::Dict(_, new)) => {
                compare(old, new, &format!("{key_path}."), differing);
            }
            (Some(old), new) if old == new => {}
            _ => differing.push(key_path),
        }
    }
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    differing.extend(gone.map(|key| format!("{prefix}{key}")));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_reload_must_leave_upstreams_that_fit() {
        let with = |upstreams: &[&str], poll: u64| {
            let mut config = typed::Config {
                upstream: upstreams.iter().map(|address| (*address).into()).collect(),
                ..typed::Config::default()
            };
            config.node.poll_interval = Duration::from_secs(poll);
            config
        };
        let two = ["ws://a", "http://b"];
        for (old, new, refused) in [
            (with(&["ws://a"], 1), with(&["ws://b"], 1), None),
            (with(&["ws://a"], 1), with(&two, 1), None),
            (with(&[], 1), with(&["ws://a"], 1), None),
            (with(&[], 1), with(&[], 1), None),
            (
                with(&["ws://a"], 1),
                with(&[], 1),
                Some("upstream: a reload cannot remove every upstream: keep one, or restart for the embedded devnet"),
            ),
            // The poll interval in force is too long for two.
            (
                with(&["http://b"], 3),
                with(&two, 1),
                Some(
                    "node.poll_interval: must not be longer than a quarter of node.silence_timeout if there are several \
                     upstreams (the settings of node change with a restart only)",
                ),
            ),
        ] {
            let found = check_reload(&old, &new).map_err(|why| why.to_string());
            assert_eq!(
                found.err().as_deref(),
                refused,
                "{:?} > {:?}",
                old.upstream,
                new.upstream
            );
        }
        let needs = |old: &typed::Config, new: &typed::Config| needs_restart(old, new);
        assert!(needs(&with(&["ws://a"], 1), &with(&two, 1)).is_empty());
        assert_eq!(needs(&with(&[], 1), &with(&two, 1)), ["upstream"]);
    }

    #[test]
    fn what_waits_for_a_restart_is_named() {
        let old = typed::Config::default();
        let mut new = old.clone();
        assert!(needs_restart(&old, &new).is_empty());
        new.limits.max_batch = 7;
        new.methods.denied.clear();
        new.plans.insert("a".into(), typed::Plan::default());
        new.server.origins.clear();
        assert!(needs_restart(&old, &new).is_empty());
        new.listen = "127.0.0.1:1".into();
        new.server.header_timeout = Duration::from_secs(1);
        new.delivery.compression = typed::Compression::On;
        assert_eq!(
            needs_restart(&old, &new),
            ["delivery.compression", "listen", "server.header_timeout"]
        );
    }
}
