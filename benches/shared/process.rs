//! Child processes: start, line-based communication, and cleanup.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Number of output lines quoted when a process ends early.
const QUOTED_LINES: usize = 12;

/// Allowance for open files of a process besides its clients' sockets.
const OTHER_FILES: u64 = 100;

/// A running child process, killed when dropped, also on an error path.
pub struct Process {
    name: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    recent: VecDeque<String>,
}

impl Process {
    /// Starts one of this benchmark's own roles, which reports on standard output.
    pub fn start_role(name: &'static str, args: &[String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("the path of the benchmark")?);
        command
            .arg(name)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start the {name} process"))?;
        let output = child.stdout.take().expect("stdout was piped two lines above");
        Ok(Self::new(name, child, output))
    }

    /// Starts a foreign program, which reports on standard error. It runs through the `exec` role, so that the kernel
    /// kills it even if this process is killed before its cleanup.
    pub fn start_program(
        name: &'static str,
        program: &Path,
        args: &[String],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("the path of the benchmark")?);
        command
            .arg("exec")
            .arg(program)
            .args(args)
            .envs(variables.iter().copied());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stderr.take().expect("stderr was piped two lines above");
        Ok(Self::new(name, child, output))
    }

    fn new(name: &'static str, mut child: Child, output: impl Read + Send + 'static) -> Self {
        let stdin = child.stdin.take();
        let (sender, lines) = channel();
        // Ends with the child's output. Draining unused lines keeps the child from blocking on a full pipe.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _unheard = sender.send(line);
            }
        });
        Self {
            name,
            child,
            stdin,
            lines,
            recent: VecDeque::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .expect("lines are sent to roles only, and their stdin is piped");
        writeln!(stdin, "{line}").with_context(|| format!("the {} process has gone", self.name))
    }

    /// Returns the text after `marker` in the first line that contains it; lines without it are skipped.
    ///
    /// # Errors
    ///
    /// If a line begins with `fault ` (the child's own description of its failure), the child ends, or no match
    /// arrives within `timeout` (`Silence`).
    pub fn wait_for(&mut self, marker: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            let line = match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(anyhow!(Silence {
                        name: self.name,
                        timeout
                    }));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let recent = self.recent.make_contiguous().join("\n  ");
                    bail!(
                        "{} ended before it said {:?}; its last lines:\n  {recent}",
                        self.name,
                        marker.trim()
                    );
                }
            };
            if let Some(fault) = line.strip_prefix("fault ") {
                bail!("{fault}");
            }
            if let Some(at) = line.find(marker) {
                return Ok(line[at + marker.len()..].to_owned());
            }
            if self.recent.len() == QUOTED_LINES {
                self.recent.pop_front();
            }
            self.recent.push_back(line);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that the child has already ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Error of a child that is alive but did not print the expected line in time.
#[derive(Debug, thiserror::Error)]
#[error("no word from {name} for {} s", timeout.as_secs())]
pub struct Silence {
    name: &'static str,
    timeout: Duration,
}

/// Raises the limit of open files for one descriptor per client plus a fixed allowance; child processes inherit the
/// limit.
pub fn allow_open_files(clients: usize) -> Result<()> {
    let limit = rlimit::increase_nofile_limit(u64::MAX).context("cannot read the limit of open files")?;
    let needed = clients as u64 + OTHER_FILES;
    ensure!(
        limit >= needed,
        "{needed} open files are needed and {limit} allowed: raise `ulimit -n`"
    );
    Ok(())
}

/// Makes this process die with its parent; called first in every child.
pub fn end_with_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot ask for a signal at the parent's end")
}

/// Replaces this process by `program`; returns only on failure. The death signal set before stays in force.
pub fn become_program(command: &[String]) -> Result<()> {
    let (program, args) = command.split_first().context("exec needs a program")?;
    Err(Command::new(program).args(args).exec()).with_context(|| format!("cannot run {program}"))
}
