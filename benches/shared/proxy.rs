//! headwater as its users run it: the release binary, before a node.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};

use crate::process::Process;

/// It is up in a moment, whatever else the machine does.
const START: Duration = Duration::from_secs(60);

/// All clients have one address here, so the limit of one address would be what is measured.
const NO_LIMIT: [(&str, &str); 2] = [
    ("HEADWATER_LIMITS_REQUESTS_PER_SECOND", "1000000"),
    ("HEADWATER_LIMITS_REQUEST_BURST", "1000000"),
];

/// A running headwater. It ends with this value.
pub struct Headwater {
    /// Everybody looks at its `pid`, and what it says is read only here.
    pub process: Process,
    pub address: SocketAddr,
    #[allow(dead_code, reason = "only one of the benchmarks looks there")]
    pub admin: SocketAddr,
}

impl Headwater {
    /// `args` are its own after `run`, `settings` variables.
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
