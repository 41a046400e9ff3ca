//! Settings of a webhook.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::hook::HookLimits;
use super::signature::Secrets;

/// One webhook.
#[derive(Clone, Debug)]
pub struct HookSettings {
    /// Name in the settings.
    pub name: Arc<str>,
    /// Address of the receiver.
    pub url: Url,
    /// Query of `/events` that selects the stream.
    pub stream: String,
    /// Name of the kind of events.
    pub kind: &'static str,
    /// Secrets that sign.
    pub secrets: Secrets,
    /// File of the position.
    pub state: PathBuf,
    /// File of batches that were given up.
    pub dead_letters: PathBuf,
    /// Length of that file, in bytes, at which it takes the place of the one before it.
    pub max_dead_letters: u64,
    /// Bounds of batches and retries.
    pub limits: HookLimits,
    /// Time limit of one request.
    pub timeout: Duration,
    /// `true` if the receiver may have an address that is not public.
    pub allow_private: bool,
    /// Text of the file of certificate authorities.
    pub ca: Option<Vec<u8>>,
    /// Certificate authorities that are trusted, those of the system among them.
    pub trust: Arc<rustls::ClientConfig>,
}

impl PartialEq for HookSettings {
    fn eq(&self, other: &Self) -> bool {
        // The system's authorities are read at a start only.
        let of = |own: &Self| {
            (
                own.name.clone(),
                own.url.clone(),
                own.stream.clone(),
                own.state.clone(),
                own.dead_letters.clone(),
                own.max_dead_letters,
                own.limits,
                own.timeout,
                (own.allow_private, own.ca.clone()),
            )
        };
        of(self) == of(other) && self.secrets == other.secrets
    }
}
