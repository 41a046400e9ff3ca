//! The table, which is this benchmark's part of `RESULTS.md`.

use std::{fmt::Write as _, time::Duration};

use crate::results::machine;

/// Limit of the time from the node's return to the first event.
const TARGET: Duration = Duration::from_millis(2500);

/// Times from the return of a node to the first event, one for each outage.
#[derive(Debug, Default)]
pub struct Row {
    pub name: String,
    pub heads: Vec<Duration>,
    /// Empty for a node whose blocks have no logs.
    pub logs: Vec<Duration>,
}

pub fn text(rows: &[Row]) -> String {
    let outages: usize = rows.iter().map(|row| row.heads.len()).sum();
    let mut out = format!(
        "# Recovery\n\n\
         Written by `cargo bench --bench recovery -- --report benches`. Do not edit: run it again.\n\n\
         Time from the return of a single node to the first event at a client, with the default settings, on {}: {outages} \
         outages of 0.7 to 11 s, or 11 to 27 s where the node is frozen. Each head followed one delivered before, and each log \
         the log before it: nothing was lost or came twice. Target: 2.5 s.\n\n\
         | node | first head: median | 90 % | longest | first log: longest | met |\n|---|---|---|---|---|---|\n",
        machine()
    );
    for row in rows {
        let mut heads = row.heads.clone();
        heads.sort();
        let at = |share: usize| {
            seconds(
                heads
                    .get((heads.len() * share).div_ceil(100).saturating_sub(1))
                    .copied(),
            )
        };
        let longest = row.logs.iter().max().copied();
        let is_met = heads.iter().chain(&row.logs).all(|time| *time <= TARGET);
        let _infallible = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            row.name,
            at(50),
            at(90),
            at(100),
            seconds(longest),
            if is_met { "yes" } else { "**no**" }
        );
    }
    out
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
}
