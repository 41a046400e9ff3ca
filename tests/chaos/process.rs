//! A child process that can be killed, stopped and started again on the same port.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A child process, killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// Waits for `marker` in the output; returns `false` if the process ends before. Reads the output to the end,
    /// because a process blocks when its pipe is full.
    pub async fn says(&mut self, marker: &'static str) -> bool {
        let output: ChildStdout = self.0.stdout.take().expect("its output is a pipe");
        let (found, said) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut found = Some(found);
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.contains(marker)
                    && let Some(found) = found.take()
                {
                    // The receiver may be gone.
                    let _ = found.send(());
                }
            }
        });
        said.await.is_ok()
    }

    /// Kills the process with `kill -9`.
    pub fn kill(&mut self) {
        // The process may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Sends SIGSTOP: the sockets stay open, but nothing is sent.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Sends SIGTERM, and waits for the end.
    pub async fn terminate(&mut self) {
        self.signal(Signal::TERM);
        while self.ended().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Returns the exit status if the process has ended.
    pub fn ended(&mut self) -> Option<String> {
        self.0.try_wait().unwrap().map(|status| status.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns a free port for a process that will be restarted on it repeatedly. The port lies below the range of
/// outgoing connections: a client that connects to a local port in that range without a listener may connect to
/// itself.
pub fn port() -> u16 {
    loop {
        let port = rand::random_range(10_000..30_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
