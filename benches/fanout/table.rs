//! The measurements of all rounds, side by side.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{
    chain::{Chain, Scenario},
    notification,
    results::median,
    run::{Plan, Sample, Server},
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
    pub last_client_us: f64,
    /// Time until the last client has the event, relative to the bare loop, like `ratio`.
    pub last_client_ratio: Option<f64>,
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
            let ratio = |field| Some(ratio(samples, base?, field));
            Row {
                server: *server,
                cpu_us: of(|sample| sample.cpu_ns_per_message) / 1e3,
                ratio: ratio(|sample| sample.cpu_ns_per_message),
                last_client_us: of(|sample| sample.last_client_us),
                last_client_ratio: ratio(|sample| sample.last_client_us),
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
        text += "  server        µs CPU/message   x loop   last client has it (p50)   connects/s   bytes/message\n";
        let rows = self.rows();
        for row in &rows {
            let ratio = row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let _infallible = writeln!(
                text,
                "  {:<12}  {:>14.3}   {:>6}   {:>21.2} ms   {:>10.0}   {:>13.0}",
                row.server.name(),
                row.cpu_us,
                ratio,
                row.last_client_us / 1e3,
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
                    "last_client_p50_us": row.last_client_us,
                    "last_client_ratio_to_loop": row.last_client_ratio,
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
