//! Descriptions of all keys, from which `default-config`, `config/example.toml` and `docs/configuration.md` are
//! generated.

mod key_table;
mod named_keys;

use figment::Figment;
use figment::providers::Serialized;
use figment::value::Value;

pub(super) use self::key_table::KEYS;
pub(super) use self::named_keys::NAMED;
use self::named_keys::NAMED_EXAMPLE;
use super::{changes, schema, typed};

/// Returns all keys, dotted.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(key, _)| *key)
}

/// Returns the dotted keys of `section`, if the operator chose its name.
pub(super) fn keys_of(section: &str) -> Vec<String> {
    let own = |field: &str| format!("{section}.{field}");
    let named = |prefix: &'static str| NAMED.iter().filter_map(move |(key, ..)| key.strip_prefix(prefix));
    match section.split_once('.') {
        Some(("plans", _)) => keys().filter_map(|key| key.strip_prefix("limits.")).map(own).collect(),
        Some(("keys", _)) => named("keys.NAME.").map(own).collect(),
        Some(("webhooks", _)) => named("webhooks.NAME.").map(own).collect(),
        Some(("upstream", _)) => named("upstream[].").map(own).collect(),
        _ => Vec::new(),
    }
}

/// Returns the environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("HEADWATER_{}", key.replace('.', "_").to_ascii_uppercase())
}

fn default_of(key: &str) -> String {
    let figment = Figment::from(Serialized::defaults(typed::Config::default()));
    figment
        .find_value(key)
        .map(|value| toml_text(&value))
        .unwrap_or_default()
}

/// Returns a value as TOML.
pub(super) fn toml_text(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("{text:?}"),
        Value::Array(_, items) => format!("[{}]", items.iter().map(toml_text).collect::<Vec<_>>().join(", ")),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Dict(_, entries) => {
            let entry = |(name, value): (&String, &Value)| format!("{name:?} = {}", toml_text(value));
            // What an optional setting does not say.
            let said = entries.iter().filter(|(_, value)| !matches!(value, Value::Empty(..)));
            format!("{{ {} }}", said.map(entry).collect::<Vec<_>>().join(", "))
        }
        Value::Num(_, number) => {
            let whole = number.to_u128().map(|n| n.to_string());
            let share = || number.to_f64().map(|n| format!("{n:?}"));
            whole.or_else(share).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// Returns a configuration file with every key, its description and its default.
#[must_use]
pub fn example() -> String {
    let mut out = format!(
        "#:schema {}\n\
         # headwater: every setting with its default. Each is also a variable: limits.max_batch is\n\
         # HEADWATER_LIMITS_MAX_BATCH. Flags come before variables, variables before this file.\n",
        schema::ADDRESS
    );
    let mut section = "";
    for (key, words) in KEYS {
        let (own, name) = key.split_once('.').unwrap_or(("", key));
        if own != section {
            section = own;
            out.push_str(&format!("\n[{section}]\n"));
        } else if section.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("# {words}\n{name} = {}\n", default_of(key)));
    }
    out.push_str(NAMED_EXAMPLE);
    out
}

/// Introduction of `docs/configuration.md`.
const REFERENCE: &str = "\
# Configuration

Every setting with its default. This page is generated from [`src/config/describe.rs`](../src/config/describe.rs):
`UPDATE_EXPECT=1 cargo test --lib describe`. [`config/example.toml`](../config/example.toml) is the same as a file, which
`headwater default-config` prints; `headwater check-config` checks a configuration and says what it comes to. With `--diff FILE` it
lists the settings that differ from the file in force, and says which a reload applies and which need a restart.

Editors that know JSON Schema (VS Code with Even Better TOML, Helix, Neovim and Zed with taplo) complete and check the file as you type: its first line,
`#:schema …`, names [`config/headwater.schema.json`](../config/headwater.schema.json), which `headwater default-config --schema` prints.

Flags come before variables, variables before the file (`--config FILE`), the file before the defaults. A key `limits.max_batch`
is `max_batch` in section `[limits]` of the file and the variable `HEADWATER_LIMITS_MAX_BATCH`. A key that does not exist or a
value that makes no sense stops the start with one line and exit code 64.

Settings that are marked *live* take effect without a restart, for connected clients too ([operations.md](operations.md#reload)).
";

/// Returns the page `docs/configuration.md`, with a heading for each key as a link target.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(REFERENCE);
    let mut section = None;
    for (key, words) in KEYS {
        let own = key.split_once('.').map_or("", |(own, _)| own);
        if section != Some(own) {
            section = Some(own);
            let title = if own.is_empty() {
                "Top level".to_owned()
            } else {
                format!("`[{own}]`")
            };
            out.push_str(&format!("\n## {title}\n"));
        }
        let live = if changes::is_live(key) { ", *live*" } else { "" };
        out.push_str(&format!(
            "\n### `{key}`\n\nDefault: `{}`{live}\n\n{words}\n",
            default_of(key)
        ));
    }
    out.push_str("\n## Sections with names of your own\n");
    for (key, example, words) in NAMED {
        let live = if changes::is_live(key) { ", *live*" } else { "" };
        out.push_str(&format!("\n### `{key}`\n\nFor example: `{example}`{live}\n\n{words}\n"));
    }
    out
}

#[cfg(test)]
mod tests;
