//! Reads the configuration: defaults, then a file, then environment variables, then flags.

use std::collections::HashMap;
use std::path::Path;

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::Value;

use super::describe::{keys, keys_of, variable};
use super::{ConfigError, typed};

/// Settings that flags can override.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--upstream`.
    pub upstream: Vec<String>,
    /// `--listen`.
    pub listen: Option<String>,
    /// `--admin`.
    pub admin: Option<String>,
    /// `--log-format`.
    pub log_format: Option<crate::telemetry::LogFormat>,
}

/// Reads the defaults, the file and the variables, and applies the flags last.
///
/// # Errors
/// Returns a [`ConfigError`] if the file cannot be read, a key is unknown or a value has the wrong type. It is one line
/// that names the key, its source and, for an unknown key, the nearest valid one.
pub fn load(
    file: Option<&Path>,
    variables: impl Iterator<Item = (String, String)>,
    flags: &Flags,
) -> Result<typed::Config, ConfigError> {
    let mut figment = Figment::from(Serialized::defaults(typed::Config::default()));
    if let Some(path) = file {
        let text =
            std::fs::read_to_string(path).map_err(|why| ConfigError(format!("--config {}: {why}", path.display())))?;
        // Unknown keys are checked here, where the file is the only source.
        figment = figment.merge(Toml::string(&text));
        Figment::from(Toml::string(&text))
            .extract::<typed::Config>()
            .map_err(|error| explain(error, &format!("in {}", path.display())))?;
    }
    for (key, name, text) in known_variables(variables)? {
        let value: Value = text.parse().unwrap_or_else(|_| Value::from(text.clone()));
        // A value such as 2024 for a string key is parsed as a number; on failure the original text is used.
        let with = |value: Value| figment.clone().merge(Serialized::default(key, value));
        let candidate = with(value);
        figment = match candidate.extract::<typed::Config>() {
            Ok(_) => candidate,
            Err(error) => {
                let plain = with(Value::from(text));
                plain
                    .extract::<typed::Config>()
                    .map_err(|_| explain(error, &format!("in the variable {name}")))?;
                plain
            }
        };
    }
    let mut typed: typed::Config = figment.extract().map_err(|error| explain(error, ""))?;
    if !flags.upstream.is_empty() {
        typed.upstream = flags.upstream.iter().cloned().map(Into::into).collect();
    }
    if let Some(listen) = &flags.listen {
        typed.listen.clone_from(listen);
    }
    if let Some(admin) = &flags.admin {
        typed.admin.clone_from(admin);
    }
    if let Some(format) = flags.log_format {
        typed.log.format = format;
    }
    Ok(typed)
}

/// Keys of earlier versions, each with its successor.
const RENAMED: &[(&str, &str)] = &[
    ("node.take_back_after", "node.failback_after"),
    ("calls.patience", "calls.head_wait_timeout"),
    ("subscriptions.pass", "subscriptions.passthrough"),
    ("subscriptions.max_passed", "subscriptions.max_passthrough"),
];

/// Returns the error for an unknown key, with its successor or the nearest known key.
fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>, successor: Option<String>) -> String {
    match (successor, nearest(key, known)) {
        (Some(new), _) => format!("{key}: renamed to {new}"),
        (None, Some(near)) => format!("{key}: no such setting; did you mean {near}?"),
        (None, None) => format!("{key}: no such setting; `headwater default-config` lists all"),
    }
}

/// Returns the settings among the `HEADWATER_…` variables: key, variable, value. An unknown variable is an error,
/// except for those that Kubernetes sets for a service named headwater.
fn known_variables(
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Vec<(&'static str, String, String)>, ConfigError> {
    let known: HashMap<String, &'static str> = keys().map(|key| (variable(key), key)).collect();
    let mut found = Vec::new();
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix("HEADWATER_") else {
            continue;
        };
        match known.get(&name) {
            Some(key) => found.push((*key, name, value)),
            None if rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_") || rest == "CONFIG" => {
            }
            None => {
                let renamed = RENAMED.iter().find(|(old, _)| variable(old) == name);
                let successor = renamed.map(|(_, new)| variable(new));
                return Err(ConfigError(unknown(&name, known.keys().map(String::as_str), successor)));
            }
        }
    }
    Ok(found)
}

fn explain(error: figment::Error, place: &str) -> ConfigError {
    // One line has room for the first of several errors.
    let Some(error) = error.into_iter().next() else {
        return ConfigError("the configuration cannot be read".into());
    };
    let mut path: Vec<String> = error.path.clone();
    let place = if place.is_empty() {
        String::new()
    } else {
        format!(" ({place})")
    };
    match &error.kind {
        Kind::UnknownField(name, _) => {
            if path.last() != Some(name) {
                path.push(name.clone());
            }
            let key = path.join(".");
            let own = keys_of(key.rsplit_once('.').map_or("", |(section, _)| section));
            let mut known: Vec<&str> = keys().collect();
            known.extend(own.iter().map(String::as_str));
            let renamed = RENAMED.iter().find(|(old, _)| *old == key);
            let successor = renamed.map(|(_, new)| (*new).to_owned());
            ConfigError(format!("{}{place}", unknown(&key, known.into_iter(), successor)))
        }
        kind if path.is_empty() => ConfigError(format!("{}{place}", one_line(&kind.to_string()))),
        kind => ConfigError(format!("{}: {}{place}", path.join("."), one_line(&kind.to_string()))),
    }
}

