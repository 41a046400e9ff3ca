//! Differences between two configurations that take effect only after a restart.

use figment::providers::Serialized;
use figment::value::{Dict, Value};
use figment::{Profile, Provider};

use super::typed;

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
    differing
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
