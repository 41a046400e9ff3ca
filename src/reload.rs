//! Reads the configuration again, on SIGHUP or when a file changes, and puts in force what it says about clients.
//!
//! A configuration that cannot be used is refused as a whole, and the old one stays. Files are looked at by the second
//! rather than watched: that is the same on every system and in every container, whether a file is written, replaced, or a
//! symbolic link is pointed elsewhere as Kubernetes does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::config::{self, Config, ConfigError, Flags, typed};
use crate::door::Door;
use crate::telemetry::{Metrics, OutcomeLabel};

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
        let named = [&typed.auth.jwt_secret_file, &typed.auth.jwks_file];
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

/// Follows a source, for ever.
pub async fn follow(source: Source, mut typed: typed::Config, door: Arc<impl AsRef<Door>>, metrics: Arc<Metrics>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(why) => {
            error!("SIGHUP cannot be heard, so the configuration is not read again: {why}");
            return std::future::pending().await;
        }
    };
    let mut seen = source.look(&typed);
    let mut round = tokio::time::interval(LOOK);
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            _ = round.tick() => false,
        };
        let now = source.look(&typed);
        if !asked && now == seen {
            continue;
        }
        seen = now;
        let outcome = match source.read() {
            Ok((new, config)) => {
                door.as_ref().as_ref().exchange(config.door);
                let settled = config::settled(&typed, &new);
                if !settled.is_empty() {
                    warn!("these settings change with a restart only: {}", settled.join(", "));
                }
                info!("the configuration was read again");
                // Files that it names now are looked at from now on; what waits for a restart is named each time.
                typed = typed::Config {
                    limits: new.limits,
                    plans: new.plans,
                    auth: new.auth,
                    keys: new.keys,
                    ..typed
                };
                seen = source.look(&typed);
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