/// Joins the lines of an error without the excerpts of TOML's errors: a line of the file may hold a secret, and errors
/// are logged.
fn one_line(text: &str) -> String {
    let excerpt = |line: &&str| {
        line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ')
            .starts_with('|')
    };
    let words = text
        .lines()
        .filter(|line| !excerpt(line))
        .flat_map(str::split_whitespace);
    words.collect::<Vec<_>>().join(" ")
}

/// Returns the known name with the smallest edit distance to `typed`, at most a third of its length: beyond, a
/// suggestion misleads.
fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &str| strsim::levenshtein(typed, name);
    let near = known.map(|name| (distance(name), name)).min()?;
    (3 * near.0 <= typed.len()).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn with(file: &str, variables: &[(&str, &str)], flags: &Flags) -> Result<typed::Config, String> {
        let mut on_disk = tempfile::NamedTempFile::new().unwrap();
        on_disk.write_all(file.as_bytes()).unwrap();
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let path = on_disk.path().display().to_string();
        load(Some(on_disk.path()), variables, flags).map_err(|error| error.to_string().replace(&path, "FILE"))
    }

    #[test]
    fn flags_come_before_variables_before_the_file_before_defaults() {
        let flags = Flags {
            listen: Some("127.0.0.1:3".into()),
            ..Flags::default()
        };
        let file =
            "listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:1\"\n[limits]\nmax_batch = 7\nmax_body_bytes = \"1 MiB\"";
        let variables = [
            ("HEADWATER_LISTEN", "127.0.0.1:2"),
            ("HEADWATER_ADMIN", "127.0.0.1:2"),
            ("HOME", "/"),
        ];
        let config = with(file, &variables, &flags).unwrap();
        assert_eq!(
            (config.listen.as_str(), config.admin.as_str()),
            ("127.0.0.1:3", "127.0.0.1:2")
        );
        assert_eq!(
            (config.limits.max_batch, config.limits.max_body_bytes.as_u64()),
            (7, 1 << 20)
        );
        assert_eq!(config.limits.max_in_flight, typed::Limits::default().max_in_flight);
    }

    #[test]
    fn every_kind_of_value_can_come_from_a_variable() {
        let variables = [
            ("HEADWATER_UPSTREAM", "ws://a:1, http://b:2"),
            ("HEADWATER_NODE_REQUEST_TIMEOUT", "5s"),
            ("HEADWATER_LIMITS_MAX_MESSAGE_BYTES", "2MiB"),
            ("HEADWATER_HISTORY_VERIFY", "none"),
            ("HEADWATER_LOG_FORMAT", "json"),
            ("HEADWATER_SERVER_ORIGINS", "[\"*\"]"),
            ("HEADWATER_SERVER_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8"),
            ("HEADWATER_METHODS_WEIGHTS", "{eth_call=7}"),
            ("HEADWATER_AUTH_ACCEPT", "[bearer]"),
            ("HEADWATER_SERVICE_HOST", "10.0.0.1"),
            ("HEADWATER_PORT_9546_TCP", "tcp://10.0.0.1:9546"),
        ];
        let config = with("", &variables, &Flags::default()).unwrap();
        assert_eq!(config.upstream, ["ws://a:1", "http://b:2"].map(typed::Upstream::from));
        assert_eq!(config.node.request_timeout.as_secs(), 5);
        assert_eq!(config.limits.max_message_bytes.as_u64(), 2 << 20);
        assert_eq!(config.history.verify, crate::chain::Verify::None);
        assert_eq!(config.server.origins, ["*"]);
        assert_eq!(config.server.trusted_proxies, ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(config.auth.accept, [crate::door::CredentialSource::Bearer]);
        let weights = &config.methods.weights;
        assert_eq!((weights["eth_call"], weights["eth_getLogs"]), (7, 10));
    }

    #[test]
    fn a_node_with_options_needs_no_list() {
        let one = with(
            "upstream = { address = \"ws://a:1\", archive = true }",
            &[],
            &Flags::default(),
        )
        .unwrap();
        let listed = with(
            "upstream = [{ address = \"ws://a:1\", archive = true }]",
            &[],
            &Flags::default(),
        )
        .unwrap();
        assert_eq!((one.upstream.len(), one), (1, listed));
        assert!(with("[server]\norigins = { a = \"b\" }", &[], &Flags::default()).is_err());
    }

    #[test]
    fn plans_and_keys_come_from_sections_of_the_file() {
        let hash = crate::door::ApiKey::random().digest().to_string();
        let file = format!(
            "[plans.partner]\nmax_batch = 7\n[keys.alice]\nhash = \"{hash}\"\nplan = \"partner\"\n[methods.weights]\neth_call = 7"
        );
        let config = with(&file, &[], &Flags::default()).unwrap();
        assert_eq!(config.plans["partner"].max_batch, Some(7));
        assert_eq!(config.keys["alice"].plan.as_deref(), Some("partner"));
        let weights = &config.methods.weights;
        assert_eq!(
            (weights["eth_call"], weights["eth_getLogs"]),
            (7, 10),
            "the others stay"
        );
        for (file, line) in [
            (
                "[plans.partner]\nmax_bach = 7",
                "plans.partner.max_bach: no such setting; did you mean plans.partner.max_batch?",
            ),
            (
                "[keys.alice]\nhash = \"\"\nplans = \"x\"",
                "keys.alice.plans: no such setting; did you mean keys.alice.plan?",
            ),
            ("[keys.alice]\nplan = \"x\"", "keys.alice: missing field `hash`"),
        ] {
            let error = with(file, &[], &Flags::default()).unwrap_err();
            assert!(error.starts_with(line), "{error}");
        }
    }

    #[test]
    fn a_node_may_have_more_to_say_than_its_address() {
        let read = |upstream: &str| with(&format!("upstream = {upstream}"), &[], &Flags::default());
        let config =
            read(r#"["ws://a:1", { address = "ws://b:2", archive = true, methods = ["trace_*"], calls = "spare" }]"#);
        let nodes = crate::config::Config::check(&config.unwrap()).unwrap().upstreams;
        assert!(!nodes[0].archive && nodes[0].methods.match_any("eth_call"));
        assert!(
            nodes[1].archive && nodes[1].methods.match_any("trace_block") && !nodes[1].methods.match_any("eth_call")
        );
        assert_eq!(nodes[1].calls, crate::upstream::Share::Spare);
        for (upstream, line) in [
            (r#"[{ archive = true }]"#, "upstream.0: missing field `address`"),
            (r#"[{ address = "ws://a", calls = "some" }]"#, "upstream.0.calls: "),
            (
                r#"[{ address = "ws://a", archiv = true }]"#,
                "upstream.0.archiv: no such setting; did you mean upstream.0.archive?",
            ),
            ("5", "upstream: "),
        ] {
            let error = read(upstream).unwrap_err();
            assert!(error.starts_with(line), "{error}");
        }
    }

    #[test]
    fn mistakes_are_one_line_that_names_the_key() {
        let error = |file: &str, variables: &[(&str, &str)]| with(file, variables, &Flags::default()).unwrap_err();
        let file = error("[limits]\nmax_conections = 5", &[]);
        assert_eq!(
            file,
            "limits.max_conections: no such setting; did you mean limits.max_connections? (in FILE)"
        );
        let variable = error("", &[("HEADWATER_LISTN", "x")]);
        assert_eq!(
            variable,
            "HEADWATER_LISTN: no such setting; did you mean HEADWATER_LISTEN?"
        );
        for (file, variable, line) in [
            (
                "foo = 1",
                None,
                "foo: no such setting; `headwater default-config` lists all (in FILE)",
            ),
            (
                "[calls]\npatience = \"1s\"",
                None,
                "calls.patience: renamed to calls.head_wait_timeout (in FILE)",
            ),
            (
                "[subscriptions]\npass = []",
                None,
                "subscriptions.pass: renamed to subscriptions.passthrough (in FILE)",
            ),
            (
                "",
                Some("HEADWATER_NODE_TAKE_BACK_AFTER"),
                "HEADWATER_NODE_TAKE_BACK_AFTER: renamed to HEADWATER_NODE_FAILBACK_AFTER",
            ),
        ] {
            let variable = variable.map(|name| (name, "1s"));
            assert_eq!(error(file, variable.as_slice()), line);
        }
        for (file, key) in [
            ("[limits]\nmax_batch = \"many\"", "limits.max_batch: "),
            ("[node]\nrequest_timeout = \"soon\"", "node.request_timeout: "),
            ("[log]\nformat = \"xml\"", "log.format: "),
            ("[limits]\nmax_body_bytes = \"big\"", "limits.max_body_bytes: "),
            ("listen = ", ""),
        ] {
            let line = error(file, &[]);
            assert!(
                line.starts_with(key) && !line.contains('\n') && line.contains("FILE"),
                "{line}"
            );
        }
        let line = error("", &[("HEADWATER_LIMITS_MAX_BATCH", "many")]);
        assert!(
            line.starts_with("limits.max_batch: ") && line.contains("HEADWATER_LIMITS_MAX_BATCH"),
            "{line}"
        );
    }
}
