//! `RESULTS.md`, which each benchmark writes one part of.

use std::{fs, io::ErrorKind, path::Path, thread};

use anyhow::{Context, Result};

const NAME: &str = "RESULTS.md";

/// Writes the named part and keeps the others. A part begins with its name in a comment and ends at the next such
/// comment.
pub fn write(folder: &Path, part: &str, text: &str) -> Result<()> {
    let path = folder.join(NAME);
    let before = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => read,
    };
    let before = before.with_context(|| format!("cannot read {}", path.display()))?;
    let heading = format!("<!-- part: {part} -->\n");
    let begin = before.find(&heading).unwrap_or(before.len());
    let rest = before.get(begin + heading.len()..).unwrap_or_default();
    let after = rest.find("<!-- part: ").map_or("", |end| &rest[end..]);
    let gap = |follows: bool| if follows { "\n" } else { "" };
    let first = before[..begin].trim_end();
    let pieces = [
        first,
        gap(begin > 0),
        gap(begin > 0),
        &heading,
        text,
        gap(!after.is_empty()),
        after,
    ];
    save(folder, NAME, &pieces.concat())
}

/// Writes one file.
pub fn save(folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(folder.join(name), text).with_context(|| format!("cannot write {name} to {}", folder.display()))
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

/// Describes the machine in general terms.
pub fn machine() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version: Vec<&str> = kernel.trim().split(['.', '-']).take(2).collect();
    format!("{cores} cores, Linux {}", version.join("."))
}
