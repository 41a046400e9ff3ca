//! `RESULTS.md` and its plots, written by the run that took the measurements.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use indicatif::HumanCount;

use crate::{
    before_geth::BeforeGeth,
    chain::Scenario,
    limits,
    matching::{self, Matching, Shared},
    results::{self, machine, median, save},
    run::{Latency, Plan, Server, idle_memory},
    stalled::{self, Stalled},
    svg::{Bars, shown},
    table::{Compression, Results, Row},
};

/// Targets for memory: of an idle client, and of a distinct filter.
const IDLE_BYTES: f64 = 2_000.0;
const FILTER_BYTES: f64 = 350.0;

/// The measurements besides the fan-out tables.
pub struct Extras {
    /// User-space memory in bytes per idle client.
    idle: Vec<(Server, f64)>,
    idle_clients: usize,
    undisturbed: Vec<Stalled>,
    disturbed: Vec<Stalled>,
    stalled_among: usize,
    matching: Vec<Matching>,
    shared: Vec<Shared>,
    before_geth: Option<BeforeGeth>,
}

impl Extras {
    /// Measures idle memory with the clients of `most`, and a stalled client among those of `usual`.
    pub fn measure(most: &Plan, usual: &Plan, rounds: usize, before_geth: Option<BeforeGeth>) -> Result<Self> {
        // Compression adds nothing to idle clients: no client has its own compressor.
        let servers = [Server::Loop, Server::Stock, Server::Headwater];
        let mut idle: Vec<(Server, Vec<f64>)> = servers.map(|server| (server, Vec::new())).to_vec();
        let (mut undisturbed, mut disturbed) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            eprintln!("idle memory and a stalled client, round {round} of {rounds}");
            for (server, samples) in &mut idle {
                samples.push(idle_memory(*server, most).with_context(|| format!("idle clients of {}", server.name()))?);
            }
            undisturbed.push(stalled::measure(usual, false).context("no stalled client")?);
            disturbed.push(stalled::measure(usual, true).context("one stalled client")?);
        }
        eprintln!("matching");
        Ok(Self {
            idle: idle
                .into_iter()
                .map(|(server, mut samples)| (server, median(&mut samples)))
                .collect(),
            idle_clients: most.clients,
            undisturbed,
            disturbed,
            stalled_among: usual.clients,
            matching: matching::measure()?,
            shared: matching::measure_shared()?,
            before_geth,
        })
    }

    fn idle(&self, server: Server) -> f64 {
        let found = self.idle.iter().find(|(of, _)| *of == server);
        found.map_or(f64::NAN, |(_, bytes)| *bytes)
    }

    /// Returns the p99 of the reading clients with a stalled client, as a ratio to the p99 without; median over the
    /// rounds.
    fn stalled_ratio(&self) -> f64 {
        let rounds = self.disturbed.iter().zip(&self.undisturbed);
        median(
            &mut rounds
                .map(|(with, without)| with.p99_us / without.p99_us)
                .collect::<Vec<_>>(),
        )
    }

    /// Returns the memory growth of the server, in bytes, that a stalled client adds; median over the rounds.
    fn stalled_growth(&self) -> f64 {
        let rounds = self.disturbed.iter().zip(&self.undisturbed);
        median(
            &mut rounds
                .map(|(with, without)| with.growth - without.growth)
                .collect::<Vec<_>>(),
        )
    }

    fn longest_stall_s(&self) -> f64 {
        let closed = self.disturbed.iter().filter_map(|sample| sample.closed_after);
        closed.max().unwrap_or_default().as_secs_f64()
    }
}

/// Writes the tables and plots of one run; `command` is the command that repeats the run.
pub fn write(folder: &Path, results: &[Results], extras: &Extras, command: &str) -> Result<()> {
    results::write(folder, "fanout", &text(results, extras, command))?;
    save(folder, "fanout.svg", &fanout_plot(results))?;
    save(folder, "memory.svg", &memory_plot(extras))?;
    save(folder, "matching.svg", &matching_plot(extras))?;
    save(folder, "fanout-limits.svg", &limits::plot(&limit_rows(results, extras)))?;
    match &extras.before_geth {
        Some(before_geth) => save(folder, "before-geth.svg", &before_geth.plot()),
        None => Ok(()),
    }
}

