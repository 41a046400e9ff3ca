//! What a run has shown, for people and for machines.

use std::fmt::{self, Display, Formatter};

use hdrhistogram::Histogram;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Report {
    pub url: String,
    pub clients: usize,
    /// Parameters of the subscriptions.
    pub subscriptions: Vec<String>,
    pub connecting: Connecting,
    /// The window of the figures below.
    pub seconds: f64,
    pub events: u64,
    pub deliveries: u64,
    pub deliveries_per_second: f64,
    pub bytes: u64,
    /// From the first client's receipt of an event to another's.
    pub spread: Times,
    /// From the first client's receipt of an event to the last's.
    pub last_client: Times,
    pub server: Option<Server>,
    pub lost: u64,
    pub doubled: u64,
    pub disordered: u64,
    /// Connections that ended before the run did.
    pub closed: usize,
    /// The first faults in words.
    pub faults: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Connecting {
    pub seconds: f64,
    pub per_second: f64,
    /// From the connect to the answers to `eth_subscribe`.
    pub handshake: Times,
}

/// In microseconds.
#[derive(Debug, Serialize)]
pub struct Times {
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

#[derive(Debug, Serialize)]
pub struct Server {
    pub cpu_us_per_delivery: f64,
    /// With no client, half of them, and all.
    pub resident_bytes: Vec<u64>,
    /// Of the second half of the clients.
    pub resident_bytes_per_client: f64,
}

impl Times {
    /// Of nanoseconds.
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
