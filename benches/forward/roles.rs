//! The parts that this program plays in its child processes.

use anyhow::Result;
use clap::Subcommand;

use crate::{crowd, load, process, relay};

#[derive(Debug, Subcommand)]
pub enum Role {
    /// Calls, so many at the same time.
    Load(load::Args),
    /// Clients that ask for every block of which they are told.
    Crowd(crowd::Args),
    /// Stands before the node and counts the calls that reach it.
    Relay(relay::Args),
    /// Another program that is to end with the benchmark.
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
            // It speaks on standard error, like what it becomes.
            Self::Exec { command } => return process::become_program(command),
        };
        // The account goes to standard output, where the benchmark waits for it.
        if let Err(error) = &played {
            println!("fault {}", format!("{error:#}").replace('\n', " "));
        }
        Ok(())
    }
}
