//! Positions of sessions over a graceful restart, in a small file. It is removed as soon as it was read, for positions of an
//! earlier end would be too old.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::file_replacement::{Readers, replace_file};
use crate::subscription::SavedSessions;

/// Longest file that is read, in bytes: that of `memory.sessions` at its default is a tenth of it.
const MAX_FILE: u64 = 256 << 20;

/// File of positions that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PositionsFileError {
    /// The system's error.
    #[error("sessions.file: {0}: {1}")]
    Io(PathBuf, io::Error),
    /// The file is something else.
    #[error("sessions.file: {0}: not positions of sessions: move the file away, or set another")]
    Foreign(PathBuf),
}

/// Reads the positions of the process before, and removes the file; `None` if there is no file.
///
/// # Errors
/// [`PositionsFileError`] if the file cannot be read or removed, or holds something else.
pub fn take_positions(path: &Path) -> Result<Option<SavedSessions>, PositionsFileError> {
    let failed = |why| PositionsFileError::Io(path.to_owned(), why);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(failed(why)),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
    let saved = serde_json::from_slice(&text).map_err(|_| PositionsFileError::Foreign(path.to_owned()))?;
    fs::remove_file(path).map_err(failed)?;
    Ok(Some(saved))
}

/// Writes positions for the next process.
///
/// # Errors
/// [`PositionsFileError::Io`] if the file cannot be written.
pub fn write_positions(path: &Path, saved: &SavedSessions) -> Result<(), PositionsFileError> {
    let failed = |why| PositionsFileError::Io(path.to_owned(), why);
    let text = serde_json::to_vec(saved).map_err(|why| failed(why.into()))?;
    // Tokens are of use to other clients of the same account.
    replace_file(path, &text, Readers::Owner).map_err(failed)
}
