//! Calls that go to the node, through headwater and through proxies of others, each before the same node in turns. Every call in
//! flight is that of another client, on a connection of its own: what proxies pass on for one client at once costs them little.
//!
//! The bare relay is one thread that reads bytes and writes them on: the least that a proxy can do.

use std::{fmt::Write as _, net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use indicatif::HumanCount;

use crate::{
    call::Call,
    limits,
    line::Transport,
    load::{self, Measured},
    node::Node,
    peer::{Peer, PeerKind},
    process::Process,
    proxy::Headwater,
    results::median,
    run::{Plan, STEP, before, turn},
    svg::shown,
};

/// Targets of the project: CPU and calls a second, relative to HAProxy's.
const CPU: f64 = 0.8;
const CALLS: [(Transport, f64); 2] = [(Transport::Ws, 0.9), (Transport::Http, 1.0)];

/// Line to the node, by one of the servers.
enum Way {
    Node(SocketAddr, u32),
    Relay(Process, SocketAddr),
    Peer(PeerKind, Peer),
    Headwater(Headwater),
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Node(..) => "node directly",
            Self::Relay(..) => RELAY,
            Self::Peer(kind, _) => kind.name(),
            Self::Headwater(_) => HEADWATER,
        }
    }

    fn server(&self) -> (SocketAddr, u32) {
        match self {
            Self::Node(address, pid) => (*address, *pid),
            Self::Relay(process, address) => (*address, process.pid()),
            Self::Peer(_, peer) => (peer.address, peer.pid()),
            Self::Headwater(headwater) => (headwater.address, headwater.process.pid()),
        }
    }
}

const RELAY: &str = "bare relay";
const HEADWATER: &str = "headwater";

/// All measurements before one node.
pub struct Peers {
    cells: Vec<PeerCell>,
}

/// Turns with the same transport and number in flight.
struct PeerCell {
    transport: Transport,
    in_flight: usize,
    /// Name of the server, and its turns: each with the CPU microseconds of a call.
    servers: Vec<(&'static str, Vec<(Measured, f64)>)>,
}

impl Peers {
    pub fn measure(
        node: &Node,
        plan: &Plan,
        installed: &[(PeerKind, &Path)],
        in_flight: &[usize],
        rounds: usize,
    ) -> Result<Self> {
        let mut relay = Process::start_role("bare-relay", &[format!("--node={}", node.address)])?;
        let address = relay.wait_for("listening ", STEP)?.parse()?;
        let mut ways = vec![Way::Node(node.address, node.pid()), Way::Relay(relay, address)];
        for (kind, binary) in installed {
            let peer = Peer::start(*kind, binary, node.address).with_context(|| kind.name())?;
            ways.push(Way::Peer(*kind, peer));
        }
        ways.push(Way::Headwater(before(node, node.address, plan)?));

        let mut turns = 0_u64;
        let mut cells = Vec::new();
        for transport in Transport::ALL {
            for in_flight in in_flight {
                let mut servers: Vec<_> = ways.iter().map(|way| (way.name(), Vec::new())).collect();
                for round in 0..2 * rounds {
                    // There and back again, so that drift over time affects all alike.
                    let forth = round % 2 == 0;
                    for at in 0..ways.len() {
                        let at = if forth { at } else { ways.len() - 1 - at };
                        let (server, pid) = ways[at].server();
                        turns += 1;
                        let args = load::Args {
                            server,
                            node: node.address,
                            call: Call::Another,
                            transport,
                            in_flight: *in_flight,
                            sockets: *in_flight,
                            first: turns << 32,
                            warmup_ms: plan.warmup.as_millis() as u64,
                            counted_ms: plan.counted.as_millis() as u64,
                        };
                        let what = || format!("{} over {}", ways[at].name(), transport.name());
                        servers[at].1.push(turn(&args, pid).with_context(what)?);
                    }
                }
                let cell = PeerCell {
                    transport,
                    in_flight: *in_flight,
                    servers,
                };
                eprintln!("peers: {}", cell.progress());
                cells.push(cell);
            }
        }
        Ok(Self { cells })
    }

    pub fn checked(&self) -> u64 {
        let turns = self
            .cells
            .iter()
            .flat_map(|cell| &cell.servers)
            .flat_map(|(_, turns)| turns);
        turns.map(|(measured, _)| measured.calls).sum()
    }

