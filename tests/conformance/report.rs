//! The command line, and the printed results.

use std::process::ExitCode;
use std::time::Duration;

use crate::run::Outcome;
use crate::table::{Section, Target};

/// The command-line options of libtest that apply here.
#[derive(Default)]
pub struct Words {
    words: Vec<String>,
    pub list: bool,
}

impl Words {
    /// Parses the command line; `None` if another kind of test is requested.
    pub fn from_arguments() -> Option<Self> {
        let mut words = Self::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => words.list = true,
                "--ignored" | "--bench" => return None,
                "--skip" | "--test-threads" | "--format" | "--color" | "-Z" => drop(arguments.next()),
                flag if flag.starts_with('-') => {}
                _ => words.words.push(argument),
            }
        }
        Some(words)
    }

    /// Checks if `name` contains all words, ignoring case.
    pub fn want(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        self.words.iter().all(|word| name.contains(&word.to_lowercase()))
    }
}

/// Returns the name of a case for the command line and the list of failures.
pub fn name(target: Target, section: &str, case: &str) -> String {
    format!(
        "{:8}{} {case}",
        target.word(),
        section.split(' ').next().unwrap_or_default()
    )
}

pub struct Report<'a> {
    words: &'a Words,
    outcomes: Vec<Outcome>,
    skipped: Vec<String>,
    checks: Vec<(String, Result<(), String>)>,
}

impl<'a> Report<'a> {
    pub fn new(words: &'a Words) -> Self {
        Self {
            words,
            outcomes: Vec::new(),
            skipped: Vec::new(),
            checks: Vec::new(),
        }
    }

    /// Adds the result of a check of the suite itself.
    pub fn check(&mut self, name: &str, outcome: Result<(), String>) {
        if self.words.want(name) || outcome.is_err() {
            self.checks.push((name.to_owned(), outcome));
        }
    }

    pub fn add(&mut self, outcomes: Vec<Outcome>) {
        self.outcomes.extend(outcomes);
    }

    pub fn skipped(&mut self, node: &str, why: &str) {
        self.skipped.push(format!("SKIPPED: {node}: {why}"));
    }

    /// Prints the names, as libtest lists them.
    pub fn list(&self, sections: &[Section]) {
        for (name, _) in &self.checks {
            println!("{name}: test");
        }
        for section in sections {
            for case in &section.cases {
                for target in &case.targets {
                    let name = name(*target, section.name, &case.to_string());
                    if self.words.want(&name) {
                        println!("{name}: test");
                    }
                }
            }
        }
    }

    /// Prints the table, the failures, and the line that `scripts/test` counts.
    pub fn print(&self, sections: &[Section], took: Duration) -> ExitCode {
        let titles = [
            "headwater\non devnet",
            "headwater\non anvil",
            "geth\nitself",
            "headwater\non geth",
        ];
        println!();
        for line in 0..2 {
            let cells = titles.map(|title| title.split('\n').nth(line).unwrap_or_default().to_owned());
            println!("{}", row(if line == 1 { "PROTOCOL" } else { "" }, &cells));
        }
        for section in sections {
            println!(
                "{}",
                row(
                    section.name,
                    &Target::ALL.map(|target| self.cell(target, Some(section.name)))
                )
            );
        }
        println!("{}", row("all", &Target::ALL.map(|target| self.cell(target, None))));
        for line in &self.skipped {
            println!("{line}");
        }
        let failures: Vec<(String, &str)> = self
            .checks
            .iter()
            .filter_map(|(name, outcome)| Some((name.clone(), outcome.as_ref().err()?.as_str())))
            .chain(self.outcomes.iter().filter_map(|outcome| {
                let name = name(outcome.target, outcome.section, &outcome.case);
                Some((name, outcome.failure.as_deref()?))
            }))
            .collect();
        for (name, why) in &failures {
            println!("\nFAILED  {name}\n  {why}");
        }
        let failed = failures.len();
        let passed = self.checks.len() + self.outcomes.len() - failed;
        let word = if failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {word}. {passed} passed; {failed} failed; {} ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
            self.skipped.len(),
            took.as_secs_f64()
        );
        if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(101)
        }
    }

    fn cell(&self, target: Target, section: Option<&str>) -> String {
        let here = |outcome: &&Outcome| outcome.target == target && section.is_none_or(|name| outcome.section == name);
        let all = self.outcomes.iter().filter(here).count();
        let failed = self
            .outcomes
            .iter()
            .filter(here)
            .filter(|outcome| outcome.failure.is_some())
            .count();
        match (all, failed) {
            (0, _) => "-".into(),
            (all, 0) => format!("{all} ok"),
            (all, failed) => format!("{} ok, {failed} FAILED", all - failed),
        }
    }
}

fn row(name: &str, cells: &[String; 4]) -> String {
    let cells: String = cells.iter().map(|cell| format!("{cell:>18}")).collect();
    format!("  {name:24}{cells}")
}
