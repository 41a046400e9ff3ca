//! Replacement of a small file as a whole: the new text is on the disk under another name before it takes the file's, so a
//! crash leaves the old file or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
#[cfg(unix)]
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Users who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// The owner.
    Owner,
    /// Everybody whom the process's umask lets read its files.
    Usual,
}

/// Replaces a file. When it returns, the new text and its name are on the disk.
///
/// # Errors
/// Error of the system; the old file is untouched then, unless the folder cannot be flushed.
pub(crate) fn replace_file(path: &Path, text: &[u8], readers: Readers) -> io::Result<()> {
    let new = with_suffix(path, ".new");
    // A file that a crash left there keeps its mode.
    match fs::remove_file(&new) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut file = open(OpenOptions::new().write(true).create_new(true), &new, readers)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_folder(path)
}

/// Opens a file with these options; one that is created has these readers.
///
/// # Errors
/// Error of the system.
pub(crate) fn open(options: &mut OpenOptions, path: &Path, readers: Readers) -> io::Result<File> {
    #[cfg(unix)]
    if readers == Readers::Owner {
        options.mode(0o600);
    }
    options.open(path)
}

/// Flushes the folder of a file, which makes its name last.
///
/// # Errors
/// Error of the system.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Appends to the whole name of a file, so that the result is another name whatever its extension is.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_under_another_name_whatever_its_own_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.new");
        fs::write(&path, "old").unwrap();
        // The other name cannot be written: the file must be untouched.
        let fresh = folder.path().join("x.new.new");
        fs::create_dir(&fresh).unwrap();
        assert!(replace_file(&path, b"fresh", Readers::Usual).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        fs::remove_dir(&fresh).unwrap();
        replace_file(&path, b"fresh", Readers::Usual).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "fresh");
        assert!(!fresh.exists());
    }

    #[test]
    fn a_secret_file_is_its_owners_even_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions");
        // A crash left the other name behind, open to all.
        let left = with_suffix(&path, ".new");
        fs::write(&left, "half").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        replace_file(&path, b"secret", Readers::Owner).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
