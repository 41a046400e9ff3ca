//! File of batches that were given up: a line of JSON each. A full file takes the place of the one before it, so two of
//! them bound what is kept.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use serde::Serialize;

use super::state_file::HookBatch;
use crate::file_replacement::{Readers, open, sync_folder, with_suffix};

/// Batch that was given up.
#[derive(Debug, Serialize)]
pub(super) struct DeadLetter<'a> {
    pub webhook: &'a str,
    pub id: &'a str,
    pub attempts: u32,
    pub error: &'a str,
    /// Number of events.
    pub events: usize,
    /// Time at which the batch was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Body of the request, as it was sent.
    pub body: &'a str,
}

impl<'a> DeadLetter<'a> {
    pub(super) fn new(webhook: &'a str, id: &'a str, batch: &'a HookBatch, attempts: u32, error: &'a str) -> Self {
        Self {
            webhook,
            id,
            attempts,
            error,
            events: batch.events,
            created_ms: batch.created_ms,
            body: &batch.body,
        }
    }
}

/// Appends a line; when it returns, the line is on the disk. Returns `true` if older lines were removed for it.
///
/// # Errors
/// Error of the system.
pub(super) fn append(path: &Path, letter: &DeadLetter<'_>, max_bytes: u64) -> io::Result<bool> {
    let mut line = serde_json::to_vec(letter)?;
    line.push(b'\n');
    let mut removed = false;
    let length = fs::metadata(path).map_or(0, |own| own.len());
    if length > 0 && length + line.len() as u64 > max_bytes {
        let old = with_suffix(path, ".old");
        removed = old.exists();
        fs::rename(path, old)?;
    }
    let mut file = open(
        OpenOptions::new().create(true).read(true).append(true),
        path,
        Readers::Owner,
    )?;
    if file.metadata()?.len() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if &last != b"\n" {
            // A crash left half a line: it stays, on a line of its own.
            line.insert(0, b'\n');
        }
    }
    file.write_all(&line)?;
    file.sync_all()?;
    sync_folder(path)?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: &str) -> DeadLetter<'_> {
        DeadLetter {
            webhook: "a",
            id,
            attempts: 3,
            error: "HTTP 500",
            events: 1,
            created_ms: 9,
            body: "{\n}",
        }
    }

    #[test]
    fn letters_are_lines_even_behind_half_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead");
        assert!(!append(&path, &letter("1"), 10_000).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        let line =
            r#"{"webhook":"a","id":"1","attempts":3,"error":"HTTP 500","events":1,"created_ms":9,"body":"{\n}"}"#;
        assert_eq!(text, format!("{line}\n"));
        fs::write(&path, &text[..20]).unwrap();
        append(&path, &letter("2"), 10_000).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().nth(1).unwrap().contains("\"id\":\"2\""));
    }

    #[test]
    fn the_files_are_bounded_and_a_loss_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead");
        let ids: Vec<String> = (0..9).map(|number| number.to_string()).collect();
        // Two lines fit.
        let removed: Vec<bool> = ids.iter().map(|id| append(&path, &letter(id), 200).unwrap()).collect();
        assert_eq!(removed, [false, false, false, false, true, false, true, false, true]);
        for path in [path.clone(), with_suffix(&path, ".old")] {
            assert!(fs::metadata(path).unwrap().len() <= 200);
        }
        let newest = fs::read_to_string(&path).unwrap() + &fs::read_to_string(with_suffix(&path, ".old")).unwrap();
        assert!(ids[6..].iter().all(|id| newest.contains(&format!("\"id\":\"{id}\""))));
    }
}
