//! Checks the settings of webhooks, and reads the files that they name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use url::Url;

use super::{ConfigError, at_least, bad, bytes, positive, typed};
use crate::tls;
use crate::webhooks::{HookLimits, HookSettings, HookState, Secrets, check_host, check_stream};

/// Most webhooks: each has a task, a session and two batches in memory.
const MOST: usize = 100;

/// Longest name: it is a label of metrics.
const LONGEST_NAME: usize = 64;

/// Most bytes of a batch: two of them are in memory, and one in the file of state.
const MAX_BATCH_BYTES: usize = 16 << 20;

pub(super) fn check(typed: &BTreeMap<String, typed::Webhook>) -> Result<Vec<HookSettings>, ConfigError> {
    if typed.len() > MOST {
        return Err(bad(
            "webhooks",
            &format_args!("are {}, must be at most {MOST}", typed.len()),
        ));
    }
    // About a hundred certificates are read, once.
    let mut usual = None;
    let hooks = typed.iter().map(|(name, own)| hook(name, own, &mut usual));
    let hooks: Vec<HookSettings> = hooks.collect::<Result<_, _>>()?;
    let mut files: BTreeMap<PathBuf, String> = BTreeMap::new();
    for hook in &hooks {
        for (key, path) in [("state", &hook.state), ("dead_letters", &hook.dead_letters)] {
            let key = format!("webhooks.{}.{key}", hook.name);
            if let Some(other) = files.insert(path.clone(), key.clone()) {
                return Err(bad(
                    &key,
                    &format_args!("is the file of {other}, too: each needs its own"),
                ));
            }
        }
    }
    Ok(hooks)
}

