//! The result of a run, as text and as JSON.

use std::fmt::{self, Display, Formatter};

use hdrhistogram::Histogram;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Report {
    pub url: String,
    pub clients: usize,
    /// Parameters of `eth_subscribe`, one entry per stream.
    pub subscriptions: Vec<String>,
    pub connecting: Connecting,
    /// Length of the measurement window, to which events, deliveries, bytes and times refer.
    pub seconds: f64,
    pub events: u64,
    pub deliveries: u64,
    pub deliveries_per_second: f64,
    pub bytes: u64,
    /// Time from the first client's receipt of an event to each other client's.
    pub spread: Times,
    /// Time from the first client's receipt of an event to the last client's.
    pub last_client: Times,
    pub server: Option<Server>,
    pub lost: u64,
    pub doubled: u64,
    pub disordered: u64,
    /// Connections that ended before the run did.
    pub closed: usize,
    /// Descriptions of the first faults, and the reasons of closed connections.
    pub faults: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Connecting {
    pub seconds: f64,
    pub per_second: f64,
    /// Time from the connect to the answers to `eth_subscribe`.
    pub handshake: Times,
}

/// Quantiles in microseconds.
#[derive(Debug, Serialize)]
pub struct Times {
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

#[derive(Debug, Serialize)]
pub struct Server {
    pub cpu_us_per_delivery: f64,
    /// Bytes: with no client, with half of the clients, and with all.
    pub resident_bytes: Vec<u64>,
    /// Growth per client while the second half of the clients connected.
    pub resident_bytes_per_client: f64,
}

impl Times {
    /// Reads the quantiles of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Self {
            p50_us: micros(histogram.value_at_quantile(0.5)),
            p99_us: micros(histogram.value_at_quantile(0.99)),
            max_us: micros(histogram.max()),
        }
    }
}

impl Display for Times {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let millis = |micros: f64| micros / 1e3;
        let Self { p50_us, p99_us, max_us } = *self;
        let (p50, p99, max) = (millis(p50_us), millis(p99_us), millis(max_us));
        write!(f, "p50 {p50:.2} ms, p99 {p99:.2} ms, longest {max:.2} ms")
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let count = |n: f64| HumanCount(n.round() as u64);
        let Connecting {
            seconds,
            per_second,
            handshake,
        } = &self.connecting;
        writeln!(
            f,
            "clients      {} of {}, subscribed to {}",
            HumanCount(self.clients as u64),
            self.url,
            self.subscriptions.join(", ")
        )?;
        writeln!(
            f,
            "connecting   {seconds:.1} s, {} a second; each {handshake}",
            count(*per_second)
        )?;
        writeln!(
            f,
            "deliveries   {} of {} events in {:.1} s, {} a second, {} a second",
            HumanCount(self.deliveries),
            HumanCount(self.events),
            self.seconds,
            count(self.deliveries_per_second),
            HumanBytes((self.bytes as f64 / self.seconds) as u64),
        )?;
        writeln!(f, "spread       {} after the first client", self.spread)?;
        writeln!(f, "last client  {} after the first client", self.last_client)?;
        if let Some(server) = &self.server {
            let resident: Vec<String> = server
                .resident_bytes
                .iter()
                .map(|bytes| HumanBytes(*bytes).to_string())
                .collect();
            writeln!(
                f,
                "server       {:.2} µs CPU a delivery; {} resident memory a client ({} with none, half, all)",
                server.cpu_us_per_delivery,
                HumanBytes(server.resident_bytes_per_client.max(0.0) as u64),
                resident.join(", "),
            )?;
        }
        writeln!(
            f,
            "faults       {} lost, {} doubled, {} out of order, {} closed",
            self.lost, self.doubled, self.disordered, self.closed
        )?;
        for fault in &self.faults {
            writeln!(f, "  {fault}")?;
        }
        Ok(())
    }
}
