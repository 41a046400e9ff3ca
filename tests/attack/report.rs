//! Command line of the suite, and the table of verdicts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::arena::Form;
use crate::verdict::{MEMORY_BOUND, Part, Verdict};

/// Options of the command line: libtest's as far as they are of use here, and the suite's own.
pub struct Wishes {
    words: Vec<String>,
    pub list: bool,
    pub form: Form,
    /// Directory for the table, as `attack.md` and `attack.json`.
    pub report: Option<PathBuf>,
    /// Binary of geth, to run as the node in place of the simulated one.
    pub geth: Option<PathBuf>,
}

impl Wishes {
    /// Parses the command line; `None` where the program is started for another kind of test.
    pub fn from_arguments() -> Option<Self> {
        let mut wishes = Self {
            words: Vec::new(),
            list: false,
            form: Form::Short,
            report: None,
            geth: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => wishes.list = true,
                "--full" => wishes.form = if is_slow() { Form::Untimed } else { Form::Full },
                "--report" => wishes.report = arguments.next().map(PathBuf::from),
                "--geth" => wishes.geth = arguments.next().map(PathBuf::from),
                "--ignored" | "--bench" => return None,
                "--skip" | "--test-threads" | "--format" | "--color" | "-Z" => drop(arguments.next()),
                flag if flag.starts_with('-') => {}
                _ => wishes.words.push(argument.to_lowercase()),
            }
        }
        Some(wishes)
    }

    /// Checks if a name contains one of the words, or no word was given.
    pub fn want(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()))
    }
}

/// Bytes touched to see how fast the machine is, and the time above which its times say nothing. Fresh memory takes 20 ms on
/// the slowest machine that served as a measure; on a virtual one whose host lends it page by page, up to 1.5 s.
const TOUCHED: usize = 64 << 20;
const SLOW: Duration = Duration::from_millis(150);

/// Checks if this machine takes so long to hand out memory that no time below can be blamed on the program.
fn is_slow() -> bool {
    let began = Instant::now();
    let fresh = std::hint::black_box(vec![1_u8; TOUCHED]);
    let took = began.elapsed();
    drop(fresh);
    if took > SLOW {
        println!(
            "{} MiB of memory took {took:?} on this machine: no times are asserted",
            TOUCHED >> 20
        );
    }
    took > SLOW
}

pub const TITLE: &str = "\
| attack | before: call p50/max, head gap, resume (ms) | during | failed, lost, closed | RSS before/max (MiB) | attackers got | held |
|---|---|---|---|---|---|---|";

/// Formats a line of the table.
pub fn line(verdict: &Verdict) -> String {
    let part = |part: &Part| {
        format!(
            "{:.1}/{:.0}, {:.0}, {:.0}",
            part.call_p50_ms, part.call_max_ms, part.head_gap_ms, part.resume_max_ms
        )
    };
    let mut got: Vec<_> = verdict.got.iter().collect();
    got.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
    let got: Vec<_> = got
        .iter()
        .take(5)
        .map(|(what, times)| format!("{times} × {what}"))
        .collect();
    format!(
        "| {} | {} | {} | {}, {}, {} | {}/{} | {} | {} |",
        verdict.name,
        part(&verdict.before),
        part(&verdict.during),
        verdict.failed,
        verdict.lost,
        verdict.closed,
        verdict.rss_before >> 20,
        verdict.rss_max >> 20,
        got.join(", "),
        if verdict.held() { "yes" } else { "NO" },
    )
}

/// Prints the reasons below the table, writes the files, and prints the line by which tests are counted.
pub fn close(wishes: &Wishes, verdicts: &[Verdict], skipped: &[String], took: Duration) -> ExitCode {
    for line in skipped {
        println!("SKIPPED: {line}");
    }
    let mut failed = 0;
    for verdict in verdicts.iter().filter(|verdict| !verdict.held()) {
        failed += 1;
        println!("\nFAILED  {}", verdict.name);
        for reason in &verdict.reasons {
            println!("  {reason}");
        }
    }
    if let Some(directory) = &wishes.report
        && let Err(why) = write(directory, verdicts)
    {
        failed += 1;
        println!("\nFAILED  the report: {}: {why}", directory.display());
    }
    let passed = verdicts.len().saturating_sub(failed);
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {} ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        skipped.len(),
        took.as_secs_f64()
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(101)
    }
}

fn write(directory: &std::path::Path, verdicts: &[Verdict]) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut text = format!("{TITLE}\n");
    for verdict in verdicts {
        text += &line(verdict);
        text.push('\n');
    }
    text += &format!("\nResident memory has to stay below {} MiB.\n", MEMORY_BOUND >> 20);
    for verdict in verdicts.iter().filter(|verdict| !verdict.held()) {
        text += &format!("\n{}:\n", verdict.name);
        for reason in &verdict.reasons {
            text += &format!("- {reason}\n");
        }
    }
    std::fs::write(directory.join("attack.md"), text)?;
    std::fs::write(directory.join("attack.json"), serde_json::to_vec_pretty(verdicts)?)
}
