//! The real binary, which is killed and stopped like the nodes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::process::{Process, port};

/// Value of `node.silence_timeout`: the proxy fails over from a silent upstream within this time.
pub const SILENCE: Duration = Duration::from_secs(2);
const START: Duration = Duration::from_secs(20);

/// headwater in front of the nodes.
pub struct Proxy {
    pub port: u16,
    admin: u16,
    upstreams: String,
    file: Option<PathBuf>,
    pub log: PathBuf,
    /// Locked by a fault until the process runs again.
    process: Mutex<Process>,
}

impl Proxy {
    /// Starts the process in front of these upstreams, with a configuration file if there is one.
    pub async fn start(directory: &Path, name: &str, upstreams: &[String], file: Option<&Path>) -> Self {
        let (port, admin, upstreams) = (port(), port(), upstreams.join(","));
        let log = directory.join(format!("{name}.log"));
        let file = file.map(Path::to_owned);
        let process = Mutex::new(spawn(port, admin, &upstreams, file.as_deref(), &log));
        let proxy = Self {
            port,
            admin,
            upstreams,
            file,
            log,
            process,
        };
        proxy.is_up().await;
        proxy
    }

    /// Kills the process with `kill -9` and restarts it after `down`.
    pub async fn kill(&self, down: Duration) {
        let mut process = self.process.lock().await;
        self.has_not_ended(&mut process);
        process.kill();
        sleep(down).await;
        *process = self.spawn();
        self.is_up().await;
    }

    /// Ends the process as a service is ended, and restarts it after `down`.
    pub async fn restart(&self, down: Duration) {
        let mut process = self.process.lock().await;
        self.has_not_ended(&mut process);
        timeout(START, process.terminate()).await.expect("the proxy drains");
        sleep(down).await;
        *process = self.spawn();
        self.is_up().await;
    }

    fn spawn(&self) -> Process {
        spawn(self.port, self.admin, &self.upstreams, self.file.as_deref(), &self.log)
    }

    /// Stops the process with SIGSTOP, and continues it with SIGCONT after `duration`.
    pub async fn freeze(&self, duration: Duration) {
        let process = self.process.lock().await;
        process.freeze();
        sleep(duration).await;
        process.thaw();
    }

    /// Panics if the process has ended by itself.
    pub async fn lives(&self) {
        self.has_not_ended(&mut *self.process.lock().await);
    }

    /// Panics like [`Self::lives`], but returns at once while a fault has locked the process.
    pub fn lives_unless_busy(&self) {
        if let Ok(mut process) = self.process.try_lock() {
            self.has_not_ended(&mut process);
        }
    }

    fn has_not_ended(&self, process: &mut Process) {
        if let Some(how) = process.ended() {
            let log = std::fs::read_to_string(&self.log).unwrap();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            panic!(
                "the proxy ended by itself ({how}), newest line first:\n{}",
                tail.join("\n")
            );
        }
    }

    async fn is_up(&self) {
        let up = async {
            while !self.page("health").await.is_some_and(|page| page.contains(" 200 ")) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(START, up).await.expect("the proxy starts");
    }

    /// Returns a page of the admin port, with its HTTP head.
    async fn page(&self, name: &str) -> Option<String> {
        let get = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).await.ok()?;
            let request = format!("GET /{name} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut page = String::new();
            stream.read_to_string(&mut page).await.ok()?;
            Some(page)
        };
        timeout(Duration::from_secs(5), get).await.ok()?
    }

    /// Returns the metrics that begin with `prefix`, by name and labels.
    pub async fn metrics(&self, prefix: &str) -> BTreeMap<String, f64> {
        let page = self.page("metrics").await.unwrap_or_default();
        let lines = page.lines().filter(|line| line.starts_with(prefix));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }
}

fn spawn(port: u16, admin: u16, upstreams: &str, file: Option<&Path>, log: &Path) -> Process {
    let binary = std::env::var_os("PROXY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_headwater").into(), PathBuf::from);
    let positions = log.with_extension("positions");
    let log = File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(binary);
    command
        .env_clear()
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--admin", &format!("127.0.0.1:{admin}")])
        .args(
            file.into_iter()
                .flat_map(|file| [OsStr::new("--config"), file.as_os_str()]),
        )
        .envs([
            ("HEADWATER_UPSTREAM", upstreams),
            (
                "HEADWATER_NODE_SILENCE_TIMEOUT",
                &humantime::format_duration(SILENCE).to_string(),
            ),
            ("HEADWATER_NODE_FAILBACK_AFTER", "2s"),
            ("HEADWATER_NODE_RECONNECT_MAX", "1s"),
            ("HEADWATER_NODE_POLL_INTERVAL", "100ms"),
            // So that some of the clients that stall for a few seconds are closed.
            ("HEADWATER_DELIVERY_MAX_QUEUE_AGE", "2s"),
            ("HEADWATER_DELIVERY_NOTSENT_LOWAT", "4 KiB"),
            // Small, so that clients that return late need blocks that must be fetched.
            ("HEADWATER_HISTORY_BLOCKS", "24"),
            ("HEADWATER_SHUTDOWN_GRACE", "2s"),
            ("HEADWATER_LOG_FILTER", "info,headwater=debug"),
        ])
        .env("HEADWATER_SESSIONS_FILE", positions)
        .stdout(Stdio::null())
        .stderr(Stdio::from(log));
    Process::start(&mut command)
}
