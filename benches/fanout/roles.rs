//! The roles of this program's child processes.

use std::{net::SocketAddr, thread};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{
    chain::{Chain, Scenario},
    load, loop_server, node, process, stock_server,
};

#[derive(Debug, Subcommand)]
pub enum Role {
    /// The bare `writev` loop.
    Loop(loop_server::Args),
    /// The stock jsonrpsee server.
    Stock(stock_server::Args),
    /// The scripted node behind headwater.
    Node(ServeArgs),
    /// The clients.
    Load(LoadArgs),
    /// Another program that must end with the benchmark.
    Exec {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

impl Role {
    pub fn play(self) -> Result<()> {
        process::end_with_parent()?;
        match self {
            Self::Loop(args) => loop_server::serve(&args),
            Self::Stock(args) => stock_server::serve(&args),
            Self::Node(args) => node::serve(&args),
            Self::Load(args) => load::receive(&args),
            Self::Exec { command } => process::become_program(&command),
        }
    }
}

/// The settings that the processes of one run share.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[arg(long)]
    pub scenario: Scenario,
    /// Number of events in the run, warm-up included.
    #[arg(long)]
    pub events: usize,
    #[arg(long)]
    pub epoch: u64,
}

impl ServeArgs {
    pub fn chain(&self) -> Chain {
        Chain::new(self.scenario, self.epoch)
    }

    pub fn to_args(&self) -> Vec<String> {
        let Self {
            scenario,
            events,
            epoch,
        } = self;
        vec![
            format!("--scenario={}", scenario.name()),
            format!("--events={events}"),
            format!("--epoch={epoch}"),
        ]
    }
}

#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    #[command(flatten)]
    pub work: ServeArgs,
    #[arg(long)]
    pub server: SocketAddr,
    #[arg(long)]
    pub clients: usize,
    /// Offer compression, which the server must accept.
    #[arg(long)]
    pub compress: bool,
    /// Read server-sent events.
    #[arg(long)]
    pub event_stream: bool,
}

impl LoadArgs {
    pub fn to_args(&self) -> Vec<String> {
        let mut args = self.work.to_args();
        args.push(format!("--server={}", self.server));
        args.push(format!("--clients={}", self.clients));
        if self.compress {
            args.push("--compress".to_owned());
        }
        if self.event_stream {
            args.push("--event-stream".to_owned());
        }
        args
    }
}

/// Reads event numbers from standard input, one per line, and passes each to `on_event` on a separate thread.
pub fn on_each_event(mut on_event: impl FnMut(usize) + Send + 'static) {
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            on_event(line.trim().parse().expect("the benchmark sends event numbers only"));
        }
    });
}
