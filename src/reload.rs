//! Reloads the configuration, on SIGHUP or when a file changes, and applies its settings about clients, its upstreams, its
//! webhooks and its TLS certificate.
//!
//! A configuration that is not valid is refused as a whole, and the old one stays in force. Files are polled every
//! second rather than watched: polling works alike on every system and in every container, if a file is written,
//! replaced, or reached by a symbolic link that is pointed elsewhere, as Kubernetes does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::config::{self, Config, ConfigError, Flags, typed};
use crate::door::Door;
use crate::telemetry::{Event, OutcomeLabel};
use crate::tls::Certificate;
use crate::upstream::{Node, Pool, Reshaped};
use crate::webhooks::{HooksReshaped, Webhooks};

/// Interval between polls of the files.
const LOOK: Duration = Duration::from_secs(1);

/// Sources of the configuration.
#[derive(Clone, Debug, Default)]
pub struct ConfigSource {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Variables `HEADWATER_…`: name and value.
    pub variables: Vec<(String, String)>,
    /// Command-line flags.
    pub flags: Flags,
}

impl ConfigSource {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// Returns a [`ConfigError`] if a source cannot be read or a setting is not valid.
    pub fn read(&self) -> Result<(typed::Config, Config), ConfigError> {
        let typed = config::load(self.file.as_deref(), self.variables.iter().cloned(), &self.flags)?;
        let config = Config::check(&typed)?;
        Ok((typed, config))
    }

    /// Returns the state of the configuration file and of the files that it names.
    fn look(&self, typed: &typed::Config) -> Vec<Look> {
        let (auth, tls) = (&typed.auth, &typed.tls);
        let of_hooks = typed.webhooks.values().flat_map(|own| [&own.secret_file, &own.ca]);
        let of_hooks = of_hooks.flatten();
        let named = [
            &auth.jwt_secret_file,
            &auth.jwks_file,
            &tls.certificate,
            &tls.key,
            &tls.client_ca,
        ];
        let named = named
            .into_iter()
            .chain(of_hooks)
            .filter(|name| !name.is_empty())
            .map(Path::new);
        self.file.as_deref().into_iter().chain(named).map(Look::at).collect()
    }
}

/// Warns of files with secrets that other users can read or change.
fn warn_of_exposed(typed: &typed::Config) {
    for (key, path, mode) in exposed(typed) {
        warn!("{key}: any user of this machine can read or change {path} (mode {mode:04o}): chmod o= {path}");
    }
}

/// Returns the setting, path and mode of each file that holds a secret and is open to others.
fn exposed(typed: &typed::Config) -> Vec<(&'static str, &str, u32)> {
    use std::os::unix::fs::PermissionsExt as _;
    let secrets = [
        ("admin_token_file", &typed.admin_token_file),
        ("auth.jwt_secret_file", &typed.auth.jwt_secret_file),
        ("tls.key", &typed.tls.key),
    ];
    let of_hooks = typed.webhooks.values().filter_map(|own| own.secret_file.as_ref());
    let secrets = secrets
        .into_iter()
        .chain(of_hooks.map(|path| ("webhooks.NAME.secret_file", path)));
    let open = secrets.filter_map(|(key, path)| {
        let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o7777;
        (mode & 0o007 != 0).then_some((key, path.as_str(), mode))
    });
    open.collect()
}

/// The state of a file, to detect a change: modification time, length in bytes, and inode; `None` if unreadable.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look(Option<(SystemTime, u64, u64)>);

impl Look {
    fn at(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let read = || {
            let metadata = std::fs::metadata(path)?;
            Ok::<_, std::io::Error>((metadata.modified()?, metadata.len(), metadata.ino()))
        };
        Self(read().ok())
    }
}

/// Result of a reload, or of a check: the settings that wait for a restart.
pub type Reloaded = Result<Vec<String>, ConfigError>;

/// Request to the task that follows the configuration.
#[derive(Debug)]
enum ReloadRequest {
    /// Read it and apply it.
    Apply(oneshot::Sender<Reloaded>),
    /// Read it and check it.
    Check(oneshot::Sender<Reloaded>),
}

/// Most requests that wait.
const REQUESTS: usize = 8;

/// Handle to the task that follows the configuration.
#[derive(Clone, Debug)]
pub struct ReloadHandle(mpsc::Sender<ReloadRequest>);

impl ReloadHandle {
    /// Reads the configuration and applies it. `None` if the task has ended.
    pub async fn apply(&self) -> Option<Reloaded> {
        self.ask(ReloadRequest::Apply).await
    }

    /// Reads the configuration and checks it, without effect. `None` if the task has ended.
    pub async fn check(&self) -> Option<Reloaded> {
        self.ask(ReloadRequest::Check).await
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<Reloaded>) -> ReloadRequest) -> Option<Reloaded> {
        let (sender, answer) = oneshot::channel();
        self.0.send(request(sender)).await.ok()?;
        answer.await.ok()
    }
}

/// A source, and the task that applies its changes.
#[derive(Debug)]
pub struct Follower {
    source: ConfigSource,
    /// The settings at the start, with `auth`, `tls`, `upstream` and `webhooks` as last reloaded.
    typed: typed::Config,
    seen: Vec<Look>,
    /// The files at the last poll. A change is applied once two polls agree: a half-written file changes again.
    changing: Option<Vec<Look>>,
    hangup: Signal,
    handle: ReloadHandle,
    requests: mpsc::Receiver<ReloadRequest>,
}