fn text(results: &[Results], extras: &Extras, command: &str) -> String {
    let checked: u64 = results.iter().flat_map(Results::rows).map(|row| row.checked).sum();
    let of_stalled = extras.undisturbed.iter().chain(&extras.disturbed);
    let of_geth = extras.before_geth.as_ref().map_or(0, BeforeGeth::checked);
    let checked = checked + of_stalled.map(|sample| sample.checked).sum::<u64>() + of_geth;
    let rounds = results.iter().map(Results::round_count).min().unwrap_or(0);
    let mut out = format!(
        concat!(
            "# Results\n\n",
            "Written by `{command}`. Do not edit: run it again.\n\n",
            "Measured on {machine}; every box (node, server, clients) is a process of its own there. {rounds} round(s); the ",
            "servers take turns within each and are started afresh. Shown are medians; ratios are taken within a round, since ",
            "the machine may be busy with other things, and only the ratios are worth comparing between machines.\n\n",
            "Every one of the {checked} messages was checked by its receiver: a lost, doubled, reordered or altered event fails ",
            "the run, and nothing is written.\n\n",
            "`writev loop` is one thread that hands encoded frames to the kernel, so the kernel's own cost; `shared loop` does so ",
            "with one subscription id for all clients, so with one piece of bytes for everybody; `jsonrpsee` is a stock server of ",
            "it with headwater as its module (`App::module()`), so with the same chain and matching; `compressed` is headwater ",
            "before clients with permessage-deflate as browsers offer it, of which one in fifty checks every byte and the others ",
            "each message's length and end.\n\n",
        ),
        command = command,
        machine = machine(),
        rounds = rounds,
        checked = HumanCount(checked),
    );
    out += &targets(results, extras);
    out += &limits::table(&limit_rows(results, extras), "fanout-limits.svg");
    out += "\n## CPU of the server for each delivered message\n\n![ratio to the loop](fanout.svg)\n";
    for results in results {
        out += &fanout_table(results);
    }
    out += &extras.before_geth.as_ref().map_or(String::new(), BeforeGeth::table);
    out += &idle_table(extras);
    out += &stalled_table(extras);
    out += &matching_table(&extras.matching);
    out += &shared_table(&extras.shared);
    out
}

/// Compares headwater with what the kernel, or a single look-up, costs anyway.
fn limit_rows(results: &[Results], extras: &Extras) -> Vec<limits::Row> {
    // As many rows as can be taken in: fewer clients are in the tables.
    let most = results.iter().map(|results| results.plan.clients).max().unwrap_or(0);
    let many = results.iter().filter(|results| results.plan.clients >= most.min(1000));
    let mut rows: Vec<limits::Row> = many.flat_map(Results::limits).collect();
    let (ours, bare) = (extras.idle(Server::Headwater), extras.idle(Server::Loop));
    rows.push(limits::Row {
        what: "memory of an idle client".to_owned(),
        limit: "loop: its socket and id",
        at: format!("{:.1} kB", bare / 1e3),
        ours: format!("{:.1} kB", ours / 1e3),
        times: ours / bare,
        target: Some(IDLE_BYTES / bare),
    });
    if let Some(most) = extras.matching.iter().max_by_key(|sample| sample.filters) {
        let filters = HumanCount(most.filters);
        rows.push(limits::Row {
            what: format!("400 logs, {filters} filters"),
            limit: "a look-up of each address and topic",
            at: format!("{} µs", shown(most.lookups_us)),
            ours: format!("{} µs", shown(most.block_us)),
            times: most.block_us / most.lookups_us,
            target: None,
        });
        rows.push(limits::Row {
            what: format!("memory of a filter, {filters}"),
            limit: "its address and topics",
            at: format!("{:.0} B", most.filter_bytes),
            ours: format!("{:.0} B", most.memory_bytes),
            times: most.memory_bytes / most.filter_bytes,
            target: Some(FILTER_BYTES / most.filter_bytes),
        });
    }
    rows
}