    /// Returns rows of the table of targets: subject, target, measured value, and `true` if it is met. Without HAProxy there
    /// are none.
    pub fn targets(&self) -> Vec<(String, String, String, bool)> {
        let mut rows = Vec::new();
        for cell in &self.cells {
            let haproxy = PeerKind::Haproxy.name();
            let (Some(cpu), Some(calls)) = (
                cell.ratio(HEADWATER, haproxy, |turn| turn.1),
                cell.ratio(HEADWATER, haproxy, |turn| turn.0.per_second),
            ) else {
                continue;
            };
            let least = CALLS
                .iter()
                .find(|(of, _)| *of == cell.transport)
                .map_or(1.0, |(_, least)| *least);
            rows.push((
                format!("{}: CPU of a call that goes to the node", cell.title()),
                format!("≤ {CPU} × HAProxy's"),
                format!("{cpu:.2} ×"),
                cpu <= CPU,
            ));
            rows.push((
                format!("{}: calls a second that go to the node", cell.title()),
                format!("≥ {least} × HAProxy's"),
                format!("{calls:.2} ×"),
                calls >= least,
            ));
        }
        rows
    }

    /// Returns headwater's CPU beside the bare relay's.
    pub fn limits(&self, node: &str) -> Vec<limits::Row> {
        let row = |cell: &PeerCell| {
            let haproxy = cell.ratio(PeerKind::Haproxy.name(), RELAY, |turn| turn.1);
            Some(limits::Row {
                what: format!("{node}: CPU of a call, {}", cell.title()),
                limit: "bare relay: bytes read and written on",
                at: format!("{} µs", shown(cell.median(RELAY, |turn| turn.1)?)),
                ours: format!("{} µs", shown(cell.median(HEADWATER, |turn| turn.1)?)),
                times: cell.ratio(HEADWATER, RELAY, |turn| turn.1)?,
                target: haproxy.map(|haproxy| CPU * haproxy),
            })
        };
        self.cells.iter().filter_map(row).collect()
    }

    pub fn table(&self) -> String {
        let mut out = "\n`eth_call`, another each time, through proxies before the same node; each call in flight is that of another client, on a connection of its own. HAProxy and nginx are those that are \
                       installed, with connections to the node that all requests over HTTP share; nginx has one process. The bare relay \
                       only reads bytes and writes them on.\n\n\
                       | over | in flight | server | p50 / p90 / p99 ms | calls/s | µs of CPU a call | CPU × HAProxy | calls/s × HAProxy \
                       |\n|---|---|---|---|---|---|---|---|\n"
            .to_owned();
        for cell in &self.cells {
            for (server, _) in &cell.servers {
                let of = |field: fn(&(Measured, f64)) -> f64| cell.median(server, field).unwrap_or(f64::NAN);
                let to_haproxy = |field: fn(&(Measured, f64)) -> f64| {
                    let ratio = cell.ratio(server, PeerKind::Haproxy.name(), field);
                    ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
                };
                let _infallible = writeln!(
                    out,
                    "| {} | {} | {server} | {:.3} / {:.3} / {:.3} | {} | {} | {} | {} |",
                    cell.transport.name(),
                    cell.in_flight,
                    of(|turn| turn.0.p50 / 1e3),
                    of(|turn| turn.0.p90 / 1e3),
                    of(|turn| turn.0.p99 / 1e3),
                    HumanCount(of(|turn| turn.0.per_second) as u64),
                    shown(of(|turn| turn.1)),
                    to_haproxy(|turn| turn.1),
                    to_haproxy(|turn| turn.0.per_second),
                );
            }
        }
        out
    }
}

impl PeerCell {
    fn title(&self) -> String {
        format!("{}, {} in flight", self.transport.name(), self.in_flight)
    }

    fn progress(&self) -> String {
        let cpu = self.servers.iter().map(|(server, _)| {
            let cpu = self.median(server, |turn| turn.1).unwrap_or(f64::NAN);
            format!("{server} {} µs", shown(cpu))
        });
        format!("{}: {}", self.title(), cpu.collect::<Vec<_>>().join(", "))
    }

    fn turns(&self, server: &str) -> Option<&[(Measured, f64)]> {
        let (_, turns) = self.servers.iter().find(|(name, _)| *name == server)?;
        Some(turns)
    }

    fn median(&self, server: &str, field: fn(&(Measured, f64)) -> f64) -> Option<f64> {
        let turns = self.turns(server)?;
        Some(median(&mut turns.iter().map(field).collect::<Vec<_>>()))
    }

    /// Returns the median of the ratios within each turn of all servers.
    fn ratio(&self, server: &str, base: &str, field: fn(&(Measured, f64)) -> f64) -> Option<f64> {
        let pairs = self.turns(server)?.iter().zip(self.turns(base)?);
        Some(median(
            &mut pairs.map(|(own, base)| field(own) / field(base)).collect::<Vec<_>>(),
        ))
    }
}
