//! Runs every row of the tables of headwater's wire behaviour against headwater in front of its own simulated node,
//! anvil and geth, and against geth itself: geth's messages and those through headwater must be the same bytes,
//! unless the row states a reason.
//!
//! The rows are data, in `rows/`; their subjects, and the tests elsewhere, are listed in `coverage.rs`. The suite is
//! a program of its own, because libtest cannot print a table over all targets; it ends with the same line as
//! libtest, which `scripts/test` counts. `cargo test --test conformance -- J17 devnet` runs the cases with both words
//! in their name.

// A panic reports a failure of the test, and the table is this program's output.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../shared/client_frame.rs"]
mod client_frame;
mod coverage;
mod node;
mod pattern;
mod peer;
mod proxy;
mod report;
mod run;
mod table;

use std::future::Future;
use std::process::ExitCode;
use std::time::Instant;

use node::Node;
use report::{Report, Words};
use run::{Outcome, Stage};
use table::{Case, Section, Target};

/// The files, in PROTOCOL's order.
const FILES: [(&str, &str, &str); 14] = [
    ("1.1  handshake", "handshake.io", include_str!("rows/handshake.io")),
    ("1.2  framing", "framing.io", include_str!("rows/framing.io")),
    ("1.3  envelope", "envelope.io", include_str!("rows/envelope.io")),
    ("1.4  batches", "batches.io", include_str!("rows/batches.io")),
    ("1.5  eth_subscribe", "subscribe.io", include_str!("rows/subscribe.io")),
    ("1.6  ids", "ids.io", include_str!("rows/ids.io")),
    (
        "1.7  eth_unsubscribe",
        "unsubscribe.io",
        include_str!("rows/unsubscribe.io"),
    ),
    (
        "1.8  notifications",
        "notifications.io",
        include_str!("rows/notifications.io"),
    ),
    ("1.9  ordering", "ordering.io", include_str!("rows/ordering.io")),
    ("1.10 reorgs", "reorgs.io", include_str!("rows/reorgs.io")),
    ("1.13 calls", "calls.io", include_str!("rows/calls.io")),
    ("1.14 own errors", "errors.io", include_str!("rows/errors.io")),
    ("1.15 HTTP", "http.io", include_str!("rows/http.io")),
    ("5    details", "details.io", include_str!("rows/details.io")),
];

fn main() -> ExitCode {
    let began = Instant::now();
    let Some(words) = Words::from_arguments() else {
        return ExitCode::SUCCESS;
    };
    let mut report = Report::new(&words);
    let mut sections = Vec::new();
    let mut read = Ok(());
    for (name, file, text) in FILES {
        match table::parse(name, file, text) {
            Ok(section) => sections.push(section),
            Err(why) => read = Err(why),
        }
    }
    report.check("the rows can be read", read);
    report.check("patterns take what they say", pattern::check());
    report.check("each row is covered or excused", coverage::check(&sections));
    if words.list {
        report.list(&sections);
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    // One task for all clients; the servers run on other tasks.
    let (devnet, anvil, geth) = runtime.block_on(async {
        tokio::join!(
            play(
                async { Node::devnet().await.map(Ok) },
                &[Target::Devnet],
                &sections,
                &words
            ),
            play(Node::anvil(), &[Target::Anvil], &sections, &words),
            play(Node::geth(), &[Target::Geth, Target::Proxied], &sections, &words),
        )
    });
    for (name, played) in [("devnet", devnet), ("anvil", anvil), ("geth", geth)] {
        match played {
            Ok(Ok(outcomes)) => report.add(outcomes),
            Ok(Err(why)) => report.skipped(name, why),
            Err(why) => report.check(&format!("the suite on {name}"), Err(why)),
        }
    }
    report.print(&sections, began.elapsed())
}

/// Runs the selected cases on one node. The inner error is the reason why there is no such node.
async fn play(
    node: impl Future<Output = Result<Result<Node, &'static str>, String>>,
    targets: &[Target],
    sections: &[Section],
    words: &Words,
) -> Result<Result<Vec<Outcome>, &'static str>, String> {
    let wanted = |target: Target, section: &Section, case: &Case| {
        targets.contains(&target)
            && case.targets.contains(&target)
            && words.want(&report::name(target, section.name, &case.to_string()))
    };
    let cases = sections
        .iter()
        .flat_map(|section| section.cases.iter().map(move |case| (section, case)));
    let mut cases = cases
        .filter(|(section, case)| targets.iter().any(|target| wanted(*target, section, case)))
        .peekable();
    // Starting a node takes longer than most cases.
    if cases.peek().is_none() {
        return Ok(Ok(Vec::new()));
    }
    let node = match node.await? {
        Ok(node) => node,
        Err(why) => return Ok(Err(why)),
    };
    let mut stage = Stage::start(node, targets).await?;
    let mut outcomes = Vec::new();
    for (section, case) in cases {
        outcomes.extend(stage.play(section, case, |target| wanted(target, section, case)).await);
    }
    stage.stop().await?;
    Ok(Ok(outcomes))
}
