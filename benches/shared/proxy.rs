//! headwater in the form that users run: the release binary, in front of a node.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};

use crate::process::Process;

/// Time limit for startup, generous because startup takes only a moment even on a busy machine.
const START: Duration = Duration::from_secs(60);

/// All clients share one address here, so the per-address limits would dominate the measurement.
const NO_LIMIT: [(&str, &str); 2] = [
    ("HEADWATER_LIMITS_REQUESTS_PER_SECOND", "1000000"),
    ("HEADWATER_LIMITS_REQUEST_BURST", "1000000"),
];

/// A running headwater, stopped when dropped.
pub struct Headwater {
    /// The child process. Callers use only its `pid`; its output is read only here.
    pub process: Process,
    pub address: SocketAddr,
    #[allow(dead_code, reason = "only one of the benchmarks looks there")]
    pub admin: SocketAddr,
}

impl Headwater {
    /// Starts headwater; `args` follow `run` on the command line, `settings` are environment variables.
    pub fn start(binary: &Path, node: SocketAddr, args: &[String], settings: &[(&str, &str)]) -> Result<Self> {
        let node = format!("ws://{node}");
        let fixed = [
            "run",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--upstream",
            &node,
        ];
        let args: Vec<String> = fixed
            .into_iter()
            .map(str::to_owned)
            .chain(args.iter().cloned())
            .collect();
        let mut process = Process::start_program("headwater", binary, &args, &[&NO_LIMIT, settings].concat())?;
        let mut address_after = |marker| {
            let rest = process.wait_for(marker, START)?;
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
            rest[..end.unwrap_or(rest.len())]
                .parse()
                .with_context(|| format!("headwater serves on {rest:?}"))
        };
        let (address, admin) = (address_after("serving on ws://")?, address_after("admin on http://")?);
        Ok(Self {
            process,
            address,
            admin,
        })
    }
}
