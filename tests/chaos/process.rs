//! A child process that can be killed, stopped and started again on the same port.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Ends with this value, without asking it.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// Waits until it says `marker`; `false` where it ends before. Its output is read to the end, for a process stops at
    /// a pipe that is full.
    pub async fn says(&mut self, marker: &'static str) -> bool {
        let output: ChildStdout = self.0.stdout.take().expect("its output is a pipe");
        let (found, said) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut found = Some(found);
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.contains(marker)
                    && let Some(found) = found.take()
                {
                    // Nobody may wait for it any more.
                    let _ = found.send(());
                }
            }
        });
        said.await.is_ok()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// SIGSTOP: its sockets stay open, and nothing comes out of them.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        self.0.try_wait().unwrap().map(|status| status.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port for a process that is to be started on it again and again. It lies below the range from which outgoing
/// connections take theirs: who connects to a local port of that range while nobody listens may reach itself.
pub fn port() -> u16 {
    loop {
        let port = rand::random_range(10_000..30_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
