//! Usage of each account by hour, over 30 days or 50,000 rows, whichever is less: in memory, and in a small file if one
//! is set.
//!
//! The file has one line of JSON for each account and hour. It is replaced as a whole: a crash leaves the old one. A file that
//! is damaged nevertheless is set aside.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::views::{UsageQuery, UsageRow};
use crate::door::UsageSums;
use crate::file_replacement::{Readers, replace_file, with_suffix};

/// Length of an hour, in seconds.
const HOUR: u64 = 3600;

/// Hours in memory: 30 days.
const HOURS: u64 = 30 * 24;

/// Hours of an answer, if the query has none.
const DEFAULT_HOURS: u64 = 24;

/// Most accounts of an hour; further ones are counted together.
const MAX_ACCOUNTS: usize = 1000;

/// Most rows in memory; beyond them the oldest hour is dropped, so that many accounts have fewer than 30 days.
const MAX_ROWS: usize = 50_000;

/// Longest file that is read, in bytes: 50,000 rows whose names are all escapes are shorter.
const MAX_FILE: u64 = 64 << 20;

/// First bytes of each row of the file.
const ROW_BEGINS: &[u8] = b"{\"hour\":";

/// Most rows of an answer.
const MAX_ANSWER: usize = 10_000;

/// Longest name of an account, in characters.
const MAX_NAME: usize = 96;

/// Name of the accounts beyond [`MAX_ACCOUNTS`].
const OTHERS: &str = "others";

/// File of usage that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum UsageFileError {
    /// The system's error.
    #[error("admin_usage_file: {0}: {1}")]
    Io(PathBuf, io::Error),
    /// The file is something else.
    #[error("admin_usage_file: {0}: line {1} is not a usage record: move the file away, or set another")]
    Foreign(PathBuf, usize),
}

/// Usage by hour and account.
#[derive(Debug, Default)]
pub struct UsageLog {
    path: Option<PathBuf>,
    hours: BTreeMap<u64, BTreeMap<String, UsageSums>>,
    rows: usize,
}

impl UsageLog {
    /// Opens the log in this file, or in memory only.
    ///
    /// # Errors
    /// Returns a [`UsageFileError`] if the file cannot be read, or holds something else.
    pub fn open(path: Option<&Path>) -> Result<Self, UsageFileError> {
        path.map_or_else(|| Ok(Self::default()), Self::read)
    }

