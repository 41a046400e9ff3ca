//! Reads the configuration again, on SIGHUP or when a file changes, and puts in force what it says about clients, and the
//! certificate that they are shown.
//!
//! A configuration that cannot be used is refused as a whole, and the old one stays. Files are looked at by the second
//! rather than watched: that is the same on every system and in every container, whether a file is written, replaced, or a
//! symbolic link is pointed elsewhere as Kubernetes does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::config::{self, Config, ConfigError, Flags, typed};
use crate::door::Door;
use crate::telemetry::{Metrics, OutcomeLabel};
use crate::tls::Certificate;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Where the configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `HEADWATER_…`.
    pub variables: Vec<(String, String)>,
    /// Flags.
    pub flags: Flags,
}

impl Source {
    /// Reads it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(&self) -> Result<(typed::Config, Config), ConfigError> {
        let typed = config::load(self.file.as_deref(), self.variables.iter().cloned(), &self.flags)?;
        let config = Config::check(&typed)?;
        Ok((typed, config))
    }

    /// The files that it is made of, and how they are now.
    fn look(&self, typed: &typed::Config) -> Vec<Look> {
        let (auth, tls) = (&typed.auth, &typed.tls);
        let named = [
            &auth.jwt_secret_file,
            &auth.jwks_file,
            &tls.certificate,
            &tls.key,
            &tls.client_ca,
        ];
        let named = named.into_iter().filter(|name| !name.is_empty()).map(Path::new);
        self.file.as_deref().into_iter().chain(named).map(Look::at).collect()
    }
}

/// What tells that a file is another than before.
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

/// Follows a source.
#[derive(Debug)]
pub struct Follower {
    source: Source,
    /// What holds, but for what waits for a restart.
    typed: typed::Config,
    seen: Vec<Look>,
    /// How the files were at the last look, where that is another way: half written ones change again.
    changing: Option<Vec<Look>>,
    hangup: Signal,
}

impl Follower {
    /// Hears SIGHUP from now on, which ends a process that does not. `typed` is what the source said.
    ///
    /// # Errors
    /// The system's.
    pub fn new(source: Source, typed: typed::Config) -> io::Result<Self> {
        Ok(Self {
            seen: source.look(&typed),
            changing: None,
            hangup: signal(SignalKind::hangup())?,
            source,
            typed,
        })
    }

    /// Puts in force what it says, for ever.
    pub async fn run(
        mut self,
        services: Arc<impl AsRef<Door>>,
        certificate: Option<Arc<Certificate>>,
        metrics: Arc<Metrics>,
    ) {
        let mut round = tokio::time::interval(LOOK);
        loop {
            let asked = tokio::select! {
                heard = self.hangup.recv() => heard.is_some(),
                _ = round.tick() => false,
            };
            let now = self.source.look(&self.typed);
            if !asked && (now == self.seen || self.changing.as_ref() != Some(&now)) {
                self.changing = Some(now);
                continue;
            }
            (self.seen, self.changing) = (now, None);
            let outcome = match self.source.read() {
                Ok((typed, config)) => {
                    (*services).as_ref().exchange(config.door);
                    // A port that speaks TLS goes on doing so, and one that does not, too.
                    if let (Some(shown), Some(fresh)) = (&certificate, config.server.tls) {
                        shown.store(fresh);
                    }
                    self.applied(typed);
                    "applied"
                }
                Err(why) => {
                    error!("the configuration stays as it was: {why}");
                    "refused"
                }
            };
            metrics.config_reloads.get_or_create(&OutcomeLabel { outcome }).inc();
        }
    }

    fn applied(&mut self, typed: typed::Config) {
        let settled = config::settled(&self.typed, &typed);
        if !settled.is_empty() {
            warn!("these settings change with a restart only: {}", settled.join(", "));
        }
        info!("the configuration was read again");
        if (&typed.auth, &typed.tls) != (&self.typed.auth, &self.typed.tls) {
            // Other files may be named now.
            (self.typed.auth, self.typed.tls) = (typed.auth, typed.tls);
            self.seen = self.source.look(&self.typed);
        }
    }
}
