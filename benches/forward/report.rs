//! The table, and this benchmark's part of `RESULTS.md` with its plot.

use std::{fmt::Write as _, path::Path};

use anyhow::Result;
use indicatif::HumanCount;

use crate::{
    call::Call,
    limits,
    line::Transport,
    load::Measured,
    modules::Modules,
    results::{self, machine, save},
    run::{Cell, Crowds, Results},
    svg::{Bars, shown},
};

/// Limit of DESIGN section 4, in milliseconds, for the latency added to a forwarded call with no other in flight.
const ADDED_MS: f64 = 0.2;

pub fn write(folder: &Path, tables: &[Results]) -> Result<()> {
    results::write(folder, "forward", &text(tables))?;
    save(folder, "forward.svg", &plot(tables))?;
    save(folder, "forward-limits.svg", &limits::plot(&limit_rows(tables)))
}

pub fn text(tables: &[Results]) -> String {
    let of_cells: u64 = tables.iter().flat_map(|table| &table.cells).map(Cell::checked).sum();
    let of_peers: u64 = tables.iter().map(|table| table.peers.checked()).sum();
    let of_modules: u64 = tables
        .iter()
        .filter_map(|table| table.modules.as_ref())
        .map(|modules| modules.checked)
        .sum();
    let checked = of_cells + of_peers + of_modules;
    let rounds = tables.iter().map(|table| table.rounds).min().unwrap_or(0);
    let mut out = format!(
        concat!(
            "# Calls that are not subscriptions\n\n",
            "Written by `cargo bench --bench forward -- --report benches`, which `make bench` runs too. Do not edit: run it again.\n\n",
            "Measured on {machine}, which node, headwater and load share; each is a process of its own. {rounds} round(s) of ",
            "direct, through headwater, through headwater, direct for each row. Shown are medians; differences and ratios are ",
            "taken between neighbours, since the machine may be busy with other things, and only they are worth comparing ",
            "between machines. Where calls are cheap the load is what takes the time, and the CPU says more than calls a second.\n\n",
            "Every one of the {checked} answers was checked: a wrong, missing or doubled one fails the run. `eth_chainId` is ",
            "known to headwater; the newest block and the `eth_call` that is the same each time are asked of the node once and ",
            "kept until the next head; an `eth_call` with other data each time goes to the node each time. headwater's own ",
            "counters confirm that for each turn. WebSocket: calls are spread over eight connections at most; HTTP: a ",
            "connection, kept alive, for each call in flight.\n\n",
        ),
        machine = machine(),
        rounds = rounds,
        checked = HumanCount(checked),
    );
    out += &targets(tables);
    out += &limits::table(&limit_rows(tables), "forward-limits.svg");
    out += "\n![calls a second](forward.svg)\n";
    for table in tables {
        let _infallible = writeln!(out, "\n## Before {}\n", table.node);
        out += &rows(table);
        out += &table.peers.table();
        out += &crowds(&table.crowds);
    }
    for modules in tables.iter().filter_map(|table| table.modules.as_ref()) {
        out += &modules.table();
    }
    out
}

fn limit_rows(tables: &[Results]) -> Vec<limits::Row> {
    let of = |table: &Results| table.peers.limits(table.kind.name());
    tables.iter().flat_map(of).collect()
}

fn targets(tables: &[Results]) -> String {
    let mut out = "| what | target | measured | met |\n|---|---|---|---|\n".to_owned();
    let mut line = |what: String, target: &str, measured: String, met: bool| {
        let met = if met { "yes" } else { "**no**" };
        let _infallible = writeln!(out, "| {what} | {target} | {measured} | {met} |");
    };
    for table in tables {
        let node = table.kind.name();
        for cell in table
            .cells
            .iter()
            .filter(|cell| !cell.call.is_kept() && cell.in_flight == 1)
        {
            let added = cell.added_ms();
            line(
                format!(
                    "{node}: added latency (p50) of a call that goes to the node, {}, 1 in flight",
                    cell.transport.name()
                ),
                &format!("≤ {ADDED_MS} ms"),
                format!("{added:.3} ms"),
                added <= ADDED_MS,
            );
        }
        for call in Call::ALL.into_iter().filter(|call| call.is_kept()) {
            let of_call = table
                .cells
                .iter()
                .filter(|cell| cell.call == call && cell.in_flight > 1);
            let multiples: Vec<f64> = of_call.map(Cell::multiple).collect();
            if multiples.is_empty() {
                continue;
            }
            let least = multiples.iter().copied().fold(f64::INFINITY, f64::min);
            let most = multiples.iter().copied().fold(0.0, f64::max);
            line(
                format!("{node}: calls a second of {}, several in flight", call.title()),
                "a multiple of the node's own (≥ 2 ×)",
                format!("{least:.1} × to {most:.1} ×"),
                least >= 2.0,
            );
        }
        for (what, target, measured, met) in table.peers.targets() {
            line(format!("{node}: {what}"), &target, measured, met);
        }
        for (what, target, measured, met) in table.modules.iter().flat_map(Modules::targets) {
            line(what.to_owned(), &target, measured, met);
        }
        let crowds = &table.crowds;
        let asked = crowds.asked_per_block();
        line(
            format!(
                "{node}: {} clients ask for each new block: times that the node is asked for it",
                HumanCount(crowds.clients as u64)
            ),
            "1",
            shown(asked),
            asked <= 1.0,
        );
    }
    out
}