impl Follower {
    /// Listens for SIGHUP, which would otherwise end the process. `typed` is the configuration as read from `source`.
    ///
    /// # Errors
    /// Returns the system's error if no signal handler can be installed.
    pub fn new(source: ConfigSource, typed: typed::Config) -> io::Result<Self> {
        warn_of_exposed(&typed);
        let (handle, requests) = mpsc::channel(REQUESTS);
        Ok(Self {
            handle: ReloadHandle(handle),
            requests,
            seen: source.look(&typed),
            changing: None,
            hangup: signal(SignalKind::hangup())?,
            source,
            typed,
        })
    }

    /// Returns a handle to the task.
    #[must_use]
    pub fn handle(&self) -> ReloadHandle {
        self.handle.clone()
    }

    /// Applies changes of the source; never returns.
    pub async fn run(
        mut self,
        services: Arc<impl AsRef<Door>>,
        certificate: Option<Arc<Certificate>>,
        pool: Arc<Pool>,
        webhooks: Arc<Webhooks>,
    ) {
        let metrics = pool.metrics();
        let mut round = tokio::time::interval(LOOK);
        loop {
            let (asked, reply) = tokio::select! {
                heard = self.hangup.recv() => {
                    metrics.recorder.reopen();
                    (heard.is_some(), None)
                }
                // There is a sender as long as the task runs: its own.
                Some(request) = self.requests.recv() => match request {
                    ReloadRequest::Apply(reply) => (true, Some(reply)),
                    ReloadRequest::Check(reply) => {
                        let checked = self.read();
                        drop(reply.send(checked.map(|(typed, _)| config::needs_restart(&self.typed, &typed))));
                        continue;
                    }
                },
                _ = round.tick() => (false, None),
            };
            let now = self.source.look(&self.typed);
            if !asked && (now == self.seen || self.changing.as_ref() != Some(&now)) {
                self.changing = Some(now);
                continue;
            }
            (self.seen, self.changing) = (now, None);
            let (outcome, reloaded) = match self.read() {
                Ok((typed, config)) => {
                    (*services).as_ref().exchange(config.door);
                    self.reshape(&pool, &config.upstreams);
                    let HooksReshaped { begun, ended } = webhooks.reshape(config.webhooks);
                    if begun + ended > 0 {
                        info!("webhooks: {begun} started, {ended} stopped");
                    }
                    // A reload turns TLS neither on nor off.
                    if let (Some(shown), Some(fresh)) = (&certificate, config.server.tls) {
                        shown.store(fresh);
                    }
                    let needs_restart = self.applied(typed);
                    metrics.journal.enter(Event::Reloaded {
                        needs_restart: needs_restart.clone(),
                    });
                    ("applied", Ok(needs_restart))
                }
                Err(why) => {
                    error!("the configuration was not reloaded, the previous one stays in force: {why}");
                    metrics.journal.enter(Event::ReloadRefused { error: why.to_string() });
                    ("refused", Err(why))
                }
            };
            if let Some(reply) = reply {
                drop(reply.send(reloaded));
            }
            metrics.config_reloads.get_or_create(&OutcomeLabel { outcome }).inc();
        }
    }

    /// Reads and checks the configuration, and checks that it can replace the one in force.
    fn read(&self) -> Result<(typed::Config, Config), ConfigError> {
        let (typed, config) = self.source.read()?;
        config::check_reload(&self.typed, &typed)?;
        Ok((typed, config))
    }

    /// Applies the list of upstreams. The embedded devnet, if that is the upstream, stays until a restart.
    fn reshape(&self, pool: &Pool, nodes: &[Node]) {
        if self.typed.upstream.is_empty() {
            return;
        }
        let Reshaped {
            joined,
            leaving,
            changed,
        } = pool.reshape(nodes);
        if joined + leaving + changed > 0 {
            info!("upstreams: {joined} added, {leaving} being removed, {changed} changed in place");
        }
    }

    /// Takes note of the settings in force; returns the changed ones that wait for a restart.
    fn applied(&mut self, typed: typed::Config) -> Vec<String> {
        warn_of_exposed(&typed);
        let needs_restart = config::needs_restart(&self.typed, &typed);
        if !needs_restart.is_empty() {
            warn!(
                "these settings take effect only after a restart: {}",
                needs_restart.join(", ")
            );
        }
        info!("the configuration was reloaded");
        if !self.typed.upstream.is_empty() {
            self.typed.upstream.clone_from(&typed.upstream);
        }
        let named = |own: &typed::Config| (own.auth.clone(), own.tls.clone(), own.webhooks.clone());
        if named(&typed) != named(&self.typed) {
            // The new settings may name other files.
            (self.typed.auth, self.typed.tls, self.typed.webhooks) = named(&typed);
            self.seen = self.source.look(&self.typed);
        }
        needs_restart
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_that_others_can_read_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let mut typed = typed::Config::default();
        assert!(exposed(&typed).is_empty(), "there are none");
        (typed.auth.jwt_secret_file, typed.tls.key) = (path.to_owned(), "/nowhere".to_owned());
        for (mode, is_open) in [
            (0o600, false),
            (0o640, false),
            (0o644, true),
            (0o604, true),
            (0o602, true),
            (0o400, false),
        ] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            let expect = is_open.then_some(("auth.jwt_secret_file", path, mode));
            assert_eq!(exposed(&typed), Vec::from_iter(expect), "{mode:o}");
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
        typed.tls.key = path.to_owned();
        assert_eq!(exposed(&typed).len(), 2);
    }
}