/// Checks one webhook; `usual` is the trust of those without authorities of their own.
fn hook(
    name: &str,
    own: &typed::Webhook,
    usual: &mut Option<Arc<rustls::ClientConfig>>,
) -> Result<HookSettings, ConfigError> {
    let key = |field: &str| format!("webhooks.{name}.{field}");
    let is_plain = |letter: u8| letter.is_ascii_alphanumeric() || b"-_".contains(&letter);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(is_plain) {
        let why = format!("{name:?} is not a valid webhook name: use letters, digits, - and _, at most {LONGEST_NAME}");
        return Err(bad("webhooks", &why));
    }
    let required = |field: &str, value: &Option<String>| {
        let value = value.as_deref().filter(|value| !value.is_empty());
        value.map(str::to_owned).ok_or_else(|| bad(&key(field), &"is missing"))
    };
    let url = own.url.parse::<Url>().ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    // The value may hold a key.
    let url = url.ok_or_else(|| {
        bad(
            &key("url"),
            &"is not the address of a receiver: use https:// or http://",
        )
    })?;
    if !own.allow_private {
        check_host(&url).map_err(|why| bad(&key("url"), &why))?;
    }
    let stream = required("stream", &own.stream)?;
    let kind = check_stream(&stream).map_err(|why| bad(&key("stream"), &why.message()))?;
    let secret_file = required("secret_file", &own.secret_file)?;
    let secrets = Secrets::read(Path::new(&secret_file))
        .map_err(|why| bad(&key("secret_file"), &format_args!("{secret_file}: {why}")))?;
    let state = PathBuf::from(required("state", &own.state)?);
    // A damaged file is found now and not at the next event.
    HookState::read(&state, kind).map_err(|why| bad(&key("state"), &why))?;
    let dead_letters = own.dead_letters.as_deref().filter(|path| !path.is_empty());
    let dead_letters = dead_letters.map_or_else(
        || {
            let mut path = state.clone().into_os_string();
            path.push(".dead");
            path.into()
        },
        PathBuf::from,
    );
    let time = |field: &str, value: Option<Duration>, default: u64| {
        positive(&key(field), value.unwrap_or(Duration::from_secs(default)))
    };
    let size =
        |field: &str, value: Option<ByteSize>, default: ByteSize| bytes(&key(field), value.unwrap_or(default), 1024);
    let batch_bytes = size("batch_bytes", own.batch_bytes, ByteSize::mib(1))?;
    if batch_bytes > MAX_BATCH_BYTES {
        return Err(bad(&key("batch_bytes"), &"must be at most 16 MiB"));
    }
    let trust = |ca: Option<&Path>| tls::trust(ca).map_err(|why| bad(&key("ca"), &why));
    let ca = own.ca.as_deref().filter(|path| !path.is_empty()).map(Path::new);
    Ok(HookSettings {
        name: name.into(),
        url,
        kind,
        secrets,
        dead_letters,
        max_dead_letters: size("dead_letters_bytes", own.dead_letters_bytes, ByteSize::mib(64))? as u64,
        state,
        stream,
        limits: HookLimits {
            events: at_least(&key("batch"), own.batch.unwrap_or(100), 1)?,
            bytes: batch_bytes,
            retry_max: time("retry_max", own.retry_max, 5 * 60)?,
            retry_for: time("retry_for", own.retry_for, 24 * 60 * 60)?,
        },
        timeout: time("timeout", own.timeout, 15)?,
        allow_private: own.allow_private,
        ca: ca.and_then(|path| std::fs::read(path).ok()),
        trust: match (ca, &usual) {
            (None, Some(usual)) => usual.clone(),
            (None, None) => usual.insert(trust(None)?).clone(),
            (Some(_), _) => trust(ca)?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_names_its_key_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path.to_str().unwrap().to_owned())
        };
        let secret = file("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n");
        let short = file("short", "whsec_c2VjcmV0\n");
        let damaged = file("damaged", "{\"version\":1");
        let path = |name: &str| Some(folder.path().join(name).to_str().unwrap().to_owned());
        let good = typed::Webhook {
            url: "https://hooks.example/?key=hunter2".into(),
            stream: Some("kind=logs".into()),
            secret_file: secret.clone(),
            state: path("state"),
            batch: None,
            batch_bytes: None,
            timeout: None,
            retry_max: None,
            retry_for: None,
            dead_letters: None,
            dead_letters_bytes: None,
            allow_private: false,
            ca: None,
        };
        let refused = |change: &dyn Fn(&mut typed::Webhook), part: &str| {
            let mut own = good.clone();
            change(&mut own);
            let why = check(&[("a".to_owned(), own)].into()).unwrap_err().to_string();
            assert!(why.contains(part), "{why}");
            for secret in ["hunter2", "c2VjcmV0", "MfKQ"] {
                assert!(!why.contains(secret), "{why}");
            }
        };
        let hooks = check(&[("a".to_owned(), good.clone())].into()).unwrap();
        assert_eq!(hooks[0].dead_letters, folder.path().join("state.dead"));
        assert_eq!(hooks, check(&[("a".to_owned(), good.clone())].into()).unwrap());
        refused(
            &|own| own.url = "ftp://a/?key=hunter2".into(),
            "webhooks.a.url: is not the address of a receiver",
        );
        refused(
            &|own| own.url = "http://10.0.0.1/".into(),
            "webhooks.a.url: 10.0.0.1 is not a public address: set allow_private",
        );
        refused(&|own| own.stream = None, "webhooks.a.stream: is missing");
        refused(
            &|own| own.stream = Some("kind=pending".into()),
            "webhooks.a.stream: events of this kind have no positions",
        );
        refused(&|own| own.secret_file = path("none"), "webhooks.a.secret_file: ");
        refused(
            &|own| own.secret_file = short.clone(),
            "must hold one or two lines of whsec_",
        );
        refused(&|own| own.state = damaged.clone(), "webhooks.a.state: ");
        refused(&|own| own.state = None, "webhooks.a.state: is missing");
        refused(&|own| own.batch = Some(0), "webhooks.a.batch: is 0, must be at least 1");
        refused(
            &|own| own.timeout = Some(Duration::ZERO),
            "webhooks.a.timeout: must be longer than 0s",
        );
        refused(
            &|own| own.dead_letters = path("state"),
            "webhooks.a.dead_letters: is the file of webhooks.a.state, too",
        );
        let two = [("a".to_owned(), good.clone()), ("b".to_owned(), good.clone())].into();
        let why = check(&two).unwrap_err().to_string();
        assert!(
            why.starts_with("webhooks.b.state: is the file of webhooks.a.state, too"),
            "{why}"
        );
        let why = check(&[("a b".to_owned(), good.clone())].into())
            .unwrap_err()
            .to_string();
        assert!(why.contains("is not a valid webhook name"), "{why}");
    }
}
