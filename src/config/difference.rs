//! Differences between two configurations, with the effect of a reload on each.

use std::fmt;

use figment::Figment;
use figment::providers::Serialized;

use super::changes::{changed_keys, check_reload, needs_restart};
use super::describe::toml_text;
use super::typed;

/// Time at which a changed setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A reload applies the new value.
    Reload,
    /// The old value stays in force until a restart.
    Restart,
    /// A reload refuses the new configuration as a whole, because of this value; a restart takes it.
    Refused,
}

/// One setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The dotted key.
    pub key: String,
    /// Old and new value as TOML, or nothing where a side lacks the key; `None` for values that may hold a secret.
    pub values: Option<(String, String)>,
    /// Time at which the change takes effect.
    pub effect: Effect,
}

/// Settings whose values may hold a password or an API key in an address.
const SECRET: &[&str] = &["upstream"];

/// Checks if a value may hold a secret: an address of a node, or a webhook or its address.
fn is_secret(key: &str) -> bool {
    let of_hook = key.strip_prefix("webhooks.");
    SECRET.contains(&key) || of_hook.is_some_and(|own| !own.contains('.') || own.ends_with(".url"))
}

/// Returns the settings that differ, in the order of their keys.
#[must_use]
pub fn differences(old: &typed::Config, new: &typed::Config) -> Vec<Change> {
    let waiting = needs_restart(old, new);
    let is_refused = check_reload(old, new).is_err();
    let (old_values, new_values) = (
        Figment::from(Serialized::defaults(old)),
        Figment::from(Serialized::defaults(new)),
    );
    let text = |values: &Figment, key: &str| values.find_value(key).map_or(String::new(), |value| toml_text(&value));
    let change = |key: String| Change {
        values: (!is_secret(&key)).then(|| (text(&old_values, &key), text(&new_values, &key))),
        effect: if is_refused && key == "upstream" {
            Effect::Refused
        } else if waiting.contains(&key) {
            Effect::Restart
        } else {
            Effect::Reload
        },
        key,
    };
    changed_keys(old, new).into_iter().map(change).collect()
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = match self.effect {
            Effect::Reload => "reload ",
            Effect::Restart => "restart",
            Effect::Refused => "refused",
        };
        let or_absent = |text: &str| {
            if text.is_empty() {
                "absent".to_owned()
            } else {
                text.to_owned()
            }
        };
        match &self.values {
            Some((old, new)) => write!(f, "{effect}  {}: {} -> {}", self.key, or_absent(old), or_absent(new)),
            None => write!(f, "{effect}  {}: changed", self.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(old: &str, new: &str, expect: Expect) {
        let read = |text: &str| toml::from_str::<typed::Config>(text).unwrap();
        let found = differences(&read(old), &read(new));
        expect.assert_eq(&found.iter().map(|change| format!("{change}\n")).collect::<String>());
    }

    #[test]
    fn equal_configurations_have_no_differences() {
        check("", "[limits]\nmax_batch = 1000", expect![[""]]);
    }

    #[test]
    fn settings_that_a_reload_applies_are_told_from_those_that_wait() {
        check(
            "listen = \"127.0.0.1:1\"",
            "[limits]\nmax_batch = 7\n[delivery]\nholdoff = \"1s\"",
            expect![[r#"
                restart  delivery.holdoff: "10ms" -> "1s"
                reload   limits.max_batch: 1000 -> 7
                restart  listen: "127.0.0.1:1" -> "127.0.0.1:9546"
            "#]],
        );
    }

    #[test]
    fn plans_and_keys_that_come_or_go_are_named() {
        check(
            "[plans.old]\nmax_batch = 1\n[keys.alice]\nhash = \"a\"",
            "[plans.new]\nmax_batch = 2\n[keys.alice]\nhash = \"b\"",
            expect![[r#"
                reload   keys.alice.hash: "a" -> "b"
                reload   plans.new: absent -> { "max_batch" = 2 }
                reload   plans.old: { "max_batch" = 1 } -> absent
            "#]],
        );
    }

    #[test]
    fn addresses_of_nodes_are_not_printed() {
        check(
            "upstream = \"wss://node.example/secret\"",
            "upstream = [\"ws://127.0.0.1:1\"]",
            expect![[r"
                reload   upstream: changed
            "]],
        );
    }

    #[test]
    fn webhooks_change_by_reload_and_their_addresses_are_not_printed() {
        check(
            "[webhooks.a]\nurl = \"https://a/?key=x\"\nbatch = 1\n[webhooks.c]\nurl = \"https://c\"",
            "[webhooks.a]\nurl = \"https://a/?key=y\"\nbatch = 2\n[webhooks.b]\nurl = \"https://b\"",
            expect![[r"
                reload   webhooks.a.batch: 1 -> 2
                reload   webhooks.a.url: changed
                reload   webhooks.b: changed
                reload   webhooks.c: changed
            "]],
        );
    }

    #[test]
    fn upstreams_change_by_reload_unless_none_would_be_left() {
        check(
            "upstream = [\"ws://a\", \"ws://b\"]",
            "upstream = [{ address = \"ws://a\", archive = true }, \"ws://c\"]",
            expect![[r"
                reload   upstream: changed
            "]],
        );
        check(
            "upstream = \"ws://a\"",
            "[limits]\nmax_batch = 7",
            expect![[r"
                reload   limits.max_batch: 1000 -> 7
                refused  upstream: changed
            "]],
        );
        // The embedded devnet.
        check(
            "",
            "upstream = \"ws://a\"",
            expect![[r"
                restart  upstream: changed
            "]],
        );
    }

    #[test]
    fn a_certificate_is_exchanged_and_tls_is_not_turned_on() {
        let with = |name: &str| format!("[tls]\ncertificate = \"{name}\"\nkey = \"k\"");
        check(
            &with("a"),
            &with("b"),
            expect![[r#"
                reload   tls.certificate: "a" -> "b"
            "#]],
        );
        check(
            "[tls]\nkey = \"k\"",
            &with("b"),
            expect![[r#"
                restart  tls.certificate: "" -> "b"
            "#]],
        );
    }
}
