//! Thread that writes the lines, the only place of the access log that may wait for a disk or a pipe.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Destination, Dropped, Line};
use crate::telemetry::ReasonLabel;

/// Bytes of lines that are written at once.
const BLOCK: usize = 64 << 10;

/// Interval between checks if the file was moved.
const LOOK: Duration = Duration::from_secs(1);

/// Permissions of a new file: lines name accounts and networks.
const MODE: u32 = 0o640;

/// Destination that is open.
enum Open {
    Stdout(io::Stdout),
    Stderr(io::Stderr),
    File { path: PathBuf, file: File },
}

pub(super) struct Writer {
    open: Open,
    reopen: Arc<AtomicBool>,
    looked: Instant,
    block: Vec<u8>,
    /// Number of lines in `block`.
    lines: u64,
    /// `true` while writes fail, so that the log has one line about it.
    is_failing: bool,
    dropped: Dropped,
}

impl Writer {
    pub(super) fn open(destination: &Destination, reopen: Arc<AtomicBool>, dropped: Dropped) -> io::Result<Self> {
        let open = match destination {
            Destination::Stdout => Open::Stdout(io::stdout()),
            Destination::Stderr => Open::Stderr(io::stderr()),
            Destination::File(path) => Open::File {
                path: path.clone(),
                file: append(path)?,
            },
        };
        Ok(Self {
            open,
            reopen,
            looked: Instant::now(),
            block: Vec::with_capacity(BLOCK),
            lines: 0,
            is_failing: false,
            dropped,
        })
    }

    /// Writes lines until all senders are gone. A block is written when it is full or no line waits.
    pub(super) fn run(mut self, waiting: &Receiver<Line>) {
        while let Ok(line) = waiting.recv() {
            self.add(&line);
            while self.block.len() < BLOCK
                && let Ok(line) = waiting.try_recv()
            {
                self.add(&line);
            }
            self.follow_rotation();
            self.write();
        }
    }

    fn add(&mut self, line: &Line) {
        let begin = self.block.len();
        if serde_json::to_writer(&mut self.block, line).is_err() {
            self.block.truncate(begin);
            self.count(1);
            return;
        }
        self.block.push(b'\n');
        self.lines += 1;
    }

    fn write(&mut self) {
        let written = match &mut self.open {
            Open::Stdout(out) => out.write_all(&self.block).and_then(|()| out.flush()),
            Open::Stderr(out) => out.write_all(&self.block),
            Open::File { file, .. } => file.write_all(&self.block),
        };
        match written {
            Ok(()) if self.is_failing => {
                info!("the access log can be written again");
                self.is_failing = false;
            }
            Ok(()) => {}
            Err(why) => {
                self.count(self.lines);
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!("the access log cannot be written: {why}; lines are dropped until it can");
                }
            }
        }
        self.block.clear();
        self.lines = 0;
    }

    /// Opens the file anew if that was requested, or if its path names another file now, or none. If it cannot be
    /// opened, the old one stays.
    fn follow_rotation(&mut self) {
        let Open::File { path, file } = &mut self.open else {
            return;
        };
        let asked = self.reopen.swap(false, Ordering::Relaxed);
        if !asked && self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        if !asked && is_at(file, path) {
            return;
        }
        match append(path) {
            Ok(new) => *file = new,
            Err(why) => warn!(
                "cannot reopen the access log {}: {why}; the old file stays open",
                path.display()
            ),
        }
    }

    fn count(&self, lines: u64) {
        self.dropped
            .get_or_create(&ReasonLabel { reason: "write" })
            .inc_by(lines);
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

/// Checks if the open file is the one at this path.
fn is_at(file: &File, path: &Path) -> bool {
    let same = || {
        let (own, there) = (file.metadata().ok()?, std::fs::metadata(path).ok()?);
        Some((own.dev(), own.ino()) == (there.dev(), there.ino()))
    };
    same().unwrap_or(false)
}
