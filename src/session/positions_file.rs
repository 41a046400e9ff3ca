//! Positions of sessions over a graceful restart, in a small file. It is written under another name and is on the disk
//! before it takes its own; it is removed as soon as it was read, for positions of an earlier end would be too old.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
#[cfg(unix)]
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

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
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let text = serde_json::to_vec(saved).map_err(|why| failed(why.into()))?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    // Tokens are of use to other clients of the same account.
    #[cfg(unix)]
    options.mode(0o600);
    let mut file = options.open(&new).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(failed)?;
    folder.sync_all().map_err(failed)
}
