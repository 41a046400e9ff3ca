//! The roles of this program's child processes.

use anyhow::Result;
use clap::Subcommand;

use crate::{bare_relay, crowd, load, modules, process, relay};

#[derive(Debug, Subcommand)]
pub enum Role {
    /// Makes calls, with a fixed number in flight.
    Load(load::Args),
    /// Clients that request every announced block.
    Crowd(crowd::Args),
    /// A relay in front of the node that counts calls.
    Relay(relay::Args),
    /// A relay in front of the node that only passes bytes on.
    BareRelay(bare_relay::Args),
    /// A program with headwater in it.
    Embed(modules::Args),
    /// Another program that must end with the benchmark.
    Exec {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

impl Role {
    pub fn play(self) -> Result<()> {
        process::end_with_parent()?;
        let played = match &self {
            Self::Load(args) => load::run(args),
            Self::Crowd(args) => crowd::run(args),
            Self::Relay(args) => relay::run(args),
            Self::BareRelay(args) => bare_relay::run(args),
            Self::Embed(args) => modules::embed(args),
            // Reports errors on standard error, like the program it becomes.
            Self::Exec { command } => return process::become_program(command),
        };
        // The benchmark reads faults from standard output.
        if let Err(error) = &played {
            println!("fault {}", format!("{error:#}").replace('\n', " "));
        }
        Ok(())
    }
}
