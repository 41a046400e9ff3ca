//! Lines for people: aligned, and coloured by ANSI codes, which the output strips where there is no terminal.

use std::fmt::{Display, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use alloy_primitives::U256;
use anstyle::{AnsiColor, Style};

use super::abi::{Argument, Decoded, Events};
use super::event::{Event, Header, Log, Receipt};
use super::value;
use crate::text::Printable;

/// Last second that RFC 3339 can write, in the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

const PLAIN: Style = Style::new();
const DIM: Style = PLAIN.dimmed();
const BOLD: Style = PLAIN.bold();
const HEAD: Style = AnsiColor::Cyan.on_default();
const LOG: Style = AnsiColor::Green.on_default();
const RECEIPT: Style = AnsiColor::Magenta.on_default();
const PENDING: Style = AnsiColor::Blue.on_default();
const NAME: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();

/// A line under construction. If the event was removed, all of it is struck out and ends with the word: output without
/// colours has to say so, too.
struct Line {
    text: String,
    removed: bool,
}

impl Line {
    /// Begins with the kind and the block: two columns of fixed width.
    fn new(kind: &str, style: Style, number: Option<u64>, removed: bool) -> Self {
        let mut line = Self {
            text: String::new(),
            removed,
        };
        line.put(style, format_args!("{kind:<8}"));
        match number {
            Some(number) => line.put(BOLD, format_args!("{number:>9}")),
            None => line.put(PLAIN, format_args!("{:>9}", "")),
        }
        line
    }

    fn put(&mut self, style: Style, what: impl Display) {
        let style = if self.removed { style.strikethrough() } else { style };
        // Writing to a String cannot fail.
        let _ = write!(self.text, "{style}{what}{style:#}");
    }

    fn end(mut self) -> String {
        if self.removed {
            self.removed = false;
            self.put(BAD, "  removed");
        }
        self.text
    }
}

/// Returns an event as a line, coloured.
pub(super) fn line(event: &Event, removed: bool, events: &Events) -> String {
    match event {
        Event::Head(header) => head(header, removed),
        Event::Log(log) => self::log(log, removed, events.decode(log)),
        Event::Receipt(receipt) => self::receipt(receipt, removed),
        Event::Pending(hash) => {
            let mut line = Line::new("pending", PENDING, None, removed);
            line.put(PLAIN, format_args!("  {hash}"));
            line.end()
        }
    }
}

fn head(header: &Header, removed: bool) -> String {
    let mut line = Line::new("head", HEAD, Some(header.number), removed);
    line.put(PLAIN, format_args!("  {}", header.hash));
    if let Some(seconds) = header.timestamp.filter(|seconds| *seconds <= LAST_SECOND) {
        let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds));
        line.put(DIM, format_args!("  {time}"));
    }
    if let (Some(used), Some(limit @ 1..)) = (header.gas_used, header.gas_limit) {
        let percent = u128::from(used) * 100 / u128::from(limit);
        line.put(DIM, format_args!("  gas {percent:>2}%"));
    }
    if let Some(fee) = header.base_fee_per_gas {
        line.put(DIM, format_args!("  base fee {} gwei", gwei(fee)));
    }
    line.end()
}

fn log(log: &Log, removed: bool, decoded: Option<Decoded<'_>>) -> String {
    let mut line = Line::new("log", LOG, Some(log.block_number), removed);
    line.put(DIM, format_args!("  {:<5}", format!("#{}", log.log_index)));
    line.put(PLAIN, format_args!("{:#x}  ", log.address));
    match decoded {
        Some(decoded) => {
            line.put(NAME, Printable(decoded.name));
            line.put(PLAIN, arguments(&decoded.arguments));
        }
        None => {
            for (at, topic) in log.topics.iter().enumerate() {
                line.put(if at == 0 { NAME } else { PLAIN }, format_args!("{topic} "));
            }
            line.put(PLAIN, format_args!("data {}", value::bytes_of(&log.data)));
        }
    }
    line.put(DIM, format_args!("  tx {}", log.transaction_hash));
    line.end()
}

fn arguments(arguments: &[(&str, Argument)]) -> String {
    let mut text = String::from("(");
    for (at, (name, argument)) in arguments.iter().enumerate() {
        if at > 0 {
            text.push_str(", ");
        }
        if !name.is_empty() {
            text.push_str(name);
            text.push('=');
        }
        match argument {
            Argument::Value(value) => value::write(value, &mut text),
            // Writing to a String cannot fail.
            Argument::Hash(hash) => drop(write!(text, "hash {hash}")),
        }
    }
    text.push(')');
    text
}

fn receipt(receipt: &Receipt, removed: bool) -> String {
    let mut line = Line::new("receipt", RECEIPT, Some(receipt.block_number), removed);
    line.put(PLAIN, format_args!("  {}", receipt.transaction_hash));
    match receipt.status {
        Some(true) => line.put(GOOD, "  ok    "),
        Some(false) => line.put(BAD, "  failed"),
        None => line.put(DIM, "  -     "),
    }
    line.put(PLAIN, format_args!("  {:#x} ", receipt.from));
    match (receipt.to, receipt.contract_address) {
        (Some(to), _) => line.put(PLAIN, format_args!("> {to:#x}")),
        (None, Some(contract)) => line.put(PLAIN, format_args!("creates {contract:#x}")),
        (None, None) => {}
    }
    line.put(DIM, format_args!("  gas {}  {} logs", receipt.gas_used, receipt.logs));
    line.end()
}

/// Writes wei as gwei, with three decimals at most.
fn gwei(wei: U256) -> String {
    let milli = wei / U256::from(1_000_000_u64);
    let (whole, rest) = milli.div_rem(U256::from(1_000_u64));
    let text = format!("{whole}.{rest:03}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