    fn read(path: &Path) -> Result<Self, UsageFileError> {
        let failed = |why| UsageFileError::Io(path.to_owned(), why);
        let mut text = Vec::new();
        match File::open(path) {
            Ok(file) => drop(file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(failed(why)),
        }
        let mut log = Self {
            path: Some(path.to_owned()),
            ..Self::default()
        };
        match log.take_rows(&text) {
            Ok(()) => {}
            // A file that begins as no row does belongs to another program; a crash can leave zeros.
            Err(line) if !text.starts_with(ROW_BEGINS) && text.iter().any(|byte| *byte != 0) => {
                return Err(UsageFileError::Foreign(path.to_owned(), line));
            }
            Err(line) => {
                let aside = with_suffix(path, ".bad");
                fs::rename(path, &aside).map_err(failed)?;
                warn!(
                    "admin_usage_file: {}: line {line} is not a usage record: moved to {}; the rows before it are kept",
                    path.display(),
                    aside.display()
                );
            }
        }
        Ok(log)
    }

    /// Adds the rows of a file; returns the number of the first line that is none.
    fn take_rows(&mut self, text: &[u8]) -> Result<(), usize> {
        let lines = text.strip_suffix(b"\n").unwrap_or(text).split(|byte| *byte == b'\n');
        for (number, line) in lines.enumerate().filter(|_| !text.is_empty()) {
            let row: UsageRow = serde_json::from_slice(line).map_err(|_| number + 1)?;
            let sums = UsageSums {
                requests: row.requests,
                refusals: row.refusals,
                notifications: row.notifications,
                bytes: row.bytes,
            };
            self.add_to(row.hour / HOUR, &row.account, sums);
            self.drop_oldest(0);
        }
        Ok(())
    }

    /// Returns the file, and the text to be written to it.
    pub(super) fn file(&self) -> Option<(PathBuf, String)> {
        Some((self.path.clone()?, self.text()))
    }

    fn text(&self) -> String {
        let rows = self.hours.iter().flat_map(|(hour, accounts)| {
            let rows = accounts.iter();
            rows.map(|(account, sums)| row(*hour, account, *sums))
        });
        let lines = rows.filter_map(|row| serde_json::to_string(&row).ok());
        lines.fold(String::new(), |text, line| text + &line + "\n")
    }

    /// Adds usage to the current hour; `now` is in seconds since 1970.
    pub(super) fn add(&mut self, usage: HashMap<String, UsageSums>, now: u64) {
        let hour = now / HOUR;
        for (account, sums) in usage {
            self.add_to(hour, &account, sums);
        }
        self.drop_oldest((hour + 1).saturating_sub(HOURS));
    }

    /// Drops the hours before `oldest`, and further ones while there are too many rows.
    fn drop_oldest(&mut self, oldest: u64) {
        while self.hours.keys().next().is_some_and(|first| *first < oldest) || self.rows > MAX_ROWS {
            let Some((_, dropped)) = self.hours.pop_first() else {
                break;
            };
            self.rows -= dropped.len();
        }
    }

    fn add_to(&mut self, hour: u64, account: &str, sums: UsageSums) {
        let accounts = self.hours.entry(hour).or_default();
        let mut name: String = account.chars().take(MAX_NAME).collect();
        if accounts.len() >= MAX_ACCOUNTS && !accounts.contains_key(&name) {
            OTHERS.clone_into(&mut name);
        }
        let before = accounts.len();
        *accounts.entry(name).or_default() += sums;
        self.rows += accounts.len() - before;
    }

    /// Returns the rows that a query asks for, newest hour first; `now` is in seconds since 1970.
    pub(super) fn rows(&self, query: &UsageQuery, now: u64) -> Vec<UsageRow> {
        let hours = query.hours.unwrap_or(DEFAULT_HOURS).clamp(1, HOURS);
        let first = (now / HOUR + 1).saturating_sub(hours);
        let is_asked = |account: &String| query.account.as_ref().is_none_or(|asked| asked == account);
        let rows = self.hours.range(first..).rev().flat_map(|(hour, accounts)| {
            let accounts = accounts.iter().filter(|(account, _)| is_asked(account));
            accounts.map(|(account, sums)| (*hour, account, *sums))
        });
        if !query.total {
            return rows
                .take(MAX_ANSWER)
                .map(|(hour, account, sums)| row(hour, account, sums))
                .collect();
        }
        let mut totals: BTreeMap<&String, UsageSums> = BTreeMap::new();
        for (_, account, sums) in rows {
            *totals.entry(account).or_default() += sums;
        }
        let mut totals: Vec<UsageRow> = totals
            .into_iter()
            .map(|(account, sums)| row(first, account, sums))
            .collect();
        totals.sort_by_key(|row| std::cmp::Reverse(row.bytes));
        totals.truncate(MAX_ANSWER);
        totals
    }
}

fn row(hour: u64, account: &str, sums: UsageSums) -> UsageRow {
    UsageRow {
        hour: hour * HOUR,
        account: account.to_owned(),
        requests: sums.requests,
        refusals: sums.refusals,
        notifications: sums.notifications,
        bytes: sums.bytes,
    }
}

/// Writes the text of the file; a failure is logged. The caller sees to it that there is one writer at a time.
pub(super) async fn write(path: PathBuf, text: String) {
    let shown = path.display().to_string();
    let written = tokio::task::spawn_blocking(move || replace_file(&path, text.as_bytes(), Readers::Usual)).await;
    if let Err(why) = written.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
        warn!("admin_usage_file: {shown}: {why}; the usage stays in memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 500_000 * HOUR + 60;

    fn used(account: &str, bytes: u64) -> HashMap<String, UsageSums> {
        let sums = UsageSums {
            requests: 1,
            bytes,
            ..UsageSums::default()
        };
        [(account.to_owned(), sums)].into()
    }

    fn lines(log: &UsageLog, query: UsageQuery) -> Vec<String> {
        let rows = log.rows(&query, NOW);
        let line = |row: UsageRow| {
            let ago = NOW / HOUR - row.hour / HOUR;
            format!("-{ago}h {} {} {}", row.account, row.requests, row.bytes)
        };
        rows.into_iter().map(line).collect()
    }

    #[test]
    fn usage_is_summed_by_hour_and_account() {
        let mut log = UsageLog::default();
        log.add(used("key old", 1), NOW - 40 * HOUR);
        log.add(used("key a", 10), NOW - HOUR);
        log.add(used("key a", 20), NOW);
        log.add(used("key a", 5), NOW);
        log.add(used("anonymous", 100), NOW);
        let all = UsageQuery::default();
        let expected = ["-0h anonymous 1 100", "-0h key a 2 25", "-1h key a 1 10"];
        assert_eq!(lines(&log, all.clone()), expected);
        let of_a = UsageQuery {
            account: Some("key a".into()),
            hours: Some(1),
            ..all.clone()
        };
        assert_eq!(lines(&log, of_a), ["-0h key a 2 25"]);
        let total = UsageQuery {
            hours: Some(u64::MAX),
            total: true,
            ..all
        };
        let expected = ["-719h anonymous 1 100", "-719h key a 3 35", "-719h key old 1 1"];
        assert_eq!(lines(&log, total), expected);
    }

    #[test]
    fn a_file_brings_back_what_was_written_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage");
        let mut log = UsageLog::read(&path).unwrap();
        log.add(used("key a", 10), NOW);
        log.add(used("key b", 20), NOW);
        std::fs::write(&path, log.text()).unwrap();
        let again = UsageLog::read(&path).unwrap();
        assert_eq!((again.text(), again.rows), (log.text(), 2));
        std::fs::write(&path, "listen = 1\n").unwrap();
        let why = UsageLog::read(&path).unwrap_err().to_string();
        assert!(why.contains("line 1 is not a usage record"), "{why}");
        assert!(UsageLog::read(folder.path()).is_err());
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_its_rows_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage.new");
        let mut log = UsageLog::default();
        log.add(used("key a", 10), NOW);
        log.add(used("key b", 20), NOW);
        let whole = log.text();
        let (torn, zeros) = (&whole.as_bytes()[..whole.len() - 9], [0; 4096]);
        let mixed = [whole.as_bytes(), &zeros].concat();
        let mut binary = torn.to_vec();
        binary.push(0xff);
        for (text, rows) in [(torn, 1), (&zeros, 0), (&mixed, 2), (&binary, 1)] {
            fs::write(&path, text).unwrap();
            let again = UsageLog::read(&path).unwrap();
            assert_eq!(again.rows, rows);
            assert!(!path.exists());
            assert_eq!(fs::read(folder.path().join("usage.new.bad")).unwrap(), text);
        }
        // Files of others stay where they are.
        for other in ["listen = 1\n", "\n\n", "[1]", "{\"a\":1}\n"] {
            fs::write(&path, other).unwrap();
            assert!(
                matches!(UsageLog::read(&path), Err(UsageFileError::Foreign(_, 1))),
                "{other}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), other);
        }
        fs::write(&path, "").unwrap();
        assert_eq!(UsageLog::read(&path).unwrap().rows, 0);
    }

    #[test]
    fn a_long_file_does_not_fill_the_memory() {
        let mut log = UsageLog::default();
        let row = |hour: u64, number: usize| {
            serde_json::to_string(&super::row(hour, &format!("key {number}"), UsageSums::default())).unwrap()
        };
        let rows = (0..100).flat_map(|hour| (0..600).map(move |number| row(hour, number)));
        let text: Vec<String> = rows.collect();
        log.take_rows(text.join("\n").as_bytes()).unwrap();
        assert!(log.rows <= MAX_ROWS && log.hours.contains_key(&99) && !log.hours.contains_key(&0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut log = UsageLog::default();
        for number in 0..MAX_ACCOUNTS + 10 {
            log.add(used(&format!("token {number}"), 1), NOW);
        }
        assert_eq!(log.rows, MAX_ACCOUNTS + 1);
        let others = UsageQuery {
            account: Some(OTHERS.into()),
            ..UsageQuery::default()
        };
        assert_eq!(lines(&log, others), ["-0h others 10 10"]);
        for hour in 1..100 {
            for number in 0..MAX_ACCOUNTS {
                log.add(used(&format!("token {number}"), 1), NOW + hour * HOUR);
            }
        }
        assert!(log.rows <= MAX_ROWS && log.hours.len() < 100);
        log.add(used(&"x".repeat(10_000), 1), NOW + 2 * HOURS * HOUR);
        assert_eq!((log.hours.len(), log.rows), (1, 1));
        assert!(log.text().len() < 300);
    }
}
