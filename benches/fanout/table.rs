//! The measurements of all rounds, side by side.

use std::fmt::Write as _;

use indicatif::HumanCount;
use serde_json::{Value, json};

use crate::{
    chain::{Chain, Scenario},
    limits, notification,
    results::median,
    run::{Latency, Plan, Sample, Server},
    svg::shown,
};

/// The samples of one scenario; each server has one per round.
pub struct Results {
    pub scenario: Scenario,
    pub plan: Plan,
    rounds: Vec<(Server, Vec<Sample>)>,
}

/// Medians over the rounds. The machines are noisy, so a ratio is taken within each round before its median.
pub struct Row {
    pub server: Server,
    pub cpu_us: f64,
    /// CPU time relative to the bare loop; `None` if the loop was not run.
    pub ratio: Option<f64>,
    pub latency: Latency,
    /// Times until clients have the event, relative to the bare loop, like `ratio`.
    pub latency_ratio: Option<Latency>,
    pub connects_per_second: f64,
    pub bytes_per_message: f64,
    rewritten: u64,
    pub checked: u64,
}

impl Results {
    pub fn new(scenario: Scenario, plan: Plan, servers: &[Server]) -> Self {
        Self {
            scenario,
            plan,
            rounds: servers.iter().map(|server| (*server, Vec::new())).collect(),
        }
    }

    pub fn servers(&self) -> Vec<Server> {
        self.rounds.iter().map(|(server, _)| *server).collect()
    }

    pub fn add(&mut self, server: Server, sample: Sample) {
        let (_, samples) = self
            .rounds
            .iter_mut()
            .find(|(of, _)| *of == server)
            .expect("only the servers named at the start are run");
        samples.push(sample);
    }

    pub fn rows(&self) -> Vec<Row> {
        let base = self.samples(Server::Loop);
        let row = |(server, samples): &(Server, Vec<Sample>)| {
            let of = |field: fn(&Sample) -> f64| median(&mut samples.iter().map(field).collect::<Vec<_>>());
            let ratio = |field: fn(&Sample) -> f64| Some(ratio(samples, base?, field));
            Row {
                server: *server,
                cpu_us: of(|sample| sample.cpu_ns_per_message) / 1e3,
                ratio: ratio(|sample| sample.cpu_ns_per_message),
                latency: Latency {
                    first: of(|sample| sample.latency.first),
                    p50: of(|sample| sample.latency.p50),
                    p99: of(|sample| sample.latency.p99),
                    last: of(|sample| sample.latency.last),
                },
                latency_ratio: base.map(|base| Latency {
                    first: self::ratio(samples, base, |sample| sample.latency.first),
                    p50: self::ratio(samples, base, |sample| sample.latency.p50),
                    p99: self::ratio(samples, base, |sample| sample.latency.p99),
                    last: self::ratio(samples, base, |sample| sample.latency.last),
                }),
                connects_per_second: of(|sample| sample.connects_per_second),
                bytes_per_message: of(|sample| sample.bytes_per_message),
                checked: samples.iter().map(|sample| sample.checked).sum(),
                rewritten: samples.iter().map(|sample| sample.rewritten).sum(),
            }
        };
        self.rounds.iter().map(row).collect()
    }

    fn samples(&self, server: Server) -> Option<&[Sample]> {
        let (_, samples) = self.rounds.iter().find(|(of, _)| *of == server)?;
        Some(samples)
    }

    /// Compares headwater with and without compression; `None` unless both were run.
    pub fn compression(&self) -> Option<Compression> {
        let (compressed, plain) = (self.samples(Server::Compressed)?, self.samples(Server::Headwater)?);
        Some(Compression {
            cpu: ratio(compressed, plain, |sample| sample.cpu_ns_per_message),
            saved: 1.0 - ratio(compressed, plain, |sample| sample.bytes_per_message),
        })
    }