/// Compares each target of DESIGN with this run's measurement.
fn targets(results: &[Results], extras: &Extras) -> String {
    let mut out = "| what | target | measured | met |\n|---|---|---|---|\n".to_owned();
    let mut line = |what: &str, target: &str, measured: String, met: bool| {
        let met = if met { "yes" } else { "**no**" };
        let _infallible = writeln!(out, "| {what} | {target} | {measured} | {met} |");
    };
    // With fewer clients, the fixed cost per event dominates, for example fetching logs from the node.
    for results in results.iter().filter(|results| results.plan.clients >= 1000) {
        let clients = HumanCount(results.plan.clients as u64);
        let rows = results.rows();
        let row = |server| rows.iter().find(|row| row.server == server);
        let (Some(ours), stock) = (row(Server::Headwater), row(Server::Stock)) else {
            continue;
        };
        let ratio = ours.ratio.unwrap_or(f64::NAN);
        let most = if results.scenario == Scenario::Blocks {
            1.25
        } else {
            1.5
        };
        match results.scenario {
            Scenario::Heads => {
                line(
                    &format!("CPU for each delivery, one event at a time, {clients} clients"),
                    "≤ 1.25 × loop",
                    format!("{ratio:.2} ×"),
                    ratio <= 1.25,
                );
                let last = ours.latency_ratio.map_or(f64::NAN, |ratio| ratio.last);
                line(
                    &format!("last of {clients} clients gets a head"),
                    "≤ 1.3 × loop",
                    format!("{last:.2} ×"),
                    last <= 1.3,
                );
            }
            Scenario::Bursts => {
                let what = format!("CPU for each delivery, bursts of 100 logs, {clients} clients");
                // jsonrpsee is not run with the most clients.
                match stock.map(|stock| stock.cpu_us / ours.cpu_us) {
                    Some(better) => line(
                        &what,
                        "≤ 2.5 × loop, ≥ 8 × better than jsonrpsee",
                        format!("{ratio:.2} ×, {better:.1} × better"),
                        ratio <= 2.5 && better >= 8.0,
                    ),
                    None => line(&what, "≤ 2.5 × loop", format!("{ratio:.2} ×"), ratio <= 2.5),
                }
            }
            Scenario::Blocks | Scenario::PendingAlone | Scenario::PendingGrouped => line(
                &format!(
                    "CPU for each delivery, {}, {clients} clients",
                    title(results.scenario).to_lowercase()
                ),
                &format!("≤ {most} × loop"),
                format!("{ratio:.2} ×"),
                ratio <= most,
            ),
        }
        // The hash of a transaction is too short to be compressed.
        let compression = results.compression().filter(|_| !results.scenario.is_pending());
        if let Some(compression) = compression {
            let what = title(results.scenario).to_lowercase();
            line(
                &format!("compressed fan-out, {what}, {clients} clients"),
                Compression::TARGET,
                compression.to_text(),
                compression.is_met(),
            );
        }
    }
    let idle = extras.idle(Server::Headwater) / 1e3;
    line(
        "user-space memory for each idle client with one subscription",
        &format!("≤ {} kB", IDLE_BYTES / 1e3),
        format!("{idle:.1} kB"),
        idle <= IDLE_BYTES / 1e3,
    );
    let all_match = extras
        .matching
        .iter()
        .find(|sample| sample.filters == 100_000 && sample.matches >= 390);
    let millis = all_match.map_or(f64::NAN, |sample| sample.block_us / 1e3);
    line(
        "100,000 distinct filters × 400 logs",
        "≤ 3 ms a block",
        format!("{millis:.2} ms"),
        millis <= 3.0,
    );
    let ratio = sharing_ratio(&extras.shared);
    line(
        "100,000 filters that share all but their blocks or a topic",
        "≤ 2 × distinct ones",
        format!("{ratio:.2}"),
        ratio <= 2.0,
    );
    let ratio = extras.stalled_ratio();
    line(
        &format!(
            "1 stalled among {} clients: p99 of the others",
            HumanCount(extras.stalled_among as u64)
        ),
        "unchanged (≤ 1.25 ×: rounds differ by that)",
        format!("{ratio:.2} ×"),
        ratio <= 1.25,
    );
    let deadline = stalled::DEADLINE.as_secs();
    line(
        "the stalled client is closed",
        &format!("{deadline} s (write deadline) after its buffers are full"),
        format!("{:.1} s after the first burst", extras.longest_stall_s()),
        // A missed deadline fails the run earlier.
        true,
    );
    let (megabytes, bound) = (extras.stalled_growth() / 1e6, 16.8);
    line(
        "memory that the stalled client costs",
        "≤ 16 MiB (`delivery.max_queue_bytes`)",
        format!("{megabytes:.1} MB"),
        megabytes <= bound,
    );
    out
}

