//! Tables and figures for people.

use std::time::Duration;

use crate::text::Printable;

/// Alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Formats rows under a head, with two spaces between the columns and none at the end of a line. Cells may hold text of
/// clients and nodes: what a terminal acts on is escaped.
pub(super) fn table(head: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        let longest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        longest.max(head[at].0.chars().count())
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let names = head.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut out = String::new();
    for row in std::iter::once(&names).chain(&rows) {
        let row: &Vec<String> = row;
        let cells = row
            .iter()
            .zip(&widths)
            .zip(head)
            .map(|((cell, width), (_, align))| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Returns a text with what a terminal acts on escaped.
pub(super) fn printable(text: &str) -> String {
    Printable(text).to_string()
}

/// Formats bytes with three digits or so: `999 B`, `1.2 KiB`.
pub(super) fn bytes(count: u64) -> String {
    let (mut value, mut unit) = (count as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" || value >= 100.0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// Formats a count with three digits or so: `999`, `1.2k`.
pub(super) fn count(count: u64) -> String {
    let (mut value, mut unit) = (count as f64, "");
    for next in ["k", "M", "G", "T"] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    if unit.is_empty() || value >= 100.0 {
        format!("{value:.0}{unit}")
    } else {
        format!("{value:.1}{unit}")
    }
}

/// Formats milliseconds by their two largest units: `12 ms`, `4.2 s`, `3m 20s`, `2d 5h`.
pub(super) fn time(ms: u64) -> String {
    let duration = Duration::from_millis(ms);
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Formats a latency.
pub(super) fn latency(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"))
}

/// Formats seconds since 1970 as an hour in UTC.
pub(super) fn hour(seconds: u64) -> String {
    let time = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
    time.replace('T', " ").chars().take("2026-01-01 00:00".len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["a".into(), "1".into()],
            vec!["bcdé".into(), "23".into()],
            vec!["".into(), "4".into()],
        ];
        let expected = "NAME   N\na      1\nbcdé  23\n       4\n";
        assert_eq!(table(&[("NAME", Align::Left), ("N", Align::Right)], &rows), expected);
        assert_eq!(table(&[("NAME", Align::Left)], &[]), "NAME\n");
    }

    #[test]
    fn cells_cannot_act_on_the_terminal() {
        let rows = [vec!["\u{1b}[2Ja\nb\u{202e}".into(), "1".into()]];
        let expected = "NAME                   N\n\\u{1b}[2Ja\\nb\\u{202e}  1\n";
        assert_eq!(table(&[("NAME", Align::Left), ("N", Align::Right)], &rows), expected);
    }

    #[test]
    fn figures_are_short() {
        let shown = [0, 999, 1000, 1024, 150_000, 5 << 30].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 KiB", "1.0 KiB", "146 KiB", "5.0 GiB"]);
        assert_eq!([7, 1234, 999_999, 5_000_000].map(count), ["7", "1.2k", "1000k", "5.0M"]);
        let shown = [5, 1500, 200_000, 7_500_000, 200_000_000].map(time);
        assert_eq!(shown, ["5 ms", "1.5 s", "3m 20s", "2h 5m", "2d 7h"]);
        assert_eq!(latency(Some(0.44)), "0.4 ms");
        assert_eq!(latency(None), "-");
        assert_eq!(hour(1_800_000_000), "2027-01-15 08:00");
    }
}