fn rows(table: &Results) -> String {
    let mut out = "| call | over | in flight | directly: p50 / p90 / p99 ms | calls/s | through headwater: p50 / p90 / p99 ms | \
                   calls/s | p50 added, ms | × calls/s | µs of CPU a call: node directly / headwater |\n|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for cell in &table.cells {
        let times = |of: &Measured| {
            let milli = |micros: f64| format!("{:.3}", micros / 1e3);
            [milli(of.p50), milli(of.p90), milli(of.p99)].join(" / ")
        };
        let (direct, through, (of_node, of_headwater)) = (cell.direct(), cell.through(), cell.cpu_us());
        let _infallible = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {:+.3} | {:.2} | {} / {} |",
            cell.call.title(),
            cell.transport.name(),
            cell.in_flight,
            times(&direct),
            HumanCount(direct.per_second as u64),
            times(&through),
            HumanCount(through.per_second as u64),
            cell.added_ms(),
            cell.multiple(),
            shown(of_node),
            shown(of_headwater),
        );
    }
    let megabytes = table.memory as f64 / 1e6;
    let _infallible = writeln!(out, "\nheadwater's resident memory after all that: {megabytes:.0} MB.");
    out
}

fn crowds(crowds: &Crowds) -> String {
    let (clients, blocks) = (HumanCount(crowds.clients as u64), crowds.blocks);
    let asked: Vec<String> = crowds
        .asked
        .iter()
        .map(|(method, count)| format!("{count} × {method}"))
        .collect();
    format!(
        "\n{clients} clients with a subscription to newHeads; each calls `eth_getBlockByNumber` with the number of each head, at \
         once, {blocks} blocks. The calls that reach the node are counted before it.\n\n\
         | clients | calls for a block | of which the node gets | the last client has it (p50) |\n|---|---|---|---|\n\
         | at the node | {clients} | {clients} | {:.1} ms |\n| at headwater | {clients} | {} | {:.1} ms |\n\n\
         All that headwater asked meanwhile: {}.\n",
        crowds.direct_ms,
        shown(crowds.asked_per_block()),
        crowds.through_ms,
        asked.join(", "),
    )
}

fn plot(tables: &[Results]) -> String {
    let mut groups: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    for table in tables {
        for cell in table
            .cells
            .iter()
            .filter(|cell| cell.transport == table.cells[0].transport)
        {
            let of = |transport| {
                let same = |other: &&Cell| {
                    other.call == cell.call && other.in_flight == cell.in_flight && other.transport == transport
                };
                table.cells.iter().find(same).map(Cell::multiple)
            };
            let (node, in_flight) = (table.kind.name(), cell.in_flight);
            let call = match cell.call {
                Call::ChainId => "eth_chainId",
                Call::Latest => "newest block",
                Call::Same => "same eth_call",
                Call::Another => "other eth_call",
                Call::Module => "module",
            };
            groups.push((
                format!("{node}: {call}, {in_flight} in flight"),
                Transport::ALL.map(of).to_vec(),
            ));
        }
    }
    let bars = Bars {
        title: "Calls a second through headwater, as a multiple of the node's own (logarithmic, from 0.1)",
        floor: 0.1,
        series: &Transport::ALL.map(Transport::name),
        groups,
    };
    bars.draw()
}