fn fanout_table(results: &Results) -> String {
    let mut out = format!(
        "\n### {}: {} clients, {} events of {} message(s), {} bytes of JSON in each\n\n",
        title(results.scenario),
        HumanCount(results.plan.clients as u64),
        results.plan.counted,
        results.scenario.messages_per_event(),
        results.message_bytes(),
    );
    out += "| server | µs CPU | × loop | first / half / 99 % / last of the clients have it, ms | × loop | clients connected a second | bytes \
            |\n|---|---|---|---|---|---|---|\n";
    for row in results.rows() {
        let Row {
            server,
            cpu_us,
            latency,
            connects_per_second,
            bytes_per_message,
            ..
        } = row;
        let _infallible = writeln!(
            out,
            "| {} | {cpu_us:.3} | {} | {} | {} | {connects_per_second:.0} | {bytes_per_message:.0} |",
            server.name(),
            row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
            latency.in_millis(),
            row.latency_ratio.map_or(String::new(), Latency::as_ratios),
        );
    }
    out
}

fn idle_table(extras: &Extras) -> String {
    let half = extras.idle_clients as u64 / 2;
    let (half, all) = (HumanCount(half), HumanCount(half * 2));
    let mut out = format!(
        "\n## User-space memory for each idle client\n\n![memory](memory.svg)\n\nEach has one subscription; resident \
         memory, as the slope from {half} to {all} clients.\n\n| server | kB a client |\n|---|---|\n",
    );
    for (server, bytes) in &extras.idle {
        let _infallible = writeln!(out, "| {} | {:.1} |", server.name(), bytes / 1e3);
    }
    out
}

fn stalled_table(extras: &Extras) -> String {
    let mut out = format!(
        "\n## One client that stops reading among {}\n\nBursts of 100 logs to headwater with a write deadline of {} s; when \
         the last of the clients that read has a burst, and how much the server's memory grew.\n\n| round | stalled | p50 | \
         p99 | memory | closed after |\n|---|---|---|---|---|---|\n",
        HumanCount(extras.stalled_among as u64),
        stalled::DEADLINE.as_secs(),
    );
    for (round, pair) in extras.undisturbed.iter().zip(&extras.disturbed).enumerate() {
        for (stalled, sample) in [(0, pair.0), (1, pair.1)] {
            let closed = sample
                .closed_after
                .map_or(String::new(), |after| format!("{:.1} s", after.as_secs_f64()));
            let _infallible = writeln!(
                out,
                "| {} | {stalled} | {:.1} ms | {:.1} ms | + {:.1} MB | {closed} |",
                round + 1,
                sample.p50_us / 1e3,
                sample.p99_us / 1e3,
                sample.growth / 1e6,
            );
        }
    }
    out
}