    /// Compares headwater with the loops: CPU with the cheaper of them, and times of the first and last client.
    pub fn limits(&self) -> Vec<limits::Row> {
        let (limit, base, target) = match self.scenario {
            Scenario::Heads => ("loop: a `writev` a client", Server::Loop, 1.15),
            Scenario::Bursts => ("loop: one shared block a client", Server::Shared, 1.1),
            Scenario::Blocks => ("loop: a `writev` a client", Server::Loop, 1.15),
            Scenario::PendingAlone => ("loop: a `writev` a client", Server::Loop, 1.5),
            Scenario::PendingGrouped => ("loop: a `writev` a client and group", Server::Loop, 1.5),
        };
        let (Some(ours), Some(base)) = (self.samples(Server::Headwater), self.samples(base)) else {
            return Vec::new();
        };
        // Fewer clients do not cover the fixed cost of an event, such as fetching logs from the node.
        let target = (self.plan.clients >= 1000).then_some(target);
        let what = |what: &str| {
            let clients = HumanCount(self.plan.clients as u64);
            format!("{}, {clients} clients: {what}", self.scenario.name())
        };
        let row = |name, unit, field: fn(&Sample) -> f64, target| {
            let of = |samples: &[Sample]| median(&mut samples.iter().map(field).collect::<Vec<_>>());
            limits::Row {
                what: what(name),
                limit,
                at: format!("{} {unit}", shown(of(base))),
                ours: format!("{} {unit}", shown(of(ours))),
                times: ratio(ours, base, field),
                target,
            }
        };
        vec![
            row("CPU", "µs", |sample| sample.cpu_ns_per_message / 1e3, target),
            row("first client", "ms", |sample| sample.latency.first / 1e3, None),
            row("last client", "ms", |sample| sample.latency.last / 1e3, None),
        ]
    }

    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{}: {} clients, {} events of {} message(s) with {} bytes of JSON in each of {} rounds\n\n",
            self.scenario.name(),
            self.plan.clients,
            self.plan.counted,
            self.scenario.messages_per_event(),
            self.message_bytes(),
            self.round_count(),
        );
        text += "  server        µs CPU/message   x loop    first   p50   p99   last client has it (ms)   connects/s   bytes/message\n";
        let rows = self.rows();
        for row in &rows {
            let ratio = row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let _infallible = writeln!(
                text,
                "  {:<12}  {:>14.3}   {:>6}   {:>36}   {:>10.0}   {:>13.0}",
                row.server.name(),
                row.cpu_us,
                ratio,
                row.latency.in_millis(),
                row.connects_per_second,
                row.bytes_per_message,
            );
        }
        for row in rows.iter().filter(|row| row.rewritten > 0) {
            let (server, rewritten) = (row.server.name(), row.rewritten);
            let _infallible = writeln!(
                text,
                "  note: {rewritten} messages of {server} said the same in other bytes"
            );
        }
        if let Some(verdict) = Verdict::of(&rows) {
            let _infallible = writeln!(text, "\n  {}", verdict.to_text());
        }
        if let Some(compression) = self.compression() {
            let _infallible = writeln!(text, "\n  compressed {}", compression.to_text());
        }
        text
    }

    pub fn to_json(&self) -> Value {
        let rows = self.rows();
        let servers: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({
                    "server": row.server.name(),
                    "cpu_us_per_message": row.cpu_us,
                    "ratio_to_loop": row.ratio,
                    "latency_us": row.latency.to_json(),
                    "latency_ratio_to_loop": row.latency_ratio.map(Latency::to_json),
                    "connects_per_second": row.connects_per_second,
                    "bytes_per_message": row.bytes_per_message,
                    "rewritten_messages": row.rewritten,
                })
            })
            .collect();
        json!({
            "scenario": self.scenario.name(),
            "clients": self.plan.clients,
            "events": self.plan.counted,
            "messages_per_event": self.scenario.messages_per_event(),
            "message_bytes": self.message_bytes(),
            "rounds": self.round_count(),
            "servers": servers,
            "compression": self.compression().map(|compression| json!({
                "cpu_to_uncompressed": compression.cpu,
                "bytes_saved": compression.saved,
            })),
            "verdict": Verdict::of(&rows).map(|verdict| verdict.to_json()),
        })
    }

    pub fn round_count(&self) -> usize {
        self.rounds.iter().map(|(_, samples)| samples.len()).min().unwrap_or(0)
    }

    /// Returns the size of the first message, with its envelope.
    pub fn message_bytes(&self) -> usize {
        let envelope = notification::prefix(&notification::subscription_id(0)).len() + notification::END.len();
        let chain = Chain::new(self.scenario, 1_700_000_000);
        chain.results(0).first().map_or(0, |result| envelope + result.len())
    }
}

/// headwater with compression, compared with headwater without.
#[derive(Clone, Copy)]
pub struct Compression {
    /// CPU time per message with compression, relative to the time without.
    cpu: f64,
    /// Share of the bytes on the wire that compression saves.
    saved: f64,
}

impl Compression {
    pub const TARGET: &'static str = "≤ 1.3 × the uncompressed CPU, ≥ 40 % fewer bytes";

    pub fn is_met(self) -> bool {
        self.cpu <= 1.3 && self.saved >= 0.4
    }

    pub fn to_text(self) -> String {
        format!(
            "{:.2} × the uncompressed CPU, {:.0} % fewer bytes",
            self.cpu,
            self.saved * 100.0
        )
    }
}

/// Returns the median of the ratios within each round.
fn ratio(samples: &[Sample], base: &[Sample], field: fn(&Sample) -> f64) -> f64 {
    let by_round = samples.iter().zip(base);
    let mut ratios: Vec<f64> = by_round.map(|(own, base)| field(own) / field(base)).collect();
    median(&mut ratios)
}

/// The cost of headwater and of jsonrpsee, relative to the loop.
struct Verdict {
    headwater: f64,
    jsonrpsee: f64,
}

impl Verdict {
    /// Returns `None` unless all three servers were run.
    fn of(rows: &[Row]) -> Option<Self> {
        let ratio = |server| rows.iter().find(|row| row.server == server)?.ratio;
        Some(Self {
            headwater: ratio(Server::Headwater)?,
            jsonrpsee: ratio(Server::Stock)?,
        })
    }

    /// Compares distances by logarithm: twice the loop is as far from the loop as half of jsonrpsee is from
    /// jsonrpsee.
    fn nearer_to_the_loop(&self) -> bool {
        self.headwater.ln().abs() < (self.headwater / self.jsonrpsee).ln().abs()
    }

    fn to_text(&self) -> String {
        format!(
            "headwater {:.2} x the loop, jsonrpsee {:.2} x the loop; nearer to the loop: {} (by |log ratio|)",
            self.headwater,
            self.jsonrpsee,
            if self.nearer_to_the_loop() { "yes" } else { "no" },
        )
    }

    fn to_json(&self) -> Value {
        json!({
            "headwater_to_loop": self.headwater,
            "jsonrpsee_to_loop": self.jsonrpsee,
            "nearer_to_the_loop": self.nearer_to_the_loop(),
            "measure": "|log ratio|",
        })
    }
}

/// Returns the smallest value for which at least `share` of all values are not larger.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
