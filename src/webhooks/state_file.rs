//! State of a webhook on the disk: its position, and the batch that is being delivered.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::file_replacement::{Readers, open, replace_file, with_suffix};

/// Version of the form of the file.
const VERSION: u8 = 1;

/// Longest file that is read, in bytes: a batch of the longest event, with each quote escaped, is shorter.
const MAX_FILE: u64 = 256 << 20;

/// State of a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookState {
    version: u8,
    /// Name of the kind of events, to which the position belongs.
    pub kind: String,
    /// Random part of the ids of all batches, given when the file is first written.
    pub series: String,
    /// Number of the last batch.
    pub sequence: u64,
    /// Position behind the last delivered batch; `None` before there is one.
    pub position: Option<String>,
    /// Batch that may have been sent, and is not known to have been delivered.
    pub batch: Option<HookBatch>,
}

/// Batch of events, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookBatch {
    /// Its number.
    pub sequence: u64,
    /// Number of its events.
    pub events: usize,
    /// Time at which it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Position behind it; `None` if that is where it began.
    pub end: Option<String>,
    /// Body of the request.
    pub body: String,
}

/// File of state that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The system's error.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// The file is damaged, or something else.
    #[error(
        "{0}: not the state of a webhook: restore it from a copy, or move it away to begin with the next block; a \
         stream with fromBlock=0x… begins there instead"
    )]
    Corrupt(PathBuf),
    /// The file is that of other events.
    #[error(
        "{0}: its position is one of {1}, not of {2}: set another file, or move it away to begin with the next block"
    )]
    OtherKind(PathBuf, String, String),
}

impl HookState {
    /// Returns the state of a webhook that has sent nothing.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self {
            version: VERSION,
            kind: kind.to_owned(),
            series: format!("{:016x}", rand::random::<u64>()),
            sequence: 0,
            position: None,
            batch: None,
        }
    }

    /// Reads the state of a webhook with events of this kind; `None` if there is no file.
    ///
    /// # Errors
    /// [`StateFileError`] with the remedy.
    pub fn read(path: &Path, kind: &str) -> Result<Option<Self>, StateFileError> {
        let failed = |why| StateFileError::Io(path.to_owned(), why);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(failed(why)),
        };
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
        let state: Self = serde_json::from_slice(&text).map_err(|_| StateFileError::Corrupt(path.to_owned()))?;
        let fits = state.batch.as_ref().is_none_or(|own| own.sequence == state.sequence);
        if state.version != VERSION || !fits {
            return Err(StateFileError::Corrupt(path.to_owned()));
        }
        if state.kind != kind {
            return Err(StateFileError::OtherKind(path.to_owned(), state.kind, kind.to_owned()));
        }
        Ok(Some(state))
    }

    /// Replaces the file; when it returns, the state is on the disk.
    ///
    /// # Errors
    /// Error of the system.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace_file(path, &serde_json::to_vec(self)?, Readers::Owner)
    }
}

/// Claim of one process to a file of state. The system gives it up when the process ends, in whatever way.
#[derive(Debug)]
pub(super) struct StateLock(#[allow(dead_code, reason = "the lock lasts as long as the file is open")] File);

impl StateLock {
    /// Claims a file of state; `None` while another process has it.
    ///
    /// # Errors
    /// Error of the system.
    pub(super) fn claim(path: &Path) -> io::Result<Option<Self>> {
        // The file of state itself is replaced by another one.
        let path = with_suffix(path, ".lock");
        let file = open(OpenOptions::new().create(true).append(true), &path, Readers::Owner)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(why)) => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> HookState {
        HookState {
            sequence: 7,
            position: Some("b1".into()),
            batch: Some(HookBatch {
                sequence: 7,
                events: 2,
                created_ms: 5,
                end: Some("l1.0".into()),
                body: "{\"data\":[1,\n2]}".into(),
            }),
            ..HookState::new("logs")
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(HookState::read(&path, "logs").unwrap(), None);
        for state in [HookState::new("logs"), state()] {
            state.write(&path).unwrap();
            assert_eq!(HookState::read(&path, "logs").unwrap(), Some(state));
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_with_the_remedy_wherever_it_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let whole = serde_json::to_vec(&state()).unwrap();
        let mut others: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
        others.extend([vec![0; 100], b"{}".to_vec(), b"listen = 1".to_vec()]);
        others.push(
            String::from_utf8(whole.clone())
                .unwrap()
                .replace("\"version\":1", "\"version\":2")
                .into(),
        );
        others.push(
            String::from_utf8(whole)
                .unwrap()
                .replacen("\"sequence\":7", "\"sequence\":8", 1)
                .into(),
        );
        for text in others {
            std::fs::write(&path, &text).unwrap();
            let why = HookState::read(&path, "logs").unwrap_err();
            assert!(matches!(why, StateFileError::Corrupt(_)), "{why}");
            assert!(why.to_string().contains("move it away"), "{why}");
            assert_eq!(std::fs::read(&path).unwrap(), text, "it is left as it was");
        }
    }

    #[test]
    fn a_position_belongs_to_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        state().write(&path).unwrap();
        let why = HookState::read(&path, "newHeads").unwrap_err().to_string();
        assert!(why.contains("one of logs, not of newHeads: set another file"), "{why}");
    }

    #[test]
    fn a_file_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let first = StateLock::claim(&path).unwrap();
        assert!(first.is_some() && StateLock::claim(&path).unwrap().is_none());
        drop(first);
        assert!(StateLock::claim(&path).unwrap().is_some());
    }
}