pub fn matching_table(samples: &[Matching]) -> String {
    let mut out = "\n## Matching: the 400 logs of a block\n\n![matching](matching.svg)\n\nThe index alone, in process. Its \
        matches are held against those of the scan. The look-ups are one in a hash table for each address and topic of the \
        logs.\n\n| distinct filters | matches | a block | a match | look-ups alone | scan of all filters | memory of a filter \
        |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for sample in samples {
        // As many filters as before have the memory of those, which the allocator keeps.
        let memory = match sample.memory_bytes {
            bytes if bytes < 1.0 => String::new(),
            bytes => format!("{bytes:.0} B"),
        };
        let _infallible = writeln!(
            out,
            "| {} | {} | {} µs | {} ns | {} µs | {} µs | {memory} |",
            HumanCount(sample.filters),
            HumanCount(sample.matches as u64),
            shown(sample.block_us),
            shown(sample.block_us * 1e3 / sample.matches as f64),
            shown(sample.lookups_us),
            shown(sample.scan_us),
        );
    }
    out
}

/// Returns the cost of the most expensive kind of shared filters, relative to that of filters that share nothing.
fn sharing_ratio(shared: &[Shared]) -> f64 {
    let distinct = shared.first().map_or(f64::NAN, |first| first.block_us);
    let ratios = shared.iter().map(|sample| sample.block_us / distinct);
    ratios.fold(f64::NAN, f64::max)
}

pub fn shared_table(shared: &[Shared]) -> String {
    let mut out = "\nFilters that have much in common cost no more than others.\n\n| filters | all share | matches | a block | until \
        all have left |\n|---|---|---|---|---|\n"
        .to_owned();
    for sample in shared {
        let _infallible = writeln!(
            out,
            "| {} | {} | {} | {} µs | {} µs |",
            HumanCount(sample.filters),
            sample.sharing.words(),
            HumanCount(sample.matches as u64),
            shown(sample.block_us),
            shown(sample.leave_us),
        );
    }
    let _infallible = writeln!(
        out,
        "\nA block costs {:.2} times as much at most.",
        sharing_ratio(shared)
    );
    out
}

fn fanout_plot(results: &[Results]) -> String {
    let series = [Server::Headwater, Server::Stock, Server::Compressed];
    let group = |results: &Results| {
        let rows = results.rows();
        let ratio = |server| rows.iter().find(|row| row.server == server).and_then(|row| row.ratio);
        let label = format!(
            "{}, {} clients",
            results.scenario.name(),
            HumanCount(results.plan.clients as u64)
        );
        (label, series.map(ratio).to_vec())
    };
    let bars = Bars {
        title: "CPU for each delivered message, as a multiple of the bare writev loop (logarithmic, from 0.5)",
        floor: 0.5,
        series: &series.map(Server::name),
        groups: results.iter().map(group).collect(),
    };
    bars.draw()
}

fn memory_plot(extras: &Extras) -> String {
    let bars = Bars {
        title: "kB of user-space memory for each idle client (logarithmic, from 0.1)",
        floor: 0.1,
        series: &["kB"],
        groups: extras
            .idle
            .iter()
            .map(|(server, bytes)| (server.name().to_owned(), vec![Some(bytes / 1e3)]))
            .collect(),
    };
    bars.draw()
}

fn matching_plot(extras: &Extras) -> String {
    let group = |sample: &Matching| {
        let label = format!(
            "{} filters, {} matches",
            HumanCount(sample.filters),
            HumanCount(sample.matches as u64)
        );
        (label, vec![Some(sample.block_us), Some(sample.scan_us)])
    };
    let bars = Bars {
        title: "µs to match the 400 logs of a block (logarithmic, from 1)",
        floor: 1.0,
        series: &["index", "scan"],
        groups: extras.matching.iter().map(group).collect(),
    };
    bars.draw()
}

fn title(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Heads => "One event at a time",
        Scenario::Bursts => "Bursts",
        Scenario::Blocks => "Whole blocks of 100 logs",
        Scenario::PendingAlone => "Pending transactions, alone",
        Scenario::PendingGrouped => "Pending transactions, ten at a time",
    }
}
